/*
 * kernels: the device operations of a Qwen3-MoE / Mixtral prefill layer, bf16, one launcher per fused operation.
 *
 * T tokens, H hidden width, E experts, k experts a token, I expert width, R = routed rows (T*k when every expert is
 * local), D head width. bf16 tensors are row-major `uint16_t`-sized bit patterns (fr_bf16); every pointer is device
 * memory, 16-byte aligned; H, I and K are multiples of 8. Launchers are asynchronous on `stream`, allocate nothing,
 * never synchronise, and can be captured in a graph. cudaErrorInvalidValue means an argument outside what the comment
 * allows. Results never depend on the order in which blocks run: the same inputs give the same bits.
 *
 * The math is that of transformers' modeling_qwen3_moe.py and modeling_mixtral.py; where this
 * code keeps fp32 for longer than the reference does, the comment says so.
 */
#ifndef FR_KERNELS_H
#define FR_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t fr_bf16; /* the bits of a bfloat16 */

enum { FR_K_MAX_EXPERTS = 512, FR_K_MAX_TOPK = 16, FR_K_MAX_HIDDEN = 16384 };

/* out[t,:] = table[ids[t],:]. ids [T] in [0, vocab); an id outside gives a row of zeros, never a wild read. */
cudaError_t fr_k_embedding(const fr_bf16 *table, const int32_t *ids, fr_bf16 *out, int64_t T, int64_t H, int64_t vocab,
                           cudaStream_t stream);

/*
 * RMSNorm: out[i,:] = bf16(x[r,:] / sqrt(mean(x[r,:]^2) + eps) * weight), r = rows ? rows[i] : i; fp32 until the one
 * rounding (the reference rounds before the weight too).
 * x [*, H], weight [H], out [n, H]. With `rows` this is the final norm of the selected last rows. H <= 16384.
 */
cudaError_t fr_k_rmsnorm(const fr_bf16 *x, const fr_bf16 *weight, const int32_t *rows, fr_bf16 *out, int64_t n,
                         int64_t H, float eps, cudaStream_t stream);

/* residual[t,:] = bf16(residual + delta); out = rmsnorm(residual) * weight. residual is updated in place. */
cudaError_t fr_k_add_rmsnorm(fr_bf16 *residual, const fr_bf16 *delta, const fr_bf16 *weight, fr_bf16 *out, int64_t n,
                             int64_t H, float eps, cudaStream_t stream);

/* out[i,:] = rmsnorm(bf16(residual[r,:] + delta[r,:])) * weight, r = rows[i]: the final norm where a block's result is
 * still to be added. residual is left as it is. */
cudaError_t fr_k_add_rmsnorm_rows(const fr_bf16 *residual, const fr_bf16 *delta, const fr_bf16 *weight,
                                  const int32_t *rows, fr_bf16 *out, int64_t n, int64_t H, float eps,
                                  cudaStream_t stream);

/*
 * cos and sin of position p and frequency i, p < positions, i < D/2: table[p*D/2 + i] = (cos, sin) of
 * p * theta^(-2i/D), pairs of fp32 (the reference rounds them to bf16, which alone is an error of 2^-9).
 */
cudaError_t fr_k_rope_table(float *table, int64_t positions, int32_t D, float theta, cudaStream_t stream);

/*
 * Per-head RMSNorm of q and k (skipped where the weights are NULL, as in Mixtral), then RoPE in split-half form, in
 * fp32 until one rounding at the end (the reference rounds three times on the way).
 * qkv [T, (heads_q + 2 heads_kv) * D] as the packed projection writes it. position [T] < rows of the table.
 * q goes to q_out[t * q_stride + head * D], k and v to k_out / v_out[kv_row(t) * kv_stride + head * D] with
 * kv_row(t) = kv_row ? kv_row[t] : t. q_out may be qkv itself (q_stride = packed width). k_out may point into qkv too;
 * v is copied unless v_out is NULL (left where it is). Strides in elements, multiples of 8. D is 64 or 128.
 */
typedef struct {
    const fr_bf16 *qkv, *q_weight, *k_weight; /* q_weight, k_weight [D] or NULL */
    const int32_t *position, *kv_row;
    const float *rope;
    fr_bf16 *q_out, *k_out, *v_out;
    int64_t q_stride, kv_stride, T;
    int32_t heads_q, heads_kv, D;
    float eps;
} fr_k_qk_args;
cudaError_t fr_k_qk_norm_rope(const fr_k_qk_args *args, cudaStream_t stream);

/*
 * The device tables of a packed attention call (attention.h): five runs of stride ints, stride = (b + 1) rounded up to
 * a multiple of 4: query lengths [b], key lengths [b], then offsets in elements [b + 1] of the queries, of the keys and
 * values, and of the outputs. q_start [b+1]: first query row of each sequence, last entry all rows. kv_start [b] and
 * kv_len [b]: first key row and number of keys; NULL: the same as the queries (no cached prefix, no earlier chunk).
 * Offsets must stay below 2^31 elements: (rows * row stride) of each tensor.
 */
size_t fr_k_attention_meta_bytes(int32_t b);
cudaError_t fr_k_attention_meta(const int32_t *q_start, const int32_t *kv_start, const int32_t *kv_len, int32_t b,
                                int64_t q_stride, int64_t kv_stride, int64_t o_stride, int32_t *meta,
                                cudaStream_t stream);

/*
 * Router: p = softmax(logits[t,:] + bias) over all E experts in fp32; ids[t,:] the k largest (ties: lowest expert),
 * weights[t,:] = p, divided by their sum if renormalise, fp32 (the reference rounds them to bf16).
 * logits [T, E] fp32 (from a GEMM with fp32 output: the reference rounds them to bf16), bias [E] or NULL, used to
 * inject routing skew. E <= 512, k <= 16. ids are in descending order of weight.
 */
cudaError_t fr_k_router(const float *logits, const float *bias, int32_t *ids, float *weights, int64_t T, int32_t E,
                        int32_t k, bool renormalise, cudaStream_t stream);

/*
 * Routing tables of the experts first .. first+E-1 (all: first = 0), stable: rows are ordered by expert, then token.
 * In: ids [T*k]. Out: offsets [E+1] (rows of expert e are offsets[e] .. offsets[e+1]-1), row_of_slot [T*k] (the row of
 * slot t*k+j, or -1 if its expert is not among these), token_of_row [T*k] (rows >= offsets[E] are left untouched).
 * workspace: fr_k_route_workspace(T*k, E) bytes. Three launches, no host read, no atomics on global memory.
 */
size_t fr_k_route_workspace(int64_t slots, int32_t E);
cudaError_t fr_k_route(const int32_t *ids, int64_t T, int32_t k, int32_t first, int32_t E, int32_t *offsets,
                       int32_t *row_of_slot, int32_t *token_of_row, void *workspace, cudaStream_t stream);

/* The same for tokens that came from other ranks, whose number only the device knows: *arrived (device), at most T. The
 * slots of tokens beyond are not written. */
cudaError_t fr_k_route_arrived(const int32_t *ids, const int32_t *arrived, int64_t T, int32_t k, int32_t first,
                               int32_t E, int32_t *offsets, int32_t *row_of_slot, int32_t *token_of_row,
                               void *workspace, cudaStream_t stream);

/* out[row_of_slot[t*k+j],:] = x[t,:] for every slot that has a row. x [T,H] is read once. */
cudaError_t fr_k_permute(const fr_bf16 *x, const int32_t *row_of_slot, fr_bf16 *out, int64_t T, int32_t k, int64_t H,
                         cudaStream_t stream);

/* The same for the first *arrived (device) of at most T tokens. */
cudaError_t fr_k_permute_arrived(const fr_bf16 *x, const int32_t *row_of_slot, const int32_t *arrived, fr_bf16 *out,
                                 int64_t T, int32_t k, int64_t H, cudaStream_t stream);

/*
 * Grouped GEMM on Hopper (sm_90a): c[r,:] = a[r,:] * b[e]^T for the rows r of each expert e, fp32 accumulation.
 * a [rows, K], b [E, N, K], offsets [E+1] on the device, c [rows, N] or, with swiglu, [rows, N/2].
 * swiglu: b holds gate and up rows interleaved in blocks of 8 (see fr_k_pack_gate_up); c = silu(gate) * up, computed in
 * fp32 and rounded once (the reference rounds gate, up and silu to bf16 on the way).
 * token_of_row [rows] or NULL: if given, row r of A is a[token_of_row[r],:] with a [a_rows, K]: the gather is fused.
 * rows is the capacity: offsets[E] <= rows < 2^31. K, N multiples of 8 (swiglu: N of 16). E <= 512. Rows >= offsets[E]
 * of c are not written.
 * own: the weights of experts own_first .. own_end-1 lie there, [own_end - own_first, N, K], and not in b (a shard that
 * is used in place while the other experts are in a gather buffer). b then has the places of all E experts, or, packed,
 * those of the others only, in order. Where weights lie does not change a bit of c. NULL: all in b.
 */
typedef struct {
    const fr_bf16 *a, *b;
    fr_bf16 *c;
    const int32_t *offsets, *token_of_row;
    uint32_t *counter;    /* a device word, zero before the first call and after each; one for each stream in use */
    int64_t rows, a_rows; /* a_rows is used with token_of_row only */
    int32_t E, N, K;
    bool swiglu;
    const fr_bf16 *own;
    int32_t own_first, own_end;
    bool packed;
} fr_k_grouped_args;
cudaError_t fr_k_grouped_gemm(const fr_k_grouped_args *args, cudaStream_t stream);

/*
 * The variants behind fr_k_grouped_gemm, for measurement: pick one by hand. fr_k_grouped_default says which it takes:
 * clusters save L2 traffic and so power (sustained on an H200 at 1,024 rows an expert: 602 against 590 TFLOP/s down,
 * 625 against 603 up), single blocks are quicker at 128 rows (kernels/measured/README.md). All give the same bits.
 */
enum {
    FR_K_GROUPED_SINGLE = 0,      /* a block by itself */
    FR_K_GROUPED_CLUSTER = 1,     /* two blocks share the weight tile by multicast */
    FR_K_GROUPED_SINGLE_SKEW = 2, /* the same two, with the consumers of a block two steps apart */
    FR_K_GROUPED_CLUSTER_SKEW = 3,
    FR_K_GROUPED_VARIANTS = 4
};
int fr_k_grouped_default(int64_t rows, int32_t E);
cudaError_t fr_k_grouped_gemm_variant(const fr_k_grouped_args *args, int variant, cudaStream_t stream);

/*
 * Weight layout of the fused gate+up projection: dst [E, 2I, K] from gate [E, I, K] and up [E, I, K] (Hugging Face
 * gate_proj / up_proj rows; expert strides in elements, so a stacked gate_up [E, 2I, K] is gate = base, up = base +
 * I*K, both strides 2I*K). Row 16b+i of dst is gate row 8b+i, row 16b+8+i is up row 8b+i, i < 8. I a multiple of 8.
 */
cudaError_t fr_k_pack_gate_up(const fr_bf16 *gate, int64_t gate_stride, const fr_bf16 *up, int64_t up_stride,
                              fr_bf16 *dst, int32_t E, int64_t I, int64_t K, cudaStream_t stream);

/*
 * Stand-alone SwiGLU, for dense layers and as the reference of the fused one: out[r,i] = silu(gate) * up, fp32 inside.
 * gate_up [n, 2I]; interleaved: blocks of 8 as above, otherwise the first I columns are gate. out [n, I].
 */
cudaError_t fr_k_swiglu(const fr_bf16 *gate_up, fr_bf16 *out, int64_t n, int64_t I, bool interleaved,
                        cudaStream_t stream);

/*
 * out[t,:] = bf16(residual[t,:] + sum_j weights[t*k+j] * y[row_of_slot[t*k+j],:]), fp32 sum in slot order, slots
 * without a row skipped; residual may be NULL, and may be out; row_of_slot and weights as in fr_k_reduce. With
 * norm_weight [H], also norm_out[t,:] = rmsnorm(out[t,:]) * norm_weight, the next layer's input norm. H <= 16384.
 */
cudaError_t fr_k_combine(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights, const fr_bf16 *residual,
                         fr_bf16 *out, const fr_bf16 *norm_weight, fr_bf16 *norm_out, float eps, int64_t T, int32_t k,
                         int64_t H, cudaStream_t stream);

/*
 * Partial sums of the same kind, over rows that may have travelled: row_of_slot NULL: token t's only row is t (k = 1);
 * weights NULL: 1 each; arrived (device) not NULL: the first *arrived of at most T tokens. residual may be NULL or out.
 */
cudaError_t fr_k_reduce(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights, const int32_t *arrived,
                        const fr_bf16 *residual, fr_bf16 *out, int64_t T, int32_t k, int64_t H, cudaStream_t stream);

/* logits[i] = sum_h hidden[rows[i],h] * lm_head[tokens[i],h], i < n, fp32 throughout; a token outside [0, vocab)
 * gives NaN. */
cudaError_t fr_k_candidate_logits(const fr_bf16 *hidden, const fr_bf16 *lm_head, const int32_t *rows,
                                  const int32_t *tokens, float *logits, int64_t n, int64_t H, int64_t vocab,
                                  cudaStream_t stream);

/* x[i] = bf16(scale * normal(seed, first + i)): counter-based (no state), the same bits on every GPU of one build. */
cudaError_t fr_k_fill_normal(fr_bf16 *x, int64_t n, uint64_t seed, int64_t first, float scale, cudaStream_t stream);
/* The same numbers for a region of a tensor whose rows have `stride` elements: x [rows, columns] packed, row i
 * beginning with number first + i * stride. */
cudaError_t fr_k_fill_region(fr_bf16 *x, int64_t rows, int64_t columns, int64_t stride, uint64_t seed, int64_t first,
                             float scale, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

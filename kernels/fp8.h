/*
 * fp8: block-scaled e4m3: quantising, and the products of quantised rows with quantised weights.
 *
 * Rows (activations) have one fp32 scale per row and 128 elements of K, weights one per 128 x 128 block of a matrix
 * [N, K], as Hugging Face's FP8 checkpoints of Qwen3 and DeepSeek-V3 do (arXiv 2412.19437 section 3.3; the factor that
 * multiplies, `weight_scale_inv` there). A quantised row x is q = e4m3(x * (448 / m)), to nearest even, scale = m /
 * 448, m the largest magnitude of its group; a group of zeros has scale 0. G = ceil(K / 128).
 *
 * Scales of rows lie by group, [G, pitch]: element (g, row) at g * pitch + row, pitch a multiple of 4 and at least the
 * rows: what TMA and cublasLt read. Scales of weights lie as in the checkpoint, [ceil(N / 128), G]. Everything else is
 * as kernels.h says: device pointers 16-byte aligned, launchers asynchronous, the same inputs the same bits.
 */
#ifndef FR_FP8_H
#define FR_FP8_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint8_t fr_e4m3; /* the bits of an e4m3 (finite, NaN 0x7f and 0xff) */

/* q [n, K], scale [G, pitch] from x [n, K] bf16. K a multiple of 8, at most 16384. */
cudaError_t fr_k_quantise_rows(const fr_bf16 *x, fr_e4m3 *q, float *scale, int64_t pitch, int64_t n, int64_t K,
                               cudaStream_t stream);

/*
 * Weights: q [E, N, K], scale [E, ceil(N / 128), G] from w [E, N, K] bf16, blocks of 128 x 128. interleaved: w and q
 * hold gate and up in blocks of 8 rows (fr_k_pack_gate_up), N = 2 I; the blocks are those of gate and of up, and the
 * scales [E, 2, ceil(I / 128), G], gate first. q may not be w. K a multiple of 8.
 */
cudaError_t fr_k_quantise_blocks(const fr_bf16 *w, fr_e4m3 *q, float *scale, int32_t E, int64_t N, int64_t K,
                                 bool interleaved, cudaStream_t stream);

/* fr_k_permute_arrived with rows quantised on the way: q [rows, H], scale [ceil(H / 128), pitch]. arrived may be NULL.
 * H a multiple of 16. */
cudaError_t fr_k_permute_fp8(const fr_bf16 *x, const int32_t *row_of_slot, const int32_t *arrived, fr_e4m3 *q,
                             float *scale, int64_t pitch, int64_t T, int32_t k, int64_t H, cudaStream_t stream);

/* The same of rows that are quantised already: `stride` bytes each, H of e4m3 and then their scales, as exchanges send
 * them (fr_k_exchange_row). */
cudaError_t fr_k_permute_quantised(const void *rows, int64_t stride, const int32_t *row_of_slot, const int32_t *arrived,
                                   fr_e4m3 *q, float *scale, int64_t pitch, int64_t T, int32_t k, int64_t H,
                                   cudaStream_t stream);

/* fr_k_rmsnorm and fr_k_add_rmsnorm (residual not NULL: x is added to it first, and it is updated) with the normed row
 * also, or, out NULL, only, written quantised: q [n, H], scale [ceil(H / 128), pitch]. What is quantised is the row
 * rounded to bf16. */
cudaError_t fr_k_rmsnorm_fp8(const fr_bf16 *x, fr_bf16 *residual, const fr_bf16 *weight, fr_bf16 *out, fr_e4m3 *q,
                             float *scale, int64_t pitch, int64_t n, int64_t H, float eps, cudaStream_t stream);

/* fr_k_combine with the next layer's normed row written quantised only, as fr_k_rmsnorm_fp8 does: q [T, H], scale
 * [ceil(H / 128), pitch]. */
cudaError_t fr_k_combine_fp8(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights,
                             const fr_bf16 *residual, fr_bf16 *out, const fr_bf16 *norm_weight, fr_e4m3 *q,
                             float *scale, int64_t pitch, float eps, int64_t T, int32_t k, int64_t H,
                             cudaStream_t stream);

/*
 * Grouped GEMM (sm_90a): c[r,:] = a[r,:] * b[e]^T for the rows r of each expert e; products of 128 elements are summed
 * by the tensor cores, then multiplied by both scales and added up in fp32. Arguments as in fr_k_grouped_args, and:
 * a_scale [G, a_pitch]; b_scale [E, ceil(N / 128), G], with swiglu [E, 2, ceil(N / 256), G] (gate, then up);
 * own_scale likewise for `own`. K a multiple of 16, N of 8 (swiglu: of 16).
 * Output: c [rows, N] bf16, or with swiglu [rows, N / 2]; or, swiglu only and N a multiple of 256, c NULL and
 * q [rows, N / 2] quantised from fp32 with q_scale [N / 256, q_pitch].
 * offsets NULL (E = 1): a plain product of all rows.
 */
typedef struct {
    const fr_e4m3 *a, *b;
    const float *a_scale, *b_scale;
    int64_t a_pitch;
    fr_bf16 *c;
    fr_e4m3 *q;
    float *q_scale;
    int64_t q_pitch;
    const int32_t *offsets;
    uint32_t *counter; /* as in fr_k_grouped_args */
    int64_t rows;
    int32_t E, N, K;
    bool swiglu;
    const fr_e4m3 *own;
    const float *own_scale;
    int32_t own_first, own_end;
    bool packed;
} fr_k_fp8_args;
cudaError_t fr_k_grouped_fp8(const fr_k_fp8_args *args, cudaStream_t stream);
/* variant: as fr_k_grouped_gemm_variant; all give the same bits. Clusters are the quicker ones from 512 rows an expert
 * on (up 1,104 against 1,046 TFLOP/s, down 969 against 892, at 1,024 rows), single blocks below. */
cudaError_t fr_k_grouped_fp8_variant(const fr_k_fp8_args *args, int variant, cudaStream_t stream);
int fr_k_grouped_fp8_default(int64_t rows, int32_t E);

#ifdef __cplusplus
}
#endif
#endif

/*
 * ops: what the launchers of ops.c (dispatch, embedding, norms, head), ops_attention.c and ops_experts.c share
 * (internal to engine/cuda). An op's pointers are the plan's buffers in the order of its uses (engine/strategy/layer.c
 * says which): reads and writes of activations; weights come from the layer that the op names, sizes from its shape.
 */
#ifndef FR_CUDA_OPS_H
#define FR_CUDA_OPS_H

#include "engine/cuda/rank.h"
#include "kernels/fp8.h"

enum { FR_MOST_USES = 8 };

typedef struct {
    fr_device_rank *r;
    const fr_plan *plan;
    const fr_fragment *f;
    const fr_op *op;
    const fr_shape *shape;     /* of a late op: its bound */
    const fr_layer_weights *w; /* NULL outside layers */
    const fr_batch_tables *b;  /* the op's micro-batch */
    const void *in[FR_MOST_USES];
    void *out[FR_MOST_USES];
    int ins, outs;
    cudaStream_t stream;
    fr_error *err;
} fr_call;

fr_status fr_call_done(fr_call *c, cudaError_t e, const char *what);
/* A plan that this code does not know: fewer buffers than the kind needs, or another number of tokens. */
fr_status fr_call_expect(fr_call *c, int ins, int outs, int64_t m, int64_t wanted);
/* out[0] = in[0] * w^T (+ in[1]), as many columns and as deep as the shape says. */
fr_status fr_call_gemm(fr_call *c, const fr_bf16 *w, int64_t M, bool f32);

/* ops_fp8.c: --precision fp8 */
bool fr_call_fp8(const fr_call *c);
/* Quantised rows in a buffer of fr_fp8_bytes(rows, width). */
typedef struct {
    fr_e4m3 *q;
    float *scale;
    int64_t pitch;
} fr_fp8_rows;
fr_fp8_rows fr_fp8_at(const void *buffer, int64_t rows, int64_t width);
fr_status fr_launch_norm_fp8(fr_call *c, const fr_bf16 *weight); /* the normed rows quantised only */
fr_status fr_launch_quantise(fr_call *c);                        /* all tokens' rows, as they are */
/* fr_k_combine where the next layer's normed rows are quantised. */
fr_status fr_call_combine_fp8(fr_call *c, const fr_bf16 *y, const int32_t *row_of_slot, const float *weights,
                              const fr_bf16 *residual, int64_t tokens, int k);
/* As fr_call_gemm, of quantised rows and a quantised weight. */
fr_status fr_call_gemm_fp8(fr_call *c, const fr_bf16 *w, const float *scale);
/* The arguments of a bf16 product whose rows, weights and, with swiglu, output are quantised. */
fr_status fr_call_grouped_fp8(fr_call *c, const fr_k_grouped_args *g, const float *scale, const float *own_scale);

/* ops_attention.c */
fr_status fr_launch_qkv(fr_call *c);
fr_status fr_launch_rope(fr_call *c);
fr_status fr_launch_attention(fr_call *c);
fr_status fr_launch_o(fr_call *c);

/* ops_experts.c */
/* The route buffer of `tokens` tokens: ids [tokens, k], weights, then, for an exchange, which row of send holds each
 * copy [tokens, copies], -1 = none. */
typedef struct {
    int32_t *ids;
    float *weights;
    int32_t *row_of_copy;
} fr_route_view;
fr_route_view fr_route_of(const fr_device_rank *r, const void *route, int64_t tokens);
/* A receive buffer: rows [arriving, H], then ids and weights [arriving, slots] (fr_activations). */
typedef struct {
    fr_bf16 *rows;
    int32_t *ids;
    float *weights;
} fr_recv_view;
fr_recv_view fr_recv_of(const fr_device_rank *r, const void *recv);
int fr_call_half(const fr_call *c);             /* of a two-batch overlap, which of asap's two batches, else 0 */
int64_t fr_call_group_tokens(const fr_call *c); /* of all ranks that this one's experts work for */
fr_status fr_launch_router(fr_call *c);
fr_status fr_launch_topk(fr_call *c);
fr_status fr_launch_sort(fr_call *c);
fr_status fr_launch_permute(fr_call *c);
fr_status fr_launch_expert_up(fr_call *c);
fr_status fr_launch_expert_down(fr_call *c);
fr_status fr_launch_combine(fr_call *c);
fr_status fr_launch_reduce(fr_call *c);

/* ops_exchange.c */
fr_status fr_launch_collective(fr_call *c); /* the whole class */
fr_status fr_launch_pack(fr_call *c);       /* PERMUTE sub FR_SUB_PACK */
enum { FR_SUB_PACK = 1000 };                /* experts_ep.c, asap.c */

/* ops_links.c: asap */
fr_status fr_launch_push(fr_call *c);
fr_status fr_launch_drain(fr_call *c);
fr_status fr_launch_links_pack(fr_call *c);
fr_status fr_launch_links_combine(fr_call *c);

#endif

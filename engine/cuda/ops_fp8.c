/*
 * Launchers' fp8 side: where quantised rows lie in a buffer, and the products of them. A buffer holds the e4m3 rows and
 * behind them their scales (fr_fp8_bytes); writer and reader agree on it through the number of rows that both know.
 */
#include "engine/cuda/ops.h"

bool fr_call_fp8(const fr_call *c) {
    return c->r->layout->precision == FR_FP8;
}

fr_fp8_rows fr_fp8_at(const void *buffer, int64_t rows, int64_t width) {
    char *base = (char *)(uintptr_t)buffer;
    return (fr_fp8_rows){(fr_e4m3 *)base, (float *)(void *)(base + rows * width), fr_fp8_pitch(rows)};
}

/* cublasLt takes multiples of 4: up to three rows that nobody reads, where batches vary and the buffer has room. Else
 * our own product of exactly these rows, which gives the same bits. */
static int64_t dense_rows(const fr_call *c, int64_t rows) {
    const int64_t whole = fr_ceil_div(rows, 4) * 4;
    return c->r->varied && whole <= c->r->most_rows ? whole : rows;
}

fr_status fr_launch_norm_fp8(fr_call *c, const fr_bf16 *weight) {
    const fr_model *m = c->r->model;
    const int64_t rows = c->b->held, hidden = m->hidden;
    const bool add = c->ins > 1;
    if (add) FR_TRY(fr_call_expect(c, 2, 2, rows, rows));
    const fr_fp8_rows to = fr_fp8_at(c->out[add], dense_rows(c, rows), hidden);
    return fr_call_done(c,
                        fr_k_rmsnorm_fp8(add ? c->in[1] : c->in[0], add ? c->out[0] : NULL, weight, NULL, to.q,
                                         to.scale, to.pitch, rows, hidden, (float)m->norm_eps, c->stream),
                        "fr_k_rmsnorm_fp8");
}

fr_status fr_call_combine_fp8(fr_call *c, const fr_bf16 *y, const int32_t *row_of_slot, const float *weights,
                              const fr_bf16 *residual, int64_t tokens, int k) {
    const fr_model *m = c->r->model;
    const fr_fp8_rows to = fr_fp8_at(c->out[1], dense_rows(c, tokens), m->hidden);
    return fr_call_done(c,
                        fr_k_combine_fp8(y, row_of_slot, weights, residual, c->out[0],
                                         fr_weights_layer(c->r->weights, c->op->layer + 1)->input_norm, to.q, to.scale,
                                         to.pitch, (float)m->norm_eps, tokens, k, m->hidden, c->stream),
                        "fr_k_combine_fp8");
}

fr_status fr_launch_quantise(fr_call *c) {
    const int64_t rows = c->b->tokens, width = c->shape->n;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, rows));
    const fr_fp8_rows to = fr_fp8_at(c->out[0], dense_rows(c, rows), width);
    return fr_call_done(c, fr_k_quantise_rows(c->in[0], to.q, to.scale, to.pitch, rows, width, c->stream),
                        "fr_k_quantise_rows");
}

fr_status fr_call_gemm_fp8(fr_call *c, const fr_bf16 *w, const float *scale) {
    const int64_t M = dense_rows(c, c->shape->m);
    const fr_fp8_rows x = fr_fp8_at(c->in[0], M, c->shape->k);
    if (M % 4 == 0) {
        const fr_gemm_args g = {.x = (const fr_bf16 *)(const void *)x.q,
                                .x_scale = x.scale,
                                .w = w,
                                .w_scale = scale,
                                .out = c->out[0],
                                .M = M,
                                .like_M = c->r->varied ? fr_rows_like(M) : 0,
                                .N = c->shape->n,
                                .K = c->shape->k,
                                .workspace = c->r->gemm_workspace,
                                .workspace_bytes = FR_GEMM_WORKSPACE};
        return fr_gemm_run(c->r->gemm, &g, c->stream, c->err);
    }
    const fr_k_fp8_args a = {.a = x.q,
                             .a_scale = x.scale,
                             .a_pitch = x.pitch,
                             .b = (const fr_e4m3 *)(const void *)w,
                             .b_scale = scale,
                             .c = c->out[0],
                             .counter = c->r->counter,
                             .rows = M,
                             .E = 1,
                             .N = c->shape->n,
                             .K = c->shape->k};
    return fr_call_done(c, fr_k_grouped_fp8(&a, c->stream), "fr_k_grouped_fp8");
}

/* The same fields with the same meaning: the weights are e4m3 behind bf16's pointers. */
fr_status fr_call_grouped_fp8(fr_call *c, const fr_k_grouped_args *g, const float *scale, const float *own_scale) {
    const fr_fp8_rows x = fr_fp8_at(c->in[0], g->rows, g->K);
    fr_k_fp8_args a = {.a = x.q,
                       .a_scale = x.scale,
                       .a_pitch = x.pitch,
                       .b = (const fr_e4m3 *)(const void *)g->b,
                       .b_scale = scale,
                       .offsets = g->offsets,
                       .counter = g->counter,
                       .rows = g->rows,
                       .E = g->E,
                       .N = g->N,
                       .K = g->K,
                       .swiglu = g->swiglu,
                       .own = (const fr_e4m3 *)(const void *)g->own,
                       .own_scale = own_scale,
                       .own_first = g->own_first,
                       .own_end = g->own_end,
                       .packed = g->packed};
    if (g->swiglu) {
        const fr_fp8_rows to = fr_fp8_at(c->out[0], g->rows, g->N / 2);
        a.q = to.q, a.q_scale = to.scale, a.q_pitch = to.pitch;
    } else {
        a.c = g->c;
    }
    return fr_call_done(c, fr_k_grouped_fp8(&a, c->stream), "fr_k_grouped_fp8");
}

/* Launchers of the attention block: projections, rotary, attention itself, with and without a KV cache. */
#include "engine/cuda/ops.h"

#include <math.h>

enum { PREPARED = 128 }; /* sequences */

/* Elements of a row of q, k and v. */
static int64_t qkv_width(const fr_device_rank *r) {
    return (int64_t)(r->shard.heads + 2 * r->shard.kv_heads) * r->model->head_dim;
}
static int64_t q_width(const fr_device_rank *r) {
    return (int64_t)r->shard.heads * r->model->head_dim;
}

fr_status fr_launch_qkv(fr_call *c) {
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->tokens));
    if (fr_call_fp8(c)) return fr_call_gemm_fp8(c, c->w->qkv, c->w->qkv_scale);
    return fr_call_gemm(c, c->w->qkv, c->shape->m, false);
}

/* K and V of one layer's cache. */
static fr_bf16 *kv_layer(const fr_call *c) {
    return c->r->kv + (c->op->layer - c->r->shard.first_layer) * c->r->kv_capacity * c->r->kv_width;
}

/* In place, v stays where it is; with a KV cache k and v go to their tokens' rows there. */
fr_status fr_launch_rope(fr_call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const int64_t width = qkv_width(r), q = q_width(r);
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->tokens));
    fr_k_qk_args a = {.qkv = c->in[0],
                      .q_weight = c->w->q_norm,
                      .k_weight = c->w->k_norm,
                      .position = c->b->position,
                      .rope = r->rope,
                      .q_out = c->out[0],
                      .k_out = (fr_bf16 *)c->out[0] + q,
                      .q_stride = width,
                      .kv_stride = width,
                      .T = c->b->tokens,
                      .heads_q = r->shard.heads,
                      .heads_kv = r->shard.kv_heads,
                      .D = m->head_dim,
                      .eps = (float)m->norm_eps};
    if (r->kv) {
        a.kv_row = c->b->kv_row;
        a.k_out = kv_layer(c);
        a.v_out = a.k_out + r->kv_width / 2;
        a.kv_stride = r->kv_width;
    }
    return fr_call_done(c, fr_k_qk_norm_rope(&a, c->stream), "fr_k_qk_norm_rope");
}

static fr_status grow_workspace(fr_device_rank *r, size_t need, cudaStream_t stream, fr_error *err) {
    return fr_rank_grow(&r->attention_workspace, &r->attention_workspace_bytes, (int64_t)need, 1, stream,
                        "attention's workspace", err);
}

static fr_attention_args attention_args(const fr_device_rank *r, int32_t b, int32_t max_q, int32_t max_kv) {
    const int64_t width = qkv_width(r);
    return (fr_attention_args){.q_stride = width,
                               .kv_stride = r->kv ? r->kv_width : width,
                               .o_stride = q_width(r),
                               .b = b,
                               .max_q = max_q,
                               .max_kv = max_kv,
                               .heads_q = r->shard.heads,
                               .heads_kv = r->shard.kv_heads,
                               .D = r->model->head_dim,
                               .scale = 1.0f / sqrtf((float)r->model->head_dim)};
}

/* A packed graph of so many sequences is declared for the longest that there can be: its kernel goes by the true
 * lengths and takes the same time (measured, 768 against 8,192 for 700 tokens), while another graph would be made, and
 * loaded in its first run, for each longest length that comes up. */
static fr_attention_args packed_args(const fr_device_rank *r, int32_t sequences) {
    return attention_args(r, sequences, (int32_t)r->positions, (int32_t)r->positions);
}

static fr_attention_args batch_args(const fr_device_rank *r, const fr_batch_tables *b) {
    if (b->equal) return attention_args(r, b->sequences, b->max_q, b->max_kv);
    fr_attention_args a = packed_args(r, b->padded);
    a.meta = b->meta;
    return a;
}

fr_status fr_rank_prepare_attention(fr_device_rank *r, cudaStream_t stream, fr_error *err) {
    for (int m = 0; m < r->micros; m++) {
        if (r->micro[m].tokens == 0) continue;
        fr_attention_args a = batch_args(r, &r->micro[m]);
        size_t need = 0;
        if (!r->micro[m].equal) a.meta = r->offsets; /* any: only that there are tables is looked at */
        FR_TRY(fr_attention_workspace(r->attention, &a, &need, err));
        FR_TRY(grow_workspace(r, need, stream, err));
    }
    return FR_OK;
}

fr_status fr_launch_attention(fr_call *c) {
    fr_device_rank *r = c->r;
    const fr_batch_tables *b = c->b;
    const int64_t q = q_width(r), kv = (int64_t)r->shard.kv_heads * r->model->head_dim;
    const fr_bf16 *qkv = c->in[0];
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, b->tokens));
    fr_attention_args a = batch_args(r, b);
    size_t need = 0;
    a.q = qkv;
    a.k = qkv + q;
    a.v = qkv + q + kv;
    a.out = c->out[0];
    if (r->kv) { /* rows of the cache, one sequence's after the other's */
        FR_TRY(fr_call_done(c,
                            fr_k_embedding(kv_layer(c), b->context_rows, r->context, b->context, r->kv_width,
                                           r->kv_capacity, c->stream),
                            "gathering the context"));
        a.k = r->context;
        a.v = r->context + r->kv_width / 2;
    }
    FR_TRY(fr_attention_workspace(r->attention, &a, &need, c->err));
    FR_TRY(grow_workspace(r, need, c->stream, c->err));
    a.workspace = r->attention_workspace;
    a.workspace_bytes = (size_t)r->attention_workspace_bytes;
    return fr_attention_run(r->attention, &a, c->stream, c->err);
}

/* Each product once for every number of rows whose algorithm is taken, on whatever memory holds: the rows go nowhere.
 */
static fr_status prepare_products(fr_device_rank *r, fr_error *err) {
    const fr_model *m = r->model;
    const int64_t q = q_width(r), width = qkv_width(r);
    const int64_t widest = fr_max_i64(width, m->hidden), rows = r->most_rows;
    const fr_layer_weights *w = &r->weights->layer[0];
    fr_bf16 *x = NULL, *out = NULL;
    cudaError_t e = cudaMalloc((void **)&x, (size_t)(2 * rows * fr_max_i64(q, m->hidden)));
    if (!e) e = cudaMalloc((void **)&out, (size_t)(rows * fr_max_i64(2 * widest, 4 * m->experts)));
    fr_status s = e ? fr_fail(err, FR_FAILED, "cudaMalloc: %s", cudaGetErrorString(e)) : FR_OK;
    for (int64_t M = 0, like = 0; M < rows && s == FR_OK;) {
        like = fr_rows_like(M + 1);
        M = fr_min_i64(like, rows);
        const fr_gemm_args a[3] = {{.w = w->qkv, .w_scale = w->qkv_scale, .N = width, .K = m->hidden},
                                   {.w = w->o, .w_scale = w->o_scale, .N = m->hidden, .K = q},
                                   {.w = w->router, .N = m->experts, .K = m->hidden, .out_f32 = true}};
        for (int i = 0; i < 3 && s == FR_OK; i++) {
            fr_gemm_args g = a[i];
            if (g.w_scale && M % 4) continue;
            if (g.w_scale) g.x_scale = (const float *)(const void *)(x + rows * fr_max_i64(q, m->hidden) / 2);
            g.x = x;
            g.add = i == 1 && r->layout->tp == 1 && !g.w_scale ? out : NULL; /* as engine/strategy/layer.c has it */
            g.out = out;
            g.M = M;
            g.like_M = like;
            g.workspace = r->gemm_workspace;
            g.workspace_bytes = FR_GEMM_WORKSPACE;
            s = fr_gemm_run(r->gemm, &g, NULL, err);
        }
    }
    e = cudaDeviceSynchronize();
    if (x) cudaFree(x);
    if (out) cudaFree(out);
    return s == FR_OK && e ? fr_fail(err, FR_FAILED, "preparing products: %s", cudaGetErrorString(e)) : s;
}

/* A graph's plan, and its first run: what is loaded then is not loaded within a forward. On sequences of no tokens
 * where `meta` says so, else on whatever the arena holds. */
static fr_status prepare_graph(fr_device_rank *r, fr_attention_args a, fr_error *err) {
    size_t need = 0;
    FR_TRY(fr_attention_workspace(r->attention, &a, &need, err));
    FR_TRY(grow_workspace(r, need, NULL, err));
    a.q = a.k = a.v = a.out = (fr_bf16 *)(void *)r->arena;
    a.workspace = r->attention_workspace;
    a.workspace_bytes = (size_t)r->attention_workspace_bytes;
    return fr_attention_run(r->attention, &a, NULL, err);
}

static fr_status prepare_attention(fr_device_rank *r, const int32_t *meta, fr_error *err) {
    const int64_t most = fr_min_i64(r->most_sequences, PREPARED);
    for (int32_t b = 1; b < 2 * most; b *= 2) {
        fr_attention_args a = packed_args(r, b);
        a.meta = meta;
        FR_TRY(prepare_graph(r, a, err));
    }
    const int32_t each = (int32_t)r->one_length;
    for (int32_t b = 2; each > 0 && !r->kv && b <= most && b * r->one_length <= r->most_tokens; b++)
        if (fr_unmasked(b, each)) FR_TRY(prepare_graph(r, attention_args(r, b, each, each), err));
    return FR_OK;
}

fr_status fr_rank_prepare(fr_device_rank *r, fr_error *err) {
    int32_t *meta = NULL;
    const size_t bytes = fr_k_attention_meta_bytes(2 * PREPARED);
    if (!r->shard.attention) return FR_OK;
    if (r->varied) FR_TRY(prepare_products(r, err));
    cudaError_t e = cudaMalloc((void **)&meta, bytes);
    if (!e) e = cudaMemset(meta, 0, bytes);
    fr_status s = e ? fr_fail(err, FR_FAILED, "cudaMalloc: %s", cudaGetErrorString(e)) : FR_OK;
    if (s == FR_OK) s = prepare_attention(r, meta, err);
    e = cudaDeviceSynchronize();
    if (meta) cudaFree(meta);
    return s == FR_OK && e ? fr_fail(err, FR_FAILED, "preparing attention: %s", cudaGetErrorString(e)) : s;
}

fr_status fr_launch_o(fr_call *c) {
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->tokens));
    if (fr_call_fp8(c)) return fr_call_gemm_fp8(c, c->w->o, c->w->o_scale);
    return fr_call_gemm(c, c->w->o, c->shape->m, false);
}

/*
 * Op kind -> launcher. An op's pointers are the plan's buffers in the order of its uses (engine/strategy/layer.c says
 * which): reads and writes of activations; weights come from the layer that the op names.
 */
#include "engine/cuda/rank.h"

#include <math.h>

enum { MOST_USES = 8, PREPARED = 128 };

typedef struct {
    fr_device_rank *r;
    const fr_fragment *f;
    const fr_op *op;
    const fr_shape *shape;
    const fr_layer_weights *w; /* NULL outside layers */
    const void *in[MOST_USES];
    void *out[MOST_USES];
    int ins, outs;
    cudaStream_t stream;
    fr_error *err;
} call;

static fr_status done(call *c, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(c->err, FR_FAILED, "%s failed: %s", what, cudaGetErrorString(e));
}

/* A plan that this code does not know: fewer buffers than the kind needs, or another number of tokens. */
static fr_status expect(call *c, int ins, int outs, int64_t m, int64_t wanted) {
    if (c->ins >= ins && c->outs >= outs && m == wanted) return FR_OK;
    return fr_fail(c->err, FR_FAILED, "the op reads %d and writes %d buffers for %lld rows, expected %d, %d and %lld",
                   c->ins, c->outs, (long long)m, ins, outs, (long long)wanted);
}

int64_t fr_bucket(const fr_device_rank *r, int64_t rows) {
    const int64_t step = rows <= 2048 ? 128 : 256;
    return r->varied ? fr_min_i64(fr_ceil_div(rows, step) * step, r->most_tokens) : rows;
}

static fr_status gemm(call *c, const fr_bf16 *w, int64_t M, int64_t N, int64_t K, bool f32) {
    const fr_gemm_args a = {.x = c->in[0],
                            .w = w,
                            .out = c->out[0],
                            .M = M,
                            .N = N,
                            .K = K,
                            .out_f32 = f32,
                            .workspace = c->r->gemm_workspace,
                            .workspace_bytes = FR_GEMM_WORKSPACE};
    return fr_gemm_run(c->r->gemm, &a, c->stream, c->err);
}

static int64_t qkv_width(const fr_model *m) {
    return (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
}

/* ---- outside layers -----------------------------------------------------------------------------------------------*/

static fr_status embed(call *c) {
    const fr_device_rank *r = c->r;
    FR_TRY(expect(c, 0, 1, c->shape->m, r->batch.tokens));
    return done(c,
                fr_k_embedding(r->weights->embedding, r->batch.ids, c->out[0], r->batch.tokens, r->model->hidden,
                               r->model->vocab, c->stream),
                "fr_k_embedding");
}

/* sub 0 and 1: before attention and before the experts; sub 2: the final one, over the rows that want logits. Two
 * buffers read = the last block's result is added to the residual stream first. */
static fr_status norm(call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const float eps = (float)m->norm_eps;
    const bool last = c->op->sub == 2;
    const int64_t rows = last ? r->batch.rows_all + r->batch.rows_some : r->batch.tokens;
    const fr_bf16 *weight = last ? r->weights->final_norm : c->op->sub == 1 ? c->w->post_norm : c->w->input_norm;
    FR_TRY(expect(c, 1, 1, c->shape->m, rows));
    if (last && c->ins > 1) return fr_fail(c->err, FR_FAILED, "a final norm with a pending residual is not known");
    if (c->ins == 1)
        return done(
            c, fr_k_rmsnorm(c->in[0], weight, last ? r->batch.rows : NULL, c->out[0], rows, m->hidden, eps, c->stream),
            "fr_k_rmsnorm");
    FR_TRY(expect(c, 2, 2, rows, rows));
    return done(c, fr_k_add_rmsnorm(c->out[0], c->in[1], weight, c->out[1], rows, m->hidden, eps, c->stream),
                "fr_k_add_rmsnorm");
}

/* sub 0: the whole vocabulary, sub 1: candidates; their logits lie behind one another. */
static fr_status head(call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const fr_batch_tables *b = &r->batch;
    FR_TRY(expect(c, 1, 1, c->shape->m, c->op->sub == 0 ? b->rows_all : b->rows_some));
    if (c->op->sub == 0) return gemm(c, r->weights->head, b->rows_all, m->vocab, m->hidden, true);
    return done(c,
                fr_k_candidate_logits(c->in[0], r->weights->head, b->pick_row, b->pick_token,
                                      (float *)c->out[0] + (int64_t)b->rows_all * m->vocab, b->picks, m->hidden,
                                      m->vocab, c->stream),
                "fr_k_candidate_logits");
}

/* ---- attention ----------------------------------------------------------------------------------------------------*/

static fr_status gemm_qkv(call *c) {
    const fr_model *m = c->r->model;
    FR_TRY(expect(c, 1, 1, c->shape->m, c->r->batch.tokens));
    return gemm(c, c->w->qkv, fr_bucket(c->r, c->shape->m), qkv_width(m), m->hidden, false);
}

/* K and V of one layer's cache. */
static fr_bf16 *kv_layer(const call *c) {
    return c->r->kv + c->op->layer * c->r->kv_capacity * c->r->kv_width;
}

/* In place, v stays where it is; with a KV cache k and v go to their tokens' rows there. */
static fr_status rope(call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const int64_t width = qkv_width(m), q = (int64_t)m->heads * m->head_dim;
    FR_TRY(expect(c, 1, 1, c->shape->m, r->batch.tokens));
    fr_k_qk_args a = {.qkv = c->in[0],
                      .q_weight = c->w->q_norm,
                      .k_weight = c->w->k_norm,
                      .position = r->batch.position,
                      .rope = r->rope,
                      .q_out = c->out[0],
                      .k_out = (fr_bf16 *)c->out[0] + q,
                      .q_stride = width,
                      .kv_stride = width,
                      .T = r->batch.tokens,
                      .heads_q = m->heads,
                      .heads_kv = m->kv_heads,
                      .D = m->head_dim,
                      .eps = (float)m->norm_eps};
    if (r->kv) {
        a.kv_row = r->batch.kv_row;
        a.k_out = kv_layer(c);
        a.v_out = a.k_out + r->kv_width / 2;
        a.kv_stride = r->kv_width;
    }
    return done(c, fr_k_qk_norm_rope(&a, c->stream), "fr_k_qk_norm_rope");
}

static fr_status grow_workspace(fr_device_rank *r, size_t need, fr_error *err) {
    if (need <= r->attention_workspace_bytes) return FR_OK;
    cudaError_t e = cudaDeviceSynchronize(); /* the old one may be in use */
    if (e == cudaSuccess && r->attention_workspace) e = cudaFree(r->attention_workspace);
    r->attention_workspace = NULL;
    r->attention_workspace_bytes = 0;
    if (e == cudaSuccess) e = cudaMalloc(&r->attention_workspace, 2 * need);
    if (e != cudaSuccess)
        return fr_fail(err, FR_FAILED, "attention's workspace of %zu bytes: %s", 2 * need, cudaGetErrorString(e));
    r->attention_workspace_bytes = 2 * need;
    return FR_OK;
}

static fr_attention_args attention_args(const fr_device_rank *r, int32_t b, int32_t max_q, int32_t max_kv, bool equal) {
    const fr_model *m = r->model;
    const int64_t width = qkv_width(m);
    return (fr_attention_args){.meta = equal ? NULL : r->batch.meta,
                               .q_stride = width,
                               .kv_stride = r->kv ? r->kv_width : width,
                               .o_stride = (int64_t)m->heads * m->head_dim,
                               .b = b,
                               .max_q = max_q,
                               .max_kv = max_kv,
                               .heads_q = m->heads,
                               .heads_kv = m->kv_heads,
                               .D = m->head_dim,
                               .scale = 1.0f / sqrtf((float)m->head_dim)};
}

static fr_status attention(call *c) {
    fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const fr_batch_tables *b = &r->batch;
    const int64_t q = (int64_t)m->heads * m->head_dim, kv = (int64_t)m->kv_heads * m->head_dim;
    const fr_bf16 *qkv = c->in[0];
    FR_TRY(expect(c, 1, 1, c->shape->m, b->tokens));
    fr_attention_args a = attention_args(r, b->equal ? b->sequences : b->padded, b->max_q, b->max_kv, b->equal);
    size_t need = 0;
    a.q = qkv;
    a.k = qkv + q;
    a.v = qkv + q + kv;
    a.out = c->out[0];
    if (r->kv) { /* rows of the cache, one sequence's after the other's */
        FR_TRY(done(c,
                    fr_k_embedding(kv_layer(c), b->context_rows, r->context, b->context, r->kv_width, r->kv_capacity,
                                   c->stream),
                    "gathering the context"));
        a.k = r->context;
        a.v = r->context + r->kv_width / 2;
    }
    FR_TRY(fr_attention_workspace(r->attention, &a, &need, c->err));
    FR_TRY(grow_workspace(r, need, c->err));
    a.workspace = r->attention_workspace;
    a.workspace_bytes = r->attention_workspace_bytes;
    return fr_attention_run(r->attention, &a, c->stream, c->err);
}

/* Each product once for every number of rows, on whatever the arena holds: the rows go nowhere. */
static fr_status prepare_products(fr_device_rank *r, fr_error *err) {
    const fr_model *m = r->model;
    const int64_t q = (int64_t)m->heads * m->head_dim, width = qkv_width(m);
    const int64_t widest = fr_max_i64(width, m->hidden), rows = r->most_tokens;
    const fr_layer_weights *w = &r->weights->layer[0];
    fr_bf16 *x = NULL, *out = NULL;
    cudaError_t e = cudaMalloc((void **)&x, (size_t)(2 * rows * fr_max_i64(q, m->hidden)));
    if (!e) e = cudaMalloc((void **)&out, (size_t)(rows * fr_max_i64(2 * widest, 4 * m->experts)));
    fr_status s = e ? fr_fail(err, FR_FAILED, "cudaMalloc: %s", cudaGetErrorString(e)) : FR_OK;
    for (int64_t M = 0; M < rows && s == FR_OK;) {
        M = fr_bucket(r, M + 1);
        const fr_gemm_args a[3] = {{.w = w->qkv, .N = width, .K = m->hidden},
                                   {.w = w->o, .N = m->hidden, .K = q},
                                   {.w = w->router, .N = m->experts, .K = m->hidden, .out_f32 = true}};
        for (int i = 0; i < 3 && s == FR_OK; i++) {
            fr_gemm_args g = a[i];
            g.x = x;
            g.out = out;
            g.M = M;
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

fr_status fr_rank_prepare(fr_device_rank *r, fr_error *err) {
    FR_TRY(prepare_products(r, err));
    const int64_t most = r->most_sequences < PREPARED ? r->most_sequences : PREPARED;
    for (int32_t b = 1; b < 2 * most; b *= 2) {
        const fr_attention_args a = attention_args(r, b, (int32_t)r->positions, (int32_t)r->positions, false);
        size_t need = 0;
        FR_TRY(fr_attention_workspace(r->attention, &a, &need, err));
        FR_TRY(grow_workspace(r, need, err));
    }
    return FR_OK;
}

static fr_status gemm_o(call *c) {
    const fr_model *m = c->r->model;
    FR_TRY(expect(c, 1, 1, c->shape->m, c->r->batch.tokens));
    return gemm(c, c->w->o, fr_bucket(c->r, c->shape->m), m->hidden, (int64_t)m->heads * m->head_dim, false);
}

/* ---- experts ------------------------------------------------------------------------------------------------------*/

/* The route buffer holds ids [T, k], then weights [T, k]; the order buffer the row of each slot [T k], then the token
 * of each row [T k]. */
static int64_t slots(const call *c) {
    return (int64_t)c->r->batch.tokens * c->r->model->top_k;
}
static int32_t *offsets(const call *c) {
    return c->r->offsets + (int64_t)c->op->layer * (c->r->model->experts + 1);
}

static fr_status gemm_router(call *c) {
    const fr_model *m = c->r->model;
    FR_TRY(expect(c, 1, 1, c->shape->m, c->r->batch.tokens));
    return gemm(c, c->w->router, fr_bucket(c->r, c->shape->m), m->experts, m->hidden, true);
}

static fr_status topk(call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    FR_TRY(expect(c, 1, 1, c->shape->m, r->batch.tokens));
    int32_t *ids = c->out[0];
    const float *bias = r->weights->router_bias + (int64_t)c->op->layer * m->experts;
    return done(c,
                fr_k_router(c->in[0], bias, ids, (float *)(void *)(ids + slots(c)), r->batch.tokens, m->experts,
                            m->top_k, m->renormalise, c->stream),
                "fr_k_router");
}

static fr_status sort(call *c) {
    fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    FR_TRY(expect(c, 1, 1, c->shape->m, slots(c)));
    int32_t *row_of_slot = c->out[0];
    r->order = row_of_slot;
    return done(c,
                fr_k_route(c->in[0], r->batch.tokens, m->top_k, 0, m->experts, offsets(c), row_of_slot,
                           row_of_slot + slots(c), r->route_workspace, c->stream),
                "fr_k_route");
}

static fr_status permute(call *c) {
    const fr_model *m = c->r->model;
    FR_TRY(expect(c, 2, 1, c->shape->m, slots(c)));
    return done(c, fr_k_permute(c->in[1], c->in[0], c->out[0], c->r->batch.tokens, m->top_k, m->hidden, c->stream),
                "fr_k_permute");
}

static fr_status grouped(call *c, const fr_bf16 *w, int32_t N, int32_t K, bool swiglu) {
    FR_TRY(expect(c, 1, 1, c->shape->m, slots(c)));
    const fr_k_grouped_args a = {.a = c->in[0],
                                 .b = w,
                                 .c = c->out[0],
                                 .offsets = offsets(c),
                                 .counter = c->r->counter,
                                 .sm_limit = c->op->sm_limit,
                                 .rows = slots(c),
                                 .E = c->r->model->experts,
                                 .N = N,
                                 .K = K,
                                 .swiglu = swiglu};
    return done(c, fr_k_grouped_gemm(&a, c->stream), "fr_k_grouped_gemm");
}

static fr_status expert_up(call *c) {
    return grouped(c, c->w->gate_up, 2 * c->r->model->expert_width, c->r->model->hidden, true);
}
static fr_status expert_down(call *c) {
    return grouped(c, c->w->down, c->r->model->hidden, c->r->model->expert_width, false);
}

/* Reads the experts' rows, the route, the residual stream; the rows' places are where the last sort put them. */
static fr_status combine(call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    FR_TRY(expect(c, 3, 1, c->shape->m, r->batch.tokens));
    const int32_t *ids = c->in[1];
    return done(c,
                fr_k_combine(c->in[0], r->order, (const float *)(const void *)(ids + slots(c)), c->in[2], c->out[0],
                             NULL, NULL, (float)m->norm_eps, r->batch.tokens, m->top_k, m->hidden, c->stream),
                "fr_k_combine");
}

/* ---- dispatch -----------------------------------------------------------------------------------------------------*/

typedef fr_status (*launcher)(call *);
static const launcher launchers[FR_OP_KIND_COUNT] = {
    [FR_OP_EMBED] = embed,
    [FR_OP_NORM] = norm,
    [FR_OP_GEMM_QKV] = gemm_qkv,
    [FR_OP_ROPE] = rope,
    [FR_OP_ATTENTION] = attention,
    [FR_OP_GEMM_O] = gemm_o,
    [FR_OP_GEMM_ROUTER] = gemm_router,
    [FR_OP_TOPK] = topk,
    [FR_OP_SORT] = sort,
    [FR_OP_PERMUTE] = permute,
    [FR_OP_EXPERT_UP] = expert_up,
    [FR_OP_EXPERT_DOWN] = expert_down,
    [FR_OP_COMBINE] = combine,
    [FR_OP_GEMM_HEAD] = head,
};

fr_status fr_op_launch(fr_device_rank *r, const fr_fragment *f, const fr_op *op, cudaStream_t stream, fr_error *err) {
    call c = {.r = r, .f = f, .op = op, .shape = fr_op_shape(f, op), .stream = stream, .err = err};
    const launcher launch = launchers[op->kind];
    if (!launch) return fr_fail(err, FR_FAILED, "ops of kind %s are not executed yet", fr_op_name(op->kind));
    if (op->layer != FR_NO_LAYER) c.w = &r->weights->layer[op->layer % r->weights->layers];
    const fr_ref *use = fr_op_uses(f, op);
    for (int i = 0; i < op->uses; i++) {
        void *p = use[i].target < r->buffers_count ? r->buffers[use[i].target] : NULL;
        if (!p) continue; /* weights and KV handles */
        if (use[i].use == FR_USE_READ && c.ins < MOST_USES) c.in[c.ins++] = p;
        if (use[i].use == FR_USE_WRITE && c.outs < MOST_USES) c.out[c.outs++] = p;
    }
    return launch(&c);
}

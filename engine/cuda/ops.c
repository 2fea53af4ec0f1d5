/* Op kind -> launcher; and the launchers outside of attention and experts: embedding, norms, head. */
#include "engine/cuda/ops.h"
#include "engine/cuda/pools.h"
#include "engine/strategy/strategy.h"

fr_status fr_call_done(fr_call *c, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(c->err, FR_FAILED, "%s failed: %s", what, cudaGetErrorString(e));
}

fr_status fr_call_expect(fr_call *c, int ins, int outs, int64_t m, int64_t wanted) {
    if (c->ins >= ins && c->outs >= outs && m == wanted) return FR_OK;
    return fr_fail(c->err, FR_FAILED, "the op reads %d and writes %d buffers for %lld rows, expected %d, %d and %lld",
                   c->ins, c->outs, (long long)m, ins, outs, (long long)wanted);
}

fr_status fr_call_gemm(fr_call *c, const fr_bf16 *w, int64_t M, bool f32) {
    const fr_gemm_args a = {.x = c->in[0],
                            .w = w,
                            .add = c->ins > 1 ? c->in[1] : NULL,
                            .out = c->out[0],
                            .M = M,
                            .like_M = c->r->varied ? fr_rows_like(M) : 0,
                            .N = c->shape->n,
                            .K = c->shape->k,
                            .out_f32 = f32,
                            .workspace = c->r->gemm_workspace,
                            .workspace_bytes = FR_GEMM_WORKSPACE};
    return fr_gemm_run(c->r->gemm, &a, c->stream, c->err);
}

/* ---- outside layers -----------------------------------------------------------------------------------------------*/

static fr_status embed(fr_call *c) {
    const fr_device_rank *r = c->r;
    FR_TRY(fr_call_expect(c, 0, 1, c->shape->m, c->b->held));
    return fr_call_done(c,
                        fr_k_embedding(r->weights->embedding, c->b->ids + c->b->first, c->out[0], c->b->held,
                                       r->model->hidden, r->model->vocab, c->stream),
                        "fr_k_embedding");
}

/* The final norm, of the rows that want logits. */
static fr_status final_norm(fr_call *c) {
    const fr_device_rank *r = c->r;
    const int64_t rows = c->b->rows_all + c->b->rows_some;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, rows));
    if (c->ins > 1)
        return fr_call_done(c,
                            fr_k_add_rmsnorm_rows(c->in[0], c->in[1], r->weights->final_norm, c->b->rows, c->out[0],
                                                  rows, r->model->hidden, (float)r->model->norm_eps, c->stream),
                            "fr_k_add_rmsnorm_rows");
    return fr_call_done(c,
                        fr_k_rmsnorm(c->in[0], r->weights->final_norm, c->b->rows, c->out[0], rows, r->model->hidden,
                                     (float)r->model->norm_eps, c->stream),
                        "fr_k_rmsnorm");
}

/* sub 0 and 1: before attention and before the experts; sub 2: the final one; sub 3 and 4: rows quantised, attention's
 * output and what a tp group gathered. Two buffers read = the last block's result is added to the residual stream
 * first. */
static fr_status norm(fr_call *c) {
    const fr_device_rank *r = c->r;
    const float eps = (float)r->model->norm_eps;
    const int64_t rows = c->b->held, hidden = r->model->hidden;
    if (c->op->sub == 2) return final_norm(c);
    if (c->op->sub == 3 || c->op->sub == 4) return fr_launch_quantise(c);
    const fr_bf16 *weight = c->op->sub == 1 ? c->w->post_norm : c->w->input_norm;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, rows));
    if (fr_call_fp8(c) && c->op->sub == 0 && !fr_layout_sliced(r->layout)) return fr_launch_norm_fp8(c, weight);
    if (c->ins == 1)
        return fr_call_done(c, fr_k_rmsnorm(c->in[0], weight, NULL, c->out[0], rows, hidden, eps, c->stream),
                            "fr_k_rmsnorm");
    FR_TRY(fr_call_expect(c, 2, 2, rows, rows));
    return fr_call_done(c, fr_k_add_rmsnorm(c->out[0], c->in[1], weight, c->out[1], rows, hidden, eps, c->stream),
                        "fr_k_add_rmsnorm");
}

/* sub 0: the whole vocabulary, sub 1: candidates; their logits lie behind one another. */
static fr_status head(fr_call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const fr_batch_tables *b = c->b;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->op->sub == 0 ? b->rows_all : b->rows_some));
    if (c->op->sub == 0) return fr_call_gemm(c, r->weights->head, b->rows_all, true);
    return fr_call_done(c,
                        fr_k_candidate_logits(c->in[0], r->weights->head, b->pick_row, b->pick_token,
                                              (float *)c->out[0] + (int64_t)b->rows_all * m->vocab, b->picks, m->hidden,
                                              m->vocab, c->stream),
                        "fr_k_candidate_logits");
}

static fr_status copy(fr_call *c) {
    return fr_pools_copy(c->r->pools, c->r->issue, c->f, c->op, c->stream, c->err);
}

/* Of tokens that came, or of weights. */
static fr_status drain(fr_call *c) {
    return c->r->links ? fr_launch_drain(c) : copy(c);
}

/* ---- dispatch -----------------------------------------------------------------------------------------------------*/

typedef fr_status (*launcher)(fr_call *);
static const launcher launchers[FR_OP_KIND_COUNT] = {
    [FR_OP_EMBED] = embed,
    [FR_OP_NORM] = norm,
    [FR_OP_GEMM_QKV] = fr_launch_qkv,
    [FR_OP_ROPE] = fr_launch_rope,
    [FR_OP_ATTENTION] = fr_launch_attention,
    [FR_OP_GEMM_O] = fr_launch_o,
    [FR_OP_GEMM_ROUTER] = fr_launch_router,
    [FR_OP_TOPK] = fr_launch_topk,
    [FR_OP_SORT] = fr_launch_sort,
    [FR_OP_PERMUTE] = fr_launch_permute,
    [FR_OP_EXPERT_UP] = fr_launch_expert_up,
    [FR_OP_EXPERT_DOWN] = fr_launch_expert_down,
    [FR_OP_COMBINE] = fr_launch_combine,
    [FR_OP_REDUCE] = fr_launch_reduce,
    [FR_OP_GEMM_HEAD] = head,
    [FR_OP_PULL] = copy,
    [FR_OP_PUSH] = fr_launch_push,
    [FR_OP_H2D] = copy,
    [FR_OP_DRAIN] = drain,
};

fr_status fr_op_launch(fr_device_rank *r, const fr_plan *plan, const fr_fragment *f, const fr_op *op,
                       cudaStream_t stream, fr_error *err) {
    fr_call c = {.r = r,
                 .plan = plan,
                 .f = f,
                 .op = op,
                 .shape = fr_op_most(f, op),
                 .b = &r->micro[op->micro],
                 .stream = stream,
                 .err = err};
    launcher launch = launchers[op->kind];
    if (fr_op_class_of((fr_op_kind)op->kind) == FR_CLASS_COLLECTIVE) launch = fr_launch_collective;
    if (op->kind == FR_OP_PERMUTE && op->sub == FR_SUB_PACK) launch = fr_launch_pack;
    if (!launch) return fr_fail(err, FR_FAILED, "ops of kind %s are not executed yet", fr_op_name(op->kind));
    if (op->layer != FR_NO_LAYER) c.w = fr_weights_layer(r->weights, op->layer);
    const fr_ref *use = fr_op_uses(f, op);
    for (int i = 0; i < op->uses; i++) {
        void *p = fr_rank_buffer(r, plan, use[i].target, use[i].value);
        if (!p) continue; /* weights and KV handles */
        if (use[i].use == FR_USE_READ && c.ins < FR_MOST_USES) c.in[c.ins++] = p;
        if (use[i].use == FR_USE_WRITE && c.outs < FR_MOST_USES) c.out[c.outs++] = p;
    }
    return launch(&c);
}

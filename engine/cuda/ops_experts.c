/* Launchers of the MoE block: router, top-k, sort, permute, grouped products, combine. */
#include "engine/cuda/ops.h"

/* The route buffer holds ids [T, k], then weights [T, k]; the order buffer the row of each slot [T k], then the token
 * of each row [T k]. */
static int64_t slots(const fr_call *c) {
    return (int64_t)c->b->held * c->r->model->top_k;
}
static int32_t *offsets(const fr_call *c) {
    const fr_device_rank *r = c->r;
    const int64_t layer = (int64_t)c->op->micro * r->layers + c->op->layer - r->shard.first_layer;
    return r->offsets + layer * (r->model->experts + 1);
}

fr_status fr_launch_router(fr_call *c) {
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->held));
    return fr_call_gemm(c, c->w->router, fr_bucket(c->r, c->shape->m), true);
}

fr_status fr_launch_topk(fr_call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->held));
    int32_t *ids = c->out[0];
    float *weights = (float *)(void *)(ids + slots(c));
    const float *bias = r->weights->router_bias + (int64_t)c->op->layer * m->experts;
    return fr_call_done(
        c, fr_k_router(c->in[0], bias, ids, weights, c->b->held, m->experts, m->top_k, m->renormalise, c->stream),
        "fr_k_router");
}

fr_status fr_launch_sort(fr_call *c) {
    fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, slots(c)));
    int32_t *row_of_slot = c->out[0];
    return fr_call_done(c,
                        fr_k_route(c->in[0], c->b->held, m->top_k, 0, m->experts, offsets(c), row_of_slot,
                                   row_of_slot + slots(c), r->route_workspace, c->stream),
                        "fr_k_route");
}

fr_status fr_launch_permute(fr_call *c) {
    const fr_model *m = c->r->model;
    FR_TRY(fr_call_expect(c, 2, 1, c->shape->m, slots(c)));
    return fr_call_done(c, fr_k_permute(c->in[1], c->in[0], c->out[0], c->b->held, m->top_k, m->hidden, c->stream),
                        "fr_k_permute");
}

static fr_status grouped(fr_call *c, const fr_bf16 *w, bool swiglu) {
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, slots(c)));
    const fr_k_grouped_args a = {.a = c->in[0],
                                 .b = w,
                                 .c = c->out[0],
                                 .offsets = offsets(c),
                                 .counter = c->r->counter,
                                 .sm_limit = c->op->sm_limit,
                                 .rows = slots(c),
                                 .E = c->shape->experts,
                                 .N = c->shape->n,
                                 .K = c->shape->k,
                                 .swiglu = swiglu};
    return fr_call_done(c, fr_k_grouped_gemm(&a, c->stream), "fr_k_grouped_gemm");
}

fr_status fr_launch_expert_up(fr_call *c) {
    return grouped(c, c->w->gate_up, true);
}
fr_status fr_launch_expert_down(fr_call *c) {
    return grouped(c, c->w->down, false);
}

/* Reads the experts' rows, where the sort put them, the route, the residual stream. */
fr_status fr_launch_combine(fr_call *c) {
    const fr_model *m = c->r->model;
    FR_TRY(fr_call_expect(c, 4, 1, c->shape->m, c->b->held));
    const int32_t *ids = c->in[2];
    return fr_call_done(c,
                        fr_k_combine(c->in[0], c->in[1], (const float *)(const void *)(ids + slots(c)), c->in[3],
                                     c->out[0], NULL, NULL, (float)m->norm_eps, c->b->held, m->top_k, m->hidden,
                                     c->stream),
                        "fr_k_combine");
}

/*
 * Every expert's width split over all ranks of a stage: each rank computes all routed tokens with its slice of every
 * expert, and partial results are summed.
 *
 *     one attention group      tokens are on all ranks already: all-reduce
 *     dp > 1                   all-gather of the groups' normed tokens (with ids and weights), reduce-scatter back
 */
#include "engine/strategy/planner.h"

static int64_t stage_tokens(const fr_walk *w) {
    int64_t tokens = 0;
    for (int s = 0; s < w->p->slots; s++) tokens += w->works[w->micro * w->p->slots + (w->p->folded ? 0 : s)].tokens;
    return tokens;
}

/* All tokens of the stage. Groups route apart, their counts add up. */
static void prepare(fr_walk *w, int half) {
    fr_planner *p = w->p;
    if (p->even && p->moe_for[half] == w->micro) return;
    p->moe_for[half] = w->micro;
    int experts = p->model.experts, tp = p->layout.tp, dp = p->layout.dp;
    int32_t *sum = p->counts + (size_t)half * (size_t)p->unit_ranks * (size_t)experts;
    if (p->even) {
        fr_routing_counts(p->routing, 0, 0, w->layer, stage_tokens(w), sum);
    } else {
        for (int d = 0; d < dp; d++) { /* group 0's counts lie where the sum goes */
            fr_rank *r = fr_stage_rank(p, w->unit, w->stage, d * tp);
            const int32_t *more = fr_route(w, r, fr_work_of(w, r)->tokens, half);
            for (int e = 0; e < experts && d > 0; e++) sum[e] += more[e];
        }
    }
    fr_moe all = {.tokens = stage_tokens(w)};
    all.rows = all.tokens * p->model.top_k;
    fr_expert_shapes(w, sum, experts, tp * dp, &all.up, &all.down);
    for (int i = 0; i < p->unit_ranks; i++) p->moe[half][i] = all;
}

static void experts(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_moe *m = &p->moe[w->half][r->local];
    int64_t hidden = p->model.hidden, here = fr_tokens_here(w, r);
    int ranks = p->layout.tp * p->layout.dp;
    bool spread = p->layout.dp > 1;
    /* One attention group: all ranks route the same tokens, which counts once. */
    fr_emit_router(w, r, here, spread ? 1 : 1.0 / ranks);
    if (spread) {
        int64_t row = 2 * hidden + 8 * p->model.top_k;
        fr_put(w, r, FR_LANE_COMPUTE, FR_OP_ALLGATHER,
               fr_collective_shape(w, FR_OP_ALLGATHER, &r->stage_group, m->tokens, hidden, m->tokens * row), 2);
        fr_read(w, b->normed);
        fr_read(w, b->route);
        fr_write(w, b->recv);
        fr_join(w, &r->stage_group);
    }
    uint32_t source = spread ? b->recv : b->normed;
    if (p->model.shared_width) fr_emit_ffn(w, r, m->tokens, p->model.shared_width, ranks, 6, source, b->shared);
    fr_emit_sort(w, r, m, source, 0);
    fr_emit_grouped(w, r, m, 0);
    fr_emit_combine(w, r, b->out, m->rows, m->tokens, spread ? b->recv : b->delta);
    if (ranks == 1) return;
    fr_op_kind kind = spread ? FR_OP_REDUCESCATTER : FR_OP_ALLREDUCE;
    fr_put(w, r, FR_LANE_COMPUTE, kind,
           fr_collective_shape(w, kind, &r->stage_group, m->tokens, hidden, m->tokens * hidden * 2), 2);
    fr_read(w, spread ? b->recv : b->delta);
    fr_write(w, b->delta);
    fr_join(w, &r->stage_group);
}

const fr_experts_part fr_experts_tp = {.open = fr_experts_nothing,
                                       .enter = fr_layer_nothing,
                                       .prepare = prepare,
                                       .experts = experts,
                                       .leave = fr_layer_nothing};

/* All experts on every rank: nothing travels. The yardstick (dp), and the MoE block of every strategy that brings the
 * weights to the tokens. */
#include "engine/strategy/planner.h"

/* Tokens per expert that the tokens of one rank ask for. */
const int32_t *fr_route(fr_walk *w, fr_rank *r, int64_t tokens, int half) {
    fr_planner *p = w->p;
    int32_t *counts = p->counts + ((size_t)half * (size_t)p->unit_ranks + (size_t)r->local) * (size_t)p->model.experts;
    /* Micro-batches are different tokens: they draw as ranks beyond the real ones. */
    int who = r->rank + w->micro * fr_layout_gpus(&p->layout);
    fr_routing_counts(p->routing, w->f->forward, who, w->layer, tokens, counts);
    return counts;
}

/* Every rank computes the tokens that it routes, with all experts. Even routing is the same in every layer. */
void fr_prepare_own(fr_walk *w, int half) {
    fr_planner *p = w->p;
    if (p->even && p->moe_for[half] == w->micro) return;
    p->moe_for[half] = w->micro;
    for (int i = 0; i < p->unit_ranks; i++) {
        fr_rank *r = fr_stage_rank(p, w->unit, w->stage, i);
        fr_moe *m = &p->moe[half][i];
        *m = (fr_moe){.tokens = fr_tokens_here(w, r)};
        m->rows = m->tokens * p->model.top_k;
        m->counts = fr_route(w, r, m->tokens, half);
        fr_expert_shapes(w, m->counts, p->model.experts, 1, &m->up, &m->down);
    }
}

void fr_experts_resident(fr_walk *w, fr_rank *r) {
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_moe *m = &w->p->moe[w->half][r->local];
    fr_emit_router(w, r, m->tokens, 1);
    fr_emit_shared(w, r, m->tokens, 1);
    fr_emit_sort(w, r, m, b->normed, 0);
    fr_emit_grouped(w, r, m, 0);
    fr_emit_combine(w, r, b->out, m->rows, m->tokens, FR_NONE);
}

void fr_experts_nothing(fr_planner *p, fr_rank *r) {
    (void)p, (void)r;
}
void fr_layer_nothing(fr_walk *w, fr_rank *r) {
    (void)w, (void)r;
}

const fr_experts_part fr_experts_local = {.open = fr_experts_nothing,
                                          .enter = fr_layer_nothing,
                                          .prepare = fr_prepare_own,
                                          .experts = fr_experts_resident,
                                          .leave = fr_layer_nothing};

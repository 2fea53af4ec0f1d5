/*
 * Pipeline stages: rank i of a stage sends the residual stream of every micro-batch (or chunk) to rank i of the next. A
 * pair of lanes carries it, so that a stage computes one micro-batch while it sends the last and receives the next; the
 * stream lies in one of three slots. A stage boundary moves tokens x hidden once.
 */
#include "engine/strategy/planner.h"

void fr_open_pipeline(fr_planner *p) {
    int stage_ranks = fr_layout_stage_ranks(&p->layout);
    for (int i = 0; i < p->ranks_count; i++) {
        fr_rank *r = &p->ranks[i];
        r->next = r->previous = (fr_circle){.group = FR_NONE, .size = 1, .hosts = 1};
        if (r->stage > 0) {
            fr_rank *before = r - stage_ranks;
            fr_add_lane(p, r, FR_LANE_RECV);
            r->received = fr_add_event(p, r, "received");
            r->previous = fr_add_circle(p, before->next.group, NULL, 2, 2, before->next.hosts);
        }
        if (r->stage < p->stages - 1) {
            int16_t pair[2] = {r->rank, (int16_t)(r->rank + stage_ranks)};
            int per = p->machine.gpus_per_host > 0 ? p->machine.gpus_per_host : 1;
            fr_add_lane(p, r, FR_LANE_SEND);
            r->computed = fr_add_event(p, r, "computed");
            r->next = fr_add_circle(p, FR_NONE, pair, 2, 2, pair[0] / per == pair[1] / per ? 1 : 2);
        }
    }
}

static uint32_t message(fr_walk *w, fr_rank *r, fr_op_kind kind, const fr_circle *c) {
    int64_t tokens = fr_tokens_here(w, r), hidden = w->p->model.hidden;
    return fr_collective_shape(w, kind, c, tokens, hidden, tokens * hidden * 2);
}

void fr_stage_receive(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    uint32_t pool = fr_scratch_of(w, r)->hidden, shape = message(w, r, FR_OP_RECV, &r->previous);
    fr_op *op = fr_put(w, r, FR_LANE_RECV, FR_OP_RECV, shape, 0);
    op->peer = (int16_t)(r->rank - fr_layout_stage_ranks(&p->layout));
    r->hidden_hold[w->half] = p->holds.value[pool]++;
    fr_use_buffer(w->f, FR_USE_ACQUIRE, pool, r->hidden_hold[w->half]);
    fr_hidden_use(w, r, FR_USE_WRITE);
    fr_next_waits(r, r->received, fr_raise(w, r->received));
    fr_join(w, &r->previous);
}

/* A fence after the stage's last op lets the stream go. */
void fr_stage_send(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_shape fence = {.kind = FR_OP_FENCE};
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_FENCE, fr_intern_shape(w, &fence), 0);
    r->launches--;
    uint32_t computed = fr_raise(w, r->computed);
    fr_op *op = fr_put(w, r, FR_LANE_SEND, FR_OP_SEND, message(w, r, FR_OP_SEND, &r->next), 0);
    op->peer = (int16_t)(r->rank + fr_layout_stage_ranks(&p->layout));
    fr_wait(w->f, r->computed, computed);
    fr_hidden_use(w, r, FR_USE_READ);
    fr_hidden_use(w, r, FR_USE_FREE);
    fr_join(w, &r->next);
}

/*
 * When a collective's kernel gets its SMs. NCCL's kernels, and our exchange's, need some SMs for themselves; products,
 * attention and experts' products hold all of them until they end: one block an SM, which takes its shared memory
 * whole. What is asked for meanwhile begins at that kernel's end, before the next one, whatever its stream's priority.
 * Kernels that stream memory leave SMs all the time. A kernel that is ready at the same instant comes first: its
 * launch follows in the same stream, a collective's behind an event (kernels/measured/README.md, "Beside transfers").
 *
 * Where it is in, it stays until its bytes are done, also while it waits for its peers; players of one rank with
 * several compute lanes have no such waits.
 */
#include <stdlib.h>

#include "sim/player_state.h"

void fr_play_sms_open(fr_player *p) {
    if (!p->holds) return;
    p->asking = fr_alloc((p->lanes_count + 1) * sizeof *p->asking);
    p->kernels_of = fr_alloc((size_t)p->plan->ranks * sizeof *p->kernels_of);
    for (int r = 0; r < p->plan->ranks; r++) p->kernels_of[r] = FR_NONE;
    for (uint32_t i = p->lanes_count; i-- > 0;) {
        const fr_play_lane *l = &p->lanes[i];
        if (l->compute) p->kernels_of[l->rank] = l->can_chain ? i : FR_NONE;
    }
}

void fr_play_sms_close(fr_player *p) {
    free(p->asking);
    free(p->kernels_of);
}

/* The two ends of a send inside a host meet before it is launched (engine/cuda/transport/gate.h). */
static bool meets_first(const fr_play_lane *l) {
    const fr_op_kind kind = (fr_op_kind)l->op->kind;
    return (kind == FR_OP_SEND || kind == FR_OP_RECV) && fr_op_shape(l->run->f, l->op)->hosts < 2;
}

bool fr_play_sms_wanted(const fr_player *p, const fr_play_lane *l, bool met) {
    if (!p->kernels_of || l->compute || l->outside || l->run->prices[l->op->shape].ns == 0) return false;
    const bool alone = l->op->group == FR_NONE;
    return fr_play_holds_sms(p, l) && (alone || met == meets_first(l));
}

void fr_play_sms_ask(fr_player *p, fr_play_lane *l) {
    l->outside = true;
    l->granted = false;
    p->asking[p->asking_n++] = l->index;
}

/* All members have SMs: the bytes move. */
void fr_play_move(fr_player *p, fr_play_lane *l) {
    const bool group = l->op->group != FR_NONE;
    int64_t work = 0;
    for (uint32_t m = l->index; m != FR_NONE; m = group ? p->lanes[m].mate : FR_NONE)
        work = fr_max_i64(work, p->lanes[m].run->prices[p->lanes[m].op->shape].ns);
    fr_play_due(p, l, p->fluid && work > 0 ? fr_play_flow_start(p, l, work, group) : p->now + work);
}

/* A collective that stands for all of its members, in a folded plan. */
void fr_play_sms_alone(fr_player *p, fr_play_lane *l) {
    l->leader = l->index;
    l->last = l->rank;
    l->without = 1;
    l->state = FR_STATE_RUN;
    fr_play_sms_ask(p, l);
}

/* Of those that come at one instant the highest rank: nothing may hang on which is looked at first. */
void fr_play_sms_last(fr_player *p, fr_play_lane *leader, const fr_play_lane *l) {
    if (leader->last_at == p->now && leader->last > l->rank) return;
    leader->last = l->rank;
    leader->last_at = p->now;
}

static void enter(fr_player *p, fr_play_lane *l) {
    l->outside = false;
    fr_play_press_waiting(p, l);
    if (l->state == FR_STATE_MEET) return; /* it polls for its peers */
    fr_play_lane *leader = &p->lanes[l->leader];
    fr_play_sms_last(p, leader, l);
    if (--leader->without == 0) fr_play_move(p, leader);
}

/* The kernel that holds all SMs of the lane's rank, NULL = none. */
static fr_play_lane *holder(fr_player *p, const fr_play_lane *l) {
    const uint32_t at = p->kernels_of[l->rank];
    if (at == FR_NONE || p->lanes[at].state != FR_STATE_RUN) return NULL;
    const uint8_t class = p->class_of[p->lanes[at].op->kind];
    return class == FR_CLASS_GEMM || class == FR_CLASS_ATTENTION || class == FR_CLASS_GROUPED ? &p->lanes[at] : NULL;
}

bool fr_play_sms_give(fr_player *p) {
    for (uint32_t i = 0; i < p->asking_n; i++) {
        fr_play_lane *l = &p->lanes[p->asking[i]], *kernel = l->granted ? NULL : holder(p, l);
        if (!kernel) {
            enter(p, l);
            continue;
        }
        l->behind = kernel->waiting;
        kernel->waiting = l->index;
    }
    const bool any = p->asking_n > 0;
    p->asking_n = 0;
    return any;
}

/* They enter at the end of the instant, when all ranks have come so far: nothing may hang on which is looked at first.
 */
void fr_play_sms_free(fr_player *p, fr_play_lane *l) {
    for (uint32_t at = l->waiting; at != FR_NONE; at = p->lanes[at].behind) {
        p->lanes[at].granted = true;
        p->asking[p->asking_n++] = at;
    }
    l->waiting = FR_NONE;
}

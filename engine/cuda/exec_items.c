/*
 * Items of a first-ready lane (plan.h, S2): asap's expert ranks, which serve several attention groups. The host
 * chooses: of the items whose first op may start, the one that it saw ready first, ties to the forward appended first.
 * A forward's items come in their order, and a unit's forwards too, as their own counters would have it anyway.
 * FR_EXEC_ITEMS are issued at a time: the choice is made one item ahead of its turn, which gives the same order, since
 * what becomes ready later never comes before what was ready earlier.
 */
#include "engine/cuda/exec_state.h"

#include <string.h>

static cudaStream_t lane_stream(const fr_exec *x) {
    return x->lanes[x->choice].stream;
}

static uint32_t first_item(const fr_exec *x, const fr_flight *f) {
    for (uint32_t i = 0; i < f->f->heads_count; i++)
        if (f->f->heads[i].lane == x->choice) return f->f->heads[i].first;
    return FR_NONE;
}

fr_status fr_exec_items_append(fr_exec *x, fr_flight *f, const fr_cuts *cuts, const fr_exec_batch *batches,
                               fr_error *err) {
    fr_device_rank *r = &x->rank;
    int64_t ints;
    FR_TRY(fr_batch_plan(r, cuts, batches, &ints, err));
    if (cuts->micros * cuts->slots > FR_EXEC_MOST_TOKENS)
        return fr_fail(err, FR_FAILED, "%d batches of a forward whose items are chosen one by one", r->micros);
    memcpy(f->tokens, r->tokens, sizeof f->tokens);
    f->runs_count = 0;
    f->ready = 0;
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) f->lane_used[i] = false;
    f->item = first_item(x, f);
    return f->item != FR_NONE ? FR_OK : fr_fail(err, FR_FAILED, "a forward without items for rank %d", x->o.rank);
}

/* Ops of the host's lane only say that the items are issued: nothing waits for them here. */
static bool is_ready(const fr_exec *x, const fr_flight *f) {
    const fr_op *op = &f->f->ops[f->item];
    const fr_ref *waits = fr_op_waits(f->f, op);
    for (int i = 0; i < op->waits; i++)
        if (!fr_issue_heard(x->issue, waits[i])) return false;
    return true;
}

/* Whether a forward of the same unit that was appended earlier still has items. */
static bool behind(const fr_exec *x, int out) {
    for (int i = 0; i < x->outs; i++) {
        const fr_flight *f = &x->slot[x->out[i]], *me = &x->slot[x->out[out]];
        if (i != out && f->f->unit == me->f->unit && f->item != FR_NONE && f->f->forward < me->f->forward) return true;
    }
    return false;
}

static fr_flight *choose(fr_exec *x) {
    const int64_t now = fr_monotonic();
    fr_flight *first = NULL;
    for (int i = 0; i < x->outs; i++) {
        fr_flight *f = fr_exec_out(x, i);
        if (f->item == FR_NONE || behind(x, i) || (!f->ready && !is_ready(x, f))) continue;
        if (!f->ready) f->ready = now;
        if (!first || f->ready < first->ready || (f->ready == first->ready && f->f->forward < first->f->forward))
            first = f;
    }
    return first;
}

static uint32_t next_item(const fr_flight *f) {
    uint32_t at = f->item;
    do at = f->f->ops[at].next;
    while (at != FR_NONE && !(f->f->ops[at].flags & FR_OP_ITEM));
    return at;
}

/* With what the item has on other lanes of the rank: its ops are emitted behind one another. */
static fr_status issue_item(fr_exec *x, fr_flight *f, fr_error *err) {
    fr_device_rank *r = &x->rank;
    const cudaStream_t stream = lane_stream(x);
    const int served = f->f->unit - r->place.unit;
    if (f->item == first_item(x, f)) FR_TRY(fr_exec_mark_begin(x, f, stream, err));
    memcpy(r->tokens, f->tokens, sizeof f->tokens);
    r->micro_base = served * r->place.batches;
    const uint32_t next = next_item(f), end = next == FR_NONE ? f->f->ops_count : next;
    for (uint32_t i = f->item; i < end; i++) {
        const fr_exec_lane *l = &x->lanes[f->f->ops[i].lane];
        if (l->stream) FR_TRY(fr_exec_issue_op(x, f, i, err)); /* else another rank's, or the host's */
    }
    f->item = next;
    f->ready = 0;
    if (next == FR_NONE) FR_TRY(fr_exec_mark_end(x, f, stream, err));
    return fr_exec_check(x, cudaEventRecord(x->item_end[x->items_issued++ % FR_EXEC_ITEMS], stream), "cudaEventRecord",
                         err);
}

fr_status fr_exec_items_step(fr_exec *x, fr_error *err) {
    for (;;) {
        while (x->items_ended < x->items_issued) {
            const cudaError_t e = cudaEventQuery(x->item_end[x->items_ended % FR_EXEC_ITEMS]);
            if (e == cudaErrorNotReady) break;
            FR_TRY(fr_exec_check(x, e, "an item", err));
            x->items_ended++;
        }
        if (x->items_issued - x->items_ended >= FR_EXEC_ITEMS) return FR_OK;
        fr_flight *f = choose(x);
        if (!f) return FR_OK;
        FR_TRY(issue_item(x, f, err));
    }
}

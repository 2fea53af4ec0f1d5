/* Lanes: taking ops, waiting, meeting, starting, ending. One instant at a time; starts at an instant are worked off
 * through a queue of lanes, so that no call nests. */
#include "sim/player_state.h"

static inline void push_ready(fr_player *p, fr_play_lane *l) {
    l->state = FR_STATE_READY;
    uint32_t at = p->ready_head + p->ready_n++;
    if (at >= p->lanes_count) at -= p->lanes_count;
    p->ready[at] = l->index;
}

/* l becomes ready through the op that has just ended on `by`. */
void fr_play_wake(fr_player *p, fr_play_lane *l, const fr_play_lane *by) {
    l->woken = true;
    l->cause = by->done;
    l->cause_cause = by->done_cause;
    push_ready(p, l);
}

static void list_chooser(fr_player *p, fr_play_lane *l) {
    if (l->listed || l->op || l->items_count == 0) return;
    l->listed = true;
    p->choosers[p->choosers_n++] = l->index;
}

/* ---- items of first-ready lanes (S2) ----------------------------------------------------------------------------- */

/* Blocks waiter w on the first of the op's waits that does not hold; false when all hold. */
static inline bool block(fr_player *p, const fr_fragment *f, const fr_op *op, uint32_t *at, uint32_t w) {
    const fr_ref *waits = fr_op_waits(f, op);
    for (; *at < op->waits; ++*at) {
        fr_counter *e = &p->events[waits[*at].target];
        if (e->count >= waits[*at].value) continue;
        p->waiter_need[w] = waits[*at].value;
        p->waiter_next[w] = e->first;
        e->first = w;
        return true;
    }
    return false;
}

static void item_check(fr_player *p, uint32_t number) {
    fr_item *item = &p->items[number];
    const fr_fragment *f = item->link->run->f;
    if (block(p, f, &f->ops[item->op], &item->wait_at, p->lanes_count + number)) return;
    fr_play_lane *l = &p->lanes[item->lane];
    item->ready = p->now;
    FR_GROW(l->items, l->items_cap, l->items_count + 1);
    uint32_t at = l->items_count++;
    for (; at > 0; at--) { /* ready times only grow: ties alone need the order */
        const fr_item *before = &p->items[l->items[at - 1]];
        if (before->ready < item->ready || before->order < item->order) break;
        l->items[at] = l->items[at - 1];
    }
    l->items[at] = number;
    list_chooser(p, l);
}

static void item_new(fr_player *p, fr_link *link, uint32_t lane, uint32_t op) {
    uint32_t number = p->items_free;
    if (number != FR_NONE) {
        p->items_free = p->items[number].op;
    } else {
        number = p->items_count++;
        FR_GROW(p->items, p->items_cap, p->items_count);
        if (p->lanes_count + number >= p->waiters_cap) {
            uint32_t cap = p->waiters_cap;
            FR_GROW(p->waiter_need, cap, p->lanes_count + number + 1);
            FR_GROW(p->waiter_next, p->waiters_cap, p->lanes_count + number + 1);
        }
    }
    p->items[number] = (fr_item){.link = link, .lane = lane, .op = op, .order = p->items_order++, .used = true};
    p->lanes[lane].pending++;
    item_check(p, number);
}

static void items_of(fr_player *p, fr_link *link, uint32_t lane) {
    const fr_fragment *f = link->run->f;
    for (uint32_t i = link->first; i != FR_NONE; i = f->ops[i].next)
        if (i == link->first || f->ops[i].flags & FR_OP_ITEM) item_new(p, link, lane, i);
}

static void take_item(fr_player *p, fr_play_lane *l, uint32_t at) {
    uint32_t number = l->items[at];
    fr_item *item = &p->items[number];
    l->items_count--;
    for (; at < l->items_count; at++) l->items[at] = l->items[at + 1];
    l->run = item->link->run;
    l->share = item->link->share;
    l->op = &l->run->f->ops[item->op];
    l->wait_at = l->op->waits;
    l->pending--;
    l->fresh = true;
    l->ready = fr_max_i64(item->ready, l->run_end);
    l->woken = item->woken && item->ready >= l->run_end; /* else the lane itself was the last to be ready */
    l->cause = item->cause;
    l->cause_cause = item->cause_cause;
    item->used = false;
    item->op = p->items_free;
    p->items_free = number;
    push_ready(p, l);
}

bool fr_play_choose(fr_player *p) {
    bool any = false;
    while (p->choosers_n) {
        fr_play_lane *l = &p->lanes[p->choosers[--p->choosers_n]];
        l->listed = false;
        if (l->op) continue;
        uint32_t at = 0;
        for (; at < l->items_count; at++) {
            const fr_item *item = &p->items[l->items[at]];
            const fr_fragment *f = item->link->run->f;
            const fr_op *op = &f->ops[item->op];
            if (!(op->flags & FR_OP_POOL) || item->link->run->prices[op->shape].none) break;
            if (fr_play_slots_free(p, f, op)) break;
        }
        l->starved = l->items_count > 0 && at == l->items_count;
        if (at == l->items_count) continue;
        take_item(p, l, at);
        any = true;
        fr_play_drain(p); /* one at a time: the next lane must see the slots that this one took */
    }
    return any;
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

static void raise(fr_player *p, uint32_t event, const fr_play_lane *by) {
    fr_counter *e = &p->events[event];
    e->count++;
    for (uint32_t *at = &e->first; *at != FR_NONE;) {
        uint32_t w = *at;
        if (p->waiter_need[w] > e->count) {
            at = &p->waiter_next[w];
            continue;
        }
        *at = p->waiter_next[w];
        if (w < p->lanes_count) {
            fr_play_wake(p, &p->lanes[w], by);
        } else {
            fr_item *item = &p->items[w - p->lanes_count];
            item->woken = true;
            item->cause = by->done;
            item->cause_cause = by->done_cause;
            item_check(p, w - p->lanes_count); /* may enter other events' lists, never this one's: the wait holds */
        }
    }
}

/* ---- starting ---------------------------------------------------------------------------------------------------- */

static inline void open_accounts(fr_player *p, fr_play_lane *l, bool collective) {
    fr_account *k = &p->ranks[l->rank];
    l->start = p->now;
    l->chain = 1;
    if (l->run->start < 0) l->run->start = p->now;
    if (l->compute) {
        fr_account_kernel(k, l->rank, p->now, (fr_op_kind)l->op->kind, collective, l->ready,
                          l->woken ? &l->cause : NULL, &l->cause_cause, &l->share->x);
    } else if (l->transfer) {
        fr_account_transfer(k, p->now);
        if (l->run_end != p->now || l->start != l->ready) { /* not back to back: a new stretch */
            l->run_start = p->now;
            l->run_ready = l->ready;
            l->run_cause = l->woken ? l->cause : l->done;
        }
    }
}

/* Counts an op that ran from start to end. */
static inline void count_op(fr_player *p, fr_play_lane *l, const fr_op *op, int64_t ready, int64_t start, int64_t end,
                            bool first) {
    const fr_price *price = &l->run->prices[op->shape];
    if (price->none && op->kind != FR_OP_FENCE) {
        p->stats.skipped++;
        return;
    }
    p->stats.played++;
    p->stats.class_ns[p->class_of[op->kind]] += end - start;
    p->stats.provenance.ns[price->provenance] += end - start;
    if (l->compute) {
        l->share->x.ns += (double)price->ns;
        uint8_t class = p->class_of[op->kind];
        l->share->x.less[class] += (double)(price->ns - price->low);
        l->share->x.more[class] += (double)(price->high - price->ns);
    }
    if (p->o.spans)
        fr_play_span(p, l, op, price, ready, start, end, !first ? l->last_id : l->woken ? l->cause.id : l->done.id);
}

/*
 * Ops that follow without a wait, and whose ends nobody can see, are played with the first one in one stretch, when
 * durations are fixed (no flow): the heap sees only the stretch's end. Returns that end.
 */
static int64_t run_ahead(fr_player *p, fr_play_lane *l, int64_t end) {
    const fr_fragment *f = l->run->f;
    const fr_op *op = l->op;
    while (!(op->signals | (op->flags & (FR_OP_POOL | FR_OP_ENTRY | FR_OP_ANSWER))) && op->next != FR_NONE) {
        const fr_op *next = &f->ops[op->next];
        if (next->waits | (next->flags & FR_OP_POOL) || next->group != FR_NONE) break;
        count_op(p, l, op, l->ready, l->start, end, l->chain == 1);
        l->woken = false;
        op = next;
        l->chain++;
        l->ready = l->start = end;
        end += l->run->prices[op->shape].ns;
    }
    l->op = op;
    return end;
}

/* Pulls that waited for others. */
static void start_pulls(fr_player *p) {
    for (fr_play_lane *l; (l = fr_play_pull_next(p));)
        fr_play_due(p, l, fr_play_flow_start(p, l, l->run->prices[l->op->shape].work, false));
}

static void complete(fr_player *p, fr_play_lane *l);
static bool skip(fr_player *p, fr_play_lane *l);

/* Starts the op of l; true when it has ended at once. */
static inline bool begin(fr_player *p, fr_play_lane *l) {
    uint8_t class = p->class_of[l->op->kind];
    const fr_fragment *f = l->run->f;
    if (l->op->next != FR_NONE) { /* it is wanted when this one ends */
        __builtin_prefetch(&f->ops[l->op->next]);
        __builtin_prefetch(&f->refs[l->op->refs + 4]);
    }
    open_accounts(p, l, class >= FR_CLASS_COLLECTIVE);
    const fr_price *price = &l->run->prices[l->op->shape];
    int64_t end = p->now + price->ns;
    if (class == FR_CLASS_COLLECTIVE && fr_play_sms_wanted(p, l, true)) {
        fr_play_sms_alone(p, l);
        return false;
    }
    if (p->fluid && class == FR_CLASS_COPY && price->ns > 0) {
        const bool now = fr_play_pull_begin(p, l);
        start_pulls(p);
        l->state = FR_STATE_RUN;
        if (!now) return false; /* without an end yet: others come first */
    }
    if (p->fluid && class != FR_CLASS_HOST && price->ns > 0)
        end = fr_play_flow_start(p, l, price->work, false);
    else if (l->can_chain && (!p->fluid || class == FR_CLASS_HOST))
        end = run_ahead(p, l, end);
    if (end == p->now && !l->flows) {
        complete(p, l);
        return true;
    }
    l->state = FR_STATE_RUN;
    fr_play_due(p, l, end);
    return false;
}

/* All members of a meeting are there: they start, and end, together. */
static void begin_group(fr_player *p, uint32_t first) {
    uint32_t leader = first, without = 0;
    for (uint32_t m = first; m != FR_NONE; m = p->lanes[m].mate)
        if (m < leader) leader = m;
    if (leader != first) { /* to the head of the list */
        uint32_t m = first;
        while (p->lanes[m].mate != leader) m = p->lanes[m].mate;
        p->lanes[m].mate = p->lanes[leader].mate;
        p->lanes[leader].mate = first;
    }
    fr_play_sms_last(p, &p->lanes[leader], &p->lanes[first]); /* it came just now */
    for (uint32_t m = leader; m != FR_NONE; m = p->lanes[m].mate) {
        open_accounts(p, &p->lanes[m], true);
        p->lanes[m].state = FR_STATE_RUN_GROUP;
        p->lanes[m].leader = leader;
        if (fr_play_sms_wanted(p, &p->lanes[m], true)) fr_play_sms_ask(p, &p->lanes[m]);
        without += p->lanes[m].outside;
    }
    p->lanes[leader].without = without;
    if (!without) fr_play_move(p, &p->lanes[leader]);
}

static void meet(fr_player *p, fr_play_lane *l) {
    const fr_op *op = l->op;
    fr_meetings *g = &p->groups[op->group];
    uint32_t i = 0;
    while (i < g->n && g->open[i].seq != op->seq) i++;
    if (i == g->n) {
        FR_GROW(g->open, g->cap, g->n + 1);
        g->open[g->n++] = (fr_meeting){.seq = op->seq, .first = FR_NONE};
    }
    l->state = FR_STATE_MEET;
    l->mate = g->open[i].first;
    g->open[i].first = l->index;
    if (fr_play_sms_wanted(p, l, false)) fr_play_sms_ask(p, l);
    if (++g->open[i].arrived < (uint32_t)p->plan->groups[op->group].count) return;
    g->open[i] = g->open[--g->n];
    begin_group(p, l->index);
}

static bool take(fr_play_lane *l) {
    if (l->first_ready || !l->queue) return false;
    l->run = l->queue->run;
    l->share = l->queue->share;
    l->op = &l->run->f->ops[l->queue->first];
    l->wait_at = 0;
    l->woken = false;
    return true;
}

/* Lane l is free: starts what it may start now. */
static void advance(fr_player *p, fr_play_lane *l) {
    for (;;) {
        if (!l->op && !take(l)) {
            l->state = FR_STATE_IDLE;
            if (l->first_ready) list_chooser(p, l);
            return;
        }
        if (block(p, l->run->f, l->op, &l->wait_at, l->index)) {
            l->state = FR_STATE_EVENT;
            return;
        }
        if (!l->fresh) l->ready = p->now;
        if (l->op->flags & FR_OP_POOL) {
            if (!fr_play_acquire(p, l, l->run->prices[l->op->shape].none && l->op->kind != FR_OP_FENCE)) {
                l->state = FR_STATE_POOL;
                return;
            }
        }
        if (l->op->group != FR_NONE) {
            meet(p, l);
            return;
        }
        if (!skip(p, l) && !begin(p, l)) return;
    }
}

void fr_play_drain(fr_player *p) {
    while (p->ready_n) {
        fr_play_lane *l = &p->lanes[p->ready[p->ready_head]];
        if (++p->ready_head == p->lanes_count) p->ready_head = 0;
        p->ready_n--;
        if (l->state == FR_STATE_READY) advance(p, l);
    }
}

/* ---- ending ------------------------------------------------------------------------------------------------------ */

/* What this op's end means to those that it releases. Ops without work pass on what released them. */
static inline void leave_done(fr_player *p, fr_play_lane *l, const fr_price *price) {
    const fr_op *op = l->op;
    if (price->ns == 0 && (price->none || op->kind == FR_OP_FENCE)) {
        if (l->woken) {
            l->done = l->cause;
            l->done_cause = l->cause_cause;
        }
        if (op->kind == FR_OP_FENCE) l->done.id = l->last_id; /* it has a span that says who released it */
        return;
    }
    uint8_t class = p->class_of[op->kind];
    float low = 1, high = 1;
    if (class >= FR_CLASS_COLLECTIVE && price->ns > 0) {
        low = (float)((double)price->low / (double)price->ns);
        high = (float)((double)price->high / (double)price->ns);
    }
    fr_ended done = {l->ready, l->start, p->now, l->last_id, low, high, l->rank, op->kind, class};
    if (l->transfer) {
        done.start = l->run_start;
        done.ready = l->run_ready;
        l->done_cause = l->run_cause;
    } else {
        l->done_cause = l->woken ? l->cause : l->done;
    }
    l->done = done;
}

static inline void close_accounts(fr_player *p, fr_play_lane *l) {
    fr_account *k = &p->ranks[l->rank];
    if (l->compute)
        fr_account_kernel_end(k, p->now, p->class_of[l->op->kind] >= FR_CLASS_COLLECTIVE);
    else if (l->transfer)
        fr_account_transfer_end(k, p->now);
}

static void call(fr_player *p, int kind, fr_run *run, int rank) {
    if (p->calls_n == p->calls_cap) FR_GROW(p->calls, p->calls_cap, p->calls_n + 1);
    p->calls[p->calls_n++] = (fr_call){run, rank, kind};
}

static inline void count_down(fr_player *p, fr_play_lane *l, const fr_op *op) {
    fr_run *run = l->run;
    fr_share *share = l->share;
    if (op->flags & FR_OP_ANSWER && --share->answers == 0) call(p, 1, run, share->rank);
    if (op->flags & FR_OP_ENTRY && --run->entries == 0) call(p, 0, run, share->rank);
    run->left -= l->chain;
    share->left -= l->chain;
    if (share->left == 0) fr_play_share_end(p, share, l);
    if (run->left == 0) call(p, 2, run, share->rank);
}

/* What comes after the op on l: those that it releases, and its lane's next op. */
static inline void pass_on(fr_player *p, fr_play_lane *l, const fr_price *price) {
    const fr_op *op = l->op;
    const fr_fragment *f = l->run->f;
    leave_done(p, l, price);
    l->run_end = p->now;
    const fr_ref *signals = fr_op_signals(f, op);
    for (uint32_t i = 0; i < op->signals; i++) raise(p, signals[i].target, l);
    if (op->flags & FR_OP_POOL) fr_play_free_slots(p, l, op);
    count_down(p, l, op);
    l->fresh = l->woken = false;
    l->wait_at = 0;
    if (op->next != FR_NONE && !(l->first_ready && f->ops[op->next].flags & FR_OP_ITEM)) {
        l->op = &f->ops[op->next];
        return;
    }
    l->op = NULL;
    if (op->next == FR_NONE && !l->first_ready) l->queue = l->queue->next;
}

/* The op on l has ended: S3. Leaves the lane free, at its next op. */
static void complete(fr_player *p, fr_play_lane *l) {
    const fr_op *op = l->op;
    const fr_price *price = &l->run->prices[op->shape];
    close_accounts(p, l);
    if (l->press) {
        fr_play_press(p, l, -1);
        l->press = 0;
    }
    if (l->draws) fr_play_clock_end(p, l);
    if (l->waiting != FR_NONE) fr_play_sms_free(p, l);
    if (l->flows) {
        fr_fluid_end(p->fluid, l->index);
        l->flows = false;
        if (p->class_of[op->kind] == FR_CLASS_COPY) fr_play_pull_end(p, l);
        start_pulls(p);
    }
    count_op(p, l, op, l->ready, l->start, p->now, true);
    pass_on(p, l, price);
}

/* An op of size 0 on a lane whose rank is accounted up to now begins and ends in one step: most ops of a rank without
 * tokens. False: it is not one. */
static bool skip(fr_player *p, fr_play_lane *l) {
    const fr_price *price = &l->run->prices[l->op->shape];
    if (!price->none || l->transfer || l->op->kind == FR_OP_FENCE || l->run->start < 0) return false;
    if (l->compute && p->now > p->ranks[l->rank].covered) return false;
    l->start = p->now;
    l->chain = 1;
    p->stats.skipped++;
    pass_on(p, l, price);
    return true;
}

void fr_play_ended(fr_player *p, uint32_t lane) {
    fr_play_lane *l = &p->lanes[lane];
    p->popped = lane; /* a new op of this lane takes the entry over: one move in place of two */
    if (l->state == FR_STATE_RUN) {
        complete(p, l);
        l->state = FR_STATE_READY;
        advance(p, l);
    } else {
        for (uint32_t m = lane, next; m != FR_NONE; m = next) {
            next = p->lanes[m].mate;
            complete(p, &p->lanes[m]);
            push_ready(p, &p->lanes[m]);
        }
    }
    fr_play_drain(p);
    if (p->popped != FR_NONE) fr_heap_remove(&p->heap, p->popped);
    p->popped = FR_NONE;
}

/* ---- fragments --------------------------------------------------------------------------------------------------- */

void fr_play_activate(fr_player *p, fr_run *run) {
    run->release = p->now;
    p->open_runs++;
    run->next = p->runs;
    if (p->runs) p->runs->previous = run;
    p->runs = run;
    for (uint32_t i = 0; i < run->shares_count; i++) fr_play_share_begin(p, &run->shares[i]);
    if (p->clocks) fr_play_clock_begin(p, run);
    for (uint32_t i = 0; i < run->f->heads_count; i++) {
        uint32_t lane = p->of_plan_lane[run->f->heads[i].lane];
        fr_play_lane *l = &p->lanes[lane];
        fr_link *link = &run->links[i];
        if (l->first_ready) {
            items_of(p, link, lane);
            continue;
        }
        if (l->queue)
            l->queue_last->next = link;
        else
            l->queue = link;
        l->queue_last = link;
        if (l->state == FR_STATE_IDLE) push_ready(p, l);
    }
    if (run->left == 0) call(p, 2, run, -1);
}

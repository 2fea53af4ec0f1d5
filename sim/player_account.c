/*
 * Where a rank's time goes. A rank's clock is cut into stretches at the starts and ends of its compute-lane ops: while
 * one runs, compute (or exposed_comm, if all that run are collectives); the gaps between go by what released the op
 * that ends them. Every stretch is added exactly once, so that the parts sum to the elapsed time in ns.
 */
#include <math.h>

#include "sim/player_state.h"

static bool is_transfer(const fr_ended *e) {
    return e->end >= 0 && (e->class == FR_CLASS_COLLECTIVE || e->class == FR_CLASS_COPY);
}

static int64_t overlap(int64_t a, int64_t b, int64_t from, int64_t to) {
    return fr_max_i64(0, fr_min_i64(b, to) - fr_max_i64(a, from));
}

static void expose(fr_rank_state *k, fr_share *share, const fr_ended *by, int64_t ns) {
    k->sum.exposed_comm += ns;
    k->exposed_gap += ns;
    if (!share) return;
    share->ns += (double)ns;
    share->low += (double)by->low * (double)ns;
    share->high += (double)by->high * (double)ns;
}

/* The part [t0, t1] of a gap that lies before a transfer of this rank started: it waited for its peers, for an earlier
 * transfer, or for other ranks. */
static void gap_before(fr_rank_state *k, int16_t rank, int64_t t0, int64_t t1, fr_share *share, const fr_ended *c,
                       const fr_ended *before) {
    int64_t waited = c->class == FR_CLASS_COLLECTIVE ? overlap(t0, t1, c->ready, c->start) : 0;
    k->sum.wait += waited;
    t1 = fr_max_i64(t0, t1 - waited);
    int64_t rest = t1 - t0;
    if (is_transfer(before)) {
        int64_t ran = overlap(t0, t1, before->start, before->end);
        expose(k, share, before, ran);
        rest -= ran;
        if (before->rank != rank) {
            int64_t late = overlap(t0, t1, t0, before->start);
            k->sum.wait += late;
            rest -= late;
        }
    } else if (before->end >= 0 && before->rank != rank) {
        k->sum.wait += rest;
        rest = 0;
    }
    k->sum.idle += rest;
}

/*
 * Accounts the gap [k->covered, until] in which no compute-lane op of the rank ran, by the op whose end closed it:
 *   a transfer: while it ran, exposed_comm; before it, bubble for pipeline pairs, wait for another rank's transfer or a
 * collective's late members, else see gap_before; a kernel or host op of another rank: wait; else idle.
 */
void fr_play_gap(fr_player *p, fr_rank_state *k, int16_t rank, int64_t until, fr_share *share, const fr_ended *cause,
                 const fr_ended *before) {
    (void)p;
    int64_t t0 = k->covered, t1 = until;
    k->covered = fr_max_i64(k->covered, until);
    if (t1 <= t0) return;
    if (cause->end < 0) {
        k->sum.idle += t1 - t0;
        return;
    }
    if (!is_transfer(cause)) {
        if (cause->rank != rank)
            k->sum.wait += t1 - t0;
        else
            k->sum.idle += t1 - t0;
        return;
    }
    expose(k, share, cause, overlap(t0, t1, cause->start, cause->end));
    k->sum.idle += overlap(t0, t1, cause->end, t1);
    t1 = fr_min_i64(t1, cause->start);
    if (t1 <= t0) return;
    if (cause->kind == FR_OP_RECV || cause->kind == FR_OP_SEND)
        k->sum.bubble += t1 - t0;
    else if (cause->rank != rank)
        k->sum.wait += t1 - t0;
    else
        gap_before(k, rank, t0, t1, share, cause, before);
}

/* The gap before a group op on a compute lane: until it arrived, by what released it; then it waits for the others. */
void fr_play_arrival_gap(fr_player *p, fr_rank_state *k, const fr_play_lane *l) {
    const fr_ended none = {.end = -1};
    fr_play_gap(p, k, l->rank, fr_min_i64(l->ready, p->now), l->share, l->woken ? &l->cause : &none, &l->cause_cause);
    int64_t late = p->now - k->covered;
    if (late <= 0) return;
    if (l->op->kind == FR_OP_RECV)
        k->sum.bubble += late;
    else
        k->sum.wait += late;
    k->covered = p->now;
}

static void set_mark(fr_player *p, fr_rank_state *k) {
    k->mark = p->now;
    k->mark_sum = k->sum;
    k->mark_busy = k->busy;
    k->mark_gap = k->exposed_gap;
}

/* Brings busy times up to now. */
static void touch(fr_player *p, fr_rank_state *k) {
    int64_t stretch = p->now - k->covered;
    if (stretch > 0 && k->kernels > 0) k->sum.compute += stretch;
    if (stretch > 0 && k->kernels == 0 && k->collectives > 0) k->sum.exposed_comm += stretch;
    if (k->kernels + k->collectives > 0) k->covered = fr_max_i64(k->covered, p->now);
    if (k->transfers > 0) {
        k->busy += p->now - k->since;
        k->since = p->now;
    }
}

/* A rank without work gets a fragment: what lies behind was idle. */
void fr_play_share_begin(fr_player *p, fr_share *s) {
    fr_rank_state *k = &p->ranks[s->rank];
    const fr_ended none = {.end = -1};
    if (k->unfinished++ > 0) return;
    touch(p, k);
    fr_play_gap(p, k, s->rank, p->now, NULL, &none, &none);
    set_mark(p, k);
}

/* The rank's last op of a fragment, on lane l, has ended: the fragment's parts on this rank are what was added since
 * the previous fragment's end here (or since its release, if later). */
void fr_play_share_end(fr_player *p, fr_share *s, const fr_play_lane *l) {
    fr_rank_state *k = &p->ranks[s->rank];
    touch(p, k);
    if (k->kernels + k->collectives == 0) fr_play_gap(p, k, s->rank, p->now, s, &l->done, &l->done_cause);
    s->end = p->now;
    const fr_parts *a = &k->sum, *b = &k->mark_sum;
    s->parts = (fr_parts){.elapsed = p->now - k->mark,
                          .compute = a->compute - b->compute,
                          .exposed_comm = a->exposed_comm - b->exposed_comm,
                          .wait = a->wait - b->wait,
                          .bubble = a->bubble - b->bubble,
                          .idle = a->idle - b->idle,
                          .hidden_comm = fr_max_i64(0, k->busy - k->mark_busy - (k->exposed_gap - k->mark_gap))};
    k->unfinished--;
    set_mark(p, k);
}

/* Interval: elapsed time scaled by the mean of low / ns and high / ns of the last rank's compute-lane ops and exposed
 * communication, weighted with their times. */
void fr_play_record(const fr_player *p, const fr_run *run, fr_forward_record *out) {
    *out = (fr_forward_record){.forward = run->f->forward,
                               .unit = run->f->unit,
                               .release = run->release,
                               .start = run->start < 0 ? run->release : run->start,
                               .end = p->now,
                               .last_rank = -1,
                               .flops = run->flops};
    const fr_share *last = NULL;
    for (uint32_t i = 0; i < run->shares_count; i++) {
        const fr_share *s = &run->shares[i];
        if (!last || s->end > last->end || (s->end == last->end && s->rank < last->rank)) last = s;
    }
    out->low = out->high = out->end - out->start;
    if (!last) return;
    out->last_rank = last->rank;
    out->parts = last->parts;
    if (last->ns <= 0) return;
    out->low = llround((double)out->low * (last->low / last->ns));
    out->high = llround((double)out->high * (last->high / last->ns));
}

void fr_play_span(fr_player *p, fr_play_lane *l, const fr_op *op, const fr_price *price, int64_t ready, int64_t start,
                  int64_t end, uint64_t cause) {
    fr_timeline *t = p->o.spans;
    uint64_t id = fr_op_id(p->plan, l->run->f, op);
    l->last_id = id;
    if (t->count == t->capacity) FR_GROW(t->spans, t->capacity, t->count + 1);
    t->spans[t->count++] = (fr_span){.id = id,
                                     .ready = ready,
                                     .start = start,
                                     .end = end,
                                     .bytes = price->bytes,
                                     .flops = fr_op_shape(l->run->f, op)->flops,
                                     .cause = cause,
                                     .unit = l->run->f->unit,
                                     .lane = (uint16_t)l->plan_lane,
                                     .rank = l->rank,
                                     .kind = op->kind,
                                     .provenance = price->provenance,
                                     .transport = fr_op_shape(l->run->f, op)->transport};
}

void fr_player_rank_parts(const fr_player *p, int rank, fr_parts *out) {
    const fr_rank_state *k = &p->ranks[rank];
    if (k->unfinished == 0) { /* as it was when the rank's last op ended */
        *out = k->mark_sum;
        out->elapsed = k->mark;
        out->hidden_comm = fr_max_i64(0, k->mark_busy - k->mark_gap);
        return;
    }
    *out = k->sum;
    out->elapsed = p->now;
    int64_t open = fr_max_i64(0, p->now - k->covered), busy = k->busy;
    if (k->kernels > 0)
        out->compute += open;
    else if (k->collectives > 0)
        out->exposed_comm += open;
    else
        out->idle += open;
    if (k->transfers > 0) busy += p->now - k->since;
    out->hidden_comm = fr_max_i64(0, busy - k->exposed_gap);
}

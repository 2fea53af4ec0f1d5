#include "engine/account.h"

#include <stdlib.h>

static int64_t overlap(int64_t a, int64_t b, int64_t from, int64_t to) {
    return fr_max_i64(0, fr_min_i64(b, to) - fr_max_i64(a, from));
}

static void expose(fr_account *k, fr_exposure *x, const fr_ended *by, int64_t ns) {
    k->sum.exposed_comm += ns;
    k->exposed_gap += ns;
    if (!x) return;
    x->ns += (double)ns;
    x->less[by->class] += (1 - (double)by->low) * (double)ns;
    x->more[by->class] += ((double)by->high - 1) * (double)ns;
}

/* The part [t0, t1] of a gap that lies before a transfer of this rank started: it waited for its peers, for an earlier
 * transfer, or for other ranks. */
static void gap_before(fr_account *k, int16_t rank, int64_t t0, int64_t t1, fr_exposure *x, const fr_ended *c,
                       const fr_ended *before) {
    int64_t waited = c->class == FR_CLASS_COLLECTIVE ? overlap(t0, t1, c->ready, c->start) : 0;
    k->sum.wait += waited;
    t1 = fr_max_i64(t0, t1 - waited);
    int64_t rest = t1 - t0;
    if (fr_is_transfer(before)) {
        int64_t ran = overlap(t0, t1, before->start, before->end);
        expose(k, x, before, ran);
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

void fr_account_gap(fr_account *k, int16_t rank, int64_t until, const fr_ended *cause, const fr_ended *before,
                    fr_exposure *x) {
    int64_t t0 = k->covered, t1 = until;
    k->covered = fr_max_i64(k->covered, until);
    if (t1 <= t0) return;
    if (cause->end < 0) {
        k->sum.idle += t1 - t0;
        return;
    }
    if (!fr_is_transfer(cause)) {
        if (cause->rank != rank)
            k->sum.wait += t1 - t0;
        else
            k->sum.idle += t1 - t0;
        return;
    }
    expose(k, x, cause, overlap(t0, t1, cause->start, cause->end));
    k->sum.idle += overlap(t0, t1, cause->end, t1);
    t1 = fr_min_i64(t1, cause->start);
    if (t1 <= t0) return;
    if (cause->kind == FR_OP_RECV || cause->kind == FR_OP_SEND)
        k->sum.bubble += t1 - t0;
    else if (cause->rank != rank)
        k->sum.wait += t1 - t0;
    else
        gap_before(k, rank, t0, t1, x, cause, before);
}

void fr_account_arrival(fr_account *k, int16_t rank, int64_t now, fr_op_kind kind, int64_t ready, const fr_ended *cause,
                        const fr_ended *before, fr_exposure *x) {
    const fr_ended none = {.end = -1};
    fr_account_gap(k, rank, fr_min_i64(ready, now), cause ? cause : &none, before, x);
    const int64_t late = now - k->covered;
    if (late <= 0) return;
    if (kind == FR_OP_RECV)
        k->sum.bubble += late;
    else
        k->sum.wait += late;
    k->covered = now;
}

static void set_mark(fr_account *k, int64_t now) {
    k->mark = now;
    k->mark_sum = k->sum;
    k->mark_busy = k->busy;
    k->mark_gap = k->exposed_gap;
}

/* Brings busy times up to now. */
static void touch(fr_account *k, int64_t now) {
    const int64_t stretch = now - k->covered;
    if (stretch > 0 && k->kernels > 0) k->sum.compute += stretch;
    if (stretch > 0 && k->kernels == 0 && k->collectives > 0) k->sum.exposed_comm += stretch;
    if (k->kernels + k->collectives > 0) k->covered = fr_max_i64(k->covered, now);
    if (k->transfers > 0) {
        k->busy += now - k->since;
        k->since = now;
    }
}

/* A rank without work gets a forward: what lies behind was idle. */
void fr_account_begin(fr_account *k, int16_t rank, int64_t now) {
    const fr_ended none = {.end = -1};
    if (k->unfinished++ > 0) return;
    touch(k, now);
    fr_account_gap(k, rank, now, &none, &none, NULL);
    set_mark(k, now);
}

/* The forward's parts on this rank are what was added since the previous forward's end here (or since its release, if
 * later). */
void fr_account_end(fr_account *k, int16_t rank, int64_t now, const fr_ended *cause, const fr_ended *before,
                    fr_exposure *x, fr_parts *out) {
    touch(k, now);
    if (k->kernels + k->collectives == 0) fr_account_gap(k, rank, now, cause, before, x);
    const fr_parts *a = &k->sum, *b = &k->mark_sum;
    *out = (fr_parts){.elapsed = now - k->mark,
                      .compute = a->compute - b->compute,
                      .exposed_comm = a->exposed_comm - b->exposed_comm,
                      .wait = a->wait - b->wait,
                      .bubble = a->bubble - b->bubble,
                      .idle = a->idle - b->idle,
                      .hidden_comm = fr_max_i64(0, k->busy - k->mark_busy - (k->exposed_gap - k->mark_gap))};
    k->unfinished--;
    set_mark(k, now);
}

void fr_account_total(const fr_account *k, int64_t now, fr_parts *out) {
    if (k->unfinished == 0) { /* as it was when the rank's last op ended */
        *out = k->mark_sum;
        out->elapsed = k->mark;
        out->hidden_comm = fr_max_i64(0, k->mark_busy - k->mark_gap);
        return;
    }
    *out = k->sum;
    out->elapsed = now;
    int64_t open = fr_max_i64(0, now - k->covered), busy = k->busy;
    if (k->kernels > 0)
        out->compute += open;
    else if (k->collectives > 0)
        out->exposed_comm += open;
    else
        out->idle += open;
    if (k->transfers > 0) busy += now - k->since;
    out->hidden_comm = fr_max_i64(0, busy - k->exposed_gap);
}

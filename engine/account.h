/*
 * account: where a rank's time goes, the same for the simulator's virtual clock (sim/player.h) and for a measured
 * timeline. A rank's clock is cut into stretches at the starts and ends of its compute-lane ops: while one runs,
 * compute (or exposed_comm, if all that run are collectives); the gaps between go by what released the op that ends
 * them. Every stretch is added exactly once, so that the parts sum to the elapsed time in ns.
 */
#ifndef FR_ACCOUNT_H
#define FR_ACCOUNT_H

#include "engine/timeline.h"

/* An op that ended, as those that it released remember it. On transfer lanes `start` is where the lane's run of
 * back-to-back transfers began and `ready` when the first of them was ready. end < 0: none. */
typedef struct {
    int64_t ready, start, end;
    uint64_t id;     /* 0 while no spans are kept */
    float low, high; /* of its cost's interval, relative */
    int16_t rank;
    uint8_t kind, class;
} fr_ended;

/* Sums over compute-lane ops and exposed communication, by op class: how much less or more their costs may be. What is
 * wrong with one class of work is wrong with all of it, and says little of another: classes add up as squares. */
typedef struct {
    double ns, less[FR_CLASS_COUNT], more[FR_CLASS_COUNT];
} fr_exposure;

typedef struct {
    int64_t covered;              /* parts are accounted up to here */
    fr_parts sum;                 /* elapsed and hidden_comm are left 0 */
    int32_t kernels, collectives; /* running on compute lanes */
    int32_t transfers;            /* running on the other device lanes */
    int64_t since, busy;          /* of transfers */
    int64_t exposed_gap;          /* of exposed_comm, the part that lies in gaps */
    int32_t unfinished;           /* forwards that this rank has begun and not ended */
    int64_t mark, mark_busy, mark_gap;
    fr_parts mark_sum; /* as all was when a forward last ended here */
} fr_account;

/*
 * Accounts the gap [covered, until] in which no compute-lane op of the rank ran, by the op whose end closed it:
 *   a transfer: while it ran, exposed_comm; before it, bubble for pipeline pairs, wait for another rank's transfer or a
 * collective's late members, else by what released it (`before`); a kernel or host op of another rank: wait; else idle.
 */
void fr_account_gap(fr_account *a, int16_t rank, int64_t until, const fr_ended *cause, const fr_ended *before,
                    fr_exposure *x);
/* The gap before a group op on a compute lane: until it arrived (`ready`), by what released it; then it waits for the
 * others. `cause` NULL: nothing released it. */
void fr_account_arrival(fr_account *a, int16_t rank, int64_t now, fr_op_kind kind, int64_t ready, const fr_ended *cause,
                        const fr_ended *before, fr_exposure *x);

/* A forward begins on the rank, has ended on it (`cause`: its last op; `before`: what released that). */
void fr_account_begin(fr_account *a, int16_t rank, int64_t now);
void fr_account_end(fr_account *a, int16_t rank, int64_t now, const fr_ended *cause, const fr_ended *before,
                    fr_exposure *x, fr_parts *out);
/* All so far: until the last forward's end, or `now` while one goes on. */
void fr_account_total(const fr_account *a, int64_t now, fr_parts *out);

static inline bool fr_is_transfer(const fr_ended *e) {
    return e->end >= 0 && (e->class == FR_CLASS_COLLECTIVE || e->class == FR_CLASS_COPY);
}

/* A compute-lane op starts now. `cause` NULL: nothing released it but the lane itself. */
static inline void fr_account_kernel(fr_account *a, int16_t rank, int64_t now, fr_op_kind kind, bool collective,
                                     int64_t ready, const fr_ended *cause, const fr_ended *before, fr_exposure *x) {
    if (now > a->covered) {
        if (a->kernels > 0) {
            a->sum.compute += now - a->covered;
        } else if (a->collectives > 0) {
            a->sum.exposed_comm += now - a->covered;
        } else if (collective) {
            fr_account_arrival(a, rank, now, kind, ready, cause, before, x);
        } else {
            const fr_ended none = {.end = -1};
            fr_account_gap(a, rank, now, cause ? cause : &none, before, x);
        }
        a->covered = now;
    }
    if (collective)
        a->collectives++;
    else
        a->kernels++;
}

static inline void fr_account_kernel_end(fr_account *a, int64_t now, bool collective) {
    if (a->kernels > 0)
        a->sum.compute += now - a->covered;
    else
        a->sum.exposed_comm += now - a->covered;
    a->covered = now;
    if (collective)
        a->collectives--;
    else
        a->kernels--;
}

static inline void fr_account_transfer(fr_account *a, int64_t now) {
    if (a->transfers++ == 0) a->since = now;
}

static inline void fr_account_transfer_end(fr_account *a, int64_t now) {
    if (--a->transfers == 0) a->busy += now - a->since;
}

/*
 * The parts of every rank over a finished timeline of `plan` (whose lanes say what is compute and what transfer), and
 * of every record on its last rank: from its release, or from the end of the forward before it there, to its end.
 * Spans have `ready` and `cause` set. `slack`: transfers of a lane that follow one another within it are back to back
 * (0 on a virtual clock; a copy engine takes some us between two copies).
 */
void fr_account_timeline(const fr_plan *plan, const fr_timeline *t, int64_t slack, fr_forward_record *records,
                         int64_t records_count, fr_parts *ranks);

#endif

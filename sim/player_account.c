/* What the player records: spans, and forwards with the parts that engine/account.h counts. */
#include <math.h>

#include "sim/player_state.h"

void fr_play_share_begin(fr_player *p, fr_share *s) {
    fr_account_begin(&p->ranks[s->rank], s->rank, p->now);
}

/* The rank's last op of a fragment, on lane l, has ended. */
void fr_play_share_end(fr_player *p, fr_share *s, const fr_play_lane *l) {
    s->end = p->now;
    fr_account_end(&p->ranks[s->rank], s->rank, p->now, &l->done, &l->done_cause, &s->x, &s->parts);
}

/* What the table's GPU and the one at hand may differ by: four H200s gave 1.639, 1.649, 1.687 and 1.699 ms for one
 * product under the power limit, +-1.8 % (kernels/measured/README.md); and as much again for what single kernels don't
 * show: gaps between them, caches that the op before left cold. */
#define CARD 0.03

/* sqrt of the sum of squares over classes, and of what all have in common. */
static double together(const double by_class[FR_CLASS_COUNT], double ns, double common) {
    double sum = common * common;
    for (int c = 0; c < FR_CLASS_COUNT; c++) sum += by_class[c] / ns * (by_class[c] / ns);
    return sqrt(sum);
}

/* Interval: elapsed time less and more what the last rank's compute-lane ops and exposed communication may be off by.
 */
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
    if (last->x.ns <= 0) return;
    double common = p->o.price ? 0 : CARD; /* stated prices are no GPU's */
    out->low = llround((double)out->low * fr_most(0, 1 - together(last->x.less, last->x.ns, common)));
    out->high = llround((double)out->high * (1 + together(last->x.more, last->x.ns, common)));
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
                                     .bytes = (double)fr_op_shape(l->run->f, op)->bytes,
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
    fr_account_total(&p->ranks[rank], p->now, out);
}

#include "sim/compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static int by_size(const void *a, const void *b) {
    double x = fabs(*(const double *)a), y = fabs(*(const double *)b);
    return (x > y) - (x < y);
}

/* Quantiles by nearest rank, as everywhere (engine/experiment.h). */
static double ranked(const double *sorted, int64_t count, double q) {
    int64_t rank = (int64_t)ceil(q * (double)count);
    return fabs(sorted[rank > 0 ? rank - 1 : 0]);
}

fr_error_stats fr_error_stats_of(double *errors, int64_t count) {
    if (count == 0) return (fr_error_stats){0, NAN, NAN, NAN, NAN, NAN};
    fr_error_stats s = {.count = count};
    for (int64_t i = 0; i < count; i++) {
        s.mean += fabs(errors[i]) / (double)count;
        s.bias += errors[i] / (double)count;
    }
    qsort(errors, (size_t)count, sizeof *errors, by_size);
    s.median = ranked(errors, count, 0.5);
    s.p95 = ranked(errors, count, 0.95);
    s.worst = fabs(errors[count - 1]);
    return s;
}

static fr_error_stats stats_of_pairs(const fr_pair_ns *pairs, int64_t count) {
    double *errors = fr_alloc(((size_t)count + 1) * sizeof *errors);
    for (int64_t i = 0; i < count; i++) errors[i] = pairs[i].predicted / pairs[i].measured - 1;
    fr_error_stats s = fr_error_stats_of(errors, count);
    free(errors);
    return s;
}

/* ---- forwards and requests --------------------------------------------------------------------------------------- */

static int by_unit(const void *a, const void *b) {
    const fr_forward_record *x = a, *y = b;
    if (x->unit != y->unit) return x->unit < y->unit ? -1 : 1;
    return (x->forward > y->forward) - (x->forward < y->forward);
}

static fr_forward_record *sorted_forwards(const fr_side *s) {
    fr_forward_record *f = fr_alloc(((size_t)s->forwards_count + 1) * sizeof *f);
    for (int64_t i = 0; i < s->forwards_count; i++) f[i] = s->forwards[i];
    qsort(f, (size_t)s->forwards_count, sizeof *f, by_unit);
    return f;
}

/* What the forward adds to its unit's stream. */
static double forward_ns(const fr_forward_record *f, int64_t at) {
    int64_t from = f[at].start;
    if (at > 0 && f[at - 1].unit == f[at].unit) from = fr_max_i64(from, f[at - 1].end);
    return (double)(f[at].end - from);
}

typedef struct {
    const fr_forward_record *v;
    int64_t count;
} forwards_in_order;

static bool alike(const forwards_in_order *x, int64_t i, const forwards_in_order *y, int64_t k) {
    return i < x->count && k < y->count && x->v[i].unit == y->v[k].unit && x->v[i].tokens == y->v[k].tokens &&
           x->v[i].cached == y->v[k].cached;
}

#define NEAR 16 /* so many forwards on are looked through for one that both sides have again */

/* From forwards that are not alike on to the next two that are, fewest steps first; false = none near. */
static bool meet_again(const forwards_in_order *x, int64_t *i, const forwards_in_order *y, int64_t *k) {
    for (int64_t steps = 1; steps <= 2 * NEAR; steps++)
        for (int64_t a = fr_max_i64(0, steps - NEAR); a <= fr_min_i64(steps, NEAR); a++)
            if (alike(x, *i + a, y, *k + steps - a) && y->v[*k + steps - a].unit == y->v[*k].unit) {
                *i += a;
                *k += steps - a;
                return true;
            }
    return false;
}

/*
 * Forwards of a unit in their order on either side, where the tokens agree. A request that came a moment before a batch
 * was formed on one side and after it on the other makes a few of them differ; then both go on from the next alike.
 * Numbers run over all units in the order of planning, which differs where ranks drift: twin[measured number] =
 * predicted number, -1 = none.
 */
static void join_forwards(const fr_side *p, const fr_side *m, fr_compare *c, int64_t *twin, int64_t most) {
    fr_forward_record *x = sorted_forwards(p), *y = sorted_forwards(m);
    const forwards_in_order ours = {x, p->forwards_count}, theirs = {y, m->forwards_count};
    c->forwards = fr_alloc(((size_t)m->forwards_count + 1) * sizeof *c->forwards);
    for (int64_t i = 0; i < most; i++) twin[i] = -1;
    for (int64_t i = 0, k = 0; k < m->forwards_count; k++, i++) {
        if (k > 0 && y[k].unit != y[k - 1].unit) /* a new unit: from its first forward */
            for (i = 0; i < p->forwards_count && x[i].unit < y[k].unit;) i++;
        const int64_t from = k;
        const bool joined = alike(&ours, i, &theirs, k) || meet_again(&ours, &i, &theirs, &k);
        c->other_batches += joined ? k - from : 1;
        if (!joined) continue;
        twin[y[k].forward] = x[i].forward;
        fr_pair_ns pair = {forward_ns(x, i), forward_ns(y, k)};
        if (pair.measured > 0) c->forwards[c->forwards_count++] = pair;
    }
    free(x);
    free(y);
    c->forward = stats_of_pairs(c->forwards, c->forwards_count);
}

static int by_request(const void *a, const void *b) {
    const fr_request_record *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static fr_request_record *sorted_requests(const fr_side *s) {
    fr_request_record *r = fr_alloc(((size_t)s->requests_count + 1) * sizeof *r);
    for (int64_t i = 0; i < s->requests_count; i++) r[i] = s->requests[i];
    qsort(r, (size_t)s->requests_count, sizeof *r, by_request);
    return r;
}

static void join_requests(const fr_side *p, const fr_side *m, fr_compare *c) {
    fr_request_record *x = sorted_requests(p), *y = sorted_requests(m);
    c->ttft = fr_alloc(((size_t)m->requests_count + 1) * sizeof *c->ttft);
    for (int64_t i = 0, k = 0; k < m->requests_count; k++) {
        while (i < p->requests_count && x[i].id < y[k].id) i++;
        if (i == p->requests_count || x[i].id != y[k].id || y[k].answer <= y[k].arrival) continue;
        c->ttft[c->ttft_count++] =
            (fr_pair_ns){(double)(x[i].answer - x[i].arrival), (double)(y[k].answer - y[k].arrival)};
    }
    free(x);
    free(y);
    c->request = stats_of_pairs(c->ttft, c->ttft_count);
}

/* ---- ops --------------------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t id;
    const fr_span *span;
} entry;

static int by_id(const void *a, const void *b) {
    const entry *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static int64_t number_of(uint64_t id) {
    return (int64_t)(id >> 44);
}

/* Spans of forwards that have a twin, by id, under the predicted side's numbers: `twin` maps this side's to those. */
static entry *entries(const fr_side *s, const int64_t *twin, int64_t most, uint32_t *count) {
    entry *e = fr_alloc(((size_t)s->spans->count + 1) * sizeof *e);
    *count = 0;
    for (uint32_t i = 0; i < s->spans->count; i++) {
        const fr_span *span = &s->spans->spans[i];
        int64_t number = number_of(span->id), to = number < most ? twin[number] : -1;
        if (fr_op_class_of((fr_op_kind)span->kind) == FR_CLASS_HOST || to < 0) continue;
        uint64_t rest = span->id & ((UINT64_C(1) << 44) - 1);
        e[(*count)++] = (entry){(uint64_t)to << 44 | rest, span};
    }
    qsort(e, *count, sizeof *e, by_id);
    return e;
}

/* A joined op, as rows are made of it. */
typedef struct {
    fr_pair_ns ns;
    uint16_t lane; /* measured side's */
    uint8_t kind;
    bool compute; /* on the judged rank's compute lane, of each side's own last rank */
    bool compute_predicted;
} joint;

static fr_compare_row make_row(const joint *j, const uint32_t *at, uint32_t count) {
    fr_compare_row row = {.count = count, .kind = j[at[0]].kind};
    double *errors = fr_alloc((count + 1) * sizeof *errors);
    int64_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        const joint *o = &j[at[i]];
        row.sum.predicted += o->ns.predicted;
        row.sum.measured += o->ns.measured;
        if (o->compute_predicted) row.compute[0] += o->ns.predicted;
        if (o->compute) row.compute[1] += o->ns.measured;
        if (o->ns.measured > 0) errors[n++] = o->ns.predicted / o->ns.measured - 1;
    }
    row.each = fr_error_stats_of(errors, n);
    free(errors);
    return row;
}

static int by_time(const void *a, const void *b) {
    const fr_compare_row *x = a, *y = b;
    if (x->sum.measured != y->sum.measured) return x->sum.measured < y->sum.measured ? 1 : -1;
    return x->kind - y->kind;
}

static void rows_by_kind(fr_compare *c, const joint *j, uint32_t count) {
    uint32_t *at = fr_alloc((count + 1) * sizeof *at);
    c->kinds = fr_alloc(FR_OP_KIND_COUNT * sizeof *c->kinds);
    for (int k = 0; k < FR_OP_KIND_COUNT; k++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < count; i++)
            if (j[i].kind == k) at[n++] = i;
        if (!n) continue;
        fr_compare_row *row = &c->kinds[c->kinds_count++];
        *row = make_row(j, at, n);
        row->rank = -1;
        snprintf(row->name, sizeof row->name, "%s", fr_op_name((fr_op_kind)k));
    }
    qsort(c->kinds, (size_t)c->kinds_count, sizeof *c->kinds, by_time);
    free(at);
}

static void rows_by_lane(fr_compare *c, const fr_side *m, const joint *j, uint32_t count) {
    uint32_t *at = fr_alloc((count + 1) * sizeof *at);
    int lanes = 0;
    for (uint32_t i = 0; i < count; i++)
        if (j[i].lane >= lanes) lanes = j[i].lane + 1;
    c->lanes = fr_alloc(((size_t)lanes + 1) * sizeof *c->lanes);
    for (int l = 0; l < lanes; l++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < count; i++)
            if (j[i].lane == l) at[n++] = i;
        if (!n) continue;
        fr_compare_row *row = &c->lanes[c->lanes_count++];
        *row = make_row(j, at, n);
        snprintf(row->name, sizeof row->name, "%s", m->lane_names[l]);
    }
    free(at);
}

static void join_ops(const fr_side *p, const fr_side *m, fr_compare *c, const int64_t *twin, int64_t most) {
    uint32_t np, nm, n = 0, i = 0;
    int64_t all = 0;
    for (int64_t k = 0; k < most; k++) all = fr_max_i64(all, twin[k] + 1);
    int64_t *own = fr_alloc(((size_t)all + 1) * sizeof *own); /* predicted numbers that are a twin */
    for (int64_t k = 0; k < all; k++) own[k] = -1;
    for (int64_t k = 0; k < most; k++)
        if (twin[k] >= 0) own[twin[k]] = twin[k];
    entry *x = entries(p, own, all, &np), *y = entries(m, twin, most, &nm);
    free(own);
    joint *j = fr_alloc(((size_t)nm + 1) * sizeof *j);
    for (uint32_t k = 0; k < nm; k++) {
        for (; i < np && x[i].id < y[k].id; i++) c->only_predicted++;
        if (i == np || x[i].id != y[k].id) {
            c->only_measured++;
            continue;
        }
        const fr_span *a = x[i++].span, *b = y[k].span;
        j[n++] = (joint){.ns = {(double)(a->end - a->start), (double)(b->end - b->start)},
                         .lane = b->lane,
                         .kind = b->kind,
                         .compute_predicted = p->lane_compute[a->lane] && a->rank == p->rank,
                         .compute = m->lane_compute[b->lane] && b->rank == m->rank};
    }
    c->only_predicted += np - i;
    if (m->spans->count == 0) c->only_predicted = 0; /* a run that timed no ops */
    c->ops = n;
    rows_by_kind(c, j, n);
    rows_by_lane(c, m, j, n);
    free(x);
    free(y);
    free(j);
}

/* ---- causes ------------------------------------------------------------------------------------------------------ */

static void add_cause(fr_compare *c, fr_missed what, uint8_t kind, double ns) {
    if (ns != 0 && c->causes_count < FR_MOST_CAUSES) c->causes[c->causes_count++] = (fr_cause){what, kind, ns};
}

static bool kernel(uint8_t kind) {
    fr_op_class class = fr_op_class_of((fr_op_kind)kind);
    return class >= FR_CLASS_MEMORY && class <= FR_CLASS_GROUPED;
}

/* Products and attention follow the clock; what HBM bounds doesn't. */
static bool follows_clock(uint8_t kind) {
    fr_op_class class = fr_op_class_of((fr_op_kind)kind);
    return class == FR_CLASS_GEMM || class == FR_CLASS_ATTENTION || class == FR_CLASS_GROUPED;
}

static int by_ns(const void *a, const void *b) {
    const fr_cause *x = a, *y = b;
    double d = fabs(y->ns) - fabs(x->ns);
    if (d != 0) return d > 0 ? 1 : -1;
    return x->what != y->what ? (int)x->what - (int)y->what : x->kind - y->kind;
}

#define HEAVY 0.05 /* share of the kernels' time from which a kind has a say in what they have in common */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median over the heavy kinds that follow the clock of how much longer they ran than predicted; 0 with fewer than
 * three: then nothing tells a clock from a kind. (NVML's clock is no help: it was off by 7 % from what the device
 * counts.) */
static double common_factor(const fr_compare *c) {
    double ratio[FR_OP_KIND_COUNT], all = 0;
    int n = 0;
    for (int i = 0; i < c->kinds_count; i++)
        if (kernel(c->kinds[i].kind)) all += c->kinds[i].compute[0];
    for (int i = 0; i < c->kinds_count; i++) {
        const fr_compare_row *r = &c->kinds[i];
        if (!follows_clock(r->kind) || r->compute[0] <= HEAVY * all) continue;
        ratio[n++] = r->compute[1] / r->compute[0] - 1;
    }
    if (n < 3) return 0;
    qsort(ratio, (size_t)n, sizeof *ratio, by_value);
    return n % 2 ? ratio[n / 2] : (ratio[n / 2 - 1] + ratio[n / 2]) / 2;
}

static void find_causes(fr_compare *c) {
    const fr_parts *p = &c->predicted, *m = &c->measured;
    double clock = 0, kernels = 0;
    c->common = common_factor(c);
    for (int i = 0; i < c->kinds_count; i++) {
        const fr_compare_row *r = &c->kinds[i];
        if (!kernel(r->kind)) continue;
        double missed = r->compute[1] - r->compute[0],
               of_clock = follows_clock(r->kind) ? c->common * r->compute[0] : 0;
        kernels += missed;
        clock += of_clock;
        add_cause(c, FR_MISSED_OP, r->kind, missed - of_clock);
    }
    add_cause(c, FR_MISSED_CLOCK, 0, clock);
    add_cause(c, FR_MISSED_REST, 0, (double)(m->compute - p->compute) - kernels);
    add_cause(c, FR_MISSED_EXPOSED, 0, (double)(m->exposed_comm - p->exposed_comm));
    add_cause(c, FR_MISSED_WAIT, 0, (double)(m->wait - p->wait));
    add_cause(c, FR_MISSED_BUBBLE, 0, (double)(m->bubble - p->bubble));
    if (!c->arrivals) add_cause(c, FR_MISSED_IDLE, 0, (double)(m->idle - p->idle));
    qsort(c->causes, (size_t)c->causes_count, sizeof *c->causes, by_ns);
}

/* ---- public ------------------------------------------------------------------------------------------------------ */

void fr_compare_run(const fr_side *p, const fr_side *m, fr_compare *c) {
    *c = (fr_compare){
        .predicted = p->parts, .measured = m->parts, .clock_predicted = p->clock_mhz, .clock_measured = m->clock_mhz};
    int64_t most = 0;
    for (int64_t i = 1; i < m->requests_count; i++) c->arrivals |= m->requests[i].arrival != m->requests[0].arrival;
    for (int64_t i = 0; i < m->forwards_count; i++) most = fr_max_i64(most, m->forwards[i].forward + 1);
    int64_t *twin = fr_alloc(((size_t)most + 1) * sizeof *twin);
    join_forwards(p, m, c, twin, most);
    join_requests(p, m, c);
    join_ops(p, m, c, twin, most);
    find_causes(c);
    free(twin);
}

void fr_compare_free(fr_compare *c) {
    free(c->kinds);
    free(c->lanes);
    free(c->forwards);
    free(c->ttft);
    *c = (fr_compare){0};
}

const char *fr_missed_name(fr_missed m) {
    static const char *const names[] = {"clock", "op", "exposed communication", "wait", "bubble", "idle", "rest"};
    return (unsigned)m < sizeof names / sizeof *names ? names[m] : "unknown";
}

static void words_of_op(const fr_compare *c, const fr_cause *cause, fr_text *out) {
    const fr_compare_row *r = c->kinds;
    while (r < c->kinds + c->kinds_count && r->kind != cause->kind) r++;
    double n = (double)r->count, error = r->sum.predicted / r->sum.measured - 1;
    fr_text_add(out, "%s is predicted %.1f %% too %s: %lld ops, %.1f against %.1f us each", r->name, 100 * fabs(error),
                error < 0 ? "short" : "long", (long long)r->count, r->sum.predicted / n / 1e3,
                r->sum.measured / n / 1e3);
    if (c->common != 0 && follows_clock(cause->kind)) fr_text_add(out, ", what all have in common counted apart");
}

void fr_compare_words(const fr_compare *c, const fr_cause *cause, fr_text *out) {
    const fr_parts *p = &c->predicted, *m = &c->measured;
    const char *const said[] = {[FR_MISSED_EXPOSED] = "communication that compute waits for",
                                [FR_MISSED_WAIT] = "waiting for other ranks",
                                [FR_MISSED_BUBBLE] = "pipeline bubbles",
                                [FR_MISSED_IDLE] = "gaps between kernels (launches, host, arrivals)",
                                [FR_MISSED_REST] = c->ops ? "compute outside the ops that both sides timed"
                                                          : "compute, whose ops the run did not time"};
    const int64_t parts[][2] = {[FR_MISSED_EXPOSED] = {p->exposed_comm, m->exposed_comm},
                                [FR_MISSED_WAIT] = {p->wait, m->wait},
                                [FR_MISSED_BUBBLE] = {p->bubble, m->bubble},
                                [FR_MISSED_IDLE] = {p->idle, m->idle},
                                [FR_MISSED_REST] = {p->compute, m->compute}};
    if (cause->what == FR_MISSED_OP)
        words_of_op(c, cause, out);
    else if (cause->what == FR_MISSED_CLOCK)
        fr_text_add(out, "clock or card: kernels that follow the SM clock all run %.1f %% %s than predicted",
                    100 * fabs(c->common), c->common > 0 ? "longer" : "shorter");
    else
        fr_text_add(out, "%s: %.3f ms where %.3f were predicted", said[cause->what],
                    (double)parts[cause->what][1] / 1e6, (double)parts[cause->what][0] / 1e6);
    fr_text_add(out, " (%+.3f ms, %+.2f %% of the run)", cause->ns / 1e6,
                m->elapsed > 0 ? 100 * cause->ns / (double)m->elapsed : 0.0);
}

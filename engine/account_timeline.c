/* The accounts of a timeline that is there as a whole: its starts and ends in the order of time. */
#include "engine/account.h"

#include <stdlib.h>
#include <string.h>

/* What happens at one instant, in this order: ends before starts, and a forward ends before the next op starts. */
typedef enum { OP_END, OP_AT_ONCE, LAST_OP_END, FORWARD_END, FORWARD_BEGIN, OP_START } event_kind;

typedef struct {
    int64_t time;
    uint32_t index; /* span; forwards: into `shares` */
    uint8_t kind;
} event;

/* A forward on one rank. */
typedef struct {
    int64_t end;
    uint32_t last; /* the span that ends last, FR_NONE = none */
    int16_t rank;
    fr_forward_record *record;
    fr_exposure x;
} share;

typedef struct {
    const fr_plan *plan;
    const fr_span *spans;
    uint32_t count;
    uint32_t *by_id;
    uint32_t *first; /* of the run of back-to-back transfers that a span belongs to; itself elsewhere */
    share *shares;   /* [records][ranks] */
    int64_t shares_count;
    event *events;
    int64_t events_count;
    fr_account *accounts; /* [ranks] */
} walk;

static bool on_compute(const walk *w, const fr_span *s) {
    return w->plan->lanes[s->lane].kind == FR_LANE_COMPUTE;
}
static bool is_host(const walk *w, const fr_span *s) {
    return w->plan->lanes[s->lane].kind == FR_LANE_HOST;
}

/* ---- causes -------------------------------------------------------------------------------------------------------*/

static int by_id(const void *a, const void *b, void *context) {
    const fr_span *spans = context;
    const uint64_t x = spans[*(const uint32_t *)a].id, y = spans[*(const uint32_t *)b].id;
    return (x > y) - (x < y);
}

static uint32_t find(const walk *w, uint64_t id) {
    uint32_t low = 0, high = w->count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (w->spans[w->by_id[middle]].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return id && low < w->count && w->spans[w->by_id[low]].id == id ? w->by_id[low] : FR_NONE;
}

/* A fence hands on what released it; the bound keeps damaged causes from going round. */
static uint32_t worked(const walk *w, uint32_t i) {
    for (int steps = 0; i != FR_NONE && w->spans[i].kind == FR_OP_FENCE && steps < 1000; steps++)
        i = find(w, w->spans[i].cause);
    return i;
}

static fr_ended ended(const walk *w, uint32_t i) {
    if (i == FR_NONE) return (fr_ended){.end = -1};
    const fr_span *s = &w->spans[i], *f = &w->spans[w->first[i]];
    return (fr_ended){.ready = f->ready,
                      .start = f->start,
                      .end = s->end,
                      .id = s->id,
                      .low = 1,
                      .high = 1,
                      .rank = s->rank,
                      .kind = s->kind,
                      .class = (uint8_t)fr_op_class_of((fr_op_kind)s->kind)};
}

/* What released span i, and what released that. */
static void causes(const walk *w, uint32_t i, fr_ended *cause, fr_ended *before) {
    const uint32_t c = worked(w, find(w, w->spans[i].cause));
    *cause = ended(w, c);
    *before = c == FR_NONE ? *cause : ended(w, worked(w, find(w, w->spans[w->first[c]].cause)));
}

/* ---- order --------------------------------------------------------------------------------------------------------*/

static int by_lane(const void *a, const void *b, void *context) {
    const fr_span *spans = context, *x = &spans[*(const uint32_t *)a], *y = &spans[*(const uint32_t *)b];
    if (x->lane != y->lane) return x->lane < y->lane ? -1 : 1;
    if (x->start != y->start) return x->start < y->start ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return 0;
}

/* Runs of back-to-back transfers. */
static void find_runs(walk *w, int64_t slack) {
    uint32_t *order = fr_alloc((w->count + 1) * sizeof *order);
    for (uint32_t i = 0; i < w->count; i++) order[i] = w->first[i] = i;
    qsort_r(order, w->count, sizeof *order, by_lane, (void *)(uintptr_t)w->spans);
    for (uint32_t k = 1; k < w->count; k++) {
        const fr_span *s = &w->spans[order[k]], *p = &w->spans[order[k - 1]];
        if (s->lane != p->lane || on_compute(w, s) || is_host(w, s)) continue;
        if (s->start - p->end <= slack && s->start - s->ready <= slack) w->first[order[k]] = w->first[order[k - 1]];
    }
    free(order);
}

static int by_time(const void *a, const void *b) {
    const event *x = a, *y = b;
    if (x->time != y->time) return x->time < y->time ? -1 : 1;
    if (x->kind != y->kind) return x->kind - y->kind;
    return (x->index > y->index) - (x->index < y->index);
}

static void push(walk *w, int64_t time, event_kind kind, uint32_t index) {
    w->events[w->events_count++] = (event){time, index, (uint8_t)kind};
}

static void list_spans(walk *w) {
    for (uint32_t i = 0; i < w->count; i++) {
        const fr_span *s = &w->spans[i];
        if (is_host(w, s)) continue;
        if (s->start == s->end) {
            push(w, s->start, OP_AT_ONCE, i);
        } else {
            push(w, s->start, OP_START, i);
            push(w, s->end, OP_END, i);
        }
    }
}

/* ---- forwards -----------------------------------------------------------------------------------------------------*/

static int64_t forward_of(const fr_span *s) { /* fr_op_id, engine/plan/plan.h */
    return (int64_t)(s->id >> 44);
}

static void find_shares(walk *w, fr_forward_record *records, int64_t count, int ranks) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) most = fr_max_i64(most, records[i].forward & 0xfffff);
    int64_t *at = fr_alloc(((size_t)most + 1) * sizeof *at);
    for (int64_t i = 0; i < count; i++) at[records[i].forward & 0xfffff] = i + 1;
    w->shares_count = count * ranks;
    w->shares = fr_alloc(((size_t)w->shares_count + 1) * sizeof *w->shares);
    for (int64_t i = 0; i < w->shares_count; i++)
        w->shares[i] = (share){.last = FR_NONE, .rank = (int16_t)(i % ranks), .record = &records[i / ranks]};
    for (uint32_t i = 0; i < w->count; i++) {
        const fr_span *s = &w->spans[i];
        const int64_t f = forward_of(s), record = f <= most ? at[f] - 1 : -1;
        if (record < 0 || is_host(w, s)) continue;
        share *h = &w->shares[record * ranks + s->rank];
        if (h->last != FR_NONE && s->end < h->end) continue;
        h->end = s->end;
        h->last = i;
    }
    free(at);
    for (int64_t i = 0; i < w->shares_count; i++) {
        share *h = &w->shares[i];
        const bool last = h->record->last_rank == h->rank;
        if (h->last == FR_NONE && !last) continue;
        if (h->last != FR_NONE) push(w, h->end, LAST_OP_END, (uint32_t)i);
        if (last) h->end = fr_max_i64(h->end, h->record->end);
        push(w, fr_min_i64(h->record->release, h->end), FORWARD_BEGIN, (uint32_t)i);
        push(w, h->end, FORWARD_END, (uint32_t)i);
    }
}

/* ---- the walk -----------------------------------------------------------------------------------------------------*/

static void op_start(walk *w, uint32_t i, int64_t now) {
    const fr_span *s = &w->spans[i];
    fr_account *a = &w->accounts[s->rank];
    fr_ended cause, before;
    if (!on_compute(w, s)) {
        fr_account_transfer(a, now);
        return;
    }
    const bool collective = fr_op_class_of((fr_op_kind)s->kind) >= FR_CLASS_COLLECTIVE;
    causes(w, i, &cause, &before);
    fr_account_kernel(a, s->rank, now, (fr_op_kind)s->kind, collective, s->ready, &cause, &before, NULL);
}

static void op_end(walk *w, uint32_t i, int64_t now) {
    const fr_span *s = &w->spans[i];
    if (on_compute(w, s))
        fr_account_kernel_end(&w->accounts[s->rank], now, fr_op_class_of((fr_op_kind)s->kind) >= FR_CLASS_COLLECTIVE);
    else
        fr_account_transfer_end(&w->accounts[s->rank], now);
}

static void last_op_end(walk *w, share *h, int64_t now) {
    fr_account *a = &w->accounts[h->rank];
    if (a->kernels + a->collectives > 0) return;
    const fr_ended none = {.end = -1};
    const uint32_t i = worked(w, h->last);
    const fr_ended cause = ended(w, i);
    fr_ended before = none;
    if (i != FR_NONE) before = ended(w, worked(w, find(w, w->spans[w->first[i]].cause)));
    fr_account_gap(a, h->rank, now, &cause, &before, NULL);
}

static void forward_end(walk *w, share *h, int64_t now) {
    const fr_ended none = {.end = -1};
    fr_parts parts;
    fr_account_end(&w->accounts[h->rank], h->rank, now, &none, &none, NULL, &parts);
    if (h->record->last_rank == h->rank) h->record->parts = parts;
}

static void happen(walk *w, const event *e) {
    switch ((event_kind)e->kind) {
    case OP_START:
        op_start(w, e->index, e->time);
        break;
    case OP_END:
        op_end(w, e->index, e->time);
        break;
    case OP_AT_ONCE:
        op_start(w, e->index, e->time);
        op_end(w, e->index, e->time);
        break;
    case LAST_OP_END:
        last_op_end(w, &w->shares[e->index], e->time);
        break;
    case FORWARD_END:
        forward_end(w, &w->shares[e->index], e->time);
        break;
    case FORWARD_BEGIN:
        fr_account_begin(&w->accounts[w->shares[e->index].rank], w->shares[e->index].rank, e->time);
        break;
    }
}

void fr_account_timeline(const fr_plan *plan, const fr_timeline *t, int64_t slack, fr_forward_record *records,
                         int64_t records_count, fr_parts *ranks) {
    walk w = {.plan = plan, .spans = t->spans, .count = t->count};
    const size_t n = (size_t)plan->ranks;
    w.by_id = fr_alloc((t->count + 1) * sizeof *w.by_id);
    w.first = fr_alloc((t->count + 1) * sizeof *w.first);
    w.accounts = fr_alloc(n * sizeof *w.accounts);
    w.events = fr_alloc((2 * (size_t)t->count + 3 * (size_t)records_count * n + 1) * sizeof *w.events);
    for (uint32_t i = 0; i < t->count; i++) w.by_id[i] = i;
    if (t->count) qsort_r(w.by_id, t->count, sizeof *w.by_id, by_id, t->spans);
    find_runs(&w, slack);
    list_spans(&w);
    find_shares(&w, records, records_count, plan->ranks);
    if (w.events_count) qsort(w.events, (size_t)w.events_count, sizeof *w.events, by_time);
    for (int64_t i = 0; i < w.events_count; i++) happen(&w, &w.events[i]);
    for (size_t r = 0; r < n; r++) fr_account_total(&w.accounts[r], w.accounts[r].mark, &ranks[r]);
    free(w.by_id);
    free(w.first);
    free(w.accounts);
    free(w.events);
    free(w.shares);
}

#include "engine/plan/critical.h"

#include <stdlib.h>
#include <string.h>

const char *fr_resource_name(fr_resource r) {
    static const char *const names[FR_RESOURCES] = {"attention", "gemm",      "experts", "memory", "collective",
                                                    "peer_copy", "host_copy", "host",    "idle"};
    return (unsigned)r < FR_RESOURCES ? names[r] : "?";
}

static fr_resource resource_of(fr_op_kind kind) {
    switch (fr_op_class_of(kind)) {
    case FR_CLASS_ATTENTION:
        return FR_ON_ATTENTION;
    case FR_CLASS_GEMM:
        return FR_ON_GEMM;
    case FR_CLASS_GROUPED:
        return FR_ON_EXPERTS;
    case FR_CLASS_MEMORY:
        return fr_op_over_pcie(kind) ? FR_ON_HOST_COPY : FR_ON_MEMORY;
    case FR_CLASS_COLLECTIVE:
        return FR_ON_COLLECTIVE;
    case FR_CLASS_COPY:
        return kind == FR_OP_H2D || kind == FR_OP_D2H ? FR_ON_HOST_COPY : FR_ON_PEER_COPY;
    case FR_CLASS_HOST:
        return FR_ON_HOST;
    case FR_CLASS_OTHER:
    case FR_CLASS_COUNT:
        break;
    }
    return FR_ON_NOTHING;
}

/* Spans by id, to follow causes; and group ops by their common start, end and kind, to find the latest member. */
typedef struct {
    const fr_span *spans;
    uint32_t *by_id, count;
    uint32_t *groups, groups_count;
} index_t;

static int compare_ids(const void *a, const void *b, void *context) {
    const fr_span *spans = context;
    uint64_t x = spans[*(const uint32_t *)a].id, y = spans[*(const uint32_t *)b].id;
    return (x > y) - (x < y);
}

/* Equal meetings lie together, the member that came last first. */
static int compare_meetings(const void *a, const void *b, void *context) {
    const fr_span *x = (const fr_span *)context + *(const uint32_t *)a;
    const fr_span *y = (const fr_span *)context + *(const uint32_t *)b;
    if (x->start != y->start) return x->start < y->start ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    if (x->kind != y->kind) return x->kind < y->kind ? -1 : 1;
    if (x->ready != y->ready) return x->ready > y->ready ? -1 : 1;
    return x->rank - y->rank;
}

static index_t make_index(const fr_timeline *t) {
    index_t x = {.spans = t->spans, .count = t->count};
    x.by_id = fr_alloc(t->count * sizeof *x.by_id);
    x.groups = fr_alloc(t->count * sizeof *x.groups);
    for (uint32_t i = 0; i < t->count; i++) {
        x.by_id[i] = i;
        if (fr_op_class_of((fr_op_kind)t->spans[i].kind) == FR_CLASS_COLLECTIVE) x.groups[x.groups_count++] = i;
    }
    qsort_r(x.by_id, t->count, sizeof *x.by_id, compare_ids, t->spans);
    qsort_r(x.groups, x.groups_count, sizeof *x.groups, compare_meetings, t->spans);
    return x;
}

static const fr_span *find_span(const index_t *x, uint64_t id) {
    uint32_t low = 0, high = x->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (x->spans[x->by_id[middle]].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == x->count || x->spans[x->by_id[low]].id != id) return NULL;
    return &x->spans[x->by_id[low]];
}

/* The member of the same meeting that arrived last: the one that the others waited for. */
static const fr_span *latest_member(const index_t *x, const fr_span *s) {
    uint32_t low = 0, high = x->groups_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const fr_span *m = &x->spans[x->groups[middle]];
        bool before = m->start != s->start ? m->start < s->start
                      : m->end != s->end   ? m->end < s->end
                                           : m->kind < s->kind;
        if (before)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == x->groups_count) return s;
    const fr_span *m = &x->spans[x->groups[low]];
    return m->start == s->start && m->end == s->end && m->kind == s->kind ? m : s;
}

/* The layer's place in a structural id: fr_op_id, engine/plan/plan.h. */
static int row_of(const fr_critical *c, const fr_span *s) {
    int layer = (int)(s->id >> 24 & 0x3ff);
    return layer < c->layers ? layer : c->layers;
}

static void charge(fr_critical *c, int row, fr_resource on, int64_t *cursor, int64_t down_to) {
    if (down_to < c->begin) down_to = c->begin;
    if (down_to >= *cursor) return;
    c->ns[row][on] += *cursor - down_to;
    c->total[on] += *cursor - down_to;
    *cursor = down_to;
}

void fr_critical_path(const fr_timeline *spans, int64_t begin, int layers, fr_critical *out) {
    *out = (fr_critical){.begin = begin, .end = begin, .layers = layers > 0 ? layers : 0};
    out->ns = fr_alloc(((size_t)out->layers + 1) * sizeof *out->ns);
    const fr_span *s = NULL;
    for (uint32_t i = 0; i < spans->count; i++)
        if (!s || spans->spans[i].end > s->end) s = &spans->spans[i];
    if (!s || s->end <= begin) return;
    index_t x = make_index(spans);
    int64_t cursor = out->end = s->end;
    /* Each step goes to an op that ended earlier; the bound on steps keeps a damaged timeline from looping. */
    while (s && cursor > begin && out->steps <= spans->count) {
        out->steps++;
        int row = row_of(out, s);
        charge(out, row, resource_of((fr_op_kind)s->kind), &cursor, s->start);
        if (s->ready < s->start) s = latest_member(&x, s);
        charge(out, row, FR_ON_NOTHING, &cursor, s->ready);
        const fr_span *cause = s->cause ? find_span(&x, s->cause) : NULL;
        if (cause) charge(out, row, FR_ON_NOTHING, &cursor, cause->end);
        s = cause;
    }
    charge(out, out->layers, FR_ON_NOTHING, &cursor, begin);
    free(x.by_id);
    free(x.groups);
}

void fr_critical_free(fr_critical *c) {
    free(c->ns);
    c->ns = NULL;
}

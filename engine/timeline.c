#include "engine/timeline.h"

#include <stdlib.h>

void fr_timeline_add(fr_timeline *t, const fr_span *s) {
    if (t->count == t->capacity) FR_GROW(t->spans, t->capacity, t->count + 1);
    t->spans[t->count++] = *s;
}

void fr_timeline_free(fr_timeline *t) {
    free(t->spans);
    *t = (fr_timeline){0};
}

static int compare_spans(const void *a, const void *b) {
    const fr_span *x = a, *y = b;
    if (x->start != y->start) return x->start < y->start ? -1 : 1;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->lane != y->lane) return x->lane < y->lane ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

void fr_timeline_sort(fr_timeline *t) {
    if (t->count) qsort(t->spans, t->count, sizeof *t->spans, compare_spans);
}

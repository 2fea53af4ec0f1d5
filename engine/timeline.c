#include "engine/timeline.h"

#include "engine/layout.h"

#include <stdlib.h>

void fr_timeline_add(fr_timeline *t, const fr_span *s) {
    if (t->count == t->capacity) FR_GROW(t->spans, t->capacity, t->count + 1);
    t->spans[t->count++] = *s;
}

const char *fr_carrier_name(fr_op_kind kind, int transport) {
    switch (kind) {
    case FR_OP_COUNTS:
    case FR_OP_ALLTOALL:
    case FR_OP_ALLTOALL_BACK:
        return "peer kernels";
    case FR_OP_GATHER_WEIGHTS:
        return transport == FR_GATHER_NCCL_CE ? "nccl-ce" : "nccl";
    default:
        break;
    }
    if (fr_op_class_of(kind) == FR_CLASS_COLLECTIVE) return "nccl";
    return fr_op_class_of(kind) == FR_CLASS_COPY ? "copy engine" : "";
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

#include "sim/heap.h"

#include <stdlib.h>

void fr_heap_init(fr_heap *h, uint32_t ids) {
    h->leaves = 2; /* so that the top is never a leaf */
    while (h->leaves < ids) h->leaves *= 2;
    h->nodes = fr_alloc((size_t)h->leaves * 2 * sizeof *h->nodes);
    for (uint32_t i = 0; i < 2 * h->leaves; i++) h->nodes[i].time = INT64_MAX;
}

void fr_heap_free(fr_heap *h) {
    free(h->nodes);
    *h = (fr_heap){0};
}

#include "sim/heap.h"

#include <stdlib.h>

void fr_heap_init(fr_heap *h, uint32_t ids) {
    *h = (fr_heap){.ids = ids};
    h->entries = fr_alloc((ids ? ids : 1) * sizeof *h->entries);
    h->where = fr_alloc((ids ? ids : 1) * sizeof *h->where);
}

void fr_heap_free(fr_heap *h) {
    free(h->entries);
    free(h->where);
    *h = (fr_heap){0};
}

static inline bool before(const fr_heap_entry *a, const fr_heap_entry *b) {
    return a->time < b->time || (a->time == b->time && a->seq < b->seq);
}

static inline void put(fr_heap *h, uint32_t at, fr_heap_entry e) {
    h->entries[at] = e;
    h->where[e.id] = at + 1;
}

/* Moves the hole at `at` up until `e` fits into it. */
static void sift_up(fr_heap *h, uint32_t at, fr_heap_entry e) {
    while (at > 0) {
        uint32_t parent = (at - 1) / 2;
        if (!before(&e, &h->entries[parent])) break;
        put(h, at, h->entries[parent]);
        at = parent;
    }
    put(h, at, e);
}

static void sift_down(fr_heap *h, uint32_t at, fr_heap_entry e) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= h->count) break;
        if (child + 1 < h->count) child += before(&h->entries[child + 1], &h->entries[child]);
        if (!before(&h->entries[child], &e)) break;
        put(h, at, h->entries[child]);
        at = child;
    }
    put(h, at, e);
}

void fr_heap_set(fr_heap *h, uint32_t id, int64_t time, uint32_t seq) {
    fr_heap_entry e = {time, seq, id};
    if (!h->where[id]) {
        sift_up(h, h->count++, e);
        return;
    }
    uint32_t at = h->where[id] - 1;
    if (before(&e, &h->entries[at]))
        sift_up(h, at, e);
    else
        sift_down(h, at, e);
}

void fr_heap_remove(fr_heap *h, uint32_t id) {
    if (!h->where[id]) return;
    uint32_t at = h->where[id] - 1;
    h->where[id] = 0;
    fr_heap_entry last = h->entries[--h->count];
    if (at == h->count) return;
    if (at > 0 && before(&last, &h->entries[(at - 1) / 2]))
        sift_up(h, at, last);
    else
        sift_down(h, at, last);
}

/*
 * heap: an indexed binary heap of (time, sequence) with one entry per id, so that an entry can be moved (a flow that is
 * slowed ends later) or removed in O(log n). Ids are small numbers chosen by the caller, 0 <= id < ids. Ties on time go
 * to the lower sequence; with unique sequences the order is total, whatever the history of insertions.
 */
#ifndef FR_HEAP_H
#define FR_HEAP_H

#include "engine/base.h"

typedef struct {
    int64_t time;
    uint32_t seq, id;
} fr_heap_entry;

typedef struct {
    fr_heap_entry *entries;
    uint32_t *where; /* id -> position + 1, 0 = absent */
    uint32_t count, ids;
} fr_heap;

void fr_heap_init(fr_heap *h, uint32_t ids);
void fr_heap_free(fr_heap *h);

/* Inserts id, or moves it, to (time, seq). */
void fr_heap_set(fr_heap *h, uint32_t id, int64_t time, uint32_t seq);
/* Removes id; nothing happens when it is absent. */
void fr_heap_remove(fr_heap *h, uint32_t id);

static inline bool fr_heap_has(const fr_heap *h, uint32_t id) {
    return h->where[id] != 0;
}
/* The earliest entry, NULL when empty. */
static inline const fr_heap_entry *fr_heap_top(const fr_heap *h) {
    return h->count ? &h->entries[0] : NULL;
}

#endif

/*
 * heap: the event queue: at most one entry per id (0 <= id < ids), which can be set earlier or later or taken out in
 * O(log ids); the earliest is at the top, ties go to the lower id, so that the order never depends on history.
 *
 * It is a tournament: ids are the leaves, each inner node holds the earlier of its two children. Setting a leaf replays
 * the matches on its way up: no search, no branch that depends on the data (a binary heap spends most of its time in
 * mispredicted ones), and the same few loads whether an entry is new, moved or removed.
 *
 *     set(2, 40)       [30:1]              top: 30, id 1
 *                  [30:1]    [40:2]
 *               [50:0][30:1] [40:2][-:3]
 */
#ifndef FR_HEAP_H
#define FR_HEAP_H

#include "engine/base.h"

typedef struct {
    int64_t time; /* INT64_MAX: no entry, or one that never comes */
    uint32_t id;
} fr_heap_entry;

typedef struct {
    fr_heap_entry *nodes; /* [1] top, children of i at 2i and 2i + 1, leaf of id at leaves + id */
    uint32_t leaves;      /* power of two */
} fr_heap;

void fr_heap_init(fr_heap *h, uint32_t ids);
void fr_heap_free(fr_heap *h);

/* Sets id's time (>= 0), whether it had an entry or not; INT64_MAX removes it. */
static inline void fr_heap_set(fr_heap *h, uint32_t id, int64_t time) {
    fr_heap_entry e = {time, id};
    uint32_t at = h->leaves + id;
    h->nodes[at] = e;
    for (; at > 1; at >>= 1) {
        const fr_heap_entry *other = &h->nodes[at ^ 1];
        bool stays = e.time <= other->time - (int64_t)(at & 1); /* the left one, of lower ids, wins ties */
        uint64_t mask = (uint64_t)stays - 1; /* compilers make a branch of ?: here, which is what is to be avoided */
        e.time = (int64_t)((uint64_t)e.time ^ (((uint64_t)e.time ^ (uint64_t)other->time) & mask));
        e.id ^= (e.id ^ other->id) & (uint32_t)mask;
        h->nodes[at >> 1] = e;
    }
}

static inline void fr_heap_remove(fr_heap *h, uint32_t id) {
    fr_heap_set(h, id, INT64_MAX);
}

/* The earliest entry; its time is INT64_MAX when there is none. */
static inline fr_heap_entry fr_heap_top(const fr_heap *h) {
    return h->nodes[1];
}

#endif

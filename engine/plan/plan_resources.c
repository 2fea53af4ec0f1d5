/*
 * plan_resources: what counters cannot show: that holding a thing while waiting for another never closes a circle.
 * Things: a first-ready lane, held by an item from its first op to its last; a pool whose acquires race, each hold from
 * its acquire to its free; a pool whose acquires may be skipped, likewise. Thing A needs thing B when a holder of A,
 * between taking and releasing it, needs an op that takes B. Without a circle of needs there is no deadlock: of the
 * things that some op is blocked on take one that needs no other such; its holders go on to their release.
 */
#include "engine/plan/plan_order.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct {
    uint32_t thing, take, release; /* ops; release FR_NONE = never */
} holding;

typedef struct {
    holding *list;
    uint32_t count, capacity;
} holdings;

static void add_holding(holdings *h, uint32_t thing, uint32_t take, uint32_t release) {
    FR_GROW(h->list, h->capacity, h->count + 1);
    h->list[h->count++] = (holding){thing, take, release};
}

/* An acquire never waits when the holds that can be out at that time are fewer than the slots. */
static bool never_blocks(fr_order *o, const fr_hold *first, const fr_hold *end) {
    for (const fr_hold *j = first; j < end; j++) {
        int32_t out = 0;
        if (j->is_void || j->acquire == FR_NONE) continue;
        uint32_t take = o->node_of[j->acquire];
        for (const fr_hold *i = first; i < end; i++) {
            if (i == j || i->is_void) continue;
            bool freed = i->free != FR_NONE && fr_order_before(o, o->node_of[i->free], take);
            bool later = i->acquire != FR_NONE && fr_order_before(o, take, o->node_of[i->acquire]);
            if (!freed && !later) out++;
        }
        if (out >= o->plan->buffers[j->pool].slots) return false;
    }
    return true;
}

static fr_status collect_pools(fr_order *o, holdings *all, fr_error *err) {
    for (uint32_t i = 0, end; i < o->holds_count; i = end) {
        uint32_t pool = o->holds[i].pool;
        for (end = i; end < o->holds_count && o->holds[end].pool == pool; end++) {
        }
        uint8_t kind = o->pool_kind[pool];
        if (kind != FR_POOL_RACING && kind != FR_POOL_LATE_COUNTER) continue;
        if (never_blocks(o, o->holds + i, o->holds + end)) continue;
        for (uint32_t k = i; k < end; k++) {
            const fr_hold *h = &o->holds[k];
            char name[48];
            if (h->is_void || h->acquire == FR_NONE) continue;
            if (h->free == FR_NONE && kind == FR_POOL_RACING)
                return fr_fail(err, FR_FAILED,
                               "deadlock: %s acquires hold #%u of pool %u '%s' and no op frees it, while others may "
                               "wait for a slot in any order: cannot be shown to go on",
                               fr_order_name(o, h->acquire, name), h->hold, pool, o->plan->buffers[pool].name);
            add_holding(all, o->plan->lanes_count + pool, h->acquire, h->free);
        }
    }
    return FR_OK;
}

static void collect_items(const fr_order *o, holdings *all) {
    for (uint32_t c = o->plan->lanes_count; c < o->chains; c++)
        add_holding(all, fr_order_op(o, o->item_first[c])->lane, o->item_first[c], o->item_last[c]);
}

/* Does the holder a, once it has its thing, need an op that takes b's? */
static bool needs(fr_order *o, const holding *a, const holding *b) {
    uint32_t take = o->node_of[a->take], other = o->node_of[b->take];
    if (a->release == FR_NONE) return false;
    uint32_t release = o->node_of[a->release];
    if (other == take || fr_order_before(o, other, take)) return false;
    return other == release || fr_order_before(o, other, release);
}

static void thing_text(const fr_plan *p, uint32_t thing, char *out, size_t size) {
    if (thing < p->lanes_count)
        snprintf(out, size, "first-ready lane %u '%s'", thing, p->lanes[thing].name);
    else
        snprintf(out, size, "pool %u '%s'", thing - p->lanes_count, p->buffers[thing - p->lanes_count].name);
}

static fr_status fail_circle(const fr_order *o, const holding *a, const holding *b, fr_error *err) {
    char x[48], y[48], first[96], second[96];
    thing_text(o->plan, a->thing, first, sizeof first);
    thing_text(o->plan, b->thing, second, sizeof second);
    if (a->thing < o->plan->lanes_count && a->thing == b->thing)
        return fr_fail(err, FR_FAILED, "item: the item of %s waits, after its first op, for %s of another item of %s",
                       fr_order_name(o, a->take, x), fr_order_name(o, b->take, y), first);
    return fr_fail(err, FR_FAILED,
                   "deadlock: %s holds %s until after %s gets %s, and the other way round: cannot be shown to go on",
                   fr_order_name(o, a->take, x), first, fr_order_name(o, b->take, y), second);
}

/* Which thing needs which: a holder that does, + 1. Things are numbered densely: few of many lanes and buffers occur.
 */
typedef struct {
    uint32_t *number; /* thing -> its number + 1 */
    uint32_t *need;   /* used * used */
    uint32_t used;
} needs_table;

static void build_needs(fr_order *o, const holdings *all, needs_table *n) {
    uint32_t lanes = o->plan->lanes_count, things = lanes + o->plan->buffers_count;
    n->number = fr_alloc((things + 1) * sizeof *n->number);
    for (uint32_t i = 0; i < all->count; i++)
        if (!n->number[all->list[i].thing]) n->number[all->list[i].thing] = ++n->used;
    n->need = fr_alloc(((size_t)n->used * n->used + 1) * sizeof *n->need);
    for (uint32_t a = 0; a < all->count; a++)
        for (uint32_t b = 0; b < all->count; b++) {
            uint32_t t = all->list[a].thing, u = all->list[b].thing;
            uint32_t *at = &n->need[(size_t)(n->number[t] - 1) * n->used + n->number[u] - 1];
            if (a == b || *at) continue;
            /* one in-order lane alone acquires: that it goes on was shown by running it */
            if (t == u && t >= lanes && o->pool_kind[t - lanes] == FR_POOL_LATE_COUNTER) continue;
            if (needs(o, &all->list[a], &all->list[b])) *at = a + 1;
        }
}

/* Removes things that need no other thing left, until none can be removed; what is left holds a circle. */
static void remove_ends(const needs_table *n, bool *gone) {
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t t = 0; t < n->used; t++) {
            bool end = !gone[t];
            for (uint32_t u = 0; u < n->used && end; u++) end = gone[u] || !n->need[(size_t)t * n->used + u];
            if (end) gone[t] = changed = true;
        }
    }
}

static fr_status report_circle(fr_order *o, const holdings *all, const needs_table *n, const bool *gone,
                               fr_error *err) {
    for (uint32_t t = 0; t < n->used; t++)
        for (uint32_t u = 0; u < n->used; u++) {
            uint32_t at = n->need[(size_t)t * n->used + u];
            if (gone[t] || gone[u] || !at) continue;
            for (uint32_t b = 0; b < all->count; b++)
                if (n->number[all->list[b].thing] == u + 1 && b != at - 1 &&
                    needs(o, &all->list[at - 1], &all->list[b]))
                    return fail_circle(o, &all->list[at - 1], &all->list[b], err);
        }
    return FR_OK;
}

fr_status fr_order_check_resources(fr_order *o, fr_error *err) {
    holdings all = {0};
    fr_status status = collect_pools(o, &all, err);
    if (status == FR_OK) {
        needs_table n = {0};
        collect_items(o, &all);
        build_needs(o, &all, &n);
        bool *gone = fr_alloc(n.used + 1);
        remove_ends(&n, gone);
        status = report_circle(o, &all, &n, gone, err);
        free(gone);
        free(n.number);
        free(n.need);
    }
    free(all.list);
    return status;
}

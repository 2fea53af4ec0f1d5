/* Pools of slots (S4, S6): holds are acquired in the plan's order of numbers, waiting lanes are served in order. */
#include <stdlib.h>

#include "sim/player_state.h"

/* State of a hold, NULL when it is done with. */
static uint8_t *hold_of(fr_pool *pool, uint32_t hold) {
    if (hold < pool->base) return NULL;
    if (hold - pool->base >= pool->cap) {
        uint32_t cap = pool->cap ? pool->cap : 16;
        while (hold - pool->base >= cap) cap *= 2;
        uint8_t *holds = fr_alloc(cap);
        for (uint32_t i = 0; i < pool->cap; i++)
            holds[(pool->base + i) & (cap - 1)] = pool->holds[(pool->base + i) & (pool->cap - 1)];
        free(pool->holds);
        pool->holds = holds;
        pool->cap = cap;
    }
    return &pool->holds[hold & (pool->cap - 1)];
}

static void forget_old(fr_pool *pool) {
    while (pool->cap && pool->holds[pool->base & (pool->cap - 1)] == FR_HOLD_FREED)
        pool->holds[pool->base++ & (pool->cap - 1)] = FR_HOLD_UNUSED;
}

static bool waits_in(const fr_pool *pool, uint32_t lane) {
    for (uint32_t i = 0; i < pool->queue_n; i++)
        if (pool->queue[i] == lane) return true;
    return false;
}

static int32_t wanted(const fr_fragment *f, const fr_op *op, uint32_t buffer) {
    const fr_ref *u = fr_op_uses(f, op);
    int32_t n = 0;
    for (uint32_t i = 0; i < op->uses; i++) n += u[i].use == FR_USE_ACQUIRE && u[i].target == buffer;
    return n;
}

/* Slots are there and nobody waits before `lane` (FR_NONE: a lane in no queue). */
static bool may_take(const fr_pool *pool, int32_t slots, uint32_t lane) {
    return pool->free >= slots && (pool->queue_n == 0 || pool->queue[0] == lane);
}

bool fr_play_slots_free(const fr_player *p, const fr_fragment *f, const fr_op *op) {
    const fr_ref *u = fr_op_uses(f, op);
    for (uint32_t i = 0; i < op->uses; i++)
        if (u[i].use == FR_USE_ACQUIRE && p->plan->buffers[u[i].target].slots > 0 &&
            !may_take(&p->pools[u[i].target], wanted(f, op, u[i].target), FR_NONE))
            return false;
    return true;
}

/* Takes the first of a queue into the ready queue once its slots may be there. */
static void serve(fr_player *p, fr_pool *pool, const fr_play_lane *by) {
    if (pool->free <= 0 || pool->queue_n == 0) return;
    fr_play_lane *l = &p->lanes[pool->queue[0]];
    if (l->state == FR_STATE_POOL) fr_play_wake(p, l, by);
}

static void leave_queue(fr_pool *pool, uint32_t lane) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < pool->queue_n; i++)
        if (pool->queue[i] != lane) pool->queue[n++] = pool->queue[i];
    pool->queue_n = n;
}

/* Takes all slots that the op acquires, or none and queues the lane. A skipped op voids its holds (S6). */
bool fr_play_acquire(fr_player *p, fr_play_lane *l, bool skipped) {
    const fr_fragment *f = l->run->f;
    const fr_op *op = l->op;
    const fr_ref *u = fr_op_uses(f, op);
    bool all = true;
    for (uint32_t i = 0; i < op->uses && !skipped; i++) {
        if (u[i].use != FR_USE_ACQUIRE || p->plan->buffers[u[i].target].slots <= 0) continue;
        fr_pool *pool = &p->pools[u[i].target];
        if (may_take(pool, wanted(f, op, u[i].target), l->index)) continue;
        all = false;
        if (waits_in(pool, l->index)) continue;
        FR_GROW(pool->queue, pool->queue_cap, pool->queue_n + 1);
        pool->queue[pool->queue_n++] = l->index;
    }
    if (!all) return false;
    for (uint32_t i = 0; i < op->uses; i++) {
        if (u[i].use != FR_USE_ACQUIRE || p->plan->buffers[u[i].target].slots <= 0) continue;
        fr_pool *pool = &p->pools[u[i].target];
        uint8_t *hold = hold_of(pool, u[i].value);
        if (!hold || *hold != FR_HOLD_UNUSED) {
            fr_fail(&p->broken, FR_FAILED, "plan: hold %u of pool %s (rank %d) is acquired twice", (unsigned)u[i].value,
                    p->plan->buffers[u[i].target].name, p->plan->buffers[u[i].target].rank);
            continue;
        }
        *hold = skipped ? FR_HOLD_VOID : FR_HOLD_HELD;
        if (skipped) continue;
        pool->free--;
        leave_queue(pool, l->index);
        serve(p, pool, l);
    }
    return true;
}

void fr_play_free_slots(fr_player *p, fr_play_lane *l, const fr_op *op) {
    const fr_fragment *f = l->run->f;
    const fr_ref *u = fr_op_uses(f, op);
    for (uint32_t i = 0; i < op->uses; i++) {
        if (u[i].use != FR_USE_FREE || p->plan->buffers[u[i].target].slots <= 0) continue;
        fr_pool *pool = &p->pools[u[i].target];
        uint8_t *hold = hold_of(pool, u[i].value);
        if (!hold || (*hold != FR_HOLD_HELD && *hold != FR_HOLD_VOID)) {
            fr_fail(&p->broken, FR_FAILED, "plan: hold %u of pool %s (rank %d) is freed but not held",
                    (unsigned)u[i].value, p->plan->buffers[u[i].target].name, p->plan->buffers[u[i].target].rank);
            continue;
        }
        bool held = *hold == FR_HOLD_HELD;
        *hold = FR_HOLD_FREED;
        forget_old(pool);
        if (!held) continue;
        pool->free++;
        serve(p, pool, l);
        for (uint32_t i2 = 0; i2 < p->lanes_count; i2++) { /* first-ready lanes look again */
            fr_play_lane *other = &p->lanes[i2];
            if (!other->starved || other->listed) continue;
            other->starved = false;
            other->listed = true;
            p->choosers[p->choosers_n++] = i2;
        }
    }
}

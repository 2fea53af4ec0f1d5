/*
 * plan_order: which ops of a plan must have ended before which others may start, for any durations. The part of
 * plan_check that knows lanes, counters and groups; no buffers except as back-pressure of pools.
 *
 * Counters only grow, so the ops that can run while one op is held back are found by running everything else as far as
 * it goes: what stays behind is exactly what comes after it. Holding back the ops of one chain (an in-order lane, or an
 * item of a first-ready lane) one after the other gives, in one run of O(ops + waits), the number of ops of that chain
 * that every op needs: one entry of its vector clock. Rows are computed when first asked for.
 *
 * Items of a first-ready lane count as independent of each other here; pools whose acquires all stand on one in-order
 * lane and are never skipped are counters of freed slots; other pools do not order anything. Both only leave out
 * orders, so what is called ordered is ordered.
 */
#ifndef FR_PLAN_ORDER_H
#define FR_PLAN_ORDER_H

#include "engine/plan/plan.h"

/* All uses of one hold of a pool. `uses` are indices into fr_order.hold_uses. Ops are global: fragments one after
 * another. */
typedef struct {
    uint32_t pool, hold;
    uint32_t acquire, free; /* op or FR_NONE */
    uint32_t first, count;  /* reads and writes in hold_uses */
    bool is_void;           /* acquired by an op that is skipped for certain: no use of it happens */
} fr_hold;

typedef struct {
    uint32_t pool, hold, op;
    fr_use use;
} fr_hold_use;

typedef struct {
    uint32_t event, at_least, node;
} fr_waiter;

/* Who waits for and raises what, by node; events beyond the plan's are the freed slots of pool (event - events_count).
 */
typedef struct {
    uint32_t *missing;            /* conditions per node: lane predecessors and waits */
    uint32_t *raises_at, *raises; /* per node */
    uint32_t *waiters_at;         /* per event, sorted by at_least */
    fr_waiter *waiters;
    uint32_t waiters_count, waiters_cap;
} fr_order_system;

typedef enum { FR_POOL_UNUSED = 0, FR_POOL_COUNTER, FR_POOL_LATE_COUNTER, FR_POOL_RACING } fr_pool_kind;

typedef struct {
    const fr_plan *plan;
    fr_fragment *const *fragments;
    int count;
    uint32_t ops, nodes, chains;
    /* per op */
    uint32_t *fragment_of, *local, *node_of, *chain_of, *index_in, *successor, *next_member;
    uint32_t *first_member;           /* per node: an op; the members of a group op are one node */
    uint32_t *sequence, *position;    /* an order in which all nodes can run, and each node's place in it */
    uint32_t *item_first, *item_last; /* per chain: ops; of in-order lanes too */
    fr_hold *holds;
    uint32_t holds_count, holds_cap;
    fr_hold_use *hold_uses;
    uint32_t hold_uses_count, hold_uses_cap;
    uint8_t *pool_kind; /* per buffer, fr_pool_kind */
    fr_order_system system;
    uint32_t **rows; /* per chain: how many of its ops each node needs */
    uint32_t *missing, *counters, *pointers, *stack;
} fr_order;

/* Builds the order, checking on the way: items, group membership and order, holds acquired and freed once, waits that
 * can be met, and that everything runs to its end (no deadlock but those of first-ready lanes and racing pools). */
fr_status fr_order_new(const fr_plan *p, fr_fragment *const *fragments, int count, fr_order **out, fr_error *err);
void fr_order_free(fr_order *o);

/* True when node a has ended before node b starts, whatever the durations. */
bool fr_order_before(fr_order *o, uint32_t a, uint32_t b);

/* Makes nodes of ops and collectives, checking membership and order of groups (plan_groups.c). Chains are built. */
fr_status fr_order_build_nodes(fr_order *o, fr_error *err);
uint32_t *fr_order_array(size_t count); /* zeroed */

/* Shows that first-ready lanes and racing pools cannot bring ops to a stand (plan_resources.c). */
fr_status fr_order_check_resources(fr_order *o, fr_error *err);

const fr_op *fr_order_op(const fr_order *o, uint32_t op);
const char *fr_order_name(const fr_order *o, uint32_t op, char out[48]); /* structural id; returns out */
bool fr_order_skipped(const fr_order *o, uint32_t op);                   /* for certain: empty, and not late */

#endif

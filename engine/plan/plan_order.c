#include "engine/plan/plan_order.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const fr_op *fr_order_op(const fr_order *o, uint32_t op) {
    return &o->fragments[o->fragment_of[op]]->ops[o->local[op]];
}

const char *fr_order_name(const fr_order *o, uint32_t op, char out[48]) {
    fr_op_id_text(fr_op_id(o->plan, o->fragments[o->fragment_of[op]], fr_order_op(o, op)), out);
    return out;
}

bool fr_order_skipped(const fr_order *o, uint32_t op) {
    const fr_op *x = fr_order_op(o, op);
    return x->late == FR_NONE && o->fragments[o->fragment_of[op]]->shapes[x->shape].kind == FR_OP_NONE;
}

uint32_t *fr_order_array(size_t count) {
    return fr_alloc((count + 1) * sizeof(uint32_t));
}

static const fr_ref *uses_of(const fr_order *o, uint32_t op) {
    return fr_op_uses(o->fragments[o->fragment_of[op]], fr_order_op(o, op));
}

/* ---- chains ------------------------------------------------------------------------------------------------------ */

/* Puts the op at the end of its lane's chain, or of a new chain where an item starts. */
static fr_status chain_op(fr_order *o, uint32_t *chain_now, uint32_t op, bool first_in_fragment, fr_error *err) {
    const fr_op *x = fr_order_op(o, op);
    char name[48];
    bool ready_lane = o->plan->lanes[x->lane].first_ready;
    if (ready_lane && first_in_fragment && !(x->flags & FR_OP_ITEM))
        return fr_fail(err, FR_FAILED,
                       "item: %s is the first op of its fragment on first-ready lane %u but starts no "
                       "item; flag it FR_OP_ITEM",
                       fr_order_name(o, op, name), x->lane);
    if (ready_lane && x->group != FR_NONE)
        return fr_fail(err, FR_FAILED,
                       "group order: %s meets group %u on first-ready lane %u, which has no fixed order",
                       fr_order_name(o, op, name), x->group, x->lane);
    if (ready_lane && (x->flags & FR_OP_ITEM)) chain_now[x->lane] = o->chains++;
    uint32_t c = chain_now[x->lane];
    o->chain_of[op] = c;
    if (o->item_first[c] == FR_NONE) {
        o->item_first[c] = op;
        o->index_in[op] = 0;
    } else {
        o->successor[o->item_last[c]] = op;
        o->index_in[op] = o->index_in[o->item_last[c]] + 1;
    }
    o->item_last[c] = op;
    return FR_OK;
}

static fr_status build_chains(fr_order *o, fr_error *err) {
    const fr_plan *p = o->plan;
    uint32_t *chain_now = fr_order_array(p->lanes_count), base = 0;
    fr_status status = FR_OK;
    for (uint32_t l = 0; l < p->lanes_count; l++) chain_now[l] = l;
    o->chains = p->lanes_count;
    for (int i = 0; i < o->count && status == FR_OK; i++) {
        const fr_fragment *f = o->fragments[i];
        for (uint32_t h = 0; h < f->heads_count && status == FR_OK; h++)
            for (uint32_t x = f->heads[h].first; x != FR_NONE && status == FR_OK; x = f->ops[x].next)
                status = chain_op(o, chain_now, base + x, x == f->heads[h].first, err);
        base += f->ops_count;
    }
    free(chain_now);
    return status;
}

/* ---- holds ------------------------------------------------------------------------------------------------------- */

static int compare_hold_uses(const void *a, const void *b) {
    const fr_hold_use *x = a, *y = b;
    if (x->pool != y->pool) return x->pool < y->pool ? -1 : 1;
    if (x->hold != y->hold) return x->hold < y->hold ? -1 : 1;
    if (x->op != y->op) return x->op < y->op ? -1 : 1;
    return (int)x->use - (int)y->use;
}

static fr_status add_to_hold(fr_order *o, fr_hold *h, const fr_hold_use *u, fr_error *err) {
    char name[48];
    uint32_t *at = u->use == FR_USE_ACQUIRE ? &h->acquire : &h->free;
    if (u->use == FR_USE_READ || u->use == FR_USE_WRITE) return FR_OK;
    if (*at != FR_NONE)
        return fr_fail(err, FR_FAILED, "pool: %s %s hold #%u of pool %u '%s' a second time",
                       fr_order_name(o, u->op, name), u->use == FR_USE_ACQUIRE ? "acquires" : "frees", h->hold, h->pool,
                       o->plan->buffers[h->pool].name);
    *at = u->op;
    if (u->use == FR_USE_ACQUIRE) h->is_void = fr_order_skipped(o, u->op);
    return FR_OK;
}

static fr_status build_holds(fr_order *o, fr_error *err) {
    for (uint32_t op = 0; op < o->ops; op++) {
        const fr_ref *r = uses_of(o, op);
        for (unsigned i = 0; i < fr_order_op(o, op)->uses; i++) {
            if (r[i].use > FR_USE_FREE) continue;
            if (!o->plan->buffers[r[i].target].slots) {
                char name[48];
                if (r[i].use == FR_USE_ACQUIRE || r[i].use == FR_USE_FREE)
                    return fr_fail(err, FR_FAILED, "pool: %s acquires or frees buffer %u '%s', which is no pool",
                                   fr_order_name(o, op, name), r[i].target, o->plan->buffers[r[i].target].name);
                continue;
            }
            FR_GROW(o->hold_uses, o->hold_uses_cap, o->hold_uses_count + 1);
            o->hold_uses[o->hold_uses_count++] = (fr_hold_use){r[i].target, r[i].value, op, (fr_use)r[i].use};
        }
    }
    if (o->hold_uses_count) qsort(o->hold_uses, o->hold_uses_count, sizeof *o->hold_uses, compare_hold_uses);
    for (uint32_t i = 0; i < o->hold_uses_count; i++) {
        const fr_hold_use *u = &o->hold_uses[i];
        fr_hold *h = o->holds_count ? &o->holds[o->holds_count - 1] : NULL;
        if (!h || h->pool != u->pool || h->hold != u->hold) {
            FR_GROW(o->holds, o->holds_cap, o->holds_count + 1);
            h = &o->holds[o->holds_count++];
            *h = (fr_hold){.pool = u->pool, .hold = u->hold, .acquire = FR_NONE, .free = FR_NONE, .first = i};
        }
        h->count++;
        FR_TRY(add_to_hold(o, h, u, err));
    }
    for (uint32_t i = 0; i < o->holds_count; i++) {
        const fr_hold *h = &o->holds[i];
        char name[48];
        if (h->acquire == FR_NONE && !o->plan->buffers[h->pool].outlives)
            return fr_fail(err, FR_FAILED, "pool: %s uses hold #%u of pool %u '%s', which no op acquires",
                           fr_order_name(o, o->hold_uses[h->first].op, name), h->hold, h->pool,
                           o->plan->buffers[h->pool].name);
    }
    return FR_OK;
}

static fr_hold *find_hold(const fr_order *o, uint32_t pool, uint32_t hold) {
    uint32_t low = 0, high = o->holds_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        const fr_hold *h = &o->holds[mid];
        if (h->pool < pool || (h->pool == pool && h->hold < hold))
            low = mid + 1;
        else
            high = mid;
    }
    return &o->holds[low];
}

/* A pool whose acquires all stand on one in-order lane is a counter of freed slots. */
static void classify_pools(fr_order *o) {
    uint32_t *lane = fr_order_array(o->plan->buffers_count);
    o->pool_kind = fr_alloc(o->plan->buffers_count);
    for (uint32_t i = 0; i < o->holds_count; i++) {
        const fr_hold *h = &o->holds[i];
        uint8_t *kind = &o->pool_kind[h->pool];
        if (h->acquire == FR_NONE) *kind = FR_POOL_RACING; /* acquired before what is checked: of unknown order */
        if (h->acquire == FR_NONE || h->is_void) continue;
        const fr_op *x = fr_order_op(o, h->acquire);
        bool other = *kind != FR_POOL_UNUSED && lane[h->pool] != x->lane;
        lane[h->pool] = x->lane;
        if (*kind == FR_POOL_RACING || other || o->plan->lanes[x->lane].first_ready)
            *kind = FR_POOL_RACING;
        else if (*kind == FR_POOL_LATE_COUNTER || x->late != FR_NONE)
            *kind = FR_POOL_LATE_COUNTER;
        else
            *kind = FR_POOL_COUNTER;
    }
    free(lane);
}

/* ---- the system of counters -------------------------------------------------------------------------------------- */

static int compare_waiters(const void *a, const void *b) {
    const fr_waiter *x = a, *y = b;
    if (x->event != y->event) return x->event < y->event ? -1 : 1;
    if (x->at_least != y->at_least) return x->at_least < y->at_least ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

static void add_waiter(fr_order_system *s, uint32_t event, uint32_t at_least, uint32_t node) {
    if (!at_least) return;
    FR_GROW(s->waiters, s->waiters_cap, s->waiters_count + 1);
    s->waiters[s->waiters_count++] = (fr_waiter){event, at_least, node};
    s->missing[node]++;
}

static bool counts(const fr_order *o, uint32_t pool, bool strict) {
    return o->pool_kind[pool] == FR_POOL_COUNTER || (strict && o->pool_kind[pool] == FR_POOL_LATE_COUNTER);
}

/* Calls for each raise of an op: its signals, and the slots of counted pools that it frees. Returns how many. */
static uint32_t raises_of(const fr_order *o, uint32_t op, bool strict, uint32_t *out) {
    const fr_op *x = fr_order_op(o, op);
    const fr_ref *s = fr_op_signals(o->fragments[o->fragment_of[op]], x), *u = uses_of(o, op);
    uint32_t n = 0;
    for (unsigned i = 0; i < x->signals; i++, n++)
        if (out) out[n] = s[i].target;
    for (unsigned i = 0; i < x->uses; i++) {
        if (u[i].use != FR_USE_FREE || !counts(o, u[i].target, strict)) continue;
        if (find_hold(o, u[i].target, u[i].value)->is_void) continue;
        if (out) out[n] = o->plan->events_count + u[i].target;
        n++;
    }
    return n;
}

static void waits_of(const fr_order *o, fr_order_system *s, uint32_t op, bool strict, uint32_t *acquired) {
    const fr_op *x = fr_order_op(o, op);
    const fr_ref *w = fr_op_waits(o->fragments[o->fragment_of[op]], x), *u = uses_of(o, op);
    uint32_t node = o->node_of[op];
    if (o->index_in[op] > 0) s->missing[node]++;
    for (unsigned i = 0; i < x->waits; i++) add_waiter(s, w[i].target, w[i].value, node);
    for (unsigned i = 0; i < x->uses; i++) {
        if (u[i].use != FR_USE_ACQUIRE || !counts(o, u[i].target, strict) || fr_order_skipped(o, op)) continue;
        uint32_t slots = (uint32_t)o->plan->buffers[u[i].target].slots, taken = ++acquired[u[i].target];
        if (taken > slots) add_waiter(s, o->plan->events_count + u[i].target, taken - slots, node);
    }
}

static void build_system(const fr_order *o, bool strict, fr_order_system *s) {
    uint32_t events = o->plan->events_count + o->plan->buffers_count, total = 0;
    uint32_t *acquired = fr_order_array(o->plan->buffers_count);
    *s = (fr_order_system){.missing = fr_order_array(o->nodes),
                           .raises_at = fr_order_array(o->nodes),
                           .waiters_at = fr_order_array(events)};
    for (uint32_t c = 0; c < o->chains; c++)
        for (uint32_t op = o->item_first[c]; op != FR_NONE; op = o->successor[op]) waits_of(o, s, op, strict, acquired);
    for (uint32_t op = 0; op < o->ops; op++) total += raises_of(o, op, strict, NULL);
    s->raises = fr_order_array(total);
    total = 0;
    for (uint32_t n = 0; n < o->nodes; n++) {
        s->raises_at[n] = total;
        for (uint32_t op = o->first_member[n]; op != FR_NONE; op = o->next_member[op])
            total += raises_of(o, op, strict, s->raises + total);
    }
    s->raises_at[o->nodes] = total;
    if (s->waiters_count) qsort(s->waiters, s->waiters_count, sizeof *s->waiters, compare_waiters);
    for (uint32_t e = 0, i = 0; e <= events; e++) {
        while (i < s->waiters_count && s->waiters[i].event < e) i++;
        s->waiters_at[e] = i;
    }
    free(acquired);
}

static void free_system(fr_order_system *s) {
    free(s->missing);
    free(s->raises_at);
    free(s->raises);
    free(s->waiters_at);
    free(s->waiters);
}

static void start_run(fr_order *o, const fr_order_system *s) {
    uint32_t events = o->plan->events_count + o->plan->buffers_count;
    memcpy(o->missing, s->missing, o->nodes * sizeof *o->missing);
    memset(o->counters, 0, events * sizeof *o->counters);
    memcpy(o->pointers, s->waiters_at, (events + 1) * sizeof *o->pointers);
}

/* Ends a node; pushes what may now start on the stack and returns the stack's new height. */
static uint32_t end_node(fr_order *o, const fr_order_system *s, uint32_t node, uint32_t height) {
    for (uint32_t op = o->first_member[node]; op != FR_NONE; op = o->next_member[op]) {
        uint32_t next = o->successor[op];
        if (next != FR_NONE && --o->missing[o->node_of[next]] == 0) o->stack[height++] = o->node_of[next];
    }
    for (uint32_t i = s->raises_at[node]; i < s->raises_at[node + 1]; i++) {
        uint32_t e = s->raises[i], now = ++o->counters[e];
        while (o->pointers[e] < s->waiters_at[e + 1] && s->waiters[o->pointers[e]].at_least <= now) {
            uint32_t waiter = s->waiters[o->pointers[e]++].node;
            if (--o->missing[waiter] == 0) o->stack[height++] = waiter;
        }
    }
    return height;
}

static uint32_t push_roots(fr_order *o) {
    uint32_t height = 0;
    for (uint32_t n = o->nodes; n-- > 0;)
        if (!o->missing[n]) o->stack[height++] = n;
    return height;
}

/* ---- running to the end ------------------------------------------------------------------------------------------ */

static fr_status waits_can_be_met(const fr_order *o, fr_error *err) {
    uint32_t *total = fr_order_array(o->plan->events_count);
    fr_status status = FR_OK;
    for (uint32_t op = 0; op < o->ops; op++) {
        const fr_op *x = fr_order_op(o, op);
        const fr_ref *s = fr_op_signals(o->fragments[o->fragment_of[op]], x);
        for (unsigned i = 0; i < x->signals; i++) total[s[i].target]++;
    }
    for (uint32_t op = 0; op < o->ops && status == FR_OK; op++) {
        const fr_op *x = fr_order_op(o, op);
        const fr_ref *w = fr_op_waits(o->fragments[o->fragment_of[op]], x);
        char name[48];
        for (unsigned i = 0; i < x->waits && status == FR_OK; i++)
            if (w[i].value > total[w[i].target])
                status =
                    fr_fail(err, FR_FAILED, "wait: %s waits for event %u '%s' >= %u, which is raised %u times only",
                            fr_order_name(o, op, name), w[i].target, o->plan->events[w[i].target].name, w[i].value,
                            total[w[i].target]);
    }
    free(total);
    return status;
}

/* Names an op that can never start although the ops before it on its lanes have ended, and what it waits for. */
static fr_status fail_stuck(const fr_order *o, const fr_order_system *s, fr_error *err) {
    char name[48];
    uint32_t events = o->plan->events_count;
    for (uint32_t i = 0; i < s->waiters_count; i++) {
        const fr_waiter *w = &s->waiters[i];
        if (o->counters[w->event] >= w->at_least) continue;
        bool reached = true;
        for (uint32_t op = o->first_member[w->node]; op != FR_NONE; op = o->next_member[op]) {
            if (!o->index_in[op]) continue;
            uint32_t before = o->item_first[o->chain_of[op]];
            while (o->successor[before] != op) before = o->successor[before];
            reached = reached && o->position[o->node_of[before]] != FR_NONE;
        }
        if (!reached) continue;
        fr_order_name(o, o->first_member[w->node], name);
        if (w->event < events)
            return fr_fail(
                err, FR_FAILED,
                "deadlock: %s waits for event %u '%s' >= %u, which stays at %u: its raisers wait for that op", name,
                w->event, o->plan->events[w->event].name, w->at_least, o->counters[w->event]);
        return fr_fail(
            err, FR_FAILED, "deadlock: %s waits for a free slot of pool %u '%s': slot %u of %u to be freed never is",
            name, w->event - events, o->plan->buffers[w->event - events].name, w->at_least, o->counters[w->event] + 1);
    }
    for (uint32_t op = 0; op < o->ops; op++)
        if (o->position[o->node_of[op]] == FR_NONE)
            return fr_fail(err, FR_FAILED,
                           "deadlock: %s never starts: lanes and groups wait for each other in a circle",
                           fr_order_name(o, op, name));
    return FR_OK;
}

static fr_status run_to_the_end(fr_order *o, fr_error *err) {
    fr_order_system strict;
    fr_status status = FR_OK;
    build_system(o, true, &strict);
    start_run(o, &strict);
    memset(o->position, 0xff, o->nodes * sizeof *o->position);
    uint32_t height = push_roots(o), done = 0;
    while (height) {
        uint32_t node = o->stack[--height];
        o->position[node] = done;
        o->sequence[done++] = node;
        height = end_node(o, &strict, node, height);
    }
    if (done < o->nodes) status = fail_stuck(o, &strict, err);
    free_system(&strict);
    return status;
}

/* One row of the vector clocks: runs everything while the ops of chain c end only when nothing else can move. */
static uint32_t *compute_row(fr_order *o, uint32_t c) {
    const fr_order_system *s = &o->system;
    uint32_t *row = fr_order_array(o->nodes), ended = 0, held = FR_NONE;
    /* which nodes stand on the chain: marked by a row value that no clock reaches */
    for (uint32_t op = o->item_first[c]; op != FR_NONE; op = o->successor[op]) row[o->node_of[op]] = FR_NONE;
    start_run(o, s);
    uint32_t height = push_roots(o);
    for (;;) {
        while (height) {
            uint32_t node = o->stack[--height];
            if (row[node] == FR_NONE) {
                held = node;
                continue;
            }
            row[node] = ended;
            height = end_node(o, s, node, height);
        }
        if (held == FR_NONE) break;
        uint32_t node = held;
        held = FR_NONE;
        row[node] = ended++;
        height = end_node(o, s, node, height);
    }
    return row;
}

bool fr_order_before(fr_order *o, uint32_t a, uint32_t b) {
    if (a == b || o->position[a] > o->position[b]) return false;
    uint32_t op = o->first_member[a], c = o->chain_of[op];
    if (!o->rows[c]) o->rows[c] = compute_row(o, c);
    return o->rows[c][b] > o->index_in[op];
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void allocate(fr_order *o) {
    uint32_t op = 0, events = o->plan->events_count + o->plan->buffers_count;
    for (int i = 0; i < o->count; i++) o->ops += o->fragments[i]->ops_count;
    uint32_t **arrays[] = {&o->fragment_of, &o->local,        &o->node_of,  &o->chain_of, &o->index_in, &o->successor,
                           &o->next_member, &o->first_member, &o->sequence, &o->position, &o->missing,  &o->stack};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) *arrays[i] = fr_order_array(o->ops);
    memset(o->successor, 0xff, o->ops * sizeof *o->successor);
    memset(o->next_member, 0xff, o->ops * sizeof *o->next_member);
    o->counters = fr_order_array(events);
    o->pointers = fr_order_array(events);
    size_t chains = (size_t)o->plan->lanes_count + o->ops;
    o->item_first = fr_order_array(chains);
    o->item_last = fr_order_array(chains);
    memset(o->item_first, 0xff, chains * sizeof *o->item_first);
    o->rows = fr_alloc((chains + 1) * sizeof *o->rows);
    for (int i = 0; i < o->count; i++)
        for (uint32_t x = 0; x < o->fragments[i]->ops_count; x++, op++) {
            o->fragment_of[op] = (uint32_t)i;
            o->local[op] = x;
        }
}

static fr_status build(fr_order *o, fr_error *err) {
    allocate(o);
    FR_TRY(build_chains(o, err));
    FR_TRY(fr_order_build_nodes(o, err));
    FR_TRY(build_holds(o, err));
    classify_pools(o);
    FR_TRY(waits_can_be_met(o, err));
    FR_TRY(run_to_the_end(o, err));
    build_system(o, false, &o->system);
    return FR_OK;
}

fr_status fr_order_new(const fr_plan *p, fr_fragment *const *fragments, int count, fr_order **out, fr_error *err) {
    fr_order *o = fr_alloc(sizeof *o);
    o->plan = p;
    o->fragments = fragments;
    o->count = count;
    fr_status status = build(o, err);
    if (status == FR_OK)
        *out = o;
    else
        fr_order_free(o);
    return status;
}

void fr_order_free(fr_order *o) {
    if (!o) return;
    uint32_t *arrays[] = {o->fragment_of, o->local,        o->node_of,    o->chain_of, o->index_in, o->successor,
                          o->next_member, o->first_member, o->sequence,   o->position, o->missing,  o->stack,
                          o->counters,    o->pointers,     o->item_first, o->item_last};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    for (uint32_t c = 0; c < o->plan->lanes_count + o->ops; c++) free(o->rows[c]);
    free(o->rows);
    free(o->holds);
    free(o->hold_uses);
    free(o->pool_kind);
    free_system(&o->system);
    free(o);
}

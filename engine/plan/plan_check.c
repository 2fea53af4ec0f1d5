#include "engine/plan/plan_order.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- ops by themselves ------------------------------------------------------------------------------------------- */

static int compare_ids(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Timelines are joined by id, so two ops must not share one. */
static fr_status check_ids(const fr_order *o, fr_error *err) {
    uint64_t *ids = fr_alloc((o->ops + 1) * sizeof *ids);
    fr_status status = FR_OK;
    char name[48];
    for (uint32_t i = 0; i < o->ops && status == FR_OK; i++) {
        const fr_op *op = fr_order_op(o, i);
        ids[i] = fr_op_id(o->plan, o->fragments[o->fragment_of[i]], op);
        if (op->sub > 0x3ff)
            status = fr_fail(err, FR_FAILED, "id: %s has sub %u, more than an id holds (1023)",
                             fr_order_name(o, i, name), op->sub);
    }
    qsort(ids, o->ops, sizeof *ids, compare_ids);
    for (uint32_t i = 1; i < o->ops && status == FR_OK; i++)
        if (ids[i] == ids[i - 1]) {
            fr_op_id_text(ids[i], name);
            status = fr_fail(err, FR_FAILED, "id: two ops are called %s; tell them apart by sub or micro", name);
        }
    free(ids);
    return status;
}

static fr_status check_late_op(const fr_order *o, uint32_t i, fr_error *err) {
    const fr_op *op = fr_order_op(o, i);
    const fr_fragment *f = o->fragments[o->fragment_of[i]];
    const fr_shape *shape = &f->shapes[op->shape], *bound = &f->shapes[op->bound];
    char name[48];
    if (shape->m > bound->m || shape->bytes > bound->bytes)
        return fr_fail(err, FR_FAILED,
                       "late: %s has m=%" PRId64 " bytes=%" PRId64 ", above its bound m=%" PRId64 " bytes=%" PRId64,
                       fr_order_name(o, i, name), shape->m, shape->bytes, bound->m, bound->bytes);
    return FR_OK;
}

static fr_status check_ops(const fr_order *o, fr_error *err) {
    for (uint32_t i = 0; i < o->ops; i++) {
        const fr_op *op = fr_order_op(o, i);
        const fr_ref *u = fr_op_uses(o->fragments[o->fragment_of[i]], op);
        char name[48];
        if (op->late != FR_NONE) FR_TRY(check_late_op(o, i, err));
        for (unsigned k = 0; k < op->uses; k++)
            if (u[k].use == FR_USE_READ_TABLE &&
                (op->kind != FR_OP_READBACK || o->plan->lanes[op->lane].kind != FR_LANE_HOST))
                return fr_fail(err, FR_FAILED,
                               "late: %s reads table %u '%s' back, but is no readback op on a host lane",
                               fr_order_name(o, i, name), u[k].target, o->plan->tables[u[k].target].name);
    }
    return check_ids(o, err);
}

/* ---- holds of pools ---------------------------------------------------------------------------------------------- */

static bool same_or_before(fr_order *o, uint32_t a, uint32_t b) {
    return a == b || fr_order_before(o, a, b);
}

static fr_status fail_hold(const fr_order *o, const fr_hold *h, uint32_t op, const char *what, uint32_t other,
                           fr_error *err) {
    char a[48], b[48] = "";
    if (other != FR_NONE) fr_order_name(o, other, b);
    return fr_fail(err, FR_FAILED, "pool: %s %s%s%s (hold #%u of pool %u '%s')", fr_order_name(o, op, a), what,
                   other != FR_NONE ? " " : "", b, h->hold, h->pool, o->plan->buffers[h->pool].name);
}

/* A read needs a write before it; a write that is not ordered to one side of it may overlap. */
static fr_status check_hold_read(fr_order *o, const fr_hold *h, uint32_t op, fr_error *err) {
    uint32_t read = o->node_of[op];
    bool written = o->plan->buffers[h->pool].outlives;
    for (uint32_t i = h->first; i < h->first + h->count; i++) {
        if (o->hold_uses[i].use != FR_USE_WRITE) continue;
        uint32_t write = o->node_of[o->hold_uses[i].op];
        if (fr_order_before(o, write, read))
            written = true;
        else if (write != read && !fr_order_before(o, read, write))
            return fail_hold(o, h, op, "may read while it is written by", o->hold_uses[i].op, err);
    }
    return written ? FR_OK : fail_hold(o, h, op, "reads what no op wrote before", FR_NONE, err);
}

static fr_status check_hold(fr_order *o, const fr_hold *h, fr_error *err) {
    uint32_t acquire = h->acquire == FR_NONE ? FR_NONE : o->node_of[h->acquire];
    uint32_t end = h->free == FR_NONE ? FR_NONE : o->node_of[h->free];
    for (uint32_t i = h->first; i < h->first + h->count; i++)
        if (o->hold_uses[i].use == FR_USE_READ) FR_TRY(check_hold_read(o, h, o->hold_uses[i].op, err));
    if (acquire != FR_NONE && end != FR_NONE && !same_or_before(o, acquire, end))
        return fail_hold(o, h, h->free, "may free the slot before it is acquired by", h->acquire, err);
    for (uint32_t i = h->first; i < h->first + h->count; i++) {
        const fr_hold_use *u = &o->hold_uses[i];
        uint32_t node = o->node_of[u->op];
        if (u->use != FR_USE_READ && u->use != FR_USE_WRITE) continue;
        if (acquire != FR_NONE && !same_or_before(o, acquire, node))
            return fail_hold(o, h, u->op, "may touch the slot before it is acquired by", h->acquire, err);
        if (end != FR_NONE && !same_or_before(o, node, end))
            return fail_hold(o, h, u->op, "may still use the slot when it is freed by", h->free, err);
    }
    return FR_OK;
}

/* ---- plain buffers and tables: all conflicting accesses in one order --------------------------------------------- */

typedef struct {
    uint32_t object; /* buffers, then tables on the device, then the host's copies of tables */
    uint32_t position, node, op;
    bool reads, writes;
} access;

typedef struct {
    access *list;
    uint32_t count, capacity;
} accesses;

static void add_access(const fr_order *o, accesses *a, uint32_t object, uint32_t op, bool writes) {
    FR_GROW(a->list, a->capacity, a->count + 1);
    a->list[a->count++] = (access){object, o->position[o->node_of[op]], o->node_of[op], op, !writes, writes};
}

static void collect(const fr_order *o, uint32_t i, accesses *a) {
    const fr_plan *p = o->plan;
    const fr_op *op = fr_order_op(o, i);
    const fr_ref *u = fr_op_uses(o->fragments[o->fragment_of[i]], op);
    uint32_t tables = p->buffers_count, copies = tables + p->tables_count;
    if (op->late != FR_NONE) add_access(o, a, tables + op->late, i, false);
    if (op->late != FR_NONE && p->tables[op->late].known_to == FR_KNOWN_HOST)
        add_access(o, a, copies + op->late, i, false);
    for (unsigned k = 0; k < op->uses; k++) {
        if (u[k].use == FR_USE_FILL) add_access(o, a, tables + u[k].target, i, true);
        if (u[k].use == FR_USE_READ_TABLE) {
            add_access(o, a, tables + u[k].target, i, false);
            add_access(o, a, copies + u[k].target, i, true);
        }
        if (u[k].use <= FR_USE_WRITE && !p->buffers[u[k].target].slots)
            add_access(o, a, u[k].target, i, u[k].use == FR_USE_WRITE);
    }
}

static int compare_accesses(const void *a, const void *b) {
    const access *x = a, *y = b;
    if (x->object != y->object) return x->object < y->object ? -1 : 1;
    if (x->position != y->position) return x->position < y->position ? -1 : 1;
    return x->op < y->op ? -1 : x->op > y->op;
}

/* Reads and writes of one object by one node (an op, or the members of a collective) become one access. */
static void merge_accesses(accesses *a) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < a->count; i++) {
        access *last = kept ? &a->list[kept - 1] : NULL;
        if (last && last->object == a->list[i].object && last->node == a->list[i].node) {
            last->reads = last->reads || a->list[i].reads;
            last->writes = last->writes || a->list[i].writes;
        } else
            a->list[kept++] = a->list[i];
    }
    a->count = kept;
}

static void object_text(const fr_plan *p, uint32_t object, char *out, size_t size) {
    if (object < p->buffers_count)
        snprintf(out, size, "buffer %u '%s'", object, p->buffers[object].name);
    else if ((object -= p->buffers_count) < p->tables_count)
        snprintf(out, size, "table %u '%s'", object, p->tables[object].name);
    else
        snprintf(out, size, "the host's copy of table %u '%s'", object - p->tables_count,
                 p->tables[object - p->tables_count].name);
}

static fr_status fail_race(const fr_order *o, const access *x, const access *y, fr_error *err) {
    char a[48], b[48], object[96];
    object_text(o->plan, x->object, object, sizeof object);
    return fr_fail(err, FR_FAILED, "race: %s %s %s and %s %s it, and nothing orders them", fr_order_name(o, x->op, a),
                   x->writes ? "writes" : "reads", object, fr_order_name(o, y->op, b), y->writes ? "writes" : "reads");
}

static fr_status fail_unwritten(const fr_order *o, const access *x, fr_error *err) {
    char a[48], object[96];
    const fr_plan *p = o->plan;
    object_text(p, x->object, object, sizeof object);
    if (x->object < p->buffers_count)
        return fr_fail(err, FR_FAILED, "read before write: %s reads %s, and no write comes before it",
                       fr_order_name(o, x->op, a), object);
    if (x->object < p->buffers_count + p->tables_count)
        return fr_fail(err, FR_FAILED, "late: %s needs %s, and no op fills it before", fr_order_name(o, x->op, a),
                       object);
    return fr_fail(err, FR_FAILED, "late: %s needs %s, and no readback comes before it", fr_order_name(o, x->op, a),
                   object);
}

static bool needs_a_write(const fr_plan *p, uint32_t object) {
    if (object >= p->buffers_count) return true;
    const fr_buffer *b = &p->buffers[object];
    return b->kind != FR_BUF_WEIGHTS && b->kind != FR_BUF_HOST && !b->outlives;
}

/*
 * In an order in which all ops can run: each read against the last write, each write against the last write and the
 * reads since. That all other conflicting pairs are ordered follows, as "before" is transitive.
 */
static fr_status check_sweep(fr_order *o, const access *a, uint32_t count, fr_error *err) {
    uint32_t write = FR_NONE, reads = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (write == FR_NONE && a[i].reads && needs_a_write(o->plan, a[i].object)) return fail_unwritten(o, &a[i], err);
        if (write != FR_NONE && !fr_order_before(o, a[write].node, a[i].node))
            return fail_race(o, &a[write], &a[i], err);
        if (!a[i].writes) continue;
        for (uint32_t r = reads; r < i; r++)
            if (!fr_order_before(o, a[r].node, a[i].node)) return fail_race(o, &a[r], &a[i], err);
        write = i;
        reads = i + 1;
    }
    return FR_OK;
}

static bool first_ready(const fr_order *o, uint32_t op) {
    return o->plan->lanes[fr_order_op(o, op)->lane].first_ready;
}

/* Items of one lane never overlap, so what each writes before it reads is safe without an order. */
static bool written_in_item(fr_order *o, const access *a, uint32_t count, const access *read) {
    for (uint32_t i = 0; i < count; i++)
        if (a[i].writes && o->chain_of[a[i].op] == o->chain_of[read->op] && fr_order_before(o, a[i].node, read->node))
            return true;
    return false;
}

static bool exclusive(fr_order *o, const access *a, uint32_t count, const access *x, const access *y) {
    if (!first_ready(o, x->op) || fr_order_op(o, x->op)->lane != fr_order_op(o, y->op)->lane) return false;
    return (!x->reads || written_in_item(o, a, count, x)) && (!y->reads || written_in_item(o, a, count, y));
}

/* With items the order is not total: every pair. */
static fr_status check_pairs(fr_order *o, const access *a, uint32_t count, fr_error *err) {
    for (uint32_t i = 0; i < count; i++) {
        bool written = !a[i].reads || !needs_a_write(o->plan, a[i].object);
        for (uint32_t j = 0; j < count && !written; j++)
            written = a[j].writes && fr_order_before(o, a[j].node, a[i].node);
        if (!written) return fail_unwritten(o, &a[i], err);
        for (uint32_t j = 0; j < i; j++)
            if ((a[i].writes || a[j].writes) && !fr_order_before(o, a[j].node, a[i].node) &&
                !exclusive(o, a, count, &a[i], &a[j]))
                return fail_race(o, &a[j], &a[i], err);
    }
    return FR_OK;
}

static fr_status check_accesses(fr_order *o, fr_error *err) {
    accesses a = {0};
    fr_status status = FR_OK;
    for (uint32_t i = 0; i < o->ops; i++) collect(o, i, &a);
    if (a.count) qsort(a.list, a.count, sizeof *a.list, compare_accesses);
    merge_accesses(&a);
    for (uint32_t i = 0, end; i < a.count && status == FR_OK; i = end) {
        bool items = false;
        for (end = i; end < a.count && a.list[end].object == a.list[i].object; end++)
            items = items || first_ready(o, a.list[end].op);
        status = (items ? check_pairs : check_sweep)(o, a.list + i, end - i, err);
    }
    free(a.list);
    return status;
}

fr_status fr_plan_check(const fr_plan *p, fr_fragment *const *fragments, int count, fr_error *err) {
    fr_order *o = NULL;
    FR_TRY(fr_order_new(p, fragments, count, &o, err));
    fr_status status = check_ops(o, err);
    for (uint32_t i = 0; i < o->holds_count && status == FR_OK; i++)
        if (!o->holds[i].is_void) status = check_hold(o, &o->holds[i], err);
    if (status == FR_OK) status = check_accesses(o, err);
    if (status == FR_OK) status = fr_order_check_resources(o, err);
    fr_order_free(o);
    return status;
}

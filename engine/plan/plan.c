#include "engine/plan/plan.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(FR_OP_KIND_COUNT <= 64, "fr_op_id keeps the kind in 6 bits");

/* ---- static part -------------------------------------------------------------------------------------------------
 */

fr_plan *fr_plan_new(int ranks, int real_ranks) {
    assert(ranks >= 1 && real_ranks >= ranks && real_ranks % ranks == 0);
    fr_plan *p = fr_alloc(sizeof *p);
    p->ranks = ranks;
    p->real_ranks = real_ranks;
    p->fold = real_ranks / ranks;
    return p;
}

static void fragment_destroy(fr_fragment *f) {
    free(f->ops);
    free(f->shapes);
    free(f->refs);
    free(f->pairs);
    free(f->heads);
    free(f->head_of);
    free(f);
}

void fr_plan_free(fr_plan *p) {
    if (!p) return;
    for (fr_fragment *f = p->spare, *next; f; f = next) {
        next = f->spare;
        fragment_destroy(f);
    }
    free(p->lanes);
    free(p->events);
    free(p->buffers);
    free(p->groups);
    free(p->members);
    free(p->tables);
    free(p);
}

static void *copy_of(const void *from, uint32_t count, size_t size) {
    void *to = fr_alloc((count + 1) * size);
    if (count) memcpy(to, from, count * size);
    return to;
}

fr_plan *fr_plan_static(const fr_plan *p) {
    fr_plan *copy = fr_alloc(sizeof *copy);
    *copy = *p;
    copy->spare = NULL;
#define COPY(array)                                                                                                    \
    copy->array = copy_of(p->array, p->array##_count, sizeof *p->array);                                               \
    copy->array##_cap = p->array##_count
    COPY(lanes);
    COPY(events);
    COPY(buffers);
    COPY(groups);
    COPY(members);
    COPY(tables);
#undef COPY
    return copy;
}

uint32_t fr_plan_lane(fr_plan *p, int rank, fr_lane_kind kind, const char *name, bool first_ready) {
    assert(rank >= 0 && rank < p->ranks && kind < FR_LANE_KINDS);
    if (p->lanes_count == FR_MOST_LANES) {
        p->crowded = true;
        return p->lanes_count - 1;
    }
    FR_GROW(p->lanes, p->lanes_cap, p->lanes_count + 1);
    fr_lane *l = &p->lanes[p->lanes_count];
    *l = (fr_lane){.rank = (int16_t)rank, .kind = (uint8_t)kind, .first_ready = first_ready};
    snprintf(l->name, sizeof l->name, "%s", name);
    return p->lanes_count++;
}

uint32_t fr_plan_event(fr_plan *p, int rank, const char *name) {
    assert(rank >= 0 && rank < p->ranks && p->events_count < 1u << 28);
    FR_GROW(p->events, p->events_cap, p->events_count + 1);
    fr_event *e = &p->events[p->events_count];
    *e = (fr_event){.rank = (int16_t)rank};
    snprintf(e->name, sizeof e->name, "%s", name);
    return p->events_count++;
}

uint32_t fr_plan_buffer(fr_plan *p, int rank, fr_buffer_kind kind, const char *name, int64_t bytes, int slots,
                        bool outlives) {
    assert(rank >= 0 && rank < p->ranks && kind < FR_BUF_KINDS && bytes >= 0 && slots >= 0);
    assert(p->buffers_count < 1u << 28);
    FR_GROW(p->buffers, p->buffers_cap, p->buffers_count + 1);
    fr_buffer *b = &p->buffers[p->buffers_count];
    *b =
        (fr_buffer){.rank = (int16_t)rank, .kind = (uint8_t)kind, .outlives = outlives, .slots = slots, .bytes = bytes};
    snprintf(b->name, sizeof b->name, "%s", name);
    return p->buffers_count++;
}

uint32_t fr_plan_group(fr_plan *p, const int16_t *ranks, int count, int size) {
    assert(count >= 1 && size >= count);
    FR_GROW(p->groups, p->groups_cap, p->groups_count + 1);
    FR_GROW(p->members, p->members_cap, p->members_count + (uint32_t)count);
    memcpy(p->members + p->members_count, ranks, (size_t)count * sizeof *ranks);
    p->groups[p->groups_count] = (fr_group){.first = p->members_count, .count = count, .size = size};
    p->members_count += (uint32_t)count;
    return p->groups_count++;
}

uint32_t fr_plan_table(fr_plan *p, int rank, const char *name, int64_t bound, fr_known_to known_to) {
    assert(rank >= 0 && rank < p->ranks && bound >= 0 && p->tables_count < 1u << 28);
    FR_GROW(p->tables, p->tables_cap, p->tables_count + 1);
    fr_late_table *t = &p->tables[p->tables_count];
    *t = (fr_late_table){.rank = (int16_t)rank, .known_to = (uint8_t)known_to, .bound = bound};
    snprintf(t->name, sizeof t->name, "%s", name);
    return p->tables_count++;
}

/* ---- fragments: the simulator builds as many ops as it plays, so no allocation per op or per fragment once warm ----
 */

/* All lanes of the plan as it now is; new entries are zero. */
static void grow_head_of(fr_fragment *f) {
    uint32_t need = f->plan->lanes_count;
    f->head_of = fr_realloc(f->head_of, need, sizeof *f->head_of);
    memset(f->head_of + f->head_of_cap, 0, (need - f->head_of_cap) * sizeof *f->head_of);
    f->head_of_cap = need;
}

fr_fragment *fr_fragment_new(fr_plan *p, int unit) {
    fr_fragment *f = p->spare;
    if (f)
        p->spare = f->spare;
    else
        f = fr_alloc(sizeof *f);
    f->plan = p;
    if (f->head_of_cap < p->lanes_count) grow_head_of(f);
    f->spare = NULL;
    f->forward = p->forwards++;
    f->unit = unit;
    FR_GROW(f->shapes, f->shapes_cap, 1);
    f->shapes[0] = (fr_shape){.kind = FR_OP_NONE};
    f->shapes_count = 1;
    return f;
}

void fr_fragment_free(fr_fragment *f) {
    if (!f) return;
    for (uint32_t h = 0; h < f->heads_count; h++) f->head_of[f->heads[h].lane] = 0;
    f->ops_count = f->shapes_count = f->refs_count = f->pairs_count = f->heads_count = 0;
    f->executor = NULL;
    f->spare = f->plan->spare;
    f->plan->spare = f;
}

uint32_t fr_shape_add(fr_fragment *f, const fr_shape *s, const fr_pair *vector, uint32_t count) {
    FR_GROW(f->shapes, f->shapes_cap, f->shapes_count + 1);
    fr_shape *copy = &f->shapes[f->shapes_count];
    *copy = *s;
    copy->vector = f->pairs_count;
    copy->vector_count = count;
    if (count) {
        FR_GROW(f->pairs, f->pairs_cap, f->pairs_count + count);
        memcpy(f->pairs + f->pairs_count, vector, count * sizeof *vector);
        f->pairs_count += count;
    }
    return f->shapes_count++;
}

uint32_t fr_shape_like(fr_fragment *f, const fr_shape *s, uint32_t other) {
    const fr_shape *vector = &f->shapes[other];
    const uint32_t first = vector->vector, count = vector->vector_count, index = fr_shape_add(f, s, NULL, 0);
    f->shapes[index].vector = first;
    f->shapes[index].vector_count = count;
    return index;
}

static struct fr_lane_head *new_head(fr_fragment *f, uint32_t lane) {
    FR_GROW(f->heads, f->heads_cap, f->heads_count + 1);
    f->heads[f->heads_count] = (struct fr_lane_head){.lane = lane, .first = f->ops_count, .last = FR_NONE, .ops = 0};
    f->head_of[lane] = ++f->heads_count;
    return &f->heads[f->heads_count - 1];
}

fr_op *fr_emit(fr_fragment *f, uint32_t lane, fr_op_kind kind, uint32_t shape, int layer) {
    assert(kind != FR_OP_NONE && shape < f->shapes_count && layer >= 0 && layer <= FR_NO_LAYER);
    if (lane >= f->head_of_cap && f->plan->lanes_count > f->head_of_cap) grow_head_of(f);
    assert(lane < f->head_of_cap);
    uint32_t index = f->ops_count, have = f->head_of[lane];
    if (index == f->ops_cap) FR_GROW(f->ops, f->ops_cap, index + 1);
    struct fr_lane_head *head = have ? &f->heads[have - 1] : new_head(f, lane);
    if (head->last != FR_NONE) f->ops[head->last].next = index;
    head->last = index;
    head->ops++;
    f->ops_count = index + 1;
    fr_op *op = &f->ops[index];
    *op = (fr_op){.next = FR_NONE,
                  .shape = shape,
                  .bound = shape,
                  .refs = f->refs_count,
                  .group = FR_NONE,
                  .late = FR_NONE,
                  .lane = (uint16_t)lane,
                  .layer = (uint16_t)layer,
                  .peer = -1,
                  .kind = (uint8_t)kind};
    return op;
}

static inline fr_op *last_op(fr_fragment *f) {
    assert(f->ops_count > 0);
    return &f->ops[f->ops_count - 1];
}

/* Puts a reference at `at` of the last op's, moving what lies behind it: callers nearly always add in stored order. */
static inline void insert_ref(fr_fragment *f, uint32_t at, fr_ref r) {
    if (f->refs_count == f->refs_cap) FR_GROW(f->refs, f->refs_cap, f->refs_count + 1);
    for (uint32_t i = f->refs_count++; i > at; i--) f->refs[i] = f->refs[i - 1];
    f->refs[at] = r;
}

void fr_wait(fr_fragment *f, uint32_t event, uint32_t at_least) {
    fr_op *op = last_op(f);
    assert(op->waits < UINT8_MAX && event < f->plan->events_count);
    insert_ref(f, op->refs + op->waits, (fr_ref){.target = event & 0xfffffffu, .value = at_least});
    op->waits++;
}

void fr_signal(fr_fragment *f, uint32_t event) {
    fr_op *op = last_op(f);
    assert(op->signals < UINT8_MAX && event < f->plan->events_count);
    insert_ref(f, op->refs + op->waits + op->signals, (fr_ref){.target = event & 0xfffffffu, .value = 1});
    op->signals++;
}

static void add_use(fr_fragment *f, fr_use use, uint32_t target, uint32_t value) {
    fr_op *op = last_op(f);
    assert(op->uses < UINT8_MAX);
    insert_ref(f, f->refs_count, (fr_ref){.target = target & 0xfffffffu, .use = (unsigned)use & 15u, .value = value});
    op->uses++;
    if (use == FR_USE_ACQUIRE || use == FR_USE_FREE) op->flags |= FR_OP_POOL;
}

void fr_use_buffer(fr_fragment *f, fr_use use, uint32_t buffer, uint32_t hold) {
    assert(use <= FR_USE_FREE && buffer < f->plan->buffers_count);
    if (f->plan->bare && use != FR_USE_ACQUIRE && use != FR_USE_FREE) return;
    add_use(f, use, buffer, hold);
}

void fr_fill_table(fr_fragment *f, uint32_t table) {
    assert(table < f->plan->tables_count);
    if (f->plan->bare) return;
    add_use(f, FR_USE_FILL, table, 0);
}

void fr_read_table(fr_fragment *f, uint32_t table) {
    assert(table < f->plan->tables_count);
    if (f->plan->bare) return;
    add_use(f, FR_USE_READ_TABLE, table, 0);
}

void fr_meet(fr_fragment *f, uint32_t group, uint32_t seq) {
    assert(group < f->plan->groups_count);
    last_op(f)->group = group;
    last_op(f)->seq = seq;
}

void fr_late(fr_fragment *f, uint32_t table, uint32_t bound_shape) {
    assert(table < f->plan->tables_count && bound_shape < f->shapes_count);
    if (f->plan->bare) return;
    last_op(f)->late = table;
    last_op(f)->bound = bound_shape;
}

/* ---- ids and the golden text form -------------------------------------------------------------------------------- */

uint64_t fr_op_id(const fr_plan *p, const fr_fragment *f, const fr_op *op) {
    uint64_t rank = (uint64_t)p->lanes[op->lane].rank;
    return ((uint64_t)f->forward & 0xfffff) << 44 | (rank & 0x3ff) << 34 | ((uint64_t)op->layer & 0x3ff) << 24 |
           ((uint64_t)op->kind & 0x3f) << 18 | (uint64_t)op->micro << 10 | ((uint64_t)op->sub & 0x3ff);
}

void fr_op_id_text(uint64_t id, char out[48]) {
    unsigned layer = (unsigned)(id >> 24 & 0x3ff);
    char layer_text[8] = "-";
    if (layer != FR_NO_LAYER) snprintf(layer_text, sizeof layer_text, "%u", layer);
    snprintf(out, 48, "f%u.r%u.l%s.%s.m%u.s%u", (unsigned)(id >> 44), (unsigned)(id >> 34 & 0x3ff), layer_text,
             fr_op_name((fr_op_kind)(id >> 18 & 0x3f)), (unsigned)(id >> 10 & 0xff), (unsigned)(id & 0x3ff));
}

bool fr_op_id_parse(const char *text, uint64_t *id) {
    unsigned forward, rank, layer = FR_NO_LAYER, micro, sub;
    char layer_text[8], kind_text[24], again[48];
    if (sscanf(text, "f%7u.r%4u.l%7[0-9-].%23[a-z0-9_].m%3u.s%4u", &forward, &rank, layer_text, kind_text, &micro,
               &sub) != 6)
        return false;
    if (strcmp(layer_text, "-") != 0 && sscanf(layer_text, "%4u", &layer) != 1) return false;
    fr_op_kind kind = fr_op_by_name(kind_text);
    if (kind == FR_OP_KIND_COUNT || forward > 0xfffff || rank > 0x3ff || layer > 0x3ff || micro > 0xff || sub > 0x3ff)
        return false;
    *id = (uint64_t)forward << 44 | (uint64_t)rank << 34 | (uint64_t)layer << 24 | (uint64_t)kind << 18 |
          (uint64_t)micro << 10 | sub;
    fr_op_id_text(*id, again); /* nothing before, between or after */
    return strcmp(again, text) == 0;
}

static const char *const lane_names[FR_LANE_KINDS] = {"host", "compute", "comm", "copy", "h2d", "send", "recv"};
static const char *const buffer_names[FR_BUF_KINDS] = {"weights", "gather", "kv", "activation", "slot", "host"};
static const char *const use_names[] = {"read", "write", "acquire", "free", "fill", "readback"};

static void print_static(const fr_plan *p, fr_text *out) {
    fr_text_add(out, "plan ranks=%d real=%d fold=%d\n", p->ranks, p->real_ranks, p->fold);
    for (uint32_t i = 0; i < p->lanes_count; i++)
        fr_text_add(out, "lane %u r%d %s \"%s\"%s\n", i, p->lanes[i].rank, lane_names[p->lanes[i].kind],
                    p->lanes[i].name, p->lanes[i].first_ready ? " first-ready" : "");
    for (uint32_t i = 0; i < p->events_count; i++)
        fr_text_add(out, "event %u r%d \"%s\"\n", i, p->events[i].rank, p->events[i].name);
    for (uint32_t i = 0; i < p->buffers_count; i++) {
        const fr_buffer *b = &p->buffers[i];
        fr_text_add(out, "%s %u r%d %s \"%s\" bytes=%" PRId64, b->slots ? "pool" : "buffer", i, b->rank,
                    buffer_names[b->kind], b->name, b->bytes);
        if (b->slots) fr_text_add(out, " slots=%d", b->slots);
        fr_text_add(out, "%s\n", b->outlives ? " outlives" : "");
    }
    for (uint32_t i = 0; i < p->groups_count; i++) {
        fr_text_add(out, "group %u size=%d ranks=", i, p->groups[i].size);
        for (int32_t m = 0; m < p->groups[i].count; m++)
            fr_text_add(out, "%s%d", m ? "," : "", p->members[p->groups[i].first + (uint32_t)m]);
        fr_text_add(out, "\n");
    }
    for (uint32_t i = 0; i < p->tables_count; i++)
        fr_text_add(out, "table %u r%d \"%s\" bound=%" PRId64 " known=%s\n", i, p->tables[i].rank, p->tables[i].name,
                    p->tables[i].bound, p->tables[i].known_to == FR_KNOWN_HOST ? "host" : "device");
}

/* Only the fields that say something; vectors as count:sum of queries and the first four entries. */
static void print_shape(const fr_fragment *f, uint32_t index, fr_text *out) {
    const fr_shape *s = &f->shapes[index];
    if (s->kind == FR_OP_NONE) {
        fr_text_add(out, " skip");
        return;
    }
    if (s->m) fr_text_add(out, " m=%" PRId64, s->m);
    if (s->n) fr_text_add(out, " n=%d", s->n);
    if (s->k) fr_text_add(out, " k=%d", s->k);
    if (s->head_dim) fr_text_add(out, " head=%d", s->head_dim);
    if (s->v_head_dim && s->v_head_dim != s->head_dim) fr_text_add(out, " v_head=%d", s->v_head_dim);
    if (s->window) fr_text_add(out, " window=%d", s->window);
    if (s->experts) fr_text_add(out, " experts=%d", s->experts);
    if (s->ranks) fr_text_add(out, " ranks=%d", s->ranks);
    if (s->hosts > 1) fr_text_add(out, " hosts=%d", s->hosts);
    if (s->transport) fr_text_add(out, " transport=%d", s->transport);
    if (s->bytes) fr_text_add(out, " bytes=%" PRId64, s->bytes);
    if (s->flops > 0) fr_text_add(out, " flops=%.17g", s->flops);
    if (!s->vector_count) return;
    const fr_pair *v = f->pairs + s->vector;
    int64_t queries = 0;
    for (uint32_t i = 0; i < s->vector_count; i++) queries += v[i].queries;
    fr_text_add(out, " vector=%u:%" PRId64 "(", s->vector_count, queries);
    for (uint32_t i = 0; i < s->vector_count && i < 4; i++) {
        fr_text_add(out, "%s%d", i ? "," : "", v[i].queries);
        if (v[i].prefix) fr_text_add(out, "+%d", v[i].prefix);
    }
    fr_text_add(out, "%s)", s->vector_count > 4 ? ",..." : "");
}

static void print_op(const fr_plan *p, const fr_fragment *f, const fr_op *op, fr_text *out) {
    if (op->layer == FR_NO_LAYER)
        fr_text_add(out, "    l- ");
    else
        fr_text_add(out, "    l%u ", op->layer);
    fr_text_add(out, "%s m%u s%u", fr_op_name((fr_op_kind)op->kind), op->micro, op->sub);
    if (op->peer >= 0) fr_text_add(out, " peer=r%d", op->peer);
    print_shape(f, op->shape, out);
    for (uint32_t i = 0; i < op->waits; i++) {
        const fr_ref *r = &fr_op_waits(f, op)[i];
        fr_text_add(out, " wait(e%u %s >= %u)", r->target, p->events[r->target].name, r->value);
    }
    for (uint32_t i = 0; i < op->uses; i++) {
        const fr_ref *r = &fr_op_uses(f, op)[i];
        bool table = r->use >= FR_USE_FILL;
        fr_text_add(out, " %s(%c%u %s", use_names[r->use], table ? 't' : 'b', r->target,
                    table ? p->tables[r->target].name : p->buffers[r->target].name);
        if (!table && p->buffers[r->target].slots) fr_text_add(out, " #%u", r->value);
        fr_text_add(out, ")");
    }
    for (uint32_t i = 0; i < op->signals; i++) {
        const fr_ref *r = &fr_op_signals(f, op)[i];
        fr_text_add(out, " signal(e%u %s)", r->target, p->events[r->target].name);
    }
    if (op->group != FR_NONE) fr_text_add(out, " meet(g%u #%u)", op->group, op->seq);
    if (op->late != FR_NONE) {
        fr_text_add(out, " late(t%u %s; at most", op->late, p->tables[op->late].name);
        print_shape(f, op->bound, out);
        fr_text_add(out, ")");
    }
    if (op->flags & FR_OP_ITEM) fr_text_add(out, " item");
    if (op->flags & FR_OP_ENTRY) fr_text_add(out, " entry");
    if (op->flags & FR_OP_ANSWER) fr_text_add(out, " answer");
    if (op->flags & FR_OP_YIELDS) fr_text_add(out, op->flags & FR_OP_GATHERED ? " yields last" : " yields");
    fr_text_add(out, "\n");
}

void fr_plan_print(const fr_plan *p, fr_fragment *const *fragments, int count, fr_text *out) {
    print_static(p, out);
    for (int i = 0; i < count; i++) {
        const fr_fragment *f = fragments[i];
        fr_text_add(out, "\nfragment f%" PRId64 " unit=%d ops=%u\n", f->forward, f->unit, f->ops_count);
        for (uint32_t lane = 0; lane < p->lanes_count; lane++) { /* by lane, whatever was emitted first */
            uint32_t have = lane < f->head_of_cap ? f->head_of[lane] : 0;
            if (!have) continue;
            const struct fr_lane_head *h = &f->heads[have - 1];
            fr_text_add(out, "  lane %u r%d %s ops=%u\n", lane, p->lanes[lane].rank, p->lanes[lane].name, h->ops);
            for (uint32_t o = h->first; o != FR_NONE; o = f->ops[o].next) print_op(p, f, &f->ops[o], out);
        }
    }
}

#include "engine/causes.h"

#include <stdlib.h>
#include <string.h>

enum { KEEP = 64 }; /* raises and holds of earlier forwards that are kept: ops reach back a layer or two */

/* An op that ended. */
typedef struct {
    int64_t end;
    uint64_t id; /* 0 = none */
} moment;

/* Moments by number (raises of an event from 1, holds of a pool from 0): those before `base` are forgotten. */
typedef struct {
    moment *at;
    uint32_t base, end, cap;
} moments;

typedef struct {
    uint32_t group, seq;
    fr_span *span;
} member;

struct fr_causes {
    const fr_plan *plan;
    moment *lanes, *before; /* as the lanes are, and as they were when the forward at hand began */
    moments *events, *pools;
    uint32_t *next;    /* per span: the next one of its lane */
    uint32_t *cursor;  /* [lanes] into the rank's spans */
    uint32_t *next_of; /* [ranks] where a rank's spans begin in `next` */
    uint32_t next_cap;
    member *members;
    uint32_t members_count, members_cap;
};

fr_causes *fr_causes_new(const fr_plan *plan) {
    fr_causes *c = fr_alloc(sizeof *c);
    c->plan = plan;
    c->lanes = fr_alloc((plan->lanes_count + 1) * sizeof *c->lanes);
    c->before = fr_alloc((plan->lanes_count + 1) * sizeof *c->before);
    c->cursor = fr_alloc((plan->lanes_count + 1) * sizeof *c->cursor);
    c->events = fr_alloc((plan->events_count + 1) * sizeof *c->events);
    c->pools = fr_alloc((plan->buffers_count + 1) * sizeof *c->pools);
    c->next_of = fr_alloc((size_t)plan->ranks * sizeof *c->next_of);
    for (uint32_t i = 0; i < plan->events_count; i++) c->events[i].base = c->events[i].end = 1;
    return c;
}

void fr_causes_free(fr_causes *c) {
    if (!c) return;
    for (uint32_t i = 0; i < c->plan->events_count; i++) free(c->events[i].at);
    for (uint32_t i = 0; i < c->plan->buffers_count; i++) free(c->pools[i].at);
    free(c->events);
    free(c->pools);
    free(c->lanes);
    free(c->before);
    free(c->cursor);
    free(c->next_of);
    free(c->next);
    free(c->members);
    free(c);
}

/* ---- moments ------------------------------------------------------------------------------------------------------*/

static void put(moments *m, uint32_t number, const moment *what) {
    if (number < m->base) return;
    FR_GROW(m->at, m->cap, number - m->base + 1);
    for (; m->end <= number; m->end++) m->at[m->end - m->base] = (moment){0};
    m->at[number - m->base] = *what;
}

static const moment *get(const moments *m, uint32_t number) {
    return number >= m->base && number < m->end ? &m->at[number - m->base] : NULL;
}

static void forget(moments *m) {
    const uint32_t held = m->end - m->base, drop = held > KEEP ? held - KEEP : 0;
    if (drop) memmove(m->at, m->at + drop, (held - drop) * sizeof *m->at);
    m->base += drop;
}

static void later(moment *m, const moment *other) {
    if (other && other->id && (other->end > m->end || !m->id)) *m = *other;
}

static moments *pool_of(const fr_causes *c, const fr_ref *use) {
    const bool pool = use->target < c->plan->buffers_count && c->plan->buffers[use->target].slots > 0;
    return pool ? &c->pools[use->target] : NULL;
}

/* Who released the op: what the host itself raises counts for nothing. */
static moment released_by(const fr_causes *c, const fr_fragment *f, const fr_op *op) {
    moment m = c->lanes[op->lane];
    const fr_ref *waits = fr_op_waits(f, op), *uses = fr_op_uses(f, op);
    for (int i = 0; i < op->waits; i++) later(&m, get(&c->events[waits[i].target], waits[i].value));
    for (int i = 0; i < op->uses; i++) {
        const moments *p = uses[i].use == FR_USE_ACQUIRE ? pool_of(c, &uses[i]) : NULL;
        const uint32_t slots = p ? (uint32_t)c->plan->buffers[uses[i].target].slots : 0;
        if (p && uses[i].value >= slots) later(&m, get(p, uses[i].value - slots));
    }
    return m;
}

static void note_end(fr_causes *c, const fr_fragment *f, const fr_op *op, const moment *done) {
    const fr_ref *signals = fr_op_signals(f, op), *uses = fr_op_uses(f, op);
    static const moment none;
    for (int i = 0; i < op->signals; i++) {
        moments *e = &c->events[signals[i].target];
        put(e, e->end, op->kind == FR_OP_LAUNCH ? &none : done);
    }
    for (int i = 0; i < op->uses; i++) {
        moments *p = uses[i].use == FR_USE_FREE ? pool_of(c, &uses[i]) : NULL;
        if (p) put(p, uses[i].value, done);
    }
}

/* ---- spans of ops -------------------------------------------------------------------------------------------------*/

/* Links each lane's spans in their order; cursor[lane] is the first. */
static void link_lanes(fr_causes *c, fr_timeline *const *spans) {
    uint32_t all = 0;
    for (uint32_t i = 0; i < c->plan->lanes_count; i++) c->cursor[i] = FR_NONE;
    for (int r = 0; r < c->plan->ranks; r++) {
        c->next_of[r] = all;
        all += spans[r] ? spans[r]->count : 0;
    }
    FR_GROW(c->next, c->next_cap, all + 1);
    for (int r = 0; r < c->plan->ranks; r++)
        for (uint32_t i = spans[r] ? spans[r]->count : 0; i-- > 0;) {
            const uint16_t lane = spans[r]->spans[i].lane;
            c->next[c->next_of[r] + i] = c->cursor[lane];
            c->cursor[lane] = i;
        }
}

static fr_span *span_of(fr_causes *c, const fr_fragment *f, const fr_op *op, fr_timeline *const *spans) {
    const int rank = c->plan->lanes[op->lane].rank;
    const uint32_t at = c->cursor[op->lane];
    if (at == FR_NONE || spans[rank]->spans[at].id != fr_op_id(c->plan, f, op)) return NULL;
    c->cursor[op->lane] = c->next[c->next_of[rank] + at];
    return &spans[rank]->spans[at];
}

/* ---- meetings -----------------------------------------------------------------------------------------------------*/

static int by_meeting(const void *a, const void *b) {
    const member *x = a, *y = b;
    if (x->group != y->group) return x->group < y->group ? -1 : 1;
    return (x->seq > y->seq) - (x->seq < y->seq);
}

/* Members of a meeting start together, when the last one does. */
static void meet(fr_causes *c) {
    member *m = c->members;
    if (c->members_count) qsort(m, c->members_count, sizeof *m, by_meeting);
    for (uint32_t i = 0, end; i < c->members_count; i = end) {
        int64_t start = m[i].span->start;
        for (end = i; end < c->members_count && by_meeting(&m[i], &m[end]) == 0; end++)
            start = fr_max_i64(start, m[end].span->start);
        for (uint32_t k = i; k < end; k++) {
            m[k].span->ready = m[k].span->start;
            m[k].span->start = fr_min_i64(start, m[k].span->end);
        }
    }
    c->members_count = 0;
}

/* ---- a forward ----------------------------------------------------------------------------------------------------*/

/* When each op raised its events and gave back its slots: some ops wait for others that come later in the fragment. */
static void note_ends(fr_causes *c, const fr_fragment *f, fr_timeline *const *spans) {
    link_lanes(c, spans);
    for (uint32_t i = 0; i < f->ops_count; i++) {
        const fr_op *op = &f->ops[i];
        const fr_span *s = span_of(c, f, op, spans);
        const moment m = s ? (moment){s->end, s->id} : released_by(c, f, op);
        c->lanes[op->lane] = m;
        note_end(c, f, op, &m);
    }
}

void fr_causes_forward(fr_causes *c, const fr_fragment *f, fr_timeline *const *spans) {
    const size_t lanes = c->plan->lanes_count * sizeof *c->lanes;
    memcpy(c->before, c->lanes, lanes);
    note_ends(c, f, spans);
    memcpy(c->lanes, c->before, lanes);
    link_lanes(c, spans);
    for (uint32_t i = 0; i < f->ops_count; i++) {
        const fr_op *op = &f->ops[i];
        moment m = released_by(c, f, op);
        fr_span *s = span_of(c, f, op, spans);
        if (s) {
            s->cause = m.id;
            s->ready = m.id ? fr_min_i64(m.end, s->start) : s->start;
            m = (moment){s->end, s->id};
        }
        if (s && op->group != FR_NONE) {
            FR_GROW(c->members, c->members_cap, c->members_count + 1);
            c->members[c->members_count++] = (member){op->group, op->seq, s};
        }
        c->lanes[op->lane] = m;
    }
    meet(c);
    for (uint32_t i = 0; i < c->plan->events_count; i++) forget(&c->events[i]);
    for (uint32_t i = 0; i < c->plan->buffers_count; i++) forget(&c->pools[i]);
}

/*
 * repeat: deep models are many equal layers. The walk emits two blocks of layers op by op; when the second is the first
 * with counters moved on by constants, the rest are copies with the same steps: exact, and several times faster.
 */
#include "engine/strategy/planner.h"

#include <stdlib.h>

void fr_mark_take(fr_planner *p, const fr_fragment *f, fr_mark *m) {
    uint32_t n = p->raised.count + p->holds.count + p->seqs.count;
    if (!m->counters) m->counters = fr_alloc((n + 1) * sizeof *m->counters);
    m->ops = f->ops_count;
    m->refs = f->refs_count;
    uint32_t *to = m->counters;
    const fr_counters *all[3] = {&p->raised, &p->holds, &p->seqs};
    for (int i = 0; i < 3; i++)
        for (uint32_t c = 0; c < all[i]->count; c++) *to++ = all[i]->value[c];
}

void fr_mark_free(fr_mark *m) {
    free(m->counters);
    *m = (fr_mark){0};
}

static bool equal_but_for_counters(const fr_op *a, const fr_op *b, int layers) {
    bool same_layer = a->layer == FR_NO_LAYER ? b->layer == FR_NO_LAYER : b->layer == a->layer + layers;
    return same_layer && a->shape == b->shape && a->bound == b->bound && a->group == b->group && a->late == b->late &&
           a->lane == b->lane && a->sub == b->sub && a->peer == b->peer && a->kind == b->kind && a->flags == b->flags &&
           a->micro == b->micro && a->waits == b->waits && a->signals == b->signals && a->uses == b->uses;
}

static bool same_blocks(const fr_fragment *f, const fr_mark *a, const fr_mark *b, int layers) {
    uint32_t ops = b->ops - a->ops, refs = b->refs - a->refs;
    if (f->ops_count - b->ops != ops || f->refs_count - b->refs != refs || ops == 0) return false;
    for (uint32_t i = 0; i < ops; i++)
        if (!equal_but_for_counters(&f->ops[a->ops + i], &f->ops[b->ops + i], layers)) return false;
    for (uint32_t i = 0; i < refs; i++) {
        fr_ref x = f->refs[a->refs + i], y = f->refs[b->refs + i];
        if (x.target != y.target || x.use != y.use) return false;
    }
    return true;
}

static void copy_refs(fr_ref *restrict to, const fr_ref *restrict from, const fr_ref *restrict before, uint32_t refs) {
    for (uint32_t i = 0; i < refs; i++) {
        to[i] = from[i];
        to[i].value = from[i].value + (from[i].value - before[i].value);
    }
}

static void step_counters(fr_counters *c, const uint32_t *a, const uint32_t *b, uint32_t times) {
    for (uint32_t i = 0; i < c->count; i++) c->value[i] += (b[i] - a[i]) * times;
}

/* Lanes that end in the last block end `times` blocks further on, with as many more ops as the block has on them. */
static void move_heads(fr_fragment *f, const fr_mark *b, uint32_t ops, uint32_t times) {
    for (uint32_t i = 0; i < ops; i++) f->heads[f->head_of[f->ops[b->ops + i].lane] - 1].ops += times;
    for (uint32_t h = 0; h < f->heads_count; h++)
        if (f->heads[h].last >= b->ops) f->heads[h].last += ops * times;
}

/*
 * Links: every op of the first block has its next on the lane in that block or in the second; the same holds further
 * on, but for the last block, whose lanes end with it.
 */
static void copy_block(fr_op *restrict to, const fr_op *restrict from, const fr_op *restrict before, uint32_t ops,
                       uint32_t refs, int layers) {
    for (uint32_t i = 0; i < ops; i++) {
        to[i] = from[i];
        to[i].refs = from[i].refs + refs;
        to[i].seq = from[i].seq + (from[i].seq - before[i].seq);
        to[i].layer = (uint16_t)(from[i].layer == FR_NO_LAYER ? FR_NO_LAYER : from[i].layer + layers);
        to[i].next = before[i].next + 2 * ops;
    }
}

bool fr_repeat(fr_planner *p, fr_fragment *f, const fr_mark *a, const fr_mark *b, int layers, int times) {
    if (times <= 0 || !same_blocks(f, a, b, layers)) return false;
    uint32_t ops = b->ops - a->ops, refs = b->refs - a->refs, n = (uint32_t)times;
    FR_GROW(f->ops, f->ops_cap, f->ops_count + ops * n);
    FR_GROW(f->refs, f->refs_cap, f->refs_count + refs * n);
    move_heads(f, b, ops, n);
    fr_op *first = f->ops + a->ops, *second = f->ops + b->ops;
    for (uint32_t i = 0; i < ops; i++) second[i].next = first[i].next + ops;
    for (uint32_t t = 1; t <= n; t++) {
        copy_block(second + t * ops, second + (t - 1) * ops, second + t * ops - 2 * ops, ops, refs, layers);
        fr_ref *r = f->refs + b->refs + t * refs;
        copy_refs(r, r - refs, r - 2 * refs, refs);
    }
    f->ops_count += ops * n;
    f->refs_count += refs * n;
    for (uint32_t i = f->ops_count - ops; i < f->ops_count; i++)
        if (f->ops[i].next >= f->ops_count) f->ops[i].next = FR_NONE;
    const uint32_t *x = a->counters, *y = b->counters;
    step_counters(&p->raised, x, y, n);
    step_counters(&p->holds, x + p->raised.count, y + p->raised.count, n);
    x += p->raised.count + p->holds.count;
    y += p->raised.count + p->holds.count;
    step_counters(&p->seqs, x, y, n);
    return true;
}

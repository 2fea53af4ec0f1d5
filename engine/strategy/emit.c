/* emit: ops with their references, and interned shapes: what every strategy file writes with. */
#include "engine/strategy/planner.h"

#include <string.h>

fr_op *fr_put(fr_walk *w, fr_rank *r, fr_lane_kind lane, fr_op_kind kind, uint32_t shape, int sub) {
    fr_op *op = fr_emit(w->f, r->lane[lane], kind, shape, w->layer);
    op->micro = (uint8_t)w->micro;
    op->sub = (uint16_t)sub;
    if (lane != FR_LANE_HOST) r->launches++;
    if (lane == FR_LANE_COMPUTE && r->pendings) {
        for (int i = 0; i < r->pendings; i++) fr_wait(w->f, r->pending[i].event, r->pending[i].value);
        r->pendings = 0;
    }
    return op;
}

void fr_read(fr_walk *w, uint32_t buffer) {
    fr_use_buffer(w->f, FR_USE_READ, buffer, 0);
}

void fr_write(fr_walk *w, uint32_t buffer) {
    fr_use_buffer(w->f, FR_USE_WRITE, buffer, 0);
}

uint32_t fr_raise(fr_walk *w, uint32_t event) {
    fr_signal(w->f, event);
    return ++w->p->raised.value[event];
}

void fr_next_waits(fr_rank *r, uint32_t event, uint32_t value) {
    if (value) r->pending[r->pendings++] = (fr_pending){event, value};
}

void fr_join(fr_walk *w, fr_circle *c) {
    fr_meet(w->f, c->group, w->p->seqs.value[c->seq]++);
}

/* The host issues a layer's launches in a row, far ahead of the device; the layer's first kernel waits for them. */
void fr_host_begin(fr_walk *w, fr_rank *r) {
    r->launches = 0;
    fr_next_waits(r, r->launched, w->p->raised.value[r->launched] + 1);
}

void fr_host_end(fr_walk *w, fr_rank *r) {
    fr_shape s = {.kind = FR_OP_LAUNCH, .m = r->launches};
    fr_put(w, r, FR_LANE_HOST, FR_OP_LAUNCH, fr_intern_shape(w, &s), 0);
    fr_raise(w, r->launched);
}

fr_work *fr_work_of(const fr_walk *w, const fr_rank *r) {
    if (w->p->asap) return &w->works[w->micro]; /* micro counts the pair's batches too */
    return &w->works[w->micro * w->p->slots + r->slot];
}

int64_t fr_tokens_here(const fr_walk *w, const fr_rank *r) {
    int64_t tokens = fr_work_of(w, r)->tokens;
    return w->p->sliced ? fr_share(tokens, w->p->layout.tp, r->t) : tokens;
}

fr_scratch *fr_scratch_of(const fr_walk *w, fr_rank *r) {
    return &r->half[w->half];
}

/* ---- shapes -------------------------------------------------------------------------------------------------------*/

static uint32_t shape_hash(const fr_shape *s) {
    uint64_t h = (uint64_t)s->m * 0x9e3779b97f4a7c15u ^ (uint64_t)s->bytes * 0xc2b2ae3d27d4eb4fu;
    h ^= ((uint64_t)s->kind << 56 | (uint64_t)(uint32_t)s->n << 24 | (uint64_t)(uint32_t)s->k) * 0x165667b19e3779f9u;
    return (uint32_t)(h >> 32);
}

static bool same_shape(const fr_shape *a, const fr_shape *b) {
    return a->kind == b->kind && a->precision == b->precision && a->transport == b->transport && a->hosts == b->hosts &&
           a->ranks == b->ranks && a->n == b->n && a->k == b->k && a->m == b->m && a->bytes == b->bytes &&
           !(a->flops < b->flops) && !(a->flops > b->flops);
}

/* Shapes without a vector. The executor costs every shape once, so equal ones share an index. */
uint32_t fr_intern_shape(fr_walk *w, const fr_shape *s) {
    fr_planner *p = w->p;
    const uint32_t hash = shape_hash(s);
    const uint16_t tag = (uint16_t)hash;
    uint32_t at = (hash >> 16) % FR_INTERN;
    for (int probe = 0; probe < 8; probe++, at = (at + 1) % FR_INTERN) {
        const uint16_t have = p->intern[at].shape;
        if (have && p->intern[at].tag == tag && same_shape(&w->f->shapes[have], s)) return have;
        if (have) continue;
        uint32_t index = fr_shape_add(w->f, s, NULL, 0);
        if (index > UINT16_MAX) return index;
        p->intern[at].shape = (uint16_t)index;
        p->intern[at].tag = tag;
        return index;
    }
    return fr_shape_add(w->f, s, NULL, 0);
}

uint32_t fr_memory_shape(fr_walk *w, fr_op_kind kind, int64_t m, int64_t n, int64_t bytes) {
    if (m <= 0) return 0;
    fr_shape s = {.kind = (uint8_t)kind, .m = m, .n = (int32_t)n, .bytes = bytes};
    return fr_intern_shape(w, &s);
}

uint32_t fr_permute_shape(fr_walk *w, int64_t m, int64_t sources, int64_t n, int64_t bytes) {
    if (m <= 0) return 0;
    fr_shape s = {.kind = FR_OP_PERMUTE, .m = m, .n = (int32_t)n, .bytes = bytes};
    if (FR_PERMUTE_TOP * sources != m) s.k = (int32_t)fr_min_i64(sources, m);
    return fr_intern_shape(w, &s);
}

uint32_t fr_pack_shape(fr_walk *w, int64_t m, int64_t sources, int64_t n, int targets) {
    if (m <= 0) return 0;
    fr_shape s = {.kind = FR_OP_PERMUTE, .m = m, .n = (int32_t)n, .bytes = 4 * m * n, .ranks = (int16_t)targets};
    s.k = (int32_t)fr_min_i64(sources, m);
    return fr_intern_shape(w, &s);
}

uint32_t fr_gemm_shape(fr_walk *w, fr_op_kind kind, fr_precision precision, int64_t m, int64_t n, int64_t k,
                       double flops) {
    if (m <= 0) return 0;
    fr_shape s = {.kind = (uint8_t)kind, .precision = (uint8_t)precision, .m = m, .n = (int32_t)n, .k = (int32_t)k};
    s.flops = flops;
    return fr_intern_shape(w, &s);
}

uint32_t fr_collective_shape(fr_walk *w, fr_op_kind kind, const fr_circle *c, int64_t m, int64_t n, int64_t bytes) {
    if (bytes <= 0) return 0;
    fr_shape s = {.kind = (uint8_t)kind, .ranks = c->size, .hosts = c->hosts, .m = m, .n = (int32_t)n, .bytes = bytes};
    return fr_intern_shape(w, &s);
}

uint32_t fr_copy_shape(fr_walk *w, fr_op_kind kind, int64_t bytes, int ranks) {
    if (bytes <= 0) return 0;
    fr_shape s = {.kind = (uint8_t)kind, .ranks = (int16_t)ranks, .bytes = bytes};
    return fr_intern_shape(w, &s);
}

/*
 * Grouped GEMMs of the routed experts: up and gate with SwiGLU in the epilogue (n = 2 width, k = hidden), down (n =
 * hidden, k = width). `split`: ranks among which each expert's width is split.
 */
void fr_expert_shapes(fr_walk *w, const int32_t *counts, int experts, int split, uint32_t *up, uint32_t *down) {
    fr_planner *p = w->p;
    const fr_model *m = &p->model;
    FR_GROW(p->pairs, p->pairs_cap, experts);
    int64_t rows = 0;
    for (int e = 0; e < experts; e++) {
        p->pairs[e] = (fr_pair){counts[e], 0};
        rows += counts[e];
    }
    *up = *down = 0;
    if (rows == 0) return;
    int64_t width = fr_ceil_div(m->expert_width, split);
    double flops = 2.0 * (double)rows * m->hidden * m->expert_width / split;
    fr_shape s = {.kind = FR_OP_EXPERT_UP,
                  .precision = (uint8_t)p->layout.precision,
                  .m = rows,
                  .n = (int32_t)(2 * width),
                  .k = m->hidden,
                  .experts = experts,
                  .flops = 2 * flops};
    *up = fr_shape_add(w->f, &s, p->pairs, (uint32_t)experts);
    s.kind = FR_OP_EXPERT_DOWN;
    s.n = m->hidden;
    s.k = (int32_t)width;
    s.flops = flops;
    *down = fr_shape_like(w->f, &s, *up);
}

/* FP8 activations: one byte an element and one fp32 scale per 128 of a row (the 1 x 128 groups of DeepSeek-V3,
 * arXiv 2412.19437 section 3.3.2). The op that produces a row writes this too; nothing is charged in bf16. */
int64_t fr_fp8_row(const fr_walk *w, int64_t width) {
    return w->p->layout.precision == FR_FP8 ? width + 4 * fr_ceil_div(width, 128) : 0;
}

/* Rows of measured tables: their names, and when two of them are the same measurement. */
#include "engine/cost/cost_table.h"

#include <string.h>

bool fr_row_kind(const char *name, fr_row *row) {
    static const struct {
        const char *name;
        fr_row_type type;
        fr_op_kind kind;
    } extra[] = {{"gemm", FR_ROW_GENERIC, FR_OP_GEMM_DENSE},
                 {"grouped", FR_ROW_GENERIC, FR_OP_EXPERT_UP},
                 {"memory", FR_ROW_GENERIC, FR_OP_NORM},
                 {"kernel_floor", FR_ROW_FLOOR, FR_OP_NONE},
                 {"event", FR_ROW_EVENT, FR_OP_NONE},
                 {"gap", FR_ROW_GAP, FR_OP_NONE},
                 {"gap_timed", FR_ROW_GAP_TIMED, FR_OP_NONE},
                 {"slowdown", FR_ROW_SLOWDOWN, FR_OP_NONE},
                 {"draw", FR_ROW_DRAW, FR_OP_NONE}};
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++)
        if (strcmp(extra[i].name, name) == 0) {
            row->type = (uint8_t)extra[i].type;
            row->shape.kind = (uint8_t)extra[i].kind;
            return true;
        }
    fr_op_kind kind = fr_op_by_name(name);
    if (kind == FR_OP_KIND_COUNT || kind == FR_OP_NONE || kind == FR_OP_FENCE) return false;
    row->type = FR_ROW_OP;
    row->shape.kind = (uint8_t)kind;
    return true;
}

const char *fr_row_name(const fr_row *r) {
    if (r->type == FR_ROW_FLOOR) return "kernel_floor";
    if (r->type == FR_ROW_EVENT) return "event";
    if (r->type == FR_ROW_GAP) return "gap";
    if (r->type == FR_ROW_GAP_TIMED) return "gap_timed";
    if (r->type == FR_ROW_SLOWDOWN) return "slowdown";
    if (r->type == FR_ROW_DRAW) return "draw";
    if (r->type == FR_ROW_OP) return fr_op_name((fr_op_kind)r->shape.kind);
    switch (fr_op_class_of((fr_op_kind)r->shape.kind)) {
    case FR_CLASS_GEMM:
        return "gemm";
    case FR_CLASS_GROUPED:
        return "grouped";
    default:
        return "memory";
    }
}

const char *fr_tile_name(fr_tile t) {
    static const char *const names[FR_TILES] = {"single", "pair", "single-skew", "pair-skew"};
    return (unsigned)t < FR_TILES ? names[t] : "none";
}

/*
 * What plans don't ask for: what more than two GPUs did at once that plans ask for as if nobody else did it (sends,
 * copies from and to the host); what pulls draw, for seconds; pulls as the engine doesn't make them, which are the
 * owner's work from three GPUs on (readers collide at a source: kernels/measured/README.md).
 */
static bool shown_only(const fr_row *r) {
    const uint8_t kind = r->shape.kind;
    if (r->type != FR_ROW_OP) return false;
    if (fr_op_class_of((fr_op_kind)kind) == FR_CLASS_COLLECTIVE && r->regime == FR_SUSTAINED) return true;
    if (kind == FR_OP_PULL) return r->regime == FR_SUSTAINED || r->by_owner != (r->shape.ranks > 2);
    return r->shape.ranks > 2 && (kind == FR_OP_SEND || kind == FR_OP_RECV || kind == FR_OP_H2D || kind == FR_OP_D2H);
}

bool fr_row_plain(const fr_row *r) {
    return (r->type == FR_ROW_OP || r->type == FR_ROW_GENERIC) && r->duty >= 1 && r->at_ms < 0 && r->gap_ms < 0 &&
           r->tile == 0 && !r->packed && !r->behind && r->streams == 0 && !shown_only(r);
}

bool fr_row_same(const fr_table *ta, const fr_row *a, const fr_table *tb, const fr_row *b, bool with_regime) {
    if (a->key != b->key || a->type != b->type || (with_regime && a->regime != b->regime)) return false;
    if (a->type == FR_ROW_FLOOR || (a->type >= FR_ROW_GAP && a->type <= FR_ROW_EVENT)) return true;
    if (a->ways != b->ways || a->tile != b->tile || a->packed != b->packed || a->behind != b->behind ||
        a->at_ms != b->at_ms || a->gap_ms != b->gap_ms || a->turn_ms != b->turn_ms || a->fill != b->fill ||
        a->duty < b->duty || a->duty > b->duty || a->streams != b->streams || a->order != b->order ||
        a->by_owner != b->by_owner || a->resident != b->resident)
        return false;
    if (a->type == FR_ROW_DRAW) return a->aggressor == b->aggressor && a->shape.ranks == b->shape.ranks;
    if (a->type == FR_ROW_SLOWDOWN)
        return a->victim == b->victim && a->shape.kind == b->shape.kind && a->aggressor == b->aggressor &&
               a->shape.ranks == b->shape.ranks;
    const fr_shape *x = &a->shape, *y = &b->shape;
    if (x->kind != y->kind || x->precision != y->precision || x->m != y->m || x->n != y->n || x->k != y->k ||
        x->bytes != y->bytes || x->ranks != y->ranks || x->hosts != y->hosts || x->transport != y->transport ||
        x->head_dim != y->head_dim || x->v_head_dim != y->v_head_dim || x->window != y->window ||
        x->vector_count != y->vector_count)
        return false;
    for (uint32_t i = 0; i < x->vector_count; i++) {
        fr_pair p = ta->pairs[x->vector + i], q = tb->pairs[y->vector + i];
        if (p.queries != q.queries || p.prefix != q.prefix) return false;
    }
    return true;
}

const fr_row *fr_table_burst(const fr_table *t, const fr_row *r) {
    for (uint32_t i = 0; i < t->count; i++)
        if (t->rows[i].regime == FR_BURST && fr_row_same(t, &t->rows[i], t, r, false)) return &t->rows[i];
    return NULL;
}

static inline uint64_t mix(uint64_t h, uint64_t word) {
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

/* Over the same fields as fr_row_same, regime left out. */
uint64_t fr_row_key(const fr_table *t, const fr_row *r) {
    const fr_shape *s = &r->shape;
    const int64_t fields[] = {
        r->type,         r->victim,    r->aggressor, r->ways,     r->at_ms,      (int64_t)(1e6 * r->duty),
        s->kind,         s->precision, s->m,         s->n,        s->k,          s->bytes,
        s->ranks,        s->hosts,     s->transport, s->head_dim, s->v_head_dim, s->window,
        s->vector_count, r->tile,      r->packed,    r->gap_ms,   r->turn_ms,    r->fill,
        r->streams,      r->order,     r->by_owner,  r->behind,   r->resident};
    uint64_t h = FR_HASH_SEED;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) h = mix(h, (uint64_t)fields[i]);
    for (uint32_t i = 0; i < s->vector_count; i++) {
        const fr_pair *p = &t->pairs[s->vector + i];
        h = mix(h, (uint64_t)(uint32_t)p->prefix << 32 | (uint32_t)p->queries);
    }
    return h;
}

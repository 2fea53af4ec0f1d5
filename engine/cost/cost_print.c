/* Rows as text: the inverse of the reader (cost_table.c). */
#include "engine/cost/cost_table.h"
#include "engine/machine.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The vector of a grouped product is a multiset: order does not change a row. */
static int by_rows(const void *a, const void *b) {
    const fr_pair *x = a, *y = b;
    return (x->queries < y->queries) - (x->queries > y->queries);
}

static bool is_even(const fr_pair *sorted, uint32_t count, int64_t sum) {
    int32_t *even = fr_alloc(count * sizeof *even);
    fr_even_rows(sum, (int32_t)count, even);
    fr_pair *p = fr_alloc(count * sizeof *p);
    for (uint32_t i = 0; i < count; i++) p[i].queries = even[i];
    qsort(p, count, sizeof *p, by_rows);
    bool same = true;
    for (uint32_t i = 0; i < count && same; i++) same = p[i].queries == sorted[i].queries;
    free(p);
    free(even);
    return same;
}

static void print_runs(const fr_pair *v, uint32_t count, bool sequences, fr_text *out) {
    for (uint32_t i = 0; i < count;) {
        uint32_t j = i + 1;
        while (j < count && v[j].queries == v[i].queries && v[j].prefix == v[i].prefix) j++;
        fr_text_add(out, "%s%" PRId32, i ? "," : "", v[i].queries);
        if (sequences) fr_text_add(out, "+%" PRId32, v[i].prefix);
        if (j - i > 1) fr_text_add(out, "x%" PRIu32, j - i);
        i = j;
    }
}

static void print_vector(const fr_table *t, const fr_row *r, fr_text *out) {
    const fr_pair *v = t->pairs + r->shape.vector;
    const uint32_t count = r->shape.vector_count;
    if (fr_op_class_of((fr_op_kind)r->shape.kind) == FR_CLASS_ATTENTION) {
        fr_text_add(out, " seqs=");
        print_runs(v, count, true, out);
        return;
    }
    fr_pair *sorted = fr_alloc(count * sizeof *sorted);
    memcpy(sorted, v, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_rows);
    fr_text_add(out, " rows=");
    if (count > 1 && sorted[0].queries != sorted[count - 1].queries && is_even(sorted, count, r->shape.m))
        fr_text_add(out, "random:%" PRId64 "/%" PRIu32, r->shape.m, count);
    else
        print_runs(sorted, count, false, out);
    free(sorted);
}

static void print_shape(const fr_table *t, const fr_row *r, fr_text *out) {
    static const char *const transports[] = {"ce", "nccl", "nccl-ce"};
    const fr_shape *s = &r->shape;
    switch (fr_op_class_of((fr_op_kind)s->kind)) {
    case FR_CLASS_HOST:
        if (s->m) fr_text_add(out, " m=%" PRId64, s->m);
        break;
    case FR_CLASS_MEMORY:
        if (s->m) fr_text_add(out, " m=%" PRId64, s->m);
        if (s->n) fr_text_add(out, " n=%" PRId32, s->n);
        if (s->k) fr_text_add(out, " k=%" PRId32, s->k);
        fr_text_add(out, " bytes=%" PRId64, s->bytes);
        break;
    case FR_CLASS_GEMM:
        fr_text_add(out, " precision=%s m=%" PRId64 " n=%" PRId32 " k=%" PRId32, fr_precision_name(s->precision), s->m,
                    s->n, s->k);
        break;
    case FR_CLASS_GROUPED:
        fr_text_add(out, " precision=%s n=%" PRId32 " k=%" PRId32, fr_precision_name(s->precision), s->n, s->k);
        print_vector(t, r, out);
        if (r->tile) fr_text_add(out, " tile=%s", fr_tile_name((fr_tile)(r->tile - 1)));
        break;
    case FR_CLASS_ATTENTION:
        fr_text_add(out, " precision=%s heads=%" PRId32 " kv_heads=%" PRId32 " head_dim=%" PRId32,
                    fr_precision_name(s->precision), s->n, s->k, s->head_dim);
        if (s->v_head_dim && s->v_head_dim != s->head_dim) fr_text_add(out, " v_head_dim=%d", s->v_head_dim);
        if (s->window) fr_text_add(out, " window=%" PRId32, s->window);
        print_vector(t, r, out);
        if (r->packed) fr_text_add(out, " packed=1");
        break;
    case FR_CLASS_COLLECTIVE:
        fr_text_add(out, " bytes=%" PRId64 " ranks=%d transport=%s", s->bytes, s->ranks,
                    transports[s->transport < 3 ? s->transport : 0]);
        if (s->hosts > 1) fr_text_add(out, " hosts=%d", s->hosts);
        break;
    case FR_CLASS_COPY:
        fr_text_add(out, " bytes=%" PRId64, s->bytes);
        if (r->ways == 2) fr_text_add(out, " ways=2");
        if (s->ranks) fr_text_add(out, " ranks=%d", s->ranks);
        break;
    default:
        break;
    }
}

static void print_number(fr_text *out, const char *name, double v) {
    if (v > 0) fr_text_add(out, " %s=%.6g", name, v);
}

void fr_row_print(const fr_table *t, const fr_row *r, fr_text *out) {
    static const char *const classes[FR_CLASS_COUNT] = {"other",     "host",    "memory",     "gemm",
                                                        "attention", "grouped", "collective", "copy"};
    static const char *const aggressors[FR_AGGRESSORS] = {"pull", "nccl", "h2d", "exchange"},
                             *const orders[FR_PULL_ORDERS] = {"fixed", "round", "same"};
    static const char *const draws[FR_DRAWS] = {"link", "nccl", "exchange"};
    fr_text_add(out, "%s", fr_row_name(r));
    if (r->type == FR_ROW_SLOWDOWN) {
        const fr_op_kind kind = (fr_op_kind)r->shape.kind;
        fr_text_add(out, " victim=%s aggressor=%s", kind ? fr_op_name(kind) : classes[r->victim],
                    aggressors[r->aggressor]);
        if (r->resident) fr_text_add(out, " resident=1");
        if (r->ways == 1) fr_text_add(out, " ways=1");
        if (r->shape.ranks > 1) fr_text_add(out, " ranks=%d", r->shape.ranks);
    } else if (r->type == FR_ROW_DRAW) {
        fr_text_add(out, " of=%s", draws[r->aggressor]);
        if (r->shape.ranks > 1) fr_text_add(out, " ranks=%d", r->shape.ranks);
    } else if (r->type == FR_ROW_OP || r->type == FR_ROW_GENERIC) {
        print_shape(t, r, out);
    }
    if (r->streams) fr_text_add(out, " streams=%d order=%s", r->streams, orders[r->order]);
    if (r->by_owner) fr_text_add(out, " by=owner");
    if (r->behind) fr_text_add(out, " behind=1");
    fr_text_add(out, " regime=%s", r->regime == FR_BURST ? "burst" : "sustained");
    if (r->duty < 1) fr_text_add(out, " duty=%.6g", r->duty);
    if (r->turn_ms) fr_text_add(out, " turn_ms=%" PRId32, r->turn_ms);
    if (r->gap_ms >= 0) fr_text_add(out, " gap_ms=%" PRId32, r->gap_ms);
    if (r->fill) fr_text_add(out, " fill=memory");
    if (r->at_ms >= 0) fr_text_add(out, " at_ms=%" PRId32, r->at_ms);
    const struct {
        const char *name;
        double value;
    } numbers[] = {{"ns", r->ns},
                   {"alone", r->alone},
                   {"beside", r->beside},
                   {"overlap", r->overlap},
                   {"hbm_traffic", r->hbm_traffic},
                   {"rate", r->rate},
                   {"rate_alone", r->rate_alone},
                   {"p10", r->p10},
                   {"p90", r->p90},
                   {"samples", r->samples},
                   {"clock_mhz", r->clock_mhz},
                   {"watts", r->watts},
                   {"capped", r->capped},
                   {"clock_alone", r->clock_alone},
                   {"watts_alone", r->watts_alone}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) print_number(out, numbers[i].name, numbers[i].value);
    if (r->card) fr_text_add(out, " card=%08" PRIx32, r->card);
    if (r->provenance == FR_FROM_SEEDED && !t->seeded) fr_text_add(out, " provenance=seeded");
    if (r->provenance == FR_FROM_MEASURED && t->seeded) fr_text_add(out, " provenance=measured");
}

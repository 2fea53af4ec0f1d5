/* What plans ask a table for: a forward of two layers, as the planner makes it. */
#include "engine/calibrate/calibrate_grid.h"
#include "engine/strategy/strategy.h"

#include <stdlib.h>

enum { SEQUENCES = 64 };

/* Up to 64 sequences; in turns they want the vocabulary and two candidates. */
static int32_t make_batch(int64_t tokens, fr_sequence s[SEQUENCES]) {
    const int32_t count = (int32_t)fr_min_i64(SEQUENCES, fr_ceil_div(tokens, 256));
    for (int32_t i = 0; i < count; i++)
        s[i] = (fr_sequence){.queries = (int32_t)(tokens * (i + 1) / count - tokens * i / count),
                             .candidates = i % 2 ? 2 : -1,
                             .kv = -1,
                             .kv_prefix = -1};
    return count;
}

fr_status fr_cal_plan_shapes(const fr_model *model, const fr_machine *machine, int tp, fr_precision precision,
                             int64_t tokens, void (*each)(void *context, const fr_shape *shape), void *context,
                             fr_error *err) {
    fr_layout layout = {0};
    FR_TRY(fr_layout_from_strategy(tp > 1 ? "tp" : "dp", tp, &layout, err));
    layout.precision = precision;
    layout.run_layers = 2; /* the second one's first norm carries a residual */
    const fr_planner_options o = {.model = model,
                                  .layout = &layout,
                                  .machine = machine,
                                  .load = {.tokens = tokens, .sequences = SEQUENCES, .imbalance = 1}};
    fr_planner *p = NULL;
    FR_TRY(fr_planner_open(&o, &p, err));
    fr_sequence sequences[SEQUENCES];
    const fr_batch batch = {sequences, make_batch(tokens, sequences)};
    fr_fragment *f = NULL;
    fr_status status = fr_planner_forward(p, 0, &batch, &f, err);
    const fr_plan *plan = fr_planner_plan(p);
    for (uint32_t i = 0; status == FR_OK && i < f->ops_count; i++) {
        const fr_shape *s = fr_op_shape(f, &f->ops[i]);
        const fr_op_class class = fr_op_class_of((fr_op_kind)s->kind);
        const bool measured = class == FR_CLASS_MEMORY || class == FR_CLASS_GEMM;
        if (fr_op_over_pcie((fr_op_kind)s->kind)) continue; /* by size alone: calibrate_transfers.c */
        if (plan->lanes[f->ops[i].lane].rank == 0 && s->m > 0 && measured) each(context, s);
    }
    if (f) fr_fragment_free(f);
    fr_planner_close(p);
    return status;
}

/* ---- one layer ----------------------------------------------------------------------------------------------------*/

int32_t fr_cal_chain_length(int64_t tokens) {
    return tokens >= 16384 ? 4096 : 512;
}

static const fr_op_kind layer_kinds[FR_CAL_LAYER] = {
    FR_OP_GEMM_QKV, FR_OP_ROPE, FR_OP_ATTENTION, FR_OP_GEMM_O,    FR_OP_NORM,        FR_OP_GEMM_ROUTER,
    FR_OP_TOPK,     FR_OP_SORT, FR_OP_PERMUTE,   FR_OP_EXPERT_UP, FR_OP_EXPERT_DOWN, FR_OP_COMBINE};

typedef struct {
    fr_row *rows;
    bool begun; /* the first norm, before the layer's qkv, is another one's */
} layer_sink;

/* The first layer's: what comes a second time is the next one's. */
static void take_shape(void *context, const fr_shape *shape) {
    layer_sink *sink = context;
    sink->begun |= shape->kind == FR_OP_GEMM_QKV;
    for (int i = 0; i < FR_CAL_LAYER && sink->begun; i++) {
        fr_shape *s = &sink->rows[i].shape;
        if (layer_kinds[i] != shape->kind || s->m) continue;
        const bool gemm = fr_op_class_of(layer_kinds[i]) == FR_CLASS_GEMM;
        s->precision = gemm ? shape->precision : 0;
        s->m = shape->m;
        s->n = shape->n;
        s->k = gemm || shape->kind == FR_OP_PERMUTE ? shape->k : 0;
        s->bytes = gemm ? 0 : shape->bytes;
    }
}

static void push(fr_table *t, fr_row *row, int32_t queries) {
    FR_GROW(t->pairs, t->pairs_cap, t->pairs_count + 1);
    if (!row->shape.vector_count) row->shape.vector = t->pairs_count;
    t->pairs[t->pairs_count++] = (fr_pair){queries, 0};
    row->shape.vector_count++;
    row->shape.m += queries;
}

fr_status fr_cal_layer(const fr_model *m, const fr_machine *machine, int64_t tokens, int32_t seq, fr_table *t,
                       fr_row rows[FR_CAL_LAYER], fr_error *err) {
    int32_t *even = fr_alloc((size_t)m->experts * sizeof *even);
    layer_sink sink = {.rows = rows};
    fr_even_rows(tokens * m->top_k, m->experts, even);
    for (int i = 0; i < FR_CAL_LAYER; i++) {
        rows[i] = fr_cal_blank(layer_kinds[i]);
        rows[i].regime = FR_SUSTAINED;
        rows[i].behind = true;
        fr_shape *s = &rows[i].shape;
        const bool up = layer_kinds[i] == FR_OP_EXPERT_UP;
        if (layer_kinds[i] == FR_OP_ATTENTION) {
            s->n = m->heads;
            s->k = m->kv_heads;
            s->head_dim = m->head_dim;
            s->v_head_dim = (int16_t)m->head_dim;
            for (int64_t left = tokens; left > 0; left -= seq) push(t, &rows[i], (int32_t)fr_min_i64(left, seq));
        } else if (fr_op_class_of(layer_kinds[i]) == FR_CLASS_GROUPED) {
            s->n = up ? 2 * m->expert_width : m->hidden;
            s->k = up ? m->hidden : m->expert_width;
            for (int32_t e = 0; e < m->experts; e++) push(t, &rows[i], even[e]);
            s->experts = m->experts;
        }
    }
    free(even);
    FR_TRY(fr_cal_plan_shapes(m, machine, 1, FR_BF16, tokens, take_shape, &sink, err));
    for (int i = 0; i < FR_CAL_LAYER; i++) {
        if (!rows[i].shape.m)
            return fr_fail(err, FR_FAILED, "a layer of %s has no %s", m->name, fr_op_name(layer_kinds[i]));
        rows[i].key = fr_row_key(t, &rows[i]);
    }
    return FR_OK;
}

fr_status fr_cal_light_layer(const fr_model *m, const fr_machine *machine, int64_t tokens, fr_row rows[FR_CAL_LIGHT],
                             fr_error *err) {
    fr_table t = {0};
    fr_row all[FR_CAL_LAYER];
    const fr_status status = fr_cal_layer(m, machine, tokens, fr_cal_chain_length(tokens), &t, all, err);
    for (int i = 0, k = 0; i < FR_CAL_LAYER && status == FR_OK; i++)
        if (!all[i].shape.vector_count) rows[k++] = all[i];
    fr_table_free(&t);
    return status;
}

/* What plans ask a table for: a forward of two layers, as the planner makes it. */
#include "engine/calibrate/calibrate.h"
#include "engine/strategy/strategy.h"

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

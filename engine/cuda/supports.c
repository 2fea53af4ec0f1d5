#include "engine/cuda/supports.h"

#include "engine/cuda/exec.h"
#include "engine/deal.h"
#include "engine/strategy/strategy.h"

#include <stdlib.h>

/* Kinds of op that have a launcher (ops*.c), a host side (exec.c) or nothing to do. */
static bool executed(fr_op_kind kind) {
    switch (kind) {
    case FR_OP_NONE:
    case FR_OP_FENCE:
    case FR_OP_LAUNCH:
    case FR_OP_READBACK:
    case FR_OP_PULL:
    case FR_OP_H2D:
    case FR_OP_PUSH:
    case FR_OP_DRAIN:
        return true;
    default:
        break;
    }
    switch (fr_op_class_of(kind)) {
    case FR_CLASS_MEMORY:
    case FR_CLASS_GEMM:
    case FR_CLASS_ATTENTION:
    case FR_CLASS_GROUPED:
    case FR_CLASS_COLLECTIVE:
        return true;
    default:
        return false;
    }
}

static fr_status check_ops(const fr_plan *p, const fr_fragment *f, const fr_layout *l, fr_error *err) {
    for (uint32_t i = 0; i < f->ops_count; i++) {
        const fr_op *op = &f->ops[i];
        if (p->lanes[op->lane].first_ready && l->dp > FR_EXEC_UNITS)
            return fr_fail(err, FR_BAD_INPUT, "--strategy %s --dp %d: expert ranks serve at most %d attention groups",
                           l->strategy, l->dp, FR_EXEC_UNITS);
        if (!executed((fr_op_kind)op->kind))
            return fr_fail(err, FR_BAD_INPUT, "--strategy %s: the engine does not execute %s ops yet", l->strategy,
                           fr_op_name((fr_op_kind)op->kind));
    }
    return FR_OK;
}

/* The plan of one forward of unit 0, every attention group with one token: what kinds of op does it have? */
fr_status fr_supports(const fr_setup *s, fr_error *err) {
    const fr_layout *l = &s->experiment.layout;
    const fr_sequence one = {.queries = 1, .candidates = 1, .kv_prefix = -1};
    fr_planner *p = NULL;
    fr_fragment *f = NULL;
    FR_TRY(fr_weights_supported(&s->model, l, err));
    /* The two batches' queues number their KV handles each from 0 (engine/sched), but share a rank's cache. */
    if (fr_layout_batches(l) > 1 && s->experiment.trace[0] && (l->chunk_tokens > 0 || s->experiment.cache_tokens > 0))
        return fr_fail(err, FR_BAD_INPUT,
                       "--strategy %s: the engine keeps no KV cache over a trace for it: leave out "
                       "--cache-tokens and --chunk-tokens",
                       l->strategy);
    FR_TRY(fr_setup_planner(s, false, &p, err));
    const int slots = fr_planner_slots(p);
    fr_batch *batches = fr_alloc((size_t)slots * sizeof *batches);
    for (int i = 0; i < slots; i++) batches[i] = (fr_batch){&one, 1};
    fr_status status = fr_planner_forward(p, 0, batches, &f, err);
    if (status == FR_OK) status = check_ops(fr_planner_plan(p), f, l, err);
    if (f) fr_fragment_free(f);
    free(batches);
    fr_planner_close(p);
    return status;
}

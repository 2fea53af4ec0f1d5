#include "engine/cost/cost_beside.h"

/* How much longer a transfer takes beside the victim than alone, where the row says at what rates it went: then it ran
 * all the time, and the simulator slows it too. 0 where the row doesn't say. Copies share links and memory with others,
 * which the simulator counts by itself. */
static double held_back(const fr_row *r) {
    const bool kernel = r->aggressor == FR_AGGRESSOR_NCCL || r->aggressor == FR_AGGRESSOR_EXCHANGE;
    if (!kernel || r->rate <= 0 || r->rate_alone <= 0) return 0;
    return fr_most(0, r->rate_alone / r->rate - 1);
}

/*
 * While the aggressor runs the victim goes on at speed v: beside = overlap + (alone - v overlap), so
 * v = 1 - (beside - alone) / overlap; without an overlap it ran all the time, v = alone / beside. What sharing HBM
 * already explains (aggressor's traffic h of capacity B: the victim gets B - h) is taken off memory-bound victims of
 * rows that stand for a whole class, most of whose kernels want less of it.
 */
static double class_slowdown(const fr_row *r, double hbm) {
    double speed = r->overlap > 0 && held_back(r) <= 0 ? 1 - (r->beside - r->alone) / r->overlap : r->alone / r->beside;
    double slow = 1 / fr_most(speed, 0.05) - 1;
    if (r->victim == FR_CLASS_MEMORY && r->hbm_traffic > 0 && r->hbm_traffic < hbm / 2)
        slow = (1 + slow) * (hbm - r->hbm_traffic) / hbm - 1;
    return fr_most(0, slow);
}

static bool counts(const fr_row *r, fr_op_class victim, int aggressor) {
    return r->type == FR_ROW_SLOWDOWN && r->victim == victim && r->aggressor == aggressor && r->ways == 2 &&
           r->duty >= 1 && r->shape.ranks <= 2;
}

/* A class that has but one kind names it by itself. */
static bool of_kind(const fr_row *r, fr_op_kind kind) {
    return r->shape.kind == kind || (r->shape.kind == FR_OP_NONE && kind == FR_OP_ATTENTION);
}

typedef struct {
    double slow, held;
} effect;

/* What of `held` is not the clock's: NCCL's kernels follow the SM clock, which is that of the kernels beside them, in a
 * burst as rows of the class have it. The simulator slows them by the clock of the moment. */
static double beyond_clock(const fr_table *t, fr_op_class class, double held, const fr_follow *follow) {
    const fr_shape gather = {.kind = FR_OP_ALLGATHER, .ranks = 2, .bytes = INT64_C(1) << 32};
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (!counts(r, class, FR_AGGRESSOR_NCCL) || r->resident || r->regime != FR_BURST || r->clock_mhz <= 0) continue;
        const double slower = t->clock_max_mhz / r->clock_mhz - 1;
        return fr_most(0, (1 + held) / (1 + fr_follow_flex(follow, &gather) * fr_most(0, slower)) - 1);
    }
    return held;
}

static void set(fr_besides *out, fr_op_kind kind, int a, effect e) {
    out->slowdown[kind][a] = fr_most(0, e.slow);
    out->held_back[kind][a] = e.held;
}

/* False: the table has no resident rows of the class. */
static bool by_kind(const fr_table *t, fr_op_class class, int a, const fr_follow *follow, fr_besides *out) {
    effect mean = {0};
    int n = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (!counts(r, class, a) || !r->resident || r->shape.kind == FR_OP_GEMM_ROUTER) continue;
        mean.slow += r->beside / r->alone - 1;
        mean.held += held_back(r);
        n++;
    }
    if (n == 0) return false;
    mean = (effect){mean.slow / n, mean.held / n};
    for (int k = 0; k < FR_OP_KIND_COUNT; k++) {
        effect e = mean;
        if (fr_op_class_of((fr_op_kind)k) != class) continue;
        for (uint32_t i = 0; i < t->count; i++) {
            const fr_row *r = &t->rows[i];
            if (counts(r, class, a) && r->resident && of_kind(r, (fr_op_kind)k))
                e = (effect){r->beside / r->alone - 1, held_back(r)};
        }
        if (a == FR_AGGRESSOR_NCCL) e.held = beyond_clock(t, k == FR_OP_GEMM_ROUTER ? FR_CLASS_MEMORY : class, e.held, follow);
        set(out, (fr_op_kind)k, a, e);
    }
    return true;
}

static bool by_class(const fr_table *t, fr_op_class class, int a, fr_regime regime, double hbm, fr_besides *out) {
    const fr_row *best = NULL;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (!counts(r, class, a) || r->resident) continue;
        if (!best || (r->regime == regime && best->regime != regime)) best = r;
    }
    if (!best) return false;
    const effect e = {class_slowdown(best, hbm), held_back(best)};
    for (int k = 0; k < FR_OP_KIND_COUNT; k++)
        if (fr_op_class_of((fr_op_kind)k) == class) set(out, (fr_op_kind)k, a, e);
    return true;
}

void fr_besides_fit(const fr_source *sources, int count, fr_regime regime, double hbm, const fr_follow *follow,
                    fr_besides *out) {
    *out = (fr_besides){0};
    for (int v = FR_CLASS_MEMORY; v <= FR_CLASS_GROUPED; v++) {
        bool found[FR_AGGRESSORS] = {false};
        for (int a = 0; a < FR_AGGRESSORS; a++)
            for (int s = 0; s < count && !found[a]; s++)
                found[a] = by_kind(sources[s].table, (fr_op_class)v, a, follow, out) ||
                           by_class(sources[s].table, (fr_op_class)v, a, regime, hbm, out);
        for (int k = 0; k < FR_OP_KIND_COUNT && !found[FR_AGGRESSOR_EXCHANGE]; k++)
            if (fr_op_class_of((fr_op_kind)k) == (fr_op_class)v)
                set(out, (fr_op_kind)k, FR_AGGRESSOR_EXCHANGE,
                    (effect){out->slowdown[k][FR_AGGRESSOR_NCCL], out->held_back[k][FR_AGGRESSOR_NCCL]});
    }
}

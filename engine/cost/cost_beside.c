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

/* An exchange alone is the same in all rows: the best of its readings counts, others met the end of what ran before. */
static double held_in(const fr_table *t, const fr_row *r) {
    fr_row best = *r;
    for (uint32_t i = 0; i < t->count && r->aggressor == FR_AGGRESSOR_EXCHANGE; i++) {
        const fr_row *o = &t->rows[i];
        if (counts(o, (fr_op_class)o->victim, r->aggressor) && o->resident)
            best.rate_alone = fr_most(best.rate_alone, o->rate_alone);
    }
    return held_back(&best);
}

/* What of the row's `held` is not the clock's: NCCL's kernels follow the SM clock, which is that of the kernels beside
 * them: the row's, or as other rows of the class have it. The simulator slows them by the clock of the moment. */
static double beyond_clock(const fr_table *t, const fr_row *r, const fr_follow *follow) {
    const fr_shape gather = {.kind = FR_OP_ALLGATHER, .ranks = 2, .bytes = INT64_C(1) << 32};
    const fr_op_class class = r->shape.kind == FR_OP_GEMM_ROUTER ? FR_CLASS_MEMORY : (fr_op_class)r->victim;
    double clock = r->clock_mhz;
    for (uint32_t i = 0; i < t->count && clock <= 0; i++) {
        const fr_row *b = &t->rows[i];
        if (counts(b, class, FR_AGGRESSOR_NCCL) && !b->resident && b->regime == r->regime) clock = b->clock_mhz;
    }
    const double slower = clock > 0 ? fr_most(0, t->clock_max_mhz / clock - 1) : 0;
    return fr_most(0, (1 + held_in(t, r)) / (1 + fr_follow_flex(follow, &gather) * slower) - 1);
}

static void set(fr_besides *out, fr_op_kind kind, int a, effect e) {
    out->slowdown[kind][a] = fr_most(0, e.slow);
    out->held_back[kind][a] = e.held;
}

/* The resident row of a kind, of `regime` where there is one. */
static const fr_row *resident(const fr_table *t, fr_op_kind kind, int a, fr_regime regime) {
    const fr_row *best = NULL;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (!r->resident || !counts(r, fr_op_class_of(kind), a) || !of_kind(r, kind)) continue;
        if (!best || r->regime == regime) best = r;
    }
    return best;
}

/* What transfers do is as in a burst: under the limit the clock counts apart. What kernels do to NCCL's is as under
 * the limit, where forwards mostly are. */
static bool effect_of(const fr_table *t, fr_op_kind kind, int a, const fr_follow *follow, effect *out) {
    const fr_row *r = resident(t, kind, a, FR_BURST), *held = resident(t, kind, a, FR_SUSTAINED);
    if (!r) return false;
    *out =
        (effect){r->beside / r->alone - 1, a == FR_AGGRESSOR_NCCL ? beyond_clock(t, held, follow) : held_in(t, held)};
    return true;
}

/* False: the table has no resident rows of the class. */
static bool by_kind(const fr_table *t, fr_op_class class, int a, const fr_follow *follow, fr_besides *out) {
    effect mean = {0}, e[FR_OP_KIND_COUNT];
    bool own[FR_OP_KIND_COUNT] = {false};
    int n = 0;
    for (int k = 0; k < FR_OP_KIND_COUNT; k++) {
        own[k] = fr_op_class_of((fr_op_kind)k) == class && effect_of(t, (fr_op_kind)k, a, follow, &e[k]);
        if (!own[k] || k == FR_OP_GEMM_ROUTER) continue;
        mean.slow += e[k].slow;
        mean.held += e[k].held;
        n++;
    }
    if (n == 0) return false;
    mean = (effect){mean.slow / n, mean.held / n};
    for (int k = 0; k < FR_OP_KIND_COUNT; k++)
        if (fr_op_class_of((fr_op_kind)k) == class) set(out, (fr_op_kind)k, a, own[k] ? e[k] : mean);
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

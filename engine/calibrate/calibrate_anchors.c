/* Anchors: ops that stand for all, by which cards and days are compared and from which clock and power are fitted. */
#include "engine/calibrate/calibrate_grid.h"

#include <math.h>

/* The limit's slow hand comes round every 0.9 s once 0.8 s are over (engine/cost/power.h): 3 s count two of its rounds,
 * 4.5 s three. */
#define ANCHOR_HOLD_S 3.0F
#define LAYER_HOLD_S  4.5F

/* How the power limit comes and goes: pauses after a load (in some, memory is streamed), and turns of several lengths,
 * the first `turns` of them. */
static void add_limits(fr_cal_maker *m, const fr_row *op, int turns) {
    static const int32_t pauses[] = {10, 40, 160, 2, 1, 5, 20, 80, 320};
    static const struct {
        double duty;
        int32_t ms;
    } list[] = {{0.75, 40}, {0.5, 100}, {0.75, 160}, {0.9, 20}, {0.9, 100}, {0.65, 40}, {0.5, 400}, {0.85, 10}};
    fr_row r = *op;
    if (fr_op_class_of((fr_op_kind)op->shape.kind) == FR_CLASS_MEMORY) return;
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        r.gap_ms = pauses[i];
        fr_cal_add(m, FR_CAL_RELEASE, 2, r);
        r.fill = op->shape.kind == FR_OP_EXPERT_UP && (pauses[i] == 40 || pauses[i] == 160);
        if (r.fill) fr_cal_add(m, FR_CAL_RELEASE, 2, r);
        r.fill = false;
    }
    r = *op;
    r.regime = FR_SUSTAINED;
    for (int i = 0; i < turns; i++) {
        r.duty = list[i].duty;
        r.turn_ms = list[i].ms;
        fr_cal_add(m, FR_CAL_HOLD, 2, r)->hold_s = (float)fmax(1.2, 4e-3 * list[i].ms);
    }
}

static void add_hold(fr_cal_maker *m, fr_row r, fr_precision precision, int64_t mean) {
    int32_t even[128];
    r.shape.precision = (uint8_t)precision;
    r.regime = FR_SUSTAINED;
    if (mean) {
        r.shape.experts = 128;
        fr_even_rows(mean * 128, 128, even);
        for (int e = 0; e < 128; e++) fr_cal_push(m, &r, even[e], 0);
    }
    fr_cal_add(m, FR_CAL_HOLD, 2, r)->hold_s = fminf(LAYER_HOLD_S, fr_cal_hold_seconds(m, 1));
}

static void hold(fr_cal_maker *m, fr_row r) {
    r.regime = FR_SUSTAINED;
    fr_cal_item *it = fr_cal_add(m, FR_CAL_HOLD, 2, r);
    it->hold_s = fr_cal_hold_seconds(m, 0.3);
    it->residual = r.shape.kind == FR_OP_GEMM_O;
}

/* Small batches. Experts that have some 128 rows, or 512, wait for bytes and for tensor cores in turns: how far their
 * time follows the clock, and what they draw, no other row says; nor what the dense products and the attention of 2K
 * tokens draw. */
static void add_small_holds(fr_cal_maker *m) {
    static const struct {
        fr_op_kind kind;
        int32_t experts, n, k, mean;
    } list[] = {{FR_OP_EXPERT_UP, 128, 3072, 4096, 128}, {FR_OP_EXPERT_DOWN, 128, 4096, 1536, 128},
                {FR_OP_EXPERT_UP, 8, 28672, 4096, 128},  {FR_OP_EXPERT_DOWN, 8, 4096, 14336, 128},
                {FR_OP_EXPERT_UP, 128, 3072, 4096, 512}, {FR_OP_EXPERT_DOWN, 128, 4096, 1536, 512},
                {FR_OP_EXPERT_UP, 128, 1536, 2048, 64},  {FR_OP_EXPERT_DOWN, 128, 2048, 768, 64},
                {FR_OP_EXPERT_UP, 128, 3072, 4096, 384}, {FR_OP_EXPERT_UP, 128, 3072, 4096, 32},
                {FR_OP_GEMM_QKV, 0, 9216, 4096, 2048},   {FR_OP_GEMM_O, 0, 4096, 8192, 2048}};
    int32_t even[128];
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        fr_row r = fr_cal_blank(list[i].kind);
        r.shape.n = list[i].n;
        r.shape.k = list[i].k;
        r.shape.experts = list[i].experts;
        if (!list[i].experts) r.shape.m = list[i].mean;
        if (list[i].experts) fr_even_rows((int64_t)list[i].mean * list[i].experts, list[i].experts, even);
        for (int e = 0; e < list[i].experts; e++) fr_cal_push(m, &r, even[e], 0);
        hold(m, r);
    }
    fr_row r = fr_cal_blank(FR_OP_ATTENTION);
    r.shape.n = 64;
    r.shape.k = 4;
    r.shape.head_dim = 128;
    for (int i = 0; i < 4; i++) fr_cal_push(m, &r, 512, 0);
    hold(m, r);
}

/* More work of a layer, sustained: 256 rows an expert, where HBM and tensor cores draw alike and most together, and
 * products in fp8, for which tensor cores draw another power. */
static void add_holds(fr_cal_maker *m) {
    static const struct {
        fr_op_kind kind;
        int32_t m, n, k;
    } dense[] = {{FR_OP_GEMM_QKV, 16384, 9216, 4096}, {FR_OP_GEMM_O, 16384, 4096, 8192}};
    const bool fp8 = m->machine->peak_flops[FR_FP8] > 0;
    for (int d = 0; d < 2 && fp8; d++) {
        fr_row r = fr_cal_blank(dense[d].kind);
        r.shape.m = dense[d].m;
        r.shape.n = dense[d].n;
        r.shape.k = dense[d].k;
        add_hold(m, r, FR_FP8, 0);
    }
    for (int down = 0; down < 2; down++) {
        fr_row r = fr_cal_blank(down ? FR_OP_EXPERT_DOWN : FR_OP_EXPERT_UP);
        r.shape.n = down ? 4096 : 3072;
        r.shape.k = down ? 1536 : 4096;
        if (fp8) add_hold(m, r, FR_FP8, 1024);
        if (fp8) add_hold(m, r, FR_FP8, 256);
        add_hold(m, r, FR_BF16, 256);
    }
}

/* A whole layer's kernels in turn under the limit, as forwards have them: by this cards are compared. */
static fr_status add_chains(fr_cal_maker *m, fr_error *err) {
    static const int32_t tokens[] = {16384, 2048};
    fr_model model;
    FR_TRY(fr_model_load(FR_CAL_CHAIN_MODEL, &model, err));
    for (int i = 0; i < (m->mode == FR_CAL_QUICK ? 1 : 2); i++) {
        fr_row rows[FR_CAL_LAYER];
        FR_TRY(fr_cal_layer(&model, m->machine, tokens[i], fr_cal_chain_length(tokens[i]), &m->g->table, rows, err));
        int up = 0;
        while (rows[up].shape.kind != FR_OP_EXPERT_UP) up++;
        const int tier = m->mode == FR_CAL_ANCHORS ? 1 + i : 2;
        fr_cal_item *it = fr_cal_add(m, FR_CAL_CHAIN, tier, rows[up]);
        it->tokens = tokens[i];
        it->hold_s = i ? ANCHOR_HOLD_S : LAYER_HOLD_S;
    }
    return FR_OK;
}

/* About a dozen ops that stand for all: classes, models, and both ends of how much power an op draws. */
fr_status fr_cal_add_anchors(fr_cal_maker *m, fr_error *err) {
    fr_row list[16];
    int count = 0;
    int32_t even[128];
    const struct {
        fr_op_kind kind;
        int32_t m, n, k;
    } products[] = {{FR_OP_GEMM_DENSE, 8192, 8192, 8192},
                    {FR_OP_GEMM_QKV, 16384, 9216, 4096},
                    {FR_OP_GEMM_O, 16384, 4096, 8192},
                    {FR_OP_GEMM_QKV, 1024, 5120, 2048}};
    const struct {
        fr_op_kind kind;
        int32_t experts, mean, n, k;
    } grouped[] = {{FR_OP_EXPERT_UP, 128, 1024, 3072, 4096},
                   {FR_OP_EXPERT_DOWN, 128, 1024, 4096, 1536},
                   {FR_OP_EXPERT_UP, 128, 64, 3072, 4096},
                   {FR_OP_EXPERT_UP, 8, 4096, 28672, 4096}};
    static const struct { int32_t queries, count; } sequences[] = {{4096, 4}, {1024, 16}, {16384, 1}};
    const struct {
        fr_op_kind kind;
        int64_t m, n, bytes;
    } memory[] = {{FR_OP_NORM, 65536, 4096, INT64_C(65536) * 4096 * 8}, /* engine/strategy/layer.c */
                  {FR_OP_PERMUTE, 131072, 4096, INT64_C(131072) * 4096 * 4}};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        list[count] = fr_cal_blank(products[i].kind);
        list[count].shape.m = products[i].m;
        list[count].shape.n = products[i].n;
        list[count++].shape.k = products[i].k;
    }
    for (size_t i = 0; i < sizeof grouped / sizeof *grouped; i++) {
        fr_row *r = &list[count++];
        *r = fr_cal_blank(grouped[i].kind);
        r->shape.n = grouped[i].n;
        r->shape.k = grouped[i].k;
        r->shape.experts = grouped[i].experts;
        fr_even_rows((int64_t)grouped[i].mean * grouped[i].experts, grouped[i].experts, even);
        for (int32_t e = 0; e < grouped[i].experts; e++) fr_cal_push(m, r, even[e], 0);
    }
    for (size_t i = 0; i < sizeof sequences / sizeof *sequences; i++) {
        fr_row *r = &list[count++];
        *r = fr_cal_blank(FR_OP_ATTENTION);
        r->shape.n = 64;
        r->shape.k = 4;
        r->shape.head_dim = 128;
        for (int32_t q = 0; q < sequences[i].count; q++) fr_cal_push(m, r, sequences[i].queries, 0);
    }
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        list[count] = fr_cal_blank(memory[i].kind);
        list[count].shape.m = memory[i].m;
        list[count].shape.n = (int32_t)memory[i].n;
        list[count++].shape.bytes = memory[i].bytes;
    }
    const bool anchors = m->mode == FR_CAL_ANCHORS;
    const float hold = !anchors ? fr_cal_hold_seconds(m, 1) : m->hold_s > 0 ? (float)m->hold_s : ANCHOR_HOLD_S;
    for (int i = 0; i < count; i++) {
        const bool chief = i == 0 || i == 4 || i == 8 || i == 11; /* one a class */
        const bool residual = list[i].shape.kind == FR_OP_GEMM_O;
        fr_cal_add(m, FR_CAL_BURST, 0, list[i])->residual = residual;
        fr_row r = list[i];
        r.regime = FR_SUSTAINED;
        if (m->mode == FR_CAL_FULL || chief || (m->mode == FR_CAL_QUICK && i == 5)) {
            const bool limited = fr_op_class_of((fr_op_kind)r.shape.kind) != FR_CLASS_MEMORY;
            const int tier = anchors ? (limited ? 3 : 4) : m->mode == FR_CAL_FULL ? 2 : 0;
            fr_cal_item *it = fr_cal_add(m, FR_CAL_HOLD, tier, r);
            /* what no limit holds back is the same after a second */
            it->hold_s = limited ? hold : anchors ? hold / 2 : fminf(hold, ANCHOR_HOLD_S);
            it->residual = residual;
        }
        if (anchors || !chief) continue;
        static const double duties[] = {0.5, 0.25, 0.75};
        for (int d = 0; d < 3; d++) {
            r.duty = duties[d];
            if (m->mode == FR_CAL_FULL || d == 0)
                fr_cal_add(m, FR_CAL_HOLD, 2, r)->hold_s = fr_cal_hold_seconds(m, 0.3);
        }
        r = list[i];
        r.at_ms = 0;
        fr_cal_add(m, FR_CAL_RAMP, 2, r);
        if (m->mode == FR_CAL_FULL) add_limits(m, &list[i], i == 4 ? 8 : i == 0 ? 6 : i == 8 ? 2 : 0);
    }
    if (m->mode == FR_CAL_FULL) add_holds(m);
    if (m->mode == FR_CAL_FULL) add_small_holds(m);
    return add_chains(m, err);
}

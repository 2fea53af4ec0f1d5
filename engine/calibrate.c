/*
 * The grid. Shapes of products and memory-bound ops come from plans of the models that the engine executes, so that a
 * row is what a plan asks for; tokens per expert, sequence lengths and copies are listed here.
 */
#include "engine/calibrate.h"

#include "engine/batch_tables.h"
#include "engine/layout.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const models[] = {"qwen3-235b-a22b", "qwen3-30b-a3b", "mixtral-8x7b"};
enum { MODELS = 3, TIERS = 6, LONGEST = 65536, ROWS_LIMIT = 524288 };

/* Host time of choosing and compiling, s: cublasLt some 3 ms a shape; cuDNN 0.25 s for a number of sequences and head
 * layout, 50 ms for a graph of equal lengths (kernels/measured/README.md). */
#define PLAN_GEMM_S  0.003
#define PLAN_FIRST_S 0.25
#define PLAN_EQUAL_S 0.05

const int32_t fr_cal_ramp[FR_CAL_RAMP_STEPS + 1] = {0, 5, 10, 20, 30, 45, 60, 90, 130, 200, 300, 500};

const int32_t fr_cal_pause[FR_CAL_PAUSE_STEPS + 1] = {0, 5, 10, 20, 30, 45, 60};

const char *fr_cal_what_name(fr_cal_what w) {
    static const char *const names[FR_CAL_WHATS] = {"burst", "hold", "ramp",       "release",  "host",
                                                    "copy",  "pull", "collective", "exchange", "beside"};
    return names[w];
}

int64_t fr_cal_exchange_tokens(int ranks) {
    return fr_min_i64(FR_CAL_EXCHANGE_TOKENS, 131072 / ranks);
}

const char *fr_cal_mode_name(fr_cal_mode m) {
    static const char *const names[] = {"full", "quick", "anchors"};
    return names[m];
}

double fr_cal_mode_seconds(fr_cal_mode m) {
    return m == FR_CAL_FULL ? 480 : m == FR_CAL_QUICK ? 115 : 58;
}

/* ---- adding -------------------------------------------------------------------------------------------------------*/

typedef struct {
    fr_cal_grid *g;
    const fr_machine *machine;
    fr_cal_mode mode;
    double limit_s, hold_s;
} maker;

/* Seconds of a sustained measurement: a 40th of the whole, 10 s at most; the clock settles within a second (ramps). */
static float hold_seconds(const maker *m, double share) {
    const double all = m->hold_s > 0 ? m->hold_s : fmin(m->limit_s / 40, 10);
    return (float)fmax(share * all, m->hold_s > 0 ? 1 : 2);
}

/* Of the quick grid and of anchors only the most wanted. */
static bool wanted(const maker *m, int tier) {
    return m->mode == FR_CAL_FULL || (m->mode == FR_CAL_QUICK && tier <= 2);
}

static fr_row blank(fr_op_kind kind) {
    return (fr_row){.type = FR_ROW_OP,
                    .regime = FR_BURST,
                    .ways = 1,
                    .duty = 1,
                    .at_ms = -1,
                    .gap_ms = -1,
                    .shape = {.kind = (uint8_t)kind, .hosts = 1}};
}

/* Adds a row (its vector has been pushed) unless the grid holds it; a second one may raise its tier. */
static fr_cal_item *add(maker *m, fr_cal_what what, int tier, fr_row row) {
    fr_cal_grid *g = m->g;
    fr_table *t = &g->table;
    fr_shape *s = &row.shape;
    if (fr_op_class_of((fr_op_kind)s->kind) == FR_CLASS_ATTENTION && !s->v_head_dim)
        s->v_head_dim = (int16_t)s->head_dim;
    if (!s->hosts) s->hosts = 1; /* as the reader has it */
    row.key = fr_row_key(t, &row);
    for (uint32_t i = 0; i < g->count; i++)
        if (fr_row_same(t, &row, t, &t->rows[i], true)) {
            if (tier < g->items[i].tier) g->items[i].tier = (uint8_t)tier;
            return &g->items[i];
        }
    FR_GROW(t->rows, t->cap, t->count + 1);
    FR_GROW(g->items, g->cap, g->count + 1);
    t->rows[t->count++] = row;
    fr_cal_item *it = &g->items[g->count++];
    *it = (fr_cal_item){.what = (uint8_t)what, .tier = (uint8_t)tier, .head_dim = 128, .top_k = 8};
    return it;
}

static void push(maker *m, fr_row *row, int32_t queries, int32_t prefix) {
    fr_table *t = &m->g->table;
    FR_GROW(t->pairs, t->pairs_cap, t->pairs_count + 1);
    if (!row->shape.vector_count) row->shape.vector = t->pairs_count;
    t->pairs[t->pairs_count++] = (fr_pair){queries, prefix};
    row->shape.vector_count++;
    row->shape.m += queries;
}

/* ---- what plans ask for: products and memory-bound ops
 * --------------------------------------------------------------*/

typedef struct {
    maker *m;
    const fr_model *model;
    int tier, tp;
    fr_precision precision;
} plan_sink;

static void add_shape(void *context, const fr_shape *shape) {
    const plan_sink *sink = context;
    const bool gemm = fr_op_class_of((fr_op_kind)shape->kind) == FR_CLASS_GEMM;
    fr_row row = blank((fr_op_kind)shape->kind);
    row.shape.precision = shape->precision;
    row.shape.m = shape->m;
    row.shape.n = shape->n;
    row.shape.k = gemm ? shape->k : 0;
    row.shape.bytes = gemm ? 0 : shape->bytes;
    const bool fp8 = sink->precision == FR_FP8;
    const bool rows = shape->kind == FR_OP_NORM || shape->kind == FR_OP_PERMUTE || shape->kind == FR_OP_COMBINE;
    if (fp8 && shape->precision != FR_FP8 && !rows) return; /* as in bf16, which is listed */
    const uint32_t before = sink->m->g->count;
    fr_cal_item *it = add(sink->m, FR_CAL_BURST, sink->tier, row);
    if (sink->m->g->count > before) { /* else it is another model's row as well, and measured as that one's */
        it->top_k = (int16_t)sink->model->top_k;
        it->head_dim = (int16_t)sink->model->head_dim;
        /* a row of one byte each and its scales is no multiple of two bytes an element */
        it->fp8 = fp8 && !gemm && shape->bytes % (2 * shape->m * shape->n) != 0;
        it->quantise = it->fp8 && shape->n != sink->model->hidden;
    }
    it->residual = it->residual || (shape->kind == FR_OP_GEMM_O && sink->tp == 1 && !fp8); /* engine/strategy/layer.c */
}

static fr_status plan_rows(maker *m, const fr_model *model, int tp, fr_precision precision, int64_t tokens, int tier,
                           fr_error *err) {
    plan_sink sink = {m, model, tier, tp, precision};
    return fr_cal_plan_shapes(model, m->machine, tp, precision, tokens, add_shape, &sink, err);
}

static fr_status add_plans(maker *m, fr_error *err) {
    /* up to the tiles of a product (64 and 128 rows, 256 columns over 132 SMs: waves end between 128 and 2,048 rows) */
    static const int32_t coarse[] = {1, 64, 256, 1024, 4096, 8192, 16384, 32768};
    static const int32_t dense[] = {16,   32,   128,  192,  384,  512,   640,   768,   896,  1280,
                                    1536, 2048, 2560, 3072, 6144, 12288, 24576, 49152, 65536};
    for (int i = 0; i < MODELS; i++) {
        fr_model model;
        FR_TRY(fr_model_load(models[i], &model, err));
        for (int tp = 1; tp <= 8; tp *= 2) {
            if (tp > 2 && i > 0) continue;
            const int tier = tp == 1 ? 1 : tp == 2 ? 3 : 5;
            for (size_t j = 0; j < sizeof coarse / sizeof *coarse; j++)
                if (wanted(m, tier)) FR_TRY(plan_rows(m, &model, tp, FR_BF16, coarse[j], tier, err));
            for (size_t j = 0; j < sizeof dense / sizeof *dense; j++)
                if (wanted(m, tier + 2)) FR_TRY(plan_rows(m, &model, tp, FR_BF16, dense[j], tier + 2, err));
            if (tp > 1 || m->mode != FR_CAL_FULL || m->machine->peak_flops[FR_FP8] <= 0) continue;
            for (size_t j = 0; j < sizeof coarse / sizeof *coarse; j++)
                FR_TRY(plan_rows(m, &model, tp, FR_FP8, coarse[j], 3, err));
            for (size_t j = 0; j < sizeof dense / sizeof *dense; j++)
                FR_TRY(plan_rows(m, &model, tp, FR_FP8, dense[j], 4, err));
        }
    }
    return FR_OK;
}

/* Products of no model: square ones, and the ends of what n and k may be. */
static void add_generic(maker *m) {
    static const int32_t sides[][3] = {
        {1024, 1024, 1024},  {2048, 2048, 2048},  {4096, 4096, 4096},  {8192, 8192, 8192},  {4096, 16384, 4096},
        {4096, 4096, 16384}, {16384, 2048, 2048}, {4096, 24576, 7168}, {1024, 7168, 16384}, {16384, 1536, 7168}};
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        fr_row row = blank(FR_OP_GEMM_DENSE);
        row.shape.m = sides[i][0];
        row.shape.n = sides[i][1];
        row.shape.k = sides[i][2];
        if (wanted(m, i == 3 ? 1 : 4)) add(m, FR_CAL_BURST, i == 3 ? 1 : 4, row);
    }
}

/* ---- tokens per expert --------------------------------------------------------------------------------------------*/

typedef enum { EQUAL, EVEN, POWER } pattern;

/* Rows by a power law (i + 1)^-s whose hottest expert has `peak` times the mean; what rounding leaves goes to the
 * first.
 */
static void power_rows(int64_t sum, int32_t experts, double peak, int32_t *rows) {
    double low = 0, high = 4;
    for (int turn = 0; turn < 60; turn++) {
        const double s = (low + high) / 2;
        double total = 0;
        for (int32_t i = 0; i < experts; i++) total += pow(i + 1, -s);
        if (experts / total < peak)
            low = s;
        else
            high = s;
    }
    double total = 0;
    int64_t given = 0;
    for (int32_t i = 0; i < experts; i++) total += pow(i + 1, -low);
    for (int32_t i = 0; i < experts; i++) given += rows[i] = (int32_t)floor((double)sum * pow(i + 1, -low) / total);
    for (int32_t i = 0; given < sum; i = (i + 1) % experts, given++) rows[i]++;
}

static void add_grouped(maker *m, fr_op_kind kind, fr_precision precision, int32_t experts, int64_t mean, pattern p,
                        int32_t n, int32_t k, int tier) {
    if (!wanted(m, tier) || mean * experts > ROWS_LIMIT) return;
    int32_t *rows = fr_alloc((size_t)experts * sizeof *rows);
    for (int32_t i = 0; i < experts; i++) rows[i] = (int32_t)mean;
    if (p == EVEN) fr_even_rows(mean * experts, experts, rows);
    if (p == POWER) power_rows(mean * experts, experts, experts >= 64 ? 6 : 2.5, rows); /* 8 experts: at most 8 means */
    fr_row row = blank(kind);
    row.shape.precision = (uint8_t)precision;
    row.shape.n = n;
    row.shape.k = k;
    for (int32_t i = 0; i < experts; i++) push(m, &row, rows[i], 0);
    row.shape.experts = experts;
    add(m, FR_CAL_BURST, tier, row);
    free(rows);
}

/* The same work by each variant of the kernel: what fr_cost_tile chooses by. */
static void add_tiles(maker *m, fr_op_kind kind, int32_t experts, int64_t mean, int32_t n, int32_t k, int tier) {
    if (!wanted(m, tier) || mean * experts > ROWS_LIMIT) return;
    int32_t *rows = fr_alloc((size_t)experts * sizeof *rows);
    fr_even_rows(mean * experts, experts, rows);
    fr_row row = blank(kind);
    row.shape.n = n;
    row.shape.k = k;
    row.shape.experts = experts;
    for (int32_t i = 0; i < experts; i++) push(m, &row, rows[i], 0);
    for (int t = 0; t < FR_TILES; t++) {
        row.tile = (uint8_t)(1 + t);
        add(m, FR_CAL_BURST, tier, row);
    }
    free(rows);
}

typedef struct {
    const int32_t *mean;
    int count;
    pattern pattern;
    int tier;
} series;
#define SERIES(a, p, t)                                                                                                \
    { a, (int)(sizeof(a) / sizeof *(a)), p, t }

static void add_experts(maker *m, const fr_model *model, fr_precision precision, int32_t experts, int tp,
                        const series *list, int count, int later) {
    const int32_t width = model->expert_width / tp;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < list[i].count; j++) {
            add_grouped(m, FR_OP_EXPERT_UP, precision, experts, list[i].mean[j], list[i].pattern, 2 * width,
                        model->hidden, list[i].tier + later);
            add_grouped(m, FR_OP_EXPERT_DOWN, precision, experts, list[i].mean[j], list[i].pattern, model->hidden,
                        width, list[i].tier + later);
        }
}

static fr_status add_all_experts(maker *m, fr_error *err) {
    /* the kernel's tile holds 128 rows in units of 64 (kernels/grouped_gemm.cu) */
    static const int32_t even_core[] = {8, 64, 256, 1024}, equal_core[] = {64, 128, 1024}, power_core[] = {256, 1024};
    static const int32_t even_more[] = {4, 16, 32, 96, 128, 192, 384, 512, 768, 1536, 2048, 4096},
                         power_more[] = {16, 64, 128, 512, 2048};
    static const int32_t equal_more[] = {1, 2, 4, 8, 16, 32, 48, 256, 512, 2048, 4096},
                         edges[] = {63, 65, 80, 96, 127, 129, 160, 192, 193, 320, 384, 768, 1536};
    static const int32_t part[] = {16, 64, 128, 256, 1024, 2048};
    static const series core[] = {SERIES(even_core, EVEN, 1),   SERIES(equal_core, EQUAL, 1),
                                  SERIES(power_core, POWER, 1), SERIES(even_more, EVEN, 2),
                                  SERIES(power_more, POWER, 3), SERIES(equal_more, EQUAL, 3),
                                  SERIES(edges, EQUAL, 4)},
                        slice[] = {SERIES(part, EVEN, 3)}, few[] = {SERIES(part, EVEN, 4)};
    static const int32_t fp8_even[] = {4, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048},
                         fp8_power[] = {64, 256, 1024};
    static const series quantised[] = {SERIES(fp8_even, EVEN, 3), SERIES(fp8_power, POWER, 3),
                                       SERIES(equal_core, EQUAL, 3)};
    static const int32_t tiles[] = {32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048};
    static const int32_t long_batches[] = {6144, 8192};
    static const series mixtral_more[] = {SERIES(long_batches, EVEN, 4)};
    for (int i = 0; i < MODELS; i++) {
        fr_model model;
        FR_TRY(fr_model_load(models[i], &model, err));
        add_experts(m, &model, FR_BF16, model.experts, 1, core, (int)(sizeof core / sizeof *core), i == 2 ? 1 : 0);
        add_experts(m, &model, FR_BF16, model.experts, 2, slice, 1, 0);
        if (model.experts == 8) add_experts(m, &model, FR_BF16, 8, 1, mixtral_more, 1, 0);
        for (size_t j = 0; j < sizeof tiles / sizeof *tiles; j++) {
            add_tiles(m, FR_OP_EXPERT_UP, model.experts, tiles[j], 2 * model.expert_width, model.hidden, 3);
            add_tiles(m, FR_OP_EXPERT_DOWN, model.experts, tiles[j], model.hidden, model.expert_width, 3);
        }
        if (model.expert_width % 512 == 0) add_experts(m, &model, FR_BF16, model.experts, 4, slice, 1, 1);
        const bool fp8 = m->machine->peak_flops[FR_FP8] > 0;
        if (fp8)
            add_experts(m, &model, FR_FP8, model.experts, 1, quantised, (int)(sizeof quantised / sizeof *quantised), 0);
        for (int ep = 2; ep <= 4; ep *= 2) { /* a rank's experts */
            add_experts(m, &model, FR_BF16, model.experts / ep, 1, few, 1, 0);
            if (fp8) add_experts(m, &model, FR_FP8, model.experts / ep, 1, few, 1, 1);
        }
        if (model.experts >= 64) add_experts(m, &model, FR_BF16, model.experts / 8, 1, few, 1, 1);
    }
    return FR_OK;
}

/* ---- sequences ----------------------------------------------------------------------------------------------------*/

typedef struct {
    int32_t queries, prefix, count;
} run;

static void add_sequences(maker *m, int heads, int kv_heads, const run *runs, int tier) {
    if (!wanted(m, tier)) return;
    fr_row row = blank(FR_OP_ATTENTION);
    row.shape.n = heads;
    row.shape.k = kv_heads;
    row.shape.head_dim = 128;
    for (int i = 0; i < 3; i++)
        for (int32_t j = 0; j < runs[i].count; j++) push(m, &row, runs[i].queries, runs[i].prefix);
    add(m, FR_CAL_BURST, tier, row);
    row.packed = true;
    const int32_t length = runs[0].queries;
    if (!runs[1].count && !runs[0].prefix && fr_unmasked(runs[0].count, length) && tier <= 4)
        add(m, FR_CAL_BURST, tier + 1, row); /* as lengths that vary run */
}

static void add_attention(maker *m) {
    static const int layouts[][3] = {{64, 4, 0}, {32, 4, 0}, {32, 8, 1}, {32, 2, 2}, {16, 2, 3}, {16, 4, 3}};
    static const int32_t core[] = {256, 1024, 4096, 16384};
    static const int32_t more[] = {64,   128,  192,  384,   512,   768,   1536,  2048,
                                   3072, 6144, 8192, 12288, 24576, 32768, 49152, 65536};
    static const run mixed[][3] = {{{8192, 0, 1}, {512, 0, 16}},   {{16384, 0, 1}, {256, 0, 15}},
                                   {{4096, 0, 2}, {1024, 0, 6}},   {{2048, 0, 4}, {128, 0, 28}},
                                   {{32768, 0, 1}, {1024, 0, 31}}, {{300, 0, 20}, {700, 0, 12}}};
    static const run cached[][3] = {{{512, 4096, 4}},  {{128, 8192, 8}},  {{2048, 8192, 1}},  {{4096, 4096, 1}},
                                    {{256, 2048, 16}}, {{512, 512, 8}},   {{1024, 16384, 1}}, {{8192, 24576, 1}},
                                    {{16, 4096, 16}},  {{2048, 2048, 8}}, {{64, 1024, 64}},   {{4096, 28672, 1}}};
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        const int h = layouts[l][0], kv = layouts[l][1], later = layouts[l][2];
        for (size_t i = 0; i < sizeof core / sizeof *core; i++)
            add_sequences(m, h, kv, (run[3]){{core[i], 0, 1}}, 1 + later);
        for (size_t i = 0; i < sizeof more / sizeof *more; i++)
            add_sequences(m, h, kv, (run[3]){{more[i], 0, 1}}, 3 + later);
        for (int32_t total = 4096; total <= 65536; total *= 2)
            for (int32_t length = 128; length <= 8192; length *= 2) {
                const bool often = total == 16384 && (length == 256 || length == 1024 || length == 4096);
                if (total / length > 128 || total / length < 2)
                    continue; /* more sequences: rare, and slow to compile */
                add_sequences(m, h, kv, (run[3]){{length, 0, total / length}},
                              later + (often            ? 1
                                       : total == 16384 ? 2
                                                        : 4));
            }
        for (size_t i = 0; i < sizeof mixed / sizeof *mixed; i++) add_sequences(m, h, kv, mixed[i], 2 + later);
        for (size_t i = 0; i < sizeof cached / sizeof *cached; i++)
            add_sequences(m, h, kv, cached[i], (i < 4 ? 2 : 3) + later);
    }
}

/* ---- anchors, clock and power -------------------------------------------------------------------------------------*/

/* How the power limit comes and goes: pauses after a load (in some, memory is streamed), and turns of several lengths,
 * the first `turns` of them. */
static void add_limits(maker *m, const fr_row *op, int turns) {
    static const int32_t pauses[] = {10, 40, 160, 2, 1, 5, 20, 80, 320};
    static const struct {
        double duty;
        int32_t ms;
    } list[] = {{0.75, 40}, {0.5, 100}, {0.75, 160}, {0.9, 20}, {0.9, 100}, {0.65, 40}, {0.5, 400}, {0.85, 10}};
    fr_row r = *op;
    if (fr_op_class_of((fr_op_kind)op->shape.kind) == FR_CLASS_MEMORY) return;
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        r.gap_ms = pauses[i];
        add(m, FR_CAL_RELEASE, 2, r);
        r.fill = op->shape.kind == FR_OP_EXPERT_UP && (pauses[i] == 40 || pauses[i] == 160);
        if (r.fill) add(m, FR_CAL_RELEASE, 2, r);
        r.fill = false;
    }
    r = *op;
    r.regime = FR_SUSTAINED;
    for (int i = 0; i < turns; i++) {
        r.duty = list[i].duty;
        r.turn_ms = list[i].ms;
        add(m, FR_CAL_HOLD, 2, r)->hold_s = (float)fmax(1.2, 4e-3 * list[i].ms);
    }
}

/* The work of products in the other precision, sustained: tensor cores draw another power for it. */
static void add_fp8_holds(maker *m) {
    int32_t even[128];
    if (m->mode != FR_CAL_FULL || m->machine->peak_flops[FR_FP8] <= 0) return;
    fr_row r = blank(FR_OP_GEMM_QKV);
    r.shape = (fr_shape){.kind = FR_OP_GEMM_QKV, .precision = FR_FP8, .m = 16384, .n = 9216, .k = 4096, .hosts = 1};
    r.regime = FR_SUSTAINED;
    add(m, FR_CAL_HOLD, 2, r)->hold_s = hold_seconds(m, 1);
    for (int down = 0; down < 2; down++) {
        r = blank(down ? FR_OP_EXPERT_DOWN : FR_OP_EXPERT_UP);
        r.regime = FR_SUSTAINED;
        r.shape.precision = FR_FP8;
        r.shape.n = down ? 4096 : 3072;
        r.shape.k = down ? 1536 : 4096;
        r.shape.experts = 128;
        fr_even_rows(131072, 128, even);
        for (int e = 0; e < 128; e++) push(m, &r, even[e], 0);
        add(m, FR_CAL_HOLD, 2, r)->hold_s = hold_seconds(m, 1);
    }
}

/* About a dozen ops that stand for all: classes, models, and both ends of how much power an op draws. */
static fr_status add_anchors(maker *m, fr_error *err) {
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
    const run sequences[][3] = {{{4096, 0, 4}}, {{1024, 0, 16}}, {{16384, 0, 1}}};
    const struct {
        fr_op_kind kind;
        int64_t m, n, bytes;
    } memory[] = {{FR_OP_NORM, 65536, 4096, INT64_C(65536) * 4096 * 8}, /* engine/strategy/layer.c */
                  {FR_OP_PERMUTE, 131072, 4096, INT64_C(131072) * 4096 * 4}};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        list[count] = blank(products[i].kind);
        list[count].shape.m = products[i].m;
        list[count].shape.n = products[i].n;
        list[count++].shape.k = products[i].k;
    }
    for (size_t i = 0; i < sizeof grouped / sizeof *grouped; i++) {
        fr_row *r = &list[count++];
        *r = blank(grouped[i].kind);
        r->shape.n = grouped[i].n;
        r->shape.k = grouped[i].k;
        r->shape.experts = grouped[i].experts;
        fr_even_rows((int64_t)grouped[i].mean * grouped[i].experts, grouped[i].experts, even);
        for (int32_t e = 0; e < grouped[i].experts; e++) push(m, r, even[e], 0);
    }
    for (size_t i = 0; i < sizeof sequences / sizeof *sequences; i++) {
        fr_row *r = &list[count++];
        *r = blank(FR_OP_ATTENTION);
        r->shape.n = 64;
        r->shape.k = 4;
        r->shape.head_dim = 128;
        for (int j = 0; j < 3; j++)
            for (int32_t q = 0; q < sequences[i][j].count; q++) push(m, r, sequences[i][j].queries, 0);
    }
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        list[count] = blank(memory[i].kind);
        list[count].shape.m = memory[i].m;
        list[count].shape.n = (int32_t)memory[i].n;
        list[count++].shape.bytes = memory[i].bytes;
    }
    const float hold = m->mode == FR_CAL_ANCHORS ? (float)fmax(m->hold_s, 1.2) : hold_seconds(m, 1);
    for (int i = 0; i < count; i++) {
        const bool chief = i == 0 || i == 4 || i == 8 || i == 11; /* one a class */
        const bool residual = list[i].shape.kind == FR_OP_GEMM_O;
        add(m, FR_CAL_BURST, 0, list[i])->residual = residual;
        fr_row r = list[i];
        r.regime = FR_SUSTAINED;
        if (m->mode == FR_CAL_FULL || chief || (m->mode == FR_CAL_QUICK && i == 5)) {
            fr_cal_item *it = add(m, FR_CAL_HOLD, m->mode == FR_CAL_FULL ? 2 : 0, r);
            it->hold_s = hold;
            it->residual = residual;
        }
        if (m->mode == FR_CAL_ANCHORS || !chief) continue;
        static const double duties[] = {0.5, 0.25, 0.75};
        for (int d = 0; d < 3; d++) {
            r.duty = duties[d];
            if (m->mode == FR_CAL_FULL || d == 0) add(m, FR_CAL_HOLD, 2, r)->hold_s = hold_seconds(m, 0.3);
        }
        r = list[i];
        r.at_ms = 0;
        add(m, FR_CAL_RAMP, 2, r);
        if (m->mode == FR_CAL_FULL) add_limits(m, &list[i], i == 4 ? 8 : i == 0 ? 6 : i == 8 ? 2 : 0);
    }
    (void)err;
    return FR_OK;
}

/* ---- host, copies, two GPUs ---------------------------------------------------------------------------------------*/

static void add_host(maker *m) {
    fr_row row = blank(FR_OP_LAUNCH);
    row.shape.m = 1;
    add(m, FR_CAL_HOST, 0, row);
    add(m, FR_CAL_HOST, 0, blank(FR_OP_READBACK));
    row = blank(FR_OP_NONE);
    row.type = FR_ROW_FLOOR;
    add(m, FR_CAL_HOST, 0, row);
    static const fr_row_type types[] = {FR_ROW_EVENT, FR_ROW_GAP, FR_ROW_GAP_TIMED};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        row.type = (uint8_t)types[i];
        add(m, FR_CAL_HOST, 0, row);
    }
}

static fr_row pull_row(int devices, int64_t bytes, int ways) {
    fr_row row = blank(FR_OP_PULL);
    row.shape.bytes = bytes;
    row.shape.ranks = (int16_t)(devices > 2 ? devices : 0); /* 0 = a pair */
    row.ways = (uint8_t)ways;
    row.by_owner = devices > 2; /* as the engine makes them */
    return row;
}

/* How many pulls in flight, in which order of sources, and by whom, reach the links' rate. */
static void add_pull_variants(maker *m, int devices) {
    static const uint8_t streams[] = {1, 2, 3, 4, 6};
    static const int64_t sizes[] = {INT64_C(1) << 23, INT64_C(1) << 26, INT64_C(1) << 28};
    for (size_t b = 0; b < sizeof sizes / sizeof *sizes; b++)
        for (size_t s = 0; s < sizeof streams / sizeof *streams; s++)
            for (int o = 0; o < (devices > 2 ? FR_PULL_ORDERS : 1); o++)
                for (int by = 0; by < (devices > 2 ? 2 : 1); by++) {
                    fr_row row = pull_row(devices, sizes[b], 2);
                    row.streams = streams[s];
                    row.order = (uint8_t)o;
                    row.by_owner = by == 0 && devices > 2;
                    if (row.by_owner && o == FR_PULL_SAME) continue; /* readers' doing */
                    if (devices > 2 || (m->mode == FR_CAL_FULL && streams[s] != 2))
                        add(m, FR_CAL_PULL, row.by_owner || devices == 2 ? 1 : 4, row);
                }
}

/* What pulls draw, by the share of the time that they run. */
static void add_pull_watts(maker *m, int devices) {
    static const double duties[] = {1, 0.5, 0.25};
    for (int ways = devices > 2 ? 2 : 1; ways <= 2; ways++)
        for (int d = 0; d < (ways == 2 ? 3 : 1) && m->mode == FR_CAL_FULL; d++) {
            fr_row row = pull_row(devices, INT64_C(1) << 30, ways);
            row.regime = FR_SUSTAINED;
            row.duty = duties[d];
            add(m, FR_CAL_PULL, 1, row)->hold_s = 1.5F;
        }
}

/* A pair pulls one way and both; more GPUs all at once, which loads every link both ways. */
static void add_copies(maker *m, int devices) {
    const bool pair = devices > 1;
    static const fr_op_kind kinds[] = {FR_OP_H2D, FR_OP_D2H, FR_OP_DRAIN};
    for (int64_t bytes = 4096; bytes <= INT64_C(1) << 30; bytes *= 4)
        for (int k = 0; k < 3 && !pair; k++)
            for (int ways = 1; ways <= (k < 2 ? 2 : 1); ways++) {
                fr_row row = blank(kinds[k]);
                row.shape.bytes = bytes;
                row.ways = (uint8_t)ways;
                if (m->mode == FR_CAL_FULL || bytes == INT64_C(1) << 28 || ways == 1)
                    add(m, FR_CAL_COPY, ways == 1 ? 1 : 3, row);
            }
    for (int64_t bytes = 4096; bytes <= INT64_C(1) << 32 && pair; bytes *= 4)
        for (int ways = devices > 2 ? 2 : 1; ways <= 2; ways++) add(m, FR_CAL_PULL, 0, pull_row(devices, bytes, ways));
    for (int k = 0; k < 2 && devices > 2; k++) { /* from and to the host, all GPUs at once */
        fr_row row = blank(kinds[k]);
        row.shape.bytes = INT64_C(1) << 28;
        row.shape.ranks = (int16_t)devices;
        add(m, FR_CAL_PULL, 1, row);
    }
    if (!pair) return;
    add_pull_variants(m, devices);
    add_pull_watts(m, devices);
}

/* Every rank's part of what is gathered is whole rows of 512 bytes (engine/cuda/calibrate_pair.c). */
static void add_collectives(maker *m, int devices) {
    static const struct {
        fr_op_kind kind;
        fr_gather transport;
        int tier;
    } kinds[] = {{FR_OP_ALLREDUCE, FR_GATHER_NCCL, 0},
                 {FR_OP_ALLGATHER, FR_GATHER_NCCL, 0},
                 {FR_OP_REDUCESCATTER, FR_GATHER_NCCL, 0},
                 {FR_OP_SEND, FR_GATHER_NCCL, 0}, /* more than two: each to the next, all at once */
                 {FR_OP_GATHER_WEIGHTS, FR_GATHER_NCCL_CE, 1}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        bool coarse = false; /* every other size */
        const bool weights = kinds[i].kind == FR_OP_GATHER_WEIGHTS;
        for (int64_t bytes = INT64_C(512) * devices << (weights ? 11 : 0); bytes <= INT64_C(1) << 30; bytes *= 2) {
            fr_row row = blank(kinds[i].kind);
            row.shape.bytes = bytes;
            row.shape.ranks = (int16_t)devices;
            row.shape.transport = (uint8_t)kinds[i].transport;
            coarse = !coarse;
            /* what needs communicators of its own comes last: should these not open, the rest is there */
            const int later = devices > 2 && (weights || kinds[i].kind == FR_OP_SEND) ? TIERS : 0;
            if (coarse || m->mode == FR_CAL_FULL) add(m, FR_CAL_COLLECTIVE, kinds[i].tier + !coarse + later, row);
        }
    }
}

/* Tokens to the ranks of their experts and back, under even routing: bytes as engine/strategy/experts_ep.c counts them,
 * one row of bf16 for each token and other rank that has one of its experts. */
static fr_status add_exchanges(maker *m, int devices, fr_error *err) {
    static const fr_op_kind kinds[] = {FR_OP_COUNTS, FR_OP_ALLTOALL, FR_OP_ALLTOALL_BACK};
    fr_model model;
    FR_TRY(fr_model_load(FR_CAL_EXCHANGE_MODEL, &model, err));
    double missed = 1; /* none of a token's k experts is on a rank */
    if (model.experts % devices || model.experts / devices < model.top_k || devices > model.top_k) return FR_OK;
    for (int j = 0; j < model.top_k; j++)
        missed *= (model.experts - (double)model.experts / devices - j) / (model.experts - j);
    for (int32_t tokens = 1; tokens <= fr_cal_exchange_tokens(devices); tokens *= 2)
        for (int k = 0; k < 3; k++) {
            const int32_t others = devices - 1;
            const int32_t leaving = others * (int32_t)lround(fmax(1, tokens * (1 - missed)));
            fr_row row = blank(kinds[k]);
            row.shape.ranks = (int16_t)devices;
            row.shape.bytes = k ? 2 * (int64_t)model.hidden * leaving : 0;
            const bool coarse = tokens == 1 || tokens == 64 || tokens == 512 || tokens == 4096 || tokens == 16384;
            if (m->mode != FR_CAL_FULL && !coarse) continue;
            fr_cal_item *it = add(m, FR_CAL_EXCHANGE, 0, row);
            it->tokens = tokens;
            it->leaving = leaving;
        }
    return FR_OK;
}

/* Of a pair both ways, pulls one way too, and parts of the time; of more GPUs what all do to each other. */
static void add_beside(maker *m, int devices) {
    static const fr_op_class victims[] = {FR_CLASS_GEMM, FR_CLASS_GROUPED, FR_CLASS_ATTENTION, FR_CLASS_MEMORY};
    static const double duties[] = {1, 0.5, 0.25, 0.75};
    for (int regime = 0; regime < 2; regime++)
        for (int a = 0; a < FR_AGGRESSORS; a++)
            for (int v = 0; v < 4; v++)
                for (int ways = 2; ways >= 1; ways--)
                    for (int d = 0; d < 4; d++) {
                        fr_row row = {.type = FR_ROW_SLOWDOWN,
                                      .regime = (uint8_t)regime,
                                      .victim = (uint8_t)victims[v],
                                      .aggressor = (uint8_t)a,
                                      .ways = (uint8_t)ways,
                                      .duty = duties[d],
                                      .at_ms = -1,
                                      .gap_ms = -1,
                                      .shape.ranks = (int16_t)(devices > 2 ? devices : 0)};
                        if (ways == 1 && (a != FR_AGGRESSOR_PULL || d || devices > 2)) continue;
                        if (d && (regime == FR_BURST || devices > 2)) continue;
                        const bool first = ways == 2 && d == 0;
                        const int tier = (first ? 1 : 3) + (a == FR_AGGRESSOR_H2D) + (d > 1) + (devices > 2);
                        if (wanted(m, tier)) add(m, FR_CAL_BESIDE, tier, row)->hold_s = hold_seconds(m, 0.4);
                    }
}

/* ---- order and estimates ------------------------------------------------------------------------------------------*/

/* Seconds that an item takes: choosing, a warm launch, some launches (engine/cuda/measure.h) and rest. */
static double estimate(const fr_cal_grid *g, uint32_t i, const fr_cost_model *cost) {
    const fr_cal_item *it = &g->items[i];
    const fr_row *r = &g->table.rows[i];
    const fr_op_class class = fr_op_class_of((fr_op_kind)r->shape.kind);
    fr_cost c = {0};
    switch ((fr_cal_what)it->what) {
    case FR_CAL_HOLD:
        return it->hold_s + 0.3;
    case FR_CAL_RELEASE:
        return 0.6 + 1e-3 * r->gap_ms;
    case FR_CAL_RAMP:
        return 1e-3 * fr_cal_ramp[FR_CAL_RAMP_STEPS] + 1.6;
    case FR_CAL_HOST:
        return 0.15;
    case FR_CAL_BESIDE:
        return (r->regime == FR_BURST ? 1.4 : it->hold_s + 0.4) *
               (r->aggressor == 0 && r->ways == 2 && r->duty >= 1 ? 2 : 1);
    case FR_CAL_PULL:
        if (it->hold_s > 0) return it->hold_s + 0.2;
        break;
    default:
        break;
    }
    fr_cost_op(cost, &r->shape, g->table.pairs, &c);
    const double ns = fmax((double)c.ns, 3000), launches = fmin(fmax(1.2e7 / ns, 3), 40);
    double s = 0.004 + 1e-9 * ns * (2 + launches);
    if (class == FR_CLASS_GEMM) s += PLAN_GEMM_S;
    if (class == FR_CLASS_GEMM || class == FR_CLASS_GROUPED || class == FR_CLASS_ATTENTION)
        s += 2e-9 * ns * (2 + launches); /* rest */
    if (class == FR_CLASS_ATTENTION) {
        const fr_pair *v = g->table.pairs + r->shape.vector;
        bool equal = fr_unmasked(r->shape.vector_count, v[0].queries);
        for (uint32_t j = 0; j < r->shape.vector_count && equal; j++)
            equal = v[j].queries == v[0].queries && v[j].prefix == 0;
        s += equal ? PLAN_EQUAL_S : PLAN_FIRST_S / 8; /* most find a kernel that was compiled before */
    }
    if (it->what == FR_CAL_PULL || it->what == FR_CAL_COLLECTIVE || it->what == FR_CAL_EXCHANGE)
        s = 0.02 + 3e-9 * ns * launches;
    return s;
}

static int by_value(const void *a, const void *b, void *grid) {
    const fr_cal_grid *g = grid;
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (g->items[i].tier != g->items[j].tier) return g->items[i].tier - g->items[j].tier;
    return (i > j) - (i < j);
}

static void sort(fr_cal_grid *g) {
    uint32_t *order = fr_alloc(((size_t)g->count + 1) * sizeof *order);
    fr_cal_item *items = fr_alloc(((size_t)g->count + 1) * sizeof *items);
    fr_row *rows = fr_alloc(((size_t)g->count + 1) * sizeof *rows);
    for (uint32_t i = 0; i < g->count; i++) order[i] = i;
    qsort_r(order, g->count, sizeof *order, by_value, g);
    for (uint32_t i = 0; i < g->count; i++) {
        items[i] = g->items[order[i]];
        rows[i] = g->table.rows[order[i]];
    }
    memcpy(g->items, items, g->count * sizeof *items);
    memcpy(g->table.rows, rows, g->count * sizeof *rows);
    free(rows);
    free(items);
    free(order);
}

static fr_status fill(maker *m, int devices, fr_error *err) {
    if (m->mode == FR_CAL_ANCHORS) return add_anchors(m, err);
    if (devices > 1) {
        add_copies(m, devices);
        add_collectives(m, devices);
        FR_TRY(add_exchanges(m, devices, err));
        add_beside(m, devices);
        return FR_OK;
    }
    add_host(m);
    FR_TRY(add_anchors(m, err));
    add_fp8_holds(m);
    add_copies(m, devices);
    add_generic(m);
    FR_TRY(add_plans(m, err));
    FR_TRY(add_all_experts(m, err));
    add_attention(m);
    return FR_OK;
}

/* ---- parts of a grid ----------------------------------------------------------------------------------------------*/

static bool named(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += n)
        if ((at == list || at[-1] == ',') && (at[n] == 0 || at[n] == ',')) return true;
    return false;
}

static bool known(const char *name) {
    bool found = fr_op_by_name(name) != FR_OP_KIND_COUNT || strcmp(name, "turn") == 0;
    for (int w = 0; w < FR_CAL_WHATS; w++) found |= strcmp(name, fr_cal_what_name((fr_cal_what)w)) == 0;
    for (int c = 0; c < FR_CLASS_COUNT; c++) found |= strcmp(name, fr_op_class_name((fr_op_class)c)) == 0;
    return found;
}

static fr_status check_only(const char *only, fr_error *err) {
    char name[32];
    for (const char *at = only; at;) {
        const size_t n = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)fr_min_i64((int64_t)n, 31), at);
        if (!known(name))
            return fr_fail(
                err, FR_BAD_INPUT,
                "--only: '%s': expected burst, hold, turn, ramp, release, host, copy, pull, collective, exchange, "
                "beside, an op or a class of ops",
                name);
        at = at[n] ? at + n + 1 : NULL;
    }
    return FR_OK;
}

static bool asked(const fr_cal_grid *g, uint32_t i, const char *only) {
    const fr_row *r = &g->table.rows[i];
    const fr_op_kind kind = (fr_op_kind)r->shape.kind;
    const bool turns = g->items[i].what == FR_CAL_HOLD && r->duty < 1;
    if (!only || named(only, turns ? "turn" : fr_cal_what_name((fr_cal_what)g->items[i].what))) return true;
    if (r->type == FR_ROW_SLOWDOWN) return named(only, fr_op_class_name((fr_op_class)r->victim));
    return named(only, fr_op_name(kind)) || named(only, fr_op_class_name(fr_op_class_of(kind)));
}

/* Keeps what was asked for, in its order. Shards get each item of a kind where the kind has taken least time so far. */
static void cut(fr_cal_grid *g, const fr_cal_request *q) {
    const int shards = q->shards > 1 ? q->shards : 1;
    double(*sum)[FR_CAL_WHATS] = fr_alloc((size_t)shards * sizeof *sum);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        const int what = g->items[i].what;
        int to = 0;
        if (!asked(g, i, q->only)) continue;
        for (int k = 1; k < shards; k++)
            if (sum[k][what] < sum[to][what]) to = k;
        sum[to][what] += g->items[i].seconds;
        if (shards > 1 && to != q->shard) continue;
        g->items[kept] = g->items[i];
        g->table.rows[kept++] = g->table.rows[i];
    }
    g->count = g->table.count = kept;
    free(sum);
}

fr_status fr_cal_grid_open(const fr_cal_request *q, const fr_machine *machine, fr_cal_grid **out, fr_error *err) {
    fr_cost_model *cost = NULL;
    *out = NULL;
    if (q->devices < 1 || q->devices > FR_CAL_DEVICES)
        return fr_fail(err, FR_BAD_INPUT, "calibration takes 1 to %d GPUs, not %d", FR_CAL_DEVICES, q->devices);
    FR_TRY(check_only(q->only, err));
    FR_TRY(fr_cost_open(machine, NULL, &cost, err));
    fr_cal_grid *g = fr_alloc(sizeof *g);
    snprintf(g->gpu, sizeof g->gpu, "%s", machine->gpu);
    g->devices = q->devices;
    maker m = {.g = g, .machine = machine, .mode = q->mode, .limit_s = q->limit_s, .hold_s = q->hold_s};
    fr_status status = fill(&m, q->devices, err);
    for (uint32_t i = 0; i < g->count && status == FR_OK; i++) g->items[i].seconds = estimate(g, i, cost);
    fr_cost_close(cost);
    if (status != FR_OK) {
        fr_cal_grid_close(g);
        return status;
    }
    sort(g);
    cut(g, q);
    *out = g;
    return FR_OK;
}

void fr_cal_grid_close(fr_cal_grid *g) {
    if (!g) return;
    fr_table_free(&g->table);
    free(g->items);
    free(g);
}

fr_status fr_cal_grid_resume(fr_cal_grid *g, const char *text, size_t length, const char *where, uint32_t card,
                             uint32_t *found, fr_error *err) {
    while (length && text[length - 1] != '\n') length--;
    fr_table t = {0};
    fr_status status = fr_table_parse(text, length, where, &t, err);
    *found = 0;
    if (status == FR_OK && strcmp(t.gpu, g->gpu) != 0)
        status =
            fr_fail(err, FR_BAD_INPUT, "%s: gpu: rows of %s, but this is %s: name another file", where, t.gpu, g->gpu);
    for (uint32_t i = 0; i < g->count && status == FR_OK; i++)
        for (uint32_t j = 0; j < t.count && !g->items[i].done; j++)
            if (t.rows[j].provenance == FR_FROM_MEASURED && (!card || t.rows[j].card == card) &&
                fr_row_same(&g->table, &g->table.rows[i], &t, &t.rows[j], true)) {
                g->items[i].done = true;
                ++*found;
            }
    fr_table_free(&t);
    return status;
}

double fr_cal_grid_seconds(const fr_cal_grid *g, double limit, uint32_t *count) {
    double sum = 0;
    *count = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        if (g->items[i].done || sum + g->items[i].seconds > limit) continue;
        sum += g->items[i].seconds;
        ++*count;
    }
    return sum;
}

void fr_cal_grid_list(const fr_cal_grid *g, double limit, bool rows, fr_text *out) {
    static const char *const whats[FR_CAL_WHATS] = {"bursts",          "sustained",   "ramps", "pauses",
                                                    "host and events", "copies",      "pulls", "collectives",
                                                    "exchanges",       "interference"};
    double sum[FR_CAL_WHATS] = {0}, tier[TIERS + 4] = {0}, total = 0;
    uint32_t count[FR_CAL_WHATS] = {0}, tiers[TIERS + 4] = {0}, fit = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        const fr_cal_item *it = &g->items[i];
        sum[it->what] += it->seconds;
        count[it->what]++;
        tier[it->tier] += it->seconds;
        tiers[it->tier]++;
        total += it->seconds;
        if (!rows) continue;
        fr_text_add(out, "%d %7.3f s %s ", it->tier, it->seconds, it->done ? "done" : "    ");
        fr_row_print(&g->table, &g->table.rows[i], out);
        fr_text_add(out, "\n");
    }
    for (int w = 0; w < FR_CAL_WHATS; w++)
        if (count[w]) fr_text_add(out, "%-16s %5" PRIu32 " %7.1f s\n", whats[w], count[w], sum[w]);
    for (int t = 0; t < TIERS + 4; t++)
        if (tiers[t]) fr_text_add(out, "value %d          %5" PRIu32 " %7.1f s\n", t, tiers[t], tier[t]);
    const double left = fr_cal_grid_seconds(g, limit, &fit);
    fr_text_add(out, "%-16s %5" PRIu32 " %7.1f s; %" PRIu32 " to do in %.1f of %.0f s\n", "all", g->count, total, fit,
                left, limit);
}

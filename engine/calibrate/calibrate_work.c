/*
 * What one GPU does, in bursts. Shapes of products and memory-bound ops come from plans of the models that the engine
 * executes, so that a row is what a plan asks for; tokens per expert and sequence lengths are listed here.
 */
#include "engine/batch_tables.h"
#include "engine/calibrate/calibrate_grid.h"
#include "engine/strategy/planner.h"

#include <math.h>
#include <stdlib.h>

static const char *const models[] = {"qwen3-235b-a22b", "qwen3-30b-a3b", "mixtral-8x7b"};
enum { MODELS = 3, ROWS_LIMIT = 524288 };

/* ---- what plans ask for: products and memory-bound ops
 * --------------------------------------------------------------*/

typedef struct {
    fr_cal_maker *m;
    const fr_model *model;
    int tier, tp;
    fr_precision precision;
} plan_sink;

static void add_shape(void *context, const fr_shape *shape) {
    const plan_sink *sink = context;
    const bool gemm = fr_op_class_of((fr_op_kind)shape->kind) == FR_CLASS_GEMM;
    fr_row row = fr_cal_blank((fr_op_kind)shape->kind);
    row.shape.precision = shape->precision;
    row.shape.m = shape->m;
    row.shape.n = shape->n;
    row.shape.k = gemm || shape->kind == FR_OP_PERMUTE ? shape->k : 0;
    row.shape.bytes = gemm ? 0 : shape->bytes;
    const bool fp8 = sink->precision == FR_FP8;
    const bool rows = shape->kind == FR_OP_NORM || shape->kind == FR_OP_PERMUTE || shape->kind == FR_OP_COMBINE;
    if (fp8 && shape->precision != FR_FP8 && !rows) return; /* as in bf16, which is listed */
    const uint32_t before = sink->m->g->count;
    fr_cal_item *it = fr_cal_add(sink->m, FR_CAL_BURST, sink->tier, row);
    if (sink->m->g->count > before) { /* else it is another model's row as well, and measured as that one's */
        it->top_k = (int16_t)sink->model->top_k;
        it->head_dim = (int16_t)sink->model->head_dim;
        /* a row of one byte each and its scales is no multiple of two bytes an element */
        it->fp8 = fp8 && !gemm && shape->bytes % (2 * shape->m * shape->n) != 0;
        it->quantise = it->fp8 && shape->n != sink->model->hidden;
    }
    it->residual = it->residual || (shape->kind == FR_OP_GEMM_O && sink->tp == 1 && !fp8); /* engine/strategy/layer.c */
}

static fr_status plan_rows(fr_cal_maker *m, const fr_model *model, int tp, fr_precision precision, int64_t tokens,
                           int tier, fr_error *err) {
    plan_sink sink = {m, model, tier, tp, precision};
    return fr_cal_plan_shapes(model, m->machine, tp, precision, tokens, add_shape, &sink, err);
}

static fr_status add_plans(fr_cal_maker *m, fr_error *err) {
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
                if (fr_cal_wanted(m, tier)) FR_TRY(plan_rows(m, &model, tp, FR_BF16, coarse[j], tier, err));
            for (size_t j = 0; j < sizeof dense / sizeof *dense; j++)
                if (fr_cal_wanted(m, tier + 2)) FR_TRY(plan_rows(m, &model, tp, FR_BF16, dense[j], tier + 2, err));
            if (tp > 1 || m->mode != FR_CAL_FULL || m->machine->peak_flops[FR_FP8] <= 0) continue;
            for (size_t j = 0; j < sizeof coarse / sizeof *coarse; j++)
                FR_TRY(plan_rows(m, &model, tp, FR_FP8, coarse[j], 3, err));
            for (size_t j = 0; j < sizeof dense / sizeof *dense; j++)
                FR_TRY(plan_rows(m, &model, tp, FR_FP8, dense[j], 4, err));
        }
    }
    return FR_OK;
}

/* What a rank of an ep group of P puts in order and adds up before it sends results back: for each token that reached
 * it the rows of its own experts, under even routing (engine/strategy/experts_ep.c). */
static fr_status add_arrived(fr_cal_maker *m, fr_error *err) {
    static const int32_t tokens[] = {64, 256, 1024, 4096, 16384, 32768, 65536};
    for (int i = 0; i < MODELS; i++) {
        fr_model model;
        FR_TRY(fr_model_load(models[i], &model, err));
        for (int ep = 2; ep <= 4 && ep <= model.top_k; ep *= 2)
            for (size_t j = 0; j < sizeof tokens / sizeof *tokens; j++) {
                const double each = (double)model.top_k / ep / fr_hit_even(&model, model.experts / ep);
                const int64_t rows = llround(tokens[j] * each), row = 2 * (int64_t)model.hidden;
                fr_row r = fr_cal_blank(FR_OP_REDUCE);
                r.shape.m = tokens[j];
                r.shape.n = model.hidden;
                r.shape.bytes = (tokens[j] + rows) * row;
                if (fr_cal_wanted(m, 3)) fr_cal_add(m, FR_CAL_BURST, 3, r)->top_k = (int16_t)model.top_k;
                r = fr_cal_blank(FR_OP_PERMUTE);
                r.shape.m = rows;
                r.shape.n = model.hidden;
                r.shape.k = tokens[j]; /* each is read once */
                r.shape.bytes = 2 * rows * row;
                if (fr_cal_wanted(m, 3)) fr_cal_add(m, FR_CAL_BURST, 3, r)->top_k = (int16_t)model.top_k;
            }
    }
    return FR_OK;
}

/* Products of no model: square ones, and the ends of what n and k may be. */
static void add_generic(fr_cal_maker *m) {
    static const int32_t sides[][3] = {
        {1024, 1024, 1024},  {2048, 2048, 2048},  {4096, 4096, 4096},  {8192, 8192, 8192},  {4096, 16384, 4096},
        {4096, 4096, 16384}, {16384, 2048, 2048}, {4096, 24576, 7168}, {1024, 7168, 16384}, {16384, 1536, 7168}};
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        fr_row row = fr_cal_blank(FR_OP_GEMM_DENSE);
        row.shape.m = sides[i][0];
        row.shape.n = sides[i][1];
        row.shape.k = sides[i][2];
        if (fr_cal_wanted(m, i == 3 ? 1 : 4)) fr_cal_add(m, FR_CAL_BURST, i == 3 ? 1 : 4, row);
    }
}

/* ---- tokens per expert --------------------------------------------------------------------------------------------*/

/* WIDE: even routing whose experts differ by a tenth in what they are asked for, as a router's do; HOT: one expert has
 * eight means (of eight experts three), the others share the rest; HALF: every other expert has nothing; EDGE: every
 * other one has a row more, so that half of them begin another tile. */
typedef enum { EQUAL, EVEN, POWER, WIDE, HOT, HALF, EDGE } pattern;

static void wide_rows(int64_t sum, int32_t experts, int32_t *rows) {
    const double mean = (double)sum / experts, wider = sqrt(1 + 0.01 * mean);
    int64_t left = sum;
    fr_even_rows(sum, experts, rows);
    for (int32_t i = 0; i < experts; i++) {
        rows[i] = (int32_t)fr_min_i64(fr_round(fmax(0, mean + wider * (rows[i] - mean))), left);
        left -= rows[i];
    }
    for (int32_t i = 0; left > 0; i = (i + 1) % experts, left--) rows[i]++;
}

static int most_first(const void *a, const void *b) {
    return *(const int32_t *)b - *(const int32_t *)a;
}

static void hot_rows(int64_t sum, int32_t experts, int32_t *rows) {
    rows[0] = (int32_t)(sum / experts) * (experts >= 64 ? 8 : 3);
    fr_even_rows(sum - rows[0], experts - 1, rows + 1);
}

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

static void add_grouped(fr_cal_maker *m, fr_op_kind kind, fr_precision precision, int32_t experts, int64_t mean,
                        pattern p, int32_t n, int32_t k, int tier) {
    if (!fr_cal_wanted(m, tier) || mean * experts > ROWS_LIMIT) return;
    int32_t *rows = fr_alloc((size_t)experts * sizeof *rows);
    for (int32_t i = 0; i < experts; i++) rows[i] = (int32_t)mean;
    if (p == EVEN) fr_even_rows(mean * experts, experts, rows);
    if (p == POWER) power_rows(mean * experts, experts, experts >= 64 ? 6 : 2.5, rows); /* 8 experts: at most 8 means */
    if (p == WIDE) wide_rows(mean * experts, experts, rows);
    if (p == HOT) hot_rows(mean * experts, experts, rows);
    for (int32_t i = 0; i < experts && p == HALF; i++) rows[i] = i % 2 ? 0 : 2 * (int32_t)mean;
    for (int32_t i = 0; i < experts && p == EDGE; i++) rows[i] += i % 2;
    if (p >= WIDE) qsort(rows, (size_t)experts, sizeof *rows, most_first); /* as a table's text has them */
    fr_row row = fr_cal_blank(kind);
    row.shape.precision = (uint8_t)precision;
    row.shape.n = n;
    row.shape.k = k;
    for (int32_t i = 0; i < experts; i++) fr_cal_push(m, &row, rows[i], 0);
    row.shape.experts = experts;
    fr_cal_add(m, FR_CAL_BURST, tier, row);
    free(rows);
}

/* The same work by each variant of the kernel: what fr_cost_tile chooses by. */
static void add_tiles(fr_cal_maker *m, fr_op_kind kind, int32_t experts, int64_t mean, int32_t n, int32_t k, int tier) {
    if (!fr_cal_wanted(m, tier) || mean * experts > ROWS_LIMIT) return;
    int32_t *rows = fr_alloc((size_t)experts * sizeof *rows);
    fr_even_rows(mean * experts, experts, rows);
    fr_row row = fr_cal_blank(kind);
    row.shape.n = n;
    row.shape.k = k;
    row.shape.experts = experts;
    for (int32_t i = 0; i < experts; i++) fr_cal_push(m, &row, rows[i], 0);
    for (int t = 0; t < FR_TILES; t++) {
        row.tile = (uint8_t)(1 + t);
        fr_cal_add(m, FR_CAL_BURST, tier, row);
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

static void add_experts(fr_cal_maker *m, const fr_model *model, fr_precision precision, int32_t experts, int tp,
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

static fr_status add_all_experts(fr_cal_maker *m, fr_error *err) {
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
    /* pairs of blocks share 256 rows: a mean of 640 leaves half of them, of 512 or 768 none */
    static const int32_t between[] = {448, 576, 640, 704, 896, 1152, 1280, 1408, 1792};
    static const int32_t spread[] = {64, 96, 128, 160, 192, 256, 384, 512}, steps[] = {104, 112, 120, 144, 224, 448},
                         edge[] = {64, 128, 192, 256};
    static const series uneven[] = {SERIES(spread, WIDE, 5), SERIES(spread, HOT, 5),  SERIES(edge, HALF, 5),
                                    SERIES(edge, EDGE, 5),   SERIES(steps, EQUAL, 5), SERIES(between, EVEN, 5)},
                        fp8_uneven[] = {SERIES(spread, WIDE, 5), SERIES(edge, HALF, 5), SERIES(edge, EDGE, 5),
                                        SERIES(between, EVEN, 5)};
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
        add_experts(m, &model, FR_BF16, model.experts, 1, uneven, (int)(sizeof uneven / sizeof *uneven), 0);
        if (fp8)
            add_experts(m, &model, FR_FP8, model.experts, 1, fp8_uneven, (int)(sizeof fp8_uneven / sizeof *fp8_uneven),
                        0);
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

static void add_sequences(fr_cal_maker *m, int heads, int kv_heads, const run *runs, int tier) {
    if (!fr_cal_wanted(m, tier)) return;
    fr_row row = fr_cal_blank(FR_OP_ATTENTION);
    row.shape.n = heads;
    row.shape.k = kv_heads;
    row.shape.head_dim = 128;
    for (int i = 0; i < 3; i++)
        for (int32_t j = 0; j < runs[i].count; j++) fr_cal_push(m, &row, runs[i].queries, runs[i].prefix);
    fr_cal_add(m, FR_CAL_BURST, tier, row);
    row.packed = true;
    const int32_t length = runs[0].queries;
    if (!runs[1].count && !runs[0].prefix && fr_unmasked(runs[0].count, length) && tier <= 4)
        fr_cal_add(m, FR_CAL_BURST, tier + 1, row); /* as lengths that vary run */
}

static void add_attention(fr_cal_maker *m) {
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

fr_status fr_cal_add_work(fr_cal_maker *m, fr_error *err) {
    add_generic(m);
    FR_TRY(add_plans(m, err));
    FR_TRY(add_arrived(m, err));
    FR_TRY(add_all_experts(m, err));
    add_attention(m);
    return FR_OK;
}

/* Calibration without a GPU: the grid, what resuming finds, rows as text, tables made of journals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/calibrate/calibrate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static fr_machine h200(void) {
    fr_machine m;
    fr_error err;
    if (fr_machine_load("h200x2", &m, &err) != FR_OK) fail_msg("%s", err.text);
    return m;
}

static fr_cal_grid *open_grid(fr_cal_mode mode, int devices) {
    const fr_machine m = h200();
    fr_cal_grid *g;
    fr_error err;
    const fr_cal_request q = {.mode = mode, .devices = devices, .limit_s = fr_cal_mode_seconds(mode)};
    if (fr_cal_grid_open(&q, &m, &g, &err) != FR_OK) fail_msg("%s", err.text);
    return g;
}

static const fr_row *find(const fr_cal_grid *g, fr_op_kind kind, int64_t m, int32_t n, int32_t k) {
    for (uint32_t i = 0; i < g->count; i++) {
        const fr_shape *s = &g->table.rows[i].shape;
        if (g->table.rows[i].type == FR_ROW_OP && s->kind == kind && (!m || s->m == m) && (!n || s->n == n) &&
            (!k || s->k == k))
            return &g->table.rows[i];
    }
    return NULL;
}

/* Every kind that one GPU executes, at the models' own widths and those of their slices; no row twice; the most wanted
 * first. */
static void grid(void **state) {
    (void)state;
    static const fr_op_kind kinds[] = {FR_OP_LAUNCH,    FR_OP_READBACK,  FR_OP_EMBED,     FR_OP_NORM,
                                       FR_OP_ROPE,      FR_OP_TOPK,      FR_OP_SORT,      FR_OP_PERMUTE,
                                       FR_OP_COMBINE,   FR_OP_GEMM_QKV,  FR_OP_GEMM_O,    FR_OP_GEMM_ROUTER,
                                       FR_OP_GEMM_HEAD, FR_OP_ATTENTION, FR_OP_EXPERT_UP, FR_OP_EXPERT_DOWN,
                                       FR_OP_H2D,       FR_OP_D2H,       FR_OP_DRAIN};
    for (int mode = FR_CAL_FULL; mode <= FR_CAL_QUICK; mode++) {
        fr_cal_grid *g = open_grid((fr_cal_mode)mode, 1);
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            if (!find(g, kinds[i], 0, 0, 0)) fail_msg("%s is missing", fr_op_name(kinds[i]));
        for (uint32_t i = 0; i < g->count; i++) {
            assert_true(g->items[i].seconds > 0 && g->items[i].seconds < 20);
            if (i) assert_true(g->items[i - 1].tier <= g->items[i].tier);
            for (uint32_t j = 0; j < i; j++)
                if (fr_row_same(&g->table, &g->table.rows[i], &g->table, &g->table.rows[j], true))
                    fail_msg("rows %u and %u are one", i, j);
        }
        uint32_t count;
        assert_true(fr_cal_grid_seconds(g, fr_cal_mode_seconds((fr_cal_mode)mode), &count) > 0);
        assert_int_equal(count, g->count);                          /* all of it fits into the time that is promised */
        assert_non_null(find(g, FR_OP_GEMM_QKV, 4096, 9216, 4096)); /* 235B */
        assert_non_null(find(g, FR_OP_GEMM_QKV, 4096, 5120, 2048)); /* 30B */
        assert_non_null(find(g, FR_OP_GEMM_QKV, 4096, 6144, 4096)); /* Mixtral */
        assert_non_null(find(g, FR_OP_EXPERT_UP, 131072, 3072, 4096));
        assert_non_null(find(g, FR_OP_EXPERT_DOWN, 0, 4096, 14336));
        if (mode == FR_CAL_FULL) { /* tp 2 */
            assert_non_null(find(g, FR_OP_GEMM_QKV, 4096, 4608, 4096));
            assert_non_null(find(g, FR_OP_EXPERT_UP, 0, 1536, 4096));
            assert_non_null(find(g, FR_OP_ATTENTION, 65536, 64, 4));
            assert_non_null(find(g, FR_OP_EXPERT_UP, 128 * 129, 3072, 4096)); /* a row beyond two tiles */
        }
        fr_cal_grid_close(g);
    }
}

static void anchors_and_pairs(void **state) {
    (void)state;
    fr_cal_grid *g = open_grid(FR_CAL_ANCHORS, 1), *full = open_grid(FR_CAL_FULL, 1), *two = open_grid(FR_CAL_FULL, 2);
    uint32_t count;
    int burst = 0, held = 0, found = 0, whats[FR_CAL_WHATS] = {0};
    for (uint32_t i = 0; i < g->count; i++) {
        burst += g->items[i].what == FR_CAL_BURST;
        held += g->items[i].what == FR_CAL_HOLD;
        for (uint32_t j = 0; j < full->count; j++)
            found += fr_row_same(&g->table, &g->table.rows[i], &full->table, &full->table.rows[j], true);
    }
    assert_true(burst >= 12 && burst <= 14 && held == 4); /* one a class */
    assert_int_equal(found, g->count);                    /* a table can be compared with a run's anchors */
    assert_true(fr_cal_grid_seconds(g, 60, &count) <= 60 && count == g->count);
    for (uint32_t i = 0; i < two->count; i++) whats[two->items[i].what]++;
    assert_true(whats[FR_CAL_PULL] >= 20 && whats[FR_CAL_COLLECTIVE] >= 80 && whats[FR_CAL_BESIDE] >= 40);
    fr_machine m = h200();
    fr_cal_grid *none;
    fr_error err;
    fr_cal_request q = {.devices = 0, .limit_s = 480};
    assert_int_equal(fr_cal_grid_open(&q, &m, &none, &err), FR_BAD_INPUT);
    q.devices = FR_CAL_DEVICES + 1;
    assert_int_equal(fr_cal_grid_open(&q, &m, &none, &err), FR_BAD_INPUT);
    fr_cal_grid_close(g);
    fr_cal_grid_close(full);
    fr_cal_grid_close(two);
}

/* More than two: what all do at once, under their number; every rank's part of a collective is whole rows of 512 bytes;
 * tokens are exchanged where experts can be dealt and a token's experts reach every rank. */
static void many_ranks(void **state) {
    (void)state;
    for (int mode = FR_CAL_FULL; mode <= FR_CAL_QUICK; mode++)
        for (int ranks = 3; ranks <= FR_CAL_DEVICES; ranks++) {
            fr_cal_grid *g = open_grid((fr_cal_mode)mode, ranks);
            int whats[FR_CAL_WHATS] = {0}, kinds[FR_OP_KIND_COUNT] = {0}, named = 0;
            for (uint32_t i = 0; i < g->count; i++) {
                const fr_row *r = &g->table.rows[i];
                whats[g->items[i].what]++;
                if (r->type == FR_ROW_OP) kinds[r->shape.kind]++;
                assert_int_equal(r->shape.ranks, ranks);
                named += r->streams > 0;
                if (g->items[i].what == FR_CAL_PULL && r->shape.kind == FR_OP_PULL) assert_int_equal(r->ways, 2);
                if (g->items[i].what == FR_CAL_COLLECTIVE)
                    assert_true(r->shape.bytes > 0 && r->shape.bytes % (INT64_C(512) * ranks) == 0);
                if (g->items[i].what == FR_CAL_EXCHANGE) {
                    assert_true(g->items[i].leaving % (ranks - 1) == 0 &&
                                g->items[i].leaving <= (ranks - 1) * g->items[i].tokens);
                    assert_true(g->items[i].tokens <= fr_cal_exchange_tokens(ranks));
                }
            }
            assert_int_equal(named, 3 * 5 * (2 * FR_PULL_ORDERS - 1));
            assert_true(whats[FR_CAL_PULL] >= 11 + named && kinds[FR_OP_H2D] == 1);
            assert_true((whats[FR_CAL_EXCHANGE] > 0) == (ranks == 4 || ranks == 8));
            assert_true(whats[FR_CAL_BESIDE] > 0 && kinds[FR_OP_SEND] >= 8 && kinds[FR_OP_GATHER_WEIGHTS] >= 4);
            assert_true(kinds[FR_OP_ALLREDUCE] >= 8 && kinds[FR_OP_ALLGATHER] == kinds[FR_OP_ALLREDUCE] &&
                        kinds[FR_OP_REDUCESCATTER] == kinds[FR_OP_ALLREDUCE]);
            fr_cal_grid_close(g);
        }
}

static void header(const fr_machine *m, const char *uuid, fr_text *out);

/* Shards are parts of the grid, each item in one of them; --only takes what it names and nothing else. */
static void parts(void **state) {
    (void)state;
    const fr_machine m = h200();
    fr_cal_grid *all = open_grid(FR_CAL_FULL, 1), *g;
    fr_error err;
    uint32_t sum = 0;
    double most = 0, least = 1e9;
    for (int k = 0; k < 4; k++) {
        const fr_cal_request q = {.devices = 1, .limit_s = 480, .shard = k, .shards = 4};
        if (fr_cal_grid_open(&q, &m, &g, &err) != FR_OK) fail_msg("%s", err.text);
        uint32_t n;
        const double s = fr_cal_grid_seconds(g, 1e9, &n);
        most = fmax(most, s);
        least = fmin(least, s);
        sum += g->count;
        fr_cal_grid_close(g);
    }
    assert_int_equal(sum, all->count);
    assert_true(most < 1.4 * least);
    fr_cal_request q = {.devices = 1, .limit_s = 480, .only = "release,gemm_o"};
    assert_int_equal(fr_cal_grid_open(&q, &m, &g, &err), FR_OK);
    int releases = 0, others = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        releases += g->items[i].what == FR_CAL_RELEASE;
        others += g->items[i].what != FR_CAL_RELEASE && g->table.rows[i].shape.kind != FR_OP_GEMM_O;
    }
    assert_true(releases >= 20 && others == 0 && g->count > (uint32_t)releases);
    fr_cal_grid_close(g);
    q.only = "gemm,nonsense";
    assert_int_equal(fr_cal_grid_open(&q, &m, &g, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "nonsense"));
    /* sustained anchors: as long as was asked for */
    q = (fr_cal_request){.devices = 1, .limit_s = 480, .hold_s = 7, .only = "hold"};
    assert_int_equal(fr_cal_grid_open(&q, &m, &g, &err), FR_OK);
    int whole = 0;
    for (uint32_t i = 0; i < g->count; i++) whole += fabsf(g->items[i].hold_s - 7) < 1e-3F;
    assert_int_equal(whole, 11); /* not what streams memory, which no limit holds back */
    fr_cal_grid_close(g);
    fr_cal_grid_close(all);
}

/* A layer's kernels: what a plan of as many tokens asks for, in the engine's order; without attention and experts the
 * light ones. Anchors hold two such layers, before single kernels. */
static void layers(void **state) {
    (void)state;
    static const fr_op_kind order[FR_CAL_LAYER] = {FR_OP_GEMM_QKV, FR_OP_ROPE,        FR_OP_ATTENTION,   FR_OP_GEMM_O,
                                                   FR_OP_NORM,     FR_OP_GEMM_ROUTER, FR_OP_TOPK,        FR_OP_SORT,
                                                   FR_OP_PERMUTE,  FR_OP_EXPERT_UP,   FR_OP_EXPERT_DOWN, FR_OP_COMBINE};
    const fr_machine m = h200();
    fr_model model;
    fr_table t = {0};
    fr_row rows[FR_CAL_LAYER], light[FR_CAL_LIGHT];
    fr_error err;
    if (fr_model_load("qwen3-30b-a3b", &model, &err)) fail_msg("%s", err.text);
    if (fr_cal_layer(&model, &m, 1000, 300, &t, rows, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < FR_CAL_LAYER; i++) {
        assert_int_equal(rows[i].shape.kind, order[i]);
        assert_true(rows[i].behind && rows[i].regime == FR_SUSTAINED);
    }
    assert_int_equal(rows[2].shape.vector_count, 4); /* three sequences of 300 and what is left */
    assert_int_equal(rows[2].shape.m, 1000);
    assert_int_equal(rows[9].shape.m, 1000 * model.top_k);
    assert_int_equal(rows[8].shape.m, rows[9].shape.m);
    assert_int_equal(rows[11].shape.bytes,
                     INT64_C(2) * 1000 * model.hidden * (model.top_k + 3)); /* the next norm too */
    fr_table_free(&t);
    if (fr_cal_light_layer(&model, &m, 1000, light, &err)) fail_msg("%s", err.text);
    for (int i = 0, k = 0; i < FR_CAL_LAYER; i++)
        if (i != 2 && i != 9 && i != 10) assert_int_equal(light[k++].shape.kind, order[i]);
    fr_cal_grid *g = open_grid(FR_CAL_ANCHORS, 1);
    int found = 0, holds = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        holds += g->items[i].what == FR_CAL_HOLD;
        found += g->items[i].what == FR_CAL_CHAIN && holds == 0;
    }
    assert_int_equal(found, 2);
    assert_true(holds >= 3);
    fr_cal_grid_close(g);
}

/* Anchors of several cards stand side by side in one table, and each card's are told apart when it is gone on with. */
static void cards(void **state) {
    (void)state;
    fr_cal_grid *g = open_grid(FR_CAL_ANCHORS, 1);
    const fr_machine m = h200();
    fr_text text = {0}, out = {0};
    fr_table t = {0};
    fr_error err;
    header(&m, "GPU-85e3539b-1, GPU-0000001a-2", &text);
    for (int card = 0; card < 2; card++)
        for (uint32_t i = 0; i < g->count - (uint32_t)card; i++) {
            fr_row r = g->table.rows[i];
            r.ns = 1000 + card;
            r.clock_mhz = 1400; /* a layer's rows need it */
            r.card = fr_cal_card(card ? "GPU-0000001a-2" : "GPU-85e3539b-1");
            fr_cal_line(&g->table, &r, NULL, 0, &text);
        }
    const char *texts[] = {text.text}, *names[] = {"a.raw"};
    if (fr_cal_merge(texts, &text.length, names, 1, true, &out, &err) != FR_OK) fail_msg("%s", err.text);
    if (fr_table_parse(out.text, out.length, "merged", &t, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(t.count, 2 * g->count - 1);
    uint32_t found = 0, one = 0;
    assert_int_equal(fr_cal_grid_resume(g, text.text, text.length, "a.raw", 0x1a, &found, &err), FR_OK);
    assert_int_equal(found, g->count - 1);
    for (uint32_t i = 0; i < t.count; i++) one += t.rows[i].card == 0x85e3539b;
    assert_int_equal(one, g->count);
    fr_table_free(&t);
    fr_text_free(&out); /* told apart no more: the later one's */
    if (fr_cal_merge(texts, &text.length, names, 1, false, &out, &err) != FR_OK) fail_msg("%s", err.text);
    if (fr_table_parse(out.text, out.length, "merged", &t, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(t.count, g->count);
    fr_table_free(&t);
    /* the same card twice is an error */
    fr_row r = g->table.rows[0];
    r.ns = 5;
    r.card = 0x1a;
    fr_cal_line(&g->table, &r, NULL, 0, &text);
    assert_int_equal(fr_table_parse(text.text, text.length, "twice", &t, &err), FR_BAD_INPUT);
    fr_table_free(&t);
    fr_text_free(&out);
    fr_text_free(&text);
    fr_cal_grid_close(g);
}

static void header(const fr_machine *m, const char *uuid, fr_text *out) {
    const fr_cal_head h = {.name = "NVIDIA H200",
                           .uuid = uuid,
                           .driver = "1.2",
                           .date = "today",
                           .power_limit_w = 700,
                           .idle_w = 111.5,
                           .clock_max_mhz = 1980};
    fr_cal_header(m, &h, out);
}

/* Rows 0 .. count - 1 of the grid, row i taking ns + i. */
static void journal(const fr_cal_grid *g, uint32_t count, double ns, const char *uuid, fr_text *out) {
    const fr_machine m = h200();
    header(&m, uuid, out);
    for (uint32_t i = 0; i < count; i++) {
        fr_row r = g->table.rows[i];
        const double readings[] = {ns + i, ns + i + 7, 1e6};
        if (r.type == FR_ROW_SLOWDOWN)
            r.alone = ns + i, r.beside = ns + i + 1;
        else
            r.ns = ns + i;
        r.clock_mhz = 1975;
        fr_cal_line(&g->table, &r, readings, 3, out);
    }
}

static void resume(void **state) {
    (void)state;
    for (int devices = 1; devices <= 4; devices *= 2) {
        fr_cal_grid *g = open_grid(FR_CAL_FULL, devices);
        fr_text text = {0};
        fr_error err;
        uint32_t found = 0, left = 0;
        const uint32_t done = g->count - 3; /* of every kind some */
        journal(g, done, 1000, "GPU-a", &text);
        const size_t whole = text.length;
        fr_text_add(&text, "gemm precision=bf16 m=1 n=9216 k=40"); /* killed while writing */
        if (fr_cal_grid_resume(g, text.text, text.length, "j.raw", 0, &found, &err) != FR_OK) fail_msg("%s", err.text);
        assert_int_equal(found, done);
        for (uint32_t i = 0; i < g->count; i++) assert_int_equal(g->items[i].done, i < done);
        fr_cal_grid_seconds(g, 1e9, &left);
        assert_int_equal(left, g->count - done);
        /* a broken line that is not the last one is an error that says where */
        text.text[whole - 1] = 'x';
        assert_int_equal(fr_cal_grid_resume(g, text.text, text.length, "j.raw", 0, &found, &err), FR_OK);
        fr_text_add(&text, "\nnonsense\n");
        assert_int_equal(fr_cal_grid_resume(g, text.text, text.length, "j.raw", 0, &found, &err), FR_BAD_INPUT);
        assert_non_null(strstr(err.text, "j.raw:"));
        fr_text_free(&text);
        /* another GPU's journal is not gone on with */
        fr_machine m;
        assert_int_equal(fr_machine_load("h100x1", &m, &err), FR_OK);
        header(&m, "GPU-b", &text);
        assert_int_equal(fr_cal_grid_resume(g, text.text, text.length, "j.raw", 0, &found, &err), FR_BAD_INPUT);
        assert_non_null(strstr(err.text, "h100"));
        fr_text_free(&text);
        fr_cal_grid_close(g);
    }
}

/* What is printed reads back as the same row: the grid's, and those of every shipped table. */
static void rows_as_text(void **state) {
    (void)state;
    static const char *const gpus[] = {"h200", "h100", "gb200"};
    for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
        fr_table a = {0}, b = {0};
        fr_error err;
        fr_text out = {0};
        size_t length;
        const char *text = fr_table_builtin(gpus[g], &length);
        assert_int_equal(fr_table_parse(text, length, "built in", &a, &err), FR_OK);
        fr_machine m = h200();
        snprintf(m.gpu, sizeof m.gpu, "%s", gpus[g]);
        header(&m, NULL, &out);
        a.seeded = false; /* each row says so itself */
        for (uint32_t i = 0; i < a.count; i++) {
            fr_row_print(&a, &a.rows[i], &out);
            fr_text_add(&out, "\n");
        }
        if (fr_table_parse(out.text, out.length, "printed", &b, &err) != FR_OK) fail_msg("%s", err.text);
        assert_int_equal(a.count, b.count);
        for (uint32_t i = 0; i < a.count; i++) {
            const fr_row *p = &a.rows[i], *q = &b.rows[i];
            assert_true(p->shape.vector_count > 0 || fr_row_same(&a, p, &b, q, true)); /* vectors come back sorted */
            assert_true(p->shape.m == q->shape.m && p->shape.kind == q->shape.kind && p->provenance == q->provenance);
            assert_true(fabs(p->ns - q->ns) <= 1e-5 * p->ns && fabs(p->beside - q->beside) <= 1e-5 * p->beside);
            assert_true(fabs(p->p90 - q->p90) <= 1e-5 * p->p90 && fabs(p->overlap - q->overlap) <= 1e-5 * p->overlap);
        }
        fr_text_free(&out);
        fr_table_free(&a);
        fr_table_free(&b);
    }
}

static void merge(void **state) {
    (void)state;
    fr_cal_grid *g = open_grid(FR_CAL_QUICK, 1);
    fr_text a = {0}, b = {0}, out = {0};
    fr_error err;
    journal(g, 40, 1000, "GPU-a", &a);
    journal(g, 30, 5000, "GPU-b", &b);
    fr_text_add(&b, "norm bytes=4"); /* killed while writing */
    const char *texts[] = {a.text, b.text}, *names[] = {"a.raw", "b.raw"};
    const size_t lengths[] = {a.length, b.length};
    if (fr_cal_merge(texts, lengths, names, 2, false, &out, &err) != FR_OK) fail_msg("%s", err.text);
    assert_non_null(strstr(out.text, "# uuid: GPU-a, GPU-b\n"));
    assert_non_null(strstr(out.text, "# source: a.raw, b.raw by"));
    assert_null(strstr(out.text, "## ns:"));
    fr_table t = {0};
    if (fr_table_parse(out.text, out.length, "merged", &t, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(t.count, 40);
    assert_true(fabs(t.limit_watts - 700) < 1e-9 && fabs(t.idle_watts - 111.5) < 1e-9);
    int later = 0;
    for (uint32_t i = 0; i < t.count; i++) later += t.rows[i].ns >= 5000; /* of two readings the later file's */
    assert_int_equal(later, 30);
    fr_table_free(&t);
    fr_text_free(&out);
    fr_text_free(&a);
    fr_text_free(&b);
    fr_cal_grid_close(g);
}

/* Collectives between products are held rows that no curve is made of. */
static void loaded(void **state) {
    (void)state;
    for (int mode = FR_CAL_FULL; mode <= FR_CAL_QUICK; mode++) {
        fr_cal_grid *g = open_grid((fr_cal_mode)mode, 2);
        int held = 0;
        for (uint32_t i = 0; i < g->count; i++) {
            const fr_row *r = &g->table.rows[i];
            if (g->items[i].what != FR_CAL_COLLECTIVE) continue;
            assert_int_equal(fr_row_plain(r), r->regime == FR_BURST);
            held += r->regime == FR_SUSTAINED && g->items[i].hold_s > 0 && g->items[i].seconds > 0.5;
        }
        assert_int_equal(held, mode == FR_CAL_FULL ? 9 : 0);
        fr_cal_grid_close(g);
    }
}

/* What is quantised is listed as such, and measured as that; a GPU without the format has none of it. */
static void fp8_rows(void **state) {
    (void)state;
    fr_cal_grid *g = open_grid(FR_CAL_FULL, 1), *without;
    int norms = 0, alone = 0, permutes = 0, dense = 0, grouped = 0, held = 0, sums = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        const fr_shape *s = &g->table.rows[i].shape;
        norms += g->items[i].fp8 && s->kind == FR_OP_NORM && !g->items[i].quantise;
        alone += g->items[i].quantise;
        permutes += g->items[i].fp8 && s->kind == FR_OP_PERMUTE;
        dense += s->precision == FR_FP8 && s->kind == FR_OP_GEMM_O && !g->items[i].residual;
        grouped += s->precision == FR_FP8 && s->kind == FR_OP_EXPERT_UP;
        held += s->precision == FR_FP8 && g->items[i].what == FR_CAL_HOLD;
        sums += s->kind == FR_OP_REDUCE && s->bytes > 4 * s->m * s->n; /* more rows in than out */
        assert_true(!g->items[i].fp8 || s->bytes > 0);
    }
    assert_true(held >= 6 && sums >= 30);
    assert_true(norms >= 16 && alone >= 8 && permutes >= 16 && dense >= 16 && grouped >= 30);
    fr_cal_grid_close(g);
    fr_machine a100;
    fr_error err;
    assert_int_equal(fr_machine_load("a100x8", &a100, &err), FR_OK);
    assert_int_equal(fr_cal_grid_open(&(fr_cal_request){.devices = 1, .limit_s = 480}, &a100, &without, &err), FR_OK);
    for (uint32_t i = 0; i < without->count; i++)
        assert_true(without->table.rows[i].shape.precision == FR_BF16 && !without->items[i].fp8);
    fr_cal_grid_close(without);
}

/* A plan's questions about what was measured are answered by rows, not by guesses between them. */
static void plans_are_covered(void **state) {
    (void)state;
    fr_cal_grid *g = open_grid(FR_CAL_FULL, 1);
    const struct {
        fr_op_kind kind;
        int64_t bytes;
    } asked[] = {{FR_OP_NORM, INT64_C(8) * 16384 * 4096}, /* with its residual */
                 {FR_OP_NORM, INT64_C(4) * 16384 * 4096},
                 {FR_OP_PERMUTE, INT64_C(4) * 4096 * 8 * 16384},
                 {FR_OP_COMBINE, INT64_C(2) * 4096 * 16384 * 10},
                 {FR_OP_COMBINE, INT64_C(2) * 4096 * 16384 * 11}, /* with the next norm */
                 {FR_OP_TOPK, INT64_C(16384) * (4 * 128 + 64)}};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        int found = 0;
        for (uint32_t j = 0; j < g->count; j++)
            found += g->table.rows[j].shape.kind == asked[i].kind && g->table.rows[j].shape.bytes == asked[i].bytes &&
                     fr_row_plain(&g->table.rows[j]) && g->table.rows[j].regime == FR_BURST;
        if (found < 1)
            fail_msg("%s of %lld bytes: %d rows", fr_op_name(asked[i].kind), (long long)asked[i].bytes, found);
    }
    fr_cal_grid_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grid),   cmocka_unit_test(anchors_and_pairs),
        cmocka_unit_test(layers), cmocka_unit_test(many_ranks),
        cmocka_unit_test(parts),  cmocka_unit_test(cards),
        cmocka_unit_test(resume), cmocka_unit_test(rows_as_text),
        cmocka_unit_test(merge),  cmocka_unit_test(plans_are_covered),
        cmocka_unit_test(loaded), cmocka_unit_test(fp8_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

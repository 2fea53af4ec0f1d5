/*
 * The grid: its items in order, with estimates; parts of it; what a journal holds already. What stands in it: the files
 * that calibrate_grid.h names.
 */
#include "engine/batch_tables.h"
#include "engine/calibrate/calibrate_grid.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Host time of choosing and compiling, s: cublasLt some 3 ms a shape; cuDNN 0.25 s for a number of sequences and head
 * layout, 50 ms for a graph of equal lengths (kernels/measured/README.md). */
#define PLAN_GEMM_S  0.003
#define PLAN_FIRST_S 0.25
#define PLAN_EQUAL_S 0.05

const int32_t fr_cal_ramp[FR_CAL_RAMP_STEPS + 1] = {0, 5, 10, 20, 30, 45, 60, 90, 130, 200, 300, 500};

const int32_t fr_cal_pause[FR_CAL_PAUSE_STEPS + 1] = {0, 5, 10, 20, 30, 45, 60};

const char *fr_cal_what_name(fr_cal_what w) {
    static const char *const names[FR_CAL_WHATS] = {"burst", "hold", "ramp",       "release",  "chain",  "host",
                                                    "copy",  "pull", "collective", "exchange", "beside", "resident"};
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

/* Seconds of a sustained measurement: a 40th of the whole, 10 s at most; the clock settles within a second (ramps). */
float fr_cal_hold_seconds(const fr_cal_maker *m, double share) {
    const double all = m->hold_s > 0 ? m->hold_s : fmin(m->limit_s / 40, 10);
    return (float)fmax(share * all, m->hold_s > 0 ? 1 : 2);
}

/* Of the quick grid and of anchors only the most wanted. */
bool fr_cal_wanted(const fr_cal_maker *m, int tier) {
    return m->mode == FR_CAL_FULL || (m->mode == FR_CAL_QUICK && tier <= 2);
}

fr_row fr_cal_blank(fr_op_kind kind) {
    return (fr_row){.type = FR_ROW_OP,
                    .regime = FR_BURST,
                    .ways = 1,
                    .duty = 1,
                    .at_ms = -1,
                    .gap_ms = -1,
                    .shape = {.kind = (uint8_t)kind, .hosts = 1}};
}

/* Adds a row (its vector has been pushed) unless the grid holds it; a second one may raise its tier. */
fr_cal_item *fr_cal_add(fr_cal_maker *m, fr_cal_what what, int tier, fr_row row) {
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

void fr_cal_push(fr_cal_maker *m, fr_row *row, int32_t queries, int32_t prefix) {
    fr_table *t = &m->g->table;
    FR_GROW(t->pairs, t->pairs_cap, t->pairs_count + 1);
    if (!row->shape.vector_count) row->shape.vector = t->pairs_count;
    t->pairs[t->pairs_count++] = (fr_pair){queries, prefix};
    row->shape.vector_count++;
    row->shape.m += queries;
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
    case FR_CAL_CHAIN:
        return it->hold_s + 0.5;
    case FR_CAL_RELEASE:
        return 0.6 + 1e-3 * r->gap_ms;
    case FR_CAL_RAMP:
        return 1e-3 * fr_cal_ramp[FR_CAL_RAMP_STEPS] + 1.6;
    case FR_CAL_HOST:
        return 0.15;
    case FR_CAL_RESIDENT: /* the other half of the NCCL ones is what they note (engine/cuda/calibrate_resident.c) */
        return r->aggressor == FR_AGGRESSOR_NCCL ? 2 : 0.8;
    case FR_CAL_BESIDE:
        return (r->regime == FR_BURST ? 1.4 : it->hold_s + 0.4) *
               (r->aggressor == 0 && r->ways == 2 && r->duty >= 1 ? 2 : 1);
    case FR_CAL_PULL:
    case FR_CAL_COLLECTIVE:
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

static fr_status fill(fr_cal_maker *m, int devices, fr_error *err) {
    const bool anchors = m->mode == FR_CAL_ANCHORS;
    if (devices > 1 && !anchors) {
        fr_cal_add_copies(m, devices);
        return fr_cal_add_together(m, devices, err);
    }
    if (!anchors) fr_cal_add_host(m);
    FR_TRY(fr_cal_add_anchors(m, err));
    if (anchors) return FR_OK;
    fr_cal_add_copies(m, devices);
    return fr_cal_add_work(m, err);
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
                "--only: '%s': expected burst, hold, turn, ramp, release, chain, host, copy, pull, collective, "
                "exchange, beside, resident, an op or a class of ops",
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
    if (r->type == FR_ROW_SLOWDOWN)
        return named(only, fr_op_class_name((fr_op_class)r->victim)) ||
               (kind != FR_OP_NONE && named(only, fr_op_name(kind)));
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
    fr_cal_maker m = {.g = g, .machine = machine, .mode = q->mode, .limit_s = q->limit_s, .hold_s = q->hold_s};
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
    static const char *const whats[FR_CAL_WHATS] = {
        "bursts", "sustained", "ramps",       "pauses",    "a layer",      "host and events",
        "copies", "pulls",     "collectives", "exchanges", "interference", "by kind of kernel"};
    double sum[FR_CAL_WHATS] = {0}, tier[FR_CAL_TIERS + 4] = {0}, total = 0;
    uint32_t count[FR_CAL_WHATS] = {0}, tiers[FR_CAL_TIERS + 4] = {0}, fit = 0;
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
    for (int t = 0; t < FR_CAL_TIERS + 4; t++)
        if (tiers[t]) fr_text_add(out, "value %d          %5" PRIu32 " %7.1f s\n", t, tiers[t], tier[t]);
    const double left = fr_cal_grid_seconds(g, limit, &fit);
    fr_text_add(out, "%-16s %5" PRIu32 " %7.1f s; %" PRIu32 " to do in %.1f of %.0f s\n", "all", g->count, total, fit,
                left, limit);
}

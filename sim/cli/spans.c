/* The figures of one run, from its stored timeline. */
#include "sim/cli/figures.h"

#include "engine/plan/critical.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

fr_status cli_choose_run(fr_store *s, const char *path, const char *asked, int64_t *run, fr_error *err) {
    cli_table t;
    if (asked) {
        FR_TRY(fr_parse_int(asked, 1, INT64_MAX, false, "--run", run, err));
        FR_TRY(cli_fetch(s, "SELECT 1 FROM spans WHERE run=?1+0 LIMIT 1", asked, &t, err));
    } else {
        FR_TRY(cli_fetch(s, "SELECT run FROM spans ORDER BY run DESC LIMIT 1", NULL, &t, err));
        if (t.rows) *run = (int64_t)cli_number(&t, 0, 0);
    }
    bool found = t.rows > 0;
    cli_table_free(&t);
    if (found) return FR_OK;
    return fr_fail(err, FR_BAD_INPUT, "%s: holds no timeline%s%s: forerun simulate ... --db FILE stores one", path,
                   asked ? " of run " : "", asked ? asked : "");
}

/* ---- figures of one run -------------------------------------------------------------------------------------------
 */

static int layer_of(const fr_span *s) {
    return (int)(s->id >> 24 & 0x3ff);
}

/* Title of a run's figures. */
fr_status cli_run_subject(const cli_figure_source *s, fr_text *settings, fr_error *err) {
    char number[24];
    cli_table t;
    snprintf(number, sizeof number, "%" PRId64, s->run);
    FR_TRY(
        cli_fetch(s->store,
                  "SELECT model||' '||precision||', '||machine||', '||strategy||' (tp '||tp||', dp '||dp||', ep '||ep||"
                  "', pp '||pp||'), '||tokens_per_gpu||' tokens per GPU', forwards, (SELECT count(DISTINCT forward) "
                  "FROM spans WHERE run=id) FROM runs WHERE id=?1+0",
                  number, &t, err));
    fr_text_add(settings, "subject = \"%s\"\n", t.rows ? cli_at(&t, 0, 0) : "");
    cli_table_free(&t);
    return FR_OK;
}

/* Classes of the Gantt chart, in the order of plots/gantt.gp's styles. */
static int box_class(fr_op_kind kind) {
    switch (fr_op_class_of(kind)) {
    case FR_CLASS_ATTENTION:
        return 0;
    case FR_CLASS_GEMM:
        return 1;
    case FR_CLASS_GROUPED:
        return 2;
    case FR_CLASS_MEMORY:
        return 3;
    case FR_CLASS_COLLECTIVE:
        return 4;
    case FR_CLASS_COPY:
        return 5;
    case FR_CLASS_HOST:
    case FR_CLASS_OTHER:
    case FR_CLASS_COUNT:
        break;
    }
    return 6;
}

/* The forward in the middle of those that a rank took part in. */
static uint64_t middle_forward(const fr_timeline *t, int rank) {
    uint64_t first = UINT64_MAX, last = 0, best = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        uint64_t f = t->spans[i].id >> 44;
        if (t->spans[i].rank != rank) continue;
        first = f < first ? f : first;
        last = f > last ? f : last;
    }
    uint64_t middle = first < last ? first + (last - first) / 2 : last, gap = UINT64_MAX;
    for (uint32_t i = 0; i < t->count; i++) {
        uint64_t f = t->spans[i].id >> 44, d = f > middle ? f - middle : middle - f;
        if (t->spans[i].rank != rank || d >= gap) continue;
        gap = d;
        best = f;
    }
    return best;
}

/* The window of layers [layer, layer + 1] of a rank in its middle forward. */
bool cli_gantt_window(const fr_timeline *t, int rank, int layer, int64_t *from, int64_t *to) {
    uint64_t forward = middle_forward(t, rank);
    bool found = false;
    *from = INT64_MAX;
    *to = INT64_MIN;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_span *s = &t->spans[i];
        int c = box_class((fr_op_kind)s->kind);
        /* compute only: transfers for a layer may run a layer ahead */
        if (s->rank != rank || s->id >> 44 != forward || c > 3) continue;
        if (layer_of(s) != layer && layer_of(s) != layer + 1) continue;
        found = true;
        *from = fr_min_i64(*from, s->start);
        *to = fr_max_i64(*to, s->end);
    }
    if (!found) *from = *to = 0;
    return *from < *to;
}

int cli_middle_layer(const fr_timeline *t, int rank) {
    int low = 1 << 20, high = -1;
    for (uint32_t i = 0; i < t->count; i++) {
        int l = layer_of(&t->spans[i]);
        if (t->spans[i].rank != rank || l == FR_NO_LAYER) continue;
        low = l < low ? l : low;
        high = l > high ? l : high;
    }
    return high < 0 ? 0 : low + (high - low) / 2;
}

/* Whether a lane does anything that could be seen in the window: host lanes mostly have only short launches. */
static bool shows(const fr_timeline *t, uint32_t lane, int64_t from, int64_t to) {
    int64_t busy = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_span *s = &t->spans[i];
        const int64_t begin =
            box_class((fr_op_kind)s->kind) == 4 ? s->ready : s->start; /* a collective's wait is drawn */
        if (s->lane == lane) busy += fr_max_i64(0, fr_min_i64(s->end, to) - fr_max_i64(begin, from));
    }
    return busy > (to - from) / 500;
}

/* Writes the boxes of one lane in row `row`; returns whether it had any. */
bool cli_gantt_lane(const fr_timeline *t, uint32_t lane, int row, int64_t from, int64_t to, fr_text *data) {
    bool any = false;
    if (!shows(t, lane, from, to)) return false;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_span *s = &t->spans[i];
        if (s->lane != lane || s->end <= from || s->ready >= to || s->end == s->start) continue;
        int64_t start = fr_max_i64(s->start, from), end = fr_min_i64(s->end, to);
        int c = box_class((fr_op_kind)s->kind);
        if (c == 4 && s->ready < s->start && s->start > from) /* at the meeting, waiting for the others */
            fr_text_add(data, "%d\t%.3f\t%.3f\t7\t\t-\n", row, (double)(fr_max_i64(s->ready, from) - from) / 1e3,
                        (double)(fr_min_i64(start, to) - from) / 1e3);
        if (end > start)
            fr_text_add(data, "%d\t%.3f\t%.3f\t%d\t%s\t%d\n", row, (double)(start - from) / 1e3,
                        (double)(end - from) / 1e3, c,
                        (double)(end - start) > 0.095 * (double)(to - from) ? fr_op_name((fr_op_kind)s->kind) : "",
                        layer_of(s));
        any = true;
    }
    return any;
}

fr_status cli_data_gantt(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    fr_timeline t;
    fr_plan *plan;
    FR_TRY(cli_run_subject(s, settings, err));
    FR_TRY(fr_store_load_spans(s->store, s->run, &plan, &t, err));
    int layer = s->layer >= 0 ? s->layer : cli_middle_layer(&t, s->rank), row = 0;
    int64_t from = 0, to = 0;
    fr_status status = FR_OK;
    if (!cli_gantt_window(&t, s->rank, layer, &from, &to))
        status = fr_fail(err, FR_BAD_INPUT, "%s: rank %d has no ops of layer %d", s->path, s->rank, layer);
    fr_text_add(settings, "layer = %d\nwindow = %.6g\nset ytics (", layer, (double)(to - from) / 1e3);
    /* Two ranks, so that a wait and what it waits for stand under each other. */
    for (int rank = s->rank; status == FR_OK && rank < s->rank + 2 && rank < plan->ranks; rank++)
        for (uint32_t lane = 0; lane < plan->lanes_count; lane++) {
            if (plan->lanes[lane].rank != rank || !cli_gantt_lane(&t, lane, row, from, to, data)) continue;
            fr_text_add(settings, "%s\"rank %d %s\" %d", row ? ", " : "", rank, plan->lanes[lane].name, row);
            row++;
        }
    fr_text_add(settings, ")\nrows = %d\n", row);
    fr_plan_free(plan);
    fr_timeline_free(&t);
    return status;
}

/* Forwards that the rank that ends last took part in: what the path is divided by. */
static int64_t forwards_on_last_rank(const fr_timeline *t) {
    const fr_span *last = NULL;
    uint8_t *seen = fr_alloc(1 << 20); /* forwards have 20 bits in an id */
    int64_t count = 0;
    for (uint32_t i = 0; i < t->count; i++)
        if (!last || t->spans[i].end > last->end) last = &t->spans[i];
    for (uint32_t i = 0; i < t->count; i++) {
        uint8_t *at = &seen[t->spans[i].id >> 44 & 0xfffff];
        if (t->spans[i].rank != last->rank || *at) continue;
        *at = 1;
        count++;
    }
    free(seen);
    return count > 0 ? count : 1;
}

fr_status cli_data_critical(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    fr_timeline t;
    fr_plan *plan;
    FR_TRY(cli_run_subject(s, settings, err));
    FR_TRY(fr_store_load_spans(s->store, s->run, &plan, &t, err));
    int layers = 0;
    for (uint32_t i = 0; i < t.count; i++) {
        int l = layer_of(&t.spans[i]);
        if (l != FR_NO_LAYER && l >= layers) layers = l + 1;
    }
    int64_t forwards = forwards_on_last_rank(&t);
    fr_critical c;
    fr_critical_path(&t, 0, layers, &c);
    int64_t all = c.end - c.begin;
    for (int l = 0; l <= layers; l++) {
        fr_text_add(data, "%d", l);
        for (int k = 0; k < FR_RESOURCES; k++) fr_text_add(data, "\t%.4f", (double)c.ns[l][k] / 1e3 / (double)forwards);
        fr_text_add(data, "\n");
    }
    /* resources in words: the table's names have no spaces to be split at */
    static const char *const words[FR_RESOURCES] = {"attention",    "GEMM",       "'expert GEMM'",
                                                    "memory-bound", "collective", "'peer copy'",
                                                    "'host copy'",  "host",       "idle"};
    fr_text_add(settings, "layers = %d\nnames = \"", layers);
    for (int k = 0; k < FR_RESOURCES; k++) fr_text_add(settings, "%s%s", k ? " " : "", words[k]);
    fr_text_add(settings, "\"\nshares = \"");
    for (int k = 0; k < FR_RESOURCES; k++)
        fr_text_add(settings, " %.2f", all > 0 ? 100.0 * (double)c.total[k] / (double)all : 0.0);
    fr_text_add(settings, "\"\n");
    fr_critical_free(&c);
    fr_plan_free(plan);
    fr_timeline_free(&t);
    return FR_OK;
}

/* Data of the figures that set measured runs beside their simulated twins. */
#include "sim/cli/cli.h"
#include "sim/cli/figures.h"
#include "sim/validate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every measured run of the store, validated; *count of them, the caller's. */
static fr_status validate_all(const cli_figure_source *s, fr_validation **v, int *count, fr_error *err) {
    cli_table runs;
    FR_TRY(cli_measured_runs(s->store, s->path, NULL, &runs, err));
    char *exe = cli_exe_dir();
    const fr_validate_options o = {.exe_dir = exe};
    fr_status status = FR_OK;
    *count = 0;
    *v = fr_alloc((runs.rows + 1) * sizeof **v);
    for (uint32_t i = 0; i < runs.rows && status == FR_OK; i++) {
        status = fr_validate_run(s->store, s->path, atoll(cli_at(&runs, i, 0)), &o, &(*v)[*count], err);
        *count += status == FR_OK;
    }
    cli_table_free(&runs);
    free(exe);
    return status;
}

static void free_all(fr_validation *v, int count) {
    for (int i = 0; i < count; i++) fr_validation_free(&v[i]);
    free(v);
}

static const char *strategy_of(const fr_validation *v) {
    const char *name = v->setup.experiment.layout.strategy;
    return name[0] ? name : "custom";
}

/* Blocks by strategy: measured ms, predicted ms, low, high. */
fr_status cli_data_scatter(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    fr_validation *v = NULL;
    int count = 0, series = 0;
    fr_status status = validate_all(s, &v, &count, err);
    double low = INFINITY, high = 0;
    for (int i = 0; i < count && status == FR_OK; i++) {
        bool seen = false;
        for (int k = 0; k < i; k++) seen |= strcmp(strategy_of(&v[k]), strategy_of(&v[i])) == 0;
        if (seen) continue;
        fr_text_add(data, "%s\"%s\"\n", series++ ? "\n\n" : "", strategy_of(&v[i]));
        for (int k = i; k < count; k++) {
            if (strcmp(strategy_of(&v[k]), strategy_of(&v[i])) != 0) continue;
            const fr_result *p = &v[k].predicted;
            fr_text_add(data, "%.6g\t%.6g\t%.6g\t%.6g\n", 1e3 * v[k].forward_s, 1e3 * p->forward_s,
                        1e3 * p->forward_low_s, 1e3 * p->forward_high_s);
            low = fmin(low, 1e3 * fmin(v[k].forward_s, p->forward_low_s));
            high = fmax(high, 1e3 * fmax(v[k].forward_s, p->forward_high_s));
        }
    }
    fr_validate_summary all;
    if (status == FR_OK) {
        fr_validate_summarise(v, count, &all);
        fr_text_add(
            settings,
            "series = %d\nlow = %.6g\nhigh = %.6g\nsubject = \"%d runs: median error %.1f %%, p95 %.1f %%, worst "
            "%.1f %%, bias %+.1f %%\"\n",
            series, low / 1.2, high * 1.2, count, 100 * all.forward.median, 100 * all.forward.p95,
            100 * all.forward.worst, 100 * all.forward.bias);
    }
    free_all(v, count);
    return status;
}

#define SMALL 0.002 /* share of the measured time below which an op kind is not shown */

/* kind, error % of the total time, least and largest error % of a run's total, share of the measured time %. */
fr_status cli_data_op_errors(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    fr_validation *v = NULL;
    int count = 0, rows = 0;
    fr_status status = validate_all(s, &v, &count, err);
    fr_validate_summary all;
    if (status == FR_OK) fr_validate_summarise(v, count, &all);
    double sum = 0;
    for (int i = 0; status == FR_OK && i < all.kinds_count; i++)
        if (fr_op_class_of((fr_op_kind)all.kinds[i].kind) != FR_CLASS_HOST) sum += all.kinds[i].sum.measured;
    for (int i = 0; status == FR_OK && i < all.kinds_count; i++) {
        const fr_compare_row *r = &all.kinds[i];
        double low = INFINITY, high = -INFINITY;
        if (fr_op_class_of((fr_op_kind)r->kind) == FR_CLASS_HOST || r->sum.measured < SMALL * sum) continue;
        for (int k = 0; k < count; k++)
            for (int j = 0; j < v[k].compare.kinds_count; j++) {
                const fr_compare_row *own = &v[k].compare.kinds[j];
                if (own->kind != r->kind) continue;
                low = fmin(low, own->sum.predicted / own->sum.measured - 1);
                high = fmax(high, own->sum.predicted / own->sum.measured - 1);
            }
        fr_text_add(data, "%s\t%.4g\t%.4g\t%.4g\t%.4g\n", r->name, 100 * (r->sum.predicted / r->sum.measured - 1),
                    100 * low, 100 * high, 100 * r->sum.measured / sum);
        rows++;
    }
    fr_text_add(settings, "rows = %d\nsubject = \"%d runs\"\n", rows, count);
    free_all(v, count);
    if (status == FR_OK && rows == 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: its measured runs have no timed ops", s->path);
    return status;
}

/* Boxes of both timelines, each from where it enters the layer. */
static bool add_twins(const fr_validation *v, int rank, int layer, fr_text *data, fr_text *settings) {
    static const char *const side[2] = {"sim", "live"};
    int64_t from[2], to[2];
    int row = 0;
    for (int k = 0; k < 2; k++)
        if (!cli_gantt_window(&v->spans[k], rank, layer, &from[k], &to[k])) return false;
    int64_t longest = fr_max_i64(to[0] - from[0], to[1] - from[1]);
    fr_text_add(settings, "layer = %d\nwindow = %.6g\nset ytics (", layer, (double)longest / 1e3);
    for (uint32_t lane = 0; lane < v->plan->lanes_count; lane++)
        for (int k = 1; k >= 0; k--) {
            if (v->plan->lanes[lane].rank != rank ||
                !cli_gantt_lane(&v->spans[k], lane, row, from[k], from[k] + longest, data))
                continue;
            fr_text_add(settings, "%s\"%s, %s\" %d", row ? ", " : "", v->plan->lanes[lane].name, side[k], row);
            row++;
        }
    fr_text_add(settings, ")\nrows = %d\n", row);
    return true;
}

fr_status cli_data_twins(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    fr_validation v;
    char *exe = cli_exe_dir();
    const fr_validate_options o = {.exe_dir = exe};
    fr_status status = cli_run_subject(s, settings, err);
    if (status == FR_OK) status = fr_validate_run(s->store, s->path, s->run, &o, &v, err);
    free(exe);
    FR_TRY(status);
    int layer = s->layer >= 0 ? s->layer : cli_middle_layer(&v.spans[1], s->rank);
    if (!add_twins(&v, s->rank, layer, data, settings))
        status =
            fr_fail(err, FR_BAD_INPUT, "%s: rank %d has no ops of layer %d on both sides", s->path, s->rank, layer);
    fr_validation_free(&v);
    return status;
}

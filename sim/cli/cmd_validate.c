/* forerun validate: the measured runs of a store, each against the simulator on the same cell, op by op. */
#include "sim/cli/cli.h"
#include "sim/cli/figures.h"
#include "sim/cli/validate_report.h"

#include "engine/report.h"
#include "engine/trace_json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

const fr_option cmd_validate_options[] = {
    {"run", "N", NULL, "this measured run alone, in full (default: all, one line each, and a summary)"},
    {"details", NULL, NULL, "every run in full"},
    {"assumed-routing", NULL, NULL, "simulate with the experiment's routing, not with what the run recorded"},
    {"costs", "FOLDER", NULL, "measured cost tables in place of those compiled in"},
    {"anchors", "FILE,..", NULL,
     "anchor rows of each GPU, measured with the runs: errors with them beside raw ones (default: stored ones)"},
    {"perfetto", "FILE", NULL, "with --run: live and simulated timeline side by side for Perfetto (JSON)"},
    {"json", NULL, NULL, "one JSON object"},
    {NULL, NULL, NULL, NULL},
};

fr_status cli_measured_runs(fr_store *s, const char *path, const char *asked, cli_table *out, fr_error *err) {
    int64_t n;
    if (asked) FR_TRY(fr_parse_int(asked, 1, INT64_MAX, false, "--run", &n, err));
    FR_TRY(cli_fetch(s,
                     "SELECT id FROM runs WHERE kind='run' AND json_extract(result,'$.failed') IS NULL AND (?1 IS NULL "
                     "OR id=?1+0) ORDER BY id",
                     asked, out, err));
    if (out->rows) return FR_OK;
    cli_table_free(out);
    return fr_fail(err, FR_BAD_INPUT,
                   "%s: holds no measured run%s%s: forerun run ... --db FILE on a machine with GPUs stores one", path,
                   asked ? " " : "", asked ? asked : "");
}

static fr_status write_twins(const fr_validation *v, const char *path, fr_error *err) {
    fr_plan *plan;
    fr_timeline t;
    fr_validation_twins(v, &plan, &t);
    fr_status status = fr_trace_json_write(path, plan, &t, err);
    fr_plan_free(plan);
    fr_timeline_free(&t);
    return status;
}

static void print_text(const fr_validation *v, int count, bool details) {
    fr_text t = {0};
    const bool whole = details || count == 1;
    for (int i = 0; i < count && whole; i++) cli_validate_details(&v[i], &t);
    if (!whole) cli_validate_list(v, count, &t);
    if (count > 1) cli_validate_summary(v, count, &t);
    fputs(t.text, stdout);
    fr_text_free(&t);
}

static fr_status validate(fr_store *s, const cli_args *a, const fr_validate_options *o, fr_error *err) {
    cli_table runs;
    FR_TRY(cli_measured_runs(s, a->positional[0], cli_value(a, "run"), &runs, err));
    const char *twins = cli_value(a, "perfetto");
    fr_status status = FR_OK;
    int count = 0;
    fr_validation *v = fr_alloc((runs.rows + 1) * sizeof *v);
    if (twins && runs.rows > 1) status = fr_fail(err, FR_BAD_INPUT, "--perfetto: say which run with --run N");
    for (uint32_t i = 0; i < runs.rows && status == FR_OK; i++) {
        status = fr_validate_run(s, a->positional[0], atoll(cli_at(&runs, i, 0)), o, &v[count], err);
        count += status == FR_OK;
    }
    if (status == FR_OK && twins) status = write_twins(&v[0], twins, err);
    if (status == FR_OK && cli_value(a, "json")) {
        char *text = fr_report_dump(cli_validate_json(v, count));
        fputs(text, stdout);
        free(text);
    } else if (status == FR_OK) {
        print_text(v, count, cli_value(a, "details") != NULL);
    }
    for (int i = 0; i < count; i++) fr_validation_free(&v[i]);
    free(v);
    cli_table_free(&runs);
    return status;
}

fr_status cmd_validate(const cli_args *a, fr_error *err) {
    fr_store *s;
    char *anchors = NULL, *exe = cli_exe_dir();
    fr_status status = FR_OK;
    if (cli_value(a, "anchors")) status = cli_read_anchors(cli_value(a, "anchors"), &anchors, err);
    if (status == FR_OK) status = fr_store_open(a->positional[0], FR_STORE_READ, &s, err);
    if (status == FR_OK) {
        const fr_validate_options o = {.assumed_routing = cli_value(a, "assumed-routing") != NULL,
                                       .costs = cli_value(a, "costs"),
                                       .anchors = anchors,
                                       .exe_dir = exe};
        status = validate(s, a, &o, err);
        fr_store_close(s);
    }
    free(anchors);
    free(exe);
    return status;
}

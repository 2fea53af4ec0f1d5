/* What `simulate` and `run` leave behind alike: a run in a store, a timeline for Perfetto, spans as CSV. */
#include "sim/cli/cli.h"

#include "engine/store.h"
#include "engine/strategy/strategy.h"
#include "engine/trace_json.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define ANCHORS_LIMIT ((size_t)1 << 20)

fr_status cli_read_anchors(const char *files, char **out, fr_error *err) {
    fr_text all = {0};
    char *copy = fr_strdup(files), *save = NULL;
    fr_status status = FR_OK;
    for (char *file = strtok_r(copy, ",", &save); file && status == FR_OK; file = strtok_r(NULL, ",", &save)) {
        char *text;
        size_t length;
        status = fr_read_file(file, ANCHORS_LIMIT, &text, &length, err);
        if (status != FR_OK) break;
        fr_text_add(&all, "%.*s", (int)length, text);
        free(text);
    }
    free(copy);
    if (status != FR_OK) fr_text_free(&all);
    *out = status == FR_OK ? all.text : NULL;
    return status;
}

static fr_status add_run(fr_store *s, const cli_kept *k, const fr_plan *plan, const char *cell, const char *config,
                         const char *result, int64_t *id, fr_error *err) {
    FR_TRY(fr_store_add_run(s, k->kind, k->setup, k->result, config, result, id, err));
    FR_TRY(fr_store_add_forwards(s, *id, k->forwards, k->forwards_count, err));
    FR_TRY(fr_store_add_requests(s, *id, k->requests, k->requests_count, err));
    if (cell) FR_TRY(fr_store_attach(s, *id, "cell", cell, err));
    if (k->routing) FR_TRY(fr_store_attach(s, *id, "routing", k->routing, err));
    if (k->anchors) FR_TRY(fr_store_attach(s, *id, "anchors", k->anchors, err));
    return fr_store_add_spans(s, *id, plan, k->spans, err);
}

static fr_status store_run(const cli_kept *k, const fr_plan *plan, const char *cell, const char *path, fr_error *err) {
    char *config = fr_experiment_json(&k->setup->experiment),
         *result = json_dumps(k->report, JSON_COMPACT | JSON_REAL_PRECISION(15));
    fr_store *s = NULL;
    int64_t id = 0;
    fr_status status = fr_store_open(path, FR_STORE_WRITE, &s, err);
    if (status == FR_OK) status = fr_store_begin(s, err);
    if (status == FR_OK) {
        status = add_run(s, k, plan, cell, config, result, &id, err);
        if (status == FR_OK)
            status = fr_store_commit(s, err);
        else
            fr_store_rollback(s);
    }
    fr_store_close(s);
    free(config);
    free(result);
    if (status == FR_OK) fprintf(stderr, "forerun: run %" PRId64 " stored in %s\n", id, path);
    return status;
}

bool cli_keeps(const cli_args *a) {
    return cli_value(a, "db") || cli_value(a, "perfetto") || cli_value(a, "csv");
}

/* Files that need lane names: the static part of the plan is built again, the same for the same setup. */
static fr_status write_files(const cli_kept *k, const cli_args *a, fr_error *err) {
    const char *db = cli_value(a, "db"), *perfetto = cli_value(a, "perfetto"), *csv = cli_value(a, "csv");
    const fr_setup *setup = k->setup;
    fr_planner *planner = NULL;
    FR_TRY(fr_setup_planner(setup, false, &planner, err));
    const fr_plan *plan = fr_planner_plan(planner);
    fr_status status = FR_OK;
    if (db) status = store_run(k, plan, a->cell, db, err);
    if (status == FR_OK && perfetto) status = fr_trace_json_write(perfetto, plan, k->spans, err);
    if (status == FR_OK && csv) status = fr_trace_csv_write(csv, plan, k->spans, err);
    fr_planner_close(planner);
    return status;
}

fr_status cli_keep(const cli_kept *k, const cli_args *a, fr_error *err) {
    fr_status status = write_files(k, a, err);
    json_decref(k->report);
    return status;
}

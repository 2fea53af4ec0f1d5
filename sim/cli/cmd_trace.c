/* forerun trace: a stored timeline as Chrome trace JSON. */
#include "sim/cli/cli.h"
#include "sim/cli/figures.h"

#include "engine/trace_json.h"

const fr_option cmd_trace_options[] = {
    {"output", "FILE.json", NULL, "file to write (also -o)"},
    {"run", "N", NULL, "number of the run (default: the last one with a timeline)"},
    {NULL, NULL, NULL, NULL},
};

static fr_status convert(fr_store *s, const cli_args *a, const char *path, fr_error *err) {
    int64_t run;
    fr_timeline t;
    fr_plan *plan;
    FR_TRY(cli_choose_run(s, a->positional[0], cli_value(a, "run"), &run, err));
    FR_TRY(fr_store_load_spans(s, run, &plan, &t, err));
    fr_status status = fr_trace_json_write(path, plan, &t, err);
    fr_plan_free(plan);
    fr_timeline_free(&t);
    return status;
}

fr_status cmd_trace(const cli_args *a, fr_error *err) {
    const char *path = cli_value(a, "output");
    if (!path) return fr_fail(err, FR_BAD_INPUT, "no output: say -o FILE.json");
    fr_store *s;
    FR_TRY(fr_store_open(a->positional[0], FR_STORE_READ, &s, err));
    fr_status status = convert(s, a, path, err);
    fr_store_close(s);
    return status;
}

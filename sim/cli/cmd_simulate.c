/* forerun simulate: one layout, one workload, virtual clock. */
#include "sim/cli/cli.h"

#include "engine/plan/critical.h"
#include "engine/report.h"
#include "sim/driver.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const fr_option cmd_simulate_options[] = {
    {"json", NULL, NULL, "one JSON object"},
    {"why", NULL, NULL,
     "critical path of every layer by resource (tables of up to 256 equal batches show its summary anyway)"},
    {"db", "FILE", NULL, "store the run with its forwards, requests and timeline (SQLite)"},
    {"perfetto", "FILE", NULL, "write the timeline for Perfetto or chrome://tracing (JSON)"},
    {"csv", "FILE", NULL, "write the timeline as CSV"},
    {"timed", NULL, NULL, "as run measures it with its timeline: an event behind each op takes its time, some 2 us"},
    {"unlike", NULL, NULL, "the GPUs draw as unequally as measured ones of their kind (default: all are the mean one)"},
    {"warmup", "S", NULL,
     "sustained: as run --warmup S: the load came from a rest, lasted S seconds and pauses for some 10 ms before time "
     "0 "
     "(default: so long ago that the power limit has settled)"},
    {"progress", NULL, NULL, "show progress also where stderr is no terminal"},
    {"cells", "FILE", NULL, "a list of cells, a line NAME | OPTIONS each: all of them, one after the other"},
    {"results", "FOLDER", NULL, "--cells: each result goes to FOLDER/NAME.json; those that are there are left out"},
    {NULL, NULL, NULL, NULL},
};

/* One play and everything that it left behind. */
typedef struct {
    fr_setup setup;
    fr_result result;
    fr_timeline spans;
    fr_request_record *requests;
    fr_forward_record *forwards;
    int64_t requests_count, forwards_count;
} play;

static void play_free(play *p) {
    fr_timeline_free(&p->spans);
    free(p->requests);
    free(p->forwards);
    fr_setup_close(&p->setup);
}

/* How long the GPUs of `run` stand still between warming up and time 0: 9 to 27 ms in 71 runs on one and two H200s, the
 * median 11. */
#define PAUSE_NS 11000000

static fr_status play_it(play *p, const cli_args *a, bool spans, bool records, fr_error *err) {
    cli_progress progress;
    double warmup = 0;
    const char *asked = cli_value(a, "warmup");
    if (asked) FR_TRY(fr_parse_double(asked, 0, 3600, "--warmup", &warmup, err));
    char *exe = cli_exe_dir();
    cli_progress_start(&progress, "simulate", cli_value(a, "progress") != NULL);
    fr_drive_options o = {.spans = spans ? &p->spans : NULL,
                          .requests = records ? &p->requests : NULL,
                          .requests_count = &p->requests_count,
                          .forwards = records ? &p->forwards : NULL,
                          .forwards_count = &p->forwards_count,
                          .progress = cli_progress_update,
                          .progress_context = &progress,
                          .exe_dir = exe,
                          .unlike = cli_value(a, "unlike") != NULL,
                          .pause_ns = warmup > 0 ? PAUSE_NS : 0,
                          .load_ns = fr_round(1e9 * warmup)};
    p->setup.experiment.spans = spans;
    fr_cost_time_ops(p->setup.cost, cli_value(a, "timed") != NULL);
    fr_status status = fr_drive(&p->setup, &o, &p->result, err);
    if (status == FR_OK && spans) fr_timeline_sort(&p->spans);
    cli_progress_end(&progress);
    free(exe);
    return status;
}

/* The same cell on the machine as it is, to say what the what-if buys. */
static fr_status play_baseline(const play *with, const cli_args *a, fr_result *out, fr_error *err) {
    fr_experiment e;
    FR_TRY(cli_experiment(a, &e, err));
    e.what_if[0] = 0;
    play base = {0};
    FR_TRY(fr_setup_open(&e, &base.setup, err));
    base.setup.experiment.ignore_memory = with->setup.experiment.ignore_memory;
    fr_status status = play_it(&base, a, false, false, err);
    *out = base.result;
    play_free(&base);
    return status;
}

static void print_text(const play *p, const fr_critical *why, bool every, const fr_result *base) {
    fr_text text = {0};
    fr_report_layout(&p->setup, &text);
    fr_report_result(&p->setup, &p->result, &text);
    if (base)
        fr_text_add(&text, "what if          %s: %.3fx the throughput (%.0f tokens/s without it)\n",
                    p->setup.experiment.what_if, p->result.tokens_per_s / base->tokens_per_s, base->tokens_per_s);
    if (why) fr_report_critical(why, p->result.units_forwards, every, &text);
    fr_report_memory(&p->setup, &text);
    fputs(text.text, stdout);
    fr_text_free(&text);
}

static fr_status print_json(const play *p, const cli_args *a, bool played, const fr_critical *why,
                            const fr_result *base, fr_error *err) {
    json_t *o = fr_report_json(&p->setup, played ? &p->result : NULL);
    if (why) json_object_set_new(o, "critical_path", fr_report_critical_json(why));
    if (base)
        json_object_set_new(o, "baseline",
                            json_pack("{s:f, s:f, s:f}", "forward_s", base->forward_s, "tokens_per_s",
                                      base->tokens_per_s, "speedup", p->result.tokens_per_s / base->tokens_per_s));
    char *text = fr_report_dump(o);
    const fr_status s = cli_put_json(a, text, err);
    free(text);
    return s;
}

static fr_status keep(const play *p, const cli_args *a, fr_error *err) {
    if (!cli_keeps(a)) return FR_OK;
    cli_kept k = {.kind = "simulate",
                  .setup = &p->setup,
                  .result = &p->result,
                  .report = fr_report_json(&p->setup, &p->result),
                  .forwards = p->forwards,
                  .forwards_count = p->forwards_count,
                  .requests = p->requests,
                  .requests_count = p->requests_count,
                  .spans = &p->spans};
    return cli_keep(&k, a, err);
}

static fr_status simulate(play *p, const cli_args *a, fr_error *err) {
    bool json = cli_value(a, "json") || a->json_file, batch = p->setup.experiment.trace[0] == 0;
    bool files = cli_keeps(a);
    /* the path needs every op's span in memory: of long streams only where it is asked for */
    enum { SHORT_STREAM = 256 };
    bool show_why = cli_value(a, "why") || (batch && !json && p->setup.experiment.forwards <= SHORT_STREAM);
    if (!p->setup.fits && !p->setup.experiment.ignore_memory) {
        if (json) {
            FR_TRY(print_json(p, a, false, NULL, NULL, err));
        } else {
            fr_text text = {0};
            fr_report_layout(&p->setup, &text);
            fr_report_memory(&p->setup, &text);
            fputs(text.text, stdout);
            fr_text_free(&text);
        }
        return fr_fail(err, FR_FAILED, "does not fit: %s (--ignore-memory goes on)", p->setup.reason);
    }
    FR_TRY(play_it(p, a, files || show_why, files, err));
    fr_result base;
    bool what_if = p->setup.experiment.what_if[0] != 0;
    if (what_if) FR_TRY(play_baseline(p, a, &base, err));
    FR_TRY(keep(p, a, err));
    fr_critical why;
    if (show_why) fr_critical_path(&p->spans, 0, fr_layout_layers(&p->setup.experiment.layout, &p->setup.model), &why);
    fr_status s = FR_OK;
    if (json)
        s = print_json(p, a, true, show_why ? &why : NULL, what_if ? &base : NULL, err);
    else
        print_text(p, show_why ? &why : NULL, cli_value(a, "why") != NULL, what_if ? &base : NULL);
    if (show_why) fr_critical_free(&why);
    return s;
}

static fr_status simulate_one(const cli_args *a, bool *stop, fr_error *err) {
    fr_experiment e;
    (void)stop;
    FR_TRY(cli_experiment(a, &e, err));
    play p = {0};
    FR_TRY(fr_setup_open(&e, &p.setup, err));
    fr_status status = simulate(&p, a, err);
    play_free(&p);
    return status;
}

fr_status cmd_simulate(const cli_args *a, fr_error *err) {
    bool stop = false;
    if (cli_value(a, "cells")) return cli_cells(a, simulate_one, err);
    return simulate_one(a, &stop, err);
}

/* forerun sweep: a grid of experiments into a SQLite file, then the ranking. */
#include "sim/cli/cli.h"

#include "sim/ranking.h"
#include "sim/sweep.h"
#ifdef FR_MPI
#include "sim/mpi/mpi_sweep.h"
#endif

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const fr_option cmd_sweep_options[] = {
    {"db", "FILE", NULL, "results (SQLite; default: the experiment's name with .db); a sweep goes on where it stopped"},
    {"jobs", "N", NULL, "worker threads (default: one per core)"},
    {"anew", NULL, NULL, "play cells again that other code or tables have played (they are deleted)"},
    {"csv", "FILE", NULL, "also write every cell as CSV"},
    {"top", "N", NULL, "layouts shown per workload (default 12; 0 = all)"},
    {"progress", NULL, NULL, "show progress also where stderr is no terminal"},
    {NULL, NULL, NULL, NULL},
};

/* Ctrl-C ends the sweep between cells, with everything played so far stored. */
static volatile sig_atomic_t interrupted;
static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}
static bool asked_to_stop(void *context) {
    (void)context;
    return interrupted != 0;
}

typedef struct {
    bool on, shown;
    double began;
} meter;

static void show(void *context, const fr_sweep_totals *t) {
    meter *m = context;
    const double s = fr_monotonic_s() - m->began;
    int64_t played = t->done - t->skipped, left = t->cells - t->done;
    if (!m->on || s < 0.5 || t->cells == 0) return;
    enum { WIDTH = 30 };
    int full = (int)(WIDTH * t->done / t->cells);
    double rate = s > 0 ? (double)played / s : 0;
    fprintf(stderr, "\rsweep [%.*s%*s] %" PRId64 "/%" PRId64 " cells, %.1f cells/s", full,
            "##############################", WIDTH - full, "", t->done, t->cells, rate);
    if (rate > 0) fprintf(stderr, ", %.0f s left ", (double)left / rate);
    fflush(stderr);
    m->shown = true;
}

static fr_status default_db(const char *experiment, char *out, size_t size, fr_error *err) {
    const char *slash = strrchr(experiment, '/'), *base = slash ? slash + 1 : experiment, *dot = strrchr(base, '.');
    int stem = dot && dot > base ? (int)(dot - base) : (int)strlen(base);
    int n = snprintf(out, size, "%.*s.db", stem, base);
    if (n < 0 || (size_t)n >= size)
        return fr_fail(err, FR_BAD_INPUT, "%s: name is too long; say --db FILE", experiment);
    return FR_OK;
}

static fr_status play(const fr_grid *grid, fr_store *store, const fr_sweep_options *o, fr_sweep_totals *t,
                      fr_error *err) {
#ifdef FR_MPI
    if (fr_mpi_size() > 1) return fr_sweep_run_mpi(grid, store, o, t, err);
#endif
    return fr_sweep_run(grid, store, o, t, err);
}

static fr_status print_ranking(fr_store *store, int64_t top, fr_error *err) {
    fr_ranking_options o = {.most_rows = (int)top, .most_groups = 8};
    fr_text text = {0};
    fr_status status = fr_ranking_print(store, &o, &text, err);
    if (status == FR_OK && text.text) fputs(text.text, stdout);
    fr_text_free(&text);
    return status;
}

static fr_status export_cells(fr_store *store, const char *path, fr_error *err) {
    fr_text sql = {0}, csv = {0};
    fr_text_add(&sql, "SELECT cell, status, reason");
    for (const fr_column *c = fr_result_columns(); c->name; c++) fr_text_add(&sql, ", \"%s\"", c->name);
    fr_text_add(&sql, ", config FROM cells ORDER BY cell");
    fr_status status = fr_store_csv(store, sql.text, &csv, err);
    if (status == FR_OK) status = fr_write_file(path, csv.text ? csv.text : "", csv.length, err);
    fr_text_free(&sql);
    fr_text_free(&csv);
    return status;
}

/* A file of refused cells alone, from now or before, is wrong input: misspelt names, degrees that fit nowhere. */
static fr_status refuse_nothing_played(fr_store *store, const char *db, fr_error *err) {
    fr_text others = {0};
    fr_status status = fr_store_csv(store, "SELECT 1 FROM cells WHERE status<>'refused' LIMIT 1", &others, err);
    if (status == FR_OK && others.length == 0)
        status = fr_fail(err, FR_BAD_INPUT, "every cell was refused: the reasons are in the table above and in %s", db);
    fr_text_free(&others);
    return status;
}

static fr_status sweep(const cli_args *a, const fr_grid *grid, const char *db, fr_error *err) {
    int64_t jobs = 0, top = 12;
    if (cli_value(a, "jobs")) FR_TRY(fr_parse_int(cli_value(a, "jobs"), 1, 4096, false, "--jobs", &jobs, err));
    if (cli_value(a, "top")) FR_TRY(fr_parse_int(cli_value(a, "top"), 0, 1000000, false, "--top", &top, err));
    fr_store *store;
    FR_TRY(fr_store_open(db, FR_STORE_WRITE, &store, err));
    int64_t dropped = 0;
    const fr_status claimed =
        fr_store_claim_cells(store, fr_source_hash(), cli_value(a, "anew") != NULL, &dropped, err);
    if (claimed != FR_OK) {
        fr_store_close(store);
        return claimed;
    }
    if (dropped > 0) fprintf(stderr, "forerun: %" PRId64 " cells of other code or tables are played again\n", dropped);
    char *exe = cli_exe_dir();
    meter m = {.on = cli_value(a, "progress") || isatty(STDERR_FILENO) == 1, .began = fr_monotonic_s()};
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    fr_sweep_options o = {.jobs = (int)jobs, .exe_dir = exe, .progress = show, .context = &m, .stop = asked_to_stop};
    fr_sweep_totals t = {0};
    fr_status status = play(grid, store, &o, &t, err);
    if (m.shown) fprintf(stderr, "\r%79s\r", "");
    if (status == FR_OK)
        fprintf(stderr,
                "forerun: %" PRId64 " of %" PRId64 " cells in %s: %" PRId64 " played now in %.1f s, %" PRId64
                " were there; %" PRId64 " do not fit, %" PRId64 " refused, %" PRId64 " failed\n",
                t.done, t.cells, db, t.done - t.skipped, t.wall_s, t.skipped, t.unfit, t.refused, t.failed);
    if (status == FR_OK && interrupted)
        status = fr_fail(err, FR_FAILED, "stopped: the same command goes on where it stopped");
    if (status == FR_OK && fr_grid_title(grid)[0]) printf("%s\n", fr_grid_title(grid));
    if (status == FR_OK) status = print_ranking(store, top, err);
    if (status == FR_OK && cli_value(a, "csv")) status = export_cells(store, cli_value(a, "csv"), err);
    if (status == FR_OK) status = refuse_nothing_played(store, db, err);
    free(exe);
    fr_store_close(store);
    return status;
}

fr_status cmd_sweep(const cli_args *a, fr_error *err) {
    char db[4096];
    if (cli_value(a, "db")) /* cli_parse has seen that it fits */
        snprintf(db, sizeof db, "%s", cli_value(a, "db"));
    else
        FR_TRY(default_db(a->positional[0], db, sizeof db, err));
    fr_grid *grid;
    FR_TRY(fr_grid_open(a->positional[0], &grid, err));
    fr_status status;
#ifdef FR_MPI
    if (fr_mpi_rank() > 0) {
        char *exe = cli_exe_dir();
        status = fr_sweep_work_mpi(grid, exe, err);
        free(exe);
        fr_grid_close(grid);
        return status;
    }
#endif
    status = sweep(a, grid, db, err);
    fr_grid_close(grid);
    return status;
}

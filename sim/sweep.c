#include "sim/sweep.h"

#include "engine/report.h"
#include "engine/world/world.h"
#include "sim/driver.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WINDOW      1024        /* cells that workers may be ahead of the writer */
#define COMMIT_NS   250000000ll /* a transaction is closed after this long: what a kill can cost is played again */
#define PROGRESS_NS 100000000ll

/* ---- one cell
 * -------------------------------------------------------------------------------------------------------------- */

struct fr_sweep_worker {
    const char *exe_dir;
    fr_setup_cache *cache;
};

fr_sweep_worker *fr_sweep_worker_new(const char *exe_dir) {
    fr_sweep_worker *w = fr_alloc(sizeof *w);
    w->exe_dir = exe_dir;
    w->cache = fr_setup_cache_new();
    return w;
}

void fr_sweep_worker_free(fr_sweep_worker *w) {
    if (!w) return;
    fr_setup_cache_free(w->cache);
    free(w);
}

void fr_cell_result_free(fr_cell_result *r) {
    free(r->reason);
    free(r->config);
    free(r->result);
    for (int i = 0; r->values && i < fr_result_column_count(); i++)
        if (r->values[i].type == FR_COLUMN_TEXT) free((char *)(uintptr_t)r->values[i].text);
    free(r->values);
    *r = (fr_cell_result){0};
}

/* The key: what the result depends on. A cell that is refused has no setup; its tables play no part. */
static void make_key(const char *config, const fr_setup *s, char key[20]) {
    uint64_t h = fr_hash(config, strlen(config), FR_HASH_SEED);
    h = fr_hash(FR_VERSION, sizeof FR_VERSION, h);
    uint64_t tables = s && s->cost ? fr_cost_hash(s->cost) : 0;
    h = fr_hash(&tables, sizeof tables, h);
    snprintf(key, 20, "%016" PRIx64, h);
}

static void keep_row(const fr_setup *s, const fr_result *r, fr_cell_result *out) {
    out->values = fr_alloc((size_t)fr_result_column_count() * sizeof *out->values);
    fr_result_row(s, r, out->values);
    for (int i = 0; i < fr_result_column_count(); i++)
        if (out->values[i].type == FR_COLUMN_TEXT) out->values[i].text = fr_strdup(out->values[i].text);
}

static void play(fr_sweep_worker *w, const fr_setup *s, fr_cell_result *out) {
    fr_error err = {0};
    fr_result r = {0};
    fr_drive_options o = {.exe_dir = w->exe_dir};
    bool playable = s->fits || s->experiment.ignore_memory;
    fr_status status = playable ? fr_drive(s, &o, &r, &err) : FR_OK;
    if (!playable) fr_result_unplayed(s, &r);
    /* A trace's longest request may only show on opening it that the layout does not fit. */
    bool unfit = !playable || (status == FR_FAILED && !r.fits && !s->experiment.ignore_memory);
    strcpy(out->status, status == FR_BAD_INPUT ? "refused" : unfit ? "unfit" : status != FR_OK ? "failed" : "done");
    out->reason = fr_strdup(status != FR_OK ? err.text : s->reason);
    if (status != FR_OK) return;
    keep_row(s, &r, out);
    struct json_t *json = fr_report_json(s, playable ? &r : NULL);
    out->result = fr_report_dump(json);
    out->ops = r.ops_played + r.ops_folded;
}

/* Opens the cell's setup; on failure the cell is refused with the reason. */
static bool open_cell(fr_sweep_worker *w, const fr_grid *grid, int64_t index, fr_setup *s, fr_cell_result *out) {
    fr_error err = {0};
    fr_experiment e;
    fr_status status = fr_grid_cell(grid, index, &e, &err);
    out->cell = index;
    out->config = fr_experiment_json(&e);
    if (status == FR_OK) status = fr_setup_open_cached(&e, w->cache, s, &err);
    if (status == FR_OK) return true;
    make_key(out->config, NULL, out->key);
    strcpy(out->status, "refused");
    out->reason = fr_strdup(err.text);
    return false;
}

void fr_sweep_cell(fr_sweep_worker *w, const fr_grid *grid, int64_t index, fr_cell_result *out) {
    *out = (fr_cell_result){0};
    fr_setup s = {0};
    if (!open_cell(w, grid, index, &s, out)) return;
    make_key(out->config, &s, out->key);
    play(w, &s, out);
    fr_setup_close(&s);
}

void fr_sweep_key(fr_sweep_worker *w, const fr_grid *grid, int64_t index, char key[20]) {
    fr_cell_result r = {0};
    fr_setup s = {0};
    if (open_cell(w, grid, index, &s, &r)) {
        make_key(r.config, &s, r.key);
        fr_setup_close(&s);
    }
    memcpy(key, r.key, sizeof r.key);
    fr_cell_result_free(&r);
}

fr_status fr_sweep_store_cell(fr_store *store, const fr_cell_result *r, fr_error *err) {
    fr_cell c = {.cell = r->cell,
                 .status = r->status,
                 .reason = r->reason,
                 .config = r->config,
                 .result = r->result,
                 .values = r->values};
    memcpy(c.key, r->key, sizeof c.key);
    return fr_store_add_cell(store, &c, err);
}

void fr_sweep_count(fr_sweep_totals *t, const fr_cell_result *r) {
    t->done++;
    t->ops += r->ops;
    if (strcmp(r->status, "done") == 0)
        t->played++;
    else if (strcmp(r->status, "unfit") == 0)
        t->unfit++;
    else if (strcmp(r->status, "refused") == 0)
        t->refused++;
    else
        t->failed++;
}

/* ---- threads
 * --------------------------------------------------------------------------------------------------------------- */

typedef struct {
    const fr_grid *grid;
    const fr_sweep_options *options;
    const int64_t *todo; /* cell numbers, ascending */
    int64_t todo_count;

    pthread_mutex_t lock;
    pthread_cond_t ready, room;
    int64_t next;    /* position in todo that the next free worker takes */
    int64_t written; /* positions before this one are in the store */
    fr_cell_result ring[WINDOW];
    bool full[WINDOW];
    bool stop;
} pool;

static void *work(void *context) {
    pool *p = context;
    fr_sweep_worker *w = fr_sweep_worker_new(p->options->exe_dir);
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && p->next < p->todo_count && p->next >= p->written + WINDOW)
            pthread_cond_wait(&p->room, &p->lock);
        if (p->stop || p->next >= p->todo_count) break;
        int64_t at = p->next++;
        pthread_mutex_unlock(&p->lock);
        fr_cell_result r;
        fr_sweep_cell(w, p->grid, p->todo[at], &r);
        pthread_mutex_lock(&p->lock);
        p->ring[at % WINDOW] = r;
        p->full[at % WINDOW] = true;
        if (at == p->written) pthread_cond_signal(&p->ready);
    }
    pthread_mutex_unlock(&p->lock);
    fr_sweep_worker_free(w);
    return NULL;
}

/* Waits until the result at position `at` is there or a tenth of a second has passed. */
static bool await(pool *p, int64_t at, fr_cell_result *out) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PROGRESS_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&p->lock);
    int late = 0;
    while (!p->full[at % WINDOW] && late == 0) late = pthread_cond_timedwait(&p->ready, &p->lock, &until);
    bool got = p->full[at % WINDOW];
    if (got) {
        *out = p->ring[at % WINDOW];
        p->full[at % WINDOW] = false;
        p->written = at + 1;
        pthread_cond_broadcast(&p->room);
    }
    pthread_mutex_unlock(&p->lock);
    return got;
}

static void report(const fr_sweep_options *o, const fr_sweep_totals *t, int64_t *last, bool always) {
    int64_t now = fr_monotonic();
    if (!o->progress || (!always && now - *last < PROGRESS_NS)) return;
    *last = now;
    o->progress(o->context, t);
}

/* The writer: takes results in order, in transactions of a quarter of a second. */
static fr_status write_all(pool *p, fr_store *store, fr_sweep_totals *t, int64_t begun, fr_error *err) {
    int64_t opened = fr_monotonic(), told = 0;
    fr_status status = fr_store_begin(store, err);
    for (int64_t at = 0; at < p->todo_count && status == FR_OK;) {
        fr_cell_result r;
        if (await(p, at, &r)) {
            status = fr_sweep_store_cell(store, &r, err);
            fr_sweep_count(t, &r);
            fr_cell_result_free(&r);
            at++;
        }
        t->wall_s = (double)(fr_monotonic() - begun) * 1e-9;
        report(p->options, t, &told, false);
        if (status == FR_OK && fr_monotonic() - opened > COMMIT_NS) {
            status = fr_store_commit(store, err);
            if (status == FR_OK) status = fr_store_begin(store, err);
            opened = fr_monotonic();
        }
        if (p->options->stop && p->options->stop(p->options->context)) break;
    }
    if (status == FR_OK)
        status = fr_store_commit(store, err);
    else
        fr_store_rollback(store);
    report(p->options, t, &told, true);
    return status;
}

static fr_status run_pool(pool *p, int jobs, fr_store *store, fr_sweep_totals *t, int64_t begun, fr_error *err) {
    pthread_t *threads = fr_alloc((size_t)jobs * sizeof *threads);
    int started = 0;
    pthread_mutex_init(&p->lock, NULL);
    fr_cond_open(&p->ready); /* its waits are by the monotonic clock */
    pthread_cond_init(&p->room, NULL);
    while (started < jobs && pthread_create(&threads[started], NULL, work, p) == 0) started++;
    fr_status status = started > 0 ? write_all(p, store, t, begun, err)
                                   : fr_fail(err, FR_FAILED, "sweep: cannot start a worker thread");
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->room);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < WINDOW; i++)
        if (p->full[i]) fr_cell_result_free(&p->ring[i]);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->ready);
    pthread_cond_destroy(&p->room);
    free(threads);
    return status;
}

/* Cells of the grid that the store does not hold. In a fresh file that is all of them, without a look at any. */
static int64_t *find_todo(const fr_grid *grid, fr_store *store, const fr_sweep_options *options, int64_t *count,
                          fr_error *err) {
    int64_t cells = fr_grid_count(grid);
    int64_t *todo = fr_alloc((size_t)cells * sizeof *todo);
    fr_text any = {0};
    bool fresh = fr_store_csv(store, "SELECT key FROM cells LIMIT 1", &any, err) == FR_OK && any.length == 0;
    fr_text_free(&any);
    fr_sweep_worker *w = fr_sweep_worker_new(options->exe_dir);
    *count = 0;
    for (int64_t i = 0; i < cells; i++) {
        char key[20];
        if (!fresh) fr_sweep_key(w, grid, i, key);
        if (fresh || !fr_store_has_cell(store, key)) todo[(*count)++] = i;
    }
    fr_sweep_worker_free(w);
    return todo;
}

fr_status fr_sweep_run(const fr_grid *grid, fr_store *store, const fr_sweep_options *options, fr_sweep_totals *totals,
                       fr_error *err) {
    int64_t begun = fr_monotonic();
    pool *p = fr_alloc(sizeof *p);
    p->grid = grid;
    p->options = options;
    int64_t *todo = find_todo(grid, store, options, &p->todo_count, err);
    p->todo = todo;
    *totals = (fr_sweep_totals){.cells = fr_grid_count(grid)};
    totals->skipped = totals->done = totals->cells - p->todo_count;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int jobs = options->jobs > 0 ? options->jobs : cores > 0 ? (int)cores : 1;
    if (jobs > p->todo_count) jobs = (int)p->todo_count;
    fr_status status = p->todo_count ? run_pool(p, jobs, store, totals, begun, err) : FR_OK;
    totals->wall_s = (double)(fr_monotonic() - begun) * 1e-9;
    free(todo);
    free(p);
    return status;
}

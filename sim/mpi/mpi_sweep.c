#include "sim/mpi/mpi_sweep.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

enum { TAG_RESULT = 1, TAG_CELL = 2 };
#define PROGRESS_NS 100000000ll
#define COMMIT_NS   250000000ll

void fr_mpi_begin(int *argc, char ***argv) {
    int level; /* ranks of a live run talk from several threads (mpi_wire.h); a sweep from one */
    MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &level);
}

void fr_mpi_end(fr_status status) {
    if (status != FR_OK && fr_mpi_size() > 1) MPI_Abort(MPI_COMM_WORLD, status == FR_BAD_INPUT ? 2 : 1);
    MPI_Finalize();
}

int fr_mpi_rank(void) {
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

int fr_mpi_size(void) {
    int size;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

/* ---- a cell's result on the wire: fixed fields, then length-prefixed texts and the row
 * -------------------------------------- */

typedef struct {
    char *bytes;
    size_t length, at;
    uint32_t capacity;
} wire;

static void put(wire *w, const void *from, size_t n) {
    FR_GROW(w->bytes, w->capacity, w->length + n);
    memcpy(w->bytes + w->length, from, n);
    w->length += n;
}

static void put_text(wire *w, const char *text) {
    int64_t n = text ? (int64_t)strlen(text) : -1;
    put(w, &n, sizeof n);
    if (n > 0) put(w, text, (size_t)n);
}

static void get(wire *w, void *to, size_t n) {
    memcpy(to, w->bytes + w->at, n);
    w->at += n;
}

static char *get_text(wire *w) {
    int64_t n;
    get(w, &n, sizeof n);
    if (n < 0) return NULL;
    char *text = fr_alloc((size_t)n + 1);
    get(w, text, (size_t)n);
    return text;
}

static void pack(wire *w, const fr_cell_result *r) {
    int rows = r->values ? fr_result_column_count() : 0;
    put(w, &r->cell, sizeof r->cell);
    put(w, &r->ops, sizeof r->ops);
    put(w, r->key, sizeof r->key);
    put(w, r->status, sizeof r->status);
    put_text(w, r->reason);
    put_text(w, r->config);
    put_text(w, r->result);
    put(w, &rows, sizeof rows);
    for (int i = 0; i < rows; i++) {
        put(w, &r->values[i], sizeof r->values[i]);
        if (r->values[i].type == FR_COLUMN_TEXT) put_text(w, r->values[i].text);
    }
}

static void unpack(wire *w, fr_cell_result *r) {
    int rows;
    *r = (fr_cell_result){0};
    get(w, &r->cell, sizeof r->cell);
    get(w, &r->ops, sizeof r->ops);
    get(w, r->key, sizeof r->key);
    get(w, r->status, sizeof r->status);
    r->reason = get_text(w);
    r->config = get_text(w);
    r->result = get_text(w);
    get(w, &rows, sizeof rows);
    if (rows) r->values = fr_alloc((size_t)rows * sizeof *r->values);
    for (int i = 0; i < rows; i++) {
        get(w, &r->values[i], sizeof r->values[i]);
        if (r->values[i].type == FR_COLUMN_TEXT) r->values[i].text = get_text(w);
    }
}

/* ---- workers
 * --------------------------------------------------------------------------------------------------------------- */

fr_status fr_sweep_work_mpi(const fr_grid *grid, const char *exe_dir, fr_error *err) {
    (void)err;
    fr_sweep_worker *worker = fr_sweep_worker_new(exe_dir);
    wire w = {0}; /* the first message is empty: "give me work" */
    for (;;) {
        MPI_Send(w.bytes ? w.bytes : "", (int)w.length, MPI_BYTE, 0, TAG_RESULT, MPI_COMM_WORLD);
        int64_t cell;
        MPI_Recv(&cell, 1, MPI_INT64_T, 0, TAG_CELL, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        if (cell < 0) break;
        fr_cell_result r;
        fr_sweep_cell(worker, grid, cell, &r);
        w.length = 0;
        pack(&w, &r);
        fr_cell_result_free(&r);
    }
    free(w.bytes);
    fr_sweep_worker_free(worker);
    return FR_OK;
}

/* ---- the coordinator
 * ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const fr_grid *grid;
    fr_store *store;
    const fr_sweep_options *options;
    fr_sweep_totals *totals;
    fr_sweep_worker *worker; /* for keys */
    int64_t next, begun, opened, told;
} coordinator;

/* Next cell that the store does not hold, -1 = none. */
static int64_t next_cell(coordinator *c) {
    if (c->options->stop && c->options->stop(c->options->context)) return -1;
    for (; c->next < c->totals->cells; c->next++) {
        char key[20];
        fr_sweep_key(c->worker, c->grid, c->next, key);
        if (!fr_store_has_cell(c->store, key)) return c->next++;
        c->totals->skipped++;
        c->totals->done++;
    }
    return -1;
}

static fr_status take_result(coordinator *c, wire *w, fr_error *err) {
    fr_cell_result r;
    unpack(w, &r);
    fr_status status = fr_sweep_store_cell(c->store, &r, err);
    fr_sweep_count(c->totals, &r);
    fr_cell_result_free(&r);
    int64_t now = fr_monotonic();
    c->totals->wall_s = (double)(now - c->begun) * 1e-9;
    if (status == FR_OK && now - c->opened > COMMIT_NS) {
        status = fr_store_commit(c->store, err);
        if (status == FR_OK) status = fr_store_begin(c->store, err);
        c->opened = now;
    }
    if (c->options->progress && now - c->told > PROGRESS_NS) {
        c->options->progress(c->options->context, c->totals);
        c->told = now;
    }
    return status;
}

static fr_status coordinate(coordinator *c, fr_error *err) {
    wire w = {0};
    fr_status status = fr_store_begin(c->store, err);
    for (int working = fr_mpi_size() - 1; working > 0 && status == FR_OK;) {
        MPI_Status from;
        int length;
        MPI_Probe(MPI_ANY_SOURCE, TAG_RESULT, MPI_COMM_WORLD, &from);
        MPI_Get_count(&from, MPI_BYTE, &length);
        FR_GROW(w.bytes, w.capacity, (size_t)length + 1);
        MPI_Recv(w.bytes, length, MPI_BYTE, from.MPI_SOURCE, TAG_RESULT, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        w.at = 0;
        if (length > 0) status = take_result(c, &w, err);
        int64_t cell = status == FR_OK ? next_cell(c) : -1;
        MPI_Send(&cell, 1, MPI_INT64_T, from.MPI_SOURCE, TAG_CELL, MPI_COMM_WORLD);
        working -= cell < 0;
    }
    free(w.bytes);
    if (status == FR_OK) return fr_store_commit(c->store, err);
    fr_store_rollback(c->store);
    return status;
}

fr_status fr_sweep_run_mpi(const fr_grid *grid, fr_store *store, const fr_sweep_options *options,
                           fr_sweep_totals *totals, fr_error *err) {
    if (fr_mpi_size() == 1) return fr_sweep_run(grid, store, options, totals, err);
    *totals = (fr_sweep_totals){.cells = fr_grid_count(grid)};
    coordinator c = {.grid = grid,
                     .store = store,
                     .options = options,
                     .totals = totals,
                     .worker = fr_sweep_worker_new(options->exe_dir),
                     .begun = fr_monotonic()};
    c.opened = c.begun;
    fr_status status = coordinate(&c, err);
    totals->wall_s = (double)(fr_monotonic() - c.begun) * 1e-9;
    fr_sweep_worker_free(c.worker);
    return status;
}

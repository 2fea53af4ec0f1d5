/*
 * sweep: plays every cell of a grid and stores each one once. Workers take cells in order; one writer commits them in
 * cell order, so the file's content does not depend on the number of workers, and a killed sweep goes on where it
 * stopped: a cell is known by the hash of its full configuration, the program's version and the cost tables.
 */
#ifndef FR_SWEEP_H
#define FR_SWEEP_H

#include "engine/store.h"
#include "sim/grid.h"

typedef struct {
    int64_t cells, done, skipped; /* done: of cells; skipped: of those, in the file already */
    int64_t played, unfit, refused, failed;
    double wall_s;
    int64_t ops; /* played and folded */
} fr_sweep_totals;

typedef struct {
    int jobs;                                                  /* worker threads; 0 = one per core */
    const char *exe_dir;                                       /* for shipped traces */
    void (*progress)(void *context, const fr_sweep_totals *t); /* about ten times a second; NULL = none */
    void *context;
    bool (*stop)(void *context); /* asked between cells: true ends the sweep with what is stored; NULL = never */
} fr_sweep_options;

fr_status fr_sweep_run(const fr_grid *grid, fr_store *store, const fr_sweep_options *options, fr_sweep_totals *totals,
                       fr_error *err);

/* ---- what the MPI coordinator shares with the threads
 * ---------------------------------------------------------------------------- */

/* A played cell, ready for the store; texts are owned. */
typedef struct {
    int64_t cell;
    char key[20];
    char status[12];
    char *reason, *config, *result;
    fr_value *values; /* texts copied; NULL when refused */
    int64_t ops;
} fr_cell_result;

/* Plays cell `index`. Never fails: what goes wrong is the cell's status and reason. `key` only when just_key. */
typedef struct fr_sweep_worker fr_sweep_worker; /* keeps models, machines and cost tables between cells */
fr_sweep_worker *fr_sweep_worker_new(const char *exe_dir);
void fr_sweep_worker_free(fr_sweep_worker *w);
void fr_sweep_cell(fr_sweep_worker *w, const fr_grid *grid, int64_t index, fr_cell_result *out);
/* The cell's key alone, without playing it. */
void fr_sweep_key(fr_sweep_worker *w, const fr_grid *grid, int64_t index, char key[20]);
void fr_cell_result_free(fr_cell_result *r);
fr_status fr_sweep_store_cell(fr_store *store, const fr_cell_result *r, fr_error *err);
void fr_sweep_count(fr_sweep_totals *t, const fr_cell_result *r);

#endif

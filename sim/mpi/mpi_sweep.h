/*
 * mpi_sweep: a sweep over several hosts. Rank 0 holds the store and hands out cells; the others play them. Only
 * build/forerun-mpi links it:
 *
 *     mpirun -n 9 build/forerun-mpi sweep grid.json --db grid.db      1 coordinator, 8 workers
 *
 * Every rank reads the experiment's file itself, so it must be on a shared file system or copied to the same path.
 * Results are those of the threaded sweep, byte for byte: a cell's row depends on nothing but the cell.
 */
#ifndef FR_MPI_SWEEP_H
#define FR_MPI_SWEEP_H

#include "sim/sweep.h"

void fr_mpi_begin(int *argc, char ***argv);
void fr_mpi_end(fr_status status); /* a failing rank ends the whole job */
int fr_mpi_rank(void);
int fr_mpi_size(void);

/* Rank 0. With one rank only it plays the cells itself, as fr_sweep_run does. */
fr_status fr_sweep_run_mpi(const fr_grid *grid, fr_store *store, const fr_sweep_options *options,
                           fr_sweep_totals *totals, fr_error *err);
/* Every other rank: plays what it is given until told to stop. */
fr_status fr_sweep_work_mpi(const fr_grid *grid, const char *exe_dir, fr_error *err);

#endif

/*
 * mpi_wire: the ranks of a live run as MPI processes, on one host or several. Rank 0 conducts
 * (engine/conduct/conduct.h) and runs the plan's rank 0; every other process runs one rank (engine/conduct/follow.h).
 * Only build/forerun-cuda-mpi links it:
 *
 *     mpirun -n 2 build/forerun-cuda-mpi run --strategy tp --gpus 2
 *
 * Every process reads the same command line, and the files that it names, itself.
 */
#ifndef FR_MPI_WIRE_H
#define FR_MPI_WIRE_H

#include "engine/world/wire.h"

/* To MPI process `peer`. FR_FAILED when this MPI library has no MPI_THREAD_MULTIPLE. */
fr_status fr_mpi_wire(int peer, fr_wire **out, fr_error *err);
/* This process's place among those of its host. */
int fr_mpi_local_rank(void);

#endif

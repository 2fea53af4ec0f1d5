/*
 * procs: a process per rank on one host. Rank 0 stays in the caller's, which conducts; the others are forked from it
 * before anything that does not survive a fork (CUDA, threads) is there.
 */
#ifndef FR_CONDUCT_PROCS_H
#define FR_CONDUCT_PROCS_H

#include "engine/world/wire.h"

typedef struct fr_procs fr_procs;

/* In each new process calls `child`, which must not return (it ends the process), with the wire to the caller's. */
fr_status fr_procs_open(int ranks, void (*child)(void *context, int rank, fr_wire *wire), void *context, fr_procs **out,
                        fr_error *err);
/* [ranks], NULL for rank 0. */
fr_wire **fr_procs_wires(fr_procs *p);
/* Waits up to `seconds` for the processes to end by themselves, as they do after a failure. NULL is allowed. */
void fr_procs_await(fr_procs *p, double seconds);
/* Closes the wires, at which the processes end, and waits for them up to `seconds`; those that have not ended by then
 * are left to do so (a device may keep them). NULL is allowed. */
void fr_procs_close(fr_procs *p, double seconds);

#endif

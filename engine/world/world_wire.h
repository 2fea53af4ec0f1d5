/*
 * world_wire: the world of a rank in a process of its own. Its meetings take place in the process that conducts, where
 * a thread stands in for the rank (conduct/remote.c); who receives from the wire hands in what concerns the world.
 */
#ifndef FR_WORLD_WIRE_H
#define FR_WORLD_WIRE_H

#include "engine/world/wire.h"
#include "engine/world/world.h"

/* Messages of the world; other kinds are from FR_WIRE_OTHERS on. */
enum {
    FR_WIRE_MEET = 1, /* to the conductor: this rank's blob */
    FR_WIRE_MET,      /* back: all blobs */
    FR_WIRE_FAIL,     /* both ways: rank, error */
    FR_WIRE_OTHERS
};

/* The wire must outlive it. */
fr_world *fr_world_wired(int ranks, int rank, double timeout_s, fr_wire *wire);
void fr_world_wired_met(fr_world *w, fr_bytes *all);                    /* FR_WIRE_MET came; takes the payload over */
void fr_world_wired_failed(fr_world *w, int rank, const fr_error *why); /* FR_WIRE_FAIL came */

#endif

/*
 * world: the ranks that run together, as far as hosts are concerned: exchange of small blobs, and one flag that says
 * that the run is over because a rank failed. Every wait ends when the world has failed or its timeout has passed, so a
 * rank that is gone never leaves the others hanging.
 *
 * Behind the interface: threads of one process, processes of one host, or processes of several hosts.
 */
#ifndef FR_WORLD_H
#define FR_WORLD_H

#include "engine/base.h"

#include <pthread.h>

typedef struct fr_world fr_world; /* threads: shared by all ranks; processes: one per rank */

/* `ranks` >= 1 threads of this process; timeout_s > 0 bounds every wait. */
fr_status fr_world_open_threads(int ranks, double timeout_s, fr_world **out, fr_error *err);
/* Some ranks of it are threads that stand in for other processes (conduct/remote.h). */
void fr_world_spread(fr_world *w);
/* After every rank is done with it. NULL is allowed. */
void fr_world_close(fr_world *w);

int fr_world_ranks(const fr_world *w);
double fr_world_timeout(const fr_world *w); /* seconds */
/* Peers' pointers (device memory too) are usable as they are; else they must be handed over (CUDA IPC). */
bool fr_world_same_process(const fr_world *w);

/*
 * All-gather of one blob per rank, and a barrier: every rank calls it with the same `bytes` (0: a barrier only), in the
 * same order of calls. `all` receives ranks * bytes (NULL: not wanted).
 * FR_FAILED when the world has failed (relays why), when the timeout passes (names the ranks that are missing) or when
 * the ranks disagree on `bytes`; the last two fail the world.
 */
fr_status fr_world_exchange(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err);

/* Says that `rank` cannot go on: waiters return at once. The first one wins, later ones are dropped. Any thread. */
void fr_world_fail(fr_world *w, int rank, const fr_error *why);
/* Whether a rank has failed; *rank and *why (either may be NULL) then say who was first and what happened. */
bool fr_world_failed(const fr_world *w, int *rank, fr_error *why);

/*
 * Who wants to hear what stage of its start or end a rank has come to, and what to pass along. Set before the ranks
 * begin; called by their threads, a few dozen times a run, never while the clock runs. A start that is slow or an end
 * that hangs is otherwise silent.
 */
typedef struct {
    void (*tell)(void *context, int rank, const char *stage); /* NULL = nobody */
    void *context;
} fr_world_ear;
void fr_world_listen(fr_world *w, const fr_world_ear *ear);
void fr_world_tell(const fr_world *w, int rank, const char *stage);

/* A condition whose waits take deadlines of CLOCK_MONOTONIC: setting the wall clock moves none of them. */
void fr_cond_open(pthread_cond_t *c);

#endif

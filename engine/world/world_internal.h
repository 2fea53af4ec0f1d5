/* world_internal: what stands behind fr_world: one table of functions per kind of world. */
#ifndef FR_WORLD_INTERNAL_H
#define FR_WORLD_INTERNAL_H

#include "engine/world/world.h"

#include <pthread.h>

typedef struct {
    fr_status (*exchange)(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err);
    void (*fail)(fr_world *w, int rank, const fr_error *why);
    void (*close)(fr_world *w);
} fr_world_kind;

/* The head of every kind's own structure. */
struct fr_world {
    const fr_world_kind *kind;
    int ranks;
    double timeout_s;
    bool same_process;
    fr_world_ear ear;
    pthread_mutex_t lock; /* over what follows, and over the kind's own state */
    pthread_cond_t changed;
    bool failed;
    int failed_rank;
    fr_error why;
};

/* Opens and closes the head. Waits on `changed` take deadlines of CLOCK_MONOTONIC. */
void fr_world_head_open(fr_world *w, const fr_world_kind *kind, int ranks, double timeout_s, bool same_process);
void fr_world_head_close(fr_world *w);
/* With the lock held: the first failure stays, and wakes whoever waits; a failure as the caller's own error. */
void fr_world_fail_locked(fr_world *w, int rank, const fr_error *why);
fr_status fr_world_relay(const fr_world *w, fr_error *err);

/* "rank 1" or "ranks 0, 2 and 5": those whose `here` is false. */
void fr_world_missing(const bool *here, int ranks, fr_text *out);

#endif

/* world_internal: what stands behind fr_world: one table of functions per kind of world. */
#ifndef FR_WORLD_INTERNAL_H
#define FR_WORLD_INTERNAL_H

#include "engine/world.h"

typedef struct {
    fr_status (*exchange)(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err);
    void (*fail)(fr_world *w, int rank, const fr_error *why);
    bool (*failed)(const fr_world *w, int *rank, fr_error *why);
    void (*close)(fr_world *w);
} fr_world_kind;

/* The head of every kind's own structure. */
struct fr_world {
    const fr_world_kind *kind;
    int ranks;
    double timeout_s;
    bool same_process;
};

/* "rank 1" or "ranks 0, 2 and 5": those whose `here` is false. */
void fr_world_missing(const bool *here, int ranks, fr_text *out);

#endif

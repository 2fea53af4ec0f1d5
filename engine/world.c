#include "engine/world_internal.h"

int fr_world_ranks(const fr_world *w) {
    return w->ranks;
}

double fr_world_timeout(const fr_world *w) {
    return w->timeout_s;
}

bool fr_world_same_process(const fr_world *w) {
    return w->same_process;
}

void fr_world_spread(fr_world *w) {
    w->same_process = false;
}

fr_status fr_world_exchange(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err) {
    return w->kind->exchange(w, rank, mine, bytes, all, err);
}

void fr_world_fail(fr_world *w, int rank, const fr_error *why) {
    w->kind->fail(w, rank, why);
}

bool fr_world_failed(const fr_world *w, int *rank, fr_error *why) {
    return w->kind->failed(w, rank, why);
}

void fr_world_close(fr_world *w) {
    if (w) w->kind->close(w);
}

void fr_world_missing(const bool *here, int ranks, fr_text *out) {
    int missing = 0, done = 0;
    for (int i = 0; i < ranks; i++) missing += !here[i];
    fr_text_add(out, missing == 1 ? "rank" : "ranks");
    for (int i = 0; i < ranks; i++) {
        if (here[i]) continue;
        const char *before = done == 0 ? " " : done == missing - 1 ? " and " : ", ";
        fr_text_add(out, "%s%d", before, i);
        done++;
    }
}

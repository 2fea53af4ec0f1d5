#include "engine/world/world_internal.h"

#include <time.h>

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
    fr_world *open = (fr_world *)(uintptr_t)w; /* locking is no change that a caller sees */
    pthread_mutex_lock(&open->lock);
    const bool yes = w->failed;
    if (yes && rank) *rank = w->failed_rank;
    if (yes && why) *why = w->why;
    pthread_mutex_unlock(&open->lock);
    return yes;
}

void fr_world_listen(fr_world *w, const fr_world_ear *ear) {
    w->ear = *ear;
}

void fr_world_tell(const fr_world *w, int rank, const char *stage) {
    if (w && w->ear.tell) w->ear.tell(w->ear.context, rank, stage);
}

void fr_world_close(fr_world *w) {
    if (w) w->kind->close(w);
}

void fr_world_head_open(fr_world *w, const fr_world_kind *kind, int ranks, double timeout_s, bool same_process) {
    *w = (fr_world){.kind = kind, .ranks = ranks, .timeout_s = timeout_s, .same_process = same_process};
    pthread_mutex_init(&w->lock, NULL);
    fr_cond_open(&w->changed);
}

void fr_world_head_close(fr_world *w) {
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

void fr_world_fail_locked(fr_world *w, int rank, const fr_error *why) {
    if (w->failed) return;
    w->failed = true;
    w->failed_rank = rank;
    w->why = *why;
    pthread_cond_broadcast(&w->changed);
}

fr_status fr_world_relay(const fr_world *w, fr_error *err) {
    if (err) *err = w->why;
    return w->why.status != FR_OK ? w->why.status : FR_FAILED;
}

void fr_cond_open(pthread_cond_t *c) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(c, &monotonic);
    pthread_condattr_destroy(&monotonic);
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

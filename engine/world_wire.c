/* A rank in a process of its own: the world as seen through the wire to the process that conducts. */
#include "engine/world_internal.h"

#include "engine/world_wire.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    fr_world head;
    int rank;
    fr_wire *wire;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool failed, met;
    int failed_rank;
    fr_error why;
    fr_bytes all; /* of the meeting that has ended */
} wired;

static wired *of(const fr_world *w) {
    return (wired *)(uintptr_t)w;
}

static void fail_locked(wired *t, int rank, const fr_error *why) {
    if (t->failed) return;
    t->failed = true;
    t->failed_rank = rank;
    t->why = *why;
    pthread_cond_broadcast(&t->changed);
}

static fr_status relay(const wired *t, fr_error *err) {
    if (err) *err = t->why;
    return t->why.status != FR_OK ? t->why.status : FR_FAILED;
}

/* The conductor's side keeps the time limit and tells who is missing; twice the time is for its message. */
static fr_status wait_met(wired *t, fr_error *err) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(2 * t->head.timeout_s) + 1;
    while (!t->met && !t->failed)
        if (pthread_cond_timedwait(&t->changed, &t->lock, &until) != 0 && !t->met && !t->failed) {
            fr_error why;
            fr_fail(&why, FR_FAILED, "rank %d waited in vain for the process that conducts", t->rank);
            fail_locked(t, t->rank, &why);
        }
    return t->failed ? relay(t, err) : FR_OK;
}

static fr_status exchange(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err) {
    wired *t = of(w);
    fr_bytes payload = {0};
    fr_bytes_put(&payload, mine, bytes);
    (void)rank;
    pthread_mutex_lock(&t->lock);
    t->met = false;
    fr_status s = t->failed ? relay(t, err) : fr_wire_send(t->wire, FR_WIRE_MEET, &payload, err);
    if (s == FR_OK) s = wait_met(t, err);
    if (s == FR_OK && t->all.count != bytes * (size_t)w->ranks)
        s = fr_fail(err, FR_FAILED, "rank %d exchanged %zu bytes and got %zu back", rank, bytes, t->all.count);
    if (s == FR_OK && all && t->all.count) memcpy(all, t->all.data, t->all.count);
    fr_bytes_free(&t->all);
    pthread_mutex_unlock(&t->lock);
    fr_bytes_free(&payload);
    return s;
}

static void fail(fr_world *w, int rank, const fr_error *why) {
    wired *t = of(w);
    fr_bytes payload = {0};
    fr_bytes_put(&payload, &rank, sizeof rank);
    fr_bytes_put(&payload, why, sizeof *why);
    pthread_mutex_lock(&t->lock);
    const bool first = !t->failed;
    fail_locked(t, rank, why);
    pthread_mutex_unlock(&t->lock);
    if (first) (void)fr_wire_send(t->wire, FR_WIRE_FAIL, &payload, NULL);
    fr_bytes_free(&payload);
}

static bool failed(const fr_world *w, int *rank, fr_error *why) {
    wired *t = of(w);
    pthread_mutex_lock(&t->lock);
    const bool yes = t->failed;
    if (yes && rank) *rank = t->failed_rank;
    if (yes && why) *why = t->why;
    pthread_mutex_unlock(&t->lock);
    return yes;
}

static void close_wired(fr_world *w) {
    wired *t = of(w);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    fr_bytes_free(&t->all);
    free(t);
}

fr_world *fr_world_wired(int ranks, int rank, double timeout_s, fr_wire *wire) {
    static const fr_world_kind kind = {exchange, fail, failed, close_wired};
    wired *t = fr_alloc(sizeof *t);
    pthread_condattr_t monotonic;
    t->head = (fr_world){.kind = &kind, .ranks = ranks, .timeout_s = timeout_s, .same_process = false};
    t->rank = rank;
    t->wire = wire;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&t->lock, NULL);
    return &t->head;
}

void fr_world_wired_met(fr_world *w, fr_bytes *all) {
    wired *t = of(w);
    pthread_mutex_lock(&t->lock);
    fr_bytes_free(&t->all);
    t->all = *all;
    t->met = true;
    *all = (fr_bytes){0};
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

void fr_world_wired_failed(fr_world *w, int rank, const fr_error *why) {
    wired *t = of(w);
    pthread_mutex_lock(&t->lock);
    fail_locked(t, rank, why);
    pthread_mutex_unlock(&t->lock);
}

/* A rank in a process of its own: the world as seen through the wire to the process that conducts. */
#include "engine/world/world_internal.h"

#include "engine/world/world_wire.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    fr_world head;
    int rank;
    fr_wire *wire;
    bool met;
    fr_bytes all; /* of the meeting that has ended */
} wired;

static wired *of(const fr_world *w) {
    return (wired *)(uintptr_t)w;
}

/* The conductor's side keeps the time limit and tells who is missing; twice the time is for its message. */
static fr_status wait_met(wired *t, fr_error *err) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(2 * t->head.timeout_s) + 1;
    while (!t->met && !t->head.failed)
        if (pthread_cond_timedwait(&t->head.changed, &t->head.lock, &until) != 0 && !t->met && !t->head.failed) {
            fr_error why;
            fr_fail(&why, FR_FAILED, "rank %d waited in vain for the process that conducts", t->rank);
            fr_world_fail_locked(&t->head, t->rank, &why);
        }
    return t->head.failed ? fr_world_relay(&t->head, err) : FR_OK;
}

static fr_status exchange(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err) {
    wired *t = of(w);
    fr_bytes payload = {0};
    fr_bytes_put(&payload, mine, bytes);
    (void)rank;
    pthread_mutex_lock(&t->head.lock);
    t->met = false;
    fr_status s = t->head.failed ? fr_world_relay(&t->head, err) : fr_wire_send(t->wire, FR_WIRE_MEET, &payload, err);
    if (s == FR_OK) s = wait_met(t, err);
    if (s == FR_OK && t->all.count != bytes * (size_t)w->ranks)
        s = fr_fail(err, FR_FAILED, "rank %d exchanged %zu bytes and got %zu back", rank, bytes, t->all.count);
    if (s == FR_OK && all && t->all.count) memcpy(all, t->all.data, t->all.count);
    fr_bytes_free(&t->all);
    pthread_mutex_unlock(&t->head.lock);
    fr_bytes_free(&payload);
    return s;
}

static void fail(fr_world *w, int rank, const fr_error *why) {
    wired *t = of(w);
    fr_bytes payload = {0};
    fr_bytes_put(&payload, &rank, sizeof rank);
    fr_bytes_put(&payload, why, sizeof *why);
    pthread_mutex_lock(&t->head.lock);
    const bool first = !t->head.failed;
    fr_world_fail_locked(&t->head, rank, why);
    pthread_mutex_unlock(&t->head.lock);
    if (first) (void)fr_wire_send(t->wire, FR_WIRE_FAIL, &payload, NULL);
    fr_bytes_free(&payload);
}

static void close_wired(fr_world *w) {
    wired *t = of(w);
    fr_world_head_close(&t->head);
    fr_bytes_free(&t->all);
    free(t);
}

fr_world *fr_world_wired(int ranks, int rank, double timeout_s, fr_wire *wire) {
    static const fr_world_kind kind = {exchange, fail, close_wired};
    wired *t = fr_alloc(sizeof *t);
    fr_world_head_open(&t->head, &kind, ranks, timeout_s, false);
    t->rank = rank;
    t->wire = wire;
    return &t->head;
}

void fr_world_wired_met(fr_world *w, fr_bytes *all) {
    wired *t = of(w);
    pthread_mutex_lock(&t->head.lock);
    fr_bytes_free(&t->all);
    t->all = *all;
    t->met = true;
    *all = (fr_bytes){0};
    pthread_cond_broadcast(&t->head.changed);
    pthread_mutex_unlock(&t->head.lock);
}

void fr_world_wired_failed(fr_world *w, int rank, const fr_error *why) {
    wired *t = of(w);
    pthread_mutex_lock(&t->head.lock);
    fr_world_fail_locked(&t->head, rank, why);
    pthread_mutex_unlock(&t->head.lock);
}

/* The ranks as threads of one process: a counting barrier with a blob per rank. */
#include "engine/world/world_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    fr_world head;
    bool *here;  /* [ranks]: has come to the current round */
    int arrived; /* of them */
    uint64_t round;
    size_t bytes; /* of a blob in the current round, set by the first to come */
    /* Blobs of the current round are at [round % 2]: the last round's may still be read by those who leave late, and
     * nobody can be two rounds ahead of them. */
    char *blobs[2];
    size_t blobs_cap[2];
} threads;

static threads *of(const fr_world *w) {
    return (threads *)(uintptr_t)w; /* `head` is the first member; locking is no change that a caller sees */
}

static struct timespec deadline(double seconds) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    const double whole = (double)(int64_t)seconds;
    t.tv_sec += (time_t)whole;
    t.tv_nsec += (long)((seconds - whole) * 1e9);
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    return t;
}

static fr_status late(threads *t, int rank, fr_error *err) {
    fr_error why;
    fr_text names = {0};
    fr_world_missing(t->here, t->head.ranks, &names);
    fr_fail(&why, FR_FAILED, "rank %d waited %.3g s for %s", rank, t->head.timeout_s, names.text);
    fr_text_free(&names);
    fr_world_fail_locked(&t->head, rank, &why);
    return fr_world_relay(&t->head, err);
}

/* Comes to the round that is open; the last one opens the next. */
static fr_status meet(threads *t, int rank, const void *mine, size_t bytes, fr_error *err) {
    const uint64_t round = t->round;
    const int half = (int)(round % 2);
    if (t->head.failed) return fr_world_relay(&t->head, err);
    if (t->arrived == 0) {
        t->bytes = bytes;
        const size_t all = bytes * (size_t)t->head.ranks;
        if (all > t->blobs_cap[half]) {
            t->blobs[half] = fr_realloc(t->blobs[half], all, 1);
            t->blobs_cap[half] = all;
        }
    } else if (bytes != t->bytes) {
        fr_error why;
        fr_fail(&why, FR_FAILED, "rank %d exchanges %zu bytes where others exchange %zu", rank, bytes, t->bytes);
        fr_world_fail_locked(&t->head, rank, &why);
        return fr_world_relay(&t->head, err);
    }
    if (bytes > 0) memcpy(t->blobs[half] + (size_t)rank * bytes, mine, bytes);
    t->here[rank] = true;
    if (++t->arrived == t->head.ranks) {
        t->arrived = 0;
        memset(t->here, 0, (size_t)t->head.ranks * sizeof *t->here);
        t->round++;
        pthread_cond_broadcast(&t->head.changed);
        return FR_OK;
    }
    const struct timespec until = deadline(t->head.timeout_s);
    while (t->round == round && !t->head.failed)
        if (pthread_cond_timedwait(&t->head.changed, &t->head.lock, &until) != 0 && t->round == round &&
            !t->head.failed)
            return late(t, rank, err);
    return t->round == round ? fr_world_relay(&t->head, err) : FR_OK;
}

static fr_status exchange(fr_world *w, int rank, const void *mine, size_t bytes, void *all, fr_error *err) {
    threads *t = of(w);
    pthread_mutex_lock(&t->head.lock);
    const int half = (int)(t->round % 2);
    const fr_status s = meet(t, rank, mine, bytes, err);
    if (s == FR_OK && all && bytes > 0) memcpy(all, t->blobs[half], bytes * (size_t)w->ranks);
    pthread_mutex_unlock(&t->head.lock);
    return s;
}

static void fail(fr_world *w, int rank, const fr_error *why) {
    threads *t = of(w);
    pthread_mutex_lock(&t->head.lock);
    fr_world_fail_locked(&t->head, rank, why);
    pthread_mutex_unlock(&t->head.lock);
}

static void close_threads(fr_world *w) {
    threads *t = of(w);
    fr_world_head_close(&t->head);
    free(t->here);
    free(t->blobs[0]);
    free(t->blobs[1]);
    free(t);
}

fr_status fr_world_open_threads(int ranks, double timeout_s, fr_world **out, fr_error *err) {
    static const fr_world_kind kind = {exchange, fail, close_threads};
    *out = NULL;
    if (ranks < 1 || !(timeout_s > 0))
        return fr_fail(err, FR_BAD_INPUT, "a world of %d ranks and a timeout of %g s: both must be positive", ranks,
                       timeout_s);
    threads *t = fr_alloc(sizeof *t);
    fr_world_head_open(&t->head, &kind, ranks, timeout_s, true);
    t->here = fr_alloc((size_t)ranks * sizeof *t->here);
    *out = &t->head;
    return FR_OK;
}

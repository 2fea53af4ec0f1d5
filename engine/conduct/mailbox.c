#include "engine/conduct/mailbox.h"

#include "engine/world/world.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct fr_mailbox {
    pthread_mutex_t lock;
    pthread_cond_t came;
    size_t bytes;
    char *ring;
    size_t first, count, room;
};

fr_mailbox *fr_mailbox_new(size_t message_bytes) {
    fr_mailbox *m = fr_alloc(sizeof *m);
    m->bytes = message_bytes;
    m->room = 16;
    m->ring = fr_alloc(m->room * m->bytes);
    pthread_mutex_init(&m->lock, NULL);
    fr_cond_open(&m->came);
    return m;
}

void fr_mailbox_free(fr_mailbox *m) {
    if (!m) return;
    pthread_cond_destroy(&m->came);
    pthread_mutex_destroy(&m->lock);
    free(m->ring);
    free(m);
}

static void grow(fr_mailbox *m) {
    char *ring = fr_alloc(2 * m->room * m->bytes);
    for (size_t i = 0; i < m->count; i++)
        memcpy(ring + i * m->bytes, m->ring + (m->first + i) % m->room * m->bytes, m->bytes);
    free(m->ring);
    m->ring = ring;
    m->first = 0;
    m->room *= 2;
}

void fr_mailbox_put(fr_mailbox *m, const void *message) {
    pthread_mutex_lock(&m->lock);
    if (m->count == m->room) grow(m);
    memcpy(m->ring + (m->first + m->count++) % m->room * m->bytes, message, m->bytes);
    pthread_cond_signal(&m->came);
    pthread_mutex_unlock(&m->lock);
}

static struct timespec after(int64_t ns) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += (time_t)(ns / 1000000000);
    t.tv_nsec += (long)(ns % 1000000000);
    if (t.tv_nsec >= 1000000000) {
        t.tv_nsec -= 1000000000;
        t.tv_sec++;
    }
    return t;
}

bool fr_mailbox_take(fr_mailbox *m, void *message, int64_t timeout_ns) {
    pthread_mutex_lock(&m->lock);
    if (m->count == 0 && timeout_ns > 0) {
        const struct timespec until = after(timeout_ns);
        while (m->count == 0 && pthread_cond_timedwait(&m->came, &m->lock, &until) == 0) {
        }
    }
    const bool any = m->count > 0;
    if (any) {
        memcpy(message, m->ring + m->first * m->bytes, m->bytes);
        m->first = (m->first + 1) % m->room;
        m->count--;
    }
    pthread_mutex_unlock(&m->lock);
    return any;
}

#include "engine/conduct/remote.h"

#include "engine/world/world.h"

#include "engine/conduct/codec.h"
#include "engine/world/peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LISTEN_NS 50000000           /* between two looks at the world */
enum { MOST_JOBS = 64, PINGS = 32 }; /* jobs: of all units that a rank serves */

struct fr_remote {
    fr_worker_options o;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    fr_job *jobs[MOST_JOBS];
    int out;
    fr_rank_facts facts;
    fr_pong pong; /* the last one, and when it came */
    int64_t pong_came;
    pthread_cond_t changed;
    int64_t offset;   /* of the other process's clock from this one's */
    double offset_ns; /* how far that may be off */
    bool compared;
    bool told; /* the reader's own */
};

static fr_job *job_of(fr_remote *r, int64_t key, bool ended) {
    fr_job *job = NULL;
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < r->out && !job; i++) {
        if (fr_job_key(r->jobs[i]) != key) continue;
        job = r->jobs[i];
        if (ended) memmove(r->jobs + i, r->jobs + i + 1, (size_t)(--r->out - i) * sizeof *r->jobs);
    }
    pthread_mutex_unlock(&r->lock);
    return job;
}

static void lose(fr_remote *r, const char *text) {
    fr_error why;
    fr_fail(&why, FR_FAILED, "rank %d: %s", r->o.rank, text);
    fr_world_fail(r->o.world, r->o.rank, &why);
}

/* The rank's part in a meeting of the world. A meeting that fails is told as all failures are. */
static fr_status meet(fr_remote *r, const fr_bytes *mine, fr_error *err) {
    fr_bytes all = {0};
    all.count = all.capacity = mine->count * (size_t)fr_world_ranks(r->o.world);
    all.data = fr_alloc(all.count + 1);
    fr_status s = FR_OK;
    if (fr_world_exchange(r->o.world, r->o.rank, mine->data, mine->count, all.data, NULL) == FR_OK)
        s = fr_wire_send(r->o.wire, FR_WIRE_MET, &all, err);
    fr_bytes_free(&all);
    return s;
}

static void rank_failed(fr_remote *r, fr_bytes *payload) {
    int rank;
    fr_error why;
    if (!fr_bytes_take(payload, &rank, sizeof rank) || !fr_bytes_take(payload, &why, sizeof why)) return;
    why.text[sizeof why.text - 1] = 0;
    fr_world_fail(r->o.world, rank, &why);
}

/* *closed: it was the rank's last. */
static void take_note(fr_remote *r, fr_bytes *payload, bool *closed) {
    fr_note n;
    fr_rank_facts facts;
    int64_t key;
    if (!fr_note_decode(payload, &n, &facts, &key)) {
        lose(r, "its process sent half a message");
        return;
    }
    n.job = key < 0 ? NULL : job_of(r, key, n.kind == FR_NOTE_DONE);
    if (key >= 0 && !n.job) {
        lose(r, "its process told of a forward that it was not given");
        fr_note_free(&n);
        return;
    }
    if (n.kind == FR_NOTE_READY) {
        pthread_mutex_lock(&r->lock);
        r->facts = facts;
        pthread_mutex_unlock(&r->lock);
    }
    *closed = n.kind == FR_NOTE_CLOSED;
    fr_mailbox_put(r->o.notes, &n);
}

static void take_pong(fr_remote *r, fr_bytes *payload) {
    const int64_t now = fr_monotonic();
    pthread_mutex_lock(&r->lock);
    if (fr_bytes_take(payload, &r->pong, sizeof r->pong)) r->pong_came = now;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void tell_failure(fr_remote *r) {
    int rank;
    fr_error why;
    if (r->told || !fr_world_failed(r->o.world, &rank, &why)) return;
    fr_bytes payload = {0};
    fr_bytes_put(&payload, &rank, sizeof rank);
    fr_bytes_put(&payload, &why, sizeof why);
    (void)fr_wire_send(r->o.wire, FR_WIRE_FAIL, &payload, NULL);
    fr_bytes_free(&payload);
    r->told = true;
}

static void *body(void *context) {
    fr_remote *r = context;
    bool closed = false;
    while (!closed) {
        uint32_t kind;
        fr_bytes payload;
        fr_error err = {0};
        fr_status s = fr_wire_receive(r->o.wire, LISTEN_NS, &kind, &payload, &err);
        if (s == FR_OK && kind == FR_WIRE_MEET) s = meet(r, &payload, &err);
        if (s == FR_OK && kind == FR_WIRE_FAIL) rank_failed(r, &payload);
        if (s == FR_OK && kind == FR_WIRE_NOTE) take_note(r, &payload, &closed);
        if (s == FR_OK && kind == FR_WIRE_PONG) take_pong(r, &payload);
        fr_bytes_free(&payload);
        if (s != FR_OK) {
            lose(r, err.text);
            const fr_note n = {.kind = FR_NOTE_CLOSED, .rank = r->o.rank};
            fr_mailbox_put(r->o.notes, &n);
            return NULL;
        }
        tell_failure(r);
    }
    return NULL;
}

fr_status fr_remote_open(const fr_worker_options *o, fr_remote **out, fr_error *err) {
    fr_remote *r = fr_alloc(sizeof *r);
    r->o = *o;
    pthread_mutex_init(&r->lock, NULL);
    fr_cond_open(&r->changed);
    *out = NULL;
    if (pthread_create(&r->thread, NULL, body, r) != 0) {
        pthread_cond_destroy(&r->changed);
        pthread_mutex_destroy(&r->lock);
        free(r);
        return fr_fail(err, FR_FAILED, "no thread could be made for rank %d", o->rank);
    }
    *out = r;
    return FR_OK;
}

void fr_remote_close(fr_remote *r) {
    pthread_join(r->thread, NULL);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

void fr_remote_abandon(fr_remote *r) {
    pthread_detach(r->thread);
}

void fr_remote_command(fr_remote *r, uint32_t kind, const fr_bytes *payload) {
    fr_error err;
    if (fr_wire_send(r->o.wire, kind, payload, &err) != FR_OK) lose(r, err.text);
}

void fr_remote_forward(fr_remote *r, fr_job *job) {
    fr_bytes payload = {0};
    pthread_mutex_lock(&r->lock);
    const bool room = r->out < MOST_JOBS;
    if (room) r->jobs[r->out++] = job;
    pthread_mutex_unlock(&r->lock);
    if (!room) {
        lose(r, "more forwards are out than a rank takes");
        return;
    }
    fr_job_encode(job, &payload);
    fr_remote_command(r, FR_WIRE_FORWARD, &payload);
    fr_bytes_free(&payload);
}

/* One ping: the other clock was read between `sent` and *came. */
static fr_status ping(fr_remote *r, fr_pong *pong, int64_t *came, fr_error *err) {
    const int64_t sent = fr_monotonic();
    struct timespec until;
    fr_bytes payload = {0};
    fr_bytes_put(&payload, &sent, sizeof sent);
    const fr_status s = fr_wire_send(r->o.wire, FR_WIRE_PING, &payload, err);
    fr_bytes_free(&payload);
    FR_TRY(s);
    const int64_t deadline = sent + (int64_t)(fr_world_timeout(r->o.world) * 1e9);
    do {
        if (fr_world_failed(r->o.world, NULL, err)) return FR_FAILED;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        pthread_mutex_lock(&r->lock);
        while (r->pong.sent != sent && pthread_cond_timedwait(&r->changed, &r->lock, &until) == 0) {
        }
        *pong = r->pong;
        *came = r->pong_came;
        pthread_mutex_unlock(&r->lock);
        if (pong->sent == sent) return FR_OK;
    } while (fr_monotonic() < deadline);
    return fr_fail(err, FR_FAILED, "rank %d: its process does not answer", r->o.rank);
}

fr_status fr_remote_compare(fr_remote *r, fr_error *err) {
    double narrowest = 0, drift = 0;
    int64_t offset = 0;
    fr_pong pong = {0};
    for (int i = 0; i < PINGS; i++) {
        int64_t came;
        FR_TRY(ping(r, &pong, &came, err));
        const double half = 0.5 * (double)(came - pong.sent);
        if (i > 0 && half >= narrowest) continue;
        narrowest = half;
        offset = pong.now - (pong.sent + came) / 2;
    }
    if (pong.boot != 0 && pong.boot == fr_boot_id()) { /* one clock */
        if ((double)llabs(offset) > narrowest)
            return fr_fail(err, FR_FAILED, "rank %d: clocks of one host differ by %lld ns", r->o.rank,
                           (long long)offset);
        offset = 0;
        narrowest = 0;
    }
    if (r->compared) drift = (double)llabs(offset - r->offset);
    if (!r->compared) r->offset = offset;
    r->offset_ns = narrowest + drift;
    r->compared = true;
    return FR_OK;
}

void fr_remote_start(fr_remote *r, int64_t epoch) {
    const int64_t there = epoch + r->offset;
    fr_bytes payload = {0};
    fr_bytes_put(&payload, &there, sizeof there);
    fr_remote_command(r, FR_WIRE_START, &payload);
    fr_bytes_free(&payload);
}

void fr_remote_facts(fr_remote *r, fr_rank_facts *out) {
    pthread_mutex_lock(&r->lock);
    *out = r->facts;
    pthread_mutex_unlock(&r->lock);
    out->clock_error_ns += r->offset_ns;
}

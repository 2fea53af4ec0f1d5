#include "engine/cuda/issue.h"

#include "engine/cuda/pools.h"
#include "engine/cuda/transport/transport.h"
#include "engine/cuda/words.h"
#include "engine/world/peers.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Raises whose marks are kept. A wait for an older one waits for the oldest kept: correct, but longer than needed, so
 * there are more than a lane runs ahead (128 expert slots). */
enum { RING = 256, MOST_LANES = 8 };

typedef struct {
    cudaEvent_t event;
    uint16_t lane;
} mark;

/*
 * A counter of the plan. Of this rank: how far it was raised by ops issued so far, and the marks of the latest raises
 * by device ops (made when first used). Raised by another rank: a word of memory, counted over all plans.
 */
typedef struct {
    uint32_t issued;
    bool by_launch;   /* raised by LAUNCH ops: issuing in order is the wait */
    bool from_others; /* raised by other ranks: streams poll the word */
    uint32_t base;    /* the word's value when the plan began */
    uint32_t raises;  /* of that plan: in fragments given so far */
    int16_t raiser;   /* the rank that raises it */
    int lanes;        /* device lanes that raise it */
    uint16_t lane[MOST_LANES];
    mark *at; /* [RING], raise v at [v % RING] */
} counter;

typedef struct {
    fr_slots *slots; /* NULL: not a pool of this rank */
    mark *freed;     /* [slots]: the op that gave the slot back; event NULL = nobody yet */
    bool *used;      /* [slots]: freed at least once */
} pool;

struct fr_issue {
    fr_issue_options o;
    bool remote;
    counter *counters;
    uint32_t counters_count;
    pool *pools; /* [buffers] */
    uint32_t pools_count;
    uint32_t *words; /* device: [events], counters that this rank polls */
    uint32_t words_count;
    void **peer_words; /* [ranks]: where those of rank q are seen from here */
    /* [events]: raises of other ranks' counters that were issued, over all plans; read by those ranks' threads */
    _Atomic uint32_t *sent, **peer_sent; /* [ranks], NULL: another process */
    fr_words heard;                      /* pinned twins of the words, of ranks that listen */
    atomic_int waits_for;                /* see fr_issue_waits_for */
    cudaStream_t release;
    fr_stream_calls calls;
};

static fr_status check(const fr_issue *s, cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "rank %d: %s failed: %s", s->o.rank, call, cudaGetErrorString(e));
}

static cudaStream_t stream_of(const fr_issue *s, uint32_t lane) {
    return s->o.streams[lane] ? *s->o.streams[lane] : NULL;
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

static void open_pools(fr_issue *s) {
    const fr_plan *p = s->o.plan;
    s->pools_count = p->buffers_count;
    s->pools = fr_alloc(s->pools_count * sizeof *s->pools);
    for (uint32_t i = 0; i < p->buffers_count; i++) {
        const fr_buffer *b = &p->buffers[i];
        if (b->rank != s->o.rank || b->slots < 1 || (b->kind == FR_BUF_SLOT && s->o.slots_of_others)) continue;
        s->pools[i].slots = fr_slots_new(b->slots);
        s->pools[i].freed = fr_alloc((size_t)b->slots * sizeof *s->pools[i].freed);
        s->pools[i].used = fr_alloc((size_t)b->slots * sizeof *s->pools[i].used);
    }
}

/* Pinned twins of the counters, of ranks whose host listens. Collective. */
static fr_status open_heard(fr_issue *s, fr_error *err) {
    const int ranks = s->o.plan->ranks;
    bool *reaches = fr_alloc((size_t)ranks * sizeof *reaches);
    for (int q = 0; q < ranks; q++) reaches[q] = fr_layout_reaches_rank(s->o.layout, s->o.rank, q);
    const fr_status st = fr_words_open(s->o.world, s->o.rank, s->words_count, 0, s->o.listens, reaches, &s->heard, err);
    free(reaches);
    return st;
}

static fr_status open_words(fr_issue *s, fr_error *err) {
    const size_t bytes = (size_t)s->o.plan->events_count * sizeof *s->words;
    s->words_count = s->o.plan->events_count;
    s->sent = fr_alloc((size_t)s->words_count * sizeof *s->sent);
    s->peer_sent = fr_alloc((size_t)s->o.plan->ranks * sizeof *s->peer_sent);
    if (fr_world_same_process(s->o.world))
        FR_TRY(fr_world_exchange(s->o.world, s->o.rank, &s->sent, sizeof s->sent, s->peer_sent, err));
    s->peer_words = fr_alloc((size_t)s->o.plan->ranks * sizeof *s->peer_words);
    FR_TRY(open_heard(s, err));
    FR_TRY(fr_stream_calls_find(&s->calls, err));
    FR_TRY(check(s, fr_transport_malloc(s->o.transport, bytes, (void **)&s->words), "cudaMalloc of the counters", err));
    FR_TRY(check(s, cudaMemset(s->words, 0, bytes), "cudaMemset", err));
    FR_TRY(check(s, cudaDeviceSynchronize(), "cudaMemset", err));
    FR_TRY(check(s, cudaStreamCreateWithFlags(&s->release, cudaStreamNonBlocking), "cudaStreamCreate", err));
    return fr_peers_share(s->o.world, s->o.transport, s->o.rank, s->words, bytes, s->peer_words, err);
}

fr_status fr_issue_open(const fr_issue_options *o, bool remote, fr_issue **out, fr_error *err) {
    fr_issue *s = fr_alloc(sizeof *s);
    s->o = *o;
    s->remote = remote;
    atomic_store(&s->waits_for, -1);
    open_pools(s);
    const fr_status status = remote ? open_words(s, err) : FR_OK;
    *out = s;
    if (status == FR_OK) return FR_OK;
    fr_issue_close(s, true); /* others may have mapped its words */
    *out = NULL;
    return status;
}

void fr_issue_close(fr_issue *s, bool lost) {
    if (!s) return;
    for (uint32_t i = 0; i < s->counters_count; i++) {
        for (int k = 0; s->counters[i].at && k < RING && !lost; k++)
            if (s->counters[i].at[k].event) cudaEventDestroy(s->counters[i].at[k].event);
        free(s->counters[i].at);
    }
    for (uint32_t i = 0; i < s->pools_count; i++) {
        pool *p = &s->pools[i];
        for (int k = 0; p->slots && k < fr_slots_count(p->slots) && !lost; k++)
            if (p->freed[k].event) cudaEventDestroy(p->freed[k].event);
        fr_slots_free(p->slots);
        free(p->freed);
        free(p->used);
    }
    if (!lost && s->words) cudaFree(s->words);
    if (!lost && s->release) cudaStreamDestroy(s->release);
    fr_words_close(&s->heard, lost);
    free(s->counters);
    free(s->pools);
    free(s->peer_words);
    free(s->peer_sent);
    if (!lost) free(s->sent); /* else a peer's thread may still read it */
    free(s);
}

void fr_issue_replan(fr_issue *s, const fr_plan *plan) {
    s->o.plan = plan;
    for (uint32_t i = 0; i < s->counters_count; i++) {
        counter *c = &s->counters[i];
        c->issued = 0;
        c->base += c->raises;
        c->raises = 0;
    }
    for (uint32_t i = 0; i < s->pools_count; i++)
        if (s->pools[i].slots) fr_slots_reset(s->pools[i].slots);
}

/* A word past every value that a wait names; the streams compare as signed differences. */
void fr_issue_release(fr_issue *s) {
    if (s && s->words) cudaMemsetAsync(s->words, 0x7f, (size_t)s->words_count * sizeof *s->words, s->release);
}

/* ---- fragments ----------------------------------------------------------------------------------------------------*/

static void note_lane(counter *c, uint16_t lane) {
    for (int i = 0; i < c->lanes; i++)
        if (c->lane[i] == lane) return;
    if (c->lanes < MOST_LANES) c->lane[c->lanes++] = lane;
}

static void grow_counters(fr_issue *s) {
    const uint32_t n = s->o.plan->events_count;
    if (n <= s->counters_count) return;
    s->counters = fr_realloc(s->counters, n, sizeof *s->counters);
    memset(s->counters + s->counters_count, 0, (n - s->counters_count) * sizeof *s->counters);
    s->counters_count = n;
}

void fr_issue_fragment(fr_issue *s, const fr_fragment *f) {
    grow_counters(s);
    for (uint32_t i = 0; i < f->ops_count; i++) {
        const fr_op *op = &f->ops[i];
        const fr_ref *signals = fr_op_signals(f, op);
        const bool mine = s->o.plan->lanes[op->lane].rank == s->o.rank;
        for (int k = 0; k < op->signals; k++) {
            counter *c = &s->counters[signals[k].target];
            if (mine && op->kind == FR_OP_LAUNCH) c->by_launch = true;
            if (mine && stream_of(s, op->lane)) note_lane(c, op->lane);
            if (mine || s->o.plan->events[signals[k].target].rank != s->o.rank || !s->remote) continue;
            c->from_others = true;
            c->raiser = s->o.plan->lanes[op->lane].rank;
            c->raises++;
        }
    }
}

/* ---- may it be issued ---------------------------------------------------------------------------------------------*/

static bool known(const fr_issue *s, fr_ref w) {
    const counter *c = &s->counters[w.target];
    return c->by_launch || c->from_others || c->issued >= w.value;
}

static pool *pool_of(const fr_issue *s, fr_ref use) {
    return use.target < s->pools_count && s->pools[use.target].slots ? &s->pools[use.target] : NULL;
}

fr_issue_may_t fr_issue_may(const fr_issue *s, const fr_fragment *f, const fr_op *op, bool nothing) {
    const fr_ref *waits = fr_op_waits(f, op), *uses = fr_op_uses(f, op);
    for (int i = 0; i < op->waits; i++)
        if (!known(s, waits[i])) return FR_ISSUE_LATER;
    for (int i = 0; i < op->uses && (op->flags & FR_OP_POOL); i++) {
        const pool *p = pool_of(s, uses[i]);
        if (uses[i].use != FR_USE_ACQUIRE || !p) continue;
        const bool may =
            nothing ? fr_slots_is_next(p->slots, uses[i].value) : fr_slots_can_take(p->slots, uses[i].value);
        if (!may) return FR_ISSUE_LATER;
    }
    return nothing ? FR_ISSUE_SKIP : FR_ISSUE_READY;
}

void fr_issue_why(const fr_issue *s, const fr_fragment *f, const fr_op *op, char *text, size_t size) {
    const fr_ref *waits = fr_op_waits(f, op);
    snprintf(text, size, "a slot of a pool that no op issued before gives back");
    for (int i = 0; i < op->waits; i++)
        if (!known(s, waits[i]))
            snprintf(text, size, "%s >= %u, of which %u are issued", s->o.plan->events[waits[i].target].name,
                     waits[i].value, s->counters[waits[i].target].issued);
}

/* ---- before and after ---------------------------------------------------------------------------------------------*/

static fr_status wait_event(const fr_issue *s, cudaStream_t stream, cudaEvent_t e, bool *waited, fr_error *err) {
    *waited = true;
    return check(s, cudaStreamWaitEvent(stream, e, 0), "cudaStreamWaitEvent", err);
}

/*
 * Until the other rank's thread has issued the raise; only then may a stream wait for it. In one process, calls of one
 * rank that make the runtime wait (loading a kernel, cudaMalloc with peer access on) wait for the devices of all ranks:
 * a stream here that waited for something not issued yet would hold up the very thread that is to issue it (seen). All
 * ranks issue in the order of emission, in which a raise comes before what waits for it, so this wait ends; in
 * processes of their own a rank's calls wait for its own device only, and by the same order that ends too.
 */
static fr_status await_issued(fr_issue *s, uint32_t event, uint32_t value, fr_error *err) {
    const counter *c = &s->counters[event];
    const _Atomic uint32_t *sent = s->peer_sent[c->raiser];
    const int64_t deadline = fr_monotonic() + (int64_t)(fr_world_timeout(s->o.world) * 1e9);
    for (int spin = 0; sent && (int32_t)(atomic_load(&sent[event]) - value) < 0; spin++) {
        int who;
        fr_error why;
        if (spin % 1024 != 1023) continue;
        if (fr_world_failed(s->o.world, &who, &why)) return fr_fail(err, FR_FAILED, "%.800s", why.text);
        if (fr_monotonic() > deadline)
            return fr_fail(err, FR_FAILED, "waited %.3g s for rank %d to issue what raises %s",
                           fr_world_timeout(s->o.world), c->raiser, s->o.plan->events[event].name);
        sched_yield();
    }
    return FR_OK;
}

static fr_status wait_issued(fr_issue *s, uint32_t event, uint32_t value, fr_error *err) {
    atomic_store(&s->waits_for, s->counters[event].raiser);
    const fr_status status = await_issued(s, event, value, err);
    if (status == FR_OK) atomic_store(&s->waits_for, -1);
    return status;
}

static fr_status wait_word(fr_issue *s, cudaStream_t stream, uint32_t event, uint32_t value, fr_error *err) {
    const uint32_t at_least = s->counters[event].base + value;
    FR_TRY(wait_issued(s, event, at_least, err));
    return fr_stream_wait(&s->calls, stream, s->words + event, at_least, err);
}

/* On the latest raise up to the value, of every other lane that raises the counter. */
static fr_status wait_counter(fr_issue *s, const fr_op *op, fr_ref w, bool *waited, fr_error *err) {
    const counter *c = &s->counters[w.target];
    const cudaStream_t stream = stream_of(s, op->lane);
    if (c->by_launch || w.value == 0) return FR_OK;
    if (c->from_others) {
        *waited = true;
        return wait_word(s, stream, w.target, w.value, err);
    }
    const uint32_t newest = w.value + RING > c->issued ? w.value : c->issued - RING + 1;
    uint16_t seen[MOST_LANES];
    int found = 0;
    for (uint32_t v = newest; c->at && v > 0 && v + RING > newest && found < c->lanes; v--) {
        const mark *m = &c->at[v % RING];
        bool old = false;
        for (int k = 0; k < found; k++) old = old || seen[k] == m->lane;
        if (old || !m->event) continue;
        seen[found++] = m->lane;
        if (m->lane != op->lane) FR_TRY(wait_event(s, stream, m->event, waited, err));
    }
    return FR_OK;
}

static fr_status take_slot(fr_issue *s, const fr_op *op, fr_ref use, bool skip, bool *waited, fr_error *err) {
    pool *p = pool_of(s, use);
    if (use.use != FR_USE_ACQUIRE || !p) return FR_OK;
    if (skip) {
        fr_slots_skip(p->slots, use.value);
        return FR_OK;
    }
    const int slot = fr_slots_take(p->slots, use.value);
    const mark *m = &p->freed[slot];
    if (!p->used[slot] || m->lane == op->lane) return FR_OK;
    return wait_event(s, stream_of(s, op->lane), m->event, waited, err);
}

fr_status fr_issue_before(fr_issue *s, const fr_fragment *f, const fr_op *op, bool skip, bool *waited, fr_error *err) {
    const fr_ref *waits = fr_op_waits(f, op), *uses = fr_op_uses(f, op);
    *waited = false;
    for (int i = 0; i < op->waits && stream_of(s, op->lane); i++) FR_TRY(wait_counter(s, op, waits[i], waited, err));
    for (int i = 0; i < op->uses && (op->flags & FR_OP_POOL); i++) FR_TRY(take_slot(s, op, uses[i], skip, waited, err));
    return FR_OK;
}

static fr_status record(const fr_issue *s, mark *m, uint16_t lane, fr_error *err) {
    if (!m->event)
        FR_TRY(check(s, cudaEventCreateWithFlags(&m->event, cudaEventDisableTiming), "cudaEventCreate", err));
    m->lane = lane;
    return check(s, cudaEventRecord(m->event, stream_of(s, lane)), "cudaEventRecord", err);
}

/* Another rank's counter. All raises of a counter come from one lane, so its value is how many that lane has made. */
static fr_status raise_remote(fr_issue *s, const fr_op *op, uint32_t event, fr_error *err) {
    const int rank = s->o.plan->events[event].rank;
    const cudaStream_t stream = stream_of(s, op->lane);
    if (!s->remote || !stream || !s->peer_words[rank])
        return fr_fail(err, FR_FAILED, "raises %s of rank %d, which cannot be reached", s->o.plan->events[event].name,
                       rank);
    const uint32_t value = atomic_load(&s->sent[event]) + 1;
    uint32_t *heard = s->heard.peer[rank];
    fr_status st = fr_stream_write(&s->calls, stream, (uint32_t *)s->peer_words[rank] + event, value, err);
    if (st == FR_OK && heard) st = fr_stream_write(&s->calls, stream, heard + event, value, err);
    atomic_store(&s->sent[event], value);
    return st;
}

static fr_status raise(fr_issue *s, const fr_op *op, uint32_t event, fr_error *err) {
    counter *c = &s->counters[event];
    if (s->o.plan->events[event].rank != s->o.rank) return raise_remote(s, op, event, err);
    const uint32_t v = ++c->issued;
    if (!stream_of(s, op->lane)) return FR_OK;
    if (!c->at) c->at = fr_alloc(RING * sizeof *c->at);
    return record(s, &c->at[v % RING], op->lane, err);
}

fr_status fr_issue_after(fr_issue *s, const fr_fragment *f, const fr_op *op, fr_error *err) {
    const fr_ref *signals = fr_op_signals(f, op), *uses = fr_op_uses(f, op);
    for (int i = 0; i < op->signals; i++) FR_TRY(raise(s, op, signals[i].target, err));
    for (int i = 0; i < op->uses && (op->flags & FR_OP_POOL); i++) {
        pool *p = pool_of(s, uses[i]);
        if (uses[i].use != FR_USE_FREE || !p) continue;
        const int slot = fr_slots_give(p->slots, uses[i].value);
        if (slot < 0) continue;
        FR_TRY(record(s, &p->freed[slot], op->lane, err));
        p->used[slot] = true;
    }
    return FR_OK;
}

int fr_issue_waits_for(const fr_issue *s) {
    return s ? atomic_load(&s->waits_for) : -1;
}

bool fr_issue_heard(const fr_issue *s, fr_ref w) {
    const counter *c = &s->counters[w.target];
    if (!c->from_others) return true;
    const uint32_t value = __atomic_load_n(&s->heard.mine[w.target], __ATOMIC_ACQUIRE);
    return (int32_t)(value - (c->base + w.value)) >= 0;
}

int fr_issue_slot(const fr_issue *s, uint32_t buffer, uint32_t hold) {
    const fr_ref use = {.target = buffer & 0xfffffff};
    const pool *p = pool_of(s, use);
    return p ? fr_slots_of(p->slots, hold) : -1;
}

cudaEvent_t fr_issue_mark(const fr_issue *s, uint32_t event, uint32_t value) {
    const counter *c = &s->counters[event];
    return c->at ? c->at[value % RING].event : NULL;
}

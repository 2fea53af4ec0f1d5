#include "engine/cuda/transport/gate.h"

#include "engine/cuda/transport/transport.h"
#include "engine/cuda/words.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

/* A gather that does not go on for so long is not waited for: its rank's thread may be held up by what waits (the first
 * launch of a kernel loads it, and takes its turn behind the streams of all threads). No pull takes as long. */
enum { PATIENCE_MS = 25 };

#define RELEASED UINT32_C(0x7f7f7f7f) /* past every count; streams compare as signed differences */
#define IDLE     UINT32_MAX           /* no gather: all may go on */

struct fr_gates {
    uint32_t groups;
    int within;
    fr_words words;  /* [groups]: how often the other end has come; and who may go on beside this rank's gather */
    uint32_t *met;   /* [groups]: how often this end has */
    pthread_t watch; /* with gathers: gives up those that stand still */
    atomic_bool watching;
    fr_stream_calls calls;
};

/* Whether this rank and q are on one host, and a pair of the plan or such as look at one another's gathers. */
static bool meets(const fr_gates_options *o, int q) {
    const fr_plan *p = o->plan;
    if (q == o->rank || !fr_address_same_host(&o->at[q], &o->at[o->rank])) return false;
    if (o->within) return true;
    for (uint32_t i = 0; i < p->groups_count; i++) {
        const int16_t *m = p->members + p->groups[i].first;
        if (p->groups[i].count != 2) continue;
        if ((m[0] == q && m[1] == o->rank) || (m[1] == q && m[0] == o->rank)) return true;
    }
    return false;
}

static void *watch(void *of) {
    fr_gates *g = of;
    uint32_t *word = &g->words.mine[g->groups], seen = IDLE;
    const struct timespec tick = {.tv_nsec = 1000000};
    for (int still = 0; atomic_load(&g->watching); nanosleep(&tick, NULL)) {
        uint32_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);
        still = now == seen ? still + 1 : 0;
        seen = now;
        if (now == IDLE || still < PATIENCE_MS) continue;
        __atomic_compare_exchange_n(word, &now, IDLE, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    return NULL;
}

static fr_status watch_gather(fr_gates *g, fr_error *err) {
    atomic_store(&g->watching, true);
    if (pthread_create(&g->watch, NULL, watch, g) == 0) return FR_OK;
    atomic_store(&g->watching, false);
    return fr_fail(err, FR_FAILED, "no thread for gathers");
}

fr_status fr_gates_open(const fr_gates_options *o, fr_gates **out, fr_error *err) {
    const int ranks = fr_world_ranks(o->world);
    fr_gates *g = fr_alloc(sizeof *g);
    bool *reaches = fr_alloc((size_t)ranks * sizeof *reaches);
    g->groups = o->plan->groups_count;
    g->within = o->within;
    g->met = fr_alloc(g->groups * sizeof *g->met);
    for (int q = 0; q < ranks; q++) reaches[q] = meets(o, q);
    fr_status s = fr_stream_calls_find(&g->calls, err);
    if (s == FR_OK) s = fr_words_open(o->world, o->rank, g->groups + 1, IDLE, true, reaches, &g->words, err);
    free(reaches);
    if (s == FR_OK && o->within) s = watch_gather(g, err);
    if (s != FR_OK) {
        fr_gates_close(g, true); /* a peer's stream may know the words */
        g = NULL;
    }
    *out = g;
    return s;
}

void fr_gates_close(fr_gates *g, bool lost) {
    if (!g) return;
    if (atomic_exchange(&g->watching, false)) pthread_join(g->watch, NULL);
    fr_words_close(&g->words, lost);
    free(g->met);
    free(g);
}

fr_status fr_gates_meet(fr_gates *g, uint32_t group, int peer, cudaStream_t stream, fr_error *err) {
    if (!g->words.peer[peer]) return FR_OK;
    const uint32_t n = ++g->met[group];
    FR_TRY(fr_stream_write(&g->calls, stream, g->words.peer[peer] + group, n, err));
    return fr_stream_wait(&g->calls, stream, g->words.here + group, n, err);
}

/* A word has a bit for each number of pulls done, modulo 32: clear for those of a follower who is ahead by 1 to
 * `within`. */
static uint32_t may_go_on(const fr_gates *g, uint32_t done) {
    if (done == FR_GATHER_OVER) return IDLE;
    const uint32_t ahead = (UINT32_C(1) << g->within) - 1, by = (done + 1) % 32;
    return ~(by ? ahead << by | ahead >> (32 - by) : ahead);
}

fr_status fr_gates_say(fr_gates *g, uint32_t done, cudaStream_t stream, fr_error *err) {
    return fr_stream_write(&g->calls, stream, g->words.here + g->groups, may_go_on(g, done), err);
}

fr_status fr_gates_follow(fr_gates *g, int peer, uint32_t done, cudaStream_t stream, fr_error *err) {
    if (!g->words.peer[peer]) return FR_OK;
    return fr_stream_wait_bit(&g->calls, stream, g->words.peer[peer] + g->groups, done % 32, err);
}

void fr_gates_release(fr_gates *g) {
    for (uint32_t i = 0; g && i <= g->groups; i++)
        __atomic_store_n(&g->words.mine[i], i < g->groups ? RELEASED : IDLE, __ATOMIC_RELEASE);
}

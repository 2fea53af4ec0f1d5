#include "engine/cuda/transport/gate.h"

#include "engine/world/shared.h"

#include <cuda.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RELEASED FR_GATE_IDLE

/* A gather that does not go on for so long is not waited for: its rank's thread may be held up by what waits (the first
 * launch of a kernel loads it, and takes its turn behind the streams of all threads). No pull takes as long. */
enum { PATIENCE_MS = 25 };

struct fr_gates {
    fr_gates_options o;
    int ranks;
    uint32_t groups;
    bool threads;    /* all ranks are threads of one process */
    uint32_t *words; /* [groups]: how often the other end has come; and how far this rank's gather is */
    uint32_t *met;   /* [groups]: how often this end has */
    uint32_t **peer; /* [ranks]: their words as streams see them, NULL = none that this rank meets here */
    void **shared;   /* [ranks]: the same as mapped here, where ranks are processes */
    pthread_t watch; /* with gathers: gives up those that stand still */
    atomic_bool watching;
    CUresult (*write)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
    CUresult (*wait)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
};

static fr_status check(const fr_gates *g, cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "rank %d: %s failed: %s", g->o.rank, call, cudaGetErrorString(e));
}

static fr_status driver(const fr_gates *g, CUresult e, const char *call, fr_error *err) {
    if (e == CUDA_SUCCESS) return FR_OK;
    return fr_fail(err, FR_FAILED, "rank %d: %s failed: error %d", g->o.rank, call, (int)e);
}

static fr_status find(const fr_gates *g, const char *name, void *to, fr_error *err) {
    enum cudaDriverEntryPointQueryResult found;
    FR_TRY(check(g, cudaGetDriverEntryPointByVersion(name, to, 12000, cudaEnableDefault, &found), name, err));
    if (found == cudaDriverEntryPointSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "rank %d: the driver has no %s", g->o.rank, name);
}

static size_t bytes_of(const fr_gates *g) {
    return (g->groups + 1) * sizeof *g->words;
}

/* Whether this rank and q are on one host, and a pair of the plan or such as look at one another's gathers. */
static bool meets(const fr_gates *g, int q) {
    const fr_plan *p = g->o.plan;
    if (q == g->o.rank || !fr_address_same_host(&g->o.at[q], &g->o.at[g->o.rank])) return false;
    if (g->o.gathers) return true;
    for (uint32_t i = 0; i < p->groups_count; i++) {
        const int16_t *m = p->members + p->groups[i].first;
        if (p->groups[i].count != 2) continue;
        if ((m[0] == q && m[1] == g->o.rank) || (m[1] == q && m[0] == g->o.rank)) return true;
    }
    return false;
}

static fr_status open_threads(fr_gates *g, fr_error *err) {
    FR_TRY(check(g, cudaHostAlloc((void **)&g->words, bytes_of(g), cudaHostAllocPortable), "cudaHostAlloc", err));
    memset(g->words, 0, bytes_of(g));
    g->words[g->groups] = FR_GATE_IDLE;
    FR_TRY(fr_world_exchange(g->o.world, g->o.rank, &g->words, sizeof g->words, g->peer, err));
    for (int q = 0; q < g->ranks; q++)
        if (!meets(g, q)) g->peer[q] = NULL;
    return FR_OK;
}

static fr_status pin(fr_gates *g, int q, fr_error *err) {
    FR_TRY(check(g, cudaHostRegister(g->shared[q], bytes_of(g), cudaHostRegisterPortable | cudaHostRegisterMapped),
                 "cudaHostRegister of shared memory", err));
    return check(g, cudaHostGetDevicePointer((void **)&g->peer[q], g->shared[q], 0), "cudaHostGetDevicePointer", err);
}

static fr_status open_processes(fr_gates *g, fr_error *err) {
    fr_shared_name mine = {0}, *all = fr_alloc((size_t)g->ranks * sizeof *all);
    g->shared = fr_alloc((size_t)g->ranks * sizeof *g->shared);
    fr_status s = fr_shared_make(bytes_of(g), &mine, &g->shared[g->o.rank], err);
    g->words = g->shared[g->o.rank];
    if (s == FR_OK) g->words[g->groups] = FR_GATE_IDLE;
    if (s == FR_OK) s = pin(g, g->o.rank, err);
    if (s == FR_OK) s = fr_world_exchange(g->o.world, g->o.rank, &mine, sizeof mine, all, err);
    for (int q = 0; q < g->ranks && s == FR_OK; q++) {
        if (!meets(g, q)) continue;
        s = fr_shared_open(&all[q], bytes_of(g), &g->shared[q], err);
        if (s == FR_OK) s = pin(g, q, err);
    }
    if (s == FR_OK) s = fr_world_exchange(g->o.world, g->o.rank, NULL, 0, NULL, err);
    fr_shared_forget(&mine);
    free(all);
    return s;
}

static void *watch(void *of) {
    fr_gates *g = of;
    uint32_t *word = &g->words[g->groups], seen = FR_GATE_IDLE;
    const struct timespec tick = {.tv_nsec = 1000000};
    for (int still = 0; atomic_load(&g->watching); nanosleep(&tick, NULL)) {
        uint32_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);
        still = now == seen ? still + 1 : 0;
        seen = now;
        if (now == FR_GATE_IDLE || still < PATIENCE_MS) continue;
        __atomic_compare_exchange_n(word, &now, FR_GATE_IDLE, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    return NULL;
}

static fr_status watch_gather(fr_gates *g, fr_error *err) {
    atomic_store(&g->watching, true);
    if (pthread_create(&g->watch, NULL, watch, g) == 0) return FR_OK;
    atomic_store(&g->watching, false);
    return fr_fail(err, FR_FAILED, "rank %d: no thread for its gathers", g->o.rank);
}

fr_status fr_gates_open(const fr_gates_options *o, fr_gates **out, fr_error *err) {
    fr_gates *g = fr_alloc(sizeof *g);
    g->o = *o;
    g->ranks = fr_world_ranks(o->world);
    g->groups = o->plan->groups_count;
    g->threads = fr_world_same_process(o->world);
    g->met = fr_alloc(g->groups * sizeof *g->met);
    g->peer = fr_alloc((size_t)g->ranks * sizeof *g->peer);
    fr_status s = find(g, "cuStreamWriteValue32", &g->write, err);
    if (s == FR_OK) s = find(g, "cuStreamWaitValue32", &g->wait, err);
    if (s == FR_OK) s = g->threads ? open_threads(g, err) : open_processes(g, err);
    if (s == FR_OK && o->gathers) s = watch_gather(g, err);
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
    for (int q = 0; g->shared && !lost && q < g->ranks; q++) {
        if (g->peer[q]) cudaHostUnregister(g->shared[q]);
        fr_shared_close(g->shared[q], bytes_of(g));
    }
    if (!g->shared && g->words && !lost) cudaFreeHost(g->words);
    free(g->shared);
    free(g->peer);
    free(g->met);
    free(g);
}

static CUdeviceptr at(uint32_t *word) {
    return (CUdeviceptr)(uintptr_t)word;
}

fr_status fr_gates_meet(fr_gates *g, uint32_t group, int peer, cudaStream_t stream, fr_error *err) {
    if (!g->peer[peer]) return FR_OK;
    uint32_t *mine = g->threads ? g->words : g->peer[g->o.rank];
    const uint32_t n = ++g->met[group];
    FR_TRY(driver(g, g->write((CUstream)stream, at(g->peer[peer] + group), n, CU_STREAM_WRITE_VALUE_DEFAULT),
                  "cuStreamWriteValue32", err));
    return driver(g, g->wait((CUstream)stream, at(mine + group), n, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32",
                  err);
}

fr_status fr_gates_say(fr_gates *g, uint32_t done, cudaStream_t stream, fr_error *err) {
    uint32_t *mine = g->threads ? g->words : g->peer[g->o.rank];
    return driver(g, g->write((CUstream)stream, at(mine + g->groups), done, CU_STREAM_WRITE_VALUE_DEFAULT),
                  "cuStreamWriteValue32", err);
}

fr_status fr_gates_follow(fr_gates *g, int peer, uint32_t done, cudaStream_t stream, fr_error *err) {
    if (!g->peer[peer]) return FR_OK;
    return driver(g, g->wait((CUstream)stream, at(g->peer[peer] + g->groups), done, CU_STREAM_WAIT_VALUE_GEQ),
                  "cuStreamWaitValue32", err);
}

void fr_gates_release(fr_gates *g) {
    for (uint32_t i = 0; g && i <= g->groups; i++) __atomic_store_n(&g->words[i], RELEASED, __ATOMIC_RELEASE);
}

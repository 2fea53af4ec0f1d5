/*
 * Pinned host memory for experts: a range a layer, touched by several threads (huge pages where the kernel gives them)
 * and then registered, so that pinning runs at the memory's rate and in steps. Ranks of a process that hold the same
 * experts share them: the first of them pins and fills, the others wait for it.
 */
#include "engine/cuda/weights.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_PINNED 0.70 /* of the host's memory: the rest is for page cache, processes and the kernel */
#define HUGE_PAGE   ((int64_t)2 << 20)

enum { TOUCHERS = 8 };

/* Memory of this host that the process may use: RAM, or the limit of its control group. */
static int64_t host_memory(void) {
    int64_t most = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    FILE *f = fopen("/sys/fs/cgroup/memory.max", "r");
    char text[32] = "";
    if (f) {
        const size_t n = fread(text, 1, sizeof text - 1, f);
        text[n] = 0;
        fclose(f);
        char *end;
        const long long limit = strtoll(text, &end, 10);
        if (end != text && limit > 0) most = fr_min_i64(most, limit);
    }
    return most;
}

/* ---- one range ----------------------------------------------------------------------------------------------------*/

typedef struct {
    char *begin;
    int64_t bytes;
} stretch;

static void *touch(void *context) {
    const stretch *s = context;
    for (int64_t at = 0; at < s->bytes; at += 4096) *(volatile char *)(s->begin + at) = 0;
    return NULL;
}

static void touch_all(char *begin, int64_t bytes) {
    pthread_t threads[TOUCHERS];
    stretch part[TOUCHERS];
    bool started[TOUCHERS];
    const int64_t each = fr_ceil_div(fr_ceil_div(bytes, TOUCHERS), HUGE_PAGE) * HUGE_PAGE;
    for (int i = 0; i < TOUCHERS; i++) {
        const int64_t at = fr_min_i64(i * each, bytes);
        part[i] = (stretch){begin + at, fr_min_i64(each, bytes - at)};
        started[i] = pthread_create(&threads[i], NULL, touch, &part[i]) == 0;
    }
    for (int i = 0; i < TOUCHERS; i++) {
        if (started[i])
            pthread_join(threads[i], NULL);
        else
            touch(&part[i]);
    }
}

static int64_t room_of(int64_t bytes) {
    return fr_ceil_div(bytes, HUGE_PAGE) * HUGE_PAGE;
}

fr_status fr_pinned_open(int64_t bytes, char **out, fr_error *err) {
    const int64_t room = room_of(bytes);
    void *p = mmap(NULL, (size_t)room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *out = NULL;
    if (p == MAP_FAILED) return fr_fail(err, FR_FAILED, "no %.2f GB of host memory", (double)room * 1e-9);
    madvise(p, (size_t)room, MADV_HUGEPAGE); /* a wish */
    touch_all(p, room);
    const cudaError_t e = cudaHostRegister(p, (size_t)room, cudaHostRegisterPortable);
    if (e != cudaSuccess) {
        munmap(p, (size_t)room);
        return fr_fail(err, FR_FAILED, "pinning %.2f GB of host memory: %s", (double)room * 1e-9,
                       cudaGetErrorString(e));
    }
    *out = p;
    return FR_OK;
}

void fr_pinned_close(char *pinned, int64_t bytes) {
    if (!pinned) return;
    cudaHostUnregister(pinned);
    munmap(pinned, (size_t)room_of(bytes));
}

static fr_status pin_one(fr_weights *w, int layer, int64_t bytes, fr_error *err) {
    fr_error why;
    if (fr_pinned_open(bytes, &w->host[layer], &why) != FR_OK)
        return fr_fail(err, FR_FAILED, "experts of layer %d, after %.1f GB of others: %s", layer,
                       (double)w->host_bytes * 1e-9, why.text);
    w->host_bytes += room_of(bytes);
    return FR_OK;
}

/* ---- all of a rank's, shared in a process -------------------------------------------------------------------------*/

typedef struct {
    int stage, index;
    char **host;
} owner;

/* Ranks of this process that pin something: those of which no lower one holds the same experts. */
static bool is_owner(const fr_layout *l, int rank) {
    const int stage_ranks = fr_layout_stage_ranks(l);
    const bool first_replica = rank < stage_ranks * l->pp;
    return first_replica && rank % stage_ranks < l->ep;
}

static fr_status check_room(const fr_weights *w, const fr_layout *l, int64_t run, fr_error *err) {
    const bool shared = w->world && fr_world_same_process(w->world);
    int64_t owners = 0;
    for (int r = 0; r < fr_layout_gpus(l); r++) owners += !shared || is_owner(l, r);
    const int64_t all = owners * w->shard.layers * room_of(run), most = (int64_t)(MOST_PINNED * (double)host_memory());
    if (all <= most) return FR_OK;
    return fr_fail(err, FR_FAILED,
                   "experts in host memory need %.1f GB pinned, at most %.1f GB (70 %% of the host's memory) may be: "
                   "take --resident-layers %lld, or more GPUs without offload",
                   (double)all * 1e-9, (double)most * 1e-9, (long long)(most / (owners * room_of(run))));
}

static fr_status find_owner(fr_weights *w, const fr_layout *l, fr_error *err) {
    const owner mine = {w->shard.stage, w->shard.index, w->host};
    const int ranks = fr_world_ranks(w->world);
    owner *all = fr_alloc((size_t)ranks * sizeof *all);
    fr_status s = fr_world_exchange(w->world, w->rank, &mine, sizeof mine, all, err);
    for (int r = 0; r < ranks && s == FR_OK && !w->owns_host; r++)
        if (is_owner(l, r) && all[r].stage == mine.stage && all[r].index == mine.index) {
            memcpy(w->host, all[r].host, (size_t)w->shard.layers * sizeof *w->host);
            break;
        }
    if (s == FR_OK) s = fr_world_exchange(w->world, w->rank, NULL, 0, NULL, err); /* all have copied the list */
    free(all);
    return s;
}

fr_status fr_weights_pin(fr_weights *w, const fr_layout *l, int64_t run_bytes, fr_error *err) {
    const bool shared = w->world && fr_world_same_process(w->world);
    w->host = fr_alloc((size_t)w->shard.layers * sizeof *w->host);
    w->owns_host = !shared || is_owner(l, w->rank);
    FR_TRY(check_room(w, l, run_bytes, err));
    w->experts_stride = room_of(run_bytes); /* of a range, for unpinning */
    for (int i = 0; i < w->shard.layers && w->owns_host; i++) FR_TRY(pin_one(w, i, run_bytes, err));
    return shared ? find_owner(w, l, err) : FR_OK;
}

void fr_weights_unpin(fr_weights *w) {
    for (int i = 0; w->host && w->owns_host && i < w->shard.layers; i++) fr_pinned_close(w->host[i], w->experts_stride);
    free(w->host);
    w->host = NULL;
}

fr_status fr_weights_filled(fr_weights *w, fr_error *err) {
    if (!w->host || !w->world || !fr_world_same_process(w->world)) return FR_OK;
    return fr_world_exchange(w->world, w->rank, NULL, 0, NULL, err);
}

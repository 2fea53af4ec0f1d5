#include "engine/cuda/words.h"

#include "engine/world/shared.h"

#include <stdlib.h>
#include <string.h>

/* ---- what streams are asked ---------------------------------------------------------------------------------------*/

fr_status fr_stream_calls_find(fr_stream_calls *out, fr_error *err) {
    const struct {
        const char *name;
        void *to;
    } calls[2] = {{"cuStreamWriteValue32", &out->write}, {"cuStreamWaitValue32", &out->wait}};
    for (int i = 0; i < 2; i++) {
        enum cudaDriverEntryPointQueryResult found;
        const cudaError_t e =
            cudaGetDriverEntryPointByVersion(calls[i].name, calls[i].to, 12000, cudaEnableDefault, &found);
        if (e != cudaSuccess) return fr_fail(err, FR_FAILED, "%s: %s", calls[i].name, cudaGetErrorString(e));
        if (found != cudaDriverEntryPointSuccess) return fr_fail(err, FR_FAILED, "the driver has no %s", calls[i].name);
    }
    return FR_OK;
}

static CUdeviceptr address(uint32_t *at) {
    return (CUdeviceptr)(uintptr_t)at;
}

static fr_status done(CUresult e, const char *call, fr_error *err) {
    return e == CUDA_SUCCESS ? FR_OK : fr_fail(err, FR_FAILED, "%s failed: error %d", call, (int)e);
}

fr_status fr_stream_write(const fr_stream_calls *c, cudaStream_t stream, uint32_t *at, uint32_t value, fr_error *err) {
    return done(c->write((CUstream)stream, address(at), value, CU_STREAM_WRITE_VALUE_DEFAULT), "cuStreamWriteValue32",
                err);
}

fr_status fr_stream_wait(const fr_stream_calls *c, cudaStream_t stream, uint32_t *at, uint32_t value, fr_error *err) {
    return done(c->wait((CUstream)stream, address(at), value, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32", err);
}

fr_status fr_stream_wait_bit(const fr_stream_calls *c, cudaStream_t stream, uint32_t *at, uint32_t bit, fr_error *err) {
    return done(c->wait((CUstream)stream, address(at), UINT32_C(1) << bit, CU_STREAM_WAIT_VALUE_AND),
                "cuStreamWaitValue32", err);
}

/* ---- words of the host --------------------------------------------------------------------------------------------*/

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

static fr_status open_threads(fr_world *world, int rank, uint32_t last, bool wanted, const bool *reaches, fr_words *w,
                              fr_error *err) {
    if (wanted) {
        FR_TRY(check(cudaHostAlloc((void **)&w->mine, w->bytes, cudaHostAllocPortable), "cudaHostAlloc", err));
        memset(w->mine, 0, w->bytes);
        w->mine[w->bytes / sizeof last - 1] = last;
    }
    w->here = w->mine;
    FR_TRY(fr_world_exchange(world, rank, &w->mine, sizeof w->mine, w->peer, err));
    for (int q = 0; q < w->ranks; q++)
        if (!reaches[q]) w->peer[q] = NULL;
    return FR_OK;
}

static fr_status pin(void *memory, size_t bytes, uint32_t **seen, fr_error *err) {
    FR_TRY(check(cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped),
                 "cudaHostRegister of shared memory", err));
    return check(cudaHostGetDevicePointer((void **)seen, memory, 0), "cudaHostGetDevicePointer", err);
}

static fr_status open_processes(fr_world *world, int rank, uint32_t last, bool wanted, const bool *reaches, fr_words *w,
                                fr_error *err) {
    fr_shared_name mine = {0}, *all = fr_alloc((size_t)w->ranks * sizeof *all);
    w->shared = fr_alloc((size_t)w->ranks * sizeof *w->shared);
    fr_status s = wanted ? fr_shared_make(w->bytes, &mine, &w->shared[rank], err) : FR_OK;
    w->mine = w->shared[rank];
    if (w->mine) w->mine[w->bytes / sizeof last - 1] = last;
    if (s == FR_OK && wanted) s = pin(w->mine, w->bytes, &w->here, err);
    if (s == FR_OK) s = fr_world_exchange(world, rank, &mine, sizeof mine, all, err);
    for (int q = 0; q < w->ranks && s == FR_OK; q++) {
        if (!all[q].text[0] || !reaches[q] || q == rank) continue;
        s = fr_shared_open(&all[q], w->bytes, &w->shared[q], err);
        if (s == FR_OK) s = pin(w->shared[q], w->bytes, &w->peer[q], err);
    }
    if (s == FR_OK) s = fr_world_exchange(world, rank, NULL, 0, NULL, err);
    fr_shared_forget(&mine);
    free(all);
    return s;
}

fr_status fr_words_open(fr_world *world, int rank, uint32_t count, uint32_t last, bool wanted, const bool *reaches,
                        fr_words *out, fr_error *err) {
    *out = (fr_words){.bytes = count * sizeof *out->mine, .ranks = fr_world_ranks(world)};
    out->peer = fr_alloc((size_t)out->ranks * sizeof *out->peer);
    return fr_world_same_process(world) ? open_threads(world, rank, last, wanted, reaches, out, err)
                                        : open_processes(world, rank, last, wanted, reaches, out, err);
}

void fr_words_close(fr_words *w, bool lost) {
    for (int q = 0; w->shared && !lost && q < w->ranks; q++) {
        if (w->shared[q]) cudaHostUnregister(w->shared[q]);
        fr_shared_close(w->shared[q], w->bytes);
    }
    if (w->mine && !w->shared && !lost) cudaFreeHost(w->mine);
    free(w->shared);
    free(w->peer);
    *w = (fr_words){0};
}

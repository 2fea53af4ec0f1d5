#include "kernels/grouped_loop.h"
#include <stdlib.h>

enum { MOST = 8 };
static const size_t workspace_bytes = (size_t)32 << 20;

struct fr_grouped_loop {
    fr_gemm *gemm;
    int streams;
    cudaStream_t stream[MOST];
    cudaEvent_t fork, join[MOST];
    void *workspace[MOST];
};

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

static fr_status open_all(fr_grouped_loop *l, int streams, fr_error *err) {
    FR_TRY(fr_gemm_open(&l->gemm, err));
    FR_TRY(check(cudaEventCreateWithFlags(&l->fork, cudaEventDisableTiming), "cudaEventCreate", err));
    for (int i = 0; i < streams; i++) {
        FR_TRY(check(cudaStreamCreateWithFlags(&l->stream[i], cudaStreamNonBlocking), "cudaStreamCreate", err));
        l->streams = i + 1;
        FR_TRY(check(cudaEventCreateWithFlags(&l->join[i], cudaEventDisableTiming), "cudaEventCreate", err));
        FR_TRY(check(cudaMalloc(&l->workspace[i], workspace_bytes), "cudaMalloc of 32 MiB", err));
    }
    return FR_OK;
}

fr_status fr_grouped_loop_open(fr_grouped_loop **out, int streams, fr_error *err) {
    *out = NULL;
    if (streams < 1 || streams > MOST)
        return fr_fail(err, FR_BAD_INPUT, "grouped loop: %d streams, expected 1 to %d", streams, MOST);
    fr_grouped_loop *l = fr_alloc(sizeof *l);
    const fr_status s = open_all(l, streams, err);
    if (s != FR_OK)
        fr_grouped_loop_close(l);
    else
        *out = l;
    return s;
}

void fr_grouped_loop_close(fr_grouped_loop *l) {
    if (!l) return;
    for (int i = 0; i < l->streams; i++) {
        cudaStreamDestroy(l->stream[i]);
        if (l->join[i]) cudaEventDestroy(l->join[i]);
        cudaFree(l->workspace[i]);
    }
    if (l->fork) cudaEventDestroy(l->fork);
    fr_gemm_close(l->gemm);
    free(l);
}

fr_status fr_grouped_loop_run(fr_grouped_loop *l, const fr_bf16 *a, const fr_bf16 *b, fr_bf16 *c,
                              const int32_t *offsets, int32_t E, int32_t N, int32_t K, cudaStream_t stream,
                              fr_error *err) {
    FR_TRY(check(cudaEventRecord(l->fork, stream), "cudaEventRecord", err));
    for (int i = 0; i < l->streams; i++)
        FR_TRY(check(cudaStreamWaitEvent(l->stream[i], l->fork, 0), "cudaStreamWaitEvent", err));
    for (int32_t e = 0; e < E; e++) {
        const int i = e % l->streams;
        const int64_t row = offsets[e];
        const fr_gemm_args g = {.x = a + row * K,
                                .w = b + (int64_t)e * N * K,
                                .out = c + row * N,
                                .M = offsets[e + 1] - row,
                                .N = N,
                                .K = K,
                                .workspace = l->workspace[i],
                                .workspace_bytes = workspace_bytes};
        FR_TRY(fr_gemm_run(l->gemm, &g, l->stream[i], err));
    }
    for (int i = 0; i < l->streams; i++) {
        FR_TRY(check(cudaEventRecord(l->join[i], l->stream[i]), "cudaEventRecord", err));
        FR_TRY(check(cudaStreamWaitEvent(stream, l->join[i], 0), "cudaStreamWaitEvent", err));
    }
    return FR_OK;
}

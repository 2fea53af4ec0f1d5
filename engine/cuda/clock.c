#include "engine/cuda/clock.h"

enum { LEAST_TRIES = 16, MOST_TRIES = 512 };
#define TRYING_NS 5000000 /* beside other processes' work a try takes as long as the GPU's turns: milliseconds */
#define LEAST_NS  200000000
#define LIMIT_NS  2000000000 /* an idle device that does not record an event by then is lost */

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "clock: %s failed: %s", call, cudaGetErrorString(e));
}

static fr_status once(cudaStream_t stream, fr_anchor *a, fr_error *err) {
    const int64_t before = fr_monotonic();
    int64_t after = before;
    FR_TRY(check(cudaEventRecord(a->event, stream), "cudaEventRecord", err));
    cudaError_t e;
    while ((e = cudaEventQuery(a->event)) == cudaErrorNotReady && after - before < LIMIT_NS) after = fr_monotonic();
    FR_TRY(check(e, "cudaEventQuery", err));
    after = fr_monotonic();
    a->ns = before + (after - before) / 2;
    a->half_ns = 0.5 * (double)(after - before);
    return FR_OK;
}

fr_status fr_anchor_take(cudaStream_t stream, fr_anchor *out, fr_error *err) {
    fr_anchor spare = {0};
    fr_status s = FR_OK;
    if (!out->event) FR_TRY(check(cudaEventCreate(&out->event), "cudaEventCreate", err));
    FR_TRY(check(cudaEventCreate(&spare.event), "cudaEventCreate", err));
    const int64_t until = fr_monotonic() + TRYING_NS;
    s = once(stream, out, err);
    for (int i = 1; i < MOST_TRIES && (i < LEAST_TRIES || fr_monotonic() < until) && s == FR_OK; i++) {
        s = once(stream, &spare, err);
        if (s != FR_OK || spare.half_ns >= out->half_ns) continue;
        const fr_anchor wider = *out;
        *out = spare;
        spare = wider;
    }
    if (s == FR_OK) fr_anchor_close(&spare);
    return s;
}

void fr_anchor_close(fr_anchor *a) {
    if (a->event) cudaEventDestroy(a->event);
    *a = (fr_anchor){0};
}

fr_status fr_anchor_rate(const fr_anchor *a, const fr_anchor *b, double *rate, fr_error *err) {
    float ms = 0;
    *rate = 1;
    if (b->ns - a->ns < LEAST_NS) return FR_OK;
    FR_TRY(check(cudaEventElapsedTime(&ms, a->event, b->event), "cudaEventElapsedTime", err));
    *rate = (double)(b->ns - a->ns) / ((double)ms * 1e6);
    return FR_OK;
}

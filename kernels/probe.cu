/* See probe.h. */
#include "kernels/probe.h"

namespace {

__device__ inline uint64_t timer() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

/* clock64 counts the cycles of the SM that it is read on, so a stamp is kept for each SM. */
__global__ void stamp(uint64_t *out) {
    uint32_t sm;
    uint64_t cycles;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
    if (sm >= FR_PROBE_SMS) return;
    out[2 * sm] = cycles;
    out[2 * sm + 1] = timer();
}

__global__ void hold(uint64_t ns) {
    const uint64_t start = timer(), limit = 2000000000ull; /* no spin on a device is longer than two seconds */
    if (ns > limit) ns = limit;
    while (timer() - start < ns) __nanosleep(1000);
}

} // namespace

cudaError_t fr_k_stamp(uint64_t *out, int sms, cudaStream_t stream) {
    stamp<<<static_cast<unsigned>(sms), 1, 0, stream>>>(out);
    return cudaGetLastError();
}

cudaError_t fr_k_hold(uint64_t ns, cudaStream_t stream) {
    hold<<<1, 1, 0, stream>>>(ns);
    return cudaGetLastError();
}

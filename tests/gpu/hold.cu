/* hold: a kernel that takes every SM of the device for a while, so that no other kernel can start: what goes on beside
 * it needs none. */
#include <cstdint>
#include <cuda_runtime.h>

__global__ void hold_kernel(uint64_t ns) {
    uint64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < ns);
}

/* At most 2 s. One block an SM with all of its shared memory. */
extern "C" cudaError_t hold_all_sms(uint64_t ns, cudaStream_t stream) {
    int device = 0, sms = 0, shared = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (!e) e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (!e) e = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (!e) e = cudaFuncSetAttribute(hold_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (e) return e;
    hold_kernel<<<static_cast<unsigned>(sms), 1024, static_cast<size_t>(shared), stream>>>(
        ns < 2000000000 ? ns : 2000000000);
    return cudaGetLastError();
}

#include "kernels/words.h"

namespace {
constexpr int THREADS = 256, EACH = 4; /* loads that a thread has in flight */
constexpr int64_t MOST_BLOCKS = 128;   /* 2 MiB in flight: the link's rate times its latency is some 0.1 MB */

template <typename V> __global__ void __launch_bounds__(THREADS) words_kernel(V *to, const V *from, int64_t n) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += EACH * step) {
        V v[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (i + j * step < n) v[j] = __ldcv(from + i + j * step); /* the host has written it since */
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (i + j * step < n) to[i + j * step] = v[j];
    }
}

template <typename V> cudaError_t launch(void *to, const void *from, int64_t n, cudaStream_t stream) {
    if (n == 0) return cudaSuccess;
    const int64_t wanted = (n + THREADS - 1) / THREADS;
    const auto blocks = static_cast<unsigned>(wanted < MOST_BLOCKS ? wanted : MOST_BLOCKS);
    words_kernel<V><<<blocks, THREADS, 0, stream>>>(static_cast<V *>(to), static_cast<const V *>(from), n);
    return cudaGetLastError();
}
} // namespace

cudaError_t fr_k_words(void *to, const void *from, int64_t n, cudaStream_t stream) {
    const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if (n < 0 || both % 4) return cudaErrorInvalidValue;
    return both % 16 == 0 && n % 4 == 0 ? launch<int4>(to, from, n / 4, stream) : launch<int32_t>(to, from, n, stream);
}

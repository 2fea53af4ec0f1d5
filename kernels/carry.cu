#include "kernels/carry.h"

#include "kernels/bulk.cuh"
#include "kernels/device.cuh"

namespace {
using namespace fr;

/* Thread 0 moves rows, the warps behind the first its ids and weights. */
__global__ void __launch_bounds__(BULK_THREADS) carry_kernel(const __grid_constant__ fr_k_carry_args a) {
    extern __shared__ __align__(128) char ring[];
    __shared__ __align__(8) uint64_t full[STAGES];
    __shared__ Run run[2];
    __shared__ Chunk flying[STAGES];
    const int64_t first = a.range[0], rows = a.range[1] - first, base = a.at ? *a.at : 0, row = a.H * 2;
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
        for (uint32_t i = 0; i < STAGES; i++) mbar_init(smem_addr(full) + 8 * i, 1);
        fence_barrier_init();
        const int64_t chunks = (rows * row + BULK - 1) / BULK;
        run[0] =
            Run{static_cast<const char *>(a.rows) + first * row, static_cast<char *>(a.to) + base * row, rows * row, 0};
        run[1].start = chunks;
        move_chunks(run, chunks, smem_addr(ring), smem_addr(full), flying);
    } else if (thread >= 32 && a.ids) {
        const int64_t step = static_cast<int64_t>(gridDim.x) * (BULK_THREADS - 32);
        for (int64_t i = static_cast<int64_t>(blockIdx.x) * (BULK_THREADS - 32) + thread - 32; i < rows * a.k;
             i += step) {
            const int64_t r = first + i / a.k, slot = (a.source ? a.source[r] : r) * a.k + i % a.k;
            const int32_t e = a.ids[slot];
            a.to_ids[base * a.k + i] = e >= a.first && e < a.end ? e : -1;
            a.to_weights[base * a.k + i] = a.weights[slot];
        }
    }
    if (blockIdx.x == 0 && thread == 1) {
        for (int i = 0; i < a.zeros_count; i++) a.zeros[i] = 0;
        for (int i = 0; i < a.ends_count; i++) a.ends[i] = static_cast<int32_t>(base + rows);
    }
    __threadfence_system(); /* the counter that is raised behind this says that all of it is there */
}

__global__ void places_kernel(int32_t *row_of_copy, const int32_t *first, int64_t n, int32_t E, int64_t stride) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int64_t e = i % E;
    const int32_t row = row_of_copy[i];
    if (row >= 0) row_of_copy[i] = static_cast<int32_t>(e * stride + row - first[e]);
}
} // namespace

cudaError_t fr_k_carry(const fr_k_carry_args *a, cudaStream_t stream) {
    if (a->blocks < 1 || a->blocks > 1024 || a->H < 8 || a->H % 8 || (a->ids && a->k < 1)) return cudaErrorInvalidValue;
    const cudaError_t e =
        cudaFuncSetAttribute(carry_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, STAGES * BULK);
    if (e) return e;
    carry_kernel<<<static_cast<unsigned>(a->blocks), BULK_THREADS, STAGES * BULK, stream>>>(*a);
    return cudaGetLastError();
}

cudaError_t fr_k_carry_places(int32_t *row_of_copy, const int32_t *first, int64_t T, int32_t E, int64_t stride,
                              cudaStream_t stream) {
    const int64_t n = T * E;
    if (T < 0 || E < 1 || E * stride > INT32_MAX) return cudaErrorInvalidValue;
    if (n == 0) return cudaSuccess;
    places_kernel<<<static_cast<unsigned>((n + 255) / 256), 256, 0, stream>>>(row_of_copy, first, n, E, stride);
    return cudaGetLastError();
}

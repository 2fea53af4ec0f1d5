/*
 * router: softmax and top-k of the router's logits, and the routing tables: counts, offsets and a stable permutation.
 *
 * The permutation never lets the order of blocks or atomics decide a place: a block counts its own run of slots
 * (integer sums, so their order is immaterial), one block turns counts into bases, and each block then places its
 * slots in slot order.
 */
#include "kernels/device.cuh"

namespace {
using namespace fr;

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int PER_WARP = 128, CHUNK = WARPS * PER_WARP; /* slots of a warp and of a block */
constexpr int SCAN_THREADS = 1024;

/* One warp a token, V logits a lane: expert lane + 32 i is value i. */
template <int V>
__global__ void __launch_bounds__(THREADS) topk_kernel(const float *logits, const float *bias, int32_t *ids,
                                                       float *weights, int64_t T, int E, int k, bool renormalise) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t t = static_cast<int64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
    if (t >= T) return;
    float p[V];
    float top = -INFINITY;
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int e = lane + 32 * i;
        p[i] = e < E ? logits[t * E + e] + (bias ? bias[e] : 0.0f) : -INFINITY;
        top = fmaxf(top, p[i]);
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        p[i] = expf(p[i] - top);
        sum += p[i];
    }
    const float all = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < V; i++) p[i] = lane + 32 * i < E ? p[i] / all : -1.0f;

    float kept = 0, total = 0; /* lane j < k keeps the j-th weight */
    int expert = 0;
    for (int j = 0; j < k; j++) {
        float best = -2.0f;
        int at = E;
#pragma unroll
        for (int i = 0; i < V; i++)
            if (p[i] > best) best = p[i], at = lane + 32 * i;
#pragma unroll
        for (int d = 16; d; d >>= 1) {
            const float other = __shfl_xor_sync(~0u, best, d);
            const int other_at = __shfl_xor_sync(~0u, at, d);
            if (other > best || (other == best && other_at < at)) best = other, at = other_at;
        }
#pragma unroll
        for (int i = 0; i < V; i++)
            if (at == lane + 32 * i) p[i] = -1.0f;
        total += best;
        if (lane == j) kept = best, expert = at;
    }
    if (lane < k) {
        ids[t * k + lane] = expert;
        weights[t * k + lane] = renormalise ? kept / total : kept;
    }
}

/* counts[block][E]: how many of the block's slots each expert has. */
__global__ void __launch_bounds__(THREADS)
    count_kernel(const int32_t *ids, int64_t slots, const int32_t *arrived, int k, int first, int E, int32_t *counts) {
    if (arrived) slots = min(slots, static_cast<int64_t>(*arrived) * k);
    __shared__ int32_t count[FR_K_MAX_EXPERTS];
    for (int e = static_cast<int>(threadIdx.x); e < E; e += THREADS) count[e] = 0;
    __syncthreads();
    const int64_t base = static_cast<int64_t>(blockIdx.x) * CHUNK;
    for (int i = static_cast<int>(threadIdx.x); i < CHUNK && base + i < slots; i += THREADS) {
        const int e = ids[base + i] - first;
        if (e >= 0 && e < E) atomicAdd(&count[e], 1);
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < E; e += THREADS)
        counts[static_cast<int64_t>(blockIdx.x) * E + e] = count[e];
}

/*
 * counts[block][E] becomes the first row of each (block, expert), and offsets [E+1] is written. One block: `parts`
 * threads an expert take a run of blocks each.
 */
__global__ void __launch_bounds__(SCAN_THREADS) scan_kernel(int32_t *counts, int blocks, int E, int32_t *offsets) {
    __shared__ int32_t part_sum[SCAN_THREADS], start[FR_K_MAX_EXPERTS + 1];
    const int parts = SCAN_THREADS / E, thread = static_cast<int>(threadIdx.x);
    const int e = thread % E, part = thread / E, per = (blocks + parts - 1) / parts;
    const int begin = min(part * per, blocks), end = min(begin + per, blocks);
    const bool live = part < parts;
    int sum = 0;
    if (live) {
#pragma unroll 8
        for (int b = begin; b < end; b++) sum += counts[static_cast<int64_t>(b) * E + e];
    }
    part_sum[thread] = sum;
    __syncthreads();
    if (thread < 32) { /* offsets over experts, one warp */
        int carry = 0;
        for (int base = 0; base < E; base += 32) {
            const int x = base + thread;
            int total = 0;
            if (x < E)
                for (int q = 0; q < parts; q++) total += part_sum[q * E + x];
            int scan = total;
#pragma unroll
            for (int d = 1; d < 32; d <<= 1) {
                const int o = __shfl_up_sync(~0u, scan, d);
                if (thread >= d) scan += o;
            }
            if (x < E) start[x] = offsets[x] = carry + scan - total;
            carry += __shfl_sync(~0u, scan, 31);
        }
        if (thread == 0) offsets[E] = carry;
    }
    __syncthreads();
    if (!live) return;
    int run = start[e];
    for (int q = 0; q < part; q++) run += part_sum[q * E + e];
#pragma unroll 8
    for (int b = begin; b < end; b++) {
        const int64_t at = static_cast<int64_t>(b) * E + e;
        const int c = counts[at];
        counts[at] = run;
        run += c;
    }
}

/* Places the block's slots: base of (block, expert) + slots of earlier warps + rank within the warp's run. */
__global__ void __launch_bounds__(THREADS)
    place_kernel(const int32_t *ids, int64_t slots, const int32_t *arrived, int k, int first, int E,
                 const int32_t *base_of, int32_t *row_of_slot, int32_t *token_of_row) {
    if (arrived) slots = min(slots, static_cast<int64_t>(*arrived) * k);
    __shared__ uint16_t seen[WARPS][FR_K_MAX_EXPERTS];
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    for (int i = thread; i < WARPS * FR_K_MAX_EXPERTS; i += THREADS) (&seen[0][0])[i] = 0;
    __syncthreads();
    const int64_t begin = static_cast<int64_t>(blockIdx.x) * CHUNK + warp * PER_WARP;
    constexpr int TURNS = PER_WARP / 32;
    int expert[TURNS], rank[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int64_t slot = begin + i * 32 + lane;
        int e = slot < slots ? ids[slot] - first : -1;
        if (e < 0 || e >= E) e = -1;
        const unsigned same = __match_any_sync(~0u, e);
        const int before = e >= 0 ? seen[warp][e] : 0;
        __syncwarp();
        if (e >= 0 && lane == __ffs(static_cast<int>(same)) - 1)
            seen[warp][e] = static_cast<uint16_t>(before + __popc(same));
        __syncwarp();
        expert[i] = e;
        rank[i] = before + __popc(same & ((1u << lane) - 1));
    }
    __syncthreads();
    for (int e = thread; e < E; e += THREADS) { /* counts of warps become places before each warp */
        int run = 0;
        for (int w = 0; w < WARPS; w++) {
            const int c = seen[w][e];
            seen[w][e] = static_cast<uint16_t>(run);
            run += c;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int64_t slot = begin + i * 32 + lane;
        if (slot >= slots) continue;
        const int e = expert[i];
        int row = -1;
        if (e >= 0) {
            row = base_of[static_cast<int64_t>(blockIdx.x) * E + e] + seen[warp][e] + rank[i];
            token_of_row[row] = static_cast<int32_t>(slot / k);
        }
        row_of_slot[slot] = row;
    }
}
} // namespace

cudaError_t fr_k_router(const float *logits, const float *bias, int32_t *ids, float *weights, int64_t T, int32_t E,
                        int32_t k, bool renormalise, cudaStream_t stream) {
    if (T < 0 || E < 1 || E > FR_K_MAX_EXPERTS || k < 1 || k > FR_K_MAX_TOPK || k > E) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    const unsigned grid = static_cast<unsigned>((T + WARPS - 1) / WARPS);
    if (E <= 32)
        topk_kernel<1><<<grid, THREADS, 0, stream>>>(logits, bias, ids, weights, T, E, k, renormalise);
    else if (E <= 128)
        topk_kernel<4><<<grid, THREADS, 0, stream>>>(logits, bias, ids, weights, T, E, k, renormalise);
    else if (E <= 256)
        topk_kernel<8><<<grid, THREADS, 0, stream>>>(logits, bias, ids, weights, T, E, k, renormalise);
    else
        topk_kernel<16><<<grid, THREADS, 0, stream>>>(logits, bias, ids, weights, T, E, k, renormalise);
    return cudaGetLastError();
}

size_t fr_k_route_workspace(int64_t slots, int32_t E) {
    const int64_t blocks = (slots + CHUNK - 1) / CHUNK;
    return static_cast<size_t>(blocks > 0 ? blocks : 1) * static_cast<size_t>(E) * sizeof(int32_t);
}

cudaError_t fr_k_route(const int32_t *ids, int64_t T, int32_t k, int32_t first, int32_t E, int32_t *offsets,
                       int32_t *row_of_slot, int32_t *token_of_row, void *workspace, cudaStream_t stream) {
    return fr_k_route_arrived(ids, nullptr, T, k, first, E, offsets, row_of_slot, token_of_row, workspace, stream);
}

cudaError_t fr_k_route_arrived(const int32_t *ids, const int32_t *arrived, int64_t T, int32_t k, int32_t first,
                               int32_t E, int32_t *offsets, int32_t *row_of_slot, int32_t *token_of_row,
                               void *workspace, cudaStream_t stream) {
    const int64_t slots = T * k, blocks = (slots + CHUNK - 1) / CHUNK;
    if (T < 0 || k < 1 || slots > INT32_MAX || E < 1 || E > FR_K_MAX_EXPERTS) return cudaErrorInvalidValue;
    if (!T) return cudaMemsetAsync(offsets, 0, static_cast<size_t>(E + 1) * sizeof *offsets, stream);
    int32_t *counts = static_cast<int32_t *>(workspace);
    count_kernel<<<static_cast<unsigned>(blocks), THREADS, 0, stream>>>(ids, slots, arrived, k, first, E, counts);
    scan_kernel<<<1, SCAN_THREADS, 0, stream>>>(counts, static_cast<int>(blocks), E, offsets);
    place_kernel<<<static_cast<unsigned>(blocks), THREADS, 0, stream>>>(ids, slots, arrived, k, first, E, counts,
                                                                        row_of_slot, token_of_row);
    return cudaGetLastError();
}

/*
 * exchange: packing, counts, and rows pushed into peers' memory with 16-byte stores (exchange.h has the protocol).
 *
 * A push is a list of contiguous runs, one per target, cut into chunks that blocks take in turn; targets are served
 * from the next rank on, so that no rank is everybody's first. Meta data (ids and weights) are gathered on the way.
 */
#include "kernels/exchange.h"

#include "kernels/bulk.cuh"
#include "kernels/device.cuh"
#include <cuda_fp8.h>

namespace {
using namespace fr;

constexpr int THREADS = 512, IN_FLIGHT = 4;
constexpr int64_t CHUNK = THREADS * IN_FLIGHT * 16; /* bytes of rows that a block moves at a time */
constexpr unsigned ALONE = 16;           /* blocks that do not fill a link of two GPUs: 325 GB/s, as fast as each is */
constexpr unsigned UNPACK_BLOCKS = 1056; /* eight an SM */
constexpr int META_ROWS = 256;           /* rows whose ids and weights it moves at a time */

/* ---- memory order between GPUs -----------------------------------------------------------------------------------*/

__device__ __forceinline__ void raise(uint32_t *flag, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t look(const uint32_t *flag) {
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
    return v;
}

__device__ __forceinline__ int64_t clock_ns() {
    int64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

__device__ void fail(const fr_k_exchange &x, int code, int peer, int at, uint32_t number) {
    if (atomicExch(&x.block[x.me]->failed, 1u)) return; /* the first failure speaks */
    volatile fr_x_error *e = x.error;
    e->peer = peer;
    e->at = at;
    e->number = number;
    __threadfence_system();
    e->code = code;
    __threadfence_system();
}

/* One thread a peer: waits until peer's exchange `number` is here. */
__device__ void wait_for(const fr_k_exchange &x, int peer, int at, uint32_t number) {
    fr_x_block *b = x.block[x.me];
    const int64_t start = clock_ns();
    while (static_cast<int32_t>(look(&b->flag[peer]) - number) < 0) {
        if (*const_cast<volatile uint32_t *>(&b->failed)) return;
        if (clock_ns() - start > x.spin_ns) return fail(x, FR_X_LATE, peer, at, number);
    }
}

/* ---- pack -------------------------------------------------------------------------------------------------------*/

/* targets[t][c] = c (by_expert: the target of slot c), -1 = no copy. */
__global__ void targets_kernel(const int32_t *ids, int64_t T, int k, int E, int V, bool by_expert, int32_t *targets) {
    const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const int C = by_expert ? k : V;
    int32_t *out = targets + t * C;
    for (int c = 0; c < C && !by_expert; c++) out[c] = -1;
    for (int j = 0; j < k; j++) {
        const int e = ids[t * k + j], v = ((e + 1) * V - 1) / E; /* the last v whose first expert E * v / V is <= e */
        const bool known = e >= 0 && e < E;
        if (by_expert)
            out[j] = known ? v : -1;
        else if (known)
            out[v] = v;
    }
}

/* ---- rows in fp8 ------------------------------------------------------------------------------------------------*/

constexpr int GROUP = 128;        /* elements that share a scale: a warp's, four a lane */
constexpr float FP8_MAX = 448.0f; /* largest e4m3 */

/* A block a token: quantised once, written to each of its copies. */
__global__ void __launch_bounds__(256)
    quantise_kernel(const fr_bf16 *normed, const int32_t *row_of_copy, int C, int H, int64_t wire, char *send) {
    const int64_t t = blockIdx.x;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int g = static_cast<int>(threadIdx.x) / 32; g * GROUP < H; g += 8) {
        const int at = g * GROUP + lane * 4;
        float v[4] = {0, 0, 0, 0};
        if (at < H) {
            const uint2 raw = *reinterpret_cast<const uint2 *>(normed + t * H + at);
            const float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&raw.x));
            const float2 b = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&raw.y));
            v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
        }
        float top = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
        for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
        const float up = top > 0 ? FP8_MAX / top : 0, scale = top * (1 / FP8_MAX); /* the bits of kernels/fp8.cu */
        uint32_t packed = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            packed |= static_cast<uint32_t>(__nv_cvt_float_to_fp8(v[i] * up, __NV_SATFINITE, __NV_E4M3)) << (8 * i);
        for (int c = 0; c < C; c++) {
            const int64_t row = row_of_copy[t * C + c];
            if (row < 0) continue;
            if (at < H) *reinterpret_cast<uint32_t *>(send + row * wire + at) = packed;
            if (lane == 0) *reinterpret_cast<float *>(send + row * wire + H + 4 * g) = scale;
        }
    }
}

__global__ void __launch_bounds__(256)
    unpack_kernel(const char *arrived, const int32_t *landed, int H, int64_t wire, fr_bf16 *recv) {
    const int64_t quads = static_cast<int64_t>(*landed) * (H / 4);
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < quads;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
        const int64_t row = i / (H / 4);
        const int at = static_cast<int>(i % (H / 4)) * 4;
        const uint32_t packed = *reinterpret_cast<const uint32_t *>(arrived + row * wire + at);
        const float scale = *reinterpret_cast<const float *>(arrived + row * wire + H + 4 * (at / GROUP));
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const __half_raw h = __nv_cvt_fp8_to_halfraw(static_cast<__nv_fp8_storage_t>(packed >> (8 * j)), __NV_E4M3);
            v[j] = __half2float(__half(h)) * scale;
        }
        __nv_bfloat162 out[2] = {__floats2bfloat162_rn(v[0], v[1]), __floats2bfloat162_rn(v[2], v[3])};
        *reinterpret_cast<uint2 *>(recv + row * H + at) = *reinterpret_cast<const uint2 *>(out);
    }
}

/* ---- counts -----------------------------------------------------------------------------------------------------*/

__device__ __forceinline__ int32_t sum_over_sources(const fr_x_block *b, int parity, int sources, int v) {
    int32_t sum = 0;
    for (int s = 0; s < sources; s++) sum += *const_cast<const volatile int32_t *>(&b->counts[parity][s][v]);
    return sum;
}

__global__ void counts_kernel(const __grid_constant__ fr_k_exchange x, bool none, int64_t capacity, int32_t *landed,
                              int parity, uint32_t number, int phases) {
    fr_x_block *b = x.block[x.me];
    const int thread = static_cast<int>(threadIdx.x), V = x.ranks * x.parts;
    if (phases & FR_X_SEND) {
        for (int i = thread; i < x.ranks * V; i += blockDim.x) {
            const int v = i % V;
            x.block[i / V]->counts[parity][x.me][v] = none ? 0 : b->first[v + 1] - b->first[v];
        }
        __threadfence_system();
        __syncthreads();
        if (thread < x.ranks && thread != x.me) raise(&x.block[thread]->flag[x.me], number);
    }
    if (phases & FR_X_WAIT) {
        if (thread < x.ranks && thread != x.me) wait_for(x, thread, FR_X_COUNTS, number);
        __syncthreads();
    }
    if (!(phases & FR_X_PLACE)) return;
    __shared__ int full;
    if (thread == 0) full = 0;
    __syncthreads();
    if (thread < V && sum_over_sources(b, parity, x.ranks, thread) > capacity) full = 1;
    __syncthreads();
    if (full && thread == 0) fail(x, FR_X_FULL, x.me, FR_X_COUNTS, number);
    __syncthreads();
    const bool over = full || *const_cast<volatile uint32_t *>(&b->failed);
    for (int i = thread; i < V; i += blockDim.x) { /* a peer and a part of the experts */
        const int peer = i / x.parts, part = i % x.parts, mine = x.me * x.parts + part, theirs = peer * x.parts + part;
        fr_x_move out = {none ? 0 : b->first[theirs], 0, 0}, back = {0, 0, 0};
        out.to = sum_over_sources(b, parity, x.me, theirs);
        out.rows = b->counts[parity][x.me][theirs];
        back.from = sum_over_sources(b, parity, peer, mine);
        back.rows = *const_cast<volatile int32_t *>(&b->counts[parity][peer][mine]);
        for (int v = 0; v < mine; v++) back.to += *const_cast<volatile int32_t *>(&b->counts[parity][peer][v]);
        if (over) out.rows = back.rows = 0;
        b->dispatch[part * x.ranks + peer] = out;
        b->back[part * x.ranks + peer] = back;
        if (peer == 0) landed[part] = over ? 0 : sum_over_sources(b, parity, x.ranks, mine);
    }
}

/* ---- push -------------------------------------------------------------------------------------------------------*/

__device__ __forceinline__ void copy_chunk(char *to, const char *from, int64_t bytes) {
    const int64_t at = static_cast<int64_t>(threadIdx.x) * 16;
    uint4 v[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++)
        if (at + i * THREADS * 16 < bytes) v[i] = *reinterpret_cast<const uint4 *>(from + at + i * THREADS * 16);
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++)
        if (at + i * THREADS * 16 < bytes) *reinterpret_cast<uint4 *>(to + at + i * THREADS * 16) = v[i];
}

/* Ids and weights of send rows first .. first+rows-1 to the target's rows from `to` on. */
__device__ __forceinline__ void copy_meta(const fr_k_exchange &x, const fr_k_push_args &a, char *recv, int target,
                                          int first, int to, int rows, int thread, int threads) {
    const int S = x.by_expert ? 1 : x.top_k, V = x.ranks * x.parts;
    const int low = static_cast<int>(static_cast<int64_t>(x.experts) * target / V);
    const int high = static_cast<int>(static_cast<int64_t>(x.experts) * (target + 1) / V);
    int32_t *ids = reinterpret_cast<int32_t *>(recv + a.capacity * a.H * 2);
    float *weights = reinterpret_cast<float *>(ids + a.capacity * S);
    for (int i = thread; i < rows * S; i += threads) {
        const int64_t slot = static_cast<int64_t>(a.source_of_copy[first + i / S]) * S + i % S;
        const int64_t at = static_cast<int64_t>(to) * S + i;
        const int e = a.ids[slot];
        ids[at] = e >= low && e < high ? e : -1;
        weights[at] = a.weights[slot];
    }
}

/* Behind the last block's last write the flag is raised at all peers; then theirs are waited for. */
template <bool DISPATCH> __device__ void finish(const fr_k_exchange &x, uint32_t number, int phases) {
    fr_x_block *b = x.block[x.me];
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        last = atomicAdd(&b->done, 1u) == gridDim.x - 1;
        if (last) b->done = b->taken = 0;
        __threadfence_system();
    }
    __syncthreads();
    if (!last) return;
    const int peer = static_cast<int>(threadIdx.x);
    if (peer >= x.ranks || peer == x.me) return;
    raise(&x.block[peer]->flag[x.me], number);
    if (phases & FR_X_WAIT) wait_for(x, peer, DISPATCH ? FR_X_DISPATCH : FR_X_BACK, number);
}

/* DISPATCH: with meta data. */
template <bool DISPATCH>
__global__ void __launch_bounds__(THREADS)
    push_kernel(const __grid_constant__ fr_k_exchange x, const __grid_constant__ fr_k_push_args a, uint32_t number,
                int phases) {
    fr_x_block *b = x.block[x.me];
    const fr_x_move *moves = (DISPATCH ? b->dispatch : b->back) + a.part * x.ranks;
    const int64_t row = DISPATCH ? fr_k_exchange_row(&x, a.H) : a.H * 2;
    int64_t base = 0, item = blockIdx.x;
    for (int j = 1; j <= x.ranks; j++) {
        const int peer = (x.me + j) % x.ranks;
        const fr_x_move m = moves[peer];
        char *to = static_cast<char *>(a.to[peer]);
        const int64_t bytes = m.rows * row, chunks = (bytes + CHUNK - 1) / CHUNK;
        const int64_t metas = DISPATCH ? (m.rows + META_ROWS - 1) / META_ROWS : 0;
        for (; item < base + chunks + metas; item += gridDim.x) {
            const int64_t i = item - base;
            if (i < chunks) {
                const int64_t at = i * CHUNK;
                copy_chunk(to + m.to * row + at, reinterpret_cast<const char *>(a.rows) + m.from * row + at,
                           min(CHUNK, bytes - at));
            } else {
                const int first = static_cast<int>(i - chunks) * META_ROWS;
                copy_meta(x, a, static_cast<char *>(a.recv[peer]), peer * x.parts + a.part, m.from + first,
                          m.to + first, min(META_ROWS, m.rows - first), static_cast<int>(threadIdx.x), THREADS);
            }
        }
        base += chunks + metas;
    }
    finish<DISPATCH>(x, number, phases);
}

/* The same with the bulk copy engine of the SMs (bulk.cuh), meta data by the other threads of the blocks. */
template <bool DISPATCH>
__global__ void __launch_bounds__(BULK_THREADS)
    bulk_kernel(const __grid_constant__ fr_k_exchange x, const __grid_constant__ fr_k_push_args a, uint32_t number,
                int phases) {
    extern __shared__ __align__(128) char ring[];
    __shared__ __align__(8) uint64_t full[STAGES];
    __shared__ Run run[FR_X_RANKS + 1];
    __shared__ Chunk flying[STAGES];
    fr_x_block *b = x.block[x.me];
    const fr_x_move *moves = (DISPATCH ? b->dispatch : b->back) + a.part * x.ranks;
    const int64_t row = DISPATCH ? fr_k_exchange_row(&x, a.H) : a.H * 2;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; i++) mbar_init(smem_addr(full) + 8 * i, 1);
        fence_barrier_init();
        int64_t chunks = 0;
        for (int p = 0; p < x.ranks; p++) {
            const fr_x_move m = moves[p];
            run[p] = Run{reinterpret_cast<const char *>(a.rows) + m.from * row,
                         static_cast<char *>(a.to[p]) + m.to * row, m.rows * row, chunks};
            chunks += (m.rows * row + BULK - 1) / BULK;
        }
        run[x.ranks].start = chunks;
        if (gridDim.x > ALONE)
            take_chunks(run, chunks, &b->taken, smem_addr(ring), smem_addr(full), flying);
        else
            move_chunks(run, chunks, smem_addr(ring), smem_addr(full), flying);
    } else if (DISPATCH && threadIdx.x >= 32) {
        int64_t item = blockIdx.x, base = 0;
        for (int j = 1; j <= x.ranks; j++) {
            const int peer = (x.me + j) % x.ranks;
            const fr_x_move m = moves[peer];
            const int64_t metas = (m.rows + META_ROWS - 1) / META_ROWS;
            for (; item < base + metas; item += gridDim.x) {
                const int first = static_cast<int>(item - base) * META_ROWS;
                copy_meta(x, a, static_cast<char *>(a.recv[peer]), peer * x.parts + a.part, m.from + first,
                          m.to + first, min(META_ROWS, m.rows - first), static_cast<int>(threadIdx.x) - 32,
                          BULK_THREADS - 32);
            }
            base += metas;
        }
    }
    finish<DISPATCH>(x, number, phases);
}

__global__ void release_kernel(const __grid_constant__ fr_k_exchange x) {
    fail(x, FR_X_GIVEN_UP, x.me, 0, 0);
}

bool fits(const fr_k_exchange *x) {
    return x->ranks >= 1 && x->ranks <= FR_X_RANKS && x->me >= 0 && x->me < x->ranks && x->parts >= 1 &&
           x->ranks * x->parts <= FR_X_TARGETS && x->ranks * x->parts <= x->experts && x->experts <= FR_K_MAX_EXPERTS &&
           x->top_k >= 1 && x->top_k <= FR_K_MAX_TOPK;
}

cudaError_t push(const fr_k_exchange *x, const fr_k_push_args *a, uint32_t number, int phases, bool dispatch,
                 cudaStream_t stream) {
    if (!fits(x) || a->part < 0 || a->part >= x->parts || a->blocks < 1 || a->blocks > 1024 || a->H % 8)
        return cudaErrorInvalidValue;
    const unsigned grid = static_cast<unsigned>(a->blocks);
    if (a->bulk) {
        const auto kernel = dispatch ? bulk_kernel<true> : bulk_kernel<false>;
        const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, STAGES * BULK);
        if (e) return e;
        kernel<<<grid, BULK_THREADS, STAGES * BULK, stream>>>(*x, *a, number, phases);
        return cudaGetLastError();
    }
    if (dispatch)
        push_kernel<true><<<grid, THREADS, 0, stream>>>(*x, *a, number, phases);
    else
        push_kernel<false><<<grid, THREADS, 0, stream>>>(*x, *a, number, phases);
    return cudaGetLastError();
}
} // namespace

size_t fr_k_pack_workspace(const fr_k_exchange *x, int64_t T) {
    return fr_k_route_workspace(T * fr_k_exchange_copies(x), x->ranks * x->parts);
}

cudaError_t fr_k_pack(const fr_k_exchange *x, const int32_t *ids, const fr_bf16 *normed, int64_t T, int64_t H,
                      int32_t *row_of_copy, int32_t *source_of_copy, void *send, void *workspace, cudaStream_t stream) {
    const int C = fr_k_exchange_copies(x), V = x->ranks * x->parts;
    if (!fits(x) || H % (x->fp8 ? 16 : 8) || T < 0 || T * C > INT32_MAX) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    targets_kernel<<<static_cast<unsigned>((T + 255) / 256), 256, 0, stream>>>(ids, T, x->top_k, x->experts, V,
                                                                               x->by_expert, row_of_copy);
    /* A stable sort of the copies by target; each place is read and written by one thread, so it may be in place. */
    const cudaError_t e = fr_k_route(row_of_copy, x->by_expert ? T * C : T, x->by_expert ? 1 : C, 0, V,
                                     x->block[x->me]->first, row_of_copy, source_of_copy, workspace, stream);
    if (e || !x->fp8) return e ? e : fr_k_permute(normed, row_of_copy, static_cast<fr_bf16 *>(send), T, C, H, stream);
    quantise_kernel<<<static_cast<unsigned>(T), 256, 0, stream>>>(normed, row_of_copy, C, static_cast<int>(H),
                                                                  fr_k_exchange_row(x, H), static_cast<char *>(send));
    return cudaGetLastError();
}

cudaError_t fr_k_counts(const fr_k_exchange *x, int64_t T, int64_t capacity, int32_t *landed, uint32_t round,
                        uint32_t number, int phases, cudaStream_t stream) {
    if (!fits(x) || T < 0 || capacity < 0) return cudaErrorInvalidValue;
    counts_kernel<<<1, 256, 0, stream>>>(*x, T == 0, capacity, landed, static_cast<int>(round % 2), number, phases);
    return cudaGetLastError();
}

cudaError_t fr_k_dispatch(const fr_k_exchange *x, const fr_k_push_args *a, uint32_t number, int phases,
                          cudaStream_t stream) {
    return push(x, a, number, phases, true, stream);
}

cudaError_t fr_k_back(const fr_k_exchange *x, const fr_k_push_args *a, uint32_t number, int phases,
                      cudaStream_t stream) {
    return push(x, a, number, phases, false, stream);
}

cudaError_t fr_k_unpack(const fr_k_exchange *x, const void *arrived, const int32_t *landed, int64_t H, fr_bf16 *recv,
                        cudaStream_t stream) {
    if (!fits(x) || !x->fp8 || H % 8) return cudaErrorInvalidValue;
    unpack_kernel<<<UNPACK_BLOCKS, 256, 0, stream>>>(static_cast<const char *>(arrived), landed, static_cast<int>(H),
                                                     fr_k_exchange_row(x, H), recv);
    return cudaGetLastError();
}

cudaError_t fr_k_exchange_release(const fr_k_exchange *x, cudaStream_t stream) {
    release_kernel<<<1, 1, 0, stream>>>(*x);
    return cudaGetLastError();
}

/*
 * fp8: the memory-bound kernels that write block-scaled e4m3 (fp8.h): rows alone, fused behind a norm or a permutation,
 * and weights. Eight consecutive elements a thread, so sixteen lanes hold a group of 128 and agree on its scale.
 */
#include "kernels/device.cuh"
#include "kernels/fp8.h"
#include "kernels/ptx.cuh"
#include "kernels/rows.cuh"

namespace {
using namespace fr;

constexpr int BLOCK = 128;

struct Quantised {
    uint2 q;     /* eight e4m3 */
    float scale; /* of the group */
};

__device__ __forceinline__ float largest(const float (&x)[8]) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(x[i]));
    return most;
}

__device__ __forceinline__ uint2 to_e4m3(const float (&x)[8], float up) {
    uint2 q;
    q.x = pack_e4m3(x[0] * up, x[1] * up) | static_cast<uint32_t>(pack_e4m3(x[2] * up, x[3] * up)) << 16;
    q.y = pack_e4m3(x[4] * up, x[5] * up) | static_cast<uint32_t>(pack_e4m3(x[6] * up, x[7] * up)) << 16;
    return q;
}

/* The group of 128 that sixteen lanes hold (zeros past a row's end); every lane of the warp must come here. */
__device__ __forceinline__ Quantised quantise(const float (&x)[8]) {
    float most = largest(x);
#pragma unroll
    for (int d = 8; d; d >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    return {to_e4m3(x, most > 0 ? 448.0f / most : 0), most * (1.0f / 448.0f)};
}

/* Where a row goes: q at `row`, the scale of group g at scale[g * pitch]. */
struct Target {
    fr_e4m3 *q;
    float *scale;
    int64_t pitch;
    __device__ __forceinline__ void put(const Quantised &v, int at) const {
        *reinterpret_cast<uint2 *>(q + at) = v.q;
        if (at % BLOCK == 0) scale[at / BLOCK * pitch] = v.scale;
    }
};

template <int NV>
__global__ void __launch_bounds__(THREADS)
    rows_kernel(const fr_bf16 *x, fr_e4m3 *q, float *scale, int64_t pitch, int K) {
    const int64_t row = blockIdx.x;
    const Target to = {q + row * K, scale + row, pitch};
    float v[NV][8];
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        vec8 raw = {};
        if (at < K) raw = load8(x + row * K + at);
        to_float(raw, v[n]);
    }
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        const Quantised y = quantise(v[n]);
        if (at < K) to.put(y, at);
    }
}

/*
 * Sixteen elements a thread, so that each of the k copies of a row is written 16 bytes at a time; eight lanes hold a
 * group of 128. QUANTISED: rows come as an exchange sends them, e4m3 and behind them their scales, a row every
 * `stride` bytes.
 */
template <int NV, bool QUANTISED>
__global__ void __launch_bounds__(THREADS)
    permute_kernel(const void *rows, int64_t stride, const int32_t *row_of_slot, const int32_t *arrived, fr_e4m3 *q,
                   float *scale, int64_t pitch, int k, int H) {
    const int64_t t = blockIdx.x;
    if (arrived && t >= *arrived) return;
    const char *from = static_cast<const char *>(rows) + t * stride;
    uint4 v[NV];
    float scales[NV];
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 16;
        if constexpr (QUANTISED) {
            if (at < H) {
                v[n] = *reinterpret_cast<const uint4 *>(from + at);
                scales[n] = *reinterpret_cast<const float *>(from + H + at / BLOCK * 4);
            }
            continue;
        }
        vec8 raw[2] = {};
        float f[2][8];
        if (at < H)
            raw[0] = load8(reinterpret_cast<const fr_bf16 *>(from) + at),
            raw[1] = load8(reinterpret_cast<const fr_bf16 *>(from) + at + 8);
        to_float(raw[0], f[0]);
        to_float(raw[1], f[1]);
        float most = fmaxf(largest(f[0]), largest(f[1]));
#pragma unroll
        for (int d = 4; d; d >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
        const float up = most > 0 ? 448.0f / most : 0;
        const uint2 low = to_e4m3(f[0], up), high = to_e4m3(f[1], up);
        v[n] = make_uint4(low.x, low.y, high.x, high.y);
        scales[n] = most * (1.0f / 448.0f);
    }
    for (int j = 0; j < k; j++) {
        const int64_t row = row_of_slot[t * k + j];
        if (row < 0) continue;
#pragma unroll
        for (int n = 0; n < NV; n++) {
            const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 16;
            if (at >= H) continue;
            *reinterpret_cast<uint4 *>(q + row * H + at) = v[n];
            if (at % BLOCK == 0) scale[row + at / BLOCK * pitch] = scales[n];
        }
    }
}

/* The row that the block holds, normed, rounded to bf16 (to `out`, unless NULL) and quantised. */
template <int NV>
__device__ __forceinline__ void norm_quantise(const float (&v)[NV][8], const fr_bf16 *weight, fr_bf16 *out,
                                              const Target &to, int H, float eps, float *scratch) {
    const float factor = norm_factor<NV>(v, H, eps, scratch);
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        float y[8] = {};
        if (at < H) {
            const vec8 normed = norm_vector(v[n], weight + at, factor);
            if (out) store8(out + at, normed);
            to_float(normed, y); /* the bits that a bf16 model would go on with */
        }
        const Quantised z = quantise(y);
        if (at < H) to.put(z, at);
    }
}

template <int NV>
__global__ void __launch_bounds__(THREADS)
    norm_kernel(const fr_bf16 *x, fr_bf16 *residual, const fr_bf16 *weight, fr_bf16 *out, fr_e4m3 *q, float *scale,
                int64_t pitch, int H, float eps) {
    __shared__ float scratch[THREADS / 32];
    const int64_t row = blockIdx.x;
    float v[NV][8];
    load_row<NV, true>(x + row * H, residual ? residual + row * H : nullptr, v, H);
    norm_quantise<NV>(v, weight, out ? out + row * H : nullptr, {q + row * H, scale + row, pitch}, H, eps, scratch);
}

template <int NV>
__global__ void __launch_bounds__(THREADS)
    combine_kernel(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights, const fr_bf16 *residual,
                   fr_bf16 *out, const fr_bf16 *norm_weight, fr_e4m3 *q, float *scale, int64_t pitch, float eps, int k,
                   int H) {
    __shared__ float scratch[THREADS / 32];
    const int64_t t = blockIdx.x;
    float sum[NV][8];
    combine_row<NV>(y, row_of_slot, weights, residual, out, t, k, H, sum);
    norm_quantise<NV>(sum, norm_weight, nullptr, {q + t * H, scale + t, pitch}, H, eps, scratch);
}

/*
 * A block of threads takes a scale block of 128 x 128. Interleaved: scale block n of gate (half 0) or up (half 1) holds
 * the rows 16 * (i / 8) + 8 * half + i % 8, i from 128 n.
 */
__global__ void __launch_bounds__(THREADS)
    blocks_kernel(const fr_bf16 *w, fr_e4m3 *q, float *scale, int N, int K, int groups, bool interleaved) {
    __shared__ float most_of[THREADS / 32];
    const int g = static_cast<int>(blockIdx.x), expert = static_cast<int>(blockIdx.z);
    const int halves = interleaved ? 2 : 1, half = static_cast<int>(blockIdx.y) % halves;
    const int n = static_cast<int>(blockIdx.y) / halves, rows = N / halves;
    const int column = g * BLOCK + static_cast<int>(threadIdx.x) % 16 * 8, first = static_cast<int>(threadIdx.x) / 16;
    constexpr int STEP = THREADS / 16, TURNS = BLOCK / STEP;
    const int64_t base = static_cast<int64_t>(expert) * N;
    float v[TURNS][8], most = 0;
    int64_t at[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int r = n * BLOCK + first + i * STEP;
        vec8 raw = {};
        at[i] = -1;
        if (r < rows && column < K) {
            at[i] = (base + (interleaved ? r / 8 * 16 + half * 8 + r % 8 : r)) * K + column;
            raw = load8(w + at[i]);
        }
        to_float(raw, v[i]);
        most = fmaxf(most, largest(v[i]));
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    if (threadIdx.x % 32 == 0) most_of[threadIdx.x / 32] = most;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) most = fmaxf(most, most_of[i]);
    const float up = most > 0 ? 448.0f / most : 0;
#pragma unroll
    for (int i = 0; i < TURNS; i++)
        if (at[i] >= 0) *reinterpret_cast<uint2 *>(q + at[i]) = to_e4m3(v[i], up);
    const int blocks = (rows + BLOCK - 1) / BLOCK;
    if (threadIdx.x == 0)
        scale[(static_cast<int64_t>(expert * halves + half) * blocks + n) * groups + g] = most * (1.0f / 448.0f);
}

bool bad_pitch(int64_t pitch, int64_t rows) {
    return pitch < rows || pitch % 4;
}
} // namespace

cudaError_t fr_k_quantise_rows(const fr_bf16 *x, fr_e4m3 *q, float *scale, int64_t pitch, int64_t n, int64_t K,
                               cudaStream_t stream) {
    if (n < 0 || bad_width(K) || bad_pitch(pitch, n)) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    return with_vectors(K, [&](auto nv) {
        rows_kernel<decltype(nv)::value>
            <<<blocks_for(n, 1), THREADS, 0, stream>>>(x, q, scale, pitch, static_cast<int>(K));
        return cudaGetLastError();
    });
}

cudaError_t fr_k_quantise_blocks(const fr_bf16 *w, fr_e4m3 *q, float *scale, int32_t E, int64_t N, int64_t K,
                                 bool interleaved, cudaStream_t stream) {
    if (E < 0 || E > 65535 || N < 1 || N > INT32_MAX || K < 8 || K % 8 || K > INT32_MAX || (interleaved && N % 16))
        return cudaErrorInvalidValue;
    const int64_t halves = interleaved ? 2 : 1, blocks = (N / halves + BLOCK - 1) / BLOCK * halves;
    const int64_t groups = (K + BLOCK - 1) / BLOCK;
    if (blocks > 65535) return cudaErrorInvalidValue;
    if (!E) return cudaSuccess;
    blocks_kernel<<<dim3(static_cast<unsigned>(groups), static_cast<unsigned>(blocks), static_cast<unsigned>(E)),
                    THREADS, 0, stream>>>(w, q, scale, static_cast<int>(N), static_cast<int>(K),
                                          static_cast<int>(groups), interleaved);
    return cudaGetLastError();
}

template <bool QUANTISED>
static cudaError_t permute(const void *rows, int64_t stride, const int32_t *row_of_slot, const int32_t *arrived,
                           fr_e4m3 *q, float *scale, int64_t pitch, int64_t T, int32_t k, int64_t H,
                           cudaStream_t stream) {
    if (T < 0 || k < 1 || bad_width(H) || H % 16 || stride % 16 || pitch % 4) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    return with_vectors(H / 2, [&](auto nv) {
        permute_kernel<decltype(nv)::value, QUANTISED><<<blocks_for(T, 1), THREADS, 0, stream>>>(
            rows, stride, row_of_slot, arrived, q, scale, pitch, k, static_cast<int>(H));
        return cudaGetLastError();
    });
}

cudaError_t fr_k_permute_fp8(const fr_bf16 *x, const int32_t *row_of_slot, const int32_t *arrived, fr_e4m3 *q,
                             float *scale, int64_t pitch, int64_t T, int32_t k, int64_t H, cudaStream_t stream) {
    return permute<false>(x, 2 * H, row_of_slot, arrived, q, scale, pitch, T, k, H, stream);
}

cudaError_t fr_k_permute_quantised(const void *rows, int64_t stride, const int32_t *row_of_slot, const int32_t *arrived,
                                   fr_e4m3 *q, float *scale, int64_t pitch, int64_t T, int32_t k, int64_t H,
                                   cudaStream_t stream) {
    return permute<true>(rows, stride, row_of_slot, arrived, q, scale, pitch, T, k, H, stream);
}

cudaError_t fr_k_rmsnorm_fp8(const fr_bf16 *x, fr_bf16 *residual, const fr_bf16 *weight, fr_bf16 *out, fr_e4m3 *q,
                             float *scale, int64_t pitch, int64_t n, int64_t H, float eps, cudaStream_t stream) {
    if (n < 0 || bad_width(H) || bad_pitch(pitch, n)) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        norm_kernel<decltype(nv)::value><<<blocks_for(n, 1), THREADS, 0, stream>>>(x, residual, weight, out, q, scale,
                                                                                   pitch, static_cast<int>(H), eps);
        return cudaGetLastError();
    });
}

cudaError_t fr_k_combine_fp8(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights,
                             const fr_bf16 *residual, fr_bf16 *out, const fr_bf16 *norm_weight, fr_e4m3 *q,
                             float *scale, int64_t pitch, float eps, int64_t T, int32_t k, int64_t H,
                             cudaStream_t stream) {
    if (T < 0 || k < 1 || (!row_of_slot && k != 1) || bad_width(H) || bad_pitch(pitch, T) || !norm_weight)
        return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        combine_kernel<decltype(nv)::value><<<blocks_for(T, 1), THREADS, 0, stream>>>(
            y, row_of_slot, weights, residual, out, norm_weight, q, scale, pitch, eps, k, static_cast<int>(H));
        return cudaGetLastError();
    });
}

/* rows: what the memory-bound kernels share: a block a row, 16 bytes a thread and access, the row in registers between
 * its one read and one write. */
#ifndef FR_ROWS_CUH
#define FR_ROWS_CUH

#include "kernels/device.cuh"
#include <type_traits>

namespace fr {

constexpr int THREADS = 256;
constexpr int MAX_VECTORS = FR_K_MAX_HIDDEN / (THREADS * 8);

inline unsigned blocks_for(int64_t items, int64_t per_block) {
    return static_cast<unsigned>((items + per_block - 1) / per_block);
}

inline bool bad_width(int64_t H) {
    return H < 8 || H > FR_K_MAX_HIDDEN || H % 8;
}

/* Calls f<NV>() with the number of 16-byte vectors a thread holds for a row of H. */
template <typename F> cudaError_t with_vectors(int64_t H, F f) {
    switch ((H / 8 + THREADS - 1) / THREADS) {
    case 1:
        return f(std::integral_constant<int, 1>());
    case 2:
        return f(std::integral_constant<int, 2>());
    case 3:
        return f(std::integral_constant<int, 3>());
    case 4:
        return f(std::integral_constant<int, 4>());
    default:
        return f(std::integral_constant<int, MAX_VECTORS>());
    }
}

/* The block's row into registers, zeros past its end; with a residual it is added to that, rounded, and stored there.
 */
template <int NV, bool KEEP>
__device__ __forceinline__ void load_row(const fr_bf16 *x, fr_bf16 *residual, float (&v)[NV][8], int H) {
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        if (at < H) {
            to_float(load8(x + at), v[n]);
            if (residual) {
                float r[8];
                to_float(load8_plain(residual + at), r);
#pragma unroll
                for (int j = 0; j < 8; j++) v[n][j] = round_bf16(v[n][j] + r[j]);
                if constexpr (KEEP) store8(residual + at, to_bf16(v[n]));
            }
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) v[n][j] = 0;
        }
    }
}

/* 1 / sqrt(mean of squares + eps) of the row that the block holds. */
template <int NV>
__device__ __forceinline__ float norm_factor(const float (&x)[NV][8], int H, float eps, float *scratch) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < NV; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[n][i] * x[n][i];
    return rsqrtf(block_sum<THREADS>(sum, scratch) / static_cast<float>(H) + eps);
}

/* x * factor * weight, rounded once. */
__device__ __forceinline__ vec8 norm_vector(const float (&x)[8], const fr_bf16 *weight, float factor) {
    float w[8], y[8];
    to_float(load8(weight), w);
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = x[i] * factor * w[i];
    return to_bf16(y);
}

/* out[t,:] = residual[t,:] + the weighted sum of token t's rows of y, in slot order (fr_k_reduce); `sum` takes what was
 * stored, rounded. */
template <int NV>
__device__ __forceinline__ void combine_row(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights,
                                            const fr_bf16 *residual, fr_bf16 *out, int64_t t, int k, int H,
                                            float (&sum)[NV][8]) {
#pragma unroll
    for (int n = 0; n < NV; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) sum[n][i] = 0;
    int j = 0;
    constexpr int AHEAD = NV <= 2 ? 4 : 2; /* rows in flight */
    for (; j < k; j += AHEAD) {
        vec8 v[AHEAD][NV];
        float w[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int64_t slot = t * k + j + a, row = j + a >= k ? -1 : row_of_slot ? row_of_slot[slot] : slot;
            w[a] = row < 0 ? 0 : weights ? weights[slot] : 1;
#pragma unroll
            for (int n = 0; n < NV; n++) {
                const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
                v[a][n] = vec8{};
                if (row >= 0 && at < H) v[a][n] = load8(y + row * H + at);
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
#pragma unroll
            for (int n = 0; n < NV; n++) {
                float f[8];
                to_float(v[a][n], f);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[n][i] = fmaf(w[a], f[i], sum[n][i]);
            }
    }
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        if (at >= H) break;
        if (residual) {
            float r[8];
            to_float(load8_plain(residual + t * H + at), r);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[n][i] += r[i];
        }
        const vec8 rounded = to_bf16(sum[n]);
        store8(out + t * H + at, rounded);
        to_float(rounded, sum[n]);
    }
}

} // namespace fr
#endif

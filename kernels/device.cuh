/* device: small helpers shared by the kernels: bf16 vectors of 16 bytes, warp and block sums. */
#ifndef FR_DEVICE_CUH
#define FR_DEVICE_CUH

#include "kernels/kernels.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace fr {

/* Eight bf16 in a 16-byte register group. */
struct alignas(16) vec8 {
    __nv_bfloat162 v[4];
};

__device__ __forceinline__ vec8 load8(const fr_bf16 *p) {
    vec8 r;
    *reinterpret_cast<uint4 *>(&r) = __ldg(reinterpret_cast<const uint4 *>(p));
    return r;
}

/* A load that may see data written by the same kernel (in-place updates). */
__device__ __forceinline__ vec8 load8_plain(const fr_bf16 *p) {
    vec8 r;
    *reinterpret_cast<uint4 *>(&r) = *reinterpret_cast<const uint4 *>(p);
    return r;
}

__device__ __forceinline__ void store8(fr_bf16 *p, const vec8 &r) {
    *reinterpret_cast<uint4 *>(p) = *reinterpret_cast<const uint4 *>(&r);
}

__device__ __forceinline__ void to_float(const vec8 &r, float (&f)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 p = __bfloat1622float2(r.v[i]);
        f[2 * i] = p.x, f[2 * i + 1] = p.y;
    }
}

__device__ __forceinline__ vec8 to_bf16(const float (&f)[8]) {
    vec8 r;
#pragma unroll
    for (int i = 0; i < 4; i++) r.v[i] = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
    return r;
}

__device__ __forceinline__ float round_bf16(float f) {
    return __bfloat162float(__float2bfloat16_rn(f));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
    return v;
}

/* Sum over the block, the same bits in every thread; a fixed tree, so the same bits in every run. */
template <int THREADS> __device__ __forceinline__ float block_sum(float v, float *scratch) {
    v = warp_sum(v);
    if constexpr (THREADS > 32) {
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
        __syncthreads();
        v = 0;
#pragma unroll
        for (int w = 0; w < THREADS / 32; w++) v += scratch[w];
    }
    return v;
}

/* silu(g) * u in fp32. */
__device__ __forceinline__ float silu_mul(float g, float u) {
    return __fdividef(g, 1.0f + __expf(-g)) * u;
}

} // namespace fr
#endif

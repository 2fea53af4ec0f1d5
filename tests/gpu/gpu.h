/* gpu: what the GPU test and the micro-benchmark share: checked calls, device arrays, bf16 on the host, random numbers.
 */
#ifndef FR_TEST_GPU_H
#define FR_TEST_GPU_H

extern "C" {
#include "engine/base.h"
}
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/grouped_loop.h"
#include "kernels/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) {                                                                                       \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));                              \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define FR(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != FR_OK) {                                                                                         \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, err.text);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

inline float bf_to_float(fr_bf16 b) {
    const uint32_t u = static_cast<uint32_t>(b) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

inline fr_bf16 float_to_bf(float f) { /* to nearest, ties to even */
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<fr_bf16>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline double round_bf(double x) {
    return bf_to_float(float_to_bf(static_cast<float>(x)));
}

/* splitmix64 */
struct Random {
    uint64_t s;
    explicit Random(uint64_t seed) : s(seed) {}
    uint64_t next() {
        uint64_t z = s += 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
    double normal() { return std::sqrt(-2 * std::log(uniform() + 0x1p-54)) * std::cos(6.283185307179586 * uniform()); }
    int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
};

/* An array on the device, with its host copy where wanted; poisoned with 0xff bytes (NaN) when made. */
template <typename T> struct Dev {
    T *p = nullptr;
    size_t n = 0;
    explicit Dev(size_t count) : n(count) {
        CUDA(cudaMalloc(reinterpret_cast<void **>(&p), (n + 64) * sizeof(T)));
        poison();
    }
    explicit Dev(const std::vector<T> &v) : Dev(v.size()) {
        CUDA(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice));
    }
    Dev(const Dev &) = delete;
    Dev &operator=(const Dev &) = delete;
    ~Dev() { cudaFree(p); }
    void poison() { CUDA(cudaMemset(p, 0xff, (n + 64) * sizeof(T))); }
    std::vector<T> get(size_t extra = 0) const {
        std::vector<T> v(n + extra);
        CUDA(cudaMemcpy(v.data(), p, v.size() * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
};

inline void parallel(int64_t n, const std::function<void(int64_t)> &f) {
    const unsigned threads = std::max(1u, std::min(16u, std::thread::hardware_concurrency()));
    std::vector<std::thread> pool;
    for (unsigned t = 0; t < threads; t++)
        pool.emplace_back([=, &f] {
            for (int64_t i = t; i < n; i += threads) f(i);
        });
    for (auto &t : pool) t.join();
}

#endif

/* check: how the GPU tests compare: random inputs, poisoned and guarded outputs, two runs, tolerances. */
#ifndef FR_TEST_CHECK_H
#define FR_TEST_CHECK_H

#include "tests/gpu/gpu.h"
#include <string>

const double U = 0x1p-8;  /* half a unit in the last place of bf16, relative */
const double A = 0x1p-18; /* of the sum of absolute products: fp32 sums of the tensor cores (test_kernels.cu) */
inline int passed, failed;

inline void verdict(bool ok, const char *name, const char *detail) {
    (ok ? passed : failed)++;
    if (!ok) printf("FAIL %-60s %s\n", name, detail);
}

inline std::vector<fr_bf16> random_bf(Random &r, size_t n, double scale = 1) {
    std::vector<fr_bf16> v(n);
    for (auto &x : v) { /* the sum of four uniform 16-bit fields, deviation 1: near normal, and quick */
        const uint64_t z = r.next();
        const double sum = static_cast<double>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
        x = float_to_bf(static_cast<float>(scale * (sum * 0x1p-16 - 2) * 1.7320508));
    }
    return v;
}

/* |got - want| <= tolerance of each element; NaN never passes. */
inline void compare(const char *name, const std::vector<fr_bf16> &got, const std::vector<double> &want,
                    const std::vector<double> &tolerance) {
    size_t bad = 0, first = 0;
    double worst = 0;
    for (size_t i = 0; i < want.size(); i++) {
        const double d = std::fabs(bf_to_float(got[i]) - want[i]);
        if (!(d <= tolerance[i])) {
            if (!bad++) first = i;
        } else if (tolerance[i] > 0) {
            worst = std::max(worst, d / tolerance[i]);
        }
    }
    char text[256];
    snprintf(text, sizeof text, "%zu of %zu outside, first at %zu: got %g want %g tolerance %g", bad, want.size(),
             first, want.empty() ? 0 : static_cast<double>(bf_to_float(got[first])), want.empty() ? 0 : want[first],
             want.empty() ? 0 : tolerance[first]);
    verdict(!bad, name, text);
    if (!bad) printf("ok   %-60s worst %.2f of the tolerance\n", name, worst);
}

template <typename T> inline void equal(const char *name, const std::vector<T> &a, const std::vector<T> &b) {
    size_t i = 0;
    const size_t n = std::min(a.size(), b.size());
    while (i < n && !memcmp(&a[i], &b[i], sizeof(T))) i++;
    char text[128];
    snprintf(text, sizeof text, "differ at %zu of %zu/%zu", i, a.size(), b.size());
    verdict(a.size() == b.size() && i == n, name, text);
}

/* Runs twice into poisoned `out`, checks equal bits and the guard behind the end, and returns the result. */
template <typename T, typename F> inline std::vector<T> twice(const char *name, Dev<T> &out, F run) {
    std::vector<T> first;
    for (int i = 0; i < 2; i++) {
        out.poison();
        CUDA(run());
        CUDA(cudaDeviceSynchronize());
        auto v = out.get(64);
        bool guard = true;
        for (size_t j = out.n; j < v.size(); j++)
            for (size_t b = 0; b < sizeof(T); b++) guard = guard && reinterpret_cast<uint8_t *>(&v[j])[b] == 0xff;
        verdict(guard, name, "wrote behind the end");
        v.resize(out.n);
        if (i)
            equal((std::string(name) + ", two runs").c_str(), first, v);
        else
            first = v;
    }
    return first;
}

inline std::vector<double> relative(const std::vector<double> &want, double factor, double floor = 1e-30) {
    std::vector<double> t(want.size());
    for (size_t i = 0; i < t.size(); i++) t[i] = factor * std::fabs(want[i]) + floor;
    return t;
}

inline double silu(double x) {
    return x / (1 + std::exp(-x));
}

#endif

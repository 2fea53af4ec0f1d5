/*
 * test_fp8: quantising and the products of block-scaled e4m3 against references in double on the CPU.
 *
 * Quantising is compared bit by bit: both sides divide and round in fp32. Products are compared with the exact sum of
 * the dequantised operands; beside bf16's rounding (U) and the sums in fp32 (A) the tensor cores align the 32 products
 * of a step and the sum so far to the largest of them and keep 13 bits behind its point (arXiv 2412.19437, 3.3.2:
 * "14 bits"): each of 33 terms loses at most 2^-13 of the largest, in random directions; F = 2^-10 of the sum of
 * absolute products has room for that. A quantised output may be off by half a unit of e4m3, 2^-4 relative or 2^-10 of
 * its scale, beside what the product and the scale are off by.
 */
#include "kernels/fp8.h"
#include "tests/gpu/check.h"

static const double F = 0x1p-10;

static double e4m3_to_double(uint8_t q) {
    const int e = q >> 3 & 15, m = q & 7;
    const double v = e ? std::ldexp(1 + m / 8.0, e - 7) : std::ldexp(m / 8.0, -6);
    return (q & 0x7f) == 0x7f ? NAN : q & 0x80 ? -v : v;
}

/* To nearest, ties to even, beyond 448 to 448. */
static uint8_t float_to_e4m3(float f) {
    const uint8_t sign = std::signbit(f) ? 0x80 : 0;
    const double v = std::fabs(static_cast<double>(f));
    if (v >= 448) return sign | 0x7e;
    int e = 0;
    std::frexp(v, &e); /* v = 0.5..1 * 2^e */
    const double unit = std::ldexp(1, std::max(e - 1, -6) - 3);
    const double steps = std::nearbyint(v / unit); /* the division is exact; ties to even by default */
    const double rounded = steps * unit;
    if (rounded == 0) return sign;
    std::frexp(rounded, &e);
    if (e - 1 < -6) return static_cast<uint8_t>(sign | static_cast<int>(rounded / 0x1p-9));
    return static_cast<uint8_t>(sign | (e - 1 + 7) << 3 | (static_cast<int>(std::ldexp(rounded, 4 - e)) & 7));
}

struct Rows {
    std::vector<fr_e4m3> q;
    std::vector<float> scale; /* [G, pitch] */
    int64_t pitch;
    int K;
    double at(int64_t row, int k) const {
        return e4m3_to_double(q[static_cast<size_t>(row * K + k)]) * scale[static_cast<size_t>(k / 128 * pitch + row)];
    }
};

/* The rule of fp8.h for a group. */
static float quantise_group(const float *x, int n, fr_e4m3 *q, int step = 1) {
    float most = 0;
    for (int i = 0; i < n; i++) most = std::fmax(most, std::fabs(x[i]));
    const float up = most > 0 ? 448.0f / most : 0;
    for (int i = 0; i < n; i++) q[i * step] = float_to_e4m3(x[i] * up);
    return most * (1.0f / 448.0f);
}

static Rows quantise_rows(const std::vector<fr_bf16> &x, int64_t n, int K, int64_t pitch) {
    Rows r = {std::vector<fr_e4m3>(static_cast<size_t>(n * K)),
              std::vector<float>(static_cast<size_t>((K + 127) / 128 * pitch)), pitch, K};
    parallel(n, [&](int64_t i) {
        for (int k = 0; k < K; k += 128) {
            float f[128];
            const int m = std::min(128, K - k);
            for (int j = 0; j < m; j++) f[j] = bf_to_float(x[static_cast<size_t>(i * K + k + j)]);
            r.scale[static_cast<size_t>(k / 128 * pitch + i)] =
                quantise_group(f, m, &r.q[static_cast<size_t>(i * K + k)]);
        }
    });
    return r;
}

static int64_t pitch_of(int64_t rows) {
    return (rows + 3) / 4 * 4;
}

/* Scales of the rows that exist: the places between them and the pitch are nobody's. */
static std::vector<float> live(const std::vector<float> &scale, int64_t pitch, int64_t rows) {
    std::vector<float> v;
    for (size_t g = 0; g * static_cast<size_t>(pitch) < scale.size(); g++)
        v.insert(v.end(), scale.begin() + static_cast<int64_t>(g) * pitch,
                 scale.begin() + static_cast<int64_t>(g) * pitch + rows);
    return v;
}

static std::vector<fr_bf16> rows_with_edges(Random &r, int64_t n, int K) {
    auto x = random_bf(r, static_cast<size_t>(n * K), 3);
    for (int k = 0; k < K; k++) { /* a row of zeros, a tiny one, one with an outlier, one of powers of two */
        x[static_cast<size_t>(k)] = 0;
        if (n > 1) x[static_cast<size_t>(K + k)] = float_to_bf(1e-30f * static_cast<float>(k % 7));
        if (n > 3) x[static_cast<size_t>(3 * K + k)] = float_to_bf(std::ldexp(1.0f, -(k % 20)));
    }
    if (n > 2) x[static_cast<size_t>(2 * K + 5)] = float_to_bf(30000);
    return x;
}

static void test_quantise() {
    for (int K : {8, 128, 1000, 1536, 4096, 8192, 16384}) {
        const int64_t n = 21, pitch = pitch_of(n) + 4;
        Random r(static_cast<uint64_t>(K));
        char name[64];
        snprintf(name, sizeof name, "quantise rows K=%d", K);
        const auto x = rows_with_edges(r, n, K);
        const Rows want = quantise_rows(x, n, K, pitch);
        Dev<fr_bf16> dx(x);
        Dev<fr_e4m3> q(x.size());
        Dev<float> scale(want.scale.size());
        auto got = twice(name, q, [&] { return fr_k_quantise_rows(dx.p, q.p, scale.p, pitch, n, K, 0); });
        equal(name, got, want.q);
        equal((std::string(name) + ", scales").c_str(), live(scale.get(), pitch, n), live(want.scale, pitch, n));
    }
}

static void test_blocks() {
    struct {
        int E, N, K;
        bool interleaved;
    } cases[] = {{1, 128, 128, false}, {2, 200, 264, false}, {3, 256, 512, true}, {2, 400, 136, true}};
    for (auto &c : cases) {
        Random r(static_cast<uint64_t>(c.N + c.K));
        char name[80];
        snprintf(name, sizeof name, "quantise blocks E=%d N=%d K=%d interleaved=%d", c.E, c.N, c.K, c.interleaved);
        auto w = random_bf(r, static_cast<size_t>(c.E) * c.N * c.K, 0.02);
        const int halves = c.interleaved ? 2 : 1, rows = c.N / halves, blocks = (rows + 127) / 128,
                  groups = (c.K + 127) / 128;
        std::vector<fr_e4m3> want(w.size());
        std::vector<float> scales(static_cast<size_t>(c.E) * halves * blocks * groups);
        for (int e = 0; e < c.E; e++)
            for (int h = 0; h < halves; h++)
                for (int n = 0; n < blocks; n++)
                    for (int g = 0; g < groups; g++) {
                        std::vector<size_t> at;
                        std::vector<float> x;
                        for (int i = n * 128; i < std::min(rows, n * 128 + 128); i++)
                            for (int k = g * 128; k < std::min(c.K, g * 128 + 128); k++) {
                                const int row = c.interleaved ? i / 8 * 16 + 8 * h + i % 8 : i;
                                at.push_back((static_cast<size_t>(e) * c.N + row) * c.K + k);
                                x.push_back(bf_to_float(w[at.back()]));
                            }
                        std::vector<fr_e4m3> q(x.size());
                        scales[((static_cast<size_t>(e) * halves + h) * blocks + n) * groups + g] =
                            quantise_group(x.data(), static_cast<int>(x.size()), q.data());
                        for (size_t i = 0; i < at.size(); i++) want[at[i]] = q[i];
                    }
        Dev<fr_bf16> dw(w);
        Dev<fr_e4m3> q(w.size());
        Dev<float> scale(scales.size());
        auto got =
            twice(name, q, [&] { return fr_k_quantise_blocks(dw.p, q.p, scale.p, c.E, c.N, c.K, c.interleaved, 0); });
        equal(name, got, want);
        equal((std::string(name) + ", scales").c_str(), scale.get(), scales);
    }
}

/* Fused: the bits of the parts one after the other. */
static void test_fused() {
    for (int H : {128, 1008, 2048, 4096, 7168}) {
        const int T = 23, k = 3;
        const int64_t pitch = pitch_of(T), rows = T * k, row_pitch = pitch_of(rows);
        const size_t G = static_cast<size_t>((H + 127) / 128);
        Random r(static_cast<uint64_t>(H));
        char name[80];
        const auto x = rows_with_edges(r, T, H), res = random_bf(r, x.size()), w = random_bf(r, static_cast<size_t>(H));
        Dev<fr_bf16> dx(x), dw(w), out(x.size()), out2(x.size()), stream1(res), stream2(res);
        Dev<fr_e4m3> q(x.size()), q2(x.size()), permuted(static_cast<size_t>(rows) * H);
        Dev<float> scale(G * pitch), scale2(G * pitch), permuted_scale(G * row_pitch);
        for (int add = 0; add < 2; add++) {
            snprintf(name, sizeof name, "rmsnorm quantised H=%d add=%d", H, add);
            if (add)
                CUDA(fr_k_add_rmsnorm(stream1.p, dx.p, dw.p, out.p, T, H, 1e-6f, 0));
            else
                CUDA(fr_k_rmsnorm(dx.p, dw.p, nullptr, out.p, T, H, 1e-6f, 0));
            CUDA(fr_k_quantise_rows(out.p, q.p, scale.p, pitch, T, H, 0));
            CUDA(
                fr_k_rmsnorm_fp8(dx.p, add ? stream2.p : nullptr, dw.p, out2.p, q2.p, scale2.p, pitch, T, H, 1e-6f, 0));
            CUDA(cudaDeviceSynchronize());
            equal(name, out2.get(), out.get());
            equal((std::string(name) + ", e4m3").c_str(), q2.get(), q.get());
            equal((std::string(name) + ", scales").c_str(), live(scale2.get(), pitch, T), live(scale.get(), pitch, T));
            equal((std::string(name) + ", stream").c_str(), stream2.get(), stream1.get());
            if (add) continue;
            q2.poison();
            CUDA(fr_k_rmsnorm_fp8(dx.p, nullptr, dw.p, nullptr, q2.p, scale2.p, pitch, T, H, 1e-6f, 0));
            CUDA(cudaDeviceSynchronize());
            equal((std::string(name) + ", e4m3 only").c_str(), q2.get(), q.get());
        }
        std::vector<int32_t> row_of_slot(static_cast<size_t>(rows));
        for (int64_t i = 0; i < rows; i++) row_of_slot[static_cast<size_t>(i)] = static_cast<int32_t>(i);
        for (int64_t i = rows - 1; i > 0; i--)
            std::swap(row_of_slot[static_cast<size_t>(i)],
                      row_of_slot[static_cast<size_t>(r.below(static_cast<int>(i) + 1))]);
        row_of_slot[7] = -1;
        Dev<int32_t> places(row_of_slot);
        snprintf(name, sizeof name, "permute quantised H=%d", H);
        auto got = twice(name, permuted, [&] {
            return fr_k_permute_fp8(dx.p, places.p, nullptr, permuted.p, permuted_scale.p, row_pitch, T, k, H, 0);
        });
        const Rows want = quantise_rows(x, T, H, pitch);
        const auto scales = permuted_scale.get();
        bool same = true;
        for (size_t s = 0; s < row_of_slot.size(); s++) {
            const int64_t to = row_of_slot[s], t = static_cast<int64_t>(s) / k;
            if (to < 0) continue;
            same = same && !memcmp(&got[static_cast<size_t>(to * H)], &want.q[static_cast<size_t>(t * H)],
                                   static_cast<size_t>(H));
            for (size_t g = 0; g < G; g++)
                same = same && scales[g * static_cast<size_t>(row_pitch) + static_cast<size_t>(to)] ==
                                   want.scale[g * static_cast<size_t>(pitch) + static_cast<size_t>(t)];
        }
        verdict(same, name, "rows differ from those quantised first");

        snprintf(name, sizeof name, "permute of quantised rows H=%d", H);
        const size_t stride = (static_cast<size_t>(H) + 4 * G + 15) / 16 * 16; /* as an exchange sends them */
        std::vector<uint8_t> wire(T * stride, 0xff);
        for (size_t t = 0; t < static_cast<size_t>(T); t++) {
            memcpy(&wire[t * stride], &want.q[t * static_cast<size_t>(H)], static_cast<size_t>(H));
            for (size_t g = 0; g < G; g++)
                memcpy(&wire[t * stride + static_cast<size_t>(H) + 4 * g],
                       &want.scale[g * static_cast<size_t>(pitch) + t], 4);
        }
        Dev<uint8_t> dwire(wire);
        permuted_scale.poison();
        equal(name,
              twice(name, permuted,
                    [&] {
                        return fr_k_permute_quantised(dwire.p, static_cast<int64_t>(stride), places.p, nullptr,
                                                      permuted.p, permuted_scale.p, row_pitch, T, k, H, 0);
                    }),
              got);
        const auto again = permuted_scale.get();
        verdict(!memcmp(again.data(), scales.data(), scales.size() * sizeof(float)), name, "scales differ");

        snprintf(name, sizeof name, "combine and norm quantised H=%d", H);
        const auto y = random_bf(r, static_cast<size_t>(rows) * H);
        Dev<fr_bf16> dy(y), sum1(x.size()), sum2(x.size());
        Dev<float> shares(std::vector<float>(static_cast<size_t>(rows), 0.3f));
        CUDA(fr_k_combine(dy.p, places.p, shares.p, dx.p, sum1.p, dw.p, out.p, 1e-6f, T, k, H, 0));
        CUDA(fr_k_quantise_rows(out.p, q.p, scale.p, pitch, T, H, 0));
        q2.poison();
        CUDA(fr_k_combine_fp8(dy.p, places.p, shares.p, dx.p, sum2.p, dw.p, q2.p, scale2.p, pitch, 1e-6f, T, k, H, 0));
        CUDA(cudaDeviceSynchronize());
        equal(name, sum2.get(), sum1.get());
        equal((std::string(name) + ", e4m3").c_str(), q2.get(), q.get());
        equal((std::string(name) + ", scales").c_str(), live(scale2.get(), pitch, T), live(scale.get(), pitch, T));
    }
}

/* ---- products ---- */
static const char *variant_name[] = {"single", "cluster", "single skew", "cluster skew"};

struct Case {
    const char *name;
    int N, K;
    std::vector<int> rows;
    bool swiglu;
};

struct Sum {
    double sum, size;
};

struct Weights {
    std::vector<fr_e4m3> q;
    std::vector<float> scale;
    int N, K;
    bool interleaved;
    double scale_of(int e, int n, int k) const {
        const int halves = interleaved ? 2 : 1, blocks = (N / halves + 127) / 128, groups = (K + 127) / 128;
        const int half = interleaved ? n / 8 % 2 : 0, i = interleaved ? n / 16 * 8 + n % 8 : n;
        return scale[((static_cast<size_t>(e) * halves + half) * blocks + i / 128) * groups + k / 128];
    }
    Sum times(const Rows &a, int64_t row, int e, int n) const {
        Sum s = {0, 0};
        const fr_e4m3 *b = &q[(static_cast<size_t>(e) * N + n) * K];
        for (int k = 0; k < K; k++) {
            const double p = a.at(row, k) * e4m3_to_double(b[k]) * scale_of(e, n, k);
            s.sum += p, s.size += std::fabs(p);
        }
        return s;
    }
};

static void test_case(const Case &c) {
    const int E = static_cast<int>(c.rows.size()), spare = 9;
    std::vector<int32_t> offsets(static_cast<size_t>(E) + 1, 0);
    for (int e = 0; e < E; e++)
        offsets[static_cast<size_t>(e) + 1] = offsets[static_cast<size_t>(e)] + c.rows[static_cast<size_t>(e)];
    const int R = offsets.back(), width = c.swiglu ? c.N / 2 : c.N;
    const int64_t pitch = pitch_of(R + spare);
    Random r(static_cast<uint64_t>(R * 7 + c.N + c.K));
    auto x = random_bf(r, static_cast<size_t>(R + spare) * c.K);
    for (int i = 0; i < R + spare; i++) /* rows of unlike size: a scale of the wrong row shows */
        for (int k = 0; k < c.K; k++) {
            auto &v = x[static_cast<size_t>(i) * c.K + k];
            v = float_to_bf(bf_to_float(v) * static_cast<float>(1 + i % 5 + k / 128 % 3));
        }
    auto w = random_bf(r, static_cast<size_t>(E) * c.N * c.K, 1 / std::sqrt(c.K));
    for (size_t i = 0; i < w.size(); i++) {
        const size_t row = i / static_cast<size_t>(c.K), k = i % static_cast<size_t>(c.K);
        w[i] = float_to_bf(bf_to_float(w[i]) * static_cast<float>(1 + row / 64 % 3 + k / 128 % 2 + row / 8 % 2));
    }
    const Rows a = quantise_rows(x, R + spare, c.K, pitch);
    Weights b = {{}, {}, c.N, c.K, c.swiglu};
    Dev<fr_bf16> dw(w);
    Dev<fr_e4m3> da(a.q), db(w.size());
    const int halves = c.swiglu ? 2 : 1;
    Dev<float> as(a.scale), bs(static_cast<size_t>(E) * halves * ((c.N / halves + 127) / 128) * ((c.K + 127) / 128));
    CUDA(fr_k_quantise_blocks(dw.p, db.p, bs.p, E, c.N, c.K, c.swiglu, 0));
    b.q = db.get(), b.scale = bs.get();
    Dev<int32_t> doff(offsets);
    Dev<uint32_t> counter(std::vector<uint32_t>{0});

    std::vector<std::pair<int, int>> at;
    const int64_t total = static_cast<int64_t>(R) * width, most = 30000000 / c.K;
    for (int64_t i = 0; i < std::min(total, most); i++) {
        const int64_t j = total <= most ? i : static_cast<int64_t>(r.next() % static_cast<uint64_t>(total));
        at.emplace_back(static_cast<int>(j / width), static_cast<int>(j % width));
    }
    std::vector<double> want(at.size()), tol(at.size());
    parallel(static_cast<int64_t>(at.size()), [&](int64_t i) {
        const int row = at[static_cast<size_t>(i)].first, n = at[static_cast<size_t>(i)].second;
        const int e = static_cast<int>(std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin()) - 1;
        double &value = want[static_cast<size_t>(i)], &t = tol[static_cast<size_t>(i)];
        if (!c.swiglu) {
            const Sum d = b.times(a, row, e, n);
            value = d.sum, t = (F + A) * d.size;
            return;
        }
        const Sum g = b.times(a, row, e, n / 8 * 16 + n % 8), u = b.times(a, row, e, n / 8 * 16 + n % 8 + 8);
        value = silu(g.sum) * u.sum;
        t = 0x1p-18 * std::fabs(value) +
            (F + A) * (1.1 * g.size * std::fabs(u.sum) + u.size * std::fabs(silu(g.sum)) + F * g.size * u.size);
    });
    std::vector<double> tol_bf(tol);
    for (size_t i = 0; i < tol.size(); i++) tol_bf[i] += U * std::fabs(want[i]);

    fr_k_fp8_args g = {};
    g.a = da.p, g.b = db.p, g.a_scale = as.p, g.b_scale = bs.p, g.a_pitch = pitch, g.offsets = doff.p,
    g.counter = counter.p, g.rows = R + spare, g.E = E, g.N = c.N, g.K = c.K, g.swiglu = c.swiglu;
    const bool quantised = c.swiglu && c.N % 256 == 0;
    Dev<fr_bf16> out(static_cast<size_t>(R + spare) * width);
    Dev<fr_e4m3> q(static_cast<size_t>(R + spare) * width);
    Dev<float> qs(static_cast<size_t>((width + 127) / 128) * pitch);
    std::vector<fr_bf16> reference;
    std::vector<fr_e4m3> q_reference;
    for (int v = 0; v < FR_K_GROUPED_VARIANTS; v++) {
        char name[128];
        snprintf(name, sizeof name, "fp8 %s N=%d K=%d swiglu=%d %s", c.name, c.N, c.K, c.swiglu, variant_name[v]);
        g.c = out.p, g.q = nullptr, g.q_scale = nullptr;
        auto got = twice(name, out, [&] { return fr_k_grouped_fp8_variant(&g, v, 0); });
        verdict(counter.get()[0] == 0, name, "counter not back at zero");
        bool untouched = true, all = true;
        for (size_t i = static_cast<size_t>(R) * width; i < got.size(); i++) untouched = untouched && got[i] == 0xffff;
        for (size_t i = 0; i < static_cast<size_t>(R) * width; i++) all = all && (got[i] & 0x7fff) <= 0x7f80;
        verdict(untouched, name, "wrote rows past the last expert");
        verdict(all, name, "NaN: an element was not written");
        std::vector<fr_bf16> picked(at.size());
        for (size_t i = 0; i < at.size(); i++) picked[i] = got[static_cast<size_t>(at[i].first) * width + at[i].second];
        compare(name, picked, want, tol_bf);
        if (reference.empty())
            reference = got;
        else
            equal((std::string(name) + ", bits of the first variant").c_str(), got, reference);
        if (!quantised) continue;
        g.c = nullptr, g.q = q.p, g.q_scale = qs.p, g.q_pitch = pitch;
        qs.poison();
        std::string quiet = std::string(name) + " quantised";
        auto bytes = twice(quiet.c_str(), q, [&] { return fr_k_grouped_fp8_variant(&g, v, 0); });
        const auto scale = qs.get();
        size_t bad = 0;
        for (size_t i = 0; i < at.size(); i++) {
            const auto [row, n] = at[i];
            const double s = scale[static_cast<size_t>(n / 128 * pitch + row)];
            const double value = e4m3_to_double(bytes[static_cast<size_t>(row) * width + n]) * s;
            bad +=
                !(std::fabs(value - want[i]) <= (0x1p-4 + 0x1p-20) * std::fabs(want[i]) + 0x1p-10 * s + 1.07 * tol[i]);
        }
        verdict(!bad, quiet.c_str(), "an element is off by more than half a unit");
        bad = 0;
        for (int row = 0; row < R; row++)
            for (int gr = 0; gr < width / 128; gr++) {
                int top = 0;
                for (int i = 0; i < 128; i++)
                    top = std::max(top, bytes[static_cast<size_t>(row) * width + gr * 128 + i] & 0x7f);
                bad += top != 0x7e && scale[static_cast<size_t>(gr * pitch + row)] != 0;
            }
        verdict(!bad, quiet.c_str(), "a group's largest element is not 448");
        untouched = true;
        for (size_t i = static_cast<size_t>(R) * width; i < bytes.size(); i++)
            untouched = untouched && bytes[i] == 0xff;
        verdict(untouched, quiet.c_str(), "wrote rows past the last expert");
        if (q_reference.empty())
            q_reference = bytes;
        else
            equal((quiet + ", bits of the first variant").c_str(), bytes, q_reference);
    }
    if (E == 1) { /* all rows, no offsets */
        g.offsets = nullptr, g.rows = R, g.c = out.p, g.q = nullptr, g.q_scale = nullptr;
        auto got = twice("fp8 without offsets", out, [&] { return fr_k_grouped_fp8(&g, 0); });
        equal("fp8 without offsets", got, reference);
        g.offsets = doff.p, g.rows = R + spare;
    }
    if (E > 2) { /* weights in two places */
        const int first = E / 3, end = 2 * E / 3;
        const size_t one = static_cast<size_t>(c.N) * c.K, ones = b.scale.size() / static_cast<size_t>(E);
        for (int packed = 0; packed < 2; packed++) {
            std::vector<fr_e4m3> own(b.q.begin() + static_cast<int64_t>(first * one),
                                     b.q.begin() + static_cast<int64_t>(end * one)),
                rest;
            std::vector<float> owns(b.scale.begin() + static_cast<int64_t>(first * ones),
                                    b.scale.begin() + static_cast<int64_t>(end * ones)),
                rests;
            for (int e = 0; e < E; e++) {
                const bool mine = e >= first && e < end;
                if (mine && packed) continue;
                for (size_t i = 0; i < one; i++) rest.push_back(mine ? 0x7f : b.q[static_cast<size_t>(e) * one + i]);
                for (size_t i = 0; i < ones; i++)
                    rests.push_back(mine ? NAN : b.scale[static_cast<size_t>(e) * ones + i]);
            }
            Dev<fr_e4m3> d_own(own), d_rest(rest);
            Dev<float> d_owns(owns), d_rests(rests);
            fr_k_fp8_args h = g;
            h.b = d_rest.p, h.b_scale = d_rests.p, h.own = d_own.p, h.own_scale = d_owns.p, h.own_first = first,
            h.own_end = end, h.packed = packed, h.c = out.p, h.q = nullptr, h.q_scale = nullptr;
            for (int v : {0, 3}) {
                out.poison();
                CUDA(fr_k_grouped_fp8_variant(&h, v, 0));
                CUDA(cudaDeviceSynchronize());
                equal("fp8 with weights in two places", out.get(), reference);
            }
        }
    }
}

/* cublasLt's block-scaled product has the bits of ours, whatever the number of rows. */
static void test_library() {
    fr_error err;
    fr_gemm *gemm;
    FR(fr_gemm_open(&gemm, &err));
    const size_t space = 32 << 20;
    Dev<char> workspace(space);
    for (int M : {4, 16, 100, 388, 1000})
        for (int N : {128, 1152}) {
            const int K = 1024;
            Random r(static_cast<uint64_t>(M + N));
            char name[64];
            snprintf(name, sizeof name, "cublasLt fp8 M=%d N=%d K=%d", M, N, K);
            const auto x = random_bf(r, static_cast<size_t>(M) * K), w = random_bf(r, static_cast<size_t>(N) * K, 0.05);
            Dev<fr_bf16> dx(x), dw(w), out(static_cast<size_t>(M) * N), out2(static_cast<size_t>(M) * N);
            Dev<fr_e4m3> xq(x.size()), wq(w.size());
            Dev<float> xs(static_cast<size_t>(M) * K / 128), ws(static_cast<size_t>(N) / 128 * K / 128);
            Dev<uint32_t> counter(std::vector<uint32_t>{0});
            CUDA(fr_k_quantise_rows(dx.p, xq.p, xs.p, M, M, K, 0));
            CUDA(fr_k_quantise_blocks(dw.p, wq.p, ws.p, 1, N, K, false, 0));
            fr_k_fp8_args a = {};
            a.a = xq.p, a.b = wq.p, a.a_scale = xs.p, a.b_scale = ws.p, a.a_pitch = M, a.c = out2.p,
            a.counter = counter.p, a.rows = M, a.E = 1, a.N = N, a.K = K;
            CUDA(fr_k_grouped_fp8(&a, 0));
            fr_gemm_args g = {};
            g.x = reinterpret_cast<const fr_bf16 *>(xq.p), g.w = reinterpret_cast<const fr_bf16 *>(wq.p);
            g.x_scale = xs.p, g.w_scale = ws.p, g.out = out.p, g.M = M, g.N = N, g.K = K, g.workspace = workspace.p,
            g.workspace_bytes = space;
            auto got = twice(name, out, [&] {
                FR(fr_gemm_run(gemm, &g, 0, &err));
                return cudaSuccess;
            });
            equal(name, got, out2.get());
        }
    fr_gemm_close(gemm);
}

static void test_products() {
    const std::vector<int> edges = {0, 1, 63, 64, 0, 65, 127, 128, 129, 0, 191, 192, 193, 300, 5, 0};
    std::vector<int> many(512), typical(64), one(8, 0);
    Random r(99);
    for (auto &m : many) m = r.below(5) ? r.below(9) : 70;
    for (auto &m : typical) m = r.below(260);
    one[5] = 1500;
    for (int s = 0; s < 2; s++) {
        const bool swiglu = s == 1;
        test_case({"one row", 256, 128, {1}, swiglu});
        test_case({"one expert", 768, 512, {333}, swiglu});
        test_case({"edges", 512, 256, edges, swiglu});
        test_case({"edges, ragged N and K", 528, 80, edges, swiglu});
        test_case({"narrow", 48, 16, edges, swiglu});
        test_case({"one takes all", 768, 384, one, swiglu});
        test_case({"512 experts", 256, 128, many, swiglu});
        test_case({"typical", 1536, 1024, typical, swiglu});
        test_case({"long", 512, 8192, {130, 0, 257}, swiglu});
        test_case({"no rows", 256, 128, {0, 0, 0}, swiglu});
    }
}

int main() {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::pair<const char *, void (*)()> parts[] = {{"quantise", test_quantise},
                                                         {"blocks", test_blocks},
                                                         {"fused", test_fused},
                                                         {"products", test_products},
                                                         {"library", test_library}};
    for (auto &p : parts) {
        const int before = failed;
        p.second();
        printf("-- %s: %s\n", p.first, failed == before ? "passed" : "FAILED");
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

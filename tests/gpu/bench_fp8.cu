/*
 * bench_fp8: how fast the block-scaled e4m3 kernels are.
 *
 * usage: bench_fp8 [--out FILE] PART...   PART: grouped variants dense memory sustained (default: all these) held
 *
 * As bench_kernels measures (bench.h). Operands are quantised from random bf16 (normal), as in a layer.
 */
#include "kernels/fp8.h"
#include "tests/gpu/bench.h"

#include <memory>

struct Product {
    const char *name;
    int E, N, K;
    bool swiglu;
};
static const Product up235 = {"up235", 128, 3072, 4096, true}, down235 = {"down235", 128, 4096, 1536, false};
static const Product up30 = {"up30", 128, 1536, 2048, true}, down30 = {"down30", 128, 2048, 768, false};

/* Quantised operands for every part: rows and weights, made once. */
struct Operands {
    fr_e4m3 *a, *b, *q;
    float *a_scale, *b_scale, *q_scale;
    fr_bf16 *c, *x;
    void *space; /* of cublasLt */
    size_t space_bytes = 32 << 20;
    int64_t rows;
    explicit Operands(int64_t most_rows) : rows(most_rows) {
        const int64_t K = 4096, weights = 128ll * 3072 * 4096;
        CUDA(cudaMalloc(reinterpret_cast<void **>(&x), 2 * std::max(rows * K, weights)));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&c), 2 * rows * K));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&a), rows * K));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&q), rows * K));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&b), weights));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&a_scale), rows * K / 32));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&q_scale), rows * K / 32));
        CUDA(cudaMalloc(reinterpret_cast<void **>(&b_scale), weights / 128 / 128 * 4));
        CUDA(cudaMalloc(&space, space_bytes));
        CUDA(fr_k_fill_normal(x, weights, 2, 0, 0.02f, stream));
        CUDA(fr_k_quantise_blocks(x, b, b_scale, 1, weights / 4096, 4096, false, stream));
        CUDA(fr_k_fill_normal(x, rows * K, 1, 0, 1, stream));
        CUDA(fr_k_quantise_rows(x, a, a_scale, rows, rows, K, stream));
        CUDA(cudaStreamSynchronize(stream));
    }
};

static int live_experts(const std::vector<int32_t> &o) {
    int n = 0;
    for (size_t i = 0; i + 1 < o.size(); i++) n += o[i + 1] > o[i];
    return n;
}

static void grouped_one(const Operands &o, const Product &p, int mean, Pattern pattern, int variant,
                        const char *regime) {
    static const char *names[] = {"grouped_fp8", "grouped_fp8_cluster", "grouped_fp8_skew", "grouped_fp8_cluster_skew"};
    const auto offsets = make_offsets(p.E, mean, pattern);
    const int64_t rows = offsets.back();
    if (rows > o.rows) return;
    Dev<int32_t> doff(offsets);
    if (variant < 0) variant = fr_k_grouped_fp8_default(rows, p.E);
    fr_k_fp8_args g = {};
    g.a = o.a, g.b = o.b, g.a_scale = o.a_scale, g.b_scale = o.b_scale, g.a_pitch = o.rows, g.offsets = doff.p;
    g.counter = counter, g.rows = rows, g.E = p.E, g.N = p.N, g.K = p.K, g.swiglu = p.swiglu;
    if (p.swiglu)
        g.q = o.q, g.q_scale = o.q_scale, g.q_pitch = o.rows;
    else
        g.c = o.c;
    auto run = [&] { CUDA(fr_k_grouped_fp8_variant(&g, variant, stream)); };
    const bool hold = std::string(regime) == "sustained";
    const Stat s = hold ? sustained(run) : burst(run, !strcmp(regime, "burst1s"));
    const double r = static_cast<double>(rows), bytes = r * p.K * (1 + 4.0 / 128) +
                                                        live_experts(offsets) * (1.0 * p.N * p.K) +
                                                        (p.swiglu ? r * p.N / 2 * (1 + 4.0 / 128) : 2 * r * p.N);
    report(names[variant], format("%s:E=%d,N=%d,K=%d,rows=%d,%s", p.name, p.E, p.N, p.K, mean, pattern_name[pattern]),
           hold ? "sustained" : "burst", s, 2.0 * r * p.N * p.K, bytes);
}

/* Dense products: cublasLt as the engine takes it, and, own, our kernel with one group. */
static void dense_one(Operands &o, fr_gemm *gemm, int64_t M, int64_t N, int64_t K, bool own, const char *regime) {
    CUDA(fr_k_quantise_rows(o.x, o.a, o.a_scale, M, M, K, stream)); /* the pitch is that of these rows */
    const std::string shape =
        format("M=%lld,N=%lld,K=%lld", static_cast<long long>(M), static_cast<long long>(N), static_cast<long long>(K));
    const double flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K),
                 bytes = static_cast<double>(M * K + N * K + 2 * M * N);
    fr_k_fp8_args g = {};
    g.a = o.a, g.b = o.b, g.a_scale = o.a_scale, g.b_scale = o.b_scale, g.a_pitch = M, g.counter = counter, g.rows = M,
    g.E = 1, g.N = static_cast<int>(N), g.K = static_cast<int>(K), g.c = o.c;
    fr_gemm_args l = {};
    l.x = reinterpret_cast<const fr_bf16 *>(o.a), l.w = reinterpret_cast<const fr_bf16 *>(o.b), l.out = o.c, l.M = M,
    l.N = N, l.K = K, l.x_scale = o.a_scale, l.w_scale = o.b_scale, l.workspace = o.space,
    l.workspace_bytes = o.space_bytes;
    auto run = [&] {
        if (own)
            CUDA(fr_k_grouped_fp8(&g, stream));
        else
            FR(fr_gemm_run(gemm, &l, stream, &err));
    };
    const bool hold = std::string(regime) == "sustained";
    const Stat s = hold ? sustained(run) : burst(run, !strcmp(regime, "burst1s"));
    report(own ? "dense_own_fp8" : "gemm_fp8", shape, hold ? "sustained" : "burst", s, flops, bytes);
}

static void memory_one(const char *name, int64_t rows, int64_t K, double bytes, const std::function<void()> &run) {
    report(name, format("rows=%lld,K=%lld", static_cast<long long>(rows), static_cast<long long>(K)), "burst",
           burst(run), 0, bytes);
}

static void part_memory(Operands &o) {
    const int64_t T = 16384, H = 4096;
    const double row2 = 2.0 * T * H, row1 = T * (H + H / 32.0);
    for (int64_t K : {4096ll, 8192ll})
        memory_one("quantise_rows", T, K, T * (3.0 * K + K / 32.0),
                   [&] { CUDA(fr_k_quantise_rows(o.x, o.a, o.a_scale, T, T, K, stream)); });
    memory_one("rmsnorm_fp8", T, H, row2 + row1,
               [&] { CUDA(fr_k_rmsnorm_fp8(o.x, nullptr, o.c, nullptr, o.a, o.a_scale, T, T, H, 1e-6f, stream)); });
    memory_one("add_rmsnorm_fp8", T, H, 3 * row2 + row1,
               [&] { CUDA(fr_k_rmsnorm_fp8(o.x, o.c, o.x, nullptr, o.a, o.a_scale, T, T, H, 1e-6f, stream)); });
    memory_one("add_rmsnorm", T, H, 4 * row2,
               [&] { CUDA(fr_k_add_rmsnorm(o.c, o.x, o.x, reinterpret_cast<fr_bf16 *>(o.q), T, H, 1e-6f, stream)); });
    std::vector<int32_t> slot(static_cast<size_t>(T * 8));
    for (int64_t i = 0; i < T * 8; i++) slot[static_cast<size_t>(i)] = static_cast<int32_t>((i % 8) * T + i / 8);
    Dev<int32_t> places(slot);
    memory_one("permute_fp8", T * 8, H, row2 + 8 * row1,
               [&] { CUDA(fr_k_permute_fp8(o.x, places.p, nullptr, o.a, o.a_scale, o.rows, T, 8, H, stream)); });
    std::vector<float> one(static_cast<size_t>(T * 8), 0.125f);
    Dev<float> shares(one);
    memory_one("combine_norm_fp8", T, H, 10 * row2 + row1, [&] {
        CUDA(fr_k_combine_fp8(o.x, places.p, shares.p, o.c, o.c, o.x, o.a, o.a_scale, T, 1e-6f, T, 8, H, stream));
    });
}

static void part_grouped(const Operands &o) {
    for (int turn = 0; turn < 3; turn++)
        for (const Product &p : {up235, down235})
            for (Pattern pt : {EQUAL, MULTINOMIAL, POWER}) grouped_one(o, p, 1024, pt, -1, "burst1s");
    for (const Product &p : {up235, down235, up30, down30})
        for (int m : {8, 32, 64, 128, 256, 512, 1024, 2048}) grouped_one(o, p, m, MULTINOMIAL, -1, "burst");
}

static void part_variants(const Operands &o) {
    for (const Product &p : {up235, down235})
        for (int m : {128, 256, 512, 1024})
            for (int v = 0; v < FR_K_GROUPED_VARIANTS; v++) grouped_one(o, p, m, MULTINOMIAL, v, "burst");
}

/* A hash of parts of what the last product wrote: all variants must agree. */
static uint64_t written(const Operands &o, const Product &p, int64_t rows) {
    const int64_t bytes = rows * (p.swiglu ? p.N / 2 : 2 * p.N), piece = std::min<int64_t>(bytes, 8 << 20);
    const char *from = p.swiglu ? reinterpret_cast<const char *>(o.q) : reinterpret_cast<const char *>(o.c);
    std::vector<char> part(static_cast<size_t>(piece));
    uint64_t hash = 0;
    for (int i = 0; i < 8; i++) {
        CUDA(cudaMemcpy(part.data(), from + (bytes - piece) / 7 * i, static_cast<size_t>(piece),
                        cudaMemcpyDeviceToHost));
        for (char c : part) hash = hash * 1099511628211u + static_cast<uint8_t>(c);
    }
    return hash;
}

/* Consumers a step apart against those in step: from rest, alternately, and back to back. */
static void part_held(const Operands &o) {
    hold_seconds = 1.5;
    for (bool hold : {false, true})
        for (const Product &p : {up235, down235})
            for (int v : {FR_K_GROUPED_CLUSTER, FR_K_GROUPED_CLUSTER_SKEW}) {
                grouped_one(o, p, 1024, MULTINOMIAL, v, hold ? "sustained" : "burst1s");
                if (!hold) printf("    wrote %016llx\n", static_cast<unsigned long long>(written(o, p, 1024 * 128)));
            }
}

static void part_dense(Operands &o) {
    fr_gemm *gemm;
    FR(fr_gemm_open(&gemm, &err));
    for (int64_t M : {128, 512, 2048, 8192}) {
        dense_one(o, gemm, M, 9216, 4096, false, "burst");
        dense_one(o, gemm, M, 4096, 8192, false, "burst");
        dense_one(o, gemm, M, 5120, 2048, false, "burst");
        dense_one(o, gemm, M, 2048, 4096, false, "burst");
    }
    for (bool own : {false, true}) {
        dense_one(o, gemm, 16384, 9216, 4096, own, "burst1s");
        dense_one(o, gemm, 16384, 4096, 8192, own, "burst1s");
    }
    fr_gemm_close(gemm);
}

static void part_sustained(Operands &o) {
    fr_gemm *gemm;
    FR(fr_gemm_open(&gemm, &err));
    hold_seconds = 5;
    grouped_one(o, up235, 1024, MULTINOMIAL, -1, "sustained");
    grouped_one(o, down235, 1024, MULTINOMIAL, -1, "sustained");
    dense_one(o, gemm, 16384, 9216, 4096, false, "sustained");
    dense_one(o, gemm, 16384, 4096, 8192, false, "sustained");
    fr_gemm_close(gemm);
}

int main(int argc, char **argv) {
    std::unique_ptr<Operands> made;
    auto o = [&]() -> Operands & { return made ? *made : *(made = std::make_unique<Operands>(262144)); };
    return bench_main(argc, argv, format("cublasLt %lld, block-scaled e4m3", static_cast<long long>(fr_gemm_version())),
                      {{"grouped", true, [&] { part_grouped(o()); }},
                       {"variants", true, [&] { part_variants(o()); }},
                       {"dense", true, [&] { part_dense(o()); }},
                       {"memory", true, [&] { part_memory(o()); }},
                       {"sustained", true, [&] { part_sustained(o()); }},
                       {"held", false, [&] { part_held(o()); }}});
}

/*
 * bench_fp8: how fast the block-scaled e4m3 kernels are.
 *
 * usage: bench_fp8 [--out FILE] PART...   PART: quick grouped dense memory sustained (default: all but quick)
 *
 * As bench_kernels measures (bench.h). Operands are quantised from random bf16 (normal), as in a layer.
 */
#include "kernels/fp8.h"
#include "tests/gpu/bench.h"
#include <cublasLt.h>

static const double PEAK8 = 1979e12; /* H100/H200 SXM datasheet, dense fp8 */

struct Product {
    const char *name;
    int E, N, K;
    bool swiglu;
};
static const Product up235 = {"up235", 128, 3072, 4096, true}, down235 = {"down235", 128, 4096, 1536, false};

/* Quantised operands for every part: rows and weights, made once. */
struct Operands {
    fr_e4m3 *a, *b, *q;
    float *a_scale, *b_scale, *q_scale;
    fr_bf16 *c, *x;
    int64_t rows;
    int pitch() const { return static_cast<int>(rows); }
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

/* The same product through cublasLt: weights' scales by 128 x 128, rows' by 128 of K. */
struct Lt {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, d;
    cublasLtMatmulHeuristicResult_t best;
    void *space;
    bool ok = false;
    Lt(const Operands &o, int64_t M, int64_t N, int64_t K) {
        const size_t bytes = 32 << 20;
        const cublasOperation_t t = CUBLAS_OP_T, n = CUBLAS_OP_N;
        const int32_t block = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
                      vec = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
        CUDA(cudaMalloc(&space, bytes));
        cublasLtCreate(&lt);
        cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSB, &n, sizeof n);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &block, sizeof block);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &vec, sizeof vec);
        const void *ws = o.b_scale, *xs = o.a_scale;
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &ws, sizeof ws);
        cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &xs, sizeof xs);
        cublasLtMatrixLayoutCreate(&w, CUDA_R_8F_E4M3, static_cast<uint64_t>(K), static_cast<uint64_t>(N), K);
        cublasLtMatrixLayoutCreate(&x, CUDA_R_8F_E4M3, static_cast<uint64_t>(K), static_cast<uint64_t>(M), K);
        cublasLtMatrixLayoutCreate(&d, CUDA_R_16BF, static_cast<uint64_t>(N), static_cast<uint64_t>(M), N);
        cublasLtMatmulPreference_t pref;
        cublasLtMatmulPreferenceCreate(&pref);
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
        int found = 0;
        const cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(lt, op, w, x, d, d, pref, 1, &best, &found);
        ok = s == CUBLAS_STATUS_SUCCESS && found;
        if (!ok) printf("cublasLt: no block-scaled fp8 product: %s\n", cublasLtGetStatusString(s));
    }
    void run(const Operands &o, fr_bf16 *out) {
        const float one = 1, zero = 0;
        const cublasStatus_t s =
            cublasLtMatmul(lt, op, &one, o.b, w, o.a, x, &zero, out, d, out, d, &best.algo, space, 32 << 20, stream);
        if (s != CUBLAS_STATUS_SUCCESS) {
            printf("cublasLtMatmul: %s\n", cublasLtGetStatusString(s));
            exit(1);
        }
    }
};

/* a_scale must have the pitch of these rows: quantised anew. */
static void dense_one(Operands &o, int64_t M, int64_t N, int64_t K, const char *regime) {
    CUDA(fr_k_quantise_rows(o.x, o.a, o.a_scale, M, M, K, stream));
    const std::string shape =
        format("M=%lld,N=%lld,K=%lld", static_cast<long long>(M), static_cast<long long>(N), static_cast<long long>(K));
    const double flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K),
                 bytes = static_cast<double>(M * K + N * K + 2 * M * N);
    fr_k_fp8_args g = {};
    g.a = o.a, g.b = o.b, g.a_scale = o.a_scale, g.b_scale = o.b_scale, g.a_pitch = M, g.counter = counter, g.rows = M,
    g.E = 1, g.N = static_cast<int>(N), g.K = static_cast<int>(K), g.c = o.c;
    const bool hold = std::string(regime) == "sustained";
    for (int v : {FR_K_GROUPED_SINGLE_SKEW, FR_K_GROUPED_CLUSTER, FR_K_GROUPED_CLUSTER_SKEW}) {
        auto run = [&] { CUDA(fr_k_grouped_fp8_variant(&g, v, stream)); };
        const Stat s = hold ? sustained(run) : burst(run, true);
        report(format("dense_fp8_%d", v).c_str(), shape, regime, s, flops, bytes);
    }
    Lt lt(o, M, N, K);
    if (!lt.ok) return;
    fr_bf16 *other = reinterpret_cast<fr_bf16 *>(o.q);
    auto run = [&] { lt.run(o, other); };
    const Stat s = hold ? sustained(run) : burst(run, true);
    report("dense_fp8_cublaslt", shape, regime, s, flops, bytes);
    std::vector<fr_bf16> mine(1 << 16), theirs(1 << 16); /* are they the same product? */
    CUDA(cudaStreamSynchronize(stream));
    CUDA(cudaMemcpy(mine.data(), o.c + M / 2 * N, mine.size() * 2, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(theirs.data(), other + M / 2 * N, theirs.size() * 2, cudaMemcpyDeviceToHost));
    double worst = 0, sum = 0;
    for (size_t i = 0; i < mine.size(); i++) {
        const double d = std::fabs(bf_to_float(mine[i]) - bf_to_float(theirs[i]));
        worst = std::max(worst, d), sum += std::fabs(bf_to_float(mine[i]));
    }
    printf("    own and cublasLt differ by at most %g, mean size %g\n", worst, sum / static_cast<double>(mine.size()));
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
}

static void part_grouped(const Operands &o, bool quick) {
    for (const Product &p : {up235, down235})
        for (Pattern pt : {EQUAL, MULTINOMIAL, POWER})
            for (int v = 0; v < FR_K_GROUPED_VARIANTS; v++) grouped_one(o, p, 1024, pt, v, quick ? "burst" : "burst1s");
    for (const Product &p : {up235, down235})
        for (int m : {32, 64, 128, 256, 512, 1024, 2048}) {
            for (int v : {0, 3}) grouped_one(o, p, m, MULTINOMIAL, v, "burst");
            if (!quick) grouped_one(o, p, m, EQUAL, -1, "burst");
        }
}

int main(int argc, char **argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    std::vector<std::string> parts;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--out") && i + 1 < argc) {
            out = fopen(argv[++i], "a");
            if (!out) return perror(argv[i]), 2;
        } else {
            parts.push_back(argv[i]);
        }
    }
    if (parts.empty()) parts = {"grouped", "dense", "memory", "sustained"};
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(reinterpret_cast<void **>(&counter), 4));
    CUDA(cudaMemset(counter, 0, 4));
    printf("# fp8, peak %.0f TFLOP/s\n", PEAK8 / 1e12);
    Operands o(262144);
    for (auto &p : parts) {
        const double t0 = now();
        if (p == "quick" || p == "grouped") {
            part_grouped(o, p == "quick");
        } else if (p == "memory") {
            part_memory(o);
        } else if (p == "dense") {
            dense_one(o, 16384, 9216, 4096, "burst1s");
            dense_one(o, 16384, 4096, 8192, "burst1s");
            dense_one(o, 2048, 9216, 4096, "burst1s");
        } else if (p == "sustained") {
            hold_seconds = 6;
            grouped_one(o, up235, 1024, MULTINOMIAL, -1, "sustained");
            grouped_one(o, down235, 1024, MULTINOMIAL, -1, "sustained");
            dense_one(o, 16384, 9216, 4096, "sustained");
        } else {
            return printf("unknown part %s\n", p.c_str()), 2;
        }
        printf("-- %s took %.1f s\n", p.c_str(), now() - t0);
    }
    return 0;
}

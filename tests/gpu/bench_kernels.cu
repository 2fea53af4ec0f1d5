/*
 * bench_kernels: how fast each kernel is, against what it could be.
 *
 * usage: bench_kernels [--out FILE] PART...   PART: grouped variants own held ratio dense layer layers bounds
 * (default: all but bounds, own, held and ratio)
 *
 * Bursts and sustained runs, and the rows of FILE: bench.h. Inputs are random; small inputs stay in L2, as they do in a
 * layer.
 */
#include "tests/gpu/bench.h"

/* ---- grouped products ---- */
static const char *variant_name[] = {"grouped", "grouped_cluster", "grouped_skew", "grouped_cluster_skew"};

struct Product {
    const char *name;
    int E, N, K;
    bool swiglu;
};
static const Product up235 = {"up235", 128, 3072, 4096, true}, down235 = {"down235", 128, 4096, 1536, false};
static const Product plain235 = {"plain235", 128, 3072, 4096, false};

static double grouped_bytes(const Product &p, double rows, int live) {
    return 2 * (rows * p.K + static_cast<double>(live) * p.N * p.K + rows * (p.swiglu ? p.N / 2 : p.N));
}

static int live_experts(const std::vector<int32_t> &o) {
    int n = 0;
    for (size_t i = 0; i + 1 < o.size(); i++) n += o[i + 1] > o[i];
    return n;
}

static Stat grouped_one(const Product &p, int mean, Pattern pattern, int variant, bool gather, const char *regime,
                        const Arena &a, const Arena &b, const Arena &c, bool two_bases = false) {
    const auto offsets = make_offsets(p.E, mean, pattern);
    const int rows = offsets.back();
    Dev<int32_t> doff(offsets);
    std::vector<int32_t> token(static_cast<size_t>(rows));
    Random r(4);
    const int tokens = std::max(1, rows / 8); /* top-8: a row of A is read by eight experts */
    for (auto &t : token) t = r.below(tokens);
    for (size_t e = 0; e + 1 < offsets.size(); e++)
        std::sort(token.begin() + offsets[e], token.begin() + offsets[e + 1]);
    Dev<int32_t> dtoken(token);
    if (variant < 0) variant = fr_k_grouped_default(rows, p.E);
    fr_k_grouped_args g = {};
    g.a = a.p, g.b = b.p, g.c = c.p, g.offsets = doff.p, g.counter = counter, g.rows = rows, g.E = p.E, g.N = p.N,
    g.K = p.K;
    g.swiglu = p.swiglu, g.token_of_row = gather ? dtoken.p : nullptr, g.a_rows = tokens;
    if (two_bases)
        g.own = b.p + static_cast<size_t>(p.E / 2) * p.N * p.K, g.own_first = p.E / 2, g.own_end = p.E, g.packed = true;
    if (static_cast<size_t>(rows) * p.K > a.n || static_cast<size_t>(p.E) * p.N * p.K > b.n ||
        static_cast<size_t>(rows) * p.N > c.n)
        return {};
    auto run = [&] { CUDA(fr_k_grouped_gemm_variant(&g, variant, stream)); };
    const bool hold = !strcmp(regime, "sustained");
    const Stat s = hold ? sustained(run) : burst(run, !strcmp(regime, "burst1s"));
    report(two_bases ? "grouped_own"
           : gather  ? (variant ? "grouped_gather_skew" : "grouped_gather")
                     : variant_name[variant],
           format("%s:E=%d,N=%d,K=%d,rows=%d,%s", p.name, p.E, p.N, p.K, mean, pattern_name[pattern]),
           hold ? "sustained" : "burst", s, 2.0 * rows * p.N * p.K, grouped_bytes(p, rows, live_experts(offsets)));
    return s;
}

static void grouped_loop(const Product &p, int mean, Pattern pattern, const Arena &a, const Arena &b, const Arena &c) {
    fr_grouped_loop *loop;
    FR(fr_grouped_loop_open(&loop, 4, &err));
    const auto o = make_offsets(p.E, mean, pattern);
    auto run = [&] { FR(fr_grouped_loop_run(loop, a.p, b.p, c.p, o.data(), p.E, p.N, p.K, stream, &err)); };
    run();
    times(2, run);
    const Stat s = stat_of(times(15, run), nvml.mhz(), nvml.watts());
    report("grouped_cublaslt_loop",
           format("%s:E=%d,N=%d,K=%d,rows=%d,%s", p.name, p.E, p.N, p.K, mean, pattern_name[pattern]), "burst", s,
           2.0 * o.back() * p.N * p.K, grouped_bytes(p, o.back(), live_experts(o)));
    fr_grouped_loop_close(loop);
}

/* The variants beside each other, in turns, so that all meet the same state of the card. */
static void part_variants() {
    Arena a(131072ull * 4096, 1, 1), b(128ull * 3072 * 4096, 2, 0.02f), c(131072ull * 4096, 3, 1);
    for (const Product &p : {up235, down235})
        for (int turn = 0; turn < 2; turn++)
            for (int v = 0; v < FR_K_GROUPED_VARIANTS; v++) {
                grouped_one(p, 1024, MULTINOMIAL, v, false, "burst1s", a, b, c);
            }
    for (int v : {0, 2}) grouped_one(up235, 1024, MULTINOMIAL, v, true, "burst1s", a, b, c);
}

/* Weights in one array and in two places, in turns. */
static void part_own() {
    Arena a(131072ull * 4096, 1, 1), b(128ull * 3072 * 4096, 2, 0.02f), c(131072ull * 4096, 3, 1);
    for (const Product &p : {up235, down235}) {
        for (int turn = 0; turn < 3; turn++)
            for (bool own : {false, true}) grouped_one(p, 1024, MULTINOMIAL, -1, false, "burst1s", a, b, c, own);
        for (int turn = 0; turn < 3; turn++)
            for (bool own : {false, true}) grouped_one(p, 64, MULTINOMIAL, -1, false, "burst", a, b, c, own);
    }
}

/* Sustained: the power law beside the multinomial deal, and again, so that both meet the same warm card. */
static void part_held() {
    Arena a(131072ull * 4096, 1, 1), b(128ull * 3072 * 4096, 2, 0.02f), c(131072ull * 4096, 3, 1);
    hold_seconds = 5;
    for (int turn = 0; turn < 2; turn++)
        for (const Product &p : {up235, down235})
            for (Pattern deal : {MULTINOMIAL, POWER}) grouped_one(p, 1024, deal, -1, false, "sustained", a, b, c);
}

/* The power law against the multinomial deal, alternately: the ratio of neighbours is free of the card's drift. */
static void part_ratio() {
    Arena a(131072ull * 4096, 1, 1), b(128ull * 3072 * 4096, 2, 0.02f), c(131072ull * 4096, 3, 1);
    for (const Product &p : {down235, up235}) {
        std::vector<double> ratio, floor;
        for (int turn = 0; turn < 5; turn++) {
            const Stat m = grouped_one(p, 1024, MULTINOMIAL, -1, false, "burst1s", a, b, c);
            const Stat w = grouped_one(p, 1024, POWER, -1, false, "burst1s", a, b, c);
            ratio.push_back(m.median / w.median), floor.push_back(m.p10 / w.p10);
        }
        std::sort(ratio.begin(), ratio.end()), std::sort(floor.begin(), floor.end());
        printf("    %s: power law / multinomial %.3f (%.3f to %.3f), of the first deciles %.3f\n", p.name, ratio[2],
               ratio[0], ratio[4], floor[2]);
    }
}

static void part_grouped() {
    Arena a(524288ull * 4096, 1, 1), b(128ull * 3072 * 4096, 2, 0.02f), c(524288ull * 4096, 3, 1);
    const int d = -1;
    grouped_one(plain235, 1024, EQUAL, d, false, "burst1s", a, b, c);
    for (const Product &p : {up235, down235})
        for (Pattern pt : {EQUAL, MULTINOMIAL, POWER})
            for (int turn = 0; turn < 3; turn++) grouped_one(p, 1024, pt, d, false, "burst1s", a, b, c);
    grouped_one(up235, 1024, MULTINOMIAL, d, true, "burst1s", a, b, c);
    for (int m : {32, 128, 256, 1024}) {
        grouped_loop(plain235, m, MULTINOMIAL, a, b, c);
        grouped_loop(down235, m, MULTINOMIAL, a, b, c);
    }
}

/* ---- dense ---- */
static void dense_one(fr_gemm *g, const char *op, int64_t M, int64_t N, int64_t K, bool f32, bool add,
                      const char *regime, const Arena &x, const Arena &w, const Arena &o, void *ws) {
    fr_gemm_args a = {};
    a.x = x.p, a.w = w.p, a.out = o.p, a.M = M, a.N = N, a.K = K, a.out_f32 = f32, a.workspace = ws,
    a.workspace_bytes = 32 << 20;
    a.add = add ? o.p + M * N : nullptr;
    auto run = [&] { FR(fr_gemm_run(g, &a, stream, &err)); };
    const bool hold = !strcmp(regime, "sustained");
    const Stat s = hold ? sustained(run) : burst(run, !strcmp(regime, "burst1s"));
    report(
        op,
        format("M=%lld,N=%lld,K=%lld", static_cast<long long>(M), static_cast<long long>(N), static_cast<long long>(K)),
        hold ? "sustained" : "burst", s, 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K),
        2.0 * static_cast<double>(M * K + N * K + M * N * (f32 ? 2 : 1) + (add ? M * N : 0)));
}

/* The own kernel with one expert, beside cublasLt. */
static void dense_own(int64_t M, int N, int K, const Arena &x, const Arena &w, const Arena &o) {
    for (int v = 0; v < FR_K_GROUPED_VARIANTS; v++) {
        Dev<int32_t> off(std::vector<int32_t>{0, static_cast<int32_t>(M)});
        fr_k_grouped_args g = {};
        g.a = x.p, g.b = w.p, g.c = o.p, g.offsets = off.p, g.counter = counter, g.rows = M, g.E = 1, g.N = N, g.K = K;
        report(v ? "dense_own_cluster" : "dense_own", format("M=%lld,N=%d,K=%d", static_cast<long long>(M), N, K),
               "burst", burst([&] { CUDA(fr_k_grouped_gemm_variant(&g, v, stream)); }, true),
               2.0 * static_cast<double>(M) * N * K,
               2.0 * (static_cast<double>(M) * K + static_cast<double>(N) * K + static_cast<double>(M) * N));
    }
}

static void part_dense() {
    Arena x(32768ull * 8192, 1, 1), w(9216ull * 8192, 2, 0.02f), o(2 * 32768ull * 9216, 3, 1);
    Dev<uint8_t> ws(32 << 20);
    fr_gemm *g;
    FR(fr_gemm_open(&g, &err));
    dense_one(g, "gemm", 8192, 8192, 8192, false, false, "burst1s", x, w, o, ws.p);
    dense_one(g, "gemm", 16384, 9216, 4096, false, false, "burst1s", x, w, o, ws.p);
    dense_one(g, "gemm", 16384, 4096, 8192, false, false, "burst1s", x, w, o, ws.p);
    dense_one(g, "gemm_add", 16384, 4096, 8192, false, true, "burst1s", x, w, o, ws.p);
    dense_own(8192, 8192, 8192, x, w, o);
    dense_own(16384, 9216, 4096, x, w, o);
    dense_own(16384, 4096, 8192, x, w, o);
    fr_gemm_close(g);
}

/* ---- attention ---- */
struct Attention {
    fr_attention *a = nullptr;
    Dev<uint8_t> ws{1 << 20};
    Dev<int32_t> meta{5 * 4200}, start{4100};
    explicit Attention(bool share = true) { FR(fr_attention_open(&a, share, &err)); }
    ~Attention() { fr_attention_close(a); }
    /* b sequences of `length`, packed qkv of the given width, out [T, hq*D] */
    fr_attention_args args(int b, int length, int hq, int hk, int D, const fr_bf16 *qkv, fr_bf16 *o) {
        std::vector<int32_t> s(static_cast<size_t>(b) + 1);
        for (int i = 0; i <= b; i++) s[static_cast<size_t>(i)] = i * length;
        CUDA(cudaMemcpy(start.p, s.data(), s.size() * 4, cudaMemcpyHostToDevice));
        fr_attention_args x = {};
        x.q_stride = x.kv_stride = static_cast<int64_t>(hq + 2 * hk) * D, x.o_stride = static_cast<int64_t>(hq) * D;
        CUDA(fr_k_attention_meta(start.p, nullptr, nullptr, b, x.q_stride, x.kv_stride, x.o_stride, meta.p, stream));
        x.q = qkv, x.k = qkv + static_cast<int64_t>(hq) * D, x.v = qkv + static_cast<int64_t>(hq + hk) * D, x.out = o;
        x.meta = meta.p, x.b = b, x.max_q = x.max_kv = length, x.heads_q = hq, x.heads_kv = hk, x.D = D;
        x.scale = 1 / std::sqrt(static_cast<float>(D)), x.workspace = ws.p, x.workspace_bytes = ws.n;
        return x;
    }
};

static double attention_flops(double b, double length, double heads, double D) {
    return 2 * 2 * b * heads * D * length * length / 2;
}

/*
 * Packed attention whose graph is declared for longer sequences, or more of them, than there are: what bounds that are
 * rounded up cost on the device, and what a bound that is new costs the host (its plan; the first run of that plan).
 */
static void bounds_one(int b, int length, int padded, int bound, int bound_kv, int heads, const Arena &qkv,
                       const Arena &o) {
    static Attention at;
    fr_attention_args x = at.args(b, length, heads, 4, 128, qkv.p, o.p);
    std::vector<int32_t> s(static_cast<size_t>(padded) + 1);
    for (int i = 0; i <= padded; i++) s[static_cast<size_t>(i)] = std::min(i, b) * length;
    CUDA(cudaMemcpy(at.start.p, s.data(), s.size() * 4, cudaMemcpyHostToDevice));
    CUDA(fr_k_attention_meta(at.start.p, nullptr, nullptr, padded, x.q_stride, x.kv_stride, x.o_stride, at.meta.p,
                             stream));
    x.b = padded, x.max_q = bound, x.max_kv = bound_kv;
    size_t need = 0;
    const double t0 = fr_monotonic_s();
    FR(fr_attention_workspace(at.a, &x, &need, &err));
    const double t1 = fr_monotonic_s();
    if (need > at.ws.n) return static_cast<void>(printf("    workspace of %zu bytes: left out\n", need));
    auto run = [&] { FR(fr_attention_run(at.a, &x, stream, &err)); };
    run();
    const double t2 = fr_monotonic_s();
    CUDA(cudaStreamSynchronize(stream));
    const Stat t = burst(run);
    report("attention_bounds",
           format("hq=%d,hk=4,D=128,b=%d/%d,len=%d/%d/%d", heads, b, padded, length, bound, bound_kv), "burst", t,
           attention_flops(b, length, heads, 128), 0);
    printf("    plan %.2f ms, first run %.2f ms\n", (t1 - t0) * 1e3, (t2 - t1) * 1e3);
}

static void part_bounds() {
    Arena qkv(16384ull * 9216, 1, 1), o(16384ull * 8192, 2, 1);
    const struct {
        int b, length;
    } real[] = {{1, 700}, {1, 1400}, {3, 1400}, {5, 1024}, {12, 1024}, {3, 4096}, {20, 512}};
    for (const int heads : {32, 64})
        for (const auto &r : real) {
            const int close = (r.length + 127) / 128 * 128;
            int full = 1; /* as the engine pads them: fr_padded_sequences */
            while (full < r.b) full *= 2;
            for (const int padded : {r.b, full, 2 * full})
                for (const int bound : {close, close + 128, close * 3 / 2, 2 * close, 4 * close, 8192})
                    for (const int bound_kv : {bound, 8192})
                        if (bound >= close && (padded == full || bound == close || bound == 8192) &&
                            (bound_kv == bound || bound == close))
                            bounds_one(r.b, r.length, padded, bound, bound_kv, heads, qkv, o);
        }
}

/* ---- one layer of Qwen3-235B-A22B ---- */
struct Layer {
    static constexpr int H = 4096, HQ = 64, HK = 4, D = 128, E = 128, K = 8, I = 1536, W = (HQ + 2 * HK) * D;
    int b, length, T, variant_up, variant_down;
    bool gather;
    Arena w_qkv{static_cast<size_t>(W) * H, 1, 0.0156f}, w_o{static_cast<size_t>(H) * HQ * D, 2, 0.011f};
    Arena w_router{static_cast<size_t>(E) * H, 3, 0.0156f}, w_up{static_cast<size_t>(E) * 2 * I * H, 4, 0.0156f};
    Arena w_down{static_cast<size_t>(E) * H * I, 5, 0.0255f}, norm{H, 6, 1}, head_norm{256, 7, 1};
    Arena h, x, qkv, attn, h2, x2, rows, act, y, h3, x3;
    Dev<float> logits, weights;
    Dev<int32_t> ids, offsets{E + 1}, slot, token, position;
    Dev<float> rope{32768ull * 128};
    Dev<uint8_t> route_ws, ws{32 << 20};
    Attention attention;
    fr_attention_args attn_args;
    fr_gemm *gemm;
    struct Step {
        const char *name;
        double flops, bytes;
        std::function<void()> run;
    };
    std::vector<Step> steps;

    Layer(int sequences, int each, int up, int down, bool fused_gather)
        : b(sequences), length(each), T(b * length), variant_up(up), variant_down(down), gather(fused_gather),
          h(n(H), 11, 1), x(n(H), 12, 1), qkv(n(W), 13, 1), attn(n(HQ * D), 14, 1), h2(n(H), 15, 1), x2(n(H), 16, 1),
          rows(n(K * H), 17, 1), act(n(K * I), 18, 1), y(n(K * H), 19, 1), h3(n(H), 20, 1), x3(n(H), 21, 1),
          logits(n(E)), weights(n(K)), ids(n(K)), slot(n(K)), token(n(K)), position(n(1)),
          route_ws(fr_k_route_workspace(static_cast<int64_t>(n(K)), E)) {
        FR(fr_gemm_open(&gemm, &err));
        std::vector<int32_t> p(n(1));
        for (size_t i = 0; i < p.size(); i++) p[i] = static_cast<int32_t>(i % static_cast<size_t>(length));
        CUDA(cudaMemcpy(position.p, p.data(), p.size() * 4, cudaMemcpyHostToDevice));
        CUDA(fr_k_rope_table(rope.p, 32768, D, 1e6f, stream));
        attn_args = attention.args(b, length, HQ, HK, D, qkv.p, attn.p);
        if (length < 2048) attn_args.meta = nullptr; /* equal lengths: the packed graph is slower below, faster above */
        build();
    }
    ~Layer() { fr_gemm_close(gemm); }
    size_t n(int width) const { return static_cast<size_t>(T) * static_cast<size_t>(width); }

    void dense(const fr_bf16 *in, const Arena &w, const fr_bf16 *add, void *o, int N, int k, bool f32) {
        fr_gemm_args a = {};
        a.x = in, a.w = w.p, a.add = add, a.out = o, a.M = T, a.N = N, a.K = k, a.out_f32 = f32, a.workspace = ws.p,
        a.workspace_bytes = ws.n;
        FR(fr_gemm_run(gemm, &a, stream, &err));
    }

    void grouped(const fr_bf16 *in, const Arena &w, fr_bf16 *o, int N, int k, bool swiglu, bool through, int variant) {
        if (variant < 0) variant = fr_k_grouped_default(static_cast<int64_t>(T) * K, E);
        fr_k_grouped_args g = {};
        g.a = in, g.b = w.p, g.c = o, g.offsets = offsets.p, g.counter = counter, g.rows = static_cast<int64_t>(T) * K,
        g.E = E, g.N = N, g.K = k;
        g.swiglu = swiglu, g.token_of_row = through ? token.p : nullptr, g.a_rows = T;
        CUDA(fr_k_grouped_gemm_variant(&g, variant, stream));
    }

    void build() {
        const double t = T;
        steps.push_back({"qkv", 2 * t * W * H, 2 * (t * H + t * W + static_cast<double>(W) * H),
                         [this] { dense(x.p, w_qkv, nullptr, qkv.p, W, H, false); }});
        steps.push_back({"qk_norm_rope", 0, 4 * t * (HQ + HK) * D, [this] {
                             fr_k_qk_args g = {};
                             g.qkv = g.q_out = qkv.p, g.k_out = qkv.p + HQ * D, g.q_weight = head_norm.p,
                             g.k_weight = head_norm.p + 128;
                             g.position = position.p, g.rope = rope.p, g.q_stride = g.kv_stride = W, g.T = T,
                             g.heads_q = HQ, g.heads_kv = HK, g.D = D, g.eps = 1e-6f;
                             CUDA(fr_k_qk_norm_rope(&g, stream));
                         }});
        steps.push_back({"attention", attention_flops(b, length, HQ, D), 2 * t * D * (2 * HQ + 2 * HK),
                         [this] { FR(fr_attention_run(attention.a, &attn_args, stream, &err)); }});
        steps.push_back({"o+residual", 2 * t * H * HQ * D,
                         2 * (t * HQ * D + 2 * t * H + static_cast<double>(H) * HQ * D),
                         [this] { dense(attn.p, w_o, h.p, h2.p, H, HQ * D, false); }});
        steps.push_back(
            {"norm", 0, 4 * t * H, [this] { CUDA(fr_k_rmsnorm(h2.p, norm.p, nullptr, x2.p, T, H, 1e-6f, stream)); }});
        steps.push_back({"router_gemm", 2 * t * E * H, 2 * t * H + 4 * t * E,
                         [this] { dense(x2.p, w_router, nullptr, logits.p, E, H, true); }});
        steps.push_back({"topk", 0, 4 * t * E,
                         [this] { CUDA(fr_k_router(logits.p, nullptr, ids.p, weights.p, T, E, K, true, stream)); }});
        steps.push_back({"route", 0, 16 * t * K, [this] {
                             CUDA(fr_k_route(ids.p, T, K, 0, E, offsets.p, slot.p, token.p, route_ws.p, stream));
                         }});
        if (!gather)
            steps.push_back({"permute", 0, 2 * t * H * (1 + K),
                             [this] { CUDA(fr_k_permute(x2.p, slot.p, rows.p, T, K, H, stream)); }});
        steps.push_back({"up+gate+swiglu", 2 * t * K * 2 * I * H, grouped_bytes(up235, t * K, E),
                         [this] { grouped(gather ? x2.p : rows.p, w_up, act.p, 2 * I, H, true, gather, variant_up); }});
        steps.push_back({"down", 2 * t * K * I * H, grouped_bytes(down235, t * K, E),
                         [this] { grouped(act.p, w_down, y.p, H, I, false, false, variant_down); }});
        steps.push_back(
            {"combine+norm", 0, 2 * t * H * (3 + K),
             [this] { CUDA(fr_k_combine(y.p, slot.p, weights.p, h2.p, h3.p, norm.p, x3.p, 1e-6f, T, K, H, stream)); }});
    }
    void run() {
        for (auto &s : steps) s.run();
    }
    double flops() const {
        double f = 0;
        for (auto &s : steps) f += s.flops;
        return f;
    }
};

static void layer_one(int b, int length, int up, int down, bool gather, bool detail, bool hold) {
    Layer layer(b, length, up, down, gather);
    const std::string shape = format("qwen3-235b:b=%d,len=%d,up=%d,down=%d,gather=%d", b, length, up, down, gather);
    auto run = [&] { layer.run(); };
    const double flops = layer.flops();
    const Stat s = burst(run, true);
    report("layer", shape, "burst", s, flops, 0);
    printf("    MFU %.3f (%.2f ms)\n", flops / s.median * 1e9 / PEAK, s.median / 1e6);
    if (detail) {
        std::vector<std::vector<double>> each(layer.steps.size());
        usleep(500000);
        for (int turn = 0; turn < 15; turn++) {
            size_t i = 0;
            for (auto &x : layer.steps) {
                CUDA(cudaEventRecord(timer.get(i++), stream));
                x.run();
            }
            CUDA(cudaEventRecord(timer.get(i), stream));
            CUDA(cudaStreamSynchronize(stream));
            for (size_t j = 0; turn > 2 && j < each.size(); j++) each[j].push_back(timer.ns(j, j + 1));
        }
        for (size_t j = 0; j < each.size(); j++)
            report((std::string("layer_") + layer.steps[j].name).c_str(), shape, "burst", stat_of(each[j], 0, 0),
                   layer.steps[j].flops, layer.steps[j].bytes);
    }
    if (hold) {
        const Stat h = sustained(run);
        report("layer", shape, "sustained", h, flops, 0);
        printf("    MFU %.3f (%.2f ms)\n", flops / h.median * 1e9 / PEAK, h.median / 1e6);
    }
}

static void part_layer_quick() {
    for (int turn = 0; turn < 2; turn++)
        for (int v = 0; v < FR_K_GROUPED_VARIANTS; v++) layer_one(4, 4096, v, v, false, v == 0 && turn, false);
}
static void part_layer() {
    for (int turn = 0; turn < 3; turn++) layer_one(4, 4096, -1, -1, false, turn == 2, turn == 2);
}
static void part_layers() {
    for (int tokens : {4096, 16384, 32768})
        for (int length : {256, 1024, 4096, 16384})
            if (length <= tokens) layer_one(tokens / length, length, -1, -1, false, true, false);
}

int main(int argc, char **argv) {
    int driver = 0, runtime = 0;
    CUDA(cudaDriverGetVersion(&driver));
    CUDA(cudaRuntimeGetVersion(&runtime));
    return bench_main(argc, argv,
                      format("driver %d, runtime %d, cublasLt %lld, cuDNN %lld", driver, runtime,
                             static_cast<long long>(fr_gemm_version()), static_cast<long long>(fr_attention_version())),
                      {{"dense", true, part_dense},
                       {"grouped", true, part_grouped},
                       {"variants", true, part_variants},
                       {"own", false, part_own},
                       {"held", false, part_held},
                       {"ratio", false, part_ratio},
                       {"bounds", false, part_bounds},
                       {"layer-quick", false, part_layer_quick},
                       {"layers", true, part_layers},
                       {"layer", true, part_layer}});
}

/*
 * test_kernels: every kernel against a reference in double on the CPU.
 *
 * Inputs are random (bf16), outputs poisoned with NaN before each run and guarded behind their end, each launch made
 * twice and compared bit by bit. Tolerances: U = 2^-8 is half a unit in the last place of bf16, relative. An output
 * that is rounded once may be off by U; a rounding inside (RMSNorm before its weight) may flip in a tie, one unit or
 * 2U. Sums of K products in fp32 on the tensor cores add A = 2^-18 of the sum of absolute products: they accumulate
 * with truncation, about 2^-23 a step of 16, K <= 4096.
 */
#include "kernels/words.h"
#include "tests/gpu/check.h"

/* ---- rows: embedding, norms, logits ---- */
static void norm_reference(const double *x, const fr_bf16 *w, double eps, int H, double *out) {
    double sum = 0;
    for (int h = 0; h < H; h++) sum += x[h] * x[h];
    const double scale = 1 / std::sqrt(sum / H + eps);
    for (int h = 0; h < H; h++) out[h] = x[h] * scale * bf_to_float(w[h]);
}

static void test_embedding() {
    Random r(1);
    const int T = 37, H = 2056, vocab = 100;
    auto table = random_bf(r, static_cast<size_t>(vocab) * H);
    std::vector<int32_t> ids(T);
    for (auto &i : ids) i = r.below(vocab);
    ids[3] = -1, ids[4] = vocab, ids[5] = vocab - 1, ids[6] = 0;
    Dev<fr_bf16> dt(table), out(static_cast<size_t>(T) * H);
    Dev<int32_t> di(ids);
    auto got = twice("embedding", out, [&] { return fr_k_embedding(dt.p, di.p, out.p, T, H, vocab, 0); });
    std::vector<fr_bf16> want(got.size(), 0);
    for (int t = 0; t < T; t++)
        if (ids[t] >= 0 && ids[t] < vocab)
            std::copy_n(&table[static_cast<size_t>(ids[t]) * H], H, &want[static_cast<size_t>(t) * H]);
    equal("embedding", got, want);
}

/* From and to pinned memory: numbers of words and places that are multiples of 16 bytes and others, and more than all
 * threads take in one round. */
static void test_words() {
    for (int n : {1, 4, 1023, 4096, 262147, 2100004})
        for (int at : {0, 1}) {
            Random r(static_cast<uint64_t>(n));
            int32_t *host = nullptr;
            CUDA(cudaHostAlloc(&host, static_cast<size_t>(2 * n + 2) * 4, cudaHostAllocDefault));
            for (int i = 0; i < 2 * n + 2; i++) host[i] = i < n + 1 ? static_cast<int32_t>(r.next()) : -7;
            Dev<int32_t> out(static_cast<size_t>(n));
            char name[96];
            snprintf(name, sizeof name, "%d words from %d", n, at);
            auto got = twice(name, out, [&] { return fr_k_words(out.p, host + at, n, 0); });
            equal(name, got, std::vector<int32_t>(host + at, host + at + n));
            int32_t *back = host + n + 1;
            CUDA(fr_k_words(back, out.p, n, 0));
            CUDA(cudaDeviceSynchronize());
            snprintf(name, sizeof name, "%d words to the host", n);
            equal(name, std::vector<int32_t>(back, back + n), got);
            verdict(back[n] == -7, name, "wrote behind the end");
            CUDA(cudaFreeHost(host));
        }
}

static void test_norms() {
    for (int H : {8, 1000, 2048, 2880, 4096, 7168, 16384}) {
        Random r(static_cast<uint64_t>(H));
        const int n = 19, m = 5;
        const size_t N = static_cast<size_t>(n) * H;
        char name[96];
        auto x = random_bf(r, N, 3), res = random_bf(r, N), w = random_bf(r, H);
        std::vector<int32_t> rows = {18, 0, 7, 7, 3};
        std::vector<double> dx(N), want(N), sum(N), want2(N), chosen(static_cast<size_t>(m) * H);
        for (size_t i = 0; i < N; i++) dx[i] = bf_to_float(x[i]);
        for (size_t i = 0; i < N; i++) sum[i] = round_bf(dx[i] + bf_to_float(res[i]));
        for (int i = 0; i < n; i++) {
            norm_reference(&dx[static_cast<size_t>(i) * H], w.data(), 1e-6, H, &want[static_cast<size_t>(i) * H]);
            norm_reference(&sum[static_cast<size_t>(i) * H], w.data(), 1e-6, H, &want2[static_cast<size_t>(i) * H]);
        }
        for (int i = 0; i < m; i++)
            std::copy_n(&want[static_cast<size_t>(rows[i]) * H], H, &chosen[static_cast<size_t>(i) * H]);
        Dev<fr_bf16> d(x), dr(res), dw(w), out(N), few(static_cast<size_t>(m) * H);
        Dev<int32_t> drows(rows);
        snprintf(name, sizeof name, "rmsnorm H=%d", H);
        compare(name, twice(name, out, [&] { return fr_k_rmsnorm(d.p, dw.p, nullptr, out.p, n, H, 1e-6f, 0); }), want,
                relative(want, 1.01 * U));
        snprintf(name, sizeof name, "rmsnorm of rows H=%d", H);
        compare(name, twice(name, few, [&] { return fr_k_rmsnorm(d.p, dw.p, drows.p, few.p, m, H, 1e-6f, 0); }), chosen,
                relative(chosen, 1.01 * U));
        snprintf(name, sizeof name, "add+rmsnorm H=%d", H);
        auto got = twice(name, out, [&] {
            CUDA(cudaMemcpy(dr.p, res.data(), N * 2, cudaMemcpyHostToDevice));
            return fr_k_add_rmsnorm(dr.p, d.p, dw.p, out.p, n, H, 1e-6f, 0);
        });
        compare(name, got, want2, relative(want2, 1.01 * U));
        snprintf(name, sizeof name, "add+rmsnorm residual H=%d", H);
        compare(name, dr.get(), sum, relative(sum, 0));
        snprintf(name, sizeof name, "add+rmsnorm of rows H=%d", H);
        for (int i = 0; i < m; i++)
            std::copy_n(&want2[static_cast<size_t>(rows[i]) * H], H, &chosen[static_cast<size_t>(i) * H]);
        CUDA(cudaMemcpy(dr.p, res.data(), N * 2, cudaMemcpyHostToDevice));
        compare(
            name,
            twice(name, few, [&] { return fr_k_add_rmsnorm_rows(dr.p, d.p, dw.p, drows.p, few.p, m, H, 1e-6f, 0); }),
            chosen, relative(chosen, 3 * U));
        equal(name, dr.get(), res);
    }
}

static void test_logits() {
    Random r(5);
    const int H = 2048, rows = 7, vocab = 300, n = 41;
    auto hidden = random_bf(r, rows * H), head = random_bf(r, static_cast<size_t>(vocab) * H);
    std::vector<int32_t> row(n), token(n);
    for (int i = 0; i < n; i++) row[i] = r.below(rows), token[i] = r.below(vocab);
    token[2] = vocab, token[3] = -5;
    Dev<fr_bf16> dh(hidden), dl(head);
    Dev<int32_t> dr(row), dt(token);
    Dev<float> out(n);
    auto got = twice("candidate logits", out,
                     [&] { return fr_k_candidate_logits(dh.p, dl.p, dr.p, dt.p, out.p, n, H, vocab, 0); });
    bool ok = true;
    for (int i = 0; i < n; i++) {
        if (token[i] < 0 || token[i] >= vocab) {
            ok = ok && std::isnan(got[i]);
            continue;
        }
        double s = 0, a = 0;
        for (int h = 0; h < H; h++) {
            const double p = static_cast<double>(bf_to_float(hidden[static_cast<size_t>(row[i]) * H + h])) *
                             bf_to_float(head[static_cast<size_t>(token[i]) * H + h]);
            s += p, a += std::fabs(p);
        }
        ok = ok && std::fabs(got[i] - s) <= 1e-6 * a; /* fp32 sums of 8 then a tree: about 20 roundings of 2^-24 */
    }
    verdict(ok, "candidate logits", "outside");
}

/* ---- RoPE ---- */
static void test_rope() {
    for (int D : {64, 128}) {
        const int positions = 5000;
        const float theta = 1e6f;
        Dev<float> table(static_cast<size_t>(positions) * D);
        auto cs = twice("rope table", table, [&] { return fr_k_rope_table(table.p, positions, D, theta, 0); });
        bool ok = true;
        for (int p = 0; p < positions; p++)
            for (int i = 0; i < D / 2; i++) {
                const double angle = p * std::pow(static_cast<double>(theta), -2.0 * i / D);
                const float *v = &cs[static_cast<size_t>(p) * D + 2 * i];
                /* fp32 of a value <= 1, and an angle in fp32: two roundings of 2^-24 of it */
                const double tol = 0x1p-22 + p * 0x1p-22;
                ok = ok && std::fabs(v[0] - std::cos(angle)) <= tol && std::fabs(v[1] - std::sin(angle)) <= tol;
            }
        verdict(ok, "rope table", "outside");

        for (int mode = 0; mode < 2; mode++) { /* 0: norms, own outputs, v copied; 1: Mixtral, in place */
            for (int hq : {3, 6, 64}) {
                const int hk = hq == 3 ? 1 : hq == 6 ? 3 : 4, T = 33, heads = hq + 2 * hk;
                Random r(static_cast<uint64_t>(D + hq));
                const int64_t packed = static_cast<int64_t>(heads) * D;
                auto qkv = random_bf(r, static_cast<size_t>(T * packed)), wq = random_bf(r, D), wk = random_bf(r, D);
                std::vector<int32_t> position(T), kv_row(T);
                for (int t = 0; t < T; t++) position[t] = r.below(positions), kv_row[t] = T - 1 - t;
                std::vector<double> want(qkv.size()), tol(qkv.size());
                for (int t = 0; t < T; t++)
                    for (int h = 0; h < heads; h++) {
                        const size_t at = static_cast<size_t>(t * packed + static_cast<int64_t>(h) * D);
                        std::vector<double> x(D);
                        for (int i = 0; i < D; i++) x[i] = bf_to_float(qkv[at + i]);
                        if (h < hq + hk && mode == 0) {
                            std::vector<double> y(D);
                            norm_reference(x.data(), h < hq ? wq.data() : wk.data(), 1e-6, D, y.data());
                            x = y;
                        }
                        for (int i = 0; i < D / 2; i++) {
                            const float *v = &cs[static_cast<size_t>(position[t]) * D + 2 * i];
                            const double c = v[0], s = v[1];
                            const double l = x[i], g = x[i + D / 2];
                            const bool rotate = h < hq + hk;
                            want[at + i] = rotate ? l * c - g * s : l;
                            want[at + i + D / 2] = rotate ? g * c + l * s : g;
                            const double e = 1e-6 * (std::fabs(l) + std::fabs(g)); /* a few roundings of 2^-24 */
                            tol[at + i] = U * std::fabs(want[at + i]) + e;
                            tol[at + i + D / 2] = U * std::fabs(want[at + i + D / 2]) + e;
                        }
                    }
                Dev<fr_bf16> d(qkv), dq(wq), dk(wk), q(static_cast<size_t>(T) * hq * D),
                    k(static_cast<size_t>(T) * hk * D), v(static_cast<size_t>(T) * hk * D);
                Dev<int32_t> dp(position), dr(kv_row);
                fr_k_qk_args g = {};
                g.qkv = d.p, g.position = dp.p, g.rope = table.p, g.T = T, g.heads_q = hq, g.heads_kv = hk, g.D = D;
                g.eps = 1e-6f;
                char name[96];
                snprintf(name, sizeof name, "%s D=%d heads %d/%d", mode ? "rope in place" : "qk norm + rope", D, hq,
                         hk);
                std::vector<fr_bf16> got(qkv.size());
                if (mode == 0) {
                    g.q_weight = dq.p, g.k_weight = dk.p, g.kv_row = dr.p, g.q_out = q.p, g.k_out = k.p, g.v_out = v.p;
                    g.q_stride = static_cast<int64_t>(hq) * D, g.kv_stride = static_cast<int64_t>(hk) * D;
                    k.poison(), v.poison();
                    auto gq = twice(name, q, [&] { return fr_k_qk_norm_rope(&g, 0); });
                    auto gk = k.get(), gv = v.get();
                    for (int t = 0; t < T; t++) {
                        std::copy_n(&gq[static_cast<size_t>(t) * hq * D], hq * D,
                                    &got[static_cast<size_t>(t * packed)]);
                        const size_t row = static_cast<size_t>(kv_row[t]) * hk * D;
                        std::copy_n(&gk[row], hk * D, &got[static_cast<size_t>(t * packed) + hq * D]);
                        std::copy_n(&gv[row], hk * D, &got[static_cast<size_t>(t * packed) + (hq + hk) * D]);
                    }
                } else {
                    g.q_out = d.p, g.k_out = d.p + static_cast<int64_t>(hq) * D;
                    g.q_stride = g.kv_stride = packed;
                    CUDA(fr_k_qk_norm_rope(&g, 0));
                    got = d.get();
                }
                compare(name, got, want, tol);
            }
        }
    }
}

/* ---- router and permutation ---- */
static void test_router() {
    struct {
        int T, E, k;
        bool norm, bias, ties;
    } cases[] = {
        {1, 4, 1, true, false, false},     {77, 8, 2, true, false, false},   {1001, 128, 8, true, false, false},
        {513, 128, 8, false, true, false}, {65, 60, 4, false, false, false}, {64, 256, 8, true, true, false},
        {33, 512, 16, true, false, false}, {9, 128, 8, true, false, true},   {5, 16, 16, true, false, false}};
    for (auto &c : cases) {
        Random r(static_cast<uint64_t>(c.E * 31 + c.T));
        std::vector<float> logits(static_cast<size_t>(c.T) * c.E), bias(c.E);
        for (auto &x : logits) x = c.ties ? 0.5f : static_cast<float>(2 * r.normal());
        for (auto &x : bias) x = static_cast<float>(r.normal());
        Dev<float> dl(logits), db(bias), w(static_cast<size_t>(c.T) * c.k);
        Dev<int32_t> ids(static_cast<size_t>(c.T) * c.k);
        char name[96];
        snprintf(name, sizeof name, "router T=%d E=%d k=%d renormalise=%d bias=%d ties=%d", c.T, c.E, c.k, c.norm,
                 c.bias, c.ties);
        auto got = twice(
            name, w, [&] { return fr_k_router(dl.p, c.bias ? db.p : nullptr, ids.p, w.p, c.T, c.E, c.k, c.norm, 0); });
        auto id = ids.get();
        bool ok = true;
        for (int t = 0; t < c.T; t++) {
            std::vector<double> p(c.E);
            double top = -1e30, sum = 0, kept = 0;
            for (int e = 0; e < c.E; e++)
                p[e] = static_cast<double>(logits[static_cast<size_t>(t) * c.E + e]) + (c.bias ? bias[e] : 0),
                top = std::max(top, p[e]);
            for (auto &x : p) sum += x = std::exp(x - top);
            std::vector<int> order(c.E);
            for (int e = 0; e < c.E; e++) order[e] = e;
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p[a] > p[b]; });
            for (int j = 0; j < c.k; j++) kept += p[order[j]];
            for (int j = 0; j < c.k; j++) {
                const int e = id[static_cast<size_t>(t) * c.k + j];
                /* another expert only where its probability ties within the error of fp32 exp */
                ok = ok && e >= 0 && e < c.E &&
                     (e == order[j] || (!c.ties && std::fabs(p[e] - p[order[j]]) <= 1e-6 * p[e]));
                if (!ok) break;
                const double want = p[e] / (c.norm ? kept : sum);
                ok = ok &&
                     std::fabs(got[static_cast<size_t>(t) * c.k + j] - want) <= 2e-6 * want; /* fp32 exp and sums */
            }
        }
        verdict(ok, name, "outside");
    }
}

struct Routing {
    std::vector<int32_t> ids, offsets, row_of_slot, token_of_row;
};

static Routing route_reference(const std::vector<int32_t> &ids, int k, int first, int E) {
    Routing r = {ids, std::vector<int32_t>(E + 1, 0), std::vector<int32_t>(ids.size(), -1), {}};
    for (int e = 0; e < E; e++) {
        r.offsets[e] = static_cast<int32_t>(r.token_of_row.size());
        for (size_t s = 0; s < ids.size(); s++)
            if (ids[s] == first + e) {
                r.row_of_slot[s] = static_cast<int32_t>(r.token_of_row.size());
                r.token_of_row.push_back(static_cast<int32_t>(s / k));
            }
    }
    r.offsets[E] = static_cast<int32_t>(r.token_of_row.size());
    return r;
}

static std::vector<int32_t> random_ids(Random &r, int T, int k, int E, int how) {
    std::vector<int32_t> ids(static_cast<size_t>(T) * k);
    for (int t = 0; t < T; t++)
        for (int j = 0; j < k; j++) {
            int e;
            do /* 0: uniform; 1: one expert takes the first choice of all; 2: only every third expert */
                e = how == 1 && j == 0 ? E / 2 : how == 2 ? r.below((E + 2) / 3) * 3 : r.below(E);
            while (e >= E || std::find(&ids[static_cast<size_t>(t) * k], &ids[static_cast<size_t>(t) * k] + j, e) !=
                                 &ids[static_cast<size_t>(t) * k] + j);
            ids[static_cast<size_t>(t) * k + j] = e;
        }
    return ids;
}

static void test_route() {
    struct {
        int T, k, E, how, first, local;
    } cases[] = {{1, 1, 1, 0, 0, 1},       {1, 8, 128, 0, 0, 128},    {5000, 8, 128, 0, 0, 128},
                 {3000, 2, 8, 1, 0, 8},    {4097, 1, 8, 1, 0, 8},     {777, 4, 60, 2, 0, 60},
                 {600, 8, 512, 0, 0, 512}, {5000, 8, 128, 0, 32, 32}, {2048, 8, 128, 2, 0, 128}};
    for (auto &c : cases) {
        Random r(static_cast<uint64_t>(c.T + c.E));
        const auto want = route_reference(random_ids(r, c.T, c.k, c.E, c.how), c.k, c.first, c.local);
        const size_t slots = want.ids.size();
        Dev<int32_t> ids(want.ids), offsets(static_cast<size_t>(c.local) + 1), rows(slots), tokens(slots);
        Dev<uint8_t> ws(fr_k_route_workspace(static_cast<int64_t>(slots), c.local));
        char name[96];
        snprintf(name, sizeof name, "route T=%d k=%d E=%d of %d pattern %d", c.T, c.k, c.local, c.E, c.how);
        auto got = twice(name, rows, [&] {
            return fr_k_route(ids.p, c.T, c.k, c.first, c.local, offsets.p, rows.p, tokens.p, ws.p, 0);
        });
        equal(name, got, want.row_of_slot);
        equal(name, offsets.get(), want.offsets);
        auto t = tokens.get();
        t.resize(want.token_of_row.size());
        equal(name, t, want.token_of_row);
    }
}

/* Tokens whose number only the device knows: what lies beyond it is looked at by nobody and stays as it is. */
static void test_arrived() {
    struct {
        int T, bound, k, E, H, first, local;
    } cases[] = {{301, 900, 8, 128, 4096, 32, 32},
                 {0, 64, 8, 128, 256, 0, 64},
                 {1, 5000, 2, 8, 1000, 4, 4},
                 {777, 777, 1, 16, 2048, 8, 8},
                 {2049, 4100, 8, 60, 512, 0, 30}};
    for (auto &c : cases) {
        Random r(static_cast<uint64_t>(c.bound + c.H));
        auto ids = random_ids(r, c.T, c.k, c.E, 0);
        const auto want = route_reference(ids, c.k, c.first, c.local);
        const size_t slots = static_cast<size_t>(c.bound) * c.k, R = want.token_of_row.size(),
                     H = static_cast<size_t>(c.H);
        while (ids.size() < slots) ids.push_back(r.below(c.E)); /* what is left of an earlier layer */
        Dev<int32_t> di(ids), offsets(static_cast<size_t>(c.local) + 1), rows(slots), tokens(slots),
            arrived(std::vector<int32_t>{c.T});
        Dev<uint8_t> ws(fr_k_route_workspace(static_cast<int64_t>(slots), c.local));
        char name[96];
        snprintf(name, sizeof name, "route %d of %d arrived, k=%d E=%d of %d", c.T, c.bound, c.k, c.local, c.E);
        auto got = twice(name, rows, [&] {
            return fr_k_route_arrived(di.p, arrived.p, c.bound, c.k, c.first, c.local, offsets.p, rows.p, tokens.p,
                                      ws.p, 0);
        });
        auto places = want.row_of_slot;
        places.resize(slots, -1); /* poison: not written */
        equal(name, got, places);
        equal(name, offsets.get(), want.offsets);

        auto x = random_bf(r, static_cast<size_t>(c.bound) * H), y = random_bf(r, (R + 1) * H);
        std::vector<float> weights(slots);
        for (auto &v : weights) v = static_cast<float>(r.uniform());
        Dev<fr_bf16> dx(x), dy(y), out((R + 1) * H), sum(static_cast<size_t>(c.bound) * H);
        Dev<float> dweights(weights);
        snprintf(name, sizeof name, "permute %d of %d arrived, k=%d H=%d", c.T, c.bound, c.k, c.H);
        CUDA(cudaMemset(out.p, 0, (R + 1) * H * 2));
        CUDA(fr_k_permute_arrived(dx.p, rows.p, arrived.p, out.p, c.bound, c.k, c.H, 0));
        CUDA(cudaDeviceSynchronize());
        std::vector<fr_bf16> moved((R + 1) * H, 0);
        for (size_t i = 0; i < R; i++) std::copy_n(&x[static_cast<size_t>(want.token_of_row[i]) * H], H, &moved[i * H]);
        equal(name, out.get(), moved);

        /* the same sums as combine's, bit for bit, and the rest untouched */
        snprintf(name, sizeof name, "reduce %d of %d arrived, k=%d H=%d", c.T, c.bound, c.k, c.H);
        Dev<fr_bf16> same(static_cast<size_t>(c.bound) * H);
        CUDA(cudaMemset(same.p, 0x11, same.n * 2));
        CUDA(cudaMemset(sum.p, 0x11, sum.n * 2));
        CUDA(fr_k_combine(dy.p, rows.p, dweights.p, nullptr, same.p, nullptr, nullptr, 0, c.T, c.k, c.H, 0));
        CUDA(fr_k_reduce(dy.p, rows.p, dweights.p, arrived.p, nullptr, sum.p, c.bound, c.k, c.H, 0));
        CUDA(cudaDeviceSynchronize());
        equal(name, sum.get(), same.get());

        /* without places and weights: residual + row */
        snprintf(name, sizeof name, "reduce of whole rows T=%d H=%d", c.bound, c.H);
        auto z = random_bf(r, x.size());
        Dev<fr_bf16> dz(z);
        CUDA(fr_k_reduce(dx.p, nullptr, nullptr, nullptr, dz.p, dz.p, c.bound, 1, c.H, 0));
        CUDA(cudaDeviceSynchronize());
        std::vector<double> added(x.size());
        for (size_t i = 0; i < x.size(); i++) added[i] = round_bf(bf_to_float(x[i]) + bf_to_float(z[i]));
        compare(name, dz.get(), added, relative(added, 0));

        /* and the next layer's normed rows of the same sums */
        snprintf(name, sizeof name, "combine + norm of whole rows T=%d H=%d", c.bound, c.H);
        auto w = random_bf(r, H);
        Dev<fr_bf16> dw(w), d2(z), normed(x.size());
        CUDA(fr_k_combine(dx.p, nullptr, nullptr, d2.p, d2.p, dw.p, normed.p, 1e-6f, c.bound, 1, c.H, 0));
        CUDA(cudaDeviceSynchronize());
        equal(name, d2.get(), dz.get());
        std::vector<double> want_norm(x.size());
        for (int t = 0; t < c.bound; t++)
            norm_reference(&added[static_cast<size_t>(t) * H], w.data(), 1e-6, c.H,
                           &want_norm[static_cast<size_t>(t) * H]);
        compare(name, normed.get(), want_norm, relative(want_norm, 3 * U));
    }
}

static void test_permute_combine() {
    struct {
        int T, k, E, H, first, local;
    } cases[] = {{301, 8, 128, 4096, 0, 128},
                 {77, 2, 8, 1000, 0, 8},
                 {50, 4, 16, 2048, 4, 4},
                 {9, 9, 16, 7168, 0, 16},
                 {3, 1, 2, 16384, 0, 2}};
    for (auto &c : cases) {
        Random r(static_cast<uint64_t>(c.H));
        const auto route = route_reference(random_ids(r, c.T, c.k, c.E, 0), c.k, c.first, c.local);
        const size_t R = route.token_of_row.size(), N = static_cast<size_t>(c.T) * c.H;
        auto x = random_bf(r, N), y = random_bf(r, R * c.H), w = random_bf(r, c.H);
        std::vector<float> weights(route.ids.size());
        for (auto &v : weights) v = static_cast<float>(r.uniform());
        Dev<fr_bf16> dx(x), dy(y), dw(w), out(R * c.H), sum(N), norm(N);
        Dev<int32_t> rows(route.row_of_slot);
        Dev<float> dweights(weights);
        char name[96];
        snprintf(name, sizeof name, "permute T=%d k=%d H=%d", c.T, c.k, c.H);
        auto got = twice(name, out, [&] { return fr_k_permute(dx.p, rows.p, out.p, c.T, c.k, c.H, 0); });
        std::vector<fr_bf16> want(R * c.H);
        for (size_t i = 0; i < R; i++)
            std::copy_n(&x[static_cast<size_t>(route.token_of_row[i]) * c.H], c.H, &want[i * c.H]);
        equal(name, got, want);

        for (int residual = 0; residual < 2; residual++) {
            std::vector<double> s(N), tol(N), nw(N);
            for (int t = 0; t < c.T; t++)
                for (int h = 0; h < c.H; h++) {
                    double v = residual ? bf_to_float(x[static_cast<size_t>(t) * c.H + h]) : 0, a = std::fabs(v);
                    for (int j = 0; j < c.k; j++) {
                        const int row = route.row_of_slot[static_cast<size_t>(t) * c.k + j];
                        if (row < 0) continue;
                        const double p = static_cast<double>(weights[static_cast<size_t>(t) * c.k + j]) *
                                         bf_to_float(y[static_cast<size_t>(row) * c.H + h]);
                        v += p, a += std::fabs(p);
                    }
                    s[static_cast<size_t>(t) * c.H + h] = v, tol[static_cast<size_t>(t) * c.H + h] =
                                                                 U * std::fabs(v) + 1e-6 * a + 1e-30;
                }
            snprintf(name, sizeof name, "combine T=%d k=%d H=%d residual=%d", c.T, c.k, c.H, residual);
            const fr_bf16 *res = residual ? dx.p : nullptr;
            auto plain = twice(name, sum, [&] {
                return fr_k_combine(dy.p, rows.p, dweights.p, res, sum.p, nullptr, nullptr, 0, c.T, c.k, c.H, 0);
            });
            compare(name, plain, s, tol);
            snprintf(name, sizeof name, "combine + norm T=%d k=%d H=%d residual=%d", c.T, c.k, c.H, residual);
            auto normed = twice(name, norm, [&] {
                return fr_k_combine(dy.p, rows.p, dweights.p, res, sum.p, dw.p, norm.p, 1e-6f, c.T, c.k, c.H, 0);
            });
            equal(name, sum.get(), plain);
            std::vector<double> row(N);
            for (size_t i = 0; i < N; i++) row[i] = bf_to_float(plain[i]);
            for (int t = 0; t < c.T; t++)
                norm_reference(&row[static_cast<size_t>(t) * c.H], w.data(), 1e-6, c.H,
                               &nw[static_cast<size_t>(t) * c.H]);
            compare(name, normed, nw, relative(nw, 3 * U));
        }
    }
}

static void test_swiglu() {
    for (int I : {8, 768, 1000}) {
        const int n = 45;
        Random r(static_cast<uint64_t>(I));
        auto x = random_bf(r, static_cast<size_t>(n) * 2 * I, 3);
        Dev<fr_bf16> dx(x), out(static_cast<size_t>(n) * I);
        for (int inter = 0; inter < 2; inter++) {
            std::vector<double> want(out.n);
            for (int i = 0; i < n; i++)
                for (int c = 0; c < I; c++) {
                    const size_t row = static_cast<size_t>(i) * 2 * I;
                    const size_t g = inter ? row + c / 8 * 16 + c % 8 : row + c, u = inter ? g + 8 : g + I;
                    want[static_cast<size_t>(i) * I + c] = silu(bf_to_float(x[g])) * bf_to_float(x[u]);
                }
            char name[64];
            snprintf(name, sizeof name, "swiglu I=%d interleaved=%d", I, inter);
            compare(name, twice(name, out, [&] { return fr_k_swiglu(dx.p, out.p, n, I, inter, 0); }), want,
                    relative(want, 1.01 * U));
        }
        const int E = 3, K = 40;
        auto w = random_bf(r, static_cast<size_t>(E) * 2 * I * K);
        Dev<fr_bf16> dw(w), packed(w.size());
        const int64_t stride = 2LL * I * K;
        auto got = twice("pack gate/up", packed,
                         [&] { return fr_k_pack_gate_up(dw.p, stride, dw.p + I * K, stride, packed.p, E, I, K, 0); });
        std::vector<fr_bf16> want(w.size());
        for (int e = 0; e < E; e++)
            for (int i = 0; i < I; i++)
                for (int u = 0; u < 2; u++)
                    std::copy_n(&w[static_cast<size_t>(e * stride + (static_cast<int64_t>(u) * I + i) * K)], K,
                                &want[static_cast<size_t>(e * stride +
                                                          (static_cast<int64_t>(i) / 8 * 16 + u * 8 + i % 8) * K)]);
        equal("pack gate/up", got, want);
    }
}

static void test_fill() {
    const int64_t n = 1 << 20;
    Dev<fr_bf16> x(n), y(n);
    auto all = twice("fill", x, [&] { return fr_k_fill_normal(x.p, n, 7, 0, 0.5f, 0); });
    CUDA(fr_k_fill_normal(y.p, 1000, 7, 0, 0.5f, 0));
    CUDA(fr_k_fill_normal(y.p + 1000, n - 1000, 7, 1000, 0.5f, 0));
    equal("fill in two parts", y.get(), all);
    Dev<fr_bf16> z(300 * 77);
    CUDA(fr_k_fill_region(z.p, 300, 77, 1000, 7, 12345, 0.5f, 0));
    std::vector<fr_bf16> region(300 * 77);
    for (int i = 0; i < 300 * 77; i++) region[i] = all[12345 + i / 77 * 1000 + i % 77];
    equal("fill of a region", z.get(), region);
    double s = 0, q = 0, lag = 0;
    for (int64_t i = 0; i < n; i++) {
        const double v = bf_to_float(all[i]);
        s += v, q += v * v, lag += i ? v * bf_to_float(all[i - 1]) : 0;
    }
    /* mean 0, deviation 0.5, no correlation of neighbours: five standard errors of 2^20 draws */
    verdict(std::fabs(s / n) < 0.5 * 5 / 1024 && std::fabs(q / n - 0.25) < 0.25 * 5 * 1.5 / 1024 &&
                std::fabs(lag / n) < 0.25 * 5 / 1024,
            "fill moments", "outside");
}

/* ---- products ---- */
struct Dot {
    double sum, size;
};

static Dot dot(const fr_bf16 *a, const fr_bf16 *b, int K) {
    Dot d = {0, 0};
    for (int k = 0; k < K; k++) {
        const double p = static_cast<double>(bf_to_float(a[k])) * bf_to_float(b[k]);
        d.sum += p, d.size += std::fabs(p);
    }
    return d;
}

static const char *variant_name[] = {"single", "cluster", "single skew", "cluster skew"};

struct Grouped {
    const char *name;
    int N, K;
    std::vector<int> rows;
    bool swiglu;
};

static void test_grouped_case(const Grouped &c, fr_grouped_loop *loop) {
    fr_error err;
    const int E = static_cast<int>(c.rows.size()), spare = 9;
    std::vector<int32_t> offsets(E + 1, 0);
    for (int e = 0; e < E; e++) offsets[e + 1] = offsets[e] + c.rows[e];
    const int R = offsets[E], tokens = R / 2 + 3, width = c.swiglu ? c.N / 2 : c.N;
    Random r(static_cast<uint64_t>(R * 7 + c.N + c.K));
    auto x = random_bf(r, static_cast<size_t>(tokens) * c.K),
         b = random_bf(r, static_cast<size_t>(E) * c.N * c.K, 1 / std::sqrt(c.K));
    std::vector<int32_t> token(R + spare);
    for (auto &t : token) t = r.below(tokens);
    std::vector<fr_bf16> a(static_cast<size_t>(R + spare) * c.K);
    for (int i = 0; i < R + spare; i++)
        std::copy_n(&x[static_cast<size_t>(token[i]) * c.K], c.K, &a[static_cast<size_t>(i) * c.K]);
    Dev<fr_bf16> da(a), dx(x), db(b), out(static_cast<size_t>(R + spare) * width);
    Dev<int32_t> doff(offsets), dtoken(token);
    Dev<uint32_t> counter(std::vector<uint32_t>{0});

    /* every element of small cases, a sample of large ones, always with the edges of tiles */
    std::vector<std::pair<int, int>> at;
    const int64_t total = static_cast<int64_t>(R) * width, most = 150000000 / c.K;
    for (int64_t i = 0; i < std::min(total, most); i++) {
        const int64_t j = total <= most ? i : static_cast<int64_t>(r.next() % static_cast<uint64_t>(total));
        at.emplace_back(static_cast<int>(j / width), static_cast<int>(j % width));
    }
    std::vector<double> want(at.size()), tol(at.size());
    parallel(static_cast<int64_t>(at.size()), [&](int64_t i) {
        const int row = at[i].first, n = at[i].second;
        const int e = static_cast<int>(std::upper_bound(offsets.begin(), offsets.end(), row) - offsets.begin()) - 1;
        const fr_bf16 *ar = &a[static_cast<size_t>(row) * c.K], *be = &b[static_cast<size_t>(e) * c.N * c.K];
        if (!c.swiglu) {
            const Dot d = dot(ar, be + static_cast<size_t>(n) * c.K, c.K);
            want[i] = d.sum, tol[i] = U * std::fabs(d.sum) + A * d.size;
            return;
        }
        const int g = n / 8 * 16 + n % 8;
        const Dot dg = dot(ar, be + static_cast<size_t>(g) * c.K, c.K),
                  du = dot(ar, be + static_cast<size_t>(g + 8) * c.K, c.K);
        want[i] = silu(dg.sum) * du.sum; /* |silu'| <= 1.1; fast exp and division: 2^-20 */
        tol[i] = (U + 0x1p-18) * std::fabs(want[i]) +
                 A * (1.1 * dg.size * std::fabs(du.sum) + du.size * std::fabs(silu(dg.sum)) + A * dg.size * du.size);
    });

    std::vector<fr_bf16> reference;
    for (int v = 0; v < FR_K_GROUPED_VARIANTS + 1; v++) {
        const bool gather = v == FR_K_GROUPED_VARIANTS;
        const int variant = gather ? FR_K_GROUPED_SINGLE : v;
        char name[128];
        snprintf(name, sizeof name, "grouped %s N=%d K=%d swiglu=%d %s%s", c.name, c.N, c.K, c.swiglu,
                 variant_name[variant], gather ? " gather" : "");
        fr_k_grouped_args g = {};
        g.a = gather ? dx.p : da.p, g.b = db.p, g.c = out.p, g.offsets = doff.p, g.counter = counter.p,
        g.token_of_row = gather ? dtoken.p : nullptr;
        g.rows = R + spare, g.a_rows = tokens, g.E = E, g.N = c.N, g.K = c.K, g.swiglu = c.swiglu;
        auto got = twice(name, out, [&] { return fr_k_grouped_gemm_variant(&g, variant, 0); });
        verdict(counter.get()[0] == 0, name, "counter not back at zero");
        bool untouched = true;
        for (size_t i = static_cast<size_t>(R) * width; i < got.size(); i++) untouched = untouched && got[i] == 0xffff;
        verdict(untouched, name, "wrote rows past the last expert");
        std::vector<fr_bf16> picked(at.size());
        for (size_t i = 0; i < at.size(); i++) picked[i] = got[static_cast<size_t>(at[i].first) * width + at[i].second];
        compare(name, picked, want, tol);
        bool all = true;
        for (size_t i = 0; i < static_cast<size_t>(R) * width; i++) all = all && (got[i] & 0x7fff) <= 0x7f80;
        verdict(all, name, "NaN: an element was not written");
        if (reference.empty())
            reference = got;
        else
            equal((std::string(name) + ", bits of the first variant").c_str(), got, reference);
    }
    if (!c.swiglu && R) {
        char name[128];
        snprintf(name, sizeof name, "loop of cublasLt %s N=%d K=%d", c.name, c.N, c.K);
        auto got = twice(name, out, [&] {
            FR(fr_grouped_loop_run(loop, da.p, db.p, out.p, offsets.data(), E, c.N, c.K, 0, &err));
            return cudaSuccess;
        });
        std::vector<fr_bf16> picked(at.size());
        for (size_t i = 0; i < at.size(); i++) picked[i] = got[static_cast<size_t>(at[i].first) * width + at[i].second];
        compare(name, picked, want, tol);
    }
}

static void test_grouped() {
    fr_error err;
    fr_grouped_loop *loop;
    FR(fr_grouped_loop_open(&loop, 4, &err));
    const std::vector<int> edges = {0, 1, 63, 64, 0, 65, 127, 128, 129, 0, 191, 192, 193, 300, 5, 0};
    std::vector<int> many(512), typical(128), one(8, 0);
    Random r(99);
    for (auto &m : many) m = r.below(5) ? r.below(9) : 70;
    for (auto &m : typical) m = r.below(260);
    one[5] = 1500;
    for (int s = 0; s < 2; s++) {
        test_grouped_case({"edges", 512, 256, edges, s == 1}, loop);
        test_grouped_case({"edges, ragged N and K", 528, 72, edges, s == 1}, loop);
        test_grouped_case({"narrow", 48, 8, edges, s == 1}, loop);
        test_grouped_case({"one expert", 768, 512, {333}, s == 1}, loop);
        test_grouped_case({"one row", 256, 64, {1}, s == 1}, loop);
        test_grouped_case({"one takes all", 768, 320, one, s == 1}, loop);
        test_grouped_case({"512 experts", 256, 128, many, s == 1}, loop);
        test_grouped_case({"128 experts", 1536, 1024, typical, s == 1}, loop);
        test_grouped_case({"wide", 28672, 128, {130, 0, 257}, s == 1}, loop);
        test_grouped_case({"no rows", 256, 64, {0, 0, 0}, s == 1}, loop);
    }
    fr_grouped_loop_close(loop);
}

/*
 * Weights in two places: a run of experts in a shard of its own, the others in a gather buffer that has all places or
 * only theirs. What the buffer holds at the run's places is NaN; every split must give the bits of one array.
 */
static void test_grouped_own_case(const Grouped &c) {
    const int E = static_cast<int>(c.rows.size()), width = c.swiglu ? c.N / 2 : c.N;
    const size_t one = static_cast<size_t>(c.N) * c.K;
    std::vector<int32_t> offsets(E + 1, 0);
    for (int e = 0; e < E; e++) offsets[e + 1] = offsets[e] + c.rows[e];
    const int R = offsets[E];
    Random r(static_cast<uint64_t>(R * 11 + c.N + c.K));
    auto a = random_bf(r, static_cast<size_t>(R) * c.K), b = random_bf(r, E * one, 1 / std::sqrt(c.K));
    std::vector<int32_t> token(R);
    for (int i = 0; i < R; i++) token[i] = R - 1 - i;
    std::vector<fr_bf16> x(a.size()); /* row i of a is row token[i] of x */
    for (int i = 0; i < R; i++)
        std::copy_n(&a[static_cast<size_t>(i) * c.K], c.K, &x[static_cast<size_t>(token[i]) * c.K]);
    Dev<fr_bf16> da(a), dx(x), db(b), out(static_cast<size_t>(R) * width);
    Dev<int32_t> doff(offsets), dtoken(token);
    Dev<uint32_t> counter(std::vector<uint32_t>{0});
    fr_k_grouped_args g = {};
    g.a = da.p, g.b = db.p, g.c = out.p, g.offsets = doff.p, g.counter = counter.p, g.rows = g.a_rows = R, g.E = E,
    g.N = c.N, g.K = c.K, g.swiglu = c.swiglu;
    CUDA(fr_k_grouped_gemm_variant(&g, 0, 0));
    const auto want = out.get();
    const std::pair<int, int> runs[] = {{0, (E + 1) / 2}, {E / 2, E}, {E / 3, E / 3 + 1}, {0, E}, {E / 2, E / 2}};
    for (auto [first, end] : runs)
        for (int packed = 0; packed < 2; packed++) {
            std::vector<fr_bf16> own(b.begin() + first * one, b.begin() + end * one), rest(b);
            if (packed)
                rest.erase(rest.begin() + first * one, rest.begin() + end * one);
            else
                std::fill(rest.begin() + first * one, rest.begin() + end * one, fr_bf16{0xffff});
            own.resize(own.size() + 8);
            rest.resize(rest.size() + 8);
            Dev<fr_bf16> down(own), drest(rest);
            g.own = down.p, g.b = drest.p, g.own_first = first, g.own_end = end, g.packed = packed;
            for (int v = 0; v < FR_K_GROUPED_VARIANTS + 1; v++) {
                const bool gather = v == FR_K_GROUPED_VARIANTS;
                char name[128];
                snprintf(name, sizeof name, "own weights %s [%d, %d) of %d N=%d K=%d swiglu=%d %s %s", c.name, first,
                         end, E, c.N, c.K, c.swiglu, packed ? "packed" : "indexed",
                         gather ? "gather" : variant_name[v]);
                g.a = gather ? dx.p : da.p, g.token_of_row = gather ? dtoken.p : nullptr;
                auto got = twice(name, out, [&] { return fr_k_grouped_gemm_variant(&g, gather ? 0 : v, 0); });
                equal((std::string(name) + ", bits of one array").c_str(), got, want);
                verdict(counter.get()[0] == 0, name, "counter not back at zero");
            }
        }
    g.own = db.p, g.own_first = 0, g.own_end = E + 1;
    verdict(fr_k_grouped_gemm(&g, 0) == cudaErrorInvalidValue, "own weights", "a run past the last expert was taken");
}

static void test_grouped_own() {
    std::vector<int> typical(128), skewed(16, 3);
    Random r(8);
    for (auto &n : typical) n = r.below(60);
    skewed[5] = 900, skewed[6] = 0;
    for (bool swiglu : {false, true}) {
        test_grouped_own_case({"two experts", 512, 256, {200, 131}, swiglu});
        test_grouped_own_case({"ragged", 528, 72, {0, 64, 65, 1, 0, 127, 128, 129}, swiglu});
        test_grouped_own_case({"skewed", 768, 320, skewed, swiglu});
        test_grouped_own_case({"128 experts", 768, 128, typical, swiglu});
    }
}

static void test_gemm() {
    fr_error err;
    fr_gemm *g;
    FR(fr_gemm_open(&g, &err));
    Dev<uint8_t> ws(32 << 20);
    struct {
        int M, N, K;
        bool add, f32;
        int like; /* rows that the algorithm is chosen for; 0: these */
    } cases[] = {
        {1, 128, 2048, false, true, 0},      {37, 264, 200, false, false, 0},     {300, 1024, 512, true, false, 0},
        {1000, 128, 512, false, true, 0},    {129, 512, 4096, false, false, 0},   {1, 512, 4096, true, false, 128},
        {129, 512, 4096, false, false, 256}, {256, 512, 4096, true, false, 0},    {255, 512, 4096, true, false, 256},
        {1300, 128, 512, false, true, 1408}, {2050, 1024, 512, true, false, 2304}};
    for (auto &c : cases) {
        Random r(static_cast<uint64_t>(c.M));
        auto x = random_bf(r, static_cast<size_t>(c.M) * c.K),
             w = random_bf(r, static_cast<size_t>(c.N) * c.K, 1 / std::sqrt(c.K)),
             add = random_bf(r, static_cast<size_t>(c.M) * c.N);
        Dev<fr_bf16> dx(x), dw(w), dadd(add);
        std::vector<double> want(add.size()), tol(add.size());
        parallel(c.M, [&](int64_t m) {
            for (int n = 0; n < c.N; n++) {
                const size_t i = static_cast<size_t>(m) * c.N + n;
                const Dot d = dot(&x[static_cast<size_t>(m) * c.K], &w[static_cast<size_t>(n) * c.K], c.K);
                want[i] = d.sum + (c.add ? bf_to_float(add[i]) : 0);
                tol[i] = (c.f32 ? 1e-6 : U) * std::fabs(want[i]) + A * d.size;
            }
        });
        fr_gemm_args a = {};
        a.x = dx.p, a.w = dw.p, a.add = c.add ? dadd.p : nullptr, a.M = c.M, a.N = c.N, a.K = c.K, a.out_f32 = c.f32,
        a.workspace = ws.p, a.workspace_bytes = ws.n, a.like_M = c.like;
        char name[96];
        snprintf(name, sizeof name, "gemm M=%d like %d N=%d K=%d add=%d fp32=%d", c.M, c.like, c.N, c.K, c.add, c.f32);
        if (c.f32) {
            Dev<float> out(add.size());
            a.out = out.p;
            auto got = twice(name, out, [&] {
                FR(fr_gemm_run(g, &a, 0, &err));
                return cudaSuccess;
            });
            bool ok = true;
            for (size_t i = 0; i < got.size(); i++) ok = ok && std::fabs(got[i] - want[i]) <= tol[i];
            verdict(ok, name, "outside");
        } else {
            Dev<fr_bf16> out(add.size());
            a.out = out.p;
            compare(name,
                    twice(name, out,
                          [&] {
                              FR(fr_gemm_run(g, &a, 0, &err));
                              return cudaSuccess;
                          }),
                    want, tol);
        }
    }
    fr_gemm_close(g);
}

struct Sequences {
    int hq, hk, D;
    std::vector<int> q, kv;
    bool cache, uniform;
};

/* bound: the length that graphs are declared for, 0 = the longest there is. */
static void test_attention_cases(const std::vector<Sequences> &cases, bool share_kernels, int bound = 0) {
    fr_error err;
    fr_attention *a;
    FR(fr_attention_open(&a, share_kernels, &err));
    for (auto &c : cases) {
        const int b = static_cast<int>(c.q.size()), gap = c.cache && !c.uniform ? 40 : 0;
        std::vector<int32_t> q_start(b + 1, 0), kv_start(b), kv_len(c.kv.begin(), c.kv.end());
        int kv_rows = 0, max_q = 1, max_kv = 1;
        for (int i = 0; i < b; i++) {
            q_start[i + 1] = q_start[i] + c.q[i];
            kv_start[i] = kv_rows, kv_rows += c.kv[i] + gap;
            max_q = std::max(max_q, c.q[i]), max_kv = std::max(max_kv, c.kv[i]);
        }
        const int T = q_start[b];
        Random r(static_cast<uint64_t>(T + c.hq));
        const int64_t qs = static_cast<int64_t>(c.hq + 2 * c.hk) * c.D,
                      ks = c.cache ? static_cast<int64_t>(c.hk) * c.D : qs, os = static_cast<int64_t>(c.hq) * c.D;
        auto qkv = random_bf(r, static_cast<size_t>(T * qs)), kc = random_bf(r, static_cast<size_t>(kv_rows * ks)),
             vc = random_bf(r, static_cast<size_t>(kv_rows * ks));
        Dev<fr_bf16> dq(qkv), dk(kc), dv(vc), out(static_cast<size_t>(T * os));
        Dev<int32_t> dqs(q_start), dks(kv_start), dkl(kv_len), meta(fr_k_attention_meta_bytes(b) / 4);
        CUDA(
            fr_k_attention_meta(dqs.p, c.cache ? dks.p : nullptr, c.cache ? dkl.p : nullptr, b, qs, ks, os, meta.p, 0));
        const int64_t ko = static_cast<int64_t>(c.hq) * c.D, vo = static_cast<int64_t>(c.hq + c.hk) * c.D;
        fr_attention_args x = {};
        x.q = dq.p, x.k = c.cache ? dk.p : dq.p + ko, x.v = c.cache ? dv.p : dq.p + vo, x.out = out.p;
        x.meta = c.uniform ? nullptr : meta.p;
        x.q_stride = qs, x.kv_stride = ks, x.o_stride = os, x.b = b, x.max_q = std::max(bound, max_q),
        x.max_kv = std::max(bound, max_kv);
        x.heads_q = c.hq, x.heads_kv = c.hk, x.D = c.D, x.scale = 1 / std::sqrt(static_cast<float>(c.D));
        FR(fr_attention_workspace(a, &x, &x.workspace_bytes, &err));
        Dev<uint8_t> ws(x.workspace_bytes);
        x.workspace = ws.p;
        char name[96];
        snprintf(name, sizeof name, "attention heads %d/%d D=%d b=%d T=%d%s%s%s%s", c.hq, c.hk, c.D, b, T,
                 c.cache ? " cached" : "", c.uniform ? " uniform" : "", share_kernels ? " shared" : "",
                 bound ? " declared longer" : "");
        auto got = twice(name, out, [&] {
            FR(fr_attention_run(a, &x, 0, &err));
            return cudaSuccess;
        });
        std::vector<double> want(got.size()), tol(got.size());
        parallel(static_cast<int64_t>(T) * c.hq, [&](int64_t w) {
            const int t = static_cast<int>(w / c.hq), h = static_cast<int>(w % c.hq), g = h / (c.hq / c.hk);
            int s = 0;
            while (q_start[s + 1] <= t) s++;
            const int seen = t - q_start[s] + c.kv[s] - c.q[s] + 1;
            std::vector<double> p(seen);
            double top = -1e30, sum = 0;
            auto row = [&](int j, const fr_bf16 *cache, int64_t at) {
                return c.cache ? cache + (kv_start[s] + j) * ks + static_cast<int64_t>(g) * c.D
                               : &qkv[static_cast<size_t>((q_start[s] + j) * qs + at + static_cast<int64_t>(g) * c.D)];
            };
            for (int j = 0; j < seen; j++) {
                p[j] =
                    dot(&qkv[static_cast<size_t>(t * qs + static_cast<int64_t>(h) * c.D)], row(j, kc.data(), ko), c.D)
                        .sum /
                    std::sqrt(static_cast<double>(c.D));
                top = std::max(top, p[j]);
            }
            for (auto &v : p) sum += v = std::exp(v - top);
            for (int i = 0; i < c.D; i++) {
                double o = 0, size = 0;
                for (int j = 0; j < seen; j++) {
                    const double v = p[j] / sum * bf_to_float(row(j, vc.data(), vo)[i]);
                    o += v, size += std::fabs(v);
                }
                /* probabilities are rounded to bf16 before the second product: U of each term */
                want[static_cast<size_t>(t * os + h * c.D + i)] = o;
                tol[static_cast<size_t>(t * os + h * c.D + i)] = U * std::fabs(o) + 1.1 * U * size + 1e-6;
            }
        });
        compare(name, got, want, tol);
    }
    fr_attention_close(a);
}

static const std::vector<Sequences> packed = {
    {4, 2, 128, {1, 5, 128, 300, 64}, {1, 5, 128, 300, 64}, false, false},
    {64, 4, 128, {257, 31}, {257, 31}, false, false},
    {6, 3, 64, {129, 1}, {129, 1}, false, false},
    {4, 1, 128, {1, 100, 128, 37}, {500, 333, 128, 38}, true, false},
    {4, 2, 128, {17, 0, 200}, {17, 0, 200}, false, false},
    {8, 2, 128, {700}, {1000}, true, false},
    {4, 2, 128, {1200}, {1200}, false, false},
    {4, 2, 128, {10, 20, 30, 40, 50, 60, 70, 80}, {10, 20, 30, 40, 50, 60, 70, 80}, false, false}};

static void test_attention() {
    test_attention_cases(packed, false);
    test_attention_cases({{4, 2, 128, {300, 300, 300}, {300, 300, 300}, false, true},
                          {64, 4, 128, {128, 128}, {128, 128}, false, true},
                          {6, 3, 64, {77}, {77}, false, true},
                          {4, 1, 128, {100, 100}, {356, 356}, true, true}},
                         false);
}

/* Kernels shared by shapes: several lengths of the same number of sequences, and other numbers between them. */
static void test_attention_shared() {
    test_attention_cases(packed, true);
    test_attention_cases(packed, true, 8192); /* as the engine declares them */
    test_attention_cases({{4, 2, 128, {700, 1, 90}, {700, 1, 90}, false, false},
                          {4, 2, 128, {3, 20, 11}, {3, 20, 11}, false, false},
                          {4, 2, 128, {5}, {5}, false, false},
                          {4, 2, 128, {1000, 600, 0}, {1000, 600, 0}, false, false},
                          {4, 2, 128, {300, 300}, {300, 300}, false, true},
                          {4, 2, 128, {77, 77}, {77, 77}, false, true},
                          {4, 2, 128, {2000, 2000}, {2000, 2000}, false, true}},
                         true);
}

int main(int argc, char **argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    int driver = 0, runtime = 0;
    cudaDeviceProp prop;
    CUDA(cudaGetDeviceProperties(&prop, 0));
    CUDA(cudaDriverGetVersion(&driver));
    CUDA(cudaRuntimeGetVersion(&runtime));
    printf("%s, CUDA driver %d, runtime %d, cublasLt %lld, cuDNN %lld\n", prop.name, driver, runtime,
           static_cast<long long>(fr_gemm_version()), static_cast<long long>(fr_attention_version()));
    const struct {
        const char *name;
        void (*run)();
    } tests[] = {{"embedding", test_embedding}, {"words", test_words},
                 {"norms", test_norms},         {"logits", test_logits},
                 {"rope", test_rope},           {"router", test_router},
                 {"route", test_route},         {"permute", test_permute_combine},
                 {"arrived", test_arrived},     {"swiglu", test_swiglu},
                 {"fill", test_fill},           {"gemm", test_gemm},
                 {"grouped", test_grouped},     {"grouped-own", test_grouped_own},
                 {"attention", test_attention}, {"attention-shared", test_attention_shared}};
    for (auto &t : tests)
        if (argc < 2 || !strcmp(argv[1], t.name)) t.run();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

/*
 * test_carry: packing for expert ranks, push into a payload, drain of a group's payloads, results given back
 * (kernels/carry.h) against a CPU reference, bit by bit; with a second GPU the expert side lies there. Rows, ids and
 * places are integers that say whose they are; what nobody may write stays poisoned.
 *
 * usage: test_carry [bench]      bench: GB/s of a push
 */
#include "kernels/carry.h"
#include "kernels/exchange.h"
#include "tests/gpu/gpu.h"

static int passed, failed, devices = 1;

struct Case {
    const char *name;
    int tp, targets, experts, k, H;
    int64_t tokens; /* of the group; its ranks take shares */
    bool few;       /* all tokens choose the first k experts: other targets get nothing */
};

static void expect(bool ok, const Case &c, const char *what) {
    (ok ? passed : failed)++;
    if (!ok) printf("FAILED %s: %s\n", c.name, what);
}

static void on(int device) {
    CUDA(cudaSetDevice(devices > 1 ? device : 0));
}

template <typename T> static T *room(size_t n) {
    T *p;
    CUDA(cudaMalloc(&p, (n + 1) * sizeof(T)));
    CUDA(cudaMemset(p, 0xff, (n + 1) * sizeof(T)));
    return p;
}
template <typename T> static std::vector<T> fetch(const T *p, size_t n) {
    std::vector<T> v(n);
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDefault));
    return v;
}

/* One rank of the group: tokens [first, first + T) of it. */
struct Source {
    int64_t T = 0, first = 0;
    std::vector<int32_t> ids;
    std::vector<float> weights;
    std::vector<fr_bf16> rows;
    fr_bf16 *normed, *send, *results, *payload;
    int32_t *d_ids, *row_of_copy, *source_of_copy, *p_ids, *range;
    float *d_weights, *p_weights;
    fr_k_exchange x = {};
};

static std::vector<Source> open_group(const Case &c, int64_t carried) {
    Random r(17);
    std::vector<Source> group(static_cast<size_t>(c.tp));
    int64_t first = 0;
    for (int t = 0; t < c.tp; t++) {
        Source &s = group[static_cast<size_t>(t)];
        const size_t k = static_cast<size_t>(c.k), H = static_cast<size_t>(c.H);
        s.T = c.tokens / c.tp + (t < c.tokens % c.tp), s.first = first;
        first += s.T;
        for (int64_t i = 0; i < s.T; i++) {
            std::vector<int32_t> all(static_cast<size_t>(c.experts));
            for (int e = 0; e < c.experts; e++) all[static_cast<size_t>(e)] = e;
            for (int j = 0; j < c.k; j++) {
                if (!c.few)
                    std::swap(all[static_cast<size_t>(j)], all[static_cast<size_t>(j + r.below(c.experts - j))]);
                s.ids.push_back(all[static_cast<size_t>(j)]);
                s.weights.push_back(static_cast<float>(r.uniform()));
            }
            for (size_t h = 0; h < H; h++) s.rows.push_back(static_cast<fr_bf16>(r.next()));
        }
        const size_t C = static_cast<size_t>(carried), E = static_cast<size_t>(c.targets);
        on(0);
        s.normed = room<fr_bf16>(C * H), s.send = room<fr_bf16>(C * E * H), s.results = room<fr_bf16>(C * E * H);
        s.d_ids = room<int32_t>(C * k), s.d_weights = room<float>(C * k);
        s.row_of_copy = room<int32_t>(C * E), s.source_of_copy = room<int32_t>(C * E);
        s.x.ranks = c.targets, s.x.parts = 1, s.x.experts = c.experts, s.x.top_k = c.k;
        s.x.block[0] = room<fr_x_block>(1);
        CUDA(cudaMemcpy(s.normed, s.rows.data(), s.rows.size() * 2, cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(s.d_ids, s.ids.data(), s.ids.size() * 4, cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(s.d_weights, s.weights.data(), s.weights.size() * 4, cudaMemcpyHostToDevice));
        on(1);
        s.payload = room<fr_bf16>(C * H), s.p_ids = room<int32_t>(C * k), s.p_weights = room<float>(C * k);
        s.range = room<int32_t>(2);
    }
    return group;
}

static bool goes_to(const Case &c, const Source &s, int64_t token, int e) {
    const int low = c.experts * e / c.targets, high = c.experts * (e + 1) / c.targets;
    bool any = false;
    for (int j = 0; j < c.k; j++) {
        const int id = s.ids[static_cast<size_t>(token * c.k + j)];
        any = any || (id >= low && id < high);
    }
    return any;
}

/* What expert rank e has taken in, and the rows it gives back: those that came, each bit turned. */
static void check_target(const Case &c, std::vector<Source> &group, int e, int64_t carried) {
    const int low = c.experts * e / c.targets, high = c.experts * (e + 1) / c.targets;
    const size_t H = static_cast<size_t>(c.H), k = static_cast<size_t>(c.k), all = static_cast<size_t>(c.tokens) + 1;
    on(1);
    fr_bf16 *recv = room<fr_bf16>(all * H);
    int32_t *ids = room<int32_t>(all * k), *landed = room<int32_t>(static_cast<size_t>(c.tp) + 1);
    float *weights = room<float>(all * k);
    bool first = true;
    for (int t = 0; t < c.tp; t++) {
        Source &s = group[static_cast<size_t>(t)];
        if (s.T == 0) continue; /* such ranks push nothing, and nothing of them is drained */
        on(0);
        fr_k_carry_args a = {};
        a.rows = s.send, a.range = s.x.block[0]->first + e, a.to = s.payload, a.ids = s.d_ids, a.weights = s.d_weights;
        a.source = s.source_of_copy, a.to_ids = s.p_ids, a.to_weights = s.p_weights, a.zeros = s.range;
        a.zeros_count = a.ends_count = 1, a.ends = s.range + 1, a.first = low, a.end = high, a.k = c.k, a.blocks = 16;
        a.H = c.H;
        CUDA(fr_k_carry(&a, nullptr));
        CUDA(cudaDeviceSynchronize());
        on(1);
        a = {};
        a.rows = s.payload, a.range = s.range, a.to = recv, a.at = first ? nullptr : landed + t, a.ids = s.p_ids;
        a.weights = s.p_weights, a.to_ids = ids, a.to_weights = weights, a.zeros = landed;
        a.zeros_count = first ? t + 1 : 0, a.ends = landed + t + 1, a.ends_count = c.tp - t, a.first = 0;
        a.end = c.experts, a.k = c.k, a.blocks = 132, a.H = c.H;
        CUDA(fr_k_carry(&a, nullptr));
        first = false;
    }
    CUDA(cudaDeviceSynchronize());
    if (first) return;
    std::vector<fr_bf16> want_rows;
    std::vector<int32_t> want_ids, want_landed(1, 0);
    std::vector<float> want_weights;
    for (const Source &s : group) {
        for (int64_t i = 0; i < s.T; i++) {
            if (!goes_to(c, s, i, e)) continue;
            const auto row = s.rows.begin() + i * c.H;
            want_rows.insert(want_rows.end(), row, row + c.H);
            for (int j = 0; j < c.k; j++) {
                const int32_t id = s.ids[static_cast<size_t>(i * c.k + j)];
                want_ids.push_back(id >= low && id < high ? id : -1);
                want_weights.push_back(s.weights[static_cast<size_t>(i * c.k + j)]);
            }
        }
        want_landed.push_back(static_cast<int32_t>(want_rows.size() / H));
    }
    const size_t n = want_rows.size() / H;
    expect(fetch(landed, want_landed.size()) == want_landed, c, "where ranks' rows begin");
    expect(fetch(recv, n * H) == want_rows, c, "rows");
    expect(fetch(ids, n * k) == want_ids, c, "ids");
    expect(fetch(weights, n * k) == want_weights, c, "weights");
    expect(n >= all || fetch(recv + n * H, 1)[0] == 0xffff, c, "wrote behind the rows");
    for (fr_bf16 &v : want_rows) v = static_cast<fr_bf16>(~v);
    CUDA(cudaMemcpy(recv, want_rows.data(), want_rows.size() * 2, cudaMemcpyHostToDevice));
    for (int t = 0; t < c.tp; t++) {
        Source &s = group[static_cast<size_t>(t)];
        fr_k_carry_args a = {};
        a.rows = recv, a.range = landed + t, a.to = s.results + e * carried * c.H, a.blocks = 132, a.H = c.H;
        CUDA(fr_k_carry(&a, nullptr));
    }
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaFree(recv));
    CUDA(cudaFree(ids));
    CUDA(cudaFree(landed));
    CUDA(cudaFree(weights));
}

static void check(const Case &c) {
    const int64_t carried = (c.tokens + c.tp - 1) / c.tp;
    std::vector<Source> group = open_group(c, carried);
    on(0);
    for (Source &s : group) {
        if (s.T == 0) continue;
        char *workspace = room<char>(fr_k_pack_workspace(&s.x, s.T));
        CUDA(fr_k_pack(&s.x, s.d_ids, s.normed, s.T, c.H, s.row_of_copy, s.source_of_copy, s.send, workspace, nullptr));
        CUDA(fr_k_carry_places(s.row_of_copy, s.x.block[0]->first, s.T, c.targets, carried, nullptr));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaFree(workspace));
    }
    for (int e = 0; e < c.targets; e++) check_target(c, group, e, carried);
    on(0);
    for (Source &s : group) { /* every copy's result is where the combine looks for it */
        const auto places = fetch(s.row_of_copy, static_cast<size_t>(s.T * c.targets));
        const auto results = fetch(s.results, static_cast<size_t>(carried * c.targets * c.H));
        bool right = true;
        for (int64_t i = 0; i < s.T; i++)
            for (int e = 0; e < c.targets; e++) {
                const int32_t place = places[static_cast<size_t>(i * c.targets + e)];
                right = right && (place >= 0) == goes_to(c, s, i, e);
                for (int h = 0; h < c.H && place >= 0; h++)
                    right = right && results[static_cast<size_t>(place * c.H + h)] ==
                                         static_cast<fr_bf16>(~s.rows[static_cast<size_t>(i * c.H + h)]);
            }
        expect(right, c, "results");
    }
    printf("%s\n", c.name);
}

static void bench(int64_t rows, int H, int blocks) {
    on(1);
    fr_bf16 *to = room<fr_bf16>(static_cast<size_t>(rows * H));
    on(0);
    fr_bf16 *from = room<fr_bf16>(static_cast<size_t>(rows * H));
    const std::vector<int32_t> bounds = {0, static_cast<int32_t>(rows)};
    const Dev<int32_t> range(bounds);
    cudaEvent_t begin, end;
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    fr_k_carry_args a = {};
    a.rows = from, a.range = range.p, a.to = to, a.blocks = blocks, a.H = H;
    float ms = 0;
    const int times = 20;
    for (int i = -3; i < times; i++) {
        if (i == 0) CUDA(cudaEventRecord(begin, nullptr));
        CUDA(fr_k_carry(&a, nullptr));
    }
    CUDA(cudaEventRecord(end, nullptr));
    CUDA(cudaEventSynchronize(end));
    CUDA(cudaEventElapsedTime(&ms, begin, end));
    printf("carry %lld rows of %d, %d blocks, %s: %.1f us, %.1f GB/s\n", static_cast<long long>(rows), H, blocks,
           devices > 1 ? "to the peer" : "within", ms / times * 1e3, 2e-6 * static_cast<double>(rows) * H * times / ms);
    CUDA(cudaFree(from));
    CUDA(cudaFree(to));
}

int main(int argc, char **) {
    CUDA(cudaGetDeviceCount(&devices));
    devices = std::min(devices, 2);
    for (int d = 0; d < devices && devices > 1; d++) {
        CUDA(cudaSetDevice(d));
        CUDA(cudaDeviceEnablePeerAccess(1 - d, 0));
    }
    const Case all[] = {
        {"one rank, one target", 1, 1, 16, 4, 64, 300, false},
        {"two targets", 1, 2, 16, 4, 256, 300, false},
        {"tp 2, three targets", 2, 3, 18, 4, 64, 301, false},
        {"a rank without tokens", 2, 2, 16, 4, 64, 1, false},
        {"tp 4, few of them with tokens", 4, 2, 16, 4, 64, 3, false},
        {"a target without tokens", 2, 2, 16, 4, 64, 100, true},
        {"no tokens", 2, 2, 16, 4, 64, 0, false},
        {"many", 2, 4, 128, 8, 4096, 2000, false},
    };
    for (const Case &c : all) check(c);
    for (int blocks : {8, 16, 32, 132})
        if (argc > 1) bench(8192, 4096, blocks);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

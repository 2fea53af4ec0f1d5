/*
 * test_exchange: pack, counts, dispatch and back of kernels/exchange.h against a CPU reference, bit by bit, and their
 * speed.
 *
 * usage: test_exchange [check] [bench]      (default: both)
 *
 * One host thread a rank; rank r lives on GPU r mod the number of GPUs, so that groups of more ranks than GPUs are
 * checked too (their kernels are small enough to run side by side). Two GPUs are the least: of two ranks that share the
 * only one, a kernel may wait for one that CUDA does not start before the first has ended. Several layers follow each
 * other without the host in between, each with a routing of its own, and every layer's results are kept and compared.
 * Between dispatch and back the target marks each row it got, so that a row that comes back from a wrong place or rank
 * shows.
 *
 * A hang ends by itself: the kernels give up after 2 s, a watchdog ends the program.
 */
#include "kernels/exchange.h"
#include "tests/gpu/gpu.h"

#include <atomic>
#include <chrono>
#include <cuda.h>
#include <cuda_fp8.h>
#include <unistd.h>

/* ---- a group ------------------------------------------------------------------------------------------------------*/

struct Config {
    const char *name;
    int ranks, parts, experts, k, H;
    bool by_expert;
    std::vector<int> tokens; /* per rank */
    int routing;             /* 0 at random, 1 all tokens to the same k experts of the last ranks, 2 few experts */
    int layers;
    bool fp8 = false;
};

struct Rank {
    fr_k_exchange x = {};
    int device = 0;
    int64_t T = 0, capacity = 0;
    cudaStream_t stream = nullptr;
    fr_bf16 *normed, *send;
    char *recv[8], *wire[8]; /* wire: rows in fp8, before they are unpacked */
    int32_t *ids, *row_of_copy, *source_of_copy, *landed;
    float *weights;
    void *workspace;
};

static int devices;
static bool bulk; /* which way rows are pushed */

/* Threads meet, spinning. */
struct Meet {
    const int n;
    std::atomic<int> count{0}, turn{0};
    explicit Meet(int threads) : n(threads) {}
    void operator()() {
        const int t = turn.load();
        if (count.fetch_add(1) + 1 == n) {
            count.store(0);
            turn.store(t + 1);
            return;
        }
        while (turn.load() == t) std::this_thread::yield();
    }
};

template <typename T> static T *room(size_t n) {
    void *p;
    CUDA(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T)));
    CUDA(cudaMemset(p, 0xff, std::max<size_t>(n, 1) * sizeof(T)));
    return static_cast<T *>(p);
}

static size_t recv_bytes(const Config &c, int64_t capacity) {
    return static_cast<size_t>(capacity) *
           (2 * static_cast<size_t>(c.H) + 8 * static_cast<size_t>(c.by_expert ? 1 : c.k));
}

static std::vector<Rank> open_ranks(const Config &c) {
    std::vector<Rank> all(static_cast<size_t>(c.ranks));
    int64_t total = 0;
    for (int t : c.tokens) total += t;
    for (int r = 0; r < c.ranks; r++) {
        Rank &a = all[static_cast<size_t>(r)];
        a.device = r % devices;
        a.T = c.tokens[static_cast<size_t>(r)];
        a.capacity = total * (c.by_expert ? c.k : 1);
        CUDA(cudaSetDevice(a.device));
        a.x.ranks = c.ranks, a.x.me = r, a.x.parts = c.parts, a.x.experts = c.experts, a.x.top_k = c.k;
        a.x.by_expert = c.by_expert, a.x.fp8 = c.fp8, a.x.spin_ns = 2000000000;
        const size_t C = static_cast<size_t>(fr_k_exchange_copies(&a.x)), T = static_cast<size_t>(a.T);
        const size_t H = static_cast<size_t>(c.H), k = static_cast<size_t>(c.k);
        a.normed = room<fr_bf16>(T * H), a.send = room<fr_bf16>(T * std::min(C, k) * H);
        a.ids = room<int32_t>(T * k), a.weights = room<float>(T * k);
        a.row_of_copy = room<int32_t>(T * C), a.source_of_copy = room<int32_t>(T * C);
        for (int g = 0; g < c.parts; g++) {
            a.recv[g] = room<char>(recv_bytes(c, a.capacity));
            a.wire[g] = c.fp8 ? room<char>(static_cast<size_t>(a.capacity * fr_k_exchange_row(&a.x, c.H))) : nullptr;
        }
        a.landed = room<int32_t>(8);
        a.workspace = room<char>(fr_k_pack_workspace(&a.x, a.T));
        a.x.block[r] = room<fr_x_block>(1);
        CUDA(cudaMemset(a.x.block[r], 0, sizeof(fr_x_block)));
        CUDA(cudaHostAlloc(reinterpret_cast<void **>(&a.x.error), sizeof *a.x.error, cudaHostAllocPortable));
        memset(a.x.error, 0, sizeof *a.x.error);
        CUDA(cudaStreamCreateWithFlags(&a.stream, cudaStreamNonBlocking));
        CUDA(cudaDeviceSynchronize());
    }
    for (Rank &a : all)
        for (Rank &b : all) a.x.block[b.x.me] = b.x.block[b.x.me];
    return all;
}

static void close_ranks(const Config &c, std::vector<Rank> &all) {
    for (Rank &a : all) {
        CUDA(cudaSetDevice(a.device));
        CUDA(cudaDeviceSynchronize());
    }
    for (Rank &a : all) {
        CUDA(cudaSetDevice(a.device));
        for (void *p :
             {static_cast<void *>(a.normed), static_cast<void *>(a.send), static_cast<void *>(a.ids),
              static_cast<void *>(a.weights), static_cast<void *>(a.row_of_copy), static_cast<void *>(a.source_of_copy),
              static_cast<void *>(a.landed), a.workspace, static_cast<void *>(a.x.block[a.x.me])})
            CUDA(cudaFree(p));
        for (int g = 0; g < c.parts; g++) {
            CUDA(cudaFree(a.recv[g]));
            CUDA(cudaFree(a.wire[g]));
        }
        CUDA(cudaFreeHost(a.x.error));
        CUDA(cudaStreamDestroy(a.stream));
    }
}

static fr_k_push_args dispatch_args(const std::vector<Rank> &all, const Config &c, int r, int part, int blocks) {
    const Rank &a = all[static_cast<size_t>(r)];
    fr_k_push_args p = {};
    p.rows = a.send, p.ids = a.ids, p.weights = a.weights, p.source_of_copy = a.source_of_copy;
    p.capacity = a.capacity, p.H = c.H, p.part = part, p.blocks = blocks, p.bulk = bulk;
    for (const Rank &b : all) p.recv[b.x.me] = b.recv[part], p.to[b.x.me] = c.fp8 ? b.wire[part] : b.recv[part];
    return p;
}

static fr_k_push_args back_args(const std::vector<Rank> &all, const Config &c, int r, int part, int blocks) {
    const Rank &a = all[static_cast<size_t>(r)];
    fr_k_push_args p = {};
    p.rows = reinterpret_cast<const fr_bf16 *>(a.recv[part]);
    p.capacity = a.capacity, p.H = c.H, p.part = part, p.blocks = blocks, p.bulk = bulk;
    for (const Rank &b : all) p.to[b.x.me] = b.send;
    return p;
}

static bool wait_stream(const Rank &a, double seconds) {
    const double end = fr_monotonic_s() + seconds;
    cudaError_t e;
    while ((e = cudaStreamQuery(a.stream)) == cudaErrorNotReady)
        if (fr_monotonic_s() > end) return false;
    CUDA(e);
    return true;
}

static void on_all(std::vector<Rank> &all, const std::function<void(Rank &)> &f) {
    std::vector<std::thread> threads;
    for (Rank &a : all)
        threads.emplace_back([&] {
            CUDA(cudaSetDevice(a.device));
            f(a);
        });
    for (auto &t : threads) t.join();
}

/* ---- checks -------------------------------------------------------------------------------------------------------*/

/* Each landed row ^= the target's and part's mark: stands for the experts. */
__global__ void mark_rows(uint16_t *rows, const int32_t *landed, int part, int H, uint16_t mark) {
    const int n = landed[part];
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < static_cast<int64_t>(n) * H;
         i += static_cast<int64_t>(gridDim.x) * blockDim.x)
        rows[i] = static_cast<uint16_t>(rows[i] ^ mark);
}

struct Input {
    std::vector<fr_bf16> normed;
    std::vector<int32_t> ids;
    std::vector<float> weights;
};
struct Output {
    std::vector<int32_t> landed, row_of_copy;
    std::vector<std::vector<char>> recv; /* per part, before the marks */
    std::vector<fr_bf16> send;           /* after back */
};

static Input make_input(const Config &c, int rank, int layer) {
    Random rng(static_cast<uint64_t>(1 + rank * 1000 + layer));
    const int T = c.tokens[static_cast<size_t>(rank)];
    Input in;
    for (int64_t i = 0; i < static_cast<int64_t>(T) * c.H; i++)
        in.normed.push_back(c.fp8 ? float_to_bf(static_cast<float>(rng.normal())) : static_cast<fr_bf16>(rng.next()));
    for (int t = 0; t < T; t++) {
        std::vector<int> pick(static_cast<size_t>(c.experts));
        for (int e = 0; e < c.experts; e++) pick[static_cast<size_t>(e)] = e;
        const int pool = c.routing == 2 ? std::min(c.experts, c.k + 1) : c.experts;
        for (int j = 0; j < c.k; j++)
            std::swap(pick[static_cast<size_t>(j)], pick[static_cast<size_t>(j + rng.below(pool - j))]);
        for (int j = 0; j < c.k; j++) {
            in.ids.push_back(c.routing == 1 ? c.experts - c.k + j : pick[static_cast<size_t>(j)]);
            in.weights.push_back(static_cast<float>(rng.uniform()));
        }
    }
    return in;
}

static int target_of(const Config &c, int e) { /* by search, not by the kernel's formula */
    const int V = c.ranks * c.parts;
    int v = 0;
    while (!(c.experts * v / V <= e && e < c.experts * (v + 1) / V)) v++;
    return v;
}
static uint16_t mark_of(int rank, int part) {
    return static_cast<uint16_t>(0x1111 * (rank + 1) + 0x0305 * part);
}

static int errors, passed, failed; /* of checks: the last two */
#define EXPECT(ok, ...)                                                                                                \
    do {                                                                                                               \
        if (!(ok) && errors++ < 20) printf("  FAILED: " __VA_ARGS__), printf("\n");                                    \
    } while (0)

/* What arrives of a row: itself, or what fp8 leaves of it. */
static std::vector<fr_bf16> arrives(const Config &c, const fr_bf16 *row) {
    std::vector<fr_bf16> out(row, row + c.H);
    for (int g = 0; g * 128 < c.H && c.fp8; g++) {
        float top = 0;
        const int end = std::min(c.H, (g + 1) * 128);
        for (int i = g * 128; i < end; i++) top = std::max(top, std::fabs(bf_to_float(row[i])));
        const float up = top > 0 ? 448.0f / top : 0, scale = top * (1.0f / 448.0f);
        for (int i = g * 128; i < end; i++) {
            const __nv_fp8_storage_t q = __nv_cvt_float_to_fp8(bf_to_float(row[i]) * up, __NV_SATFINITE, __NV_E4M3);
            const __half_raw h = __nv_cvt_fp8_to_halfraw(q, __NV_E4M3);
            out[static_cast<size_t>(i)] = float_to_bf(__half2float(__half(h)) * scale);
        }
    }
    return out;
}

static void compare(const Config &c, int layer, const std::vector<Input> &in, const std::vector<Output> &out) {
    const int V = c.ranks * c.parts, S = c.by_expert ? 1 : c.k, C = c.by_expert ? c.k : V;
    const size_t H = static_cast<size_t>(c.H);
    /* Copies of each source for each target, in the source's order: (token, slot or -1). */
    struct Copy {
        int token, slot, column;
    };
    std::vector<std::vector<std::vector<Copy>>> copies(static_cast<size_t>(c.ranks),
                                                       std::vector<std::vector<Copy>>(static_cast<size_t>(V)));
    for (int s = 0; s < c.ranks; s++)
        for (int t = 0; t < c.tokens[static_cast<size_t>(s)]; t++) {
            std::vector<bool> hit(static_cast<size_t>(V));
            for (int j = 0; j < c.k; j++) {
                const int v = target_of(c, in[static_cast<size_t>(s)].ids[static_cast<size_t>(t * c.k + j)]);
                if (c.by_expert)
                    copies[static_cast<size_t>(s)][static_cast<size_t>(v)].push_back({t, j, j});
                else
                    hit[static_cast<size_t>(v)] = true;
            }
            for (int v = 0; v < V && !c.by_expert; v++)
                if (hit[static_cast<size_t>(v)])
                    copies[static_cast<size_t>(s)][static_cast<size_t>(v)].push_back({t, -1, v});
        }
    int64_t total = 0;
    for (int t : c.tokens) total += t;
    const int64_t capacity = total * (c.by_expert ? c.k : 1);
    for (int q = 0; q < c.ranks; q++)
        for (int g = 0; g < c.parts; g++) {
            const int v = q * c.parts + g, low = c.experts * v / V, high = c.experts * (v + 1) / V;
            const Output &o = out[static_cast<size_t>(q)];
            const char *base = o.recv[static_cast<size_t>(g)].data();
            const auto *rows = reinterpret_cast<const fr_bf16 *>(base);
            const auto *ids = reinterpret_cast<const int32_t *>(base + static_cast<size_t>(capacity) * H * 2);
            const auto *weights = reinterpret_cast<const float *>(ids + capacity * S);
            size_t row = 0;
            for (int s = 0; s < c.ranks; s++)
                for (const Copy &copy : copies[static_cast<size_t>(s)][static_cast<size_t>(v)]) {
                    const Input &i = in[static_cast<size_t>(s)];
                    const auto wanted = arrives(c, &i.normed[static_cast<size_t>(copy.token) * H]);
                    EXPECT(!memcmp(rows + row * H, wanted.data(), 2 * H),
                           "%s layer %d rank %d part %d: row %zu is not token %d of rank %d", c.name, layer, q, g, row,
                           copy.token, s);
                    for (int j = 0; j < S; j++) {
                        const size_t slot = static_cast<size_t>(copy.token * c.k + (copy.slot < 0 ? j : copy.slot));
                        const int e = i.ids[slot];
                        EXPECT(ids[row * static_cast<size_t>(S) + static_cast<size_t>(j)] ==
                                   (e >= low && e < high ? e : -1),
                               "%s layer %d rank %d: id of row %zu slot %d", c.name, layer, q, row, j);
                        EXPECT(weights[row * static_cast<size_t>(S) + static_cast<size_t>(j)] == i.weights[slot],
                               "%s layer %d rank %d: weight of row %zu slot %d", c.name, layer, q, row, j);
                    }
                    row++;
                }
            EXPECT(o.landed[static_cast<size_t>(g)] == static_cast<int>(row),
                   "%s layer %d rank %d part %d: %d landed, expected %zu", c.name, layer, q, g,
                   o.landed[static_cast<size_t>(g)], row);
        }
    for (int s = 0; s < c.ranks; s++) { /* what came back */
        const Output &o = out[static_cast<size_t>(s)];
        size_t row = 0;
        std::vector<int32_t> places(static_cast<size_t>(c.tokens[static_cast<size_t>(s)] * C), -1);
        for (int v = 0; v < V; v++)
            for (const Copy &copy : copies[static_cast<size_t>(s)][static_cast<size_t>(v)]) {
                const uint16_t mark = mark_of(v / c.parts, v % c.parts);
                const auto row_in = arrives(c, &in[static_cast<size_t>(s)].normed[static_cast<size_t>(copy.token) * H]);
                bool same = true;
                for (size_t h = 0; h < H; h++)
                    same = same && o.send[row * H + h] == static_cast<fr_bf16>(row_in[h] ^ mark);
                EXPECT(same, "%s layer %d rank %d: what came back in row %zu (token %d, target %d)", c.name, layer, s,
                       row, copy.token, v);
                places[static_cast<size_t>(copy.token * C + copy.column)] = static_cast<int32_t>(row++);
            }
        EXPECT(places == o.row_of_copy, "%s layer %d rank %d: places of the copies", c.name, layer, s);
    }
}

static void report(const char *name, bool ok) {
    (ok ? passed : failed)++;
    printf("check %-28s%s %s\n", name, bulk ? " bulk" : "", ok ? "ok" : "FAILED");
    fflush(stdout);
}

static void check(const Config &c) {
    const int before = errors;
    auto all = open_ranks(c);
    std::vector<std::vector<Input>> in(static_cast<size_t>(c.layers));
    std::vector<std::vector<Output>> out(static_cast<size_t>(c.layers));
    for (int l = 0; l < c.layers; l++) {
        for (int r = 0; r < c.ranks; r++) in[static_cast<size_t>(l)].push_back(make_input(c, r, l));
        out[static_cast<size_t>(l)].resize(static_cast<size_t>(c.ranks));
    }
    std::atomic<bool> stuck{false};
    Meet meet(c.ranks); /* before anything waits on a device: ranks that share it must not wait for its idleness */
    on_all(all, [&](Rank &a) {
        const int r = a.x.me;
        /* Inputs and results of all layers lie on the device, so that nothing but the exchange orders the ranks. */
        std::vector<Dev<fr_bf16> *> rows, sends;
        std::vector<Dev<int32_t> *> ids, landed, places;
        std::vector<Dev<float> *> weights;
        std::vector<Dev<char> *> recvs;
        const size_t T = static_cast<size_t>(a.T), C = static_cast<size_t>(fr_k_exchange_copies(&a.x));
        const size_t send = T * std::min(C, static_cast<size_t>(c.k)) * static_cast<size_t>(c.H),
                     got = recv_bytes(c, a.capacity);
        for (int l = 0; l < c.layers; l++) {
            const Input &i = in[static_cast<size_t>(l)][static_cast<size_t>(r)];
            rows.push_back(new Dev<fr_bf16>(i.normed)), ids.push_back(new Dev<int32_t>(i.ids));
            weights.push_back(new Dev<float>(i.weights)), sends.push_back(new Dev<fr_bf16>(send));
            landed.push_back(new Dev<int32_t>(static_cast<size_t>(c.parts))), places.push_back(new Dev<int32_t>(T * C));
            for (int g = 0; g < c.parts; g++) recvs.push_back(new Dev<char>(got));
        }
        CUDA(cudaDeviceSynchronize());
        meet();
        uint32_t number = 0;
        auto keep = [&](void *to, const void *from, size_t bytes) {
            CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, a.stream));
        };
        for (int l = 0; l < c.layers; l++) {
            const auto L = static_cast<size_t>(l);
            CUDA(fr_k_pack(&a.x, ids[L]->p, rows[L]->p, a.T, c.H, a.row_of_copy, a.source_of_copy, a.send, a.workspace,
                           a.stream));
            CUDA(fr_k_counts(&a.x, a.T, a.capacity, a.landed, static_cast<uint32_t>(l), ++number, FR_X_ALL, a.stream));
            keep(places[L]->p, a.row_of_copy, T * C * 4);
            keep(landed[L]->p, a.landed, static_cast<size_t>(c.parts) * 4);
            for (int g = 0; g < c.parts; g++) {
                fr_k_push_args p = dispatch_args(all, c, r, g, 4);
                p.ids = ids[L]->p, p.weights = weights[L]->p;
                CUDA(fr_k_dispatch(&a.x, &p, ++number, FR_X_ALL, a.stream));
                if (c.fp8)
                    CUDA(fr_k_unpack(&a.x, a.wire[g], a.landed + g, c.H, reinterpret_cast<fr_bf16 *>(a.recv[g]),
                                     a.stream));
            }
            for (int g = 0; g < c.parts; g++) {
                keep(recvs[L * static_cast<size_t>(c.parts) + static_cast<size_t>(g)]->p, a.recv[g], got);
                mark_rows<<<8, 256, 0, a.stream>>>(reinterpret_cast<uint16_t *>(a.recv[g]), a.landed, g, c.H,
                                                   mark_of(r, g));
                fr_k_push_args p = back_args(all, c, r, g, 4);
                CUDA(fr_k_back(&a.x, &p, ++number, FR_X_ALL, a.stream));
            }
            keep(sends[L]->p, a.send, send * 2);
        }
        if (!wait_stream(a, 20)) stuck = true;
        meet();
        for (int l = 0; l < c.layers && !stuck; l++) {
            const auto L = static_cast<size_t>(l);
            Output &o = out[L][static_cast<size_t>(r)];
            o.landed = landed[L]->get(), o.row_of_copy = places[L]->get(), o.send = sends[L]->get();
            for (int g = 0; g < c.parts; g++)
                o.recv.push_back(recvs[L * static_cast<size_t>(c.parts) + static_cast<size_t>(g)]->get());
        }
        if (stuck) return;
        for (auto *d : rows) delete d;
        for (auto *d : sends) delete d;
        for (auto *d : ids) delete d;
        for (auto *d : landed) delete d;
        for (auto *d : places) delete d;
        for (auto *d : weights) delete d;
        for (auto *d : recvs) delete d;
    });
    if (stuck) {
        printf("check %-28s STUCK\n", c.name);
        fflush(stdout);
        _exit(3);
    }
    for (Rank &a : all)
        EXPECT(a.x.error->code == 0, "%s rank %d: error %d, peer %d, at %d, number %u", c.name, a.x.me, a.x.error->code,
               a.x.error->peer, a.x.error->at, a.x.error->number);
    for (int l = 0; l < c.layers; l++) compare(c, l, in[static_cast<size_t>(l)], out[static_cast<size_t>(l)]);
    close_ranks(c, all);
    report(c.name, errors == before);
}

/* A rank that never comes: the others end within the bound and name it; rows beyond the capacity are an error. */
static void check_faults() {
    const int before = errors;
    Config c = {"faults", 2, 1, 8, 2, 64, false, {20, 20}, 0, 1};
    auto all = open_ranks(c);
    for (Rank &a : all) a.x.spin_ns = 200000000;
    Rank &a = all[0];
    CUDA(cudaSetDevice(a.device));
    CUDA(cudaMemset(a.ids, 0, 20 * 2 * 4));
    const double start = fr_monotonic_s();
    CUDA(fr_k_pack(&a.x, a.ids, a.normed, a.T, c.H, a.row_of_copy, a.source_of_copy, a.send, a.workspace, a.stream));
    CUDA(fr_k_counts(&a.x, a.T, a.capacity, a.landed, 0, 1, FR_X_ALL, a.stream));
    fr_k_push_args p = dispatch_args(all, c, 0, 0, 4);
    CUDA(fr_k_dispatch(&a.x, &p, 2, FR_X_ALL, a.stream));
    EXPECT(wait_stream(a, 10), "a missing peer: the stream did not end");
    const double took = fr_monotonic_s() - start;
    EXPECT(took > 0.1 && took < 1, "a missing peer: ended after %.3f s", took);
    EXPECT(a.x.error->code == FR_X_LATE && a.x.error->peer == 1 && a.x.error->at == FR_X_COUNTS &&
               a.x.error->number == 1,
           "a missing peer: error %d %d %d %u", a.x.error->code, a.x.error->peer, a.x.error->at, a.x.error->number);
    close_ranks(c, all);
    all = open_ranks(c);
    on_all(all, [&](Rank &b) {
        CUDA(cudaMemset(b.ids, 0, 20 * 2 * 4));
        CUDA(
            fr_k_pack(&b.x, b.ids, b.normed, b.T, c.H, b.row_of_copy, b.source_of_copy, b.send, b.workspace, b.stream));
        CUDA(fr_k_counts(&b.x, b.T, 39, b.landed, 0, 1, FR_X_ALL, b.stream));
        EXPECT(wait_stream(b, 10), "too many rows: the stream did not end");
        EXPECT(b.x.error->code == FR_X_FULL, "too many rows: error %d", b.x.error->code);
        int32_t n;
        CUDA(cudaMemcpy(&n, b.landed, 4, cudaMemcpyDeviceToHost));
        EXPECT(n == 0, "too many rows: %d landed", n);
    });
    close_ranks(c, all);
    report("faults", errors == before);
}

/* ---- speed --------------------------------------------------------------------------------------------------------*/

typedef CUresult (*wait_value_fn)(CUstream, CUdeviceptr, cuuint32_t, unsigned);

static wait_value_fn wait_value() {
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA(cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &f, 12000, cudaEnableDefault, &found));
    return reinterpret_cast<wait_value_fn>(f);
}

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

/* Counts, back to back: us each. spin: in the kernel; else the stream waits between two kernels. */
static void bench_counts(bool spin) {
    Config c = {"counts", 2, 1, 128, 8, 64, false, {16, 16}, 0, 1};
    auto all = open_ranks(c);
    std::vector<double> us(2);
    const wait_value_fn wait = wait_value();
    Meet meet(2);
    on_all(all, [&](Rank &a) {
        cudaEvent_t e[2];
        for (auto &x : e) CUDA(cudaEventCreate(&x));
        const int N = 200;
        uint32_t number = 0;
        const int peer = 1 - a.x.me;
        auto run = [&](int n) {
            for (int i = 0; i < n; i++) {
                number++;
                if (spin) {
                    CUDA(fr_k_counts(&a.x, 0, a.capacity, a.landed, number, number, FR_X_ALL, a.stream));
                    continue;
                }
                CUDA(fr_k_counts(&a.x, 0, a.capacity, a.landed, number, number, FR_X_SEND, a.stream));
                const CUresult s =
                    wait(a.stream, reinterpret_cast<CUdeviceptr>(&a.x.block[a.x.me]->flag[peer]), number, 0);
                if (s != CUDA_SUCCESS) printf("cuStreamWaitValue32: %d\n", s), _exit(1);
                CUDA(fr_k_counts(&a.x, 0, a.capacity, a.landed, number, number, FR_X_PLACE, a.stream));
            }
        };
        run(20);
        EXPECT(wait_stream(a, 10), "counts: stuck");
        meet();
        CUDA(cudaEventRecord(e[0], a.stream));
        run(N);
        CUDA(cudaEventRecord(e[1], a.stream));
        EXPECT(wait_stream(a, 10), "counts: stuck");
        float ms;
        CUDA(cudaEventElapsedTime(&ms, e[0], e[1]));
        us[static_cast<size_t>(a.x.me)] = 1e3 * static_cast<double>(ms) / N;
    });
    printf("bench counts %-12s %.2f us each, back to back (host launch included)\n", spin ? "spin" : "stream wait",
           std::max(us[0], us[1]));
    fflush(stdout);
    close_ranks(c, all);
}

static void bench_push(int T, int H, int k, int E, bool by_expert, const std::vector<int> &blocks) {
    Config c = {"push", 2, 1, E, k, H, by_expert, {T, T}, 0, 1};
    auto all = open_ranks(c);
    for (int n : blocks) {
        std::vector<std::vector<double>> us(4);
        std::vector<int64_t> remote(2);
        Meet meet(2);
        on_all(all, [&](Rank &a) {
            cudaEvent_t e[5];
            for (auto &x : e) CUDA(cudaEventCreate(&x));
            if (n == blocks[0]) {
                Random rng(static_cast<uint64_t>(5 + a.x.me));
                std::vector<int32_t> ids;
                for (int t = 0; t < T; t++) {
                    const size_t at = ids.size();
                    while (ids.size() < at + static_cast<size_t>(k)) {
                        const int e1 = rng.below(E);
                        if (std::find(ids.begin() + static_cast<long>(at), ids.end(), e1) == ids.end())
                            ids.push_back(e1);
                    }
                }
                CUDA(cudaMemcpy(a.ids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
                CUDA(cudaMemset(a.weights, 0, ids.size() * 4));
                CUDA(cudaMemset(a.normed, 0, static_cast<size_t>(T) * static_cast<size_t>(H) * 2));
            }
            uint32_t number = 0;
            CUDA(cudaMemset(a.x.block[a.x.me], 0, sizeof(fr_x_block)));
            CUDA(cudaDeviceSynchronize());
            meet();
            for (int i = 0; i < 12; i++) {
                CUDA(cudaEventRecord(e[0], a.stream));
                CUDA(fr_k_pack(&a.x, a.ids, a.normed, a.T, H, a.row_of_copy, a.source_of_copy, a.send, a.workspace,
                               a.stream));
                CUDA(cudaEventRecord(e[1], a.stream));
                CUDA(fr_k_counts(&a.x, a.T, a.capacity, a.landed, static_cast<uint32_t>(i), ++number, FR_X_ALL,
                                 a.stream));
                CUDA(cudaEventRecord(e[2], a.stream));
                fr_k_push_args p = dispatch_args(all, c, a.x.me, 0, n);
                CUDA(fr_k_dispatch(&a.x, &p, ++number, FR_X_ALL, a.stream));
                CUDA(cudaEventRecord(e[3], a.stream));
                p = back_args(all, c, a.x.me, 0, n);
                CUDA(fr_k_back(&a.x, &p, ++number, FR_X_ALL, a.stream));
                CUDA(cudaEventRecord(e[4], a.stream));
                EXPECT(wait_stream(a, 10), "push: stuck");
                if (a.x.me == 0 && i > 1)
                    for (size_t j = 0; j < 4; j++) {
                        float ms;
                        CUDA(cudaEventElapsedTime(&ms, e[j], e[j + 1]));
                        us[j].push_back(1e3 * static_cast<double>(ms));
                    }
                meet();
            }
            fr_x_block b;
            CUDA(cudaMemcpy(&b, a.x.block[a.x.me], sizeof b, cudaMemcpyDeviceToHost));
            remote[static_cast<size_t>(a.x.me)] = b.dispatch[1 - a.x.me].rows;
            EXPECT(a.x.error->code == 0, "push: error %d", a.x.error->code);
            for (auto &x : e) CUDA(cudaEventDestroy(x));
        });
        const double bytes = static_cast<double>(remote[0]) * H * 2;
        printf(
            "bench push%s %6d tokens H %d k %d%s, %3d blocks: pack %7.1f us, counts %5.1f, dispatch %7.1f us = %5.1f "
            "GB/s out, "
            "back %7.1f us = %5.1f GB/s (%lld of %d rows leave)\n",
            bulk ? " bulk" : "", T, H, k, by_expert ? " by expert" : "", n, median(us[0]), median(us[1]), median(us[2]),
            bytes / median(us[2]) / 1e3, median(us[3]), bytes / median(us[3]) / 1e3, static_cast<long long>(remote[0]),
            T);
        fflush(stdout);
    }
    close_ranks(c, all);
}

int main(int argc, char **argv) {
    bool checks = argc < 2, speed = argc < 2;
    for (int i = 1; i < argc; i++)
        checks = checks || !strcmp(argv[i], "check"), speed = speed || !strcmp(argv[i], "bench");
    CUDA(cudaGetDeviceCount(&devices));
    devices = std::min(devices, 4);
    if (devices < 2) {
        printf("FAILED: needs two GPUs with access to one another, %d visible\n", devices);
        return 1;
    }
    std::thread([] {
        std::this_thread::sleep_for(std::chrono::seconds(80));
        printf("the program took over 80 s: given up\n");
        fflush(stdout);
        _exit(4);
    }).detach();
    for (int d = 0; d < devices; d++)
        for (int o = 0; o < devices; o++)
            if (d != o) {
                CUDA(cudaSetDevice(d));
                CUDA(cudaDeviceEnablePeerAccess(o, 0));
            }
    printf("%d GPUs\n", devices);
    if (checks) {
        const Config all[] = {
            {"two ranks", 2, 1, 16, 4, 64, false, {300, 300}, 0, 6},
            {"uneven", 2, 1, 16, 4, 256, false, {37, 500}, 0, 4},
            {"a rank without tokens", 2, 1, 16, 4, 64, false, {0, 129}, 0, 4},
            {"no tokens", 2, 1, 16, 4, 64, false, {0, 0}, 0, 2},
            {"same experts", 2, 1, 16, 4, 64, false, {200, 100}, 1, 4},
            {"few experts", 2, 1, 128, 8, 64, false, {200, 100}, 2, 4},
            {"by expert", 2, 1, 16, 4, 64, true, {300, 200}, 0, 4},
            {"by expert, same", 2, 1, 16, 4, 64, true, {100, 200}, 1, 4},
            {"two parts", 2, 2, 16, 4, 64, false, {300, 200}, 0, 4},
            {"odd experts", 3, 1, 17, 3, 64, false, {100, 1, 250}, 0, 4},
            {"four ranks", 4, 1, 32, 8, 64, false, {100, 50, 0, 250}, 0, 6},
            {"four ranks, three parts", 4, 3, 60, 6, 128, false, {100, 50, 70, 250}, 0, 4},
            {"fp8", 2, 1, 16, 4, 512, false, {300, 200}, 0, 4, true},
            {"fp8, two parts, odd width", 2, 2, 16, 4, 208, false, {100, 300}, 0, 4, true},
        };
        for (int way = 0; way < 2; way++) {
            bulk = way;
            for (const Config &c : all) check(c);
        }
        check_faults();
    }
    if (speed) {
        bench_counts(true);
        bench_counts(false);
        for (int way = 1; way >= 0; way--) {
            bulk = way;
            bench_push(16384, 4096, 8, 128, false, {132, 64, 32, 24, 16, 12, 8});
            bench_push(1024, 4096, 8, 128, false, {64, 32, 16, 8});
            bench_push(128, 4096, 8, 128, false, {32, 16, 8});
            bench_push(16384, 2048, 8, 128, false, {32, 16});
            bench_push(4096, 4096, 8, 128, true, {32, 16});
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed || errors;
}

/*
 * bench_links: transfers between two GPUs, alone and beside compute.
 *
 * usage: bench_links [--out FILE] [--limit SECONDS] PART...
 * PART: pull nccl readback sustained-pull burst-pull sustained-nccl burst-nccl sustained-h2d burst-h2d (default: all)
 *
 * One process, one host thread a GPU, every operation on a non-blocking stream of its own: a peer copy on the NULL
 * stream would order itself against all work of both GPUs. Transfers by themselves are enqueued behind a spinning
 * kernel, so that no host time is in them. Interference: the same kernel on both GPUs, back to back, while transfers
 * run all the time. Burst: 1 s idle, then some 40 ms of launches; sustained: 5 s, the last 2.5 s counted, transfers
 * topped up every batch. Every wait has an end: a deadline for each, and a watchdog for the whole.
 *
 * One row of FILE a measurement, times in ns: op shape regime median p10 p90 sm_mhz watts flops bytes; `bytes` is what
 * the op moves or, for `beside`, the bytes/s of the transfer meanwhile (out of this GPU's link or host, one direction).
 * No NVLS (multicast): NCCL_NVLS_ENABLE is 0 here or the program ends.
 */
#include "tests/gpu/gpu.h"

#include <atomic>
#include <chrono>
#include <cstdarg>
#include <dlfcn.h>
#include <mutex>
#include <nccl.h>
#include <string>
#include <unistd.h>

static FILE *out;
static std::mutex out_lock;

/* Ends at once, what is written kept: joining a thread that waits for a GPU could take forever. */
[[noreturn]] static void quit(int code) {
    fflush(stdout);
    if (out) fflush(out);
    _exit(code);
}

#define CU(call)                                                                                                       \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) {                                                                                       \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));                              \
            quit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define NC(call)                                                                                                       \
    do {                                                                                                               \
        ncclResult_t e_ = (call);                                                                                      \
        if (e_ != ncclSuccess) {                                                                                       \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, lib.error(e_));                                       \
            quit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != FR_OK) {                                                                                         \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, err.text);                                            \
            quit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static const double WAIT = 20; /* seconds: no single wait here takes one */
static double started, limit_s = 200;

static double left() {
    return started + limit_s - now();
}

/* ---- NCCL, opened at run time so that its version can be looked at before anything else ---- */
struct Lib {
    decltype(&ncclGetVersion) version;
    decltype(&ncclGetErrorString) error;
    decltype(&ncclGetUniqueId) id;
    decltype(&ncclCommInitRank) init;
    decltype(&ncclAllReduce) allreduce;
    decltype(&ncclAllGather) allgather;
    decltype(&ncclReduceScatter) reducescatter;
    decltype(&ncclAlltoAll) alltoall;
    decltype(&ncclSend) send;
    decltype(&ncclRecv) recv;
    decltype(&ncclGroupStart) start;
    decltype(&ncclGroupEnd) end;
};
static Lib lib;

template <typename F> static void symbol(void *so, const char *name, F &f) {
    f = reinterpret_cast<F>(dlsym(so, name));
    if (!f) printf("libnccl.so.2: %s is missing\n", name), quit(2);
}

static void open_nccl() {
    const char *nvls = getenv("NCCL_NVLS_ENABLE");
    if (nvls && strcmp(nvls, "0")) printf("NCCL_NVLS_ENABLE=%s: this program runs with 0 only\n", nvls), quit(2);
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    void *so = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!so) printf("%s\n", dlerror()), quit(2);
    symbol(so, "ncclGetVersion", lib.version), symbol(so, "ncclGetErrorString", lib.error);
    int v = 0;
    NC(lib.version(&v));
    printf("NCCL: header %d.%d.%d, library %d\n", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH, v);
    if (v / 100 != NCCL_VERSION_CODE / 100 || v < NCCL_VERSION_CODE)
        printf("libnccl.so.2 does not match nccl.h: put the folder of %d.%d.%d first in LD_LIBRARY_PATH\n", NCCL_MAJOR,
               NCCL_MINOR, NCCL_PATCH),
            quit(2);
    symbol(so, "ncclGetUniqueId", lib.id), symbol(so, "ncclCommInitRank", lib.init);
    symbol(so, "ncclAllReduce", lib.allreduce), symbol(so, "ncclAllGather", lib.allgather);
    symbol(so, "ncclReduceScatter", lib.reducescatter), symbol(so, "ncclAlltoAll", lib.alltoall);
    symbol(so, "ncclSend", lib.send), symbol(so, "ncclRecv", lib.recv);
    symbol(so, "ncclGroupStart", lib.start), symbol(so, "ncclGroupEnd", lib.end);
}

/* ---- NVML, for clocks and watts only ---- */
static int (*nvml_clock)(void *, int, unsigned *);
static int (*nvml_power)(void *, unsigned *);
static int (*nvml_handle)(const char *, void **);

static void open_nvml() {
    void *so = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    auto init = so ? reinterpret_cast<int (*)()>(dlsym(so, "nvmlInit_v2")) : nullptr;
    if (!init || init()) return;
    nvml_handle = reinterpret_cast<decltype(nvml_handle)>(dlsym(so, "nvmlDeviceGetHandleByPciBusId_v2"));
    nvml_clock = reinterpret_cast<decltype(nvml_clock)>(dlsym(so, "nvmlDeviceGetClockInfo"));
    nvml_power = reinterpret_cast<decltype(nvml_power)>(dlsym(so, "nvmlDeviceGetPowerUsage"));
}

/* ---- one GPU and its host thread ---- */
enum { RANKS = 2, EXPERTS = 128, EXPERT_ROWS = 131072, N_UP = 3072, K_UP = 4096, MEMORY_ROWS = 65536, HIDDEN = 4096 };
static const size_t PULL = 1ull << 30, GATHER = 1ull << 30, HOST = 256ull << 20, SIDE = 4ull << 30;

struct Rank {
    int id = 0;
    cudaStream_t compute, copy[3], comm;
    fr_bf16 *a, *b, *c;
    char *src, *dst, *host;
    ncclComm_t nccl;
    fr_gemm *gemm;
    fr_attention *attention;
    fr_attention_args at = {};
    int32_t *offsets, *start, *meta;
    uint32_t *counter;
    void *workspace;
    size_t workspace_bytes = 256ull << 20;
    void *nvml = nullptr;
    std::vector<cudaEvent_t> events, victim[2];
    std::vector<double> result; /* what the other rank may look at after a barrier */

    cudaEvent_t event(std::vector<cudaEvent_t> &pool, size_t i) {
        while (pool.size() <= i) {
            cudaEvent_t e;
            CU(cudaEventCreate(&e));
            pool.push_back(e);
        }
        return pool[i];
    }
    double mhz() const {
        unsigned v = 0;
        return nvml && nvml_clock && !nvml_clock(nvml, 1, &v) ? v : 0; /* 1: the SM clock */
    }
    double watts() const {
        unsigned v = 0;
        return nvml && nvml_power && !nvml_power(nvml, &v) ? v / 1000.0 : 0;
    }
};
static Rank ranks[RANKS];

static void wait_event(cudaEvent_t e) {
    const double end = now() + WAIT;
    cudaError_t s;
    while ((s = cudaEventQuery(e)) == cudaErrorNotReady)
        if (now() > end) printf("an event did not come within %.0f s\n", WAIT), quit(3);
    CU(s);
}

static double elapsed(cudaEvent_t a, cudaEvent_t b) {
    float ms;
    CU(cudaEventElapsedTime(&ms, a, b));
    return static_cast<double>(ms) * 1e6;
}

/* Both host threads meet, spinning. */
static void meet() {
    static std::atomic<int> count{0}, turn{0};
    const int t = turn.load();
    if (count.fetch_add(1) + 1 == RANKS) {
        count.store(0);
        turn.store(t + 1);
        return;
    }
    const double end = now() + WAIT;
    while (turn.load() == t)
        if (now() > end) printf("the other GPU's thread did not come within %.0f s\n", WAIT), quit(3);
}

static void drain(Rank &r) {
    for (cudaStream_t s : {r.compute, r.copy[0], r.copy[1], r.copy[2], r.comm}) {
        cudaEvent_t e = r.event(r.events, 0);
        CU(cudaEventRecord(e, s));
        wait_event(e);
    }
}

/* Keeps a stream busy while the host enqueues what is to be timed. */
__global__ void hold(uint64_t ns) {
    uint64_t t0, t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t0));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    } while (t - t0 < ns);
}

static std::string format(const char *f, ...) {
    char text[256];
    va_list a;
    va_start(a, f);
    vsnprintf(text, sizeof text, f, a);
    va_end(a);
    return text;
}

static void row(const char *op, const std::string &shape, const char *regime, std::vector<double> v, double mhz,
                double watts, double flops, double bytes) {
    std::lock_guard<std::mutex> hold_lock(out_lock);
    if (v.empty()) return;
    std::sort(v.begin(), v.end());
    auto at = [&](double q) { return v[static_cast<size_t>(q * static_cast<double>(v.size() - 1) + 0.5)]; };
    printf("%-9s %-52s %-9s %12.1f us %8.1f GB/s %6.0f TFLOP/s %4.0f MHz %3.0f W\n", op, shape.c_str(), regime,
           at(.5) / 1e3, strcmp(op, "beside") ? bytes / at(.5) : bytes / 1e9, flops / at(.5) / 1e3, mhz, watts);
    if (!out) return;
    fprintf(out, "%s %s %s %.0f %.0f %.0f %.0f %.0f %.6g %.10g\n", op, shape.c_str(), regime, at(.5), at(.1), at(.9),
            mhz, watts, flops, bytes);
    fflush(out);
}

/* ---- (a) pulls ---- */
static void pull(Rank &r, size_t bytes, cudaStream_t s) {
    CU(cudaMemcpyPeerAsync(r.dst, r.id, ranks[1 - r.id].src, 1 - r.id, bytes, s));
}

/* n pulls over k streams; ns of each (k = 1) or of all over n. */
static std::vector<double> pull_round(Rank &r, size_t bytes, int n, int k) {
    hold<<<1, 1, 0, r.copy[0]>>>(30000 + 8000ull * static_cast<unsigned>(n));
    CU(cudaGetLastError());
    CU(cudaEventRecord(r.event(r.events, 0), r.copy[0]));
    for (int i = 1; i < k; i++) CU(cudaStreamWaitEvent(r.copy[i], r.events[0], 0));
    for (int i = 0; i < n; i++) {
        pull(r, bytes, r.copy[i % k]);
        if (k == 1) CU(cudaEventRecord(r.event(r.events, static_cast<size_t>(i) + 1), r.copy[0]));
    }
    const auto last = static_cast<size_t>(n);
    for (int i = 1; i < k; i++) {
        cudaEvent_t e = r.event(r.events, last + static_cast<size_t>(i));
        CU(cudaEventRecord(e, r.copy[i]));
        CU(cudaStreamWaitEvent(r.copy[0], e, 0));
    }
    if (k > 1) CU(cudaEventRecord(r.event(r.events, last), r.copy[0]));
    wait_event(r.events[last]);
    std::vector<double> v;
    if (k > 1) return {elapsed(r.events[0], r.events[last]) / n};
    for (size_t i = 1; i + 2 < last; i++) v.push_back(elapsed(r.events[i], r.events[i + 1])); /* ends may run alone */
    return v;
}

static void part_pull(Rank &r) {
    for (int ways = 1; ways <= 2; ways++)
        for (int k = 1; k <= 3; k++)
            for (size_t bytes = 65536; bytes <= SIDE; bytes *= 4) {
                const double one = 3000 + static_cast<double>(bytes) / 390;
                int n = std::clamp(static_cast<int>(2e7 / one), 6, 60);
                std::vector<double> all;
                if (r.id < ways) pull_round(r, bytes, 6, k);
                for (int turn = 0; turn < (bytes > PULL ? 1 : 3); turn++) {
                    meet();
                    if (r.id >= ways) continue;
                    const auto v = pull_round(r, bytes, n - n % k, k);
                    all.insert(all.end(), v.begin(), v.end());
                }
                row("pull", format("bytes=%zu,ways=%d,inflight=%d,rank=%d", bytes, ways, k, r.id), "burst", all,
                    r.mhz(), r.watts(), 0, static_cast<double>(bytes));
                meet();
            }
}

/* ---- (b) NCCL. bytes as in engine/cost_base.c ---- */
enum Coll { ALLREDUCE, ALLGATHER, REDUCESCATTER, EXCHANGE, ALLTOALL, SEND, COLLS };
static const char *coll_name[] = {"allreduce", "allgather", "reducescatter", "exchange", "alltoall", "send"};

static void collective(Rank &r, Coll c, size_t bytes) {
    const size_t half = bytes / 2;
    switch (c) {
    case ALLREDUCE:
        NC(lib.allreduce(r.src, r.dst, half, ncclBfloat16, ncclSum, r.nccl, r.comm));
        break;
    case ALLGATHER: /* in place */
        NC(lib.allgather(r.dst + static_cast<size_t>(r.id) * half, r.dst, half, ncclUint8, r.nccl, r.comm));
        break;
    case REDUCESCATTER:
        NC(lib.reducescatter(r.src, r.dst, half / 2, ncclBfloat16, ncclSum, r.nccl, r.comm));
        break;
    case ALLTOALL: /* the share that stays is copied too */
        NC(lib.alltoall(r.src, r.dst, bytes, ncclUint8, r.nccl, r.comm));
        break;
    case EXCHANGE: /* all-to-all without the share that stays */
        NC(lib.start());
        NC(lib.send(r.src, bytes, ncclUint8, 1 - r.id, r.nccl, r.comm));
        NC(lib.recv(r.dst, bytes, ncclUint8, 1 - r.id, r.nccl, r.comm));
        NC(lib.end());
        break;
    default: /* one way */
        if (r.id == 0)
            NC(lib.send(r.src, bytes, ncclUint8, 1, r.nccl, r.comm));
        else
            NC(lib.recv(r.dst, bytes, ncclUint8, 0, r.nccl, r.comm));
    }
}

/* From the last rank's arrival to the end: of each repetition the lesser of both ranks' times. */
static void part_nccl(Rank &r) {
    for (int c = 0; c < COLLS; c++)
        for (size_t bytes = 65536; bytes <= PULL; bytes *= 4) {
            const int n = std::clamp(static_cast<int>(2e7 / (2e4 + static_cast<double>(bytes) / 200)), 4, 20);
            r.result.clear();
            for (int turn = 0; turn < 4; turn++) {
                meet();
                hold<<<1, 1, 0, r.comm>>>(100000 + 20000ull * static_cast<unsigned>(n));
                CU(cudaGetLastError());
                for (int i = 0; i < n; i++) {
                    CU(cudaEventRecord(r.event(r.events, static_cast<size_t>(i)), r.comm));
                    collective(r, static_cast<Coll>(c), bytes);
                }
                CU(cudaEventRecord(r.event(r.events, static_cast<size_t>(n)), r.comm));
                wait_event(r.events[static_cast<size_t>(n)]);
                for (size_t i = 1; turn && i < static_cast<size_t>(n); i++)
                    r.result.push_back(elapsed(r.events[i], r.events[i + 1]));
            }
            meet();
            if (r.id == 0) {
                std::vector<double> v = r.result;
                for (size_t i = 0; i < v.size(); i++) v[i] = std::min(v[i], ranks[1].result[i]);
                row(coll_name[c], format("bytes=%zu,ranks=2", bytes), "burst", v, r.mhz(), r.watts(), 0,
                    static_cast<double>(bytes));
            }
            meet();
        }
}

/* ---- (c) what a read of four bytes costs the host, and host copies of both GPUs at once ---- */
static void part_readback(Rank &r) {
    for (int kind = 0; kind < 3 && r.id == 0; kind++) {
        std::vector<double> v;
        cudaEvent_t e = r.event(r.events, 0);
        for (int i = 0; i < 600; i++) {
            if (kind == 2) hold<<<1, 1, 0, r.compute>>>(0);
            const double t = now();
            CU(cudaMemcpyAsync(r.host, r.counter, 4, cudaMemcpyDeviceToHost, r.compute));
            CU(cudaEventRecord(e, r.compute));
            if (kind == 1)
                CU(cudaEventSynchronize(e)); /* the watchdog's */
            else
                wait_event(e);
            if (i >= 100) v.push_back((now() - t) * 1e9);
        }
        row("readback",
            kind == 0   ? "poll"
            : kind == 1 ? "synchronize"
                        : "poll_behind_kernel",
            "burst", v, r.mhz(), r.watts(), 0, 4);
    }
    for (int out_too = 0; out_too < 2; out_too++) { /* 256 MiB, both GPUs */
        meet();
        for (size_t i = 0; i <= 8; i++) {
            CU(cudaEventRecord(r.event(r.events, i), r.copy[0]));
            if (i == 8) break;
            if (out_too)
                CU(cudaMemcpyAsync(r.host, r.src, HOST, cudaMemcpyDeviceToHost, r.copy[0]));
            else
                CU(cudaMemcpyAsync(r.dst, r.host, HOST, cudaMemcpyHostToDevice, r.copy[0]));
        }
        wait_event(r.events[8]);
        std::vector<double> v;
        for (size_t i = 1; i < 7; i++) v.push_back(elapsed(r.events[i], r.events[i + 1]));
        row(out_too ? "d2h" : "h2d", format("bytes=%zu,gpus=2,rank=%d", HOST, r.id), "burst", v, r.mhz(), r.watts(), 0,
            static_cast<double>(HOST));
    }
    meet();
}

/* ---- (d) interference ---- */
enum Victim { GEMM, GROUPED, ATTENTION, MEMORY, VICTIMS };
static const char *victim_name[] = {"gemm", "grouped", "attention", "memory"};
/* attention: causal, 4 x 4,096 tokens, 64 heads of 128 */
static const double victim_flops[] = {2.0 * 8192 * 8192 * 8192, 2.0 * EXPERT_ROWS *N_UP *K_UP,
                                      4.0 * 64 * 128 * 4 * (4096.0 * 4097 / 2), 0};
enum Aggressor { NONE, PULLS, NCCL, H2D };
static const char *aggressor_name[] = {"none", "pull", "nccl", "h2d"};
static const double aggressor_bytes[] = {0, static_cast<double>(PULL), GATHER / 2.0, static_cast<double>(HOST)};
static const double aggressor_ns[] = {1, 2.76e6, 2.0e6, 4.84e6}; /* alone, to know how many to keep queued */

static void victim(Rank &r, int v) {
    fr_error err;
    if (v == GEMM) {
        fr_gemm_args g = {};
        g.x = r.a, g.w = r.b, g.out = r.c, g.M = g.N = g.K = 8192;
        g.workspace = r.workspace, g.workspace_bytes = 32ull << 20;
        OK(fr_gemm_run(r.gemm, &g, r.compute, &err));
    } else if (v == GROUPED) {
        fr_k_grouped_args g = {};
        g.a = r.a, g.b = r.b, g.c = r.c, g.offsets = r.offsets, g.counter = r.counter;
        g.rows = EXPERT_ROWS, g.E = EXPERTS, g.N = N_UP, g.K = K_UP, g.swiglu = true;
        CU(fr_k_grouped_gemm(&g, r.compute));
    } else if (v == ATTENTION) {
        OK(fr_attention_run(r.attention, &r.at, r.compute, &err));
    } else {
        const size_t n = static_cast<size_t>(MEMORY_ROWS) * HIDDEN;
        CU(fr_k_add_rmsnorm(r.c, r.a, r.b, r.c + n, MEMORY_ROWS, HIDDEN, 1e-6f, r.compute));
    }
}

static void transfer(Rank &r, int a) {
    if (a == PULLS) pull(r, PULL, r.copy[0]);
    if (a == NCCL) collective(r, ALLGATHER, GATHER);
    if (a == H2D) CU(cudaMemcpyAsync(r.dst, r.host, HOST, cudaMemcpyHostToDevice, r.copy[0]));
}

/* Transfers queued on one stream, an event after each. */
struct Queue {
    Rank &r;
    int kind;
    size_t issued = 1, done = 1; /* event 0: before the first */
    Queue(Rank &rank, int k) : r(rank), kind(k) {
        if (kind) CU(cudaEventRecord(r.event(r.events, 0), stream()));
    }
    cudaStream_t stream() const { return kind == NCCL ? r.comm : r.copy[0]; }
    void issue(int n) {
        for (int i = 0; i < n && kind; i++) {
            transfer(r, kind);
            CU(cudaEventRecord(r.event(r.events, issued++), stream()));
        }
    }
    void poll() {
        while (done < issued && cudaEventQuery(r.events[done]) == cudaSuccess) done++;
    }
};

static double victim_ns(Rank &r, int v) {
    for (int i = 0; i < 3; i++) {
        CU(cudaEventRecord(r.event(r.victim[0], static_cast<size_t>(i)), r.compute));
        victim(r, v);
    }
    CU(cudaEventRecord(r.event(r.victim[0], 3), r.compute));
    wait_event(r.victim[0][3]);
    return elapsed(r.victim[0][2], r.victim[0][3]);
}

static std::string beside_shape(const Rank &r, int v, int a) {
    return format("victim=%s,aggressor=%s,rank=%d", victim_name[v], aggressor_name[a], r.id);
}

static void burst(Rank &r, int v, int a) {
    const double one = victim_ns(r, v);
    meet();
    if (r.id == 0) r.result = {one}; /* both ranks do the same */
    usleep(1000000);
    meet();
    const size_t n = static_cast<size_t>(std::clamp(static_cast<int>(4e7 / ranks[0].result[0]), 4, 200));
    Queue q(r, a);
    if (a) {
        q.issue(static_cast<int>(1.1e8 / aggressor_ns[a]));
        wait_event(r.events[1]);
    }
    meet();
    for (size_t i = 0; i < n; i++) {
        CU(cudaEventRecord(r.event(r.victim[0], i), r.compute));
        victim(r, v);
    }
    CU(cudaEventRecord(r.event(r.victim[0], n), r.compute));
    q.poll();
    const size_t first = q.done - 1;
    wait_event(r.victim[0][n]);
    q.poll();
    const size_t last = q.done - 1;
    const bool covered = !a || q.done < q.issued;
    const double mhz = r.mhz(), watts = r.watts();
    const double rate =
        last > first ? aggressor_bytes[a] * static_cast<double>(last - first) / elapsed(r.events[first], r.events[last])
                     : 0;
    std::vector<double> t;
    for (size_t i = 0; i < n; i++) t.push_back(elapsed(r.victim[0][i], r.victim[0][i + 1]));
    row("beside", beside_shape(r, v, a) + (covered ? "" : ",uncovered"), "burst", t, mhz, watts, victim_flops[v],
        rate * 1e9);
    drain(r);
    meet();
}

static void sustained(Rank &r, int v, int a, double seconds) {
    static std::atomic<int> todo, stop;
    const double one = victim_ns(r, v);
    meet();
    if (r.id == 0) r.result = {one}, stop = 0;
    meet();
    const size_t batch = static_cast<size_t>(std::clamp(static_cast<int>(5e7 / ranks[0].result[0]), 1, 400));
    const int depth = static_cast<int>(3e8 / aggressor_ns[a]);
    Queue q(r, a);
    std::vector<double> t;
    double mhz = 0, watts = 0;
    size_t samples = 0, first = 0, starved = 0;
    const double start = now();
    for (int turn = 0;; turn++) {
        q.poll();
        if (a && turn && q.done == q.issued) starved++;
        if (r.id == 0) { /* both ranks enqueue the same number: NCCL needs that */
            todo = a ? std::max(0, depth - static_cast<int>(q.issued - q.done)) : 0;
            stop = now() - start > seconds;
        }
        meet();
        const int n = todo;
        const bool enough = stop;
        meet();
        if (!enough) {
            q.issue(n);
            auto &ev = r.victim[turn & 1];
            for (size_t i = 0; i < batch; i++) {
                CU(cudaEventRecord(r.event(ev, i), r.compute));
                victim(r, v);
            }
            CU(cudaEventRecord(r.event(ev, batch), r.compute));
        }
        if (turn == 0) continue;
        auto &ev = r.victim[(turn - 1) & 1];
        wait_event(ev[batch]);
        if (now() - start > seconds - 2.5) {
            q.poll();
            if (!first) first = q.done - 1;
            for (size_t i = 0; i < batch; i++) t.push_back(elapsed(ev[i], ev[i + 1]));
            mhz += r.mhz(), watts += r.watts(), samples++;
        }
        if (enough) break;
    }
    q.poll();
    const size_t last = q.done - 1;
    const double rate = a && last > first ? aggressor_bytes[a] * static_cast<double>(last - first) /
                                                elapsed(r.events[first], r.events[last])
                                          : 0;
    const double s = static_cast<double>(std::max<size_t>(samples, 1));
    row("beside", beside_shape(r, v, a) + (starved ? format(",starved=%zu", starved) : ""), "sustained", t, mhz / s,
        watts / s, victim_flops[v], rate * 1e9);
    drain(r);
    meet();
}

static bool room(Rank &r, double need) {
    static std::atomic<int> enough;
    meet();
    if (r.id == 0) enough = left() > need;
    meet();
    return enough;
}

static void part_sustained(Rank &r, int a) {
    for (int v = 0; v < VICTIMS; v++) {
        if (a == PULLS && room(r, 6)) sustained(r, v, NONE, 5);
        if (room(r, 6)) sustained(r, v, a, a == PULLS ? 5 : 4);
    }
}

static void part_burst(Rank &r, int a) {
    for (int turn = 0; turn < (a == H2D ? 1 : 2); turn++)
        for (int v = 0; v < VICTIMS; v++) {
            if (a == PULLS && room(r, 2)) burst(r, v, NONE);
            if (room(r, 2)) burst(r, v, a);
        }
}

/* ---- set-up ---- */
static void prepare_attention(Rank &r) {
    fr_error err;
    OK(fr_attention_open(&r.attention, true, &err));
    const std::vector<int32_t> start = {0, 4096, 8192, 12288, 16384};
    CU(cudaMalloc(reinterpret_cast<void **>(&r.start), 64));
    CU(cudaMalloc(reinterpret_cast<void **>(&r.meta), fr_k_attention_meta_bytes(4)));
    CU(cudaMemcpyAsync(r.start, start.data(), 20, cudaMemcpyHostToDevice, r.compute));
    drain(r);
    const int64_t width = (64 + 2 * 4) * 128;
    CU(fr_k_attention_meta(r.start, nullptr, nullptr, 4, width, width, 64 * 128, r.meta, r.compute));
    r.at.q = r.a, r.at.k = r.a + 64 * 128, r.at.v = r.a + (64 + 4) * 128, r.at.out = r.c, r.at.meta = r.meta;
    r.at.q_stride = r.at.kv_stride = width, r.at.o_stride = 64 * 128;
    r.at.b = 4, r.at.max_q = r.at.max_kv = 4096, r.at.heads_q = 64, r.at.heads_kv = 4, r.at.D = 128;
    r.at.scale = 1 / std::sqrt(128.0f);
    size_t bytes = 0;
    OK(fr_attention_workspace(r.attention, &r.at, &bytes, &err));
    if (bytes > r.workspace_bytes) printf("attention wants %zu bytes of workspace\n", bytes), quit(2);
    r.at.workspace = r.workspace, r.at.workspace_bytes = r.workspace_bytes;
}

/* Multinomial counts as bench_kernels draws them, so that its rows are of the same work. */
static void prepare_offsets(Rank &r) {
    std::vector<int32_t> o(EXPERTS + 1, 0);
    Random rnd(11);
    for (int i = 0; i < EXPERT_ROWS; i++) o[static_cast<size_t>(rnd.uniform() * EXPERTS) + 1]++;
    for (size_t e = 0; e < EXPERTS; e++) o[e + 1] += o[e];
    CU(cudaMalloc(reinterpret_cast<void **>(&r.offsets), o.size() * 4));
    CU(cudaMemcpyAsync(r.offsets, o.data(), o.size() * 4, cudaMemcpyHostToDevice, r.compute));
    drain(r); /* o lives until here */
}

static void prepare(Rank &r, const ncclUniqueId &id) {
    CU(cudaSetDevice(r.id));
    int can = 0, least, greatest;
    CU(cudaDeviceCanAccessPeer(&can, r.id, 1 - r.id));
    if (!can) printf("GPU %d cannot reach the other\n", r.id), quit(2);
    CU(cudaDeviceEnablePeerAccess(1 - r.id, 0));
    CU(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    for (cudaStream_t *s : {&r.compute, &r.copy[0], &r.copy[1], &r.copy[2]})
        CU(cudaStreamCreateWithFlags(s, cudaStreamNonBlocking));
    CU(cudaStreamCreateWithPriority(&r.comm, cudaStreamNonBlocking, greatest));
    char bus[32];
    CU(cudaDeviceGetPCIBusId(bus, sizeof bus, r.id));
    if (nvml_handle && nvml_handle(bus, &r.nvml)) r.nvml = nullptr;
    auto array = [&](fr_bf16 *&p, size_t n, uint64_t seed, float scale) {
        CU(cudaMalloc(reinterpret_cast<void **>(&p), n * 2));
        CU(fr_k_fill_normal(p, static_cast<int64_t>(n), seed + static_cast<uint64_t>(r.id), 0, scale, r.compute));
    };
    array(r.a, static_cast<size_t>(EXPERT_ROWS) * K_UP, 1, 1);
    array(r.b, static_cast<size_t>(EXPERTS) * N_UP * K_UP, 3, 0.02f);
    array(r.c, static_cast<size_t>(EXPERT_ROWS) * K_UP, 5, 1);
    fr_bf16 *side[2];
    for (auto &s : side) array(s, SIDE / 2, 7, 1);
    r.src = reinterpret_cast<char *>(side[0]), r.dst = reinterpret_cast<char *>(side[1]);
    CU(cudaMalloc(&r.workspace, r.workspace_bytes));
    CU(cudaMalloc(reinterpret_cast<void **>(&r.counter), 64));
    CU(cudaMemsetAsync(r.counter, 0, 64, r.compute));
    CU(cudaHostAlloc(reinterpret_cast<void **>(&r.host), HOST, cudaHostAllocDefault));
    memset(r.host, 0x3c, HOST);
    fr_error err;
    OK(fr_gemm_open(&r.gemm, &err));
    prepare_offsets(r);
    prepare_attention(r);
    drain(r);
    meet();
    NC(lib.init(&r.nccl, RANKS, id, r.id));
    meet();
}

/* What is timed must also arrive: a pull and an all-gather of a known pattern. */
static void check(Rank &r) {
    const size_t n = 1 << 20;
    auto *h = reinterpret_cast<unsigned char *>(r.host);
    auto look = [&](size_t at, unsigned char want, const char *what) {
        CU(cudaMemcpyAsync(h, r.dst + at, n / 2, cudaMemcpyDeviceToHost, r.compute));
        drain(r);
        for (size_t i = 0; i < n / 2; i++)
            if (h[i] != want) printf("%s: wrong byte on GPU %d\n", what, r.id), quit(5);
    };
    fr_bf16 *keep = reinterpret_cast<fr_bf16 *>(r.src);
    CU(cudaMemsetAsync(r.src, 0x11 * (r.id + 1), n, r.copy[0]));
    drain(r), meet();
    pull(r, n, r.copy[0]);
    drain(r);
    look(0, static_cast<unsigned char>(0x11 * (2 - r.id)), "pull");
    meet();
    CU(cudaMemsetAsync(r.dst + static_cast<size_t>(r.id) * n / 2, 0x11 * (r.id + 3), n / 2, r.comm));
    collective(r, ALLGATHER, n);
    drain(r);
    look(static_cast<size_t>(1 - r.id) * n / 2, static_cast<unsigned char>(0x11 * (4 - r.id)), "all-gather");
    CU(fr_k_fill_normal(keep, static_cast<int64_t>(n / 2), 9, 0, 1, r.compute));
    drain(r), meet();
}

static const char *part_name[] = {"pull",       "nccl",           "sustained-pull", "burst-pull",   "readback",
                                  "burst-nccl", "sustained-nccl", "burst-h2d",      "sustained-h2d"};
enum { PARTS = 9 };

static void work(Rank &r, const ncclUniqueId &id, const bool *want) {
    prepare(r, id);
    check(r);
    if (r.id == 0) printf("-- ready after %.1f s\n", now() - started);
    for (int p = 0; p < PARTS; p++) {
        if (!want[p] || !room(r, 3)) continue;
        if (p == 0) part_pull(r);
        if (p == 1) part_nccl(r);
        if (p == 2) part_sustained(r, PULLS);
        if (p == 3) part_burst(r, PULLS);
        if (p == 4) part_readback(r);
        if (p == 5) part_burst(r, NCCL);
        if (p == 6) part_sustained(r, NCCL);
        if (p == 7) part_burst(r, H2D);
        if (p == 8) part_sustained(r, H2D);
        if (r.id == 0) printf("-- %s done at %.1f s\n", part_name[p], now() - started), fflush(stdout);
    }
}

int main(int argc, char **argv) {
    bool want[PARTS] = {}, any = false;
    for (int i = 1; i < argc; i++) {
        int p = 0;
        if (!strcmp(argv[i], "--out") && i + 1 < argc) {
            if (!(out = fopen(argv[++i], "w"))) return printf("cannot write %s\n", argv[i]), 2;
            continue;
        }
        if (!strcmp(argv[i], "--limit") && i + 1 < argc) {
            char *end;
            limit_s = strtod(argv[++i], &end);
            if (*end || !(limit_s > 0 && limit_s <= 3600)) return printf("--limit: seconds up to 3600\n"), 2;
            continue;
        }
        while (p < PARTS && strcmp(argv[i], part_name[p])) p++;
        if (p == PARTS) return printf("unknown part %s\n", argv[i]), 2;
        want[p] = any = true;
    }
    for (bool &w : want) w |= !any;
    setvbuf(stdout, nullptr, _IOLBF, 0);
    started = now();
    open_nccl();
    open_nvml();
    int n = 0, driver = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n < RANKS) return printf("%d GPUs wanted, %d here\n", RANKS, n), 2;
    CU(cudaDriverGetVersion(&driver));
    cudaDeviceProp prop;
    CU(cudaGetDeviceProperties(&prop, 0));
    int nccl = 0;
    NC(lib.version(&nccl));
    const std::string head = format("# 2 x %s, driver %d, runtime %d, cublasLt %lld, cuDNN %lld, NCCL %d, NVLS off",
                                    prop.name, driver, CUDART_VERSION, static_cast<long long>(fr_gemm_version()),
                                    static_cast<long long>(fr_attention_version()), nccl);
    printf("%s\n", head.c_str());
    if (out) fprintf(out, "%s\n# op shape regime median_ns p10_ns p90_ns sm_mhz watts flops bytes\n", head.c_str());
    std::thread([] {
        while (left() > -10) usleep(100000);
        printf("out of time\n");
        quit(4);
    }).detach();
    ncclUniqueId id;
    NC(lib.id(&id));
    std::thread other([&] {
        ranks[1].id = 1;
        work(ranks[1], id, want);
    });
    work(ranks[0], id, want);
    other.join();
    printf("-- all done at %.1f s\n", now() - started);
    quit(0); /* the process's end gives everything back */
}

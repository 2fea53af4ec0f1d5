/*
 * bench: how the micro-benchmarks measure.
 *
 * burst: three warm-ups and then repetitions for about 0.12 s, where marked after 1 s of idling; sustained: 10 s back
 * to back, the last 3 s counted, SM clock and watts the mean over them. Times are medians of single launches between
 * events; what takes under 50 us is timed as a graph of 20 launches. One row of the file a measurement: op shape regime
 * median_ns p10_ns p90_ns sm_mhz watts flops bytes
 */
#ifndef FR_BENCH_H
#define FR_BENCH_H

#include "tests/gpu/gpu.h"

#include <algorithm>
#include <cstdarg>
#include <dlfcn.h>
#include <string>
#include <unistd.h>

/* ---- NVML, loaded at run time ---- */
struct Nvml {
    void *device = nullptr;
    int (*clock)(void *, int, unsigned *) = nullptr;
    int (*power)(void *, unsigned *) = nullptr;
    Nvml() {
        void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        if (!lib) return;
        auto init = reinterpret_cast<int (*)()>(dlsym(lib, "nvmlInit_v2"));
        auto get = reinterpret_cast<int (*)(const char *, void **)>(dlsym(lib, "nvmlDeviceGetHandleByPciBusId_v2"));
        char bus[32];
        CUDA(cudaDeviceGetPCIBusId(bus, sizeof bus, 0)); /* NVML counts devices that are hidden from us too */
        if (!init || !get || init() || get(bus, &device)) return;
        clock = reinterpret_cast<int (*)(void *, int, unsigned *)>(dlsym(lib, "nvmlDeviceGetClockInfo"));
        power = reinterpret_cast<int (*)(void *, unsigned *)>(dlsym(lib, "nvmlDeviceGetPowerUsage"));
    }
    double mhz() const {
        unsigned v = 0;
        return clock && !clock(device, 1, &v) ? v : 0; /* 1: the SM clock */
    }
    double watts() const {
        unsigned v = 0;
        return power && !power(device, &v) ? v / 1000.0 : 0;
    }
};

static Nvml nvml;
static FILE *out;
static cudaStream_t stream;
static fr_error err;
static uint32_t *counter;
static const double PEAK = 989.5e12; /* H100/H200 SXM datasheet, dense bf16 */

struct Stat {
    double median, p10, p90, mhz, watts; /* ns */
};

static Stat stat_of(std::vector<double> v, double mhz, double watts) {
    std::sort(v.begin(), v.end());
    auto at = [&](double q) { return v[static_cast<size_t>(q * static_cast<double>(v.size() - 1) + 0.5)]; };
    return {at(0.5), at(0.1), at(0.9), mhz, watts};
}

struct Timer {
    std::vector<cudaEvent_t> e;
    cudaEvent_t get(size_t i) {
        while (e.size() <= i) {
            cudaEvent_t x;
            CUDA(cudaEventCreate(&x));
            e.push_back(x);
        }
        return e[i];
    }
    double ns(size_t a, size_t b) {
        float ms;
        CUDA(cudaEventElapsedTime(&ms, e[a], e[b]));
        return static_cast<double>(ms) * 1e6;
    }
};
static Timer timer;

/* ns of each of n runs, launched back to back. */
static std::vector<double> times(int n, const std::function<void()> &run) {
    for (int i = 0; i < n; i++) {
        CUDA(cudaEventRecord(timer.get(static_cast<size_t>(i)), stream));
        run();
    }
    CUDA(cudaEventRecord(timer.get(static_cast<size_t>(n)), stream));
    CUDA(cudaStreamSynchronize(stream));
    std::vector<double> v;
    for (int i = 0; i < n; i++) v.push_back(timer.ns(static_cast<size_t>(i), static_cast<size_t>(i) + 1));
    return v;
}

struct Graph {
    cudaGraphExec_t exec = nullptr;
    static constexpr int LAUNCHES = 20;
    explicit Graph(const std::function<void()> &run) {
        cudaGraph_t g;
        CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        for (int i = 0; i < LAUNCHES; i++) run();
        CUDA(cudaStreamEndCapture(stream, &g));
        CUDA(cudaGraphInstantiate(&exec, g, 0));
        CUDA(cudaGraphDestroy(g));
    }
    ~Graph() { cudaGraphExecDestroy(exec); }
};

static Stat burst(const std::function<void()> &run, bool idle_first = false) {
    run();
    CUDA(cudaStreamSynchronize(stream));
    const double one = times(2, run)[1];
    if (idle_first) usleep(1000000);
    const double budget = idle_first ? 1.2e8 : 4e7;
    if (one < 5e4) {
        Graph g(run);
        auto replay = [&] { CUDA(cudaGraphLaunch(g.exec, stream)); };
        times(2, replay);
        auto v = times(std::clamp(static_cast<int>(budget / 4 / (one * Graph::LAUNCHES)), 5, 40), replay);
        for (auto &x : v) x /= Graph::LAUNCHES;
        return stat_of(v, nvml.mhz(), nvml.watts());
    }
    times(2, run);
    auto v = times(std::clamp(static_cast<int>(budget / one), 5, 60), run);
    return stat_of(v, nvml.mhz(), nvml.watts());
}

static double hold_seconds = 10;

static Stat sustained(const std::function<void()> &run) {
    const double seconds = hold_seconds;
    run();
    CUDA(cudaStreamSynchronize(stream));
    const double one = times(2, run)[1];
    const int batch = std::clamp(static_cast<int>(5e7 / one), 1, 2000);
    std::vector<double> kept;
    double mhz = 0, watts = 0;
    int samples = 0;
    const double start = fr_monotonic_s();
    /* two batches in flight: the GPU never waits for the host */
    Timer t[2];
    auto enqueue = [&](Timer &x) {
        for (int i = 0; i < batch; i++) {
            CUDA(cudaEventRecord(x.get(static_cast<size_t>(i)), stream));
            run();
        }
        CUDA(cudaEventRecord(x.get(static_cast<size_t>(batch)), stream));
    };
    enqueue(t[0]);
    for (int turn = 1;; turn++) {
        enqueue(t[turn & 1]);
        Timer &done = t[(turn + 1) & 1];
        CUDA(cudaEventSynchronize(done.get(static_cast<size_t>(batch))));
        const double at = fr_monotonic_s() - start;
        if (at > seconds - 3) {
            for (int i = 0; i < batch; i++) kept.push_back(done.ns(static_cast<size_t>(i), static_cast<size_t>(i) + 1));
            mhz += nvml.mhz(), watts += nvml.watts(), samples++;
        }
        if (at > seconds) break;
    }
    CUDA(cudaStreamSynchronize(stream));
    return stat_of(kept, mhz / samples, watts / samples);
}

static void report(const char *op, const std::string &shape, const char *regime, const Stat &s, double flops,
                   double bytes) {
    /* share of the ceiling: what the larger of products and bytes takes at best (kernels/measured/README.md: 790
     * TFLOP/s of an 8192-cubed product in a burst, 4.21 TB/s of a copy) */
    const double best = std::max(flops / 790e3, bytes / 4210.0);
    printf("%-26s %-44s %-9s %10.1f us  %6.0f TFLOP/s %6.0f GB/s %4.0f %%  %4.0f MHz %3.0f W\n", op, shape.c_str(),
           regime, s.median / 1e3, flops / s.median / 1e3, bytes / s.median, 100 * best / s.median, s.mhz, s.watts);
    if (out)
        fprintf(out, "%s %s %s %.0f %.0f %.0f %.0f %.0f %.6g %.6g\n", op, shape.c_str(), regime, s.median, s.p10, s.p90,
                s.mhz, s.watts, flops, bytes);
}

static std::string format(const char *f, ...) {
    char text[256];
    va_list a;
    va_start(a, f);
    vsnprintf(text, sizeof text, f, a);
    va_end(a);
    return text;
}

/* ---- the command line: --out FILE PART... ---- */
struct Part {
    const char *name;
    bool usual; /* done where no part is named */
    std::function<void()> run;
};

/* Opens stream and counter, writes the head line, runs the parts named; the exit status. */
static int bench_main(int argc, char **argv, const std::string &versions, const std::vector<Part> &parts) {
    std::vector<const Part *> chosen;
    setvbuf(stdout, nullptr, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--out") && i + 1 < argc) {
            out = fopen(argv[++i], "a");
            if (!out) return perror(argv[i]), 2;
            continue;
        }
        const auto p =
            std::find_if(parts.begin(), parts.end(), [&](const Part &x) { return !strcmp(x.name, argv[i]); });
        if (p == parts.end()) return printf("unknown part %s\n", argv[i]), 2;
        chosen.push_back(&*p);
    }
    const bool named = !chosen.empty();
    for (const Part &p : parts)
        if (!named && p.usual) chosen.push_back(&p);
    cudaDeviceProp prop;
    CUDA(cudaGetDeviceProperties(&prop, 0));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc(reinterpret_cast<void **>(&counter), 4));
    CUDA(cudaMemset(counter, 0, 4));
    printf("# %s, %s\n", prop.name, versions.c_str());
    if (out)
        fprintf(out, "# %s, %s\n# op shape regime median_ns p10_ns p90_ns sm_mhz watts flops bytes\n", prop.name,
                versions.c_str());
    for (const Part *p : chosen) {
        const double t0 = fr_monotonic_s();
        p->run();
        if (out) fflush(out);
        printf("-- %s took %.1f s\n", p->name, fr_monotonic_s() - t0);
    }
    return 0;
}

/* ---- buffers: two large arenas of random bf16 serve every part ---- */
struct Arena {
    fr_bf16 *p;
    size_t n;
    Arena(size_t count, uint64_t seed, float scale) : n(count) {
        CUDA(cudaMalloc(reinterpret_cast<void **>(&p), n * 2));
        CUDA(fr_k_fill_normal(p, static_cast<int64_t>(n), seed, 0, scale, stream));
        CUDA(cudaStreamSynchronize(stream));
    }
    ~Arena() { cudaFree(p); }
};

/* ---- rows of experts ---- */
enum Pattern { EQUAL, MULTINOMIAL, POWER };
static const char *pattern_name[] = {"equal", "multinomial", "power6"};

/* Rows of each expert: total = mean * E. power6: a power law whose hottest expert has six times the mean. */
static std::vector<int32_t> make_offsets(int E, int mean, Pattern p) {
    std::vector<double> share(static_cast<size_t>(E), 1.0 / E);
    if (p == POWER) { /* share ~ (i + 1)^-s; s found by bisection so that the largest is 6 / E */
        double low = 0, high = 3;
        for (int it = 0; it < 60; it++) {
            const double s = (low + high) / 2;
            double sum = 0;
            for (int i = 0; i < E; i++) sum += std::pow(i + 1, -s);
            for (int i = 0; i < E; i++) share[static_cast<size_t>(i)] = std::pow(i + 1, -s) / sum;
            (share[0] * E < 6 ? low : high) = s;
        }
        Random r(3); /* hot experts anywhere */
        for (int i = E - 1; i > 0; i--)
            std::swap(share[static_cast<size_t>(i)], share[static_cast<size_t>(r.below(i + 1))]);
    }
    std::vector<int32_t> count(static_cast<size_t>(E), p == EQUAL ? mean : 0), offsets(static_cast<size_t>(E) + 1, 0);
    if (p != EQUAL) {
        Random r(11);
        std::vector<double> up(static_cast<size_t>(E));
        double sum = 0;
        for (int e = 0; e < E; e++) up[static_cast<size_t>(e)] = sum += share[static_cast<size_t>(e)];
        for (int64_t i = 0; i < static_cast<int64_t>(E) * mean; i++) {
            const auto at = std::upper_bound(up.begin(), up.end(), r.uniform() * sum) - up.begin();
            count[static_cast<size_t>(std::min<int64_t>(at, E - 1))]++;
        }
    }
    for (int e = 0; e < E; e++)
        offsets[static_cast<size_t>(e) + 1] = offsets[static_cast<size_t>(e)] + count[static_cast<size_t>(e)];
    return offsets;
}

#endif

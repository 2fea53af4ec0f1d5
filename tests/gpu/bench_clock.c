/*
 * bench_clock: what the SM clock does while loads come and go: every launch of given patterns, with NVML's power and
 * reasons beside, on one GPU or on several at once. Its readings shape the clock model (engine/cost/power.h); its
 * coefficients come from `forerun calibrate`.
 *
 *     bench_clock OUT.csv DEVICES PATTERN...
 *
 * A pattern is steps with commas between: OP:MS launches OP back to back for MS milliseconds; rest:MS keeps the stream
 * busy with a one-thread kernel, sleep:MS leaves it empty; N*STEP+STEP+... repeats; pulls:1 and pulls:0 begin and end
 * pulls from the next GPU. OPs: gemm, up, attention, norm. Before each pattern the GPUs rest for 1.2 s. DEVICES is how
 * many GPUs run the pattern at once.
 *
 * Lines: l,PATTERN,GPU,STEP,START_MS,US for a launch; p,PATTERN,GPU,MS,WATTS,MEAN_WATTS,MHZ,REASONS,CELSIUS for a
 * sample; t,PATTERN,GPU,... text of the pattern.
 */
#include "engine/cuda/bench.h"
#include "engine/machine.h"
#include "kernels/probe.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OPS = 4, GPUS = 8, EVENTS = 20000, SAMPLES = 4000 };

static const char *const op_names[OPS] = {"gemm", "up", "attention", "norm"};
static const char op_rows[] =
    "# gpu: h200\n# sms: 132\n# peak_bf16: 989.5e12\n# hbm_rate: 4.8e12\n"
    "gemm_dense precision=bf16 m=8192 n=8192 k=8192 regime=burst ns=1\n"
    "expert_up precision=bf16 n=3072 k=4096 rows=random:131072/128 regime=burst ns=1\n"
    "attention precision=bf16 heads=64 kv_heads=4 head_dim=128 seqs=4096+0x4 regime=burst ns=1\n"
    "norm m=65536 n=4096 bytes=2147483648 regime=burst ns=1\n";

typedef struct {
    double ms, watts, mean;
    unsigned mhz, celsius;
    unsigned long long reasons;
} sample;

/* nvmlFieldValue_t of the NVML API reference. */
typedef struct {
    unsigned id, scope;
    long long when, latency;
    int type, status;
    union {
        double d;
        unsigned u;
        unsigned long long ull;
    } value;
} field_value;

typedef struct {
    int device;
    fr_measure *measure;
    fr_bench *bench[OPS];
    double op_ms[OPS];
    cudaEvent_t *event;
    uint8_t *step_of; /* per event: 1 + the step of the launch that begins there, 0 = none */
    int events;
    sample *samples;
    int samples_count;
    void *nvml; /* device handle */
    atomic_bool stop, pulling, closing;
    double base_s;
    const char *pattern;
    void *mine, *theirs;
    cudaStream_t copies;
    char why[256];
} gpu;

static int (*nvml_by_bus)(const char *, void **);
static int (*nvml_fields)(void *, int, field_value *);
static int (*nvml_clock)(void *, int, unsigned *);
static int (*nvml_reasons)(void *, unsigned long long *);
static int (*nvml_temperature)(void *, int, unsigned *);

static void nap(double s) {
    const struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)(1e9 * (s - (double)(time_t)s))};
    nanosleep(&t, NULL);
}

static void *symbol(void *library, const char *name) {
    return library ? dlsym(library, name) : NULL;
}

static void open_nvml(void) {
    void *l = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    int (*init)(void) = NULL;
    void *s[6] = {symbol(l, "nvmlInit_v2"),
                  symbol(l, "nvmlDeviceGetHandleByPciBusId_v2"),
                  symbol(l, "nvmlDeviceGetFieldValues"),
                  symbol(l, "nvmlDeviceGetClockInfo"),
                  symbol(l, "nvmlDeviceGetCurrentClocksThrottleReasons"),
                  symbol(l, "nvmlDeviceGetTemperature")};
    for (int i = 0; i < 6; i++)
        if (!s[i]) return;
    memcpy(&init, &s[0], sizeof init);
    memcpy(&nvml_by_bus, &s[1], sizeof nvml_by_bus);
    memcpy(&nvml_fields, &s[2], sizeof nvml_fields);
    memcpy(&nvml_clock, &s[3], sizeof nvml_clock);
    memcpy(&nvml_reasons, &s[4], sizeof nvml_reasons);
    memcpy(&nvml_temperature, &s[5], sizeof nvml_temperature);
    if (init() != 0) nvml_by_bus = NULL;
}

static void *watch(void *context) {
    gpu *g = context;
    enum { POWER_AVERAGE = 185, POWER_INSTANT = 186 }; /* NVML_FI_DEV_POWER_* */
    while (!g->stop && g->samples_count < SAMPLES) {
        sample *s = &g->samples[g->samples_count];
        field_value f[2] = {{.id = POWER_INSTANT}, {.id = POWER_AVERAGE}};
        if (nvml_fields(g->nvml, 2, f) != 0) break;
        s->watts = 1e-3 * f[0].value.u;
        s->mean = 1e-3 * f[1].value.u;
        nvml_clock(g->nvml, 1, &s->mhz);
        nvml_reasons(g->nvml, &s->reasons);
        nvml_temperature(g->nvml, 0, &s->celsius);
        s->ms = 1e3 * (fr_monotonic_s() - g->base_s);
        g->samples_count++;
        nap(0.015);
    }
    return NULL;
}

static bool fine(gpu *g, cudaError_t e, const char *what) {
    if (e != cudaSuccess && !g->why[0]) snprintf(g->why, sizeof g->why, "%s: %s", what, cudaGetErrorString(e));
    return e == cudaSuccess;
}
static bool good(gpu *g, fr_status s, const fr_error *err) {
    if (s != FR_OK && !g->why[0]) snprintf(g->why, sizeof g->why, "%.250s", err->text);
    return s == FR_OK;
}

#define PULL ((size_t)64 << 20)

/* Keeps two pulls in the queue while `pulling`. */
static void *pull(void *context) {
    gpu *g = context;
    cudaEvent_t e[2];
    if (!fine(g, cudaSetDevice(g->device), "cudaSetDevice")) return NULL;
    for (int i = 0; i < 2; i++) cudaEventCreateWithFlags(&e[i], cudaEventDisableTiming);
    for (int i = 0; !g->closing; i ^= 1) {
        const double end = fr_monotonic_s() + 5;
        if (!g->pulling) {
            nap(1e-4);
            continue;
        }
        while (cudaEventQuery(e[i]) == cudaErrorNotReady && fr_monotonic_s() < end) nap(2e-5);
        fine(g, cudaMemcpyAsync(g->mine, g->theirs, PULL, cudaMemcpyDefault, g->copies), "pull");
        cudaEventRecord(e[i], g->copies);
    }
    return NULL;
}

static bool mark(gpu *g, int step) {
    if (g->events >= EVENTS) return false;
    g->step_of[g->events] = (uint8_t)step;
    return fine(g, cudaEventRecord(g->event[g->events++], fr_measure_stream(g->measure)), "cudaEventRecord");
}

static bool step(gpu *g, const char *text, int number) {
    fr_error err = {0};
    cudaStream_t s = fr_measure_stream(g->measure);
    const char *colon = strchr(text, ':');
    const double ms = colon ? strtod(colon + 1, NULL) : 0;
    if (strncmp(text, "pulls", 5) == 0) {
        /* in turn with the stream: what was queued is under way when pulls begin */
        if (!good(g, fr_measure_wait(g->measure, &err), &err)) return false;
        g->pulling = ms > 0;
        return true;
    }
    if (strncmp(text, "rest", 4) == 0) return mark(g, 0) && fine(g, fr_k_hold((uint64_t)(1e6 * ms), s), "rest");
    if (strncmp(text, "sleep", 5) == 0) {
        if (!mark(g, 0) || !good(g, fr_measure_wait(g->measure, &err), &err)) return false;
        nap(1e-3 * ms);
        return true;
    }
    for (int op = 0; op < OPS; op++) {
        const size_t n = strlen(op_names[op]);
        if (strncmp(text, op_names[op], n) != 0 || text[n] != ':') continue;
        const int times = (int)(ms / g->op_ms[op] + 0.5);
        for (int i = 0; i < (times > 0 ? times : 1); i++)
            if (!mark(g, number) || !good(g, fr_bench_run(g->bench[op], s, &err), &err)) return false;
        return mark(g, 0);
    }
    snprintf(g->why, sizeof g->why, "%.100s: no such step", text);
    return false;
}

static bool play(gpu *g) {
    char text[512], *save = NULL;
    int number = 0;
    snprintf(text, sizeof text, "%s", g->pattern);
    for (char *part = strtok_r(text, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
        char *star = strchr(part, '*');
        const int times = star ? atoi(part) : 1;
        for (int t = 0; t < times; t++) {
            char body[256], *inner = NULL;
            snprintf(body, sizeof body, "%s", star ? star + 1 : part);
            int at = number;
            for (char *s = strtok_r(body, "+", &inner); s; s = strtok_r(NULL, "+", &inner))
                if (!step(g, s, ++at)) return false;
            if (t + 1 == times) number = at;
        }
    }
    return true;
}

static void *run(void *context) {
    gpu *g = context;
    fr_error err = {0};
    pthread_t watcher;
    bool watched = false;
    if (!fine(g, cudaSetDevice(g->device), "cudaSetDevice")) return NULL;
    g->events = g->samples_count = 0;
    g->stop = false;
    nap(1.2);
    g->base_s = fr_monotonic_s();
    if (nvml_by_bus && g->nvml) watched = pthread_create(&watcher, NULL, watch, g) == 0;
    if (mark(g, 0) && play(g)) good(g, fr_measure_wait(g->measure, &err), &err);
    g->pulling = false;
    g->stop = true;
    if (watched) pthread_join(watcher, NULL);
    return NULL;
}

static void write_all(FILE *f, gpu *g, int number) {
    fprintf(f, "t,%d,%d,%s\n", number, g->device, g->pattern);
    for (int i = 0; i + 1 < g->events; i++) {
        float at = 0, ms = 0;
        if (!g->step_of[i]) continue;
        cudaEventElapsedTime(&at, g->event[0], g->event[i]);
        cudaEventElapsedTime(&ms, g->event[i], g->event[i + 1]);
        fprintf(f, "l,%d,%d,%d,%.3f,%.1f\n", number, g->device, g->step_of[i], (double)at, 1e3 * (double)ms);
    }
    for (int i = 0; i < g->samples_count; i++) {
        const sample *s = &g->samples[i];
        fprintf(f, "p,%d,%d,%.1f,%.1f,%.1f,%u,%llx,%u\n", number, g->device, s->ms, s->watts, s->mean, s->mhz,
                s->reasons, s->celsius);
    }
    fflush(f);
}

static bool open_gpu(gpu *g, const fr_cost_model *cost, const fr_table *t) {
    fr_error err = {0};
    const fr_cal_item item = {.top_k = 8, .head_dim = 128};
    char bus[64];
    if (!good(g, fr_measure_open(g->device, 10, &g->measure, &err), &err)) return false;
    for (int op = 0; op < OPS; op++) {
        fr_reading r;
        if (!good(g, fr_bench_open(g->device, g->measure, cost, &g->bench[op], &err), &err) ||
            !good(g, fr_bench_prepare(g->bench[op], t, &t->rows[op], &item, &err), &err) ||
            !good(g, fr_measure_burst(g->measure, fr_bench_run, g->bench[op], true, 1.2e7, &r, &err), &err))
            return false;
        g->op_ms[op] = 1e-6 * r.median;
        printf("GPU %d %s %.4f ms at %.0f MHz\n", g->device, op_names[op], g->op_ms[op], r.clock_mhz);
    }
    g->event = fr_alloc(EVENTS * sizeof *g->event);
    g->step_of = fr_alloc(EVENTS);
    g->samples = fr_alloc(SAMPLES * sizeof *g->samples);
    for (int i = 0; i < EVENTS; i++)
        if (!fine(g, cudaEventCreate(&g->event[i]), "cudaEventCreate")) return false;
    if (!fine(g, cudaMalloc(&g->mine, PULL), "cudaMalloc")) return false;
    if (!fine(g, cudaStreamCreateWithFlags(&g->copies, cudaStreamNonBlocking), "cudaStreamCreate")) return false;
    if (nvml_by_bus && cudaDeviceGetPCIBusId(bus, sizeof bus, g->device) == cudaSuccess &&
        nvml_by_bus(bus, &g->nvml) != 0)
        g->nvml = NULL;
    return true;
}

int main(int argc, char **argv) {
    static gpu gpus[GPUS];
    static pthread_t pullers[GPUS], threads[GPUS];
    const int devices = argc > 2 ? atoi(argv[2]) : 0;
    fr_machine machine;
    fr_cost_model *cost;
    fr_table table = {0};
    fr_error err = {0};
    FILE *f = argc > 3 && devices > 0 && devices <= GPUS ? fopen(argv[1], "w") : NULL;
    if (!f) return fprintf(stderr, "usage: bench_clock OUT.csv DEVICES PATTERN...\n"), 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    open_nvml();
    if (fr_table_parse(op_rows, sizeof op_rows - 1, "bench_clock", &table, &err) != FR_OK ||
        fr_machine_load("h200x1", &machine, &err) != FR_OK || fr_cost_open(&machine, NULL, &cost, &err) != FR_OK)
        return fprintf(stderr, "%s\n", err.text), 1;
    for (int i = 0; i < devices; i++) {
        gpus[i].device = i;
        if (cudaSetDevice(i) != cudaSuccess || !open_gpu(&gpus[i], cost, &table))
            return fprintf(stderr, "GPU %d: %s\n", i, gpus[i].why), 1;
        for (int k = 0; k < devices; k++)
            if (k != i) cudaDeviceEnablePeerAccess(k, 0);
    }
    for (int i = 0; i < devices; i++) {
        const fr_bench *peer = gpus[(i + 1) % devices].bench[0];
        gpus[i].theirs = (void *)(uintptr_t)fr_bench_source((fr_bench *)(uintptr_t)peer, (int64_t)PULL);
        if (devices > 1) pthread_create(&pullers[i], NULL, pull, &gpus[i]);
    }
    int failed = 0;
    for (int p = 3; p < argc && !failed; p++) {
        for (int i = 0; i < devices; i++) {
            gpus[i].pattern = argv[p];
            pthread_create(&threads[i], NULL, run, &gpus[i]);
        }
        for (int i = 0; i < devices; i++) {
            pthread_join(threads[i], NULL);
            cudaSetDevice(i);
            if (gpus[i].why[0]) failed = fprintf(stderr, "GPU %d: %s\n", i, gpus[i].why);
            write_all(f, &gpus[i], p - 2);
        }
        printf("pattern %d of %d: %s: %d launches\n", p - 2, argc - 3, argv[p], gpus[0].events);
    }
    for (int i = 0; i < devices; i++) {
        gpus[i].closing = true;
        if (devices > 1) pthread_join(pullers[i], NULL);
    }
    fclose(f);
    return failed ? 1 : 0;
}

/*
 * bench_clock: what the SM clock does while loads come and go: every launch of given patterns, with NVML's power and
 * reasons beside, on one GPU or on several at once. Its readings shape the clock model (engine/cost/power.h); its
 * coefficients come from `forerun calibrate`.
 *
 *     bench_clock OUT.csv DEVICES PATTERN...
 *
 * A pattern is steps with commas between: OP:MS launches OP back to back for MS milliseconds; rest:MS keeps the stream
 * busy with a one-thread kernel, sleep:MS leaves it empty; N*STEP+STEP+... repeats; pulls:1 and pulls:0 begin and end
 * pulls from the next GPU, tiny:MS pulls 4 KiB from it every MS milliseconds (0: no more); exchange:N routes 16K tokens
 * N times to the others and back (counts, dispatch, return), allreduce:N, allgather:N and reducescatter:N move 128 MiB
 * by NCCL; chainMODEL@TOKENS:N plays what a layer of 235b, 30b or mixtral does around attention and experts, each
 * kernel behind the one whose result it reads, N times with one `up` for all experts (steps of their own: qkv, rope, o,
 * norm, router, topk, sort, permute, up, combine). layerMODEL@TOKENSxLENGTH:MS plays all twelve kernels of a layer back
 * to back for MS milliseconds, with the SM clock counted on the device: around `up` and `down` in every layer, around
 * each kernel in one layer of some; with a `p` behind LENGTH beside pulls from the next GPU. A|B: GPU 0 plays A, GPU 1
 * plays B. OPs: gemm, up, attention, norm. Before each pattern the GPUs rest for 1.2 s. DEVICES is how many GPUs run
 * the pattern at once.
 *
 * Lines: l,PATTERN,GPU,STEP,START_MS,US for a launch; p,PATTERN,GPU,MS,WATTS,MEAN_WATTS,MHZ,REASONS,CELSIUS,LINK for a
 * sample (LINK: NVML's power state of NVLink 0, -1 where it does not say); t,PATTERN,GPU,... text of the pattern;
 * s,PATTERN,GPU,OP,START_MS,US,MHZ for a stretch of a layer between two stamps (OP: of the kernel, 0 = several), which
 * cost some 4 us in each.
 * On stdout, for each step of at least 0.2 s in all: the mean launch, power and clock of its second half.
 */
#include "engine/cuda/bench.h"
#include "engine/cuda/calibrate_exchange.h"
#include "engine/cuda/device.h"
#include "engine/machine.h"
#include "kernels/probe.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OPS = 4, GPUS = 8, EVENTS = 20000, SAMPLES = 4000, STAMPS = 16000, AHEAD = 8 };

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
    int link;
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
    const fr_table *table; /* of the OPs */
    fr_bench *bench[OPS];
    double op_ms[OPS];
    cudaEvent_t *event;
    uint8_t *step_of; /* per event: 1 + the step of the launch that begins there, 0 = none */
    uint64_t *stamp;  /* device [STAMPS][FR_PROBE_SMS][2]; the first stands beside event 0 */
    int16_t *kind_of; /* per stamp: fr_op_kind of the kernel behind it, -1 = several, -2 = none */
    int stamps;
    cudaEvent_t ahead[AHEAD];
    int events;
    sample *samples;
    int samples_count;
    void *nvml; /* device handle */
    atomic_bool stop, pulling, closing;
    atomic_int tiny_us;  /* a small pull so often; 0 = none */
    atomic_llong pulled; /* bytes asked for so far */
    double base_s;
    const char *pattern;
    void *mine, *theirs;
    cudaStream_t copies;
    fr_world *world;
    fr_plan *plan; /* group 0: all */
    fr_layout layout;
    fr_transport *transport;
    fr_cal_exchange *exchange;
    char *moved[2]; /* MOVED bytes each; the second also holds the exchange's buffers */
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
    enum {
        POWER_AVERAGE = 185,
        POWER_INSTANT = 186,
        LINK_POWER = 167
    }; /* NVML_FI_DEV_POWER_*, _NVLINK_GET_POWER_STATE */
    while (!g->stop && g->samples_count < SAMPLES) {
        sample *s = &g->samples[g->samples_count];
        field_value f[3] = {{.id = POWER_INSTANT}, {.id = POWER_AVERAGE}, {.id = LINK_POWER}};
        if (nvml_fields(g->nvml, 3, f) != 0) break;
        s->link = f[2].status == 0 ? (int)f[2].value.u : -1;
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

/* Keeps two pulls in the queue while `pulling`, or one small one every tiny_us. */
static void *pull(void *context) {
    gpu *g = context;
    cudaEvent_t e[2];
    if (!fine(g, cudaSetDevice(g->device), "cudaSetDevice")) return NULL;
    for (int i = 0; i < 2; i++) cudaEventCreateWithFlags(&e[i], cudaEventDisableTiming);
    for (int i = 0; !g->closing; i ^= 1) {
        const double end = fr_monotonic_s() + 5;
        const int tiny = g->tiny_us;
        if (tiny > 0) {
            fine(g, cudaMemcpyAsync(g->mine, g->theirs, 4096, cudaMemcpyDefault, g->copies), "small pull");
            nap(1e-6 * tiny);
            continue;
        }
        if (!g->pulling) {
            nap(1e-4);
            continue;
        }
        while (cudaEventQuery(e[i]) == cudaErrorNotReady && fr_monotonic_s() < end) nap(2e-5);
        fine(g, cudaMemcpyAsync(g->mine, g->theirs, PULL, cudaMemcpyDefault, g->copies), "pull");
        g->pulled += PULL;
        cudaEventRecord(e[i], g->copies);
    }
    return NULL;
}

/* ---- what travels by kernels ---- */

#define MOVED     ((size_t)4 << 30) /* the exchange's buffers of calibrate_pair.c */
#define TOGETHER  ((int64_t)128 << 20)
#define ROW_BYTES 8192

/* On all GPUs' threads at once. */
static void *open_links(void *context) {
    gpu *g = context;
    static const fr_model model = {.hidden = ROW_BYTES / 2};
    fr_error err = {0};
    const int ranks = fr_world_ranks(g->world);
    g->layout = (fr_layout){.experts = FR_EXP_TP, .tp = ranks, .pp = 1, .ep = 1, .dp = 1, .replicas = 1};
    const fr_transport_options o = {.world = g->world,
                                    .rank = g->device,
                                    .device = g->device,
                                    .plan = g->plan,
                                    .layout = &g->layout,
                                    .model = &model,
                                    .tokens = 1,
                                    .timeout_s = 20};
    if (fine(g, cudaSetDevice(g->device), "cudaSetDevice") &&
        fine(g, cudaMalloc((void **)&g->moved[0], MOVED), "cudaMalloc") &&
        fine(g, cudaMalloc((void **)&g->moved[1], MOVED), "cudaMalloc") &&
        fine(g, cudaMemset(g->moved[0], 0x3c, MOVED), "cudaMemset") &&
        good(g, fr_transport_open(&o, &g->transport, &err), &err) &&
        good(g, fr_cal_exchange_open(g->world, g->device, g->device, g->moved[1], MOVED, false, &g->exchange, &err),
             &err))
        good(g,
             fr_cal_exchange_pack(g->exchange, fr_cal_exchange_tokens(2), fr_cal_exchange_tokens(2), g->copies, &err),
             &err);
    if (g->why[0]) fr_world_fail(g->world, g->device, &err);
    return NULL;
}

static void *close_links(void *context) {
    gpu *g = context;
    cudaSetDevice(g->device);
    fr_cal_exchange_close(g->exchange, g->why[0]);
    fr_transport_close(g->transport, g->why[0]);
    return NULL;
}

static bool collective(gpu *g, fr_op_kind kind) {
    fr_error err = {0};
    const int ranks = fr_world_ranks(g->world);
    const bool parts = kind != FR_OP_ALLREDUCE;
    int64_t rows[GPUS];
    for (int q = 0; q < ranks; q++) rows[q] = TOGETHER / ROW_BYTES / (parts ? ranks : 1);
    char *own = g->moved[0] + MOVED / 2 + (parts ? g->device * TOGETHER / ranks : 0);
    const fr_collective c = {.kind = kind,
                             .peer = -1,
                             .arrays = 1,
                             .in = {kind == FR_OP_ALLGATHER ? own : g->moved[0]},
                             .out = {kind == FR_OP_REDUCESCATTER ? own : g->moved[0] + MOVED / 2},
                             .row_bytes = {ROW_BYTES},
                             .rows = rows};
    return good(g, fr_transport_launch(g->transport, &c, fr_measure_stream(g->measure), &err), &err);
}

static bool exchange(gpu *g) {
    static const fr_op_kind steps[3] = {FR_OP_COUNTS, FR_OP_ALLTOALL, FR_OP_ALLTOALL_BACK};
    fr_error err = {0};
    for (int i = 0; i < 3; i++)
        if (!good(g, fr_cal_exchange_launch(g->exchange, steps[i], fr_measure_stream(g->measure), &err), &err))
            return false;
    return true;
}

static const struct {
    const char *name;
    fr_op_kind kind;
} linked[] = {{"exchange:", FR_OP_ALLTOALL},
              {"allreduce:", FR_OP_ALLREDUCE},
              {"allgather:", FR_OP_ALLGATHER},
              {"reducescatter:", FR_OP_REDUCESCATTER}};

/* ---- patterns ---- */

static bool mark(gpu *g, int step) {
    if (g->events >= EVENTS) return false;
    g->step_of[g->events] = (uint8_t)step;
    return fine(g, cudaEventRecord(g->event[g->events++], fr_measure_stream(g->measure)), "cudaEventRecord");
}

/* ---- chains ---- */

enum { CHAIN = FR_CAL_LIGHT };

static const char *const chain_models[][2] = {
    {"235b", "qwen3-235b-a22b"}, {"30b", "qwen3-30b-a3b"}, {"mixtral", "mixtral-8x7b"}};

/* The light kernels of a layer of the model that a step names behind its first word. */
static bool light_layer(gpu *g, const char *text, int64_t tokens, fr_model *m, fr_row rows[CHAIN]) {
    fr_error err = {0};
    fr_machine machine;
    *m = (fr_model){0};
    for (size_t i = 0; i < sizeof chain_models / sizeof *chain_models; i++)
        if (strncmp(text + 5, chain_models[i][0], strlen(chain_models[i][0])) == 0 &&
            !good(g, fr_model_load(chain_models[i][1], m, &err), &err))
            return false;
    if (!m->hidden || tokens < 1 || tokens > 16384)
        return snprintf(g->why, sizeof g->why, "%.60s: no such layer", text), false;
    return good(g, fr_machine_load("h200x1", &machine, &err), &err) &&
           good(g, fr_cal_light_layer(m, &machine, tokens, rows, &err), &err);
}

static bool chain(gpu *g, const char *text, int times, int number) {
    const char *at = strchr(text, '@');
    cudaStream_t s = fr_measure_stream(g->measure);
    fr_error err = {0};
    fr_model model, *m = &model;
    fr_row rows[CHAIN];
    if (!light_layer(g, text, at ? atoll(at + 1) : 0, m, rows)) return false;
    const fr_cal_item item = {.top_k = (int16_t)m->top_k, .head_dim = 128};
    if (!good(g, fr_bench_prepare(g->bench[0], g->table, &rows[7], &item, &err), &err)) return false;
    fr_bench_chain(g->bench[0], true);
    for (int t = 0; t < times; t++)
        for (int i = 0; i < CHAIN; i++) {
            if (i == CHAIN - 1 && (!mark(g, number + i) || !good(g, fr_bench_run(g->bench[1], s, &err), &err)))
                return false;
            fr_bench_switch(g->bench[0], &rows[i], m->top_k, 128);
            if (!mark(g, number + i + (i == CHAIN - 1)) || !good(g, fr_bench_run(g->bench[0], s, &err), &err))
                return false;
        }
    fr_bench_chain(g->bench[0], false);
    return mark(g, 0) && good(g, fr_measure_wait(g->measure, &err), &err) &&
           good(g, fr_bench_prepare(g->bench[0], g->table, &g->table->rows[0], &item, &err), &err);
}

/* ---- layers ---- */

enum { LAYER = 12, WHOLE = 16384 };

static bool stamp(gpu *g, int kind) {
    if (g->stamps >= STAMPS) return true;
    g->kind_of[g->stamps] = (int16_t)kind;
    return fine(g, fr_k_stamp(g->stamp + (size_t)g->stamps++ * FR_PROBE_SMS * 2, 132, fr_measure_stream(g->measure)),
                "stamp");
}

static bool table_of(gpu *g, const fr_model *m, int64_t tokens, int64_t length, fr_table *out) {
    const int32_t inner = m->experts == 8 ? 14336 : m->hidden == 2048 ? 768 : 1536;
    const long long slots = (long long)tokens * m->top_k;
    fr_error err = {0};
    char text[1024];
    const int n = snprintf(text, sizeof text,
                           "# gpu: h200\n# sms: 132\n# peak_bf16: 989.5e12\n# hbm_rate: 4.8e12\n"
                           "expert_up precision=bf16 n=%d k=%d rows=random:%lld/%d regime=burst ns=1\n"
                           "attention precision=bf16 heads=%d kv_heads=%d head_dim=128 seqs=%lld+0x%lld regime=burst "
                           "ns=1\n"
                           "expert_down precision=bf16 n=%d k=%d rows=random:%lld/%d regime=burst ns=1\n",
                           2 * inner, m->hidden, slots, m->experts, m->heads, m->kv_heads, (long long)length,
                           (long long)(tokens / length), m->hidden, inner, slots, m->experts);
    return good(g, fr_table_parse(text, (size_t)n, "layer", out, &err), &err);
}

static bool layers(gpu *g, const fr_model *m, const fr_row rows[CHAIN], int64_t tokens, double ms) {
    cudaStream_t s = fr_measure_stream(g->measure);
    const int every = tokens >= WHOLE ? 1 : (int)fr_min_i64(12, WHOLE / tokens);
    /* of light_layer: -1 - i is bench 1 + i */
    static const int order[LAYER] = {0, 1, -2, 2, 3, 4, 5, 6, 7, -1, -3, 8};
    const double end = fr_monotonic_s() + 1e-3 * ms;
    fr_error err = {0};
    for (int layer = 0; fr_monotonic_s() < end; layer++) {
        const bool each = layer % every == 0;
        if (layer >= AHEAD && !good(g, fr_measure_await(g->measure, g->ahead[layer % AHEAD], &err), &err)) return false;
        for (int i = 0; i < LAYER; i++) {
            const int at = order[i];
            fr_bench *b = g->bench[at < 0 ? -at : 0];
            const int kind = at >= 0    ? rows[at].shape.kind
                             : at == -1 ? FR_OP_EXPERT_UP
                             : at == -2 ? FR_OP_ATTENTION
                                        : FR_OP_EXPERT_DOWN;
            if (at >= 0) fr_bench_switch(b, &rows[at], m->top_k, 128);
            if ((each || i == 0 || i == 9 || i == 11) && !stamp(g, each || i == 9 ? kind : -1)) return false;
            if (!good(g, fr_bench_run(b, s, &err), &err)) return false;
        }
        if (!fine(g, cudaEventRecord(g->ahead[layer % AHEAD], s), "cudaEventRecord")) return false;
    }
    return stamp(g, -2) && good(g, fr_measure_wait(g->measure, &err), &err);
}

static bool layer(gpu *g, const char *text, double ms) {
    const char *at = strchr(text, '@'), *x = at ? strchr(at, 'x') : NULL;
    fr_model model, *m = &model;
    fr_error err = {0};
    fr_row rows[CHAIN];
    fr_table t = {0};
    const int64_t tokens = at ? atoll(at + 1) : 0, length = x ? atoll(x + 1) : 0;
    if (length < 1 || length > tokens) return snprintf(g->why, sizeof g->why, "%.60s: no such layer", text), false;
    if (!light_layer(g, text, tokens, m, rows)) return false;
    const fr_cal_item item = {.top_k = (int16_t)m->top_k, .head_dim = 128};
    bool fits = table_of(g, m, tokens, length, &t) &&
                good(g, fr_bench_prepare(g->bench[0], g->table, &rows[7], &item, &err), &err);
    for (int i = 0; i < 3 && fits; i++)
        fits = good(g, fr_bench_prepare(g->bench[1 + i], &t, &t.rows[i], &item, &err), &err) &&
               good(g, fr_bench_run(g->bench[1 + i], fr_measure_stream(g->measure), &err), &err);
    fits = fits && good(g, fr_measure_wait(g->measure, &err), &err);
    nap(0.6); /* what was made ready is over */
    g->pulling = x && x[strspn(x + 1, "0123456789") + 1] == 'p';
    fr_bench_chain(g->bench[0], true);
    const long long pulled = g->pulled;
    const double began = fr_monotonic_s();
    fits = fits && layers(g, m, rows, tokens, ms);
    if (g->pulling)
        printf("  GPU %d pulled %.1f GB/s\n", g->device,
               1e-9 * (double)(g->pulled - pulled) / (fr_monotonic_s() - began));
    g->pulling = false;
    fr_bench_chain(g->bench[0], false);
    for (int i = 0; i < OPS && fits; i++)
        fits = good(g, fr_bench_prepare(g->bench[i], g->table, &g->table->rows[i], &item, &err), &err);
    fr_table_free(&t);
    return fits;
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
    if (strncmp(text, "tiny", 4) == 0) {
        if (!good(g, fr_measure_wait(g->measure, &err), &err)) return false;
        g->tiny_us = (int)(1e3 * ms);
        return true;
    }
    if (strncmp(text, "chain", 5) == 0) return chain(g, text, (int)ms, number);
    if (strncmp(text, "layer", 5) == 0) return layer(g, text, ms);
    for (size_t k = 0; k < sizeof linked / sizeof *linked; k++) {
        if (strncmp(text, linked[k].name, strlen(linked[k].name)) != 0) continue;
        for (int i = 0; i < (int)ms; i++)
            if (!g->world || !mark(g, number) ||
                !(linked[k].kind == FR_OP_ALLTOALL ? exchange(g) : collective(g, linked[k].kind)))
                return false;
        return mark(g, 0);
    }
    if (strncmp(text, "rest", 4) == 0) return mark(g, 0) && fine(g, fr_k_hold((uint64_t)(1e6 * ms), s), "rest");
    if (strncmp(text, "sleep", 5) == 0) {
        if (!mark(g, number) || !good(g, fr_measure_wait(g->measure, &err), &err)) return false;
        nap(1e-3 * ms);
        return mark(g, 0);
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
    const char *own = g->pattern;
    for (int i = 0; i < g->device && strchr(own, '|'); i++) own = strchr(own, '|') + 1;
    snprintf(text, sizeof text, "%.*s", (int)strcspn(own, "|"), own);
    for (char *part = strtok_r(text, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
        char *star = strchr(part, '*');
        const int times = star ? atoi(part) : 1;
        for (int t = 0; t < times; t++) {
            char body[256], *inner = NULL;
            snprintf(body, sizeof body, "%s", star ? star + 1 : part);
            int at = number;
            for (char *s = strtok_r(body, "+", &inner); s; s = strtok_r(NULL, "+", &inner))
                if (!step(g, s, ++at)) return false;
            if (t + 1 == times) number = at + (strncmp(body, "chain", 5) == 0 ? CHAIN : 0);
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
    fine(g, cudaMemsetAsync(g->stamp, 0, (size_t)STAMPS * FR_PROBE_SMS * 16, fr_measure_stream(g->measure)), "memset");
    g->stamps = 0;
    if (mark(g, 0) && stamp(g, -2) && play(g)) good(g, fr_measure_wait(g->measure, &err), &err);
    g->pulling = false;
    g->tiny_us = 0;
    g->stop = true;
    if (watched) pthread_join(watcher, NULL);
    return NULL;
}

static float since_start(const gpu *g, int event) {
    float ms = 0;
    cudaEventElapsedTime(&ms, g->event[0], g->event[event]);
    return ms;
}

/* The second half of what step `number` lasted from its first launch to its last, other steps between them. */
static void say_step(const gpu *g, int number) {
    double from = -1, to = 0, us = 0, watts = 0, mhz = 0;
    int launches = 0, seen = 0, link = -1;
    for (int i = 0; i + 1 < g->events; i++) {
        if (g->step_of[i] != number) continue;
        if (from < 0) from = (double)since_start(g, i);
        to = (double)since_start(g, i + 1);
    }
    if (from < 0 || to - from < 200) return;
    from = (from + to) / 2;
    for (int i = 0; i + 1 < g->events; i++) {
        if (g->step_of[i] != number || (double)since_start(g, i) < from) continue;
        us += 1e3 * (double)(since_start(g, i + 1) - since_start(g, i));
        launches++;
    }
    for (int i = 0; i < g->samples_count; i++) {
        if (g->samples[i].ms < from || g->samples[i].ms > to) continue;
        watts += g->samples[i].watts;
        mhz += g->samples[i].mhz;
        link = g->samples[i].link;
        seen++;
    }
    printf("  GPU %d step %d from %6.0f to %6.0f ms: %8.1f us, %6.1f W, %5.0f MHz, link %d (%d launches, %d samples)\n",
           g->device, number, from, to, us / launches, watts / (seen ? seen : 1), mhz / (seen ? seen : 1), link,
           launches, seen);
}

/* Stretches between stamps, and the mean clock of each half second of them. */
static void write_stamps(FILE *f, gpu *g, int number) {
    const size_t each = (size_t)FR_PROBE_SMS * 2, bytes = (size_t)g->stamps * each * 8;
    uint64_t *all = fr_alloc(bytes + 1);
    double cycles = 0, busy = 0, half = 0;
    if (g->stamps < 2 || !fine(g, cudaMemcpy(all, g->stamp, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy")) {
        free(all);
        return;
    }
    for (int i = 1; i + 1 < g->stamps; i++) {
        const uint64_t *a = all + (size_t)i * each, *b = a + each;
        double sum = 0, ns = 0, start = 0;
        int n = 0;
        if (g->kind_of[i] == -2) continue;
        for (int k = 0; k < FR_PROBE_SMS; k++) {
            if (!a[2 * k + 1] || !b[2 * k + 1]) continue;
            sum += (double)(b[2 * k] - a[2 * k]);
            ns += (double)(b[2 * k + 1] - a[2 * k + 1]);
            start += (double)(int64_t)(a[2 * k + 1] - all[1]);
            n++;
        }
        if (!n || ns <= 0) continue;
        fprintf(f, "s,%d,%d,%s,%.3f,%.2f,%.0f\n", number, g->device,
                g->kind_of[i] < 0 ? "0" : fr_op_name((fr_op_kind)g->kind_of[i]), 1e-6 * start / n, 1e-3 * ns / n,
                1e3 * sum / ns);
        cycles += sum;
        busy += ns;
        if (half <= 0) half = 1e-6 * start / n;
        if (1e-6 * start / n < half + 500) continue;
        printf("  GPU %d %5.0f ms: %4.0f MHz\n", g->device, half, 1e3 * cycles / busy);
        half += 500;
        cycles = busy = 0;
    }
    free(all);
}

static void write_all(FILE *f, gpu *g, int number) {
    fprintf(f, "t,%d,%d,%s\n", number, g->device, g->pattern);
    write_stamps(f, g, number);
    for (int i = 0; i + 1 < g->events; i++) {
        float ms = 0;
        if (!g->step_of[i]) continue;
        cudaEventElapsedTime(&ms, g->event[i], g->event[i + 1]);
        fprintf(f, "l,%d,%d,%d,%.3f,%.1f\n", number, g->device, g->step_of[i], (double)since_start(g, i),
                1e3 * (double)ms);
    }
    for (int i = 0; i < g->samples_count; i++) {
        const sample *s = &g->samples[i];
        fprintf(f, "p,%d,%d,%.1f,%.1f,%.1f,%u,%llx,%u,%d\n", number, g->device, s->ms, s->watts, s->mean, s->mhz,
                s->reasons, s->celsius, s->link);
    }
    fflush(f);
    for (int k = 1; k < 64; k++) say_step(g, k);
}

static bool open_gpu(gpu *g, const fr_cost_model *cost, const fr_table *t) {
    fr_error err = {0};
    const fr_cal_item item = {.top_k = 8, .head_dim = 128};
    char bus[64];
    g->table = t;
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
    g->kind_of = fr_alloc(STAMPS * sizeof *g->kind_of);
    if (!fine(g, cudaMalloc((void **)&g->stamp, (size_t)STAMPS * FR_PROBE_SMS * 16), "cudaMalloc")) return false;
    for (int i = 0; i < AHEAD; i++)
        if (!fine(g, cudaEventCreateWithFlags(&g->ahead[i], cudaEventDisableTiming), "cudaEventCreate")) return false;
    for (int i = 0; i < EVENTS; i++)
        if (!fine(g, cudaEventCreate(&g->event[i]), "cudaEventCreate")) return false;
    if (!fine(g, cudaMalloc(&g->mine, PULL), "cudaMalloc")) return false;
    if (!fine(g, cudaStreamCreateWithFlags(&g->copies, cudaStreamNonBlocking), "cudaStreamCreate")) return false;
    if (nvml_by_bus && cudaDeviceGetPCIBusId(bus, sizeof bus, g->device) == cudaSuccess &&
        nvml_by_bus(bus, &g->nvml) != 0)
        g->nvml = NULL;
    return true;
}

static bool link_all(gpu *gpus, pthread_t *threads, int devices) {
    int16_t members[GPUS];
    fr_error err = {0};
    fr_world *world;
    bool all = true;
    if (fr_world_open_threads(devices, 20, &world, &err) != FR_OK) return false;
    fr_plan *plan = fr_plan_new(devices, devices);
    for (int i = 0; i < devices; i++) members[i] = (int16_t)i;
    fr_plan_group(plan, members, devices, devices);
    for (int i = 0; i < devices; i++) {
        gpus[i].world = world;
        gpus[i].plan = plan;
        pthread_create(&threads[i], NULL, open_links, &gpus[i]);
    }
    for (int i = 0; i < devices; i++) {
        pthread_join(threads[i], NULL);
        if (!gpus[i].why[0]) continue;
        fprintf(stderr, "GPU %d: %s\n", i, gpus[i].why);
        all = false;
    }
    return all;
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
    if (fr_device_environment(&err) != FR_OK) return fprintf(stderr, "%s\n", err.text), 1;
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
    bool linking = false;
    for (int p = 3; p < argc && devices > 1; p++)
        for (size_t k = 0; k < sizeof linked / sizeof *linked; k++) linking |= strstr(argv[p], linked[k].name) != NULL;
    if (linking && !link_all(gpus, threads, devices)) return 1;
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
    for (int i = 0; i < devices && linking; i++) pthread_create(&threads[i], NULL, close_links, &gpus[i]);
    for (int i = 0; i < devices && linking; i++) pthread_join(threads[i], NULL);
    fclose(f);
    return failed ? 1 : 0;
}

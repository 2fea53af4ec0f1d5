#include "engine/cuda/measure.h"

#include "engine/cuda/device.h"
#include "kernels/probe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Under GRAPH_NS a launch's own host time (3.7 us) and the steps of event times would show: graphs of GRAPH launches.
 */
enum { GRAPH = 20, STAMPS = 512, LEAST = 3, MOST = 40 };
#define GRAPH_NS 6e4
#define TURN_NS  1e7 /* of a duty cycle */

struct fr_measure {
    int device, sms;
    double timeout_s;
    cudaStream_t stream;
    cudaEvent_t done;
    cudaEvent_t *event;
    uint32_t events, events_cap;
    uint64_t *stamp; /* device [STAMPS][FR_PROBE_SMS][2] */
    uint64_t *seen;  /* host */
    double *ns;
    uint32_t ns_cap;
    int count;
    fr_beside beside;
    double rest_until; /* monotonic s: hot work begins no earlier */
    bool lost;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void sleep_until(double s) {
    const double left = s - now_s();
    if (left <= 0) return;
    const struct timespec t = {.tv_sec = (time_t)left, .tv_nsec = (long)(1e9 * (left - floor(left)))};
    nanosleep(&t, NULL);
}

static fr_status check(fr_measure *m, cudaError_t e, const char *what, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    m->lost |= e != cudaErrorInvalidValue && e != cudaErrorMemoryAllocation;
    return fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}
#define CU(m, call) FR_TRY(check(m, call, #call, err))

/* ---- events and stamps --------------------------------------------------------------------------------------------*/

static fr_status mark(fr_measure *m, uint32_t i, fr_error *err) {
    FR_GROW(m->event, m->events_cap, i + 1);
    for (; m->events <= i; m->events++) CU(m, cudaEventCreate(&m->event[m->events]));
    CU(m, cudaEventRecord(m->event[i], m->stream));
    return FR_OK;
}

fr_status fr_measure_await(fr_measure *m, cudaEvent_t event, fr_error *err) {
    const struct timespec nap = {.tv_nsec = 20000};
    const double end = now_s() + m->timeout_s;
    cudaError_t e;
    while ((e = cudaEventQuery(event)) == cudaErrorNotReady) {
        if (now_s() > end) {
            m->lost = true;
            return fr_fail(err, FR_FAILED, "GPU %d did not answer within %.0f s", m->device, m->timeout_s);
        }
        nanosleep(&nap, NULL);
    }
    return check(m, e, "waiting for the GPU", err);
}

static fr_status wait_for(fr_measure *m, uint32_t i, fr_error *err) {
    return fr_measure_await(m, m->event[i], err);
}

static fr_status between(fr_measure *m, uint32_t a, uint32_t b, double *ns, fr_error *err) {
    float ms = 0;
    CU(m, cudaEventElapsedTime(&ms, m->event[a], m->event[b]));
    *ns = 1e6 * (double)ms;
    return FR_OK;
}

static fr_status put_stamp(fr_measure *m, int i, fr_error *err) {
    uint64_t *at = m->stamp + (size_t)i * FR_PROBE_SMS * 2;
    CU(m, cudaMemsetAsync(at, 0, FR_PROBE_SMS * 2 * sizeof *at, m->stream));
    CU(m, fr_k_stamp(at, m->sms, m->stream));
    return FR_OK;
}

/* MHz between stamps a and b of `seen`, the mean of the SMs that are in both; *ns the time between them. */
static double clock_of(const fr_measure *m, int a, int b, double *ns) {
    const uint64_t *x = m->seen + (size_t)a * FR_PROBE_SMS * 2, *y = m->seen + (size_t)b * FR_PROBE_SMS * 2;
    double cycles = 0, time = 0;
    int n = 0;
    for (int i = 0; i < FR_PROBE_SMS; i++)
        if (x[2 * i + 1] && y[2 * i + 1] > x[2 * i + 1] && y[2 * i] > x[2 * i]) {
            cycles += (double)(y[2 * i] - x[2 * i]);
            time += (double)(y[2 * i + 1] - x[2 * i + 1]);
            n++;
        }
    if (ns) *ns = n ? time / n : 0;
    return time > 0 ? 1e3 * cycles / time : 0;
}

static fr_status read_stamps(fr_measure *m, int count, fr_error *err) {
    CU(m, cudaMemcpyAsync(m->seen, m->stamp, (size_t)count * FR_PROBE_SMS * 2 * sizeof *m->seen, cudaMemcpyDeviceToHost,
                          m->stream));
    return fr_measure_wait(m, err);
}

/* ---- readings -----------------------------------------------------------------------------------------------------*/

static void keep(fr_measure *m, double ns) {
    FR_GROW(m->ns, m->ns_cap, (uint32_t)m->count + 1);
    m->ns[m->count++] = ns;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

fr_reading fr_reading_of(const double *ns, int count) {
    fr_reading r = {.ns = ns, .count = count};
    if (!count) return r;
    double *sorted = fr_alloc((size_t)count * sizeof *sorted);
    memcpy(sorted, ns, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_size);
    r.median = sorted[(int)(0.5 * (count - 1) + 0.5)];
    r.p10 = sorted[(int)(0.1 * (count - 1) + 0.5)];
    r.p90 = sorted[(int)(0.9 * (count - 1) + 0.5)];
    free(sorted);
    return r;
}

/* ---- public -------------------------------------------------------------------------------------------------------*/

fr_status fr_measure_open(int device, double timeout_s, fr_measure **out, fr_error *err) {
    fr_measure *m = fr_alloc(sizeof *m);
    const size_t bytes = (size_t)STAMPS * FR_PROBE_SMS * 2 * sizeof *m->stamp;
    *out = m; /* the caller closes it, whatever happens */
    m->device = device;
    m->timeout_s = timeout_s;
    CU(m, cudaSetDevice(device));
    CU(m, cudaDeviceGetAttribute(&m->sms, cudaDevAttrMultiProcessorCount, device));
    CU(m, cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking));
    CU(m, cudaEventCreateWithFlags(&m->done, cudaEventDisableTiming));
    CU(m, cudaMalloc((void **)&m->stamp, bytes));
    CU(m, cudaMallocHost((void **)&m->seen, bytes));
    return FR_OK;
}

void fr_measure_close(fr_measure *m) {
    if (!m) return;
    if (!m->lost) { /* else giving back would wait for the device; the process's end does it */
        for (uint32_t i = 0; i < m->events; i++) cudaEventDestroy(m->event[i]);
        if (m->done) cudaEventDestroy(m->done);
        if (m->stamp) cudaFree(m->stamp);
        if (m->seen) cudaFreeHost(m->seen);
        if (m->stream) cudaStreamDestroy(m->stream);
    }
    free(m->event);
    free(m->ns);
    free(m);
}

cudaStream_t fr_measure_stream(const fr_measure *m) {
    return m->stream;
}

void fr_measure_beside(fr_measure *m, const fr_beside *b) {
    m->beside = b ? *b : (fr_beside){0};
}

bool fr_measure_lost(const fr_measure *m) {
    return m->lost;
}

fr_status fr_measure_wait(fr_measure *m, fr_error *err) {
    CU(m, cudaEventRecord(m->done, m->stream));
    return fr_measure_await(m, m->done, err);
}

/* ns of one launch, after one to warm up. */
static fr_status probe(fr_measure *m, fr_work work, void *context, double *one, fr_error *err) {
    FR_TRY(work(context, m->stream, err));
    FR_TRY(mark(m, 0, err));
    FR_TRY(work(context, m->stream, err));
    FR_TRY(mark(m, 1, err));
    FR_TRY(wait_for(m, 1, err));
    return between(m, 0, 1, one, err);
}

static fr_status capture(fr_measure *m, fr_work work, void *context, cudaGraphExec_t *exec, fr_error *err) {
    cudaGraph_t graph = NULL;
    fr_status status = FR_OK;
    CU(m, cudaStreamBeginCapture(m->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < GRAPH && status == FR_OK; i++) status = work(context, m->stream, err);
    const cudaError_t e = cudaStreamEndCapture(m->stream, &graph);
    if (status == FR_OK) status = check(m, e, "cudaStreamEndCapture", err);
    if (status == FR_OK) status = check(m, cudaGraphInstantiate(exec, graph, 0), "cudaGraphInstantiate", err);
    if (graph) cudaGraphDestroy(graph);
    return status;
}

/* n times, an event before each and one behind. */
static fr_status launches(fr_measure *m, fr_work work, void *context, cudaGraphExec_t graph, int n, fr_error *err) {
    for (int i = 0; i < n; i++) {
        FR_TRY(mark(m, (uint32_t)i, err));
        if (graph)
            CU(m, cudaGraphLaunch(graph, m->stream));
        else
            FR_TRY(work(context, m->stream, err));
    }
    return mark(m, (uint32_t)n, err);
}

/* Hot work rests for twice as long as it was busy: at a third of the time a product's 890 W are 400 on average, and the
 * power limit (700 W over some 50 ms, H200) stays away. */
static void rest(fr_measure *m, bool hot, double busy_ns) {
    if (hot) m->rest_until = fmax(m->rest_until, now_s()) + fmin(2e-9 * busy_ns, 0.3);
}

/* A group of n launches between stamps; readings are kept, *busy and the clock's sums grow. */
static fr_status group(fr_measure *m, fr_work work, void *context, cudaGraphExec_t graph, int n, double *busy,
                       double *cycles, fr_error *err) {
    double stretch;
    FR_TRY(put_stamp(m, 0, err));
    FR_TRY(launches(m, work, context, graph, n, err));
    FR_TRY(put_stamp(m, 1, err));
    FR_TRY(read_stamps(m, 2, err));
    const double mhz = clock_of(m, 0, 1, &stretch);
    for (int i = 0; i < n; i++) {
        double ns;
        FR_TRY(between(m, (uint32_t)i, (uint32_t)i + 1, &ns, err));
        *busy += ns;
        *cycles += ns * mhz;
        keep(m, graph ? ns / GRAPH : ns);
    }
    return FR_OK;
}

fr_status fr_measure_burst(fr_measure *m, fr_work work, void *context, bool hot, double work_ns, fr_reading *out,
                           fr_error *err) {
    double one = 0, busy = 0, cycles = 0;
    cudaGraphExec_t graph = NULL;
    CU(m, cudaSetDevice(m->device));
    FR_TRY(probe(m, work, context, &one, err));
    if (one < GRAPH_NS) {
        FR_TRY(capture(m, work, context, &graph, err));
        one *= GRAPH;
        CU(m, cudaGraphLaunch(graph, m->stream)); /* the first one uploads it */
    }
    rest(m, hot, 2 * one);
    const int n = (int)fmin(fmax(work_ns / fmax(one, 1), 1), MOST);
    fr_status status = FR_OK;
    m->count = 0;
    while (m->count < LEAST && status == FR_OK) { /* long ops: several groups, with rest between them */
        const double before = busy;
        if (hot) sleep_until(m->rest_until);
        if (m->beside.begin && m->count == 0) status = m->beside.begin(m->beside.context, err);
        if (status == FR_OK) status = group(m, work, context, graph, n, &busy, &cycles, err);
        rest(m, hot, busy - before);
    }
    if (graph) cudaGraphExecDestroy(graph);
    FR_TRY(status);
    *out = fr_reading_of(m->ns, m->count);
    out->clock_mhz = busy > 0 ? cycles / busy : 0;
    return FR_OK;
}

/* One turn of launches, with its pause behind; events base .. base + batch. */
static fr_status turn(fr_measure *m, fr_work work, void *context, int batch, uint32_t base, double pause_ns,
                      fr_error *err) {
    for (int i = 0; i < batch; i++) {
        FR_TRY(mark(m, base + (uint32_t)i, err));
        FR_TRY(work(context, m->stream, err));
    }
    FR_TRY(mark(m, base + (uint32_t)batch, err));
    if (pause_ns > 0) CU(m, fr_k_hold((uint64_t)pause_ns, m->stream));
    return FR_OK;
}

fr_status fr_measure_hold(fr_measure *m, fr_work work, void *context, double seconds, double duty, fr_reading *out,
                          fr_error *err) {
    double one = 0;
    CU(m, cudaSetDevice(m->device));
    FR_TRY(probe(m, work, context, &one, err));
    const bool paused = duty < 1;
    const int batch = (int)fmin(fmax((paused ? duty : 5) * TURN_NS / fmax(one, 1), 1), 1500);
    const double pause = paused ? batch * one * (1 / duty - 1) : 0, start = now_s();
    fr_meter *meter = NULL;
    m->count = 0;
    bool stamped = false;
    fr_status status =
        turn(m, work, context, batch, 1, pause, err); /* two turns out: the GPU never waits for the host */
    for (int t = 1; status == FR_OK; t++) {
        const uint32_t base = 1 + (uint32_t)(t & 1) * (uint32_t)(batch + 1),
                       other = 1 + (uint32_t)(batch + 1) - base + 1;
        const double at = now_s() - start;
        if (!stamped && at > 0.4 * seconds) {
            status = put_stamp(m, 0, err);
            stamped = true;
            meter = fr_meter_start(m->device);
        }
        bool stop = at > seconds;
        if (status == FR_OK && m->beside.turn) status = m->beside.turn(m->beside.context, at, &stop, err);
        if (status == FR_OK) status = turn(m, work, context, batch, base, pause, err);
        if (status == FR_OK) status = wait_for(m, other + (uint32_t)batch, err);
        for (int i = 0; i < batch && stamped && status == FR_OK; i++) {
            double ns;
            status = between(m, other + (uint32_t)i, other + (uint32_t)i + 1, &ns, err);
            keep(m, ns);
        }
        if (stop) break;
    }
    fr_meter_reading r;
    fr_meter_stop(meter, &r);
    FR_TRY(status);
    FR_TRY(put_stamp(m, 1, err));
    FR_TRY(read_stamps(m, 2, err));
    *out = fr_reading_of(m->ns, m->count);
    out->clock_mhz = clock_of(m, 0, 1, NULL);
    out->watts = r.watts;
    out->capped = r.capped;
    m->rest_until = now_s() + 0.5;
    return FR_OK;
}

/* ---- ramps --------------------------------------------------------------------------------------------------------*/

/* Stamps every 4 ms or so; the last at the end. */
static fr_status ramp_launches(fr_measure *m, fr_work work, void *context, int n, int each, int *stamps,
                               fr_error *err) {
    *stamps = 0;
    FR_TRY(put_stamp(m, (*stamps)++, err));
    for (int i = 0; i < n; i++) {
        if (i && i % each == 0 && *stamps < STAMPS - 1) FR_TRY(put_stamp(m, (*stamps)++, err));
        FR_TRY(mark(m, 2 * (uint32_t)i, err));
        FR_TRY(work(context, m->stream, err));
        FR_TRY(mark(m, 2 * (uint32_t)i + 1, err));
    }
    FR_TRY(put_stamp(m, (*stamps)++, err));
    return read_stamps(m, *stamps, err);
}

fr_status fr_measure_ramp(fr_measure *m, fr_work work, void *context, const int32_t *ms, int count, fr_reading *out,
                          fr_error *err) {
    double one = 0;
    CU(m, cudaSetDevice(m->device));
    FR_TRY(probe(m, work, context, &one, err));
    const int n = (int)fmin(1.25e6 * ms[count] / fmax(one, 1), 4000), each = (int)fmax(4e6 / fmax(one, 1), 1);
    sleep_until(now_s() + 1);
    int stamps;
    FR_TRY(ramp_launches(m, work, context, n, each, &stamps, err));
    double *begin = fr_alloc((size_t)n * sizeof *begin), *took = fr_alloc((size_t)n * sizeof *took);
    fr_status status = FR_OK;
    for (int i = 0; i < n && status == FR_OK; i++) {
        status = between(m, 0, 2 * (uint32_t)i, &begin[i], err);
        if (status == FR_OK) status = between(m, 2 * (uint32_t)i, 2 * (uint32_t)i + 1, &took[i], err);
    }
    FR_GROW(m->ns, m->ns_cap, (uint32_t)n + 1);
    m->count = 0;
    for (int b = 0, i = 0; b < count && status == FR_OK; b++) {
        const int first = m->count;
        const double from = 1e6 * ms[b], to = 1e6 * ms[b + 1];
        for (; i < n && begin[i] < to; i++) keep(m, took[i]);
        out[b] = fr_reading_of(m->ns + first, m->count - first);
        double cycles = 0, time = 0, at = 0; /* clock: of the stretches that lie mostly inside */
        for (int s = 0; s + 1 < stamps; s++) {
            double ns;
            const double mhz = clock_of(m, s, s + 1, &ns);
            if (at + ns / 2 >= from && at + ns / 2 < to) {
                cycles += mhz * ns;
                time += ns;
            }
            at += ns;
        }
        out[b].clock_mhz = time > 0 ? cycles / time : 0;
    }
    free(took);
    free(begin);
    m->rest_until = now_s() + 1;
    return status;
}

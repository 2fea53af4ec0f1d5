#include "engine/cuda/measure.h"

#include "engine/cuda/device.h"
#include "kernels/probe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Under GRAPH_NS a launch's own host time (3.7 us) and the steps of event times would show: graphs of GRAPH launches.
 */
enum { GRAPH = 20, STAMPS = FR_MEASURE_STAMPS, LEAST = 3, MOST = 40 };
#define GRAPH_NS 6e4
#define TURN_NS  1e7 /* of a duty cycle whose length nobody names */

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

static void sleep_until(double s) {
    const double left = s - fr_monotonic_s();
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
    const double end = fr_monotonic_s() + m->timeout_s;
    cudaError_t e;
    while ((e = cudaEventQuery(event)) == cudaErrorNotReady) {
        if (fr_monotonic_s() > end) {
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

fr_status fr_measure_stamp(fr_measure *m, int i, fr_error *err) {
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

/* The mean clock of the stretches between stamps 0 and 1, 2 and 3, ... */
static double clock_of_turns(const fr_measure *m, int stamps) {
    double cycles = 0, time = 0, ns;
    for (int s = 0; s + 1 < stamps; s += 2) {
        const double mhz = clock_of(m, s, s + 1, &ns);
        cycles += mhz * ns;
        time += ns;
    }
    return time > 0 ? cycles / time : 0;
}

fr_status fr_measure_clock(fr_measure *m, int count, double *mhz, fr_error *err) {
    FR_TRY(read_stamps(m, count, err));
    *mhz = clock_of_turns(m, count);
    return FR_OK;
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

static fr_status repeat(fr_measure *m, fr_work work, void *context, int times, fr_error *err) {
    for (int i = 0; i < times; i++) FR_TRY(work(context, m->stream, err));
    return FR_OK;
}

/* ns of a launch, or of `parts` of them, after as many to warm up. */
static fr_status probe(fr_measure *m, fr_work work, void *context, int parts, double *one, fr_error *err) {
    FR_TRY(repeat(m, work, context, parts, err));
    FR_TRY(mark(m, 0, err));
    FR_TRY(repeat(m, work, context, parts, err));
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
    if (hot) m->rest_until = fmax(m->rest_until, fr_monotonic_s()) + fmin(2e-9 * busy_ns, 0.3);
}

/* A group of n launches between stamps; readings are kept, *busy and the clock's sums grow. */
static fr_status group(fr_measure *m, fr_work work, void *context, cudaGraphExec_t graph, int n, double *busy,
                       double *cycles, fr_error *err) {
    double stretch;
    FR_TRY(fr_measure_stamp(m, 0, err));
    FR_TRY(launches(m, work, context, graph, n, err));
    FR_TRY(fr_measure_stamp(m, 1, err));
    FR_TRY(read_stamps(m, 2, err));
    const double mhz = clock_of(m, 0, 1, &stretch);
    for (int i = 0; i < n; i++) {
        double ns = 0;
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
    FR_TRY(probe(m, work, context, 1, &one, err));
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

/* ---- sustained ----------------------------------------------------------------------------------------------------*/

/* Stamps around a turn's launches, while there is room for them. */
static fr_status stamp_turn(fr_measure *m, bool wanted, int *stamps, fr_error *err) {
    if (!wanted || *stamps >= STAMPS - 1) return FR_OK;
    return fr_measure_stamp(m, (*stamps)++, err);
}

/* One turn of launches, with its pause behind; events base .. base + batch. */
static fr_status turn(fr_measure *m, fr_work work, void *context, int batch, uint32_t base, double pause_ns,
                      bool stamped, int *stamps, fr_error *err) {
    const bool room = stamped && *stamps + 2 <= STAMPS;
    FR_TRY(stamp_turn(m, room, stamps, err));
    for (int i = 0; i < batch; i++) {
        FR_TRY(mark(m, base + (uint32_t)i, err));
        FR_TRY(work(context, m->stream, err));
    }
    FR_TRY(mark(m, base + (uint32_t)batch, err));
    FR_TRY(stamp_turn(m, room, stamps, err));
    if (pause_ns > 0) CU(m, fr_k_hold((uint64_t)pause_ns, m->stream));
    return FR_OK;
}

/* Of `parts` works in turn; the readings stay in m->ns as they came. */
static fr_status hold(fr_measure *m, fr_work work, void *context, int parts, double seconds, double duty,
                      double turn_ns, fr_reading *out, fr_error *err) {
    double one = 0;
    CU(m, cudaSetDevice(m->device));
    FR_TRY(probe(m, work, context, parts, &one, err));
    const bool paused = duty < 1;
    const double busy = paused ? duty * (turn_ns > 0 ? turn_ns : TURN_NS) : 5 * TURN_NS;
    const int batch = parts * (int)fmin(fmax(busy / fmax(one, 1) + 0.5, 1), 1500.0 / parts);
    const double pause = paused ? batch * one * (1 / duty - 1) / parts : 0, start = fr_monotonic_s();
    fr_meter *meter = NULL;
    m->count = 0;
    int stamps = 0;
    bool stamped = false;
    fr_status status = /* two turns out: the GPU never waits for the host */
        turn(m, work, context, batch, 1, pause, false, &stamps, err);
    for (int t = 1; status == FR_OK; t++) {
        const uint32_t base = 1 + (uint32_t)(t & 1) * (uint32_t)(batch + 1),
                       other = 1 + (uint32_t)(batch + 1) - base + 1;
        const double at = fr_monotonic_s() - start;
        const bool counted = stamped; /* the turn that is waited for below was launched before */
        if (!stamped && at > 0.4 * seconds) {
            stamped = true;
            meter = fr_meter_start(m->device);
            if (!paused) status = fr_measure_stamp(m, stamps++, err);
        }
        bool stop = at > seconds;
        if (status == FR_OK && m->beside.turn) status = m->beside.turn(m->beside.context, at, &stop, err);
        if (status == FR_OK) status = turn(m, work, context, batch, base, pause, stamped && paused, &stamps, err);
        if (status == FR_OK) status = wait_for(m, other + (uint32_t)batch, err);
        for (int i = 0; i < batch && counted && status == FR_OK; i++) {
            double ns = 0;
            status = between(m, other + (uint32_t)i, other + (uint32_t)i + 1, &ns, err);
            keep(m, ns);
        }
        if (stop && (m->count || m->beside.turn)) break;
    }
    fr_meter_reading r;
    fr_meter_stop(meter, &r);
    FR_TRY(status);
    if (!paused) FR_TRY(fr_measure_stamp(m, stamps++, err));
    FR_TRY(read_stamps(m, stamps, err));
    *out = fr_reading_of(m->ns, m->count);
    out->clock_mhz = clock_of_turns(m, stamps);
    out->watts = r.watts;
    out->capped = r.capped;
    m->rest_until = fr_monotonic_s() + 0.5;
    return FR_OK;
}

fr_status fr_measure_hold(fr_measure *m, fr_work work, void *context, double seconds, double duty, double turn_ns,
                          fr_reading *out, fr_error *err) {
    return hold(m, work, context, 1, seconds, duty, turn_ns, out, err);
}

fr_status fr_measure_cycle(fr_measure *m, fr_work work, void *context, int parts, double seconds, fr_reading *out,
                           fr_error *err) {
    fr_reading all;
    FR_TRY(hold(m, work, context, parts, seconds, 1, 0, &all, err));
    const int each = m->count / parts;
    double *ns = fr_alloc(((size_t)each * (size_t)parts + 1) * sizeof *ns);
    for (int i = 0; i < each * parts; i++) ns[i % parts * each + i / parts] = m->ns[i];
    memcpy(m->ns, ns, (size_t)each * (size_t)parts * sizeof *ns);
    free(ns);
    for (int k = 0; k < parts; k++) {
        out[k] = fr_reading_of(m->ns + k * each, each);
        out[k].clock_mhz = all.clock_mhz;
        out[k].watts = all.watts;
        out[k].capped = all.capped;
    }
    return FR_OK;
}

/* ---- ramps and pauses ---------------------------------------------------------------------------------------------*/

/* Launches first .. first + n - 1, events 2i before and 2i + 1 behind; stamps every `each` of them and at both ends. */
static fr_status stamped_launches(fr_measure *m, fr_work work, void *context, int first, int n, int each, int *stamps,
                                  fr_error *err) {
    FR_TRY(fr_measure_stamp(m, (*stamps)++, err));
    for (int i = 0; i < n; i++) {
        if (i && i % each == 0 && *stamps < STAMPS - 1) FR_TRY(fr_measure_stamp(m, (*stamps)++, err));
        FR_TRY(mark(m, 2 * (uint32_t)(first + i), err));
        FR_TRY(work(context, m->stream, err));
        FR_TRY(mark(m, 2 * (uint32_t)(first + i) + 1, err));
    }
    return fr_measure_stamp(m, (*stamps)++, err);
}

/* Readings and clocks of launches first .. first + n - 1 by the time after the first one's begin; stamps from
 * `from_stamp` on. */
static fr_status by_time(fr_measure *m, int first, int n, int from_stamp, int stamps, const int32_t *ms, int count,
                         fr_reading *out, fr_error *err) {
    int *start = fr_alloc(((size_t)count + 1) * sizeof *start);
    fr_status status = FR_OK;
    int i = 0;
    double begin = 0, took = 0;
    for (int b = 0; b < count && status == FR_OK; b++) {
        start[b] = m->count;
        for (; i < n; i++) {
            status = between(m, 2 * (uint32_t)first, 2 * (uint32_t)(first + i), &begin, err);
            if (status != FR_OK || begin >= 1e6 * ms[b + 1]) break;
            status = between(m, 2 * (uint32_t)(first + i), 2 * (uint32_t)(first + i) + 1, &took, err);
            keep(m, took);
        }
    }
    start[count] = m->count;
    for (int b = 0; b < count && status == FR_OK; b++) { /* only now: the readings' place may have moved */
        out[b] = fr_reading_of(m->ns + start[b], start[b + 1] - start[b]);
        double cycles = 0, time = 0, at = 0; /* of the stretches that lie mostly inside */
        for (int s = from_stamp; s + 1 < stamps; s++) {
            double ns = 0;
            const double mhz = clock_of(m, s, s + 1, &ns);
            if (at + ns / 2 >= 1e6 * ms[b] && at + ns / 2 < 1e6 * ms[b + 1]) {
                cycles += mhz * ns;
                time += ns;
            }
            at += ns;
        }
        out[b].clock_mhz = time > 0 ? cycles / time : 0;
    }
    free(start);
    return status;
}

fr_status fr_measure_ramp(fr_measure *m, fr_work work, void *context, const int32_t *ms, int count, fr_reading *out,
                          fr_error *err) {
    double one = 0;
    int stamps = 0;
    CU(m, cudaSetDevice(m->device));
    FR_TRY(probe(m, work, context, 1, &one, err));
    const int n = (int)fmin(1.25e6 * ms[count] / fmax(one, 1), 4000), each = (int)fmax(4e6 / fmax(one, 1), 1);
    sleep_until(fr_monotonic_s() + 1);
    FR_TRY(stamped_launches(m, work, context, 0, n, each, &stamps, err));
    FR_TRY(read_stamps(m, stamps, err));
    m->count = 0;
    FR_TRY(by_time(m, 0, n, 0, stamps, ms, count, out, err));
    m->rest_until = fr_monotonic_s() + 1;
    return FR_OK;
}

/* The pause: until gap_ns after the load's last kernel, or filled with other work. */
static fr_status sit_out(fr_measure *m, fr_work fill, void *context, double gap_ns, uint32_t last, fr_error *err) {
    const double end = fr_monotonic_s() + m->timeout_s;
    cudaError_t e;
    double one = 0, begin;
    if (fill) {
        FR_TRY(probe(m, fill, context, 1, &one, err)); /* three launches with the next one, of some 0.5 ms each */
        for (int i = 2; i * one < gap_ns; i++) FR_TRY(fill(context, m->stream, err));
        return FR_OK;
    }
    while ((e = cudaEventQuery(m->event[last])) == cudaErrorNotReady && fr_monotonic_s() < end) {
    }
    if (e == cudaErrorNotReady) return fr_measure_wait(m, err); /* reports */
    CU(m, e);
    for (begin = fr_monotonic_s(); 1e9 * (fr_monotonic_s() - begin) < gap_ns;) {
    }
    return FR_OK;
}

fr_status fr_measure_release(fr_measure *m, fr_work work, fr_work fill, void *context, double gap_ns, const int32_t *ms,
                             int count, fr_reading *before, fr_reading *out, double *real_ns, fr_error *err) {
    static const int32_t end[] = {0, 60000};
    double one = 0;
    int stamps = 0;
    CU(m, cudaSetDevice(m->device));
    FR_TRY(probe(m, work, context, 1, &one, err));
    one = fmax(one, 1e4);
    /* the load: the probe's own events 0 and 1 are read already. Its last part has stamps */
    const int tail = (int)fmax(5e7 / one, 1), load = (int)(3e8 / one), n = (int)(1.25e6 * ms[count] / one) + 1;
    for (int i = 0; i < load; i++) FR_TRY(work(context, m->stream, err));
    FR_TRY(stamped_launches(m, work, context, 1, tail, tail, &stamps, err));
    const uint32_t last = 2 * (uint32_t)tail + 1;
    const int first = tail + 1, middle = stamps;
    FR_TRY(mark(m, 2 * (uint32_t)(first + n) + 2, err)); /* all events exist: none is made while the GPU rests */
    FR_TRY(sit_out(m, fill, context, gap_ns, last, err));
    FR_TRY(stamped_launches(m, work, context, first, n, (int)fmax(4e6 / one, 1), &stamps, err));
    FR_TRY(read_stamps(m, stamps, err));
    FR_TRY(between(m, last, 2 * (uint32_t)first, real_ns, err));
    m->count = 0;
    FR_GROW(m->ns, m->ns_cap, (uint32_t)(tail + n) + 1); /* the readings of both parts stay where they are */
    FR_TRY(by_time(m, 1, tail, 0, middle, end, 1, before, err));
    FR_TRY(by_time(m, first, n, middle, stamps, ms, count, out, err));
    m->rest_until = fr_monotonic_s() + 0.3;
    return FR_OK;
}

/* What one GPU measures: an item of the grid each. */
#include "engine/cuda/calibrate_run.h"
#include "kernels/kernels.h"
#include "kernels/probe.h"

#include <math.h>

#define BURST_NS 1.2e7 /* of launches that count: 3 of a long op, 40 or more of a short one */

static fr_status check(cudaError_t e, const char *what, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}
#define CU(call) FR_TRY(check(call, #call, err))

static fr_status burst(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    const fr_table *t = &r->grid->table;
    fr_reading reading;
    FR_TRY(fr_bench_prepare(r->bench[d], t, &t->rows[i], &r->grid->items[i], err));
    FR_TRY(
        fr_measure_burst(r->measure[d], fr_bench_run, r->bench[d], fr_bench_hot(&t->rows[i]), BURST_NS, &reading, err));
    const fr_row row = fr_cal_filled(r, d, i, &reading);
    return fr_cal_write(r, t, &row, reading.ns, reading.count, err);
}

static fr_status hold(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    const fr_table *t = &r->grid->table;
    fr_reading reading;
    FR_TRY(fr_bench_prepare(r->bench[d], t, &t->rows[i], &r->grid->items[i], err));
    FR_TRY(fr_measure_hold(r->measure[d], fr_bench_run, r->bench[d], (double)r->grid->items[i].hold_s, t->rows[i].duty,
                           1e6 * t->rows[i].turn_ms, &reading, err));
    const fr_row row = fr_cal_filled(r, d, i, &reading);
    return fr_cal_write(r, t, &row, reading.ns, reading.count, err);
}

static fr_status ramp(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    const fr_table *t = &r->grid->table;
    fr_reading readings[FR_CAL_RAMP_STEPS];
    FR_TRY(fr_bench_prepare(r->bench[d], t, &t->rows[i], &r->grid->items[i], err));
    FR_TRY(fr_measure_ramp(r->measure[d], fr_bench_run, r->bench[d], fr_cal_ramp, FR_CAL_RAMP_STEPS, readings, err));
    /* the first row last: it is what tells a resumed run that the item is done */
    for (int s = FR_CAL_RAMP_STEPS - 1; s >= 0; s--) {
        if (!readings[s].count) continue;
        fr_row row = fr_cal_filled(r, d, i, &readings[s]);
        row.at_ms = fr_cal_ramp[s];
        FR_TRY(fr_cal_write(r, t, &row, readings[s].ns, readings[s].count, err));
    }
    return FR_OK;
}

/* ---- pauses -------------------------------------------------------------------------------------------------------*/

typedef struct {
    fr_bench *bench;
    const fr_row *row;
    fr_row stream; /* a norm that streams memory (the anchor, engine/calibrate/calibrate.c) */
    int top_k, head_dim;
} filling;

static fr_status loaded(void *context, cudaStream_t stream, fr_error *err) {
    return fr_bench_run(((filling *)context)->bench, stream, err);
}

static fr_status streaming(void *context, cudaStream_t stream, fr_error *err) {
    const filling *f = context;
    fr_bench_switch(f->bench, &f->stream, f->top_k, f->head_dim);
    const fr_status s = fr_bench_run(f->bench, stream, err);
    fr_bench_switch(f->bench, f->row, f->top_k, f->head_dim);
    return s;
}

static fr_status release(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    const fr_table *t = &r->grid->table;
    const fr_cal_item *item = &r->grid->items[i];
    const fr_row *row = &t->rows[i];
    filling f = {.bench = r->bench[d],
                 .row = row,
                 .stream = {.type = FR_ROW_OP, .duty = 1, .at_ms = -1, .gap_ms = -1, .ways = 1},
                 .top_k = item->top_k,
                 .head_dim = item->head_dim};
    fr_reading before, after[FR_CAL_PAUSE_STEPS];
    double real_ns;
    f.stream.shape = (fr_shape){.kind = FR_OP_NORM, .m = 65536, .n = 4096, .bytes = INT64_C(65536) * 4096 * 8};
    FR_TRY(fr_bench_prepare(r->bench[d], t, row, item, err));
    FR_TRY(fr_measure_release(r->measure[d], loaded, row->fill ? streaming : NULL, &f, 1e6 * row->gap_ms, fr_cal_pause,
                              FR_CAL_PAUSE_STEPS, &before, after, &real_ns, err));
    if (real_ns < 0.9e6 * row->gap_ms || real_ns > 1.1e6 * row->gap_ms + 1e6 * row->fill)
        FR_TRY(fr_cal_note(r, err, "the pause of the next rows was %.3f ms", 1e-6 * real_ns));
    for (int s = FR_CAL_PAUSE_STEPS - 1; s >= 0; s--) {
        if (!after[s].count) continue;
        fr_row one = fr_cal_filled(r, d, i, &after[s]);
        one.at_ms = fr_cal_pause[s];
        FR_TRY(fr_cal_write(r, t, &one, after[s].ns, after[s].count, err));
    }
    const fr_row load = fr_cal_filled(r, d, i, &before); /* last: it is what tells a resumed run that all are there */
    return fr_cal_write(r, t, &load, before.ns, before.count, err);
}

/* ---- host and events ----------------------------------------------------------------------------------------------*/

/* The smallest kernel of a layer: one block. */
static fr_status tiny(void *context, cudaStream_t stream, fr_error *err) {
    fr_bf16 *x = context;
    return check(fr_k_rmsnorm(x, x, NULL, x + 4096, 1, 64, 1e-6F, stream), "fr_k_rmsnorm", err);
}

fr_status fr_cal_write_list(fr_cal_run *r, int d, uint32_t i, const double *ns, int n, fr_error *err) {
    const fr_reading reading = fr_reading_of(ns, n);
    const fr_row row = fr_cal_filled(r, d, i, &reading);
    return fr_cal_write(r, &r->grid->table, &row, ns, n, err);
}

/* Host time of a launch, in runs of 500 that the GPU's queue holds. */
static fr_status launch(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    enum { TURNS = 15, RUN = 500 };
    fr_measure *m = r->measure[d];
    cudaStream_t s = fr_measure_stream(m);
    void *x = fr_bench_memory(r->bench[d], 1 << 20);
    double ns[TURNS];
    for (int t = -1; t < TURNS; t++) {
        const double start = fr_monotonic_s();
        for (int k = 0; k < RUN; k++) FR_TRY(tiny(x, s, err));
        if (t >= 0) ns[t] = 1e9 * (fr_monotonic_s() - start) / RUN;
        FR_TRY(fr_measure_wait(m, err));
    }
    return fr_cal_write_list(r, d, i, ns, TURNS, err);
}

static fr_status shortest(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    fr_reading reading;
    FR_TRY(fr_measure_burst(r->measure[d], tiny, fr_bench_memory(r->bench[d], 1 << 20), false, BURST_NS / 10, &reading,
                            err));
    const fr_row row = fr_cal_filled(r, d, i, &reading);
    return fr_cal_write(r, &r->grid->table, &row, reading.ns, reading.count, err);
}

/* Two streams hand a kernel to and fro through events, behind one that holds both: less the kernels themselves. */
static fr_status handovers(fr_cal_run *r, int d, cudaStream_t other, cudaEvent_t e[4], bool cross, double *ns,
                           fr_error *err) {
    enum { TIMES = 100 };
    cudaStream_t s = fr_measure_stream(r->measure[d]);
    void *x = fr_bench_memory(r->bench[d], 1 << 20);
    float ms = 0;
    CU(fr_k_hold(3000000, s));
    CU(cudaEventRecord(e[2], s));
    for (int k = 0; k < TIMES; k++) {
        cudaStream_t from = k % 2 && cross ? other : s, to = k % 2 || !cross ? s : other;
        FR_TRY(tiny(x, from, err));
        if (!cross) continue;
        CU(cudaEventRecord(e[k % 2], from));
        CU(cudaStreamWaitEvent(to, e[k % 2], 0));
    }
    CU(cudaEventRecord(e[3], s));
    FR_TRY(fr_measure_wait(r->measure[d], err));
    CU(cudaEventElapsedTime(&ms, e[2], e[3]));
    *ns = 1e6 * (double)ms / TIMES;
    return FR_OK;
}

static fr_status events(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    enum { TURNS = 21 };
    cudaStream_t other = NULL;
    cudaEvent_t e[4] = {NULL};
    double ns[TURNS];
    CU(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    fr_status status = FR_OK;
    for (int k = 0; k < 4 && status == FR_OK; k++)
        status = check(cudaEventCreateWithFlags(&e[k], k < 2 ? cudaEventDisableTiming : 0), "cudaEventCreate", err);
    for (int t = 0; t < TURNS && status == FR_OK; t++) {
        double cross = 0, plain = 0;
        status = handovers(r, d, other, e, true, &cross, err);
        if (status == FR_OK) status = handovers(r, d, other, e, false, &plain, err);
        ns[t] = cross > plain ? cross - plain : 1;
    }
    for (int k = 0; k < 4; k++)
        if (e[k]) cudaEventDestroy(e[k]);
    cudaStreamDestroy(other);
    FR_TRY(status);
    return fr_cal_write_list(r, d, i, ns, TURNS, err);
}

/* As the engine reads counts: a copy of four bytes, an event, polls. */
static fr_status readback(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    enum { TIMES = 300 };
    cudaStream_t s = fr_measure_stream(r->measure[d]);
    void *from = fr_bench_memory(r->bench[d], 4), *to = fr_bench_host(r->bench[d], 4);
    cudaEvent_t e;
    double ns[TIMES];
    fr_status status = FR_OK;
    CU(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    for (int t = -50; t < TIMES && status == FR_OK; t++) {
        const double start = fr_monotonic_s();
        cudaError_t got = cudaMemcpyAsync(to, from, 4, cudaMemcpyDeviceToHost, s);
        if (!got) got = cudaEventRecord(e, s);
        if (!got)
            while ((got = cudaEventQuery(e)) == cudaErrorNotReady && fr_monotonic_s() - start < 1) {
            }
        status = check(got, "reading back", err);
        if (t >= 0) ns[t] = 1e9 * (fr_monotonic_s() - start);
    }
    cudaEventDestroy(e);
    FR_TRY(status);
    return fr_cal_write_list(r, d, i, ns, TIMES, err);
}

static fr_status host(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    const fr_row *row = &r->grid->table.rows[i];
    if (row->type == FR_ROW_GAP || row->type == FR_ROW_GAP_TIMED) return fr_cal_gaps_run(r, d, i, err);
    if (row->type == FR_ROW_FLOOR) return shortest(r, d, i, err);
    if (row->type == FR_ROW_EVENT) return events(r, d, i, err);
    return row->shape.kind == FR_OP_LAUNCH ? launch(r, d, i, err) : readback(r, d, i, err);
}

fr_status fr_cal_item_run(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    switch ((fr_cal_what)r->grid->items[i].what) {
    case FR_CAL_BURST:
    case FR_CAL_COPY:
        return burst(r, d, i, err);
    case FR_CAL_HOLD:
        return hold(r, d, i, err);
    case FR_CAL_RAMP:
        return ramp(r, d, i, err);
    case FR_CAL_RELEASE:
        return release(r, d, i, err);
    case FR_CAL_CHAIN:
        return fr_cal_chain_run(r, d, i, err);
    case FR_CAL_HOST:
        return host(r, d, i, err);
    default:
        return fr_fail(err, FR_FAILED, "this needs two GPUs");
    }
}

/* Compute beside transfers, and transfers alone for as long. */
#include "engine/cuda/calibrate_rank.h"
#include "kernels/probe.h"

#include <math.h>
#include <time.h>

#define HOST_COPY (INT64_C(256) << 20)
#define DEPTH_NS  3e8 /* of transfers queued, so that they never run out */
#define BURST_NS  4e7
#define COVER_NS  1.1e8 /* of transfers beside a burst */
#define TURN_NS   1e7

static int64_t transfer_bytes(fr_aggressor a) { /* in one direction */
    return a == FR_AGGRESSOR_PULL ? FR_CAL_BIG : a == FR_AGGRESSOR_NCCL ? FR_CAL_BIG / 2 : HOST_COPY;
}

static cudaStream_t transfer_stream(const fr_cal_rank *r, fr_aggressor a) {
    return a == FR_AGGRESSOR_NCCL ? r->comm : r->copy[0];
}

static fr_status transfer(fr_cal_rank *r, fr_aggressor a, fr_error *err) {
    if (a == FR_AGGRESSOR_PULL) /* as the engine makes them */
        return r->p->ranks > 2 ? fr_cal_push_to(r, 1, FR_CAL_BIG, r->copy[0], err)
                               : fr_cal_pull(r, 1, FR_CAL_BIG, r->copy[0], err);
    if (a == FR_AGGRESSOR_NCCL) return fr_cal_collective(r, FR_OP_ALLGATHER, FR_CAL_BIG, r->comm, err);
    return fr_cal_check(cudaMemcpyAsync(r->dst, fr_bench_host(r->bench, HOST_COPY), (size_t)HOST_COPY,
                                        cudaMemcpyHostToDevice, r->copy[0]),
                        "cudaMemcpyAsync", err);
}

/* Transfers, events before and after each in a ring; pauses after each group of a duty cycle. */
static fr_status issue(fr_cal_rank *r, int n, fr_error *err) {
    const fr_aggressor a = (fr_aggressor)r->row->aggressor;
    const int ring = FR_CAL_EVENTS / 2 - 1;
    for (int i = 0; i < n; i++, r->issued++) {
        CU(cudaEventRecord(r->event[2 * (r->issued % ring)], transfer_stream(r, a)));
        FR_TRY(transfer(r, a, err));
        CU(cudaEventRecord(r->event[2 * (r->issued % ring) + 1], transfer_stream(r, a)));
        if (r->pause_ns > 0 && (r->issued + 1) % r->group == 0)
            CU(fr_k_hold((uint64_t)r->pause_ns, transfer_stream(r, a)));
    }
    return FR_OK;
}

static bool takes_part(const fr_cal_rank *r) {
    return r->row->ways == 2 || r->id == 0;
}

/* Transfers that have ended, from `from` on. */
static int ended(fr_cal_rank *r, int from) {
    const int ring = FR_CAL_EVENTS / 2 - 1;
    while (from < r->issued && cudaEventQuery(r->event[2 * (from % ring) + 1]) == cudaSuccess) from++;
    return from;
}

/* Mean bytes/s of the transfers from..to - 1 while they ran. */
static fr_status rate_of(fr_cal_rank *r, int from, int to, double *rate, fr_error *err) {
    const int ring = FR_CAL_EVENTS / 2 - 1;
    double sum = 0;
    *rate = 0;
    if (from < 0 || to <= from) return FR_OK;
    if (to - from > ring - 8) from = to - (ring - 8);
    for (int i = from; i < to; i++) {
        double ns;
        FR_TRY(fr_cal_between(r, 2 * (i % ring), 2 * (i % ring) + 1, &ns, err));
        sum += ns;
    }
    if (sum > 0) *rate = 1e9 * (to - from) * (double)transfer_bytes((fr_aggressor)r->row->aggressor) / sum;
    return FR_OK;
}

/* Queued before a burst, which begins when the first has ended. */
static fr_status begin_burst(void *context, fr_error *err) {
    fr_cal_rank *r = context;
    FR_TRY(fr_cal_meet(r, err));
    if (takes_part(r)) {
        FR_TRY(issue(r, (int)(COVER_NS / r->each_ns) + 2, err));
        FR_TRY(fr_measure_await(r->measure, r->event[1], err));
    }
    r->first = 1;
    return fr_cal_meet(r, err);
}

/* Both ranks top up their queues by the same number, and end together: rank 0 decides. */
static fr_status keep_queue(void *context, double at_s, bool *stop, fr_error *err) {
    fr_cal_rank *r = context;
    struct {
        int32_t issue, stop;
    } mine = {0}, all[FR_CAL_DEVICES];
    static const double counted = 0.4; /* fr_measure_hold */
    const int done = ended(r, r->issued - (int)fmin(r->issued, FR_CAL_EVENTS / 4));
    const double turn = r->pause_ns > 0 ? r->each_ns + r->pause_ns / r->group : r->each_ns;
    mine.issue = (int)fmax(0, DEPTH_NS / turn - (r->issued - done));
    mine.stop = at_s > r->hold_s;
    FR_TRY(fr_world_exchange(r->p->world, r->id, &mine, sizeof mine, all, err));
    *stop = all[0].stop != 0;
    if (r->first < 0 && at_s > counted * r->hold_s) r->first = done;
    return takes_part(r) && !*stop ? issue(r, all[0].issue, err) : FR_OK;
}

/* The victim of a class: what stands for it among the anchors (engine/calibrate/calibrate.c). */
fr_status fr_cal_victim(fr_cal_rank *r, fr_op_class class, fr_error *err) {
    fr_row row = {.type = FR_ROW_OP, .duty = 1, .at_ms = -1, .gap_ms = -1, .ways = 1};
    fr_cal_item item = {.top_k = 8, .head_dim = 128};
    fr_pair pairs[128];
    fr_table t = {.pairs = pairs};
    int32_t even[128];
    switch (class) {
    case FR_CLASS_GEMM:
        row.shape = (fr_shape){.kind = FR_OP_GEMM_DENSE, .m = 8192, .n = 8192, .k = 8192};
        break;
    case FR_CLASS_GROUPED:
        fr_even_rows(131072, 128, even);
        for (int i = 0; i < 128; i++) pairs[i] = (fr_pair){even[i], 0};
        row.shape = (fr_shape){.kind = FR_OP_EXPERT_UP, .m = 131072, .n = 3072, .k = 4096, .vector_count = 128};
        break;
    case FR_CLASS_ATTENTION:
        for (int i = 0; i < 4; i++) pairs[i] = (fr_pair){4096, 0};
        row.shape = (fr_shape){.kind = FR_OP_ATTENTION, .n = 64, .k = 4, .head_dim = 128, .vector_count = 4};
        break;
    default:
        row.shape = (fr_shape){.kind = FR_OP_NORM, .m = 65536, .n = 4096, .bytes = INT64_C(65536) * 4096 * 8};
        break;
    }
    return fr_bench_prepare(r->bench, &t, &row, &item, err);
}

static fr_status victim(fr_cal_rank *r, const fr_beside *beside, double hold_s, fr_reading *out, fr_error *err) {
    fr_measure_beside(r->measure, beside);
    const fr_status s = r->row->regime == FR_BURST
                            ? fr_measure_burst(r->measure, fr_bench_run, r->bench, true, BURST_NS, out, err)
                            : fr_measure_hold(r->measure, fr_bench_run, r->bench, hold_s, 1, 0, out, err);
    fr_measure_beside(r->measure, NULL);
    return s;
}

/* bytes/s of the transfers with nothing beside them. */
static fr_status transfers_alone(fr_cal_rank *r, double *rate, fr_error *err) {
    r->issued = 0;
    r->pause_ns = 0;
    FR_TRY(fr_cal_meet(r, err));
    if (!takes_part(r)) return fr_cal_meet(r, err);
    FR_TRY(issue(r, 10, err));
    FR_TRY(fr_measure_await(r->measure, r->event[2 * 9 + 1], err));
    FR_TRY(rate_of(r, 2, 9, rate, err));
    return fr_cal_meet(r, err);
}

static fr_status write_beside(fr_cal_rank *r, const fr_cal_said *alone, const fr_cal_said *beside, const double *rates,
                              fr_error *err) {
    fr_cal_run *run = r->p->run;
    fr_row row = *r->row;
    const int parts = row.ways == 2 ? r->p->ranks : 1;
    const fr_cal_said a = fr_cal_mean(alone, parts), b = fr_cal_mean(beside, parts);
    double rate_alone = 0;
    for (int q = 0; q < parts; q++) rate_alone += rates[q] / parts;
    row.alone = a.median;
    row.beside = b.median;
    row.p10 = b.p10;
    row.p90 = b.p90;
    row.samples = b.count;
    row.clock_alone = a.clock;
    row.watts_alone = a.watts;
    row.clock_mhz = b.clock;
    row.watts = b.watts;
    row.capped = b.capped;
    row.rate = b.rate;
    row.rate_alone = rate_alone;
    if (row.aggressor == FR_AGGRESSOR_NCCL && row.duty >= 1) row.overlap = b.median * b.rate / rate_alone;
    /* out of one memory and into the other; from the host, in only. What the simulator lets NCCL take is its own rate
     */
    row.hbm_traffic = (row.aggressor == FR_AGGRESSOR_NCCL ? rate_alone : b.rate) *
                      (row.aggressor == FR_AGGRESSOR_H2D || row.ways == 1 ? 1 : 2);
    row.p10 = fmin(row.p10, row.beside);
    return fr_cal_write(run, &run->grid->table, &row, NULL, 0, err);
}

/* The victim on both ranks, alone or with its transfers; a burst begins after a second of rest. */
static fr_status measure_victim(fr_cal_rank *r, const fr_beside *hooks, fr_cal_said out[FR_CAL_DEVICES],
                                fr_error *err) {
    const struct timespec second = {.tv_sec = 1};
    fr_reading x;
    double rate = 0;
    r->issued = 0;
    r->first = -1;
    if (r->row->regime == FR_BURST) nanosleep(&second, NULL);
    FR_TRY(fr_cal_meet(r, err));
    FR_TRY(victim(r, hooks, r->hold_s, &x, err));
    if (hooks && takes_part(r)) {
        const int last = ended(r, r->first < 0 ? 0 : r->first);
        FR_TRY(rate_of(r, r->first, last, &rate, err));
        FR_TRY(fr_cal_drain(r, transfer_stream(r, (fr_aggressor)r->row->aggressor), err));
    }
    const fr_cal_said mine = fr_cal_said_of(&x, rate);
    return fr_world_exchange(r->p->world, r->id, &mine, sizeof mine, out, err);
}

/* How fast the transfers of item i go alone, and so how many make a turn of its duty cycle. */
static fr_status pace(fr_cal_rank *r, uint32_t i, double rates[FR_CAL_DEVICES], fr_error *err) {
    const fr_cal_run *run = r->p->run;
    double rate = 0;
    r->row = &run->grid->table.rows[i];
    FR_TRY(transfers_alone(r, &rate, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, &rate, sizeof rate, rates, err));
    r->each_ns = 1e9 * (double)transfer_bytes((fr_aggressor)r->row->aggressor) / fmax(rates[0], 1e9);
    r->group = (int)fmax(1, TURN_NS * r->row->duty / r->each_ns + 0.5);
    r->pause_ns = r->row->duty < 1 ? r->group * r->each_ns * (1 / r->row->duty - 1) : 0;
    r->hold_s = (double)run->grid->items[i].hold_s;
    return FR_OK;
}

fr_status fr_cal_measure_beside(fr_cal_rank *r, uint32_t i, fr_error *err) {
    const fr_cal_run *run = r->p->run;
    const fr_beside hooks = {begin_burst, keep_queue, r};
    fr_cal_said *alone = NULL, beside[FR_CAL_DEVICES];
    double rates[FR_CAL_DEVICES];
    FR_TRY(fr_cal_victim(r, (fr_op_class)run->grid->table.rows[i].victim, err));
    FR_TRY(pace(r, i, rates, err));
    alone = r->alone[r->row->regime][r->row->victim];
    if (!alone[0].count) FR_TRY(measure_victim(r, NULL, alone, err));
    FR_TRY(measure_victim(r, &hooks, beside, err));
    return r->id == 0 ? write_beside(r, alone, beside, rates, err) : FR_OK;
}

/* Transfers alone for some seconds: what they draw. A pull's row is its own aggressor (0). */
fr_status fr_cal_hold_pulls(fr_cal_rank *r, uint32_t i, fr_error *err) {
    const struct timespec nap = {.tv_nsec = 10000000};
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    const int parts = row.ways == 2 ? r->p->ranks : 1;
    double rates[FR_CAL_DEVICES];
    fr_cal_said all[FR_CAL_DEVICES], me = {0};
    FR_TRY(pace(r, i, rates, err));
    r->issued = 0;
    r->first = -1;
    fr_meter *meter = NULL;
    fr_status status = FR_OK;
    const double start = fr_monotonic_s();
    for (bool stop = false; !stop && status == FR_OK; nanosleep(&nap, NULL)) {
        const double at = fr_monotonic_s() - start;
        if (!meter && at > 0.4 * r->hold_s) meter = fr_meter_start(run->options->device[r->id]);
        status = keep_queue(r, at, &stop, err);
    }
    fr_meter_reading drawn;
    fr_meter_stop(meter, &drawn);
    FR_TRY(status);
    if (takes_part(r)) {
        FR_TRY(rate_of(r, r->first < 0 ? 0 : r->first, ended(r, r->first < 0 ? 0 : r->first), &me.rate, err));
        FR_TRY(fr_cal_drain(r, r->copy[0], err));
    }
    me.watts = drawn.watts;
    me.count = r->issued;
    FR_TRY(fr_world_exchange(r->p->world, r->id, &me, sizeof me, all, err));
    if (r->id != 0) return FR_OK;
    const fr_cal_said m = fr_cal_mean(all, parts);
    row.ns = 1e9 * (double)row.shape.bytes / fmax(m.rate, 1);
    row.watts = m.watts;
    row.samples = m.count * parts;
    for (int q = 0; q < r->p->ranks; q++)
        FR_TRY(fr_cal_note(run, err, "GPU %d of the next row: %.1f W, pulls at %.4g GB/s", q, all[q].watts,
                           1e-9 * all[q].rate));
    return fr_cal_write(run, &run->grid->table, &row, NULL, 0, err);
}

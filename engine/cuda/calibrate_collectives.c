/* Collectives of GPUs that calibrate together: back to back, and between products that hold the clock down. */
#include "engine/cuda/calibrate_rank.h"
#include "engine/cuda/transport/transport.h"
#include "kernels/probe.h"

#include <math.h>

/* Memory that copy engines gather, and who does it. */
static fr_status open_windows(fr_cal_rank *r, fr_error *err) {
    static const fr_model model = {.hidden = FR_CAL_ROW_BYTES / 2};
    const fr_transport_options o = {.world = r->p->world,
                                    .rank = r->id,
                                    .device = r->p->run->options->device[r->id],
                                    .plan = r->p->gathering,
                                    .layout = &r->p->gathers,
                                    .model = &model,
                                    .tokens = 1,
                                    .timeout_s = FR_CAL_WAIT_S,
                                    .everything = true};
    FR_TRY(fr_transport_open(&o, &r->windows, err));
    CU(fr_transport_alloc(r->windows, (size_t)FR_CAL_BIG, &r->shard));
    return fr_cal_check(fr_transport_alloc(r->windows, (size_t)FR_CAL_BIG, &r->slot), "a window for weights", err);
}

fr_status fr_cal_collective(fr_cal_rank *r, fr_op_kind kind, int64_t bytes, cudaStream_t s, fr_error *err) {
    const bool weights = kind == FR_OP_GATHER_WEIGHTS;
    const bool parts = kind == FR_OP_ALLGATHER || kind == FR_OP_REDUCESCATTER || weights;
    const int64_t each = parts ? bytes / r->p->ranks : bytes;
    int64_t rows[FR_CAL_DEVICES];
    if (weights && !r->windows) FR_TRY(open_windows(r, err));
    for (int q = 0; q < r->p->ranks; q++) rows[q] = each / FR_CAL_ROW_BYTES;
    char *own = r->dst + (parts ? r->id * each : 0);
    fr_collective c = {.kind = kind,
                       .peer = -1,
                       .arrays = 1,
                       .in = {weights                   ? r->shard
                              : kind == FR_OP_ALLGATHER ? own
                                                        : r->src},
                       .out = {weights                       ? r->slot
                               : kind == FR_OP_REDUCESCATTER ? own
                                                             : r->dst},
                       .row_bytes = {FR_CAL_ROW_BYTES},
                       .rows = rows,
                       .gather = weights ? FR_GATHER_NCCL_CE : FR_GATHER_NCCL};
    if (kind == FR_OP_SEND) { /* of a pair one way; of more to the next */
        const int ranks = r->p->ranks;
        c.kind = ranks > 2 || r->id == 0 ? FR_OP_SEND : FR_OP_RECV;
        c.peer = (r->id + 1) % ranks;
        c.group = ranks > 2 ? 1 + (uint32_t)r->id : 0;
    }
    return fr_transport_launch(weights ? r->windows : r->transport, &c, s, err);
}

/* What the rank before sends; pairs have communicators of their own, so both directions go on at once. */
static fr_status receive(fr_cal_rank *r, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int ranks = r->p->ranks, before = (r->id + ranks - 1) % ranks;
    const int64_t rows = bytes / FR_CAL_ROW_BYTES;
    const fr_collective c = {.kind = FR_OP_RECV,
                             .peer = before,
                             .group = 1 + (uint32_t)before,
                             .arrays = 1,
                             .out = {r->dst},
                             .row_bytes = {FR_CAL_ROW_BYTES},
                             .rows = &rows};
    return fr_transport_launch(r->transport, &c, s, err);
}

/* Tokens to all ranks: rows with their ids and weights, three arrays in one call, out of place
 * (engine/cuda/ops_exchange.c). */
static fr_status gather_tokens(fr_cal_rank *r, int64_t bytes, cudaStream_t s, fr_error *err) {
    enum { SMALL = 16 };
    const int64_t ids = FR_CAL_SIDE / 2, weights = ids + FR_CAL_SIDE / 4;
    int64_t rows[FR_CAL_DEVICES];
    for (int q = 0; q < r->p->ranks; q++) rows[q] = bytes / r->p->ranks / FR_CAL_ROW_BYTES;
    const fr_collective c = {.kind = FR_OP_ALLGATHER,
                             .peer = -1,
                             .arrays = 3,
                             .in = {r->src, r->src + ids, r->src + weights},
                             .out = {r->dst, r->dst + ids, r->dst + weights},
                             .row_bytes = {FR_CAL_ROW_BYTES - 2 * SMALL, SMALL, SMALL},
                             .rows = rows,
                             .gather = FR_GATHER_NCCL};
    return fr_transport_launch(r->transport, &c, s, err);
}

fr_status fr_cal_gather(fr_cal_rank *r, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int64_t each = bytes / r->p->ranks / (3 * FR_CAL_ROW_BYTES); /* up's weights are twice as many as down's */
    int64_t rows[FR_CAL_DEVICES];
    for (int q = 0; q < r->p->ranks; q++) rows[q] = each;
    const fr_collective c = {.kind = FR_OP_ALLGATHER,
                             .peer = -1,
                             .arrays = 2,
                             .in = {r->src, r->src + 2 * each * FR_CAL_ROW_BYTES},
                             .out = {r->dst, r->dst + 2 * each * r->p->ranks * FR_CAL_ROW_BYTES},
                             .row_bytes = {2 * FR_CAL_ROW_BYTES, FR_CAL_ROW_BYTES},
                             .rows = rows,
                             .gather = FR_GATHER_NCCL};
    return fr_transport_launch(r->transport, &c, s, err);
}

/* As plans ask for it; weights and what runs beside compute: fr_cal_collective. */
static fr_status launch(fr_cal_rank *r, fr_op_kind kind, int64_t bytes, cudaStream_t s, fr_error *err) {
    return kind == FR_OP_ALLGATHER ? gather_tokens(r, bytes, s, err) : fr_cal_collective(r, kind, bytes, s, err);
}

/*
 * Under the limit, as in a layer: in turns with 10 ms of products on the same stream, so that the collective meets the
 * clock that these leave. `ns` as above, the clock that of the collective alone, watts of all.
 */
static fr_status measure_loaded(fr_cal_rank *r, uint32_t i, fr_error *err) {
    enum { TURNS = 60, FIRST = 20, EACH = 6, COUNT = TURNS - FIRST };
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    cudaStream_t s = fr_measure_stream(r->measure);
    double ns[COUNT], all_ns[FR_CAL_DEVICES][COUNT], product = 0, each;
    fr_cal_said all[FR_CAL_DEVICES];
    FR_TRY(fr_cal_victim(r, FR_CLASS_GEMM, err));
    FR_TRY(fr_cal_meet(r, err));
    for (int t = 0, stamp = 0; t < TURNS; t++) {
        CU(cudaEventRecord(r->event[3 * t], s));
        for (int k = 0; k < EACH; k++) FR_TRY(fr_bench_run(r->bench, s, err));
        if (t >= FIRST) FR_TRY(fr_measure_stamp(r->measure, stamp++, err));
        CU(cudaEventRecord(r->event[3 * t + 1], s));
        FR_TRY(launch(r, (fr_op_kind)row.shape.kind, row.shape.bytes, s, err));
        CU(cudaEventRecord(r->event[3 * t + 2], s));
        if (t >= FIRST) FR_TRY(fr_measure_stamp(r->measure, stamp++, err));
    }
    FR_TRY(fr_measure_await(r->measure, r->event[3 * FIRST], err));
    fr_meter_reading drawn;
    fr_meter *meter = fr_meter_start(run->options->device[r->id]);
    const fr_status waited = fr_measure_await(r->measure, r->event[3 * TURNS - 1], err);
    fr_meter_stop(meter, &drawn);
    FR_TRY(waited);
    FR_TRY(fr_transport_check(r->transport, err));
    for (int t = FIRST; t < TURNS; t++) {
        FR_TRY(fr_cal_between(r, 3 * t + 1, 3 * t + 2, &ns[t - FIRST], err));
        FR_TRY(fr_cal_between(r, 3 * t, 3 * t + 1, &each, err));
        product += each / (EACH * COUNT);
    }
    fr_cal_said me = {.median = product, .watts = drawn.watts, .capped = drawn.capped, .count = COUNT};
    FR_TRY(fr_measure_clock(r->measure, 2 * COUNT, &me.clock, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, &me, sizeof me, all, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, ns, sizeof ns, all_ns, err));
    if (r->id != 0) return FR_OK;
    for (int q = 0; q < r->p->ranks; q++) {
        for (int k = 0; k < COUNT; k++) ns[k] = fmin(ns[k], all_ns[q][k]);
        FR_TRY(fr_cal_note(run, err,
                           "GPU %d of the next row: products between of %.0f ns, %.1f W, collectives at %.0f MHz", q,
                           all[q].median, all[q].watts, all[q].clock));
    }
    fr_reading x = fr_reading_of(ns, COUNT);
    const fr_cal_said mean = fr_cal_mean(all, r->p->ranks);
    x.clock_mhz = mean.clock;
    x.watts = mean.watts;
    x.capped = mean.capped;
    row = fr_cal_filled(run, -1, i, &x);
    return fr_cal_write(run, &run->grid->table, &row, ns, COUNT, err);
}

/* From the last rank's arrival to the end: of each repetition the least of the ranks' times. */
static fr_status measure_alone(fr_cal_rank *r, uint32_t i, fr_error *err) {
    enum { TURNS = 3 };
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    const fr_op_kind kind = (fr_op_kind)row.shape.kind;
    const int n = (int)fmin(fmax(1.2e7 / (2e4 + (double)row.shape.bytes / 200), 4), 20);
    const bool ring = kind == FR_OP_SEND && r->p->ranks > 2;
    double ns[TURNS * 20] = {0}, all[FR_CAL_DEVICES][TURNS * 20];
    int count = 0;
    if (kind == FR_OP_GATHER_WEIGHTS && !r->windows) FR_TRY(open_windows(r, err));
    for (int t = -1; t < TURNS; t++) {
        FR_TRY(fr_cal_meet(r, err));
        if (ring) CU(fr_k_hold(100000 + 12500u * (uint64_t)(n * r->p->ranks), r->copy[0]));
        for (int k = 0; k < n && ring; k++) FR_TRY(receive(r, row.shape.bytes, r->copy[0], err));
        CU(fr_k_hold(100000 + 12500u * (uint64_t)(n * r->p->ranks), r->comm)); /* threads issue side by side */
        for (int k = 0; k <= n; k++) {
            CU(cudaEventRecord(r->event[k], r->comm));
            if (k < n) FR_TRY(launch(r, kind, row.shape.bytes, r->comm, err));
        }
        FR_TRY(fr_measure_await(r->measure, r->event[n], err));
        for (int k = 1; k < n && t >= 0; k++) FR_TRY(fr_cal_between(r, k, k + 1, &ns[count++], err));
    }
    if (ring) FR_TRY(fr_cal_drain(r, r->copy[0], err));
    FR_TRY(fr_transport_check(kind == FR_OP_GATHER_WEIGHTS ? r->windows : r->transport, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, ns, sizeof ns, all, err));
    if (r->id != 0) return FR_OK;
    for (int q = 1; q < r->p->ranks; q++)
        for (int k = 0; k < count; k++) ns[k] = fmin(ns[k], all[q][k]);
    const fr_reading x = fr_reading_of(ns, count);
    row = fr_cal_filled(run, -1, i, &x);
    FR_TRY(fr_cal_write(run, &run->grid->table, &row, ns, count, err));
    if (kind != FR_OP_SEND) return FR_OK;
    row.shape.kind = FR_OP_RECV; /* takes what the send takes */
    return fr_cal_write(run, &run->grid->table, &row, ns, count, err);
}

fr_status fr_cal_measure_collective(fr_cal_rank *r, uint32_t i, fr_error *err) {
    return r->p->run->grid->table.rows[i].regime == FR_SUSTAINED ? measure_loaded(r, i, err) : measure_alone(r, i, err);
}

/* Pulls of GPUs from each other, and copies from and to the host of all at once. */
#include "engine/cuda/calibrate_rank.h"
#include "kernels/probe.h"

#include <math.h>

enum { MOST = 60 }; /* pulls of a turn */

/* From the rank `away` behind this one; of a pair, always the other. */
fr_status fr_cal_pull(fr_cal_rank *r, int away, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int q = r->p->ranks == 2 ? 1 - r->id : (r->id + away) % r->p->ranks;
    const int *device = r->p->run->options->device;
    return fr_cal_check(cudaMemcpyPeerAsync(r->dst, device[r->id], r->peer_src[q], device[q], (size_t)bytes, s),
                        "cudaMemcpyPeerAsync", err);
}

/* What the rank `away` ahead of this one pulls from it, carried out by this one's copy engines. */
fr_status fr_cal_push_to(fr_cal_rank *r, int away, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int q = (r->id + r->p->ranks - away) % r->p->ranks;
    const int *device = r->p->run->options->device;
    return fr_cal_check(cudaMemcpyPeerAsync(r->peer_dst[q], device[q], r->src, device[r->id], (size_t)bytes, s),
                        "cudaMemcpyPeerAsync", err);
}

/* How many ranks behind the i-th pull of k streams reads. */
static int source_of(const fr_cal_rank *r, const fr_row *row, int i, int k) {
    const int others = r->p->ranks - 1;
    if (!row->streams && row->by_owner) return 1; /* two in flight, nobody else reads their source */
    if (row->order == FR_PULL_SAME) {             /* all read rank i, which reads the next one */
        const int away = (i % r->p->ranks - r->id + r->p->ranks) % r->p->ranks;
        return away ? away : 1;
    }
    return 1 + (row->order == FR_PULL_ROUND ? i : i % k) % others;
}

static fr_status one_copy(fr_cal_rank *r, const fr_row *row, int i, int k, fr_error *err) {
    const size_t bytes = (size_t)row->shape.bytes;
    cudaStream_t s = r->copy[i % k];
    if (row->by_owner) return fr_cal_push_to(r, source_of(r, row, i, k), row->shape.bytes, s, err);
    if (row->shape.kind == FR_OP_PULL) return fr_cal_pull(r, source_of(r, row, i, k), row->shape.bytes, s, err);
    const bool in = row->shape.kind == FR_OP_H2D;
    void *host = fr_bench_host(r->bench, row->shape.bytes);
    return fr_cal_check(cudaMemcpyAsync(in ? (void *)r->dst : host, in ? host : (void *)r->src, bytes,
                                        in ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, s),
                        "cudaMemcpyAsync", err);
}

/* n copies over k streams: ns of each one in the middle (k = 1), or of all over n. */
static fr_status pull_round(fr_cal_rank *r, const fr_row *row, int n, int k, bool each, double *ns, int *count,
                            fr_error *err) {
    CU(fr_k_hold(40000 + 4000u * (uint64_t)(n * r->p->ranks), r->copy[0])); /* threads issue side by side */
    CU(cudaEventRecord(r->event[0], r->copy[0]));
    for (int i = 1; i < k; i++) CU(cudaStreamWaitEvent(r->copy[i], r->event[0], 0));
    for (int i = 0; i < n; i++) {
        FR_TRY(one_copy(r, row, i, k, err));
        if (k == 1) CU(cudaEventRecord(r->event[i + 1], r->copy[0]));
    }
    for (int i = 1; i < k; i++) {
        CU(cudaEventRecord(r->event[n + i], r->copy[i]));
        CU(cudaStreamWaitEvent(r->copy[0], r->event[n + i], 0));
    }
    if (k > 1) CU(cudaEventRecord(r->event[n], r->copy[0]));
    FR_TRY(fr_measure_await(r->measure, r->event[n], err));
    double t;
    for (int i = 1; i + 2 < n && each; i++) { /* the first and last may run alone */
        FR_TRY(fr_cal_between(r, i, i + 1, &t, err));
        ns[(*count)++] = t;
    }
    if (each) return FR_OK;
    FR_TRY(fr_cal_between(r, 0, n, &t, err));
    ns[(*count)++] = t / n;
    return FR_OK;
}

/*
 * A row is several pulls in flight over their number, as the engine keeps them; its p90 what a lone one takes, whose
 * events read in steps of some 9 us. Both ways: the mean of both GPUs; more than two pull all at once, each from the
 * next, by its copy engines: the mean of all. Rows that name their streams have nothing of lone ones.
 */
fr_status fr_cal_measure_pull(fr_cal_rank *r, uint32_t i, fr_error *err) {
    enum { TURNS = 5 };
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    const bool pulled = row.shape.kind == FR_OP_PULL;
    const int k = row.streams ? row.streams : pulled ? 2 : 1;
    const double rate = pulled ? 390 : 55;
    const int most = (int)fmin(fmax(1.2e7 / (3000 + (double)row.shape.bytes / rate), 4), MOST),
              n = (most + k - 1) / k * k;
    const int pullers = r->p->ranks > 2 ? r->p->ranks : row.ways;
    const bool mine = r->id < pullers;
    double turns[TURNS], all_turns[FR_CAL_DEVICES][TURNS], lone[MOST + FR_CAL_STREAMS];
    int count = 0, alone = 0;
    for (int t = -1; t < TURNS; t++) {
        FR_TRY(fr_cal_meet(r, err));
        if (!mine) continue;
        if (t < 0)
            FR_TRY(pull_round(r, &row, most, 1, true, lone, &alone, err));
        else
            FR_TRY(pull_round(r, &row, n, k, false, turns, &count, err));
    }
    fr_cal_said all[FR_CAL_DEVICES], me = {0};
    if (mine) {
        const fr_reading a = fr_reading_of(turns, count), b = fr_reading_of(lone, alone);
        me = fr_cal_said_of(&a, 0);
        if (!row.streams) me.p90 = fmax(me.p90, b.median);
    }
    FR_TRY(fr_world_exchange(r->p->world, r->id, &me, sizeof me, all, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, turns, sizeof turns, all_turns, err));
    if (r->id != 0) return FR_OK;
    const fr_cal_said m = fr_cal_mean(all, pullers);
    row.ns = m.median;
    row.p10 = m.p10;
    row.p90 = m.p90;
    row.samples = pullers * TURNS * n;
    return fr_cal_write(run, &run->grid->table, &row, all_turns[0], pullers * TURNS, err);
}

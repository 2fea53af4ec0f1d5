/*
 * What GPUs measure with each other: pulls, collectives, exchanges and compute beside transfers. One host thread a GPU;
 * all walk through the grid together and agree before each item. Transfers by themselves stand behind a kernel that
 * holds the stream, so that no host time is in them.
 */
#include "engine/cuda/calibrate_exchange.h"
#include "engine/cuda/calibrate_run.h"
#include "engine/cuda/transport/transport.h"
#include "kernels/probe.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_RANKS = FR_CAL_DEVICES, MOST = 60, EVENTS = 8192, ROW_BYTES = 512, STREAMS = 8 };
#define SIDE      (INT64_C(4) << 30) /* the largest pull */
#define BIG       (INT64_C(1) << 30) /* of a pull or an all-gather beside compute */
#define HOST_COPY (INT64_C(256) << 20)
#define WAIT_S    30.0
#define DEPTH_NS  3e8 /* of transfers queued, so that they never run out */
#define BURST_NS  4e7
#define COVER_NS  1.1e8 /* of transfers beside a burst */
#define TURN_NS   1e7

typedef struct pair pair; /* or more of them */

/* What a rank tells the others after an item. */
typedef struct {
    double median, p10, p90, clock, watts, capped, rate;
    int count;
} said;

typedef struct {
    pair *p;
    int id;
    fr_measure *measure;
    fr_bench *bench;
    fr_transport *transport;
    fr_cal_exchange *exchange;                         /* opened when first wanted */
    char *src, *dst;                                   /* SIDE bytes each, for transfers only */
    void *peer_src[MOST_RANKS], *peer_dst[MOST_RANKS]; /* the others', as seen from here */
    cudaStream_t copy[STREAMS], comm;
    fr_transport *windows; /* gathers weights by copy engines; opened when first wanted */
    void *shard, *slot;    /* in its windows */
    cudaEvent_t *event;    /* [EVENTS] of transfers: before and after each */
    /* transfers beside compute */
    const fr_row *row; /* of the item */
    double each_ns;    /* one transfer, alone */
    int issued;
    int first; /* counted from this one on; -1 = not yet */
    int group; /* of a duty cycle */
    double pause_ns, hold_s;
    said alone[2][FR_CLASS_COUNT][MOST_RANKS]; /* victims of both regimes, measured once; count 0 = not yet */
    fr_status status;
    fr_error err;
} rank;

struct pair {
    fr_cal_run *run;
    int ranks;
    fr_world *world;
    fr_plan *plan;             /* group 0: all; of more than two also 1 + i: rank i and the next */
    fr_plan *gathering;        /* all */
    fr_layout layout, gathers; /* of both: transports keep to them */
    rank rank[MOST_RANKS];
};

static fr_status check(cudaError_t e, const char *what, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}
#define CU(call) FR_TRY(check(call, #call, err))

static fr_status meet(rank *r, fr_error *err) {
    return fr_world_exchange(r->p->world, r->id, NULL, 0, NULL, err);
}

static fr_status drain(rank *r, cudaStream_t s, fr_error *err) {
    CU(cudaEventRecord(r->event[EVENTS - 1], s));
    return fr_measure_await(r->measure, r->event[EVENTS - 1], err);
}

/* ns between events a and b */
static fr_status between(rank *r, int a, int b, double *ns, fr_error *err) {
    float ms = 0;
    CU(cudaEventElapsedTime(&ms, r->event[a], r->event[b]));
    *ns = 1e6 * (double)ms;
    return FR_OK;
}

static said of(const fr_reading *x, double rate) {
    return (said){.median = x->median,
                  .p10 = x->p10,
                  .p90 = x->p90,
                  .clock = x->clock_mhz,
                  .watts = x->watts,
                  .capped = x->capped,
                  .rate = rate,
                  .count = x->count};
}

static said mean(const said *s, int count) {
    said m = s[0];
    for (int i = 1; i < count; i++) {
        m.median += s[i].median;
        m.p10 += s[i].p10;
        m.p90 += s[i].p90;
        m.clock += s[i].clock;
        m.watts += s[i].watts;
        m.capped += s[i].capped;
        m.rate += s[i].rate;
    }
    m.median /= count;
    m.p10 /= count;
    m.p90 /= count;
    m.clock /= count;
    m.watts /= count;
    m.capped /= count;
    m.rate /= count;
    return m;
}

/* ---- pulls --------------------------------------------------------------------------------------------------------*/

/* From the rank `away` behind this one; of a pair, always the other. */
static fr_status pull(rank *r, int away, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int q = r->p->ranks == 2 ? 1 - r->id : (r->id + away) % r->p->ranks;
    const int *device = r->p->run->options->device;
    return check(cudaMemcpyPeerAsync(r->dst, device[r->id], r->peer_src[q], device[q], (size_t)bytes, s),
                 "cudaMemcpyPeerAsync", err);
}

/* What the rank `away` ahead of this one pulls from it, carried out by this one's copy engines. */
static fr_status push(rank *r, int away, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int q = (r->id + r->p->ranks - away) % r->p->ranks;
    const int *device = r->p->run->options->device;
    return check(cudaMemcpyPeerAsync(r->peer_dst[q], device[q], r->src, device[r->id], (size_t)bytes, s),
                 "cudaMemcpyPeerAsync", err);
}

/* How many ranks behind the i-th pull of k streams reads. */
static int source_of(const rank *r, const fr_row *row, int i, int k) {
    const int others = r->p->ranks - 1;
    if (!row->streams && row->by_owner) return 1; /* two in flight, nobody else reads their source */
    if (row->order == FR_PULL_SAME) {             /* all read rank i, which reads the next one */
        const int away = (i % r->p->ranks - r->id + r->p->ranks) % r->p->ranks;
        return away ? away : 1;
    }
    return 1 + (row->order == FR_PULL_ROUND ? i : i % k) % others;
}

static fr_status one_copy(rank *r, const fr_row *row, int i, int k, fr_error *err) {
    const size_t bytes = (size_t)row->shape.bytes;
    cudaStream_t s = r->copy[i % k];
    if (row->by_owner) return push(r, source_of(r, row, i, k), row->shape.bytes, s, err);
    if (row->shape.kind == FR_OP_PULL) return pull(r, source_of(r, row, i, k), row->shape.bytes, s, err);
    const bool in = row->shape.kind == FR_OP_H2D;
    void *host = fr_bench_host(r->bench, row->shape.bytes);
    return check(cudaMemcpyAsync(in ? (void *)r->dst : host, in ? host : (void *)r->src, bytes,
                                 in ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, s),
                 "cudaMemcpyAsync", err);
}

/* n copies over k streams: ns of each one in the middle (k = 1), or of all over n. */
static fr_status pull_round(rank *r, const fr_row *row, int n, int k, bool each, double *ns, int *count,
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
        FR_TRY(between(r, i, i + 1, &t, err));
        ns[(*count)++] = t;
    }
    if (each) return FR_OK;
    FR_TRY(between(r, 0, n, &t, err));
    ns[(*count)++] = t / n;
    return FR_OK;
}

/*
 * A row is several pulls in flight over their number, as the engine keeps them; its p90 what a lone one takes, whose
 * events read in steps of some 9 us. Both ways: the mean of both GPUs; more than two pull all at once, each from the
 * next, by its copy engines: the mean of all. Rows that name their streams have nothing of lone ones.
 */
static fr_status measure_pull(rank *r, uint32_t i, fr_error *err) {
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
    double turns[TURNS], all_turns[MOST_RANKS][TURNS], lone[MOST + STREAMS];
    int count = 0, alone = 0;
    for (int t = -1; t < TURNS; t++) {
        FR_TRY(meet(r, err));
        if (!mine) continue;
        if (t < 0)
            FR_TRY(pull_round(r, &row, most, 1, true, lone, &alone, err));
        else
            FR_TRY(pull_round(r, &row, n, k, false, turns, &count, err));
    }
    said all[MOST_RANKS], me = {0};
    if (mine) {
        const fr_reading a = fr_reading_of(turns, count), b = fr_reading_of(lone, alone);
        me = of(&a, 0);
        if (!row.streams) me.p90 = fmax(me.p90, b.median);
    }
    FR_TRY(fr_world_exchange(r->p->world, r->id, &me, sizeof me, all, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, turns, sizeof turns, all_turns, err));
    if (r->id != 0) return FR_OK;
    const said m = mean(all, pullers);
    row.ns = m.median;
    row.p10 = m.p10;
    row.p90 = m.p90;
    row.samples = pullers * TURNS * n;
    return fr_cal_write(run, &run->grid->table, &row, all_turns[0], pullers * TURNS, err);
}

/* ---- collectives --------------------------------------------------------------------------------------------------*/

/* Memory that copy engines gather, and who does it. */
static fr_status open_windows(rank *r, fr_error *err) {
    static const fr_model model = {.hidden = ROW_BYTES / 2};
    const fr_transport_options o = {.world = r->p->world,
                                    .rank = r->id,
                                    .device = r->p->run->options->device[r->id],
                                    .plan = r->p->gathering,
                                    .layout = &r->p->gathers,
                                    .model = &model,
                                    .tokens = 1,
                                    .timeout_s = WAIT_S};
    FR_TRY(fr_transport_open(&o, &r->windows, err));
    CU(fr_transport_alloc(r->windows, (size_t)BIG, &r->shard));
    return check(fr_transport_alloc(r->windows, (size_t)BIG, &r->slot), "a window for weights", err);
}

/* bytes as engine/cost_base.c has them. */
static fr_status collective(rank *r, fr_op_kind kind, int64_t bytes, cudaStream_t s, fr_error *err) {
    const bool weights = kind == FR_OP_GATHER_WEIGHTS;
    const bool parts = kind == FR_OP_ALLGATHER || kind == FR_OP_REDUCESCATTER || weights;
    const int64_t each = parts ? bytes / r->p->ranks : bytes;
    int64_t rows[MOST_RANKS];
    if (weights && !r->windows) FR_TRY(open_windows(r, err));
    for (int q = 0; q < r->p->ranks; q++) rows[q] = each / ROW_BYTES;
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
                       .row_bytes = {ROW_BYTES},
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
static fr_status receive(rank *r, int64_t bytes, cudaStream_t s, fr_error *err) {
    const int ranks = r->p->ranks, before = (r->id + ranks - 1) % ranks;
    const int64_t rows = bytes / ROW_BYTES;
    const fr_collective c = {.kind = FR_OP_RECV,
                             .peer = before,
                             .group = 1 + (uint32_t)before,
                             .arrays = 1,
                             .out = {r->dst},
                             .row_bytes = {ROW_BYTES},
                             .rows = &rows};
    return fr_transport_launch(r->transport, &c, s, err);
}

/* From the last rank's arrival to the end: of each repetition the least of the ranks' times. */
static fr_status measure_collective(rank *r, uint32_t i, fr_error *err) {
    enum { TURNS = 3 };
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    const fr_op_kind kind = (fr_op_kind)row.shape.kind;
    const int n = (int)fmin(fmax(1.2e7 / (2e4 + (double)row.shape.bytes / 200), 4), 20);
    const bool ring = kind == FR_OP_SEND && r->p->ranks > 2;
    double ns[TURNS * 20] = {0}, all[MOST_RANKS][TURNS * 20];
    int count = 0;
    if (kind == FR_OP_GATHER_WEIGHTS && !r->windows) FR_TRY(open_windows(r, err));
    for (int t = -1; t < TURNS; t++) {
        FR_TRY(meet(r, err));
        if (ring) CU(fr_k_hold(100000 + 12500u * (uint64_t)(n * r->p->ranks), r->copy[0]));
        for (int k = 0; k < n && ring; k++) FR_TRY(receive(r, row.shape.bytes, r->copy[0], err));
        CU(fr_k_hold(100000 + 12500u * (uint64_t)(n * r->p->ranks), r->comm)); /* threads issue side by side */
        for (int k = 0; k <= n; k++) {
            CU(cudaEventRecord(r->event[k], r->comm));
            if (k < n) FR_TRY(collective(r, kind, row.shape.bytes, r->comm, err));
        }
        FR_TRY(fr_measure_await(r->measure, r->event[n], err));
        for (int k = 1; k < n && t >= 0; k++) FR_TRY(between(r, k, k + 1, &ns[count++], err));
    }
    if (ring) FR_TRY(drain(r, r->copy[0], err));
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

/* ---- exchanges ----------------------------------------------------------------------------------------------------*/

/* Counts, dispatch and return in turns, as layers have them; of each repetition the least of the ranks' times. */
static fr_status measure_exchange(rank *r, uint32_t i, fr_error *err) {
    enum { TIMES = 20, STEPS = 3 };
    static const fr_op_kind steps[STEPS] = {FR_OP_COUNTS, FR_OP_ALLTOALL, FR_OP_ALLTOALL_BACK};
    fr_cal_run *run = r->p->run;
    const fr_cal_item *item = &run->grid->items[i];
    const fr_op_kind kind = (fr_op_kind)run->grid->table.rows[i].shape.kind;
    double ns[TIMES], all[MOST_RANKS][TIMES];
    if (!r->exchange)
        FR_TRY(fr_cal_exchange_open(r->p->world, r->id, run->options->device[r->id], r->dst, (size_t)SIDE, &r->exchange,
                                    err));
    FR_TRY(fr_cal_exchange_pack(r->exchange, item->tokens, item->leaving, r->comm, err));
    FR_TRY(drain(r, r->comm, err));
    FR_TRY(meet(r, err));
    CU(fr_k_hold(1500000 + 250000u * (uint64_t)r->p->ranks, r->comm)); /* threads issue side by side */
    for (int k = 0; k < TIMES * STEPS; k++) {
        CU(cudaEventRecord(r->event[k], r->comm));
        FR_TRY(fr_cal_exchange_launch(r->exchange, steps[k % STEPS], r->comm, err));
    }
    CU(cudaEventRecord(r->event[TIMES * STEPS], r->comm));
    FR_TRY(fr_measure_await(r->measure, r->event[TIMES * STEPS], err));
    FR_TRY(fr_cal_exchange_check(r->exchange, err));
    for (int k = 0; k < TIMES * STEPS; k++)
        if (steps[k % STEPS] == kind) FR_TRY(between(r, k, k + 1, &ns[k / STEPS], err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, ns, sizeof ns, all, err));
    if (r->id != 0) return FR_OK;
    for (int q = 1; q < r->p->ranks; q++)
        for (int k = 0; k < TIMES; k++) ns[k] = fmin(ns[k], all[q][k]);
    const fr_reading x = fr_reading_of(ns + 2, TIMES - 2); /* the first ones wait for the other's hold */
    const fr_row row = fr_cal_filled(run, -1, i, &x);
    return fr_cal_write(run, &run->grid->table, &row, ns + 2, TIMES - 2, err);
}

/* ---- compute beside transfers -------------------------------------------------------------------------------------*/

static int64_t transfer_bytes(fr_aggressor a) { /* in one direction */
    return a == FR_AGGRESSOR_PULL ? BIG : a == FR_AGGRESSOR_NCCL ? BIG / 2 : HOST_COPY;
}

static cudaStream_t transfer_stream(const rank *r, fr_aggressor a) {
    return a == FR_AGGRESSOR_NCCL ? r->comm : r->copy[0];
}

static fr_status transfer(rank *r, fr_aggressor a, fr_error *err) {
    if (a == FR_AGGRESSOR_PULL) /* as the engine makes them */
        return r->p->ranks > 2 ? push(r, 1, BIG, r->copy[0], err) : pull(r, 1, BIG, r->copy[0], err);
    if (a == FR_AGGRESSOR_NCCL) return collective(r, FR_OP_ALLGATHER, BIG, r->comm, err);
    return check(cudaMemcpyAsync(r->dst, fr_bench_host(r->bench, HOST_COPY), (size_t)HOST_COPY, cudaMemcpyHostToDevice,
                                 r->copy[0]),
                 "cudaMemcpyAsync", err);
}

/* Transfers, events before and after each in a ring; pauses after each group of a duty cycle. */
static fr_status issue(rank *r, int n, fr_error *err) {
    const fr_aggressor a = (fr_aggressor)r->row->aggressor;
    const int ring = EVENTS / 2 - 1;
    for (int i = 0; i < n; i++, r->issued++) {
        CU(cudaEventRecord(r->event[2 * (r->issued % ring)], transfer_stream(r, a)));
        FR_TRY(transfer(r, a, err));
        CU(cudaEventRecord(r->event[2 * (r->issued % ring) + 1], transfer_stream(r, a)));
        if (r->pause_ns > 0 && (r->issued + 1) % r->group == 0)
            CU(fr_k_hold((uint64_t)r->pause_ns, transfer_stream(r, a)));
    }
    return FR_OK;
}

static bool takes_part(const rank *r) {
    return r->row->ways == 2 || r->id == 0;
}

/* Transfers that have ended, from `from` on. */
static int ended(rank *r, int from) {
    const int ring = EVENTS / 2 - 1;
    while (from < r->issued && cudaEventQuery(r->event[2 * (from % ring) + 1]) == cudaSuccess) from++;
    return from;
}

/* Mean bytes/s of the transfers from..to - 1 while they ran. */
static fr_status rate_of(rank *r, int from, int to, double *rate, fr_error *err) {
    const int ring = EVENTS / 2 - 1;
    double sum = 0;
    *rate = 0;
    if (from < 0 || to <= from) return FR_OK;
    if (to - from > ring - 8) from = to - (ring - 8);
    for (int i = from; i < to; i++) {
        double ns;
        FR_TRY(between(r, 2 * (i % ring), 2 * (i % ring) + 1, &ns, err));
        sum += ns;
    }
    if (sum > 0) *rate = 1e9 * (to - from) * (double)transfer_bytes((fr_aggressor)r->row->aggressor) / sum;
    return FR_OK;
}

/* Queued before a burst, which begins when the first has ended. */
static fr_status begin_burst(void *context, fr_error *err) {
    rank *r = context;
    FR_TRY(meet(r, err));
    if (takes_part(r)) {
        FR_TRY(issue(r, (int)(COVER_NS / r->each_ns) + 2, err));
        FR_TRY(fr_measure_await(r->measure, r->event[1], err));
    }
    r->first = 1;
    return meet(r, err);
}

/* Both ranks top up their queues by the same number, and end together: rank 0 decides. */
static fr_status keep_queue(void *context, double at_s, bool *stop, fr_error *err) {
    rank *r = context;
    struct {
        int32_t issue, stop;
    } mine = {0}, all[MOST_RANKS];
    static const double counted = 0.4; /* fr_measure_hold */
    const int done = ended(r, r->issued - (int)fmin(r->issued, EVENTS / 4));
    const double turn = r->pause_ns > 0 ? r->each_ns + r->pause_ns / r->group : r->each_ns;
    mine.issue = (int)fmax(0, DEPTH_NS / turn - (r->issued - done));
    mine.stop = at_s > r->hold_s;
    FR_TRY(fr_world_exchange(r->p->world, r->id, &mine, sizeof mine, all, err));
    *stop = all[0].stop != 0;
    if (r->first < 0 && at_s > counted * r->hold_s) r->first = done;
    return takes_part(r) && !*stop ? issue(r, all[0].issue, err) : FR_OK;
}

/* The victim of a class: what stands for it among the anchors (engine/calibrate.c). */
static fr_status prepare_victim(rank *r, fr_op_class class, fr_error *err) {
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

static fr_status victim(rank *r, const fr_beside *beside, double hold_s, fr_reading *out, fr_error *err) {
    fr_measure_beside(r->measure, beside);
    const fr_status s = r->row->regime == FR_BURST
                            ? fr_measure_burst(r->measure, fr_bench_run, r->bench, true, BURST_NS, out, err)
                            : fr_measure_hold(r->measure, fr_bench_run, r->bench, hold_s, 1, 0, out, err);
    fr_measure_beside(r->measure, NULL);
    return s;
}

/* bytes/s of the transfers with nothing beside them. */
static fr_status transfers_alone(rank *r, double *rate, fr_error *err) {
    r->issued = 0;
    r->pause_ns = 0;
    FR_TRY(meet(r, err));
    if (!takes_part(r)) return meet(r, err);
    FR_TRY(issue(r, 10, err));
    FR_TRY(fr_measure_await(r->measure, r->event[2 * 9 + 1], err));
    FR_TRY(rate_of(r, 2, 9, rate, err));
    return meet(r, err);
}

static fr_status write_beside(rank *r, const said *alone, const said *beside, const double *rates, fr_error *err) {
    fr_cal_run *run = r->p->run;
    fr_row row = *r->row;
    const int parts = row.ways == 2 ? r->p->ranks : 1;
    const said a = mean(alone, parts), b = mean(beside, parts);
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
static fr_status measure_victim(rank *r, const fr_beside *hooks, said out[MOST_RANKS], fr_error *err) {
    const struct timespec second = {.tv_sec = 1};
    fr_reading x;
    double rate = 0;
    r->issued = 0;
    r->first = -1;
    if (r->row->regime == FR_BURST) nanosleep(&second, NULL);
    FR_TRY(meet(r, err));
    FR_TRY(victim(r, hooks, r->hold_s, &x, err));
    if (hooks && takes_part(r)) {
        const int last = ended(r, r->first < 0 ? 0 : r->first);
        FR_TRY(rate_of(r, r->first, last, &rate, err));
        FR_TRY(drain(r, transfer_stream(r, (fr_aggressor)r->row->aggressor), err));
    }
    const said mine = of(&x, rate);
    return fr_world_exchange(r->p->world, r->id, &mine, sizeof mine, out, err);
}

/* How fast the transfers of item i go alone, and so how many make a turn of its duty cycle. */
static fr_status pace(rank *r, uint32_t i, double rates[MOST_RANKS], fr_error *err) {
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

static fr_status measure_beside(rank *r, uint32_t i, fr_error *err) {
    const fr_cal_run *run = r->p->run;
    const fr_beside hooks = {begin_burst, keep_queue, r};
    said *alone = NULL, beside[MOST_RANKS];
    double rates[MOST_RANKS];
    FR_TRY(prepare_victim(r, (fr_op_class)run->grid->table.rows[i].victim, err));
    FR_TRY(pace(r, i, rates, err));
    alone = r->alone[r->row->regime][r->row->victim];
    if (!alone[0].count) FR_TRY(measure_victim(r, NULL, alone, err));
    FR_TRY(measure_victim(r, &hooks, beside, err));
    return r->id == 0 ? write_beside(r, alone, beside, rates, err) : FR_OK;
}

/* Transfers alone for some seconds: what they draw. A pull's row is its own aggressor (0). */
static fr_status hold_pulls(rank *r, uint32_t i, fr_error *err) {
    const struct timespec nap = {.tv_nsec = 10000000};
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    const int parts = row.ways == 2 ? r->p->ranks : 1;
    double rates[MOST_RANKS];
    said all[MOST_RANKS], me = {0};
    FR_TRY(pace(r, i, rates, err));
    r->issued = 0;
    r->first = -1;
    fr_meter *meter = NULL;
    fr_status status = FR_OK;
    const double start = fr_cal_now();
    for (bool stop = false; !stop && status == FR_OK; nanosleep(&nap, NULL)) {
        const double at = fr_cal_now() - start;
        if (!meter && at > 0.4 * r->hold_s) meter = fr_meter_start(run->options->device[r->id]);
        status = keep_queue(r, at, &stop, err);
    }
    fr_meter_reading drawn;
    fr_meter_stop(meter, &drawn);
    FR_TRY(status);
    if (takes_part(r)) {
        FR_TRY(rate_of(r, r->first < 0 ? 0 : r->first, ended(r, r->first < 0 ? 0 : r->first), &me.rate, err));
        FR_TRY(drain(r, r->copy[0], err));
    }
    me.watts = drawn.watts;
    me.count = r->issued;
    FR_TRY(fr_world_exchange(r->p->world, r->id, &me, sizeof me, all, err));
    if (r->id != 0) return FR_OK;
    const said m = mean(all, parts);
    row.ns = 1e9 * (double)row.shape.bytes / fmax(m.rate, 1);
    row.watts = m.watts;
    row.samples = m.count * parts;
    for (int q = 0; q < r->p->ranks; q++)
        FR_TRY(fr_cal_note(run, err, "GPU %d of the next row: %.1f W, pulls at %.4g GB/s", q, all[q].watts,
                           1e-9 * all[q].rate));
    return fr_cal_write(run, &run->grid->table, &row, NULL, 0, err);
}

/* ---- threads ------------------------------------------------------------------------------------------------------*/

static fr_status open_rank(rank *r, fr_error *err) {
    fr_cal_run *run = r->p->run;
    static const fr_model model = {.hidden = ROW_BYTES / 2};
    const fr_transport_options o = {.world = r->p->world,
                                    .rank = r->id,
                                    .device = run->options->device[r->id],
                                    .plan = r->p->plan,
                                    .layout = &r->p->layout,
                                    .model = &model,
                                    .tokens = 1,
                                    .timeout_s = WAIT_S};
    CU(cudaSetDevice(o.device));
    for (int i = 0; i < STREAMS; i++) CU(cudaStreamCreateWithFlags(&r->copy[i], cudaStreamNonBlocking));
    CU(cudaStreamCreateWithFlags(&r->comm, cudaStreamNonBlocking));
    r->event = fr_alloc(EVENTS * sizeof(*r->event));
    for (int i = 0; i < EVENTS; i++) CU(cudaEventCreate(&r->event[i]));
    CU(cudaMalloc((void **)&r->src, (size_t)SIDE));
    CU(cudaMalloc((void **)&r->dst, (size_t)SIDE));
    CU(cudaMemset(r->src, 0x3c, (size_t)SIDE));
    CU(cudaMemset(r->dst, 0, (size_t)SIDE));
    CU(cudaDeviceSynchronize());
    FR_TRY(fr_transport_open(&o, &r->transport, err));
    FR_TRY(fr_transport_share(r->transport, r->src, (size_t)SIDE, r->peer_src, err));
    FR_TRY(fr_transport_share(r->transport, r->dst, (size_t)SIDE, r->peer_dst, err));
    for (int q = 0; q < r->p->ranks; q++)
        if (!r->peer_src[q] || !r->peer_dst[q]) return fr_fail(err, FR_FAILED, "the GPUs cannot reach each other");
    return FR_OK;
}

static fr_status one_item(rank *r, uint32_t i, fr_error *err) {
    const fr_cal_what what = (fr_cal_what)r->p->run->grid->items[i].what;
    switch (what) {
    case FR_CAL_PULL:
        return r->p->run->grid->items[i].hold_s > 0 ? hold_pulls(r, i, err) : measure_pull(r, i, err);
    case FR_CAL_COLLECTIVE:
        return measure_collective(r, i, err);
    case FR_CAL_EXCHANGE:
        return measure_exchange(r, i, err);
    case FR_CAL_BESIDE:
        return measure_beside(r, i, err);
    default:
        return fr_fail(err, FR_FAILED, "this is measured on one GPU");
    }
}

/* Any failure ends all: part of a group cannot go on. */
static fr_status all_items(rank *r, fr_error *err) {
    fr_cal_run *run = r->p->run;
    uint32_t fit;
    double done = 0;
    const double total = fr_cal_grid_seconds(run->grid, run->options->request.limit_s, &fit);
    FR_TRY(open_rank(r, err));
    for (uint32_t i = 0; i < run->grid->count; i++) {
        int32_t go = !run->grid->items[i].done && fr_cal_room(run, i), all[MOST_RANKS];
        FR_TRY(fr_world_exchange(r->p->world, r->id, &go, sizeof go, all, err));
        if (r->id == 0 && !all[0] && !run->grid->items[i].done) run->result->left++;
        if (!all[0]) continue;
        FR_TRY(one_item(r, i, err));
        done += run->grid->items[i].seconds;
        if (r->id != 0) continue;
        run->result->measured++;
        if (run->options->progress) run->options->progress(run->options->context, done / total);
    }
    return meet(r, err);
}

static void close_rank(rank *r, bool failed) {
    if (!failed) {
        cudaSetDevice(r->p->run->options->device[r->id]);
        fr_cal_exchange_close(r->exchange, false);
        fr_transport_close(r->windows, false);
        fr_transport_close(r->transport, false);
        for (int i = 0; i < EVENTS && r->event; i++) cudaEventDestroy(r->event[i]);
        cudaFree(r->src);
        cudaFree(r->dst);
        for (int i = 0; i < STREAMS; i++) cudaStreamDestroy(r->copy[i]);
        cudaStreamDestroy(r->comm);
    } else {
        fr_cal_exchange_close(r->exchange, true);
        fr_transport_close(r->windows, true);
        fr_transport_close(r->transport, true);
    }
    free(r->event);
}

static void *thread(void *context) {
    rank *r = context;
    r->status = all_items(r, &r->err);
    if (r->status != FR_OK) fr_world_fail(r->p->world, r->id, &r->err);
    close_rank(r,
               fr_world_failed(r->p->world, NULL, NULL)); /* closing a communicator meets its peers: on each thread */
    return NULL;
}

/* Whether communicators of neighbours are worth their opening. */
static bool sends(const fr_cal_run *run) {
    const fr_cal_grid *g = run->grid;
    for (uint32_t i = 0; i < g->count; i++)
        if (g->table.rows[i].type == FR_ROW_OP && g->table.rows[i].shape.kind == FR_OP_SEND && !g->items[i].done)
            return true;
    return false;
}

fr_status fr_cal_pair_run(fr_cal_run *run, fr_error *err) {
    const int ranks = run->options->devices;
    int16_t members[MOST_RANKS];
    pair p = {.run = run,
              .ranks = ranks,
              .layout = {.experts = FR_EXP_TP, .tp = ranks, .pp = 1, .ep = 1, .dp = 1, .replicas = 1},
              .gathers = {.experts = FR_EXP_ASYNCEP,
                          .gather = FR_GATHER_NCCL_CE,
                          .tp = 1,
                          .pp = 1,
                          .ep = ranks,
                          .dp = ranks,
                          .replicas = 1}};
    pthread_t threads[MOST_RANKS];
    for (int i = 0; i < ranks; i++) members[i] = (int16_t)i;
    FR_TRY(fr_world_open_threads(ranks, WAIT_S, &p.world, err));
    p.plan = fr_plan_new(ranks, ranks);
    fr_plan_group(p.plan, members, ranks, ranks);
    p.gathering = fr_plan_new(ranks, ranks);
    fr_plan_group(p.gathering, members, ranks, ranks);
    for (int i = 0; i < ranks && sends(run) && ranks > 2; i++) {
        const int16_t two[2] = {(int16_t)i, (int16_t)((i + 1) % ranks)};
        fr_plan_group(p.plan, two, 2, 2);
    }
    int started = 0;
    for (; started < ranks; started++) {
        rank *r = &p.rank[started];
        *r = (rank){.p = &p, .id = started, .measure = run->measure[started], .bench = run->bench[started]};
        if (pthread_create(&threads[started], NULL, thread, r) == 0) continue;
        r->status = fr_fail(&r->err, FR_FAILED, "no thread for GPU %d", started);
        fr_world_fail(p.world, started, &r->err);
        break;
    }
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    int first = 0;
    const bool failed = fr_world_failed(p.world, &first, NULL);
    const fr_status status = failed ? p.rank[first].status : FR_OK;
    if (failed && err) *err = p.rank[first].err;
    fr_plan_free(p.plan);
    fr_plan_free(p.gathering);
    fr_world_close(p.world);
    return status;
}

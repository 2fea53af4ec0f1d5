/* What GPUs measure with each other: the threads, exchanges. Collectives: calibrate_collectives.c; pulls:
 * calibrate_pulls.c; compute beside transfers: calibrate_beside.c. */
#include "engine/cuda/calibrate_rank.h"
#include "engine/cuda/transport/transport.h"
#include "kernels/probe.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>

fr_status fr_cal_check(cudaError_t e, const char *what, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}

fr_status fr_cal_meet(fr_cal_rank *r, fr_error *err) {
    return fr_world_exchange(r->p->world, r->id, NULL, 0, NULL, err);
}

fr_status fr_cal_drain(fr_cal_rank *r, cudaStream_t s, fr_error *err) {
    CU(cudaEventRecord(r->event[FR_CAL_EVENTS - 1], s));
    return fr_measure_await(r->measure, r->event[FR_CAL_EVENTS - 1], err);
}

fr_status fr_cal_between(fr_cal_rank *r, int a, int b, double *ns, fr_error *err) {
    float ms = 0;
    CU(cudaEventElapsedTime(&ms, r->event[a], r->event[b]));
    *ns = 1e6 * (double)ms;
    return FR_OK;
}

fr_cal_said fr_cal_said_of(const fr_reading *x, double rate) {
    return (fr_cal_said){.median = x->median,
                         .p10 = x->p10,
                         .p90 = x->p90,
                         .clock = x->clock_mhz,
                         .watts = x->watts,
                         .capped = x->capped,
                         .rate = rate,
                         .count = x->count};
}

fr_cal_said fr_cal_mean(const fr_cal_said *s, int count) {
    fr_cal_said m = s[0];
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

/* ---- exchanges ----------------------------------------------------------------------------------------------------*/

/* Counts, dispatch and return in turns, as layers have them; of each repetition the least of the ranks' times. */
static fr_status measure_exchange(fr_cal_rank *r, uint32_t i, fr_error *err) {
    enum { TIMES = 20, STEPS = 3 };
    static const fr_op_kind steps[STEPS] = {FR_OP_COUNTS, FR_OP_ALLTOALL, FR_OP_ALLTOALL_BACK};
    fr_cal_run *run = r->p->run;
    const fr_cal_item *item = &run->grid->items[i];
    const fr_op_kind kind = (fr_op_kind)run->grid->table.rows[i].shape.kind;
    double ns[TIMES], all[FR_CAL_DEVICES][TIMES];
    if (!r->exchange)
        FR_TRY(fr_cal_exchange_open(r->p->world, r->id, run->options->device[r->id], r->dst, (size_t)FR_CAL_SIDE, false,
                                    &r->exchange, err));
    FR_TRY(fr_cal_exchange_pack(r->exchange, item->tokens, item->leaving, r->comm, err));
    FR_TRY(fr_cal_drain(r, r->comm, err));
    FR_TRY(fr_cal_meet(r, err));
    CU(fr_k_hold(1500000 + 250000u * (uint64_t)r->p->ranks, r->comm)); /* threads issue side by side */
    for (int k = 0; k < TIMES * STEPS; k++) {
        CU(cudaEventRecord(r->event[k], r->comm));
        FR_TRY(fr_cal_exchange_launch(r->exchange, steps[k % STEPS], r->comm, err));
    }
    CU(cudaEventRecord(r->event[TIMES * STEPS], r->comm));
    FR_TRY(fr_measure_await(r->measure, r->event[TIMES * STEPS], err));
    FR_TRY(fr_cal_exchange_check(r->exchange, err));
    for (int k = 0; k < TIMES * STEPS; k++)
        if (steps[k % STEPS] == kind) FR_TRY(fr_cal_between(r, k, k + 1, &ns[k / STEPS], err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, ns, sizeof ns, all, err));
    if (r->id != 0) return FR_OK;
    for (int q = 1; q < r->p->ranks; q++)
        for (int k = 0; k < TIMES; k++) ns[k] = fmin(ns[k], all[q][k]);
    const fr_reading x = fr_reading_of(ns + 2, TIMES - 2); /* the first ones wait for the other's hold */
    const fr_row row = fr_cal_filled(run, -1, i, &x);
    return fr_cal_write(run, &run->grid->table, &row, ns + 2, TIMES - 2, err);
}

/* ---- threads ------------------------------------------------------------------------------------------------------*/

static fr_status open_rank(fr_cal_rank *r, fr_error *err) {
    fr_cal_run *run = r->p->run;
    static const fr_model model = {.hidden = FR_CAL_ROW_BYTES / 2};
    const fr_transport_options o = {.world = r->p->world,
                                    .rank = r->id,
                                    .device = run->options->device[r->id],
                                    .plan = r->p->plan,
                                    .layout = &r->p->layout,
                                    .model = &model,
                                    .tokens = 1,
                                    .timeout_s = FR_CAL_WAIT_S,
                                    .everything = true};
    CU(cudaSetDevice(o.device));
    for (int i = 0; i < FR_CAL_STREAMS; i++) CU(cudaStreamCreateWithFlags(&r->copy[i], cudaStreamNonBlocking));
    int least, greatest;
    CU(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CU(cudaStreamCreateWithPriority(&r->comm, cudaStreamNonBlocking, greatest)); /* as the engine's (exec.c) */
    r->event = fr_alloc(FR_CAL_EVENTS * sizeof(*r->event));
    for (int i = 0; i < FR_CAL_EVENTS; i++) CU(cudaEventCreate(&r->event[i]));
    CU(cudaMalloc((void **)&r->src, (size_t)FR_CAL_SIDE));
    CU(cudaMalloc((void **)&r->dst, (size_t)FR_CAL_SIDE));
    CU(cudaMemset(r->src, 0x3c, (size_t)FR_CAL_SIDE));
    CU(cudaMemset(r->dst, 0, (size_t)FR_CAL_SIDE));
    CU(cudaDeviceSynchronize());
    FR_TRY(fr_transport_open(&o, &r->transport, err));
    FR_TRY(fr_transport_share(r->transport, r->src, (size_t)FR_CAL_SIDE, r->peer_src, err));
    FR_TRY(fr_transport_share(r->transport, r->dst, (size_t)FR_CAL_SIDE, r->peer_dst, err));
    for (int q = 0; q < r->p->ranks; q++)
        if (!r->peer_src[q] || !r->peer_dst[q]) return fr_fail(err, FR_FAILED, "the GPUs cannot reach each other");
    return FR_OK;
}

static fr_status one_item(fr_cal_rank *r, uint32_t i, fr_error *err) {
    const fr_cal_what what = (fr_cal_what)r->p->run->grid->items[i].what;
    switch (what) {
    case FR_CAL_PULL:
        return r->p->run->grid->items[i].hold_s > 0 ? fr_cal_hold_pulls(r, i, err) : fr_cal_measure_pull(r, i, err);
    case FR_CAL_COLLECTIVE:
        return fr_cal_measure_collective(r, i, err);
    case FR_CAL_EXCHANGE:
        return measure_exchange(r, i, err);
    case FR_CAL_BESIDE:
        return fr_cal_measure_beside(r, i, err);
    case FR_CAL_RESIDENT:
        return fr_cal_measure_resident(r, i, err);
    default:
        return fr_fail(err, FR_FAILED, "this is measured on one GPU");
    }
}

/* Any failure ends all: part of a group cannot go on. */
static fr_status all_items(fr_cal_rank *r, fr_error *err) {
    fr_cal_run *run = r->p->run;
    uint32_t fit;
    double done = 0;
    const double total = fr_cal_grid_seconds(run->grid, run->options->request.limit_s, &fit);
    FR_TRY(open_rank(r, err));
    for (uint32_t i = 0; i < run->grid->count; i++) {
        int32_t go = !run->grid->items[i].done && fr_cal_room(run, i), all[FR_CAL_DEVICES];
        FR_TRY(fr_world_exchange(r->p->world, r->id, &go, sizeof go, all, err));
        if (r->id == 0 && !all[0] && !run->grid->items[i].done) run->result->left++;
        if (!all[0]) continue;
        FR_TRY(one_item(r, i, err));
        done += run->grid->items[i].seconds;
        if (r->id != 0) continue;
        run->result->measured++;
        if (run->options->progress) run->options->progress(run->options->context, done / total);
    }
    return fr_cal_meet(r, err);
}

static void close_rank(fr_cal_rank *r, bool failed) {
    if (!failed) {
        cudaSetDevice(r->p->run->options->device[r->id]);
        fr_cal_exchange_close(r->exchange, false);
        fr_cal_exchange_close(r->spared, false);
        fr_transport_close(r->windows, false);
        fr_transport_close(r->transport, false);
        for (int i = 0; i < FR_CAL_EVENTS && r->event; i++) cudaEventDestroy(r->event[i]);
        cudaFree(r->src);
        cudaFree(r->dst);
        for (int i = 0; i < FR_CAL_STREAMS; i++) cudaStreamDestroy(r->copy[i]);
        cudaStreamDestroy(r->comm);
    } else {
        fr_cal_exchange_close(r->exchange, true);
        fr_cal_exchange_close(r->spared, true);
        fr_transport_close(r->windows, true);
        fr_transport_close(r->transport, true);
    }
    free(r->event);
}

static void *thread(void *context) {
    fr_cal_rank *r = context;
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
    int16_t members[FR_CAL_DEVICES];
    fr_cal_ranks p = {.run = run,
                      .ranks = ranks,
                      .layout = {.experts = FR_EXP_TP, .tp = ranks, .pp = 1, .ep = 1, .dp = 1, .replicas = 1},
                      .gathers = {.experts = FR_EXP_ASYNCEP,
                                  .gather = FR_GATHER_NCCL_CE,
                                  .tp = 1,
                                  .pp = 1,
                                  .ep = ranks,
                                  .dp = ranks,
                                  .replicas = 1}};
    pthread_t threads[FR_CAL_DEVICES];
    for (int i = 0; i < ranks; i++) members[i] = (int16_t)i;
    FR_TRY(fr_world_open_threads(ranks, FR_CAL_WAIT_S, &p.world, err));
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
        fr_cal_rank *r = &p.rank[started];
        *r = (fr_cal_rank){.p = &p, .id = started, .measure = run->measure[started], .bench = run->bench[started]};
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

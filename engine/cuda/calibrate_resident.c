/*
 * Kernels beside a transfer that was there first: a collective's kernel already holds its SMs, or a copy is under way,
 * when they begin, and goes on when they end. What lies between its start and its end is beside it, what comes behind
 * is alone, in one burst. And the other way round: when a transfer that is asked for while a kernel runs gets its SMs.
 */
#include "engine/cuda/calibrate_rank.h"
#include "engine/cuda/transport/transport.h"
#include "kernels/probe.h"

#include <math.h>
#include <time.h>

enum { TURNS = 3, MOST = 240, TOKENS = 16384, EXCHANGED = 32768, HIDDEN = 4096 };
#define SMALL    (INT64_C(64) << 20)
#define ISSUE_NS 3500000 /* both threads issue that long side by side */
#define LEAD_NS  200000  /* the transfer is under way by then */
#define WAIT_NS  4e6     /* one rank keeps the other waiting, */
#define WAITS    2.3     /* but at least so many kernels */
#define LONG_NS  3e5     /* of a kernel beside FR_CAL_SIDE bytes; shorter ones need fewer */
#define LOAD_NS  1.5e8   /* the limit sets in after 30 to 60 ms */
#define ASKED_NS 30000   /* behind the start of a kernel a transfer is asked for */

typedef struct {
    fr_op_kind kind;
    fr_cal_item item;
    fr_row row;
    bool held;   /* under the power limit: behind LOAD_NS of launches */
    int stamped; /* launches beside the transfer whose clock is taken; 0 = none */
    double ns;   /* about */
} victim;

/* What a layer of Qwen3-235B makes of TOKENS tokens, four sequences (engine/strategy/layer.c has the bytes). */
static fr_status prepare(fr_cal_rank *r, fr_op_kind kind, victim *v, fr_error *err) {
    const int64_t T = TOKENS, H = HIDDEN;
    *v = (victim){.kind = kind,
                  .item = {.top_k = 8, .head_dim = 128, .residual = kind == FR_OP_GEMM_O},
                  .row = {.type = FR_ROW_OP, .duty = 1, .at_ms = -1, .gap_ms = -1, .ways = 1}};
    fr_pair pairs[128];
    const fr_table t = {.pairs = pairs};
    int32_t even[128];
    fr_shape *s = &v->row.shape;
    *s = (fr_shape){.kind = (uint8_t)kind, .m = T, .n = 4096};
    switch (kind) {
    case FR_OP_GEMM_QKV:
        s->n = 9216, s->k = 4096;
        break;
    case FR_OP_GEMM_O:
        s->k = 8192;
        break;
    case FR_OP_GEMM_ROUTER:
        s->n = 128, s->k = 4096;
        break;
    case FR_OP_EXPERT_UP:
    case FR_OP_EXPERT_DOWN:
        fr_even_rows(8 * T, 128, even);
        for (int i = 0; i < 128; i++) pairs[i] = (fr_pair){even[i], 0};
        s->m = 8 * T, s->vector_count = 128;
        s->n = kind == FR_OP_EXPERT_UP ? 3072 : 4096, s->k = kind == FR_OP_EXPERT_UP ? 4096 : 1536;
        break;
    case FR_OP_ATTENTION:
        for (int i = 0; i < 4; i++) pairs[i] = (fr_pair){4096, 0};
        *s = (fr_shape){.kind = FR_OP_ATTENTION, .n = 64, .k = 4, .head_dim = 128, .vector_count = 4};
        break;
    case FR_OP_ROPE:
        s->n = 64 * 128, s->bytes = 4 * T * 68 * 128;
        break;
    case FR_OP_NORM:
        s->bytes = 4 * T * H;
        break;
    case FR_OP_TOPK:
        s->n = 128, s->bytes = 1;
        break;
    case FR_OP_SORT:
        s->m = 8 * T, s->n = 128, s->bytes = 1;
        break;
    case FR_OP_PERMUTE:
        s->m = 8 * T, s->bytes = 1;
        break;
    default:
        s->bytes = 2 * T * H * 11; /* combine: eight rows, residual in and out, the next norm */
        break;
    }
    return fr_bench_prepare(r->bench, &t, &v->row, &v->item, err);
}

static fr_status mark(fr_cal_rank *r, int event, cudaStream_t s, fr_error *err) {
    return fr_cal_check(cudaEventRecord(r->event[event], s), "cudaEventRecord", err);
}

/* ---- transfers ----------------------------------------------------------------------------------------------------*/

/* Which transfer: an fr_aggressor, or our own exchange. */
enum { EXCHANGE = FR_AGGRESSOR_EXCHANGE };

static cudaStream_t lane(const fr_cal_rank *r, int a) {
    return a == FR_AGGRESSOR_PULL ? r->copy[0] : r->comm;
}

/* Exchanges: counts before, rows back behind. */
static fr_status counts(fr_cal_rank *r, int a, fr_error *err) {
    return a == EXCHANGE ? fr_cal_exchange_launch(r->spared, FR_OP_COUNTS, r->comm, err) : FR_OK;
}
static fr_status back(fr_cal_rank *r, int a, fr_error *err) {
    return a == EXCHANGE ? fr_cal_exchange_launch(r->spared, FR_OP_ALLTOALL_BACK, r->comm, err) : FR_OK;
}
static fr_status transfer(fr_cal_rank *r, int a, int64_t bytes, fr_error *err) {
    if (a == EXCHANGE) return fr_cal_exchange_launch(r->spared, FR_OP_ALLTOALL, r->comm, err);
    if (a == FR_AGGRESSOR_NCCL) return fr_cal_gather(r, bytes, r->comm, err);
    return r->p->ranks > 2 ? fr_cal_push_to(r, 1, bytes, r->copy[0], err) : fr_cal_pull(r, 1, bytes, r->copy[0], err);
}

static fr_status open_exchange(fr_cal_rank *r, fr_error *err) {
    if (r->spared) return FR_OK;
    /* in what pulls and gathers only read */
    FR_TRY(fr_cal_exchange_open(r->p->world, r->id, r->p->run->options->device[r->id], r->src, (size_t)FR_CAL_SIDE,
                                true, &r->spared, err));
    const int64_t most = fr_cal_exchange_tokens(r->p->ranks);
    FR_TRY(fr_cal_exchange_pack(r->spared, fr_min_i64(EXCHANGED, most), fr_min_i64(EXCHANGED, most), r->comm, err));
    return fr_cal_drain(r, r->comm, err);
}

/* ---- kernels behind a transfer's start ----------------------------------------------------------------------------*/

typedef struct {
    double alone, beside, p10, p90, moved; /* ns: of a kernel; of the transfer */
    double clock;                          /* MHz, beside; 0 = not taken */
    int inside;
} reading;

static double wait_of(const victim *v) {
    return fmax(WAIT_NS, WAITS * v->ns);
}

/* late: rank 0's transfer waits for the others'. Events: 0 and 1 the transfer's, 2 + i the kernels'. */
static fr_status turn(fr_cal_rank *r, const victim *v, int a, int64_t bytes, int n, bool late, fr_error *err) {
    cudaStream_t s = fr_measure_stream(r->measure), moves = lane(r, a);
    FR_TRY(fr_cal_meet(r, err));
    FR_TRY(counts(r, a, err));
    if (v->held) {
        for (int k = 0; k < LOAD_NS / v->ns; k++) FR_TRY(fr_bench_run(r->bench, s, err));
        FR_TRY(mark(r, 1, s, err));
        CU(cudaStreamWaitEvent(moves, r->event[1], 0));
    } else {
        CU(fr_k_hold(ISSUE_NS, moves));
    }
    FR_TRY(mark(r, 0, moves, err));
    CU(cudaStreamWaitEvent(s, r->event[0], 0));
    if (late && r->id > 0) CU(fr_k_hold((uint64_t)wait_of(v), moves));
    FR_TRY(transfer(r, a, bytes, err));
    FR_TRY(mark(r, 1, moves, err));
    CU(fr_k_hold(LEAD_NS, s));
    for (int k = 0; k <= n; k++) {
        if (v->stamped && (k == 0 || k == v->stamped)) FR_TRY(fr_measure_stamp(r->measure, k > 0, err));
        FR_TRY(mark(r, 2 + k, s, err));
        if (k < n) FR_TRY(fr_bench_run(r->bench, s, err));
    }
    CU(cudaStreamWaitEvent(moves, r->event[2 + n], 0));
    FR_TRY(back(r, a, err));
    FR_TRY(fr_measure_await(r->measure, r->event[2 + n], err));
    return fr_cal_drain(r, moves, err);
}

static fr_status rest(fr_cal_rank *r, fr_error *err) {
    const struct timespec nap = {.tv_nsec = 80000000};
    nanosleep(&nap, NULL);
    return fr_cal_meet(r, err);
}

/* Launches `n` behind the start of the transfer, TURNS times. */
static fr_status measure(fr_cal_rank *r, victim *v, int a, int64_t bytes, int n, bool late, reading *out,
                         fr_error *err) {
    double beside[TURNS * MOST], alone[TURNS * MOST], moved[TURNS];
    int inside = 0, behind = 0;
    v->stamped = 0;
    for (int t = 0; t < TURNS; t++) {
        FR_TRY(rest(r, err));
        FR_TRY(turn(r, v, a, bytes, n, late, err));
        FR_TRY(fr_cal_between(r, 0, 1, &moved[t], err));
        for (int k = 0; k < n; k++) {
            double from, ns;
            FR_TRY(fr_cal_between(r, 0, 2 + k, &from, err));
            FR_TRY(fr_cal_between(r, 2 + k, 3 + k, &ns, err));
            const double end = late ? fmin(moved[t], wait_of(v)) : moved[t];
            if (from + ns < end) beside[inside++] = ns;
            if (from > moved[t]) alone[behind++] = ns;
        }
        if (t == 0) v->stamped = inside;
    }
    double clock = 0;
    if (v->stamped) FR_TRY(fr_measure_clock(r->measure, 2, &clock, err));
    const fr_reading b = fr_reading_of(beside, inside), l = fr_reading_of(alone, behind),
                     m = fr_reading_of(moved, TURNS);
    *out = (reading){.alone = behind ? l.median : 0,
                     .beside = inside ? b.median : 0,
                     .p10 = inside ? b.p10 : 0,
                     .p90 = inside ? b.p90 : 0,
                     .moved = m.median,
                     .clock = clock,
                     .inside = inside};
    return FR_OK;
}

/* About what a launch and the transfer take alone. */
static fr_status pace(fr_cal_rank *r, victim *v, int a, int64_t bytes, double *alone, fr_error *err) {
    cudaStream_t s = fr_measure_stream(r->measure);
    for (int k = 0; k < 3; k++) {
        FR_TRY(mark(r, 2 + k, s, err));
        FR_TRY(fr_bench_run(r->bench, s, err));
    }
    FR_TRY(mark(r, 5, s, err));
    FR_TRY(fr_measure_await(r->measure, r->event[5], err));
    FR_TRY(fr_cal_between(r, 4, 5, &v->ns, err));
    FR_TRY(fr_cal_meet(r, err));
    for (int k = 0; k < 3; k++) {
        if (k == 0) FR_TRY(counts(r, a, err));
        if (k > 0 && a == EXCHANGE) break;
        CU(fr_k_hold(k ? 1 : ISSUE_NS / 4, lane(r, a)));
        FR_TRY(mark(r, 2 * k, lane(r, a), err));
        FR_TRY(transfer(r, a, bytes, err));
        FR_TRY(mark(r, 2 * k + 1, lane(r, a), err));
    }
    FR_TRY(back(r, a, err));
    FR_TRY(fr_cal_drain(r, lane(r, a), err));
    double again = 0;
    if (a == EXCHANGE) return fr_cal_between(r, 0, 1, alone, err);
    FR_TRY(fr_cal_between(r, 2, 3, alone, err)); /* the first one meets the others' start */
    FR_TRY(fr_cal_between(r, 4, 5, &again, err));
    *alone = fmin(*alone, again);
    return FR_OK;
}

static fr_status agree(fr_cal_rank *r, double mine, double *least, double *most, fr_error *err) {
    double all[FR_CAL_DEVICES];
    FR_TRY(fr_world_exchange(r->p->world, r->id, &mine, sizeof mine, all, err));
    *least = *most = all[0];
    for (int q = 1; q < r->p->ranks; q++) {
        *least = fmin(*least, all[q]);
        *most = fmax(*most, all[q]);
    }
    return FR_OK;
}

static fr_status both(fr_cal_rank *r, victim *v, int a, int64_t bytes, bool late, reading *mean, double *alone,
                      fr_error *err) {
    reading one, all[FR_CAL_DEVICES];
    double ns, most;
    FR_TRY(pace(r, v, a, bytes, &ns, err));
    FR_TRY(agree(r, ns, alone, &most, err));
    FR_TRY(agree(r, v->ns, &ns, &v->ns, err));
    const double time = late ? wait_of(v) + *alone : 1.7 * *alone;
    const int n = (int)fmin(MOST, ceil((time + LEAD_NS) / v->ns) + (v->ns > LONG_NS ? 3 : 20));
    FR_TRY(measure(r, v, a, bytes, n, late, &one, err));
    FR_TRY(fr_world_exchange(r->p->world, r->id, &one, sizeof one, all, err));
    *mean = all[0];
    const int ranks = late ? 1 : r->p->ranks; /* only rank 0 waits */
    for (int q = 1; q < ranks; q++) {
        mean->alone += all[q].alone, mean->beside += all[q].beside;
        mean->p10 += all[q].p10, mean->p90 += all[q].p90, mean->clock += all[q].clock;
        mean->moved = fmin(mean->moved, all[q].moved);
    }
    mean->alone /= ranks, mean->beside /= ranks, mean->p10 /= ranks, mean->p90 /= ranks, mean->clock /= ranks;
    return FR_OK;
}

/* ---- a transfer asked for while kernels run -----------------------------------------------------------------------*/

/* Notes when it ended, counted from the first kernel's start, beside when the kernels did. */
static fr_status asked_beside(fr_cal_rank *r, const victim *v, int a, int64_t bytes, double alone, fr_error *err) {
    enum { KERNELS = 6 };
    cudaStream_t s = fr_measure_stream(r->measure), moves = lane(r, a);
    double at[KERNELS + 1], from, to;
    FR_TRY(rest(r, err));
    FR_TRY(counts(r, a, err));
    FR_TRY(fr_cal_drain(r, r->comm, err));
    FR_TRY(fr_cal_meet(r, err));
    CU(fr_k_hold(ISSUE_NS / 2, s));
    FR_TRY(mark(r, 2, s, err));
    CU(cudaStreamWaitEvent(moves, r->event[2], 0));
    CU(fr_k_hold(ASKED_NS, moves));
    FR_TRY(mark(r, 0, moves, err));
    FR_TRY(transfer(r, a, bytes, err));
    FR_TRY(mark(r, 1, moves, err));
    for (int k = 0; k < KERNELS; k++) {
        FR_TRY(fr_bench_run(r->bench, s, err));
        FR_TRY(mark(r, 3 + k, s, err));
    }
    FR_TRY(back(r, a, err));
    FR_TRY(fr_measure_await(r->measure, r->event[2 + KERNELS], err));
    FR_TRY(fr_cal_drain(r, moves, err));
    FR_TRY(fr_cal_between(r, 2, 0, &from, err));
    FR_TRY(fr_cal_between(r, 2, 1, &to, err));
    for (int k = 0; k <= KERNELS; k++) FR_TRY(fr_cal_between(r, 2, 2 + k, &at[k], err));
    return fr_cal_note(r->p->run, err,
                       "GPU %d: %s asked for beside %s: %.0f to %.0f us, %.0f alone; kernels' ends %.0f %.0f %.0f %.0f "
                       "%.0f %.0f",
                       r->id, a == EXCHANGE ? "exchange" : "nccl", fr_op_name(v->kind), 1e-3 * from, 1e-3 * to,
                       1e-3 * alone, 1e-3 * at[1], 1e-3 * at[2], 1e-3 * at[3], 1e-3 * at[4], 1e-3 * at[5],
                       1e-3 * at[6]);
}

static fr_status note(fr_cal_rank *r, const victim *v, const char *what, const reading *m, double alone,
                      fr_error *err) {
    if (r->id != 0) return FR_OK;
    return fr_cal_note(r->p->run, err,
                       "%s beside %s: %.1f us alone, %.1f beside (%.3f, %d); it takes %.0f us, %.0f alone",
                       fr_op_name(v->kind), what, 1e-3 * m->alone, 1e-3 * m->beside,
                       m->alone > 0 ? m->beside / m->alone : 0, m->inside, 1e-3 * m->moved, 1e-3 * alone);
}

/* NCCL's kernel beside those that wait for their peers, which isn't a row. */
static fr_status measure_waiting(fr_cal_rank *r, victim *v, fr_error *err) {
    reading m;
    double alone;
    FR_TRY(both(r, v, FR_AGGRESSOR_NCCL, SMALL, true, &m, &alone, err));
    FR_TRY(note(r, v, "nccl that waits", &m, alone, err));
    return asked_beside(r, v, FR_AGGRESSOR_NCCL, SMALL, alone, err);
}

/* Kernels of some milliseconds are longer than an exchange: theirs waits for its peers meanwhile. *bytes of a rank. */
static fr_status measure_exchange(fr_cal_rank *r, victim *v, reading *m, double *alone, double *bytes, fr_error *err) {
    reading moving;
    FR_TRY(open_exchange(r, err));
    FR_TRY(both(r, v, EXCHANGE, 0, true, m, alone, err));
    FR_TRY(both(r, v, EXCHANGE, 0, false, &moving, alone, err));
    m->moved = moving.moved;
    FR_TRY(note(r, v, "an exchange under way", &moving, *alone, err));
    FR_TRY(asked_beside(r, v, EXCHANGE, 0, *alone, err));
    *bytes = 2.0 * HIDDEN * (double)fr_min_i64(EXCHANGED, fr_cal_exchange_tokens(r->p->ranks));
    return fr_cal_exchange_check(r->spared, err);
}

fr_status fr_cal_measure_resident(fr_cal_rank *r, uint32_t i, fr_error *err) {
    fr_cal_run *run = r->p->run;
    fr_row row = run->grid->table.rows[i];
    const fr_op_kind kind = row.shape.kind ? (fr_op_kind)row.shape.kind : FR_OP_ATTENTION;
    victim v;
    reading m;
    double alone, bytes = (double)FR_CAL_SIDE / 4;
    FR_TRY(prepare(r, kind, &v, err));
    v.held = row.regime == FR_SUSTAINED;
    if (row.aggressor == EXCHANGE) {
        FR_TRY(measure_exchange(r, &v, &m, &alone, &bytes, err));
    } else {
        FR_TRY(both(r, &v, row.aggressor, FR_CAL_SIDE / 4, false, &m, &alone, err));
        if (v.ns > LONG_NS) {
            bytes = (double)FR_CAL_SIDE;
            FR_TRY(both(r, &v, row.aggressor, FR_CAL_SIDE, false, &m, &alone, err));
        }
        if (row.aggressor == FR_AGGRESSOR_NCCL) bytes /= r->p->ranks;
    }
    if (row.aggressor == FR_AGGRESSOR_NCCL && !v.held) FR_TRY(measure_waiting(r, &v, err));
    if (r->id != 0) return FR_OK;
    if (m.inside == 0 || m.alone <= 0)
        return fr_cal_note(run, err, "%s: no launch lay inside the transfer, or none behind it", fr_op_name(kind));
    row.alone = m.alone;
    row.beside = m.beside;
    row.p10 = m.p10;
    row.p90 = fmax(m.p90, m.beside);
    row.samples = m.inside;
    row.clock_mhz = m.clock;
    row.rate = 1e9 * bytes / m.moved;
    row.rate_alone = 1e9 * bytes / alone;
    row.hbm_traffic = 2 * row.rate;
    return fr_cal_write(run, &run->grid->table, &row, NULL, 0, err);
}

#include "engine/cuda/exec.h"

#include "engine/cuda/clock.h"
#include "engine/cuda/issue.h"
#include "engine/cuda/pools.h"
#include "engine/cuda/rank.h"
#include "engine/cuda/transport/transport.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SETTLE_NS 4000000000 /* when closing: a device's own waits for its peers end within 2 s */
#define SPIN_NS   100000000  /* longer than a layer takes */
#define SLOW_NS   50000      /* an ordinary launch takes 3 to 10 us; the two clocks agree to some 10 us */

enum { SLOTS = FR_EXEC_FLIGHTS + 1 }; /* one more: a forward's begin is measured from the one before it */

typedef struct {
    cudaStream_t stream; /* NULL: a host lane or another rank's */
    cudaEvent_t last;    /* end of the last op issued on it with spans */
    uint32_t waiting;    /* the lane's next op of the fragment that could not be issued yet, FR_NONE = none */
    bool touched;        /* it has ops of the forward being issued */
} lane;

/*
 * One timed op: it starts where the op before it on the lane ends, but for three cases. `late`: the device had nothing
 * to do when it was issued; `waits`: it may have to wait for another lane: in both its start has an event of its own
 * (`marked`). `slow`: the host took so long to issue it (a library chose or compiled something) that the device ran dry
 * meanwhile: it started when the host was done.
 */
typedef struct {
    uint32_t op;
    bool marked, late, slow, host;
    cudaEvent_t start, end;
    int64_t host_start, host_end; /* slow: host_end is when it was issued */
} timed;

typedef struct {
    const fr_fragment *f;
    int32_t *staging; /* pinned */
    int64_t staging_ints;
    float *logits;    /* pinned */
    int32_t *offsets; /* pinned: fr_rank_counts */
    int32_t *counts;
    int micros;
    cudaEvent_t begin, entry, answer, end;
    cudaEvent_t *lane_ends; /* [lanes]: of lanes but compute that had ops in it */
    bool *lane_used;
    bool has_entry, has_answer, entered, spans;
    int64_t release, begin_ns, logits_count;
    fr_exec_run *runs; /* of the logits, that this rank computes */
    uint32_t runs_count, runs_cap;
    timed *ops;
    uint32_t count, cap, events; /* events: ops whose events exist */
} flight;

struct fr_exec {
    fr_exec_options o;
    fr_device_rank rank;
    lane *lanes;
    cudaStream_t **streams; /* [lanes]: the lanes' */
    fr_issue *issue;
    int64_t launched[FR_OP_KIND_COUNT]; /* ops, by kind */
    /* offload by expert: tokens per expert of the layer read back last */
    cudaStream_t readback;
    cudaEvent_t readback_done;
    int32_t *readback_offsets; /* pinned, [E + 1] */
    const fr_fragment *known;
    uint16_t known_layer;
    uint8_t known_micro;
    flight slot[SLOTS];
    int64_t appended, collected;
    bool lost; /* the device failed or did not answer: nothing more is asked of it */
    _Atomic uint64_t issuing;
    /* clock */
    int64_t epoch;           /* CLOCK_MONOTONIC of time 0 */
    fr_anchor first, latest; /* taken when the rank was opened, and last */
    double rate, half_ns;    /* host ns per device ns; of the anchor at the start */
    cudaEvent_t anchor;      /* an event at time anchor_ns */
    int64_t anchor_ns, last_end;
};

static int64_t monotonic(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t fr_exec_now(const fr_exec *x) {
    return monotonic() - x->epoch;
}

const int64_t *fr_exec_launched(const fr_exec *x) {
    return x->launched;
}

bool fr_exec_lost(const fr_exec *x) {
    return x->lost;
}

int64_t fr_exec_bytes(const fr_exec *x) {
    const fr_device_rank *r = &x->rank;
    return r->arena_bytes + fr_pools_bytes(r->pools) + (int64_t)r->attention_workspace_bytes + 4 * r->batch_ints +
           2 * r->kv_width * (r->context_capacity + (r->kv ? r->layers * r->kv_capacity : 0));
}

void fr_exec_kv_trim(fr_exec *x, int32_t handle, int32_t tokens) {
    if (x->rank.kv_rows) fr_kv_rows_trim(x->rank.kv_rows, handle, tokens);
}
int32_t fr_exec_kv_available(const fr_exec *x) {
    return x->rank.kv_rows ? fr_kv_rows_available(x->rank.kv_rows) : 0;
}
int32_t fr_exec_kv_handles(const fr_exec *x) {
    return x->rank.kv_rows ? fr_kv_rows_handles(x->rank.kv_rows) : 0;
}

fr_status fr_exec_replan(fr_exec *x, const fr_plan *plan, bool spans, fr_error *err) {
    const fr_plan *old = x->o.plan;
    if (x->appended != x->collected) return fr_fail(err, FR_FAILED, "a forward is out");
    if (plan->lanes_count != old->lanes_count || plan->buffers_count < x->rank.buffers_count)
        return fr_fail(err, FR_FAILED, "the plan's static part is another one");
    x->o.plan = plan;
    x->o.spans = spans;
    if (x->o.transport) fr_transport_replan(x->o.transport, plan);
    x->known = NULL;
    fr_issue_replan(x->issue, plan);
    return FR_OK;
}

static fr_status check(fr_exec *x, cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    x->lost = true;
    return fr_fail(err, FR_FAILED, "rank %d: %s failed: %s", x->o.rank, call, cudaGetErrorString(e));
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

/* What moves rows between ranks needs a few SMs at once, while a kernel of the compute lane has blocks for all of them:
 * it goes first wherever SMs become free. */
static fr_status open_stream(fr_exec *x, cudaStream_t *out, fr_lane_kind kind, fr_error *err) {
    const bool moves = kind == FR_LANE_COMM || kind == FR_LANE_SEND || kind == FR_LANE_RECV;
    int least = 0, greatest = 0;
    FR_TRY(check(x, cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange", err));
    return check(x, cudaStreamCreateWithPriority(out, cudaStreamNonBlocking, moves ? greatest : least),
                 "cudaStreamCreate", err);
}

static fr_status open_lanes(fr_exec *x, fr_error *err) {
    const fr_plan *p = x->o.plan;
    x->lanes = fr_alloc(p->lanes_count * sizeof *x->lanes);
    x->streams = fr_alloc(p->lanes_count * sizeof *x->streams);
    for (uint32_t i = 0; i < p->lanes_count; i++) {
        x->lanes[i].waiting = FR_NONE;
        x->streams[i] = &x->lanes[i].stream;
        if (p->lanes[i].rank != x->o.rank || p->lanes[i].kind == FR_LANE_HOST) continue;
        if (p->lanes[i].first_ready)
            return fr_fail(err, FR_FAILED, "lane %s: first-ready lanes are not executed yet", p->lanes[i].name);
        FR_TRY(open_stream(x, &x->lanes[i].stream, (fr_lane_kind)p->lanes[i].kind, err));
    }
    return FR_OK;
}

/* Offload by expert: the host reads which experts have tokens. */
static fr_status open_readback(fr_exec *x, fr_error *err) {
    if (x->o.layout->experts != FR_EXP_OFFLOAD || !x->o.layout->slots) return FR_OK;
    const size_t bytes = (size_t)(x->o.model->experts + 1) * sizeof *x->readback_offsets;
    FR_TRY(check(x, cudaStreamCreateWithFlags(&x->readback, cudaStreamNonBlocking), "cudaStreamCreate", err));
    FR_TRY(check(x, cudaEventCreateWithFlags(&x->readback_done, cudaEventDisableTiming), "cudaEventCreate", err));
    return check(x, cudaHostAlloc((void **)&x->readback_offsets, bytes, cudaHostAllocDefault), "cudaHostAlloc", err);
}

/* What moves between ops: counters, slots, experts' weights. Collective. */
static fr_status open_moves(fr_exec *x, fr_error *err) {
    const fr_layout *l = x->o.layout;
    const bool remote = l->experts == FR_EXP_OFFLOAD && l->ep > 1 && l->gather == FR_GATHER_CE;
    const fr_issue_options io = {.plan = x->o.plan,
                                 .rank = x->o.rank,
                                 .streams = (cudaStream_t *const *)x->streams,
                                 .world = x->o.world,
                                 .transport = x->o.transport};
    const fr_pools_options go = {.plan = x->o.plan,
                                 .model = x->o.model,
                                 .layout = l,
                                 .weights = x->o.weights,
                                 .world = x->o.world,
                                 .transport = x->o.transport,
                                 .rank = x->o.rank};
    FR_TRY(fr_issue_open(&io, remote, &x->issue, err));
    FR_TRY(fr_pools_open(&go, &x->rank.pools, err));
    x->rank.issue = x->issue;
    return open_readback(x, err);
}

static fr_status open_slot(fr_exec *x, flight *f, fr_error *err) {
    const fr_device_rank *r = &x->rank;
    const size_t offsets = (size_t)(r->offsets_micros * r->layers) * (size_t)fr_rank_offsets(r);
    cudaEvent_t *events[4] = {&f->begin, &f->entry, &f->answer, &f->end};
    for (int i = 0; i < 4; i++) FR_TRY(check(x, cudaEventCreate(events[i]), "cudaEventCreate", err));
    f->lane_ends = fr_alloc(x->o.plan->lanes_count * sizeof *f->lane_ends);
    f->lane_used = fr_alloc(x->o.plan->lanes_count * sizeof *f->lane_used);
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (x->lanes[i].stream && x->o.plan->lanes[i].kind != FR_LANE_COMPUTE)
            FR_TRY(
                check(x, cudaEventCreateWithFlags(&f->lane_ends[i], cudaEventDisableTiming), "cudaEventCreate", err));
    FR_TRY(check(x, cudaHostAlloc((void **)&f->logits, (size_t)r->most_logits * 4, cudaHostAllocDefault),
                 "cudaHostAlloc", err));
    if (!x->o.counts) return FR_OK;
    f->counts = fr_alloc(offsets * sizeof *f->counts);
    return check(x, cudaHostAlloc((void **)&f->offsets, offsets * 4, cudaHostAllocDefault), "cudaHostAlloc", err);
}

static cudaStream_t any_stream(const fr_exec *x) {
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (x->lanes[i].stream) return x->lanes[i].stream;
    return NULL;
}

static fr_status open_all(fr_exec *x, fr_error *err) {
    FR_TRY(fr_rank_open(&x->o, &x->rank, err));
    if (x->o.varied) FR_TRY(fr_rank_prepare(&x->rank, err));
    FR_TRY(open_lanes(x, err));
    FR_TRY(open_moves(x, err));
    for (int i = 0; i < SLOTS; i++) FR_TRY(open_slot(x, &x->slot[i], err));
    FR_TRY(check(x, cudaEventCreate(&x->anchor), "cudaEventCreate", err));
    FR_TRY(fr_anchor_take(any_stream(x), &x->first, err));
    return fr_exec_start(x, x->first.ns, err);
}

fr_status fr_exec_open(const fr_exec_options *o, fr_exec **out, fr_error *err) {
    fr_exec *x = fr_alloc(sizeof *x);
    x->o = *o;
    *out = NULL;
    fr_status s = open_all(x, err);
    if (s != FR_OK) {
        fr_exec_close(x);
        return s;
    }
    *out = x;
    return FR_OK;
}

static void close_slot(const fr_exec *x, flight *f) {
    cudaEvent_t events[4] = {f->begin, f->entry, f->answer, f->end};
    for (uint32_t i = 0; f->lane_ends && i < x->o.plan->lanes_count; i++)
        if (f->lane_ends[i]) cudaEventDestroy(f->lane_ends[i]);
    for (int i = 0; i < 4; i++)
        if (events[i]) cudaEventDestroy(events[i]);
    for (uint32_t i = 0; i < f->events; i++) {
        cudaEventDestroy(f->ops[i].start);
        cudaEventDestroy(f->ops[i].end);
    }
    if (f->staging) cudaFreeHost(f->staging);
    if (f->logits) cudaFreeHost(f->logits);
    if (f->offsets) cudaFreeHost(f->offsets);
    free(f->lane_ends);
    free(f->lane_used);
    free(f->counts);
    free(f->runs);
    free(f->ops);
}

/* Whether all streams run dry within SETTLE_NS. */
bool fr_exec_settle(fr_exec *x) {
    const int64_t deadline = monotonic() + SETTLE_NS;
    for (uint32_t i = 0; x->lanes && i < x->o.plan->lanes_count && !x->lost; i++) {
        cudaError_t e = cudaSuccess;
        while (x->lanes[i].stream && (e = cudaStreamQuery(x->lanes[i].stream)) == cudaErrorNotReady &&
               monotonic() < deadline)
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        if (e != cudaSuccess) x->lost = true;
    }
    return !x->lost;
}

void fr_exec_close(fr_exec *x) {
    if (!x) return;
    if (fr_exec_settle(x)) { /* frees would wait for a device that does not answer */
        for (int i = 0; i < SLOTS; i++) close_slot(x, &x->slot[i]);
        if (x->readback) cudaStreamDestroy(x->readback);
        if (x->readback_done) cudaEventDestroy(x->readback_done);
        if (x->readback_offsets) cudaFreeHost(x->readback_offsets);
        for (uint32_t i = 0; x->lanes && i < x->o.plan->lanes_count; i++)
            if (x->lanes[i].stream) cudaStreamDestroy(x->lanes[i].stream);
        if (x->anchor) cudaEventDestroy(x->anchor);
        fr_anchor_close(&x->first);
        fr_anchor_close(&x->latest);
    }
    fr_issue_close(x->issue, x->lost);
    fr_pools_close(x->rank.pools, x->lost);
    if (!x->lost) fr_rank_close(&x->rank);
    free(x->lanes);
    free(x->streams);
    free(x);
}

fr_status fr_exec_start(fr_exec *x, int64_t epoch, fr_error *err) {
    FR_TRY(check(x, cudaDeviceSynchronize(), "cudaDeviceSynchronize", err));
    FR_TRY(fr_anchor_take(any_stream(x), &x->latest, err));
    FR_TRY(fr_anchor_rate(&x->first, &x->latest, &x->rate, err));
    /* The event goes on as the forwards' anchor: fr_exec_collect trades it for their begins. */
    const cudaEvent_t spare = x->anchor;
    x->anchor = x->latest.event;
    x->latest.event = spare;
    x->half_ns = x->latest.half_ns;
    x->epoch = epoch;
    x->anchor_ns = x->latest.ns - epoch;
    x->last_end = 0;
    return FR_OK;
}

fr_status fr_exec_finish(fr_exec *x, double *error_ns, double *drift_ppm, fr_error *err) {
    float ms = 0;
    FR_TRY(check(x, cudaDeviceSynchronize(), "cudaDeviceSynchronize", err));
    FR_TRY(fr_anchor_take(any_stream(x), &x->latest, err));
    FR_TRY(check(x, cudaEventElapsedTime(&ms, x->anchor, x->latest.event), "cudaEventElapsedTime", err));
    const double told = (double)x->anchor_ns + x->rate * 1e6 * (double)ms;
    const double half = x->half_ns > x->latest.half_ns ? x->half_ns : x->latest.half_ns;
    *error_ns = fabs(told - (double)(x->latest.ns - x->epoch)) + half;
    *drift_ppm = (1 / x->rate - 1) * 1e6;
    return FR_OK;
}

/* ---- waiting ------------------------------------------------------------------------------------------------------*/

/* The op that the device is at: the first timed one that has not ended. */
static void name_current(const fr_exec *x, const flight *f, char out[48]) {
    snprintf(out, 48, "forward %lld", (long long)f->f->forward);
    for (uint32_t i = 0; f->spans && i < f->count; i++)
        if (!f->ops[i].host && cudaEventQuery(f->ops[i].end) == cudaErrorNotReady) {
            fr_op_id_text(fr_op_id(x->o.plan, f->f, &f->f->ops[f->ops[i].op]), out);
            return;
        }
}

/* Waits until `event` of flight f has come. */
static fr_status await(fr_exec *x, flight *f, cudaEvent_t event, fr_error *err) {
    const int64_t deadline = monotonic() + (int64_t)(x->o.timeout_s * 1e9);
    char op[48];
    for (int spin = 0;; spin++) {
        const cudaError_t e = cudaEventQuery(event);
        if (e == cudaSuccess) return FR_OK;
        if (e != cudaErrorNotReady) {
            name_current(x, f, op);
            x->lost = true;
            return fr_fail(err, FR_FAILED, "rank %d, %s: the device failed: %s (--check-ops names the op)", x->o.rank,
                           op, cudaGetErrorString(e));
        }
        if (spin < 64) continue;
        if (x->o.transport) FR_TRY(fr_transport_check(x->o.transport, err));
        if (monotonic() > deadline) {
            name_current(x, f, op);
            x->lost = true;
            return fr_fail(err, FR_FAILED,
                           "the host waited %.3g s for rank %d, which is at op %s: given up (--timeout sets the limit)",
                           x->o.timeout_s, x->o.rank, op);
        }
        const struct timespec pause = {.tv_nsec = 20000};
        nanosleep(&pause, NULL);
    }
}

/* The same without sleeping, where the device waits for the host. */
static fr_status await_spinning(fr_exec *x, flight *f, cudaEvent_t event, fr_error *err) {
    const int64_t until = monotonic() + SPIN_NS;
    cudaError_t e = cudaErrorNotReady;
    while (e == cudaErrorNotReady && monotonic() < until) e = cudaEventQuery(event);
    return e == cudaSuccess ? FR_OK : await(x, f, event, err);
}

/* ---- issuing ------------------------------------------------------------------------------------------------------*/

static fr_status next_timed(fr_exec *x, flight *f, uint32_t op, timed **out, fr_error *err) {
    FR_GROW(f->ops, f->cap, f->count + 1);
    timed *t = &f->ops[f->count];
    if (f->count >= f->events) {
        *t = (timed){0};
        FR_TRY(check(x, cudaEventCreate(&t->start), "cudaEventCreate", err));
        FR_TRY(check(x, cudaEventCreate(&t->end), "cudaEventCreate", err));
        f->events++;
    }
    f->count++;
    t->op = op;
    t->marked = t->late = t->slow = t->host = false;
    *out = t;
    return FR_OK;
}

/* Whether an op has nothing to do, which the host knows: its expert has no tokens. */
static bool nothing(const fr_exec *x, const flight *f, const fr_op *op) {
    if (op->late == FR_NONE || x->known != f->f || x->known_layer != op->layer || x->known_micro != op->micro)
        return false;
    const int32_t *at = x->readback_offsets + op->sub;
    return op->sub < x->o.model->experts && at[0] == at[1];
}

static fr_status issue_device_op(fr_exec *x, flight *f, uint32_t index, bool skip, fr_error *err) {
    const fr_op *op = &f->f->ops[index];
    lane *l = &x->lanes[op->lane];
    timed *t = NULL;
    bool waits;
    l->touched = true;
    FR_TRY(fr_issue_before(x->issue, f->f, op, skip, &waits, err));
    const bool works = !skip && fr_op_most(f->f, op)->kind != FR_OP_NONE && op->kind != FR_OP_FENCE;
    const cudaEvent_t before = l->last;
    const int64_t begun = f->spans ? fr_exec_now(x) : 0;
    if (works && f->spans) {
        FR_TRY(next_timed(x, f, index, &t, err));
        const bool idle = !l->last || cudaEventQuery(l->last) != cudaErrorNotReady;
        t->late = idle && !waits;
        t->marked = idle || waits;
        if (t->marked) FR_TRY(check(x, cudaEventRecord(t->start, l->stream), "cudaEventRecord", err));
    }
    if (works) x->launched[op->kind]++;
    if (works) FR_TRY(fr_op_launch(&x->rank, x->o.plan, f->f, op, l->stream, err));
    if (t) {
        t->host_end = fr_exec_now(x);
        t->slow = !t->marked && t->host_end - begun > SLOW_NS && cudaEventQuery(before) == cudaSuccess;
        FR_TRY(check(x, cudaEventRecord(t->end, l->stream), "cudaEventRecord", err));
        l->last = t->end;
    }
    if (works && x->o.check_ops) FR_TRY(check(x, cudaStreamSynchronize(l->stream), "the op", err));
    return fr_issue_after(x->issue, f->f, op, err);
}

/* The host waits until the sort has ended and learns how many tokens each expert has. It spins: the device stands still
 * until the copies that it then issues arrive. */
static fr_status read_back(fr_exec *x, flight *f, const fr_op *op, fr_error *err) {
    const fr_device_rank *r = &x->rank;
    const int64_t layer = (int64_t)op->micro * r->layers + op->layer - r->shard.first_layer;
    const size_t count = (size_t)r->model->experts + 1;
    const int32_t *offsets = r->offsets + layer * fr_rank_offsets(r);
    const fr_ref *waits = fr_op_waits(f->f, op);
    for (int i = 0; i < op->waits; i++) {
        const cudaEvent_t mark = fr_issue_mark(x->issue, waits[i].target, waits[i].value);
        if (mark) FR_TRY(check(x, cudaStreamWaitEvent(x->readback, mark, 0), "cudaStreamWaitEvent", err));
    }
    FR_TRY(check(x, cudaMemcpyAsync(x->readback_offsets, offsets, count * 4, cudaMemcpyDeviceToHost, x->readback),
                 "cudaMemcpyAsync of the counts", err));
    FR_TRY(check(x, cudaEventRecord(x->readback_done, x->readback), "cudaEventRecord", err));
    FR_TRY(await_spinning(x, f, x->readback_done, err));
    x->known = f->f;
    x->known_layer = op->layer;
    x->known_micro = op->micro;
    return FR_OK;
}

static fr_status issue_host_op(fr_exec *x, flight *f, uint32_t index, int64_t since, fr_error *err) {
    const fr_op *op = &f->f->ops[index];
    if (op->kind != FR_OP_LAUNCH && op->kind != FR_OP_FENCE && op->kind != FR_OP_READBACK)
        return fr_fail(err, FR_FAILED, "host ops of kind %s are not executed yet", fr_op_name(op->kind));
    if (op->kind == FR_OP_READBACK) FR_TRY(read_back(x, f, op, err));
    FR_TRY(fr_issue_after(x->issue, f->f, op, err));
    if (!f->spans || op->kind == FR_OP_FENCE) return FR_OK;
    timed *t;
    FR_TRY(next_timed(x, f, index, &t, err));
    t->host = true;
    t->host_start = since;
    t->host_end = fr_exec_now(x);
    return FR_OK;
}

/* Names the op in whatever went wrong with it. */
static fr_status named(const fr_exec *x, const flight *f, const fr_op *op, fr_status s, fr_error *err) {
    char id[48];
    fr_error inner = err ? *err : (fr_error){0};
    fr_op_id_text(fr_op_id(x->o.plan, f->f, op), id);
    return fr_fail(err, s, "rank %d, op %s (%s): %.800s", x->o.rank, id, fr_op_name(op->kind), inner.text);
}

static fr_status issue_marks(fr_exec *x, flight *f, const fr_op *op, fr_error *err) {
    const cudaStream_t stream = x->lanes[op->lane].stream;
    if (op->flags & FR_OP_ENTRY) {
        f->has_entry = true;
        FR_TRY(check(x, cudaEventRecord(f->entry, stream), "cudaEventRecord", err));
    }
    if (op->kind == FR_OP_GEMM_HEAD) {
        const fr_ref *use = fr_op_uses(f->f, op);
        const void *logits = NULL;
        for (int i = 0; i < op->uses; i++)
            if (use[i].use == FR_USE_WRITE) logits = x->rank.buffers[use[i].target];
        FR_TRY(fr_batch_logits(&x->rank, op, logits, f->logits, stream, err));
    }
    if (!(op->flags & FR_OP_ANSWER)) return FR_OK;
    f->has_answer = true;
    return check(x, cudaEventRecord(f->answer, stream), "cudaEventRecord", err);
}

/* One op if it may be issued now; *issued says whether it was. */
static fr_status issue_one(fr_exec *x, flight *f, uint32_t index, int64_t *since, bool *issued, fr_error *err) {
    const fr_op *op = &f->f->ops[index];
    const bool host = x->o.plan->lanes[op->lane].kind == FR_LANE_HOST;
    const fr_issue_may_t may = fr_issue_may(x->issue, f->f, op, nothing(x, f, op));
    *issued = may != FR_ISSUE_LATER;
    if (!*issued) return FR_OK;
    atomic_store_explicit(&x->issuing, fr_op_id(x->o.plan, f->f, op), memory_order_relaxed);
    fr_status s =
        host ? issue_host_op(x, f, index, *since, err) : issue_device_op(x, f, index, may == FR_ISSUE_SKIP, err);
    if (s == FR_OK && !host) s = issue_marks(x, f, op, err);
    if (s != FR_OK) return named(x, f, op, s, err);
    if (host) *since = fr_exec_now(x);
    return FR_OK;
}

/* Lanes that stand at an op go on, as far as ops emitted up to `now` let them. */
static fr_status go_on(fr_exec *x, flight *f, uint32_t now, uint32_t *standing, int64_t *since, fr_error *err) {
    for (bool more = *standing > 0; more;) {
        more = false;
        for (uint32_t i = 0; i<x->o.plan->lanes_count && * standing> 0; i++) {
            lane *l = &x->lanes[i];
            bool issued = true;
            while (l->waiting != FR_NONE && l->waiting <= now && issued) {
                FR_TRY(issue_one(x, f, l->waiting, since, &issued, err));
                if (!issued) break;
                more = true;
                l->waiting = f->f->ops[l->waiting].next;
                if (l->waiting == FR_NONE || l->waiting > now) {
                    l->waiting = FR_NONE;
                    --*standing;
                }
            }
        }
    }
    return FR_OK;
}

static fr_status all_issued(const fr_exec *x, const flight *f, fr_error *err) {
    char why[160];
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) {
        if (x->lanes[i].waiting == FR_NONE) continue;
        const fr_op *op = &f->f->ops[x->lanes[i].waiting];
        fr_issue_why(x->issue, f->f, op, why, sizeof why);
        fr_fail(err, FR_FAILED, "waits for %s", why);
        return named(x, f, op, FR_FAILED, err);
    }
    return FR_OK;
}

/*
 * In the order in which the strategy emitted them, but for ops that wait for one emitted later (a copy into a slot that
 * a later op gives back): their lanes stand until it is issued.
 */
static fr_status issue_all(fr_exec *x, flight *f, fr_error *err) {
    int64_t since = fr_exec_now(x);
    uint32_t standing = 0;
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) {
        x->lanes[i].waiting = FR_NONE;
        x->lanes[i].touched = false;
    }
    for (uint32_t i = 0; i < f->f->ops_count; i++) {
        const fr_op *op = &f->f->ops[i];
        bool issued;
        if (x->o.plan->lanes[op->lane].rank != x->o.rank || x->lanes[op->lane].waiting != FR_NONE) continue;
        FR_TRY(issue_one(x, f, i, &since, &issued, err));
        if (!issued) {
            x->lanes[op->lane].waiting = i;
            standing++;
        } else if (standing > 0) {
            FR_TRY(go_on(x, f, i, &standing, &since, err));
        }
    }
    return all_issued(x, f, err);
}

static cudaStream_t compute_stream(const fr_exec *x) {
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (x->lanes[i].stream && x->o.plan->lanes[i].kind == FR_LANE_COMPUTE) return x->lanes[i].stream;
    return NULL;
}

/* Which of the forward's logits this rank will have. */
static void note_runs(const fr_device_rank *r, flight *f) {
    f->runs_count = 0;
    f->logits_count = r->logits;
    FR_GROW(f->runs, f->runs_cap, 2 * (uint32_t)r->micros);
    for (int m = 0; m < r->micros; m++) {
        const fr_batch_tables *t = &r->micro[m];
        if (t->rows_all) f->runs[f->runs_count++] = (fr_exec_run){t->all_at, (int64_t)t->rows_all * r->model->vocab};
        if (t->picks) f->runs[f->runs_count++] = (fr_exec_run){t->picks_at, t->picks};
    }
}

static fr_status issue_forward(fr_exec *x, flight *f, const fr_cuts *cuts, const fr_exec_batch *batches,
                               fr_error *err) {
    const cudaStream_t stream = compute_stream(x);
    const fr_device_rank *r = &x->rank;
    int64_t ints = 0;
    FR_TRY(fr_batch_plan(&x->rank, cuts, batches, &ints, err));
    note_runs(r, f);
    if (ints > f->staging_ints) { /* this flight is out of use: its staging may go */
        fr_rank_retire(&x->rank, f->staging);
        f->staging = NULL;
        f->staging_ints = ints + ints / 2;
        FR_TRY(check(x, cudaHostAlloc((void **)&f->staging, (size_t)f->staging_ints * 4, cudaHostAllocDefault),
                     "cudaHostAlloc", err));
    }
    FR_TRY(check(x, cudaEventRecord(f->begin, stream), "cudaEventRecord", err));
    FR_TRY(fr_batch_upload(&x->rank, cuts, batches, f->staging, stream, err));
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) x->lanes[i].last = NULL; /* the tables stand between */
    FR_TRY(issue_all(x, f, err));
    if (x->o.counts) {
        const size_t bytes = (size_t)(r->micros * r->layers) * (size_t)fr_rank_offsets(r) * 4;
        f->micros = r->micros;
        FR_TRY(check(x, cudaMemcpyAsync(f->offsets, r->offsets, bytes, cudaMemcpyDeviceToHost, stream),
                     "cudaMemcpyAsync of the counts", err));
    }
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) {
        f->lane_used[i] = x->lanes[i].touched && f->lane_ends[i];
        if (f->lane_used[i])
            FR_TRY(check(x, cudaEventRecord(f->lane_ends[i], x->lanes[i].stream), "cudaEventRecord", err));
    }
    return check(x, cudaEventRecord(f->end, stream), "cudaEventRecord", err);
}

fr_status fr_exec_append(fr_exec *x, const fr_fragment *fragment, const fr_cuts *cuts, const fr_exec_batch *batches,
                         fr_error *err) {
    if (x->appended - x->collected >= FR_EXEC_FLIGHTS)
        return fr_fail(err, FR_FAILED, "%d forwards are out: collect one first", FR_EXEC_FLIGHTS);
    flight *f = &x->slot[x->appended % SLOTS];
    f->f = fragment;
    f->count = 0;
    f->has_entry = f->has_answer = f->entered = false;
    f->spans = x->o.spans;
    f->logits_count = 0;
    f->release = fr_exec_now(x);
    fr_issue_fragment(x->issue, fragment);
    x->appended++;
    fr_status s = issue_forward(x, f, cuts, batches, err);
    if (s != FR_OK) x->lost = x->lost || cudaPeekAtLastError() != cudaSuccess;
    return s;
}

/* What the other lanes still do of a forward whose compute has ended. */
static bool lanes_done(const fr_exec *x, const flight *f) {
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (f->lane_used[i] && cudaEventQuery(f->lane_ends[i]) == cudaErrorNotReady) return false;
    return true;
}

uint64_t fr_exec_issuing(const fr_exec *x) {
    return x ? atomic_load_explicit(&x->issuing, memory_order_relaxed) : 0;
}

void fr_exec_release(fr_exec *x) {
    fr_issue_release(x->issue);
}

fr_status fr_exec_poll(fr_exec *x, fr_exec_state *state, fr_error *err) {
    *state = FR_EXEC_NONE;
    if (x->appended == x->collected) return FR_OK;
    flight *f = &x->slot[x->collected % SLOTS];
    const cudaError_t e = cudaEventQuery(f->end);
    if (e != cudaSuccess && e != cudaErrorNotReady) return await(x, f, f->end, err);
    if (e == cudaErrorNotReady && fr_exec_now(x) - f->release > (int64_t)(x->o.timeout_s * 1e9))
        return await(x, f, f->end, err);
    if (x->o.transport) FR_TRY(fr_transport_check(x->o.transport, err)); /* what ended in vain is no result */
    if (!f->entered) f->entered = e == cudaSuccess || (f->has_entry && cudaEventQuery(f->entry) == cudaSuccess);
    *state = e == cudaSuccess && lanes_done(x, f) ? FR_EXEC_DONE : f->entered ? FR_EXEC_ENTERED : FR_EXEC_RUNNING;
    return FR_OK;
}

/* ---- taking in ----------------------------------------------------------------------------------------------------*/

static fr_status since_begin(fr_exec *x, const flight *f, cudaEvent_t event, int64_t *ns, fr_error *err) {
    float ms = 0;
    FR_TRY(check(x, cudaEventElapsedTime(&ms, f->begin, event), "cudaEventElapsedTime", err));
    *ns = f->begin_ns + llround(x->rate * 1e6 * (double)ms);
    return FR_OK;
}

static void add_span(fr_exec *x, const flight *f, const timed *t, int64_t start, int64_t end, uint64_t cause,
                     fr_timeline *out) {
    const fr_op *op = &f->f->ops[t->op];
    const fr_shape *s = fr_op_shape(f->f, op);
    const fr_span span = {.id = fr_op_id(x->o.plan, f->f, op),
                          .ready = start,
                          .start = start,
                          .end = end,
                          .bytes = (double)s->bytes,
                          .flops = s->flops,
                          .cause = cause,
                          .unit = f->f->unit,
                          .lane = op->lane,
                          .rank = (int16_t)x->o.rank,
                          .kind = op->kind,
                          .provenance = FR_FROM_MEASURED,
                          .transport = s->transport};
    fr_timeline_add(out, &span);
}

/* Spans of all timed ops; the sum of the device's, and how long it stood still for the host. */
static fr_status take_spans(fr_exec *x, flight *f, fr_timeline *out, int64_t *busy, int64_t *late, fr_error *err) {
    int64_t *ends = fr_alloc(x->o.plan->lanes_count * sizeof *ends);
    uint64_t *ids = fr_alloc(x->o.plan->lanes_count * sizeof *ids);
    fr_status s = FR_OK;
    *busy = *late = 0;
    for (uint32_t i = 0; i < f->count && s == FR_OK; i++) {
        const timed *t = &f->ops[i];
        const fr_op *op = &f->f->ops[t->op];
        int64_t start = t->host_start, end = t->host_end, before = ends[op->lane];
        if (!t->host) {
            start = before;
            if (t->marked) s = since_begin(x, f, t->start, &start, err);
            if (s == FR_OK) s = since_begin(x, f, t->end, &end, err);
            if (s != FR_OK) break;
            if (t->slow) start = fr_min_i64(fr_max_i64(start, t->host_end), end);
            end = fr_max_i64(end, start);
            const bool compute = x->o.plan->lanes[op->lane].kind == FR_LANE_COMPUTE;
            if (compute) *busy += end - start;
            if (compute && before && start > before && (t->late || t->slow)) *late += start - before;
        }
        if (out) add_span(x, f, t, start, end, ids[op->lane], out);
        ends[op->lane] = end;
        ids[op->lane] = fr_op_id(x->o.plan, f->f, op);
    }
    free(ends);
    free(ids);
    return s;
}

fr_status fr_exec_collect(fr_exec *x, fr_timeline *spans, fr_exec_done *out, fr_error *err) {
    if (x->appended == x->collected) return fr_fail(err, FR_FAILED, "no forward is out");
    flight *f = &x->slot[x->collected % SLOTS];
    float ms = 0;
    int64_t end = 0, answer = 0, busy = 0, late = 0;
    FR_TRY(await(x, f, f->end, err));
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (f->lane_used[i]) FR_TRY(await(x, f, f->lane_ends[i], err));
    FR_TRY(check(x, cudaEventElapsedTime(&ms, x->anchor, f->begin), "cudaEventElapsedTime", err));
    f->begin_ns = x->anchor_ns + llround(x->rate * 1e6 * (double)ms);
    /* From here on times are taken from this begin: a float of ms over a long run would lose the microseconds. */
    const cudaEvent_t swap = x->anchor;
    FR_TRY(since_begin(x, f, f->end, &end, err));
    answer = end;
    if (f->has_answer) FR_TRY(since_begin(x, f, f->answer, &answer, err));
    FR_TRY(take_spans(x, f, spans, &busy, &late, err));
    if (!f->spans) busy = end - f->begin_ns;
    x->anchor = f->begin;
    x->anchor_ns = f->begin_ns;
    f->begin = swap;
    if (x->o.counts) fr_rank_counts(&x->rank, f->offsets, f->micros, f->counts);
    const int64_t since = fr_max_i64(f->release, x->last_end); /* as the simulator's records: fr_forward_record.parts */
    x->last_end = end;
    double flops = 0;
    for (uint32_t i = 0; i < f->f->ops_count; i++) flops += fr_op_shape(f->f, &f->f->ops[i])->flops;
    *out = (fr_exec_done){.fragment = f->f,
                          .record = {.forward = f->f->forward,
                                     .unit = f->f->unit,
                                     .release = f->release,
                                     .start = f->release,
                                     .end = end,
                                     .last_rank = x->o.rank,
                                     .parts = {.elapsed = end - since, .compute = busy, .idle = end - since - busy},
                                     .flops = flops,
                                     .low = end - f->release,
                                     .high = end - f->release},
                          .answer = answer,
                          .late_ns = late,
                          .logits = f->logits,
                          .logits_count = f->logits_count,
                          .runs = f->runs,
                          .runs_count = (int)f->runs_count,
                          .counts = x->o.counts ? f->counts : NULL};
    x->collected++;
    return FR_OK;
}

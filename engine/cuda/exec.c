#include "engine/cuda/exec_state.h"

#include "engine/cuda/links.h"
#include "engine/cuda/transport/transport.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SETTLE_NS 4000000000 /* when closing: a device's own waits for its peers end within 2 s */
#define SPIN_NS   100000000  /* longer than a layer takes */
#define ITEMS_NS  200000     /* as long as a command may wait for a rank that chooses items */

int64_t fr_exec_now(const fr_exec *x) {
    return fr_monotonic() - x->epoch;
}

const int64_t *fr_exec_launched(const fr_exec *x) {
    return x->launched;
}

void fr_exec_give_up(fr_exec *x) {
    x->lost = true;
}

int64_t fr_exec_bytes(const fr_exec *x) {
    const fr_device_rank *r = &x->rank;
    return r->arena_bytes + fr_pools_bytes(r->pools) + fr_links_bytes(r->links) +
           (int64_t)r->attention_workspace_bytes + 4 * r->batch_ints +
           2 * r->kv_width * (r->context_capacity + (r->kv ? r->layers * r->kv_capacity : 0));
}

void fr_exec_kv_trim(fr_exec *x, int32_t handle, int32_t tokens) {
    if (x->rank.kv_rows) fr_kv_rows_trim(x->rank.kv_rows, handle, tokens);
}

fr_status fr_exec_replan(fr_exec *x, const fr_plan *plan, bool spans, fr_error *err) {
    const fr_plan *old = x->o.plan;
    if (x->outs > 0) return fr_fail(err, FR_FAILED, "a forward is out");
    if (plan->lanes_count != old->lanes_count || plan->buffers_count < x->rank.buffers_count)
        return fr_fail(err, FR_FAILED, "the plan's static part is another one");
    x->o.plan = plan;
    x->o.spans = spans;
    if (x->o.transport) fr_transport_replan(x->o.transport, plan);
    x->known = NULL;
    fr_issue_replan(x->issue, plan);
    return FR_OK;
}

fr_status fr_exec_check(fr_exec *x, cudaError_t e, const char *call, fr_error *err) {
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
    FR_TRY(
        fr_exec_check(x, cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange", err));
    return fr_exec_check(x, cudaStreamCreateWithPriority(out, cudaStreamNonBlocking, moves ? greatest : least),
                         "cudaStreamCreate", err);
}

static fr_status open_lanes(fr_exec *x, fr_error *err) {
    const fr_plan *p = x->o.plan;
    x->lanes = fr_alloc(p->lanes_count * sizeof *x->lanes);
    x->streams = fr_alloc(p->lanes_count * sizeof *x->streams);
    x->choice = FR_NONE;
    for (uint32_t i = 0; i < p->lanes_count; i++) {
        x->lanes[i].waiting = FR_NONE;
        x->streams[i] = &x->lanes[i].stream;
        if (p->lanes[i].rank != x->o.rank || p->lanes[i].kind == FR_LANE_HOST) continue;
        FR_TRY(open_stream(x, &x->lanes[i].stream, (fr_lane_kind)p->lanes[i].kind, err));
        if (p->lanes[i].first_ready) x->choice = i;
    }
    for (int i = 0; i < FR_EXEC_ITEMS && x->choice != FR_NONE; i++)
        FR_TRY(fr_exec_check(x, cudaEventCreateWithFlags(&x->item_end[i], cudaEventDisableTiming), "cudaEventCreate",
                             err));
    return FR_OK;
}

/* Offload by expert: the host reads which experts have tokens. */
static fr_status open_readback(fr_exec *x, fr_error *err) {
    if (x->o.layout->experts != FR_EXP_OFFLOAD || !x->o.layout->slots) return FR_OK;
    const size_t bytes = (size_t)(x->o.model->experts + 1) * sizeof *x->readback_offsets;
    FR_TRY(fr_exec_check(x, cudaStreamCreateWithFlags(&x->readback, cudaStreamNonBlocking), "cudaStreamCreate", err));
    FR_TRY(
        fr_exec_check(x, cudaEventCreateWithFlags(&x->readback_done, cudaEventDisableTiming), "cudaEventCreate", err));
    return fr_exec_check(x, cudaHostAlloc((void **)&x->readback_offsets, bytes, cudaHostAllocDefault), "cudaHostAlloc",
                         err);
}

/* What moves between ops: counters, slots, experts' weights. Collective. */
static fr_status open_moves(fr_exec *x, fr_error *err) {
    const fr_layout *l = x->o.layout;
    const bool asap = l->experts == FR_EXP_ASAP;
    const bool remote = asap || (l->experts == FR_EXP_OFFLOAD && l->ep > 1 && l->gather == FR_GATHER_CE);
    const fr_issue_options io = {.plan = x->o.plan,
                                 .rank = x->o.rank,
                                 .streams = (cudaStream_t *const *)x->streams,
                                 .world = x->o.world,
                                 .transport = x->o.transport,
                                 .layout = l,
                                 .listens = x->choice != FR_NONE,
                                 .slots_of_others = asap};
    const fr_pools_options go = {.plan = x->o.plan,
                                 .model = x->o.model,
                                 .layout = l,
                                 .weights = x->o.weights,
                                 .world = x->o.world,
                                 .transport = x->o.transport,
                                 .rank = x->o.rank,
                                 .pulls = x->o.pulls};
    const fr_links_options lo = {.plan = x->o.plan,
                                 .model = x->o.model,
                                 .layout = l,
                                 .room = &x->rank.room,
                                 .transport = x->o.transport,
                                 .rank = x->o.rank};
    FR_TRY(fr_issue_open(&io, remote, &x->issue, err));
    if (asap)
        FR_TRY(fr_links_open(&lo, &x->rank.links, err));
    else
        FR_TRY(fr_pools_open(&go, &x->rank.pools, err));
    x->rank.issue = x->issue;
    return open_readback(x, err);
}

static fr_status open_slot(fr_exec *x, fr_flight *f, fr_error *err) {
    const fr_device_rank *r = &x->rank;
    const size_t offsets = (size_t)(r->offsets_micros * r->layers) * (size_t)fr_rank_offsets(r);
    cudaEvent_t *events[4] = {&f->begin, &f->entry, &f->answer, &f->end};
    for (int i = 0; i < 4; i++) FR_TRY(fr_exec_check(x, cudaEventCreate(events[i]), "cudaEventCreate", err));
    f->staging_ints = fr_max_i64(fr_batch_room(r), 1);
    FR_TRY(fr_exec_check(
        x, cudaHostAlloc((void **)&f->staging, (size_t)f->staging_ints * sizeof *f->staging, cudaHostAllocDefault),
        "cudaHostAlloc", err));
    f->lane_ends = fr_alloc(x->o.plan->lanes_count * sizeof *f->lane_ends);
    f->lane_used = fr_alloc(x->o.plan->lanes_count * sizeof *f->lane_used);
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (x->lanes[i].stream && x->o.plan->lanes[i].kind != FR_LANE_COMPUTE)
            FR_TRY(fr_exec_check(x, cudaEventCreateWithFlags(&f->lane_ends[i], cudaEventDisableTiming),
                                 "cudaEventCreate", err));
    const size_t logits = (size_t)(r->place.batches * r->most_logits) * 4;
    FR_TRY(fr_exec_check(x, cudaHostAlloc((void **)&f->logits, logits, cudaHostAllocDefault), "cudaHostAlloc", err));
    if (!x->o.counts) return FR_OK;
    f->counts = fr_alloc(offsets * sizeof *f->counts);
    return fr_exec_check(x, cudaHostAlloc((void **)&f->offsets, offsets * 4, cudaHostAllocDefault), "cudaHostAlloc",
                         err);
}

static cudaStream_t any_stream(const fr_exec *x) {
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (x->lanes[i].stream) return x->lanes[i].stream;
    return NULL;
}

static fr_status open_all(fr_exec *x, fr_error *err) {
    FR_TRY(fr_rank_open(&x->o, &x->rank, err));
    fr_world_tell(x->o.world, x->o.rank, "has its buffers and kernels");
    /* Requests come in any number; peers that wait for one another cannot wait for what is compiled meanwhile. */
    if (x->o.varied || (x->o.transport && !x->o.made_up_prefix)) FR_TRY(fr_rank_prepare(&x->rank, err));
    FR_TRY(open_lanes(x, err));
    FR_TRY(open_moves(x, err));
    fr_world_tell(x->o.world, x->o.rank, "has what moves between ranks");
    for (int i = 0; i < FR_EXEC_SLOTS; i++) FR_TRY(open_slot(x, &x->slot[i], err));
    FR_TRY(fr_exec_check(x, cudaEventCreate(&x->anchor), "cudaEventCreate", err));
    return fr_exec_start(x, x->o.opened->ns, err);
}

fr_status fr_exec_open(const fr_exec_options *o, fr_exec **out, fr_error *err) {
    fr_exec *x = fr_alloc(sizeof *x);
    x->o = *o;
    *out = NULL;
    fr_status s = open_all(x, err);
    if (s != FR_OK) {
        x->lost = x->o.plan->ranks > 1; /* others may have mapped some of it: it stays until the process ends */
        fr_exec_close(x);
        return s;
    }
    *out = x;
    return FR_OK;
}

static void close_slot(const fr_exec *x, fr_flight *f) {
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
    const int64_t deadline = fr_monotonic() + SETTLE_NS;
    for (uint32_t i = 0; x->lanes && i < x->o.plan->lanes_count && !x->lost; i++) {
        cudaError_t e = cudaSuccess;
        while (x->lanes[i].stream && (e = cudaStreamQuery(x->lanes[i].stream)) == cudaErrorNotReady &&
               fr_monotonic() < deadline)
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        if (e != cudaSuccess) x->lost = true;
    }
    return !x->lost;
}

void fr_exec_close(fr_exec *x) {
    if (!x) return;
    if (fr_exec_settle(x)) { /* frees would wait for a device that does not answer */
        for (int i = 0; i < FR_EXEC_SLOTS; i++) close_slot(x, &x->slot[i]);
        for (int i = 0; i < FR_EXEC_ITEMS; i++)
            if (x->item_end[i]) cudaEventDestroy(x->item_end[i]);
        if (x->readback) cudaStreamDestroy(x->readback);
        if (x->readback_done) cudaEventDestroy(x->readback_done);
        if (x->readback_offsets) cudaFreeHost(x->readback_offsets);
        for (uint32_t i = 0; x->lanes && i < x->o.plan->lanes_count; i++)
            if (x->lanes[i].stream) cudaStreamDestroy(x->lanes[i].stream);
        if (x->anchor) cudaEventDestroy(x->anchor);
        fr_anchor_close(&x->latest);
    }
    fr_issue_close(x->issue, x->lost);
    fr_pools_close(x->rank.pools, x->lost);
    fr_links_close(x->rank.links, x->lost);
    if (!x->lost) fr_rank_close(&x->rank);
    free(x->lanes);
    free(x->streams);
    free(x);
}

fr_status fr_exec_start(fr_exec *x, int64_t epoch, fr_error *err) {
    FR_TRY(fr_exec_check(x, cudaDeviceSynchronize(), "cudaDeviceSynchronize", err));
    FR_TRY(fr_anchor_take(any_stream(x), &x->latest, err));
    FR_TRY(fr_anchor_rate(x->o.opened, &x->latest, &x->rate, err));
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
    FR_TRY(fr_exec_check(x, cudaDeviceSynchronize(), "cudaDeviceSynchronize", err));
    FR_TRY(fr_anchor_take(any_stream(x), &x->latest, err));
    FR_TRY(fr_exec_check(x, cudaEventElapsedTime(&ms, x->anchor, x->latest.event), "cudaEventElapsedTime", err));
    const double told = (double)x->anchor_ns + x->rate * 1e6 * (double)ms;
    const double half = x->half_ns > x->latest.half_ns ? x->half_ns : x->latest.half_ns;
    *error_ns = fabs(told - (double)(x->latest.ns - x->epoch)) + half;
    *drift_ppm = (1 / x->rate - 1) * 1e6;
    return FR_OK;
}

/* ---- waiting ------------------------------------------------------------------------------------------------------*/

/* The op that the device is at: the first timed one that has not ended. */
static void name_current(const fr_exec *x, const fr_flight *f, char out[48]) {
    snprintf(out, 48, "forward %lld", (long long)f->f->forward);
    for (uint32_t i = 0; f->spans && i < f->count; i++)
        if (!f->ops[i].host && cudaEventQuery(f->ops[i].end) == cudaErrorNotReady) {
            fr_op_id_text(fr_op_id(x->o.plan, f->f, &f->f->ops[f->ops[i].op]), out);
            return;
        }
}

/* Waits until `event` of flight f has come. */
fr_status fr_exec_await(fr_exec *x, fr_flight *f, cudaEvent_t event, fr_error *err) {
    const int64_t deadline = fr_monotonic() + (int64_t)(x->o.timeout_s * 1e9);
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
        if (fr_monotonic() > deadline) {
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

/* Until the flight has ended on all lanes: what other lanes still send may end after compute. */
fr_status fr_exec_await_all(fr_exec *x, fr_flight *f, fr_error *err) {
    FR_TRY(fr_exec_await(x, f, f->end, err));
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (f->lane_used[i]) FR_TRY(fr_exec_await(x, f, f->lane_ends[i], err));
    return FR_OK;
}

/* The same without sleeping, where the device waits for the host. */
fr_status fr_exec_await_spinning(fr_exec *x, fr_flight *f, cudaEvent_t event, fr_error *err) {
    const int64_t until = fr_monotonic() + SPIN_NS;
    cudaError_t e = cudaErrorNotReady;
    while (e == cudaErrorNotReady && fr_monotonic() < until) e = cudaEventQuery(event);
    return e == cudaSuccess ? FR_OK : fr_exec_await(x, f, event, err);
}

/* ---- forwards in --------------------------------------------------------------------------------------------------*/

/* One that is not out, nor the one that was collected last. */
static int free_slot(const fr_exec *x) {
    for (int at = (x->last + 1) % FR_EXEC_SLOTS;; at = (at + 1) % FR_EXEC_SLOTS) {
        bool out = false;
        for (int i = 0; i < x->outs; i++) out = out || x->out[i] == at;
        if (!out) return at;
    }
}

fr_status fr_exec_append(fr_exec *x, const fr_fragment *fragment, const fr_cuts *cuts, const fr_exec_batch *batches,
                         fr_error *err) {
    if (x->outs >= FR_EXEC_FLIGHTS)
        return fr_fail(err, FR_FAILED, "%d forwards are out: collect one first", FR_EXEC_FLIGHTS);
    const int at = free_slot(x);
    fr_flight *f = &x->slot[at];
    f->f = fragment;
    f->count = 0;
    f->has_entry = f->has_answer = f->entered = false;
    f->spans = x->o.spans;
    f->logits_count = 0;
    f->release = fr_exec_now(x);
    x->known = NULL; /* a fragment's memory may be an earlier one's */
    fr_issue_fragment(x->issue, fragment);
    x->out[x->outs++] = x->last = at;
    f->item = FR_NONE;
    fr_status s = x->choice != FR_NONE ? fr_exec_items_append(x, f, cuts, batches, err)
                                       : fr_exec_issue_forward(x, f, cuts, batches, err);
    if (s != FR_OK) x->lost = x->lost || cudaPeekAtLastError() != cudaSuccess;
    return s;
}

/* What the other lanes still do of a forward whose compute has ended. */
static bool lanes_done(const fr_exec *x, const fr_flight *f) {
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++)
        if (f->lane_used[i] && cudaEventQuery(f->lane_ends[i]) == cudaErrorNotReady) return false;
    return true;
}

uint64_t fr_exec_issuing(const fr_exec *x) {
    return x ? atomic_load_explicit(&x->issuing, memory_order_relaxed) : 0;
}

int fr_exec_waits_for(const fr_exec *x) {
    return x ? fr_issue_waits_for(x->issue) : -1;
}

void fr_exec_release(fr_exec *x) {
    fr_issue_release(x->issue);
}

/*
 * Items are chosen by the host, so this stays for a while where there may be some to issue: what waits for a look at
 * the next poll waits longer than a small item takes. Whichever forward has ended first becomes the first one out.
 */
static fr_status poll_items(fr_exec *x, fr_exec_state *state, fr_error *err) {
    const int64_t until = fr_monotonic() + ITEMS_NS;
    do {
        FR_TRY(fr_exec_items_step(x, err));
        for (int i = 0; i < x->outs; i++) {
            fr_flight *f = fr_exec_out(x, i);
            if (f->item == FR_NONE && cudaEventQuery(f->end) != cudaErrorNotReady && lanes_done(x, f)) {
                const int first = x->out[i];
                memmove(x->out + 1, x->out, (size_t)i * sizeof *x->out);
                x->out[0] = first;
                *state = FR_EXEC_DONE;
                return FR_OK;
            }
            if (fr_exec_now(x) - f->release <= (int64_t)(x->o.timeout_s * 1e9)) continue;
            if (f->item == FR_NONE) return fr_exec_await_all(x, f, err);
            char op[48];
            fr_op_id_text(fr_op_id(x->o.plan, f->f, &f->f->ops[f->item]), op);
            return fr_fail(err, FR_FAILED, "rank %d waited %.3g s for what item %s needs (--timeout sets the limit)",
                           x->o.rank, x->o.timeout_s, op);
        }
    } while (fr_monotonic() < until);
    *state = FR_EXEC_RUNNING;
    return FR_OK;
}

fr_status fr_exec_poll(fr_exec *x, fr_exec_state *state, fr_error *err) {
    *state = FR_EXEC_NONE;
    if (x->outs == 0) return FR_OK;
    if (x->choice != FR_NONE) return poll_items(x, state, err);
    fr_flight *f = fr_exec_out(x, 0);
    const cudaError_t e = cudaEventQuery(f->end);
    if (e != cudaSuccess && e != cudaErrorNotReady) return fr_exec_await(x, f, f->end, err);
    const bool done = e == cudaSuccess && lanes_done(x, f);
    if (!done && fr_exec_now(x) - f->release > (int64_t)(x->o.timeout_s * 1e9)) return fr_exec_await_all(x, f, err);
    if (x->o.transport) FR_TRY(fr_transport_check(x->o.transport, err)); /* what ended in vain is no result */
    if (!f->entered) f->entered = e == cudaSuccess || (f->has_entry && cudaEventQuery(f->entry) == cudaSuccess);
    *state = done ? FR_EXEC_DONE : f->entered ? FR_EXEC_ENTERED : FR_EXEC_RUNNING;
    return FR_OK;
}

/* A forward's ops of one rank onto their streams, each once what it waits for is issued; with an event around those
 * that are timed. */
#include "engine/cuda/exec_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SLOW_NS 50000 /* an ordinary launch takes 3 to 10 us; the two clocks agree to some 10 us */

static fr_status next_timed(fr_exec *x, fr_flight *f, uint32_t op, fr_timed **out, fr_error *err) {
    FR_GROW(f->ops, f->cap, f->count + 1);
    fr_timed *t = &f->ops[f->count];
    if (f->count >= f->events) {
        *t = (fr_timed){0};
        FR_TRY(fr_exec_check(x, cudaEventCreate(&t->start), "cudaEventCreate", err));
        FR_TRY(fr_exec_check(x, cudaEventCreate(&t->end), "cudaEventCreate", err));
        f->events++;
    }
    f->count++;
    t->op = op;
    t->marked = t->late = t->slow = t->host = false;
    *out = t;
    return FR_OK;
}

/* Whether an op has nothing to do, which the host knows: its expert has no tokens. */
static bool nothing(const fr_exec *x, const fr_flight *f, const fr_op *op) {
    if (op->late == FR_NONE || x->known != f->f || x->known_layer != op->layer || x->known_micro != op->micro)
        return false;
    const int32_t *at = x->readback_offsets + op->sub;
    return op->sub < x->o.model->experts && at[0] == at[1];
}

/* Which buffer the op reads. */
static const void *read_by(const fr_exec *x, const fr_flight *f, const fr_op *op) {
    const fr_ref *use = fr_op_uses(f->f, op);
    for (int i = 0; i < op->uses; i++)
        if (use[i].use == FR_USE_READ) return x->rank.buffers[use[i].target];
    return NULL;
}

/* What comes from the flight's memory on the host, or goes there; all else is between the rank's buffers. */
static fr_status launch(fr_exec *x, fr_flight *f, const fr_op *op, cudaStream_t stream, fr_error *err) {
    const fr_device_rank *r = &x->rank;
    if (op->kind == FR_OP_UPLOAD) return fr_batch_upload(r, stream, err);
    if (op->kind != FR_OP_DOWNLOAD) return fr_op_launch(&x->rank, x->o.plan, f->f, op, stream, err);
    if (op->sub == 0) return fr_batch_logits(r, op, read_by(x, f, op), f->logits, stream, err);
    const int64_t layers = (int64_t)r->layers * fr_rank_offsets(r);
    f->micros = r->micros;
    if (!x->o.counts) return FR_OK;
    return fr_exec_check(x, fr_batch_bring(f->offsets, r->offsets + r->micro_base * layers, r->micros * layers, stream),
                         "the copy of the counts", err);
}

static fr_status issue_device_op(fr_exec *x, fr_flight *f, uint32_t index, bool skip, fr_error *err) {
    const fr_op *op = &f->f->ops[index];
    fr_exec_lane *l = &x->lanes[op->lane];
    fr_timed *t = NULL;
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
        if (t->marked) FR_TRY(fr_exec_check(x, cudaEventRecord(t->start, l->stream), "cudaEventRecord", err));
    }
    if (works) x->launched[op->kind]++;
    if (works) FR_TRY(launch(x, f, op, l->stream, err));
    if (t) {
        t->host_end = fr_exec_now(x);
        t->slow = !t->marked && t->host_end - begun > SLOW_NS && cudaEventQuery(before) == cudaSuccess;
        FR_TRY(fr_exec_check(x, cudaEventRecord(t->end, l->stream), "cudaEventRecord", err));
        l->last = t->end;
    }
    if (works && x->o.check_ops) FR_TRY(fr_exec_check(x, cudaStreamSynchronize(l->stream), "the op", err));
    return fr_issue_after(x->issue, f->f, op, err);
}

/* The host waits until the sort has ended and learns how many tokens each expert has. It spins: the device stands still
 * until the copies that it then issues arrive. */
static fr_status read_back(fr_exec *x, fr_flight *f, const fr_op *op, fr_error *err) {
    const fr_device_rank *r = &x->rank;
    const int64_t layer = (int64_t)op->micro * r->layers + op->layer - r->shard.first_layer;
    const size_t count = (size_t)r->model->experts + 1;
    const int32_t *offsets = r->offsets + layer * fr_rank_offsets(r);
    const fr_ref *waits = fr_op_waits(f->f, op);
    for (int i = 0; i < op->waits; i++) {
        const cudaEvent_t mark = fr_issue_mark(x->issue, waits[i].target, waits[i].value);
        if (mark) FR_TRY(fr_exec_check(x, cudaStreamWaitEvent(x->readback, mark, 0), "cudaStreamWaitEvent", err));
    }
    FR_TRY(fr_exec_check(x,
                         cudaMemcpyAsync(x->readback_offsets, offsets, count * 4, cudaMemcpyDeviceToHost, x->readback),
                         "cudaMemcpyAsync of the counts", err));
    FR_TRY(fr_exec_check(x, cudaEventRecord(x->readback_done, x->readback), "cudaEventRecord", err));
    FR_TRY(fr_exec_await_spinning(x, f, x->readback_done, err));
    x->known = f->f;
    x->known_layer = op->layer;
    x->known_micro = op->micro;
    return FR_OK;
}

static fr_status issue_host_op(fr_exec *x, fr_flight *f, uint32_t index, int64_t since, fr_error *err) {
    const fr_op *op = &f->f->ops[index];
    if (op->kind != FR_OP_LAUNCH && op->kind != FR_OP_FENCE && op->kind != FR_OP_READBACK)
        return fr_fail(err, FR_FAILED, "host ops of kind %s are not executed yet", fr_op_name(op->kind));
    if (op->kind == FR_OP_READBACK) FR_TRY(read_back(x, f, op, err));
    FR_TRY(fr_issue_after(x->issue, f->f, op, err));
    if (!f->spans || op->kind == FR_OP_FENCE) return FR_OK;
    fr_timed *t;
    FR_TRY(next_timed(x, f, index, &t, err));
    t->host = true;
    t->host_start = since;
    t->host_end = fr_exec_now(x);
    return FR_OK;
}

/* Names the op in whatever went wrong with it. */
static fr_status named(const fr_exec *x, const fr_flight *f, const fr_op *op, fr_status s, fr_error *err) {
    char id[48];
    fr_error inner = err ? *err : (fr_error){0};
    fr_op_id_text(fr_op_id(x->o.plan, f->f, op), id);
    return fr_fail(err, s, "rank %d, op %s (%s): %.800s", x->o.rank, id, fr_op_name(op->kind), inner.text);
}

static fr_status issue_marks(fr_exec *x, fr_flight *f, const fr_op *op, fr_error *err) {
    const cudaStream_t stream = x->lanes[op->lane].stream;
    if (op->flags & FR_OP_ENTRY) {
        f->has_entry = true;
        FR_TRY(fr_exec_check(x, cudaEventRecord(f->entry, stream), "cudaEventRecord", err));
    }
    if (!(op->flags & FR_OP_ANSWER)) return FR_OK;
    f->has_answer = true;
    return fr_exec_check(x, cudaEventRecord(f->answer, stream), "cudaEventRecord", err);
}

/* One op if it may be issued now; *issued says whether it was. */
static fr_status issue_one(fr_exec *x, fr_flight *f, uint32_t index, int64_t *since, bool *issued, fr_error *err) {
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

fr_status fr_exec_issue_op(fr_exec *x, fr_flight *f, uint32_t index, fr_error *err) {
    int64_t since = 0;
    bool issued;
    char why[160];
    FR_TRY(issue_one(x, f, index, &since, &issued, err));
    if (issued) return FR_OK;
    fr_issue_why(x->issue, f->f, &f->f->ops[index], why, sizeof why);
    fr_fail(err, FR_FAILED, "waits for %s", why);
    return named(x, f, &f->f->ops[index], FR_FAILED, err);
}

/* Lanes that stand at an op go on, as far as ops emitted up to `now` let them. */
static fr_status go_on(fr_exec *x, fr_flight *f, uint32_t now, uint32_t *standing, int64_t *since, fr_error *err) {
    for (bool more = *standing > 0; more;) {
        more = false;
        for (uint32_t i = 0; i<x->o.plan->lanes_count && * standing> 0; i++) {
            fr_exec_lane *l = &x->lanes[i];
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

static fr_status all_issued(const fr_exec *x, const fr_flight *f, fr_error *err) {
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
static fr_status issue_all(fr_exec *x, fr_flight *f, fr_error *err) {
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
static void note_runs(const fr_device_rank *r, fr_flight *f) {
    f->runs_count = 0;
    f->logits_count = r->logits;
    FR_GROW(f->runs, f->runs_cap, 2 * (uint32_t)r->micros);
    for (int m = 0; m < r->micros; m++) {
        const fr_batch_tables *t = &r->micro[m];
        if (t->rows_all) f->runs[f->runs_count++] = (fr_exec_run){t->all_at, (int64_t)t->rows_all * r->model->vocab};
        if (t->picks) f->runs[f->runs_count++] = (fr_exec_run){t->picks_at, t->picks};
    }
}

fr_status fr_exec_issue_forward(fr_exec *x, fr_flight *f, const fr_cuts *cuts, const fr_exec_batch *batches,
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
        FR_TRY(fr_exec_check(x, cudaHostAlloc((void **)&f->staging, (size_t)f->staging_ints * 4, cudaHostAllocDefault),
                             "cudaHostAlloc", err));
    }
    FR_TRY(fr_exec_mark_begin(x, f, stream, err));
    FR_TRY(fr_batch_fill_staging(&x->rank, cuts, batches, f->staging, stream, err));
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) x->lanes[i].last = NULL; /* the mark stands between */
    FR_TRY(issue_all(x, f, err));
    return fr_exec_mark_end(x, f, stream, err);
}

fr_status fr_exec_mark_begin(fr_exec *x, fr_flight *f, cudaStream_t stream, fr_error *err) {
    f->begun = ++x->begins;
    return fr_exec_check(x, cudaEventRecord(f->begin, stream), "cudaEventRecord", err);
}

fr_status fr_exec_mark_end(fr_exec *x, fr_flight *f, cudaStream_t stream, fr_error *err) {
    for (uint32_t i = 0; i < x->o.plan->lanes_count; i++) f->lane_used[i] = false;
    for (uint32_t i = 0; i < f->f->heads_count; i++) {
        const uint32_t lane = f->f->heads[i].lane;
        f->lane_used[lane] = x->lanes[lane].touched && f->lane_ends[lane];
        if (f->lane_used[lane])
            FR_TRY(
                fr_exec_check(x, cudaEventRecord(f->lane_ends[lane], x->lanes[lane].stream), "cudaEventRecord", err));
    }
    return fr_exec_check(x, cudaEventRecord(f->end, stream), "cudaEventRecord", err);
}

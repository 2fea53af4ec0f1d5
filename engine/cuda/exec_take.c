/* What a forward that has ended measured: spans, counts, its record. */
#include "engine/cuda/exec_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static fr_status since_begin(fr_exec *x, const fr_flight *f, cudaEvent_t event, int64_t *ns, fr_error *err) {
    float ms = 0;
    FR_TRY(fr_exec_check(x, cudaEventElapsedTime(&ms, f->begin, event), "cudaEventElapsedTime", err));
    *ns = f->begin_ns + llround(x->rate * 1e6 * (double)ms);
    return FR_OK;
}

static void add_span(fr_exec *x, const fr_flight *f, const fr_timed *t, int64_t start, int64_t end, uint64_t cause,
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
static fr_status take_spans(fr_exec *x, fr_flight *f, fr_timeline *out, int64_t *busy, int64_t *late, fr_error *err) {
    int64_t *ends = fr_alloc(x->o.plan->lanes_count * sizeof *ends);
    uint64_t *ids = fr_alloc(x->o.plan->lanes_count * sizeof *ids);
    fr_status s = FR_OK;
    *busy = *late = 0;
    for (uint32_t i = 0; i < f->count && s == FR_OK; i++) {
        const fr_timed *t = &f->ops[i];
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

/* From the anchor, which with items of several forwards in turn may have come later. */
static fr_status find_begin(fr_exec *x, fr_flight *f, fr_error *err) {
    const bool later = f->begun > x->anchored;
    float ms = 0;
    FR_TRY(fr_exec_check(x, cudaEventElapsedTime(&ms, later ? x->anchor : f->begin, later ? f->begin : x->anchor),
                         "cudaEventElapsedTime", err));
    f->begin_ns = x->anchor_ns + (later ? 1 : -1) * llround(x->rate * 1e6 * (double)ms);
    return FR_OK;
}

/* Times are taken from the latest begin: a float of ms over a long run would lose the microseconds. */
static void move_anchor(fr_exec *x, fr_flight *f) {
    const cudaEvent_t swap = x->anchor;
    if (f->begun <= x->anchored) return;
    x->anchor = f->begin;
    x->anchor_ns = f->begin_ns;
    x->anchored = f->begun;
    f->begin = swap;
}

fr_status fr_exec_collect(fr_exec *x, fr_timeline *spans, fr_exec_done *out, fr_error *err) {
    if (x->outs == 0) return fr_fail(err, FR_FAILED, "no forward is out");
    fr_flight *f = fr_exec_out(x, 0);
    int64_t end = 0, answer = 0, busy = 0, late = 0;
    FR_TRY(fr_exec_await_all(x, f, err));
    FR_TRY(find_begin(x, f, err));
    FR_TRY(since_begin(x, f, f->end, &end, err));
    answer = end;
    if (f->has_answer) FR_TRY(since_begin(x, f, f->answer, &answer, err));
    FR_TRY(take_spans(x, f, spans, &busy, &late, err));
    /* Items of several forwards in turn: the time that they share counts once. */
    if (!f->spans) busy = fr_max_i64(end - fr_max_i64(f->begin_ns, x->last_end), 0);
    move_anchor(x, f);
    if (x->o.counts) fr_rank_counts(&x->rank, f->offsets, f->micros, f->counts);
    const int64_t since = fr_max_i64(f->release, x->last_end); /* as the simulator's records: fr_forward_record.parts */
    x->last_end = fr_max_i64(x->last_end, end);
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
    memmove(x->out, x->out + 1, (size_t)--x->outs * sizeof *x->out);
    return FR_OK;
}

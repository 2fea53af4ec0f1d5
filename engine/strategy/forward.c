/* One forward of a unit: its batches, stage by stage and layer by layer, as a fragment of the plan. */
#include "engine/strategy/planner.h"

#include <stdlib.h>
#include <string.h>

static void emit_rank_layer(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    if (!w->first_layer) fr_host_begin(w, r); /* else the stage's entry has begun it */
    p->part->enter(w, r);
    if (p->layout.tp > 1)
        fr_attention_tp(w, r);
    else
        fr_attention_dp(w, r);
    if (fr_model_is_moe_layer(&p->model, w->layer)) {
        fr_emit_norm(w, r, 1);
        p->part->experts(w, r);
    } else {
        fr_dense_layer(w, r);
    }
    p->part->leave(w, r);
    fr_host_end(w, r);
    if (p->part->after) p->part->after(w, r);
}

static void emit_layer(fr_walk *w, int layer) {
    fr_planner *p = w->p;
    w->layer = layer;
    w->first_layer = layer == w->first;
    if (p->layout.overlap == FR_OVERLAP_TBO) {
        fr_layer_tbo(w);
        return;
    }
    if (fr_model_is_moe_layer(&p->model, layer)) p->part->prepare(w, 0);
    for (int i = 0; i < p->unit_ranks; i++) emit_rank_layer(w, fr_stage_rank(p, w->unit, w->stage, i));
}

/* The last compute op emitted for a rank so far. */
static void flag_last(fr_walk *w, fr_rank *r, int flag) {
    uint32_t head = w->f->head_of[r->lane[FR_LANE_COMPUTE]];
    if (head) {
        fr_op *op = &w->f->ops[w->f->heads[head - 1].last];
        op->flags = (uint8_t)(op->flags | flag);
    }
}

static void flag_entry(fr_walk *w) {
    for (int i = 0; i < w->p->unit_ranks; i++) flag_last(w, fr_stage_rank(w->p, w->unit, w->stage, i), FR_OP_ENTRY);
}

/* The layer after which the next forward is wanted, the one before the last: what the host does for a forward (some 0.5
 * ms: batch, plan, tables), and the first gather where weights travel a layer ahead, hide in the last layer. */
static int entry_layer(const fr_walk *w) {
    return w->end - w->first >= 2 ? w->end - 2 : w->end - 1;
}

static void enter_stage(fr_walk *w, fr_rank *r) {
    w->layer = FR_NO_LAYER;
    if (w->half == 0) fr_host_begin(w, r);
    if (w->micro == 0) fr_emit_upload(w, r);
    r->residual = r->normed = false;
    if (w->stage == 0)
        fr_emit_embed(w, r);
    else
        fr_stage_receive(w, r);
}

static void leave_stage(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    w->layer = FR_NO_LAYER;
    if (w->half == 0) fr_host_begin(w, r);
    fr_tbo_flush(w, r);
    if (w->stage < p->stages - 1) {
        fr_add_residual(w, r);
        fr_stage_send(w, r);
    } else {
        fr_emit_head(w, r);
        if (p->stages > 1) fr_hidden_use(w, r, FR_USE_FREE);
    }
    if (w->micro == w->micros - 1) fr_emit_counts(w, r, w->micros);
    if (w->half == 1 || p->layout.overlap != FR_OVERLAP_TBO) fr_host_end(w, r);
}

static void each_rank(fr_walk *w, void (*emit)(fr_walk *, fr_rank *)) {
    int micro = w->micro, halves = w->p->layout.overlap == FR_OVERLAP_TBO ? 2 : 1;
    for (int i = 0; i < w->p->unit_ranks; i++)
        for (w->half = 0; w->half < halves; w->half++) {
            w->micro = micro + w->half;
            emit(w, fr_stage_rank(w->p, w->unit, w->stage, i));
        }
    w->half = 0;
    w->micro = micro;
}

/* Layers kept out of repetition at the end of a stage: the last has nothing to fetch ahead, the one before it carries
 * the entry flag. */
#define TAIL_LAYERS 2

static int repeat_layers(fr_walk *w, int layer) {
    fr_planner *p = w->p;
    int period = p->model.window && p->model.window_period > 1 ? p->model.window_period : 1;
    int start = w->first > p->model.dense_layers ? w->first : p->model.dense_layers;
    int times = (w->end - TAIL_LAYERS - layer) / period - 2;
    if (!p->even || layer < start + 2 || times < 1) return 0;
    fr_mark a = {0}, b = {0};
    fr_mark_take(p, w->f, &a);
    for (int i = 0; i < period; i++) emit_layer(w, layer + i);
    fr_mark_take(p, w->f, &b);
    for (int i = 0; i < period; i++) emit_layer(w, layer + period + i);
    bool repeated = fr_repeat(p, w->f, &a, &b, period, times);
    fr_mark_free(&a);
    fr_mark_free(&b);
    return period * (2 + (repeated ? times : 0));
}

void fr_walk_stage(fr_walk *w) {
    fr_planner *p = w->p;
    fr_layout_stage_layers(&p->layout, &p->model, w->stage, &w->first, &w->end);
    bool last = w->micro + (p->layout.overlap == FR_OVERLAP_TBO ? 2 : 1) >= w->micros;
    int entry = entry_layer(w);
    each_rank(w, enter_stage);
    for (int layer = w->first; layer < w->end;) {
        int done = repeat_layers(w, layer);
        if (done == 0) {
            emit_layer(w, layer);
            done = 1;
        }
        layer += done;
        if (last && w->stage == 0 && layer == entry + 1 && entry != w->end - 1) flag_entry(w);
    }
    each_rank(w, leave_stage);
    if (last && w->stage == 0 && entry == w->end - 1) flag_entry(w);
}

static bool equal_batches(const fr_batch *a, const fr_batch *b) {
    if (a->count != b->count) return false;
    for (int32_t i = 0; i < a->count; i++) {
        const fr_sequence *x = &a->sequences[i], *y = &b->sequences[i];
        if (x->queries != y->queries || x->prefix != y->prefix || x->candidates != y->candidates) return false;
    }
    return true;
}

static fr_status check_batches(const fr_planner *p, const fr_batch *batches, fr_error *err) {
    for (int s = 0; s < p->slots; s++) {
        int64_t tokens = 0;
        for (int32_t i = 0; i < batches[s].count; i++) {
            const fr_sequence *q = &batches[s].sequences[i];
            if (q->queries < 1 || q->prefix < 0 || q->candidates < -1)
                return fr_fail(err, FR_BAD_INPUT, "batch %d, sequence %d: %d new tokens after %d, %d candidates", s, i,
                               q->queries, q->prefix, q->candidates);
            tokens += q->queries;
        }
        if (tokens > p->load.tokens)
            return fr_fail(err, FR_FAILED, "batch %d has %lld tokens, the plan's buffers hold %lld", s,
                           (long long)tokens, (long long)p->load.tokens);
        if (p->folded && !equal_batches(&batches[0], &batches[s]))
            return fr_fail(err, FR_FAILED, "batch %d differs from batch 0: a folded plan needs equal batches", s);
    }
    return FR_OK;
}

static fr_status check_works(const fr_planner *p, int micros, fr_error *err) {
    const int64_t most = fr_layout_most_tokens(&p->layout, &p->load);
    for (int i = 0; i < micros * p->slots; i++) {
        if (p->folded && i % p->slots) continue;
        if (p->works[i].tokens > most)
            return fr_fail(err, FR_FAILED, "a micro-batch of %lld tokens, the plan's buffers hold %lld",
                           (long long)p->works[i].tokens, (long long)most);
    }
    return FR_OK;
}

fr_status fr_planner_forward(fr_planner *p, int unit, const fr_batch *batches, fr_fragment **out, fr_error *err) {
    *out = NULL;
    if (unit < 0 || unit >= p->units) return fr_fail(err, FR_BAD_INPUT, "unit %d: the plan has %d", unit, p->units);
    FR_TRY(check_batches(p, batches, err));
    fr_walk w = {.p = p, .unit = unit};
    FR_TRY(fr_forward_works(p, batches, &w.micros, err));
    for (int m = 0; p->folded && p->sliced && m < w.micros; m++)
        if (p->works[m * p->slots].tokens % p->layout.tp)
            return fr_fail(err, FR_FAILED, "%lld tokens do not divide by tp = %d: a folded plan needs equal ranks",
                           (long long)p->works[m * p->slots].tokens, p->layout.tp);
    FR_TRY(check_works(p, w.micros, err));
    w.works = p->works;
    w.f = fr_fragment_new(p->plan, unit);
    memset(p->intern, 0, sizeof p->intern);
    p->moe_for[0] = p->moe_for[1] = -1;
    if (p->asap) {
        fr_asap_forward(&w);
    } else {
        int step = p->layout.overlap == FR_OVERLAP_TBO ? 2 : 1;
        for (w.micro = 0; w.micro < w.micros; w.micro += step)
            for (w.stage = 0; w.stage < p->stages; w.stage++) {
                p->moe_for[0] = p->moe_for[1] = -1;
                fr_walk_stage(&w);
            }
    }
    *out = w.f;
    return FR_OK;
}

/* What comes in: records of forwards and requests, counts, logits; and the result. */
#include "engine/account.h"
#include "engine/conduct/conduct_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Between two copies of a lane that nothing separates: an engine takes some us to begin the next. */
#define BACK_TO_BACK_NS 20000

/* ---- one forward --------------------------------------------------------------------------------------------------*/

static void record_answer(fr_conductor *c, const fr_part *part, int queue, int64_t started, int64_t answered) {
    fr_conducted *out = c->out;
    FR_GROW(c->ttft, c->ttft_cap, c->ttft_count + 1);
    c->ttft[c->ttft_count++] = (double)(answered - part->arrival) * 1e-9;
    FR_GROW(out->requests, out->requests_cap, out->requests_count + 1);
    out->requests[out->requests_count++] = fr_request_answered(part, queue, started, answered);
}

static void add_counts(fr_conductor *c, const fr_flight *f, int64_t *to) {
    const fr_unit *u = &c->unit[f->job->unit];
    const size_t experts = (size_t)c->setup->model.experts;
    for (int r = 0; r < u->ranks_count; r++) {
        const fr_rank_done *d = &f->done[r];
        if (!d->counts) continue;
        int64_t *at = to + (size_t)d->first_layer * experts;
        for (size_t i = 0; i < (size_t)d->layers * experts; i++) at[i] += d->counts[i];
    }
}

/* ---- logits -------------------------------------------------------------------------------------------------------*/

/* Where sequence i's logits are in its batch's: those of the whole vocabulary come first, then the candidates'. */
static const float *logits_of(const fr_conductor *c, const fr_flight *f, int slot, int32_t i, int64_t *count) {
    const fr_job_batch *b = &f->job->batches[slot];
    const int64_t vocab = c->setup->model.vocab;
    int64_t all = 0, before_all = 0, before_some = 0;
    for (int32_t k = 0; k < b->count; k++) {
        const int32_t n = b->sequences[k].candidates;
        all += n < 0 ? vocab : 0;
        if (k >= i) continue;
        before_all += n < 0 ? vocab : 0;
        before_some += n > 0 ? n : 0;
    }
    const int32_t n = b->sequences[i].candidates;
    *count = n < 0 ? vocab : n;
    return f->logits[slot] ? f->logits[slot] + (n < 0 ? before_all : all + before_some) : NULL;
}

static void keep_logits(fr_conductor *c, const fr_flight *f, int slot) {
    fr_conducted *out = c->out;
    for (int32_t i = 0; i < f->job->batches[slot].count; i++) {
        int64_t count;
        const float *from = logits_of(c, f, slot, i, &count);
        if (!from || count == 0) continue;
        if (out->logits_count + count > out->logits_cap) {
            out->logits_cap = 2 * (out->logits_count + count);
            out->logits = fr_realloc(out->logits, (size_t)out->logits_cap, sizeof *out->logits);
        }
        memcpy(out->logits + out->logits_count, from, (size_t)count * sizeof *from);
        FR_GROW(out->logit_rows, out->logit_rows_cap, out->logit_rows_count + 1);
        out->logit_rows[out->logit_rows_count++] =
            (fr_logit_row){f->job->number, f->job->unit, slot, i, out->logits_count, count};
        out->logits_count += count;
    }
}

static void answer_prompts(fr_conductor *c, const fr_flight *f, int slot) {
    const fr_sched_batch *b = f->tickets[slot];
    for (int i = 0; i < b->count; i++) {
        int64_t count;
        const float *from = b->sequences[i].candidates ? logits_of(c, f, slot, i, &count) : NULL;
        if (from) fr_prompt_answer(&c->o->prompts->prompts[b->parts[i].request], from, c->setup->model.vocab);
    }
}

static int compare_rows(const void *a, const void *b) {
    const fr_logit_row *x = a, *y = b;
    if (x->forward != y->forward) return x->forward < y->forward ? -1 : 1;
    if (x->unit != y->unit) return x->unit - y->unit;
    if (x->slot != y->slot) return x->slot - y->slot;
    return x->sequence - y->sequence;
}

uint64_t fr_conducted_hash(const fr_conducted *o) {
    uint64_t h = FR_HASH_SEED;
    for (uint32_t i = 0; i < o->logit_rows_count; i++)
        h = fr_hash(o->logits + o->logit_rows[i].at, (size_t)o->logit_rows[i].count * sizeof *o->logits, h);
    return h;
}

/* ---- records ------------------------------------------------------------------------------------------------------*/

static void record_slot(fr_conductor *c, fr_flight *f, int slot, fr_forward_record *rec) {
    const fr_job_batch *b = &f->job->batches[slot];
    const fr_sched_batch *t = f->tickets ? f->tickets[slot] : NULL;
    const int64_t answered = f->answers[slot] ? f->answers[slot] : rec->end;
    if (t) {
        rec->tokens += t->tokens;
        rec->cached += t->cached;
        for (int i = 0; i < t->count; i++)
            if (t->parts[i].last) record_answer(c, &t->parts[i], t->queue, f->given, answered);
        if (c->o->prompts) answer_prompts(c, f, slot);
    }
    for (int32_t i = 0; i < b->count && !f->tickets; i++) {
        rec->tokens += b->sequences[i].queries;
        rec->cached += b->sequences[i].prefix;
        FR_GROW(c->ttft, c->ttft_cap, c->ttft_count + 1);
        c->ttft[c->ttft_count++] = (double)(answered - f->given) * 1e-9;
    }
    if (c->o->logits && !f->tickets) keep_logits(c, f, slot);
}

/* Without spans: the device worked, or it did not. */
static void coarse_parts(const fr_conductor *c, const fr_flight *f, int last, fr_forward_record *rec) {
    const int64_t since = fr_max_i64(f->given, c->unit[rec->unit].last_end);
    const int64_t elapsed = fr_max_i64(rec->end - since, 0), busy = fr_min_i64(f->done[last].busy, elapsed);
    rec->parts = (fr_parts){.elapsed = elapsed, .compute = busy, .idle = elapsed - busy};
}

/* With what released each op, so that gaps have a reason. */
static void add_spans(fr_conductor *c, fr_flight *f) {
    const fr_unit *u = &c->unit[f->job->unit];
    fr_timeline **by_rank = fr_alloc((size_t)c->ranks * sizeof(*by_rank));
    for (int r = 0; r < u->ranks_count; r++) by_rank[u->ranks[r]] = &f->spans[r];
    fr_causes_forward(c->causes, f->job->fragment, by_rank);
    for (int r = 0; r < u->ranks_count; r++)
        for (uint32_t i = 0; i < f->spans[r].count; i++) fr_timeline_add(&c->out->spans, &f->spans[r].spans[i]);
    free(by_rank);
}

void fr_conduct_record(fr_conductor *c, fr_flight *f) {
    fr_unit *u = &c->unit[f->job->unit];
    const fr_fragment *fragment = f->job->fragment;
    int last = 0;
    for (int r = 1; r < u->ranks_count; r++)
        if (f->done[r].end > f->done[last].end) last = r;
    fr_forward_record rec = {.forward = fragment->forward,
                             .unit = f->job->unit,
                             .release = f->given,
                             .start = f->given,
                             .end = f->done[last].end,
                             .last_rank = u->ranks[last]};
    if (c->fit) add_counts(c, f, c->fit);
    if (!c->timed) {
        u->last_end = rec.end;
        return;
    }
    for (uint32_t i = 0; i < fragment->ops_count; i++) rec.flops += fr_op_shape(fragment, &fragment->ops[i])->flops;
    for (int s = 0; s < c->slots; s++) record_slot(c, f, s, &rec);
    coarse_parts(c, f, last, &rec);
    rec.low = rec.high = rec.end - rec.start;
    for (int r = 0; r < u->ranks_count; r++) {
        c->busy[u->ranks[r]] += f->done[r].busy;
        c->out->late_ns += f->done[r].late;
    }
    if (c->causes) add_spans(c, f);
    add_counts(c, f, c->out->counts);
    fr_fragment_traffic(fr_planner_plan(c->planner), fragment, c->traffic);
    FR_GROW(c->out->forwards, c->out->forwards_cap, c->out->forwards_count + 1);
    c->out->forwards[c->out->forwards_count++] = rec;
    c->tokens += rec.tokens;
    c->cached += rec.cached;
    c->flops += rec.flops;
    c->service += (double)(rec.end - rec.start);
    u->last_end = fr_max_i64(u->last_end, rec.end);
    c->last_end = fr_max_i64(c->last_end, rec.end);
}

/* ---- the result ---------------------------------------------------------------------------------------------------*/

static void fill_classes(fr_conductor *c, fr_result *out) {
    const fr_timeline *t = &c->out->spans;
    for (uint32_t i = 0; i < t->count; i++)
        out->class_ns[fr_op_class_of((fr_op_kind)t->spans[i].kind)] += t->spans[i].end - t->spans[i].start;
    out->ops_played = t->count;
    for (int r = 0; r < c->ranks; r++) out->provenance.ns[FR_FROM_MEASURED] += c->busy[r];
}

/* Of the rank that moves most over links; host copies of the rank that has most of them. As the simulator's driver. */
static void fill_traffic(const fr_conductor *c, fr_result *out) {
    const fr_traffic *most = c->traffic;
    const int64_t forwards = c->o->requests ? 1 : fr_max_i64(c->setup->experiment.forwards, 1);
    int64_t host = 0;
    for (int r = 0; r < c->ranks; r++) {
        const fr_traffic *t = &c->traffic[r];
        if (t->sent + t->received > most->sent + most->received) most = t;
        host = fr_max_i64(host, t->host);
    }
    out->sent_bytes = most->sent / forwards;
    out->received_bytes = most->received / forwards;
    out->host_bytes = host / forwards;
}

/* From `first` on, when the clock had run for a while before anything was to do. */
static void fill_parts(fr_conductor *c, int64_t first) {
    fr_conducted *o = c->out;
    if (c->causes) {
        fr_account_timeline(c->plan, &o->spans, BACK_TO_BACK_NS, o->forwards, o->forwards_count, o->parts);
        for (int r = 0; r < c->ranks && first > 0; r++) {
            const int64_t cut = fr_min_i64(first, o->parts[r].idle);
            o->parts[r].idle -= cut;
            o->parts[r].elapsed -= cut;
        }
        return;
    }
    for (int r = 0; r < c->ranks; r++) {
        const int64_t elapsed = fr_max_i64(c->last_end - first, c->busy[r]);
        o->parts[r] = (fr_parts){.elapsed = elapsed, .compute = c->busy[r], .idle = elapsed - c->busy[r]};
    }
}

static int last_rank(const fr_conductor *c) {
    const fr_conducted *o = c->out;
    int last = 0;
    int64_t latest = -1;
    for (uint32_t i = 0; i < o->forwards_count; i++)
        if (o->forwards[i].end > latest) {
            latest = o->forwards[i].end;
            last = o->forwards[i].last_rank;
        }
    return last;
}

void fr_conduct_result(fr_conductor *c) {
    const fr_setup *s = c->setup;
    const fr_experiment *e = &s->experiment;
    const fr_machine *m = &s->machine;
    const bool batch = !c->o->requests;
    const int64_t forwards = c->out->forwards_count;
    if (forwards == 0 || !c->place) return;
    const int64_t first = batch || c->o->requests_count == 0 || e->offline ? 0 : c->o->requests[0].arrival;
    const int64_t elapsed = c->last_end - first, each = fr_max_i64(forwards / c->units, 1);
    const double seconds = (double)elapsed * 1e-9, million = (double)c->tokens * 1e-6, gpus = c->ranks;
    const double forward = batch ? seconds / (double)each : c->service * 1e-9 / (double)forwards;
    fr_result *out = &c->out->result;
    fill_parts(c, first);
    *out = (fr_result){.gpus = c->ranks,
                       .stage_ranks = fr_layout_stage_ranks(&e->layout),
                       .requests = batch ? c->ttft_count : c->out->requests_count,
                       .forwards = forwards,
                       .tokens = c->tokens,
                       .cached_tokens = c->cached,
                       .elapsed_ns = elapsed,
                       .forward_s = forward,
                       .single_forward_s = NAN,
                       .parts = c->out->parts[last_rank(c)],
                       .units_forwards = batch ? each : 0,
                       .tokens_per_s = (double)c->tokens / seconds,
                       .tokens_per_s_per_gpu = (double)c->tokens / seconds / gpus,
                       .mfu = c->flops / (seconds * gpus * m->peak_flops[e->layout.precision]),
                       .flops = c->flops,
                       .forward_low_s = forward,
                       .forward_high_s = forward,
                       .idle_ranks = c->deal.idle,
                       .ttft_s = fr_quantiles_of(c->ttft, c->ttft_count),
                       .memory = s->memory,
                       .fits = true,
                       .solves = -1,
                       .clock_mhz = NAN,
                       .price_per_mtoken =
                           m->price_per_gpu_hour > 0 ? seconds * gpus / 3600 * m->price_per_gpu_hour / million : NAN,
                       .joules_per_mtoken = NAN};
    fill_traffic(c, out);
    fill_classes(c, out);
    fr_timeline_sort(&c->out->spans);
    if (c->out->logit_rows_count)
        qsort(c->out->logit_rows, c->out->logit_rows_count, sizeof *c->out->logit_rows, compare_rows);
}

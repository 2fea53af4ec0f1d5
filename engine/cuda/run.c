#include "engine/cuda/run.h"

#include "engine/cuda/exec.h"
#include "engine/sched/sched.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOOKAHEAD = 2 };  /* forwards out in batch mode: as the simulator's driver */
enum { FIT_ROUNDS = 4 }; /* corrections of the injected router bias */
#define FIT_TOKENS 4096  /* tokens of a forward that measures routing: 256 choices of each of 128 experts, k = 8 */
#define REST_S     1.0   /* burst: clocks and temperature after a second of rest */
#define NAP_NS     20000 /* longest sleep while a forward is out or an arrival is near */

typedef struct {
    fr_fragment *fragment;
    const fr_sched_batch *ticket; /* trace mode */
    int64_t given;
} flight;

typedef struct {
    const fr_setup *setup;
    const fr_run_options *o;
    fr_run_output *out;
    fr_error *err;
    int layers;
    fr_weights *weights;
    fr_planner *planner;
    fr_exec *exec;
    fr_sched *sched;
    flight flights[FR_EXEC_FLIGHTS];
    int64_t given, taken; /* forwards */
    bool timed;           /* what is collected counts */
    /* the batch of batch mode, and buffers for tokens */
    fr_sequence *sequences;
    fr_batch batch;
    int32_t *ids, *candidates;
    int64_t *owners;
    uint32_t ids_cap, candidates_cap, owners_cap;
    double *ttft;
    uint32_t ttft_count, ttft_cap;
    int64_t last_end, last_answer, tokens, cached, busy;
    double flops, service;
} run;

/* ---- tokens -------------------------------------------------------------------------------------------------------*/

/* A token id of a request, the same in every run: splitmix64 of who and where. */
static int32_t token(uint64_t who, uint64_t where, int32_t vocab) {
    uint64_t z = who * 0x9e3779b97f4a7c15ull + where * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (int32_t)((z ^ (z >> 31)) % (uint64_t)vocab);
}

/* Ids and candidates of a batch's sequences, from the prompts or made up; `parts` names the requests (NULL: `salt`). */
static void fill_tokens(run *r, const fr_batch *b, const fr_part *parts, int64_t salt) {
    const int32_t vocab = r->setup->model.vocab;
    size_t tokens = 0, picks = 0;
    for (int32_t i = 0; i < b->count; i++) {
        tokens += (size_t)b->sequences[i].queries;
        picks += b->sequences[i].candidates > 0 ? (size_t)b->sequences[i].candidates : 0;
    }
    FR_GROW(r->ids, r->ids_cap, tokens + 1);
    FR_GROW(r->candidates, r->candidates_cap, picks + 1);
    int32_t *id = r->ids, *pick = r->candidates;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        const fr_prompt *p = parts && r->o->prompts ? &r->o->prompts->prompts[parts[i].request] : NULL;
        const uint64_t who =
            parts ? (uint64_t)parts[i].request : (uint64_t)(salt * b->count + i) + r->setup->experiment.seed;
        for (int32_t k = 0; k < s->queries; k++)
            *id++ = p ? p->ids[s->prefix + k] : token(who, (uint64_t)(s->prefix + k), vocab);
        for (int32_t k = 0; k < s->candidates; k++) *pick++ = p ? p->candidates[k] : token(~who, (uint64_t)k, vocab);
    }
}

/* ---- forwards in and out ------------------------------------------------------------------------------------------*/

/* Before the KV cache runs full: takes back what handles hold that nobody names any more. */
static void reclaim(run *r, int64_t tokens) {
    const int32_t handles = fr_exec_kv_handles(r->exec);
    if (fr_exec_kv_available(r->exec) >= tokens) return;
    for (int32_t h = 0; h < handles; h++)
        if (!fr_sched_handle_live(r->sched, 0, h)) fr_exec_kv_trim(r->exec, h, 0);
}

/* Tokens of an answered request that later ones may share: its whole blocks, or the prefix that it names. */
static int32_t shareable(const run *r, int64_t id) {
    const fr_request *q = &r->o->requests[id];
    const int64_t blocks = (int64_t)q->blocks_count * q->block_tokens;
    if (r->setup->experiment.cache_tokens <= 0) return 0;
    return (int32_t)fr_min_i64(q->tokens, fr_max_i64(blocks, q->prefix_id >= 0 ? q->prefix_tokens : 0));
}

static fr_status give(run *r, const fr_batch *b, const fr_sched_batch *ticket) {
    flight *f = &r->flights[r->given % FR_EXEC_FLIGHTS];
    /* Batch mode: released when there was room for it, as in the simulator; issuing a long forward can block the host.
     */
    *f = (flight){.ticket = ticket, .given = r->o->requests ? fr_exec_now(r->exec) : r->last_end};
    FR_TRY(fr_planner_forward(r->planner, 0, b, &f->fragment, r->err));
    fill_tokens(r, b, ticket ? ticket->parts : NULL, r->given);
    FR_GROW(r->owners, r->owners_cap, (uint32_t)b->count + 1);
    for (int32_t i = 0; i < b->count; i++) r->owners[i] = ticket ? ticket->parts[i].request : i;
    if (ticket) reclaim(r, ticket->tokens);
    const fr_exec_batch batch = {b->sequences, b->count, r->ids, r->candidates, r->owners};
    fr_cuts *cuts = fr_planner_cuts(r->planner);
    r->given++;
    const fr_status s = fr_exec_append(r->exec, f->fragment, cuts, &batch, r->err);
    fr_cuts_free(cuts);
    return s;
}

static void record_answer(run *r, const fr_part *part, int64_t started, int64_t answered) {
    fr_run_output *out = r->out;
    FR_GROW(r->ttft, r->ttft_cap, r->ttft_count + 1);
    r->ttft[r->ttft_count++] = (double)(answered - part->arrival) * 1e-9;
    FR_GROW(out->requests, out->requests_cap, out->requests_count + 1);
    out->requests[out->requests_count++] = (fr_request_record){.id = part->request,
                                                               .arrival = part->arrival,
                                                               .start = started,
                                                               .answer = answered,
                                                               .tokens = part->tokens,
                                                               .cached = part->prefix,
                                                               .source = part->source};
}

/* Hands each prompt its logits: those of the whole vocabulary come first, then the candidates'. */
static void answer_prompts(run *r, const fr_sched_batch *b, const fr_exec_done *d) {
    const int32_t vocab = r->setup->model.vocab;
    const float *all = d->logits, *some = d->logits;
    for (int i = 0; i < b->count; i++)
        if (b->sequences[i].candidates < 0) some += vocab;
    for (int i = 0; i < b->count; i++) {
        const int32_t n = b->sequences[i].candidates;
        if (n == 0) continue;
        fr_prompt_answer(&r->o->prompts->prompts[b->parts[i].request], n < 0 ? all : some, vocab);
        if (n < 0)
            all += vocab;
        else
            some += n;
    }
}

static void add_counts(run *r, const int32_t *counts) {
    const size_t n = (size_t)r->layers * (size_t)r->setup->model.experts;
    for (size_t i = 0; i < n && counts; i++) r->out->counts[i] += counts[i];
}

static void record_forward(run *r, const flight *f, const fr_exec_done *d) {
    fr_run_output *out = r->out;
    fr_forward_record rec = d->record;
    const fr_sched_batch *b = f->ticket;
    if (b) {
        rec.tokens = b->tokens;
        rec.cached = b->cached;
        for (int i = 0; i < b->count; i++)
            if (b->parts[i].last) record_answer(r, &b->parts[i], f->given, d->answer);
        if (r->o->prompts) answer_prompts(r, b, d);
    } else {
        for (int32_t i = 0; i < r->batch.count; i++) {
            rec.tokens += r->batch.sequences[i].queries;
            FR_GROW(r->ttft, r->ttft_cap, r->ttft_count + 1);
            r->ttft[r->ttft_count++] = (double)(d->answer - f->given) * 1e-9;
        }
    }
    FR_GROW(out->forwards, out->forwards_cap, out->forwards_count + 1);
    out->forwards[out->forwards_count++] = rec;
    r->tokens += rec.tokens;
    r->cached += rec.cached;
    r->flops += rec.flops;
    r->service += (double)(rec.end - rec.start);
    r->busy += rec.parts.compute;
    if (!b) {
        rec.release = rec.start = f->given;
        rec.low = rec.high = rec.end - rec.start;
    }
    r->last_end = fr_max_i64(r->last_end, rec.end);
    out->late_ns += d->late_ns;
    add_counts(r, d->counts);
}

static fr_status take(run *r) {
    flight *f = &r->flights[r->taken % FR_EXEC_FLIGHTS];
    fr_exec_done d;
    FR_TRY(fr_exec_collect(r->exec, r->timed ? &r->out->spans : NULL, &d, r->err));
    r->taken++;
    if (r->timed) record_forward(r, f, &d);
    for (int i = 0; f->ticket && i < f->ticket->count; i++)
        if (f->ticket->parts[i].last)
            fr_exec_kv_trim(r->exec, f->ticket->sequences[i].kv, shareable(r, f->ticket->parts[i].request));
    if (f->ticket) fr_sched_done(r->sched, f->ticket, d.record.end);
    fr_fragment_free(f->fragment);
    f->fragment = NULL;
    return FR_OK;
}

/* ---- batch mode ---------------------------------------------------------------------------------------------------*/

/* Whole sequences of `seq` tokens, as the simulator's driver deals them to one GPU. */
static void make_batch(run *r) {
    const fr_experiment *e = &r->setup->experiment;
    const int64_t n = fr_max_i64(e->tokens / e->seq, 1);
    r->sequences = fr_alloc((size_t)n * sizeof *r->sequences);
    for (int64_t i = 0; i < n; i++)
        r->sequences[i] = (fr_sequence){.queries = (int32_t)e->seq,
                                        .prefix = (int32_t)e->prefix,
                                        .candidates = e->candidates,
                                        .kv = (int32_t)i,
                                        .kv_prefix = -1};
    r->batch = (fr_batch){r->sequences, (int32_t)n};
}

static fr_status play_batches(run *r, int64_t forwards, int64_t until_ns) {
    const int64_t first = r->given;
    for (;;) {
        const bool more = forwards > 0 ? r->given - first < forwards : fr_exec_now(r->exec) < until_ns;
        if (!more && r->taken == r->given) return FR_OK;
        if (more && r->given - r->taken < LOOKAHEAD)
            FR_TRY(give(r, &r->batch, NULL));
        else
            FR_TRY(take(r));
    }
}

/* ---- trace mode ---------------------------------------------------------------------------------------------------*/

static fr_status open_sched(run *r) {
    const fr_experiment *e = &r->setup->experiment;
    const fr_sched_options o = {.queues = 1,
                                .budget = e->budget,
                                .chunk_tokens = e->layout.chunk_tokens,
                                .route = e->route,
                                .cache_tokens = fr_max_i64(e->cache_tokens, 0)};
    return fr_sched_new(&o, &r->sched, r->err);
}

static void nap(int64_t ns) {
    const struct timespec t = {.tv_nsec = fr_min_i64(fr_max_i64(ns, 0), NAP_NS)};
    nanosleep(&t, NULL);
}

static void arrive(run *r, int64_t *next, int64_t now) {
    const bool offline = r->setup->experiment.offline;
    for (; *next < r->o->requests_count; ++*next) {
        fr_request q = r->o->requests[*next];
        if (offline) q.arrival = 0;
        if (q.arrival > now) return;
        if (q.candidates == 0) q.candidates = r->setup->experiment.candidates;
        fr_sched_arrive(r->sched, &q, q.arrival);
    }
}

/* Arrivals, then a batch if the device has taken the last one in, then what has ended. */
static fr_status play_trace(run *r) {
    int64_t next = 0;
    FR_TRY(open_sched(r));
    while (next < r->o->requests_count || fr_sched_pending(r->sched) > 0) {
        const int64_t now = fr_exec_now(r->exec);
        fr_exec_state state;
        arrive(r, &next, now);
        FR_TRY(fr_exec_poll(r->exec, &state, r->err));
        if (state == FR_EXEC_DONE) {
            FR_TRY(take(r));
            continue;
        }
        const bool room = r->given == r->taken || (r->given - r->taken == 1 && state == FR_EXEC_ENTERED);
        const fr_sched_batch *ticket;
        if (room && fr_sched_has_work(r->sched, 0) && fr_sched_next(r->sched, 0, now, &ticket)) {
            const fr_batch b = {ticket->sequences, ticket->count};
            FR_TRY(give(r, &b, ticket));
            continue;
        }
        nap(state == FR_EXEC_NONE && next < r->o->requests_count && !r->setup->experiment.offline
                ? r->o->requests[next].arrival - now
                : NAP_NS);
    }
    while (r->taken < r->given) FR_TRY(take(r));
    return FR_OK;
}

/* ---- before the clock ---------------------------------------------------------------------------------------------*/

static fr_status open_planner(run *r) {
    const fr_setup *s = r->setup;
    const fr_planner_options po = {.model = &s->model,
                                   .layout = &s->experiment.layout,
                                   .machine = &s->machine,
                                   .routing = s->routing,
                                   .cost = s->cost,
                                   .load = s->load};
    return fr_planner_open(&po, &r->planner, r->err);
}

/*
 * Room of the KV cache in tokens, 0 where every request is computed whole at once. Beside what the scheduler keeps:
 * batches in flight, and requests that are cut: at most one for each chunk of a budget, each up to the longest.
 */
static int64_t kv_room(const run *r, int64_t longest) {
    const fr_experiment *e = &r->setup->experiment;
    const int64_t chunk = e->layout.chunk_tokens, cache = fr_max_i64(e->cache_tokens, 0), load = r->setup->load.tokens;
    if (!r->o->requests) return e->prefix > 0 ? fr_max_i64(e->tokens / e->seq, 1) * (e->seq + e->prefix) : 0;
    if (chunk == 0 && cache == 0) return 0;
    int64_t all = 0;
    for (int64_t i = 0; i < r->o->requests_count; i++) all += r->o->requests[i].tokens;
    const int64_t cut = chunk ? (e->budget / chunk + 2) * longest : 0;
    return cache + fr_max_i64(fr_min_i64(all, cut), 0) + FR_EXEC_FLIGHTS * load;
}

static fr_status open_exec(run *r) {
    const fr_setup *s = r->setup;
    const fr_prompts *p = r->o->prompts;
    int64_t positions = s->experiment.seq + s->experiment.prefix;
    int candidates = s->experiment.candidates;
    bool vocabulary = candidates < 0;
    if (r->o->requests) {
        positions = 1;
        for (int64_t i = 0; i < r->o->requests_count; i++) {
            positions = fr_max_i64(positions, r->o->requests[i].tokens);
            if (r->o->requests[i].candidates > candidates) candidates = r->o->requests[i].candidates;
        }
        vocabulary = p ? p->vocabulary : vocabulary;
    }
    fr_load load = s->load;
    if (r->o->requests) load.sequences = fr_min_i64(load.sequences, r->o->requests_count);
    const fr_exec_options o = {.plan = fr_planner_plan(r->planner),
                               .model = &s->model,
                               .layout = &s->experiment.layout,
                               .weights = r->weights,
                               .load = load,
                               .positions = positions,
                               .candidates = candidates,
                               .vocabulary = vocabulary,
                               .kv_tokens = kv_room(r, positions),
                               .made_up_prefix = !r->o->requests,
                               .varied = r->o->requests && !p,
                               .spans = false,
                               .counts = true,
                               .check_ops = r->o->check_ops,
                               .timeout_s = r->o->timeout_s};
    return fr_exec_open(&o, &r->exec, r->err);
}

static fr_status open_weights(run *r) {
    const fr_setup *s = r->setup;
    FR_TRY(fr_weights_open(&s->model, &s->experiment.layout, 0, NULL, &r->weights, r->err));
    if (r->o->weights) return fr_weights_load(r->weights, &s->model, r->o->weights, r->err);
    FR_TRY(fr_weights_random(r->weights, &s->model, r->layers, s->experiment.seed, r->err));
    if (fr_routing_kind(s->routing) == FR_SKEW_EVEN) return FR_OK;
    return fr_weights_skew(r->weights, &s->model, s->routing, r->layers, NULL, r->err);
}

/* A batch to measure routing with, and to warm up a trace: one that every plan has room for. */
static fr_batch fit_batch(const run *r, fr_sequence *one) {
    int64_t n = fr_min_i64(FIT_TOKENS, r->setup->load.tokens), longest = 1;
    for (int64_t i = 0; i < r->o->requests_count; i++) longest = fr_max_i64(longest, r->o->requests[i].tokens);
    *one = (fr_sequence){.queries = (int32_t)fr_min_i64(n, longest), .candidates = 1, .kv_prefix = -1};
    return (fr_batch){one, 1};
}

static double worst_share(const run *r, const int64_t *counts) {
    const fr_model *m = &r->setup->model;
    double worst = 0;
    for (int l = 0; l < r->layers; l++) {
        const double *share = fr_routing_shares(r->setup->routing, l % m->layers);
        const int64_t *got = counts + (size_t)l * (size_t)m->experts;
        double sum = 0;
        for (int e = 0; e < m->experts; e++) sum += (double)got[e];
        for (int e = 0; e < m->experts && sum > 0; e++) {
            const double off = fabs((double)got[e] / sum - share[e]) * m->top_k;
            worst = off > worst ? off : worst;
        }
    }
    return worst;
}

/* Random weights: measures how tokens fall on experts and corrects the router bias, a few times. */
static fr_status fit_routing(run *r) {
    const size_t n = (size_t)r->layers * (size_t)r->setup->model.experts;
    fr_sequence one;
    const fr_batch spare = fit_batch(r, &one), *b = r->batch.count ? &r->batch : &spare;
    int64_t *counts = fr_alloc(n * sizeof *counts);
    fr_status s = FR_OK;
    for (int round = 0; round <= FIT_ROUNDS && s == FR_OK; round++) {
        fr_exec_done d;
        s = give(r, b, NULL);
        if (s == FR_OK) s = fr_exec_collect(r->exec, NULL, &d, r->err);
        if (s != FR_OK) break;
        fr_fragment_free(r->flights[r->taken++ % FR_EXEC_FLIGHTS].fragment);
        for (size_t i = 0; i < n; i++) counts[i] = d.counts[i];
        r->out->routing_error = worst_share(r, counts);
        if (round < FIT_ROUNDS)
            s = fr_weights_skew(r->weights, &r->setup->model, r->setup->routing, r->layers, counts, r->err);
    }
    free(counts);
    return s;
}

static fr_status warm_up(run *r) {
    fr_sequence one;
    const fr_batch spare = fit_batch(r, &one);
    const bool made = !r->o->weights;
    if (made && fr_routing_kind(r->setup->routing) != FR_SKEW_EVEN) FR_TRY(fit_routing(r));
    if (!r->batch.count) r->batch = spare;
    FR_TRY(play_batches(r, 1, 0));
    if (r->o->warmup_s > 0) FR_TRY(play_batches(r, 0, fr_exec_now(r->exec) + (int64_t)(r->o->warmup_s * 1e9)));
    if (r->o->requests) {
        r->batch = (fr_batch){0};
        fr_exec_kv_trim(r->exec, 0, 0);
    }
    return FR_OK;
}

/* ---- the result ---------------------------------------------------------------------------------------------------*/

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Nearest rank, as the simulator's driver. */
static fr_quantiles quantiles(double *values, uint32_t count) {
    if (count == 0) return (fr_quantiles){NAN, NAN, NAN, NAN};
    qsort(values, count, sizeof *values, by_value);
    double sum = 0, q[3];
    const double at[3] = {0.5, 0.9, 0.99};
    for (uint32_t i = 0; i < count; i++) sum += values[i];
    for (int i = 0; i < 3; i++) {
        const uint32_t rank = (uint32_t)ceil(at[i] * count);
        q[i] = values[rank > 0 ? rank - 1 : 0];
    }
    return (fr_quantiles){sum / count, q[0], q[1], q[2]};
}

static void fill_classes(run *r, fr_result *out) {
    const fr_timeline *t = &r->out->spans;
    for (uint32_t i = 0; i < t->count; i++)
        out->class_ns[fr_op_class_of((fr_op_kind)t->spans[i].kind)] += t->spans[i].end - t->spans[i].start;
    out->ops_played = t->count;
    out->provenance.ns[FR_FROM_MEASURED] = r->busy;
}

static void fill_result(run *r, fr_result *out) {
    const fr_setup *s = r->setup;
    const fr_experiment *e = &s->experiment;
    const fr_machine *m = &s->machine;
    const bool batch = !r->o->requests;
    const int64_t forwards = r->out->forwards_count;
    const int64_t first = batch || r->o->requests_count == 0 || e->offline ? 0 : r->o->requests[0].arrival;
    const int64_t elapsed = r->last_end - first;
    const double seconds = (double)elapsed * 1e-9, million = (double)r->tokens * 1e-6;
    const double peak = m->peak_flops[e->layout.precision];
    const double forward = batch ? seconds / (double)forwards : r->service * 1e-9 / (double)forwards;
    *out = (fr_result){.gpus = 1,
                       .stage_ranks = 1,
                       .requests = batch ? r->ttft_count : r->out->requests_count,
                       .forwards = forwards,
                       .tokens = r->tokens,
                       .cached_tokens = r->cached,
                       .elapsed_ns = elapsed,
                       .forward_s = forward,
                       .single_forward_s = NAN,
                       .parts = {.elapsed = elapsed, .compute = r->busy, .idle = elapsed - r->busy},
                       .units_forwards = batch ? forwards : 0,
                       .tokens_per_s = (double)r->tokens / seconds,
                       .tokens_per_s_per_gpu = (double)r->tokens / seconds,
                       .mfu = r->flops / (seconds * peak),
                       .flops = r->flops,
                       .forward_low_s = forward,
                       .forward_high_s = forward,
                       .ttft_s = quantiles(r->ttft, r->ttft_count),
                       .memory = s->memory,
                       .fits = true,
                       .solves = -1,
                       .sent_bytes = -1,
                       .received_bytes = -1,
                       .host_bytes = -1,
                       .price_per_mtoken =
                           m->price_per_gpu_hour > 0 ? seconds / 3600 * m->price_per_gpu_hour / million : NAN,
                       .joules_per_mtoken = r->out->meter.watts > 0 ? seconds * r->out->meter.watts / million : NAN,
                       .wall_s = 0};
    fill_classes(r, out);
}

/* ---- all of it ----------------------------------------------------------------------------------------------------*/

static fr_status open_run(run *r) {
    FR_TRY(open_weights(r));
    r->out->weights_bytes = r->weights->bytes;
    r->out->weights_s = r->weights->seconds;
    FR_TRY(open_planner(r));
    FR_TRY(open_exec(r));
    if (!r->o->requests) make_batch(r);
    FR_TRY(warm_up(r));
    /* Forwards count from 0 again, as the simulator's do. */
    fr_planner_close(r->planner);
    r->planner = NULL;
    FR_TRY(open_planner(r));
    r->out->activation_bytes = fr_exec_bytes(r->exec);
    return fr_exec_replan(r->exec, fr_planner_plan(r->planner), r->o->spans, r->err);
}

static fr_status play(run *r) {
    if (r->o->warmup_s <= 0) {
        const struct timespec rest = {.tv_sec = (time_t)REST_S};
        nanosleep(&rest, NULL);
    }
    fr_meter *meter = fr_meter_start(r->o->device);
    fr_status s = fr_exec_start(r->exec, r->err);
    r->timed = true;
    if (s == FR_OK) s = r->o->requests ? play_trace(r) : play_batches(r, r->setup->experiment.forwards, 0);
    fr_meter_stop(meter, &r->out->meter);
    return s;
}

static void close_run(run *r) {
    r->out->device_lost = r->exec && fr_exec_lost(r->exec);
    fr_exec_close(r->exec);
    for (int i = 0; i < FR_EXEC_FLIGHTS; i++)
        if (r->flights[i].fragment) fr_fragment_free(r->flights[i].fragment);
    fr_planner_close(r->planner);
    fr_sched_free(r->sched);
    if (!r->out->device_lost) fr_weights_close(r->weights);
    free(r->sequences);
    free(r->ids);
    free(r->candidates);
    free(r->owners);
    free(r->ttft);
}

static fr_status check_device(const fr_run_options *o, fr_run_output *out, fr_error *err) {
    fr_versions built;
    int count = 0;
    FR_TRY(fr_device_environment(err));
    FR_TRY(fr_device_versions(&out->versions, &built, err));
    FR_TRY(fr_device_count(&count, err));
    if (o->device < 0 || o->device >= count)
        return fr_fail(err, FR_BAD_INPUT, "--device %d: this machine has %d GPU(s)", o->device, count);
    FR_TRY(fr_device_read(o->device, &out->device, err));
    if (out->device.major != 9)
        return fr_fail(err, FR_FAILED, "device %d is a %s of compute capability %d.%d: the kernels are built for 9.0a",
                       o->device, out->device.name, out->device.major, out->device.minor);
    return FR_OK;
}

static fr_status check_setup(const fr_setup *s, fr_error *err) {
    const fr_experiment *e = &s->experiment;
    if (fr_layout_gpus(&e->layout) != 1)
        return fr_fail(err, FR_BAD_INPUT, "the layout needs %d GPUs: this version of run drives one",
                       fr_layout_gpus(&e->layout));
    if (!s->fits) return fr_fail(err, FR_FAILED, "does not fit: %s", s->reason);
    return FR_OK;
}

fr_status fr_run(const fr_setup *setup, const fr_run_options *o, fr_run_output *out, fr_error *err) {
    *out = (fr_run_output){0};
    FR_TRY(check_setup(setup, err));
    FR_TRY(fr_weights_supported(&setup->model, &setup->experiment.layout, err));
    FR_TRY(check_device(o, out, err));
    run r = {.setup = setup, .o = o, .out = out, .err = err};
    r.layers = out->layers = fr_layout_layers(&setup->experiment.layout, &setup->model);
    out->counts = fr_alloc((size_t)r.layers * (size_t)setup->model.experts * sizeof *out->counts);
    fr_status s = open_run(&r);
    if (s == FR_OK) s = play(&r);
    if (s == FR_OK) fill_result(&r, &out->result);
    if (s == FR_OK) fr_timeline_sort(&out->spans);
    close_run(&r);
    if (s != FR_OK) fr_run_output_free(out);
    return s;
}

void fr_run_output_free(fr_run_output *o) {
    fr_timeline_free(&o->spans);
    free(o->requests);
    free(o->forwards);
    free(o->counts);
    o->requests = NULL;
    o->forwards = NULL;
    o->counts = NULL;
}

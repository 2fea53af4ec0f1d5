/*
 * The way of a request: trace -> sched (queue, batch) -> planner (fragment of a plan) -> player (virtual clock) ->
 * records and result.
 *
 * A unit (the ranks that take forwards together) is given its next forward when the entry of its last one is through,
 * so that pipelines fill; in batch mode one forward ahead, as an engine whose host runs ahead of its device does.
 */
#include "sim/driver.h"

#include "engine/deal.h"
#include "engine/sched/sched.h"
#include "engine/strategy/strategy.h"
#include "sim/player.h"
#include "traces/trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH_LOOKAHEAD 2 /* forwards a unit may hold in batch mode before the first has entered */

/* A forward in flight: which scheduler batches it carries, one per slot of its unit. */
typedef struct {
    fr_fragment *fragment;
    int64_t given;
    const fr_sched_batch **batches; /* [slots], NULL = empty */
    const fr_batch *dealt;          /* [slots], batch mode */
    int64_t *answers;               /* [slots], latest answer of the slot's ranks, 0 = none yet */
} flight;

typedef struct {
    const fr_setup *setup;
    const fr_drive_options *options;
    fr_planner *planner;
    fr_player *player;
    fr_sched *sched; /* trace mode */
    int units, slots;
    flight *flights;
    uint32_t flights_count, flights_cap;
    fr_card *unlike; /* by rank, NULL = none asked for */
    int *unit_held;  /* forwards given to a unit whose entry is not through */
    int *unit_given; /* batch mode: forwards given so far */

    /* batch mode */
    fr_deal deal; /* [units * slots] */

    /* what comes out */
    fr_request_record *requests;
    int64_t requests_count;
    uint32_t requests_cap;
    fr_forward_record *forwards;
    uint32_t forwards_count, forwards_cap;
    fr_audit audit;
    int64_t forwards_done, tokens, cached, first_release, last_end, last_answer, expected;
    double flops, low_ns, high_ns, service_ns;
    fr_traffic *traffic; /* [plan ranks], of finished forwards */
    double *ttft;
    uint32_t ttft_count, ttft_cap;
    fr_status status;
    fr_error *err;
} drive;

/* ---- which slot of its unit a rank belongs to (engine/layout.h: rank order)
 * ------------------------------------------------- */

static int slot_of_rank(const drive *d, int unit, int rank) {
    if (d->slots == 1) return 0;
    const fr_layout *l = &d->setup->experiment.layout;
    int local = rank - fr_planner_unit_first_rank(d->planner, unit);
    int slot = local % fr_layout_stage_ranks(l) / l->tp;
    return slot < d->slots ? slot : d->slots - 1;
}

/* ---- forwards in and out
 * ------------------------------------------------------------------------------------------------- */

static flight *find_flight(drive *d, const fr_fragment *f) {
    for (uint32_t i = 0; i < d->flights_count; i++)
        if (d->flights[i].fragment == f) return &d->flights[i];
    return NULL;
}

static void give(drive *d, int unit, const fr_batch *batches, const fr_sched_batch **tickets, int64_t now) {
    fr_fragment *f = NULL;
    fr_status s = fr_planner_forward(d->planner, unit, batches, &f, d->err);
    if (s != FR_OK) {
        d->status = s;
        free(tickets);
        return;
    }
    FR_GROW(d->flights, d->flights_cap, d->flights_count + 1);
    d->flights[d->flights_count++] =
        (flight){f, now, tickets, batches, fr_alloc((size_t)d->slots * sizeof *d->flights->answers)};
    if (d->unit_given[unit] == 0) fr_audit_fragment(&d->audit, d->setup->cost, f);
    d->unit_held[unit]++;
    d->unit_given[unit]++;
    fr_player_append(d->player, f, now);
}

/* Batch mode: hands a unit as many of its forwards as it may hold. */
static void feed_batches(drive *d, int unit, int64_t now) {
    int limit = d->setup->experiment.forwards;
    while (d->status == FR_OK && d->unit_held[unit] < BATCH_LOOKAHEAD && d->unit_given[unit] < limit)
        give(d, unit, fr_deal_batches(&d->deal, unit, d->slots, d->unit_given[unit]), NULL, now);
}

/* Trace mode: if the unit is free and any of its queues has work, forms one batch per slot and hands them over. */
static void feed_queues(drive *d, int unit, int64_t now) {
    if (d->status != FR_OK || d->unit_held[unit] > 0) return;
    bool any = false;
    for (int s = 0; s < d->slots && !any; s++) any = fr_sched_has_work(d->sched, unit * d->slots + s);
    if (!any) return;
    const fr_sched_batch **tickets = fr_alloc((size_t)d->slots * sizeof *tickets);
    fr_batch *batches = fr_alloc((size_t)d->slots * sizeof *batches);
    any = false;
    for (int s = 0; s < d->slots; s++) {
        if (!fr_sched_next(d->sched, unit * d->slots + s, now, &tickets[s])) continue;
        batches[s] = (fr_batch){tickets[s]->sequences, tickets[s]->count};
        any = true;
    }
    if (any)
        give(d, unit, batches, tickets, now);
    else
        free(tickets);
    free(batches);
}

static void feed(drive *d, int unit, int64_t now) {
    if (d->sched)
        feed_queues(d, unit, now);
    else
        feed_batches(d, unit, now);
}

static void on_entered(void *context, int unit, int64_t now) {
    drive *d = context;
    d->unit_held[unit]--;
    feed(d, unit, now);
}

static void on_answered(void *context, fr_fragment *f, int rank, int64_t now) {
    drive *d = context;
    flight *fl = find_flight(d, f);
    /* asap's slots are two batches of the same ranks: both count as answered when the forward ends. */
    if (!fl || d->setup->experiment.layout.experts == FR_EXP_ASAP) return;
    const bool folded = fr_planner_plan(d->planner)->fold > 1; /* one rank speaks for all slots */
    const int slot = slot_of_rank(d, f->unit, rank);
    for (int s = 0; s < d->slots; s++)
        if (folded || s == slot) fl->answers[s] = fr_max_i64(fl->answers[s], now);
}

static void record_answer(drive *d, const fr_part *part, int queue, int64_t started, int64_t answered) {
    if (!part->last) return;
    FR_GROW(d->ttft, d->ttft_cap, d->ttft_count + 1);
    d->ttft[d->ttft_count++] = (double)(answered - part->arrival) * 1e-9;
    d->last_answer = fr_max_i64(d->last_answer, answered);
    d->requests_count++;
    if (!d->options->requests) return;
    FR_GROW(d->requests, d->requests_cap, d->requests_count);
    d->requests[d->requests_count - 1] = fr_request_answered(part, queue, started, answered);
}

static void close_flight(drive *d, flight *fl, fr_forward_record *r) {
    for (int s = 0; s < d->slots; s++) {
        int64_t answered = fl->answers[s] ? fl->answers[s] : r->end;
        const fr_sched_batch *b = fl->batches ? fl->batches[s] : NULL;
        if (b) {
            for (int i = 0; i < b->count; i++) record_answer(d, &b->parts[i], b->queue, fl->given, answered);
            r->tokens += b->tokens;
            r->cached += b->cached;
            fr_sched_done(d->sched, b, r->end);
        } else if (!d->sched) {
            const fr_batch *batch = &fl->dealt[s];
            for (int i = 0; i < batch->count; i++) {
                r->tokens += (int64_t)batch->sequences[i].queries * d->deal.stands_for;
                r->cached += (int64_t)batch->sequences[i].prefix * d->deal.stands_for;
                FR_GROW(d->ttft, d->ttft_cap, d->ttft_count + (uint32_t)d->deal.stands_for);
                for (int k = 0; k < d->deal.stands_for; k++)
                    d->ttft[d->ttft_count++] = (double)(answered - fl->given) * 1e-9;
            }
            d->last_answer = fr_max_i64(d->last_answer, answered);
        }
    }
}

static void on_finished(void *context, fr_fragment *f, const fr_forward_record *record) {
    drive *d = context;
    fr_forward_record r = *record;
    r.tokens = r.cached = 0;
    flight *fl = find_flight(d, f);
    if (fl) {
        close_flight(d, fl, &r);
        free(fl->batches);
        free(fl->answers);
        *fl = d->flights[--d->flights_count];
    }
    fr_fragment_traffic(fr_planner_plan(d->planner), f, d->traffic);
    fr_fragment_free(f);
    /* Requests that the prefix router held back for want of room are dispatched by fr_sched_done, to any queue. */
    if (d->sched && d->setup->experiment.route == FR_ROUTE_PREFIX)
        for (int u = 0; u < d->units; u++) feed_queues(d, u, r.end);
    d->forwards_done++;
    d->tokens += r.tokens;
    d->cached += r.cached;
    d->flops += r.flops;
    d->low_ns += (double)r.low;
    d->high_ns += (double)r.high;
    d->service_ns += (double)(r.end - r.start);
    d->last_end = fr_max_i64(d->last_end, r.end);
    if (d->options->forwards) {
        FR_GROW(d->forwards, d->forwards_cap, d->forwards_count + 1);
        d->forwards[d->forwards_count++] = r;
    }
    if (!d->options->progress || d->expected <= 0 || (d->forwards_done & 63)) return;
    int64_t done = d->sched ? d->requests_count : d->forwards_done;
    d->options->progress(d->options->progress_context, (double)done / (double)d->expected);
}

/* ---- batch mode: equal sequences, dealt whole over the attention groups
 * ------------------------------------------------------ */

/* Whether every attention group gets the same batch, so that identical ranks may be folded. */
static bool deal_is_even(const fr_experiment *e) {
    int64_t gpus = fr_layout_gpus(&e->layout);
    int64_t groups = gpus / e->layout.tp / e->layout.pp;
    int64_t total = e->tokens * gpus / e->seq;
    return !e->seqs[0] && e->layout.experts != FR_EXP_ASAP && total >= groups && total % groups == 0;
}

static void deal(drive *d) {
    fr_deal_open(&d->setup->experiment, (int64_t)d->units * d->slots, fr_planner_plan(d->planner)->fold, &d->deal);
}

static fr_status play_batches(drive *d, int *idle) {
    deal(d);
    *idle = d->deal.idle;
    d->expected = (int64_t)d->units * d->setup->experiment.forwards;
    for (int u = 0; u < d->units; u++) feed_batches(d, u, 0);
    FR_TRY(d->status);
    int64_t next;
    FR_TRY(fr_player_run(d->player, INT64_MAX, &next, d->err));
    return d->status;
}

/* ---- trace mode
 * ------------------------------------------------------------------------------------------------------------ */

static fr_status open_sched(drive *d) {
    fr_sched_options o;
    fr_setup_sched(d->setup, d->units * d->slots, &o);
    return fr_sched_new(&o, &d->sched, d->err);
}

fr_status fr_drive_trace(const fr_setup *s, const char *exe_dir, fr_trace **out, fr_error *err) {
    const fr_experiment *e = &s->experiment;
    const fr_trace_options o = {.format = e->format[0] ? e->format : NULL,
                                .spread = (fr_spread)e->spread,
                                .rate = e->rate,
                                .duration_s = e->duration_s,
                                .max_requests = e->max_requests,
                                .seed = e->seed,
                                .data_dir = exe_dir};
    return fr_trace_open(e->trace, &o, out, err);
}

/* The requests of trace mode: the trace's, or those that were handed in. */
static const fr_request *arrivals(const fr_drive_options *o, const fr_trace *trace, int64_t *count) {
    *count = o->arrivals ? o->arrivals_count : fr_trace_count(trace);
    return o->arrivals ? o->arrivals : fr_trace_requests(trace);
}

static fr_status play_trace(drive *d, const fr_trace *trace) {
    fr_status status = open_sched(d);
    int64_t count, i = 0;
    const fr_request *requests = arrivals(d->options, trace, &count);
    bool offline = d->setup->experiment.offline;
    d->expected = count;
    d->first_release = offline || count == 0 ? 0 : requests[0].arrival;
    while (status == FR_OK && d->status == FR_OK) {
        int64_t now = i == count ? INT64_MAX : offline ? 0 : requests[i].arrival, next;
        status = fr_player_run(d->player, now, &next, d->err);
        if (i == count || status != FR_OK) break;
        for (; i < count && (offline || requests[i].arrival == now); i++) {
            fr_request r = requests[i];
            r.arrival = now;
            if (r.candidates == 0) r.candidates = d->setup->experiment.candidates; /* -1: the whole vocabulary */
            fr_sched_arrive(d->sched, &r, now);
        }
        for (int u = 0; u < d->units; u++) feed_queues(d, u, now);
    }
    if (status == FR_OK) status = d->status;
    if (status == FR_OK && d->requests_count != count)
        status = fr_fail(d->err, FR_FAILED, "%s: %lld of %lld requests were answered: a request was lost",
                         d->setup->experiment.trace, (long long)d->requests_count, (long long)count);
    return status;
}

/* ---- the result
 * -------------------------------------------------------------------------------------------------------------- */

/* Of the rank that moves most over links; host copies of the rank that has most of them. */
static void fill_traffic(const drive *d, fr_result *out) {
    const fr_traffic *most = d->traffic;
    int64_t host = 0, forwards = d->sched ? 1 : d->setup->experiment.forwards;
    for (int r = 0; r < fr_planner_plan(d->planner)->ranks; r++) {
        const fr_traffic *t = &d->traffic[r];
        if (t->sent + t->received > most->sent + most->received) most = t;
        host = fr_max_i64(host, t->host);
    }
    out->sent_bytes = most->sent / forwards;
    out->received_bytes = most->received / forwards;
    out->host_bytes = host / forwards;
}

static void fill_result(drive *d, fr_result *out) {
    const fr_setup *s = d->setup;
    const fr_experiment *e = &s->experiment;
    const fr_plan *plan = fr_planner_plan(d->planner);
    out->gpus = fr_layout_gpus(&e->layout);
    out->stage_ranks = fr_layout_stage_ranks(&e->layout);
    out->requests = d->sched ? d->requests_count : d->ttft_count;
    out->forwards = d->forwards_done * fr_planner_real_units(d->planner) / d->units;
    out->tokens = d->tokens;
    out->cached_tokens = d->cached;
    out->elapsed_ns = d->last_end - d->first_release;
    out->units_forwards = d->sched ? 0 : e->forwards;
    double seconds = (double)out->elapsed_ns * 1e-9;
    double service = d->forwards_done ? d->service_ns * 1e-9 / (double)d->forwards_done : NAN;
    out->forward_s = d->sched ? service : seconds / e->forwards;
    double low = d->service_ns > 0 ? d->low_ns / d->service_ns : 1,
           high = d->service_ns > 0 ? d->high_ns / d->service_ns : 1;
    out->forward_low_s = out->forward_s * low;
    out->forward_high_s = out->forward_s * high;
    int last = 0;
    int64_t latest = -1;
    for (int r = 0; r < plan->ranks; r++) {
        fr_parts parts;
        fr_player_rank_parts(d->player, r, &parts);
        if (parts.elapsed > latest) {
            latest = parts.elapsed;
            last = r;
        }
    }
    fr_player_rank_parts(d->player, last, &out->parts);
    out->flops = d->flops;
    fill_traffic(d, out);
    out->tokens_per_s = seconds > 0 ? (double)d->tokens / seconds : NAN;
    out->tokens_per_s_per_gpu = out->tokens_per_s / out->gpus;
    double peak = s->machine.peak_flops[e->layout.precision];
    out->mfu = seconds > 0 && peak > 0 ? d->flops / (seconds * out->gpus * peak) : NAN;
    out->ttft_s = fr_quantiles_of(d->ttft, d->ttft_count);
    fr_player_stats stats;
    fr_player_stats_get(d->player, &stats);
    out->provenance = stats.provenance;
    fr_audit_sort(&d->audit);
    out->audit = d->audit;
    for (int c = 0; c < FR_CLASS_COUNT; c++) out->class_ns[c] = stats.class_ns[c] * plan->fold;
    out->clock_mhz = stats.clock_mhz;
    out->ops_played = stats.played;
    out->ops_skipped = stats.skipped;
    out->ops_folded = stats.folded;
    out->solves = stats.solves;
    double gpu_seconds = seconds * out->gpus, million = (double)d->tokens * 1e-6;
    const fr_machine *m = &s->machine;
    out->price_per_mtoken =
        m->price_per_gpu_hour > 0 && million > 0 ? gpu_seconds / 3600 * m->price_per_gpu_hour / million : NAN;
    out->joules_per_mtoken = m->watts > 0 && million > 0 ? gpu_seconds * m->watts / million : NAN;
}

static fr_status open_drive(drive *d, fr_setup *s, bool batch, bool bare) {
    fr_experiment *e = &s->experiment;
    /* Without sharing, pulls in flight would each have the whole link: one at a time is what the link can carry. */
    if (!e->sharing && e->layout.gather_streams == 0) e->layout.gather_streams = 1;
    FR_TRY(fr_setup_planner(
        s, e->fold && batch && !e->spans && !d->options->cards && !d->options->unlike && deal_is_even(e), &d->planner,
        d->err));
    fr_planner_plan(d->planner)->bare = bare;
    d->units = fr_planner_units(d->planner);
    d->slots = fr_planner_slots(d->planner);
    d->traffic = fr_alloc((size_t)fr_planner_plan(d->planner)->ranks * sizeof *d->traffic);
    d->unit_held = fr_alloc((size_t)d->units * sizeof *d->unit_held);
    d->unit_given = fr_alloc((size_t)d->units * sizeof *d->unit_given);
    const int ranks = fr_planner_plan(d->planner)->ranks;
    if (!d->options->cards && d->options->unlike && ranks > 1) {
        d->unlike = fr_alloc((size_t)ranks * sizeof *d->unlike);
        fr_cards_unlike(s->cost, d->unlike, ranks);
    }
    fr_player_options o = {.cost = s->cost,
                           .sharing = e->sharing,
                           .turns = true,
                           .interference = e->interference,
                           .gpus_per_host = s->machine.gpus_per_host,
                           .spans = d->options->spans,
                           .cards = d->options->cards ? d->options->cards : d->unlike,
                           .pause_ns = d->options->pause_ns,
                           .load_ns = d->options->load_ns,
                           .finished = on_finished,
                           .entered = on_entered,
                           .answered = on_answered,
                           .context = d};
    d->player = fr_player_new(fr_planner_plan(d->planner), &o);
    return FR_OK;
}

static void close_drive(drive *d) {
    for (uint32_t i = 0; i < d->flights_count; i++) {
        free(d->flights[i].batches);
        free(d->flights[i].answers);
        fr_fragment_free(d->flights[i].fragment);
    }
    free(d->flights);
    fr_player_free(d->player);
    fr_planner_close(d->planner);
    fr_sched_free(d->sched);
    free(d->unit_held);
    free(d->unlike);
    free(d->unit_given);
    fr_deal_close(&d->deal);
    free(d->traffic);
    free(d->ttft);
}

/* Latency of one forward alone: the same cell with a single forward. */
static fr_status single_forward(const fr_setup *s, double *seconds, fr_error *err) {
    fr_setup one = *s;
    one.experiment.forwards = 1;
    fr_drive_options quiet = {0};
    fr_result r = {0};
    FR_TRY(fr_drive(&one, &quiet, &r, err));
    *seconds = r.forward_s;
    return FR_OK;
}

/* Opens the trace and sizes memory for its longest request: one longer than the whole budget goes alone. */
static fr_status prepare_trace(fr_setup *sized, const fr_drive_options *options, fr_trace **trace, fr_error *err) {
    if (!options->arrivals) FR_TRY(fr_drive_trace(sized, options->exe_dir, trace, err));
    int64_t longest = 0;
    int64_t count;
    const fr_request *requests = arrivals(options, *trace, &count);
    for (int64_t i = 0; i < count; i++) longest = fr_max_i64(longest, requests[i].tokens);
    FR_TRY(fr_setup_size(sized, longest, err));
    if (!sized->fits && !sized->experiment.ignore_memory)
        return fr_fail(err, FR_FAILED, "layout does not fit: %s (the longest request has %lld tokens)", sized->reason,
                       (long long)longest);
    return FR_OK;
}

fr_status fr_drive(const fr_setup *setup, const fr_drive_options *options, fr_result *out, fr_error *err) {
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    *out = (fr_result){.memory = setup->memory,
                       .fits = setup->fits,
                       .single_forward_s = NAN,
                       .clock_mhz = NAN,
                       .sent_bytes = -1,
                       .received_bytes = -1,
                       .host_bytes = -1};
    memcpy(out->reason, setup->reason, sizeof out->reason);
    if (!setup->fits && !setup->experiment.ignore_memory)
        return fr_fail(err, FR_FAILED, "layout does not fit: %s", setup->reason);
    bool batch = setup->experiment.trace[0] == 0;
    fr_setup sized = *setup;
    fr_trace *trace = NULL;
    drive d = {.setup = &sized, .options = options, .err = err};
    fr_status status = batch ? FR_OK : prepare_trace(&sized, options, &trace, err);
    if (trace) {
        fr_trace_summary rows;
        fr_trace_describe(trace, &rows);
        out->left_out = rows.skipped;
        out->reordered = rows.reordered;
    }
    out->memory = sized.memory;
    out->fits = sized.fits;
    memcpy(out->reason, sized.reason, sizeof out->reason);
    if (status == FR_OK) status = open_drive(&d, &sized, batch, !options->spans);
    if (status == FR_OK) status = batch ? play_batches(&d, &out->idle_ranks) : play_trace(&d, trace);
    if (status == FR_OK) fill_result(&d, out);
    if (status == FR_OK && options->requests) {
        *options->requests = d.requests;
        *options->requests_count = d.requests_count;
        d.requests = NULL;
    }
    if (status == FR_OK && options->forwards) {
        *options->forwards = d.forwards;
        *options->forwards_count = d.forwards_count;
        d.forwards = NULL;
    }
    free(d.requests);
    free(d.forwards);
    close_drive(&d);
    fr_trace_close(trace);
    if (status == FR_OK && batch) {
        if (setup->experiment.forwards > 1)
            status = single_forward(setup, &out->single_forward_s, err);
        else
            out->single_forward_s = out->forward_s;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    out->wall_s = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    return status;
}

fr_status fr_drive_plan(const fr_setup *setup, fr_planner **planner, fr_fragment ***fragments, int *count,
                        fr_error *err) {
    fr_drive_options quiet = {0};
    fr_setup copy = *setup;
    drive d = {.setup = &copy, .options = &quiet, .err = err};
    fr_status status = open_drive(&d, &copy, true, false);
    if (status == FR_OK) {
        deal(&d);
        *fragments = fr_alloc((size_t)d.units * sizeof **fragments);
        for (*count = 0; *count < d.units && status == FR_OK; *count += status == FR_OK)
            status = fr_planner_forward(d.planner, *count, fr_deal_batches(&d.deal, *count, d.slots, 0),
                                        &(*fragments)[*count], err);
    }
    if (status == FR_OK) {
        *planner = d.planner;
        d.planner = NULL;
    }
    close_drive(&d);
    return status;
}

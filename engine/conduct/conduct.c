#include "engine/conduct/conduct_state.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REST_S     1.0       /* burst: clocks and temperature after a second of rest */
#define START_NS   5000000   /* until the clock starts: ranks tie theirs to the host's meanwhile */
#define LISTEN_NS  100000000 /* longest sleep between two looks at the deadlines */
#define OPEN_S     3600.0    /* for weights to be loaded; meetings of the ranks have shorter limits of their own */
#define GRACE_S    5.0       /* beyond the timeout: for ranks to close or to answer */
#define ALONE_S    3.0       /* after a failure: for ranks to see it, let go and close, by themselves */
#define HELPED_S   2.5       /* then, once that was done for them: a device's spins end within 2 s */
#define ISSUE_S    1.0       /* at least: a long forward takes its time to issue */
#define ISSUE_PART 0.9       /* of the timeout: a rank's own wait for its device, which says less, runs out after it */

int64_t fr_conduct_now(const fr_conductor *c) {
    return fr_monotonic() - c->epoch;
}

/* ---- notes --------------------------------------------------------------------------------------------------------*/

void fr_conduct_asked(fr_conductor *c, int rank) {
    c->asked[rank] = fr_monotonic();
}

static fr_flight *flight_of(fr_conductor *c, const fr_job *job) {
    fr_unit *u = &c->unit[job->unit];
    for (int i = 0; i < u->out; i++)
        if (u->flights[i]->job == job) return u->flights[i];
    return NULL;
}

static void flight_free(fr_conductor *c, fr_flight *f) {
    for (int i = 0; f->done && i < c->unit[f->job->unit].ranks_count; i++) {
        fr_note n = {.done = f->done[i], .spans = f->spans[i]};
        fr_note_free(&n);
    }
    for (int i = 0; i < f->job->slots; i++) free(f->logits[i]);
    fr_job_free(f->job);
    free(f->logits);
    free(f->done);
    free(f->spans);
    free(f->answers);
    free(f->tickets);
    free(f);
}

/* A forward has ended on all its ranks. */
static void finish(fr_conductor *c, fr_flight *f) {
    fr_unit *u = &c->unit[f->job->unit];
    int at = 0;
    while (u->flights[at] != f) at++;
    memmove(u->flights + at, u->flights + at + 1, (size_t)(--u->out - at) * sizeof *u->flights);
    fr_conduct_record(c, f);
    fr_conduct_trim(c, f);
    for (int s = 0; f->tickets && s < c->slots; s++)
        if (f->tickets[s]) fr_sched_done(c->sched, f->tickets[s], u->last_end);
    flight_free(c, f);
}

/* Floats of a slot's logits. */
static int64_t logits_of_slot(const fr_conductor *c, const fr_flight *f, int slot) {
    const fr_job_batch *b = &f->job->batches[slot];
    int64_t all = 0;
    for (int32_t i = 0; i < b->count; i++)
        all += b->sequences[i].candidates < 0 ? c->setup->model.vocab : b->sequences[i].candidates;
    return all;
}

/* Puts what a rank computed of its slots' logits, one slot after the other, to what the others did. */
static void merge_logits(const fr_conductor *c, fr_flight *f, const fr_place *p, const fr_rank_done *d) {
    int64_t base = 0;
    for (int slot = p->slot; slot < p->slot + p->batches && d->runs_count > 0; slot++) {
        const int64_t count = logits_of_slot(c, f, slot);
        if (!f->logits[slot]) f->logits[slot] = fr_alloc((size_t)count * sizeof **f->logits);
        for (uint32_t i = 0; i < d->runs_count; i++) {
            const int64_t from = fr_max_i64(d->runs[i].first, base);
            const int64_t to = fr_min_i64(d->runs[i].first + d->runs[i].count, base + count);
            if (from < to)
                memcpy(f->logits[slot] + from - base, d->logits + from, (size_t)(to - from) * sizeof **f->logits);
        }
        base += count;
    }
}

/* Among the unit's ranks. */
static int index_of(const fr_unit *u, int rank) {
    int index = 0;
    while (u->ranks[index] != rank) index++;
    return index;
}

static void note_done(fr_conductor *c, fr_note *n) {
    fr_flight *f = flight_of(c, n->job);
    const fr_place *p = &c->place[n->rank];
    const int index = index_of(&c->unit[n->job->unit], n->rank);
    f->done[index] = n->done;
    f->spans[index] = n->spans;
    /* Two batches of the same ranks both count as answered when the forward ends, as in the simulator. */
    if (p->batches == 1) f->answers[p->slot] = fr_max_i64(f->answers[p->slot], n->done.answer);
    merge_logits(c, f, p, &n->done);
    if (--f->left == 0) finish(c, f);
}

/* Whether a forward is let in when this rank, and the others like it, have let it in. */
static bool is_door(const fr_place *p) {
    return p->stage == 0 && !p->experts_only;
}

static void take_note(fr_conductor *c, fr_note *n) {
    switch (n->kind) {
    case FR_NOTE_READY:
        c->ready++;
        c->answered[n->rank] = true;
        break;
    case FR_NOTE_ISSUED:
        c->asked[n->rank] = --c->unissued[n->rank] > 0 ? fr_monotonic() : 0;
        break;
    case FR_NOTE_ENTERED: {
        fr_unit *u = &c->unit[n->job->unit];
        fr_flight *f = flight_of(c, n->job);
        if (is_door(&c->place[n->rank]) && ++f->entered == u->doors) u->held--;
        break;
    }
    case FR_NOTE_DONE:
        note_done(c, n);
        break;
    case FR_NOTE_FAILED:
        break;
    case FR_NOTE_CLOSED:
        c->gone[n->rank] = true;
        c->closed++;
        c->out->lost = c->out->lost || n->lost;
        break;
    }
}

/* A rank's thread that stands still is named before those who wait for it run out of patience. */
static fr_status watch(fr_conductor *c) {
    const int64_t now = fr_monotonic(), limit = (int64_t)(fmax(ISSUE_PART * c->o->timeout_s, ISSUE_S) * 1e9);
    for (int r = 0; r < c->ranks; r++) {
        fr_error why;
        char at[96];
        if (c->asked[r] == 0 || now - c->asked[r] < limit || c->unissued[r] == 0) continue;
        const int other = fr_worker_where(c->workers[r], at, sizeof at);
        if (other > r && other < c->ranks && c->unissued[other] > 0) continue; /* that one's turn comes */
        fr_fail(&why, FR_FAILED,
                "rank %d has not issued its forward for %.3g s: its host thread stands still%s%s (--timeout sets the "
                "limit)",
                r, (double)(now - c->asked[r]) * 1e-9, at[0] ? " at op " : "", at);
        fr_world_fail(c->o->world, r, &why);
    }
    return fr_world_failed(c->o->world, NULL, c->err) ? FR_FAILED : FR_OK;
}

fr_status fr_conduct_listen(fr_conductor *c, int64_t ns) {
    fr_note n;
    while (fr_mailbox_take(c->notes, &n, ns)) {
        take_note(c, &n);
        ns = 0;
    }
    return watch(c);
}

/* Fails the world for a rank that has not carried out its command. */
static void too_long(fr_conductor *c, const char *what, double seconds) {
    fr_error why;
    int rank = 0;
    while (rank < c->ranks - 1 && c->answered[rank]) rank++;
    fr_fail(&why, FR_FAILED, "rank %d has not %s within %.3g s", rank, what, seconds);
    fr_world_fail(c->o->world, rank, &why);
}

fr_status fr_conduct_ready(fr_conductor *c, const char *what, double seconds) {
    const int64_t deadline = fr_monotonic() + (int64_t)(seconds * 1e9);
    while (c->ready < c->ranks) {
        FR_TRY(fr_conduct_listen(c, LISTEN_NS));
        if (c->ready < c->ranks && fr_monotonic() > deadline) too_long(c, what, seconds);
    }
    c->ready = 0;
    memset(c->answered, 0, (size_t)c->ranks * sizeof *c->answered);
    return FR_OK;
}

fr_status fr_conduct_drain(fr_conductor *c) {
    for (int u = 0; u < c->units; u++)
        while (c->unit[u].out > 0) FR_TRY(fr_conduct_listen(c, LISTEN_NS));
    return FR_OK;
}

/* ---- forwards -----------------------------------------------------------------------------------------------------*/

fr_status fr_conduct_give(fr_conductor *c, int unit, const fr_batch *batches, const fr_sched_batch **tickets) {
    fr_unit *u = &c->unit[unit];
    fr_job *job = fr_alloc(sizeof *job);
    fr_flight *f = fr_alloc(sizeof *f);
    *job = (fr_job){.number = u->given, .unit = unit, .slots = c->slots};
    job->batches = fr_alloc((size_t)c->slots * sizeof *job->batches);
    /* Batch mode: released when there was room for it, as in the simulator; issuing a long forward can block the host.
     */
    *f = (fr_flight){.job = job,
                     .tickets = tickets,
                     .given = tickets ? fr_conduct_now(c) : u->last_end,
                     .left = u->ranks_count,
                     .batches = batches};
    f->answers = fr_alloc((size_t)c->slots * sizeof *f->answers);
    f->logits = fr_alloc((size_t)c->slots * sizeof *f->logits);
    const fr_status s = fr_planner_forward(c->planner, unit, batches, &job->fragment, c->err);
    if (s != FR_OK) {
        flight_free(c, f);
        return s;
    }
    job->cuts = fr_planner_cuts(c->planner);
    if (tickets) fr_conduct_trim(c, f);
    fr_conduct_tokens(c, f, job);
    f->batches = NULL; /* the job has copies */
    f->done = fr_alloc((size_t)u->ranks_count * sizeof *f->done);
    f->spans = fr_alloc((size_t)u->ranks_count * sizeof *f->spans);
    u->flights[u->out++] = f;
    u->held++;
    u->given++;
    for (int i = 0; i < u->ranks_count; i++) {
        const int rank = u->ranks[i];
        if (c->unissued[rank]++ == 0) fr_conduct_asked(c, rank);
        fr_worker_forward(c->workers[rank], job);
    }
    return FR_OK;
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

static fr_status open_planner(fr_conductor *c) {
    FR_TRY(fr_setup_planner(c->setup, false, &c->planner, c->err));
    c->plan = fr_plan_static(fr_planner_plan(c->planner));
    return FR_OK;
}

static void place_ranks(fr_conductor *c) {
    for (int r = 0; r < c->ranks; r++) {
        fr_layout_place(&c->setup->experiment.layout, r, &c->place[r]);
        for (int i = 0; i < c->place[r].served; i++) {
            fr_unit *u = &c->unit[c->place[r].unit + i];
            u->ranks = fr_realloc(u->ranks, (size_t)u->ranks_count + 1, sizeof *u->ranks);
            u->ranks[u->ranks_count++] = r;
            u->doors += is_door(&c->place[r]);
        }
    }
}

/*
 * Room of the KV cache in tokens, 0 where every request is computed whole at once. Beside what the scheduler keeps:
 * batches in flight, and requests that are cut: at most one for each chunk of a budget, each up to the longest.
 */
static int64_t kv_room(const fr_setup *s, const fr_conduct_options *o, int64_t longest) {
    const fr_experiment *e = &s->experiment;
    const int64_t chunk = e->layout.chunk_tokens, cache = fr_max_i64(e->cache_tokens, 0), load = s->load.tokens;
    if (!o->requests) {
        const bool kept = e->prefix > 0 || chunk > 0;
        return kept ? fr_layout_batches(&e->layout) * s->load.sequences * (e->seq + e->prefix) : 0;
    }
    if (chunk == 0 && cache == 0) return 0;
    int64_t all = 0;
    for (int64_t i = 0; i < o->requests_count; i++) all += o->requests[i].tokens;
    const int64_t cut = chunk ? (e->budget / chunk + 2) * longest : 0;
    return cache + fr_max_i64(fr_min_i64(all, cut), 0) + (FR_CONDUCT_AHEAD + 1) * load;
}

void fr_conduct_needs(const fr_setup *s, const fr_conduct_options *o, fr_rank_needs *out) {
    int64_t positions = s->experiment.seq + s->experiment.prefix;
    int candidates = s->experiment.candidates;
    bool vocabulary = candidates < 0;
    fr_load load = s->load;
    int64_t one_length = o->requests && o->requests_count ? o->requests[0].tokens : 0;
    if (o->requests) {
        positions = 1;
        for (int64_t i = 0; i < o->requests_count; i++) {
            positions = fr_max_i64(positions, o->requests[i].tokens);
            if (o->requests[i].tokens != one_length) one_length = 0;
            if (o->requests[i].candidates > candidates) candidates = o->requests[i].candidates;
        }
        vocabulary = o->prompts ? o->prompts->vocabulary : vocabulary;
        load.sequences = fr_min_i64(load.sequences, o->requests_count);
        load.logits = load.sequences * (vocabulary ? s->model.vocab : candidates);
    }
    *out = (fr_rank_needs){.setup = s,
                           .load = load,
                           .positions = positions,
                           .candidates = candidates,
                           .vocabulary = vocabulary,
                           .kv_tokens = kv_room(s, o, positions),
                           .made_up_prefix = !o->requests,
                           .varied = o->requests && !o->prompts,
                           .one_length = one_length,
                           .timeout_s = o->timeout_s};
}

static void open_tables(fr_conductor *c) {
    const size_t ranks = (size_t)c->ranks;
    c->units = fr_planner_units(c->planner);
    c->slots = fr_planner_slots(c->planner);
    const size_t groups = (size_t)c->units * (size_t)c->slots;
    c->place = fr_alloc(ranks * sizeof *c->place);
    c->workers = fr_alloc(ranks * sizeof *c->workers);
    c->gone = fr_alloc(ranks * sizeof *c->gone);
    c->asked = fr_alloc(ranks * sizeof *c->asked);
    c->answered = fr_alloc(ranks * sizeof *c->answered);
    c->unissued = fr_alloc(ranks * sizeof *c->unissued);
    c->busy = fr_alloc(ranks * sizeof *c->busy);
    c->traffic = fr_alloc(ranks * sizeof *c->traffic);
    c->unit = fr_alloc((size_t)c->units * sizeof *c->unit);
    c->books = fr_alloc(groups * sizeof *c->books);
    c->notes = fr_mailbox_new(sizeof(fr_note));
    c->out->facts = fr_alloc(ranks * sizeof *c->out->facts);
    c->out->parts = fr_alloc(ranks * sizeof *c->out->parts);
    place_ranks(c);
}

static fr_status open_ranks(fr_conductor *c) {
    for (int r = 0; r < c->ranks; r++) {
        const fr_worker_options o = {.kind = c->o->kind,
                                     .context = c->o->context,
                                     .rank = r,
                                     .world = c->o->world,
                                     .plan = c->plan,
                                     .needs = &c->needs,
                                     .notes = c->notes,
                                     .wire = c->o->wires ? c->o->wires[r] : NULL,
                                     .inject = &c->o->inject};
        FR_TRY(fr_worker_open(&o, &c->workers[r], c->err));
    }
    return fr_conduct_ready(c, "been opened", OPEN_S);
}

/* Forwards count from 0 again, as the simulator's do; the ranks take the new plan over. */
static fr_status replan(fr_conductor *c) {
    c->old_planner = c->planner;
    c->old_plan = c->plan;
    c->planner = NULL;
    c->plan = NULL;
    FR_TRY(open_planner(c));
    for (int r = 0; r < c->ranks; r++) fr_worker_replan(c->workers[r], c->plan, c->o->spans);
    FR_TRY(fr_conduct_ready(c, "taken its plan over", c->o->timeout_s + GRACE_S));
    fr_planner_close(c->old_planner);
    c->old_planner = NULL;
    for (int u = 0; u < c->units; u++) c->unit[u].given = c->unit[u].last_end = 0;
    return FR_OK;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------*/

static void tell(const fr_conductor *c, const char *stage) {
    fr_world_tell(c->o->world, -1, stage);
}

/* The ranks' devices are idle. Time 0 is when they have tied their clocks to the host's, which takes some 2 ms. */
static fr_status start_clock(fr_conductor *c) {
    for (int r = 0; r < c->ranks; r++) FR_TRY(fr_worker_compare(c->workers[r], c->err));
    c->epoch = fr_monotonic() + START_NS;
    for (int r = 0; r < c->ranks; r++) fr_worker_start(c->workers[r], c->epoch);
    FR_TRY(fr_conduct_ready(c, "started its clock", c->o->timeout_s + GRACE_S));
    const int64_t left = -fr_conduct_now(c);
    const struct timespec rest = {.tv_nsec = (long)fr_max_i64(left, 0)};
    nanosleep(&rest, NULL);
    c->timed = true;
    if (c->o->warmup_s > 0) c->out->pause_ns = c->epoch - c->warm_end;
    if (c->o->spans) c->causes = fr_causes_new(c->plan);
    return FR_OK;
}

static fr_status play(fr_conductor *c) {
    if (c->o->warmup_s <= 0) {
        const struct timespec rest = {.tv_sec = (time_t)REST_S};
        nanosleep(&rest, NULL);
    }
    if (c->o->playing) c->o->playing(c->o->playing_context, true);
    tell(c, "the clock starts");
    fr_status s = start_clock(c);
    if (s == FR_OK) s = c->o->requests ? fr_conduct_trace(c) : fr_conduct_batches(c, c->setup->experiment.forwards, 0);
    if (c->o->playing) c->o->playing(c->o->playing_context, false);
    return s;
}

static fr_status end(fr_conductor *c) {
    for (int r = 0; r < c->ranks; r++) FR_TRY(fr_worker_compare(c->workers[r], c->err));
    for (int r = 0; r < c->ranks; r++) fr_worker_finish(c->workers[r]);
    FR_TRY(fr_conduct_ready(c, "ended its clock", c->o->timeout_s + GRACE_S));
    for (int r = 0; r < c->ranks; r++) fr_worker_facts(c->workers[r], &c->out->facts[r]);
    return FR_OK;
}

/* Waits for ranks to close, until `deadline` or until `count` have. */
static void await_closed(fr_conductor *c, int count, int64_t deadline) {
    fr_note n;
    while (c->closed < count && fr_monotonic() < deadline)
        if (fr_mailbox_take(c->notes, &n, LISTEN_NS)) {
            if (n.kind == FR_NOTE_CLOSED)
                take_note(c, &n);
            else
                fr_note_free(&n);
        }
}

/*
 * Stops the ranks and waits for them. After a failure each lets go of its device by itself; for one whose thread stands
 * still in a call this is done from outside, and it is left behind with all that it may still read.
 */
static bool close_ranks(fr_conductor *c, bool failed) {
    int open = 0;
    for (int r = 0; r < c->ranks; r++) {
        if (!c->workers[r]) continue;
        open++;
        fr_worker_stop(c->workers[r]);
    }
    const int64_t now = fr_monotonic();
    const double limit = failed ? ALONE_S : c->o->timeout_s + GRACE_S;
    await_closed(c, open, now + (int64_t)(limit * 1e9));
    bool helped = false;
    for (int r = 0; r < c->ranks; r++)
        if (c->workers[r] && !c->gone[r]) {
            fr_worker_release(c->workers[r]);
            helped = true;
        }
    if (helped) await_closed(c, open, fr_monotonic() + (int64_t)(HELPED_S * 1e9));
    for (int r = 0; r < c->ranks; r++) {
        if (!c->workers[r]) continue;
        if (c->gone[r] && !helped)
            fr_worker_close(c->workers[r]);
        else
            fr_worker_abandon(c->workers[r]);
    }
    return c->closed == open && !helped;
}

static void close_conductor(fr_conductor *c, bool failed) {
    if (c->workers && !close_ranks(c, failed)) {
        c->out->lost = true;
        return;
    }
    for (int u = 0; c->unit && u < c->units; u++) {
        for (int i = 0; i < c->unit[u].out; i++) flight_free(c, c->unit[u].flights[i]);
        free(c->unit[u].ranks);
    }
    for (int g = 0; c->books && g < c->units * c->slots; g++) {
        free(c->books[g].held);
        free(c->books[g].trims);
    }
    fr_mailbox_free(c->notes);
    fr_planner_close(c->planner);
    fr_planner_close(c->old_planner);
    fr_causes_free(c->causes);
    fr_plan_free(c->plan);
    fr_plan_free(c->old_plan);
    fr_sched_free(c->sched);
    fr_deal_close(&c->deal);
    free(c->place);
    free(c->workers);
    free(c->gone);
    free(c->asked);
    free(c->answered);
    free(c->unissued);
    free(c->busy);
    free(c->traffic);
    free(c->unit);
    free(c->books);
    free(c->spares);
    free(c->fit);
    free(c->ttft);
}

static fr_status conduct(fr_conductor *c) {
    FR_TRY(open_planner(c));
    open_tables(c);
    fr_conduct_needs(c->setup, c->o, &c->needs);
    fr_world_listen(c->o->world, &c->o->ear);
    FR_TRY(open_ranks(c));
    tell(c, "all ranks are open");
    FR_TRY(fr_conduct_warm(c));
    c->warm_end = fr_monotonic();
    tell(c, "warmed up");
    FR_TRY(replan(c));
    FR_TRY(play(c));
    tell(c, "the clock has ended");
    return end(c);
}

fr_status fr_conduct(const fr_setup *setup, const fr_conduct_options *o, fr_conducted *out, fr_error *err) {
    fr_conductor *c = fr_alloc(sizeof *c); /* ranks that are left behind go on reading it */
    *out = (fr_conducted){.ranks = fr_layout_gpus(&setup->experiment.layout)};
    *c = (fr_conductor){.setup = setup, .o = o, .out = out, .err = err, .ranks = out->ranks};
    c->layers = out->layers = fr_layout_layers(&setup->experiment.layout, &setup->model);
    out->counts = fr_alloc((size_t)c->layers * (size_t)setup->model.experts * sizeof *out->counts);
    const fr_status s = conduct(c);
    fr_conduct_result(c);
    tell(c, "the result is put together");
    close_conductor(c, s != FR_OK);
    fr_world_tell(o->world, -1, "the ranks have closed");
    if (!out->lost) free(c);
    return s;
}

void fr_conducted_free(fr_conducted *o) {
    fr_timeline_free(&o->spans);
    free(o->requests);
    free(o->forwards);
    free(o->counts);
    free(o->facts);
    free(o->parts);
    free(o->logits);
    free(o->logit_rows);
    *o = (fr_conducted){0};
}

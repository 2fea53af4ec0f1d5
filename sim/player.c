/* The player's life, its clock, fragments handed in and out. */
#include "sim/player.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/player_state.h"

/* Lane numbers inside: by (rank, kind, discipline, name), then as registered. */
typedef struct {
    const fr_lane *lane;
    uint32_t number;
} fr_lane_key;

static int lane_order(const void *a, const void *b) {
    const fr_lane_key *x = a, *y = b;
    if (x->lane->rank != y->lane->rank) return x->lane->rank < y->lane->rank ? -1 : 1;
    if (x->lane->kind != y->lane->kind) return x->lane->kind < y->lane->kind ? -1 : 1;
    if (x->lane->first_ready != y->lane->first_ready) return x->lane->first_ready ? 1 : -1;
    int name = strncmp(x->lane->name, y->lane->name, sizeof x->lane->name);
    if (name) return name;
    return x->number < y->number ? -1 : 1;
}

static void open_lanes(fr_player *p) {
    uint32_t n = p->lanes_count;
    fr_lane_key *keys = fr_alloc((n + 1) * sizeof *keys);
    int *compute_lanes = fr_alloc((size_t)p->plan->ranks * sizeof *compute_lanes);
    for (uint32_t i = 0; i < n; i++) {
        keys[i] = (fr_lane_key){&p->plan->lanes[i], i};
        compute_lanes[p->plan->lanes[i].rank] += p->plan->lanes[i].kind == FR_LANE_COMPUTE;
    }
    qsort(keys, n, sizeof *keys, lane_order);
    for (uint32_t i = 0; i < n; i++) {
        const fr_lane *from = keys[i].lane;
        fr_play_lane *l = &p->lanes[i];
        p->of_plan_lane[keys[i].number] = i;
        l->plan_lane = keys[i].number;
        l->index = i;
        l->mate = l->waiting = FR_NONE;
        l->rank = from->rank;
        l->kind = from->kind;
        l->first_ready = from->first_ready;
        l->compute = from->kind == FR_LANE_COMPUTE;
        l->transfer = !l->compute && from->kind != FR_LANE_HOST;
        l->can_chain = !l->first_ready && (!l->compute || compute_lanes[l->rank] == 1);
        l->run_end = -1;
        l->done.end = l->done_cause.end = l->cause.end = l->cause_cause.end = l->run_cause.end = -1;
    }
    free(keys);
    free(compute_lanes);
}

fr_player *fr_player_new(const fr_plan *plan, const fr_player_options *options) {
    fr_player *p = fr_alloc(sizeof *p);
    p->plan = plan;
    p->o = *options;
    p->lanes_count = plan->lanes_count;
    p->events_count = plan->events_count;
    p->plan_groups = plan->groups_count;
    p->plan_buffers = plan->buffers_count;
    p->popped = p->items_free = FR_NONE;
    p->lanes = fr_alloc((plan->lanes_count + 1) * sizeof *p->lanes);
    p->of_plan_lane = fr_alloc((plan->lanes_count + 1) * sizeof *p->of_plan_lane);
    p->ready = fr_alloc((plan->lanes_count + 1) * sizeof *p->ready);
    p->choosers = fr_alloc((plan->lanes_count + 1) * sizeof *p->choosers);
    p->waiters_cap = plan->lanes_count + 1;
    p->waiter_next = fr_alloc(p->waiters_cap * sizeof *p->waiter_next);
    p->waiter_need = fr_alloc(p->waiters_cap * sizeof *p->waiter_need);
    p->events = fr_alloc((plan->events_count + 1) * sizeof *p->events);
    for (uint32_t i = 0; i < plan->events_count; i++) p->events[i].first = FR_NONE;
    p->groups = fr_alloc((plan->groups_count + 1) * sizeof *p->groups);
    p->pools = fr_alloc((plan->buffers_count + 1) * sizeof *p->pools);
    for (uint32_t i = 0; i < plan->buffers_count; i++) p->pools[i].free = plan->buffers[i].slots;
    p->ranks = fr_alloc((size_t)plan->ranks * sizeof *p->ranks);
    for (int k = 0; k < FR_OP_KIND_COUNT; k++) p->class_of[k] = (uint8_t)fr_op_class_of((fr_op_kind)k);
    fr_heap_init(&p->heap, plan->lanes_count);
    open_lanes(p);
    fr_play_flows_open(p);
    fr_play_sms_open(p);
    return p;
}

static fr_run *new_run(fr_player *p, fr_fragment *f) {
    fr_run *run = p->spare ? p->spare : fr_alloc(sizeof *run);
    if (p->spare) p->spare = run->next;
    FR_GROW(run->shares, run->shares_cap, f->heads_count);
    FR_GROW(run->links, run->links_cap, f->heads_count);
    FR_GROW(run->prices, run->prices_cap, f->shapes_count);
    *run = (fr_run){.f = f,
                    .start = -1,
                    .shares = run->shares,
                    .links = run->links,
                    .prices = run->prices,
                    .shares_cap = run->shares_cap,
                    .links_cap = run->links_cap,
                    .prices_cap = run->prices_cap};
    f->executor = run;
    return run;
}

static void done_with(fr_player *p, fr_run *run) {
    run->f->executor = NULL;
    run->next = p->spare;
    p->spare = run;
}

static void free_runs(fr_run *run) {
    for (fr_run *next; run; run = next) {
        next = run->next;
        free(run->shares);
        free(run->links);
        free(run->prices);
        free(run);
    }
}

void fr_player_free(fr_player *p) {
    if (!p) return;
    /* Fragments still in play are the caller's; their runs are found through lanes, items and the waiting list. */
    for (uint32_t i = 0; i < p->later_n; i++) done_with(p, p->later[i].run);
    while (p->runs) {
        fr_run *run = p->runs;
        p->runs = run->next;
        done_with(p, run);
    }
    free_runs(p->spare);
    for (uint32_t i = 0; i < p->lanes_count; i++) free(p->lanes[i].items);
    for (uint32_t i = 0; i < p->plan_groups; i++) free(p->groups[i].open);
    for (uint32_t i = 0; i < p->plan_buffers; i++) {
        free(p->pools[i].holds);
        free(p->pools[i].queue);
    }
    fr_play_flows_close(p);
    fr_play_sms_close(p);
    fr_heap_free(&p->heap);
    void *all[] = {p->lanes,  p->of_plan_lane, p->ready, p->choosers, p->waiter_next, p->waiter_need, p->events,
                   p->groups, p->pools,        p->ranks, p->items,    p->calls,       p->later};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(p);
}

/* Shares: one per rank that the fragment touches, in order of first mention. */
static void open_shares(fr_player *p, fr_run *run) {
    const fr_fragment *f = run->f;
    for (uint32_t h = 0; h < f->heads_count; h++) {
        int16_t rank = p->plan->lanes[f->heads[h].lane].rank;
        uint32_t s = 0;
        while (s < run->shares_count && run->shares[s].rank != rank) s++;
        if (s == run->shares_count) run->shares[run->shares_count++] = (fr_share){.rank = rank};
        run->shares[s].left += f->heads[h].ops;
        run->left += f->heads[h].ops;
        run->links[h] = (fr_link){.run = run, .share = &run->shares[s], .first = f->heads[h].first};
    }
    for (uint32_t i = 0; i < f->ops_count; i++) {
        const fr_op *op = &f->ops[i];
        run->flops += f->shapes[op->shape].flops;
        if (!(op->flags & (FR_OP_ENTRY | FR_OP_ANSWER))) continue;
        run->entries += (op->flags & FR_OP_ENTRY) != 0;
        for (uint32_t s = 0; op->flags & FR_OP_ANSWER && s < run->shares_count; s++)
            run->shares[s].answers += run->shares[s].rank == p->plan->lanes[op->lane].rank;
    }
    run->flops *= p->plan->fold;
}

void fr_player_append(fr_player *p, fr_fragment *f, int64_t now) {
    fr_run *run = new_run(p, f);
    open_shares(p, run);
    fr_play_prices(p, run);
    if (now <= p->now) {
        fr_play_activate(p, run);
        return;
    }
    FR_GROW(p->later, p->later_cap, p->later_n + 1);
    uint32_t at = p->later_n++;
    for (; at > 0 && p->later[at - 1].time > now; at--) p->later[at] = p->later[at - 1];
    p->later[at] = (fr_later){now, run};
}

static void finish(fr_player *p, fr_run *run) {
    fr_forward_record record;
    fr_play_record(p, run, &record);
    fr_fragment *f = run->f;
    p->open_runs--;
    if (run->previous)
        run->previous->next = run->next;
    else
        p->runs = run->next;
    if (run->next) run->next->previous = run->previous;
    done_with(p, run);
    if (p->o.finished) p->o.finished(p->o.context, f, &record);
}

/* Callbacks of this instant; they may append. */
static void make_calls(fr_player *p) {
    for (uint32_t i = 0; i < p->calls_n; i++) {
        fr_call c = p->calls[i];
        if (c.kind == 2)
            finish(p, c.run);
        else if (c.kind == 1 && p->o.answered)
            p->o.answered(p->o.context, c.run->f, c.rank, p->now);
        else if (c.kind == 0 && p->o.entered)
            p->o.entered(p->o.context, c.run->f->unit, p->now);
    }
    p->calls_n = 0;
}

/* Everything that follows at this instant from what has ended; rates last, once. */
static void settle(fr_player *p) {
    for (;;) {
        fr_play_drain(p);
        if (fr_heap_top(&p->heap).time == p->now) return; /* not over yet: something without work has just met */
        if (p->choosers_n && fr_play_choose(p)) continue;
        if (p->asking_n && fr_play_sms_give(p)) continue;
        if (p->calls_n) {
            make_calls(p);
            continue;
        }
        break;
    }
    if (!p->fluid || !fr_fluid_touched(p->fluid)) return;
    const uint32_t *changed;
    uint32_t n = fr_fluid_settle(p->fluid, p->now, &changed);
    for (uint32_t i = 0; i < n; i++) fr_heap_set(&p->heap, changed[i], fr_fluid_finish(p->fluid, changed[i]));
}

static void describe_lane(const fr_player *p, const fr_play_lane *l, fr_text *out) {
    char id[48];
    const fr_fragment *f = l->run ? l->run->f : NULL;
    if (!l->op) {
        fr_text_add(out, "; %s of rank %d: no item of %u is ready", p->plan->lanes[l->plan_lane].name, l->rank,
                    (unsigned)l->pending);
        return;
    }
    fr_op_id_text(fr_op_id(p->plan, f, l->op), id);
    fr_text_add(out, "; %s of rank %d at %s ", p->plan->lanes[l->plan_lane].name, l->rank, id);
    if (l->state == FR_STATE_EVENT) {
        const fr_ref *w = &fr_op_waits(f, l->op)[l->wait_at];
        fr_text_add(out, "waits for %s >= %u, which is %u", p->plan->events[w->target].name, (unsigned)w->value,
                    (unsigned)p->events[w->target].count);
    } else if (l->state == FR_STATE_MEET) {
        fr_text_add(out, "waits for its group %u, meeting %u", (unsigned)l->op->group, (unsigned)l->op->seq);
    } else if (l->state == FR_STATE_POOL) {
        fr_text_add(out, "waits for a free slot");
    } else {
        fr_text_add(out, "stands still: a resource that it needs has nothing left");
    }
}

static fr_status deadlock(const fr_player *p, fr_error *err) {
    fr_text text = {0};
    int named = 0, more = 0;
    for (uint32_t i = 0; i < p->lanes_count; i++) {
        const fr_play_lane *l = &p->lanes[i];
        if (!l->op && !l->pending) continue;
        if (text.length < 700 && ++named)
            describe_lane(p, l, &text);
        else
            more++;
    }
    if (more) fr_text_add(&text, "; and %d more lanes", more);
    fr_status s = fr_fail(err, FR_FAILED, "deadlock at %" PRId64 " ns%s", p->now, text.text ? text.text : "");
    fr_text_free(&text);
    return s;
}

fr_status fr_player_run(fr_player *p, int64_t until, int64_t *next, fr_error *err) {
    for (;;) {
        fr_heap_entry top = fr_heap_top(&p->heap);
        if (top.time == p->now) {
            fr_play_ended(p, top.id);
            continue;
        }
        settle(p);
        if (p->broken.status != FR_OK) return fr_fail(err, p->broken.status, "%s", p->broken.text);
        int64_t time = fr_heap_top(&p->heap).time;
        if (p->later_n && p->later[0].time < time) time = p->later[0].time;
        *next = time;
        if (time == INT64_MAX && p->open_runs > 0) return deadlock(p, err);
        if (time > until || time == INT64_MAX) return FR_OK;
        if (time > p->now) p->now = time;
        while (p->later_n && p->later[0].time <= p->now) {
            fr_run *run = p->later[0].run;
            memmove(p->later, p->later + 1, --p->later_n * sizeof *p->later);
            fr_play_activate(p, run);
        }
    }
}

int64_t fr_player_now(const fr_player *p) {
    return p->now;
}

void fr_player_stats_get(const fr_player *p, fr_player_stats *out) {
    *out = p->stats;
    out->solves = p->fluid ? fr_fluid_solves(p->fluid) : 0;
    out->clock_mhz = fr_play_clock_mhz(p);
    out->folded = p->stats.played * (p->plan->fold - 1);
}

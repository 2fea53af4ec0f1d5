/* Forwards on the clock: equal batches, or requests as they arrive. */
#include "engine/conduct/conduct_state.h"

#include <stdlib.h>

#define NAP_NS  20000 /* longest sleep while an arrival is near */
#define LONG_NS 100000000

/* Forwards of a unit that may be out: some in every stage of a pipeline. */
static int most_out(const fr_conductor *c, int each) {
    return (int)fr_min_i64((int64_t)each * c->setup->experiment.layout.pp, FR_CONDUCT_MOST);
}

fr_status fr_conduct_batches(fr_conductor *c, int64_t forwards, int64_t until_ns) {
    int64_t *first = fr_alloc((size_t)c->units * sizeof *first);
    const int most = most_out(c, FR_CONDUCT_AHEAD);
    fr_status s = FR_OK;
    for (int u = 0; u < c->units; u++) first[u] = c->unit[u].given;
    while (s == FR_OK) {
        bool out = false;
        for (int u = 0; u < c->units && s == FR_OK; u++) {
            fr_unit *unit = &c->unit[u];
            while (s == FR_OK && unit->held < FR_CONDUCT_AHEAD && unit->out < most &&
                   (forwards > 0 ? unit->given - first[u] < forwards : fr_conduct_now(c) < until_ns))
                s = fr_conduct_give(c, u, fr_conduct_dealt(c, u, unit->given), NULL);
            out = out || unit->out > 0;
        }
        if (s != FR_OK || !out) break;
        s = fr_conduct_listen(c, LONG_NS);
    }
    free(first);
    return s;
}

static fr_status open_sched(fr_conductor *c) {
    fr_sched_options o;
    fr_setup_sched(c->setup, c->units * c->slots, &o);
    o.cache_tokens = fr_max_i64(c->setup->experiment.cache_tokens, 0); /* what the ranks have room for */
    return fr_sched_new(&o, &c->sched, c->err);
}

static void arrive(fr_conductor *c, int64_t *next, int64_t now) {
    const bool offline = c->setup->experiment.offline;
    for (; *next < c->o->requests_count; ++*next) {
        fr_request q = c->o->requests[*next];
        if (offline) q.arrival = 0;
        if (q.arrival > now) return;
        if (q.candidates == 0) q.candidates = c->setup->experiment.candidates;
        fr_sched_arrive(c->sched, &q, q.arrival);
    }
}

/* A unit takes its next batches when it has none, or its last ones have entered. */
static bool has_room(const fr_conductor *c, const fr_unit *u) {
    return u->out == 0 || (u->held == 0 && u->out < most_out(c, FR_CONDUCT_AHEAD));
}

static fr_status feed(fr_conductor *c, int u, int64_t now) {
    bool any = false;
    for (int s = 0; s < c->slots && !any; s++) any = fr_sched_has_work(c->sched, u * c->slots + s);
    if (!any || !has_room(c, &c->unit[u])) return FR_OK;
    const fr_sched_batch **tickets = fr_alloc((size_t)c->slots * sizeof *tickets);
    fr_batch *batches = fr_alloc((size_t)c->slots * sizeof *batches);
    any = false;
    for (int s = 0; s < c->slots; s++) {
        if (!fr_sched_next(c->sched, u * c->slots + s, now, &tickets[s])) continue;
        batches[s] = (fr_batch){tickets[s]->sequences, tickets[s]->count};
        any = true;
    }
    fr_status s = FR_OK;
    if (any)
        s = fr_conduct_give(c, u, batches, tickets);
    else
        free(tickets);
    free(batches);
    return s;
}

fr_status fr_conduct_trace(fr_conductor *c) {
    int64_t next = 0;
    fr_short_naps();
    FR_TRY(open_sched(c));
    while (next < c->o->requests_count || fr_sched_pending(c->sched) > 0) {
        const int64_t now = fr_conduct_now(c);
        arrive(c, &next, now);
        for (int u = 0; u < c->units; u++) FR_TRY(feed(c, u, now));
        const bool waits = next < c->o->requests_count && !c->setup->experiment.offline;
        const int64_t until = waits ? c->o->requests[next].arrival - now : LONG_NS;
        FR_TRY(fr_conduct_listen(c, fr_min_i64(fr_max_i64(until, NAP_NS), LONG_NS)));
    }
    return fr_conduct_drain(c);
}

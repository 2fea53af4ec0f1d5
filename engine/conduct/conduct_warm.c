/* Before the clock: the batches of batch mode, the injected routing of random weights, warming up. */
#include "engine/conduct/conduct_state.h"
#include "engine/cost/power.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIT_TOKENS 4096 /* tokens of a forward that measures routing: 256 choices of each of 128 experts, k = 8 */

const fr_batch *fr_conduct_dealt(const fr_conductor *c, int unit, int64_t forward) {
    return c->spares ? c->spares + (size_t)unit * (size_t)c->slots : fr_deal_batches(&c->deal, unit, c->slots, forward);
}

/* Trace mode: a batch that every plan has room for, on every attention group. */
static void make_batches(fr_conductor *c) {
    const size_t groups = (size_t)c->units * (size_t)c->slots;
    if (!c->o->requests) {
        fr_deal_open(&c->setup->experiment, (int64_t)groups, 1, &c->deal);
        for (int v = 0; v < c->deal.variants; v++) {
            int64_t all = 0;
            for (size_t g = 0; g < groups; g++) all += fr_conduct_dealt(c, 0, v)[g].count;
            c->sequences_all = fr_max_i64(c->sequences_all, all);
        }
        return;
    }
    int64_t n = fr_min_i64(FIT_TOKENS, c->setup->load.tokens), longest = 1;
    for (int64_t i = 0; i < c->o->requests_count; i++) longest = fr_max_i64(longest, c->o->requests[i].tokens);
    c->spare = (fr_sequence){.queries = (int32_t)fr_min_i64(n, longest), .candidates = 1, .kv_prefix = -1};
    c->spares = fr_alloc(groups * sizeof *c->spares);
    for (size_t g = 0; g < groups; g++) c->spares[g] = (fr_batch){&c->spare, 1};
    c->sequences_all = (int64_t)groups;
}

static double worst_share(const fr_conductor *c, const int64_t *counts) {
    const fr_model *m = &c->setup->model;
    double worst = 0;
    for (int l = 0; l < c->layers; l++) {
        const double *share = fr_routing_shares(c->setup->routing, l % m->layers);
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

/* Every rank moves its router bias by the same counts. */
static fr_status skew(fr_conductor *c, const int64_t *counts) {
    const size_t n = (size_t)c->layers * (size_t)c->setup->model.experts;
    for (int r = 0; r < c->ranks; r++) {
        int64_t *copy = NULL;
        if (counts) {
            copy = fr_alloc(n * sizeof *copy);
            memcpy(copy, counts, n * sizeof *copy);
        }
        fr_worker_skew(c->workers[r], copy);
    }
    return fr_conduct_ready(c, "moved its router bias", c->o->timeout_s + 60);
}

/* Random weights: measures how tokens fall on experts and corrects the router bias, a few times. */
static fr_status fit_routing(fr_conductor *c) {
    const size_t n = (size_t)c->layers * (size_t)c->setup->model.experts;
    FR_TRY(skew(c, NULL));
    c->fit = fr_alloc(n * sizeof *c->fit);
    for (int round = 0; round <= c->o->fit_rounds; round++) {
        memset(c->fit, 0, n * sizeof *c->fit);
        FR_TRY(fr_conduct_batches(c, 1, 0));
        c->out->routing_error = worst_share(c, c->fit);
        if (round < c->o->fit_rounds) FR_TRY(skew(c, c->fit));
    }
    free(c->fit);
    c->fit = NULL;
    return FR_OK;
}

fr_status fr_conduct_warm(fr_conductor *c) {
    make_batches(c);
    c->epoch = fr_monotonic();
    if (c->o->random_weights && fr_routing_kind(c->setup->routing) != FR_SKEW_EVEN) FR_TRY(fit_routing(c));
    FR_TRY(fr_conduct_batches(c, c->o->requests ? 1 : c->deal.variants, 0));
    /* The power limit looks back to the last rest: the load that it judges shall begin here, not somewhere in what was
     * prepared (engine/cost/power.h). A warm-up that is shorter than such a rest is none that it would judge. */
    const struct timespec rest = {.tv_nsec = 3 * FR_POWER_REST_NS / 2};
    if (c->o->warmup_s * 1e9 > FR_POWER_REST_NS) nanosleep(&rest, NULL);
    const int64_t from = fr_conduct_now(c);
    if (c->o->warmup_s > 0) FR_TRY(fr_conduct_batches(c, 0, from + (int64_t)(c->o->warmup_s * 1e9)));
    if (c->o->warmup_s > 0) c->out->warm_ns = fr_conduct_now(c) - from;
    for (int g = 0; c->o->requests && c->needs.kv_tokens > 0 && g < c->units * c->slots; g++) {
        fr_kv_book *b = &c->books[g]; /* the warming batch's rows go back */
        FR_GROW(b->trims, b->trims_cap, b->trims_count + 1);
        b->trims[b->trims_count++] = (fr_kv_trim){0, 0};
    }
    return FR_OK;
}

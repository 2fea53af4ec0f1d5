/*
 * The same accounts from a finished timeline as from the player that made it: for every strategy, parts of every rank
 * and of every forward are equal to the ns.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "engine/account.h"
#include "engine/causes.h"
#include "engine/deal.h"
#include "engine/strategy/strategy.h"
#include "sim/player.h"

enum { FORWARDS = 3, MOST = 64 };

typedef struct {
    fr_forward_record records[MOST];
    fr_fragment *fragments[MOST];
    int count;
} recorded;

static void finished(void *context, fr_fragment *f, const fr_forward_record *r) {
    recorded *to = context;
    to->fragments[to->count] = f;
    to->records[to->count++] = *r;
}

static void same_parts(const fr_parts *a, const fr_parts *b, const char *what, const char *flags) {
    if (memcmp(a, b, sizeof *a) == 0) return;
    fail_msg("%s, %s: elapsed %lld/%lld compute %lld/%lld exposed %lld/%lld wait %lld/%lld bubble %lld/%lld idle "
             "%lld/%lld hidden %lld/%lld",
             flags, what, (long long)a->elapsed, (long long)b->elapsed, (long long)a->compute, (long long)b->compute,
             (long long)a->exposed_comm, (long long)b->exposed_comm, (long long)a->wait, (long long)b->wait,
             (long long)a->bubble, (long long)b->bubble, (long long)a->idle, (long long)b->idle,
             (long long)a->hidden_comm, (long long)b->hidden_comm);
}

/* What a GPU would have measured of these spans: when ops ran, group ops from their own arrival on, and nothing of why.
 * The plan says the rest, forward by forward. */
static void find_causes(const fr_plan *plan, const recorded *live, const fr_timeline *spans, fr_timeline *out) {
    fr_causes *c = fr_causes_new(plan);
    fr_timeline *by_rank = fr_alloc((size_t)plan->ranks * sizeof *by_rank);
    fr_timeline **given = fr_alloc((size_t)plan->ranks * sizeof(*given));
    for (int r = 0; r < plan->ranks; r++) given[r] = &by_rank[r];
    for (int i = 0; i < live->count; i++) {
        for (int r = 0; r < plan->ranks; r++) by_rank[r].count = 0;
        for (uint32_t k = 0; k < spans->count; k++) {
            fr_span s = spans->spans[k];
            if ((int64_t)(s.id >> 44) != live->records[i].forward || s.kind == FR_OP_FENCE) continue;
            s.start = fr_op_class_of((fr_op_kind)s.kind) == FR_CLASS_COLLECTIVE ? s.ready : s.start;
            s.ready = -1;
            s.cause = 0;
            fr_timeline_add(&by_rank[s.rank], &s);
        }
        fr_causes_forward(c, live->fragments[i], given);
        for (int r = 0; r < plan->ranks; r++)
            for (uint32_t k = 0; k < by_rank[r].count; k++) fr_timeline_add(out, &by_rank[r].spans[k]);
    }
    for (int r = 0; r < plan->ranks; r++) fr_timeline_free(&by_rank[r]);
    free(by_rank);
    free(given);
    fr_causes_free(c);
    fr_timeline_sort(out);
}

/* Spans by time, as files have them: the order must not matter. */
static void compare(const char *text) {
    fr_experiment e;
    fr_setup s;
    fr_error err;
    char flags[512], *rest = flags, *name;
    snprintf(flags, sizeof flags, "%s", text);
    fr_experiment_defaults(&e);
    while ((name = strtok_r(rest, " ", &rest)))
        if (fr_experiment_set(&e, name, strtok_r(rest, " ", &rest), &err) != FR_OK) fail_msg("%s", err.text);
    if (fr_setup_open(&e, &s, &err) != FR_OK) fail_msg("%s", err.text);
    const fr_planner_options po = {.model = &s.model,
                                   .layout = &s.experiment.layout,
                                   .machine = &s.machine,
                                   .routing = s.routing,
                                   .cost = s.cost,
                                   .load = s.load};
    fr_planner *planner;
    if (fr_planner_open(&po, &planner, &err) != FR_OK) fail_msg("%s", err.text);
    fr_plan *plan = fr_planner_plan(planner);
    fr_timeline spans = {0};
    recorded live = {0}, walked;
    const fr_player_options o = {.cost = s.cost,
                                 .sharing = s.experiment.sharing,
                                 .interference = s.experiment.interference,
                                 .gpus_per_host = 8,
                                 .spans = &spans,
                                 .finished = finished,
                                 .context = &live};
    fr_player *player = fr_player_new(plan, &o);
    fr_deal deal;
    const int units = fr_planner_units(planner), slots = fr_planner_slots(planner);
    fr_deal_open(&s.experiment, (int64_t)units * slots, 1, &deal);
    for (int f = 0; f < FORWARDS; f++)
        for (int u = 0; u < units; u++) {
            fr_fragment *fragment;
            if (fr_planner_forward(planner, u, fr_deal_batches(&deal, u, slots, f), &fragment, &err) != FR_OK)
                fail_msg("%s", err.text);
            fr_player_append(player, fragment, 0);
        }
    int64_t next;
    if (fr_player_run(player, INT64_MAX, &next, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(live.count, FORWARDS * units);
    fr_timeline_sort(&spans);
    walked = live;
    for (int i = 0; i < walked.count; i++) walked.records[i].parts = (fr_parts){0};
    fr_parts *ranks = fr_alloc((size_t)plan->ranks * sizeof *ranks);
    fr_account_timeline(plan, &spans, 0, walked.records, walked.count, ranks);
    bool some = false;
    for (int r = 0; r < plan->ranks; r++) {
        fr_parts parts;
        char what[32];
        snprintf(what, sizeof what, "rank %d", r);
        fr_player_rank_parts(player, r, &parts);
        same_parts(&parts, &ranks[r], what, text);
        some = some || parts.elapsed > 0;
        const fr_parts *a = &ranks[r];
        assert_int_equal(a->compute + a->exposed_comm + a->wait + a->bubble + a->idle, a->elapsed);
    }
    assert_true(some);
    for (int i = 0; i < live.count; i++) {
        char what[32];
        snprintf(what, sizeof what, "forward %lld", (long long)live.records[i].forward);
        same_parts(&live.records[i].parts, &walked.records[i].parts, what, text);
    }
    fr_timeline found = {0};
    find_causes(plan, &live, &spans, &found);
    fr_account_timeline(plan, &found, 0, walked.records, walked.count, ranks);
    for (int r = 0; r < plan->ranks; r++) {
        fr_parts parts;
        fr_player_rank_parts(player, r, &parts);
        same_parts(&parts, &ranks[r], "causes found", text);
    }
    fr_timeline_free(&found);
    for (int i = 0; i < live.count; i++) fr_fragment_free(live.fragments[i]);
    free(ranks);
    fr_deal_close(&deal);
    fr_player_free(player);
    fr_timeline_free(&spans);
    fr_planner_close(planner);
    fr_setup_close(&s);
}

#define TINY "model qwen3-30b-a3b machine h200x8 layers 6 "

static void test_every_strategy(void **unused) {
    (void)unused;
    static const char *const cells[] = {
        TINY "strategy dp gpus 4 tokens 4K seq 1K",
        TINY "strategy tp gpus 4 tokens 2K seq 512",
        TINY "strategy ep gpus 4 tokens 4K seq 1K skew zipf:1.0",
        TINY "strategy ep gpus 4 tokens 4K seq 1K ep-exchange agrs",
        TINY "strategy ep gpus 4 tokens 4K seq 512 overlap tbo",
        TINY "strategy pp gpus 2 tokens 4K seq 512",
        TINY "strategy pp gpus 4 tokens 1K seq 4K chunk-tokens 512",
        TINY "strategy asyncep gpus 4 tokens 1K seq 1K",
        TINY "strategy asyncep gpus 4 tokens 1K seq 1K wait moe gather-chunk 8M",
        TINY "strategy asyncep gpus 4 gather nccl seqs 1K/2K/64/",
        TINY "strategy dwdp gpus 4 tokens 2K seq 1K",
        TINY "strategy dwdp gpus 4 seqs 64/4K/1,7,9/512",
        TINY "strategy offload gpus 1 tokens 1K seq 256",
        TINY "strategy offload gpus 1 tokens 1K seq 256 slots 2",
        TINY "attention tp experts ep tp 2 dp 2 ep 4 gpus 4 tokens 2K seq 512",
    };
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) compare(cells[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_strategy)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

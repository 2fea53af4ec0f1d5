/*
 * What the README claims of whole runs: real planner, real player, the shipped cost tables. Closed forms with stated
 * prices stand in test_strategy_play.c, laws of the player alone in test_player.c.
 */
#include "sim/driver.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Options as one line of "name=value" words on top of a common cell. `spans` may be NULL. */
static fr_result play(fr_timeline *spans, const char *words) {
    char text[512];
    fr_experiment e;
    fr_error err = {0};
    fr_experiment_defaults(&e);
    snprintf(text, sizeof text, "model=qwen3-30b-a3b machine=h200x8 regime=burst layers=5 forwards=1 seq=1K %s", words);
    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');
        if (value) *value++ = 0;
        if (fr_experiment_set(&e, word, value, &err)) fail_msg("%s: %s", words, err.text);
    }
    e.spans = spans != NULL;
    fr_setup s;
    if (fr_setup_open(&e, &s, &err)) fail_msg("%s: %s", words, err.text);
    fr_drive_options o = {.spans = spans};
    fr_result r = {0};
    if (fr_drive(&s, &o, &r, &err)) fail_msg("%s: %s", words, err.text);
    fr_setup_close(&s);
    const fr_parts *p = &r.parts;
    assert_int_equal(p->compute + p->exposed_comm + p->wait + p->bubble + p->idle, p->elapsed);
    return r;
}

static fr_result playf(const char *format, ...) {
    char words[400];
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    return play(NULL, words);
}

#define ALONE "no-sharing no-interference "

/* ns of one more dp layer, and of one more gather where compute is next to nothing. */
static int64_t layer_ns(int tokens) {
    return playf(ALONE "skew=even strategy=dp tokens=%d seq=128 layers=6", tokens).elapsed_ns -
           playf(ALONE "skew=even strategy=dp tokens=%d seq=128 layers=5", tokens).elapsed_ns;
}

/*
 * The knee of asyncep: the tokens per GPU at which a dp layer takes as long as the gather. From there on the forward
 * is dp's, below it every layer but the last is short of the gather by the difference.
 */
static void knee_of_asyncep(void **state) {
    (void)state;
    const char *cell = ALONE "skew=even strategy=asyncep seq=128 what-if=launch=1000x tokens=%d layers=%d";
    int64_t gather = playf(cell, 128, 6).elapsed_ns - playf(cell, 128, 5).elapsed_ns;
    int knee = 128;
    while (layer_ns(knee) < gather && knee < 1 << 20) knee += 128;
    assert_true(knee > 1024 && knee < 65536);
    for (int tokens = knee - 512; tokens <= knee + 512; tokens += 128) {
        fr_result a = playf(cell, tokens, 5), d = playf("no-sharing no-interference skew=even strategy=dp seq=128 "
                                                        "what-if=launch=1000x tokens=%d layers=5",
                                                        tokens);
        assert_int_equal(a.parts.compute, d.parts.compute);
        int64_t more = gather - layer_ns(tokens), late = a.elapsed_ns - d.elapsed_ns;
        if (tokens >= knee) assert_true(late < 100); /* launches of the pulls, a thousandth of their cost */
        if (tokens < knee) /* layer 0 has the embedding in front of it, the others are equal */
            assert_true(late >= 3 * more - 100 && late <= 4 * more + 100 && llabs(a.parts.exposed_comm - late) < 100);
    }
}

static const char *const in_order[] = {
    "strategy=dp",
    "strategy=tp",
    "strategy=tp tp=4 dp=2",
    "strategy=ep",
    "strategy=ep ep-exchange=agrs",
    "strategy=ep overlap=tbo",
    "strategy=ep overlap=expert-groups overlap-stages=4",
    "attention=tp tp=4 dp=2 experts=ep ep=8",
    "strategy=pp pp=2 micro-batches=2",
    "strategy=asyncep gather=nccl",
    "strategy=asyncep gather=nccl-ce wait=moe",
    "strategy=asyncep",
    "strategy=asyncep gather-chunk=16M",
    "strategy=dwdp",
    "strategy=offload",
    "strategy=offload ep=1",
};
enum { IN_ORDER = sizeof in_order / sizeof *in_order, FIRST_ONE_SIDED = 11 };

/*
 * More of anything never makes a forward slower: exactly, where ops do not share. Where they do, by at most 1 %, for
 * all but one-sided pulls of ranks that have drifted apart: those meet at their sources or miss each other by chance
 * (DWDP, arXiv 2604.01621 section 4.3), so there only ranks in step (even routing) keep the promise.
 */
static void more_bandwidth_is_never_slower(void **state) {
    (void)state;
    static const char *const more[] = {"nvlink=1.1x", "nvlink=2x", "hbm=1.5x", "pcie=2x", "flops=2x", "launch=2x"};
    for (size_t s = 0; s < IN_ORDER; s++)
        for (int tokens = 1024; tokens <= 8192; tokens *= 8)
            for (int shared = 0; shared < 2; shared++) {
                const char *rest = !shared               ? ALONE "skew=zipf:0.8"
                                   : s < FIRST_ONE_SIDED ? "skew=zipf:0.8"
                                                         : "skew=even";
                const char *cell = "%s %s tokens=%d forwards=2 what-if=%s";
                int64_t before = playf(cell, in_order[s], rest, tokens, "none").elapsed_ns;
                for (size_t k = 0; k < sizeof more / sizeof *more; k++) {
                    int64_t now = playf(cell, in_order[s], rest, tokens, more[k]).elapsed_ns;
                    if (now > (shared ? before + before / 100 : before))
                        fail_msg("%s, %s, %d tokens, %s: %lld ns after %lld", in_order[s], rest, tokens, more[k],
                                 (long long)now, (long long)before);
                }
            }
}

/* Compute-bound ep (links next to free): the more uneven the routing, the longer the slowest rank computes. */
static void skew_only_costs_ep(void **state) {
    (void)state;
    static const char *const skews[] = {"even", "uniform", "zipf:0.4", "zipf:0.8", "hot:16"};
    for (int seed = 1; seed <= 3; seed++)
        for (int tokens = 8192; tokens <= 32768; tokens *= 2) {
            int64_t last = 0;
            for (size_t k = 0; k < sizeof skews / sizeof *skews; k++) {
                int64_t now =
                    playf(ALONE "strategy=ep tokens=%d seed=%d skew=%s what-if=nvlink=1000x", tokens, seed, skews[k])
                        .elapsed_ns;
                if (now < last) fail_msg("%s, seed %d, %d tokens: faster", skews[k], seed, tokens);
                last = now;
            }
        }
}

/*
 * ep is its slowest rank: between two collectives every rank computes, the next collective starts with the last of
 * them and ends for all at once. The forward is the sum of the longest stretches and of the collectives.
 */
static void ep_is_its_slowest_rank(void **state) {
    (void)state;
    enum { RANKS = 8, MOST = 64 };
    int64_t stretch[MOST][RANKS] = {{0}}, longest[MOST] = {0}, exchange[MOST] = {0};
    int at[RANKS] = {0};
    fr_timeline t = {0};
    fr_result r = play(&t, ALONE "strategy=ep tokens=4096 skew=hot:4");
    int64_t first = INT64_MAX, sum = 0;
    bool uneven = false;
    for (uint32_t i = 0; i < t.count; i++) { /* a rank's spans of one lane stand in order */
        const fr_span *s = &t.spans[i];
        fr_op_class class = fr_op_class_of((fr_op_kind)s->kind);
        if (class == FR_CLASS_HOST) continue;
        int rank = s->rank, k = at[rank];
        first = s->start < first ? s->start : first;
        if (class != FR_CLASS_COLLECTIVE) {
            stretch[k][rank] += s->end - s->start;
            continue;
        }
        int64_t took = s->end - s->start; /* of the last to arrive: the shortest */
        exchange[k] = exchange[k] == 0 || took < exchange[k] ? took : exchange[k];
        assert_true(++at[rank] < MOST);
    }
    for (int k = 0; k <= at[0]; k++) {
        for (int rank = 0; rank < RANKS; rank++) {
            assert_int_equal(at[rank], at[0]);
            longest[k] = fr_max_i64(longest[k], stretch[k][rank]);
            uneven |= stretch[k][rank] != stretch[k][0];
        }
        sum += longest[k] + exchange[k];
    }
    assert_int_equal(at[0], 5 * 3); /* counts, dispatch, combine */
    assert_true(uneven && first > 0);
    assert_int_equal(r.elapsed_ns, first + sum);
    fr_timeline_free(&t);
}

/* Balanced chunks of a long prompt get smaller, not endlessly many: an eighth of the largest is the least. */
static void balanced_chunks_stay_chunks(void **state) {
    (void)state;
    const char *cell = ALONE "skew=even strategy=pp layers=8 tokens=%s seq=%s chunk-tokens=2K chunking=%s";
    int64_t fixed = playf(cell, "8K", "64K", "fixed").ops_played;
    int64_t balanced = playf(cell, "8K", "64K", "balanced").ops_played;
    assert_true(balanced > fixed && balanced <= 8 * fixed);
    fixed = playf(cell, "4K", "32K", "fixed").ops_played;
    assert_true(playf(cell, "4K", "32K", "balanced").ops_played <= 8 * fixed);
}

/* dp with everything local is the bound of all that bring the weights to the tokens; newer GPUs and fp8 are faster. */
static void plain_orders(void **state) {
    (void)state;
    static const char *const gathering[] = {"strategy=asyncep", "strategy=asyncep gather=nccl", "strategy=dwdp",
                                            "strategy=offload"};
    static const char *const machines[] = {"a100x8", "h100x8", "h200x8", "b200x8"};
    for (int tokens = 1024; tokens <= 32768; tokens *= 32) {
        int64_t bound = playf("strategy=dp tokens=%d", tokens).elapsed_ns, last = INT64_MAX;
        for (size_t s = 0; s < sizeof gathering / sizeof *gathering; s++)
            assert_true(playf("%s tokens=%d", gathering[s], tokens).elapsed_ns >= bound);
        assert_true(playf("strategy=dp tokens=%d precision=fp8", tokens).elapsed_ns < bound);
        for (size_t m = 0; m < sizeof machines / sizeof *machines; m++) {
            fr_result r = playf("strategy=dp tokens=%d machine=%s", tokens, machines[m]);
            assert_true(r.elapsed_ns < last && r.mfu > 0 && r.mfu < 1);
            last = r.elapsed_ns;
        }
    }
}

/* Half the interval of a forward whose shapes were measured: never below what cards of one kind may differ by (3 %,
 * sim/player_account.c), and no wider than 6 %. */
static void intervals(void **state) {
    (void)state;
    const fr_result r = playf("model=qwen3-235b-a22b machine=h200x1 skew=even strategy=dp tokens=16K seq=4K layers=4");
    assert_true(r.forward_s / r.forward_low_s > 1.03 && r.forward_s / r.forward_low_s < 1.065);
    assert_true(r.forward_high_s / r.forward_s > 1.03 && r.forward_high_s / r.forward_s < 1.065);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(knee_of_asyncep),
        cmocka_unit_test(more_bandwidth_is_never_slower),
        cmocka_unit_test(skew_only_costs_ep),
        cmocka_unit_test(ep_is_its_slowest_rank),
        cmocka_unit_test(balanced_chunks_stay_chunks),
        cmocka_unit_test(plain_orders),
        cmocka_unit_test(intervals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

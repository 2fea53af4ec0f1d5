/* Where activations lie: closed forms, what may not share a place, how near the sum is to the least there can be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/placement.h"

static fr_model model(const char *name) {
    fr_model m;
    fr_error err = {0};
    if (fr_model_load(name, &m, &err) != FR_OK) fail_msg("%s", err.text);
    return m;
}

static fr_layout layout(const char *strategy, int gpus, fr_layout l) {
    fr_error err = {0};
    if (fr_layout_from_strategy(strategy, gpus, &l, &err) != FR_OK) fail_msg("%s", err.text);
    return l;
}

static const struct {
    const char *strategy;
    int gpus;
    fr_layout options;
} cells[] = {
    {"dp", 1, {.tp = 0}},
    {"dp", 1, {.precision = FR_FP8}},
    {"tp", 2, {.tp = 0}},
    {"tp", 4, {.precision = FR_FP8}},
    {"tp", 4, {.tp = 2, .dp = 2}},
    {"pp", 4, {.micro_batches = 4}},
    {"pp", 2, {.chunk_tokens = 2048, .kv_cache = true}},
    {"ep", 4, {.tp = 0}},
    {"ep", 4, {.tp = 2}},
    {"ep", 2, {.exchange = FR_EXCHANGE_AGRS}},
    {"ep", 2, {.exchange = FR_EXCHANGE_A2A_K}},
    {"ep", 2, {.overlap = FR_OVERLAP_TBO}},
    {"ep", 4, {.overlap = FR_OVERLAP_TBO, .tp = 2, .exchange = FR_EXCHANGE_AGRS}},
    {"ep", 2, {.overlap = FR_OVERLAP_EXPERT_GROUPS, .overlap_stages = 4}},
    {"asyncep", 2, {.tp = 0}},
    {"dwdp", 2, {.precision = FR_FP8}},
    {"offload", 1, {.slots = 2}},
    {"offload", 1, {.slots = 2, .precision = FR_FP8}},
    {"offload", 2, {.tp = 0}},
    {"asap", 4, {.tp = 2, .dp = 1, .ep = 2}},
};
enum { CELLS = sizeof cells / sizeof *cells };
static const char *const models[] = {"qwen3-235b-a22b", "qwen3-30b-a3b", "mixtral-8x7b", "deepseek-v3"};

static int64_t room(const fr_placed *b) {
    return b->pitch * (b->slots > 1 ? b->slots : 1);
}

/* Buffers that live at once lie apart, but for one that lies over another on purpose; all are whole and within. */
static void check_places(const fr_placement *p, const char *what) {
    for (uint32_t i = 0; i < p->count; i++) {
        const fr_placed *a = &p->buffer[i];
        assert_true(a->pitch >= a->bytes && a->pitch % FR_PLACE_ALIGN == 0 && a->at % FR_PLACE_ALIGN == 0);
        if (a->lives) assert_true(a->at >= 0 && a->at + room(a) <= p->bytes);
        for (uint32_t k = 0; k < i; k++) {
            const fr_placed *b = &p->buffer[k];
            const bool over = a->over == (int)k || b->over == (int)i || (a->over >= 0 && a->over == b->over);
            if (over || !(a->lives & b->lives)) continue;
            if (a->at < b->at + room(b) && b->at < a->at + room(a))
                fail_msg("%s: %s and %s live at once and overlap", what, a->name, b->name);
        }
        if (a->over >= 0) assert_true(room(a) <= room(&p->buffer[a->over]));
    }
}

static void buffers_that_live_at_once_lie_apart(void **state) {
    (void)state;
    for (int i = 0; i < CELLS; i++)
        for (int m = 0; m < 4; m++)
            for (int64_t tokens = 1; tokens <= 65536; tokens *= 8) {
                const fr_model model_ = model(models[m]);
                const fr_layout l = layout(cells[i].strategy, cells[i].gpus, cells[i].options);
                const fr_load load = {.tokens = tokens, .sequences = 4, .imbalance = fr_layout_worst_imbalance(&l)};
                for (int experts = 0; experts <= (l.experts == FR_EXP_ASAP); experts++) {
                    fr_placement p;
                    fr_placement_of(&l, &model_, &load, experts, &p);
                    check_places(&p, cells[i].strategy);
                    assert_true(p.bytes >= p.least);
                    if (tokens >= 4096 && p.bytes > p.least + p.least / 20)
                        fail_msg("%s %d of %s: %lld bytes, the fullest phase has %lld", cells[i].strategy, i, models[m],
                                 (long long)p.bytes, (long long)p.least);
                    fr_placement_free(&p);
                }
            }
}

/* What one layer of dp needs: the stream, routes and places, and the larger of (rows, up) and (up, down). */
static void one_rank_is_its_closed_form(void **state) {
    (void)state;
    const fr_model m = model("qwen3-235b-a22b");
    const fr_layout l = layout("dp", 1, (fr_layout){0});
    const fr_load load = {.tokens = 16384, .sequences = 4, .imbalance = 1};
    const int64_t n = 16384, rows = n * 8;
    const int64_t hidden = 2 * n * 4096, route = n * 128 * 4 + n * 8 * 8 + rows * 4, order = 4 * 2 * rows;
    const int64_t mid = 2 * rows * 1536, out = 2 * rows * 4096;
    fr_placement p;
    fr_placement_of(&l, &m, &load, false, &p);
    assert_int_equal(p.bytes, hidden + route + order + mid + out + 5 * FR_PLACE_ALIGN);
    assert_int_equal(fr_placement_find(&p, "out")->at, fr_placement_find(&p, "rows")->at);
    assert_null(fr_placement_find(&p, "send"));
    fr_placement_free(&p);
}

/* Two batches in flight: only what travels is there twice. */
static void two_batches_share_the_compute_lane(void **state) {
    (void)state;
    const fr_model m = model("qwen3-235b-a22b");
    const fr_layout one = layout("ep", 2, (fr_layout){0}),
                    two = layout("ep", 2, (fr_layout){.overlap = FR_OVERLAP_TBO});
    const fr_load load = {.tokens = 16384, .sequences = 1, .longest = 16384, .equal = true, .imbalance = 2};
    fr_placement a, b;
    fr_activations r;
    fr_placement_of(&one, &m, &load, false, &a);
    fr_placement_of(&two, &m, &load, false, &b);
    fr_layout_room(&two, &m, &load, &r);
    assert_int_equal(fr_placement_find(&b, "rows'")->at, fr_placement_find(&b, "rows")->at);
    assert_true(fr_placement_find(&b, "recv'")->at != fr_placement_find(&b, "recv")->at);
    assert_int_equal(b.bytes - a.bytes, r.residual + r.router + r.send + r.receive + 4 * FR_PLACE_ALIGN);
    fr_placement_free(&a);
    fr_placement_free(&b);
}

/* One expert after the other: its result may lie over its own rows, where they are of one size. */
static void experts_one_by_one(void **state) {
    (void)state;
    const fr_model m = model("qwen3-30b-a3b");
    const fr_load load = {.tokens = 4096, .sequences = 1, .imbalance = 1};
    for (int fp8 = 0; fp8 < 2; fp8++) {
        const fr_layout l = layout("offload", 1, (fr_layout){.slots = 2, .precision = fp8 ? FR_FP8 : FR_BF16});
        fr_placement p;
        fr_placement_of(&l, &m, &load, false, &p);
        const fr_placed *rows = fr_placement_find(&p, "rows"), *out = fr_placement_find(&p, "out");
        assert_int_equal(out->over >= 0, !fp8);
        if (fp8)
            assert_true(out->at >= rows->at + rows->pitch || rows->at >= out->at + out->pitch);
        else
            assert_int_equal(out->at, rows->at);
        fr_placement_free(&p);
    }
}

/* The most tokens of a micro-batch. */
static void micro_batches_hold_their_share(void **state) {
    (void)state;
    fr_layout l = layout("pp", 4, (fr_layout){.micro_batches = 4});
    fr_load load = {.tokens = 65536, .sequences = 16, .longest = 4096, .equal = true};
    assert_int_equal(fr_layout_most_tokens(&l, &load), 16384);
    load.sequences = 17, load.tokens = 17 * 4096;
    assert_int_equal(fr_layout_most_tokens(&l, &load), 5 * 4096);
    load.equal = false; /* a share of the tokens and a sequence */
    assert_int_equal(fr_layout_most_tokens(&l, &load), 17 * 1024 + 4096);
    load.longest = 40000; /* batches of fewer sequences than micro-batches: two that long */
    assert_int_equal(fr_layout_most_tokens(&l, &load), 17 * 4096);
    load.longest = 0;
    assert_int_equal(fr_layout_most_tokens(&l, &load), 17 * 4096);
    l.chunk_tokens = 2048;
    assert_int_equal(fr_layout_most_tokens(&l, &load), 2048);
    l = layout("ep", 2, (fr_layout){.overlap = FR_OVERLAP_TBO});
    load = (fr_load){.tokens = 16384, .sequences = 4, .longest = 4096, .equal = true};
    assert_int_equal(fr_layout_most_tokens(&l, &load), 8192);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_that_live_at_once_lie_apart), cmocka_unit_test(one_rank_is_its_closed_form),
        cmocka_unit_test(two_batches_share_the_compute_lane),  cmocka_unit_test(experts_one_by_one),
        cmocka_unit_test(micro_batches_hold_their_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

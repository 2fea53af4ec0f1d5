/* Where activations lie: closed forms, what may not share a place, how near the sum is to the least there can be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/placement.h"
#include "engine/strategy/strategy.h"

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
    {"ep", 4, {.tp = 2, .precision = FR_FP8}},
    {"tp", 4, {.tp = 2, .dp = 2, .precision = FR_FP8}},
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

/* Of a buffer of the plan: where it lies, and the number of the op that wrote it last, 0 = none. */
typedef struct {
    int64_t at, end;
    int over; /* index in the placement's list of what it lies over on purpose, else of itself; -1: no activation */
    uint32_t written;
} region;

/* The ops of a rank in the order in which they are issued: what one reads must be as it was written last, with nothing
 * else written over it since. */
static void play_rank(const fr_plan *plan, fr_fragment *const *f, int count, int rank, const fr_placement *p,
                      bool one_by_one, const char *what) {
    region *at = calloc(plan->buffers_count, sizeof *at);
    uint32_t now = 0;
    for (uint32_t i = 0; i < plan->buffers_count; i++) {
        const fr_buffer *b = &plan->buffers[i];
        at[i].over = -1;
        if (b->kind != FR_BUF_ACTIVATION || b->rank != rank) continue;
        const fr_placed *x = fr_placement_find(p, b->name);
        if (!x || x->bytes != b->bytes || x->slots != b->slots) fail_msg("%s: %s is not placed", what, b->name);
        at[i] = (region){x->at, x->at + room(x), x->over >= 0 ? x->over : (int)(x - p->buffer), 0};
    }
    for (int n = 0; n < count; n++)
        for (uint32_t i = 0; i < f[n]->ops_count; i++) {
            const fr_op *op = &f[n]->ops[i];
            const fr_ref *use = fr_op_uses(f[n], op);
            if (plan->lanes[op->lane].rank != rank) continue;
            now++;
            for (int write = 0; write < 2; write++)
                for (int u = 0; u < op->uses; u++) {
                    if (use[u].use != (write ? FR_USE_WRITE : FR_USE_READ) || at[use[u].target].over < 0) continue;
                    region *x = &at[use[u].target];
                    if (!fr_placement_find(p, plan->buffers[use[u].target].name)->lives)
                        fail_msg("%s: %s is used", what, plan->buffers[use[u].target].name);
                    if (write) x->written = now;
                    for (uint32_t k = 0; k < plan->buffers_count && x->written; k++) {
                        const region *o = &at[k];
                        if (o == x || o->over < 0 || o->at >= x->end || x->at >= o->end) continue;
                        if (one_by_one && o->over == x->over) continue; /* one expert's rows at a time */
                        if (!write && o->written > x->written)
                            fail_msg("%s: %s is read by %s of layer %d, but %s was written over it", what,
                                     plan->buffers[use[u].target].name, fr_op_name((fr_op_kind)op->kind), op->layer,
                                     plan->buffers[k].name);
                    }
                }
            for (int u = 0; u < op->uses; u++) /* nor does an op write over what it reads, but in place */
                for (int v = 0; v < op->uses && use[u].use == FR_USE_READ; v++) {
                    const region *x = &at[use[u].target], *y = &at[use[v].target];
                    if (use[v].use != FR_USE_WRITE || x == y || x->over < 0 || y->over < 0) continue;
                    if (x->at < y->end && y->at < x->end)
                        fail_msg("%s: %s reads %s and writes %s", what, fr_op_name((fr_op_kind)op->kind),
                                 plan->buffers[use[u].target].name, plan->buffers[use[v].target].name);
                }
        }
    free(at);
}

static void nothing_is_written_over_what_is_still_read(void **state) {
    (void)state;
    fr_error err = {0};
    fr_machine machine;
    const fr_sequence sequences[4] = {{300, 0, 2, 0, -1}, {64, 0, -1, 1, -1}, {1, 0, 1, 2, -1}, {500, 0, 3, 3, -1}};
    assert_int_equal(fr_machine_load("h200x8", &machine, &err), FR_OK);
    for (int i = 0; i < CELLS; i++)
        for (int m = 0; m < 4; m++) {
            const fr_model model_ = model(models[m]);
            fr_layout l = layout(cells[i].strategy, cells[i].gpus, cells[i].options);
            const fr_load load = {
                .tokens = 1024, .sequences = 4, .kept = l.kv_cache, .imbalance = fr_layout_worst_imbalance(&l)};
            fr_planner *p = NULL;
            fr_fragment *f[2] = {NULL};
            fr_batch batches[8];
            char what[64];
            snprintf(what, sizeof what, "%s %d of %s", cells[i].strategy, i, models[m]);
            l.run_layers = model_.dense_layers + 4;
            const fr_planner_options o = {.model = &model_, .layout = &l, .machine = &machine, .load = load};
            if (fr_planner_open(&o, &p, &err)) fail_msg("%s: %s", what, err.text);
            for (int s = 0; s < 8; s++) batches[s] = (fr_batch){sequences, 4};
            for (int n = 0; n < 2; n++)
                if (fr_planner_forward(p, 0, batches, &f[n], &err)) fail_msg("%s: %s", what, err.text);
            const fr_plan *plan = fr_planner_plan(p);
            for (int rank = 0; rank < plan->ranks; rank++) {
                fr_place place;
                fr_placement places;
                fr_layout_place(&l, rank, &place);
                fr_placement_of(&l, &model_, &load, place.experts_only, &places);
                play_rank(plan, f, 2, rank, &places, l.slots > 0, what);
                fr_placement_free(&places);
            }
            for (int n = 0; n < 2; n++) fr_fragment_free(f[n]);
            fr_planner_close(p);
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

/* Lists of a few layouts, line by line; UPDATE_GOLDEN=1 writes tests/golden/placement.txt anew. */
static void lists_are_golden(void **state) {
    (void)state;
    static const int shown[] = {0, 2, 11, 13, 18, 21};
    static const char *const phases = "nqaosdrtSudcRCh"; /* a letter a phase, in their order */
    const char *path = "tests/golden/placement.txt";
    const fr_model m = model("qwen3-30b-a3b");
    fr_text text = {0};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        const fr_layout l = layout(cells[shown[i]].strategy, cells[shown[i]].gpus, cells[shown[i]].options);
        const fr_load load = {.tokens = 4096, .sequences = 4, .imbalance = fr_layout_worst_imbalance(&l)};
        for (int experts = 0; experts <= (l.experts == FR_EXP_ASAP); experts++) {
            fr_placement p;
            fr_placement_of(&l, &m, &load, experts, &p);
            fr_text_add(&text, "%s%s on %d GPUs, cell %d: %lld bytes\n", l.strategy, experts ? ", expert rank" : "",
                        cells[shown[i]].gpus, shown[i], (long long)p.bytes);
            for (uint32_t k = 0; k < p.count; k++) {
                char lives[FR_PHASES + 1] = "";
                for (int f = 0; f < FR_PHASES; f++) lives[f] = p.buffer[k].lives >> f & 1 ? phases[f] : '.';
                fr_text_add(&text, "  %-12s %s %12lld bytes at %lld", p.buffer[k].name, lives,
                            (long long)p.buffer[k].bytes, (long long)p.buffer[k].at);
                if (p.buffer[k].slots) fr_text_add(&text, ", %d slots", p.buffer[k].slots);
                if (p.buffer[k].over >= 0) fr_text_add(&text, ", over %s", p.buffer[p.buffer[k].over].name);
                fr_text_add(&text, "\n");
            }
            fr_placement_free(&p);
        }
    }
    fr_error err = {0};
    if (getenv("UPDATE_GOLDEN")) assert_int_equal(fr_write_file(path, text.text, text.length, &err), FR_OK);
    char *want = NULL;
    size_t length = 0;
    if (fr_read_file(path, 1 << 20, &want, &length, &err)) fail_msg("%s", err.text);
    if (length != text.length || memcmp(want, text.text, length) != 0)
        fail_msg("%s differs (UPDATE_GOLDEN=1 rewrites it)", path);
    free(want);
    fr_text_free(&text);
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
        cmocka_unit_test(buffers_that_live_at_once_lie_apart),
        cmocka_unit_test(nothing_is_written_over_what_is_still_read),
        cmocka_unit_test(lists_are_golden),
        cmocka_unit_test(one_rank_is_its_closed_form),
        cmocka_unit_test(two_batches_share_the_compute_lane),
        cmocka_unit_test(experts_one_by_one),
        cmocka_unit_test(micro_batches_hold_their_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

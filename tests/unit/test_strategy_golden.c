/*
 * The seven plans that the plan language was made for, on models of two or three layers, byte for byte. Each is proven
 * by plan_check before it is compared. UPDATE_GOLDEN=1 writes tests/golden/plan_*.txt anew.
 */
#include "engine/strategy/strategy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static fr_model model(int layers) {
    fr_model m = {.name = "tiny", .family = "qwen3_moe", .layers = layers, .hidden = 64, .vocab = 128};
    m.attention = FR_ATTENTION_GQA;
    m.heads = 4;
    m.kv_heads = 2;
    m.head_dim = m.v_head_dim = 16;
    m.qk_norm = true;
    m.window_period = 1;
    m.experts = 4;
    m.top_k = 2;
    m.expert_width = 32;
    m.router_scale = 1;
    m.rope_theta = 1e6;
    m.norm_eps = 1e-6;
    return m;
}

typedef struct {
    int unit;
    fr_batch batches[2];
} step;

/* Plans the steps in order and compares. */
static void golden(const char *name, const char *strategy, int gpus, fr_layout l, int layers, const char *spec,
                   const step *steps, int count) {
    fr_model m = model(layers);
    fr_error err = {0};
    fr_machine machine;
    fr_routing *routing = NULL;
    fr_memory memory;
    bool fits;
    char reason[256], path[128];
    fr_load load = {.tokens = 64, .sequences = 4, .kv_tokens = 256, .kept = l.kv_cache, .imbalance = 2};
    if (fr_machine_load("h200x8", &machine, &err) || fr_layout_from_strategy(strategy, gpus, &l, &err) ||
        fr_layout_check(&l, &m, &machine, &load, &memory, &fits, reason, &err) ||
        fr_routing_open(spec, &m, 1, &routing, &err))
        fail_msg("%s: %s", name, err.text);
    fr_planner_options o = {.model = &m, .layout = &l, .machine = &machine, .routing = routing, .load = load};
    fr_planner *p;
    fr_fragment *fragments[8];
    if (fr_planner_open(&o, &p, &err)) fail_msg("%s: %s", name, err.text);
    for (int i = 0; i < count; i++)
        if (fr_planner_forward(p, steps[i].unit, steps[i].batches, &fragments[i], &err))
            fail_msg("%s: %s", name, err.text);
    if (fr_plan_check(fr_planner_plan(p), fragments, count, &err)) fail_msg("%s: %s", name, err.text);
    fr_text text = {0};
    fr_plan_print(fr_planner_plan(p), fragments, count, &text);
    snprintf(path, sizeof path, "tests/golden/plan_%s.txt", name);
    if (getenv("UPDATE_GOLDEN")) assert_int_equal(fr_write_file(path, text.text, text.length, &err), FR_OK);
    char *want;
    size_t length;
    if (fr_read_file(path, 1 << 22, &want, &length, &err)) fail_msg("%s", err.text);
    size_t same = 0, line = 1;
    while (same < length && same < text.length && want[same] == text.text[same]) line += want[same++] == '\n';
    if (same != length || same != text.length)
        fail_msg("%s differs from line %zu on (UPDATE_GOLDEN=1 rewrites it)", path, line);
    free(want);
    fr_text_free(&text);
    for (int i = 0; i < count; i++) fr_fragment_free(fragments[i]);
    fr_planner_close(p);
    fr_routing_close(routing);
}

static const fr_sequence ten[1] = {{10, 0, 2, -1, -1}};
static const fr_sequence two[2] = {{10, 0, 2, -1, -1}, {6, 0, -1, -1, -1}};

/* One-sided pulls: rank 0 is two forwards on while rank 1 is in its first; nothing couples them. */
static void asyncep_pulls(void **state) {
    (void)state;
    const step steps[] = {{0, {{ten, 1}}}, {0, {{two, 2}}}, {1, {{two, 2}}}};
    golden("asyncep_pulls", "asyncep", 2, (fr_layout){0}, 3, "even", steps, 3);
}

/* Collective gathers: rank 1 has no second batch and joins with an empty forward. */
static void asyncep_collective(void **state) {
    (void)state;
    const step steps[] = {{0, {{ten, 1}, {two, 2}}}, {0, {{two, 2}, {NULL, 0}}}};
    golden("asyncep_collective", "asyncep", 2, (fr_layout){.gather = FR_GATHER_NCCL}, 3, "even", steps, 2);
}

/* Chunks of eight tokens flow through two stages; a chunk's attention reads the ones before it. */
static void pp_chunks(void **state) {
    (void)state;
    static const fr_sequence cut[2] = {{10, 0, 2, 0, -1}, {6, 0, 2, 1, -1}};
    const step steps[] = {{0, {{cut, 2}}}};
    golden("pp_chunks", "pp", 2, (fr_layout){.micro_batches = 1, .chunk_tokens = 8, .kv_cache = true}, 4, "even", steps,
           1);
}

/* Two halves in turn; what arrives is known when the counts are there. */
static void ep_two_batches(void **state) {
    (void)state;
    const step steps[] = {{0, {{two, 2}, {ten, 1}}}};
    golden("ep_two_batches", "ep", 2, (fr_layout){.overlap = FR_OVERLAP_TBO}, 2, "uniform", steps, 1);
}

/* Two attention groups, two batches each, and one expert rank that takes what is ready. */
static void asap_items(void **state) {
    (void)state;
    const step steps[] = {{0, {{ten, 1}, {ten, 1}}}, {1, {{two, 2}, {NULL, 0}}}};
    golden("asap", "asap", 3, (fr_layout){.dp = 2, .ep = 1}, 2, "even", steps, 2);
}

/* Two expert slots; of the others only experts with tokens are fetched. */
static void offload_slots(void **state) {
    (void)state;
    static const fr_sequence few[1] = {{1, 0, 2, -1, -1}};
    const step steps[] = {{0, {{few, 1}}}, {0, {{ten, 1}}}};
    golden("offload_slots", "offload", 1, (fr_layout){.slots = 2}, 2, "zipf:2", steps, 2);
}

/* A prefix is computed once; two siblings in the next forward read it. */
static void shared_prefix(void **state) {
    (void)state;
    static const fr_sequence prefix[1] = {{32, 0, 0, 0, -1}};
    static const fr_sequence siblings[2] = {{8, 32, 2, 1, 0}, {4, 32, 2, 2, 0}};
    const step steps[] = {{0, {{prefix, 1}}}, {0, {{siblings, 2}}}};
    golden("shared_prefix", "dp", 1, (fr_layout){.kv_cache = true}, 2, "even", steps, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(asyncep_pulls), cmocka_unit_test(asyncep_collective),
                                       cmocka_unit_test(pp_chunks),     cmocka_unit_test(ep_two_batches),
                                       cmocka_unit_test(asap_items),    cmocka_unit_test(offload_slots),
                                       cmocka_unit_test(shared_prefix)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What ranks hold of the weights: their regions tile every tensor as often as the layout says; runs of experts move. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "engine/shard.h"

/* Small odd sizes: 8 heads, 2 KV heads, 12 experts of width 64. */
static fr_model small(void) {
    fr_model m;
    fr_error err = {0};
    if (fr_model_load("qwen3-30b-a3b", &m, &err) != FR_OK) fail_msg("%s", err.text);
    m.layers = 7;
    m.hidden = 24;
    m.heads = 8;
    m.kv_heads = 2;
    m.head_dim = m.v_head_dim = 4;
    m.experts = 12;
    m.top_k = 2;
    m.expert_width = 64;
    return m;
}

static fr_layout layout(const char *strategy, int gpus, fr_layout given) {
    fr_error err = {0};
    if (fr_layout_from_strategy(strategy, gpus, &given, &err) != FR_OK) fail_msg("%s", err.text);
    return given;
}

static void mark(int *times, int64_t size, fr_region r) {
    for (int64_t i = 0; i < r.rows; i++)
        for (int64_t j = 0; j < r.columns; j++) {
            const int64_t at = r.first + i * r.stride + j;
            assert_true(at >= 0 && at < size);
            times[at]++;
        }
}

static void all_are(const int *times, int64_t size, int wanted) {
    for (int64_t i = 0; i < size; i++)
        if (times[i] != wanted) fail_msg("element %lld is held %d times, not %d", (long long)i, times[i], wanted);
}

/* Every element of a tensor is held by as many ranks of a stage as expected. */
static void tiles(const fr_layout *l, const fr_model *m, int stage, int attention_times, int kv_times,
                  int expert_times) {
    const int ranks = fr_layout_stage_ranks(l);
    const int64_t d = m->head_dim, h = m->hidden, q = m->heads * d * h, kv = m->kv_heads * d * h, o = h * m->heads * d,
                  up = (int64_t)m->experts * 2 * m->expert_width * h, down = up / 2;
    int *qkv_times = fr_alloc((size_t)(q + 2 * kv) * sizeof(int)), *o_times = fr_alloc((size_t)o * sizeof(int)),
        *up_times = fr_alloc((size_t)up * sizeof(int)), *down_times = fr_alloc((size_t)down * sizeof(int));
    for (int i = 0; i < ranks; i++) {
        fr_shard s;
        fr_region r[FR_QKV_REGIONS];
        fr_shard_of(l, m, stage * ranks + i, &s);
        assert_int_equal(s.stage, stage);
        fr_shard_qkv(&s, m, r);
        for (int k = 0; k < FR_QKV_REGIONS; k++) mark(qkv_times, q + 2 * kv, r[k]);
        mark(o_times, o, fr_shard_o(&s, m));
        mark(up_times, up, fr_shard_gate_up(&s, m, s.expert_first, s.expert_end));
        mark(down_times, down, fr_shard_down(&s, m, s.expert_first, s.expert_end));
    }
    all_are(qkv_times, q, attention_times);
    all_are(qkv_times + q, 2 * kv, kv_times);
    all_are(o_times, o, attention_times);
    all_are(up_times, up, expert_times);
    all_are(down_times, down, expert_times);
    free(qkv_times);
    free(o_times);
    free(up_times);
    free(down_times);
}

static void test_regions_tile(void **state) {
    (void)state;
    fr_model m = small();
    fr_layout l = layout("dp", 3, (fr_layout){0});
    tiles(&l, &m, 0, 3, 3, 3);
    l = layout("tp", 2, (fr_layout){0});
    tiles(&l, &m, 0, 1, 1, 1);
    l = layout("tp", 4, (fr_layout){0}); /* twice as many ranks as KV heads: each KV head on two */
    tiles(&l, &m, 0, 1, 2, 1);
    l = layout("tp", 4, (fr_layout){.dp = 2}); /* attention twice, experts by width over all four */
    tiles(&l, &m, 0, 2, 2, 1);
    l = layout("ep", 4, (fr_layout){0});
    tiles(&l, &m, 0, 4, 4, 1);
    l = layout("ep", 4, (fr_layout){.tp = 2});
    tiles(&l, &m, 0, 2, 2, 1);
    l = layout("asyncep", 4, (fr_layout){.ep = 2, .dp = 4});
    tiles(&l, &m, 0, 4, 4, 2);
    l = layout("dwdp", 5, (fr_layout){0}); /* uneven: 12 experts over 5 */
    tiles(&l, &m, 0, 5, 5, 1);
    l = layout("pp", 4, (fr_layout){.dp = 2, .pp = 2});
    tiles(&l, &m, 1, 2, 2, 2);
    l = layout("asap", 5, (fr_layout){.dp = 2, .ep = 3}); /* attention on two ranks, experts on three others */
    tiles(&l, &m, 0, 2, 2, 1);
    l = layout("asap", 6, (fr_layout){.tp = 2, .dp = 2, .ep = 2});
    tiles(&l, &m, 0, 2, 2, 1);
    for (int rank = 0; rank < 6; rank++) {
        fr_shard s;
        fr_shard_of(&l, &m, rank, &s);
        assert_int_equal(s.attention, rank < 4);
        assert_int_equal(s.head, rank < 4);
        assert_int_equal(s.expert_end - s.expert_first, rank < 4 ? 0 : 6);
    }
}

/* Stages cover the layers once; resident layers keep the numbers that one GPU gives them. */
static void test_layers(void **state) {
    (void)state;
    fr_model m = small();
    for (int resident = 0; resident <= 7; resident++)
        for (int pp = 1; pp <= 3; pp++) {
            fr_layout l = layout("pp", pp, (fr_layout){.resident_layers = resident});
            int next = 0;
            for (int stage = 0; stage < pp; stage++) {
                fr_shard s;
                fr_shard_of(&l, &m, stage, &s);
                assert_int_equal(s.first_layer, next);
                next = s.end_layer;
                for (int i = s.first_layer; i < s.end_layer; i++) {
                    const int held = fr_shard_layer(&s, i);
                    assert_in_range(held, 0, s.layers - 1);
                    assert_int_equal(fr_shard_layer_id(&s, held), i % (resident ? resident : 7));
                }
                assert_int_equal(s.embedding, stage == 0);
                assert_int_equal(s.head, stage == pp - 1);
            }
            assert_int_equal(next, 7);
        }
}

static void test_kinds(void **state) {
    (void)state;
    fr_model m = small();
    fr_shard s;
    fr_layout l = layout("dwdp", 5, (fr_layout){0});
    fr_shard_of(&l, &m, 2, &s);
    assert_true(s.gathers && s.packed && !s.on_host);
    assert_int_equal(s.expert_first, 4); /* 12 * 2 / 5 */
    assert_int_equal(s.expert_end, 7);
    assert_int_equal(fr_shard_slot_experts(&s, &m), 9);
    assert_int_equal(fr_shard_slot_place(&s, 3), 3);
    assert_int_equal(fr_shard_slot_place(&s, 7), 4);
    l.gather_keep = 4; /* two on either side */
    fr_shard_of(&l, &m, 2, &s);
    assert_int_equal(s.expert_first, 2);
    assert_int_equal(s.expert_end, 9);
    assert_int_equal(fr_shard_slot_experts(&s, &m), 5);
    assert_int_equal(fr_shard_slot_place(&s, 9), 2);
    l = layout("asyncep", 2, (fr_layout){0});
    fr_shard_of(&l, &m, 1, &s);
    assert_true(s.gathers && !s.packed);
    assert_int_equal(fr_shard_slot_experts(&s, &m), 12);
    assert_int_equal(fr_shard_slot_place(&s, 7), 7);
    l = layout("offload", 1, (fr_layout){0});
    fr_shard_of(&l, &m, 0, &s);
    assert_true(s.on_host && !s.gathers && !s.by_expert);
    l.slots = 2;
    fr_shard_of(&l, &m, 0, &s);
    assert_true(s.on_host && s.by_expert);
    assert_int_equal(s.expert_end, 12);
}

/* A run's bytes are what the layout counts, also of a slice. */
static void test_run_bytes(void **state) {
    (void)state;
    fr_model m = small();
    fr_shard s;
    fr_expert_run r;
    fr_layout l = layout("tp", 2, (fr_layout){0});
    fr_shard_of(&l, &m, 1, &s);
    fr_run_of(&s, &m, &r);
    m.expert_width /= 2;
    assert_int_equal(r.expert, fr_model_expert_bytes(&m, FR_BF16));
    assert_int_equal(fr_run_offset(&r, 3, 1, 2), 3 * r.bytes[0] + 2 * r.bytes[1]);
}

/* e4m3 with a scale for each block of 128 x 128: as many bytes as the model says, scales behind the weights. */
static void test_run_fp8(void **state) {
    (void)state;
    fr_model m = small();
    fr_shard s;
    fr_expert_run r;
    m.hidden = 384;
    m.expert_width = 256;
    const fr_layout l = layout("ep", 4, (fr_layout){.precision = FR_FP8});
    fr_shard_of(&l, &m, 1, &s);
    fr_run_of(&s, &m, &r);
    assert_int_equal(r.parts, 4);
    assert_int_equal(r.expert, fr_model_expert_bytes(&m, FR_FP8));
    assert_int_equal(r.expert, 3 * 384 * 256 + 3 * 4 * 3 * 2);
    assert_int_equal(fr_run_offset(&r, 3, 2, 0), 3 * 3 * 384 * 256);
    assert_int_equal(fr_run_offset(&r, 3, 3, 1), 3 * 3 * 384 * 256 + 3 * 2 * 4 * 6 + 4 * 6);
}

/* Slices of any size bring every expert to its place, whatever the seams. */
static void test_run_copies(void **state) {
    (void)state;
    const fr_expert_run r = {.parts = 3, .bytes = {10, 4, 1}, .expert = 15};
    const fr_run_move moves[] = {{5, 0, 5, 9, 4}, {4, 1, 1, 1, 0}, {3, 1, 2, 2, 0}, {1, 0, 1, 7, 6}};
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) {
        const fr_run_move *v = &moves[i];
        for (int64_t slice = 1; slice <= v->count * r.expert; slice++) {
            unsigned char to[200] = {0};
            int64_t moved = 0;
            for (int64_t at = 0; at < v->count * r.expert; at += slice) {
                fr_run_copy c[FR_RUN_PARTS];
                const int n = fr_run_copies(&r, v, at, fr_min_i64(slice, v->count * r.expert - at), c);
                for (int k = 0; k < n; k++) {
                    for (int64_t b = 0; b < c[k].bytes; b++) to[c[k].to + b] = (unsigned char)(c[k].from + b + 1);
                    moved += c[k].bytes;
                }
            }
            assert_int_equal(moved, v->count * r.expert);
            for (int part = 0; part < r.parts; part++)
                for (int e = 0; e < v->count; e++)
                    for (int64_t b = 0; b < r.bytes[part]; b++)
                        assert_int_equal(to[fr_run_offset(&r, v->to_experts, part, v->to_first + e) + b],
                                         fr_run_offset(&r, v->experts, part, v->first + e) + b + 1);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regions_tile), cmocka_unit_test(test_layers),  cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_run_bytes),    cmocka_unit_test(test_run_fp8), cmocka_unit_test(test_run_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Structural times against sums done by hand, under round ceilings, and attention against counting block by block. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/cost/cost_grouped.h"

#include <math.h>

static const fr_ceilings round_figures = {
    .peak = {1e15, 2e15}, .hbm = 4e12, .link = 400e9, .pcie = 50e9, .floor_ns = 1000, .sms = 100};

static fr_base base_of(const fr_ceilings *c, fr_shape s, const fr_pair *pairs) {
    fr_base b;
    fr_cost_base(c, &s, pairs, &b);
    return b;
}

#define near(got, want) near_to((got), (want), #got)
static void near_to(double got, double want, const char *what) {
    if (!(fabs(got - want) <= 1e-9 * (1 + fabs(want)))) fail_msg("%s: %.9g, expected %.9g", what, got, want);
}

/* By the peak where there are many rows, by the bytes of the weights where there are few; FP8 halves both. */
static void dense(void **state) {
    (void)state;
    fr_base b = base_of(&round_figures, (fr_shape){.kind = FR_OP_GEMM_QKV, .m = 10000, .n = 5000, .k = 2000}, NULL);
    near(b.flops, 2e11);
    near(b.ns, 1000 + 200000);
    near(b.hbm_bytes, 2.0 * (10000e0 * 2000 + 5000e0 * 2000 + 10000e0 * 5000));
    b = base_of(&round_figures, (fr_shape){.kind = FR_OP_GEMM_QKV, .m = 1, .n = 5000, .k = 2000}, NULL);
    near(b.ns, 1000 + 2.0 * (2000 + 1e7 + 5000) / 4e12 * 1e9);
    const fr_shape fp8 = {.kind = FR_OP_GEMM_O, .precision = FR_FP8, .m = 10000, .n = 5000, .k = 2000};
    b = base_of(&round_figures, fp8, NULL);
    near(b.bound, 100000);
    near(b.hbm_bytes, 10000e0 * 2000 + 5000e0 * 2000 + 2.0 * 10000e0 * 5000);
    fr_ceilings old = round_figures; /* without the format: in bf16, its operands still a byte each */
    old.peak[FR_FP8] = 0;
    near(base_of(&old, fp8, NULL).bound, 200000);
}

static void bytes(void **state) {
    (void)state;
    const fr_shape combine = {.kind = FR_OP_COMBINE, .bytes = 400000000},
                   norm = {.kind = FR_OP_NORM, .m = 1000, .n = 2000};
    near(base_of(&round_figures, combine, NULL).ns, 1000 + 100000);
    near(base_of(&round_figures, norm, NULL).hbm_bytes, 8e6); /* no bytes: rows of bf16 in and out */
    near(base_of(&round_figures, (fr_shape){.kind = FR_OP_SORT, .bytes = 400000}, NULL).ns, 3 * 1000 + 100);
    near(base_of(&round_figures, (fr_shape){.kind = FR_OP_UPLOAD, .bytes = 50000000}, NULL).ns, 1000 + 1e6);
    /* 8,000 rows of 1,000 written, and read: all of them by `bytes`, 1,000 at the top-8, or as many as k says */
    fr_shape permute = {.kind = FR_OP_PERMUTE, .m = 8000, .n = 1000, .bytes = 32000000};
    near(base_of(&round_figures, permute, NULL).hbm_bytes, 16e6 + 2e6);
    permute.k = 4000;
    near(base_of(&round_figures, permute, NULL).hbm_bytes, 16e6 + 8e6);
}

static void copies(void **state) {
    (void)state;
    static const struct {
        fr_op_kind kind;
        double ns, hbm, link;
    } all[] = {{FR_OP_PULL, 3000 + 1e6, 4e8, 4e8},
               {FR_OP_PUSH, 3000 + 1e6, 4e8, 4e8},
               {FR_OP_H2D, 3000 + 8e6, 4e8, 0},
               {FR_OP_D2H, 3000 + 8e6, 4e8, 0},
               {FR_OP_DRAIN, 3000 + 2e5, 8e8, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const fr_base b = base_of(&round_figures, (fr_shape){.kind = (uint8_t)all[i].kind, .bytes = 400000000}, NULL);
        near(b.ns, all[i].ns);
        near(b.bound, all[i].ns - 3000);
        near(b.hbm_bytes, all[i].hbm);
        near(b.link_bytes, all[i].link);
    }
    fr_ceilings bare = round_figures; /* peers are reached over PCIe */
    bare.link = 0;
    near(base_of(&bare, (fr_shape){.kind = FR_OP_PULL, .bytes = 400000000}, NULL).bound, 8e6);
}

/* Rings: 8.4 us to start, 3.4 us a hop of two ranks inside, further hops beside. */
static void rings(void **state) {
    (void)state;
    static const struct {
        fr_op_kind kind;
        double wire, hbm, inside, beside; /* of 8 ranks, of the bytes; us */
    } all[] = {{FR_OP_ALLREDUCE, 1.75, 1.75 * 2.5, 8.4 + 2 * 3.4, 12 * 3.4},
               {FR_OP_ALLGATHER, 0.875, 1.75, 8.4 + 3.4, 6 * 3.4},
               {FR_OP_REDUCESCATTER, 0.875, 0.875 * 3, 8.4 + 3.4, 6 * 3.4},
               {FR_OP_ALLTOALL, 1, 2, 8.4 + 3.4, 0},
               {FR_OP_ALLTOALL_BACK, 1, 2, 8.4 + 3.4, 0},
               {FR_OP_SEND, 1, 2, 8.4 + 3.4, 0},
               {FR_OP_COUNTS, 0, 0, 8.4 + 3.4, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const fr_shape s = {.kind = (uint8_t)all[i].kind, .bytes = 400000000, .ranks = 8};
        const fr_base b = base_of(&round_figures, s, NULL);
        near(b.link_bytes, all[i].wire * 4e8);
        near(b.hbm_bytes, all[i].hbm * 4e8);
        near(b.bound, all[i].wire * 1e6);
        near(b.ns, all[i].inside * 1e3 + all[i].wire * 1e6);
        near(b.extra, all[i].beside * 1e3);
    }
    fr_shape two = {.kind = FR_OP_ALLREDUCE, .bytes = 400000000, .ranks = 2};
    near(base_of(&round_figures, two, NULL).extra, 0);
    /* by copy engines: a barrier before and behind, another copy started for each further peer */
    const fr_shape ce = {.kind = FR_OP_GATHER_WEIGHTS, .transport = 2, .bytes = 400000000, .ranks = 4};
    near(base_of(&round_figures, ce, NULL).ns, 4 * 3400 + 3000 + 0.75e6);
    near(base_of(&round_figures, ce, NULL).extra, 2 * 3000);
}

/* Two hosts of eight over 25 GB/s a GPU: 8 of a rank's 15 peers are elsewhere; a ring's traffic is shared by a host's
 * adapters. The network beside the links, where it takes longer. */
static void hosts(void **state) {
    (void)state;
    fr_ceilings c = round_figures;
    c.network = 25e9;
    c.network_latency_ns = 5000;
    fr_shape s = {.kind = FR_OP_ALLTOALL, .bytes = 150000000, .ranks = 16, .hosts = 2};
    fr_base b = base_of(&c, s, NULL);
    near(b.bound, 8e7 / 25e9 * 1e9);
    near(b.ns + b.extra, 2 * (5000 + 14000) + 3.2e6);
    near(b.ns, 8400 + 3400 + 1.5e8 / 400e9 * 1e9);
    s.kind = FR_OP_ALLGATHER; /* 15/16 of the bytes over the ring, an eighth of that through each adapter */
    s.bytes = 1600000000;
    b = base_of(&c, s, NULL);
    near(b.bound, 1.5e9 / 8 / 25e9 * 1e9);
    near(b.ns + b.extra, 14 * 3400 + 2 * (5000 + 14000) + 7.5e6);
}

/* One sequence, query by query and block by block: a tile of 128 queries reads every block of 128 keys that one of its
 * rows sees. Keys before a window of w are seen by none. */
static void attention_counted(void **state) {
    (void)state;
    static const struct {
        int q, p, w;
    } all[] = {{1, 0, 0},       {128, 0, 0},    {129, 0, 0},    {1000, 0, 0},    {700, 300, 0},    {512, 8192, 0},
               {1000, 0, 5000}, {640, 1280, 0}, {1000, 0, 256}, {1024, 0, 1024}, {3000, 1000, 512}};
    const fr_pair tile = {128, 0};
    const fr_base least = base_of(
        &round_figures, (fr_shape){.kind = FR_OP_ATTENTION, .n = 8, .k = 2, .head_dim = 128, .vector_count = 1}, &tile);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const int q = all[i].q, p = all[i].p, w = all[i].w, heads = 8, kv = 2, head_dim = 128;
        double pairs = 0, blocks = 0;
        for (int r = 0; r < q; r++) pairs += w && p + r + 1 > w ? w : p + r + 1;
        for (int first = 0; first < q; first += 128) {
            const int last = first + 127 < q ? first + 127 : q - 1;
            for (int block = 0; block * 128 <= p + last; block++) blocks += !w || block * 128 + 127 > p + first - w;
        }
        const fr_pair one = {q, p};
        const fr_shape s = {
            .kind = FR_OP_ATTENTION, .n = heads, .k = kv, .head_dim = head_dim, .window = w, .vector_count = 1};
        const fr_base b = base_of(&round_figures, s, &one);
        near(b.flops, 2.0 * heads * 2 * head_dim * pairs);
        const double tiles = (q + 127) / 128, seen = exp(b.feature) - exp(least.feature) + 1;
        if (w == 0 && p % 128 == 0) near(seen, blocks / tiles);
        if (w) assert_true(seen > blocks / tiles - 1e-9 && seen < blocks / tiles + 1);
        near(b.hbm_bytes, 2.0 * 2 * head_dim * (q * heads + (w && p + q > w + q ? w + q : p + q) * kv));
        assert_true(b.ns >= 1000 + b.bound && b.cached == (p > 0));
    }
}

/* 64, 128, 192 and 320 rows of four experts, bf16, n = 2560 and k = 1000: bytes at 0.95 of HBM's rate, rows at 1 / 1.3
 * of it; ten column tiles over 100 SMs, at 0.84 of the peak and 1.56 us each; the shorter of both counts 0.12. */
static void grouped_by_hand(void **state) {
    (void)state;
    const fr_pair rows[] = {{64, 0}, {128, 0}, {192, 0}, {320, 0}};
    fr_ceilings c = round_figures;
    c.grouped_tile = 64;
    const fr_base b =
        base_of(&c, (fr_shape){.kind = FR_OP_EXPERT_DOWN, .n = 2560, .k = 1000, .experts = 4, .vector_count = 4}, rows);
    const double byte = 1 / (0.95 * 4000), weights = 2560e3 * 2 * byte, row = 1.3 * (1000 * 2 + 2560 * 2) * byte;
    const double block = 2.0 * 64 * 256 * 1000 / (0.84 * 1e13) * 1e9, half = 0.1 * (block + 1560),
                 tile = 0.1 * (2 * block + 1560);
    const double again = 2560e3 * 2 / 50e6 * weights; /* the share of an expert's weights in 50 MB of L2 */
#define BESIDE(x, y) (fmax(x, y) + 0.12 * fmin(x, y))
    const double rest = BESIDE(again, half), tail = 0.12 * 100 * 256 * 1000 * 2 * byte;
    near(b.ns, 1000 + BESIDE(weights + 64 * row, half) + BESIDE(weights + 128 * row, tile) +
                   BESIDE(weights + 192 * row, tile) + rest + BESIDE(weights + 320 * row, 2 * tile) + rest + tail);
    near(b.flops, 2.0 * 704 * 2560 * 1000);
    near(b.hbm_bytes, 4 * 2560e3 * 2 + 704 * (1000 * 2 + 2560 * 2));
}

/* What is kept of experts by their rows is what they take: under more laws than are kept, and of more rows. */
static void experts_kept(void **state) {
    (void)state;
    fr_expert_memo *memo = fr_expert_memo_new();
    fr_pair rows[64];
    for (int turn = 0; turn < 60; turn++) {
        for (int e = 0; e < 64; e++) rows[e].queries = e * e * (turn % 3) - 5, rows[e].prefix = 0; /* up to 7,933 */
        const fr_shape s = {.kind = turn % 2 ? FR_OP_EXPERT_UP : FR_OP_EXPERT_DOWN,
                            .precision = (uint8_t)(turn % 4 / 2),
                            .n = 1024 + 128 * (turn % 7),
                            .k = 2048,
                            .vector_count = 64};
        fr_base kept;
        const fr_base plain = base_of(&round_figures, s, rows);
        fr_grouped_base(memo, &round_figures, &s, rows, &kept);
        assert_true(kept.ns >= plain.ns && kept.ns <= plain.ns && plain.ns >= 0);
        assert_true(kept.follows >= plain.follows && kept.follows <= plain.follows);
        assert_true(kept.lifted >= plain.lifted && kept.lifted <= plain.lifted);
    }
    fr_expert_memo_free(memo);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(dense),           cmocka_unit_test(bytes),
                                       cmocka_unit_test(copies),          cmocka_unit_test(rings),
                                       cmocka_unit_test(hosts),           cmocka_unit_test(attention_counted),
                                       cmocka_unit_test(grouped_by_hand), cmocka_unit_test(experts_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

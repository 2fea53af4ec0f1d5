/* The cost model against closed forms, its own tables and the one-layer table of the first H200 readings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/cost.h"
#include "engine/cost_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static fr_machine machine(const char *gpu) {
    fr_machine m = {.gpus = 8,
                    .gpus_per_host = 8,
                    .gpus_per_domain = 8,
                    .peak_flops = {989.5e12, 1979e12},
                    .sms = 132,
                    .hbm_bytes = INT64_C(141000000000),
                    .hbm_rate = 4.8e12,
                    .link_rate = 450e9,
                    .pcie_rate = 55.4e9,
                    .copy_engines = 3,
                    .host_rate = 400e9};
    snprintf(m.name, sizeof m.name, "%sx8", gpu);
    snprintf(m.gpu, sizeof m.gpu, "%s", gpu);
    return m;
}

static fr_cost_model *open_with(const fr_machine *m, const fr_cost_options *o) {
    fr_cost_model *c = NULL;
    fr_error err = {0};
    if (fr_cost_open(m, o, &c, &err) != FR_OK) fail_msg("%s", err.text);
    return c;
}

static fr_cost_model *h200(fr_regime regime) {
    fr_machine m = machine("h200");
    return open_with(&m, &(fr_cost_options){.regime = regime, .what_if = FR_WHAT_IF_NONE});
}

static fr_cost cost(const fr_cost_model *c, fr_shape s, const fr_pair *pairs) {
    fr_cost out;
    fr_cost_op(c, &s, pairs, &out);
    assert_true(out.low <= out.ns && out.ns <= out.high && out.low >= 0);
    return out;
}

static fr_shape gemm(int64_t m, int32_t n, int32_t k) {
    return (fr_shape){.kind = FR_OP_GEMM_QKV, .m = m, .n = n, .k = k};
}

/* Every kind has a cost, an interval and a provenance on every kind of machine, and the empty shape costs nothing. */
static void every_kind(void **state) {
    (void)state;
    static const char *const gpus[] = {"h200", "h100", "a100", "b200", "gb200", "unheard-of"};
    fr_pair pairs[8];
    for (int i = 0; i < 8; i++) pairs[i] = (fr_pair){500 + i, i};
    for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
        fr_machine m = machine(gpus[g]);
        fr_cost_model *c = open_with(&m, NULL);
        for (int k = 1; k < FR_OP_KIND_COUNT; k++) {
            if (k == FR_OP_FENCE) continue;
            fr_shape s = {.kind = (uint8_t)k,
                          .m = 1000,
                          .n = 4096,
                          .k = 4096,
                          .head_dim = 128,
                          .bytes = 1 << 20,
                          .ranks = 4,
                          .experts = 8,
                          .vector_count = 8};
            fr_cost x = cost(c, s, pairs);
            assert_true(x.ns > 0);
            assert_true((unsigned)x.provenance < FR_FROM_KINDS);
            fr_shape empty = {.kind = (uint8_t)k, .n = 4096, .k = 4096, .head_dim = 128, .ranks = 4};
            if (k != FR_OP_COUNTS && k != FR_OP_READBACK) assert_int_equal(cost(c, empty, pairs).ns, 0);
        }
        fr_cost_close(c);
    }
}

/* One Qwen3-235B layer at 4K, 16K and 32K tokens (facts sheet), ms: qkv, o, attention, expert up, down. */
static void layer_table(void **state) {
    (void)state;
    static const struct {
        int tokens;
        double qkv, o, attn, up, down;
    } rows[] = {{4096, .43, .36, .52, 1.59, .88},
                {16384, 1.59, 1.44, 1.83, 5.55, 2.70},
                {32768, 3.27, 2.83, 3.99, 10.39, 5.91}};
    fr_cost_model *c = h200(FR_BURST);
    for (int i = 0; i < 3; i++) {
        int t = rows[i].tokens;
        char text[512];
        /* the same expert loads as the seeds: even routing's binomial spread */
        snprintf(text, sizeof text,
                 "# gpu: x\n# sms: 1\n# peak_bf16: 1\n# hbm_rate: 1\n"
                 "grouped precision=bf16 rows=random:%d/128 n=1 k=1 regime=burst ns=1\n",
                 8 * t);
        fr_table table = {0};
        assert_int_equal(fr_table_parse(text, strlen(text), "t", &table, NULL), FR_OK);
        fr_pair seqs[8];
        for (int s = 0; s < t / 4096; s++) seqs[s] = (fr_pair){4096, 0};
        double got[] = {
            (double)cost(c, gemm(t, 9216, 4096), NULL).ns, (double)cost(c, gemm(t, 4096, 8192), NULL).ns,
            (double)cost(
                c,
                (fr_shape){
                    .kind = FR_OP_ATTENTION, .n = 64, .k = 4, .head_dim = 128, .vector_count = (uint32_t)(t / 4096)},
                seqs)
                .ns,
            (double)cost(c, (fr_shape){.kind = FR_OP_EXPERT_UP, .n = 3072, .k = 4096, .vector_count = 128}, table.pairs)
                .ns,
            (double)cost(c, (fr_shape){.kind = FR_OP_EXPERT_DOWN, .n = 4096, .k = 1536, .vector_count = 128},
                         table.pairs)
                .ns};
        double want[] = {rows[i].qkv, rows[i].o, rows[i].attn, rows[i].up, rows[i].down};
        /* projections are rows of the table; attention and experts pool rows of other lengths and of equal groups */
        double within[] = {0.001, 0.001, 0.08, 0.05, 0.05};
        for (int k = 0; k < 5; k++)
            if (fabs(got[k] / 1e6 / want[k] - 1) > within[k])
                fail_msg("tokens %d, column %d: %.3f ms, measured %.3f", t, k, got[k] / 1e6, want[k]);
        fr_table_free(&table);
    }
    fr_cost_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind),
        cmocka_unit_test(layer_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

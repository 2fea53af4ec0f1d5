/* Layouts: shorthand degrees, what is refused and by which name, and memory against a table worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "engine/layout.h"

static void near(double got, double expected, double within) {
    if (!(fabs(got - expected) <= within)) fail_msg("%.9g is not within %g of %.9g", got, within, expected);
}

static fr_model model(const char *name) {
    fr_model m;
    fr_error err = {0};
    if (fr_model_load(name, &m, &err) != FR_OK) fail_msg("%s", err.text);
    return m;
}

static fr_machine machine(const char *name) {
    fr_machine m;
    fr_error err = {0};
    if (fr_machine_load(name, &m, &err) != FR_OK) fail_msg("%s", err.text);
    return m;
}

static fr_layout layout(const char *strategy, int gpus) {
    fr_layout l = {.kv_cache = true};
    fr_error err = {0};
    if (fr_layout_from_strategy(strategy, gpus, &l, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(fr_layout_gpus(&l), gpus);
    return l;
}

static fr_memory check(const fr_layout *l, const char *model_name, const char *machine_name, const fr_load *load,
                       bool *fits) {
    fr_model m = model(model_name);
    fr_machine h = machine(machine_name);
    fr_memory memory;
    fr_error err = {0};
    char reason[256];
    bool unused;
    if (fr_layout_check(l, &m, &h, load, &memory, fits ? fits : &unused, reason, &err) != FR_OK)
        fail_msg("%s", err.text);
    assert_int_equal(memory.total, memory.attention + memory.embedding_head + memory.experts + memory.gather_buffers +
                                       memory.first_layer + memory.kv + memory.activations + memory.workspace);
    return memory;
}

static const fr_load empty = {.imbalance = 1};

/* facts: moe-prefill, section 2.5, GB for N = 1, 2, 4, 8. */
static void test_sheet_table(void **state) {
    (void)state;
    static const double table[2][3][4] = {
        {{470.2, 243.1, 129.5, 72.8}, {0, 257.6, 144.0, 87.3}, {0, 35.3, 30.5, 28.1}},
        {{235.1, 121.5, 64.8, 36.4}, {0, 128.8, 72.0, 43.6}, {0, 17.7, 15.2, 14.0}},
    };
    static const char *const strategies[] = {"ep", "asyncep", "offload"};
    static const char *const machines[] = {"h200x1", "h200x2", "h200x4", "h200x8"};
    fr_model m = model("qwen3-235b-a22b");
    for (int p = 0; p < 2; p++)
        for (int s = 0; s < 3; s++)
            for (int i = s == 0 ? 0 : 1; i < 4; i++) { /* with one GPU there is nothing to gather: see below */
                fr_layout l = layout(strategies[s], 1 << i);
                l.precision = (fr_precision)p;
                fr_memory memory = check(&l, m.name, machines[i], &empty, NULL);
                assert_int_equal(memory.activations + memory.kv, 0);
                double gb = (double)(memory.total - memory.workspace) / 1e9;
                /* The table counts everything at 1 byte in FP8; embedding, head, router and norms stay bf16 (which
                 * costs their parameters once more), and scales are 4 bytes per 128 x 128 weights. */
                if (p == FR_FP8) {
                    fr_params params;
                    fr_model_params(&m, &params);
                    int64_t small =
                        params.embedding + params.head + params.norms + params.routers + m.layers * 2 * m.head_dim;
                    gb -= (double)small / 1e9;
                    gb -= gb * 4 / 128 / 128;
                }
                near(gb, table[p][s][i], 0.06);
                near((double)memory.host_pinned / 1e9, s == 2 ? (p ? 227.1 : 454.2) : 0, 0.1);
            }
    fr_layout alone = layout("asyncep", 1);
    fr_memory memory = check(&alone, m.name, "h200x1", &empty, NULL);
    assert_int_equal(memory.gather_buffers + memory.first_layer, 0);
}

static void test_items(void **state) {
    (void)state;
    fr_model m = model("qwen3-30b-a3b");
    int64_t one = fr_model_expert_bytes(&m, FR_BF16), full = 128 * one;
    fr_layout l = layout("dwdp", 3); /* 42, 43, 43 experts */
    fr_machine h;
    fr_memory memory = check(&l, m.name, "h200x4", &empty, NULL);
    assert_int_equal(memory.experts, 48 * 43 * one);
    assert_int_equal(memory.gather_buffers, 2 * (128 - 42) * one);
    int first, end, held = 0;
    for (int r = 0; r < 3; r++) {
        fr_layout_expert_range(&l, &m, r, &first, &end);
        assert_int_equal(first, held);
        assert_true(end - first == 42 || end - first == 43);
        held = end;
    }
    assert_int_equal(held, 128);

    l = layout("offload", 1);
    l.slots = 2;
    memory = check(&l, m.name, "h200x1", &empty, NULL);
    assert_int_equal(memory.gather_buffers, 2 * one);
    assert_int_equal(memory.host_pinned, 48 * full);
    l.slots = 0;
    assert_int_equal(check(&l, m.name, "h200x1", &empty, NULL).gather_buffers, 2 * full);

    l = layout("pp", 8); /* 48 layers: 6 a stage */
    memory = check(&l, m.name, "h200x8", &empty, NULL);
    assert_int_equal(memory.experts, 6 * full);
    h = machine("h200x8");
    fr_memory last;
    fr_layout_stage_memory(&l, &m, &h, &empty, 7, false, &last);
    assert_int_equal(last.embedding_head, fr_model_head_bytes(&m));
    /* a stage in the middle talks to two others */
    fr_layout_stage_memory(&l, &m, &h, &empty, 3, false, &memory);
    assert_int_equal(memory.workspace - last.workspace, h.nccl_pair);

    l = layout("tp", 8); /* 4 KV heads: replicated twice; an expert width of 96 */
    memory = check(&l, m.name, "h200x8", &empty, NULL);
    assert_int_equal(memory.experts, 48 * full / 8);
    fr_layer_bytes b;
    fr_model_layer_bytes(&m, 0, FR_BF16, &b);
    int64_t kv_projections = 2 * 2 * 4 * 128 * 2048; /* k and v */
    int64_t per_layer =
        (b.attention - kv_projections) / 8 + kv_projections / 4 + b.attention_small + b.norms + b.router;
    assert_int_equal(memory.attention, 48 * per_layer + 2 * 2048);

    l = layout("dp", 8);
    l.run_layers = 12;
    l.resident_layers = 4;
    fr_load load = {.tokens = 0, .kv_tokens = 1000, .imbalance = 1};
    memory = check(&l, m.name, "h200x8", &load, NULL);
    assert_int_equal(memory.experts, 4 * full);
    assert_int_equal(memory.kv, 1000 * 12 * 2 * 4 * 128 * 2);

    l = layout("asap", 8);
    assert_int_equal(l.ep, 4);
    assert_int_equal(l.dp, 4);
    memory = check(&l, m.name, "h200x8", &empty, NULL);
    assert_int_equal(memory.experts, 48 * full / 4);
    assert_int_equal(memory.attention, 0); /* the expert rank needs more */
}

static void test_activations(void **state) {
    (void)state;
    fr_model m = model("qwen3-235b-a22b");
    fr_layout l = layout("dp", 1);
    fr_load load = {.tokens = 16384, .imbalance = 1};
    fr_activations a;
    fr_layout_activations(&l, &m, &load, load.tokens, &a);
    assert_int_equal(a.rows, 16384 * 8);
    assert_int_equal(a.permuted, 16384 * 8 * 4096 * 2); /* 2 n k H */
    assert_int_equal(a.up, 16384 * 8 * 1536 * 2);
    /* ep: the mean is the same as dp's; skew lengthens it, up to every token's k on one rank. */
    l = layout("ep", 8);
    load.imbalance = 1.5;
    fr_layout_activations(&l, &m, &load, load.tokens, &a);
    assert_int_equal(a.rows, 16384 * 8 * 3 / 2);
    assert_int_equal(a.arriving, fr_min_i64(a.rows, 16384 * 8));
    assert_int_equal(a.receive, a.arriving * (4096 * 2 + 8 * 8)); /* a row, ids and weights of 8 experts */
    load.imbalance = 1000;
    fr_layout_activations(&l, &m, &load, load.tokens, &a);
    assert_int_equal(a.rows, 16384 * 8 * 8);
    /* tp: the stage's tokens, 1/8 of each width. */
    l = layout("tp", 8);
    fr_layout_activations(&l, &m, &load, load.tokens, &a);
    assert_int_equal(a.up, 16384 * 8 * 192 * 2);
    assert_int_equal(a.send + a.receive, 0);
    /* One layer's activations follow the micro-batch: of 16 equal sequences each of four takes four. */
    l = layout("pp", 4);
    assert_int_equal(l.micro_batches, 4);
    fr_load whole = {.tokens = 65536, .sequences = 16, .longest = 4096, .equal = true, .imbalance = 1};
    fr_load quarter = {.tokens = 16384, .sequences = 4, .imbalance = 1};
    fr_memory four = check(&l, m.name, "h200x4", &whole, NULL);
    l.micro_batches = 1;
    assert_int_equal(four.activations, check(&l, m.name, "h200x4", &quarter, NULL).activations);
}

/* Communicators: of each group whose ops NCCL carries, and its kernels once; none where our own kernels do. */
static void test_communicators(void **state) {
    (void)state;
    const fr_machine h = machine("h200x8");
    const struct {
        const char *strategy;
        fr_layout change;
        int gpus, groups, peers; /* of collectives: communicators, and other ranks in them all together */
    } cases[] = {{"dp", {.tp = 0}, 2, 0, 0},
                 {"tp", {.tp = 0}, 2, 1, 1},
                 {"tp", {.tp = 0}, 4, 1, 3},
                 {"tp", {.tp = 2, .dp = 2}, 4, 2, 1 + 3},
                 {"ep", {.tp = 0}, 4, 0, 0},
                 {"ep", {.tp = 2}, 4, 1, 1},
                 {"ep", {.exchange = FR_EXCHANGE_AGRS}, 4, 1, 3},
                 {"asyncep", {.tp = 0}, 4, 0, 0},
                 {"asyncep", {.gather = FR_GATHER_NCCL}, 4, 1, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fr_layout l = cases[i].change;
        fr_error err = {0};
        assert_int_equal(fr_layout_from_strategy(cases[i].strategy, cases[i].gpus, &l, &err), FR_OK);
        const fr_layout alone = layout("dp", 1);
        const int64_t without = check(&alone, "qwen3-30b-a3b", "h200x8", &empty, NULL).workspace;
        const int64_t bytes = check(&l, "qwen3-30b-a3b", "h200x8", &empty, NULL).workspace - without;
        assert_int_equal(bytes, (cases[i].groups > 0 ? h.nccl_library : 0) + cases[i].groups * h.nccl_group +
                                    cases[i].peers * h.nccl_peer);
    }
}

static void test_fits(void **state) {
    (void)state;
    /* What follows from that table: bf16 AsyncEP does not fit 8 x 80 GB, bf16 static EP just does; on H200 FP8
     * static EP fits two GPUs. */
    bool fits;
    fr_layout l = layout("asyncep", 8);
    check(&l, "qwen3-235b-a22b", "h100x8", &empty, &fits);
    assert_false(fits);
    check(&l, "qwen3-235b-a22b", "h200x8", &empty, &fits);
    assert_true(fits);
    l = layout("ep", 8);
    check(&l, "qwen3-235b-a22b", "h100x8", &empty, &fits);
    assert_true(fits);
    l = layout("ep", 2);
    l.precision = FR_FP8;
    check(&l, "qwen3-235b-a22b", "h200x2", &empty, &fits);
    assert_true(fits);
    l = layout("offload", 1);
    check(&l, "kimi-k2", "h200x1", &empty, &fits); /* 2 TB of bf16 experts: more than the host pins */
    assert_false(fits);
}

/* Ranks in processes of their own: what just fits does not with a peer's context beside it. */
static void test_contexts(void **state) {
    (void)state;
    const fr_layout l = layout("asyncep", 4);
    fr_memory m = check(&l, "qwen3-30b-a3b", "h200x4", &empty, NULL), one = m, three = m;
    fr_machine h = machine("h200x4");
    char reason[256];
    h.hbm_bytes = m.total;
    assert_true(fr_memory_fits(&m, &h, reason));
    fr_memory_add_contexts(&one, 1);
    fr_memory_add_contexts(&three, 3);
    assert_false(fr_memory_fits(&one, &h, reason));
    assert_true(one.total - m.total > 100000000);
    assert_int_equal(three.total - m.total, 3 * (one.total - m.total));
    assert_int_equal(three.workspace - m.workspace, three.total - m.total);
}

static void test_shorthands(void **state) {
    (void)state;
    fr_error err = {0};
    fr_layout l = layout("dp", 8);
    assert_true(l.dp == 8 && l.tp == 1 && l.replicas == 1 && l.experts == FR_EXP_LOCAL);
    l = layout("tp", 4);
    assert_true(l.tp == 4 && l.dp == 1 && l.attention == FR_ATTN_TP && l.experts == FR_EXP_TP);
    l = layout("asyncep", 8);
    assert_true(l.ep == 8 && l.dp == 8);
    l = (fr_layout){.ep = 4};
    assert_int_equal(fr_layout_from_strategy("asyncep", 8, &l, &err), FR_OK);
    assert_true(l.ep == 4 && l.dp == 4 && l.replicas == 2);
    l = (fr_layout){.tp = 2};
    assert_int_equal(fr_layout_from_strategy("ep", 8, &l, &err), FR_OK);
    assert_true(l.ep == 8 && l.dp == 4 && l.tp == 2 && l.attention == FR_ATTN_TP);
    l = (fr_layout){.pp = 2, .ep = 4};
    assert_int_equal(fr_layout_from_strategy("asyncep", 8, &l, &err), FR_OK);
    assert_true(l.ep == 4 && l.dp == 4 && l.pp == 2 && l.replicas == 1);
    l = (fr_layout){.tp = 3};
    assert_int_equal(fr_layout_from_strategy("pp", 8, &l, &err), FR_BAD_INPUT);
    l = (fr_layout){.tp = -1};
    assert_int_equal(fr_layout_from_strategy("pp", 8, &l, &err), FR_BAD_INPUT);
    l = (fr_layout){.tp = 65536, .pp = 65536, .ep = 65536, .dp = 65536, .replicas = 65536};
    assert_int_equal(fr_layout_from_strategy("ep", 8, &l, &err), FR_BAD_INPUT);
    assert_int_equal(fr_layout_from_strategy("zero", 8, &l, &err), FR_BAD_INPUT);
    fr_model m = model("qwen3-235b-a22b");
    l = layout("pp", 4); /* 94 = 24 + 24 + 23 + 23 */
    int first, end, at = 0;
    for (int s = 0; s < 4; s++) {
        fr_layout_stage_layers(&l, &m, s, &first, &end);
        assert_int_equal(first, at);
        assert_int_equal(end - first, s < 2 ? 24 : 23);
        at = end;
    }
    assert_int_equal(at, 94);
}

static fr_status try_on(const fr_layout *l, const char *model_name, const char *machine_name, fr_error *err) {
    fr_model m = model(model_name);
    fr_machine h = machine(machine_name);
    fr_memory memory;
    bool fits;
    char reason[256];
    return fr_layout_check(l, &m, &h, &empty, &memory, &fits, reason, err);
}

static void refused(const char *strategy, fr_layout change, const char *machine_name, const char *part) {
    fr_error err = {0};
    fr_layout l = change;
    if (fr_layout_from_strategy(strategy, 8, &l, &err) == FR_OK &&
        try_on(&l, "qwen3-235b-a22b", machine_name, &err) == FR_OK)
        fail_msg("accepted; expected '%s'", part);
    if (!strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
}

/* Readers yield where they are told to and there is somebody to meet. */
static void test_yields(void **state) {
    (void)state;
    fr_layout l = layout("asyncep", 4);
    assert_int_equal(fr_layout_yields(&l), 0);
    l.gather_order = FR_ORDER_YIELD;
    assert_int_equal(fr_layout_yields(&l), 3);
    l = layout("dwdp", 8);
    l.gather_order = FR_ORDER_YIELD;
    assert_int_equal(fr_layout_yields(&l), 5);
    l.ep = 2;
    assert_int_equal(fr_layout_yields(&l), 0);
}

/* What a rank holds and what it pulls is every expert once, whatever it keeps of others'; memory counts what is held.
 */
static void test_keep(void **state) {
    (void)state;
    const fr_model m = model("qwen3-30b-a3b");
    const int64_t one = fr_model_expert_bytes(&m, FR_BF16);
    for (int gpus = 2; gpus <= 5; gpus++)
        for (int keep = 0; keep < 128 - (128 + gpus - 1) / gpus; keep += 1 + keep / 3) {
            fr_layout l = layout("dwdp", gpus);
            l.gather_keep = keep;
            for (int r = 0; r < gpus; r++) {
                int seen[128] = {0}, first, end, own, own_end;
                fr_layout_expert_range(&l, &m, r, &own, &own_end);
                fr_layout_held_range(&l, &m, r, &first, &end);
                assert_true(first >= 0 && first <= own && own_end <= end && end <= 128);
                assert_int_equal(end - first, own_end - own + keep);
                for (int e = first; e < end; e++) seen[e]++;
                for (int peer = 0; peer < gpus; peer++) {
                    if (peer == r) continue;
                    fr_layout_pull_range(&l, &m, r, peer, &first, &end);
                    for (int e = first; e < end; e++) seen[e]++;
                }
                for (int e = 0; e < 128; e++) assert_int_equal(seen[e], 1);
            }
        }
    fr_layout l = layout("dwdp", 2);
    const fr_memory none = check(&l, m.name, "h200x2", &empty, NULL);
    l.gather_keep = 16;
    const fr_memory some = check(&l, m.name, "h200x2", &empty, NULL);
    assert_int_equal(some.experts - none.experts, m.layers * 16 * one);
    assert_int_equal(none.gather_buffers - some.gather_buffers, 2 * 16 * one);
    assert_int_equal(none.first_layer - some.first_layer, 16 * one);
}

static void test_refuses(void **state) {
    (void)state;
    refused("ep", (fr_layout){.gather_keep = 5}, "h200x8", "--gather-keep: not used by --experts ep");
    refused("asyncep", (fr_layout){.gather = FR_GATHER_NCCL, .gather_keep = 5}, "h200x8", "--gather-keep");
    refused("ep", (fr_layout){.gather_order = FR_ORDER_YIELD}, "h200x8",
            "--gather-order yield: not used by --experts ep");
    refused("dwdp", (fr_layout){.gather_order = FR_ORDER_YIELD, .gather_streams = 2}, "h200x8", "one pull in flight");
    refused("asyncep", (fr_layout){.gather_keep = 112}, "h200x8", "fewer than the 112 experts");
    /* Options that a strategy does not use, each by name. */
    refused("dp", (fr_layout){.gather = FR_GATHER_NCCL}, "h200x8", "--gather nccl: not used by --experts local");
    refused("dwdp", (fr_layout){.gather = FR_GATHER_NCCL}, "h200x8", "--gather nccl: not used by --experts dwdp");
    refused("ep", (fr_layout){.gather_chunk = 5}, "h200x8", "--gather-chunk: not used by --experts ep");
    refused("asyncep", (fr_layout){.gather = FR_GATHER_NCCL, .gather_chunk = 5}, "h200x8", "--gather-chunk");
    refused("tp", (fr_layout){.wait = FR_WAIT_MOE}, "h200x8", "--wait moe: not used by --experts tp");
    refused("asyncep", (fr_layout){.exchange = FR_EXCHANGE_AGRS}, "h200x8", "--ep-exchange agrs");
    refused("asyncep", (fr_layout){.overlap = FR_OVERLAP_TBO}, "h200x8", "--overlap tbo");
    refused("ep", (fr_layout){.overlap_stages = 2}, "h200x8", "--overlap-stages");
    refused("ep", (fr_layout){.overlap = FR_OVERLAP_EXPERT_GROUPS, .overlap_stages = 17}, "h200x8", "2 to the 16");
    refused("ep", (fr_layout){.micro_batches = 2}, "h200x8", "--micro-batches 2: not used without --pp");
    refused("ep", (fr_layout){.slots = 2}, "h200x8", "--slots 2: not used by --experts ep");
    refused("offload", (fr_layout){.slots = 2}, "h200x8", "--slots 2: not used by offload with --ep 8");
    refused("asyncep", (fr_layout){.window = 2}, "h200x8", "--window 2: not used by --experts asyncep");
    refused("pp", (fr_layout){.chunk_tokens = 2048}, "h200x8", "--chunk-tokens: needs the KV cache");
    refused("pp", (fr_layout){.chunking = FR_CHUNK_BALANCED}, "h200x8", "--chunking balanced");
    /* Degrees and divisibility. */
    refused("dp", (fr_layout){.tp = 2}, "h200x8", "--experts local needs --tp 1");
    refused("tp", (fr_layout){.ep = 2}, "h200x8", "--ep 2: not used by --experts tp");
    refused("dp", (fr_layout){.run_layers = 95}, "h200x8", "--layers: expected 0 (all) to 94");
    refused("dp", (fr_layout){.run_layers = 4, .resident_layers = 5}, "h200x8", "--resident-layers");
    refused("dp", (fr_layout){.replicas = 3}, "h200x8", "do not make 8 GPUs");
    /* Links. */
    refused("dp", (fr_layout){.precision = FR_FP8}, "a100x8", "--precision fp8: a100x8 has no such tensor format");
    refused("dp", (fr_layout){0}, "h200x4", "needs 8 GPUs");
    fr_error err = {0};
    fr_layout l = layout("tp", 3);
    assert_int_equal(try_on(&l, "qwen3-235b-a22b", "h200x4", &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "64 heads"));
    l = layout("ep", 3);
    assert_int_equal(try_on(&l, "qwen3-235b-a22b", "h200x4", &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "128 experts"));
    l = layout("dp", 1);
    l.resident_layers = 2;
    assert_int_equal(try_on(&l, "deepseek-v3", "h200x1", &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "leading dense"));
}

static void test_links(void **state) {
    (void)state;
    fr_model m = model("qwen3-30b-a3b");
    fr_machine h = machine("h200x8");
    fr_memory memory;
    fr_error err = {0};
    bool fits;
    char reason[256];
    fr_layout ce = layout("asyncep", 8), nccl = ce, ep = layout("ep", 8), dp = layout("dp", 8);
    nccl.gather = FR_GATHER_NCCL;
    h.gpus_per_domain = 4; /* two islands on one host: only PCIe between them */
    assert_int_equal(fr_layout_check(&ce, &m, &h, &empty, &memory, &fits, reason, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "NVLink domain"));
    assert_int_equal(fr_layout_check(&nccl, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    assert_int_equal(fr_layout_check(&ep, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    h.gpus_per_host = 4; /* two hosts without a network */
    assert_int_equal(fr_layout_check(&ep, &m, &h, &empty, &memory, &fits, reason, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "network_rate"));
    assert_int_equal(fr_layout_check(&dp, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    h.network_rate = 50e9;
    assert_int_equal(fr_layout_check(&ep, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    h = machine("h200x8");
    h.link_rate = 0;
    assert_int_equal(fr_layout_check(&ce, &m, &h, &empty, &memory, &fits, reason, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "needs NVLink"));
    assert_int_equal(fr_layout_check(&ep, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    /* Pinned experts per host, not per GPU or per rank: two hosts of four stages each hold half. */
    fr_layout offload = layout("offload", 8), staged = {.pp = 8};
    h = machine("h200x8");
    assert_int_equal(fr_layout_check(&offload, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    int64_t all = memory.host_pinned;
    assert_int_equal(fr_layout_from_strategy("offload", 8, &staged, &err), FR_OK);
    h.gpus_per_host = 4;
    h.network_rate = 50e9;
    assert_int_equal(fr_layout_check(&staged, &m, &h, &empty, &memory, &fits, reason, &err), FR_OK);
    assert_int_equal(memory.host_pinned, all / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sheet_table),   cmocka_unit_test(test_items),   cmocka_unit_test(test_activations),
        cmocka_unit_test(test_communicators), cmocka_unit_test(test_fits),    cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_shorthands),    cmocka_unit_test(test_refuses), cmocka_unit_test(test_links),
        cmocka_unit_test(test_keep),          cmocka_unit_test(test_yields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

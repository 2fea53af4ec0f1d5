/*
 * Plans of every layout: proven by plan_check over a grid of small configurations; FLOPs and bytes against closed forms
 * that use nothing of the strategies; folded against unfolded.
 */
#include "engine/strategy/strategy.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static fr_model tiny(void) {
    fr_model m = {.name = "tiny", .family = "qwen3_moe", .layers = 12, .hidden = 256, .vocab = 1024};
    m.attention = FR_ATTENTION_GQA;
    m.heads = 8;
    m.kv_heads = 4;
    m.head_dim = m.v_head_dim = 64;
    m.qk_norm = true;
    m.window_period = 1;
    m.experts = 16;
    m.top_k = 4;
    m.expert_width = 128;
    m.renormalise = true;
    m.router_scale = 1;
    m.rope_theta = 1e6;
    m.norm_eps = 1e-6;
    m.max_positions = 40960;
    return m;
}

static fr_model tiny_mla(void) {
    fr_model m = tiny();
    m.attention = FR_ATTENTION_MLA;
    m.dense_layers = 2;
    m.dense_width = 512;
    m.shared_experts = 1;
    m.shared_width = 128;
    m.kv_heads = m.heads;
    m.head_dim = 96;
    m.rope_dim = 32;
    m.v_head_dim = 64;
    m.q_rank = 128;
    m.kv_rank = 64;
    return m;
}

static fr_layout layout_of(const char *strategy, int gpus, fr_layout l) {
    fr_error err;
    if (fr_layout_from_strategy(strategy, gpus, &l, &err) != FR_OK) fail_msg("%s", err.text);
    return l;
}

typedef struct {
    fr_planner *planner;
    fr_fragment *fragments[64];
    int count;
    fr_routing *routing;
} built;

static fr_machine machine(int gpus) {
    fr_machine m;
    fr_error err;
    if (fr_machine_load("h200x8", &m, &err) != FR_OK) fail_msg("%s", err.text);
    if (gpus > m.gpus) m.gpus = m.gpus_per_host = m.gpus_per_domain = gpus; /* one switch for all */
    return m;
}

static void open_planner(const fr_model *m, const fr_layout *l, const char *routing, bool fold, built *b) {
    fr_error err = {0};
    fr_machine mach = machine(fr_layout_gpus(l));
    fr_memory memory;
    bool fits;
    char reason[256];
    fr_load load = {.tokens = 4096, .sequences = 64, .kv_tokens = 65536, .imbalance = 4};
    *b = (built){0};
    if (fr_layout_check(l, m, &mach, &load, &memory, &fits, reason, &err) != FR_OK) fail_msg("%s", err.text);
    if (fr_routing_open(routing, m, 7, &b->routing, &err) != FR_OK) fail_msg("%s", err.text);
    fr_planner_options o = {
        .model = m, .layout = l, .machine = &mach, .routing = b->routing, .load = load, .allow_fold = fold};
    if (fr_planner_open(&o, &b->planner, &err) != FR_OK) fail_msg("%s", err.text);
}

static void forward(built *b, int unit, const fr_batch *batches) {
    fr_error err = {0};
    if (fr_planner_forward(b->planner, unit, batches, &b->fragments[b->count++], &err) != FR_OK)
        fail_msg("%s", err.text);
}

static void close_planner(built *b) {
    for (int i = 0; i < b->count; i++) fr_fragment_free(b->fragments[i]);
    fr_planner_close(b->planner);
    fr_routing_close(b->routing);
}

static const fr_sequence three[3] = {{512, 0, 2, 1, -1}, {200, 0, 2, 2, -1}, {312, 64, -1, 3, -1}};
static const fr_sequence one[1] = {{1000, 0, 2, 4, -1}};

/* ---- what a batch costs in FLOPs, from the model alone ---- */
static double model_flops(const fr_model *m, int layers, const fr_batch *b) {
    double sum = 0;
    for (int i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        for (int l = 0; l < layers; l++)
            sum += s->queries * fr_model_linear_flops(m, l) + fr_model_attention_flops(m, l, s->queries, s->prefix);
        if (s->candidates) sum += fr_model_head_flops(m, 1, s->candidates);
    }
    return sum;
}

static double plan_flops(const built *b) {
    double sum = 0;
    for (int i = 0; i < b->count; i++)
        for (uint32_t o = 0; o < b->fragments[i]->ops_count; o++)
            sum += fr_op_shape(b->fragments[i], &b->fragments[i]->ops[o])->flops;
    return sum * fr_planner_plan(b->planner)->fold;
}

static void check_plan(const built *b, const char *what) {
    fr_error err = {0};
    if (fr_plan_check(fr_planner_plan(b->planner), (fr_fragment *const *)b->fragments, b->count, &err) != FR_OK)
        fail_msg("%s: %s", what, err.text);
}

/* Three forwards of every unit: full and different batches, empty ones among them. */
static void run_layout(const fr_model *m, const fr_layout *l, const char *routing, const char *what) {
    built b;
    open_planner(m, l, routing, false, &b);
    int slots = fr_planner_slots(b.planner), units = fr_planner_units(b.planner);
    double want = 0;
    fr_batch batches[64];
    for (int f = 0; f < 3; f++)
        for (int u = 0; u < units && u < 3; u++) {
            for (int s = 0; s < slots; s++) {
                int kind = (f + s + u) % 3;
                batches[s] = kind == 0 ? (fr_batch){three, 3} : kind == 1 ? (fr_batch){one, 1} : (fr_batch){NULL, 0};
                want += model_flops(m, fr_layout_layers(l, m), &batches[s]);
            }
            forward(&b, u, batches);
        }
    check_plan(&b, what);
    double got = plan_flops(&b);
    if (fabs(got - want) > 1e-9 * want) fail_msg("%s: %.6g FLOPs, the model has %.6g", what, got, want);
    close_planner(&b);
}

typedef struct {
    const char *name, *strategy;
    int gpus;
    fr_layout options;
} cell;

#define KV .kv_cache = true
static const cell cells[] = {
    {"dp", "dp", 4, {KV}},
    {"dp fp8", "dp", 2, {.precision = FR_FP8}},
    {"tp2", "tp", 2, {KV}},
    {"tp8", "tp", 8, {KV}},
    {"tp2 dp2 by width", "tp", 4, {.tp = 2, .dp = 2, KV}},
    {"dp4 by width", "tp", 4, {.tp = 1, .dp = 4}},
    {"ep4", "ep", 4, {KV}},
    {"ep8", "ep", 8, {.precision = FR_FP8}},
    {"ep4 agrs", "ep", 4, {.exchange = FR_EXCHANGE_AGRS}},
    {"ep4 k copies", "ep", 4, {.exchange = FR_EXCHANGE_A2A_K}},
    {"ep4 fp8 dispatch", "ep", 4, {.exchange = FR_EXCHANGE_A2A_FP8}},
    {"ep4 tp2", "ep", 4, {.tp = 2, KV}},
    {"ep2 tp4", "ep", 4, {.tp = 4, .ep = 2}},
    {"ep4 tp4", "ep", 4, {.tp = 4}},
    {"ep4 tp2 fp8", "ep", 4, {.tp = 2, .precision = FR_FP8, KV}},
    {"ep4 tp2 fp8 tbo agrs",
     "ep",
     4,
     {.overlap = FR_OVERLAP_TBO, .exchange = FR_EXCHANGE_AGRS, .tp = 2, .precision = FR_FP8}},
    {"tp2 dp2 by width fp8", "tp", 4, {.tp = 2, .dp = 2, .precision = FR_FP8}},
    {"ep4 tbo", "ep", 4, {.overlap = FR_OVERLAP_TBO, KV}},
    {"ep4 tbo agrs", "ep", 4, {.overlap = FR_OVERLAP_TBO, .exchange = FR_EXCHANGE_AGRS}},
    {"ep4 tp2 tbo", "ep", 4, {.overlap = FR_OVERLAP_TBO, .tp = 2}},
    {"ep4 groups", "ep", 4, {.overlap = FR_OVERLAP_EXPERT_GROUPS, .overlap_stages = 2}},
    {"ep2 dp4", "ep", 4, {.ep = 2, .dp = 4}},
    {"ep16", "ep", 16, {KV}},
    {"ep16 agrs", "ep", 16, {.exchange = FR_EXCHANGE_AGRS}},
    {"ep8 tp2 tbo", "ep", 16, {.ep = 16, .tp = 2, .overlap = FR_OVERLAP_TBO}},
    {"asyncep16", "asyncep", 16, {KV}},
    {"asyncep16 nccl", "asyncep", 16, {.gather = FR_GATHER_NCCL}},
    {"dwdp16 in slices", "dwdp", 16, {.gather_chunk = 100000}},
    {"pp4 asyncep4", "asyncep", 16, {.pp = 4, .ep = 4, .micro_batches = 4}},
    {"pp8 ep2", "ep", 16, {.pp = 8, .ep = 2, .micro_batches = 8}},
    {"asyncep", "asyncep", 4, {KV}},
    {"asyncep moe", "asyncep", 4, {.wait = FR_WAIT_MOE}},
    {"asyncep chunked gather", "asyncep", 4, {.gather_chunk = 100000}},
    {"asyncep yields", "asyncep", 4, {.gather_order = FR_ORDER_YIELD, .gather_chunk = 100000}},
    {"dwdp yields", "dwdp", 4, {.gather_order = FR_ORDER_YIELD}},
    {"asyncep keep", "asyncep", 4, {.gather_keep = 3, .gather_chunk = 100000}},
    {"asyncep nccl", "asyncep", 4, {.gather = FR_GATHER_NCCL}},
    {"asyncep nccl-ce", "asyncep", 8, {.gather = FR_GATHER_NCCL_CE, .wait = FR_WAIT_MOE}},
    {"asyncep resident", "asyncep", 4, {.run_layers = 8, .resident_layers = 3}},
    {"dwdp", "dwdp", 4, {KV}},
    {"dwdp uneven", "dwdp", 3, {.gather_chunk = 65536}},
    {"dwdp keep", "dwdp", 4, {.gather_keep = 5}},
    {"pp2", "pp", 2, {KV}},
    {"pp4 m2", "pp", 4, {.micro_batches = 2, KV}},
    {"pp2 chunks", "pp", 2, {.micro_batches = 1, .chunk_tokens = 256, KV}},
    {"pp2 ep2", "ep", 4, {.pp = 2, .ep = 2, .micro_batches = 2}},
    {"pp2 ep2 tbo", "ep", 4, {.pp = 2, .ep = 2, .micro_batches = 2, .overlap = FR_OVERLAP_TBO}},
    {"pp2 tp2", "tp", 4, {.pp = 2, .tp = 2, .micro_batches = 2}},
    {"pp2 asyncep2", "asyncep", 4, {.pp = 2, .ep = 2, .micro_batches = 2}},
    {"offload layer ahead", "offload", 1, {KV}},
    {"offload moe", "offload", 1, {.wait = FR_WAIT_MOE}},
    {"offload 2 slots", "offload", 1, {.slots = 2}},
    {"offload 1 slot", "offload", 2, {.slots = 1, .ep = 1, .dp = 2}},
    {"offload 16 slots", "offload", 1, {.slots = 16}},
    {"offload hybrid", "offload", 4, {KV}},
    {"offload hybrid chunked", "offload", 4, {.window = 1, .gather_chunk = 100000, .wait = FR_WAIT_MOE}},
    {"offload hybrid nccl", "offload", 4, {.gather = FR_GATHER_NCCL, .window = 2}},
    {"asap 1+1", "asap", 2, {.run_layers = 5, KV}},
    {"asap 2+2", "asap", 4, {.run_layers = 4, KV}},
    {"asap 2x2+4", "asap", 8, {.tp = 2, .run_layers = 4}},
    {"asap chunks", "asap", 4, {.chunk_tokens = 300, .run_layers = 3, KV}},
    {"dp chunks", "dp", 2, {.chunk_tokens = 200, KV}},
};

static void every_layout_is_proven_and_does_the_models_flops(void **state) {
    (void)state;
    static const char *const routings[] = {"even", "uniform", "hot:3"};
    fr_model models[3] = {tiny(), tiny_mla(), tiny()};
    models[2].window = 128;
    models[2].window_period = 2;
    models[2].tied_embeddings = true;
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++)
        for (int m = 0; m < 3; m++)
            for (int r = 0; r < 3; r++) {
                if ((m > 0) != (r == 0) && m > 0) continue; /* the other models with even routing only */
                if (m == 1 && cells[i].options.resident_layers) continue;
                char what[96];
                snprintf(what, sizeof what, "%s, model %d, %s", cells[i].name, m, routings[r]);
                fr_layout l = layout_of(cells[i].strategy, cells[i].gpus, cells[i].options);
                run_layout(&models[m], &l, routings[r], what);
            }
}

/* All tokens choose the same experts: one rank computes everything. */
static void one_expert_takes_all(void **state) {
    (void)state;
    fr_model m = tiny();
    m.top_k = 1;
    fr_layout l = layout_of("ep", 4, (fr_layout){0});
    run_layout(&m, &l, "zipf:8", "ep4, one expert takes all");
    l = layout_of("ep", 4, (fr_layout){.overlap = FR_OVERLAP_TBO});
    run_layout(&m, &l, "zipf:8", "ep4 tbo, one expert takes all");
}

/* ---- bytes per rank ---- */

static void traffic_of(const fr_model *m, const fr_layout *l, const fr_batch *batches, int rank, fr_traffic *t) {
    built b;
    open_planner(m, l, "even", false, &b);
    forward(&b, 0, batches);
    fr_traffic ranks[16] = {{0}};
    assert_true(fr_planner_plan(b.planner)->ranks <= 16);
    fr_fragment_traffic(fr_planner_plan(b.planner), b.fragments[0], ranks);
    *t = ranks[rank];
    close_planner(&b);
}

static void tp_moves_two_all_reduces_a_layer(void **state) {
    (void)state;
    fr_model m = tiny();
    fr_layout l = layout_of("tp", 4, (fr_layout){0});
    fr_batch b = {one, 1};
    fr_traffic t;
    traffic_of(&m, &l, &b, 2, &t);
    int64_t reduced = 1000 * 256 * 2;
    assert_int_equal(t.sent, m.layers * 2 * (2 * 3 * reduced / 4)); /* a ring sends 2 (P-1)/P of what it reduces */
    assert_int_equal(t.received, t.sent);
    assert_int_equal(t.host, 0);
}

static void ep_moves_one_copy_per_token_and_rank(void **state) {
    (void)state;
    fr_model m = tiny();
    fr_layout l = layout_of("ep", 4, (fr_layout){0});
    fr_batch b[4] = {{one, 1}, {one, 1}, {one, 1}, {one, 1}};
    fr_traffic t;
    traffic_of(&m, &l, b, 1, &t);
    /* 4 of 16 experts on each of 4 ranks, 4 chosen: none of a rank's with probability C(12,4)/C(16,4) = 495/1820. */
    int64_t copies = llround(1000 * (1 - 495.0 / 1820)) * 3;
    assert_int_equal(t.sent, m.layers * 2 * copies * 512);
    assert_int_equal(t.received, t.sent);
    l.exchange = FR_EXCHANGE_A2A_K;
    traffic_of(&m, &l, b, 1, &t);
    assert_int_equal(t.sent, m.layers * 2 * 3000 * 512); /* 4,000 rows, 1,000 of them at home */
    l.exchange = FR_EXCHANGE_A2A_FP8;                    /* 256 bytes and two scales one way, bf16 back */
    traffic_of(&m, &l, b, 1, &t);
    assert_int_equal(t.sent, m.layers * copies * (264 + 512));
    l.exchange = FR_EXCHANGE_AGRS;
    traffic_of(&m, &l, b, 1, &t);
    assert_int_equal(t.sent, m.layers * (3 * 1000 * (512 + 32) + 3 * 1000 * 512));
}

static void asyncep_moves_the_other_ranks_experts(void **state) {
    (void)state;
    fr_model m = tiny();
    int64_t expert = 3 * 256 * 128 * 2;
    fr_batch b[4] = {{one, 1}, {one, 1}, {one, 1}, {one, 1}};
    fr_traffic t;
    fr_layout l = layout_of("asyncep", 4, (fr_layout){0});
    traffic_of(&m, &l, b, 0, &t);
    assert_int_equal(t.received, (m.layers - 1) * 12 * expert); /* the first layer is resident */
    l = layout_of("asyncep", 4, (fr_layout){.gather = FR_GATHER_NCCL});
    traffic_of(&m, &l, b, 3, &t);
    assert_int_equal(t.received, (m.layers - 1) * 12 * expert);
    assert_int_equal(t.sent, t.received);
    l = layout_of("dwdp", 3, (fr_layout){0}); /* 5, 5 and 6 experts */
    traffic_of(&m, &l, b, 0, &t);
    assert_int_equal(t.received, (m.layers - 1) * 11 * expert);
}

static void pp_moves_the_stream_once_a_boundary(void **state) {
    (void)state;
    fr_model m = tiny();
    fr_layout l = layout_of("pp", 4, (fr_layout){.micro_batches = 2});
    fr_batch b = {three, 3};
    fr_traffic t;
    traffic_of(&m, &l, &b, 1, &t);
    assert_int_equal(t.sent, 1024 * 512);
    assert_int_equal(t.received, 1024 * 512);
    traffic_of(&m, &l, &b, 3, &t);
    assert_int_equal(t.sent, 0);
}

/* ---- folding ---- */

static void folded_plans_carry_the_same_bytes_and_flops(void **state) {
    (void)state;
    fr_model m = tiny();
    static const fr_sequence even[2] = {{512, 0, 2, -1, -1}, {512, 0, 2, -1, -1}};
    fr_batch batches[16];
    for (int i = 0; i < 16; i++) batches[i] = (fr_batch){even, 2};
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
        fr_layout l = layout_of(cells[i].strategy, cells[i].gpus, cells[i].options);
        if (l.pp > 1 || l.experts == FR_EXP_ASAP || (l.experts == FR_EXP_DWDP && m.experts % l.ep)) continue;
        if (l.gather_keep && l.ep > 2) continue; /* never folded */
        l.kv_cache = false;
        l.chunk_tokens = 0;
        built whole, folded;
        open_planner(&m, &l, "even", false, &whole);
        open_planner(&m, &l, "even", true, &folded);
        int units = fr_planner_units(whole.planner);
        for (int u = 0; u < units; u++) forward(&whole, u, batches);
        forward(&folded, 0, batches);
        check_plan(&folded, cells[i].name);
        fr_traffic a = {0}, all[16] = {{0}};
        for (int u = 0; u < units; u++) fr_fragment_traffic(fr_planner_plan(whole.planner), whole.fragments[u], all);
        fr_traffic b = all[0];
        fr_fragment_traffic(fr_planner_plan(folded.planner), folded.fragments[0], &a);
        if (a.received != b.received || a.sent != b.sent)
            fail_msg("%s: folded moves %lld and %lld, unfolded %lld and %lld", cells[i].name, (long long)a.sent,
                     (long long)a.received, (long long)b.sent, (long long)b.received);
        if (fabs(plan_flops(&folded) - plan_flops(&whole)) > 1e-9 * plan_flops(&whole))
            fail_msg("%s: folded %.9g FLOPs, unfolded %.9g", cells[i].name, plan_flops(&folded), plan_flops(&whole));
        close_planner(&whole);
        close_planner(&folded);
    }
}

static void folded_plans_refuse_unequal_batches(void **state) {
    (void)state;
    fr_model m = tiny();
    fr_layout l = layout_of("ep", 2, (fr_layout){0});
    built b;
    open_planner(&m, &l, "even", true, &b);
    fr_batch batches[2] = {{one, 1}, {three, 3}};
    fr_fragment *f;
    fr_error err;
    assert_int_equal(fr_planner_forward(b.planner, 0, batches, &f, &err), FR_FAILED);
    assert_null(f);
    close_planner(&b);
}

/* ---- repetition: copies of a layer are what emitting it would have been ---- */

static void copied_layers_equal_emitted_ones(void **state) {
    (void)state;
    static const char *const strategies[] = {"dp", "tp", "ep", "asyncep", "dwdp"};
    for (size_t i = 0; i < sizeof strategies / sizeof *strategies; i++) {
        /* Lanes stay complete and ordered, and every middle layer has as many ops as the emitted ones. */
        fr_model m = tiny();
        fr_layout l = layout_of(strategies[i], 2, (fr_layout){0});
        built b;
        open_planner(&m, &l, "even", false, &b);
        fr_batch batches[2] = {{one, 1}, {one, 1}};
        forward(&b, 0, batches);
        const fr_fragment *f = b.fragments[0];
        uint32_t walked = 0, per_layer[12] = {0};
        for (uint32_t h = 0; h < f->heads_count; h++) {
            uint32_t on_lane = 0, last = FR_NONE;
            for (uint32_t o = f->heads[h].first; o != FR_NONE; o = f->ops[o].next, on_lane++) {
                assert_int_equal(f->ops[o].lane, f->heads[h].lane);
                assert_true(last == FR_NONE || o > last);
                last = o;
                if (f->ops[o].layer < 12) per_layer[f->ops[o].layer]++;
            }
            assert_int_equal(last, f->heads[h].last);
            assert_int_equal(on_lane, f->heads[h].ops);
            walked += on_lane;
        }
        assert_int_equal(walked, f->ops_count);
        for (int layer = 2; layer < 11; layer++) assert_int_equal(per_layer[layer], per_layer[1]);
        close_planner(&b);
    }
}

/* ---- batches ---- */

/* Every batch that is not empty is answered once per micro-batch, by the first rank of its group, and says when the
 * next may come. */
static void batches_are_answered_once(void **state) {
    (void)state;
    fr_model m = tiny();
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
        fr_layout l = layout_of(cells[i].strategy, cells[i].gpus, cells[i].options);
        built b;
        open_planner(&m, &l, "even", false, &b);
        fr_batch batches[16] = {{one, 1}}; /* the other slots are empty */
        forward(&b, 0, batches);
        int answers = 0, entries = 0, micros = 1;
        for (uint32_t o = 0; o < b.fragments[0]->ops_count; o++) {
            const fr_op *op = &b.fragments[0]->ops[o];
            answers += (op->flags & FR_OP_ANSWER) != 0;
            entries += (op->flags & FR_OP_ENTRY) != 0;
            if (op->micro + 1 > micros && op->kind == FR_OP_EMBED) micros = op->micro + 1;
        }
        if (l.chunk_tokens && l.experts != FR_EXP_ASAP) assert_int_equal(answers, micros);
        if (!l.chunk_tokens) assert_int_equal(answers, 1);
        assert_true(entries >= 1);
        close_planner(&b);
    }
}

/* What executors are told of the cut: every micro-batch is a run of its batch's tokens, and all of them are the batch;
 * a sequence is cut in its order and answers in its last part. */
static void cuts_are_runs_of_the_batch(void **state) {
    (void)state;
    fr_model m = tiny();
    static const fr_sequence mixed[] = {{10, 0, 0, 0, -1}, {500, 0, 2, 1, -1}, {3, 0, -1, 2, -1}, {300, 0, 1, 3, -1}};
    const fr_batch given[3] = {{mixed, 4}, {NULL, 0}, {mixed + 2, 1}};
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
        fr_layout l = layout_of(cells[i].strategy, cells[i].gpus, cells[i].options);
        if (l.experts == FR_EXP_ASAP) continue;
        built b;
        open_planner(&m, &l, "even", false, &b);
        const int slots = fr_planner_slots(b.planner);
        fr_batch batches[16];
        for (int s = 0; s < slots; s++) batches[s] = given[s % 3];
        forward(&b, 0, batches);
        fr_cuts *c = fr_planner_cuts(b.planner);
        assert_int_equal(c->slots, slots);
        for (int s = 0; s < slots; s++) {
            int64_t tokens = 0;
            int32_t at = 0, done = 0, seen = 0;
            for (int micro = 0; micro < c->micros; micro++) {
                const fr_cut *cut = &c->cut[micro * slots + s];
                int64_t sum = 0;
                assert_int_equal(cut->first, tokens);
                for (int32_t k = 0; k < cut->count; k++, seen++) {
                    const fr_sequence *whole = &batches[s].sequences[at];
                    assert_int_equal(cut->origin[k], at);
                    assert_int_equal(cut->sequences[k].prefix, whole->prefix + done);
                    done += cut->sequences[k].queries;
                    sum += cut->sequences[k].queries;
                    assert_int_equal(cut->sequences[k].candidates, done == whole->queries ? whole->candidates : 0);
                    if (done < whole->queries) continue;
                    at++;
                    done = 0;
                }
                assert_int_equal(cut->tokens, sum);
                tokens += sum;
            }
            assert_int_equal(at, batches[s].count);
            if (l.pp > 1 && l.chunk_tokens && s == 0) assert_true(seen > at);
        }
        fr_cuts_free(c);
        close_planner(&b);
    }
}

/* A batch of many short requests has more KV handles than one op may name: fences carry the rest. */
static void many_kv_handles(void **state) {
    (void)state;
    fr_model m = tiny();
    fr_layout l = layout_of("dp", 1, (fr_layout){KV});
    built b;
    open_planner(&m, &l, "even", false, &b);
    fr_sequence *s = fr_alloc(600 * sizeof *s), prefix = {100, 0, 0, 600, -1};
    for (int i = 0; i < 600; i++) s[i] = (fr_sequence){6, 100, 2, i, 600};
    forward(&b, 0, &(fr_batch){&prefix, 1});
    forward(&b, 0, &(fr_batch){s, 600});
    check_plan(&b, "600 handles");
    int reads = 0;
    for (uint32_t i = 0; i < b.fragments[1]->refs_count; i++) {
        const fr_ref *r = &b.fragments[1]->refs[i];
        if (r->use == FR_USE_READ && r->target < fr_planner_plan(b.planner)->buffers_count)
            reads += fr_planner_plan(b.planner)->buffers[r->target].outlives;
    }
    assert_true(reads >= 601);
    free(s);
    close_planner(&b);
}

/* Balanced chunks cost the same while attention grows: later ones are smaller; fixed ones are equal. */
static void balanced_chunks_shrink_with_context(void **state) {
    (void)state;
    fr_error err = {0};
    fr_model m;
    fr_cost_model *cost;
    fr_machine mach = machine(0);
    assert_int_equal(fr_model_load("qwen3-30b-a3b", &m, &err), FR_OK);
    assert_int_equal(fr_cost_open(&mach, &(fr_cost_options){.what_if = FR_WHAT_IF_NONE}, &cost, &err), FR_OK);
    static const fr_sequence longest = {65536, 0, 2, 0, -1};
    for (int chunking = 0; chunking < 2; chunking++) {
        fr_layout l = layout_of(
            "pp", 2,
            (fr_layout){
                .micro_batches = 1, .chunk_tokens = 8192, .chunking = (fr_chunking)chunking, .run_layers = 4, KV});
        fr_planner_options o = {
            .model = &m, .layout = &l, .machine = &mach, .cost = cost, .load = {.tokens = 65536, .sequences = 1}};
        fr_planner *p;
        fr_fragment *f;
        assert_int_equal(fr_planner_open(&o, &p, &err), FR_OK);
        assert_int_equal(fr_planner_forward(p, 0, &(fr_batch){&longest, 1}, &f, &err), FR_OK);
        int64_t before = INT64_MAX, total = 0, low = INT64_MAX, high = 0;
        int chunks = 0;
        for (uint32_t i = 0; i < f->ops_count; i++) {
            const fr_op *op = &f->ops[i];
            if (op->kind != FR_OP_ATTENTION || op->layer != 0) continue;
            const fr_shape *s = fr_op_shape(f, op);
            const fr_pair *v = &f->pairs[s->vector];
            assert_int_equal(v->prefix, total); /* what came before */
            assert_true(v->queries <= before);
            before = v->queries;
            total += v->queries;
            chunks++;
            int64_t ns = 0; /* of the chunk's first layer */
            for (uint32_t j = 0; j < f->ops_count; j++)
                if (f->ops[j].layer == 0 && f->ops[j].micro == op->micro) {
                    fr_cost c;
                    fr_cost_op(cost, fr_op_shape(f, &f->ops[j]), f->pairs, &c);
                    ns += c.ns;
                }
            if (total < 65536) low = fr_min_i64(low, ns), high = fr_max_i64(high, ns); /* the last takes what is left */
        }
        assert_int_equal(total, 65536);
        if (chunking == 0) {
            assert_int_equal(chunks, 8);
            assert_true((double)high > 1.5 * (double)low);
        } else {
            assert_true(chunks > 8);
            assert_true((double)high < 1.15 * (double)low); /* measured attention has steps */
        }
        fr_fragment_free(f);
        fr_planner_close(p);
    }
    fr_cost_close(cost);
}

static void strategies_have_a_table(void **state) {
    (void)state;
    int n = 0;
    for (; fr_strategy_at(n); n++) {
        fr_layout l = {0};
        fr_error err;
        assert_int_equal(fr_layout_from_strategy(fr_strategy_at(n)->name, 8, &l, &err), FR_OK);
        assert_true(strlen(fr_strategy_at(n)->waits) > 0 && strlen(fr_strategy_at(n)->travels) > 0);
    }
    assert_int_equal(n, 8);
}

/* However a gather is cut, each rank pulls what it does not hold: 3 of 4 parts of every layer but the first. */
static void gathers_move_their_bytes(void **state) {
    (void)state;
    const fr_model m = tiny();
    static const int64_t chunks[] = {0, 100000, 65536, 1 << 20};
    for (int streams = 1; streams <= 2; streams++)
        for (size_t k = 0; k < sizeof chunks / sizeof *chunks; k++) {
            const fr_layout l =
                layout_of("asyncep", 4, (fr_layout){.gather_chunk = chunks[k], .gather_streams = streams});
            built b;
            open_planner(&m, &l, "even", false, &b);
            const fr_batch batches[4] = {{one, 1}, {one, 1}, {one, 1}, {one, 1}};
            for (int u = 0; u < fr_planner_units(b.planner); u++) forward(&b, u, batches);
            int64_t bytes = 0;
            for (int i = 0; i < b.count; i++)
                for (uint32_t o = 0; o < b.fragments[i]->ops_count; o++)
                    if (b.fragments[i]->ops[o].kind == FR_OP_PULL)
                        bytes += fr_op_shape(b.fragments[i], &b.fragments[i]->ops[o])->bytes;
            assert_int_equal(bytes, 4 * (m.layers - 1) * 12 * fr_model_expert_bytes(&m, FR_BF16));
            close_planner(&b);
        }
}

/* FP8: what an expert reads is a byte an element and a scale of 4 bytes for 128 of them, written beside bf16 rows. */
static void fp8_rows_have_scales(void **state) {
    (void)state;
    const fr_model m = tiny();
    const fr_layout l = layout_of("asyncep", 4, (fr_layout){.precision = FR_FP8});
    const fr_batch batches[4] = {{one, 1}, {one, 1}, {one, 1}, {one, 1}};
    built b;
    open_planner(&m, &l, "even", false, &b);
    forward(&b, 0, batches);
    int seen = 0;
    for (uint32_t o = 0; o < b.fragments[0]->ops_count; o++) {
        const fr_op *op = &b.fragments[0]->ops[o];
        if (op->kind != FR_OP_PERMUTE) continue;
        assert_int_equal(fr_op_shape(b.fragments[0], op)->bytes, 4000 * (2 * 256 + 256 + 4 * 2));
        seen++;
    }
    assert_true(seen > 0 && seen % m.layers == 0);
    close_planner(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gathers_move_their_bytes),
        cmocka_unit_test(fp8_rows_have_scales),
        cmocka_unit_test(every_layout_is_proven_and_does_the_models_flops),
        cmocka_unit_test(one_expert_takes_all),
        cmocka_unit_test(tp_moves_two_all_reduces_a_layer),
        cmocka_unit_test(ep_moves_one_copy_per_token_and_rank),
        cmocka_unit_test(asyncep_moves_the_other_ranks_experts),
        cmocka_unit_test(pp_moves_the_stream_once_a_boundary),
        cmocka_unit_test(folded_plans_carry_the_same_bytes_and_flops),
        cmocka_unit_test(folded_plans_refuse_unequal_batches),
        cmocka_unit_test(copied_layers_equal_emitted_ones),
        cmocka_unit_test(batches_are_answered_once),
        cmocka_unit_test(cuts_are_runs_of_the_batch),
        cmocka_unit_test(many_kv_handles),
        cmocka_unit_test(balanced_chunks_shrink_with_context),
        cmocka_unit_test(strategies_have_a_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

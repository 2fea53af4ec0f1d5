/*
 * Strategies on the virtual clock with stated prices: closed forms, exactly. Sharing is off, so an op takes its price.
 */
#include "engine/strategy/strategy.h"
#include "sim/player.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 6 };

static fr_model model(void) {
    fr_model m = {.name = "tiny", .family = "qwen3_moe", .layers = LAYERS, .hidden = 256, .vocab = 512};
    m.attention = FR_ATTENTION_GQA;
    m.heads = 8;
    m.kv_heads = 4;
    m.head_dim = m.v_head_dim = 32;
    m.window_period = 1;
    m.experts = 8;
    m.top_k = 2;
    m.expert_width = 64;
    m.router_scale = 1;
    return m;
}

/* ns: compute by rows, links by bytes scaled by `link`; the host costs nothing, nor do the ends of a model. */
typedef struct {
    double link, host_link;
    bool ends_free;
    int64_t end[64]; /* of forwards, by number */
    int ends;
} world;

static int64_t price_of(const world *w, const fr_shape *s) {
    switch (fr_op_class_of((fr_op_kind)s->kind)) {
    case FR_CLASS_HOST:
    case FR_CLASS_OTHER:
        return 0;
    case FR_CLASS_COPY:
        return 50 + (int64_t)((s->kind == FR_OP_H2D ? w->host_link : w->link) * (double)s->bytes);
    case FR_CLASS_COLLECTIVE:
        if (s->kind == FR_OP_SEND || s->kind == FR_OP_RECV) return 0;
        return 70 + (int64_t)(w->link * (double)s->bytes);
    case FR_CLASS_GROUPED:
        return 100 + 9 * s->m;
    default:
        break;
    }
    const bool end = s->kind == FR_OP_EMBED || s->kind == FR_OP_GEMM_HEAD || fr_op_over_pcie((fr_op_kind)s->kind);
    if (w->ends_free && end) return 0;
    return 100 + s->m;
}

static void price(void *context, const fr_shape *s, const fr_pair *pairs, fr_cost *out) {
    (void)pairs;
    *out = (fr_cost){0};
    if (s->kind == FR_OP_NONE) return;
    out->ns = out->low = out->high = price_of(context, s);
}

static void finished(void *context, fr_fragment *f, const fr_forward_record *record) {
    world *w = context;
    w->end[f->forward] = record->end;
    w->ends++;
}

typedef struct {
    fr_planner *planner;
    fr_routing *routing;
    fr_fragment *fragments[32];
    int count;
    int64_t end;
} run_state;

static void play(world *w, run_state *r) {
    static const fr_capacity capacity = {.hbm = 1e12,
                                         .link_out = 1e12,
                                         .link_in = 1e12,
                                         .pcie_h2d = 1e12,
                                         .pcie_d2h = 1e12,
                                         .host = 1e12,
                                         .network = 1e12,
                                         .copy_engines = 3};
    fr_error err = {0};
    int64_t next;
    fr_player_options o = {.price = price, .capacity = &capacity, .finished = finished, .context = w};
    fr_player *player = fr_player_new(fr_planner_plan(r->planner), &o);
    for (int i = 0; i < r->count; i++) fr_player_append(player, r->fragments[i], 0);
    if (fr_player_run(player, INT64_MAX, &next, &err)) fail_msg("%s", err.text);
    assert_int_equal(w->ends, r->count);
    r->end = 0;
    for (int i = 0; i < r->count; i++) r->end = fr_max_i64(r->end, w->end[i]);
    fr_player_free(player);
}

/* Every unit takes `forwards` forwards of batches of equal sequences. */
static run_state plan(const char *strategy, int gpus, fr_layout l, const char *routing, bool fold, int forwards,
                      const fr_batch *batches) {
    run_state r = {0};
    fr_model m = model();
    fr_error err = {0};
    fr_machine machine;
    fr_memory memory;
    bool fits;
    char reason[256];
    fr_load load = {.tokens = 4096, .sequences = 64, .imbalance = 4};
    if (fr_machine_load("h200x8", &machine, &err) || fr_layout_from_strategy(strategy, gpus, &l, &err) ||
        fr_layout_check(&l, &m, &machine, &load, &memory, &fits, reason, &err) ||
        fr_routing_open(routing, &m, 3, &r.routing, &err))
        fail_msg("%s", err.text);
    fr_planner_options o = {
        .model = &m, .layout = &l, .machine = &machine, .routing = r.routing, .load = load, .allow_fold = fold};
    if (fr_planner_open(&o, &r.planner, &err)) fail_msg("%s", err.text);
    for (int f = 0; f < forwards; f++)
        for (int u = 0; u < fr_planner_units(r.planner); u++)
            if (fr_planner_forward(r.planner, u, batches, &r.fragments[r.count++], &err)) fail_msg("%s", err.text);
    return r;
}

static void done(run_state *r) {
    for (int i = 0; i < r->count; i++) fr_fragment_free(r->fragments[i]);
    fr_planner_close(r->planner);
    fr_routing_close(r->routing);
}

static const fr_sequence sequence[4] = {
    {256, 0, 2, -1, -1}, {256, 0, 2, -1, -1}, {256, 0, 2, -1, -1}, {256, 0, 2, -1, -1}};
static const fr_batch equal[8] = {{sequence, 4}, {sequence, 4}, {sequence, 4}, {sequence, 4},
                                  {sequence, 4}, {sequence, 4}, {sequence, 4}, {sequence, 4}};

/* Sum of prices of a lane kind's ops of rank 0, per layer; what stands outside layers goes to the first and the last.
 */
static void sums(const world *w, const run_state *r, const fr_fragment *f, fr_lane_kind kind, int64_t out[LAYERS]) {
    const fr_plan *p = fr_planner_plan(r->planner);
    memset(out, 0, LAYERS * sizeof *out);
    for (uint32_t i = 0; i < f->ops_count; i++) {
        const fr_op *op = &f->ops[i];
        if (p->lanes[op->lane].rank != 0 || p->lanes[op->lane].kind != kind) continue;
        const fr_shape *s = fr_op_shape(f, op);
        const bool begins = s->kind == FR_OP_UPLOAD || s->kind == FR_OP_EMBED;
        int layer = op->layer < LAYERS ? op->layer : begins ? 0 : LAYERS - 1;
        if (s->kind != FR_OP_NONE) out[layer] += price_of(w, s);
    }
}

static void one_gpu_is_the_sum_of_its_ops(void **state) {
    (void)state;
    world w = {.link = 1};
    run_state r = plan("dp", 1, (fr_layout){0}, "even", false, 1, equal);
    int64_t c[LAYERS], sum = 0;
    sums(&w, &r, r.fragments[0], FR_LANE_COMPUTE, c);
    for (int l = 0; l < LAYERS; l++) sum += c[l];
    play(&w, &r);
    assert_int_equal(r.end, sum);
    done(&r);
}

/* Layer 0 resident: a forward takes sum of max(C_i, G_{i+1}) over i < L - 1, plus C_{L-1}. */
static void asyncep_is_its_closed_form(void **state) {
    (void)state;
    static const double links[] = {0.001, 0.05, 0.1, 0.13, 0.2, 1};
    int bound = 0;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        for (int kind = 0; kind < 3; kind++) {
            world w = {.link = links[i]};
            fr_layout l = {.gather = kind == 2 ? FR_GATHER_NCCL : FR_GATHER_CE,
                           .gather_chunk = kind == 1 ? 30000 : 0,
                           .gather_streams = kind == 2 ? 0 : 1};
            run_state r = plan("asyncep", 4, l, "even", false, 1, equal);
            int64_t c[LAYERS], g[LAYERS], want = 0;
            sums(&w, &r, r.fragments[0], FR_LANE_COMPUTE, c);
            sums(&w, &r, r.fragments[0], kind == 2 ? FR_LANE_COMM : FR_LANE_COPY, g);
            assert_int_equal(g[0], 0);
            for (int n = 0; n < LAYERS - 1; n++) want += fr_max_i64(c[n], g[n + 1]);
            bound += g[1] > c[0];
            play(&w, &r);
            assert_int_equal(w.end[0], want + c[LAYERS - 1]);
            done(&r);
        }
    assert_true(bound > 3 && bound < 15); /* both sides of the knee were seen */
}

/* In a stream the first gather of a forward hides behind the last layer of the one before: two slots add no wait. */
static void prefetch_is_carried_over(void **state) {
    (void)state;
    world w = {.link = 0.1};
    run_state r = plan("asyncep", 2, (fr_layout){0}, "even", false, 3, equal);
    int64_t c[LAYERS], g[LAYERS], first = 0, later = 0;
    sums(&w, &r, r.fragments[0], FR_LANE_COMPUTE, c);
    sums(&w, &r, r.fragments[0], FR_LANE_COPY, g);
    for (int n = 0; n < LAYERS - 1; n++) first += fr_max_i64(c[n], g[n + 1]);
    for (int n = 1; n < LAYERS - 1; n++) later += fr_max_i64(c[n], g[n + 1]);
    play(&w, &r);
    first += c[LAYERS - 1];
    later += c[0] + c[LAYERS - 1];
    assert_true(g[1] < c[LAYERS - 1] + c[0]);
    assert_int_equal(w.end[0], first);
    assert_int_equal(w.end[4], first + 2 * later); /* forwards of rank 0: 0, 2, 4 */
    done(&r);
}

/* dwdp waits before the MoE block only, so it is never later than asyncep, and no rank waits for another. */
static void dwdp_is_never_later_than_asyncep(void **state) {
    (void)state;
    static const double links[] = {0.01, 0.1, 0.2, 0.5};
    for (size_t i = 0; i < 4; i++) {
        world a = {.link = links[i]}, b = a, c = a;
        run_state x = plan("asyncep", 4, (fr_layout){0}, "even", false, 2, equal);
        run_state y = plan("asyncep", 4, (fr_layout){.wait = FR_WAIT_MOE}, "even", false, 2, equal);
        run_state z = plan("dwdp", 4, (fr_layout){0}, "even", false, 2, equal);
        play(&a, &x);
        play(&b, &y);
        play(&c, &z);
        assert_true(y.end <= x.end && z.end <= y.end);
        done(&x), done(&y), done(&z);
    }
}

/* Equal stages, free transfers: (m + p - 1) micro-batch times, so the bubble is (p - 1)/(m + p - 1). */
static void pipeline_bubble(void **state) {
    (void)state;
    for (int stages = 2; stages <= 3; stages++)
        for (int micros = 1; micros <= 4; micros *= 2) {
            world w = {.link = 1, .ends_free = true};
            run_state r = plan("pp", stages, (fr_layout){.micro_batches = micros}, "even", false, 1, equal);
            const fr_plan *p = fr_planner_plan(r.planner);
            int64_t busy = 0, head = 0; /* of the first stage, all micro-batches; final norm of one */
            for (uint32_t i = 0; i < r.fragments[0]->ops_count; i++) {
                const fr_op *op = &r.fragments[0]->ops[i];
                const fr_shape *s = fr_op_shape(r.fragments[0], op);
                if (p->lanes[op->lane].kind != FR_LANE_COMPUTE) continue;
                if (p->lanes[op->lane].rank == 0) busy += price_of(&w, s);
                if (op->layer == FR_NO_LAYER && s->kind == FR_OP_NORM) head += price_of(&w, s);
            }
            play(&w, &r);
            assert_int_equal(busy % micros, 0);
            assert_int_equal(r.end, (micros + stages - 1) * (busy / micros) + head);
            done(&r);
        }
}

/* copy_end[i] = max(copy_end[i-1], comp_end[i-S]) + f_i; comp_end[i] = max(comp_end[i-1], copy_end[i], gate) + c_i. */
static void offload_slots_follow_the_recurrence(void **state) {
    (void)state;
    static const double links[] = {0.001, 0.02, 0.3};
    for (int slots = 1; slots <= 8; slots += slots < 3 ? 1 : 5)
        for (size_t i = 0; i < 3; i++) {
            world w = {.host_link = links[i]};
            run_state r = plan("offload", 1, (fr_layout){.slots = slots}, "even", false, 2, equal);
            int64_t copy[2 * LAYERS * 8 + 1] = {0}, comp[2 * LAYERS * 8 + 1] = {0}, now = 0;
            int at = 0;
            int64_t f = 50 + (int64_t)(links[i] * (double)(3 * 256 * 64 * 2));
            for (int forward = 0; forward < 2; forward++) {
                const fr_fragment *g = r.fragments[forward];
                uint32_t compute = fr_planner_plan(r.planner)->lanes[1].kind == FR_LANE_COMPUTE ? 1 : FR_NONE;
                for (uint32_t o = g->heads[g->head_of[compute] - 1].first; o != FR_NONE; o = g->ops[o].next) {
                    const fr_op *op = &g->ops[o];
                    if (op->kind == FR_OP_EXPERT_UP) {
                        at++;
                        copy[at] = fr_max_i64(copy[at - 1], at > slots ? comp[at - slots] : 0) + f;
                        now = fr_max_i64(now, copy[at]);
                    }
                    now += price_of(&w, fr_op_shape(g, op));
                    if (op->kind == FR_OP_EXPERT_DOWN) comp[at] = now;
                }
            }
            play(&w, &r);
            assert_int_equal(r.end, now);
            done(&r);
        }
}

/* A copy a layer ahead hides as well as a gather does: T = a + max over layers, here against an own recurrence. */
static void offload_layer_ahead(void **state) {
    (void)state;
    static const double links[] = {0.001, 0.02, 0.3};
    for (size_t i = 0; i < 3; i++) {
        world w = {.host_link = links[i]};
        run_state r = plan("offload", 1, (fr_layout){0}, "even", false, 1, equal);
        int64_t copy[LAYERS], down[LAYERS], now = 0, f = 50 + (int64_t)(links[i] * (double)(8 * 3 * 256 * 64 * 2));
        const fr_fragment *g = r.fragments[0];
        int at = FR_NO_LAYER;
        for (uint32_t o = g->heads[g->head_of[1] - 1].first; o != FR_NONE; o = g->ops[o].next) {
            const fr_op *op = &g->ops[o];
            int l = op->layer;
            if (l != at && l != FR_NO_LAYER) { /* layer entry */
                at = l;
                copy[l] = fr_max_i64(l > 0 ? copy[l - 1] : 0, l > 1 ? down[l - 2] : 0) + f;
                now = fr_max_i64(now, copy[l]);
            }
            now += price_of(&w, fr_op_shape(g, op));
            if (op->kind == FR_OP_EXPERT_DOWN) down[l] = now;
        }
        play(&w, &r);
        assert_int_equal(r.end, now);
        done(&r);
    }
}

static void folded_plans_take_the_same_time(void **state) {
    (void)state;
    static const struct {
        const char *strategy;
        fr_layout layout;
    } cases[] = {{"dp", {.kv_cache = false}},
                 {"tp", {.kv_cache = false}},
                 {"tp", {.tp = 2, .dp = 2}},
                 {"ep", {.kv_cache = false}},
                 {"ep", {.tp = 2}},
                 {"ep", {.exchange = FR_EXCHANGE_AGRS}},
                 {"ep", {.overlap = FR_OVERLAP_TBO}},
                 {"ep", {.overlap = FR_OVERLAP_EXPERT_GROUPS, .overlap_stages = 2}},
                 {"asyncep", {.kv_cache = false}},
                 {"asyncep", {.gather = FR_GATHER_NCCL_CE}},
                 {"dwdp", {.gather_chunk = 50000}},
                 {"offload", {.window = 2}},
                 {"offload", {.gather = FR_GATHER_NCCL}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world a = {.link = 0.05, .host_link = 0.1}, b = a;
        run_state x = plan(cases[i].strategy, 4, cases[i].layout, "even", false, 2, equal);
        run_state y = plan(cases[i].strategy, 4, cases[i].layout, "even", true, 2, equal);
        assert_int_equal(fr_planner_plan(y.planner)->fold, 4);
        play(&a, &x);
        play(&b, &y);
        if (x.end != y.end)
            fail_msg("%s, case %zu: folded %lld ns, unfolded %lld ns", cases[i].strategy, i, (long long)y.end,
                     (long long)x.end);
        done(&x), done(&y);
    }
}

/* Compute-bound ep: more skew, later end; overlap never hurts where an op takes its price whatever runs beside it. */
static void ep_waits_for_the_slowest_rank(void **state) {
    (void)state;
    world even = {.link = 0.0001}, skewed = even, tbo = {.link = 0.02}, plain = tbo;
    run_state a = plan("ep", 4, (fr_layout){0}, "even", false, 2, equal);
    run_state b = plan("ep", 4, (fr_layout){0}, "hot:3", false, 2, equal);
    play(&even, &a);
    play(&skewed, &b);
    assert_true(a.end < b.end);
    done(&a), done(&b);
    a = plan("ep", 4, (fr_layout){0}, "even", false, 2, equal);
    b = plan("ep", 4, (fr_layout){.overlap = FR_OVERLAP_TBO}, "even", false, 2, equal);
    play(&plain, &a);
    play(&tbo, &b);
    assert_true(b.end < a.end);
    done(&a), done(&b);
}

/* Two groups' batches through two expert ranks: all end, and two batches in turn beat one after the other. */
static void asap_interleaves_two_batches(void **state) {
    (void)state;
    static const fr_batch pair[2] = {{sequence, 2}, {sequence, 2}}, alone[2] = {{sequence, 2}, {NULL, 0}};
    world a = {.link = 0.01}, b = a;
    run_state x = plan("asap", 4, (fr_layout){0}, "even", false, 1, pair);
    run_state y = plan("asap", 4, (fr_layout){0}, "even", false, 1, alone);
    play(&a, &x);
    play(&b, &y);
    assert_true(x.end > y.end && x.end < 2 * y.end);
    done(&x), done(&y);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_gpu_is_the_sum_of_its_ops),
        cmocka_unit_test(asyncep_is_its_closed_form),
        cmocka_unit_test(prefetch_is_carried_over),
        cmocka_unit_test(dwdp_is_never_later_than_asyncep),
        cmocka_unit_test(pipeline_bubble),
        cmocka_unit_test(offload_slots_follow_the_recurrence),
        cmocka_unit_test(offload_layer_ahead),
        cmocka_unit_test(folded_plans_take_the_same_time),
        cmocka_unit_test(ep_waits_for_the_slowest_rank),
        cmocka_unit_test(asap_interleaves_two_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * player: hand-built plans with exact durations (a shape's m is its time in ns, bytes what it moves), against closed
 * forms and recurrences; and random plans, against the laws that hold for any plan.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sim/player.h"

static uint64_t next_random(uint64_t *x) {
    *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17;
    return *x >> 11;
}
static int64_t between(uint64_t *x, int64_t low, int64_t high) {
    return low + (int64_t)(next_random(x) % (uint64_t)(high - low + 1));
}

static void exact_price(void *context, const fr_shape *s, const fr_pair *pairs, fr_cost *out) {
    (void)context;
    (void)pairs;
    *out = (fr_cost){
        .ns = s->m, .low = s->m / 2, .high = 2 * s->m, .hbm_bytes = (double)s->bytes, .link_bytes = (double)s->bytes};
}
static double slow_by_half(void *context, fr_op_class victim, fr_aggressor a) {
    (void)context;
    if (victim == FR_CLASS_MEMORY) return 0;
    return a == FR_AGGRESSOR_PULL ? 0.5 : 0.25;
}

/* A player with what it reported. */
typedef struct {
    fr_player *player;
    fr_timeline spans;
    fr_forward_record records[64];
    int count, entered, answered;
    int64_t entered_at, answered_at;
} world;

static void on_finished(void *context, fr_fragment *f, const fr_forward_record *r) {
    world *w = context;
    if (w->count < 64) w->records[w->count] = *r;
    w->count++;
    fr_fragment_free(f);
}
static void on_entered(void *context, int unit, int64_t now) {
    (void)unit;
    ((world *)context)->entered++;
    ((world *)context)->entered_at = now;
}
static void on_answered(void *context, fr_fragment *f, int rank, int64_t now) {
    (void)f;
    (void)rank;
    ((world *)context)->answered++;
    ((world *)context)->answered_at = now;
}

static void open_world_of(world *w, const fr_plan *plan, const fr_capacity *capacity, bool interference, bool turns) {
    memset(w, 0, sizeof *w);
    w->player = fr_player_new(plan, &(fr_player_options){.sharing = capacity != NULL,
                                                         .turns = turns,
                                                         .interference = interference,
                                                         .spans = &w->spans,
                                                         .price = exact_price,
                                                         .capacity = capacity,
                                                         .slowdown = slow_by_half,
                                                         .finished = on_finished,
                                                         .entered = on_entered,
                                                         .answered = on_answered,
                                                         .context = w});
}

static void open_world(world *w, const fr_plan *plan, const fr_capacity *capacity, bool interference) {
    open_world_of(w, plan, capacity, interference, false);
}
static void play(world *w) {
    fr_error err = {0};
    int64_t next;
    fr_status s = fr_player_run(w->player, INT64_MAX, &next, &err);
    if (s != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(next, INT64_MAX);
}
static void close_world(world *w, fr_plan *plan) {
    fr_player_free(w->player);
    free(w->spans.spans);
    fr_plan_free(plan);
}

static int64_t parts_sum(const fr_parts *a) {
    return a->compute + a->exposed_comm + a->wait + a->bubble + a->idle;
}

static fr_op *emit(fr_fragment *f, uint32_t lane, fr_op_kind kind, int64_t ns, int64_t bytes, int layer, int sub) {
    fr_shape s = {.kind = (uint8_t)kind, .m = ns, .bytes = bytes};
    fr_op *op = fr_emit(f, lane, kind, ns < 0 ? 0 : fr_shape_add(f, &s, NULL, 0), layer);
    op->sub = (uint16_t)sub;
    return op;
}

static const fr_span *find(const world *w, fr_op_kind kind, int rank, int sub) {
    for (uint32_t i = 0; i < w->spans.count; i++)
        if (w->spans.spans[i].kind == kind && w->spans.spans[i].rank == rank &&
            (int)(w->spans.spans[i].id & 0x3ff) == sub)
            return &w->spans.spans[i];
    fail_msg("no span of kind %d on rank %d, sub %d", (int)kind, rank, sub);
    return NULL;
}

/* ---- closed forms ------------------------------------------------------------------------------------------------ */

static void test_one_gpu(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(1, 1);
    uint32_t lane = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false);
    world w;
    open_world(&w, plan, NULL, false);
    int64_t sum[2] = {0, 0};
    double norms = 0;
    uint64_t x = 7;
    for (int forward = 0; forward < 2; forward++) {
        fr_fragment *f = fr_fragment_new(plan, 0);
        for (int i = 0; i < 40; i++) {
            int64_t ns = between(&x, 0, 1000);
            emit(f, lane, i % 2 ? FR_OP_GEMM_O : FR_OP_NORM, ns, 0, 0, i);
            sum[forward] += ns;
            if (forward == 0 && i % 2 == 0) norms += (double)ns;
        }
        fr_player_append(w.player, f, 0);
    }
    play(&w);
    assert_int_equal(w.count, 2);
    assert_int_equal(w.records[0].end, sum[0]);
    assert_int_equal(w.records[1].end, sum[0] + sum[1]);
    assert_int_equal(w.records[1].parts.elapsed, sum[1]); /* from the first one's end */
    assert_int_equal(w.records[1].parts.compute, sum[1]);
    fr_player_stats stats;
    fr_player_stats_get(w.player, &stats);
    assert_int_equal(stats.played, 80);
    assert_int_equal(stats.class_ns[FR_CLASS_GEMM] + stats.class_ns[FR_CLASS_MEMORY], sum[0] + sum[1]);
    assert_int_equal(w.spans.count, 80);
    /* every op between half and twice its price; the two classes of work err apart from each other */
    double share = norms / (double)sum[0], off = sqrt(share * share + (1 - share) * (1 - share));
    assert_true(fabs((double)w.records[0].low - (double)sum[0] * (1 - off / 2)) <= 40);
    assert_true(fabs((double)w.records[0].high - (double)sum[0] * (1 + off)) <= 40);
    close_world(&w, plan);
}

/* Equal stages, m micro-batches: bubble share (p - 1) / (m + p - 1) on the last stage. */
static void test_pipeline_bubble(void **state) {
    (void)state;
    enum { P = 4, M = 6, T = 100 };
    fr_plan *plan = fr_plan_new(P, P);
    uint32_t compute[P], send[P], recv[P], came[P], done[P], group[P];
    for (int r = 0; r < P; r++) {
        compute[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", false);
        send[r] = fr_plan_lane(plan, r, FR_LANE_SEND, "send", false);
        recv[r] = fr_plan_lane(plan, r, FR_LANE_RECV, "recv", false);
        came[r] = fr_plan_event(plan, r, "came");
        done[r] = fr_plan_event(plan, r, "done");
        group[r] = fr_plan_group(plan, (int16_t[]){(int16_t)r, (int16_t)(r + 1)}, 2, 2);
    }
    fr_fragment *f = fr_fragment_new(plan, 0);
    for (uint32_t m = 0; m < M; m++)
        for (int r = 0; r < P; r++) {
            if (r > 0) {
                emit(f, send[r - 1], FR_OP_SEND, 0, 0, 0, (int)m);
                fr_wait(f, done[r - 1], m + 1);
                fr_meet(f, group[r - 1], m);
                emit(f, recv[r], FR_OP_RECV, 0, 0, 0, (int)m);
                fr_meet(f, group[r - 1], m);
                fr_signal(f, came[r]);
            }
            fr_op *op = emit(f, compute[r], FR_OP_GEMM_QKV, T, 0, 0, (int)m);
            if (r == 0) op->flags |= FR_OP_ENTRY;
            if (r == P - 1) op->flags |= FR_OP_ANSWER;
            if (r > 0) fr_wait(f, came[r], m + 1);
            fr_signal(f, done[r]);
        }
    world w;
    open_world(&w, plan, NULL, false);
    fr_player_append(w.player, f, 0);
    play(&w);
    const fr_parts *a = &w.records[0].parts;
    assert_int_equal(w.records[0].last_rank, P - 1);
    assert_int_equal(a->elapsed, (M + P - 1) * T);
    assert_int_equal(a->compute, M * T);
    assert_int_equal(a->bubble * (M + P - 1), (P - 1) * a->elapsed);
    assert_int_equal(w.entered, 1);
    assert_int_equal(w.entered_at, M * T); /* the first stage is free long before the forward ends */
    assert_int_equal(w.answered_at, (M + P - 1) * T);
    close_world(&w, plan);
}

/* asyncep: the gather of layer i + 1 starts with layer i; forward = sum_{i<L-1} max(C_i, G_{i+1}) + C_{L-1}. */
static void test_asyncep_closed_form(void **state) {
    (void)state;
    enum { L = 20, PULLS = 3 };
    for (uint64_t seed = 1; seed < 20; seed++) {
        uint64_t x = seed * 7919;
        fr_plan *plan = fr_plan_new(1, 1);
        uint32_t compute = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false);
        uint32_t copy = fr_plan_lane(plan, 0, FR_LANE_COPY, "copy", false);
        uint32_t gathered = fr_plan_event(plan, 0, "gathered"), done = fr_plan_event(plan, 0, "done");
        int64_t c[L], g[L + 1], want = 0;
        fr_fragment *f = fr_fragment_new(plan, 0);
        for (int i = 0; i < L; i++) {
            c[i] = g[i + 1] = 0;
            for (int k = 0; k < PULLS && i + 1 < L; k++) {
                int64_t ns = between(&x, 0, 400);
                g[i + 1] += ns;
                emit(f, copy, FR_OP_PULL, ns, 0, i + 1, k);
                fr_wait(f, done, (uint32_t)i);
                fr_signal(f, gathered);
            }
            for (int k = 0; k < 4; k++) {
                int64_t ns = between(&x, 1, 300);
                c[i] += ns;
                emit(f, compute, FR_OP_GEMM_O, ns, 0, i, k);
                if (k == 0) fr_wait(f, gathered, (uint32_t)(i * PULLS));
                if (k == 3) fr_signal(f, done);
            }
        }
        int64_t computing = 0;
        for (int i = 0; i < L; i++) {
            want += i < L - 1 && g[i + 1] > c[i] ? g[i + 1] : c[i];
            computing += c[i];
        }
        world w;
        open_world(&w, plan, NULL, false);
        fr_player_append(w.player, f, 0);
        play(&w);
        const fr_parts *a = &w.records[0].parts;
        assert_int_equal(w.records[0].end, want);
        assert_int_equal(a->compute, computing);
        assert_int_equal(a->exposed_comm, want - computing); /* every gap lies under the last pulls */
        int64_t gathering = 0;
        for (int i = 1; i < L; i++) gathering += g[i];
        assert_int_equal(a->hidden_comm, gathering - a->exposed_comm);
        close_world(&w, plan);
    }
}

/* Offload with S slots: the recurrence of engine/strategy/experts_offload.c; a skipped expert takes neither slot nor
 * time. */
static void test_offload_recurrence(void **state) {
    (void)state;
    enum { L = 6, E = 5, N = L * E };
    for (int slots = 1; slots <= 4; slots++) {
        uint64_t x = 99 + (uint64_t)slots;
        fr_plan *plan = fr_plan_new(1, 1);
        uint32_t compute = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false);
        uint32_t h2d = fr_plan_lane(plan, 0, FR_LANE_H2D, "h2d", false);
        uint32_t loaded = fr_plan_event(plan, 0, "loaded");
        uint32_t pool = fr_plan_buffer(plan, 0, FR_BUF_SLOT, "slot", 1, slots, false);
        fr_fragment *f = fr_fragment_new(plan, 0);
        int64_t copy_end[N], comp_end[N], gate = 0;
        int n = 0; /* fetches that happen */
        for (int l = 0; l < L; l++) {
            int64_t a = between(&x, 0, 500);
            gate = (n ? comp_end[n - 1] : 0) + a;
            emit(f, compute, FR_OP_ATTENTION, a, 0, l, 1000);
            for (int e = 0; e < E; e++) {
                uint32_t i = (uint32_t)(l * E + e);
                bool skip = between(&x, 0, 3) == 0;
                int64_t fetch = skip ? -1 : between(&x, 1, 300), c = skip ? -1 : between(&x, 1, 300);
                emit(f, h2d, FR_OP_H2D, fetch, 0, l, e);
                fr_use_buffer(f, FR_USE_ACQUIRE, pool, i);
                fr_signal(f, loaded);
                emit(f, compute, FR_OP_EXPERT_UP, c, 0, l, e);
                fr_wait(f, loaded, i + 1);
                fr_use_buffer(f, FR_USE_READ, pool, i);
                fr_use_buffer(f, FR_USE_FREE, pool, i);
                if (skip) continue;
                int64_t free_at = n >= slots ? comp_end[n - slots] : 0, copied = n ? copy_end[n - 1] : 0;
                copy_end[n] = (copied > free_at ? copied : free_at) + fetch;
                int64_t begin = n ? comp_end[n - 1] : 0;
                if (copy_end[n] > begin) begin = copy_end[n];
                if (gate > begin) begin = gate;
                comp_end[n] = begin + c;
                n++;
            }
        }
        world w;
        open_world(&w, plan, NULL, false);
        fr_player_append(w.player, f, 0);
        play(&w);
        assert_true(n > N / 2 && n < N);
        assert_int_equal(w.records[0].end, comp_end[n - 1]);
        fr_player_stats stats;
        fr_player_stats_get(w.player, &stats);
        assert_int_equal(stats.skipped, 2 * (N - n));
        assert_int_equal(stats.played, 2 * n + L);
        close_world(&w, plan);
    }
}

/* ---- sharing ----------------------------------------------------------------------------------------------------- */

static const fr_capacity links = {.link_out = 1e9, .link_in = 1e9, .hbm = 4e9, .copy_engines = 2};

/* Ranks 1 and 2 pull 1000 bytes at 1 byte/ns from rank 0: its outgoing link gives each a half. */
static void test_two_pulls_share(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(3, 3);
    fr_fragment *f;
    uint32_t lane[3];
    for (int r = 0; r < 3; r++) lane[r] = fr_plan_lane(plan, r, FR_LANE_COPY, "copy", false);
    f = fr_fragment_new(plan, 0);
    emit(f, lane[1], FR_OP_PULL, 1000, 1000, 0, 0)->peer = 0;
    emit(f, lane[2], FR_OP_PULL, 1000, 1000, 0, 0)->peer = 0;
    emit(f, lane[2], FR_OP_PULL, 1000, 1000, 0, 1)->peer = 1;
    world w;
    open_world(&w, plan, &links, false);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_PULL, 1, 0)->end, 2000);
    assert_int_equal(find(&w, FR_OP_PULL, 2, 0)->end, 2000);
    assert_int_equal(find(&w, FR_OP_PULL, 2, 1)->end, 3000);
    close_world(&w, plan);
}

/* The same where a source serves in turns: rank 1 first, at the full rate, then rank 2, which then pulls from a free
 * one. */
static void test_pulls_take_turns(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(4, 4);
    fr_fragment *f;
    uint32_t lane[4];
    for (int r = 0; r < 4; r++) lane[r] = fr_plan_lane(plan, r, FR_LANE_COPY, "copy", false);
    f = fr_fragment_new(plan, 0);
    emit(f, lane[1], FR_OP_PULL, 1000, 1000, 0, 0)->peer = 0;
    emit(f, lane[2], FR_OP_PULL, 1000, 1000, 0, 0)->peer = 0;
    emit(f, lane[3], FR_OP_PULL, 1000, 1000, 0, 0)->peer = 0;
    emit(f, lane[2], FR_OP_PULL, 1000, 1000, 0, 1)->peer = 1;
    world w;
    open_world_of(&w, plan, &links, false, true);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_PULL, 1, 0)->end, 1000);
    assert_int_equal(find(&w, FR_OP_PULL, 2, 0)->end, 2000);
    assert_int_equal(find(&w, FR_OP_PULL, 3, 0)->end, 3000);
    assert_int_equal(find(&w, FR_OP_PULL, 2, 1)->end, 3000);
    close_world(&w, plan);
}

/*
 * Four ranks gather over and over, each from the three after it, and begin apart. Whoever comes first is served: they
 * fall into a ring in which each waits for a source once a gather, 4 pulls' time in place of 3, for good. Readers that
 * yield come into step: 3, but for the beginning.
 */
static int64_t gathers(bool yield, int slices, int64_t apart) {
    enum { P = 4, GATHERS = 40, PULL = 1000 };
    fr_plan *plan = fr_plan_new(P, P);
    uint32_t copy[P], compute[P], begun[P];
    plan->yields_within = 3;
    for (int r = 0; r < P; r++) {
        copy[r] = fr_plan_lane(plan, r, FR_LANE_COPY, "copy", false);
        compute[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", false);
        begun[r] = fr_plan_event(plan, r, "begun");
    }
    fr_fragment *f = fr_fragment_new(plan, 0);
    for (int r = 0; r < P; r++) {
        emit(f, compute[r], FR_OP_GEMM_O, 1 + r * apart, 0, 0, 0);
        fr_signal(f, begun[r]);
        for (int g = 0; g < GATHERS; g++)
            for (int i = 0; i < slices * (P - 1); i++) {
                fr_op *op = emit(f, copy[r], FR_OP_PULL, PULL / slices, PULL / slices, g, i);
                op->peer = (int16_t)((r + 1 + i % (P - 1)) % P);
                if (yield) op->flags |= FR_OP_YIELDS;
                if (yield && i + 1 == slices * (P - 1)) op->flags |= FR_OP_GATHERED;
                if (g + i == 0) fr_wait(f, begun[r], 1);
            }
    }
    world w;
    open_world_of(&w, plan, &links, false, true);
    fr_player_append(w.player, f, 0);
    play(&w);
    int64_t end = 0;
    for (uint32_t i = 0; i < w.spans.count; i++) end = fr_max_i64(end, w.spans.spans[i].end);
    close_world(&w, plan);
    return end / GATHERS;
}

static void test_pulls_that_yield(void **state) {
    (void)state;
    assert_in_range(gathers(false, 1, 0), 3000, 3001);
    int rings = 0;
    for (int64_t apart = 100; apart < 3000; apart += 100) {
        const int64_t fcfs = gathers(false, 1, apart);
        rings += fcfs > 3900;
        assert_in_range(gathers(true, 2, apart), 3000, 3300);
    }
    assert_true(rings > 5);
}

/* A memory-bound kernel beside a pull that reads its HBM: pull first, kernel gets the rest; a GEMM beside it loses by
 * interference only; at both ends of the pull. */
static void test_kernel_beside_pull(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(2, 2);
    uint32_t c0 = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t c1 = fr_plan_lane(plan, 1, FR_LANE_COMPUTE, "compute", false);
    uint32_t copy = fr_plan_lane(plan, 0, FR_LANE_COPY, "copy", false);
    fr_fragment *f = fr_fragment_new(plan, 0);
    emit(f, copy, FR_OP_PULL, 3000, 3000, 0, 0)->peer = 1;
    emit(f, c0, FR_OP_NORM, 900, 3600, 0, 0);       /* 4 bytes/ns of 4; the pull writes 1 */
    emit(f, c1, FR_OP_GEMM_O, 1000, 1000, 0, 0);    /* 1 byte/ns */
    emit(f, c1, FR_OP_EXPERT_UP, 2000, 1000, 0, 0); /* from 1500 on; alone from 3000 on */
    world w;
    open_world(&w, plan, &links, true);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_PULL, 0, 0)->end, 3000);
    assert_int_equal(find(&w, FR_OP_NORM, 0, 0)->end, 1200);
    assert_int_equal(find(&w, FR_OP_GEMM_O, 1, 0)->end, 1500);
    assert_int_equal(find(&w, FR_OP_EXPERT_UP, 1, 0)->end, 4000); /* 1000 done by 3000, 1000 left at full rate */
    close_world(&w, plan);
}

/* A player of hosts with so many GPUs each. */
static void open_host_world(world *w, const fr_plan *plan, const fr_capacity *capacity, int gpus_per_host) {
    w->player = fr_player_new(plan, &(fr_player_options){.sharing = true,
                                                         .gpus_per_host = gpus_per_host,
                                                         .spans = &w->spans,
                                                         .price = exact_price,
                                                         .capacity = capacity,
                                                         .finished = on_finished,
                                                         .context = w});
}

/* Four GPUs, two hosts of 1.5 bytes/ns, four copies of 1 byte/ns: 3/4 each where two share a host's memory; the copy of
 * rank 2 is alone after 500. */
static void test_host_memory(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(4, 4);
    fr_fragment *f;
    uint32_t lane[4];
    for (int r = 0; r < 4; r++) lane[r] = fr_plan_lane(plan, r, FR_LANE_H2D, "h2d", false);
    f = fr_fragment_new(plan, 0);
    const int64_t ns[] = {900, 900, 750, 375};
    for (int r = 0; r < 4; r++) emit(f, lane[r], FR_OP_H2D, ns[r], ns[r], 0, 0);
    world w = {0};
    const fr_capacity hosts = {.pcie_h2d = 1e9, .host = 1.5e9};
    open_host_world(&w, plan, &hosts, 2);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_H2D, 0, 0)->end, 1200);
    assert_int_equal(find(&w, FR_OP_H2D, 1, 0)->end, 1200);
    assert_int_equal(find(&w, FR_OP_H2D, 3, 0)->end, 500);
    assert_int_equal(find(&w, FR_OP_H2D, 2, 0)->end, 500 + 375); /* 375 of 750 done by 500 */
    close_world(&w, plan);
}

/* One plan rank that stands for four GPUs of a host takes four GPUs' part of the host's memory: 1.5 bytes/ns for four
 * copies of 1 byte/ns. */
static void test_host_memory_folded(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(1, 4);
    const uint32_t lane = fr_plan_lane(plan, 0, FR_LANE_H2D, "h2d", false);
    fr_fragment *f = fr_fragment_new(plan, 0);
    emit(f, lane, FR_OP_H2D, 750, 750, 0, 0);
    world w = {0};
    const fr_capacity hosts = {.pcie_h2d = 1e9, .host = 1.5e9};
    open_host_world(&w, plan, &hosts, 4);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_H2D, 0, 0)->end, 2000); /* 0.375 bytes/ns each */
    close_world(&w, plan);
}

/* A forward's tables on their way while weights fill the link: halves, though the upload is a kernel's; norms, which
 * are kernels of HBM, still take what copies leave. */
static void test_upload_beside_weights(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(1, 1);
    const uint32_t compute = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false);
    const uint32_t h2d = fr_plan_lane(plan, 0, FR_LANE_H2D, "h2d", false);
    fr_fragment *f = fr_fragment_new(plan, 0);
    emit(f, h2d, FR_OP_H2D, 1000, 1000, 0, 0);
    emit(f, compute, FR_OP_UPLOAD, 100, 100, 0, 0);
    emit(f, compute, FR_OP_NORM, 100, 200, 0, 0); /* 2 bytes/ns of 2; the copy writes 1 */
    world w = {0};
    const fr_capacity one = {.hbm = 2e9, .pcie_h2d = 1e9};
    open_host_world(&w, plan, &one, 1);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_UPLOAD, 0, 0)->end, 200);
    assert_int_equal(find(&w, FR_OP_NORM, 0, 0)->end, 400);
    assert_int_equal(find(&w, FR_OP_H2D, 0, 0)->end, 1100);
    close_world(&w, plan);
}

/* A stage sends to the next while a third GPU pulls from the one that sends: both halve, and from the one that
 * receives: neither does. */
static void test_send_and_pull(void **state) {
    (void)state;
    for (int from = 0; from < 2; from++) {
        fr_plan *plan = fr_plan_new(3, 3);
        const uint32_t out = fr_plan_lane(plan, 0, FR_LANE_SEND, "send", false),
                       in = fr_plan_lane(plan, 1, FR_LANE_RECV, "recv", false),
                       copy = fr_plan_lane(plan, 2, FR_LANE_COPY, "copy", false),
                       group = fr_plan_group(plan, (int16_t[]){0, 1}, 2, 2);
        fr_fragment *f = fr_fragment_new(plan, 0);
        emit(f, out, FR_OP_SEND, 1000, 1000, 0, 0);
        fr_meet(f, group, 0);
        emit(f, in, FR_OP_RECV, 1000, 1000, 0, 0);
        fr_meet(f, group, 0);
        emit(f, copy, FR_OP_PULL, 1000, 1000, 0, 0)->peer = (int16_t)from;
        world w;
        open_world(&w, plan, &links, false);
        fr_player_append(w.player, f, 0);
        play(&w);
        assert_int_equal(find(&w, FR_OP_PULL, 2, 0)->end, from ? 1000 : 2000);
        assert_int_equal(find(&w, FR_OP_RECV, 1, 0)->end, from ? 1000 : 2000);
        close_world(&w, plan);
    }
}

/* Ranks 0 and 1 gather, 500 and 2000 bytes, while rank 0 pulls 1000 from `peer`: played to the end. */
static void gather_beside_pull(world *w, fr_plan *plan, int16_t peer) {
    uint32_t comm[2], copy = fr_plan_lane(plan, 0, FR_LANE_COPY, "copy", false);
    for (int r = 0; r < 2; r++) comm[r] = fr_plan_lane(plan, r, FR_LANE_COMM, "comm", false);
    uint32_t group = fr_plan_group(plan, (int16_t[]){0, 1}, 2, 2);
    fr_fragment *f = fr_fragment_new(plan, 0);
    emit(f, copy, FR_OP_PULL, 1000, 1000, 0, 0)->peer = peer;
    for (int r = 0; r < 2; r++) {
        emit(f, comm[r], FR_OP_ALLGATHER, r ? 2000 : 500, r ? 2000 : 500, 0, 0);
        fr_meet(f, group, 0);
    }
    open_world(w, plan, &links, false);
    fr_player_append(w->player, f, 0);
    play(w);
}

/* An all-gather over both links of ranks 0 and 1 beside a pull by rank 0 from rank 1, each alone at link speed: both
 * halve (rank 0 in, rank 1 out), the collective as a whole; a collective's members take unequal bytes in the time of
 * the slowest. */
static void test_collective_shares(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(2, 2);
    world w;
    gather_beside_pull(&w, plan, 1);
    /* rank 1 sends 1 byte/ns, rank 0 receives 500 / 2000: only rank 1's outgoing link is over-subscribed. */
    assert_int_equal(find(&w, FR_OP_PULL, 0, 0)->end, 2000);
    assert_int_equal(find(&w, FR_OP_ALLGATHER, 0, 0)->end, 3000);
    assert_int_equal(find(&w, FR_OP_ALLGATHER, 1, 0)->end, 3000);
    close_world(&w, plan);
}

/* A member that receives a quarter of what the slowest does leaves three quarters of its link: beside a pull by it from
 * a third GPU both go at 1 / 1.25. */
static void test_unequal_members(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(3, 3);
    world w;
    gather_beside_pull(&w, plan, 2);
    assert_int_equal(find(&w, FR_OP_PULL, 0, 0)->end, 1250);
    assert_int_equal(find(&w, FR_OP_ALLGATHER, 1, 0)->end, 2250);
    close_world(&w, plan);
}

/* A collective's kernel gets its SMs at once beside a kernel that streams memory, else when the product that runs ends;
 * from then on it slows what runs beside it, also while it waits for its peer. It starts, as timelines have it, when
 * all have come, and moves once all have SMs. */
static void test_waiting_collective(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(2, 2);
    uint32_t comm[2], compute[2];
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", false);
        comm[r] = fr_plan_lane(plan, r, FR_LANE_COMM, "comm", false);
    }
    uint32_t group = fr_plan_group(plan, (int16_t[]){0, 1}, 2, 2);
    fr_fragment *f = fr_fragment_new(plan, 0);
    emit(f, compute[0], FR_OP_NORM, 100, 0, 0, 0);
    emit(f, compute[0], FR_OP_GEMM_O, 1000, 0, 0, 0);
    emit(f, compute[0], FR_OP_EXPERT_UP, 2000, 0, 0, 0);
    emit(f, comm[1], FR_OP_NORM, 2000, 0, 0, 0); /* keeps rank 1's from coming */
    emit(f, compute[1], FR_OP_GEMM_O, 2500, 0, 0, 0);
    emit(f, compute[1], FR_OP_EXPERT_UP, 1000, 0, 0, 0);
    for (int r = 0; r < 2; r++) {
        emit(f, comm[r], FR_OP_ALLGATHER, 500, 0, 0, 1);
        fr_meet(f, group, 0);
    }
    world w;
    open_world(&w, plan, &links, true);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_GEMM_O, 0, 0)->end, 100 + 1250);
    assert_int_equal(find(&w, FR_OP_GEMM_O, 1, 0)->end, 2500); /* no SM of its own is taken */
    assert_int_equal(find(&w, FR_OP_ALLGATHER, 0, 1)->start, 2000);
    assert_int_equal(find(&w, FR_OP_ALLGATHER, 0, 1)->end, 3000);
    assert_int_equal(find(&w, FR_OP_EXPERT_UP, 0, 0)->end, 3000 + 680); /* 1650 / 1.25 done by 3000 */
    assert_int_equal(find(&w, FR_OP_EXPERT_UP, 1, 0)->end, 3000 + 600); /* 500 / 1.25 */
    close_world(&w, plan);
}

/* A collective asked for at the instant at which a product begins comes behind it; behind one it is in before the next
 * begins. The two ends of a send meet before either asks. */
static void test_asked_for_beside(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(2, 2);
    uint32_t comm[2], compute[2];
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", false);
        comm[r] = fr_plan_lane(plan, r, FR_LANE_COMM, "comm", false);
    }
    uint32_t group = fr_plan_group(plan, (int16_t[]){0, 1}, 2, 2);
    fr_fragment *f = fr_fragment_new(plan, 0);
    for (int r = 0; r < 2; r++)
        for (int k = 0; k < 2; k++) emit(f, compute[r], FR_OP_GEMM_O, r ? 400 : 1000, 0, 0, k);
    emit(f, compute[1], FR_OP_GEMM_O, 5000, 0, 0, 2);
    emit(f, comm[1], FR_OP_NORM, 600, 0, 0, 0);
    emit(f, comm[0], FR_OP_SEND, 200, 0, 0, 1); /* rank 1's end comes at 600: its product runs until 800 */
    fr_meet(f, group, 0);
    emit(f, comm[1], FR_OP_RECV, 200, 0, 0, 1);
    fr_meet(f, group, 0);
    world w;
    open_world(&w, plan, &links, true);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_RECV, 1, 1)->start, 600);
    assert_int_equal(find(&w, FR_OP_SEND, 0, 1)->end, 1200); /* rank 0's first product ends at 1000 */
    assert_int_equal(find(&w, FR_OP_GEMM_O, 0, 0)->end, 1000);
    assert_int_equal(find(&w, FR_OP_GEMM_O, 0, 1)->end, 2040); /* 160 done by 1200 */
    assert_int_equal(find(&w, FR_OP_GEMM_O, 1, 2)->end, 5880); /* slowed from 800, where the receive is in, to 1200 */
    close_world(&w, plan);
}

/* Unordered pulls (DWDP): N ranks each pull from a random other rank at once. A pull that meets C - 1 competitors at
 * its source takes C times as long; C - 1 ~ Binomial(N - 2, 1 / (N - 1)) (arXiv 2604.01621 section 4.3). Seeded; 4
 * standard errors. */
static void test_random_sources(void **state) {
    (void)state;
    const struct {
        int n;
        double percent[4];
    } table[] = {{3, {50, 50, 0, 0}}, {4, {44.44, 44.44, 11.11, 0}}, {8, {39.66, 39.66, 16.52, 3.67}}};
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        enum { ROUNDS = 4000 };
        int n = table[k].n, seen[20] = {0};
        uint64_t x = 4242 + k;
        int16_t all[16];
        fr_plan *plan = fr_plan_new(n, n);
        for (int r = 0; r < n; r++) all[r] = (int16_t)fr_plan_lane(plan, r, FR_LANE_COPY, "copy", false);
        for (int r = 0; r < n; r++) all[r] = (int16_t)r;
        uint32_t group = fr_plan_group(plan, all, n, n);
        const fr_capacity out_only = {.link_out = 1e9};
        world w;
        open_world(&w, plan, &out_only, false);
        for (uint32_t round = 0; round < ROUNDS; round++) {
            fr_fragment *f = fr_fragment_new(plan, 0);
            for (int r = 0; r < n; r++) {
                int peer = (int)between(&x, 0, n - 2);
                emit(f, (uint32_t)r, FR_OP_PULL, 1000, 1000, 0, 0)->peer = (int16_t)(peer >= r ? peer + 1 : peer);
                emit(f, (uint32_t)r, FR_OP_COUNTS, 0, 0, 0, 0); /* all together again */
                fr_meet(f, group, round);
            }
            fr_player_append(w.player, f, fr_player_now(w.player));
            play(&w);
            for (uint32_t i = 0; i < w.spans.count; i++)
                if (w.spans.spans[i].kind == FR_OP_PULL) seen[(w.spans.spans[i].end - w.spans.spans[i].start) / 1000]++;
            w.spans.count = 0;
        }
        for (int c = 1; c <= 4; c++) {
            double p = table[k].percent[c - 1] / 100, got = (double)seen[c] / (ROUNDS * n);
            assert_true(fabs(got - p) <= 4 * sqrt(p * (1 - p) / ROUNDS) + 1e-4);
        }
        close_world(&w, plan);
    }
}

/* ---- disciplines ------------------------------------------------------------------------------------------------- */

/* Items A (ready at 300) and B (ready at 100), each 50 + 50: in order A 300-400, B 400-500; first-ready B first. Items
 * that become ready at the same time: the one appended first. */
static void test_first_ready(void **state) {
    (void)state;
    for (int first_ready = 0; first_ready < 2; first_ready++) {
        fr_plan *plan = fr_plan_new(2, 2);
        uint32_t lane = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", first_ready);
        uint32_t sender = fr_plan_lane(plan, 1, FR_LANE_COMPUTE, "compute", false);
        uint32_t a = fr_plan_event(plan, 0, "a"), b = fr_plan_event(plan, 0, "b"), c = fr_plan_event(plan, 0, "c");
        uint32_t d = fr_plan_event(plan, 0, "d");
        fr_fragment *f = fr_fragment_new(plan, 0);
        uint32_t waits[] = {a, b, c, c, d};
        for (int i = 0; i < 5; i++) {
            emit(f, lane, FR_OP_EXPERT_UP, 50, 0, 0, i)->flags |= FR_OP_ITEM;
            fr_wait(f, waits[i], 1);
            emit(f, lane, FR_OP_EXPERT_DOWN, 50, 0, 0, i);
        }
        emit(f, sender, FR_OP_NORM, 100, 0, 0, 0);
        fr_signal(f, b);
        emit(f, sender, FR_OP_NORM, 200, 0, 0, 1);
        fr_signal(f, c); /* before a, at the same time: yet a's item was appended first */
        fr_signal(f, a);
        fr_signal(f, d);
        world w;
        open_world(&w, plan, NULL, false);
        fr_player_append(w.player, f, 0);
        play(&w);
        assert_int_equal(find(&w, FR_OP_EXPERT_UP, 0, 0)->start, 300);
        assert_int_equal(find(&w, FR_OP_EXPERT_UP, 0, 1)->start, first_ready ? 100 : 400);
        assert_int_equal(find(&w, FR_OP_EXPERT_DOWN, 0, 1)->end, first_ready ? 200 : 500);
        assert_int_equal(find(&w, FR_OP_EXPERT_UP, 0, 2)->start, first_ready ? 400 : 500);
        assert_int_equal(find(&w, FR_OP_EXPERT_UP, 0, 3)->start, first_ready ? 500 : 600);
        assert_int_equal(find(&w, FR_OP_EXPERT_UP, 0, 4)->start, first_ready ? 600 : 700);
        assert_int_equal(w.records[0].end, first_ready ? 700 : 800);
        assert_int_equal(parts_sum(&w.records[0].parts), w.records[0].parts.elapsed);
        close_world(&w, plan);
    }
}

/* Two senders push into a pool of 2 slots on rank 2, which drains slowly: the third and later pushes wait for a free
 * slot, in the order in which they asked (rank 1 asked at 30, rank 0 at 40). */
static void test_back_pressure(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(3, 3);
    uint32_t s0 = fr_plan_lane(plan, 0, FR_LANE_SEND, "send", false),
             s1 = fr_plan_lane(plan, 1, FR_LANE_SEND, "send", false);
    uint32_t drain = fr_plan_lane(plan, 2, FR_LANE_COMPUTE, "compute", false);
    uint32_t flag = fr_plan_event(plan, 2, "flag"), pool = fr_plan_buffer(plan, 2, FR_BUF_SLOT, "slot", 1, 2, false);
    fr_fragment *f = fr_fragment_new(plan, 0);
    const uint32_t lane_of[] = {s0, s1, s0, s1};
    const int64_t ns_of[] = {40, 30, 10, 10};
    for (uint32_t i = 0; i < 4; i++) {
        fr_op *op = emit(f, lane_of[i], FR_OP_PUSH, ns_of[i], 0, 0, (int)i);
        op->peer = 2;
        fr_use_buffer(f, FR_USE_ACQUIRE, pool, i);
        fr_signal(f, flag);
    }
    for (uint32_t i = 0; i < 4; i++) {
        emit(f, drain, FR_OP_REDUCE, 100, 0, 0, (int)i);
        fr_wait(f, flag, i + 1);
        fr_use_buffer(f, FR_USE_FREE, pool, i < 2 ? 1 - i : 5 - i); /* in order of arrival: 1, 0, 3, 2 */
    }
    world w;
    open_world(&w, plan, NULL, false);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_PUSH, 1, 1)->end, 30);
    assert_int_equal(find(&w, FR_OP_PUSH, 1, 3)->start, 130); /* first slot free when the first drain ends */
    assert_int_equal(find(&w, FR_OP_PUSH, 0, 2)->start, 230);
    assert_int_equal(w.records[0].end, 430);
    assert_int_equal(w.records[0].parts.compute, 400);
    assert_int_equal(parts_sum(&w.records[0].parts), 430);
    close_world(&w, plan);
}

/* Pool of 2: one slot is held until 100; B asks for 2 at 10, C for 1 at 20. C must not pass B though its slot is there.
 * A first-ready lane passes over an item without a slot, and takes it when one is freed. */
static void test_slots_in_turn(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(4, 4);
    uint32_t lane[4], pool = fr_plan_buffer(plan, 0, FR_BUF_SLOT, "slot", 1, 2, false);
    for (int r = 0; r < 4; r++) lane[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", r == 3);
    fr_fragment *f = fr_fragment_new(plan, 0);
    const struct {
        int rank, before, ns, slots;
    } users[] = {{0, 0, 100, 1}, {1, 10, 50, 2}, {2, 20, 5, 1}, {3, -1, 7, 2}};
    uint32_t hold = 0;
    for (int i = 0; i < 4; i++) {
        if (users[i].before >= 0) emit(f, lane[users[i].rank], FR_OP_NORM, users[i].before, 0, 0, 0);
        emit(f, lane[users[i].rank], FR_OP_REDUCE, users[i].ns, 0, 0, 0)->flags |= FR_OP_ITEM;
        for (int k = 0; k < users[i].slots; k++) {
            fr_use_buffer(f, FR_USE_ACQUIRE, pool, hold);
            fr_use_buffer(f, FR_USE_FREE, pool, hold++);
        }
    }
    emit(f, lane[3], FR_OP_SORT, 30, 0, 0, 0)->flags |= FR_OP_ITEM;
    world w;
    open_world(&w, plan, NULL, false);
    fr_player_append(w.player, f, 0);
    play(&w);
    assert_int_equal(find(&w, FR_OP_REDUCE, 1, 0)->start, 100);
    assert_int_equal(find(&w, FR_OP_REDUCE, 2, 0)->start, 150);
    assert_int_equal(find(&w, FR_OP_SORT, 3, 0)->start, 0);
    assert_int_equal(find(&w, FR_OP_REDUCE, 3, 0)->start, 155);
    close_world(&w, plan);
}

/* A collective on compute lanes: rank 0 arrives at 100, rank 1 at 250, it takes 60. Then one on comm lanes that
 * compute needs: exposed while it runs, hidden under 30 ns of a kernel. */
static void test_collective_parts(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(2, 2);
    uint32_t compute[2], comm[2], done[2];
    fr_fragment *f;
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", false);
        comm[r] = fr_plan_lane(plan, r, FR_LANE_COMM, "comm", false);
        done[r] = fr_plan_event(plan, r, "done");
    }
    uint32_t group = fr_plan_group(plan, (int16_t[]){0, 1}, 2, 2);
    f = fr_fragment_new(plan, 0);
    for (int r = 0; r < 2; r++) {
        emit(f, compute[r], FR_OP_GEMM_O, r ? 250 : 100, 0, 0, 0);
        emit(f, compute[r], FR_OP_ALLREDUCE, 60, 0, 0, 1);
        fr_meet(f, group, 0);
        fr_signal(f, done[r]);
        emit(f, comm[r], FR_OP_ALLTOALL, 80, 0, 0, 2);
        fr_wait(f, done[r], 1);
        fr_meet(f, group, 1);
        fr_signal(f, done[r]);
        emit(f, compute[r], FR_OP_NORM, 30, 0, 0, 3);
        emit(f, compute[r], FR_OP_GEMM_O, 5, 0, 0, 4);
        fr_wait(f, done[r], 2);
    }
    world w;
    open_world(&w, plan, NULL, false);
    fr_player_append(w.player, f, 0);
    play(&w);
    fr_parts a;
    fr_player_rank_parts(w.player, 0, &a);
    assert_int_equal(a.elapsed, 395);
    assert_int_equal(a.wait, 150);
    assert_int_equal(a.exposed_comm, 60 + 50);
    assert_int_equal(a.hidden_comm, 30);
    assert_int_equal(a.compute, 135);
    assert_int_equal(parts_sum(&a), 395);
    const fr_span *s = find(&w, FR_OP_ALLREDUCE, 0, 1);
    assert_int_equal(s->ready, 100);
    assert_int_equal(s->start, 250);
    assert_true(find(&w, FR_OP_GEMM_O, 0, 4)->cause == find(&w, FR_OP_ALLTOALL, 0, 2)->id);
    close_world(&w, plan);
}

static void test_deadlock(void **state) {
    (void)state;
    fr_plan *plan = fr_plan_new(1, 1);
    uint32_t lane = fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t event = fr_plan_event(plan, 0, "never");
    fr_fragment *f = fr_fragment_new(plan, 0);
    emit(f, lane, FR_OP_NORM, 10, 0, 3, 0);
    emit(f, lane, FR_OP_GEMM_O, 10, 0, 3, 0);
    fr_wait(f, event, 2);
    fr_signal(f, event);
    world w;
    open_world(&w, plan, NULL, false);
    fr_player_append(w.player, f, 0);
    fr_error err = {0};
    int64_t next;
    assert_int_equal(fr_player_run(w.player, 5, &next, &err), FR_OK);
    assert_int_equal(next, 10);
    assert_int_equal(fr_player_run(w.player, INT64_MAX, &next, &err), FR_FAILED);
    assert_non_null(strstr(err.text, "compute of rank 0 at f0.r0.l3.gemm_o.m0.s0 waits for never >= 2, which is 0"));
    fr_player_free(w.player);
    free(w.spans.spans);
    fr_fragment_free(f);
    fr_plan_free(plan);
}

/* Fragments handed in later, from outside and from a callback: gaps without work are idle; elapsed starts at release.
 */
typedef struct {
    world w;
    fr_plan *plan;
    uint32_t lane;
    int left;
} chain_world;
static void chain_finished(void *context, fr_fragment *f, const fr_forward_record *r) {
    chain_world *c = context;
    c->w.records[c->w.count++] = *r;
    fr_fragment_free(f);
    if (c->left-- <= 0) return;
    fr_fragment *next = fr_fragment_new(c->plan, 0);
    emit(next, c->lane, FR_OP_NORM, 70, 0, 0, 0);
    fr_player_append(c->w.player, next, r->end + 30);
}
static void test_append(void **state) {
    (void)state;
    chain_world c = {.plan = fr_plan_new(1, 1), .left = 2};
    c.lane = fr_plan_lane(c.plan, 0, FR_LANE_COMPUTE, "compute", false);
    c.w.player =
        fr_player_new(c.plan, &(fr_player_options){.price = exact_price, .finished = chain_finished, .context = &c});
    fr_fragment *f = fr_fragment_new(c.plan, 0);
    emit(f, c.lane, FR_OP_NORM, 100, 0, 0, 0);
    fr_player_append(c.w.player, f, 1000);
    fr_player_append(c.w.player, fr_fragment_new(c.plan, 0), 5000); /* empty */
    play(&c.w);
    assert_int_equal(c.w.count, 4);
    assert_int_equal(c.w.records[0].start, 1000);
    assert_int_equal(c.w.records[0].parts.elapsed, 100);
    assert_int_equal(c.w.records[1].release, 1130);
    assert_int_equal(c.w.records[2].end, 1300);
    assert_int_equal(c.w.records[2].parts.compute, 70);
    assert_int_equal(c.w.records[3].end, 5000);
    fr_parts a;
    fr_player_rank_parts(c.w.player, 0, &a);
    assert_int_equal(a.compute, 240);
    assert_int_equal(a.idle, 1060);
    assert_int_equal(a.elapsed, 1300); /* its last op's end */
    close_world(&c.w, c.plan);
}

/* ---- random plans ------------------------------------------------------------------------------------------------ */

enum { RANKS = 3, KINDS = 5, STEPS = 260 };
typedef struct {
    fr_plan *plan;
    uint32_t lane[RANKS][KINDS], event[RANKS], group;
    uint32_t raised[RANKS], meetings;
} ground;

/* Lanes are registered as given by `reverse`. */
static void make_ground(ground *g, bool reverse) {
    memset(g, 0, sizeof *g);
    g->plan = fr_plan_new(RANKS, RANKS);
    const fr_lane_kind kinds[KINDS] = {FR_LANE_HOST, FR_LANE_COMPUTE, FR_LANE_COMM, FR_LANE_COPY, FR_LANE_H2D};
    for (int i = 0; i < RANKS * KINDS; i++) {
        int k = reverse ? RANKS * KINDS - 1 - i : i;
        g->lane[k / KINDS][k % KINDS] = fr_plan_lane(g->plan, k / KINDS, kinds[k % KINDS], "lane", false);
    }
    int16_t all[RANKS];
    for (int r = 0; r < RANKS; r++) {
        all[r] = (int16_t)r;
        g->event[r] = fr_plan_event(g->plan, r, "event");
    }
    g->group = fr_plan_group(g->plan, all, RANKS, RANKS);
}

/* A fragment whose waits only ask for what was raised before in the order of emission: it cannot deadlock. `shorter`
 * makes some ops shorter. */
static fr_fragment *random_fragment(ground *g, uint64_t seed, bool shorter) {
    uint64_t x = seed * 2654435761u + 1, y = seed + 17;
    fr_fragment *f = fr_fragment_new(g->plan, 0);
    const fr_op_kind alone[KINDS][3] = {{FR_OP_LAUNCH, FR_OP_FENCE, FR_OP_READBACK},
                                        {FR_OP_GEMM_O, FR_OP_NORM, FR_OP_EXPERT_UP},
                                        {FR_OP_FENCE, FR_OP_FENCE, FR_OP_FENCE},
                                        {FR_OP_PULL, FR_OP_PULL, FR_OP_PULL},
                                        {FR_OP_H2D, FR_OP_H2D, FR_OP_D2H}};
    for (int step = 0; step < STEPS; step++) {
        bool meet = between(&x, 0, 7) == 0;
        int kind = meet ? (int)between(&x, 1, 2) : (int)between(&x, 0, KINDS - 1),
            only = (int)between(&x, 0, RANKS - 1);
        for (int r = meet ? 0 : only; r <= (meet ? RANKS - 1 : only); r++) {
            int64_t ns = between(&x, 0, 9) == 0 ? between(&x, -1, 0) : between(&x, 1, 500);
            int64_t bytes = ns > 0 ? ns * between(&x, 0, 4) : 0;
            if (shorter && ns > 0) ns -= between(&y, 0, ns);
            fr_op_kind op_kind = meet ? FR_OP_ALLTOALL : alone[kind][between(&x, 0, 2)];
            fr_op *op = emit(f, g->lane[r][kind], op_kind, ns, bytes, step / 100, step % 100);
            if (op_kind == FR_OP_PULL) op->peer = (int16_t)((r + 1 + between(&x, 0, RANKS - 2)) % RANKS);
            if (meet) fr_meet(f, g->group, g->meetings);
            for (int k = (int)between(&x, 0, 2); k > 0; k--) {
                int from = (int)between(&x, 0, RANKS - 1);
                if (!meet && g->raised[from])
                    fr_wait(f, g->event[from], g->raised[from] - (uint32_t)between(&x, 0, g->raised[from] < 3 ? 0 : 3));
            }
            if (!meet && between(&x, 0, 2) == 0) {
                int to = (int)between(&x, 0, RANKS - 1);
                fr_signal(f, g->event[to]);
                g->raised[to]++;
            }
        }
        g->meetings += meet;
    }
    return f;
}

static int by_id(const void *a, const void *b) {
    const fr_span *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static const fr_capacity tight = {
    .hbm = 3e9, .link_out = 2e9, .link_in = 2e9, .pcie_h2d = 2e9, .host = 3e9, .copy_engines = 1};
static const fr_capacity ample = {.hbm = 1e15, .link_out = 1e15, .link_in = 1e15};

/* Plays three fragments, one late; spans come back sorted by id. Checks what holds for any plan. */
static world random_run(uint64_t seed, bool reverse, const fr_capacity *capacity, bool interference, bool shorter) {
    ground g;
    make_ground(&g, reverse);
    world w;
    open_world(&w, g.plan, capacity, interference);
    uint32_t ops = 0;
    for (uint64_t k = 0; k < 3; k++) {
        fr_fragment *f = random_fragment(&g, seed * 10 + k, shorter);
        ops += f->ops_count;
        fr_player_append(w.player, f, k < 2 ? 0 : 20000);
    }
    play(&w);
    assert_int_equal(w.count, 3);
    fr_player_stats stats;
    fr_player_stats_get(w.player, &stats);
    assert_int_equal(stats.played + stats.skipped, ops);
    for (int i = 0; i < w.count; i++) {
        const fr_forward_record *r = &w.records[i];
        assert_int_equal(parts_sum(&r->parts), r->parts.elapsed);
        assert_true(r->parts.compute >= 0 && r->parts.exposed_comm >= 0 && r->parts.wait >= 0 && r->parts.idle >= 0 &&
                    r->parts.hidden_comm >= 0);
        assert_true(r->parts.elapsed <= r->end - r->release);
    }
    int64_t latest = 0;
    for (int r = 0; r < RANKS; r++) {
        fr_parts a;
        fr_player_rank_parts(w.player, r, &a);
        latest = latest > a.elapsed ? latest : a.elapsed;
        assert_int_equal(parts_sum(&a), a.elapsed);
    }
    assert_int_equal(latest, fr_player_now(w.player));
    qsort(w.spans.spans, w.spans.count, sizeof *w.spans.spans, by_id);
    fr_player_free(w.player);
    fr_plan_free(g.plan);
    return w;
}

static void assert_same(const world *a, const world *b) {
    assert_int_equal(a->spans.count, b->spans.count);
    for (uint32_t i = 0; i < a->spans.count; i++) {
        const fr_span *x = &a->spans.spans[i], *y = &b->spans.spans[i];
        assert_true(x->id == y->id && x->ready == y->ready && x->start == y->start && x->end == y->end);
    }
    for (int i = 0; i < a->count; i++)
        assert_memory_equal(&a->records[i].parts, &b->records[i].parts, sizeof(fr_parts));
}

static void test_lane_order_independence(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 12; seed++)
        for (int mode = 0; mode < 3; mode++) {
            const fr_capacity *c = mode ? &tight : NULL;
            world a = random_run(seed, false, c, mode == 2, false), b = random_run(seed, true, c, mode == 2, false);
            assert_same(&a, &b);
            for (uint32_t i = 0; i < a.spans.count; i++) assert_true(a.spans.spans[i].cause == b.spans.spans[i].cause);
            free(a.spans.spans);
            free(b.spans.spans);
        }
}

/* Without contention the fluid path gives the times of the fixed path (which plays stretches of ops in one step). */
static void test_ample_capacity_changes_nothing(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 25; seed++) {
        world a = random_run(seed, false, NULL, false, false), b = random_run(seed, false, &ample, false, false);
        assert_same(&a, &b);
        free(a.spans.spans);
        free(b.spans.spans);
    }
}

/* In-order lanes, no sharing, no interference: shorter durations never make any op end later. */
static void test_monotone(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 25; seed++) {
        world a = random_run(seed, false, NULL, false, false), b = random_run(seed, false, NULL, false, true);
        assert_int_equal(a.spans.count, b.spans.count);
        bool earlier = false;
        for (uint32_t i = 0; i < a.spans.count; i++) {
            assert_true(b.spans.spans[i].end <= a.spans.spans[i].end);
            earlier |= b.spans.spans[i].end < a.spans.spans[i].end;
        }
        assert_true(earlier);
        free(a.spans.spans);
        free(b.spans.spans);
    }
}

/* A ring of equal ranks that pull from their neighbours, and a collective: one folded rank gives the same times. */
static void test_fold(void **state) {
    (void)state;
    int64_t end[2];
    for (int folded = 0; folded < 2; folded++) {
        int n = folded ? 1 : 4;
        fr_plan *plan = fr_plan_new(n, 4);
        int16_t all[4] = {0, 1, 2, 3};
        uint32_t group = fr_plan_group(plan, all, n, 4);
        uint32_t compute[4], copy[4], came[4];
        for (int r = 0; r < n; r++) {
            compute[r] = fr_plan_lane(plan, r, FR_LANE_COMPUTE, "compute", false);
            copy[r] = fr_plan_lane(plan, r, FR_LANE_COPY, "copy", false);
            came[r] = fr_plan_event(plan, r, "came");
        }
        fr_fragment *f = fr_fragment_new(plan, 0);
        for (int r = 0; r < n; r++)
            for (int k = 0; k < 3; k++) {
                emit(f, copy[r], FR_OP_PULL, 1000, 1000, 0, k)->peer = (int16_t)((r + 1 + k) % 4);
                fr_signal(f, came[r]);
                emit(f, compute[r], FR_OP_NORM, 400, 1400, 0, k); /* 3.5 of 4 beside 2 */
                emit(f, compute[r], FR_OP_GEMM_O, 300, 0, 0, k);
                emit(f, compute[r], FR_OP_ALLREDUCE, 100, 100, 0, k);
                fr_wait(f, came[r], (uint32_t)k + 1);
                fr_meet(f, group, (uint32_t)k);
            }
        world w;
        open_world(&w, plan, &links, true);
        fr_player_append(w.player, f, 0);
        play(&w);
        end[folded] = w.records[0].end;
        fr_player_stats stats;
        fr_player_stats_get(w.player, &stats);
        assert_int_equal(stats.played + stats.folded, 48);
        assert_int_equal(parts_sum(&w.records[0].parts), end[folded]);
        close_world(&w, plan);
    }
    assert_true(end[0] > 3300);
    assert_int_equal(end[0], end[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_gpu),
        cmocka_unit_test(test_pipeline_bubble),
        cmocka_unit_test(test_asyncep_closed_form),
        cmocka_unit_test(test_offload_recurrence),
        cmocka_unit_test(test_two_pulls_share),
        cmocka_unit_test(test_pulls_take_turns),
        cmocka_unit_test(test_pulls_that_yield),
        cmocka_unit_test(test_kernel_beside_pull),
        cmocka_unit_test(test_host_memory),
        cmocka_unit_test(test_host_memory_folded),
        cmocka_unit_test(test_upload_beside_weights),
        cmocka_unit_test(test_send_and_pull),
        cmocka_unit_test(test_collective_shares),
        cmocka_unit_test(test_unequal_members),
        cmocka_unit_test(test_waiting_collective),
        cmocka_unit_test(test_asked_for_beside),
        cmocka_unit_test(test_random_sources),
        cmocka_unit_test(test_first_ready),
        cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_slots_in_turn),
        cmocka_unit_test(test_collective_parts),
        cmocka_unit_test(test_deadlock),
        cmocka_unit_test(test_append),
        cmocka_unit_test(test_lane_order_independence),
        cmocka_unit_test(test_ample_capacity_changes_nothing),
        cmocka_unit_test(test_monotone),
        cmocka_unit_test(test_fold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

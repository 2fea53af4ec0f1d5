/* plan_check: for each rule a plan that keeps it and a twin that breaks it; pipelines that lose a wait; and tiny random
 * plans against a naive executor with chosen durations. */
#include "engine/plan/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- a bench: three ranks, each with lanes of every kind; sub numbers the ops so that ids differ ------------------
 */

enum { RANKS = 3 };

typedef struct {
    fr_plan *p;
    fr_fragment *f[3];
    int fragments;
    uint32_t lane[RANKS][FR_LANE_KINDS], e[4], buffer, weights, pool, table, group;
    uint16_t sub;
} bench;

static void bench_open(bench *b) {
    memset(b, 0, sizeof *b);
    b->p = fr_plan_new(RANKS, RANKS);
    for (int r = 0; r < RANKS; r++)
        for (int k = 0; k < FR_LANE_KINDS; k++) /* recv takes what is ready */
            b->lane[r][k] = fr_plan_lane(b->p, r, (fr_lane_kind)k, "lane", k == FR_LANE_RECV);
    for (int i = 0; i < 4; i++) b->e[i] = fr_plan_event(b->p, 0, "event");
    b->buffer = fr_plan_buffer(b->p, 0, FR_BUF_ACTIVATION, "hidden", 8, 0, false);
    b->weights = fr_plan_buffer(b->p, 0, FR_BUF_WEIGHTS, "weights", 8, 0, false);
    b->pool = fr_plan_buffer(b->p, 0, FR_BUF_GATHER, "sets", 8, 2, false);
    b->table = fr_plan_table(b->p, 0, "counts", 100, FR_KNOWN_DEVICE);
    b->group = fr_plan_group(b->p, (int16_t[]){0, 1}, 2, 2);
}

static fr_fragment *next_fragment(bench *b) {
    b->f[b->fragments] = fr_fragment_new(b->p, 0);
    fr_shape_add(b->f[b->fragments], &(fr_shape){.kind = FR_OP_NORM, .m = 10}, NULL, 0);
    return b->f[b->fragments++];
}

static fr_fragment *op(bench *b, int rank, fr_lane_kind lane, fr_op_kind kind) {
    fr_fragment *f = b->fragments ? b->f[b->fragments - 1] : next_fragment(b);
    fr_emit(f, b->lane[rank][lane], kind, 1, 0)->sub = b->sub++;
    return f;
}

static fr_fragment *compute(bench *b, int rank) {
    return op(b, rank, FR_LANE_COMPUTE, FR_OP_NORM);
}

static fr_fragment *copy(bench *b, int rank) {
    return op(b, rank, FR_LANE_COPY, FR_OP_PULL);
}

static fr_fragment *item(bench *b, int rank) {
    fr_fragment *f = op(b, rank, FR_LANE_RECV, FR_OP_DRAIN);
    f->ops[f->ops_count - 1].flags |= FR_OP_ITEM;
    return f;
}

static fr_status bench_check(bench *b, fr_error *err) {
    fr_status status = fr_plan_check(b->p, b->f, b->fragments, err);
    for (int i = 0; i < b->fragments; i++) fr_fragment_free(b->f[i]);
    fr_plan_free(b->p);
    return status;
}

/* ---- one rule each: build(b, false) passes, build(b, true) is rejected --------------------------------------------
 */

static void lane_order(bench *b, bool broken) {
    fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
    fr_use_buffer(broken ? copy(b, 0) : compute(b, 0), FR_USE_READ, b->buffer, 0);
}
static void event_order(bench *b, bool broken) {
    fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
    fr_signal(b->f[0], b->e[0]);
    fr_use_buffer(copy(b, 1), FR_USE_READ, b->buffer, 0);
    fr_wait(b->f[0], b->e[0], broken ? 0 : 1);
}
static void unreachable_wait(bench *b, bool broken) {
    fr_signal(compute(b, 0), b->e[0]);
    fr_wait(copy(b, 0), b->e[0], broken ? 2 : 1);
}
static void two_raisers(bench *b, bool broken) {
    fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
    fr_signal(b->f[0], b->e[0]);
    fr_signal(compute(b, 1), b->e[0]);
    fr_wait(copy(b, 0), b->e[0], broken ? 1 : 2); /* 1 may be the other's */
    fr_use_buffer(b->f[0], FR_USE_READ, b->buffer, 0);
}
/* A barrier of three on one counter, twice: that no one gets to the second before all left the first is needed. */
static void counter_barrier(bench *b, bool broken) {
    for (uint32_t round = 0; round < 2; round++)
        for (int r = 0; r < RANKS; r++) {
            compute(b, r);
            if (r == (int)round) fr_use_buffer(b->f[0], FR_USE_WRITE, b->buffer, 0);
            fr_signal(b->f[0], b->e[0]);
            fr_wait(compute(b, r), b->e[0], broken && round == 0 ? 2 : 3 * round + 3);
        }
}
static void read_before_write(bench *b, bool broken) {
    fr_use_buffer(compute(b, 0), broken ? FR_USE_READ : FR_USE_WRITE, b->buffer, 0);
    fr_use_buffer(compute(b, 0), FR_USE_READ, b->buffer, 0);
    fr_use_buffer(compute(b, 0), FR_USE_READ, b->weights, 0);
}
static void own_write_is_no_source(bench *b, bool broken) {
    if (!broken) fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
    fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
    fr_use_buffer(b->f[0], FR_USE_READ, b->buffer, 0);
}
/* A buffer that serves layer after layer: the writer must wait until the reader of the last layer is done. */
static void layer_after_layer(bench *b, bool broken) {
    for (uint32_t l = 0; l < 3; l++) {
        fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
        if (l && !broken) fr_wait(b->f[0], b->e[1], l);
        fr_signal(b->f[0], b->e[0]);
        fr_use_buffer(copy(b, 0), FR_USE_READ, b->buffer, 0);
        fr_wait(b->f[0], b->e[0], l + 1);
        fr_signal(b->f[0], b->e[1]);
    }
}
static void prefetch_into_the_next_forward(bench *b, bool broken) {
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, 0);
    fr_use_buffer(b->f[0], FR_USE_WRITE, b->pool, 0);
    fr_signal(b->f[0], b->e[0]);
    next_fragment(b);
    fr_wait(compute(b, 0), b->e[0], broken ? 0 : 1);
    fr_use_buffer(b->f[1], FR_USE_READ, b->pool, 0);
}
/* Pulls fill a set, compute reads and frees it, a layer ahead of each other. */
static void double_buffer(bench *b, bool early_free, bool no_wait, bool half) {
    for (uint32_t l = 0; l < 4; l++) {
        fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, l);
        fr_use_buffer(b->f[0], FR_USE_WRITE, b->pool, l);
        fr_signal(b->f[0], b->e[0]);
        fr_use_buffer(copy(b, 0), FR_USE_WRITE, b->pool, l);
        fr_signal(b->f[0], b->e[0]);
        fr_use_buffer(compute(b, 0), FR_USE_READ, b->pool, l);
        if (!no_wait) fr_wait(b->f[0], b->e[0], 2 * l + (half ? 1 : 2));
        fr_signal(b->f[0], b->e[1]);
        fr_use_buffer(early_free ? op(b, 0, FR_LANE_COMM, FR_OP_FENCE) : compute(b, 0), FR_USE_FREE, b->pool, l);
        if (early_free) fr_wait(b->f[0], b->e[0], 2 * l + 2);
    }
}
static void free_after_reads(bench *b, bool broken) {
    double_buffer(b, broken, false, false);
}
static void read_after_gather(bench *b, bool broken) {
    double_buffer(b, false, broken, false);
}
static void read_after_whole_gather(bench *b, bool broken) {
    double_buffer(b, false, false, broken);
}
static void acquire_once(bench *b, bool broken) {
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, 0);
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, broken ? 0 : 1);
}
static void acquire_at_all(bench *b, bool broken) {
    if (!broken) fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, 0);
    fr_use_buffer(copy(b, 0), FR_USE_WRITE, b->pool, 0);
}
static void free_once(bench *b, bool broken) {
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, 0);
    fr_use_buffer(copy(b, 0), FR_USE_FREE, b->pool, 0);
    if (broken) fr_use_buffer(copy(b, 0), FR_USE_FREE, b->pool, 0);
}
static void acquire_first(bench *b, bool broken) {
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, 0);
    fr_signal(b->f[0], b->e[0]);
    fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->pool, 0);
    if (!broken) fr_wait(b->f[0], b->e[0], 1);
}
static void no_pool(bench *b, bool broken) {
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, broken ? b->buffer : b->pool, 0);
}
/* Three acquires of two slots, the first never freed, or freed only after the third. */
static void three_of_two_slots(bench *b, bool freed, uint32_t after) {
    for (uint32_t h = 0; h < 3; h++) {
        fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, h);
        fr_signal(b->f[0], b->e[0]);
    }
    if (freed) fr_use_buffer(compute(b, 0), FR_USE_FREE, b->pool, 0);
    if (freed) fr_wait(b->f[0], b->e[0], after);
}
static void slots_run_out(bench *b, bool broken) {
    three_of_two_slots(b, !broken, 1);
}
static void slot_freed_too_late(bench *b, bool broken) {
    three_of_two_slots(b, true, broken ? 3 : 1);
}
/* Two lanes acquire; each frees its first hold only once it has its second: two slots are not enough. */
static void racing_pool(bench *b, bool broken) {
    for (int r = 0; r < 2; r++) {
        uint32_t first = (uint32_t)r * 2;
        fr_use_buffer(copy(b, r), FR_USE_ACQUIRE, b->pool, first);
        if (!broken) fr_use_buffer(copy(b, r), FR_USE_FREE, b->pool, first);
        fr_use_buffer(copy(b, r), FR_USE_ACQUIRE, b->pool, first + 1);
        fr_use_buffer(copy(b, r), FR_USE_FREE, b->pool, first + 1);
        if (broken) fr_use_buffer(copy(b, r), FR_USE_FREE, b->pool, first);
    }
}
/* Senders that keep holds for good can share a pool only while credits keep them below its slots. */
static void racing_pool_with_credit(bench *b, bool broken) {
    for (int r = 0; r < 2; r++) {
        fr_use_buffer(copy(b, r), FR_USE_ACQUIRE, b->pool, (uint32_t)r);
        fr_signal(b->f[0], b->e[r]);
    }
    fr_use_buffer(compute(b, 0), FR_USE_FREE, b->pool, 0);
    fr_wait(b->f[0], b->e[0], 1);
    fr_signal(b->f[0], b->e[2]);
    fr_use_buffer(copy(b, 1), FR_USE_ACQUIRE, b->pool, 2);
    if (!broken) fr_wait(b->f[0], b->e[2], 1);
}
static void circle_of_events(bench *b, bool broken) {
    fr_wait(compute(b, 0), b->e[1], 1);
    if (broken) fr_signal(b->f[0], b->e[0]);
    fr_signal(copy(b, 0), b->e[1]);
    fr_wait(b->f[0], b->e[0], broken ? 1 : 0);
}
static void meet(bench *b, int rank, fr_lane_kind lane, uint32_t group, uint32_t seq) {
    fr_meet(op(b, rank, lane, FR_OP_ALLREDUCE), group, seq);
}
static void all_members_join(bench *b, bool broken) {
    for (uint32_t s = 0; s < 2; s++)
        for (int r = 0; r < 2; r++)
            if (!broken || s == 0 || r == 0) meet(b, r, FR_LANE_COMM, b->group, s);
}
static void sequence_ascends(bench *b, bool broken) {
    for (uint32_t s = 0; s < 2; s++) {
        meet(b, 0, FR_LANE_COMM, b->group, s);
        meet(b, 1, FR_LANE_COMM, b->group, broken ? 1 - s : s);
    }
}
static void members_only(bench *b, bool broken) {
    meet(b, 0, FR_LANE_COMM, b->group, 0);
    meet(b, broken ? 2 : 1, FR_LANE_COMM, b->group, 0);
}
static void one_lane_per_member(bench *b, bool broken) {
    for (uint32_t s = 0; s < 2; s++) {
        meet(b, 0, FR_LANE_COMM, b->group, s);
        meet(b, 1, broken && s ? FR_LANE_SEND : FR_LANE_COMM, b->group, s);
    }
}
static void groups_do_not_cross(bench *b, bool broken) {
    uint32_t other = fr_plan_group(b->p, (int16_t[]){1, 0}, 2, 2);
    meet(b, 0, FR_LANE_COMM, b->group, 0);
    meet(b, 0, FR_LANE_COMM, other, 0);
    meet(b, 1, FR_LANE_COMM, broken ? other : b->group, 0);
    meet(b, 1, FR_LANE_COMM, broken ? b->group : other, 0);
}
/* A collective orders what is before it on one rank and after it on another. */
static void collective_orders(bench *b, bool broken) {
    fr_use_buffer(compute(b, 0), FR_USE_WRITE, b->buffer, 0);
    if (!broken) meet(b, 0, FR_LANE_COMPUTE, b->group, 0);
    if (!broken) meet(b, 1, FR_LANE_COMPUTE, b->group, 0);
    fr_use_buffer(compute(b, 1), FR_USE_READ, b->buffer, 0);
}
static void group_on_ready_lane(bench *b, bool broken) {
    meet(b, 0, FR_LANE_COMM, b->group, 0);
    fr_meet(broken ? item(b, 1) : compute(b, 1), b->group, 0);
}
static void late_table(bench *b, bool broken) {
    fr_fill_table(compute(b, 0), b->table);
    fr_signal(b->f[0], b->e[0]);
    fr_late(copy(b, 0), b->table, 1);
    if (!broken) fr_wait(b->f[0], b->e[0], 1);
}
static void late_table_unfilled(bench *b, bool broken) {
    if (!broken) fr_fill_table(compute(b, 0), b->table);
    fr_late(compute(b, 0), b->table, 1);
}
static void host_table(bench *b, bool broken, bool wrong_lane) {
    uint32_t t = fr_plan_table(b->p, 0, "host counts", 100, FR_KNOWN_HOST);
    fr_fill_table(compute(b, 0), t);
    fr_signal(b->f[0], b->e[0]);
    op(b, 0, wrong_lane ? FR_LANE_COMM : FR_LANE_HOST, FR_OP_READBACK);
    fr_wait(b->f[0], b->e[0], 1);
    if (!broken) fr_read_table(b->f[0], t);
    fr_signal(b->f[0], b->e[1]);
    fr_late(compute(b, 0), t, 1);
    fr_wait(b->f[0], b->e[1], 1);
}
static void host_must_know(bench *b, bool broken) {
    host_table(b, broken, false);
}
static void host_reads_back(bench *b, bool broken) {
    host_table(b, false, broken);
}
static void refill_waits(bench *b, bool broken) {
    for (uint32_t l = 0; l < 2; l++) {
        fr_fill_table(compute(b, 0), b->table);
        if (l && !broken) fr_wait(b->f[0], b->e[1], l);
        fr_signal(b->f[0], b->e[0]);
        fr_late(copy(b, 0), b->table, 1);
        fr_wait(b->f[0], b->e[0], l + 1);
        fr_signal(b->f[0], b->e[1]);
    }
}
static void bound_holds(bench *b, bool broken) {
    fr_fill_table(compute(b, 0), b->table);
    uint32_t bound = fr_shape_add(b->f[0], &(fr_shape){.kind = FR_OP_NORM, .m = broken ? 9 : 10}, NULL, 0);
    fr_late(compute(b, 0), b->table, bound);
}
static void item_starts(bench *b, bool broken) {
    if (broken)
        op(b, 0, FR_LANE_RECV, FR_OP_DRAIN);
    else
        item(b, 0);
    op(b, 0, FR_LANE_RECV, FR_OP_NORM);
}
/* The second op of an item waits for another item of its lane, through an op of another lane. */
static void item_needs_item(bench *b, bool broken) {
    item(b, 0);
    op(b, 0, FR_LANE_RECV, FR_OP_NORM);
    if (broken) fr_wait(b->f[0], b->e[1], 1);
    fr_signal(item(b, 0), b->e[0]);
    fr_wait(compute(b, 0), b->e[0], 1);
    fr_signal(b->f[0], b->e[1]);
}
/* Waiting before the item is taken is fine; after it, two lanes may hold each other up. */
static void lanes_hold_each_other(bench *b, bool broken) {
    for (int r = 0; r < 2; r++) {
        item(b, r);
        if (!broken) fr_wait(b->f[0], b->e[r], 1);
        op(b, r, FR_LANE_RECV, FR_OP_NORM);
        if (broken) fr_wait(b->f[0], b->e[r], 1);
        fr_signal(item(b, r), b->e[1 - r]);
    }
}
/* Items of one lane never overlap: a scratch buffer is theirs in turn, if each writes it before it reads it. */
static void scratch_of_items(bench *b, bool broken) {
    for (int i = 0; i < 2; i++) {
        item(b, 0);
        if (!broken || i == 0) fr_use_buffer(b->f[0], FR_USE_WRITE, b->buffer, 0);
        fr_use_buffer(op(b, 0, FR_LANE_RECV, FR_OP_NORM), FR_USE_READ, b->buffer, 0);
    }
}
static void ids_differ(bench *b, bool broken) {
    compute(b, 0);
    if (broken) b->sub = 0;
    compute(b, 0);
}
/* What a skipped op would have acquired is void, and so are its uses; a real one must be written before it is read. */
static void void_holds(bench *b, bool broken) {
    fr_use_buffer(copy(b, 0), FR_USE_ACQUIRE, b->pool, 0);
    if (!broken) b->f[0]->ops[0].shape = b->f[0]->ops[0].bound = 0;
    fr_use_buffer(copy(b, 0), FR_USE_READ, b->pool, 0);
}

static const struct {
    const char *name;
    void (*build)(bench *b, bool broken);
    const char *message;
} cases[] = {
    {"lane order", lane_order, "race: f0.r0.l0.norm.m0.s0 writes buffer 0 'hidden' and f0.r0.l0.pull.m0.s1 reads it"},
    {"event order", event_order, "race: f0.r0.l0.norm.m0.s0 writes buffer 0"},
    {"unreachable wait", unreachable_wait, "event 0 'event' >= 2, which is raised 1 times only"},
    {"two raisers", two_raisers, "race:"},
    {"counter barrier", counter_barrier, "race:"},
    {"read before write", read_before_write, "read before write: f0.r0.l0.norm.m0.s0 reads buffer 0 'hidden'"},
    {"own write is no source", own_write_is_no_source, "read before write:"},
    {"layer after layer", layer_after_layer, "race: f0.r0.l0.pull.m0.s1 reads buffer 0 'hidden' and"},
    {"prefetch", prefetch_into_the_next_forward,
     "pool: f1.r0.l0.norm.m0.s1 may read while it is written by f0.r0.l0.pull.m0.s0"},
    {"free after reads", free_after_reads, "may still use the slot when it is freed by"},
    {"read after gather", read_after_gather,
     "pool: f0.r0.l0.norm.m0.s2 may read while it is written by f0.r0.l0.pull.m0.s0"},
    {"read after whole gather", read_after_whole_gather, "may read while it is written by f0.r0.l0.pull.m0.s1"},
    {"acquire once", acquire_once, "acquires hold #0 of pool 2 'sets' a second time"},
    {"acquire at all", acquire_at_all, "uses hold #0 of pool 2 'sets', which no op acquires"},
    {"free once", free_once, "frees hold #0 of pool 2 'sets' a second time"},
    {"acquire first", acquire_first, "may touch the slot before it is acquired by f0.r0.l0.pull.m0.s0"},
    {"no pool", no_pool, "which is no pool"},
    {"slots run out", slots_run_out, "deadlock: f0.r0.l0.pull.m0.s2 waits for a free slot of pool 2 'sets'"},
    {"slot freed too late", slot_freed_too_late, "deadlock: f0.r0.l0.norm.m0.s3 waits for event 0 'event' >= 3"},
    {"racing pool", racing_pool, "deadlock: f0.r0.l0.pull.m0.s0 holds pool 2 'sets' until after"},
    {"racing pool with credit", racing_pool_with_credit, "cannot be shown to go on"},
    {"circle of events", circle_of_events, "deadlock: f0.r0.l0.pull.m0.s1 waits for event 0 'event' >= 1"},
    {"all members join", all_members_join, "group order: rank 1 does not join group 0 #1"},
    {"sequence ascends", sequence_ascends, "joins group 0 #1 where rank 1 has #0 next"},
    {"members only", members_only, "of which rank 2 is no member"},
    {"one lane per member", one_lane_per_member, "no fixed order"},
    {"groups do not cross", groups_do_not_cross, "the other way round: a deadlock"},
    {"collective orders", collective_orders, "race:"},
    {"group on first-ready lane", group_on_ready_lane,
     "group order: f0.r1.l0.drain.m0.s1 meets group 0 on first-ready"},
    {"late table", late_table, "race: f0.r0.l0.norm.m0.s0 writes table 0 'counts'"},
    {"late table unfilled", late_table_unfilled, "late: f0.r0.l0.norm.m0.s0 needs table 0 'counts', and no op fills"},
    {"host must know", host_must_know, "late: f0.r0.l0.norm.m0.s2 needs the host's copy of table 1 'host counts'"},
    {"host reads back", host_reads_back, "is no readback op on a host lane"},
    {"refill waits", refill_waits, "race:"},
    {"bound holds", bound_holds, "late: f0.r0.l0.norm.m0.s1 has m=10 bytes=0, above its bound m=9"},
    {"item starts", item_starts, "starts no item"},
    {"item needs item", item_needs_item, "item: the item of f0.r0.l0.drain.m0.s0 waits, after its first op"},
    {"lanes hold each other", lanes_hold_each_other, "and the other way round"},
    {"scratch of items", scratch_of_items, "read before write: f0.r0.l0.norm.m0.s3 reads buffer 0"},
    {"ids differ", ids_differ, "id: two ops are called f0.r0.l0.norm.m0.s0"},
    {"void holds", void_holds, "reads what no op wrote before"},
};

static void each_rule(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int broken = 0; broken < 2; broken++) {
            bench b;
            fr_error err = {FR_OK, ""};
            bench_open(&b);
            cases[i].build(&b, broken != 0);
            fr_status status = bench_check(&b, &err);
            bool good = broken ? status == FR_FAILED && strstr(err.text, cases[i].message) : status == FR_OK;
            if (!good)
                fail_msg("%s, %s: status %d, '%s' (expected '%s')", cases[i].name, broken ? "broken" : "kept", status,
                         err.text, broken ? cases[i].message : "");
        }
}

/* ---- pipelines that hold by construction, and lose one wait -------------------------------------------------------
 */

/* Two ranks over `layers` layers and `forwards` fragments: weights gathered a layer ahead, activations passed on to the
 * next rank through one buffer with an acknowledgement. Wait number `dropped` is left out; returns the waits there are.
 */
static int pipeline(int layers, int forwards, int dropped, fr_status *status, fr_error *err) {
    bench b;
    bench_open(&b);
    int waits = 0;
    uint32_t ready = fr_plan_event(b.p, 1, "ready"), taken = fr_plan_event(b.p, 0, "taken");
    uint32_t pool[2], got[2], out[2], done = 0;
    for (int r = 0; r < 2; r++) {
        pool[r] = fr_plan_buffer(b.p, r, FR_BUF_GATHER, "set", 8, 2, false);
        got[r] = fr_plan_event(b.p, r, "got");
        out[r] = fr_plan_buffer(b.p, r, FR_BUF_ACTIVATION, "out", 8, 0, false);
    }
#define WAIT(event, n)                                                                                                 \
    do {                                                                                                               \
        if (waits++ != dropped) fr_wait(f, event, n);                                                                  \
    } while (0)
    for (int i = 0; i < forwards; i++) {
        fr_fragment *f = next_fragment(&b);
        for (int l = 0; l < layers; l++, done++) {
            for (int r = 0; r < 2; r++) {
                copy(&b, r);
                fr_use_buffer(f, FR_USE_ACQUIRE, pool[r], done);
                fr_use_buffer(f, FR_USE_WRITE, pool[r], done);
                fr_signal(f, got[r]);
            }
            compute(&b, 0);
            WAIT(got[0], done + 1);
            if (done) WAIT(taken, done);
            fr_use_buffer(f, FR_USE_READ, pool[0], done);
            fr_use_buffer(f, FR_USE_WRITE, out[0], 0);
            fr_use_buffer(f, FR_USE_FREE, pool[0], done);
            fr_signal(f, ready);
            op(&b, 1, FR_LANE_H2D, FR_OP_PULL);
            WAIT(ready, done + 1);
            if (done) WAIT(b.e[0], done);
            fr_use_buffer(f, FR_USE_READ, out[0], 0);
            fr_use_buffer(f, FR_USE_WRITE, out[1], 0);
            fr_signal(f, taken);
            fr_signal(f, b.e[1]);
            compute(&b, 1);
            WAIT(got[1], done + 1);
            WAIT(b.e[1], done + 1);
            fr_use_buffer(f, FR_USE_READ, pool[1], done);
            fr_use_buffer(f, FR_USE_READ, out[1], 0);
            fr_use_buffer(f, FR_USE_FREE, pool[1], done);
            fr_signal(f, b.e[0]);
        }
    }
#undef WAIT
    *status = bench_check(&b, err);
    return waits;
}

static void a_lost_wait_is_found(void **state) {
    (void)state;
    for (int layers = 1; layers < 5; layers++)
        for (int forwards = 1; forwards < 4; forwards++) {
            fr_status status;
            fr_error err = {FR_OK, ""};
            int waits = pipeline(layers, forwards, -1, &status, &err);
            if (status != FR_OK) fail_msg("%d layers, %d forwards: %s", layers, forwards, err.text);
            for (int d = 0; d < waits; d++) {
                pipeline(layers, forwards, d, &status, &err);
                if (status != FR_FAILED) fail_msg("%d layers, %d forwards: wait %d not missed", layers, forwards, d);
            }
        }
}

/* ---- a naive executor: a clock, chosen durations, and an eye for hazards ------------------------------------------
 */

enum { MOST = 24 };

typedef struct {
    bench *b;
    const fr_fragment *f;
    int n;
    int64_t duration[MOST], start[MOST], end[MOST]; /* start -1: not yet */
    uint32_t counter[4];
    int out;                         /* slots of the pool in use */
    int held[FR_LANE_KINDS * RANKS]; /* per lane: op that must run next in a taken item, -1 = none */
} naive;

static int lane_before(const naive *x, int i) {
    for (int j = i - 1; j >= 0; j--)
        if (x->f->ops[j].lane == x->f->ops[i].lane) return j;
    return -1;
}

static bool waits_hold(const naive *x, int i) {
    const fr_op *o = &x->f->ops[i];
    for (int w = 0; w < o->waits; w++)
        if (x->counter[fr_op_waits(x->f, o)[w].target] < fr_op_waits(x->f, o)[w].value) return false;
    for (int u = 0; u < o->uses; u++)
        if (fr_op_uses(x->f, o)[u].use == FR_USE_ACQUIRE && x->out >= x->b->p->buffers[x->b->pool].slots) return false;
    return true;
}

static bool lane_ready(const naive *x, int i, int64_t now) {
    const fr_op *o = &x->f->ops[i];
    int before = lane_before(x, i);
    if (!x->b->p->lanes[o->lane].first_ready || !(o->flags & FR_OP_ITEM))
        return before < 0 || (x->start[before] >= 0 && x->end[before] <= now);
    for (int j = 0; j < x->n; j++) { /* the lane is free: no item begun and not ended */
        if (x->f->ops[j].lane != o->lane) continue;
        bool item_begun = x->start[j] >= 0, last = true;
        for (int k = j + 1; k < x->n; k++)
            if (x->f->ops[k].lane == o->lane) {
                if (!(x->f->ops[k].flags & FR_OP_ITEM) && x->start[k] < 0) last = false;
                break;
            }
        if (item_begun && (x->end[j] > now || !last)) return false;
    }
    return true;
}

static bool may_start(const naive *x, int i, int64_t now) {
    const fr_op *o = &x->f->ops[i];
    if (!lane_ready(x, i, now) || !waits_hold(x, i)) return false;
    for (int j = 0; j < x->n && o->group != FR_NONE; j++) {
        const fr_op *m = &x->f->ops[j];
        if (m->group == o->group && m->seq == o->seq && (!lane_ready(x, j, now) || !waits_hold(x, j))) return false;
    }
    return true;
}

static void start_op(naive *x, int i, int64_t now) {
    const fr_op *o = &x->f->ops[i];
    for (int j = 0; j < x->n; j++) {
        const fr_op *m = &x->f->ops[j];
        if (j != i && (o->group == FR_NONE || m->group != o->group || m->seq != o->seq)) continue;
        x->start[j] = now;
        x->end[j] = now + x->duration[i];
        for (int u = 0; u < m->uses; u++) x->out += fr_op_uses(x->f, m)[u].use == FR_USE_ACQUIRE;
    }
}

/* Returns false when ops are left and nothing can happen. */
static bool naive_run(naive *x) {
    int left = x->n;
    int64_t now = 0;
    bool ended[MOST] = {false};
    memset(x->counter, 0, sizeof x->counter);
    x->out = 0;
    for (int i = 0; i < x->n; i++) x->start[i] = -1;
    while (left) {
        for (int i = 0; i < x->n; i++)
            if (x->start[i] < 0 && may_start(x, i, now)) start_op(x, i, now);
        int64_t next = INT64_MAX;
        for (int i = 0; i < x->n; i++)
            if (x->start[i] >= 0 && !ended[i] && x->end[i] < next) next = x->end[i];
        if (next == INT64_MAX) return false;
        now = next;
        for (int i = 0; i < x->n; i++) {
            const fr_op *o = &x->f->ops[i];
            if (x->start[i] < 0 || ended[i] || x->end[i] > now) continue;
            ended[i] = true;
            left--;
            for (int s = 0; s < o->signals; s++) x->counter[fr_op_signals(x->f, o)[s].target]++;
            for (int u = 0; u < o->uses; u++) x->out -= fr_op_uses(x->f, o)[u].use == FR_USE_FREE;
        }
    }
    return true;
}

static bool same_group(const naive *x, int i, int j) {
    const fr_op *a = &x->f->ops[i], *c = &x->f->ops[j];
    return a->group != FR_NONE && a->group == c->group && a->seq == c->seq;
}

/* Hazards of one run. seen[i][j]: in some run i was wholly before j; both ways for a conflicting pair is a hazard too,
 * unless items, which come in any order, are at work. */
static bool hazard(const naive *x, bool seen[MOST][MOST], bool flips) {
    for (int i = 0; i < x->n; i++)
        for (int u = 0; u < x->f->ops[i].uses; u++) {
            const fr_ref *r = &fr_op_uses(x->f, &x->f->ops[i])[u];
            bool pooled = x->b->p->buffers[r->target].slots > 0;
            bool read = r->use == FR_USE_READ, write = r->use == FR_USE_WRITE, written = !read;
            for (int j = 0; j < x->n; j++)
                for (int v = 0; v < x->f->ops[j].uses; v++) {
                    const fr_ref *q = &fr_op_uses(x->f, &x->f->ops[j])[v];
                    if (i == j || same_group(x, i, j) || q->target != r->target || q->value != r->value) continue;
                    bool other_write = q->use == FR_USE_WRITE;
                    if (read && other_write && x->end[j] <= x->start[i]) written = true;
                    if ((read || write) && q->use == FR_USE_ACQUIRE && x->start[i] < x->start[j]) return true;
                    if ((read || write) && q->use == FR_USE_FREE && x->end[i] > x->end[j]) return true;
                    bool conflict = (read && other_write) || (write && other_write && !pooled);
                    if (!conflict) continue;
                    if (x->start[i] < x->end[j] && x->start[j] < x->end[i]) return true;
                    if (x->end[i] <= x->start[j]) seen[i][j] = true;
                    if (x->end[j] <= x->start[i]) seen[j][i] = true;
                    if (flips && seen[i][j] && seen[j][i]) return true;
                }
            if (!written) return true;
        }
    return false;
}

/* Runs with each op made very long in turn, and with random durations: true when anything went wrong in any. */
static bool any_hazard(bench *b, bool flips, unsigned *seed) {
    naive x = {.b = b, .f = b->f[0], .n = (int)b->f[0]->ops_count};
    bool seen[MOST][MOST] = {{false}};
    for (int longest = -1; longest < x.n; longest++)
        for (int again = 0; again < (longest < 0 ? 6 : 2); again++) {
            for (int i = 0; i < x.n; i++) x.duration[i] = i == longest ? 1000 : 1 + rand_r(seed) % 5;
            for (int i = 0; i < x.n; i++) /* a group op lasts as long as its longest member */
                for (int j = 0; j < x.n; j++)
                    if (same_group(&x, i, j) && x.duration[j] > x.duration[i]) x.duration[i] = x.duration[j];
            if (!naive_run(&x) || hazard(&x, seen, flips)) return true;
        }
    return false;
}

enum { WITH_POOL = 1, WITH_ITEMS = 2, WITH_GROUPS = 4 };

static void random_plan(bench *b, unsigned features, unsigned *seed) {
    int n = 3 + rand_r(seed) % 7;
    uint32_t raised[4] = {0}, holds = 0, seq = 0;
    for (int i = 0; i < n; i++) {
        int r = rand_r(seed) % 2;
        if ((features & WITH_GROUPS) && rand_r(seed) % 6 == 0) {
            meet(b, 0, FR_LANE_COMPUTE, b->group, seq);
            meet(b, 1, FR_LANE_COMPUTE, b->group, seq++);
        } else if ((features & WITH_ITEMS) && rand_r(seed) % 3 == 0) {
            if (rand_r(seed) % 2 || !b->fragments || !b->f[0]->head_of[b->lane[r][FR_LANE_RECV]])
                item(b, r);
            else
                op(b, r, FR_LANE_RECV, FR_OP_NORM);
        } else if (rand_r(seed) % 2)
            compute(b, r);
        else
            copy(b, 0);
        fr_fragment *f = b->f[0];
        for (int w = rand_r(seed) % 3; w > 0; w--) {
            int e = rand_r(seed) % 3;
            /* mostly what was raised so far; now and then more, which may never come */
            fr_wait(f, b->e[e], raised[e] + (rand_r(seed) % 12 == 0));
        }
        for (int s = rand_r(seed) % 3; s > 0; s--) {
            int e = rand_r(seed) % 3;
            fr_signal(f, b->e[e]);
            raised[e]++;
        }
        if (rand_r(seed) % 3 == 0) fr_use_buffer(f, rand_r(seed) % 2 ? FR_USE_READ : FR_USE_WRITE, b->buffer, 0);
        if (!(features & WITH_POOL)) continue;
        if (rand_r(seed) % 3 == 0) {
            fr_use_buffer(f, FR_USE_ACQUIRE, b->pool, holds);
            fr_use_buffer(f, FR_USE_WRITE, b->pool, holds++);
        } else if (holds && rand_r(seed) % 2) {
            fr_use_buffer(f, FR_USE_READ, b->pool, (uint32_t)rand_r(seed) % holds);
            if (rand_r(seed) % 2) fr_use_buffer(f, FR_USE_FREE, b->pool, (uint32_t)rand_r(seed) % holds);
        }
    }
}

/* Accepted plans show no hazard in any run; rejected ones, where counters alone are at work, show it in some run. */
static void against_the_naive_executor(void **state) {
    (void)state;
    unsigned seed = 20240607;
    int accepted[8] = {0}, rejected[8] = {0};
    for (int i = 0; i < 16000; i++) {
        bench b;
        fr_error err = {FR_OK, ""};
        unsigned features = (unsigned)i % 8;
        bench_open(&b);
        random_plan(&b, features, &seed);
        fr_text text = {0};
        fr_plan_print(b.p, b.f, b.fragments, &text);
        fr_status status = fr_plan_check(b.p, b.f, b.fragments, &err);
        bool bad = any_hazard(&b, !(features & WITH_ITEMS), &seed);
        if (status == FR_OK && bad) fail_msg("accepted, but a run shows a hazard:\n%s", text.text);
        if (status != FR_OK && !bad && !(features & (WITH_POOL | WITH_ITEMS)))
            fail_msg("rejected (%s), but no run shows it:\n%s", err.text, text.text);
        (status == FR_OK ? accepted : rejected)[features]++;
        fr_text_free(&text);
        for (int f = 0; f < b.fragments; f++) fr_fragment_free(b.f[f]);
        fr_plan_free(b.p);
    }
    for (int k = 0; k < 8; k++) assert_true(accepted[k] > 50 && rejected[k] > 50); /* both sides were tried */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_rule),
        cmocka_unit_test(a_lost_wait_is_found),
        cmocka_unit_test(against_the_naive_executor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Prices of shapes, and what an op takes from which resource while it runs. */
#include <math.h>
#include <stdlib.h>

#include "engine/layout.h"
#include "sim/player_state.h"

enum { HBM = 0, LINK_OUT, LINK_IN, PCIE_H2D, PCIE_D2H, ENGINES, NET_OUT, NET_IN, PER_RANK };

static int64_t whole(double v) {
    return v > 0 && v < 9e18 ? fr_round(v) : 0;
}

static int host_ranks(const fr_player *p) {
    return p->o.gpus_per_host > 0 ? p->o.gpus_per_host : p->plan->real_ranks;
}
/* Real ranks of one host that a plan rank stands for. */
static int host_fold(const fr_player *p) {
    return p->plan->fold < host_ranks(p) ? p->plan->fold : host_ranks(p);
}
static uint32_t host_of(const fr_player *p, int rank) {
    return (uint32_t)(rank * p->plan->fold / host_ranks(p));
}
static uint32_t host_resource(const fr_player *p, int rank) {
    return (uint32_t)p->plan->ranks * PER_RANK + host_of(p, rank);
}

/* Room for the op's usages is there (make_room). Machines lack some resources: capacity 0. Alone an op runs in its own
 * time: rounding must not make it slow itself. */
static inline void take(fr_player *p, uint32_t resource, int64_t amount) {
    int64_t capacity = p->capacities[resource];
    p->usages[p->usages_n] = (fr_fluid_usage){resource, amount < capacity ? amount : capacity};
    p->usages_n += p->usages[p->usages_n].amount > 0;
}

/* What presses on a rank: transfers on kernels, and kernels, by kind, on its collectives. */
enum { KERNELS = FR_OP_EXPERT_DOWN - FR_OP_EMBED + 1, PRESSING = FR_AGGRESSORS + KERNELS };
_Static_assert(PRESSING <= FR_FLUID_AGGRESSORS, "kinds of kernels that press on collectives");

/* Whose kernel carries a collective out. */
static fr_aggressor kernel_of(fr_op_kind kind) {
    return fr_play_mover((uint8_t)kind) == FR_MOVES_EXCHANGE ? FR_AGGRESSOR_EXCHANGE : FR_AGGRESSOR_NCCL;
}

enum { MOST_USAGES = 6 }; /* of one op or member */
static void make_room(fr_player *p, uint32_t members) {
    FR_GROW(p->usages, p->usages_cap, (members + 1) * MOST_USAGES);
}

/* Copy engines can bind only where more copies can run at once than there are engines: lanes serialise. */
static void count_engines(fr_player *p) {
    p->engines_bind = fr_alloc((size_t)p->plan->ranks * sizeof *p->engines_bind);
    for (int r = 0; r < p->plan->ranks; r++) {
        int lanes = 0;
        for (uint32_t i = 0; i < p->lanes_count; i++)
            lanes += p->lanes[i].rank == r && (p->lanes[i].kind == FR_LANE_COPY || p->lanes[i].kind == FR_LANE_H2D ||
                                               p->lanes[i].kind == FR_LANE_SEND);
        p->engines_bind[r] = lanes > p->capacity.copy_engines;
    }
}

/* Kernels by transfers, and collectives by the kernels beside them. */
static void fill_slowdowns(const fr_player *p, double out[FR_OP_KIND_COUNT][PRESSING]) {
    const fr_player_options *o = &p->o;
    for (int v = 0; v < FR_OP_KIND_COUNT; v++) {
        const uint8_t class = p->class_of[v];
        for (int a = 0; a < FR_AGGRESSORS && v >= FR_OP_EMBED && v < FR_OP_EMBED + KERNELS; a++)
            out[v][a] = o->slowdown ? o->slowdown(o->context, (fr_op_class) class, (fr_aggressor)a)
                                    : fr_cost_slowdown(o->cost, (fr_op_kind)v, (fr_aggressor)a);
        for (int k = 0; k < KERNELS && class == FR_CLASS_COLLECTIVE && !o->slowdown; k++)
            out[v][FR_AGGRESSORS + k] =
                fr_cost_held_back(o->cost, (fr_op_kind)(FR_OP_EMBED + k), kernel_of((fr_op_kind)v));
    }
}

void fr_play_flows_open(fr_player *p) {
    const fr_player_options *o = &p->o;
    if (!o->sharing && !o->interference) return;
    fr_play_clock_open(p);
    uint32_t ranks = (uint32_t)p->plan->ranks, resources = ranks * PER_RANK + host_of(p, p->plan->ranks - 1) + 1;
    p->capacities = fr_alloc(resources * sizeof *p->capacities);
    if (o->sharing) {
        if (o->capacity)
            p->capacity = *o->capacity;
        else
            fr_cost_capacity(o->cost, &p->capacity);
        const fr_capacity *c = &p->capacity;
        const double each[PER_RANK] = {
            [HBM] = c->hbm,           [LINK_OUT] = c->link_out,    [LINK_IN] = c->link_in, [PCIE_H2D] = c->pcie_h2d,
            [PCIE_D2H] = c->pcie_d2h, [ENGINES] = c->copy_engines, [NET_OUT] = c->network, [NET_IN] = c->network};
        for (uint32_t i = 0; i < ranks * PER_RANK; i++) p->capacities[i] = whole(each[i % PER_RANK]);
        for (uint32_t i = ranks * PER_RANK; i < resources; i++) p->capacities[i] = whole(c->host);
        count_engines(p);
    }
    if (o->sharing && o->turns && p->plan->fold == 1 && ranks > 2) {
        p->pulled = fr_alloc(ranks * sizeof *p->pulled);
        const fr_lane_queue nobody = {FR_NONE, FR_NONE};
        for (uint32_t r = 0; r < ranks; r++)
            p->pulled[r] = (fr_pulled){.readers = nobody, .done = FR_NONE, .after = r, .yielding = nobody};
        p->may_pull = nobody;
    }
    make_room(p, 1);
    double slowdown[FR_OP_KIND_COUNT][PRESSING] = {{0}};
    if (o->interference) fill_slowdowns(p, slowdown);
    for (uint32_t i = 0; i < p->lanes_count && o->interference; i++)
        p->holds |= p->lanes[i].kind == FR_LANE_COMM || p->lanes[i].kind == FR_LANE_SEND;
    p->fluid =
        fr_fluid_new(&(fr_fluid_options){.flows = p->lanes_count,
                                         .resources = resources,
                                         .capacity = p->capacities,
                                         .groups = o->interference ? ranks : 0,
                                         .victims = FR_OP_KIND_COUNT,
                                         .aggressors = PRESSING,
                                         .slowdown = &slowdown[0][0],
                                         /* pulls and host copies cost power, which the clock counts too */
                                         .softly = p->clocks ? 1u << FR_AGGRESSOR_PULL | 1u << FR_AGGRESSOR_H2D : 0});
}

void fr_play_flows_close(fr_player *p) {
    fr_fluid_free(p->fluid);
    free(p->clocks);
    free(p->capacities);
    free(p->engines_bind);
    free(p->usages);
    free(p->pulled);
}

/*
 * Pulls of one source: first come, first served. On four H200s three GPUs that pulled from one at once got 382, 195 and
 * 130 GB/s, or by its own copy engines 391, 201 and 134: one after the other, where one GPU that pulls from three gets
 * a third from each (tests/gpu/bench_gathers.cu, 2026-11-22).
 */
static fr_pulled *source_of(const fr_player *p, const fr_play_lane *l) {
    const fr_op *op = l->op;
    const bool queues = p->pulled && op->kind == FR_OP_PULL && op->peer >= 0 && op->peer != l->rank;
    return queues ? &p->pulled[op->peer] : NULL;
}

static void push(fr_player *p, fr_lane_queue *q, fr_play_lane *l) {
    l->mate = FR_NONE;
    if (q->first == FR_NONE)
        q->first = l->index;
    else
        p->lanes[q->last].mate = l->index;
    q->last = l->index;
}

static fr_play_lane *pop(fr_player *p, fr_lane_queue *q) {
    if (q->first == FR_NONE) return NULL;
    fr_play_lane *l = &p->lanes[q->first];
    q->first = l->mate;
    return l;
}

/* False: the source serves others first. */
static bool ask(fr_player *p, fr_play_lane *l) {
    fr_pulled *s = &p->pulled[l->op->peer];
    if (s->busy) {
        push(p, &s->readers, l);
        return false;
    }
    return s->busy = true;
}

static bool must_yield(const fr_player *p, int rank) {
    const fr_pulled *me = &p->pulled[rank], *next = &p->pulled[me->after];
    return next->done < me->done && me->done - next->done <= (uint32_t)p->plan->yields_within;
}

/* The rank's gather has come so far: those that waited for that ask their sources. */
static void gather_goes_on(fr_player *p, fr_pulled *me, uint32_t done) {
    fr_lane_queue before = me->yielding;
    fr_play_lane *l;
    me->done = done;
    me->yielding = (fr_lane_queue){FR_NONE, FR_NONE};
    while ((l = pop(p, &before)))
        if (must_yield(p, l->rank))
            push(p, &me->yielding, l);
        else if (ask(p, l))
            push(p, &p->may_pull, l);
}

bool fr_play_pull_begin(fr_player *p, fr_play_lane *l) {
    if (!source_of(p, l)) return true;
    if (l->op->flags & FR_OP_YIELDS) {
        fr_pulled *me = &p->pulled[l->rank];
        const bool first = me->done == FR_NONE;
        if (first) me->after = (uint32_t)l->op->peer;
        gather_goes_on(p, me, first ? 0 : me->done + 1);
        if (must_yield(p, l->rank)) {
            push(p, &p->pulled[me->after].yielding, l);
            return false;
        }
    }
    return ask(p, l);
}

void fr_play_pull_end(fr_player *p, const fr_play_lane *l) {
    fr_pulled *s = source_of(p, l);
    if (!s) return;
    fr_play_lane *next = pop(p, &s->readers);
    if (next)
        push(p, &p->may_pull, next);
    else
        s->busy = false;
    if (l->op->flags & FR_OP_GATHERED) gather_goes_on(p, &p->pulled[l->rank], FR_NONE);
}

fr_play_lane *fr_play_pull_next(fr_player *p) {
    return p->pulled ? pop(p, &p->may_pull) : NULL;
}

void fr_play_prices(fr_player *p, fr_run *run) {
    const fr_fragment *f = run->f;
    for (uint32_t i = 0; i < f->shapes_count; i++) {
        const fr_shape *s = &f->shapes[i];
        fr_price *out = &run->prices[i];
        *out = (fr_price){.none = s->kind == FR_OP_NONE};
        if (s->kind == FR_OP_NONE || s->kind == FR_OP_FENCE) continue;
        fr_cost c = {0};
        if (p->o.price)
            p->o.price(p->o.context, s, f->pairs, &c);
        else
            fr_cost_op(p->o.cost, s, f->pairs, &c);
        int64_t gap = p->o.price || c.ns <= 0 ? 0 : fr_round(fr_cost_gap(p->o.cost, (fr_op_kind)s->kind));
        out->ns = out->work = c.ns > 0 ? c.ns + gap : 0;
        out->low = c.low + gap;
        out->high = c.high + gap;
        out->provenance = (uint8_t)c.provenance;
        if (p->clocks && c.draw.slope <= 0 && c.draw.flex > 0) { /* a collective by SMs */
            out->full = (float)c.draw.full;
            out->flex = (float)c.draw.flex;
        }
        if (p->clocks && c.draw.slope > 0) {
            out->work = c.burst_ns + gap;
            out->base = (float)c.draw.base;
            out->slope = (float)c.draw.slope;
            out->full = (float)c.draw.full;
            out->flex = (float)c.draw.flex;
            out->knee = (float)c.draw.knee;
        }
        if (!p->o.sharing || out->ns == 0) continue;
        double second = 1e9 / (double)out->work;
        bool copy = fr_op_class_of(s->kind) == FR_CLASS_COPY || fr_op_over_pcie((fr_op_kind)s->kind);
        out->link = whole((copy ? (double)s->bytes : c.link_bytes) * second);
        out->hbm = whole((c.hbm_bytes > 0 || !copy ? c.hbm_bytes : (double)s->bytes) * second);
    }
}

static inline uint32_t at(int rank, int what) {
    return (uint32_t)rank * PER_RANK + (uint32_t)what;
}

/* Of the host's memory for all GPUs of it that the rank stands for. */
static void take_host(fr_player *p, int rank, bool in, const fr_price *price) {
    take(p, at(rank, HBM), price->hbm);
    take(p, at(rank, in ? PCIE_H2D : PCIE_D2H), price->link);
    const uint32_t before = p->usages_n;
    take(p, host_resource(p, rank), price->link);
    if (p->usages_n > before) p->usages[before].amount *= host_fold(p);
}

static void take_copy(fr_player *p, const fr_play_lane *l, const fr_op *op, const fr_price *price) {
    int own = l->rank, peer = op->peer >= 0 && p->plan->fold == 1 ? op->peer : own;
    switch (op->kind) {
    case FR_OP_PULL:
    case FR_OP_PUSH: {
        bool pull = op->kind == FR_OP_PULL;
        bool far = host_of(p, own) != host_of(p, peer) && p->capacities[at(own, NET_IN)] > 0;
        take(p, at(own, HBM), own == peer ? 2 * price->hbm : price->hbm);
        if (own != peer) take(p, at(peer, HBM), price->hbm);
        take(p, at(pull ? own : peer, far ? NET_IN : LINK_IN), price->link);
        take(p, at(pull ? peer : own, far ? NET_OUT : LINK_OUT), price->link);
        break;
    }
    case FR_OP_H2D:
    case FR_OP_D2H:
        take_host(p, own, op->kind == FR_OP_H2D, price);
        break;
    default:
        take(p, at(own, HBM), price->hbm);
        return; /* local: no copy engine of the peer kind */
    }
    if (p->engines_bind[own]) take(p, at(own, ENGINES), 1);
}

/* A member's part of a collective or pair. `work` is the time of the whole group. */
static void take_member(fr_player *p, const fr_play_lane *l, int64_t work) {
    const fr_op *op = l->op;
    const fr_price *price = &l->run->prices[op->shape];
    double part = work > 0 ? (double)price->ns / (double)work : 0;
    int64_t link = whole((double)price->link * part);
    bool far = fr_op_shape(l->run->f, op)->hosts > 1 && p->capacities[at(l->rank, NET_IN)] > 0;
    take(p, at(l->rank, HBM), whole((double)price->hbm * part));
    if (op->kind != FR_OP_RECV) take(p, at(l->rank, far ? NET_OUT : LINK_OUT), link);
    if (op->kind != FR_OP_SEND) take(p, at(l->rank, far ? NET_IN : LINK_IN), link);
}

static inline uint8_t aggressor_of(const fr_player *p, const fr_play_lane *l) {
    const fr_op *op = l->op;
    if (!p->o.interference) return 0;
    if (l->compute) {
        const bool kernel = op->kind >= FR_OP_EMBED && op->kind < FR_OP_EMBED + KERNELS; /* not up- and downloads */
        return p->holds && kernel ? (uint8_t)(FR_AGGRESSORS + op->kind - FR_OP_EMBED + 1) : 0;
    }
    switch (p->class_of[op->kind]) {
    case FR_CLASS_COPY:
        if (op->kind == FR_OP_DRAIN) return 0;
        return op->kind == FR_OP_H2D || op->kind == FR_OP_D2H ? FR_AGGRESSOR_H2D + 1 : FR_AGGRESSOR_PULL + 1;
    case FR_CLASS_COLLECTIVE: /* nccl-ce moves the bytes on copy engines */
        if (op->kind == FR_OP_GATHER_WEIGHTS && fr_op_shape(l->run->f, op)->transport == FR_GATHER_NCCL_CE)
            return FR_AGGRESSOR_PULL + 1;
        return (uint8_t)(kernel_of((fr_op_kind)op->kind) + 1);
    default:
        return 0;
    }
}

/* delta +1 when the op on l starts, -1 when it ends (before l->op moves on). */
void fr_play_press(fr_player *p, const fr_play_lane *l, int delta) {
    uint32_t a = l->press - 1u;
    fr_fluid_press(p->fluid, (uint32_t)l->rank, a, delta);
    const fr_op *op = l->op;
    if ((op->kind == FR_OP_PULL || op->kind == FR_OP_PUSH) && op->peer >= 0 && op->peer != l->rank &&
        p->plan->fold == 1)
        fr_fluid_press(p->fluid, (uint32_t)op->peer, a, delta);
}

bool fr_play_holds_sms(const fr_player *p, const fr_play_lane *l) {
    const uint8_t a = aggressor_of(p, l);
    return a == FR_AGGRESSOR_NCCL + 1 || a == FR_AGGRESSOR_EXCHANGE + 1;
}

/* Its kernel is on its SMs, and polls them until its peers come (H200 x 2, pipelines: a receive that waited so cost the
 * products beside it what one under way does). */
void fr_play_press_waiting(fr_player *p, fr_play_lane *l) {
    l->press = aggressor_of(p, l);
    fr_play_press(p, l, 1);
}

fr_mover fr_play_mover(uint8_t kind) {
    const bool own = kind == FR_OP_ALLTOALL || kind == FR_OP_ALLTOALL_BACK || kind == FR_OP_COUNTS;
    return own ? FR_MOVES_EXCHANGE : FR_MOVES_NCCL;
}

/* A collective on a compute lane presses on nobody and has no kernel beside it. */
static fr_mover moved_by(const fr_play_lane *l) {
    return l->press ? (fr_mover)(l->press - 1) : fr_play_mover(l->op->kind);
}

int64_t fr_play_flow_start(fr_player *p, fr_play_lane *l, int64_t work, bool group) {
    const fr_op *op = l->op;
    uint8_t class = p->class_of[op->kind];
    bool transfer = class == FR_CLASS_COPY || class == FR_CLASS_COLLECTIVE;
    double limit = 1;
    if (p->o.cards && !group && !transfer)
        work = fr_max_i64(1, fr_round((double)work * p->o.cards[l->rank].time[class]));
    p->usages_n = 0;
    if (group) {
        make_room(p, (uint32_t)p->plan->groups[op->group].count);
        for (uint32_t m = l->index; m != FR_NONE; m = p->lanes[m].mate) {
            fr_play_lane *member = &p->lanes[m];
            if (p->o.sharing) take_member(p, member, work);
            if (member->press) fr_play_press(p, member, -1); /* as one that waits */
            member->press = aggressor_of(p, member);
            if (member->press) fr_play_press(p, member, 1);
            if (p->clocks) fr_play_clock_transfer(p, member, moved_by(member));
            if (p->clocks && member->press != FR_AGGRESSOR_PULL + 1)
                limit = fmin(limit, fr_play_clock_collective(p, member));
        }
    } else {
        const fr_price *price = &l->run->prices[op->shape];
        if (p->o.sharing && class == FR_CLASS_COPY)
            take_copy(p, l, op, price);
        else if (p->o.sharing && class == FR_CLASS_COLLECTIVE)
            take_member(p, l, work);
        else if (p->o.sharing && fr_op_over_pcie((fr_op_kind)op->kind))
            take_host(p, l->rank, op->kind == FR_OP_UPLOAD, price);
        else if (p->o.sharing)
            take(p, at(l->rank, HBM), price->hbm);
        if (l->press) fr_play_press(p, l, -1); /* as one that waits */
        l->press = aggressor_of(p, l);
        if (l->press) fr_play_press(p, l, 1);
        if (p->clocks && transfer && op->kind != FR_OP_DRAIN)
            fr_play_clock_transfer(p, l, moved_by(l));
        else if (p->clocks && !transfer)
            limit = fr_play_clock_start(p, l);
    }
    l->flows = true;
    bool victim = p->o.interference && l->compute && !transfer;
    victim |= p->holds && !l->compute && fr_play_holds_sms(p, l); /* by what runs beside the one that came last */
    return fr_fluid_start(p->fluid, l->index, p->now,
                          &(fr_fluid_flow){.work = work,
                                           /* kernels take what transfers leave of HBM; over PCIe all are alike */
                                           .level = transfer || fr_op_over_pcie((fr_op_kind)op->kind) ? 0 : 1,
                                           .weight = 1,
                                           .group = !victim      ? FR_FLUID_NO_GROUP
                                                    : l->compute ? (uint32_t)l->rank
                                                                 : (uint32_t)l->last,
                                           .victim = op->kind,
                                           .limit = limit,
                                           .usages = p->usages,
                                           .count = p->usages_n});
}

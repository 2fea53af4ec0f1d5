/*
 * The SM clock of every rank under its power limit, as the limit's two hands set it (engine/cost/power.h): every 30 ms,
 * by the mean power of what ran since. A kernel gets its clock when it starts. Rest and memory-bound work leave room
 * that the next kernels use; pulls beside compute cost clock in proportion to how long they run; sustained differs from
 * burst in where the hands start, nothing else.
 *
 * Draws are whole milliwatts, so that sums don't depend on the order of starts and ends within an instant.
 */
#include <math.h>
#include <stdlib.h>

#include "engine/cost/power.h"
#include "sim/player_state.h"

/* A kernel longer than this share of a tick meets a moving clock, and is followed from tick to tick. */
#define LONG 0.25
/* When the first tick after time 0 comes: whoever starts does not know. A load from rest then meets the limit after 37
 * ms, the mean of where it may fall (30 to 66 were read on cards). */
#define FIRST_NS 10000000

enum { KERNEL = 1, TRANSFER = 2 }; /* fr_play_lane.draws; TRANSFER + fr_mover */

struct fr_clock {
    fr_power_hands hands;
    int64_t told, tick;                          /* what ran is summed up to here; the hands move next */
    int64_t base_ns, slope_ns, draw_ns, busy_ns; /* those sums since they did, mW ns; ns of kernels */
    int64_t base_mw, slope_mw, draw_mw;          /* of what runs */
    int32_t moving[FR_MOVERS][2];                /* transfers under way, in and out */
    int32_t links;                               /* those of them over links */
    int64_t awake;                               /* links are until then, should none be under way */
    double cycles, busy;                         /* sums over kernels: clock * ns, ns */
    bool begun;
};

static inline int64_t milliwatts(double w) {
    return (int64_t)(1000 * w + (w < 0 ? -0.5 : 0.5));
}

static double alone_of(const fr_power *w, fr_mover kind) {
    return w->alone[kind == FR_MOVES_EXCHANGE ? FR_DRAW_EXCHANGE : FR_DRAW_NCCL];
}

/* As after a long time at `watts`, on this rank's card. */
static void begin(const fr_player *p, int rank, double watts, fr_power_hands *h) {
    const fr_power *w = p->power;
    fr_power_hands_begin(w, watts, h);
    if (p->o.cards && w->fresh > w->cap) h->fresh = w->idle + (w->fresh - w->idle) * sqrt(p->o.cards[rank].draw);
    if (watts < w->cap) h->limit = h->fresh;
}

void fr_play_clock_open(fr_player *p) {
    if (!p->o.interference || !p->o.cost || p->o.price || !fr_cost_power(p->o.cost)->known) return;
    p->power = fr_cost_power(p->o.cost);
    p->clocks = fr_alloc((size_t)p->plan->ranks * sizeof *p->clocks);
    bool sustained = fr_cost_regime(p->o.cost) == FR_SUSTAINED;
    p->link_mw = milliwatts(p->power->alone[FR_DRAW_LINK]);
    for (int k = 0; k < FR_MOVERS; k++)
        p->mover_mw[k] = milliwatts((k < FR_MOVES_NCCL ? p->power->transfer[k] : alone_of(p->power, (fr_mover)k)) / 2);
    for (int r = 0; r < p->plan->ranks; r++) {
        p->clocks[r].awake = INT64_MIN;
        p->clocks[r].tick = FIRST_NS;
        begin(p, r, sustained ? p->power->cap : p->power->idle, &p->clocks[r].hands);
    }
}

/* The sums since the last tick go to the hands. */
static void tick(const fr_player *p, fr_clock *c) {
    const double watts = p->power->idle + 1e-3 / FR_POWER_TICK_NS * (double)c->draw_ns;
    const double slope = c->busy_ns > 0 ? 1e-3 * (double)c->slope_ns / (double)c->busy_ns : 0;
    const double square = c->slope_ns > 0 ? (double)(c->draw_ns - c->base_ns) / (double)c->slope_ns : 1;
    fr_power_tick(p->power, watts, square, slope, &c->hands);
    c->base_ns = c->slope_ns = c->draw_ns = c->busy_ns = 0;
    c->tick += FR_POWER_TICK_NS;
}

/* ns of the same draw. */
static inline void sum(fr_clock *c, int64_t ns) {
    c->base_ns += c->base_mw * ns;
    c->slope_ns += c->slope_mw * ns;
    c->draw_ns += c->draw_mw * ns;
    if (c->slope_mw > 0) c->busy_ns += ns;
    c->told += ns;
}

/* What ran since the last change, at every start and end. */
static void tell(const fr_player *p, fr_clock *c) {
    while (c->told < p->now) {
        const int64_t ns = fr_min_i64(p->now, c->tick) - c->told;
        if (c->awake > c->told || c->links > 0) {
            const int64_t awake = c->links > 0 ? ns : fr_min_i64(ns, c->awake - c->told);
            c->base_ns += awake * p->link_mw;
            c->draw_ns += awake * p->link_mw;
        }
        sum(c, ns);
        if (c->told < c->tick) return;
        tick(p, c);
        const int64_t ticks = (p->now - c->told) / FR_POWER_TICK_NS;
        if (c->draw_mw > 0 || ticks <= FR_POWER_TICKS) continue;
        begin(p, (int)(c - p->clocks), p->power->idle, &c->hands); /* a rest longer than they look back */
        c->told += ticks * FR_POWER_TICK_NS;
        c->tick += ticks * FR_POWER_TICK_NS;
    }
}

static inline double speed(const fr_price *price, double x) {
    return fr_power_speed(&(fr_draw){.flex = price->flex, .full = price->full, .knee = price->knee}, x);
}

/* Mean speed of a long kernel over the ticks that it meets; *x becomes its mean clock. */
static double follow(const fr_player *p, const fr_clock *from, const fr_price *price, double *x) {
    fr_clock c = *from;
    double left = (double)price->work, t = 0, sum_x = 0;
    const int64_t base = milliwatts(price->base) + (c.links > 0 || c.awake > p->now ? p->link_mw : 0);
    c.base_mw += base;
    c.slope_mw += milliwatts(price->slope);
    for (int i = 0; i < 256 && left > 0; i++) {
        const double at = fr_least(c.hands.x, price->full), v = speed(price, c.hands.x);
        const double dt = i == 255 ? left / v : fr_least((double)(c.tick - c.told), left / v); /* long settled */
        left -= v * dt;
        t += dt;
        sum_x += at * dt;
        c.draw_mw = from->draw_mw + base + milliwatts(price->slope * at * at);
        sum(&c, (int64_t)dt);
        if (c.told >= c.tick) tick(p, &c);
    }
    *x = sum_x / t;
    return (double)price->work / t;
}

static void add(fr_player *p, int rank, int64_t base, int64_t slope, int64_t all) {
    fr_clock *c = &p->clocks[rank];
    tell(p, c);
    c->base_mw += base;
    c->slope_mw += slope;
    c->draw_mw += all;
}

double fr_play_clock_start(fr_player *p, fr_play_lane *l) {
    const fr_price *price = &l->run->prices[l->op->shape];
    fr_price own;
    fr_clock *c = &p->clocks[l->rank];
    const fr_card *card = p->o.cards ? &p->o.cards[l->rank] : NULL;
    const double time = card ? card->time[p->class_of[l->op->kind]] : 1;
    if (price->slope <= 0) return 1;
    if (card) {
        own = *price;
        own.slope *= (float)card->draw;
        own.work = fr_round((double)own.work * time);
        own.full = (float)fr_least(1, price->full / time);
        price = &own;
    }
    tell(p, c);
    double x = fr_least(c->hands.x, price->full), v = speed(price, x);
    if ((double)price->work > LONG * FR_POWER_TICK_NS) v = follow(p, c, price, &x);
    l->base_mw = milliwatts(price->base);
    l->slope_mw = milliwatts(price->slope);
    l->draw_mw = l->base_mw + milliwatts(price->slope * x * x);
    l->draws = KERNEL;
    add(p, l->rank, l->base_mw, l->slope_mw, l->draw_mw);
    c->cycles += x * (double)price->work / v;
    c->busy += (double)price->work / v;
    return v; /* of work that is the card's: player_flow.c */
}

double fr_play_clock_collective(fr_player *p, fr_play_lane *l) {
    const fr_price *price = &l->run->prices[l->op->shape];
    fr_clock *c = &p->clocks[l->rank];
    if (price->flex <= 0) return 1;
    tell(p, c);
    return speed(price, fmin(1, (l->compute ? FR_POWER_LIGHT : 1) * c->hands.x));
}

/* One end of a transfer begins or ends: half of its watts while any of the kind and direction is under way, since those
 * that run at once share the link. */
static void end_of(fr_player *p, int rank, fr_mover kind, int direction, int delta) {
    fr_clock *c = &p->clocks[rank];
    int32_t *n = &c->moving[kind][direction], before = *n;
    const int64_t half = p->mover_mw[kind];
    *n += delta;
    if ((before > 0) == (*n > 0)) return;
    add(p, rank, delta * half, 0, delta * half); /* up to now is told */
    if (kind == (fr_mover)FR_AGGRESSOR_H2D) return;
    c->links += delta;
    c->awake = p->now + (int64_t)p->power->awake_ns;
}

/* A pull draws half here, half at its peer; other transfers, and in a folded plan all, both halves here. */
static void move(fr_player *p, const fr_play_lane *l, int delta) {
    const fr_op *op = l->op;
    bool pair = (op->kind == FR_OP_PULL || op->kind == FR_OP_PUSH) && op->peer >= 0 && p->plan->fold == 1;
    fr_mover kind = (fr_mover)(l->draws - TRANSFER);
    end_of(p, l->rank, kind, 0, delta);
    end_of(p, pair ? op->peer : l->rank, kind, 1, delta);
}

void fr_play_clock_transfer(fr_player *p, fr_play_lane *l, fr_mover kind) {
    l->draws = (uint8_t)(TRANSFER + kind);
    move(p, l, 1);
}

void fr_play_clock_end(fr_player *p, fr_play_lane *l) {
    if (l->draws == KERNEL)
        add(p, l->rank, -l->base_mw, -l->slope_mw, -l->draw_mw);
    else
        move(p, l, -1);
    l->draws = 0;
}

/* The mean of what a rank runs in a forward. */
typedef struct {
    double base, slope, full; /* W; W; x */
    bool links;
} mix;

static bool mix_of(const fr_player *p, const fr_run *run, int rank, mix *out) {
    double base = 0, slope = 0, full = 0, moved = 0, busy = 0;
    *out = (mix){.full = 1};
    for (uint32_t i = 0; i < run->f->ops_count; i++) {
        const fr_op *op = &run->f->ops[i];
        const fr_lane *lane = &p->plan->lanes[op->lane];
        const fr_price *price = &run->prices[op->shape];
        if (lane->rank != rank) continue;
        const fr_op_class class = p->class_of[op->kind];
        const double ns = (double)price->ns, drawn = price->slope * ns * (p->o.cards ? p->o.cards[rank].draw : 1);
        if (lane->kind == FR_LANE_COMPUTE) busy += ns;
        if (lane->kind == FR_LANE_COMPUTE && class == FR_CLASS_COLLECTIVE)
            base += ns * alone_of(p->power, fr_play_mover(op->kind));
        out->links |= class == FR_CLASS_COLLECTIVE || (class == FR_CLASS_COPY && op->kind != FR_OP_H2D &&
                                                       op->kind != FR_OP_D2H && op->kind != FR_OP_DRAIN);
        base += price->base * ns;
        slope += drawn;
        full += price->full * drawn;
        if (lane->kind == FR_LANE_COPY) moved += p->power->transfer[FR_AGGRESSOR_PULL] * ns;
    }
    if (busy <= 0) return false;
    out->base = base / busy + fr_least(moved / busy, p->power->transfer[FR_AGGRESSOR_PULL]);
    if (out->links) out->base += p->power->alone[FR_DRAW_LINK];
    out->slope = slope / busy;
    if (slope > 0) out->full = full / slope;
    return true;
}

/* The hands after `ns` of a mix back to back. */
static void lead_up(const fr_power *w, const mix *m, int64_t ns, fr_power_hands *h) {
    for (; ns >= FR_POWER_TICK_NS; ns -= FR_POWER_TICK_NS) {
        const double x = fr_least(h->x, m->full);
        fr_power_tick(w, w->idle + m->base + m->slope * x * x, x * x, m->slope, h);
    }
}

/* Sustained starts where a stream of the first forward would have settled, or where a load of so long has got to. */
void fr_play_clock_begin(fr_player *p, const fr_run *run) {
    const fr_power *w = p->power;
    if (fr_cost_regime(p->o.cost) != FR_SUSTAINED) return;
    for (uint32_t s = 0; s < run->shares_count; s++) {
        const int rank = run->shares[s].rank;
        fr_clock *c = &p->clocks[rank];
        mix m;
        if (c->begun) continue;
        c->begun = true;
        if (!mix_of(p, run, rank, &m)) continue;
        if (m.links) c->awake = (int64_t)w->awake_ns;
        if (p->o.load_ns > 0) {
            begin(p, rank, w->idle, &c->hands);
            lead_up(w, &m, p->o.load_ns, &c->hands);
        } else {
            c->hands.x = fr_power_clock(w, w->cap, m.base, m.slope);
        }
        /* nobody knows where in a tick the load ended: in the middle of one; then the pause */
        const double x = fr_least(c->hands.x, m.full);
        c->told = c->tick = -p->o.pause_ns - FR_POWER_TICK_NS / 2;
        c->tick += FR_POWER_TICK_NS;
        c->base_mw = milliwatts(m.base);
        c->slope_mw = milliwatts(m.slope);
        c->draw_mw = milliwatts(m.base + m.slope * x * x);
        sum(c, FR_POWER_TICK_NS / 2);
        c->base_mw = c->slope_mw = c->draw_mw = 0;
    }
}

double fr_play_clock_mhz(const fr_player *p) {
    double cycles = 0, busy = 0;
    for (int r = 0; p->clocks && r < p->plan->ranks; r++) {
        cycles += p->clocks[r].cycles;
        busy += p->clocks[r].busy;
    }
    return busy > 0 ? round(cycles / busy * p->power->full_mhz) : NAN; /* whole: what NVML shows too */
}

/*
 * The SM clock of every rank under its power limit (engine/cost/power.h), as a controller sets it that knows the recent
 * past: the average over the limit's window of what ran gives the clock at which the mix meets the limit, corrected by
 * what the average power still lacks. A kernel gets its clock when it starts. Rest and memory-bound work leave room
 * that the next burst uses; pulls beside compute cost clock in proportion to how long they run; sustained differs from
 * burst in where the average starts, nothing else.
 *
 * Draws are whole milliwatts, so that sums don't depend on the order of starts and ends within an instant.
 */
#include <math.h>
#include <stdlib.h>

#include "engine/cost/power.h"
#include "sim/player_state.h"

/* Averages are brought up to date so many times a window, not at every op: the limit's own reaction is slower. */
#define FOLD    32
#define SETTLED 0.99 /* of a window behind them: averages speak for themselves */
/* Clocks move in such steps on Hopper (NVML's list of supported clocks). Ranks that do the same then do it at the same
 * clock, whatever the last digits of their averages. */
#define STEP_MHZ 15.0
/* A kernel longer than this share of the window meets a moving clock: followed in steps of half of it. */
#define LONG 0.25

enum { KERNEL = 1, TRANSFER = 2 }; /* fr_play_lane.draws; TRANSFER + fr_mover */

struct fr_clock {
    double base, slope, heat;           /* averages over the window, W: fr_draw's base and slope; power */
    double weight;                      /* how much of a window the first two stand on, 0..1 */
    int64_t at, told;                   /* averages stand here; what came after is summed up to `told` */
    int64_t base_ns, slope_ns, draw_ns; /* those sums, mW ns */
    double x;                           /* clock by the averages as they stand */
    int64_t base_mw, slope_mw, draw_mw; /* of what runs */
    int32_t moving[FR_MOVERS][2];       /* transfers under way, in and out */
    int32_t links;                      /* those of them over links */
    int64_t awake;                      /* links are until then, should none be under way */
    double cycles, busy;                /* sums over kernels: clock * ns, ns */
    int64_t since, idle_from;           /* load after a rest began; the last kernel or transfer ended */
    int64_t period, period_at;          /* of the slow limit (fr_power_period); when it began */
    double unused, excess;              /* of the limit in it so far, W ns; of the one before: fr_power_limit */
    bool begun;
};

static inline int64_t milliwatts(double w) {
    return (int64_t)(1000 * w + (w < 0 ? -0.5 : 0.5));
}

static double alone_of(const fr_power *w, fr_mover kind) {
    return w->alone[kind == FR_MOVES_EXCHANGE ? FR_DRAW_EXCHANGE : FR_DRAW_NCCL];
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
        p->clocks[r].heat = sustained ? p->power->cap : p->power->idle;
        p->clocks[r].awake = INT64_MIN;
        p->clocks[r].since = !sustained ? 0 : p->o.load_ns > 0 ? -p->o.load_ns - p->o.pause_ns : -FR_POWER_SETTLED_NS;
        p->clocks[r].period = fr_power_period(-p->clocks[r].since);
        p->clocks[r].excess = 1; /* of the load before time 0 */
    }
}

/* exp(-u) as 1 / (1 + u + u^2/2 + u^3/6): within 2 % of the step for u <= 1, and the same on every machine. */
static inline double fade(double u) {
    return 1 / (1 + u * (1 + u * (0.5 + u / 6)));
}

static inline void average(fr_clock *c, double keep, double base, double slope, double power) {
    c->base = keep * c->base + (1 - keep) * base;
    c->slope = keep * c->slope + (1 - keep) * slope;
    c->heat = keep * c->heat + (1 - keep) * power;
    c->weight = keep * c->weight + (1 - keep);
}

/* What ran since the last change, at every start and end. */
static inline void tell(const fr_player *p, fr_clock *c) {
    int64_t ns = p->now - c->told;
    if (ns == 0) return;
    if (c->awake > c->told || c->links > 0) {
        const int64_t awake = c->links > 0 ? ns : fr_min_i64(p->now, c->awake) - c->told;
        c->base_ns += awake * p->link_mw;
        c->draw_ns += awake * p->link_mw;
    }
    c->base_ns += c->base_mw * ns;
    c->slope_ns += c->slope_mw * ns;
    c->draw_ns += c->draw_mw * ns;
    c->told = p->now;
}

/* At the end of a period of the slow limit: whether it was made use of. */
static inline void count_period(const fr_player *p, fr_clock *c) {
    const int64_t period = fr_power_period(p->now - c->since), ns = p->now - c->period_at;
    if (period == c->period || ns <= 0) return;
    const double unused = c->unused / (double)ns;
    c->excess = fmin(1, fmax(0, 1 - unused / fmax(1, p->power->fresh - p->power->cap)));
    c->period = period;
    c->period_at = p->now;
    c->unused = 0;
}

/* Brings the averages up to now, once a FOLDth of the window has passed; at the beginning, always. */
static inline void advance(const fr_player *p, fr_clock *c) {
    tell(p, c);
    int64_t ns = p->now - c->at;
    if (ns <= 0 || (c->weight > SETTLED && (double)ns * FOLD < p->power->window_ns)) return;
    double each = 1e-3 / (double)ns;
    average(c, fade((double)ns / p->power->window_ns), each * (double)c->base_ns, each * (double)c->slope_ns,
            p->power->idle + each * (double)c->draw_ns);
    c->unused += (fr_power_limit(p->power, p->now - c->since, c->excess) - p->power->idle) * (double)ns -
                 1e-3 * (double)c->draw_ns;
    count_period(p, c);
    c->base_ns = c->slope_ns = c->draw_ns = 0;
    c->at = p->now;
    c->x = 0;
}

/* The clock for a kernel that starts now; until a window has passed it judges by itself as well. */
static inline double choose(const fr_power *w, const fr_clock *c, const fr_price *price) {
    double own = 1 - c->weight, cap = fr_power_limit(w, c->told - c->since, c->excess);
    double x = fr_power_clock(w, cap + FR_POWER_GAIN * (cap - c->heat), c->base + own * price->base,
                              c->slope + own * price->slope);
    double steps = (double)(int)(x * w->full_mhz / STEP_MHZ + 0.5);
    return fr_least(1, steps * STEP_MHZ / w->full_mhz);
}

static inline double speed(const fr_price *price, double x) {
    return fr_power_speed(&(fr_draw){.flex = price->flex, .full = price->full}, x);
}

static inline double watts(const fr_price *price, double x) {
    return price->base + price->slope * x * x;
}

/* Mean speed of a long kernel whose own draw moves the clock; *x becomes its mean clock. */
static double follow(const fr_player *p, const fr_clock *from, const fr_price *price, double *x) {
    fr_clock c = *from;
    double step = 0.5 * LONG * p->power->window_ns, keep = fade(0.5 * LONG), left = (double)price->work, t = 0, sum = 0;
    const double awake = c.links > 0 || c.awake > p->now ? p->power->alone[FR_DRAW_LINK] : 0;
    for (int i = 0; i < 256 && left > 0; i++) {
        double at = choose(p->power, &c, price), v = speed(price, at), dt = fr_least(step, left / v);
        if (i == 255) dt = left / v; /* long settled */
        left -= v * dt;
        t += dt;
        sum += at * dt;
        average(&c, keep, awake + 1e-3 * (double)c.base_mw + price->base, 1e-3 * (double)c.slope_mw + price->slope,
                p->power->idle + awake + 1e-3 * (double)c.draw_mw + watts(price, fr_least(at, price->full)));
    }
    *x = sum / t;
    return (double)price->work / t;
}

static void add(fr_player *p, int rank, int64_t base, int64_t slope, int64_t all) {
    fr_clock *c = &p->clocks[rank];
    tell(p, c);
    if (c->draw_mw == 0 && p->now - c->idle_from >= FR_POWER_REST_NS) {
        c->since = c->period_at = p->now;
        c->period = 0;
        c->unused = 0;
    }
    c->base_mw += base;
    c->slope_mw += slope;
    c->draw_mw += all;
    if (c->draw_mw == 0) c->idle_from = p->now;
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
    advance(p, c);
    double x, v;
    if ((double)price->work > LONG * p->power->window_ns) {
        v = follow(p, c, price, &x);
    } else {
        if (c->x <= 0 || c->weight <= SETTLED) c->x = choose(p->power, c, price);
        x = c->x;
        v = speed(price, x);
    }
    x = fr_least(x, price->full);
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
    advance(p, c);
    return speed(price, fmin(1, FR_POWER_LIGHT * choose(p->power, c, price)));
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

/* Sustained starts where a stream of the first forward would have settled. */
void fr_play_clock_begin(fr_player *p, const fr_run *run) {
    if (fr_cost_regime(p->o.cost) != FR_SUSTAINED) return;
    for (uint32_t s = 0; s < run->shares_count; s++) {
        int rank = run->shares[s].rank;
        fr_clock *c = &p->clocks[rank];
        double base = 0, slope = 0, moved = 0, busy = 0;
        bool links = false;
        if (c->begun) continue;
        c->begun = true;
        for (uint32_t i = 0; i < run->f->ops_count; i++) {
            const fr_op *op = &run->f->ops[i];
            const fr_lane *lane = &p->plan->lanes[op->lane];
            const fr_price *price = &run->prices[op->shape];
            if (lane->rank != rank) continue;
            const fr_op_class class = p->class_of[op->kind];
            if (lane->kind == FR_LANE_COMPUTE) busy += (double)price->ns;
            if (lane->kind == FR_LANE_COMPUTE && class == FR_CLASS_COLLECTIVE)
                base += (double)price->ns * alone_of(p->power, fr_play_mover(op->kind));
            links |= class == FR_CLASS_COLLECTIVE || (class == FR_CLASS_COPY && op->kind != FR_OP_H2D &&
                                                      op->kind != FR_OP_D2H && op->kind != FR_OP_DRAIN);
            base += price->base * (double)price->ns;
            slope += price->slope * (double)price->ns * (p->o.cards ? p->o.cards[rank].draw : 1);
            if (lane->kind == FR_LANE_COPY) moved += p->power->transfer[FR_AGGRESSOR_PULL] * (double)price->ns;
        }
        if (busy <= 0) continue;
        if (p->o.pause_ns >= FR_POWER_REST_NS) { /* as from rest */
            c->heat = p->power->idle;
            c->since = c->period = 0;
            continue;
        }
        c->base = base / busy + fr_least(moved / busy, p->power->transfer[FR_AGGRESSOR_PULL]);
        c->slope = slope / busy;
        c->weight = 1;
        if (links) c->base += p->power->alone[FR_DRAW_LINK];
        if (links) c->awake = (int64_t)p->power->awake_ns;
        for (int64_t left = p->o.pause_ns; left > 0;) { /* a fade is good for up to a window */
            const int64_t step = fr_min_i64(left, (int64_t)p->power->window_ns);
            average(c, fade((double)step / p->power->window_ns), 0, 0, p->power->idle);
            left -= step;
        }
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

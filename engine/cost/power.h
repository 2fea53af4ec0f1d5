/*
 * power: what an op draws, and the clock that a power limit leaves.
 *
 * A GPU's board power is held under a limit on average over some ten milliseconds; the SM clock is what gives. Power
 * goes with the square of the clock x (1 = full): f V^2 with a voltage that rises with f. Read on an H200 with the
 * clock counted on the device, products and attention at duty cycles of 25 to 100 %: exponents of 1.6 to 2.2.
 *
 *     W(x) = idle + x^2 (active + math * tensor-core share a clock) + memory * (HBM bytes/s over the datasheet rate)
 *
 * `active` is what busy SMs draw, one figure for kernels that compute and one for those that only move data; the share
 * is FLOP/s over the peak, divided by the clock that it was reached at; each precision has its `math`. Coefficients are
 * least squares over sustained rows with clock and watts; nothing is taken from whole forwards. Bursts run below full
 * clock too (a faster limit): at the clock that their rows say, else at that at which the op draws `peak`. Compute
 * follows the clock by `flex`, from shapes that have rows at two clocks. Copies and collectives beside compute draw a
 * fixed power each, from rows that show a victim alone and beside them.
 */
#ifndef FR_POWER_H
#define FR_POWER_H

#include "engine/cost/cost_table.h"

#include <math.h>

/* A row that the limit held back: its x^2 coefficient over what the least squares say of it. */
typedef struct {
    uint8_t kind, precision;
    double math, memory; /* shares, as in fr_power_draw */
    double factor;
    double flex; /* share of what HBM leaves of its time that follows the clock; -1 = no burst with a clock says it */
} fr_power_row;

#define FR_POWER_ROWS   48
#define FR_POWER_LAYERS 24

/* A product or attention of a whole layer that ran under the limit (rows behind=1 of a kind's cards): what that layer
 * drew over what its kernels say, over the same of all layers. */
typedef struct {
    uint8_t kind;
    double math, memory; /* shares, as in fr_power_draw */
    double factor;
} fr_power_layer;

struct fr_power {
    bool known;   /* enough rows with clock and watts; else nothing below is set */
    double fresh; /* W: the limit while less than `cap` is drawn on average (fr_power_hands) */
    double idle, cap, peak, active, streaming, memory; /* W; streaming: busy SMs of memory-bound kernels */
    double math[FR_PRECISIONS];      /* W, tensor cores at the peak of that precision; without rows of it as in bf16 */
    double flex[FR_CLASS_COUNT];     /* share of an op's time that goes with the clock, but for HBM's part */
    double transfer[FR_AGGRESSORS];  /* W while one of the kind moves at full rate, on its rank; NCCL's beside kernels,
                                        whose SMs it takes: less than nothing where those drew more */
    double alone[FR_DRAWS];          /* W while a collective runs with nothing beside it; link: while links are awake */
    double awake_ns;                 /* for how long they are after a transfer */
    double full_mhz;                 /* SM clock at x = 1 */
    double knee;                     /* x below which HBM does not keep up its rate */
    fr_power_row row[FR_POWER_ROWS]; /* kinds of kernels differ by some per cent: rows near an op correct it */
    int held;                        /* rows in it */
    fr_power_layer layer[FR_POWER_LAYERS]; /* in turn with others kernels draw else than held alone: corrects `row` */
    int layers;                            /* rows in it */
    struct {
        uint8_t count, row[FR_POWER_ROWS];
    } near[FR_OP_KIND_COUNT][FR_PRECISIONS]; /* which of them speak for a kind: its own, else its class's, else those of
                                                its class in another precision */
    int rows;                                /* of the fit */
    double error;                            /* rms of the fit, W */
};

/* Share of its time that an op needs HBM for at the datasheet rate: streaming kernels reach FR_STREAMS and keep their
 * time under any clock above the knee; grouped products of 256 rows an expert need FR_FLEX_ALL and do follow it. */
#define FR_FLEX_ALL 0.57
#define FR_STREAMS  0.87

/*
 * What the limit does over time (kernels/measured/raw/h200-layers-2026-11-22.csv.gz: layers back to back from rest, the
 * clock counted around their kernels; h200-clock-, h200x2-links-: every launch of loads and pauses):
 *
 * - A fast hand sets the clock every 25 ms: by what the mean power since it last did so was off the limit, 0.53 of it
 * down and 0.35 up. So it holds the mean of what runs, whatever single kernels draw, and a pause gives clock back only
 * behind it.
 * - A slow hand holds the mean over the last 0.85 s at the limit of sustained load. Below it `fresh` may be drawn; e W
 *   beyond it, 4 e + 0.13 e^2 less. So a load after a rest is cut deeply when 0.82 s are over, as all of the window has
 *   drawn `fresh` by then; again 0.9 s later, when what was saved leaves the window; and so on, weaker each time. Rests
 *   of more than 48 ms begin it anew, 20 ms do not.
 *
 * Least squares over 19 loads of 2.5 to 5 s, seven mixes on four cards: rms 2.2 % of the clock of 10 ms (before, with
 * steps of a fixed length: 4 to 8 % in the cuts).
 */
#define FR_POWER_TICK_NS   25000000
#define FR_POWER_FAST_DOWN 0.53
#define FR_POWER_FAST_UP   0.35
#define FR_POWER_SLOW_GAIN 4.0
#define FR_POWER_SLOW_BEND 0.13 /* 1/W */
/* `fresh` over the limit of sustained load, beyond idle, from the same loads. Cards differ less by the clock that it
 * leaves them than by that of the sustained limit (1.03 to 1.09 on seven, more where a card draws more): it goes with
 * the root of a card's draw. */
#define FR_POWER_FRESH    1.055
#define FR_POWER_REST_NS  80000000
#define FR_POWER_CYCLE_NS 900000000 /* from one cut to the next: all of a round makes the mean of a long load */
enum { FR_POWER_TICKS = 34 };       /* that the slow hand looks back */
typedef struct {
    double x, limit, fresh;           /* the clock from now on; W; W, of this card */
    double mean[FR_POWER_TICKS], sum; /* W of each tick, the oldest at `at`; of all */
    int at;
} fr_power_hands;
/* As after a long time at `watts`; x is 1 until the caller knows better. */
void fr_power_hands_begin(const fr_power *p, double watts, fr_power_hands *out);
/* Another tick is over: its mean power in W, and of its kernels the mean x^2 and slope (0 = none ran). */
void fr_power_tick(const fr_power *p, double watts, double square, double slope, fr_power_hands *h);

/* Bytes that an SM takes in a clock, at most, in units of the HBM's datasheet rate: products of 32 and 128 rows an
 * expert, whose time is that of their weights, keep it down to 1,355 MHz on an H200 and follow the clock below
 * (kernels/measured/raw/h200-layers-2026-11-22.csv.gz: 771 us above 1,400 MHz, 779, 784 and 807 at 1,380, 1,340,
 * 1,300). */
#define FR_POWER_REACH 26.8
/* Kernels that stream run at some 1.09 of the clock that products have between them: those of 16K tokens keep their
 * time down to 1,320 MHz of products, 1,435 of their own. */
#define FR_POWER_REACH_STREAMING 27.5

/* SM clock of what draws little between products under the limit, over that of the products: NCCL's kernels (nine rows
 * of a pair, kernels/measured/raw/h200x2-loaded-2026-11-22.raw, 1.10 to 1.12), and those that move data (norm, permute
 * and combine of eight layers, kernels/measured/raw/h200-layers-2026-11-22.csv.gz, 1.08 to 1.12). */
#define FR_POWER_LIGHT 1.1

/* What of a product's flex is left where HBM takes such a share of its time. */
static inline double fr_power_unbound(double memory) {
    return fmin(1, fmax(0, (FR_STREAMS - memory) / (FR_STREAMS - FR_FLEX_ALL)));
}

/* The work of an op that reaches these shares of the tensor cores' peak in its precision and of the HBM's datasheet
 * rate in a burst, at SM clock `clock` there (0 = not known). follows: the share of its time that goes with the clock,
 * where its structure says it (fr_base); else -1, and what HBM leaves of it. */
void fr_power_draw(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                   double follows, double clock, fr_draw *out);
/* Beyond idle, W. */
static inline double fr_power_watts(const fr_draw *d, double x) {
    return d->base + d->slope * x * x;
}
/* The same by the least squares alone, without what single rows correct; flex: as of such a row
 * (-1: as of its class). */
void fr_power_plain(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                    double follows, double clock, double flex, fr_draw *out);
/* How fast the op runs at clock x, relative to a burst: 1 at d->full and above. */
static inline double fr_power_speed(const fr_draw *d, double x) {
    if (x >= d->full && x >= d->knee) return 1;
    return x / (d->flex * fr_most(x, d->full) + (1 - d->flex) * fr_most(x, d->knee));
}
/* Clock at which ops whose average draw beyond idle is base + slope * x^2 meet `watts`, at most 1, at least 0.2. */
static inline double fr_power_clock(const fr_power *p, double watts, double base, double slope) {
    double left = watts - p->idle - base;
    return left >= slope ? 1 : left < 0.04 * slope ? 0.2 : sqrt(left / slope);
}
/* The clock at which this op alone, back to back, meets the limit; at most its own full clock. */
double fr_power_alone(const fr_power *p, const fr_draw *d);

/* "idle 130 W, limit 692 W averaged over 30 ms ..." */
void fr_power_describe(const fr_power *p, fr_text *out);

#endif

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

#define FR_POWER_ROWS 48

struct fr_power {
    bool known;   /* enough rows with clock and watts; else nothing below is set */
    double fresh; /* W: the limit in the first FR_POWER_FRESH_NS of load after a rest */
    double idle, cap, peak, active, streaming, memory; /* W; streaming: busy SMs of memory-bound kernels */
    double math[FR_PRECISIONS];      /* W, tensor cores at the peak of that precision; without rows of it as in bf16 */
    double flex[FR_CLASS_COUNT];     /* share of an op's time that goes with the clock, but for HBM's part */
    double transfer[FR_AGGRESSORS];  /* W while one of the kind moves at full rate, on its rank; NCCL's beside kernels,
                                        whose SMs it takes: less than nothing where those drew more */
    double alone[FR_DRAWS];          /* W while a collective runs with nothing beside it; link: while links are awake */
    double awake_ns;                 /* for how long they are after a transfer */
    double window_ns;                /* over which the limit averages */
    double full_mhz;                 /* SM clock at x = 1 */
    fr_power_row row[FR_POWER_ROWS]; /* kinds of kernels differ by some per cent: rows near an op correct it */
    int held;                        /* rows in it */
    struct {
        uint8_t count, row[FR_POWER_ROWS];
    } near[FR_OP_KIND_COUNT][FR_PRECISIONS]; /* which of them speak for a kind: its own, else its class's, else those of
                                                its class in another precision */
    int rows;                                /* of the fit */
    double error;                            /* rms of the fit, W */
};

/* Share of its time that an op needs HBM for at the datasheet rate: streaming kernels reach FR_STREAMS and keep their
 * time under any clock; grouped products of 256 rows an expert need FR_FLEX_ALL and do follow it. */
#define FR_FLEX_ALL 0.57
#define FR_STREAMS  0.87

/*
 * A second, slower hand looks at the mean power over some 0.9 s. For 0.82 s after a rest an H200 is held to some 725 W,
 * then, if it drew them, once cut to 520 W and back within 0.2 s; then 725 W again, and every 0.9 s a weaker cut: 0.25
 * s at some 640 W and 0.3 s until the 725 are back, which makes the mean over a period the limit of sustained load.
 * Loads of 75 % duty, whose mean is near that limit, are cut little or not at all. Rests of 80 ms and more start it
 * anew, 20 ms do not (kernels/measured/raw/h200-clock-2026-11-22.csv: every launch of loads and pauses, power beside).
 */
#define FR_POWER_FRESH_NS   820000000
#define FR_POWER_CUT_NS     200000000
#define FR_POWER_CUT        0.75 /* 520 of 692 W */
#define FR_POWER_CYCLE_NS   900000000
#define FR_POWER_WEAK_NS    250000000
#define FR_POWER_RECOVER_NS 300000000
#define FR_POWER_REST_NS    80000000
#define FR_POWER_SETTLED_NS 1000000000000000 /* nobody knows when it began: the mean */
/* The period that the load is in so long after it began anew: 0 = before the first cut. */
static inline int64_t fr_power_period(int64_t ns) {
    return ns < FR_POWER_FRESH_NS ? 0 : 1 + (ns - FR_POWER_FRESH_NS) / FR_POWER_CYCLE_NS;
}
/* The limit then. `excess`: 1 = the period before drew all that it was allowed to; 0 = less, by at least what it was
 * allowed beyond the sustained limit. */
static inline double fr_power_limit(const fr_power *p, int64_t ns, double excess) {
    if (p->fresh <= p->cap || ns >= FR_POWER_SETTLED_NS) return p->cap;
    const int64_t period = fr_power_period(ns);
    if (period == 0) return p->fresh;
    ns = (ns - FR_POWER_FRESH_NS) % FR_POWER_CYCLE_NS;
    double lack = 0;
    if (period == 1 && ns < FR_POWER_CUT_NS)
        lack = p->fresh - p->cap * (FR_POWER_CUT + (1 - FR_POWER_CUT) * (double)ns / FR_POWER_CUT_NS);
    else if (period > 1)
        lack = (p->fresh - p->cap) * FR_POWER_CYCLE_NS / (FR_POWER_WEAK_NS + FR_POWER_RECOVER_NS / 2) *
               fmin(1, fmax(0, 1 - (double)(ns - FR_POWER_WEAK_NS) / FR_POWER_RECOVER_NS));
    return p->fresh - excess * lack;
}

/* SM clock of a collective between products under the limit, over that of the products: NCCL's kernels draw little
 * (nine rows of a pair, kernels/measured/raw/h200x2-loaded-2026-11-22.raw, 1.10 to 1.12). */
#define FR_POWER_LIGHT 1.1

/* What the average lacks of the limit is spent so many times a window (sim/player_clock.c): the limit is met after
 * window / (1 + gain). Two keeps kernels of a third of a window from overshooting. */
#define FR_POWER_GAIN 2.0

/* What of a product's flex is left where HBM takes such a share of its time. */
static inline double fr_power_unbound(double memory) {
    return fmin(1, fmax(0, (FR_STREAMS - memory) / (FR_STREAMS - FR_FLEX_ALL)));
}

/* The work of an op that reaches these shares of the tensor cores' peak in its precision and of the HBM's datasheet
 * rate in a burst, at SM clock `clock` there (0 = not known). */
void fr_power_draw(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory, double clock,
                   fr_draw *out);
/* Beyond idle, W. */
static inline double fr_power_watts(const fr_draw *d, double x) {
    return d->base + d->slope * x * x;
}
/* The same by the least squares alone, without what single rows correct; flex: as of such a row
 * (-1: as of its class). */
void fr_power_plain(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                    double clock, double flex, fr_draw *out);
/* How fast the op runs at clock x, relative to a burst: 1 at d->full and above. */
static inline double fr_power_speed(const fr_draw *d, double x) {
    return x >= d->full ? 1 : x / (x + d->flex * (d->full - x));
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

/*
 * power: what an op draws, and the clock that a power limit leaves.
 *
 * A GPU's board power is held under a limit on average over some ten milliseconds; the SM clock is what gives. Seen on
 * the H200 (kernels/measured/): products of 8192, grouped products and attention held their clock times time constant
 * within 1 % over 1,215 to 1,719 MHz, alone and beside pulls, so compute slows as the clock does and pulls slow it
 * through the clock alone. Power is taken linear in the clock x (1 = full):
 *
 *     W(x) = idle + x * active + math * (FLOP/s over the peak) + memory * (HBM bytes/s over the datasheet rate)
 *
 * with rates as they are at that clock. `active` is what busy SMs draw whatever they compute. Coefficients are least
 * squares over sustained rows with clock and watts; nothing is taken from whole forwards. The same rows in a burst say
 * at what clock they ran there (clock * sustained ns / burst ns): products run some 10 % below full clock even in a
 * burst, a second and faster limit at `peak` watts. Copies and collectives beside compute draw a fixed power each, from
 * rows that show a victim alone and beside them.
 */
#ifndef FR_POWER_H
#define FR_POWER_H

#include "engine/cost.h"

struct fr_power {
    bool known;                                   /* enough rows with clock and watts; else nothing below is set */
    double idle, cap, peak, active, math, memory; /* W */
    double transfer[FR_AGGRESSORS];               /* W while one of the kind moves at full rate, on its rank */
    double window_ns;                             /* over which the limit averages */
    double full_mhz;                              /* SM clock at x = 1 */
    int rows;                                     /* of the fit */
    double error;                                 /* rms of the fit, W */
};

/* Share of its time that an op needs HBM for at the datasheet rate: streaming kernels reach 0.85 to 0.9 and keep their
 * time under any clock, grouped products of 256 rows an expert need 0.57 and do follow it. */
#define FR_FLEX_ALL  0.57
#define FR_FLEX_NONE 0.85

/* The work of an op that reaches these shares of the tensor cores' peak and of the HBM's datasheet rate in a burst. */
void fr_power_draw(const fr_power *p, double math, double memory, fr_draw *out);
/* How fast the op runs at clock x, relative to a burst: 1 at d->full and above. */
double fr_power_speed(const fr_draw *d, double x);
/* Clock at which ops whose average draw beyond idle is base + slope * x meet `watts`, at most 1, at least 0.2. */
double fr_power_clock(const fr_power *p, double watts, double base, double slope);
/* The clock at which this op alone, back to back, meets the limit; at most its own full clock. */
double fr_power_alone(const fr_power *p, const fr_draw *d);

/* "idle 130 W, limit 692 W averaged over 30 ms ..." */
void fr_power_describe(const fr_power *p, fr_text *out);

#endif

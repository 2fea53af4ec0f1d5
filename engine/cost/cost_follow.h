/*
 * cost_follow: how far NCCL's collectives follow the SM clock. Their kernels copy with a few SMs: alone, at full clock,
 * they are quicker than between products that the power limit holds down. Rows of collectives with regime=sustained
 * (FORMAT.md) show the second, their bursts the first.
 */
#ifndef FR_COST_FOLLOW_H
#define FR_COST_FOLLOW_H

#include "engine/cost/cost_family.h"

enum { FR_FOLLOW_POINTS = 48 };
typedef struct {
    struct {
        uint8_t kind;
        int16_t ranks;
        double bytes, flex; /* log; share of the burst's time that goes with the clock */
    } point[FR_FOLLOW_POINTS];
    int points;
} fr_follow;

/* By the first source that has such rows; no points otherwise. */
void fr_follow_fit(const fr_source *sources, int count, fr_follow *out);

/* Of a collective's time in a burst the share that goes with the clock: between its kind's points in bytes, of the
 * number of ranks nearest to its own. 0 where the kind has none: our own exchange and copy engines don't slow. */
double fr_follow_flex(const fr_follow *f, const fr_shape *s);

#endif

/*
 * cost_fit: monotone curves from structural time to measured time, one a family of shapes, in log-log.
 *
 * A row says: work that ideally takes b ns took T ns. Within a family (same n and k of a GEMM, same head width, same
 * collective and ranks, ...) T is a non-decreasing function of b: isotonic regression (pool adjacent violators) through
 * the rows, then Steffen's monotone cubic (GSL) between them, or lines; beyond the ends T/b keeps its last value, which
 * is "extrapolated along the roofline". Between families: inverse-distance weights, constant in b, so the blend stays
 * monotone. Where shapes of one family differ in more than b (attention: lengths), what
 * the rows deviate from the curve is interpolated over (log b, feature) by inverse distance and fades beyond a factor
 * of e. Other ceilings (another GPU, a what-if) only change b.
 */
#ifndef FR_COST_FIT_H
#define FR_COST_FIT_H

#include "engine/cost/cost_base.h"

#include <gsl/gsl_interp.h>

typedef struct {
    int points;
    double *x, *y;         /* log b ascending, log T non-decreasing */
    double *low, *high;    /* log of the rows' spread around y: <= 0, >= 0 */
    double *below, *above; /* between points i and i + 1, as a factor on T: the rows' spread and the fit's error */
    double *clock;         /* mean of the rows' SM clocks, over the full one; 0 = none says */
    uint8_t *provenance;   /* worst of the rows behind a point */
    gsl_interp *spline;    /* from three points on; linear with two */
    double error;          /* leave-one-out, rms of log T */
    int residuals;         /* rows with a feature: where they lie and what they deviate by, in log; 0 = none */
    int clocks;            /* the same of rows that say a clock; a curve has one of both */
    double *rx, *rf, *rr;
} fr_curve;

/* One row to fit: how long it ideally takes, how long it took. */
typedef struct {
    const fr_row *row;
    double b, t, low, high; /* ns */
    double feature;         /* second coordinate, log; 0 for families that have none */
    double clock;           /* SM clock over the full one, 0 = not recorded */
    uint8_t provenance;
} fr_sample;

typedef enum {
    FR_FIT_SMOOTH,   /* Steffen's cubic */
    FR_FIT_FEATURED, /* and the second coordinate says what sets rows apart */
    FR_FIT_STRAIGHT, /* lines: rows of one time lie close together, and what they differ by would be taken for a slope
                        that the next row is far from */
    FR_FIT_CLOCKED   /* the same; the second coordinate says at which clock */
} fr_fit_kind;

/* Sorts samples[count] and fits; count >= 1. */
void fr_curve_fit(fr_curve *c, fr_sample *samples, int count, fr_fit_kind kind);
void fr_curve_free(fr_curve *c);

typedef struct {
    double y;         /* log T */
    double low, high; /* log, relative to y, from the rows' spread */
    double clock;     /* 0 = not known */
    uint8_t provenance;
    bool at_row, inside;
    double beyond; /* log distance past the end, 0 inside */
    int segment;   /* between which points, -1 where at one or past the end */
} fr_curve_value;

void fr_curve_eval(const fr_curve *c, double log_b, double feature, fr_curve_value *out);

#endif

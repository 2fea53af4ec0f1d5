/*
 * cost_chain: what memory-bound kernels (and the router's product) take between products under the power limit, over
 * what their rows say, which are of one kernel back to back at full clock: part of what they read may still lie in L2
 * (a norm behind the product that wrote its rows), and some follow the SM clock. Rows marked behind=1 (FORMAT.md) are
 * of single kernels in a layer's order, each behind the one whose result it reads.
 */
#ifndef FR_COST_CHAIN_H
#define FR_COST_CHAIN_H

#include "engine/cost/cost_family.h"

enum { FR_CHAIN_POINTS = 96 };

typedef struct {
    uint8_t kind;
    double log_b; /* of the bound: bytes at HBM's rate (engine/cost/cost_base.h); small kernels differ by that alone */
    double warm;  /* of a burst's time, at full clock: below 1 where L2 helps */
    double flex;  /* share of it that goes with the clock, as in fr_draw */
} fr_chain_point;

typedef struct {
    fr_chain_point point[FR_CHAIN_POINTS]; /* by kind, then as they were added */
    int points;
    uint8_t end[FR_OP_KIND_COUNT]; /* of a kind's */
} fr_chain;

bool fr_chain_row(const fr_row *r); /* a row of a chain */
/* `alone`: the burst of the row's shape [ns], reached at `full` of the full SM clock; `taken`: the row's time less the
 * event's behind it [ns]; `clock`: the SM clock of the chain over the full one. */
void fr_chain_add(fr_chain *c, fr_op_kind kind, double bound_ns, double alone, double full, double taken, double clock);
/* Weighs the points of a kind by their distance in log b; false: the kind has none. */
bool fr_chain_at(const fr_chain *c, fr_op_kind kind, double bound_ns, double *warm, double *flex);

#endif

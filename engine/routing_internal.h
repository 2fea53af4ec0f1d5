/* What routing.c and routing_open.c share. */
#ifndef FR_ROUTING_INTERNAL_H
#define FR_ROUTING_INTERNAL_H

#include "engine/routing.h"

#include <gsl/gsl_rng.h>
#include <stdatomic.h>

struct fr_routing {
    fr_skew_kind kind;
    int experts, top_k;
    int first_layer; /* the model's first layer with experts: row 0 */
    int rows;        /* 1: every layer alike */
    uint64_t seed;
    double *shares, *roots;     /* rows x experts, sum 1; their square roots, which every draw needs */
    _Atomic(double *) *weights; /* a row's odds of a set of k, made when first asked for (routing_targets.c) */
    int64_t *recorded;          /* rows x experts, as in the file */
};

/* A generator on the stack: counts are drawn millions of times, and a generator must not be shared by threads. */
typedef struct {
    gsl_rng rng;
    unsigned long state[8]; /* taus2 needs 3 words; checked when routing is opened */
} fr_routing_rng;
int fr_routing_row(const fr_routing *r, int layer);
/* First expert of a rank, as fr_layout_expert_range. */
int fr_routing_placed(int experts, int rank, int ranks);
void fr_routing_seed(fr_routing_rng *g, uint64_t seed, int64_t forward, int rank, int layer);

#endif

/*
 * routing: how many tokens each expert of each layer gets. A model of the router for the simulator: uniform, a power
 * law, or recorded counts. Seeded and stateless: the same (seed, layer, forward) always gives the same counts, so
 * threads and folding cannot change them.
 */
#ifndef FR_ROUTING_H
#define FR_ROUTING_H

#include "engine/model.h"

typedef enum {
    FR_SKEW_EVEN = 0, /* expectation, equal: n * k / E with the remainder spread; no sampling noise */
    FR_SKEW_UNIFORM,  /* equal probabilities, multinomial sampling noise */
    FR_SKEW_ZIPF,     /* p_e ~ (rank of e)^-s, ranks permuted per layer, with sampling noise */
    FR_SKEW_RECORDED, /* shares per layer read from a file (forerun run --record-routing) */
} fr_skew_kind;

typedef struct fr_routing fr_routing;

/* spec: "even" | "uniform" | "zipf:S" (exponent) | "hot:R" (a power law whose hottest expert gets R times the mean) |
 * "deepseek-v3" (the preset aimed at the measured prefill skew: hottest 5.9x, EP8 imbalance 1.54) | "file:PATH". */
fr_status fr_routing_open(const char *spec, const fr_model *m, uint64_t seed, fr_routing **out, fr_error *err);
void fr_routing_close(fr_routing *r);
fr_skew_kind fr_routing_kind(const fr_routing *r);

/* Shares (sum 1) of a layer's experts before sampling. */
const double *fr_routing_shares(const fr_routing *r, int layer);

/*
 * Tokens per expert when `tokens` tokens of rank `rank` pass layer `layer` in forward `forward`: counts[E], sum =
 * tokens * k, each <= tokens.
 */
void fr_routing_counts(const fr_routing *r, int64_t forward, int rank, int layer, int64_t tokens, int32_t *counts);

/*
 * Expected number of distinct target ranks that a token reaches when the E experts are placed on `ranks` ranks
 * contiguously: the one copy per (token, target) that an all-to-all sends. copies[ranks] gets expected tokens sent to
 * each target (self included), of `tokens` tokens. Source: inclusion-exclusion of top-k draws without replacement,
 * shares of the layer.
 */
void fr_routing_targets(const fr_routing *r, int layer, int64_t tokens, int ranks, int64_t *copies);

#endif

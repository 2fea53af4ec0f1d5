/*
 * routing: how many tokens each expert of each layer gets. A model of the router for the simulator: uniform, a power
 * law, or recorded counts. Seeded and stateless: the same (seed, layer, forward) always gives the same counts, so
 * threads and folding cannot change them.
 */
#ifndef FR_ROUTING_H
#define FR_ROUTING_H

#include "engine/model.h"

typedef enum {
    FR_SKEW_EVEN = 0,  /* expectation, equal: n * k / E with the remainder spread; no sampling noise */
    FR_SKEW_UNIFORM,   /* equal probabilities, multinomial sampling noise */
    FR_SKEW_ZIPF,      /* p_e ~ (rank of e)^-s, ranks permuted per layer, with sampling noise */
    FR_SKEW_TWO_LEVEL, /* log-normal factors of 8 blocks of experts times log-normal factors of experts, with noise */
    FR_SKEW_RECORDED,  /* shares per layer read from a file (forerun run --record-routing) */
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
 * tokens * k, each <= tokens. tokens * k must stay below 2^31.
 */
void fr_routing_counts(const fr_routing *r, int64_t forward, int rank, int layer, int64_t tokens, int32_t *counts);

/*
 * Copies that an all-to-all sends at one per (token, target rank): copies[ranks] gets the expected number of tokens, of
 * `tokens`, that reach each target (self included), with the experts placed contiguously and as equally as possible. A
 * token's k experts are drawn as a set S with probability proportional to the product of weights w_e (conditional
 * Poisson sampling: Chen, Dempster and Liu, Biometrika 81, 1994), the weights fitted so that expert e is in S with
 * probability k * share_e; a rank is missed with e_k(weights elsewhere) / e_k(all weights), e_k the elementary
 * symmetric polynomial. Equal shares give the hypergeometric 1 - C(E - m, k) / C(E, k).
 */
void fr_routing_targets(const fr_routing *r, int layer, int64_t tokens, int ranks, int64_t *copies);

/*
 * Text of a recorded routing: a line "# forerun routing E=128 layers=94", then one row a layer with experts: the
 * layer's number and E counts. Layers `first` to layers - 1, counts[layers - first][experts].
 */
void fr_routing_format(fr_text *out, int experts, int layers, int first, const int64_t *counts);
/* Reads it; `where` names it in messages. For tests and fuzzing; "file:PATH" comes here. */
fr_status fr_routing_parse(const char *text, size_t length, const char *where, const fr_model *m, uint64_t seed,
                           fr_routing **out, fr_error *err);

#endif

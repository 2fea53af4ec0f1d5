/* What routing.c and routing_open.c share. */
#ifndef FR_ROUTING_INTERNAL_H
#define FR_ROUTING_INTERNAL_H

#include "engine/routing.h"

#include <gsl/gsl_rng.h>
#include <stdatomic.h>

/*
 * The widths of the ziggurat's layers (Marsaglia and Tsang, J. Stat. Softw. 5(8), 2000) as gsl_ran_gaussian_ziggurat
 * has them: a word of 32 random bits says layer and sign by its low byte, and with `inside[layer]` above the other 24
 * bits j the normal is j * width[low byte]. The rest (1.2 % of draws) is left to GSL.
 */
typedef struct {
    double width[256]; /* with its sign */
    uint32_t inside[128];
} fr_ziggurat;

struct fr_routing {
    fr_skew_kind kind;
    int experts, top_k;
    int first_layer; /* the model's first layer with experts: row 0 */
    int rows;        /* 1: every layer alike */
    uint64_t seed;
    double *shares, *roots;     /* rows x experts, sum 1; their square roots, which every draw needs */
    _Atomic(double *) *weights; /* a row's odds of a set of k, made when first asked for (routing_targets.c) */
    int64_t *recorded;          /* rows x experts, as in the file */
    fr_ziggurat normal;         /* of kinds that are drawn */
};

/* A generator on the stack: counts are drawn millions of times, and a generator must not be shared by threads. The
 * combined Tausworthe generator of L'Ecuyer (Math. Comput. 65, 1996; seeded as in 68, 1999), number for number GSL's
 * taus2, here where the compiler sees it; `rng` is GSL's view of it. */
typedef struct {
    gsl_rng rng;
    uint32_t word[3];
} fr_routing_rng;

/* The three words of the generator one step on. */
static inline uint32_t fr_routing_first(uint32_t w) {
    return (w & 0xfffffffeu) << 12 ^ (w << 13 ^ w) >> 19;
}
static inline uint32_t fr_routing_second(uint32_t w) {
    return (w & 0xfffffff8u) << 4 ^ (w << 2 ^ w) >> 25;
}
static inline uint32_t fr_routing_third(uint32_t w) {
    return (w & 0xfffffff0u) << 17 ^ (w << 3 ^ w) >> 11;
}
static inline uint32_t fr_routing_next(uint32_t w[3]) {
    w[0] = fr_routing_first(w[0]);
    w[1] = fr_routing_second(w[1]);
    w[2] = fr_routing_third(w[2]);
    return w[0] ^ w[1] ^ w[2];
}
void fr_ziggurat_open(fr_ziggurat *z);
/* out[i] = scale[i] z, z standard normal, bit for bit gsl_ran_gaussian_ziggurat's; returns their sum. */
double fr_routing_normals(const fr_ziggurat *z, fr_routing_rng *g, const double *scale, int count, double *out);
int fr_routing_row(const fr_routing *r, int layer);
/* First expert of a rank, as fr_layout_expert_range. */
int fr_routing_placed(int experts, int rank, int ranks);
void fr_routing_seed(fr_routing_rng *g, uint64_t seed, int64_t forward, int rank, int layer);

#endif

/*
 * cost_base: the ideal time of an op under given ceilings, from its shape alone: quantised arithmetic, bytes, links.
 * It carries the physics (tiles, waves, causal blocks, rings); measured curves say how far a GPU stays behind it.
 */
#ifndef FR_COST_BASE_H
#define FR_COST_BASE_H

#include "engine/cost/cost_table.h"

typedef struct {
    double ns;      /* structural time, monotone in every extent of the shape; 0 for the empty shape */
    double bound;   /* no GPU with these ceilings is faster: exact FLOPs or bytes over the datasheet rate */
    double extra;   /* ns that a stated law adds beside ns, outside the curve (hops beyond two ranks, network) */
    double feature; /* log of what tells shapes of equal ns apart: key blocks a query tile sees; grouped: tiles over
                       bytes */
    double follows; /* share of ns that goes with the SM clock, -1 = the structure does not say it */
    double lifted;  /* share of ns that is there only because more work may not cost less */
    double hbm_bytes, link_bytes;
    double flops; /* useful ones; 0 where none are done on tensor cores */
    bool cached;  /* attention: over keys from the cache, which are gathered first */
    bool equal;   /* attention: two and more sequences of one short length, which run without length masks */
} fr_base;

/* Of an operand's element; of the tensor cores in the precision. */
static inline double fr_elem_bytes(uint8_t precision) {
    return precision == FR_FP8 ? 1 : 2;
}
static inline double fr_peak_of(const fr_ceilings *c, uint8_t precision) {
    const double p = c->peak[precision < FR_PRECISIONS ? precision : FR_BF16];
    return p > 0 ? p : c->peak[FR_BF16]; /* a GPU without the format computes in bf16 */
}

void fr_cost_base(const fr_ceilings *c, const fr_shape *s, const fr_pair *pairs, fr_base *out);

#endif

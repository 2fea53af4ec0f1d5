#include "engine/cost/cost_chain.h"

#include <math.h>
#include <string.h>

/* Sizes nearer than some 20 % count alike; the weight falls with the fourth power beyond, so that a row of a chain is
 * met within 1 % where others lie a factor of two away (with the square within 3: sorts were 5 % too long, ropes 3). */
#define NEAR 0.05

bool fr_chain_row(const fr_row *r) {
    const fr_op_kind kind = (fr_op_kind)r->shape.kind;
    const bool light = kind == FR_OP_GEMM_ROUTER || fr_op_class_of(kind) == FR_CLASS_MEMORY;
    return r->type == FR_ROW_OP && r->behind && light && r->clock_mhz > 0;
}

void fr_chain_add(fr_chain *c, fr_op_kind kind, double bound_ns, double alone, double full, double taken,
                  double clock) {
    if (c->points == FR_CHAIN_POINTS || bound_ns <= 0 || alone <= 0 || taken <= 0) return;
    fr_chain_point *p = &c->point[c->end[kind]];
    memmove(p + 1, p, (size_t)(c->points++ - c->end[kind]) * sizeof *p);
    for (int k = (int)kind; k < FR_OP_KIND_COUNT; k++) c->end[k]++;
    const double ratio = taken / alone, slower = full / fmin(clock, full) - 1;
    *p = (fr_chain_point){.kind = (uint8_t)kind, .log_b = log(bound_ns), .warm = 1};
    if (ratio > 1 && slower > 0) p->flex = fmin(1, (ratio - 1) / slower);
    p->warm = ratio / (1 + p->flex * slower);
}

bool fr_chain_at(const fr_chain *c, fr_op_kind kind, double bound_ns, double *warm, double *flex) {
    double sum = 0, w = 0, f = 0;
    const int first = kind > 0 ? c->end[kind - 1] : 0, end = c->end[kind];
    if (first == end) return false;
    const double at = bound_ns > 0 ? log(bound_ns) : 0;
    for (int i = first; i < end; i++) {
        const fr_chain_point *p = &c->point[i];
        const double d = p->log_b - at, near = d * d + NEAR, weight = 1 / (near * near);
        sum += weight;
        w += weight * p->warm;
        f += weight * p->flex;
    }
    if (sum <= 0) return false;
    *warm = w / sum;
    *flex = f / sum;
    return true;
}

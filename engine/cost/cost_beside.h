/*
 * cost_beside: what transfers do to the kernels beside them, and these to transfers. Rows `slowdown` (FORMAT.md): with
 * resident=1 single kernels that began and ended while the transfer was under way; the others a class of kernels back
 * to back beside transfers back to back, which NCCL's are only part of the time.
 */
#ifndef FR_COST_BESIDE_H
#define FR_COST_BESIDE_H

#include "engine/cost/cost.h"
#include "engine/cost/cost_family.h"
#include "engine/cost/cost_follow.h"

typedef struct {
    double slowdown[FR_OP_KIND_COUNT][FR_AGGRESSORS];  /* of a kernel: its time beside over alone, less 1 */
    double held_back[FR_OP_KIND_COUNT][FR_AGGRESSORS]; /* of the transfer, by the kind of kernel beside it */
} fr_besides;

/* Of each kind of kernels and of transfers by the first source that has rows of it: resident ones of the kind, else the
 * mean of those of its class (without the router's, which streams rows), else those of the class in `regime`. An
 * exchange without rows counts as NCCL's. `hbm`: bytes/s that a GPU's memory gives; `follow`: how NCCL's kernels follow
 * the clock, which counts by itself. */
void fr_besides_fit(const fr_source *sources, int count, fr_regime regime, double hbm, const fr_follow *follow,
                    fr_besides *out);

#endif

/*
 * deal: the batches of batch mode: sequences dealt whole over the attention groups, the same for the simulator and the
 * engine.
 */
#ifndef FR_DEAL_H
#define FR_DEAL_H

#include "engine/experiment.h"
#include "engine/strategy/strategy.h"

typedef struct {
    fr_sequence *sequences;
    fr_batch *batches; /* [groups] */
    int64_t groups;
    int idle;       /* ranks without work */
    int stands_for; /* real attention groups behind one group of the plan (folding) */
} fr_deal;

/* `groups`: attention groups of the plan, `fold`: real ranks that one plan rank stands for. */
void fr_deal_open(const fr_experiment *e, int64_t groups, int fold, fr_deal *out);
void fr_deal_close(fr_deal *d);

#endif

/*
 * cost_grouped: the structural time of the products of all experts in one launch, from the rows of each expert.
 */
#ifndef FR_COST_GROUPED_H
#define FR_COST_GROUPED_H

#include "engine/cost/cost_base.h"

/* What experts of so many rows take, kept for those who ask often, from several threads. */
typedef struct fr_expert_memo fr_expert_memo;
fr_expert_memo *fr_expert_memo_new(void);
void fr_expert_memo_free(fr_expert_memo *memo);

/* fr_cost_base for FR_CLASS_GROUPED; memo may be NULL. */
void fr_grouped_base(fr_expert_memo *memo, const fr_ceilings *c, const fr_shape *s, const fr_pair *pairs, fr_base *out);

#endif

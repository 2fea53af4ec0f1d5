/*
 * cost_ask: which families of a set answer for a shape, and what they say of it: the family of its own key, or the
 * nearest ones by how far their n and k, heads, bytes or ranks are. What was found for a key is kept.
 */
#ifndef FR_COST_ASK_H
#define FR_COST_ASK_H

#include "engine/cost/cost_family.h"

/* All that tells families apart; `generic` rows of memory-bound ops stand for any kind. */
fr_family_key fr_family_key_of(const fr_shape *s, uint8_t ways, bool generic);

struct fr_picks *fr_picks_new(void);
void fr_picks_free(struct fr_picks *picks);

#endif

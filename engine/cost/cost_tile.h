/*
 * cost_tile: which variant of the grouped product is the quickest for a shape, by the rows of a table that were
 * measured with the variant forced (FORMAT.md: tile=).
 */
#ifndef FR_COST_TILE_H
#define FR_COST_TILE_H

#include "engine/cost/cost_family.h"

/* By the first source that has such rows of the shape's precision; FR_TILE_NONE where none has, or the shape has no
 * rows. */
fr_tile fr_tile_choose(const fr_source *sources, int count, const fr_shape *s, const fr_pair *pairs);

#endif

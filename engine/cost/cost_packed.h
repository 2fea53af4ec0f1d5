/*
 * cost_packed: what attention over lengths that vary costs beyond equal ones. Up to FR_ATTENTION_EQUAL tokens the
 * engine runs two and more equal lengths through a graph without length masks, which is quicker; all else runs packed.
 * Rows marked packed=1 (FORMAT.md) are equal lengths that were sent through the packed graph all the same.
 */
#ifndef FR_COST_PACKED_H
#define FR_COST_PACKED_H

#include "engine/cost/cost_family.h"

enum { FR_PACKED_POINTS = 32 };
typedef struct {
    double length[FR_PACKED_POINTS], ratio[FR_PACKED_POINTS]; /* of packed to plain rows of one shape */
    int points;
} fr_packed;

/* By the first source that has such rows; no points otherwise. */
void fr_packed_fit(const fr_source *sources, int count, fr_packed *out);

/* The factor, at least 1, on the time of a batch's attention: 1 where its lengths are equal, longer, or a single one;
 * else the ratio between the points nearest in mean length. */
double fr_packed_factor(const fr_packed *p, const fr_shape *s, const fr_pair *pairs);

#endif

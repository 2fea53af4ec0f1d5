/*
 * causes: what released each op of a measured forward: of the op before it on its lane, those whose events it waited
 * for and those that freed its slots, the one that ended last. The simulator's player knows it while it plays; for a
 * measured timeline it follows from the plan. Spans then say why a rank stood still (account.h, critical.h).
 */
#ifndef FR_CAUSES_H
#define FR_CAUSES_H

#include "engine/plan/plan.h"
#include "engine/timeline.h"

typedef struct fr_causes fr_causes;

/* `plan`: whose counters are at 0; must live as long. */
fr_causes *fr_causes_new(const fr_plan *plan);
void fr_causes_free(fr_causes *c); /* NULL is allowed */

/*
 * A forward has ended on all its ranks; those of a unit come in order. spans[r]: what rank r measured of it, lane by
 * lane in the order in which the fragment holds its ops (NULL: nothing, or no rank of the unit); ops that took no time
 * may be missing. Sets `ready` and `cause`. A group op's own start becomes its `ready`, and it starts when the last
 * member does: what lies between is its wait.
 */
void fr_causes_forward(fr_causes *c, const fr_fragment *f, fr_timeline *const *spans);

#endif

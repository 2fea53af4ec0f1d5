/*
 * fluid: who gets how much when several activities want the same thing at the same time.
 *
 * A *resource* has a capacity (units per second: bytes, slots, anything). A *flow* is an activity with an amount of
 * work, measured by the nanoseconds that it takes when nothing is in its way. It progresses at a normalised rate r, 0
 * <= r <= 1, and at rate r takes r * amount units per second from every resource that it uses: all of its usages shrink
 * together, as a copy that is slowed on one link also reads its memory more slowly. Rates are max-min fair: no flow can
 * be given more without taking from one that has no more, weights counted (progressive filling: raise all rates r_f =
 * weight_f * t together; a flow stops when it reaches its cap or when one of its resources is full). Two *levels*:
 * flows of level 0 are solved as if level 1 did not exist, level 1 shares what they leave. This is the limit of a high
 * weight, for demands that hardly yield.
 *
 * Worked example. A link of 100 units/s; flows A and B, each 100 units/s alone, 1000 ns of work. A starts at 0, B at
 * 500. Until 500 A runs at 1 and has 500 ns of work left. Then both run at 1/2: A ends at 500 + 500 / 0.5 = 1500, B has
 * done 500 and ends at 1500 + 500 = 2000. With B on level 0 instead, B runs 500 to 1500 at rate 1 and A ends at 2000.
 *
 * What makes it cheap. (1) Only a resource whose demand at full rates exceeds its capacity can bind. Demands are
 * integer sums, so that this test is exact and costs one addition; a flow all of whose resources are below capacity
 * runs at its cap. (2) Over-subscribed resources cut the system into connected components; a start or an end re-solves
 * only those that it touches. (3) Changes at one instant are collected and settled once. Components are solved one at a
 * time in the order of flow numbers, so that rates do not depend on what else was solved: re-solving everything gives
 * the same bits.
 *
 * Coupling, beside capacity: each flow may belong to a group and, in it, to a class of victims. While an aggressor of
 * class a presses on the group, victims of class v are capped at 1 / (1 + sum over pressing classes of slowdown[v][a]).
 * Several aggressors of one class count once: their factor is that of the class. A flow may also have a limit of its
 * own (a clock). Aggressors that take from the same thing as that limit (`softly`: power) don't add to it: the lesser
 * of the limit and their cap counts; the others' cap is multiplied with it.
 */
#ifndef FR_FLUID_H
#define FR_FLUID_H

#include "engine/base.h"

#define FR_FLUID_LEVELS     2
#define FR_FLUID_AGGRESSORS 32
#define FR_FLUID_NO_GROUP   UINT32_MAX

typedef struct {
    uint32_t resource;
    int64_t amount; /* units per second at rate 1; <= 0 is ignored */
} fr_fluid_usage;

typedef struct {
    int64_t work;    /* ns alone, >= 0 */
    uint32_t level;  /* 0 or 1 */
    uint32_t weight; /* >= 1, within the level */
    uint32_t group;  /* FR_FLUID_NO_GROUP = no victim */
    uint32_t victim; /* class in the group */
    double limit;    /* highest rate, 0..1; 0 = 1 */
    const fr_fluid_usage *usages;
    uint32_t count;
} fr_fluid_flow;

typedef struct {
    uint32_t flows; /* ids of flows: 0 <= id < flows */
    uint32_t resources;
    const int64_t *capacity;              /* [resources], units per second; <= 0: nothing passes, users stand still */
    uint32_t groups, victims, aggressors; /* aggressors <= FR_FLUID_AGGRESSORS */
    const double *slowdown;               /* [victims][aggressors], >= 0; may be NULL when aggressors is 0 */
    uint32_t softly;                      /* bit a: aggressor a shares with the flows' own limits */
    bool everything; /* re-solve all components at every settle: the reference for tests; same results */
} fr_fluid_options;

typedef struct fr_fluid fr_fluid;
fr_fluid *fr_fluid_new(const fr_fluid_options *options);
void fr_fluid_free(fr_fluid *f);

/* Starts flow id (not active) at `now`; returns its end should nothing else change. Final only after fr_fluid_settle.
 */
int64_t fr_fluid_start(fr_fluid *f, uint32_t id, int64_t now, const fr_fluid_flow *flow);
/* Ends it, done or not. */
void fr_fluid_end(fr_fluid *f, uint32_t id);
/* An aggressor begins (+1) or ceases (-1) to press on a group. */
void fr_fluid_press(fr_fluid *f, uint32_t group, uint32_t aggressor, int delta);

/* Something was touched since the last settle. */
bool fr_fluid_touched(const fr_fluid *f);
/* Re-solves what was touched at `now`; *changed lists the flows whose rate (and end) changed; valid until the next
 * call. Must be called before the clock moves on. */
uint32_t fr_fluid_settle(fr_fluid *f, int64_t now, const uint32_t **changed);

/* End of an active flow: start + work exactly if its rate never left 1; INT64_MAX while it stands still. */
int64_t fr_fluid_finish(const fr_fluid *f, uint32_t id);
double fr_fluid_rate(const fr_fluid *f, uint32_t id);
int64_t fr_fluid_solves(const fr_fluid *f); /* components solved so far */

#endif

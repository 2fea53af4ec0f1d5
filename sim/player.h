/*
 * player: the sim executor. Gives each op its cost and plays the plan's lanes on a virtual clock, after the semantics
 * S1-S6 of engine/plan/plan.h. Knows plans and costs; knows no strategy, no request, no batch.
 *
 * Where S1-S6 leave room: a group op takes its slots (S4) when it arrives at its group; a first-ready lane that takes
 * an item whose first op is a group op waits in it for the others. A group runs for the longest of its members' costs.
 * Results do not depend on the order in which lanes were registered: at equal times lanes go by (rank, kind, name).
 *
 * With sharing, an op demands bytes / duration alone of its rank's HBM and links, never more than the capacity:
 *   kernels             own HBM
 *   pull, push          own and peer's HBM, the source's outgoing and the target's incoming link, a copy engine
 *   h2d, d2h            own HBM, own PCIe in that direction, the host's memory, a copy engine
 *   collectives, pairs  every member's HBM and links (the network where the shape spans hosts)
 * In a folded plan a rank's peers are itself by symmetry. Transfers go before kernels (level 0 of sim/fluid.h): pulls
 * keep their rate beside a memory-bound kernel, which gives way (376 of 390 GB/s: kernels/measured/README.md). With
 * interference, pulls press on kernels at both ends, collectives that are not on the compute lane on every member, h2d
 * on its rank; each kind of kernel loses what was measured of it, and kernels slow collectives. A collective's kernel
 * beside others waits for SMs before it moves anything (sim/player_sms.c).
 */
#ifndef FR_PLAYER_H
#define FR_PLAYER_H

#include "engine/cost/cost_card.h"
#include "engine/plan/plan.h"
#include "engine/timeline.h"

typedef struct {
    const fr_cost_model *cost; /* may be NULL when `price`, and for sharing `capacity`, for interference `slowdown` are
                                  given */
    bool sharing;              /* overlapping ops share HBM, links, copy engines, PCIe (fluid max-min) */
    bool interference;         /* and slow each other by the measured factors (power, SMs) */
    bool turns;                /* with sharing: a source serves one pull at a time, in order; else all at once */
    int gpus_per_host;         /* ranks that share one host's memory; 0 = all */
    fr_timeline *spans;        /* every op's span is appended here; NULL = none kept */
    /* In place of the cost model: exact durations in tests, measured ones in replays. */
    void (*price)(void *context, const fr_shape *shape, const fr_pair *pairs, fr_cost *out);
    /* Sustained: the devices stood still for so long between the load that went before and time 0. */
    int64_t pause_ns;
    int64_t load_ns; /* and had been at work for so long before; 0 = not known */
    /* By rank, how its card differs from the table; NULL = in nothing. Where clocks are followed. */
    const fr_card *cards;
    const fr_capacity *capacity;
    double (*slowdown)(void *context, fr_op_class victim, fr_aggressor aggressor);
    /* Called when a fragment's last op has ended; the record is filled. The player is done with the fragment: the
     * callee may free it. */
    void (*finished)(void *context, fr_fragment *f, const fr_forward_record *record);
    /* Called when a fragment's FR_OP_ENTRY ops have all ended: its unit can take the next forward (pipelines: before
     * the forward ends). */
    void (*entered)(void *context, int unit, int64_t now);
    /* Called when all FR_OP_ANSWER ops of a rank's batch in the fragment have ended. */
    void (*answered)(void *context, fr_fragment *f, int rank, int64_t now);
    void *context;
} fr_player_options;

typedef struct fr_player fr_player;

fr_player *fr_player_new(const fr_plan *plan, const fr_player_options *options);
void fr_player_free(fr_player *p);

/* Hands a fragment over at time `now` >= the player's clock: its ops exist from then on. May be called from the
 * callbacks. */
void fr_player_append(fr_player *p, fr_fragment *f, int64_t now);

/*
 * Plays until the clock would pass `until` (INT64_MAX: until nothing is left to do). On return *now is the time of the
 * next event, or INT64_MAX when all lanes are empty. FR_FAILED with the lanes that wait and for what, when ops are left
 * and nothing can happen (a deadlock).
 */
fr_status fr_player_run(fr_player *p, int64_t until, int64_t *next, fr_error *err);
int64_t fr_player_now(const fr_player *p);

/* Totals since the start: ops played (skipped ones apart), re-solves of the sharing system, provenance shares, per-rank
 * busy times. */
typedef struct {
    int64_t played, skipped, solves, folded; /* folded: ops that folding stood in for */
    fr_provenance_share provenance;
    int64_t class_ns[FR_CLASS_COUNT]; /* busy time by op class, over all plan ranks */
    double clock_mhz;                 /* mean SM clock over kernels; NaN where clocks are not followed */
} fr_player_stats;
void fr_player_stats_get(const fr_player *p, fr_player_stats *out);
/* Time parts of a rank (see fr_parts) from the start of play until its last op's end, or now while it has ops left;
 * they sum to `elapsed` exactly. */
void fr_player_rank_parts(const fr_player *p, int rank, fr_parts *out);

#endif

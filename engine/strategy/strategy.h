/*
 * strategy: turns a layout and batches into a plan. One small file per strategy; nobody else knows what TP or AsyncEP
 * is.
 *
 * A layer is attention, then a feed-forward part. fr_planner walks the layers of each pipeline stage and asks the
 * layout's attention part (attention_dp.c, attention_tp.c) and its experts part (experts_local.c, _tp.c, _ep.c,
 * _asyncep.c, _dwdp.c, _offload.c) to emit their ops; pp.c joins stages; asap.c stands alone.
 *
 * A *unit* is the set of ranks that take forwards together: one rank for dp, asyncep with one-sided gathers, dwdp,
 * offload; a tp group; a whole ep group (one batch per attention group, empty ones join with an empty forward); a
 * pipeline. A unit has `slots` batches per forward, one for each of its attention groups.
 */
#ifndef FR_STRATEGY_H
#define FR_STRATEGY_H

#include "engine/cost/cost.h"
#include "engine/layout.h"
#include "engine/plan/plan.h"
#include "engine/routing.h"

typedef struct {
    int32_t queries;    /* new tokens of this sequence in this forward */
    int32_t prefix;     /* tokens before them that are in the KV cache (earlier chunks, shared prefix) */
    int32_t candidates; /* logits wanted at its last position; 0 = none (a chunk that is not the last), -1 = the whole
                           vocabulary */
    int32_t kv;         /* KV handle; siblings that share a cached prefix name it in kv_prefix */
    int32_t kv_prefix;  /* handle of the shared prefix, -1 = none */
} fr_sequence;

typedef struct {
    const fr_sequence *sequences; /* for one attention group */
    int32_t count;                /* 0 = no work: an empty forward */
} fr_batch;

typedef struct fr_planner fr_planner;

typedef struct {
    const fr_model *model;
    const fr_layout *layout;
    const fr_machine *machine;
    const fr_routing *routing; /* NULL = even */
    const fr_cost_model *cost; /* for decisions: balanced chunks, ... may be NULL: then such options are refused */
    fr_load load;              /* bounds: buffers are sized for it */
    bool allow_fold; /* identical ranks may be folded when all batches of a forward are equal and routing is even */
} fr_planner_options;

/* Builds the static part for every unit of the layout (all replicas). The layout must have passed fr_layout_check. */
fr_status fr_planner_open(const fr_planner_options *options, fr_planner **out, fr_error *err);
void fr_planner_close(fr_planner *p);

fr_plan *fr_planner_plan(fr_planner *p);
int fr_planner_units(const fr_planner *p);
int fr_planner_real_units(const fr_planner *p); /* those that a folded plan stands for */
int fr_planner_slots(const fr_planner *p);      /* batches per forward of a unit */
int fr_planner_unit_first_rank(const fr_planner *p, int unit);

/*
 * Appends one forward of `unit`: batches[slots]. The fragment is the caller's (give it to an executor, free it after).
 * The plan's counters go on from where the last forward left them.
 */
fr_status fr_planner_forward(fr_planner *p, int unit, const fr_batch *batches, fr_fragment **out, fr_error *err);

/*
 * How the batches of a forward were cut: into micro-batches, chunks, halves of a two-batch overlap. The tokens of a cut
 * are a run of its batch's, in the batch's order; micro-batches follow one another.
 */
typedef struct {
    const fr_sequence *sequences; /* as cut: new tokens, tokens before them, 0 candidates where a later chunk answers */
    const int32_t *origin;        /* index of each in its batch */
    int32_t count;
    int64_t first, tokens; /* the run */
} fr_cut;

typedef struct {
    int micros, slots;
    fr_sequence *sequences;
    int32_t *origins;
    fr_cut cut[]; /* [micros][slots] */
} fr_cuts;

/* A copy of how the last forward was cut, the caller's: free it with fr_cuts_free. */
fr_cuts *fr_planner_cuts(const fr_planner *p);
void fr_cuts_free(fr_cuts *c);

/* Where a rank of an unfolded plan stands. asap's expert ranks serve all units of their replica: `unit` is the first,
 * `served` how many. */
typedef struct {
    int unit, stage;
    int served;
    int local;         /* rank within its unit's stage */
    int slot;          /* whose batch it runs: attention group within the unit */
    int batches;       /* slots from `slot` on that it runs: asap's ranks two, in turn */
    int t;             /* index in that tp group */
    int ep_index;      /* in its expert group of `ep` ranks */
    bool experts_only; /* asap's expert ranks: no attention, no logits */
} fr_place;
void fr_layout_place(const fr_layout *l, int rank, fr_place *out);
/* Between attention blocks each rank of a tp group holds its part of the tokens only: fr_share(tokens, tp, t). */
bool fr_layout_sliced(const fr_layout *l);
/* asap: slots for the payload of one attention rank at an expert rank, so that a sender seldom waits (facts:
 * asap-duoserve, a.4). A payload's slot is its number modulo this. */
enum { FR_ASAP_DEPTH = 2 };
int64_t fr_share(int64_t total, int parts, int index); /* whole parts, the first ones take the remainder */

/* ---- what strategy files share
 * -------------------------------------------------------------------------------------------- */

typedef struct fr_strategy {
    const char *name;    /* "asyncep" */
    const char *summary; /* one line for `forerun list strategies` */
    /* what travels, where it waits: the table of the README is printed from these */
    const char *travels, *waits;
} fr_strategy;

const fr_strategy *fr_strategy_at(int index); /* NULL at the end */

/* Bytes that a rank sends and receives over links per forward, derived (README, "bytes per rank"). */
typedef struct {
    int64_t sent, received; /* activations and weights over NVLink/network */
    int64_t host;           /* over PCIe from host memory */
    double flops;
} fr_traffic;
void fr_fragment_traffic(const fr_plan *p, const fr_fragment *f, fr_traffic *ranks); /* adds to [p->ranks] */

#endif

/*
 * cost: op shape -> nanoseconds, with where the number comes from and how far it may be off. Used by the simulator to
 * play, by strategies and the scheduler to decide, by the engine to choose tiles and to print predicted beside
 * measured. Measured first: one text table per GPU under kernels/measured/; outside its grid the roofline shape is kept
 * and the provenance says so.
 */
#ifndef FR_COST_H
#define FR_COST_H

#include "engine/machine.h"
#include "engine/plan/op.h"

typedef enum {
    FR_FROM_MEASURED = 0, /* a row of the GPU's table */
    FR_FROM_INTERPOLATED, /* between rows */
    FR_FROM_EXTRAPOLATED, /* along the roofline from the nearest row; or a stated law for more ranks than measured */
    FR_FROM_TRANSFERRED,  /* another GPU's efficiency under this GPU's datasheet ceilings */
    FR_FROM_SEEDED,       /* from published or first readings */
    FR_FROM_ROOFLINE,     /* datasheet times a stated efficiency */
    FR_FROM_KINDS
} fr_provenance;
const char *fr_provenance_name(fr_provenance p);

/* burst: within a second after idle, full clock; sustained: under the power cap, back to back for seconds. */
typedef enum { FR_BURST = 0, FR_SUSTAINED } fr_regime;

/*
 * How an op meets the power limit (engine/cost/power.h). At SM clock x <= full it draws idle + base + slope x^2 watts
 * and runs at 1 / (1 - flex + flex * full / x) of its speed in a burst; full: its clock in a burst. Below the clock
 * `knee` the rest of its time, which HBM takes, grows too, by knee / x. A zero slope: nothing is known, or the op keeps
 * no SM busy; a collective by NCCL's kernels has flex, of its time at full clock.
 */
typedef struct {
    double base, slope, full, flex, knee;
} fr_draw;

typedef struct {
    int64_t ns; /* alone on its rank; a collective: from the last rank's arrival to the end; 0 for the empty shape */
    int64_t low, high; /* interval around ns */
    fr_provenance provenance;
    double hbm_bytes;  /* HBM traffic while it runs (reads + writes), for sharing; copies: at each end */
    double link_bytes; /* bytes over this rank's outgoing link (= incoming, by symmetry), for sharing */
    int64_t burst_ns;  /* at the clock of a burst; = ns where the power model has nothing to say */
    fr_draw draw;
} fr_cost;

typedef struct fr_cost_model fr_cost_model;

typedef struct {
    const char *tables; /* folder with measured tables; NULL = the ones compiled in */
    const char *extra;  /* a user's own rows, imported on top; NULL = none */
    fr_regime regime;
    bool varied; /* batches differ in their rows, as a trace's do: dense products cost what whole tiles do (op.h) */
    fr_what_if what_if;
} fr_cost_options;

fr_status fr_cost_open(const fr_machine *machine, const fr_cost_options *options, fr_cost_model **out, fr_error *err);
void fr_cost_close(fr_cost_model *c);

/* Thread-safe: the model is read-only after open. `pairs` is the owner's pair array that shape->vector points into. */
void fr_cost_op(const fr_cost_model *c, const fr_shape *shape, const fr_pair *pairs, fr_cost *out);

/*
 * Variants of the grouped product (kernels/kernels.h, FR_K_GROUPED_*, in that order): a block by itself or two that
 * share the weight tile, the consumers of a block in step or two steps apart.
 */
typedef enum {
    FR_TILE_NONE = -1, /* the table has no rows of single variants */
    FR_TILE_SINGLE = 0,
    FR_TILE_PAIR,
    FR_TILE_SINGLE_SKEW,
    FR_TILE_PAIR_SKEW,
    FR_TILES
} fr_tile;
const char *fr_tile_name(fr_tile t); /* as tables have it */
/* The variant that the table's rows say is the quickest for a grouped shape, by the rows that its experts have. */
fr_tile fr_cost_tile(const fr_cost_model *c, const fr_shape *shape, const fr_pair *pairs);

/*
 * What overlapping ops do to each other beyond sharing bytes: while an aggressor is under way on the same rank, a
 * kernel of kind `victim` progresses at 1 / (1 + slowdown). Measured (kernels/measured/): copy-engine pulls draw power,
 * kernels of NCCL and of our own exchange take SMs.
 */
typedef enum {
    FR_AGGRESSOR_PULL = 0,
    FR_AGGRESSOR_NCCL,
    FR_AGGRESSOR_H2D,
    FR_AGGRESSOR_EXCHANGE,
    FR_AGGRESSORS
} fr_aggressor;
double fr_cost_slowdown(const fr_cost_model *c, fr_op_kind victim, fr_aggressor aggressor);
/* And the other way: a transfer by kernels beside a kernel of kind `beside` runs at 1 / (1 + this). */
double fr_cost_held_back(const fr_cost_model *c, fr_op_kind beside, fr_aggressor aggressor);

/* Standard deviation of what cards of the kind draw at a clock, over the mean one's; 0 = fewer than three are known. */
double fr_cost_cards_spread(const fr_cost_model *c);

/* The power limit and what its clock depends on; known = false: the tables have no rows for it. */
typedef struct fr_power fr_power;
const fr_power *fr_cost_power(const fr_cost_model *c);
fr_regime fr_cost_regime(const fr_cost_model *c);

/*
 * ns that a kernel takes beyond its cost, which is that of many in a row of its own: in a chain of different ones its
 * code and operands are not at hand. Sorting is three kernels (kernels/kernels.h: fr_k_route).
 */
double fr_cost_gap(const fr_cost_model *c, fr_op_kind kind);
/*
 * Whether ops are timed one by one, as `run` does unless told not to: each then has an event behind it (rows gap and
 * gap_timed). Before the model is shared between threads.
 */
void fr_cost_time_ops(fr_cost_model *c, bool timed);

/* Capacities for sharing, per rank, bytes/s: what kernels and links reach together. */
typedef struct {
    double hbm, link_out, link_in, pcie_h2d, pcie_d2h, host, network;
    int copy_engines;
} fr_capacity;
void fr_cost_capacity(const fr_cost_model *c, fr_capacity *out);

/* Identity of the tables behind a result, and a short description for people ("kernels/measured/h200.txt, 312 rows").
 */
uint64_t fr_cost_hash(const fr_cost_model *c);
const char *fr_cost_source(const fr_cost_model *c);

/* Every row and fit with its leave-one-out error per op kind, as text (forerun list costs --check). */
void fr_cost_describe(const fr_cost_model *c, bool check, fr_text *out);

/* Reader of the measured-table format; for tests and fuzzing. Returns the number of rows in *rows. */
fr_status fr_cost_parse(const char *text, size_t length, const char *where, int *rows, fr_error *err);

#endif

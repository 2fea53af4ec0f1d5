/*
 * exec: the CUDA executor of a plan, for one rank. Lane -> non-blocking stream; event -> the CUDA event recorded after
 * the op that raised it (waits within a stream need none); op kind -> launcher (ops.h). A LAUNCH op of the host lane is
 * what the calling thread does when it issues a layer, so waits for it hold by themselves.
 *
 * The caller's thread issues ops and runs ahead of the device; every wait for the device has a deadline and names what
 * it waits for. Times are ns on one clock, the host's (clock.h); device times come from CUDA events, brought onto that
 * clock.
 */
#ifndef FR_CUDA_EXEC_H
#define FR_CUDA_EXEC_H

#include "engine/cuda/clock.h"
#include "engine/cuda/pools.h"
#include "engine/cuda/weights.h"
#include "engine/plan/plan.h"
#include "engine/strategy/strategy.h"
#include "engine/timeline.h"

typedef struct fr_exec fr_exec;

enum {
    FR_EXEC_FLIGHTS = 8, /* forwards issued and not collected, at most: pipelines hold some in every stage */
    FR_EXEC_UNITS = 4    /* units that a rank serves, at most: each has two forwards out (conduct.h) */
};

typedef struct {
    const fr_plan *plan;
    const fr_model *model;
    const fr_layout *layout;
    const fr_weights *weights;
    const fr_cost_model *cost;      /* chooses variants of the grouped product; NULL: the kernels' own rule */
    struct fr_world *world;         /* NULL: this rank is alone */
    struct fr_transport *transport; /* NULL: no group ops */
    fr_load load;
    const fr_anchor *opened; /* of this device, as long ago as can be: the longer, the better known its clock */
    int rank;
    int64_t positions;   /* longest sequence, cached prefix included */
    int candidates;      /* most candidates of one sequence */
    bool vocabulary;     /* some sequences want the logits of the whole vocabulary */
    int64_t kv_tokens;   /* room of the KV cache; 0 = none: every sequence is computed whole in one forward */
    bool made_up_prefix; /* a prefix that no forward computed is there all the same (equal batches with --prefix) */
    bool varied;         /* batches differ in their number of sequences: prepare for it */
    int64_t one_length;  /* then: of all sequences; 0: they differ */
    bool spans;          /* time every op */
    bool counts;         /* read back tokens per expert */
    fr_pulls_by pulls;   /* whose copy engines gather weights */
    bool check_ops;      /* wait after every op: a failure of the device is named exactly; for finding faults only */
    double timeout_s;
} fr_exec_options;

fr_status fr_exec_open(const fr_exec_options *o, fr_exec **out, fr_error *err);
void fr_exec_close(fr_exec *x);
/* Id of the op that was issued last or is being issued, 0 = none. Any thread. */
uint64_t fr_exec_issuing(const fr_exec *x);
/* The rank whose raise it waits for before it issues on, -1 = none. Any thread. */
int fr_exec_waits_for(const fr_exec *x);
/* Waits, not for ever, until nothing runs any more; false = the device failed or does not answer. */
bool fr_exec_settle(fr_exec *x);
/* Nothing more is asked of the device, and fr_exec_close frees none of its memory: freeing would wait for it, or peers
 * may still reach into it. */
void fr_exec_give_up(fr_exec *x);

/* Starts the clock: time 0 is CLOCK_MONOTONIC's `epoch` (ns). Waits until the device is idle. */
fr_status fr_exec_start(fr_exec *x, int64_t epoch, fr_error *err);
/* After the last forward: how far the device's times may be off the host's clock, and how much faster (parts per
 * million) the device's clock ran. */
fr_status fr_exec_finish(fr_exec *x, double *error_ns, double *drift_ppm, fr_error *err);
int64_t fr_exec_now(const fr_exec *x);
/* Goes on with another plan of the same static part, whose counters begin at 0; no forward may be out. */
fr_status fr_exec_replan(fr_exec *x, const fr_plan *plan, bool spans, fr_error *err);

/* The tokens behind a batch's sequences, one after the other: ids of all queries, then, per sequence, the candidates
 * whose logits are wanted (none where a sequence wants 0 or all). */
typedef struct {
    const fr_sequence *sequences;
    int32_t count;
    const int32_t *ids;
    const int32_t *candidates;
    const int64_t *owners; /* with a KV cache: who each sequence's handle belongs to now (request ids) */
} fr_exec_batch;

/*
 * Issues this rank's ops of a forward of its unit; at most FR_EXEC_FLIGHTS may be out. `batches`: one for each slot of
 * the unit, of which this rank reads its own; `cuts`: how the planner cut them (fr_planner_cuts), of all slots. Both
 * are done with when this returns; the fragment stays the caller's, and must live until it is collected.
 */
fr_status fr_exec_append(fr_exec *x, const fr_fragment *f, const fr_cuts *cuts, const fr_exec_batch *batches,
                         fr_error *err);

/* For the watchdog, any thread: ends what this rank's streams wait for from other ranks. Its forwards are lost. */
void fr_exec_release(fr_exec *x);

/* With a KV cache: keeps the first `tokens` of a handle's context (0 = none), whose later rows nobody will read. */
void fr_exec_kv_trim(fr_exec *x, int32_t handle, int32_t tokens);

/* What has become of the oldest forward that is out. */
typedef enum { FR_EXEC_NONE = 0, FR_EXEC_RUNNING, FR_EXEC_ENTERED, FR_EXEC_DONE } fr_exec_state;
/* FR_FAILED when the device failed or the deadline has passed. */
fr_status fr_exec_poll(fr_exec *x, fr_exec_state *state, fr_error *err);

/* Consecutive floats. */
typedef struct {
    int64_t first, count;
} fr_exec_run;

typedef struct {
    const fr_fragment *fragment;
    fr_forward_record record; /* tokens and cached are the caller's to fill */
    int64_t answer;           /* ns */
    int64_t late_ns;          /* of the span: the device stood idle because the host had not issued the next op yet */
    /* Logits of the rank's batch, valid until the next append: sequences that want all first, vocab each, then the
     * others'. A rank fills the runs that it computed: all of it where tp = 1, nothing before a pipeline's end. */
    const float *logits;
    int64_t logits_count;
    const fr_exec_run *runs;
    int runs_count;
    const int32_t *counts; /* [layers executed][E] tokens per expert, NULL without `counts` */
} fr_exec_done;
/* Waits for the oldest forward and takes it in; its ops' spans are added to `spans` (NULL = dropped). */
fr_status fr_exec_collect(fr_exec *x, fr_timeline *spans, fr_exec_done *out, fr_error *err);

/* Ops issued so far that had work, by kind [FR_OP_KIND_COUNT]. */
const int64_t *fr_exec_launched(const fr_exec *x);
int64_t fr_exec_bytes(const fr_exec *x); /* device memory that the executor itself holds */

#endif

/*
 * rank: what the conductor asks of a rank of the plan, whatever executes it. All functions of a rank are called by the
 * rank's own thread (worker.h) and by no other, but for those that say so.
 */
#ifndef FR_CONDUCT_RANK_H
#define FR_CONDUCT_RANK_H

#include "engine/experiment.h"
#include "engine/strategy/strategy.h"
#include "engine/timeline.h"
#include "engine/world/world.h"

/* What is known before the first forward, the same for all ranks. */
typedef struct {
    const fr_setup *setup;
    fr_load load;
    int64_t positions;   /* longest sequence, cached prefix included */
    int candidates;      /* most candidates of one sequence */
    bool vocabulary;     /* some sequences want the logits of the whole vocabulary */
    int64_t kv_tokens;   /* room of the KV cache; 0 = none: every sequence is computed whole in one forward */
    bool made_up_prefix; /* a prefix that no forward computed is there all the same (equal batches with --prefix) */
    bool varied;         /* batches differ in their number of sequences */
    int64_t one_length;  /* then: tokens of every request; 0: they differ */
    double timeout_s;
} fr_rank_needs;

/* Keep the first `tokens` of a KV handle: nobody reads what comes after them. */
typedef struct {
    int32_t handle, tokens;
} fr_kv_trim;

/* The batch of one attention group with the tokens behind it: ids of all queries, then, per sequence, the candidates
 * whose logits are wanted (none where a sequence wants 0 or all). */
typedef struct {
    fr_sequence *sequences;
    int32_t count;
    int32_t *ids, *candidates;
    int64_t *owners;   /* who each sequence's KV handle belongs to now (request ids) */
    fr_kv_trim *trims; /* to do before */
    uint32_t trims_count, trims_cap;
} fr_job_batch;

/* One forward of one unit, as its ranks get it: they only read it, the conductor frees it when all have ended. */
typedef struct fr_job {
    fr_fragment *fragment;
    int64_t number; /* of the unit's forwards */
    int32_t unit, slots;
    fr_job_batch *batches; /* [slots] */
    fr_cuts *cuts;         /* how the planner cut them */
} fr_job;

/* Consecutive floats. */
typedef struct {
    int64_t first, count;
} fr_float_run;

/* What a rank says about a forward that has ended on it. Pointers are valid until its next append. */
typedef struct {
    const fr_fragment *fragment; /* which */
    int64_t begin, end, answer;  /* ns on the run's clock */
    int64_t busy;                /* device time in ops; without spans, begin to end */
    int64_t late;                /* the device stood still because the host had not issued the next op yet */
    /* Logits of its slot's batch: sequences that want all first, vocab each, then the others'; of these
     * [logits_count] floats the rank computed the runs. */
    const float *logits;
    int64_t logits_count;
    const fr_float_run *runs;
    uint32_t runs_count;
    /* [layers][E] tokens per expert, of layers first_layer ...; sums over ranks are what was routed. NULL = not known
     */
    const int32_t *counts;
    int first_layer, layers;
} fr_rank_done;

typedef enum { FR_RANK_NONE = 0, FR_RANK_RUNNING, FR_RANK_ENTERED, FR_RANK_DONE } fr_rank_state;

typedef struct {
    int64_t weights_bytes, activation_bytes, communicator_bytes;
    int64_t memory_bytes;   /* of the device in use after the last forward, libraries and context included */
    double weights_s;       /* that it took to fill the weights */
    double clock_error_ns;  /* of device times on the run's clock, at most; NaN = not known */
    double clock_drift_ppm; /* of the device's clock against the host's */
    int64_t launched[FR_OP_KIND_COUNT]; /* ops, by kind */
    char name[96];                      /* "NVIDIA H200" */
} fr_rank_facts;

/*
 * open      makes everything up to the first forward; ranks may exchange through the world
 * replan    goes on with another plan of the same static part, whose counters begin at 0
 * start     time 0 of the clock is CLOCK_MONOTONIC's `epoch`; the device is idle
 * skew      random weights: moves the router bias (counts as measured with the bias in force, NULL = first)
 * append    issues a forward
 * poll      what has become of the oldest forward that is out; of a rank that serves several units: of any
 * collect   takes that one in (waits for the oldest); spans may be NULL
 * finish    after the last forward: how well the clock held (facts)
 * release   the world has failed: lets go whatever on the device waits for other ranks. Any thread
 * where     which op the rank's thread is issuing; leaves *out as it is when none. Returns the rank that the thread
 *           waits for meanwhile, until that has issued something; -1 = none. Any thread; may be NULL
 * close     `lost`: the device is not to be waited for. Returns whether it still answers
 */
typedef struct {
    fr_status (*open)(void *context, int rank, fr_world *world, const fr_plan *plan, const fr_rank_needs *needs,
                      void **self, fr_error *err);
    fr_status (*replan)(void *self, const fr_plan *plan, bool spans, fr_error *err);
    fr_status (*start)(void *self, int64_t epoch, fr_error *err);
    fr_status (*skew)(void *self, const int64_t *counts, fr_error *err);
    fr_status (*append)(void *self, const fr_job *job, fr_error *err);
    fr_status (*poll)(void *self, fr_rank_state *state, fr_error *err);
    fr_status (*collect)(void *self, fr_timeline *spans, fr_rank_done *out, fr_error *err);
    fr_status (*finish)(void *self, fr_error *err);
    void (*facts)(void *self, fr_rank_facts *out);
    void (*release)(void *self);
    int (*where)(void *self, char *out, size_t size);
    bool (*close)(void *self, bool lost);
} fr_rank_kind;

#endif

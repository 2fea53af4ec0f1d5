/*
 * experiment: one cell: a model on a machine in a layout under a workload. `simulate` and `run` take the same one, from
 * flags or from an experiment's JSON, and return the same result; a sweep is a grid of them.
 */
#ifndef FR_EXPERIMENT_H
#define FR_EXPERIMENT_H

#include "engine/cost/cost.h"
#include "engine/layout.h"
#include "engine/plan/audit.h"
#include "engine/sched/sched.h"
#include "engine/strategy/strategy.h"
#include "engine/timeline.h"

typedef struct fr_experiment {
    char model[512]; /* name or path */
    char machine[512];
    int gpus;          /* of the machine to use; 0 = all of them */
    fr_layout layout;  /* degrees of 0 are filled in by fr_setup_open */
    char routing[512]; /* fr_routing_open's spec; default "deepseek-v3" */
    uint64_t seed;

    /* batch mode (trace[0] == 0): `tokens` new tokens per GPU and forward as equal sequences of `seq`, dealt whole over
     * the attention groups */
    int64_t tokens, seq;
    int64_t prefix;  /* cached prefix tokens before every sequence */
    char seqs[1024]; /* lengths of a forward's sequences in place of equal ones (engine/deal.h); "" = equal ones */
    int forwards;    /* consecutive batches, default 8 */
    int candidates;  /* logits per sequence, default 2 */

    /* trace mode */
    char trace[512];      /* file or built-in name or generator spec; "" = batch mode */
    char format[32];      /* "" = detect */
    int spread;           /* fr_spread (traces/trace.h): mooncake's steps; default even */
    double rate;          /* requests/s; 0 = as recorded */
    double duration_s;    /* of arrivals taken; 0 = all */
    int64_t max_requests; /* 0 = all */
    bool offline;         /* all requests at time 0 (batch completion) */
    int64_t budget;       /* new tokens per attention group and forward; default 16384 */
    fr_route route;
    int64_t cache_tokens; /* -1 = what memory leaves; 0 = no reuse */

    fr_regime regime;           /* default sustained */
    bool sharing, interference; /* default true */
    bool fold;                  /* default true */
    bool ignore_memory;
    char tables[512], extra_costs[512];
    char what_if[256];
    bool spans; /* keep the timeline; no option: the command decides */

    uint64_t given; /* bit i: option i of fr_experiment_options was set by name; such an option acts or is refused */
} fr_experiment;

void fr_experiment_defaults(fr_experiment *e);

/* An experiment loaded and checked: everything that an executor needs. */
typedef struct fr_setup {
    fr_experiment experiment; /* resolved copy */
    fr_model model;
    fr_machine machine;
    fr_routing *routing;
    fr_cost_model *cost;
    bool borrowed; /* routing and cost belong to a cache */
    fr_load load;
    fr_memory memory;
    bool fits;
    char reason[256];
} fr_setup;
/* Loads names and files, fills degrees from the strategy and the machine's GPUs, checks the layout. FR_BAD_INPUT for
 * what can never run; a layout that does not fit is FR_OK with fits = false and the reason. */
fr_status fr_setup_open(const fr_experiment *e, fr_setup *out, fr_error *err);
void fr_setup_close(fr_setup *s);

/*
 * The same with names and files read once: a sweep's cells mostly share model, machine, cost tables and routing. The
 * cache owns those and must outlive the setups; one cache per thread.
 */
typedef struct fr_setup_cache fr_setup_cache;
fr_setup_cache *fr_setup_cache_new(void);
void fr_setup_cache_free(fr_setup_cache *c);
fr_status fr_setup_open_cached(const fr_experiment *e, fr_setup_cache *cache, fr_setup *out, fr_error *err);
/*
 * Trace mode: sizes the load again for the longest prompt of the trace (a request longer than the whole budget goes
 * alone) and checks memory again. The driver calls it once it knows the trace.
 */
fr_status fr_setup_size(fr_setup *s, int64_t longest, fr_error *err);
/* Sizes buffers for any routing, where the load counts on that of the setup, and checks memory again: what executes
 * cannot know beforehand where tokens will go. */
fr_status fr_setup_any_routing(fr_setup *s, fr_error *err);

/* What its scheduler is made with: budget, chunks, router, prefix cache (what memory leaves where the size is -1). The
 * setup must outlive the scheduler. `queues`: attention groups over all units. */
void fr_setup_sched(const fr_setup *s, int queues, fr_sched_options *out);
/* Opens the planner of its layout. The setup must outlive the planner. */
fr_status fr_setup_planner(const fr_setup *s, bool allow_fold, fr_planner **out, fr_error *err);

/*
 * Sets one option by its long flag name without dashes ("tokens", "16K"): the command line, an experiment's JSON and a
 * sweep's grid all end here, so that a name means the same everywhere. Unknown names and bad values are FR_BAD_INPUT.
 */
fr_status fr_experiment_set(fr_experiment *e, const char *name, const char *value, fr_error *err);
/* Whether an option was set by name. */
bool fr_experiment_given(const fr_experiment *e, const char *name);
/* Names with help text, for --help, the man page and the README: NULL name at the end. */
typedef struct {
    const char *name, *argument, *group, *help; /* argument NULL = a switch */
} fr_option;
const fr_option *fr_experiment_options(void);
/* The value of an option that nobody sets, as the command line would carry it, in `buffer`; NULL for switches, for
 * texts that are empty then and for what the strategy decides. */
const char *fr_experiment_default(const char *name, char *buffer, size_t size);
/* Whether an option's value is a free text, which JSON writes in quotes. */
bool fr_experiment_wants_text(const char *name);

/* The full configuration as canonical JSON (sorted keys, every value), for storage and for the cell key (fr_hash of
 * it). fr_experiment_from_json takes it back: such values are not `given`, so none of them is refused as out of place.
 */
char *fr_experiment_json(const fr_experiment *e);
fr_status fr_experiment_from_json(const char *text, const char *where, fr_experiment *e, fr_error *err);
/* The flags that make this experiment out of the defaults ("--model mixtral-8x7b --tp 4"), for ready commands. */
void fr_experiment_flags(const fr_experiment *e, fr_text *out);

/* Quantiles of a set of times. */
typedef struct {
    double mean, p50, p90, p99;
} fr_quantiles;
/* By the nearest-rank rule: the smallest value with at least q of all values at or below it. Sorts `values`; NaN where
 * there are none. */
fr_quantiles fr_quantiles_of(double *values, uint32_t count);

/* What simulate and run report alike. Times in ns where integers, else seconds; -1 or NaN = not applicable (printed as
 * null). */
typedef struct fr_result {
    int gpus, stage_ranks;
    int64_t requests, forwards, tokens, cached_tokens;
    int64_t elapsed_ns; /* batch mode: from the first batch's release to the last end; trace mode: first arrival to last
                           answer */
    double forward_s;   /* batch mode: elapsed / forwards per unit; trace mode: mean */
    double single_forward_s; /* latency of the first forward alone in the machine */
    fr_parts parts;          /* of the rank that ends last, ns, elapsed = the sum exactly */
    int64_t units_forwards;  /* forwards per unit in batch mode */
    double tokens_per_s, tokens_per_s_per_gpu, mfu, flops;
    double forward_low_s, forward_high_s; /* interval of forward_s */
    int idle_ranks;                       /* ranks without work in batch mode */
    int64_t left_out, reordered;          /* rows of the trace file: of 0 tokens; earlier than the row before */
    fr_quantiles ttft_s;
    fr_memory memory;
    bool fits;
    char reason[256];
    fr_provenance_share provenance;
    fr_audit audit; /* of the first forward of every unit: shapes that nobody has measured */
    int64_t class_ns[FR_CLASS_COUNT];
    int64_t ops_played, ops_folded, ops_skipped, solves;
    int64_t sent_bytes, received_bytes, host_bytes; /* busiest rank, per forward in batch mode, in all in trace mode */
    double price_per_mtoken, joules_per_mtoken;     /* NaN where the machine has no price, no watts */
    double clock_mhz;                               /* mean SM clock under kernels; NaN = not followed */
    double wall_s;                                  /* of the simulation; not part of stored results (determinism) */
} fr_result;

/* One request's fate, for the store and the TTFT figures. */
typedef struct {
    int64_t id, arrival, start, answer; /* ns */
    int32_t tokens, cached, queue, source;
} fr_request_record;

/* The fate of a request whose last part, of the queue's batch that began at `started`, was answered at `answered` (ns).
 */
fr_request_record fr_request_answered(const fr_part *last, int queue, int64_t started, int64_t answered);

#endif

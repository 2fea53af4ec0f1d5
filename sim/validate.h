/*
 * validate: takes a measured run out of a store, simulates the same cell (same requests; the routing that the run
 * recorded, or the one that the experiment assumes) and compares the two.
 */
#ifndef FR_VALIDATE_H
#define FR_VALIDATE_H

#include "engine/cost/cost_card.h"
#include "engine/store.h"
#include "sim/compare.h"

typedef struct {
    bool assumed_routing; /* as the experiment says, not as the run recorded it */
    const char *costs;    /* folder of tables in place of those compiled in; NULL = as the run says */
    const char *anchors;  /* anchor rows, of several GPUs one table after the other; NULL = those stored with the run */
    const char *exe_dir;  /* for finding shipped traces */
} fr_validate_options;

/* A replay with all kernels taking `factor` of the time that they are predicted to take. Queues answer to that: near
 * full load by more than the factor, and a high percentile of few requests in jumps, as a request just makes a batch or
 * just misses it. */
typedef struct {
    double factor;
    fr_quantiles ttft_s;
    double tokens_per_s;
} fr_service_point;
#define FR_SERVICE_POINTS 4 /* 0.96, 0.98, 1.02, 1.04 */

typedef struct {
    int64_t run;
    char cell[128];  /* its name in a list of runs, "" = none */
    char label[192]; /* "qwen3-30b-a3b tp 2 GPUs, 16384 tokens of 4096, uniform" */
    fr_setup setup;
    bool own_routing; /* the run's */
    bool replay;      /* a trace whose requests did not all come at once */
    fr_result predicted;
    double pause_s, warmup_s;
    bool live; /* it ran on GPUs, whose cards differ; else simulated */
    /* measured, as the store has it; NaN where it says nothing */
    double forward_s, elapsed_s, tokens_per_s, mfu;
    fr_quantiles ttft_s;
    fr_timeline spans[2]; /* predicted, measured; lanes are those of `plan` */
    fr_plan *plan;        /* names lanes; holds no ops */
    fr_compare compare;
    bool anchored;                               /* anchors were there */
    fr_card *cards;                              /* by rank, as its GPU's anchors show it */
    double anchored_forward_s;                   /* the prediction with these cards */
    fr_compare anchored_compare;                 /* of it */
    fr_service_point service[FR_SERVICE_POINTS]; /* of a replay */
} fr_validation;

fr_status fr_validate_run(fr_store *s, const char *path, int64_t run, const fr_validate_options *o, fr_validation *out,
                          fr_error *err);
void fr_validation_free(fr_validation *v);

/* Both timelines as one, for the trace writer: lanes "compute live" and "compute sim" side by side under each rank,
 * both beginning at 0. The plan and the timeline are the caller's. */
void fr_validation_twins(const fr_validation *v, fr_plan **plan, fr_timeline *out);

/* All runs of a store taken together. */
#define FR_MOST_LANES 64
typedef struct {
    fr_error_stats forward;                         /* one error a run: of forward_s */
    fr_error_stats anchored;                        /* the same with anchors, over the runs that have some */
    fr_error_stats throughput, ttft_mean, ttft_p99; /* over trace replays */
    int64_t inside;                                 /* runs whose forward lies in the predicted interval */
    double width;                                   /* mean half-width of the interval over the prediction */
    fr_error_stats single, request;                 /* over all forwards and all requests that were joined */
    fr_compare_row kinds[FR_OP_KIND_COUNT];         /* sums over runs; `each` is not filled */
    int kinds_count;
    fr_compare_row anchored_kinds[FR_OP_KIND_COUNT]; /* of the runs that have anchors, predicted with them */
    int anchored_kinds_count;
    fr_compare_row lanes[FR_MOST_LANES]; /* the same, of lanes of one name */
    int lanes_count;
    fr_cause causes[FR_MOST_CAUSES];    /* ns replaced by the mean share of a run's elapsed time, whichever way */
    double causes_bias[FR_MOST_CAUSES]; /* the same with its sign: > 0 = runs take longer than predicted */
    int causes_count;
    int64_t pairs, agree; /* pairs of layouts under one load whose measured gap exceeds 3 %, and ranked alike */
} fr_validate_summary;
void fr_validate_summarise(const fr_validation *v, int count, fr_validate_summary *out);

/* "kernels that follow the SM clock (clock or card): 1.69 % of a run, and 1.29 % longer than predicted on balance" */
void fr_validate_words(const fr_validate_summary *s, int cause, fr_text *out);

#endif

/*
 * compare: a measured run beside the simulated one of the same cell. Knows records and timelines, no files.
 *
 * Errors are predicted / measured - 1. Ops are joined by their structural id, requests by theirs, forwards by their
 * turn on their unit; in trace mode the two executors may form different batches, so a forward and its ops are joined
 * only where its new and cached tokens agree, and both sides go on from the next that do. Host ops are left out: a live
 * launch takes in the wait for room in the driver's queue. A forward's time is its end less the later of its start and
 * the end of the forward before it on its unit: what it adds to a stream.
 */
#ifndef FR_COMPARE_H
#define FR_COMPARE_H

#include "engine/experiment.h"

/* Of relative errors: absolute but for the bias, which is their mean. NaN where there are none. */
typedef struct {
    int64_t count;
    double mean, median, p95, worst, bias;
} fr_error_stats;
/* Sorts `errors` by size. */
fr_error_stats fr_error_stats_of(double *errors, int64_t count);

typedef struct {
    double predicted, measured; /* ns; p95 etc. are taken over such pairs */
} fr_pair_ns;

/* Ops that were joined: of one kind, or of one lane. */
typedef struct {
    char name[32]; /* "expert_up"; "rank 0 compute" */
    uint8_t kind;
    int16_t rank;
    int64_t count;
    fr_pair_ns sum;
    double compute[2];   /* of sum, what lies on the compute lane of the rank that is judged: predicted, measured */
    fr_error_stats each; /* of single ops */
} fr_compare_row;

/* Where the measured time differs: ns that the live run took longer (> 0) or shorter than predicted. They add up to the
 * difference of the elapsed times of the rank that ends last, but for what `rest` says. */
typedef enum {
    FR_MISSED_CLOCK = 0, /* what all kernels that follow the SM clock have in common: another clock, another card */
    FR_MISSED_OP,        /* kernels of one kind, beyond that */
    FR_MISSED_EXPOSED,   /* communication that compute waits for */
    FR_MISSED_WAIT,      /* other ranks */
    FR_MISSED_BUBBLE,
    FR_MISSED_IDLE, /* gaps between kernels: launches, host, arrivals */
    FR_MISSED_REST, /* compute without timed ops, ops that only one side has */
} fr_missed;

typedef struct {
    fr_missed what;
    uint8_t kind; /* FR_MISSED_OP */
    double ns;
} fr_cause;

#define FR_MOST_CAUSES (FR_OP_KIND_COUNT + 8)

/* One side of a comparison. */
typedef struct {
    const fr_timeline *spans;
    const char *const *lane_names; /* of the plan's lanes, by number */
    const uint8_t *lane_compute;   /* whether a lane is a compute lane */
    const fr_forward_record *forwards;
    int64_t forwards_count;
    const fr_request_record *requests;
    int64_t requests_count;
    fr_parts parts;   /* of the rank that ended last, over all forwards */
    int rank;         /* that rank */
    double clock_mhz; /* NaN = not known */
} fr_side;

typedef struct {
    fr_compare_row *kinds, *lanes; /* by falling measured time; by rank and name */
    int kinds_count, lanes_count;
    fr_pair_ns *forwards, *ttft; /* pairs that were joined, in order */
    int64_t forwards_count, ttft_count;
    fr_error_stats forward, request;
    int64_t ops, only_predicted, only_measured; /* spans joined, and those of joined forwards that had no partner */
    int64_t other_batches;                      /* measured forwards that were not joined: other tokens */
    bool arrivals; /* requests did not all come at once: a GPU that idles then waits for them, which is no cause */
    fr_parts predicted, measured;    /* of the rank that ended last, each */
    fr_cause causes[FR_MOST_CAUSES]; /* by falling size */
    int causes_count;
    double common; /* by how much all kernels that follow the clock ran longer than predicted */
    double clock_predicted, clock_measured; /* MHz, NaN = not known */
} fr_compare;

void fr_compare_run(const fr_side *predicted, const fr_side *measured, fr_compare *out);
void fr_compare_free(fr_compare *c);

/* "expert_up is predicted 5.6 % too short: 192 ops, 5.02 against 5.31 ms" */
void fr_compare_words(const fr_compare *c, const fr_cause *cause, fr_text *out);
const char *fr_missed_name(fr_missed m);

#endif

/*
 * driver: plays one experiment on the virtual clock: arrivals -> engine/sched -> planner -> player -> result. Where a
 * whole request's way through the folders can be read at a glance.
 */
#ifndef FR_DRIVER_H
#define FR_DRIVER_H

#include "engine/cost/cost_card.h"
#include "engine/experiment.h"
#include "engine/timeline.h"
#include "traces/trace.h"

typedef struct {
    fr_timeline *spans;           /* NULL = none */
    fr_request_record **requests; /* out: array, NULL = not wanted */
    int64_t *requests_count;
    fr_forward_record **forwards; /* out: array, NULL = not wanted */
    int64_t *forwards_count;
    void (*progress)(void *context, double share); /* 0..1, NULL = none */
    void *progress_context;
    const char *exe_dir; /* for finding shipped traces; NULL = current folder */
    const fr_request
        *arrivals; /* trace mode: these requests, by arrival, in place of the experiment's trace; NULL = it */
    int64_t arrivals_count;
    int64_t pause_ns, load_ns; /* see fr_player_options */
    const fr_card *cards;      /* one a rank, NULL = not known: */
    bool unlike;               /* as far apart as cards of the kind are (fr_cards_unlike); else all the mean one */
} fr_drive_options;

/* The setup must fit (or ignore_memory be set). */
fr_status fr_drive(const fr_setup *setup, const fr_drive_options *options, fr_result *out, fr_error *err);

/* The requests of trace mode, as the experiment's options say: simulate and run open the same ones. `exe_dir` as in
 * fr_drive_options. */
fr_status fr_drive_trace(const fr_setup *setup, const char *exe_dir, fr_trace **out, fr_error *err);

/* One forward of each unit, planned and not played: for `forerun plan`. Fragments are the caller's to free, the planner
 * too. */
fr_status fr_drive_plan(const fr_setup *setup, fr_planner **planner, fr_fragment ***fragments, int *count,
                        fr_error *err);

#endif

/*
 * exec_state: what the parts of the executor share (internal): exec.c (opening, the clock, waiting, forwards in and
 * out), exec_issue.c (a forward's ops onto their streams), exec_items.c (items of a first-ready lane, one by one) and
 * exec_take.c (what a forward that ended has measured).
 */
#ifndef FR_CUDA_EXEC_STATE_H
#define FR_CUDA_EXEC_STATE_H

#include "engine/cuda/clock.h"
#include "engine/cuda/exec.h"
#include "engine/cuda/issue.h"
#include "engine/cuda/pools.h"
#include "engine/cuda/rank.h"

#include <stdatomic.h>

enum {
    FR_EXEC_SLOTS = FR_EXEC_FLIGHTS + 1
}; /* one more: what was collected last stays as it is until the next append */
/* Items of a first-ready lane that are issued and have not ended: one runs, one follows it without a gap. */
enum { FR_EXEC_ITEMS = 2, FR_EXEC_MOST_TOKENS = 2 };

typedef struct {
    cudaStream_t stream; /* NULL: a host lane or another rank's */
    cudaEvent_t last;    /* end of the last op issued on it with spans */
    uint32_t waiting;    /* the lane's next op of the fragment that could not be issued yet, FR_NONE = none */
    bool touched;        /* it has ops of the forward being issued */
} fr_exec_lane;

/*
 * One timed op: it starts where the op before it on the lane ends, but for three cases. `late`: the device had nothing
 * to do when it was issued; `waits`: it may have to wait for another lane: in both its start has an event of its own
 * (`marked`). `slow`: the host took so long to issue it (a library chose or compiled something) that the device ran dry
 * meanwhile: it started when the host was done.
 */
typedef struct {
    uint32_t op;
    bool marked, late, slow, host;
    cudaEvent_t start, end;
    int64_t host_start, host_end; /* slow: host_end is when it was issued */
} fr_timed;

typedef struct {
    const fr_fragment *f;
    int32_t *staging; /* pinned */
    int64_t staging_ints;
    float *logits;    /* pinned */
    int32_t *offsets; /* pinned: fr_rank_counts */
    int32_t *counts;
    int micros;
    cudaEvent_t begin, entry, answer, end;
    cudaEvent_t *lane_ends; /* [lanes]: of lanes but compute that had ops in it */
    bool *lane_used;
    bool has_entry, has_answer, entered, spans;
    int64_t release, begin_ns, logits_count;
    uint64_t begun; /* number of its begin mark */
    /* of a first-ready lane */
    uint32_t item;                       /* its next item, FR_NONE = all are issued */
    int64_t ready;                       /* when that was seen to be ready, 0 = not yet */
    int64_t tokens[FR_EXEC_MOST_TOKENS]; /* fr_device_rank.tokens */
    fr_exec_run *runs;                   /* of the logits, that this rank computes */
    uint32_t runs_count, runs_cap;
    fr_timed *ops;
    uint32_t count, cap, events; /* events: ops whose events exist */
} fr_flight;

struct fr_exec {
    fr_exec_options o;
    fr_device_rank rank;
    fr_exec_lane *lanes;
    cudaStream_t **streams; /* [lanes]: the lanes' */
    fr_issue *issue;
    int64_t launched[FR_OP_KIND_COUNT]; /* ops, by kind */
    /* offload by expert: tokens per expert of the layer read back last */
    cudaStream_t readback;
    cudaEvent_t readback_done;
    int32_t *readback_offsets; /* pinned, [E + 1] */
    const fr_fragment *known;
    uint16_t known_layer;
    uint8_t known_micro;
    fr_flight slot[FR_EXEC_SLOTS];
    int out[FR_EXEC_FLIGHTS], outs; /* of them, in the order in which they were appended */
    int last;                       /* appended last */
    uint64_t begins, anchored;      /* begin marks made; the one that is the anchor */
    uint32_t choice;                /* its first-ready lane, FR_NONE = none */
    cudaEvent_t item_end[FR_EXEC_ITEMS];
    uint64_t items_issued, items_ended;
    bool lost; /* the device failed or did not answer: nothing more is asked of it */
    _Atomic uint64_t issuing;
    /* clock */
    int64_t epoch; /* CLOCK_MONOTONIC of time 0 */
    fr_anchor latest;
    double rate, half_ns; /* host ns per device ns; of the anchor at the start */
    cudaEvent_t anchor;   /* an event at time anchor_ns */
    int64_t anchor_ns, last_end;
};

/* A call's failure, after which nothing more is asked of the device. */
fr_status fr_exec_check(fr_exec *x, cudaError_t e, const char *call, fr_error *err);
/* Waits until `event` of flight f has come, at most the timeout; spinning: without sleeping, where the device waits for
 * the host. */
fr_status fr_exec_await(fr_exec *x, fr_flight *f, cudaEvent_t event, fr_error *err);
fr_status fr_exec_await_all(fr_exec *x, fr_flight *f, fr_error *err);
fr_status fr_exec_await_spinning(fr_exec *x, fr_flight *f, cudaEvent_t event, fr_error *err);

static inline fr_flight *fr_exec_out(fr_exec *x, int i) {
    return &x->slot[x->out[i]];
}

/* exec_issue.c: all of a forward's ops of this rank, and the marks of its end. */
fr_status fr_exec_issue_forward(fr_exec *x, fr_flight *f, const fr_cuts *cuts, const fr_exec_batch *batches,
                                fr_error *err);
fr_status fr_exec_mark_begin(fr_exec *x, fr_flight *f, cudaStream_t stream, fr_error *err);
fr_status fr_exec_mark_end(fr_exec *x, fr_flight *f, cudaStream_t stream, fr_error *err);
/* One device op that may be issued. */
fr_status fr_exec_issue_op(fr_exec *x, fr_flight *f, uint32_t index, fr_error *err);

/* exec_items.c: takes a forward's items in, and issues those whose turn it is. */
fr_status fr_exec_items_append(fr_exec *x, fr_flight *f, const fr_cuts *cuts, const fr_exec_batch *batches,
                               fr_error *err);
fr_status fr_exec_items_step(fr_exec *x, fr_error *err);

#endif

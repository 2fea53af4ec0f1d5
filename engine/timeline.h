/*
 * timeline: what an executor did: spans on a clock, and the summary that `simulate` and `run` print alike. Writers:
 * SQLite (store.h), Perfetto JSON, CSV.
 */
#ifndef FR_TIMELINE_H
#define FR_TIMELINE_H

#include "engine/cost/cost.h"
#include "engine/plan/plan.h"

typedef struct {
    uint64_t id;        /* fr_op_id */
    int64_t ready;      /* ns: lane free and waits satisfied (own arrival at a collective) */
    int64_t start, end; /* ns; a collective starts when the last member arrives */
    double bytes, flops;
    uint64_t cause; /* op id whose end let this one become ready last; 0 = none: flow arrows and the critical path */
    int32_t unit;
    uint16_t lane; /* of the plan */
    int16_t rank;
    uint8_t kind; /* fr_op_kind */
    uint8_t provenance;
    uint8_t transport; /* of the op's shape */
} fr_span;

/* What carries a transfer: "nccl", "nccl-ce" (NCCL by copy engines), "peer kernels" (stores into peers' memory), "copy
 * engine"; "" = the op moves nothing between memories. `transport`: fr_gather of GATHER_WEIGHTS. */
const char *fr_carrier_name(fr_op_kind kind, int transport);

typedef struct {
    fr_span *spans;
    uint32_t count, capacity;
} fr_timeline;

void fr_timeline_add(fr_timeline *t, const fr_span *s);
void fr_timeline_free(fr_timeline *t);
/* Orders by (start, rank, lane, id): the form in which files hold it. */
void fr_timeline_sort(fr_timeline *t);

/*
 * Where a rank's time went, ns. On the rank that ends last: compute + exposed_comm + wait + bubble + idle == elapsed
 * exactly. compute: the compute lane runs a kernel. exposed_comm: it stands still while a transfer or collective that
 * it needs runs. wait: it stands still for another rank that has not arrived. bubble: a pipeline stage without input.
 * idle: all else (host launches, nothing to do). hidden_comm: this rank's communication busy time less the exposed
 * part.
 */
typedef struct {
    int64_t elapsed, compute, exposed_comm, wait, bubble, idle, hidden_comm;
} fr_parts;

/* One finished forward. */
typedef struct {
    int64_t forward;
    int32_t unit;
    int64_t release, start, end; /* ns: given to the executor, first op's start, last op's end */
    int32_t last_rank;
    fr_parts parts;         /* of last_rank, from release (or the previous forward's end on it, if later) to end */
    int64_t tokens, cached; /* new tokens and cached prefix tokens */
    double flops;           /* model FLOPs (MFU counts these) */
    int64_t low, high;      /* interval of end - start, from the costs' intervals */
} fr_forward_record;

/* Provenance shares of busy compute + communication time; each in ns. */
typedef struct {
    int64_t ns[FR_FROM_KINDS];
} fr_provenance_share;

#endif

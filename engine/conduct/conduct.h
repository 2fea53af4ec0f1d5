/*
 * conduct: runs one experiment on real ranks in real time: the counterpart of sim/driver.h, with the same scheduler,
 * planner, records and result. One thread, the caller's, plans all forwards and hands them to the ranks' threads
 * (worker.h); nothing here knows what executes a rank (rank.h).
 *
 * Batch mode keeps two forwards of a unit out, as an engine whose host runs ahead does; trace mode takes requests as
 * their arrival times come, and forms a unit's next batches when its last forward has entered.
 */
#ifndef FR_CONDUCT_H
#define FR_CONDUCT_H

#include "engine/conduct/inject.h"
#include "engine/conduct/rank.h"
#include "engine/prompts.h"

typedef struct {
    const fr_rank_kind *kind;
    void *context;          /* of kind->open */
    fr_world *world;        /* of threads; not of the same process where ranks are elsewhere */
    struct fr_wire **wires; /* [ranks] to ranks in processes of their own (follow.h); NULL, or NULL for a rank: here */
    const fr_request *requests; /* trace mode: in order of arrival; NULL = batch mode */
    int64_t requests_count;
    fr_prompts *prompts;        /* the token ids of those requests (id = index), answered here; NULL = synthesised */
    bool random_weights;        /* the experiment's routing is injected as a router bias, ... */
    int fit_rounds;             /* ... which is corrected so often by what it brings */
    bool spans;                 /* keep the timeline */
    bool logits;                /* keep all logits of batch mode */
    int64_t sequence_base;      /* batch mode: number of the first sequence, from which its token ids are made */
    double warmup_s, timeout_s; /* back to back before the clock starts; 0 = one forward, then a second of rest */
    fr_inject inject;
    fr_world_ear ear;                        /* hears of the stages of start and end, in every process (world.h) */
    void (*playing)(void *context, bool on); /* the clock starts, has ended; NULL = nobody wants to know */
    void *playing_context;
} fr_conduct_options;

/* One sequence's logits, in order of unit's forward, unit, slot and sequence. */
typedef struct {
    int64_t forward; /* of its unit */
    int32_t unit, slot, sequence;
    int64_t at, count; /* into `logits` */
} fr_logit_row;

typedef struct {
    fr_result result;
    fr_timeline spans;
    fr_request_record *requests;
    fr_forward_record *forwards;
    uint32_t requests_count, requests_cap, forwards_count, forwards_cap;
    int64_t *counts; /* [layers executed][experts] tokens per expert, over all forwards */
    int layers, ranks;
    fr_rank_facts *facts; /* [ranks] */
    fr_parts *parts;      /* [ranks] where each rank's time went */
    float *logits;
    fr_logit_row *logit_rows;
    uint32_t logit_rows_count, logit_rows_cap;
    int64_t logits_count, logits_cap;
    int64_t late_ns;      /* that devices stood still for the host, spans only, all ranks */
    int64_t warm_ns;      /* warming up lasted so long, back to back; 0 = did not */
    int64_t pause_ns;     /* devices stood still for so long between warming up and time 0; 0 = did not warm up */
    double routing_error; /* random weights: largest |measured - asked| share of tokens of an expert, of all layers */
    bool lost;            /* some device does not answer, or some rank's thread: the process should end without them */
} fr_conducted;

/* The setup must fit (trace mode: already sized for its longest request). After a failure *out has what was taken in
 * until then, forwards_count tells how much; free it either way. */
fr_status fr_conduct(const fr_setup *setup, const fr_conduct_options *options, fr_conducted *out, fr_error *err);
void fr_conducted_free(fr_conducted *o);

/* FNV-1a over all logits kept, bit by bit, in their order. */
uint64_t fr_conducted_hash(const fr_conducted *o);

#endif

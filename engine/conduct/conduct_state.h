/*
 * conduct_state: what the conductor's files share.
 *
 *     conduct.c        opening, ranks and their notes, forwards in and out, the end
 *     conduct_play.c   batch mode, trace mode
 *     conduct_warm.c   before the clock: routing, warm-up
 *     tokens.c         token ids of a forward, and which KV handles may be trimmed
 *     conduct_result.c records, logits, the result
 */
#ifndef FR_CONDUCT_STATE_H
#define FR_CONDUCT_STATE_H

#include "engine/causes.h"
#include "engine/conduct/codec.h"
#include "engine/conduct/conduct.h"
#include "engine/conduct/worker.h"
#include "engine/deal.h"

enum {
    FR_CONDUCT_AHEAD = 2, /* forwards of a unit that wait to be let in, batch mode: as the simulator's driver */
    FR_CONDUCT_MOST = 8   /* forwards of a unit that are out */
};

/* A forward that is out. */
typedef struct {
    fr_job *job;
    const fr_sched_batch **tickets; /* trace mode: [slots], NULL = empty */
    int64_t given;
    int entered, left;       /* ranks of the first stage that let it in; ranks on which it has not ended */
    fr_rank_done *done;      /* [ranks of the unit] */
    fr_timeline *spans;      /* ditto */
    int64_t *answers;        /* [slots] latest answer, 0 = none yet */
    float **logits;          /* [slots] as fr_rank_done.logits, of all ranks of the slot */
    const fr_batch *batches; /* [slots] */
} fr_flight;

/* A unit: which of its forwards are out, oldest first. */
typedef struct {
    fr_flight *flights[FR_CONDUCT_MOST];
    int out, held; /* held: of them, not let in yet */
    int doors;     /* ranks of the first stage: they say when a forward is let in */
    int64_t given, last_end;
    int *ranks, ranks_count;
} fr_unit;

/* What an attention group's KV handles hold, as far as the conductor can know: an upper bound. */
typedef struct {
    int32_t *held; /* per handle */
    uint32_t handles;
    int64_t used;
    fr_kv_trim *trims; /* for the next forward */
    uint32_t trims_count, trims_cap;
} fr_kv_book;

typedef struct {
    const fr_setup *setup;
    const fr_conduct_options *o;
    fr_conducted *out;
    fr_error *err;
    fr_rank_needs needs;
    int ranks, layers, units, slots;
    fr_place *place; /* [ranks] */
    fr_worker **workers;
    fr_mailbox *notes;
    int ready, closed; /* ranks that have said so */
    bool *gone;        /* [ranks] closed */
    int64_t *asked;    /* [ranks] when a rank was given the forwards that it has not issued; 0 = none */
    bool *answered;    /* [ranks] has carried out the command at hand */
    int *unissued;     /* [ranks] forwards given and not issued */
    fr_planner *planner, *old_planner;
    fr_plan *plan, *old_plan; /* the ranks': see fr_plan_static; the old one's groups stay in use */
    fr_sched *sched;
    fr_unit *unit;
    fr_kv_book *books; /* [units * slots] */
    fr_deal deal;
    fr_sequence spare;       /* a batch to measure routing with, and to warm up a trace */
    fr_batch *spares;        /* [units * slots] of it */
    int64_t sequences_all;   /* most of a forward of all units */
    bool timed;              /* what comes in counts */
    int64_t epoch, warm_end; /* monotonic ns */
    int64_t *fit;            /* [layers][E] counts of the forwards being measured; NULL = not measuring */
    /* sums */
    double *ttft;
    uint32_t ttft_count, ttft_cap;
    int64_t last_end, tokens, cached;
    int64_t *busy; /* [ranks] */
    double flops, service;
    fr_traffic *traffic; /* [ranks] */
    fr_causes *causes;   /* while the clock runs, with spans */
} fr_conductor;

/* conduct.c */
void fr_conduct_needs(const fr_setup *setup, const fr_conduct_options *o, fr_rank_needs *out);
int64_t fr_conduct_now(const fr_conductor *c);
/* Waits for notes up to `ns` and takes in all that are there. */
fr_status fr_conduct_listen(fr_conductor *c, int64_t ns);
/* Gives a unit its next forward: batches and tickets (NULL in batch mode) are [slots]; tickets is taken over. */
fr_status fr_conduct_give(fr_conductor *c, int unit, const fr_batch *batches, const fr_sched_batch **tickets);
/* Waits until no forward is out. */
fr_status fr_conduct_drain(fr_conductor *c);
/* Waits until every rank has carried out the command that it was sent; a rank that has "not {what}" by then fails the
 * world. */
fr_status fr_conduct_ready(fr_conductor *c, const char *what, double seconds);
void fr_conduct_asked(fr_conductor *c, int rank);

/* conduct_play.c */
fr_status fr_conduct_batches(fr_conductor *c, int64_t forwards, int64_t until_ns);
fr_status fr_conduct_trace(fr_conductor *c);

/* conduct_warm.c */
/* Batches that are not requests': of batch mode, or of warming up. */
const fr_batch *fr_conduct_dealt(const fr_conductor *c, int unit, int64_t forward);
fr_status fr_conduct_warm(fr_conductor *c);

/* tokens.c */
void fr_conduct_tokens(fr_conductor *c, const fr_flight *f, fr_job *job);
void fr_conduct_trim(fr_conductor *c, const fr_flight *f);

/* conduct_result.c */
void fr_conduct_record(fr_conductor *c, fr_flight *f);
void fr_conduct_result(fr_conductor *c);

#endif

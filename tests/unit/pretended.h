/*
 * pretended: a rank that executes nothing: its device takes some ms for a forward with work, and its logits are made of
 * the first token of each sequence. For tests of what conducts ranks.
 */
#ifndef FR_TESTS_PRETENDED_H
#define FR_TESTS_PRETENDED_H

#include "engine/conduct/conduct.h"
#include "engine/conduct/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OUT = 16 };

/* A rank whose device takes `ms` for a forward with work. */
typedef struct {
    int rank;
    fr_place place;
    const fr_rank_needs *needs;
    fr_world *world;
    int64_t epoch;
    const fr_job *jobs[OUT];
    int64_t ends[OUT];
    int out;
    int64_t busy_until, last_number[8]; /* of each unit that it serves */
    float logits[4096];
    fr_float_run run;
    bool released;
    int waits_for; /* where says so */
    bool hang;     /* its device never ends a forward, until it is released */
} pretended;

typedef struct {
    double ms;
    int hang_rank;     /* -1 = none */
    int stick_forward; /* rank 1's thread stands still in that timed forward until it is released, rank 0's waits for
                          it; 0 = none */
    int opened, closed, released, wrong;
    int32_t trims;
} stage;

static stage *the;

/* Request i of a trace, one every `gap` ns; three prefixes are shared, so that KV handles are kept and trimmed. */
static inline fr_request shared_prefix(int i, int64_t gap, uint64_t blocks[2]) {
    blocks[0] = (uint64_t)(i % 3);
    blocks[1] = (uint64_t)(1000 + i);
    return (fr_request){.id = i,
                        .arrival = i * gap,
                        .tokens = 100 + i,
                        .prefix_id = -1,
                        .blocks = blocks,
                        .blocks_count = 2,
                        .block_tokens = 50,
                        .candidates = 1};
}

static void forget(pretended *p) {
    for (int i = 0; i < 8; i++) p->last_number[i] = -1;
}

/* Sequences of all batches that the rank runs. */
static int32_t sequences_of(const pretended *p, const fr_job *job) {
    int32_t n = 0;
    for (int s = 0; s < p->place.batches; s++) n += job->batches[p->place.slot + s].count;
    return n;
}

static fr_status open_rank(void *context, int rank, fr_world *world, const fr_plan *plan, const fr_rank_needs *needs,
                           void **self, fr_error *err) {
    pretended *p = fr_alloc(sizeof *p);
    (void)context;
    (void)plan;
    *p = (pretended){.rank = rank, .needs = needs, .world = world, .hang = the->hang_rank == rank, .waits_for = -1};
    forget(p);
    fr_layout_place(&needs->setup->experiment.layout, rank, &p->place);
    if (fr_world_exchange(world, rank, &rank, sizeof rank, NULL, err) != FR_OK) {
        free(p);
        return FR_FAILED;
    }
    __atomic_add_fetch(&the->opened, 1, __ATOMIC_SEQ_CST);
    *self = p;
    return FR_OK;
}

static fr_status replan(void *self, const fr_plan *plan, bool spans, fr_error *err) {
    (void)plan;
    (void)spans;
    (void)err;
    forget(self);
    return FR_OK;
}

static fr_status start(void *self, int64_t epoch, fr_error *err) {
    (void)err;
    ((pretended *)self)->epoch = epoch;
    return FR_OK;
}

static fr_status skew(void *self, const int64_t *counts, fr_error *err) {
    (void)self;
    (void)counts;
    (void)err;
    return FR_OK;
}

static fr_status append(void *self, const fr_job *job, fr_error *err) {
    pretended *p = self;
    (void)err;
    const int unit = job->unit - p->place.unit;
    if (unit < 0 || unit >= p->place.served || job->number != ++p->last_number[unit] || p->out == OUT)
        __atomic_add_fetch(&the->wrong, 1, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&the->trims, (int32_t)job->batches[p->place.slot].trims_count, __ATOMIC_SEQ_CST);
    if (the->stick_forward && the->stick_forward == job->number && p->rank == 0)
        __atomic_store_n(&p->waits_for, 1, __ATOMIC_SEQ_CST);
    while (the->stick_forward && p->rank <= 1 && job->number == the->stick_forward && p->epoch &&
           !__atomic_load_n(&p->released, __ATOMIC_SEQ_CST))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    const int64_t now = fr_monotonic(), from = now > p->busy_until ? now : p->busy_until;
    const bool work = sequences_of(p, job) > 0;
    p->busy_until = from + (int64_t)(work ? the->ms * 1e6 : 0);
    p->jobs[p->out] = job;
    p->ends[p->out++] = p->busy_until;
    return FR_OK;
}

static fr_status poll_rank(void *self, fr_rank_state *state, fr_error *err) {
    pretended *p = self;
    (void)err;
    *state = p->out == 0                                   ? FR_RANK_NONE
             : p->hang                                     ? FR_RANK_RUNNING
             : fr_monotonic() >= p->ends[0]                ? FR_RANK_DONE
             : fr_monotonic() >= p->ends[0] - (int64_t)5e5 ? FR_RANK_ENTERED
                                                           : FR_RANK_RUNNING;
    return FR_OK;
}

/* What this rank's logits are: of its first and last token ids, so that the test can tell whose they are. */
static int64_t fill_logits(pretended *p, const fr_job *job) {
    int64_t at = 0;
    for (int s = 0; s < p->place.batches && !p->place.experts_only; s++) {
        const fr_job_batch *b = &job->batches[p->place.slot + s];
        const int32_t *id = b->ids;
        for (int32_t i = 0; i < b->count; i++) {
            for (int32_t k = 0; k < b->sequences[i].candidates; k++) p->logits[at++] = (float)id[0];
            id += b->sequences[i].queries;
        }
    }
    const int tp = p->needs->setup->experiment.layout.tp;
    const int64_t each = (at + tp - 1) / tp, first = each * p->place.t; /* tp ranks share them */
    p->run = (fr_float_run){first, first + each < at ? each : at > first ? at - first : 0};
    for (int64_t i = 0; i < at; i++)
        if (i < p->run.first || i >= p->run.first + p->run.count) p->logits[i] = -1;
    return at;
}

static fr_status collect(void *self, fr_timeline *spans, fr_rank_done *out, fr_error *err) {
    pretended *p = self;
    const fr_job *job = p->jobs[0];
    const int64_t end = p->ends[0] - p->epoch, ns = (int64_t)(the->ms * 1e6);
    (void)err;
    const int64_t all = fill_logits(p, job);
    if (spans) fr_timeline_add(spans, &(fr_span){.id = 1, .start = end - ns, .end = end, .rank = (int16_t)p->rank});
    *out = (fr_rank_done){
        .fragment = job->fragment, .begin = end - ns, .end = end, .answer = end, .busy = ns, .logits = p->logits};
    out->logits_count = all;
    out->runs = &p->run;
    out->runs_count = all > 0;
    p->out--;
    memmove(p->jobs, p->jobs + 1, (size_t)p->out * sizeof *p->jobs);
    memmove(p->ends, p->ends + 1, (size_t)p->out * sizeof *p->ends);
    return FR_OK;
}

static fr_status finish(void *self, fr_error *err) {
    (void)self;
    (void)err;
    return FR_OK;
}

static void facts(void *self, fr_rank_facts *out) {
    *out = (fr_rank_facts){.weights_bytes = ((pretended *)self)->rank};
}

static void release(void *self) {
    ((pretended *)self)->hang = false;
    __atomic_store_n(&((pretended *)self)->released, true, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&the->released, 1, __ATOMIC_SEQ_CST);
}

static int where(void *self, char *out, size_t size) {
    const pretended *p = self;
    snprintf(out, size, "the pretended one");
    return __atomic_load_n(&p->waits_for, __ATOMIC_SEQ_CST);
}

static bool close_rank(void *self, bool lost) {
    (void)lost;
    free(self);
    __atomic_add_fetch(&the->closed, 1, __ATOMIC_SEQ_CST);
    return true;
}

static const fr_rank_kind kind = {open_rank, replan, start, skew,    append, poll_rank,
                                  collect,   finish, facts, release, where,  close_rank};

#endif

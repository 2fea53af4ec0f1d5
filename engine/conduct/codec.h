/* codec: jobs and notes as payloads of a wire, for ranks in processes of their own. */
#ifndef FR_CONDUCT_CODEC_H
#define FR_CONDUCT_CODEC_H

#include "engine/conduct/worker.h"
#include "engine/world/world_wire.h"

enum {
    FR_WIRE_NOTE = FR_WIRE_OTHERS, /* to the conductor */
    FR_WIRE_REPLAN,                /* from it: one for each command of worker.h */
    FR_WIRE_START,
    FR_WIRE_SKEW,
    FR_WIRE_FORWARD,
    FR_WIRE_FINISH,
    FR_WIRE_STOP,
    FR_WIRE_PING, /* the conductor's clock; back: */
    FR_WIRE_PONG  /* fr_pong */
};

/* Two processes' clocks: CLOCK_MONOTONIC is one per boot of a host (fr_boot_id). */
typedef struct {
    int64_t sent, now; /* as PING said; the other side's clock */
    uint64_t boot;     /* of the other side's host */
} fr_pong;

void fr_job_encode(const fr_job *job, fr_bytes *out);
/* A job without fragment and cuts: the other side plans them itself and numbers the forward as said. NULL when the
 * payload is no job. */
fr_job *fr_job_decode(fr_bytes *from, int64_t *forward);
void fr_job_free(fr_job *job);

/* Which of the jobs that are out: units number their forwards each from 0. */
static inline int64_t fr_job_key(const fr_job *job) {
    return (int64_t)job->unit << 40 | job->number;
}

/* `facts` travel with READY notes. */
void fr_note_encode(const fr_note *n, const fr_rank_facts *facts, int experts, fr_bytes *out);
/* The note's job is left NULL; *key is its job's, -1 = none. */
bool fr_note_decode(fr_bytes *from, fr_note *n, fr_rank_facts *facts, int64_t *key);

#endif

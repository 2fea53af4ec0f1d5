/*
 * worker: the thread of one rank. It opens the rank, takes commands from the conductor one after the other, and between
 * them asks the rank what has become of its forwards; what happens it tells through notes. When the rank fails, or the
 * world has failed, it lets go what waits on the device, closes the rank and ends.
 */
#ifndef FR_CONDUCT_WORKER_H
#define FR_CONDUCT_WORKER_H

#include "engine/conduct/inject.h"
#include "engine/conduct/mailbox.h"
#include "engine/conduct/rank.h"

typedef enum {
    FR_NOTE_READY,   /* a command other than a forward is done; at the start: the rank is open */
    FR_NOTE_ISSUED,  /* all ops of a forward are with the device */
    FR_NOTE_ENTERED, /* the device has let it in: the unit's next one is wanted */
    FR_NOTE_DONE,    /* it has ended on this rank; `spans` and the arrays of `done` belong to the taker */
    FR_NOTE_FAILED,  /* this rank failed; `err` is the world's */
    FR_NOTE_CLOSED   /* the last note of a rank; `lost`: its device does not answer */
} fr_note_kind;

typedef struct {
    fr_note_kind kind;
    int rank;
    fr_job *job;
    fr_rank_done done;
    fr_timeline spans;
    bool lost;
} fr_note;
void fr_note_free(fr_note *n);

typedef struct {
    const fr_rank_kind *kind;
    void *context; /* of kind->open */
    int rank;
    fr_world *world;
    const fr_plan *plan;
    const fr_rank_needs *needs;
    fr_mailbox *notes; /* of fr_note */
    const fr_inject *inject;
    struct fr_wire *wire; /* to a rank in a process of its own (remote.h); NULL = a thread here */
} fr_worker_options;

typedef struct fr_worker fr_worker;

/* The thread is started; FR_NOTE_READY or FR_NOTE_FAILED says how opening went. Options are copied, what they point to
 * must live until FR_NOTE_CLOSED. */
fr_status fr_worker_open(const fr_worker_options *o, fr_worker **out, fr_error *err);
/* After FR_NOTE_CLOSED: joins the thread. A rank that never closed is left behind: call fr_worker_abandon. */
void fr_worker_close(fr_worker *w);
void fr_worker_abandon(fr_worker *w);

/* Commands, carried out in order. */
void fr_worker_replan(fr_worker *w, const fr_plan *plan, bool spans);
/* Before the clock starts, and before finish: how a rank's process in another place counts time. Waits for its answer.
 */
fr_status fr_worker_compare(fr_worker *w, fr_error *err);
void fr_worker_start(fr_worker *w, int64_t epoch);
void fr_worker_skew(fr_worker *w, int64_t *counts); /* takes the array over */
void fr_worker_forward(fr_worker *w, fr_job *job);
void fr_worker_finish(fr_worker *w);
void fr_worker_stop(fr_worker *w);

/* From any thread, without waiting: lets go what waits on the rank's device for other ranks, for a rank whose own
 * thread stands still and cannot; the worker is then never closed. And what its thread is at ("" = nothing to tell). */
void fr_worker_release(fr_worker *w);
int fr_worker_where(fr_worker *w, char *out, size_t size);

/* Valid after a READY note, until the next command. */
void fr_worker_facts(const fr_worker *w, fr_rank_facts *out);

/* Timed waits of the calling thread end within 1 us of their time: Linux's usual 50 would make naps of 20 last 70. */
void fr_short_naps(void);

#endif

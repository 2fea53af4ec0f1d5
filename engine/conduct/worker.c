#include "engine/conduct/worker.h"

#include "engine/conduct/codec.h"
#include "engine/conduct/remote.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define NAP_NS  20000     /* between two questions while a forward is out */
#define IDLE_NS 100000000 /* between two looks at the world while nothing is to do */

typedef enum { REPLAN, START, SKEW, FORWARD, FINISH, STOP } command_kind;

typedef struct {
    command_kind kind;
    const fr_plan *plan;
    bool spans;
    int64_t epoch;
    int64_t *counts;
    fr_job *job;
} command;

struct fr_worker {
    fr_worker_options o;
    fr_remote *remote; /* the rank is in another process: nothing below is used */
    pthread_t thread;
    fr_mailbox *commands;
    void *self;       /* the rank */
    fr_job *jobs[16]; /* that are out, oldest first */
    int out;
    bool entered, spans, timed, stop;
    fr_rank_facts facts;
    fr_error err;
    pthread_mutex_t lock; /* of release, which any thread may ask for, against close */
    bool released, closed;
};

void fr_short_naps(void) {
    prctl(PR_SET_TIMERSLACK, 1000UL); /* ns */
}

void fr_note_free(fr_note *n) {
    fr_timeline_free(&n->spans);
    free((void *)(uintptr_t)n->done.logits);
    free((void *)(uintptr_t)n->done.runs);
    free((void *)(uintptr_t)n->done.counts);
    n->done = (fr_rank_done){0};
}

static void nap(int64_t ns) {
    const struct timespec t = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    nanosleep(&t, NULL);
}

static void tell(fr_worker *w, fr_note_kind kind, fr_job *job) {
    const fr_note n = {.kind = kind, .rank = w->o.rank, .job = job};
    fr_mailbox_put(w->o.notes, &n);
}

/* ---- injected faults ----------------------------------------------------------------------------------------------*/

static bool injected(const fr_worker *w, fr_inject_kind kind) {
    return w->o.inject && w->o.inject->kind == kind && w->o.inject->rank == w->o.rank;
}

static fr_status inject(fr_worker *w, const fr_job *job) {
    if (injected(w, FR_INJECT_SLOW)) nap(w->o.inject->forward * 1000000);
    if (!w->timed || !w->o.inject || job->number != w->o.inject->forward) return FR_OK;
    if (injected(w, FR_INJECT_FAIL))
        return fr_fail(&w->err, FR_FAILED, "rank %d: forward %lld fails because --inject says so", w->o.rank,
                       (long long)job->number);
    if (!injected(w, FR_INJECT_STALL)) return FR_OK;
    while (!fr_world_failed(w->o.world, NULL, &w->err)) nap(1000000);
    return FR_FAILED;
}

/* ---- commands -----------------------------------------------------------------------------------------------------*/

static fr_status forward(fr_worker *w, fr_job *job) {
    FR_TRY(inject(w, job));
    if (w->out == (int)(sizeof w->jobs / sizeof *w->jobs))
        return fr_fail(&w->err, FR_FAILED, "rank %d: %d forwards are out", w->o.rank, w->out);
    w->jobs[w->out++] = job;
    FR_TRY(w->o.kind->append(w->self, job, &w->err));
    tell(w, FR_NOTE_ISSUED, job);
    return FR_OK;
}

static fr_status obey(fr_worker *w, const command *c) {
    const fr_rank_kind *k = w->o.kind;
    fr_status s = FR_OK;
    switch (c->kind) {
    case FORWARD:
        return forward(w, c->job);
    case STOP:
        w->stop = true;
        return FR_OK;
    case REPLAN:
        w->spans = c->spans;
        s = k->replan(w->self, c->plan, c->spans, &w->err);
        break;
    case START:
        w->timed = true;
        s = k->start(w->self, c->epoch, &w->err);
        break;
    case SKEW:
        s = k->skew(w->self, c->counts, &w->err);
        free(c->counts);
        break;
    case FINISH:
        s = k->finish(w->self, &w->err);
        break;
    }
    if (s != FR_OK) return s;
    k->facts(w->self, &w->facts);
    tell(w, FR_NOTE_READY, NULL);
    return FR_OK;
}

/* ---- forwards that end --------------------------------------------------------------------------------------------*/

static void *copy_of(const void *from, size_t bytes) {
    if (!from || bytes == 0) return NULL;
    void *to = fr_alloc(bytes);
    memcpy(to, from, bytes);
    return to;
}

static fr_status take_in(fr_worker *w) {
    const size_t experts = (size_t)w->o.needs->setup->model.experts;
    fr_note n = {.kind = FR_NOTE_DONE, .rank = w->o.rank};
    int at = 0;
    FR_TRY(w->o.kind->collect(w->self, w->spans ? &n.spans : NULL, &n.done, &w->err));
    while (at < w->out && w->jobs[at]->fragment != n.done.fragment) at++;
    if (at == w->out) return fr_fail(&w->err, FR_FAILED, "rank %d ended a forward that is not out", w->o.rank);
    n.job = w->jobs[at];
    n.done.logits = copy_of(n.done.logits, (size_t)n.done.logits_count * sizeof *n.done.logits);
    n.done.runs = copy_of(n.done.runs, n.done.runs_count * sizeof *n.done.runs);
    n.done.counts = copy_of(n.done.counts, (size_t)n.done.layers * experts * sizeof *n.done.counts);
    if (!w->entered) tell(w, FR_NOTE_ENTERED, n.job);
    w->entered = false;
    memmove(w->jobs + at, w->jobs + at + 1, (size_t)(--w->out - at) * sizeof *w->jobs);
    fr_mailbox_put(w->o.notes, &n);
    return FR_OK;
}

/* *moved: something happened, ask again at once. */
static fr_status look(fr_worker *w, bool *moved) {
    fr_rank_state state;
    *moved = false;
    if (w->out == 0) return FR_OK;
    FR_TRY(w->o.kind->poll(w->self, &state, &w->err));
    if (state == FR_RANK_ENTERED && !w->entered) {
        w->entered = true;
        tell(w, FR_NOTE_ENTERED, w->jobs[0]);
    }
    *moved = state == FR_RANK_DONE;
    return state == FR_RANK_DONE ? take_in(w) : FR_OK;
}

static fr_status serve(fr_worker *w) {
    while (!w->stop) {
        command c;
        bool moved = false;
        FR_TRY(look(w, &moved));
        if (fr_world_failed(w->o.world, NULL, &w->err)) return FR_FAILED;
        if (fr_mailbox_take(w->commands, &c, moved ? 0 : w->out ? NAP_NS : IDLE_NS)) FR_TRY(obey(w, &c));
    }
    return FR_OK;
}

static fr_status open_rank(fr_worker *w) {
    const fr_worker_options *o = &w->o;
    if (injected(w, FR_INJECT_OOM))
        return fr_fail(&w->err, FR_FAILED, "rank %d: out of GPU memory because --inject says so", o->rank);
    void *self = NULL;
    FR_TRY(o->kind->open(o->context, o->rank, o->world, o->plan, o->needs, &self, &w->err));
    pthread_mutex_lock(&w->lock);
    w->self = self;
    pthread_mutex_unlock(&w->lock);
    o->kind->facts(w->self, &w->facts);
    tell(w, FR_NOTE_READY, NULL);
    return FR_OK;
}

static void release(fr_worker *w) {
    pthread_mutex_lock(&w->lock);
    if (w->self && !w->released && !w->closed) {
        w->released = true;
        w->o.kind->release(w->self);
    }
    pthread_mutex_unlock(&w->lock);
}

static void *release_body(void *context) {
    release(context);
    return NULL;
}

/* By a thread of its own: what it calls may wait for the device. */
void fr_worker_release(fr_worker *w) {
    pthread_t thread;
    if (w->remote) return; /* its process hears of the failure */
    if (pthread_create(&thread, NULL, release_body, w) == 0) pthread_detach(thread);
}

int fr_worker_where(fr_worker *w, char *out, size_t size) {
    int waits_for = -1;
    out[0] = 0;
    if (w->remote || pthread_mutex_trylock(&w->lock) != 0) return -1;
    if (w->self && !w->closed && w->o.kind->where) waits_for = w->o.kind->where(w->self, out, size);
    pthread_mutex_unlock(&w->lock);
    return waits_for;
}

static bool close_rank(fr_worker *w, bool lost) {
    pthread_mutex_lock(&w->lock);
    w->closed = true;
    pthread_mutex_unlock(&w->lock);
    return !w->self || w->o.kind->close(w->self, lost);
}

static void *body(void *context) {
    fr_worker *w = context;
    fr_short_naps();
    fr_status s = open_rank(w);
    if (s == FR_OK) s = serve(w);
    /* Told to stop because another rank failed: what this one waits for on its device does not come. */
    if (s == FR_OK && fr_world_failed(w->o.world, NULL, &w->err)) s = FR_FAILED;
    if (s != FR_OK) {
        w->err.status = s;
        fr_world_fail(w->o.world, w->o.rank, &w->err);
        tell(w, FR_NOTE_FAILED, NULL);
        release(w);
    }
    const bool answers = close_rank(w, s != FR_OK);
    const fr_note n = {.kind = FR_NOTE_CLOSED, .rank = w->o.rank, .lost = !answers};
    fr_mailbox_put(w->o.notes, &n);
    return NULL;
}

/* ---- outside ------------------------------------------------------------------------------------------------------*/

static fr_status start_thread(fr_worker *w, fr_error *err) {
    w->commands = fr_mailbox_new(sizeof(command));
    pthread_mutex_init(&w->lock, NULL);
    if (pthread_create(&w->thread, NULL, body, w) == 0) return FR_OK;
    pthread_mutex_destroy(&w->lock);
    fr_mailbox_free(w->commands);
    return fr_fail(err, FR_FAILED, "no thread could be made for rank %d", w->o.rank);
}

fr_status fr_worker_open(const fr_worker_options *o, fr_worker **out, fr_error *err) {
    fr_worker *w = fr_alloc(sizeof *w);
    w->o = *o;
    *out = NULL;
    const fr_status s = o->wire ? fr_remote_open(o, &w->remote, err) : start_thread(w, err);
    if (s == FR_OK)
        *out = w;
    else
        free(w);
    return s;
}

void fr_worker_close(fr_worker *w) {
    command c;
    if (!w) return;
    if (w->remote) {
        fr_remote_close(w->remote);
        free(w);
        return;
    }
    pthread_join(w->thread, NULL);
    while (fr_mailbox_take(w->commands, &c, 0)) free(c.counts);
    fr_mailbox_free(w->commands);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

/* Its memory stays: the thread may still look at it until the process ends. */
void fr_worker_abandon(fr_worker *w) {
    if (w->remote)
        fr_remote_abandon(w->remote);
    else
        pthread_detach(w->thread);
}

/* To the thread, or, with a payload that says the same, to the other process. */
static void send(fr_worker *w, const command *c, uint32_t kind, const void *payload, size_t bytes) {
    if (!w->remote) {
        fr_mailbox_put(w->commands, c);
        return;
    }
    fr_bytes b = {0};
    fr_bytes_put(&b, payload, bytes);
    fr_remote_command(w->remote, kind, &b);
    fr_bytes_free(&b);
}

void fr_worker_replan(fr_worker *w, const fr_plan *plan, bool spans) {
    send(w, &(command){.kind = REPLAN, .plan = plan, .spans = spans}, FR_WIRE_REPLAN, &spans, sizeof spans);
}
fr_status fr_worker_compare(fr_worker *w, fr_error *err) {
    return w->remote ? fr_remote_compare(w->remote, err) : FR_OK;
}
void fr_worker_start(fr_worker *w, int64_t epoch) {
    if (w->remote)
        fr_remote_start(w->remote, epoch);
    else
        fr_mailbox_put(w->commands, &(command){.kind = START, .epoch = epoch});
}
void fr_worker_skew(fr_worker *w, int64_t *counts) {
    if (!w->remote) {
        fr_mailbox_put(w->commands, &(command){.kind = SKEW, .counts = counts});
        return;
    }
    const fr_setup *s = w->o.needs->setup;
    const size_t n = (size_t)fr_layout_layers(&s->experiment.layout, &s->model) * (size_t)s->model.experts;
    fr_bytes b = {0};
    fr_bytes_put_array(&b, counts, n, sizeof *counts);
    fr_remote_command(w->remote, FR_WIRE_SKEW, &b);
    fr_bytes_free(&b);
    free(counts);
}
void fr_worker_forward(fr_worker *w, fr_job *job) {
    if (w->remote)
        fr_remote_forward(w->remote, job);
    else
        fr_mailbox_put(w->commands, &(command){.kind = FORWARD, .job = job});
}
void fr_worker_finish(fr_worker *w) {
    send(w, &(command){.kind = FINISH}, FR_WIRE_FINISH, NULL, 0);
}
void fr_worker_stop(fr_worker *w) {
    send(w, &(command){.kind = STOP}, FR_WIRE_STOP, NULL, 0);
}

void fr_worker_facts(const fr_worker *w, fr_rank_facts *out) {
    if (w->remote)
        fr_remote_facts(w->remote, out);
    else
        *out = w->facts;
}

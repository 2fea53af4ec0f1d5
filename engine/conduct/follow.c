#include "engine/conduct/follow.h"

#include "engine/conduct/codec.h"
#include "engine/conduct/conduct_state.h"
#include "engine/world/peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define LISTEN_NS 100000000
#define GRACE_NS  8000000000 /* for the rank to close, once there is nobody to tell */

typedef struct {
    const fr_setup *setup;
    int rank;
    uint64_t boot;
    fr_wire *wire;
    fr_world *world;
    fr_planner *planner, *old_planner;
    fr_plan *plan, *old_plan;
    fr_worker *worker;
    fr_mailbox *notes;
    pthread_t pump;
    pthread_mutex_t lock; /* of what follows */
    fr_job *ended[64];    /* jobs to free, by the thread that plans */
    int ended_count;
    bool closed, lost;
} follower;

static bool is_closed(follower *f) {
    pthread_mutex_lock(&f->lock);
    const bool closed = f->closed;
    pthread_mutex_unlock(&f->lock);
    return closed;
}

/* Sends the worker's notes. */
static void *pump(void *context) {
    follower *f = context;
    for (;;) {
        fr_note n;
        fr_rank_facts facts;
        fr_bytes payload = {0};
        if (!fr_mailbox_take(f->notes, &n, LISTEN_NS)) continue;
        fr_worker_facts(f->worker, &facts);
        fr_note_encode(&n, &facts, f->setup->model.experts, &payload);
        (void)fr_wire_send(f->wire, FR_WIRE_NOTE, &payload, NULL); /* who is gone is found out by the receiver */
        fr_bytes_free(&payload);
        fr_note_free(&n);
        pthread_mutex_lock(&f->lock);
        if (n.kind == FR_NOTE_DONE) f->ended[f->ended_count++] = n.job;
        if (n.kind == FR_NOTE_CLOSED) f->closed = true;
        if (n.kind == FR_NOTE_CLOSED) f->lost = n.lost;
        pthread_mutex_unlock(&f->lock);
        if (n.kind == FR_NOTE_CLOSED) return NULL;
    }
}

static void free_ended(follower *f) {
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < f->ended_count; i++) fr_job_free(f->ended[i]);
    f->ended_count = 0;
    pthread_mutex_unlock(&f->lock);
}

static fr_status open_planner(follower *f, fr_error *err) {
    FR_TRY(fr_setup_planner(f->setup, false, &f->planner, err));
    f->plan = fr_plan_static(fr_planner_plan(f->planner));
    return FR_OK;
}

static fr_status replan(follower *f, bool spans, fr_error *err) {
    free_ended(f);
    fr_planner_close(f->old_planner);
    fr_plan_free(f->old_plan);
    f->old_planner = f->planner;
    f->old_plan = f->plan;
    f->planner = NULL;
    f->plan = NULL;
    FR_TRY(open_planner(f, err));
    fr_worker_replan(f->worker, f->plan, spans);
    return FR_OK;
}

static fr_status forward(follower *f, fr_bytes *payload, fr_error *err) {
    int64_t number = 0;
    fr_job *job = fr_job_decode(payload, &number);
    if (!job) return fr_fail(err, FR_FAILED, "the conductor sent half a forward");
    free_ended(f);
    fr_batch *batches = fr_alloc((size_t)job->slots * sizeof *batches);
    for (int s = 0; s < job->slots; s++) batches[s] = (fr_batch){job->batches[s].sequences, job->batches[s].count};
    const fr_status s = fr_planner_forward(f->planner, job->unit, batches, &job->fragment, err);
    free(batches);
    if (s != FR_OK) {
        fr_job_free(job);
        return s;
    }
    job->fragment->forward = number; /* forwards of other units count too */
    job->cuts = fr_planner_cuts(f->planner);
    fr_worker_forward(f->worker, job);
    return FR_OK;
}

static void world_failed(follower *f, fr_bytes *payload) {
    int rank = 0;
    fr_error why = {.status = FR_FAILED, .text = "the run has failed"};
    if (fr_bytes_take(payload, &rank, sizeof rank)) (void)fr_bytes_take(payload, &why, sizeof why);
    fr_world_wired_failed(f->world, rank, &why);
}

/* At once, by the thread that receives: the answer's delay is the error. */
static fr_status answer_ping(follower *f, fr_bytes *payload, fr_error *err) {
    fr_pong pong = {.now = fr_monotonic(), .boot = f->boot};
    fr_bytes out = {0};
    if (!fr_bytes_take(payload, &pong.sent, sizeof pong.sent)) return FR_OK;
    fr_bytes_put(&out, &pong, sizeof pong);
    const fr_status s = fr_wire_send(f->wire, FR_WIRE_PONG, &out, err);
    fr_bytes_free(&out);
    return s;
}

static fr_status obey(follower *f, uint32_t kind, fr_bytes *payload, fr_error *err) {
    bool spans = false;
    int64_t epoch = 0;
    size_t count;
    switch (kind) {
    case FR_WIRE_MET:
        fr_world_wired_met(f->world, payload);
        break;
    case FR_WIRE_FAIL:
        world_failed(f, payload);
        break;
    case FR_WIRE_REPLAN:
        if (!fr_bytes_take(payload, &spans, sizeof spans)) break;
        return replan(f, spans, err);
    case FR_WIRE_START:
        if (fr_bytes_take(payload, &epoch, sizeof epoch)) fr_worker_start(f->worker, epoch);
        break;
    case FR_WIRE_SKEW:
        fr_worker_skew(f->worker, fr_bytes_take_array(payload, sizeof(int64_t), &count));
        break;
    case FR_WIRE_FORWARD:
        return forward(f, payload, err);
    case FR_WIRE_FINISH:
        fr_worker_finish(f->worker);
        break;
    case FR_WIRE_PING:
        return answer_ping(f, payload, err);
    case FR_WIRE_STOP:
        fr_worker_stop(f->worker);
        break;
    default:
        break;
    }
    return FR_OK;
}

/* Until the rank has closed. When the conductor is gone the world has failed, and the rank closes by itself. */
static fr_status listen(follower *f, fr_error *err) {
    fr_status failed = FR_OK;
    int64_t deadline = INT64_MAX;
    while (!is_closed(f) && fr_monotonic() < deadline) {
        uint32_t kind = 0;
        fr_bytes payload = {0};
        fr_error now = {0};
        fr_status s = failed == FR_OK ? fr_wire_receive(f->wire, LISTEN_NS, &kind, &payload, &now) : FR_OK;
        if (failed != FR_OK) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        if (s == FR_OK && kind) s = obey(f, kind, &payload, &now);
        fr_bytes_free(&payload);
        if (s == FR_OK) continue;
        failed = s;
        if (err) *err = now;
        fr_world_fail(f->world, f->rank, &now);
        deadline = fr_monotonic() + GRACE_NS;
    }
    return failed;
}

static fr_status open_worker(follower *f, const fr_conduct_options *o, const fr_rank_needs *needs, fr_error *err) {
    const fr_worker_options wo = {.kind = o->kind,
                                  .context = o->context,
                                  .rank = f->rank,
                                  .world = f->world,
                                  .plan = f->plan,
                                  .needs = needs,
                                  .notes = f->notes,
                                  .inject = &o->inject};
    FR_TRY(fr_worker_open(&wo, &f->worker, err));
    if (pthread_create(&f->pump, NULL, pump, f) == 0) return FR_OK;
    return fr_fail(err, FR_FAILED, "rank %d: no thread could be made", f->rank);
}

fr_status fr_follow(const fr_setup *setup, const fr_conduct_options *o, int rank, fr_wire *wire, bool *lost,
                    fr_error *err) {
    follower *f = fr_alloc(sizeof *f);
    fr_rank_needs *needs = fr_alloc(sizeof *needs);
    *f = (follower){
        .setup = setup, .rank = rank, .boot = fr_boot_id(), .wire = wire, .notes = fr_mailbox_new(sizeof(fr_note))};
    pthread_mutex_init(&f->lock, NULL);
    f->world = fr_world_wired(fr_layout_gpus(&setup->experiment.layout), rank, o->timeout_s, wire);
    fr_world_listen(f->world, &o->ear);
    fr_conduct_needs(setup, o, needs);
    fr_status s = open_planner(f, err);
    if (s == FR_OK) s = open_worker(f, o, needs, err);
    if (s == FR_OK) s = listen(f, err);
    *lost = f->worker != NULL && (!is_closed(f) || f->lost);
    if (*lost) return s; /* its thread may still look at all of it */
    if (f->worker) {
        pthread_join(f->pump, NULL);
        fr_worker_close(f->worker);
    }
    free_ended(f);
    fr_planner_close(f->planner);
    fr_planner_close(f->old_planner);
    fr_plan_free(f->plan);
    fr_plan_free(f->old_plan);
    fr_mailbox_free(f->notes);
    fr_world_close(f->world);
    pthread_mutex_destroy(&f->lock);
    free(needs);
    free(f);
    return s;
}

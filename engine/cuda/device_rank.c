#include "engine/cuda/device_rank.h"

#include "engine/cuda/exec.h"
#include "engine/cuda/transport/transport.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const fr_device_rank_options *o;
    const fr_rank_needs *needs;
    fr_world *world;
    int rank, device, first_layer, layers; /* of the rank's stage */
    fr_weights *weights;
    fr_transport *transport;
    fr_exec *exec;
    fr_anchor opened; /* before weights are made: what passes until the start tells how fast the device's clock runs */
    fr_rank_facts facts;
} device_rank;

static fr_status close_after(device_rank *d, fr_status s);

static void tell(const device_rank *d, const char *stage) {
    fr_world_tell(d->world, d->rank, stage);
}

static fr_status open_weights(device_rank *d, fr_error *err) {
    const fr_setup *s = d->needs->setup;
    const fr_layout *l = &s->experiment.layout;
    FR_TRY(fr_weights_open(&s->model, l, d->rank, d->world, d->transport, &d->weights, err));
    if (d->o->weights) return fr_weights_load(d->weights, &s->model, d->o->weights, err);
    return fr_weights_random(d->weights, &s->model, fr_layout_layers(l, &s->model), s->experiment.seed, err);
}

static fr_status open_transport(device_rank *d, const fr_plan *plan, fr_error *err) {
    const fr_rank_needs *n = d->needs;
    const fr_setup *s = n->setup;
    fr_activations room;
    fr_layout_room(&s->experiment.layout, &s->model, &n->load, &room);
    const fr_transport_options o = {.world = d->world,
                                    .rank = d->rank,
                                    .device = d->device,
                                    .plan = plan,
                                    .layout = &n->setup->experiment.layout,
                                    .model = &n->setup->model,
                                    .tokens = n->load.tokens,
                                    .arriving = room.arriving,
                                    .timeout_s = n->timeout_s};
    return fr_transport_open(&o, &d->transport, err);
}

static fr_status open_exec(device_rank *d, const fr_plan *plan, fr_error *err) {
    const fr_rank_needs *n = d->needs;
    const fr_exec_options o = {.plan = plan,
                               .model = &n->setup->model,
                               .layout = &n->setup->experiment.layout,
                               .weights = d->weights,
                               .cost = n->setup->cost,
                               .world = d->world,
                               .transport = d->transport,
                               .load = n->load,
                               .opened = &d->opened,
                               .rank = d->rank,
                               .positions = n->positions,
                               .candidates = n->candidates,
                               .vocabulary = n->vocabulary,
                               .kv_tokens = n->kv_tokens,
                               .made_up_prefix = n->made_up_prefix,
                               .varied = n->varied,
                               .one_length = n->one_length,
                               .spans = false,
                               .counts = true,
                               .pulls = d->o->pulls,
                               .check_ops = d->o->check_ops,
                               .timeout_s = n->timeout_s};
    return fr_exec_open(&o, &d->exec, err);
}

static fr_status open_all(device_rank *d, const fr_plan *plan, fr_error *err) {
    const cudaError_t e = cudaSetDevice(d->device);
    struct cudaDeviceProp p;
    if (e != cudaSuccess)
        return fr_fail(err, FR_FAILED, "rank %d: cudaSetDevice(%d) failed: %s", d->rank, d->device,
                       cudaGetErrorString(e));
    if (cudaGetDeviceProperties(&p, d->device) == cudaSuccess) {
        snprintf(d->facts.name, sizeof d->facts.name, "%.90s", p.name);
        if (p.major != 9)
            return fr_fail(err, FR_FAILED,
                           "rank %d: device %d is a %s of compute capability %d.%d: the kernels are "
                           "built for 9.0a",
                           d->rank, d->device, p.name, p.major, p.minor);
    }
    FR_TRY(fr_anchor_take(NULL, &d->opened, err));
    tell(d, "is on its GPU");
    FR_TRY(open_transport(d, plan, err));
    tell(d, "is connected");
    FR_TRY(open_weights(d, err));
    tell(d, "has its weights");
    FR_TRY(open_exec(d, plan, err));
    tell(d, "is open");
    return FR_OK;
}

/* Names the rank in what went wrong, where the message does not. */
static fr_status named(const device_rank *d, fr_status s, fr_error *err) {
    char rank[24];
    snprintf(rank, sizeof rank, "rank %d", d->rank);
    if (s == FR_OK || strstr(err->text, rank)) return s;
    const fr_error inner = *err;
    return fr_fail(err, s, "rank %d: %.900s", d->rank, inner.text);
}

static fr_status open_rank(void *context, int rank, fr_world *world, const fr_plan *plan, const fr_rank_needs *needs,
                           void **self, fr_error *err) {
    device_rank *d = fr_alloc(sizeof *d);
    const fr_layout *l = &needs->setup->experiment.layout;
    fr_place place;
    int end;
    d->o = context;
    d->needs = needs;
    d->rank = rank;
    d->world = world;
    d->device = d->o->first_device + rank;
    d->facts.clock_error_ns = d->facts.clock_drift_ppm = NAN;
    fr_layout_place(l, rank, &place);
    fr_layout_stage_layers(l, &needs->setup->model, place.stage, &d->first_layer, &end);
    d->layers = end - d->first_layer;
    const fr_status s = named(d, open_all(d, plan, err), err);
    if (s != FR_OK) return close_after(d, s);
    *self = d;
    return FR_OK;
}

static fr_status replan(void *self, const fr_plan *plan, bool spans, fr_error *err) {
    return fr_exec_replan(((device_rank *)self)->exec, plan, spans, err);
}

static fr_status start(void *self, int64_t epoch, fr_error *err) {
    return fr_exec_start(((device_rank *)self)->exec, epoch, err);
}

static fr_status skew(void *self, const int64_t *counts, fr_error *err) {
    device_rank *d = self;
    const fr_setup *s = d->needs->setup;
    return fr_weights_skew(d->weights, &s->model, s->routing, fr_layout_layers(&s->experiment.layout, &s->model),
                           counts, err);
}

static fr_status append(void *self, const fr_job *job, fr_error *err) {
    device_rank *d = self;
    fr_exec_batch batches[64];
    fr_place place;
    if (job->slots > (int)(sizeof batches / sizeof *batches))
        return fr_fail(err, FR_FAILED, "a unit of %d attention groups", job->slots);
    fr_layout_place(&d->needs->setup->experiment.layout, d->rank, &place);
    for (int s = 0; s < job->slots; s++) {
        const fr_job_batch *b = &job->batches[s];
        batches[s] = (fr_exec_batch){b->sequences, b->count, b->ids, b->candidates, b->owners};
    }
    for (int s = place.slot; s < place.slot + place.batches; s++) {
        const fr_job_batch *own = &job->batches[s];
        for (uint32_t i = 0; i < own->trims_count; i++)
            fr_exec_kv_trim(d->exec, own->trims[i].handle, own->trims[i].tokens);
    }
    return fr_exec_append(d->exec, job->fragment, job->cuts, batches, err);
}

static fr_status poll_rank(void *self, fr_rank_state *state, fr_error *err) {
    static const fr_rank_state states[] = {[FR_EXEC_NONE] = FR_RANK_NONE,
                                           [FR_EXEC_RUNNING] = FR_RANK_RUNNING,
                                           [FR_EXEC_ENTERED] = FR_RANK_ENTERED,
                                           [FR_EXEC_DONE] = FR_RANK_DONE};
    device_rank *d = self;
    fr_exec_state s;
    FR_TRY(fr_transport_check(d->transport, err));
    FR_TRY(fr_exec_poll(d->exec, &s, err));
    *state = states[s];
    return FR_OK;
}

static fr_status collect(void *self, fr_timeline *spans, fr_rank_done *out, fr_error *err) {
    _Static_assert(sizeof(fr_float_run) == sizeof(fr_exec_run), "runs are handed through");
    device_rank *d = self;
    fr_exec_done e;
    FR_TRY(fr_exec_collect(d->exec, spans, &e, err));
    *out = (fr_rank_done){.fragment = e.fragment,
                          .begin = e.record.start,
                          .end = e.record.end,
                          .answer = e.answer,
                          .busy = e.record.parts.compute,
                          .late = e.late_ns,
                          .logits = e.logits,
                          .logits_count = e.logits_count,
                          .runs = (const fr_float_run *)e.runs,
                          .runs_count = (uint32_t)e.runs_count,
                          .counts = e.counts,
                          .first_layer = d->first_layer,
                          .layers = d->layers};
    return FR_OK;
}

static fr_status finish(void *self, fr_error *err) {
    device_rank *d = self;
    size_t available = 0, total = 0;
    if (cudaMemGetInfo(&available, &total) == cudaSuccess) d->facts.memory_bytes = (int64_t)(total - available);
    return fr_exec_finish(d->exec, &d->facts.clock_error_ns, &d->facts.clock_drift_ppm, err);
}

static void facts(void *self, fr_rank_facts *out) {
    device_rank *d = self;
    d->facts.weights_bytes = d->weights->bytes;
    d->facts.weights_s = d->weights->seconds;
    d->facts.activation_bytes = fr_exec_bytes(d->exec) + fr_transport_bytes(d->transport);
    d->facts.communicator_bytes = fr_transport_communicators(d->transport);
    memcpy(d->facts.launched, fr_exec_launched(d->exec), sizeof d->facts.launched);
    *out = d->facts;
}

static void release(void *self) {
    const device_rank *d = self;
    fr_transport_abort(d->transport); /* first: its communicators are let go without asking the device */
    cudaSetDevice(d->device);         /* any thread may come here */
    if (d->exec) fr_exec_release(d->exec);
}

static int where(void *self, char *out, size_t size) {
    char text[48];
    const fr_exec *x = ((device_rank *)self)->exec;
    const uint64_t op = fr_exec_issuing(x);
    if (op == 0) return -1;
    fr_op_id_text(op, text);
    snprintf(out, size, "%s", text);
    return fr_exec_waits_for(x);
}

/* All ranks have come to the same place. */
static bool met(const device_rank *d) {
    return fr_world_exchange(d->world, d->rank, NULL, 0, NULL, NULL) == FR_OK;
}

/*
 * Peers read this rank's weights, on the device and in pinned memory, and write its counters and buffers: memory goes
 * when all devices are done, and nobody has it mapped any more. After a failure it stays until the process ends, as
 * nobody knows what still reaches into it.
 */
static bool close_rank(void *self, bool lost) {
    device_rank *d = self;
    const bool answers = !d->exec || fr_exec_settle(d->exec);
    tell(d, lost ? "closes after a failure" : answers ? "closes" : "closes: its GPU does not answer");
    bool all = !lost && answers && met(d);
    if (all) {
        fr_transport_unshare(d->transport);
        tell(d, "has let go of others' memory");
        all = met(d);
    }
    if (!all && d->exec) fr_exec_give_up(d->exec);
    fr_exec_close(d->exec);
    tell(d, "has let go of its streams and buffers");
    if (answers) fr_anchor_close(&d->opened);
    if (all) fr_weights_close(d->weights);
    fr_transport_close(d->transport, !all);
    tell(d, "is closed");
    free(d);
    return answers;
}

static fr_status close_after(device_rank *d, fr_status s) {
    close_rank(d, true);
    return s;
}

const fr_rank_kind *fr_device_rank_kind(void) {
    static const fr_rank_kind kind = {open_rank, replan, start, skew,    append, poll_rank,
                                      collect,   finish, facts, release, where,  close_rank};
    return &kind;
}

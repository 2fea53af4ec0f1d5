#include "engine/cuda/run.h"

#include "engine/conduct/follow.h"
#include "engine/conduct/procs.h"
#include "engine/cuda/device_rank.h"
#include "engine/cuda/supports.h"
#include "engine/cuda/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LEAVE_S 3.0 /* after a failure: for ranks' processes to end, which have heard of it */

static fr_status check_devices(const fr_run_options *o, int ranks, fr_run_output *out, fr_error *err) {
    fr_versions built;
    int count = 0;
    FR_TRY(fr_device_versions(&out->versions, &built, err));
    FR_TRY(fr_device_count(&count, err));
    if (o->device < 0 || o->device + ranks > count)
        return fr_fail(err, FR_BAD_INPUT, "--device %d: the layout takes %d GPU(s) from there on, this machine has %d",
                       o->device, ranks, count);
    for (int r = 0; r < ranks; r++) {
        fr_device_facts *d = &out->device[r];
        FR_TRY(fr_device_describe(o->device + r, d, err));
        if (d->major != 9)
            return fr_fail(err, FR_FAILED,
                           "device %d is a %s of compute capability %d.%d: the kernels are built for 9.0a",
                           o->device + r, d->name, d->major, d->minor);
    }
    return FR_OK;
}

/* Clocks and power while the clock runs. */
typedef struct {
    fr_meter *meters[FR_MAX_DEVICES];
    fr_run_output *out;
    int first, ranks;
} metered;

static void playing(void *context, bool on) {
    metered *m = context;
    for (int r = 0; r < m->ranks; r++) {
        if (on) {
            fr_meter_begin(m->meters[r]);
        } else {
            fr_meter_stop(m->meters[r], &m->out->meter[r]);
            m->meters[r] = NULL;
        }
    }
}

/* Before warming up, since it takes long. */
static void open_meters(metered *m) {
    for (int r = 0; r < m->ranks; r++) m->meters[r] = fr_meter_open(m->first + r);
}

/* Of a run that did not come to its end. */
static void close_meters(metered *m) {
    fr_meter_reading none;
    for (int r = 0; r < m->ranks; r++) fr_meter_stop(m->meters[r], &none);
}

/* What NVML saw: energy, and the clock as the simulator gives it too. On other hosts nobody looks: then the clock is
 * this host's, and the energy of all is unknown. */
static void fill_meters(const fr_run_output *o, fr_result *r) {
    double watts = 0, mhz = 0;
    int seen = 0;
    for (int i = 0; i < o->c.ranks; i++) {
        watts += o->meter[i].watts;
        mhz += o->meter[i].sm_mhz;
        seen += o->meter[i].samples > 0;
    }
    r->clock_mhz = seen > 0 ? mhz / seen : NAN;
    if (watts > 0 && seen == o->c.ranks && r->tokens > 0)
        r->joules_per_mtoken = (double)r->elapsed_ns * 1e-9 * watts / ((double)r->tokens * 1e-6);
}

/* What a rank's own process needs. */
typedef struct {
    const fr_setup *setup;
    const fr_conduct_options *o;
} rank_process;

static void follow(void *context, int rank, fr_wire *wire) {
    const rank_process *p = context;
    bool lost = false;
    fr_error err;
    const fr_status s = fr_follow(p->setup, p->o, rank, wire, &lost, &err);
    _exit(lost || s != FR_OK ? FR_FAILED : 0); /* the conductor knows why and says so */
}

/* Under MPI: the device of a rank is its place on its host, unless the launcher shows each process only its own. */
static fr_status local_device(const fr_run_options *o, int *device, fr_error *err) {
    int count = 0;
    FR_TRY(fr_device_count(&count, err));
    *device = o->device + (count > 1 ? o->local : 0);
    if (*device < count) return FR_OK;
    return fr_fail(err, FR_BAD_INPUT,
                   "rank %d is process %d of its host, which has %d GPU(s) from --device %d on: start as many "
                   "processes a host as it has GPUs",
                   o->rank, o->local + 1, count - o->device, o->device);
}

/* Ranks whose devices this process can see: under MPI, its own. */
static int here(const fr_run_options *o, int ranks) {
    return o->wires ? 1 : ranks;
}

/* One rank for a conductor elsewhere. */
static fr_status follow_wire(const fr_setup *setup, const fr_run_options *o, const fr_conduct_options *c,
                             fr_run_output *out, fr_error *err) {
    fr_device_rank_options *d = c->context;
    int device = 0;
    FR_TRY(fr_device_environment(err));
    FR_TRY(local_device(o, &device, err));
    d->first_device = device - o->rank;
    return fr_follow(setup, c, o->rank, o->conductor, &out->device_lost, err);
}

/* Ranks elsewhere say themselves what they run on. */
static void name_devices(fr_run_output *out) {
    for (int r = 0; r < out->c.ranks && out->c.facts; r++)
        if (!out->device[r].name[0])
            snprintf(out->device[r].name, sizeof out->device[r].name, "%s", out->c.facts[r].name);
}

/* Processes first: CUDA does not survive a fork. */
static fr_status conduct(const fr_setup *setup, const fr_run_options *o, fr_conduct_options *c, fr_run_output *out,
                         fr_error *err) {
    rank_process process = {setup, c};
    fr_procs *procs = NULL;
    const int ranks = out->ranks;
    FR_TRY(fr_device_environment(err));
    if (o->procs) FR_TRY(fr_procs_open(ranks, follow, &process, &procs, err));
    c->wires = procs ? fr_procs_wires(procs) : o->wires;
    fr_status s = check_devices(o, here(o, ranks), out, err);
    if (s == FR_OK) s = fr_world_open_threads(ranks, o->timeout_s, &c->world, err);
    if (s == FR_OK && c->wires) fr_world_spread(c->world);
    if (s == FR_OK) open_meters(c->playing_context);
    if (s == FR_OK) s = fr_conduct(setup, c, &out->c, err);
    name_devices(out);
    /* After a failure the libraries' own ends may wait for a device or a communicator that was given up. */
    out->device_lost = out->c.lost || (s == FR_FAILED && out->c.ranks > 0);
    if (out->device_lost) { /* threads may be left that read all of this */
        fr_procs_await(procs, LEAVE_S);
        return s;
    }
    fr_procs_close(procs, o->timeout_s);
    fr_world_tell(c->world, -1, "all processes have ended");
    fr_world_close(c->world);
    return s;
}

/* What ranks go on reading when they are left behind. */
typedef struct {
    fr_device_rank_options device;
    fr_conduct_options c;
    metered m;
} kept;

static fr_status run(const fr_setup *setup, const fr_run_options *o, fr_run_output *out, fr_error *err) {
    kept *k = fr_alloc(sizeof *k);
    k->m = (metered){.out = out, .first = o->device, .ranks = here(o, out->ranks)};
    k->device = (fr_device_rank_options){
        .weights = o->weights, .first_device = o->device, .pulls = o->pulls, .check_ops = o->check_ops};
    k->c = (fr_conduct_options){.kind = fr_device_rank_kind(),
                                .context = &k->device,
                                .requests = o->requests,
                                .requests_count = o->requests_count,
                                .prompts = o->prompts,
                                .random_weights = !o->weights,
                                .fit_rounds = o->fit_rounds,
                                .spans = o->spans,
                                .logits = o->logits,
                                .sequence_base = o->sequence_base,
                                .warmup_s = o->warmup_s,
                                .timeout_s = o->timeout_s,
                                .ear = o->ear,
                                .playing = playing,
                                .playing_context = &k->m};
    fr_status s = FR_OK;
    if (o->inject) s = fr_inject_parse(o->inject, out->ranks, &k->c.inject, err);
    if (s == FR_OK) s = o->conductor ? follow_wire(setup, o, &k->c, out, err) : conduct(setup, o, &k->c, out, err);
    close_meters(&k->m);
    fill_meters(out, &out->c.result);
    if (!out->device_lost) free(k);
    return s;
}

fr_status fr_run(const fr_setup *setup, const fr_run_options *o, fr_run_output *out, fr_error *err) {
    const int ranks = fr_layout_gpus(&setup->experiment.layout);
    *out = (fr_run_output){.ranks = ranks};
    if (!setup->fits) return fr_fail(err, FR_FAILED, "does not fit: %s", setup->reason);
    if (ranks > FR_MAX_DEVICES)
        return fr_fail(err, FR_BAD_INPUT, "the layout takes %d GPUs: one process drives at most %d", ranks,
                       FR_MAX_DEVICES);
    FR_TRY(fr_supports(setup, err));
    out->meter = fr_alloc((size_t)ranks * sizeof *out->meter);
    out->device = fr_alloc((size_t)ranks * sizeof *out->device);
    return run(setup, o, out, err);
}

void fr_run_output_free(fr_run_output *o) {
    fr_conducted_free(&o->c);
    free(o->meter);
    free(o->device);
    *o = (fr_run_output){0};
}

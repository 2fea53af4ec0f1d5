/* forerun run: one layout, one workload, on this machine's GPU; predicted beside measured. */
#include "engine/cuda/commands.h"
#include "engine/cuda/run.h"
#include "engine/plan/critical.h"
#include "engine/report.h"
#include "sim/cli/cli.h"
#include "sim/driver.h"
#include "traces/trace.h"
#ifdef FR_MPI
#include "sim/mpi/mpi_sweep.h"
#include "sim/mpi/mpi_wire.h"
#endif

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A run, what it ran on, and the simulator's opinion of it. */
typedef struct {
    fr_setup setup;
    fr_trace *trace;
    fr_prompts prompts;
    fr_request *prompt_requests;
    fr_run_options options;
    double began; /* s */
    fr_run_output out;
    fr_result predicted;
    bool has_prediction;
} job;

static void job_free(job *j) {
    fr_run_output_free(&j->out);
    fr_trace_close(j->trace);
    fr_prompts_free(&j->prompts);
    free(j->prompt_requests);
    fr_setup_close(&j->setup);
}

/* ---- requests -----------------------------------------------------------------------------------------------------*/

static fr_status open_trace(job *j, const char *exe, fr_error *err) {
    FR_TRY(fr_drive_trace(&j->setup, exe, &j->trace, err));
    j->options.requests = fr_trace_requests(j->trace);
    j->options.requests_count = fr_trace_count(j->trace);
    return FR_OK;
}

static fr_status open_prompts(job *j, const char *path, fr_error *err) {
    FR_TRY(fr_prompts_open(path, j->setup.model.vocab, &j->prompts, err));
    j->prompt_requests = fr_alloc(j->prompts.count * sizeof *j->prompt_requests);
    for (uint32_t i = 0; i < j->prompts.count; i++)
        j->prompt_requests[i] = (fr_request){.id = i,
                                             .tokens = j->prompts.prompts[i].tokens,
                                             .prefix_id = -1,
                                             .blocks = j->prompts.prompts[i].blocks,
                                             .blocks_count = j->prompts.prompts[i].tokens / FR_PROMPT_BLOCK,
                                             .block_tokens = FR_PROMPT_BLOCK,
                                             .candidates = j->prompts.prompts[i].candidates_count};
    j->options.requests = j->prompt_requests;
    j->options.requests_count = j->prompts.count;
    j->options.prompts = &j->prompts;
    return FR_OK;
}

/*
 * The default prefix cache: what the simulator would take (memory that the layout leaves), less a tenth for what memory
 * estimates leave out; nothing where no request shares anything. Set in the setup, so that the prediction has the same.
 */
static void size_cache(job *j) {
    fr_experiment *e = &j->setup.experiment;
    bool shares = false;
    if (e->cache_tokens >= 0) return;
    for (int64_t i = 0; i < j->options.requests_count && !shares; i++)
        shares = j->options.requests[i].blocks_count > 0 || j->options.requests[i].prefix_id >= 0;
    const int64_t left = j->setup.machine.hbm_bytes - j->setup.memory.total;
    const int64_t layers = fr_layout_layers(&e->layout, &j->setup.model);
    const int64_t each = fr_model_kv_bytes_layer(&j->setup.model) * layers / e->layout.pp / e->layout.tp;
    e->cache_tokens = shares && e->layout.kv_cache && left > 0 ? left / each * 9 / 10 : 0;
}

static fr_status open_requests(job *j, const cli_args *a, const char *exe, fr_error *err) {
    const char *prompts = cli_value(a, "prompts");
    if (prompts)
        FR_TRY(open_prompts(j, prompts, err));
    else if (j->setup.experiment.trace[0])
        FR_TRY(open_trace(j, exe, err));
    else
        return FR_OK;
    int64_t longest = 0;
    for (int64_t i = 0; i < j->options.requests_count; i++)
        longest = fr_max_i64(longest, j->options.requests[i].tokens);
    FR_TRY(fr_setup_size(&j->setup, longest, err));
    size_cache(j);
    return FR_OK;
}

/* Prompts are a trace of their own, all there at once; nothing is kept between forwards. */
static fr_status make_setup(job *j, const cli_args *a, fr_error *err) {
    const char *prompts = cli_value(a, "prompts"), *weights = cli_value(a, "weights");
    fr_experiment e;
    FR_TRY(cli_experiment(a, &e, err));
    if (e.what_if[0])
        return fr_fail(
            err, FR_BAD_INPUT,
            "--what-if acts on nothing here: it needs forerun simulate, as a live run is on the machine as it is");
    if (prompts && e.trace[0]) return fr_fail(err, FR_BAD_INPUT, "--prompts and --trace: give one of them");
    if (prompts && !cli_value(a, "answers")) return fr_fail(err, FR_BAD_INPUT, "--prompts: say --answers FILE too");
    if (!prompts && cli_value(a, "answers")) return fr_fail(err, FR_BAD_INPUT, "--answers needs --prompts FILE");
    if (prompts) {
        snprintf(e.trace, sizeof e.trace, "%s", prompts);
        e.offline = true;
    }
    if (weights && !fr_experiment_given(&e, "model")) snprintf(e.model, sizeof e.model, "%s/config.json", weights);
    if (prompts && e.cache_tokens < 0) e.cache_tokens = 0;
    j->options.weights = weights;
    return fr_setup_open(&e, &j->setup, err);
}

/* A line a stage, in one write: processes of a run share stderr. */
static void tell_stage(void *context, int rank, const char *stage) {
    const double s = fr_monotonic_s() - *(const double *)context;
    if (rank < 0)
        fprintf(stderr, "forerun: %7.3f s         %s\n", s, stage);
    else
        fprintf(stderr, "forerun: %7.3f s rank %-3d %s\n", s, rank, stage);
}

static fr_status read_options(job *j, const cli_args *a, fr_error *err) {
    const char *warmup = cli_value(a, "warmup"), *timeout = cli_value(a, "timeout"), *device = cli_value(a, "device");
    const char *rounds = cli_value(a, "fit-rounds"), *base = cli_value(a, "sequence-base");
    const char *by = cli_value(a, "pulls-by");
    int64_t number = 0;
    j->options.spans = cli_value(a, "no-spans") == NULL;
    if (cli_value(a, "why") && !j->options.spans)
        return fr_fail(err, FR_BAD_INPUT, "--why needs timed ops: --no-spans takes them away");
    j->options.logits = true;
    j->options.inject = cli_value(a, "inject");
    j->options.procs = cli_value(a, "procs") != NULL;
    if (cli_value(a, "stages")) j->options.ear = (fr_world_ear){tell_stage, &j->began};
    j->options.check_ops = cli_value(a, "check-ops") != NULL;
    if (by && strcmp(by, "reader") != 0 && strcmp(by, "owner") != 0)
        return fr_fail(err, FR_BAD_INPUT, "--pulls-by: expected reader or owner, got '%.40s'", by);
    if (by) j->options.pulls = *by == 'o' ? FR_PULLS_OWNER : FR_PULLS_READER;
    j->options.warmup_s = j->setup.experiment.regime == FR_SUSTAINED ? 10 : 0;
    j->options.timeout_s = 60;
    if (warmup) FR_TRY(fr_parse_double(warmup, 0, 3600, "--warmup", &j->options.warmup_s, err));
    if (timeout) FR_TRY(fr_parse_double(timeout, 0.001, 86400, "--timeout", &j->options.timeout_s, err));
    j->options.fit_rounds = 4;
    if (rounds) FR_TRY(fr_parse_int(rounds, 0, 100, false, "--fit-rounds", &number, err));
    if (rounds) j->options.fit_rounds = (int)number;
    if (base) FR_TRY(fr_parse_int(base, 0, INT32_MAX, false, "--sequence-base", &j->options.sequence_base, err));
    number = 0;
    if (device) FR_TRY(fr_parse_int(device, 0, FR_MAX_DEVICES - 1, false, "--device", &number, err));
    j->options.device = (int)number;
    return FR_OK;
}

/* ---- results ------------------------------------------------------------------------------------------------------*/

static json_t *real_or_null(double v) {
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *device_json(const fr_run_output *o) {
    const fr_versions *v = &o->versions;
    const fr_device_facts *d = o->device;
    const fr_meter_reading *m = o->meter;
    const fr_rank_facts *f = o->c.facts;
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:i, s:f, s:b, s:i, s:I, s:I, s:f, s:f}", "gpu", d->name,
                     "driver", v->driver_text, "cuda_driver", (json_int_t)v->driver, "cuda_runtime",
                     (json_int_t)v->runtime, "cublaslt", (json_int_t)v->cublaslt, "cudnn", (json_int_t)v->cudnn, "nccl",
                     (json_int_t)v->nccl, "sm_mhz", m->sm_mhz, "sm_mhz_min", m->sm_mhz_min, "watts", m->watts,
                     "power_capped", m->power_capped, "clock_samples", m->samples, "weights_bytes",
                     (json_int_t)f->weights_bytes, "activation_bytes", (json_int_t)f->activation_bytes, "weights_s",
                     f->weights_s, "host_late_s", (double)o->c.late_ns * 1e-9);
}

static json_t *ns_or_null(double ns) {
    return isfinite(ns) ? json_real(ns * 1e-9) : json_null();
}

/* One object per rank: what it is, what it held, where its time went (seconds of the whole run). */
/* What carried each kind of transfer, and how many there were: {"allreduce": {"by": "nccl", "ops": 188}}. */
static json_t *transfers_json(const fr_rank_facts *f, int gather) {
    json_t *o = json_object();
    for (int k = 0; k < FR_OP_KIND_COUNT; k++) {
        const char *carrier = fr_carrier_name((fr_op_kind)k, gather);
        if (!*carrier || f->launched[k] == 0) continue;
        json_object_set_new(o, fr_op_name((fr_op_kind)k),
                            json_pack("{s:s, s:I}", "by", carrier, "ops", (json_int_t)f->launched[k]));
    }
    return o;
}

static json_t *ranks_json(const fr_run_output *o, int gather) {
    json_t *list = json_array();
    for (int r = 0; r < o->c.ranks; r++) {
        const fr_rank_facts *f = &o->c.facts[r];
        const fr_parts *p = &o->c.parts[r];
        const fr_meter_reading *m = &o->meter[r];
        json_array_append_new(
            list,
            json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:f, s:f, "
                      "s:b, s:o}",
                      "rank", r, "gpu", o->device[r].name, "bus", o->device[r].bus, "uuid", o->device[r].uuid,
                      "weights_bytes", (json_int_t)f->weights_bytes, "activation_bytes",
                      (json_int_t)f->activation_bytes, "communicator_bytes", (json_int_t)f->communicator_bytes,
                      "memory_bytes", (json_int_t)f->memory_bytes, "elapsed_s", (double)p->elapsed * 1e-9, "compute_s",
                      (double)p->compute * 1e-9, "exposed_comm_s", (double)p->exposed_comm * 1e-9, "hidden_comm_s",
                      (double)p->hidden_comm * 1e-9, "wait_s", (double)p->wait * 1e-9, "bubble_s",
                      (double)p->bubble * 1e-9, "idle_s", (double)p->idle * 1e-9, "clock_error_s",
                      ns_or_null(f->clock_error_ns), "clock_drift_ppm",
                      isfinite(f->clock_drift_ppm) ? json_real(f->clock_drift_ppm) : json_null(), "sm_mhz", m->sm_mhz,
                      "watts", m->watts, "power_capped", m->power_capped, "transfers", transfers_json(f, gather)));
    }
    return list;
}

/* Of all logits kept, in order of forward, unit, group and sequence: equal hashes are equal bits. */
static json_t *hash_json(const fr_conducted *c) {
    char text[24];
    if (c->logit_rows_count == 0) return json_null();
    snprintf(text, sizeof text, "%016" PRIx64, fr_conducted_hash(c));
    return json_string(text);
}

static json_t *result_json(const job *j) {
    json_t *o = fr_report_json(&j->setup, &j->out.c.result);
    json_object_set_new(o, "ranks", ranks_json(&j->out, (int)j->setup.experiment.layout.gather));
    json_object_set_new(o, "logits_hash", hash_json(&j->out.c));
    json_object_set_new(o, "device", device_json(&j->out));
    json_object_set_new(o, "warmup_s", json_real(1e-9 * (double)j->out.c.warm_ns));
    json_object_set_new(o, "pause_s", json_real(1e-9 * (double)j->out.c.pause_ns));
    json_object_set_new(o, "routing_error", j->options.weights ? json_null() : real_or_null(j->out.c.routing_error));
    if (!j->has_prediction) return o;
    const fr_result *p = &j->predicted;
    json_object_set_new(o, "predicted",
                        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "forward_s", real_or_null(p->forward_s),
                                  "forward_low_s", real_or_null(p->forward_low_s), "forward_high_s",
                                  real_or_null(p->forward_high_s), "tokens_per_s", real_or_null(p->tokens_per_s), "mfu",
                                  real_or_null(p->mfu), "ttft_p50_s", real_or_null(p->ttft_s.p50)));
    return o;
}

static void compare_row(fr_text *t, const char *name, double scale, double predicted, double measured) {
    fr_text_add(t, "  %-18s %12.3f %12.3f %+9.1f %%\n", name, predicted * scale, measured * scale,
                100 * (predicted / measured - 1));
}

static void compare(const job *j, fr_text *t) {
    static const struct {
        const char *name;
        fr_op_class c;
    } classes[] = {{"memory-bound, ms", FR_CLASS_MEMORY},
                   {"GEMM, ms", FR_CLASS_GEMM},
                   {"attention, ms", FR_CLASS_ATTENTION},
                   {"experts, ms", FR_CLASS_GROUPED}};
    const fr_result *p = &j->predicted, *m = &j->out.c.result;
    fr_text_add(t, "predicted beside measured (interval of the prediction %.3f to %.3f ms a forward)\n",
                p->forward_low_s * 1e3, p->forward_high_s * 1e3);
    compare_row(t, "forward, ms", 1e3, p->forward_s, m->forward_s);
    compare_row(t, "tokens/s", 1, p->tokens_per_s, m->tokens_per_s);
    compare_row(t, "MFU, %", 100, p->mfu, m->mfu);
    if (j->setup.experiment.trace[0]) compare_row(t, "TTFT p50, ms", 1e3, p->ttft_s.p50, m->ttft_s.p50);
    for (size_t i = 0; i < sizeof classes / sizeof *classes && j->options.spans; i++)
        compare_row(t, classes[i].name, 1e-6, (double)p->class_ns[classes[i].c] / (double)p->forwards,
                    (double)m->class_ns[classes[i].c] / (double)m->forwards);
}

static void print_devices(const job *j, fr_text *t) {
    const fr_run_output *o = &j->out;
    const double all = (double)o->c.result.elapsed_ns * o->c.ranks;
    for (int r = 0; r < o->c.ranks; r++) {
        const fr_meter_reading *m = &o->meter[r];
        const fr_rank_facts *f = &o->c.facts[r];
        fr_text_add(t, "rank %-3d         %s, driver %s; SM clock %.0f MHz (least %d), %.0f W%s, %d samples\n", r,
                    o->device[r].name, o->versions.driver_text, m->sm_mhz, m->sm_mhz_min, m->watts,
                    m->power_capped ? ", at the power limit" : "", m->samples);
        fr_text_add(
            t, "                 weights %.2f GB in %.2f s (%.1f GB/s); times within %.1f us of the host's clock\n",
            (double)f->weights_bytes * 1e-9, f->weights_s, (double)f->weights_bytes * 1e-9 / f->weights_s,
            f->clock_error_ns * 1e-3);
    }
    if (j->options.spans)
        fr_text_add(t, "late host        %.3f %% of the time devices waited for the host inside forwards\n",
                    100 * (double)o->c.late_ns / all);
    if (!j->options.weights)
        fr_text_add(t, "routing          random weights: an expert's share of tokens is off by at most %.3f\n",
                    o->c.routing_error);
}

/* The chain of ops that decided when the run ended, as simulate prints it; needs timed ops. */
static void path_of(const job *j, fr_critical *why) {
    fr_critical_path(&j->out.c.spans, 0, fr_layout_layers(&j->setup.experiment.layout, &j->setup.model), why);
}

static void add_why(const job *j, fr_text *t) {
    fr_critical why;
    path_of(j, &why);
    fr_report_critical(&why, j->out.c.result.units_forwards, true, t);
    fr_critical_free(&why);
}

static void print_text(const job *j, bool why) {
    fr_text t = {0};
    const fr_run_output *o = &j->out;
    fr_report_layout(&j->setup, &t);
    fr_report_result(&j->setup, &o->c.result, &t);
    print_devices(j, &t);
    if (j->has_prediction) compare(j, &t);
    if (why) add_why(j, &t);
    fr_report_memory(&j->setup, &t);
    fputs(t.text, stdout);
    fr_text_free(&t);
}

/* `why`: a run that failed; NULL = it did not. */
static fr_status keep(const job *j, const cli_args *a, const char *why, fr_error *err) {
    if (!cli_keeps(a)) return FR_OK;
    const char *path = cli_value(a, "anchors");
    char *anchors = NULL;
    if (path) FR_TRY(cli_read_anchors(path, &anchors, err));
    fr_text routing = {0};
    fr_routing_format(&routing, j->setup.model.experts, j->out.c.layers, 0, j->out.c.counts);
    cli_kept k = {.kind = "run",
                  .setup = &j->setup,
                  .result = &j->out.c.result,
                  .report = result_json(j),
                  .forwards = j->out.c.forwards,
                  .forwards_count = j->out.c.forwards_count,
                  .requests = j->out.c.requests,
                  .requests_count = j->out.c.requests_count,
                  .spans = &j->out.c.spans,
                  .routing = routing.text,
                  .anchors = anchors};
    if (why) json_object_set_new(k.report, "failed", json_string(why));
    const fr_status status = cli_keep(&k, a, err);
    fr_text_free(&routing);
    free(anchors);
    return status;
}

/* A line of JSON that says what follows: rows [forward, unit, group, sequence, logits] in order, and then all logits as
 * little-endian float32, row after row. */
static fr_status write_logits(const job *j, const char *path, fr_error *err) {
    const fr_conducted *c = &j->out.c;
    fr_text t = {0};
    fr_text_add(&t, "{\"hash\": \"%016" PRIx64 "\", \"logits\": %" PRId64 ", \"rows\": [", fr_conducted_hash(c),
                c->logits_count);
    for (uint32_t i = 0; i < c->logit_rows_count; i++) {
        const fr_logit_row *r = &c->logit_rows[i];
        fr_text_add(&t, "%s[%" PRId64 ", %d, %d, %d, %" PRId64 "]", i ? ", " : "", r->forward, r->unit, r->slot,
                    r->sequence, r->count);
    }
    fr_text_add(&t, "]}\n");
    const size_t head = t.length, bytes = (size_t)c->logits_count * sizeof *c->logits;
    char *all = fr_alloc(head + bytes + 1);
    memcpy(all, t.text, head);
    fr_text_free(&t);
    char *at = all + head;
    for (uint32_t i = 0; i < c->logit_rows_count; i++) {
        const size_t count = (size_t)c->logit_rows[i].count * sizeof *c->logits;
        memcpy(at, c->logits + c->logit_rows[i].at, count);
        at += count;
    }
    const fr_status s = fr_write_file(path, all, head + bytes, err);
    free(all);
    return s;
}

static fr_status write_files(const job *j, const cli_args *a, fr_error *err) {
    const char *routing = cli_value(a, "record-routing"), *answers = cli_value(a, "answers");
    const char *logits = cli_value(a, "logits");
    fr_text t = {0};
    fr_status s = FR_OK;
    if (logits) FR_TRY(write_logits(j, logits, err));
    if (routing) {
        fr_routing_format(&t, j->setup.model.experts, j->out.c.layers, 0, j->out.c.counts);
        s = fr_write_file(routing, t.text, t.length, err);
        fr_text_free(&t);
    }
    t = (fr_text){0};
    if (s == FR_OK && answers) {
        fr_prompts_write(&j->prompts, &t);
        s = fr_write_file(answers, t.text ? t.text : "", t.length, err);
        fr_text_free(&t);
    }
    return s == FR_OK ? keep(j, a, NULL, err) : s;
}

/* A run that failed after some forwards: what it brought is stored, with the reason in its result. */
static fr_status keep_part(const job *j, const cli_args *a, fr_status played, const fr_error *why) {
    fr_error ignored;
    if (j->out.c.forwards_count == 0 || !cli_keeps(a)) return played;
    if (keep(j, a, why->text, &ignored) == FR_OK)
        fprintf(stderr, "forerun: %u forwards until then are stored\n", j->out.c.forwards_count);
    return played;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------*/

/* The simulator on the same cell; prompts are no trace that it reads. */
static fr_status predict(job *j, const cli_args *a, const char *exe, fr_error *err) {
    if (cli_value(a, "no-predict") || cli_value(a, "prompts")) return FR_OK;
    const fr_drive_options o = {.exe_dir = exe};
    fr_cost_time_ops(j->setup.cost, j->options.spans);
    FR_TRY(fr_drive(&j->setup, &o, &j->predicted, err));
    j->has_prediction = true;
    const double s = (double)j->predicted.elapsed_ns * 1e-9;
    fprintf(stderr, "forerun: predicted %.3f s for %" PRId64 " forwards after %.0f s of warm-up\n", s,
            j->predicted.forwards, j->options.warmup_s);
    return FR_OK;
}

/* Under MPI: a process per rank of the layout; process 0 conducts. */
static fr_status join_processes(job *j, fr_error *err) {
#ifdef FR_MPI
    const int ranks = fr_layout_gpus(&j->setup.experiment.layout), size = fr_mpi_size();
    if (size == 1) return FR_OK;
    if (size != ranks)
        return fr_fail(err, FR_BAD_INPUT, "the layout takes %d GPUs, mpirun started %d processes: they must be as many",
                       ranks, size);
    j->options.rank = fr_mpi_rank();
    j->options.local = fr_mpi_local_rank();
    if (j->options.rank > 0) return fr_mpi_wire(0, &j->options.conductor, err);
    j->options.wires = fr_alloc((size_t)ranks * sizeof(*j->options.wires));
    for (int r = 1; r < ranks; r++) FR_TRY(fr_mpi_wire(r, &j->options.wires[r], err));
#else
    (void)j;
    (void)err;
#endif
    return FR_OK;
}

/*
 * Ranks in processes of their own. For owners to push, each process needs a context on every owner's GPU (counted
 * here). The driver makes and unmakes those one at a time: of four processes on four H200s twelve took 14 s to make and
 * 5 s to go, and pushes from another process's context made forwards 10 % longer. Unless asked for, readers copy, and
 * yield to one another, so that each source has one reader: as fast as owners in one process
 * (experiments/engine-h200x2).
 */
static void arrange_apart(job *j) {
    fr_setup *s = &j->setup;
    fr_layout *l = &s->experiment.layout;
    const bool apart = j->options.procs || j->options.wires || j->options.conductor;
    if (!apart || !s->fits || fr_pools_pulled_by(l, j->options.pulls) != FR_PULLS_OWNER) return;
    if (j->options.pulls == FR_PULLS_AUTO) {
        const bool turns = l->experts != FR_EXP_OFFLOAD && l->gather_streams <= 1;
        j->options.pulls = FR_PULLS_READER;
        if (turns && !fr_experiment_given(&s->experiment, "gather-order")) l->gather_order = FR_ORDER_YIELD;
        return;
    }
    fr_memory_add_contexts(&s->memory, l->ep - 1);
    s->fits = fr_memory_fits(&s->memory, &s->machine, s->reason);
}

static fr_status run_job(job *j, const cli_args *a, const char *exe, fr_error *err) {
    FR_TRY(make_setup(j, a, err));
    FR_TRY(read_options(j, a, err));
    FR_TRY(open_requests(j, a, exe, err));
    FR_TRY(fr_setup_any_routing(&j->setup, err));
    FR_TRY(join_processes(j, err));
    arrange_apart(j);
    if (j->options.conductor) return fr_run(&j->setup, &j->options, &j->out, err);
    FR_TRY(predict(j, a, exe, err));
    const fr_status played = fr_run(&j->setup, &j->options, &j->out, err);
    if (played != FR_OK) return keep_part(j, a, played, err);
    FR_TRY(write_files(j, a, err));
    const bool why = cli_value(a, "why") != NULL;
    if (!cli_value(a, "json") && !a->json_file) {
        print_text(j, why);
        return FR_OK;
    }
    json_t *o = result_json(j);
    if (why) {
        fr_critical path;
        path_of(j, &path);
        json_object_set_new(o, "critical_path", fr_report_critical_json(&path));
        fr_critical_free(&path);
    }
    char *text = fr_report_dump(o);
    const fr_status s = cli_put_json(a, text, err);
    free(text);
    return s;
}

/* Runs before the CUDA runtime's own handler, which would wait for the device. Output is flushed by then. */
static void leave(void) {
    _exit(FR_FAILED);
}

/* *stop: the device does not answer any more. */
static fr_status run_one(const cli_args *a, bool *stop, fr_error *err) {
    job *j = fr_alloc(sizeof *j);
    char *exe = cli_exe_dir();
    j->began = fr_monotonic_s();
    fr_status s = run_job(j, a, exe, err);
    free(exe);
    *stop = j->out.device_lost;
    if (*stop) {
        atexit(leave); /* and threads may be left that read the job */
        return s;
    }
    job_free(j);
    free(j);
    return s;
}

/* Processes are made before the first GPU is touched: once. */
static fr_status run_cells(const cli_args *a, fr_error *err) {
#ifdef FR_MPI
    if (fr_mpi_size() > 1) return fr_fail(err, FR_BAD_INPUT, "--cells is not for several processes");
#endif
    if (cli_value(a, "procs")) return fr_fail(err, FR_BAD_INPUT, "--cells is not for --procs: run the cells singly");
    return cli_cells(a, run_one, err);
}

fr_status cmd_run(const cli_args *a, fr_error *err) {
    bool stop = false;
    return cli_value(a, "cells") ? run_cells(a, err) : run_one(a, &stop, err);
}

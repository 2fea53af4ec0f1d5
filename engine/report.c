#include "engine/report.h"

#include "engine/columns.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rounds the running sum, not each part: every part is then within 1 ns of its share and the sum is exact. */
void fr_parts_per_forward(const fr_parts *all, int64_t forwards, fr_parts *one) {
    const int64_t in[5] = {all->compute, all->exposed_comm, all->wait, all->bubble, all->idle};
    int64_t out[5], sum = 0, before = 0;
    if (forwards < 1) forwards = 1;
    for (int i = 0; i < 5; i++) {
        sum += in[i];
        int64_t edge = (sum + forwards / 2) / forwards;
        out[i] = edge - before;
        before = edge;
    }
    *one = (fr_parts){.elapsed = before,
                      .compute = out[0],
                      .exposed_comm = out[1],
                      .wait = out[2],
                      .bubble = out[3],
                      .idle = out[4],
                      .hidden_comm = (all->hidden_comm + forwards / 2) / forwards};
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void put(json_t *o, const char *key, json_t *value) {
    json_object_set_new(o, key, value ? value : json_null());
}
static void put_text(json_t *o, const char *key, const char *text) {
    put(o, key, json_string(text));
}
static void put_int(json_t *o, const char *key, int64_t value) {
    put(o, key, json_integer(value));
}
static void put_count(json_t *o, const char *key, int64_t value) { /* -1 = not known */
    put(o, key, value < 0 ? NULL : json_integer(value));
}
static void put_real(json_t *o, const char *key, double value) {
    put(o, key, isfinite(value) ? json_real(value) : NULL);
}
static void put_ns(json_t *o, const char *key, bool known, int64_t ns) {
    put(o, key, known ? json_real((double)ns / 1e9) : NULL); /* division: the double nearest to the decimal */
}

char *fr_report_dump(json_t *root) {
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    fr_text out = {0};
    fr_text_add(&out, "%s\n", text ? text : "null");
    free(text);
    json_decref(root);
    return out.text;
}

json_t *fr_report_memory_json(const fr_memory *m) {
    json_t *o = json_object();
    put_int(o, "attention", m->attention);
    put_int(o, "embedding_head", m->embedding_head);
    put_int(o, "experts", m->experts);
    put_int(o, "gather_buffers", m->gather_buffers);
    put_int(o, "first_layer", m->first_layer);
    put_int(o, "kv", m->kv);
    put_int(o, "activations", m->activations);
    put_int(o, "workspace", m->workspace);
    put_int(o, "total", m->total);
    put_int(o, "host_pinned", m->host_pinned);
    return o;
}

static void put_head(json_t *o, const fr_setup *s) {
    const fr_experiment *e = &s->experiment;
    const fr_layout *l = &e->layout;
    put_text(o, "version", FR_VERSION);
    put_text(o, "model", s->model.name);
    put_text(o, "machine", s->machine.name);
    put_text(o, "strategy", l->strategy);
    put_text(o, "attention", l->attention == FR_ATTN_TP ? "tp" : "dp");
    put_text(o, "experts", fr_expert_split_name(l->experts));
    json_t *d = json_object();
    put_int(d, "tp", l->tp);
    put_int(d, "pp", l->pp);
    put_int(d, "ep", l->ep);
    put_int(d, "dp", l->dp);
    put_int(d, "replicas", l->replicas);
    put(o, "degrees", d);
    put_int(o, "gpus", fr_layout_gpus(l));
    put_text(o, "precision", fr_precision_name(l->precision));
    put_int(o, "layers", fr_layout_layers(l, &s->model));
    put_int(o, "resident_layers", l->resident_layers);
    put_text(o, "routing", e->routing);
    put_int(o, "seed", (int64_t)e->seed);
}

/* What was never measured: text, provenance and share of the audited ops' time. */
static json_t *audit_json(const fr_audit *a) {
    json_t *list = json_array();
    for (int i = 0; i < a->count; i++) {
        char text[128];
        fr_audit_text(&a->rows[i], text);
        json_t *o = json_object();
        put(o, "shape", json_string(text));
        put(o, "provenance", json_string(fr_provenance_name((fr_provenance)a->rows[i].provenance)));
        put_real(o, "share", a->ns > 0 ? (double)a->rows[i].ns / (double)a->ns : 0);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *provenance_json(const fr_provenance_share *p) {
    int64_t sum = 0;
    for (int i = 0; i < FR_FROM_KINDS; i++) sum += p->ns[i];
    json_t *o = json_object();
    for (int i = 0; i < FR_FROM_KINDS; i++)
        put_real(o, fr_provenance_name((fr_provenance)i), sum > 0 ? (double)p->ns[i] / (double)sum : NAN);
    return o;
}

static void put_times(json_t *o, const fr_setup *s, const fr_result *r) {
    fr_result none;
    bool played = r != NULL, batch = s->experiment.trace[0] == 0;
    fr_result_unplayed(s, &none);
    if (!r) r = &none;
    fr_parts p;
    fr_parts_per_forward(&r->parts, batch ? r->units_forwards : 1, &p);
    if (batch)
        put_ns(o, "forward_s", played, p.elapsed);
    else
        put_real(o, "forward_s", r->forward_s);
    put_real(o, "single_forward_s", r->single_forward_s);
    put_ns(o, "elapsed_s", played, r->elapsed_ns);
    put_real(o, "tokens_per_s", r->tokens_per_s);
    put_real(o, "tokens_per_s_per_gpu", r->tokens_per_s_per_gpu);
    put_real(o, "mfu", r->mfu);
    put_real(o, "flops", r->flops);
    put_ns(o, "compute_s", played, p.compute);
    put_ns(o, "exposed_comm_s", played, p.exposed_comm);
    put_ns(o, "hidden_comm_s", played, p.hidden_comm);
    put_ns(o, "wait_s", played, p.wait);
    put_ns(o, "bubble_s", played, p.bubble);
    put_ns(o, "idle_s", played, p.idle);
    json_t *q = json_object();
    put_real(q, "mean", r->ttft_s.mean);
    put_real(q, "p50", r->ttft_s.p50);
    put_real(q, "p90", r->ttft_s.p90);
    put_real(q, "p99", r->ttft_s.p99);
    put(o, "ttft_s", q);
    json_t *i = json_object();
    put_real(i, "forward_low_s", r->forward_low_s);
    put_real(i, "forward_high_s", r->forward_high_s);
    put(o, "interval", i);
    put(o, "cost_provenance", provenance_json(&r->provenance));
    put(o, "unmeasured", audit_json(&r->audit));
    json_t *c = json_object();
    for (int k = 0; k < FR_CLASS_COUNT; k++) put_ns(c, fr_op_class_name((fr_op_class)k), played, r->class_ns[k]);
    put(o, "busy_s", c);
    json_t *t = json_object();
    put_count(t, "sent_bytes", played ? r->sent_bytes : -1);
    put_count(t, "received_bytes", played ? r->received_bytes : -1);
    put_count(t, "host_bytes", played ? r->host_bytes : -1);
    put(o, "traffic", t);
    json_t *n = json_object();
    put_count(n, "played", played ? r->ops_played : -1);
    put_count(n, "folded", played ? r->ops_folded : -1);
    put_count(n, "skipped", played ? r->ops_skipped : -1);
    put_count(n, "solves", played ? r->solves : -1);
    put(o, "ops", n);
    put_real(o, "price_per_mtoken", r->price_per_mtoken);
    put_text(o, "currency", s->machine.currency);
    put_real(o, "joules_per_mtoken", r->joules_per_mtoken);
    put_real(o, "clock_mhz", r->clock_mhz);
}

json_t *fr_report_json(const fr_setup *s, const fr_result *r) {
    json_t *o = json_object();
    const fr_experiment *e = &s->experiment;
    put_head(o, s);
    bool batch = e->trace[0] == 0;
    put(o, "trace", batch ? NULL : json_string(e->trace));
    put(o, "seq", batch ? json_integer(e->seq) : NULL);
    put(o, "prefix", batch ? json_integer(e->prefix) : NULL);
    int64_t forwards = r ? r->forwards : batch ? e->forwards : -1;
    put_count(o, "forwards", forwards);
    put_count(o, "requests", r ? r->requests : -1);
    put_count(o, "tokens", r ? r->tokens : -1);
    put_count(o, "cached_tokens", r ? r->cached_tokens : -1);
    /* batch mode: what was asked for; trace mode: what a GPU did on average, in all */
    put(o, "tokens_per_gpu", batch ? json_integer(e->tokens) : r ? json_integer(r->tokens / r->gpus) : NULL);
    put_count(o, "idle_ranks", r && batch ? r->idle_ranks : -1);
    put_times(o, s, r);
    put_int(o, "memory_per_gpu_bytes", s->memory.total);
    put(o, "memory", fr_report_memory_json(&s->memory));
    put(o, "fits", json_boolean(s->fits));
    put(o, "reason", s->fits ? NULL : json_string(s->reason));
    put(o, "what_if", e->what_if[0] ? json_string(e->what_if) : NULL);
    put_text(o, "cost_source", fr_cost_source(s->cost));
    char hash[24];
    snprintf(hash, sizeof hash, "%016" PRIx64, fr_cost_hash(s->cost));
    put_text(o, "cost_hash", hash);
    char *config = fr_experiment_json(e);
    put(o, "experiment", config ? json_loads(config, 0, NULL) : NULL);
    free(config);
    return o;
}

json_t *fr_report_critical_json(const fr_critical *c) {
    json_t *o = json_object(), *total = json_object(), *rows = json_array();
    for (int k = 0; k < FR_RESOURCES; k++) put_ns(total, fr_resource_name((fr_resource)k), true, c->total[k]);
    for (int l = 0; l <= c->layers; l++) {
        json_t *row = json_object();
        put(row, "layer", l < c->layers ? json_integer(l) : NULL);
        for (int k = 0; k < FR_RESOURCES; k++) put_ns(row, fr_resource_name((fr_resource)k), true, c->ns[l][k]);
        json_array_append_new(rows, row);
    }
    put_ns(o, "elapsed_s", true, c->end - c->begin);
    put(o, "total_s", total);
    put(o, "layers", rows);
    return o;
}

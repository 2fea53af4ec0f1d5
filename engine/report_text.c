/* The tables for people: what simulate and run print without --json. */
#include "engine/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *time_text(double seconds, char out[24]) {
    if (!isfinite(seconds)) return "-";
    double a = fabs(seconds);
    if (a >= 1)
        snprintf(out, 24, "%.3f s", seconds);
    else if (a >= 1e-3)
        snprintf(out, 24, "%.3f ms", seconds * 1e3);
    else
        snprintf(out, 24, "%.1f us", seconds * 1e6);
    return out;
}

static void add_degrees(const fr_layout *l, fr_text *out) {
    fr_text_add(out, "%s: attention %s, experts %s; tp %d, dp %d, ep %d, pp %d, replicas %d = %d GPUs", l->strategy,
                l->attention == FR_ATTN_TP ? "tp" : "dp", fr_expert_split_name(l->experts), l->tp, l->dp, l->ep, l->pp,
                l->replicas, fr_layout_gpus(l));
}

void fr_report_layout(const fr_setup *s, fr_text *out) {
    const fr_experiment *e = &s->experiment;
    const fr_layout *l = &e->layout;
    int layers = fr_layout_layers(l, &s->model);
    fr_text_add(out, "model      %s, %s, %d layers", s->model.name, fr_precision_name(l->precision), layers);
    if (layers != s->model.layers) fr_text_add(out, " of %d", s->model.layers);
    if (l->resident_layers) fr_text_add(out, ", %d distinct", l->resident_layers);
    fr_text_add(out, "\nmachine    %s%s%s\nlayout     ", s->machine.name, e->what_if[0] ? ", what if " : "",
                e->what_if);
    add_degrees(l, out);
    if (e->trace[0])
        fr_text_add(out, "\nworkload   trace %s, budget %" PRId64 " tokens per GPU and forward, routing %s", e->trace,
                    e->budget, e->routing);
    else
        fr_text_add(out,
                    "\nworkload   %d forwards of %" PRId64 " tokens per GPU in sequences of %" PRId64 "%s, routing %s",
                    e->forwards, e->tokens, e->seq, e->prefix ? " behind a cached prefix" : "", e->routing);
    fr_text_add(out, "\ncosts      %s\n", fr_cost_source(s->cost));
}

static void add_item(fr_text *out, const char *name, int64_t bytes) {
    if (bytes) fr_text_add(out, "  %-28s %9.2f GB\n", name, (double)bytes / 1e9);
}

void fr_report_memory(const fr_setup *s, fr_text *out) {
    const fr_memory *m = &s->memory;
    fr_text_add(out, "memory per GPU\n");
    add_item(out, "attention and dense weights", m->attention);
    add_item(out, "embedding and output head", m->embedding_head);
    add_item(out, "experts", m->experts);
    add_item(out, "gather buffers", m->gather_buffers);
    add_item(out, "first layer's experts", m->first_layer);
    add_item(out, "KV", m->kv);
    add_item(out, "activations", m->activations);
    add_item(out, "workspace", m->workspace);
    fr_text_add(out, "  %-28s %9.2f GB of %.2f GB: %s\n", "total", (double)m->total / 1e9,
                (double)s->machine.hbm_bytes / 1e9, s->fits ? "fits" : "does not fit");
    fr_setup any = *s;
    if (s->fits && fr_setup_any_routing(&any, NULL) == FR_OK && !any.fits)
        fr_text_add(out, "  %-28s %9.2f GB: does not fit, and run, which makes room for it, refuses\n",
                    "with room for any routing", (double)any.memory.total / 1e9);
    if (m->host_pinned)
        fr_text_add(out, "  %-28s %9.2f GB of %.2f GB per host\n", "pinned host memory", (double)m->host_pinned / 1e9,
                    (double)s->machine.host_bytes / 1e9);
    if (!s->fits) fr_text_add(out, "  %s\n", s->reason);
}

static void add_part(fr_text *out, const char *name, int64_t ns, int64_t whole, const char *says) {
    char t[24];
    fr_text_add(out, "  %-14s %12s  %5.1f %%  %s\n", name, time_text((double)ns / 1e9, t),
                whole > 0 ? 100.0 * (double)ns / (double)whole : 0.0, says);
}

static void add_parts(const fr_setup *s, const fr_result *r, fr_text *out) {
    bool batch = s->experiment.trace[0] == 0;
    fr_parts p;
    fr_parts_per_forward(&r->parts, batch ? r->units_forwards : 1, &p);
    fr_text_add(out, "where %s went, on the rank that ends last\n", batch ? "a forward" : "the time");
    add_part(out, "compute", p.compute, p.elapsed, "kernels run");
    add_part(out, "exposed comm", p.exposed_comm, p.elapsed, "stands still while a transfer that it needs runs");
    add_part(out, "wait", p.wait, p.elapsed, "stands still for a rank that has not arrived");
    add_part(out, "bubble", p.bubble, p.elapsed, "pipeline stage without input");
    add_part(out, "idle", p.idle, p.elapsed, "launches, or nothing to do");
    add_part(out, "= sum", p.elapsed, p.elapsed, batch ? "a forward" : "in all");
    add_part(out, "hidden comm", p.hidden_comm, p.elapsed, "transfers behind compute (not in the sum)");
}

static void add_provenance(const fr_result *r, fr_text *out) {
    int64_t sum = 0;
    for (int i = 0; i < FR_FROM_KINDS; i++) sum += r->provenance.ns[i];
    if (sum == 0) return; /* a live run rests on no costs */
    fr_text_add(out, "costs behind it  ");
    const char *before = "";
    for (int i = 0; i < FR_FROM_KINDS; i++) {
        if (!r->provenance.ns[i]) continue;
        fr_text_add(out, "%s%.1f %% %s", before, 100.0 * (double)r->provenance.ns[i] / (double)sum,
                    fr_provenance_name((fr_provenance)i));
        before = ", ";
    }
    fr_text_add(out, "\n");
}

/* Shapes that the costs were asked for and that nobody has measured, the heaviest first. */
static void add_audit(const fr_audit *a, fr_text *out) {
    enum { SHOWN = 8 };
    if (!a->count || a->ns <= 0) return;
    fr_text_add(out, "shapes that were never measured, share of the ops' time\n");
    for (int i = 0; i < a->count && i < SHOWN; i++) {
        char text[128];
        fr_audit_text(&a->rows[i], text);
        fr_text_add(out, "  %5.1f %%  %-12s %s\n", 100.0 * (double)a->rows[i].ns / (double)a->ns,
                    fr_provenance_name((fr_provenance)a->rows[i].provenance), text);
    }
    if (a->count > SHOWN) fr_text_add(out, "  and %d more (--json lists them)\n", a->count - SHOWN);
}

/* What simulating took. */
static void add_effort(const fr_result *r, fr_text *out) {
    fr_text_add(out, "simulation       %" PRId64 " ops", r->ops_played);
    if (r->ops_folded) fr_text_add(out, ", %" PRId64 " more of ranks like these", r->ops_folded);
    if (r->ops_skipped) fr_text_add(out, ", %" PRId64 " of size 0", r->ops_skipped);
    fr_text_add(out, ", %" PRId64 " bandwidth solves", r->solves);
    if (r->wall_s > 0)
        fr_text_add(out, ", %.2f s, %.1f million ops/s", r->wall_s, (double)r->ops_played / r->wall_s / 1e6);
    fr_text_add(out, "\n");
}

static void add_money(const fr_setup *s, const fr_result *r, fr_text *out) {
    if (isfinite(r->price_per_mtoken))
        fr_text_add(out, "price            %.4f %s per million tokens\n", r->price_per_mtoken, s->machine.currency);
    if (isfinite(r->joules_per_mtoken))
        fr_text_add(out, "energy           %.0f J per million tokens at the GPUs' power limit\n", r->joules_per_mtoken);
}

void fr_report_result(const fr_setup *s, const fr_result *r, fr_text *out) {
    bool batch = s->experiment.trace[0] == 0;
    char a[24], b[24], c[24];
    fr_text_add(out, "throughput       %.0f tokens/s, %.0f per GPU\n", r->tokens_per_s, r->tokens_per_s_per_gpu);
    fr_text_add(out, "MFU              %.1f %%  (model FLOPs, causal attention once; of the datasheet dense %s peak)\n",
                100 * r->mfu, fr_precision_name(s->experiment.layout.precision));
    fr_text_add(out, "forward          %s", time_text(r->forward_s, a));
    if (r->forward_low_s < r->forward_high_s)
        fr_text_add(out, ", interval %s to %s", time_text(r->forward_low_s, b), time_text(r->forward_high_s, c));
    fr_text_add(out, batch ? " (mean of a stream)\n" : " (mean)\n");
    if (batch && isfinite(r->single_forward_s))
        fr_text_add(out, "single forward   %s\n", time_text(r->single_forward_s, a));
    if (!batch)
        fr_text_add(out,
                    "requests         %" PRId64 " in %s, %" PRId64 " forwards, %" PRId64 " tokens computed, %" PRId64
                    " from cache\n",
                    r->requests, time_text((double)r->elapsed_ns / 1e9, a), r->forwards, r->tokens, r->cached_tokens);
    if (r->left_out) fr_text_add(out, "left out         %" PRId64 " rows of the trace: 0 tokens\n", r->left_out);
    if (r->reordered)
        fr_text_add(out, "reordered        %" PRId64 " rows of the trace came earlier than the row before them\n",
                    r->reordered);
    fr_text_add(out, "TTFT             mean %s, ", time_text(r->ttft_s.mean, a));
    fr_text_add(out, "p50 %s, p90 %s, ", time_text(r->ttft_s.p50, a), time_text(r->ttft_s.p90, b));
    fr_text_add(out, "p99 %s\n", time_text(r->ttft_s.p99, a));
    add_money(s, r, out);
    if (r->idle_ranks) fr_text_add(out, "idle ranks       %d: too few whole sequences for every GPU\n", r->idle_ranks);
    add_parts(s, r, out);
    add_provenance(r, out);
    add_audit(&r->audit, out);
    if (r->solves >= 0) add_effort(r, out);
}

/* ---- critical path ----------------------------------------------------------------------------------------------- */

static int64_t row_sum(const int64_t *ns) {
    int64_t sum = 0;
    for (int k = 0; k < FR_RESOURCES; k++) sum += ns[k];
    return sum;
}

/* One line of ms by resource; resources that take no time in `c` have no column. */
static void add_row(const fr_critical *c, const char *label, const int64_t *ns, double per, fr_text *out) {
    fr_text_add(out, "  %-12s", label);
    for (int k = 0; k < FR_RESOURCES; k++) {
        if (!c->total[k]) continue;
        if (ns[k])
            fr_text_add(out, " %10.3f", (double)ns[k] / per);
        else
            fr_text_add(out, " %10s", ".");
    }
    fr_text_add(out, " %10.3f\n", (double)row_sum(ns) / per);
}

/* Two layers spend alike when every resource differs by at most 1 % of the layer. */
static bool alike(const int64_t *a, const int64_t *b) {
    int64_t sum = row_sum(a);
    for (int k = 0; k < FR_RESOURCES; k++) {
        int64_t d = a[k] > b[k] ? a[k] - b[k] : b[k] - a[k];
        if (d * 100 > sum) return false;
    }
    return true;
}

static void mean_rows(const fr_critical *c, int first, int end, int64_t *mean) {
    for (int k = 0; k < FR_RESOURCES; k++) {
        mean[k] = 0;
        for (int l = first; l < end; l++) mean[k] += c->ns[l][k];
        mean[k] /= end - first;
    }
}

static void add_every_layer(const fr_critical *c, double per, fr_text *out) {
    for (int first = 0; first < c->layers;) {
        int end = first + 1;
        int64_t mean[FR_RESOURCES];
        char label[32];
        while (end < c->layers && alike(c->ns[first], c->ns[end])) end++;
        mean_rows(c, first, end, mean);
        if (end - first > 1)
            snprintf(label, sizeof label, "%d-%d", first, end - 1);
        else
            snprintf(label, sizeof label, "%d", first);
        add_row(c, label, mean, per, out);
        first = end;
    }
}

static void add_extremes(const fr_critical *c, double per, fr_text *out) {
    int heavy = 0, light = 0;
    int64_t mean[FR_RESOURCES];
    char label[32];
    for (int l = 1; l < c->layers; l++) {
        if (row_sum(c->ns[l]) > row_sum(c->ns[heavy])) heavy = l;
        if (row_sum(c->ns[l]) < row_sum(c->ns[light])) light = l;
    }
    mean_rows(c, 0, c->layers, mean);
    add_row(c, "mean layer", mean, per, out);
    snprintf(label, sizeof label, "heaviest %d", heavy);
    add_row(c, label, c->ns[heavy], per, out);
    snprintf(label, sizeof label, "lightest %d", light);
    add_row(c, label, c->ns[light], per, out);
}

void fr_report_critical(const fr_critical *c, int64_t forwards, bool every, fr_text *out) {
    double per = 1e6 * (double)(forwards > 0 ? forwards : 1); /* ns to ms a forward */
    int64_t all = row_sum(c->total);
    fr_text_add(out, "critical path by resource, ms per forward%s\n  %-12s", every ? "" : " (--why: every layer)", "");
    for (int k = 0; k < FR_RESOURCES; k++)
        if (c->total[k]) fr_text_add(out, " %10s", fr_resource_name((fr_resource)k));
    fr_text_add(out, " %10s\n", "sum");
    if (c->layers > 0 && every) add_every_layer(c, per, out);
    if (c->layers > 0 && !every) add_extremes(c, per, out);
    add_row(c, "outside", c->ns[c->layers], per, out);
    add_row(c, "all", c->total, per, out);
    fr_text_add(out, "  %-12s", "share");
    for (int k = 0; k < FR_RESOURCES; k++)
        if (c->total[k]) fr_text_add(out, " %8.1f %%", 100.0 * (double)c->total[k] / (double)all);
    fr_text_add(out, "\n");
}

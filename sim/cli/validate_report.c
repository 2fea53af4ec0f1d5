#include "sim/cli/validate_report.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOP 3 /* causes named in words */

/* ---- text -------------------------------------------------------------------------------------------------------- */

static double error_of(const fr_validation *v) {
    return v->predicted.forward_s / v->forward_s - 1;
}

static bool inside(const fr_validation *v) {
    return v->forward_s >= v->predicted.forward_low_s && v->forward_s <= v->predicted.forward_high_s;
}

static void stats_line(const char *name, const fr_error_stats *s, fr_text *out) {
    if (s->count == 0) return;
    fr_text_add(out,
                "  %-16s %6" PRId64 "   mean %5.1f %%  median %5.1f %%  p95 %5.1f %%  worst %5.1f %%  bias %+5.1f %%\n",
                name, s->count, 100 * s->mean, 100 * s->median, 100 * s->p95, 100 * s->worst, 100 * s->bias);
}

static void whole(const fr_validation *v, fr_text *out) {
    const fr_result *p = &v->predicted;
    fr_text_add(out, "  %-16s %12s %12s %9s\n", "", "predicted", "measured", "error");
    fr_text_add(out, "  %-16s %12.3f %12.3f %+8.1f %%  interval %.3f to %.3f: measured lies %s\n", "forward, ms",
                1e3 * p->forward_s, 1e3 * v->forward_s, 100 * error_of(v), 1e3 * p->forward_low_s,
                1e3 * p->forward_high_s, inside(v) ? "inside" : "OUTSIDE");
    if (v->anchored)
        fr_text_add(out, "  %-16s %12.3f %12.3f %+8.1f %%\n", "  with anchors", 1e3 * v->anchored_forward_s,
                    1e3 * v->forward_s, 100 * (v->anchored_forward_s / v->forward_s - 1));
    const struct {
        const char *name;
        double scale, predicted, measured;
    } rows[] = {{"tokens/s", 1, p->tokens_per_s, v->tokens_per_s},
                {"MFU, %", 100, p->mfu, v->mfu},
                {"TTFT mean, ms", 1e3, p->ttft_s.mean, v->ttft_s.mean},
                {"TTFT p50, ms", 1e3, p->ttft_s.p50, v->ttft_s.p50},
                {"TTFT p99, ms", 1e3, p->ttft_s.p99, v->ttft_s.p99},
                {"SM clock, MHz", 1, v->compare.clock_predicted, v->compare.clock_measured}};
    bool trace = v->setup.experiment.trace[0] != 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].measured > 0 && rows[i].predicted > 0 && (trace || i < 2 || i == 5))
            fr_text_add(out, "  %-16s %12.3f %12.3f %+8.1f %%\n", rows[i].name, rows[i].scale * rows[i].predicted,
                        rows[i].scale * rows[i].measured, 100 * (rows[i].predicted / rows[i].measured - 1));
}

/* Error of the row of this name with anchors; NaN where there is none. */
static double anchored_error(const fr_compare_row *anchored, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (strcmp(anchored[i].name, name) == 0) return anchored[i].sum.predicted / anchored[i].sum.measured - 1;
    return NAN;
}

/* "  +3.1%", as wide where it is not known. */
static void add_error(double error, fr_text *out) {
    if (isfinite(error))
        fr_text_add(out, " %+7.1f%%", 100 * error);
    else
        fr_text_add(out, " %8s", "");
}

/* With anchors: their errors beside. */
static void rows_table(const char *title, const fr_compare_row *r, int count, const fr_compare_row *anchored,
                       int anchored_count, fr_text *out) {
    if (!count) return;
    fr_text_add(out, "  %-22s %7s %13s %13s %8s%s | single ops: %6s %6s %7s %7s\n", title, "ops", "predicted us",
                "measured us", "total", anchored_count ? " anchored" : "", "median", "p95", "worst", "bias");
    for (int i = 0; i < count; i++) {
        double n = (double)r[i].count;
        fr_text_add(out, "  %-22s %7" PRId64 " %13.1f %13.1f %+7.1f%%", r[i].name, r[i].count,
                    r[i].sum.predicted / n / 1e3, r[i].sum.measured / n / 1e3,
                    100 * (r[i].sum.predicted / r[i].sum.measured - 1));
        if (anchored_count) add_error(anchored_error(anchored, anchored_count, r[i].name), out);
        fr_text_add(out, " |             %5.1f%% %5.1f%% %6.1f%% %+6.1f%%\n", 100 * r[i].each.median,
                    100 * r[i].each.p95, 100 * r[i].each.worst, 100 * r[i].each.bias);
    }
}

/* What a replay's queue makes of a little more or less service time. */
static void service_table(const fr_validation *v, fr_text *out) {
    const fr_service_point *s = v->service;
    const fr_result *p = &v->predicted;
    if (!(s[0].factor > 0)) return;
    fr_text_add(out, "  %-16s", "kernels' time");
    for (int i = 0; i < FR_SERVICE_POINTS; i++)
        fr_text_add(out, "%s%+8.0f %%", i == FR_SERVICE_POINTS / 2 ? "     as is" : "", 100 * (s[i].factor - 1));
    fr_text_add(out, "   measured\n  %-16s", "TTFT mean, ms");
    for (int i = 0; i < FR_SERVICE_POINTS; i++) {
        if (i == FR_SERVICE_POINTS / 2) fr_text_add(out, "%10.1f", 1e3 * p->ttft_s.mean);
        fr_text_add(out, "%10.1f", 1e3 * s[i].ttft_s.mean);
    }
    fr_text_add(out, " %10.1f\n  %-16s", 1e3 * v->ttft_s.mean, "TTFT p99, ms");
    for (int i = 0; i < FR_SERVICE_POINTS; i++) {
        if (i == FR_SERVICE_POINTS / 2) fr_text_add(out, "%10.1f", 1e3 * p->ttft_s.p99);
        fr_text_add(out, "%10.1f", 1e3 * s[i].ttft_s.p99);
    }
    fr_text_add(out, " %10.1f\n", 1e3 * v->ttft_s.p99);
}

static void parts_table(const fr_compare *c, fr_text *out) {
    const struct {
        const char *name;
        int64_t predicted, measured;
    } rows[] = {{"compute", c->predicted.compute, c->measured.compute},
                {"exposed comm.", c->predicted.exposed_comm, c->measured.exposed_comm},
                {"wait", c->predicted.wait, c->measured.wait},
                {"bubble", c->predicted.bubble, c->measured.bubble},
                {"idle", c->predicted.idle, c->measured.idle},
                {"elapsed", c->predicted.elapsed, c->measured.elapsed}};
    fr_text_add(out, "  %-16s %12s %12s %12s   of the run\n", "where it went, ms", "predicted", "measured", "missed");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double missed = (double)(rows[i].measured - rows[i].predicted);
        fr_text_add(out, "  %-16s %12.3f %12.3f %+12.3f   %+.2f %%\n", rows[i].name, (double)rows[i].predicted / 1e6,
                    (double)rows[i].measured / 1e6, missed / 1e6,
                    c->measured.elapsed > 0 ? 100 * missed / (double)c->measured.elapsed : 0.0);
    }
}

void cli_validate_details(const fr_validation *v, fr_text *out) {
    const fr_compare *c = &v->compare, *a = &v->anchored_compare;
    fr_text_add(out, "run %" PRId64 ": %s\n  routing: %s\n", v->run, v->label,
                v->own_routing ? "as the run recorded it" : "as the experiment assumes");
    whole(v, out);
    service_table(v, out);
    stats_line("forwards", &c->forward, out);
    stats_line("requests, TTFT", &c->request, out);
    if (c->other_batches)
        fr_text_add(out, "  %" PRId64 " live forwards had other batches than simulated ones and are not joined\n",
                    c->other_batches);
    rows_table("op kind", c->kinds, c->kinds_count, a->kinds, a->kinds_count, out);
    rows_table("lane", c->lanes, c->lanes_count, a->lanes, a->lanes_count, out);
    if (c->only_predicted || c->only_measured)
        fr_text_add(out, "  ops of one side only: %" PRId64 " predicted, %" PRId64 " measured\n", c->only_predicted,
                    c->only_measured);
    parts_table(c, out);
    for (int i = 0; i < TOP && i < c->causes_count; i++) {
        fr_text_add(out, i ? "  %d. " : "  top causes\n  %d. ", i + 1);
        fr_compare_words(c, &c->causes[i], out);
        fr_text_add(out, "\n");
    }
    for (int r = 0; v->anchored && r < v->plan->ranks; r++) {
        const fr_card *card = &v->cards[r];
        if (!card->bursts && !card->held) continue;
        fr_text_add(out, "  rank %d's GPU over the table (%s):", r, card->uuid);
        for (int k = FR_CLASS_MEMORY; k <= FR_CLASS_GROUPED; k++)
            fr_text_add(out, " %s %.3f,", fr_op_class_name((fr_op_class)k), card->time[k]);
        fr_text_add(out, " power at a clock %.3f\n", card->draw);
    }
}

void cli_validate_list(const fr_validation *v, int count, fr_text *out) {
    enum { MOST = 46 }; /* of a run's name here: --details has it in full */
    int width = 12;
    bool any = false;
    for (int i = 0; i < count; i++) {
        const int length = (int)strnlen(v[i].label, MOST);
        width = length > width ? length : width;
        any |= v[i].anchored;
    }
    fr_text_add(out, "%4s %-*s %10s %10s %8s%s  interval, top cause\n", "run", width, "times in ms", "predicted",
                "measured", "error", any ? " anchored" : "");
    for (int i = 0; i < count; i++, v++) {
        fr_text_add(out, "%4" PRId64 " %-*.*s %10.3f %10.3f %+6.1f %%", v->run, width, width, v->label,
                    1e3 * v->predicted.forward_s, 1e3 * v->forward_s, 100 * error_of(v));
        if (v->anchored)
            fr_text_add(out, " %+6.1f %%", 100 * (v->anchored_forward_s / v->forward_s - 1));
        else
            fr_text_add(out, "%s", any ? "         " : "");
        fr_text_add(out, "  %s", inside(v) ? "in " : "OUT");
        if (v->compare.causes_count) {
            const fr_cause *c = &v->compare.causes[0];
            fr_text_add(out, " %s %+.1f %%",
                        c->what == FR_MISSED_OP ? fr_op_name((fr_op_kind)c->kind) : fr_missed_name(c->what),
                        v->compare.measured.elapsed > 0 ? 100 * c->ns / (double)v->compare.measured.elapsed : 0.0);
        }
        fr_text_add(out, "\n");
    }
}

static void totals_table(const char *title, const fr_compare_row *r, int count, const fr_compare_row *anchored,
                         int anchored_count, fr_text *out) {
    if (!count) return;
    fr_text_add(out, "  %-16s %8s %13s %13s %9s%s\n", title, "ops", "predicted ms", "measured ms", "total",
                anchored_count ? " anchored" : "");
    for (int i = 0; i < count; i++) {
        fr_text_add(out, "  %-16s %8" PRId64 " %13.3f %13.3f %+7.1f %%", r[i].name, r[i].count,
                    r[i].sum.predicted / 1e6, r[i].sum.measured / 1e6,
                    100 * (r[i].sum.predicted / r[i].sum.measured - 1));
        if (anchored_count) add_error(anchored_error(anchored, anchored_count, r[i].name), out);
        fr_text_add(out, "\n");
    }
}

void cli_validate_summary(const fr_validation *v, int count, fr_text *out) {
    fr_validate_summary s;
    fr_validate_summarise(v, count, &s);
    fr_text_add(out, "all %d runs\n", count);
    stats_line("forward time", &s.forward, out);
    stats_line("  with anchors", &s.anchored, out);
    stats_line("single forwards", &s.single, out);
    stats_line("replays, tokens/s", &s.throughput, out);
    stats_line("replays, TTFT", &s.ttft_mean, out);
    stats_line("replays, p99", &s.ttft_p99, out);
    stats_line("single requests", &s.request, out);
    fr_text_add(out, "  intervals hold %" PRId64 " of %d, half-width %.1f %% on average\n", s.inside, count,
                100 * s.width);
    if (s.pairs)
        fr_text_add(out, "  layouts under one load, gaps above 3 %%: %" PRId64 " of %" PRId64 " pairs ranked alike\n",
                    s.agree, s.pairs);
    totals_table("op kind", s.kinds, s.kinds_count, s.anchored_kinds, s.anchored_kinds_count, out);
    totals_table("lane", s.lanes, s.lanes_count, NULL, 0, out);
    for (int i = 0; i < TOP && i < s.causes_count; i++) {
        fr_text_add(out, i ? "  %d. " : "  top causes\n  %d. ", i + 1);
        fr_validate_words(&s, i, out);
        fr_text_add(out, "\n");
    }
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static json_t *real(double v) {
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *stats_json(const fr_error_stats *s) {
    return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o}", "count", (json_int_t)s->count, "mean", real(s->mean), "median",
                     real(s->median), "p95", real(s->p95), "worst", real(s->worst), "bias", real(s->bias));
}

static json_t *rows_json(const fr_compare_row *r, int count, bool each, const fr_compare_row *anchored,
                         int anchored_count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        json_t *o = json_pack("{s:s, s:I, s:f, s:f, s:o}", "name", r[i].name, "ops", (json_int_t)r[i].count,
                              "predicted_s", r[i].sum.predicted * 1e-9, "measured_s", r[i].sum.measured * 1e-9,
                              "total_error", real(r[i].sum.predicted / r[i].sum.measured - 1));
        if (anchored_count)
            json_object_set_new(o, "anchored_error", real(anchored_error(anchored, anchored_count, r[i].name)));
        if (each) json_object_set_new(o, "single", stats_json(&r[i].each));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *parts_json(const fr_parts *p) {
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "elapsed_s", (double)p->elapsed * 1e-9, "compute_s",
                     (double)p->compute * 1e-9, "exposed_comm_s", (double)p->exposed_comm * 1e-9, "wait_s",
                     (double)p->wait * 1e-9, "bubble_s", (double)p->bubble * 1e-9, "idle_s", (double)p->idle * 1e-9);
}

static json_t *causes_json(const fr_compare *c) {
    json_t *list = json_array();
    for (int i = 0; i < c->causes_count; i++) {
        fr_text words = {0};
        fr_compare_words(c, &c->causes[i], &words);
        json_array_append_new(
            list, json_pack("{s:s, s:s?, s:f, s:s}", "what", fr_missed_name(c->causes[i].what), "kind",
                            c->causes[i].what == FR_MISSED_OP ? fr_op_name((fr_op_kind)c->causes[i].kind) : NULL,
                            "missed_s", c->causes[i].ns * 1e-9, "words", words.text));
        fr_text_free(&words);
    }
    return list;
}

static json_t *quantiles_json(const fr_quantiles *q) {
    return json_pack("{s:o, s:o, s:o, s:o}", "mean", real(q->mean), "p50", real(q->p50), "p90", real(q->p90), "p99",
                     real(q->p99));
}

static json_t *side_json(double forward, double tokens, double mfu, double mhz, const fr_quantiles *ttft,
                         const fr_parts *parts) {
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "forward_s", real(forward), "tokens_per_s", real(tokens), "mfu",
                     real(mfu), "clock_mhz", real(mhz), "ttft_s", quantiles_json(ttft), "parts", parts_json(parts));
}

static json_t *service_json(const fr_validation *v) {
    json_t *list = json_array();
    for (int i = 0; i < FR_SERVICE_POINTS && v->service[i].factor > 0; i++)
        json_array_append_new(list, json_pack("{s:f, s:o, s:o}", "factor", v->service[i].factor, "tokens_per_s",
                                              real(v->service[i].tokens_per_s), "ttft_s",
                                              quantiles_json(&v->service[i].ttft_s)));
    return list;
}

static json_t *run_json(const fr_validation *v) {
    const fr_compare *c = &v->compare, *a = &v->anchored_compare;
    const fr_result *p = &v->predicted;
    json_t *o = json_pack("{s:I, s:s?, s:s, s:s, s:f, s:b}", "run", (json_int_t)v->run, "cell",
                          v->cell[0] ? v->cell : NULL, "label", v->label, "routing",
                          v->own_routing ? "recorded" : "assumed", "error", error_of(v), "inside", inside(v));
    json_object_set_new(
        o, "interval", json_pack("{s:f, s:f}", "forward_low_s", p->forward_low_s, "forward_high_s", p->forward_high_s));
    json_object_set_new(
        o, "predicted",
        side_json(p->forward_s, p->tokens_per_s, p->mfu, c->clock_predicted, &p->ttft_s, &c->predicted));
    json_object_set_new(o, "measured",
                        side_json(v->forward_s, v->tokens_per_s, v->mfu, c->clock_measured, &v->ttft_s, &c->measured));
    json_object_set_new(o, "anchored_error",
                        v->anchored ? real(v->anchored_forward_s / v->forward_s - 1) : json_null());
    json_object_set_new(o, "service", service_json(v));
    json_object_set_new(o, "forwards", stats_json(&c->forward));
    json_object_set_new(o, "requests", stats_json(&c->request));
    json_object_set_new(o, "kinds", rows_json(c->kinds, c->kinds_count, true, a->kinds, a->kinds_count));
    json_object_set_new(o, "lanes", rows_json(c->lanes, c->lanes_count, true, a->lanes, a->lanes_count));
    json_object_set_new(o, "causes", causes_json(c));
    json_object_set_new(o, "unjoined",
                        json_pack("{s:I, s:I, s:I}", "predicted", (json_int_t)c->only_predicted, "measured",
                                  (json_int_t)c->only_measured, "forwards", (json_int_t)c->other_batches));
    return o;
}

json_t *cli_validate_json(const fr_validation *v, int count) {
    fr_validate_summary s;
    fr_validate_summarise(v, count, &s);
    json_t *runs = json_array(), *causes = json_array();
    for (int i = 0; i < count; i++) json_array_append_new(runs, run_json(&v[i]));
    for (int i = 0; i < s.causes_count; i++) {
        fr_text words = {0};
        fr_validate_words(&s, i, &words);
        json_array_append_new(
            causes, json_pack("{s:s, s:s?, s:f, s:f, s:s}", "what", fr_missed_name(s.causes[i].what), "kind",
                              s.causes[i].what == FR_MISSED_OP ? fr_op_name((fr_op_kind)s.causes[i].kind) : NULL,
                              "share", s.causes[i].ns, "bias", s.causes_bias[i], "words", words.text));
        fr_text_free(&words);
    }
    json_t *all =
        json_pack("{s:i, s:o, s:o, s:o, s:o, s:o}", "runs", count, "forward", stats_json(&s.forward),
                  "forward_anchored", stats_json(&s.anchored), "replay_tokens_per_s", stats_json(&s.throughput),
                  "replay_ttft_mean", stats_json(&s.ttft_mean), "replay_ttft_p99", stats_json(&s.ttft_p99));
    json_object_set_new(all, "single_forwards", stats_json(&s.single));
    json_object_set_new(all, "single_requests", stats_json(&s.request));
    json_object_set_new(all, "inside", json_integer(s.inside));
    json_object_set_new(all, "interval_half_width", json_real(s.width));
    json_object_set_new(all, "ranked_pairs", json_integer(s.pairs));
    json_object_set_new(all, "ranked_alike", json_integer(s.agree));
    json_object_set_new(all, "kinds",
                        rows_json(s.kinds, s.kinds_count, false, s.anchored_kinds, s.anchored_kinds_count));
    json_object_set_new(all, "lanes", rows_json(s.lanes, s.lanes_count, false, NULL, 0));
    json_object_set_new(all, "causes", causes);
    return json_pack("{s:o, s:o}", "runs", runs, "summary", all);
}

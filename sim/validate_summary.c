/* Many validated runs as one: errors over runs, op kinds, causes, and whether layouts are ranked alike. */
#include "sim/validate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Layouts are compared where nothing else differs. */
static bool same_load(const fr_validation *a, const fr_validation *b) {
    const fr_experiment *x = &a->setup.experiment, *y = &b->setup.experiment;
    return strcmp(x->model, y->model) == 0 && strcmp(x->machine, y->machine) == 0 && x->tokens == y->tokens &&
           x->seq == y->seq && x->prefix == y->prefix && strcmp(x->routing, y->routing) == 0 &&
           strcmp(x->trace, y->trace) == 0 && x->regime == y->regime && x->layout.precision == y->layout.precision &&
           fr_layout_layers(&x->layout, &a->setup.model) == fr_layout_layers(&y->layout, &b->setup.model) &&
           fr_layout_gpus(&x->layout) == fr_layout_gpus(&y->layout);
}

#define CLEAR 1.03 /* a measured gap that counts */

static void rank_pairs(const fr_validation *v, int count, fr_validate_summary *out) {
    for (int i = 0; i < count; i++)
        for (int k = i + 1; k < count; k++) {
            double gap = v[i].tokens_per_s / v[k].tokens_per_s;
            if (!same_load(&v[i], &v[k]) || (gap < CLEAR && gap > 1 / CLEAR)) continue;
            out->pairs++;
            out->agree += (v[i].predicted.tokens_per_s > v[k].predicted.tokens_per_s) == (gap > 1);
        }
}

/* Rows of one kind, or of one name where they have none, as one. */
static void add_rows(const fr_compare_row *from, int count, bool by_kind, int most, fr_compare_row *to, int *have) {
    for (int i = 0; i < count; i++) {
        int k = 0;
        while (k < *have && (by_kind ? to[k].kind != from[i].kind : strcmp(to[k].name, from[i].name) != 0)) k++;
        if (k == most) continue;
        if (k == *have) {
            to[(*have)++] = from[i];
            to[k].each = (fr_error_stats){0};
            continue;
        }
        to[k].count += from[i].count;
        to[k].sum.predicted += from[i].sum.predicted;
        to[k].sum.measured += from[i].sum.measured;
    }
}

static void add_causes(const fr_validation *v, int runs, fr_validate_summary *out) {
    for (int i = 0; i < v->compare.causes_count && v->compare.measured.elapsed > 0; i++) {
        const fr_cause *c = &v->compare.causes[i];
        const double share = c->ns / (double)v->compare.measured.elapsed / runs;
        int k = 0;
        while (k < out->causes_count && (out->causes[k].what != c->what || out->causes[k].kind != c->kind)) k++;
        if (k == FR_MOST_CAUSES) continue;
        if (k == out->causes_count) {
            out->causes[out->causes_count++] = (fr_cause){c->what, c->kind, 0};
            out->causes_bias[k] = 0;
        }
        out->causes[k].ns += fabs(share);
        out->causes_bias[k] += share;
    }
}

/* By falling size; the signed shares go along. */
static void sort_causes(fr_validate_summary *s) {
    for (int i = 1; i < s->causes_count; i++)
        for (int k = i; k > 0 && s->causes[k].ns > s->causes[k - 1].ns; k--) {
            const fr_cause c = s->causes[k];
            const double bias = s->causes_bias[k];
            s->causes[k] = s->causes[k - 1];
            s->causes_bias[k] = s->causes_bias[k - 1];
            s->causes[k - 1] = c;
            s->causes_bias[k - 1] = bias;
        }
}

/* Errors of all joined forwards, or of all requests of replays. */
static fr_error_stats pooled(const fr_validation *v, int count, bool requests) {
    int64_t n = 0;
    for (int i = 0; i < count; i++) n += requests ? v[i].compare.ttft_count : v[i].compare.forwards_count;
    double *errors = fr_alloc(((size_t)n + 1) * sizeof *errors);
    n = 0;
    for (int i = 0; i < count; i++) {
        const fr_compare *c = &v[i].compare;
        const fr_pair_ns *pairs = requests ? c->ttft : c->forwards;
        const int64_t own = requests ? v[i].replay ? c->ttft_count : 0 : c->forwards_count;
        for (int64_t k = 0; k < own; k++) errors[n++] = pairs[k].predicted / pairs[k].measured - 1;
    }
    const fr_error_stats s = fr_error_stats_of(errors, n);
    free(errors);
    return s;
}

static int by_time(const void *a, const void *b) {
    const fr_compare_row *x = a, *y = b;
    return (x->sum.measured < y->sum.measured) - (x->sum.measured > y->sum.measured);
}

void fr_validate_summarise(const fr_validation *v, int count, fr_validate_summary *out) {
    *out = (fr_validate_summary){0};
    double *e[5];
    int64_t n[5] = {0};
    for (int i = 0; i < 5; i++) e[i] = fr_alloc(((size_t)count + 1) * sizeof *e[i]);
    for (int i = 0; i < count; i++) {
        const fr_result *p = &v[i].predicted;
        e[0][n[0]++] = p->forward_s / v[i].forward_s - 1;
        if (v[i].anchored) e[1][n[1]++] = v[i].anchored_forward_s / v[i].forward_s - 1;
        if (v[i].setup.experiment.trace[0] && v[i].replay) {
            e[2][n[2]++] = p->tokens_per_s / v[i].tokens_per_s - 1;
            if (v[i].ttft_s.mean > 0) e[3][n[3]++] = p->ttft_s.mean / v[i].ttft_s.mean - 1;
            if (v[i].ttft_s.p99 > 0) e[4][n[4]++] = p->ttft_s.p99 / v[i].ttft_s.p99 - 1;
        }
        out->inside += v[i].forward_s >= p->forward_low_s && v[i].forward_s <= p->forward_high_s;
        out->width += (p->forward_high_s - p->forward_low_s) / 2 / p->forward_s / count;
        add_rows(v[i].compare.kinds, v[i].compare.kinds_count, true, FR_OP_KIND_COUNT, out->kinds, &out->kinds_count);
        add_rows(v[i].compare.lanes, v[i].compare.lanes_count, false, FR_MOST_LANES, out->lanes, &out->lanes_count);
        add_rows(v[i].anchored_compare.kinds, v[i].anchored_compare.kinds_count, true, FR_OP_KIND_COUNT,
                 out->anchored_kinds, &out->anchored_kinds_count);
        add_causes(&v[i], count, out);
    }
    out->single = pooled(v, count, false);
    out->request = pooled(v, count, true);
    fr_error_stats *to[5] = {&out->forward, &out->anchored, &out->throughput, &out->ttft_mean, &out->ttft_p99};
    for (int i = 0; i < 5; i++) {
        *to[i] = fr_error_stats_of(e[i], n[i]);
        free(e[i]);
    }
    rank_pairs(v, count, out);
    qsort(out->kinds, (size_t)out->kinds_count, sizeof *out->kinds, by_time);
    qsort(out->lanes, (size_t)out->lanes_count, sizeof *out->lanes, by_time);
    sort_causes(out);
}

void fr_validate_words(const fr_validate_summary *s, int cause, fr_text *out) {
    static const char *const said[] = {[FR_MISSED_CLOCK] = "what all kernels that follow the SM clock have in common",
                                       [FR_MISSED_EXPOSED] = "communication that compute waits for",
                                       [FR_MISSED_WAIT] = "waiting for other ranks",
                                       [FR_MISSED_BUBBLE] = "pipeline bubbles",
                                       [FR_MISSED_IDLE] = "gaps between kernels",
                                       [FR_MISSED_REST] = "compute outside timed ops"};
    const fr_cause *c = &s->causes[cause];
    const double bias = 100 * s->causes_bias[cause];
    fr_text_add(out, "%s: %.2f %% of a run either way, %.2f %% %s than predicted on balance",
                c->what == FR_MISSED_OP ? fr_op_name((fr_op_kind)c->kind) : said[c->what], 100 * c->ns, fabs(bias),
                bias > 0 ? "longer" : "shorter");
}

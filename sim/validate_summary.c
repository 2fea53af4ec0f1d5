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

static void add_kinds(const fr_validation *v, fr_validate_summary *out) {
    for (int i = 0; i < v->compare.kinds_count; i++) {
        const fr_compare_row *r = &v->compare.kinds[i];
        int k = 0;
        while (k < out->kinds_count && out->kinds[k].kind != r->kind) k++;
        if (k == out->kinds_count) {
            out->kinds[k] = *r;
            out->kinds[k].each = (fr_error_stats){0};
            out->kinds_count++;
            continue;
        }
        out->kinds[k].count += r->count;
        out->kinds[k].sum.predicted += r->sum.predicted;
        out->kinds[k].sum.measured += r->sum.measured;
    }
}

static void add_causes(const fr_validation *v, fr_validate_summary *out) {
    for (int i = 0; i < v->compare.causes_count && v->compare.measured.elapsed > 0; i++) {
        const fr_cause *c = &v->compare.causes[i];
        int k = 0;
        while (k < out->causes_count && (out->causes[k].what != c->what || out->causes[k].kind != c->kind)) k++;
        if (k == out->causes_count) {
            if (k == FR_MOST_CAUSES) continue;
            out->causes[out->causes_count++] = (fr_cause){c->what, c->kind, 0};
        }
        out->causes[k].ns += fabs(c->ns) / (double)v->compare.measured.elapsed;
    }
}

static int by_time(const void *a, const void *b) {
    const fr_compare_row *x = a, *y = b;
    return (x->sum.measured < y->sum.measured) - (x->sum.measured > y->sum.measured);
}

static int by_share(const void *a, const void *b) {
    const fr_cause *x = a, *y = b;
    return (x->ns < y->ns) - (x->ns > y->ns);
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
        add_kinds(&v[i], out);
        add_causes(&v[i], out);
    }
    fr_error_stats *to[5] = {&out->forward, &out->anchored, &out->throughput, &out->ttft_mean, &out->ttft_p99};
    for (int i = 0; i < 5; i++) {
        *to[i] = fr_error_stats_of(e[i], n[i]);
        free(e[i]);
    }
    rank_pairs(v, count, out);
    qsort(out->kinds, (size_t)out->kinds_count, sizeof *out->kinds, by_time);
    qsort(out->causes, (size_t)out->causes_count, sizeof *out->causes, by_share);
}

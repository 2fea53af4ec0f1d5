#include "engine/cost/cost_fit.h"

#include <math.h>
#include <stdlib.h>

/* Rows nearer than this in log b are one point: the structural model cannot tell them apart. */
#define SAME_X 1e-6

static int by_b(const void *a, const void *b) {
    const fr_sample *x = a, *y = b;
    if (x->b != y->b) return x->b < y->b ? -1 : 1;
    if (x->t != y->t) return x->t < y->t ? -1 : 1;
    return 0;
}

/* One block of pooled rows: mean of log T, and of log b's range its ends. */
typedef struct {
    int first, count;
    double sum;
} block;

static double block_mean(const block *b) {
    return b->sum / b->count;
}

static void add_point(fr_curve *c, double x, double y, const fr_sample *s, int count) {
    int i = c->points;
    if (i > 0 && x - c->x[i - 1] < SAME_X) i--; /* cannot happen for distinct blocks; keeps x strictly ascending */
    if (i == c->points) {
        c->points++;
        c->low[i] = c->high[i] = 0;
        c->provenance[i] = 0;
    }
    double clock = 0;
    int clocked = 0;
    for (int k = 0; k < count; k++) {
        clock += s[k].clock;
        clocked += s[k].clock > 0;
    }
    c->clock[i] = clocked ? clock / clocked : 0;
    c->x[i] = x;
    c->y[i] = y;
    for (int k = 0; k < count; k++) {
        c->low[i] = fr_least(c->low[i], log(s[k].low) - y);
        c->high[i] = fr_most(c->high[i], log(s[k].high) - y);
        if (s[k].provenance > c->provenance[i]) c->provenance[i] = s[k].provenance;
    }
}

/* Featured families: the curve is only the trend, rows within an octave of b make one point (mean log b, mean log T/b);
 * what sets them apart is left to the residuals. Returns how many samples are in trend[], sorted by b. */
#define OCTAVE 0.7
static int octaves(const fr_sample *s, int count, fr_sample *trend) {
    int n = 0;
    for (int i = 0; i < count;) {
        int j = i;
        double x = 0, y = 0, clock = 0;
        int clocked = 0;
        fr_sample t = s[i];
        for (; j < count && log(s[j].b / s[i].b) <= OCTAVE; j++) {
            x += log(s[j].b);
            y += log(s[j].t / s[j].b);
            if (s[j].provenance > t.provenance) t.provenance = s[j].provenance;
            clock += s[j].clock;
            clocked += s[j].clock > 0;
        }
        t.clock = clocked ? clock / clocked : 0;
        t.b = exp(x / (j - i));
        t.t = t.low = t.high = exp(x / (j - i) + y / (j - i));
        double low = 0, high = 0; /* widest relative spread of the rows */
        for (int k = i; k < j; k++) {
            low = fr_least(low, log(s[k].low / s[k].t));
            high = fr_most(high, log(s[k].high / s[k].t));
        }
        t.low *= exp(low);
        t.high *= exp(high);
        trend[n++] = t;
        i = j;
    }
    return n;
}

/* Pool adjacent violators on log T over rows sorted by b; a pooled block becomes a flat piece over its range of b. */
static void pool(fr_curve *c, const fr_sample *s, int count) {
    block *blocks = fr_alloc((size_t)count * sizeof *blocks);
    int n = 0;
    for (int i = 0; i < count; i++) {
        block now = {i, 1, log(s[i].t)};
        /* equal b is one point; a mean below the one before violates monotony */
        while (n > 0) {
            const block *before = &blocks[n - 1];
            bool same = log(s[now.first].b) - log(s[before->first + before->count - 1].b) < SAME_X;
            if (!same && block_mean(before) <= block_mean(&now)) break;
            now = (block){before->first, before->count + now.count, before->sum + now.sum};
            n--;
        }
        blocks[n++] = now;
    }
    for (int i = 0; i < n; i++) {
        const fr_sample *first = &s[blocks[i].first], *last = first + blocks[i].count - 1;
        double y = block_mean(&blocks[i]);
        add_point(c, log(first->b), y, first, blocks[i].count);
        if (log(last->b) - log(first->b) >= SAME_X) add_point(c, log(last->b), y, first, blocks[i].count);
    }
    free(blocks);
}

/* What the neighbours say of point i: linear in log-log inside, constant T/b at the ends. */
static double without(const fr_curve *c, int i) {
    if (i == 0) return c->y[1] + c->x[0] - c->x[1];
    if (i == c->points - 1) return c->y[i - 1] + c->x[i] - c->x[i - 1];
    double f = (c->x[i] - c->x[i - 1]) / (c->x[i + 1] - c->x[i - 1]);
    return c->y[i - 1] + f * (c->y[i + 1] - c->y[i - 1]);
}

/* Half an octave. Less lets the sum of curve and residuals fall where a new tile moves a batch in the second coordinate
 * (by 4 % at 0.05), and predicts left-out rows no better (8.3 % at 0.05 to 0.30); rows are met within 3 %. */
#define NEAR 0.30

/*
 * Deviation at (x, f) from rows other than `skip`: Shepard's inverse distances, power 4, against a prior of no
 * deviation one unit of log (a factor of e) away.
 */
static double residual(const fr_curve *c, double x, double f, int skip, bool *same) {
    double sum = 0, weight = 1, near = NEAR * NEAR;
    *same = false;
    for (int i = 0; i < c->residuals; i++) {
        if (i == skip) continue;
        double dx = x - c->rx[i], df = f - c->rf[i], d = dx * dx + df * df;
        *same |= d <= SAME_X * SAME_X;
        double w = 1 / ((d + near) * (d + near));
        sum += w * c->rr[i];
        weight += w;
    }
    return sum / weight;
}

/*
 * SM clock at (x, f): rows of one time may run at clocks a fifth apart, those that wait for bytes at 1,800 MHz and
 * those that fill the tensor cores at 1,440. A row counts with the clock at which its cycles make the curve's time:
 * under the limit it is cycles that hold, and cards differ in both. Layers under the limit, of 32 to 1,024 rows an
 * expert, are met within 1.5 % in the median at their own clock, within 5 with each row's clock as it was. A smaller
 * NEAR is better by half a per cent, but where rows of one time and another clock meet more rows would cost up to 2 %
 * less under the limit (H100: 5); so up to 0.8 (1.4), in one of a thousand steps.
 */
#define NEAR_CLOCK 0.3
static double clock_at(const fr_curve *c, double x, double f) {
    double sum = 0, weight = 0;
    for (int i = 0; i < c->clocks; i++) {
        const double dx = x - c->rx[i], df = f - c->rf[i], d = dx * dx + df * df + NEAR_CLOCK * NEAR_CLOCK;
        const double w = 1 / (d * d);
        sum += w * c->rr[i];
        weight += w;
    }
    return sum / weight;
}

static void eval_curve(const fr_curve *c, double x, fr_curve_value *out) {
    int last = c->points - 1, i = 0;
    *out = (fr_curve_value){.segment = -1};
    if (x <= c->x[0] + SAME_X || x >= c->x[last] - SAME_X || !c->spline) {
        i = x < c->x[0] + SAME_X ? 0 : last;
        out->beyond = fabs(x - c->x[i]) <= SAME_X ? 0 : fabs(x - c->x[i]);
        out->y = out->beyond > 0 ? c->y[i] + x - c->x[i] : c->y[i];
        out->at_row = out->inside = out->beyond <= 0;
        out->low = c->low[i];
        out->high = c->high[i];
        out->clock = c->clock[i];
        out->provenance = c->provenance[i];
        return;
    }
    i = (int)gsl_interp_bsearch(c->x, x, 0, (size_t)last);
    bool left = x - c->x[i] <= SAME_X, right = c->x[i + 1] - x <= SAME_X;
    gsl_interp_accel here = {.cache = (size_t)i};
    out->inside = true;
    out->at_row = left || right;
    out->y = left ? c->y[i] : right ? c->y[i + 1] : gsl_interp_eval(c->spline, c->x, c->y, x, &here);
    if (!out->at_row) out->segment = i;
    int a = right ? i + 1 : i, b = left ? i : i + 1;
    out->low = fr_least(c->low[a], c->low[b]);
    out->high = fr_most(c->high[a], c->high[b]);
    double f = a == b ? 0 : (x - c->x[a]) / (c->x[b] - c->x[a]);
    bool both = c->clock[a] > 0 && c->clock[b] > 0;
    out->clock = both ? c->clock[a] + f * (c->clock[b] - c->clock[a]) : fr_most(c->clock[a], c->clock[b]);
    out->provenance = c->provenance[a] > c->provenance[b] ? c->provenance[a] : c->provenance[b];
}

static void alloc_rows(fr_curve *c, int count) {
    c->rx = fr_alloc((size_t)count * sizeof(double));
    c->rf = fr_alloc((size_t)count * sizeof(double));
    c->rr = fr_alloc((size_t)count * sizeof(double));
}

static void keep_clocks(fr_curve *c, const fr_sample *s, int count) {
    alloc_rows(c, count);
    for (int i = 0; i < count; i++) {
        fr_curve_value v;
        if (s[i].clock <= 0) continue;
        c->rx[c->clocks] = log(s[i].b);
        c->rf[c->clocks] = s[i].feature;
        eval_curve(c, c->rx[c->clocks], &v);
        c->rr[c->clocks++] = s[i].clock * s[i].t / exp(v.y);
    }
}

static void fit_residuals(fr_curve *c, const fr_sample *s, int count) {
    alloc_rows(c, count);
    for (int i = 0; i < count; i++) {
        fr_curve_value v;
        fr_curve_eval(c, log(s[i].b), s[i].feature, &v);
        c->rx[i] = log(s[i].b);
        c->rf[i] = s[i].feature;
        c->rr[i] = log(s[i].t) - v.y;
    }
    c->residuals = count;
    double sum = 0;
    bool same;
    for (int i = 0; i < count; i++) sum += pow(c->rr[i] - residual(c, c->rx[i], c->rf[i], i, &same), 2);
    if (count >= 4) c->error = sqrt(sum / count);
}

void fr_curve_fit(fr_curve *c, fr_sample *samples, int count, fr_fit_kind kind) {
    qsort(samples, (size_t)count, sizeof *samples, by_b);
    size_t n = 2 * (size_t)count;
    *c = (fr_curve){.x = fr_alloc(n * sizeof(double)),
                    .y = fr_alloc(n * sizeof(double)),
                    .low = fr_alloc(n * sizeof(double)),
                    .high = fr_alloc(n * sizeof(double)),
                    .below = fr_alloc(n * sizeof(double)),
                    .above = fr_alloc(n * sizeof(double)),
                    .clock = fr_alloc(n * sizeof(double)),
                    .provenance = fr_alloc(n)};
    if (kind == FR_FIT_FEATURED) {
        fr_sample *trend = fr_alloc((size_t)count * sizeof *trend);
        pool(c, trend, octaves(samples, count, trend));
        free(trend);
    } else {
        pool(c, samples, count);
    }
    if (c->points >= 2) {
        c->spline = gsl_interp_alloc(c->points >= 3 && kind < FR_FIT_STRAIGHT ? gsl_interp_steffen : gsl_interp_linear,
                                     (size_t)c->points);
        if (c->spline) gsl_interp_init(c->spline, c->x, c->y, (size_t)c->points);
        double sum = 0;
        for (int i = 0; i < c->points; i++) sum += pow(without(c, i) - c->y[i], 2);
        c->error = sqrt(sum / c->points);
    } else {
        c->error = 0.10; /* one row says nothing of other sizes; a tenth is the usual fall-off seen over a decade */
    }
    if (kind == FR_FIT_FEATURED) fit_residuals(c, samples, count);
    if (kind == FR_FIT_CLOCKED) keep_clocks(c, samples, count);
    for (int i = 0; i + 1 < c->points; i++) {
        c->below[i] = exp(fr_least(c->low[i], c->low[i + 1]) - c->error);
        c->above[i] = exp(fr_most(c->high[i], c->high[i + 1]) + c->error);
    }
}

void fr_curve_free(fr_curve *c) {
    if (c->spline) gsl_interp_free(c->spline);
    free(c->x);
    free(c->y);
    free(c->low);
    free(c->high);
    free(c->below);
    free(c->above);
    free(c->clock);
    free(c->provenance);
    free(c->rx);
    free(c->rf);
    free(c->rr);
    *c = (fr_curve){0};
}

void fr_curve_eval(const fr_curve *c, double x, double feature, fr_curve_value *out) {
    eval_curve(c, x, out);
    if (c->clocks) out->clock = clock_at(c, x, feature);
    if (!c->residuals) return;
    bool same;
    out->y += residual(c, x, feature, -1, &same);
    out->at_row = same;
    if (same) out->inside = true;
}

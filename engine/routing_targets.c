/* routing: how many tokens reach a rank at all (one copy per token and target). Source in routing.h. */
#include "engine/routing_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * Polynomials in x, truncated at the power `width` - 1: before[e] = product over experts < e of (1 + w x), after[e] =
 * over experts >= e. Their coefficients are elementary symmetric polynomials.
 */
static void running_products(const double *w, int experts, size_t width, double *before, double *after) {
    size_t rows = (size_t)experts + 1;
    memset(before, 0, rows * width * sizeof *before);
    memset(after, 0, rows * width * sizeof *after);
    before[0] = after[width * (size_t)experts] = 1;
    for (size_t e = 0; e < (size_t)experts; e++) {
        const double *from = before + width * e;
        double *to = before + width * (e + 1);
        to[0] = from[0];
        for (size_t i = 1; i < width; i++) to[i] = from[i] + from[i - 1] * w[e];
    }
    for (size_t e = (size_t)experts; e-- > 0;) {
        const double *from = after + width * (e + 1);
        double *to = after + width * e;
        to[0] = from[0];
        for (size_t i = 1; i < width; i++) to[i] = from[i] + from[i - 1] * w[e];
    }
}

/* inclusion[e] = w_e * e_(k-1)(others) / e_k(all), as e_k = sum of the numerators / k. */
static void inclusions(const double *w, int experts, int k, double *before, double *after, double *inclusion) {
    size_t width = (size_t)k;
    double total = 0;
    running_products(w, experts, width, before, after);
    for (size_t e = 0; e < (size_t)experts; e++) {
        const double *left = before + width * e, *right = after + width * (e + 1);
        double others = 0;
        for (size_t i = 0; i < width; i++) others += left[i] * right[width - 1 - i];
        inclusion[e] = w[e] * others;
        total += inclusion[e];
    }
    for (int e = 0; e < experts; e++) inclusion[e] *= k / total;
}

/*
 * Weights whose inclusion probabilities are k * share. Fixed point on the odds, w <- w * odds(target) / odds(got),
 * started from the targets' odds, which are right for independent draws; below 1e-7 within a few rounds.
 */
static double *fit_weights(const double *share, int experts, int k) {
    size_t rows = (size_t)experts + 1, width = (size_t)k;
    double *w = fr_alloc((size_t)experts * sizeof *w);
    double *scratch = fr_alloc((2 * rows * width + rows) * sizeof *scratch);
    double *before = scratch, *after = before + rows * width, *got = after + rows * width;
    if (k == experts) {
        for (int e = 0; e < experts; e++) w[e] = 1; /* the one set there is */
        free(scratch);
        return w;
    }
    double worst = 1, sum;
    for (int e = 0; e < experts; e++) {
        double target = fmin(k * share[e], 1 - 1e-9);
        w[e] = target / (1 - target);
    }
    for (int round = 0; round < 100 && worst > 1e-7; round++) {
        sum = worst = 0;
        for (int e = 0; e < experts; e++) sum += w[e];
        for (int e = 0; e < experts; e++) w[e] *= k / sum; /* only ratios matter; this keeps e_k below e^k */
        inclusions(w, experts, k, before, after, got);
        for (int e = 0; e < experts; e++) {
            double target = fmin(k * share[e], 1 - 1e-9);
            worst = fmax(worst, fabs(got[e] - target));
            if (got[e] > 0 && got[e] < 1) w[e] *= target / (1 - target) * (1 - got[e]) / got[e];
        }
    }
    free(scratch);
    return w;
}

/* Made when first asked for: layouts without an all-to-all never do. Two threads may both make it, alike; one is kept.
 */
static const double *weights(const fr_routing *r, int layer) {
    _Atomic(double *) *slot = &r->weights[fr_routing_row(r, layer)];
    double *have = atomic_load(slot);
    if (have) return have;
    double *made = fit_weights(fr_routing_shares(r, layer), r->experts, r->top_k);
    if (atomic_compare_exchange_strong(slot, &have, made)) return made;
    free(made);
    return have;
}

/* poly[0..k] *= 1 + w x, truncated. */
static void times_binomial(double *poly, int k, double w) {
    for (int i = k; i > 0; i--) poly[i] += poly[i - 1] * w;
}

static void product(const double *a, const double *b, int k, double *out) {
    for (int i = 0; i <= k; i++) {
        out[i] = 0;
        for (int j = 0; j <= i; j++) out[i] += a[j] * b[i - j];
    }
}

void fr_routing_targets(const fr_routing *r, int layer, int64_t tokens, int ranks, int64_t *copies) {
    const double *w = weights(r, layer);
    int k = r->top_k;
    size_t width = (size_t)k + 1;
    /* of: each rank's polynomial; before, after: products of those on either side, so that "all others" is one product.
     */
    double *of = fr_alloc(width * (size_t)(3 * ranks + 3) * sizeof(double));
    double *before = of + width * (size_t)ranks, *after = before + width * ((size_t)ranks + 1);
    before[0] = after[width * (size_t)ranks] = 1;
    for (int t = 0; t < ranks; t++) {
        double *mine = of + width * (size_t)t;
        mine[0] = 1;
        for (int e = fr_routing_placed(r->experts, t, ranks); e < fr_routing_placed(r->experts, t + 1, ranks); e++)
            times_binomial(mine, k, w[e]);
        product(before + width * (size_t)t, mine, k, before + width * ((size_t)t + 1));
    }
    for (int t = ranks - 1; t >= 0; t--)
        product(after + width * ((size_t)t + 1), of + width * (size_t)t, k, after + width * (size_t)t);
    double all = after[k];
    for (int t = 0; t < ranks; t++) {
        double missed = 0;
        for (int j = 0; j <= k; j++)
            missed += before[width * (size_t)t + (size_t)j] * after[width * ((size_t)t + 1) + (size_t)(k - j)];
        copies[t] = fr_round((double)tokens * fmin(1, fmax(0, 1 - missed / all)));
    }
    free(of);
}

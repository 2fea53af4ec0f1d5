/* routing: shares per layer, and counts drawn from them. routing_open.c has the laws and the recorded format,
 * routing_targets.c the copies of an all-to-all. */
#include "engine/routing_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <gsl/gsl_randist.h>

int fr_routing_row(const fr_routing *r, int layer) {
    if (r->rows == 1) return 0;
    int moe = layer - r->first_layer;
    return moe < 0 ? 0 : moe % r->rows;
}

fr_skew_kind fr_routing_kind(const fr_routing *r) {
    return r->kind;
}

const double *fr_routing_shares(const fr_routing *r, int layer) {
    return r->shares + (size_t)fr_routing_row(r, layer) * (size_t)r->experts;
}

void fr_routing_close(fr_routing *r) {
    if (!r) return;
    free(r->shares);
    free(r->roots);
    for (int row = 0; row < r->rows; row++) free(atomic_load(&r->weights[row]));
    free(r->weights);
    free(r->recorded);
    free(r);
}

/* Row of counts proportional to running totals: floor(total * cumulative / sum) keeps the sum exact, each entry within
 * one of its share, and replays a recording of the same number of tokens count by count. */
static void spread_recorded(const int64_t *recorded, int experts, int64_t total, int32_t *counts) {
    int64_t sum = 0, seen = 0, placed = 0;
    for (int e = 0; e < experts; e++) sum += recorded[e];
    for (int e = 0; e < experts; e++) {
        seen += recorded[e];
        __extension__ typedef __int128 wide;
        int64_t upto = (int64_t)((wide)total * seen / sum);
        counts[e] = (int32_t)(upto - placed);
        placed = upto;
    }
}

static void spread_even(int experts, int64_t total, int32_t *counts) {
    int64_t each = total / experts, more = total % experts, carry = 0;
    for (int e = 0; e < experts; e++) { /* the remainder at equal distances, as in Bresenham's line */
        carry += more;
        bool one = carry >= experts;
        if (one) carry -= experts;
        counts[e] = (int32_t)(each + one);
    }
}

#define LARGE_MEAN    8    /* tokens per expert from which draw_large serves ... */
#define LARGE_EXPERTS 1024 /* ... models of up to so many experts */

/*
 * Multinomial of many tokens by the normal law with its mean N s and covariance N (diag(s) - s s'): x = N s + sqrt(N)
 * (sqrt(s) z - s (sqrt(s) . z)), z standard normal. Running totals are rounded, so the sum is exact. Mean and variance
 * are right for every expert; what is lost is the skewness of experts with a handful of tokens, which no cost depends
 * on. Ten times as fast as the chain below, which serves small batches.
 */
static void draw_large(const fr_routing *r, fr_routing_rng *g, int layer, int64_t tokens, int32_t *counts) {
    const size_t row = (size_t)fr_routing_row(r, layer) * (size_t)r->experts;
    const double *share = r->shares + row, *roots = r->roots + row;
    double part[LARGE_EXPERTS], n = (double)(tokens * r->top_k), root = sqrt(n);
    const double sum = fr_routing_normals(&r->normal, g, roots, r->experts, part);
    double upto = 0;
    int64_t placed = 0, left = tokens * r->top_k;
    for (int e = 0; e < r->experts; e++) {
        upto += n * share[e] + root * (part[e] - share[e] * sum);
        int64_t c = fr_min_i64(fr_max_i64((int64_t)(upto + 0.5) - placed, 0), fr_min_i64(tokens, left));
        counts[e] = (int32_t)c;
        placed += c;
        left -= c;
    }
    for (int e = 0; left > 0; e = (e + 1) % r->experts) { /* what the bounds cut off goes where there is room */
        int64_t more = fr_min_i64(left, tokens - counts[e]);
        counts[e] += (int32_t)more;
        left -= more;
    }
}

/*
 * A binomial of small mean by inversion (Kachitvichyanukul and Schmeiser, CACM 31, 1988, algorithm BINV), number for
 * number what gsl_ran_binomial makes of the same stream; GSL's own where the mean is larger, or too many steps say that
 * rounding has run away.
 */
#define SMALL_MEAN 14
#define STEPS      110
static int64_t draw_binomial(fr_routing_rng *g, double p, unsigned n) {
    if (n == 0 || p > 0.5 || n * p >= SMALL_MEAN) return gsl_ran_binomial(&g->rng, p, n);
    const uint32_t before[3] = {g->word[0], g->word[1], g->word[2]};
    const double q = 1 - p, s = p / q;
    double u = fr_routing_next(g->word) / 4294967296.0, f = 1, power = q;
    for (unsigned left = n; left; left >>= 1, power *= power) { /* q^n; no processor guesses the bits of n */
        const double factor[2] = {1, power};
        f *= factor[left & 1];
    }
    for (unsigned x = 0; x <= STEPS; x++) {
        if (u < f) return x;
        u -= f;
        f *= s * (n - x) / (x + 1);
    }
    memcpy(g->word, before, sizeof before);
    return gsl_ran_binomial(&g->rng, p, n);
}

/*
 * Multinomial by conditional binomials, each kept within what a token's k distinct experts allow: at most `tokens`, and
 * no less than what the experts left could not take.
 */
static void draw(const fr_routing *r, fr_routing_rng *g, int layer, int64_t tokens, int32_t *counts) {
    const double *share = fr_routing_shares(r, layer);
    int64_t left = tokens * r->top_k;
    if (r->experts <= LARGE_EXPERTS && left >= (int64_t)LARGE_MEAN * r->experts) {
        draw_large(r, g, layer, tokens, counts);
        return;
    }
    double mass = 1;
    for (int e = 0; e < r->experts; e++) {
        int64_t others = r->experts - e - 1;
        double p = mass > 0 ? share[e] / mass : 1;
        int64_t n = others == 0 || p >= 1 ? left : draw_binomial(g, p, (unsigned)left);
        n = fr_min_i64(fr_max_i64(n, left - tokens * others), fr_min_i64(tokens, left));
        counts[e] = (int32_t)n;
        left -= n;
        mass -= share[e];
    }
}

void fr_routing_counts(const fr_routing *r, int64_t forward, int rank, int layer, int64_t tokens, int32_t *counts) {
    if (tokens <= 0) {
        memset(counts, 0, (size_t)r->experts * sizeof *counts);
    } else if (r->kind == FR_SKEW_EVEN) {
        spread_even(r->experts, tokens * r->top_k, counts);
    } else if (r->kind == FR_SKEW_RECORDED) {
        spread_recorded(r->recorded + (size_t)fr_routing_row(r, layer) * (size_t)r->experts, r->experts,
                        tokens * r->top_k, counts);
    } else {
        fr_routing_rng g;
        fr_routing_seed(&g, r->seed, forward, rank, layer);
        draw(r, &g, layer, tokens, counts);
    }
}

int fr_routing_placed(int experts, int rank, int ranks) {
    return (int)((int64_t)experts * rank / ranks);
}

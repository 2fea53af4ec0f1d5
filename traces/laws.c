/* Arrival laws, histograms and random numbers. */
#include <math.h>
#include <stdlib.h>

#include <gsl/gsl_randist.h>
#include <gsl/gsl_rng.h>

#include "traces/generate.h"

struct fr_random {
    gsl_rng *rng;
};

fr_random *fr_random_new(uint64_t seed) {
    fr_random *r = fr_alloc(sizeof *r);
    r->rng = gsl_rng_alloc(gsl_rng_mt19937);
    if (!r->rng) abort();
    /* mt19937 takes 32 bits of seed: the halves are folded, so that no bit is lost silently. */
    gsl_rng_set(r->rng, (unsigned long)((seed ^ (seed >> 32)) & 0xffffffffu));
    return r;
}

void fr_random_free(fr_random *r) {
    gsl_rng_free(r->rng);
    free(r);
}

double fr_random_uniform(fr_random *r) {
    return gsl_rng_uniform(r->rng);
}

int64_t fr_random_below(fr_random *r, int64_t below) {
    return (int64_t)(gsl_rng_uniform(r->rng) * (double)below); /* 32 bits: below is a count of requests or groups */
}

/* Falls as k rises: bisection over shapes whose CV covers FR_ARRIVAL_MIN_CV .. MAX_CV. */
static double weibull_shape(double cv) {
    double low = 0.1, high = 100, want = log1p(cv * cv);
    for (int i = 0; i < 80; i++) {
        double k = 0.5 * (low + high);
        if (lgamma(1 + 2 / k) - 2 * lgamma(1 + 1 / k) > want)
            low = k;
        else
            high = k;
    }
    return 0.5 * (low + high);
}

fr_arrival_law fr_arrival_law_make(fr_arrival_family family, double cv) {
    fr_arrival_law law = {family, 1, 1};
    if (family == FR_ARRIVAL_GAMMA) {
        law.shape = 1 / (cv * cv);
        law.scale = cv * cv;
    } else if (family == FR_ARRIVAL_WEIBULL) {
        law.shape = weibull_shape(cv);
        law.scale = exp(-lgamma(1 + 1 / law.shape));
    }
    return law;
}

double fr_arrival_gap(const fr_arrival_law *law, fr_random *r) {
    if (law->family == FR_ARRIVAL_GAMMA) return gsl_ran_gamma(r->rng, law->shape, law->scale);
    if (law->family == FR_ARRIVAL_WEIBULL) return gsl_ran_weibull(r->rng, law->scale, law->shape);
    return gsl_ran_exponential(r->rng, 1);
}

void fr_histogram_add(fr_histogram *h, int32_t tokens, double weight) {
    if (!(weight > 0)) return;
    FR_GROW(h->tokens, h->tokens_capacity, h->count + 1);
    FR_GROW(h->upto, h->upto_capacity, h->count + 1);
    h->upto[h->count] = fr_histogram_total(h) + weight;
    h->tokens[h->count++] = tokens;
}

double fr_histogram_total(const fr_histogram *h) {
    return h->count ? h->upto[h->count - 1] : 0;
}

int32_t fr_histogram_draw(const fr_histogram *h, fr_random *r) {
    double at = gsl_rng_uniform(r->rng) * fr_histogram_total(h);
    uint32_t low = 0, high = h->count - 1; /* the first whose cumulated weight exceeds `at` */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (h->upto[middle] > at)
            high = middle;
        else
            low = middle + 1;
    }
    return h->tokens[low];
}

void fr_histogram_free(fr_histogram *h) {
    free(h->tokens);
    free(h->upto);
    *h = (fr_histogram){0};
}

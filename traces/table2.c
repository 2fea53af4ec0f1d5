/* Lengths of the MoE-Prefill workload: arXiv 2605.02960 Table 2. */
#include <math.h>

#include "traces/generate.h"

static const fr_table2_set sets[] = {
    {"MoralStories", 100, 200, 24000, 3300000, 2}, {"MMLU", 50, 500, 24000, 5800000, 0},
    {"BoolQ", 200, 600, 12000, 2700000, 0},        {"IMDB", 300, 2048, 12000, 5500000, 0},
    {"QuALITY", 4096, 12288, 1200, 10500000, 2},   {"ArXiv", 6144, 131072, 600, 10100000, 1},
};

const fr_table2_set *fr_table2_at(int index) {
    return index >= 0 && (size_t)index < sizeof sets / sizeof *sets ? &sets[index] : NULL;
}

/* Mean of the density proportional to exp(-k x) on [0, 1]: 1/k - 1/(e^k - 1). */
static double cut_exponential_mean(double k) {
    if (fabs(k) < 1e-4) return 0.5 - k / 12; /* its series: the two terms cancel */
    return 1 / k - 1 / expm1(k);
}

static double cut_exponential_rate(double mean) {
    double low = -1e8, high = 1e8; /* a mean within 1e-8 of either end: less than a token of any range here */
    for (int i = 0; i < 120; i++) {
        double k = 0.5 * (low + high);
        if (cut_exponential_mean(k) > mean)
            low = k;
        else
            high = k;
    }
    return 0.5 * (low + high);
}

static double cut_exponential_quantile(double k, double u) {
    if (fabs(k) < 1e-9) return u;
    if (k < 0) return 1 - cut_exponential_quantile(-k, 1 - u); /* its mirror image: expm1 stays finite */
    return -log1p(u * expm1(-k)) / k;
}

void fr_table2_lengths(int32_t low, int32_t high, int64_t n, int64_t total, int32_t *out) {
    double range = high - low, k = cut_exponential_rate(((double)total / (double)n - low) / range);
    int64_t left = total;
    for (int64_t i = 0; i < n; i++) {
        double x = cut_exponential_quantile(k, ((double)i + 0.5) / (double)n);
        out[i] = (int32_t)fr_min_i64(high, fr_max_i64(low, llround(low + x * range)));
        left -= out[i];
    }
    /* Rounding, and at small n the midpoint rule, leave a remainder: spread over all, within the range. A whole-number
     * shift of everything keeps the order; the single tokens go to the long end (or come off the short end). */
    while (left != 0) {
        int64_t sign = left < 0 ? -1 : 1, step = fr_max_i64(1, left * sign / n);
        for (int64_t j = 0; j < n && left != 0; j++) {
            int64_t i = sign > 0 ? n - 1 - j : j;
            int64_t room = sign > 0 ? high - out[i] : out[i] - low;
            int64_t move = fr_min_i64(fr_min_i64(step, room), left * sign);
            out[i] += (int32_t)(sign * move);
            left -= sign * move;
        }
    }
}

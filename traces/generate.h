/*
 * generate: requests made from laws instead of a file. Deterministic by seed (GSL's mt19937), one stream, no threads.
 *
 *     SPEC    = KIND [":" KEY "=" VALUE {"," KEY "=" VALUE}]          commas inside (...) belong to the value
 *     poisson | gamma | weibull   rate=R requests/s (or --rate), len=LENGTHS; gamma and weibull: cv=C, the coefficient
 *               of variation of the gaps; count=N (else --max-requests; else until --duration; else 10,000, as the
 *               benchmark workload has); min=A,max=B clamp lengths; prefix=P,groups=G: each request begins with P
 *               tokens (at most its length - 1) that its group shares, the group drawn evenly from G
 *     batch     the same without rate: all at time 0
 *     table2    the aggregated MoE-Prefill workload: scale=S (1), rate=R (else all at 0),
 * order=shuffled|siblings|grouped, high=, medium=, low= the prefix shares, siblings=N for high, medium_siblings=N.
 * Orders: requests mixed one by one; mixed with siblings in a row, as when N candidates are asked for; data set by data
 * set synthetic one cell of the paper's sweep: len=L, count=N (10,485,760 / L, which is 40960, 2560, 320, 80 for 256,
 *               4K, 32K, 128K), rate=R
 *     LENGTHS = N | fixed(N) | uniform(A,B) | lognormal(MEAN,SIGMA) | hist(FILE) | trace(NAME)
 *               lognormal: MEAN in tokens, SIGMA the standard deviation of ln(tokens); hist: CSV with header
 *               tokens,weight; trace: the prompt lengths of a trace file, drawn with replacement
 * Whole numbers take K, M, G (powers of 1024). A key given twice or unknown to its kind is refused.
 *
 * table2 (arXiv 2605.02960 Table 2). The paper gives for each data set a range, a count
 * and a token total. K is 1024 in lengths, 1000 in counts. Lengths: the law of greatest entropy with that range and
 * mean, an exponential cut off at both ends, taken at its quantiles (i + 1/2) / n, then moved by single tokens until
 * the total is exact: so every seed has the same lengths and only order and arrivals differ. Scale S takes round(S *
 * count) requests with the same range and mean. The paper says only "high", "medium", "low" for the prefix share; here
 *   high    80 % of the tokens of a request are shared by 8 siblings (questions on one article, actions of one story)
 *   medium  50 %, 4 siblings
 *   low     10 % of the data set's shortest request, an instruction that the whole data set shares
 * These numbers are ours, chosen before any result and open to change by the keys above. Siblings are neighbours in
 * length; their prefix is the share of the shortest of them.
 */
#ifndef FR_TRACE_GENERATE_H
#define FR_TRACE_GENERATE_H

#include "traces/trace.h"

bool fr_generate_is_spec(const char *spec); /* begins with a kind, alone or before ':' */
fr_status fr_generate(const char *spec, const fr_trace_options *options, fr_trace **out, fr_error *err);

typedef struct {
    const char *name, *example, *summary;
} fr_generator;
const fr_generator *fr_generator_at(int index); /* for `forerun list traces`; NULL at the end */

/* ---- laws, shared by the generators and the servegen reader ----------------------------------------------------- */

typedef struct fr_random fr_random; /* one seeded stream */
fr_random *fr_random_new(uint64_t seed);
void fr_random_free(fr_random *r);
double fr_random_uniform(fr_random *r);               /* [0, 1) */
int64_t fr_random_below(fr_random *r, int64_t below); /* 0 .. below - 1 */

typedef enum { FR_ARRIVAL_POISSON, FR_ARRIVAL_GAMMA, FR_ARRIVAL_WEIBULL } fr_arrival_family;
#define FR_ARRIVAL_MIN_CV 0.02 /* below, arrivals are a clock */
#define FR_ARRIVAL_MAX_CV 50.0 /* above, GSL's gamma draws underflow to 0 too often to keep the mean */

typedef struct {
    fr_arrival_family family;
    double shape, scale;
} fr_arrival_law;
/* Gaps of mean 1 and the given CV: gamma has shape 1/CV^2; the Weibull shape k solves
 * CV^2 = G(1 + 2/k) / G(1 + 1/k)^2 - 1. Poisson ignores cv. */
fr_arrival_law fr_arrival_law_make(fr_arrival_family family, double cv);
double fr_arrival_gap(const fr_arrival_law *law, fr_random *r);

typedef struct {
    int32_t *tokens;
    double *upto; /* cumulated weights */
    uint32_t count, tokens_capacity, upto_capacity;
} fr_histogram;
void fr_histogram_add(fr_histogram *h, int32_t tokens, double weight);
double fr_histogram_total(const fr_histogram *h);
int32_t fr_histogram_draw(const fr_histogram *h, fr_random *r); /* total > 0 */
void fr_histogram_free(fr_histogram *h);

/* Table 2: the n lengths, ascending, of the law above; low * n <= total <= high * n. */
void fr_table2_lengths(int32_t low, int32_t high, int64_t n, int64_t total, int32_t *out);

typedef struct {
    const char *name;
    int32_t low, high; /* tokens */
    int64_t count, tokens;
    int sharing; /* 2 high, 1 medium, 0 low */
} fr_table2_set;
const fr_table2_set *fr_table2_at(int index); /* NULL at the end */

#endif

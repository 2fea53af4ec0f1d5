/* routing: laws of skew and the recorded format. */
#include "engine/routing_internal.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gsl/gsl_randist.h>

#define MAX_TOP_K 256         /* e_k of weights that sum to k grows as e^k: finite in double up to 700 */
#define MAX_FILE  (64u << 20) /* 4096 layers of 1024 experts at 16 characters */
#define LAW_RANK  (-1)        /* rank of the stream that draws a layer's law, apart from any rank's counts */

/*
 * The preset aimed at DeepSeek-V3's prefill load as counted over a run of 1,024-token inputs (totals per expert,
 * median of 58 layers: hottest of 256 experts 5.9 times the mean, top 8 take 12-16 %, Gini 0.33-0.44, rank imbalance
 * under contiguous placement EP4 1.38, EP8 1.54, EP16 1.86, EP32 2.15, EP64 2.85). A log-normal with sigma 0.74 has
 * the first three (E max of 256 = exp(2.77 s - s^2/2); Gini = erf(s/2); top 8 = Phi(s - 1.86)). Independent experts
 * would give EP8 only 1.2: neighbours are alike, as the router chooses among 8 groups of 32 first. So ln share = 0.31
 * z_block + 0.67 z_expert over 8 blocks; 0.31^2 + 0.67^2 = 0.74^2. EP8 then comes out at 1.5, the other degrees 5 to
 * 14 % below the measurement (test_routing.c).
 */
#define BLOCKS       8
#define SIGMA_BLOCK  0.31
#define SIGMA_EXPERT 0.67

static fr_routing *create(fr_skew_kind kind, const fr_model *m, int rows, uint64_t seed) {
    fr_routing *r = fr_alloc(sizeof *r);
    size_t cells = (size_t)rows * (size_t)m->experts;
    *r = (fr_routing){.kind = kind,
                      .experts = m->experts,
                      .top_k = m->top_k,
                      .first_layer = m->dense_layers,
                      .rows = rows,
                      .seed = seed};
    r->shares = fr_alloc(cells * sizeof(double));
    r->roots = fr_alloc(cells * sizeof(double));
    r->weights = fr_alloc((size_t)rows * sizeof *r->weights);
    if (kind != FR_SKEW_EVEN && kind != FR_SKEW_RECORDED) fr_ziggurat_open(&r->normal);
    return r;
}

/* Scales to sum 1 with no share above 1/k (an expert takes a token at most once): what is above the cap goes to the
 * others in proportion, until none is above. */
static void normalise(double *share, int experts, int k) {
    double cap = 1.0 / k, sum = 0;
    for (int e = 0; e < experts; e++) sum += share[e];
    for (int e = 0; e < experts; e++) share[e] /= sum;
    for (int round = 0; round < experts; round++) {
        double over = 0, below = 0;
        for (int e = 0; e < experts; e++) {
            if (share[e] > cap) over += share[e] - cap;
            if (share[e] < cap) below += share[e];
        }
        if (over <= 1e-15 || below <= 0) break;
        for (int e = 0; e < experts; e++) share[e] = share[e] >= cap ? cap : share[e] * (1 + over / below);
    }
}

static void take_roots(fr_routing *r) {
    const size_t cells = (size_t)r->rows * (size_t)r->experts;
    for (size_t i = 0; i < cells; i++) r->roots[i] = sqrt(r->shares[i]);
}

static void finish(fr_routing *r) {
    for (int row = 0; row < r->rows; row++)
        normalise(r->shares + (size_t)row * (size_t)r->experts, r->experts, r->top_k);
    take_roots(r);
}

static fr_routing *open_uniform(fr_skew_kind kind, const fr_model *m, uint64_t seed) {
    fr_routing *r = create(kind, m, 1, seed);
    for (int e = 0; e < m->experts; e++) r->shares[e] = 1.0 / m->experts;
    take_roots(r);
    return r;
}

static fr_routing *open_zipf(const fr_model *m, double exponent, uint64_t seed) {
    fr_routing *r = create(FR_SKEW_ZIPF, m, m->layers - m->dense_layers, seed);
    for (int row = 0; row < r->rows; row++) {
        double *share = r->shares + (size_t)row * (size_t)r->experts;
        fr_routing_rng g;
        for (int e = 0; e < r->experts; e++) share[e] = pow(e + 1, -exponent);
        fr_routing_seed(&g, seed, 0, LAW_RANK, row);
        gsl_ran_shuffle(&g.rng, share, (size_t)r->experts, sizeof *share);
    }
    finish(r);
    return r;
}

static fr_routing *open_two_level(const fr_model *m, uint64_t seed) {
    fr_routing *r = create(FR_SKEW_TWO_LEVEL, m, m->layers - m->dense_layers, seed);
    for (int row = 0; row < r->rows; row++) {
        double *share = r->shares + (size_t)row * (size_t)r->experts, block[BLOCKS];
        fr_routing_rng g;
        fr_routing_seed(&g, seed, 0, LAW_RANK, row);
        for (int b = 0; b < BLOCKS; b++) block[b] = gsl_ran_gaussian(&g.rng, SIGMA_BLOCK);
        for (int e = 0; e < r->experts; e++)
            share[e] = exp(block[(int64_t)e * BLOCKS / r->experts] + gsl_ran_gaussian(&g.rng, SIGMA_EXPERT));
    }
    finish(r);
    return r;
}

/* Exponent whose hottest expert has `hot` times the mean: E / sum i^-s = hot, which grows with s; by bisection. */
static double exponent_for(double hot, int experts) {
    double low = 0, high = 64;
    for (int i = 0; i < 60; i++) {
        double s = (low + high) / 2, sum = 0;
        for (int e = 0; e < experts; e++) sum += pow(e + 1, -s);
        if (experts / sum < hot)
            low = s;
        else
            high = s;
    }
    return (low + high) / 2;
}

/* ---- recorded ---- */

void fr_routing_format(fr_text *out, int experts, int layers, int first, const int64_t *counts) {
    fr_text_add(out, "# forerun routing E=%d layers=%d\n", experts, layers);
    for (int l = first; l < layers; l++) {
        fr_text_add(out, "%d", l);
        for (int e = 0; e < experts; e++)
            fr_text_add(out, " %" PRId64, counts[(size_t)(l - first) * (size_t)experts + (size_t)e]);
        fr_text_add(out, "\n");
    }
}

typedef struct {
    const char *at, *end, *where;
    int line;
} reader;

/* A whole number followed by `stop` (a space or the end of the line). */
static fr_status number(reader *in, char stop, int64_t high, int64_t *out, fr_error *err) {
    int64_t value = 0;
    const char *start = in->at;
    while (in->at < in->end && isdigit((unsigned char)*in->at) && in->at - start < 18)
        value = value * 10 + (*in->at++ - '0');
    if (in->at == start || in->at == in->end || *in->at != stop || value > high)
        return fr_fail(err, FR_BAD_INPUT, "%s: line %d: expected a whole number from 0 to %" PRId64 " and then %s",
                       in->where, in->line, high, stop == '\n' ? "the end of the line" : "a space");
    in->at++;
    *out = value;
    return FR_OK;
}

static fr_status expect(reader *in, const char *text, fr_error *err) {
    size_t n = strlen(text);
    if ((size_t)(in->end - in->at) < n || memcmp(in->at, text, n) != 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: line 1: expected \"# forerun routing E=... layers=...\"", in->where);
    in->at += n;
    return FR_OK;
}

static fr_status read_row(reader *in, const fr_model *m, int layer, int64_t *row, fr_error *err) {
    int64_t value, sum = 0, most = 0;
    in->line++;
    FR_TRY(number(in, ' ', m->layers - 1, &value, err));
    if (value != layer)
        return fr_fail(err, FR_BAD_INPUT, "%s: line %d: expected layer %d (rows in order), got %" PRId64, in->where,
                       in->line, layer, value);
    for (int e = 0; e < m->experts; e++) {
        FR_TRY(number(in, e + 1 < m->experts ? ' ' : '\n', (int64_t)1 << 40, &row[e], err));
        sum += row[e];
        most = fr_max_i64(most, row[e]);
    }
    if (sum == 0) return fr_fail(err, FR_BAD_INPUT, "%s: line %d: expected counts above 0", in->where, in->line);
    if (sum % m->top_k || most > sum / m->top_k)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: line %d: expected counts of whole tokens with %d experts each, no count above the tokens "
                       "(sum %" PRId64 ", largest %" PRId64 ")",
                       in->where, in->line, m->top_k, sum, most);
    return FR_OK;
}

static fr_status read_rows(reader *in, fr_routing *r, const fr_model *m, fr_error *err) {
    for (int row = 0; row < r->rows; row++) {
        int64_t *counts = r->recorded + (size_t)row * (size_t)r->experts;
        FR_TRY(read_row(in, m, r->first_layer + row, counts, err));
        for (int e = 0; e < r->experts; e++)
            r->shares[(size_t)row * (size_t)r->experts + (size_t)e] = (double)counts[e];
    }
    if (in->at != in->end)
        return fr_fail(err, FR_BAD_INPUT, "%s: line %d: expected the end of the file", in->where, in->line + 1);
    return FR_OK;
}

static fr_status check_model(const fr_model *m, fr_error *err) {
    if (m->top_k > MAX_TOP_K)
        return fr_fail(err, FR_BAD_INPUT, "routing: expected a model with top-k of at most %d, got %d", MAX_TOP_K,
                       m->top_k);
    return FR_OK;
}

fr_status fr_routing_parse(const char *text, size_t length, const char *where, const fr_model *m, uint64_t seed,
                           fr_routing **out, fr_error *err) {
    reader in = {.at = text, .end = text + length, .where = where, .line = 1};
    int64_t experts, layers;
    *out = NULL;
    FR_TRY(check_model(m, err));
    FR_TRY(expect(&in, "# forerun routing E=", err));
    FR_TRY(number(&in, ' ', 1 << 20, &experts, err));
    FR_TRY(expect(&in, "layers=", err));
    FR_TRY(number(&in, '\n', 1 << 20, &layers, err));
    if (experts != m->experts)
        return fr_fail(err, FR_BAD_INPUT, "%s: line 1: expected E=%d as %s has, got %" PRId64, where, m->experts,
                       m->name, experts);
    if (layers > m->layers || layers <= m->dense_layers)
        return fr_fail(err, FR_BAD_INPUT, "%s: line 1: expected layers=%d to %d for %s, got %" PRId64, where,
                       m->dense_layers + 1, m->layers, m->name, layers);
    fr_routing *r = create(FR_SKEW_RECORDED, m, (int)layers - m->dense_layers, seed);
    r->recorded = fr_alloc((size_t)r->rows * (size_t)r->experts * sizeof *r->recorded);
    fr_status status = read_rows(&in, r, m, err);
    if (status != FR_OK) {
        fr_routing_close(r);
        return status;
    }
    finish(r);
    *out = r;
    return FR_OK;
}

/* ---- the spec ---- */

fr_status fr_routing_open(const char *spec, const fr_model *m, uint64_t seed, fr_routing **out, fr_error *err) {
    double value;
    *out = NULL;
    FR_TRY(check_model(m, err));
    if (strcmp(spec, "even") == 0) {
        *out = open_uniform(FR_SKEW_EVEN, m, seed);
    } else if (strcmp(spec, "uniform") == 0) {
        *out = open_uniform(FR_SKEW_UNIFORM, m, seed);
    } else if (strcmp(spec, "deepseek-v3") == 0) {
        *out = open_two_level(m, seed);
    } else if (strncmp(spec, "zipf:", 5) == 0) {
        FR_TRY(fr_parse_double(spec + 5, 0, 16, "--skew zipf", &value, err));
        *out = open_zipf(m, value, seed);
    } else if (strncmp(spec, "hot:", 4) == 0) {
        double most = (double)m->experts / m->top_k; /* an expert that takes every token */
        FR_TRY(fr_parse_double(spec + 4, 1, most, "--skew hot", &value, err));
        *out = open_zipf(m, exponent_for(value, m->experts), seed);
    } else if (strncmp(spec, "file:", 5) == 0) {
        char *text;
        size_t length;
        FR_TRY(fr_read_file(spec + 5, MAX_FILE, &text, &length, err));
        fr_status status = fr_routing_parse(text, length, spec + 5, m, seed, out, err);
        free(text);
        return status;
    } else {
        return fr_fail(err, FR_BAD_INPUT,
                       "--skew: expected even, uniform, zipf:S, hot:R, deepseek-v3 or file:PATH, got '%.100s'", spec);
    }
    return FR_OK;
}

/* ServeGen clients: arrivals from windows of rate, CV and family; lengths from the histogram of the time. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/json.h"
#include "traces/generate.h"
#include "traces/readers.h"

typedef struct {
    double start, rate, cv; /* s, requests/s */
    fr_arrival_family family;
} window;

typedef struct {
    double start;
    fr_histogram lengths;
} period;

typedef struct {
    window *windows;
    uint32_t windows_count, windows_capacity;
    period *periods;
    uint32_t periods_count, periods_capacity;
    double width; /* of the last window */
} client;

static fr_status read_window(client *c, const fr_lines *l, char *row, fr_error *err) {
    char *f[6];
    window w = {0};
    double fit;
    FR_TRY(fr_lines_split(l, row, f, 6, err));
    FR_TRY(fr_lines_double(l, "start", f[0], 0, (double)FR_TRACE_MAX_NS / 1e9, &w.start, err));
    FR_TRY(fr_lines_double(l, "rate", f[1], 0, 1e6, &w.rate, err));
    FR_TRY(fr_lines_double(l, "CV", f[2], 0, 1e6, &w.cv, err));
    FR_TRY(fr_lines_double(l, "first parameter", f[4], 0, 1e12, &fit, err));
    FR_TRY(fr_lines_double(l, "second parameter", f[5], 0, 1e12, &fit, err));
    if (strcmp(f[3], "Gamma") == 0)
        w.family = FR_ARRIVAL_GAMMA;
    else if (strcmp(f[3], "Weibull") == 0)
        w.family = FR_ARRIVAL_WEIBULL;
    else if (strcmp(f[3], "Exponential") == 0 || strcmp(f[3], "Expon") == 0 || (f[3][0] == 0 && w.rate == 0))
        w.family = FR_ARRIVAL_POISSON;
    else
        return fr_fail(err, FR_BAD_INPUT,
                       "%s:%" PRId64
                       ": family: expected Gamma, Weibull or Exponential (empty where the rate is 0), got "
                       "'%.40s'",
                       l->name, l->line, f[3]);
    /* A renewal process of CV 0 is a clock; a window of one request has that. Beyond 50 no window of the data goes. */
    w.cv = fmin(fmax(w.cv, FR_ARRIVAL_MIN_CV), FR_ARRIVAL_MAX_CV);
    if (c->windows_count && w.start <= c->windows[c->windows_count - 1].start)
        return fr_fail(err, FR_BAD_INPUT, "%s:%" PRId64 ": start: windows must follow each other, %g after %g", l->name,
                       l->line, w.start, c->windows[c->windows_count - 1].start);
    FR_GROW(c->windows, c->windows_capacity, c->windows_count + 1);
    c->windows[c->windows_count++] = w;
    return FR_OK;
}

/* "{461: 2.8e-06, 462: ...}": a Python dictionary printed into a JSON string. */
static fr_status read_lengths(const char *file, const char *key, const char *text, fr_histogram *h, fr_error *err) {
    const char *c = text;
    if (*c != '{') goto wrong;
    for (c++; *c == ' ';) c++;
    while (*c && *c != '}') {
        char *end;
        if (*c < '0' || *c > '9') goto wrong;
        long long tokens = strtoll(c, &end, 10);
        if (*end != ':' || tokens > FR_TRACE_MAX_TOKENS) goto wrong;
        c = end + 1;
        while (*c == ' ') c++;
        if (*c < '0' || *c > '9') goto wrong;
        double share = strtod(c, &end);
        if (end == c || !isfinite(share) || share < 0 || share > 1e12) goto wrong;
        c = end;
        if (tokens > 0) fr_histogram_add(h, (int32_t)tokens, share);
        if (*c == ',')
            for (c++; *c == ' ';) c++;
        else if (*c != '}')
            goto wrong;
    }
    if (*c != '}' || c[1]) goto wrong;
    return FR_OK;
wrong:
    return fr_fail(err, FR_BAD_INPUT, "%s: \"%s\".input_tokens: expected {TOKENS: SHARE, ...}, wrong at '%.40s'", file,
                   key, *c ? c : "the end");
}

static int by_start(const void *a, const void *b) {
    const period *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static fr_status read_periods(client *c, const char *file, const json_t *root, fr_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)root, key, value) {
        double start;
        char what[512];
        snprintf(what, sizeof what, "%.300s: key (start of a period, s)", file);
        FR_TRY(fr_parse_double(key, 0, (double)FR_TRACE_MAX_NS / 1e9, what, &start, err));
        const char *text = json_string_value(json_object_get(value, "input_tokens"));
        if (!text) return fr_fail(err, FR_BAD_INPUT, "%s: \"%.40s\".input_tokens: expected a text", file, key);
        FR_GROW(c->periods, c->periods_capacity, c->periods_count + 1);
        period *p = &c->periods[c->periods_count++];
        *p = (period){.start = start};
        FR_TRY(read_lengths(file, key, text, &p->lengths, err));
    }
    if (!c->periods_count) return fr_fail(err, FR_BAD_INPUT, "%s: no period in it", file);
    qsort(c->periods, c->periods_count, sizeof *c->periods, by_start);
    /* A period in which the client was idle has no lengths: the one before stands in. */
    uint32_t kept = 0;
    for (uint32_t i = 0; i < c->periods_count; i++) {
        if (fr_histogram_total(&c->periods[i].lengths) > 0)
            c->periods[kept++] = c->periods[i];
        else
            fr_histogram_free(&c->periods[i].lengths);
    }
    c->periods_count = kept;
    return kept ? FR_OK : fr_fail(err, FR_BAD_INPUT, "%s: no period has input_tokens", file);
}

/*
 * Arrivals in operational time: gaps of mean 1 are drawn from the family and CV of the window they begin in and laid
 * along the integral of the rate, so that windows need no restart (which would add an arrival each) and idle windows
 * are skipped. Mean and CV come from the rate and CV columns; the fit parameters beside them are maximum-likelihood
 * fits whose mean differs from the measured rate (client 143: by a factor of two), so they are checked and not used.
 */
static fr_status generate(client *c, fr_trace *t, const fr_trace_options *o, fr_error *err) {
    double total = 0, span = c->windows[c->windows_count - 1].start + c->width - c->windows[0].start;
    for (uint32_t i = 0; i < c->windows_count; i++) {
        double end = i + 1 < c->windows_count ? c->windows[i + 1].start : c->windows[i].start + c->width;
        total += c->windows[i].rate * (end - c->windows[i].start);
    }
    if (total <= 0) return fr_fail(err, FR_BAD_INPUT, "%s: every rate is 0: no requests", t->name);
    double stretch = o->rate > 0 ? total / span / o->rate : 1, origin = c->windows[0].start;
    if (span * stretch * 1e9 > (double)FR_TRACE_MAX_NS)
        return fr_fail(err, FR_BAD_INPUT, "%s: --rate %g stretches the trace beyond 100 years", t->name, o->rate);
    fr_random *rng = fr_random_new(o->seed);
    fr_status status = FR_OK;
    double gap = -1;
    uint32_t p = 0;
    for (uint32_t i = 0; i < c->windows_count; i++) {
        const window *w = &c->windows[i];
        double at = w->start, end = i + 1 < c->windows_count ? c->windows[i + 1].start : w->start + c->width;
        fr_arrival_law law = fr_arrival_law_make(w->family, w->cv);
        while (w->rate > 0) {
            if (gap < 0) gap = fr_arrival_gap(&law, rng);
            double need = gap / w->rate;
            if (at + need >= end) {
                gap -= (end - at) * w->rate;
                if (gap < 0) gap = 0;
                break;
            }
            at += need;
            gap = -1;
            double when = (at - origin) * stretch;
            if ((o->duration_s > 0 && when >= o->duration_s) || (o->max_requests && t->count >= o->max_requests))
                goto done;
            while (p + 1 < c->periods_count && c->periods[p + 1].start <= at) p++;
            fr_request *r = fr_trace_add(t);
            if (!r) {
                status = fr_trace_full(t->name, err);
                goto done;
            }
            r->arrival = (int64_t)llround(when * 1e9);
            r->tokens = fr_histogram_draw(&c->periods[p].lengths, rng);
        }
    }
done:
    fr_random_free(rng);
    t->generated = true;
    return status;
}

static fr_status read_client(client *c, fr_trace *t, fr_lines *l, const char *dataset, size_t dataset_length,
                             const fr_trace_options *o, fr_error *err) {
    for (char *row; (row = fr_lines_next(l));) FR_TRY(read_window(c, l, row, err));
    /* Windows are 600 s in the data; a file of one window has no second to tell. */
    uint32_t n = c->windows_count;
    c->width = n > 1 ? c->windows[n - 1].start - c->windows[n - 2].start : 600;
    char file[512];
    snprintf(file, sizeof file, "%.400s (dataset)", t->name);
    fr_json root;
    FR_TRY(fr_json_open(dataset, dataset_length, file, &root, err));
    fr_status status = read_periods(c, file, root.value, err);
    fr_json_close(&root);
    return status == FR_OK ? generate(c, t, o, err) : status;
}

fr_status fr_read_servegen(fr_trace *t, fr_lines *l, const char *dataset, size_t dataset_length,
                           const fr_trace_options *o, fr_error *err) {
    if (!dataset)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: a servegen trace needs its lengths: name it chunk-N-trace.csv and put chunk-N-dataset.json "
                       "beside it",
                       t->name);
    client c = {0};
    fr_status status = read_client(&c, t, l, dataset, dataset_length, o, err);
    for (uint32_t i = 0; i < c.periods_count; i++) fr_histogram_free(&c.periods[i].lengths);
    free(c.periods);
    free(c.windows);
    return status;
}

#include "traces/readers.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gsl/gsl_rng.h>

/* ---- lines and fields ------------------------------------------------------------------------------------------- */

fr_status fr_lines_open(fr_lines *l, const char *name, char *text, size_t length, fr_error *err) {
    *l = (fr_lines){.name = name, .text = text, .end = text + length};
    if (length == 0) return fr_fail(err, FR_BAD_INPUT, "%s: empty file", name);
    const char *zero = memchr(text, 0, length);
    if (zero) {
        int64_t line = 1;
        for (const char *c = text; c < zero; c++) line += *c == '\n';
        return fr_fail(err, FR_BAD_INPUT, "%s:%" PRId64 ": a zero byte: not a text file", name, line);
    }
    return FR_OK;
}

char *fr_lines_next(fr_lines *l) {
    if (l->text >= l->end) return NULL;
    char *line = l->text, *stop = memchr(line, '\n', (size_t)(l->end - line));
    if (!stop) stop = l->end;
    l->text = stop + 1;
    *stop = 0;
    if (stop > line && stop[-1] == '\r') stop[-1] = 0;
    l->line++;
    return line;
}

fr_status fr_lines_split(const fr_lines *l, char *line, char **fields, int want, fr_error *err) {
    int count = 1;
    fields[0] = line;
    for (char *c = line; (c = strchr(c, ',')); count++) {
        *c++ = 0;
        if (count < want) fields[count] = c;
    }
    if (count != want)
        return fr_fail(err, FR_BAD_INPUT, "%s:%" PRId64 ": expected %d fields, got %d%s", l->name, l->line, want, count,
                       count < want ? " (a line cut short?)" : "");
    return FR_OK;
}

/* Messages are built only after a failure: the parse itself is the hot path. */
fr_status fr_lines_int(const fr_lines *l, const char *field, const char *text, int64_t low, int64_t high, int64_t *out,
                       fr_error *err) {
    if (fr_parse_int(text, low, high, false, field, out, NULL) == FR_OK) return FR_OK;
    char what[512];
    snprintf(what, sizeof what, "%.300s:%" PRId64 ": %s", l->name, l->line, field);
    return fr_parse_int(text, low, high, false, what, out, err);
}

fr_status fr_lines_double(const fr_lines *l, const char *field, const char *text, double low, double high, double *out,
                          fr_error *err) {
    if (fr_parse_double(text, low, high, field, out, NULL) == FR_OK) return FR_OK;
    char what[512];
    snprintf(what, sizeof what, "%.300s:%" PRId64 ": %s", l->name, l->line, field);
    return fr_parse_double(text, low, high, what, out, err);
}

static fr_status header(fr_lines *l, const char *expect, fr_error *err) {
    const char *line = fr_lines_next(l);
    if (strcmp(line, expect) == 0) return FR_OK;
    return fr_fail(err, FR_BAD_INPUT, "%s:1: expected the header '%s', got '%.80s'", l->name, expect, line);
}

/* ---- plain CSV -------------------------------------------------------------------------------------------------- */

fr_status fr_read_csv(fr_trace *t, fr_lines *l, fr_error *err) {
    const char *line = fr_lines_next(l);
    int fields = strcmp(line, "arrival_ms,prompt_tokens") == 0                           ? 2
                 : strcmp(line, "arrival_ms,prompt_tokens,prefix_id,prefix_tokens") == 0 ? 4
                                                                                         : 0;
    if (!fields)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s:1: expected the header 'arrival_ms,prompt_tokens' or "
                       "'arrival_ms,prompt_tokens,prefix_id,prefix_tokens', got '%.80s'",
                       l->name, line);
    for (char *row, *f[4]; (row = fr_lines_next(l));) {
        FR_TRY(fr_lines_split(l, row, f, fields, err));
        double ms;
        int64_t tokens, id = -1, shared = 0;
        FR_TRY(fr_lines_double(l, "arrival_ms", f[0], 0, (double)FR_TRACE_MAX_NS / 1e6, &ms, err));
        FR_TRY(fr_lines_int(l, "prompt_tokens", f[1], 1, FR_TRACE_MAX_TOKENS, &tokens, err));
        if (fields == 4 && (f[2][0] || f[3][0])) {
            FR_TRY(fr_lines_int(l, "prefix_id", f[2], 0, INT64_MAX, &id, err));
            FR_TRY(fr_lines_int(l, "prefix_tokens", f[3], 0, tokens, &shared, err));
        }
        fr_request *r = fr_trace_add(t);
        if (!r) return fr_trace_full(l->name, err);
        r->arrival = (int64_t)llround(ms * 1e6);
        r->tokens = (int32_t)tokens;
        r->prefix_id = shared ? id : -1;
        r->prefix_tokens = (int32_t)shared;
    }
    return FR_OK;
}

/* ---- Azure ------------------------------------------------------------------------------------------------------ */

/* Days from 1970-01-01 in the Gregorian calendar (H. Hinnant, chrono-compatible low-level date algorithms). */
static int64_t days(int64_t y, int64_t m, int64_t d) {
    y -= m <= 2;
    int64_t era = y / 400, year = y - era * 400, day = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + year * 365 + year / 4 - year / 100 + day - 719468;
}

static bool digits(const char **at, int count, int64_t *out) {
    *out = 0;
    for (int i = 0; i < count; i++, (*at)++) {
        if (**at < '0' || **at > '9') return false;
        *out = *out * 10 + (**at - '0');
    }
    return true;
}

/* "2023-11-16 18:17:03.9799600", up to 9 digits of fraction, optionally "+00:00" (the 2024 files). */
static bool timestamp(const char *c, int64_t *ns) {
    static const int width[] = {4, 2, 2, 2, 2, 2};
    static const char after[] = "-- ::";
    int64_t v[6];
    for (int i = 0; i < 6; i++) {
        if (!digits(&c, width[i], &v[i])) return false;
        if (i < 5 && *c++ != after[i]) return false;
    }
    int64_t fraction = 0, unit = 100000000;
    if (*c == '.') {
        int n = 0;
        for (c++; *c >= '0' && *c <= '9'; c++, n++, unit /= 10) fraction += unit * (*c - '0');
        if (n < 1 || n > 9) return false;
    }
    if (strcmp(c, "") != 0 && strcmp(c, "+00:00") != 0) return false;
    if (v[0] < 1970 || v[0] > 2069 || v[1] < 1 || v[1] > 12 || v[2] < 1 || v[2] > 31 || v[3] > 23 || v[4] > 59 ||
        v[5] > 60)
        return false;
    *ns = (((days(v[0], v[1], v[2]) * 24 + v[3]) * 60 + v[4]) * 60 + v[5]) * 1000000000 + fraction;
    return true;
}

fr_status fr_read_azure(fr_trace *t, fr_lines *l, fr_error *err) {
    FR_TRY(header(l, "TIMESTAMP,ContextTokens,GeneratedTokens", err));
    for (char *row, *f[3]; (row = fr_lines_next(l));) {
        FR_TRY(fr_lines_split(l, row, f, 3, err));
        int64_t ns, tokens, out;
        if (!timestamp(f[0], &ns))
            return fr_fail(err, FR_BAD_INPUT,
                           "%s:%" PRId64
                           ": TIMESTAMP: expected YYYY-MM-DD HH:MM:SS.fffffff of 1970 to 2069, got '%.60s'",
                           l->name, l->line, f[0]);
        FR_TRY(fr_lines_int(l, "ContextTokens", f[1], 0, FR_TRACE_MAX_TOKENS, &tokens, err));
        FR_TRY(fr_lines_int(l, "GeneratedTokens", f[2], 0, FR_TRACE_MAX_TOKENS, &out, err));
        if (tokens == 0) {
            t->skipped++;
            continue;
        }
        fr_request *r = fr_trace_add(t);
        if (!r) return fr_trace_full(l->name, err);
        r->arrival = ns;
        r->tokens = (int32_t)tokens;
    }
    return FR_OK;
}

/* ---- BurstGPT --------------------------------------------------------------------------------------------------- */

fr_status fr_read_burstgpt(fr_trace *t, fr_lines *l, fr_error *err) {
    static const char eight[] =
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type";
    bool wide = strncmp(l->text, "Timestamp,Session ID,", 21) == 0; /* BurstGPT_3 */
    FR_TRY(header(l, wide ? eight : "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", err));
    int skip = wide ? 2 : 0;
    for (char *row, *f[8]; (row = fr_lines_next(l));) {
        FR_TRY(fr_lines_split(l, row, f, 6 + skip, err));
        double s;
        int64_t tokens, out, total;
        FR_TRY(fr_lines_double(l, "Timestamp", f[0], 0, (double)FR_TRACE_MAX_NS / 1e9, &s, err));
        FR_TRY(fr_lines_int(l, "Request tokens", f[2 + skip], 0, FR_TRACE_MAX_TOKENS, &tokens, err));
        FR_TRY(fr_lines_int(l, "Response tokens", f[3 + skip], 0, FR_TRACE_MAX_TOKENS, &out, err));
        FR_TRY(fr_lines_int(l, "Total tokens", f[4 + skip], 0, 2 * FR_TRACE_MAX_TOKENS, &total, err));
        if (tokens == 0) {
            t->skipped++;
            continue;
        }
        fr_request *r = fr_trace_add(t);
        if (!r) return fr_trace_full(l->name, err);
        r->arrival = (int64_t)llround(s * 1e9);
        r->tokens = (int32_t)tokens;
    }
    return FR_OK;
}

/* ---- Mooncake --------------------------------------------------------------------------------------------------- */

enum { BLOCK = 512 }; /* tokens per hash id, Mooncake trace README */

/* A scanner of exactly one flat object of known fields: three times jansson's speed on lines of hundreds of ids. */
typedef struct {
    const fr_lines *l;
    const char *at;
    const char *field;
} scanner;

static fr_status scan_fail(const scanner *s, const char *expected, fr_error *err) {
    return fr_fail(err, FR_BAD_INPUT, "%s:%" PRId64 ": %s: expected %s, got '%.40s'", s->l->name, s->l->line, s->field,
                   expected, *s->at ? s->at : "the end of the line");
}

static void blanks(scanner *s) {
    while (*s->at == ' ' || *s->at == '\t') s->at++;
}

static bool mark(scanner *s, char c) {
    blanks(s);
    if (*s->at != c) return false;
    s->at++;
    return true;
}

static fr_status scan_int(scanner *s, int64_t high, int64_t *out, fr_error *err) {
    blanks(s);
    const char *c = s->at;
    uint64_t v = 0;
    for (; *c >= '0' && *c <= '9'; c++) {
        v = v * 10 + (uint64_t)(*c - '0');
        if (v > (uint64_t)high || c - s->at > 18) break;
    }
    if (c == s->at || v > (uint64_t)high || (*c >= '0' && *c <= '9') || *c == '.' || *c == 'e' || *c == 'E') {
        char expected[64];
        snprintf(expected, sizeof expected, "a whole number from 0 to %" PRId64, high);
        return scan_fail(s, expected, err);
    }
    s->at = c;
    *out = (int64_t)v;
    return FR_OK;
}

static fr_status scan_ids(scanner *s, fr_trace *t, fr_error *err) {
    if (!mark(s, '[')) return scan_fail(s, "a list of block hashes", err);
    if (mark(s, ']')) return FR_OK;
    do {
        int64_t id;
        FR_TRY(scan_int(s, INT64_MAX / 16, &id, err));
        fr_trace_add_hash(t, (uint64_t)id);
    } while (mark(s, ','));
    return mark(s, ']') ? FR_OK : scan_fail(s, "',' or ']'", err);
}

static fr_status scan_object(scanner *s, fr_trace *t, int64_t v[3], fr_error *err) {
    static const char *const names[] = {"timestamp", "input_length", "output_length", "hash_ids"};
    static const int64_t high[] = {FR_TRACE_MAX_NS / 1000000, FR_TRACE_MAX_TOKENS, FR_TRACE_MAX_TOKENS};
    unsigned seen = 0;
    if (!mark(s, '{')) return scan_fail(s, "'{'", err);
    do {
        s->field = "field name";
        if (!mark(s, '"')) return scan_fail(s, "a field name in quotes", err);
        int f = 0;
        size_t n = 0;
        for (; f < 4; f++) {
            n = strlen(names[f]);
            if (strncmp(s->at, names[f], n) == 0 && s->at[n] == '"') break;
        }
        if (f == 4) return scan_fail(s, "timestamp, input_length, output_length or hash_ids", err);
        s->at += n + 1;
        s->field = names[f];
        if (seen & 1u << f) return scan_fail(s, "each field once", err);
        seen |= 1u << f;
        if (!mark(s, ':')) return scan_fail(s, "':'", err);
        FR_TRY(f == 3 ? scan_ids(s, t, err) : scan_int(s, high[f], &v[f], err));
    } while (mark(s, ','));
    if (!mark(s, '}')) return scan_fail(s, "',' or '}'", err);
    blanks(s);
    if (*s->at) return scan_fail(s, "nothing after the object", err);
    for (int f = 0; f < 4; f++)
        if (!(seen & 1u << f))
            return fr_fail(err, FR_BAD_INPUT, "%s:%" PRId64 ": %s is missing", s->l->name, s->l->line, names[f]);
    return FR_OK;
}

static int by_time(const void *a, const void *b) {
    const int64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void spread_step(fr_request *r, int64_t n, int64_t width, fr_spread how, gsl_rng *rng) {
    if (how == FR_SPREAD_EVEN) {
        for (int64_t j = 0; j < n; j++) r[j].arrival += (int64_t)((double)width * (double)j / (double)n);
        return;
    }
    int64_t *at = fr_alloc((size_t)n * sizeof *at);
    for (int64_t j = 0; j < n; j++) at[j] = (int64_t)(gsl_rng_uniform(rng) * (double)width);
    qsort(at, (size_t)n, sizeof *at, by_time);
    for (int64_t j = 0; j < n; j++) r[j].arrival += at[j];
    free(at);
}

/* Steps are 2,997 to 3,003 ms apart in the published file; a step without requests must not stretch the one before. */
static void spread(fr_trace *t, fr_spread how, uint64_t seed) {
    const int64_t step = 3000000000;
    gsl_rng *rng = gsl_rng_alloc(gsl_rng_mt19937);
    gsl_rng_set(rng, (unsigned long)seed);
    for (int64_t i = 0, next; i < t->count; i = next) {
        int64_t start = t->requests[i].arrival;
        for (next = i + 1; next < t->count && t->requests[next].arrival == start;) next++;
        int64_t width = next < t->count ? t->requests[next].arrival - start : step;
        if (width < 0 || width > step) width = step; /* < 0: rows out of order, sorted later */
        spread_step(&t->requests[i], next - i, width, how, rng);
    }
    gsl_rng_free(rng);
}

fr_status fr_read_mooncake(fr_trace *t, fr_lines *l, const fr_trace_options *o, fr_error *err) {
    for (const char *row; (row = fr_lines_next(l));) {
        if (!fr_trace_add(t)) return fr_trace_full(l->name, err);
        scanner s = {l, row, "line"};
        int64_t v[3] = {0};
        FR_TRY(scan_object(&s, t, v, err));
        fr_request *r = &t->requests[t->count - 1];
        if (v[1] < 1)
            return fr_fail(err, FR_BAD_INPUT, "%s:%" PRId64 ": input_length: expected at least 1 token", l->name,
                           l->line);
        r->arrival = v[0] * 1000000;
        r->tokens = (int32_t)v[1];
        r->block_tokens = BLOCK;
        if (r->blocks_count != v[1] / BLOCK && r->blocks_count != fr_ceil_div(v[1], BLOCK))
            return fr_fail(err, FR_BAD_INPUT,
                           "%s:%" PRId64 ": hash_ids: expected %" PRId64 ", one per 512 of %" PRId64
                           " tokens (the last may be partial), got %d",
                           l->name, l->line, fr_ceil_div(v[1], BLOCK), v[1], r->blocks_count);
    }
    if (o->spread != FR_SPREAD_NONE) spread(t, o->spread, o->seed);
    return FR_OK;
}

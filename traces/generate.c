#include "traces/generate.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "traces/readers.h"

enum { SYNTHETIC_TOKENS = 10485760 }; /* 256 * 40960 = 4096 * 2560 = 32768 * 320 = 131072 * 80 */
enum { DEFAULT_COUNT = 10000 };

static const fr_generator generators[] = {
    {"poisson", "poisson:rate=12,len=lognormal(2048,1.2)", "independent arrivals"},
    {"gamma", "gamma:rate=12,cv=2,len=trace(azure-code)", "gaps of a gamma law: bursty for cv > 1"},
    {"weibull", "weibull:rate=12,cv=1.5,len=uniform(100,4K)", "gaps of a Weibull law: bursty for cv > 1"},
    {"batch", "batch:count=1000,len=4K,prefix=3K,groups=10", "everything at time 0"},
    {"table2", "table2:scale=0.01", "the MoE-Prefill mix of six data sets, all at time 0"},
    {"synthetic", "synthetic:len=4K", "the MoE-Prefill sweep: 10.5 M tokens in prompts of one length"},
};
enum { POISSON, GAMMA, WEIBULL, BATCH, TABLE2, SYNTHETIC };

const fr_generator *fr_generator_at(int index) {
    return index >= 0 && (size_t)index < sizeof generators / sizeof *generators ? &generators[index] : NULL;
}

static int kind_of(const char *spec) {
    size_t n = strcspn(spec, ":");
    for (int i = 0; fr_generator_at(i); i++)
        if (strlen(generators[i].name) == n && strncmp(spec, generators[i].name, n) == 0) return i;
    return -1;
}

bool fr_generate_is_spec(const char *spec) {
    return kind_of(spec) >= 0;
}

/* ---- the spec --------------------------------------------------------------------------------------------------- */

enum {
    K_RATE,
    K_CV,
    K_LEN,
    K_COUNT,
    K_MIN,
    K_MAX,
    K_PREFIX,
    K_GROUPS,
    K_SCALE,
    K_ORDER,
    K_HIGH,
    K_MEDIUM,
    K_LOW,
    K_SIBLINGS,
    K_MEDIUM_SIBLINGS,
    KEYS
};
static const char *const keys[KEYS] = {"rate", "cv",     "len",    "count",    "min",
                                       "max",  "prefix", "groups", "scale",    "order",
                                       "high", "medium", "low",    "siblings", "medium_siblings"};
#define BIT(k)      (1u << (k))
#define LENGTH_KEYS (BIT(K_LEN) | BIT(K_COUNT) | BIT(K_MIN) | BIT(K_MAX) | BIT(K_PREFIX) | BIT(K_GROUPS))
static const unsigned allowed[] = {
    [POISSON] = LENGTH_KEYS | BIT(K_RATE),
    [GAMMA] = LENGTH_KEYS | BIT(K_RATE) | BIT(K_CV),
    [WEIBULL] = LENGTH_KEYS | BIT(K_RATE) | BIT(K_CV),
    [BATCH] = LENGTH_KEYS,
    [TABLE2] = BIT(K_RATE) | BIT(K_SCALE) | BIT(K_ORDER) | BIT(K_HIGH) | BIT(K_MEDIUM) | BIT(K_LOW) | BIT(K_SIBLINGS) |
               BIT(K_MEDIUM_SIBLINGS),
    [SYNTHETIC] = BIT(K_LEN) | BIT(K_COUNT) | BIT(K_RATE),
};

typedef struct {
    const char *text; /* the whole, for messages */
    int kind;
    char *copy, *value[KEYS];
} spec;

static fr_status add_pair(spec *s, char *pair, fr_error *err) {
    char *equals = strchr(pair, '=');
    if (!equals || equals == pair || !equals[1])
        return fr_fail(err, FR_BAD_INPUT, "%s: expected KEY=VALUE, got '%s'", s->text, pair);
    *equals = 0;
    for (int k = 0; k < KEYS; k++) {
        if (strcmp(pair, keys[k]) != 0 || !(allowed[s->kind] & BIT(k))) continue;
        if (s->value[k]) return fr_fail(err, FR_BAD_INPUT, "%s: %s is given twice", s->text, pair);
        s->value[k] = equals + 1;
        return FR_OK;
    }
    fr_text known = {0};
    for (int k = 0; k < KEYS; k++)
        if (allowed[s->kind] & BIT(k)) fr_text_add(&known, " %s", keys[k]);
    fr_fail(err, FR_BAD_INPUT, "%s: %s has no key '%s'; it has%s", s->text, generators[s->kind].name, pair, known.text);
    fr_text_free(&known);
    return FR_BAD_INPUT;
}

static fr_status parse_spec(spec *s, fr_error *err) {
    char *colon = strchr(s->copy, ':');
    if (!colon) return FR_OK;
    int depth = 0;
    char *start = colon + 1;
    for (char *c = start;; c++) {
        if (*c == '(') depth++;
        if (*c == ')') depth--;
        if (depth < 0 || depth > 1 || (!*c && depth))
            return fr_fail(err, FR_BAD_INPUT, "%s: brackets do not match", s->text);
        if (*c && (*c != ',' || depth)) continue;
        bool end = !*c;
        *c = 0;
        FR_TRY(add_pair(s, start, err));
        if (end) return FR_OK;
        start = c + 1;
    }
}

static fr_status get_int(const spec *s, int key, int64_t low, int64_t high, int64_t *out, fr_error *err) {
    if (!s->value[key]) return FR_OK;
    char what[256];
    snprintf(what, sizeof what, "%.180s: %s", s->text, keys[key]);
    return fr_parse_int(s->value[key], low, high, true, what, out, err);
}

static fr_status get_double(const spec *s, int key, double low, double high, double *out, fr_error *err) {
    if (!s->value[key]) return FR_OK;
    char what[256];
    snprintf(what, sizeof what, "%.180s: %s", s->text, keys[key]);
    return fr_parse_double(s->value[key], low, high, what, out, err);
}

/* ---- lengths ---------------------------------------------------------------------------------------------------- */

typedef struct {
    enum { FIXED, UNIFORM, LOGNORMAL, TABLE } law;
    double a, b;
    fr_histogram table;
    int64_t low, high;
} lengths;

static fr_status read_histogram(const char *path, fr_histogram *h, fr_error *err) {
    char *text = NULL;
    size_t length = 0;
    FR_TRY(fr_read_file(path, 64u << 20, &text, &length, err));
    fr_lines l;
    fr_status status = fr_lines_open(&l, path, text, length, err);
    char *row = status == FR_OK ? fr_lines_next(&l) : NULL;
    if (row && strcmp(row, "tokens,weight") != 0)
        status = fr_fail(err, FR_BAD_INPUT, "%s:1: expected the header 'tokens,weight'", path);
    for (char *f[2]; status == FR_OK && (row = fr_lines_next(&l));) {
        int64_t tokens;
        double weight;
        status = fr_lines_split(&l, row, f, 2, err);
        if (status == FR_OK) status = fr_lines_int(&l, "tokens", f[0], 1, FR_TRACE_MAX_TOKENS, &tokens, err);
        if (status == FR_OK) status = fr_lines_double(&l, "weight", f[1], 0, 1e12, &weight, err);
        if (status == FR_OK) fr_histogram_add(h, (int32_t)tokens, weight);
    }
    if (status == FR_OK && fr_histogram_total(h) <= 0)
        status = fr_fail(err, FR_BAD_INPUT, "%s: no weight above 0", path);
    free(text);
    return status;
}

static fr_status read_lengths_of(const char *name, const fr_trace_options *o, fr_histogram *h, fr_error *err) {
    if (fr_generate_is_spec(name))
        return fr_fail(err, FR_BAD_INPUT, "len=trace(%s): expected a trace file or a shipped trace, not a generator",
                       name);
    fr_trace *t = NULL;
    fr_trace_options plain = {.spread = FR_SPREAD_NONE, .seed = o->seed, .data_dir = o->data_dir};
    FR_TRY(fr_trace_open(name, &plain, &t, err));
    for (int64_t i = 0; i < t->count; i++) fr_histogram_add(h, t->requests[i].tokens, 1);
    fr_trace_close(t);
    return FR_OK;
}

/* NAME(A[,B]) with numbers */
static fr_status two_numbers(const spec *s, const char *inside, double low, double high, double *a, double *b,
                             fr_error *err) {
    char copy[128], what[256];
    snprintf(copy, sizeof copy, "%s", inside);
    snprintf(what, sizeof what, "%.180s: len", s->text);
    char *comma = strchr(copy, ',');
    if (!comma || strlen(inside) >= sizeof copy)
        return fr_fail(err, FR_BAD_INPUT, "%s: expected two numbers in (%.60s)", what, inside);
    *comma = 0;
    int64_t whole;
    if (fr_parse_int(copy, 1, FR_TRACE_MAX_TOKENS, true, what, &whole, NULL) == FR_OK)
        *a = (double)whole; /* with K */
    else
        FR_TRY(fr_parse_double(copy, 1, FR_TRACE_MAX_TOKENS, what, a, err));
    if (fr_parse_int(comma + 1, (int64_t)ceil(low), (int64_t)high, true, what, &whole, NULL) == FR_OK)
        *b = (double)whole;
    else
        FR_TRY(fr_parse_double(comma + 1, low, high, what, b, err));
    return FR_OK;
}

static fr_status parse_lengths(const spec *s, const fr_trace_options *o, lengths *l, fr_error *err) {
    l->low = 1;
    l->high = FR_TRACE_MAX_TOKENS;
    FR_TRY(get_int(s, K_MIN, 1, FR_TRACE_MAX_TOKENS, &l->low, err));
    FR_TRY(get_int(s, K_MAX, l->low, FR_TRACE_MAX_TOKENS, &l->high, err));
    char *text = s->value[K_LEN];
    if (!text) return fr_fail(err, FR_BAD_INPUT, "%s: len is missing, as in %s", s->text, generators[s->kind].example);
    char *open = strchr(text, '(');
    size_t n = strlen(text);
    if (!open) {
        int64_t fixed = 0;
        FR_TRY(get_int(s, K_LEN, 1, FR_TRACE_MAX_TOKENS, &fixed, err));
        l->a = (double)fixed;
        return FR_OK;
    }
    if (text[n - 1] != ')') return fr_fail(err, FR_BAD_INPUT, "%s: len: expected ')' at the end", s->text);
    char inside[4096];
    snprintf(inside, sizeof inside, "%.*s", (int)fr_min_i64((int64_t)n - (open + 2 - text), 4090), open + 1);
    size_t name = (size_t)(open - text);
    if (name == 5 && strncmp(text, "fixed", 5) == 0) {
        int64_t fixed = 0;
        FR_TRY(fr_parse_int(inside, 1, FR_TRACE_MAX_TOKENS, true, "len=fixed", &fixed, err));
        l->a = (double)fixed;
    } else if (name == 7 && strncmp(text, "uniform", 7) == 0) {
        l->law = UNIFORM;
        FR_TRY(two_numbers(s, inside, 1, FR_TRACE_MAX_TOKENS, &l->a, &l->b, err));
        if (l->b < l->a || l->a != floor(l->a) || l->b != floor(l->b))
            return fr_fail(err, FR_BAD_INPUT, "%s: uniform(A,B): expected whole numbers, A <= B", s->text);
    } else if (name == 9 && strncmp(text, "lognormal", 9) == 0) {
        l->law = LOGNORMAL;
        FR_TRY(two_numbers(s, inside, 0, 10, &l->a, &l->b, err));
    } else if (name == 4 && strncmp(text, "hist", 4) == 0) {
        l->law = TABLE;
        return read_histogram(inside, &l->table, err);
    } else if (name == 5 && strncmp(text, "trace", 5) == 0) {
        l->law = TABLE;
        return read_lengths_of(inside, o, &l->table, err);
    } else {
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: len: expected N, fixed(N), uniform(A,B), lognormal(MEAN,SIGMA), hist(FILE) or trace(NAME)",
                       s->text);
    }
    return FR_OK;
}

/* A standard normal by Box and Muller from two uniforms: every length takes the same number of draws. */
static double normal(fr_random *r) {
    double u = 1 - fr_random_uniform(r), v = fr_random_uniform(r);
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

static int32_t draw_length(const lengths *l, fr_random *r) {
    double tokens = l->a;
    if (l->law == UNIFORM) tokens = l->a + (double)fr_random_below(r, (int64_t)(l->b - l->a) + 1);
    /* mean of exp(N(mu, s^2)) is exp(mu + s^2 / 2) */
    if (l->law == LOGNORMAL) tokens = exp(log(l->a) - 0.5 * l->b * l->b + l->b * normal(r));
    if (l->law == TABLE) tokens = fr_histogram_draw(&l->table, r);
    return (int32_t)fmin((double)l->high, fmax((double)l->low, round(tokens)));
}

/* ---- kinds ------------------------------------------------------------------------------------------------------ */

static fr_status need_rate(const spec *s, const fr_trace_options *o, bool needed, double *rate, fr_error *err) {
    *rate = 0;
    FR_TRY(get_double(s, K_RATE, 1e-6, 1e9, rate, err));
    if (o->rate > 0) *rate = o->rate; /* --rate wins: a sweep varies it over one spec */
    if (needed && *rate == 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: rate is missing: requests/s, here or as --rate", s->text);
    return FR_OK;
}

static fr_status arrivals_kind(const spec *s, const fr_trace_options *o, fr_trace *t, fr_random *r, lengths *l,
                               fr_error *err) {
    static const fr_arrival_family family[] = {FR_ARRIVAL_POISSON, FR_ARRIVAL_GAMMA, FR_ARRIVAL_WEIBULL};
    double rate = 0, cv = 1;
    int64_t count = 0, prefix = 0, groups = 1;
    if (s->kind == BATCH && o->rate > 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: --rate does not go with batch: use poisson", s->text);
    if (s->kind != BATCH) FR_TRY(need_rate(s, o, true, &rate, err));
    if ((s->kind == GAMMA || s->kind == WEIBULL) && !s->value[K_CV])
        return fr_fail(err, FR_BAD_INPUT, "%s: cv is missing, as in %s", s->text, generators[s->kind].example);
    FR_TRY(get_double(s, K_CV, FR_ARRIVAL_MIN_CV, FR_ARRIVAL_MAX_CV, &cv, err));
    FR_TRY(get_int(s, K_COUNT, 1, FR_TRACE_MAX_REQUESTS, &count, err));
    FR_TRY(get_int(s, K_PREFIX, 1, FR_TRACE_MAX_TOKENS, &prefix, err));
    FR_TRY(get_int(s, K_GROUPS, 1, FR_TRACE_MAX_REQUESTS, &groups, err));
    if (s->value[K_GROUPS] && !prefix) return fr_fail(err, FR_BAD_INPUT, "%s: groups needs prefix", s->text);
    FR_TRY(parse_lengths(s, o, l, err));
    bool by_time = !count && !o->max_requests && o->duration_s > 0 && s->kind != BATCH;
    if (!count) count = o->max_requests ? o->max_requests : DEFAULT_COUNT;
    if (o->max_requests) count = fr_min_i64(count, o->max_requests);
    fr_trace_add_source(t, s->text);
    fr_arrival_law law = fr_arrival_law_make(s->kind == BATCH ? FR_ARRIVAL_POISSON : family[s->kind], cv);
    double now = 0;
    for (int64_t i = 0; by_time || i < count; i++) {
        if (s->kind != BATCH) now += fr_arrival_gap(&law, r) / rate;
        if (o->duration_s > 0 && now >= o->duration_s) break;
        if (now * 1e9 > (double)FR_TRACE_MAX_NS)
            return fr_fail(err, FR_BAD_INPUT, "%s: the requests take more than 100 years to arrive", s->text);
        fr_request *q = fr_trace_add(t);
        if (!q) return fr_trace_full(s->text, err);
        q->arrival = llround(now * 1e9);
        q->tokens = draw_length(l, r);
        int64_t group = prefix ? fr_random_below(r, groups) : -1;
        q->prefix_tokens = (int32_t)fr_min_i64(prefix, q->tokens - 1);
        q->prefix_id = q->prefix_tokens ? group : -1;
    }
    return FR_OK;
}

/* Arrivals of the offline kinds: at 0, or Poisson in the order that they have. */
static void arrive_in_order(fr_trace *t, double rate, fr_random *r) {
    fr_arrival_law law = fr_arrival_law_make(FR_ARRIVAL_POISSON, 1);
    double now = 0;
    for (int64_t i = 0; rate > 0 && i < t->count; i++) {
        now += fr_arrival_gap(&law, r) / rate;
        t->requests[i].arrival = llround(fmin(now * 1e9, (double)FR_TRACE_MAX_NS));
    }
}

static fr_status synthetic_kind(const spec *s, const fr_trace_options *o, fr_trace *t, fr_random *r, fr_error *err) {
    double rate;
    int64_t length = 0, count;
    FR_TRY(need_rate(s, o, false, &rate, err));
    if (!s->value[K_LEN]) return fr_fail(err, FR_BAD_INPUT, "%s: len is missing, as in synthetic:len=4K", s->text);
    FR_TRY(get_int(s, K_LEN, 1, FR_TRACE_MAX_TOKENS, &length, err));
    count = fr_max_i64(1, SYNTHETIC_TOKENS / length);
    FR_TRY(get_int(s, K_COUNT, 1, FR_TRACE_MAX_REQUESTS, &count, err));
    if (o->max_requests) count = fr_min_i64(count, o->max_requests);
    fr_trace_add_source(t, s->text);
    for (int64_t i = 0; i < count; i++) {
        fr_request *q = fr_trace_add(t);
        if (!q) return fr_trace_full(s->text, err);
        q->tokens = (int32_t)length;
    }
    arrive_in_order(t, rate, r);
    return FR_OK;
}

typedef struct {
    double share[3]; /* low, medium, high */
    int64_t siblings[3];
} sharing;

static fr_status add_set(const spec *s, fr_trace *t, const fr_table2_set *set, double scale, const sharing *sh,
                         int64_t *prefix_id, fr_error *err) {
    int64_t n = fr_max_i64(1, llround((double)set->count * scale));
    if (t->count + n > FR_TRACE_MAX_REQUESTS) return fr_trace_full(s->text, err);
    int64_t total = llround((double)n * (double)set->tokens / (double)set->count);
    int32_t *length = fr_alloc((size_t)n * sizeof *length), source = fr_trace_add_source(t, set->name);
    fr_table2_lengths(set->low, set->high, n, total, length);
    int64_t group = sh->siblings[set->sharing];
    double share = sh->share[set->sharing];
    int32_t prefix = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || (group && i % group == 0)) { /* ascending: the first is the shortest of its group */
            prefix = (int32_t)floor(share * (group ? length[i] : set->low));
            ++*prefix_id;
        }
        fr_request *q = fr_trace_add(t);
        q->tokens = length[i];
        q->source = source;
        q->prefix_tokens = (int32_t)fr_min_i64(prefix, length[i]);
        q->prefix_id = prefix ? *prefix_id : -1;
    }
    free(length);
    return FR_OK;
}

/* Whether request i goes where the one before it goes: both are siblings of one prefix. The instruction that a whole
 * data set shares (low) does not make siblings. */
static bool follows(const fr_trace *t, int64_t i, const sharing *siblings) {
    if (!siblings || i == 0) return false;
    const fr_request *a = &t->requests[i - 1], *b = &t->requests[i];
    return a->prefix_id >= 0 && a->prefix_id == b->prefix_id && siblings->siblings[fr_table2_at(b->source)->sharing];
}

/* Fisher and Yates, over single requests or (`siblings` given) over whole groups of siblings. */
static void shuffle(fr_trace *t, const sharing *siblings, fr_random *r) {
    int64_t groups = 0, *first = fr_alloc(((size_t)t->count + 1) * sizeof *first);
    for (int64_t i = 0; i < t->count; i++)
        if (!follows(t, i, siblings)) first[groups++] = i;
    first[groups] = t->count;
    int64_t *turn = fr_alloc((size_t)groups * sizeof *turn);
    for (int64_t g = 0; g < groups; g++) turn[g] = g;
    for (int64_t i = groups - 1; i > 0; i--) {
        int64_t j = fr_random_below(r, i + 1), swap = turn[i];
        turn[i] = turn[j];
        turn[j] = swap;
    }
    fr_request *mixed = fr_alloc((size_t)t->count * sizeof *mixed);
    for (int64_t g = 0, n = 0; g < groups; g++)
        for (int64_t i = first[turn[g]]; i < first[turn[g] + 1]; i++) mixed[n++] = t->requests[i];
    memcpy(t->requests, mixed, (size_t)t->count * sizeof *mixed);
    free(mixed);
    free(turn);
    free(first);
}

static fr_status table2_kind(const spec *s, const fr_trace_options *o, fr_trace *t, fr_random *r, fr_error *err) {
    sharing sh = {{0.1, 0.5, 0.8}, {0, 4, 8}};
    double scale = 1, rate;
    int64_t prefix_id = -1;
    FR_TRY(need_rate(s, o, false, &rate, err));
    FR_TRY(get_double(s, K_SCALE, 1e-5, 100, &scale, err));
    FR_TRY(get_double(s, K_HIGH, 0, 1, &sh.share[2], err));
    FR_TRY(get_double(s, K_MEDIUM, 0, 1, &sh.share[1], err));
    FR_TRY(get_double(s, K_LOW, 0, 1, &sh.share[0], err));
    FR_TRY(get_int(s, K_SIBLINGS, 1, FR_TRACE_MAX_REQUESTS, &sh.siblings[2], err));
    FR_TRY(get_int(s, K_MEDIUM_SIBLINGS, 1, FR_TRACE_MAX_REQUESTS, &sh.siblings[1], err));
    static const char *const orders[] = {"shuffled", "siblings", "grouped"};
    const char *order = s->value[K_ORDER] ? s->value[K_ORDER] : orders[0];
    int how = 0;
    while (how < 3 && strcmp(order, orders[how]) != 0) how++;
    if (how == 3)
        return fr_fail(err, FR_BAD_INPUT, "%s: order: expected shuffled, siblings or grouped, got '%s'", s->text,
                       order);
    const fr_table2_set *set;
    for (int i = 0; (set = fr_table2_at(i)); i++) FR_TRY(add_set(s, t, set, scale, &sh, &prefix_id, err));
    if (how < 2) shuffle(t, how == 1 ? &sh : NULL, r);
    for (int64_t i = 0; i < t->count; i++) t->requests[i].id = i; /* order among equal arrivals */
    arrive_in_order(t, rate, r);
    return FR_OK;
}

fr_status fr_generate(const char *text, const fr_trace_options *o, fr_trace **out, fr_error *err) {
    if (strlen(text) > 4096) return fr_fail(err, FR_BAD_INPUT, "trace generator: more than 4,096 characters");
    spec s = {.text = text, .kind = kind_of(text), .copy = fr_strdup(text)};
    if (s.kind < 0) {
        free(s.copy);
        return fr_fail(err, FR_BAD_INPUT, "%s: expected poisson, gamma, weibull, batch, table2 or synthetic", text);
    }
    fr_trace *t = fr_alloc(sizeof *t);
    t->name = fr_strdup(text);
    t->format = generators[s.kind].name;
    t->generated = true;
    fr_random *r = fr_random_new(o->seed);
    lengths l = {0};
    fr_status status = parse_spec(&s, err);
    if (status == FR_OK)
        status = s.kind == TABLE2      ? table2_kind(&s, o, t, r, err)
                 : s.kind == SYNTHETIC ? synthetic_kind(&s, o, t, r, err)
                                       : arrivals_kind(&s, o, t, r, &l, err);
    if (status == FR_OK) status = fr_trace_finish(t, o, false, err);
    fr_histogram_free(&l.table);
    fr_random_free(r);
    free(s.copy);
    if (status != FR_OK)
        fr_trace_close(t);
    else
        *out = t;
    return status;
}

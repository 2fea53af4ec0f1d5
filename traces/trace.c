#include "traces/trace.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "traces/generate.h"
#include "traces/readers.h"

#define MAX_FILE ((size_t)1 << 30) /* BurstGPT's largest file, 3.8 M rows, has 0.2 GB */

static const fr_trace_builtin builtins[] = {
    {"mooncake-conversation", "mooncake-conversation-1000.jsonl",
     "first 1,000 requests of the Mooncake conversation trace, with block hashes", "Apache-2.0"},
    {"mooncake-arxiv", "mooncake-arxiv-93.csv", "93 requests, 38 % share a prefix of 6,144 tokens", "Apache-2.0"},
    {"azure-code", "azure-code-2023.csv", "an hour of code completion, 8,819 requests", "CC-BY-4.0"},
    {"servegen-20", "servegen-chunk-20-trace.csv",
     "a day of a short-output client of Alibaba's m-large, some 75,000 requests drawn from its rates", "Apache-2.0"},
};

const fr_trace_builtin *fr_trace_builtin_at(int index) {
    return index >= 0 && (size_t)index < sizeof builtins / sizeof *builtins ? &builtins[index] : NULL;
}

/* ---- a trace being built ---------------------------------------------------------------------------------------- */

fr_request *fr_trace_add(fr_trace *t) {
    if (t->count == FR_TRACE_MAX_REQUESTS) return NULL;
    FR_GROW(t->requests, t->requests_capacity, t->count + 1);
    fr_request *r = &t->requests[t->count];
    *r = (fr_request){.id = t->count, .prefix_id = -1};
    t->count++;
    return r;
}

fr_status fr_trace_full(const char *name, fr_error *err) {
    return fr_fail(err, FR_BAD_INPUT,
                   "%s: more than %d requests: use --duration or --max-requests, or a part of the file", name,
                   FR_TRACE_MAX_REQUESTS);
}

void fr_trace_add_hash(fr_trace *t, uint64_t hash) {
    FR_GROW(t->hashes, t->hashes_capacity, t->hashes_count + 1);
    t->hashes[t->hashes_count++] = hash;
    t->requests[t->count - 1].blocks_count++;
}

int32_t fr_trace_add_source(fr_trace *t, const char *name) {
    FR_GROW(t->sources, t->sources_capacity, t->sources_count + 1);
    t->sources[t->sources_count] = fr_strdup(name);
    return t->sources_count++;
}

static int by_arrival(const void *a, const void *b) {
    const fr_request *x = a, *y = b;
    if (x->arrival != y->arrival) return x->arrival < y->arrival ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static fr_status retime(fr_trace *t, double rate, fr_error *err) {
    int64_t span = t->requests[t->count - 1].arrival;
    if (t->count < 2 || span <= 0)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: --rate needs requests that arrive at different times; for a batch use a rate in the "
                       "generator, as in poisson:rate=12,len=2048",
                       t->name);
    double factor = (double)(t->count - 1) / rate * 1e9 / (double)span; /* n - 1 gaps of mean 1 / rate */
    if ((double)span * factor > (double)FR_TRACE_MAX_NS)
        return fr_fail(err, FR_BAD_INPUT, "%s: --rate %g stretches the trace beyond 100 years", t->name, rate);
    for (int64_t i = 0; i < t->count; i++)
        t->requests[i].arrival = (int64_t)llround((double)t->requests[i].arrival * factor);
    return FR_OK;
}

fr_status fr_trace_finish(fr_trace *t, const fr_trace_options *o, bool may_retime, fr_error *err) {
    if (t->count == 0) return fr_fail(err, FR_BAD_INPUT, "%s: no requests in it", t->name);
    const uint64_t *hashes = t->hashes;
    for (int64_t i = 0; i < t->count; i++) {
        fr_request *r = &t->requests[i];
        r->blocks = r->blocks_count ? hashes : NULL;
        hashes += r->blocks_count;
        if (i && r->arrival < r[-1].arrival) t->reordered++;
    }
    if (t->reordered) qsort(t->requests, (size_t)t->count, sizeof *t->requests, by_arrival);
    if (!t->generated) {
        int64_t start = t->requests[0].arrival;
        for (int64_t i = 0; i < t->count; i++) t->requests[i].arrival -= start;
    }
    if (may_retime && o->rate > 0) FR_TRY(retime(t, o->rate, err));
    if (o->max_requests && t->count > o->max_requests) t->count = o->max_requests;
    if (o->duration_s > 0)
        while (t->count > 0 && (double)t->requests[t->count - 1].arrival >= o->duration_s * 1e9) t->count--;
    if (t->count == 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: no request arrives within --duration %g s", t->name, o->duration_s);
    for (int64_t i = 0; i < t->count; i++) t->requests[i].id = i;
    return FR_OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static bool is_file(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode);
}

char *fr_trace_find(const char *spec, const char *data_dir) {
    const char *file = spec;
    for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++)
        if (strcmp(spec, builtins[i].name) == 0) file = builtins[i].file;
    const char *data = getenv("FORERUN_DATA");
    char path[4][4096] = {{0}};
    snprintf(path[0], sizeof path[0], "%s", file);
    if (data) snprintf(path[1], sizeof path[1], "%s/traces/%s", data, file);
    snprintf(path[2], sizeof path[2], "traces/data/%s", file);
    if (data_dir) snprintf(path[3], sizeof path[3], "%s/../traces/data/%s", data_dir, file);
    for (int i = 0; i < 4; i++)
        if (path[i][0] && (i == 0 || file[0] != '/') && is_file(path[i])) return fr_strdup(path[i]);
    return NULL;
}

static const char *const formats[] = {"mooncake", "azure", "burstgpt", "servegen", "csv"};

static const char *detect(const char *text) {
    if (text[0] == '{') return "mooncake";
    if (strncmp(text, "TIMESTAMP,", 10) == 0) return "azure";
    if (strncmp(text, "Timestamp,", 10) == 0) return "burstgpt";
    if (strncmp(text, "arrival_ms,", 11) == 0) return "csv";
    int commas = 0;
    for (const char *c = text; *c && *c != '\n'; c++) commas += *c == ',';
    return text[0] >= '0' && text[0] <= '9' && commas == 5 ? "servegen" : NULL;
}

static fr_status check_options(const fr_trace_options *o, fr_error *err) {
    if (!isfinite(o->rate) || o->rate < 0 || o->rate > 1e9)
        return fr_fail(err, FR_BAD_INPUT, "--rate: expected requests per second from 0 (as the trace has it) to 1e9");
    if (!isfinite(o->duration_s) || o->duration_s < 0)
        return fr_fail(err, FR_BAD_INPUT, "--duration: expected seconds, 0 = the whole trace");
    if (o->max_requests < 0) return fr_fail(err, FR_BAD_INPUT, "--max-requests: expected 0 (all) or more");
    if (o->spread > FR_SPREAD_NONE) return fr_fail(err, FR_BAD_INPUT, "--spread: expected even, uniform or none");
    return FR_OK;
}

static fr_status read_format(fr_trace *t, char *text, size_t length, const char *dataset, size_t dataset_length,
                             const fr_trace_options *o, fr_error *err) {
    fr_lines l;
    FR_TRY(fr_lines_open(&l, t->name, text, length, err));
    t->format = NULL;
    const char *want = o->format ? o->format : detect(l.text);
    for (size_t i = 0; want && i < sizeof formats / sizeof *formats; i++)
        if (strcmp(want, formats[i]) == 0) t->format = formats[i];
    if (!t->format && o->format)
        return fr_fail(err, FR_BAD_INPUT, "--format: expected mooncake, azure, burstgpt, servegen or csv, got '%s'",
                       o->format);
    if (!t->format)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s:1: not a trace format known here (mooncake, azure, burstgpt, servegen, csv with header "
                       "arrival_ms,prompt_tokens); --format NAME says which",
                       t->name);
    const char *slash = strrchr(t->name, '/');
    fr_trace_add_source(t, slash ? slash + 1 : t->name);
    bool may_retime = true;
    if (strcmp(t->format, "servegen") == 0) {
        FR_TRY(fr_read_servegen(t, &l, dataset, dataset_length, o, err));
        may_retime = false;
    } else if (strcmp(t->format, "mooncake") == 0) {
        FR_TRY(fr_read_mooncake(t, &l, o, err));
    } else if (strcmp(t->format, "azure") == 0) {
        FR_TRY(fr_read_azure(t, &l, err));
    } else if (strcmp(t->format, "burstgpt") == 0) {
        FR_TRY(fr_read_burstgpt(t, &l, err));
    } else {
        FR_TRY(fr_read_csv(t, &l, err));
    }
    return fr_trace_finish(t, o, may_retime, err);
}

fr_status fr_trace_parse(const char *name, char *text, size_t length, const char *dataset, size_t dataset_length,
                         const fr_trace_options *o, fr_trace **out, fr_error *err) {
    FR_TRY(check_options(o, err));
    fr_trace *t = fr_alloc(sizeof *t);
    t->name = fr_strdup(name);
    fr_status status = read_format(t, text, length, dataset, dataset_length, o, err);
    if (status != FR_OK) {
        fr_trace_close(t);
        return status;
    }
    *out = t;
    return FR_OK;
}

/* chunk-N-trace.csv -> the text of chunk-N-dataset.json beside it; nothing when the name has another shape. */
static fr_status read_dataset(const char *path, char **text, size_t *length, fr_error *err) {
    static const char tail[] = "-trace.csv";
    size_t n = strlen(path), k = sizeof tail - 1;
    *text = NULL;
    *length = 0;
    if (n < k || strcmp(path + n - k, tail) != 0 || n > 4000) return FR_OK;
    char other[4096];
    snprintf(other, sizeof other, "%.*s-dataset.json", (int)(n - k), path);
    if (!is_file(other)) return FR_OK; /* refused by the servegen reader, if it is that format */
    return fr_read_file(other, MAX_FILE, text, length, err);
}

static fr_status open_file(const char *spec, const fr_trace_options *o, fr_trace **out, fr_error *err) {
    char *path = fr_trace_find(spec, o->data_dir);
    if (!path)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: no such trace: give a file, a name of `forerun list traces`, or a generator such as "
                       "poisson:rate=12,len=2048",
                       spec);
    char *text = NULL, *dataset = NULL;
    size_t length = 0, dataset_length = 0;
    fr_status status = fr_read_file(path, MAX_FILE, &text, &length, err);
    if (status == FR_OK) status = read_dataset(path, &dataset, &dataset_length, err);
    if (status == FR_OK) status = fr_trace_parse(path, text, length, dataset, dataset_length, o, out, err);
    free(text);
    free(dataset);
    free(path);
    return status;
}

fr_status fr_trace_open(const char *spec, const fr_trace_options *o, fr_trace **out, fr_error *err) {
    FR_TRY(check_options(o, err));
    if (!fr_generate_is_spec(spec)) return open_file(spec, o, out, err);
    if (o->format) return fr_fail(err, FR_BAD_INPUT, "--format: not for a generator (%s)", spec);
    return fr_generate(spec, o, out, err);
}

void fr_trace_close(fr_trace *t) {
    if (!t) return;
    for (int32_t i = 0; i < t->sources_count; i++) free(t->sources[i]);
    free(t->sources);
    free(t->requests);
    free(t->hashes);
    free(t->name);
    free(t);
}

const fr_request *fr_trace_requests(const fr_trace *t) {
    return t->requests;
}

int64_t fr_trace_count(const fr_trace *t) {
    return t->count;
}

void fr_trace_describe(const fr_trace *t, fr_trace_summary *out) {
    *out = (fr_trace_summary){
        .name = t->name, .format = t->format, .requests = t->count, .skipped = t->skipped, .reordered = t->reordered};
    for (int64_t i = 0; i < t->count; i++) {
        out->tokens += t->requests[i].tokens;
        out->blocks += t->requests[i].blocks_count;
    }
    out->span = t->requests[t->count - 1].arrival - t->requests[0].arrival;
}

const char *fr_trace_source(const fr_trace *t, int32_t source) {
    return source >= 0 && source < t->sources_count ? t->sources[source] : NULL;
}

/*
 * trace: requests over time, from a public trace file or a generator (traces/generate.h), as the scheduler takes them.
 *
 * Formats, found by the first line or named by `format`:
 *   mooncake  JSONL {"timestamp": ms, "input_length", "output_length", "hash_ids": one per 512 tokens, the last may be
 *             partial} (kvcache-ai/Mooncake). Arrivals come in steps of 3 s; see fr_spread.
 *   azure     CSV TIMESTAMP,ContextTokens,GeneratedTokens (Azure Public Dataset; timestamps to 100 ns)
 *   burstgpt  CSV Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,Total tokens,Log Type (s)
 *   servegen  chunk-N-trace.csv: start s, requests/s, CV, family, two fit parameters per window; the lengths come from
 *             chunk-N-dataset.json beside it (alibaba/ServeGen). Arrivals are generated, seeded.
 *   csv       arrival_ms,prompt_tokens[,prefix_id,prefix_tokens]; prefix_id empty = none
 * Rules: arrivals are counted from the first one; rows out of order are sorted stably; requests of 0 prompt tokens
 * (failed calls in azure and burstgpt logs) are left out and counted, elsewhere refused; anything else that is wrong,
 * more than 10 M tokens included, is refused with file, line and field. Output lengths are checked and dropped: prefill
 * has none.
 */
#ifndef FR_TRACE_H
#define FR_TRACE_H

#include "engine/base.h"
#include "engine/sched/sched.h"

#define FR_TRACE_MAX_TOKENS   10000000 /* of one request: above any context length sold today (10 M, Llama 4 Scout) */
#define FR_TRACE_MAX_REQUESTS 20000000 /* of one trace: 2 GB of host memory */

/* Where a file knows arrivals only to a step (mooncake): the n requests of a step of width w (the time to the next
 * step, at most 3 s) arrive at t + w j / n, at seeded uniform times within it, or all at t. */
typedef enum { FR_SPREAD_EVEN = 0, FR_SPREAD_UNIFORM, FR_SPREAD_NONE } fr_spread;

typedef struct {
    const char *format;   /* NULL = by the first line */
    fr_spread spread;     /* mooncake only */
    double rate;          /* mean requests/s: re-times the whole trace by one factor, before the cuts; 0 = as it is */
    double duration_s;    /* cut after this time; 0 = none */
    int64_t max_requests; /* keep the first ones; 0 = all. A generator without a count of its own makes this many */
    uint64_t seed;        /* spread uniform, generators, servegen */
    const char *data_dir; /* folder of the executable: DIR/../traces/data is the last place looked into; may be NULL */
} fr_trace_options;

typedef struct fr_trace fr_trace;

/*
 * `spec` is a generator (KIND:...), a name of fr_trace_builtin_at, or a path, looked up as given, then in
 * $FORERUN_DATA/traces, ./traces/data, <data_dir>/../traces/data.
 */
fr_status fr_trace_open(const char *spec, const fr_trace_options *options, fr_trace **out, fr_error *err);
/* The same from memory; `text` is overwritten. `dataset` = the servegen length histograms, else NULL. */
fr_status fr_trace_parse(const char *name, char *text, size_t length, const char *dataset, size_t dataset_length,
                         const fr_trace_options *options, fr_trace **out, fr_error *err);
void fr_trace_close(fr_trace *t);

/* In order of arrival, id = index, first arrival at 0 for files; blocks belong to the trace. candidates = 0: not said.
 */
const fr_request *fr_trace_requests(const fr_trace *t);
int64_t fr_trace_count(const fr_trace *t);

typedef struct {
    const char *name, *format; /* as opened; "mooncake", "poisson", ... */
    int64_t requests, tokens, blocks;
    int64_t skipped;   /* rows of 0 tokens left out */
    int64_t reordered; /* rows that came earlier than the row before them */
    int64_t span;      /* ns from first to last arrival */
} fr_trace_summary;
void fr_trace_describe(const fr_trace *t, fr_trace_summary *out);
const char *fr_trace_source(const fr_trace *t, int32_t source); /* name of fr_request.source; NULL beyond the last */

typedef struct {
    const char *name, *file, *summary, *licence;
} fr_trace_builtin;
const fr_trace_builtin *fr_trace_builtin_at(int index); /* shipped traces; NULL at the end */

#endif

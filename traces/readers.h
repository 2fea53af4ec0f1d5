/*
 * readers: what the readers and generators of traces/ share: a trace being built. Not for use outside traces/.
 */
#ifndef FR_TRACE_READERS_H
#define FR_TRACE_READERS_H

#include "traces/trace.h"

struct fr_trace {
    char *name;
    const char *format;
    fr_request *requests;
    uint64_t *hashes; /* of all requests, in the order they were added */
    uint32_t requests_capacity, hashes_capacity, sources_capacity;
    int64_t count, hashes_count, skipped, reordered;
    char **sources;
    int32_t sources_count;
    bool generated; /* starts at time 0, not at the first arrival */
};

typedef struct {
    const char *name; /* file, for messages */
    char *text, *end; /* NUL at end */
    int64_t line;
} fr_lines;

/* A rate or time beyond this is refused: 100 years in ns, well inside int64. */
#define FR_TRACE_MAX_NS 3155760000000000000ll

fr_status fr_lines_open(fr_lines *l, const char *name, char *text, size_t length, fr_error *err);
/* The next line, NUL-terminated, without its end; NULL at the end of the text. */
char *fr_lines_next(fr_lines *l);
/* Cuts a line at commas into exactly `want` fields. */
fr_status fr_lines_split(const fr_lines *l, char *line, char **fields, int want, fr_error *err);
fr_status fr_lines_int(const fr_lines *l, const char *field, const char *text, int64_t low, int64_t high, int64_t *out,
                       fr_error *err);
fr_status fr_lines_double(const fr_lines *l, const char *field, const char *text, double low, double high, double *out,
                          fr_error *err);

/* Adds a zeroed request; NULL when the trace is full. */
fr_request *fr_trace_add(fr_trace *t);
void fr_trace_add_hash(fr_trace *t, uint64_t hash); /* to the last request; its blocks_count is raised */
int32_t fr_trace_add_source(fr_trace *t, const char *name);
fr_status fr_trace_full(const char *name, fr_error *err);

fr_status fr_read_mooncake(fr_trace *t, fr_lines *l, const fr_trace_options *o, fr_error *err);
fr_status fr_read_azure(fr_trace *t, fr_lines *l, fr_error *err);
fr_status fr_read_burstgpt(fr_trace *t, fr_lines *l, fr_error *err);
fr_status fr_read_csv(fr_trace *t, fr_lines *l, fr_error *err);
/* Applies rate and duration itself (it generates); the rest is fr_trace_finish. */
fr_status fr_read_servegen(fr_trace *t, fr_lines *l, const char *dataset, size_t dataset_length,
                           const fr_trace_options *o, fr_error *err);

/* Finds a file as fr_trace_open does; the path is the caller's, NULL = not found. */
char *fr_trace_find(const char *spec, const char *data_dir);

/* Sorts, re-times, cuts, numbers. `retime` false: the rate has been applied. */
fr_status fr_trace_finish(fr_trace *t, const fr_trace_options *o, bool retime, fr_error *err);

#endif

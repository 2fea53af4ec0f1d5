/* What the trace fuzz targets share: parse a text as one format, check what comes out, run it through the scheduler. */
#ifndef FR_FUZZ_TRACE_H
#define FR_FUZZ_TRACE_H

#include <stdlib.h>
#include <string.h>

#include "traces/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok) {
    if (!ok) __builtin_trap();
}

static void fuzz_schedule(const fr_trace *t, int variant) {
    fr_sched_options o = {.queues = 1 + variant % 3,
                          .budget = 4096,
                          .chunk_tokens = variant & 4 ? 1000 : 0,
                          .route = (fr_route)(variant & 3),
                          .cache_tokens = variant & 8 ? 20000 : 0};
    fr_sched *s = NULL;
    check(fr_sched_new(&o, &s, NULL) == FR_OK);
    int64_t tokens = 0;
    for (int64_t i = 0; i < fr_trace_count(t); i++) {
        const fr_request *r = &fr_trace_requests(t)[i];
        check(r->id == i && r->tokens >= 1 && r->prefix_tokens >= 0 && r->prefix_tokens <= r->tokens);
        check(r->arrival >= 0 && (i == 0 || r->arrival >= r[-1].arrival));
        if (r->tokens > 100000 && o.chunk_tokens) continue; /* ten thousand chunks teach nothing */
        tokens += r->tokens;
        fr_sched_arrive(s, r, r->arrival);
    }
    const fr_sched_batch *b;
    for (int q = 0; q < o.queues; q++)
        while (fr_sched_next(s, q, 0, &b)) fr_sched_done(s, b, 0);
    fr_sched_counters c;
    fr_sched_count(s, &c);
    check(fr_sched_pending(s) == 0 && c.computed + c.cached == tokens && c.cache_tokens <= o.cache_tokens * o.queues);
    fr_sched_free(s);
}

static inline void fuzz_trace(const char *format, const uint8_t *data, size_t size, const char *dataset,
                              size_t dataset_length) {
    char *text = malloc(size + 1);
    check(text != NULL);
    memcpy(text, data, size);
    text[size] = 0;
    int variant = (int)(size ? data[size / 2] % 16 : 0);
    fr_trace_options o = {
        .format = format, .max_requests = 2000, .spread = (fr_spread)(variant % 3), .rate = variant & 8 ? 5 : 0};
    fr_error err = {0};
    fr_trace *t = NULL;
    fr_status status = fr_trace_parse("fuzz", text, size, dataset, dataset_length, &o, &t, &err);
    check(status == FR_OK || (status == FR_BAD_INPUT && err.text[0] && !strchr(err.text, '\n')));
    if (status == FR_OK) fuzz_schedule(t, variant);
    fr_trace_close(t);
    free(text);
}

#endif

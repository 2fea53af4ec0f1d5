/* Trace readers: the shipped traces against independent counts, spreading, re-timing, and wrong input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include "traces/readers.h"
#include "traces/trace.h"

static fr_trace *open_trace(const char *name, fr_trace_options o) {
    fr_trace *t = NULL;
    fr_error err = {0};
    if (fr_trace_open(name, &o, &t, &err) != FR_OK) fail_msg("%s", err.text);
    return t;
}

static fr_status parse(const char *text, const char *dataset, fr_trace_options o, fr_trace **t, fr_error *err) {
    char *copy = fr_strdup(text);
    fr_status status = fr_trace_parse("t", copy, strlen(text), dataset, dataset ? strlen(dataset) : 0, &o, t, err);
    free(copy);
    return status;
}

static fr_trace *parsed(const char *text, fr_trace_options o) {
    fr_trace *t = NULL;
    fr_error err = {0};
    if (parse(text, NULL, o, &t, &err) != FR_OK) fail_msg("%s", err.text);
    return t;
}

/* Hits of an unlimited prefix cache, by the scheduler: one queue, one request a batch. */
static void unlimited_hits(const fr_trace *t, fr_sched_counters *out) {
    fr_sched *s = NULL;
    fr_sched_options o = {.queues = 1, .budget = 16384, .cache_tokens = INT64_MAX};
    assert_int_equal(fr_sched_new(&o, &s, NULL), FR_OK);
    for (int64_t i = 0; i < fr_trace_count(t); i++) {
        const fr_sched_batch *b;
        fr_sched_arrive(s, &fr_trace_requests(t)[i], 0);
        if (i % 3 == 0) continue; /* batching must not change what is found */
        while (fr_sched_next(s, 0, 0, &b)) fr_sched_done(s, b, 0);
    }
    for (const fr_sched_batch *b; fr_sched_next(s, 0, 0, &b);) fr_sched_done(s, b, 0);
    fr_sched_count(s, out);
    fr_sched_free(s);
}

/*
 * The golden numbers come from awk over the shipped file:
 *   awk -F'\\[|\\]' '{n=split($2,a,", "); go=1; for(i=1;i<=n;i++){b++; if(go&&(a[i] in s))h++; else go=0}
 *                    for(i=1;i<=n;i++)s[a[i]]=1} END{print b,h}'
 * and, for tokens, the sum of min(512 * leading hits, input_length - 1) by a Python script.
 */
static void mooncake_slice(void **state) {
    (void)state;
    fr_trace *t = open_trace("mooncake-conversation", (fr_trace_options){0});
    fr_trace_summary s;
    fr_trace_describe(t, &s);
    assert_string_equal(s.format, "mooncake");
    assert_int_equal(s.requests, 1000);
    assert_int_equal(s.tokens, 13732944);
    assert_int_equal(s.blocks, 27305);
    fr_sched_counters c;
    unlimited_hits(t, &c);
    assert_int_equal(c.blocks, 27305);
    assert_int_equal(c.blocks_hit, 5791);
    assert_int_equal(c.cached, 2962765);
    assert_int_equal(c.cached + c.computed, 13732944);
    fr_trace_close(t);
}

/* The whole published trace, where a copy is at hand: data/README.md of the trace says 36.6 % of blocks. */
static void mooncake_whole(void **state) {
    (void)state;
    const char *path = getenv("FORERUN_MOONCAKE");
    if (!path) skip();
    fr_trace *t = open_trace(path, (fr_trace_options){0});
    fr_sched_counters c;
    unlimited_hits(t, &c);
    assert_int_equal(fr_trace_count(t), 12031);
    assert_int_equal(c.blocks, 288500);
    assert_int_equal(c.blocks_hit, 105710);
    fr_trace_close(t);
}

static void shipped_traces(void **state) {
    (void)state;
    const fr_trace_builtin *b;
    for (int i = 0; (b = fr_trace_builtin_at(i)); i++) {
        fr_trace *t = open_trace(b->name, (fr_trace_options){.seed = 1});
        const fr_request *r = fr_trace_requests(t);
        for (int64_t k = 0; k < fr_trace_count(t); k++) {
            assert_int_equal(r[k].id, k);
            assert_true(r[k].tokens >= 1 && r[k].arrival >= 0 && (k == 0 || r[k].arrival >= r[k - 1].arrival));
            assert_true(r[k].prefix_tokens <= r[k].tokens);
        }
        assert_string_equal(fr_trace_source(t, r[0].source), b->file);
        fr_trace_close(t);
    }
    fr_trace *t = open_trace("azure-code", (fr_trace_options){0});
    assert_int_equal(fr_trace_count(t), 8819); /* wc, awk */
    fr_trace_summary s;
    fr_trace_describe(t, &s);
    assert_int_equal(s.tokens, 18059974);
    assert_int_equal(s.span, 3435948056000); /* 18:17:03.9799600 to 19:14:19.9280160 */
    fr_trace_close(t);
}

static void servegen_follows_its_windows(void **state) {
    (void)state;
    /* awk: the 144 windows hold 75,687 requests. CV about 1.7: the count's deviation is 1.7 sqrt(n) = 470; 4 of them.
     */
    fr_trace *t = open_trace("servegen-20", (fr_trace_options){.seed = 7});
    int64_t n = fr_trace_count(t);
    assert_in_range(n, 75687 - 1900, 75687 + 1900);
    fr_trace *again = open_trace("servegen-20", (fr_trace_options){.seed = 7});
    assert_int_equal(fr_trace_count(again), n);
    for (int64_t i = 0; i < n; i += 97) {
        assert_int_equal(fr_trace_requests(again)[i].arrival, fr_trace_requests(t)[i].arrival);
        assert_int_equal(fr_trace_requests(again)[i].tokens, fr_trace_requests(t)[i].tokens);
    }
    fr_trace_close(again);
    fr_trace_close(t);
    t = open_trace("servegen-20", (fr_trace_options){.seed = 7, .rate = 8, .max_requests = 500});
    assert_int_equal(fr_trace_count(t), 500);
    fr_trace_close(t);

    /* Two windows, the first idle; one length: everything lies in the second, nothing else can come out. */
    static const char dataset[] =
        "{\"0\": {\"input_tokens\": \"{300: 0.25, 0: 0.75}\"}, \"50\": {\"input_tokens\": \"{}\"}}";
    fr_error err = {0};
    assert_int_equal(parse("0,0,0,,0,0\n100,20,1,Gamma,1,0.05\n", dataset, (fr_trace_options){.seed = 3}, &t, &err),
                     FR_OK);
    assert_in_range(fr_trace_count(t), 2000 - 200, 2000 + 200);
    for (int64_t i = 0; i < fr_trace_count(t); i++) {
        assert_int_equal(fr_trace_requests(t)[i].tokens, 300);
        assert_true(fr_trace_requests(t)[i].arrival >= 100000000000 && fr_trace_requests(t)[i].arrival < 200000000000);
    }
    fr_trace_close(t);
}

#define ROW(t) "{\"timestamp\": " #t ", \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, 2]}\n"

static void steps_are_spread(void **state) {
    (void)state;
    static const char text[] = ROW(0) ROW(0) ROW(0) ROW(3000) ROW(3000) ROW(9000);
    const int64_t even[] = {0, 1000, 2000, 3000, 4500, 9000}, none[] = {0, 0, 0, 3000, 3000, 9000};
    fr_trace *t = parsed(text, (fr_trace_options){0});
    for (int i = 0; i < 6; i++) assert_int_equal(fr_trace_requests(t)[i].arrival, even[i] * 1000000);
    assert_int_equal(fr_trace_requests(t)[5].blocks[1], 2);
    fr_trace_close(t);
    t = parsed(text, (fr_trace_options){.spread = FR_SPREAD_NONE});
    for (int i = 0; i < 6; i++) assert_int_equal(fr_trace_requests(t)[i].arrival, none[i] * 1000000);
    fr_trace_close(t);
    /* uniform: the first arrival is the zero of the clock, the rest stays within its step */
    t = parsed(text, (fr_trace_options){.spread = FR_SPREAD_UNIFORM, .seed = 5});
    for (int i = 0; i < 6; i++) {
        int64_t a = fr_trace_requests(t)[i].arrival;
        assert_true(a >= (none[i] - 3000) * 1000000 && a < (none[i] + 3000) * 1000000);
        if (i) assert_true(a >= fr_trace_requests(t)[i - 1].arrival);
    }
    fr_trace_close(t);
}

static void rates_and_cuts(void **state) {
    (void)state;
    fr_trace *t = open_trace("azure-code", (fr_trace_options){.rate = 25});
    fr_trace *plain = open_trace("azure-code", (fr_trace_options){0});
    fr_trace_summary s, p;
    fr_trace_describe(t, &s);
    fr_trace_describe(plain, &p);
    assert_int_equal(s.requests, 8819);
    assert_true(llabs(s.span - 8818 * 40000000ll) <= 1); /* 1 / 25 s mean gap */
    for (int64_t i = 0; i < 8819; i += 31) {             /* one factor for all: the shape is kept */
        double expect = (double)fr_trace_requests(plain)[i].arrival * (double)s.span / (double)p.span;
        assert_true(llabs(fr_trace_requests(t)[i].arrival - (int64_t)expect) <= 2);
    }
    fr_trace_close(t);
    fr_trace_close(plain);
    t = open_trace("azure-code", (fr_trace_options){.max_requests = 100});
    assert_int_equal(fr_trace_count(t), 100);
    fr_trace_close(t);
    t = open_trace("azure-code", (fr_trace_options){.duration_s = 60});
    int64_t n = fr_trace_count(t);
    assert_true(n > 10 && fr_trace_requests(t)[n - 1].arrival < 60000000000);
    fr_trace_close(t);
}

static void small_files(void **state) {
    (void)state;
    fr_trace_summary s;
    fr_trace *t =
        parsed("arrival_ms,prompt_tokens,prefix_id,prefix_tokens\r\n20.5,7,3,4\r\n10,8,,\n", (fr_trace_options){0});
    const fr_request *r = fr_trace_requests(t); /* sorted, the first at 0 */
    assert_int_equal(r[0].tokens, 8);
    assert_int_equal(r[0].prefix_id, -1);
    assert_int_equal(r[1].arrival, 10500000);
    assert_int_equal(r[1].prefix_id, 3);
    assert_int_equal(r[1].prefix_tokens, 4);
    fr_trace_describe(t, &s);
    assert_int_equal(s.reordered, 1);
    fr_trace_close(t);

    t = parsed("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
               "5,ChatGPT,472,18,490,Conversation log\n7,ChatGPT,0,20,20,API log\n45.25,GPT-4,1087,230,1317,API log\n",
               (fr_trace_options){0});
    fr_trace_describe(t, &s);
    assert_int_equal(s.requests, 2);
    assert_int_equal(s.skipped, 1);
    assert_int_equal(s.span, 40250000000);
    fr_trace_close(t);
    t = parsed("Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
               "5,a,1.5,ChatGPT,472,18,490,Conversation log\n",
               (fr_trace_options){0});
    assert_int_equal(fr_trace_requests(t)[0].tokens, 472);
    fr_trace_close(t);

    t = parsed("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-02-28 23:59:59.9999999,5,0\n"
               "2024-03-01 00:00:00+00:00,6,1\n",
               (fr_trace_options){0});
    assert_int_equal(fr_trace_requests(t)[1].arrival, 86400000000000 + 100); /* over a 29th of February */
    fr_trace_close(t);
}

static void wrong_input_gives_one_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *says, *dataset;
    } wrong[] = {
        {"", "empty", NULL},
        {"hello\n", "not a trace format", NULL},
        {"arrival_ms,prompt_tokens\n", "no requests", NULL},
        {"arrival_ms,prompt_tokens\n1\n", "t:2: expected 2 fields", NULL},
        {"arrival_ms,prompt_tokens\n1,2,3\n", "t:2: expected 2 fields", NULL},
        {"arrival_ms,prompt_tokens\nnan,2\n", "t:2: arrival_ms", NULL},
        {"arrival_ms,prompt_tokens\n0x10,2\n", "t:2: arrival_ms", NULL},
        {"arrival_ms,prompt_tokens\n-1,2\n", "t:2: arrival_ms", NULL},
        {"arrival_ms,prompt_tokens\n1e300,2\n", "t:2: arrival_ms", NULL},
        {"arrival_ms,prompt_tokens\n1,2\n1,0\n", "t:3: prompt_tokens", NULL},
        {"arrival_ms,prompt_tokens\n1,10000001\n", "t:2: prompt_tokens", NULL},
        {"arrival_ms,prompt_tokens\n1,99999999999999999999\n", "t:2: prompt_tokens", NULL},
        {"arrival_ms,prompt_tokens\n\n1,2\n", "t:2: expected 2 fields", NULL},
        {"arrival_ms,prompt_tokens,prefix_id,prefix_tokens\n1,2,3,3\n", "t:2: prefix_tokens", NULL},
        {"arrival_ms,prompt_tokens,prefix_id,prefix_tokens\n1,2,,1\n", "t:2: prefix_id", NULL},
        {"TIMESTAMP,ContextTokens\n", "t:1: expected the header", NULL},
        {"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-16 18:17:03,1,1\n", "t:2: TIMESTAMP", NULL},
        {"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.12345678901,1,1\n", "t:2: TIMESTAMP", NULL},
        {"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-1,1\n", "t:2: ContextTokens", NULL},
        {"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n1,x,1.5,1,1,y\n", "Request tokens",
         NULL},
        {"{\"timestamp\": 0}\n", "t:1: input_length is missing", NULL},
        {"{\"timestamp\": 0, \"timestamp\": 1}\n", "each field once", NULL},
        {"{\"timestamp\": -1}\n", "t:1: timestamp", NULL},
        {"{\"timestamp\": 1e3}\n", "t:1: timestamp", NULL},
        {"{\"timestamp\": NaN}\n", "t:1: timestamp", NULL},
        {"{\"timestamp\": 99999999999999999999}\n", "t:1: timestamp", NULL},
        {"{\"chat_id\": 1}\n", "t:1: field name", NULL},
        {"{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, 2", "t:1: hash_ids", NULL},
        {"{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [[[[1]]]]}", "hash_ids", NULL},
        {"{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, 2, 3]}", "expected 2",
         NULL},
        {"{\"timestamp\": 0, \"input_length\": 0, \"output_length\": 1, \"hash_ids\": []}", "at least 1", NULL},
        {ROW(0) "\n", "t:2: line", NULL},
        {"0,1,1,Gamma,1,1\n", "dataset.json", NULL},
        {"0,1,1,Pareto,1,1\n", "family", "{}"},
        {"0,nan,1,Gamma,1,1\n", "rate", "{}"},
        {"0,1,1,Gamma,1,1\n0,1,1,Gamma,1,1\n", "windows must follow", "{}"},
        {"0,1,1,Gamma,1,1\n", "no period", "{}"},
        {"0,1,1,Gamma,1,1\n", "expected a text", "{\"0\": {\"input_tokens\": 5}}"},
        {"0,1,1,Gamma,1,1\n", "wrong at", "{\"0\": {\"input_tokens\": \"\"}}"},
        {"0,1,1,Gamma,1,1\n", "wrong at", "{\"0\": {\"input_tokens\": \"{5: x}\"}}"},
        {"0,1,1,Gamma,1,1\n", "wrong at", "{\"0\": {\"input_tokens\": \"{5: 0.5\"}}"},
        {"0,0,1,Gamma,1,1\n", "every rate is 0", "{\"0\": {\"input_tokens\": \"{5: 1}\"}}"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fr_trace *t = NULL;
        fr_error err = {0};
        assert_int_equal(parse(wrong[i].text, wrong[i].dataset, (fr_trace_options){0}, &t, &err), FR_BAD_INPUT);
        if (!strstr(err.text, wrong[i].says)) fail_msg("case %zu says: %s", i, err.text);
    }
    fr_error err = {0};
    fr_trace *t = NULL;
    assert_int_equal(fr_trace_open("no-such-trace", &(fr_trace_options){0}, &t, &err), FR_BAD_INPUT);
    assert_int_equal(fr_trace_open("azure-code", &(fr_trace_options){.format = "csv"}, &t, &err), FR_BAD_INPUT);
    assert_int_equal(fr_trace_open("azure-code", &(fr_trace_options){.format = "what"}, &t, &err), FR_BAD_INPUT);
    assert_int_equal(fr_trace_open("azure-code", &(fr_trace_options){.rate = -1}, &t, &err), FR_BAD_INPUT);
    assert_int_equal(fr_trace_open("azure-code", &(fr_trace_options){.rate = 1e-9}, &t, &err), FR_BAD_INPUT);
    char zero[] = "arrival_ms,prompt_tokens\n1\0,2\n";
    assert_int_equal(fr_trace_parse("t", zero, sizeof zero - 1, NULL, 0, &(fr_trace_options){0}, &t, &err),
                     FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "t:2: a zero byte"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mooncake_slice),   cmocka_unit_test(mooncake_whole),
        cmocka_unit_test(shipped_traces),   cmocka_unit_test(servegen_follows_its_windows),
        cmocka_unit_test(steps_are_spread), cmocka_unit_test(rates_and_cuts),
        cmocka_unit_test(small_files),      cmocka_unit_test(wrong_input_gives_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

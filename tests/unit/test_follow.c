/* Ranks in processes of their own give what threads give, follow a trace, and end with the one that fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <unistd.h>

#include "tests/unit/pretended.h"

#include "engine/conduct/follow.h"
#include "engine/conduct/procs.h"

enum { RANKS = 4 };

typedef struct {
    const fr_setup *setup;
    fr_conduct_options options;
} run;

static void follow(void *context, int rank, fr_wire *wire) {
    const run *r = context;
    bool lost;
    fr_error err;
    const fr_status s = fr_follow(r->setup, &r->options, rank, wire, &lost, &err);
    _exit(s == FR_OK ? 0 : 1);
}

static fr_setup setup(const char *strategy, const char *const batches[]) {
    const char *flags[] = {"model", "qwen3-30b-a3b", "layers", "4",        "machine", "h200x8", "skew",
                           "even",  "gpus",          "4",      "strategy", strategy,  NULL};
    fr_experiment e;
    fr_setup s;
    fr_error err = {0};
    fr_experiment_defaults(&e);
    for (int i = 0; flags[i]; i += 2)
        if (fr_experiment_set(&e, flags[i], flags[i + 1], &err) != FR_OK) fail_msg("%s", err.text);
    for (int i = 0; batches[i]; i += 2)
        if (fr_experiment_set(&e, batches[i], batches[i + 1], &err) != FR_OK) fail_msg("%s", err.text);
    if (fr_setup_open(&e, &s, &err) != FR_OK) fail_msg("%s", err.text);
    return s;
}

static const char *const equal[] = {"tokens", "1K", "seq", "100", "forwards", "5", NULL};

static fr_status play(const fr_setup *s, bool processes, const char *inject, const fr_conduct_options *base,
                      fr_conducted *out, fr_error *err) {
    run r = {.setup = s, .options = *base};
    fr_procs *procs = NULL;
    r.options.kind = &kind;
    r.options.timeout_s = 10;
    if (inject) FR_TRY(fr_inject_parse(inject, RANKS, &r.options.inject, err));
    if (processes) FR_TRY(fr_procs_open(RANKS, follow, &r, &procs, err));
    FR_TRY(fr_world_open_threads(RANKS, r.options.timeout_s, &r.options.world, err));
    if (processes) r.options.wires = fr_procs_wires(procs);
    const fr_status status = fr_conduct(s, &r.options, out, err);
    fr_world_close(r.options.world);
    fr_procs_close(procs, 10);
    return status;
}

static void alike(const char *strategy) {
    const fr_conduct_options o = {.logits = true}, *base = &o;
    stage st = {.ms = 0.3, .hang_rank = -1};
    the = &st;
    fr_setup s = setup(strategy, equal);
    fr_conducted here = {0}, there = {0};
    fr_error err = {0};
    if (play(&s, false, NULL, base, &here, &err) != FR_OK) fail_msg("%s, threads: %s", strategy, err.text);
    if (play(&s, true, NULL, base, &there, &err) != FR_OK) fail_msg("%s, processes: %s", strategy, err.text);
    assert_true(here.forwards_count > 0 && here.forwards_count == there.forwards_count);
    assert_true(here.logit_rows_count > 0 && here.logit_rows_count == there.logit_rows_count);
    assert_true(fr_conducted_hash(&here) == fr_conducted_hash(&there));
    assert_int_equal(st.wrong, 0);
    fr_conducted_free(&here);
    fr_conducted_free(&there);
    fr_setup_close(&s);
}

static void test_alike(void **state) {
    (void)state;
    static const char *const strategies[] = {"dp", "tp", "ep", "pp", "asyncep", "asap"};
    for (size_t i = 0; i < sizeof strategies / sizeof *strategies; i++) alike(strategies[i]);
}

/* Queues form batches as they find them, so two runs differ; but every request is answered once, by all ranks. */
static void test_trace(void **state) {
    (void)state;
    enum { REQUESTS = 40 };
    static uint64_t blocks[REQUESTS][2];
    fr_request q[REQUESTS];
    bool seen[REQUESTS] = {false};
    for (int i = 0; i < REQUESTS; i++) q[i] = shared_prefix(i, 500000, blocks[i]);
    stage st = {.ms = 1, .hang_rank = -1};
    the = &st;
    fr_setup s =
        setup("dp", (const char *const[]){"trace", "poisson:rate=1", "budget", "300", "cache-tokens", "1000", NULL});
    fr_conducted c = {0};
    fr_error err = {0};
    if (play(&s, true, NULL, &(fr_conduct_options){.requests = q, .requests_count = REQUESTS}, &c, &err) != FR_OK)
        fail_msg("%s", err.text);
    assert_int_equal(c.requests_count, REQUESTS);
    for (uint32_t i = 0; i < c.requests_count; i++) {
        assert_false(seen[c.requests[i].id]);
        seen[c.requests[i].id] = true;
        assert_true(c.requests[i].answer > c.requests[i].arrival);
    }
    fr_conducted_free(&c);
    fr_setup_close(&s);
}

static void test_one_fails(void **state) {
    (void)state;
    stage st = {.ms = 0.3, .hang_rank = -1};
    the = &st;
    fr_setup s = setup("dp", equal);
    fr_conducted c = {0};
    fr_error err = {0};
    assert_int_equal(play(&s, true, "fail:2:3", &(fr_conduct_options){.logits = true}, &c, &err), FR_FAILED);
    if (!strstr(err.text, "rank 2: forward 3 fails")) fail_msg("%s", err.text);
    fr_conducted_free(&c);
    fr_setup_close(&s);
}

static void note_stage(void *context, int rank, const char *what) {
    if (rank < 0) fr_text_add(context, "%s; ", what);
}

/* Who listens hears the conductor's stages, in their order, also of a run that fails. */
static void test_stages(void **state) {
    (void)state;
    stage st = {.ms = 0.3, .hang_rank = -1};
    the = &st;
    fr_setup s = setup("dp", equal);
    fr_conducted c = {0};
    fr_error err = {0};
    fr_text heard = {0};
    fr_conduct_options o = {.ear = {note_stage, &heard}};
    if (play(&s, true, NULL, &o, &c, &err) != FR_OK) fail_msg("%s", err.text);
    assert_string_equal(heard.text, "all ranks are open; warmed up; the clock starts; the clock has ended; "
                                    "the result is put together; the ranks have closed; ");
    fr_conducted_free(&c);
    fr_text_free(&heard);
    assert_int_equal(play(&s, true, "oom:2", &o, &c, &err), FR_FAILED);
    assert_string_equal(heard.text, "the result is put together; the ranks have closed; ");
    fr_conducted_free(&c);
    fr_text_free(&heard);
    fr_setup_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_alike), cmocka_unit_test(test_trace),
                                       cmocka_unit_test(test_one_fails), cmocka_unit_test(test_stages)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

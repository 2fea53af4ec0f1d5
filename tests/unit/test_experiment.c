/* Options, files, canonical form, degrees, refusals; parts of a forward; the critical path. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/experiment.h"
#include "engine/plan/critical.h"
#include "engine/report.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static fr_status set(fr_experiment *e, const char *name, const char *value) {
    fr_error err;
    return fr_experiment_set(e, name, value, &err);
}

static void every_option_has_name_group_and_help(void **state) {
    (void)state;
    int n = 0;
    for (const fr_option *o = fr_experiment_options(); o->name; o++, n++) {
        assert_true(o->help && o->help[0] && o->group && o->group[0]);
        for (const fr_option *p = o + 1; p->name; p++) assert_string_not_equal(o->name, p->name);
    }
    assert_true(n > 40 && n <= 64);
}

static void sets_by_name_and_refuses_bad_values(void **state) {
    (void)state;
    fr_experiment e;
    fr_experiment_defaults(&e);
    assert_int_equal(set(&e, "tokens", "16K"), FR_OK);
    assert_int_equal(e.tokens, 16384);
    assert_true(fr_experiment_given(&e, "tokens"));
    assert_false(fr_experiment_given(&e, "seq"));
    assert_int_equal(set(&e, "precision", "fp8"), FR_OK);
    assert_int_equal(e.layout.precision, FR_FP8);
    assert_int_equal(set(&e, "no-sharing", NULL), FR_OK);
    assert_false(e.sharing);
    assert_int_equal(set(&e, "no-sharing", "false"), FR_OK);
    assert_true(e.sharing);
    assert_int_equal(set(&e, "routing", "counts.txt"), FR_OK);
    assert_string_equal(e.routing, "file:counts.txt");
    const char *const bad[][2] = {{"tokens", "-1"},  {"tokens", "nan"},     {"tokens", ""},
                                  {"tokens", NULL},  {"rate", "inf"},       {"rate", "-2"},
                                  {"gather", "nvl"}, {"no-fold", "yes"},    {"nothing", "1"},
                                  {"seed", "-1"},    {"model", ""},         {"tp", "99999999999999999999"},
                                  {"tokens", "1e5"}, {"cache-tokens", "-2"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fr_experiment before = e;
        assert_int_equal(set(&e, bad[i][0], bad[i][1]), FR_BAD_INPUT);
        assert_memory_equal(&before, &e, sizeof e);
    }
    char longer[600];
    memset(longer, 'x', sizeof longer);
    longer[599] = 0;
    assert_int_equal(set(&e, "trace", longer), FR_BAD_INPUT);
}

static void canonical_form_survives_a_round_trip(void **state) {
    (void)state;
    fr_experiment e, back;
    fr_error err;
    fr_experiment_defaults(&e);
    set(&e, "strategy", "asyncep");
    set(&e, "rate", "12.5");
    set(&e, "trace", "a \"quoted\" name");
    set(&e, "cache-tokens", "0");
    char *text = fr_experiment_json(&e);
    assert_int_equal(fr_experiment_from_json(text, "test", &back, &err), FR_OK);
    char *again = fr_experiment_json(&back);
    assert_string_equal(text, again);
    assert_int_equal(back.given, 0);
    free(text);
    free(again);
    assert_int_equal(fr_experiment_from_json("{\"tokens\":1,\"tokens\":2}", "test", &back, &err), FR_BAD_INPUT);
    assert_int_equal(fr_experiment_from_json("{\"tokens\":[1]}", "test", &back, &err), FR_BAD_INPUT);
    assert_int_equal(fr_experiment_from_json("{\"tokns\":1}", "test", &back, &err), FR_BAD_INPUT);
}

static void flags_name_what_differs_from_the_defaults(void **state) {
    (void)state;
    fr_experiment e;
    fr_experiment_defaults(&e);
    set(&e, "tp", "4");
    set(&e, "no-fold", NULL);
    set(&e, "costs", "my tables");
    fr_text t = {0};
    fr_experiment_flags(&e, &t);
    assert_string_equal(t.text, "--model qwen3-235b-a22b --machine h200x8 --tp 4 --no-fold --costs 'my tables'");
    fr_text_free(&t);
}

/* Opens {model qwen3-30b-a3b, h200x8} with pairs of name and value, NULL at the end. */
static fr_status open_with(const char *const *pairs, fr_setup *s, fr_error *err) {
    fr_experiment e;
    fr_experiment_defaults(&e);
    FR_TRY(fr_experiment_set(&e, "model", "qwen3-30b-a3b", err));
    for (; *pairs; pairs += 2) FR_TRY(fr_experiment_set(&e, pairs[0], pairs[1], err));
    return fr_setup_open(&e, s, err);
}
#define OPEN(s, err, ...) open_with((const char *const[]){__VA_ARGS__, NULL}, s, err)

static void degrees_are_filled_in(void **state) {
    (void)state;
    fr_setup s;
    fr_error err;
    assert_int_equal(OPEN(&s, &err, "strategy", "asyncep"), FR_OK);
    assert_int_equal(s.experiment.layout.ep, 8);
    assert_int_equal(s.experiment.layout.dp, 8);
    assert_int_equal(s.experiment.gpus, 8);
    assert_string_equal(s.experiment.layout.strategy, "asyncep");
    assert_true(s.fits);
    /* 16K tokens per GPU, sequences of 4K: four on each of the eight attention groups */
    assert_int_equal(s.load.tokens, 16384);
    assert_int_equal(s.load.sequences, 4);
    fr_setup_close(&s);
    assert_int_equal(OPEN(&s, &err, "attention", "tp", "experts", "ep", "tp", "4"), FR_OK);
    assert_int_equal(s.experiment.layout.dp, 2);
    assert_int_equal(s.experiment.layout.ep, 8);
    assert_int_equal(s.load.tokens, 4 * 16384); /* a group of four ranks carries their tokens together */
    assert_true(s.load.imbalance > 1);
    /* The stored form opens to the same layout. */
    char *text = fr_experiment_json(&s.experiment);
    fr_setup_close(&s);
    fr_experiment e;
    assert_int_equal(fr_experiment_from_json(text, "test", &e, &err), FR_OK);
    assert_int_equal(fr_setup_open(&e, &s, &err), FR_OK);
    char *again = fr_experiment_json(&s.experiment);
    assert_string_equal(text, again);
    free(text);
    free(again);
    fr_setup_close(&s);
    assert_int_equal(OPEN(&s, &err, "strategy", "ep", "gpus", "4"), FR_OK);
    assert_int_equal(s.experiment.layout.ep, 4);
    fr_setup_close(&s);
}

static void a_flag_acts_or_is_refused_by_name(void **state) {
    (void)state;
    const char *const wrong[][4] = {
        {"strategy", "tp", "slots", "2"},          {"strategy", "tp", "rate", "3"},
        {"strategy", "tp", "ep-exchange", "a2a"},  {"strategy", "dp", "gather", "ce"},
        {"strategy", "ep", "wait", "moe"},         {"strategy", "tp", "micro-batches", "1"},
        {"strategy", "asyncep", "window", "2"},    {"strategy", "tp", "offline", "true"},
        {"strategy", "ep", "overlap-stages", "2"}, {"strategy", "tp", "experts", "ep"},
        {"strategy", "tp", "chunking", "fixed"},   {"strategy", "dwdp", "gather", "nccl"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fr_setup s;
        fr_error err = {0};
        fr_status status = OPEN(&s, &err, wrong[i][0], wrong[i][1], wrong[i][2], wrong[i][3]);
        if (status == FR_OK) fr_setup_close(&s);
        assert_int_equal(status, FR_BAD_INPUT);
        char flag[40] = "--";
        strcat(flag, wrong[i][2]);
        if (!strstr(err.text, flag)) fail_msg("'%s' does not name %s", err.text, flag);
    }
}

static void refuses_what_can_never_run(void **state) {
    (void)state;
    fr_setup s;
    fr_error err;
    assert_int_equal(OPEN(&s, &err, "machine", "h200x8"), FR_BAD_INPUT); /* no layout */
    assert_non_null(strstr(err.text, "--strategy"));
    assert_int_equal(OPEN(&s, &err, "strategy", "magic"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "gpus", "9"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "tp", "3"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "model", "no-such-model"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "machine", "a100x8", "precision", "fp8"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "tokens", "1G", "seq", "1"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "what-if", "warp=2x"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "tp", "skew", "even", "routing", "x"), FR_BAD_INPUT);
    assert_int_equal(OPEN(&s, &err, "strategy", "pp", "no-kv-cache", "true", "prefix", "64"), FR_BAD_INPUT);
}

static void a_layout_that_does_not_fit_is_no_error(void **state) {
    (void)state;
    fr_setup s;
    fr_error err;
    assert_int_equal(OPEN(&s, &err, "strategy", "dp", "model", "qwen3-235b-a22b"), FR_OK);
    assert_false(s.fits);
    assert_true(s.reason[0] != 0);
    json_t *o = fr_report_json(&s, NULL);
    assert_true(json_is_false(json_object_get(o, "fits")));
    assert_true(json_is_null(json_object_get(o, "forward_s")));
    assert_true(json_integer_value(json_object_get(o, "memory_per_gpu_bytes")) > s.machine.hbm_bytes);
    json_decref(o);
    fr_setup_close(&s);
}

static void parts_add_up_to_the_ns(void **state) {
    (void)state;
    for (int64_t n = 1; n < 40; n++) {
        fr_parts all = {.compute = 1000003 * n + 7, .exposed_comm = 5, .wait = 77777, .bubble = n, .idle = 13};
        all.elapsed = all.compute + all.exposed_comm + all.wait + all.bubble + all.idle;
        fr_parts one;
        fr_parts_per_forward(&all, n, &one);
        assert_int_equal(one.elapsed, one.compute + one.exposed_comm + one.wait + one.bubble + one.idle);
        assert_true(llabs(one.elapsed * n - all.elapsed) <= n);
        assert_true(llabs(one.wait * n - all.wait) <= n && llabs(one.compute * n - all.compute) <= n);
    }
}

/* ---- critical path ------------------------------------------------------------------------------------------------
 */

static uint64_t id(int rank, int layer, fr_op_kind kind, int sub) {
    return (uint64_t)rank << 34 | (uint64_t)layer << 24 | (uint64_t)kind << 18 | (uint64_t)sub;
}

static fr_span span(int rank, int layer, fr_op_kind kind, int64_t ready, int64_t start, int64_t end, uint64_t cause) {
    return (fr_span){.id = id(rank, layer, kind, 0),
                     .ready = ready,
                     .start = start,
                     .end = end,
                     .cause = cause,
                     .rank = (int16_t)rank,
                     .kind = (uint8_t)kind};
}

static void the_path_goes_through_the_late_member(void **state) {
    (void)state;
    /* Rank 0 is done early and waits in the all-reduce for rank 1, whose GEMM was late; then rank 0 ends last. */
    uint64_t gemm0 = id(0, 0, FR_OP_GEMM_QKV, 0), gemm1 = id(1, 0, FR_OP_GEMM_QKV, 0);
    uint64_t meet0 = id(0, 0, FR_OP_ALLREDUCE, 0), meet1 = id(1, 0, FR_OP_ALLREDUCE, 0);
    fr_span spans[] = {
        span(0, 0, FR_OP_GEMM_QKV, 0, 0, 40, 0),           span(1, 0, FR_OP_GEMM_QKV, 10, 10, 100, 0),
        span(0, 0, FR_OP_ALLREDUCE, 40, 100, 150, gemm0),  span(1, 0, FR_OP_ALLREDUCE, 100, 100, 150, gemm1),
        span(0, 1, FR_OP_ATTENTION, 150, 160, 230, meet0), span(1, 1, FR_OP_ATTENTION, 150, 150, 200, meet1),
    };
    fr_timeline t = {.spans = spans, .count = 6};
    fr_critical c;
    fr_critical_path(&t, 0, 2, &c);
    assert_int_equal(c.end - c.begin, 230);
    assert_int_equal(c.total[FR_ON_ATTENTION], 70);
    assert_int_equal(c.total[FR_ON_COLLECTIVE], 50);
    assert_int_equal(c.total[FR_ON_GEMM], 90);         /* rank 1's, not rank 0's 40 */
    assert_int_equal(c.total[FR_ON_NOTHING], 10 + 10); /* a late start, and before rank 1 began */
    assert_int_equal(c.ns[0][FR_ON_GEMM], 90);
    assert_int_equal(c.ns[1][FR_ON_ATTENTION], 70);
    assert_int_equal(c.steps, 3);
    int64_t sum = 0;
    for (int k = 0; k < FR_RESOURCES; k++) sum += c.total[k];
    assert_int_equal(sum, 230);
    fr_critical_free(&c);
    /* A loop of causes ends. */
    spans[0].cause = id(0, 1, FR_OP_ATTENTION, 0);
    spans[1].cause = meet0;
    fr_critical_path(&t, 0, 2, &c);
    fr_critical_free(&c);
    fr_timeline none = {0};
    fr_critical_path(&none, 0, 2, &c);
    assert_int_equal(c.end, 0);
    fr_critical_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_has_name_group_and_help),
        cmocka_unit_test(sets_by_name_and_refuses_bad_values),
        cmocka_unit_test(canonical_form_survives_a_round_trip),
        cmocka_unit_test(flags_name_what_differs_from_the_defaults),
        cmocka_unit_test(degrees_are_filled_in),
        cmocka_unit_test(a_flag_acts_or_is_refused_by_name),
        cmocka_unit_test(refuses_what_can_never_run),
        cmocka_unit_test(a_layout_that_does_not_fit_is_no_error),
        cmocka_unit_test(parts_add_up_to_the_ns),
        cmocka_unit_test(the_path_goes_through_the_late_member),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

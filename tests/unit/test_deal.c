/* Batches of batch mode: dealt whole, listed by length, in turns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "engine/deal.h"

static void lengths(const fr_batch *b, const char *expected) {
    char text[256] = "";
    for (int32_t i = 0; i < b->count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i ? "," : "", b->sequences[i].queries);
    assert_string_equal(text, expected);
}

static fr_deal dealt(const char *seqs, int64_t groups) {
    fr_experiment e;
    fr_deal d;
    fr_experiment_defaults(&e);
    e.layout.tp = e.layout.pp = e.layout.replicas = 1;
    e.layout.dp = (int)groups;
    e.tokens = 100;
    e.seq = 30;
    snprintf(e.seqs, sizeof e.seqs, "%s", seqs);
    fr_deal_open(&e, groups, 1, &d);
    return d;
}

static void test_equal_sequences(void **unused) {
    (void)unused;
    fr_deal d = dealt("", 4); /* 400 tokens: 13 sequences */
    lengths(fr_deal_batches(&d, 0, 1, 0), "30,30,30,30");
    lengths(fr_deal_batches(&d, 3, 1, 7), "30,30,30");
    lengths(&fr_deal_batches(&d, 1, 2, 0)[1], "30,30,30");
    assert_int_equal(d.idle, 0);
    fr_deal_close(&d);
}

static void test_listed_lengths(void **unused) {
    (void)unused;
    fr_deal d = dealt("1,37,2Kx3", 2);
    lengths(fr_deal_batches(&d, 0, 1, 0), "1,2048,2048");
    lengths(fr_deal_batches(&d, 1, 1, 5), "37,2048");
    fr_deal_close(&d);
    d = dealt("5x2,7/;/9", 3);
    assert_int_equal(d.variants, 2);
    assert_int_equal(d.idle, 1);
    lengths(fr_deal_batches(&d, 0, 1, 0), "5,5,7");
    lengths(fr_deal_batches(&d, 1, 1, 0), "");
    lengths(fr_deal_batches(&d, 0, 1, 1), "");
    lengths(fr_deal_batches(&d, 1, 1, 3), "9");
    lengths(fr_deal_batches(&d, 2, 1, 3), "");
    const fr_sequence *s = fr_deal_batches(&d, 1, 1, 3)->sequences;
    assert_int_equal(s->kv, 3); /* no handle of another group's */
    fr_deal_close(&d);
}

static void test_checks(void **unused) {
    (void)unused;
    static const char *const bad[] = {"",  "x", "0",     "1,,2", "1x0", "-3",     "5/5/5",
                                      "a", "/", "1;/;b", "3x",   "4 5", "99999K", "1x2x3"};
    fr_seqs s;
    fr_error err;
    assert_int_equal(fr_seqs_check("1,37,2Kx3;5/6", 2, &s, &err), FR_OK);
    assert_int_equal(s.most_tokens, 1 + 2048 * 2);
    assert_int_equal(s.most_sequences, 3);
    assert_int_equal(s.longest, 2048);
    assert_int_equal(s.tokens, 38 + 3 * 2048);
    assert_int_equal(s.variants, 2);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (fr_seqs_check(bad[i], 2, &s, &err) != FR_BAD_INPUT) fail_msg("'%s' is taken", bad[i]);
        assert_non_null(strstr(err.text, "--seqs"));
    }
}

/* The setup sizes buffers for the largest of the forwards. */
static void test_setup(void **unused) {
    (void)unused;
    const char *flags[] = {"machine", "h200x2",          "strategy", "dp", "model", "qwen3-30b-a3b",
                           "seqs",    "1/512x2;100/200", "layers",   "2",  NULL};
    fr_experiment e;
    fr_setup s;
    fr_error err;
    fr_experiment_defaults(&e);
    for (int i = 0; flags[i]; i += 2) assert_int_equal(fr_experiment_set(&e, flags[i], flags[i + 1], &err), FR_OK);
    if (fr_setup_open(&e, &s, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(s.load.tokens, 1024);
    assert_int_equal(s.load.sequences, 2);
    assert_int_equal(s.experiment.seq, 512);
    fr_setup_close(&s);
    assert_int_equal(fr_experiment_set(&e, "tokens", "1K", &err), FR_OK);
    assert_int_equal(fr_setup_open(&e, &s, &err), FR_BAD_INPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_sequences),
        cmocka_unit_test(test_listed_lengths),
        cmocka_unit_test(test_checks),
        cmocka_unit_test(test_setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* driver, trace mode: what routing, halves of a batch and the choice of the reported rank do to whole runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "sim/driver.h"

static fr_result play(const char *const *options) {
    fr_experiment e;
    fr_experiment_defaults(&e);
    fr_error err = {0};
    for (; *options; options += 2)
        if (fr_experiment_set(&e, options[0], options[1], &err) != FR_OK) fail_msg("%s", err.text);
    fr_setup s;
    if (fr_setup_open(&e, &s, &err) != FR_OK) fail_msg("%s", err.text);
    fr_drive_options quiet = {0};
    fr_result r = {0};
    if (fr_drive(&s, &quiet, &r, &err) != FR_OK) fail_msg("%s", err.text);
    fr_setup_close(&s);
    return r;
}

/* One prefix that all share must not pull all of them to one GPU: requests are held back where work is outstanding. */
static void prefix_route_spreads(void **state) {
    (void)state;
    const char *options[] = {"model",     "qwen3-30b-a3b",
                             "machine",   "h100x4",
                             "strategy",  "dp",
                             "precision", "bf16",
                             "trace",     "batch:count=256,len=1K,prefix=512,groups=1",
                             "offline",   NULL,
                             "budget",    "4096",
                             "route",     "round-robin",
                             NULL};
    fr_result even = play(options);
    options[15] = "prefix";
    fr_result prefix = play(options);
    assert_true(prefix.elapsed_ns < even.elapsed_ns * 11 / 10); /* a pile-up would take four times as long */
    assert_true(prefix.cached_tokens >= 512 * (256 - 4));
}

/* The rank that ends last is the one that got the long request, whichever its number. */
static void parts_are_of_the_last_rank(void **state) {
    (void)state;
    char path[] = "/tmp/forerun-trace-XXXXXX.csv";
    int fd = mkstemps(path, 4);
    assert_true(fd >= 0);
    dprintf(fd, "arrival_ms,prompt_tokens\n0,256\n0,8192\n");
    close(fd);
    const char *options[] = {"model", "qwen3-30b-a3b", "machine",      "h100x2", "strategy",
                             "dp",    "precision",     "bf16",         "trace",  path,
                             "route", "round-robin",   "cache-tokens", "0",      NULL};
    fr_result r = play(options);
    unlink(path);
    assert_true(r.parts.compute > r.parts.elapsed * 9 / 10);
    assert_int_equal(r.parts.elapsed, r.elapsed_ns);
}

/* Chunks are the scheduler's where there are no stages: they must not keep a batch from being halved. */
static void chunks_leave_two_batch_overlap(void **state) {
    (void)state;
    const char *options[] = {"model",
                             "qwen3-30b-a3b",
                             "machine",
                             "h100x4",
                             "strategy",
                             "ep",
                             "precision",
                             "bf16",
                             "trace",
                             "batch:count=128,len=1K",
                             "offline",
                             NULL,
                             "budget",
                             "16384",
                             "chunk-tokens",
                             "16384",
                             "cache-tokens",
                             "0",
                             "overlap",
                             "none",
                             NULL};
    fr_result none = play(options);
    options[19] = "tbo";
    fr_result tbo = play(options);
    assert_true(tbo.parts.hidden_comm > 0);
    assert_true(tbo.elapsed_ns < none.elapsed_ns);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefix_route_spreads),
        cmocka_unit_test(parts_are_of_the_last_rank),
        cmocka_unit_test(chunks_leave_two_batch_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

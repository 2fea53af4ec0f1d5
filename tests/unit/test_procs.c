/* A process per rank: each hears the caller and is heard, ends with its wire, and is not waited for for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/conduct/procs.h"
#include "engine/conduct/worker.h"

enum { RANKS = 5, ASK = 1, TELL = 2 };

typedef struct {
    int32_t rank, number;
    int64_t pid;
} answer;

/* Answers what it is asked, with its rank, until the wire is closed. */
static void echo(void *context, int rank, fr_wire *wire) {
    uint32_t kind;
    fr_bytes in, out = {0};
    while (fr_wire_receive(wire, 1000000000, &kind, &in, NULL) == FR_OK) {
        answer a = {.rank = rank, .pid = getpid()};
        if (kind != ASK || !fr_bytes_take(&in, &a.number, sizeof a.number)) continue;
        a.number += *(const int *)context;
        out.count = 0;
        fr_bytes_put(&out, &a, sizeof a);
        (void)fr_wire_send(wire, TELL, &out, NULL);
        fr_bytes_free(&in);
    }
    _exit(0);
}

static void test_each_answers(void **unused) {
    (void)unused;
    int more = 1000;
    fr_procs *p;
    fr_error err;
    int64_t pids[RANKS] = {0};
    assert_int_equal(fr_procs_open(RANKS, echo, &more, &p, &err), FR_OK);
    fr_wire **w = fr_procs_wires(p);
    assert_null(w[0]);
    for (int32_t r = 1; r < RANKS; r++) {
        fr_bytes b = {0};
        const int32_t number = 7 * r;
        fr_bytes_put(&b, &number, sizeof number);
        assert_int_equal(fr_wire_send(w[r], ASK, &b, &err), FR_OK);
        fr_bytes_free(&b);
    }
    for (int r = RANKS - 1; r > 0; r--) {
        uint32_t kind;
        fr_bytes b;
        answer a = {0};
        assert_int_equal(fr_wire_receive(w[r], 5000000000, &kind, &b, &err), FR_OK);
        assert_int_equal(kind, TELL);
        assert_true(fr_bytes_take(&b, &a, sizeof a));
        assert_int_equal(a.rank, r);
        assert_int_equal(a.number, 7 * r + 1000);
        assert_true(a.pid != getpid());
        pids[r] = a.pid;
        for (int q = r + 1; q < RANKS; q++) assert_true(pids[q] != a.pid);
        fr_bytes_free(&b);
    }
    const int64_t before = fr_monotonic();
    fr_procs_close(p, 5);
    assert_true(fr_monotonic() - before < 3000000000); /* a closed wire ends them */
    for (int r = 1; r < RANKS; r++) assert_int_not_equal(kill((pid_t)pids[r], 0), 0);
}

static void sleeps(void *context, int rank, fr_wire *wire) {
    const answer a = {.rank = rank, .pid = getpid()};
    fr_bytes out = {0};
    (void)context;
    fr_bytes_put(&out, &a, sizeof a);
    (void)fr_wire_send(wire, TELL, &out, NULL);
    sleep(rank == 1 ? 60 : 0);
    _exit(0);
}

static void test_one_that_does_not_end(void **unused) {
    (void)unused;
    fr_procs *p;
    fr_error err;
    uint32_t kind;
    fr_bytes b;
    answer a = {0};
    assert_int_equal(fr_procs_open(3, sleeps, NULL, &p, &err), FR_OK);
    assert_int_equal(fr_wire_receive(fr_procs_wires(p)[1], 5000000000, &kind, &b, &err), FR_OK);
    assert_true(fr_bytes_take(&b, &a, sizeof a));
    fr_bytes_free(&b);
    const int64_t before = fr_monotonic();
    fr_procs_await(p, 0.2);
    fr_procs_close(p, 0.2);
    const int64_t took = fr_monotonic() - before;
    assert_true(took >= 400000000 && took < 2000000000);
    kill((pid_t)a.pid, SIGKILL);
    assert_int_equal(waitpid((pid_t)a.pid, NULL, 0), a.pid); /* it was left, not lost */
    fr_procs_await(NULL, 1);
    fr_procs_close(NULL, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_answers),
                                       cmocka_unit_test(test_one_that_does_not_end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

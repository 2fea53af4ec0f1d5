/* Who reaches into whose GPU memory, and where ranks may live for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "engine/world/peers.h"

/* `per_host` ranks a host, a process and a GPU each. */
static void spread(fr_address *at, int ranks, int per_host, bool with_boot) {
    for (int r = 0; r < ranks; r++) {
        at[r] = (fr_address){.boot = with_boot ? 100u + (uint64_t)(r / per_host) : 0, .pid = 1000 + r};
        snprintf(at[r].host, sizeof at[r].host, "node%d", r / per_host);
        snprintf(at[r].bus, sizeof at[r].bus, "0000:%02x:00.0", r % per_host);
    }
}

static fr_layout of(const char *strategy, int gpus) {
    fr_layout l = {0};
    fr_error err;
    if (fr_layout_from_strategy(strategy, gpus, &l, &err) != FR_OK) fail_msg("%s: %s", strategy, err.text);
    return l;
}

static void test_what_reaches(void **unused) {
    (void)unused;
    static const char *const none[] = {"dp", "tp", "pp"};
    for (int i = 0; i < 3; i++) {
        const fr_layout l = of(none[i], 4);
        assert_null(fr_layout_reaches(&l));
        assert_false(fr_layout_reaches_rank(&l, 0, 1));
    }
    fr_layout l = of("ep", 4);
    assert_string_equal(fr_layout_reaches(&l), "tokens");
    l.exchange = FR_EXCHANGE_AGRS;
    assert_null(fr_layout_reaches(&l));
    l = of("asyncep", 4);
    assert_string_equal(fr_layout_reaches(&l), "weights");
    l.gather = FR_GATHER_NCCL;
    assert_null(fr_layout_reaches(&l));
    l.gather = FR_GATHER_NCCL_CE;
    assert_null(fr_layout_reaches(&l));
    l = of("dwdp", 4);
    assert_string_equal(fr_layout_reaches(&l), "weights");
    l = of("asap", 2); /* one rank of attention, one of experts */
    assert_string_equal(fr_layout_reaches(&l), "tokens");
    assert_true(fr_layout_reaches_rank(&l, 0, 1));
    l = of("offload", 1);
    assert_null(fr_layout_reaches(&l));
    l.dp = l.ep = 2; /* hybrid: shards in host memory, gathered between the GPUs */
    assert_string_equal(fr_layout_reaches(&l), "weights");
}

/* Two stages of four ranks in groups of two: every rank reaches its neighbour and nobody else. */
static void test_groups(void **unused) {
    (void)unused;
    fr_layout l = of("asyncep", 4);
    l.pp = 2;
    l.ep = 2;
    for (int a = 0; a < 8; a++)
        for (int b = 0; b < 8; b++) assert_int_equal(fr_layout_reaches_rank(&l, a, b), a != b && a / 2 == b / 2);
    l.ep = 4;
    for (int a = 0; a < 8; a++)
        for (int b = 0; b < 8; b++) assert_int_equal(fr_layout_reaches_rank(&l, a, b), a != b && a / 4 == b / 4);
}

static void test_hosts(void **unused) {
    (void)unused;
    fr_address at[8];
    fr_error err;
    fr_layout l = of("asyncep", 8);
    spread(at, 8, 8, true);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_OK);
    spread(at, 8, 4, true);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "rank 0 (host node0)"));
    assert_non_null(strstr(err.text, "rank 4 (host node1)"));
    assert_non_null(strstr(err.text, "--gather nccl"));
    assert_null(strchr(err.text, '\n'));
    l.ep = 4; /* a group inside each host */
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_OK);
    l = of("ep", 8);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "--ep-exchange agrs"));
    l.exchange = FR_EXCHANGE_AGRS;
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_OK);
    l = of("dwdp", 8);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_BAD_INPUT);
    l = of("tp", 8);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_OK);
    spread(at, 8, 4, false); /* by name where the kernel tells no boot */
    l = of("asyncep", 8);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_BAD_INPUT);
    spread(at, 8, 8, false);
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_OK);
    for (int r = 0; r < 8; r++) { /* containers of one host have names of their own */
        at[r].boot = 7;
        snprintf(at[r].host, sizeof at[r].host, "pod%d", r);
    }
    assert_int_equal(fr_peers_check(&l, at, 8, &err), FR_OK);
}

static void test_a_gpu_each(void **unused) {
    (void)unused;
    fr_address at[4];
    fr_error err;
    const fr_layout l = of("dp", 4);
    spread(at, 4, 4, true);
    snprintf(at[3].bus, sizeof at[3].bus, "%s", at[1].bus);
    assert_int_equal(fr_peers_check(&l, at, 4, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "ranks 1 and 3"));
    at[3].boot = 9; /* the same slot of another host */
    assert_int_equal(fr_peers_check(&l, at, 4, &err), FR_OK);
}

static void test_here(void **unused) {
    (void)unused;
    fr_address a, b;
    fr_address_here(3, &a);
    fr_address_here(3, &b);
    assert_int_equal(a.device, 3);
    assert_true(a.host[0] != 0);
    assert_true(fr_address_same_process(&a, &b));
    b.pid++;
    assert_true(fr_address_same_host(&a, &b));
    assert_false(fr_address_same_process(&a, &b));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_reaches), cmocka_unit_test(test_groups),
                                       cmocka_unit_test(test_hosts), cmocka_unit_test(test_a_gpu_each),
                                       cmocka_unit_test(test_here)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

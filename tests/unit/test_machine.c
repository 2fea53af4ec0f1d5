/* Machines: the built-in ones, what a user's file may not say, what-ifs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "engine/machine.h"

static void test_builtin(void **state) {
    (void)state;
    static const char *const expected[] = {"a100x8", "b200x8", "gb200x4", "h100x1", "h100x2", "h100x4",
                                           "h100x8", "h200x1", "h200x2",  "h200x4", "h200x8"};
    int n = 0;
    for (; fr_machine_builtin(n); n++) {
        fr_machine m;
        fr_error err = {0};
        assert_true(n < 11);
        assert_string_equal(fr_machine_builtin(n), expected[n]);
        if (fr_machine_load(expected[n], &m, &err) != FR_OK) fail_msg("%s", err.text);
        assert_string_equal(m.name, expected[n]);
        char name[80];
        snprintf(name, sizeof name, "%sx%d", m.gpu, m.gpus);
        assert_string_equal(name, m.name);
        assert_true(m.watts > 0 && m.price_per_gpu_hour == 0); /* no invented price */
        assert_true(m.peak_flops[FR_FP8] == 0 || m.peak_flops[FR_FP8] == 2 * m.peak_flops[FR_BF16]);
    }
    assert_int_equal(n, 11);
    fr_machine h;
    assert_int_equal(fr_machine_load("h200x2", &h, NULL), FR_OK);
    assert_true(h.peak_flops[FR_BF16] == 989.5e12 && h.hbm_rate == 4.8e12 && h.link_rate == 450e9);
    assert_int_equal(h.gpus_per_domain, 2);
    assert_int_equal(fr_machine_load("a100x8", &h, NULL), FR_OK);
    assert_true(h.peak_flops[FR_FP8] == 0);
}

#define BASE                                                                                                           \
    "\"name\": \"x\", \"gpu\": \"x1\", \"peak_flops\": {\"bf16\": 1e14}, \"sms\": 100, \"hbm_bytes\": 80e9, "          \
    "\"hbm_rate\": 2e12, \"pcie_rate\": 25e9, \"host_rate\": 200e9, \"host_bytes\": 500e9"

static void refuse(const char *text, const char *part) {
    fr_machine m;
    fr_error err = {0};
    assert_int_equal(fr_machine_parse(text, strlen(text), "m.json", &m, &err), FR_BAD_INPUT);
    if (!strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
}

static void test_own_file(void **state) {
    (void)state;
    fr_machine m;
    fr_error err = {0};
    const char *text = "{" BASE ", \"gpus\": 16, \"gpus_per_host\": 8, \"network_rate\": 50e9}";
    if (fr_machine_parse(text, strlen(text), "m.json", &m, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(m.gpus_per_domain, 8);
    assert_int_equal(m.hbm_bytes, 80000000000);
    assert_true(m.link_rate == 0 && m.copy_engines == 1);
    refuse("{" BASE "}", "gpus: expected");
    refuse("{" BASE ", \"gpus\": 0}", "gpus: expected a whole number from 1");
    refuse("{" BASE ", \"gpus\": 2, \"gpu_per_host\": 1}", "gpu_per_host: unknown key");
    refuse("{" BASE ", \"gpus\": 6, \"gpus_per_host\": 4}", "divisor");
    refuse("{" BASE ", \"gpus\": 6, \"gpus_per_host\": 3}", "network_rate");
    refuse("{" BASE ", \"gpus\": 1, \"link_rate\": -1}", "link_rate: expected a number from 0");
    refuse("{" BASE ", \"gpus\": 1, \"price_per_gpu_hour\": 2}", "currency");
    refuse("{\"name\": \"x\", \"gpu\": \"../h200\"}", "gpu: expected lower-case");
    refuse("{\"name\": \"\", \"gpu\": \"h200\"}", "name: expected a name");
    assert_int_equal(fr_machine_load("h300x8", &m, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "h200x8"));
}

static void test_what_if(void **state) {
    (void)state;
    fr_what_if w;
    fr_error err = {0};
    assert_int_equal(fr_what_if_parse("nvlink=2x,hbm=1.5x,flops=0.5", &w, &err), FR_OK);
    assert_true(w.link == 2 && w.hbm == 1.5 && w.flops == 0.5 && w.pcie == 1 && w.network == 1 && w.launch == 1);
    static const char *const bad[] = {"",        "nvlink",   "nvlink=",  "nvlink=x",        "nvlink=0x",
                                      "warp=2x", "hbm=nanx", "hbm=1e9x", "hbm=2x,",         "hbm=2x,hbm=3x",
                                      "hbm=-1x", "=2x",      "hbm=2xx",  "nvlink=2x hbm=2x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (fr_what_if_parse(bad[i], &w, &err) != FR_BAD_INPUT) fail_msg("accepted '%s'", bad[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_builtin),
        cmocka_unit_test(test_own_file),
        cmocka_unit_test(test_what_if),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

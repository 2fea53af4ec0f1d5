/* The strict JSON reader: what it refuses, and that the message names file, path and expectation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "engine/json.h"

static fr_status open_text(const char *text, fr_json *root, fr_error *err) {
    return fr_json_open(text, strlen(text), "t.json", root, err);
}

static void refused(const char *text, const char *part) {
    fr_json root;
    fr_error err = {0};
    assert_int_equal(open_text(text, &root, &err), FR_BAD_INPUT);
    assert_null(root.value);
    assert_non_null(strstr(err.text, "t.json"));
    if (!strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
    assert_null(strchr(err.text, '\n'));
    fr_json_close(&root);
}

static void test_refuses(void **state) {
    (void)state;
    refused("", "empty");
    refused("{", "line 1");
    refused("{\"a\": 1, \"a\": 2}", "duplicate");
    refused("{\"a\": NaN}", "not valid JSON");
    refused("{\"a\": 1e999}", "not valid JSON");
    refused("{\"a\": 99999999999999999999}", "not valid JSON");
    refused("{} x", "not valid JSON");
    refused("[1]", "expected a JSON object");
    refused("{\"a\": \"\xff\"}", "not valid JSON");
    char deep[4096];
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    refused(deep, "nested deeper");
}

static void test_depth_counts_structure_only(void **state) {
    (void)state;
    char text[1024] = "{\"a\": \"";
    memset(text + 7, '[', 900); /* brackets within a string are no nesting */
    strcpy(text + 907, "\\\"[\"}");
    fr_json root;
    assert_int_equal(open_text(text, &root, NULL), FR_OK);
    fr_json_close(&root);
}

static void test_fetch(void **state) {
    (void)state;
    fr_json root, list, item, inner;
    fr_error err = {0};
    assert_int_equal(open_text("{\"n\": 7, \"big\": 141e9, \"half\": 0.5, \"t\": true, \"s\": \"abc\", \"none\": null,"
                               " \"list\": [{\"x\": 3}, 4]}",
                               &root, &err),
                     FR_OK);
    int64_t n = -1;
    double d = -1;
    bool b = false;
    char s[4];
    assert_int_equal(fr_json_int(&root, "n", FR_REQUIRED, 0, 7, &n, &err), FR_OK);
    assert_int_equal(n, 7);
    assert_int_equal(fr_json_int(&root, "big", FR_REQUIRED, 0, INT64_MAX, &n, &err), FR_OK);
    assert_int_equal(n, 141000000000);
    assert_int_equal(fr_json_int(&root, "n", FR_REQUIRED, 0, 6, &n, &err), FR_BAD_INPUT);
    assert_string_equal(err.text, "t.json: n: expected a whole number from 0 to 6, got 7");
    assert_int_equal(fr_json_int(&root, "half", FR_REQUIRED, 0, 6, &n, &err), FR_BAD_INPUT);
    assert_int_equal(fr_json_int(&root, "s", FR_REQUIRED, 0, 6, &n, &err), FR_BAD_INPUT);
    assert_string_equal(err.text, "t.json: s: expected a whole number from 0 to 6, got \"abc\"");
    n = 42;
    assert_int_equal(fr_json_int(&root, "none", FR_OPTIONAL, 0, 6, &n, &err), FR_OK);
    assert_int_equal(fr_json_int(&root, "absent", FR_OPTIONAL, 0, 6, &n, &err), FR_OK);
    assert_int_equal(n, 42);
    assert_int_equal(fr_json_int(&root, "absent", FR_REQUIRED, 0, 6, &n, &err), FR_BAD_INPUT);
    assert_int_equal(fr_json_double(&root, "n", FR_REQUIRED, 0, 10, &d, &err), FR_OK);
    assert_true(d == 7);
    assert_int_equal(fr_json_bool(&root, "t", FR_REQUIRED, &b, &err), FR_OK);
    assert_true(b);
    assert_int_equal(fr_json_bool(&root, "n", FR_REQUIRED, &b, &err), FR_BAD_INPUT);
    assert_int_equal(fr_json_text(&root, "s", FR_REQUIRED, s, sizeof s, &err), FR_OK);
    assert_string_equal(s, "abc");
    assert_int_equal(fr_json_text(&root, "s", FR_REQUIRED, s, 3, &err), FR_BAD_INPUT);
    assert_int_equal(fr_json_array(&root, "list", FR_REQUIRED, &list, &err), FR_OK);
    assert_int_equal(fr_json_count(&list), 2);
    fr_json_item(&list, 0, &item);
    assert_int_equal(fr_json_as_object(&item, &err), FR_OK);
    assert_int_equal(fr_json_int(&item, "x", FR_REQUIRED, 5, 9, &n, &err), FR_BAD_INPUT);
    assert_string_equal(err.text, "t.json: list[0].x: expected a whole number from 5 to 9, got 3");
    fr_json_item(&list, 1, &item);
    assert_int_equal(fr_json_as_object(&item, &err), FR_BAD_INPUT);
    fr_json_item(&list, 2, &item); /* past the end: nothing, not a crash */
    assert_int_equal(fr_json_as_int(&item, 0, 1, &n, &err), FR_BAD_INPUT);
    assert_int_equal(fr_json_object(&root, "absent", FR_OPTIONAL, &inner, &err), FR_OK);
    assert_null(inner.value);
    static const char *const few[] = {"n", "big", "half", NULL};
    assert_int_equal(fr_json_only(&root, few, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "unknown key"));
    fr_json_close(&root);
}

static void test_hostile_key_stays_bounded(void **state) {
    (void)state;
    char text[3000] = "{\"";
    memset(text + 2, 'k', 2500);
    strcpy(text + 2502, "\": {\"z\": 1}}");
    fr_json root;
    fr_error err = {0};
    static const char *const none[] = {NULL};
    assert_int_equal(open_text(text, &root, &err), FR_OK);
    assert_int_equal(fr_json_only(&root, none, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "unknown key"));
    fr_json_close(&root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_depth_counts_structure_only),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_hostile_key_stays_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

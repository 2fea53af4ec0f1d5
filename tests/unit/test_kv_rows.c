/* Rows of a KV cache: contexts share what they must and nothing else, against a model that keeps contents in the rows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "engine/kv_rows.h"

enum { ROWS = 97, HANDLES = 9, LONGEST = 40 };

static uint32_t state = 12345;
static int pick(int n) {
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

/* Each handle's tokens are numbers; they are written into the rows when appended and must be found there later. */
static void test_contents_survive(void **unused) {
    (void)unused;
    fr_kv_rows *k = fr_kv_rows_new(ROWS);
    int memory[ROWS], want[HANDLES][LONGEST * 3], length[HANDLES] = {0}, next = 1, full = 0;
    memset(memory, 0, sizeof memory);
    for (int step = 0; step < 20000; step++) {
        const int h = pick(HANDLES), parent = pick(HANDLES), what = pick(4);
        fr_error err = {0};
        if (what == 0) {
            const int prefix = length[parent] ? pick(length[parent] + 1) : 0;
            int copy[LONGEST * 3];
            memcpy(copy, want[parent], sizeof copy);
            assert_int_equal(fr_kv_rows_begin(k, h, parent, prefix, &err), FR_OK);
            memcpy(want[h], copy, sizeof copy);
            length[h] = prefix;
        } else if (what == 1) {
            const int keep = length[h] ? pick(length[h] + 1) : 0;
            fr_kv_rows_trim(k, h, keep);
            length[h] = keep;
        } else {
            const int n = 1 + pick(LONGEST / 2), had = fr_kv_rows_available(k);
            if (length[h] + n > LONGEST * 3 - 1) continue;
            const fr_status s = fr_kv_rows_append(k, h, n, &err);
            assert_int_equal(s, n > had ? FR_FAILED : FR_OK);
            full += s != FR_OK;
            if (s != FR_OK) continue;
            int32_t count;
            const int32_t *rows = fr_kv_rows_context(k, h, &count);
            for (int i = 0; i < n; i++) memory[rows[length[h]]] = want[h][length[h]] = next++, length[h]++;
        }
        bool used[ROWS] = {false};
        int distinct = 0;
        for (int c = 0; c < HANDLES; c++) {
            int32_t count;
            const int32_t *rows = fr_kv_rows_context(k, c, &count);
            assert_int_equal(count, length[c]);
            for (int i = 0; i < count; i++) {
                assert_int_equal(memory[rows[i]], want[c][i]);
                distinct += !used[rows[i]];
                used[rows[i]] = true;
            }
        }
        assert_int_equal(fr_kv_rows_available(k), ROWS - distinct);
    }
    assert_true(full > 10);
    fr_kv_rows_free(k);
}

static void test_refuses(void **unused) {
    (void)unused;
    fr_kv_rows *k = fr_kv_rows_new(4);
    fr_error err = {0};
    assert_int_equal(fr_kv_rows_begin(k, 0, -1, 1, &err), FR_FAILED);
    assert_int_equal(fr_kv_rows_begin(k, 0, 3, 1, &err), FR_FAILED);
    assert_int_equal(fr_kv_rows_begin(k, 0, -1, 0, &err), FR_OK);
    assert_int_equal(fr_kv_rows_append(k, 0, 5, &err), FR_FAILED);
    assert_non_null(strstr(err.text, "full"));
    assert_int_equal(fr_kv_rows_append(k, 0, 4, &err), FR_OK);
    assert_int_equal(fr_kv_rows_begin(k, 1, 0, 5, &err), FR_FAILED);
    fr_kv_rows_trim(k, 7, 0);
    fr_kv_rows_free(k);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_contents_survive), cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

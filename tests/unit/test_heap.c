/* heap: order by (time, sequence), moves and removals, against a plain array searched for its minimum. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim/heap.h"

static void test_order(void **state) {
    (void)state;
    fr_heap h;
    fr_heap_init(&h, 4);
    assert_null(fr_heap_top(&h));
    fr_heap_set(&h, 2, 10, 2);
    fr_heap_set(&h, 0, 20, 0);
    fr_heap_set(&h, 1, 10, 1);
    assert_int_equal(fr_heap_top(&h)->id, 1); /* equal times: the lower sequence */
    fr_heap_set(&h, 0, 5, 0);                 /* earlier */
    assert_int_equal(fr_heap_top(&h)->id, 0);
    fr_heap_set(&h, 0, 30, 0); /* later */
    assert_int_equal(fr_heap_top(&h)->id, 1);
    fr_heap_remove(&h, 1);
    fr_heap_remove(&h, 3); /* absent */
    assert_int_equal(fr_heap_top(&h)->id, 2);
    assert_true(fr_heap_has(&h, 0));
    assert_false(fr_heap_has(&h, 1));
    fr_heap_free(&h);
}

/* Random inserts, moves and removals: the top is always the minimum of what is in. */
static void test_random(void **state) {
    (void)state;
    enum { IDS = 37 };
    int64_t time[IDS];
    bool in[IDS] = {false};
    fr_heap h;
    fr_heap_init(&h, IDS);
    uint64_t x = 88172645463325252ull;
    for (int step = 0; step < 20000; step++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        uint32_t id = (uint32_t)(x % IDS);
        if (x >> 40 & 3) {
            time[id] = (int64_t)(x >> 20 & 63);
            in[id] = true;
            fr_heap_set(&h, id, time[id], id);
        } else {
            in[id] = false;
            fr_heap_remove(&h, id);
        }
        uint32_t best = IDS;
        for (uint32_t i = 0; i < IDS; i++)
            if (in[i] && (best == IDS || time[i] < time[best])) best = i;
        if (best == IDS) {
            assert_null(fr_heap_top(&h));
        } else {
            assert_int_equal(fr_heap_top(&h)->id, best);
            assert_int_equal(fr_heap_top(&h)->time, time[best]);
        }
    }
    fr_heap_free(&h);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

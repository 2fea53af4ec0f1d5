/* heap: order by (time, id), moves and removals, against a plain array searched for its minimum. */
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
    assert_true(fr_heap_top(&h).time == INT64_MAX);
    fr_heap_set(&h, 2, 10);
    fr_heap_set(&h, 0, 20);
    fr_heap_set(&h, 1, 10);
    assert_int_equal(fr_heap_top(&h).id, 1); /* equal times: the lower id */
    fr_heap_set(&h, 0, 5);                   /* earlier */
    assert_int_equal(fr_heap_top(&h).id, 0);
    fr_heap_set(&h, 0, 30); /* later */
    assert_int_equal(fr_heap_top(&h).id, 1);
    fr_heap_remove(&h, 1);
    fr_heap_remove(&h, 3); /* absent */
    assert_int_equal(fr_heap_top(&h).id, 2);
    fr_heap_free(&h);
}

/* Random inserts, moves and removals: the top is always the minimum of what is in. Also for 1, 2 and 3 ids. */
static void test_random(void **state) {
    (void)state;
    enum { MOST = 37 };
    const uint32_t sizes[] = {1, 2, 3, MOST};
    for (int s = 0; s < 4; s++) {
        uint32_t ids = sizes[s];
        int64_t time[MOST];
        for (uint32_t i = 0; i < ids; i++) time[i] = INT64_MAX;
        fr_heap h;
        fr_heap_init(&h, ids);
        uint64_t x = 88172645463325252ull;
        for (int step = 0; step < 20000; step++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            uint32_t id = (uint32_t)(x % ids);
            if (x >> 40 & 3) {
                time[id] = (int64_t)(x >> 20 & 63);
                fr_heap_set(&h, id, time[id]);
            } else {
                time[id] = INT64_MAX;
                fr_heap_remove(&h, id);
            }
            uint32_t best = 0;
            for (uint32_t i = 1; i < ids; i++)
                if (time[i] < time[best]) best = i;
            assert_int_equal(fr_heap_top(&h).time, time[best]);
            if (time[best] < INT64_MAX) assert_int_equal(fr_heap_top(&h).id, best);
        }
        fr_heap_free(&h);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order), cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

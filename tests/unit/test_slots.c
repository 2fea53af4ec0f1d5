/* Slots of pools: order, reuse only after a free, void holds take none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/slots.h"

static void test_round(void **state) {
    (void)state;
    fr_slots *s = fr_slots_new(2);
    assert_int_equal(fr_slots_count(s), 2);
    assert_true(fr_slots_can_take(s, 0));
    assert_false(fr_slots_can_take(s, 1)); /* in order */
    assert_int_equal(fr_slots_take(s, 0), 0);
    assert_int_equal(fr_slots_take(s, 1), 1);
    assert_false(fr_slots_can_take(s, 2)); /* both are in use */
    assert_int_equal(fr_slots_give(s, 1), 1);
    assert_false(fr_slots_can_take(s, 2)); /* its turn is slot 0 */
    assert_int_equal(fr_slots_give(s, 0), 0);
    assert_int_equal(fr_slots_take(s, 2), 0);
    assert_int_equal(fr_slots_of(s, 2), 0);
    fr_slots_reset(s);
    assert_true(fr_slots_can_take(s, 0));
    fr_slots_free(s);
}

/* Experts 1 and 2 of five have no tokens: the others alternate. */
static void test_void(void **state) {
    (void)state;
    fr_slots *s = fr_slots_new(2);
    assert_int_equal(fr_slots_take(s, 0), 0);
    fr_slots_skip(s, 1);
    assert_true(fr_slots_is_next(s, 2));
    fr_slots_skip(s, 2);
    assert_int_equal(fr_slots_take(s, 3), 1);
    assert_int_equal(fr_slots_of(s, 1), -1);
    assert_int_equal(fr_slots_give(s, 2), -1);
    assert_false(fr_slots_can_take(s, 4));
    fr_slots_give(s, 0);
    assert_int_equal(fr_slots_take(s, 4), 0);
    fr_slots_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round), cmocka_unit_test(test_void)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

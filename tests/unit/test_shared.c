/* Host memory of several processes: what one writes the others read, under names that do not stay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/world/shared.h"

enum { BYTES = 5000 };

static void test_two_processes(void **unused) {
    (void)unused;
    fr_shared_name name;
    fr_error err;
    void *p, *late;
    assert_int_equal(fr_shared_make(BYTES, &name, &p, &err), FR_OK);
    uint32_t *words = p;
    for (size_t i = 0; i < BYTES / 4; i++) assert_int_equal(words[i], 0);
    const pid_t child = fork();
    if (child == 0) {
        void *q;
        if (fr_shared_open(&name, BYTES, &q, &err) != FR_OK || q == p) _exit(2);
        uint32_t *w = q;
        __atomic_store_n(&w[7], 41, __ATOMIC_RELEASE);
        for (int i = 0; i < 5000 && __atomic_load_n(&w[8], __ATOMIC_ACQUIRE) != 43; i++)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        const bool seen = __atomic_load_n(&w[8], __ATOMIC_ACQUIRE) == 43;
        fr_shared_close(q, BYTES);
        _exit(seen ? 0 : 3);
    }
    for (int i = 0; i < 5000 && __atomic_load_n(&words[7], __ATOMIC_ACQUIRE) != 41; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(__atomic_load_n(&words[7], __ATOMIC_ACQUIRE), 41);
    fr_shared_forget(&name); /* both have it: the name may go */
    __atomic_store_n(&words[8], 43, __ATOMIC_RELEASE);
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_int_equal(how, 0);
    assert_int_equal(fr_shared_open(&name, BYTES, &late, &err), FR_FAILED);
    assert_non_null(strstr(err.text, name.text));
    fr_shared_close(p, BYTES);
    fr_shared_close(NULL, BYTES);
}

static void test_names_and_sizes(void **unused) {
    (void)unused;
    fr_shared_name a, b;
    fr_error err;
    void *p, *q, *r;
    assert_int_equal(fr_shared_make(16, &a, &p, &err), FR_OK);
    assert_int_equal(fr_shared_make(16, &b, &q, &err), FR_OK);
    assert_string_not_equal(a.text, b.text);
    assert_int_equal(fr_shared_open(&a, 17, &r, &err), FR_FAILED); /* reading beyond would be a signal */
    assert_non_null(strstr(err.text, "shorter"));
    assert_int_equal(fr_shared_open(&a, 16, &r, &err), FR_OK);
    *(char *)r = 'x';
    assert_int_equal(*(char *)p, 'x');
    assert_int_equal(*(char *)q, 0);
    fr_shared_close(r, 16);
    fr_shared_forget(&a);
    fr_shared_forget(&b);
    fr_shared_close(p, 16);
    fr_shared_close(q, 16);
    assert_int_equal(fr_shared_make((size_t)1 << 50, &a, &p, &err), FR_FAILED); /* no room, and no file left behind */
    assert_string_equal(a.text, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_two_processes), cmocka_unit_test(test_names_and_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

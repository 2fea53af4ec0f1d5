/* Ranks that meet: everybody's blob arrives everywhere, and nobody waits for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "engine/world/wire.h"
#include "engine/world/world.h"

enum { RANKS = 7, ROUNDS = 400 };

typedef struct {
    fr_world *world;
    int rank, rounds, wrong;
    fr_status status;
    fr_error err;
    double seconds;
} member;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void start(pthread_t *threads, member *m, int count, fr_world *w, void *(*body)(void *)) {
    for (int i = 0; i < count; i++) {
        m[i] = (member){.world = w, .rank = i, .rounds = ROUNDS};
        assert_int_equal(pthread_create(&threads[i], NULL, body, &m[i]), 0);
    }
}

/* Blobs of changing sizes; a rank that is ahead must not spoil what a slow one still reads. */
static void *exchange_many(void *context) {
    member *m = context;
    uint64_t mine[9], all[RANKS * 9];
    for (int round = 0; round < m->rounds && m->status == FR_OK; round++) {
        const size_t words = (size_t)(round % 10);
        for (size_t i = 0; i < words; i++) mine[i] = (uint64_t)(round * 1000 + m->rank * 10) + i;
        m->status = fr_world_exchange(m->world, m->rank, mine, words * 8, all, &m->err);
        for (int q = 0; q < RANKS; q++)
            for (size_t i = 0; i < words; i++)
                m->wrong += all[(size_t)q * words + i] != (uint64_t)(round * 1000 + q * 10) + i;
        if ((round + m->rank) % 13 == 0) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    return NULL;
}

static void test_everybody_gets_everything(void **unused) {
    (void)unused;
    fr_world *w;
    fr_error err;
    pthread_t threads[RANKS];
    member m[RANKS];
    assert_int_equal(fr_world_open_threads(RANKS, 20, &w, &err), FR_OK);
    assert_int_equal(fr_world_ranks(w), RANKS);
    assert_true(fr_world_same_process(w));
    start(threads, m, RANKS, w, exchange_many);
    for (int i = 0; i < RANKS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(m[i].status, FR_OK);
        assert_int_equal(m[i].wrong, 0);
    }
    assert_false(fr_world_failed(w, NULL, NULL));
    fr_world_close(w);
}

static void *exchange_once(void *context) {
    member *m = context;
    const double before = now();
    int all[RANKS];
    m->status = fr_world_exchange(m->world, m->rank, &m->rank, sizeof m->rank, all, &m->err);
    m->seconds = now() - before;
    return NULL;
}

static void test_a_missing_rank_is_named(void **unused) {
    (void)unused;
    fr_world *w;
    fr_error err;
    pthread_t threads[RANKS];
    member m[RANKS];
    int who = -1;
    assert_int_equal(fr_world_open_threads(RANKS, 0.2, &w, &err), FR_OK);
    start(threads, m, RANKS - 2, w, exchange_once); /* ranks 5 and 6 never come */
    for (int i = 0; i < RANKS - 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(m[i].status, FR_FAILED);
        assert_non_null(strstr(m[i].err.text, "waited 0.2 s for ranks 5 and 6"));
        assert_true(m[i].seconds < 5);
    }
    assert_true(fr_world_failed(w, &who, &err));
    assert_in_range(who, 0, RANKS - 3);
    /* One who comes later learns it at once. */
    member late = {.world = w, .rank = 6};
    exchange_once(&late);
    assert_int_equal(late.status, FR_FAILED);
    assert_string_equal(late.err.text, err.text);
    assert_true(late.seconds < 0.1);
    fr_world_close(w);
}

static void test_a_failure_releases_waiters(void **unused) {
    (void)unused;
    fr_world *w;
    fr_error err, first, second;
    pthread_t threads[RANKS];
    member m[RANKS];
    int who = -1;
    assert_int_equal(fr_world_open_threads(RANKS, 30, &w, &err), FR_OK);
    start(threads, m, RANKS - 1, w, exchange_once);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    fr_fail(&first, FR_FAILED, "rank 6: out of memory");
    fr_fail(&second, FR_FAILED, "rank 2: an echo");
    fr_world_fail(w, 6, &first);
    fr_world_fail(w, 2, &second);
    for (int i = 0; i < RANKS - 1; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(m[i].status, FR_FAILED);
        assert_string_equal(m[i].err.text, first.text);
        assert_true(m[i].seconds < 10);
    }
    assert_true(fr_world_failed(w, &who, &err));
    assert_int_equal(who, 6);
    assert_string_equal(err.text, first.text);
    fr_world_close(w);
}

static void *exchange_uneven(void *context) {
    member *m = context;
    const char mine[8] = {0};
    char all[8 * 2];
    m->status = fr_world_exchange(m->world, m->rank, mine, m->rank == 0 ? 4 : 8, all, &m->err);
    return NULL;
}

static void test_different_sizes_are_refused(void **unused) {
    (void)unused;
    fr_world *w;
    fr_error err;
    pthread_t threads[2];
    member m[2];
    assert_int_equal(fr_world_open_threads(2, 30, &w, &err), FR_OK);
    start(threads, m, 2, w, exchange_uneven);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(m[i].status, FR_FAILED);
        assert_non_null(strstr(m[i].err.text, "where others exchange"));
    }
    fr_world_close(w);
}

static void test_alone(void **unused) {
    (void)unused;
    fr_world *w;
    fr_error err;
    int mine = 5, all = 0;
    assert_int_equal(fr_world_open_threads(1, 1, &w, &err), FR_OK);
    assert_int_equal(fr_world_exchange(w, 0, &mine, sizeof mine, &all, &err), FR_OK);
    assert_int_equal(all, 5);
    assert_int_equal(fr_world_exchange(w, 0, NULL, 0, NULL, &err), FR_OK);
    fr_world_close(w);
    assert_int_equal(fr_world_open_threads(0, 1, &w, &err), FR_BAD_INPUT);
    assert_int_equal(fr_world_open_threads(2, 0, &w, &err), FR_BAD_INPUT);
    fr_world_close(NULL);
}

/* A peer that reads nothing, and one that stops within a message, end a wait with a line, not never. */
static void test_a_wire_waits_so_long(void **unused) {
    (void)unused;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    for (int i = 0; i < 2; i++) {
        const struct timeval t = {.tv_usec = 100000};
        assert_int_equal(setsockopt(pair[0], SOL_SOCKET, i ? SO_SNDTIMEO : SO_RCVTIMEO, &t, sizeof t), 0);
    }
    fr_wire *w = fr_wire_socket(pair[0]);
    fr_bytes large = {0};
    fr_error err = {0};
    char *zeros = calloc(1, 1 << 20);
    for (int i = 0; i < 64; i++) fr_bytes_put(&large, zeros, 1 << 20); /* beyond any socket's buffer */
    const double begun = now();
    assert_int_equal(fr_wire_send(w, 1, &large, &err), FR_FAILED);
    assert_non_null(strstr(err.text, "stopped"));
    uint32_t kind;
    fr_bytes got;
    assert_int_equal(write(pair[1], zeros, 3), 3); /* the beginning of a head */
    assert_int_equal(fr_wire_receive(w, 1000000000, &kind, &got, &err), FR_FAILED);
    assert_non_null(strstr(err.text, "stopped"));
    assert_true(now() - begun < 10);
    free(zeros);
    fr_bytes_free(&large);
    fr_wire_close(w);
    close(pair[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everybody_gets_everything),
        cmocka_unit_test(test_a_missing_rank_is_named),
        cmocka_unit_test(test_a_failure_releases_waiters),
        cmocka_unit_test(test_different_sizes_are_refused),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_a_wire_waits_so_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

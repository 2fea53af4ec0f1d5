/* Scheduler: conservation, budget, FIFO, chunks, prefix hits against a brute-force model, routers, bounded memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include "engine/sched/prefix_cache.h"
#include "engine/sched/sched.h"

static uint64_t random_state = 1;
static uint32_t pick(uint32_t below) { /* xorshift64*: the tests' own numbers, equal on every machine */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717ull) >> 33) % below;
}

static fr_sched *make(fr_sched_options o) {
    fr_sched *s = NULL;
    fr_error err = {0};
    assert_int_equal(fr_sched_new(&o, &s, &err), FR_OK);
    return s;
}

static void arrive(fr_sched *s, int64_t id, int32_t tokens, int64_t prefix_id, int32_t prefix_tokens) {
    fr_request r = {
        .id = id, .tokens = tokens, .prefix_id = prefix_id, .prefix_tokens = prefix_tokens, .candidates = 1};
    fr_sched_arrive(s, &r, 0);
}

static const fr_sched_batch *next(fr_sched *s, int queue) {
    const fr_sched_batch *b = NULL;
    return fr_sched_next(s, queue, 0, &b) ? b : NULL;
}

static void fifo_without_chunks(void **state) {
    (void)state;
    fr_sched *s = make((fr_sched_options){.queues = 1, .budget = 100});
    const int32_t tokens[] = {60, 30, 20, 250, 1, 99};
    for (int i = 0; i < 6; i++) arrive(s, i, tokens[i], -1, 0);
    /* 60 + 30 fit, 20 does not: it waits, and nothing overtakes it; 250 goes alone. */
    const int32_t expect[][2] = {{0, 2}, {2, 1}, {3, 1}, {4, 2}};
    for (int i = 0; i < 4; i++) {
        const fr_sched_batch *b = next(s, 0);
        assert_non_null(b);
        assert_int_equal(b->count, expect[i][1]);
        for (int k = 0; k < b->count; k++) {
            assert_int_equal(b->parts[k].request, expect[i][0] + k);
            assert_true(b->parts[k].last);
            assert_int_equal(b->sequences[k].candidates, 1);
        }
        fr_sched_done(s, b, 0);
    }
    assert_null(next(s, 0));
    assert_int_equal(fr_sched_pending(s), 0);
    fr_sched_free(s);
}

static void chunk_arithmetic(void **state) {
    (void)state;
    fr_sched *s = make((fr_sched_options){.queues = 1, .budget = 100, .chunk_tokens = 64});
    arrive(s, 0, 150, -1, 0);
    arrive(s, 1, 70, -1, 0);
    /* (64 of A, 36 of B), (64 of A, 34 of B ends it), (22 of A) */
    const int32_t q[3][2] = {{64, 36}, {64, 34}, {22, 0}}, prefix[3][2] = {{0, 0}, {64, 36}, {128, 0}};
    for (int i = 0; i < 3; i++) {
        const fr_sched_batch *b = next(s, 0);
        assert_int_equal(b->count, i < 2 ? 2 : 1);
        for (int k = 0; k < b->count; k++) {
            assert_int_equal(b->sequences[k].queries, q[i][k]);
            assert_int_equal(b->sequences[k].prefix, prefix[i][k]);
            assert_int_equal(b->sequences[k].candidates, b->parts[k].last ? 1 : 0);
        }
        assert_int_equal(b->parts[0].last, i == 2);
        if (i == 1) assert_true(b->parts[1].last);
        fr_sched_done(s, b, 0);
    }
    assert_false(fr_sched_has_work(s, 0));
    fr_sched_free(s);
}

/* Random work through every router, with and without chunks and cache, several batches in flight per queue. */
static void conservation(void **state) {
    (void)state;
    enum { REQUESTS = 3000, QUEUES = 3, DEPTH = 2 };
    for (int variant = 0; variant < 32; variant++) {
        bool chunks = variant & 4, cache = variant & 8, tight = variant & 16;
        fr_sched_options o = {.queues = QUEUES,
                              .budget = 512,
                              .chunk_tokens = chunks ? 200 : 0,
                              .max_sequences = tight ? 5 : 0,
                              .route = (fr_route)(variant & 3),
                              .cache_tokens = cache ? (tight ? 300 : 5000) : 0};
        if (o.route == FR_ROUTE_PREFIX && tight) o.threshold = 700;
        fr_sched *s = make(o);
        int32_t *length = fr_alloc(REQUESTS * sizeof *length), *got = fr_alloc(REQUESTS * sizeof *got);
        int *answers = fr_alloc(REQUESTS * sizeof *answers);
        int64_t last_started[QUEUES] = {-1, -1, -1}, total = 0, computed = 0, cached = 0, batches = 0;
        const fr_sched_batch *flight[QUEUES][DEPTH] = {{0}};
        int arrived = 0, left = REQUESTS;
        while (left) {
            for (uint32_t n = pick(8); n && arrived < REQUESTS; n--, arrived++) {
                length[arrived] = 1 + (int32_t)pick(arrived % 50 ? 300 : 2000);
                total += length[arrived];
                int32_t shared = (int32_t)pick(3) ? (int32_t)pick((uint32_t)length[arrived] + 1) : 0;
                arrive(s, arrived, length[arrived], shared ? (int64_t)pick(20) : -1, shared);
            }
            for (int q = 0; q < QUEUES; q++) {
                const fr_sched_batch *b = NULL;
                if (flight[q][0] && (flight[q][1] || pick(2))) {
                    b = flight[q][0];
                    for (int i = 0; i < b->count; i++) {
                        const fr_part *p = &b->parts[i];
                        if (p->last) answers[p->request]++, left--;
                        got[p->request] = p->last ? p->prefix + p->queries : got[p->request];
                    }
                    fr_sched_done(s, b, 0);
                    flight[q][0] = flight[q][1];
                    flight[q][1] = NULL;
                }
                b = next(s, q);
                if (!b) continue;
                batches++;
                assert_true(b->count > 0 && (!o.max_sequences || b->count <= o.max_sequences));
                assert_true(b->tokens <= o.budget || (!chunks && b->count == 1));
                int64_t sum = 0;
                for (int i = 0; i < b->count; i++) {
                    const fr_part *p = &b->parts[i];
                    sum += p->queries;
                    assert_true(p->queries >= 1 && p->prefix + p->queries <= p->tokens);
                    assert_int_equal(p->tokens, length[p->request]);
                    assert_int_equal(p->last, p->prefix + p->queries == p->tokens);
                    if (got[p->request] == 0) { /* first part: FIFO within the queue */
                        assert_true(p->request > last_started[q]);
                        last_started[q] = p->request;
                        cached += p->prefix;
                        got[p->request] = -(p->prefix + p->queries);
                    } else { /* a later chunk goes on exactly where the last one ended */
                        assert_int_equal(p->prefix, -got[p->request]);
                        got[p->request] -= p->queries;
                    }
                }
                assert_int_equal(sum, b->tokens);
                computed += sum;
                flight[q][flight[q][0] ? 1 : 0] = b;
                fr_sched_queue_state qs;
                fr_sched_queue(s, q, &qs);
                assert_true(qs.cache_tokens <= o.cache_tokens);
            }
        }
        for (int i = 0; i < REQUESTS; i++) {
            assert_int_equal(answers[i], 1);
            assert_int_equal(got[i], length[i]);
        }
        assert_int_equal(computed + cached, total);
        fr_sched_counters c;
        fr_sched_count(s, &c);
        assert_int_equal(c.computed, computed);
        assert_int_equal(c.cached, cached);
        assert_int_equal(c.answered, REQUESTS);
        assert_int_equal(c.batches, batches);
        assert_true(cache ? cached > 0 : cached == 0);
        for (int q = 0; q < QUEUES; q++) {
            fr_sched_queue_state qs;
            fr_sched_queue(s, q, &qs);
            assert_int_equal(qs.waiting + qs.running + qs.tokens, 0);
            assert_true(qs.work == 0);
        }
        free(length);
        free(got);
        free(answers);
        fr_sched_free(s);
    }
}

/*
 * Block hits against a brute-force LRU: an ordered list of hashes. One request a batch, so that the order of events is
 * plain: match, insert the rest head first (evicting the oldest that this request does not use), then, tail first,
 * every block of the request becomes the newest.
 */
static void lru_against_brute_force(void **state) {
    (void)state;
    enum { BLOCK = 4, CAPACITY = 40, REQUESTS = 20000 };
    fr_sched *s = make((fr_sched_options){.queues = 1, .budget = 1, .cache_tokens = CAPACITY * BLOCK});
    uint64_t list[CAPACITY + 1];
    int held = 0;
    int64_t hits = 0, total = 0;
    for (int n = 0; n < REQUESTS; n++) {
        uint64_t blocks[64];
        int count = 1 + (int)pick(n % 100 ? 12 : 60);
        uint64_t h = FR_HASH_SEED + pick(3);
        for (int i = 0; i < count; i++) { /* a path in a tree: equal hash = equal prefix */
            uint32_t way = pick(10) < 8 ? 0 : pick(3);
            h = fr_hash(&way, sizeof way, h);
            blocks[i] = h;
        }
        total += count;
        int match = 0;
        for (bool found = true; match < count && found;) {
            found = false;
            for (int i = 0; i < held; i++) found |= list[i] == blocks[match];
            if (found) match++;
        }
        hits += match;
        /* take out what is matched, evict, put back */
        for (int b = 0; b < match; b++)
            for (int i = 0; i < held; i++)
                if (list[i] == blocks[b]) {
                    memmove(&list[i], &list[i + 1], (size_t)(held - i - 1) * sizeof *list);
                    held--;
                    break;
                }
        int used = match;
        while (used < count && used < CAPACITY) {
            if (held + used == CAPACITY) {
                memmove(list, list + 1, (size_t)(held - 1) * sizeof *list);
                held--;
            }
            used++;
        }
        for (int b = used; b-- > 0;) list[held++] = blocks[b];

        fr_request r = {.id = n,
                        .tokens = count * BLOCK,
                        .prefix_id = -1,
                        .blocks = blocks,
                        .blocks_count = count,
                        .block_tokens = BLOCK,
                        .candidates = 1};
        fr_sched_arrive(s, &r, 0);
        const fr_sched_batch *b = next(s, 0);
        assert_int_equal(b->count, 1);
        assert_int_equal(b->cached, match == count ? count * BLOCK - 1 : match * BLOCK);
        fr_sched_done(s, b, 0);
    }
    fr_sched_counters c;
    fr_sched_count(s, &c);
    assert_int_equal(c.blocks, total);
    assert_int_equal(c.blocks_hit, hits);
    assert_true(c.evicted > 1000 && hits > 1000);
    assert_true(c.cache_tokens <= CAPACITY * BLOCK);
    fr_sched_free(s);
}

static void siblings_compute_a_prefix_once(void **state) {
    (void)state;
    fr_sched *s = make((fr_sched_options){.queues = 1, .budget = 1000, .cache_tokens = 1 << 20});
    for (int i = 0; i < 5; i++) arrive(s, i, 120 + i, 7, 100);
    const fr_sched_batch *b = next(s, 0);
    assert_int_equal(b->count, 5);
    assert_int_equal(b->tokens, 120 + 21 + 22 + 23 + 24);
    assert_int_equal(b->cached, 4 * 100);
    assert_int_equal(b->sequences[0].kv_prefix, -1);
    for (int i = 1; i < 5; i++) {
        assert_int_equal(b->sequences[i].prefix, 100);
        assert_int_equal(b->sequences[i].kv_prefix, b->sequences[0].kv);
        assert_int_not_equal(b->sequences[i].kv, b->sequences[0].kv);
    }
    /* a later batch formed while the first is in flight reads it too; an equal prompt computes its last token only */
    arrive(s, 5, 100, 7, 100);
    const fr_sched_batch *second = next(s, 0);
    assert_int_equal(second->sequences[0].queries, 1);
    assert_int_equal(second->sequences[0].prefix, 99);
    assert_int_equal(second->sequences[0].kv_prefix, b->sequences[0].kv);
    fr_sched_done(s, b, 0);
    fr_sched_done(s, second, 0);
    fr_sched_free(s);
}

static void routers(void **state) {
    (void)state;
    fr_sched_queue_state q;
    fr_sched *s = make((fr_sched_options){.queues = 3, .budget = 1000, .route = FR_ROUTE_LEAST_TOKENS});
    const int32_t tokens[] = {50, 20, 30, 5, 10, 4};
    for (int i = 0; i < 6; i++) arrive(s, i, tokens[i], -1, 0); /* 50 | 20+5+10 | 30+4: 5 to 1, 10 to 1 (25 < 30) */
    const int64_t expect[] = {50, 35, 34};
    for (int i = 0; i < 3; i++) {
        fr_sched_queue(s, i, &q);
        assert_int_equal(q.tokens, expect[i]);
    }
    fr_sched_free(s);

    s = make((fr_sched_options){.queues = 2, .budget = 10, .route = FR_ROUTE_VLLM});
    arrive(s, 0, 10, -1, 0);
    assert_non_null(next(s, 0)); /* queue 0: 1 running = 1 */
    arrive(s, 1, 10, -1, 0);     /* 1 against 0: queue 1, now 4 */
    arrive(s, 2, 10, -1, 0);     /* 1 against 4: queue 0, now 5 */
    arrive(s, 3, 10, -1, 0);     /* 5 against 4: queue 1 */
    fr_sched_queue(s, 0, &q);
    assert_int_equal(q.waiting, 1);
    fr_sched_queue(s, 1, &q);
    assert_int_equal(q.waiting, 2);
    fr_sched_free(s);
}

static double square(const void *context, int64_t queries, int64_t prefix) {
    (void)context;
    return (double)queries * (double)(queries + 2 * prefix);
}

static void prefix_route(void **state) {
    (void)state;
    fr_sched_queue_state q;
    fr_sched_options o = {.queues = 2,
                          .budget = 1000,
                          .route = FR_ROUTE_PREFIX,
                          .cache_tokens = 10000,
                          .work = square,
                          .threshold = 14000};
    fr_sched *s = make(o);
    arrive(s, 0, 100, 1, 90); /* queue 0: 100^2 = 10,000 */
    arrive(s, 1, 100, 2, 90); /* no match: smallest L, queue 1 */
    arrive(s, 2, 110, 1, 90); /* pending match on 0: 20 * (20 + 180) = 4,000 -> 14,000, saturated */
    arrive(s, 3, 110, 1, 90); /* the match is on a saturated queue: goes to 1, whole: 12,100 */
    fr_sched_queue(s, 0, &q);
    assert_true(q.work == 14000);
    fr_sched_queue(s, 1, &q);
    assert_true(q.work == 22100);
    arrive(s, 4, 10, 2, 5); /* both saturated: held */
    assert_int_equal(fr_sched_pending(s), 5);
    fr_sched_queue(s, 1, &q);
    assert_int_equal(q.waiting, 2);
    const fr_sched_batch *b = next(s, 0);
    assert_int_equal(b->count, 2);
    assert_int_equal(b->tokens, 120);
    fr_sched_done(s, b, 0); /* queue 0 is empty: the held request is bound there, its match being saturated */
    assert_true(fr_sched_has_work(s, 0));
    fr_sched_queue(s, 0, &q);
    assert_true(q.work == 100);
    b = next(s, 0);
    assert_int_equal(b->parts[0].request, 4);
    fr_sched_done(s, b, 0);
    arrive(s, 5, 100, 1, 90); /* resident on 0, promised on 1 and saturated there: 0 */
    b = next(s, 0);
    assert_int_equal(b->parts[0].prefix, 90);
    fr_sched_done(s, b, 0);
    fr_sched_free(s);
}

static void chunks_and_growing_prefix(void **state) {
    (void)state;
    fr_sched *s = make((fr_sched_options){.queues = 1, .budget = 100, .chunk_tokens = 60, .cache_tokens = 1000});
    arrive(s, 0, 150, 3, 120);
    arrive(s, 1, 130, 3, 120);
    const fr_sched_batch *a = next(s, 0); /* 60 of request 0; request 1 reads those 60 and computes 40 */
    assert_int_equal(a->count, 2);
    assert_int_equal(a->sequences[1].prefix, 60);
    assert_int_equal(a->sequences[1].queries, 40);
    const fr_sched_batch *b = next(s, 0); /* both go on from their own place */
    assert_int_equal(b->sequences[0].prefix, 60);
    assert_int_equal(b->sequences[1].prefix, 100);
    assert_true(b->parts[1].last == false || b->sequences[1].queries == 30);
    fr_sched_done(s, a, 0);
    fr_sched_done(s, b, 0);
    while (fr_sched_has_work(s, 0)) fr_sched_done(s, next(s, 0), 0);
    fr_sched_counters c;
    fr_sched_count(s, &c);
    assert_int_equal(c.cached, 60);
    assert_int_equal(c.computed, 220);
    assert_int_equal(c.cache_tokens, 120);
    fr_sched_free(s);
}

/* Handles, blocks and promises are used again: a long run does not grow. */
static void memory_is_bounded(void **state) {
    (void)state;
    fr_prefix_cache *c = fr_prefix_cache_new(64);
    for (uint64_t n = 0; n < 100000; n++) {
        int32_t h = fr_prefix_cache_handle(c), owner = -1;
        uint64_t parent = n - n % 2; /* the odd ones read what the even ones wrote */
        int32_t found = fr_prefix_cache_find(c, parent, 8, &owner);
        assert_int_equal(found, n % 2 ? 8 : 0);
        fr_prefix_cache_handle_parent(c, h, found ? owner : -1);
        fr_prefix_cache_promise(c, n + 1000000);
        if (found)
            fr_prefix_cache_pin(c, parent);
        else
            assert_true(fr_prefix_cache_put(c, parent, 8, h, false));
        fr_prefix_cache_unpin(c, parent);
        fr_prefix_cache_forget(c, n + 1000000);
        fr_prefix_cache_handle_release(c, h);
        assert_true(fr_prefix_cache_tokens(c) <= 64);
    }
    assert_int_equal(fr_prefix_cache_blocks(c), 8);
    assert_true(fr_prefix_cache_handles(c) <= 10);
    fr_prefix_cache_free(c);
}

static void wrong_options_are_refused(void **state) {
    (void)state;
    const fr_sched_options wrong[] = {
        {.queues = 0, .budget = 1},
        {.queues = 1, .budget = 0},
        {.queues = 1, .budget = 1, .chunk_tokens = -1},
        {.queues = 1, .budget = 1, .threshold = -1, .route = FR_ROUTE_PREFIX},
        {.queues = 1, .budget = 1, .threshold = 1},
        {.queues = 1, .budget = 1, .cache_tokens = -5},
        {.queues = 1, .budget = 1, .route = (fr_route)9},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fr_sched *s = NULL;
        fr_error err = {0};
        assert_int_equal(fr_sched_new(&wrong[i], &s, &err), FR_BAD_INPUT);
        assert_true(strlen(err.text) > 10);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fifo_without_chunks),
        cmocka_unit_test(chunk_arithmetic),
        cmocka_unit_test(conservation),
        cmocka_unit_test(lru_against_brute_force),
        cmocka_unit_test(siblings_compute_a_prefix_once),
        cmocka_unit_test(routers),
        cmocka_unit_test(prefix_route),
        cmocka_unit_test(chunks_and_growing_prefix),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(wrong_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * The conductor over ranks that only pretend: forwards reach every rank in order, results are put together, faults end
 * the run with one message in bounded time, uneven and slow ranks are waited for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/conduct/conduct_state.h"
#include "engine/conduct/follow.h"
#include "tests/unit/pretended.h"

typedef struct {
    fr_setup setup;
    fr_conducted out;
    fr_status status;
    fr_error err;
    double seconds;
    stage stage;
} played;

static void play(played *p, const char *const *flags, fr_conduct_options *o, const char *inject) {
    fr_experiment e;
    fr_experiment_defaults(&e);
    p->stage.opened = p->stage.closed = 0;
    the = &p->stage;
    for (int i = 0; flags[i]; i += 2) assert_int_equal(fr_experiment_set(&e, flags[i], flags[i + 1], &p->err), FR_OK);
    if (fr_setup_open(&e, &p->setup, &p->err) != FR_OK) fail_msg("%s", p->err.text);
    const int ranks = fr_layout_gpus(&p->setup.experiment.layout);
    o->kind = &kind;
    if (o->timeout_s <= 0) o->timeout_s = 20;
    if (inject) assert_int_equal(fr_inject_parse(inject, ranks, &o->inject, &p->err), FR_OK);
    assert_int_equal(fr_world_open_threads(ranks, o->timeout_s, &o->world, &p->err), FR_OK);
    const int64_t before = fr_monotonic();
    p->status = fr_conduct(&p->setup, o, &p->out, &p->err);
    p->seconds = (double)(fr_monotonic() - before) * 1e-9;
    assert_false(p->out.lost);
    assert_int_equal(p->stage.closed, p->stage.opened);
    fr_world_close(o->world);
}

static void done(played *p) {
    fr_conducted_free(&p->out);
    fr_setup_close(&p->setup);
}

#define TINY "model", "qwen3-30b-a3b", "layers", "2", "machine", "h200x8", "skew", "even"

static void test_forwards_of_all_units(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "4", "tokens", "100", "seq", "30", "forwards", "5", NULL};
    fr_conduct_options o = {.spans = true, .logits = true, .warmup_s = 0.02, .random_weights = true, .fit_rounds = 2};
    played p = {.stage = {.ms = 2, .hang_rank = -1}};
    play(&p, flags, &o, NULL);
    if (p.status != FR_OK) fail_msg("%s", p.err.text);
    assert_int_equal(p.stage.wrong, 0);
    assert_int_equal(p.out.forwards_count, 20);
    assert_int_equal(p.out.result.units_forwards, 5);
    assert_int_equal(p.out.result.gpus, 4);
    assert_int_equal(p.out.result.tokens, 5 * 13 * 30); /* 400 tokens in sequences of 30 */
    assert_int_equal(p.out.logit_rows_count, 5 * 13);
    assert_int_equal(p.out.spans.count, 20);
    for (int r = 0; r < 4; r++) {
        const fr_parts *a = &p.out.parts[r];
        assert_int_equal(a->compute + a->exposed_comm + a->wait + a->bubble + a->idle, a->elapsed);
    }
    /* Every sequence's logits are those of its own tokens, the same whoever computed them. */
    uint64_t hash = fr_conducted_hash(&p.out);
    played q = {.stage = {.ms = 1, .hang_rank = -1}};
    const char *tp[] = {TINY, "strategy", "tp", "gpus", "2", "tokens", "195", "seq", "30", "forwards", "5", NULL};
    fr_conduct_options o2 = {.logits = true, .warmup_s = 0.01};
    play(&q, tp, &o2, NULL);
    assert_int_equal(q.status, FR_OK);
    assert_int_equal(q.out.logit_rows_count, 5 * 13);
    for (uint32_t i = 0; i < q.out.logit_rows_count; i++) assert_true(q.out.logits[q.out.logit_rows[i].at] >= 0);
    assert_int_equal(fr_conducted_hash(&q.out), hash);
    done(&p);
    done(&q);
}

/* asap: two batches a forward for each attention group; expert ranks serve all groups and have no logits. */
static void test_expert_ranks_serve_all_groups(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "asap", "gpus", "4",  "dp",       "2", "ep",
                           "2",  "tokens",   "98",   "seq",  "30", "forwards", "5", NULL};
    fr_conduct_options o = {.spans = true, .logits = true, .warmup_s = 0.01};
    played p = {.stage = {.ms = 1, .hang_rank = -1}};
    play(&p, flags, &o, NULL);
    if (p.status != FR_OK) fail_msg("%s", p.err.text);
    assert_int_equal(p.stage.wrong, 0);
    assert_int_equal(p.out.forwards_count, 10);
    assert_int_equal(p.out.result.tokens, 5 * 13 * 30);
    assert_int_equal(p.out.logit_rows_count, 5 * 13);
    played q = {.stage = {.ms = 1, .hang_rank = -1}};
    const char *dp[] = {TINY, "strategy", "dp", "gpus", "4", "tokens", "98", "seq", "30", "forwards", "5", NULL};
    fr_conduct_options o2 = {.logits = true};
    play(&q, dp, &o2, NULL);
    assert_int_equal(q.status, FR_OK);
    assert_int_equal(fr_conducted_hash(&q.out), fr_conducted_hash(&p.out));
    assert_int_equal(q.out.result.idle_ranks, p.out.result.idle_ranks);
    done(&p);
    done(&q);
}

static void test_an_empty_rank(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "4", "tokens", "10", "seq", "20", "forwards", "3", NULL};
    fr_conduct_options o = {.logits = true};
    played p = {.stage = {.ms = 1, .hang_rank = -1}};
    play(&p, flags, &o, NULL);
    assert_int_equal(p.status, FR_OK);
    assert_int_equal(p.out.result.idle_ranks, 2);
    assert_int_equal(p.out.logit_rows_count, 6);
    done(&p);
}

static void test_a_pipeline_fills(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "pp", "gpus", "2", "tokens", "64", "seq", "64", "forwards", "40", NULL};
    fr_conduct_options o = {.logits = true};
    played p = {.stage = {.ms = 4, .hang_rank = -1}};
    play(&p, flags, &o, NULL);
    assert_int_equal(p.status, FR_OK);
    assert_int_equal(p.out.forwards_count, 40);
    /* Ranks that pretend do not wait for each other: 4 ms a forward if they are kept fed. */
    assert_true(p.out.result.forward_s < 0.0075);
    done(&p);
}

static void faults(const char *inject, const char *text, double timeout_s, double most_s, uint32_t least_forwards) {
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "4", "tokens", "64", "seq", "64", "forwards", "9", NULL};
    fr_conduct_options o = {.timeout_s = timeout_s, .warmup_s = 0.01};
    played p = {.stage = {.ms = 1, .hang_rank = -1}};
    play(&p, flags, &o, inject);
    assert_int_equal(p.status, FR_FAILED);
    if (!strstr(p.err.text, text)) fail_msg("%s", p.err.text);
    assert_true(p.seconds < most_s);
    assert_true(p.out.forwards_count >= least_forwards);
    assert_true(p.out.forwards_count < 36);
    done(&p);
}

static void test_faults(void **unused) {
    (void)unused;
    faults("fail:2:4", "rank 2: forward 4 fails", 20, 4, 4);
    faults("oom:3", "rank 3: out of GPU memory", 20, 3, 0);
    faults("stall:1:3", "stands still at op the pretended one", 1, 4, 3);
}

/* In a process of its own, as it leaves a thread and memory behind: a rank whose thread is caught in a call is let go
 * from outside, and the run ends with its name in a few seconds. */
static void test_a_rank_caught_in_a_call(void **unused) {
    (void)unused;
    const pid_t child = fork();
    if (child == 0) {
        const char *flags[] = {TINY, "strategy", "dp", "gpus", "3", "tokens", "64", "seq", "64", "forwards", "9", NULL};
        fr_experiment e;
        fr_setup s;
        fr_error err;
        fr_conducted out;
        stage st = {.ms = 1, .hang_rank = -1, .stick_forward = 4};
        fr_conduct_options o = {.kind = &kind, .timeout_s = 1.2};
        the = &st;
        fr_experiment_defaults(&e);
        for (int i = 0; flags[i]; i += 2)
            if (fr_experiment_set(&e, flags[i], flags[i + 1], &err) != FR_OK) _exit(2);
        if (fr_setup_open(&e, &s, &err) != FR_OK || fr_world_open_threads(3, 1.2, &o.world, &err) != FR_OK) _exit(3);
        const int64_t before = fr_monotonic();
        const bool named =
            fr_conduct(&s, &o, &out, &err) == FR_FAILED && strstr(err.text, "rank 1 has not issued") != NULL;
        const bool soon = fr_monotonic() - before < 12000000000;
        _exit(named && soon && out.lost && out.forwards_count >= 4 ? 0 : 4);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_int_equal(how, 0);
}

static void test_a_slow_rank_is_waited_for(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "2", "tokens", "64", "seq", "64", "forwards", "6", NULL};
    fr_conduct_options o = {.timeout_s = 5};
    played p = {.stage = {.ms = 1, .hang_rank = -1}};
    play(&p, flags, &o, "slow:1:20");
    assert_int_equal(p.status, FR_OK);
    assert_int_equal(p.out.forwards_count, 12);
    assert_true(p.out.result.elapsed_ns >= 6 * 20 * 1000000ll);
    done(&p);
}

static void test_inject_is_parsed(void **unused) {
    (void)unused;
    static const char *const bad[] = {"",        "stall",    "stall:1",   "stall:4:1",
                                      "oom:1:1", "fail:x:1", "slow:0:-1", "nap:0:1"};
    fr_inject i;
    fr_error err;
    assert_int_equal(fr_inject_parse("stall:3:17", 4, &i, &err), FR_OK);
    assert_int_equal(i.kind, FR_INJECT_STALL);
    assert_int_equal(i.rank, 3);
    assert_int_equal(i.forward, 17);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        assert_int_equal(fr_inject_parse(bad[k], 4, &i, &err), FR_BAD_INPUT);
}

/* Requests of a trace are answered once each, on every unit, while the caches of their queues are trimmed. */
/* `queues`: one for each attention group, asap: two. */
static void play_trace(const char *strategy, const char *gpus, int queues) {
    enum { REQUESTS = 60, QUEUES = 4 };
    static uint64_t blocks[REQUESTS][2];
    fr_request q[REQUESTS];
    for (int i = 0; i < REQUESTS; i++) q[i] = shared_prefix(i, 1000000, blocks[i]);
    const char *flags[] = {TINY,     "strategy", strategy,       "gpus", gpus, "trace", "poisson:rate=1",
                           "budget", "300",      "cache-tokens", "1000", NULL};
    fr_conduct_options o = {.requests = q, .requests_count = REQUESTS};
    played p = {.stage = {.ms = 3, .hang_rank = -1}};
    play(&p, flags, &o, NULL);
    if (p.status != FR_OK) fail_msg("%s", p.err.text);
    assert_int_equal(p.stage.wrong, 0);
    assert_int_equal(p.out.requests_count, REQUESTS);
    bool seen[REQUESTS] = {false}, used[QUEUES] = {false};
    for (uint32_t i = 0; i < p.out.requests_count; i++) {
        const fr_request_record *r = &p.out.requests[i];
        assert_false(seen[r->id]);
        seen[r->id] = true;
        used[r->queue] = true;
        assert_true(r->answer > r->arrival && r->start >= r->arrival);
    }
    for (int i = 0; i < QUEUES; i++) assert_int_equal(used[i], i < queues);
    assert_true(p.stage.trims > 0);
    done(&p);
}

static void test_a_trace(void **unused) {
    (void)unused;
    play_trace("dp", "2", 2);
    play_trace("asap", "2", 2); /* a pair of batches takes turns on one group */
    play_trace("asap", "4", 4); /* two groups, whose expert ranks serve both */
}

/* What ranks are told of a trace before it begins: whether its requests have one length, and which. */
static void test_what_ranks_are_told(void **unused) {
    (void)unused;
    fr_request q[3];
    for (int i = 0; i < 3; i++) q[i] = (fr_request){.id = i, .tokens = 100, .prefix_id = -1, .candidates = i};
    fr_error err;
    fr_experiment e;
    fr_setup s;
    fr_rank_needs needs;
    fr_experiment_defaults(&e);
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "1", "trace", "poisson:rate=1", "budget", "300", NULL};
    for (int i = 0; flags[i]; i += 2) assert_int_equal(fr_experiment_set(&e, flags[i], flags[i + 1], &err), FR_OK);
    assert_int_equal(fr_setup_open(&e, &s, &err), FR_OK);
    fr_conduct_options o = {.requests = q, .requests_count = 3};
    fr_conduct_needs(&s, &o, &needs);
    assert_true(needs.varied && !needs.made_up_prefix);
    assert_int_equal(needs.one_length, 100);
    assert_int_equal(needs.candidates, 2);
    q[2].tokens = 101;
    fr_conduct_needs(&s, &o, &needs);
    assert_int_equal(needs.one_length, 0);
    assert_int_equal(needs.positions, 101);
    o.requests = NULL;
    fr_conduct_needs(&s, &o, &needs);
    assert_false(needs.varied);
    assert_int_equal(needs.one_length, 0);
    fr_setup_close(&s);
}

/* ---- a process per rank -------------------------------------------------------------------------------------------*/

enum { MOST_PROCS = 8 };

/* Rank 0 here, the others forked; all with the same setup and options. */
static void play_procs(played *p, const char *const *flags, fr_conduct_options *o, const char *inject) {
    fr_experiment e;
    fr_wire *wires[MOST_PROCS] = {NULL};
    pid_t children[MOST_PROCS] = {0};
    fr_experiment_defaults(&e);
    the = &p->stage;
    for (int i = 0; flags[i]; i += 2) assert_int_equal(fr_experiment_set(&e, flags[i], flags[i + 1], &p->err), FR_OK);
    if (fr_setup_open(&e, &p->setup, &p->err) != FR_OK) fail_msg("%s", p->err.text);
    const int ranks = fr_layout_gpus(&p->setup.experiment.layout);
    o->kind = &kind;
    if (o->timeout_s <= 0) o->timeout_s = 20;
    if (inject) assert_int_equal(fr_inject_parse(inject, ranks, &o->inject, &p->err), FR_OK);
    for (int r = 1; r < ranks; r++) {
        int pair[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        children[r] = fork();
        if (children[r] == 0) {
            bool lost = false;
            close(pair[0]);
            for (int q = 1; q < r; q++) fr_wire_close(wires[q]);
            (void)fr_follow(&p->setup, o, r, fr_wire_socket(pair[1]), &lost, &p->err);
            _exit(p->stage.wrong || lost ? 1 : 0);
        }
        close(pair[1]);
        wires[r] = fr_wire_socket(pair[0]);
    }
    assert_int_equal(fr_world_open_threads(ranks, o->timeout_s, &o->world, &p->err), FR_OK);
    fr_world_spread(o->world);
    o->wires = wires;
    const int64_t before = fr_monotonic();
    p->status = fr_conduct(&p->setup, o, &p->out, &p->err);
    p->seconds = (double)(fr_monotonic() - before) * 1e-9;
    assert_false(p->out.lost);
    for (int r = 1; r < ranks; r++) {
        int how = 0;
        fr_wire_close(wires[r]);
        assert_int_equal(waitpid(children[r], &how, 0), children[r]);
        assert_int_equal(how, 0);
    }
    fr_world_close(o->world);
}

static void test_processes(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "3", "seqs", "5,6,7/8/9x4;1/2x2/", "forwards", "6", NULL};
    fr_conduct_options o = {.spans = true, .logits = true, .random_weights = true, .fit_rounds = 1}, o2 = o;
    played p = {.stage = {.ms = 2, .hang_rank = -1}}, q = p;
    play(&q, flags, &o2, NULL);
    play_procs(&p, flags, &o, NULL);
    if (p.status != FR_OK) fail_msg("%s", p.err.text);
    assert_int_equal(p.out.forwards_count, 18);
    assert_int_equal(p.out.spans.count, q.out.spans.count);
    assert_int_equal(p.out.logit_rows_count, q.out.logit_rows_count);
    assert_int_equal(fr_conducted_hash(&p.out), fr_conducted_hash(&q.out));
    assert_int_equal(p.out.facts[2].weights_bytes, 2); /* facts come over */
    done(&p);
    done(&q);
}

/* Expert ranks get the forwards of all groups, which number theirs each from 0. */
static void test_asap_processes(void **unused) {
    (void)unused;
    const char *flags[] = {TINY, "strategy", "asap", "gpus", "5",  "dp",       "3", "ep",
                           "2",  "tokens",   "98",   "seq",  "30", "forwards", "7", NULL};
    fr_conduct_options o = {.spans = true, .logits = true, .warmup_s = 0.01}, o2 = o;
    played p = {.stage = {.ms = 1, .hang_rank = -1}}, q = p;
    play(&p, flags, &o, NULL);
    if (p.status != FR_OK) fail_msg("%s", p.err.text);
    play_procs(&q, flags, &o2, NULL);
    if (q.status != FR_OK) fail_msg("%s", q.err.text);
    assert_int_equal(q.out.forwards_count, 21);
    assert_int_equal(q.out.forwards_count, p.out.forwards_count);
    assert_int_equal(q.out.spans.count, p.out.spans.count);
    assert_int_equal(q.out.logit_rows_count, p.out.logit_rows_count);
    assert_int_equal(fr_conducted_hash(&q.out), fr_conducted_hash(&p.out));
    done(&p);
    done(&q);
}

static void broken(const char *inject, const char *text, double timeout_s) {
    const char *flags[] = {TINY, "strategy", "dp", "gpus", "3", "tokens", "64", "seq", "64", "forwards", "9", NULL};
    fr_conduct_options o = {.timeout_s = timeout_s, .warmup_s = 0.01};
    played p = {.stage = {.ms = 1, .hang_rank = -1}};
    play_procs(&p, flags, &o, inject);
    assert_int_equal(p.status, FR_FAILED);
    if (!strstr(p.err.text, text)) fail_msg("%s", p.err.text);
    assert_true(p.seconds < 6);
    done(&p);
}

static void test_processes_that_fail(void **unused) {
    (void)unused;
    broken("fail:2:3", "rank 2: forward 3 fails", 20);
    broken("fail:0:3", "rank 0: forward 3 fails", 20);
    broken("oom:1", "rank 1: out of GPU memory", 20);
    broken("stall:2:3", "rank 2 has not issued its forward", 1);
}

/* ---- four and eight ranks -----------------------------------------------------------------------------------------*/

/* Layouts of 4 and 8 ranks; `units` take batches by themselves. */
static const struct {
    const char *strategy, *gpus;
    int units;
} wide[] = {{"dp", "4", 4},      {"dp", "8", 8}, {"ep", "4", 1},   {"ep", "8", 1}, {"asyncep", "4", 4},
            {"asyncep", "8", 8}, {"tp", "4", 1}, {"dwdp", "8", 8}, {"pp", "4", 1}, {"offload", "4", 1}};
enum { WIDE = sizeof wide / sizeof *wide };

/* Every layout brings every sequence's logits, the same ones, as threads and as processes. */
static void test_wide(void **unused) {
    (void)unused;
    for (int i = 0; i < WIDE; i++) {
        const bool eight = wide[i].gpus[0] == '8';
        const char *flags[] = {TINY,     "layers", "4",   "strategy",          wide[i].strategy, "gpus", wide[i].gpus,
                               "tokens", "90",     "seq", eight ? "30" : "45", "forwards",       "5",    NULL};
        fr_conduct_options o = {.spans = true, .logits = true, .warmup_s = 0.01}, o2 = o;
        played p = {.stage = {.ms = 1, .hang_rank = -1}}, q = p;
        play(&p, flags, &o, NULL);
        if (p.status != FR_OK) fail_msg("%s %s: %s", wide[i].strategy, wide[i].gpus, p.err.text);
        assert_int_equal(p.stage.wrong, 0);
        assert_int_equal(p.out.forwards_count, 5 * wide[i].units);
        assert_int_equal(p.out.logit_rows_count, 5 * (eight ? 24 : 8));
        assert_int_equal(p.out.spans.count, 5 * (eight ? 8 : 4));
        for (int r = 0; r < p.out.ranks; r++) {
            const fr_parts *a = &p.out.parts[r];
            assert_int_equal(a->compute + a->exposed_comm + a->wait + a->bubble + a->idle, a->elapsed);
            assert_int_equal(p.out.facts[r].weights_bytes, r);
        }
        play_procs(&q, flags, &o2, NULL);
        if (q.status != FR_OK) fail_msg("%s %s: %s", wide[i].strategy, wide[i].gpus, q.err.text);
        assert_int_equal(q.out.forwards_count, p.out.forwards_count);
        assert_int_equal(fr_conducted_hash(&q.out), fr_conducted_hash(&p.out));
        for (int r = 0; r < q.out.ranks; r++) assert_int_equal(q.out.facts[r].weights_bytes, r);
        done(&p);
        done(&q);
    }
}

/* Any of eight ranks may go wrong, as a thread or as a process: one message with its name, soon. */
static void test_wide_faults(void **unused) {
    (void)unused;
    static const struct {
        const char *strategy, *inject, *text;
        double timeout_s;
    } cases[] = {{"asyncep", "fail:7:2", "rank 7: forward 2 fails", 20},
                 {"dp", "fail:0:3", "rank 0: forward 3 fails", 20},
                 {"ep", "oom:5", "rank 5: out of GPU memory", 20},
                 {"ep", "stall:6:2", "rank 6 has not issued its forward", 1},
                 {"dp", "stall:3:2", "rank 3 has not issued its forward", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int procs = 0; procs < 2; procs++) {
            const char *flags[] = {TINY,     "layers", "4",   "strategy", cases[i].strategy, "gpus", "8",
                                   "tokens", "64",     "seq", "64",       "forwards",        "9",    NULL};
            fr_conduct_options o = {.timeout_s = cases[i].timeout_s, .warmup_s = 0.01};
            played p = {.stage = {.ms = 1, .hang_rank = -1}};
            (procs ? play_procs : play)(&p, flags, &o, cases[i].inject);
            assert_int_equal(p.status, FR_FAILED);
            if (!strstr(p.err.text, cases[i].text)) fail_msg("%s: %s", cases[i].inject, p.err.text);
            if (p.seconds >= 5) fail_msg("%s: %g s", cases[i].inject, p.seconds);
            done(&p);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forwards_of_all_units),
        cmocka_unit_test(test_expert_ranks_serve_all_groups),
        cmocka_unit_test(test_an_empty_rank),
        cmocka_unit_test(test_a_pipeline_fills),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_a_rank_caught_in_a_call),
        cmocka_unit_test(test_a_slow_rank_is_waited_for),
        cmocka_unit_test(test_inject_is_parsed),
        cmocka_unit_test(test_a_trace),
        cmocka_unit_test(test_what_ranks_are_told),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_asap_processes),
        cmocka_unit_test(test_processes_that_fail),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_wide_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Two timelines that differ by known factors: the comparison must find them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool near(double a, double b, double within) {
    if (fabs(a - b) <= within) return true;
    print_error("%g, expected %g\n", a, b);
    return false;
}

static void errors(void **state) {
    (void)state;
    double e[20];
    for (int i = 0; i < 20; i++) e[i] = (i % 2 ? -0.01 : 0.01) * (i + 1);
    fr_error_stats s = fr_error_stats_of(e, 20);
    assert_int_equal(s.count, 20);
    assert_true(near(s.mean, 0.105, 1e-12) && near(s.median, 0.10, 1e-12) && near(s.p95, 0.19, 1e-12));
    assert_true(near(s.worst, 0.20, 1e-12) && near(s.bias, -0.005, 1e-12));
    assert_true(isnan(fr_error_stats_of(e, 0).median));
}

enum { FORWARDS = 3, LAYERS = 4, OPS = 3 };

static uint64_t id(int forward, int layer, fr_op_kind kind) {
    return (uint64_t)forward << 44 | (uint64_t)layer << 24 | (uint64_t)kind << 18;
}

typedef struct {
    fr_timeline t;
    fr_forward_record f[FORWARDS];
    fr_request_record r[FORWARDS];
    fr_parts parts;
} side;

/* qkv, attention, expert_up of given ns and a gap after each forward, on one lane. */
static void make(side *s, int64_t qkv, int64_t attention, int64_t up, int64_t gap) {
    const int64_t ns[OPS] = {qkv, attention, up};
    const fr_op_kind kinds[OPS] = {FR_OP_GEMM_QKV, FR_OP_ATTENTION, FR_OP_EXPERT_UP};
    int64_t at = 0;
    *s = (side){0};
    for (int f = 0; f < FORWARDS; f++) {
        s->f[f] = (fr_forward_record){.forward = f, .start = at, .tokens = 100};
        for (int l = 0; l < LAYERS; l++)
            for (int k = 0; k < OPS; k++) {
                fr_span span = {.id = id(f, l, kinds[k]), .start = at, .end = at + ns[k], .kind = (uint8_t)kinds[k]};
                fr_timeline_add(&s->t, &span);
                at += ns[k];
            }
        at += gap;
        s->f[f].end = at;
        s->r[f] = (fr_request_record){.id = f, .arrival = 0, .answer = at, .tokens = 100};
    }
    s->parts = (fr_parts){.elapsed = at, .compute = at - FORWARDS * gap, .idle = FORWARDS * gap};
}

static fr_side as_side(const side *s, double mhz) {
    static const char *const names[] = {"rank 0 compute"};
    static const uint8_t compute[] = {1};
    return (fr_side){.spans = &s->t,
                     .lane_names = names,
                     .lane_compute = compute,
                     .forwards = s->f,
                     .forwards_count = FORWARDS,
                     .requests = s->r,
                     .requests_count = FORWARDS,
                     .parts = s->parts,
                     .clock_mhz = mhz};
}

static const fr_cause *cause_of(const fr_compare *c, fr_missed what, uint8_t kind) {
    for (int i = 0; i < c->causes_count; i++)
        if (c->causes[i].what == what && c->causes[i].kind == kind) return &c->causes[i];
    return NULL;
}

/* Live: expert_up 10 % longer, attention 20 % shorter, 500 ns of gap a forward more. */
static void known_factors(void **state) {
    (void)state;
    side p, m;
    make(&p, 1000, 1000, 4000, 0);
    make(&m, 1000, 800, 4400, 500);
    fr_side x = as_side(&p, NAN), y = as_side(&m, NAN);
    fr_compare c;
    fr_compare_run(&x, &y, &c);
    assert_int_equal(c.ops, FORWARDS * LAYERS * OPS);
    assert_int_equal(c.only_predicted + c.only_measured + c.other_batches, 0);
    assert_int_equal(c.kinds_count, 3);
    assert_string_equal(c.kinds[0].name, "expert_up");
    assert_true(near(c.kinds[0].each.bias, 4000.0 / 4400 - 1, 1e-9));
    /* forwards: 24,000 ns against 4 * 6,200 + 500; each 24 / 25.3 - 1 */
    assert_int_equal(c.forward.count, FORWARDS);
    assert_true(near(c.forward.bias, 24.0 / 25.3 - 1, 1e-9) && near(c.forward.worst, 1 - 24.0 / 25.3, 1e-9));
    assert_int_equal(c.request.count, FORWARDS);
    assert_int_equal(c.lanes_count, 1);
    /* causes: +400 * 12, -200 * 12, +500 * 3: in that order, and they add up to what was missed */
    assert_int_equal(c.causes_count, 3);
    assert_true(c.causes[0].what == FR_MISSED_OP && c.causes[0].kind == FR_OP_EXPERT_UP);
    assert_true(near(c.causes[0].ns, 4800, 1e-6) && near(c.causes[1].ns, -2400, 1e-6));
    assert_true(c.causes[2].what == FR_MISSED_IDLE && near(c.causes[2].ns, 1500, 1e-6));
    double sum = 0;
    for (int i = 0; i < c.causes_count; i++) sum += c.causes[i].ns;
    assert_true(near(sum, (double)(m.parts.elapsed - p.parts.elapsed), 1e-6));
    fr_text words = {0};
    fr_compare_words(&c, &c.causes[0], &words);
    assert_non_null(strstr(words.text, "expert_up is predicted 9.1 % too short: 12 ops"));
    fr_text_free(&words);
    fr_compare_free(&c);
    fr_timeline_free(&p.t);
    fr_timeline_free(&m.t);
}

/* Kernels that are all 10 % longer: a clock, or a card; nothing is left for single kinds. */
static void clock_explains(void **state) {
    (void)state;
    side p, m;
    make(&p, 1000, 1000, 4000, 0);
    make(&m, 1100, 1100, 4400, 0);
    fr_side x = as_side(&p, 1650), y = as_side(&m, 1500);
    fr_compare c;
    fr_compare_run(&x, &y, &c);
    assert_int_equal(c.causes[0].what, FR_MISSED_CLOCK);
    assert_true(near(c.common, 0.1, 1e-9) && near(c.causes[0].ns, 600 * 12, 1e-3));
    const fr_cause *up = cause_of(&c, FR_MISSED_OP, FR_OP_EXPERT_UP);
    assert_true(!up || fabs(up->ns) < 1e-3);
    fr_compare_free(&c);
    fr_timeline_free(&p.t);
    fr_timeline_free(&m.t);
}

/* A forward with other tokens is not joined, nor are its ops; an op of one side alone is counted. */
static void what_does_not_join(void **state) {
    (void)state;
    side p, m;
    make(&p, 1000, 1000, 4000, 0);
    make(&m, 1000, 1000, 4000, 0);
    m.f[1].tokens = 99;
    m.t.spans[0].id = id(0, 9, FR_OP_GEMM_QKV);
    fr_side x = as_side(&p, NAN), y = as_side(&m, NAN);
    fr_compare c;
    fr_compare_run(&x, &y, &c);
    assert_int_equal(c.other_batches, 1);
    assert_int_equal(c.forward.count, FORWARDS - 1);
    assert_int_equal(c.ops, (FORWARDS - 1) * LAYERS * OPS - 1);
    assert_int_equal(c.only_predicted, 1);
    assert_int_equal(c.only_measured, 1);
    fr_compare_free(&c);
    fr_timeline_free(&p.t);
    fr_timeline_free(&m.t);
}

/* One side's second batch took the third's tokens along: of three forwards it made two. Both meet again at the last. */
static void batches_meet_again(void **state) {
    (void)state;
    side p, m;
    make(&p, 1000, 1000, 4000, 0);
    make(&m, 1000, 1000, 4000, 0);
    p.f[1].tokens = 70;
    p.f[2].tokens = 40;
    m.f[1].tokens = 40; /* as the third there */
    fr_side x = as_side(&p, NAN), y = as_side(&m, NAN);
    y.forwards_count = 2;
    fr_compare c;
    fr_compare_run(&x, &y, &c);
    assert_int_equal(c.other_batches, 0);
    assert_int_equal(c.forward.count, 2);
    fr_compare_free(&c);
    fr_compare_run(&y, &x, &c); /* now it is the measured side that has one more */
    assert_int_equal(c.other_batches, 1);
    assert_int_equal(c.forward.count, 2);
    fr_compare_free(&c);
    fr_timeline_free(&p.t);
    fr_timeline_free(&m.t);
}

/* A GPU without a request idles: where requests come one by one, that is no cause. */
static void idle_for_want_of_requests(void **state) {
    (void)state;
    side p, m;
    make(&p, 1000, 1000, 4000, 500);
    make(&m, 1000, 1000, 4000, 900);
    fr_side x = as_side(&p, NAN), y = as_side(&m, NAN);
    fr_compare c;
    fr_compare_run(&x, &y, &c);
    assert_non_null(cause_of(&c, FR_MISSED_IDLE, 0));
    fr_compare_free(&c);
    m.r[2].arrival = p.r[2].arrival = 7;
    fr_compare_run(&x, &y, &c);
    assert_null(cause_of(&c, FR_MISSED_IDLE, 0));
    fr_compare_free(&c);
    fr_timeline_free(&p.t);
    fr_timeline_free(&m.t);
}

/* Ranks drift: unit 1's forward was planned second here and third there. The n-th of a unit meets the n-th. */
static void units_drift(void **state) {
    (void)state;
    side p, m;
    make(&p, 1000, 1000, 4000, 0);
    make(&m, 1000, 1000, 4000, 0);
    p.f[1].unit = 1;
    m.f[2].unit = 1;
    fr_side x = as_side(&p, NAN), y = as_side(&m, NAN);
    fr_compare c;
    fr_compare_run(&x, &y, &c);
    assert_int_equal(c.other_batches + c.only_predicted + c.only_measured, 0);
    assert_int_equal(c.forward.count, FORWARDS);
    assert_int_equal(c.ops, FORWARDS * LAYERS * OPS);
    fr_compare_free(&c);
    fr_timeline_free(&p.t);
    fr_timeline_free(&m.t);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(errors),
                                       cmocka_unit_test(known_factors),
                                       cmocka_unit_test(clock_explains),
                                       cmocka_unit_test(what_does_not_join),
                                       cmocka_unit_test(units_drift),
                                       cmocka_unit_test(batches_meet_again),
                                       cmocka_unit_test(idle_for_want_of_requests)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* timeline: the order of spans, and the trace and CSV files made of them. */
#include "engine/layout.h"
#include "engine/trace_json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

typedef struct {
    fr_plan *plan;
    fr_timeline t;
    uint64_t id[4];
    char folder[64], path[128];
} bench;

/* Two ranks: r0 pulls and computes, r1 computes; r1's op became ready by r0's, r0's norm by its pull. */
static void open_bench(bench *b) {
    memset(b, 0, sizeof *b);
    b->plan = fr_plan_new(2, 2);
    uint32_t compute = fr_plan_lane(b->plan, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t copy = fr_plan_lane(b->plan, 0, FR_LANE_COPY, "copy \"x\",\\", false);
    uint32_t other = fr_plan_lane(b->plan, 1, FR_LANE_COMPUTE, "compute", false);
    fr_fragment *f = fr_fragment_new(b->plan, 0);
    const uint32_t lanes[4] = {copy, compute, other, compute};
    const fr_op_kind kinds[4] = {FR_OP_PULL, FR_OP_NORM, FR_OP_ROPE, FR_OP_EMBED};
    for (int i = 0; i < 4; i++)
        b->id[i] = fr_op_id(b->plan, f, fr_emit(f, lanes[i], kinds[i], 0, i == 3 ? FR_NO_LAYER : i));
    fr_fragment_free(f);
    fr_span spans[4] = {
        {.id = b->id[0], .start = 0, .end = 1500, .bytes = 4096, .lane = 1, .kind = FR_OP_PULL},
        {.id = b->id[1], .ready = 1500, .start = 1500, .end = 2001, .flops = 1e18, .cause = b->id[0]},
        {.id = b->id[2], .ready = 2001, .start = 2500, .end = 3000, .cause = b->id[1], .lane = 2, .rank = 1},
        {.id = b->id[3], .ready = 2001, .start = 2001, .end = 2001, .cause = b->id[1]},
    };
    spans[1].kind = FR_OP_NORM;
    spans[2].kind = FR_OP_ROPE;
    spans[3].kind = FR_OP_EMBED;
    spans[1].provenance = FR_FROM_SEEDED;
    for (int i = 3; i >= 0; i--) fr_timeline_add(&b->t, &spans[i]);
    fr_timeline_sort(&b->t);
    snprintf(b->folder, sizeof b->folder, "/tmp/fr_timeline_XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    snprintf(b->path, sizeof b->path, "%s/out", b->folder);
}

static void close_bench(bench *b) {
    remove(b->path);
    assert_int_equal(rmdir(b->folder), 0); /* no temporary file is left */
    fr_timeline_free(&b->t);
    fr_plan_free(b->plan);
}

static void sorted_by_start_rank_lane_id(void **state) {
    (void)state;
    fr_timeline t = {0};
    uint64_t x = 1;
    for (int i = 0; i < 1000; i++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        fr_timeline_add(&t, &(fr_span){.start = (int64_t)(x >> 61),
                                       .rank = (int16_t)(x >> 40 & 3),
                                       .lane = (uint16_t)(x >> 30 & 3),
                                       .id = x >> 20 & 0xff});
    }
    fr_timeline_sort(&t);
    assert_int_equal(t.count, 1000);
    for (uint32_t i = 1; i < t.count; i++) {
        const fr_span *a = &t.spans[i - 1], *b = &t.spans[i];
        bool ordered = a->start != b->start ? a->start < b->start
                       : a->rank != b->rank ? a->rank < b->rank
                       : a->lane != b->lane ? a->lane < b->lane
                                            : a->id <= b->id;
        assert_true(ordered);
    }
    fr_timeline_free(&t);
    fr_timeline_sort(&t); /* empty */
    assert_null(t.spans);
}

static void every_transfer_has_a_carrier(void **state) {
    (void)state;
    for (int k = 0; k < FR_OP_KIND_COUNT; k++) {
        const fr_op_class class = fr_op_class_of((fr_op_kind)k);
        const char *name = fr_carrier_name((fr_op_kind)k, FR_GATHER_CE);
        assert_int_equal(*name != 0, class == FR_CLASS_COLLECTIVE || class == FR_CLASS_COPY);
    }
    assert_string_equal(fr_carrier_name(FR_OP_ALLTOALL, 0), "peer kernels");
    assert_string_equal(fr_carrier_name(FR_OP_ALLREDUCE, 0), "nccl");
    assert_string_equal(fr_carrier_name(FR_OP_PULL, 0), "copy engine");
    assert_string_equal(fr_carrier_name(FR_OP_GATHER_WEIGHTS, FR_GATHER_NCCL), "nccl");
    assert_string_equal(fr_carrier_name(FR_OP_GATHER_WEIGHTS, FR_GATHER_NCCL_CE), "nccl-ce");
}

static json_t *find_event(json_t *events, const char *phase, const char *id) {
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) {
        if (strcmp(json_string_value(json_object_get(e, "ph")), phase) != 0) continue;
        const char *have = json_string_value(json_object_get(json_object_get(e, "args"), "id"));
        if (!id || (have && strcmp(have, id) == 0)) return e;
    }
    return NULL;
}

static int count_events(json_t *events, const char *phase) {
    size_t i;
    json_t *e;
    int n = 0;
    json_array_foreach(events, i, e) n += strcmp(json_string_value(json_object_get(e, "ph")), phase) == 0;
    return n;
}

static void the_trace_is_json_with_arrows(void **state) {
    (void)state;
    bench b;
    fr_error err;
    open_bench(&b);
    assert_int_equal(fr_trace_json_write(b.path, b.plan, &b.t, &err), FR_OK);
    json_error_t where;
    json_t *root = json_load_file(b.path, JSON_REJECT_DUPLICATES, &where);
    if (!root) fail_msg("%s", where.text);
    json_t *events = json_object_get(root, "traceEvents");
    assert_int_equal(count_events(events, "X"), 4);
    json_t *x = find_event(events, "X", "f0.r0.l1.norm.m0.s0");
    assert_non_null(x);
    assert_true(json_number_value(json_object_get(x, "ts")) == 1.5);
    assert_true(json_number_value(json_object_get(x, "dur")) == 0.501); /* the exact ns */
    assert_int_equal(json_integer_value(json_object_get(x, "pid")), 0);
    assert_int_equal(json_integer_value(json_object_get(x, "tid")), 0);
    assert_string_equal(json_string_value(json_object_get(x, "name")), "norm l1");
    json_t *args = json_object_get(x, "args");
    assert_true(json_number_value(json_object_get(args, "flops")) == 1e18);
    assert_string_equal(json_string_value(json_object_get(args, "provenance")), fr_provenance_name(FR_FROM_SEEDED));
    assert_null(json_object_get(args, "carrier"));
    x = find_event(events, "X", "f0.r0.l0.pull.m0.s0");
    assert_string_equal(json_string_value(json_object_get(json_object_get(x, "args"), "carrier")), "copy engine");
    x = find_event(events, "X", "f0.r1.l2.rope.m0.s0");
    assert_int_equal(json_integer_value(json_object_get(x, "pid")), 1);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(x, "args"), "wait_ns")), 499);
    /* arrows: pull -> norm and norm -> rope; none to embed, whose cause is on its own lane */
    assert_int_equal(count_events(events, "s"), 2);
    assert_int_equal(count_events(events, "f"), 2);
    json_t *tail = find_event(events, "s", NULL), *head = find_event(events, "f", NULL);
    assert_true(json_number_value(json_object_get(tail, "ts")) == 1.499); /* within the pull */
    assert_int_equal(json_integer_value(json_object_get(tail, "tid")), 1);
    assert_true(json_number_value(json_object_get(head, "ts")) == 1.5);
    assert_int_equal(json_integer_value(json_object_get(head, "tid")), 0);
    bool named = false;
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) {
        const char *name = json_string_value(json_object_get(json_object_get(e, "args"), "name"));
        named = named || (name && strcmp(name, "copy \"x\",\\") == 0);
    }
    assert_true(named);
    json_decref(root);
    close_bench(&b);
}

static void an_empty_trace_is_json(void **state) {
    (void)state;
    bench b;
    fr_error err;
    open_bench(&b);
    fr_timeline none = {0};
    assert_int_equal(fr_trace_json_write(b.path, b.plan, &none, &err), FR_OK);
    json_t *root = json_load_file(b.path, 0, NULL);
    assert_non_null(root);
    json_decref(root);
    close_bench(&b);
}

static void csv_has_the_same_spans(void **state) {
    (void)state;
    bench b;
    fr_error err;
    char *text;
    size_t length;
    open_bench(&b);
    assert_int_equal(fr_trace_csv_write(b.path, b.plan, &b.t, &err), FR_OK);
    assert_int_equal(fr_read_file(b.path, 1 << 20, &text, &length, &err), FR_OK);
    fr_text expected = {0};
    fr_text_add(&expected, "op,forward,rank,lane,layer,kind,micro,sub,ready_ns,start_ns,end_ns,bytes,flops,cause,"
                           "provenance\n"
                           "f0.r0.l0.pull.m0.s0,0,0,\"copy \"\"x\"\",\\\",0,pull,0,0,0,0,1500,4096,0,,measured\n"
                           "f0.r0.l1.norm.m0.s0,0,0,compute,1,norm,0,0,1500,1500,2001,0,1e+18,"
                           "f0.r0.l0.pull.m0.s0,seeded\n"
                           "f0.r0.l-.embed.m0.s0,0,0,compute,,embed,0,0,2001,2001,2001,0,0,f0.r0.l1.norm.m0.s0,"
                           "measured\n"
                           "f0.r1.l2.rope.m0.s0,0,1,compute,2,rope,0,0,2001,2500,3000,0,0,f0.r0.l1.norm.m0.s0,"
                           "measured\n");
    assert_string_equal(text, expected.text);
    fr_text_free(&expected);
    free(text);
    close_bench(&b);
}

static void a_place_that_cannot_be_written_fails(void **state) {
    (void)state;
    bench b;
    fr_error err = {FR_OK, ""};
    open_bench(&b);
    assert_int_equal(fr_trace_json_write("/nowhere/at/all.json", b.plan, &b.t, &err), FR_FAILED);
    assert_non_null(strstr(err.text, "/nowhere/at/all.json: cannot write"));
    assert_int_equal(fr_trace_json_write(b.folder, b.plan, &b.t, &err), FR_FAILED); /* a folder stands there */
    char part[128]; /* and the half-made file beside it is gone */
    snprintf(part, sizeof part, "%s.part-%ld", b.folder, (long)getpid());
    assert_int_not_equal(access(part, F_OK), 0);
    close_bench(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorted_by_start_rank_lane_id),  cmocka_unit_test(every_transfer_has_a_carrier),
        cmocka_unit_test(the_trace_is_json_with_arrows), cmocka_unit_test(an_empty_trace_is_json),
        cmocka_unit_test(csv_has_the_same_spans),        cmocka_unit_test(a_place_that_cannot_be_written_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* plan: the builder, ids and the golden text form. */
#include "engine/plan/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void refs_are_stored_by_kind(void **state) {
    (void)state;
    fr_plan *p = fr_plan_new(1, 1);
    uint32_t lane = fr_plan_lane(p, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t a = fr_plan_event(p, 0, "a"), b = fr_plan_event(p, 0, "b");
    uint32_t buf = fr_plan_buffer(p, 0, FR_BUF_SLOT, "set", 10, 2, false);
    fr_fragment *f = fr_fragment_new(p, 0);
    fr_emit(f, lane, FR_OP_NORM, 0, 0);
    fr_use_buffer(f, FR_USE_ACQUIRE, buf, 7);
    fr_signal(f, b);
    fr_wait(f, a, 3);
    fr_use_buffer(f, FR_USE_WRITE, buf, 7);
    fr_wait(f, b, 4);
    fr_signal(f, a);
    fr_emit(f, lane, FR_OP_ROPE, 0, 1);
    fr_wait(f, a, 1);
    const fr_op *op = &f->ops[0];
    assert_int_equal(op->waits, 2);
    assert_int_equal(op->signals, 2);
    assert_int_equal(op->uses, 2);
    assert_true(fr_op_waits(f, op)[0].target == a && fr_op_waits(f, op)[0].value == 3);
    assert_true(fr_op_waits(f, op)[1].target == b && fr_op_waits(f, op)[1].value == 4);
    assert_true(fr_op_signals(f, op)[0].target == b && fr_op_signals(f, op)[1].target == a);
    assert_true(fr_op_uses(f, op)[0].use == FR_USE_ACQUIRE && fr_op_uses(f, op)[1].use == FR_USE_WRITE);
    assert_true(fr_op_uses(f, op)[0].value == 7);
    assert_true(op->flags & FR_OP_POOL);
    assert_int_equal(op->next, 1);
    assert_int_equal(f->ops[1].next, FR_NONE);
    assert_int_equal(f->ops[1].waits, 1);
    assert_true(fr_op_waits(f, &f->ops[1])[0].target == a);
    fr_fragment_free(f);
    fr_plan_free(p);
}

static void arrays_are_used_again_and_start_empty(void **state) {
    (void)state;
    fr_plan *p = fr_plan_new(2, 2);
    uint32_t l0 = fr_plan_lane(p, 0, FR_LANE_COMPUTE, "compute", false);
    fr_fragment *f = fr_fragment_new(p, 3);
    for (int i = 0; i < 100; i++) fr_emit(f, l0, FR_OP_NORM, 0, i);
    f->executor = f;
    fr_fragment_free(f);
    uint32_t l1 = fr_plan_lane(p, 1, FR_LANE_COMPUTE, "compute", false); /* after the arrays were made */
    fr_fragment *g = fr_fragment_new(p, 4);
    assert_ptr_equal(f, g);
    assert_int_equal(g->forward, 1);
    assert_int_equal(g->unit, 4);
    assert_null(g->executor);
    assert_int_equal(g->ops_count, 0);
    assert_int_equal(g->shapes_count, 1);
    fr_emit(g, l1, FR_OP_NORM, 0, 0);
    fr_emit(g, l0, FR_OP_NORM, 0, 0);
    assert_int_equal(g->heads_count, 2);
    assert_int_equal(g->heads[0].lane, l1);
    assert_int_equal(g->heads[1].first, 1);
    assert_int_equal(g->heads[1].ops, 1);
    fr_fragment *h = fr_fragment_new(p, 5); /* while g lives: another one */
    assert_ptr_not_equal(g, h);
    fr_fragment_free(h);
    fr_fragment_free(g);
    fr_fragment_free(NULL);
    fr_plan_free(p);
    fr_plan_free(NULL);
}

static void ids_name_ops(void **state) {
    (void)state;
    fr_plan *p = fr_plan_new(4, 4);
    uint32_t lane = fr_plan_lane(p, 3, FR_LANE_COPY, "copy", false);
    fr_fragment *f = NULL;
    for (int i = 0; i < 13; i++) {
        fr_fragment_free(f);
        f = fr_fragment_new(p, 0);
    }
    fr_op *op = fr_emit(f, lane, FR_OP_PULL, 0, 17);
    op->sub = 5;
    char text[48];
    fr_op_id_text(fr_op_id(p, f, op), text);
    assert_string_equal(text, "f12.r3.l17.pull.m0.s5");
    op = fr_emit(f, lane, FR_OP_EMBED, 0, FR_NO_LAYER);
    op->micro = 255;
    op->sub = 1023;
    fr_op_id_text(fr_op_id(p, f, op), text);
    assert_string_equal(text, "f12.r3.l-.embed.m255.s1023");
    uint64_t id = 0;
    assert_true(fr_op_id_parse(text, &id) && id == fr_op_id(p, f, op));
    assert_true(fr_op_id_parse("f12.r3.l17.pull.m0.s5", &id) && id == fr_op_id(p, f, &f->ops[0]));
    const char *const bad[] = {"",
                               "f12",
                               "f12.r3.l17.pull.m0.s5 ",
                               "f012.r3.l17.pull.m0.s5",
                               "f1.r3.l17.no.m0.s5",
                               "f1.r3.l1023.pull.m0.s5",
                               "f1.r3.l17.pull.m256.s5",
                               "f1.r-3.l17.pull.m0.s5",
                               "f9999999.r3.l17.pull.m0.s5",
                               "f1.r3.l-7.pull.m0.s5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(fr_op_id_parse(bad[i], &id));
    fr_op_id_text(UINT64_MAX, text); /* the longest text fits */
    assert_true(strlen(text) < 48);
    fr_fragment_free(f);
    fr_plan_free(p);
}

static void the_text_form_is_golden(void **state) {
    (void)state;
    fr_plan *p = fr_plan_new(2, 4);
    uint32_t compute = fr_plan_lane(p, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t recv = fr_plan_lane(p, 1, FR_LANE_RECV, "recv", true);
    uint32_t ready = fr_plan_event(p, 1, "ready");
    uint32_t weights = fr_plan_buffer(p, 0, FR_BUF_WEIGHTS, "attention", 1000, 0, false);
    uint32_t sets = fr_plan_buffer(p, 0, FR_BUF_GATHER, "sets", 500, 2, false);
    uint32_t kv = fr_plan_buffer(p, 0, FR_BUF_KV, "kv", 64, 0, true);
    uint32_t group = fr_plan_group(p, (int16_t[]){0, 1}, 2, 4);
    uint32_t counts = fr_plan_table(p, 1, "counts", 4096, FR_KNOWN_HOST);
    fr_fragment *f = fr_fragment_new(p, 2);
    uint32_t rows = fr_shape_add(f, &(fr_shape){.kind = FR_OP_EXPERT_UP, .m = 96, .n = 8, .k = 4, .experts = 5},
                                 (fr_pair[]){{16, 0}, {0, 0}, {40, 3}, {40, 0}, {0, 0}}, 5);
    uint32_t most = fr_shape_add(f, &(fr_shape){.kind = FR_OP_EXPERT_UP, .m = 4096, .n = 8, .k = 4}, NULL, 0);
    uint32_t bytes = fr_shape_add(f, &(fr_shape){.kind = FR_OP_ALLREDUCE, .ranks = 2, .bytes = 77}, NULL, 0);
    fr_op *op = fr_emit(f, recv, FR_OP_EXPERT_UP, rows, 1);
    op->flags |= FR_OP_ITEM;
    op->peer = 0;
    fr_late(f, counts, most);
    fr_wait(f, ready, 2);
    fr_read_table(f, counts);
    fr_emit(f, compute, FR_OP_ALLREDUCE, bytes, FR_NO_LAYER);
    fr_meet(f, group, 9);
    fr_use_buffer(f, FR_USE_READ, weights, 0);
    fr_use_buffer(f, FR_USE_ACQUIRE, sets, 3);
    fr_use_buffer(f, FR_USE_WRITE, kv, 0);
    fr_signal(f, ready);
    fr_emit(f, compute, FR_OP_GEMM_HEAD, 0, FR_NO_LAYER)->flags |= FR_OP_ENTRY | FR_OP_ANSWER;
    fr_text out = {0};
    fr_plan_print(p, &f, 1, &out);
    assert_string_equal(out.text,
                        "plan ranks=2 real=4 fold=2\n"
                        "lane 0 r0 compute \"compute\"\n"
                        "lane 1 r1 recv \"recv\" first-ready\n"
                        "event 0 r1 \"ready\"\n"
                        "buffer 0 r0 weights \"attention\" bytes=1000\n"
                        "pool 1 r0 gather \"sets\" bytes=500 slots=2\n"
                        "buffer 2 r0 kv \"kv\" bytes=64 outlives\n"
                        "group 0 size=4 ranks=0,1\n"
                        "table 0 r1 \"counts\" bound=4096 known=host\n"
                        "\n"
                        "fragment f0 unit=2 ops=3\n"
                        "  lane 0 r0 compute ops=2\n"
                        "    l- allreduce m0 s0 ranks=2 bytes=77 read(b0 attention) acquire(b1 sets #3) write(b2 kv)"
                        " signal(e0 ready) meet(g0 #9)\n"
                        "    l- gemm_head m0 s0 skip entry answer\n"
                        "  lane 1 r1 recv ops=1\n"
                        "    l1 expert_up m0 s0 peer=r0 m=96 n=8 k=4 experts=5 vector=5:96(16,0,40+3,40,...)"
                        " wait(e0 ready >= 2) readback(t0 counts) late(t0 counts; at most m=4096 n=8 k=4) item\n");
    fr_text_free(&out);
    fr_fragment_free(f);
    fr_plan_free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refs_are_stored_by_kind),
        cmocka_unit_test(arrays_are_used_again_and_start_empty),
        cmocka_unit_test(ids_name_ops),
        cmocka_unit_test(the_text_form_is_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The audit names what nobody has measured, merges what differs in size only, and its shares are of all audited time.
 */
#include "engine/machine.h"
#include "engine/plan/audit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

static fr_cost_model *open_costs(const char *machine) {
    fr_machine m;
    fr_error err;
    fr_cost_model *c = NULL;
    fr_cost_options o = {.regime = FR_BURST, .what_if = FR_WHAT_IF_NONE};
    assert_int_equal(fr_machine_load(machine, &m, &err), FR_OK);
    assert_int_equal(fr_cost_open(&m, &o, &c, &err), FR_OK);
    return c;
}

static void measured_shapes_are_not_listed(void **state) {
    (void)state;
    fr_cost_model *c = open_costs("h200x8");
    fr_plan *p = fr_plan_new(1, 1);
    uint32_t lane = fr_plan_lane(p, 0, FR_LANE_COMPUTE, "compute", false);
    fr_fragment *f = fr_fragment_new(p, 0);
    fr_shape qkv = {.kind = FR_OP_GEMM_QKV, .m = 16384, .n = 9216, .k = 4096, .flops = 2.0 * 16384 * 9216 * 4096};
    fr_shape reduce = {.kind = FR_OP_ALLREDUCE, .ranks = 8, .bytes = 1 << 28}, larger = reduce;
    larger.bytes = 1 << 29;
    uint32_t a = fr_shape_add(f, &qkv, NULL, 0), b = fr_shape_add(f, &reduce, NULL, 0),
             d = fr_shape_add(f, &larger, NULL, 0);
    for (int i = 0; i < 3; i++) fr_emit(f, lane, FR_OP_GEMM_QKV, a, 0);
    fr_emit(f, lane, FR_OP_ALLREDUCE, b, 0);
    fr_emit(f, lane, FR_OP_ALLREDUCE, b, 1);
    fr_emit(f, lane, FR_OP_ALLREDUCE, d, 2);
    fr_audit audit = {0};
    fr_audit_fragment(&audit, c, f);
    fr_audit_sort(&audit);
    fr_cost cq, cb, cd;
    fr_cost_op(c, &qkv, NULL, &cq);
    fr_cost_op(c, &reduce, NULL, &cb);
    fr_cost_op(c, &larger, NULL, &cd);
    assert_true(cq.provenance <= FR_FROM_INTERPOLATED); /* the table holds this very product */
    assert_int_equal(audit.count, 1);                   /* both all-reduces: eight ranks were never measured */
    assert_int_equal(audit.rows[0].kind, FR_OP_ALLREDUCE);
    assert_int_equal(audit.rows[0].provenance, FR_FROM_EXTRAPOLATED);
    assert_int_equal(audit.rows[0].uses, 3);
    assert_int_equal(audit.rows[0].bytes_low, 1 << 28);
    assert_int_equal(audit.rows[0].bytes_high, 1 << 29);
    assert_int_equal(audit.rows[0].ns, 2 * cb.ns + cd.ns);
    assert_int_equal(audit.ns, 3 * cq.ns + 2 * cb.ns + cd.ns);
    char text[128];
    fr_audit_text(&audit.rows[0], text);
    assert_non_null(strstr(text, "over 8 ranks"));
    fr_fragment_free(f);
    fr_plan_free(p);
    fr_cost_close(c);
}

static void rows_are_bounded(void **state) {
    (void)state;
    fr_cost_model *c = open_costs("a100x8"); /* transferred: everything is listed */
    fr_plan *p = fr_plan_new(1, 1);
    uint32_t lane = fr_plan_lane(p, 0, FR_LANE_COMPUTE, "compute", false);
    fr_fragment *f = fr_fragment_new(p, 0);
    for (int i = 0; i < FR_AUDIT_ROWS + 5; i++) {
        fr_shape s = {.kind = FR_OP_GEMM_DENSE, .m = 128, .n = 256 * (i + 1), .k = 512, .flops = 1};
        fr_emit(f, lane, FR_OP_GEMM_DENSE, fr_shape_add(f, &s, NULL, 0), 0);
    }
    fr_audit audit = {0};
    fr_audit_fragment(&audit, c, f);
    fr_audit_sort(&audit);
    assert_int_equal(audit.count, FR_AUDIT_ROWS);
    assert_int_equal(audit.left_out, 5);
    for (int i = 1; i < audit.count; i++) assert_true(audit.rows[i].ns <= audit.rows[i - 1].ns);
    fr_fragment_free(f);
    fr_plan_free(p);
    fr_cost_close(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_shapes_are_not_listed),
        cmocka_unit_test(rows_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

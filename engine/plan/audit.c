#include "engine/plan/audit.h"

#include "engine/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool same_row(const fr_audit_row *r, const fr_shape *s) {
    fr_op_class class = fr_op_class_of((fr_op_kind)s->kind);
    bool matrix = class == FR_CLASS_GEMM || class == FR_CLASS_GROUPED; /* elsewhere n and k are sizes, not a matrix */
    return r->kind == s->kind && r->precision == s->precision && r->ranks == s->ranks &&
           (!matrix || (r->n == s->n && r->k == s->k));
}

static void add(fr_audit *a, const fr_shape *s, const fr_cost *cost, int64_t uses) {
    a->ns += cost->ns * uses;
    if (cost->provenance <= FR_FROM_INTERPOLATED) return;
    int i = 0;
    while (i < a->count && !same_row(&a->rows[i], s)) i++;
    if (i == FR_AUDIT_ROWS) {
        a->left_out += uses;
        return;
    }
    fr_audit_row *r = &a->rows[i];
    if (i == a->count) {
        *r = (fr_audit_row){.kind = s->kind, .precision = s->precision, .ranks = s->ranks, .n = s->n, .k = s->k};
        r->m_low = r->m_high = s->m;
        r->bytes_low = r->bytes_high = s->bytes;
        a->count++;
    }
    if (cost->provenance > r->provenance) r->provenance = (uint8_t)cost->provenance;
    r->m_low = fr_min_i64(r->m_low, s->m);
    r->m_high = fr_max_i64(r->m_high, s->m);
    r->bytes_low = fr_min_i64(r->bytes_low, s->bytes);
    r->bytes_high = fr_max_i64(r->bytes_high, s->bytes);
    r->uses += uses;
    r->ns += cost->ns * uses;
}

void fr_audit_fragment(fr_audit *a, const fr_cost_model *c, const fr_fragment *f) {
    int64_t *uses = fr_alloc(f->shapes_count * sizeof *uses);
    for (uint32_t i = 0; i < f->ops_count; i++) uses[f->ops[i].shape]++;
    for (uint32_t i = 1; i < f->shapes_count; i++) {
        fr_cost cost;
        if (!uses[i]) continue;
        fr_cost_op(c, &f->shapes[i], f->pairs, &cost);
        add(a, &f->shapes[i], &cost, uses[i]);
    }
    free(uses);
}

static int by_time(const void *x, const void *y) {
    const fr_audit_row *a = x, *b = y;
    if (a->ns != b->ns) return a->ns < b->ns ? 1 : -1;
    return a->kind != b->kind ? a->kind - b->kind : (a->n > b->n) - (a->n < b->n);
}

void fr_audit_sort(fr_audit *a) {
    qsort(a->rows, (size_t)a->count, sizeof *a->rows, by_time);
}

static void add_range(char out[128], const char *name, int64_t low, int64_t high, double unit, const char *suffix) {
    size_t n = strlen(out);
    if (high <= 0) return;
    if (low == high)
        snprintf(out + n, 128 - n, "%s%.6g%s", name, (double)low / unit, suffix);
    else
        snprintf(out + n, 128 - n, "%s%.4g to %.4g%s", name, (double)low / unit, (double)high / unit, suffix);
}

void fr_audit_text(const fr_audit_row *r, char out[128]) {
    fr_op_class class = fr_op_class_of((fr_op_kind)r->kind);
    snprintf(out, 128, "%s", fr_op_name((fr_op_kind)r->kind));
    if (class != FR_CLASS_HOST)
        snprintf(out + strlen(out), 128 - strlen(out), " %s", fr_precision_name((fr_precision)r->precision));
    size_t n = strlen(out);
    bool matrix = class == FR_CLASS_GEMM || class == FR_CLASS_GROUPED;
    if (matrix)
        snprintf(out + n, 128 - n, " n %" PRId32 " k %" PRId32, r->n, r->k);
    else if (r->ranks > 1)
        snprintf(out + n, 128 - n, " over %d ranks", r->ranks);
    if (matrix || class == FR_CLASS_ATTENTION)
        add_range(out, ", m ", r->m_low, r->m_high, 1, "");
    else
        add_range(out, ", ", r->bytes_low, r->bytes_high, 1e6, " MB");
}

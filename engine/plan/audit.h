/*
 * audit: which shapes a plan asks the cost model for that nobody has measured. One row per kind of work and matrix
 * (rows that differ in the number of tokens or bytes only are one, with their range), with the share of the audited
 * ops' time that rests on it.
 */
#ifndef FR_AUDIT_H
#define FR_AUDIT_H

#include "engine/cost/cost.h"
#include "engine/plan/plan.h"

#define FR_AUDIT_ROWS 24

typedef struct {
    uint8_t kind, precision, provenance; /* the worst of the row's shapes */
    int16_t ranks;
    int32_t n, k;
    int64_t m_low, m_high;         /* rows */
    int64_t bytes_low, bytes_high; /* of copies, collectives, memory-bound ops */
    int64_t uses, ns;              /* ops and their time alone */
} fr_audit_row;

typedef struct {
    fr_audit_row rows[FR_AUDIT_ROWS]; /* of shapes that are neither measured nor interpolated */
    int count;
    int64_t left_out; /* ops whose row found no room */
    int64_t ns;       /* time of all audited ops, measured ones too */
} fr_audit;

/* Adds the ops of a fragment. */
void fr_audit_fragment(fr_audit *a, const fr_cost_model *c, const fr_fragment *f);
/* Orders the rows by falling time. */
void fr_audit_sort(fr_audit *a);
/* "gemm_qkv fp8 n 9216 k 4096, m 16384" */
void fr_audit_text(const fr_audit_row *r, char out[128]);

#endif

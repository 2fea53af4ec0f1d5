/*
 * cost_family: families of measured shapes and the choice among them. A set holds the curves of one regime, made from
 * one or more tables; a question finds the family of its shape, or blends the nearest ones.
 */
#ifndef FR_COST_FAMILY_H
#define FR_COST_FAMILY_H

#include "engine/cost/cost_fit.h"

typedef struct {
    uint8_t class; /* fr_op_class */
    uint8_t kind;  /* memory, host, collective, copy; FR_OP_NONE = generic memory; 0 where the kind does not matter */
    uint8_t precision; /* gemm, grouped, attention */
    uint8_t ways, transport, hosts, windowed;
    uint8_t cached; /* attention: keys are gathered from the cache first (keys are compared byte by byte: no padding) */
    int16_t ranks, equal; /* equal: attention over equal short lengths, by a graph of its own */
    int32_t n, k;         /* gemm, grouped: n and k; attention: head_dim and v_head_dim */
} fr_family_key;

typedef struct {
    fr_family_key key;
    fr_curve curve;
    int rows;
} fr_family;

typedef struct {
    fr_family *families;
    int count;
    int first[FR_CLASS_COUNT], end[FR_CLASS_COUNT];
    double regime_ratio[FR_CLASS_COUNT]; /* that rows of the other regime were multiplied by */
    int rows;                            /* fitted */
    struct fr_picks *picks;              /* which families answer for a key, as found when it was first asked for */
} fr_family_set;

/* A table and what its rows may claim at best (FR_FROM_TRANSFERRED for another GPU's). */
typedef struct {
    const fr_table *table;
    fr_provenance cap;
} fr_source;

/* Earlier sources outrank later ones: a row of the same shape replaces a later one's; a class that an earlier source
 * with cap FR_FROM_MEASURED has rows of takes none from a transferred one; inside a family measured rows outrank seeded
 * ones. `skip` leaves one row out (leave-one-out), and the classes that have nothing to say of it. */
void fr_family_build(fr_family_set *set, const fr_source *sources, int count, fr_regime regime, const fr_row *skip);
/* Mean of sustained over burst over the shapes of a class that were measured in both; 1 where there are none. */
double fr_family_ratio(const fr_source *sources, int count, fr_op_class class);
int fr_family_rows(const fr_table *t, fr_op_class class); /* rows of a class that make curves */
void fr_family_free(fr_family_set *set);

/* One line a family: rows, range of ideal times, share of the ceiling reached at both ends, fit error. */
void fr_family_list(const fr_family_set *set, fr_text *out);

typedef struct {
    double clock;         /* SM clock of the rows behind it, over the full one; 0 = not known */
    double ns, low, high; /* low and high from rows, fits and blends; floors for whole classes of provenance not yet */
    fr_provenance provenance;
    bool at_row;
} fr_estimate;

/* false when no family can speak for the shape. `ceilings` are those of the machine that is asked about. */
bool fr_family_estimate(const fr_family_set *set, const fr_ceilings *ceilings, const fr_shape *s, const fr_base *base,
                        uint8_t ways, fr_estimate *out);

#endif

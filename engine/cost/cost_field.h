/*
 * cost_field: the fields of a table's rows (internal to the reader of tables, cost_table.c): their names, what they
 * take and where it goes, and which a row of an op needs and may have.
 */
#ifndef FR_COST_FIELD_H
#define FR_COST_FIELD_H

#include "engine/cost/cost_table.h"

enum { FR_TABLE_ENTRIES = 4096 }; /* of one vector */

typedef enum {
    FR_FIELD_PRECISION,
    FR_FIELD_REGIME,
    FR_FIELD_M,
    FR_FIELD_N,
    FR_FIELD_K,
    FR_FIELD_BYTES,
    FR_FIELD_ROWS,
    FR_FIELD_SEQS,
    FR_FIELD_HEADS,
    FR_FIELD_KV_HEADS,
    FR_FIELD_HEAD_DIM,
    FR_FIELD_V_HEAD_DIM,
    FR_FIELD_WINDOW,
    FR_FIELD_RANKS,
    FR_FIELD_HOSTS,
    FR_FIELD_TRANSPORT,
    FR_FIELD_WAYS,
    FR_FIELD_VICTIM,
    FR_FIELD_AGGRESSOR,
    FR_FIELD_ALONE,
    FR_FIELD_BESIDE,
    FR_FIELD_OVERLAP,
    FR_FIELD_HBM_TRAFFIC,
    FR_FIELD_NS,
    FR_FIELD_P10,
    FR_FIELD_P90,
    FR_FIELD_SAMPLES,
    FR_FIELD_CLOCK,
    FR_FIELD_WATTS,
    FR_FIELD_PROVENANCE,
    FR_FIELD_DUTY,
    FR_FIELD_AT_MS,
    FR_FIELD_CAPPED,
    FR_FIELD_RATE,
    FR_FIELD_RATE_ALONE,
    FR_FIELD_CLOCK_ALONE,
    FR_FIELD_WATTS_ALONE,
    FR_FIELD_TILE,
    FR_FIELD_PACKED,
    FR_FIELD_GAP_MS,
    FR_FIELD_TURN_MS,
    FR_FIELD_FILL,
    FR_FIELD_STREAMS,
    FR_FIELD_ORDER,
    FR_FIELD_CARD,
    FR_FIELD_BY,
    FR_FIELD_OF,
    FR_FIELD_BEHIND,
    FR_FIELD_RESIDENT,
    FR_FIELD_COUNT
} fr_field;

#define FR_FIELD_BIT(f) (UINT64_C(1) << (f))

/* Quantiles of the last number of experts that was dealt to. */
typedef struct {
    int32_t experts;
    double z[FR_TABLE_ENTRIES];
} fr_normal;

/* Where reading stands, for messages, and what it fills. */
typedef struct {
    const char *where;
    int line;
    fr_error *err;
    fr_table *t;
    struct fr_row_index *index; /* the caller's */
    fr_normal *normal;
} fr_reader;

/* FR_BAD_INPUT with "file:line: field: expected". */
fr_status fr_reader_bad(const fr_reader *r, const char *field, const char *expected);
/* Splits off the next token at `separators`; NULL at the end. */
char *fr_reader_token(char **text, const char *separators);
fr_status fr_reader_double(const fr_reader *r, const char *field, const char *text, double low, double high,
                           double *out);

const char *fr_field_name(fr_field f);
/* The field of this name, looked for from `from` on and then from the first; FR_FIELD_COUNT: there is none. */
fr_field fr_field_find(const char *name, fr_field from);
fr_status fr_field_read(const fr_reader *r, fr_row *row, fr_field f, char *text);
/* FR_FIELD_BITs that a row of this op needs and those that it may have. */
void fr_field_sets(const fr_row *row, uint64_t *need, uint64_t *may);

#endif

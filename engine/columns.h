/*
 * columns: a result as a row of named values. `simulate`, `run` and `sweep` store the same columns, all made from the
 * table in columns.c, so that `validate` only joins and a figure reads either. (The JSON form is engine/report.h's.)
 */
#ifndef FR_COLUMNS_H
#define FR_COLUMNS_H

#include "engine/experiment.h"

typedef enum { FR_COLUMN_TEXT, FR_COLUMN_INT, FR_COLUMN_REAL } fr_column_type;

typedef struct {
    fr_column_type type;
    const char *text; /* TEXT */
    int64_t integer;  /* INT */
    double real;      /* REAL; NaN = null */
} fr_value;

/* Columns of a result row, in order: name and type; NULL name at the end. */
typedef struct {
    const char *name;
    fr_column_type type;
    const char *unit, *about; /* for the README's reference */
} fr_column;
const fr_column *fr_result_columns(void);
int fr_result_column_count(void);

/* The row of one finished (or unfit: result->forward_s NaN) experiment: values[fr_result_column_count()]. Texts point
 * into `s`. */
void fr_result_row(const fr_setup *s, const fr_result *r, fr_value *values);

/* The result of a cell that was not played (it does not fit): memory and the reason, every timing NaN. */
void fr_result_unplayed(const fr_setup *s, fr_result *out);

#endif

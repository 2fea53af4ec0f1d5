/*
 * figures: what `forerun plot` can draw. Each figure is one gnuplot script under plots/ and one function that writes
 * its data from the tables of a stored sweep or run.
 */
#ifndef FR_CLI_FIGURES_H
#define FR_CLI_FIGURES_H

#include "engine/base.h"

#include <stdio.h>

struct sqlite3;

typedef struct {
    const char *name, *summary;
    const char *from; /* what the DB must hold */
    const char *script;
    /* Writes the data file and, as gnuplot assignments, what the script needs to know ("title", tics, bounds). */
    fr_status (*data)(struct sqlite3 *db, int64_t run, FILE *data, fr_text *settings, fr_error *err);
} cli_figure;

extern const cli_figure cli_figures[]; /* NULL name at the end */

void cli_list_traces(void);

#endif

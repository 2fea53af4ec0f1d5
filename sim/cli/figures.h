/*
 * figures: what `forerun plot` can draw. Each figure is one gnuplot script under plots/ and one function that makes its
 * data from the tables of a stored sweep or run (engine/store.h, engine/columns.h).
 */
#ifndef FR_CLI_FIGURES_H
#define FR_CLI_FIGURES_H

#include "engine/store.h"

typedef struct {
    fr_store *store;
    const char *path; /* of the DB, for messages */
    int64_t run;      /* figures of one run: its id */
    int rank;         /* gantt: first rank shown */
    int layer;        /* gantt: first of the two layers; -1 = in the middle */
} cli_figure_source;

typedef struct {
    const char *name, *summary;
    const char *from; /* what the DB must hold */
    bool of_run;      /* of one run with its timeline, not of many results */
    /* Tab-separated data, and gnuplot assignments that the script needs (labels, tics, bounds). */
    fr_status (*data)(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err);
} cli_figure;

extern const cli_figure cli_figures[]; /* NULL name at the end; the script is plots/NAME.gp */

/* A query's rows as texts ("" for null); a figure's data is small. */
typedef struct {
    char **cell;
    uint32_t rows, columns, cap;
} cli_table;
fr_status cli_fetch(fr_store *s, const char *sql, const char *bind, cli_table *out, fr_error *err);
void cli_table_free(cli_table *t);
const char *cli_at(const cli_table *t, uint32_t row, uint32_t column);
double cli_number(const cli_table *t, uint32_t row, uint32_t column); /* NaN for null */

/* The run that spans are read from: the one asked for, else the last with spans. */
fr_status cli_choose_run(fr_store *s, const char *path, const char *asked, int64_t *run, fr_error *err);
fr_status cli_data_gantt(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err);
fr_status cli_data_critical(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err);

/* Parts of the lane charts: ops of lane `lane` within [from, to) as boxes of row `row`, false when there are none; the
 * window of two layers of a rank in its middle forward; the layer in the middle; the title. */
bool cli_gantt_lane(const fr_timeline *t, uint32_t lane, int row, int64_t from, int64_t to, fr_text *data);
bool cli_gantt_window(const fr_timeline *t, int rank, int layer, int64_t *from, int64_t *to);
int cli_middle_layer(const fr_timeline *t, int rank);
fr_status cli_run_subject(const cli_figure_source *s, fr_text *settings, fr_error *err);

/* Figures of measured runs: each is simulated again (sim/validate.h). */
fr_status cli_measured_runs(fr_store *s, const char *path, const char *asked, cli_table *out, fr_error *err);
fr_status cli_data_scatter(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err);
fr_status cli_data_op_errors(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err);
fr_status cli_data_twins(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err);

void cli_list_traces(void);

#endif

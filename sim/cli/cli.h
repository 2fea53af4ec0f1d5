/*
 * cli: what the commands share: the table of commands, their options (one source for parsing, --help and the man
 * page), progress on stderr. Only main turns a status into an exit code; commands return fr_status and print to stdout.
 */
#ifndef FR_CLI_H
#define FR_CLI_H

#include "engine/experiment.h"
#include "engine/timeline.h"

#include <stdio.h>

#define CLI_MAX_OPTIONS    32
#define CLI_MAX_POSITIONAL 64 /* journals of a table */

typedef struct cli_args cli_args;

/* A command. `options` are its own, besides --help; with `experiment` it takes every option of an experiment too. */
typedef struct {
    const char *name, *arguments, *summary, *details, *example;
    const fr_option *options; /* NULL name at the end; at most CLI_MAX_OPTIONS */
    bool experiment;
    int least, most; /* positional arguments */
    fr_status (*run)(const cli_args *args, fr_error *err);
} cli_command;

struct cli_args {
    const cli_command *command;
    const char *positional[CLI_MAX_POSITIONAL];
    int count;
    const char *value[CLI_MAX_OPTIONS]; /* of the command's own options; switches "" when given; NULL = not given */
    struct {
        const char *name, *value;
    } * set; /* experiment options in the order given */
    int set_count;
    bool help;
    const char *json_file; /* of a cell of --cells: where its result goes; NULL = stdout, where --json asks for it */
    const char *cell;      /* its name; NULL = no cell */
};

const cli_command *cli_commands(void); /* NULL name at the end */
const cli_command *cli_find(const char *name);

fr_status cli_parse(const cli_command *command, int argc, char **argv, cli_args *out, fr_error *err);
void cli_args_free(cli_args *a);
const char *cli_value(const cli_args *a, const char *name); /* NULL = not given; "" = a switch that was given */

/* The experiment of a command line: cell 0 of the file named first (if any), then the flags. */
fr_status cli_experiment(const cli_args *a, fr_experiment *out, fr_error *err);

/*
 * --cells FILE: a line "NAME | OPTIONS" is a run with those options behind the command line's own; empty lines and
 * lines that begin with # say nothing. Each is handed to `one`, which writes its result to json_file (--results FOLDER:
 * FOLDER/NAME.json; where that is there already the run is left out). A run that fails is named and the next one comes.
 * All that in a process made for it: where `one` sets *stop (this process can't go on) or does not come back, the rest
 * of the list gets another. --limit S: none is begun after that many seconds. FR_FAILED when any failed.
 */
typedef fr_status cli_cell(const cli_args *cell, bool *stop, fr_error *err);
fr_status cli_cells(const cli_args *a, cli_cell *one, fr_error *err);
/* Its first step: reads all lines of a list (`path` names it in messages), so that a mistake in the last one is found
 * before the first one runs. */
fr_status cli_cells_check(const cli_args *a, const char *path, const char *list, fr_error *err);
/* A result in JSON: to its file, or to stdout. */
fr_status cli_put_json(const cli_args *a, const char *text, fr_error *err);

void cli_help(const cli_command *command, FILE *out);
void cli_usage(FILE *out);
/* The man page in troff, from the same tables. */
void cli_man(FILE *out);
/* The README's reference of options, as Markdown tables. */
void cli_reference(FILE *out);

/* What a played or executed cell leaves in files. `report` is its JSON. */
typedef struct {
    const char *kind; /* "simulate" | "run" */
    const fr_setup *setup;
    const fr_result *result;
    struct json_t *report; /* taken over */
    const fr_forward_record *forwards;
    int64_t forwards_count;
    const fr_request_record *requests;
    int64_t requests_count;
    const fr_timeline *spans;
    const char *routing, *anchors; /* texts attached to a run in a store; NULL = none */
} cli_kept;
/* Writes it where --db, --perfetto and --csv say. */
fr_status cli_keep(const cli_kept *k, const cli_args *a, fr_error *err);
/* The texts of files with commas between, one after the other; the caller frees *out. */
fr_status cli_read_anchors(const char *files, char **out, fr_error *err);
bool cli_keeps(const cli_args *a); /* whether any of the three was given */

/* Folder of the running program; NULL when it cannot be told. The caller frees it. */
char *cli_exe_dir(void);

/* A bar with ETA on stderr: shown on a terminal, or always with --progress; not before a second has passed. */
typedef struct {
    bool on, shown;
    double began, last;
    const char *what;
} cli_progress;
void cli_progress_start(cli_progress *p, const char *what, bool forced);
void cli_progress_update(void *progress, double share);
void cli_progress_end(cli_progress *p);

fr_status cmd_list(const cli_args *args, fr_error *err);
fr_status cmd_plan(const cli_args *args, fr_error *err);
fr_status cmd_simulate(const cli_args *args, fr_error *err);
fr_status cmd_sweep(const cli_args *args, fr_error *err);
fr_status cmd_run(const cli_args *args, fr_error *err);
fr_status cmd_calibrate(const cli_args *args, fr_error *err);
fr_status cmd_validate(const cli_args *args, fr_error *err);
fr_status cmd_plot(const cli_args *args, fr_error *err);
fr_status cmd_trace(const cli_args *args, fr_error *err);
fr_status cmd_doctor(const cli_args *args, fr_error *err);

extern const fr_option cmd_run_options[], cmd_list_options[], cmd_plan_options[], cmd_simulate_options[],
    cmd_sweep_options[], cmd_calibrate_options[], cmd_validate_options[], cmd_plot_options[], cmd_trace_options[];

#endif

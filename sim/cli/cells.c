/* --cells: a list of runs, one after the other in one process, which keeps what is slow to start (GPUs, libraries). */
#include "sim/cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIST_LIMIT ((size_t)1 << 20)
#define MAX_WORDS  256

/* One line: its name, and its options as a command line of their own. */
typedef struct {
    char *name, *words[MAX_WORDS];
    int count;
} cell_line;

/* Names become file names. */
static bool good_name(const char *name) {
    return *name && *name != '.' && strlen(name) < 128 &&
           name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")] == 0;
}

/* Cuts `line` in place; an empty one or a comment has no name. */
static fr_status cut_line(char *line, const char *path, int number, cell_line *out, fr_error *err) {
    char *save, *bar = strchr(line, '|');
    *out = (cell_line){.words = {"cell"}, .count = 1};
    line += strspn(line, " \t\r");
    if (*line == 0 || *line == '#') return FR_OK;
    if (!bar) return fr_fail(err, FR_BAD_INPUT, "%s, line %d: expected NAME | OPTIONS", path, number);
    *bar = 0;
    out->name = strtok_r(line, " \t", &save);
    if (!out->name || strtok_r(NULL, " \t", &save) || !good_name(out->name))
        return fr_fail(err, FR_BAD_INPUT, "%s, line %d: expected a name of letters, digits, '-', '_' and '.'", path,
                       number);
    for (char *w = strtok_r(bar + 1, " \t\r", &save); w; w = strtok_r(NULL, " \t\r", &save)) {
        if (out->count == MAX_WORDS)
            return fr_fail(err, FR_BAD_INPUT, "%s, line %d: more than %d words", path, number, MAX_WORDS);
        out->words[out->count++] = w;
    }
    return FR_OK;
}

/* The command line's options, the cell's behind them; *own keeps what the result points to. */
static fr_status join(const cli_args *a, cell_line *line, cli_args *own, cli_args *out, fr_error *err) {
    fr_error why;
    FR_TRY(cli_parse(a->command, line->count, line->words, own, err));
    if (own->count > 0 || own->help || cli_value(own, "cells") || cli_value(own, "results"))
        return fr_fail(err, FR_BAD_INPUT, "expected options of one run");
    *out = *a;
    out->set = fr_alloc((size_t)(a->set_count + own->set_count + 1) * sizeof *out->set);
    memcpy(out->set, a->set, (size_t)a->set_count * sizeof *out->set);
    memcpy(out->set + a->set_count, own->set, (size_t)own->set_count * sizeof *out->set);
    out->set_count = a->set_count + own->set_count;
    for (int i = 0; i < CLI_MAX_OPTIONS; i++)
        if (own->value[i]) out->value[i] = own->value[i];
    fr_experiment e;
    if (cli_experiment(out, &e, &why) == FR_OK) return FR_OK;
    free(out->set);
    return fr_fail(err, why.status, "%s", why.text);
}

typedef struct {
    const cli_args *a;
    cli_cell *one;
    const char *path, *folder;
    double begun, limit;
    int done, failed, late;
    bool stop;
} cells;

/* `check`: only reads the line, so that a mistake in the last one is found before the first one runs. */
static fr_status take_line(cells *c, char *text, int number, bool check, fr_error *err) {
    cell_line line;
    cli_args own = {0}, cell;
    fr_error why;
    char file[4096];
    FR_TRY(cut_line(text, c->path, number, &line, err));
    if (!line.name) return FR_OK;
    const fr_status s = join(c->a, &line, &own, &cell, &why);
    if (s != FR_OK) {
        cli_args_free(&own);
        return fr_fail(err, s, "%s, line %d: %.800s", c->path, number, why.text);
    }
    snprintf(file, sizeof file, "%s/%s.json", c->folder, line.name);
    cell.json_file = file;
    if (!check && access(file, F_OK) != 0) {
        const double begun = fr_monotonic_s();
        if (begun - c->begun >= c->limit) {
            c->late++;
        } else if (c->one(&cell, &c->stop, &why) == FR_OK) {
            c->done++;
            printf("%-24s %.1f s\n", line.name, fr_monotonic_s() - begun);
        } else {
            c->failed++;
            printf("%-24s FAILED: %s\n", line.name, why.text);
        }
        fflush(stdout);
    }
    free(cell.set);
    cli_args_free(&own);
    return FR_OK;
}

static fr_status take_all(cells *c, const char *list, bool check, fr_error *err) {
    char *copy = fr_strdup(list), *next = copy;
    fr_status s = FR_OK;
    for (int number = 1; s == FR_OK && next && !c->stop; number++) {
        char *line = strsep(&next, "\n");
        s = take_line(c, line, number, check, err);
    }
    free(copy);
    return s;
}

fr_status cli_cells_check(const cli_args *a, const char *path, const char *list, fr_error *err) {
    cells c = {.a = a, .path = path, .folder = "."};
    return take_all(&c, list, true, err);
}

fr_status cli_cells(const cli_args *a, cli_cell *one, fr_error *err) {
    const char *limit = cli_value(a, "limit");
    cells c = {.a = a,
               .one = one,
               .path = cli_value(a, "cells"),
               .folder = cli_value(a, "results"),
               .begun = fr_monotonic_s(),
               .limit = 1e9};
    char *list;
    size_t length;
    if (!c.folder) return fr_fail(err, FR_BAD_INPUT, "--cells: say --results FOLDER too");
    if (access(c.folder, W_OK | X_OK) != 0)
        return fr_fail(err, FR_BAD_INPUT, "--results %s: expected a folder to write to: %s", c.folder, strerror(errno));
    if (limit) FR_TRY(fr_parse_double(limit, 0, 1e9, "--limit", &c.limit, err));
    FR_TRY(fr_read_file(c.path, LIST_LIMIT, &list, &length, err));
    fr_status s = cli_cells_check(a, c.path, list, err);
    if (s == FR_OK) s = take_all(&c, list, false, err);
    free(list);
    FR_TRY(s);
    printf("%d done, %d failed, %d left for want of time%s\n", c.done, c.failed, c.late,
           c.stop ? "; stopped: the device does not answer" : "");
    return c.failed ? fr_fail(err, FR_FAILED, "%d of %d cells failed", c.failed, c.failed + c.done) : FR_OK;
}

fr_status cli_put_json(const cli_args *a, const char *text, fr_error *err) {
    if (a->json_file) return fr_write_file(a->json_file, text, strlen(text), err);
    fputs(text, stdout);
    return FR_OK;
}

/* --cells: a list of runs, one after the other in one process, which keeps what is slow to start (GPUs, libraries). A
 * run after which that process can't go on takes no others along: the rest of the list gets a process of its own. */
#include "sim/cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
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

/* What a process tells of the lines until `line`; `stop`: it takes no more. */
typedef struct {
    int line, done, failed, late;
    bool stop;
} progress;

typedef struct {
    const cli_args *a;
    cli_cell *one;
    const char *path, *folder;
    double begun, limit;
    progress p;
    int teller; /* where progress is written to; -1 = nobody listens */
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
    cell.cell = line.name;
    if (!check && access(file, F_OK) != 0) {
        const double begun = fr_monotonic_s();
        if (begun - c->begun >= c->limit) {
            c->p.late++;
        } else if (c->one(&cell, &c->p.stop, &why) == FR_OK) {
            c->p.done++;
            printf("%-24s %.1f s\n", line.name, fr_monotonic_s() - begun);
        } else {
            c->p.failed++;
            printf("%-24s FAILED: %s\n", line.name, why.text);
        }
        fflush(stdout);
    }
    free(cell.set);
    cli_args_free(&own);
    return FR_OK;
}

/* Takes the lines behind c->p.line. */
static fr_status take_lines(cells *c, const char *list, bool check, fr_error *err) {
    char *copy = fr_strdup(list), *next = copy;
    fr_status s = FR_OK;
    for (int number = 1; s == FR_OK && next && !c->p.stop; number++) {
        char *line = strsep(&next, "\n");
        if (number <= c->p.line) continue;
        s = take_line(c, line, number, check, err);
        c->p.line = number;
        const progress now = c->p;
        if (c->teller >= 0 && write(c->teller, &now, sizeof now) != sizeof now) break; /* nobody is there */
    }
    free(copy);
    return s;
}

/* A process for the lines behind c->p.line; it ends with its parent. *told: where it says how far it is. */
static fr_status start_process(cells *c, const char *list, pid_t *pid, int *told, fr_error *err) {
    const pid_t parent = getpid();
    int ends[2];
    if (pipe(ends) != 0) return fr_fail(err, FR_FAILED, "--cells: no pipe: %s", strerror(errno));
    fflush(NULL);
    *pid = fork();
    if (*pid < 0) {
        close(ends[0]);
        close(ends[1]);
        return fr_fail(err, FR_FAILED, "--cells: no process: %s", strerror(errno));
    }
    if (*pid == 0) {
        close(ends[0]);
        c->teller = ends[1];
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(FR_FAILED);
        _exit((int)take_lines(c, list, false, err)); /* not exit: after a failure libraries may wait for a device */
    }
    close(ends[1]);
    *told = ends[0];
    return FR_OK;
}

/* A process that ended in the midst of a line: that line has failed. */
static void name_fallen(cells *c, int status) {
    c->p.line++;
    c->p.failed++;
    if (WIFSIGNALED(status))
        printf("line %-19d FAILED: its process was ended by signal %d\n", c->p.line, WTERMSIG(status));
    else
        printf("line %-19d FAILED: its process left with exit code %d\n", c->p.line, WEXITSTATUS(status));
    fflush(stdout);
}

/* All lines, in as many processes as it takes. This one stays without a GPU, so that it can make more of them. */
static fr_status take_in_processes(cells *c, const char *list, fr_error *err) {
    int lines = 1;
    for (const char *at = list; (at = strchr(at, '\n')); at++) lines++;
    for (bool more = true; more;) {
        pid_t pid = -1;
        int told = -1, status = 0;
        progress p;
        FR_TRY(start_process(c, list, &pid, &told, err));
        while (read(told, &p, sizeof p) == sizeof p) c->p = p; /* less than PIPE_BUF: whole or not at all */
        close(told);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
        if (!c->p.stop && c->p.line < lines) name_fallen(c, status);
        more = c->p.line < lines;
        c->p.stop = false;
    }
    return FR_OK;
}

fr_status cli_cells_check(const cli_args *a, const char *path, const char *list, fr_error *err) {
    cells c = {.a = a, .path = path, .folder = ".", .teller = -1};
    return take_lines(&c, list, true, err);
}

fr_status cli_cells(const cli_args *a, cli_cell *one, fr_error *err) {
    const char *limit = cli_value(a, "limit");
    cells c = {.a = a,
               .one = one,
               .path = cli_value(a, "cells"),
               .folder = cli_value(a, "results"),
               .begun = fr_monotonic_s(),
               .limit = 1e9,
               .teller = -1};
    char *list;
    size_t length;
    if (!c.folder) return fr_fail(err, FR_BAD_INPUT, "--cells: say --results FOLDER too");
    if (access(c.folder, W_OK | X_OK) != 0)
        return fr_fail(err, FR_BAD_INPUT, "--results %s: expected a folder to write to: %s", c.folder, strerror(errno));
    if (limit) FR_TRY(fr_parse_double(limit, 0, 1e9, "--limit", &c.limit, err));
    FR_TRY(fr_read_file(c.path, LIST_LIMIT, &list, &length, err));
    fr_status s = cli_cells_check(a, c.path, list, err);
    if (s == FR_OK) s = take_in_processes(&c, list, err);
    free(list);
    FR_TRY(s);
    printf("%d done, %d failed, %d left for want of time\n", c.p.done, c.p.failed, c.p.late);
    const int tried = c.p.failed + c.p.done;
    return c.p.failed ? fr_fail(err, FR_FAILED, "%d of %d cells failed", c.p.failed, tried) : FR_OK;
}

fr_status cli_put_json(const cli_args *a, const char *text, fr_error *err) {
    if (a->json_file) return fr_write_file(a->json_file, text, strlen(text), err);
    fputs(text, stdout);
    return FR_OK;
}

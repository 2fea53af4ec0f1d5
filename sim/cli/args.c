/* Parsing of a command line against a command's tables. */
#include "engine/files.h"
#include "sim/cli/cli.h"
#include "sim/grid.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static int count_options(const fr_option *o) {
    int n = 0;
    while (o && o[n].name) n++;
    return n;
}

/* A command's own options, then those of an experiment, then --help. */
static struct option *long_options(const cli_command *c, int *own, int *shared) {
    const fr_option *e = fr_experiment_options();
    *own = count_options(c->options);
    *shared = c->experiment ? count_options(e) : 0;
    struct option *o = fr_alloc((size_t)(*own + *shared + 2) * sizeof *o);
    for (int i = 0; i < *own + *shared; i++) {
        const fr_option *from = i < *own ? &c->options[i] : &e[i - *own];
        o[i] = (struct option){from->name, from->argument ? required_argument : no_argument, NULL, 0};
    }
    o[*own + *shared] = (struct option){"help", no_argument, NULL, 0};
    return o;
}

/* getopt accepts unambiguous beginnings; a script must not come to rest on one that a later option makes ambiguous. */
static bool whole_name(const char *given, const char *name) {
    size_t n = strlen(name);
    return strncmp(given, "--", 2) == 0 && strncmp(given + 2, name, n) == 0 &&
           (given[2 + n] == 0 || given[2 + n] == '=');
}

static fr_status refuse(const cli_command *c, const struct option *known, int code, char **argv, fr_error *err) {
    const char *at = argv[optind - 1];
    if (code == ':') return fr_fail(err, FR_BAD_INPUT, "%s: expected a value", at);
    if (optopt && strncmp(at, "--", 2) != 0)
        return fr_fail(err, FR_BAD_INPUT, "unknown flag -%c (see forerun %s --help)", optopt, c->name);
    for (int i = 0; known[i].name; i++)
        if (whole_name(at, known[i].name)) return fr_fail(err, FR_BAD_INPUT, "--%s takes no value", known[i].name);
    return fr_fail(err, FR_BAD_INPUT, "unknown flag %.64s (see forerun %s --help)", at, c->name);
}

static fr_status parse_flags(const cli_command *c, int argc, char **argv, cli_args *out, const struct option *known,
                             int own, int shared, fr_error *err) {
    opterr = 0;
    optind = 0;
    out->set = fr_alloc((size_t)(argc + 1) * sizeof *out->set);
    for (;;) {
        int index = -1, code = getopt_long(argc, argv, ":ho:", known, &index);
        if (code == -1) break;
        if (code == 'h') {
            out->help = true;
            continue;
        }
        if (code == 'o') {
            for (index = 0; index < own && strcmp(known[index].name, "output") != 0; index++) {
            }
            if (index == own) return fr_fail(err, FR_BAD_INPUT, "unknown flag -o (see forerun %s --help)", c->name);
        } else if (code != 0) {
            return refuse(c, known, code, argv, err);
        } else {
            /* "--flag value" leaves optarg in the argument behind the flag, "--flag=value" within it. */
            const char *at = argv[optind - (optarg == argv[optind - 1] ? 2 : 1)];
            if (!whole_name(at, known[index].name))
                return fr_fail(err, FR_BAD_INPUT, "unknown flag %.64s: did you mean --%s?", at, known[index].name);
        }
        if (index < own) {
            out->value[index] = optarg ? optarg : "";
        } else if (index < own + shared) {
            out->set[out->set_count].name = known[index].name;
            out->set[out->set_count++].value = optarg;
        } else {
            out->help = true;
        }
    }
    return FR_OK;
}

/* Files that a command will write: a name that cannot be written is refused before the work is done. */
static fr_status check_outputs(const cli_args *a, fr_error *err) {
    static const char *const outputs[] = {"db",  "csv",     "perfetto", "output",        "data",
                                          "out", "answers", "logits",   "record-routing"};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        const char *path = cli_value(a, outputs[i]);
        char flag[32];
        snprintf(flag, sizeof flag, "--%s", outputs[i]);
        if (path) FR_TRY(fr_can_write(path, flag, err));
    }
    return FR_OK;
}

fr_status cli_parse(const cli_command *c, int argc, char **argv, cli_args *out, fr_error *err) {
    int own, shared;
    struct option *known = long_options(c, &own, &shared);
    *out = (cli_args){.command = c};
    fr_status status = parse_flags(c, argc, argv, out, known, own, shared, err);
    free(known);
    FR_TRY(status);
    if (out->help) return FR_OK;
    for (int i = optind; i < argc; i++) {
        if (out->count == c->most)
            return fr_fail(err, FR_BAD_INPUT, "unexpected argument '%.64s' (see forerun %s --help)", argv[i], c->name);
        out->positional[out->count++] = argv[i];
    }
    if (out->count < c->least) return fr_fail(err, FR_BAD_INPUT, "expected: forerun %s %s", c->name, c->arguments);
    return check_outputs(out, err);
}

void cli_args_free(cli_args *a) {
    free(a->set);
    a->set = NULL;
}

const char *cli_value(const cli_args *a, const char *name) {
    for (int i = 0; a->command->options && a->command->options[i].name; i++)
        if (strcmp(a->command->options[i].name, name) == 0) return a->value[i];
    return NULL;
}

fr_status cli_experiment(const cli_args *a, fr_experiment *out, fr_error *err) {
    fr_experiment_defaults(out);
    if (a->count > 0) {
        fr_grid *grid;
        FR_TRY(fr_grid_open(a->positional[0], &grid, err));
        if (fr_grid_count(grid) > 1)
            fprintf(stderr, "forerun: %s holds %lld cells: this is the first (forerun sweep runs all)\n",
                    a->positional[0], (long long)fr_grid_count(grid));
        fr_status status = fr_grid_cell(grid, 0, out, err);
        fr_grid_close(grid);
        FR_TRY(status);
    }
    for (int i = 0; i < a->set_count; i++) FR_TRY(fr_experiment_set(out, a->set[i].name, a->set[i].value, err));
    return FR_OK;
}

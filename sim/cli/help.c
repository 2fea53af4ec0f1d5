/* --help, the man page and the README's reference: three views of the same two tables. */
#include "sim/cli/cli.h"

#include <stdlib.h>
#include <string.h>

/* Text in words, wrapped at `width` behind an indent. */
static void wrap(FILE *out, const char *text, int indent, int column, int width) {
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column + (int)n > width && column > indent) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        fprintf(out, "%.*s", (int)n, text);
        column += (int)n;
        text += n;
        if (*text == ' ') {
            text++;
            if (column + 1 + (int)strcspn(text, " ") <= width) {
                fputc(' ', out);
                column++;
            } else {
                fprintf(out, "\n%*s", indent, "");
                column = indent;
            }
        }
    }
    fputc('\n', out);
}

/* Whether a help's last clause says what the default means: "...; 0 = all". */
static bool ends_on(const char *help, const char *standard) {
    const char *clause = strrchr(help, ';'), *comma = strrchr(help, ',');
    if (!clause || (comma && comma > clause)) clause = comma;
    const size_t n = strlen(standard);
    return clause && strncmp(clause + 2, standard, n) == 0 && strncmp(clause + 2 + n, " = ", 3) == 0;
}

/* The option's help with its default behind it; the caller frees it. */
static char *full_help(const fr_option *o) {
    char value[512];
    const char *standard = o->group ? fr_experiment_default(o->name, value, sizeof value) : NULL;
    fr_text text = {0};
    fr_text_add(&text, "%s", o->help);
    if (standard && ends_on(o->help, standard))
        fr_text_add(&text, " (default)");
    else if (standard)
        fr_text_add(&text, " (default %s)", standard);
    return text.text;
}

static void print_option(FILE *out, const fr_option *o) {
    enum { AT = 26, WIDTH = 100 };
    char *help = full_help(o);
    int n = fprintf(out, "  --%s%s%s", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
    if (n >= AT) {
        fputc('\n', out);
        n = 0;
    }
    fprintf(out, "%*s", AT - n, "");
    wrap(out, help, AT, AT, WIDTH);
    free(help);
}

static void print_options(FILE *out, const fr_option *o) {
    const char *group = "";
    for (; o->name; o++) {
        if (o->group && strcmp(group, o->group) != 0) fprintf(out, "\n%s:\n", o->group);
        if (o->group) group = o->group;
        print_option(out, o);
    }
}

void cli_help(const cli_command *c, FILE *out) {
    fprintf(out, "usage: forerun %s%s%s\n\n", c->name, c->arguments[0] ? " " : "", c->arguments);
    wrap(out, c->summary, 0, 0, 100);
    if (c->details) {
        fputc('\n', out);
        wrap(out, c->details, 0, 0, 100);
    }
    if (c->options && c->options[0].name) {
        fprintf(out, "\nOptions of %s:\n", c->name);
        for (const fr_option *o = c->options; o->name; o++) print_option(out, o);
    }
    if (c->experiment) print_options(out, fr_experiment_options());
    fputs("\nexample:\n", out);
    for (const char *line = c->example; *line; line += line[0] == '\n') {
        const int n = (int)strcspn(line, "\n");
        fprintf(out, "  %.*s\n", n, line);
        line += n;
    }
}

void cli_usage(FILE *out) {
    fprintf(out,
            "forerun %s: which way of spreading a Mixture-of-Experts model over GPUs is fastest for\nprefill, and "
            "why\n\nusage: forerun COMMAND ...\n\n",
            FR_VERSION);
    for (const cli_command *c = cli_commands(); c->name; c++) {
        fprintf(out, "  %-10s ", c->name);
        wrap(out, c->summary, 13, 13, 100);
    }
    fprintf(out, "\na first result:  forerun simulate --strategy asyncep\nmore:            forerun COMMAND --help\n"
                 "exit codes:      0 done, 1 the job failed, 2 bad usage or input\n");
}

/* ---- troff --------------------------------------------------------------------------------------------------------
 */

static void troff(FILE *out, const char *text) {
    if (*text == '.' || *text == '\'') fputs("\\&", out);
    for (; *text; text++) {
        if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\\')
            fputs("\\e", out);
        else
            fputc(*text, out);
    }
}

static void man_option(FILE *out, const fr_option *o) {
    fprintf(out, ".TP\n\\fB\\-\\-");
    troff(out, o->name);
    fputs("\\fR", out);
    if (o->argument) {
        fputs(" \\fI", out);
        troff(out, o->argument);
        fputs("\\fR", out);
    }
    char *help = full_help(o);
    fputc('\n', out);
    troff(out, help);
    fputc('\n', out);
    free(help);
}

static void man_command(FILE *out, const cli_command *c) {
    fprintf(out, ".SS \"forerun %s ", c->name);
    troff(out, c->arguments);
    fputs("\"\n", out);
    troff(out, c->summary);
    fputc('\n', out);
    if (c->details) {
        fputs(".PP\n", out);
        troff(out, c->details);
        fputc('\n', out);
    }
    for (const fr_option *o = c->options; o && o->name; o++) man_option(out, o);
    if (c->experiment) fputs(".PP\nTakes every option of an experiment (below).\n", out);
    fputs(".PP\nExample:\n.PP\n.nf\n.RS\n", out);
    troff(out, c->example);
    fputs("\n.RE\n.fi\n", out);
}

void cli_man(FILE *out) {
    fprintf(out, ".TH FORERUN 1 \"\" \"forerun %s\" \"User commands\"\n.SH NAME\nforerun \\- ", FR_VERSION);
    fputs("how to spread Mixture\\-of\\-Experts prefill over GPUs\n.SH SYNOPSIS\n.B forerun\n.I COMMAND\n[...]\n", out);
    fputs(".SH DESCRIPTION\n", out);
    troff(out,
          "Answers which way of spreading a Mixture-of-Experts model over GPUs is fastest for a model, a machine and "
          "requests, and why: with a discrete-event simulator that needs no GPU, and with an engine that runs the "
          "same plans on real ones.");
    fputs("\n.SH COMMANDS\n", out);
    for (const cli_command *c = cli_commands(); c->name; c++) man_command(out, c);
    fputs(".SH OPTIONS OF AN EXPERIMENT\n", out);
    troff(out, "An experiment file holds the same names as keys of \"base\" and \"cells\".");
    fputc('\n', out);
    const char *group = "";
    for (const fr_option *o = fr_experiment_options(); o->name; o++) {
        if (strcmp(group, o->group) != 0) fprintf(out, ".SS \"%s\"\n", group = o->group);
        man_option(out, o);
    }
    fputs(".SH EXIT STATUS\n0 done; 1 the job failed; 2 bad usage or input.\n", out);
}

/* ---- Markdown -----------------------------------------------------------------------------------------------------
 */

static void markdown_cell(FILE *out, const char *text) {
    for (; *text; text++) fprintf(out, *text == '|' ? "\\%c" : "%c", *text);
}

void cli_reference(FILE *out) {
    const char *group = "";
    for (const fr_option *o = fr_experiment_options(); o->name; o++) {
        if (strcmp(group, o->group) != 0) fprintf(out, "\n**%s**\n\n| option | what it does |\n|---|---|\n", o->group);
        group = o->group;
        fprintf(out, "| `--%s", o->name);
        if (o->argument) {
            fputc(' ', out);
            markdown_cell(out, o->argument);
        }
        fputs("` | ", out);
        char *help = full_help(o);
        markdown_cell(out, help);
        free(help);
        fputs(" |\n", out);
    }
}

/* forerun plot: data from a store, drawn by gnuplot, an external program. */
#include "sim/cli/cli.h"
#include "sim/cli/figures.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

const fr_option cmd_plot_options[] = {
    {"output", "FILE", NULL, "picture to write: .png, .pdf or .svg (also -o)"},
    {"run", "N", NULL, "figures of one run: its number (default: the last with a timeline)"},
    {"rank", "R", NULL, "gantt, twins: the first of the ranks shown (default 0)"},
    {"layer", "L", NULL, "gantt, twins: the first of the two layers shown (default: in the middle)"},
    {"data", "FILE", NULL, "also write the figure's data (tab-separated)"},
    {NULL, NULL, NULL, NULL},
};

extern char **environ;

static const char *terminal_of(const char *path) {
    const char *dot = strrchr(path, '.');
    if (dot && strcmp(dot, ".png") == 0) return "pngcairo size 1280,720 font \"Sans,15\" noenhanced";
    if (dot && strcmp(dot, ".pdf") == 0) return "pdfcairo size 25cm,14cm font \"Sans,14\" noenhanced";
    if (dot && strcmp(dot, ".svg") == 0) return "svg size 1280,720 font \"Sans,18\" noenhanced background \"white\"";
    return NULL;
}

/* The folder that holds the scripts: $FORERUN_DATA/plots, ./plots, or beside the build (as for shipped traces). */
static fr_status find_scripts(const char *name, char *out, size_t size, fr_error *err) {
    const char *data = getenv("FORERUN_DATA");
    char *exe = cli_exe_dir();
    const char *const bases[] = {data, ".", exe};
    static const char *const within[] = {"plots", "plots", "../plots"};
    bool found = false;
    for (int i = 0; i < 3 && !found; i++) {
        fr_text path = {0};
        if (!bases[i]) continue;
        fr_text_add(&path, "%s/%s/%s.gp", bases[i], within[i], name);
        int n = snprintf(out, size, "%s/%s", bases[i], within[i]);
        found = access(path.text, R_OK) == 0 && n > 0 && (size_t)n < size;
        fr_text_free(&path);
    }
    free(exe);
    if (found) return FR_OK;
    return fr_fail(err, FR_FAILED,
                   "plots/%s.gp not found: run where plots/ is, or set FORERUN_DATA to the folder that "
                   "holds it",
                   name);
}

static fr_status run_gnuplot(const char *settings, const char *script, fr_error *err) {
    char *const argv[] = {"gnuplot", (char *)settings, (char *)script, NULL};
    pid_t child;
    int rc = posix_spawnp(&child, "gnuplot", NULL, NULL, argv, environ);
    if (rc == ENOENT)
        return fr_fail(err, FR_FAILED, "gnuplot is not installed (apt-get install gnuplot-nox), or not on the PATH");
    if (rc != 0) return fr_fail(err, FR_FAILED, "cannot start gnuplot: %s", strerror(rc));
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return fr_fail(err, FR_FAILED, "lost gnuplot: %s", strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return fr_fail(err, FR_FAILED, "gnuplot is not installed (apt-get install gnuplot-nox), or not on the PATH");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return fr_fail(err, FR_FAILED, "gnuplot failed on %s (its message is above)", script);
    return FR_OK;
}

/* A text in single quotes for gnuplot. */
static void add_quoted(fr_text *t, const char *name, const char *value) {
    fr_text_add(t, "%s = '", name);
    for (; *value; value++) fr_text_add(t, *value == '\'' ? "''" : "%c", *value);
    fr_text_add(t, "'\n");
}

/* gnuplot takes no notice of a full disk: a picture that is there ends as its format does. */
static fr_status check_whole(const char *picture, const char *out, fr_error *err) {
    static const char *const ends[] = {"IEND", "%%EOF", "</svg>"}; /* .png, .pdf, .svg */
    char tail[33] = "";
    FILE *file = fopen(picture, "rb");
    const bool far = file && fseek(file, -32, SEEK_END) == 0;
    const size_t n = far ? fread(tail, 1, 32, file) : 0;
    bool whole = false;
    if (file) fclose(file);
    for (int i = 0; i < 3; i++) whole = whole || memmem(tail, n, ends[i], strlen(ends[i]));
    return whole ? FR_OK
                 : fr_fail(err, FR_FAILED, "%s: cannot write: the picture is cut short (is the disk full?)", out);
}

static fr_status draw(const cli_figure *f, const fr_text *data, const fr_text *extra, const char *out, fr_error *err) {
    char folder[] = "/tmp/forerun-plot-XXXXXX", scripts[4096], script[4200], path[4200], picture[4200];
    FR_TRY(find_scripts(f->name, scripts, sizeof scripts, err));
    if (!mkdtemp(folder)) return fr_fail(err, FR_FAILED, "cannot make a folder under /tmp: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/data.tsv", folder);
    snprintf(script, sizeof script, "%s/%s.gp", scripts, f->name);
    snprintf(picture, sizeof picture, "%s.part-%ld", out, (long)getpid());
    fr_text settings = {0};
    add_quoted(&settings, "data", path);
    add_quoted(&settings, "folder", scripts);
    add_quoted(&settings, "picture", picture);
    fr_text_add(&settings, "set terminal %s\nset output picture\n%s", terminal_of(out), extra->text ? extra->text : "");
    char settings_path[4200];
    snprintf(settings_path, sizeof settings_path, "%s/settings.gp", folder);
    fr_status status = fr_write_file(path, data->text ? data->text : "", data->length, err);
    if (status == FR_OK) status = fr_write_file(settings_path, settings.text, settings.length, err);
    if (status == FR_OK) status = fr_write_file(picture, "", 0, err); /* gnuplot's own message would be three lines */
    if (status == FR_OK) status = run_gnuplot(settings_path, script, err);
    if (status == FR_OK) status = check_whole(picture, out, err);
    if (status == FR_OK && rename(picture, out) != 0)
        status = fr_fail(err, FR_FAILED, "%s: cannot write: %s", out, strerror(errno));
    fr_text_free(&settings);
    unlink(picture);
    unlink(path);
    unlink(settings_path);
    rmdir(folder);
    return status;
}

static fr_status choose(const cli_args *a, const cli_figure *f, cli_figure_source *s, fr_error *err) {
    static const char *const only_gantt[] = {"rank", "layer"};
    int64_t n = 0;
    for (int i = 0; i < 2; i++)
        if (cli_value(a, only_gantt[i]) && strcmp(f->name, "gantt") != 0 && strcmp(f->name, "twins") != 0)
            return fr_fail(err, FR_BAD_INPUT, "--%s acts on nothing here: it needs the figure gantt or twins",
                           only_gantt[i]);
    if (cli_value(a, "run") && !f->of_run)
        return fr_fail(err, FR_BAD_INPUT, "--run acts on nothing here: %s compares many results", f->name);
    if (f->of_run) FR_TRY(cli_choose_run(s->store, s->path, cli_value(a, "run"), &s->run, err));
    if (cli_value(a, "rank")) {
        FR_TRY(fr_parse_int(cli_value(a, "rank"), 0, 1023, false, "--rank", &n, err));
        s->rank = (int)n;
    }
    if (cli_value(a, "layer")) {
        FR_TRY(fr_parse_int(cli_value(a, "layer"), 0, 1022, false, "--layer", &n, err));
        s->layer = (int)n;
    }
    return FR_OK;
}

static fr_status plot(const cli_args *a, const cli_figure *f, fr_store *store, const char *out, fr_error *err) {
    cli_figure_source s = {.store = store, .path = a->positional[1], .layer = -1};
    FR_TRY(choose(a, f, &s, err));
    fr_text data = {0}, settings = {0};
    fr_status status = f->data(&s, &data, &settings, err);
    const char *copy = cli_value(a, "data");
    if (status == FR_OK && copy) status = fr_write_file(copy, data.text ? data.text : "", data.length, err);
    if (status == FR_OK) status = draw(f, &data, &settings, out, err);
    fr_text_free(&data);
    fr_text_free(&settings);
    return status;
}

fr_status cmd_plot(const cli_args *a, fr_error *err) {
    const cli_figure *f = cli_figures;
    while (f->name && strcmp(f->name, a->positional[0]) != 0) f++;
    if (!f->name)
        return fr_fail(err, FR_BAD_INPUT, "unknown figure '%.64s' (see forerun list figures)", a->positional[0]);
    const char *out = cli_value(a, "output");
    if (!out) return fr_fail(err, FR_BAD_INPUT, "no output: say -o FILE.png, .pdf or .svg");
    if (!terminal_of(out)) return fr_fail(err, FR_BAD_INPUT, "-o %.200s: expected a name in .png, .pdf or .svg", out);
    if (strlen(out) > 4000) return fr_fail(err, FR_BAD_INPUT, "-o: path is too long");
    fr_store *store;
    FR_TRY(fr_store_open(a->positional[1], FR_STORE_READ, &store, err));
    fr_status status = plot(a, f, store, out, err);
    fr_store_close(store);
    return status;
}

/* Lists of runs (--cells): a run that takes its process along leaves the rest of the list whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sim/cli/cli.h"

static char folder[64];

static const char *at(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/forerun-cells-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

/* What a cell does is its name's first letter; a result says which process made it. */
static fr_status pretend(const cli_args *cell, bool *stop, fr_error *err) {
    const char *name = strrchr(cell->json_file, '/') + 1;
    char text[32];
    const int length = snprintf(text, sizeof text, "%d", (int)getpid());
    switch (*name) {
    case 'b': /* bad */
        return fr_fail(err, FR_FAILED, "a bad one");
    case 'l': /* lost */
        *stop = true;
        return fr_fail(err, FR_FAILED, "lost");
    case 'k': /* killed */
        raise(SIGKILL);
        break;
    case 'x': /* left */
        _exit(7);
    default:
        break;
    }
    return fr_write_file(cell->json_file, text, (size_t)length, err);
}

static fr_status play(const char *list, const char *limit, fr_error *err) {
    static const fr_option own[] = {{.name = "cells", .argument = "FILE"},
                                    {.name = "results", .argument = "FOLDER"},
                                    {.name = "limit", .argument = "S"},
                                    {0}};
    const cli_command command = {.name = "run", .options = own, .experiment = true};
    char *words[] = {"run",       "--model", "qwen3-30b-a3b", "--cells",    strdup(at("list")),
                     "--results", folder,    "--limit",       (char *)limit};
    cli_args a = {0};
    assert_int_equal(fr_write_file(at("list"), list, strlen(list), err), FR_OK);
    assert_int_equal(cli_parse(&command, 9, words, &a, err), FR_OK);
    const fr_status s = cli_cells(&a, pretend, err);
    cli_args_free(&a);
    free(words[4]);
    return s;
}

/* The process that made a result; 0 = there is none. */
static int maker(const char *name) {
    char file[64];
    int pid = 0;
    snprintf(file, sizeof file, "%s.json", name);
    FILE *f = fopen(at(file), "r");
    if (!f) return 0;
    if (fscanf(f, "%d", &pid) != 1) pid = -1;
    fclose(f);
    return pid;
}

static void goes_on_behind_the_fallen(void **state) {
    (void)state;
    fr_error err = {0};
    assert_int_equal(
        play("a1 |\nbad | --tokens 2K\n# none\na2 |\nlost |\na3 |\n\nkilled |\na4 |\nxleft |\na5 |\nlost2 |", "100",
             &err),
        FR_FAILED);
    assert_string_equal(err.text, "5 of 10 cells failed");
    assert_true(maker("a1") > 0 && maker("a1") == maker("a2")); /* a failure alone costs no process */
    assert_true(maker("a3") > 0 && maker("a3") != maker("a2"));
    assert_true(maker("a4") > 0 && maker("a4") != maker("a3"));
    assert_true(maker("a5") > 0 && maker("a5") != maker("a4"));
    assert_true(maker("a1") != getpid());
}

static void what_is_there_is_left_out(void **state) {
    (void)state;
    fr_error err = {0};
    const int before = maker("a1");
    assert_int_equal(play("a1 |\nn1 |", "100", &err), FR_OK);
    assert_int_equal(maker("a1"), before);
    assert_true(maker("n1") > 0);
}

static void none_begins_late(void **state) {
    (void)state;
    fr_error err = {0};
    assert_int_equal(play("late |", "0", &err), FR_OK);
    assert_int_equal(maker("late"), 0);
}

static void a_mistake_is_found_first(void **state) {
    (void)state;
    fr_error err = {0};
    assert_int_equal(play("c1 |\nc2 | --tokens none", "100", &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "list, line 2: "));
    assert_int_equal(maker("c1"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_behind_the_fallen),
        cmocka_unit_test(what_is_there_is_left_out),
        cmocka_unit_test(none_begins_late),
        cmocka_unit_test(a_mistake_is_found_first),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

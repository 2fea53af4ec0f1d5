/* Fuzz target: a list of cells (--cells), and with it the values of every option of a run. */
#include "sim/cli/cli.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const fr_option own[] = {{.name = "cells"}, {.name = "results"}, {0}};
    const cli_command command = {.name = "simulate", .options = own, .experiment = true};
    char *list = fr_alloc(size + 1), verb[] = "simulate", model[] = "--model", name[] = "qwen3-30b-a3b";
    char *words[] = {verb, model, name};
    cli_args a = {0};
    fr_error err;
    memcpy(list, data, size);
    if (cli_parse(&command, 3, words, &a, &err) != FR_OK) __builtin_trap();
    if (cli_cells_check(&a, "fuzz.txt", list, &err) != FR_OK &&
        (!memchr(err.text, 0, sizeof err.text) || strncmp(err.text, "fuzz.txt, line ", 15) != 0))
        __builtin_trap();
    cli_args_free(&a);
    free(list);
    return 0;
}

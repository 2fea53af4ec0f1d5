/* Fuzz target: a machine JSON and a what-if list. */
#include "engine/machine.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_machine m;
    fr_error err;
    fr_what_if w;
    if (fr_machine_parse((const char *)data, size, "fuzz.json", &m, &err) == FR_OK && m.gpus % m.gpus_per_host)
        __builtin_trap();
    char *text = fr_alloc(size + 1);
    memcpy(text, data, size);
    if (fr_what_if_parse(text, &w, &err) == FR_OK && !(w.link > 0)) __builtin_trap();
    free(text);
    return 0;
}

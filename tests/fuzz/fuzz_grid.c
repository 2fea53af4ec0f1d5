/* Fuzz target: an experiment or sweep file, and its first and last cells. */
#include "sim/grid.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_grid *g;
    fr_error err;
    fr_experiment e;
    if (fr_grid_parse((const char *)data, size, "fuzz.json", &g, &err) != FR_OK) {
        if (!memchr(err.text, 0, sizeof err.text) || !err.text[0]) __builtin_trap();
        return 0;
    }
    const int64_t count = fr_grid_count(g);
    if (count < 0 || count > FR_GRID_MAX_CELLS) __builtin_trap();
    for (int64_t i = 0; i < count && i < 3; i++) (void)fr_grid_cell(g, i, &e, &err);
    if (count > 0) (void)fr_grid_cell(g, count - 1, &e, &err);
    fr_grid_close(g);
    return 0;
}

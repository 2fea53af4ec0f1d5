/* Fuzz target: journals of calibrate: resumed from, merged into a table (which must be one), and names for --only. */
#include "engine/calibrate/calibrate.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void open_grid(const fr_machine *m, const char *only, fr_cal_grid **out) {
    const fr_cal_request q = {.mode = FR_CAL_QUICK, .devices = 1, .limit_s = 60, .only = only};
    fr_error err;
    *out = NULL;
    if (fr_cal_grid_open(&q, m, out, &err) != FR_OK && !only) __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static fr_cal_grid *grid;
    static fr_machine m;
    fr_error err;
    if (!grid) {
        if (fr_machine_load("h200x1", &m, &err) != FR_OK) __builtin_trap();
        open_grid(&m, NULL, &grid);
    }
    const char *text = (const char *)data, *name = "fuzz.txt";
    uint32_t found;
    fr_text table = {0};
    (void)fr_cal_grid_resume(grid, text, size, name, 0, &found, &err);
    if (fr_cal_merge(&text, &size, &name, 1, false, &table, &err) == FR_OK) {
        int rows;
        if (fr_cost_parse(table.text, table.length, "merged.txt", &rows, &err) != FR_OK) __builtin_trap();
    }
    fr_text_free(&table);
    char only[64];
    const size_t n = size < sizeof only - 1 ? size : sizeof only - 1;
    memcpy(only, data, n);
    only[n] = 0;
    if (size % 16 == 0) { /* a grid takes a while */
        fr_cal_grid *part;
        open_grid(&m, only, &part);
        fr_cal_grid_close(part);
    }
    return 0;
}

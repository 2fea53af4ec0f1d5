/*
 * grid: an experiment's JSON as a numbered list of cells. The same file serves `simulate` (its first cell), `sweep`
 * (all) and `run`.
 *
 *     { "title": "which layout is fastest", "about": "free text",
 *       "base":  { "model": "qwen3-235b-a22b", "machine": "h200x8", "precision": "fp8" },
 *       "cells": [ { "strategy": ["tp", "ep", "asyncep"], "tokens": [4096, 16384] },
 *                  { "strategy": "pp", "micro-batches": [4, 8], "tokens": 16384 } ] }
 *
 * Keys of base and cells are the long flag names of the command line; a list makes one cell per value (all combinations
 * within an object of `cells`, the last key turning fastest). A switch takes true or false. Without `cells` the base is
 * the only cell.
 */
#ifndef FR_GRID_H
#define FR_GRID_H

#include "engine/experiment.h"

#define FR_GRID_MAX_CELLS 10000000

typedef struct fr_grid fr_grid;

fr_status fr_grid_open(const char *path, fr_grid **out, fr_error *err);
fr_status fr_grid_parse(const char *text, size_t length, const char *where, fr_grid **out, fr_error *err);
void fr_grid_close(fr_grid *g);
const char *fr_grid_title(const fr_grid *g);
int64_t fr_grid_count(const fr_grid *g);
/* The experiment of cell 0 <= index < count: defaults, then base, then the cell's own values. */
fr_status fr_grid_cell(const fr_grid *g, int64_t index, fr_experiment *out, fr_error *err);

#endif

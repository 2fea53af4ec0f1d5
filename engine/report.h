/*
 * report: a result as one JSON object (simulate --json, run --json, the store) and as a table for people. The keys are
 * documented in the README and never renamed silently.
 */
#ifndef FR_REPORT_H
#define FR_REPORT_H

#include "engine/experiment.h"
#include "engine/plan/critical.h"

struct json_t;

/*
 * Everything about a cell and its result; `r` NULL = it was not played (does not fit): timings are null. In batch mode
 * forward_s and its parts are per forward, rounded to whole ns so that forward_s is their sum exactly; in trace mode
 * the parts add up to elapsed_s. Contains nothing that differs between equal runs (no wall time).
 */
struct json_t *fr_report_json(const fr_setup *s, const fr_result *r);
struct json_t *fr_report_memory_json(const fr_memory *m);
/* The critical path: totals by resource and one row per layer, in seconds. */
struct json_t *fr_report_critical_json(const fr_critical *c);
/* Text form, ending in a newline; NaN becomes null before it gets here. The caller frees it; `root` is released. */
char *fr_report_dump(struct json_t *root);

/* Tables for people. */
void fr_report_layout(const fr_setup *s, fr_text *out);
void fr_report_memory(const fr_setup *s, fr_text *out);
void fr_report_result(const fr_setup *s, const fr_result *r, fr_text *out);
/* Per forward, in us. `every`: each layer (those that spend alike are one line), else the mean, the heaviest and the
 * lightest one. */
void fr_report_critical(const fr_critical *c, int64_t forwards, bool every, fr_text *out);

/* fr_result.parts for one forward: cut at whole ns so that they add up to elapsed exactly. */
void fr_parts_per_forward(const fr_parts *all, int64_t forwards, fr_parts *one);

#endif

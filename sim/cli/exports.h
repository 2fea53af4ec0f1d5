/*
 * exports: a timeline as files for other programs.
 */
#ifndef FR_CLI_EXPORTS_H
#define FR_CLI_EXPORTS_H

#include "engine/store.h"

fr_status export_perfetto(const fr_plan *plan, const fr_timeline *spans, const char *path, fr_error *err);
fr_status export_csv(const fr_plan *plan, const fr_timeline *spans, const char *path, fr_error *err);

#endif

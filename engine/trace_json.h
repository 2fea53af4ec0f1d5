/*
 * trace_json: a timeline as a file for people's eyes and tools: Chrome's trace JSON, which Perfetto (ui.perfetto.dev)
 * and chrome://tracing open, and CSV. Written a span at a time, so a long timeline needs no second copy in memory, and
 * put in place only when whole.
 *
 * Chrome trace: a process per rank, a thread per lane, one complete event ("X") per span with the op's structural id,
 * bytes, FLOPs, wait and provenance as arguments. Where an op became ready last by an op of another lane or rank (the
 * span's cause), a flow arrow ("s" to "f") leads there from it. Times are microseconds with three decimals: the exact
 * ns. Source: "Trace Event Format", the public description of Chrome's trace viewer.
 */
#ifndef FR_TRACE_JSON_H
#define FR_TRACE_JSON_H

#include "engine/plan/plan.h"
#include "engine/timeline.h"

/* `plan` names the lanes; only ranks and lanes of it are read. Spans come out in the order of *t. FR_FAILED when the
 * file cannot be written; then there is no file, or the old one. */
fr_status fr_trace_json_write(const char *path, const fr_plan *plan, const fr_timeline *t, fr_error *err);

/* op,forward,rank,lane,layer,kind,micro,sub,ready_ns,start_ns,end_ns,bytes,flops,cause,provenance: as the store's
 * spans. */
fr_status fr_trace_csv_write(const char *path, const fr_plan *plan, const fr_timeline *t, fr_error *err);

#endif

/*
 * store: results in SQLite, in transactions, so that nothing is lost or half-written when a process is killed at any
 * point (WAL journal).
 *
 * Schema (version 1). All times are ns on the executor's clock, ids of ops are structural (engine/plan/plan.h).
 *
 *   info      key, value: 'schema', 'program' and, where there are cells, 'source' (fr_source_hash: what played them)
 *
 *   runs      id, kind ('simulate' | 'run'), created (UTC), version, cost_hash, cost_source,
 *             config (JSON: everything needed to repeat it), seed, result (JSON),
 *             then the columns of engine/columns.h
 *
 *   forwards  run, forward, unit, release_ns, start_ns, end_ns, last_rank,
 *             compute_ns, exposed_comm_ns, wait_ns, bubble_ns, idle_ns, hidden_comm_ns,
 *             tokens, cached, flops, low_ns, high_ns
 *
 *   spans     run, op, forward, rank, lane, layer (null outside layers), kind, micro, sub,
 *             ready_ns, start_ns, end_ns, bytes, flops, cause (op), provenance
 *
 *   requests  run, id, arrival_ns, start_ns, answer_ns, ttft_ns, tokens, cached, queue, source
 *
 *   attached  run, name, text: 'routing' (engine/routing.h, recorded), 'anchors' (rows of kernels/measured/FORMAT.md
 *             that were measured on the same machine at the time of the run)
 *
 *   cells     key (hash of config, program version and cost tables; primary key), cell (number in its grid),
 *             status ('done' | 'unfit' | 'refused' | 'failed'), reason, config (JSON), result (JSON),
 *             then the columns of engine/columns.h
 *
 * One writer at a time: others wait up to 20 s for it. Readers never wait.
 */
#ifndef FR_STORE_H
#define FR_STORE_H

#include "engine/columns.h"
#include "engine/plan/plan.h"
#include "engine/timeline.h"

#define FR_STORE_SCHEMA 1

typedef struct fr_store fr_store;

typedef enum { FR_STORE_READ, FR_STORE_WRITE } fr_store_mode; /* write creates the file where there is none */

/* FR_BAD_INPUT where the file is no database of ours, has a newer schema or, for writing, other result columns. */
fr_status fr_store_open(const char *path, fr_store_mode mode, fr_store **out, fr_error *err);
void fr_store_close(fr_store *s);

fr_status fr_store_begin(fr_store *s, fr_error *err);
fr_status fr_store_commit(fr_store *s, fr_error *err);
void fr_store_rollback(fr_store *s);

/* Adds a run; `config` and `result` are JSON texts. *id receives its number. */
fr_status fr_store_add_run(fr_store *s, const char *kind, const fr_setup *setup, const fr_result *r, const char *config,
                           const char *result, int64_t *id, fr_error *err);
fr_status fr_store_add_forwards(fr_store *s, int64_t run, const fr_forward_record *records, int64_t count,
                                fr_error *err);
fr_status fr_store_add_requests(fr_store *s, int64_t run, const fr_request_record *records, int64_t count,
                                fr_error *err);
fr_status fr_store_add_spans(fr_store *s, int64_t run, const fr_plan *plan, const fr_timeline *t, fr_error *err);

fr_status fr_store_attach(fr_store *s, int64_t run, const char *name, const char *text, fr_error *err);

/*
 * The spans of a run as they were stored, with a plan that names their lanes and holds nothing else (ranks, lanes in
 * order of rank and name): what the trace and critical-path writers take. FR_BAD_INPUT when the run has no spans.
 */
fr_status fr_store_load_spans(fr_store *s, int64_t run, fr_plan **plan, fr_timeline *t, fr_error *err);

/* A sweep's cell. `values` NULL (refused cells): columns stay null. A key that is there already is left as it is. */
typedef struct {
    char key[20];
    int64_t cell;
    const char *status, *reason, *config, *result;
    const fr_value *values;
} fr_cell;
fr_status fr_store_add_cell(fr_store *s, const fr_cell *cell, fr_error *err);
/*
 * Before cells are added: those that `source` (fr_source_hash) did not play are refused by name (FR_BAD_INPUT), or with
 * `anew` deleted, *dropped of them. A file without cells becomes this source's.
 */
fr_status fr_store_claim_cells(fr_store *s, const char *source, bool anew, int64_t *dropped, fr_error *err);
bool fr_store_has_cell(fr_store *s, const char *key);

/*
 * Runs one read-only statement (FR_BAD_INPUT for anything else) and hands each row over as texts (NULL = null); a false
 * return stops. For reports, figures and exports; `bind` (NULL = none) is bound to ?1 as text.
 */
typedef bool (*fr_store_row)(void *context, int columns, const char *const *values, const char *const *names);
fr_status fr_store_query(fr_store *s, const char *sql, const char *bind, fr_store_row row, void *context,
                         fr_error *err);
/* The query's rows as CSV with a heading line (RFC 4180 quoting); nothing at all when there are no rows. */
fr_status fr_store_csv(fr_store *s, const char *sql, fr_text *out, fr_error *err);

#endif

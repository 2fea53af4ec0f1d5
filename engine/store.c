#include "engine/store.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct fr_store {
    sqlite3 *db;
    fr_store_mode mode;
    char *path;
    sqlite3_stmt *add_cell, *has_cell;
};

static fr_status fail(const fr_store *s, fr_error *err, const char *doing) {
    return fr_fail(err, FR_FAILED, "%s: cannot %s: %s", s->path, doing, sqlite3_errmsg(s->db));
}

static fr_status run_sql(fr_store *s, const char *sql, const char *doing, fr_error *err) {
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? FR_OK : fail(s, err, doing);
}

/*
 * Statements whose wait for another process SQLite ends at once instead of by the busy timeout (a change of journal
 * mode; a lock whose holder waits for us in turn): tried again for the same 20 s.
 */
static fr_status run_patiently(fr_store *s, const char *sql, const char *doing, fr_error *err) {
    for (int i = 0; i < 2000; i++) {
        int rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);
        if (rc == SQLITE_OK) return FR_OK;
        if (rc != SQLITE_BUSY && rc != SQLITE_LOCKED) break;
        if (!sqlite3_get_autocommit(s->db)) sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
        sqlite3_sleep(10);
    }
    return fail(s, err, doing);
}

/* ---- schema
 * ---------------------------------------------------------------------------------------------------------------- */

static void add_columns(fr_text *sql) {
    static const char *const types[] = {"TEXT", "INTEGER", "REAL"};
    for (const fr_column *c = fr_result_columns(); c->name; c++)
        fr_text_add(sql, ", \"%s\" %s", c->name, types[c->type]);
}

static fr_status create_schema(fr_store *s, fr_error *err) {
    fr_text sql = {0};
    fr_text_add(&sql,
                "BEGIN IMMEDIATE;"
                "CREATE TABLE IF NOT EXISTS info(key TEXT PRIMARY KEY, value TEXT);"
                "INSERT OR IGNORE INTO info VALUES('schema','%d'),('program','forerun %s');",
                FR_STORE_SCHEMA, FR_VERSION);
    fr_text_add(&sql, "CREATE TABLE IF NOT EXISTS runs(id INTEGER PRIMARY KEY, kind TEXT, created TEXT, version TEXT, "
                      "cost_hash TEXT, cost_source TEXT, config TEXT, seed INTEGER, result TEXT");
    add_columns(&sql);
    fr_text_add(
        &sql,
        ");CREATE TABLE IF NOT EXISTS forwards(run INTEGER, forward INTEGER, unit INTEGER, release_ns INTEGER, "
        "start_ns INTEGER, end_ns INTEGER, last_rank INTEGER, compute_ns INTEGER, exposed_comm_ns INTEGER, wait_ns "
        "INTEGER, bubble_ns INTEGER, idle_ns INTEGER, hidden_comm_ns INTEGER, tokens INTEGER, cached INTEGER, "
        "flops REAL, low_ns INTEGER, high_ns INTEGER);"
        "CREATE TABLE IF NOT EXISTS spans(run INTEGER, op TEXT, forward INTEGER, rank INTEGER, lane TEXT, layer "
        "INTEGER, kind TEXT, micro INTEGER, sub INTEGER, ready_ns INTEGER, start_ns INTEGER, end_ns INTEGER, bytes "
        "REAL, flops REAL, cause TEXT, provenance TEXT);"
        "CREATE INDEX IF NOT EXISTS spans_by_run ON spans(run, start_ns);"
        "CREATE TABLE IF NOT EXISTS requests(run INTEGER, id INTEGER, arrival_ns INTEGER, start_ns INTEGER, "
        "answer_ns INTEGER, ttft_ns INTEGER, tokens INTEGER, cached INTEGER, queue INTEGER, source INTEGER);"
        "CREATE INDEX IF NOT EXISTS requests_by_run ON requests(run);"
        "CREATE TABLE IF NOT EXISTS attached(run INTEGER, name TEXT, text TEXT);"
        "CREATE TABLE IF NOT EXISTS cells(key TEXT PRIMARY KEY, cell INTEGER, status TEXT, reason TEXT, config TEXT, "
        "result TEXT");
    add_columns(&sql);
    fr_text_add(&sql, ") WITHOUT ROWID;COMMIT;");
    fr_status status = run_patiently(s, sql.text, "create tables", err);
    fr_text_free(&sql);
    return status;
}

/* Whether the file is ours: an empty file is (in write mode), one without our info table is not. */
static fr_status check_schema(fr_store *s, fr_store_mode mode, fr_error *err) {
    sqlite3_stmt *q = NULL;
    int tables = -1, rc = SQLITE_BUSY;
    for (int i = 0; i < 2000 && (rc == SQLITE_BUSY || rc == SQLITE_LOCKED); i++) {
        if (i) sqlite3_sleep(10); /* as run_patiently: another process is making the file */
        rc = sqlite3_prepare_v2(s->db, "SELECT count(*) FROM sqlite_master", -1, &q, NULL);
        if (rc == SQLITE_OK) rc = sqlite3_step(q);
        if (rc == SQLITE_ROW) tables = sqlite3_column_int(q, 0);
        sqlite3_finalize(q);
        q = NULL;
    }
    if (tables < 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: expected a forerun result file (SQLite): %s", s->path,
                       sqlite3_errmsg(s->db));
    if (tables == 0 && mode == FR_STORE_WRITE) return FR_OK;
    int schema = -1;
    q = NULL;
    if (sqlite3_prepare_v2(s->db, "SELECT value FROM info WHERE key='schema'", -1, &q, NULL) == SQLITE_OK &&
        sqlite3_step(q) == SQLITE_ROW)
        schema = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    if (schema < 1) return fr_fail(err, FR_BAD_INPUT, "%s: a database, but not one of forerun's results", s->path);
    if (schema > FR_STORE_SCHEMA)
        return fr_fail(err, FR_BAD_INPUT, "%s: written by a newer forerun (schema %d, this one reads %d)", s->path,
                       schema, FR_STORE_SCHEMA);
    return FR_OK;
}

/* Rows are written by position, so a file made with other result columns must not be written to. */
static fr_status check_columns(fr_store *s, const char *table, int fixed, fr_error *err) {
    char sql[64];
    sqlite3_stmt *q = NULL;
    snprintf(sql, sizeof sql, "SELECT * FROM %s LIMIT 0", table);
    if (sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) != SQLITE_OK) return fail(s, err, "read its columns");
    int count = sqlite3_column_count(q);
    bool same = count == fixed + fr_result_column_count();
    for (int i = fixed; i < count && same; i++)
        same = strcmp(sqlite3_column_name(q, i), fr_result_columns()[i - fixed].name) == 0;
    sqlite3_finalize(q);
    if (same) return FR_OK;
    return fr_fail(err, FR_BAD_INPUT, "%s: written by a forerun with other result columns; write to a new file",
                   s->path);
}

fr_status fr_store_open(const char *path, fr_store_mode mode, fr_store **out, fr_error *err) {
    fr_store *s = fr_alloc(sizeof *s);
    s->path = fr_strdup(path);
    s->mode = mode;
    const bool there = access(path, F_OK) == 0;
    int flags = mode == FR_STORE_WRITE ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY;
    fr_status status = FR_OK;
    if (sqlite3_open_v2(path, &s->db, flags, NULL) != SQLITE_OK) {
        const int why = s->db ? sqlite3_system_errno(s->db) : ENOMEM;
        status = fr_fail(err, FR_BAD_INPUT, "%s: cannot open: %s", path, why ? strerror(why) : sqlite3_errmsg(s->db));
    }
    if (status == FR_OK) {
        sqlite3_busy_timeout(s->db, 20000);
        status = check_schema(s, mode, err);
    }
    if (status == FR_OK && mode == FR_STORE_WRITE)
        status = run_patiently(s, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;", "set up the journal", err);
    if (status == FR_OK && mode == FR_STORE_WRITE) status = create_schema(s, err);
    if (status == FR_OK && mode == FR_STORE_WRITE) status = check_columns(s, "runs", 9, err);
    if (status == FR_OK && mode == FR_STORE_WRITE) status = check_columns(s, "cells", 6, err);
    if (status != FR_OK) {
        fr_store_close(s);
        struct stat now; /* what could not be begun leaves nothing; what another process has begun since stays */
        if (mode == FR_STORE_WRITE && !there && stat(path, &now) == 0 && now.st_size == 0) unlink(path);
        return status;
    }
    *out = s;
    return FR_OK;
}

void fr_store_close(fr_store *s) {
    if (!s) return;
    sqlite3_finalize(s->add_cell);
    sqlite3_finalize(s->has_cell);
    if (s->mode == FR_STORE_WRITE && s->db) {
        /* The last writer leaves one file: readers of a WAL database would make -wal and -shm beside it again. While
         * others have it open this is refused at once, and they do it. */
        sqlite3_busy_timeout(s->db, 0);
        sqlite3_exec(s->db, "PRAGMA journal_mode=DELETE", NULL, NULL, NULL);
    }
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

fr_status fr_store_begin(fr_store *s, fr_error *err) {
    return run_patiently(s, "BEGIN IMMEDIATE", "begin a transaction", err);
}
fr_status fr_store_commit(fr_store *s, fr_error *err) {
    return run_sql(s, "COMMIT", "commit", err);
}
void fr_store_rollback(fr_store *s) {
    sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
}

/* ---- writing
 * --------------------------------------------------------------------------------------------------------------- */

static void bind_text(sqlite3_stmt *q, int at, const char *text) {
    if (text)
        sqlite3_bind_text(q, at, text, -1, SQLITE_STATIC);
    else
        sqlite3_bind_null(q, at);
}

static void bind_values(sqlite3_stmt *q, int at, const fr_value *values) {
    for (int i = 0; i < fr_result_column_count(); i++) {
        const fr_value *v = values ? &values[i] : NULL;
        if (!v || (v->type == FR_COLUMN_REAL && !isfinite(v->real)))
            sqlite3_bind_null(q, at + i);
        else if (v->type == FR_COLUMN_TEXT)
            bind_text(q, at + i, v->text);
        else if (v->type == FR_COLUMN_INT)
            sqlite3_bind_int64(q, at + i, v->integer);
        else
            sqlite3_bind_double(q, at + i, v->real);
    }
}

/* "INSERT ... VALUES(?,?,...)" with `fixed` leading parameters and the result columns. */
static fr_status prepare_insert(fr_store *s, const char *head, int fixed, bool columns, sqlite3_stmt **q,
                                fr_error *err) {
    fr_text sql = {0};
    int n = fixed + (columns ? fr_result_column_count() : 0);
    fr_text_add(&sql, "%s VALUES(", head);
    for (int i = 0; i < n; i++) fr_text_add(&sql, i ? ",?" : "?");
    fr_text_add(&sql, ")");
    int rc = sqlite3_prepare_v2(s->db, sql.text, -1, q, NULL);
    fr_text_free(&sql);
    return rc == SQLITE_OK ? FR_OK : fail(s, err, "prepare an insert");
}

static fr_status step(fr_store *s, sqlite3_stmt *q, fr_error *err) {
    fr_status status = sqlite3_step(q) == SQLITE_DONE ? FR_OK : fail(s, err, "insert");
    sqlite3_reset(q);
    return status;
}

fr_status fr_store_add_run(fr_store *s, const char *kind, const fr_setup *setup, const fr_result *r, const char *config,
                           const char *result, int64_t *id, fr_error *err) {
    char created[32], hash[20];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", &utc);
    snprintf(hash, sizeof hash, "%016" PRIx64, setup->cost ? fr_cost_hash(setup->cost) : 0);
    fr_value *values = fr_alloc((size_t)fr_result_column_count() * sizeof *values);
    fr_result_row(setup, r, values);
    sqlite3_stmt *q = NULL;
    fr_status status = prepare_insert(s, "INSERT INTO runs", 9, true, &q, err);
    if (status == FR_OK) {
        bind_text(q, 2, kind);
        bind_text(q, 3, created);
        bind_text(q, 4, FR_VERSION);
        bind_text(q, 5, hash);
        bind_text(q, 6, setup->cost ? fr_cost_source(setup->cost) : NULL);
        bind_text(q, 7, config);
        sqlite3_bind_int64(q, 8, (int64_t)setup->experiment.seed);
        bind_text(q, 9, result);
        bind_values(q, 10, values);
        status = step(s, q, err);
        *id = sqlite3_last_insert_rowid(s->db);
    }
    sqlite3_finalize(q);
    free(values);
    return status;
}

static void bind_ints(sqlite3_stmt *q, const int64_t *values, int count) {
    for (int i = 0; i < count; i++) sqlite3_bind_int64(q, i + 1, values[i]);
}

fr_status fr_store_add_forwards(fr_store *s, int64_t run, const fr_forward_record *records, int64_t count,
                                fr_error *err) {
    sqlite3_stmt *q = NULL;
    fr_status status = prepare_insert(s, "INSERT INTO forwards", 18, false, &q, err);
    for (int64_t i = 0; i < count && status == FR_OK; i++) {
        const fr_forward_record *r = &records[i];
        const fr_parts *p = &r->parts;
        const int64_t ints[15] = {run,       r->forward,   r->unit,        r->release,      r->start,
                                  r->end,    r->last_rank, p->compute,     p->exposed_comm, p->wait,
                                  p->bubble, p->idle,      p->hidden_comm, r->tokens,       r->cached};
        bind_ints(q, ints, 15);
        sqlite3_bind_double(q, 16, r->flops);
        sqlite3_bind_int64(q, 17, r->low);
        sqlite3_bind_int64(q, 18, r->high);
        status = step(s, q, err);
    }
    sqlite3_finalize(q);
    return status;
}

fr_status fr_store_add_requests(fr_store *s, int64_t run, const fr_request_record *records, int64_t count,
                                fr_error *err) {
    sqlite3_stmt *q = NULL;
    fr_status status = prepare_insert(s, "INSERT INTO requests", 10, false, &q, err);
    for (int64_t i = 0; i < count && status == FR_OK; i++) {
        const fr_request_record *r = &records[i];
        const int64_t ints[10] = {run,       r->id,     r->arrival, r->start, r->answer, r->answer - r->arrival,
                                  r->tokens, r->cached, r->queue,   r->source};
        bind_ints(q, ints, 10);
        status = step(s, q, err);
    }
    sqlite3_finalize(q);
    return status;
}

/* The fields packed into a structural id; the inverse of fr_op_id. */
static void unpack_id(uint64_t id, int64_t *forward, int64_t *layer, int64_t *micro, int64_t *sub) {
    *forward = (int64_t)(id >> 44);
    *layer = (int64_t)(id >> 24 & 0x3ff);
    *micro = (int64_t)(id >> 10 & 0xff);
    *sub = (int64_t)(id & 0x3ff);
}

fr_status fr_store_add_spans(fr_store *s, int64_t run, const fr_plan *plan, const fr_timeline *t, fr_error *err) {
    sqlite3_stmt *q = NULL;
    fr_status status = prepare_insert(s, "INSERT INTO spans", 16, false, &q, err);
    for (uint32_t i = 0; i < t->count && status == FR_OK; i++) {
        const fr_span *p = &t->spans[i];
        int64_t forward, layer, micro, sub;
        unpack_id(p->id, &forward, &layer, &micro, &sub);
        char op[48], cause[48] = "";
        fr_op_id_text(p->id, op);
        if (p->cause) fr_op_id_text(p->cause, cause);
        sqlite3_bind_int64(q, 1, run);
        sqlite3_bind_text(q, 2, op, -1, SQLITE_TRANSIENT);
        sqlite3_bind_int64(q, 3, forward);
        sqlite3_bind_int64(q, 4, p->rank);
        bind_text(q, 5, plan->lanes[p->lane].name);
        if (layer == FR_NO_LAYER)
            sqlite3_bind_null(q, 6);
        else
            sqlite3_bind_int64(q, 6, layer);
        bind_text(q, 7, fr_op_name((fr_op_kind)p->kind));
        sqlite3_bind_int64(q, 8, micro);
        sqlite3_bind_int64(q, 9, sub);
        sqlite3_bind_int64(q, 10, p->ready);
        sqlite3_bind_int64(q, 11, p->start);
        sqlite3_bind_int64(q, 12, p->end);
        sqlite3_bind_double(q, 13, p->bytes);
        sqlite3_bind_double(q, 14, p->flops);
        if (cause[0])
            sqlite3_bind_text(q, 15, cause, -1, SQLITE_TRANSIENT);
        else
            sqlite3_bind_null(q, 15);
        bind_text(q, 16, fr_provenance_name((fr_provenance)p->provenance));
        status = step(s, q, err);
    }
    sqlite3_finalize(q);
    return status;
}

fr_status fr_store_attach(fr_store *s, int64_t run, const char *name, const char *text, fr_error *err) {
    sqlite3_stmt *q = NULL;
    FR_TRY(prepare_insert(s, "INSERT INTO attached", 3, false, &q, err));
    sqlite3_bind_int64(q, 1, run);
    bind_text(q, 2, name);
    bind_text(q, 3, text);
    fr_status status = step(s, q, err);
    sqlite3_finalize(q);
    return status;
}

fr_status fr_store_add_cell(fr_store *s, const fr_cell *cell, fr_error *err) {
    if (!s->add_cell) FR_TRY(prepare_insert(s, "INSERT OR IGNORE INTO cells", 6, true, &s->add_cell, err));
    sqlite3_stmt *q = s->add_cell;
    bind_text(q, 1, cell->key);
    sqlite3_bind_int64(q, 2, cell->cell);
    bind_text(q, 3, cell->status);
    bind_text(q, 4, cell->reason && cell->reason[0] ? cell->reason : NULL);
    bind_text(q, 5, cell->config);
    bind_text(q, 6, cell->result);
    bind_values(q, 7, cell->values);
    return step(s, q, err);
}

/* The first value of the first row, as text; `none` where there is none. */
static void ask(fr_store *s, const char *sql, const char *none, char *out, size_t size) {
    sqlite3_stmt *q = NULL;
    snprintf(out, size, "%s", none);
    if (sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW &&
        sqlite3_column_text(q, 0))
        snprintf(out, size, "%s", (const char *)sqlite3_column_text(q, 0));
    sqlite3_finalize(q);
}

fr_status fr_store_claim_cells(fr_store *s, const char *source, bool anew, int64_t *dropped, fr_error *err) {
    char have[64], count[32];
    fr_text sql = {0};
    *dropped = 0;
    ask(s, "SELECT value FROM info WHERE key='source'", "unknown", have, sizeof have);
    if (strcmp(have, source) == 0) return FR_OK;
    ask(s, "SELECT count(*) FROM cells", "0", count, sizeof count);
    *dropped = atoll(count);
    if (*dropped > 0 && !anew)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: its %" PRId64
                       " cells were played by other code or tables (%s, this is %s): play them again "
                       "with --anew, or name another --db",
                       s->path, *dropped, have, source);
    fr_text_add(&sql, "BEGIN IMMEDIATE;DELETE FROM cells;INSERT OR REPLACE INTO info VALUES('source','%s');COMMIT;",
                source);
    const fr_status status = run_patiently(s, sql.text, "claim cells", err);
    fr_text_free(&sql);
    return status;
}

bool fr_store_has_cell(fr_store *s, const char *key) {
    if (!s->has_cell &&
        sqlite3_prepare_v2(s->db, "SELECT 1 FROM cells WHERE key=?", -1, &s->has_cell, NULL) != SQLITE_OK)
        return false;
    bind_text(s->has_cell, 1, key);
    bool found = sqlite3_step(s->has_cell) == SQLITE_ROW;
    sqlite3_reset(s->has_cell);
    return found;
}

/* ---- reading
 * --------------------------------------------------------------------------------------------------------------- */

fr_status fr_store_query(fr_store *s, const char *sql, const char *bind, fr_store_row row, void *context,
                         fr_error *err) {
    sqlite3_stmt *q = NULL;
    const char *rest = NULL;
    if (sqlite3_prepare_v2(s->db, sql, -1, &q, &rest) != SQLITE_OK) return fail(s, err, "query");
    if (!q || !sqlite3_stmt_readonly(q) || rest[strspn(rest, " \t\r\n;")]) {
        sqlite3_finalize(q);
        return fr_fail(err, FR_BAD_INPUT, "%s: expected one query that only reads", s->path);
    }
    if (bind) bind_text(q, 1, bind);
    int columns = sqlite3_column_count(q), rc;
    const char **values = fr_alloc((size_t)columns * sizeof *values),
               **names = fr_alloc((size_t)columns * sizeof *names);
    for (int i = 0; i < columns; i++) names[i] = sqlite3_column_name(q, i);
    while ((rc = sqlite3_step(q)) == SQLITE_ROW) {
        for (int i = 0; i < columns; i++) values[i] = (const char *)sqlite3_column_text(q, i);
        if (!row(context, columns, values, names)) {
            rc = SQLITE_DONE;
            break;
        }
    }
    fr_status status = rc == SQLITE_DONE ? FR_OK : fail(s, err, "query");
    sqlite3_finalize(q);
    free(values);
    free(names);
    return status;
}

typedef struct {
    fr_text *out;
    bool headed;
} csv;

static void csv_line(fr_text *out, int columns, const char *const *values) {
    for (int i = 0; i < columns; i++) {
        const char *v = values[i] ? values[i] : "";
        if (i) fr_text_add(out, ",");
        if (!strpbrk(v, ",\"\n\r")) {
            fr_text_add(out, "%s", v);
            continue;
        }
        fr_text_add(out, "\"");
        for (; *v; v++) fr_text_add(out, *v == '"' ? "\"\"" : "%c", *v);
        fr_text_add(out, "\"");
    }
    fr_text_add(out, "\n");
}

static bool csv_row(void *context, int columns, const char *const *values, const char *const *names) {
    csv *c = context;
    if (!c->headed) csv_line(c->out, columns, names);
    c->headed = true;
    csv_line(c->out, columns, values);
    return true;
}

fr_status fr_store_csv(fr_store *s, const char *sql, fr_text *out, fr_error *err) {
    csv c = {out, false};
    return fr_store_query(s, sql, NULL, csv_row, &c, err);
}

/* ---- spans back from the file ------------------------------------------------------------------------------------ */

static fr_status load_lanes(fr_store *s, int64_t run, fr_plan **plan, fr_error *err) {
    sqlite3_stmt *q = NULL;
    if (sqlite3_prepare_v2(s->db,
                           "SELECT max(rank), min(rank), count(DISTINCT rank || ' ' || lane) FROM spans WHERE run=?",
                           -1, &q, NULL) != SQLITE_OK)
        return fail(s, err, "read spans");
    sqlite3_bind_int64(q, 1, run);
    bool any = sqlite3_step(q) == SQLITE_ROW && sqlite3_column_type(q, 0) != SQLITE_NULL;
    int64_t ranks = any ? sqlite3_column_int64(q, 0) + 1 : 0, lowest = any ? sqlite3_column_int64(q, 1) : 0;
    int64_t lanes = any ? sqlite3_column_int64(q, 2) : 0;
    sqlite3_finalize(q);
    if (!any) return fr_fail(err, FR_BAD_INPUT, "%s: run %" PRId64 " has no spans stored", s->path, run);
    if (lowest < 0 || ranks > INT16_MAX || lanes >= UINT16_MAX)
        return fr_fail(err, FR_BAD_INPUT, "%s: run %" PRId64 " has damaged spans", s->path, run);
    if (sqlite3_prepare_v2(s->db, "SELECT DISTINCT rank, lane FROM spans WHERE run=? ORDER BY rank, lane", -1, &q,
                           NULL) != SQLITE_OK)
        return fail(s, err, "read spans");
    sqlite3_bind_int64(q, 1, run);
    *plan = fr_plan_new((int)ranks, (int)ranks);
    while (sqlite3_step(q) == SQLITE_ROW) {
        const char *name = (const char *)sqlite3_column_text(q, 1);
        fr_plan_lane(*plan, sqlite3_column_int(q, 0), FR_LANE_COMPUTE, name ? name : "", false);
    }
    sqlite3_finalize(q);
    return FR_OK;
}

static bool find_lane(const fr_plan *p, int rank, const char *name, uint16_t *lane) {
    for (uint32_t l = 0; l < p->lanes_count; l++)
        if (p->lanes[l].rank == rank && strcmp(p->lanes[l].name, name) == 0) {
            *lane = (uint16_t)l;
            return true;
        }
    return false;
}

static bool load_span(sqlite3_stmt *q, const fr_plan *p, fr_span *span) {
    const char *op = (const char *)sqlite3_column_text(q, 0), *lane = (const char *)sqlite3_column_text(q, 1);
    const char *cause = (const char *)sqlite3_column_text(q, 7), *from = (const char *)sqlite3_column_text(q, 8);
    *span = (fr_span){.ready = sqlite3_column_int64(q, 2),
                      .start = sqlite3_column_int64(q, 3),
                      .end = sqlite3_column_int64(q, 4),
                      .bytes = sqlite3_column_double(q, 5),
                      .flops = sqlite3_column_double(q, 6)};
    if (!op || !lane || !fr_op_id_parse(op, &span->id) || (cause && !fr_op_id_parse(cause, &span->cause))) return false;
    span->kind = (uint8_t)(span->id >> 18 & 0x3f);
    span->rank = (int16_t)sqlite3_column_int(q, 9);
    for (int k = 0; k < FR_FROM_KINDS && from; k++)
        if (strcmp(from, fr_provenance_name((fr_provenance)k)) == 0) span->provenance = (uint8_t)k;
    return find_lane(p, span->rank, lane, &span->lane);
}

fr_status fr_store_load_spans(fr_store *s, int64_t run, fr_plan **plan, fr_timeline *t, fr_error *err) {
    *plan = NULL;
    *t = (fr_timeline){0};
    FR_TRY(load_lanes(s, run, plan, err));
    sqlite3_stmt *q = NULL;
    fr_status status = FR_OK;
    int rc = SQLITE_DONE;
    if (sqlite3_prepare_v2(
            s->db,
            "SELECT op, lane, ready_ns, start_ns, end_ns, bytes, flops, cause, provenance, rank FROM spans "
            "WHERE run=? ORDER BY start_ns, rowid",
            -1, &q, NULL) != SQLITE_OK)
        status = fail(s, err, "read spans");
    else
        sqlite3_bind_int64(q, 1, run);
    while (status == FR_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        fr_span span;
        if (load_span(q, *plan, &span))
            fr_timeline_add(t, &span);
        else
            status = fr_fail(err, FR_BAD_INPUT, "%s: run %" PRId64 " has damaged spans", s->path, run);
    }
    if (status == FR_OK && rc != SQLITE_DONE) status = fail(s, err, "read spans");
    sqlite3_finalize(q);
    if (status != FR_OK) {
        fr_plan_free(*plan);
        *plan = NULL;
        fr_timeline_free(t);
    }
    return status;
}

/* store: what is written comes back, nothing is doubled, killed writers leave whole transactions, foreign files are
 * refused. */
#include "engine/store.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64], path[128];

static int set_up(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/fr_store_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/r.db", folder);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", path, ends[i]);
        remove(name);
    }
    return rmdir(folder);
}

static fr_store *open_store(fr_store_mode mode) {
    fr_store *s = NULL;
    fr_error err = {FR_OK, ""};
    if (fr_store_open(path, mode, &s, &err) != FR_OK) fail_msg("%s", err.text);
    return s;
}

static char *csv(fr_store *s, const char *sql) {
    fr_text out = {0};
    fr_error err = {FR_OK, ""};
    if (fr_store_csv(s, sql, &out, &err) != FR_OK) fail_msg("%s", err.text);
    return out.text ? out.text : fr_strdup("");
}

static void expect(fr_store *s, const char *sql, const char *text) {
    char *have = csv(s, sql);
    assert_string_equal(have, text);
    free(have);
}

static fr_cell make_cell(int number, const char *reason) {
    fr_cell c = {.cell = number, .status = "refused", .reason = reason, .config = "{}", .result = NULL};
    snprintf(c.key, sizeof c.key, "%016x", (unsigned)number);
    return c;
}

/* ---- cells ------------------------------------------------------------------------------------------------------- */

static void cells_come_back_once(void **state) {
    (void)state;
    fr_error err;
    fr_store *s = open_store(FR_STORE_WRITE);
    fr_cell a = make_cell(1, "say \"no\", twice\nor more"), b = make_cell(1, "again"), c = make_cell(2, "");
    assert_int_equal(fr_store_add_cell(s, &a, &err), FR_OK);
    assert_int_equal(fr_store_add_cell(s, &b, &err), FR_OK); /* the key is there: left as it is */
    assert_int_equal(fr_store_add_cell(s, &c, &err), FR_OK);
    assert_true(fr_store_has_cell(s, a.key));
    assert_false(fr_store_has_cell(s, "0000000000000003"));
    expect(s, "SELECT cell, status, reason, mfu FROM cells ORDER BY cell",
           "cell,status,reason,mfu\n1,refused,\"say \"\"no\"\", twice\nor more\",\n2,refused,,\n");
    expect(s, "SELECT * FROM cells WHERE cell=7", "");
    fr_store_close(s);
    s = open_store(FR_STORE_WRITE); /* a second sweep goes on in the same file */
    assert_true(fr_store_has_cell(s, c.key));
    fr_store_close(s);
}

static void values_fill_the_result_columns(void **state) {
    (void)state;
    fr_error err;
    fr_store *s = open_store(FR_STORE_WRITE);
    fr_value *values = fr_alloc((size_t)fr_result_column_count() * sizeof *values);
    for (int i = 0; i < fr_result_column_count(); i++) {
        values[i].type = fr_result_columns()[i].type;
        values[i].integer = i;
        values[i].real = strcmp(fr_result_columns()[i].name, "mfu") == 0 ? NAN : i + 0.5;
        values[i].text = "text";
    }
    fr_cell c = make_cell(5, NULL);
    c.values = values;
    assert_int_equal(fr_store_add_cell(s, &c, &err), FR_OK);
    for (int i = 0; i < fr_result_column_count(); i++) {
        const fr_column *column = &fr_result_columns()[i];
        char sql[128], expected[128];
        snprintf(sql, sizeof sql, "SELECT \"%s\" AS x FROM cells", column->name);
        if (column->type == FR_COLUMN_TEXT) snprintf(expected, sizeof expected, "x\ntext\n");
        if (column->type == FR_COLUMN_INT) snprintf(expected, sizeof expected, "x\n%d\n", i);
        if (column->type == FR_COLUMN_REAL) snprintf(expected, sizeof expected, "x\n%.1f\n", i + 0.5);
        expect(s, sql, strcmp(column->name, "mfu") == 0 ? "x\n\n" : expected);
    }
    free(values);
    fr_store_close(s);
}

static void a_killed_writer_leaves_whole_transactions(void **state) {
    (void)state;
    fr_store_close(open_store(FR_STORE_WRITE));
    pid_t child = fork();
    if (child == 0) { /* commits 0..9, then dies amid 10..19 */
        fr_store *s = NULL;
        bool ok = fr_store_open(path, FR_STORE_WRITE, &s, NULL) == FR_OK && fr_store_begin(s, NULL) == FR_OK;
        for (int i = 0; i < 20 && ok; i++) {
            if (i == 10) ok = fr_store_commit(s, NULL) == FR_OK && fr_store_begin(s, NULL) == FR_OK;
            fr_cell c = make_cell(i, "x");
            ok = ok && fr_store_add_cell(s, &c, NULL) == FR_OK;
        }
        if (ok) kill(getpid(), SIGKILL);
        _exit(1);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    fr_store *s = open_store(FR_STORE_WRITE);
    expect(s, "SELECT count(*) AS n, max(cell) AS m FROM cells", "n,m\n10,9\n");
    fr_store_close(s);
}

static void rollback_takes_back(void **state) {
    (void)state;
    fr_error err;
    fr_store *s = open_store(FR_STORE_WRITE);
    fr_cell c = make_cell(1, "x");
    assert_int_equal(fr_store_begin(s, &err), FR_OK);
    assert_int_equal(fr_store_add_cell(s, &c, &err), FR_OK);
    fr_store_rollback(s);
    assert_false(fr_store_has_cell(s, c.key));
    fr_store_close(s);
}

static void *write_all(void *failed) {
    fr_store *s = NULL;
    if (fr_store_open(path, FR_STORE_WRITE, &s, NULL) != FR_OK) {
        *(int *)failed = 1;
        return NULL;
    }
    for (int i = 0; i < 40; i++) {
        fr_cell c = make_cell(i, "x");
        if (fr_store_begin(s, NULL) != FR_OK || fr_store_add_cell(s, &c, NULL) != FR_OK ||
            fr_store_commit(s, NULL) != FR_OK)
            *(int *)failed = 1;
    }
    fr_store_close(s);
    return NULL;
}

static void two_writers_wait_for_each_other(void **state) {
    (void)state;
    pthread_t threads[2];
    int failed[2] = {0, 0};
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, write_all, &failed[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    assert_true(failed[0] == 0 && failed[1] == 0);
    fr_store *s = open_store(FR_STORE_READ);
    expect(s, "SELECT count(*) AS n FROM cells", "n\n40\n");
    fr_store_close(s);
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

static void runs_keep_their_parts(void **state) {
    (void)state;
    fr_error err = {FR_OK, ""};
    fr_store *s = open_store(FR_STORE_WRITE);
    fr_setup *setup = fr_alloc(sizeof *setup);
    fr_result *result = fr_alloc(sizeof *result);
    fr_experiment_defaults(&setup->experiment);
    setup->experiment.seed = 42;
    result->forward_s = 0.25;
    result->gpus = 8;
    int64_t run = 0, second = 0;
    assert_int_equal(fr_store_add_run(s, "simulate", setup, result, "{\"a\":1}", "{}", &run, &err), FR_OK);
    assert_int_equal(fr_store_add_run(s, "run", setup, result, "{}", "{}", &second, &err), FR_OK);
    assert_true(run == 1 && second == 2);
    expect(s, "SELECT kind, version, config, seed, gpus, forward_s FROM runs WHERE id=1",
           "kind,version,config,seed,gpus,forward_s\nsimulate," FR_VERSION ",\"{\"\"a\"\":1}\",42,8,0.25\n");

    fr_forward_record f = {.forward = 3,
                           .unit = 1,
                           .release = 10,
                           .start = 11,
                           .end = 99,
                           .last_rank = 7,
                           .parts = {88, 1, 2, 3, 4, 5, 6},
                           .tokens = 100,
                           .cached = 50,
                           .flops = 1.5,
                           .low = 80,
                           .high = 90};
    assert_int_equal(fr_store_add_forwards(s, run, &f, 1, &err), FR_OK);
    expect(s, "SELECT * FROM forwards",
           "run,forward,unit,release_ns,start_ns,end_ns,last_rank,compute_ns,exposed_comm_ns,wait_ns,bubble_ns,idle_ns,"
           "hidden_comm_ns,tokens,cached,flops,low_ns,high_ns\n1,3,1,10,11,99,7,1,2,3,4,5,6,100,50,1.5,80,90\n");

    fr_request_record r = {
        .id = 9, .arrival = 5, .start = 6, .answer = 105, .tokens = 7, .cached = 3, .queue = 2, .source = 1};
    assert_int_equal(fr_store_add_requests(s, run, &r, 1, &err), FR_OK);
    expect(s, "SELECT * FROM requests",
           "run,id,arrival_ns,start_ns,answer_ns,ttft_ns,tokens,cached,queue,source\n1,9,5,6,105,100,7,3,2,1\n");
    free(setup);
    free(result);
    fr_store_close(s);
}

static void spans_come_back_as_they_were(void **state) {
    (void)state;
    fr_error err = {FR_OK, ""};
    fr_plan *plan = fr_plan_new(2, 2), *loaded = NULL;
    uint32_t lanes[3] = {fr_plan_lane(plan, 0, FR_LANE_COMPUTE, "compute", false),
                         fr_plan_lane(plan, 0, FR_LANE_COPY, "copy", false),
                         fr_plan_lane(plan, 1, FR_LANE_COMPUTE, "compute", false)};
    fr_fragment *f = fr_fragment_new(plan, 0);
    fr_timeline t = {0}, again = {0};
    uint64_t cause = 0;
    for (int i = 0; i < 9; i++) {
        fr_op *op = fr_emit(f, lanes[i % 3], i % 2 ? FR_OP_PULL : FR_OP_EXPERT_UP, 0, i < 7 ? i : FR_NO_LAYER);
        op->micro = (uint8_t)(i * 20);
        op->sub = (uint16_t)(i * 100);
        fr_span span = {.id = fr_op_id(plan, f, op),
                        .ready = i,
                        .start = 10 * i,
                        .end = 10 * i + 7,
                        .bytes = i * 0.5,
                        .flops = i * 1e12,
                        .cause = cause,
                        .lane = op->lane,
                        .rank = plan->lanes[op->lane].rank,
                        .kind = op->kind,
                        .provenance = (uint8_t)(i % FR_FROM_KINDS)};
        fr_timeline_add(&t, &span);
        cause = span.id;
    }
    fr_store *s = open_store(FR_STORE_WRITE);
    assert_int_equal(fr_store_add_spans(s, 4, plan, &t, &err), FR_OK);
    if (fr_store_load_spans(s, 4, &loaded, &again, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(loaded->lanes_count, 3);
    assert_int_equal(again.count, t.count);
    for (uint32_t i = 0; i < t.count; i++) {
        const fr_span *a = &t.spans[i], *b = &again.spans[i];
        assert_true(a->id == b->id && a->ready == b->ready && a->start == b->start && a->end == b->end);
        assert_true(a->bytes == b->bytes && a->flops == b->flops && a->cause == b->cause && a->rank == b->rank);
        assert_true(a->kind == b->kind && a->provenance == b->provenance);
        assert_string_equal(plan->lanes[a->lane].name, loaded->lanes[b->lane].name);
        assert_int_equal(plan->lanes[a->lane].rank, loaded->lanes[b->lane].rank);
    }
    fr_timeline_free(&again);
    fr_plan_free(loaded);
    assert_int_equal(fr_store_load_spans(s, 5, &loaded, &again, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "run 5 has no spans"));
    fr_store_close(s);
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_exec(db, "UPDATE spans SET op='nonsense' WHERE start_ns=50", NULL, NULL, NULL);
    sqlite3_close(db);
    s = open_store(FR_STORE_READ);
    assert_int_equal(fr_store_load_spans(s, 4, &loaded, &again, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "run 4 has damaged spans"));
    assert_null(loaded);
    fr_store_close(s);
    fr_timeline_free(&t);
    fr_fragment_free(f);
    fr_plan_free(plan);
}

/* ---- files that are not ours, queries that write ------------------------------------------------------------------
 */

static void refused(fr_store_mode mode, const char *message) {
    fr_store *s = NULL;
    fr_error err = {FR_OK, ""};
    assert_int_equal(fr_store_open(path, mode, &s, &err), FR_BAD_INPUT);
    if (!strstr(err.text, message)) fail_msg("'%s' does not say '%s'", err.text, message);
    assert_null(s);
}

static void sql_on_file(const char *sql) {
    sqlite3 *db = NULL;
    char *message = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) fail_msg("%s", message);
    sqlite3_close(db);
}

static void foreign_files_are_refused(void **state) {
    (void)state;
    refused(FR_STORE_READ, "cannot open"); /* there is none */
    const char *text = "this is a text, and long enough to be taken for the head of a database file, or so one may "
                       "think who reads only its length and never its first sixteen bytes";
    assert_int_equal(fr_write_file(path, text, strlen(text), NULL), FR_OK);
    refused(FR_STORE_READ, "expected a forerun result file");
    refused(FR_STORE_WRITE, "expected a forerun result file");
    char *same;
    size_t length;
    assert_int_equal(fr_read_file(path, 4096, &same, &length, NULL), FR_OK);
    assert_string_equal(same, text); /* untouched */
    free(same);
    remove(path);
    sql_on_file("CREATE TABLE recipes(name TEXT)");
    refused(FR_STORE_READ, "not one of forerun's");
    refused(FR_STORE_WRITE, "not one of forerun's");
}

static void other_schemas_are_refused(void **state) {
    (void)state;
    fr_store_close(open_store(FR_STORE_WRITE));
    sql_on_file("ALTER TABLE cells ADD COLUMN beauty REAL");
    refused(FR_STORE_WRITE, "other result columns");
    fr_store_close(open_store(FR_STORE_READ)); /* reading by name still works */
    sql_on_file("UPDATE info SET value='999' WHERE key='schema'");
    refused(FR_STORE_READ, "written by a newer forerun (schema 999");
    refused(FR_STORE_WRITE, "written by a newer forerun (schema 999");
}

static bool keep_first(void *context, int columns, const char *const *values, const char *const *names) {
    assert_int_equal(columns, 1);
    assert_string_equal(names[0], "cell");
    snprintf(context, 16, "%s", values[0]);
    return false;
}

static void queries_only_read(void **state) {
    (void)state;
    fr_error err = {FR_OK, ""};
    char first[16] = "";
    fr_store *s = open_store(FR_STORE_WRITE);
    for (int i = 3; i < 6; i++) {
        fr_cell c = make_cell(i, i == 4 ? "four" : "other");
        assert_int_equal(fr_store_add_cell(s, &c, &err), FR_OK);
    }
    const char *const writes[] = {"DELETE FROM cells", "DROP TABLE cells", "SELECT 1; DELETE FROM cells", "", "-- no"};
    for (size_t i = 0; i < sizeof writes / sizeof *writes; i++)
        assert_int_equal(fr_store_query(s, writes[i], NULL, keep_first, first, &err), FR_BAD_INPUT);
    assert_int_equal(fr_store_query(s, "SELECT nothing FROM cells", NULL, keep_first, first, &err), FR_FAILED);
    assert_non_null(strstr(err.text, "nothing"));
    assert_int_equal(fr_store_query(s, "SELECT cell FROM cells ORDER BY cell;\n", NULL, keep_first, first, &err),
                     FR_OK);
    assert_string_equal(first, "3");
    assert_int_equal(fr_store_query(s, "SELECT cell FROM cells WHERE reason=?1", "four", keep_first, first, &err),
                     FR_OK);
    assert_string_equal(first, "4");
    expect(s, "SELECT count(*) AS n FROM cells", "n\n3\n");
    fr_store_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(cells_come_back_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(values_fill_the_result_columns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_killed_writer_leaves_whole_transactions, set_up, tear_down),
        cmocka_unit_test_setup_teardown(rollback_takes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_writers_wait_for_each_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(runs_keep_their_parts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(spans_come_back_as_they_were, set_up, tear_down),
        cmocka_unit_test_setup_teardown(foreign_files_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(other_schemas_are_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(queries_only_read, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

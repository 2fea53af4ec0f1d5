/* forerun validate: the last measured run of a DB against a simulated one of the same configuration, op by op. */
#include "sim/cli/cli.h"
#include "sim/cli/figures.h"

#include <math.h>
#include <string.h>

const fr_option cmd_validate_options[] = {
    {"run", "N", NULL, "number of the measured run (default: the last)"},
    {"against", "N", NULL, "number of the simulated run (default: the last with the same configuration)"},
    {NULL, NULL, NULL, NULL},
};

static fr_status find_run(fr_store *s, const cli_args *a, const char *flag, const char *sql, const char *bind,
                          const char *what, char out[24], fr_error *err) {
    cli_table t;
    const char *asked = cli_value(a, flag);
    int64_t n;
    char number[24];
    if (asked) {
        char name[16];
        snprintf(name, sizeof name, "--%s", flag);
        FR_TRY(fr_parse_int(asked, 1, INT64_MAX, false, name, &n, err));
        snprintf(number, sizeof number, "%lld", (long long)n);
        sql = "SELECT id FROM runs WHERE id=?1+0";
        bind = number;
    }
    FR_TRY(cli_fetch(s, sql, bind, &t, err));
    fr_status status = t.rows ? FR_OK : fr_fail(err, FR_BAD_INPUT, "%s: holds no %s", a->positional[0], what);
    if (t.rows) snprintf(out, 24, "%.20s", cli_at(&t, 0, 0));
    cli_table_free(&t);
    return status;
}

/* One line per row: name, count, predicted, measured, error in percent. */
static void print_rows(const cli_table *t, double unit) {
    for (uint32_t i = 0; i < t->rows; i++) {
        double p = cli_number(t, i, 2), m = cli_number(t, i, 3);
        printf("  %-16s %8s %14.3f %14.3f %9.1f %%\n", cli_at(t, i, 0), cli_at(t, i, 1), p / unit, m / unit,
               100 * (p - m) / m);
    }
}

static fr_status compare(fr_store *s, const cli_args *a, fr_error *err) {
    char measured[24], predicted[24];
    FR_TRY(find_run(s, a, "run", "SELECT id FROM runs WHERE kind='run' ORDER BY id DESC LIMIT 1", NULL,
                    "measured run: forerun run ... --db FILE on a machine with GPUs stores one", measured, err));
    FR_TRY(find_run(s, a, "against",
                    "SELECT p.id FROM runs AS p JOIN runs AS m ON m.id=?1+0 WHERE p.kind='simulate' AND "
                    "p.config=m.config ORDER BY p.id DESC LIMIT 1",
                    measured, "simulated run of the same configuration: forerun simulate ... --db FILE stores one",
                    predicted, err));
    fr_text sql = {0};
    cli_table t;
    printf("run %s (measured) against run %s (predicted)\n\n  %-16s %8s %14s %14s %11s\n", measured, predicted,
           "op kind", "ops", "predicted us", "measured us", "error");
    fr_text_add(
        &sql,
        "SELECT m.kind, count(*), avg(p.end_ns-p.start_ns), avg(m.end_ns-m.start_ns) FROM spans AS m JOIN spans "
        "AS p ON p.run=%s AND p.op=m.op WHERE m.run=%s AND m.end_ns>m.start_ns GROUP BY m.kind ORDER BY "
        "sum(m.end_ns-m.start_ns) DESC",
        predicted, measured);
    fr_status status = cli_fetch(s, sql.text, NULL, &t, err);
    fr_text_free(&sql);
    FR_TRY(status);
    print_rows(&t, 1e3);
    if (t.rows == 0) printf("  no op of the two timelines has the same id\n");
    cli_table_free(&t);
    fr_text whole = {0};
    fr_text_add(
        &whole,
        "SELECT 'forward', count(*), avg(p.end_ns-p.start_ns), avg(m.end_ns-m.start_ns) FROM forwards AS m JOIN "
        "forwards AS p ON p.run=%s AND p.forward=m.forward AND p.unit=m.unit WHERE m.run=%s HAVING count(*)>0 "
        "UNION ALL SELECT 'TTFT', count(*), avg(p.ttft_ns), avg(m.ttft_ns) FROM requests AS m JOIN requests AS "
        "p ON p.run=%s AND p.id=m.id WHERE m.run=%s HAVING count(*)>0 UNION ALL SELECT 'elapsed', 1, "
        "1e9*p.elapsed_s, 1e9*m.elapsed_s FROM runs AS m JOIN runs AS p ON p.id=%s WHERE m.id=%s",
        predicted, measured, predicted, measured, predicted, measured);
    status = cli_fetch(s, whole.text, NULL, &t, err);
    fr_text_free(&whole);
    FR_TRY(status);
    printf("\n  %-16s %8s %14s %14s %11s\n", "whole", "count", "predicted ms", "measured ms", "error");
    print_rows(&t, 1e6);
    cli_table_free(&t);
    return FR_OK;
}

fr_status cmd_validate(const cli_args *a, fr_error *err) {
    fr_store *s;
    FR_TRY(fr_store_open(a->positional[0], FR_STORE_READ, &s, err));
    fr_status status = compare(s, a, err);
    fr_store_close(s);
    return status;
}

/* Data of the figures that compare many results: sweep cells, or stored runs where the DB has no sweep. */
#include "sim/cli/figures.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows of a query ----------------------------------------------------------------------------------------------
 */

static bool take_row(void *context, int columns, const char *const *values, const char *const *names) {
    cli_table *t = context;
    (void)names;
    t->columns = (uint32_t)columns;
    FR_GROW(t->cell, t->cap, (t->rows + 1) * t->columns);
    for (int i = 0; i < columns; i++) {
        char *text = fr_strdup(values[i] ? values[i] : "");
        for (char *c = text; *c; c++) /* the data file's own separators */
            if (*c == '\t' || *c == '\n' || *c == '"') *c = ' ';
        t->cell[t->rows * t->columns + (uint32_t)i] = text;
    }
    t->rows++;
    return true;
}

fr_status cli_fetch(fr_store *s, const char *sql, const char *bind, cli_table *out, fr_error *err) {
    *out = (cli_table){0};
    fr_status status = fr_store_query(s, sql, bind, take_row, out, err);
    if (status != FR_OK) cli_table_free(out);
    return status;
}

void cli_table_free(cli_table *t) {
    for (uint32_t i = 0; i < t->rows * t->columns; i++) free(t->cell[i]);
    free(t->cell);
    *t = (cli_table){0};
}

const char *cli_at(const cli_table *t, uint32_t row, uint32_t column) {
    return t->cell[row * t->columns + column];
}

double cli_number(const cli_table *t, uint32_t row, uint32_t column) {
    const char *text = cli_at(t, row, column);
    char *end;
    double value = strtod(text, &end);
    return end == text ? NAN : value;
}

/* ---- results of a DB ----------------------------------------------------------------------------------------------
 */

/* Layouts as people name them: "tp", "tp+ep" for custom ones; the degree that the name is about (experts split by width
 * span all attention groups: tp*dp ranks); variants that differ from the plain form. */
#define NAME                                                                                                           \
    "CASE WHEN strategy='custom' THEN attention||'+'||experts WHEN pp>1 AND strategy<>'pp' THEN strategy||'+pp' "      \
    "ELSE strategy END"
#define DEGREE                                                                                                         \
    "CASE WHEN experts IN ('ep','asyncep','dwdp') THEN ep WHEN strategy='pp' THEN pp WHEN strategy='offload' THEN "    \
    "gpus "                                                                                                            \
    "WHEN strategy='dp' THEN dp WHEN experts='tp' THEN max(tp*dp,pp) ELSE max(tp,pp,ep) END"
#define VARIANT                                                                                                        \
    "CASE WHEN overlap<>'none' THEN ' '||overlap ELSE '' END||CASE WHEN experts='ep' AND exchange<>'a2a' THEN ' '||"   \
    "exchange ELSE '' END||CASE WHEN gather<>'ce' THEN ' '||gather ELSE '' END"

/* The workload that most results share: comparing layouts under different loads would say nothing. */
#define WORKLOAD "model, machine, precision, tokens_per_gpu, seq, prefix, routing, trace, regime"
#define MAIN_OF(condition)                                                                                             \
    "(" WORKLOAD ") = (SELECT " WORKLOAD " FROM %s WHERE " condition " GROUP BY " WORKLOAD                             \
    " ORDER BY count(*) DESC, " WORKLOAD " LIMIT 1)"
#define MAIN   MAIN_OF(PLAYED)
#define PLAYED "tokens_per_s IS NOT NULL"
#define PLAIN  "what_if=''"

/* A query over `c`: the results that meet `where` (%s = the table) with name, degree and label; `query` follows the
 * WITH. */
static fr_status fetch_results(const cli_figure_source *s, const char *where, const char *query, cli_table *out,
                               fr_error *err) {
    cli_table cells;
    FR_TRY(cli_fetch(s->store, "SELECT count(*) FROM cells", NULL, &cells, err));
    bool sweep = cli_number(&cells, 0, 0) > 0;
    cli_table_free(&cells);
    const char *from = sweep ? "cells" : "runs";
    fr_text sql = {0};
    fr_text_add(&sql,
                "WITH c AS (SELECT *, " NAME " AS name, " DEGREE " AS degree, " NAME "||' '||" DEGREE "||" VARIANT
                " AS label FROM %s WHERE %s",
                from, sweep ? "status IN ('done','unfit') AND " : "");
    for (const char *w = where; *w; w++) {
        if (strncmp(w, "%s", 2) == 0) {
            fr_text_add(&sql, "%s", from);
            w++;
        } else {
            fr_text_add(&sql, "%c", *w);
        }
    }
    fr_text_add(&sql, ") %s", query);
    fr_status status = cli_fetch(s->store, sql.text, NULL, out, err);
    fr_text_free(&sql);
    if (status == FR_OK && out->rows == 0) {
        cli_table_free(out);
        status = fr_fail(err, FR_BAD_INPUT, "%s: holds no result that this figure can show (see forerun list figures)",
                         s->path);
    }
    return status;
}

/* What is the same in all results, for the title: model, machine, precision, load. */
static fr_status add_subject(const cli_figure_source *s, const char *where, fr_text *settings, fr_error *err) {
    static const char *const names[] = {"model", "machine", "precision", "tokens_per_gpu", "seq", "trace"};
    cli_table t;
    FR_TRY(fetch_results(s, where,
                         "SELECT CASE WHEN count(DISTINCT model)=1 THEN min(model) END,"
                         "CASE WHEN count(DISTINCT machine)=1 THEN min(machine) END,"
                         "CASE WHEN count(DISTINCT precision)=1 THEN min(precision) END,"
                         "CASE WHEN count(DISTINCT tokens_per_gpu)=1 THEN min(tokens_per_gpu) END,"
                         "CASE WHEN count(DISTINCT seq)=1 AND min(seq)>0 THEN min(seq) END,"
                         "CASE WHEN count(DISTINCT trace)=1 AND min(trace)<>'' THEN min(trace) END FROM c",
                         &t, err));
    fr_text_add(settings, "subject = \"");
    bool any = false;
    for (uint32_t i = 0; i < 6; i++) {
        const char *v = cli_at(&t, 0, i);
        if (!v[0]) continue;
        const char *slash = strrchr(v, '/');
        fr_text_add(settings, "%s", any ? ", " : "");
        if (strcmp(names[i], "tokens_per_gpu") == 0)
            fr_text_add(settings, "%s tokens per GPU and forward", v);
        else if (strcmp(names[i], "seq") == 0)
            fr_text_add(settings, "sequences of %s", v);
        else
            fr_text_add(settings, "%s", slash ? slash + 1 : v);
        any = true;
    }
    fr_text_add(settings, "\"\n");
    cli_table_free(&t);
    return FR_OK;
}

/* Bars in clusters: x, value, index of the degree; the script draws one box style per degree. */
static fr_status data_throughput(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t, degrees;
    FR_TRY(add_subject(s, PLAYED " AND " PLAIN " AND " MAIN, settings, err));
    FR_TRY(fetch_results(s, PLAYED " AND " PLAIN " AND " MAIN,
                         "SELECT name, degree, max(tokens_per_s_per_gpu) AS v, tokens_per_s_per_gpu*forward_s/"
                         "nullif(forward_high_s, 0), tokens_per_s_per_gpu*forward_s/nullif(forward_low_s, 0) "
                         "FROM c GROUP BY name, degree ORDER BY "
                         "(SELECT max(d.tokens_per_s_per_gpu) FROM c AS d WHERE d.name=c.name), name, degree",
                         &t, err));
    fr_status status = fetch_results(s, PLAYED " AND " PLAIN " AND " MAIN,
                                     "SELECT DISTINCT degree FROM c ORDER BY degree", &degrees, err);
    if (status != FR_OK) {
        cli_table_free(&t);
        return status;
    }
    double x = 0, first = 0;
    fr_text tics = {0};
    for (uint32_t i = 0; i < t.rows; i++) {
        bool fresh = i == 0 || strcmp(cli_at(&t, i, 0), cli_at(&t, i - 1, 0)) != 0;
        x += fresh && i ? 2 : 1;
        if (fresh) first = x;
        uint32_t d = 0;
        while (strcmp(cli_at(&degrees, d, 0), cli_at(&t, i, 1)) != 0) d++;
        fr_text_add(data, "%g\t%s\t%u\t%s\t%s\n", x, cli_at(&t, i, 2), d, cli_at(&t, i, 3), cli_at(&t, i, 4));
        if (i + 1 == t.rows || strcmp(cli_at(&t, i, 0), cli_at(&t, i + 1, 0)) != 0)
            fr_text_add(&tics, "%s\"%s\" %g", tics.length ? ", " : "", cli_at(&t, i, 0), (first + x) / 2);
    }
    fr_text_add(settings, "degrees = \"");
    for (uint32_t d = 0; d < degrees.rows; d++) fr_text_add(settings, d ? " %s" : "%s", cli_at(&degrees, d, 0));
    fr_text_add(settings, "\"\nlast = %g\nset xtics (%s)\n", x, tics.text);
    fr_text_free(&tics);
    cli_table_free(&t);
    cli_table_free(&degrees);
    return FR_OK;
}

/* Rows of (series, x, y, ...): one gnuplot data block per series, its name as the block's heading. */
static void add_series(const cli_table *t, fr_text *data, fr_text *settings) {
    int series = 0;
    for (uint32_t i = 0; i < t->rows; i++) {
        bool fresh = i == 0 || strcmp(cli_at(t, i, 0), cli_at(t, i - 1, 0)) != 0;
        if (fresh) fr_text_add(data, "%s\"%s\"\n", series++ ? "\n\n" : "", cli_at(t, i, 0));
        for (uint32_t c = 1; c < t->columns; c++) fr_text_add(data, c > 1 ? "\t%s" : "%s", cli_at(t, i, c));
        fr_text_add(data, "\n");
    }
    fr_text_add(settings, "series = %d\n", series);
}

static fr_status data_mfu(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t;
    const char *where = PLAYED " AND " PLAIN " AND seq>0";
    FR_TRY(fetch_results(s, where, "SELECT count(*) FROM c", &t, err));
    bool none = cli_number(&t, 0, 0) == 0;
    cli_table_free(&t);
    if (none)
        return fr_fail(err, FR_BAD_INPUT,
                       "%s: holds no sweep of equal batches over --seq, which mfu needs (a trace has no one length)",
                       s->path);
    FR_TRY(add_subject(s, where, settings, err));
    FR_TRY(fetch_results(s, where, "SELECT name, seq, 100*max(mfu) FROM c GROUP BY name, seq ORDER BY name, seq", &t,
                         err));
    add_series(&t, data, settings);
    cli_table_free(&t);
    return FR_OK;
}

/* Seconds per million tokens, split as the rank that ends last spent them; best result of each layout. */
static fr_status data_breakdown(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t;
    FR_TRY(add_subject(s, PLAYED " AND " PLAIN " AND " MAIN, settings, err));
    FR_TRY(fetch_results(
        s, PLAYED " AND " PLAIN " AND " MAIN,
        "SELECT label, k*compute_s, k*exposed_comm_s, k*wait_s, k*bubble_s, k*idle_s, k*hidden_comm_s FROM (SELECT *, "
        "1e6/max(tokens_per_s)/(compute_s+exposed_comm_s+wait_s+bubble_s+idle_s) AS k, max(tokens_per_s) AS best FROM "
        "c GROUP BY label) ORDER BY best DESC LIMIT 16",
        &t, err));
    for (uint32_t i = 0; i < t.rows; i++) {
        for (uint32_t c = 0; c < t.columns; c++) fr_text_add(data, c ? "\t%s" : "\"%s\"", cli_at(&t, i, c));
        fr_text_add(data, "\n");
    }
    fr_text_add(settings, "rows = %u\n", t.rows);
    cli_table_free(&t);
    return FR_OK;
}

/* Transfer that shows, in percent of the forward, over tokens per forward; a series per machine, what-if and P. The
 * saturation point is the least n from which it stays below 1 %. Sequences of one length, where lengths and tokens both
 * vary. */
#define ONE_LENGTH                                                                                                     \
    "((SELECT max(k) FROM (SELECT count(DISTINCT tokens_per_gpu) AS k FROM %s GROUP BY seq))<=1 OR seq=(SELECT seq "   \
    "FROM %s WHERE experts IN ('asyncep','dwdp','offload') GROUP BY seq ORDER BY count(DISTINCT tokens_per_gpu) "      \
    "DESC, "                                                                                                           \
    "seq LIMIT 1))"
static fr_status data_exposed(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t;
    const char *where = PLAYED " AND experts IN ('asyncep','dwdp','offload') AND trace='' AND " ONE_LENGTH;
    FR_TRY(add_subject(s, where, settings, err));
    FR_TRY(fetch_results(
        s, where,
        "SELECT experts||' P='||ep||CASE WHEN gather<>'ce' THEN ' '||gather ELSE '' END||CASE WHEN (SELECT "
        "count(DISTINCT machine) FROM c)>1 THEN ' '||machine ELSE '' END||CASE WHEN (SELECT count(DISTINCT precision) "
        "FROM c)>1 THEN ' '||precision ELSE '' END||CASE WHEN what_if<>'' THEN ' '||what_if ELSE '' END AS s, "
        "tokens_per_gpu, min(100.0*(exposed_comm_s+wait_s)/forward_s) FROM c GROUP BY s, tokens_per_gpu ORDER BY "
        "min(experts), min(ep), s, tokens_per_gpu",
        &t, err));
    int series = 0, marks = 0;
    for (uint32_t i = 0, end; i < t.rows; i = end) {
        for (end = i; end < t.rows && strcmp(cli_at(&t, i, 0), cli_at(&t, end, 0)) == 0; end++) {
        }
        uint32_t knee = end;
        while (knee > i && cli_number(&t, knee - 1, 2) < 1) knee--;
        bool seen = knee < end && knee > i; /* it happened within the tokens that were tried */
        fr_text_add(data, "%s\"%s", series++ ? "\n\n" : "", cli_at(&t, i, 0));
        if (seen) fr_text_add(data, ", hidden from %s tokens", cli_at(&t, knee, 1));
        fr_text_add(data, "\"\n");
        for (uint32_t k = i; k < end; k++) fr_text_add(data, "%s\t%s\n", cli_at(&t, k, 1), cli_at(&t, k, 2));
        if (!seen) continue;
        marks++;
        fr_text_add(settings, "kx%d = %s\nky%d = %s\n", marks, cli_at(&t, knee, 1), marks, cli_at(&t, knee, 2));
    }
    fr_text_add(settings, "series = %d\nknees = %d\n", series, marks);
    cli_table_free(&t);
    return FR_OK;
}

static fr_status data_memory(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t;
    const char *where = "memory_per_gpu_bytes IS NOT NULL AND " PLAIN " AND " MAIN;
    FR_TRY(add_subject(s, where, settings, err));
    FR_TRY(fetch_results(
        s, where,
        "SELECT name||' '||degree, memory_attention_bytes/1e9+memory_embedding_head_bytes/1e9, "
        "memory_experts_bytes/1e9, "
        "(memory_gather_bytes+memory_first_layer_bytes)/1e9, memory_kv_bytes/1e9, memory_activations_bytes/1e9, "
        "memory_workspace_bytes/1e9, max(memory_per_gpu_bytes), hbm_bytes/1e9 FROM c GROUP BY name, degree ORDER BY "
        "max(memory_per_gpu_bytes) LIMIT 30",
        &t, err));
    double hbm = INFINITY, most = 0;
    for (uint32_t i = 0; i < t.rows; i++) {
        for (uint32_t c = 0; c < 7; c++) fr_text_add(data, c ? "\t%s" : "\"%s\"", cli_at(&t, i, c));
        fr_text_add(data, "\n");
        hbm = fmin(hbm, cli_number(&t, i, 8));
        most = fmax(most, cli_number(&t, i, 7) / 1e9);
    }
    fr_text_add(settings, "rows = %u\nhbm = %.6g\nmost = %.6g\n", t.rows, hbm, most);
    cli_table_free(&t);
    return FR_OK;
}

/*
 * Rows of (TTFT, throughput, label), by TTFT: a block with the front, and one with its labels: points within 2 % of
 * each other in both share a label, as two could not be read.
 */
static void add_front(const cli_table *t, fr_text *data, fr_text *settings) {
    fr_text labels = {0};
    double best = 0, at_x = 0, at_y = 0;
    fr_text_add(data, "\n\n\"front\"\n");
    for (uint32_t i = 0; i < t->rows; i++) {
        const double x = cli_number(t, i, 0), y = cli_number(t, i, 1);
        if (y <= best) continue;
        best = y;
        fr_text_add(data, "%s\t%s\n", cli_at(t, i, 0), cli_at(t, i, 1));
        if (labels.length && x < 1.02 * at_x && y < 1.02 * at_y) {
            fr_text_add(&labels, ", %s", cli_at(t, i, 2));
            continue;
        }
        fr_text_add(&labels, "%s%s\t%s\t%s", labels.length ? "\n" : "", cli_at(t, i, 0), cli_at(t, i, 1),
                    cli_at(t, i, 2));
        at_x = x;
        at_y = y;
    }
    fr_text_add(data, "\n\n\"labels\"\n%s\n", labels.text ? labels.text : "");
    fr_text_add(settings, "least = %s\nmost = %.9g\n", t->rows ? cli_at(t, 0, 0) : "1",
                t->rows ? cli_number(t, t->rows - 1, 0) : 1);
    fr_text_free(&labels);
}

/* Points by layout name; the front: what nothing beats in both throughput and TTFT. */
static fr_status data_pareto(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t;
    const char *where = PLAYED " AND " PLAIN " AND " MAIN " AND ttft_p90_s IS NOT NULL";
    FR_TRY(add_subject(s, where, settings, err));
    FR_TRY(fetch_results(
        s, where, "SELECT name, ttft_p90_s, tokens_per_s_per_gpu, label FROM c ORDER BY name, ttft_p90_s", &t, err));
    add_series(&t, data, settings);
    cli_table_free(&t);
    FR_TRY(fetch_results(s, where,
                         "SELECT ttft_p90_s, tokens_per_s_per_gpu, label FROM c ORDER BY ttft_p90_s, "
                         "tokens_per_s_per_gpu DESC",
                         &t, err));
    add_front(&t, data, settings);
    cli_table_free(&t);
    return FR_OK;
}

/* TTFT of every request, sorted, one block per run; thinned to what a figure can show. */
static fr_status data_ttft(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    enum { SHOWN = 500 };
    cli_table t;
    FR_TRY(cli_fetch(
        s->store,
        "SELECT r.id||': '||" NAME "||' '||" DEGREE
        ", q.ttft_ns/1e9 FROM requests AS q JOIN runs AS r ON r.id=q.run WHERE q.ttft_ns>0 ORDER BY r.id, q.ttft_ns",
        NULL, &t, err));
    if (t.rows == 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: holds no requests: forerun simulate --trace ... --db FILE", s->path);
    int series = 0;
    for (uint32_t i = 0; i < t.rows;) {
        uint32_t end = i;
        while (end < t.rows && strcmp(cli_at(&t, i, 0), cli_at(&t, end, 0)) == 0) end++;
        fr_text_add(data, "%s\"%s\"\n", series++ ? "\n\n" : "", cli_at(&t, i, 0));
        uint32_t n = end - i, each = n / SHOWN + 1;
        for (uint32_t k = each - 1; k < n; k += each)
            fr_text_add(data, "%s\t%.6g\n", cli_at(&t, i + k, 1), (double)(k + 1) / n);
        fr_text_add(data, "%s\t1\n", cli_at(&t, end - 1, 1));
        i = end;
    }
    fr_text_add(settings, "series = %d\nsubject = \"%u requests of %d %s\"\n", series, t.rows, series,
                series == 1 ? "run" : "runs");
    cli_table_free(&t);
    return FR_OK;
}

#define CHANGED MAIN_OF(PLAYED " AND what_if<>''")
/* Speed-up of each what-if over the same layout and load without it. */
static fr_status data_whatif(const cli_figure_source *s, fr_text *data, fr_text *settings, fr_error *err) {
    cli_table t;
    FR_TRY(add_subject(s, PLAYED " AND " CHANGED, settings, err));
    FR_TRY(
        fetch_results(s, PLAYED " AND " CHANGED,
                      "SELECT a.label, a.what_if, max(a.tokens_per_s/b.tokens_per_s) FROM c AS a JOIN c AS b ON "
                      "a.what_if<>'' AND b.what_if='' AND a.label=b.label AND a.model=b.model AND "
                      "a.machine=b.machine AND a.tokens_per_gpu=b.tokens_per_gpu AND a.seq=b.seq AND a.trace=b.trace "
                      "GROUP BY a.what_if, a.label ORDER BY a.label, a.what_if",
                      &t, err));
    double x = 0, first = 0;
    fr_text names = {0}, kinds = {0};
    cli_table kind;
    fr_status status = fetch_results(s, PLAYED " AND what_if<>'' AND " CHANGED,
                                     "SELECT DISTINCT what_if FROM c ORDER BY what_if", &kind, err);
    for (uint32_t i = 0; status == FR_OK && i < t.rows; i++) {
        bool fresh = i == 0 || strcmp(cli_at(&t, i, 0), cli_at(&t, i - 1, 0)) != 0;
        x += fresh && i ? 2 : 1;
        uint32_t k = 0;
        while (strcmp(cli_at(&kind, k, 0), cli_at(&t, i, 1)) != 0) k++;
        fr_text_add(data, "%g\t%s\t%u\n", x, cli_at(&t, i, 2), k);
        if (fresh) first = x;
        if (i + 1 == t.rows || strcmp(cli_at(&t, i, 0), cli_at(&t, i + 1, 0)) != 0)
            fr_text_add(&names, "%s\"%s\" %g", names.length ? ", " : "", cli_at(&t, i, 0), (first + x) / 2);
    }
    for (uint32_t k = 0; status == FR_OK && k < kind.rows; k++)
        fr_text_add(&kinds, k ? " %s" : "%s", cli_at(&kind, k, 0));
    if (status == FR_OK)
        fr_text_add(settings, "kinds = \"%s\"\nlast = %g\nset xtics (%s)\n", kinds.text, x, names.text);
    fr_text_free(&names);
    fr_text_free(&kinds);
    cli_table_free(&t);
    if (status == FR_OK) cli_table_free(&kind);
    return status;
}

const cli_figure cli_figures[] = {
    {"throughput", "tokens/s per GPU by strategy and degree", "a sweep", false, data_throughput},
    {"mfu", "MFU against sequence length", "a sweep of equal batches over --seq", false, data_mfu},
    {"breakdown", "where the time goes: compute, exposed communication, wait, bubble, idle; hidden beside", "a sweep",
     false, data_breakdown},
    {"gantt", "lanes of a rank over two layers", "a run with its timeline (simulate --db)", true, cli_data_gantt},
    {"exposed", "exposed transfer against tokens per forward, saturation marked",
     "a sweep of asyncep, dwdp or offload over tokens", false, data_exposed},
    {"memory", "memory per GPU by layout, with the HBM line", "a sweep", false, data_memory},
    {"pareto", "throughput against TTFT, with the Pareto front", "a sweep", false, data_pareto},
    {"ttft", "TTFT of the requests, cumulative", "runs of a trace (simulate --trace ... --db)", false, data_ttft},
    {"critical", "critical path by resource and layer", "a run with its timeline (simulate --db)", true,
     cli_data_critical},
    {"scatter", "forward time, predicted against measured, with the 5 % band", "measured runs (run --db)", false,
     cli_data_scatter},
    {"op-errors", "error of the prediction by op kind", "measured runs (run --db)", false, cli_data_op_errors},
    {"twins", "two layers, the live timeline above the simulated one", "a measured run (run --db)", true,
     cli_data_twins},
    {"whatif", "what a faster resource buys", "a sweep over what-if", false, data_whatif},
    {NULL, NULL, NULL, false, NULL},
};

#include "engine/cost/cost_field.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NS    3.6e12 /* an hour: no single op takes longer */
#define MAX_BYTES (INT64_C(1) << 46)

#define BIT(f) FR_FIELD_BIT(FR_FIELD_##f)
#define TIMED  (BIT(REGIME) | BIT(NS))
#define ALWAYS_OPTIONAL                                                                                                \
    (BIT(P10) | BIT(P90) | BIT(SAMPLES) | BIT(CLOCK) | BIT(WATTS) | BIT(CAPPED) | BIT(PROVENANCE) | BIT(CARD))

fr_status fr_reader_bad(const fr_reader *r, const char *field, const char *expected) {
    return fr_fail(r->err, FR_BAD_INPUT, "%s:%d: %s: %s", r->where, r->line, field, expected);
}

char *fr_reader_token(char **text, const char *separators) {
    char *s = *text + strspn(*text, separators);
    if (!*s) return NULL;
    char *end = s + strcspn(s, separators);
    *text = *end ? end + 1 : end;
    *end = 0;
    return s;
}

fr_status fr_reader_double(const fr_reader *r, const char *field, const char *text, double low, double high,
                           double *out) {
    fr_error quiet;
    if (fr_parse_double(text, low, high, field, out, &quiet) == FR_OK) return FR_OK;
    char what[512]; /* only where it is needed: tables have thirty thousand numbers */
    snprintf(what, sizeof what, "%.300s:%d: %s", r->where, r->line, field);
    return fr_parse_double(text, low, high, what, out, r->err);
}

static fr_status read_int(const fr_reader *r, const char *field, const char *text, int64_t low, int64_t high,
                          int64_t *out) {
    fr_error quiet;
    if (fr_parse_int(text, low, high, false, field, out, &quiet) == FR_OK) return FR_OK;
    char what[512];
    snprintf(what, sizeof what, "%.300s:%d: %s", r->where, r->line, field);
    return fr_parse_int(text, low, high, false, what, out, r->err);
}

static fr_status read_name(const fr_reader *r, const char *field, const char *text, const char *const *names, int count,
                           uint8_t *out) {
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], text) == 0) {
            *out = (uint8_t)i;
            return FR_OK;
        }
    char list[256] = "";
    for (int i = 0; i < count; i++) {
        strncat(list, i ? ", " : "expected one of ", sizeof list - strlen(list) - 1);
        strncat(list, names[i], sizeof list - strlen(list) - 1);
    }
    return fr_reader_bad(r, field, list);
}

static fr_status push_pairs(const fr_reader *r, const char *field, fr_shape *s, int64_t queries, int64_t prefix,
                            int64_t repeat) {
    if (s->vector_count + repeat > FR_TABLE_ENTRIES) return fr_reader_bad(r, field, "more than 4096 entries");
    fr_table *t = r->t;
    FR_GROW(t->pairs, t->pairs_cap, t->pairs_count + repeat);
    for (int64_t i = 0; i < repeat; i++) t->pairs[t->pairs_count++] = (fr_pair){(int32_t)queries, (int32_t)prefix};
    s->vector_count += (uint32_t)repeat;
    return FR_OK;
}

static void quantiles(int32_t experts, double *z) {
    for (int32_t i = 0; i < experts; i++) z[i] = gsl_cdf_ugaussian_Pinv((i + 0.5) / experts);
}

/* Expert i of E is given the quantile (i + 1/2) / E; the last one takes up the rounding. */
static void deal_rows(int64_t sum, int32_t experts, const double *z, int32_t *rows) {
    const double mean = (double)sum / experts, sigma = sqrt(mean * (1 - 1 / (double)experts));
    int64_t left = sum;
    for (int32_t i = 0; i < experts; i++) {
        int64_t n = i + 1 == experts ? left : fr_round(fr_most(0, mean + sigma * z[i]));
        n = fr_min_i64(n, left);
        left -= n;
        rows[i] = (int32_t)n;
    }
}

void fr_even_rows(int64_t sum, int32_t experts, int32_t *rows) {
    double *z = fr_alloc((size_t)experts * sizeof *z);
    quantiles(experts, z);
    deal_rows(sum, experts, z, rows);
    free(z);
}

static fr_status random_rows(const fr_reader *r, fr_shape *s, char *text) {
    char *slash = strchr(text, '/');
    if (!slash) return fr_reader_bad(r, "rows", "expected random:SUM/EXPERTS");
    *slash = 0;
    int64_t sum, experts;
    FR_TRY(read_int(r, "rows", text, 1, INT32_MAX, &sum));
    FR_TRY(read_int(r, "rows", slash + 1, 1, FR_TABLE_ENTRIES, &experts));
    int32_t *rows = fr_alloc((size_t)experts * sizeof *rows);
    if (r->normal->experts != experts) {
        r->normal->experts = (int32_t)experts;
        quantiles((int32_t)experts, r->normal->z);
    }
    deal_rows(sum, (int32_t)experts, r->normal->z, rows);
    fr_status status = FR_OK;
    for (int64_t i = 0; i < experts && status == FR_OK; i++) status = push_pairs(r, "rows", s, rows[i], 0, 1);
    free(rows);
    return status;
}

/* rows=COUNTxREPEAT,... or random:SUM/E; seqs=QUERIES+PREFIXxREPEAT,... */
static fr_status read_vector(const fr_reader *r, const char *field, char *text, bool sequences, fr_shape *s) {
    s->vector = r->t->pairs_count;
    s->vector_count = 0;
    if (!sequences && strncmp(text, "random:", 7) == 0) {
        FR_TRY(random_rows(r, s, text + 7));
    } else {
        char *rest = text, *item;
        while ((item = fr_reader_token(&rest, ","))) {
            int64_t queries, prefix = 0, repeat = 1;
            char *x = strchr(item, 'x');
            if (x) {
                *x = 0;
                FR_TRY(read_int(r, field, x + 1, 1, FR_TABLE_ENTRIES, &repeat));
            }
            char *plus = strchr(item, '+');
            if (plus && sequences) {
                *plus = 0;
                FR_TRY(read_int(r, field, plus + 1, 0, INT32_MAX / 2, &prefix));
            }
            FR_TRY(read_int(r, field, item, sequences ? 1 : 0, INT32_MAX / 2, &queries));
            FR_TRY(push_pairs(r, field, s, queries, prefix, repeat));
        }
    }
    int64_t total = 0;
    for (uint32_t i = 0; i < s->vector_count; i++) total += r->t->pairs[s->vector + i].queries;
    if (total == 0) return fr_reader_bad(r, field, "expected at least one row");
    s->m = total;
    if (!sequences) s->experts = (int32_t)s->vector_count;
    return FR_OK;
}

/* ---- fields of a row ----------------------------------------------------------------------------------------------*/

static fr_status read_rows(const fr_reader *r, fr_row *row, char *text) {
    return read_vector(r, "rows", text, false, &row->shape);
}

static fr_status read_seqs(const fr_reader *r, fr_row *row, char *text) {
    return read_vector(r, "seqs", text, true, &row->shape);
}

/* Eight hexadecimal digits. */
static fr_status read_card(const fr_reader *r, fr_row *row, char *text) {
    if (strlen(text) != 8 || strspn(text, "0123456789abcdef") != 8)
        return fr_reader_bad(r, "card", "expected the first eight digits of a GPU's uuid");
    row->card = (uint32_t)strtoul(text, NULL, 16);
    return FR_OK;
}

static fr_status read_provenance(const fr_reader *r, fr_row *row, char *text) {
    static const char *const names[] = {"measured", "seeded"};
    uint8_t seeded = 0;
    FR_TRY(read_name(r, "provenance", text, names, 2, &seeded));
    row->provenance = (uint8_t)(seeded ? FR_FROM_SEEDED : FR_FROM_MEASURED);
    return FR_OK;
}

static fr_status read_fill(const fr_reader *r, fr_row *row, char *text) {
    row->fill = true;
    return strcmp(text, "memory") == 0 ? FR_OK : fr_reader_bad(r, "fill", "expected memory");
}

static fr_status read_by(const fr_reader *r, fr_row *row, char *text) {
    row->by_owner = strcmp(text, "owner") == 0;
    return row->by_owner || strcmp(text, "reader") == 0 ? FR_OK : fr_reader_bad(r, "by", "expected owner or reader");
}

static fr_status read_tile(const fr_reader *r, fr_row *row, char *text) {
    const char *tiles[FR_TILES];
    for (int i = 0; i < FR_TILES; i++) tiles[i] = fr_tile_name((fr_tile)i);
    FR_TRY(read_name(r, "tile", text, tiles, FR_TILES, &row->tile));
    row->tile++;
    return FR_OK;
}

static const char *const
    precisions[FR_PRECISIONS] = {"bf16", "fp8"},
    *const regimes[] = {"burst", "sustained"}, *const transports[] = {"ce", "nccl", "nccl-ce"},
    *const orders[FR_PULL_ORDERS] = {"fixed", "round", "same"}, *const draws[FR_DRAWS] = {"link", "nccl", "exchange"},
    *const aggressors[FR_AGGRESSORS] = {"pull", "nccl", "h2d", "exchange"},
    *const victims[FR_CLASS_COUNT] = {"other", "host", "memory", "gemm", "attention", "grouped", "collective", "copy"};

/* A class, or with resident=1 one kind, which check_row sees to. */
static fr_status read_victim(const fr_reader *r, fr_row *row, char *text) {
    for (int i = 0; i < FR_CLASS_COUNT; i++)
        if (strcmp(victims[i], text) == 0) {
            row->victim = (uint8_t)i;
            return FR_OK;
        }
    const fr_op_kind kind = fr_op_by_name(text);
    if (kind == FR_OP_KIND_COUNT)
        return fr_reader_bad(r, "victim", "expected a class of ops, or with resident=1 an op");
    row->shape.kind = (uint8_t)kind;
    row->victim = (uint8_t)fr_op_class_of(kind);
    return FR_OK;
}

/* How a field stands in the row: a number of this type, one of a list of names (its place in it), true where it says 1,
 * or what a function of its own makes of it. */
typedef enum { A_DOUBLE, AN_I64, AN_I32, AN_I16, A_U8, A_NAME, A_FLAG, ITS_OWN } field_type;

typedef struct {
    const char *name;
    field_type type;
    size_t at; /* in the row */
    double low, high;
    const char *const *names;
    int count;
    fr_status (*own)(const fr_reader *r, fr_row *row, char *text);
} field;

#define NUMBER(f, type, member, low, high)                                                                             \
    { f, type, offsetof(fr_row, member), low, high, NULL, 0, NULL }
#define NAMED(f, member, list)                                                                                         \
    { f, A_NAME, offsetof(fr_row, member), 0, 0, list, (int)(sizeof(list) / sizeof *(list)), NULL }
#define FLAG(f, member)                                                                                                \
    { f, A_FLAG, offsetof(fr_row, member), 1, 1, NULL, 0, NULL }
#define OWN(f, reads)                                                                                                  \
    { f, ITS_OWN, 0, 0, 0, NULL, 0, reads }
#define MOST_RATE 1e15 /* bytes/s */
#define MOST_SIZE (1 << 24)
#define MOST_MS   60000

static const field fields[FR_FIELD_COUNT] = {
    [FR_FIELD_PRECISION] = NAMED("precision", shape.precision, precisions),
    [FR_FIELD_REGIME] = NAMED("regime", regime, regimes),
    [FR_FIELD_M] = NUMBER("m", AN_I64, shape.m, 1, INT32_MAX),
    [FR_FIELD_N] = NUMBER("n", AN_I32, shape.n, 1, MOST_SIZE),
    [FR_FIELD_K] = NUMBER("k", AN_I32, shape.k, 1, MOST_SIZE),
    [FR_FIELD_BYTES] = NUMBER("bytes", AN_I64, shape.bytes, 0, MAX_BYTES),
    [FR_FIELD_ROWS] = OWN("rows", read_rows),
    [FR_FIELD_SEQS] = OWN("seqs", read_seqs),
    [FR_FIELD_HEADS] = NUMBER("heads", AN_I32, shape.n, 1, MOST_SIZE),
    [FR_FIELD_KV_HEADS] = NUMBER("kv_heads", AN_I32, shape.k, 1, MOST_SIZE),
    [FR_FIELD_HEAD_DIM] = NUMBER("head_dim", AN_I32, shape.head_dim, 1, MOST_SIZE),
    [FR_FIELD_V_HEAD_DIM] = NUMBER("v_head_dim", AN_I16, shape.v_head_dim, 1, 4096),
    [FR_FIELD_WINDOW] = NUMBER("window", AN_I32, shape.window, 0, MOST_SIZE),
    [FR_FIELD_RANKS] = NUMBER("ranks", AN_I16, shape.ranks, 2, 4096),
    [FR_FIELD_HOSTS] = NUMBER("hosts", A_U8, shape.hosts, 1, 255),
    [FR_FIELD_TRANSPORT] = NAMED("transport", shape.transport, transports),
    [FR_FIELD_WAYS] = NUMBER("ways", A_U8, ways, 1, 2),
    [FR_FIELD_VICTIM] = OWN("victim", read_victim),
    [FR_FIELD_AGGRESSOR] = NAMED("aggressor", aggressor, aggressors),
    [FR_FIELD_ALONE] = NUMBER("alone", A_DOUBLE, alone, 1, MAX_NS),
    [FR_FIELD_BESIDE] = NUMBER("beside", A_DOUBLE, beside, 1, MAX_NS),
    [FR_FIELD_OVERLAP] = NUMBER("overlap", A_DOUBLE, overlap, 1, MAX_NS),
    [FR_FIELD_HBM_TRAFFIC] = NUMBER("hbm_traffic", A_DOUBLE, hbm_traffic, 0, MOST_RATE),
    [FR_FIELD_NS] = NUMBER("ns", A_DOUBLE, ns, 1, MAX_NS),
    [FR_FIELD_P10] = NUMBER("p10", A_DOUBLE, p10, 1, MAX_NS),
    [FR_FIELD_P90] = NUMBER("p90", A_DOUBLE, p90, 1, MAX_NS),
    [FR_FIELD_SAMPLES] = NUMBER("samples", A_DOUBLE, samples, 1, 1e9),
    [FR_FIELD_CLOCK] = NUMBER("clock_mhz", A_DOUBLE, clock_mhz, 1, 1e5),
    [FR_FIELD_WATTS] = NUMBER("watts", A_DOUBLE, watts, 1, 1e5),
    [FR_FIELD_PROVENANCE] = OWN("provenance", read_provenance),
    [FR_FIELD_DUTY] = NUMBER("duty", A_DOUBLE, duty, 0.01, 1),
    [FR_FIELD_AT_MS] = NUMBER("at_ms", AN_I32, at_ms, 0, MOST_MS),
    [FR_FIELD_CAPPED] = NUMBER("capped", A_DOUBLE, capped, 0, 1),
    [FR_FIELD_RATE] = NUMBER("rate", A_DOUBLE, rate, 1, MOST_RATE),
    [FR_FIELD_RATE_ALONE] = NUMBER("rate_alone", A_DOUBLE, rate_alone, 1, MOST_RATE),
    [FR_FIELD_CLOCK_ALONE] = NUMBER("clock_alone", A_DOUBLE, clock_alone, 1, 1e5),
    [FR_FIELD_WATTS_ALONE] = NUMBER("watts_alone", A_DOUBLE, watts_alone, 1, 1e5),
    [FR_FIELD_TILE] = OWN("tile", read_tile),
    [FR_FIELD_PACKED] = FLAG("packed", packed),
    [FR_FIELD_GAP_MS] = NUMBER("gap_ms", AN_I32, gap_ms, 1, MOST_MS),
    [FR_FIELD_TURN_MS] = NUMBER("turn_ms", AN_I32, turn_ms, 1, MOST_MS),
    [FR_FIELD_FILL] = OWN("fill", read_fill),
    [FR_FIELD_STREAMS] = NUMBER("streams", A_U8, streams, 1, 64),
    [FR_FIELD_ORDER] = NAMED("order", order, orders),
    [FR_FIELD_CARD] = OWN("card", read_card),
    [FR_FIELD_BY] = OWN("by", read_by),
    [FR_FIELD_OF] = NAMED("of", aggressor, draws),
    [FR_FIELD_BEHIND] = FLAG("behind", behind),
    [FR_FIELD_RESIDENT] = FLAG("resident", resident)};

static void store(field_type type, void *to, int64_t v) {
    switch (type) {
    case AN_I64:
        *(int64_t *)to = v;
        break;
    case AN_I32:
        *(int32_t *)to = (int32_t)v;
        break;
    case AN_I16:
        *(int16_t *)to = (int16_t)v;
        break;
    case A_FLAG:
        *(bool *)to = true;
        break;
    default:
        *(uint8_t *)to = (uint8_t)v;
        break;
    }
}

fr_status fr_field_read(const fr_reader *r, fr_row *row, fr_field id, char *text) {
    const field *f = &fields[id];
    void *const to = (char *)row + f->at;
    int64_t v = 0;
    if (f->type == ITS_OWN) return f->own(r, row, text);
    if (f->type == A_NAME) return read_name(r, f->name, text, f->names, f->count, to);
    if (f->type == A_DOUBLE) return fr_reader_double(r, f->name, text, f->low, f->high, to);
    FR_TRY(read_int(r, f->name, text, (int64_t)f->low, (int64_t)f->high, &v));
    store(f->type, to, v);
    return FR_OK;
}

/* What it may have besides ALWAYS_OPTIONAL. */
static void op_fields(const fr_row *row, uint64_t *need, uint64_t *may) {
    *may = 0;
    if (row->type == FR_ROW_FLOOR || (row->type >= FR_ROW_GAP && row->type <= FR_ROW_EVENT)) {
        *need = TIMED;
        return;
    }
    if (row->type == FR_ROW_SLOWDOWN) {
        *need = BIT(REGIME) | BIT(VICTIM) | BIT(AGGRESSOR) | BIT(ALONE) | BIT(BESIDE);
        *may = BIT(OVERLAP) | BIT(HBM_TRAFFIC) | BIT(WAYS) | BIT(DUTY) | BIT(TURN_MS) | BIT(RATE) | BIT(RATE_ALONE) |
               BIT(CLOCK_ALONE) | BIT(WATTS_ALONE) | BIT(RANKS) | BIT(RESIDENT);
        return;
    }
    if (row->type == FR_ROW_DRAW) {
        *need = BIT(REGIME) | BIT(OF) | BIT(WATTS) | BIT(WATTS_ALONE);
        *may = BIT(TURN_MS) | BIT(RANKS);
        return;
    }
    *may = BIT(DUTY) | BIT(AT_MS) | BIT(GAP_MS) | BIT(TURN_MS) | BIT(FILL);
    switch (fr_op_class_of((fr_op_kind)row->shape.kind)) {
    case FR_CLASS_HOST:
        *need = TIMED;
        *may |= BIT(M);
        break;
    case FR_CLASS_MEMORY:
        *need = TIMED | BIT(BYTES);
        *may |= BIT(M) | BIT(N) | BIT(BEHIND);
        if (row->shape.kind == FR_OP_PERMUTE) *may |= BIT(K);
        break;
    case FR_CLASS_GEMM:
        *need = TIMED | BIT(PRECISION) | BIT(M) | BIT(N) | BIT(K);
        *may |= BIT(BEHIND);
        break;
    case FR_CLASS_GROUPED:
        *need = TIMED | BIT(PRECISION) | BIT(ROWS) | BIT(N) | BIT(K);
        *may |= BIT(TILE) | BIT(BEHIND);
        break;
    case FR_CLASS_ATTENTION:
        *need = TIMED | BIT(PRECISION) | BIT(SEQS) | BIT(HEADS) | BIT(KV_HEADS) | BIT(HEAD_DIM);
        *may |= BIT(V_HEAD_DIM) | BIT(WINDOW) | BIT(PACKED) | BIT(BEHIND);
        break;
    case FR_CLASS_COLLECTIVE:
        *need = TIMED | BIT(BYTES) | BIT(RANKS);
        *may |= BIT(TRANSPORT) | BIT(HOSTS);
        break;
    case FR_CLASS_COPY:
        *need = TIMED | BIT(BYTES);
        *may |= BIT(WAYS) | BIT(RANKS) | BIT(STREAMS) | BIT(ORDER) | BIT(BY);
        break;
    default:
        *need = 0;
        break;
    }
}

void fr_field_sets(const fr_row *row, uint64_t *need, uint64_t *may) {
    op_fields(row, need, may);
    *may |= ALWAYS_OPTIONAL;
}

const char *fr_field_name(fr_field f) {
    return fields[f].name;
}

fr_field fr_field_find(const char *name, fr_field from) {
    int f = (int)from;
    for (int looked = 0; looked < FR_FIELD_COUNT; looked++, f = (f + 1) % FR_FIELD_COUNT)
        if (fields[f].name[0] == name[0] && strcmp(fields[f].name, name) == 0) return (fr_field)f;
    return FR_FIELD_COUNT;
}

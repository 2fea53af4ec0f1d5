/*
 * Reader of measured-cost tables. Grammar (kernels/measured/FORMAT.md):
 *
 *     # key: value          header, before the first row
 *     ## anything           comment
 *     op key=value ...  ## comment
 *
 * A row must hold every field that its op needs and none that it does not.
 */
#include "engine/cost/cost_table.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_LIMIT  16384
#define ROW_LIMIT   65536
#define ENTRY_LIMIT 4096   /* entries of one vector */
#define MAX_NS      3.6e12 /* an hour: no single op takes longer */
#define MAX_BYTES   (INT64_C(1) << 46)

typedef enum {
    F_PRECISION,
    F_REGIME,
    F_M,
    F_N,
    F_K,
    F_BYTES,
    F_ROWS,
    F_SEQS,
    F_HEADS,
    F_KV_HEADS,
    F_HEAD_DIM,
    F_V_HEAD_DIM,
    F_WINDOW,
    F_RANKS,
    F_HOSTS,
    F_TRANSPORT,
    F_WAYS,
    F_VICTIM,
    F_AGGRESSOR,
    F_ALONE,
    F_BESIDE,
    F_OVERLAP,
    F_HBM_TRAFFIC,
    F_NS,
    F_P10,
    F_P90,
    F_SAMPLES,
    F_CLOCK,
    F_WATTS,
    F_PROVENANCE,
    F_DUTY,
    F_AT_MS,
    F_CAPPED,
    F_RATE,
    F_RATE_ALONE,
    F_CLOCK_ALONE,
    F_WATTS_ALONE,
    F_TILE,
    F_PACKED,
    F_GAP_MS,
    F_TURN_MS,
    F_FILL,
    F_STREAMS,
    F_ORDER,
    F_CARD,
    F_BY,
    F_OF,
    F_BEHIND,
    F_RESIDENT,
    F_COUNT
} field_id;

#define BIT(f) (UINT64_C(1) << (f))
#define TIMED  (BIT(F_REGIME) | BIT(F_NS))
#define ALWAYS_OPTIONAL                                                                                                \
    (BIT(F_P10) | BIT(F_P90) | BIT(F_SAMPLES) | BIT(F_CLOCK) | BIT(F_WATTS) | BIT(F_CAPPED) | BIT(F_PROVENANCE) |      \
     BIT(F_CARD))

/* Rows by their keys: open addressing, 1 + the row's number, 0 = free. */
typedef struct {
    uint32_t *slots;
    uint32_t size; /* a power of two, at least twice the rows */
} row_index;

/* Quantiles of the last number of experts that was dealt to. */
typedef struct {
    int32_t experts;
    double z[ENTRY_LIMIT];
} normal;

typedef struct {
    const char *where;
    int line;
    fr_error *err;
    fr_table *t;
    row_index *index;
    normal *normal;
} reader;

static fr_status bad(const reader *r, const char *field, const char *expected) {
    return fr_fail(r->err, FR_BAD_INPUT, "%s:%d: %s: %s", r->where, r->line, field, expected);
}

/* Splits off the next token at blanks; NULL at the end. */
static char *next_token(char **text, const char *separators) {
    char *s = *text + strspn(*text, separators);
    if (!*s) return NULL;
    char *end = s + strcspn(s, separators);
    *text = *end ? end + 1 : end;
    *end = 0;
    return s;
}

static fr_status read_double(const reader *r, const char *field, const char *text, double low, double high,
                             double *out) {
    fr_error quiet;
    if (fr_parse_double(text, low, high, field, out, &quiet) == FR_OK) return FR_OK;
    char what[512]; /* only where it is needed: tables have thirty thousand numbers */
    snprintf(what, sizeof what, "%.300s:%d: %s", r->where, r->line, field);
    return fr_parse_double(text, low, high, what, out, r->err);
}

static fr_status read_int(const reader *r, const char *field, const char *text, int64_t low, int64_t high,
                          int64_t *out) {
    fr_error quiet;
    if (fr_parse_int(text, low, high, false, field, out, &quiet) == FR_OK) return FR_OK;
    char what[512];
    snprintf(what, sizeof what, "%.300s:%d: %s", r->where, r->line, field);
    return fr_parse_int(text, low, high, false, what, out, r->err);
}

static fr_status read_name(const reader *r, const char *field, const char *text, const char *const *names, int count,
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
    return bad(r, field, list);
}

static fr_status push_pairs(const reader *r, const char *field, fr_shape *s, int64_t queries, int64_t prefix,
                            int64_t repeat) {
    if (s->vector_count + repeat > ENTRY_LIMIT) return bad(r, field, "more than 4096 entries");
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

static fr_status random_rows(const reader *r, fr_shape *s, char *text) {
    char *slash = strchr(text, '/');
    if (!slash) return bad(r, "rows", "expected random:SUM/EXPERTS");
    *slash = 0;
    int64_t sum, experts;
    FR_TRY(read_int(r, "rows", text, 1, INT32_MAX, &sum));
    FR_TRY(read_int(r, "rows", slash + 1, 1, ENTRY_LIMIT, &experts));
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
static fr_status read_vector(const reader *r, const char *field, char *text, bool sequences, fr_shape *s) {
    s->vector = r->t->pairs_count;
    s->vector_count = 0;
    if (!sequences && strncmp(text, "random:", 7) == 0) {
        FR_TRY(random_rows(r, s, text + 7));
    } else {
        char *rest = text, *item;
        while ((item = next_token(&rest, ","))) {
            int64_t queries, prefix = 0, repeat = 1;
            char *x = strchr(item, 'x');
            if (x) {
                *x = 0;
                FR_TRY(read_int(r, field, x + 1, 1, ENTRY_LIMIT, &repeat));
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
    if (total == 0) return bad(r, field, "expected at least one row");
    s->m = total;
    if (!sequences) s->experts = (int32_t)s->vector_count;
    return FR_OK;
}

/* ---- fields of a row ----------------------------------------------------------------------------------------------*/

static fr_status read_rows(const reader *r, fr_row *row, char *text) {
    return read_vector(r, "rows", text, false, &row->shape);
}

static fr_status read_seqs(const reader *r, fr_row *row, char *text) {
    return read_vector(r, "seqs", text, true, &row->shape);
}

/* Eight hexadecimal digits. */
static fr_status read_card(const reader *r, fr_row *row, char *text) {
    if (strlen(text) != 8 || strspn(text, "0123456789abcdef") != 8)
        return bad(r, "card", "expected the first eight digits of a GPU's uuid");
    row->card = (uint32_t)strtoul(text, NULL, 16);
    return FR_OK;
}

static fr_status read_provenance(const reader *r, fr_row *row, char *text) {
    static const char *const names[] = {"measured", "seeded"};
    uint8_t seeded = 0;
    FR_TRY(read_name(r, "provenance", text, names, 2, &seeded));
    row->provenance = (uint8_t)(seeded ? FR_FROM_SEEDED : FR_FROM_MEASURED);
    return FR_OK;
}

static fr_status read_fill(const reader *r, fr_row *row, char *text) {
    row->fill = true;
    return strcmp(text, "memory") == 0 ? FR_OK : bad(r, "fill", "expected memory");
}

static fr_status read_by(const reader *r, fr_row *row, char *text) {
    row->by_owner = strcmp(text, "owner") == 0;
    return row->by_owner || strcmp(text, "reader") == 0 ? FR_OK : bad(r, "by", "expected owner or reader");
}

static fr_status read_tile(const reader *r, fr_row *row, char *text) {
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
static fr_status read_victim(const reader *r, fr_row *row, char *text) {
    for (int i = 0; i < FR_CLASS_COUNT; i++)
        if (strcmp(victims[i], text) == 0) {
            row->victim = (uint8_t)i;
            return FR_OK;
        }
    const fr_op_kind kind = fr_op_by_name(text);
    if (kind == FR_OP_KIND_COUNT) return bad(r, "victim", "expected a class of ops, or with resident=1 an op");
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
    fr_status (*own)(const reader *r, fr_row *row, char *text);
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

static const field fields[F_COUNT] = {[F_PRECISION] = NAMED("precision", shape.precision, precisions),
                                      [F_REGIME] = NAMED("regime", regime, regimes),
                                      [F_M] = NUMBER("m", AN_I64, shape.m, 1, INT32_MAX),
                                      [F_N] = NUMBER("n", AN_I32, shape.n, 1, MOST_SIZE),
                                      [F_K] = NUMBER("k", AN_I32, shape.k, 1, MOST_SIZE),
                                      [F_BYTES] = NUMBER("bytes", AN_I64, shape.bytes, 0, MAX_BYTES),
                                      [F_ROWS] = OWN("rows", read_rows),
                                      [F_SEQS] = OWN("seqs", read_seqs),
                                      [F_HEADS] = NUMBER("heads", AN_I32, shape.n, 1, MOST_SIZE),
                                      [F_KV_HEADS] = NUMBER("kv_heads", AN_I32, shape.k, 1, MOST_SIZE),
                                      [F_HEAD_DIM] = NUMBER("head_dim", AN_I32, shape.head_dim, 1, MOST_SIZE),
                                      [F_V_HEAD_DIM] = NUMBER("v_head_dim", AN_I16, shape.v_head_dim, 1, 4096),
                                      [F_WINDOW] = NUMBER("window", AN_I32, shape.window, 0, MOST_SIZE),
                                      [F_RANKS] = NUMBER("ranks", AN_I16, shape.ranks, 2, 4096),
                                      [F_HOSTS] = NUMBER("hosts", A_U8, shape.hosts, 1, 255),
                                      [F_TRANSPORT] = NAMED("transport", shape.transport, transports),
                                      [F_WAYS] = NUMBER("ways", A_U8, ways, 1, 2),
                                      [F_VICTIM] = OWN("victim", read_victim),
                                      [F_AGGRESSOR] = NAMED("aggressor", aggressor, aggressors),
                                      [F_ALONE] = NUMBER("alone", A_DOUBLE, alone, 1, MAX_NS),
                                      [F_BESIDE] = NUMBER("beside", A_DOUBLE, beside, 1, MAX_NS),
                                      [F_OVERLAP] = NUMBER("overlap", A_DOUBLE, overlap, 1, MAX_NS),
                                      [F_HBM_TRAFFIC] = NUMBER("hbm_traffic", A_DOUBLE, hbm_traffic, 0, MOST_RATE),
                                      [F_NS] = NUMBER("ns", A_DOUBLE, ns, 1, MAX_NS),
                                      [F_P10] = NUMBER("p10", A_DOUBLE, p10, 1, MAX_NS),
                                      [F_P90] = NUMBER("p90", A_DOUBLE, p90, 1, MAX_NS),
                                      [F_SAMPLES] = NUMBER("samples", A_DOUBLE, samples, 1, 1e9),
                                      [F_CLOCK] = NUMBER("clock_mhz", A_DOUBLE, clock_mhz, 1, 1e5),
                                      [F_WATTS] = NUMBER("watts", A_DOUBLE, watts, 1, 1e5),
                                      [F_PROVENANCE] = OWN("provenance", read_provenance),
                                      [F_DUTY] = NUMBER("duty", A_DOUBLE, duty, 0.01, 1),
                                      [F_AT_MS] = NUMBER("at_ms", AN_I32, at_ms, 0, MOST_MS),
                                      [F_CAPPED] = NUMBER("capped", A_DOUBLE, capped, 0, 1),
                                      [F_RATE] = NUMBER("rate", A_DOUBLE, rate, 1, MOST_RATE),
                                      [F_RATE_ALONE] = NUMBER("rate_alone", A_DOUBLE, rate_alone, 1, MOST_RATE),
                                      [F_CLOCK_ALONE] = NUMBER("clock_alone", A_DOUBLE, clock_alone, 1, 1e5),
                                      [F_WATTS_ALONE] = NUMBER("watts_alone", A_DOUBLE, watts_alone, 1, 1e5),
                                      [F_TILE] = OWN("tile", read_tile),
                                      [F_PACKED] = FLAG("packed", packed),
                                      [F_GAP_MS] = NUMBER("gap_ms", AN_I32, gap_ms, 1, MOST_MS),
                                      [F_TURN_MS] = NUMBER("turn_ms", AN_I32, turn_ms, 1, MOST_MS),
                                      [F_FILL] = OWN("fill", read_fill),
                                      [F_STREAMS] = NUMBER("streams", A_U8, streams, 1, 64),
                                      [F_ORDER] = NAMED("order", order, orders),
                                      [F_CARD] = OWN("card", read_card),
                                      [F_BY] = OWN("by", read_by),
                                      [F_OF] = NAMED("of", aggressor, draws),
                                      [F_BEHIND] = FLAG("behind", behind),
                                      [F_RESIDENT] = FLAG("resident", resident)};

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

static fr_status read_field(const reader *r, fr_row *row, const field *f, char *text) {
    void *const to = (char *)row + f->at;
    int64_t v = 0;
    if (f->type == ITS_OWN) return f->own(r, row, text);
    if (f->type == A_NAME) return read_name(r, f->name, text, f->names, f->count, to);
    if (f->type == A_DOUBLE) return read_double(r, f->name, text, f->low, f->high, to);
    FR_TRY(read_int(r, f->name, text, (int64_t)f->low, (int64_t)f->high, &v));
    store(f->type, to, v);
    return FR_OK;
}

/* Which fields a row needs and which it may have besides ALWAYS_OPTIONAL. */
static void row_fields(const fr_row *row, uint64_t *need, uint64_t *may) {
    *may = 0;
    if (row->type == FR_ROW_FLOOR || (row->type >= FR_ROW_GAP && row->type <= FR_ROW_EVENT)) {
        *need = TIMED;
        return;
    }
    if (row->type == FR_ROW_SLOWDOWN) {
        *need = BIT(F_REGIME) | BIT(F_VICTIM) | BIT(F_AGGRESSOR) | BIT(F_ALONE) | BIT(F_BESIDE);
        *may = BIT(F_OVERLAP) | BIT(F_HBM_TRAFFIC) | BIT(F_WAYS) | BIT(F_DUTY) | BIT(F_TURN_MS) | BIT(F_RATE) |
               BIT(F_RATE_ALONE) | BIT(F_CLOCK_ALONE) | BIT(F_WATTS_ALONE) | BIT(F_RANKS) | BIT(F_RESIDENT);
        return;
    }
    if (row->type == FR_ROW_DRAW) {
        *need = BIT(F_REGIME) | BIT(F_OF) | BIT(F_WATTS) | BIT(F_WATTS_ALONE);
        *may = BIT(F_TURN_MS) | BIT(F_RANKS);
        return;
    }
    *may = BIT(F_DUTY) | BIT(F_AT_MS) | BIT(F_GAP_MS) | BIT(F_TURN_MS) | BIT(F_FILL);
    switch (fr_op_class_of((fr_op_kind)row->shape.kind)) {
    case FR_CLASS_HOST:
        *need = TIMED;
        *may |= BIT(F_M);
        break;
    case FR_CLASS_MEMORY:
        *need = TIMED | BIT(F_BYTES);
        *may |= BIT(F_M) | BIT(F_N) | BIT(F_BEHIND);
        if (row->shape.kind == FR_OP_PERMUTE) *may |= BIT(F_K);
        break;
    case FR_CLASS_GEMM:
        *need = TIMED | BIT(F_PRECISION) | BIT(F_M) | BIT(F_N) | BIT(F_K);
        *may |= BIT(F_BEHIND);
        break;
    case FR_CLASS_GROUPED:
        *need = TIMED | BIT(F_PRECISION) | BIT(F_ROWS) | BIT(F_N) | BIT(F_K);
        *may |= BIT(F_TILE) | BIT(F_BEHIND);
        break;
    case FR_CLASS_ATTENTION:
        *need = TIMED | BIT(F_PRECISION) | BIT(F_SEQS) | BIT(F_HEADS) | BIT(F_KV_HEADS) | BIT(F_HEAD_DIM);
        *may |= BIT(F_V_HEAD_DIM) | BIT(F_WINDOW) | BIT(F_PACKED) | BIT(F_BEHIND);
        break;
    case FR_CLASS_COLLECTIVE:
        *need = TIMED | BIT(F_BYTES) | BIT(F_RANKS);
        *may |= BIT(F_TRANSPORT) | BIT(F_HOSTS);
        break;
    case FR_CLASS_COPY:
        *need = TIMED | BIT(F_BYTES);
        *may |= BIT(F_WAYS) | BIT(F_RANKS) | BIT(F_STREAMS) | BIT(F_ORDER) | BIT(F_BY);
        break;
    default:
        *need = 0;
        break;
    }
}

static void index_row(row_index *x, const fr_table *t, uint32_t row) {
    uint64_t at = t->rows[row].key;
    while (x->slots[at & (x->size - 1)]) at++;
    x->slots[at & (x->size - 1)] = row + 1;
}

/* Room for one row more than the table has. */
static void grow_index(row_index *x, const fr_table *t) {
    if (2 * ((uint64_t)t->count + 1) <= x->size) return;
    free(x->slots);
    while (x->size < 2 * ((uint64_t)t->count + 1)) x->size = x->size ? 2 * x->size : 1024;
    x->slots = fr_alloc(x->size * sizeof *x->slots);
    for (uint32_t i = 0; i < t->count; i++) index_row(x, t, i);
}

/* The row of the table that measured the same, NULL = none. */
static const fr_row *find_row(row_index *x, const fr_table *t, const fr_row *row) {
    grow_index(x, t);
    for (uint64_t at = row->key; x->slots[at & (x->size - 1)]; at++) {
        const fr_row *other = &t->rows[x->slots[at & (x->size - 1)] - 1];
        if (fr_row_same(t, row, t, other, true) && (!row->card || !other->card || row->card == other->card))
            return other;
    }
    return NULL;
}

static fr_status check_row(const reader *r, fr_row *row, uint64_t seen) {
    uint64_t need, may;
    row_fields(row, &need, &may);
    for (int f = 0; f < F_COUNT; f++) {
        if ((need & BIT(f)) && !(seen & BIT(f))) return bad(r, fields[f].name, "missing in this row");
        if ((seen & BIT(f)) && !((need | may | ALWAYS_OPTIONAL) & BIT(f)))
            return bad(r, fields[f].name, "does not belong to this op");
    }
    const double middle = row->type == FR_ROW_SLOWDOWN ? row->beside : row->ns;
    if ((row->p10 > 0 && row->p10 > middle) || (row->p90 > 0 && row->p90 < middle))
        return bad(r, "p10", "expected p10 <= ns <= p90");
    if (row->type == FR_ROW_SLOWDOWN && !(seen & BIT(F_WAYS))) row->ways = 2;
    if (row->type != FR_ROW_SLOWDOWN && row->duty < 1 && row->regime != FR_SUSTAINED)
        return bad(r, "duty", "a pause between launches belongs to regime=sustained");
    if (row->behind && (row->regime != FR_SUSTAINED || row->clock_mhz <= 0))
        return bad(r, "behind", "needs regime=sustained and clock_mhz: of kernels under the power limit");
    if (row->at_ms >= 0 && row->regime != FR_BURST) return bad(r, "at_ms", "belongs to regime=burst");
    if (row->gap_ms >= 0 && row->regime != FR_BURST) return bad(r, "gap_ms", "belongs to regime=burst");
    if (row->fill && row->gap_ms < 0) return bad(r, "fill", "says what ran in the pause: needs gap_ms");
    if (row->order && !row->streams) return bad(r, "order", "needs streams: of how many pulls in flight");
    if (row->type == FR_ROW_SLOWDOWN && row->shape.kind != FR_OP_NONE && !row->resident)
        return bad(r, "victim", "a single op belongs to resident=1");
    if (row->turn_ms && row->duty >= 1 && row->type != FR_ROW_DRAW)
        return bad(r, "turn_ms", "needs duty: without a pause there are no turns");
    fr_op_class class = fr_op_class_of((fr_op_kind)row->shape.kind);
    if (class == FR_CLASS_COLLECTIVE || class == FR_CLASS_COPY) {
        if (r->t->ceilings.link <= 0 && r->t->ceilings.pcie <= 0)
            return bad(r, fr_row_name(row), "needs link_rate or pcie_rate in the header");
        if ((row->shape.kind == FR_OP_H2D || row->shape.kind == FR_OP_D2H) && r->t->ceilings.pcie <= 0)
            return bad(r, fr_row_name(row), "needs pcie_rate in the header");
    }
    if (row->shape.head_dim && !row->shape.v_head_dim) row->shape.v_head_dim = (int16_t)row->shape.head_dim;
    if (row->shape.hosts == 0) row->shape.hosts = 1;
    row->key = fr_row_key(r->t, row);
    const fr_row *other = find_row(r->index, r->t, row);
    if (other) {
        char text[96];
        snprintf(text, sizeof text, "a second row for the shape of line %d", other->line);
        return bad(r, fr_row_name(row), text);
    }
    return FR_OK;
}

static fr_status read_row(const reader *r, char *line) {
    char *op = next_token(&line, " \t");
    fr_row row = {.line = r->line, .ways = 1, .duty = 1, .at_ms = -1, .gap_ms = -1};
    row.provenance = (uint8_t)(r->t->seeded ? FR_FROM_SEEDED : FR_FROM_MEASURED);
    const fr_row *last = r->t->count ? &r->t->rows[r->t->count - 1] : NULL; /* rows of an op mostly lie together */
    if (op && last && strcmp(op, fr_row_name(last)) == 0) {
        row.type = last->type;
        row.shape.kind = last->type == FR_ROW_SLOWDOWN ? FR_OP_NONE : last->shape.kind; /* or its victim */
    } else if (!fr_row_kind(op, &row))
        return bad(r, "op", "unknown op (names are those of engine/plan/op.h)");
    uint64_t seen = 0;
    char *token;
    int f = 0; /* fields mostly come in one order: looked for from the last one on */
    while ((token = next_token(&line, " \t"))) {
        char *value = strchr(token, '=');
        if (!value) return bad(r, token, "expected key=value");
        *value++ = 0;
        int looked = 0;
        for (; looked < F_COUNT && strcmp(fields[f].name, token) != 0; looked++) f = (f + 1) % F_COUNT;
        if (looked == F_COUNT) return bad(r, token, "unknown field");
        if (seen & BIT(f)) return bad(r, token, "given twice");
        seen |= BIT(f);
        FR_TRY(read_field(r, &row, &fields[f], value));
    }
    FR_TRY(check_row(r, &row, seen));
    fr_table *t = r->t;
    if (t->count >= ROW_LIMIT) return bad(r, "op", "more than 16384 rows");
    FR_GROW(t->rows, t->cap, t->count + 1);
    t->rows[t->count++] = row;
    index_row(r->index, t, t->count - 1);
    t->seeds += row.provenance == FR_FROM_SEEDED;
    return FR_OK;
}

enum { H_GPU = 1, H_SMS = 2, H_PEAK = 4, H_HBM = 8, H_NEEDED = 15 };

static fr_status read_header(const reader *r, char *line, uint32_t *needed, uint32_t *seen) {
    static const char *const free_text[] = {"uuid", "driver",  "cuda",   "cublas",  "cudnn",
                                            "nccl", "date",    "clocks", "source",  "kernels",
                                            "host", "licence", "name",   "version", "mode"};
    fr_table *t = r->t;
    fr_ceilings *c = &t->ceilings;
    const struct {
        const char *key;
        double *rate;
        int *whole;
        double low, high;
        uint32_t needed;
    } numbers[] = {{"peak_bf16", &c->peak[FR_BF16], NULL, 1, 1e18, H_PEAK},
                   {"peak_fp8", &c->peak[FR_FP8], NULL, 0, 1e18, 0},
                   {"hbm_rate", &c->hbm, NULL, 1, 1e18, H_HBM},
                   {"link_rate", &c->link, NULL, 0, 1e18, 0},
                   {"pcie_rate", &c->pcie, NULL, 0, 1e18, 0},
                   {"sms", NULL, &c->sms, 1, 1024, H_SMS},
                   {"grouped_tile", NULL, &c->grouped_tile, 16, 256, 0},
                   {"power_limit_w", &t->limit_watts, NULL, 1, 1e5, 0},
                   {"idle_w", &t->idle_watts, NULL, 1, 1e5, 0},
                   {"clock_max_mhz", &t->clock_max_mhz, NULL, 1, 1e5, 0}};
    char *colon = strchr(line, ':');
    if (!colon) return bad(r, "header", "expected '# key: value' (a comment starts with ##)");
    *colon = 0;
    char *key = line, *value = colon + 1 + strspn(colon + 1, " \t");
    uint32_t bit = 0;
    if (strcmp(key, "gpu") == 0) {
        if (!*value || strlen(value) >= sizeof t->gpu) return bad(r, key, "expected a short name");
        if (t->gpu[0] && strcmp(t->gpu, value) != 0) return bad(r, key, "another GPU than the rows before");
        snprintf(t->gpu, sizeof t->gpu, "%s", value);
        *needed |= H_GPU;
        return FR_OK;
    }
    if (strcmp(key, "provenance") == 0) {
        t->seeded = strcmp(value, "seeded") == 0;
        if (!t->seeded && strcmp(value, "measured") != 0) return bad(r, key, "expected measured or seeded");
        bit = UINT32_C(1) << 31;
    }
    for (uint32_t i = 0; i < sizeof numbers / sizeof *numbers && !bit; i++)
        if (strcmp(key, numbers[i].key) == 0) {
            double v;
            FR_TRY(read_double(r, key, value, numbers[i].low, numbers[i].high, &v));
            if (numbers[i].rate)
                *numbers[i].rate = v;
            else
                *numbers[i].whole = (int)v;
            *needed |= numbers[i].needed;
            bit = UINT32_C(1) << i;
        }
    if (strcmp(key, "uuid") == 0) snprintf(t->uuid, sizeof t->uuid, "%.*s", (int)strcspn(value, ", "), value);
    for (uint32_t i = 0; i < sizeof free_text / sizeof *free_text && !bit; i++)
        if (strcmp(key, free_text[i]) == 0) bit = UINT32_C(1) << (i + 12);
    if (!bit) return bad(r, key, "unknown header");
    if (*seen & bit) return bad(r, key, "given twice");
    *seen |= bit;
    return FR_OK;
}

static fr_status read_line(const reader *r, char *line, uint32_t *needed, uint32_t *seen, bool *rows) {
    if (line[0] == '#' && line[1] == '#') return FR_OK;
    if (line[0] == '#') {
        if (*rows) return bad(r, "header", "headers come before the first row");
        return read_header(r, line + 1 + strspn(line + 1, " \t"), needed, seen);
    }
    char *comment = strstr(line, "##");
    if (comment) *comment = 0;
    if (line[strspn(line, " \t")] == 0) return FR_OK;
    if (*needed != H_NEEDED) return bad(r, "header", "gpu, sms, peak_bf16 and hbm_rate must come before the rows");
    *rows = true;
    return read_row(r, line);
}

fr_status fr_table_parse(const char *text, size_t length, const char *where, fr_table *t, fr_error *err) {
    row_index index = {0};
    reader r = {.where = where, .err = err, .t = t, .index = &index, .normal = fr_alloc(sizeof *r.normal)};
    uint32_t needed = 0, seen = 0;
    bool rows = false;
    t->seeded = false;
    char *line = fr_alloc(LINE_LIMIT);
    fr_status status = FR_OK;
    for (size_t at = 0; at < length && status == FR_OK;) {
        const char *end = memchr(text + at, '\n', length - at);
        size_t n = end ? (size_t)(end - text) - at : length - at;
        r.line++;
        if (!end)
            status = bad(&r, "line", "no line end: the file is truncated");
        else if (n >= LINE_LIMIT || memchr(text + at, 0, n))
            status = bad(&r, "line", "too long, or not text");
        else {
            memcpy(line, text + at, n);
            line[n] = 0;
            if (n && line[n - 1] == '\r') line[n - 1] = 0;
            status = read_line(&r, line, &needed, &seen, &rows);
        }
        at += n + 1;
    }
    free(index.slots);
    free(r.normal);
    free(line);
    r.line++;
    if (t->ceilings.grouped_tile == 0) t->ceilings.grouped_tile = 128;
    if (status == FR_OK && needed != H_NEEDED)
        status = bad(&r, "header", "gpu, sms, peak_bf16 and hbm_rate are needed");
    return status;
}

void fr_table_free(fr_table *t) {
    free(t->rows);
    free(t->pairs);
    *t = (fr_table){0};
}

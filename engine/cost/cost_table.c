/*
 * Reader of measured-cost tables. Grammar (kernels/measured/FORMAT.md):
 *
 *     # key: value          header, before the first row
 *     ## anything           comment
 *     op key=value ...  ## comment
 *
 * A row must hold every field that its op needs and none that it does not.
 */
#include "engine/cost/cost_field.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_LIMIT 16384
#define ROW_LIMIT  65536
#define BIT(f)     FR_FIELD_BIT(FR_FIELD_##f)

/* Rows by their keys: open addressing, 1 + the row's number, 0 = free. */
typedef struct fr_row_index {
    uint32_t *slots;
    uint32_t size; /* a power of two, at least twice the rows */
} row_index;

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

static fr_status check_row(const fr_reader *r, fr_row *row, uint64_t seen) {
    uint64_t need, may;
    fr_field_sets(row, &need, &may);
    for (int f = 0; f < FR_FIELD_COUNT; f++) {
        if ((need & FR_FIELD_BIT(f)) && !(seen & FR_FIELD_BIT(f)))
            return fr_reader_bad(r, fr_field_name((fr_field)f), "missing in this row");
        if ((seen & FR_FIELD_BIT(f)) && !((need | may) & FR_FIELD_BIT(f)))
            return fr_reader_bad(r, fr_field_name((fr_field)f), "does not belong to this op");
    }
    const double middle = row->type == FR_ROW_SLOWDOWN ? row->beside : row->ns;
    if ((row->p10 > 0 && row->p10 > middle) || (row->p90 > 0 && row->p90 < middle))
        return fr_reader_bad(r, "p10", "expected p10 <= ns <= p90");
    if (row->type == FR_ROW_SLOWDOWN && !(seen & BIT(WAYS))) row->ways = 2;
    if (row->type != FR_ROW_SLOWDOWN && row->duty < 1 && row->regime != FR_SUSTAINED)
        return fr_reader_bad(r, "duty", "a pause between launches belongs to regime=sustained");
    if (row->behind && (row->regime != FR_SUSTAINED || row->clock_mhz <= 0))
        return fr_reader_bad(r, "behind", "needs regime=sustained and clock_mhz: of kernels under the power limit");
    if (row->at_ms >= 0 && row->regime != FR_BURST) return fr_reader_bad(r, "at_ms", "belongs to regime=burst");
    if (row->gap_ms >= 0 && row->regime != FR_BURST) return fr_reader_bad(r, "gap_ms", "belongs to regime=burst");
    if (row->fill && row->gap_ms < 0) return fr_reader_bad(r, "fill", "says what ran in the pause: needs gap_ms");
    if (row->order && !row->streams) return fr_reader_bad(r, "order", "needs streams: of how many pulls in flight");
    if (row->type == FR_ROW_SLOWDOWN && row->shape.kind != FR_OP_NONE && !row->resident)
        return fr_reader_bad(r, "victim", "a single op belongs to resident=1");
    if (row->turn_ms && row->duty >= 1 && row->type != FR_ROW_DRAW)
        return fr_reader_bad(r, "turn_ms", "needs duty: without a pause there are no turns");
    fr_op_class class = fr_op_class_of((fr_op_kind)row->shape.kind);
    if (class == FR_CLASS_COLLECTIVE || class == FR_CLASS_COPY) {
        if (r->t->ceilings.link <= 0 && r->t->ceilings.pcie <= 0)
            return fr_reader_bad(r, fr_row_name(row), "needs link_rate or pcie_rate in the header");
        if ((row->shape.kind == FR_OP_H2D || row->shape.kind == FR_OP_D2H) && r->t->ceilings.pcie <= 0)
            return fr_reader_bad(r, fr_row_name(row), "needs pcie_rate in the header");
    }
    if (row->shape.head_dim && !row->shape.v_head_dim) row->shape.v_head_dim = (int16_t)row->shape.head_dim;
    if (row->shape.hosts == 0) row->shape.hosts = 1;
    row->key = fr_row_key(r->t, row);
    const fr_row *other = find_row(r->index, r->t, row);
    if (other) {
        char text[96];
        snprintf(text, sizeof text, "a second row for the shape of line %d", other->line);
        return fr_reader_bad(r, fr_row_name(row), text);
    }
    return FR_OK;
}

static fr_status read_row(const fr_reader *r, char *line) {
    char *op = fr_reader_token(&line, " \t");
    fr_row row = {.line = r->line, .ways = 1, .duty = 1, .at_ms = -1, .gap_ms = -1};
    row.provenance = (uint8_t)(r->t->seeded ? FR_FROM_SEEDED : FR_FROM_MEASURED);
    const fr_row *last = r->t->count ? &r->t->rows[r->t->count - 1] : NULL; /* rows of an op mostly lie together */
    if (op && last && strcmp(op, fr_row_name(last)) == 0) {
        row.type = last->type;
        row.shape.kind = last->type == FR_ROW_SLOWDOWN ? FR_OP_NONE : last->shape.kind; /* or its victim */
    } else if (!fr_row_kind(op, &row))
        return fr_reader_bad(r, "op", "unknown op (names are those of engine/plan/op.h)");
    uint64_t seen = 0;
    char *token;
    fr_field f = 0; /* fields mostly come in one order: looked for from the last one on */
    while ((token = fr_reader_token(&line, " \t"))) {
        char *value = strchr(token, '=');
        if (!value) return fr_reader_bad(r, token, "expected key=value");
        *value++ = 0;
        f = fr_field_find(token, f);
        if (f == FR_FIELD_COUNT) return fr_reader_bad(r, token, "unknown field");
        if (seen & FR_FIELD_BIT(f)) return fr_reader_bad(r, token, "given twice");
        seen |= FR_FIELD_BIT(f);
        FR_TRY(fr_field_read(r, &row, f, value));
    }
    FR_TRY(check_row(r, &row, seen));
    fr_table *t = r->t;
    if (t->count >= ROW_LIMIT) return fr_reader_bad(r, "op", "more than 65536 rows");
    FR_GROW(t->rows, t->cap, t->count + 1);
    t->rows[t->count++] = row;
    index_row(r->index, t, t->count - 1);
    t->seeds += row.provenance == FR_FROM_SEEDED;
    return FR_OK;
}

enum { H_GPU = 1, H_SMS = 2, H_PEAK = 4, H_HBM = 8, H_NEEDED = 15 };

static fr_status read_header(const fr_reader *r, char *line, uint32_t *needed, uint32_t *seen) {
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
    if (!colon) return fr_reader_bad(r, "header", "expected '# key: value' (a comment starts with ##)");
    *colon = 0;
    char *key = line, *value = colon + 1 + strspn(colon + 1, " \t");
    uint32_t bit = 0;
    if (strcmp(key, "gpu") == 0) {
        if (!*value || strlen(value) >= sizeof t->gpu) return fr_reader_bad(r, key, "expected a short name");
        if (t->gpu[0] && strcmp(t->gpu, value) != 0) return fr_reader_bad(r, key, "another GPU than the rows before");
        snprintf(t->gpu, sizeof t->gpu, "%s", value);
        *needed |= H_GPU;
        return FR_OK;
    }
    if (strcmp(key, "provenance") == 0) {
        t->seeded = strcmp(value, "seeded") == 0;
        if (!t->seeded && strcmp(value, "measured") != 0) return fr_reader_bad(r, key, "expected measured or seeded");
        bit = UINT32_C(1) << 31;
    }
    for (uint32_t i = 0; i < sizeof numbers / sizeof *numbers && !bit; i++)
        if (strcmp(key, numbers[i].key) == 0) {
            double v;
            FR_TRY(fr_reader_double(r, key, value, numbers[i].low, numbers[i].high, &v));
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
    if (!bit) return fr_reader_bad(r, key, "unknown header");
    if (*seen & bit) return fr_reader_bad(r, key, "given twice");
    *seen |= bit;
    return FR_OK;
}

static fr_status read_line(const fr_reader *r, char *line, uint32_t *needed, uint32_t *seen, bool *rows) {
    if (line[0] == '#' && line[1] == '#') return FR_OK;
    if (line[0] == '#') {
        if (*rows) return fr_reader_bad(r, "header", "headers come before the first row");
        return read_header(r, line + 1 + strspn(line + 1, " \t"), needed, seen);
    }
    char *comment = strstr(line, "##");
    if (comment) *comment = 0;
    if (line[strspn(line, " \t")] == 0) return FR_OK;
    if (*needed != H_NEEDED)
        return fr_reader_bad(r, "header", "gpu, sms, peak_bf16 and hbm_rate must come before the rows");
    *rows = true;
    return read_row(r, line);
}

fr_status fr_table_parse(const char *text, size_t length, const char *where, fr_table *t, fr_error *err) {
    row_index index = {0};
    fr_reader r = {.where = where, .err = err, .t = t, .index = &index, .normal = fr_alloc(sizeof *r.normal)};
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
            status = fr_reader_bad(&r, "line", "no line end: the file is truncated");
        else if (n >= LINE_LIMIT || memchr(text + at, 0, n))
            status = fr_reader_bad(&r, "line", "too long, or not text");
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
        status = fr_reader_bad(&r, "header", "gpu, sms, peak_bf16 and hbm_rate are needed");
    return status;
}

void fr_table_free(fr_table *t) {
    free(t->rows);
    free(t->pairs);
    *t = (fr_table){0};
}

/* Headers, journals, and tables made of journals. */
#include "engine/calibrate/calibrate.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows that our grouped product rounds an expert up to (kernels/grouped_gemm.cu). */
#define GROUPED_TILE 64

static void text_line(fr_text *out, const char *key, const char *value) {
    if (value && *value) fr_text_add(out, "# %s: %s\n", key, value);
}

static void number_line(fr_text *out, const char *key, double value) {
    if (value > 0) fr_text_add(out, "# %s: %.6g\n", key, value);
}

void fr_cal_header(const fr_machine *machine, const fr_cal_head *h, fr_text *out) {
    text_line(out, "gpu", machine->gpu);
    text_line(out, "name", h->name);
    text_line(out, "uuid", h->uuid);
    text_line(out, "driver", h->driver);
    text_line(out, "cuda", h->cuda);
    text_line(out, "cublas", h->cublas);
    text_line(out, "cudnn", h->cudnn);
    text_line(out, "nccl", h->nccl);
    text_line(out, "clocks", h->clocks);
    text_line(out, "date", h->date);
    text_line(out, "mode", h->mode);
    text_line(out, "version", "forerun " FR_VERSION);
    fr_text_add(out, "# sms: %d\n", machine->sms);
    number_line(out, "peak_bf16", machine->peak_flops[FR_BF16]);
    number_line(out, "peak_fp8", machine->peak_flops[FR_FP8]);
    number_line(out, "hbm_rate", machine->hbm_rate);
    number_line(out, "link_rate", machine->link_rate);
    number_line(out, "pcie_rate", machine->pcie_rate);
    fr_text_add(out, "# grouped_tile: %d\n", GROUPED_TILE);
    number_line(out, "power_limit_w", h->power_limit_w);
    number_line(out, "idle_w", h->idle_w);
    number_line(out, "clock_max_mhz", h->clock_max_mhz);
}

void fr_cal_line(const fr_table *t, const fr_row *r, const double *readings, int count, fr_text *out) {
    enum { MOST = 200 };
    fr_row_print(t, r, out);
    const int step = count > MOST ? (count + MOST - 1) / MOST : 1;
    for (int i = 0; i < count; i += step) fr_text_add(out, "%s%.5g", i ? " " : "  ## ns: ", readings[i]);
    fr_text_add(out, "\n");
}

/* ---- a table from journals ----------------------------------------------------------------------------------------
 */

typedef struct {
    const fr_row *row;
    const fr_table *table;
    int file;
    uint32_t at;
} entry;

static int64_t sign(int64_t x) {
    return (x > 0) - (x < 0);
}

/* By class, kind, regime and shape, as people look for them; at last as they came. */
static int by_shape(const void *a, const void *b) {
    const entry *x = a, *y = b;
    const fr_row *p = x->row, *q = y->row;
    const fr_shape *s = &p->shape, *t = &q->shape;
    const int64_t plain = (int64_t)(p->at_ms >= 0 || p->gap_ms >= 0 || p->duty < 1) -
                          (int64_t)(q->at_ms >= 0 || q->gap_ms >= 0 || q->duty < 1);
    const int64_t order[] = {(int64_t)p->type - q->type,
                             (int64_t)fr_op_class_of((fr_op_kind)s->kind) - fr_op_class_of((fr_op_kind)t->kind),
                             (int64_t)s->kind - t->kind,
                             (int64_t)p->regime - q->regime,
                             plain,
                             (int64_t)s->precision - t->precision,
                             (int64_t)p->aggressor - q->aggressor,
                             (int64_t)p->victim - q->victim,
                             (int64_t)s->transport - t->transport,
                             (int64_t)p->ways - q->ways,
                             (int64_t)s->n - t->n,
                             (int64_t)s->k - t->k,
                             (int64_t)s->experts - t->experts,
                             (int64_t)s->vector_count * (s->experts == 0) - t->vector_count * (t->experts == 0),
                             s->m - t->m,
                             s->bytes - t->bytes,
                             (int64_t)s->ranks - t->ranks,
                             (int64_t)p->by_owner - q->by_owner,
                             (int64_t)p->streams - q->streams,
                             (int64_t)p->order - q->order,
                             (int64_t)p->turn_ms - q->turn_ms,
                             (int64_t)(1e6 * p->duty) - (int64_t)(1e6 * q->duty),
                             (int64_t)p->fill - q->fill,
                             (int64_t)p->gap_ms - q->gap_ms,
                             (int64_t)p->at_ms - q->at_ms,
                             (int64_t)x->file - y->file,
                             (int64_t)x->at - y->at};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (order[i]) return (int)sign(order[i]);
    return 0;
}

/* The next line before the first row, its end in *end; empty ones are left out. NULL at the first row. */
static const char *next_header(const char *at, const char *stop, const char **end) {
    for (; at < stop && (*end = memchr(at, '\n', (size_t)(stop - at))); at = *end + 1) {
        if (*at == '#') return at;
        if (at + strspn(at, " \t\r") < *end) return NULL;
    }
    return NULL;
}

/* The value of a header line, or an empty text. */
static void header_value(const char *text, size_t length, const char *key, char *out, size_t room) {
    const size_t n = strlen(key);
    const char *end;
    out[0] = 0;
    for (const char *at = text; (at = next_header(at, text + length, &end)); at = end + 1) {
        const size_t have = (size_t)(end - at), skip = 4 + n;
        if (have < skip || strncmp(at, "# ", 2) != 0 || strncmp(at + 2, key, n) != 0 || at[2 + n] != ':') continue;
        snprintf(out, room, "%.*s", (int)(have - skip), at + skip);
        return;
    }
}

/* The first journal's header, with everybody's uuid and the sources in place of its own. */
static void merge_header(const char *const *texts, const size_t *lengths, const char *const *names, int count,
                         fr_text *out) {
    const char *end;
    for (const char *at = texts[0]; (at = next_header(at, texts[0] + lengths[0], &end)); at = end + 1)
        if (at[1] != '#' && strncmp(at, "# uuid:", 7) != 0 && strncmp(at, "# source:", 9) != 0 &&
            strncmp(at, "# mode:", 7) != 0)
            fr_text_add(out, "%.*s\n", (int)(end - at), at);
    fr_text uuids = {0};
    for (int i = 0; i < count; i++) {
        char uuid[1024]; /* of FR_CAL_DEVICES GPUs */
        header_value(texts[i], lengths[i], "uuid", uuid, sizeof uuid);
        if (uuid[0] && (!uuids.text || !strstr(uuids.text, uuid)))
            fr_text_add(&uuids, "%s%s", uuids.length ? ", " : "", uuid);
    }
    text_line(out, "uuid", uuids.text);
    fr_text_free(&uuids);
    fr_text_add(out, "# source: ");
    for (int i = 0; i < count; i++) fr_text_add(out, "%s%s", i ? ", " : "", names[i]);
    fr_text_add(out, " by forerun calibrate --merge\n");
}

static bool of_one_kind(const fr_row *a, const fr_row *b) {
    return a->type == b->type && a->shape.kind == b->shape.kind;
}

uint32_t fr_cal_card(const char *uuid) {
    return strncmp(uuid, "GPU-", 4) == 0 ? (uint32_t)strtoul(uuid + 4, NULL, 16) : 0;
}

static void print_rows(const entry *list, uint32_t count, const fr_table *head, bool cards, fr_text *out) {
    for (uint32_t i = 0; i < count; i++) {
        const entry *e = &list[i];
        fr_row row = *e->row;
        bool again = false; /* later files come first among equals in `list` only by chance: look at all */
        for (uint32_t j = 0; j < count && !again; j++)
            again = j != i && list[j].row->key == row.key && (!cards || list[j].row->card == row.card) &&
                    fr_row_same(e->table, e->row, list[j].table, list[j].row, true) &&
                    (list[j].file > e->file || (list[j].file == e->file && list[j].at > e->at));
        if (again) continue;
        if (i == 0 || !of_one_kind(list[i - 1].row, e->row)) fr_text_add(out, "\n");
        fr_table as = *e->table;
        as.seeded = head->seeded; /* what a row must say of itself depends on the table that it comes to stand in */
        fr_row_print(&as, &row, out);
        fr_text_add(out, "\n");
    }
}

fr_status fr_cal_merge(const char *const *texts, const size_t *lengths, const char *const *names, int count, bool cards,
                       fr_text *out, fr_error *err) {
    fr_table *tables = fr_alloc((size_t)count * sizeof *tables);
    fr_status status = FR_OK;
    uint32_t rows = 0, n = 0;
    for (int i = 0; i < count && status == FR_OK; i++) {
        size_t length = lengths[i]; /* a killed run leaves half a line */
        while (length && texts[i][length - 1] != '\n') length--;
        status = fr_table_parse(texts[i], length, names[i], &tables[i], err);
        if (status == FR_OK && strcmp(tables[i].gpu, tables[0].gpu) != 0)
            status = fr_fail(err, FR_BAD_INPUT, "%s: gpu: rows of %s, expected %s as in %s", names[i], tables[i].gpu,
                             tables[0].gpu, names[0]);
        rows += tables[i].count;
    }
    if (status == FR_OK) {
        entry *list = fr_alloc(((size_t)rows + 1) * sizeof *list);
        for (int i = 0; i < count; i++)
            for (uint32_t j = 0; j < tables[i].count; j++) list[n++] = (entry){&tables[i].rows[j], &tables[i], i, j};
        qsort(list, n, sizeof *list, by_shape);
        merge_header(texts, lengths, names, count, out);
        fr_text_add(out, "## Made from journals: do not edit. Ceilings are datasheet figures; pcie_rate is what pinned "
                         "memory reaches.\n");
        print_rows(list, n, &tables[0], cards, out);
        free(list);
    }
    for (int i = 0; i < count; i++) fr_table_free(&tables[i]);
    free(tables);
    return status;
}

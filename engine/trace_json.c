#include "engine/trace_json.h"

#include "engine/files.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Chrome trace ------------------------------------------------------------------------------------------------ */

static void put_string(FILE *f, const char *text) {
    fputc('"', f);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(f, "\\%c", *c);
        else if (*c < 0x20 || *c >= 0x7f) /* names are ours and plain; whatever else came in stays valid JSON */
            fprintf(f, "\\u%04x", *c);
        else
            fputc(*c, f);
    }
    fputc('"', f);
}

static void put_us(FILE *f, const char *key, int64_t ns) {
    fprintf(f, ",\"%s\":%s%" PRId64 ".%03" PRId64, key, ns < 0 ? "-" : "", (ns < 0 ? -ns : ns) / 1000,
            (ns < 0 ? -ns : ns) % 1000);
}

static void put_number(FILE *f, const char *key, double value) {
    if (isfinite(value)) fprintf(f, ",\"%s\":%.17g", key, value);
}

static void put_metadata(FILE *f, const fr_plan *p) {
    fprintf(f, "{\"displayTimeUnit\":\"ns\",\"otherData\":{\"program\":\"forerun %s\"},\"traceEvents\":[\n",
            FR_VERSION);
    for (int r = 0; r < p->ranks; r++)
        fprintf(f,
                "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_name\",\"args\":{\"name\":\"rank %d\"}},\n"
                "{\"ph\":\"M\",\"pid\":%d,\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%d}},\n",
                r, r, r, r);
    for (uint32_t l = 0; l < p->lanes_count; l++) {
        fprintf(f, "{\"ph\":\"M\",\"pid\":%d,\"tid\":%u,\"name\":\"thread_name\",\"args\":{\"name\":", p->lanes[l].rank,
                l);
        put_string(f, p->lanes[l].name);
        fprintf(
            f,
            "}},\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%u,\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%u}},\n",
            p->lanes[l].rank, l, l);
    }
}

static void put_span(FILE *f, const fr_span *s) {
    char id[48];
    unsigned layer = (unsigned)(s->id >> 24 & 0x3ff);
    const char *kind = fr_op_name((fr_op_kind)s->kind);
    fr_op_id_text(s->id, id);
    fprintf(f, "{\"ph\":\"X\",\"pid\":%d,\"tid\":%u,\"cat\":\"%s\",\"name\":\"%s", s->rank, s->lane, kind, kind);
    if (layer != FR_NO_LAYER) fprintf(f, " l%u", layer);
    fprintf(f, "\"");
    put_us(f, "ts", s->start);
    put_us(f, "dur", s->end - s->start);
    fprintf(f, ",\"args\":{\"id\":\"%s\"", id);
    put_number(f, "bytes", s->bytes);
    put_number(f, "flops", s->flops);
    const char *carrier = fr_carrier_name((fr_op_kind)s->kind, s->transport);
    if (*carrier) fprintf(f, ",\"carrier\":\"%s\"", carrier);
    fprintf(f, ",\"wait_ns\":%" PRId64 ",\"provenance\":\"%s\"}}", s->start - s->ready,
            fr_provenance_name((fr_provenance)s->provenance));
}

/* The viewer ties an arrow's tail to the slice that is open at its time: the last ns of the cause, not its end. */
static void put_arrow(FILE *f, const fr_span *from, const fr_span *to, uint32_t number) {
    int64_t tail = from->end > from->start ? from->end - 1 : from->start;
    fprintf(f, ",\n{\"ph\":\"s\",\"id\":%u,\"pid\":%d,\"tid\":%u,\"cat\":\"wait\",\"name\":\"wait\"", number,
            from->rank, from->lane);
    put_us(f, "ts", tail);
    fprintf(f, "},\n{\"ph\":\"f\",\"bp\":\"e\",\"id\":%u,\"pid\":%d,\"tid\":%u,\"cat\":\"wait\",\"name\":\"wait\"",
            number, to->rank, to->lane);
    put_us(f, "ts", to->start);
    fprintf(f, "}");
}

typedef struct {
    uint64_t id;
    uint32_t span;
} id_entry;

static int compare_entries(const void *a, const void *b) {
    const id_entry *x = a, *y = b;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->span < y->span ? -1 : x->span > y->span;
}

static id_entry *index_ids(const fr_timeline *t) {
    id_entry *entries = fr_alloc(((size_t)t->count + 1) * sizeof *entries);
    for (uint32_t i = 0; i < t->count; i++) entries[i] = (id_entry){t->spans[i].id, i};
    qsort(entries, t->count, sizeof *entries, compare_entries);
    return entries;
}

static const fr_span *find_span(const fr_timeline *t, const id_entry *entries, uint64_t id) {
    uint32_t low = 0, high = t->count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (entries[mid].id < id)
            low = mid + 1;
        else
            high = mid;
    }
    return low < t->count && entries[low].id == id ? &t->spans[entries[low].span] : NULL;
}

fr_status fr_trace_json_write(const char *path, const fr_plan *plan, const fr_timeline *t, fr_error *err) {
    fr_out_file o;
    FR_TRY(fr_out_begin(&o, path, err));
    id_entry *entries = index_ids(t);
    uint32_t arrows = 0;
    put_metadata(o.file, plan);
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_span *s = &t->spans[i], *cause = s->cause ? find_span(t, entries, s->cause) : NULL;
        put_span(o.file, s);
        if (cause && cause->lane != s->lane) put_arrow(o.file, cause, s, ++arrows);
        fputs(",\n", o.file);
    }
    /* ends the list without a comma too many, and says how much there is */
    fprintf(o.file, "{\"ph\":\"M\",\"pid\":0,\"name\":\"forerun\",\"args\":{\"spans\":%u,\"arrows\":%u}}\n]}\n",
            t->count, arrows);
    free(entries);
    return fr_out_finish(&o, err);
}

/* ---- CSV --------------------------------------------------------------------------------------------------------- */

static void put_csv_text(FILE *f, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}

fr_status fr_trace_csv_write(const char *path, const fr_plan *plan, const fr_timeline *t, fr_error *err) {
    fr_out_file o;
    FR_TRY(fr_out_begin(&o, path, err));
    fputs("op,forward,rank,lane,layer,kind,micro,sub,ready_ns,start_ns,end_ns,bytes,flops,cause,provenance\n", o.file);
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_span *s = &t->spans[i];
        char id[48], cause[48] = "", layer[8] = "";
        fr_op_id_text(s->id, id);
        if (s->cause) fr_op_id_text(s->cause, cause);
        if ((s->id >> 24 & 0x3ff) != FR_NO_LAYER) snprintf(layer, sizeof layer, "%u", (unsigned)(s->id >> 24 & 0x3ff));
        fprintf(o.file, "%s,%u,%d,", id, (unsigned)(s->id >> 44), s->rank);
        put_csv_text(o.file, plan->lanes[s->lane].name);
        fprintf(o.file, ",%s,%s,%u,%u,%" PRId64 ",%" PRId64 ",%" PRId64 ",%.17g,%.17g,%s,%s\n", layer,
                fr_op_name((fr_op_kind)s->kind), (unsigned)(s->id >> 10 & 0xff), (unsigned)(s->id & 0x3ff), s->ready,
                s->start, s->end, s->bytes, s->flops, cause, fr_provenance_name((fr_provenance)s->provenance));
    }
    return fr_out_finish(&o, err);
}

#include "engine/cost/cost_packed.h"

#include <math.h>

/* From here on plain rows are packed themselves; between the limit and here the plain curve leads from the one kind to
 * the other, and so does the factor. */
#define SAME (2.0 * FR_ATTENTION_EQUAL)

/* Mean length of the sequences that have any; 0 where the batch runs as the plain rows did. */
static double varied_length(const fr_shape *s, const fr_pair *pairs) {
    const fr_pair *v = pairs + s->vector;
    bool equal = true;
    double sum = 0;
    for (uint32_t i = 0; i < s->vector_count; i++) {
        sum += v[i].queries;
        equal = equal && v[i].queries == v[0].queries && v[i].prefix == 0;
    }
    const double mean = sum / fmax(1, s->vector_count);
    return s->vector_count < 2 || equal || mean >= SAME ? 0 : fmax(1, mean);
}

/* ns of the plain row of the same shape; 0 = there is none. */
static double plain_ns(const fr_table *t, const fr_row *packed) {
    fr_row twin = *packed;
    twin.packed = false;
    twin.key = fr_row_key(t, &twin);
    for (uint32_t i = 0; i < t->count; i++)
        if (fr_row_same(t, &t->rows[i], t, &twin, true)) return t->rows[i].ns;
    return 0;
}

/* Shapes of one length differ by a few percent with their number and the heads: their mean. */
static void add_ratio(fr_packed *p, int seen[FR_PACKED_POINTS], double length, double ratio) {
    int at = 0;
    while (at < p->points && fabs(p->length[at] - length) > 0.5) at++;
    if (at == FR_PACKED_POINTS - 1) return;
    if (at == p->points) {
        p->points++;
        p->length[at] = length;
        p->ratio[at] = 0;
        seen[at] = 0;
    }
    seen[at]++;
    p->ratio[at] += (ratio - p->ratio[at]) / seen[at];
}

void fr_packed_fit(const fr_source *sources, int count, fr_packed *out) {
    int seen[FR_PACKED_POINTS];
    out->points = 0;
    for (int k = 0; k < count && out->points == 0; k++) {
        const fr_table *t = sources[k].table;
        for (uint32_t i = 0; i < t->count; i++) {
            const fr_row *r = &t->rows[i];
            const double plain = r->packed ? plain_ns(t, r) : 0;
            if (plain > 0) add_ratio(out, seen, t->pairs[r->shape.vector].queries, fmax(1, r->ns / plain));
        }
    }
    if (out->points == 0) return;
    out->length[out->points] = SAME;
    out->ratio[out->points++] = 1;
}

double fr_packed_factor(const fr_packed *p, const fr_shape *s, const fr_pair *pairs) {
    const double length = p->points ? varied_length(s, pairs) : 0;
    double x[2] = {-INFINITY, INFINITY}, y[2] = {1, 1};
    for (int i = 0; i < p->points && length > 0; i++) {
        const double at = log(p->length[i] / length);
        if (at <= 0 && at > x[0]) x[0] = at, y[0] = p->ratio[i];
        if (at >= 0 && at < x[1]) x[1] = at, y[1] = p->ratio[i];
    }
    if (isinf(x[0])) return y[1];
    if (isinf(x[1])) return y[0];
    return x[1] > x[0] ? y[0] + (y[1] - y[0]) * (-x[0] / (x[1] - x[0])) : y[0];
}

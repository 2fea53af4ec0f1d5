#include "engine/cost_card.h"

#include "engine/cost_table.h"
#include "engine/power.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    double sum; /* of logs */
    int n;
} mean;

static void add(mean *m, double ratio) {
    m->sum += log(ratio);
    m->n++;
}

static double value(const mean *m) {
    return m->n ? exp(m->sum / m->n) : 1;
}

void fr_card_plain(fr_card *out) {
    *out = (fr_card){.draw = 1};
    for (int k = 0; k < FR_CLASS_COUNT; k++) out->time[k] = 1;
}

/* What the op draws over what the model says, if `slower` is how much longer than its burst it takes back to back: the
 * clock that goes with that meets the limit. 0 where the limit isn't what slows it. */
static double drawn(const fr_power *p, const fr_draw *d, double slower) {
    const double v = 1 / slower;
    if (d->slope <= 0 || d->flex <= 0 || slower < 1.01 || v <= 1 - d->flex) return 0;
    const double x = v * d->flex * d->full / (1 - v + v * d->flex);
    return (p->cap - p->idle - d->base) / (d->slope * x * x);
}

static void read_card(const fr_cost_model *c, const fr_table *t, fr_card *out) {
    const fr_power *p = fr_cost_power(c);
    mean bursts[FR_CLASS_COUNT] = {{0}}, held[FR_CLASS_COUNT] = {{0}}, draw = {0};
    fr_card_plain(out);
    snprintf(out->uuid, sizeof out->uuid, "%s", t->uuid);
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        fr_cost x;
        if (!fr_row_plain(r)) continue;
        fr_cost_op(c, &r->shape, t->pairs, &x);
        if (x.ns <= 0) continue;
        const fr_op_class class = fr_op_class_of((fr_op_kind)r->shape.kind);
        if (r->regime == FR_BURST)
            add(&bursts[class], r->ns / (double)x.burst_ns);
        else
            add(&held[class], r->ns / (double)x.ns);
    }
    for (int k = 0; k < FR_CLASS_COUNT; k++) {
        const bool sustained = !p->known && held[k].n && fr_cost_regime(c) == FR_SUSTAINED;
        out->time[k] = value(sustained ? &held[k] : &bursts[k]);
        out->bursts += bursts[k].n;
    }
    for (uint32_t i = 0; i < t->count && p->known; i++) {
        const fr_row *r = &t->rows[i], *b = fr_table_burst(t, r);
        fr_cost x;
        if (!fr_row_plain(r) || r->regime != FR_SUSTAINED) continue;
        fr_cost_op(c, &r->shape, t->pairs, &x);
        const double burst = b ? b->ns : (double)x.burst_ns;
        const double ratio = x.ns > 0 ? drawn(p, &x.draw, r->ns / burst) : 0;
        if (ratio > 0.5 && ratio < 2) add(&draw, ratio);
    }
    out->draw = value(&draw);
    out->held = draw.n;
}

/* Where the next table of a text of several begins: at its first header line; NULL = there is none. */
static const char *next_table(const char *text) {
    const char *at = strstr(text, "\n# gpu:");
    return at ? at + 1 : NULL;
}

fr_status fr_cards_read(const fr_cost_model *c, const char *text, const char *where, fr_card **out, int *count,
                        fr_error *err) {
    uint32_t cap = 0;
    *out = NULL;
    *count = 0;
    for (const char *at = text; at;) {
        const char *next = next_table(at);
        fr_table t = {0};
        const size_t length = next ? (size_t)(next - at) : strlen(at);
        const fr_status status = fr_table_parse(at, length, where, &t, err);
        if (status == FR_OK) {
            FR_GROW(*out, cap, (uint32_t)*count + 1);
            read_card(c, &t, &(*out)[(*count)++]);
        }
        fr_table_free(&t);
        if (status != FR_OK) {
            free(*out);
            *out = NULL;
            return status;
        }
        at = next;
    }
    return FR_OK;
}

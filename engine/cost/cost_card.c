#include "engine/cost/cost_card.h"

#include "engine/cost/cost_model.h"
#include "engine/cost/cost_table.h"

#include <gsl/gsl_cdf.h>
#include <inttypes.h>
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

static bool plausible(double draw) {
    return draw > 0.5 && draw < 2;
}

void fr_card_plain(fr_card *out) {
    *out = (fr_card){.draw = 1};
    for (int k = 0; k < FR_CLASS_COUNT; k++) out->time[k] = 1;
}

/* `slower`: than its burst. What the op draws over what the model says, if `slower` is how much longer than its burst
 * it takes back to back: the clock that goes with that meets the limit. 0 where the limit isn't what slows it. */
static double drawn(const fr_power *p, const fr_draw *d, double slower) {
    const double v = 1 / slower;
    if (d->slope <= 0 || d->flex <= 0 || slower < 1.01 || v <= 1 - d->flex) return 0;
    double x = v * d->flex * d->full / (1 - v + v * d->flex); /* as fr_power_speed has it */
    if (x < d->knee) x = v * (d->flex * d->full + (1 - d->flex) * d->knee);
    return (p->cap - p->idle - d->base) / (d->slope * x * x);
}

/* Cards differ by the clock that the fast limit leaves a burst: an op that follows the clock has its full one there. */
static fr_draw on_card(const fr_draw *d, double time) {
    fr_draw own = *d;
    own.full = fmin(1, d->full / time);
    return own;
}

static bool in_chain(const fr_row *r, uint32_t id) {
    return r->type == FR_ROW_OP && r->behind && r->clock_mhz > 0 && r->card == id;
}

static bool same_chain(const fr_row *a, const fr_row *b) {
    return in_chain(b, a->card) && fabs(a->clock_mhz - b->clock_mhz) <= 0;
}

/* The clock of a chain's products over the full one: what its rows say is the mean, and kernels that move data run at a
 * higher one between them. */
static double chain_clock(const fr_power *p, const fr_table *t, const fr_row *first) {
    double time = 0, over = 0;
    for (const fr_row *r = first; r < t->rows + t->count; r++) {
        if (!same_chain(first, r)) continue;
        time += r->ns;
        over += r->ns * (fr_op_class_of((fr_op_kind)r->shape.kind) == FR_CLASS_MEMORY ? FR_POWER_LIGHT : 1);
    }
    return first->clock_mhz / p->full_mhz * time / over;
}

/* A layer's kernels in turn under the limit: at their clock the mix draws what the limit allows. What it draws over
 * what the model says, which knows one clock, each kernel weighed by its time; `first` is the chain's first row. */
static double chain_draw(const fr_cost_model *c, const fr_table *t, const fr_card *card, const fr_row *first) {
    const fr_power *p = fr_cost_power(c);
    const double x = chain_clock(p, t, first);
    double time = 0, base = 0, slope = 0;
    for (const fr_row *r = first; r < t->rows + t->count; r++) {
        fr_cost k;
        if (!same_chain(first, r)) continue;
        fr_cost_op(c, &r->shape, t->pairs, &k);
        if (k.draw.slope <= 0) continue;
        const fr_draw d = on_card(&k.draw, card->time[fr_op_class_of((fr_op_kind)r->shape.kind)]);
        time += r->ns;
        base += r->ns * d.base;
        slope += r->ns * d.slope * x * x;
    }
    return slope > 0 ? ((p->cap - p->idle) * time - base) / slope : 0;
}

/* Whether a row before it is of the same chain. */
static bool goes_on(const fr_table *t, const fr_row *r) {
    for (const fr_row *b = t->rows; b < r; b++)
        if (same_chain(r, b)) return true;
    return false;
}

static bool counts(const fr_row *r, uint32_t id) {
    return fr_row_plain(r) && r->card == id;
}

/* Of less than a round of the limit's slow hand a median says what was allowed just then, not what is in the long run
 * (engine/cost/power.h). */
static bool settled(const fr_row *r) {
    return r->samples <= 0 || r->samples * r->ns >= FR_POWER_CYCLE_NS;
}

/* The card's own burst of what a row measured; else the model's on such a card. */
static double burst_of(const fr_table *t, const fr_row *r, double otherwise) {
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *b = &t->rows[i];
        if (b->regime == FR_BURST && b->card == r->card && fr_row_same(t, b, t, r, false)) return b->ns;
    }
    return otherwise;
}

/* A card without its draw. */
static void read_times(const fr_cost_model *c, const fr_table *t, uint32_t id, fr_card *out) {
    const fr_power *p = fr_cost_power(c);
    mean bursts[FR_CLASS_COUNT] = {{0}}, held[FR_CLASS_COUNT] = {{0}};
    fr_card_plain(out);
    if (id)
        snprintf(out->uuid, sizeof out->uuid, "GPU-%08" PRIx32, id);
    else
        snprintf(out->uuid, sizeof out->uuid, "%s", t->uuid);
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        fr_cost x;
        if (!counts(r, id)) continue;
        fr_cost_op(c, &r->shape, t->pairs, &x);
        if (x.ns <= 0) continue;
        const fr_op_class class = fr_op_class_of((fr_op_kind)r->shape.kind);
        const double own = fr_cost_measured(c, t, r); /* fits may miss their rows by a per cent */
        if (r->regime == FR_BURST)
            add(&bursts[class], r->ns / (own > 0 ? own : (double)x.burst_ns));
        else
            add(&held[class], r->ns / (own > 0 ? own : (double)x.ns));
    }
    for (int k = 0; k < FR_CLASS_COUNT; k++) {
        const bool sustained = !p->known && held[k].n && fr_cost_regime(c) == FR_SUSTAINED;
        out->time[k] = value(sustained ? &held[k] : &bursts[k]);
        out->bursts += bursts[k].n;
        if (bursts[k].n || sustained) out->classes |= 1u << k;
    }
}

static void read_card(const fr_cost_model *c, const fr_table *t, uint32_t id, fr_card *out) {
    const fr_power *p = fr_cost_power(c);
    mean draw = {0}, single = {0};
    read_times(c, t, id, out);
    for (uint32_t i = 0; i < t->count && p->known; i++) {
        const fr_row *r = &t->rows[i];
        if (!in_chain(r, id) || goes_on(t, r)) continue;
        const double ratio = chain_draw(c, t, out, r);
        if (plausible(ratio)) add(&draw, ratio);
    }
    out->layers = draw.n > 0; /* forwards are such mixes: single kernels say less of them */
    for (uint32_t i = 0; i < t->count && p->known; i++) {
        const fr_row *r = &t->rows[i];
        fr_cost x;
        if (!counts(r, id) || r->regime != FR_SUSTAINED || !settled(r)) continue;
        fr_cost_op(c, &r->shape, t->pairs, &x);
        const double time = out->time[fr_op_class_of((fr_op_kind)r->shape.kind)];
        const fr_draw d = on_card(&x.draw, time);
        const double burst = burst_of(t, r, time * (double)x.burst_ns);
        const double ratio = x.ns > 0 ? drawn(p, &d, r->ns / burst) : 0;
        if (plausible(ratio)) add(&single, ratio);
    }
    if (single.n) out->single = value(&single);
    out->held = out->layers ? draw.n : single.n;
    out->draw = value(out->layers ? &draw : &single);
}

/* Where the next table of a text of several begins: at its first header line; NULL = there is none. */
static const char *next_table(const char *text) {
    const char *at = strstr(text, "\n# gpu:");
    return at ? at + 1 : NULL;
}

/* Sizes of layers, by their tokens; of each what single cards say of it. */
enum { SIZES = 4 };
typedef struct {
    int64_t tokens[SIZES];
    mean draw[SIZES];
    int count;
} sizes;

static const fr_row *of_chain(const fr_table *t, const fr_row *first, fr_op_kind kind) {
    for (const fr_row *r = first; r < t->rows + t->count; r++)
        if (same_chain(first, r) && r->shape.kind == kind) return r;
    return NULL;
}

static void add_row(const fr_cost_model *c, const fr_table *t, const fr_row *r, int size, fr_power *p, int *of) {
    fr_base base;
    fr_cost x;
    const fr_op_class class = fr_op_class_of((fr_op_kind)r->shape.kind);
    if (class == FR_CLASS_MEMORY || r->shape.precision != FR_BF16 || p->layers == FR_POWER_LAYERS) return;
    fr_cost_base(&c->ceilings, &r->shape, t->pairs, &base);
    fr_cost_op(c, &r->shape, t->pairs, &x);
    if (x.burst_ns <= 0 || !(c->ceilings.peak[FR_BF16] > 0)) return;
    const double rate = 1e9 / (double)x.burst_ns;
    of[p->layers] = size;
    p->layer[p->layers++] = (fr_power_layer){.kind = r->shape.kind,
                                             .math = base.flops * rate / c->ceilings.peak[FR_BF16],
                                             .memory = fmin(1, base.hbm_bytes * rate / c->ceilings.hbm)};
}

/* One more layer; the first of a size brings its rows. */
static void add_layer(const fr_cost_model *c, const fr_table *t, const fr_row *first, sizes *s, fr_power *p, int *of) {
    fr_card card;
    const fr_row *qkv = of_chain(t, first, FR_OP_GEMM_QKV);
    int k = 0;
    if (!qkv) return;
    while (k < s->count && s->tokens[k] != qkv->shape.m) k++;
    if (k == SIZES) return;
    read_times(c, t, first->card, &card);
    const double ratio = chain_draw(c, t, &card, first);
    if (!plausible(ratio)) return;
    add(&s->draw[k], ratio);
    if (k < s->count) return;
    s->tokens[s->count++] = qkv->shape.m;
    for (const fr_row *r = first; r < t->rows + t->count; r++)
        if (same_chain(first, r)) add_row(c, t, r, k, p, of);
}

/* What all cards say alike of layers of one size is the model's error. */
static void read_layers(const fr_cost_model *c, const fr_table *tables, uint32_t count, fr_power *p) {
    sizes s = {0};
    fr_power found = {0};
    int of[FR_POWER_LAYERS] = {0};
    for (const fr_table *t = tables; t < tables + count; t++)
        for (const fr_row *r = t->rows; r < t->rows + t->count; r++)
            if (in_chain(r, r->card) && !goes_on(t, r)) add_layer(c, t, r, &s, &found, of);
    if (s.count < 2) return;
    double all = 0;
    for (int k = 0; k < s.count; k++) all += log(value(&s.draw[k])) / s.count;
    for (int i = 0; i < found.layers; i++) found.layer[i].factor = value(&s.draw[of[i]]) / exp(all);
    memcpy(p->layer, found.layer, sizeof found.layer);
    p->layers = found.layers;
}

/* Several tables in one text, each from its header on. */
static fr_status parse_all(const char *text, const char *where, fr_table **out, uint32_t *count, fr_error *err) {
    uint32_t cap = 0;
    for (const char *at = text; at;) {
        const char *next = next_table(at);
        FR_GROW(*out, cap, *count + 1);
        fr_table *t = &(*out)[(*count)++];
        *t = (fr_table){0};
        FR_TRY(fr_table_parse(at, next ? (size_t)(next - at) : strlen(at), where, t, err));
        at = next;
    }
    return FR_OK;
}

fr_status fr_cards_read(const fr_cost_model *c, const char *text, const char *where, fr_power *layers, fr_card **out,
                        int *count, fr_error *err) {
    fr_table *tables = NULL;
    uint32_t n = 0, cap = 0;
    *out = NULL;
    *count = 0;
    const fr_status status = parse_all(text, where, &tables, &n, err);
    if (status == FR_OK && layers && fr_cost_power(c)->known) read_layers(c, tables, n, layers);
    for (const fr_table *t = tables; t < tables + n && status == FR_OK; t++)
        for (uint32_t i = 0; i < t->count; i++) {
            bool seen = !fr_row_plain(&t->rows[i]);
            for (uint32_t k = 0; k < i && !seen; k++)
                seen = fr_row_plain(&t->rows[k]) && t->rows[k].card == t->rows[i].card;
            if (seen) continue;
            FR_GROW(*out, cap, (uint32_t)*count + 1);
            read_card(c, t, t->rows[i].card, &(*out)[(*count)++]);
        }
    for (uint32_t i = 0; i < n; i++) fr_table_free(&tables[i]);
    free(tables);
    return status;
}

static bool any_layers(const fr_card *cards, int count) {
    for (int i = 0; i < count; i++)
        if (cards[i].layers) return true;
    return false;
}

/* What layers draw over single kernels, by the model, on cards that have both. */
static double layers_over_single(const fr_card *cards, int count) {
    mean m = {0};
    for (int i = 0; i < count; i++)
        if (cards[i].layers && cards[i].single > 0) add(&m, cards[i].draw / cards[i].single);
    return value(&m);
}

/* The mean of all but one (-1: of all). */
static double mean_draw(const fr_card *cards, int count, int left_out) {
    const bool layers = any_layers(cards, count);
    const double more = layers_over_single(cards, count);
    mean m = {0};
    if (!layers) add(&m, 1); /* the table's own */
    for (int i = 0; i < count; i++)
        if (i != left_out && cards[i].held) add(&m, cards[i].draw * (cards[i].layers ? 1 : more));
    return value(&m);
}

static double mean_time(const fr_card *cards, int count, int class, int left_out) {
    mean m = {0};
    add(&m, 1); /* the table's own */
    for (int i = 0; i < count; i++)
        if (i != left_out && cards[i].classes >> class & 1) add(&m, cards[i].time[class]);
    return value(&m);
}

void fr_cards_mean(const fr_card *cards, int count, fr_card *out, double spread[FR_CLASS_COUNT]) {
    fr_card_plain(out);
    out->draw = mean_draw(cards, count, -1);
    for (int k = 0; k < FR_CLASS_COUNT; k++) {
        out->time[k] = mean_time(cards, count, k, -1);
        spread[k] = fabs(1 / out->time[k] - 1);
        for (int i = 0; i < count; i++)
            if (cards[i].classes >> k & 1) spread[k] = fmax(spread[k], fabs(cards[i].time[k] / out->time[k] - 1));
    }
}

static void judge(fr_card_check *c, double error) {
    c->rms = sqrt((c->rms * c->rms * c->count + error * error) / (c->count + 1));
    c->worst = fmax(c->worst, fabs(error));
    c->count++;
}

void fr_cards_check(const fr_card *cards, int count, fr_card_check time[FR_CLASS_COUNT], fr_card_check *clock) {
    const double more = layers_over_single(cards, count);
    *clock = (fr_card_check){0};
    for (int k = 0; k < FR_CLASS_COUNT; k++) {
        time[k] = (fr_card_check){0};
        for (int i = 0; i < count; i++)
            if (cards[i].classes >> k & 1) judge(&time[k], mean_time(cards, count, k, i) / cards[i].time[k] - 1);
    }
    for (int i = 0; i < count; i++)
        if (cards[i].held)
            judge(clock, sqrt(cards[i].draw * (cards[i].layers ? 1 : more) / mean_draw(cards, count, i)) - 1);
}

void fr_cards_unlike(const fr_cost_model *c, fr_card *out, int ranks) {
    const double spread = fr_cost_cards_spread(c);
    for (int r = 0; r < ranks; r++) {
        const int order = r % 2 ? ranks - 1 - r / 2 : r / 2;
        fr_card_plain(&out[r]);
        out[r].draw = 1 + spread * gsl_cdf_ugaussian_Pinv((order + 1 - 0.375) / (ranks + 0.25));
    }
}

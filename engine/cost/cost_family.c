#include "engine/cost/cost_ask.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static fr_op_class class_of(const fr_shape *s) {
    return fr_op_class_of((fr_op_kind)s->kind);
}

_Static_assert(sizeof(fr_family_key) == 8 * sizeof(uint8_t) + 2 * sizeof(int16_t) + 2 * sizeof(int32_t), "no padding");

fr_family_key fr_family_key_of(const fr_shape *s, uint8_t ways, bool generic) {
    fr_family_key k = {.class = (uint8_t)class_of(s)};
    switch (class_of(s)) {
    case FR_CLASS_GEMM:
    case FR_CLASS_GROUPED:
        k.precision = s->precision;
        k.n = s->n;
        k.k = s->k;
        break;
    case FR_CLASS_ATTENTION:
        k.precision = s->precision;
        k.n = s->head_dim;
        k.k = s->v_head_dim ? s->v_head_dim : s->head_dim;
        k.windowed = s->window > 0;
        break;
    case FR_CLASS_COLLECTIVE:
        k.kind = s->kind;
        k.transport = s->transport;
        k.hosts = s->hosts ? s->hosts : 1;
        k.ranks = s->ranks > 1 ? s->ranks : 2;
        if (s->kind == FR_OP_SEND || s->kind == FR_OP_RECV) k.ranks = 2; /* a pair, whatever group it belongs to */
        break;
    case FR_CLASS_COPY:
        k.kind = s->kind;
        k.ways = ways;
        if (s->kind == FR_OP_PULL || s->kind == FR_OP_PUSH) k.ranks = s->ranks > 1 ? s->ranks : 2;
        break;
    default:
        k.kind = generic ? FR_OP_NONE : s->kind;
        if (class_of(s) == FR_CLASS_MEMORY && !generic && s->m > 0 && s->n > 0) {
            /* rows of one width that move as many times: norms with and without a residual, top-8 and top-2, ... */
            k.n = s->n;
            k.k = s->kind == FR_OP_SORT ? 0 : (int32_t)fr_round((double)s->bytes / ((double)s->m * s->n));
        }
        break;
    }
    return k;
}

typedef struct {
    fr_family_key key;
    fr_sample sample;
} item;

typedef struct {
    item *items;
    uint32_t count, cap;
} item_list;

static bool replaced(const fr_source *sources, int before, const fr_table *t, const fr_row *r) {
    for (int s = 0; s < before; s++)
        for (uint32_t i = 0; i < sources[s].table->count; i++)
            if (fr_row_same(sources[s].table, &sources[s].table->rows[i], t, r, true)) return true;
    return false;
}

/* Mean of T(regime) / T(other) over shapes that were measured in both; compute never runs faster when sustained. */
static double regime_ratio(const fr_source *sources, int count, fr_op_class class, fr_regime regime) {
    double sum = 0;
    int pairs = 0;
    for (int s = 0; s < count; s++) {
        const fr_table *t = sources[s].table;
        for (uint32_t i = 0; i < t->count; i++) { /* sustained rows are few */
            const fr_row *b = &t->rows[i];
            if (b->regime != FR_SUSTAINED || class_of(&b->shape) != class || !fr_row_plain(b)) continue;
            for (uint32_t j = 0; j < t->count; j++) {
                const fr_row *a = &t->rows[j];
                if (a->regime != FR_BURST || !fr_row_same(t, a, t, b, false)) continue;
                sum += log(b->ns / a->ns);
                pairs++;
            }
        }
    }
    double sustained = pairs ? exp(fr_most(0, sum / pairs)) : 1;
    return regime == FR_SUSTAINED ? sustained : 1 / sustained;
}

double fr_family_ratio(const fr_source *sources, int count, fr_op_class class) {
    return regime_ratio(sources, count, class, FR_SUSTAINED);
}

static int rows_of(const fr_table *t, fr_op_class class, int regime) {
    int n = 0;
    for (uint32_t i = 0; i < t->count; i++)
        n += class_of(&t->rows[i].shape) == class && (regime < 0 || t->rows[i].regime == regime) &&
             fr_row_plain(&t->rows[i]);
    return n;
}

int fr_family_rows(const fr_table *t, fr_op_class class) {
    return rows_of(t, class, -1);
}

/* Rows of a class come from the regime that the grid was measured in: the wanted one if it has at least half as many
 * rows as the other, else the other, scaled by the anchors. */
static fr_regime grid_regime(const fr_source *sources, int count, fr_op_class class, fr_regime wanted) {
    int have[2] = {0, 0};
    for (int s = 0; s < count; s++)
        for (int r = 0; r < 2; r++) have[r] += rows_of(sources[s].table, class, r);
    return 2 * have[wanted] >= have[1 - wanted] ? wanted : (fr_regime)(1 - wanted);
}

/* Share of its time that a kernel needs HBM for at the datasheet rate. Streaming kernels reach 0.85-0.9 of that rate;
 * grouped products of 256 rows an expert, which do run into the power limit, need 0.57. */
#define HBM_BOUND 0.67

/* Equal lengths that were sent through the graph of varied ones count there. */
static bool makes_curve(const fr_row *r) {
    fr_row own = *r;
    own.packed = false;
    return fr_row_plain(&own);
}

#define HOT_SPREAD 0.03 /* what first deciles of cool turns repeat within, three times over */

/* A row that lies by more than this below what monotony lets it cost says nothing of others of that structural time,
 * and would pull them down: 193 to 256 rows for each of Mixtral's experts, a quarter quicker than 129 to 192. */
#define LIFTED 0.2

static void add_sample(item_list *list, const fr_source *src, const fr_row *r, double scale, bool same_regime) {
    fr_base base;
    fr_cost_base(&src->table->ceilings, &r->shape, src->table->pairs, &base);
    if (base.ns <= 0 || base.lifted > LIFTED) return;
    FR_GROW(list->items, list->cap, list->count + 1);
    item *it = &list->items[list->count++];
    memset(it, 0, sizeof *it);
    it->key = fr_family_key_of(&r->shape, r->ways, r->type == FR_ROW_GENERIC);
    it->key.cached = base.cached;
    it->key.equal = base.equal && !r->packed;
    /* The other regime differs by the clock, which HBM does not follow (facts: 1 GiB streamed at 1,980 MHz and 550 W,
     * not throttled): what spends most of its time there keeps it. */
    if (base.hbm_bytes / src->table->ceilings.hbm * 1e9 > HBM_BOUND * r->ns) scale = 1;
    fr_provenance p = (fr_provenance)r->provenance;
    if (!same_regime && p < FR_FROM_INTERPOLATED) p = FR_FROM_INTERPOLATED;
    if (src->cap == FR_FROM_TRANSFERRED) p = FR_FROM_TRANSFERRED; /* said of another GPU, whatever it was there */
    double t = r->ns * scale, high = r->p90 > 0 ? r->p90 : r->ns;
    /* Bursts of the older benches reached into the power limit, and p90 shows it; the clock model knows of that. */
    if (r->regime == FR_BURST && r->clock_mhz <= 0 && src->table->clock_max_mhz > 0 && base.flops > 0)
        high = fr_least(high, (1 + HOT_SPREAD) * r->ns);
    it->sample =
        (fr_sample){.row = r,
                    .b = base.ns,
                    .feature = base.feature,
                    .clock = src->table->clock_max_mhz > 0 ? fr_least(1, r->clock_mhz / src->table->clock_max_mhz) : 0,
                    .t = t,
                    .low = (r->p10 > 0 ? r->p10 : r->ns) * scale,
                    .high = high * scale,
                    .provenance = (uint8_t)p};
}

static int by_key(const void *a, const void *b) {
    const item *x = a, *y = b;
    return memcmp(&x->key, &y->key, sizeof x->key);
}

static fr_fit_kind fit_kind(fr_op_class class) {
    switch (class) {
    case FR_CLASS_GEMM:
        return FR_FIT_STRAIGHT;
    case FR_CLASS_GROUPED:
        return FR_FIT_CLOCKED;
    case FR_CLASS_ATTENTION:
        return FR_FIT_FEATURED;
    default:
        return FR_FIT_SMOOTH;
    }
}

/* One family from items[0..count), all of one key: measured rows outrank seeded ones. */
static void add_family(fr_family_set *set, const item *items, uint32_t count) {
    bool measured = false;
    for (uint32_t i = 0; i < count; i++) measured |= items[i].sample.row->provenance < FR_FROM_SEEDED;
    fr_sample *samples = fr_alloc(count * sizeof *samples);
    int n = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!measured || items[i].sample.row->provenance < FR_FROM_SEEDED) samples[n++] = items[i].sample;
    fr_family *f = &set->families[set->count++];
    f->key = items[0].key;
    f->rows = n;
    fr_curve_fit(&f->curve, samples, n, fit_kind((fr_op_class)f->key.class));
    set->rows += n;
    free(samples);
}

/* Whether what is asked for in place of a row that is left out may be answered by families of the class: gathers by
 * copy engines take those of pulls (cost_ask.c: stand_in). */
static bool concerns(const fr_row *skip, fr_op_class class) {
    return class == class_of(&skip->shape) || class == FR_CLASS_COPY;
}

void fr_family_build(fr_family_set *set, const fr_source *sources, int count, fr_regime regime, const fr_row *skip) {
    *set = (fr_family_set){0};
    item_list list = {0};
    for (int c = 0; c < FR_CLASS_COUNT; c++) {
        /* the leading sources that are this GPU's own; only if they are silent, another GPU's */
        int first = 0, end = 0, own = 0;
        if (skip && !concerns(skip, (fr_op_class)c)) continue;
        while (end < count && sources[end].cap < FR_FROM_TRANSFERRED)
            own += rows_of(sources[end++].table, (fr_op_class)c, -1);
        if (!own) {
            first = end;
            end = count;
        }
        const fr_source *use = sources + first;
        fr_regime grid = grid_regime(use, end - first, (fr_op_class)c, regime);
        double ratio = regime_ratio(use, end - first, (fr_op_class)c, regime);
        set->regime_ratio[c] = grid == regime ? 1 : ratio;
        for (int s = 0; s < end - first; s++)
            for (uint32_t i = 0; i < use[s].table->count; i++) {
                const fr_row *r = &use[s].table->rows[i];
                if (class_of(&r->shape) != (fr_op_class)c || r->regime != grid || r == skip || !makes_curve(r) ||
                    replaced(use, s, use[s].table, r))
                    continue;
                add_sample(&list, &use[s], r, set->regime_ratio[c], grid == regime);
            }
    }
    if (list.count) qsort(list.items, list.count, sizeof *list.items, by_key);
    set->families = fr_alloc((list.count + 1) * sizeof *set->families);
    set->picks = fr_picks_new();
    for (uint32_t i = 0; i < list.count;) {
        uint32_t j = i + 1;
        while (j < list.count && by_key(&list.items[i], &list.items[j]) == 0) j++;
        int class = list.items[i].key.class;
        if (set->end[class] == 0) set->first[class] = set->count;
        add_family(set, &list.items[i], j - i);
        set->end[class] = set->count;
        i = j;
    }
    free(list.items);
}

void fr_family_free(fr_family_set *set) {
    for (int i = 0; i < set->count; i++) fr_curve_free(&set->families[i].curve);
    free(set->families);
    fr_picks_free(set->picks);
    *set = (fr_family_set){0};
}

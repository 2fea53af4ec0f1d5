#include "engine/cost/cost_tile.h"

#include <math.h>

/* Rows of an expert that has any: what the choice turns on (how full the tiles are, how often weights are shared). */
static double mean_rows(const fr_shape *s, const fr_pair *pairs) {
    double rows = 0, live = 0;
    for (uint32_t i = 0; i < s->vector_count; i++) {
        rows += pairs[s->vector + i].queries;
        live += pairs[s->vector + i].queries > 0;
    }
    return live > 0 ? rows / live : 0;
}

static bool speaks(const fr_row *r, const fr_shape *s) {
    return r->tile > 0 && r->shape.precision == s->precision && r->regime == FR_BURST;
}

static double distance(const fr_shape *a, const fr_shape *b) {
    return fabs(log((double)a->n / b->n)) + fabs(log((double)a->k / b->k));
}

/* How far the nearest n and k with such rows are; variants are compared on those alone. */
static double nearest(const fr_table *t, const fr_shape *s) {
    double least = INFINITY;
    for (uint32_t i = 0; i < t->count; i++)
        if (speaks(&t->rows[i], s)) least = fmin(least, distance(&t->rows[i].shape, s));
    return least;
}

/* The share of the structural time that the variant reaches, between its rows; 0 = it has none. */
static double reached(const fr_table *t, const fr_shape *s, double rows, double least, fr_tile tile) {
    double x[2] = {-INFINITY, INFINITY}, y[2] = {0, 0};
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (!speaks(r, s) || r->tile != 1 + (int)tile || distance(&r->shape, s) > least) continue;
        fr_base base;
        fr_cost_base(&t->ceilings, &r->shape, t->pairs, &base);
        const double at = log(mean_rows(&r->shape, t->pairs) / rows), share = base.ns / r->ns;
        if (at <= 0 && at > x[0]) x[0] = at, y[0] = share;
        if (at >= 0 && at < x[1]) x[1] = at, y[1] = share;
    }
    if (isinf(x[0])) return y[1];
    if (isinf(x[1])) return y[0];
    return x[1] > x[0] ? y[0] + (y[1] - y[0]) * (-x[0] / (x[1] - x[0])) : y[0];
}

/* Variants within half a percent, what turns of one measurement differ by, count as alike: the first of these is taken.
 * Pairs first: they draw less power (sustained 602 against 590 TFLOP/s down, 625 against 603 up). */
static const fr_tile order[FR_TILES] = {FR_TILE_PAIR_SKEW, FR_TILE_SINGLE, FR_TILE_PAIR, FR_TILE_SINGLE_SKEW};
#define ALIKE 1.005

fr_tile fr_tile_choose(const fr_source *sources, int count, const fr_shape *s, const fr_pair *pairs) {
    const double rows = mean_rows(s, pairs);
    for (int i = 0; i < count && rows > 0; i++) {
        const fr_table *t = sources[i].table;
        const double least = nearest(t, s);
        double best = 0;
        fr_tile tile = FR_TILE_NONE;
        for (int k = 0; k < FR_TILES; k++) {
            const double share = reached(t, s, rows, least, order[k]);
            if (share > best * (tile == FR_TILE_NONE ? 1 : ALIKE)) best = share, tile = order[k];
        }
        if (tile != FR_TILE_NONE) return tile;
    }
    return FR_TILE_NONE;
}

#include "engine/cost/power_fit.h"

#include <math.h>
#include <stdlib.h>

/* NVML between the bursts of an H200, clocks up and contexts open: 119 to 150 W (kernels/measured/raw). */
#define IDLE_W 125.0
/* Clocks nearer than this to the full one are full: NVML steps by 15 MHz. */
#define FULL 0.985

#define FRESH_FROM_MS 130 /* the limit has set in, the slow one has not */

/* What a row's power is made of: x^2 of a kernel that computes, x^2 of a memory-bound one, tensor cores, HBM. */
enum { COMPUTES, STREAMS, MATH, MEMORY, COLUMNS };
typedef struct {
    double f[COLUMNS], watts; /* watts above idle */
} reading;

static bool clocked(const fr_row *r) {
    return fr_row_plain(r) && r->regime == FR_SUSTAINED && r->clock_mhz > 0 && r->watts > 0;
}

static fr_precision precision_of(const fr_row *r) {
    return r->shape.precision < FR_PRECISIONS ? (fr_precision)r->shape.precision : FR_BF16;
}

/* SM clock of a row over the full one, 0 = not known. */
static double clock_of(const fr_power *p, const fr_row *r) {
    return r && r->clock_mhz > 0 ? fmin(1, r->clock_mhz / p->full_mhz) : 0;
}

/* What the row's work asks of tensor cores and memory, over the ceilings, if it takes ns; returns the share of its time
 * that follows the clock, -1 where its structure does not say it. */
static double shares(const fr_table *t, const fr_row *r, double ns, double *math, double *memory) {
    fr_base b;
    fr_cost_base(&t->ceilings, &r->shape, t->pairs, &b);
    double peak = t->ceilings.peak[precision_of(r)];
    *math = peak > 0 ? b.flops / ns * 1e9 / peak : 0;
    *memory = fmin(b.hbm_bytes / ns * 1e9 / t->ceilings.hbm, 1);
    return b.follows;
}

static reading reading_of(const fr_table *t, const fr_power *p, const fr_row *r) {
    const double x = clock_of(p, r);
    reading w = {.watts = (x < FULL ? p->cap : r->watts) - p->idle};
    shares(t, r, r->ns, &w.f[MATH], &w.f[MEMORY]);
    w.f[MATH] *= x; /* share a clock, times x^2 */
    w.f[fr_op_class_of((fr_op_kind)r->shape.kind) == FR_CLASS_MEMORY ? STREAMS : COMPUTES] = x * x;
    return w;
}

/* Solves the normal equations of the columns in `use`; false when singular or a coefficient is negative. */
static bool solve(const reading *v, int count, unsigned use, double out[COLUMNS], double *error) {
    double a[COLUMNS][COLUMNS + 1] = {{0}};
    int at[COLUMNS], n = 0;
    for (int k = 0; k < COLUMNS; k++) {
        out[k] = 0;
        if (use >> k & 1) at[n++] = k;
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < n; j++) {
            for (int k = 0; k < n; k++) a[j][k] += v[i].f[at[j]] * v[i].f[at[k]];
            a[j][n] += v[i].f[at[j]] * v[i].watts;
        }
    for (int j = 0; j < n; j++) {
        if (a[j][j] < 1e-9) return false;
        for (int i = 0; i < n; i++) {
            double q = i == j ? 0 : a[i][j] / a[j][j];
            for (int k = j; k <= n; k++) a[i][k] -= q * a[j][k];
        }
    }
    for (int j = 0; j < n; j++) {
        out[at[j]] = a[j][n] / a[j][j];
        if (!(out[at[j]] >= 0)) return false;
    }
    *error = 0;
    for (int i = 0; i < count; i++) {
        double off = -v[i].watts;
        for (int k = 0; k < COLUMNS; k++) off += out[k] * v[i].f[k];
        *error += off * off;
    }
    return true;
}

/* Least squares with no negative coefficient: the best of the subsets that hold the first column. */
static bool fit(const reading *v, int count, fr_power *p) {
    double best = INFINITY;
    for (unsigned use = 1; use < 1u << COLUMNS; use += 2) { /* kernels that compute, always */
        double c[COLUMNS], error;
        if (!solve(v, count, use, c, &error) || error >= best) continue;
        best = error;
        p->active = c[COMPUTES];
        p->streaming = c[STREAMS] > 0 ? c[STREAMS] : c[COMPUTES];
        for (int k = 0; k < FR_PRECISIONS; k++) p->math[k] = c[MATH];
        p->memory = c[MEMORY];
        p->error = sqrt(error / count);
    }
    return best < INFINITY && p->active > 0;
}

/* Tensor cores in other precisions than bf16: least squares over their own rows, all else as it stands. */
static void fit_precisions(const fr_table *t, fr_power *p) {
    for (int k = FR_BF16 + 1; k < FR_PRECISIONS; k++) {
        double sum = 0, weight = 0;
        for (uint32_t i = 0; i < t->count; i++) {
            const fr_row *r = &t->rows[i];
            if (!clocked(r) || precision_of(r) != (fr_precision)k) continue;
            const reading w = reading_of(t, p, r);
            sum += w.f[MATH] * (w.watts - p->active * w.f[COMPUTES] - p->memory * w.f[MEMORY]);
            weight += w.f[MATH] * w.f[MATH];
        }
        if (sum > 0) p->math[k] = sum / weight;
    }
}

/* How compute follows the clock: T(x) = T_burst (1 - flex + flex x_burst / x), from shapes with rows and clocks in both
 * regimes; where there are none, all of it. */
static void fit_flex(const fr_table *t, fr_power *p) {
    double sum[FR_CLASS_COUNT] = {0};
    int n[FR_CLASS_COUNT] = {0};
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i], *b = clocked(r) ? fr_table_burst(t, r) : NULL;
        double slow = clock_of(p, r), fast = clock_of(p, b), math, memory;
        if (!b || fast < 1.03 * slow) continue;
        shares(t, r, b->ns, &math, &memory);
        if (memory > FR_FLEX_ALL) continue;
        fr_op_class class = fr_op_class_of((fr_op_kind)r->shape.kind);
        sum[class] += (r->ns / b->ns - 1) / (fast / slow - 1); /* of single rows: own_flex */
        n[class]++;
    }
    for (int k = 0; k < FR_CLASS_COUNT; k++) p->flex[k] = n[k] ? fmin(1, fmax(0.5, sum[k] / n[k])) : 1;
}

/* The fast limit: power of a burst of a shape that has a sustained row, at its own clock where the row says it, else at
 * the one that its time says. */
static void fit_peak(const fr_table *t, fr_power *p) {
    double sum = 0;
    int n = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i], *b;
        double math, memory;
        if (!clocked(r) || !(b = fr_table_burst(t, r))) continue;
        shares(t, r, b->ns, &math, &memory);
        double x = clock_of(p, b) > 0 ? clock_of(p, b) : clock_of(p, r) * r->ns / b->ns;
        if (x >= FULL || memory > FR_FLEX_ALL) continue;
        sum += p->idle + p->active * x * x + p->math[precision_of(r)] * math * x + p->memory * memory;
        n++;
    }
    p->peak = n ? sum / n : INFINITY;
}

/* The limit after a rest, from rows of one shape on one card: the clock 0.13 to 0.3 s into the load over that of
 * seconds. Without such rows, as on an H200, if there are any of a load's beginning. */
static void fit_fresh(const fr_table *t, fr_power *p) {
    double sum = 0;
    int n = 0;
    bool any = false;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (r->at_ms < FRESH_FROM_MS || r->gap_ms >= 0 || r->clock_mhz <= 0) continue;
        any = true;
        for (uint32_t k = 0; k < t->count; k++) {
            fr_row s = t->rows[k];
            if (!clocked(&s) || clock_of(p, &s) >= FULL || s.card != r->card) continue;
            s.at_ms = r->at_ms;
            s.key = r->key;
            if (!fr_row_same(t, &s, t, r, false)) continue;
            sum += r->clock_mhz * r->clock_mhz / (s.clock_mhz * s.clock_mhz);
            n++;
        }
    }
    const double over = n ? sum / n : any ? FR_POWER_FRESH : 1;
    p->fresh = p->idle + (p->cap - p->idle) * fmax(1, over);
}

/* The same pair in a burst: what the aggressor costs without a power limit. */
static const fr_row *burst_pair(const fr_table *t, const fr_row *r) {
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *b = &t->rows[i];
        if (b->type == FR_ROW_SLOWDOWN && !b->resident && b->regime == FR_BURST && b->victim == r->victim &&
            b->aggressor == r->aggressor && b->ways == r->ways && b->duty >= 1)
            return b;
    }
    return NULL;
}

/* What links that are awake draw, and for how long they stay so: up to the longest pause between small pulls that left
 * nine tenths of it. */
static void fit_links(const fr_table *t, fr_power *p) {
    const fr_row *first = NULL;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (r->type == FR_ROW_DRAW && r->aggressor == FR_DRAW_LINK && (!first || r->turn_ms < first->turn_ms))
            first = r;
    }
    if (!first) return;
    p->alone[FR_DRAW_LINK] = fmax(0, first->watts - first->watts_alone);
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (r->type != FR_ROW_DRAW || r->aggressor != FR_DRAW_LINK) continue;
        if (r->watts - r->watts_alone >= 0.9 * p->alone[FR_DRAW_LINK])
            p->awake_ns = fmax(p->awake_ns, 1e6 * r->turn_ms);
    }
}

/* Collectives with nothing beside them; what they and pulls draw beyond links that are awake. */
static void fit_draws(const fr_table *t, fr_power *p) {
    fit_links(t, p);
    const double awake = p->alone[FR_DRAW_LINK];
    for (int of = FR_DRAW_NCCL; of < FR_DRAWS; of++) {
        double sum = 0;
        int n = 0;
        for (uint32_t i = 0; i < t->count; i++) {
            const fr_row *r = &t->rows[i];
            if (r->type != FR_ROW_DRAW || r->aggressor != of) continue;
            sum += r->watts - r->watts_alone;
            n++;
        }
        p->alone[of] = (n ? sum / n : p->transfer[FR_AGGRESSOR_NCCL]) - awake;
    }
    p->transfer[FR_AGGRESSOR_PULL] -= awake;
    p->transfer[FR_AGGRESSOR_NCCL] -= awake;
    p->transfer[FR_AGGRESSOR_EXCHANGE] = p->transfer[FR_AGGRESSOR_NCCL]; /* some SMs fewer for the others as well */
}

/*
 * Watts of an aggressor: what its victim gives up of the power above idle, (cap - idle) (1 - (clock beside / alone)^2).
 * The clocks' ratio is as measured; without clocks, for pulls, which take nothing but power, it is that of the times,
 * and for others what a sustained victim loses beyond one in a burst. By themselves pulls draw more (105 W both ways
 * where victims give up 63): near the limit power rises more steeply than the square of the clock.
 */
static void fit_transfers(const fr_table *t, fr_power *p) {
    for (int a = 0; a < FR_AGGRESSORS; a++) {
        double sum = 0;
        int n = 0;
        for (uint32_t i = 0; i < t->count; i++) {
            const fr_row *r = &t->rows[i], *b;
            if (r->type != FR_ROW_SLOWDOWN || r->resident || r->regime != FR_SUSTAINED || r->aggressor != a ||
                r->ways != 2 || r->victim == FR_CLASS_MEMORY || r->duty < 0.5)
                continue;
            double ratio = r->alone / r->beside;
            if (r->clock_mhz > 0 && r->clock_alone > 0)
                ratio = r->clock_mhz / r->clock_alone;
            else if (a != FR_AGGRESSOR_PULL)
                ratio = (b = burst_pair(t, r)) ? ratio / (b->alone / b->beside) : 1;
            sum += (p->cap - p->idle) * (1 - ratio * ratio) / r->duty;
            n++;
        }
        p->transfer[a] = n ? fmax(0, sum / n) : 0;
    }
    fit_draws(t, p);
}

/* How the row's own time follows the clock: some kernels of a class wait more than others. */
static double own_flex(const fr_power *p, const fr_row *r, const fr_row *b, double memory) {
    const double slow = clock_of(p, r), fast = clock_of(p, b);
    if (!b || fast < 1.03 * slow || memory > FR_FLEX_ALL) return -1;
    return fmin(1.1, fmax(0, (r->ns / b->ns - 1) / (fast / slow - 1)));
}

/* What the least squares leave: factors on the x^2 coefficient of rows under the limit, with the shares that their work
 * reaches in a burst, where there is such a row. */
static void fit_rows(const fr_table *t, fr_power *p) {
    for (uint32_t i = 0; i < t->count && p->held < FR_POWER_ROWS; i++) {
        const fr_row *r = &t->rows[i], *b;
        double x = clock_of(p, r);
        if (!clocked(r) || x >= FULL) continue;
        b = fr_table_burst(t, r);
        fr_power_row row = {.kind = r->shape.kind, .precision = (uint8_t)precision_of(r)};
        fr_draw d;
        const double follows = shares(t, r, b ? b->ns : r->ns, &row.math, &row.memory);
        row.flex = own_flex(p, r, b, row.memory);
        fr_power_plain(p, (fr_op_kind)row.kind, precision_of(r), row.math, row.memory, follows, b ? clock_of(p, b) : x,
                       row.flex, &d);
        row.factor = (p->cap - p->idle - d.base) / (d.slope * x * x);
        if (row.factor > 0.5 && row.factor < 2) p->row[p->held++] = row;
    }
}

static bool speaks(const fr_power_row *r, fr_op_kind kind, fr_precision precision, int pass) {
    const bool alike = pass ? fr_op_class_of((fr_op_kind)r->kind) == fr_op_class_of(kind) : r->kind == kind;
    return alike && (pass == 2 || r->precision == precision);
}

static void list_rows(fr_power *p) {
    for (int kind = 0; kind < FR_OP_KIND_COUNT; kind++)
        for (int f = 0; f < FR_PRECISIONS; f++)
            for (int pass = 0; pass < 3 && p->near[kind][f].count == 0; pass++)
                for (int i = 0; i < p->held; i++)
                    if (speaks(&p->row[i], (fr_op_kind)kind, (fr_precision)f, pass))
                        p->near[kind][f].row[p->near[kind][f].count++] = (uint8_t)i;
}

/* Mean power of the rows that are held back: the limit, whatever single readings say. */
static double limit_of(const fr_table *t, const fr_power *p, int *count) {
    double sum = 0;
    *count = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const fr_row *r = &t->rows[i];
        if (!clocked(r) || clock_of(p, r) >= FULL) continue;
        sum += r->watts;
        ++*count;
    }
    return *count ? sum / *count : 0;
}

void fr_power_fit(const fr_table *t, fr_power *p) {
    *p = (fr_power){.idle = t->idle_watts > 0 ? t->idle_watts : IDLE_W, .full_mhz = t->clock_max_mhz};
    if (p->full_mhz <= 0) return;
    int capped;
    p->cap = limit_of(t, p, &capped);
    reading *v = fr_alloc((t->count + 1) * sizeof *v);
    for (uint32_t i = 0; i < t->count && capped; i++) {
        const fr_row *r = &t->rows[i];
        if (clocked(r) && precision_of(r) == FR_BF16) v[p->rows++] = reading_of(t, p, r);
    }
    if (t->ceilings.sms > 0)
        p->knee = fmin(1, t->ceilings.hbm / (t->ceilings.sms * FR_POWER_REACH) / (1e6 * p->full_mhz));
    p->known = capped > 0 && p->rows >= 3 && fit(v, p->rows, p);
    free(v);
    if (!p->known) return;
    fit_precisions(t, p);
    fit_flex(t, p);
    fit_peak(t, p);
    fit_rows(t, p);
    list_rows(p);
    fit_fresh(t, p);
    fit_transfers(t, p);
}

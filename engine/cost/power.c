#include "engine/cost/power.h"

#include <math.h>

/* Clock at which a burst draws the power of bursts: active x^2 + math x (W; the share is reached at x) + memory. */
static double burst_clock(const fr_power *p, double math, double memory) {
    double m = math, left = p->peak - p->idle - p->memory * memory;
    if (!(left > 0) || isinf(left)) return left > 0 ? 1 : 0.5;
    return (sqrt(m * m + 4 * p->active * left) - m) / (2 * p->active);
}

/* What held rows of the kind say, by inverse squared distance in the two shares. NEAR: shares of a shape that two
 * benches call the same differ by as much. *flex is -1 where none says it. */
#define NEAR 0.03
static double correction(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                         double *flex) {
    double sum = 0, weight = 0, follow = 0, follow_weight = 0;
    for (int i = 0; i < p->near[kind][precision].count; i++) {
        const fr_power_row *r = &p->row[p->near[kind][precision].row[i]];
        double a = r->math - math, b = r->memory - memory, w = 1 / (a * a + b * b + NEAR * NEAR);
        sum += w * r->factor;
        weight += w;
        if (r->flex < 0) continue;
        follow += w * r->flex;
        follow_weight += w;
    }
    *flex = follow_weight > 0 ? follow / follow_weight : -1;
    return weight > 0 ? sum / weight : 1;
}

/* What layers say of such an op: those of its kind, else of its class; 1 where none does. One layer alone says nothing
 * that the mean card does not. */
static double in_layers(const fr_power *p, fr_op_kind kind, double math, double memory) {
    double sum = 0, weight = 0;
    for (int pass = 0; pass < 2 && weight <= 0; pass++)
        for (int i = 0; i < p->layers; i++) {
            const fr_power_layer *r = &p->layer[i];
            if (pass ? fr_op_class_of((fr_op_kind)r->kind) != fr_op_class_of(kind) : r->kind != kind) continue;
            const double a = r->math - math, b = r->memory - memory, w = 1 / (a * a + b * b + NEAR * NEAR);
            sum += w * r->factor;
            weight += w;
        }
    return weight > 0 ? sum / weight : 1;
}

void fr_power_plain(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                    double follows, double clock, double flex, fr_draw *out) {
    double share = fr_least(1, memory), hbm = p->memory * share, cores = p->math[precision] * math;
    double full = clock > 0 ? clock : burst_clock(p, cores, share), active = p->active;
    fr_op_class class = fr_op_class_of(kind);
    /* products overlap their loads: all of them waits for memory or none; elsewhere what memory doesn't explain */
    if (class == FR_CLASS_MEMORY) {
        active = p->streaming;
        out->flex = fr_most(0, 1 - share / FR_STREAMS);
    } else {
        out->flex = follows >= 0 ? follows : (flex >= 0 ? flex : p->flex[class]) * fr_power_unbound(share);
    }
    out->full = fr_least(1, fr_most(0.5, full));
    out->knee = p->knee * (class == FR_CLASS_MEMORY ? FR_POWER_REACH / FR_POWER_REACH_STREAMING : 1);
    /* what HBM draws goes down with the op's speed: about as x^2 over the range that limits move it */
    out->base = hbm * (1 - out->flex);
    out->slope = active + cores / out->full + hbm * out->flex / (out->full * out->full);
}

void fr_power_draw(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                   double follows, double clock, fr_draw *out) {
    double flex;
    const double factor = correction(p, kind, precision, math, fmin(1, memory), &flex);
    fr_power_plain(p, kind, precision, math, memory, follows, clock, flex, out);
    out->slope *= factor * in_layers(p, kind, math, fmin(1, memory));
}

double fr_power_alone(const fr_power *p, const fr_draw *d) {
    return fr_least(d->full, fr_power_clock(p, p->cap, d->base, d->slope));
}

void fr_power_hands_begin(const fr_power *p, double watts, fr_power_hands *out) {
    *out = (fr_power_hands){.x = 1, .fresh = p->fresh, .sum = FR_POWER_TICKS * watts};
    out->limit = watts < p->cap ? p->fresh : p->cap;
    for (int i = 0; i < FR_POWER_TICKS; i++) out->mean[i] = watts;
}

void fr_power_tick(const fr_power *p, double watts, double square, double slope, fr_power_hands *h) {
    h->sum += watts - h->mean[h->at];
    h->mean[h->at] = watts;
    h->at = (h->at + 1) % FR_POWER_TICKS;
    const double excess = h->sum / FR_POWER_TICKS - p->cap;
    h->limit = fr_least(h->fresh, p->cap - (FR_POWER_SLOW_GAIN + FR_POWER_SLOW_BEND * fr_most(0, excess)) * excess);
    /* what kernels had that cannot use the clock is where it comes down from */
    const double left = h->limit - watts, from = left < 0 ? fr_least(square, h->x * h->x) : h->x * h->x;
    const double next = slope > 0 ? from + (left < 0 ? FR_POWER_FAST_DOWN : FR_POWER_FAST_UP) * left / slope : 1;
    h->x = next >= 1 ? 1 : sqrt(fr_most(0.04, next));
}

void fr_power_describe(const fr_power *p, fr_text *out) {
    if (!p->known) {
        fr_text_add(out, "power: no rows with clock and watts: sustained costs are bursts times one ratio a class\n");
        return;
    }
    fr_text_add(out,
                "power: idle %.0f W, limit %.0f W (%.0f after a rest), bursts up to %.0f W; full clock %.0f MHz\n"
                "  busy SMs %.0f W at full clock (%.0f where they only move data), HBM at peak %.0f W,\n"
                "  tensor cores at peak %.0f W (fp8 %.0f); rms error %.0f W over %d rows\n"
                "  follow the clock: GEMM %.2f, grouped %.2f, attention %.2f\n"
                "  beside compute: pulls %.0f W, NCCL %.0f W, host copies %.0f W\n",
                p->idle, p->cap, p->fresh, p->peak, p->full_mhz, p->active, p->streaming, p->memory, p->math[FR_BF16],
                p->math[FR_FP8], p->error, p->rows, p->flex[FR_CLASS_GEMM], p->flex[FR_CLASS_GROUPED],
                p->flex[FR_CLASS_ATTENTION], p->transfer[FR_AGGRESSOR_PULL], p->transfer[FR_AGGRESSOR_NCCL],
                p->transfer[FR_AGGRESSOR_H2D]);
}

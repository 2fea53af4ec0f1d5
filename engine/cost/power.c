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

void fr_power_plain(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory,
                    double clock, double flex, fr_draw *out) {
    double share = fr_least(1, memory), hbm = p->memory * share, cores = p->math[precision] * math;
    double full = clock > 0 ? clock : burst_clock(p, cores, share), active = p->active;
    fr_op_class class = fr_op_class_of(kind);
    /* products overlap their loads: all of them waits for memory or none; elsewhere what memory doesn't explain */
    if (class == FR_CLASS_MEMORY) {
        active = p->streaming;
        out->flex = fr_most(0, 1 - share / FR_STREAMS);
    } else {
        out->flex = (flex >= 0 ? flex : p->flex[class]) * fr_power_unbound(share);
    }
    out->full = fr_least(1, fr_most(0.5, full));
    /* what HBM draws goes down with the op's speed: about as x^2 over the range that limits move it */
    out->base = hbm * (1 - out->flex);
    out->slope = active + cores / out->full + hbm * out->flex / (out->full * out->full);
}

void fr_power_draw(const fr_power *p, fr_op_kind kind, fr_precision precision, double math, double memory, double clock,
                   fr_draw *out) {
    double flex;
    const double factor = correction(p, kind, precision, math, fmin(1, memory), &flex);
    fr_power_plain(p, kind, precision, math, memory, clock, flex, out);
    out->slope *= factor;
}

double fr_power_alone(const fr_power *p, const fr_draw *d) {
    return fr_least(d->full, fr_power_clock(p, p->cap, d->base, d->slope));
}

void fr_power_describe(const fr_power *p, fr_text *out) {
    if (!p->known) {
        fr_text_add(out, "power: no rows with clock and watts: sustained costs are bursts times one ratio a class\n");
        return;
    }
    fr_text_add(out,
                "power: idle %.0f W, limit %.0f W averaged over %.0f ms, bursts up to %.0f W; full clock %.0f MHz\n"
                "  busy SMs %.0f W at full clock (%.0f where they only move data), HBM at peak %.0f W,\n"
                "  tensor cores at peak %.0f W (fp8 %.0f); rms error %.0f W over %d rows\n"
                "  follow the clock: GEMM %.2f, grouped %.2f, attention %.2f\n"
                "  beside compute: pulls %.0f W, NCCL %.0f W, host copies %.0f W\n",
                p->idle, p->cap, p->window_ns / 1e6, p->peak, p->full_mhz, p->active, p->streaming, p->memory,
                p->math[FR_BF16], p->math[FR_FP8], p->error, p->rows, p->flex[FR_CLASS_GEMM], p->flex[FR_CLASS_GROUPED],
                p->flex[FR_CLASS_ATTENTION], p->transfer[FR_AGGRESSOR_PULL], p->transfer[FR_AGGRESSOR_NCCL],
                p->transfer[FR_AGGRESSOR_H2D]);
}

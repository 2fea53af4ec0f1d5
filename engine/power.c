#include "engine/power.h"

#include <math.h>

void fr_power_draw(const fr_power *p, double math, double memory, fr_draw *out) {
    double share = fmin(1, memory), rates = p->memory * share + p->math * math;
    double full = (p->peak - p->idle - rates) / p->active;
    out->flex = fmin(1, fmax(0, (FR_FLEX_NONE - share) / (FR_FLEX_NONE - FR_FLEX_ALL)));
    out->full = fmin(1, fmax(0.5, full));
    out->base = rates * (1 - out->flex);
    out->slope = p->active + rates * out->flex / out->full;
}

double fr_power_speed(const fr_draw *d, double x) {
    return x >= d->full ? 1 : 1 / (1 - d->flex + d->flex * d->full / x);
}

double fr_power_clock(const fr_power *p, double watts, double base, double slope) {
    if (slope <= 0) return 1;
    return fmin(1, fmax(0.2, (watts - p->idle - base) / slope));
}

double fr_power_alone(const fr_power *p, const fr_draw *d) {
    return fmin(d->full, fr_power_clock(p, p->cap, d->base, d->slope));
}

void fr_power_describe(const fr_power *p, fr_text *out) {
    if (!p->known) {
        fr_text_add(out, "power: no rows with clock and watts: sustained costs are bursts times one ratio a class\n");
        return;
    }
    fr_text_add(out,
                "power: idle %.0f W, limit %.0f W averaged over %.0f ms, bursts up to %.0f W; full clock %.0f MHz\n"
                "  busy SMs %.0f W at full clock, tensor cores at peak %.0f W, HBM at peak %.0f W (rms %.0f W over %d "
                "rows); beside compute: pulls %.0f W, NCCL %.0f W, host copies %.0f W\n",
                p->idle, p->cap, p->window_ns / 1e6, p->peak, p->full_mhz, p->active, p->math, p->memory, p->error,
                p->rows, p->transfer[FR_AGGRESSOR_PULL], p->transfer[FR_AGGRESSOR_NCCL], p->transfer[FR_AGGRESSOR_H2D]);
}

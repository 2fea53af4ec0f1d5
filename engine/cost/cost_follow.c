#include "engine/cost/cost_follow.h"

#include "engine/layout.h"

#include <math.h>

static bool collective(const fr_shape *s) {
    return fr_op_class_of((fr_op_kind)s->kind) == FR_CLASS_COLLECTIVE && s->bytes > 0;
}

static void add(fr_follow *f, const fr_table *t, const fr_row *r) {
    const fr_row *b = fr_table_burst(t, r);
    const double slower = r->clock_mhz > 0 ? t->clock_max_mhz / r->clock_mhz - 1 : 0;
    if (!b || slower < 0.05 || f->points == FR_FOLLOW_POINTS) return;
    f->point[f->points].kind = r->shape.kind;
    f->point[f->points].ranks = r->shape.ranks;
    f->point[f->points].bytes = log((double)r->shape.bytes);
    f->point[f->points++].flex = fmax(0, (r->ns / b->ns - 1) / slower);
}

void fr_follow_fit(const fr_source *sources, int count, fr_follow *out) {
    out->points = 0;
    for (int s = 0; s < count && !out->points; s++)
        for (uint32_t i = 0; i < sources[s].table->count; i++) {
            const fr_row *r = &sources[s].table->rows[i];
            if (r->type == FR_ROW_OP && r->regime == FR_SUSTAINED && collective(&r->shape))
                add(out, sources[s].table, r);
        }
}

/* Weights that NCCL's kernels gather are an all-gather. */
static uint8_t kind_of(const fr_shape *s) {
    return s->kind == FR_OP_GATHER_WEIGHTS && s->transport == FR_GATHER_NCCL ? FR_OP_ALLGATHER : s->kind;
}

static int nearest_ranks(const fr_follow *f, const fr_shape *s) {
    double least = INFINITY;
    int ranks = 0;
    for (int i = 0; i < f->points; i++) {
        if (f->point[i].kind != kind_of(s)) continue;
        const double d = fabs(log((double)f->point[i].ranks / (s->ranks > 1 ? s->ranks : 2)));
        if (d >= least) continue;
        least = d;
        ranks = f->point[i].ranks;
    }
    return ranks;
}

double fr_follow_flex(const fr_follow *f, const fr_shape *s) {
    if (!collective(s)) return 0;
    const int ranks = nearest_ranks(f, s);
    if (ranks == 0) return 0;
    const double at = log((double)s->bytes);
    double x[2] = {-INFINITY, INFINITY}, y[2] = {0, 0};
    for (int i = 0; i < f->points; i++) {
        if (f->point[i].kind != kind_of(s) || f->point[i].ranks != ranks) continue;
        const double b = f->point[i].bytes;
        if (b <= at && b > x[0]) x[0] = b, y[0] = f->point[i].flex;
        if (b >= at && b < x[1]) x[1] = b, y[1] = f->point[i].flex;
    }
    if (isinf(x[0])) return isinf(x[1]) ? 0 : y[1];
    if (isinf(x[1])) return y[0];
    return x[1] > x[0] ? y[0] + (y[1] - y[0]) * (at - x[0]) / (x[1] - x[0]) : y[0];
}

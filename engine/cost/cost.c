/*
 * The cost model: opens tables, asks families, adds what provenance demands, scales what-ifs.
 *
 * A cost is  max(bound, curve(structural time under this machine's ceilings) + law)  with an interval from the rows'
 * spread, the fits' leave-one-out error and a least width by provenance. A what-if or another GPU changes ceilings
 * only: "work that ideally takes b ns took T ns" is what a table says, whoever does the work.
 */
#include "engine/cost/cost_model.h"
#include "engine/cost/cost_tile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Share of the datasheet ceiling where nothing at all was measured: what most of the measured Hopper rows reach (GEMM
 * 0.80, grouped 0.5-0.7, attention 0.45-0.7, HBM 0.88, links 0.87 of nominal, NCCL 0.75: published and first readings).
 * The interval of
 * +-40 % spans from the worst to the best of them. */
const double fr_roofline_share[FR_CLASS_COUNT] = {
    [FR_CLASS_MEMORY] = 0.85,  [FR_CLASS_GEMM] = 0.75,       [FR_CLASS_ATTENTION] = 0.65,
    [FR_CLASS_GROUPED] = 0.60, [FR_CLASS_COLLECTIVE] = 0.70, [FR_CLASS_COPY] = 0.87};

/* Least half-width of the interval. Measured: repeatability of short kernels under changing clocks. Seeded: first
 * readings, other libraries than ours. Transferred: 25 % until a second
 * generation of GPUs is measured, in quadrature with the seeds' 15 %. */
static const double least_width[FR_FROM_KINDS] = {
    [FR_FROM_MEASURED] = 0.02,    [FR_FROM_INTERPOLATED] = 0.03, [FR_FROM_EXTRAPOLATED] = 0.05,
    [FR_FROM_TRANSFERRED] = 0.30, [FR_FROM_SEEDED] = 0.15,       [FR_FROM_ROOFLINE] = 0.40};

/* Host work where a table is silent; the seeds say the same. */
#define LAUNCH_NS   2500.0
#define READBACK_NS 10000.0

const char *fr_provenance_name(fr_provenance p) {
    static const char *const names[FR_FROM_KINDS] = {"measured",    "interpolated", "extrapolated",
                                                     "transferred", "seeded",       "roofline"};
    return (unsigned)p < FR_FROM_KINDS ? names[p] : "unknown";
}

/* What the ideal time of a kind is made of (cost_base.c). */
static unsigned stands_on(const fr_ceilings *c, fr_op_kind kind) {
    switch (fr_op_class_of(kind)) {
    case FR_CLASS_GEMM:
    case FR_CLASS_ATTENTION:
    case FR_CLASS_GROUPED:
        return MOVED_PEAK | MOVED_SMS | MOVED_HBM;
    case FR_CLASS_MEMORY:
        return fr_op_over_pcie(kind) ? MOVED_PCIE : MOVED_SMS | MOVED_HBM;
    case FR_CLASS_COPY:
        if (kind == FR_OP_DRAIN) return MOVED_HBM;
        if (kind == FR_OP_H2D || kind == FR_OP_D2H) return MOVED_PCIE;
        return c->link > 0 ? MOVED_LINK : MOVED_PCIE;
    case FR_CLASS_COLLECTIVE:
        return c->link > 0 ? MOVED_LINK : MOVED_PCIE;
    default:
        return 0;
    }
}

/* Sorting is three kernels (kernels/kernels.h: fr_k_route). */
double fr_cost_gap_of(const fr_cost_model *c, fr_op_kind kind, bool timed) {
    return c->gap[0] * (kind == FR_OP_SORT ? 3 : 1) + (timed ? c->gap[1] - c->gap[0] : 0);
}

static void host_cost(const fr_cost_model *c, const fr_shape *s, fr_estimate *e) {
    if (s->kind != FR_OP_LAUNCH && s->kind != FR_OP_READBACK) return;
    if (e->provenance == FR_FROM_ROOFLINE) e->ns = s->kind == FR_OP_LAUNCH ? LAUNCH_NS * (double)s->m : READBACK_NS;
    e->ns /= c->options.what_if.launch;
    e->low /= c->options.what_if.launch;
    e->high /= c->options.what_if.launch;
}

static void widen(fr_estimate *e, double least) {
    e->low = fr_least(e->low, e->ns * (1 - least));
    e->high = fr_most(e->high, e->ns * (1 + least));
}

static void scale(fr_estimate *e, double by) {
    e->ns *= by;
    e->low *= by;
    e->high *= by;
}

/* From a burst to the regime that was asked for: the op back to back at the clock that the limit leaves it. */
static void apply_power(const fr_cost_model *c, const fr_shape *s, const fr_base *base, fr_estimate *e, fr_cost *out) {
    fr_op_class class = fr_op_class_of((fr_op_kind)s->kind);
    double warm = 1, flex = 0;
    const bool chained = fr_chain_at(&c->chain, (fr_op_kind)s->kind, base->bound, &warm, &flex);
    if (chained) scale(e, warm);
    out->burst_ns = fr_max_i64(1, fr_round(e->ns));
    if (!c->power.known) return;
    if (class == FR_CLASS_COLLECTIVE) out->draw = (fr_draw){.full = 1, .flex = fr_follow_flex(&c->follow, s)};
    if (class < FR_CLASS_MEMORY || class > FR_CLASS_GROUPED) return;
    double own = c->own_ratio[class];
    const fr_precision precision = s->precision < FR_PRECISIONS ? (fr_precision)s->precision : FR_BF16;
    double peak = c->ceilings.peak[precision], rate = 1e9 / e->ns;
    fr_power_draw(&c->power, (fr_op_kind)s->kind, precision, peak > 0 ? base->flops * rate / peak : 0,
                  base->hbm_bytes * rate / c->ceilings.hbm, base->follows, e->clock, &out->draw);
    if (chained) out->draw.flex = flex;
    out->draw.slope *= c->mean.draw;
    if (own > 1) out->draw.slope = 0; /* the player keeps to the price */
    if (c->options.regime == FR_BURST) return;
    /* rows of an own table that say both regimes: all that HBM does not bound has their ratio */
    const double memory = base->hbm_bytes * rate / c->ceilings.hbm;
    const double follows = class == FR_CLASS_MEMORY || base->follows >= 0 ? out->draw.flex : fr_power_unbound(memory);
    double slower =
        own > 1 ? 1 + follows * (own - 1) : 1 / fr_power_speed(&out->draw, fr_power_alone(&c->power, &out->draw));
    scale(e, slower);
    if (slower > 1 && e->provenance < FR_FROM_INTERPOLATED) e->provenance = FR_FROM_INTERPOLATED;
}

/* Packing for other ranks is five launches (kernels/exchange.cu, fr_k_pack): each copy's target, a sort of the copies
 * by it, and the permute, whose shape this is. ns of the first four, which find their rows in L2, in a chain. */
static double packing(const fr_cost_model *c, const fr_shape *s) {
    const fr_shape sort = {.kind = FR_OP_SORT, .m = s->m, .n = s->ranks, .bytes = 12 * s->m};
    fr_base base;
    fr_estimate e;
    if (s->kind != FR_OP_PERMUTE || s->ranks < 1) return 0;
    fr_cost_base(&c->ceilings, &sort, NULL, &base);
    const bool known = fr_family_estimate(&c->set, &c->ceilings, &sort, &base, 1, &e);
    return (known ? e.ns : base.ns) + c->ceilings.floor_ns + fr_cost_gap_of(c, FR_OP_SORT, false) + c->gap[0];
}

void fr_cost_op(const fr_cost_model *c, const fr_shape *shape, const fr_pair *pairs, fr_cost *out) {
    fr_shape s = *shape;
    fr_base base;
    fr_op_class class = fr_op_class_of((fr_op_kind)s.kind);
    *out = (fr_cost){0};
    /* FP8 attention exists on Hopper, but not with bottom-right masks or bf16 output: bf16 unless a table has rows. */
    if (class == FR_CLASS_ATTENTION && !c->fp8_attention) s.precision = FR_BF16;
    if (class == FR_CLASS_GEMM && c->options.varied && s.m > 0) s.m = fr_rows_like(s.m);
    if (class == FR_CLASS_GROUPED)
        fr_grouped_base(c->experts, &c->ceilings, &s, pairs, &base);
    else
        fr_cost_base(&c->ceilings, &s, pairs, &base);
    if (base.ns <= 0) return;
    fr_estimate e = {.provenance = FR_FROM_ROOFLINE};
    /* ranks that gather pull from each other: both directions of their links are busy */
    const uint8_t ways = s.kind == FR_OP_PULL && s.ranks > 1 ? 2 : 1;
    if (!fr_family_estimate(&c->set, &c->ceilings, &s, &base, ways, &e)) {
        double share = fr_roofline_share[class];
        e.ns = base.ns / (share > 0 ? share : 1) + base.extra;
        e.low = e.high = e.ns;
        e.provenance = FR_FROM_ROOFLINE;
    }
    if (class == FR_CLASS_HOST) host_cost(c, &s, &e);
    /* Two ranks that pull from each other were measured; how more share a switch is a law, unless a table has rows of
     * so many (engine/cost/cost_family.c). */
    bool crowd = (s.kind == FR_OP_PULL || s.kind == FR_OP_PUSH) && s.ranks > 2 && e.provenance >= FR_FROM_EXTRAPOLATED;
    /* Inside the grid what was measured stands, under a what-if too: L2 serves small tensors faster than HBM could. */
    if (e.provenance > FR_FROM_INTERPOLATED && e.ns < base.bound) e.ns = base.bound;
    if (c->moved & stands_on(&c->ceilings, (fr_op_kind)s.kind) && e.provenance < FR_FROM_EXTRAPOLATED)
        e.provenance = FR_FROM_EXTRAPOLATED;
    widen(&e, least_width[e.provenance]);
    if (crowd) widen(&e, 0.25);
    if (e.provenance < FR_FROM_TRANSFERRED && class >= FR_CLASS_MEMORY && class <= FR_CLASS_GROUPED) {
        const double time = c->mean.time[class];
        scale(&e, time);
        if (class != FR_CLASS_MEMORY) e.clock /= time; /* it is their clock that differs (cost_card.h) */
        widen(&e, c->spread[class]);
    }
    apply_power(c, &s, &base, &e, out);
    const double more = packing(c, &s);
    scale(&e, 1 + more / e.ns);
    out->burst_ns += fr_round(more);
    out->ns = fr_max_i64(1, fr_round(e.ns));
    out->low = fr_min_i64(out->ns, fr_round(fr_most(0, e.low)));
    out->high = fr_max_i64(out->ns, fr_round(e.high));
    out->provenance = e.provenance;
    /* An op that moves its bytes faster than HBM does found part of them in L2 (the copy of a row that permute gathered
     * before): only what HBM can have carried counts for sharing, or it would slow down when alone. */
    out->hbm_bytes = fr_least(base.hbm_bytes, c->capacity.hbm * 1e-9 * (double)out->burst_ns);
    out->link_bytes = base.link_bytes;
}

double fr_cost_measured(const fr_cost_model *c, const fr_table *t, const fr_row *r) {
    for (int s = 0; s < c->source_count && c->sources[s].cap < FR_FROM_TRANSFERRED; s++) {
        const fr_table *own = c->sources[s].table;
        for (uint32_t i = 0; i < own->count; i++)
            if (own->rows[i].key == r->key && fr_row_plain(&own->rows[i]) &&
                fr_row_same(own, &own->rows[i], t, r, true))
                return own->rows[i].ns * (c->mean.time[fr_op_class_of((fr_op_kind)r->shape.kind)]);
    }
    return 0;
}

/* Each card was foretold from the mean of the n - 1 others, which is n / (n - 1) as far from it as the mean of all; the
 * clock goes with the root of the draw. */
double fr_cost_cards_spread(const fr_cost_model *c) {
    const int n = c->card_clock.count;
    return n < 3 ? 0 : 2 * c->card_clock.rms * sqrt((n - 1.0) / n);
}

double fr_cost_held_back(const fr_cost_model *c, fr_op_kind beside, fr_aggressor aggressor) {
    return c->beside.held_back[beside][aggressor];
}

double fr_cost_slowdown(const fr_cost_model *c, fr_op_kind victim, fr_aggressor aggressor) {
    return c->beside.slowdown[victim][aggressor];
}

const fr_power *fr_cost_power(const fr_cost_model *c) {
    return &c->power;
}

double fr_cost_gap(const fr_cost_model *c, fr_op_kind kind) {
    fr_op_class class = fr_op_class_of(kind);
    /* our own exchange's kernels are measured in turns with events between them, but behind one another */
    if (kind == FR_OP_COUNTS || kind == FR_OP_ALLTOALL || kind == FR_OP_ALLTOALL_BACK) return c->gap[0];
    if (class < FR_CLASS_MEMORY || class > FR_CLASS_GROUPED) return 0;
    return fr_cost_gap_of(c, kind, c->timed);
}

void fr_cost_time_ops(fr_cost_model *c, bool timed) {
    c->timed = timed;
}

fr_regime fr_cost_regime(const fr_cost_model *c) {
    return c->options.regime;
}

fr_tile fr_cost_tile(const fr_cost_model *c, const fr_shape *shape, const fr_pair *pairs) {
    return fr_tile_choose(c->sources, c->source_count, shape, pairs);
}

void fr_cost_capacity(const fr_cost_model *c, fr_capacity *out) {
    *out = c->capacity;
}

uint64_t fr_cost_hash(const fr_cost_model *c) {
    return c->hash;
}

const char *fr_cost_source(const fr_cost_model *c) {
    return c->source;
}

fr_status fr_cost_parse(const char *text, size_t length, const char *where, int *rows, fr_error *err) {
    fr_table t = {0};
    fr_status status = fr_table_parse(text, length, where, &t, err);
    *rows = (int)t.count;
    fr_table_free(&t);
    return status;
}

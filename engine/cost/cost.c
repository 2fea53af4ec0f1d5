/*
 * The cost model: opens tables, asks families, adds what provenance demands, scales what-ifs.
 *
 * A cost is  max(bound, curve(structural time under this machine's ceilings) + law)  with an interval from the rows'
 * spread, the fits' leave-one-out error and a least width by provenance. A what-if or another GPU changes ceilings
 * only: "work that ideally takes b ns took T ns" is what a table says, whoever does the work.
 */
#include "engine/cost/cost.h"
#include "engine/cost/cost_beside.h"
#include "engine/cost/cost_card.h"
#include "engine/cost/cost_chain.h"
#include "engine/cost/cost_family.h"
#include "engine/cost/cost_follow.h"
#include "engine/cost/cost_grouped.h"
#include "engine/cost/cost_tile.h"
#include "engine/cost/power_fit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* GPUs without a table take the curves of this one (the Hopper that was measured most). */
#define FALLBACK_GPU "h200"
#define TABLE_LIMIT  ((size_t)16 << 20)

/* Share of the datasheet ceiling where nothing at all was measured: what most of the measured Hopper rows reach (GEMM
 * 0.80, grouped 0.5-0.7, attention 0.45-0.7, HBM 0.88, links 0.87 of nominal, NCCL 0.75: published and first readings).
 * The interval of
 * +-40 % spans from the worst to the best of them. */
static const double roofline_share[FR_CLASS_COUNT] = {
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
#define FLOOR_NS    2500.0

enum { T_EXTRA, T_OWN, T_FALLBACK, T_COUNT };

struct fr_cost_model {
    fr_machine machine;
    fr_cost_options options;
    fr_table tables[T_COUNT];
    fr_source sources[T_COUNT];
    int source_count;
    fr_family_set set;
    fr_expert_memo *experts;
    fr_ceilings ceilings;
    unsigned moved; /* ceilings that differ from those of the tables: what stands on them is not measured any more */
    bool fp8_attention;
    fr_power power;
    fr_chain chain;
    fr_follow follow;
    fr_card mean; /* of the cards of this kind, over the table's */
    double spread[FR_CLASS_COUNT];
    int cards; /* that it is the mean of; how well each is foretold from the others: */
    fr_card_check card_time[FR_CLASS_COUNT], card_clock;
    double own_ratio[FR_CLASS_COUNT]; /* of rows that outrank the power model's table: sustained over burst */
    fr_besides beside;
    double gap[2]; /* ns that a kernel takes in a chain of others beyond its own back to back: plain, timed */
    bool timed;
    fr_capacity capacity;
    bool from_folder; /* a table of the folder that was asked for is in use */
    uint64_t hash;
    char source[256];
};

const char *fr_provenance_name(fr_provenance p) {
    static const char *const names[FR_FROM_KINDS] = {"measured",    "interpolated", "extrapolated",
                                                     "transferred", "seeded",       "roofline"};
    return (unsigned)p < FR_FROM_KINDS ? names[p] : "unknown";
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static fr_status add_text(fr_cost_model *c, int slot, const char *text, size_t length, const char *where,
                          fr_provenance cap, fr_error *err) {
    fr_table *t = &c->tables[slot];
    FR_TRY(fr_table_parse(text, length, where, t, err));
    c->hash = fr_hash(text, length, c->hash);
    /* a folder may offer another GPU's table under this one's name: then it says so in its header */
    if (slot != T_EXTRA && strcmp(t->gpu, c->machine.gpu) != 0) cap = FR_FROM_TRANSFERRED;
    c->sources[c->source_count++] = (fr_source){t, cap};
    size_t used = strlen(c->source);
    char seeds[32] = "";
    if (t->seeds && t->seeds < t->count) snprintf(seeds, sizeof seeds, ", %u of them seeded", t->seeds);
    snprintf(c->source + used, sizeof c->source - used, "%s%.80s, %u rows%s", used ? "; " : "", where, t->count,
             cap == FR_FROM_TRANSFERRED ? ", transferred"
             : t->seeds == t->count     ? ", seeded"
                                        : seeds);
    return FR_OK;
}

/* A GPU's table from the folder, or the compiled-in one; *found says whether there was any. */
static fr_status add_gpu(fr_cost_model *c, int slot, const char *gpu, fr_provenance cap, bool *found, fr_error *err) {
    char where[4096];
    *found = false;
    if (c->options.tables) {
        int n = snprintf(where, sizeof where, "%s/%s.txt", c->options.tables, gpu);
        if (n < 0 || (size_t)n >= sizeof where)
            return fr_fail(err, FR_BAD_INPUT, "%s: path is too long", c->options.tables);
        FILE *f = fopen(where, "rb");
        if (f) {
            fclose(f);
            char *text;
            size_t length;
            FR_TRY(fr_read_file(where, TABLE_LIMIT, &text, &length, err));
            *found = c->from_folder = true;
            fr_status status = add_text(c, slot, text, length, where, cap, err);
            free(text);
            return status;
        }
    }
    size_t length;
    const char *text = fr_table_builtin(gpu, &length);
    if (!text) return FR_OK;
    *found = true;
    snprintf(where, sizeof where, "kernels/measured/%s.txt", gpu);
    return add_text(c, slot, text, length, where, cap, err);
}

static fr_status open_tables(fr_cost_model *c, fr_error *err) {
    bool found = false;
    if (c->options.extra) {
        char *text;
        size_t length;
        FR_TRY(fr_read_file(c->options.extra, TABLE_LIMIT, &text, &length, err));
        fr_status status = add_text(c, T_EXTRA, text, length, c->options.extra, FR_FROM_MEASURED, err);
        free(text);
        FR_TRY(status);
        if (strcmp(c->tables[T_EXTRA].gpu, c->machine.gpu) != 0)
            return fr_fail(err, FR_BAD_INPUT, "%s: gpu: rows of a %s, but the machine has %s", c->options.extra,
                           c->tables[T_EXTRA].gpu, c->machine.gpu);
    }
    FR_TRY(add_gpu(c, T_OWN, c->machine.gpu, FR_FROM_MEASURED, &found, err));
    if (strcmp(c->machine.gpu, FALLBACK_GPU) != 0)
        FR_TRY(add_gpu(c, T_FALLBACK, FALLBACK_GPU, FR_FROM_TRANSFERRED, &found, err));
    if (c->options.tables && !c->from_folder)
        return fr_fail(err, FR_BAD_INPUT, "%.256s: no such folder, or it holds no table %.64s.txt%s", c->options.tables,
                       c->machine.gpu, strcmp(c->machine.gpu, FALLBACK_GPU) != 0 ? " and no " FALLBACK_GPU ".txt" : "");
    return FR_OK;
}

/* How cards of this kind differ, from <gpu>_cards.txt where there is one: the grid was measured on one of them. A
 * user's own rows are of his own card. */
static fr_status set_cards(fr_cost_model *c, fr_error *err) {
    char name[64], where[4096];
    size_t length = 0;
    char *read = NULL;
    fr_card *cards;
    int count;
    fr_card_plain(&c->mean);
    if (c->tables[T_EXTRA].count || c->sources[0].cap == FR_FROM_TRANSFERRED) return FR_OK;
    snprintf(name, sizeof name, "%.50s_cards", c->machine.gpu);
    const char *text = NULL;
    if (c->options.tables) {
        snprintf(where, sizeof where, "%.3900s/%s.txt", c->options.tables, name);
        if (access(where, R_OK) == 0) FR_TRY(fr_read_file(where, TABLE_LIMIT, &read, &length, err));
        text = read;
    } else {
        snprintf(where, sizeof where, "kernels/measured/%s.txt", name);
        text = fr_table_builtin(name, &length);
    }
    if (!text) return FR_OK;
    fr_status status = fr_cards_read(c, text, where, &cards, &count, err);
    if (status == FR_OK) {
        c->hash = fr_hash(text, length, c->hash);
        fr_cards_mean(cards, count, &c->mean, c->spread);
        fr_cards_check(cards, count, c->card_time, &c->card_clock);
        c->cards = count;
        free(cards);
    }
    free(read);
    return status;
}

/* The row's ns of the first source that has one of this type. */
static double row_of(const fr_cost_model *c, fr_row_type type, double otherwise) {
    for (int s = 0; s < c->source_count; s++)
        for (uint32_t i = 0; i < c->sources[s].table->count; i++)
            if (c->sources[s].table->rows[i].type == type) return c->sources[s].table->rows[i].ns;
    return otherwise;
}

enum { MOVED_PEAK = 1, MOVED_SMS = 2, MOVED_HBM = 4, MOVED_LINK = 8, MOVED_PCIE = 16 };

static unsigned differs(double a, double b, unsigned what) {
    return a > 0 && b > 0 && fabs(a / b - 1) > 0.01 ? what : 0;
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

static void set_ceilings(fr_cost_model *c) {
    const fr_machine *m = &c->machine;
    const fr_what_if *w = &c->options.what_if;
    double floor_ns = row_of(c, FR_ROW_FLOOR, FLOOR_NS);
    c->gap[0] = row_of(c, FR_ROW_GAP, 0);
    c->gap[1] = row_of(c, FR_ROW_GAP_TIMED, c->gap[0]);
    c->ceilings = (fr_ceilings){.hbm = m->hbm_rate * w->hbm,
                                .link = m->link_rate * w->link,
                                .pcie = m->pcie_rate * w->pcie,
                                .network = m->network_rate * w->network,
                                .network_latency_ns = m->network_latency_ns,
                                .floor_ns = floor_ns,
                                .sms = m->sms > 0 ? m->sms : 1};
    for (int i = 0; i < c->source_count && !c->ceilings.grouped_tile; i++)
        if (fr_family_rows(c->sources[i].table, FR_CLASS_GROUPED))
            c->ceilings.grouped_tile = c->sources[i].table->ceilings.grouped_tile;
    for (int p = 0; p < FR_PRECISIONS; p++) c->ceilings.peak[p] = m->peak_flops[p] * w->flops;
    for (int s = 0; s < c->source_count; s++) {
        fr_ceilings *t = &c->tables[c->sources[s].table - c->tables].ceilings;
        t->floor_ns = floor_ns;
        if (t->peak[FR_FP8] <= 0) t->peak[FR_FP8] = t->peak[FR_BF16];
        if (c->sources[s].cap == FR_FROM_TRANSFERRED) continue;
        for (int p = 0; p < FR_PRECISIONS; p++) c->moved |= differs(t->peak[p], c->ceilings.peak[p], MOVED_PEAK);
        c->moved |= differs(t->hbm, c->ceilings.hbm, MOVED_HBM) | differs(t->link, c->ceilings.link, MOVED_LINK) |
                    differs(t->pcie, c->ceilings.pcie, MOVED_PCIE) | (t->sms != c->ceilings.sms ? MOVED_SMS : 0);
    }
}

/* ---- sharing ----------------------------------------------------------------------------------------------------- */

/* The first table that has the rows for it. Sources before it that were measured in both regimes say themselves what
 * sustained is. */
static void set_power(fr_cost_model *c) {
    int s = 0;
    for (; s < c->source_count && !c->power.known; s++) fr_power_fit(c->sources[s].table, &c->power);
    for (int k = 0; k < FR_CLASS_COUNT; k++)
        c->own_ratio[k] = c->power.known && s > 1 ? fr_family_ratio(c->sources, s - 1, (fr_op_class)k) : 1;
}

static double rate_of(const fr_cost_model *c, fr_op_kind kind, uint8_t ways, double factor) {
    fr_shape s = {.kind = (uint8_t)kind, .bytes = INT64_C(1) << 31, .ranks = 1};
    fr_base base;
    fr_estimate e;
    fr_cost_base(&c->ceilings, &s, NULL, &base);
    double ns = base.ns / roofline_share[fr_op_class_of(kind)];
    if (fr_family_estimate(&c->set, &c->ceilings, &s, &base, ways, &e)) ns = e.ns;
    return factor * (double)s.bytes / ns * 1e9;
}

/* HBM: what a device-to-device copy reads and writes. Links: both directions busy. */
static void set_capacity(fr_cost_model *c) {
    double link = c->ceilings.link > 0 || c->ceilings.pcie > 0 ? rate_of(c, FR_OP_PULL, 2, 1) : 0;
    c->capacity = (fr_capacity){.hbm = rate_of(c, FR_OP_DRAIN, 1, 2),
                                .link_out = link,
                                .link_in = link,
                                .pcie_h2d = c->ceilings.pcie > 0 ? rate_of(c, FR_OP_H2D, 1, 1) : 0,
                                .pcie_d2h = c->ceilings.pcie > 0 ? rate_of(c, FR_OP_D2H, 1, 1) : 0,
                                /* host memory feeds the PCIe links: twice the links with the old DRAM would be no
                                   what-if */
                                .host = c->machine.host_rate * c->options.what_if.pcie,
                                .network = c->ceilings.network,
                                .copy_engines = c->machine.copy_engines};
}

/* ---- public ------------------------------------------------------------------------------------------------------ */

/* Sorting is three kernels (kernels/kernels.h: fr_k_route). */
static double gap_of(const fr_cost_model *c, fr_op_kind kind, bool timed) {
    return c->gap[0] * (kind == FR_OP_SORT ? 3 : 1) + (timed ? c->gap[1] - c->gap[0] : 0);
}

/* From the first of the GPU's own tables that has rows of chains. */
static void set_chain(fr_cost_model *c) {
    for (int s = 0; s < c->source_count && c->chain.points == 0; s++) {
        const fr_table *t = c->sources[s].table;
        for (uint32_t i = 0; i < t->count && c->sources[s].cap < FR_FROM_TRANSFERRED; i++) {
            const fr_row *r = &t->rows[i];
            const fr_op_kind kind = (fr_op_kind)r->shape.kind;
            const fr_op_class class = fr_op_class_of(kind);
            fr_base base;
            fr_estimate e;
            if (!fr_chain_row(r) || c->power.full_mhz <= 0) continue;
            fr_cost_base(&t->ceilings, &r->shape, t->pairs, &base);
            if (!fr_family_estimate(&c->set, &c->ceilings, &r->shape, &base, 1, &e)) continue;
            fr_chain_add(&c->chain, kind, base.bound, e.ns * c->mean.time[class],
                         class == FR_CLASS_MEMORY || e.clock <= 0 ? 1 : e.clock / c->mean.time[class],
                         r->ns - gap_of(c, kind, true), r->clock_mhz / c->power.full_mhz);
        }
    }
}

fr_status fr_cost_open(const fr_machine *machine, const fr_cost_options *options, fr_cost_model **out, fr_error *err) {
    *out = NULL;
    if (machine->peak_flops[FR_BF16] <= 0 || machine->hbm_rate <= 0)
        return fr_fail(err, FR_BAD_INPUT, "machine %s: peak_flops and hbm_rate must be positive", machine->name);
    fr_cost_model *c = fr_alloc(sizeof *c);
    c->experts = fr_expert_memo_new();
    c->machine = *machine;
    c->options = options ? *options : (fr_cost_options){.what_if = FR_WHAT_IF_NONE};
    double *w[] = {&c->options.what_if.link,  &c->options.what_if.hbm,     &c->options.what_if.pcie,
                   &c->options.what_if.flops, &c->options.what_if.network, &c->options.what_if.launch};
    for (size_t i = 0; i < sizeof w / sizeof *w; i++)
        if (!(*w[i] > 0)) *w[i] = 1; /* a zeroed struct means none */
    c->hash = FR_HASH_SEED;
    fr_status status = open_tables(c, err);
    if (status != FR_OK) {
        fr_cost_close(c);
        return status;
    }
    set_ceilings(c);
    set_power(c);
    fr_follow_fit(c->sources, c->source_count, &c->follow);
    fr_family_build(&c->set, c->sources, c->source_count, c->power.known ? FR_BURST : c->options.regime, NULL);
    for (int i = c->set.first[FR_CLASS_ATTENTION]; i < c->set.end[FR_CLASS_ATTENTION]; i++)
        c->fp8_attention |= c->set.families[i].key.precision == FR_FP8;
    set_capacity(c);
    /* with the power model a slow-down is that of a burst: under the limit the clock says what pulls cost */
    fr_besides_fit(c->sources, c->source_count, c->power.known ? FR_BURST : c->options.regime, c->capacity.hbm,
                   &c->follow, &c->beside);
    status = set_cards(c, err);
    if (status != FR_OK) {
        fr_cost_close(c);
        return status;
    }
    set_chain(c);
    *out = c;
    return FR_OK;
}

void fr_cost_close(fr_cost_model *c) {
    if (!c) return;
    fr_family_free(&c->set);
    fr_expert_memo_free(c->experts);
    for (int i = 0; i < T_COUNT; i++) fr_table_free(&c->tables[i]);
    free(c);
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
    return (known ? e.ns : base.ns) + c->ceilings.floor_ns + gap_of(c, FR_OP_SORT, false) + c->gap[0];
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
        double share = roofline_share[class];
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
    return gap_of(c, kind, c->timed);
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

/* ---- report ------------------------------------------------------------------------------------------------------ */

typedef struct {
    int rows;
    double sum, worst;
} kind_error;

/* Predicts one row from all others and adds the error to its op's line. */
static void leave_out(const fr_cost_model *c, const fr_source *src, const fr_row *r, kind_error *k) {
    fr_family_set set;
    fr_base base;
    fr_estimate e;
    fr_family_build(&set, c->sources, c->source_count, (fr_regime)r->regime, r);
    fr_cost_base(&src->table->ceilings, &r->shape, src->table->pairs, &base);
    if (base.ns > 0 && fr_family_estimate(&set, &src->table->ceilings, &r->shape, &base, r->ways, &e)) {
        double error = fabs(e.ns / r->ns - 1);
        k->rows++;
        k->sum += error;
        k->worst = fr_most(k->worst, error);
    }
    fr_family_free(&set);
}

/* The mean card, and what is not known of a card that nobody measured. */
static void describe_cards(const fr_cost_model *c, fr_text *out) {
    if (!c->cards) return;
    fr_text_add(out, "cards: costs are those of the mean of %d and the table's own, over the table:\n ", c->cards);
    for (int k = FR_CLASS_MEMORY; k <= FR_CLASS_GROUPED; k++)
        fr_text_add(out, " %s %.3f,", fr_op_class_name((fr_op_class)k), c->mean.time[k]);
    fr_text_add(out, " power at a clock %.3f\n  each card from the others, rms (worst):", c->mean.draw);
    for (int k = FR_CLASS_MEMORY; k <= FR_CLASS_GROUPED; k++)
        if (c->card_time[k].count)
            fr_text_add(out, " %s %.1f %% (%.1f),", fr_op_class_name((fr_op_class)k), 100 * c->card_time[k].rms,
                        100 * c->card_time[k].worst);
    fr_text_add(out, " clock under the limit %.1f %% (%.1f) of %d\n", 100 * c->card_clock.rms,
                100 * c->card_clock.worst, c->card_clock.count);
}

void fr_cost_describe(const fr_cost_model *c, bool check, fr_text *out) {
    static const char *const generic[] = {"gemm", "grouped", "memory"};
    fr_text_add(out, "tables: %s\n", c->source);
    fr_text_add(out, "families: %d, rows in use: %d, regime: %s\n", c->set.count, c->set.rows,
                c->options.regime == FR_BURST ? "burst" : "sustained");
    fr_power_describe(&c->power, out);
    describe_cards(c, out);
    fr_family_list(&c->set, out);
    for (int s = 0; s < c->source_count; s++) {
        const fr_table *t = c->sources[s].table;
        fr_text_add(out, "%s (%s)\n", t->gpu, c->sources[s].cap == FR_FROM_TRANSFERRED ? "transferred" : "own");
        for (int k = 0; k < FR_OP_KIND_COUNT + 3; k++) {
            const char *name = k < FR_OP_KIND_COUNT ? fr_op_name((fr_op_kind)k) : generic[k - FR_OP_KIND_COUNT];
            kind_error error = {0};
            int rows = 0;
            for (uint32_t i = 0; i < t->count; i++) {
                if (!fr_row_plain(&t->rows[i]) || strcmp(fr_row_name(&t->rows[i]), name) != 0) continue;
                rows++;
                if (check && c->sources[s].cap != FR_FROM_TRANSFERRED)
                    leave_out(c, &c->sources[s], &t->rows[i], &error);
            }
            if (!rows) continue;
            fr_text_add(out, "  %-15s %4d rows", name, rows);
            if (error.rows)
                fr_text_add(out, "   leave-one-out error: mean %5.1f %%, worst %5.1f %%", 100 * error.sum / error.rows,
                            100 * error.worst);
            fr_text_add(out, "\n");
        }
    }
}

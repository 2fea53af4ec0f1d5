/* Opening a cost model: its tables, ceilings, cards, power, what transfers do, chains. */
#include "engine/cost/cost_model.h"
#include "engine/cost/power_fit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* GPUs without a table take the curves of this one (the Hopper that was measured most). */
#define FALLBACK_GPU "h200"
#define TABLE_LIMIT  ((size_t)16 << 20)
/* A kernel's floor where a table is silent; the seeds say the same. */
#define FLOOR_NS 2500.0

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
    fr_status status = fr_cards_read(c, text, where, &c->power, &cards, &count, err);
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

static unsigned differs(double a, double b, unsigned what) {
    return a > 0 && b > 0 && fabs(a / b - 1) > 0.01 ? what : 0;
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
    double ns = base.ns / fr_roofline_share[fr_op_class_of(kind)];
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
                         r->ns - fr_cost_gap_of(c, kind, true), r->clock_mhz / c->power.full_mhz);
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

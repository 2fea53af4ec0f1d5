/* What `list costs` says of a model: its families, power and cards, and how well rows follow from the others. */
#include "engine/cost/cost_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fr_family_list(const fr_family_set *set, fr_text *out) {
    static const char *const transports[] = {"ours", "nccl", "nccl-ce"};
    for (int i = 0; i < set->count; i++) {
        const fr_family *f = &set->families[i];
        const fr_family_key *k = &f->key;
        char name[96];
        switch ((fr_op_class)k->class) {
        case FR_CLASS_GEMM:
        case FR_CLASS_GROUPED:
            snprintf(name, sizeof name, "%s %s n=%d k=%d", k->class == FR_CLASS_GEMM ? "gemm" : "grouped",
                     fr_precision_name((fr_precision)k->precision), (int)k->n, (int)k->k);
            break;
        case FR_CLASS_ATTENTION:
            snprintf(name, sizeof name, "attention %s head_dim=%d/%d%s", fr_precision_name((fr_precision)k->precision),
                     (int)k->n, (int)k->k,
                     k->windowed ? " windowed"
                     : k->cached ? " over a cache"
                     : k->equal  ? " equal lengths"
                                 : "");
            break;
        case FR_CLASS_COLLECTIVE:
            snprintf(name, sizeof name, "%s %s ranks=%d%s", fr_op_name((fr_op_kind)k->kind),
                     transports[k->transport < 3 ? k->transport : 0], k->ranks, k->hosts > 1 ? " over hosts" : "");
            break;
        default:
            snprintf(name, sizeof name, "%s%s", k->kind == FR_OP_NONE ? "memory" : fr_op_name((fr_op_kind)k->kind),
                     k->ways == 2 ? " both ways" : "");
            if (k->n) snprintf(name + strlen(name), sizeof name - strlen(name), " n=%d", (int)k->n);
            if (k->n && k->k) snprintf(name + strlen(name), sizeof name - strlen(name), ", %d bytes each", (int)k->k);
        }
        const fr_curve *c = &f->curve;
        int last = c->points - 1;
        if (f->rows == 1) { /* nothing to leave out: the error is assumed */
            fr_text_add(out, "  %-31s   1 row,  %.3g us, error taken as %.0f %%\n", name, exp(c->y[0]) / 1e3,
                        100 * c->error);
            continue;
        }
        fr_text_add(out, "  %-31s %3d rows, ideal %.3g..%.3g us, reached %.2f..%.2f, error %.1f %%\n", name, f->rows,
                    exp(c->x[0]) / 1e3, exp(c->x[last]) / 1e3, exp(c->x[0] - c->y[0]), exp(c->x[last] - c->y[last]),
                    100 * c->error);
    }
}

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
    fr_text_add(out, " power at a clock %.3f\n  each card from the others, rms (worst):\n   ", c->mean.draw);
    for (int k = FR_CLASS_MEMORY; k <= FR_CLASS_GROUPED; k++)
        if (c->card_time[k].count)
            fr_text_add(out, " %s %.1f %% (%.1f),", fr_op_class_name((fr_op_class)k), 100 * c->card_time[k].rms,
                        100 * c->card_time[k].worst);
    fr_text_add(out, "\n   clock under the limit %.1f %% (%.1f) of %d\n", 100 * c->card_clock.rms,
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

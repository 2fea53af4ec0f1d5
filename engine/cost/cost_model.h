/*
 * cost_model: what an open cost model holds; for the files that open it (cost_open.c), ask it (cost.c) and judge it
 * (cost_check.c).
 */
#ifndef FR_COST_MODEL_H
#define FR_COST_MODEL_H

#include "engine/cost/cost.h"
#include "engine/cost/cost_beside.h"
#include "engine/cost/cost_card.h"
#include "engine/cost/cost_chain.h"
#include "engine/cost/cost_family.h"
#include "engine/cost/cost_follow.h"
#include "engine/cost/cost_grouped.h"
#include "engine/cost/power.h"

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

/* fr_cost_model.moved */
enum { MOVED_PEAK = 1, MOVED_SMS = 2, MOVED_HBM = 4, MOVED_LINK = 8, MOVED_PCIE = 16 };

extern const double fr_roofline_share[FR_CLASS_COUNT];
/* What a kernel of the kind takes in a chain beyond its own time back to back, ns; timed: with an event behind each. */
double fr_cost_gap_of(const fr_cost_model *c, fr_op_kind kind, bool timed);

#endif

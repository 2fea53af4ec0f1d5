/*
 * cost_card: how one GPU differs from those that its cost table was measured on. Cards of one kind run a burst alike
 * within a per cent, but need up to some per cent more or less power for the same clock: under the power limit they
 * differ by that. Anchors (a dozen ops, `forerun calibrate --anchors`) measured on the card itself tell.
 */
#ifndef FR_COST_CARD_H
#define FR_COST_CARD_H

#include "engine/cost/cost.h"

typedef struct {
    char uuid[48];               /* or its beginning, "GPU-85e3539b" */
    double time[FR_CLASS_COUNT]; /* a burst's ns over the table's; 1 where no anchor speaks for the class */
    double draw;                 /* what busy SMs draw at a given clock over what the power model says; 1 = unknown */
    unsigned classes;            /* bit k: an anchor spoke for class k */
    int bursts, held;            /* anchors that `time` and `draw` rest on */
    bool layers;                 /* those of `draw` are whole layers */
    double single;               /* `draw` by kernels that were held one by one; 0 = none were */
} fr_card;

/* A card that is as the table says. */
void fr_card_plain(fr_card *out);

/*
 * Reads anchors of one GPU or of several: rows with `card`, or one table's text after the other (format:
 * kernels/measured/FORMAT.md, each with its header). `draw` is what chains of a layer's kernels under the limit say
 * (rows with behind=1); where there are none, the mean of what single sustained rows say, each taken at its own burst.
 * Without a power model sustained rows, where there are any, are what `time` says. The caller frees *out. FR_BAD_INPUT
 * with "where:line: ..." otherwise.
 *
 * layers: where the text is of many cards, and not NULL, c's own power model, which takes from it what layers of two
 * sizes or more say of products and attention that are like theirs, before the cards are read. A layer of many rows an
 * expert draws less than its kernels do one by one, one of few rows more; on all cards alike
 * (kernels/measured/README.md), so it is no card's draw but the model's error. Left as it is where there is one size.
 */
fr_status fr_cards_read(const fr_cost_model *c, const char *text, const char *where, fr_power *layers, fr_card **out,
                        int *count, fr_error *err);

/*
 * The cards of a kind, as their anchors show them and the table itself as one more: the mean card, to predict for one
 * that is not known, and by how much single ones are off it at most, by class. Where layers were measured on some, what
 * the others draw by single kernels counts as much more as it is on those that have both; the table's own does not.
 */
void fr_cards_mean(const fr_card *cards, int count, fr_card *out, double spread[FR_CLASS_COUNT]);

/*
 * Ranks on cards that nobody knows: no two draw the same, and who waits for whom hangs on that. Rank by rank, those
 * that draw little and much in turn, what the i-th of so many cards draws on average (normal order statistics, G. Blom
 * 1958: quantile (i - 3/8) / (ranks + 1/4)), by the standard deviation of those whose layers were measured; plain ones
 * where fewer than three were.
 */
void fr_cards_unlike(const fr_cost_model *c, fr_card *out, int ranks);

/* Each card in turn from the mean of the others: errors of `time`, and of the clock under the limit, which goes with
 * the root of `draw`. */
typedef struct {
    int count; /* cards that were foretold so */
    double rms, worst;
} fr_card_check;
void fr_cards_check(const fr_card *cards, int count, fr_card_check time[FR_CLASS_COUNT], fr_card_check *clock);

#endif

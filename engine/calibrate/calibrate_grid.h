/*
 * The making of a calibration's grid, between its parts (internal to engine/calibrate*.c): work of one GPU
 * (calibrate_work.c), anchors and what the power limit does (calibrate_anchors.c), transfers and compute beside them
 * (calibrate_transfers.c).
 */
#ifndef FR_CALIBRATE_GRID_H
#define FR_CALIBRATE_GRID_H

#include "engine/calibrate/calibrate.h"

enum { FR_CAL_TIERS = 6 }; /* of what is wanted; what comes after all of them adds to this */

typedef struct {
    fr_cal_grid *g;
    const fr_machine *machine;
    fr_cal_mode mode;
    double limit_s, hold_s;
} fr_cal_maker;

/* Seconds of a sustained measurement that takes this share of an anchor's. */
float fr_cal_hold_seconds(const fr_cal_maker *m, double share);
/* Whether the mode measures what is wanted so much: of the quick grid only the most wanted. */
bool fr_cal_wanted(const fr_cal_maker *m, int tier);

/* A burst of the op, its shape to be filled in. */
fr_row fr_cal_blank(fr_op_kind kind);
/* One more entry of the row's vector: an expert's rows, a sequence. */
void fr_cal_push(fr_cal_maker *m, fr_row *row, int32_t queries, int32_t prefix);
/* Adds a row (its vector has been pushed) unless the grid holds it; a second one may raise its tier. The item is valid
 * until the next is added. */
fr_cal_item *fr_cal_add(fr_cal_maker *m, fr_cal_what what, int tier, fr_row row);

/* Products, grouped products, attention, memory-bound ops: in bursts. */
fr_status fr_cal_add_work(fr_cal_maker *m, fr_error *err);
/* A dozen ops that stand for all, short and sustained, and a layer of them; but for the mode `anchors` also under
 * pauses and in turns. */
fr_status fr_cal_add_anchors(fr_cal_maker *m, fr_error *err);
void fr_cal_add_host(fr_cal_maker *m); /* launches, events, gaps */
/* Copies of one GPU, or pulls of several. */
void fr_cal_add_copies(fr_cal_maker *m, int devices);
/* Collectives, exchanges of tokens, compute beside transfers. */
fr_status fr_cal_add_together(fr_cal_maker *m, int devices, fr_error *err);

#endif

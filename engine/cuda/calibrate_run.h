/* What the parts of a calibration share: the journal, and a GPU with its bench. */
#ifndef FR_CUDA_CALIBRATE_RUN_H
#define FR_CUDA_CALIBRATE_RUN_H

#include "engine/cuda/bench.h"
#include "engine/cuda/calibrate.h"
#include "engine/cuda/device.h"

#include <pthread.h>

_Static_assert(FR_CAL_DEVICES <= FR_MAX_DEVICES, "device facts name the peers of all");

typedef struct {
    const fr_cal_options *options;
    fr_machine machine;
    fr_device_facts facts[FR_CAL_DEVICES];
    fr_cal_grid *grid;
    fr_cost_model *cost;
    int journal; /* file descriptor, -1 = none */
    double began, spent;
    double idle_w;
    fr_measure *measure[FR_CAL_DEVICES];
    fr_bench *bench[FR_CAL_DEVICES];
    fr_cal_result *result;
    pthread_mutex_t lock;           /* of all below, the journal and the result, while devices work side by side */
    uint8_t *taken[FR_CAL_DEVICES]; /* [items]: done or begun; one for all devices unless each does everything */
    double done, all;               /* seconds of items, for the progress */
} fr_cal_run;

/* Appends a row of table `t` with its readings. */
fr_status fr_cal_write(fr_cal_run *r, const fr_table *t, const fr_row *row, const double *readings, int count,
                       fr_error *err);

/* A comment in the journal. */
fr_status fr_cal_note(fr_cal_run *r, fr_error *err, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Row i of the grid with a reading in it, of device d (-1: of several). */
fr_row fr_cal_filled(const fr_cal_run *r, int d, uint32_t i, const fr_reading *reading);

/* Whether item i still fits into the time. */
bool fr_cal_room(const fr_cal_run *r, uint32_t i);

/* Readings of row i of the grid on device d, as a line. */
fr_status fr_cal_write_list(fr_cal_run *r, int d, uint32_t i, const double *ns, int n, fr_error *err);

/* GAP and GAP_TIMED, and a CHAIN (calibrate_chain.c). */
fr_status fr_cal_gaps_run(fr_cal_run *r, int d, uint32_t i, fr_error *err);
fr_status fr_cal_chain_run(fr_cal_run *r, int d, uint32_t i, fr_error *err);

/* One GPU: item i on device d (calibrate_ops.c). Two or more with each other: calibrate_pair.c. */
fr_status fr_cal_item_run(fr_cal_run *r, int d, uint32_t i, fr_error *err);
fr_status fr_cal_pair_run(fr_cal_run *r, fr_error *err);

#endif

/* calibrate: measures a grid (engine/calibrate/calibrate.h) on this machine's GPUs into a journal and a table. */
#ifndef FR_CUDA_CALIBRATE_H
#define FR_CUDA_CALIBRATE_H

#include "engine/calibrate/calibrate.h"

typedef struct {
    fr_cal_request request;
    int device[FR_CAL_DEVICES], devices; /* different ones; request.devices 1: the grid of one is dealt out to them */
    const char *machine;                 /* datasheet figures; NULL = those of the GPU found */
    const char *out;                     /* the table; NULL = GPU.txt; the journal is out + ".raw" */
    bool resume;                         /* what the journal holds isn't measured again; else it begins anew */
    void (*progress)(void *context, double share); /* NULL = none */
    void *context;
} fr_cal_options;

typedef struct {
    uint32_t measured, failed, left; /* items; left: not begun, for want of time */
    double seconds;
    char table[1024], journal[1024];
} fr_cal_result;

/*
 * Several devices and the grid of one: each takes the next item as it gets free, what the host has a part in excepted,
 * which the first one does before; of anchors each does all. Rows say which card they are of.
 *
 * Measures until all is done or the time is over; every row is in the journal as soon as it is known, then all of the
 * journal goes into the table. An op that fails leaves a comment in the journal; a GPU that fails ends the run with
 * FR_FAILED (the journal stays; the GPU's memory is not waited for).
 */
fr_status fr_calibrate(const fr_cal_options *o, fr_cal_result *out, fr_error *err);

#endif

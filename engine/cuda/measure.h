/*
 * measure: how long work on a GPU takes, short and at full clock or for seconds under the power limit, with the SM
 * clock and the power meanwhile. Used by calibration and by the micro-benchmarks. All waits have a deadline.
 *
 * The SM clock of a burst is read on the device (kernels/probe.h): exact over milliseconds, which NVML isn't.
 */
#ifndef FR_CUDA_MEASURE_H
#define FR_CUDA_MEASURE_H

#include "engine/base.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Enqueues the work once on `stream`. Must be capturable in a graph where it takes under 60 us. */
typedef fr_status (*fr_work)(void *context, cudaStream_t stream, fr_error *err);

typedef struct {
    const double *ns; /* each reading, as they came; the object's, until its next measurement */
    int count;
    double median, p10, p90;
    double clock_mhz, watts, capped; /* 0 = unknown; capped: share of samples that name the power limit */
} fr_reading;

typedef struct fr_measure fr_measure;
fr_status fr_measure_open(int device, double timeout_s, fr_measure **out, fr_error *err);
void fr_measure_close(fr_measure *m);
cudaStream_t fr_measure_stream(const fr_measure *m);
/* The device failed or did not answer: nothing more can be measured on it. */
bool fr_measure_lost(const fr_measure *m);

/*
 * What else happens while work is measured: transfers beside it. begin: of a burst, between rest and the launches that
 * count. turn: before each turn of a sustained measurement, `at_s` after its start; sets *stop where this is the last
 * one (`seconds` alone doesn't end it then). NULL = nothing, as at first.
 */
typedef struct {
    fr_status (*begin)(void *context, fr_error *err);
    fr_status (*turn)(void *context, double at_s, bool *stop, fr_error *err);
    void *context;
} fr_beside;
void fr_measure_beside(fr_measure *m, const fr_beside *b);

/* Waits for everything on the object's stream, or for an event of another one on its device. */
fr_status fr_measure_wait(fr_measure *m, fr_error *err);
fr_status fr_measure_await(fr_measure *m, cudaEvent_t event, fr_error *err);

/* Stamp i (0 <= i < FR_MEASURE_STAMPS) on the object's stream, and the mean SM clock of the stretches between stamps 0
 * and 1, 2 and 3, ... of `count`; the second waits for the stream. */
enum { FR_MEASURE_STAMPS = 512 };
fr_status fr_measure_stamp(fr_measure *m, int i, fr_error *err);
fr_status fr_measure_clock(fr_measure *m, int count, double *mhz, fr_error *err);

/* Median, p10, p90 of readings, which stay the caller's. */
fr_reading fr_reading_of(const double *ns, int count);

/*
 * One launch to warm up and one to know how long it takes, then `work_ns` of launches between events, 3 to 40 of them;
 * what takes under 60 us as graphs of 20 launches. `hot`: the work draws power, so the GPU rests before each stretch of
 * work_ns, twice as long as it was busy: the power limit does not set in.
 */
fr_status fr_measure_burst(fr_measure *m, fr_work work, void *context, bool hot, double work_ns, fr_reading *out,
                           fr_error *err);

/* For `seconds`; readings and meters count from two fifths on. duty < 1: in turns of turn_ns, launches and pauses (on
 * the device) together; the clock is that of the launches. turn_ns 0: 10 ms of which the launches take `duty`. */
fr_status fr_measure_hold(fr_measure *m, fr_work work, void *context, double seconds, double duty, double turn_ns,
                          fr_reading *out, fr_error *err);

/* Several kinds of work in turn for `seconds`: `work` launches the next one with each call and starts over after
 * `parts` of them. out[parts]: readings of each, their clock and power those of all. */
fr_status fr_measure_cycle(fr_measure *m, fr_work work, void *context, int parts, double seconds, fr_reading *out,
                           fr_error *err);

/* After a second of rest, back to back until ms[count]: out[i] holds the launches that began from ms[i] to ms[i + 1] on
 * (count 0: none), with the clock meanwhile. */
fr_status fr_measure_ramp(fr_measure *m, fr_work work, void *context, const int32_t *ms, int count, fr_reading *out,
                          fr_error *err);

/*
 * Back to back for 0.35 s, which the power limit ends up holding, then a pause of gap_ns, as the host keeps it, or with
 * `fill` of its launches, then back to back again until ms[count]: out[i] as in a ramp, *before the last launches of
 * the load. *real_ns: the pause between kernels.
 */
fr_status fr_measure_release(fr_measure *m, fr_work work, fr_work fill, void *context, double gap_ns, const int32_t *ms,
                             int count, fr_reading *before, fr_reading *out, double *real_ns, fr_error *err);

#ifdef __cplusplus
}
#endif
#endif

/*
 * clock: a device's time on the host's. CUDA events carry device times; an anchor ties one of them to CLOCK_MONOTONIC,
 * and two anchors far apart say how much faster one clock runs than the other. Hosts' threads and processes share that
 * clock, so times of several GPUs can be joined.
 */
#ifndef FR_CUDA_CLOCK_H
#define FR_CUDA_CLOCK_H

#include "engine/base.h"

#include <cuda_runtime_api.h>

/* An event that came at host time `ns`, give or take `half_ns`. */
typedef struct {
    cudaEvent_t event;
    int64_t ns;
    double half_ns;
} fr_anchor;

/*
 * Takes an anchor on an idle stream of an idle device: the host reads its clock, records the event, sees it and reads
 * its clock again; of many tries the narrowest counts. At most 5 ms where nobody else uses the GPU. Events are made
 * where there are none yet.
 */
fr_status fr_anchor_take(cudaStream_t stream, fr_anchor *out, fr_error *err);
void fr_anchor_close(fr_anchor *a);

/* ns of the host's clock per ns of the device's between two anchors; 1 where they are closer than 0.2 s: anchors repeat
 * to 1 or 2 us, that is 5 to 10 parts per million of 0.2 s, and H200s' clocks were found up to 10 from their hosts'. */
fr_status fr_anchor_rate(const fr_anchor *a, const fr_anchor *b, double *rate, fr_error *err);

#endif

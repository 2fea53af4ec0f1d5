/*
 * device_rank: a rank of the plan on a GPU, as the conductor sees it (engine/conduct/rank.h): weights, transport and
 * executor of one device, all opened and used by the rank's own thread.
 */
#ifndef FR_CUDA_DEVICE_RANK_H
#define FR_CUDA_DEVICE_RANK_H

#include "engine/conduct/rank.h"
#include "engine/cuda/pools.h"

typedef struct {
    const char *weights; /* folder of a checkpoint; NULL = seeded random weights */
    int first_device;    /* rank r is on device first_device + r */
    fr_pulls_by pulls;
    bool check_ops;
} fr_device_rank_options;

/* The context of `open` is a fr_device_rank_options that outlives the ranks. */
const fr_rank_kind *fr_device_rank_kind(void);

#endif

/* The exchange of routed tokens between GPUs, as the engine's plans have it, for measurement. */
#ifndef FR_CUDA_CALIBRATE_EXCHANGE_H
#define FR_CUDA_CALIBRATE_EXCHANGE_H

#include "engine/cuda/transport/transport.h"

typedef struct fr_cal_exchange fr_cal_exchange;

/* Collective. `arena` [bytes] is device memory for the buffers; all ranks' must stay until all have closed. `spared`:
 * by as few blocks as where two batches overlap. */
fr_status fr_cal_exchange_open(fr_world *world, int rank, int device, void *arena, size_t bytes, bool spared,
                               fr_cal_exchange **out, fr_error *err);
void fr_cal_exchange_close(fr_cal_exchange *x, bool lost);

/* Packs `tokens` tokens that send `leaving` copies to the other ranks, as many to each; every rank has the same. */
fr_status fr_cal_exchange_pack(fr_cal_exchange *x, int64_t tokens, int64_t leaving, cudaStream_t stream, fr_error *err);
/* COUNTS, ALLTOALL, ALLTOALL_BACK of what is packed, in this order again and again. */
fr_status fr_cal_exchange_launch(fr_cal_exchange *x, fr_op_kind kind, cudaStream_t stream, fr_error *err);
fr_status fr_cal_exchange_check(fr_cal_exchange *x, fr_error *err);

#endif

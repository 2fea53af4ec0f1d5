/*
 * exchange: the ep group's kernels (kernels/exchange.h) with this rank's buffers, peers' addresses and counters
 * (internal to transport).
 */
#ifndef FR_CUDA_TRANSPORT_EXCHANGE_H
#define FR_CUDA_TRANSPORT_EXCHANGE_H

#include "engine/cuda/transport/transport.h"

typedef struct fr_exchanges fr_exchanges;

bool fr_exchanges_wanted(const fr_layout *l);
/* Collective. peers_of(b, q): where plan rank q's counterpart of buffer b is seen from here. */
fr_status fr_exchanges_open(fr_transport *t, const fr_transport_options *o,
                            void *(*peer_of)(fr_transport *, uint32_t, int), fr_exchanges **out, fr_error *err);
void fr_exchanges_replan(fr_exchanges *x, const fr_plan *plan);
void fr_exchanges_close(fr_exchanges *x, bool lost); /* NULL is allowed */

fr_status fr_exchanges_pack(fr_exchanges *x, const fr_collective *c, cudaStream_t stream, fr_error *err);
fr_status fr_exchanges_run(fr_exchanges *x, const fr_collective *c, cudaStream_t stream, fr_error *err);
fr_status fr_exchanges_check(const fr_exchanges *x, fr_error *err);
void fr_exchanges_release(fr_exchanges *x);
int64_t fr_exchanges_bytes(const fr_exchanges *x);

#endif

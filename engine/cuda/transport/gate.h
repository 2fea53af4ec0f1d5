/*
 * gate: two ranks of one host meet on their streams before NCCL carries something from one to the other (internal to
 * transport). A kernel of NCCL that waits for its peer polls on its SMs; a pipeline's stage that receives a micro-batch
 * early would compute beside it all the time (H200 x 2: products 7 to 12 % longer). Here each end writes into a word of
 * pinned host memory that the other's stream waits for (cuStreamWaitValue32): neither takes an SM.
 */
#ifndef FR_CUDA_TRANSPORT_GATE_H
#define FR_CUDA_TRANSPORT_GATE_H

#include "engine/plan/plan.h"
#include "engine/world/peers.h"
#include "engine/world/world.h"

#include <cuda_runtime_api.h>

typedef struct fr_gates fr_gates;

typedef struct {
    fr_world *world;
    const fr_plan *plan; /* its groups of two are the pairs that meet */
    const fr_address *at;
    int rank;
    int within; /* ranks of a host yield in gathers, within so many pulls; 0 = they do not */
} fr_gates_options;

/* Collective. */
fr_status fr_gates_open(const fr_gates_options *o, fr_gates **out, fr_error *err);
/* Both ends of a pair call it equally often; it does nothing where they are on different hosts. */
fr_status fr_gates_meet(fr_gates *g, uint32_t group, int peer, cudaStream_t stream, fr_error *err);
/*
 * How far this rank's gather has come, in pulls done (FR_GATHER_OVER: it is in none), and to wait until another's has
 * come as far or is too far behind. Pulls that yield use them; nothing where the two are on different hosts. A gather
 * that stands still for some 25 ms counts as none.
 */
fr_status fr_gates_say(fr_gates *g, uint32_t done, cudaStream_t stream, fr_error *err);
fr_status fr_gates_follow(fr_gates *g, int peer, uint32_t done, cudaStream_t stream, fr_error *err);
/* Ends what this rank's streams wait for here. Any thread; asks nothing of the device. NULL is allowed. */
void fr_gates_release(fr_gates *g);
void fr_gates_close(fr_gates *g, bool lost);

#endif

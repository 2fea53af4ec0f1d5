/*
 * pools: experts' weights that move while the model runs: the pools that hold them (gathered layers, expert or layer
 * slots, streamed shards), where peers' shards lie, and the copies of the plan's PULL, H2D, D2H and DRAIN ops. A slot
 * is a run of experts (engine/shard.h); all copies are cudaMemcpyAsync calls, which copy engines carry out.
 */
#ifndef FR_CUDA_POOLS_H
#define FR_CUDA_POOLS_H

#include "engine/cuda/weights.h"
#include "engine/plan/plan.h"
#include "engine/world/world.h"

struct fr_transport;
struct fr_issue;

/*
 * Collective. Where each rank's [base, base + bytes) is seen from here (own: base): through the transport, or, without
 * one, among threads of one process, turning peer access on. A world of one, or none: own only.
 */
fr_status fr_peers_share(fr_world *world, struct fr_transport *transport, int rank, void *base, size_t bytes,
                         void **peers, fr_error *err);

/*
 * Whose copy engines carry a pull out. The reader's, or the owner's, which write into the reader's memory: then the
 * copy stands on a stream of the owner's device that forks from the reader's lane and joins it again. On four H200s
 * that all gather at once reads came at 100 to 240 GB/s a GPU, writes at 250 to 389; of two, both at 389 (README of
 * experiments/large). In processes of their own owners push through a context that the reader's process has on the
 * owner's device (fr_memory_add_contexts), which is slow to make: there readers pull unless owners are asked for.
 */
typedef enum { FR_PULLS_AUTO = 0, FR_PULLS_READER, FR_PULLS_OWNER } fr_pulls_by; /* auto: owner from three ranks on */
/* Who pulls in this layout: reader or owner; FR_PULLS_AUTO: no weights are pulled. */
fr_pulls_by fr_pools_pulled_by(const fr_layout *l, fr_pulls_by asked);

typedef struct fr_pools fr_pools;

typedef struct {
    const fr_plan *plan;
    const fr_model *model;
    const fr_layout *layout;
    const fr_weights *weights;
    fr_world *world;
    struct fr_transport *transport;
    int rank;
    fr_pulls_by pulls;
} fr_pools_options;

/* Collective where peers' memory is read. A plan without pools of weights: opens at once. */
fr_status fr_pools_open(const fr_pools_options *o, fr_pools **out, fr_error *err);
void fr_pools_close(fr_pools *g, bool lost);
int64_t fr_pools_bytes(const fr_pools *g); /* device memory of the pools */

/* The copies of a PULL, H2D, D2H or DRAIN op; `issue` knows the slots. */
fr_status fr_pools_copy(fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                        cudaStream_t stream, fr_error *err);

/* Where a grouped product finds its experts: fills b, own, own_first, own_end, packed and E of `a`, and moves its
 * offsets to the first of them. In fp8 also the scales of b and of own. */
fr_status fr_pools_weights(const fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                           fr_k_grouped_args *a, const float **scale, const float **own_scale, fr_error *err);

/*
 * GATHER_WEIGHTS: the arrays that an all-gather of the op moves, one for each part of a run. in: the rank's own; out:
 * all members'; bytes: of an expert. Returns their number.
 */
int fr_pools_arrays(const fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                    const void *in[FR_RUN_PARTS], void *out[FR_RUN_PARTS], int64_t bytes[FR_RUN_PARTS]);

#endif

/*
 * transport: what travels between GPUs, for one rank. Everything in class COLLECTIVE goes through here:
 *
 *     NCCL              ALLREDUCE ALLGATHER REDUCESCATTER SEND RECV GATHER_WEIGHTS (nccl, nccl-ce); one communicator
 * per plan group, and one more with zero CTAs for weights by copy engines our own kernels   COUNTS ALLTOALL
 * ALLTOALL_BACK and the packing before them (kernels/exchange.h): sizes that only the device knows, straight into
 * peers' memory
 *
 * Nothing here uses NVLink multicast: NCCL_NVLS_ENABLE=0 is required (fr_device_environment sets it). Calls marked
 * "collective" are made by all ranks of the world in the same order; the others are local. Launches never wait for a
 * peer on the host. Ranks that an op waits for in vain end it on the device after FR_TRANSPORT_SPIN_S;
 * fr_transport_check then says who did not come.
 */
#ifndef FR_CUDA_TRANSPORT_H
#define FR_CUDA_TRANSPORT_H

#include "engine/layout.h"
#include "engine/plan/plan.h"
#include "engine/world/world.h"

#include <cuda_runtime_api.h>

typedef struct fr_transport fr_transport; /* one per rank; used by the rank's thread, but for check and abort */

#define FR_TRANSPORT_SPIN_S 2.0 /* the longest that a device waits for a peer's part of an exchange */
enum { FR_TRANSPORT_ARRAYS = 4 };

typedef struct {
    fr_world *world;
    int rank, device; /* of the plan; CUDA device, current in the calling thread */
    const fr_plan *plan;
    const fr_layout *layout;
    const fr_model *model;
    int64_t tokens;   /* new tokens of an attention group, at most (fr_load.tokens) */
    int64_t arriving; /* rows of a receive buffer (fr_activations) */
    double timeout_s;
    bool everything; /* any op may be asked of any group, whatever the layout has */
} fr_transport_options;

/* Collective. Turns peer access on and opens a communicator for each group of this rank. One rank: opens at once.
 * FR_BAD_INPUT where ranks live so that the layout cannot be executed (fr_peers_check), FR_FAILED where two GPUs that
 * need it have no peer access. */
fr_status fr_transport_open(const fr_transport_options *o, fr_transport **out, fr_error *err);
/* Another plan of the same static part. */
void fr_transport_replan(fr_transport *t, const fr_plan *plan);
/* `lost`: the device or a peer failed: communicators are aborted and memory is left, as frees would wait for it. NULL
 * is allowed. */
void fr_transport_close(fr_transport *t, bool lost);

/* Memory that peers are to see: cudaMalloc of whole units of what another process can map, so that nothing else lies in
 * what it maps. `transport` may be NULL. */
cudaError_t fr_transport_malloc(const fr_transport *t, size_t bytes, void **out);
/*
 * Collective. Publishes [base, base + bytes) of this rank, memory of fr_transport_malloc or a part of it; peers[q]
 * receives where rank q's range is seen from here (own: base), NULL where q's device cannot be reached. Ranks in other
 * processes are mapped where the layout reaches into them (fr_layout_reaches_rank), else NULL.
 */
fr_status fr_transport_share(fr_transport *t, void *base, size_t bytes, void **peers, fr_error *err);
/*
 * Collective, for ranks in processes of their own: the same, but each peer's range as its own GPU sees it in this
 * process, for streams on that GPU (devices[q]) which write into this rank's memory. Costs a context there. Where this
 * process cannot use a peer's GPU devices[q] is -1, and the range is as seen from here.
 */
fr_status fr_transport_share_at_owners(fr_transport *t, void *base, void **peers, int *devices, fr_error *err);
/*
 * Lets go of other processes' memory, when nothing reads it any more. All ranks do so before any of them frees what it
 * shared: freeing memory that another process has mapped is undefined.
 */
void fr_transport_unshare(fr_transport *t);
/*
 * Collective, once, before the first exchange: `buffers` [plan buffers] says where this rank's lie (NULL: others'),
 * all of them in [arena, arena + bytes). A peer's buffer is found by name.
 */
fr_status fr_transport_bind(fr_transport *t, void *arena, size_t bytes, void *const *buffers, fr_error *err);

/*
 * Memory for weights that are gathered: with --gather nccl-ce collective over the ep group, the same `bytes` on all (it
 * becomes a symmetric window, which copy engines gather without a kernel); else fr_transport_malloc. `transport` may be
 * NULL.
 */
cudaError_t fr_transport_alloc(fr_transport *t, size_t bytes, void **out);
/* NULL p is allowed. Windows stay until the transport closes. */
void fr_transport_free(fr_transport *t, void *p);

/* The exchange of one half (0 without two-batch overlap), part g of the expert groups. Formats of the buffers: see
 * kernels/exchange.h. `send` and `recv` are plan buffers of this rank. */
typedef struct {
    int half, part;
    int64_t tokens;      /* of this rank, routed by it in this micro-batch */
    int64_t capacity;    /* rows of recv, the same on all ranks */
    uint32_t send, recv; /* FR_NONE: not used by the op */
    int32_t *landed;     /* COUNTS: [parts] of this half: copies that arrive */
    /* pack; ids and weights stay until the half's dispatches have ended */
    const void *normed;
    const int32_t *ids; /* [tokens, k] */
    const float *weights;
    int32_t *row_of_copy; /* [tokens, copies]: where each copy lies in send, -1 = none */
} fr_dispatch;

typedef struct {
    fr_op_kind kind;
    uint64_t id;    /* fr_op_id, for messages */
    uint32_t group; /* of the op */
    int peer;       /* SEND, RECV, else -1: the other plan rank */
    uint8_t gather; /* fr_gather: of GATHER_WEIGHTS */
    /*
     * NCCL ops: `arrays` arrays that travel together. rows[i]: rows that member i (in the group's order) holds.
     *     ALLREDUCE      in place or not: rows[0] rows of bf16, the same on all
     *     ALLGATHER      in: own rows; out: all members' one after the other. In place when in = out + rows before
     *     REDUCESCATTER  in: all members' rows of bf16; out: own rows of the sum. In place likewise
     *     SEND, RECV     in (SEND) or out (RECV): rows[0] rows
     *     GATHER_WEIGHTS as ALLGATHER, any bytes
     */
    int arrays;
    const void *in[FR_TRANSPORT_ARRAYS];
    void *out[FR_TRANSPORT_ARRAYS];
    int64_t row_bytes[FR_TRANSPORT_ARRAYS];
    const int64_t *rows;
    fr_dispatch dispatch; /* COUNTS, ALLTOALL, ALLTOALL_BACK */
} fr_collective;

/* Launches the rank's part of a group op. Every member must launch it, in the group's order of seq. */
fr_status fr_transport_launch(fr_transport *t, const fr_collective *c, cudaStream_t stream, fr_error *err);
/* PERMUTE sub 1000: one copy per token and target into `send`. Local; before COUNTS of the same half. */
fr_status fr_transport_pack(fr_transport *t, const fr_collective *c, cudaStream_t stream, fr_error *err);

/*
 * For pulls that yield (FR_OP_YIELDS): on the stream, this rank's gather has done so many pulls, FR_GATHER_OVER: it is
 * through; what follows waits until that of `after` has come as far, is over or too far behind (-1: waits for nobody).
 * Does nothing for ranks of other hosts.
 */
#define FR_GATHER_OVER UINT32_MAX
fr_status fr_transport_gather(fr_transport *t, uint32_t done, int after, cudaStream_t stream, fr_error *err);

/* FR_FAILED when a device waited for a peer in vain (names the op and the rank) or a communicator failed. Any thread;
 * cheap enough to be asked while waiting. */
fr_status fr_transport_check(fr_transport *t, fr_error *err);
/* Ends what waits on this rank's device for its peers, for the watchdog: nothing that was sent is of use afterwards.
 * Any thread. */
void fr_transport_abort(fr_transport *t);

int64_t fr_transport_bytes(const fr_transport *t);         /* device memory held, without NCCL's own */
int64_t fr_transport_communicators(const fr_transport *t); /* what the device had less after NCCL connected */

#endif

/*
 * nccl: communicators and the collectives that run on them (internal to transport). The library is opened at run time:
 * one GPU needs none. Uneven rows travel as one grouped broadcast (all-gather) or reduce (reduce-scatter) per member.
 */
#ifndef FR_CUDA_TRANSPORT_NCCL_H
#define FR_CUDA_TRANSPORT_NCCL_H

#include "engine/cuda/transport/transport.h"

typedef struct fr_nccl fr_nccl;
typedef struct fr_nccl_comm fr_nccl_comm;

enum { FR_NCCL_ID_BYTES = 128 };

/* FR_FAILED when libnccl.so.2 is missing, or older than or of another minor version than the header. */
fr_status fr_nccl_load(fr_nccl **out, fr_error *err);
void fr_nccl_unload(fr_nccl *n); /* NULL is allowed */
fr_status fr_nccl_unique(fr_nccl *n, char id[FR_NCCL_ID_BYTES], fr_error *err);

/* What is connected at once: of what is first called later, ranks' hosts would wait for one another. */
typedef enum { FR_NCCL_ALL = 0, FR_NCCL_COLLECTIVES, FR_NCCL_MESSAGES } fr_nccl_uses;

typedef struct {
    fr_nccl *lib;
    fr_nccl_uses uses;
    char id[FR_NCCL_ID_BYTES];
    int ranks, me, device;
    bool copy_engines; /* CTA policy zero: for windows that copy engines carry */
    double timeout_s;
    fr_world *world;
} fr_nccl_request;
/*
 * Collective over the members. The handshake and one small run of every collective that it is for (connections are made
 * on first use, on the host, waiting for the peers) happen in a thread of their own, which is left behind when it does
 * not end within the timeout or the world fails.
 */
fr_status fr_nccl_connect(const fr_nccl_request *r, fr_nccl_comm **out, fr_error *err);
/* Ends what runs on them, within some seconds whatever the library does; any thread, also while another one launches.
 * Entries may be NULL. */
void fr_nccl_abort(fr_nccl_comm *const *comms, uint32_t count);
void fr_nccl_close(fr_nccl_comm *c, bool abort); /* NULL is allowed */

/* `peer`: member index, of SEND and RECV. */
fr_status fr_nccl_run(fr_nccl_comm *c, const fr_collective *op, int peer, cudaStream_t stream, fr_error *err);
fr_status fr_nccl_check(fr_nccl_comm *c, fr_error *err); /* what happened to ops launched earlier */

/* Memory in a symmetric window, which copy engines can gather. Collective over the members, the same `bytes` on all. */
fr_status fr_nccl_window_open(fr_nccl_comm *c, size_t bytes, void **base, void **handle, fr_error *err);
void fr_nccl_window_close(fr_nccl_comm *c, void *base, void *handle);

#endif

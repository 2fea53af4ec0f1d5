/* ipc: device memory of other processes of this host (internal to transport). */
#ifndef FR_CUDA_TRANSPORT_IPC_H
#define FR_CUDA_TRANSPORT_IPC_H

#include "engine/base.h"

#include <cuda_runtime_api.h>

typedef struct fr_ipc fr_ipc; /* a list of what is mapped here; NULL = empty */

/* To hand to another process: an allocation and a place in it. */
typedef struct {
    cudaIpcMemHandle_t allocation;
    int64_t offset;
} fr_ipc_handle;

/*
 * cudaMalloc of whole units of 2 MiB: what is smaller may share its unit with other memory, and a handle stands for the
 * unit (CUDA Runtime API, cudaIpcGetMemHandle: "applications should only share allocations with a 2MiB aligned size").
 */
cudaError_t fr_ipc_malloc(size_t bytes, void **out);
/* p: anywhere in memory of fr_ipc_malloc. */
fr_status fr_ipc_hand_over(void *p, fr_ipc_handle *out, fr_error *err);
/* Where another process's memory is seen here, by the current device; each allocation is mapped once for a device. */
fr_status fr_ipc_map(fr_ipc **list, const fr_ipc_handle *h, void **out, fr_error *err);
void fr_ipc_close(fr_ipc *list, bool lost); /* `lost`: leaves the mappings to the end of the process */

#endif

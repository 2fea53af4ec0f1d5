#include "engine/cuda/transport/ipc.h"

#include <stdlib.h>
#include <string.h>

#define UNIT ((size_t)2 << 20)

struct fr_ipc {
    cudaIpcMemHandle_t allocation;
    void *base;
    int device; /* that it is mapped for */
    fr_ipc *next;
};

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

cudaError_t fr_ipc_malloc(size_t bytes, void **out) {
    return cudaMalloc(out, (bytes + UNIT - 1) / UNIT * UNIT);
}

/* cuMemGetAddressRange: a handle stands for a whole allocation, of which p may be a part. */
static fr_status allocation_of(const void *p, uintptr_t *base, fr_error *err) {
    typedef int (*range_fn)(unsigned long long *, size_t *, unsigned long long);
    enum cudaDriverEntryPointQueryResult found;
    unsigned long long first = 0;
    size_t bytes = 0;
    void *symbol = NULL;
    range_fn range;
    FR_TRY(check(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &symbol, 12000, cudaEnableDefault, &found),
                 "cudaGetDriverEntryPointByVersion", err));
    memcpy(&range, &symbol, sizeof range); /* ISO C has no conversion of an object pointer to a function pointer */
    if (found != cudaDriverEntryPointSuccess || range(&first, &bytes, (uintptr_t)p) != 0)
        return fr_fail(err, FR_FAILED, "cuMemGetAddressRange failed: the memory is none of cudaMalloc's");
    *base = (uintptr_t)first;
    return FR_OK;
}

fr_status fr_ipc_hand_over(void *p, fr_ipc_handle *out, fr_error *err) {
    uintptr_t base = 0;
    memset(out, 0, sizeof *out);
    FR_TRY(allocation_of(p, &base, err));
    out->offset = (int64_t)((uintptr_t)p - base);
    return check(cudaIpcGetMemHandle(&out->allocation, (void *)base), "cudaIpcGetMemHandle", err);
}

fr_status fr_ipc_map(fr_ipc **list, const fr_ipc_handle *h, void **out, fr_error *err) {
    fr_ipc *m = *list;
    int device = 0;
    FR_TRY(check(cudaGetDevice(&device), "cudaGetDevice", err));
    while (m && (m->device != device || memcmp(&m->allocation, &h->allocation, sizeof m->allocation) != 0)) m = m->next;
    if (!m) {
        void *base = NULL;
        FR_TRY(check(cudaIpcOpenMemHandle(&base, h->allocation, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle",
                     err));
        m = fr_alloc(sizeof *m);
        *m = (fr_ipc){h->allocation, base, device, *list};
        *list = m;
    }
    *out = (char *)m->base + h->offset;
    return FR_OK;
}

void fr_ipc_close(fr_ipc *list, bool lost) {
    int device = -1;
    if (!lost && list) cudaGetDevice(&device);
    while (list) {
        fr_ipc *next = list->next;
        if (!lost && cudaSetDevice(list->device) == cudaSuccess) cudaIpcCloseMemHandle(list->base);
        free(list);
        list = next;
    }
    if (device >= 0) cudaSetDevice(device);
}

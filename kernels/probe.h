/* probe: what measurements put between the launches that they time. */
#ifndef FR_PROBE_H
#define FR_PROBE_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FR_PROBE_SMS = 256 };

/* out [FR_PROBE_SMS][2], zeroed by the caller: cycles and global time (ns) of each SM that a block of this launch ran
 * on. Between two stamps, cycles over time is the mean clock of the SM. */
cudaError_t fr_k_stamp(uint64_t *out, int sms, cudaStream_t stream);

/* Keeps the stream, and hardly anything else of the GPU, busy for `ns` (at most 2 s). */
cudaError_t fr_k_hold(uint64_t ns, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

/*
 * words: small tables and results between pinned host memory and the device, moved by SMs. A copy engine stays with one
 * stream as long as that has copies that may run: a forward's tables would wait behind the weights of whole layers
 * (experiments/engine-h200x2/gather.md).
 */
#ifndef FR_WORDS_H
#define FR_WORDS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* to[i] = from[i] for n words of 4 bytes, which both are aligned to (16 is quicker). Each is device memory or pinned
 * memory that the device can address (any cudaHostAlloc). */
cudaError_t fr_k_words(void *to, const void *from, int64_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

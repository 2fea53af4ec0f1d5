/*
 * words: counters that streams write and wait for without a kernel (cuStreamWriteValue32, cuStreamWaitValue32), and
 * pinned host memory for such counters which ranks of one host share, be they threads or processes.
 */
#ifndef FR_CUDA_WORDS_H
#define FR_CUDA_WORDS_H

#include "engine/world/world.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

/* The driver's calls, found at run time: the program does not link it. */
typedef struct {
    CUresult (*write)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
    CUresult (*wait)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
} fr_stream_calls;

fr_status fr_stream_calls_find(fr_stream_calls *out, fr_error *err);
fr_status fr_stream_write(const fr_stream_calls *c, cudaStream_t stream, uint32_t *at, uint32_t value, fr_error *err);
/* Until *at - value >= 0, as signed numbers. */
fr_status fr_stream_wait(const fr_stream_calls *c, cudaStream_t stream, uint32_t *at, uint32_t value, fr_error *err);
/* Until that bit of *at is set. */
fr_status fr_stream_wait_bit(const fr_stream_calls *c, cudaStream_t stream, uint32_t *at, uint32_t bit, fr_error *err);

typedef struct {
    uint32_t *mine;  /* this rank's, as the host sees them; NULL = it has none */
    uint32_t *here;  /* the same as its streams do */
    uint32_t **peer; /* [ranks]: others' as its streams see them, NULL = none, or not reached */
    void **shared;   /* [ranks]: as mapped here, where ranks are processes; else NULL */
    size_t bytes;
    int ranks;
} fr_words;

/* Collective: `count` words for ranks that want any, 0 at first but for the last one; this rank sees those of rank q
 * where reaches[q]. */
fr_status fr_words_open(fr_world *world, int rank, uint32_t count, uint32_t last, bool wanted, const bool *reaches,
                        fr_words *out, fr_error *err);
/* `lost`: leaves the memory, which a stream may still know, to the end of the process. Zeroed words are allowed. */
void fr_words_close(fr_words *w, bool lost);

#endif

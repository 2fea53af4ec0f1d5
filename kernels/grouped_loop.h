/*
 * grouped_loop: the grouped product as one cublasLt call per expert, over a few streams. It needs the row counts on the
 * host. Correct and simple: the baseline that the own kernel is checked and timed against.
 */
#ifndef FR_GROUPED_LOOP_H
#define FR_GROUPED_LOOP_H

#include "kernels/gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fr_grouped_loop fr_grouped_loop;

/* Opens `streams` (1 to 8) non-blocking streams with 32 MiB of workspace each. */
fr_status fr_grouped_loop_open(fr_grouped_loop **out, int streams, fr_error *err);
void fr_grouped_loop_close(fr_grouped_loop *l);

/* c [rows, N] = a [rows, K] * b[e] [N, K]^T for the rows offsets[e] .. offsets[e+1]-1; offsets [E+1] on the host. The
 * work is ordered on `stream` (fork and join by events). */
fr_status fr_grouped_loop_run(fr_grouped_loop *l, const fr_bf16 *a, const fr_bf16 *b, fr_bf16 *c,
                              const int32_t *offsets, int32_t E, int32_t N, int32_t K, cudaStream_t stream,
                              fr_error *err);

#ifdef __cplusplus
}
#endif
#endif

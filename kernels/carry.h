/*
 * carry: rows carried one way, from one rank's buffer into another's slot or out of a slot, when only the device knows
 * how many (asap: engine/cuda/links.h). No flags: the stream raises a counter behind the launch.
 *
 * Rows range[0] .. range[1] - 1 of `rows` go to rows base, base + 1, ... of `to`, base = *at (0 where at is NULL); with
 * them, if ids is given, the ids and weights of their k experts: of row i those of token source[i] (NULL: i), an id
 * outside first .. end - 1 becomes -1. Then zeros[0 .. zeros_count - 1] = 0 and ends[0 .. ends_count - 1] = base + how
 * many: the range of a payload, or where the next source's rows begin. `to`, `to_ids`, `to_weights`, `zeros` and `ends`
 * may be a peer's; nobody else may read or write them meanwhile.
 */
#ifndef FR_CARRY_KERNELS_H
#define FR_CARRY_KERNELS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const void *rows;     /* [*, H] bf16 */
    const int32_t *range; /* [2], device */
    void *to;             /* [*, H] bf16 */
    const int32_t *at;    /* device, or NULL */
    const int32_t *ids;   /* [tokens, k], or NULL */
    const float *weights; /* [tokens, k] */
    const int32_t *source;
    int32_t *to_ids; /* [*, k] */
    float *to_weights;
    int32_t *zeros, *ends;
    int32_t zeros_count, ends_count;
    int32_t first, end, k;
    int32_t blocks; /* 1 .. 1024 */
    int64_t H;      /* a multiple of 8 */
} fr_k_carry_args;
cudaError_t fr_k_carry(const fr_k_carry_args *a, cudaStream_t stream);

/*
 * row_of_copy [T, E], as fr_k_pack makes it (the row in the send buffer of the copy for target e, -1 = none), becomes
 * where that copy's result will lie: row e * stride + i, i being the copy's number among those for e; first [E + 1]:
 * fr_x_block.first.
 */
cudaError_t fr_k_carry_places(int32_t *row_of_copy, const int32_t *first, int64_t T, int32_t E, int64_t stride,
                              cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

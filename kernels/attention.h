/*
 * attention: causal grouped-query attention of packed sequences of any lengths, through cuDNN's backend C interface.
 *
 * Sequence i has q_len[i] queries and kv_len[i] >= q_len[i] keys; query r sees keys 0 .. r + kv_len[i] - q_len[i]
 * (bottom-right causal: the queries are the last ones, after a cached prefix or earlier chunks). Softmax in fp32 of
 * scale * q k. With share_kernels, one kernel is compiled for each number of sequences and head layout (40 to 900 ms,
 * at the first call), and further lengths cost some 0.1 ms for a plan, kept for the next time; without, every new shape
 * is compiled. Round b up to a few sizes with sequences of length zero to share more. One object serves one device and
 * one host thread at a time. The graph is built with cuDNN's backend C API.
 */
#ifndef FR_ATTENTION_H
#define FR_ATTENTION_H

#include "engine/base.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct fr_attention fr_attention;

/* Refuses a cuDNN whose major.minor differs from the headers built against. */
fr_status fr_attention_open(fr_attention **out, bool share_kernels, fr_error *err);
void fr_attention_close(fr_attention *a);

typedef struct {
    const fr_bf16 *q, *k, *v; /* row strides below, heads adjacent: element (row, head, i) at row*stride + head*D + i */
    fr_bf16 *out;
    const int32_t *meta; /* from fr_k_attention_meta with the same b and strides; or NULL: every sequence has exactly
                            max_q queries and max_kv keys, one after the other */
    int64_t q_stride, kv_stride, o_stride;
    int32_t b, max_q, max_kv; /* sequences; the longest q_len and kv_len, or more: rounded up to 128 inside */
    int32_t heads_q, heads_kv, D;
    float scale;
    void *workspace; /* fr_attention_workspace bytes, 256-byte aligned */
    size_t workspace_bytes;
} fr_attention_args;

/* Prepares (and keeps) the plan of these shapes, and says what workspace it needs. Pointers are not looked at. */
fr_status fr_attention_workspace(fr_attention *a, const fr_attention_args *args, size_t *bytes, fr_error *err);

fr_status fr_attention_run(fr_attention *a, const fr_attention_args *args, cudaStream_t stream, fr_error *err);

/* Run-time version of cuDNN, major * 10000 + minor * 100 + patch. */
int64_t fr_attention_version(void);

#ifdef __cplusplus
}
#endif
#endif

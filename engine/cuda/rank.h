/*
 * rank: one rank's device state, shared by the executor (exec.c), its batch tables (batch.c) and the launchers (ops.c).
 */
#ifndef FR_CUDA_RANK_H
#define FR_CUDA_RANK_H

#include "engine/cuda/exec.h"
#include "engine/kv_rows.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"

#define FR_GEMM_WORKSPACE ((size_t)32 << 20) /* kernels/gemm.h: serves every algorithm on Hopper */

/* What a batch is on the device: one run of ints, copied at the start of its forward. T tokens, S sequences. */
typedef struct {
    int32_t tokens, sequences, max_q, max_kv;
    int32_t padded;                     /* sequences with empty ones behind them, as attention sees them */
    bool equal;                         /* all sequences have one length and nothing before them */
    int32_t rows_all, rows_some, picks; /* rows that want the whole vocabulary; candidates; pairs (row, candidate) */
    int64_t logits;                     /* floats that come back */
    /* device */
    int32_t *ids, *position;        /* [T] */
    int32_t *q_start;               /* [S + 1] */
    int32_t *rows;                  /* last row of each sequence that wants logits: rows_all first */
    int32_t *pick_row, *pick_token; /* [picks]: index into `rows`, token */
    int32_t *meta;                  /* attention.h */
    /* with a KV cache: row of each new token [T], first and number of each sequence's keys in the gathered context [S],
     * rows of that context [context] */
    int32_t *kv_row, *kv_start, *kv_len, *context_rows;
    int64_t context;
} fr_batch_tables;

typedef struct fr_device_rank {
    const fr_model *model;
    const fr_layout *layout;
    const fr_weights *weights;
    int rank, layers;
    fr_gemm *gemm;
    fr_attention *attention;
    /* arena: activations by plan buffer (NULL where a buffer is no activation), and what no plan lists */
    char *arena;
    int64_t arena_bytes;
    void **buffers;
    int64_t *buffer_bytes;
    uint32_t buffers_count;
    void *gemm_workspace, *attention_workspace, *route_workspace;
    size_t attention_workspace_bytes;
    uint32_t *rope; /* [positions][D / 2] */
    int64_t positions;
    uint32_t *counter;     /* the grouped product's, zero between launches */
    const int32_t *order;  /* where the layer's sort put each slot's row */
    int32_t *offsets;      /* [layers][E + 1] rows of each expert, kept for all layers */
    int32_t *batch_memory; /* grows with the batches */
    int64_t batch_ints;
    /* KV cache: [layers][kv_capacity][K, V of all heads], and a batch's context gathered from it */
    fr_bf16 *kv, *context;
    int64_t kv_capacity, context_capacity, kv_width; /* kv_width: elements of a row */
    fr_kv_rows *kv_rows;
    int64_t *kv_owner; /* per handle */
    uint32_t kv_owner_cap;
    bool made_up_prefix, varied;
    fr_batch_tables batch;
    /* largest batch */
    int64_t most_tokens, most_sequences, most_picks, most_logits;
} fr_device_rank;

fr_status fr_rank_open(const fr_exec_options *o, fr_device_rank *r, fr_error *err);
void fr_rank_close(fr_device_rank *r);

/* Checks a batch, gives its sequences their rows of the KV cache, and returns the ints that its tables take (host
 * staging and device alike). */
fr_status fr_batch_plan(fr_device_rank *r, const fr_exec_batch *b, int64_t *ints, fr_error *err);
/* Fills `staging` with the tables of the batch planned last, and copies them on `stream`. */
fr_status fr_batch_upload(fr_device_rank *r, const fr_exec_batch *b, int32_t *staging, cudaStream_t stream,
                          fr_error *err);

/* For batches of any size: compiles attention for 1 to 128 sequences (up to 0.9 s each), and lets cublasLt choose for
 * every number of rows that fr_bucket gives (some 3 ms each), so that a trace's first batches do not wait for either.
 */
fr_status fr_rank_prepare(fr_device_rank *r, fr_error *err);

/* Rows that a product of `rows` rows computes where batches vary: the next multiple of 128, of 256 above 2,048. The
 * rows beyond are of no matter: nobody reads them. */
int64_t fr_bucket(const fr_device_rank *r, int64_t rows);

/* Launches one op; the message says which call failed. */
fr_status fr_op_launch(fr_device_rank *r, const fr_fragment *f, const fr_op *op, cudaStream_t stream, fr_error *err);

#endif

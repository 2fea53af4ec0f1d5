/*
 * rank: one rank's device state, shared by the executor (exec.c), its batch tables (batch.c) and the launchers (ops.c).
 */
#ifndef FR_CUDA_RANK_H
#define FR_CUDA_RANK_H

#include "engine/cuda/exec.h"
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
    uint32_t *counter;    /* the grouped product's, zero between launches */
    const int32_t *order; /* where the layer's sort put each slot's row */
    int32_t *offsets;     /* [layers][E + 1] rows of each expert, kept for all layers */
    int32_t *batch_memory;
    int64_t batch_ints;
    fr_batch_tables batch;
    /* largest batch */
    int64_t most_tokens, most_sequences, most_picks, most_logits;
} fr_device_rank;

fr_status fr_rank_open(const fr_exec_options *o, fr_device_rank *r, fr_error *err);
void fr_rank_close(fr_device_rank *r);

/* Ints that the tables of the largest batch take (host staging and device alike). */
int64_t fr_batch_ints(const fr_device_rank *r);
/* Fills `staging` and r->batch for this batch, and copies it on `stream`. */
fr_status fr_batch_upload(fr_device_rank *r, const fr_exec_batch *b, int32_t *staging, cudaStream_t stream,
                          fr_error *err);

/* Compiles attention for batches of 1 to 128 sequences (up to 0.9 s each), so that a trace's first ones do not wait. */
fr_status fr_rank_prepare(fr_device_rank *r, fr_error *err);

/* Launches one op; the message says which call failed. */
fr_status fr_op_launch(fr_device_rank *r, const fr_fragment *f, const fr_op *op, cudaStream_t stream, fr_error *err);

#endif

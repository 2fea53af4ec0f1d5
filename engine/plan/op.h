/*
 * op: the kinds of work a plan may hold and the shape that says how much of it. A shape says *what*, never *how long*:
 * the cost model turns it into seconds, the CUDA executor into a launch. Kinds are what both executors understand;
 * strategies only combine them.
 */
#ifndef FR_OP_H
#define FR_OP_H

#include "engine/base.h"

/* X(enumerator, name, class) : name is used in files, tables and op ids and is never renamed silently. */
#define FR_OP_KINDS(X)                                                                                                 \
    X(NONE, "none", OTHER)                                                                                             \
    /* host */                                                                                                         \
    X(LAUNCH, "launch", HOST)     /* m = launches the host issues in a row */                                          \
    X(READBACK, "readback", HOST) /* host waits for and reads a small device result */                                 \
    /* memory-bound compute: m = tokens (rows), n = width in elements, bytes = HBM bytes moved once */                 \
    X(EMBED, "embed", MEMORY)                                                                                          \
    X(NORM, "norm", MEMORY)       /* RMSNorm, with the residual add where bytes say so */                              \
    X(ROPE, "rope", MEMORY)       /* q/k norm + rotary */                                                              \
    X(TOPK, "topk", MEMORY)       /* softmax, top-k, renormalise: m tokens, n experts */                               \
    X(SORT, "sort", MEMORY)       /* counts, offsets, stable permutation: m tokens * k rows, n experts */              \
    X(PERMUTE, "permute", MEMORY) /* gather rows into expert order */                                                  \
    X(SWIGLU, "swiglu", MEMORY)   /* where not fused in the GEMM's epilogue (dense layers, shared experts) */          \
    X(COMBINE, "combine", MEMORY) /* weighted sum of k rows per token (+ residual) */                                  \
    X(REDUCE, "reduce", MEMORY)   /* local sum of partial results */                                                   \
    /* matrix work */                                                                                                  \
    X(GEMM_QKV, "gemm_qkv", GEMM) /* m tokens, n out, k in */                                                          \
    X(GEMM_O, "gemm_o", GEMM)                                                                                          \
    X(GEMM_ROUTER, "gemm_router", GEMM)                                                                                \
    X(GEMM_DENSE, "gemm_dense", GEMM) /* dense FFN, shared experts, MLA's low-rank projections */                      \
    X(GEMM_HEAD, "gemm_head", GEMM)                                                                                    \
    X(ATTENTION, "attention",                                                                                          \
      ATTENTION) /* vector of (queries, prefix); n = query heads, k = kv heads, head_dim, v_head_dim, window */        \
    X(EXPERT_UP, "expert_up",                                                                                          \
      GROUPED) /* up + gate + SwiGLU: vector of tokens per expert, n = 2 * width, k = hidden */                        \
    X(EXPERT_DOWN, "expert_down", GROUPED) /* n = hidden, k = width */                                                 \
    /* collectives: bytes = what one rank sends over its link (defined per kind in cost.c), ranks = members */         \
    X(ALLREDUCE, "allreduce", COLLECTIVE)                                                                              \
    X(ALLGATHER, "allgather", COLLECTIVE)                                                                              \
    X(REDUCESCATTER, "reducescatter", COLLECTIVE)                                                                      \
    X(ALLTOALL, "alltoall", COLLECTIVE)             /* dispatch */                                                     \
    X(ALLTOALL_BACK, "alltoall_back", COLLECTIVE)   /* combine */                                                      \
    X(COUNTS, "counts", COLLECTIVE)                 /* exchange of routed counts: latency only */                      \
    X(GATHER_WEIGHTS, "gather_weights", COLLECTIVE) /* all-gather of expert weights (nccl, nccl-ce) */                 \
    X(SEND, "send", COLLECTIVE)                     /* pair: pipeline activations */                                   \
    X(RECV, "recv", COLLECTIVE)                                                                                        \
    /* copies */                                                                                                       \
    X(PULL, "pull", COPY) /* one-sided peer read on a copy engine */                                                   \
    X(PUSH, "push", COPY) /* one-sided peer write (asap dispatch, combine) */                                          \
    X(H2D, "h2d", COPY)                                                                                                \
    X(D2H, "d2h", COPY)                                                                                                \
    X(DRAIN, "drain", COPY) /* local copy out of a slot (asap) */                                                      \
    X(FENCE, "fence", HOST) /* no work: joins events; costs 0 */                                                       \
    /* words of 4 bytes between host memory and the device, by SMs (kernels/words.h); m words, n = 1 */                \
    X(UPLOAD, "upload", MEMORY)     /* what a forward's batch is: ids, positions, sequences, rows of the KV cache */   \
    X(DOWNLOAD, "download", MEMORY) /* sub 0: logits; sub 1: tokens per expert of all layers */

typedef enum {
#define FR_OP_ENUM(id, name, class) FR_OP_##id,
    FR_OP_KINDS(FR_OP_ENUM)
#undef FR_OP_ENUM
        FR_OP_KIND_COUNT
} fr_op_kind;

typedef enum {
    FR_CLASS_OTHER,
    FR_CLASS_HOST,
    FR_CLASS_MEMORY,
    FR_CLASS_GEMM,
    FR_CLASS_ATTENTION,
    FR_CLASS_GROUPED,
    FR_CLASS_COLLECTIVE,
    FR_CLASS_COPY,
    FR_CLASS_COUNT
} fr_op_class;

const char *fr_op_name(fr_op_kind kind);
static inline fr_op_class fr_op_class_of(fr_op_kind kind) { /* asked for every op that is played */
    static const uint8_t classes[FR_OP_KIND_COUNT] = {
#define FR_OP_CLASS(id, name, class) FR_CLASS_##class,
        FR_OP_KINDS(FR_OP_CLASS)
#undef FR_OP_CLASS
    };
    return (unsigned)kind < FR_OP_KIND_COUNT ? (fr_op_class)classes[kind] : FR_CLASS_OTHER;
}
const char *fr_op_class_name(fr_op_class c); /* "gemm", "attention", ... */
fr_op_kind fr_op_by_name(const char *name);  /* FR_OP_KIND_COUNT when unknown */

/* Kernels whose bytes go over PCIe. */
static inline bool fr_op_over_pcie(fr_op_kind kind) {
    return kind == FR_OP_UPLOAD || kind == FR_OP_DOWNLOAD;
}

/* A (queries, prefix) pair of one sequence, or tokens of one expert in `queries`. */
typedef struct {
    int32_t queries;
    int32_t prefix;
} fr_pair;

/* Equal lengths need no masks: attention without them is quicker up to here, slower above (kernels/measured/README.md).
 */
enum { FR_ATTENTION_EQUAL = 1024 };

/* Where batches vary, a dense product of so many rows takes cublasLt's algorithm of the next multiple of 128, of 256
 * above 2,048: whole tiles on Hopper. Asking for every number of rows costs the host 3 to 5 ms each (kernels/gemm.h).
 */
static inline int64_t fr_rows_like(int64_t rows) {
    const int64_t step = rows <= 2048 ? 128 : 256;
    return (rows + step - 1) / step * step;
}

/* Rows that a permute writes for each that it reads, where its shape (a row of a table) does not say k, the rows read:
 * tables were measured with the top-8 of Qwen3. */
enum { FR_PERMUTE_TOP = 8 };

typedef struct fr_shape {
    uint8_t kind;      /* fr_op_kind */
    uint8_t precision; /* fr_precision of the operands */
    uint8_t transport; /* fr_gather for GATHER_WEIGHTS; 0 else */
    uint8_t hosts;     /* hosts that a collective spans, 0 or 1 = one */
    int16_t ranks;     /* members of a collective; ranks that pull from (push to) each other at once */
    int16_t v_head_dim;
    int32_t n, k;
    int32_t head_dim;
    int32_t window;
    int32_t experts; /* entries in the tokens-per-expert vector */
    int64_t m;
    int64_t bytes;         /* HBM bytes of memory-bound ops; payload of copies and collectives (per rank, see cost.c) */
    double flops;          /* model FLOPs of the op, 0 where it has none */
    uint32_t vector;       /* offset into the owner's pair array ... */
    uint32_t vector_count; /* ... and entries; 0 = none */
} fr_shape;

#endif

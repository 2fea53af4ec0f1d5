/*
 * rank: one rank's device state, shared by the executor (exec.c), its batch tables (batch.c) and the launchers
 * (ops*.c). All sizes are those of this rank: its heads, its experts, its stage's layers.
 */
#ifndef FR_CUDA_RANK_H
#define FR_CUDA_RANK_H

#include "engine/batch_tables.h"
#include "engine/cuda/exec.h"
#include "engine/kv_rows.h"
#include "engine/placement.h"
#include "engine/shard.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"

enum { FR_MOST_PARTS = 128 }; /* of the experts of a rank (kernels/exchange.h) */
enum { FR_RANK_TILES = 8 };
#define FR_GEMM_WORKSPACE ((size_t)32 << 20) /* kernels/gemm.h: serves every algorithm on Hopper */

typedef struct fr_device_rank {
    const fr_model *model;
    const fr_layout *layout;
    const fr_weights *weights;
    struct fr_transport *transport; /* NULL: alone */
    const fr_cost_model *cost;      /* or NULL */
    int rank;
    fr_place place;
    fr_shard shard;      /* its part of the model: layers, heads, experts, widths */
    int layers;          /* executed by the rank's stage */
    fr_activations room; /* what the plan's buffers hold */
    fr_placement placement;
    fr_gemm *gemm;
    fr_attention *attention;
    /* arena: activations by plan buffer (NULL where a buffer is no activation; a pool's slots follow one another), and
     * what no plan lists */
    char *arena;
    int64_t arena_bytes;
    void **buffers;
    int64_t *buffer_bytes; /* of one slot */
    uint32_t buffers_count;
    struct fr_pools *pools; /* pools of weights; the executor's */
    struct fr_issue *issue; /* which slots holds have; the executor's */
    struct fr_links *links; /* asap's slots; the executor's */
    void *gemm_workspace, *attention_workspace, *route_workspace;
    int64_t attention_workspace_bytes;
    float *rope; /* [positions][D / 2] pairs */
    int64_t positions;
    uint32_t *counter; /* the grouped product's, zero between launches */
    struct {
        int64_t m;
        int32_t n, k;
        int variant;
    } tiles[FR_RANK_TILES]; /* what the cost model chose for the latest shapes of grouped products */
    uint32_t tiles_count;
    int32_t *landed;  /* [2][FR_MOST_PARTS] per half: copies that have arrived of each part (kernels/exchange.h) */
    int32_t *offsets; /* [offsets_micros][layers][fr_rank_offsets] rows of each expert, kept for all layers */
    int32_t offsets_micros;
    int micro_base; /* of the op at hand: where its unit's micro-batches begin among those of all units served */
    void **retired;
    uint32_t retired_count, retired_cap;
    int32_t *batch_memory; /* grows with the batches */
    int64_t batch_ints;
    const int32_t *batch_staging; /* pinned: the tables of the forward being issued */
    /* KV cache: [layers][kv_capacity][K, V of the rank's heads], and a batch's context gathered from it */
    fr_bf16 *kv, *context;
    int64_t kv_capacity, context_capacity, kv_width; /* kv_width: elements of a row */
    fr_kv_rows *kv_rows;
    int64_t *kv_owner; /* per handle */
    uint32_t kv_owner_cap;
    bool made_up_prefix, varied;
    int64_t one_length; /* where batches vary: of all sequences; 0: they differ */
    /* the forward being issued */
    fr_batch_rank batch;
    fr_batch_tables *micro; /* [micros] */
    int micros;
    uint32_t micro_cap;
    int64_t *tokens; /* [micros][slots] of all slots of the unit */
    uint32_t tokens_cap;
    int slots;
    int64_t logits; /* floats that this forward's batch brings: all sequences', of which this rank computes a part */
    /* largest batch; most_rows: tokens of a micro-batch */
    int64_t most_rows, most_tokens, most_sequences, most_picks, most_logits;
} fr_device_rank;

fr_status fr_rank_open(const fr_exec_options *o, fr_device_rank *r, fr_error *err);
void fr_rank_close(fr_device_rank *r);

/*
 * Room for `need` elements of `size` bytes in memory that only `stream` uses; what was there is lost. In the stream's
 * order: nothing may wait for the device, or free what peers' contexts know of, while ranks wait for one another (a
 * kernel that waits for a peer would hold up the call, and the call the op that the peer waits for).
 */
fr_status fr_rank_grow(void **memory, int64_t *have, int64_t need, int64_t size, cudaStream_t stream, const char *what,
                       fr_error *err);
/* Pinned memory that is used no more: freed at the end, for the same reason. */
void fr_rank_retire(fr_device_rank *r, void *pinned);

/* Where buffer `target` lies, `hold` naming the slot of a pool; NULL where it is no memory of this kind. */
void *fr_rank_buffer(const fr_device_rank *r, const fr_plan *plan, uint32_t target, uint32_t hold);
/* Tokens of micro-batch m that rank q of the unit holds between attention blocks; of an expert rank: all of them. */
int64_t fr_rank_tokens(const fr_device_rank *r, int q, int m);

/* Ints that a layer's table of offsets takes: a part has one more than it has experts; part p's begin p places late. */
static inline int64_t fr_rank_offsets(const fr_device_rank *r) {
    return r->model->experts + fr_layout_expert_parts(r->layout);
}
/* Tokens per expert [layers of the stage][E] from the tables `offsets` of a forward's micro-batches: of the rank's own
 * experts, the others 0, and nothing where another rank of a group has the same: sums over ranks are what was routed.
 */
void fr_rank_counts(const fr_device_rank *r, const int32_t *offsets, int micros, int32_t *counts);

/* Ints that the tables of any forward take, but for contexts that exceed the KV cache (shared or read in chunks). */
int64_t fr_batch_room(const fr_device_rank *r);
/* Checks a forward's batches and returns the ints that the tables take on the host (staging). */
fr_status fr_batch_plan(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int64_t *ints,
                        fr_error *err);
/* Gives its sequences their rows of the KV cache, fills `staging` with the tables of the forward planned last, and
 * makes room for them; what must not happen between ops comes here (fr_rank_prepare_attention). */
fr_status fr_batch_fill_staging(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int32_t *staging,
                                cudaStream_t stream, fr_error *err);
/* The upload op: copies the tables, and makes those that attention wants of them. */
fr_status fr_batch_upload(const fr_device_rank *r, cudaStream_t stream, fr_error *err);

/* n words from the device to pinned memory. */
cudaError_t fr_batch_bring(void *to, const void *from, int64_t n, cudaStream_t stream);
/* The download op, sub 0: copies the logits of a micro-batch that this rank computed to their places in `to`. */
fr_status fr_batch_logits(const fr_device_rank *r, const fr_op *op, const void *device, float *to, cudaStream_t stream,
                          fr_error *err);

/* For batches of any size: compiles and runs attention for 1 to 128 sequences (up to 0.9 s each; where all have one
 * short length, for each number of them too, some 50 ms each), and lets cublasLt choose for every number of rows that
 * fr_rows_like gives (some 3 ms each), so that no batch waits for either. */
fr_status fr_rank_prepare(fr_device_rank *r, fr_error *err);
/* Attention of all micro-batches of the forward planned last, before any of its ops is issued: what compiles and loads
 * holds up the thread, and by locks of the process those of other ranks, while peers wait for what they would issue. */
fr_status fr_rank_prepare_attention(fr_device_rank *r, cudaStream_t stream, fr_error *err);

/* Launches one op; the message says which call failed. */
fr_status fr_op_launch(fr_device_rank *r, const fr_plan *plan, const fr_fragment *f, const fr_op *op,
                       cudaStream_t stream, fr_error *err);

#endif

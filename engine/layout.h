/*
 * layout: a strategy with its degrees: how attention and experts are split over ranks, pipeline stages and replicas;
 * whether that is valid and fits; which rank holds what.
 *
 *     gpus = replicas * pp * (tp * dp)
 *
 * A stage has tp * dp ranks: rank = ((replica * pp + stage) * dp + d) * tp + t. Attention is split by heads over the tp
 * ranks of a group and replicated over the dp groups. Experts are, by `experts`: local    all on every rank (attention
 * dp only, or tp with tp = 1) tp       each expert's width over the stage's tp * dp ranks (with dp > 1: all-gather +
 * reduce-scatter around the experts) ep       whole experts over ep ranks (ep divides tp * dp; ep ranks are
 * consecutive), activations travel asyncep  as ep, but the full set of a layer is gathered a layer ahead into double
 * buffers dwdp     as asyncep, one-sided pulls of the remote experts only, local ones used in place offload  in pinned
 * host memory, streamed (S slots, or a layer ahead); with ep > 1 each rank streams 1/ep and gathers the rest Experts
 * with attention tp > 1 and experts in {local, asyncep, dwdp, offload} need tp = 1: every rank must own whole tokens.
 * asap stands apart: attention groups of tp ranks (dp of them) and ep further expert ranks: gpus = replicas * (tp * dp
 * + ep).
 */
#ifndef FR_LAYOUT_H
#define FR_LAYOUT_H

#include "engine/machine.h"
#include "engine/model.h"

typedef enum { FR_ATTN_DP = 0, FR_ATTN_TP } fr_attention_split;
typedef enum {
    FR_EXP_LOCAL = 0,
    FR_EXP_TP,
    FR_EXP_EP,
    FR_EXP_ASYNCEP,
    FR_EXP_DWDP,
    FR_EXP_OFFLOAD,
    FR_EXP_ASAP
} fr_expert_split;
typedef enum { FR_GATHER_CE = 0, FR_GATHER_NCCL, FR_GATHER_NCCL_CE } fr_gather;
/* Who reads a source next: whoever came first; or a rank in its gather lets the rank after it keep ahead (plan.h,
 * FR_OP_YIELDS). */
typedef enum { FR_ORDER_FCFS = 0, FR_ORDER_YIELD } fr_gather_order;
typedef enum { FR_WAIT_LAYER = 0, FR_WAIT_MOE } fr_wait_point;
/* a2a: one copy per (token, target rank), reduced at the source side; agrs: all-gather + reduce-scatter; a2a_k and
 * a2a_fp8: labelled variants (k copies per token; FP8 dispatch with bf16 combine). */
typedef enum { FR_EXCHANGE_A2A = 0, FR_EXCHANGE_AGRS, FR_EXCHANGE_A2A_K, FR_EXCHANGE_A2A_FP8 } fr_exchange;
typedef enum { FR_OVERLAP_NONE = 0, FR_OVERLAP_TBO, FR_OVERLAP_EXPERT_GROUPS } fr_overlap; /* two-batch; EPS-MoE */
typedef enum { FR_CHUNK_FIXED = 0, FR_CHUNK_BALANCED } fr_chunking;

#define FR_MAX_GATHER_STREAMS 4

typedef struct fr_layout {
    char strategy[16]; /* shorthand it came from ("asyncep") or "custom" */
    fr_attention_split attention;
    fr_expert_split experts;
    int tp, pp, ep, dp, replicas; /* all >= 1 */

    fr_gather gather;
    int64_t gather_chunk; /* bytes per copy-engine pull; 0 = one pull per peer */
    int gather_streams;   /* pulls that a rank has in flight; 0 = one; at most one per peer */
    fr_gather_order gather_order;
    int gather_keep; /* asyncep (copy engines), dwdp: experts of others' that a rank holds besides its own */
    fr_wait_point wait;
    fr_exchange exchange;
    fr_overlap overlap;
    int overlap_stages;   /* expert groups of FR_OVERLAP_EXPERT_GROUPS */
    int micro_batches;    /* pp: per forward */
    int64_t chunk_tokens; /* chunked prefill: largest chunk; 0 = none */
    fr_chunking chunking;
    int slots;           /* offload: expert slots S; 0 = a layer ahead */
    int window;          /* offload + gather: layers that H2D runs ahead of the gather */
    int run_layers;      /* layers executed; 0 = the model's */
    int resident_layers; /* distinct layers of weights, layer i uses i mod M; 0 = all */
    fr_precision precision;
    bool kv_cache; /* keep KV (prefix reuse, chunks); false = attention on the fly */
} fr_layout;

int fr_layout_gpus(const fr_layout *l);
/* Batches of one attention group in a forward: asap takes pairs. */
int fr_layout_batches(const fr_layout *l);
int fr_layout_stage_ranks(const fr_layout *l);               /* tp * dp (asap: tp * dp + ep) */
int fr_layout_layers(const fr_layout *l, const fr_model *m); /* executed */
/* Layers [first, end) of a pipeline stage: as equal as whole layers allow, earlier stages take the remainder. */
void fr_layout_stage_layers(const fr_layout *l, const fr_model *m, int stage, int *first, int *end);

/* Sets strategy shorthand defaults for `gpus` GPUs: dp, tp, ep, pp, asyncep, dwdp, offload, asap. Degrees of 0 in *l
 * are filled in. */
fr_status fr_layout_from_strategy(const char *strategy, int gpus, fr_layout *l, fr_error *err);

/* What one forward holds at most, per rank: sizes the buffers. */
typedef struct {
    int64_t tokens; /* new tokens of a batch, of an attention group: what each of its tp ranks sees */
    int64_t sequences;
    int64_t kv_tokens; /* tokens of KV resident per rank (cached prefixes included) */
    bool kept;        /* forwards write K and V into a cache: prefixes, chunks, reuse; else attention takes them as they
                         come, as the engine does (engine/conduct/conduct.c: kv_room) */
    double imbalance; /* hottest rank's share of routed tokens over the mean, >= 1: sizes ep receive buffers */
    int64_t longest;  /* new tokens of a sequence at most, 0 = not known; bounds what a micro-batch may get */
    bool equal;       /* every sequence has as many */
    int64_t logits;   /* floats that a batch asks for at most; a few candidates need no room of their own */
} fr_load;

/*
 * Live buffers of one layer on one rank for `tokens` tokens of its attention group, bytes; derived in layout_memory.c.
 * engine/placement.h makes a rank's buffers of it.
 */
typedef struct {
    int64_t residual, normed;
    int64_t qkv;           /* q, k, v (MLA: latents and rebuilt k, v too) */
    int64_t attention_out; /* heads * v_head_dim wide */
    int64_t router;        /* fp32 logits, top-k ids and weights, permutation */
    int64_t send, receive; /* packed tokens of a dispatch and its combine; all-gathered tokens */
    /* One receive buffer (expert groups have one each) holds `arriving` tokens (a count), then the ids and the weights
     * (4 bytes each) of `slots` experts for each of them: [arriving, H] | [arriving, slots] | [arriving, slots]. */
    int64_t arriving;
    int slots;
    /* asap: a slot that one attention rank's tokens travel in to an expert rank: rows, ids and weights as above of
     * `carried` tokens at most, and how many there are (two ints); one that their results come back in: the rows. */
    int64_t carried, payload, result;
    int64_t rows; /* routed rows that this rank computes at most (a count, not bytes) */
    int64_t permuted, up, down;
    int64_t dense; /* hidden layer of a dense FFN or of the shared experts */
} fr_activations;
/* FP8: n quantised rows and behind them their scales, one fp32 per row and 128 elements, by group, with room for a
 * multiple of 4 rows (kernels/fp8.h); row bytes are a multiple of 16 wherever this is executed. */
static inline int64_t fr_fp8_pitch(int64_t n) {
    return fr_ceil_div(n, 4) * 4;
}
static inline int64_t fr_fp8_bytes(int64_t n, int64_t width) {
    return n * width + 4 * fr_fp8_pitch(n) * fr_ceil_div(width, 128);
}
void fr_layout_activations(const fr_layout *l, const fr_model *m, const fr_load *load, int64_t tokens,
                           fr_activations *out);
/*
 * Tokens that an attention group has in a layer at once, at most: the batch's, or those of the largest of its
 * micro-batches, halves (two-batch overlap) or chunks. Whole sequences are dealt by where their middles lie
 * (engine/strategy/cut.c): a run of width w = tokens / parts holds middles within w, so at most w tokens and half a
 * sequence on either side. Where a batch has fewer sequences than parts, w is their mean length.
 */
int64_t fr_layout_most_tokens(const fr_layout *l, const fr_load *load);
/* Buffers of so many. */
void fr_layout_room(const fr_layout *l, const fr_model *m, const fr_load *load, fr_activations *out);

/* Parts into which each ep rank's experts are cut, which travel one after the other (FR_OVERLAP_EXPERT_GROUPS). */
int fr_layout_expert_parts(const fr_layout *l);
/* The imbalance that no routing exceeds: all tokens on one part of one rank. */
double fr_layout_worst_imbalance(const fr_layout *l);
/* Routed experts that ep rank r (0 .. ep - 1) holds: contiguous, near-equal (dwdp may be uneven). */
void fr_layout_expert_range(const fr_layout *l, const fr_model *m, int r, int *first, int *end);
/* Those, and the `gather_keep` others that lie around them: what travels less for memory that is left. */
void fr_layout_held_range(const fr_layout *l, const fr_model *m, int r, int *first, int *end);
/* Of ep rank `peer`'s experts those that rank r does not hold; empty: first = end. */
void fr_layout_pull_range(const fr_layout *l, const fr_model *m, int r, int peer, int *first, int *end);
/* Whether something travels through NCCL: not the pulls of weights by copy engines, nor ep's own exchange. */
bool fr_layout_uses_nccl(const fr_layout *l);
/* Shard window of offload with ep > 1, in layers: `window`, or its default. */
int fr_layout_window(const fr_layout *l);

/* Memory of the rank that needs most, itemised, bytes. `total` is the sum of the items; host_pinned is per host and
 * apart. */
typedef struct {
    int64_t attention; /* attention, norms, routers, shared experts, dense layers */
    int64_t embedding_head;
    int64_t experts;        /* resident experts */
    int64_t gather_buffers; /* double buffer (asyncep: 2 full layers; dwdp: remote part only), offload slots */
    int64_t first_layer;    /* full set of the first MoE layer, asyncep/dwdp */
    int64_t kv;
    int64_t activations;
    int64_t workspace; /* library workspaces, NCCL buffers, CUDA context */
    int64_t total;
    int64_t host_pinned;
} fr_memory;

/*
 * The one function that says whether a layout is valid and fits. FR_BAD_INPUT with the reason when degrees,
 * divisibility, links or options are wrong (an option that the strategy does not use and that is not at its default is
 * refused by name). When the layout is valid *memory is filled and *fits says whether it fits; *reason (at least 256
 * bytes) then says why not.
 */
fr_status fr_layout_check(const fr_layout *l, const fr_model *m, const fr_machine *machine, const fr_load *load,
                          fr_memory *memory, bool *fits, char *reason, fr_error *err);

/* Whether the layout fits in `memory`'s figures, with the reason in at least 256 bytes of *reason when not. */
bool fr_memory_fits(const fr_memory *memory, const fr_machine *machine, char *reason);
/* Counts `contexts` more CUDA contexts on each GPU: of peers' processes that have work of their own there. */
void fr_memory_add_contexts(fr_memory *memory, int contexts);
/* Of one rank of a stage (asap: of an attention rank, or an expert rank), without what pinned host memory takes. */
void fr_layout_stage_memory(const fr_layout *l, const fr_model *m, const fr_machine *machine, const fr_load *load,
                            int stage, bool expert_rank, fr_memory *out);
/* Memory of a valid layout; fr_layout_check calls it. */
void fr_layout_memory(const fr_layout *l, const fr_model *m, const fr_machine *machine, const fr_load *load,
                      fr_memory *out);

const char *fr_expert_split_name(fr_expert_split e);
const char *fr_gather_name(fr_gather g);
/*
 * Within how many pulls readers yield (fr_plan.yields_within), 0 = they do not, nor do two ranks, of whom nobody meets
 * anybody. Half the ranks and one: played over traces and equal batches, less leaves four ranks in the ring, more makes
 * eight wait for one that has just begun (experiments/large/README.md).
 */
int fr_layout_yields(const fr_layout *l);
const char *fr_exchange_name(fr_exchange x);
const char *fr_overlap_name(fr_overlap o);

#endif

/*
 * shard: what one rank holds of every weight tensor under a layout: which layers, heads, experts and columns.
 * Arithmetic only, so that the engine, checkpoints and tests agree on it.
 *
 * Tensors are numbered as on one GPU: qkv [(heads + 2 kv_heads) * head_dim, H], o [H, heads * head_dim], router [E, H],
 * gate_up [E, 2 I, H] with gate and up rows interleaved in blocks of 8 (fr_k_pack_gate_up), down [E, H, I]. What a rank
 * holds is described by regions of them, so that random weights and checkpoints give every layout the same tensors.
 *
 * The routed experts of a layer that lie together are a *run*: [part 0 of all its experts | part 1 of all | ...], parts
 * being gate_up and down, and in fp8 their scales (kernels/fp8.h). A gather slot is a run too; copies between runs are
 * cut at the seams.
 */
#ifndef FR_SHARD_H
#define FR_SHARD_H

#include "engine/layout.h"

typedef struct {
    int stage, local, d, t;     /* place: stage, rank in it, attention group, tp index */
    int index;                  /* in its expert group */
    int first_layer, end_layer; /* executed layers of its stage */
    int layers, modulo;         /* distinct layers held; layer i uses the weights of i mod modulo */
    int head_first, heads;      /* query heads */
    int kv_first, kv_heads;     /* KV heads: a copy of the one that its query heads use where tp exceeds their number */
    int expert_first, expert_end; /* experts that this rank holds (offload: of the part that it streams) */
    int width_first, width_end;   /* of each of them */
    bool attention;               /* norms, attention and router; not asap's expert ranks */
    bool embedding, head;         /* whole: embedding on the first stage, head and final norm on the last */
    bool by_expert;               /* on_host, moved one by one: each lies as a run of its own, so that it is one copy */
    bool on_host;                 /* own experts lie in pinned host memory */
    bool gathers;                 /* other ranks' experts come into slots ... */
    bool packed;                  /* ... that have no places for the own ones */
    fr_precision precision;       /* of the linear weights */
} fr_shard;

/* Rank as fr_layout counts them. */
void fr_shard_of(const fr_layout *l, const fr_model *m, int rank, fr_shard *out);

/* Which of the layers held (0 .. layers - 1) an executed layer of this stage uses, and the number under which the whole
 * model knows the i-th one held: layer i mod modulo. */
int fr_shard_layer(const fr_shard *s, int executed);
int fr_shard_layer_id(const fr_shard *s, int held);

/* rows x columns of a tensor whose rows have `stride` elements, from element `first` on; row-major and packed where the
 * rank keeps it. */
typedef struct {
    int64_t rows, columns, stride, first;
} fr_region;
enum { FR_QKV_REGIONS = 3 };
void fr_shard_qkv(const fr_shard *s, const fr_model *m, fr_region out[FR_QKV_REGIONS]);
fr_region fr_shard_o(const fr_shard *s, const fr_model *m);
/* Experts [first, end), columns as the shard's width. */
fr_region fr_shard_gate_up(const fr_shard *s, const fr_model *m, int first, int end);
fr_region fr_shard_down(const fr_shard *s, const fr_model *m, int first, int end);

/* ---- runs of experts ----------------------------------------------------------------------------------------------*/

enum { FR_RUN_PARTS = 4 };
typedef struct {
    int parts;                   /* gate_up, down; fp8: gate_up's scales, down's scales */
    int64_t bytes[FR_RUN_PARTS]; /* of one expert */
    int64_t expert;              /* their sum: what fr_model_expert_bytes says of the same slice */
} fr_expert_run;
void fr_run_of(const fr_shard *s, const fr_model *m, fr_expert_run *out);
/* Byte at which a part of an expert begins in a run of `experts`. */
int64_t fr_run_offset(const fr_expert_run *r, int experts, int part, int expert);

typedef struct {
    int64_t from, to, bytes;
} fr_run_copy;
/* `count` experts from place `first` of a run of `experts`, to place `to_first` of a run of `to_experts`. */
typedef struct {
    int experts, first, count, to_experts, to_first;
} fr_run_move;
/*
 * The copies that move bytes [begin, begin + bytes) of those experts, counted part by part over all of them (0 .. count
 * * expert), as a gather in slices does. Returns their number, at most FR_RUN_PARTS.
 */
int fr_run_copies(const fr_expert_run *r, const fr_run_move *move, int64_t begin, int64_t bytes,
                  fr_run_copy out[FR_RUN_PARTS]);

/* Experts of a gather slot, and the place in it of an expert that is not the rank's own. */
int fr_shard_slot_experts(const fr_shard *s, const fr_model *m);
int fr_shard_slot_place(const fr_shard *s, int first_expert);

#endif

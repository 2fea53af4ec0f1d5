/*
 * weights: what one rank holds of a model's parameters (engine/shard.h), in the layout that the kernels read, bf16, or
 * with --precision fp8 the linear weights of Hugging Face's FP8 checkpoints block-scaled e4m3 (kernels/fp8.h). H
 * hidden, E experts, D head width; heads, kv_heads, I and the experts are the rank's own part of the model's.
 *
 * Three runs of memory: everything but routed experts; the routed experts, a run a layer (peers read them where they
 * lie); and, where experts are gathered, those of the stage's first layer that other ranks hold, in the form of a
 * gather slot. With offload the experts are in pinned host memory, a run a layer (by expert: a run an
 * expert), once for all ranks of a process.
 *
 * Random weights are made on the device (normal, standard deviation 0.02 as Hugging Face initialises these models, what
 * a block adds to the residual stream scaled down so that tokens stay distinct; norms 1): the same tensors whatever the
 * layout. Checkpoints are read from safetensors through pinned staging.
 */
#ifndef FR_CUDA_WEIGHTS_H
#define FR_CUDA_WEIGHTS_H

#include "engine/routing.h"
#include "engine/shard.h"
#include "engine/world/world.h"
#include "kernels/fp8.h"

typedef struct {
    fr_bf16 *input_norm, *post_norm; /* [H] */
    fr_bf16 *qkv;                    /* [(heads + 2 kv_heads) D, H] */
    fr_bf16 *q_norm, *k_norm;        /* [D], NULL where the model has none */
    fr_bf16 *o;                      /* [H, heads * D] */
    fr_bf16 *router;                 /* [E, H], all experts of the model */
    char *run;                       /* own experts, on the device or on the host (fr_shard.on_host) */
    fr_bf16 *gate_up;                /* in it: [experts, 2 I, H], gate and up interleaved in blocks of 8 rows */
    fr_bf16 *down;                   /* in it: [experts, H, I] */
    /* fp8: qkv, o, gate_up and down are fr_e4m3, and these their scales, the experts' in the run; NULL in bf16 */
    float *qkv_scale, *o_scale, *gate_up_scale, *down_scale;
} fr_layer_weights;

typedef struct fr_weights {
    fr_shard shard;
    fr_expert_run run;             /* of own experts */
    fr_layer_weights *layer;       /* [shard.layers]: see fr_weights_layer */
    fr_bf16 *embedding;            /* [V, H] on the first stage, and where the head is tied to it; else NULL */
    fr_bf16 *head;                 /* [V, H] on the last stage, the embedding where they are tied; else NULL */
    fr_bf16 *final_norm;           /* [H] with the head */
    float *router_bias;            /* [layers executed by all stages, E], added to router logits to inject skew */
    char *arena, *experts, *first; /* first: NULL where nothing is gathered */
    int64_t arena_bytes, experts_bytes, first_bytes;
    int64_t experts_stride; /* from a layer's run to the next one's */
    char **host;            /* offload: [shard.layers] runs */
    int64_t host_bytes;     /* pinned by this rank; 0 where another rank of the process did */
    bool owns_host;
    fr_world *world;
    struct fr_transport *transport; /* may be NULL; outlives the weights */
    int rank;
    int64_t bytes;  /* of GPU memory */
    double seconds; /* that it took to fill them */
} fr_weights;

static inline const fr_layer_weights *fr_weights_layer(const fr_weights *w, int executed) {
    return &w->layer[fr_shard_layer(&w->shard, executed)];
}
/* Experts whose weights lie together on this rank. */
static inline int fr_weights_own(const fr_weights *w) {
    return w->shard.expert_end - w->shard.expert_first;
}

/* Where a part of the i-th own expert of a held layer begins. */
static inline char *fr_weights_expert(const fr_weights *w, int held, int part, int i) {
    char *run = w->layer[held].run;
    if (w->shard.by_expert) return run + i * w->run.expert + fr_run_offset(&w->run, 1, part, 0);
    return run + fr_run_offset(&w->run, fr_weights_own(w), part, i);
}

/* FR_BAD_INPUT where the engine cannot execute this model (names the field). */
fr_status fr_weights_supported(const fr_model *m, const fr_layout *l, fr_error *err);

/*
 * Allocates rank `rank`'s part for the current device. Too little memory is FR_FAILED: what was asked for, what is
 * free, and how many --resident-layers would fit. `world`: the ranks that run together, which all call this,
 * fr_weights_random and fr_weights_load (offload shares pinned memory among those of a process); NULL: this one alone.
 */
fr_status fr_weights_open(const fr_model *m, const fr_layout *l, int rank, fr_world *world,
                          struct fr_transport *transport, fr_weights **out, fr_error *err);
/* Pinned memory goes with the rank that pinned it: close the executors of all ranks first. */
void fr_weights_close(fr_weights *w);

/* `layers`: that a forward executes. */
fr_status fr_weights_random(fr_weights *w, const fr_model *m, int layers, uint64_t seed, fr_error *err);
/* Reads the checkpoint in folder `dir` (weights_load.c). Strict: every tensor that the model needs with its exact shape
 * in bf16, and none that it does not know. */
fr_status fr_weights_load(fr_weights *w, const fr_model *m, const char *dir, fr_error *err);

/*
 * Injected skew for random weights: a bias per expert such that expert e of layer i is chosen by about k * share_e of
 * the tokens. If logits are normal with deviation s and a token's choice is those above a threshold, then P(chosen) = k
 * * share_e asks for a bias of s * Phi^-1(k * share_e). `counts` (NULL at first) are tokens per expert as measured with
 * the bias in force, [layers][E]: the bias is then moved by s * (Phi^-1(wanted) - Phi^-1(measured)).
 */
fr_status fr_weights_skew(fr_weights *w, const fr_model *m, const fr_routing *routing, int layers,
                          const int64_t *counts, fr_error *err);

/* ---- weights_host.c: pinned memory for experts --------------------------------------------------------------------*/

/* Pinned memory, in huge pages where the kernel gives them, zeros; seen by all devices. */
fr_status fr_pinned_open(int64_t bytes, char **out, fr_error *err);
void fr_pinned_close(char *pinned, int64_t bytes);

/* Pins a run of `run_bytes` for every layer held (w->host), or takes those of the rank of this process that holds the
 * same experts. At most 70 % of the host's memory. */
fr_status fr_weights_pin(fr_weights *w, const fr_layout *l, int64_t run_bytes, fr_error *err);
void fr_weights_unpin(fr_weights *w);
/* All ranks: what owners filled is there. */
fr_status fr_weights_filled(fr_weights *w, fr_error *err);

#endif

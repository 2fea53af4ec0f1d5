/*
 * weights: a model's parameters on one GPU, bf16, in the layout that the kernels read. H hidden, E experts, I expert
 * width, D head width, W = (heads + 2 kv_heads) * D.
 *
 * Every distinct layer lies in one run of memory: layer i of a forward uses the weights of i mod `layers`. Random
 * weights are made on the device (normal, standard deviation 0.02 as Hugging Face initialises these models, what a
 * block adds to the residual stream scaled down so that tokens stay distinct; norms 1); checkpoints are read from
 * safetensors through pinned staging.
 */
#ifndef FR_CUDA_WEIGHTS_H
#define FR_CUDA_WEIGHTS_H

#include "engine/layout.h"
#include "engine/routing.h"
#include "kernels/kernels.h"

typedef struct {
    fr_bf16 *input_norm, *post_norm; /* [H] */
    fr_bf16 *qkv;                    /* [W, H] */
    fr_bf16 *q_norm, *k_norm;        /* [D], NULL where the model has none */
    fr_bf16 *o;                      /* [H, heads * D] */
    fr_bf16 *router;                 /* [E, H] */
    fr_bf16 *gate_up;                /* [E, 2 I, H], gate and up interleaved in blocks of 8 rows (fr_k_pack_gate_up) */
    fr_bf16 *down;                   /* [E, H, I] */
} fr_layer_weights;

typedef struct fr_weights {
    int layers; /* distinct */
    fr_layer_weights *layer;
    fr_bf16 *embedding, *head; /* [V, H]; head is the embedding where they are tied */
    fr_bf16 *final_norm;       /* [H] */
    float *router_bias;        /* [layers executed, E], added to router logits to inject skew; NULL = none */
    char *arena;
    int64_t bytes;
    double seconds; /* that it took to fill them */
} fr_weights;

/* FR_BAD_INPUT where the engine cannot execute this model (names the field). */
fr_status fr_weights_supported(const fr_model *m, const fr_layout *l, fr_error *err);

/*
 * Allocates for the current device. Too little memory is FR_FAILED: what was asked for, what is free, and how many
 * --resident-layers would fit.
 */
fr_status fr_weights_open(const fr_model *m, const fr_layout *l, fr_weights **out, fr_error *err);
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

#endif

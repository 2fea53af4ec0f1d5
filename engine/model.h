/*
 * model: dimensions of a Mixture-of-Experts transformer, read from a Hugging Face config.json, and what follows from
 * them alone: parameters, FLOPs, bytes. Knows nothing of machines, layouts or time.
 *
 * Units: parameters and tokens are counts, a multiply-add is 2 FLOPs, bytes are bytes.
 */
#ifndef FR_MODEL_H
#define FR_MODEL_H

#include "engine/base.h"

typedef enum { FR_BF16 = 0, FR_FP8 = 1, FR_PRECISIONS } fr_precision;

typedef enum { FR_ATTENTION_GQA = 0, FR_ATTENTION_MLA = 1 } fr_attention_kind;

typedef struct fr_model {
    char name[96];   /* lower case Hugging Face name without the owner: "qwen3-235b-a22b" */
    char family[32]; /* config.json's model_type: "qwen3_moe", "mixtral", "deepseek_v3", ... */

    int layers;       /* decoder layers */
    int dense_layers; /* leading layers with a dense FFN in place of experts (DeepSeek-V3: 3) */
    int hidden;       /* H */
    int vocab;        /* V */
    bool tied_embeddings;

    fr_attention_kind attention;
    int heads;      /* query heads */
    int kv_heads;   /* = heads for MLA */
    int head_dim;   /* of q and k (MLA: nope + rope) */
    int v_head_dim; /* = head_dim for GQA */
    int q_rank;     /* MLA: rank of the query projection, 0 = none */
    int kv_rank;    /* MLA: rank of the latent KV */
    int rope_dim;   /* MLA: width of the shared rotary key */
    bool qkv_bias, o_bias;
    bool qk_norm;      /* RMSNorm over each q and k head */
    bool qk_norm_full; /* MiniMax-M2, OLMoE: the norm runs over all heads' width at once */
    bool sinks;        /* gpt-oss: one learned sink per head */
    int window;        /* sliding window in tokens, 0 = none ... */
    int window_period; /* ... on layers l with l % window_period == 0 (gpt-oss: 2); 1 = every layer */

    int experts;                                      /* E, routed experts per MoE layer */
    int top_k;                                        /* k */
    int expert_width;                                 /* h, width of one expert */
    int shared_experts;                               /* experts that every token takes (0, 1) */
    int shared_width;                                 /* width of all shared experts together */
    int dense_width;                                  /* width of the FFN of the leading dense layers */
    bool expert_bias, router_bias, router_score_bias; /* the last: a bias used for selection only (DeepSeek-V3) */
    bool norm_weight_bias;                            /* LayerNorm with bias in place of RMSNorm (Phi-MoE) */
    bool head_bias;
    bool renormalise;    /* top-k weights divided by their sum */
    double router_scale; /* routed scaling factor, 1 where the model has none */
    double rope_theta, norm_eps;
    int max_positions;
} fr_model;

/* Exact parameter counts. Everything but `active` adds up to `total`. */
typedef struct {
    int64_t total;
    int64_t embedding; /* V * H */
    int64_t head;      /* V * H (+ V), 0 when tied */
    int64_t attention; /* all layers: projections, biases, q/k norms, sinks */
    int64_t norms;     /* all layers' two norms and the final one */
    int64_t routers;
    int64_t experts;         /* routed experts, all layers */
    int64_t shared;          /* shared experts, all layers (with their gate where a model has one) */
    int64_t dense;           /* FFN of the leading dense layers */
    int64_t active;          /* used by one token: k experts per MoE layer, all else, output head, not the embedding */
    int64_t per_expert;      /* one routed expert of one layer */
    int64_t attention_layer; /* one layer's attention */
} fr_params;

/* Loads a model: a built-in name ("qwen3-235b-a22b") or a path to a config.json. Unknown or contradictory fields are
 * errors that name file and field. Built-in configs are compiled in, so no file is needed at run time. */
fr_status fr_model_load(const char *name_or_path, fr_model *out, fr_error *err);

/* Reads a config.json's text; `where` names it in messages. For tests and fuzzing. */
fr_status fr_model_parse(const char *text, size_t length, const char *where, fr_model *out, fr_error *err);

/* Built-in names in alphabetical order; NULL at the end of the list. */
const char *fr_model_builtin(int index);

void fr_model_params(const fr_model *m, fr_params *out);

bool fr_model_is_moe_layer(const fr_model *m, int layer);
/* Sliding window of a layer in tokens, 0 = full attention. */
int fr_model_window(const fr_model *m, int layer);

/* Bytes of one element of routed expert weights, of other weights and of activations under a precision. FP8 is Hugging
 * Face's block-scaled layout: 1 byte plus one fp32 scale per 128x128 block for the linear weights listed there; the
 * rest stays bf16. */
int64_t fr_model_expert_bytes(const fr_model *m, fr_precision p); /* one routed expert of one layer, scales included */
/* A layer, itemised: what a layout splits and what it repeats on every rank. Routed experts apart.
 */
typedef struct {
    int64_t attention;       /* projections */
    int64_t attention_small; /* biases, q/k and latent norms, sinks */
    int64_t norms;           /* the layer's two */
    int64_t router;          /* with its biases; 0 in a dense layer */
    int64_t shared;          /* shared experts */
    int64_t dense;           /* FFN of a leading dense layer */
    int64_t total;
} fr_layer_bytes;
void fr_model_layer_bytes(const fr_model *m, int layer, fr_precision p, fr_layer_bytes *out);
int64_t fr_model_embedding_bytes(const fr_model *m);
int64_t fr_model_head_bytes(const fr_model *m);

/* KV bytes per token of one layer (bf16; MLA stores latent + rotary key). */
int64_t fr_model_kv_bytes_layer(const fr_model *m);

/* FLOPs of the linear parts of one layer per token: projections, router, k experts, shared; attention scores not
 * included. */
double fr_model_linear_flops(const fr_model *m, int layer);
/* FLOPs of attention proper (QK^T and PV, causal counted once) for `queries` new tokens after `prefix` tokens in the
 * cache, one layer: 2 * heads * (head_dim + v_head_dim) * (queries * prefix + queries * (queries + 1) / 2), windowed
 * where the layer has a window. */
double fr_model_attention_flops(const fr_model *m, int layer, int64_t queries, int64_t prefix);
/* FLOPs of the output head for `rows` positions and `candidates` logits each (candidates <= 0: the whole vocabulary).
 */
double fr_model_head_flops(const fr_model *m, int64_t rows, int64_t candidates);

const char *fr_precision_name(fr_precision p);

#endif

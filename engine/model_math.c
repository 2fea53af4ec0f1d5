/* model: parameters, bytes and FLOPs that follow from the dimensions. */
#include "engine/model.h"

#include <string.h>

bool fr_model_is_moe_layer(const fr_model *m, int layer) {
    return layer >= m->dense_layers;
}

int fr_model_window(const fr_model *m, int layer) {
    return m->window && layer % m->window_period == 0 ? m->window : 0;
}

/*
 * The linear weights of one layer's attention, as out x in matrices; the shapes decide parameters, FP8 scale blocks and
 * FLOPs alike. Source: transformers modeling_qwen3_moe.py (GQA; the same in mixtral, gpt_oss, glm4_moe, minimax_m2,
 * olmoe, phimoe) and modeling_deepseek_v3.py (MLA: q_a, q_b or q; kv_a with the rotary key; kv_b; o).
 */
typedef struct {
    int64_t rows, columns;
} matrix;

static int attention_matrices(const fr_model *m, matrix out[5]) {
    int64_t hidden = m->hidden, heads = m->heads, kv = m->kv_heads, d = m->head_dim, dv = m->v_head_dim;
    int n = 0;
    if (m->attention == FR_ATTENTION_MLA) {
        int64_t nope = d - m->rope_dim;
        if (m->q_rank) {
            out[n++] = (matrix){m->q_rank, hidden};
            out[n++] = (matrix){heads * d, m->q_rank};
        } else {
            out[n++] = (matrix){heads * d, hidden};
        }
        out[n++] = (matrix){m->kv_rank + m->rope_dim, hidden};
        out[n++] = (matrix){heads * (nope + dv), m->kv_rank};
    } else {
        out[n++] = (matrix){heads * d, hidden};
        out[n++] = (matrix){kv * d, hidden};
        out[n++] = (matrix){kv * dv, hidden};
    }
    out[n++] = (matrix){hidden, heads * dv};
    return n;
}

static int64_t attention_linear(const fr_model *m) {
    matrix w[5];
    int64_t sum = 0;
    for (int i = attention_matrices(m, w) - 1; i >= 0; i--) sum += w[i].rows * w[i].columns;
    return sum;
}

/* Biases, q/k norms, latent norms, sinks: kept in bf16 whatever the precision. */
static int64_t attention_small(const fr_model *m) {
    int64_t heads = m->heads, kv = m->kv_heads, d = m->head_dim, sum = 0;
    if (m->attention == FR_ATTENTION_MLA) {
        sum += m->q_rank + m->kv_rank; /* q_a_layernorm, kv_a_layernorm */
        if (m->qkv_bias) sum += m->q_rank + m->kv_rank + m->rope_dim;
    } else {
        if (m->qkv_bias) sum += (heads + 2 * kv) * d;
        if (m->qk_norm) sum += m->qk_norm_full ? (heads + kv) * d : 2 * d;
    }
    if (m->o_bias) sum += m->hidden;
    if (m->sinks) sum += heads;
    return sum;
}

static int64_t norm_width(const fr_model *m) { /* LayerNorm has a weight and a bias, RMSNorm a weight */
    return (int64_t)m->hidden * (m->norm_weight_bias ? 2 : 1);
}

static int64_t router_params(const fr_model *m) {
    return (int64_t)m->experts * m->hidden + (m->router_bias ? m->experts : 0);
}

static int64_t gated_ffn(int64_t hidden, int64_t width) { /* gate, up: width x hidden; down: hidden x width */
    return 3 * hidden * width;
}

static int64_t expert_small(const fr_model *m) { /* gpt-oss: gate_up_proj_bias, down_proj_bias */
    return m->expert_bias ? 2 * (int64_t)m->expert_width + m->hidden : 0;
}

/*
 * Counted as transformers counts model.parameters(): the selection bias of DeepSeek-V3, GLM-4.5 and MiniMax-M2
 * (e_score_correction_bias) is a buffer there and not a parameter; its bytes are in fr_layer_bytes.router.
 */
void fr_model_params(const fr_model *m, fr_params *out) {
    int64_t layers = m->layers, dense = m->dense_layers, moe = layers - dense, hidden = m->hidden;
    *out = (fr_params){0};
    out->embedding = (int64_t)m->vocab * hidden;
    out->head = m->tied_embeddings ? 0 : (int64_t)m->vocab * hidden + (m->head_bias ? m->vocab : 0);
    out->attention_layer = attention_linear(m) + attention_small(m);
    out->attention = layers * out->attention_layer;
    out->norms = (2 * layers + 1) * norm_width(m);
    out->routers = moe * router_params(m);
    out->per_expert = gated_ffn(hidden, m->expert_width) + expert_small(m);
    out->experts = moe * m->experts * out->per_expert;
    out->shared = moe * gated_ffn(hidden, m->shared_width);
    out->dense = dense * gated_ffn(hidden, m->dense_width);
    out->total = out->embedding + out->head + out->attention + out->norms + out->routers + out->experts + out->shared +
                 out->dense;
    /* The head multiplies every position that needs logits, also when its weights are the embedding's. */
    int64_t head_used = m->tied_embeddings ? out->embedding : out->head;
    out->active = out->attention + out->norms + out->routers + out->shared + out->dense +
                  moe * m->top_k * out->per_expert + head_used;
}

/*
 * Bytes of one linear weight. FP8: one byte an element and one fp32 scale per 128 x 128 block (weight_block_size of the
 * FP8 checkpoints of Qwen3, DeepSeek-V3 and MiniMax-M2 on Hugging Face), each matrix padded to whole blocks by itself.
 */
static int64_t linear_bytes(int64_t rows, int64_t columns, fr_precision p) {
    if (p == FR_FP8) return rows * columns + 4 * fr_ceil_div(rows, 128) * fr_ceil_div(columns, 128);
    return 2 * rows * columns;
}

static int64_t ffn_bytes(int64_t hidden, int64_t width, fr_precision p) {
    return width ? 2 * linear_bytes(width, hidden, p) + linear_bytes(hidden, width, p) : 0;
}

int64_t fr_model_expert_bytes(const fr_model *m, fr_precision p) {
    return ffn_bytes(m->hidden, m->expert_width, p) + 2 * expert_small(m);
}

void fr_model_layer_bytes(const fr_model *m, int layer, fr_precision p, fr_layer_bytes *out) {
    matrix w[5];
    bool moe = fr_model_is_moe_layer(m, layer);
    *out = (fr_layer_bytes){0};
    for (int i = attention_matrices(m, w) - 1; i >= 0; i--) out->attention += linear_bytes(w[i].rows, w[i].columns, p);
    out->attention_small = 2 * attention_small(m);
    out->norms = 2 * 2 * norm_width(m);
    if (moe) { /* bf16; the selection bias is fp32 (transformers keeps it so, as torch.zeros) */
        out->router = 2 * router_params(m) + (m->router_score_bias ? 4 * m->experts : 0);
        out->shared = ffn_bytes(m->hidden, m->shared_width, p);
    } else {
        out->dense = ffn_bytes(m->hidden, m->dense_width, p);
    }
    out->total = out->attention + out->attention_small + out->norms + out->router + out->shared + out->dense;
}

int64_t fr_model_embedding_bytes(const fr_model *m) {
    return 2 * (int64_t)m->vocab * m->hidden;
}

int64_t fr_model_head_bytes(const fr_model *m) {
    return m->tied_embeddings ? 0 : 2 * ((int64_t)m->vocab * m->hidden + (m->head_bias ? m->vocab : 0));
}

/* GQA: K and V of every KV head. MLA: the latent and the shared rotary key (DeepSeek-V2, arXiv 2405.04434, section
 * 2.1.2). bf16. */
int64_t fr_model_kv_bytes_layer(const fr_model *m) {
    if (m->attention == FR_ATTENTION_MLA) return 2 * ((int64_t)m->kv_rank + m->rope_dim);
    return 2 * (int64_t)m->kv_heads * (m->head_dim + m->v_head_dim);
}

/* Every linear weight that a token passes costs one multiply-add: 2 FLOPs a weight. MLA counts the uncompressed form
 * that prefill runs (K and V rebuilt from the latent by kv_b). */
double fr_model_linear_flops(const fr_model *m, int layer) {
    double weights = (double)attention_linear(m);
    if (fr_model_is_moe_layer(m, layer))
        weights += (double)m->experts * m->hidden + m->top_k * (double)gated_ffn(m->hidden, m->expert_width) +
                   (double)gated_ffn(m->hidden, m->shared_width);
    else
        weights += (double)gated_ffn(m->hidden, m->dense_width);
    return 2 * weights;
}

/* (query, key) pairs of `queries` tokens after `prefix`: query i (from 0) sees prefix + i + 1 keys, at most `window`.
 */
static double attention_pairs(int64_t queries, int64_t prefix, int64_t window) {
    double q = (double)queries, p = (double)prefix;
    if (!window || prefix + queries <= window) return q * p + q * (q + 1) / 2;
    int64_t growing = window > prefix ? window - prefix : 0; /* queries that still see every key */
    double g = (double)growing;
    return g * p + g * (g + 1) / 2 + (q - g) * (double)window;
}

double fr_model_attention_flops(const fr_model *m, int layer, int64_t queries, int64_t prefix) {
    return 2.0 * m->heads * (m->head_dim + m->v_head_dim) * attention_pairs(queries, prefix, fr_model_window(m, layer));
}

double fr_model_head_flops(const fr_model *m, int64_t rows, int64_t candidates) {
    double width = (double)(candidates > 0 && candidates < m->vocab ? candidates : m->vocab);
    return 2.0 * (double)rows * m->hidden * width;
}

static const char *const precision_names[FR_PRECISIONS] = {"bf16", "fp8"};

const char *fr_precision_name(fr_precision p) {
    return (unsigned)p < FR_PRECISIONS ? precision_names[p] : "unknown";
}

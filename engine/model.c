/* model: reading a Hugging Face config.json. What follows from the dimensions is in model_math.c. */
#include "engine/model.h"

#include "engine/builtin/builtin.h"
#include "engine/json.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

/* Sane ranges of a dimension: no transformer is near them, and products of three stay far inside int64. */
#define MAX_DIM     (1 << 20)
#define MAX_LAYERS  4096
#define MAX_EXPERTS 65536
#define MAX_WIDTH   (1 << 20)

/* What the families name differently. Source: transformers 4.5x/5.x configuration_*.py and modeling_*.py of each. */
typedef struct {
    const char *type;       /* model_type */
    const char *experts;    /* key of the number of routed experts */
    const char *width;      /* key of an expert's width */
    bool mla;               /* multi-head latent attention */
    bool shared;            /* n_shared_experts, first_k_dense_replace */
    bool qk_norm;           /* q/k norm without being asked */
    bool qk_norm_key;       /* use_qk_norm decides, default false */
    bool qk_norm_full;      /* over all heads' width */
    bool o_bias_follows;    /* attention_bias covers the output projection too */
    bool renormalise;       /* default of norm_topk_prob */
    bool renormalise_fixed; /* there is no such key */
    bool score_bias;        /* selection-only bias (a buffer, not a parameter, in transformers) */
    bool gpt_oss;           /* biases on router and experts, sinks, alternating windows */
    bool layer_norm;        /* LayerNorm with bias */
    double eps;             /* default of rms_norm_eps */
} family;

static const family families[] = {
    {.type = "qwen3_moe",
     .experts = "num_experts",
     .width = "moe_intermediate_size",
     .qk_norm = true,
     .o_bias_follows = true,
     .eps = 1e-6},
    {.type = "mixtral",
     .experts = "num_local_experts",
     .width = "intermediate_size",
     .renormalise = true,
     .renormalise_fixed = true,
     .eps = 1e-5},
    {.type = "deepseek_v3",
     .experts = "n_routed_experts",
     .width = "moe_intermediate_size",
     .mla = true,
     .shared = true,
     .o_bias_follows = true,
     .renormalise = true,
     .score_bias = true,
     .eps = 1e-6},
    {.type = "kimi_k2",
     .experts = "n_routed_experts",
     .width = "moe_intermediate_size",
     .mla = true,
     .shared = true,
     .o_bias_follows = true,
     .renormalise = true,
     .score_bias = true,
     .eps = 1e-6},
    {.type = "glm4_moe",
     .experts = "n_routed_experts",
     .width = "moe_intermediate_size",
     .shared = true,
     .qk_norm_key = true,
     .renormalise = true,
     .score_bias = true,
     .eps = 1e-5},
    {.type = "gpt_oss",
     .experts = "num_local_experts",
     .width = "intermediate_size",
     .o_bias_follows = true,
     .renormalise = true, /* softmax over the chosen k logits: the weights sum to 1 */
     .renormalise_fixed = true,
     .gpt_oss = true,
     .eps = 1e-5},
    {.type = "minimax_m2",
     .experts = "num_local_experts",
     .width = "intermediate_size",
     .qk_norm_key = true,
     .qk_norm_full = true,
     .renormalise = true,
     .renormalise_fixed = true,
     .score_bias = true,
     .eps = 1e-6},
    {.type = "olmoe",
     .experts = "num_experts",
     .width = "intermediate_size",
     .qk_norm = true,
     .qk_norm_full = true,
     .o_bias_follows = true,
     .eps = 1e-5},
    {.type = "phimoe", /* sparsemixer weights are not renormalised */
     .experts = "num_local_experts",
     .width = "intermediate_size",
     .o_bias_follows = true,
     .renormalise_fixed = true,
     .layer_norm = true,
     .eps = 1e-5},
};
enum { FAMILIES = sizeof families / sizeof *families };

static const family *family_by_type(const char *type) {
    for (int i = 0; i < FAMILIES; i++)
        if (strcmp(families[i].type, type) == 0) return &families[i];
    return NULL;
}

static fr_status read_attention(const fr_json *c, const family *f, fr_model *m, fr_error *err) {
    FR_TRY(fr_json_int32(c, "num_attention_heads", FR_REQUIRED, 1, MAX_DIM, &m->heads, err));
    bool bias = false;
    FR_TRY(fr_json_bool(c, "attention_bias", FR_OPTIONAL, &bias, err));
    m->qkv_bias = bias;
    m->o_bias = bias && f->o_bias_follows;
    if (f->mla) {
        int nope = 0;
        m->attention = FR_ATTENTION_MLA;
        m->kv_heads = m->heads;
        FR_TRY(fr_json_int32(c, "q_lora_rank", FR_OPTIONAL, 1, MAX_DIM, &m->q_rank, err));
        FR_TRY(fr_json_int32(c, "kv_lora_rank", FR_REQUIRED, 1, MAX_DIM, &m->kv_rank, err));
        FR_TRY(fr_json_int32(c, "qk_nope_head_dim", FR_REQUIRED, 1, MAX_DIM / 2, &nope, err));
        FR_TRY(fr_json_int32(c, "qk_rope_head_dim", FR_REQUIRED, 1, MAX_DIM / 2, &m->rope_dim, err));
        FR_TRY(fr_json_int32(c, "v_head_dim", FR_REQUIRED, 1, MAX_DIM, &m->v_head_dim, err));
        m->head_dim = nope + m->rope_dim;
        return FR_OK;
    }
    m->kv_heads = m->heads;
    FR_TRY(fr_json_int32(c, "num_key_value_heads", FR_OPTIONAL, 1, MAX_DIM, &m->kv_heads, err));
    if (m->heads % m->kv_heads)
        return fr_json_fail(c, "num_key_value_heads", err, "expected a divisor of num_attention_heads (%d), got %d",
                            m->heads, m->kv_heads);
    FR_TRY(fr_json_int32(c, "head_dim", FR_OPTIONAL, 1, MAX_DIM, &m->head_dim, err));
    if (m->head_dim == 0) {
        if (m->hidden % m->heads)
            return fr_json_fail(c, "head_dim", err, "expected a number, as hidden_size %d is no multiple of %d heads",
                                m->hidden, m->heads);
        m->head_dim = m->hidden / m->heads;
    }
    m->v_head_dim = m->head_dim;
    m->qk_norm = f->qk_norm;
    if (f->qk_norm_key) FR_TRY(fr_json_bool(c, "use_qk_norm", FR_OPTIONAL, &m->qk_norm, err));
    m->qk_norm_full = m->qk_norm && f->qk_norm_full;
    m->sinks = f->gpt_oss;
    return FR_OK;
}

static fr_status layer_slides(const fr_json *types, int layer, bool *out, fr_error *err) {
    fr_json item;
    char type[32];
    fr_json_item(types, (size_t)layer, &item);
    FR_TRY(fr_json_as_text(&item, type, sizeof type, err));
    *out = strcmp(type, "sliding_attention") == 0;
    if (!*out && strcmp(type, "full_attention") != 0)
        return fr_json_fail(&item, NULL, err, "expected sliding_attention or full_attention, got \"%s\"", type);
    return FR_OK;
}

/* gpt-oss's layer_types: "sliding_attention" on layers l % period == 0, which is all that a model can say here. */
static fr_status read_layer_types(const fr_json *c, fr_model *m, fr_error *err) {
    fr_json types;
    FR_TRY(fr_json_array(c, "layer_types", FR_OPTIONAL, &types, err));
    if (!types.value) return FR_OK;
    if (fr_json_count(&types) != (size_t)m->layers)
        return fr_json_fail(&types, NULL, err, "expected one entry for each of %d layers, got %zu", m->layers,
                            fr_json_count(&types));
    bool slides, any;
    FR_TRY(layer_slides(&types, 0, &any, err));
    m->window_period = m->layers; /* unless a second layer slides */
    for (int l = 1; l < m->layers; l++) {
        FR_TRY(layer_slides(&types, l, &slides, err));
        if (slides && any && m->window_period == m->layers) m->window_period = l;
        if (slides != (any && l % m->window_period == 0))
            return fr_json_fail(&types, NULL, err,
                                "expected sliding layers at a fixed period from layer 0 on, got "
                                "another pattern at layer %d",
                                l);
    }
    if (!any) m->window = 0;
    return FR_OK;
}

static fr_status read_window(const fr_json *c, const family *f, fr_model *m, fr_error *err) {
    bool used = true;
    m->window_period = 1;
    FR_TRY(fr_json_bool(c, "use_sliding_window", FR_OPTIONAL, &used, err));
    FR_TRY(fr_json_int32(c, "sliding_window", FR_OPTIONAL, 1, 1 << 30, &m->window, err));
    if (!used) m->window = 0;
    if (!f->gpt_oss || !m->window) return FR_OK;
    m->window_period = 2; /* transformers' default where layer_types is absent: layers 0, 2, 4, ... slide */
    return read_layer_types(c, m, err);
}

/* Layers without experts: only leading ones can be said (DeepSeek-V3's first_k_dense_replace). */
static fr_status read_dense_layers(const fr_json *c, const family *f, fr_model *m, fr_error *err) {
    fr_json list, item;
    int every = 1;
    FR_TRY(fr_json_int32(c, f->shared ? "moe_layer_freq" : "decoder_sparse_step", FR_OPTIONAL, 1, MAX_LAYERS, &every,
                         err));
    if (every != 1)
        return fr_json_fail(c, f->shared ? "moe_layer_freq" : "decoder_sparse_step", err,
                            "expected 1 (experts in every layer after the leading dense ones), got %d", every);
    if (f->shared) {
        FR_TRY(fr_json_int32(c, "first_k_dense_replace", FR_OPTIONAL, 0, MAX_LAYERS, &m->dense_layers, err));
    } else {
        FR_TRY(fr_json_array(c, "mlp_only_layers", FR_OPTIONAL, &list, err));
        for (size_t i = 0; list.value && i < fr_json_count(&list); i++) {
            int64_t layer;
            fr_json_item(&list, i, &item);
            FR_TRY(fr_json_as_int(&item, 0, m->layers - 1, &layer, err));
            if (layer != (int64_t)i)
                return fr_json_fail(&item, NULL, err, "expected leading layers only (0, 1, 2, ... in order)");
            m->dense_layers++;
        }
    }
    if (m->dense_layers >= m->layers)
        return fr_json_fail(c, "first_k_dense_replace", err, "expected fewer than num_hidden_layers (%d), got %d",
                            m->layers, m->dense_layers);
    if (m->dense_layers) FR_TRY(fr_json_int32(c, "intermediate_size", FR_REQUIRED, 1, MAX_WIDTH, &m->dense_width, err));
    return FR_OK;
}

static fr_status read_experts(const fr_json *c, const family *f, fr_model *m, fr_error *err) {
    /* transformers 5 writes num_local_experts for families that had num_experts */
    const char *experts = fr_json_has(c, f->experts) ? f->experts : "num_local_experts";
    FR_TRY(fr_json_int32(c, fr_json_has(c, experts) ? experts : f->experts, FR_REQUIRED, 1, MAX_EXPERTS, &m->experts,
                         err));
    FR_TRY(fr_json_int32(c, "num_experts_per_tok", FR_REQUIRED, 1, MAX_EXPERTS, &m->top_k, err));
    if (m->top_k > m->experts)
        return fr_json_fail(c, "num_experts_per_tok", err, "expected at most %s (%d), got %d", f->experts, m->experts,
                            m->top_k);
    FR_TRY(fr_json_int32(c, f->width, FR_REQUIRED, 1, MAX_WIDTH, &m->expert_width, err));
    if (f->shared) {
        FR_TRY(fr_json_int32(c, "n_shared_experts", FR_OPTIONAL, 0, 1024, &m->shared_experts, err));
        m->shared_width = m->shared_experts * m->expert_width;
    }
    /* Families without shared experts in transformers; some configs carry the key with 0. */
    static const char *const none[] = {"shared_expert_intermediate_size", "shared_intermediate_size"};
    for (int i = 0; i < 2; i++) {
        int width = 0;
        FR_TRY(fr_json_int32(c, none[i], FR_OPTIONAL, 0, MAX_WIDTH, &width, err));
        if (width) return fr_json_fail(c, none[i], err, "expected 0 for model_type %s, got %d", f->type, width);
    }
    m->expert_bias = m->router_bias = f->gpt_oss;
    m->router_score_bias = f->score_bias;
    if (strcmp(f->type, "minimax_m2") == 0)
        FR_TRY(fr_json_bool(c, "use_routing_bias", FR_OPTIONAL, &m->router_score_bias, err));
    m->renormalise = f->renormalise;
    if (!f->renormalise_fixed) FR_TRY(fr_json_bool(c, "norm_topk_prob", FR_OPTIONAL, &m->renormalise, err));
    m->router_scale = 1;
    if (f->shared) FR_TRY(fr_json_double(c, "routed_scaling_factor", FR_OPTIONAL, 1e-6, 1e6, &m->router_scale, err));
    return FR_OK;
}

/* Single dimensions in range can still multiply to more than any count holds; 10^15 parameters is a thousand times the
 * largest model known, and its bytes and FLOPs stay far inside int64 and double. */
static fr_status check_size(const fr_json *c, const fr_model *m, fr_error *err) {
    double experts = 3.0 * m->experts * m->hidden * m->expert_width;
    double weights = 2.0 * m->vocab * m->hidden + m->layers * experts;
    for (int l = 0; l < m->layers; l++) weights += fr_model_linear_flops(m, l) / 2;
    if (weights > 1e15) return fr_json_fail(c, NULL, err, "expected at most 1e15 parameters, got %g", weights);
    return FR_OK;
}

static fr_status read_config(const fr_json *c, fr_model *m, fr_error *err) {
    FR_TRY(fr_json_text(c, "model_type", FR_REQUIRED, m->family, sizeof m->family, err));
    const family *f = family_by_type(m->family);
    if (!f)
        return fr_json_fail(c, "model_type", err,
                            "expected qwen3_moe, mixtral, deepseek_v3, kimi_k2, gpt_oss, glm4_moe, minimax_m2, olmoe "
                            "or phimoe, got \"%s\"",
                            m->family);
    FR_TRY(fr_json_int32(c, "num_hidden_layers", FR_REQUIRED, 1, MAX_LAYERS, &m->layers, err));
    FR_TRY(fr_json_int32(c, "hidden_size", FR_REQUIRED, 1, MAX_DIM, &m->hidden, err));
    FR_TRY(fr_json_int32(c, "vocab_size", FR_REQUIRED, 1, 1 << 24, &m->vocab, err));
    FR_TRY(fr_json_bool(c, "tie_word_embeddings", FR_OPTIONAL, &m->tied_embeddings, err));
    FR_TRY(read_attention(c, f, m, err));
    FR_TRY(read_window(c, f, m, err));
    FR_TRY(read_dense_layers(c, f, m, err));
    FR_TRY(read_experts(c, f, m, err));
    m->norm_weight_bias = f->layer_norm;
    FR_TRY(fr_json_bool(c, "lm_head_bias", FR_OPTIONAL, &m->head_bias, err));
    if (m->head_bias && !f->layer_norm)
        return fr_json_fail(c, "lm_head_bias", err, "expected false for model_type %s", f->type);
    m->norm_eps = f->eps;
    FR_TRY(fr_json_double(c, "rms_norm_eps", FR_OPTIONAL, 0, 1, &m->norm_eps, err));
    m->rope_theta = 10000; /* RoFormer's base; transformers 5 moved the key into rope_parameters */
    fr_json rope;
    FR_TRY(fr_json_object(c, "rope_parameters", FR_OPTIONAL, &rope, err));
    if (rope.value) FR_TRY(fr_json_double(&rope, "rope_theta", FR_OPTIONAL, 1, 1e12, &m->rope_theta, err));
    FR_TRY(fr_json_double(c, "rope_theta", FR_OPTIONAL, 1, 1e12, &m->rope_theta, err));
    FR_TRY(fr_json_int32(c, "max_position_embeddings", FR_OPTIONAL, 1, 1 << 30, &m->max_positions, err));
    return check_size(c, m, err);
}

/* "…/Qwen--Qwen3-30B-A3B_config.json" and "…/Qwen3-30B-A3B/config.json" are both qwen3-30b-a3b. */
static void name_from(const char *where, char *out, size_t size) {
    char path[512];
    snprintf(path, sizeof path, "%s", where);
    char *base = strrchr(path, '/');
    if (base && strcmp(base, "/config.json") == 0) {
        *base = 0;
        base = strrchr(path, '/');
    }
    base = base ? base + 1 : path;
    for (char *owner; (owner = strstr(base, "--"));) base = owner + 2;
    static const char *const endings[] = {".json", "_config", "_dims_only"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t have = strlen(base), cut = strlen(endings[i]);
        if (have > cut && strcmp(base + have - cut, endings[i]) == 0) base[have - cut] = 0;
    }
    size_t n = 0;
    for (; base[n] && n + 1 < size; n++) out[n] = (char)tolower((unsigned char)base[n]);
    out[n] = 0;
}

fr_status fr_model_parse(const char *text, size_t length, const char *where, fr_model *out, fr_error *err) {
    fr_json root;
    *out = (fr_model){0};
    FR_TRY(fr_json_open(text, length, where, &root, err));
    fr_status status = read_config(&root, out, err);
    fr_json_close(&root);
    name_from(where, out->name, sizeof out->name);
    return status;
}

const char *fr_model_builtin(int index) {
    for (int i = 0; i <= index; i++)
        if (!fr_builtin_models[i].name) return NULL;
    return index < 0 ? NULL : fr_builtin_models[index].name;
}

fr_status fr_model_load(const char *name_or_path, fr_model *out, fr_error *err) {
    const char *slash = strchr(name_or_path, '/'); /* "Qwen/Qwen3-30B-A3B" names the model, too */
    const char *bare = slash && !strchr(slash + 1, '/') ? slash + 1 : name_or_path;
    for (const fr_builtin *b = fr_builtin_models; b->name; b++)
        if (strcasecmp(b->name, name_or_path) == 0 || strcasecmp(b->name, bare) == 0)
            return fr_model_parse(b->text, b->length, b->name, out, err);
    struct stat info;
    size_t n = strlen(name_or_path);
    bool looks_like_file = n > 5 && strcmp(name_or_path + n - 5, ".json") == 0;
    if (stat(name_or_path, &info) != 0 && !looks_like_file) {
        fr_text names = {0};
        for (const fr_builtin *b = fr_builtin_models; b->name; b++)
            fr_text_add(&names, "%s%s", b == fr_builtin_models ? "" : ", ", b->name);
        fr_status status = fr_fail(err, FR_BAD_INPUT, "model '%.100s': expected a path to a config.json or one of %s",
                                   name_or_path, names.text ? names.text : "");
        fr_text_free(&names);
        return status;
    }
    fr_json root;
    *out = (fr_model){0};
    FR_TRY(fr_json_open_file(name_or_path, &root, err));
    fr_status status = read_config(&root, out, err);
    fr_json_close(&root);
    name_from(name_or_path, out->name, sizeof out->name);
    return status;
}

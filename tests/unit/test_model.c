/* Model arithmetic against transformers' meta-device models (tests/golden/hf_params.json) and closed forms. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "engine/json.h"
#include "engine/model.h"

static void near(double got, double expected, double within) {
    if (!(fabs(got - expected) <= within)) fail_msg("%.9g is not within %g of %.9g", got, within, expected);
}

static fr_model builtin(const char *name) {
    fr_model m;
    fr_error err = {0};
    if (fr_model_load(name, &m, &err) != FR_OK) fail_msg("%s", err.text);
    return m;
}

/* Built-in name -> key in hf_params.json. */
static const char *const golden[][2] = {
    {"deepseek-v3", "deepseek-ai--DeepSeek-V3_config.json"},
    {"glm-4.5", "zai-org--GLM-4.5_dims_only.json"},
    {"gpt-oss-120b", "openai--gpt-oss-120b_config.json"},
    {"gpt-oss-20b", "openai--gpt-oss-20b_config.json"},
    {"kimi-k2", "moonshotai--Kimi-K2-Instruct_config.json"},
    {"minimax-m2.5", "MiniMaxAI--MiniMax-M2.5_config.json"},
    {"mixtral-8x22b", "mistralai--Mixtral-8x22B-v0.1_config.json"},
    {"mixtral-8x7b", "mistralai--Mixtral-8x7B-v0.1_config.json"},
    {"olmoe-1b-7b", "allenai--OLMoE-1B-7B-0924_dims_only.json"},
    {"phi-mini-moe", "microsoft--Phi-mini-MoE-instruct_config.json"},
    {"qwen3-235b-a22b", "Qwen--Qwen3-235B-A22B_config.json"},
    {"qwen3-30b-a3b", "Qwen--Qwen3-30B-A3B_config.json"},
    {"qwen3-coder-480b-a35b", "Qwen--Qwen3-Coder-480B-A35B-Instruct_config.json"},
};
enum { MODELS = sizeof golden / sizeof *golden };

static int64_t hf(const fr_json *model, const char *key) {
    int64_t value = -1;
    fr_error err = {0};
    if (fr_json_int(model, key, FR_REQUIRED, 0, INT64_MAX, &value, &err) != FR_OK) fail_msg("%s", err.text);
    return value;
}

static void test_parameters_equal_transformers(void **state) {
    (void)state;
    fr_json root, models, one, layers, layer;
    fr_error err = {0};
    if (fr_json_open_file("tests/golden/hf_params.json", &root, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(fr_json_object(&root, "models", FR_REQUIRED, &models, &err), FR_OK);
    for (int i = 0; i < MODELS; i++) {
        assert_string_equal(fr_model_builtin(i), golden[i][0]); /* all of them, in this order */
        fr_model m = builtin(golden[i][0]);
        if (strcmp(m.name, "glm-4.5") == 0) {
            /* The reference file lacks attention_bias and use_qk_norm, so transformers built it without them. */
            assert_true(m.qkv_bias && !m.o_bias && m.qk_norm && !m.qk_norm_full);
            m.qkv_bias = m.qk_norm = false;
        }
        fr_params p;
        fr_model_params(&m, &p);
        assert_int_equal(fr_json_object(&models, golden[i][1], FR_REQUIRED, &one, &err), FR_OK);
        assert_int_equal(p.total, hf(&one, "total"));
        assert_int_equal(p.embedding, hf(&one, "embedding"));
        assert_int_equal(p.head, hf(&one, "lm_head"));
        assert_int_equal(p.experts, hf(&one, "routed_experts"));
        assert_int_equal(p.routers, hf(&one, "router"));
        assert_int_equal(p.shared, hf(&one, "shared_experts"));
        assert_int_equal(fr_json_array(&one, "layers", FR_REQUIRED, &layers, &err), FR_OK);
        int64_t attention = 0, rest = hf(&one, "final_norm");
        for (size_t l = 0; l < fr_json_count(&layers); l++) {
            fr_json_item(&layers, l, &layer);
            int64_t count = hf(&layer, "last") - hf(&layer, "first") + 1;
            assert_int_equal(p.attention_layer, hf(&layer, "attention"));
            attention += count * hf(&layer, "attention");
            rest += count * hf(&layer, "other"); /* norms and dense FFN */
        }
        assert_int_equal(p.attention, attention);
        assert_int_equal(p.norms + p.dense, rest);
        assert_int_equal(p.total,
                         p.embedding + p.head + p.attention + p.norms + p.routers + p.experts + p.shared + p.dense);
    }
    assert_null(fr_model_builtin(MODELS));
    assert_null(fr_model_builtin(-1));
    fr_json_close(&root);
}

/* The figures of the Qwen3 report: 235.1 B in all, 227.1 B in experts, 21.6 B active with head, without embedding. */
static void test_qwen3_235b(void **state) {
    (void)state;
    fr_model m = builtin("Qwen/Qwen3-235B-A22B");
    fr_params p;
    fr_model_params(&m, &p);
    assert_string_equal(m.name, "qwen3-235b-a22b");
    near((double)p.total / 1e9, 235.1, 0.05);
    near((double)p.experts / 1e9, 227.1, 0.05);
    near((double)p.active / 1e9, 21.57, 0.005);
    assert_int_equal(fr_model_kv_bytes_layer(&m) * m.layers, 192512); /* 192.5 KB per token */
    /* 0.4456 GFLOP per token and layer. */
    near(fr_model_linear_flops(&m, 0) / 1e9, 0.4456, 0.0001);
    assert_int_equal(fr_model_expert_bytes(&m, FR_BF16), 3 * 4096 * 1536 * 2);
    assert_int_equal(fr_model_expert_bytes(&m, FR_FP8), 3 * 4096 * 1536 + 3 * 32 * 12 * 4);
    /* bf16 bytes are twice the parameters, whatever the way of summing. */
    fr_layer_bytes b;
    fr_model_layer_bytes(&m, 5, FR_BF16, &b);
    assert_int_equal(m.layers * (b.total + m.experts * fr_model_expert_bytes(&m, FR_BF16)) +
                         fr_model_embedding_bytes(&m) + fr_model_head_bytes(&m) + 2 * m.hidden,
                     2 * p.total);
}

static void test_bytes_equal_parameters(void **state) {
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        fr_model m = builtin(golden[i][0]);
        fr_params p;
        fr_model_params(&m, &p);
        int64_t sum =
            fr_model_embedding_bytes(&m) + fr_model_head_bytes(&m) + 2 * m.hidden * (m.norm_weight_bias ? 2 : 1);
        int moe = 0;
        for (int l = 0; l < m.layers; l++) {
            fr_layer_bytes b;
            fr_model_layer_bytes(&m, l, FR_BF16, &b);
            sum += b.total;
            if (fr_model_is_moe_layer(&m, l)) {
                moe++;
                sum += m.experts * fr_model_expert_bytes(&m, FR_BF16);
                if (m.router_score_bias) sum -= 4 * m.experts; /* a buffer, not a parameter */
            }
        }
        assert_int_equal(moe, m.layers - m.dense_layers);
        assert_int_equal(sum, 2 * p.total);
        assert_true(fr_model_expert_bytes(&m, FR_FP8) > p.per_expert); /* the scales */
        assert_true((double)fr_model_expert_bytes(&m, FR_FP8) < 1.01 * (double)p.per_expert);
    }
}

/* Attention FLOPs by counting pairs one by one. */
static double pairs_by_counting(int64_t queries, int64_t prefix, int64_t window) {
    double sum = 0;
    for (int64_t q = 0; q < queries; q++) {
        int64_t seen = prefix + q + 1;
        sum += (double)(window && seen > window ? window : seen);
    }
    return sum;
}

static void test_attention_flops(void **state) {
    (void)state;
    fr_model q = builtin("qwen3-235b-a22b"), g = builtin("gpt-oss-120b"), d = builtin("deepseek-v3");
    assert_int_equal(fr_model_window(&g, 0), 128);
    assert_int_equal(fr_model_window(&g, 1), 0);
    assert_int_equal(fr_model_window(&g, 34), 128);
    static const int64_t cases[][2] = {{1, 0},    {4096, 0}, {10, 100}, {128, 0},    {129, 0}, {100, 28},
                                       {100, 29}, {5, 127},  {5, 128},  {300, 1000}, {0, 50}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t n = cases[i][0], p = cases[i][1];
        assert_true(fr_model_attention_flops(&q, 0, n, p) == 2.0 * 64 * 256 * pairs_by_counting(n, p, 0));
        assert_true(fr_model_attention_flops(&d, 7, n, p) == 2.0 * 128 * 320 * pairs_by_counting(n, p, 0));
        assert_true(fr_model_attention_flops(&g, 0, n, p) == 2.0 * 64 * 128 * pairs_by_counting(n, p, 128));
        assert_true(fr_model_attention_flops(&g, 1, n, p) == 2.0 * 64 * 128 * pairs_by_counting(n, p, 0));
    }
    /* +117 % at 32K, +468 % at 128K over the linear FLOPs: 2 * S * heads * head_dim * L per token, twice over
     * (facts: moe-prefill, section 3). */
    fr_params params;
    fr_model_params(&q, &params);
    double linear = 2.0 * (double)params.active;
    double at32k = 94 * fr_model_attention_flops(&q, 0, 32768, 0) / 32768 / linear;
    near(at32k, 1.17, 0.01);
}

static void test_flops_follow_parameters(void **state) {
    (void)state;
    /* 2 FLOPs per active linear weight: the layers' sum plus the head is 2 * active, but for norms and small vectors.
     */
    for (int i = 0; i < MODELS; i++) {
        fr_model m = builtin(golden[i][0]);
        fr_params p;
        fr_model_params(&m, &p);
        double sum = fr_model_head_flops(&m, 1, 0);
        for (int l = 0; l < m.layers; l++) sum += fr_model_linear_flops(&m, l);
        assert_true(sum <= 2.0 * (double)p.active);
        assert_true(sum > 2.0 * (double)p.active * 0.999);
    }
    fr_model m = builtin("qwen3-30b-a3b");
    assert_true(fr_model_head_flops(&m, 3, 2) == 2.0 * 3 * 2048 * 2);
    assert_true(fr_model_head_flops(&m, 3, 0) == 2.0 * 3 * 2048 * 151936);
}

static void test_mla_kv(void **state) {
    (void)state;
    fr_model m = builtin("deepseek-v3");
    assert_int_equal(m.dense_layers, 3);
    assert_int_equal(m.head_dim, 192);
    assert_int_equal(fr_model_kv_bytes_layer(&m), (512 + 64) * 2);
    assert_true(m.router_score_bias && m.renormalise);
    assert_true(m.router_scale == 2.5);
}

#define QWEN                                                                                                           \
    "\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 4, \"hidden_size\": 64, \"vocab_size\": 100, "              \
    "\"num_attention_heads\": 4, \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 32"

static void refuse(const char *text, const char *part) {
    fr_model m;
    fr_error err = {0};
    assert_int_equal(fr_model_parse(text, strlen(text), "c.json", &m, &err), FR_BAD_INPUT);
    if (!strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
}

static void test_refuses(void **state) {
    (void)state;
    refuse("{\"model_type\": \"llama\"}", "model_type: expected qwen3_moe");
    refuse("{" QWEN "}", "num_experts");
    refuse("{" QWEN ", \"num_experts\": 1}", "num_experts_per_tok: expected at most num_experts (1), got 2");
    refuse("{" QWEN ", \"num_experts\": -8}", "num_experts: expected a whole number from 1");
    refuse("{" QWEN ", \"num_experts\": 8, \"num_key_value_heads\": 3}", "num_key_value_heads: expected a divisor");
    refuse("{" QWEN ", \"num_experts\": 8, \"decoder_sparse_step\": 2}", "decoder_sparse_step");
    refuse("{" QWEN ", \"num_experts\": 8, \"mlp_only_layers\": [2]}", "mlp_only_layers[0]");
    refuse("{" QWEN ", \"num_experts\": 8, \"mlp_only_layers\": [0,1,2,3], \"intermediate_size\": 8}",
           "fewer than num_hidden_layers");
    refuse("{" QWEN ", \"num_experts\": 8, \"shared_expert_intermediate_size\": 9}", "expected 0");
    refuse("{" QWEN ", \"num_experts\": 8, \"lm_head_bias\": true}", "lm_head_bias");
    refuse("{\"model_type\": \"mixtral\", \"num_hidden_layers\": 4096, \"hidden_size\": 1048576, \"vocab_size\": 9, "
           "\"num_attention_heads\": 1048576, \"num_local_experts\": 65536, \"num_experts_per_tok\": 65536, "
           "\"intermediate_size\": 1048576, \"head_dim\": 1048576}",
           "at most 1e15 parameters");
    refuse("{\"hidden_size\": 1e300}", "model_type");
    fr_model m;
    fr_error err = {0};
    assert_int_equal(fr_model_load("qwen9-1t", &m, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "qwen3-30b-a3b"));
    assert_int_equal(fr_model_load("nowhere/config.json", &m, &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "cannot open"));
}

static void test_reads_variants(void **state) {
    (void)state;
    fr_model m;
    fr_error err = {0};
    const char *text = "{" QWEN ", \"num_experts\": 8, \"mlp_only_layers\": [0], \"intermediate_size\": 256,"
                       " \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]},"
                       " \"rope_parameters\": {\"rope_theta\": 5e5}, \"tie_word_embeddings\": true}";
    assert_int_equal(fr_model_parse(text, strlen(text), "a/My-MoE/config.json", &m, &err), FR_OK);
    assert_string_equal(m.name, "my-moe");
    assert_int_equal(m.dense_layers, 1);
    assert_int_equal(m.dense_width, 256);
    assert_int_equal(m.head_dim, 16);
    assert_true(m.rope_theta == 5e5);
    fr_params p;
    fr_model_params(&m, &p);
    assert_int_equal(p.head, 0);
    assert_int_equal(fr_model_head_bytes(&m), 0);
    assert_int_equal(p.dense, 3 * 64 * 256);
}

#define OSS                                                                                                            \
    "\"model_type\": \"gpt_oss\", \"num_hidden_layers\": 4, \"hidden_size\": 64, \"vocab_size\": 100, "                \
    "\"num_attention_heads\": 4, \"num_experts_per_tok\": 2, \"num_local_experts\": 4, \"intermediate_size\": 32, "    \
    "\"sliding_window\": 16"
#define S "\"sliding_attention\""
#define F "\"full_attention\""

static void window_is(const char *types, int period, int window) {
    char text[600] = "{" OSS;
    fr_model m;
    fr_error err = {0};
    if (types) strcat(strcat(text, ", \"layer_types\": "), types);
    strcat(text, "}");
    if (fr_model_parse(text, strlen(text), "c.json", &m, &err) != FR_OK) fail_msg("%s", err.text);
    assert_int_equal(m.window, window);
    if (window) assert_int_equal(m.window_period, period);
}

static void test_layer_types(void **state) {
    (void)state;
    window_is(NULL, 2, 16);
    window_is("[" S "," F "," S "," F "]", 2, 16);
    window_is("[" S "," S "," S "," S "]", 1, 16);
    window_is("[" S "," F "," F "," S "]", 3, 16);
    window_is("[" S "," F "," F "," F "]", 4, 16);
    window_is("[" F "," F "," F "," F "]", 0, 0);
    refuse("{" OSS ", \"layer_types\": [" F "," S "," F "," S "]}", "fixed period");
    refuse("{" OSS ", \"layer_types\": [" S "," F "," S "," S "]}", "fixed period");
    refuse("{" OSS ", \"layer_types\": [" S "," F "]}", "one entry for each");
    refuse("{" OSS ", \"layer_types\": [" S "," F ",\"odd\"," F "]}", "layer_types[2]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parameters_equal_transformers),
        cmocka_unit_test(test_qwen3_235b),
        cmocka_unit_test(test_bytes_equal_parameters),
        cmocka_unit_test(test_attention_flops),
        cmocka_unit_test(test_flops_follow_parameters),
        cmocka_unit_test(test_mla_kv),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_reads_variants),
        cmocka_unit_test(test_layer_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Fuzz target: a model's config.json, and the arithmetic on whatever passes. */
#include "engine/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_model m;
    fr_error err;
    if (fr_model_parse((const char *)data, size, "fuzz/config.json", &m, &err) != FR_OK) return 0;
    fr_params p;
    fr_model_params(&m, &p);
    if (p.total <= 0 || p.active > p.total + p.embedding) __builtin_trap();
    if (fr_model_expert_bytes(&m, FR_FP8) <= 0) __builtin_trap();
    fr_layer_bytes last;
    fr_model_layer_bytes(&m, m.layers - 1, FR_FP8, &last);
    if (last.attention <= 0 || last.total < last.attention) __builtin_trap();
    if (!(fr_model_attention_flops(&m, m.layers - 1, 1000, 1000) > 0)) __builtin_trap();
    return 0;
}

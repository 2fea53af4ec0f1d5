/* Fuzz target: requests as JSONL; whatever passes is answered and written. */
#include "engine/prompts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_prompts p;
    fr_error err;
    float logits[64] = {0};
    fr_text out = {0};
    if (fr_prompts_parse((const char *)data, size, "fuzz/prompts.jsonl", 64, &p, &err) != FR_OK) return 0;
    for (uint32_t i = 0; i < p.count; i++) {
        for (int32_t k = 0; k < p.prompts[i].tokens; k++)
            if (p.prompts[i].ids[k] < 0 || p.prompts[i].ids[k] >= 64) __builtin_trap();
        if (p.prompts[i].candidates_count <= 64) fr_prompt_answer(&p.prompts[i], logits, 64);
    }
    fr_prompts_write(&p, &out);
    fr_text_free(&out);
    fr_prompts_free(&p);
    return 0;
}

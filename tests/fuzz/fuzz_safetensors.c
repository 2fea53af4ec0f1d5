/* Fuzz target: a safetensors header; whatever passes must lie within the file and cover it. */
#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_checkpoint c = {0};
    fr_error err;
    if (fr_checkpoint_parse(&c, (const char *)data, size, (int64_t)size, "fuzz/model.safetensors", &err) == FR_OK) {
        int64_t bytes = 0;
        for (uint32_t i = 0; i < c.count; i++) {
            const fr_tensor *t = &c.tensors[i];
            if (t->begin < 8 || t->bytes < 0 || t->begin + t->bytes > (int64_t)size) __builtin_trap();
            if (fr_checkpoint_find(&c, t->name) != t) __builtin_trap();
            bytes += t->bytes;
        }
        if (bytes > (int64_t)size) __builtin_trap();
    }
    fr_checkpoint_close(&c);
    return 0;
}

/* Fuzz target: a recorded routing for a small model. */
#include "engine/routing.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const fr_model m = {.layers = 4, .dense_layers = 1, .experts = 4, .top_k = 2};
    fr_routing *r;
    fr_error err;
    int32_t counts[4];
    int64_t copies[2];
    if (fr_routing_parse((const char *)data, size, "fuzz", &m, 1, &r, &err) != FR_OK) return 0;
    fr_routing_counts(r, 0, 0, 3, 1001, counts);
    if (counts[0] + counts[1] + counts[2] + counts[3] != 2002) __builtin_trap();
    fr_routing_targets(r, 3, 1000, 2, copies);
    if (copies[0] < 0 || copies[0] > 1000) __builtin_trap();
    fr_routing_close(r);
    return 0;
}

/* Fuzz target: the mooncake trace reader, and the scheduler on whatever passes. */
#include "tests/fuzz/fuzz_trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_trace("mooncake", data, size, NULL, 0);
    return 0;
}

/* Fuzz target: the csv trace reader, and the scheduler on whatever passes. */
#include "tests/fuzz/fuzz_trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_trace("csv", data, size, NULL, 0);
    return 0;
}

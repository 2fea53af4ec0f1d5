/* Fuzz target: a ServeGen client; the windows, then the length histograms behind the first '@'. */
#include "tests/fuzz/fuzz_trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *at = size ? memchr(data, '@', size) : NULL;
    size_t head = at ? (size_t)(at - data) : size;
    char *dataset = malloc(size - head + 1);
    check(dataset != NULL);
    memcpy(dataset, data + head, size - head);
    dataset[size - head] = 0;
    fuzz_trace("servegen", data, head, at ? dataset + 1 : NULL, at ? size - head - 1 : 0);
    free(dataset);
    return 0;
}

/* Fuzz target: the generators' specification. */
#include "tests/fuzz/fuzz_trace.h"
#include "traces/generate.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char text[256];
    if (size >= sizeof text || memchr(data, 0, size)) return 0;
    memcpy(text, data, size);
    text[size] = 0;
    /* a scale of 100 is seven million requests, a file is another target's matter */
    if (strstr(text, "scale=") || strstr(text, "hist(") || strstr(text, "trace(") || !fr_generate_is_spec(text))
        return 0;
    fr_trace_options o = {.max_requests = 300, .seed = size};
    fr_error err = {0};
    fr_trace *t = NULL;
    fr_status status = fr_generate(text, &o, &t, &err);
    check(status == FR_OK || (status == FR_BAD_INPUT && err.text[0]));
    if (status == FR_OK) fuzz_schedule(t, (int)(size % 16));
    fr_trace_close(t);
    return 0;
}

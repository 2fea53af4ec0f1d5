/* Fuzz target: jobs as they come over a wire from another process; one that is taken is sent on as it came. */
#include "engine/conduct/codec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_bytes in = {0}, out = {0};
    int64_t forward = 0;
    fr_bytes_put(&in, data, size);
    fr_job *job = fr_job_decode(&in, &forward);
    if (job && job->slots < 64) {
        fr_fragment fragment = {.forward = forward};
        job->fragment = &fragment;
        fr_job_encode(job, &out);
        job->fragment = NULL;
        int64_t again = 0;
        fr_job *copy = fr_job_decode(&out, &again);
        if (!copy || copy->slots != job->slots || copy->unit != job->unit || again != forward) __builtin_trap();
        fr_job_free(copy);
    }
    fr_job_free(job);
    fr_bytes_free(&in);
    fr_bytes_free(&out);
    return 0;
}

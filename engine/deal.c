#include "engine/deal.h"

#include <stdlib.h>

/* tokens per GPU * GPUs in sequences of `seq`, round robin: the first groups take what does not divide. */
void fr_deal_open(const fr_experiment *e, int64_t groups, int fold, fr_deal *out) {
    const int64_t gpus = fr_layout_gpus(&e->layout);
    const int64_t real_groups = fold > 1 ? gpus / e->layout.tp / e->layout.pp : groups;
    const int64_t total = fr_max_i64(e->tokens * gpus / e->seq, 1), most = fr_ceil_div(total, real_groups);
    *out = (fr_deal){.groups = groups, .stands_for = (int)(real_groups / groups)};
    out->batches = fr_alloc((size_t)groups * sizeof *out->batches);
    out->sequences = fr_alloc((size_t)(groups * most) * sizeof *out->sequences);
    for (int64_t g = 0; g < groups; g++) {
        const int64_t mine = total / real_groups + (g < total % real_groups);
        fr_sequence *s = out->sequences + g * most;
        for (int64_t i = 0; i < mine; i++)
            s[i] = (fr_sequence){.queries = (int32_t)e->seq,
                                 .prefix = (int32_t)e->prefix,
                                 .candidates = e->candidates,
                                 .kv = (int32_t)(g * most + i),
                                 .kv_prefix = -1};
        out->batches[g] = (fr_batch){s, (int32_t)mine};
        if (mine == 0) out->idle += e->layout.tp;
    }
}

void fr_deal_close(fr_deal *d) {
    free(d->sequences);
    free(d->batches);
    *d = (fr_deal){0};
}

/* Fuzz target: a measured-cost table. What parses is fitted and asked, so that no accepted row can break the fits. */
#include "engine/cost/cost_family.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fr_table t = {0};
    fr_error err;
    if (fr_table_parse((const char *)data, size, "fuzz.txt", &t, &err) == FR_OK && t.count < 64) {
        fr_source source = {&t, FR_FROM_MEASURED};
        fr_family_set set;
        t.ceilings.floor_ns = 2500;
        fr_family_build(&set, &source, 1, FR_BURST, NULL);
        for (uint32_t i = 0; i < t.count; i++) {
            fr_base base;
            fr_estimate e;
            fr_cost_base(&t.ceilings, &t.rows[i].shape, t.pairs, &base);
            if (base.ns > 0 && fr_family_estimate(&set, &t.ceilings, &t.rows[i].shape, &base, t.rows[i].ways, &e) &&
                !(e.low <= e.ns && e.ns <= e.high))
                __builtin_trap();
        }
        fr_family_free(&set);
    }
    fr_table_free(&t);
    return 0;
}

#include "engine/experiment.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

fr_quantiles fr_quantiles_of(double *values, uint32_t count) {
    if (count == 0) return (fr_quantiles){NAN, NAN, NAN, NAN};
    qsort(values, count, sizeof *values, by_value);
    double sum = 0, q[3];
    const double at[3] = {0.5, 0.9, 0.99};
    for (uint32_t i = 0; i < count; i++) sum += values[i];
    for (int i = 0; i < 3; i++) {
        const uint32_t rank = (uint32_t)ceil(at[i] * count);
        q[i] = values[rank > 0 ? rank - 1 : 0];
    }
    return (fr_quantiles){sum / count, q[0], q[1], q[2]};
}

/*
 * critical: the chain of ops that decided when the work ended, walked back from the last end along each span's cause,
 * and where its time went: per layer and per resource. It partitions the elapsed time: every ns belongs to exactly one
 * cell, so "what would a faster link buy at most" is the sum of a column.
 */
#ifndef FR_CRITICAL_H
#define FR_CRITICAL_H

#include "engine/timeline.h"

typedef enum {
    FR_ON_ATTENTION = 0,
    FR_ON_GEMM,       /* dense matrix work */
    FR_ON_EXPERTS,    /* grouped matrix work */
    FR_ON_MEMORY,     /* memory-bound kernels */
    FR_ON_COLLECTIVE, /* collectives and pairs over the links */
    FR_ON_PEER_COPY,  /* copy-engine transfers between GPUs */
    FR_ON_HOST_COPY,  /* transfers over PCIe */
    FR_ON_HOST,       /* launches, read-backs */
    FR_ON_NOTHING,    /* ready but not started, or nothing to do */
    FR_RESOURCES
} fr_resource;
const char *fr_resource_name(fr_resource r);

typedef struct {
    int64_t begin, end; /* ns */
    int layers;
    int64_t (*ns)[FR_RESOURCES]; /* [layers + 1]: per layer; the last row holds what lies outside layers */
    int64_t total[FR_RESOURCES]; /* sums over rows; together end - begin */
    uint32_t steps;              /* spans on the path */
} fr_critical;

/*
 * Walks the path that ends with the last of `spans` (ties: the first in timeline order), back to time `begin`. `layers`
 * rows are made; a span of a later layer counts outside. An empty timeline gives an empty path.
 */
void fr_critical_path(const fr_timeline *spans, int64_t begin, int layers, fr_critical *out);
void fr_critical_free(fr_critical *c);

#endif

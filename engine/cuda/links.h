/*
 * links: asap's slots (engine/strategy/asap.c), for one rank. Between every attention rank and expert rank of a replica
 * lie FR_ASAP_DEPTH payload slots at the expert rank, and one slot for the results of each of the two batches at the
 * attention rank; both ends find a slot by its hold. Nothing here waits: who may write or read a slot when is said by
 * the plan's counters (issue.h).
 *
 *     attention   pack      one copy per token and expert rank, ordered by rank (fr_k_pack); where its result will lie
 *                 push      copies for an expert rank, with ids, weights and their number, into its payload slot
 *     expert      drain     payloads of a group's ranks behind one another into a receive buffer; says where each ends
 *                 give_back the summed rows of one of those ranks into its results slot, beside the next item
 *     attention   results   [expert ranks][carried, H]: what the combine adds up
 *
 * Only devices know the numbers: a payload brings its own, `landed` keeps those of each group's two batches.
 */
#ifndef FR_CUDA_LINKS_H
#define FR_CUDA_LINKS_H

#include "engine/layout.h"
#include "engine/plan/plan.h"
#include "kernels/kernels.h"

typedef struct fr_links fr_links;
struct fr_transport;

typedef struct {
    const fr_plan *plan;
    const fr_model *model;
    const fr_layout *layout;
    const fr_activations *room;
    struct fr_transport *transport;
    int rank;
} fr_links_options;

/* Collective. */
fr_status fr_links_open(const fr_links_options *o, fr_links **out, fr_error *err);
void fr_links_close(fr_links *l, bool lost); /* NULL is allowed */
int64_t fr_links_bytes(const fr_links *l);   /* device memory; 0 of NULL */

/* ---- attention ranks ----------------------------------------------------------------------------------------------*/

/* Of batch `half` of a layer: ids [tokens, k], normed [tokens, H]; receives row_of_copy [tokens, expert ranks], rows of
 * fr_links_results, -1 = none, and send. */
typedef struct {
    int half;
    int64_t tokens;
    const int32_t *ids;
    const float *weights;
    const fr_bf16 *normed;
    int32_t *row_of_copy;
    fr_bf16 *send;
} fr_links_batch;
cudaError_t fr_links_pack(fr_links *l, const fr_links_batch *b, cudaStream_t stream);
/* To plan rank `to`; ids, weights and send of `b` are read. */
cudaError_t fr_links_push(fr_links *l, const fr_links_batch *b, int to, uint32_t hold, cudaStream_t stream);
const fr_bf16 *fr_links_results(const fr_links *l, int half);

/* ---- expert ranks -------------------------------------------------------------------------------------------------*/

/* Where an item's tokens are put: a receive buffer (fr_activations). */
typedef struct {
    fr_bf16 *rows;
    int32_t *ids;
    float *weights;
} fr_links_recv;
/* The payload in plan buffer `payload`, of batch `half` of its group; `first`: no rank of the group before its sender
 * has tokens. */
cudaError_t fr_links_drain(fr_links *l, uint32_t payload, uint32_t hold, int half, bool first, const fr_links_recv *to,
                           cudaStream_t stream);
/* Tokens of a group's batch, as drained last, on the device. */
const int32_t *fr_links_landed(const fr_links *l, int group, int half);
/* The rows of plan rank `to`, of its batch `half`. */
cudaError_t fr_links_give_back(fr_links *l, const fr_bf16 *rows, int to, int half, cudaStream_t stream);

#endif

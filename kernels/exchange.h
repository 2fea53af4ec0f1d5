/*
 * exchange: tokens travel to the ranks that hold their experts and come back as one summed row each, over peers' mapped
 * memory (NVLink), with sizes that only the devices know.
 *
 *     pack       one copy of a token's row for every target that holds one of its experts, ordered by target and token
 *     counts     every rank writes into all others how many copies it has for each target; from the whole matrix each
 *                works out where its rows go
 *     dispatch   each rank writes its rows, with expert ids and weights, into the targets' memory, sources one after
 *                the other
 *     back       each target writes row i back to where it came from: the source's send buffer
 *
 * Words: P ranks, G parts (groups of experts that travel one after the other, else 1), target v = rank * G + part, V =
 * P
 * * G; experts E * v / V .. E * (v + 1) / V belong to v. A token of k experts sends C = V copies at most (by_expert: C
 * = k, one for each), a copy carries S = k ids (by_expert: 1).
 *
 *     row_of_copy [T, C]    row in the send buffer, -1 = no copy        source_of_copy [T * C]    token of a send row
 *     send [copies, H]      bf16                                          (by_expert: token * k + slot)
 *     recv [capacity, H] | ids [capacity, S] | weights [capacity, S]    ids: -1 where the expert is another target's
 *
 * Buffers need no further locks: a rank writes into a peer's recv only after that peer's counts, which come after the
 * peer's back of the layer before, in order on one lane; a target writes into a source's send only after the source's
 * dispatch has ended (it raised its flag behind its last write, and the target waited for it), and the source packs the
 * next layer only after it has waited for all backs.
 *
 * All waiting is bounded: a device that waits longer than spin_ns gives up, notes who did not come in *error, and from
 * then on waits for nobody: the run is over, and nothing that arrived is of use. Results do not depend on timing: rows
 * have fixed places and nothing is added up here.
 */
#ifndef FR_EXCHANGE_KERNELS_H
#define FR_EXCHANGE_KERNELS_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { FR_X_RANKS = 16, FR_X_TARGETS = 128 };
enum { FR_X_LATE = 1, FR_X_FULL = 2, FR_X_GIVEN_UP = 3 };   /* error codes; GIVEN_UP: fr_k_exchange_release */
enum { FR_X_COUNTS = 1, FR_X_DISPATCH = 2, FR_X_BACK = 3 }; /* what the rank was at */
enum { FR_X_SEND = 1, FR_X_WAIT = 2, FR_X_PLACE = 4, FR_X_ALL = 7 };

typedef struct {
    int32_t from, to, rows;
} fr_x_move;

/* One half's block on each rank, in device memory that all members can write; zero at first. */
typedef struct {
    uint32_t flag[FR_X_RANKS];                            /* of each member: its last exchange whose writes are here */
    int32_t counts[2][FR_X_RANKS][FR_X_TARGETS];          /* [number % 2][source][target] copies */
    int32_t first[FR_X_TARGETS + 1];                      /* own send rows of each target: of pack */
    fr_x_move dispatch[FR_X_TARGETS], back[FR_X_TARGETS]; /* [part * P + peer]: from counts */
    uint32_t done, taken, failed;
} fr_x_block;

typedef struct {
    int32_t code, peer, at; /* peer: member index */
    uint32_t number;
} fr_x_error;

/* A half of an ep group as one member sees it. */
typedef struct {
    fr_x_block *block[FR_X_RANKS]; /* of the members, as mapped here */
    fr_x_error *error;             /* pinned host memory, mapped */
    int64_t spin_ns;
    int32_t ranks, me, parts, experts, top_k;
    bool by_expert;
    bool fp8; /* rows go out in e4m3 with a scale for every 128 of them; they come back in bf16 */
} fr_k_exchange;

/* C and S of an exchange. */
static inline int32_t fr_k_exchange_copies(const fr_k_exchange *x) {
    return x->by_expert ? x->top_k : x->ranks * x->parts;
}
static inline int32_t fr_k_exchange_slots(const fr_k_exchange *x) {
    return x->by_expert ? 1 : x->top_k;
}

/* Bytes of a row of H on its way out: bf16, or H bytes of e4m3, then ceil(H / 128) fp32 scales, to a multiple of 16. */
#ifdef __CUDACC__
__host__ __device__
#endif
    static inline int64_t
    fr_k_exchange_row(const fr_k_exchange *x, int64_t H) {
    return x->fp8 ? H + ((H + 127) / 128 * 4 + 15) / 16 * 16 : 2 * H;
}

/*
 * ids [T, k] -> row_of_copy [T, C], source_of_copy [T * C], and send [copies, fr_k_exchange_row bytes] from normed [T,
 * H] (fp8: quantised in groups of 128 as kernels/fp8.h says). workspace:
 * fr_k_pack_workspace bytes. T = 0 is allowed.
 */
size_t fr_k_pack_workspace(const fr_k_exchange *x, int64_t T);
cudaError_t fr_k_pack(const fr_k_exchange *x, const int32_t *ids, const fr_bf16 *normed, int64_t T, int64_t H,
                      int32_t *row_of_copy, int32_t *source_of_copy, void *send, void *workspace, cudaStream_t stream);

/*
 * Copies that leave each rank for each target. `number` counts the exchanges (counts, dispatch, back) of this half,
 * from 1, the same on all ranks; `round` counts its layers. T = 0: this rank has none, whatever `first` says. landed
 * [parts] receives the copies that arrive here. More than `capacity` (rows of recv, the same on all ranks) for any
 * target is an error, and then nothing is moved. Phases: FR_X_ALL at once, or SEND, then (the stream waits) PLACE.
 */
cudaError_t fr_k_counts(const fr_k_exchange *x, int64_t T, int64_t capacity, int32_t *landed, uint32_t round,
                        uint32_t number, int phases, cudaStream_t stream);

typedef struct {
    const void *rows;       /* dispatch: own send; back: own recv */
    void *to[FR_X_RANKS];   /* dispatch: where members take rows of this part (recv; fp8: before fr_k_unpack); back:
                               their send */
    void *recv[FR_X_RANKS]; /* dispatch: members' recv of this part: ids and weights go behind its rows */
    const int32_t *ids;     /* dispatch only: route of the own tokens [T, k] ... */
    const float *weights;   /* ... [T, k] */
    const int32_t *source_of_copy;
    int64_t capacity, H;
    int32_t part, blocks; /* blocks: of the launch, 1 .. 1024 */
    bool bulk;            /* by the SMs' bulk copies, not by loads and stores */
} fr_k_push_args;
/* Rows travel; ends when those of all members have arrived (phases as above, SEND and WAIT). */
cudaError_t fr_k_dispatch(const fr_k_exchange *x, const fr_k_push_args *a, uint32_t number, int phases,
                          cudaStream_t stream);
cudaError_t fr_k_back(const fr_k_exchange *x, const fr_k_push_args *a, uint32_t number, int phases,
                      cudaStream_t stream);

/* fp8: the `landed[0]` rows that have arrived, to recv [*, H] in bf16. */
cudaError_t fr_k_unpack(const fr_k_exchange *x, const void *arrived, const int32_t *landed, int64_t H, fr_bf16 *recv,
                        cudaStream_t stream);

/* Lets all that waits in this block's kernels go (code GIVEN_UP). On a stream of its own. */
cudaError_t fr_k_exchange_release(const fr_k_exchange *x, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

/*
 * placement: the activation buffers of one rank, how large they are, when they live and where they lie. One list for
 * all: the planner makes a plan's buffers of it (their order is its order), the CUDA engine allocates by it, the layout
 * function counts its bytes.
 *
 * The compute lane of a rank runs one op after the other, so a layer is a row of phases (below), and buffers that live
 * in no common phase may share memory. What another lane or another rank reads and writes (exchanged tokens, what is on
 * its way to the next stage) lives in all phases between its first use and its last, whatever the compute lane does
 * meanwhile; where two batches are in flight, in all phases.
 */
#ifndef FR_PLACEMENT_H
#define FR_PLACEMENT_H

#include "engine/layout.h"

/* Of a layer, in order; then the ends of a model. */
typedef enum {
    FR_PHASE_NORM = 0,  /* the first norm */
    FR_PHASE_QKV,       /* the product, of rows that a tp group has gathered */
    FR_PHASE_ATTENTION, /* rotary, attention */
    FR_PHASE_O,         /* the product, with its operand quantised in fp8 */
    FR_PHASE_SUM,       /* a tp group's sum; the second norm */
    FR_PHASE_DENSE,     /* a dense layer's FFN */
    FR_PHASE_ROUTE,     /* router, top-k */
    FR_PHASE_SEND,      /* tokens to the experts; shared experts */
    FR_PHASE_SORT,      /* sort, permute */
    FR_PHASE_UP,
    FR_PHASE_DOWN,
    FR_PHASE_REDUCE, /* each token's results */
    FR_PHASE_RETURN, /* sums over ranks, results back */
    FR_PHASE_COMBINE,
    FR_PHASE_HEAD,
    FR_PHASES
} fr_phase;

/* A buffer takes whole units of this and lies at a multiple of it; one more keeps it from the next. */
enum { FR_PLACE_ALIGN = 512 };

typedef struct {
    char name[24];
    int64_t bytes;  /* of one slot */
    int32_t slots;  /* of a pool, 0 = none */
    uint32_t lives; /* bit of each fr_phase; 0: this layout never uses it */
    int over;       /* lies where that buffer of the list does, -1 = has a place of its own */
    int64_t pitch;  /* from slot to slot */
    int64_t at;     /* offset [bytes] */
} fr_placed;

typedef struct {
    fr_placed *buffer;
    uint32_t count, cap;
    int64_t bytes; /* of all together */
    int64_t least; /* of the phase that needs most: no placement takes less */
} fr_placement;

/* Of a rank of the layout; `experts_only`: of asap's expert ranks. Batches are as `load` says, at most. */
void fr_placement_of(const fr_layout *l, const fr_model *m, const fr_load *load, bool experts_only, fr_placement *out);
void fr_placement_free(fr_placement *p);
/* NULL = none of that name. */
const fr_placed *fr_placement_find(const fr_placement *p, const char *name);

#endif

/*
 * issue: what stands between the ops of one rank's lanes when they are handed to their streams: waits for counters,
 * slots of pools. A wait within a stream holds by order; one for another stream of the rank becomes a
 * cudaStreamWaitEvent on the raise; one for another rank's raise is polled by the stream in a word of the rank's
 * memory, which the raising stream writes through the peer mapping.
 *
 *     may = fr_issue_may(...)     READY: fr_issue_before, launch, fr_issue_after
 *                                 SKIP: a late op of size 0 (its size is on the host): before and after, no launch
 *                                 LATER: an op that is emitted later must be issued first; the lane stands meanwhile
 */
#ifndef FR_CUDA_ISSUE_H
#define FR_CUDA_ISSUE_H

#include "engine/plan/plan.h"
#include "engine/slots.h"
#include "engine/world/world.h"

#include <cuda_runtime_api.h>

typedef struct fr_issue fr_issue;
struct fr_transport;

typedef struct {
    const fr_plan *plan;
    int rank;
    cudaStream_t *const *streams; /* [lanes]: where a lane's stream is kept, NULL = a host lane or another rank's */
    fr_world *world;              /* for counters that other ranks raise; NULL: this rank is alone */
    struct fr_transport *transport;
    const struct fr_layout *layout;
    bool listens;         /* the host asks what other ranks have raised (fr_issue_heard) */
    bool slots_of_others; /* its pools of slots are filled by other ranks (asap), which wait for counters, not here */
} fr_issue_options;

/* Collective where ranks raise each other's counters. */
fr_status fr_issue_open(const fr_issue_options *o, bool remote, fr_issue **out, fr_error *err);
void fr_issue_close(fr_issue *s, bool lost);
/* Another plan of the same static part, whose counters and holds begin at 0; nothing is out. */
void fr_issue_replan(fr_issue *s, const fr_plan *plan);
/* Ends what this rank's streams wait for from other ranks, for the watchdog. Any thread; the forward is lost. */
void fr_issue_release(fr_issue *s);

/* Before a fragment's first op. */
void fr_issue_fragment(fr_issue *s, const fr_fragment *f);

typedef enum { FR_ISSUE_READY, FR_ISSUE_SKIP, FR_ISSUE_LATER } fr_issue_may_t;
/* `nothing`: the op is late, its size is known to the host, and it is 0. */
fr_issue_may_t fr_issue_may(const fr_issue *s, const fr_fragment *f, const fr_op *op, bool nothing);
/* Waits and slots, on the op's stream. *waited: the stream may have to wait for another one. */
fr_status fr_issue_before(fr_issue *s, const fr_fragment *f, const fr_op *op, bool skip, bool *waited, fr_error *err);
/* Raises its counters and gives its slots back. */
fr_status fr_issue_after(fr_issue *s, const fr_fragment *f, const fr_op *op, fr_error *err);
/* What an op that stays LATER waits for, for a message. */
void fr_issue_why(const fr_issue *s, const fr_fragment *f, const fr_op *op, char *text, size_t size);

/* The rank that must issue a raise before the op at hand can be issued, -1 = none. Any thread. */
int fr_issue_waits_for(const fr_issue *s);
/* Whether a wait holds already, as the host sees it; only of a rank that listens, and of what other ranks raise. */
bool fr_issue_heard(const fr_issue *s, fr_ref wait);

/* Slot of a pool's hold, -1 = void, or no pool of this rank's. */
int fr_issue_slot(const fr_issue *s, uint32_t buffer, uint32_t hold);
/* The mark of a counter's value, raised by a device op that was issued; NULL = none. */
cudaEvent_t fr_issue_mark(const fr_issue *s, uint32_t event, uint32_t value);

#endif

/*
 * sched: requests, prefix index, router, batcher. No clock and no executor inside: callers pass the time, so that the
 * simulator's virtual clock and the engine's real one drive the same code.
 *
 *     arrive(request, now) -> router chooses a queue (one per attention group) -> next(queue, now) -> batch for one
 * forward
 *
 * FIFO token budget: a forward takes requests in order of arrival until the budget of new tokens is full; a request
 * longer than what is left is cut into chunks when chunking is on (each chunk's attention reads what came before), else
 * it waits for the next forward; one longer than the whole budget goes alone.
 */
#ifndef FR_SCHED_H
#define FR_SCHED_H

#include "engine/base.h"
#include "engine/strategy/strategy.h"

typedef struct {
    int64_t id;
    int64_t arrival;       /* ns */
    int32_t tokens;        /* prompt tokens, prefix included */
    int32_t prefix_tokens; /* of them shared with others under prefix_id; 0 = none */
    int64_t prefix_id;     /* identity of the shared prefix; -1 = none */
    const uint64_t
        *blocks; /* content hashes of consecutive blocks (block_tokens each), where the trace has them; NULL = none */
    int32_t blocks_count;
    int32_t block_tokens;
    int32_t candidates; /* logits wanted, >= 1 */
    int32_t source;     /* class or data set, for reports */
} fr_request;

typedef enum { FR_ROUTE_ROUND_ROBIN = 0, FR_ROUTE_LEAST_TOKENS, FR_ROUTE_VLLM, FR_ROUTE_PREFIX } fr_route;

typedef struct {
    int queues;            /* attention groups over all units */
    int64_t budget;        /* new tokens per forward and queue */
    int32_t max_sequences; /* per forward and queue, 0 = no limit */
    int64_t chunk_tokens;  /* 0 = requests are not cut */
    fr_route route;
    int64_t cache_tokens; /* prefix cache per queue, tokens; 0 = no reuse */
    /* prefix route (MoE-Prefill, facts/moe-prefill.md section 4): work threshold per queue in FLOPs, 0 = none, and the
     * true cost of a request */
    double threshold;
    double (*work)(const void *context, int64_t queries, int64_t prefix);
    const void *work_context;
} fr_sched_options;

typedef struct fr_sched fr_sched;

fr_status fr_sched_new(const fr_sched_options *options, fr_sched **out, fr_error *err);
void fr_sched_free(fr_sched *s);

/* Takes a copy of the request (blocks are not copied and must live as long as the scheduler). Chooses its queue, unless
 * late binding holds it. */
void fr_sched_arrive(fr_sched *s, const fr_request *r, int64_t now);

/* A request's part in a batch. */
typedef struct {
    int64_t request; /* id */
    int64_t arrival;
    int32_t queries; /* new tokens now */
    int32_t prefix;  /* in the cache before them */
    int32_t tokens;  /* of the whole request */
    int32_t source;
    bool last; /* its answer comes with this forward */
} fr_part;

typedef struct {
    int32_t queue, count;
    int64_t tokens; /* new tokens */
    int64_t cached; /* prefix tokens found in the cache, counted once per request */
    fr_sequence *sequences;
    fr_part *parts; /* same order */
    int64_t ticket;
} fr_sched_batch;

bool fr_sched_has_work(const fr_sched *s, int queue);
/* Forms the next batch of a queue; returns false when it has no work. The batch is owned by the scheduler until
 * fr_sched_done. */
bool fr_sched_next(fr_sched *s, int queue, int64_t now, const fr_sched_batch **out);
/* The forward that carried the batch has ended: its prefixes are committed to the cache, its memory is reused. */
void fr_sched_done(fr_sched *s, const fr_sched_batch *batch, int64_t now);
/* Requests waiting or in flight over all queues. */
int64_t fr_sched_pending(const fr_sched *s);

#endif

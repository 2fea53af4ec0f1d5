/*
 * sched: requests, prefix index, router, batcher. No clock and no executor inside: callers pass the time, so that the
 * simulator's virtual clock and the engine's real one drive the same code.
 *
 *     arrive(request, now) -> router chooses a queue (one per attention group) -> next(queue, now) -> batch for one
 * forward
 *
 * FIFO token budget, exactly: next() walks the queue in order of arrival, never past a request that does not fit.
 *  - What a request costs is its tokens less those found in the prefix cache (at least 1: the last token's logits are
 *    always computed).
 *  - chunk_tokens = 0: a request is never cut. It joins if what it costs is within what is left of the budget, else the
 *    batch ends before it; one that costs more than the whole budget goes alone, in a batch that exceeds the budget.
 *  - chunk_tokens = C > 0: a request takes min(rest, C, budget left) new tokens and keeps its place at the head until
 *    its last chunk; those behind it may fill the same batch. The budget is never exceeded. Each chunk's attention
 * reads what came before it (fr_sequence.prefix).
 *  - The next batch of a queue may be formed while earlier ones are in flight: they must execute in order.
 * Prefix cache, one per queue: a request is matched once, when its first part is formed, against the longest run of its
 * blocks that earlier batches, or earlier requests of the same batch, compute: siblings in a batch compute their prefix
 * once, the first writes it and the others read it (fr_sequence.kv_prefix names the handle of the one that computed the
 * last matched block; that one's own kv_prefix has what comes before). Blocks in use by requests in flight are not
 * evicted; resident blocks never exceed cache_tokens. A prefix known only by prefix_id is one block of that length.
 * KV handles are numbers per queue and are used again when nothing names them any more.
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
    /* prefix route (MoE-Prefill, arXiv 2605.02960 section 7): work threshold per queue in FLOPs, 0 = none, and the
     * true cost of a request */
    double threshold;
    double (*work)(const void *context, int64_t queries, int64_t prefix);
    const void *work_context;
} fr_sched_options;

/*
 * Routers, all deterministic, ties to the lowest queue:
 *   round-robin   request i to queue i mod queues
 *   least-tokens  fewest prompt tokens outstanding (waiting or in flight, less those found in the cache)
 *   vllm          smallest 4 * waiting + running requests (vLLM's DP balancer)
 *   prefix        MoE-Prefill, sections 7.2 to 7.4: among queues whose outstanding work L is below the threshold, the
 *                 longest contiguous match on resident or promised blocks, ties to the smallest L; L grows by the
 *                 request's work and falls as its forwards end. While every L is at or above the threshold, requests
 * are held in arrival order and dispatched by fr_sched_done (late binding). Without `work` a request's work is its
 * uncached tokens.
 */

typedef struct fr_sched fr_sched;

fr_status fr_sched_new(const fr_sched_options *options, fr_sched **out, fr_error *err);
void fr_sched_free(fr_sched *s);

/* Takes a copy of the request (blocks are not copied and must live as long as the scheduler). Chooses its queue, unless
 * late binding holds it. Requires 1 <= tokens, 0 <= prefix_tokens <= tokens, blocks that cover at most the tokens. */
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

/* True while a request of this queue has tokens that no batch carries yet. */
bool fr_sched_has_work(const fr_sched *s, int queue);
/* Forms the next batch of a queue; returns false when it has no work. The batch is owned by the scheduler until
 * fr_sched_done. */
bool fr_sched_next(fr_sched *s, int queue, int64_t now, const fr_sched_batch **out);
/* The forward that carried the batch has ended: the requests it answered are gone, their blocks may be evicted, its
 * memory is reused. */
void fr_sched_done(fr_sched *s, const fr_sched_batch *batch, int64_t now);
/* Whether a request in flight, a resident block or a later sequence names this KV handle: if not, nobody will read what
 * it holds and an executor may take its memory back. */
bool fr_sched_handle_live(const fr_sched *s, int queue, int32_t handle);
/* Requests waiting or in flight over all queues. */
int64_t fr_sched_pending(const fr_sched *s);

/* What happened so far, for reports and tests. */
typedef struct {
    int64_t arrived, answered, batches;
    int64_t computed, cached;      /* prompt tokens put into batches; found in the cache */
    int64_t blocks, blocks_hit;    /* of the requests formed so far (a prefix_id counts as one block) */
    int64_t evicted, cache_tokens; /* blocks evicted; tokens resident now, over all queues */
} fr_sched_counters;
void fr_sched_count(const fr_sched *s, fr_sched_counters *out);

typedef struct {
    int64_t waiting, running; /* requests that no batch carries yet; requests begun and not answered */
    int64_t tokens;           /* outstanding */
    double work;              /* outstanding, prefix route only */
    int64_t cache_tokens;     /* resident */
} fr_sched_queue_state;
void fr_sched_queue(const fr_sched *s, int queue, fr_sched_queue_state *out);

/* "round-robin", "least-tokens", "vllm", "prefix". */
const char *fr_route_name(fr_route route);

#endif

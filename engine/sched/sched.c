#include "engine/sched/sched.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sched/prefix_cache.h"

static const uint32_t NONE = UINT32_MAX;

typedef struct {
    fr_request r;
    uint32_t next, previous; /* in the queue's FIFO, in the held list (next), or in the free list (next) */
    int32_t cached;          /* tokens found at the first part */
    int32_t computed;        /* new tokens formed so far */
    int32_t shared;          /* blocks pinned, from the first on */
    int32_t handle;          /* KV handle, -1 before the first part */
    int32_t parent;          /* handle that holds the cached tokens, -1 = none */
    bool closed;             /* a block found no room: later ones are not shared either */
    double work;             /* charged to the queue and not yet paid back */
} entry;

typedef struct {
    fr_sched_batch pub; /* first: fr_sched_done gets it back */
    uint32_t *entries;
    uint32_t sequences_capacity, parts_capacity, entries_capacity;
} batch;

typedef struct {
    uint32_t head, tail;
    int64_t waiting, running, tokens;
    double work;
    fr_prefix_cache *cache;
} queue;

struct fr_sched {
    fr_sched_options options;
    queue *queues;
    entry *entries;
    uint32_t entries_capacity, entries_made, free_entry;
    uint32_t held_head, held_tail; /* late binding: arrived and not yet bound */
    batch **free_batches, **batches;
    uint32_t free_batches_count, free_batches_capacity, batches_count, batches_capacity;
    int64_t turn, tickets;
    fr_sched_counters counters;
};

/* ---- the blocks of a request: trace hashes, or the shared prefix as one block ---------------------------------- */

static int32_t block_count(const fr_request *r) {
    if (r->blocks) return r->blocks_count;
    return r->prefix_id >= 0 && r->prefix_tokens > 0 ? 1 : 0;
}

static uint64_t block_key(const fr_request *r, int32_t b) {
    if (r->blocks) return r->blocks[b];
    /* Apart from trace hashes, which are small numbers or 64-bit hashes; any odd constant would do. */
    return fr_hash(&r->prefix_id, sizeof r->prefix_id, FR_HASH_SEED);
}

static int32_t block_end(const fr_request *r, int32_t b) {
    if (!r->blocks) return r->prefix_tokens;
    return (int32_t)fr_min_i64(((int64_t)b + 1) * r->block_tokens, r->tokens);
}

static int32_t block_tokens(const fr_request *r, int32_t b) {
    return block_end(r, b) - (r->blocks ? b * r->block_tokens : 0);
}

/* Longest run of leading blocks that queue q can read now. */
static int32_t match_resident(const queue *q, const fr_request *r, int32_t *blocks, int32_t *owner) {
    int32_t tokens = 0, count = block_count(r);
    *blocks = 0;
    *owner = -1;
    for (int32_t b = 0; b < count; b++) {
        int32_t want = block_tokens(r, b), who = -1, have = fr_prefix_cache_find(q->cache, block_key(r, b), want, &who);
        if (have < want && r->blocks) break; /* only whole blocks of a trace are shared; a prefix may still grow */
        tokens += have;
        if (have) *blocks = b + 1, *owner = who;
        if (have < want) break;
    }
    return tokens;
}

static int32_t match_promised(const queue *q, const fr_request *r) {
    int32_t tokens = 0, count = block_count(r);
    for (int32_t b = 0; b < count; b++) {
        int32_t want = block_tokens(r, b), have = fr_prefix_cache_promised(q->cache, block_key(r, b), want);
        if (have < want && r->blocks) break;
        tokens += have;
        if (have < want) break;
    }
    return tokens < r->tokens ? tokens : r->tokens - 1;
}

/* ---- life of a scheduler ---------------------------------------------------------------------------------------- */

fr_status fr_sched_new(const fr_sched_options *o, fr_sched **out, fr_error *err) {
    if (o->queues < 1 || o->queues > 1 << 16)
        return fr_fail(err, FR_BAD_INPUT, "scheduler: expected 1 to 65536 queues, got %d", o->queues);
    if (o->budget < 1)
        return fr_fail(err, FR_BAD_INPUT, "scheduler: expected a budget of at least 1 token, got %" PRId64, o->budget);
    if (o->chunk_tokens < 0 || o->max_sequences < 0 || o->cache_tokens < 0)
        return fr_fail(err, FR_BAD_INPUT,
                       "scheduler: chunk tokens, maximum sequences and cache tokens must not be "
                       "negative");
    if (o->route > FR_ROUTE_PREFIX) return fr_fail(err, FR_BAD_INPUT, "scheduler: unknown route %d", (int)o->route);
    if (!(o->threshold >= 0) || !isfinite(o->threshold))
        return fr_fail(err, FR_BAD_INPUT, "scheduler: expected a work threshold >= 0 (0 = none), got %g", o->threshold);
    if (o->threshold > 0 && o->route != FR_ROUTE_PREFIX)
        return fr_fail(err, FR_BAD_INPUT, "scheduler: a work threshold needs the prefix route, not '%s'",
                       fr_route_name(o->route));
    fr_sched *s = fr_alloc(sizeof *s);
    s->options = *o;
    s->free_entry = s->held_head = s->held_tail = NONE;
    s->queues = fr_alloc((size_t)o->queues * sizeof *s->queues);
    for (int i = 0; i < o->queues; i++) {
        s->queues[i].head = s->queues[i].tail = NONE;
        s->queues[i].cache = fr_prefix_cache_new(o->cache_tokens);
    }
    *out = s;
    return FR_OK;
}

void fr_sched_free(fr_sched *s) {
    if (!s) return;
    for (int i = 0; i < s->options.queues; i++) fr_prefix_cache_free(s->queues[i].cache);
    for (uint32_t i = 0; i < s->batches_count; i++) {
        free(s->batches[i]->pub.sequences);
        free(s->batches[i]->pub.parts);
        free(s->batches[i]->entries);
        free(s->batches[i]);
    }
    free(s->batches);
    free(s->free_batches);
    free(s->queues);
    free(s->entries);
    free(s);
}

/* ---- routing ---------------------------------------------------------------------------------------------------- */

static int least_tokens(const fr_sched *s) {
    int best = 0;
    for (int i = 1; i < s->options.queues; i++)
        if (s->queues[i].tokens < s->queues[best].tokens) best = i;
    return best;
}

static int vllm_score(const fr_sched *s) {
    int best = 0;
    for (int i = 1; i < s->options.queues; i++) {
        const queue *q = &s->queues[i], *b = &s->queues[best];
        if (q->waiting * 4 + q->running < b->waiting * 4 + b->running) best = i;
    }
    return best;
}

/* -1 = every queue is saturated. *matched is what the chosen queue will not have to compute. */
static int longest_prefix(const fr_sched *s, const fr_request *r, int32_t *matched) {
    int best = -1;
    *matched = 0;
    for (int i = 0; i < s->options.queues; i++) {
        const queue *q = &s->queues[i];
        if (s->options.threshold > 0 && q->work >= s->options.threshold) continue;
        int32_t m = s->options.cache_tokens ? match_promised(q, r) : 0;
        if (best < 0 || m > *matched || (m == *matched && q->work < s->queues[best].work)) {
            best = i;
            *matched = m;
        }
    }
    return best;
}

static void bind(fr_sched *s, uint32_t index, int to) {
    queue *q = &s->queues[to];
    entry *e = &s->entries[index];
    e->next = NONE;
    e->previous = q->tail;
    if (q->tail != NONE)
        s->entries[q->tail].next = index;
    else
        q->head = index;
    q->tail = index;
    q->waiting++;
    q->tokens += e->r.tokens;
}

/* Binds held requests in order of arrival while some queue is below the threshold. */
static void dispatch(fr_sched *s) {
    while (s->held_head != NONE) {
        uint32_t index = s->held_head;
        entry *e = &s->entries[index];
        int32_t matched;
        int to = longest_prefix(s, &e->r, &matched);
        if (to < 0) return;
        s->held_head = e->next;
        if (s->held_head == NONE) s->held_tail = NONE;
        queue *q = &s->queues[to];
        int64_t queries = e->r.tokens - matched;
        e->work = s->options.work ? s->options.work(s->options.work_context, queries, matched) : (double)queries;
        q->work += e->work;
        if (s->options.cache_tokens)
            for (int32_t b = 0; b < block_count(&e->r); b++) fr_prefix_cache_promise(q->cache, block_key(&e->r, b));
        bind(s, index, to);
    }
}

void fr_sched_arrive(fr_sched *s, const fr_request *r, int64_t now) {
    (void)now; /* order of calls is order of arrival */
    uint32_t index = s->free_entry;
    if (index != NONE) {
        s->free_entry = s->entries[index].next;
    } else {
        FR_GROW(s->entries, s->entries_capacity, s->entries_made + 1);
        index = s->entries_made++;
    }
    s->entries[index] = (entry){.r = *r, .next = NONE, .previous = NONE, .handle = -1, .parent = -1};
    s->counters.arrived++;
    switch (s->options.route) {
    case FR_ROUTE_ROUND_ROBIN:
        bind(s, index, (int)(s->turn++ % s->options.queues));
        return;
    case FR_ROUTE_LEAST_TOKENS:
        bind(s, index, least_tokens(s));
        return;
    case FR_ROUTE_VLLM:
        bind(s, index, vllm_score(s));
        return;
    case FR_ROUTE_PREFIX:
        break;
    }
    if (s->held_tail != NONE)
        s->entries[s->held_tail].next = index;
    else
        s->held_head = index;
    s->held_tail = index;
    dispatch(s);
}

/* ---- batching --------------------------------------------------------------------------------------------------- */

static batch *take_batch(fr_sched *s, int to) {
    batch *b;
    if (s->free_batches_count) {
        b = s->free_batches[--s->free_batches_count];
    } else {
        b = fr_alloc(sizeof *b);
        FR_GROW(s->batches, s->batches_capacity, s->batches_count + 1);
        s->batches[s->batches_count++] = b;
    }
    b->pub =
        (fr_sched_batch){.queue = to, .sequences = b->pub.sequences, .parts = b->pub.parts, .ticket = s->tickets++};
    return b;
}

/* First part: pins what the cache has and gives the request its KV handle. */
static void begin(fr_sched *s, queue *q, entry *e, int32_t cached, int32_t blocks, int32_t owner) {
    e->cached = cached;
    e->handle = fr_prefix_cache_handle(q->cache);
    e->parent = cached ? owner : -1;
    fr_prefix_cache_handle_parent(q->cache, e->handle, e->parent);
    for (int32_t b = 0; b < blocks; b++) fr_prefix_cache_pin(q->cache, block_key(&e->r, b));
    e->shared = blocks;
    if (s->options.cache_tokens) {
        s->counters.blocks += block_count(&e->r);
        s->counters.blocks_hit += blocks;
    }
    s->counters.cached += cached;
    q->tokens -= cached;
    q->waiting--;
    q->running++;
}

/* The blocks that the request has computed so far become readable. */
static void share(queue *q, entry *e) {
    int32_t done = e->cached + e->computed, count = block_count(&e->r);
    if (!e->r.blocks) { /* one block that grows with the chunks */
        int32_t tokens = (int32_t)fr_min_i64(done, e->r.prefix_tokens);
        if (count && fr_prefix_cache_put(q->cache, block_key(&e->r, 0), tokens, e->handle, e->shared > 0))
            e->shared = 1;
        return;
    }
    for (; !e->closed && e->shared < count && block_end(&e->r, e->shared) <= done; e->shared++) {
        uint64_t key = block_key(&e->r, e->shared);
        if (!fr_prefix_cache_put(q->cache, key, block_tokens(&e->r, e->shared), e->handle, false)) {
            e->closed = true;
            return;
        }
    }
}

static void add_part(fr_sched *s, batch *b, uint32_t index, int32_t queries, bool first) {
    entry *e = &s->entries[index];
    uint32_t i = (uint32_t)b->pub.count;
    FR_GROW(b->pub.sequences, b->sequences_capacity, i + 1);
    FR_GROW(b->pub.parts, b->parts_capacity, i + 1);
    FR_GROW(b->entries, b->entries_capacity, i + 1);
    int32_t prefix = e->cached + e->computed;
    bool last = prefix + queries == e->r.tokens;
    b->pub.sequences[i] = (fr_sequence){.queries = queries,
                                        .prefix = prefix,
                                        .candidates = last ? e->r.candidates : 0,
                                        .kv = e->handle,
                                        .kv_prefix = e->parent};
    b->pub.parts[i] = (fr_part){.request = e->r.id,
                                .arrival = e->r.arrival,
                                .queries = queries,
                                .prefix = prefix,
                                .tokens = e->r.tokens,
                                .source = e->r.source,
                                .last = last};
    b->entries[i] = index;
    b->pub.count++;
    b->pub.tokens += queries;
    if (first) b->pub.cached += e->cached;
    e->computed += queries;
    s->counters.computed += queries;
}

static void unlink_entry(fr_sched *s, queue *q, uint32_t index) {
    entry *e = &s->entries[index];
    if (e->previous != NONE)
        s->entries[e->previous].next = e->next;
    else
        q->head = e->next;
    if (e->next != NONE)
        s->entries[e->next].previous = e->previous;
    else
        q->tail = e->previous;
}

/* Forms the part of one request; returns false when the batch ends before it. */
static bool form(fr_sched *s, queue *q, batch *b, uint32_t index) {
    const fr_sched_options *o = &s->options;
    entry *e = &s->entries[index];
    bool first = e->handle < 0;
    int32_t cached = e->cached, blocks = 0, owner = -1;
    if (first && o->cache_tokens) {
        cached = match_resident(q, &e->r, &blocks, &owner);
        if (cached >= e->r.tokens) cached = e->r.tokens - 1;
    }
    int64_t rest = e->r.tokens - cached - e->computed, left = o->budget - b->pub.tokens, take = rest;
    if (o->chunk_tokens)
        take = fr_min_i64(rest, fr_min_i64(o->chunk_tokens, left));
    else if (rest > left && b->pub.count)
        return false;
    if (take < 1) return false;
    if (first) begin(s, q, e, cached, blocks, owner);
    add_part(s, b, index, (int32_t)take, first);
    if (o->cache_tokens) share(q, e);
    if (take == rest) {
        if (o->route == FR_ROUTE_PREFIX && o->cache_tokens)
            for (int32_t i = 0; i < block_count(&e->r); i++) fr_prefix_cache_forget(q->cache, block_key(&e->r, i));
        unlink_entry(s, q, index);
    }
    return true;
}

bool fr_sched_next(fr_sched *s, int to, int64_t now, const fr_sched_batch **out) {
    (void)now;
    if (!fr_sched_has_work(s, to)) return false;
    queue *q = &s->queues[to];
    batch *b = take_batch(s, to);
    for (uint32_t index = q->head; index != NONE;) {
        uint32_t next = s->entries[index].next;
        bool full = s->options.max_sequences && b->pub.count == s->options.max_sequences;
        if (full || b->pub.tokens >= s->options.budget || !form(s, q, b, index)) break;
        index = next;
    }
    s->counters.batches++;
    *out = &b->pub;
    return true;
}

static void answer(fr_sched *s, queue *q, uint32_t index) {
    entry *e = &s->entries[index];
    for (int32_t i = e->shared; i-- > 0;) fr_prefix_cache_unpin(q->cache, block_key(&e->r, i));
    fr_prefix_cache_handle_release(q->cache, e->handle);
    q->running--;
    q->work -= e->work;
    if (q->waiting + q->running == 0) q->work = 0; /* no rounding left over from sums of doubles */
    s->counters.answered++;
    e->next = s->free_entry;
    s->free_entry = index;
}

void fr_sched_done(fr_sched *s, const fr_sched_batch *pub, int64_t now) {
    (void)now;
    batch *b = (batch *)(uintptr_t)pub; /* it is ours: the caller's const ends here */
    queue *q = &s->queues[pub->queue];
    for (int32_t i = 0; i < pub->count; i++) {
        entry *e = &s->entries[b->entries[i]];
        const fr_part *p = &pub->parts[i];
        q->tokens -= p->queries;
        /* Work falls with progress (MoE-Prefill, arXiv 2605.02960 section 7.3): this part's share of what is left. */
        double paid = e->work * p->queries / (double)(p->tokens - p->prefix);
        if (!p->last) {
            q->work -= paid;
            e->work -= paid;
        } else {
            answer(s, q, b->entries[i]);
        }
    }
    FR_GROW(s->free_batches, s->free_batches_capacity, s->free_batches_count + 1);
    s->free_batches[s->free_batches_count++] = b;
    dispatch(s);
}

/* ---- reports ---------------------------------------------------------------------------------------------------- */

bool fr_sched_has_work(const fr_sched *s, int to) {
    return s->queues[to].head != NONE;
}

bool fr_sched_handle_live(const fr_sched *s, int q, int32_t handle) {
    return fr_prefix_cache_handle_live(s->queues[q].cache, handle);
}

int64_t fr_sched_pending(const fr_sched *s) {
    return s->counters.arrived - s->counters.answered;
}

void fr_sched_count(const fr_sched *s, fr_sched_counters *out) {
    *out = s->counters;
    for (int i = 0; i < s->options.queues; i++) {
        out->evicted += fr_prefix_cache_evicted(s->queues[i].cache);
        out->cache_tokens += fr_prefix_cache_tokens(s->queues[i].cache);
    }
}

void fr_sched_queue(const fr_sched *s, int to, fr_sched_queue_state *out) {
    const queue *q = &s->queues[to];
    *out = (fr_sched_queue_state){.waiting = q->waiting,
                                  .running = q->running,
                                  .tokens = q->tokens,
                                  .work = q->work,
                                  .cache_tokens = fr_prefix_cache_tokens(q->cache)};
}

static const char *const route_names[] = {"round-robin", "least-tokens", "vllm", "prefix"};

const char *fr_route_name(fr_route route) {
    return route_names[route];
}

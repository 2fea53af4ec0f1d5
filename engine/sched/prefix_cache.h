/*
 * prefix_cache: which prompt blocks a queue holds (LRU by blocks), and which ones requests routed there will compute.
 *
 * A block is named by a 64-bit key: the content hash that a trace gives (equal key = same content after the same
 * prefix), or a key made from prefix_id, where the whole shared prefix is one block that may grow. A block is
 *   resident  computed by a forward that was formed earlier (or earlier in the same batch): it may be read. It counts
 *             against the capacity. While a request in flight uses it, it is pinned and not evicted.
 *   pending   promised by a request that was routed here and has not been formed yet: only the router looks at these.
 * Unpinned resident blocks form an LRU list; a request gives its blocks back last block first, so that a tail is
 * evicted before the head that it needs (as vLLM's block pool does, vllm/v1/core/block_pool.py).
 *
 * Each resident block has an owner, the KV handle of the sequence that computed it. A handle lives while a request in
 * flight, a resident block or a later sequence that reads through it names it; then its number is used again.
 */
#ifndef FR_PREFIX_CACHE_H
#define FR_PREFIX_CACHE_H

#include "engine/base.h"

typedef struct fr_prefix_cache fr_prefix_cache;

fr_prefix_cache *fr_prefix_cache_new(int64_t capacity_tokens);
void fr_prefix_cache_free(fr_prefix_cache *c);

/* Tokens of the block `key` that can be read now (at most `want`), 0 = not resident; *owner is its KV handle. */
int32_t fr_prefix_cache_find(const fr_prefix_cache *c, uint64_t key, int32_t want, int32_t *owner);
/* The same for the router: a pending block counts as `want` tokens. */
int32_t fr_prefix_cache_promised(const fr_prefix_cache *c, uint64_t key, int32_t want);

/* Pins a resident block. */
void fr_prefix_cache_pin(fr_prefix_cache *c, uint64_t key);
/*
 * Makes a block of `tokens` tokens resident, computed by `owner`, and pins it (`pinned`: the caller has pinned it
 * already; it may grow). Evicts from the LRU end as needed; false when pinned blocks leave no room: the block is then
 * not shared (the request itself is unharmed).
 */
bool fr_prefix_cache_put(fr_prefix_cache *c, uint64_t key, int32_t tokens, int32_t owner, bool pinned);
void fr_prefix_cache_unpin(fr_prefix_cache *c, uint64_t key); /* the last pin puts it at the recent end of the LRU */

void fr_prefix_cache_promise(fr_prefix_cache *c, uint64_t key);
void fr_prefix_cache_forget(fr_prefix_cache *c, uint64_t key); /* takes one promise back */

/* KV handles; `parent` = -1 or the handle whose tokens come before (it is kept alive). */
int32_t fr_prefix_cache_handle(fr_prefix_cache *c);
void fr_prefix_cache_handle_parent(fr_prefix_cache *c, int32_t handle, int32_t parent);
void fr_prefix_cache_handle_release(fr_prefix_cache *c, int32_t handle);

bool fr_prefix_cache_handle_live(const fr_prefix_cache *c, int32_t handle); /* something still names it */

int64_t fr_prefix_cache_tokens(const fr_prefix_cache *c);  /* resident, never above the capacity */
int64_t fr_prefix_cache_evicted(const fr_prefix_cache *c); /* blocks, so far */
int64_t fr_prefix_cache_blocks(const fr_prefix_cache *c);  /* known blocks: resident or pending */
int32_t fr_prefix_cache_handles(const fr_prefix_cache *c); /* handles ever made: the bound on handle numbers */

#endif

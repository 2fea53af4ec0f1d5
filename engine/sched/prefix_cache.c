#include "engine/sched/prefix_cache.h"

#include <stdlib.h>
#include <string.h>

static const uint32_t NONE = UINT32_MAX;

typedef struct {
    uint64_t key;
    int32_t tokens;        /* resident tokens; 0 = only promised */
    int32_t owner;         /* KV handle, -1 = none */
    uint32_t pins;         /* requests in flight that use it */
    uint32_t pending;      /* requests that will compute it */
    uint32_t newer, older; /* LRU links while resident and unpinned; `newer` also links free nodes */
} block;

typedef struct {
    uint64_t key;
    uint32_t node; /* index + 1, 0 = empty slot */
} slot;

typedef struct {
    int32_t uses, parent; /* uses 0 = free, then `parent` links free handles */
} handle;

struct fr_prefix_cache {
    slot *slots; /* open addressing, linear probing, power of two, at most half full */
    size_t mask;
    block *blocks;
    uint32_t blocks_capacity, blocks_made, free_block;
    uint32_t newest, oldest;
    int64_t capacity, used, evicted, known;
    handle *handles;
    uint32_t handles_capacity;
    int32_t handles_made, free_handle;
};

fr_prefix_cache *fr_prefix_cache_new(int64_t capacity_tokens) {
    fr_prefix_cache *c = fr_alloc(sizeof *c);
    c->capacity = capacity_tokens;
    c->free_block = c->newest = c->oldest = NONE;
    c->free_handle = -1;
    c->mask = 63;
    c->slots = fr_alloc((c->mask + 1) * sizeof *c->slots);
    return c;
}

void fr_prefix_cache_free(fr_prefix_cache *c) {
    if (!c) return;
    free(c->slots);
    free(c->blocks);
    free(c->handles);
    free(c);
}

/* Finaliser of splitmix64 (Steele, Lea, Flood 2014): trace hashes are often small consecutive numbers. */
static size_t place(const fr_prefix_cache *c, uint64_t key) {
    key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9ull;
    key = (key ^ (key >> 27)) * 0x94d049bb133111ebull;
    return (size_t)(key ^ (key >> 31)) & c->mask;
}

/* The slot of the key, or the empty one where it would go. */
static size_t probe(const fr_prefix_cache *c, uint64_t key) {
    size_t i = place(c, key);
    while (c->slots[i].node && c->slots[i].key != key) i = (i + 1) & c->mask;
    return i;
}

static block *find(const fr_prefix_cache *c, uint64_t key) {
    const slot *s = &c->slots[probe(c, key)];
    return s->node ? &c->blocks[s->node - 1] : NULL;
}

static void grow_slots(fr_prefix_cache *c) {
    slot *old = c->slots;
    size_t count = c->mask + 1;
    c->mask = count * 2 - 1;
    c->slots = fr_alloc((c->mask + 1) * sizeof *c->slots);
    for (size_t i = 0; i < count; i++)
        if (old[i].node) c->slots[probe(c, old[i].key)] = old[i];
    free(old);
}

static block *find_or_make(fr_prefix_cache *c, uint64_t key) {
    size_t i = probe(c, key);
    if (c->slots[i].node) return &c->blocks[c->slots[i].node - 1];
    if ((size_t)(c->known + 1) * 2 > c->mask + 1) {
        grow_slots(c);
        i = probe(c, key);
    }
    uint32_t node = c->free_block;
    if (node != NONE) {
        c->free_block = c->blocks[node].newer;
    } else {
        FR_GROW(c->blocks, c->blocks_capacity, c->blocks_made + 1);
        node = c->blocks_made++;
    }
    c->blocks[node] = (block){.key = key, .owner = -1, .newer = NONE, .older = NONE};
    c->slots[i] = (slot){key, node + 1};
    c->known++;
    return &c->blocks[node];
}

/* Removes a block that is neither resident nor pending; closes the gap in the probe sequence behind it. */
static void drop(fr_prefix_cache *c, block *b) {
    size_t hole = probe(c, b->key);
    for (size_t i = (hole + 1) & c->mask; c->slots[i].node; i = (i + 1) & c->mask) {
        size_t home = place(c, c->slots[i].key);
        if (((i - home) & c->mask) >= ((i - hole) & c->mask)) {
            c->slots[hole] = c->slots[i];
            hole = i;
        }
    }
    c->slots[hole].node = 0;
    b->newer = c->free_block;
    c->free_block = (uint32_t)(b - c->blocks);
    c->known--;
}

static void lru_push(fr_prefix_cache *c, block *b) {
    uint32_t n = (uint32_t)(b - c->blocks);
    b->newer = NONE;
    b->older = c->newest;
    if (c->newest != NONE)
        c->blocks[c->newest].newer = n;
    else
        c->oldest = n;
    c->newest = n;
}

static void lru_take(fr_prefix_cache *c, block *b) {
    if (b->newer != NONE)
        c->blocks[b->newer].older = b->older;
    else
        c->newest = b->older;
    if (b->older != NONE)
        c->blocks[b->older].newer = b->newer;
    else
        c->oldest = b->newer;
}

static bool make_room(fr_prefix_cache *c, int64_t tokens) {
    if (tokens > c->capacity) return false;
    while (c->used > c->capacity - tokens) {
        if (c->oldest == NONE) return false;
        block *b = &c->blocks[c->oldest];
        lru_take(c, b);
        c->used -= b->tokens;
        c->evicted++;
        fr_prefix_cache_handle_release(c, b->owner);
        b->tokens = 0;
        b->owner = -1;
        if (!b->pending) drop(c, b);
    }
    return true;
}

int32_t fr_prefix_cache_find(const fr_prefix_cache *c, uint64_t key, int32_t want, int32_t *owner) {
    const block *b = find(c, key);
    if (!b || !b->tokens) return 0;
    *owner = b->owner;
    return b->tokens < want ? b->tokens : want;
}

int32_t fr_prefix_cache_promised(const fr_prefix_cache *c, uint64_t key, int32_t want) {
    const block *b = find(c, key);
    if (!b) return 0;
    if (b->pending) return want;
    return b->tokens < want ? b->tokens : want;
}

void fr_prefix_cache_pin(fr_prefix_cache *c, uint64_t key) {
    block *b = find(c, key);
    if (b->pins++ == 0) lru_take(c, b);
}

bool fr_prefix_cache_put(fr_prefix_cache *c, uint64_t key, int32_t tokens, int32_t owner, bool pinned) {
    block *b = find(c, key);
    if (b && b->tokens && !pinned) {
        fr_prefix_cache_pin(c, key);
        pinned = true;
    }
    int32_t have = b ? b->tokens : 0;
    if (have >= tokens) return true;
    if (!make_room(c, (int64_t)tokens - have)) return pinned;
    b = find_or_make(c, key); /* making room may have moved or dropped it */
    if (b->owner != owner) {
        int32_t old = b->owner;
        c->handles[owner].uses++;
        b->owner = owner;
        fr_prefix_cache_handle_release(c, old);
    }
    c->used += tokens - have;
    b->tokens = tokens;
    if (!pinned) b->pins++;
    return true;
}

void fr_prefix_cache_unpin(fr_prefix_cache *c, uint64_t key) {
    block *b = find(c, key);
    if (--b->pins == 0) lru_push(c, b);
}

void fr_prefix_cache_promise(fr_prefix_cache *c, uint64_t key) {
    find_or_make(c, key)->pending++;
}

void fr_prefix_cache_forget(fr_prefix_cache *c, uint64_t key) {
    block *b = find(c, key);
    if (--b->pending == 0 && !b->tokens) drop(c, b);
}

int32_t fr_prefix_cache_handle(fr_prefix_cache *c) {
    int32_t h = c->free_handle;
    if (h >= 0) {
        c->free_handle = c->handles[h].parent;
    } else {
        FR_GROW(c->handles, c->handles_capacity, c->handles_made + 1);
        h = c->handles_made++;
    }
    c->handles[h] = (handle){1, -1};
    return h;
}

void fr_prefix_cache_handle_parent(fr_prefix_cache *c, int32_t h, int32_t parent) {
    c->handles[h].parent = parent;
    if (parent >= 0) c->handles[parent].uses++;
}

void fr_prefix_cache_handle_release(fr_prefix_cache *c, int32_t h) {
    while (h >= 0 && --c->handles[h].uses == 0) {
        int32_t parent = c->handles[h].parent;
        c->handles[h].parent = c->free_handle;
        c->free_handle = h;
        h = parent;
    }
}

int64_t fr_prefix_cache_tokens(const fr_prefix_cache *c) {
    return c->used;
}
int64_t fr_prefix_cache_evicted(const fr_prefix_cache *c) {
    return c->evicted;
}
int64_t fr_prefix_cache_blocks(const fr_prefix_cache *c) {
    return c->known;
}
bool fr_prefix_cache_handle_live(const fr_prefix_cache *c, int32_t h) {
    return h >= 0 && h < c->handles_made && c->handles[h].uses > 0;
}

int32_t fr_prefix_cache_handles(const fr_prefix_cache *c) {
    return c->handles_made;
}

/* The tokens behind a forward's batches, and the KV rows that nobody needs any more. */
#include "engine/conduct/conduct_state.h"

#include <stdlib.h>

/* A token id of a sequence, the same in every run: splitmix64 of who and where. */
static int32_t token(uint64_t who, uint64_t where, int32_t vocab) {
    uint64_t z = who * 0x9e3779b97f4a7c15ull + where * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (int32_t)((z ^ (z >> 31)) % (uint64_t)vocab);
}

/* Batch mode: sequences are numbered over all groups of a forward, forwards of a unit one after the other, so that a
 * sequence has the same tokens however the layout deals it. */
static uint64_t number_of(const fr_conductor *c, const fr_job *job, int slot, int32_t i) {
    uint64_t before = 0;
    const fr_batch *all = fr_conduct_dealt(c, 0, job->number);
    for (int g = 0; g < job->unit * c->slots + slot; g++) before += (uint64_t)all[g].count;
    return c->setup->experiment.seed + (uint64_t)c->o->sequence_base + before + (uint64_t)i +
           (uint64_t)job->number * (uint64_t)c->sequences_all;
}

static void fill(const fr_conductor *c, const fr_job *job, int slot, const fr_sched_batch *ticket, fr_job_batch *b) {
    const int32_t vocab = c->setup->model.vocab;
    int32_t *id = b->ids, *pick = b->candidates;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        const fr_part *part = ticket ? &ticket->parts[i] : NULL;
        const fr_prompt *p = part && c->o->prompts ? &c->o->prompts->prompts[part->request] : NULL;
        const uint64_t who = part ? (uint64_t)part->request : number_of(c, job, slot, i);
        b->owners[i] = part ? part->request : i;
        for (int32_t k = 0; k < s->queries; k++)
            *id++ = p ? p->ids[s->prefix + k] : token(who, (uint64_t)(s->prefix + k), vocab);
        for (int32_t k = 0; k < s->candidates; k++) *pick++ = p ? p->candidates[k] : token(~who, (uint64_t)k, vocab);
    }
}

void fr_conduct_tokens(fr_conductor *c, const fr_flight *f, fr_job *job) {
    for (int slot = 0; slot < c->slots; slot++) {
        const fr_batch *from = &f->batches[slot];
        fr_job_batch *b = &job->batches[slot];
        fr_kv_book *book = &c->books[job->unit * c->slots + slot];
        size_t tokens = 0, picks = 0;
        for (int32_t i = 0; i < from->count; i++) {
            tokens += (size_t)from->sequences[i].queries;
            picks += from->sequences[i].candidates > 0 ? (size_t)from->sequences[i].candidates : 0;
        }
        b->count = from->count;
        b->sequences = fr_alloc(((size_t)from->count + 1) * sizeof *b->sequences);
        b->owners = fr_alloc(((size_t)from->count + 1) * sizeof *b->owners);
        b->ids = fr_alloc((tokens + 1) * sizeof *b->ids);
        b->candidates = fr_alloc((picks + 1) * sizeof *b->candidates);
        for (int32_t i = 0; i < from->count; i++) b->sequences[i] = from->sequences[i];
        fill(c, job, slot, f->tickets ? f->tickets[slot] : NULL, b);
        b->trims = book->trims;
        b->trims_count = book->trims_count;
        book->trims = NULL;
        book->trims_count = book->trims_cap = 0;
    }
}

/* ---- KV handles ---------------------------------------------------------------------------------------------------*/

static void trim(fr_kv_book *b, int32_t handle, int32_t tokens) {
    if (handle < 0 || (uint32_t)handle >= b->handles) return;
    FR_GROW(b->trims, b->trims_cap, b->trims_count + 1);
    b->trims[b->trims_count++] = (fr_kv_trim){handle, tokens};
    b->used -= fr_max_i64(b->held[handle] - tokens, 0);
    b->held[handle] = (int32_t)fr_min_i64(b->held[handle], tokens);
}

/* Tokens of an answered request that later ones may share: its whole blocks, or the prefix that it names. */
static int32_t shareable(const fr_conductor *c, int64_t id) {
    const fr_request *q = &c->o->requests[id];
    const int64_t blocks = (int64_t)q->blocks_count * q->block_tokens;
    if (c->setup->experiment.cache_tokens <= 0) return 0;
    return (int32_t)fr_min_i64(q->tokens, fr_max_i64(blocks, q->prefix_id >= 0 ? q->prefix_tokens : 0));
}

/* Before the KV cache may run full: takes back what handles hold that nobody names any more. */
static void reclaim(fr_conductor *c, int queue, fr_kv_book *b, int64_t tokens) {
    if (b->used + tokens <= c->needs.kv_tokens) return;
    for (uint32_t h = 0; h < b->handles; h++)
        if (b->held[h] > 0 && !fr_sched_handle_live(c->sched, queue, (int32_t)h)) trim(b, (int32_t)h, 0);
}

/* Trace mode, before a forward is given: room for its tokens. */
static void make_room(fr_conductor *c, const fr_flight *f, int unit) {
    for (int s = 0; s < c->slots; s++) {
        const fr_sched_batch *t = f->tickets[s];
        const int queue = unit * c->slots + s;
        fr_kv_book *b = &c->books[queue];
        if (!t) continue;
        reclaim(c, queue, b, t->tokens);
        for (int i = 0; i < t->count; i++) {
            const fr_sequence *q = &t->sequences[i];
            const uint32_t had = b->handles;
            uint32_t cap = b->handles;
            FR_GROW(b->held, cap, (uint32_t)q->kv + 1);
            b->handles = cap;
            for (uint32_t h = had; h < cap; h++) b->held[h] = 0;
            const int32_t now = q->prefix + q->queries;
            b->used += fr_max_i64(now - b->held[q->kv], 0);
            if (now > b->held[q->kv]) b->held[q->kv] = now;
        }
    }
}

void fr_conduct_trim(fr_conductor *c, const fr_flight *f) {
    if (!f->tickets || c->needs.kv_tokens == 0) return;
    if (!f->done) { /* about to be given */
        make_room(c, f, f->job->unit);
        return;
    }
    for (int s = 0; s < c->slots; s++) {
        const fr_sched_batch *t = f->tickets[s];
        for (int i = 0; t && i < t->count; i++)
            if (t->parts[i].last)
                trim(&c->books[f->job->unit * c->slots + s], t->sequences[i].kv, shareable(c, t->parts[i].request));
    }
}

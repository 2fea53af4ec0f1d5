/* A forward's batch on the device: per micro-batch its tokens, positions, sequences, rows that want logits, KV rows. */
#include "engine/cuda/rank.h"
#include "kernels/words.h"

#include <string.h>

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

/* A rank that runs several slots in turn takes them as micro-batches: m = micro * batches + slot. */
static const fr_cut *own_cut(const fr_device_rank *r, const fr_cuts *cuts, int m) {
    const int batches = r->place.batches;
    return &cuts->cut[m / batches * cuts->slots + r->place.slot + m % batches];
}

int64_t fr_rank_tokens(const fr_device_rank *r, int q, int m) {
    fr_place place;
    fr_layout_place(r->layout, q, &place);
    const int64_t tokens = r->tokens[m / place.batches * r->slots + place.slot + m % place.batches];
    if (place.experts_only) return tokens;
    return fr_layout_sliced(r->layout) ? fr_share(tokens, r->layout->tp, place.t) : tokens;
}

/* ---- planning -----------------------------------------------------------------------------------------------------*/

static fr_status check_batch(const fr_device_rank *r, const fr_cuts *cuts, fr_error *err) {
    int64_t tokens = 0, sequences = 0;
    for (int m = 0; m < r->micros; m++) {
        const fr_cut *cut = own_cut(r, cuts, m);
        tokens = r->place.batches > 1 ? fr_max_i64(tokens, cut->tokens) : tokens + cut->tokens;
        sequences += cut->count;
        if (cut->tokens > r->most_rows)
            return fr_fail(err, FR_FAILED, "a micro-batch of %lld tokens: room was made for %lld",
                           (long long)cut->tokens, (long long)r->most_rows);
        for (int32_t i = 0; i < cut->count; i++) {
            const fr_sequence *s = &cut->sequences[i];
            if (s->prefix != 0 && !r->kv)
                return fr_fail(err, FR_FAILED, "sequence %d continues %d cached tokens, but no KV cache was opened", i,
                               s->prefix);
            if (s->queries < 1 || s->queries + (int64_t)s->prefix > r->positions)
                return fr_fail(err, FR_FAILED, "sequence %d has %d + %d tokens, 1 to %lld were planned for", i,
                               s->prefix, s->queries, (long long)r->positions);
        }
        if (cut->count > r->most_sequences || r->micro[m].picks > r->most_picks)
            return fr_fail(err, FR_FAILED, "a batch of %d sequences and %d candidates: room was made for %lld and %lld",
                           cut->count, r->micro[m].picks, (long long)r->most_sequences, (long long)r->most_picks);
    }
    if (tokens <= r->most_tokens && r->logits <= r->place.batches * r->most_logits) return FR_OK;
    return fr_fail(err, FR_FAILED,
                   "a batch of %lld sequences, %lld tokens and %lld logits: room was made for %lld, %lld and %lld",
                   (long long)sequences, (long long)tokens, (long long)r->logits, (long long)r->most_sequences,
                   (long long)r->most_tokens, (long long)r->most_logits);
}

/* Behind the runs, on the device only: the tables that attention makes of them. */
static int64_t meta_ints(const fr_batch_tables *t) {
    return fr_ceil_div((int64_t)fr_k_attention_meta_bytes(t->padded), 16) * 4;
}

int64_t fr_batch_room(const fr_device_rank *r) {
    const int64_t micros = r->offsets_micros, cuts = r->most_sequences + micros; /* a chunk ends within a sequence */
    const int64_t runs = 9, tokens = 3 * r->most_tokens, picks = 2 * r->most_picks;
    const int64_t sequences = (3 * 2 + 1) * cuts + micros; /* up to twice as many, in three of the runs */
    const int64_t one = tokens + picks + sequences + 3 * runs * micros + (r->kv ? 2 * r->kv_capacity : 0);
    return r->place.experts_only ? 0 : r->place.batches * one;
}

/* Slot after slot. Several slots are not cut further (planner.c: only pipelines cut). */
static void place_logits(fr_device_rank *r, const fr_cuts *cuts) {
    for (int s = 0; s < r->place.batches; s++) {
        fr_batch_rank who = r->batch;
        fr_batch_tables *t = &r->micro[s];
        who.place.slot += s;
        const int64_t count = fr_batch_place_logits(&who, cuts, t);
        for (int m = 0; m < cuts->micros && s > 0; m++) {
            if (t[m].all_at >= 0) t[m].all_at += r->logits;
            if (t[m].picks_at >= 0) t[m].picks_at += r->logits;
        }
        r->logits += count;
    }
}

fr_status fr_batch_plan(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int64_t *ints,
                        fr_error *err) {
    const int slots = cuts->slots;
    (void)batches;
    r->micros = cuts->micros * r->place.batches;
    if (r->place.slot + r->place.batches > slots || r->micros > r->offsets_micros)
        return fr_fail(err, FR_FAILED, "%d batches in %d micro-batches: room was made for slot %d and %d", slots,
                       cuts->micros, r->place.slot, r->offsets_micros);
    FR_GROW(r->micro, r->micro_cap, (uint32_t)r->micros);
    FR_GROW(r->tokens, r->tokens_cap, (uint32_t)(cuts->micros * slots));
    r->slots = slots;
    r->logits = 0;
    *ints = 0;
    for (int i = 0; i < cuts->micros * slots; i++) r->tokens[i] = cuts->cut[i].tokens;
    memset(r->micro, 0, (size_t)r->micros * sizeof *r->micro);
    if (r->place.experts_only) return FR_OK; /* the tokens that arrive bring all that it needs to know */
    for (int m = 0; m < r->micros; m++) fr_batch_count(&r->batch, own_cut(r, cuts, m), &r->micro[m]);
    place_logits(r, cuts);
    FR_TRY(check_batch(r, cuts, err));
    for (int m = 0; m < r->micros; m++) *ints += fr_batch_ints(&r->micro[m], r->kv != NULL);
    return FR_OK;
}

/* ---- filling ------------------------------------------------------------------------------------------------------*/

/* One sequence's rows: a new owner of the handle begins with what it shares, an old one goes on. */
static fr_status plan_rows(fr_device_rank *r, const fr_sequence *s, int64_t owner, fr_error *err) {
    const uint32_t had = r->kv_owner_cap;
    int32_t held;
    if (s->kv < 0) return fr_fail(err, FR_FAILED, "a sequence has no KV handle");
    FR_GROW(r->kv_owner, r->kv_owner_cap, (uint32_t)s->kv + 1);
    for (uint32_t i = had; i < r->kv_owner_cap; i++) r->kv_owner[i] = -1;
    fr_kv_rows_context(r->kv_rows, s->kv, &held);
    if (r->kv_owner[s->kv] == owner && held >= s->prefix) {
        fr_kv_rows_trim(r->kv_rows, s->kv, s->prefix);
    } else if (r->made_up_prefix) {
        FR_TRY(fr_kv_rows_begin(r->kv_rows, s->kv, -1, 0, err));
        FR_TRY(fr_kv_rows_append(r->kv_rows, s->kv, s->prefix, err));
    } else {
        FR_TRY(fr_kv_rows_begin(r->kv_rows, s->kv, s->kv_prefix, s->prefix, err));
    }
    r->kv_owner[s->kv] = owner;
    return fr_kv_rows_append(r->kv_rows, s->kv, s->queries, err);
}

/* A chunk's context is read when its rows are planned and no later ones. */
static fr_status fill_all(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int32_t *staging,
                          fr_error *err) {
    int64_t pick = 0;
    for (int m = 0; m < r->micros; m++) {
        const fr_cut *cut = own_cut(r, cuts, m);
        const fr_exec_batch *b = &batches[m % r->place.batches];
        fr_batch_tables *t = &r->micro[m];
        if (r->place.batches > 1) pick = 0; /* a batch of its own */
        for (int32_t i = 0; i < cut->count && r->kv; i++)
            FR_TRY(plan_rows(r, &cut->sequences[i], b->owners ? b->owners[cut->origin[i]] : cut->origin[i], err));
        fr_batch_point(t, staging, r->kv != NULL);
        fr_batch_fill(&r->batch, t, cut, b->ids, b->candidates, &pick);
        if (r->kv) fr_batch_fill_kv(r->kv_rows, t, cut);
        staging += fr_batch_ints(t, r->kv != NULL);
    }
    return FR_OK;
}

fr_status fr_batch_fill_staging(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int32_t *staging,
                                cudaStream_t stream, fr_error *err) {
    int64_t ints = 0, metas = 0, context = 0;
    if (r->place.experts_only) return FR_OK;
    for (int m = 0; m < r->micros; m++) {
        ints += fr_batch_ints(&r->micro[m], r->kv != NULL);
        metas += meta_ints(&r->micro[m]);
        context = fr_max_i64(context, r->micro[m].context);
    }
    FR_TRY(fr_rank_grow((void **)&r->batch_memory, &r->batch_ints, ints + metas, 4, stream, "tables of a batch", err));
    if (r->kv)
        FR_TRY(fr_rank_grow((void **)&r->context, &r->context_capacity, context, 2 * r->kv_width, stream,
                            "the context of a batch", err));
    FR_TRY(fr_rank_prepare_attention(r, stream, err));
    FR_TRY(fill_all(r, cuts, &batches[r->place.slot], staging, err));
    int32_t *at = r->batch_memory, *meta = at + ints;
    for (int m = 0; m < r->micros; m++) {
        fr_batch_tables *t = &r->micro[m];
        fr_batch_point(t, at, r->kv != NULL);
        t->meta = meta;
        at += fr_batch_ints(t, r->kv != NULL);
        meta += meta_ints(t);
    }
    r->batch_staging = staging;
    return FR_OK;
}

fr_status fr_batch_upload(const fr_device_rank *r, cudaStream_t stream, fr_error *err) {
    const int64_t D = r->model->head_dim, width = (int64_t)(r->shard.heads + 2 * r->shard.kv_heads) * D;
    int64_t ints = 0;
    for (int m = 0; m < r->micros; m++) ints += fr_batch_ints(&r->micro[m], r->kv != NULL);
    FR_TRY(check(fr_k_words(r->batch_memory, r->batch_staging, ints, stream), "fr_k_words of the batch", err));
    for (int m = 0; m < r->micros; m++) {
        const fr_batch_tables *t = &r->micro[m];
        if (t->equal || t->tokens == 0) continue; /* attention.h: no tables are needed then */
        FR_TRY(check(fr_k_attention_meta(t->q_start, t->kv_start, t->kv_len, t->padded, width,
                                         r->kv ? r->kv_width : width, r->shard.heads * D, t->meta, stream),
                     "fr_k_attention_meta", err));
    }
    return FR_OK;
}

/* ---- logits -------------------------------------------------------------------------------------------------------*/

#define FEW_WORDS 65536 /* of more the link takes longer than a copy engine takes to begin: left to that */

cudaError_t fr_batch_bring(void *to, const void *from, int64_t n, cudaStream_t stream) {
    return n <= FEW_WORDS ? fr_k_words(to, from, n, stream)
                          : cudaMemcpyAsync(to, from, (size_t)n * 4, cudaMemcpyDeviceToHost, stream);
}

fr_status fr_batch_logits(const fr_device_rank *r, const fr_op *op, const void *device, float *to, cudaStream_t stream,
                          fr_error *err) {
    const fr_batch_tables *t = &r->micro[op->micro];
    const int64_t all = (int64_t)t->rows_all * r->model->vocab;
    const float *from = device;
    const char *what = "the copy of the logits";
    if (all) FR_TRY(check(fr_batch_bring(to + t->all_at, from, all, stream), what, err));
    return t->picks ? check(fr_batch_bring(to + t->picks_at, from + all, t->picks, stream), what, err) : FR_OK;
}

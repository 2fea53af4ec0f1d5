/* A forward's batch on the device: per micro-batch its tokens, positions, sequences, rows that want logits, KV rows. */
#include "engine/cuda/rank.h"

#include <stdlib.h>
#include <string.h>

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

static int64_t padded(int64_t n) { /* runs start at multiples of 16 bytes */
    return fr_ceil_div(n, 4) * 4;
}

/* Attention compiles a kernel for each number of sequences: empty ones fill up to the next power of two. */
static int32_t padded_sequences(int64_t n) {
    int32_t p = 1;
    while (p < n) p *= 2;
    return p;
}

static const fr_cut *own_cut(const fr_device_rank *r, const fr_cuts *cuts, int m) {
    return &cuts->cut[m * cuts->slots + r->place.slot];
}

int64_t fr_rank_tokens(const fr_device_rank *r, int q, int m) {
    fr_place place;
    fr_layout_place(r->layout, q, &place);
    const int64_t tokens = r->tokens[m * r->slots + place.slot];
    return fr_layout_sliced(r->layout) ? fr_share(tokens, r->layout->tp, place.t) : tokens;
}

/* ---- counting -----------------------------------------------------------------------------------------------------*/

/*
 * Which of a micro-batch's rows that want logits this rank computes: those whose token it holds where each rank of a tp
 * group holds a part of the tokens, else its share of their number.
 */
typedef struct {
    int64_t all, some; /* rows seen */
    int64_t all_first, all_end, some_first, some_end;
    int64_t held_first, held_end;
    bool sliced, none;
} share;

static share share_of(const fr_device_rank *r, const fr_cut *cut, const fr_batch_tables *t) {
    const int tp = r->layout->tp;
    int64_t all = 0, some = 0;
    for (int32_t i = 0; i < cut->count; i++) {
        all += cut->sequences[i].candidates < 0;
        some += cut->sequences[i].candidates > 0;
    }
    share s = {.sliced = fr_layout_sliced(r->layout),
               .none = !r->shard.head,
               .held_first = t->first,
               .held_end = t->first + t->held};
    for (int i = 0; i < r->place.t; i++) {
        s.all_first += fr_share(all, tp, i);
        s.some_first += fr_share(some, tp, i);
    }
    s.all_end = s.all_first + fr_share(all, tp, r->place.t);
    s.some_end = s.some_first + fr_share(some, tp, r->place.t);
    return s;
}

/* Asked for each sequence in order; `row` is its last token. */
static bool computes(share *s, const fr_sequence *q, int64_t row) {
    if (q->candidates == 0) return false;
    const bool here = row >= s->held_first && row < s->held_end;
    const int64_t at = q->candidates < 0 ? s->all++ : s->some++;
    const bool turn =
        q->candidates < 0 ? at >= s->all_first && at < s->all_end : at >= s->some_first && at < s->some_end;
    return !s->none && (s->sliced ? here : turn);
}

static void count_micro(const fr_device_rank *r, const fr_cut *cut, fr_batch_tables *t) {
    *t = (fr_batch_tables){.tokens = (int32_t)cut->tokens,
                           .sequences = cut->count,
                           .padded = padded_sequences(cut->count),
                           .held = (int32_t)cut->tokens,
                           .equal = true,
                           .all_at = -1,
                           .picks_at = -1};
    if (fr_layout_sliced(r->layout)) {
        for (int i = 0; i < r->place.t; i++) t->first += (int32_t)fr_share(cut->tokens, r->layout->tp, i);
        t->held = (int32_t)fr_share(cut->tokens, r->layout->tp, r->place.t);
    }
    share s = share_of(r, cut, t);
    int64_t row = 0;
    for (int32_t i = 0; i < cut->count; i++) {
        const fr_sequence *q = &cut->sequences[i];
        row += q->queries;
        t->equal = t->equal && q->queries == cut->sequences[0].queries;
        t->context += q->queries + q->prefix;
        t->max_q = q->queries > t->max_q ? q->queries : t->max_q;
        t->max_kv = q->queries + q->prefix > t->max_kv ? q->queries + q->prefix : t->max_kv;
        t->wanted_some = t->wanted_some || q->candidates > 0;
        if (!computes(&s, q, row - 1)) continue;
        t->rows_all += q->candidates < 0;
        t->rows_some += q->candidates > 0;
        t->picks += q->candidates > 0 ? q->candidates : 0;
    }
    /* Equal lengths need no masks: faster up to 1,024 tokens, slower above (kernels/measured/README.md). */
    t->equal = t->equal && !r->kv && t->sequences > 1 && t->max_q <= 1024;
}

/* Where the logits of each micro-batch go in the forward's: whole vocabularies of all sequences first, in the batch's
 * order, then candidates. A rank's rows are consecutive ones of each kind. */
static void place_logits(fr_device_rank *r, const fr_cuts *cuts) {
    const int64_t vocab = r->model->vocab;
    int64_t all = 0, picks = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int m = 0; m < cuts->micros; m++) {
            const fr_cut *cut = own_cut(r, cuts, m);
            fr_batch_tables *t = &r->micro[m];
            share s = share_of(r, cut, t);
            int64_t row = 0;
            for (int32_t i = 0; i < cut->count; i++) {
                const fr_sequence *q = &cut->sequences[i];
                row += q->queries;
                const bool here = computes(&s, q, row - 1);
                if (pass == 0 && q->candidates < 0) {
                    if (here && t->all_at < 0) t->all_at = all;
                    all += vocab;
                } else if (pass == 1 && q->candidates > 0) {
                    if (here && t->picks_at < 0) t->picks_at = all + picks;
                    picks += q->candidates;
                }
            }
        }
    }
    r->logits = all + picks;
}

/* ---- planning -----------------------------------------------------------------------------------------------------*/

static fr_status check_batch(const fr_device_rank *r, const fr_cuts *cuts, fr_error *err) {
    int64_t tokens = 0, sequences = 0;
    for (int m = 0; m < cuts->micros; m++) {
        const fr_cut *cut = own_cut(r, cuts, m);
        tokens += cut->tokens;
        sequences += cut->count;
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
    if (tokens <= r->most_tokens && r->logits <= r->most_logits) return FR_OK;
    return fr_fail(err, FR_FAILED,
                   "a batch of %lld sequences, %lld tokens and %lld logits: room was made for %lld, %lld and %lld",
                   (long long)sequences, (long long)tokens, (long long)r->logits, (long long)r->most_sequences,
                   (long long)r->most_tokens, (long long)r->most_logits);
}

/* Ints of a micro-batch on the host; behind them, on the device only, the tables that attention makes of them. */
static int64_t table_ints(const fr_device_rank *r, const fr_batch_tables *t) {
    const int64_t plain = 2 * padded(t->tokens) + padded(t->padded + 1) + padded(t->sequences) + 2 * padded(t->picks);
    return r->kv ? plain + padded(t->tokens) + 2 * padded(t->padded) + padded(t->context) : plain;
}

static int64_t meta_ints(const fr_batch_tables *t) {
    return padded(fr_ceil_div((int64_t)fr_k_attention_meta_bytes(t->padded), 4));
}

fr_status fr_batch_plan(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int64_t *ints,
                        fr_error *err) {
    const int slots = cuts->slots;
    (void)batches;
    if (r->place.slot >= slots || cuts->micros > r->offsets_micros)
        return fr_fail(err, FR_FAILED, "%d batches in %d micro-batches: room was made for slot %d and %d", slots,
                       cuts->micros, r->place.slot, r->offsets_micros);
    FR_GROW(r->micro, r->micro_cap, (uint32_t)cuts->micros);
    FR_GROW(r->tokens, r->tokens_cap, (uint32_t)(cuts->micros * slots));
    r->micros = cuts->micros;
    r->slots = slots;
    for (int i = 0; i < cuts->micros * slots; i++) r->tokens[i] = cuts->cut[i].tokens;
    for (int m = 0; m < cuts->micros; m++) count_micro(r, own_cut(r, cuts, m), &r->micro[m]);
    place_logits(r, cuts);
    FR_TRY(check_batch(r, cuts, err));
    *ints = 0;
    for (int m = 0; m < cuts->micros; m++) *ints += table_ints(r, &r->micro[m]);
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

/* The same places on the host and on the device. */
static void place(fr_batch_tables *t, int32_t *base, bool kv) {
    t->ids = base;
    t->position = t->ids + padded(t->tokens);
    t->q_start = t->position + padded(t->tokens);
    t->rows = t->q_start + padded(t->padded + 1);
    t->pick_row = t->rows + padded(t->sequences);
    t->pick_token = t->pick_row + padded(t->picks);
    t->kv_row = kv ? t->pick_token + padded(t->picks) : NULL;
    t->kv_start = kv ? t->kv_row + padded(t->tokens) : NULL;
    t->kv_len = kv ? t->kv_start + padded(t->padded) : NULL;
    t->context_rows = kv ? t->kv_len + padded(t->padded) : NULL;
}

/* `pick`: the candidates of the batch's sequences before these. */
static void fill(const fr_device_rank *r, fr_batch_tables *h, const fr_cut *cut, const fr_exec_batch *b,
                 int64_t *pick) {
    share s = share_of(r, cut, h);
    int32_t row = 0, all = 0, some = h->rows_all, picked = 0;
    for (int32_t i = 0; i < cut->count; i++) {
        const fr_sequence *q = &cut->sequences[i];
        h->q_start[i] = row;
        for (int32_t j = 0; j < q->queries; j++) h->position[row + j] = q->prefix + j;
        row += q->queries;
        const bool here = computes(&s, q, row - 1);
        if (here && q->candidates < 0) h->rows[all++] = row - 1 - h->first;
        for (int32_t c = 0; here && c < q->candidates; c++, picked++) {
            h->pick_row[picked] = some;
            h->pick_token[picked] = b->candidates[*pick + c];
        }
        if (here && q->candidates > 0) h->rows[some++] = row - 1 - h->first;
        if (q->candidates > 0) *pick += q->candidates;
    }
    for (int32_t i = cut->count; i <= h->padded; i++) h->q_start[i] = row;
    if (row) memcpy(h->ids, b->ids + cut->first, (size_t)row * sizeof *b->ids);
}

/* A later sequence of the batch may share rows that an earlier one computes now: contexts are read after all is
 * planned. */
static void fill_kv(const fr_device_rank *r, fr_batch_tables *h, const fr_cut *cut) {
    int32_t at = 0, token = 0;
    for (int32_t i = 0; i < h->padded; i++) {
        int32_t held = 0;
        const int32_t *rows = i < cut->count ? fr_kv_rows_context(r->kv_rows, cut->sequences[i].kv, &held) : NULL;
        h->kv_start[i] = at;
        h->kv_len[i] = held;
        for (int32_t k = 0; k < held; k++) h->context_rows[at++] = rows[k];
        for (int32_t k = 0; rows && k < cut->sequences[i].queries; k++)
            h->kv_row[token++] = rows[held - cut->sequences[i].queries + k];
    }
}

static fr_status grow(void **memory, int64_t *have, int64_t need, int64_t size, const char *what, fr_error *err) {
    if (need <= *have) return FR_OK;
    const int64_t room = need + need / 2;
    FR_TRY(check(cudaDeviceSynchronize(), "cudaDeviceSynchronize", err)); /* the old one may be in use */
    if (*memory) FR_TRY(check(cudaFree(*memory), "cudaFree", err));
    *memory = NULL;
    *have = 0;
    const cudaError_t e = cudaMalloc(memory, (size_t)(room * size));
    if (e != cudaSuccess)
        return fr_fail(err, FR_FAILED, "%s of %.3f GB: %s", what, (double)(room * size) * 1e-9, cudaGetErrorString(e));
    *have = room;
    return FR_OK;
}

/* A chunk's context is read when its rows are planned and no later ones. */
static fr_status fill_all(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *b, int32_t *staging,
                          fr_error *err) {
    int64_t pick = 0;
    for (int m = 0; m < cuts->micros; m++) {
        const fr_cut *cut = own_cut(r, cuts, m);
        fr_batch_tables *t = &r->micro[m];
        for (int32_t i = 0; i < cut->count && r->kv; i++)
            FR_TRY(plan_rows(r, &cut->sequences[i], b->owners ? b->owners[cut->origin[i]] : cut->origin[i], err));
        place(t, staging, r->kv != NULL);
        fill(r, t, cut, b, &pick);
        if (r->kv) fill_kv(r, t, cut);
        staging += table_ints(r, t);
    }
    return FR_OK;
}

fr_status fr_batch_upload(fr_device_rank *r, const fr_cuts *cuts, const fr_exec_batch *batches, int32_t *staging,
                          cudaStream_t stream, fr_error *err) {
    const int64_t D = r->model->head_dim, width = (int64_t)(r->shard.heads + 2 * r->shard.kv_heads) * D;
    int64_t ints = 0, metas = 0, context = 0;
    for (int m = 0; m < r->micros; m++) {
        ints += table_ints(r, &r->micro[m]);
        metas += meta_ints(&r->micro[m]);
        context = fr_max_i64(context, r->micro[m].context);
    }
    FR_TRY(grow((void **)&r->batch_memory, &r->batch_ints, ints + metas, 4, "tables of a batch", err));
    if (r->kv)
        FR_TRY(
            grow((void **)&r->context, &r->context_capacity, context, 2 * r->kv_width, "the context of a batch", err));
    FR_TRY(fill_all(r, cuts, &batches[r->place.slot], staging, err));
    FR_TRY(check(cudaMemcpyAsync(r->batch_memory, staging, (size_t)ints * 4, cudaMemcpyHostToDevice, stream),
                 "cudaMemcpyAsync of the batch", err));
    int32_t *at = r->batch_memory, *meta = at + ints;
    for (int m = 0; m < r->micros; m++) {
        fr_batch_tables *t = &r->micro[m];
        place(t, at, r->kv != NULL);
        t->meta = meta;
        at += table_ints(r, t);
        meta += meta_ints(t);
        if (t->equal || t->tokens == 0) continue; /* attention.h: no tables are needed then */
        FR_TRY(check(fr_k_attention_meta(t->q_start, t->kv_start, t->kv_len, t->padded, width,
                                         r->kv ? r->kv_width : width, r->shard.heads * D, t->meta, stream),
                     "fr_k_attention_meta", err));
    }
    return FR_OK;
}

/* ---- logits -------------------------------------------------------------------------------------------------------*/

fr_status fr_batch_logits(const fr_device_rank *r, const fr_op *op, const void *device, float *to, cudaStream_t stream,
                          fr_error *err) {
    const fr_batch_tables *t = &r->micro[op->micro];
    const int64_t all = (int64_t)t->rows_all * r->model->vocab;
    if (op->kind != FR_OP_GEMM_HEAD || op->sub != (t->wanted_some ? 1 : 0)) return FR_OK;
    if (all)
        FR_TRY(check(cudaMemcpyAsync(to + t->all_at, device, (size_t)all * 4, cudaMemcpyDeviceToHost, stream),
                     "cudaMemcpyAsync of the logits", err));
    if (!t->picks) return FR_OK;
    return check(cudaMemcpyAsync(to + t->picks_at, (const float *)device + all, (size_t)t->picks * 4,
                                 cudaMemcpyDeviceToHost, stream),
                 "cudaMemcpyAsync of the logits", err);
}

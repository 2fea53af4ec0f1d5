#include "engine/batch_tables.h"

#include <string.h>

static int64_t padded(int64_t n) { /* runs start at multiples of 16 bytes */
    return fr_ceil_div(n, 4) * 4;
}

/* Attention compiles a kernel for each number of sequences: empty ones fill up to the next power of two. */
int32_t fr_padded_sequences(int64_t n) {
    int32_t p = 1;
    while (p < n) p *= 2;
    return p;
}

/* Equal lengths need no masks: faster up to 1,024 tokens, slower above (kernels/measured/README.md). */
bool fr_unmasked(int64_t sequences, int64_t length) {
    return sequences > 1 && length <= FR_ATTENTION_EQUAL;
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

static share share_of(const fr_batch_rank *r, const fr_cut *cut, const fr_batch_tables *t) {
    const int tp = r->layout->tp;
    int64_t all = 0, some = 0;
    for (int32_t i = 0; i < cut->count; i++) {
        all += cut->sequences[i].candidates < 0;
        some += cut->sequences[i].candidates > 0;
    }
    share s = {.sliced = fr_layout_sliced(r->layout),
               .none = !r->head,
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

void fr_batch_count(const fr_batch_rank *r, const fr_cut *cut, fr_batch_tables *t) {
    *t = (fr_batch_tables){.tokens = (int32_t)cut->tokens,
                           .sequences = cut->count,
                           .padded = fr_padded_sequences(cut->count),
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
    t->equal = t->equal && !r->kv && !r->packed && fr_unmasked(t->sequences, t->max_q);
}

int64_t fr_batch_place_logits(const fr_batch_rank *r, const fr_cuts *cuts, fr_batch_tables *tables) {
    const int64_t vocab = r->model->vocab;
    int64_t all = 0, picks = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int m = 0; m < cuts->micros; m++) {
            const fr_cut *cut = &cuts->cut[m * cuts->slots + r->place.slot];
            fr_batch_tables *t = &tables[m];
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
    return all + picks;
}

/* ---- tables ----*/

int64_t fr_batch_ints(const fr_batch_tables *t, bool kv) {
    const int64_t plain = 2 * padded(t->tokens) + padded(t->padded + 1) + padded(t->sequences) + 2 * padded(t->picks);
    return kv ? plain + padded(t->tokens) + 2 * padded(t->padded) + padded(t->context) : plain;
}

void fr_batch_point(fr_batch_tables *t, int32_t *base, bool kv) {
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

void fr_batch_fill(const fr_batch_rank *r, fr_batch_tables *h, const fr_cut *cut, const int32_t *ids,
                   const int32_t *candidates, int64_t *pick) {
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
            h->pick_token[picked] = candidates[*pick + c];
        }
        if (here && q->candidates > 0) h->rows[some++] = row - 1 - h->first;
        if (q->candidates > 0) *pick += q->candidates;
    }
    for (int32_t i = cut->count; i <= h->padded; i++) h->q_start[i] = row;
    if (row) memcpy(h->ids, ids + cut->first, (size_t)row * sizeof *ids);
}

void fr_batch_fill_kv(const fr_kv_rows *rows_of, fr_batch_tables *h, const fr_cut *cut) {
    int32_t at = 0, token = 0;
    for (int32_t i = 0; i < h->padded; i++) {
        int32_t held = 0;
        const int32_t *rows = i < cut->count ? fr_kv_rows_context(rows_of, cut->sequences[i].kv, &held) : NULL;
        h->kv_start[i] = at;
        h->kv_len[i] = held;
        for (int32_t k = 0; k < held; k++) h->context_rows[at++] = rows[k];
        for (int32_t k = 0; rows && k < cut->sequences[i].queries; k++)
            h->kv_row[token++] = rows[held - cut->sequences[i].queries + k];
    }
}

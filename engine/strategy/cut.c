/*
 * cut: what a batch becomes before layers see it: one work per attention group and micro-batch. Micro-batches and the
 * halves of a two-batch overlap are whole sequences; chunks cut through them, and each chunk's attention reads what
 * came before it.
 */
#include "engine/strategy/planner.h"

#include <stdlib.h>

static fr_work *work_at(fr_planner *p, int micro, int slot) {
    uint32_t need = (uint32_t)((micro + 1) * p->slots), had = p->works_cap;
    FR_GROW(p->works, p->works_cap, need);
    for (uint32_t i = had; i < p->works_cap; i++) p->works[i] = (fr_work){0};
    return &p->works[micro * p->slots + slot];
}

static void add(fr_planner *p, fr_work *w, const fr_sequence *s, int32_t origin, uint32_t *cuts) {
    FR_GROW(p->cut, p->cut_cap, *cuts + 1);
    FR_GROW(p->cut_origin, p->cut_origin_cap, *cuts + 1);
    if (w->count == 0) w->first = *cuts;
    p->cut_origin[*cuts] = origin;
    p->cut[(*cuts)++] = *s;
    w->count++;
    w->tokens += s->queries;
    if (s->candidates < 0) {
        w->rows_all++;
        w->flops_all += fr_model_head_flops(&p->model, 1, -1);
    } else if (s->candidates > 0) {
        w->rows_some++;
        w->flops_some += fr_model_head_flops(&p->model, 1, s->candidates);
        if (s->candidates > w->candidates) w->candidates = s->candidates;
    }
}

static int64_t tokens_of(const fr_batch *b) {
    int64_t tokens = 0;
    for (int32_t i = 0; i < b->count; i++) tokens += b->sequences[i].queries;
    return tokens;
}

/* Whole sequences into `parts` runs, each ending nearest to its share of the tokens. */
static void deal(fr_planner *p, const fr_batch *b, int slot, int first, int parts, uint32_t *cuts) {
    int64_t total = tokens_of(b), seen = 0;
    int part = 0;
    for (int m = 0; m < parts; m++) *work_at(p, first + m, slot) = (fr_work){0};
    for (int32_t i = 0; i < b->count; i++) {
        int64_t middle = 2 * seen + b->sequences[i].queries; /* twice the sequence's middle */
        while (part < parts - 1 && middle * parts > 2 * total * (part + 1)) part++;
        add(p, work_at(p, first + part, slot), &b->sequences[i], i, cuts);
        seen += b->sequences[i].queries;
    }
}

/* ---- chunks -------------------------------------------------------------------------------------------------------*/

/* Seconds of one layer's work that grows with tokens alone, per token, at `tokens` tokens: projections and experts. */
static double linear_ns(const fr_planner *p, int64_t tokens) {
    const fr_model *m = &p->model;
    const int64_t kv = (int64_t)m->kv_heads * (m->head_dim + m->v_head_dim);
    fr_pair *rows = fr_alloc((size_t)m->experts * sizeof *rows);
    for (int e = 0; e < m->experts; e++) rows[e].queries = (int32_t)fr_share(tokens * m->top_k, m->experts, e);
    uint8_t fp = (uint8_t)p->layout.precision;
    const fr_shape shapes[4] = {
        {.kind = FR_OP_GEMM_QKV,
         .precision = fp,
         .m = tokens,
         .n = (int32_t)((int64_t)m->heads * m->head_dim + kv),
         .k = m->hidden},
        {.kind = FR_OP_GEMM_O, .precision = fp, .m = tokens, .n = m->hidden, .k = m->heads * m->v_head_dim},
        {.kind = FR_OP_EXPERT_UP,
         .precision = fp,
         .m = tokens * m->top_k,
         .n = 2 * m->expert_width,
         .k = m->hidden,
         .experts = m->experts,
         .vector_count = (uint32_t)m->experts},
        {.kind = FR_OP_EXPERT_DOWN,
         .precision = fp,
         .m = tokens * m->top_k,
         .n = m->hidden,
         .k = m->expert_width,
         .experts = m->experts,
         .vector_count = (uint32_t)m->experts}};
    double ns = 0;
    for (int i = 0; i < 4; i++) {
        fr_cost c;
        fr_cost_op(p->cost, &shapes[i], rows, &c);
        ns += (double)c.ns;
    }
    free(rows);
    return ns / (double)tokens;
}

static double attention_ns(const fr_planner *p, const fr_sequence *s) {
    const fr_model *m = &p->model;
    fr_pair pair = {s->queries, s->prefix};
    fr_shape shape = {.kind = FR_OP_ATTENTION,
                      .precision = FR_BF16,
                      .m = s->queries,
                      .n = m->heads,
                      .k = m->kv_heads,
                      .head_dim = m->head_dim,
                      .v_head_dim = (int16_t)m->v_head_dim,
                      .vector_count = 1};
    fr_cost c;
    if (s->queries < 1) return 0;
    fr_cost_op(p->cost, &shape, &pair, &c);
    return (double)c.ns;
}

/* Where a walk through a batch's tokens stands. */
typedef struct {
    const fr_batch *b;
    int32_t at;   /* sequence */
    int32_t done; /* of its tokens */
} cursor;

/*
 * A balanced chunk is never less than this part of the largest. Behind a long context a chunk reads the whole KV cache
 * and all experts however few tokens it has: chasing the first chunk's cost there ends at single tokens, each of which
 * costs more than that anyway.
 */
#define LEAST_PART 8

/* Takes up to `limit` tokens, and with a target no more than cost `target` (see LEAST_PART); NULL work: only looks. */
static double take(fr_planner *p, cursor *c, int64_t limit, double per_token, double target, fr_work *into,
                   uint32_t *cuts) {
    double cost = 0;
    int64_t left = limit;
    while (left > 0 && c->at < c->b->count) {
        fr_sequence s = c->b->sequences[c->at];
        bool whole = s.queries - c->done <= left;
        s.prefix += c->done;
        s.queries = whole ? s.queries - c->done : (int32_t)left;
        if (target > 0) {
            int32_t low = 0, high = s.queries; /* most queries within what is left of the target */
            while (low < high) {
                fr_sequence t = s;
                t.queries = high - (high - low) / 2;
                if (cost + t.queries * per_token + attention_ns(p, &t) <= target)
                    low = t.queries;
                else
                    high = t.queries - 1;
            }
            int64_t least = fr_ceil_div(limit, LEAST_PART) - (limit - left);
            if (low < least) low = (int32_t)fr_min_i64(least, s.queries);
            if (low < s.queries) {
                whole = false;
                s.queries = low;
                left = low; /* the chunk ends here */
            }
            if (low == 0) break;
        }
        if (!whole || c->done + s.queries < c->b->sequences[c->at].queries) s.candidates = 0;
        if (per_token > 0) cost += s.queries * per_token + attention_ns(p, &s);
        if (into) add(p, into, &s, c->at, cuts);
        left -= s.queries;
        c->done += s.queries;
        if (c->done == c->b->sequences[c->at].queries) {
            c->at++;
            c->done = 0;
        }
    }
    return cost;
}

/* Fixed: chunks of `limit` tokens. Balanced: every chunk costs what the first (the largest) does, so that pipeline
 * stages stay even while attention grows with what came before. Returns the chunks made. */
static int chunk(fr_planner *p, const fr_batch *b, int slot, int64_t limit, uint32_t *cuts) {
    cursor c = {.b = b};
    double per_token = 0, target = 0;
    if (p->layout.chunking == FR_CHUNK_BALANCED) {
        cursor probe = c;
        per_token = linear_ns(p, limit);
        target = take(p, &probe, limit, per_token, 0, NULL, cuts);
    }
    int n = 0;
    while (c.at < b->count) {
        fr_work *w = work_at(p, n++, slot);
        *w = (fr_work){0};
        take(p, &c, limit, per_token, target, w, cuts);
    }
    return n;
}

/* ---- all of it ----------------------------------------------------------------------------------------------------*/

/* Tokens whose K and V attention needs: new ones, and cached ones once for all siblings of a prefix. */
static void count_kv(fr_work *w) {
    w->kv_rows = w->tokens;
    for (int32_t i = 0; i < w->count; i++) {
        const fr_sequence *s = &w->sequences[i];
        bool seen = false;
        for (int32_t j = i - 1; j >= 0 && j >= i - 64 && s->kv_prefix >= 0 && !seen; j--)
            seen = w->sequences[j].kv_prefix == s->kv_prefix;
        if (!seen) w->kv_rows += s->prefix;
    }
}

fr_status fr_forward_works(fr_planner *p, const fr_batch *batches, int *micros, fr_error *err) {
    const fr_layout *l = &p->layout;
    int halves = l->overlap == FR_OVERLAP_TBO ? 2 : 1, parts = l->micro_batches > 1 ? l->micro_batches : 1, made = 1;
    int used = p->folded ? 1 : p->slots;         /* slots that are emitted */
    bool chunked = l->chunk_tokens && l->pp > 1; /* without stages the scheduler has cut already: one forward is one */
    uint32_t cuts = 0;
    int32_t most = 1;
    for (int s = 0; s < used; s++) most = batches[s].count > most ? batches[s].count : most;
    if (parts > most && !chunked) parts = most; /* no micro-batch is empty on all ranks */
    int chunks[2048];                           /* slots of a unit: at most its ranks (fr_planner_open) */
    for (int s = 0; s < used; s++) {
        if (chunked) {
            int64_t limit = fr_min_i64(l->chunk_tokens, fr_max_i64(1, fr_ceil_div(tokens_of(&batches[s]), parts)));
            int n = chunk(p, &batches[s], s, limit, &cuts);
            chunks[s] = n;
            made = n > made ? n : made;
        } else {
            deal(p, &batches[s], s, 0, parts * halves, &cuts);
            made = parts * halves;
        }
    }
    for (int s = 0; s < used && chunked; s++)
        for (int m = chunks[s]; m < made; m++) *work_at(p, m, s) = (fr_work){0};
    if (made > UINT8_MAX + 1)
        return fr_fail(err, FR_BAD_INPUT,
                       "--chunk-tokens, --micro-batches: a forward of %d chunks or micro-batches: at most 256", made);
    for (int m = 0; m < made; m++)
        for (int s = 0; s < used; s++) {
            fr_work *w = &p->works[m * p->slots + s];
            w->sequences = p->cut + w->first;
            count_kv(w);
        }
    *micros = p->micros = made;
    return FR_OK;
}

/* ---- for executors ------------------------------------------------------------------------------------------------*/

fr_cuts *fr_planner_cuts(const fr_planner *p) {
    const int slots = p->folded ? 1 : p->slots;
    size_t count = 0;
    for (int i = 0; i < p->micros * slots; i++) count += (size_t)p->works[i / slots * p->slots + i % slots].count;
    fr_cuts *c = fr_alloc(sizeof *c + (size_t)(p->micros * slots) * sizeof *c->cut);
    fr_sequence *sequences = fr_alloc(count * sizeof *sequences);
    int32_t *origins = fr_alloc(count * sizeof *origins);
    *c = (fr_cuts){.micros = p->micros, .slots = slots, .sequences = sequences, .origins = origins};
    for (int i = 0; i < p->micros * slots; i++) {
        const fr_work *w = &p->works[i / slots * p->slots + i % slots];
        const fr_cut *before = i < slots ? NULL : &c->cut[i - slots];
        c->cut[i] = (fr_cut){.sequences = sequences,
                             .origin = origins,
                             .count = w->count,
                             .first = before ? before->first + before->tokens : 0,
                             .tokens = w->tokens};
        for (int32_t k = 0; k < w->count; k++) {
            *sequences++ = w->sequences[k];
            *origins++ = p->cut_origin[w->first + (uint32_t)k];
        }
    }
    return c;
}

void fr_cuts_free(fr_cuts *c) {
    if (!c) return;
    free(c->sequences);
    free(c->origins);
    free(c);
}

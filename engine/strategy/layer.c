/*
 * layer: the ops that a layer has under every layout. HBM bytes of memory-bound ops are what must move once, from the
 * dimensions alone: bf16 activations (2 bytes), fp32 router logits, 4-byte ids; each is stated where it is made. FLOPs
 * are the model's: work done twice (on every rank of a tp group, K and V rebuilt from a cached latent) counts once.
 */
#include "engine/strategy/planner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BF16 2

/* ---- to and from the host -----------------------------------------------------------------------------------------*/

static uint32_t words_shape(fr_walk *w, fr_op_kind kind, int64_t words) {
    return fr_memory_shape(w, kind, words, 1, 4 * words);
}

/*
 * What all micro-batches of the forward are to this rank, in words (engine/batch_tables.h): ids and positions of the
 * tokens, ends of the sequences, which rows want logits and which candidates; with a KV cache the rows of the tokens
 * and of all that they attend to.
 */
void fr_emit_upload(fr_walk *w, fr_rank *r) {
    const fr_planner *p = w->p;
    const int each = p->asap ? 1 : p->slots, first = p->asap ? 0 : r->slot, micros = w->micros * (p->asap ? 2 : 1);
    int64_t words = 0;
    for (int m = 0; m < micros; m++) {
        const fr_work *work = &w->works[m * each + first];
        words += 2 * work->tokens + 2 * work->count + 2 * work->rows_some * work->candidates;
        for (int32_t i = 0; i < work->count && p->load.kept; i++)
            words += 2 + 2 * work->sequences[i].queries + work->sequences[i].prefix;
    }
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_UPLOAD, words_shape(w, FR_OP_UPLOAD, words), 0);
}

/* Where each expert's rows began, of every layer: tokens per expert and one more for each part (engine/cuda/rank.h). */
void fr_emit_counts(fr_walk *w, fr_rank *r, int batches) {
    const fr_planner *p = w->p;
    const int64_t each = p->model.experts + p->moe_groups, words = batches * (int64_t)(w->end - w->first) * each;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_DOWNLOAD, words_shape(w, FR_OP_DOWNLOAD, words), 1);
}

/* The residual stream: a plain buffer, or in a pipeline the slot that this micro-batch came in. */
void fr_hidden_use(fr_walk *w, fr_rank *r, fr_use use) {
    bool pool = w->p->stages > 1;
    fr_use_buffer(w->f, use, fr_scratch_of(w, r)->hidden, pool ? r->hidden_hold[w->half] : 0);
}

/* Ids in (4 bytes a token), rows of the table in, rows out. Every rank of a tp group embeds what it holds. */
void fr_emit_embed(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    int64_t tokens = fr_tokens_here(w, r), hidden = p->model.hidden;
    uint32_t shape = fr_memory_shape(w, FR_OP_EMBED, tokens, hidden, tokens * (4 + 2 * BF16 * hidden));
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_EMBED, shape, 0);
    if (p->stages > 1) {
        uint32_t pool = fr_scratch_of(w, r)->hidden;
        r->hidden_hold[w->half] = p->holds.value[pool]++;
        fr_use_buffer(w->f, FR_USE_ACQUIRE, pool, r->hidden_hold[w->half]);
    }
    fr_hidden_use(w, r, FR_USE_WRITE);
}

/*
 * RMSNorm: rows in, rows out. With the result of the block before still to be added (residual): that in, the stream in
 * and out, rows out. In fp8 the normed row is written quantised where only products read it, plain where a router, an
 * exchange or the permutation (which quantises on its way) does, and both ways where shared experts stand beside those.
 */
void fr_emit_norm(fr_walk *w, fr_rank *r, int sub) {
    fr_planner *p = w->p;
    if (sub == 0 && r->normed) { /* by the combine before it */
        r->normed = false;
        return;
    }
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_model *m = &p->model;
    const bool experts = sub == 1 && fr_model_is_moe_layer(m, w->layer), fp8 = p->layout.precision == FR_FP8;
    const bool plain = !fp8 || experts || p->sliced;
    const bool quantised = fp8 && !(p->sliced && !experts) && (!experts || m->shared_width > 0);
    int64_t tokens = fr_tokens_here(w, r), row = BF16 * (int64_t)m->hidden;
    int64_t bytes = tokens * (row * ((r->residual ? 3 : 1) + plain) + (quantised ? fr_fp8_row(w, m->hidden) : 0));
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_NORM, fr_memory_shape(w, FR_OP_NORM, tokens, m->hidden, bytes), sub);
    fr_hidden_use(w, r, FR_USE_READ);
    if (r->residual) {
        fr_read(w, b->delta);
        fr_hidden_use(w, r, FR_USE_WRITE);
        r->residual = false;
    }
    fr_write(w, b->normed);
}

/* Where no norm follows: result in, stream in and out. */
void fr_add_residual(fr_walk *w, fr_rank *r) {
    int64_t tokens = fr_tokens_here(w, r), row = BF16 * (int64_t)w->p->model.hidden;
    if (!r->residual) return;
    r->residual = false;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_REDUCE,
           fr_memory_shape(w, FR_OP_REDUCE, tokens, w->p->model.hidden, 3 * tokens * row), 15);
    fr_read(w, fr_scratch_of(w, r)->delta);
    fr_hidden_use(w, r, FR_USE_READ);
    fr_hidden_use(w, r, FR_USE_WRITE);
}

/* ---- attention ----------------------------------------------------------------------------------------------------*/

static uint32_t kv_buffer(fr_planner *p, fr_rank *r, int32_t handle) {
    if ((uint32_t)handle >= p->kv_cap) {
        uint32_t cap = p->kv_cap ? p->kv_cap : 64;
        while ((uint32_t)handle >= cap) cap *= 2;
        uint32_t *grown = fr_alloc((size_t)cap * (size_t)p->ranks_count * sizeof *grown);
        for (int i = 0; i < p->ranks_count && p->kv_cap; i++)
            memcpy(grown + (size_t)i * cap, p->kv + (size_t)i * p->kv_cap, p->kv_cap * sizeof *grown);
        free(p->kv);
        p->kv = grown;
        p->kv_cap = cap;
    }
    uint32_t *at = &p->kv[(size_t)r->rank * p->kv_cap + (size_t)handle];
    if (*at == 0) {
        char name[24];
        snprintf(name, sizeof name, "kv%d", handle);
        *at = fr_plan_buffer(p->plan, r->rank, FR_BUF_KV, name, 0, 0, true) + 1; /* a part of the rank's KV memory */
    }
    return *at - 1;
}

#define USES_LIMIT 240 /* of KV; an op holds at most 255 in all */

static void kv_use(fr_walk *w, fr_rank *r, fr_use use, int32_t handle, int *uses, int *fences) {
    if (*uses == USES_LIMIT) {
        fr_shape s = {.kind = FR_OP_FENCE};
        fr_put(w, r, FR_LANE_COMPUTE, FR_OP_FENCE, fr_intern_shape(w, &s), (*fences)++);
        r->launches--;
        *uses = 0;
    }
    ++*uses;
    fr_use_buffer(w->f, use, kv_buffer(w->p, r, handle), 0);
}

/*
 * KV handles, in the stage's first layer only: lanes are in order, so what holds between forwards there holds in every
 * layer behind it. Reads stand on fences before the attention op where they are many.
 */
static void kv_uses(fr_walk *w, fr_rank *r, bool write) {
    fr_work *work = fr_work_of(w, r);
    int uses = 0, fences = write ? 0 : 512;
    if (!w->p->layout.kv_cache || !w->first_layer) return;
    for (int32_t i = 0; i < work->count; i++) {
        const fr_sequence *s = &work->sequences[i];
        if (write && s->kv >= 0) kv_use(w, r, FR_USE_WRITE, s->kv, &uses, &fences);
        if (!write && s->kv >= 0) kv_use(w, r, FR_USE_READ, s->kv, &uses, &fences);
        bool again = i > 0 && s->kv_prefix == s[-1].kv_prefix; /* siblings mostly stand together */
        if (!write && s->kv_prefix >= 0 && s->kv_prefix != s->kv && !again)
            kv_use(w, r, FR_USE_READ, s->kv_prefix, &uses, &fences);
    }
}

static uint32_t attention_shape(fr_walk *w, fr_rank *r, int split) {
    fr_planner *p = w->p;
    const fr_model *m = &p->model;
    fr_work *work = fr_work_of(w, r);
    int window = fr_model_window(m, w->layer);
    uint32_t *have = &work->attention[window != 0];
    if (*have || work->tokens == 0) return *have;
    FR_GROW(p->pairs, p->pairs_cap, work->count);
    double flops = 0;
    for (int32_t i = 0; i < work->count; i++) {
        const fr_sequence *s = &work->sequences[i];
        p->pairs[i] = (fr_pair){s->queries, s->prefix};
        flops += fr_model_attention_flops(m, w->layer, s->queries, s->prefix);
    }
    fr_shape s = {.kind = FR_OP_ATTENTION,
                  .precision = FR_BF16,
                  .m = work->tokens,
                  .n = m->heads / split,
                  .k = m->kv_heads / split > 0 ? m->kv_heads / split : 1,
                  .head_dim = m->head_dim,
                  .v_head_dim = (int16_t)m->v_head_dim,
                  .window = window,
                  .flops = flops / split};
    return *have = fr_shape_add(w->f, &s, p->pairs, (uint32_t)work->count);
}

/* q, k and v at once; K and V heads are repeated where a tp group has more ranks than the model has KV heads. */
static int64_t project_gqa(fr_walk *w, fr_rank *r, int split, int64_t tokens, uint32_t from) {
    const fr_model *m = &w->p->model;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t kv = m->kv_heads >= split ? m->kv_heads / split : 1, d = m->head_dim;
    int64_t n = (m->heads / split + kv) * d + kv * m->v_head_dim;
    double flops = 2.0 * (double)tokens * m->hidden / split *
                   (double)((m->heads + m->kv_heads) * d + (int64_t)m->kv_heads * m->v_head_dim);
    uint32_t shape = fr_gemm_shape(w, FR_OP_GEMM_QKV, w->p->layout.precision, tokens, n, m->hidden, flops);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_QKV, shape, 0);
    fr_read(w, from);
    fr_write(w, b->qkv);
    return tokens * 2 * BF16 * (m->heads / split + kv) * d; /* rotary: q and k in and out */
}

/* Latent projections (arXiv 2405.04434 section 2.1): down for q and kv in one GEMM, then up; K and V are rebuilt from
 * the latent for cached prefixes too, which is work but no model FLOPs. */
static int64_t project_mla(fr_walk *w, fr_rank *r, int split, int64_t tokens, uint32_t from) {
    const fr_model *m = &w->p->model;
    fr_scratch *b = fr_scratch_of(w, r);
    fr_precision fp = w->p->layout.precision;
    int64_t heads = m->heads / split, down = m->q_rank + m->kv_rank + m->rope_dim;
    int64_t nope = m->head_dim - m->rope_dim, q_in = m->q_rank ? m->q_rank : m->hidden;
    double t2 = 2.0 * (double)tokens / split;
    const struct {
        int64_t m, n, k;
        double flops;
    } g[3] = {{tokens, down, m->hidden, t2 * (double)(m->hidden * down)},
              {tokens, heads * m->head_dim, q_in, t2 * (double)((int64_t)m->heads * m->head_dim * q_in)},
              {fr_work_of(w, r)->kv_rows, heads * (nope + m->v_head_dim), m->kv_rank,
               t2 * (double)(m->heads * (nope + m->v_head_dim) * m->kv_rank)}};
    for (int i = 0; i < 3; i++) {
        uint32_t shape = fr_gemm_shape(w, FR_OP_GEMM_DENSE, fp, g[i].m, g[i].n, g[i].k, g[i].flops);
        fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_DENSE, shape, i);
        fr_read(w, i == 0 ? from : b->qkv);
        fr_write(w, b->qkv);
    }
    /* rotary parts of q and the shared key, latent norms: in and out */
    return tokens * 2 * BF16 * ((heads + 1) * m->rope_dim + m->q_rank + m->kv_rank);
}

/* Rows of all the batch's tokens quantised by an op of their own: in and out. */
void fr_emit_quantise(fr_walk *w, fr_rank *r, int sub, int64_t width, uint32_t from, uint32_t to) {
    int64_t tokens = fr_work_of(w, r)->tokens, bytes = tokens * (BF16 * width + fr_fp8_row(w, width));
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_NORM, fr_memory_shape(w, FR_OP_NORM, tokens, width, bytes), sub);
    fr_read(w, from);
    fr_write(w, to);
}

/*
 * One rank's whole output projection adds the residual stream in its epilogue (stream in and out, fp32 until the one
 * rounding); a part of it (tp) leaves a partial result, and quantised operands keep the plain product.
 */
static void project_out(fr_walk *w, fr_rank *r, int split) {
    fr_planner *p = w->p;
    const fr_model *m = &p->model;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t tokens = fr_work_of(w, r)->tokens, width = (int64_t)(m->heads / split) * m->v_head_dim;
    double flops = 2.0 * (double)tokens * m->hidden * m->heads * m->v_head_dim / split;
    uint32_t shape = fr_gemm_shape(w, FR_OP_GEMM_O, p->layout.precision, tokens, m->hidden, width, flops);
    /* Which a library's attention kernel does not do; q, k and v are done with. */
    if (p->layout.precision == FR_FP8) fr_emit_quantise(w, r, 3, width, b->heads, b->qkv);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_O, shape, 0);
    fr_read(w, p->layout.precision == FR_FP8 ? b->qkv : b->heads);
    r->residual = split > 1 || p->layout.precision != FR_BF16;
    if (r->residual) {
        fr_write(w, b->delta);
    } else {
        fr_hidden_use(w, r, FR_USE_READ);
        fr_hidden_use(w, r, FR_USE_WRITE);
    }
}

void fr_emit_heads(fr_walk *w, fr_rank *r, int split, uint32_t from) {
    fr_planner *p = w->p;
    const fr_model *m = &p->model;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t tokens = fr_work_of(w, r)->tokens;
    bool mla = m->attention == FR_ATTENTION_MLA;
    int64_t bytes = mla ? project_mla(w, r, split, tokens, from) : project_gqa(w, r, split, tokens, from);
    if (p->load.kept) /* written into the cache */
        bytes += tokens * fr_model_kv_bytes_layer(m) / (mla ? 1 : split < m->kv_heads ? split : m->kv_heads);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_ROPE,
           fr_memory_shape(w, FR_OP_ROPE, tokens, (m->heads / split) * m->head_dim, bytes), 0);
    fr_read(w, b->qkv);
    fr_write(w, b->qkv);
    kv_uses(w, r, true);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_ATTENTION, attention_shape(w, r, split), 0);
    fr_read(w, b->qkv);
    fr_write(w, b->heads);
    kv_uses(w, r, false);
    project_out(w, r, split);
}

/* ---- feed-forward -------------------------------------------------------------------------------------------------*/

/* Router logits (bf16 weights, fp32 out), then top-k: logits in, k ids and weights out. `share` of the FLOPs counts. */
void fr_emit_router(fr_walk *w, fr_rank *r, int64_t tokens, double share) {
    const fr_model *m = &w->p->model;
    fr_scratch *b = fr_scratch_of(w, r);
    double flops = 2.0 * (double)tokens * m->hidden * m->experts * share;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_ROUTER,
           fr_gemm_shape(w, FR_OP_GEMM_ROUTER, FR_BF16, tokens, m->experts, m->hidden, flops), 0);
    fr_read(w, b->normed);
    fr_write(w, b->logits);
    int64_t bytes = tokens * (4 * (int64_t)m->experts + 8 * (int64_t)m->top_k);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_TOPK, fr_memory_shape(w, FR_OP_TOPK, tokens, m->experts, bytes), 0);
    fr_read(w, b->logits);
    fr_write(w, b->route);
}

/* A gated FFN of `width`, split over `split` ranks: up and gate, SwiGLU (two halves in, one out), down. */
void fr_emit_ffn(fr_walk *w, fr_rank *r, int64_t tokens, int64_t width, int split, int sub, uint32_t in, uint32_t out) {
    const fr_model *m = &w->p->model;
    fr_scratch *b = fr_scratch_of(w, r);
    fr_precision fp = w->p->layout.precision;
    int64_t part = fr_ceil_div(width, split);
    double flops = 2.0 * (double)tokens * m->hidden * (double)width / split;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_DENSE,
           fr_gemm_shape(w, FR_OP_GEMM_DENSE, fp, tokens, 2 * part, m->hidden, 2 * flops), sub);
    fr_read(w, in);
    fr_write(w, b->shared);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_SWIGLU,
           fr_memory_shape(w, FR_OP_SWIGLU, tokens, part, tokens * (3 * BF16 * part + fr_fp8_row(w, part))), sub);
    fr_read(w, b->shared);
    fr_write(w, b->shared);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_DENSE,
           fr_gemm_shape(w, FR_OP_GEMM_DENSE, fp, tokens, m->hidden, part, flops), sub + 1);
    fr_read(w, b->shared);
    fr_write(w, out);
}

/* The shared experts' result joins the routed one's in the combine. */
void fr_emit_shared(fr_walk *w, fr_rank *r, int64_t tokens, int split) {
    fr_planner *p = w->p;
    if (!p->model.shared_width) return;
    fr_scratch *b = fr_scratch_of(w, r);
    fr_emit_ffn(w, r, tokens, p->model.shared_width, split, 6, b->normed, b->shared);
}

/*
 * Rows of this rank's experts: stable sort of the ids (id in, position and source out: 12 bytes a row, and a
 * histogram), rows gathered in expert order (in and out; quantised on the way in fp8), the two grouped GEMMs. `source`
 * holds the rows, `rows` of them.
 */
void fr_emit_sort(fr_walk *w, fr_rank *r, const fr_moe *m, uint32_t source, int sub) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t hidden = p->model.hidden, fp8 = fr_fp8_row(w, hidden);
    int64_t out = fp8 ? fp8 : BF16 * hidden, sort = 12, tables = 8 * (int64_t)p->model.experts;
    bool quantised = fp8 && source != b->normed && p->layout.exchange == FR_EXCHANGE_A2A_FP8;
    int64_t moved = (quantised ? fp8 : BF16 * hidden) + out; /* a row that came quantised moves as it is */
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_SORT,
           fr_memory_shape(w, FR_OP_SORT, m->rows, p->model.experts, m->rows * sort + tables), sub);
    fr_read(w, source == b->normed ? b->route : source); /* ids travel with their rows */
    fr_write(w, b->order);
    if (b->counts != FR_NONE)
        fr_late(w->f, b->counts, fr_memory_shape(w, FR_OP_SORT, m->bound, p->model.experts, m->bound * sort + tables));
    const int64_t sources = quantised ? m->rows : m->landed > 0 ? m->landed : m->tokens;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_PERMUTE, fr_permute_shape(w, m->rows, sources, hidden, m->rows * moved), sub);
    fr_read(w, b->order);
    fr_read(w, source);
    fr_write(w, b->rows);
    if (b->counts != FR_NONE)
        fr_late(w->f, b->counts, fr_permute_shape(w, m->bound, m->bound, hidden, m->bound * moved));
}

static void weights_use(fr_walk *w, fr_rank *r) {
    if (r->hold < 0) {
        fr_read(w, r->first != FR_NONE ? r->first : r->experts);
        return;
    }
    if (r->experts != FR_NONE) fr_read(w, r->experts); /* the own shard is used where it lies */
    fr_use_buffer(w->f, FR_USE_READ, r->pool, (uint32_t)r->hold);
}

void fr_emit_grouped(fr_walk *w, fr_rank *r, const fr_moe *m, int sub) {
    fr_scratch *b = fr_scratch_of(w, r);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_EXPERT_UP, m->up, sub);
    fr_read(w, b->rows);
    weights_use(w, r);
    fr_write(w, b->mid);
    if (b->counts != FR_NONE) fr_late(w->f, b->counts, m->up_bound);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_EXPERT_DOWN, m->down, sub);
    fr_read(w, b->mid);
    weights_use(w, r);
    fr_write(w, b->out);
    if (b->counts != FR_NONE) fr_late(w->f, b->counts, m->down_bound);
}

/* A combine that holds the finished row of the stream writes the next layer's normed row too (in fp8 quantised): one
 * more row out, and no norm that reads it again. Not where experts are split by width (partial results are summed after
 * it).
 */
static bool norms_next(const fr_walk *w) {
    const fr_layout *l = &w->p->layout;
    const bool whole = l->experts != FR_EXP_TP && l->experts != FR_EXP_ASAP;
    return whole && l->tp == 1 && w->layer + 1 < w->end;
}

/*
 * Weighted sum: `rows` rows in, one a token out, with the shared experts' row. Into the residual stream (in and out),
 * or as a partial result into delta or over the tokens that were gathered.
 */
void fr_emit_combine(fr_walk *w, fr_rank *r, uint32_t source, int64_t rows, int64_t tokens, uint32_t into) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    bool shared = p->model.shared_width > 0, residual = into == FR_NONE;
    bool next = residual && norms_next(w);
    int64_t row = BF16 * (int64_t)p->model.hidden, fp8 = fr_fp8_row(w, p->model.hidden), normed = fp8 ? fp8 : row;
    int64_t bytes = row * (rows + tokens * (1 + residual + shared)) + next * tokens * normed;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_COMBINE, fr_memory_shape(w, FR_OP_COMBINE, tokens, p->model.hidden, bytes), 0);
    fr_read(w, source);
    if (source == b->out) fr_read(w, b->order);                 /* else rows come summed */
    fr_read(w, residual || into == b->delta ? b->route : into); /* weights: beside what travelled here */
    if (shared) fr_read(w, b->shared);
    if (residual) {
        fr_hidden_use(w, r, FR_USE_READ);
        fr_hidden_use(w, r, FR_USE_WRITE);
        if (next) fr_write(w, b->normed);
    } else {
        fr_write(w, into);
    }
    r->residual = !residual;
    r->normed = next;
}

/* ---- head ---------------------------------------------------------------------------------------------------------*/

/* The last op of a batch says that its logits are known; one rank of a tp group speaks for it (the first has most
 * rows).
 */
static void answer(fr_walk *w, fr_rank *r) {
    uint32_t head = w->f->head_of[r->lane[FR_LANE_COMPUTE]];
    if (head && r->t == 0 && fr_work_of(w, r)->count) w->f->ops[w->f->heads[head - 1].last].flags |= FR_OP_ANSWER;
}

/* Rows of a tp group's batch that this rank computes logits of: those whose token it holds where each rank holds a part
 * of the tokens, else its share of their number. */
static void head_rows(const fr_walk *w, const fr_rank *r, int64_t *all, int64_t *some) {
    const fr_planner *p = w->p;
    const fr_work *work = fr_work_of(w, r);
    int tp = p->layout.tp;
    *all = fr_share(work->rows_all, tp, r->t);
    *some = fr_share(work->rows_some, tp, r->t);
    if (!p->sliced || p->folded) return;
    int64_t first = 0, end, row = 0;
    for (int i = 0; i < r->t; i++) first += fr_share(work->tokens, tp, i);
    end = first + fr_share(work->tokens, tp, r->t);
    *all = *some = 0;
    for (int32_t i = 0; i < work->count; i++) {
        row += work->sequences[i].queries;
        if (row - 1 < first || row - 1 >= end) continue;
        *all += work->sequences[i].candidates < 0;
        *some += work->sequences[i].candidates > 0;
    }
}

/*
 * Final norm over the rows that want logits (gathered on the way: rows in, with the pending result, and out), then the
 * head: the whole vocabulary, or each row's few candidates (n = candidates). Ranks of a tp group, which all hold the
 * head, share the rows out. The host gets what each of them has.
 */
void fr_emit_head(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_work *work = fr_work_of(w, r);
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_model *m = &p->model;
    int tp = p->layout.tp;
    int64_t all, some;
    head_rows(w, r, &all, &some);
    int64_t rows = all + some, row = BF16 * (int64_t)m->hidden;
    uint32_t norm = fr_memory_shape(w, FR_OP_NORM, rows, m->hidden, (r->residual ? 3 : 2) * rows * row);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_NORM, norm, 2);
    fr_hidden_use(w, r, FR_USE_READ);
    if (r->residual) fr_read(w, b->delta);
    fr_write(w, b->normed);
    r->residual = false;
    const struct {
        int64_t rows, total, n;
        double flops;
    } parts[2] = {{all, work->rows_all, m->vocab, work->flops_all},
                  {some, work->rows_some, work->candidates, work->flops_some}};
    for (int i = 0; i < 2; i++) {
        if (i == 0 ? work->rows_all == 0 : work->rows_some == 0) continue;
        /* One rank that stands for all of a folded group carries the mean, so that totals are exact. */
        double flops =
            p->folded ? parts[i].flops / tp : parts[i].flops * (double)parts[i].rows / (double)parts[i].total;
        fr_put(w, r, FR_LANE_COMPUTE, FR_OP_GEMM_HEAD,
               fr_gemm_shape(w, FR_OP_GEMM_HEAD, FR_BF16, parts[i].rows, parts[i].n, m->hidden, flops), i);
        fr_read(w, b->normed);
        fr_write(w, b->logits);
    }
    if (work->rows_all + work->rows_some > 0) {
        const int64_t words = all * m->vocab + some * work->candidates;
        fr_put(w, r, FR_LANE_COMPUTE, FR_OP_DOWNLOAD, words_shape(w, FR_OP_DOWNLOAD, words), 0);
        fr_read(w, b->logits);
    }
    answer(w, r);
}

/* A rank's memory: the arena cut from the plan's buffers, workspaces, tables; and the tables of a batch. */
#include "engine/cuda/rank.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 512

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

/* ---- arena --------------------------------------------------------------------------------------------------------*/

/* Bytes of an activation buffer. The plan's logits buffer is sized for every sequence asking for the whole vocabulary;
 * here it is known how many logits come. */
static int64_t activation_bytes(const fr_device_rank *r, const fr_buffer *b) {
    if (strncmp(b->name, "logits", 6) != 0) return b->bytes;
    const int64_t router = 4 * r->most_tokens * r->model->experts;
    return fr_max_i64(router, 4 * r->most_logits);
}

/* The plan's activation buffers of this rank one after the other, then what no plan lists. */
static void cut_arena(fr_device_rank *r, const fr_plan *plan, char *base) {
    const fr_model *m = r->model;
    int64_t at = 0;
#define CUT(pointer, bytes)                                                                                            \
    do {                                                                                                               \
        (pointer) = base ? (void *)(base + at) : NULL;                                                                 \
        at += fr_ceil_div((int64_t)(bytes), ALIGN) * ALIGN + ALIGN;                                                    \
    } while (0)
    for (uint32_t i = 0; i < plan->buffers_count; i++) {
        const fr_buffer *b = &plan->buffers[i];
        if (b->kind != FR_BUF_ACTIVATION || b->rank != r->rank) continue;
        r->buffer_bytes[i] = activation_bytes(r, b);
        CUT(r->buffers[i], r->buffer_bytes[i]);
    }
    CUT(r->gemm_workspace, FR_GEMM_WORKSPACE);
    CUT(r->route_workspace, fr_k_route_workspace(r->most_tokens * m->top_k, m->experts));
    CUT(r->rope, r->positions * m->head_dim / 2 * 4);
    CUT(r->offsets, (int64_t)r->layers * (m->experts + 1) * 4);
    CUT(r->counter, 16);
    CUT(r->batch.meta, fr_k_attention_meta_bytes(2 * (int32_t)r->most_sequences));
#undef CUT
    r->arena_bytes = at;
}

static fr_status open_arena(fr_device_rank *r, const fr_plan *plan, fr_error *err) {
    cut_arena(r, plan, NULL);
    const cudaError_t e = cudaMalloc((void **)&r->arena, (size_t)r->arena_bytes);
    if (e == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&available, &total);
        return fr_fail(
            err, FR_FAILED,
            "activations of %lld tokens need %.2f GB of GPU memory beside %.1f GB of weights, %.2f of %.1f GB "
            "are free: take fewer --tokens (or --budget), fewer --resident-layers, or more GPUs",
            (long long)r->most_tokens, (double)r->arena_bytes * 1e-9, (double)r->weights->bytes * 1e-9,
            (double)available * 1e-9, (double)total * 1e-9);
    }
    FR_TRY(check(e, "cudaMalloc of the activations", err));
    cut_arena(r, plan, r->arena);
    /* What is read before it is written must show: fill with NaN bits. */
    FR_TRY(check(cudaMemset(r->arena, 0xff, (size_t)r->arena_bytes), "cudaMemset", err));
    return check(cudaMemset(r->counter, 0, 16), "cudaMemset", err);
}

/* Filled with noise: what is read of a made-up prefix must be numbers like any. */
static fr_status open_kv(fr_device_rank *r, fr_error *err) {
    if (r->kv_capacity == 0) return FR_OK;
    if (r->kv_capacity > INT32_MAX) return fr_fail(err, FR_BAD_INPUT, "a KV cache of more than 2^31 tokens");
    const int64_t elements = r->layers * r->kv_capacity * r->kv_width;
    const cudaError_t e = cudaMalloc((void **)&r->kv, (size_t)elements * sizeof *r->kv);
    if (e == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&available, &total);
        return fr_fail(
            err, FR_FAILED,
            "a KV cache of %lld tokens needs %.2f GB of GPU memory, %.2f of %.1f GB are free: --cache-tokens "
            "%lld would fit",
            (long long)r->kv_capacity, 2e-9 * (double)elements, (double)available * 1e-9, (double)total * 1e-9,
            (long long)((int64_t)available / (2 * r->layers * r->kv_width)));
    }
    FR_TRY(check(e, "cudaMalloc of the KV cache", err));
    r->kv_rows = fr_kv_rows_new((int32_t)r->kv_capacity);
    return check(fr_k_fill_normal(r->kv, elements, 1, 0, 1.0f, NULL), "filling the KV cache", err);
}

fr_status fr_rank_open(const fr_exec_options *o, fr_device_rank *r, fr_error *err) {
    *r = (fr_device_rank){.model = o->model, .layout = o->layout, .weights = o->weights, .rank = o->rank};
    r->layers = fr_layout_layers(o->layout, o->model);
    r->most_tokens = o->load.tokens;
    r->most_sequences = fr_max_i64(o->load.sequences, 1);
    r->positions = fr_max_i64(o->positions, 1);
    r->most_picks = r->most_sequences * fr_max_i64(o->candidates, 0);
    r->most_logits = r->most_sequences * fr_max_i64(o->vocabulary ? o->model->vocab : 1, o->candidates);
    r->kv_width = 2 * (int64_t)o->model->kv_heads * o->model->head_dim;
    r->kv_capacity = o->kv_tokens;
    r->made_up_prefix = o->made_up_prefix;
    r->varied = o->varied;
    r->buffers_count = o->plan->buffers_count;
    r->buffers = fr_alloc(r->buffers_count * sizeof *r->buffers);
    r->buffer_bytes = fr_alloc(r->buffers_count * sizeof *r->buffer_bytes);
    FR_TRY(open_arena(r, o->plan, err));
    FR_TRY(open_kv(r, err));
    FR_TRY(check(fr_k_rope_table(r->rope, r->positions, r->model->head_dim, (float)r->model->rope_theta, NULL),
                 "rope table", err));
    FR_TRY(check(cudaDeviceSynchronize(), "rope table", err));
    FR_TRY(fr_gemm_open(&r->gemm, err));
    return fr_attention_open(&r->attention, true, err);
}

void fr_rank_close(fr_device_rank *r) {
    fr_attention_close(r->attention);
    fr_gemm_close(r->gemm);
    if (r->attention_workspace) cudaFree(r->attention_workspace);
    if (r->arena) cudaFree(r->arena);
    if (r->batch_memory) cudaFree(r->batch_memory);
    if (r->kv) cudaFree(r->kv);
    if (r->context) cudaFree(r->context);
    fr_kv_rows_free(r->kv_rows);
    free(r->kv_owner);
    free(r->buffers);
    free(r->buffer_bytes);
    *r = (fr_device_rank){0};
}

/* ---- a batch ------------------------------------------------------------------------------------------------------*/

static int64_t padded(int64_t n) { /* runs start at multiples of 16 bytes */
    return fr_ceil_div(n, 4) * 4;
}

/* Attention compiles a kernel for each number of sequences: empty ones fill up to the next power of two. */
static int32_t padded_sequences(int64_t n) {
    int32_t p = 1;
    while (p < n) p *= 2;
    return p;
}

static fr_status check_batch(const fr_device_rank *r, const fr_exec_batch *b, const fr_batch_tables *t, fr_error *err) {
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        if (s->prefix != 0 && !r->kv)
            return fr_fail(err, FR_FAILED, "sequence %d continues %d cached tokens, but no KV cache was opened", i,
                           s->prefix);
        if (s->queries < 1 || s->queries + (int64_t)s->prefix > r->positions)
            return fr_fail(err, FR_FAILED, "sequence %d has %d + %d tokens, 1 to %lld were planned for", i, s->prefix,
                           s->queries, (long long)r->positions);
    }
    if (b->count < 1 || b->count > r->most_sequences || t->tokens > r->most_tokens || t->picks > r->most_picks ||
        t->logits > r->most_logits)
        return fr_fail(err, FR_FAILED,
                       "a batch of %d sequences, %d tokens and %lld logits: room was made for %lld, %lld and %lld",
                       b->count, t->tokens, (long long)t->logits, (long long)r->most_sequences,
                       (long long)r->most_tokens, (long long)r->most_logits);
    return FR_OK;
}

static void count_batch(const fr_device_rank *r, const fr_exec_batch *b, fr_batch_tables *t) {
    t->equal = true;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        t->tokens += s->queries;
        t->equal = t->equal && s->queries == b->sequences[0].queries;
        t->rows_all += s->candidates < 0;
        t->rows_some += s->candidates > 0;
        t->picks += s->candidates > 0 ? s->candidates : 0;
        t->context += s->queries + s->prefix;
        t->max_q = s->queries > t->max_q ? s->queries : t->max_q;
        t->max_kv = s->queries + s->prefix > t->max_kv ? s->queries + s->prefix : t->max_kv;
    }
    /* Equal lengths need no masks: faster up to 1,024 tokens, slower above (kernels/measured/README.md). */
    t->equal = t->equal && !r->kv && t->sequences > 1 && t->max_q <= 1024;
    t->logits = (int64_t)t->rows_all * r->model->vocab + t->picks;
}

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

static int64_t table_ints(const fr_device_rank *r, const fr_batch_tables *t) {
    const int64_t plain = 2 * padded(t->tokens) + padded(t->padded + 1) + padded(t->sequences) + 2 * padded(t->picks);
    return r->kv ? plain + padded(t->tokens) + 2 * padded(t->padded) + padded(t->context) : plain;
}

fr_status fr_batch_plan(fr_device_rank *r, const fr_exec_batch *b, int64_t *ints, fr_error *err) {
    fr_batch_tables t = {.sequences = b->count, .padded = padded_sequences(b->count), .meta = r->batch.meta};
    count_batch(r, b, &t);
    FR_TRY(check_batch(r, b, &t, err));
    for (int32_t i = 0; i < b->count && r->kv; i++)
        FR_TRY(plan_rows(r, &b->sequences[i], b->owners ? b->owners[i] : i, err));
    *ints = table_ints(r, &t);
    r->batch = t;
    return FR_OK;
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

static void fill(fr_batch_tables *h, const fr_exec_batch *b) {
    int32_t row = 0, all = 0, some = h->rows_all, pick = 0;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        h->q_start[i] = row;
        for (int32_t j = 0; j < s->queries; j++) h->position[row + j] = s->prefix + j;
        row += s->queries;
        if (s->candidates < 0) h->rows[all++] = row - 1;
        if (s->candidates <= 0) continue;
        for (int32_t c = 0; c < s->candidates; c++, pick++) {
            h->pick_row[pick] = some;
            h->pick_token[pick] = b->candidates[pick];
        }
        h->rows[some++] = row - 1;
    }
    for (int32_t i = b->count; i <= h->padded; i++) h->q_start[i] = row;
    memcpy(h->ids, b->ids, (size_t)row * sizeof *b->ids);
}

/* A later sequence of the batch may share rows that an earlier one computes now: contexts are read after all is
 * planned. */
static void fill_kv(const fr_device_rank *r, fr_batch_tables *h, const fr_exec_batch *b) {
    int32_t at = 0, token = 0;
    for (int32_t i = 0; i < h->padded; i++) {
        int32_t held = 0;
        const int32_t *rows = i < b->count ? fr_kv_rows_context(r->kv_rows, b->sequences[i].kv, &held) : NULL;
        h->kv_start[i] = at;
        h->kv_len[i] = held;
        for (int32_t k = 0; k < held; k++) h->context_rows[at++] = rows[k];
        for (int32_t k = 0; rows && k < b->sequences[i].queries; k++)
            h->kv_row[token++] = rows[held - b->sequences[i].queries + k];
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

fr_status fr_batch_upload(fr_device_rank *r, const fr_exec_batch *b, int32_t *staging, cudaStream_t stream,
                          fr_error *err) {
    const fr_model *m = r->model;
    fr_batch_tables *t = &r->batch;
    const int64_t ints = table_ints(r, t), width = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
    FR_TRY(grow((void **)&r->batch_memory, &r->batch_ints, ints, 4, "tables of a batch", err));
    if (r->kv)
        FR_TRY(grow((void **)&r->context, &r->context_capacity, t->context, 2 * r->kv_width, "the context of a batch",
                    err));
    place(t, staging, r->kv != NULL);
    fill(t, b);
    if (r->kv) fill_kv(r, t, b);
    place(t, r->batch_memory, r->kv != NULL);
    FR_TRY(check(cudaMemcpyAsync(r->batch_memory, staging, (size_t)ints * 4, cudaMemcpyHostToDevice, stream),
                 "cudaMemcpyAsync of the batch", err));
    if (t->equal) return FR_OK; /* attention.h: no tables are needed then */
    return check(fr_k_attention_meta(t->q_start, t->kv_start, t->kv_len, t->padded, width, r->kv ? r->kv_width : width,
                                     (int64_t)m->heads * m->head_dim, t->meta, stream),
                 "fr_k_attention_meta", err);
}

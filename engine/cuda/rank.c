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
    CUT(r->batch_memory, r->batch_ints * 4);
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

fr_status fr_rank_open(const fr_exec_options *o, fr_device_rank *r, fr_error *err) {
    *r = (fr_device_rank){.model = o->model, .layout = o->layout, .weights = o->weights, .rank = o->rank};
    r->layers = fr_layout_layers(o->layout, o->model);
    r->most_tokens = o->load.tokens;
    r->most_sequences = fr_max_i64(o->load.sequences, 1);
    r->positions = fr_max_i64(o->positions, 1);
    r->most_picks = r->most_sequences * fr_max_i64(o->candidates, 0);
    r->most_logits = r->most_sequences * fr_max_i64(o->vocabulary ? o->model->vocab : 1, o->candidates);
    r->batch_ints = fr_batch_ints(r);
    r->buffers_count = o->plan->buffers_count;
    r->buffers = fr_alloc(r->buffers_count * sizeof *r->buffers);
    r->buffer_bytes = fr_alloc(r->buffers_count * sizeof *r->buffer_bytes);
    FR_TRY(open_arena(r, o->plan, err));
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

int64_t fr_batch_ints(const fr_device_rank *r) {
    return 2 * padded(r->most_tokens) + padded(padded_sequences(r->most_sequences) + 1) + padded(r->most_sequences) +
           2 * padded(r->most_picks);
}

static fr_status check_batch(const fr_device_rank *r, const fr_exec_batch *b, fr_error *err) {
    int64_t tokens = 0, picks = 0, logits = 0;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        const bool all = s->candidates < 0;
        tokens += s->queries;
        picks += all ? 0 : s->candidates;
        logits += all ? r->model->vocab : s->candidates;
        if (s->prefix != 0)
            return fr_fail(err, FR_FAILED,
                           "sequence %d continues %d cached tokens: the engine keeps no KV cache yet (no --prefix, "
                           "--cache-tokens or --chunk-tokens)",
                           i, s->prefix);
        if (s->queries < 1 || s->queries > r->positions)
            return fr_fail(err, FR_FAILED, "sequence %d has %d tokens, 1 to %lld were planned for", i, s->queries,
                           (long long)r->positions);
    }
    if (b->count < 1 || b->count > r->most_sequences || tokens > r->most_tokens || picks > r->most_picks ||
        logits > r->most_logits)
        return fr_fail(err, FR_FAILED,
                       "a batch of %d sequences, %lld tokens and %lld logits: room was made for %lld, %lld and %lld",
                       b->count, (long long)tokens, (long long)logits, (long long)r->most_sequences,
                       (long long)r->most_tokens, (long long)r->most_logits);
    return FR_OK;
}

/* The same places on the host and on the device. */
static void place(fr_batch_tables *t, int32_t *base) {
    t->ids = base;
    t->position = t->ids + padded(t->tokens);
    t->q_start = t->position + padded(t->tokens);
    t->rows = t->q_start + padded(t->padded + 1);
    t->pick_row = t->rows + padded(t->sequences);
    t->pick_token = t->pick_row + padded(t->picks);
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

fr_status fr_batch_upload(fr_device_rank *r, const fr_exec_batch *b, int32_t *staging, cudaStream_t stream,
                          fr_error *err) {
    FR_TRY(check_batch(r, b, err));
    const fr_model *m = r->model;
    fr_batch_tables t = {.sequences = b->count, .padded = padded_sequences(b->count), .meta = r->batch.meta};
    t.equal = true;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        t.tokens += s->queries;
        t.equal = t.equal && s->queries == b->sequences[0].queries && s->prefix == 0;
        t.rows_all += s->candidates < 0;
        t.rows_some += s->candidates > 0;
        t.picks += s->candidates > 0 ? s->candidates : 0;
        t.max_q = s->queries > t.max_q ? s->queries : t.max_q;
        t.max_kv = s->queries + s->prefix > t.max_kv ? s->queries + s->prefix : t.max_kv;
    }
    /* Equal lengths need no masks: faster up to 1,024 tokens, slower above (kernels/measured/README.md). */
    t.equal = t.equal && t.sequences > 1 && t.max_q <= 1024;
    t.logits = (int64_t)t.rows_all * m->vocab + t.picks;
    place(&t, staging);
    fill(&t, b);
    const int64_t ints = t.pick_token + padded(t.picks) - staging;
    place(&t, r->batch_memory);
    r->batch = t;
    FR_TRY(check(cudaMemcpyAsync(r->batch_memory, staging, (size_t)ints * 4, cudaMemcpyHostToDevice, stream),
                 "cudaMemcpyAsync of the batch", err));
    const int64_t width = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
    if (t.equal) return FR_OK; /* attention.h: no tables are needed then */
    return check(fr_k_attention_meta(t.q_start, NULL, NULL, t.padded, width, width, (int64_t)m->heads * m->head_dim,
                                     t.meta, stream),
                 "fr_k_attention_meta", err);
}

/* A rank's memory: the arena cut from the plan's buffers, workspaces, tables, KV cache. */
#include "engine/cuda/rank.h"

#include "engine/cuda/device.h"
#include "engine/cuda/transport/transport.h"

#include <stdlib.h>
#include <string.h>

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

/* ---- arena --------------------------------------------------------------------------------------------------------*/

/* Chosen experts that one sort looks at. */
static int64_t route_slots(const fr_device_rank *r) {
    return fr_max_i64(r->most_rows * r->model->top_k, r->room.arriving * r->room.slots);
}

/* Places of this rank's activation buffers from `base` on; returns their end. */
static fr_status cut_buffers(fr_device_rank *r, const fr_plan *plan, char *base, fr_error *err) {
    for (uint32_t i = 0; i < plan->buffers_count; i++) {
        const fr_buffer *b = &plan->buffers[i];
        if (b->kind != FR_BUF_ACTIVATION || b->rank != r->rank) continue;
        const fr_placed *at = fr_placement_find(&r->placement, b->name);
        if (!at || at->slots != b->slots || (at->bytes != b->bytes && strncmp(b->name, "logits", 6) != 0))
            return fr_fail(err, FR_FAILED, "buffer %s of %lld bytes: the placement has another", b->name,
                           (long long)b->bytes);
        r->buffer_bytes[i] = at->pitch;
        r->buffers[i] = base + at->at;
    }
    return FR_OK;
}

/* Behind the plan's activation buffers: what no plan lists. */
static void cut_arena(fr_device_rank *r, char *base) {
    const fr_model *m = r->model;
    int64_t at = r->placement.bytes;
#define CUT(pointer, bytes)                                                                                            \
    do {                                                                                                               \
        (pointer) = base ? (void *)(base + at) : NULL;                                                                 \
        at += fr_ceil_div((int64_t)(bytes), FR_PLACE_ALIGN) * FR_PLACE_ALIGN + FR_PLACE_ALIGN;                         \
    } while (0)
    CUT(r->gemm_workspace, FR_GEMM_WORKSPACE);
    CUT(r->route_workspace, fr_k_route_workspace(route_slots(r), m->experts));
    CUT(r->rope, r->positions * m->head_dim * 4);
    CUT(r->landed, 2 * FR_MOST_PARTS * 4);
    CUT(r->offsets, (int64_t)r->offsets_micros * r->layers * fr_rank_offsets(r) * 4);
    CUT(r->counter, 16);
#undef CUT
    r->arena_bytes = at;
}

static fr_status open_arena(fr_device_rank *r, const fr_plan *plan, fr_error *err) {
    cut_arena(r, NULL);
    const cudaError_t e = fr_transport_malloc(r->transport, (size_t)r->arena_bytes, (void **)&r->arena);
    if (e == cudaErrorMemoryAllocation) {
        int64_t available, total;
        fr_device_left(&available, &total);
        return fr_fail(
            err, FR_FAILED,
            "activations of %lld tokens need %.2f GB of GPU memory beside %.1f GB of weights, %.2f of %.1f GB "
            "are free: take fewer --tokens (or --budget), fewer --resident-layers, or more GPUs",
            (long long)r->most_tokens, (double)r->arena_bytes * 1e-9, (double)r->weights->bytes * 1e-9,
            (double)available * 1e-9, (double)total * 1e-9);
    }
    FR_TRY(check(e, "cudaMalloc of the activations", err));
    cut_arena(r, r->arena);
    FR_TRY(cut_buffers(r, plan, r->arena, err));
    /* What is read before it is written must show: fill with NaN bits. */
    FR_TRY(check(cudaMemset(r->arena, 0xff, (size_t)r->arena_bytes), "cudaMemset", err));
    FR_TRY(check(cudaMemset(r->landed, 0, 2 * FR_MOST_PARTS * 4), "cudaMemset", err));
    return check(cudaMemset(r->counter, 0, 16), "cudaMemset", err);
}

/* Filled with noise: what is read of a made-up prefix must be numbers like any; the same for a head on whatever rank.
 */
static fr_status open_kv(fr_device_rank *r, fr_error *err) {
    if (r->kv_capacity == 0) return FR_OK;
    if (r->kv_capacity > INT32_MAX) return fr_fail(err, FR_BAD_INPUT, "a KV cache of more than 2^31 tokens");
    const int64_t elements = r->layers * r->kv_capacity * r->kv_width;
    const cudaError_t e = cudaMalloc((void **)&r->kv, (size_t)elements * sizeof *r->kv);
    if (e == cudaErrorMemoryAllocation) {
        int64_t available, total;
        fr_device_left(&available, &total);
        return fr_fail(
            err, FR_FAILED,
            "a KV cache of %lld tokens needs %.2f GB of GPU memory, %.2f of %.1f GB are free: --cache-tokens "
            "%lld would fit",
            (long long)r->kv_capacity, 2e-9 * (double)elements, (double)available * 1e-9, (double)total * 1e-9,
            (long long)(available / (2 * r->layers * r->kv_width)));
    }
    FR_TRY(check(e, "cudaMalloc of the KV cache", err));
    r->kv_rows = fr_kv_rows_new((int32_t)r->kv_capacity);
    const int64_t width = (int64_t)r->model->kv_heads * r->model->head_dim, first = r->shard.first_layer;
    return check(fr_k_fill_region(r->kv, 2 * r->layers * r->kv_capacity, r->kv_width / 2, width, 1,
                                  2 * first * r->kv_capacity * width + r->shard.kv_first * r->model->head_dim, 1.0f,
                                  NULL),
                 "filling the KV cache", err);
}

/* Micro-batches of a forward, at most (cut.c); balanced chunks may be as many as a plan can name. */
static int most_micros(const fr_layout *l, int64_t tokens) {
    if (l->overlap == FR_OVERLAP_TBO) return 2 * (l->micro_batches > 1 ? l->micro_batches : 1);
    if (fr_layout_batches(l) > 1) return fr_layout_batches(l);
    const int64_t parts = l->micro_batches > 1 ? l->micro_batches : 1;
    if (!l->chunk_tokens || l->pp == 1) return (int)parts;
    if (l->chunking == FR_CHUNK_BALANCED) return UINT8_MAX + 1;
    return (int)fr_min_i64(fr_max_i64(fr_ceil_div(tokens, l->chunk_tokens), parts) + 1, UINT8_MAX + 1);
}

fr_status fr_rank_grow(void **memory, int64_t *have, int64_t need, int64_t size, cudaStream_t stream, const char *what,
                       fr_error *err) {
    if (need <= *have) return FR_OK;
    const int64_t room = need + need / 2;
    if (*memory) FR_TRY(check(cudaFreeAsync(*memory, stream), "cudaFreeAsync", err));
    *memory = NULL;
    *have = 0;
    const cudaError_t e = cudaMallocAsync(memory, (size_t)(room * size), stream);
    if (e != cudaSuccess)
        return fr_fail(err, FR_FAILED, "%s of %.3f GB: %s", what, (double)(room * size) * 1e-9, cudaGetErrorString(e));
    *have = room;
    return FR_OK;
}

void fr_rank_retire(fr_device_rank *r, void *pinned) {
    FR_GROW(r->retired, r->retired_cap, r->retired_count + 1);
    if (pinned) r->retired[r->retired_count++] = pinned;
}

/* What was allocated in a stream's order stays with the pool until the end: giving it back would wait. */
static fr_status keep_pool(fr_error *err) {
    int device = 0;
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    FR_TRY(check(cudaGetDevice(&device), "cudaGetDevice", err));
    FR_TRY(check(cudaDeviceGetDefaultMemPool(&pool, device), "cudaDeviceGetDefaultMemPool", err));
    return check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "cudaMemPoolSetAttribute", err);
}

void *fr_rank_buffer(const fr_device_rank *r, const fr_plan *plan, uint32_t target, uint32_t hold) {
    if (target >= r->buffers_count || !r->buffers[target]) return NULL;
    const int32_t slots = plan->buffers[target].slots;
    return (char *)r->buffers[target] + (slots > 1 ? hold % (uint32_t)slots : 0) * (size_t)r->buffer_bytes[target];
}

fr_status fr_rank_open(const fr_exec_options *o, fr_device_rank *r, fr_error *err) {
    *r = (fr_device_rank){.model = o->model,
                          .layout = o->layout,
                          .weights = o->weights,
                          .transport = o->transport,
                          .cost = o->cost,
                          .rank = o->rank};
    fr_layout_place(o->layout, o->rank, &r->place);
    fr_shard_of(o->layout, o->model, o->rank, &r->shard);
    r->layers = r->shard.end_layer - r->shard.first_layer;
    fr_placement_of(o->layout, o->model, &o->load, r->place.experts_only, &r->placement);
    fr_layout_room(o->layout, o->model, &o->load, &r->room);
    if (fr_layout_worst_imbalance(o->layout) > 1 && o->load.imbalance < fr_layout_worst_imbalance(o->layout))
        return fr_fail(err, FR_FAILED, "buffers are planned for an imbalance of %.3g: any routing needs %.3g",
                       o->load.imbalance, fr_layout_worst_imbalance(o->layout));
    if (fr_layout_expert_parts(o->layout) > FR_MOST_PARTS)
        return fr_fail(err, FR_FAILED, "--overlap-stages %d: at most %d are executed", o->layout->overlap_stages,
                       FR_MOST_PARTS);
    r->offsets_micros = r->place.served * most_micros(o->layout, o->load.tokens);
    r->most_tokens = o->load.tokens;
    r->most_rows = fr_layout_most_tokens(o->layout, &o->load);
    r->most_sequences = fr_max_i64(o->load.sequences, 1);
    r->positions = fr_max_i64(o->positions, 1);
    r->most_picks = r->most_sequences * fr_max_i64(o->candidates, 0);
    r->most_logits = r->most_sequences * fr_max_i64(o->vocabulary ? o->model->vocab : 1, o->candidates);
    r->kv_width = 2 * (int64_t)r->shard.kv_heads * o->model->head_dim;
    r->kv_capacity = r->shard.attention ? o->kv_tokens : 0;
    r->made_up_prefix = o->made_up_prefix;
    r->varied = o->varied;
    r->one_length = o->one_length;
    r->buffers_count = o->plan->buffers_count;
    r->buffers = fr_alloc(r->buffers_count * sizeof *r->buffers);
    r->buffer_bytes = fr_alloc(r->buffers_count * sizeof *r->buffer_bytes);
    FR_TRY(keep_pool(err));
    FR_TRY(open_arena(r, o->plan, err));
    if (r->transport) FR_TRY(fr_transport_bind(r->transport, r->arena, (size_t)r->arena_bytes, r->buffers, err));
    FR_TRY(open_kv(r, err));
    r->batch = (fr_batch_rank){.model = r->model,
                               .layout = r->layout,
                               .place = r->place,
                               .head = r->shard.head,
                               .kv = r->kv != NULL,
                               .packed = r->varied && r->one_length == 0};
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
    for (uint32_t i = 0; i < r->retired_count; i++) cudaFreeHost(r->retired[i]);
    free(r->retired);
    fr_kv_rows_free(r->kv_rows);
    free(r->kv_owner);
    free(r->micro);
    free(r->tokens);
    free(r->buffers);
    free(r->buffer_bytes);
    fr_placement_free(&r->placement);
    *r = (fr_device_rank){0};
}

void fr_rank_counts(const fr_device_rank *r, const int32_t *offsets, int micros, int32_t *counts) {
    const int64_t experts = r->model->experts, stride = fr_rank_offsets(r);
    const int parts = fr_layout_expert_parts(r->layout), all = r->layout->ep * parts;
    const bool travels = (r->layout->experts == FR_EXP_EP && r->layout->ep > 1) || r->place.experts_only;
    memset(counts, 0, (size_t)(r->layers * experts) * sizeof *counts);
    if (r->layout->experts == FR_EXP_ASAP && r->shard.attention) return;
    if (r->layout->experts == FR_EXP_TP && r->place.local > 0) return; /* the stage's first rank has the same */
    for (int64_t l = 0; l < (int64_t)micros * r->layers; l++)
        for (int p = 0; p < (travels ? parts : 1); p++) {
            const int64_t v = (int64_t)r->place.ep_index * parts + p;
            const int64_t first = travels ? experts * v / all : 0, end = travels ? experts * (v + 1) / all : experts;
            for (int64_t e = first; e < end; e++) {
                const int32_t *at = offsets + l * stride + e + p;
                counts[l % r->layers * experts + e] += at[1] - at[0];
            }
        }
}

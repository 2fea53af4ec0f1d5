#include "engine/cuda/weights.h"

#include "engine/cuda/device.h"
#include "engine/cuda/transport/transport.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 512 /* bytes between tensors: more than any kernel asks of a pointer */

/* Blocks of 128 x 128 must not be cut by a rank's part, nor by the seams of q, k and v and of gate and up. */
static const char *no_fp8(const fr_model *m, const fr_layout *l) {
    const int kv = m->kv_heads > l->tp ? m->kv_heads / l->tp : 1;
    const int split = l->experts == FR_EXP_TP ? l->tp * l->dp : 1;
    if (m->hidden % 128 || m->expert_width % (128 * split))
        return "hidden and each rank's expert width must be multiples of 128";
    if (m->heads / l->tp * m->head_dim % 128 || kv * m->head_dim % 128)
        return "each rank's width of q, k and v must be a multiple of 128";
    return NULL;
}

fr_status fr_weights_supported(const fr_model *m, const fr_layout *l, fr_error *err) {
    const char *why = NULL;
    if (l->precision == FR_FP8 && (why = no_fp8(m, l)) != NULL)
        return fr_fail(err, FR_BAD_INPUT, "--precision fp8, model %s: %s", m->name, why);
    if (m->attention != FR_ATTENTION_GQA)
        why = "attention: latent attention (MLA) is not executed yet";
    else if (m->qkv_bias || m->o_bias || m->sinks)
        why = "attention: biases and sinks are not executed yet";
    else if (m->qk_norm_full)
        why = "q/k norm over all heads is not executed yet";
    else if (m->window)
        why = "sliding windows are not executed yet";
    else if (m->dense_layers || m->shared_experts)
        why = "dense layers and shared experts are not executed yet";
    else if (m->expert_bias || m->router_bias || m->router_score_bias || m->head_bias || m->norm_weight_bias)
        why = "biases are not executed yet";
    else if (strcmp(m->family, "qwen3_moe") != 0 && strcmp(m->family, "mixtral") != 0)
        why = "the engine executes the families qwen3_moe and mixtral";
    else if (m->head_dim != 64 && m->head_dim != 128)
        why = "head_dim: the kernels take 64 and 128";
    else if (m->hidden % 8 || m->expert_width % 8 || m->hidden > FR_K_MAX_HIDDEN)
        why = "hidden and expert width must be multiples of 8, hidden at most 16384";
    else if (m->experts > FR_K_MAX_EXPERTS || m->top_k > FR_K_MAX_TOPK)
        why = "at most 512 experts and 16 of them a token";
    return why ? fr_fail(err, FR_BAD_INPUT, "model %s: %s", m->name, why) : FR_OK;
}

/* ---- places -------------------------------------------------------------------------------------------------------*/

/* Hands out places in the arena; with a NULL base only counts. */
typedef struct {
    char *base;
    int64_t at;
} cutter;

static int64_t aligned(int64_t bytes) {
    return fr_ceil_div(bytes, ALIGN) * ALIGN;
}

static void *cut_bytes(cutter *c, int64_t bytes) {
    void *p = c->base ? (void *)(c->base + c->at) : NULL;
    c->at += aligned(bytes);
    return p;
}

static fr_bf16 *cut(cutter *c, int64_t elements) {
    return cut_bytes(c, 2 * elements);
}

/* A linear weight [rows, columns], with its scales in fp8. */
static fr_bf16 *cut_linear(cutter *c, fr_precision p, int64_t rows, int64_t columns, float **scale) {
    const int64_t blocks = fr_ceil_div(rows, 128) * fr_ceil_div(columns, 128);
    *scale = p == FR_FP8 ? cut_bytes(c, 4 * blocks) : NULL;
    return cut_bytes(c, (p == FR_FP8 ? 1 : 2) * rows * columns);
}

static void place_layer(cutter *c, const fr_shard *s, const fr_model *m, fr_layer_weights *w) {
    const int64_t h = m->hidden, d = m->head_dim;
    if (!s->attention) return;
    w->input_norm = cut(c, h);
    w->post_norm = cut(c, h);
    w->qkv = cut_linear(c, s->precision, (s->heads + 2 * s->kv_heads) * d, h, &w->qkv_scale);
    w->q_norm = m->qk_norm ? cut(c, d) : NULL;
    w->k_norm = m->qk_norm ? cut(c, d) : NULL;
    w->o = cut_linear(c, s->precision, h, s->heads * d, &w->o_scale);
    w->router = cut(c, m->experts * h);
}

static void place(fr_weights *w, const fr_model *m, int executed, cutter *c) {
    const fr_shard *s = &w->shard;
    const int64_t table = (int64_t)m->vocab * m->hidden;
    const bool tied = m->tied_embeddings;
    w->embedding = s->embedding || (s->head && tied) ? cut(c, table) : NULL;
    w->head = !s->head ? NULL : tied ? w->embedding : cut(c, table);
    w->final_norm = s->head ? cut(c, m->hidden) : NULL;
    w->router_bias = (float *)(void *)cut(c, 2 * (int64_t)executed * m->experts);
    for (int i = 0; i < s->layers; i++) place_layer(c, s, m, &w->layer[i]);
}

static void place_experts(fr_weights *w) {
    const int own = fr_weights_own(w);
    for (int i = 0; i < w->shard.layers; i++) {
        fr_layer_weights *l = &w->layer[i];
        l->run = w->host ? w->host[i] : w->experts + i * w->experts_stride;
        l->gate_up = (fr_bf16 *)(void *)l->run;
        l->down = (fr_bf16 *)(void *)(l->run + fr_run_offset(&w->run, own, 1, 0));
        if (w->run.parts < 4) continue;
        l->gate_up_scale = (float *)(void *)(l->run + fr_run_offset(&w->run, own, 2, 0));
        l->down_scale = (float *)(void *)(l->run + fr_run_offset(&w->run, own, 3, 0));
    }
}

/* ---- memory -------------------------------------------------------------------------------------------------------*/

static fr_status refuse_memory(const fr_weights *w, int64_t layer, fr_error *err) {
    int64_t available, total;
    fr_device_left(&available, &total);
    const int layers = w->shard.layers;
    const int64_t had = (w->arena ? w->arena_bytes : 0) + (w->experts ? w->experts_bytes : 0);
    const int64_t fixed = w->bytes - layers * layer, fit = (available + had - fixed) / layer;
    return fr_fail(err, FR_FAILED,
                   "weights of %d layers need %.1f GB of GPU memory, %.1f of %.1f GB are free: --resident-layers %lld "
                   "would fit without room for activations; or spread the layers over more GPUs (--strategy pp, ep)",
                   layers, (double)w->bytes * 1e-9, (double)(available + had) * 1e-9, (double)total * 1e-9,
                   (long long)fr_max_i64(fit, 0));
}

static fr_status take(fr_weights *w, char **to, int64_t bytes, int64_t layer, fr_error *err) {
    if (bytes == 0) return FR_OK;
    const cudaError_t e = to == &w->experts ? fr_transport_alloc(w->transport, (size_t)bytes, (void **)to)
                                            : cudaMalloc((void **)to, (size_t)bytes);
    if (e == cudaErrorMemoryAllocation) return refuse_memory(w, layer, err);
    return e == cudaSuccess ? FR_OK
                            : fr_fail(err, FR_FAILED, "cudaMalloc of the weights failed: %s", cudaGetErrorString(e));
}

static fr_status take_all(fr_weights *w, const fr_model *m, const fr_layout *l, int executed, fr_error *err) {
    const fr_shard *s = &w->shard;
    const int64_t run = aligned(fr_weights_own(w) * w->run.expert);
    fr_layer_weights scratch;
    cutter c = {0}, one = {0};
    place(w, m, executed, &c);
    place_layer(&one, s, m, &scratch);
    w->arena_bytes = c.at;
    w->experts_stride = run;
    w->experts_bytes = s->on_host ? 0 : s->layers * run;
    const int others = fr_shard_slot_experts(s, m);
    w->first_bytes = s->gathers ? aligned(others * w->run.expert) : 0;
    w->bytes = w->arena_bytes + w->experts_bytes + w->first_bytes;
    const int64_t layer = one.at + (s->on_host ? 0 : run);
    FR_TRY(take(w, &w->arena, w->arena_bytes, layer, err));
    FR_TRY(take(w, &w->experts, w->experts_bytes, layer, err));
    FR_TRY(take(w, &w->first, w->first_bytes, layer, err));
    if (s->on_host) FR_TRY(fr_weights_pin(w, l, run, err));
    c = (cutter){.base = w->arena};
    place(w, m, executed, &c);
    place_experts(w);
    const cudaError_t e = cudaMemset(w->router_bias, 0, (size_t)executed * (size_t)m->experts * sizeof(float));
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "cudaMemset failed: %s", cudaGetErrorString(e));
}

fr_status fr_weights_open(const fr_model *m, const fr_layout *l, int rank, fr_world *world,
                          struct fr_transport *transport, fr_weights **out, fr_error *err) {
    *out = NULL;
    FR_TRY(fr_weights_supported(m, l, err));
    fr_weights *w = fr_alloc(sizeof *w);
    w->world = world;
    w->transport = transport;
    w->rank = rank;
    fr_shard_of(l, m, rank, &w->shard);
    fr_run_of(&w->shard, m, &w->run);
    w->layer = fr_alloc((size_t)w->shard.layers * sizeof *w->layer);
    const fr_status s = take_all(w, m, l, fr_layout_layers(l, m), err);
    if (s != FR_OK)
        fr_weights_close(w);
    else
        *out = w;
    return s;
}

void fr_weights_close(fr_weights *w) {
    if (!w) return;
    fr_weights_unpin(w);
    cudaFree(w->arena);
    fr_transport_free(w->transport, w->experts);
    cudaFree(w->first);
    free(w->layer);
    free(w);
}

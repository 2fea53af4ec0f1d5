#include "engine/cuda/weights.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEVIATION 0.02f /* initializer_range of Qwen3-MoE and Mixtral (transformers, configuration_*.py) */
/*
 * What a block adds to a residual stream of deviation 1, over all layers. With Hugging Face's initialisation a deep
 * random model routes all tokens alike: attention passes on what tokens have in common and averages out the rest, so
 * their hidden states become one (seen: one expert of every layer took 76 to 94 % of the tokens). The output
 * projections are therefore scaled down until tokens stay themselves; shapes, types and random mantissas are as before.
 */
#define RESIDUAL_GAIN 0.25
#define ALIGN         512 /* bytes between tensors: more than any kernel asks of a pointer */

fr_status fr_weights_supported(const fr_model *m, const fr_layout *l, fr_error *err) {
    const char *why = NULL;
    if (l->precision != FR_BF16)
        why = "--precision: the engine executes bf16";
    else if (m->attention != FR_ATTENTION_GQA)
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

static fr_bf16 *cut(cutter *c, int64_t elements) {
    fr_bf16 *p = c->base ? (fr_bf16 *)(void *)(c->base + c->at) : NULL;
    c->at += fr_ceil_div(2 * elements, ALIGN) * ALIGN;
    return p;
}

static int64_t qkv_rows(const fr_model *m) {
    return (int64_t)(m->heads + 2 * m->kv_heads) * m->head_dim;
}

static void place_layer(cutter *c, const fr_model *m, fr_layer_weights *w) {
    const int64_t h = m->hidden, e = m->experts, i = m->expert_width;
    w->input_norm = cut(c, h);
    w->post_norm = cut(c, h);
    w->qkv = cut(c, qkv_rows(m) * h);
    w->q_norm = m->qk_norm ? cut(c, m->head_dim) : NULL;
    w->k_norm = m->qk_norm ? cut(c, m->head_dim) : NULL;
    w->o = cut(c, h * m->heads * m->head_dim);
    w->router = cut(c, e * h);
    w->gate_up = cut(c, e * 2 * i * h);
    w->down = cut(c, e * h * i);
}

static void place(fr_weights *w, const fr_model *m, int executed, cutter *c) {
    w->embedding = cut(c, (int64_t)m->vocab * m->hidden);
    w->head = m->tied_embeddings ? w->embedding : cut(c, (int64_t)m->vocab * m->hidden);
    w->final_norm = cut(c, m->hidden);
    w->router_bias = (float *)(void *)cut(c, 2 * (int64_t)executed * m->experts);
    for (int i = 0; i < w->layers; i++) place_layer(c, m, &w->layer[i]);
}

static fr_status refuse_memory(const fr_weights *w, const fr_model *m, int64_t asked, fr_error *err) {
    size_t available = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&available, &total);
    fr_layer_weights scratch;
    cutter one = {0};
    place_layer(&one, m, &scratch);
    int64_t fixed = asked - one.at * w->layers, fit = ((int64_t)available - fixed) / one.at;
    return fr_fail(err, FR_FAILED,
                   "weights of %d layers need %.1f GB of GPU memory, %.1f of %.1f GB are free: --resident-layers %lld "
                   "would fit without room for activations; or spread the layers over more GPUs (--strategy pp, ep)",
                   w->layers, (double)asked * 1e-9, (double)available * 1e-9, (double)total * 1e-9,
                   (long long)fr_max_i64(fit, 0));
}

fr_status fr_weights_open(const fr_model *m, const fr_layout *l, fr_weights **out, fr_error *err) {
    *out = NULL;
    FR_TRY(fr_weights_supported(m, l, err));
    const int executed = fr_layout_layers(l, m);
    fr_weights *w = fr_alloc(sizeof *w);
    w->layers = l->resident_layers > 0 && l->resident_layers < executed ? l->resident_layers : executed;
    w->layer = fr_alloc((size_t)w->layers * sizeof *w->layer);
    cutter c = {0};
    place(w, m, executed, &c);
    w->bytes = c.at;
    cudaError_t e = cudaMalloc((void **)&w->arena, (size_t)w->bytes);
    if (e != cudaSuccess) {
        fr_status s = e == cudaErrorMemoryAllocation
                          ? refuse_memory(w, m, w->bytes, err)
                          : fr_fail(err, FR_FAILED, "cudaMalloc of the weights failed: %s", cudaGetErrorString(e));
        fr_weights_close(w);
        return s;
    }
    c = (cutter){.base = w->arena};
    place(w, m, executed, &c);
    e = cudaMemset(w->router_bias, 0, (size_t)executed * (size_t)m->experts * sizeof(float));
    if (e != cudaSuccess) {
        fr_weights_close(w);
        return fr_fail(err, FR_FAILED, "cudaMemset failed: %s", cudaGetErrorString(e));
    }
    *out = w;
    return FR_OK;
}

void fr_weights_close(fr_weights *w) {
    if (!w) return;
    cudaFree(w->arena);
    free(w->layer);
    free(w);
}

/* ---- random -------------------------------------------------------------------------------------------------------*/

static cudaError_t fill(fr_bf16 *p, int64_t n, double deviation, uint64_t *seed) {
    *seed = fr_hash(seed, sizeof *seed, FR_HASH_SEED); /* each tensor its own stream */
    return fr_k_fill_normal(p, n, *seed, 0, (float)deviation, NULL);
}

static cudaError_t ones(fr_bf16 *p, int64_t n) {
    fr_bf16 one[256];
    for (int i = 0; i < 256; i++) one[i] = 0x3f80;
    for (int64_t at = 0; p && at < n; at += 256) {
        const size_t bytes = (size_t)fr_min_i64(256, n - at) * sizeof *one;
        cudaError_t e = cudaMemcpy(p + at, one, bytes, cudaMemcpyHostToDevice);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

static cudaError_t random_layer(const fr_layer_weights *w, const fr_model *m, int layers, uint64_t *seed) {
    const int64_t h = m->hidden, e = m->experts, i = m->expert_width, q = (int64_t)m->heads * m->head_dim;
    const double gain = RESIDUAL_GAIN / layers;
    cudaError_t r = ones(w->input_norm, h);
    if (!r) r = ones(w->post_norm, h);
    if (!r) r = ones(w->q_norm, m->head_dim);
    if (!r) r = ones(w->k_norm, m->head_dim);
    if (!r) r = fill(w->qkv, qkv_rows(m) * h, DEVIATION, seed);
    if (!r) r = fill(w->o, h * q, gain / sqrt((double)q), seed);
    if (!r) r = fill(w->router, e * h, DEVIATION, seed);
    if (!r) r = fill(w->gate_up, e * 2 * i * h, DEVIATION, seed);
    if (!r) r = fill(w->down, e * h * i, gain / sqrt((double)i), seed);
    return r;
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

fr_status fr_weights_random(fr_weights *w, const fr_model *m, int layers, uint64_t seed, fr_error *err) {
    const double begin = seconds_now();
    const int64_t table = (int64_t)m->vocab * m->hidden;
    seed ^= 0x5745494748545331ull;
    cudaError_t r = fill(w->embedding, table, 1, &seed);
    if (!r && w->head != w->embedding) r = fill(w->head, table, DEVIATION, &seed);
    if (!r) r = ones(w->final_norm, m->hidden);
    for (int i = 0; i < w->layers && !r; i++) r = random_layer(&w->layer[i], m, layers, &seed);
    if (!r) r = cudaDeviceSynchronize();
    if (r != cudaSuccess) return fr_fail(err, FR_FAILED, "filling random weights failed: %s", cudaGetErrorString(r));
    w->seconds = seconds_now() - begin;
    return FR_OK;
}

/* ---- injected skew ------------------------------------------------------------------------------------------------*/

/* Quantile of the standard normal, kept away from its poles: an expert that 98 % of tokens choose needs no more. */
static double quantile(double p) {
    return gsl_cdf_ugaussian_Pinv(p < 1e-4 ? 1e-4 : p > 0.98 ? 0.98 : p);
}

fr_status fr_weights_skew(fr_weights *w, const fr_model *m, const fr_routing *routing, int layers,
                          const int64_t *counts, fr_error *err) {
    const size_t n = (size_t)layers * (size_t)m->experts;
    const double deviation = DEVIATION * sqrt(m->hidden); /* of a logit: the router's row times a normed row */
    float *bias = fr_alloc(n * sizeof *bias);
    cudaError_t r = cudaMemcpy(bias, w->router_bias, n * sizeof *bias, cudaMemcpyDeviceToHost);
    for (int i = 0; i < layers && !r; i++) {
        const double *share = fr_routing_shares(routing, i % m->layers);
        const int64_t *got = counts ? counts + (size_t)i * (size_t)m->experts : NULL;
        double sum = 0;
        for (int e = 0; got && e < m->experts; e++) sum += (double)got[e];
        for (int e = 0; e < m->experts; e++) {
            float *b = &bias[(size_t)i * (size_t)m->experts + (size_t)e];
            double move = quantile(m->top_k * share[e]);
            if (got && sum > 0) move -= quantile(m->top_k * (double)got[e] / sum);
            *b = (float)((got ? *b : 0) + deviation * move);
        }
    }
    if (!r) r = cudaMemcpy(w->router_bias, bias, n * sizeof *bias, cudaMemcpyHostToDevice);
    free(bias);
    return r == cudaSuccess ? FR_OK
                            : fr_fail(err, FR_FAILED, "setting the router bias failed: %s", cudaGetErrorString(r));
}

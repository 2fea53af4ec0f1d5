/* Random weights: the same tensors whatever the layout, and a router bias that injects skew. */
#include "engine/cuda/weights.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

#define DEVIATION 0.02f /* initializer_range of Qwen3-MoE and Mixtral (transformers, configuration_*.py) */
/*
 * What a block adds to a residual stream of deviation 1, over all layers. With Hugging Face's initialisation a deep
 * random model routes all tokens alike: attention passes on what tokens have in common and averages out the rest, so
 * their hidden states become one (seen: one expert of every layer took 76 to 94 % of the tokens). The output
 * projections are therefore scaled down until tokens stay themselves; shapes, types and random mantissas are as before.
 */
#define RESIDUAL_GAIN 0.25
#define STAGING       ((int64_t)64 << 20) /* elements made on the device at once on their way to the host */

/* ---- numbers ------------------------------------------------------------------------------------------------------*/

/* Each tensor has a stream of its own, whoever holds it. */
enum { QKV, O, ROUTER, GATE_UP, DOWN, TENSORS };
typedef struct {
    uint64_t embedding, head;
    uint64_t (*layer)[TENSORS]; /* by the layer's number in the model */
} seeds;

static uint64_t next_seed(uint64_t *seed) {
    return *seed = fr_hash(seed, sizeof *seed, FR_HASH_SEED);
}

static seeds make_seeds(const fr_weights *w, const fr_model *m, uint64_t seed) {
    seeds s = {.layer = fr_alloc((size_t)w->shard.modulo * sizeof *s.layer)};
    seed ^= 0x5745494748545331ull;
    s.embedding = next_seed(&seed);
    s.head = m->tied_embeddings ? s.embedding : next_seed(&seed);
    for (int i = 0; i < w->shard.modulo; i++)
        for (int t = 0; t < TENSORS; t++) s.layer[i][t] = next_seed(&seed);
    return s;
}

static cudaError_t fill(fr_bf16 *to, fr_region r, uint64_t seed, double deviation) {
    return fr_k_fill_region(to, r.rows, r.columns, r.stride, seed, r.first, (float)deviation, NULL);
}

static cudaError_t fill_all(fr_bf16 *to, int64_t elements, uint64_t seed, double deviation) {
    return to ? fr_k_fill_normal(to, elements, seed, 0, (float)deviation, NULL) : cudaSuccess;
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

/* ---- layers -------------------------------------------------------------------------------------------------------*/

static cudaError_t random_dense(const fr_shard *s, const fr_layer_weights *w, const fr_model *m, double gain,
                                const uint64_t *seed) {
    const int64_t h = m->hidden, q = (int64_t)m->heads * m->head_dim;
    fr_region r[FR_QKV_REGIONS];
    fr_bf16 *to = w->qkv;
    cudaError_t e = ones(w->input_norm, h);
    if (!e) e = ones(w->post_norm, h);
    if (!e) e = ones(w->q_norm, m->head_dim);
    if (!e) e = ones(w->k_norm, m->head_dim);
    fr_shard_qkv(s, m, r);
    for (int i = 0; i < FR_QKV_REGIONS && !e; i++) {
        e = fill(to, r[i], seed[QKV], DEVIATION);
        to += r[i].rows * r[i].columns;
    }
    if (!e) e = fill(w->o, fr_shard_o(s, m), seed[O], gain / sqrt((double)q));
    return e ? e : fill_all(w->router, m->experts * h, seed[ROUTER], DEVIATION);
}

/* Experts [first, end) at place `at` of a run of `experts`. */
static cudaError_t random_run(const fr_weights *w, const fr_model *m, char *run, int experts, int at, int first,
                              int end, double gain, const uint64_t *seed) {
    const fr_shard *s = &w->shard;
    fr_bf16 *up = (fr_bf16 *)(void *)(run + fr_run_offset(&w->run, experts, 0, at));
    fr_bf16 *down = (fr_bf16 *)(void *)(run + fr_run_offset(&w->run, experts, 1, at));
    if (first >= end) return cudaSuccess;
    cudaError_t e = fill(up, fr_shard_gate_up(s, m, first, end), seed[GATE_UP], DEVIATION);
    return e ? e : fill(down, fr_shard_down(s, m, first, end), seed[DOWN], gain / sqrt((double)m->expert_width));
}

/* Whole rows, made in pieces on the device and copied out. */
static cudaError_t to_host(fr_bf16 *to, fr_region r, uint64_t seed, double deviation, fr_bf16 *staging) {
    const int64_t n = r.rows * r.columns;
    if (r.columns != r.stride) return cudaErrorInvalidValue;
    for (int64_t at = 0; at < n; at += STAGING) {
        const int64_t some = fr_min_i64(STAGING, n - at);
        cudaError_t e = fr_k_fill_normal(staging, some, seed, r.first + at, (float)deviation, NULL);
        if (!e) e = cudaMemcpyAsync(to + at, staging, (size_t)some * sizeof *to, cudaMemcpyDeviceToHost, NULL);
        if (e) return e;
    }
    return cudaSuccess;
}

/* Own experts [first, end), which lie together. */
static cudaError_t random_stretch(const fr_weights *w, const fr_model *m, int held, int first, int end, double gain,
                                  const uint64_t *seed, fr_bf16 *staging) {
    const fr_shard *s = &w->shard;
    fr_bf16 *up = (fr_bf16 *)(void *)fr_weights_expert(w, held, 0, first - s->expert_first);
    fr_bf16 *down = (fr_bf16 *)(void *)fr_weights_expert(w, held, 1, first - s->expert_first);
    const cudaError_t e = to_host(up, fr_shard_gate_up(s, m, first, end), seed[GATE_UP], DEVIATION, staging);
    return e ? e
             : to_host(down, fr_shard_down(s, m, first, end), seed[DOWN], gain / sqrt((double)m->expert_width),
                       staging);
}

static cudaError_t random_host(const fr_weights *w, const fr_model *m, double gain, const seeds *all) {
    const fr_shard *s = &w->shard;
    const int step = s->by_expert ? 1 : fr_weights_own(w);
    fr_bf16 *staging = NULL;
    if (!w->owns_host) return cudaSuccess;
    cudaError_t e = cudaMalloc((void **)&staging, (size_t)STAGING * sizeof *staging);
    for (int i = 0; i < s->layers && !e; i++)
        for (int x = s->expert_first; x < s->expert_end && !e; x += step)
            e = random_stretch(w, m, i, x, x + step, gain, all->layer[fr_shard_layer_id(s, i)], staging);
    if (!e) e = cudaDeviceSynchronize();
    if (staging) cudaFree(staging);
    return e;
}

static cudaError_t random_experts(const fr_weights *w, const fr_model *m, double gain, const seeds *all) {
    const fr_shard *s = &w->shard;
    cudaError_t e = cudaSuccess;
    if (s->on_host) return random_host(w, m, gain, all);
    for (int i = 0; i < s->layers && !e; i++)
        e = random_run(w, m, w->layer[i].run, fr_weights_own(w), 0, s->expert_first, s->expert_end, gain,
                       all->layer[fr_shard_layer_id(s, i)]);
    if (!s->gathers || e) return e;
    const int places = fr_shard_slot_experts(s, m), rest = fr_shard_slot_place(s, s->expert_end);
    const uint64_t *seed = all->layer[fr_shard_layer_id(s, fr_shard_layer(s, s->first_layer))];
    e = random_run(w, m, w->first, places, 0, 0, s->expert_first, gain, seed);
    return e ? e : random_run(w, m, w->first, places, rest, s->expert_end, m->experts, gain, seed);
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

fr_status fr_weights_random(fr_weights *w, const fr_model *m, int layers, uint64_t seed, fr_error *err) {
    const double begin = seconds_now(), gain = RESIDUAL_GAIN / layers;
    const int64_t table = (int64_t)m->vocab * m->hidden;
    const seeds all = make_seeds(w, m, seed);
    cudaError_t e = fill_all(w->embedding, table, all.embedding, 1);
    if (!e && w->head != w->embedding) e = fill_all(w->head, table, all.head, DEVIATION);
    if (!e) e = ones(w->final_norm, m->hidden);
    for (int i = 0; i < w->shard.layers && !e; i++)
        e = random_dense(&w->shard, &w->layer[i], m, gain, all.layer[fr_shard_layer_id(&w->shard, i)]);
    if (!e) e = random_experts(w, m, gain, &all);
    if (!e) e = cudaDeviceSynchronize();
    free(all.layer);
    if (e != cudaSuccess) return fr_fail(err, FR_FAILED, "filling random weights failed: %s", cudaGetErrorString(e));
    FR_TRY(fr_weights_filled(w, err));
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

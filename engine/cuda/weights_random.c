/* Random weights: the same tensors whatever the layout, and a router bias that injects skew. */
#include "engine/cuda/weights.h"

#include <gsl/gsl_cdf.h>
#include <math.h>
#include <stdlib.h>

#define DEVIATION 0.02f /* initializer_range of Qwen3-MoE and Mixtral (transformers, configuration_*.py) */
/*
 * What a block adds to a residual stream of deviation 1, over all layers. With Hugging Face's initialisation a deep
 * random model routes all tokens alike: attention passes on what tokens have in common and averages out the rest, so
 * their hidden states become one (seen: one expert of every layer took 76 to 94 % of the tokens). The output
 * projections are therefore scaled down until tokens stay themselves; shapes, types and random mantissas are as before.
 */
#define RESIDUAL_GAIN 0.25
#define STAGING       ((int64_t)64 << 20) /* elements made at once on their way to fp8 or to the host */

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

/* ---- linear weights -----------------------------------------------------------------------------------------------*/

/*
 * A linear weight as numbers and where it goes: `regions` behind one another as rows of `columns`; fp8: `count`
 * matrices [rows, columns] with their scales behind `scale`. Whatever does not stay on the device as it is made goes
 * through `scratch`, a piece at a time.
 */
typedef struct {
    fr_bf16 *made; /* SCRATCH elements */
    fr_e4m3 *q;    /* SCRATCH */
    float *scale;  /* SCRATCH / 128 / 128, with room for blocks that are not full */
    int64_t elements;
    bool fp8, host;
} scratch;

/* One matrix, or `count` experts' [rows, columns] each, made bf16 at `made` and due at `to`. */
static cudaError_t deliver(const scratch *s, char *to, float *scale, int count, int64_t rows, int64_t columns,
                           bool interleaved) {
    const int64_t n = count * rows * columns, halves = interleaved ? 2 : 1;
    const int64_t scales = count * halves * fr_ceil_div(rows / halves, 128) * fr_ceil_div(columns, 128);
    if (!s->fp8) return cudaMemcpyAsync(to, s->made, (size_t)(2 * n), cudaMemcpyDefault, NULL);
    cudaError_t e = fr_k_quantise_blocks(s->made, s->host ? s->q : (fr_e4m3 *)to, s->host ? s->scale : scale, count,
                                         rows, columns, interleaved, NULL);
    if (!s->host || e) return e;
    e = cudaMemcpyAsync(to, s->q, (size_t)n, cudaMemcpyDefault, NULL);
    return e ? e : cudaMemcpyAsync(scale, s->scale, (size_t)(4 * scales), cudaMemcpyDefault, NULL);
}

/* ---- layers -------------------------------------------------------------------------------------------------------*/

static cudaError_t random_dense(const fr_shard *s, const fr_layer_weights *w, const fr_model *m, double gain,
                                const uint64_t *seed, const scratch *by) {
    const int64_t h = m->hidden, q = (int64_t)m->heads * m->head_dim;
    fr_region r[FR_QKV_REGIONS];
    fr_bf16 *to = by->fp8 ? by->made : w->qkv;
    cudaError_t e = ones(w->input_norm, h);
    if (!e) e = ones(w->post_norm, h);
    if (!e) e = ones(w->q_norm, m->head_dim);
    if (!e) e = ones(w->k_norm, m->head_dim);
    fr_shard_qkv(s, m, r);
    for (int i = 0; i < FR_QKV_REGIONS && !e; i++) {
        e = fill(to, r[i], seed[QKV], DEVIATION);
        to += r[i].rows * r[i].columns;
    }
    const fr_region o = fr_shard_o(s, m);
    const scratch here = {.made = by->made, .fp8 = by->fp8};
    if (!e && by->fp8) e = deliver(&here, (char *)w->qkv, w->qkv_scale, 1, r[0].rows + r[1].rows + r[2].rows, h, false);
    if (!e) e = fill(by->fp8 ? by->made : w->o, o, seed[O], gain / sqrt((double)q));
    if (!e && by->fp8) e = deliver(&here, (char *)w->o, w->o_scale, 1, o.rows, o.columns, false);
    return e ? e : fill_all(w->router, m->experts * h, seed[ROUTER], DEVIATION);
}

/* Experts [first, end) at place `at` of a run of `experts`: straight into it, or as many at a time as scratch holds. */
static cudaError_t random_run(const fr_weights *w, const fr_model *m, char *run, int experts, int at, int first,
                              int end, double gain, const uint64_t *seed, const scratch *by) {
    const fr_shard *s = &w->shard;
    const int64_t h = m->hidden, width = s->width_end - s->width_first;
    const bool direct = !by->fp8 && !by->host;
    const int most = direct ? end - first : (int)(by->elements / (2 * width * h));
    const double deviation[2] = {DEVIATION, gain / sqrt((double)m->expert_width)};
    cudaError_t e = cudaSuccess;
    for (int some; first < end && !e; first += some, at += some) {
        some = end - first < most ? end - first : most;
        const fr_region r[2] = {fr_shard_gate_up(s, m, first, first + some), fr_shard_down(s, m, first, first + some)};
        for (int part = 0; part < 2 && !e; part++) {
            char *to = run + fr_run_offset(&w->run, experts, part, at);
            float *scale = by->fp8 ? (float *)(void *)(run + fr_run_offset(&w->run, experts, part + 2, at)) : NULL;
            e = fill(direct ? (fr_bf16 *)(void *)to : by->made, r[part], seed[part ? DOWN : GATE_UP], deviation[part]);
            if (!e && !direct) e = deliver(by, to, scale, some, part ? h : 2 * width, part ? width : h, part == 0);
        }
    }
    return e;
}

static cudaError_t random_experts(const fr_weights *w, const fr_model *m, double gain, const seeds *all,
                                  const scratch *by) {
    const fr_shard *s = &w->shard;
    cudaError_t e = cudaSuccess;
    if (s->on_host && !w->owns_host) return e;
    const int step = s->by_expert ? 1 : fr_weights_own(w); /* that lie together */
    for (int i = 0; i < s->layers && !e; i++)
        for (int x = s->expert_first; x < s->expert_end && !e; x += step)
            e = random_run(w, m, fr_weights_expert(w, i, 0, x - s->expert_first), step, 0, x, x + step, gain,
                           all->layer[fr_shard_layer_id(s, i)], by);
    if (!s->gathers || e) return e;
    const int places = fr_shard_slot_experts(s, m), rest = fr_shard_slot_place(s, s->expert_end);
    const uint64_t *seed = all->layer[fr_shard_layer_id(s, fr_shard_layer(s, s->first_layer))];
    e = random_run(w, m, w->first, places, 0, 0, s->expert_first, gain, seed, by);
    return e ? e : random_run(w, m, w->first, places, rest, s->expert_end, m->experts, gain, seed, by);
}

/* Room for a few experts, and in fp8 for either dense matrix. */
static cudaError_t open_scratch(const fr_weights *w, const fr_model *m, scratch *s) {
    const int64_t one = 2 * (int64_t)m->hidden * m->expert_width, d = m->head_dim;
    const int64_t dense = (int64_t)m->hidden * (w->shard.heads + 2 * w->shard.kv_heads) * d;
    *s = (scratch){.fp8 = w->shard.precision == FR_FP8, .host = w->shard.on_host};
    if (!s->fp8 && !s->host) return cudaSuccess;
    s->elements = fr_max_i64(fr_max_i64(STAGING, one), s->fp8 ? dense : 0);
    cudaError_t e = cudaMalloc((void **)&s->made, (size_t)s->elements * sizeof *s->made);
    if (!e && s->host && s->fp8) e = cudaMalloc((void **)&s->q, (size_t)s->elements);
    if (!e && s->host && s->fp8) e = cudaMalloc((void **)&s->scale, (size_t)s->elements / 128 / 128 * 4);
    return e;
}

static void close_scratch(scratch *s) {
    if (s->made) cudaFree(s->made);
    if (s->q) cudaFree(s->q);
    if (s->scale) cudaFree(s->scale);
}

fr_status fr_weights_random(fr_weights *w, const fr_model *m, int layers, uint64_t seed, fr_error *err) {
    const double begin = fr_monotonic_s(), gain = RESIDUAL_GAIN / layers;
    const int64_t table = (int64_t)m->vocab * m->hidden;
    const seeds all = make_seeds(w, m, seed);
    scratch by;
    cudaError_t e = open_scratch(w, m, &by);
    if (!e) e = fill_all(w->embedding, table, all.embedding, 1);
    if (!e && w->head != w->embedding) e = fill_all(w->head, table, all.head, DEVIATION);
    if (!e) e = ones(w->final_norm, m->hidden);
    for (int i = 0; i < w->shard.layers && w->shard.attention && !e; i++)
        e = random_dense(&w->shard, &w->layer[i], m, gain, all.layer[fr_shard_layer_id(&w->shard, i)], &by);
    if (!e) e = random_experts(w, m, gain, &all, &by);
    if (!e) e = cudaDeviceSynchronize();
    close_scratch(&by);
    free(all.layer);
    if (e != cudaSuccess) return fr_fail(err, FR_FAILED, "filling random weights failed: %s", cudaGetErrorString(e));
    FR_TRY(fr_weights_filled(w, err));
    w->seconds = fr_monotonic_s() - begin;
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

#include "engine/cuda/bench.h"

#include "engine/batch_tables.h"
#include "engine/cuda/rank.h"
#include "kernels/fp8.h"
#include "kernels/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Elements: 524,288 rows of 4,096 in and out; weights of 128 experts of 3,072 x 4,096. */
#define ACTIVATIONS (INT64_C(524288) * 4096)
#define WEIGHTS     (INT64_C(128) * 3072 * 4096)
#define X_WIDTH     4096
#define SCALES                                                                                                         \
    (ACTIVATIONS / 128) /* at least ceil(K / 128) a row for every shape that fits: K are multiples of 128              \
                         */
#define VOCABULARY 151936
#define WORKSPACE  ((size_t)256 << 20)
#define HOST_BYTES (INT64_C(1) << 30)
enum { TOKENS = 65536, SLOTS = 524288, EXPERTS = 128, COPIES = 8, SEQUENCES = 4096, CONTEXT = 131072 };

struct fr_bench {
    int device, copies;
    fr_measure *measure;
    const fr_cost_model *cost;
    fr_gemm *gemm;
    fr_attention *attention;
    fr_bf16 *x, *w; /* random, and never written: what is computed must not depend on what was measured before */
    fr_bf16 *y;     /* written */
    /* the same quantised, as matrices of X_WIDTH and W_WIDTH columns; other shapes read them as they lie */
    fr_e4m3 *xq, *wq;
    float *x_scale, *w_scale, *y_scale;
    void *workspace, *host;
    float *logits, *weights; /* [TOKENS][EXPERTS], [SLOTS] */
    int32_t *ids, *slot, *token, *position, *offsets, *start, *meta, *context;
    float *rope;
    uint32_t *counter;
    void *route;
    int32_t *staging; /* host */
    cudaStream_t other;
    cudaEvent_t fork, join;
    /* what is launched */
    fr_row row;
    int top_k, head_dim, variant[2]; /* of the products up and down */
    bool residual, fp8, quantise, chained;
    int64_t turn; /* launches so far */
    fr_attention_args at;
    int64_t gathered; /* rows of the context that attention gathers first */
};

static fr_status check(cudaError_t e, const char *what, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}
#define CU(call) FR_TRY(check(call, #call, err))

/* ---- opening ------------------------------------------------------------------------------------------------------*/

/* splitmix64, for orders and choices on the host. */
static uint64_t draw(uint64_t *s) {
    uint64_t z = *s += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static fr_status fill_logits(fr_bench *b, fr_error *err) {
    const size_t n = (size_t)TOKENS * EXPERTS;
    float *l = fr_alloc(n * sizeof *l);
    uint64_t seed = 8;
    for (size_t i = 0; i < n; i++) l[i] = (float)((double)(draw(&seed) >> 11) * 0x1p-53 * 4 - 2);
    const cudaError_t e = cudaMemcpy(b->logits, l, n * sizeof *l, cudaMemcpyHostToDevice);
    free(l);
    return check(e, "cudaMemcpy", err);
}

static fr_status fill_ints(fr_bench *b, fr_error *err) {
    uint64_t seed = 5;
    for (int i = 0; i < TOKENS; i++) b->staging[i] = i % 4096;
    CU(cudaMemcpy(b->position, b->staging, TOKENS * 4, cudaMemcpyHostToDevice));
    for (int i = 0; i < CONTEXT; i++) b->staging[i] = (int32_t)(draw(&seed) % CONTEXT);
    for (int i = 0; i < CONTEXT; i += 16) /* a cache is filled in runs of neighbours */
        for (int j = 1; j < 16; j++) b->staging[i + j] = (b->staging[i] + j) % CONTEXT;
    CU(cudaMemcpy(b->context, b->staging, CONTEXT * 4, cudaMemcpyHostToDevice));
    return FR_OK;
}

static fr_status open_memory(fr_bench *b, fr_error *err) {
    const struct {
        void *slot;
        size_t bytes;
    } list[] = {{&b->x, ACTIVATIONS * 2},
                {&b->y, ACTIVATIONS * 2},
                {&b->w, WEIGHTS * 2},
                {&b->xq, ACTIVATIONS},
                {&b->wq, WEIGHTS},
                {&b->x_scale, SCALES * 4},
                {&b->y_scale, SCALES * 4},
                {&b->w_scale, WEIGHTS / 128 / 128 * 4},
                {&b->workspace, WORKSPACE},
                {&b->logits, (size_t)TOKENS * EXPERTS * 4},
                {&b->weights, SLOTS * 4},
                {&b->ids, SLOTS * 4},
                {&b->slot, SLOTS * 4},
                {&b->token, SLOTS * 4},
                {&b->position, TOKENS * 4},
                {&b->offsets, 4 * (FR_K_MAX_EXPERTS + 1)},
                {&b->start, 4 * 4 * SEQUENCES},
                {&b->meta, fr_k_attention_meta_bytes(SEQUENCES)},
                {&b->context, CONTEXT * 4},
                {&b->rope, (size_t)TOKENS * 128 * 4},
                {&b->counter, 64},
                {&b->route, fr_k_route_workspace(SLOTS, FR_K_MAX_EXPERTS)}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        void *p = NULL;
        CU(cudaMalloc(&p, list[i].bytes));
        memcpy(list[i].slot, &p, sizeof p);
    }
    CU(cudaHostAlloc(&b->host, (size_t)HOST_BYTES, cudaHostAllocDefault));
    memset(b->host, 0x3c, (size_t)HOST_BYTES);
    CU(cudaMallocHost((void **)&b->staging, CONTEXT * 4));
    return FR_OK;
}

fr_status fr_bench_open(int device, fr_measure *m, const fr_cost_model *cost, fr_bench **out, fr_error *err) {
    fr_bench *b = fr_alloc(sizeof *b);
    cudaStream_t s = fr_measure_stream(m);
    *out = b; /* the caller closes it */
    b->device = device;
    b->measure = m;
    b->cost = cost;
    CU(cudaSetDevice(device));
    FR_TRY(open_memory(b, err));
    CU(fr_k_fill_normal(b->x, ACTIVATIONS, 1, 0, 1, s));
    CU(fr_k_fill_normal(b->y, ACTIVATIONS, 3, 0, 1, s));
    CU(fr_k_fill_normal(b->w, WEIGHTS, 2, 0, 0.02F, s));
    CU(cudaMemsetAsync(b->counter, 0, 64, s));
    CU(fr_k_quantise_rows(b->x, b->xq, b->x_scale, ACTIVATIONS / X_WIDTH, ACTIVATIONS / X_WIDTH, X_WIDTH, s));
    CU(fr_k_quantise_blocks(b->w, b->wq, b->w_scale, 128, 3072, 4096, false, s));
    CU(fr_k_rope_table(b->rope, TOKENS, 128, 1e6F, s));
    CU(cudaStreamCreateWithFlags(&b->other, cudaStreamNonBlocking));
    CU(cudaEventCreateWithFlags(&b->fork, cudaEventDisableTiming));
    CU(cudaEventCreateWithFlags(&b->join, cudaEventDisableTiming));
    FR_TRY(fr_measure_wait(m, err));
    FR_TRY(fill_logits(b, err));
    FR_TRY(fill_ints(b, err));
    FR_TRY(fr_gemm_open(&b->gemm, err));
    return fr_attention_open(&b->attention, true, err);
}

void fr_bench_close(fr_bench *b, bool lost) {
    if (!b) return;
    if (!lost) {
        void *const list[] = {b->xq,      b->wq,    b->x_scale,   b->y_scale, b->w_scale, b->x,
                              b->y,       b->w,     b->workspace, b->logits,  b->weights, b->ids,
                              b->slot,    b->token, b->position,  b->offsets, b->start,   b->meta,
                              b->context, b->rope,  b->counter,   b->route};
        cudaSetDevice(b->device);
        for (size_t i = 0; i < sizeof list / sizeof *list; i++) cudaFree(list[i]);
        if (b->host) cudaFreeHost(b->host);
        if (b->staging) cudaFreeHost(b->staging);
        if (b->other) cudaStreamDestroy(b->other);
        if (b->fork) cudaEventDestroy(b->fork);
        if (b->join) cudaEventDestroy(b->join);
        fr_gemm_close(b->gemm);
        fr_attention_close(b->attention);
    }
    free(b);
}

void *fr_bench_memory(fr_bench *b, int64_t bytes) {
    return bytes <= ACTIVATIONS * 2 ? b->y : NULL;
}
void *fr_bench_host(fr_bench *b, int64_t bytes) {
    return bytes <= HOST_BYTES ? b->host : NULL;
}
const void *fr_bench_source(fr_bench *b, int64_t bytes) {
    return bytes <= ACTIVATIONS * 2 ? b->x : NULL;
}

/* ---- products -----------------------------------------------------------------------------------------------------*/

/* engine/cuda/ops_fp8.c: cublasLt where the rows suit it, else our own product. */
static fr_status run_gemm_fp8(fr_bench *b, int64_t at, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    if (s->m % 4 == 0) {
        const fr_gemm_args g = {.x = (const fr_bf16 *)(const void *)b->xq,
                                .x_scale = b->x_scale,
                                .w = (const fr_bf16 *)(const void *)(b->wq + at),
                                .w_scale = b->w_scale,
                                .out = b->y,
                                .M = s->m,
                                .N = s->n,
                                .K = s->k,
                                .workspace = b->workspace,
                                .workspace_bytes = FR_GEMM_WORKSPACE};
        return fr_gemm_run(b->gemm, &g, stream, err);
    }
    const fr_k_fp8_args a = {.a = b->xq,
                             .a_scale = b->x_scale,
                             .a_pitch = fr_fp8_pitch(s->m),
                             .b = b->wq + at,
                             .b_scale = b->w_scale,
                             .c = b->y,
                             .counter = b->counter,
                             .rows = s->m,
                             .E = 1,
                             .N = s->n,
                             .K = s->k};
    return check(fr_k_grouped_fp8(&a, stream), "fr_k_grouped_fp8", err);
}

/* Chained: qkv and what comes of it, the residual stream, its normed rows, experts' rows. A combine makes
 * the stream of x and what experts say, not of itself: fed back, a thousand layers of one expert's weights would make
 * all tokens alike, and routing with them. */
static fr_bf16 *quarter(const fr_bench *b, int i) {
    return b->y + i * (ACTIVATIONS / 4);
}

/* A layer's product between the rows before and behind it. */
static fr_status run_chained_gemm(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const bool o = s->kind == FR_OP_GEMM_O, router = s->kind == FR_OP_GEMM_ROUTER;
    const fr_gemm_args a = {.x = quarter(b, o ? 0 : 2),
                            .w = b->w + b->turn++ % b->copies * ((int64_t)s->n * s->k),
                            .add = o ? quarter(b, 1) : NULL,
                            .out = router ? (void *)b->logits : quarter(b, o ? 1 : 0),
                            .M = s->m,
                            .N = s->n,
                            .K = s->k,
                            .out_f32 = router,
                            .workspace = b->workspace,
                            .workspace_bytes = FR_GEMM_WORKSPACE};
    return fr_gemm_run(b->gemm, &a, stream, err);
}

static fr_status run_gemm(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    if (b->chained) return run_chained_gemm(b, stream, err);
    if (s->precision == FR_FP8) return run_gemm_fp8(b, b->turn++ % b->copies * s->n * s->k, stream, err);
    const bool f32 = s->kind == FR_OP_GEMM_ROUTER || s->kind == FR_OP_GEMM_HEAD;
    const int64_t each = (int64_t)s->n * s->k;
    const fr_gemm_args a = {.x = b->x,
                            .w = b->w + b->turn++ % b->copies * each,
                            .add = b->residual ? b->y : NULL,
                            .out = b->y,
                            .M = s->m,
                            .N = s->n,
                            .K = s->k,
                            .out_f32 = f32,
                            .workspace = b->workspace,
                            .workspace_bytes = FR_GEMM_WORKSPACE};
    return fr_gemm_run(b->gemm, &a, stream, err);
}

/* n logits of each row: the engine's own kernel for candidates. */
static fr_status run_candidates(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    return check(fr_k_candidate_logits(b->x, b->w, b->slot, b->token, (float *)(void *)b->y, s->m * s->n, s->k,
                                       VOCABULARY, stream),
                 "fr_k_candidate_logits", err);
}

static fr_status prepare_gemm(fr_bench *b, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const int64_t each = (int64_t)s->n * s->k, widest = s->n > s->k ? s->n : s->k;
    if (each > WEIGHTS || s->m * widest > ACTIVATIONS / 2)
        return fr_fail(err, FR_FAILED, "the product is larger than the memory set aside");
    b->copies = (int)fr_min_i64(COPIES, WEIGHTS / each);
    b->turn = 0;
    if (s->kind != FR_OP_GEMM_HEAD || s->n > 1024) return FR_OK;
    uint64_t seed = 7;
    const int64_t picks = s->m * s->n;
    if (picks > CONTEXT / 2) return fr_fail(err, FR_FAILED, "more candidates than were made room for");
    for (int64_t i = 0; i < picks; i++) {
        b->staging[i] = (int32_t)(i / s->n);
        b->staging[picks + i] = (int32_t)(draw(&seed) % VOCABULARY);
    }
    CU(cudaMemcpy(b->slot, b->staging, (size_t)picks * 4, cudaMemcpyHostToDevice));
    CU(cudaMemcpy(b->token, b->staging + picks, (size_t)picks * 4, cudaMemcpyHostToDevice));
    return FR_OK;
}

static fr_status run_grouped_fp8(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const bool up = s->kind == FR_OP_EXPERT_UP;
    const fr_k_fp8_args a = {.a = b->xq,
                             .a_scale = b->x_scale,
                             .a_pitch = fr_fp8_pitch(s->m),
                             .b = b->wq,
                             .b_scale = b->w_scale,
                             .c = up ? NULL : b->y,
                             .q = up ? (fr_e4m3 *)(void *)b->y : NULL,
                             .q_scale = up ? b->y_scale : NULL,
                             .q_pitch = up ? fr_fp8_pitch(s->m) : 0,
                             .offsets = b->offsets,
                             .counter = b->counter,
                             .rows = s->m,
                             .E = (int32_t)s->vector_count,
                             .N = s->n,
                             .K = s->k,
                             .swiglu = up};
    return check(fr_k_grouped_fp8(&a, stream), "fr_k_grouped_fp8", err);
}

static fr_status run_grouped(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    if (s->precision == FR_FP8) return run_grouped_fp8(b, stream, err);
    const bool up = s->kind == FR_OP_EXPERT_UP;
    const fr_k_grouped_args a = {.a = b->chained ? quarter(b, up ? 3 : 0) : b->x,
                                 .b = b->w,
                                 .c = b->chained ? quarter(b, up ? 0 : 3) : b->y,
                                 .offsets = b->offsets,
                                 .counter = b->counter,
                                 .rows = s->m,
                                 .E = (int32_t)s->vector_count,
                                 .N = s->n,
                                 .K = s->k,
                                 .swiglu = up};
    return check(fr_k_grouped_gemm_variant(&a, b->variant[!up], stream), "fr_k_grouped_gemm", err);
}

static fr_status prepare_grouped(fr_bench *b, const fr_table *t, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const int32_t count = (int32_t)s->vector_count;
    const int64_t written = s->kind == FR_OP_EXPERT_UP ? s->n / 2 : s->n;
    if (count > FR_K_MAX_EXPERTS || (int64_t)count * s->n * s->k > WEIGHTS || s->m * s->k > ACTIVATIONS ||
        s->m * written > ACTIVATIONS)
        return fr_fail(err, FR_FAILED, "the grouped product is larger than the memory set aside");
    /* the one that the row names, or the one that the engine takes (ops_experts.c) */
    const fr_tile tile = b->row.tile ? (fr_tile)(b->row.tile - 1) : fr_cost_tile(b->cost, s, t->pairs);
    b->variant[s->kind != FR_OP_EXPERT_UP] = tile == FR_TILE_NONE ? fr_k_grouped_default(s->m, count) : (int)tile;
    int32_t rows[FR_K_MAX_EXPERTS], sum = 0;
    uint64_t seed = 3;
    for (int32_t i = 0; i < count; i++) rows[i] = t->pairs[s->vector + (uint32_t)i].queries;
    for (int32_t i = count - 1; i > 0; i--) {
        const int32_t j = (int32_t)(draw(&seed) % (uint64_t)(i + 1)), keep = rows[i];
        rows[i] = rows[j];
        rows[j] = keep;
    }
    for (int32_t i = 0; i <= count; i++) {
        b->staging[i] = sum;
        if (i < count) sum += rows[i];
    }
    CU(cudaMemcpy(b->offsets, b->staging, (size_t)(count + 1) * 4, cudaMemcpyHostToDevice));
    return FR_OK;
}

/* ---- attention ----------------------------------------------------------------------------------------------------*/

static fr_status run_attention(fr_bench *b, cudaStream_t stream, fr_error *err) {
    if (b->gathered) { /* engine/cuda/ops.c: rows of the cache first */
        const int64_t width = 2 * (int64_t)b->row.shape.k * b->row.shape.head_dim;
        CU(fr_k_embedding(b->w, b->context, b->y + ACTIVATIONS / 2, b->gathered, width, CONTEXT, stream));
    }
    return fr_attention_run(b->attention, &b->at, stream, err);
}

/* Tables of packed sequences, as a batch's (rank.c). */
static fr_status attention_tables(fr_bench *b, const fr_pair *v, int32_t count, bool cached, fr_error *err) {
    fr_attention_args *a = &b->at;
    const int32_t padded = fr_padded_sequences(count);
    int32_t *q = b->staging, *start = q + SEQUENCES, *length = start + SEQUENCES, row = 0, key = 0;
    if (padded >= SEQUENCES) return fr_fail(err, FR_FAILED, "more than %d sequences", SEQUENCES - 1);
    for (int32_t i = 0; i <= padded; i++) {
        q[i] = row;
        if (i == padded) break;
        start[i] = key;
        length[i] = i < count ? v[i].queries + v[i].prefix : 0;
        key += length[i];
        row += i < count ? v[i].queries : 0;
    }
    CU(cudaMemcpy(b->start, b->staging, 3 * 4 * SEQUENCES, cudaMemcpyHostToDevice));
    CU(fr_k_attention_meta(b->start, cached ? b->start + SEQUENCES : NULL, cached ? b->start + 2 * SEQUENCES : NULL,
                           padded, a->q_stride, a->kv_stride, a->o_stride, b->meta, fr_measure_stream(b->measure)));
    a->b = padded;
    a->meta = b->meta;
    return FR_OK;
}

static fr_status prepare_attention(fr_bench *b, const fr_table *t, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const fr_pair *v = t->pairs + s->vector;
    const int32_t count = (int32_t)s->vector_count;
    const int64_t heads = s->n, kv = s->k, d = s->head_dim, width = (heads + 2 * kv) * d;
    int64_t queries = 0, keys = 0, most_q = 0, most_kv = 0;
    bool equal = true, cached = false;
    for (int32_t i = 0; i < count; i++) {
        queries += v[i].queries;
        keys += v[i].queries + v[i].prefix;
        most_q = fr_max_i64(most_q, v[i].queries);
        most_kv = fr_max_i64(most_kv, v[i].queries + (int64_t)v[i].prefix);
        equal = equal && v[i].queries == v[0].queries;
        cached = cached || v[i].prefix > 0;
    }
    if (queries * width > ACTIVATIONS || queries * heads * d > ACTIVATIONS / 2 || keys > CONTEXT)
        return fr_fail(err, FR_FAILED, "the sequences are longer than the memory set aside");
    b->gathered = cached ? keys : 0;
    fr_attention_args *a = &b->at;
    *a = (fr_attention_args){.q = b->x,
                             .k = cached ? b->y + ACTIVATIONS / 2 : b->x + heads * d,
                             .out = b->y,
                             .q_stride = width,
                             .kv_stride = cached ? 2 * kv * d : width,
                             .o_stride = heads * d,
                             .b = count,
                             .max_q = (int32_t)most_q,
                             .max_kv = (int32_t)most_kv,
                             .heads_q = s->n,
                             .heads_kv = s->k,
                             .D = s->head_dim,
                             .scale = 1 / sqrtf((float)d),
                             .workspace = b->workspace,
                             .workspace_bytes = WORKSPACE};
    a->v = a->k + kv * d;
    if (b->row.packed || !equal || cached || !fr_unmasked(count, most_q))
        FR_TRY(attention_tables(b, v, count, cached, err));
    size_t need = 0;
    FR_TRY(fr_attention_workspace(b->attention, a, &need, err));
    if (need > WORKSPACE) return fr_fail(err, FR_FAILED, "attention wants %zu bytes of workspace", need);
    return FR_OK;
}

/* ---- memory-bound ops: bytes as engine/strategy/layer.c states them
 * -------------------------------------------------*/

static fr_status run_rope(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const int64_t d = b->head_dim, heads = s->n / d, kv = s->bytes / (4 * s->m * d) - heads;
    const int64_t width = (heads + 2 * kv) * d;
    const fr_k_qk_args a = {.qkv = b->y,
                            .q_weight = b->w,
                            .k_weight = b->w + 128,
                            .position = b->position,
                            .rope = b->rope,
                            .q_out = b->y,
                            .k_out = b->y + heads * d,
                            .q_stride = width,
                            .kv_stride = width,
                            .T = s->m,
                            .heads_q = (int32_t)heads,
                            .heads_kv = (int32_t)kv,
                            .D = (int32_t)d,
                            .eps = 1e-6F};
    return check(fr_k_qk_norm_rope(&a, stream), "fr_k_qk_norm_rope", err);
}

/* Rows out besides the k read: one, the residual stream's two, and the next layer's normed one. */
static cudaError_t combine(fr_bench *b, cudaStream_t stream) {
    const fr_shape *s = &b->row.shape;
    const int64_t others = s->bytes / (2 * s->m * s->n) - b->top_k;
    fr_bf16 *stream_rows = others >= 2 ? b->y : NULL;
    if (others < 3)
        return fr_k_reduce(b->x, b->slot, b->weights, NULL, stream_rows, b->y, s->m, b->top_k, s->n, stream);
    return fr_k_combine(b->x, b->slot, b->weights, stream_rows, b->y, b->w, b->y + ACTIVATIONS / 2, 1e-6F, s->m,
                        b->top_k, s->n, stream);
}

/* Rows that come out quantised. */
static fr_status run_quantising(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    fr_e4m3 *q = (fr_e4m3 *)(void *)b->y;
    const int64_t pitch = fr_fp8_pitch(s->m);
    fr_bf16 *residual =
        s->bytes > 5 * s->m * s->n ? b->y + ACTIVATIONS / 2 : NULL; /* three rows of bf16 in place of one */
    cudaError_t e;
    if (s->kind == FR_OP_PERMUTE)
        e = fr_k_permute_fp8(b->x, b->slot, NULL, q, b->y_scale, pitch, s->m / b->top_k, b->top_k, s->n, stream);
    else if (s->kind == FR_OP_COMBINE)
        e = fr_k_combine_fp8(b->x, b->slot, b->weights, b->y, b->y, b->w, q + ACTIVATIONS, b->y_scale, pitch, 1e-6F,
                             s->m, b->top_k, s->n, stream);
    else if (b->quantise)
        e = fr_k_quantise_rows(b->x, q, b->y_scale, pitch, s->m, s->n, stream);
    else
        e = fr_k_rmsnorm_fp8(b->x, residual, b->w, NULL, q, b->y_scale, pitch, s->m, s->n, 1e-6F, stream);
    return check(e, fr_row_name(&b->row), err);
}

static fr_status run_memory(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const int64_t m = s->m, n = s->n;
    const int32_t k = b->top_k;
    cudaError_t e = cudaErrorInvalidValue;
    if (b->fp8) return run_quantising(b, stream, err);
    if (b->chained && s->kind == FR_OP_NORM) {
        e = fr_k_rmsnorm(quarter(b, 1), b->w, NULL, quarter(b, 2), m, n, 1e-6F, stream);
        return check(e, fr_row_name(&b->row), err);
    }
    if (b->chained && s->kind == FR_OP_PERMUTE) {
        e = fr_k_permute_arrived(quarter(b, 2), b->slot, NULL, quarter(b, 3), m / k, k, n, stream);
        return check(e, fr_row_name(&b->row), err);
    }
    if (b->chained && s->kind == FR_OP_COMBINE) {
        e = fr_k_combine(quarter(b, 3), b->slot, b->weights, b->x + ACTIVATIONS / 2, quarter(b, 1), b->w, quarter(b, 2),
                         1e-6F, m, k, n, stream);
        return check(e, fr_row_name(&b->row), err);
    }
    switch ((fr_op_kind)s->kind) {
    case FR_OP_EMBED:
        e = fr_k_embedding(b->w, b->ids, b->y, m, n, VOCABULARY, stream);
        break;
    case FR_OP_NORM:
        if (s->bytes <= 4 * m * n)
            e = fr_k_rmsnorm(b->x, b->w, NULL, b->y, m, n, 1e-6F, stream);
        else if (s->bytes < 8 * m * n) /* the last: rows are picked */
            e = fr_k_add_rmsnorm_rows(b->y + ACTIVATIONS / 2, b->x, b->w, b->position, b->y, m, n, 1e-6F, stream);
        else
            e = fr_k_add_rmsnorm(b->y + ACTIVATIONS / 2, b->x, b->w, b->y, m, n, 1e-6F, stream);
        break;
    case FR_OP_ROPE:
        return run_rope(b, stream, err);
    case FR_OP_TOPK:
        e = fr_k_router(b->logits, NULL, b->ids, b->weights, m, (int32_t)n, k, true, stream);
        break;
    case FR_OP_SORT:
        e = fr_k_route_arrived(b->ids, NULL, m / k, k, 0, (int32_t)n, b->offsets, b->slot, b->token, b->route, stream);
        break;
    case FR_OP_PERMUTE:
        e = fr_k_permute_arrived(b->x, b->slot, NULL, b->y, s->k > 0 ? s->k : m / k, k, n, stream);
        break;
    case FR_OP_COMBINE:
        e = combine(b, stream);
        break;
    case FR_OP_UPLOAD: /* as fr_batch_upload: attention's tables are made of what came */
        e = fr_k_words(b->y, b->host, m, stream);
        if (!e) e = fr_k_attention_meta(b->start, NULL, NULL, 8, n, n, n, b->meta, stream);
        break;
    case FR_OP_DOWNLOAD:
        e = fr_batch_bring(b->host, b->logits, m, stream);
        break;
    case FR_OP_REDUCE:
        e = fr_k_reduce(b->x, b->slot, b->weights, NULL, NULL, b->y, m, k, n, stream);
        break;
    default:
        break;
    }
    return check(e, fr_row_name(&b->row), err);
}

/* Ids and places of rows that fit the number of tokens and experts. */
static fr_status prepare_memory(fr_bench *b, fr_error *err) {
    const fr_shape *s = &b->row.shape;
    const int32_t k = b->top_k, experts = s->kind == FR_OP_TOPK || s->kind == FR_OP_SORT ? s->n : EXPERTS;
    const bool rows = s->kind == FR_OP_SORT || s->kind == FR_OP_PERMUTE;
    const bool part = s->kind == FR_OP_PERMUTE && s->k > 0; /* of the tokens read some of their k rows are here */
    const int64_t tokens = part ? s->k : rows ? s->m / k : s->m;
    cudaStream_t stream = fr_measure_stream(b->measure);
    if (fr_op_over_pcie((fr_op_kind)s->kind) && s->m <= TOKENS * EXPERTS) return FR_OK;
    if (tokens > TOKENS || tokens * k > SLOTS || k < 1 || k > FR_K_MAX_TOPK || experts > EXPERTS || k > experts ||
        (rows && !part && tokens * k != s->m) || s->m * s->n > ACTIVATIONS)
        return fr_fail(err, FR_FAILED, "more rows than the memory set aside");
    if (s->kind == FR_OP_EMBED) {
        uint64_t seed = 9;
        for (int64_t i = 0; i < tokens; i++) b->staging[i] = (int32_t)(draw(&seed) % VOCABULARY);
        CU(cudaMemcpy(b->ids, b->staging, (size_t)tokens * 4, cudaMemcpyHostToDevice));
        return FR_OK;
    }
    if (s->kind == FR_OP_NORM || s->kind == FR_OP_ROPE) return FR_OK;
    CU(fr_k_router(b->logits, NULL, b->ids, b->weights, tokens, experts, k, true, stream));
    /* what arrived: of a rank that holds so many experts that of a token's k rows those named are its own */
    const double own = s->kind == FR_OP_REDUCE ? (double)s->bytes / (double)(2 * s->m * s->n) - 1
                       : part                  ? (double)s->m / s->k
                                               : k;
    CU(fr_k_route(b->ids, tokens, k, 0, (int32_t)lround(experts * own / k), b->offsets, b->slot, b->token, b->route,
                  stream));
    return FR_OK;
}

/* ---- copies -------------------------------------------------------------------------------------------------------*/

static fr_status copy(fr_bench *b, fr_op_kind kind, int64_t bytes, cudaStream_t stream, fr_error *err) {
    const size_t n = (size_t)bytes;
    if (kind == FR_OP_H2D) return check(cudaMemcpyAsync(b->y, b->host, n, cudaMemcpyHostToDevice, stream), "h2d", err);
    if (kind == FR_OP_D2H) return check(cudaMemcpyAsync(b->host, b->x, n, cudaMemcpyDeviceToHost, stream), "d2h", err);
    return check(cudaMemcpyAsync(b->y, b->x, n, cudaMemcpyDeviceToDevice, stream), "copy", err);
}

/* Both ways: the other direction beside it, begun and ended with it. */
static fr_status run_copy(fr_bench *b, cudaStream_t stream, fr_error *err) {
    const fr_op_kind kind = (fr_op_kind)b->row.shape.kind;
    const int64_t bytes = b->row.shape.bytes;
    if (b->row.ways < 2) return copy(b, kind, bytes, stream, err);
    CU(cudaEventRecord(b->fork, stream));
    CU(cudaStreamWaitEvent(b->other, b->fork, 0));
    FR_TRY(copy(b, kind, bytes, stream, err));
    FR_TRY(copy(b, kind == FR_OP_H2D ? FR_OP_D2H : FR_OP_H2D, bytes, b->other, err));
    CU(cudaEventRecord(b->join, b->other));
    CU(cudaStreamWaitEvent(stream, b->join, 0));
    return FR_OK;
}

/* ---- public -------------------------------------------------------------------------------------------------------*/

bool fr_bench_hot(const fr_row *row) {
    const fr_op_class c = fr_op_class_of((fr_op_kind)row->shape.kind);
    return c == FR_CLASS_GEMM || c == FR_CLASS_GROUPED || c == FR_CLASS_ATTENTION;
}

fr_status fr_bench_prepare(fr_bench *b, const fr_table *t, const fr_row *row, const fr_cal_item *item, fr_error *err) {
    b->row = *row;
    b->top_k = item->top_k;
    b->head_dim = item->head_dim;
    b->residual = item->residual;
    b->fp8 = item->fp8;
    b->quantise = item->quantise;
    CU(cudaSetDevice(b->device));
    switch (fr_op_class_of((fr_op_kind)row->shape.kind)) {
    case FR_CLASS_GEMM:
        return prepare_gemm(b, err);
    case FR_CLASS_GROUPED:
        return prepare_grouped(b, t, err);
    case FR_CLASS_ATTENTION:
        return prepare_attention(b, t, err);
    case FR_CLASS_MEMORY:
        return prepare_memory(b, err);
    case FR_CLASS_COPY:
        if (row->shape.bytes > HOST_BYTES)
            return fr_fail(err, FR_FAILED, "the copy is larger than the memory set aside");
        return FR_OK;
    default:
        return fr_fail(err, FR_FAILED, "%s is not measured by itself", fr_row_name(row));
    }
}

void fr_bench_chain(fr_bench *b, bool on) {
    b->chained = on;
}

void fr_bench_switch(fr_bench *b, const fr_row *row, int top_k, int head_dim) {
    const int64_t each = (int64_t)row->shape.n * row->shape.k;
    b->row = *row;
    b->top_k = top_k;
    b->head_dim = head_dim;
    b->residual = row->shape.kind == FR_OP_GEMM_O;
    b->fp8 = b->quantise = false;
    b->copies = each > 0 ? (int)fr_min_i64(COPIES, WEIGHTS / each) : 1;
}

fr_status fr_bench_run(void *bench, cudaStream_t stream, fr_error *err) {
    fr_bench *b = bench;
    switch (fr_op_class_of((fr_op_kind)b->row.shape.kind)) {
    case FR_CLASS_GEMM:
        if (b->row.shape.kind == FR_OP_GEMM_HEAD && b->row.shape.n <= 1024) return run_candidates(b, stream, err);
        return run_gemm(b, stream, err);
    case FR_CLASS_GROUPED:
        return run_grouped(b, stream, err);
    case FR_CLASS_ATTENTION:
        return run_attention(b, stream, err);
    case FR_CLASS_COPY:
        return run_copy(b, stream, err);
    default:
        return run_memory(b, stream, err);
    }
}

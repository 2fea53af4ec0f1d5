#include "engine/cuda/links.h"

#include "engine/cuda/transport/transport.h"
#include "engine/strategy/strategy.h"
#include "kernels/carry.h"
#include "kernels/exchange.h"

#include <stdlib.h>
#include <string.h>

/*
 * How many blocks carry: beside another batch's attention or products as few as still fill a link, alone one an SM
 * (tests/gpu/test_carry bench, 8,192 rows of 8 KB to a peer on 2 x H200: 351 GB/s by 8 blocks, 326 by 16, 352 by 132).
 */
#define BLOCKS_BESIDE 8
#define BLOCKS_ALONE  132

enum { BATCHES = 2 };

typedef struct {
    fr_k_exchange x; /* what fr_k_pack looks at: targets are the expert ranks, its block keeps where each one's begin */
    int32_t *source_of_copy;
    void *workspace;
} half;

struct fr_links {
    fr_links_options o;
    int attention, first; /* attention ranks of the replica; its first plan rank */
    bool experts;         /* this is an expert rank */
    int index;            /* among the replica's attention, or expert, ranks */
    char *memory; /* what others write first: results [batch][expert rank], or payloads [attention rank][depth] */
    int64_t bytes;
    void **peers;       /* [ranks]: theirs */
    half half[BATCHES]; /* attention ranks */
    int32_t *landed;    /* expert ranks: [groups][batch][tp + 1] where each rank's rows of an item begin */
    int *source;        /* [plan buffers]: attention rank whose payload it is, -1 = none of this rank's */
};

static int64_t aligned(int64_t bytes) {
    return fr_ceil_div(bytes, 512) * 512;
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

static void *take(const fr_links *l, int64_t *at, int64_t bytes) {
    void *p = l->memory ? l->memory + *at : NULL;
    *at += aligned(bytes);
    return p;
}

/* Places in the memory; without memory only their sum. */
static void cut(fr_links *l) {
    const fr_activations *a = l->o.room;
    const int targets = l->o.layout->ep;
    int64_t at = 0;
    if (l->experts) {
        take(l, &at, l->attention * FR_ASAP_DEPTH * a->payload);
        l->landed = take(l, &at, 4 * l->o.layout->dp * BATCHES * (l->o.layout->tp + 1));
    } else {
        take(l, &at, BATCHES * targets * a->result);
        for (int h = 0; h < BATCHES; h++) {
            half *b = &l->half[h];
            b->x = (fr_k_exchange){
                .ranks = targets, .parts = 1, .experts = l->o.model->experts, .top_k = l->o.model->top_k};
            b->x.block[0] = take(l, &at, sizeof(fr_x_block));
            b->source_of_copy = take(l, &at, 4 * a->carried * targets);
            b->workspace = take(l, &at, (int64_t)fr_k_pack_workspace(&b->x, a->carried));
        }
    }
    l->bytes = at;
}

/* The plan has the payloads of an expert rank in the order of the attention ranks. */
static void find_payloads(fr_links *l) {
    const fr_plan *p = l->o.plan;
    int next = 0;
    l->source = fr_alloc(p->buffers_count * sizeof *l->source);
    for (uint32_t i = 0; i < p->buffers_count; i++) {
        const bool payload = l->experts && p->buffers[i].rank == l->o.rank && p->buffers[i].kind == FR_BUF_SLOT;
        l->source[i] = payload ? next++ : -1;
    }
}

static fr_status open_memory(fr_links *l, fr_error *err) {
    cut(l);
    cudaError_t e = fr_transport_malloc(l->o.transport, (size_t)l->bytes, (void **)&l->memory);
    if (e == cudaErrorMemoryAllocation)
        return fr_fail(err, FR_FAILED,
                       "rank %d: slots for %lld tokens of asap need %.2f GB of GPU memory: take fewer "
                       "--tokens (or --budget)",
                       l->o.rank, (long long)l->o.room->carried, (double)l->bytes * 1e-9);
    cut(l);
    /* What is read before it is written must show: fill with NaN bits. */
    if (!e) e = cudaMemset(l->memory, 0xff, (size_t)l->bytes);
    if (!e) e = cudaDeviceSynchronize();
    if (e) return fr_fail(err, FR_FAILED, "rank %d: memory of asap's slots: %s", l->o.rank, cudaGetErrorString(e));
    return FR_OK;
}

static fr_status share(fr_links *l, fr_error *err) {
    const int others = l->experts ? l->attention : l->o.layout->ep, from = l->experts ? 0 : l->attention;
    FR_TRY(fr_transport_share(l->o.transport, l->memory, (size_t)l->bytes, l->peers, err));
    for (int i = 0; i < others; i++)
        if (!l->peers[l->first + from + i])
            return fr_fail(err, FR_FAILED, "--strategy asap: rank %d cannot reach the memory of rank %d", l->o.rank,
                           l->first + from + i);
    return FR_OK;
}

fr_status fr_links_open(const fr_links_options *o, fr_links **out, fr_error *err) {
    const fr_layout *layout = o->layout;
    const int stage = fr_layout_stage_ranks(layout);
    *out = NULL;
    if (layout->ep > FR_X_RANKS)
        return fr_fail(err, FR_FAILED, "--ep %d: at most %d expert ranks are executed", layout->ep, FR_X_RANKS);
    fr_links *l = fr_alloc(sizeof *l);
    l->o = *o;
    l->attention = layout->tp * layout->dp;
    l->first = o->rank - o->rank % stage;
    l->index = o->rank % stage;
    l->experts = l->index >= l->attention;
    if (l->experts) l->index -= l->attention;
    l->peers = fr_alloc((size_t)o->plan->ranks * sizeof *l->peers);
    find_payloads(l);
    fr_status s = open_memory(l, err);
    if (s == FR_OK) s = share(l, err);
    if (s == FR_OK)
        *out = l;
    else
        fr_links_close(l, true); /* others may have mapped them */
    return s;
}

void fr_links_close(fr_links *l, bool lost) {
    if (!l) return;
    if (!lost && l->memory) cudaFree(l->memory);
    free(l->peers);
    free(l->source);
    free(l);
}

int64_t fr_links_bytes(const fr_links *l) {
    return l ? l->bytes : 0;
}

/* ---- a payload slot -----------------------------------------------------------------------------------------------*/

typedef struct {
    fr_bf16 *rows;
    int32_t *ids;
    float *weights;
    int32_t *range; /* 0 and the number of rows */
} payload;

static payload payload_at(const fr_links *l, void *memory, int source, uint32_t hold) {
    const fr_activations *a = l->o.room;
    char *base = (char *)memory + (source * FR_ASAP_DEPTH + (int)(hold % FR_ASAP_DEPTH)) * a->payload;
    payload p = {.rows = (fr_bf16 *)(void *)base};
    p.ids = (int32_t *)(void *)(p.rows + a->carried * l->o.model->hidden);
    p.weights = (float *)(void *)(p.ids + a->carried * a->slots);
    p.range = (int32_t *)(void *)(p.weights + a->carried * a->slots);
    return p;
}

/* ---- attention ranks ----------------------------------------------------------------------------------------------*/

cudaError_t fr_links_pack(fr_links *l, const fr_links_batch *b, cudaStream_t stream) {
    half *h = &l->half[b->half];
    if (b->tokens > l->o.room->carried) return cudaErrorInvalidValue;
    const cudaError_t e = fr_k_pack(&h->x, b->ids, b->normed, b->tokens, l->o.model->hidden, b->row_of_copy,
                                    h->source_of_copy, b->send, h->workspace, stream);
    if (e) return e;
    return fr_k_carry_places(b->row_of_copy, h->x.block[0]->first, b->tokens, l->o.layout->ep, l->o.room->carried,
                             stream);
}

cudaError_t fr_links_push(fr_links *l, const fr_links_batch *b, int to, uint32_t hold, cudaStream_t stream) {
    const half *h = &l->half[b->half];
    const int e = to - l->first - l->attention;
    if (e < 0 || e >= l->o.layout->ep) return cudaErrorInvalidValue;
    const payload p = payload_at(l, l->peers[to], l->index, hold);
    int first, end;
    fr_layout_expert_range(l->o.layout, l->o.model, e, &first, &end);
    const fr_k_carry_args a = {.rows = b->send,
                               .range = h->x.block[0]->first + e,
                               .to = p.rows,
                               .ids = b->ids,
                               .weights = b->weights,
                               .source = h->source_of_copy,
                               .to_ids = p.ids,
                               .to_weights = p.weights,
                               .zeros = p.range,
                               .zeros_count = 1,
                               .ends = p.range + 1,
                               .ends_count = 1,
                               .first = first,
                               .end = end,
                               .k = l->o.model->top_k,
                               .blocks = BLOCKS_BESIDE,
                               .H = l->o.model->hidden};
    return fr_k_carry(&a, stream);
}

const fr_bf16 *fr_links_results(const fr_links *l, int h) {
    return (const fr_bf16 *)(const void *)(l->memory + h * l->o.layout->ep * l->o.room->result);
}

/* ---- expert ranks -------------------------------------------------------------------------------------------------*/

static int32_t *landed_of(const fr_links *l, int group, int h) {
    return l->landed + (group * BATCHES + h) * (l->o.layout->tp + 1);
}

cudaError_t fr_links_drain(fr_links *l, uint32_t buffer, uint32_t hold, int h, bool first, const fr_links_recv *to,
                           cudaStream_t stream) {
    const int tp = l->o.layout->tp;
    if (buffer >= l->o.plan->buffers_count || l->source[buffer] < 0) return cudaErrorInvalidValue;
    const int source = l->source[buffer], t = source % tp;
    const payload p = payload_at(l, l->memory, source, hold);
    int32_t *landed = landed_of(l, source / tp, h);
    const fr_k_carry_args a = {.rows = p.rows,
                               .range = p.range,
                               .to = to->rows,
                               .at = first ? NULL : landed + t,
                               .ids = p.ids,
                               .weights = p.weights,
                               .to_ids = to->ids,
                               .to_weights = to->weights,
                               .zeros = landed,
                               .zeros_count = first ? t + 1 : 0,
                               .ends = landed + t + 1,
                               .ends_count = tp - t,
                               .first = 0,
                               .end = l->o.model->experts,
                               .k = l->o.model->top_k,
                               .blocks = BLOCKS_ALONE,
                               .H = l->o.model->hidden};
    return fr_k_carry(&a, stream);
}

const int32_t *fr_links_landed(const fr_links *l, int group, int h) {
    return landed_of(l, group, h) + l->o.layout->tp;
}

cudaError_t fr_links_give_back(fr_links *l, const fr_bf16 *rows, int to, int h, cudaStream_t stream) {
    const int64_t slot = h * l->o.layout->ep + l->index;
    const int source = to - l->first, tp = l->o.layout->tp;
    if (source < 0 || source >= l->attention) return cudaErrorInvalidValue;
    const fr_k_carry_args a = {.rows = rows,
                               .range = landed_of(l, source / tp, h) + source % tp,
                               .to = (char *)l->peers[to] + slot * l->o.room->result,
                               .blocks = BLOCKS_BESIDE,
                               .H = l->o.model->hidden};
    return fr_k_carry(&a, stream);
}

#include "engine/cuda/transport/exchange.h"

#include "kernels/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * How rows are pushed where an op names no limit (tests/gpu/test_exchange bench on 2 x H200, 8 KB rows, burst): bulk
 * copies by 132 blocks, one an SM, send 348 GB/s where loads and stores send 315, and by 16 blocks, what overlap can
 * spare, still 325 against 215; loads and stores by 132 blocks are some us quicker on few rows (34 against 39 us for
 * 1,024 tokens, 13 against 16 us for 128).
 */
#define PUSH_BLOCKS         132
#define PUSH_BLOCKS_OVERLAP 16
#define BULK_TOKENS         4096

enum { HALVES = 2, RECENT = 64, PARTS = FR_X_TARGETS };

typedef struct {
    fr_k_exchange x;
    int32_t *source_of_copy;
    void *workspace;
    const int32_t *ids; /* of the layer packed last */
    const float *weights;
    uint32_t number, round;  /* exchanges launched; layers begun */
    uint64_t recent[RECENT]; /* ids of the latest, by number */
    bool unpacks;            /* rows come in fp8 and are wanted in bf16: fp8 products take them as they come */
    size_t unpacked[PARTS];  /* unpacks: where rows of a part lie in `memory` before that */
    void *send_of[FR_X_RANKS], *recv_of[PARTS][FR_X_RANKS]; /* members' buffers, as mapped here; found on first use */
} half;

struct fr_exchanges {
    fr_transport *transport;
    fr_transport_options o;
    void *(*peer_of)(fr_transport *, uint32_t, int);
    int first; /* plan rank of the group's first member */
    int halves;
    half half[HALVES];
    char *memory;
    size_t bytes;
    char *peer[FR_X_RANKS]; /* members' memory, cut like this rank's */
    fr_x_error *errors;     /* [HALVES], pinned */
    cudaStream_t rescue;
};

bool fr_exchanges_wanted(const fr_layout *l) {
    return l->experts == FR_EXP_EP && l->ep > 1 && l->exchange != FR_EXCHANGE_AGRS;
}

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

static size_t aligned(size_t bytes) {
    return (bytes + 511) / 512 * 512;
}

/* Blocks of both halves first: peers see them at the start of what is shared. */
static void cut(fr_exchanges *x, int64_t tokens) {
    size_t at = aligned(HALVES * sizeof(fr_x_block));
    for (int h = 0; h < x->halves; h++) {
        half *a = &x->half[h];
        const int64_t copies = tokens * fr_k_exchange_copies(&a->x);
        a->source_of_copy = x->memory ? (void *)(x->memory + at) : NULL;
        at += aligned((size_t)copies * sizeof *a->source_of_copy);
        a->workspace = x->memory ? x->memory + at : NULL;
        at += aligned(fr_k_pack_workspace(&a->x, tokens));
        for (int g = 0; g < a->x.parts && a->unpacks; g++) {
            a->unpacked[g] = at;
            at += aligned((size_t)(x->o.arriving * fr_k_exchange_row(&a->x, x->o.model->hidden)));
        }
    }
    x->bytes = at;
}

static void fill(fr_exchanges *x) {
    const fr_layout *l = x->o.layout;
    for (int h = 0; h < x->halves; h++) {
        x->half[h].unpacks = l->exchange == FR_EXCHANGE_A2A_FP8 && l->precision != FR_FP8;
        x->half[h].x = (fr_k_exchange){.spin_ns = (int64_t)(1e9 * FR_TRANSPORT_SPIN_S),
                                       .ranks = l->ep,
                                       .me = x->o.rank - x->first,
                                       .parts = l->overlap == FR_OVERLAP_EXPERT_GROUPS ? l->overlap_stages : 1,
                                       .experts = x->o.model->experts,
                                       .top_k = x->o.model->top_k,
                                       .by_expert = l->exchange == FR_EXCHANGE_A2A_K,
                                       .fp8 = l->exchange == FR_EXCHANGE_A2A_FP8};
    }
}

static fr_status open_memory(fr_exchanges *x, fr_error *err) {
    const int64_t tokens = fr_ceil_div(x->o.tokens, x->o.layout->tp);
    const int ranks = fr_world_ranks(x->o.world);
    cut(x, tokens);
    FR_TRY(check(fr_transport_malloc(x->transport, x->bytes, (void **)&x->memory),
                 "cudaMalloc of the exchange's tables", err));
    cut(x, tokens);
    FR_TRY(check(cudaMemset(x->memory, 0, x->bytes), "cudaMemset", err));
    FR_TRY(check(cudaDeviceSynchronize(), "cudaMemset", err));
    FR_TRY(check(cudaHostAlloc((void **)&x->errors, HALVES * sizeof *x->errors, cudaHostAllocPortable), "cudaHostAlloc",
                 err));
    memset(x->errors, 0, HALVES * sizeof *x->errors);
    FR_TRY(check(cudaStreamCreateWithFlags(&x->rescue, cudaStreamNonBlocking), "cudaStreamCreate", err));
    void **peers = fr_alloc((size_t)ranks * sizeof *peers);
    fr_status s = fr_transport_share(x->transport, x->memory, x->bytes, peers, err);
    for (int h = 0; h < x->halves && s == FR_OK; h++) {
        x->half[h].x.error = &x->errors[h];
        for (int i = 0; i < x->o.layout->ep && s == FR_OK; i++) {
            fr_x_block *blocks = peers[x->first + i];
            if (!blocks)
                s = fr_fail(err, FR_FAILED, "--ep %d: rank %d cannot reach the memory of rank %d; --exchange agrs can",
                            x->o.layout->ep, x->o.rank, x->first + i);
            else
                x->half[h].x.block[i] = blocks + h;
            x->peer[i] = (char *)blocks;
        }
    }
    free(peers);
    return s;
}

fr_status fr_exchanges_open(fr_transport *t, const fr_transport_options *o,
                            void *(*peer_of)(fr_transport *, uint32_t, int), fr_exchanges **out, fr_error *err) {
    const fr_layout *l = o->layout;
    const int parts = l->overlap == FR_OVERLAP_EXPERT_GROUPS ? l->overlap_stages : 1;
    *out = NULL;
    if (l->exchange == FR_EXCHANGE_A2A_FP8 && o->model->hidden % 16)
        return fr_fail(err, FR_BAD_INPUT,
                       "--ep-exchange a2a-fp8: needs a hidden width that is a multiple of 16, not %d",
                       o->model->hidden);
    if (l->ep > FR_X_RANKS || l->ep * parts > FR_X_TARGETS)
        return fr_fail(err, FR_FAILED, "exchanges among %d ranks in %d parts: at most %d ranks and %d targets", l->ep,
                       parts, FR_X_RANKS, FR_X_TARGETS);
    fr_exchanges *x = fr_alloc(sizeof *x);
    x->transport = t;
    x->o = *o;
    x->peer_of = peer_of;
    x->first = o->rank - o->rank % (l->tp * l->dp) % l->ep;
    x->halves = l->overlap == FR_OVERLAP_TBO ? 2 : 1;
    fill(x);
    fr_status s = open_memory(x, err);
    if (s != FR_OK) {
        fr_exchanges_close(x, true);
        return s;
    }
    *out = x;
    return FR_OK;
}

void fr_exchanges_replan(fr_exchanges *x, const fr_plan *plan) {
    x->o.plan = plan;
}

void fr_exchanges_close(fr_exchanges *x, bool lost) {
    if (!x) return;
    if (!lost) {
        cudaFree(x->memory);
        cudaFreeHost(x->errors);
        cudaStreamDestroy(x->rescue);
    }
    free(x);
}

int64_t fr_exchanges_bytes(const fr_exchanges *x) {
    return x ? (int64_t)x->bytes : 0;
}

/* ---- launching ----------------------------------------------------------------------------------------------------*/

static fr_status half_of(fr_exchanges *x, const fr_collective *c, half **out, fr_error *err) {
    const fr_dispatch *d = &c->dispatch;
    if (d->half < 0 || d->half >= x->halves || d->part < 0 || d->part >= x->half[0].x.parts)
        return fr_fail(err, FR_FAILED, "half %d, part %d: %d and %d were opened", d->half, d->part, x->halves,
                       x->half[0].x.parts);
    if (d->tokens > fr_ceil_div(x->o.tokens, x->o.layout->tp))
        return fr_fail(err, FR_FAILED, "%lld tokens: tables were made for %lld", (long long)d->tokens,
                       (long long)fr_ceil_div(x->o.tokens, x->o.layout->tp));
    *out = &x->half[d->half];
    return FR_OK;
}

/* Members' counterparts of an own buffer. */
static fr_status find(fr_exchanges *x, uint32_t buffer, void **of, fr_error *err) {
    for (int i = 0; i < x->o.layout->ep && !of[0]; i++)
        if (!x->peer_of(x->transport, buffer, x->first + i))
            return fr_fail(err, FR_FAILED, "rank %d has no buffer like %s", x->first + i,
                           x->o.plan->buffers[buffer].name);
    for (int i = x->o.layout->ep - 1; i >= 0; i--) of[i] = x->peer_of(x->transport, buffer, x->first + i);
    return FR_OK;
}

static bool bulk(const fr_exchanges *x, const fr_collective *c) {
    return x->o.layout->overlap != FR_OVERLAP_NONE || c->dispatch.tokens >= BULK_TOKENS;
}

static int blocks_of(const fr_exchanges *x) {
    return x->o.layout->overlap == FR_OVERLAP_NONE ? PUSH_BLOCKS : PUSH_BLOCKS_OVERLAP;
}

fr_status fr_exchanges_pack(fr_exchanges *x, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    const fr_dispatch *d = &c->dispatch;
    half *h = NULL;
    FR_TRY(half_of(x, c, &h, err));
    void *send = x->peer_of(x->transport, d->send, x->o.rank);
    h->ids = d->ids;
    h->weights = d->weights;
    return check(fr_k_pack(&h->x, d->ids, d->normed, d->tokens, x->o.model->hidden, d->row_of_copy, h->source_of_copy,
                           send, h->workspace, stream),
                 "fr_k_pack", err);
}

static fr_status counts(half *h, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    const fr_dispatch *d = &c->dispatch;
    h->round++;
    return check(fr_k_counts(&h->x, d->tokens, d->capacity, d->landed, h->round, h->number, FR_X_ALL, stream),
                 "fr_k_counts", err);
}

static fr_status dispatch(fr_exchanges *x, half *h, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    const fr_dispatch *d = &c->dispatch;
    FR_TRY(find(x, d->send, h->send_of, err));
    FR_TRY(find(x, d->recv, h->recv_of[d->part], err));
    fr_k_push_args a = {.rows = h->send_of[h->x.me],
                        .ids = h->ids,
                        .weights = h->weights,
                        .source_of_copy = h->source_of_copy,
                        .capacity = d->capacity,
                        .H = x->o.model->hidden,
                        .part = d->part,
                        .blocks = blocks_of(x),
                        .bulk = bulk(x, c)};
    memcpy(a.recv, h->recv_of[d->part], sizeof a.recv);
    for (int i = 0; i < h->x.ranks; i++) a.to[i] = h->unpacks ? x->peer[i] + h->unpacked[d->part] : a.recv[i];
    FR_TRY(check(fr_k_dispatch(&h->x, &a, h->number, FR_X_ALL, stream), "fr_k_dispatch", err));
    if (!h->unpacks) return FR_OK;
    return check(fr_k_unpack(&h->x, a.to[h->x.me], d->landed + d->part, x->o.model->hidden, a.recv[h->x.me], stream),
                 "fr_k_unpack", err);
}

static fr_status back(fr_exchanges *x, half *h, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    const fr_dispatch *d = &c->dispatch;
    FR_TRY(find(x, d->send, h->send_of, err));
    FR_TRY(find(x, d->recv, h->recv_of[d->part], err));
    fr_k_push_args a = {.rows = h->recv_of[d->part][h->x.me],
                        .capacity = d->capacity,
                        .H = x->o.model->hidden,
                        .part = d->part,
                        .blocks = blocks_of(x),
                        .bulk = bulk(x, c)};
    memcpy(a.to, h->send_of, sizeof a.to);
    return check(fr_k_back(&h->x, &a, h->number, FR_X_ALL, stream), "fr_k_back", err);
}

fr_status fr_exchanges_run(fr_exchanges *x, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    half *h = NULL;
    FR_TRY(half_of(x, c, &h, err));
    h->number++;
    h->recent[h->number % RECENT] = c->id;
    switch (c->kind) {
    case FR_OP_COUNTS:
        return counts(h, c, stream, err);
    case FR_OP_ALLTOALL:
        return dispatch(x, h, c, stream, err);
    case FR_OP_ALLTOALL_BACK:
        return back(x, h, c, stream, err);
    default:
        return fr_fail(err, FR_FAILED, "ops of kind %s are no exchange", fr_op_name(c->kind));
    }
}

/* ---- faults -------------------------------------------------------------------------------------------------------*/

fr_status fr_exchanges_check(const fr_exchanges *x, fr_error *err) {
    for (int i = 0; i < x->halves; i++) {
        const half *h = &x->half[i];
        const volatile fr_x_error *e = h->x.error;
        char op[48];
        if (e->code == 0 || e->code == FR_X_GIVEN_UP) continue;
        fr_op_id_text(h->recent[e->number % RECENT], op);
        if (e->code == FR_X_FULL)
            return fr_fail(err, FR_FAILED, "rank %d, op %s: more rows arrive at a rank than its buffer holds",
                           x->o.rank, op);
        return fr_fail(err, FR_FAILED, "rank %d waited %.3g s in op %s for rank %d, which did not come", x->o.rank,
                       FR_TRANSPORT_SPIN_S, op, x->first + e->peer);
    }
    return FR_OK;
}

void fr_exchanges_release(fr_exchanges *x) {
    cudaSetDevice(x->o.device);
    for (int i = 0; i < x->halves; i++) fr_k_exchange_release(&x->half[i].x, x->rescue);
}

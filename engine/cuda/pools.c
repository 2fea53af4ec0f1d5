#include "engine/cuda/pools.h"

#include "engine/cuda/device.h"
#include "engine/cuda/issue.h"
#include "engine/cuda/transport/transport.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 512

/* A pool of weights: slots are runs of `experts` experts. */
typedef struct {
    char *base; /* NULL: no pool of weights of this rank */
    int64_t stride;
    int experts;
} pool;

/* A stream of a peer's device, and how it forks from a lane of ours and joins it: `asked` is an event of this device,
 * `done` one of the peer's. */
typedef struct {
    cudaStream_t stream; /* NULL: pulls from this peer stay on the lane */
    cudaEvent_t asked, done;
} owner_stream;

struct fr_pools {
    fr_pools_options o;
    fr_expert_run run;
    pool *pools; /* [buffers] */
    uint32_t pools_count;
    uint32_t shards; /* hybrid: the pool that peers read; FR_NONE */
    int64_t bytes;
    int ranks;
    void **peers;         /* [ranks]: each rank's resident experts, or, hybrid, its pool of shards */
    int64_t *pulled;      /* [ranks]: bytes of the shard at hand that earlier slices brought */
    owner_stream *owners; /* [ranks] */
    uint32_t made;        /* pulls of the gather at hand that yield */
    int after;            /* whose gather it lets keep ahead */
};

static fr_status check(const fr_pools *g, cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "rank %d: %s failed: %s", g->o.rank, call, cudaGetErrorString(e));
}

/* ---- sharing ------------------------------------------------------------------------------------------------------*/

static fr_status reach(int device, int other, fr_error *err) {
    int can = 0;
    if (device == other) return FR_OK;
    cudaError_t e = cudaDeviceCanAccessPeer(&can, device, other);
    if (!e && !can) return fr_fail(err, FR_FAILED, "GPU %d cannot read the memory of GPU %d", device, other);
    if (!e) e = cudaDeviceEnablePeerAccess(other, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled) e = (cudaGetLastError(), cudaSuccess);
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "peer access from GPU %d to GPU %d: %s", device, other, cudaGetErrorString(e));
}

fr_status fr_peers_share(fr_world *world, struct fr_transport *transport, int rank, void *base, size_t bytes,
                         void **peers, fr_error *err) {
    typedef struct {
        void *base;
        int device;
    } seen;
    const int ranks = world ? fr_world_ranks(world) : 1;
    if (transport && ranks > 1) return fr_transport_share(transport, base, bytes, peers, err);
    if (ranks == 1) {
        peers[rank] = base;
        return FR_OK;
    }
    if (!fr_world_same_process(world))
        return fr_fail(err, FR_FAILED, "rank %d: memory of other processes needs the transport", rank);
    seen mine = {base, 0}, *all = fr_alloc((size_t)ranks * sizeof *all);
    cudaGetDevice(&mine.device);
    fr_status s = fr_world_exchange(world, rank, &mine, sizeof mine, all, err);
    for (int q = 0; q < ranks && s == FR_OK; q++) {
        s = reach(mine.device, all[q].device, err);
        peers[q] = all[q].base;
    }
    free(all);
    return s;
}

/* ---- pools --------------------------------------------------------------------------------------------------------*/

/* Experts of a slot of this pool, by what the layout says it is for. */
static int slot_experts(const fr_pools *g, const fr_buffer *b) {
    const fr_shard *s = &g->o.weights->shard;
    if (strcmp(b->name, "shards") == 0) return s->expert_end - s->expert_first;
    if (g->o.layout->experts == FR_EXP_OFFLOAD) return g->o.layout->slots ? 1 : g->o.model->experts;
    return fr_shard_slot_experts(s, g->o.model);
}

static fr_status open_pool(fr_pools *g, uint32_t index, fr_error *err) {
    const fr_buffer *b = &g->o.plan->buffers[index];
    pool *p = &g->pools[index];
    p->experts = slot_experts(g, b);
    if (b->bytes != p->experts * g->run.expert)
        return fr_fail(err, FR_FAILED, "the plan's %s are of %lld bytes, %d experts take %lld", b->name,
                       (long long)b->bytes, p->experts, (long long)(p->experts * g->run.expert));
    p->stride = fr_ceil_div(b->bytes, ALIGN) * ALIGN;
    const int64_t bytes = p->stride * b->slots;
    const cudaError_t e = fr_transport_alloc(g->o.transport, (size_t)bytes, (void **)&p->base);
    if (e == cudaErrorMemoryAllocation) {
        int64_t available, total;
        fr_device_left(&available, &total);
        return fr_fail(err, FR_FAILED,
                       "%s: %d slots of %.2f GB need %.2f GB of GPU memory beside %.1f GB of weights, %.2f of %.1f GB "
                       "are free: take fewer --resident-layers or more GPUs",
                       b->name, b->slots, (double)p->stride * 1e-9, (double)bytes * 1e-9,
                       (double)g->o.weights->bytes * 1e-9, (double)available * 1e-9, (double)total * 1e-9);
    }
    FR_TRY(check(g, e, "cudaMalloc of gather buffers", err));
    g->bytes += bytes;
    if (strcmp(b->name, "shards") == 0) g->shards = index;
    /* What is read before it is written must show: fill with NaN bits. */
    return check(g, cudaMemset(p->base, 0xff, (size_t)bytes), "cudaMemset", err);
}

/* The current device is this rank's again afterwards. */
static fr_status open_owner(fr_pools *g, int peer, int device, fr_error *err) {
    owner_stream *s = &g->owners[peer];
    int here = 0;
    FR_TRY(check(g, cudaGetDevice(&here), "cudaGetDevice", err));
    FR_TRY(check(g, cudaEventCreateWithFlags(&s->asked, cudaEventDisableTiming), "cudaEventCreate", err));
    FR_TRY(check(g, cudaSetDevice(device), "cudaSetDevice", err));
    cudaError_t e = cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    FR_TRY(check(g, cudaSetDevice(here), "cudaSetDevice", err));
    return check(g, e, "cudaStreamCreate on a peer's device", err);
}

/* In processes of their own: peers' memory as their GPUs see it here; where that cannot be had a rank goes on reading.
 */
static fr_status open_owners_apart(fr_pools *g, char *base, fr_error *err) {
    int *devices = fr_alloc((size_t)g->ranks * sizeof *devices);
    fr_status s = fr_transport_share_at_owners(g->o.transport, base, g->peers, devices, err);
    for (int q = 0; q < g->ranks && s == FR_OK; q++)
        if (devices[q] >= 0) s = open_owner(g, q, devices[q], err);
    free(devices);
    return s;
}

/* With two ranks reads are as fast as writes. */
fr_pulls_by fr_pools_pulled_by(const fr_layout *l, fr_pulls_by asked) {
    const bool copied = l->experts == FR_EXP_DWDP || l->gather == FR_GATHER_CE;
    const bool gathers = l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD;
    if (l->ep < 2 || !gathers || !copied) return FR_PULLS_AUTO;
    if (asked != FR_PULLS_AUTO) return asked;
    return l->ep > 2 ? FR_PULLS_OWNER : FR_PULLS_READER;
}

static fr_status open_owners(fr_pools *g, fr_error *err) {
    for (int q = 0; q < g->ranks; q++) {
        struct cudaPointerAttributes there;
        if (q == g->o.rank || !g->peers[q]) continue;
        FR_TRY(check(g, cudaPointerGetAttributes(&there, g->peers[q]), "cudaPointerGetAttributes", err));
        FR_TRY(open_owner(g, q, there.device, err));
    }
    return FR_OK;
}

static fr_status open_all(fr_pools *g, fr_error *err) {
    const fr_plan *p = g->o.plan;
    for (uint32_t i = 0; i < p->buffers_count; i++) {
        const fr_buffer *b = &p->buffers[i];
        if (b->rank == g->o.rank && b->slots > 0 && (b->kind == FR_BUF_GATHER || b->kind == FR_BUF_SLOT))
            FR_TRY(open_pool(g, i, err));
    }
    const fr_pulls_by by = fr_pools_pulled_by(g->o.layout, g->o.pulls);
    FR_TRY(check(g, cudaDeviceSynchronize(), "cudaDeviceSynchronize", err));
    if (by == FR_PULLS_AUTO) return FR_OK;
    const bool streamed = g->shards != FR_NONE;
    char *base = streamed ? g->pools[g->shards].base : g->o.weights->experts;
    const int64_t bytes =
        streamed ? g->pools[g->shards].stride * p->buffers[g->shards].slots : g->o.weights->experts_bytes;
    if (by == FR_PULLS_OWNER && !fr_world_same_process(g->o.world)) return open_owners_apart(g, base, err);
    FR_TRY(fr_peers_share(g->o.world, g->o.transport, g->o.rank, base, (size_t)bytes, g->peers, err));
    return by == FR_PULLS_OWNER ? open_owners(g, err) : FR_OK;
}

fr_status fr_pools_open(const fr_pools_options *o, fr_pools **out, fr_error *err) {
    fr_pools *g = fr_alloc(sizeof *g);
    g->o = *o;
    g->run = o->weights->run;
    g->ranks = o->plan->ranks;
    g->pools_count = o->plan->buffers_count;
    g->pools = fr_alloc(g->pools_count * sizeof *g->pools);
    g->peers = fr_alloc((size_t)g->ranks * sizeof *g->peers);
    g->pulled = fr_alloc((size_t)g->ranks * sizeof *g->pulled);
    g->owners = fr_alloc((size_t)g->ranks * sizeof *g->owners);
    g->shards = FR_NONE;
    const fr_status s = open_all(g, err);
    *out = g;
    if (s == FR_OK) return FR_OK;
    fr_pools_close(g, g->ranks > 1); /* others may have mapped them */
    *out = NULL;
    return s;
}

void fr_pools_close(fr_pools *g, bool lost) {
    if (!g) return;
    for (uint32_t i = 0; i < g->pools_count && !lost; i++) fr_transport_free(g->o.transport, g->pools[i].base);
    free(g->pools);
    free(g->peers);
    for (int q = 0; q < g->ranks && !lost; q++) {
        if (g->owners[q].stream) cudaStreamDestroy(g->owners[q].stream);
        if (g->owners[q].asked) cudaEventDestroy(g->owners[q].asked);
        if (g->owners[q].done) cudaEventDestroy(g->owners[q].done);
    }
    free(g->owners);
    free(g->pulled);
    free(g);
}

int64_t fr_pools_bytes(const fr_pools *g) {
    return g ? g->bytes : 0;
}

/* ---- copies -------------------------------------------------------------------------------------------------------*/

/* The pool of weights that an op uses in this way, FR_NONE = none; *slot: where its hold lies. */
static uint32_t find(const fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op, fr_use use,
                     char **slot) {
    const fr_ref *uses = fr_op_uses(f, op);
    for (int i = 0; i < op->uses; i++) {
        const uint32_t b = uses[i].target;
        if (uses[i].use != use || b >= g->pools_count || !g->pools[b].base) continue;
        const int at = fr_issue_slot(issue, b, uses[i].value);
        if (at < 0) continue;
        *slot = g->pools[b].base + at * g->pools[b].stride;
        return b;
    }
    return FR_NONE;
}

static fr_status unknown(const fr_op *op, fr_error *err) {
    return fr_fail(err, FR_FAILED, "a %s op that this program does not know", fr_op_name(op->kind));
}

/* Bytes [begin, begin + bytes) of the experts that move. */
static fr_status copy(const fr_pools *g, const fr_run_move *move, const char *from, char *to, int64_t begin,
                      int64_t bytes, cudaStream_t stream, fr_error *err) {
    fr_run_copy c[FR_RUN_PARTS];
    const int n = fr_run_copies(&g->run, move, begin, bytes, c);
    for (int i = 0; i < n; i++)
        FR_TRY(check(g, cudaMemcpyAsync(to + c[i].to, from + c[i].from, (size_t)c[i].bytes, cudaMemcpyDefault, stream),
                     "cudaMemcpyAsync of experts", err));
    return FR_OK;
}

static int own(const fr_pools *g) {
    return fr_weights_own(g->o.weights);
}

/* From the host: one expert, a whole layer, or this rank's part of one. */
static fr_status fetch(fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                       cudaStream_t stream, fr_error *err) {
    const fr_layer_weights *w = fr_weights_layer(g->o.weights, op->layer);
    char *slot;
    const uint32_t b = find(g, issue, f, op, FR_USE_WRITE, &slot);
    if (b == FR_NONE) return unknown(op, err);
    const bool single = g->o.weights->shard.by_expert;
    const int count = g->pools[b].experts;
    const int64_t bytes = count * g->run.expert;
    if (fr_op_most(f, op)->bytes != bytes || (single && op->sub >= own(g)) || (!single && count != own(g)))
        return unknown(op, err);
    const char *from = w->run + (single ? op->sub * bytes : 0);
    return check(g, cudaMemcpyAsync(slot, from, (size_t)bytes, cudaMemcpyHostToDevice, stream),
                 "cudaMemcpyAsync of experts", err);
}

/* The own shard, streamed into a slot of its own, to its place among all. */
static fr_status drain(fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                       cudaStream_t stream, fr_error *err) {
    const fr_shard *s = &g->o.weights->shard;
    char *from = NULL, *to = NULL;
    const uint32_t b = find(g, issue, f, op, FR_USE_WRITE, &to);
    if (b == FR_NONE || find(g, issue, f, op, FR_USE_READ, &from) != g->shards) return unknown(op, err);
    const fr_run_move move = {own(g), 0, own(g), g->pools[b].experts, s->expert_first};
    return copy(g, &move, from, to, 0, own(g) * g->run.expert, stream, err);
}

/* Where the peer's part of the layer at hand lies. */
static const char *peer_run(const fr_pools *g, const fr_fragment *f, const fr_op *op, const fr_shard *theirs) {
    const char *base = g->peers[op->peer];
    const int64_t bytes = (theirs->expert_end - theirs->expert_first) * g->run.expert;
    const int64_t stride = fr_ceil_div(bytes, ALIGN) * ALIGN;
    if (!base) return NULL;
    if (g->shards == FR_NONE) return base + fr_shard_layer(theirs, op->layer) * stride;
    const fr_ref *uses = fr_op_uses(f, op);
    const uint32_t window = (uint32_t)fr_layout_window(g->o.layout);
    for (int i = 0; i < op->uses; i++) /* no hold of theirs is void: the slots go round */
        if (uses[i].use == FR_USE_READ) return base + uses[i].value % window * stride;
    return NULL;
}

/* The next slice of what is pulled from a peer. */
static fr_status pull(fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                      cudaStream_t stream, fr_error *err) {
    fr_shard theirs;
    char *slot;
    const uint32_t b = find(g, issue, f, op, FR_USE_WRITE, &slot);
    if (b == FR_NONE || op->peer < 0 || op->peer >= g->ranks) return unknown(op, err);
    fr_shard_of(g->o.layout, g->o.model, op->peer, &theirs);
    const fr_shard *mine = &g->o.weights->shard;
    int first, end;
    fr_layout_pull_range(g->o.layout, g->o.model, mine->index, theirs.index, &first, &end);
    const int count = end - first;
    const int64_t bytes = fr_op_shape(f, op)->bytes, all = count * g->run.expert, at = g->pulled[op->peer];
    const char *from = peer_run(g, f, op, &theirs);
    const fr_run_move move = {theirs.expert_end - theirs.expert_first, first - theirs.expert_first, count,
                              g->pools[b].experts, fr_shard_slot_place(mine, first)};
    const bool yields = op->flags & FR_OP_YIELDS && g->o.transport;
    if (!from || at + bytes > all) return unknown(op, err);
    const owner_stream *o = &g->owners[op->peer];
    if (yields) {
        if (op->flags & FR_OP_POOL) g->made = 0, g->after = op->peer; /* the first one takes the slot */
        FR_TRY(fr_transport_gather(g->o.transport, g->made, g->made ? g->after : -1, stream, err));
        g->made++;
    }
    if (o->stream) {
        FR_TRY(check(g, cudaEventRecord(o->asked, stream), "cudaEventRecord", err));
        FR_TRY(check(g, cudaStreamWaitEvent(o->stream, o->asked, 0), "cudaStreamWaitEvent", err));
    }
    FR_TRY(copy(g, &move, from, slot, at, bytes, o->stream ? o->stream : stream, err));
    if (o->stream) {
        FR_TRY(check(g, cudaEventRecord(o->done, o->stream), "cudaEventRecord", err));
        FR_TRY(check(g, cudaStreamWaitEvent(stream, o->done, 0), "cudaStreamWaitEvent", err));
    }
    g->pulled[op->peer] = at + bytes < all ? at + bytes : 0;
    if (!yields || !(op->flags & FR_OP_GATHERED)) return FR_OK;
    return fr_transport_gather(g->o.transport, FR_GATHER_OVER, -1, stream, err);
}

fr_status fr_pools_copy(fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                        cudaStream_t stream, fr_error *err) {
    switch (op->kind) {
    case FR_OP_PULL:
        return pull(g, issue, f, op, stream, err);
    case FR_OP_H2D:
        return fetch(g, issue, f, op, stream, err);
    case FR_OP_DRAIN:
        return drain(g, issue, f, op, stream, err);
    default:
        return unknown(op, err);
    }
}

/* ---- readers ------------------------------------------------------------------------------------------------------*/

static const void *part(const fr_pools *g, const char *run, int experts, int p) {
    return p < g->run.parts ? run + fr_run_offset(&g->run, experts, p, 0) : NULL;
}

/*
 * In a slot that has one expert: that one. In a slot, or in the first layer's set, that others' shards were gathered
 * into: those, and the own ones where they lie. Else the own ones.
 */
fr_status fr_pools_weights(const fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                           fr_k_grouped_args *a, const float **scale, const float **own_scale, fr_error *err) {
    const fr_weights *w = g->o.weights;
    const fr_shard *s = &w->shard;
    const fr_layer_weights *l = fr_weights_layer(w, op->layer);
    const int which = op->kind == FR_OP_EXPERT_DOWN;
    char *slot = NULL;
    const uint32_t b = find(g, issue, f, op, FR_USE_READ, &slot);
    if (b == FR_NONE && s->on_host) return unknown(op, err);
    if (b == FR_NONE && !s->gathers) {
        a->b = which ? l->down : l->gate_up;
        *scale = which ? l->down_scale : l->gate_up_scale;
        a->E = own(g);
        return FR_OK;
    }
    const int experts = b == FR_NONE ? fr_shard_slot_experts(s, g->o.model) : g->pools[b].experts;
    a->b = part(g, slot ? slot : w->first, experts, which);
    *scale = part(g, slot ? slot : w->first, experts, 2 + which);
    a->E = g->o.model->experts;
    if (s->on_host && experts == 1 && a->E > 1) {
        a->offsets += op->sub;
        a->E = 1;
    }
    if (!s->gathers) return FR_OK;
    a->own = which ? l->down : l->gate_up;
    *own_scale = which ? l->down_scale : l->gate_up_scale;
    a->own_first = s->expert_first;
    a->own_end = s->expert_end;
    a->packed = s->packed;
    return FR_OK;
}

int fr_pools_arrays(const fr_pools *g, const struct fr_issue *issue, const fr_fragment *f, const fr_op *op,
                    const void *in[FR_RUN_PARTS], void *out[FR_RUN_PARTS], int64_t bytes[FR_RUN_PARTS]) {
    char *to = NULL, *from = NULL;
    const uint32_t b = find(g, issue, f, op, FR_USE_WRITE, &to);
    if (b == FR_NONE) return 0;
    if (g->shards == FR_NONE || find(g, issue, f, op, FR_USE_READ, &from) == FR_NONE)
        from = fr_weights_layer(g->o.weights, op->layer)->run;
    for (int p = 0; p < g->run.parts; p++) {
        in[p] = from + fr_run_offset(&g->run, own(g), p, 0);
        out[p] = to + fr_run_offset(&g->run, g->pools[b].experts, p, 0);
        bytes[p] = g->run.bytes[p];
    }
    return g->run.parts;
}

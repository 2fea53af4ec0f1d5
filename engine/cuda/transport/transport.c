#include "engine/cuda/transport/transport.h"

#include "engine/cuda/transport/exchange.h"
#include "engine/cuda/transport/gate.h"
#include "engine/cuda/transport/ipc.h"
#include "engine/cuda/transport/nccl.h"
#include "engine/world/peers.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WINDOWS = 8 };

/* Memory that copy engines gather. */
typedef struct {
    void *base, *handle;
} window;

struct fr_transport {
    fr_transport_options o;
    int ranks;
    fr_address *at; /* [ranks] */
    fr_nccl *lib;
    fr_nccl_comm **comms; /* [plan groups]: of those that this rank is in */
    uint32_t groups;
    int64_t comm_bytes; /* device memory that they took */
    void **arenas;      /* [ranks]: as seen from here */
    int64_t *offsets;   /* [ranks][plan buffers], from the rank's arena; -1: not there */
    uint32_t buffers;
    fr_exchanges *exchanges;
    window windows[MOST_WINDOWS];
    int windows_count;
    fr_ipc *ipc;     /* other processes' memory */
    fr_gates *gates; /* of pipelines, where pairs meet, and of gathers that yield; NULL */
    atomic_bool aborted;
};

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

/* ---- who needs what -----------------------------------------------------------------------------------------------*/

static bool gathers(const fr_layout *l) {
    const bool gathering = l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD;
    return gathering && l->ep > 1 && l->gather != FR_GATHER_CE;
}

/* The communicator that gathers weights by copy engines. */
static fr_nccl_comm *window_comm(const fr_transport *t) {
    if (!gathers(t->o.layout) || t->o.layout->gather != FR_GATHER_NCCL_CE) return NULL;
    for (uint32_t g = 0; g < t->groups; g++)
        if (t->comms[g] && t->o.plan->groups[g].count == t->o.layout->ep) return t->comms[g];
    return NULL;
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

static fr_status meet(fr_transport *t, fr_error *err) {
    fr_address mine;
    fr_address_here(t->o.device, &mine);
    FR_TRY(check(cudaDeviceGetPCIBusId(mine.bus, sizeof mine.bus, t->o.device), "cudaDeviceGetPCIBusId", err));
    FR_TRY(fr_world_exchange(t->o.world, t->o.rank, &mine, sizeof mine, t->at, err));
    FR_TRY(fr_peers_check(t->o.layout, t->at, t->ranks, err));
    for (int q = 0; q < t->ranks; q++) {
        const int other = t->at[q].device;
        int can = 0;
        if (!fr_address_same_process(&t->at[q], &mine) || other == mine.device) continue;
        FR_TRY(check(cudaDeviceCanAccessPeer(&can, mine.device, other), "cudaDeviceCanAccessPeer", err));
        if (!can && fr_layout_reaches_rank(t->o.layout, t->o.rank, q))
            return fr_fail(err, FR_FAILED, "rank %d: GPU %d has no peer access to GPU %d of rank %d, whose %s it needs",
                           t->o.rank, mine.device, other, q, fr_layout_reaches(t->o.layout));
        if (!can) continue;
        const cudaError_t e = cudaDeviceEnablePeerAccess(other, 0);
        if (e == cudaErrorPeerAccessAlreadyEnabled)
            cudaGetLastError();
        else
            FR_TRY(check(e, "cudaDeviceEnablePeerAccess", err));
    }
    return FR_OK;
}

/* This rank's place among a group's members, -1 = not in it. */
static int member_of(const fr_transport *t, uint32_t group, int rank) {
    const fr_group *g = &t->o.plan->groups[group];
    for (int i = 0; i < g->count; i++)
        if (t->o.plan->members[g->first + (uint32_t)i] == rank) return i;
    return -1;
}

/* Whether our own kernels do all that the group does: it is the one of ep's exchange, ranks in a row (those of a
 * pipeline's pair are a stage apart). Where a tp group has the same members it stands before (planner.c). */
static bool exchanges_only(const fr_transport *t, uint32_t group) {
    const fr_layout *l = t->o.layout;
    const fr_plan *p = t->o.plan;
    const fr_group *g = &p->groups[group];
    const int16_t *members = p->members + g->first;
    if (l->experts != FR_EXP_EP || l->exchange == FR_EXCHANGE_AGRS || g->count != l->ep) return false;
    if (g->count < 2 || members[1] != members[0] + 1) return false;
    bool second = l->tp != l->ep;
    for (uint32_t h = 0; h < group && !second; h++)
        second = p->groups[h].count == g->count &&
                 memcmp(p->members + p->groups[h].first, members, (size_t)g->count * sizeof *members) == 0;
    return second;
}

/* A pipeline's pairs send and receive; all others only meet in collectives. */
static fr_nccl_uses uses_of(const fr_transport *t, uint32_t group) {
    const fr_group *g = &t->o.plan->groups[group];
    const int16_t *members = t->o.plan->members + g->first;
    if (t->o.everything) return FR_NCCL_ALL;
    const bool pair =
        t->o.layout->pp > 1 && g->count == 2 && members[1] - members[0] == fr_layout_stage_ranks(t->o.layout);
    return pair ? FR_NCCL_MESSAGES : FR_NCCL_COLLECTIVES;
}

static int64_t memory_left(void) {
    size_t left = 0, all = 0;
    return cudaMemGetInfo(&left, &all) == cudaSuccess ? (int64_t)left : 0;
}

/* One group after the other, in the plan's order on all ranks: whoever waits for a peer is waited for by none. */
static fr_status connect_groups(fr_transport *t, fr_error *err) {
    const fr_plan *p = t->o.plan;
    char *ids = fr_alloc((size_t)t->ranks * FR_NCCL_ID_BYTES);
    fr_status s = fr_nccl_load(&t->lib, err);
    for (uint32_t g = 0; g < p->groups_count && s == FR_OK; g++) {
        if (exchanges_only(t, g)) continue; /* on all ranks alike */
        const int me = member_of(t, g, t->o.rank), leader = p->members[p->groups[g].first];
        fr_nccl_request r = {.lib = t->lib,
                             .uses = uses_of(t, g),
                             .ranks = p->groups[g].count,
                             .me = me,
                             .device = t->o.device,
                             .copy_engines = gathers(t->o.layout) && t->o.layout->gather == FR_GATHER_NCCL_CE,
                             .timeout_s = t->o.timeout_s,
                             .world = t->o.world};
        if (me == 0) s = fr_nccl_unique(t->lib, r.id, err);
        if (s == FR_OK) s = fr_world_exchange(t->o.world, t->o.rank, r.id, sizeof r.id, ids, err);
        if (s != FR_OK || me < 0) continue;
        const int64_t left = memory_left();
        memcpy(r.id, ids + (size_t)leader * FR_NCCL_ID_BYTES, sizeof r.id);
        s = fr_nccl_connect(&r, &t->comms[g], err);
        t->comm_bytes += fr_max_i64(0, left - memory_left());
    }
    free(ids);
    return s;
}

static fr_status open_all(fr_transport *t, fr_error *err) {
    if (t->ranks < 2) return FR_OK;
    const fr_layout *l = t->o.layout;
    const fr_gates_options gates = {
        .world = t->o.world, .plan = t->o.plan, .at = t->at, .rank = t->o.rank, .within = fr_layout_yields(l)};
    FR_TRY(meet(t, err));
    fr_world_tell(t->o.world, t->o.rank, "has met the others");
    if (l->pp > 1 || gates.within) FR_TRY(fr_gates_open(&gates, &t->gates, err));
    return fr_layout_uses_nccl(t->o.layout) ? connect_groups(t, err) : FR_OK;
}

fr_status fr_transport_open(const fr_transport_options *o, fr_transport **out, fr_error *err) {
    fr_transport *t = fr_alloc(sizeof *t);
    t->o = *o;
    t->ranks = o->world ? fr_world_ranks(o->world) : 1;
    t->at = fr_alloc((size_t)t->ranks * sizeof *t->at);
    t->groups = o->plan->groups_count;
    t->comms = fr_alloc((t->groups + 1) * sizeof(*t->comms));
    *out = NULL;
    fr_status s = open_all(t, err);
    if (s != FR_OK) {
        fr_transport_close(t, true);
        return s;
    }
    *out = t;
    return FR_OK;
}

void fr_transport_replan(fr_transport *t, const fr_plan *plan) {
    t->o.plan = plan;
    if (t->exchanges) fr_exchanges_replan(t->exchanges, plan);
}

void fr_transport_close(fr_transport *t, bool lost) {
    if (!t) return;
    for (int i = 0; i < t->windows_count && !lost && !atomic_load(&t->aborted); i++)
        fr_nccl_window_close(window_comm(t), t->windows[i].base, t->windows[i].handle);
    if (lost) fr_nccl_abort(t->comms, t->groups); /* all at once: one may wait for another */
    for (uint32_t g = 0; g < t->groups; g++) fr_nccl_close(t->comms[g], lost);
    fr_exchanges_close(t->exchanges, lost);
    fr_gates_close(t->gates, lost || atomic_load(&t->aborted));
    fr_ipc_close(t->ipc, lost);
    if (!lost) fr_nccl_unload(t->lib); /* else a thread that still connects or gives up may call it */
    free(t->comms);
    free(t->at);
    free(t->arenas);
    free(t->offsets);
    free(t);
}

/* ---- peers' memory ------------------------------------------------------------------------------------------------*/

static fr_status map_peer(fr_transport *t, int q, const fr_ipc_handle *h, void **out, fr_error *err) {
    fr_error why;
    if (fr_ipc_map(&t->ipc, h, out, &why) == FR_OK) return FR_OK;
    return fr_fail(
        err, FR_FAILED,
        "rank %d cannot map the GPU memory of rank %d, another process of this host: %.300s (containers must "
        "share the host's IPC and process namespaces; ranks as threads of one process need no mapping)",
        t->o.rank, q, why.text);
}

static fr_status share_processes(fr_transport *t, void *base, void **peers, fr_error *err) {
    fr_ipc_handle mine, *all = fr_alloc((size_t)t->ranks * sizeof *all);
    fr_status s = fr_ipc_hand_over(base, &mine, err);
    if (s == FR_OK) s = fr_world_exchange(t->o.world, t->o.rank, &mine, sizeof mine, all, err);
    for (int q = 0; q < t->ranks && s == FR_OK; q++) {
        peers[q] = q == t->o.rank ? base : NULL;
        if (fr_layout_reaches_rank(t->o.layout, t->o.rank, q)) s = map_peer(t, q, &all[q], &peers[q], err);
    }
    free(all);
    return s;
}

static void tell_of(const fr_transport *t, const char *stage, int q) {
    char text[64];
    snprintf(text, sizeof text, "%s rank %d", stage, q);
    fr_world_tell(t->o.world, t->o.rank, text);
}

/* The device that is current becomes the peer's for a while. The first use of a device in a process makes a context. */
static bool map_at_owner(fr_transport *t, int q, const fr_ipc_handle *h, void **out, int *device) {
    fr_error ignored;
    bool mapped = cudaDeviceGetByPCIBusId(device, t->at[q].bus) == cudaSuccess && *device != t->o.device &&
                  cudaSetDevice(*device) == cudaSuccess;
    if (mapped) tell_of(t, "is on the GPU of", q);
    mapped = mapped && fr_ipc_map(&t->ipc, h, out, &ignored) == FR_OK;
    if (mapped) {
        const cudaError_t e = cudaDeviceEnablePeerAccess(t->o.device, 0);
        mapped = e == cudaSuccess || e == cudaErrorPeerAccessAlreadyEnabled;
    }
    (void)cudaGetLastError(); /* whoever cannot be mapped is read instead */
    return cudaSetDevice(t->o.device) == cudaSuccess && mapped;
}

fr_status fr_transport_share_at_owners(fr_transport *t, void *base, void **peers, int *devices, fr_error *err) {
    fr_ipc_handle mine, *all = fr_alloc((size_t)t->ranks * sizeof *all);
    fr_status s = fr_ipc_hand_over(base, &mine, err);
    if (s == FR_OK) s = fr_world_exchange(t->o.world, t->o.rank, &mine, sizeof mine, all, err);
    for (int i = 0; i < t->ranks;
         i++) { /* each begins at another GPU: the driver makes contexts one at a time on each */
        const int q = (t->o.rank + i) % t->ranks;
        devices[q] = -1;
        peers[q] = i == 0 ? base : NULL;
        if (s != FR_OK || !fr_layout_reaches_rank(t->o.layout, t->o.rank, q)) continue;
        if (!map_at_owner(t, q, &all[q], &peers[q], &devices[q])) {
            devices[q] = -1;
            s = map_peer(t, q, &all[q], &peers[q], err);
        }
        tell_of(t, "sees the memory of", q);
    }
    free(all);
    return s;
}

void fr_transport_unshare(fr_transport *t) {
    if (!t) return;
    fr_ipc_close(t->ipc, false);
    t->ipc = NULL;
}

fr_status fr_transport_share(fr_transport *t, void *base, size_t bytes, void **peers, fr_error *err) {
    (void)bytes;
    peers[t->ranks > 1 ? t->o.rank : 0] = base;
    if (t->ranks < 2) return FR_OK;
    if (!fr_world_same_process(t->o.world)) return share_processes(t, base, peers, err);
    FR_TRY(fr_world_exchange(t->o.world, t->o.rank, &base, sizeof base, peers, err));
    for (int q = 0; q < t->ranks; q++) {
        int can = t->at[q].device == t->o.device;
        if (!can)
            FR_TRY(check(cudaDeviceCanAccessPeer(&can, t->o.device, t->at[q].device), "cudaDeviceCanAccessPeer", err));
        if (!can) peers[q] = NULL;
    }
    return FR_OK;
}

cudaError_t fr_transport_malloc(const fr_transport *t, size_t bytes, void **out) {
    return t && t->ranks > 1 ? fr_ipc_malloc(bytes, out) : cudaMalloc(out, bytes);
}

cudaError_t fr_transport_alloc(fr_transport *t, size_t bytes, void **out) {
    fr_nccl_comm *c = t && t->ranks > 1 ? window_comm(t) : NULL;
    if (!c) return fr_transport_malloc(t, bytes, out);
    if (t->windows_count == MOST_WINDOWS) return cudaErrorNotSupported;
    fr_error err;
    window *w = &t->windows[t->windows_count];
    if (fr_nccl_window_open(c, bytes, &w->base, &w->handle, &err) != FR_OK)
        return strstr(err.text, "ncclMemAlloc") ? cudaErrorMemoryAllocation : cudaErrorNotSupported;
    t->windows_count++;
    *out = w->base;
    return cudaSuccess;
}

void fr_transport_free(fr_transport *t, void *p) {
    for (int i = 0; t && i < t->windows_count; i++)
        if (t->windows[i].base == p) return;
    cudaFree(p);
}

static void *peer_of(fr_transport *t, uint32_t buffer, int q) {
    const fr_plan *p = t->o.plan;
    if (buffer >= t->buffers) return NULL;
    for (uint32_t b = 0; b < t->buffers; b++) {
        const fr_buffer *other = &p->buffers[b];
        if (other->rank != q || strcmp(other->name, p->buffers[buffer].name) != 0) continue;
        const int64_t at = t->offsets[(size_t)q * t->buffers + b];
        if (at >= 0 && t->arenas[q]) return (char *)t->arenas[q] + at;
    }
    return NULL;
}

fr_status fr_transport_bind(fr_transport *t, void *arena, size_t bytes, void *const *buffers, fr_error *err) {
    if (t->ranks < 2 || !fr_exchanges_wanted(t->o.layout)) return FR_OK; /* nothing else names a peer's buffers */
    t->buffers = t->o.plan->buffers_count;
    t->arenas = fr_alloc((size_t)t->ranks * sizeof *t->arenas);
    t->offsets = fr_alloc((size_t)t->ranks * t->buffers * sizeof *t->offsets);
    int64_t *mine = fr_alloc(t->buffers * sizeof *mine);
    for (uint32_t b = 0; b < t->buffers; b++) mine[b] = buffers[b] ? (char *)buffers[b] - (char *)arena : -1;
    fr_status s = fr_transport_share(t, arena, bytes, t->arenas, err);
    if (s == FR_OK) s = fr_world_exchange(t->o.world, t->o.rank, mine, t->buffers * sizeof *mine, t->offsets, err);
    free(mine);
    return s == FR_OK ? fr_exchanges_open(t, &t->o, peer_of, &t->exchanges, err) : s;
}

int64_t fr_transport_bytes(const fr_transport *t) {
    return fr_exchanges_bytes(t->exchanges);
}

int64_t fr_transport_communicators(const fr_transport *t) {
    return t->comm_bytes;
}

/* ---- launching ----------------------------------------------------------------------------------------------------*/

/* Nothing to move, as all members know. */
static bool nothing(const fr_collective *c, int members) {
    const bool one = c->kind == FR_OP_ALLREDUCE || c->kind == FR_OP_SEND || c->kind == FR_OP_RECV;
    for (int i = 0; i < (one ? 1 : members); i++)
        if (c->rows[i] > 0) return false;
    return true;
}

fr_status fr_transport_launch(fr_transport *t, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    if (atomic_load(&t->aborted)) return fr_fail(err, FR_FAILED, "the transport was given up");
    if (c->kind == FR_OP_COUNTS || c->kind == FR_OP_ALLTOALL || c->kind == FR_OP_ALLTOALL_BACK) {
        if (!t->exchanges) return fr_fail(err, FR_FAILED, "no exchange was opened for this layout");
        return fr_exchanges_run(t->exchanges, c, stream, err);
    }
    if (c->group >= t->groups || !t->comms[c->group])
        return fr_fail(err, FR_FAILED, "no communicator was opened for group %u", c->group);
    if (nothing(c, t->o.plan->groups[c->group].count)) return FR_OK;
    const int peer = c->peer >= 0 ? member_of(t, c->group, c->peer) : 0;
    if (peer < 0) return fr_fail(err, FR_FAILED, "rank %d is not in group %u", c->peer, c->group);
    if (t->gates && c->peer >= 0) FR_TRY(fr_gates_meet(t->gates, c->group, c->peer, stream, err));
    return fr_nccl_run(t->comms[c->group], c, peer, stream, err);
}

fr_status fr_transport_pack(fr_transport *t, const fr_collective *c, cudaStream_t stream, fr_error *err) {
    if (!t->exchanges) return fr_fail(err, FR_FAILED, "no exchange was opened for this layout");
    return fr_exchanges_pack(t->exchanges, c, stream, err);
}

/* ---- gathers that yield ------------------------------------------------------------------------------------------*/

fr_status fr_transport_gather(fr_transport *t, uint32_t done, int after, cudaStream_t stream, fr_error *err) {
    if (!t->gates || atomic_load(&t->aborted)) return FR_OK;
    FR_TRY(fr_gates_say(t->gates, done, stream, err));
    return after < 0 ? FR_OK : fr_gates_follow(t->gates, after, done, stream, err);
}

/* ---- faults -------------------------------------------------------------------------------------------------------*/

fr_status fr_transport_check(fr_transport *t, fr_error *err) {
    if (t->exchanges) FR_TRY(fr_exchanges_check(t->exchanges, err));
    for (uint32_t g = 0; g < t->groups && !atomic_load(&t->aborted); g++)
        if (t->comms[g]) FR_TRY(fr_nccl_check(t->comms[g], err));
    return FR_OK;
}

void fr_transport_abort(fr_transport *t) {
    if (!t || atomic_exchange(&t->aborted, true)) return;
    fr_gates_release(t->gates); /* first: these two need nothing of a device that may stand still */
    fr_nccl_abort(t->comms, t->groups);
    fr_gates_release(t->gates); /* what a peer's stream has written since */
    if (t->exchanges) fr_exchanges_release(t->exchanges);
}

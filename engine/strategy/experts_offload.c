/*
 * Experts in pinned host memory, streamed over PCIe.
 *
 *   S slots (DuoServe-MoE, arXiv 2509.07379)   one expert a slot. The first S of a layer
 * are copied without knowing whether they are needed (in prefill nearly all are), so they may come during attention;
 * the others only if they have tokens, which the host reads back after the sort. Compute walks the experts in order; a
 * slot is free when its expert's down GEMM has ended: copy_end[i] = max(copy_end[i-1], comp_end[i-S]) + f_i comp_end[i]
 * = max(comp_end[i-1], copy_end[i], gate_done) + c_i a layer ahead (S = 0)   whole layers in two slots; a copy needs
 * nothing but a free slot with ep > 1 (arXiv 2605.02960 section 6.3)   each rank streams its part of every layer into a
 * window of shards, and a gather among the ranks assembles whole layers in two slots: by pulls of each other's shards,
 * which acknowledge them so that they can be overwritten, or by a collective
 */
#include "engine/strategy/planner.h"

#include <stdio.h>

static bool by_expert(const fr_planner *p) {
    return p->layout.slots > 0;
}
static bool hybrid(const fr_planner *p) {
    return p->layout.ep > 1;
}
static bool pulls(const fr_planner *p) {
    return p->layout.gather == FR_GATHER_CE;
}

/* ---- static part --------------------------------------------------------------------------------------------------*/

static void open_hybrid(fr_planner *p, fr_rank *r, int64_t layer) {
    int ep = p->layout.ep;
    r->shards = fr_add_buffer(p, r, FR_BUF_SLOT, "shards", layer / ep, fr_layout_window(&p->layout));
    fr_add_lane(p, r, pulls(p) ? FR_LANE_COPY : FR_LANE_COMM);
    r->fetched = fr_add_event(p, r, "shard here");
    if (!pulls(p)) return;
    r->shard_ready = fr_alloc((size_t)ep * sizeof *r->shard_ready);
    r->shard_taken = fr_alloc((size_t)ep * sizeof *r->shard_taken);
    for (int q = 0; q < ep; q++) {
        char name[40];
        snprintf(name, sizeof name, "shard of %d ready", q);
        r->shard_ready[q] = fr_add_event(p, r, name);
        snprintf(name, sizeof name, "shard taken by %d", q);
        r->shard_taken[q] = fr_add_event(p, r, name);
    }
}

static void open(fr_planner *p, fr_rank *r) {
    const fr_model *m = &p->model;
    int64_t layer = fr_layer_expert_bytes(p), one = layer / m->experts;
    r->host = fr_add_buffer(p, r, FR_BUF_HOST, "experts in host memory", 0, 0); /* shared by the host's ranks */
    fr_add_lane(p, r, FR_LANE_H2D);
    r->pool = fr_add_buffer(p, r, FR_BUF_SLOT, by_expert(p) ? "expert slots" : "layer slots",
                            by_expert(p) ? one : layer, by_expert(p) ? p->layout.slots : 2);
    r->gathered = fr_add_event(p, r, "weights here");
    if (hybrid(p)) open_hybrid(p, r, layer);
    if (!by_expert(p)) return;
    fr_scratch *b = &r->half[0];
    r->routed = fr_add_event(p, r, "routed");
    r->known = fr_add_event(p, r, "counts known");
    b->counts = fr_plan_table(p->plan, r->rank, "tokens per expert", p->load.tokens * m->top_k, FR_KNOWN_DEVICE);
    b->active = fr_plan_table(p->plan, r->rank, "active experts", m->experts, FR_KNOWN_HOST);
    if (!p->each) p->each = fr_alloc(2 * (size_t)m->experts * sizeof *p->each);
}

/* ---- whole layers -------------------------------------------------------------------------------------------------*/

static void issued(fr_walk *w, fr_rank *r) {
    fr_wait(w->f, r->launched, w->p->raised.value[r->launched] + 1);
}

static void h2d(fr_walk *w, fr_rank *r, int64_t bytes, uint32_t pool, uint32_t hold, int sub) {
    fr_put(w, r, FR_LANE_H2D, FR_OP_H2D, fr_copy_shape(w, FR_OP_H2D, bytes, 1), sub);
    issued(w, r);
    fr_read(w, r->host);
    fr_use_buffer(w->f, FR_USE_ACQUIRE, pool, hold);
    fr_use_buffer(w->f, FR_USE_WRITE, pool, hold);
}

/* Index of the event that rank r keeps for its j-th peer, and of the one that the peer keeps for r. */
static int theirs(const fr_planner *p, const fr_rank *r, int j) {
    return p->folded ? j : (r->ep_index + j) % p->layout.ep;
}
static int mine(const fr_planner *p, const fr_rank *r, int j) {
    return p->folded ? j : r->ep_index;
}
static fr_rank *peer_at(const fr_planner *p, fr_rank *r, int j) {
    return p->folded ? r : r - r->ep_index + (r->ep_index + j) % p->layout.ep;
}

/* This rank's shard of a layer; before it, the shard that lay in its slot must have been taken by all. */
static void stream_shard(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    uint32_t hold = p->holds.value[r->shards]++, window = (uint32_t)fr_layout_window(&p->layout);
    r->shard_hold = hold;
    if (pulls(p) && hold >= window) {
        fr_shape s = {.kind = FR_OP_FENCE};
        fr_put(w, r, FR_LANE_H2D, FR_OP_FENCE, fr_intern_shape(w, &s), 0);
        for (int j = 0; j < p->layout.ep; j++) fr_wait(w->f, r->shard_taken[theirs(p, r, j)], hold - window + 1);
        fr_use_buffer(w->f, FR_USE_FREE, r->shards, hold - window);
    }
    h2d(w, r, fr_layer_expert_bytes(p) / p->layout.ep, r->shards, hold, 0);
    fr_raise(w, r->fetched);
    for (int j = 0; j < p->layout.ep && pulls(p); j++) {
        fr_rank *peer = peer_at(p, r, j);
        fr_raise(w, peer->shard_ready[mine(p, r, j)]);
    }
}

/* A peer's shard is read once it is there, and acknowledged when its last slice is here. */
static void pull_shard(fr_walk *w, fr_rank *r, fr_rank *peer, int j, bool first, bool last) {
    fr_planner *p = w->p;
    if (first) fr_wait(w->f, r->shard_ready[theirs(p, r, j)], r->shard_hold + 1);
    fr_use_buffer(w->f, FR_USE_READ, peer->shards, r->shard_hold);
    if (last) fr_raise(w, peer->shard_taken[mine(p, r, j)]);
}

static void assemble(fr_walk *w, fr_rank *r, int layer, uint32_t hold) {
    fr_planner *p = w->p;
    int now = w->layer;
    w->layer = layer;
    stream_shard(w, r);
    if (pulls(p)) {
        /* the own shard is copied in, as its slot must not wait for this layer's compute */
        fr_put(w, r, FR_LANE_COPY, FR_OP_DRAIN,
               fr_copy_shape(w, FR_OP_DRAIN, fr_layer_expert_bytes(p) / p->layout.ep, 1), 0);
        issued(w, r);
        fr_wait(w->f, r->shard_ready[mine(p, r, 0)], r->shard_hold + 1);
        fr_use_buffer(w->f, FR_USE_READ, r->shards, r->shard_hold);
        fr_use_buffer(w->f, FR_USE_ACQUIRE, r->pool, hold);
        fr_use_buffer(w->f, FR_USE_WRITE, r->pool, hold);
        fr_raise(w, r->shard_taken[mine(p, r, 0)]);
        fr_emit_pulls(w, r, layer, r->pool, hold, NULL, pull_shard);
    } else {
        fr_shape s = {.kind = FR_OP_GATHER_WEIGHTS,
                      .transport = (uint8_t)p->layout.gather,
                      .hosts = r->ep.hosts,
                      .ranks = r->ep.size,
                      .precision = (uint8_t)p->layout.precision,
                      .bytes = fr_layer_expert_bytes(p)};
        fr_put(w, r, FR_LANE_COMM, FR_OP_GATHER_WEIGHTS, fr_intern_shape(w, &s), 0);
        issued(w, r);
        fr_wait(w->f, r->fetched, p->raised.value[r->fetched]);
        fr_use_buffer(w->f, FR_USE_READ, r->shards, r->shard_hold);
        fr_use_buffer(w->f, FR_USE_FREE, r->shards, r->shard_hold);
        fr_use_buffer(w->f, FR_USE_ACQUIRE, r->pool, hold);
        fr_use_buffer(w->f, FR_USE_WRITE, r->pool, hold);
        fr_raise(w, r->gathered);
        fr_join(w, &r->ep);
    }
    w->layer = now;
}

static void fetch_layer(fr_walk *w, fr_rank *r, int layer) {
    fr_planner *p = w->p;
    uint32_t hold = p->holds.value[r->pool]++;
    if (hybrid(p)) {
        assemble(w, r, layer, hold);
        return;
    }
    int now = w->layer;
    w->layer = layer;
    h2d(w, r, fr_layer_expert_bytes(p), r->pool, hold, 0);
    fr_raise(w, r->gathered);
    w->layer = now;
}

/* ---- single experts -----------------------------------------------------------------------------------------------*/

/* Expert e into the next slot; beyond the first S only when the host knows that it has tokens. */
static void fetch_expert(fr_walk *w, fr_rank *r, int e, bool needed) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    uint32_t hold = p->holds.value[r->pool]++;
    int64_t one = fr_layer_expert_bytes(p) / p->model.experts;
    bool late = e >= p->layout.slots;
    h2d(w, r, late && !needed ? 0 : one, r->pool, hold, e);
    if (late) {
        fr_wait(w->f, r->known, p->raised.value[r->known] + 1);
        fr_late(w->f, b->active, fr_copy_shape(w, FR_OP_H2D, one, 1));
    }
    fr_raise(w, r->gathered);
}

static void prepare(fr_walk *w, int half) {
    fr_planner *p = w->p;
    bool known = p->even && p->moe_for[half] == w->micro;
    fr_prepare_own(w, half);
    if (known || !by_expert(p)) return;
    const int32_t *counts = p->moe[half][0].counts;
    for (int e = 0; e < p->model.experts; e++) {
        if (e > 0 && counts[e] == counts[e - 1]) { /* shapes are costed once */
            p->each[2 * e] = p->each[2 * e - 2];
            p->each[2 * e + 1] = p->each[2 * e - 1];
        } else {
            fr_expert_shapes(w, counts + e, 1, 1, &p->each[2 * e], &p->each[2 * e + 1]);
        }
    }
}

static void one_expert(fr_walk *w, fr_rank *r, int e, uint32_t hold, const uint32_t bound[2]) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    for (int down = 0; down < 2; down++) {
        fr_put(w, r, FR_LANE_COMPUTE, down ? FR_OP_EXPERT_DOWN : FR_OP_EXPERT_UP, p->each[2 * e + down], e);
        fr_read(w, down ? b->mid : b->rows);
        fr_use_buffer(w->f, FR_USE_READ, r->pool, hold);
        fr_write(w, down ? b->out : b->mid);
        fr_late(w->f, b->counts, bound[down]);
    }
    fr_use_buffer(w->f, FR_USE_FREE, r->pool, hold);
}

static void experts_in_slots(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_moe *m = &p->moe[0][r->local];
    int experts = p->model.experts, ahead = p->layout.slots < experts ? p->layout.slots : experts;
    uint32_t counts = b->counts, bound[2] = {0, 0}, base = p->raised.value[r->gathered] - (uint32_t)ahead,
             hold = p->holds.value[r->pool] - (uint32_t)ahead;
    fr_emit_router(w, r, m->tokens, 1);
    fr_emit_shared(w, r, m->tokens, 1);
    b->counts = FR_NONE; /* all rows are sorted, whatever their experts */
    fr_emit_sort(w, r, m, b->normed, 0);
    b->counts = counts;
    fr_fill_table(w->f, b->counts); /* by the permutation, which follows the sort */
    fr_fill_table(w->f, b->active);
    fr_raise(w, r->routed);
    if (m->tokens > 0) {
        int32_t most = (int32_t)m->tokens; /* one expert may get every token */
        fr_expert_shapes(w, &most, 1, 1, &bound[0], &bound[1]);
    }
    for (int e = ahead; e < experts; e++) fetch_expert(w, r, e, m->counts[e] > 0);
    for (int e = 0; e < experts; e++) {
        fr_next_waits(r, r->gathered, base + 1 + (uint32_t)e);
        one_expert(w, r, e, hold + (uint32_t)e, bound);
    }
    fr_emit_combine(w, r, b->out, m->rows, m->tokens, FR_NONE);
}

/* After the layer's launches on the host lane: the host waits for the sort and reads which experts are active. */
static void read_back(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    if (!by_expert(p) || !fr_model_is_moe_layer(&p->model, w->layer)) return;
    fr_shape s = {.kind = FR_OP_READBACK, .m = p->model.experts, .bytes = 4 * (int64_t)p->model.experts};
    fr_put(w, r, FR_LANE_HOST, FR_OP_READBACK, fr_intern_shape(w, &s), 0);
    fr_wait(w->f, r->routed, p->raised.value[r->routed]);
    fr_read_table(w->f, r->half[0].active);
    fr_raise(w, r->known);
}

/* ---- a layer ------------------------------------------------------------------------------------------------------*/

static void enter(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    int first = w->first > p->model.dense_layers ? w->first : p->model.dense_layers;
    r->hold = -1;
    if (by_expert(p)) {
        for (int e = 0; w->layer >= first && e < p->layout.slots && e < p->model.experts; e++)
            fetch_expert(w, r, e, true);
        return;
    }
    if (w->first_layer) fetch_layer(w, r, first); /* leading dense layers leave it time */
    if (w->layer < first) return;
    r->hold = (int64_t)p->holds.value[r->pool] - 1;
    r->arrival = p->raised.value[r->gathered];
    if (p->layout.wait == FR_WAIT_LAYER) fr_next_waits(r, r->gathered, r->arrival);
    if (w->layer + 1 < w->end) fetch_layer(w, r, w->layer + 1);
}

static void experts(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_moe *m = &p->moe[0][r->local];
    if (by_expert(p)) {
        experts_in_slots(w, r);
        return;
    }
    fr_emit_router(w, r, m->tokens, 1);
    fr_emit_shared(w, r, m->tokens, 1);
    fr_emit_sort(w, r, m, b->normed, 0);
    if (p->layout.wait == FR_WAIT_MOE) fr_next_waits(r, r->gathered, r->arrival);
    fr_emit_grouped(w, r, m, 0);
    fr_use_buffer(w->f, FR_USE_FREE, r->pool, (uint32_t)r->hold);
    fr_emit_combine(w, r, b->out, m->rows, m->tokens, FR_NONE);
}

const fr_experts_part fr_experts_offload = {.open = open,
                                            .enter = enter,
                                            .prepare = prepare,
                                            .experts = experts,
                                            .leave = fr_layer_nothing,
                                            .after = read_back};

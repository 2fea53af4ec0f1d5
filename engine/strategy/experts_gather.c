/*
 * The weights come to the tokens: every rank runs its own batch with all experts of the layer at hand.
 *
 *   asyncep  (arXiv 2605.02960 section 6.2)  the full set of layer i + 1 is assembled while layer i runs, in one of two
 *            slots; it may begin when layer i begins; the wait stands at the entry of layer i + 1 or before its MoE
 * block ce          one-sided peer pulls, no rendezvous: ranks drift nccl(-ce)   a collective: starts with the latest
 * rank of the ep group, all end together; a rank without a batch joins with an empty forward dwdp     (arXiv
 * 2604.01621)  one-sided pulls of the remote experts only; a slot is filled again as soon as the MoE block two layers
 * before has ended; the wait stands before the MoE block
 *
 * The first MoE layer's experts are all resident, so every forward starts primed, and the gather of the layer after it
 * depends on nothing but a free slot: it is carried over into the forward before. A rank pulls from rank + 1, rank + 2,
 * ... so that pulls of ranks in step never meet at a source. With copy engines the own shard is read where it lies (a
 * local copy by copy engine is slower than the link: NCCL issue 2177), so (P - 1)/P of a layer travels, less
 * the experts of others that it holds too (--gather-keep).
 */
#include "engine/strategy/planner.h"

enum {
    LEAST_SLICE = 128 << 20, /* a slice costs some 10 us more: 3 % of this */
    SLICE_STEP = 2 << 20
};

static bool pulls(const fr_planner *p) {
    return p->layout.experts == FR_EXP_DWDP || p->layout.gather == FR_GATHER_CE;
}

/* What a rank holds of a layer, and what it has to pull from another. */
static int64_t held_bytes(const fr_planner *p, int index) {
    int first, end;
    fr_layout_held_range(&p->layout, &p->model, index, &first, &end);
    return (end - first) * fr_model_expert_bytes(&p->model, p->layout.precision);
}
static int64_t pull_bytes(const fr_planner *p, int index, int peer) {
    int first, end;
    fr_layout_pull_range(&p->layout, &p->model, index, peer, &first, &end);
    return (end - first) * fr_model_expert_bytes(&p->model, p->layout.precision);
}

/* First MoE layer of the stage at hand: the one whose experts are resident. */
static int first_moe(const fr_walk *w) {
    return w->first > w->p->model.dense_layers ? w->first : w->p->model.dense_layers;
}

/*
 * Pulls in flight. A source serves those who pull from it one after the other, a reader's link those that it reads at
 * once side by side (measured on four H200s: sim/player_flow.c). With one pull in flight, peers in turn from the own
 * rank on, readers fall into step: each source has one reader at any time. With several all sources come to serve the
 * same reader, whose link is then the limit: 62 against 43.6 ms a forward there. Peers are dealt to the streams in
 * turn.
 */
static void open_streams(fr_planner *p, fr_rank *r) {
    int most = p->layout.gather_streams ? p->layout.gather_streams : 1;
    if (most > FR_MAX_GATHER_STREAMS) most = FR_MAX_GATHER_STREAMS;
    if (most > p->layout.ep - 1) most = p->layout.ep - 1;
    r->streams = pulls(p) && most > 1 ? most : 1;
    r->stream[0] = r->lane[pulls(p) ? FR_LANE_COPY : FR_LANE_COMM];
    r->arrived[0] = r->gathered;
    if (r->streams > 1) r->slot_taken = fr_add_event(p, r, "slot taken");
    static const char *const lanes[FR_MAX_GATHER_STREAMS] = {"copy", "copy2", "copy3", "copy4"};
    static const char *const events[FR_MAX_GATHER_STREAMS] = {"gathered", "gathered2", "gathered3", "gathered4"};
    for (int s = 1; s < r->streams; s++) {
        r->stream[s] = fr_plan_lane(p->plan, r->rank, FR_LANE_COPY, lanes[s], false);
        r->arrived[s] = fr_add_event(p, r, events[s]);
    }
}

static void open(fr_planner *p, fr_rank *r) {
    if (p->layout.ep == 1) return;
    int64_t all = fr_layer_expert_bytes(p),
            bytes = p->layout.experts == FR_EXP_DWDP ? all - held_bytes(p, r->ep_index) : all;
    r->pool = fr_add_buffer(p, r, FR_BUF_GATHER, "gathered layers", bytes, 2);
    fr_add_lane(p, r, pulls(p) ? FR_LANE_COPY : FR_LANE_COMM);
    r->gathered = fr_add_event(p, r, "gathered");
    open_streams(p, r);
    if (p->layout.experts == FR_EXP_ASYNCEP) r->begun = fr_add_event(p, r, "layer ended");
}

/* What the gather of the next layer must wait for before it takes its slot. */
static void may_begin(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_wait(w->f, r->launched, p->raised.value[r->launched] + 1);
    if (p->layout.experts == FR_EXP_ASYNCEP && !w->first_layer) fr_wait(w->f, r->begun, p->raised.value[r->begun]);
}

/* Plan rank of the j-th peer after this one, and what to pull from it. In a folded plan it is the rank itself. */
static fr_rank *peer_of(fr_planner *p, fr_rank *r, int j, int64_t *bytes) {
    int ep = p->layout.ep, index = (r->ep_index + j) % ep;
    *bytes = pull_bytes(p, r->ep_index, index);
    return p->folded ? r : r - r->ep_index + index;
}

static int64_t chunks_of(int64_t bytes, int64_t chunk) {
    return chunk > 0 && chunk < bytes ? fr_ceil_div(bytes, chunk) : 1;
}

/*
 * Bytes of a pull. Readers that yield take a peer's share in two: one that begins while the next rank is in its gather
 * waits for half as long (readers of whole shares may hold one another up for good: experiments/large/README.md).
 */
static int64_t chunk_of(const fr_planner *p) {
    const fr_layout *l = &p->layout;
    int64_t share = fr_ceil_div(p->model.experts, l->ep) * fr_model_expert_bytes(&p->model, l->precision);
    if (l->gather_chunk || !fr_layout_yields(l) || share < 2 * LEAST_SLICE) return l->gather_chunk;
    return fr_ceil_div(fr_ceil_div(share, 2), SLICE_STEP) * SLICE_STEP;
}

/*
 * Pulls of a layer: all of a peer's shard at once, or slices, the slice in the outer loop and peers in the inner one
 * (arXiv 2604.01621 section 4.3). The first takes the slot (where `before` says what it waits for), the last says that
 * the layer is here. Ids: sub counts pulls, micro continues beyond 1024.
 */
void fr_emit_pulls(fr_walk *w, fr_rank *r, int layer, uint32_t pool, uint32_t hold,
                   void (*before)(fr_walk *, fr_rank *),
                   void (*each)(fr_walk *, fr_rank *, fr_rank *peer, int j, bool first, bool last)) {
    fr_planner *p = w->p;
    int64_t chunk = chunk_of(p), slices = 1, bytes;
    int ep = p->layout.ep, made = 0, total = 0, now = w->layer;
    for (int j = 1; j < ep; j++) {
        peer_of(p, r, j, &bytes);
        int64_t n = bytes > 0 ? chunks_of(bytes, chunk) : 0;
        slices = fr_max_i64(slices, n);
        total += (int)n;
    }
    w->layer = layer;
    for (int64_t s = 0; s < slices; s++)
        for (int j = 1; j < ep; j++) {
            fr_rank *peer = peer_of(p, r, j, &bytes);
            int64_t n = chunks_of(bytes, chunk);
            if (bytes == 0 || s >= n) continue;
            int64_t size = n == 1 ? bytes : s < n - 1 ? chunk : bytes - chunk * (n - 1);
            fr_op *op = fr_put(w, r, FR_LANE_COPY, FR_OP_PULL, fr_copy_shape(w, FR_OP_PULL, size, ep), made % 1024);
            op->peer = peer->rank;
            op->micro = (uint8_t)(op->micro + made / 1024);
            if (made == 0 && before) {
                before(w, r);
                fr_use_buffer(w->f, FR_USE_ACQUIRE, pool, hold);
            }
            each(w, r, peer, j, s == 0, s == n - 1);
            fr_use_buffer(w->f, FR_USE_WRITE, pool, hold);
            const bool last = ++made == total;
            if (fr_layout_yields(&p->layout) && !p->folded)
                op->flags |= last ? FR_OP_YIELDS | FR_OP_GATHERED : FR_OP_YIELDS;
            if (last) fr_raise(w, r->gathered);
        }
    w->layer = now;
}

static void reads_shard(fr_walk *w, fr_rank *r, fr_rank *peer, int j, bool first, bool last) {
    (void)r, (void)j, (void)first, (void)last;
    fr_read(w, peer->experts);
}

static void gather_fence(fr_walk *w, fr_rank *r, int stream, int sub) {
    fr_op *op = fr_emit(w->f, r->stream[stream], FR_OP_FENCE, 0, w->layer);
    op->sub = (uint16_t)sub;
    op->micro = (uint8_t)w->micro;
}

/* One stream's pulls of a layer: those of every streams-th peer, slice by slice. A stream without any still says that
 * it is through. */
static void pull_stream(fr_walk *w, fr_rank *r, int stream, uint32_t hold) {
    fr_planner *p = w->p;
    int64_t chunk = p->layout.gather_chunk, slices = 1, bytes;
    int ep = p->layout.ep, made = 0;
    for (int j = 1 + stream; j < ep; j += r->streams) {
        peer_of(p, r, j, &bytes);
        slices = fr_max_i64(slices, bytes > 0 ? chunks_of(bytes, chunk) : 0);
    }
    for (int64_t s = 0; s < slices; s++)
        for (int j = 1 + stream; j < ep; j += r->streams) {
            fr_rank *peer = peer_of(p, r, j, &bytes);
            int64_t n = chunks_of(bytes, chunk);
            if (bytes == 0 || s >= n) continue;
            int64_t size = n == 1 ? bytes : s < n - 1 ? chunk : bytes - chunk * (n - 1);
            int id = made * r->streams + stream;
            fr_op *op = fr_emit(w->f, r->stream[stream], FR_OP_PULL, fr_copy_shape(w, FR_OP_PULL, size, 1), w->layer);
            op->peer = peer->rank;
            op->sub = (uint16_t)(id % 1024);
            op->micro = (uint8_t)(w->micro + id / 1024);
            r->launches++;
            if (made++ == 0) fr_wait(w->f, r->slot_taken, p->raised.value[r->slot_taken]);
            fr_read(w, peer->experts);
            fr_use_buffer(w->f, FR_USE_WRITE, r->pool, hold);
        }
    if (made == 0) gather_fence(w, r, stream, stream);
    fr_raise(w, r->arrived[stream]);
}

/* Several streams fill one slot: the first takes it, with what a gather waits for, and tells the others. */
static void pull_streams(fr_walk *w, fr_rank *r, int layer, uint32_t hold) {
    int now = w->layer;
    w->layer = layer;
    gather_fence(w, r, 0, FR_MAX_GATHER_STREAMS);
    may_begin(w, r);
    fr_use_buffer(w->f, FR_USE_ACQUIRE, r->pool, hold);
    fr_raise(w, r->slot_taken);
    for (int s = 0; s < r->streams; s++) pull_stream(w, r, s, hold);
    w->layer = now;
}

static void next_waits_for_gather(fr_rank *r, uint32_t value) {
    for (int s = 0; s < r->streams; s++) fr_next_waits(r, r->arrived[s], value);
}

static void gather(fr_walk *w, fr_rank *r, int layer) {
    fr_planner *p = w->p;
    uint32_t hold = p->holds.value[r->pool]++;
    if (r->streams > 1) {
        pull_streams(w, r, layer, hold);
        return;
    }
    if (pulls(p)) {
        fr_emit_pulls(w, r, layer, r->pool, hold, may_begin, reads_shard);
        return;
    }
    int now = w->layer;
    fr_shape s = {.kind = FR_OP_GATHER_WEIGHTS,
                  .transport = (uint8_t)p->layout.gather,
                  .hosts = r->ep.hosts,
                  .ranks = r->ep.size,
                  .precision = (uint8_t)p->layout.precision,
                  .bytes = fr_layer_expert_bytes(p)};
    w->layer = layer;
    fr_put(w, r, FR_LANE_COMM, FR_OP_GATHER_WEIGHTS, fr_intern_shape(w, &s), 0);
    may_begin(w, r);
    fr_read(w, r->experts);
    fr_use_buffer(w->f, FR_USE_ACQUIRE, r->pool, hold);
    fr_use_buffer(w->f, FR_USE_WRITE, r->pool, hold);
    fr_raise(w, r->gathered);
    fr_join(w, &r->ep);
    w->layer = now;
}

/* Layers are gathered in order, one ahead: of those after the first MoE layer, how many gathers lie before this one's.
 */
static void enter(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    r->hold = -1;
    if (p->layout.ep == 1) return;
    int first = first_moe(w);
    if (w->layer > first) {
        r->hold = (int64_t)p->holds.value[r->pool] - 1; /* the gather issued a layer ago */
        if (p->layout.experts == FR_EXP_ASYNCEP && p->layout.wait == FR_WAIT_LAYER)
            next_waits_for_gather(r, p->raised.value[r->gathered]);
        r->arrival = p->raised.value[r->gathered];
    }
    if (w->layer >= first && w->layer + 1 < w->end) gather(w, r, w->layer + 1);
}

/* The grouped GEMM is the first to read the weights; the second of them is the last. */
static void experts(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_moe *m = &p->moe[w->half][r->local];
    fr_emit_router(w, r, m->tokens, 1);
    fr_emit_shared(w, r, m->tokens, 1);
    fr_emit_sort(w, r, m, b->normed, 0);
    bool wait_here = p->layout.experts == FR_EXP_DWDP || p->layout.wait == FR_WAIT_MOE;
    if (r->hold >= 0 && wait_here) next_waits_for_gather(r, r->arrival);
    fr_emit_grouped(w, r, m, 0);
    if (r->hold >= 0) fr_use_buffer(w->f, FR_USE_FREE, r->pool, (uint32_t)r->hold);
    fr_emit_combine(w, r, b->out, m->rows, m->tokens, FR_NONE);
}

static void leave(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    if (p->layout.ep > 1 && p->layout.experts == FR_EXP_ASYNCEP) fr_raise(w, r->begun);
}

const fr_experts_part fr_experts_gather = {
    .open = open, .enter = enter, .prepare = fr_prepare_own, .experts = experts, .leave = leave};

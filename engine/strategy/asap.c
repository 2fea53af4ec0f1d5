/*
 * ASAP (arXiv 2606.22541 section 3): attention and experts on different GPUs, no barrier.
 *
 *   attention rank   [combine A] attention A, push to the expert ranks | [combine B] attention B, push | next layer ...
 *                    two batches in turn (dual-batch interleaving), so that one is in attention while the other is away
 *   expert rank      takes items as they become ready, of any group, batch and layer:
 *                    drain the group's slots | sort, permute, up, down, sum || push one row per copy back, beside the
 *                    next item (a lane for each group: pushes of one group stay in its order whatever is taken next)
 *
 * An item is all that one group's batch wants of an expert rank in one layer. Items of one group become ready in the
 * order in which the group sends them, so with one group the expert ranks' lanes are in-order; with more they are
 * first-ready (plan.h, S2), and which group comes next is decided while the plan runs, by the simulator as by the
 * engine.
 *
 * A unit is one attention group; its expert ranks serve all groups. Between every attention rank and expert rank lie
 * two payload slots there; the receiver acknowledges a slot when it has copied it out, the sender waits for that
 * (two-way flags, depth 2 so that a sender seldom waits; a.4). Results have a slot here for each of the two batches:
 * the next ones of a batch can only come after its combine, so they need no flag back. Slots go round: hold h is in
 * slot h modulo their number, which both ends know without asking. Counts, ids and weights travel with the payload, so
 * sizes from a drain on are late. Router and shared experts are on the attention side, one copy goes per token and
 * expert rank. Each rank of a tp group sends its own part of the tokens.
 */
#include "engine/strategy/planner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    uint32_t payload;     /* pool at the expert rank */
    uint32_t arrived;     /* event at the expert rank: payload is here */
    uint32_t ack;         /* event at the attention rank: payload was drained */
    uint32_t results[2];  /* pools at the attention rank, for batches A and B */
    uint32_t returned[2]; /* events there: results are here; the expert rank may take B's item first */
} link;

/* What an expert rank keeps of a group's item until its results have left. */
typedef struct {
    uint32_t send;      /* lane */
    uint32_t summed[2]; /* events: a batch's results are ready to leave; B's may be before A's */
    uint32_t recv[2];   /* of either batch: drained tokens, then their sums */
    uint32_t counts[2]; /* late tables: rows that arrive */
} desk;

struct fr_asap {
    fr_placement placement; /* of an expert rank */
    int attention, experts; /* ranks of a replica */
    link *links;            /* [replica][attention rank][expert rank] */
    desk *desks;            /* [replica][group][expert rank] */
    int64_t *rows, *copies; /* [half][tp rank][expert rank] */
    uint32_t *held;         /* [half][tp rank][expert rank]: result holds that the next combine frees */
    bool due[2];
};

static link *link_of(fr_planner *p, int replica, int a, int e) {
    struct fr_asap *s = p->asap;
    return &s->links[((size_t)replica * (size_t)s->attention + (size_t)a) * (size_t)s->experts + (size_t)e];
}
static desk *desk_of(fr_planner *p, int replica, int group, int e) {
    struct fr_asap *s = p->asap;
    return &s->desks[((size_t)replica * (size_t)p->layout.dp + (size_t)group) * (size_t)s->experts + (size_t)e];
}
static fr_rank *rank_at(fr_planner *p, int replica, int index) {
    return &p->ranks[replica * (p->asap->attention + p->asap->experts) + index];
}
static size_t cell(const fr_planner *p, int half, int t, int e) {
    return ((size_t)half * (size_t)p->layout.tp + (size_t)t) * (size_t)p->asap->experts + (size_t)e;
}

/* ---- static part --------------------------------------------------------------------------------------------------*/

static uint32_t placed(fr_planner *p, fr_rank *r, const char *name) {
    return fr_add_buffer(p, r, FR_BUF_ACTIVATION, name, fr_placement_find(&p->asap->placement, name)->bytes, 0);
}

static void open_expert_rank(fr_planner *p, fr_rank *r) {
    fr_add_lane(p, r, FR_LANE_HOST);
    /* One group's items become ready in the order in which it sends them: there is nothing to choose. */
    r->lane[FR_LANE_COMPUTE] = fr_plan_lane(p->plan, r->rank, FR_LANE_COMPUTE, "compute", p->layout.dp > 1);
    r->launched = fr_add_event(p, r, "launched");
    int64_t experts = p->model.experts / p->layout.ep * fr_model_expert_bytes(&p->model, p->layout.precision);
    r->experts = fr_add_buffer(p, r, FR_BUF_WEIGHTS, "experts", experts * (p->model.layers - p->model.dense_layers), 0);
    fr_scratch *b = &r->half[0];
    b->order = placed(p, r, "order");
    b->rows = placed(p, r, "rows");
    b->mid = placed(p, r, "mid");
    b->out = placed(p, r, "out");
    r->half[1] = r->half[0];
}

static void open_desk(fr_planner *p, int replica, int group, int e) {
    fr_rank *r = rank_at(p, replica, p->asap->attention + e);
    desk *d = desk_of(p, replica, group, e);
    char name[40];
    snprintf(name, sizeof name, "send %d", group);
    d->send = fr_plan_lane(p->plan, r->rank, FR_LANE_SEND, name, false);
    for (int h = 0; h < 2; h++) {
        snprintf(name, sizeof name, "summed%s %d", h ? "'" : "", group);
        d->summed[h] = fr_add_event(p, r, name);
        snprintf(name, sizeof name, "drained%s %d", h ? "'" : "", group);
        d->recv[h] = placed(p, r, name);
        snprintf(name, sizeof name, "arriving%s %d", h ? "'" : "", group);
        d->counts[h] = fr_plan_table(p->plan, r->rank, name, p->load.tokens * p->model.top_k, FR_KNOWN_DEVICE);
    }
}

static void open_link(fr_planner *p, int replica, int a, int e) {
    fr_rank *from = rank_at(p, replica, a), *to = rank_at(p, replica, p->asap->attention + e);
    link *l = link_of(p, replica, a, e);
    fr_activations size;
    char name[40];
    fr_layout_room(&p->layout, &p->model, &p->load, &size);
    snprintf(name, sizeof name, "payload of r%d", from->rank);
    l->payload = fr_add_buffer(p, to, FR_BUF_SLOT, name, size.payload, FR_ASAP_DEPTH);
    snprintf(name, sizeof name, "arrived of r%d", from->rank);
    l->arrived = fr_add_event(p, to, name);
    snprintf(name, sizeof name, "drained by r%d", to->rank);
    l->ack = fr_add_event(p, from, name);
    for (int h = 0; h < 2; h++) {
        snprintf(name, sizeof name, "returned%s of r%d", h ? "'" : "", to->rank);
        l->returned[h] = fr_add_event(p, from, name);
        snprintf(name, sizeof name, "results%s of r%d", h ? "'" : "", to->rank);
        l->results[h] = fr_add_buffer(p, from, FR_BUF_SLOT, name, size.result, 1);
    }
}

fr_status fr_asap_open(fr_planner *p, fr_error *err) {
    const fr_layout *l = &p->layout;
    if (l->ep > 64)
        return fr_fail(err, FR_BAD_INPUT, "--ep %d: a plan of asap holds at most 64 expert ranks a replica", l->ep);
    struct fr_asap *s = p->asap = fr_alloc(sizeof *s);
    fr_placement_of(l, &p->model, &p->load, true, &s->placement);
    s->attention = l->tp * l->dp;
    s->experts = l->ep;
    p->stages = 1;
    p->units = l->replicas * l->dp;
    p->slots = 2;
    p->unit_ranks = p->real_unit_ranks = l->tp;
    p->sliced = l->tp > 1;
    p->moe_groups = 1;
    p->part = &fr_experts_local;
    p->ranks_count = fr_layout_gpus(l);
    p->plan = fr_plan_new(p->ranks_count, p->ranks_count);
    p->ranks = fr_alloc((size_t)p->ranks_count * sizeof *p->ranks);
    size_t cells = 2 * (size_t)l->tp * (size_t)l->ep;
    s->desks = fr_alloc((size_t)p->units * (size_t)l->ep * sizeof *s->desks);
    s->links = fr_alloc((size_t)l->replicas * (size_t)s->attention * (size_t)l->ep * sizeof *s->links);
    s->rows = fr_alloc(cells * sizeof *s->rows);
    s->copies = fr_alloc(cells * sizeof *s->copies);
    s->held = fr_alloc(cells * sizeof *s->held);
    for (int h = 0; h < 2; h++) p->moe[h] = fr_alloc((size_t)l->ep * sizeof **p->moe);
    p->counts = fr_alloc(2 * (size_t)l->tp * (size_t)p->model.experts * sizeof *p->counts);
    p->copies = fr_alloc((size_t)l->ep * sizeof *p->copies);
    for (int replica = 0; replica < l->replicas; replica++) {
        for (int i = 0; i < s->attention + s->experts; i++) {
            int rank = replica * (s->attention + s->experts) + i;
            fr_rank *r = &p->ranks[rank];
            r->rank = (int16_t)rank;
            for (int k = 0; k < FR_LANE_KINDS; k++) r->lane[k] = FR_NONE;
            r->hold = -1;
            r->first = FR_NONE;
            if (i < s->attention)
                fr_open_attention_rank(p, r, replica, i);
            else
                open_expert_rank(p, r);
        }
        for (int a = 0; a < s->attention; a++)
            for (int e = 0; e < s->experts; e++) open_link(p, replica, a, e);
        for (int g = 0; g < l->dp; g++)
            for (int e = 0; e < s->experts; e++) open_desk(p, replica, g, e);
    }
    return FR_OK;
}

void fr_asap_close(fr_planner *p) {
    if (!p->asap) return;
    fr_placement_free(&p->asap->placement);
    free(p->asap->links);
    free(p->asap->desks);
    free(p->asap->rows);
    free(p->asap->copies);
    free(p->asap->held);
    free(p->asap);
}

/* ---- sizes --------------------------------------------------------------------------------------------------------*/

#define FINE (INT64_C(1) << 30)

static int64_t rows_to(fr_walk *w, int t, int e, int64_t tokens, int half, int32_t *out) {
    fr_planner *p = w->p;
    int experts = p->model.experts, each = experts / p->asap->experts, first = e * each;
    const int32_t *counts = p->counts + ((size_t)half * (size_t)p->layout.tp + (size_t)t) * (size_t)experts;
    int64_t mine = fr_share(tokens * p->model.top_k, p->asap->experts,
                            (e - t % p->asap->experts + p->asap->experts) % p->asap->experts);
    int64_t rows = 0;
    for (int i = 0; i < each; i++) {
        int32_t n = p->even ? (int32_t)fr_share(mine, each, i) : counts[first + i];
        out[i] += n;
        rows += n;
    }
    return rows;
}

static void prepare(fr_walk *w, int half) {
    fr_planner *p = w->p;
    struct fr_asap *s = p->asap;
    if (p->even && p->moe_for[half] == w->micro) return;
    p->moe_for[half] = w->micro;
    int each = p->model.experts / s->experts, k = p->model.top_k;
    for (int t = 0; t < p->layout.tp && !p->even; t++) {
        fr_rank *r = fr_stage_rank(p, w->unit, 0, t);
        fr_route(w, r, fr_tokens_here(w, r), half);
    }
    if (!p->even) fr_routing_targets(p->routing, w->layer, FINE, s->experts, p->copies);
    int32_t *counts = fr_alloc((size_t)each * sizeof *counts);
    for (int e = 0; e < s->experts; e++) {
        fr_moe *m = &p->moe[half][e];
        *m = (fr_moe){0};
        for (int i = 0; i < each; i++) counts[i] = 0;
        for (int t = 0; t < p->layout.tp; t++) {
            int64_t tokens = fr_tokens_here(w, fr_stage_rank(p, w->unit, 0, t));
            int64_t rows = rows_to(w, t, e, tokens, half, counts);
            double hit = p->even ? fr_hit_even(&p->model, each) : (double)p->copies[e] / (double)FINE;
            int64_t n = fr_min_i64(llround((double)tokens * hit), fr_min_i64(rows, tokens));
            n = fr_max_i64(n, fr_ceil_div(rows, fr_min_i64(k, each)));
            s->rows[cell(p, half, t, e)] = rows;
            s->copies[cell(p, half, t, e)] = n;
            m->tokens += tokens;
            m->rows += rows;
            m->landed += n;
        }
        m->bound = m->tokens * fr_min_i64(k, each);
        fr_expert_shapes(w, counts, each, 1, &m->up, &m->down);
        fr_bound_shapes(w, m, each);
    }
    free(counts);
}

/* ---- attention side -----------------------------------------------------------------------------------------------*/

static uint32_t message(fr_walk *w, fr_op_kind kind, int64_t copies) {
    return fr_copy_shape(w, kind, copies * 2 * w->p->model.hidden, w->p->asap->attention + w->p->asap->experts);
}

/* One push per expert rank into a free payload slot. */
static void push(fr_walk *w, fr_rank *r, int replica, int a, uint32_t ready) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t most = fr_tokens_here(w, r);
    for (int j = 0; j < p->asap->experts; j++) {
        int e = (a + j) % p->asap->experts; /* groups start at different targets */
        link *l = link_of(p, replica, a, e);
        uint32_t hold = p->holds.value[l->payload]++;
        int64_t copies = p->asap->copies[cell(p, w->half, r->t, e)];
        fr_op *op = fr_put(w, r, FR_LANE_SEND, FR_OP_PUSH, message(w, FR_OP_PUSH, copies), e);
        op->peer = rank_at(p, replica, p->asap->attention + e)->rank;
        fr_wait(w->f, r->ready[w->half], ready);
        if (hold >= FR_ASAP_DEPTH) fr_wait(w->f, l->ack, hold - FR_ASAP_DEPTH + 1);
        fr_read(w, b->send);
        fr_read(w, b->route); /* ids and weights go with the rows */
        fr_use_buffer(w->f, FR_USE_ACQUIRE, l->payload, hold);
        fr_use_buffer(w->f, FR_USE_WRITE, l->payload, hold);
        fr_late(w->f, b->held, message(w, FR_OP_PUSH, most));
        fr_raise(w, l->arrived);
        if (j == p->asap->experts - 1) fr_raise(w, r->moved[w->half]); /* the packed rows may be overwritten */
    }
}

/* Results of all expert ranks (those without rows signal too), added to the residual stream. */
static void combine(fr_walk *w, fr_rank *r, int replica, int a) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t held = 0, tokens = fr_tokens_here(w, r), row = 2 * (int64_t)p->model.hidden;
    bool shared = p->model.shared_width > 0;
    for (int e = 0; e < p->asap->experts; e++) held += p->asap->copies[cell(p, w->half, r->t, e)];
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_COMBINE,
           fr_memory_shape(w, FR_OP_COMBINE, tokens, p->model.hidden, row * (held + tokens * (2 + shared))), 0);
    for (int e = 0; e < p->asap->experts; e++) {
        link *l = link_of(p, replica, a, e);
        uint32_t hold = p->asap->held[cell(p, w->half, r->t, e)];
        fr_wait(w->f, l->returned[w->half], p->raised.value[l->returned[w->half]]);
        fr_use_buffer(w->f, FR_USE_READ, l->results[w->half], hold);
        fr_use_buffer(w->f, FR_USE_FREE, l->results[w->half], hold);
    }
    fr_read(w, b->route);
    if (shared) fr_read(w, b->shared);
    fr_hidden_use(w, r, FR_USE_READ);
    fr_hidden_use(w, r, FR_USE_WRITE);
}

static void dispatch(fr_walk *w, fr_rank *r, int replica, int a) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t tokens = fr_tokens_here(w, r), held = 0;
    int64_t most = tokens * fr_min_i64(p->model.top_k, p->asap->experts);
    for (int e = 0; e < p->asap->experts; e++) held += p->asap->copies[cell(p, w->half, r->t, e)];
    fr_emit_norm(w, r, 1);
    fr_emit_router(w, r, tokens, 1);
    fr_fill_table(w->f, b->held);
    fr_next_waits(r, r->moved[w->half], p->raised.value[r->moved[w->half]]); /* the last layer's rows have left */
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_PERMUTE, fr_pack_shape(w, held, tokens, p->model.hidden, p->asap->experts),
           1000);
    fr_read(w, b->route);
    fr_read(w, b->normed);
    fr_write(w, b->send);
    fr_write(w, b->route); /* where each copy's result will lie */
    fr_late(w->f, b->held, fr_pack_shape(w, most, most, p->model.hidden, p->asap->experts));
    uint32_t ready = fr_raise(w, r->ready[w->half]);
    push(w, r, replica, a, ready);
    fr_emit_shared(w, r, tokens, 1);
}

static void combine_before(fr_walk *w, fr_rank *r, int replica, int a) {
    if (!(w->first_layer && w->half == 0)) fr_host_begin(w, r);
    if (!w->p->asap->due[w->half]) return;
    w->layer--;
    combine(w, r, replica, a);
    w->layer++;
}

static void attention_layer(fr_walk *w, fr_rank *r, int replica, int a, bool moe) {
    fr_planner *p = w->p;
    if (p->layout.tp > 1)
        fr_attention_tp(w, r);
    else
        fr_attention_dp(w, r);
    if (moe) {
        dispatch(w, r, replica, a);
    } else {
        fr_dense_layer(w, r);
        fr_add_residual(w, r);
    }
    fr_host_end(w, r);
}

/* ---- expert side --------------------------------------------------------------------------------------------------*/

/* One item: all that a group's batch wants of this rank in this layer. */
static void item(fr_walk *w, int replica, int group, int e) {
    fr_planner *p = w->p;
    fr_rank *r = rank_at(p, replica, p->asap->attention + e);
    fr_scratch *b = fr_scratch_of(w, r);
    const desk *d = desk_of(p, replica, group, e);
    const fr_moe *m = &p->moe[w->half][e];
    int tp = p->layout.tp;
    b->recv = b->route = d->recv[w->half]; /* ids and weights come with the rows */
    b->counts = d->counts[w->half];
    r->lane[FR_LANE_SEND] = d->send;
    int64_t row = 2 * (int64_t)p->model.hidden, slice = fr_ceil_div(m->tokens, tp);
    fr_host_begin(w, r);
    for (int t = 0; t < tp; t++) {
        link *l = link_of(p, replica, group * tp + t, e);
        uint32_t hold = p->holds.value[l->payload] - 1;
        fr_op *op = fr_put(w, r, FR_LANE_COMPUTE, FR_OP_DRAIN,
                           message(w, FR_OP_DRAIN, p->asap->copies[cell(p, w->half, t, e)]), t);
        if (t == 0) { /* the item may start when all of the group's rows are here */
            op->flags |= FR_OP_ITEM;
            for (int u = 0; u < tp; u++) {
                link *from = link_of(p, replica, group * tp + u, e);
                fr_wait(w->f, from->arrived, p->holds.value[from->payload]);
            }
        }
        fr_use_buffer(w->f, FR_USE_READ, l->payload, hold);
        fr_write(w, b->recv);
        if (t == tp - 1) fr_fill_table(w->f, b->counts);
        fr_use_buffer(w->f, FR_USE_FREE, l->payload, hold);
        fr_rank *from = rank_at(p, replica, group * tp + t);
        fr_late(w->f, from->half[w->half].held, message(w, FR_OP_DRAIN, fr_tokens_here(w, from)));
        fr_raise(w, l->ack);
    }
    fr_emit_sort(w, r, m, b->recv, 0);
    fr_emit_grouped(w, r, m, 0);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_REDUCE,
           fr_memory_shape(w, FR_OP_REDUCE, m->landed, p->model.hidden, (m->rows + m->landed) * row), 0);
    fr_read(w, b->out);
    fr_read(w, b->order);
    fr_read(w, b->recv); /* weights */
    fr_write(w, b->recv);
    fr_late(w->f, b->counts, fr_memory_shape(w, FR_OP_REDUCE, m->bound, p->model.hidden, 2 * m->bound * row));
    uint32_t summed = fr_raise(w, d->summed[w->half]);
    for (int t = 0; t < tp; t++) {
        link *l = link_of(p, replica, group * tp + t, e);
        uint32_t hold = p->holds.value[l->results[w->half]]++;
        p->asap->held[cell(p, w->half, t, e)] = hold;
        fr_op *op =
            fr_put(w, r, FR_LANE_SEND, FR_OP_PUSH, message(w, FR_OP_PUSH, p->asap->copies[cell(p, w->half, t, e)]), t);
        op->peer = rank_at(p, replica, group * tp + t)->rank;
        fr_wait(w->f, d->summed[w->half], summed);
        fr_read(w, b->recv);
        fr_use_buffer(w->f, FR_USE_ACQUIRE, l->results[w->half], hold);
        fr_use_buffer(w->f, FR_USE_WRITE, l->results[w->half], hold);
        fr_late(w->f, b->counts, message(w, FR_OP_PUSH, slice));
        fr_raise(w, l->returned[w->half]);
    }
    fr_host_end(w, r);
}

/* ---- a forward ----------------------------------------------------------------------------------------------------*/

static void start(fr_walk *w, fr_rank *r) {
    w->layer = FR_NO_LAYER;
    if (w->half == 0) fr_host_begin(w, r);
    if (w->micro == 0) fr_emit_upload(w, r);
    r->residual = false;
    fr_emit_embed(w, r);
}

static void finish(fr_walk *w, fr_rank *r, int replica, int a, bool last) {
    fr_planner *p = w->p;
    w->layer = FR_NO_LAYER;
    fr_host_begin(w, r);
    if (p->asap->due[w->half]) {
        w->layer = w->end - 1;
        combine(w, r, replica, a);
        w->layer = FR_NO_LAYER;
    }
    fr_emit_head(w, r);
    uint32_t head = w->f->head_of[r->lane[FR_LANE_COMPUTE]];
    if (last && head) w->f->ops[w->f->heads[head - 1].last].flags |= FR_OP_ENTRY;
    fr_host_end(w, r);
}

/* w->micro counts (chunk, batch): batch A is even, batch B odd. */
static void both(fr_walk *w, int pair, int layer, bool last) {
    fr_planner *p = w->p;
    int replica = w->unit / p->layout.dp, group = w->unit % p->layout.dp;
    bool moe = layer >= p->model.dense_layers && layer < w->end;
    for (w->half = 0; w->half < 2; w->half++) {
        w->micro = 2 * pair + w->half;
        w->layer = layer;
        for (int t = 0; t < p->layout.tp && layer >= 0 && layer < w->end; t++)
            combine_before(w, fr_stage_rank(p, w->unit, 0, t), replica, group * p->layout.tp + t);
        if (moe && layer >= 0) prepare(w, w->half); /* sizes of the layer before served the combine */
        for (int t = 0; t < p->layout.tp; t++) {
            fr_rank *r = fr_stage_rank(p, w->unit, 0, t);
            int a = group * p->layout.tp + t;
            if (layer < 0)
                start(w, r);
            else if (layer == w->end)
                finish(w, r, replica, a, last && w->half == 1);
            else
                attention_layer(w, r, replica, a, moe);
        }
        if (layer < 0 || layer == w->end) {
            p->asap->due[w->half] = false;
            continue;
        }
        for (int e = 0; e < p->asap->experts && moe; e++) item(w, replica, group, e);
        p->asap->due[w->half] = moe;
    }
}

void fr_asap_forward(fr_walk *w) {
    int chunks = w->micros;
    w->first = 0;
    w->end = fr_layout_layers(&w->p->layout, &w->p->model);
    for (int pair = 0; pair < chunks; pair++) {
        w->p->moe_for[0] = w->p->moe_for[1] = -1;
        both(w, pair, -1, false);
        for (int layer = 0; layer < w->end; layer++) {
            w->first_layer = layer == 0;
            both(w, pair, layer, false);
        }
        both(w, pair, w->end, pair == chunks - 1);
    }
    w->layer = FR_NO_LAYER;
    for (int e = 0; e < w->p->asap->experts; e++)
        fr_emit_counts(w, rank_at(w->p, w->unit / w->p->layout.dp, w->p->asap->attention + e), 2 * chunks);
}

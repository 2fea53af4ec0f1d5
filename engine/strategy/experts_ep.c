/*
 * Whole experts on different ranks, activations travel (GShard, arXiv 2006.16668; DeepEP's normal kernels for prefill):
 *
 *     router, top-k | counts | pack | dispatch | sort, permute, experts, sum | combine back | weighted sum
 *
 * A token goes once to every rank that holds one of its experts; that rank sums its experts' results, weighted, before
 * it sends one row back. What arrives is known only when the counts have been exchanged: sizes behind that are late.
 * Variants: a2a-k sends one copy per expert, a2a-fp8 dispatches quantised rows (combine stays bf16), agrs gathers all
 * tokens everywhere and reduce-scatters partial sums. With overlap, exchanges stand on a lane of their own: two halves
 * of the batch in turn (two-batch overlap), or groups of experts (EPS-MoE, arXiv 2410.12247).
 */
#include "engine/strategy/planner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool agrs(const fr_planner *p) {
    return p->layout.exchange == FR_EXCHANGE_AGRS;
}

static bool overlapped(const fr_planner *p) {
    return p->layout.overlap != FR_OVERLAP_NONE;
}

static void open(fr_planner *p, fr_rank *r) {
    const fr_layout *l = &p->layout;
    r->recv = fr_alloc((size_t)p->moe_groups * sizeof *r->recv);
    if (l->ep == 1) return;
    for (int g = 0; g < p->moe_groups && p->moe_groups > 1; g++) {
        char name[24];
        snprintf(name, sizeof name, "recv %d", g);
        const fr_placed *b = fr_placement_find(&p->placement, name);
        r->recv[g] = fr_add_buffer(p, r, FR_BUF_ACTIVATION, name, b->bytes, 0);
    }
    if (overlapped(p)) fr_add_lane(p, r, FR_LANE_COMM);
    for (int h = 0; h < (l->overlap == FR_OVERLAP_TBO ? 2 : 1); h++) {
        fr_scratch *b = &r->half[h];
        if (!agrs(p))
            b->held = fr_plan_table(p->plan, r->rank, h ? "copies that leave'" : "copies that leave",
                                    p->load.tokens * p->model.top_k, FR_KNOWN_DEVICE);
        b->counts = fr_plan_table(p->plan, r->rank, h ? "rows that arrive'" : "rows that arrive",
                                  p->load.tokens * l->ep * p->model.top_k, FR_KNOWN_DEVICE);
        if (!overlapped(p)) continue;
        r->moved[h] = fr_add_event(p, r, h ? "moved'" : "moved");
        r->ready[h] = fr_add_event(p, r, h ? "ready'" : "ready");
    }
}

/* ---- sizes --------------------------------------------------------------------------------------------------------*/

/* Experts [first, end) of expert group g on ep rank q. */
static void range(const fr_planner *p, int q, int g, int *first, int *end) {
    int parts = p->layout.ep * p->moe_groups, v = q * p->moe_groups + g;
    *first = (int)((int64_t)p->model.experts * v / parts);
    *end = (int)((int64_t)p->model.experts * (v + 1) / parts);
}

/* Share of tokens with at least one of `mine` among its k distinct experts, all sets alike: 1 - C(E - mine, k) / C(E,
 * k).
 */
double fr_hit_even(const fr_model *m, int mine) {
    double missed = 1;
    for (int i = 0; i < m->top_k; i++) missed *= fmax(0, m->experts - mine - i) / (double)(m->experts - i);
    return 1 - missed;
}

#define FINE (INT64_C(1) << 30) /* tokens asked for, so that rounding does not show */

static void copies_of_layer(const fr_walk *w) {
    fr_planner *p = w->p;
    const int targets = p->layout.ep * p->moe_groups;
    if (p->has_copies[w->layer]) return;
    fr_routing_targets(p->routing, w->layer, FINE, targets, p->copies + (size_t)w->layer * (size_t)targets);
    p->has_copies[w->layer] = true;
}

/* Copies that a source of `tokens` tokens sends to target v (ep rank and group), which gets `rows` rows from it. */
static int64_t copies_to(const fr_walk *w, int v, int mine, int64_t tokens, int64_t rows) {
    const fr_planner *p = w->p;
    if (p->layout.exchange == FR_EXCHANGE_A2A_K) return rows;
    const int64_t *copies = p->copies + (size_t)w->layer * (size_t)(p->layout.ep * p->moe_groups);
    double hit = p->even ? fr_hit_even(&p->model, mine) : (double)copies[v] / (double)FINE;
    int64_t n = fr_round((double)tokens * hit), least = fr_ceil_div(rows, fr_min_i64(p->model.top_k, mine));
    return fr_max_i64(fr_min_i64(n, fr_min_i64(rows, tokens)), least);
}

/* The ep group's rank q; in a folded plan all are rank 0. */
static fr_rank *member(fr_walk *w, int base, int q) {
    return fr_stage_rank(w->p, w->unit, w->stage, w->p->folded ? 0 : base + q);
}

static const int32_t *counts_of(const fr_planner *p, const fr_rank *r, int half) {
    return p->counts + ((size_t)half * (size_t)p->unit_ranks + (size_t)r->local) * (size_t)p->model.experts;
}

/*
 * Rows of expert group g of rank q from a source, the s-th of its ep group, added to out[expert of the group]. Even
 * routing deals a source's rows over ranks, the remainder from the source on, and then over a rank's experts: equal
 * batches load all ranks equally.
 */
static int64_t rows_from(fr_walk *w, const fr_rank *from, int s, int q, int g, int half, int32_t *out) {
    fr_planner *p = w->p;
    int first, end, start, stop, last, ep = p->layout.ep;
    int64_t rows = 0;
    range(p, q, g, &first, &end);
    if (!p->even) {
        const int32_t *counts = counts_of(p, from, half);
        for (int e = first; e < end; e++) {
            out[e - first] += counts[e];
            rows += counts[e];
        }
        return rows;
    }
    range(p, q, 0, &start, &stop);
    range(p, q, p->moe_groups - 1, &last, &stop);
    int64_t mine = fr_share(fr_tokens_here(w, from) * p->model.top_k, ep, (q - s + ep) % ep);
    for (int e = first; e < end; e++) {
        int32_t n = (int32_t)fr_share(mine, stop - start, e - start);
        out[e - first] += n;
        rows += n;
    }
    return rows;
}

void fr_bound_shapes(fr_walk *w, fr_moe *m, int mine) {
    const fr_model *model = &w->p->model;
    fr_shape s = {.kind = FR_OP_EXPERT_UP,
                  .precision = (uint8_t)w->p->layout.precision,
                  .m = m->bound,
                  .n = 2 * model->expert_width,
                  .k = model->hidden,
                  .experts = mine};
    m->up_bound = m->down_bound = 0;
    if (m->bound == 0) return;
    m->up_bound = fr_intern_shape(w, &s);
    s.kind = FR_OP_EXPERT_DOWN;
    s.n = model->hidden;
    s.k = model->expert_width;
    m->down_bound = fr_intern_shape(w, &s);
}

static void size_target(fr_walk *w, int base, int q, int g, int half) {
    fr_planner *p = w->p;
    fr_rank *group = member(w, base, 0), *r = p->folded ? group : group + q;
    fr_moe *m = &p->moe[half][r->local * p->moe_groups + g];
    int first, end;
    range(p, q, g, &first, &end);
    int64_t total = 0;
    int32_t *counts = p->landing;
    memset(counts, 0, (size_t)(end - first) * sizeof *counts);
    m->tokens = fr_tokens_here(w, r);
    for (int s = 0; s < p->layout.ep; s++) {
        fr_rank *from = p->folded ? group : group + s;
        fr_moe *source = &p->moe[half][from->local * p->moe_groups + g];
        int64_t tokens = fr_tokens_here(w, from);
        if (tokens == 0) continue;
        int64_t rows = rows_from(w, from, s, q, g, half, counts);
        int64_t copies = copies_to(w, q * p->moe_groups + g, end - first, tokens, rows);
        total += tokens;
        m->rows += rows;
        m->landed += copies;
        source->held += copies;
        if (s == q) continue;
        m->arrived += copies;
        source->sent += copies;
    }
    m->group_tokens = total;
    m->bound = total * fr_min_i64(p->model.top_k, end - first);
    fr_expert_shapes(w, counts, end - first, 1, &m->up, &m->down);
    fr_bound_shapes(w, m, end - first);
}

static void prepare(fr_walk *w, int half) {
    fr_planner *p = w->p;
    if (p->layout.ep == 1) {
        fr_prepare_own(w, half);
        return;
    }
    if (p->even && p->moe_for[half] == w->micro) return;
    p->moe_for[half] = w->micro;
    int ep = p->layout.ep, groups = p->moe_groups;
    for (int i = 0; i < p->unit_ranks * groups; i++) p->moe[half][i] = (fr_moe){0};
    if (!p->even) {
        for (int i = 0; i < p->unit_ranks; i++) {
            fr_rank *r = fr_stage_rank(p, w->unit, w->stage, i);
            fr_route(w, r, fr_tokens_here(w, r), half);
        }
        if (p->layout.exchange != FR_EXCHANGE_A2A_K && !agrs(p)) copies_of_layer(w);
    }
    int unit = p->folded ? 1 : p->unit_ranks;
    for (int base = 0; base < unit; base += ep)
        for (int q = 0; q < (p->folded ? 1 : ep); q++)
            for (int g = 0; g < groups; g++) size_target(w, base, q, g, half);
}

/* ---- emission -----------------------------------------------------------------------------------------------------*/

/* m rows leave over links, k arrive; the busier direction sets the time. */
static uint32_t exchange_shape(fr_walk *w, fr_rank *r, fr_op_kind kind, int64_t out, int64_t in) {
    fr_planner *p = w->p;
    bool fp8 = kind == FR_OP_ALLTOALL && p->layout.exchange == FR_EXCHANGE_A2A_FP8;
    int64_t hidden = p->model.hidden, row = fp8 ? hidden + 4 * fr_ceil_div(hidden, 128) : 2 * hidden;
    fr_shape s = {.kind = (uint8_t)kind,
                  .precision = (uint8_t)(fp8 ? FR_FP8 : FR_BF16),
                  .hosts = r->ep.hosts,
                  .ranks = r->ep.size,
                  .n = (int32_t)hidden,
                  .k = (int32_t)in,
                  .m = out,
                  .bytes = fr_max_i64(out, in) * row};
    return s.bytes ? fr_intern_shape(w, &s) : 0;
}

static fr_lane_kind comm(const fr_planner *p) {
    return overlapped(p) ? FR_LANE_COMM : FR_LANE_COMPUTE;
}

static fr_moe *moe_of(const fr_walk *w, const fr_rank *r, int g) {
    return &w->p->moe[w->half][r->local * w->p->moe_groups + g];
}

/* After an op of the compute lane: what stands on the comm lane may use its result. */
static uint32_t hand_over(fr_walk *w, fr_rank *r) {
    return overlapped(w->p) ? fr_raise(w, r->ready[w->half]) : 0;
}
static void take_over(fr_walk *w, fr_rank *r, uint32_t ready) {
    if (ready) fr_wait(w->f, r->ready[w->half], ready);
}
static void moved(fr_walk *w, fr_rank *r) {
    if (overlapped(w->p)) fr_raise(w, r->moved[w->half]);
}

/* Packs one copy per token and target: rows in and out. Its size is known to the device from its own top-k. */
static void pack(fr_walk *w, fr_rank *r, int64_t held, int64_t most) {
    fr_scratch *b = fr_scratch_of(w, r);
    const int64_t hidden = w->p->model.hidden, tokens = moe_of(w, r, 0)->tokens;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_PERMUTE, fr_pack_shape(w, held, tokens, hidden, r->ep.size), 1000);
    fr_read(w, b->route);
    fr_read(w, b->normed);
    fr_write(w, b->send);
    fr_write(w, b->route); /* where each copy lies */
    fr_late(w->f, b->held, fr_pack_shape(w, most, most, hidden, r->ep.size));
}

/* Tokens with their ids and weights (4 bytes each) to all ranks. */
static void gather_tokens(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t hidden = p->model.hidden, total = moe_of(w, r, 0)->group_tokens;
    fr_emit_router(w, r, moe_of(w, r, 0)->tokens, 1);
    uint32_t ready = hand_over(w, r);
    fr_put(w, r, comm(p), FR_OP_ALLGATHER,
           fr_collective_shape(w, FR_OP_ALLGATHER, &r->ep, total, hidden, total * (2 * hidden + 8 * p->model.top_k)),
           2);
    take_over(w, r, ready);
    fr_read(w, b->normed);
    fr_read(w, b->route);
    fr_write(w, b->recv);
    fr_join(w, &r->ep);
    moved(w, r);
}

static void dispatch(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    if (agrs(p)) {
        gather_tokens(w, r);
        return;
    }
    int64_t held = 0, tokens = moe_of(w, r, 0)->tokens;
    int64_t most = tokens * (p->layout.exchange == FR_EXCHANGE_A2A_K
                                 ? p->model.top_k
                                 : fr_min_i64(p->model.top_k, (int64_t)p->layout.ep * p->moe_groups));
    for (int g = 0; g < p->moe_groups; g++) held += moe_of(w, r, g)->held;
    fr_emit_router(w, r, tokens, 1);
    fr_fill_table(w->f, b->held); /* by the top-k op */
    pack(w, r, held, most);
    uint32_t ready = hand_over(w, r);
    /* Counts per expert (4 bytes each) travel first. */
    fr_put(w, r, comm(p), FR_OP_COUNTS,
           fr_collective_shape(w, FR_OP_COUNTS, &r->ep, p->model.experts, 0, 4 * (int64_t)p->model.experts), 0);
    take_over(w, r, ready);
    fr_read(w, b->route);
    fr_fill_table(w->f, b->counts);
    fr_join(w, &r->ep);
    for (int g = 0; g < p->moe_groups; g++) {
        const fr_moe *m = moe_of(w, r, g);
        fr_put(w, r, comm(p), FR_OP_ALLTOALL, exchange_shape(w, r, FR_OP_ALLTOALL, m->sent, m->arrived), g);
        fr_read(w, b->send);
        fr_write(w, p->moe_groups > 1 ? r->recv[g] : b->recv);
        fr_late(w->f, b->counts, exchange_shape(w, r, FR_OP_ALLTOALL, most, m->bound));
        fr_join(w, &r->ep);
        moved(w, r);
    }
}

/* All ids are looked through (4 bytes each, 8 a row kept, a histogram); which of them are this rank's is known then. */
static void sort_gathered(fr_walk *w, fr_rank *r, const fr_moe *m) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int64_t hidden = p->model.hidden, ids = m->group_tokens * p->model.top_k, fp8 = fr_fp8_row(w, hidden);
    int64_t bytes = ids * 4 + m->rows * 8 + 8 * (int64_t)p->model.experts,
            moved_row = 2 * hidden + (fp8 ? fp8 : 2 * hidden);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_SORT, fr_memory_shape(w, FR_OP_SORT, ids, p->model.experts, bytes), 0);
    fr_read(w, b->recv);
    fr_write(w, b->order);
    fr_fill_table(w->f, b->counts);
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_PERMUTE,
           fr_permute_shape(w, m->rows, m->group_tokens, hidden, m->rows * moved_row), 0);
    fr_read(w, b->order);
    fr_read(w, b->recv);
    fr_write(w, b->rows);
    fr_late(w->f, b->counts, fr_permute_shape(w, m->bound, m->bound, hidden, m->bound * moved_row));
}

/* One expert group: rows in expert order, both GEMMs, then the source-side sum: one row per copy that landed (agrs: one
 * per token of the group). */
static void compute(fr_walk *w, fr_rank *r, int g) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    const fr_moe *m = moe_of(w, r, g);
    uint32_t recv = p->moe_groups > 1 ? r->recv[g] : b->recv;
    int64_t row = 2 * (int64_t)p->model.hidden;
    if (agrs(p))
        sort_gathered(w, r, m);
    else
        fr_emit_sort(w, r, m, recv, g);
    fr_emit_grouped(w, r, m, g);
    int64_t out = agrs(p) ? m->group_tokens : m->rows ? m->landed : 0;
    fr_put(w, r, FR_LANE_COMPUTE, FR_OP_REDUCE,
           fr_memory_shape(w, FR_OP_REDUCE, out, p->model.hidden, (m->rows + out) * row), g);
    fr_read(w, b->out);
    fr_read(w, b->order);
    fr_read(w, recv); /* weights */
    fr_write(w, recv);
    if (!agrs(p))
        fr_late(w->f, b->counts, fr_memory_shape(w, FR_OP_REDUCE, m->bound, p->model.hidden, 2 * m->bound * row));
    uint32_t ready = hand_over(w, r);
    if (agrs(p)) {
        fr_put(w, r, comm(p), FR_OP_REDUCESCATTER,
               fr_collective_shape(w, FR_OP_REDUCESCATTER, &r->ep, out, p->model.hidden, out * row), 2);
    } else {
        int64_t most = m->tokens * fr_min_i64(p->model.top_k, p->layout.ep);
        uint32_t bound = exchange_shape(w, r, FR_OP_ALLTOALL_BACK, m->bound, most);
        fr_put(w, r, comm(p), FR_OP_ALLTOALL_BACK, exchange_shape(w, r, FR_OP_ALLTOALL_BACK, m->arrived, m->sent), g);
        fr_late(w->f, b->counts, bound);
    }
    take_over(w, r, ready);
    fr_read(w, recv);
    fr_write(w, agrs(p) ? b->delta : b->send);
    fr_join(w, &r->ep);
    moved(w, r);
}

static void combine(fr_walk *w, fr_rank *r, int64_t held, int64_t tokens) {
    fr_scratch *b = fr_scratch_of(w, r);
    fr_emit_combine(w, r, agrs(w->p) ? b->delta : b->send, held, tokens, FR_NONE);
}

static int64_t held_rows(const fr_walk *w, const fr_rank *r) {
    int64_t held = 0;
    if (agrs(w->p)) return moe_of(w, r, 0)->tokens;
    for (int g = 0; g < w->p->moe_groups; g++) held += moe_of(w, r, g)->held;
    return held;
}

static void experts(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    if (p->layout.ep == 1) {
        fr_experts_resident(w, r);
        return;
    }
    uint32_t before = overlapped(p) ? p->raised.value[r->moved[0]] : 0;
    dispatch(w, r);
    fr_emit_shared(w, r, moe_of(w, r, 0)->tokens, 1);
    for (int g = 0; g < p->moe_groups; g++) {
        if (overlapped(p)) fr_next_waits(r, r->moved[0], before + 1 + (uint32_t)g);
        compute(w, r, g);
    }
    if (overlapped(p)) fr_next_waits(r, r->moved[0], p->raised.value[r->moved[0]]);
    combine(w, r, held_rows(w, r), moe_of(w, r, 0)->tokens);
}

/* ---- two-batch overlap --------------------------------------------------------------------------------------------*/

static void due_combine(fr_walk *w, fr_rank *r) {
    if (!r->due[w->half]) return;
    r->due[w->half] = false;
    int layer = w->layer;
    w->layer = layer == FR_NO_LAYER ? w->end - 1 : layer - 1;
    fr_next_waits(r, r->moved[w->half], w->p->raised.value[r->moved[w->half]]);
    combine(w, r, r->due_held[w->half], r->due_tokens[w->half]);
    w->layer = layer;
}

/* Last combines of a stage, where no next layer does them. */
void fr_tbo_flush(fr_walk *w, fr_rank *r) {
    if (w->p->layout.overlap == FR_OVERLAP_TBO && w->p->layout.ep > 1) due_combine(w, r);
}

static void tbo_half(fr_walk *w, fr_rank *r, bool moe) {
    fr_planner *p = w->p;
    due_combine(w, r);
    if (p->layout.tp > 1)
        fr_attention_tp(w, r);
    else
        fr_attention_dp(w, r);
    if (!moe) {
        fr_dense_layer(w, r);
        fr_add_residual(w, r);
        return;
    }
    fr_emit_norm(w, r, 1);
    if (p->layout.ep == 1) {
        fr_experts_resident(w, r);
        return;
    }
    dispatch(w, r);
    fr_emit_shared(w, r, moe_of(w, r, 0)->tokens, 1);
}

/*
 * Compute lane of a layer: [combine A of the layer before] attention A, [combine B] attention B, experts A, experts B;
 * dispatch A travels beside attention B, dispatch B beside experts A, combine A beside experts B, combine B beside
 * attention A of the next layer.
 */
void fr_layer_tbo(fr_walk *w) {
    fr_planner *p = w->p;
    int micro = w->micro;
    bool moe = fr_model_is_moe_layer(&p->model, w->layer);
    for (int h = 0; h < 2 && moe; h++) {
        w->half = h;
        w->micro = micro + h;
        prepare(w, h);
    }
    for (int i = 0; i < p->unit_ranks; i++) {
        fr_rank *r = fr_stage_rank(p, w->unit, w->stage, i);
        if (!w->first_layer) fr_host_begin(w, r);
        for (w->half = 0; w->half < 2; w->half++) {
            w->micro = micro + w->half;
            tbo_half(w, r, moe);
        }
        for (w->half = 0; w->half < 2 && moe && p->layout.ep > 1; w->half++) {
            w->micro = micro + w->half;
            fr_next_waits(r, r->moved[w->half], p->raised.value[r->moved[w->half]]);
            compute(w, r, 0);
            r->due[w->half] = true;
            r->due_held[w->half] = held_rows(w, r);
            r->due_tokens[w->half] = moe_of(w, r, 0)->tokens;
        }
        w->half = 0;
        w->micro = micro;
        fr_host_end(w, r);
    }
}

const fr_experts_part fr_experts_ep = {
    .open = open, .enter = fr_layer_nothing, .prepare = prepare, .experts = experts, .leave = fr_layer_nothing};

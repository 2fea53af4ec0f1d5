/*
 * Launchers of the MoE block: router, top-k, sort, permute, grouped products, sums. Where the tokens of a rank's
 * experts come from is the layout's matter:
 *
 *     own        the rank's own tokens, ids and weights in the route buffer (experts local or gathered; tp with dp = 1)
 *     gathered   all tokens of the group lie in recv, with ids and weights behind them (tp with dp > 1; ep by agrs)
 *     arrived    copies of tokens lie in recv likewise; only the device knows how many (ep by all-to-all; asap, where
 * the results go another way: ops_links.c)
 */
#include "engine/cuda/links.h"
#include "engine/cuda/ops.h"
#include "engine/cuda/pools.h"
#include "kernels/exchange.h"

typedef struct {
    int64_t tokens;         /* at most */
    const int32_t *arrived; /* on the device: how many there are; NULL: `tokens` */
    int k;                  /* slots of each */
    int first, end, part;   /* experts that take them here */
} source;

static bool travels(const fr_device_rank *r) {
    return (r->layout->experts == FR_EXP_EP && r->layout->ep > 1) || r->links;
}
static bool gathered(const fr_device_rank *r) {
    return travels(r) ? r->layout->exchange == FR_EXCHANGE_AGRS : r->layout->experts == FR_EXP_TP && r->layout->dp > 1;
}

fr_route_view fr_route_of(const fr_device_rank *r, const void *route, int64_t tokens) {
    const int64_t slots = tokens * r->model->top_k;
    int32_t *ids = (int32_t *)(uintptr_t)route;
    return (fr_route_view){.ids = ids, .weights = (float *)(void *)(ids + slots), .row_of_copy = ids + 2 * slots};
}

fr_recv_view fr_recv_of(const fr_device_rank *r, const void *recv) {
    const fr_activations *a = &r->room;
    fr_bf16 *rows = (fr_bf16 *)(uintptr_t)recv;
    int32_t *ids = (int32_t *)(void *)(rows + a->arriving * r->model->hidden);
    return (fr_recv_view){.rows = rows, .ids = ids, .weights = (float *)(void *)(ids + a->arriving * a->slots)};
}

int fr_call_half(const fr_call *c) {
    return c->r->layout->overlap == FR_OVERLAP_TBO || c->r->links ? c->op->micro % 2 : 0;
}

int64_t fr_call_group_tokens(const fr_call *c) {
    const fr_device_rank *r = c->r;
    if (r->links) return fr_rank_tokens(r, r->rank, c->op->micro);
    const int size = travels(r) ? r->layout->ep : r->layout->tp * r->layout->dp;
    const int first = r->rank - (travels(r) ? r->place.ep_index : r->place.local);
    int64_t tokens = 0;
    for (int q = first; q < first + size; q++) tokens += fr_rank_tokens(r, q, c->op->micro);
    return tokens;
}

static source source_of(const fr_call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    const int parts = fr_layout_expert_parts(r->layout);
    source s = {.tokens = c->b->held, .k = m->top_k, .end = m->experts};
    if (travels(r) || gathered(r)) s.tokens = fr_call_group_tokens(c);
    if (!travels(r)) return s;
    s.part = parts > 1 ? c->op->sub : 0;
    s.first = (int)((int64_t)m->experts * (r->place.ep_index * parts + s.part) / (r->layout->ep * parts));
    s.end = (int)((int64_t)m->experts * (r->place.ep_index * parts + s.part + 1) / (r->layout->ep * parts));
    if (gathered(r)) return s;
    s.k = r->room.slots;
    s.tokens *= s.k < m->top_k ? m->top_k : 1; /* a copy for each expert */
    s.arrived = r->links ? fr_links_landed(r->links, r->micro_base / r->place.batches, fr_call_half(c))
                         : r->landed + fr_call_half(c) * FR_MOST_PARTS + s.part;
    return s;
}

/* Where the rows of each expert of this part begin: [experts of the part + 1]. */
static int32_t *offsets(const fr_call *c, const source *s) {
    const fr_device_rank *r = c->r;
    const int64_t layer = (int64_t)(r->micro_base + c->op->micro) * r->layers + c->op->layer - r->shard.first_layer;
    return r->offsets + layer * fr_rank_offsets(r) + s->first + s->part;
}

fr_status fr_launch_router(fr_call *c) {
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->held));
    return fr_call_gemm(c, c->w->router, c->shape->m, true);
}

fr_status fr_launch_topk(fr_call *c) {
    const fr_device_rank *r = c->r;
    const fr_model *m = r->model;
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->held));
    const fr_route_view v = fr_route_of(r, c->out[0], c->b->held);
    const float *bias = r->weights->router_bias + (int64_t)c->op->layer * m->experts;
    return fr_call_done(
        c, fr_k_router(c->in[0], bias, v.ids, v.weights, c->b->held, m->experts, m->top_k, m->renormalise, c->stream),
        "fr_k_router");
}

/* The order buffer: the row of each slot [tokens k], then the token of each row. */
fr_status fr_launch_sort(fr_call *c) {
    fr_device_rank *r = c->r;
    const source s = source_of(c);
    FR_TRY(fr_call_expect(c, 1, 1, s.arrived ? 0 : c->shape->m, s.arrived ? 0 : s.tokens * s.k));
    const bool own = !gathered(r) && !travels(r);
    const int32_t *ids = own ? fr_route_of(r, c->in[0], s.tokens).ids : fr_recv_of(r, c->in[0]).ids;
    int32_t *row_of_slot = c->out[0];
    return fr_call_done(c,
                        fr_k_route_arrived(ids, s.arrived, s.tokens, s.k, s.first, s.end - s.first, offsets(c, &s),
                                           row_of_slot, row_of_slot + s.tokens * s.k, r->route_workspace, c->stream),
                        "fr_k_route");
}

/* Rows that the experts' buffers are laid out for. Offload by expert: an op is one expert's run of them. */
static int64_t rows_of(const fr_call *c, const source *s) {
    return c->r->shard.gathers || c->r->shard.on_host ? s->tokens * s->k : c->shape->m;
}

/* Reads the order, then the tokens. */
fr_status fr_launch_permute(fr_call *c) {
    const source s = source_of(c);
    const bool known = c->op->late == FR_NONE;
    FR_TRY(fr_call_expect(c, 2, 1, known ? c->shape->m : 0, known ? s.tokens * s.k : 0));
    if (fr_call_fp8(c)) {
        const int64_t hidden = c->r->model->hidden;
        const fr_fp8_rows to = fr_fp8_at(c->out[0], rows_of(c, &s), hidden);
        if (travels(c->r) && c->r->layout->exchange == FR_EXCHANGE_A2A_FP8) {
            const fr_k_exchange x = {.fp8 = true};
            return fr_call_done(c,
                                fr_k_permute_quantised(c->in[1], fr_k_exchange_row(&x, hidden), c->in[0], s.arrived,
                                                       to.q, to.scale, to.pitch, s.tokens, s.k, hidden, c->stream),
                                "fr_k_permute_quantised");
        }
        return fr_call_done(
            c,
            fr_k_permute_fp8(c->in[1], c->in[0], s.arrived, to.q, to.scale, to.pitch, s.tokens, s.k, hidden, c->stream),
            "fr_k_permute_fp8");
    }
    return fr_call_done(
        c,
        fr_k_permute_arrived(c->in[1], c->in[0], s.arrived, c->out[0], s.tokens, s.k, c->r->model->hidden, c->stream),
        "fr_k_permute");
}

_Static_assert((int)FR_TILE_SINGLE == FR_K_GROUPED_SINGLE && (int)FR_TILE_PAIR == FR_K_GROUPED_CLUSTER &&
                   (int)FR_TILE_SINGLE_SKEW == FR_K_GROUPED_SINGLE_SKEW &&
                   (int)FR_TILE_PAIR_SKEW == FR_K_GROUPED_CLUSTER_SKEW,
               "a tile of the cost model is a variant of the kernel");

/* What the cost model says of the shape, by the rows that its experts are expected to have; asked once a shape: layers
 * and forwards mostly repeat it. All variants give the same bits. */
static int variant(fr_call *c) {
    fr_device_rank *r = c->r;
    const fr_shape *s = c->shape;
    const uint32_t held = r->tiles_count < FR_RANK_TILES ? r->tiles_count : FR_RANK_TILES;
    for (uint32_t i = 0; i < held; i++)
        if (r->tiles[i].m == s->m && r->tiles[i].n == s->n && r->tiles[i].k == s->k) return r->tiles[i].variant;
    const fr_shape *expected = fr_op_shape(c->f, c->op); /* a late op's bound says nothing of single experts */
    if (expected->kind == FR_OP_NONE) expected = s;
    const fr_tile tile = r->cost ? fr_cost_tile(r->cost, expected, c->f->pairs) : FR_TILE_NONE;
    const int v = tile == FR_TILE_NONE ? fr_k_grouped_default(expected->m, expected->experts) : (int)tile;
    const uint32_t at = r->tiles_count++ % FR_RANK_TILES;
    r->tiles[at].m = s->m;
    r->tiles[at].n = s->n;
    r->tiles[at].k = s->k;
    r->tiles[at].variant = v;
    return v;
}

/* `w`, `scale`: of the rank's own experts, which a part takes a run of. */
static fr_status grouped(fr_call *c, const fr_bf16 *w, const float *scale, bool swiglu) {
    const source s = source_of(c);
    const bool known = c->op->late == FR_NONE;
    FR_TRY(fr_call_expect(c, 1, 1, known ? c->shape->m : 0, known ? s.tokens * s.k : 0));
    const fr_expert_run *run = &c->r->weights->run;
    const int64_t before = travels(c->r) ? s.first - c->r->shard.expert_first : 0;
    fr_k_grouped_args a = {.a = c->in[0],
                           .b = (const fr_bf16 *)(const void *)((const char *)w + before * run->bytes[!swiglu]),
                           .c = c->out[0],
                           .offsets = offsets(c, &s),
                           .counter = c->r->counter,
                           .rows = rows_of(c, &s),
                           .E = s.end - s.first,
                           .N = c->shape->n,
                           .K = c->shape->k,
                           .swiglu = swiglu};
    const float *own_scale = NULL;
    if (scale) scale += before * run->bytes[2 + !swiglu] / (int64_t)sizeof *scale;
    if (c->r->shard.gathers || c->r->shard.on_host)
        FR_TRY(fr_pools_weights(c->r->pools, c->r->issue, c->f, c->op, &a, &scale, &own_scale, c->err));
    if (fr_call_fp8(c)) return fr_call_grouped_fp8(c, &a, scale, own_scale);
    return fr_call_done(c, fr_k_grouped_gemm_variant(&a, variant(c), c->stream), "fr_k_grouped_gemm");
}

fr_status fr_launch_expert_up(fr_call *c) {
    return grouped(c, c->w->gate_up, c->w->gate_up_scale, true);
}
fr_status fr_launch_expert_down(fr_call *c) {
    return grouped(c, c->w->down, c->w->down_scale, false);
}

/* y: rows to add up for each of `tokens`; a second buffer written takes the next layer's normed rows. */
static fr_status sum(fr_call *c, const void *y, const int32_t *row_of_slot, const float *weights,
                     const fr_bf16 *residual, int64_t tokens, int k) {
    const fr_device_rank *r = c->r;
    const int64_t hidden = r->model->hidden;
    if (c->outs < 2)
        return fr_call_done(
            c, fr_k_reduce(y, row_of_slot, weights, NULL, residual, c->out[0], tokens, k, hidden, c->stream),
            "fr_k_reduce");
    if (fr_call_fp8(c)) return fr_call_combine_fp8(c, y, row_of_slot, weights, residual, tokens, k);
    return fr_call_done(c,
                        fr_k_combine(y, row_of_slot, weights, residual, c->out[0],
                                     fr_weights_layer(r->weights, c->op->layer + 1)->input_norm, c->out[1],
                                     (float)r->model->norm_eps, tokens, k, hidden, c->stream),
                        "fr_k_combine");
}

/*
 * The weighted sum, as fr_emit_combine says: reads the rows, where the sort put them, the weights (of own tokens in
 * route, else behind the tokens in recv), the residual stream where it writes that. Experts that travelled bring sums:
 * back in `send`, one of each copy (route says which), or in delta.
 */
fr_status fr_launch_combine(fr_call *c) {
    const fr_device_rank *r = c->r;
    const source s = source_of(c);
    const int64_t held = c->b->held;
    if (r->links) return fr_launch_links_combine(c);
    if (travels(r) && gathered(r)) {
        FR_TRY(fr_call_expect(c, 3, 1, c->shape->m, held));
        return sum(c, c->in[0], NULL, NULL, c->in[2], held, 1);
    }
    if (travels(r)) {
        FR_TRY(fr_call_expect(c, 3, 1, c->shape->m, held));
        const int copies =
            r->room.slots < r->model->top_k ? r->model->top_k : r->layout->ep * fr_layout_expert_parts(r->layout);
        return sum(c, c->in[0], fr_route_of(r, c->in[1], held).row_of_copy, NULL, c->in[2], held, copies);
    }
    FR_TRY(fr_call_expect(c, 3, 1, c->shape->m, s.tokens));
    const float *weights = gathered(r) ? fr_recv_of(r, c->in[2]).weights : fr_route_of(r, c->in[2], s.tokens).weights;
    const fr_bf16 *residual = c->ins > 3 ? c->in[3] : NULL;
    return sum(c, c->in[0], c->in[1], weights, residual, s.tokens, s.k);
}

/* sub 15: a block's result into the residual stream. Else the sums of one part's rows over the tokens that they came
 * from, in recv. */
fr_status fr_launch_reduce(fr_call *c) {
    const fr_device_rank *r = c->r;
    const source s = source_of(c);
    if (c->op->layer == FR_NO_LAYER || c->op->sub == 15) {
        FR_TRY(fr_call_expect(c, 2, 1, c->shape->m, c->b->held));
        return sum(c, c->in[0], NULL, NULL, c->in[1], c->b->held, 1);
    }
    FR_TRY(fr_call_expect(c, 3, 1, s.arrived ? 0 : c->shape->m, s.arrived ? 0 : s.tokens));
    const fr_recv_view v = fr_recv_of(r, c->in[2]);
    return fr_call_done(
        c,
        fr_k_reduce(c->in[0], c->in[1], v.weights, s.arrived, NULL, v.rows, s.tokens, s.k, r->model->hidden, c->stream),
        "fr_k_reduce");
}

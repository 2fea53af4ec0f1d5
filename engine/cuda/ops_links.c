/* Launchers of what asap's attention ranks and expert ranks send each other (engine/strategy/asap.c): pointers and
 * holds of an op, for links. */
#include "engine/cuda/links.h"
#include "engine/cuda/ops.h"

/* The pool that the op uses in this way, and the hold; FR_NONE = none. */
static uint32_t slot_of(const fr_call *c, fr_use kind, uint32_t *hold) {
    const fr_ref *use = fr_op_uses(c->f, c->op);
    for (int i = 0; i < c->op->uses; i++) {
        if (use[i].use != (uint32_t)kind || c->plan->buffers[use[i].target].kind != FR_BUF_SLOT) continue;
        *hold = use[i].value;
        return use[i].target;
    }
    return FR_NONE;
}

static fr_links_batch batch_of(const fr_call *c, const void *route) {
    const fr_route_view v = fr_route_of(c->r, route, c->b->held);
    return (fr_links_batch){.half = fr_call_half(c),
                            .tokens = c->b->held,
                            .ids = v.ids,
                            .weights = v.weights,
                            .row_of_copy = v.row_of_copy};
}

/* Reads route and normed, writes send and, in route, where each copy's result will lie. */
fr_status fr_launch_links_pack(fr_call *c) {
    FR_TRY(fr_call_expect(c, 2, 1, 0, 0));
    fr_links_batch b = batch_of(c, c->in[0]);
    b.normed = c->in[1];
    b.send = c->out[0];
    return fr_call_done(c, fr_links_pack(c->r->links, &b, c->stream), "packing for expert ranks");
}

/* Attention: reads send and route. Expert: reads the rows that it summed; peer: whose. */
fr_status fr_launch_push(fr_call *c) {
    uint32_t hold;
    if (!c->r->links || slot_of(c, FR_USE_ACQUIRE, &hold) == FR_NONE)
        return fr_fail(c->err, FR_FAILED, "a push that this program does not know");
    if (!c->r->shard.attention) {
        FR_TRY(fr_call_expect(c, 1, 0, 0, 0));
        return fr_call_done(
            c,
            fr_links_give_back(c->r->links, fr_recv_of(c->r, c->in[0]).rows, c->op->peer, fr_call_half(c), c->stream),
            "pushing results");
    }
    FR_TRY(fr_call_expect(c, 2, 0, 0, 0));
    fr_links_batch b = batch_of(c, c->in[1]);
    b.send = (fr_bf16 *)(uintptr_t)c->in[0];
    return fr_call_done(c, fr_links_push(c->r->links, &b, c->op->peer, hold, c->stream), "pushing tokens");
}

/* Whether no rank of the group before `t` has tokens of this batch: their drains have nothing to do. */
static bool is_first(const fr_call *c, int t) {
    const int64_t tokens = fr_call_group_tokens(c);
    for (int i = 0; i < t; i++)
        if (fr_share(tokens, c->r->layout->tp, i)) return false;
    return true;
}

fr_status fr_launch_drain(fr_call *c) {
    uint32_t hold;
    const uint32_t payload = slot_of(c, FR_USE_READ, &hold);
    FR_TRY(fr_call_expect(c, 0, 1, 0, 0));
    if (payload == FR_NONE) return fr_fail(c->err, FR_FAILED, "a drain without a payload");
    const fr_recv_view v = fr_recv_of(c->r, c->out[0]);
    const fr_links_recv to = {v.rows, v.ids, v.weights};
    return fr_call_done(
        c, fr_links_drain(c->r->links, payload, hold, fr_call_half(c), is_first(c, c->op->sub), &to, c->stream),
        "taking tokens in");
}

/* Reads route and the residual stream, into which the sums of all expert ranks are added in their order. */
fr_status fr_launch_links_combine(fr_call *c) {
    FR_TRY(fr_call_expect(c, 2, 1, c->shape->m, c->b->held));
    const int32_t *row_of_copy = fr_route_of(c->r, c->in[0], c->b->held).row_of_copy;
    return fr_call_done(c,
                        fr_k_reduce(fr_links_results(c->r->links, fr_call_half(c)), row_of_copy, NULL, NULL, c->in[1],
                                    c->out[0], c->b->held, c->r->layout->ep, c->r->model->hidden, c->stream),
                        "fr_k_reduce");
}

/* The strategies by name, and what a rank moves. */
#include "engine/strategy/strategy.h"

#include <stddef.h>

static const fr_strategy strategies[] = {
    {"dp", "whole model on every GPU, batches side by side; the bound that others are held against", "nothing",
     "nowhere"},
    {"tp", "attention split by heads, experts by width", "2 all-reduces of tokens x hidden per layer",
     "at each collective"},
    {"ep", "attention replicated (or tp groups), whole experts on different GPUs",
     "dispatch and combine, one copy per token and target GPU (or all-gather and reduce-scatter)",
     "twice a layer, for the slowest GPU; skew counts"},
    {"pp", "layers split into stages, micro-batches or chunks flow through", "tokens x hidden per stage boundary",
     "bubbles at the start and the end of the flow"},
    {"asyncep", "experts split, each layer's full set gathered a layer ahead",
     "weights: (P-1)/P of a layer's experts per GPU and layer", "only where a gather takes longer than a layer"},
    {"dwdp", "as asyncep: one-sided pulls of the remote experts, local ones used in place",
     "weights: the remote experts of every layer", "per GPU, never for another GPU"},
    {"offload",
     "experts in host memory, streamed through S slots or a layer ahead (with --ep: each GPU streams a part)",
     "weights over PCIe", "where PCIe is slower than compute"},
    {"asap", "attention groups and expert GPUs apart, items taken as they come",
     "activations, one-sided, with flags and slots", "only for own data"},
};

const fr_strategy *fr_strategy_at(int index) {
    if (index < 0 || (size_t)index >= sizeof strategies / sizeof *strategies) return NULL;
    return &strategies[index];
}

/*
 * Bytes of one op over links, from its rank's point of view (P ranks, ring or direct algorithms that move each byte
 * once): all-reduce of n bytes            2 (P-1)/P n out and in all-gather, reduce-scatter of n  (P-1)/P n out and in
 *   all-to-all                       m rows out, k rows in
 *   send, recv; pull, push           the message
 */
static void add_op(const fr_shape *s, const fr_op *op, int rank, fr_traffic *ranks) {
    double share = s->ranks > 1 ? (double)(s->ranks - 1) / s->ranks : 0;
    int64_t row = s->precision == FR_FP8 ? s->n + 4 * fr_ceil_div(s->n, 128) : 2 * (int64_t)s->n;
    int64_t out = 0, in = 0;
    fr_traffic *t = &ranks[rank];
    t->flops += s->flops;
    switch ((fr_op_kind)s->kind) {
    case FR_OP_ALLREDUCE:
        out = in = (int64_t)(2 * share * (double)s->bytes + 0.5);
        break;
    case FR_OP_ALLGATHER:
    case FR_OP_REDUCESCATTER:
    case FR_OP_GATHER_WEIGHTS:
        out = in = (int64_t)(share * (double)s->bytes + 0.5);
        break;
    case FR_OP_ALLTOALL:
    case FR_OP_ALLTOALL_BACK:
        out = s->m * row;
        in = (int64_t)s->k * row;
        break;
    case FR_OP_SEND:
    case FR_OP_PUSH:
        out = s->bytes;
        break;
    case FR_OP_RECV:
    case FR_OP_PULL:
        in = s->bytes;
        break;
    case FR_OP_H2D:
    case FR_OP_D2H:
        t->host += s->bytes;
        return;
    default:
        return;
    }
    t->sent += out;
    t->received += in;
    if ((s->kind != FR_OP_PULL && s->kind != FR_OP_PUSH) || op->peer < 0) return;
    ranks[op->peer].sent += in; /* the other end of a one-sided copy */
    ranks[op->peer].received += out;
}

void fr_fragment_traffic(const fr_plan *p, const fr_fragment *f, fr_traffic *ranks) {
    for (uint32_t i = 0; i < f->ops_count; i++)
        add_op(&f->shapes[f->ops[i].shape], &f->ops[i], p->lanes[f->ops[i].lane].rank, ranks);
}

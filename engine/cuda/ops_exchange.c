/*
 * Launchers of what travels between ranks: pointers and rows of an op, for transport.
 *
 *     sub 0, 1       of attention split by heads: all tokens of the tp group in one buffer, each rank's part of them at
 *                    its start
 *     sub 2          around the experts: normed tokens with ids and weights into recv, partial sums back into delta
 *     sub 1000       packing for an exchange (a PERMUTE, but its tables are transport's)
 *     send, recv     the residual stream of a micro-batch
 */
#include "engine/cuda/ops.h"
#include "engine/cuda/pools.h"
#include "engine/cuda/transport/transport.h"

enum { MOST_MEMBERS = 64 };

typedef struct {
    fr_collective c;
    int64_t rows[MOST_MEMBERS];
    int members, me;
    int64_t before; /* rows of the members before this rank */
} meeting;

/* The op without its arrays; rows[i]: what member i holds. */
static fr_status meet(fr_call *c, meeting *m) {
    const fr_group *g = c->op->group != FR_NONE ? &c->plan->groups[c->op->group] : NULL;
    *m = (meeting){.c = {.kind = (fr_op_kind)c->op->kind,
                         .id = fr_op_id(c->plan, c->f, c->op),
                         .group = c->op->group,
                         .peer = c->op->peer,
                         .gather = c->shape->transport,
                         .rows = m->rows}};
    if (!c->r->transport) return fr_fail(c->err, FR_FAILED, "no transport was opened");
    if (!g) return FR_OK;
    if (g->count > MOST_MEMBERS) return fr_fail(c->err, FR_FAILED, "a group of %d ranks", g->count);
    m->members = g->count;
    for (int i = 0; i < g->count; i++) {
        const int q = c->plan->members[g->first + (uint32_t)i];
        m->rows[i] = fr_rank_tokens(c->r, q, c->op->micro);
        if (q == c->r->rank) m->me = i;
        if (q < c->r->rank) m->before += m->rows[i];
    }
    return FR_OK;
}

static fr_status launch(fr_call *c, const meeting *m) {
    return fr_transport_launch(c->r->transport, &m->c, c->stream, c->err);
}

static int64_t row_bytes(const fr_call *c) {
    return 2 * (int64_t)c->r->model->hidden;
}

static fr_status copy_rows(fr_call *c, char *to, const char *from, int64_t rows) {
    if (to == from || rows == 0) return FR_OK;
    return fr_call_done(c,
                        cudaMemcpyAsync(to, from, (size_t)(rows * row_bytes(c)), cudaMemcpyDeviceToDevice, c->stream),
                        "cudaMemcpyAsync");
}

/* Whole rows on all members: in place. */
static fr_status allreduce(fr_call *c) {
    meeting m;
    FR_TRY(meet(c, &m));
    FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->tokens));
    m.rows[0] = c->b->tokens;
    m.c.arrays = 1;
    m.c.in[0] = c->in[0];
    m.c.out[0] = c->out[0];
    m.c.row_bytes[0] = row_bytes(c);
    return launch(c, &m);
}

/*
 * One buffer read and written: the own rows move from its start to their place. They overlap with it only where the
 * members before hold fewer rows than this one, which shares never do (fr_share).
 */
static fr_status gather_part(fr_call *c, meeting *m) {
    char *all = c->out[0], *own = all + m->before * row_bytes(c);
    FR_TRY(copy_rows(c, own, all, m->rows[m->me]));
    m->c.arrays = 1;
    m->c.in[0] = own;
    m->c.out[0] = all;
    m->c.row_bytes[0] = row_bytes(c);
    return launch(c, m);
}

static fr_status allgather(fr_call *c) {
    meeting m;
    FR_TRY(meet(c, &m));
    if (c->op->sub != 2) {
        FR_TRY(fr_call_expect(c, 1, 1, c->shape->m, c->b->tokens));
        return gather_part(c, &m);
    }
    FR_TRY(fr_call_expect(c, 2, 1, 0, 0));
    const fr_route_view route = fr_route_of(c->r, c->in[1], c->b->held);
    const fr_recv_view recv = fr_recv_of(c->r, c->out[0]);
    m.c.arrays = 3;
    m.c.in[0] = c->in[0];
    m.c.in[1] = route.ids;
    m.c.in[2] = route.weights;
    m.c.out[0] = recv.rows;
    m.c.out[1] = recv.ids;
    m.c.out[2] = recv.weights;
    m.c.row_bytes[0] = row_bytes(c);
    m.c.row_bytes[1] = m.c.row_bytes[2] = 4 * (int64_t)c->r->model->top_k;
    return launch(c, &m);
}

/* In place the own rows come out at their place, and then go to the start. */
static fr_status reducescatter(fr_call *c) {
    meeting m;
    FR_TRY(meet(c, &m));
    FR_TRY(fr_call_expect(c, 1, 1, 0, 0));
    const bool same = c->in[0] == c->out[0];
    char *own = same ? (char *)c->out[0] + m.before * row_bytes(c) : c->out[0];
    m.c.arrays = 1;
    m.c.in[0] = c->in[0];
    m.c.out[0] = own;
    m.c.row_bytes[0] = row_bytes(c);
    FR_TRY(launch(c, &m));
    return copy_rows(c, c->out[0], own, m.rows[m.me]);
}

static fr_status pair(fr_call *c) {
    meeting m;
    const bool send = c->op->kind == FR_OP_SEND;
    FR_TRY(meet(c, &m));
    FR_TRY(fr_call_expect(c, send, !send, c->shape->m, c->b->held));
    m.rows[0] = c->b->held;
    m.c.arrays = 1;
    m.c.in[0] = c->in[0];
    m.c.out[0] = c->out[0];
    m.c.row_bytes[0] = row_bytes(c);
    return launch(c, &m);
}

/* All experts of a layer into a slot: one array for each part of a run, a row being an expert. */
static fr_status gather_weights(fr_call *c) {
    meeting m;
    FR_TRY(meet(c, &m));
    const fr_group *g = &c->plan->groups[c->op->group];
    for (int i = 0; i < m.members; i++) {
        fr_shard s;
        fr_shard_of(c->r->layout, c->r->model, c->plan->members[g->first + (uint32_t)i], &s);
        m.rows[i] = s.expert_end - s.expert_first;
    }
    m.c.arrays = fr_pools_arrays(c->r->pools, c->r->issue, c->f, c->op, m.c.in, m.c.out, m.c.row_bytes);
    if (m.c.arrays == 0) return fr_fail(c->err, FR_FAILED, "a gather without a slot to gather into");
    return launch(c, &m);
}

/* ---- exchanges ----------------------------------------------------------------------------------------------------*/

/* The buffer that the op reads or writes: the n-th such use. */
static uint32_t used(const fr_call *c, fr_use kind) {
    const fr_ref *use = fr_op_uses(c->f, c->op);
    for (int i = 0; i < c->op->uses; i++)
        if (use[i].use == (uint32_t)kind && fr_rank_buffer(c->r, c->plan, use[i].target, use[i].value))
            return use[i].target;
    return FR_NONE;
}

static fr_status exchange(fr_call *c) {
    meeting m;
    FR_TRY(meet(c, &m));
    const bool back = c->op->kind == FR_OP_ALLTOALL_BACK, moves = c->op->kind != FR_OP_COUNTS;
    m.c.dispatch = (fr_dispatch){.half = fr_call_half(c),
                                 .part = moves ? c->op->sub : 0,
                                 .tokens = c->b->held,
                                 .capacity = c->r->room.arriving,
                                 .send = moves ? used(c, back ? FR_USE_WRITE : FR_USE_READ) : FR_NONE,
                                 .recv = moves ? used(c, back ? FR_USE_READ : FR_USE_WRITE) : FR_NONE,
                                 .landed = c->r->landed + fr_call_half(c) * FR_MOST_PARTS};
    return launch(c, &m);
}

/* Reads route and normed, writes send and, in route, where each copy lies. */
fr_status fr_launch_pack(fr_call *c) {
    meeting m;
    if (c->r->links) return fr_launch_links_pack(c);
    FR_TRY(meet(c, &m));
    FR_TRY(fr_call_expect(c, 2, 1, 0, 0));
    const fr_route_view route = fr_route_of(c->r, c->in[0], c->b->held);
    m.c.dispatch = (fr_dispatch){.half = fr_call_half(c),
                                 .tokens = c->b->held,
                                 .capacity = c->r->room.arriving,
                                 .normed = c->in[1],
                                 .ids = route.ids,
                                 .weights = route.weights,
                                 .row_of_copy = route.row_of_copy,
                                 .send = used(c, FR_USE_WRITE),
                                 .recv = FR_NONE};
    return fr_transport_pack(c->r->transport, &m.c, c->stream, c->err);
}

fr_status fr_launch_collective(fr_call *c) {
    switch (c->op->kind) {
    case FR_OP_ALLREDUCE:
        return allreduce(c);
    case FR_OP_ALLGATHER:
        return allgather(c);
    case FR_OP_REDUCESCATTER:
        return reducescatter(c);
    case FR_OP_SEND:
    case FR_OP_RECV:
        return pair(c);
    case FR_OP_GATHER_WEIGHTS:
        return gather_weights(c);
    case FR_OP_COUNTS:
    case FR_OP_ALLTOALL:
    case FR_OP_ALLTOALL_BACK:
        return exchange(c);
    default:
        return fr_fail(c->err, FR_FAILED, "ops of kind %s are not executed yet", fr_op_name((fr_op_kind)c->op->kind));
    }
}

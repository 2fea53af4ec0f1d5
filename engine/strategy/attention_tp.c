/*
 * Attention split by heads over a tp group (Megatron-LM, arXiv 1909.08053): every rank projects, attends and projects
 * back its heads, and partial results are summed over the group:
 *
 *     whole tokens between blocks   all-reduce of tokens x hidden after the output projection
 *     sliced (experts by ep, or by width with dp > 1)   reduce-scatter after it, all-gather before the next projection
 *                                   (sequence parallelism, arXiv 2205.05198): the same bytes, and each rank routes its
 *                                   own part of the tokens, so no copy is dispatched twice
 *
 * In fp8 the gathered rows are quantised behind the all-gather, where their scales lie as products read them: those of
 * a part of the tokens stand apart (kernels/fp8.h).
 */
#include "engine/strategy/planner.h"

static void collective(fr_walk *w, fr_rank *r, fr_op_kind kind, uint32_t buffer, int sub) {
    int64_t tokens = fr_work_of(w, r)->tokens, hidden = w->p->model.hidden;
    fr_put(w, r, FR_LANE_COMPUTE, kind, fr_collective_shape(w, kind, &r->tp, tokens, hidden, tokens * hidden * 2), sub);
    fr_read(w, buffer);
    fr_write(w, buffer);
    fr_join(w, &r->tp);
}

/* The normed rows of all tokens, which the next product reads; what the last block left in delta is in the stream. */
static uint32_t whole_rows(fr_walk *w, fr_rank *r, int sub) {
    fr_scratch *b = fr_scratch_of(w, r);
    if (!w->p->sliced) return b->normed;
    collective(w, r, FR_OP_ALLGATHER, b->normed, sub);
    if (w->p->layout.precision != FR_FP8) return b->normed;
    fr_emit_quantise(w, r, 4 + sub, w->p->model.hidden, b->normed, b->delta);
    return b->delta;
}

void fr_attention_tp(fr_walk *w, fr_rank *r) {
    fr_scratch *b = fr_scratch_of(w, r);
    fr_emit_norm(w, r, 0);
    fr_emit_heads(w, r, w->p->layout.tp, whole_rows(w, r, 0));
    collective(w, r, w->p->sliced ? FR_OP_REDUCESCATTER : FR_OP_ALLREDUCE, b->delta, 0);
}

/* A leading dense layer: whole on a rank of its own, else split by width over the tp group. */
void fr_dense_layer(fr_walk *w, fr_rank *r) {
    fr_planner *p = w->p;
    fr_scratch *b = fr_scratch_of(w, r);
    int tp = p->layout.tp;
    fr_emit_norm(w, r, 1);
    fr_emit_ffn(w, r, fr_work_of(w, r)->tokens, p->model.dense_width, tp, 4, whole_rows(w, r, 1), b->delta);
    if (tp > 1) collective(w, r, p->sliced ? FR_OP_REDUCESCATTER : FR_OP_ALLREDUCE, b->delta, 1);
    r->residual = true;
}

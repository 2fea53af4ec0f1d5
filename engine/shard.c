#include "engine/shard.h"

static int distinct(const fr_layout *l, int count) {
    return l->resident_layers && l->resident_layers < count ? l->resident_layers : count;
}

static void place(const fr_layout *l, const fr_model *m, int rank, fr_shard *s) {
    const int stage_ranks = fr_layout_stage_ranks(l);
    s->local = rank % stage_ranks;
    s->stage = rank / stage_ranks % l->pp;
    s->d = s->local / l->tp;
    s->t = s->local % l->tp;
    s->index = s->local % l->ep;
    s->attention = true;
    if (l->experts == FR_EXP_ASAP) { /* expert ranks come behind the attention ranks */
        s->attention = s->local < l->tp * l->dp;
        s->index = s->attention ? 0 : s->local - l->tp * l->dp;
        if (!s->attention) s->d = s->t = 0;
    }
    fr_layout_stage_layers(l, m, s->stage, &s->first_layer, &s->end_layer);
    s->modulo = distinct(l, fr_layout_layers(l, m));
    s->layers = distinct(l, s->end_layer - s->first_layer);
}

static void split_attention(const fr_layout *l, const fr_model *m, fr_shard *s) {
    if (!s->attention) return;
    s->heads = m->heads / l->tp;
    s->head_first = s->t * s->heads;
    s->kv_heads = m->kv_heads >= l->tp ? m->kv_heads / l->tp : 1;
    s->kv_first = (int)((int64_t)s->t * m->kv_heads / l->tp);
}

static void split_experts(const fr_layout *l, const fr_model *m, fr_shard *s) {
    s->expert_end = m->experts;
    s->width_end = m->expert_width;
    if (l->experts == FR_EXP_TP) {
        const int each = m->expert_width / (l->tp * l->dp);
        s->width_first = s->local * each;
        s->width_end = s->width_first + each;
    } else if (l->experts == FR_EXP_ASAP && s->attention) {
        s->expert_end = 0;
    } else if (l->experts != FR_EXP_LOCAL && l->ep > 1) {
        fr_layout_held_range(l, m, s->index, &s->expert_first, &s->expert_end);
    }
    s->on_host = l->experts == FR_EXP_OFFLOAD;
    s->by_expert = s->on_host && l->slots > 0;
    s->gathers = l->ep > 1 && (l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP);
    s->packed = s->gathers && l->experts == FR_EXP_DWDP;
}

void fr_shard_of(const fr_layout *l, const fr_model *m, int rank, fr_shard *out) {
    *out = (fr_shard){0};
    place(l, m, rank, out);
    split_attention(l, m, out);
    split_experts(l, m, out);
    out->embedding = out->attention && out->stage == 0;
    out->head = out->attention && out->stage == l->pp - 1;
    out->precision = l->precision;
}

/* A stage that executes fewer layers than there are distinct ones holds those it executes, from its first on. */
int fr_shard_layer(const fr_shard *s, int executed) {
    return s->layers == s->modulo ? executed % s->modulo : (executed - s->first_layer) % s->layers;
}

int fr_shard_layer_id(const fr_shard *s, int held) {
    return s->layers == s->modulo ? held : (s->first_layer + held) % s->modulo;
}

/* ---- regions ------------------------------------------------------------------------------------------------------*/

static fr_region whole_rows(int64_t first, int64_t rows, int64_t columns) {
    return (fr_region){.rows = rows, .columns = columns, .stride = columns, .first = first * columns};
}

void fr_shard_qkv(const fr_shard *s, const fr_model *m, fr_region out[FR_QKV_REGIONS]) {
    const int64_t d = m->head_dim, q = m->heads * d, kv = m->kv_heads * d, h = m->hidden;
    out[0] = whole_rows(s->head_first * d, s->heads * d, h);
    out[1] = whole_rows(q + s->kv_first * d, s->kv_heads * d, h);
    out[2] = whole_rows(q + kv + s->kv_first * d, s->kv_heads * d, h);
}

fr_region fr_shard_o(const fr_shard *s, const fr_model *m) {
    const int64_t d = m->head_dim;
    return (fr_region){.rows = m->hidden, .columns = s->heads * d, .stride = m->heads * d, .first = s->head_first * d};
}

/* A row is an expert: a slice of its width is a run of interleaved rows, the bounds being multiples of 8. */
fr_region fr_shard_gate_up(const fr_shard *s, const fr_model *m, int first, int end) {
    const int64_t h = m->hidden, all = 2 * m->expert_width * h;
    return (fr_region){.rows = end - first,
                       .columns = 2 * (s->width_end - s->width_first) * h,
                       .stride = all,
                       .first = first * all + 2 * s->width_first * h};
}

fr_region fr_shard_down(const fr_shard *s, const fr_model *m, int first, int end) {
    const int64_t h = m->hidden, width = m->expert_width;
    return (fr_region){.rows = (end - first) * h,
                       .columns = s->width_end - s->width_first,
                       .stride = width,
                       .first = first * h * width + s->width_first};
}

/* ---- runs ---------------------------------------------------------------------------------------------------------*/

void fr_run_of(const fr_shard *s, const fr_model *m, fr_expert_run *out) {
    const int64_t h = m->hidden, width = s->width_end - s->width_first, element = s->precision == FR_FP8 ? 1 : 2;
    *out = (fr_expert_run){.parts = 2, .bytes = {2 * element * width * h, element * width * h}};
    if (s->precision == FR_FP8) { /* an fp32 for each block of 128 x 128 */
        const int64_t scales = 4 * fr_ceil_div(width, 128) * fr_ceil_div(h, 128);
        out->parts = 4;
        out->bytes[2] = 2 * scales;
        out->bytes[3] = scales;
    }
    for (int p = 0; p < out->parts; p++) out->expert += out->bytes[p];
}

int64_t fr_run_offset(const fr_expert_run *r, int experts, int part, int expert) {
    int64_t at = expert * r->bytes[part];
    for (int p = 0; p < part; p++) at += experts * r->bytes[p];
    return at;
}

int fr_run_copies(const fr_expert_run *r, const fr_run_move *move, int64_t begin, int64_t bytes,
                  fr_run_copy out[FR_RUN_PARTS]) {
    const int64_t end = begin + bytes;
    int64_t at = 0; /* where the part begins among the bytes that move */
    int n = 0;
    for (int p = 0; p < r->parts; p++) {
        const int64_t size = move->count * r->bytes[p];
        const int64_t a = fr_max_i64(begin, at), b = fr_min_i64(end, at + size);
        if (a < b)
            out[n++] = (fr_run_copy){.from = fr_run_offset(r, move->experts, p, move->first) + a - at,
                                     .to = fr_run_offset(r, move->to_experts, p, move->to_first) + a - at,
                                     .bytes = b - a};
        at += size;
    }
    return n;
}

int fr_shard_slot_experts(const fr_shard *s, const fr_model *m) {
    return s->packed ? m->experts - (s->expert_end - s->expert_first) : m->experts;
}

int fr_shard_slot_place(const fr_shard *s, int first_expert) {
    return s->packed && first_expert >= s->expert_end ? first_expert - (s->expert_end - s->expert_first) : first_expert;
}

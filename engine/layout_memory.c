/* layout: memory per GPU, itemised, and the buffers that one layer needs. */
#include "engine/placement.h"

#include <math.h>
#include <stdio.h>

#define MIB ((int64_t)1 << 20)

/*
 * What no plan lists. Context, modules and library handles: 550 to 597 MiB in use beside what the engine itself
 * allocates (forerun run on H200s, driver 580, CUDA 13.0, ten cells of 2 to 45 GB;
 * experiments/engine-h200x2/gather.md). cuBLASLt: 32 MiB, NVIDIA's recommendation for Hopper (cuBLAS documentation,
 * cublasSetWorkspace). NCCL: the machine says (machine.h). Pinned host memory is mapped by the GPU in pages of 4 KiB, 8
 * bytes each: 90.2 GB took 156 to 164 MiB more (same runs).
 */
#define CONTEXT_BYTES (576 * MIB)
#define MAPPED_PAGE   4096
#define CUBLAS_BYTES  (32 * MIB)

/* What one of tp ranks holds of attention, shared experts and dense layers: whole heads and a slice of each width. */
static fr_model tp_slice(const fr_layout *l, const fr_model *m) {
    fr_model s = *m;
    s.heads = m->heads / l->tp;
    s.kv_heads = m->kv_heads > l->tp ? m->kv_heads / l->tp : 1; /* replicated where tp exceeds the KV heads */
    /* Where each rank of a tp group takes its own part of the tokens through the experts (ep, asap), shared experts are
     * whole on every rank; by width they are split as the routed ones are. */
    if (l->experts == FR_EXP_TP) s.shared_width = (int)fr_ceil_div(m->shared_width, (int64_t)l->tp * l->dp);
    s.dense_width = m->dense_width / l->tp;
    if (l->experts == FR_EXP_TP) s.expert_width = m->expert_width / (l->tp * l->dp);
    return s;
}

/* Routed rows of the rank that gets most. Each of `groups` attention groups brings `tokens` tokens; asap's expert ranks
 * take one group's batch at a time. */
static int64_t routed_rows(const fr_layout *l, const fr_model *m, const fr_load *load, int64_t tokens) {
    if (l->experts == FR_EXP_TP) return tokens * l->dp * m->top_k; /* all tokens of the stage, a slice of each expert */
    if (l->experts != FR_EXP_EP && l->experts != FR_EXP_ASAP) return tokens * m->top_k;
    int64_t groups = l->experts != FR_EXP_ASAP && l->ep > l->tp ? l->ep / l->tp : 1;
    double skew = load->imbalance > 1 ? load->imbalance : 1;
    int64_t mean = fr_ceil_div(tokens * groups * m->top_k, l->ep);
    int64_t most = tokens * groups * fr_min_i64(m->top_k, m->experts / l->ep); /* every token's k on this rank */
    return fr_min_i64(most, (int64_t)ceil((double)mean * skew));
}

/* Tokens that leave for, and arrive from, other ranks: one copy per (token, target rank), so never more than the rows
 * nor than the tokens times the ranks. */
static void exchange_buffers(const fr_layout *l, const fr_model *m, const fr_load *load, int64_t tokens,
                             fr_activations *a) {
    int64_t row = 2 * (int64_t)m->hidden;
    a->slots = m->top_k;
    if (l->experts == FR_EXP_TP && l->dp > 1) { /* all-gathered tokens of the stage */
        a->arriving = tokens * l->dp;
        a->receive = a->arriving * (row + 8 * a->slots);
    }
    if (l->experts == FR_EXP_ASAP) { /* one copy per token and expert rank, S * H a group (facts: asap-duoserve, a.3) */
        a->carried = fr_ceil_div(tokens, l->tp);
        a->arriving = fr_ceil_div(tokens, 4) * 4; /* what lies behind begins at a multiple of 16 bytes */
        a->receive = a->arriving * (row + 8 * a->slots);
        a->send = a->carried * fr_min_i64(m->top_k, l->ep) * row;
        a->payload = fr_ceil_div(a->carried * (row + 8 * a->slots) + 8, 16) * 16;
        a->result = a->carried * row;
    }
    if (l->experts != FR_EXP_EP || l->ep == 1) return;
    int64_t groups = l->ep > l->tp ? l->ep / l->tp : 1;
    int parts = fr_layout_expert_parts(l);
    bool by_expert = l->exchange == FR_EXCHANGE_A2A_K;
    if (l->exchange == FR_EXCHANGE_AGRS) {
        a->arriving = tokens * groups;
        a->receive = a->arriving * (row + 8 * a->slots);
        return;
    }
    int64_t copies = by_expert ? m->top_k : fr_min_i64(m->top_k, (int64_t)l->ep * parts);
    a->send = fr_ceil_div(tokens, l->tp) * copies * row; /* tp ranks of a group share its tokens out */
    fr_layout part = *l;                                 /* a part is to its target what a rank is without parts */
    part.ep = l->ep * parts;
    part.tp = 1;
    int64_t rows = routed_rows(&part, m, load, fr_ceil_div(tokens * groups, part.ep));
    a->slots = by_expert ? 1 : m->top_k;
    a->arriving = by_expert ? rows : fr_min_i64(rows, tokens * groups);
    a->arriving = fr_ceil_div(a->arriving, 4) * 4; /* what lies behind begins at a multiple of 16 bytes */
    a->receive = parts * a->arriving * (row + 8 * a->slots);
}

int fr_layout_expert_parts(const fr_layout *l) {
    return l->overlap == FR_OVERLAP_EXPERT_GROUPS && l->overlap_stages > 1 ? l->overlap_stages : 1;
}

double fr_layout_worst_imbalance(const fr_layout *l) {
    return l->experts == FR_EXP_EP || l->experts == FR_EXP_ASAP ? (double)l->ep * fr_layout_expert_parts(l) : 1;
}

/*
 * Buffers of a layer, bf16 unless said. FP8 quantises the permuted rows and the up output: 1 byte and an
 * fp32 scale per 128 (block scaling, as the weights). The up GEMM's epilogue applies SwiGLU, so its output is one width
 * wide. With chunks or micro-batches `tokens` is one of those. Logits of a few candidates per sequence are not counted.
 */
void fr_layout_activations(const fr_layout *l, const fr_model *m, const fr_load *load, int64_t tokens,
                           fr_activations *a) {
    fr_model s = tp_slice(l, m);
    int64_t hidden = m->hidden, d = m->head_dim, dv = m->v_head_dim, n = tokens;
    *a = (fr_activations){0};
    a->residual = a->normed = 2 * n * hidden;
    if (m->attention == FR_ATTENTION_MLA) /* latents of q and kv with the rotary key; q; k and v rebuilt */
        a->qkv = 2 * n * (m->q_rank + m->kv_rank + m->rope_dim + s.heads * (d + d + dv));
    else
        a->qkv = 2 * n * (s.heads * d + s.kv_heads * (d + dv));
    a->attention_out = 2 * n * s.heads * dv;
    a->rows = routed_rows(l, m, load, n);
    a->router = n * m->experts * 4 + n * m->top_k * (4 + 4) + a->rows * 4;
    exchange_buffers(l, m, load, n, a);
    a->permuted = l->precision == FR_FP8 ? fr_fp8_bytes(a->rows, hidden) : 2 * a->rows * hidden;
    a->up = l->precision == FR_FP8 ? fr_fp8_bytes(a->rows, s.expert_width) : 2 * a->rows * s.expert_width;
    a->down = 2 * a->rows * hidden;
    a->dense = 2 * n * (s.dense_width > s.shared_width ? s.dense_width : s.shared_width);
}

int64_t fr_layout_most_tokens(const fr_layout *l, const fr_load *load) {
    const int64_t parts = (l->micro_batches > 1 ? l->micro_batches : 1) * (l->overlap == FR_OVERLAP_TBO ? 2 : 1);
    if (l->chunk_tokens && l->pp > 1) return fr_min_i64(load->tokens, l->chunk_tokens);
    if (parts == 1 || load->longest < 1) return load->tokens;
    if (load->equal) return fr_min_i64(load->tokens, fr_ceil_div(load->sequences, parts) * load->longest);
    const int64_t width = fr_max_i64(fr_ceil_div(load->tokens, parts), load->longest);
    return fr_min_i64(load->tokens, width + load->longest);
}

void fr_layout_room(const fr_layout *l, const fr_model *m, const fr_load *load, fr_activations *a) {
    fr_layout_activations(l, m, load, fr_layout_most_tokens(l, load), a);
}

/* Distinct layers among [first, end): layer i uses the weights of i mod M. */
static int distinct_layers(const fr_layout *l, int first, int end) {
    int count = end - first;
    return l->resident_layers && l->resident_layers < count ? l->resident_layers : count;
}

static int moe_layers(const fr_model *m, int first, int end) {
    return end > m->dense_layers ? end - (first > m->dense_layers ? first : m->dense_layers) : 0;
}

/* Expert items of a stage rank (facts: moe-prefill, 2.5: static EP, AsyncEP D2D, hybrid; 9.1 for dwdp; asap-duoserve,
 * b.2 for slots). `layers`: resident MoE layers. */
static void expert_items(const fr_layout *l, const fr_model *m, int layers, fr_memory *out) {
    fr_model s = tp_slice(l, m);
    int64_t one = fr_model_expert_bytes(&s, l->precision), full = m->experts * one;
    int64_t most = fr_ceil_div(m->experts, l->ep) + l->gather_keep, least = m->experts / l->ep + l->gather_keep;
    bool gathered = l->ep > 1 && layers > 1; /* with one layer the first layer's set is all there is */
    switch (l->experts) {
    case FR_EXP_LOCAL:
    case FR_EXP_TP:
        out->experts = layers * full;
        break;
    case FR_EXP_EP:
    case FR_EXP_ASAP:
        out->experts = layers * most * one;
        break;
    case FR_EXP_ASYNCEP: /* the first layer's set is contiguous beside the shard: the grouped GEMM reads one array */
        out->experts = layers * most * one;
        if (l->ep > 1) out->first_layer = full;
        if (gathered) out->gather_buffers = 2 * full;
        break;
    case FR_EXP_DWDP: /* remote experts only; local ones are used in place */
        out->experts = layers * most * one;
        if (l->ep > 1) out->first_layer = (m->experts - least) * one;
        if (gathered) out->gather_buffers = 2 * (m->experts - least) * one;
        break;
    case FR_EXP_OFFLOAD:
        if (l->ep > 1)
            out->gather_buffers = fr_min_i64(fr_layout_window(l), layers) * most * one + 2 * full;
        else
            out->gather_buffers = l->slots ? l->slots * one : 2 * full;
        break;
    }
}

/* Communicators that a rank is in (engine/cuda/transport/transport.c): one for each group whose ops NCCL carries. */
static int64_t nccl_bytes(const fr_layout *l, const fr_machine *h, int stage, bool expert_rank) {
    const bool gathers = l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD;
    const bool tokens = l->experts == FR_EXP_EP && l->exchange == FR_EXCHANGE_AGRS;
    const int groups[3] = {l->tp, l->experts == FR_EXP_TP && l->dp > 1 ? l->tp * l->dp : 1,
                           tokens || (gathers && l->gather != FR_GATHER_CE) ? l->ep : 1};
    int64_t bytes = 0;
    if (expert_rank || !fr_layout_uses_nccl(l)) return 0;
    for (int i = 0; i < 3; i++)
        if (groups[i] > 1) bytes += h->nccl_group + (groups[i] - 1) * h->nccl_peer;
    return h->nccl_library + bytes + ((stage > 0) + (stage < l->pp - 1)) * h->nccl_pair;
}

void fr_layout_stage_memory(const fr_layout *l, const fr_model *m, const fr_machine *machine, const fr_load *load,
                            int stage, bool expert_rank, fr_memory *out) {
    fr_model s = tp_slice(l, m);
    int first, end;
    fr_layout_stage_layers(l, m, stage, &first, &end);
    int distinct = distinct_layers(l, first, end), moe = moe_layers(m, first, first + distinct);
    *out = (fr_memory){0};
    if (!expert_rank) {
        for (int i = first; i < first + distinct; i++) {
            fr_layer_bytes b;
            fr_model_layer_bytes(&s, i, l->precision, &b);
            out->attention += b.total;
        }
        /* Embedding and head are whole on every rank of their stage: no collective beside those of the layers. */
        if (stage == 0) out->embedding_head += fr_model_embedding_bytes(m);
        if (stage == l->pp - 1) {
            out->embedding_head += fr_model_head_bytes(m);
            if (m->tied_embeddings && l->pp > 1) out->embedding_head += fr_model_embedding_bytes(m);
            out->attention += 2 * (int64_t)m->hidden * (m->norm_weight_bias ? 2 : 1); /* the final norm */
        }
        if (l->kv_cache) out->kv = load->kv_tokens * fr_model_kv_bytes_layer(&s) * (end - first);
    }
    if (expert_rank || l->experts != FR_EXP_ASAP) expert_items(l, m, moe, out);

    fr_activations a;
    fr_placement places;
    fr_layout_room(l, m, load, &a);
    fr_placement_of(l, m, load, expert_rank, &places);
    out->activations = load->tokens > 0 ? places.bytes : 0;
    fr_placement_free(&places);
    /* asap's slots (asap.c): two from every attention rank; of both batches, results of all expert ranks. */
    if (l->experts == FR_EXP_ASAP) out->activations += 2 * (expert_rank ? l->dp * l->tp * a.payload : l->ep * a.result);
    out->workspace = CONTEXT_BYTES + CUBLAS_BYTES + nccl_bytes(l, machine, stage, expert_rank);
    out->total = out->attention + out->embedding_head + out->experts + out->gather_buffers + out->first_layer +
                 out->kv + out->activations + out->workspace;
}

/* Pinned experts of the host that needs most: the layers of all stages with a rank there, once (its GPUs share them).
 */
static int64_t pinned(const fr_layout *l, const fr_model *m, const fr_machine *machine) {
    if (l->experts != FR_EXP_OFFLOAD) return 0;
    int64_t full = m->experts * fr_model_expert_bytes(m, l->precision), most = 0;
    int stage_ranks = fr_layout_stage_ranks(l), gpus = fr_layout_gpus(l), per_host = machine->gpus_per_host;
    for (int host = 0; host * per_host < gpus; host++) {
        int64_t layers = 0;
        int first_unit = host * per_host / stage_ranks;
        int last = (int)fr_min_i64((int64_t)(host + 1) * per_host, gpus) - 1, last_unit = last / stage_ranks;
        for (int unit = first_unit; unit <= last_unit && unit < first_unit + l->pp; unit++) {
            int first, end;
            fr_layout_stage_layers(l, m, unit % l->pp, &first, &end);
            layers += moe_layers(m, first, first + distinct_layers(l, first, end));
        }
        most = fr_max_i64(most, layers * full);
    }
    return most;
}

void fr_layout_memory(const fr_layout *l, const fr_model *m, const fr_machine *machine, const fr_load *load,
                      fr_memory *out) {
    *out = (fr_memory){0};
    for (int stage = 0; stage < l->pp; stage++)
        for (int expert_rank = 0; expert_rank <= (l->experts == FR_EXP_ASAP); expert_rank++) {
            fr_memory one;
            fr_layout_stage_memory(l, m, machine, load, stage, expert_rank, &one);
            if (one.total > out->total) *out = one;
        }
    out->host_pinned = pinned(l, m, machine);
    const int64_t tables = fr_ceil_div(out->host_pinned, MAPPED_PAGE) * 8;
    out->workspace += tables;
    out->total += tables;
}

/* Four processes of asyncep (Qwen3-30B's shape, 4 layers), each with a context on every GPU, had 8.66 GB of a GPU in
 * use; without the three of others 6.99 are counted, and threads use some 0.18 less than is counted: 0.6 GB each. */
void fr_memory_add_contexts(fr_memory *memory, int contexts) {
    memory->workspace += contexts * CONTEXT_BYTES;
    memory->total += contexts * CONTEXT_BYTES;
}

bool fr_memory_fits(const fr_memory *memory, const fr_machine *machine, char *reason) {
    reason[0] = 0;
    if (memory->total > machine->hbm_bytes) {
        snprintf(reason, 256,
                 "needs %.1f GB per GPU (experts %.1f, gather buffers and first layer %.1f, attention %.1f, KV %.1f, "
                 "activations %.1f), %s has %.1f GB",
                 (double)memory->total / 1e9, (double)memory->experts / 1e9,
                 (double)(memory->gather_buffers + memory->first_layer) / 1e9, (double)memory->attention / 1e9,
                 (double)memory->kv / 1e9, (double)memory->activations / 1e9, machine->name,
                 (double)machine->hbm_bytes / 1e9);
        return false;
    }
    if (memory->host_pinned > machine->host_bytes) {
        snprintf(reason, 256, "needs %.1f GB of pinned host memory per host, %s has %.1f GB",
                 (double)memory->host_pinned / 1e9, machine->name, (double)machine->host_bytes / 1e9);
        return false;
    }
    return true;
}

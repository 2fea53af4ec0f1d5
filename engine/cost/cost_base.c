/*
 * Structural times.
 *
 * What `bytes` of a collective or copy means, per rank (P ranks):
 *     allreduce               the tensor that is reduced; over the link 2 (P-1)/P of it, out and in
 *     allgather,
 *     gather_weights,
 *     reducescatter           the full (gathered) tensor; (P-1)/P of it
 *     alltoall, alltoall_back what this rank sends to others (the busiest rank's, sender or receiver); all of it
 *     send, recv              the message
 *     counts                  ignored: latency only
 *     pull, push, h2d, d2h, drain   bytes moved once
 *
 * Left out on purpose, for measured curves to hold: which tile a library takes, L2 reuse, clock, power, epilogues.
 */
#include "engine/cost/cost_base.h"
#include "engine/cost/cost_grouped.h"

#include <math.h>

/* Flash attention: 128 queries and 128 keys a block (cuDNN's sm90 forward, FlashAttention-3 for head_dim 128). Each
 * query tile also pays a start and an end worth ATTN_TILE_EXTRA key blocks: over the grid's 330 bursts of head_dim 128
 * (kernels/measured/raw/h200x1-grid-2026-11-22.raw) one block leaves 0.9 to 2 % where lengths are equal, 1.7 left 2 to
 * 4 %. Unmasked runs gave 1.7: n/(n+1.7) of 704 TFLOP/s with n key blocks. */
#define ATTN_Q          128
#define ATTN_KV         128
#define ATTN_TILE_EXTRA 1.0
/* Behind all that the SMs share evenly, half of the longest unit of work is still under way on average. (The larger of
 * the two and then the half, as it was, made a few long units 7 to 11 % too quick: one sequence of 768 or 1,024.) */
#define ATTN_TAIL 0.5

/* NCCL's own tuning constants for NVLink rings, Simple protocol: 8.4 us to start, 3.4 us a hop; 14 us a hop over the
 * network (nccl src/graph/tuning.cc). */
#define NCCL_START_NS   8400.0
#define NCCL_HOP_NS     3400.0
#define NCCL_NET_HOP_NS 14000.0
/* A copy-engine transfer: start of the engine's descriptor to first byte, plus completion. No source states it; calls
 * of the order of a kernel launch are the usual experience. Calibration of small copies replaces it. */
#define COPY_START_NS 3000.0
/* nccl-ce: barrier, copies, barrier (nccl src/ce_coll.cc): two one-sided flag exchanges, a hop each way. */
#define CE_BARRIER_NS (2 * 2 * NCCL_HOP_NS)

static double ceil_div(double a, double b) {
    return ceil(a / b);
}

static double max2(double a, double b) {
    return a > b ? a : b;
}

/* Peers without NVLink are reached over PCIe; a machine that states neither has no bound but its memory. */
static double link_rate(const fr_ceilings *c) {
    return c->link > 0 ? c->link : c->pcie > 0 ? c->pcie : c->hbm;
}

/*
 * m x n x k: operations at the peak or both operands read and the bf16 result written once, whichever takes longer,
 * after a kernel's floor. Which tiles a library takes is left to the measured curves: whole waves of tiles predicted
 * rows left out worse (10 % against 6 %).
 */
static void gemm(const fr_ceilings *c, const fr_shape *s, fr_base *out) {
    double m = (double)s->m, n = s->n, k = s->k, e = fr_elem_bytes(s->precision);
    double bytes = m * k * e + n * k * e + m * n * 2;
    out->flops = 2 * m * n * k;
    out->bound = 1e9 * max2(2 * m * n * k / fr_peak_of(c, s->precision), bytes / c->hbm);
    out->ns = c->floor_ns + out->bound;
    out->hbm_bytes = bytes;
}

/* Key blocks that the query tiles of one sequence visit (q queries after p cached tokens, window w or 0), the longest
 * tile's, and exact (query, key) pairs. Closed form: without a window tile i of 128 sees i + 1 + ceil(p/128) blocks. */
static void attention_blocks(double q, double p, double w, double *blocks, double *longest, double *useful) {
    double tiles = ceil_div(q, ATTN_Q), head = ceil_div(p, ATTN_KV);
    double last = ceil_div(p + q, ATTN_KV);
    *useful = q * p + q * (q + 1) / 2;
    if (w > 0 && p + q > w) {
        /* Rows below the window see all before them, the rest exactly w; a tile of 128 rows reaches over w + 127. */
        double full = p >= w ? 0 : w - p;
        *useful = full * p + full * (full + 1) / 2 + (q - full) * w;
        double cap = ceil_div(w + ATTN_Q - 1, ATTN_KV) + 1, rising = max2(0, floor(cap - 1 - head));
        rising = rising < tiles ? rising : tiles;
        *blocks = rising * (rising + 1) / 2 + rising * head + (tiles - rising) * cap;
        double whole = (tiles - 1) * tiles / 2 + (tiles - 1) * head + last;
        if (*blocks > whole) *blocks = whole;
        *longest = cap < last ? cap : last;
        return;
    }
    *blocks = (tiles - 1) * tiles / 2 + (tiles - 1) * head + last;
    *longest = last;
}

/* m sequences of the vector: all (head, query tile) units share the SMs; longest first, so the end is ragged by part of
 * one unit. bf16 unless the table measured FP8 attention. */
static void attention(const fr_ceilings *c, const fr_shape *s, const fr_pair *pairs, fr_base *out) {
    double width = s->head_dim + (s->v_head_dim ? s->v_head_dim : s->head_dim), heads = s->n, kv_heads = s->k;
    double work = 0, longest = 0, useful = 0, queries = 0, keys = 0, tiles = 0;
    int32_t count = 0, least = INT32_MAX, most = 0;
    for (uint32_t i = 0; i < s->vector_count; i++) {
        fr_pair v = pairs[s->vector + i];
        if (v.queries <= 0) continue;
        double blocks, tile, pairs_seen;
        attention_blocks(v.queries, v.prefix, s->window, &blocks, &tile, &pairs_seen);
        work += blocks + ATTN_TILE_EXTRA * ceil_div(v.queries, ATTN_Q);
        tiles += ceil_div(v.queries, ATTN_Q);
        longest = max2(longest, tile + ATTN_TILE_EXTRA);
        useful += pairs_seen;
        queries += v.queries;
        double seen = (double)v.prefix + v.queries;
        out->cached |= v.prefix > 0;
        count++;
        least = v.queries < least ? v.queries : least;
        most = v.queries > most ? v.queries : most;
        keys += s->window > 0 && seen > s->window + v.queries ? s->window + v.queries : seen;
    }
    if (queries <= 0) return;
    out->equal = count > 1 && least == most && most <= FR_ATTENTION_EQUAL && !out->cached;
    double block = 2.0 * ATTN_Q * ATTN_KV * width, peak = fr_peak_of(c, s->precision), e = 2;
    double bytes = e * width * (queries * heads + keys * kv_heads);
    double units = work * heads / c->sms;
    double compute = block * max2(units + ATTN_TAIL * longest, longest) * c->sms / peak;
    out->ns = c->floor_ns + 1e9 * max2(compute, bytes / c->hbm);
    out->feature = log(work / tiles);
    out->flops = 2 * heads * width * useful;
    out->bound = 1e9 * max2(2 * heads * width * useful / peak, bytes / c->hbm);
    out->hbm_bytes = bytes;
}

/* bytes once over HBM (tables and results of a forward: over PCIe); where a strategy gives none, rows of bf16 in and
 * out. Sorting takes three launches (fr_k_route in kernels/kernels.h). */
static void memory(const fr_ceilings *c, const fr_shape *s, fr_base *out) {
    double bytes = s->bytes > 0 ? (double)s->bytes : 4.0 * (double)s->m * s->n;
    if (s->kind == FR_OP_PERMUTE && s->m > 0) { /* rows read once, however often they are written */
        const double sources = s->k > 0 ? s->k : (double)s->m / FR_PERMUTE_TOP;
        bytes -= 2.0 * s->n * fmax(0, (double)s->m - sources);
    }
    if (bytes <= 0) return;
    const double rate = fr_op_over_pcie((fr_op_kind)s->kind) && c->pcie > 0 ? c->pcie : c->hbm;
    out->ns = (s->kind == FR_OP_SORT ? 3 : 1) * c->floor_ns + 1e9 * bytes / rate;
    out->bound = 1e9 * bytes / rate;
    out->hbm_bytes = bytes;
}

/*
 * T = start + wire / link, the law max(floor, a + b bytes) of one-sided exchanges (NVIDIA's all-to-all: floor 18 us,
 * 15 us + 0.145 us a token); rings run at the same link rate for any P and add a hop a step: P-1 steps, all-reduce
 * 2 (P-1). NCCL's all-to-all sends to all peers at once: one hop. `extra` holds hops beyond those of two ranks.
 * Several hosts: a ring's traffic leaves a host once over all of its GPUs' adapters, so wire / per_host a GPU; an
 * all-to-all's leaves with the share of peers that live elsewhere. The slower of network and NVLink bounds.
 */
static void collective(const fr_ceilings *c, const fr_shape *s, fr_base *out) {
    bool pair = s->kind == FR_OP_SEND || s->kind == FR_OP_RECV;
    double ranks = s->ranks > 1 && !pair ? s->ranks : 2, share = (ranks - 1) / ranks, bytes = (double)s->bytes;
    double wire = bytes, hbm = 2 * bytes, steps = 1, first = 1;
    bool exchange = false;
    switch ((fr_op_kind)s->kind) {
    case FR_OP_ALLREDUCE:
        wire = 2 * share * bytes;
        hbm = 2.5 * wire; /* read what is sent, write what arrives, half of it also reads the local operand */
        steps = 2 * (ranks - 1);
        first = 2;
        break;
    case FR_OP_ALLGATHER:
    case FR_OP_GATHER_WEIGHTS:
        wire = share * bytes;
        hbm = 2 * wire;
        steps = ranks - 1;
        break;
    case FR_OP_REDUCESCATTER:
        wire = share * bytes;
        hbm = 3 * wire;
        steps = ranks - 1;
        break;
    case FR_OP_COUNTS:
        wire = hbm = 0;
        break;
    case FR_OP_ALLTOALL:
    case FR_OP_ALLTOALL_BACK:
        exchange = true;
        break;
    default:
        break;
    }
    if (wire <= 0 && s->kind != FR_OP_COUNTS) return;
    double link = link_rate(c);
    bool ce = s->kind == FR_OP_GATHER_WEIGHTS && s->transport != 1;
    out->ns = (ce ? CE_BARRIER_NS + COPY_START_NS : NCCL_START_NS + first * NCCL_HOP_NS) + 1e9 * wire / link;
    out->bound = 1e9 * wire / link;
    out->extra = ce ? (ranks - 2) * COPY_START_NS : (steps - first) * NCCL_HOP_NS;
    if (s->hosts > 1 && c->network > 0) {
        double per_host = max2(1, ranks / s->hosts);
        double outside = exchange ? wire * (ranks - per_host) / max2(1, ranks - 1) : wire / per_host;
        double net = s->hosts * (c->network_latency_ns + NCCL_NET_HOP_NS) + 1e9 * outside / c->network;
        out->extra = max2(out->extra, out->extra + net - out->ns);
        out->bound = max2(out->bound, 1e9 * outside / c->network);
    }
    out->hbm_bytes = hbm;
    out->link_bytes = wire;
}

static void copy(const fr_ceilings *c, const fr_shape *s, fr_base *out) {
    double bytes = (double)s->bytes, rate = link_rate(c);
    if (bytes <= 0) return;
    out->hbm_bytes = bytes;
    if (s->kind == FR_OP_DRAIN) {
        rate = c->hbm / 2; /* read and written in the same memory */
        out->hbm_bytes = 2 * bytes;
    } else if (s->kind == FR_OP_H2D || s->kind == FR_OP_D2H) {
        rate = c->pcie > 0 ? c->pcie : c->hbm;
    } else {
        out->link_bytes = bytes;
    }
    out->ns = COPY_START_NS + 1e9 * bytes / rate;
    out->bound = 1e9 * bytes / rate;
}

void fr_cost_base(const fr_ceilings *c, const fr_shape *s, const fr_pair *pairs, fr_base *out) {
    *out = (fr_base){.follows = -1};
    switch (fr_op_class_of((fr_op_kind)s->kind)) {
    case FR_CLASS_GEMM:
        if (s->m > 0 && s->n > 0 && s->k > 0) gemm(c, s, out);
        break;
    case FR_CLASS_GROUPED:
        fr_grouped_base(NULL, c, s, pairs, out);
        break;
    case FR_CLASS_ATTENTION:
        attention(c, s, pairs, out);
        break;
    case FR_CLASS_MEMORY:
        memory(c, s, out);
        break;
    case FR_CLASS_COLLECTIVE:
        collective(c, s, out);
        break;
    case FR_CLASS_COPY:
        copy(c, s, out);
        break;
    case FR_CLASS_HOST:
        /* One unit of host work; the table says what it takes. */
        if (s->kind == FR_OP_LAUNCH) out->ns = (double)s->m;
        if (s->kind == FR_OP_READBACK) out->ns = 1;
        break;
    default:
        break;
    }
}

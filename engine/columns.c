#include "engine/columns.h"

#include <math.h>
#include <string.h>

/* Where time parts are reported per forward in batch mode and over the whole run in trace mode. */
static double parts_share(const fr_result *r) {
    return r->units_forwards > 0 ? 1.0 / (double)r->units_forwards : 1.0;
}
static double part_s(const fr_result *r, int64_t ns) {
    return isnan(r->forward_s) ? NAN : (double)ns * 1e-9 * parts_share(r);
}
static double bytes_or_nan(int64_t bytes) {
    return bytes < 0 ? NAN : (double)bytes;
}

static const char *attention_name(fr_attention_split a) {
    return a == FR_ATTN_TP ? "tp" : "dp";
}

/* Share of busy time whose cost is a law beyond what was measured (more ranks, larger shapes). */
static double extrapolated_share(const fr_result *r) {
    double total = 0;
    for (int i = 0; i < FR_FROM_KINDS; i++) total += (double)r->provenance.ns[i];
    return total > 0 ? (double)r->provenance.ns[FR_FROM_EXTRAPOLATED] / total : NAN;
}

/* X(type, name, unit, about, expression over e (experiment), l (layout), s (setup), r (result)) */
#define COLUMNS(X)                                                                                                     \
    X(TEXT, model, "", "model", s->model.name)                                                                         \
    X(TEXT, machine, "", "machine", s->machine.name)                                                                   \
    X(TEXT, strategy, "", "shorthand that the layout came from", l->strategy)                                          \
    X(TEXT, attention, "", "how attention is split", attention_name(l->attention))                                     \
    X(TEXT, experts, "", "how experts are split", fr_expert_split_name(l->experts))                                    \
    X(TEXT, precision, "", "", fr_precision_name(l->precision))                                                        \
    X(TEXT, gather, "", "transport of weight gathers", fr_gather_name(l->gather))                                      \
    X(TEXT, exchange, "", "ep exchange", fr_exchange_name(l->exchange))                                                \
    X(TEXT, overlap, "", "ep overlap", fr_overlap_name(l->overlap))                                                    \
    X(TEXT, routing, "", "routing skew", e->routing)                                                                   \
    X(TEXT, trace, "", "trace or generator, empty in batch mode", e->trace)                                            \
    X(TEXT, regime, "", "burst or sustained costs", e->regime == FR_BURST ? "burst" : "sustained")                     \
    X(TEXT, what_if, "", "scaled resources", e->what_if)                                                               \
    X(INT, gpus, "", "GPUs in all", r->gpus)                                                                           \
    X(INT, tp, "", "", l->tp)                                                                                          \
    X(INT, pp, "", "", l->pp)                                                                                          \
    X(INT, ep, "", "", l->ep)                                                                                          \
    X(INT, dp, "", "", l->dp)                                                                                          \
    X(INT, replicas, "", "", l->replicas)                                                                              \
    X(INT, micro_batches, "", "", l->micro_batches)                                                                    \
    X(INT, chunk_tokens, "tokens", "largest prefill chunk, 0 = none", l->chunk_tokens)                                 \
    X(INT, slots, "", "offload slots, 0 = a layer ahead", l->slots)                                                    \
    X(INT, tokens_per_gpu, "tokens", "new tokens per GPU and forward (batch mode), else the budget",                   \
      e->trace[0] ? e->budget : e->tokens)                                                                             \
    X(INT, seq, "tokens", "sequence length, batch mode", e->trace[0] ? 0 : e->seq)                                     \
    X(INT, prefix, "tokens", "cached prefix before every sequence, batch mode", e->prefix)                             \
    X(INT, forwards, "", "forwards played", r->forwards)                                                               \
    X(INT, requests, "", "requests answered", r->requests)                                                             \
    X(INT, tokens, "tokens", "new tokens in all", r->tokens)                                                           \
    X(INT, cached_tokens, "tokens", "prefix tokens found in the cache", r->cached_tokens)                              \
    X(INT, idle_ranks, "", "GPUs that got no sequence, batch mode", r->idle_ranks)                                     \
    X(INT, fits, "", "1 = fits in memory", r->fits)                                                                    \
    X(REAL, forward_s, "s", "time per forward in the stream (batch), mean service time (trace)", r->forward_s)         \
    X(REAL, single_forward_s, "s", "latency of one forward alone", r->single_forward_s)                                \
    X(REAL, elapsed_s, "s", "first release to last end", isnan(r->forward_s) ? NAN : (double)r->elapsed_ns * 1e-9)     \
    X(REAL, tokens_per_s, "1/s", "", r->tokens_per_s)                                                                  \
    X(REAL, tokens_per_s_per_gpu, "1/s", "", r->tokens_per_s_per_gpu)                                                  \
    X(REAL, mfu, "", "model FLOPs over elapsed time, GPUs and the datasheet dense peak", r->mfu)                       \
    X(REAL, compute_s, "s", "per forward (batch) or in all (trace), rank that ends last", part_s(r, r->parts.compute)) \
    X(REAL, exposed_comm_s, "s", "", part_s(r, r->parts.exposed_comm))                                                 \
    X(REAL, hidden_comm_s, "s", "communication behind compute", part_s(r, r->parts.hidden_comm))                       \
    X(REAL, wait_s, "s", "waiting for other ranks", part_s(r, r->parts.wait))                                          \
    X(REAL, bubble_s, "s", "pipeline bubble", part_s(r, r->parts.bubble))                                              \
    X(REAL, idle_s, "s", "all else", part_s(r, r->parts.idle))                                                         \
    X(REAL, forward_low_s, "s", "interval of forward_s", r->forward_low_s)                                             \
    X(REAL, forward_high_s, "s", "", r->forward_high_s)                                                                \
    X(REAL, extrapolated_share, "", "share of busy time that rests on extrapolated costs", extrapolated_share(r))      \
    X(REAL, ttft_mean_s, "s", "", r->ttft_s.mean)                                                                      \
    X(REAL, ttft_p50_s, "s", "", r->ttft_s.p50)                                                                        \
    X(REAL, ttft_p90_s, "s", "", r->ttft_s.p90)                                                                        \
    X(REAL, ttft_p99_s, "s", "", r->ttft_s.p99)                                                                        \
    X(REAL, flops, "FLOP", "model FLOPs in all", isnan(r->forward_s) ? NAN : r->flops)                                 \
    X(REAL, memory_per_gpu_bytes, "bytes", "GPU that needs most", (double)r->memory.total)                             \
    X(REAL, memory_attention_bytes, "bytes", "", (double)r->memory.attention)                                          \
    X(REAL, memory_embedding_head_bytes, "bytes", "", (double)r->memory.embedding_head)                                \
    X(REAL, memory_experts_bytes, "bytes", "", (double)r->memory.experts)                                              \
    X(REAL, memory_gather_bytes, "bytes", "", (double)r->memory.gather_buffers)                                        \
    X(REAL, memory_first_layer_bytes, "bytes", "", (double)r->memory.first_layer)                                      \
    X(REAL, memory_kv_bytes, "bytes", "", (double)r->memory.kv)                                                        \
    X(REAL, memory_activations_bytes, "bytes", "", (double)r->memory.activations)                                      \
    X(REAL, memory_workspace_bytes, "bytes", "", (double)r->memory.workspace)                                          \
    X(REAL, hbm_bytes, "bytes", "what a GPU has", (double)s->machine.hbm_bytes)                                        \
    X(REAL, host_pinned_bytes, "bytes", "per host", (double)r->memory.host_pinned)                                     \
    X(REAL, sent_bytes, "bytes", "over links, busiest rank, per forward", bytes_or_nan(r->sent_bytes))                 \
    X(REAL, received_bytes, "bytes", "", bytes_or_nan(r->received_bytes))                                              \
    X(REAL, host_bytes, "bytes", "over PCIe from host memory", bytes_or_nan(r->host_bytes))                            \
    X(REAL, price_per_mtoken, "currency", "per million new tokens", r->price_per_mtoken)                               \
    X(REAL, joules_per_mtoken, "J", "at the machine's watts", r->joules_per_mtoken)

static const fr_column columns[] = {
#define COLUMN(type, name, unit, about, value) {#name, FR_COLUMN_##type, unit, about},
    COLUMNS(COLUMN)
#undef COLUMN
        {NULL, FR_COLUMN_INT, NULL, NULL},
};

const fr_column *fr_result_columns(void) {
    return columns;
}
int fr_result_column_count(void) {
    return (int)(sizeof columns / sizeof *columns) - 1;
}

static fr_value text_value(const char *v) {
    return (fr_value){.type = FR_COLUMN_TEXT, .text = v};
}
static fr_value int_value(int64_t v) {
    return (fr_value){.type = FR_COLUMN_INT, .integer = v};
}
static fr_value real_value(double v) {
    return (fr_value){.type = FR_COLUMN_REAL, .real = v};
}

void fr_result_row(const fr_setup *s, const fr_result *r, fr_value *values) {
    const fr_experiment *e = &s->experiment;
    const fr_layout *l = &e->layout;
    int n = 0;
#define FILL_TEXT(v)                         text_value(v)
#define FILL_INT(v)                          int_value(v)
#define FILL_REAL(v)                         real_value(v)
#define FILL(type, name, unit, about, value) values[n++] = FILL_##type(value);
    COLUMNS(FILL)
#undef FILL
}

void fr_result_unplayed(const fr_setup *s, fr_result *out) {
    *out = (fr_result){.memory = s->memory,
                       .gpus = fr_layout_gpus(&s->experiment.layout),
                       .fits = s->fits,
                       .forward_s = NAN,
                       .single_forward_s = NAN,
                       .tokens_per_s = NAN,
                       .tokens_per_s_per_gpu = NAN,
                       .mfu = NAN,
                       .flops = NAN,
                       .forward_low_s = NAN,
                       .forward_high_s = NAN,
                       .ttft_s = {NAN, NAN, NAN, NAN},
                       .sent_bytes = -1,
                       .received_bytes = -1,
                       .host_bytes = -1,
                       .price_per_mtoken = NAN,
                       .joules_per_mtoken = NAN,
                       .clock_mhz = NAN};
    memcpy(out->reason, s->reason, sizeof out->reason);
}

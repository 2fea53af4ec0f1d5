/* layout: degrees, strategy shorthands and validity. Memory is in layout_memory.c. */
#include "engine/layout.h"

#include <stdio.h>
#include <string.h>

int fr_layout_stage_ranks(const fr_layout *l) {
    return l->experts == FR_EXP_ASAP ? l->tp * l->dp + l->ep : l->tp * l->dp;
}

int fr_layout_gpus(const fr_layout *l) {
    return l->replicas * l->pp * fr_layout_stage_ranks(l);
}

int fr_layout_batches(const fr_layout *l) {
    return l->experts == FR_EXP_ASAP ? 2 : 1;
}

int fr_layout_layers(const fr_layout *l, const fr_model *m) {
    return l->run_layers ? l->run_layers : m->layers;
}

void fr_layout_stage_layers(const fr_layout *l, const fr_model *m, int stage, int *first, int *end) {
    int layers = fr_layout_layers(l, m), each = layers / l->pp, more = layers % l->pp;
    *first = stage * each + (stage < more ? stage : more);
    *end = *first + each + (stage < more ? 1 : 0);
}

void fr_layout_expert_range(const fr_layout *l, const fr_model *m, int r, int *first, int *end) {
    *first = (int)((int64_t)m->experts * r / l->ep);
    *end = (int)((int64_t)m->experts * (r + 1) / l->ep);
}

void fr_layout_held_range(const fr_layout *l, const fr_model *m, int r, int *first, int *end) {
    fr_layout_expert_range(l, m, r, first, end);
    const int size = (int)fr_min_i64(m->experts, *end - *first + l->gather_keep);
    *first = (int)fr_max_i64(0, fr_min_i64(*first - l->gather_keep / 2, m->experts - size));
    *end = *first + size;
}

void fr_layout_pull_range(const fr_layout *l, const fr_model *m, int r, int peer, int *first, int *end) {
    int held, held_end;
    fr_layout_held_range(l, m, r, &held, &held_end);
    fr_layout_expert_range(l, m, peer, first, end);
    if (peer < r) *end = (int)fr_max_i64(*first, fr_min_i64(*end, held));
    if (peer >= r) *first = (int)fr_min_i64(*end, fr_max_i64(*first, held_end));
}

bool fr_layout_uses_nccl(const fr_layout *l) {
    const bool gathers = l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD;
    const bool split = l->tp > 1 || l->pp > 1 || (l->experts == FR_EXP_TP && l->dp > 1);
    const bool weights = gathers && l->ep > 1 && l->gather != FR_GATHER_CE;
    return split || weights || (l->experts == FR_EXP_EP && l->ep > 1 && l->exchange == FR_EXCHANGE_AGRS);
}

/* Four layers of shards ahead: the paper does not say k; four is our choice (arXiv 2605.02960 section
 * 6.3 describes the window). */
int fr_layout_window(const fr_layout *l) {
    return l->window ? l->window : 4;
}

static const char *const expert_names[] = {"local", "tp", "ep", "asyncep", "dwdp", "offload", "asap"};
static const char *const gather_names[] = {"ce", "nccl", "nccl-ce"};
static const char *const exchange_names[] = {"a2a", "agrs", "a2a-k", "a2a-fp8"};
static const char *const overlap_names[] = {"none", "tbo", "expert-groups"};

const char *fr_expert_split_name(fr_expert_split e) {
    return (unsigned)e <= FR_EXP_ASAP ? expert_names[e] : "unknown";
}
const char *fr_gather_name(fr_gather g) {
    return (unsigned)g <= FR_GATHER_NCCL_CE ? gather_names[g] : "unknown";
}
int fr_layout_yields(const fr_layout *l) {
    if (l->gather_order != FR_ORDER_YIELD || l->ep <= 2)
        return 0; /* with pulls, one in flight: check_transfer_options */
    return l->ep < 60 ? l->ep / 2 + 1 : 31;
}
const char *fr_exchange_name(fr_exchange x) {
    return (unsigned)x <= FR_EXCHANGE_A2A_FP8 ? exchange_names[x] : "unknown";
}
const char *fr_overlap_name(fr_overlap o) {
    return (unsigned)o <= FR_OVERLAP_EXPERT_GROUPS ? overlap_names[o] : "unknown";
}

/* ---- shorthands ---- */

/* The degree that a shorthand stretches over the GPUs left when the others are given. */
typedef enum { MAIN_DP, MAIN_TP, MAIN_PP, MAIN_EP } main_degree;

static const struct {
    const char *name;
    fr_expert_split experts;
    main_degree stretch;
} shorthands[] = {
    {"dp", FR_EXP_LOCAL, MAIN_DP},        {"tp", FR_EXP_TP, MAIN_TP},           {"ep", FR_EXP_EP, MAIN_EP},
    {"pp", FR_EXP_LOCAL, MAIN_PP},        {"asyncep", FR_EXP_ASYNCEP, MAIN_EP}, {"dwdp", FR_EXP_DWDP, MAIN_EP},
    {"offload", FR_EXP_OFFLOAD, MAIN_EP},
};
enum { SHORTHANDS = sizeof shorthands / sizeof *shorthands, MAX_DEGREE = 65536 };

static int or_one(int degree) {
    return degree ? degree : 1;
}

/* gpus / parts, 0 when that is no whole number. */
static int share(int gpus, int64_t parts) {
    return parts > 0 && parts <= gpus && gpus % parts == 0 ? (int)(gpus / parts) : 0;
}

static fr_status degrees_in_range(const fr_layout *l, int low, fr_error *err) {
    const struct {
        const char *flag;
        int value;
    } degrees[] = {{"--tp", l->tp}, {"--pp", l->pp}, {"--ep", l->ep}, {"--dp", l->dp}, {"--replicas", l->replicas}};
    for (int i = 0; i < 5; i++)
        if (degrees[i].value < low || degrees[i].value > MAX_DEGREE)
            return fr_fail(err, FR_BAD_INPUT, "%s: expected %d to %d, got %d", degrees[i].flag, low, MAX_DEGREE,
                           degrees[i].value);
    return FR_OK;
}

static int64_t product(const fr_layout *l) {
    int64_t stage = (int64_t)l->tp * l->dp + (l->experts == FR_EXP_ASAP ? l->ep : 0);
    return stage > (1 << 20) ? INT64_MAX : stage * l->pp > (1 << 30) ? INT64_MAX : stage * l->pp * l->replicas;
}

/* Degrees given win; the shorthand's own degree takes the GPUs that are left, replicas what is left after that. */
static void fill_degrees(main_degree stretch, int gpus, fr_layout *l) {
    int tp = or_one(l->tp), pp = or_one(l->pp), replicas = or_one(l->replicas);
    if (stretch == MAIN_TP && !l->tp) l->tp = share(gpus, (int64_t)or_one(l->dp) * pp * replicas);
    if (stretch == MAIN_PP && !l->pp) l->pp = share(gpus, (int64_t)or_one(l->dp) * tp * replicas);
    if (stretch == MAIN_DP && !l->dp) l->dp = share(gpus, (int64_t)tp * pp * replicas);
    if (stretch == MAIN_EP && !l->dp)
        l->dp = l->ep && !l->replicas ? or_one(l->ep / tp) : share(gpus, (int64_t)tp * pp * replicas);
    if (!l->tp) l->tp = stretch == MAIN_TP ? 0 : 1;
    if (!l->pp) l->pp = stretch == MAIN_PP ? 0 : 1;
    if (!l->dp) l->dp = stretch == MAIN_TP || stretch == MAIN_PP ? 1 : 0;
    if (!l->ep) l->ep = stretch == MAIN_EP ? l->tp * l->dp : 1;
    if (!l->replicas) l->replicas = share(gpus, (int64_t)l->tp * l->dp * l->pp);
}

/* Half of the GPUs hold experts, half attention, as in ASAP's own set-up (16 + 16 dies; facts: asap-duoserve, a.2). */
static void fill_asap(int gpus, fr_layout *l) {
    if (!l->pp) l->pp = 1;
    if (!l->replicas) l->replicas = 1;
    int each = share(gpus, l->replicas);
    if (!l->tp) l->tp = 1;
    if (!l->ep) l->ep = l->dp ? each - l->tp * l->dp : each / 2;
    if (!l->dp) l->dp = (each - l->ep) / l->tp;
}

fr_status fr_layout_from_strategy(const char *strategy, int gpus, fr_layout *l, fr_error *err) {
    int s = 0;
    bool asap = strcmp(strategy, "asap") == 0;
    while (s < SHORTHANDS && strcmp(shorthands[s].name, strategy) != 0) s++;
    if (s == SHORTHANDS && !asap)
        return fr_fail(err, FR_BAD_INPUT,
                       "--strategy: expected dp, tp, ep, pp, asyncep, dwdp, offload or asap, got '%.60s'", strategy);
    if (gpus < 1 || gpus > MAX_DEGREE)
        return fr_fail(err, FR_BAD_INPUT, "--strategy %s: expected 1 to %d GPUs, got %d", strategy, MAX_DEGREE, gpus);
    FR_TRY(degrees_in_range(l, 0, err));
    snprintf(l->strategy, sizeof l->strategy, "%s", strategy);
    l->experts = asap ? FR_EXP_ASAP : shorthands[s].experts;
    if (asap)
        fill_asap(gpus, l);
    else
        fill_degrees(shorthands[s].stretch, gpus, l);
    l->attention = l->tp > 1 ? FR_ATTN_TP : FR_ATTN_DP;
    /* One micro-batch a stage keeps every stage busy once the pipe is full, with tokens per GPU as for the others. */
    if (!l->micro_batches) l->micro_batches = !asap && shorthands[s].stretch == MAIN_PP ? or_one(l->pp) : 1;
    bool whole = l->tp >= 1 && l->pp >= 1 && l->ep >= 1 && l->dp >= 1 && l->replicas >= 1;
    if (!whole || product(l) != gpus)
        return fr_fail(
            err, FR_BAD_INPUT,
            "--strategy %s: the degrees given (tp %d, pp %d, ep %d, dp %d, replicas %d; 0 = none fits) do not "
            "make %d GPUs; %s",
            strategy, l->tp, l->pp, l->ep, l->dp, l->replicas, gpus,
            asap ? "gpus = replicas * (tp * dp + ep)" : "gpus = replicas * pp * tp * dp");
    return FR_OK;
}

/* ---- validity ---- */

#define REFUSE(...) return fr_fail(err, FR_BAD_INPUT, __VA_ARGS__)

static bool gathers(const fr_layout *l) { /* moves expert weights between GPUs */
    return (l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD) && l->ep > 1;
}

static bool may_gather(const fr_layout *l) {
    return l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD;
}

static fr_status check_enums(const fr_layout *l, fr_error *err) {
    if ((unsigned)l->attention > FR_ATTN_TP) REFUSE("--attention: expected dp or tp");
    if ((unsigned)l->experts > FR_EXP_ASAP) REFUSE("--experts: expected local, tp, ep, asyncep, dwdp, offload or asap");
    if ((unsigned)l->gather > FR_GATHER_NCCL_CE) REFUSE("--gather: expected ce, nccl or nccl-ce");
    if ((unsigned)l->wait > FR_WAIT_MOE) REFUSE("--wait: expected layer or moe");
    if ((unsigned)l->exchange > FR_EXCHANGE_A2A_FP8) REFUSE("--ep-exchange: expected a2a, agrs, a2a-k or a2a-fp8");
    if ((unsigned)l->overlap > FR_OVERLAP_EXPERT_GROUPS) REFUSE("--overlap: expected none, tbo or expert-groups");
    if ((unsigned)l->chunking > FR_CHUNK_BALANCED) REFUSE("--chunking: expected fixed or balanced");
    if ((unsigned)l->precision >= FR_PRECISIONS) REFUSE("--precision: expected bf16 or fp8");
    return FR_OK;
}

static fr_status check_attention(const fr_layout *l, const fr_model *m, fr_error *err) {
    int tp = l->tp;
    if (l->attention == FR_ATTN_DP && tp > 1)
        REFUSE("--tp %d: --attention dp replicates attention; use --attention tp, or --tp 1", tp);
    if (m->heads % tp) REFUSE("--tp %d: expected a divisor of %s's %d heads", tp, m->name, m->heads);
    /* More ranks than KV heads: each rank keeps a copy of the one that its query heads use (Megatron-LM, vLLM). */
    if (m->attention == FR_ATTENTION_GQA && m->kv_heads % tp && tp % m->kv_heads)
        REFUSE("--tp %d: expected a divisor or a multiple of %s's %d KV heads", tp, m->name, m->kv_heads);
    if (m->shared_width % tp) REFUSE("--tp %d: expected a divisor of the shared width %d", tp, m->shared_width);
    if (m->dense_width % tp) REFUSE("--tp %d: expected a divisor of the dense width %d", tp, m->dense_width);
    return FR_OK;
}

static fr_status check_experts(const fr_layout *l, const fr_model *m, fr_error *err) {
    const char *name = fr_expert_split_name(l->experts);
    int ranks = l->tp * l->dp;
    bool whole_tokens = l->experts == FR_EXP_LOCAL || may_gather(l);
    if (whole_tokens && l->tp > 1)
        REFUSE("--tp %d: --experts %s needs --tp 1, as every rank must own whole tokens", l->tp, name);
    if ((l->experts == FR_EXP_LOCAL || l->experts == FR_EXP_TP) && l->ep > 1)
        REFUSE("--ep %d: not used by --experts %s", l->ep, name);
    if (l->experts == FR_EXP_TP) {
        if (m->expert_width % ranks)
            REFUSE("--tp %d --dp %d: expected tp * dp to divide the expert width %d", l->tp, l->dp, m->expert_width);
        /* 16 elements: FP8 rows stay 16-byte aligned, which TMA descriptors and cuBLASLt ask for (CUDA driver API,
         * cuTensorMapEncodeTiled: strides are multiples of 16 bytes). A 128 x 128 scale block may straddle two ranks;
         * both then keep its scale. */
        if (ranks > 1 && m->expert_width / ranks % 16)
            REFUSE("--tp %d --dp %d: an expert width of %d a rank is no multiple of 16 (alignment)", l->tp, l->dp,
                   m->expert_width / ranks);
    }
    if (l->experts == FR_EXP_EP || may_gather(l)) {
        if (ranks % l->ep) REFUSE("--ep %d: expected a divisor of tp * dp = %d", l->ep, ranks);
        if (l->experts == FR_EXP_EP && l->ep % l->tp && l->tp % l->ep)
            REFUSE("--ep %d: expected a divisor or a multiple of --tp %d", l->ep, l->tp);
    }
    if (l->experts == FR_EXP_DWDP) { /* one-sided pulls need no equal shards */
        if (l->ep > m->experts) REFUSE("--ep %d: expected at most the %d experts", l->ep, m->experts);
    } else if (m->experts % l->ep) {
        REFUSE("--ep %d: expected a divisor of %s's %d experts", l->ep, m->name, m->experts);
    }
    if (l->experts == FR_EXP_ASAP) {
        if (l->pp > 1) REFUSE("--pp %d: not used by asap", l->pp);
    }
    return FR_OK;
}

static fr_status check_transfer_options(const fr_layout *l, fr_error *err) {
    const char *name = fr_expert_split_name(l->experts);
    if (l->gather != FR_GATHER_CE && (!may_gather(l) || l->experts == FR_EXP_DWDP))
        REFUSE("--gather %s: not used by --experts %s", fr_gather_name(l->gather), name);
    if (l->gather_chunk < 0) REFUSE("--gather-chunk: expected 0 or more bytes");
    if (l->gather_streams < 0 || l->gather_streams > FR_MAX_GATHER_STREAMS)
        REFUSE("--gather-streams: expected 0 to %d pulls in flight", FR_MAX_GATHER_STREAMS);
    if (l->gather_streams && l->experts != FR_EXP_DWDP && !(l->experts == FR_EXP_ASYNCEP && l->gather == FR_GATHER_CE))
        REFUSE("--gather-streams: not used by --experts %s with --gather %s", name, fr_gather_name(l->gather));
    if (l->gather_order == FR_ORDER_YIELD &&
        ((l->experts != FR_EXP_DWDP && l->experts != FR_EXP_ASYNCEP) || l->gather != FR_GATHER_CE))
        REFUSE("--gather-order yield: not used by --experts %s with --gather %s", name, fr_gather_name(l->gather));
    if (l->gather_order == FR_ORDER_YIELD && l->gather_streams > 1)
        REFUSE("--gather-order yield: expected one pull in flight, not --gather-streams %d", l->gather_streams);
    if (l->gather_chunk && !may_gather(l)) REFUSE("--gather-chunk: not used by --experts %s", name);
    if (l->gather_chunk && l->gather != FR_GATHER_CE)
        REFUSE("--gather-chunk: not used by --gather %s", fr_gather_name(l->gather));
    if (l->wait != FR_WAIT_LAYER && !may_gather(l)) REFUSE("--wait moe: not used by --experts %s", name);
    if (l->exchange != FR_EXCHANGE_A2A && l->experts != FR_EXP_EP)
        REFUSE("--ep-exchange %s: not used by --experts %s", fr_exchange_name(l->exchange), name);
    if (l->overlap != FR_OVERLAP_NONE && l->experts != FR_EXP_EP)
        REFUSE("--overlap %s: not used by --experts %s", fr_overlap_name(l->overlap), name);
    return FR_OK;
}

static fr_status check_keep(const fr_layout *l, const fr_model *m, fr_error *err) {
    const int remote = m->experts - (int)fr_ceil_div(m->experts, l->ep);
    if (!l->gather_keep) return FR_OK;
    if (l->experts != FR_EXP_DWDP && !(l->experts == FR_EXP_ASYNCEP && l->gather == FR_GATHER_CE))
        REFUSE("--gather-keep: not used by --experts %s with --gather %s", fr_expert_split_name(l->experts),
               fr_gather_name(l->gather));
    if (l->gather_keep < 0 || l->gather_keep >= remote)
        REFUSE("--gather-keep: expected fewer than the %d experts that a rank does not own, got %d (with all of them: "
               "--strategy dp)",
               remote, l->gather_keep);
    return FR_OK;
}

/* More pulls a layer than ops of a kind have ids (micro and sub, engine/plan/plan.h), or than memory holds over all
 * layers and ranks, are a slip of the keyboard. */
#define MOST_PULLS 16384

static fr_status check_chunk(const fr_layout *l, const fr_model *m, fr_error *err) {
    const int64_t share = fr_ceil_div(m->experts, l->ep) * fr_model_expert_bytes(m, l->precision);
    const int64_t least = fr_ceil_div(share * (l->ep - 1), MOST_PULLS);
    if (l->gather_chunk && l->gather_chunk < least)
        REFUSE("--gather-chunk %lld: cuts a layer's gather into more than %d pulls; expected %lld bytes or more",
               (long long)l->gather_chunk, MOST_PULLS, (long long)least);
    return FR_OK;
}

static fr_status check_options(const fr_layout *l, const fr_model *m, fr_error *err) {
    FR_TRY(check_transfer_options(l, err));
    FR_TRY(check_chunk(l, m, err));
    FR_TRY(check_keep(l, m, err));
    const char *name = fr_expert_split_name(l->experts);
    if (l->overlap_stages && l->overlap != FR_OVERLAP_EXPERT_GROUPS)
        REFUSE("--overlap-stages: not used by --overlap %s", fr_overlap_name(l->overlap));
    if (l->overlap == FR_OVERLAP_EXPERT_GROUPS && (l->overlap_stages < 2 || l->overlap_stages > m->experts / l->ep))
        REFUSE("--overlap-stages: expected 2 to the %d experts of a rank, got %d", m->experts / l->ep,
               l->overlap_stages);
    if (l->overlap == FR_OVERLAP_EXPERT_GROUPS && l->exchange == FR_EXCHANGE_AGRS)
        REFUSE(
            "--overlap expert-groups: not used by --ep-exchange agrs, which moves every token to every rank at once");
    if (l->overlap != FR_OVERLAP_NONE && l->ep == 1)
        REFUSE("--overlap %s: with --ep 1 nothing travels that could be hidden", fr_overlap_name(l->overlap));
    if (l->micro_batches < 0 || l->micro_batches > MAX_DEGREE)
        REFUSE("--micro-batches: expected 1 to %d, got %d", MAX_DEGREE, l->micro_batches);
    if (l->micro_batches > 1 && l->pp == 1) REFUSE("--micro-batches %d: not used without --pp", l->micro_batches);
    if (l->chunk_tokens < 0) REFUSE("--chunk-tokens: expected 0 or more");
    if (l->chunk_tokens && !l->kv_cache)
        REFUSE("--chunk-tokens: needs the KV cache; later chunks attend to earlier ones");
    if (l->chunking != FR_CHUNK_FIXED && !l->chunk_tokens)
        REFUSE("--chunking balanced: not used without --chunk-tokens");
    if (l->slots && l->experts != FR_EXP_OFFLOAD) REFUSE("--slots %d: not used by --experts %s", l->slots, name);
    if (l->slots && l->ep > 1) REFUSE("--slots %d: not used by offload with --ep %d", l->slots, l->ep);
    if (l->slots < 0 || l->slots > m->experts)
        REFUSE("--slots: expected 0 (a layer ahead) to %d experts, got %d", m->experts, l->slots);
    if (l->window && l->experts != FR_EXP_OFFLOAD) REFUSE("--window %d: not used by --experts %s", l->window, name);
    if (l->window && l->ep == 1) REFUSE("--window %d: not used by offload without --ep", l->window);
    if (l->window < 0 || l->window > m->layers) REFUSE("--window: expected 1 to %d, got %d", m->layers, l->window);
    return FR_OK;
}

static fr_status check_layers(const fr_layout *l, const fr_model *m, fr_error *err) {
    if (l->run_layers < 0 || l->run_layers > m->layers)
        REFUSE("--layers: expected 0 (all) to %d, got %d", m->layers, l->run_layers);
    int layers = fr_layout_layers(l, m);
    if (layers <= m->dense_layers)
        REFUSE("--layers %d: expected more than the %d leading dense layers", layers, m->dense_layers);
    if (l->pp > layers) REFUSE("--pp %d: expected at most %d layers", l->pp, layers);
    if (l->resident_layers < 0 || l->resident_layers > layers)
        REFUSE("--resident-layers: expected 0 (all) to %d, got %d", layers, l->resident_layers);
    if (l->resident_layers && l->resident_layers < layers && m->dense_layers)
        REFUSE("--resident-layers: %s's leading dense layers cannot stand in for layers with experts", m->name);
    return FR_OK;
}

/* Whether every run of `group` consecutive ranks (from each multiple of it) stays within blocks of `block` GPUs. */
static bool groups_within(const fr_layout *l, int group, int block) {
    int gpus = fr_layout_gpus(l);
    for (int first = 0; first < gpus; first += group)
        if (first / block != (first + group - 1) / block) return false;
    return true;
}

static fr_status check_links(const fr_layout *l, const fr_machine *machine, fr_error *err) {
    int gpus = fr_layout_gpus(l), stage = fr_layout_stage_ranks(l);
    if (gpus > machine->gpus)
        REFUSE("the layout needs %d GPUs (replicas %d x pp %d x %d), %s has %d", gpus, l->replicas, l->pp, stage,
               machine->name, machine->gpus);
    if (machine->peak_flops[l->precision] <= 0)
        REFUSE("--precision %s: %s has no such tensor format", fr_precision_name(l->precision), machine->name);
    bool one_sided = l->experts == FR_EXP_ASAP || (gathers(l) && l->gather != FR_GATHER_NCCL);
    int group = l->experts == FR_EXP_ASAP ? stage : l->ep;
    const char *what = l->experts == FR_EXP_ASAP ? "asap" : l->experts == FR_EXP_DWDP ? "dwdp" : "--gather ce";
    if (l->gather == FR_GATHER_NCCL_CE) what = "--gather nccl-ce";
    if (one_sided && machine->link_rate <= 0)
        REFUSE("%s: needs NVLink between its GPUs; %s has none", what, machine->name);
    if (one_sided && !groups_within(l, group, machine->gpus_per_domain))
        REFUSE("%s: its groups of %d ranks must each lie in one NVLink domain (%d GPUs on %s)", what, group,
               machine->gpus_per_domain, machine->name);
    /* Whatever talks: ranks of a stage (collectives) and stages of a pipeline. dp replicas do not talk. */
    bool stage_talks = l->tp > 1 || l->ep > 1 || l->experts == FR_EXP_TP;
    int talks = l->pp > 1 ? stage * l->pp : stage_talks ? stage : 1;
    bool network =
        !groups_within(l, talks, machine->gpus_per_host) && !groups_within(l, talks, machine->gpus_per_domain);
    if (network && machine->network_rate <= 0)
        REFUSE("groups of %d ranks span hosts, and %s has no network_rate", talks, machine->name);
    return FR_OK;
}

static fr_status check_load(const fr_load *load, fr_error *err) {
    const int64_t most = (int64_t)1 << 40; /* tokens; keeps bytes inside int64 */
    if (load->tokens < 0 || load->tokens > most || load->kv_tokens < 0 || load->kv_tokens > most ||
        load->sequences < 0 || load->sequences > most)
        REFUSE("load: expected 0 to 2^40 tokens and sequences");
    if (load->imbalance < 0 || load->imbalance > 1e6 || load->imbalance != load->imbalance)
        REFUSE("load: expected an imbalance from 1 to 1e6");
    return FR_OK;
}

fr_status fr_layout_check(const fr_layout *l, const fr_model *m, const fr_machine *machine, const fr_load *load,
                          fr_memory *memory, bool *fits, char *reason, fr_error *err) {
    FR_TRY(check_enums(l, err));
    FR_TRY(degrees_in_range(l, 1, err));
    if (product(l) > MAX_DEGREE) REFUSE("the degrees make more than %d GPUs", MAX_DEGREE);
    FR_TRY(check_layers(l, m, err));
    FR_TRY(check_attention(l, m, err));
    FR_TRY(check_experts(l, m, err));
    FR_TRY(check_options(l, m, err));
    FR_TRY(check_links(l, machine, err));
    FR_TRY(check_load(load, err));
    fr_layout_memory(l, m, machine, load, memory);
    *fits = fr_memory_fits(memory, machine, reason);
    return FR_OK;
}

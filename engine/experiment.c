/*
 * The one table of options: name, help, type, place and range of everything that can be said about an experiment. The
 * command line, experiment files, sweeps, stored configurations, --help, the man page and the README all read it.
 */
#include "engine/experiment.h"

#include "engine/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { T_TEXT, T_INT, T_LONG, T_SEED, T_REAL, T_ON, T_OFF, T_ENUM, T_ROUTING } value_type;
typedef const char *(*enum_names)(int); /* NULL at the end */

#define NAMES(function, ...)                                                                                           \
    static const char *function(int i) {                                                                               \
        static const char *const names[] = {__VA_ARGS__};                                                              \
        return i >= 0 && i < (int)(sizeof names / sizeof *names) ? names[i] : NULL;                                    \
    }
NAMES(attention_names, "dp", "tp")
NAMES(order_names, "fcfs", "yield")
NAMES(wait_names, "layer", "moe")
NAMES(chunking_names, "fixed", "balanced")
NAMES(spread_names, "even", "uniform", "none")
NAMES(route_names, "round-robin", "least-tokens", "vllm", "prefix")
NAMES(regime_names, "burst", "sustained")
static const char *precision_names(int i) {
    return i >= 0 && i < FR_PRECISIONS ? fr_precision_name((fr_precision)i) : NULL;
}
static const char *expert_names(int i) {
    return i >= 0 && i <= FR_EXP_ASAP ? fr_expert_split_name((fr_expert_split)i) : NULL;
}
static const char *gather_names(int i) {
    return i >= 0 && i <= FR_GATHER_NCCL_CE ? fr_gather_name((fr_gather)i) : NULL;
}
static const char *exchange_names(int i) {
    return i >= 0 && i <= FR_EXCHANGE_A2A_FP8 ? fr_exchange_name((fr_exchange)i) : NULL;
}
static const char *overlap_names(int i) {
    return i >= 0 && i <= FR_OVERLAP_EXPERT_GROUPS ? fr_overlap_name((fr_overlap)i) : NULL;
}

#define TOKEN (1 << 24) /* one sequence: beyond any model's positions, and its square fits a double exactly */

/* X(name, argument, group, help, type, field, low, high, names); text options keep low = 0 and high = 0. */
#define OPTIONS(X)                                                                                                     \
    X("model", "NAME|FILE", "What runs where",                                                                         \
      "model: a built-in name (forerun list models) or a Hugging Face "                                                \
      "config.json",                                                                                                   \
      T_TEXT, model, 0, 0, NULL)                                                                                       \
    X("machine", "NAME|FILE", "What runs where", "machine: a built-in name (forerun list machines) or a JSON file",    \
      T_TEXT, machine, 0, 0, NULL)                                                                                     \
    X("gpus", "N", "What runs where", "GPUs of the machine to use; 0 = all", T_INT, gpus, 0, 65536, NULL)              \
    X("precision", "bf16|fp8", "What runs where", "format of the linear weights and their operands", T_ENUM,           \
      layout.precision, 0, 0, precision_names)                                                                         \
    X("layers", "N", "What runs where", "run N layers; 0 = all of the model's", T_INT, layout.run_layers, 0, 4096,     \
      NULL)                                                                                                            \
    X("resident-layers", "M", "What runs where", "layer i uses the weights of layer i mod M; 0 = each its own", T_INT, \
      layout.resident_layers, 0, 4096, NULL)                                                                           \
    X("strategy", "NAME", "Layout",                                                                                    \
      "shorthand for a layout (forerun list strategies); degrees are filled in from the "                              \
      "GPUs",                                                                                                          \
      T_TEXT, layout.strategy, 0, 0, NULL)                                                                             \
    X("attention", "dp|tp", "Layout", "attention: replicated, or split by heads", T_ENUM, layout.attention, 0, 0,      \
      attention_names)                                                                                                 \
    X("experts", "local|tp|ep|asyncep|dwdp|offload", "Layout",                                                         \
      "experts: on every rank, split by width, split by "                                                              \
      "expert, gathered a layer ahead, pulled one-sided, or streamed from host memory",                                \
      T_ENUM, layout.experts, 0, 0, expert_names)                                                                      \
    X("tp", "N", "Layout", "ranks that split attention by heads; 0 = from the strategy", T_INT, layout.tp, 0, 4096,    \
      NULL)                                                                                                            \
    X("pp", "N", "Layout", "pipeline stages; 0 = from the strategy", T_INT, layout.pp, 0, 4096, NULL)                  \
    X("ep", "N", "Layout",                                                                                             \
      "ranks that share one set of experts (ep, asyncep, dwdp, offload); asap: expert ranks; "                         \
      "0 = from the strategy",                                                                                         \
      T_INT, layout.ep, 0, 4096, NULL)                                                                                 \
    X("dp", "N", "Layout", "attention groups of a stage; 0 = from the strategy", T_INT, layout.dp, 0, 4096, NULL)      \
    X("replicas", "N", "Layout", "independent copies of the whole layout; 0 = from the strategy", T_INT,               \
      layout.replicas, 0, 4096, NULL)                                                                                  \
    X("gather", "ce|nccl|nccl-ce", "Layout",                                                                           \
      "asyncep: how weights are gathered: pulls on copy engines, or a "                                                \
      "collective",                                                                                                    \
      T_ENUM, layout.gather, 0, 0, gather_names)                                                                       \
    X("gather-chunk", "BYTES", "Layout", "bytes of one pull; 0 = one pull per peer", T_LONG, layout.gather_chunk, 0,   \
      1ll << 40, NULL)                                                                                                 \
    X("gather-streams", "N", "Layout", "pulls in flight per GPU; 0 = one", T_INT, layout.gather_streams, 0, 4, NULL)   \
    X("gather-order", "fcfs|yield", "Layout",                                                                          \
      "pulls of several readers at one GPU: as they come, or a reader lets the next rank keep ahead of it in its "     \
      "gather",                                                                                                        \
      T_ENUM, layout.gather_order, 0, 0, order_names)                                                                  \
    X("gather-keep", "N", "Layout",                                                                                    \
      "asyncep, dwdp: experts of other ranks that each GPU holds besides its own, so that fewer travel", T_INT,        \
      layout.gather_keep, 0, 4096, NULL)                                                                               \
    X("wait", "layer|moe", "Layout", "asyncep: where a layer waits for its weights: at its entry or at its experts",   \
      T_ENUM, layout.wait, 0, 0, wait_names)                                                                           \
    X("ep-exchange", "NAME", "Layout",                                                                                 \
      "ep: how tokens travel: a2a (one copy per token and target rank), agrs (all-gather and reduce-scatter); for "    \
      "comparison a2a-k (one copy per expert) and a2a-fp8 (a2a with rows in fp8)",                                     \
      T_ENUM, layout.exchange, 0, 0, exchange_names)                                                                   \
    X("overlap", "none|tbo|expert-groups", "Layout",                                                                   \
      "ep: what hides the exchange: nothing, a second half batch (tbo), or experts in groups, one after the other",    \
      T_ENUM, layout.overlap, 0, 0, overlap_names)                                                                     \
    X("overlap-stages", "N", "Layout", "expert groups of that pipeline, 2 or more", T_INT, layout.overlap_stages, 0,   \
      256, NULL)                                                                                                       \
    X("micro-batches", "N", "Layout", "pp: micro-batches of a forward; 0 = from the strategy", T_INT,                  \
      layout.micro_batches, 0, 256, NULL)                                                                              \
    X("chunk-tokens", "N", "Layout", "chunked prefill: the largest chunk; 0 = whole sequences", T_LONG,                \
      layout.chunk_tokens, 0, 1ll << 30, NULL)                                                                         \
    X("chunking", "fixed|balanced", "Layout", "pp: chunks of equal tokens, or of equal cost", T_ENUM, layout.chunking, \
      0, 0, chunking_names)                                                                                            \
    X("slots", "S", "Layout", "offload: expert slots on the GPU; 0 = a layer ahead", T_INT, layout.slots, 0, 4096,     \
      NULL)                                                                                                            \
    X("window", "K", "Layout", "offload with --ep: layers that the host copies run ahead; 0 = 4", T_INT,               \
      layout.window, 0, 4096, NULL)                                                                                    \
    X("no-kv-cache", NULL, "Layout", "keep no KV cache: attention on the fly, no prefix, no chunks", T_OFF,            \
      layout.kv_cache, 0, 0, NULL)                                                                                     \
    X("skew", "SPEC", "Routing", "even, uniform, zipf:S, hot:R (hottest expert R times the mean) or deepseek-v3",      \
      T_TEXT, routing, 0, 0, NULL)                                                                                     \
    X("routing", "FILE", "Routing", "recorded routed counts (forerun run --record-routing)", T_ROUTING, routing, 0, 0, \
      NULL)                                                                                                            \
    X("seed", "K", "Routing", "seed of drawn routing and of generated requests", T_SEED, seed, 0, 0, NULL)             \
    X("tokens", "N", "Batch", "new tokens per GPU and forward (16K = 16384)", T_LONG, tokens, 1, 1ll << 30, NULL)      \
    X("seq", "N", "Batch", "tokens per sequence; a forward holds --tokens / --seq of them per GPU", T_LONG, seq, 1,    \
      TOKEN, NULL)                                                                                                     \
    X("seqs", "N,NxK,.../...", "Batch",                                                                                \
      "lengths of a forward's sequences in place of equal ones: dealt round robin, or one list per attention group "   \
      "(asap: per batch, two a group) between slashes; forwards take turns between semicolons",                        \
      T_TEXT, seqs, 0, 0, NULL)                                                                                        \
    X("prefix", "N", "Batch", "cached prefix tokens before every sequence", T_LONG, prefix, 0, TOKEN, NULL)            \
    X("forwards", "K", "Batch", "consecutive forwards of such a batch", T_INT, forwards, 1, 1000000, NULL)             \
    X("candidates", "N", "Batch", "logits computed at a sequence's last position; -1 = the whole vocabulary", T_INT,   \
      candidates, -1, 1 << 20, NULL)                                                                                   \
    X("trace", "FILE|NAME", "Trace",                                                                                   \
      "requests of a trace file, a shipped trace or a generator (forerun list traces) "                                \
      "in place of equal batches",                                                                                     \
      T_TEXT, trace, 0, 0, NULL)                                                                                       \
    X("format", "NAME", "Trace", "format of the trace file, where it is not to be detected", T_TEXT, format, 0, 0,     \
      NULL)                                                                                                            \
    X("spread", "even|uniform|none", "Trace", "mooncake: where within their recorded step of 3 s requests arrive",     \
      T_ENUM, spread, 0, 0, spread_names)                                                                              \
    X("rate", "R", "Trace", "requests per second in place of the recorded arrivals; 0 = as recorded", T_REAL, rate, 0, \
      1e9, NULL)                                                                                                       \
    X("duration", "S", "Trace", "take the arrivals of the first S seconds; 0 = all", T_REAL, duration_s, 0, 1e9, NULL) \
    X("requests", "N", "Trace", "take the first N requests; 0 = all", T_LONG, max_requests, 0, 1ll << 40, NULL)        \
    X("offline", NULL, "Trace", "all requests at time 0: batch completion", T_ON, offline, 0, 0, NULL)                 \
    X("budget", "N", "Trace", "new tokens per GPU and forward: a group of tp GPUs takes tp times as many", T_LONG,     \
      budget, 1, 1ll << 30, NULL)                                                                                      \
    X("route", "round-robin|least-tokens|vllm|prefix", "Trace", "how a request finds its attention group", T_ENUM,     \
      route, 0, 0, route_names)                                                                                        \
    X("cache-tokens", "N", "Trace", "prefix cache per attention group in tokens; -1 = what memory leaves, 0 = none",   \
      T_LONG, cache_tokens, -1, 1ll << 40, NULL)                                                                       \
    X("regime", "burst|sustained", "Cost",                                                                             \
      "a short run after rest, at full clocks, or one that goes on, under the power limit", T_ENUM, regime, 0, 0,      \
      regime_names)                                                                                                    \
    X("no-sharing", NULL, "Cost", "overlapping ops do not share bandwidth", T_OFF, sharing, 0, 0, NULL)                \
    X("no-interference", NULL, "Cost", "overlapping ops do not slow each other beyond shared bandwidth", T_OFF,        \
      interference, 0, 0, NULL)                                                                                        \
    X("no-fold", NULL, "Cost", "play every rank, also identical ones (same result, slower)", T_OFF, fold, 0, 0, NULL)  \
    X("costs", "FOLDER", "Cost", "measured cost tables in place of those compiled in", T_TEXT, tables, 0, 0, NULL)     \
    X("extra-costs", "FILE", "Cost", "your own measured rows on top (kernels/measured/FORMAT.md)", T_TEXT,             \
      extra_costs, 0, 0, NULL)                                                                                         \
    X("what-if", "NAME=FACTORx,...", "Cost",                                                                           \
      "scale the machine: nvlink, hbm, pcie, flops, network, launch; none = as it is", T_TEXT, what_if, 0, 0, NULL)    \
    X("ignore-memory", NULL, "Cost", "go on where the layout does not fit", T_ON, ignore_memory, 0, 0, NULL)

static const fr_option options[] = {
#define OPTION(name, argument, group, help, type, field, low, high, names) {name, argument, group, help},
    OPTIONS(OPTION)
#undef OPTION
        {NULL, NULL, NULL, NULL}};

typedef struct {
    value_type type;
    size_t offset, size;
    int64_t low, high;
    enum_names names;
} place;

#define SIZE_OF(field) sizeof(((fr_experiment *)0)->field)
static const place places[] = {
#define PLACE(name, argument, group, help, type, field, low, high, names)                                              \
    {type, offsetof(fr_experiment, field), SIZE_OF(field), (int64_t)(low), (int64_t)(high), names},
    OPTIONS(PLACE)
#undef PLACE
};
enum { OPTIONS_COUNT = sizeof places / sizeof *places };
_Static_assert(OPTIONS_COUNT <= 64, "fr_experiment.given has one bit per option");
_Static_assert(sizeof(fr_precision) == sizeof(int), "enums are stored as int");

const fr_option *fr_experiment_options(void) {
    return options;
}

static int find_option(const char *name) {
    for (int i = 0; i < OPTIONS_COUNT; i++)
        if (strcmp(options[i].name, name) == 0) return i;
    return -1;
}

bool fr_experiment_given(const fr_experiment *e, const char *name) {
    int i = find_option(name);
    return i >= 0 && (e->given >> i & 1) != 0;
}

void fr_experiment_defaults(fr_experiment *e) {
    *e = (fr_experiment){.model = "qwen3-235b-a22b",
                         .machine = "h200x8",
                         .routing = "deepseek-v3",
                         .seed = 1,
                         .tokens = 16384,
                         .seq = 4096,
                         .forwards = 8,
                         .candidates = 2,
                         .budget = 16384,
                         .cache_tokens = -1,
                         .regime = FR_SUSTAINED,
                         .sharing = true,
                         .interference = true,
                         .fold = true,
                         .layout = {.kv_cache = true}};
}

/* "expected one of a, b or c" */
static void list_names(enum_names names, char *out, size_t size) {
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; names(i); i++) {
        int n = snprintf(out + used, size - used, "%s%s", i == 0 ? "" : names(i + 1) ? ", " : " or ", names(i));
        if (n < 0 || (size_t)n >= size - used) return;
        used += (size_t)n;
    }
}

static fr_status set_enum(void *at, const place *p, const char *flag, const char *value, fr_error *err) {
    for (int i = 0; p->names(i); i++)
        if (strcmp(p->names(i), value) == 0) {
            memcpy(at, &i, sizeof i);
            return FR_OK;
        }
    char known[256];
    list_names(p->names, known, sizeof known);
    return fr_fail(err, FR_BAD_INPUT, "%s: expected %s, got '%.64s'", flag, known, value);
}

static fr_status set_text(char *at, const place *p, const char *flag, const char *before, const char *value,
                          fr_error *err) {
    if (!value[0]) return fr_fail(err, FR_BAD_INPUT, "%s: expected a text, got an empty one", flag);
    int n = snprintf(at, p->size, "%s%s", before, value);
    if (n < 0 || (size_t)n >= p->size)
        return fr_fail(err, FR_BAD_INPUT, "%s: longer than %zu characters: '%.40s...'", flag, p->size - 1, value);
    return FR_OK;
}

/* A switch takes no value on the command line; an experiment file and a grid say true or false. */
static fr_status set_switch(bool *at, bool on, const char *flag, const char *value, fr_error *err) {
    bool yes = !value || strcmp(value, "true") == 0;
    if (!yes && strcmp(value, "false") != 0)
        return fr_fail(err, FR_BAD_INPUT, "%s: expected true or false, got '%.64s'", flag, value);
    *at = yes ? on : !on;
    return FR_OK;
}

static fr_status set_number(void *at, const place *p, const char *flag, const char *value, fr_error *err) {
    if (p->type == T_REAL) return fr_parse_double(value, (double)p->low, (double)p->high, flag, at, err);
    int64_t n;
    if (p->type == T_SEED) {
        FR_TRY(fr_parse_int(value, 0, INT64_MAX, false, flag, &n, err));
        *(uint64_t *)at = (uint64_t)n;
        return FR_OK;
    }
    FR_TRY(fr_parse_int(value, p->low, p->high, true, flag, &n, err));
    if (p->type == T_INT)
        *(int *)at = (int)n;
    else
        *(int64_t *)at = n;
    return FR_OK;
}

fr_status fr_experiment_set(fr_experiment *e, const char *name, const char *value, fr_error *err) {
    int i = find_option(name);
    if (i < 0) return fr_fail(err, FR_BAD_INPUT, "unknown option '%.64s' (see forerun simulate --help)", name);
    char flag[40];
    snprintf(flag, sizeof flag, "--%s", name);
    const place *p = &places[i];
    void *at = (char *)e + p->offset;
    if (!value && p->type != T_ON && p->type != T_OFF)
        return fr_fail(err, FR_BAD_INPUT, "%s: expected a value: %s", flag, options[i].argument);
    fr_status status = FR_OK;
    switch (p->type) {
    case T_TEXT:
        if (at == e->what_if && value && strcmp(value, "none") == 0) {
            e->what_if[0] = 0; /* so that a grid can hold the machine as it is beside its what-ifs */
            break;
        }
        status = set_text(at, p, flag, "", value, err);
        break;
    case T_ROUTING:
        status = set_text(at, p, flag, "file:", value, err);
        break;
    case T_ENUM:
        status = set_enum(at, p, flag, value, err);
        break;
    case T_ON:
        status = set_switch(at, true, flag, value, err);
        break;
    case T_OFF:
        status = set_switch(at, false, flag, value, err);
        break;
    case T_INT:
    case T_LONG:
    case T_SEED:
    case T_REAL:
        status = set_number(at, p, flag, value, err);
        break;
    }
    if (status == FR_OK) e->given |= 1ull << i;
    return status;
}

/* ---- canonical form
 * ------------------------------------------------------------------------------------------------------- */

bool fr_experiment_wants_text(const char *name) {
    const int i = find_option(name);
    return i >= 0 && places[i].type == T_TEXT;
}

static fr_status apply_object(fr_experiment *e, json_t *object, const char *where, fr_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        char buffer[64];
        const char *text = fr_json_text_of(value, buffer, sizeof buffer);
        if (!text) return fr_fail(err, FR_BAD_INPUT, "%s: %.64s: expected a text, a number or a boolean", where, key);
        fr_error inner = {0};
        fr_status status = fr_experiment_set(e, key, text, &inner);
        if (status != FR_OK) return fr_fail(err, status, "%s: %s", where, inner.text);
    }
    return FR_OK;
}

static json_t *value_json(const fr_experiment *e, const place *p) {
    const void *at = (const char *)e + p->offset;
    switch (p->type) {
    case T_TEXT:
        return json_string(at);
    case T_ENUM:
        return json_string(p->names(*(const int *)at));
    case T_INT:
        return json_integer(*(const int *)at);
    case T_LONG:
        return json_integer(*(const int64_t *)at);
    case T_SEED:
        return json_integer((json_int_t) * (const uint64_t *)at);
    case T_REAL:
        return json_real(*(const double *)at);
    case T_ON:
        return json_boolean(*(const bool *)at);
    case T_OFF:
        return json_boolean(!*(const bool *)at);
    case T_ROUTING:
        break;
    }
    return NULL; /* "routing" is said by "skew": "file:PATH" */
}

char *fr_experiment_json(const fr_experiment *e) {
    json_t *root = json_object();
    for (int i = 0; i < OPTIONS_COUNT; i++) {
        json_t *value = value_json(e, &places[i]);
        if (value) json_object_set_new(root, options[i].name, value);
    }
    char *text = json_dumps(root, JSON_SORT_KEYS | JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(root);
    return text;
}

fr_status fr_experiment_from_json(const char *text, const char *where, fr_experiment *e, fr_error *err) {
    fr_json root;
    fr_experiment_defaults(e);
    FR_TRY(fr_json_open(text, strlen(text), where, &root, err));
    /* Empty texts are options left unset. */
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(root.value, next, key, value) {
        if (json_is_string(value) && json_string_length(value) == 0) json_object_del(root.value, key);
    }
    fr_status status = apply_object(e, root.value, where, err);
    fr_json_close(&root);
    /* Nothing is `given`, but a layout that no strategy stands for is said by these two alone. */
    bool custom = strcmp(e->layout.strategy, "custom") == 0 || !e->layout.strategy[0];
    e->given = custom ? 1ull << find_option("attention") | 1ull << find_option("experts") : 0;
    return status;
}

const char *fr_experiment_default(const char *name, char *buffer, size_t size) {
    static const char *const by_strategy[] = {"attention", "experts"};
    const int i = find_option(name);
    if (i < 0 || !options[i].argument) return NULL;
    for (int k = 0; k < 2; k++)
        if (strcmp(name, by_strategy[k]) == 0) return NULL;
    fr_experiment standard;
    fr_experiment_defaults(&standard);
    json_t *value = value_json(&standard, &places[i]);
    char number[64];
    const char *text = value ? fr_json_text_of(value, number, sizeof number) : NULL;
    const int n = snprintf(buffer, size, "%s", text ? text : "");
    json_decref(value);
    return n > 0 ? buffer : NULL;
}

static void add_quoted(fr_text *out, const char *value) {
    if (value[0] &&
        value[strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+:,./")] == 0) {
        fr_text_add(out, "%s", value);
        return;
    }
    fr_text_add(out, "'");
    for (const char *c = value; *c; c++) fr_text_add(out, *c == '\'' ? "'\\''" : "%c", *c);
    fr_text_add(out, "'");
}

void fr_experiment_flags(const fr_experiment *e, fr_text *out) {
    fr_experiment standard;
    fr_experiment_defaults(&standard);
    for (int i = 0; i < OPTIONS_COUNT; i++) {
        const place *p = &places[i];
        json_t *mine = value_json(e, p), *usual = value_json(&standard, p);
        bool always = strcmp(options[i].name, "model") == 0 || strcmp(options[i].name, "machine") == 0;
        if (mine && (always || !json_equal(mine, usual))) {
            char buffer[64];
            fr_text_add(out, "%s--%s", out->length ? " " : "", options[i].name);
            if (options[i].argument) {
                fr_text_add(out, " ");
                add_quoted(out, fr_json_text_of(mine, buffer, sizeof buffer));
            }
        }
        json_decref(mine);
        json_decref(usual);
    }
}

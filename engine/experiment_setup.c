/*
 * From an experiment as it was said to everything that an executor needs: names loaded, degrees filled in, options
 * that would act on nothing refused, the load sized, the layout checked.
 */
#include "engine/deal.h"
#include "engine/experiment.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- degrees ----------------------------------------------------------------------------------------------------- */

static fr_status must_divide(int gpus, int part, const char *what, fr_error *err) {
    if (part > 0 && gpus % part == 0) return FR_OK;
    return fr_fail(err, FR_BAD_INPUT, "%s = %d does not divide %d GPUs: change a degree or --gpus", what, part, gpus);
}

/* A layout said by --attention and --experts: degrees that were left out take what the GPUs leave. */
static fr_status fill_custom(fr_experiment *e, int gpus, fr_error *err) {
    fr_layout *l = &e->layout;
    bool attention = fr_experiment_given(e, "attention"), experts = fr_experiment_given(e, "experts");
    if (!attention) l->attention = l->tp > 1 || (l->experts == FR_EXP_TP && l->dp <= 1) ? FR_ATTN_TP : FR_ATTN_DP;
    if (!experts) l->experts = l->attention == FR_ATTN_TP ? FR_EXP_TP : FR_EXP_LOCAL;
    snprintf(l->strategy, sizeof l->strategy, "custom");
    if (!l->replicas) l->replicas = 1;
    if (!l->pp) l->pp = 1;
    FR_TRY(must_divide(gpus, l->replicas * l->pp, "replicas x pp", err));
    int stage = gpus / (l->replicas * l->pp);
    if (l->attention == FR_ATTN_DP) {
        if (l->tp > 1)
            return fr_fail(err, FR_BAD_INPUT, "--tp %d contradicts --attention dp: say --attention tp", l->tp);
        l->tp = 1;
    }
    if (!l->tp) {
        if (!l->dp) l->dp = 1;
        FR_TRY(must_divide(stage, l->dp, "dp", err));
        l->tp = stage / l->dp;
    }
    if (!l->dp) {
        FR_TRY(must_divide(stage, l->tp, "tp", err));
        l->dp = stage / l->tp;
    }
    bool spread = l->experts == FR_EXP_EP || l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP;
    if (!l->ep) l->ep = spread ? l->tp * l->dp : 1;
    if (!l->micro_batches)
        l->micro_batches = l->pp; /* as the pp shorthand does: every stage busy once the pipe is full */
    return FR_OK;
}

static fr_status resolve_layout(fr_experiment *e, const fr_machine *machine, fr_error *err) {
    fr_layout *l = &e->layout;
    int gpus = e->gpus ? e->gpus : machine->gpus;
    if (gpus > machine->gpus)
        return fr_fail(err, FR_BAD_INPUT, "--gpus %d: %s has %d", gpus, machine->name, machine->gpus);
    bool attention = fr_experiment_given(e, "attention"), experts = fr_experiment_given(e, "experts");
    fr_attention_split asked_attention = l->attention;
    fr_expert_split asked_experts = l->experts;
    if (l->strategy[0] && strcmp(l->strategy, "custom") != 0) {
        char strategy[sizeof l->strategy]; /* *l is written */
        memcpy(strategy, l->strategy, sizeof strategy);
        FR_TRY(fr_layout_from_strategy(strategy, gpus, l, err));
        if (attention && asked_attention != l->attention)
            return fr_fail(err, FR_BAD_INPUT, "--attention contradicts --strategy %s: give one of them", l->strategy);
        if (experts && asked_experts != l->experts)
            return fr_fail(err, FR_BAD_INPUT, "--experts %s contradicts --strategy %s: give one of them",
                           fr_expert_split_name(asked_experts), l->strategy);
    } else if (attention || experts || l->strategy[0]) {
        FR_TRY(fill_custom(e, gpus, err));
    } else {
        return fr_fail(err, FR_BAD_INPUT,
                       "no layout: say --strategy NAME (forerun list strategies), or --attention and "
                       "--experts");
    }
    /* A trace is a stream: consecutive forwards fill the pipeline as micro-batches would, without making them smaller.
     */
    if (e->trace[0] && !fr_experiment_given(e, "micro-batches")) l->micro_batches = 1;
    int takes = fr_layout_gpus(l);
    if (takes > gpus)
        return fr_fail(err, FR_BAD_INPUT,
                       "the layout takes %d GPUs (replicas %d x pp %d x dp %d x tp %d%s), there are %d", takes,
                       l->replicas, l->pp, l->dp, l->tp, l->experts == FR_EXP_ASAP ? ", and expert ranks" : "", gpus);
    if (e->gpus && takes != e->gpus)
        return fr_fail(err, FR_BAD_INPUT, "--gpus %d: the layout takes %d: leave out a degree or --gpus", e->gpus,
                       takes);
    e->gpus = takes;
    return FR_OK;
}

/* ---- an accepted flag is never ignored --------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    bool acts;
    const char *needs;
} use;

/* Options that were given by name and that nothing in this experiment would read. */
static fr_status refuse_unused(const fr_experiment *e, fr_error *err) {
    const fr_layout *l = &e->layout;
    bool trace = e->trace[0] != 0;
    bool ep = l->experts == FR_EXP_EP, asyncep = l->experts == FR_EXP_ASYNCEP, dwdp = l->experts == FR_EXP_DWDP;
    bool offload = l->experts == FR_EXP_OFFLOAD;
    bool pulls = dwdp || ((asyncep || (offload && l->ep > 1)) && l->gather == FR_GATHER_CE);
    const use uses[] = {
        {"tokens", !trace && !e->seqs[0], "equal batches: --trace has --budget, --seqs its own lengths"},
        {"seq", !trace && !e->seqs[0], "equal batches: --trace and --seqs have their own lengths"},
        {"seqs", !trace, "batches in place of a trace"},
        {"prefix", !trace, "equal batches: a trace has its own prefixes"},
        {"forwards", !trace, "equal batches: with --trace use --requests or --duration"},
        {"format", trace, "--trace"},
        {"spread", trace && strchr(e->trace, ':') == NULL, "a trace file with stepped arrivals (mooncake)"},
        {"rate", trace, "--trace"},
        {"duration", trace, "--trace"},
        {"requests", trace, "--trace"},
        {"offline", trace, "--trace"},
        {"budget", trace, "--trace (equal batches are sized by --tokens)"},
        {"route", trace, "--trace"},
        {"cache-tokens", trace, "--trace (equal batches say --prefix)"},
        {"gather", asyncep || (offload && l->ep > 1), "experts asyncep, or offload with --ep above 1"},
        {"gather-chunk", pulls, "experts gathered by pulls (asyncep or offload with --gather ce, dwdp)"},
        {"gather-streams", pulls && !offload && (e->sharing || l->gather_streams == 1),
         "experts asyncep with --gather ce or dwdp, and sharing"},
        {"gather-order", pulls && !offload && l->ep > 2 && l->gather_streams <= 1,
         "experts asyncep with --gather ce or dwdp, one pull in flight, and more than two ranks"},
        {"gather-keep", dwdp || (asyncep && l->gather == FR_GATHER_CE), "experts asyncep with --gather ce, or dwdp"},
        {"wait", asyncep || dwdp || offload, "experts asyncep, dwdp or offload"},
        {"ep-exchange", ep, "experts ep"},
        {"overlap", ep, "experts ep"},
        {"overlap-stages", ep && l->overlap == FR_OVERLAP_EXPERT_GROUPS, "--overlap expert groups"},
        {"micro-batches", l->pp > 1, "--pp above 1"},
        {"chunk-tokens", trace || l->pp > 1, "pipeline stages (--pp above 1) or a trace"},
        {"chunking", l->chunk_tokens > 0 && l->pp > 1 && !trace,
         "--chunk-tokens, pipeline stages (--pp above 1) and no trace (the scheduler cuts into equal tokens)"},
        {"slots", offload, "experts offload"},
        {"window", offload && l->ep > 1, "experts offload with --ep above 1"},
        {"ep", ep || asyncep || dwdp || offload || l->experts == FR_EXP_ASAP || l->ep <= 1,
         "experts ep, asyncep, dwdp, offload or asap"},
    };
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++)
        if (fr_experiment_given(e, uses[i].name) && !uses[i].acts)
            return fr_fail(err, FR_BAD_INPUT, "--%s acts on nothing here: it needs %s", uses[i].name, uses[i].needs);
    if (fr_experiment_given(e, "skew") && fr_experiment_given(e, "routing"))
        return fr_fail(err, FR_BAD_INPUT, "--skew and --routing say the same thing: give one of them");
    if (!l->kv_cache && (e->prefix > 0 || e->cache_tokens > 0 || l->chunk_tokens > 0))
        return fr_fail(err, FR_BAD_INPUT, "--no-kv-cache: %s needs the cache",
                       e->prefix > 0         ? "--prefix"
                       : e->cache_tokens > 0 ? "--cache-tokens"
                                             : "--chunk-tokens");
    return FR_OK;
}

/* ---- load -------------------------------------------------------------------------------------------------------- */

/* Hottest rank's share of routed tokens over the mean, of the worst layer, experts placed contiguously (layout.h). */
static double rank_imbalance(const fr_setup *s) {
    const fr_layout *l = &s->experiment.layout;
    int ranks = l->ep, experts = s->model.experts;
    bool travels = l->experts == FR_EXP_EP || l->experts == FR_EXP_ASAP;
    if (!travels || ranks <= 1) return 1;
    double worst = 1;
    int layers = fr_layout_layers(l, &s->model);
    for (int i = 0; i < layers; i++) {
        if (!fr_model_is_moe_layer(&s->model, i % s->model.layers)) continue;
        const double *share = fr_routing_shares(s->routing, i % s->model.layers);
        for (int r = 0; r < ranks; r++) {
            double sum = 0;
            for (int x = r * experts / ranks; x < (r + 1) * experts / ranks; x++) sum += share[x];
            if (sum * ranks > worst) worst = sum * ranks;
        }
    }
    return worst;
}

/* Sequences that one attention group holds at once: a bound on the host's own tables, far above any real batch. */
#define MOST_SEQUENCES (1 << 20)

static fr_status too_many(int64_t sequences, int64_t tokens, fr_error *err) {
    if (sequences <= MOST_SEQUENCES && tokens <= INT32_MAX) return FR_OK;
    return fr_fail(err, FR_BAD_INPUT,
                   "%" PRId64 " sequences of %" PRId64 " tokens in one attention group: more than %d sequences or 2^31 "
                   "tokens; take fewer --tokens",
                   sequences, tokens, MOST_SEQUENCES);
}

/* Each sequence of a batch asks for as many. */
static void size_logits(fr_setup *s) {
    const int candidates = s->experiment.candidates;
    s->load.logits = s->load.sequences * (candidates < 0 ? s->model.vocab : candidates);
}

/* A list of lengths: --tokens and --seq become its tokens per GPU and its longest sequence. */
static fr_status size_list(fr_setup *s, int64_t groups, fr_error *err) {
    fr_experiment *e = &s->experiment;
    fr_seqs q;
    FR_TRY(fr_seqs_check(e->seqs, groups, &q, err));
    FR_TRY(too_many(q.most_sequences, q.most_tokens, err));
    e->seq = q.longest;
    e->tokens = fr_max_i64(q.tokens / fr_layout_gpus(&e->layout), 1);
    s->load.tokens = q.most_tokens;
    s->load.sequences = q.most_sequences;
    s->load.longest = q.longest;
    s->load.equal = false;
    size_logits(s);
    s->load.kv_tokens =
        e->layout.kv_cache ? fr_layout_batches(&e->layout) * (q.most_tokens + q.most_sequences * e->prefix) : 0;
    s->load.kept = e->prefix > 0 || e->layout.chunk_tokens > 0;
    return FR_OK;
}

static fr_status size_batches(fr_setup *s, fr_error *err) {
    const fr_experiment *e = &s->experiment;
    const int batches = fr_layout_batches(&e->layout);
    int64_t groups = (int64_t)e->layout.replicas * e->layout.dp * batches; /* asap's batches are dealt one by one */
    if (e->seqs[0]) return size_list(s, groups, err);
    int64_t total = fr_max_i64(e->tokens * fr_layout_gpus(&e->layout) / e->seq, 1); /* as fr_deal deals them */
    int64_t most = fr_ceil_div(total, groups);
    FR_TRY(too_many(most, most * e->seq, err));
    s->load.tokens = most * e->seq;
    s->load.sequences = most;
    s->load.longest = e->seq;
    s->load.equal = true;
    size_logits(s);
    s->load.kv_tokens = e->layout.kv_cache ? batches * most * (e->seq + e->prefix) : 0;
    s->load.kept = e->prefix > 0 || e->layout.chunk_tokens > 0;
    return FR_OK;
}

static void size_trace(fr_setup *s, int64_t longest) {
    const fr_experiment *e = &s->experiment;
    int64_t budget = e->budget * e->layout.tp; /* per attention group */
    s->load.tokens = e->layout.chunk_tokens > 0 ? budget : fr_max_i64(budget, longest);
    s->load.sequences = fr_min_i64(s->load.tokens, MOST_SEQUENCES);
    s->load.longest = fr_min_i64(longest, s->load.tokens); /* of all requests, once they are known */
    s->load.equal = false;
    s->load.logits = 0; /* a few candidates each */
    /* The cache takes what the rest leaves unless its size is given; a chunked request keeps all of its KV. */
    int64_t kv = fr_max_i64(s->load.tokens, longest) + fr_max_i64(e->cache_tokens, 0);
    s->load.kv_tokens = e->layout.kv_cache ? fr_layout_batches(&e->layout) * kv : 0;
    s->load.kept = e->layout.kv_cache && (e->cache_tokens != 0 || e->layout.chunk_tokens > 0);
}

static fr_status check_layout(fr_setup *s, fr_error *err) {
    return fr_layout_check(&s->experiment.layout, &s->model, &s->machine, &s->load, &s->memory, &s->fits, s->reason,
                           err);
}

static fr_status check(fr_setup *s, fr_error *err) {
    s->load.imbalance = rank_imbalance(s);
    return check_layout(s, err);
}

fr_status fr_setup_any_routing(fr_setup *s, fr_error *err) {
    s->load.imbalance = fr_layout_worst_imbalance(&s->experiment.layout);
    return check_layout(s, err);
}

fr_status fr_setup_size(fr_setup *s, int64_t longest, fr_error *err) {
    size_trace(s, longest);
    return check(s, err);
}

/* ---- names and files, read once where there is a cache ------------------------------------------------------------
 */

#define CACHE_SLOTS                                                                                                    \
    64 /* of each kind; when full the oldest is not replaced: the rest is simply loaded anew and owned by its setup */

struct fr_setup_cache {
    struct {
        char name[512];
        fr_model model;
    } models[CACHE_SLOTS];
    struct {
        char name[512];
        fr_machine machine;
    } machines[CACHE_SLOTS];
    struct {
        uint64_t key;
        fr_routing *routing;
        fr_cost_model *cost;
    } parts[CACHE_SLOTS];
    int models_count, machines_count, parts_count;
};

fr_setup_cache *fr_setup_cache_new(void) {
    return fr_alloc(sizeof(fr_setup_cache));
}

void fr_setup_cache_free(fr_setup_cache *c) {
    if (!c) return;
    for (int i = 0; i < c->parts_count; i++) {
        fr_routing_close(c->parts[i].routing);
        fr_cost_close(c->parts[i].cost);
    }
    free(c);
}

static fr_status load_model(const char *name, fr_setup_cache *c, fr_model *out, fr_error *err) {
    for (int i = 0; c && i < c->models_count; i++)
        if (strcmp(c->models[i].name, name) == 0) {
            *out = c->models[i].model;
            return FR_OK;
        }
    FR_TRY(fr_model_load(name, out, err));
    if (c && c->models_count < CACHE_SLOTS) {
        snprintf(c->models[c->models_count].name, sizeof c->models->name, "%s", name);
        c->models[c->models_count++].model = *out;
    }
    return FR_OK;
}

static fr_status load_machine(const char *name, fr_setup_cache *c, fr_machine *out, fr_error *err) {
    for (int i = 0; c && i < c->machines_count; i++)
        if (strcmp(c->machines[i].name, name) == 0) {
            *out = c->machines[i].machine;
            return FR_OK;
        }
    FR_TRY(fr_machine_load(name, out, err));
    if (c && c->machines_count < CACHE_SLOTS) {
        snprintf(c->machines[c->machines_count].name, sizeof c->machines->name, "%s", name);
        c->machines[c->machines_count++].machine = *out;
    }
    return FR_OK;
}

/* What routing and cost tables depend on. */
static uint64_t parts_key(const fr_experiment *e) {
    const char *texts[] = {e->model, e->machine, e->routing, e->tables, e->extra_costs, e->what_if};
    uint64_t key = fr_hash(&e->seed, sizeof e->seed, FR_HASH_SEED);
    const bool varied = e->trace[0] != 0;
    key = fr_hash(&e->regime, sizeof e->regime, key);
    key = fr_hash(&varied, sizeof varied, key);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) key = fr_hash(texts[i], strlen(texts[i]) + 1, key);
    return key;
}

static fr_status load_parts(const fr_experiment *e, fr_setup_cache *c, fr_setup *out, fr_error *err) {
    uint64_t key = c ? parts_key(e) : 0;
    for (int i = 0; c && i < c->parts_count; i++)
        if (c->parts[i].key == key) {
            out->routing = c->parts[i].routing;
            out->cost = c->parts[i].cost;
            out->borrowed = true;
            return FR_OK;
        }
    FR_TRY(fr_routing_open(e->routing, &out->model, e->seed, &out->routing, err));
    fr_cost_options options = {.tables = e->tables[0] ? e->tables : NULL,
                               .extra = e->extra_costs[0] ? e->extra_costs : NULL,
                               .regime = e->regime,
                               .varied = e->trace[0] != 0,
                               .what_if = FR_WHAT_IF_NONE};
    if (e->what_if[0]) FR_TRY(fr_what_if_parse(e->what_if, &options.what_if, err));
    FR_TRY(fr_cost_open(&out->machine, &options, &out->cost, err));
    if (c && c->parts_count < CACHE_SLOTS) {
        c->parts[c->parts_count].key = key;
        c->parts[c->parts_count].routing = out->routing;
        c->parts[c->parts_count++].cost = out->cost;
        out->borrowed = true;
    }
    return FR_OK;
}

static fr_status open_parts(const fr_experiment *e, fr_setup_cache *cache, fr_setup *out, fr_error *err) {
    FR_TRY(load_model(e->model, cache, &out->model, err));
    FR_TRY(load_machine(e->machine, cache, &out->machine, err));
    FR_TRY(resolve_layout(&out->experiment, &out->machine, err));
    FR_TRY(refuse_unused(&out->experiment, err));
    if (out->machine.peak_flops[e->layout.precision] <= 0)
        return fr_fail(err, FR_BAD_INPUT, "--precision %s: the %s has no such format",
                       fr_precision_name(e->layout.precision), out->machine.gpu);
    FR_TRY(load_parts(e, cache, out, err));
    if (e->trace[0])
        size_trace(out, 0);
    else
        FR_TRY(size_batches(out, err));
    return check(out, err);
}

fr_status fr_setup_open_cached(const fr_experiment *e, fr_setup_cache *cache, fr_setup *out, fr_error *err) {
    *out = (fr_setup){.experiment = *e};
    fr_status status = open_parts(e, cache, out, err);
    if (status != FR_OK) fr_setup_close(out);
    return status;
}

fr_status fr_setup_open(const fr_experiment *e, fr_setup *out, fr_error *err) {
    return fr_setup_open_cached(e, NULL, out, err);
}

void fr_setup_close(fr_setup *s) {
    if (!s->borrowed) {
        fr_routing_close(s->routing);
        fr_cost_close(s->cost);
    }
    s->routing = NULL;
    s->cost = NULL;
}

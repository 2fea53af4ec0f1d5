#include "sim/ranking.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *group, *label, *config;
    int gpus;
    double per_gpu, total, mfu, ttft, low, high; /* low, high: relative interval of the time */
    double memory, exposed, wait, extrapolated;
    bool front;
} row;

typedef struct {
    row *rows;
    uint32_t count, capacity;
} table;

/* ---- reading
 * --------------------------------------------------------------------------------------------------------------- */

/* Cells are compared where all but the layout is equal. */
#define GROUP_SQL                                                                                                      \
    "model || ' ' || precision || ' on ' || machine || ', ' || CASE WHEN trace='' THEN tokens_per_gpu || ' tokens "    \
    "per GPU in sequences of ' || seq ELSE "                                                                           \
    "trace || ', budget ' || tokens_per_gpu END || CASE WHEN prefix>0 THEN ', prefix ' || prefix ELSE '' END || ', "   \
    "routing ' || routing || CASE WHEN "                                                                               \
    "what_if='' THEN '' ELSE ', what if ' || what_if END || CASE WHEN regime='sustained' THEN '' ELSE ', ' || regime " \
    "END"

/* The layout in few words: shorthand, degrees above 1, options that are not the default. */
#define LABEL_SQL                                                                                                      \
    "strategy || CASE WHEN strategy='custom' THEN ' ' || attention || ' x ' || experts ELSE '' END || CASE WHEN tp>1 " \
    "THEN ' tp' || tp ELSE '' END || "                                                                                 \
    "CASE WHEN pp>1 THEN ' pp' || pp || ' m' || micro_batches ELSE '' END || CASE WHEN ep>1 THEN ' ep' || ep ELSE '' " \
    "END || CASE WHEN dp>1 AND ep<=1 THEN "                                                                            \
    "' dp' || dp ELSE '' END || CASE WHEN replicas>1 THEN ' x' || replicas ELSE '' END || CASE WHEN "                  \
    "experts='asyncep' THEN ' ' || gather ELSE '' END || "                                                             \
    "CASE WHEN experts='ep' AND exchange<>'a2a' THEN ' ' || exchange ELSE '' END || CASE WHEN overlap<>'none' THEN ' " \
    "' || overlap ELSE '' END || CASE WHEN "                                                                           \
    "experts='offload' AND slots>0 THEN ' slots' || slots ELSE '' END || CASE WHEN pp>1 AND chunk_tokens>0 THEN ' "    \
    "chunk' || chunk_tokens ELSE '' END"

/* The same of a cell that has no result: its degrees as they were given. */
#define GIVEN(key, word)                                                                                               \
    " || CASE WHEN json_extract(config,'$." key "')>0 THEN ' " word "' || json_extract(config,'$." key "') ELSE '' "   \
    "END"
#define CONFIG_SQL                                                                                                     \
    "json_extract(config,'$.strategy')" GIVEN("tp", "tp") GIVEN("pp", "pp") GIVEN("ep", "ep") GIVEN("dp", "dp")        \
        GIVEN("replicas", "x")

static double number(const char *text) {
    return text ? atof(text) : NAN;
}

static bool read_row(void *context, int columns, const char *const *v, const char *const *names) {
    (void)columns;
    (void)names;
    table *t = context;
    FR_GROW(t->rows, t->capacity, t->count + 1);
    double forward = number(v[8]);
    t->rows[t->count++] = (row){.group = fr_strdup(v[0] ? v[0] : ""),
                                .label = fr_strdup(v[1] ? v[1] : ""),
                                .config = fr_strdup(v[2] ? v[2] : ""),
                                .gpus = (int)number(v[3]),
                                .per_gpu = number(v[4]),
                                .total = number(v[5]),
                                .mfu = number(v[6]),
                                .ttft = number(v[7]),
                                .low = forward > 0 ? number(v[9]) / forward : 1,
                                .high = forward > 0 ? number(v[10]) / forward : 1,
                                .memory = number(v[11]),
                                .exposed = number(v[12]),
                                .wait = number(v[13]),
                                .extrapolated = number(v[14])};
    return true;
}

static void table_free(table *t) {
    for (uint32_t i = 0; i < t->count; i++) {
        free(t->rows[i].group);
        free(t->rows[i].label);
        free(t->rows[i].config);
    }
    free(t->rows);
}

static int by_rank(const void *a, const void *b) {
    const row *x = a, *y = b;
    int order = strverscmp(x->group, y->group); /* 4096 tokens before 16384 */
    if (order) return order;
    if (x->per_gpu != y->per_gpu) return x->per_gpu < y->per_gpu ? 1 : -1;
    order = strcmp(x->label, y->label);
    return order ? order : strcmp(x->config, y->config);
}

/* On the front: nobody of the group is as good in both and better in one. Rows come by falling throughput. */
static void mark_front(row *rows, uint32_t count) {
    double best = INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        rows[i].front = rows[i].ttft < best;
        if (rows[i].front) best = rows[i].ttft;
    }
}

/* ---- printing
 * -------------------------------------------------------------------------------------------------------------- */

/* How many of the first rows can't be told from the winner: their time intervals overlap. */
static uint32_t within_error(const row *rows, uint32_t count) {
    uint32_t n = 1;
    double winner_slow = rows[0].per_gpu / rows[0].high;
    while (n < count && rows[n].per_gpu / rows[n].low >= winner_slow) n++;
    return n;
}

static void print_winner_note(const row *rows, uint32_t count, fr_text *out) {
    if (rows[0].extrapolated > 0.02)
        fr_text_add(
            out,
            "  %.0f %% of the busy time of %s rests on extrapolated costs: more ranks, larger shapes or another "
            "machine than measured.\n",
            rows[0].extrapolated * 100, rows[0].label);
    if (count < 2) return;
    double lead = rows[0].per_gpu / rows[1].per_gpu - 1;
    uint32_t n = within_error(rows, count);
    if (n > 1)
        fr_text_add(out,
                    "  %s leads by %.1f %%, within the error of the predictions: the first %u can't be told apart.\n",
                    rows[0].label, lead * 100, n);
    else
        fr_text_add(out, "  %s leads by %.1f %%, more than the error of the two predictions.\n", rows[0].label,
                    lead * 100);
}

static void print_commands(const row *best, fr_text *out) {
    fr_experiment e;
    fr_experiment_defaults(&e);
    fr_error err;
    if (fr_experiment_from_json(best->config, "stored cell", &e, &err) != FR_OK) return;
    fr_text_add(out, "  try it:  forerun run");
    fr_experiment_flags(&e, out);
    fr_text_add(out, "\n");
    fr_setup s; /* fills the degrees that the strategy implies */
    if (fr_setup_open(&e, &s, &err) != FR_OK) return;
    static const char *const programs[] = {"vllm", "sglang"};
    for (int i = 0; i < 2; i++) {
        fr_text_add(out, "  %-7s  ", programs[i]);
        fr_ranking_command(programs[i], &s.experiment, out);
        fr_text_add(out, "\n");
    }
    fr_setup_close(&s);
}

static void print_group(const row *rows, uint32_t count, const fr_ranking_options *o, fr_text *out) {
    fr_text_add(out, "\n%s\n", rows[0].group);
    fr_text_add(out, "      %-24s %4s %9s %8s %6s %8s %6s %7s %6s %6s\n", "layout", "GPUs", "tok/s/GPU", "tok/s", "MFU",
                "TTFT", "+/-", "exposed", "wait", "GB/GPU");
    uint32_t shown = o->most_rows > 0 && (uint32_t)o->most_rows < count ? (uint32_t)o->most_rows : count;
    for (uint32_t i = 0; i < count; i++) {
        const row *r = &rows[i];
        if (i >= shown && !r->front) continue;
        double half = (r->high - r->low) / 2 * 100;
        fr_text_add(out, "  %s%3u %-24s %4d %9.0f %8.0f %5.1f%% %7.*fs %5.1f%% %6.1f%% %5.1f%% %6.1f\n",
                    r->front ? "*" : " ", i + 1, r->label, r->gpus, r->per_gpu, r->total, r->mfu * 100,
                    r->ttft < 100 ? 3 : 2, r->ttft, half, r->exposed * 100, r->wait * 100, r->memory * 1e-9);
    }
    if (shown < count)
        fr_text_add(out, "  (%u of %u layouts shown; * = on the Pareto front of throughput against TTFT)\n", shown,
                    count);
    else
        fr_text_add(out, "  * = on the Pareto front of throughput against mean TTFT\n");
    print_winner_note(rows, count, out);
    print_commands(&rows[0], out);
}

static bool read_count(void *context, int columns, const char *const *v, const char *const *names) {
    (void)names;
    fr_text *out = context;
    if (columns >= 3) fr_text_add(out, "  %-8s %s\n           %s\n", v[1], v[0] ? v[0] : "", v[2] ? v[2] : "");
    return true;
}

fr_status fr_ranking_print(fr_store *store, const fr_ranking_options *o, fr_text *out, fr_error *err) {
    table t = {0};
    fr_status status = fr_store_query(
        store,
        "SELECT " GROUP_SQL ", " LABEL_SQL ", config, gpus, tokens_per_s_per_gpu, tokens_per_s, mfu, ttft_mean_s, "
        "forward_s, forward_low_s, forward_high_s, "
        "memory_per_gpu_bytes, exposed_comm_s / nullif(compute_s + exposed_comm_s + wait_s + bubble_s + idle_s, 0), "
        "(wait_s + "
        "bubble_s) / nullif(compute_s + exposed_comm_s + wait_s + bubble_s + idle_s, 0), extrapolated_share FROM cells "
        "WHERE status='done'",
        NULL, read_row, &t, err);
    if (status == FR_OK && t.count) qsort(t.rows, t.count, sizeof *t.rows, by_rank);
    int groups = 0;
    for (uint32_t i = 0, n; status == FR_OK && i < t.count; i += n) {
        for (n = 1; i + n < t.count && strcmp(t.rows[i].group, t.rows[i + n].group) == 0;) n++;
        mark_front(&t.rows[i], n);
        if (o->most_groups <= 0 || groups++ < o->most_groups)
            print_group(&t.rows[i], n, o, out);
        else
            fr_text_add(out, "%s: %s, %.0f tok/s/GPU%s\n", t.rows[i].group, t.rows[i].label, t.rows[i].per_gpu,
                        within_error(&t.rows[i], n) > 1 ? " (within the error of the next)" : "");
    }
    table_free(&t);
    if (status != FR_OK) return status;
    fr_text left = {0};
    status = fr_store_query(store,
                            "SELECT CASE WHEN count(*)>1 THEN count(*)||' cells: ' ELSE '' END || "
                            "coalesce(group_concat(DISTINCT coalesce(" LABEL_SQL ", " CONFIG_SQL
                            ")), ''), status, reason FROM cells WHERE "
                            "status<>'done' GROUP BY status, reason ORDER BY count(*) DESC, reason LIMIT 12",
                            NULL, read_count, &left, err);
    if (left.length) fr_text_add(out, "\nnot played:\n%s", left.text);
    fr_text_free(&left);
    return status;
}

/* ---- production systems
 * ------------------------------------------------------------------------------------------------------ */

static const char *hub_name(const char *model) {
    static const char *const names[][2] = {{"qwen3-235b-a22b", "Qwen/Qwen3-235B-A22B"},
                                           {"qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"},
                                           {"qwen3-coder-480b-a35b-instruct", "Qwen/Qwen3-Coder-480B-A35B-Instruct"},
                                           {"mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"},
                                           {"mixtral-8x22b", "mistralai/Mixtral-8x22B-v0.1"},
                                           {"deepseek-v3", "deepseek-ai/DeepSeek-V3"},
                                           {"kimi-k2", "moonshotai/Kimi-K2-Instruct"},
                                           {"gpt-oss-120b", "openai/gpt-oss-120b"},
                                           {"gpt-oss-20b", "openai/gpt-oss-20b"},
                                           {"glm-4.5", "zai-org/GLM-4.5"},
                                           {"minimax-m2.5", "MiniMaxAI/MiniMax-M2.5"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], model) == 0) return names[i][1];
    return model;
}

static bool no_command(fr_text *out, const char *why) {
    fr_text_add(out, "(no such layout there: %s)", why);
    return false;
}

bool fr_ranking_command(const char *program, const fr_experiment *e, fr_text *out) {
    const fr_layout *l = &e->layout;
    bool vllm = strcmp(program, "vllm") == 0, ep = l->experts == FR_EXP_EP;
    if (l->experts != FR_EXP_EP && l->experts != FR_EXP_TP && l->experts != FR_EXP_LOCAL)
        return no_command(out, "experts are not gathered or streamed for prefill");
    if (ep && l->ep != l->tp * l->dp) return no_command(out, "expert parallelism spans all of tp x dp");
    if (l->overlap == FR_OVERLAP_EXPERT_GROUPS) return no_command(out, "no pipelining over expert groups");
    const char *hub = hub_name(e->model);
    const char *fp8 = l->precision == FR_FP8 && strstr(hub, "Qwen/") ? "-FP8" : "";
    if (vllm) {
        fr_text_add(out, "vllm serve %s%s --tensor-parallel-size %d", hub, fp8, l->tp);
        if (l->pp > 1) fr_text_add(out, " --pipeline-parallel-size %d", l->pp);
        if (l->dp * l->replicas > 1 && l->pp == 1)
            fr_text_add(out, " --data-parallel-size %d", ep ? l->dp : l->dp * l->replicas);
        if (ep) fr_text_add(out, " --enable-expert-parallel");
        if (l->overlap == FR_OVERLAP_TBO) fr_text_add(out, " --enable-dbo");
        if (e->budget > 0) fr_text_add(out, " --max-num-batched-tokens %lld", (long long)e->budget * l->tp);
    } else {
        fr_text_add(out, "python3 -m sglang.launch_server --model-path %s%s --tp %d", hub, fp8, l->tp * l->dp);
        if (l->pp > 1) fr_text_add(out, " --pp-size %d", l->pp);
        if (ep) fr_text_add(out, " --ep %d", l->ep);
        if (l->dp > 1) fr_text_add(out, " --enable-dp-attention --dp %d", l->dp);
        if (l->overlap == FR_OVERLAP_TBO) fr_text_add(out, " --enable-two-batch-overlap");
    }
    const bool said = vllm && !ep && l->pp == 1; /* as data parallelism */
    if (l->replicas > 1 && !said) fr_text_add(out, "   (%d instances)", l->replicas);
    return true;
}

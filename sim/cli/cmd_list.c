#include "sim/cli/cli.h"
#include "sim/cli/figures.h"

#include "engine/strategy/strategy.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const fr_option cmd_list_options[] = {
    {"check", NULL, NULL, "costs: every fit with its leave-one-out error"},
    {"machine", "NAME|FILE", NULL, "costs: of this machine's GPU (default h200x8)"},
    {"costs", "FOLDER", NULL, "costs: measured tables in place of those compiled in"},
    {NULL, NULL, NULL, NULL},
};

static fr_status list_models(fr_error *err) {
    printf("%-22s %-12s %6s %7s %5s %6s %17s %17s\n", "model", "family", "layers", "experts", "top-k", "hidden",
           "parameters", "active per token");
    for (int i = 0; fr_model_builtin(i); i++) {
        fr_model m;
        fr_params p;
        FR_TRY(fr_model_load(fr_model_builtin(i), &m, err));
        fr_model_params(&m, &p);
        printf("%-22s %-12s %6d %7d %5d %6d %9.1f billion %9.1f billion\n", m.name, m.family, m.layers, m.experts,
               m.top_k, m.hidden, (double)p.total / 1e9, (double)p.active / 1e9);
    }
    return FR_OK;
}

static fr_status list_machines(fr_error *err) {
    printf("%-10s %4s %5s %13s %12s %8s %10s %23s\n", "machine", "GPUs", "hosts", "bf16 TFLOP/s", "fp8 TFLOP/s",
           "HBM GB", "HBM GB/s", "link GB/s per direction");
    for (int i = 0; fr_machine_builtin(i); i++) {
        fr_machine m;
        FR_TRY(fr_machine_load(fr_machine_builtin(i), &m, err));
        printf("%-10s %4d %5d %13.0f", m.name, m.gpus, (int)fr_ceil_div(m.gpus, m.gpus_per_host),
               m.peak_flops[FR_BF16] / 1e12);
        if (m.peak_flops[FR_FP8] > 0)
            printf(" %12.0f", m.peak_flops[FR_FP8] / 1e12);
        else
            printf(" %12s", "-");
        printf(" %8.0f %10.0f %23.0f\n", (double)m.hbm_bytes / 1e9, m.hbm_rate / 1e9,
               (m.link_rate > 0 ? m.link_rate : m.pcie_rate) / 1e9);
    }
    return FR_OK;
}

static void list_strategies(void) {
    for (int i = 0; fr_strategy_at(i); i++) {
        const fr_strategy *s = fr_strategy_at(i);
        printf("%-9s %s\n%-9s travels: %s\n%-9s waits:   %s\n", s->name, s->summary, "", s->travels, "", s->waits);
    }
}

static fr_status list_costs(const cli_args *a, fr_error *err) {
    fr_machine m;
    fr_cost_model *c;
    const char *machine = cli_value(a, "machine");
    FR_TRY(fr_machine_load(machine ? machine : "h200x8", &m, err));
    fr_cost_options o = {.tables = cli_value(a, "costs"), .regime = FR_SUSTAINED, .what_if = FR_WHAT_IF_NONE};
    FR_TRY(fr_cost_open(&m, &o, &c, err));
    fr_text text = {0};
    fr_cost_describe(c, cli_value(a, "check") != NULL, &text);
    if (text.length) fputs(text.text, stdout);
    fr_text_free(&text);
    fr_cost_close(c);
    return FR_OK;
}

static void list_figures(void) {
    for (int i = 0; cli_figures[i].name; i++)
        printf("%-12s %s\n%-12s from %s\n", cli_figures[i].name, cli_figures[i].summary, "", cli_figures[i].from);
}

fr_status cmd_list(const cli_args *a, fr_error *err) {
    const char *what = a->positional[0];
    bool costs = strcmp(what, "costs") == 0;
    for (int i = 0; cmd_list_options[i].name; i++)
        if (a->value[i] && !costs)
            return fr_fail(err, FR_BAD_INPUT, "--%s acts on nothing here: it needs `forerun list costs`",
                           cmd_list_options[i].name);
    if (costs) return list_costs(a, err);
    if (strcmp(what, "models") == 0) return list_models(err);
    if (strcmp(what, "machines") == 0) return list_machines(err);
    if (strcmp(what, "strategies") == 0)
        list_strategies();
    else if (strcmp(what, "traces") == 0)
        cli_list_traces();
    else if (strcmp(what, "figures") == 0)
        list_figures();
    else
        return fr_fail(err, FR_BAD_INPUT,
                       "expected models, machines, strategies, traces, figures or costs, got '%.64s'", what);
    return FR_OK;
}

/* The scheduler and the planner that an experiment asks for, the same for the simulator and the engine. */
#include "engine/experiment.h"

#include <math.h>

static double request_work(const void *context, int64_t queries, int64_t prefix) {
    const fr_setup *s = context;
    int layers = fr_layout_layers(&s->experiment.layout, &s->model);
    double flops = 0;
    /* Layers differ by kind (dense or MoE) and window only; both repeat, so two samples of each suffice in no model:
     * sum them all. */
    for (int l = 0; l < layers; l++)
        flops += fr_model_linear_flops(&s->model, l % s->model.layers) * (double)queries +
                 fr_model_attention_flops(&s->model, l % s->model.layers, queries, prefix);
    return flops;
}

/* Seconds that the slowest transfer of one layer's experts takes at the links' rates; 0 where weights stay. */
static double transfer_s(const fr_setup *s) {
    const fr_layout *l = &s->experiment.layout;
    bool offload = l->experts == FR_EXP_OFFLOAD;
    if (!offload && l->experts != FR_EXP_ASYNCEP && l->experts != FR_EXP_DWDP) return 0;
    fr_capacity c;
    fr_cost_capacity(s->cost, &c);
    double layer = (double)s->model.experts * (double)fr_model_expert_bytes(&s->model, l->precision);
    double link = c.link_in > 0 ? layer * (l->ep - 1) / l->ep / c.link_in : 0;
    double host = offload && c.pcie_h2d > 0 ? layer / l->ep / c.pcie_h2d : 0;
    return fmax(link, host);
}

/*
 * Work at which the prefix router gives a queue no more, and holds requests back instead: MoE-Prefill's T = gamma t_EP
 * F_GPU with gamma = 1.2 and peak FLOP/s (arXiv 2605.02960 Eq. 1; t_EP is one layer's transfer), so
 * times the layers for work counted over the whole model. At least two budgets of short requests: a queue then has its
 * next forward waiting while one runs, also where no weights travel (T = 0 would pile every request that shares a
 * prefix on one queue).
 */
static double saturation_work(const fr_setup *s) {
    const fr_experiment *e = &s->experiment;
    const fr_layout *l = &e->layout;
    double ours = transfer_s(s) * s->machine.peak_flops[l->precision] * fr_layout_layers(l, &s->model);
    /* One batch waits for each in flight (one per pipeline stage), however long its requests: late binding must
     * not starve a queue. */
    int64_t budget = e->budget * l->tp;
    double batches = 2 * l->pp * request_work(s, budget, budget);
    return fmax(1.2 * ours, batches);
}

/* Tokens of the prefix cache per attention group: as asked for, or what memory leaves. */
static int64_t cache_tokens(const fr_setup *s) {
    const fr_layout *l = &s->experiment.layout;
    if (s->experiment.cache_tokens >= 0) return s->experiment.cache_tokens;
    const int64_t left = s->machine.hbm_bytes - s->memory.total;
    const int64_t each = fr_model_kv_bytes_layer(&s->model) * fr_layout_layers(l, &s->model) / l->pp / l->tp;
    return left > 0 && each > 0 ? left / each : 0;
}

void fr_setup_sched(const fr_setup *s, int queues, fr_sched_options *out) {
    const fr_experiment *e = &s->experiment;
    *out = (fr_sched_options){.queues = queues,
                              .budget = e->budget * e->layout.tp,
                              .chunk_tokens = e->layout.chunk_tokens,
                              .route = e->route,
                              .cache_tokens = cache_tokens(s),
                              .threshold = e->route == FR_ROUTE_PREFIX ? saturation_work(s) : 0,
                              .work = request_work,
                              .work_context = s};
}

fr_status fr_setup_planner(const fr_setup *s, bool allow_fold, fr_planner **out, fr_error *err) {
    const fr_planner_options o = {.model = &s->model,
                                  .layout = &s->experiment.layout,
                                  .machine = &s->machine,
                                  .routing = s->routing,
                                  .cost = s->cost,
                                  .load = s->load,
                                  .allow_fold = allow_fold};
    return fr_planner_open(&o, out, err);
}

fr_request_record fr_request_answered(const fr_part *last, int queue, int64_t started, int64_t answered) {
    return (fr_request_record){.id = last->request,
                               .arrival = last->arrival,
                               .start = started,
                               .answer = answered,
                               .tokens = last->tokens,
                               .cached = last->prefix,
                               .queue = queue,
                               .source = last->source};
}

/* forerun plan: what one forward is, before anything is played. */
#include "sim/cli/cli.h"

#include "engine/report.h"
#include "engine/strategy/strategy.h"
#include "sim/driver.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

const fr_option cmd_plan_options[] = {
    {"json", NULL, NULL, "one JSON object"},
    {"rank", "R", NULL, "ops of this rank (default 0)"},
    {"layer", "L", NULL, "ops of this layer (default: the second MoE layer, or the last one run)"},
    {"all", NULL, NULL, "ops of every layer, and those outside layers"},
    {NULL, NULL, NULL, NULL},
};

typedef struct {
    const fr_setup *setup;
    fr_planner *planner;
    fr_fragment **fragments;
    int count;
    int64_t rank, layer; /* layer -1 = all */
} view;

static void shape_text(const fr_shape *s, char out[96]) {
    double mb = (double)s->bytes / 1e6;
    switch (fr_op_class_of((fr_op_kind)s->kind)) {
    case FR_CLASS_GEMM:
        snprintf(out, 96, "m %" PRId64 " n %d k %d", s->m, s->n, s->k);
        break;
    case FR_CLASS_GROUPED:
        snprintf(out, 96, "rows %" PRId64 " over %d experts, n %d k %d", s->m, s->experts, s->n, s->k);
        break;
    case FR_CLASS_ATTENTION:
        snprintf(out, 96, "%u sequences, heads %d/%d, dim %d", s->vector_count, s->n, s->k, s->head_dim);
        break;
    case FR_CLASS_COLLECTIVE:
        snprintf(out, 96, "%.3f MB, %d ranks", mb, s->ranks);
        break;
    case FR_CLASS_COPY:
    case FR_CLASS_MEMORY:
        snprintf(out, 96, "%.3f MB", mb);
        break;
    case FR_CLASS_HOST:
    case FR_CLASS_OTHER:
    case FR_CLASS_COUNT:
        snprintf(out, 96, "%" PRId64, s->m);
        break;
    }
}

/* One lane of one rank, added up over the fragments that touch it. */
typedef struct {
    int64_t ops, bytes, ns;
    double flops;
} lane_sum;

static lane_sum sum_lane(const view *v, uint32_t lane) {
    lane_sum s = {0};
    for (int i = 0; i < v->count; i++) {
        const fr_fragment *f = v->fragments[i];
        for (uint32_t h = 0; h < f->heads_count; h++) {
            if (f->heads[h].lane != lane) continue;
            for (uint32_t o = f->heads[h].first; o != FR_NONE; o = f->ops[o].next) {
                const fr_shape *shape = fr_op_shape(f, &f->ops[o]);
                fr_cost c;
                fr_cost_op(v->setup->cost, shape, f->pairs, &c);
                s.ops++;
                s.bytes += shape->bytes;
                s.flops += shape->flops;
                s.ns += c.ns;
            }
        }
    }
    return s;
}

/* Of all fragments, per rank; the caller frees it. */
static fr_traffic *traffic_of(const view *v) {
    const fr_plan *p = fr_planner_plan(v->planner);
    fr_traffic *ranks = fr_alloc((size_t)p->ranks * sizeof *ranks);
    for (int i = 0; i < v->count; i++) fr_fragment_traffic(p, v->fragments[i], ranks);
    return ranks;
}

/* Calls `visit` for the chosen rank's ops, lane by lane in the order in which each lane runs them. */
typedef void (*visitor)(const view *v, const fr_fragment *f, const fr_op *op, void *context);
static void visit_ops(const view *v, visitor visit, void *context) {
    const fr_plan *p = fr_planner_plan(v->planner);
    for (uint32_t lane = 0; lane < p->lanes_count; lane++) {
        if (p->lanes[lane].rank != v->rank) continue;
        for (int i = 0; i < v->count; i++) {
            const fr_fragment *f = v->fragments[i];
            for (uint32_t h = 0; h < f->heads_count; h++) {
                if (f->heads[h].lane != lane) continue;
                for (uint32_t o = f->heads[h].first; o != FR_NONE; o = f->ops[o].next)
                    if (v->layer < 0 || f->ops[o].layer == v->layer) visit(v, f, &f->ops[o], context);
            }
        }
    }
}

/* `context`: the lane that is being listed. */
static void print_op(const view *v, const fr_fragment *f, const fr_op *op, void *context) {
    uint32_t *lane = context;
    const fr_plan *p = fr_planner_plan(v->planner);
    const fr_shape *shape = fr_op_shape(f, op);
    char id[48], what[96];
    fr_cost c;
    fr_op_id_text(fr_op_id(p, f, op), id);
    shape_text(shape, what);
    fr_cost_op(v->setup->cost, shape, f->pairs, &c);
    if (*lane != op->lane) printf("  lane %s\n", p->lanes[op->lane].name);
    *lane = op->lane;
    printf("    %-26s %-42s %9.1f us  %-12s", id, what, (double)c.ns / 1e3, fr_provenance_name(c.provenance));
    const fr_ref *w = fr_op_waits(f, op);
    for (int i = 0; i < op->waits; i++)
        printf("%s%s>=%u", i ? ", " : " waits ", p->events[w[i].target].name, w[i].value);
    const fr_ref *s = fr_op_signals(f, op);
    for (int i = 0; i < op->signals; i++) printf("%s%s", i ? ", " : " raises ", p->events[s[i].target].name);
    printf("\n");
}

static void print_plan(const view *v) {
    const fr_plan *p = fr_planner_plan(v->planner);
    printf("one forward, per rank and lane (time: each op alone, added up)\n");
    printf("  %4s %-10s %8s %12s %12s %14s\n", "rank", "lane", "ops", "TFLOP", "MB", "time alone ms");
    for (uint32_t l = 0; l < p->lanes_count; l++) {
        lane_sum s = sum_lane(v, l);
        if (s.ops)
            printf("  %4d %-10s %8" PRId64 " %12.4f %12.2f %14.3f\n", p->lanes[l].rank, p->lanes[l].name, s.ops,
                   s.flops / 1e12, (double)s.bytes / 1e6, (double)s.ns / 1e6);
    }
    printf("over links and from the host, per rank\n  %4s %12s %12s %12s %12s\n", "rank", "sent MB", "received MB",
           "host MB", "TFLOP");
    fr_traffic *traffic = traffic_of(v);
    for (int r = 0; r < p->ranks; r++) {
        fr_traffic t = traffic[r];
        printf("  %4d %12.2f %12.2f %12.2f %12.4f\n", r, (double)t.sent / 1e6, (double)t.received / 1e6,
               (double)t.host / 1e6, t.flops / 1e12);
    }
    free(traffic);
    if (v->layer < 0)
        printf("ops of rank %" PRId64 "\n", v->rank);
    else
        printf("ops of rank %" PRId64 ", layer %" PRId64 " (--layer, --rank, --all)\n", v->rank, v->layer);
    uint32_t lane = UINT32_MAX;
    visit_ops(v, print_op, &lane);
}

static void add_op(const view *v, const fr_fragment *f, const fr_op *op, void *context) {
    const fr_plan *p = fr_planner_plan(v->planner);
    const fr_shape *s = fr_op_shape(f, op);
    char id[48];
    fr_cost c;
    fr_op_id_text(fr_op_id(p, f, op), id);
    fr_cost_op(v->setup->cost, s, f->pairs, &c);
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:I, s:f, s:i, s:f, s:s}", "id", id, "lane",
                          p->lanes[op->lane].name, "kind", fr_op_name((fr_op_kind)op->kind), "m", (json_int_t)s->m, "n",
                          (int)s->n, "k", (int)s->k, "bytes", (json_int_t)s->bytes, "flops", s->flops, "ranks",
                          (int)s->ranks, "alone_s", (double)c.ns / 1e9, "provenance", fr_provenance_name(c.provenance));
    json_array_append_new(context, o);
}

static json_t *plan_json(const view *v) {
    const fr_plan *p = fr_planner_plan(v->planner);
    json_t *o = json_object(), *lanes = json_array(), *ranks = json_array(), *ops = json_array();
    for (uint32_t l = 0; l < p->lanes_count; l++) {
        lane_sum s = sum_lane(v, l);
        if (!s.ops) continue;
        json_array_append_new(lanes, json_pack("{s:i, s:s, s:I, s:f, s:I, s:f}", "rank", (int)p->lanes[l].rank, "lane",
                                               p->lanes[l].name, "ops", (json_int_t)s.ops, "flops", s.flops, "bytes",
                                               (json_int_t)s.bytes, "alone_s", (double)s.ns / 1e9));
    }
    fr_traffic *traffic = traffic_of(v);
    for (int r = 0; r < p->ranks; r++) {
        fr_traffic t = traffic[r];
        json_array_append_new(ranks, json_pack("{s:i, s:I, s:I, s:I, s:f}", "rank", r, "sent_bytes", (json_int_t)t.sent,
                                               "received_bytes", (json_int_t)t.received, "host_bytes",
                                               (json_int_t)t.host, "flops", t.flops));
    }
    free(traffic);
    visit_ops(v, add_op, ops);
    json_object_set_new(o, "lanes", lanes);
    json_object_set_new(o, "ranks", ranks);
    json_object_set_new(o, "ops", ops);
    return o;
}

static fr_status choose_ops(const cli_args *a, view *v, fr_error *err) {
    const fr_plan *p = fr_planner_plan(v->planner);
    const fr_model *m = &v->setup->model;
    int layers = fr_layout_layers(&v->setup->experiment.layout, m);
    v->rank = 0;
    v->layer = fr_min_i64(m->dense_layers + 1, layers - 1);
    if (cli_value(a, "rank"))
        FR_TRY(fr_parse_int(cli_value(a, "rank"), 0, p->ranks - 1, false, "--rank", &v->rank, err));
    if (cli_value(a, "layer")) {
        if (cli_value(a, "all"))
            return fr_fail(err, FR_BAD_INPUT, "--layer acts on nothing beside --all: give one of them");
        FR_TRY(fr_parse_int(cli_value(a, "layer"), 0, layers - 1, false, "--layer", &v->layer, err));
    }
    if (cli_value(a, "all")) v->layer = -1;
    return FR_OK;
}

static void print_head(const fr_setup *s) {
    fr_text text = {0};
    fr_report_layout(s, &text);
    fr_report_memory(s, &text);
    fputs(text.text, stdout);
    fr_text_free(&text);
}

static fr_status print_json(const fr_setup *s, json_t *plan) {
    json_t *o = fr_report_json(s, NULL);
    if (plan) json_object_update_new(o, plan);
    char *text = fr_report_dump(o);
    fputs(text, stdout);
    free(text);
    return FR_OK;
}

static fr_status show(const cli_args *a, fr_setup *s, fr_error *err) {
    bool json = cli_value(a, "json") != NULL;
    if (s->experiment.trace[0])
        return fr_fail(err, FR_BAD_INPUT, "--trace acts on nothing here: plan shows one forward of equal batches");
    if (!s->fits && !s->experiment.ignore_memory) {
        if (json)
            print_json(s, NULL);
        else
            print_head(s);
        return fr_fail(err, FR_FAILED, "does not fit: %s (--ignore-memory goes on)", s->reason);
    }
    view v = {.setup = s};
    s->experiment.fold = false; /* every rank is shown */
    FR_TRY(fr_drive_plan(s, &v.planner, &v.fragments, &v.count, err));
    fr_status status = choose_ops(a, &v, err);
    if (status == FR_OK && json) print_json(s, plan_json(&v));
    if (status == FR_OK && !json) {
        print_head(s);
        print_plan(&v);
    }
    for (int i = 0; i < v.count; i++) fr_fragment_free(v.fragments[i]);
    free(v.fragments);
    fr_planner_close(v.planner);
    return status;
}

fr_status cmd_plan(const cli_args *a, fr_error *err) {
    fr_experiment e;
    FR_TRY(cli_experiment(a, &e, err));
    fr_setup s;
    FR_TRY(fr_setup_open(&e, &s, err));
    fr_status status = show(a, &s, err);
    fr_setup_close(&s);
    return status;
}

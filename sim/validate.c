/* A stored run and its simulated twin. */
#include "sim/validate.h"

#include "engine/strategy/strategy.h"
#include "sim/driver.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what the store has of the run ------------------------------------------------------------------------------- */

/* Before runs told their pause they opened NVML in it, which takes a tenth of a second and more. */
#define OLD_PAUSE_S 0.1

typedef struct {
    char *config, *routing, *anchors;
    char *cell;  /* of a list of runs; NULL = of none */
    char *uuids; /* of the ranks' GPUs, with blanks between; NULL = not recorded */
    double forward_s, elapsed_s, tokens_per_s, mfu, clock_mhz;
    double pause_s;    /* between warming up and time 0 */
    double warmup_s;   /* how long that took; 0 = not known */
    double parts_s[6]; /* compute, exposed_comm, wait, bubble, idle, hidden_comm: per forward in batch mode */
    fr_quantiles ttft_s;
    bool found, live; /* live: on a device, whose ops were timed one by one if there are spans */
} stored_run;

static double number(const char *text) {
    char *end;
    double v = text ? strtod(text, &end) : NAN;
    return text && end != text ? v : NAN;
}

static bool take_run(void *context, int columns, const char *const *v, const char *const *names) {
    stored_run *r = context;
    (void)names;
    if (columns < 18 || !v[0]) return false;
    r->found = true;
    r->config = fr_strdup(v[0]);
    r->forward_s = number(v[1]);
    r->elapsed_s = number(v[2]);
    r->tokens_per_s = number(v[3]);
    r->mfu = number(v[4]);
    for (int i = 0; i < 6; i++) r->parts_s[i] = number(v[5 + i]);
    r->ttft_s = (fr_quantiles){number(v[11]), number(v[12]), number(v[13]), number(v[14])};
    r->clock_mhz = number(v[15]);
    r->live = v[16] != NULL;
    r->pause_s = v[17] ? number(v[17]) : r->live ? OLD_PAUSE_S : 0;
    r->warmup_s = v[18] ? number(v[18]) : 0;
    return false;
}

static bool take_text(void *context, int columns, const char *const *v, const char *const *names) {
    (void)columns;
    (void)names;
    char **out = context;
    if (v[0] && !*out) *out = fr_strdup(v[0]);
    return false;
}

static fr_status read_run(fr_store *s, const char *path, int64_t run, stored_run *r, fr_error *err) {
    char id[24];
    snprintf(id, sizeof id, "%" PRId64, run);
    FR_TRY(fr_store_query(
        s,
        "SELECT config, forward_s, elapsed_s, tokens_per_s, mfu, compute_s, exposed_comm_s, wait_s, bubble_s, idle_s, "
        "hidden_comm_s, ttft_mean_s, ttft_p50_s, ttft_p90_s, ttft_p99_s, coalesce(json_extract(result,'$.clock_mhz'), "
        "json_extract(result,'$.device.sm_mhz')), json_extract(result,'$.device.gpu'), "
        "json_extract(result,'$.pause_s'), json_extract(result,'$.warmup_s') FROM runs WHERE id=?1+0 AND "
        "kind='run'",
        id, take_run, r, err));
    if (!r->found) return fr_fail(err, FR_BAD_INPUT, "%s: run %s is no measured run", path, id);
    if (!(r->forward_s > 0)) return fr_fail(err, FR_BAD_INPUT, "%s: run %s has no result", path, id);
    fr_error older = {0}; /* a store from before there were attached texts has no such table */
    (void)fr_store_query(s, "SELECT text FROM attached WHERE run=?1+0 AND name='routing'", id, take_text, &r->routing,
                         &older);
    (void)fr_store_query(s, "SELECT text FROM attached WHERE run=?1+0 AND name='anchors'", id, take_text, &r->anchors,
                         &older);
    (void)fr_store_query(s, "SELECT text FROM attached WHERE run=?1+0 AND name='cell'", id, take_text, &r->cell,
                         &older);
    (void)fr_store_query(s,
                         "SELECT group_concat(json_extract(value,'$.uuid'),' ') FROM runs, "
                         "json_each(runs.result,'$.ranks') WHERE runs.id=?1+0",
                         id, take_text, &r->uuids, &older);
    return FR_OK;
}

static void free_run(stored_run *r) {
    free(r->config);
    free(r->routing);
    free(r->anchors);
    free(r->cell);
    free(r->uuids);
}

typedef struct {
    fr_forward_record *v;
    uint32_t n, cap;
} forward_list;

static bool take_forward(void *context, int columns, const char *const *v, const char *const *names) {
    forward_list *l = context;
    (void)names;
    if (columns < 7) return false;
    for (int i = 0; i < 7; i++)
        if (!v[i]) return true;
    FR_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n++] = (fr_forward_record){.forward = atoll(v[0]),
                                       .unit = atoi(v[1]),
                                       .start = atoll(v[2]),
                                       .end = atoll(v[3]),
                                       .tokens = atoll(v[4]),
                                       .cached = atoll(v[5]),
                                       .last_rank = atoi(v[6])};
    return true;
}

typedef struct {
    fr_request_record *v;
    uint32_t n, cap;
} request_list;

static bool take_request(void *context, int columns, const char *const *v, const char *const *names) {
    request_list *l = context;
    (void)names;
    if (columns < 5) return false;
    for (int i = 0; i < 5; i++)
        if (!v[i]) return true;
    FR_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n++] = (fr_request_record){
        .id = atoll(v[0]), .arrival = atoll(v[1]), .start = atoll(v[2]), .answer = atoll(v[3]), .tokens = atoi(v[4])};
    return true;
}

static fr_status read_records(fr_store *s, int64_t run, forward_list *f, request_list *r, fr_error *err) {
    char id[24];
    snprintf(id, sizeof id, "%" PRId64, run);
    FR_TRY(fr_store_query(
        s, "SELECT forward, unit, start_ns, end_ns, tokens, cached, last_rank FROM forwards WHERE run=?1+0", id,
        take_forward, f, err));
    return fr_store_query(s,
                          "SELECT id, arrival_ns, start_ns, answer_ns, tokens FROM requests WHERE run=?1+0 ORDER BY "
                          "arrival_ns, id",
                          id, take_request, r, err);
}

static bool has_spans(fr_store *s, int64_t run) {
    char id[24], *found = NULL;
    fr_error quiet = {0};
    snprintf(id, sizeof id, "%" PRId64, run);
    (void)fr_store_query(s, "SELECT 1 FROM spans WHERE run=?1+0 LIMIT 1", id, take_text, &found, &quiet);
    bool any = found != NULL;
    free(found);
    return any;
}

/* ---- the twin ---------------------------------------------------------------------------------------------------- */

static void make_label(fr_validation *v, const char *cell) {
    const fr_experiment *e = &v->setup.experiment;
    const fr_layout *l = &e->layout;
    fr_text t = {0};
    if (cell) fr_text_add(&t, "%s: ", cell);
    fr_text_add(&t, "%s %dL %s", v->setup.model.name, fr_layout_layers(l, &v->setup.model),
                l->strategy[0] ? l->strategy : "custom");
    if (fr_layout_gpus(l) > 1) fr_text_add(&t, "%d", fr_layout_gpus(l));
    if (l->experts == FR_EXP_ASYNCEP) fr_text_add(&t, " %s", fr_gather_name(l->gather));
    if (l->experts == FR_EXP_EP && l->exchange != FR_EXCHANGE_A2A)
        fr_text_add(&t, " %s", fr_exchange_name(l->exchange));
    if (l->overlap != FR_OVERLAP_NONE) fr_text_add(&t, " %s", fr_overlap_name(l->overlap));
    if (l->precision != FR_BF16) fr_text_add(&t, " %s", fr_precision_name(l->precision));
    if (e->trace[0])
        fr_text_add(&t, " %s", e->trace);
    else
        fr_text_add(&t, " %" PRId64 "x%" PRId64 "%s %s", e->tokens / fr_max_i64(e->seq, 1), e->seq,
                    e->prefix ? "+prefix" : "", e->routing);
    if (e->regime == FR_BURST) fr_text_add(&t, " burst");
    snprintf(v->label, sizeof v->label, "%.*s", (int)sizeof v->label - 1, t.text);
    fr_text_free(&t);
}

static fr_status use_routing(fr_validation *v, const stored_run *r, fr_error *err) {
    char where[40];
    fr_routing *own;
    if (!r->routing) return FR_OK;
    snprintf(where, sizeof where, "routing of run %" PRId64, v->run);
    FR_TRY(
        fr_routing_parse(r->routing, strlen(r->routing), where, &v->setup.model, v->setup.experiment.seed, &own, err));
    fr_routing_close(v->setup.routing);
    v->setup.routing = own;
    v->own_routing = true;
    return FR_OK;
}

/* The stored requests, for a trace whose file is not at hand: what they shared is not known. */
static fr_request *requests_of(const request_list *r) {
    fr_request *q = fr_alloc(((size_t)r->n + 1) * sizeof *q);
    for (uint32_t i = 0; i < r->n; i++)
        q[i] = (fr_request){.id = r->v[i].id, .arrival = r->v[i].arrival, .tokens = r->v[i].tokens, .prefix_id = -1};
    return q;
}

typedef struct {
    fr_request_record *requests;
    fr_forward_record *forwards;
    int64_t requests_count, forwards_count;
} played;

static fr_status play(fr_validation *v, const fr_validate_options *o, const request_list *stored, const fr_card *cards,
                      fr_timeline *spans, played *p, fr_result *result, fr_error *err) {
    fr_drive_options d = {.spans = spans,
                          .requests = p ? &p->requests : NULL,
                          .requests_count = p ? &p->requests_count : NULL,
                          .forwards = p ? &p->forwards : NULL,
                          .forwards_count = p ? &p->forwards_count : NULL,
                          .exe_dir = o->exe_dir,
                          .cards = cards,
                          .unlike = v->live,
                          .pause_ns = llround(1e9 * v->pause_s),
                          .load_ns = llround(1e9 * v->warmup_s)};
    fr_error missing = {0};
    v->setup.experiment.spans = spans != NULL;
    fr_status status = fr_drive(&v->setup, &d, result, &missing);
    if (status == FR_BAD_INPUT && v->setup.experiment.trace[0] && stored->n) {
        fr_request *q = requests_of(stored);
        d.arrivals = q;
        d.arrivals_count = stored->n;
        status = fr_drive(&v->setup, &d, result, err);
        free(q);
    } else if (status != FR_OK) {
        *err = missing;
    }
    return status;
}

/* ---- lanes of both sides, by rank and name ----------------------------------------------------------------------- */

static uint32_t lane_of(fr_plan *p, int rank, const char *name) {
    for (uint32_t l = 0; l < p->lanes_count; l++)
        if (p->lanes[l].rank == rank && strcmp(p->lanes[l].name, name) == 0) return l;
    return fr_plan_lane(p, rank, strcmp(name, "compute") == 0 ? FR_LANE_COMPUTE : FR_LANE_COPY, name, false);
}

static void remap(fr_plan *all, const fr_plan *from, fr_timeline *t) {
    uint32_t *to = fr_alloc((from->lanes_count + 1) * sizeof *to);
    for (uint32_t l = 0; l < from->lanes_count; l++) to[l] = lane_of(all, from->lanes[l].rank, from->lanes[l].name);
    for (uint32_t i = 0; i < t->count; i++) t->spans[i].lane = (uint16_t)to[t->spans[i].lane];
    free(to);
}

/* The planner's static part is the same for the same setup: it names the lanes that the driver's spans count. */
static fr_status name_lanes(fr_validation *v, fr_store *s, fr_error *err) {
    fr_planner *planner = NULL;
    FR_TRY(fr_setup_planner(&v->setup, false, &planner, err));
    const fr_plan *plan = fr_planner_plan(planner);
    v->plan = fr_plan_new(plan->ranks, plan->ranks);
    remap(v->plan, plan, &v->spans[0]);
    fr_planner_close(planner);
    if (!has_spans(s, v->run)) return FR_OK;
    fr_plan *live = NULL;
    FR_TRY(fr_store_load_spans(s, v->run, &live, &v->spans[1], err));
    if (live->ranks > v->plan->ranks) {
        fr_plan_free(live);
        return fr_fail(err, FR_BAD_INPUT, "run %" PRId64 ": its timeline has more ranks than its layout", v->run);
    }
    remap(v->plan, live, &v->spans[1]);
    fr_plan_free(live);
    return FR_OK;
}

static int last_rank(const fr_timeline *t) {
    const fr_span *last = NULL;
    for (uint32_t i = 0; i < t->count; i++)
        if (!last || t->spans[i].end > last->end) last = &t->spans[i];
    return last ? last->rank : 0;
}

static int64_t ns_of(double seconds) {
    return isfinite(seconds) ? llround(seconds * 1e9) : 0;
}

static fr_parts measured_parts(const fr_validation *v, const stored_run *r) {
    double times = v->setup.experiment.trace[0] ? 1 : r->elapsed_s / r->forward_s;
    return (fr_parts){.elapsed = ns_of(r->elapsed_s),
                      .compute = ns_of(times * r->parts_s[0]),
                      .exposed_comm = ns_of(times * r->parts_s[1]),
                      .wait = ns_of(times * r->parts_s[2]),
                      .bubble = ns_of(times * r->parts_s[3]),
                      .idle = ns_of(times * r->parts_s[4]),
                      .hidden_comm = ns_of(times * r->parts_s[5])};
}

/* What the store holds of the run, and one simulation of it, whose lanes are those of v->plan. */
typedef struct {
    const stored_run *run;
    const forward_list *forwards;
    const request_list *requests;
} stored;

static void compare(const fr_validation *v, const stored *s, const fr_timeline *spans, const played *p,
                    const fr_result *predicted, fr_compare *out) {
    const stored_run *r = s->run;
    const char **names = fr_alloc((v->plan->lanes_count + 1) * sizeof *names);
    char(*texts)[32] = fr_alloc((v->plan->lanes_count + 1) * sizeof *texts);
    uint8_t *kernels = fr_alloc(v->plan->lanes_count + 1);
    for (uint32_t l = 0; l < v->plan->lanes_count; l++) {
        snprintf(texts[l], sizeof texts[l], "rank %d %s", v->plan->lanes[l].rank, v->plan->lanes[l].name);
        names[l] = texts[l];
        kernels[l] = v->plan->lanes[l].kind == FR_LANE_COMPUTE;
    }
    const fr_side sides[2] = {{.spans = spans,
                               .lane_names = names,
                               .lane_compute = kernels,
                               .forwards = p->forwards,
                               .forwards_count = p->forwards_count,
                               .requests = p->requests,
                               .requests_count = p->requests_count,
                               .parts = predicted->parts,
                               .rank = last_rank(spans),
                               .clock_mhz = predicted->clock_mhz},
                              {.spans = &v->spans[1],
                               .lane_names = names,
                               .lane_compute = kernels,
                               .forwards = s->forwards->v,
                               .forwards_count = s->forwards->n,
                               .requests = s->requests->v,
                               .requests_count = s->requests->n,
                               .parts = measured_parts(v, r),
                               .rank = last_rank(&v->spans[1]),
                               .clock_mhz = r->clock_mhz}};
    fr_compare_run(&sides[0], &sides[1], out);
    free(names);
    free(texts);
    free(kernels);
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

/* Whether a rank ran on this GPU. Runs that don't say on which ones they ran had one: its anchors are all there is. */
static bool is_card_of(const char *uuids, int rank, int known, const char *uuid) {
    if (!uuids || !*uuids) return known == 1;
    for (; rank > 0 && uuids; rank--) uuids = (uuids = strchr(uuids, ' ')) ? uuids + 1 : NULL;
    const size_t n = uuids ? strcspn(uuids, " ") : 0;
    const size_t told = strlen(uuid);
    return told >= 12 && told <= n && strncmp(uuids, uuid, told) == 0; /* GPU- and the first eight digits */
}

/* The run once more, on the GPUs that it ran on as their anchors show them. */
static fr_status play_anchored(fr_validation *v, const fr_validate_options *o, const stored *s, fr_error *err) {
    fr_timeline spans = {0};
    fr_planner *planner = NULL;
    fr_result result;
    played p = {0};
    fr_status status = play(v, o, s->requests, v->cards, &spans, &p, &result, err);
    if (status == FR_OK) status = fr_setup_planner(&v->setup, false, &planner, err);
    if (status == FR_OK) {
        remap(v->plan, fr_planner_plan(planner), &spans);
        fr_planner_close(planner);
        compare(v, s, &spans, &p, &result, &v->anchored_compare);
        v->anchored = true;
        v->anchored_forward_s = result.forward_s;
    }
    fr_timeline_free(&spans);
    free(p.requests);
    free(p.forwards);
    return status;
}

static fr_status anchor(fr_validation *v, const fr_validate_options *o, const stored *s, fr_error *err) {
    const stored_run *r = s->run;
    const char *text = o->anchors ? o->anchors : r->anchors;
    v->anchored_forward_s = NAN;
    if (!text) return FR_OK;
    fr_card *known;
    int count, met = 0;
    const int ranks = v->plan->ranks;
    FR_TRY(fr_cards_read(v->setup.cost, text, "anchors", NULL, &known, &count, err));
    v->cards = fr_alloc((size_t)ranks * sizeof *v->cards);
    for (int rank = 0; rank < ranks; rank++) {
        fr_card_plain(&v->cards[rank]);
        for (int k = 0; k < count; k++)
            if (is_card_of(r->uuids, rank, count, known[k].uuid)) {
                v->cards[rank] = known[k];
                met++;
            }
    }
    free(known);
    return met ? play_anchored(v, o, s, err) : FR_OK;
}

/* For a replay: how much its queue makes of kernels that take a little more or less time. */
static fr_status service(fr_validation *v, const fr_validate_options *o, const request_list *q, fr_error *err) {
    static const double factors[FR_SERVICE_POINTS] = {0.96, 0.98, 1.02, 1.04};
    const int ranks = v->plan->ranks;
    if (!v->replay) return FR_OK;
    fr_card *cards = fr_alloc((size_t)ranks * sizeof *cards);
    fr_status status = FR_OK;
    for (int i = 0; i < FR_SERVICE_POINTS && status == FR_OK; i++) {
        fr_result result;
        if (v->live) fr_cards_unlike(v->setup.cost, cards, ranks);
        for (int rank = 0; rank < ranks; rank++) {
            if (!v->live) fr_card_plain(&cards[rank]);
            for (int k = FR_CLASS_MEMORY; k <= FR_CLASS_GROUPED; k++) cards[rank].time[k] = factors[i];
        }
        status = play(v, o, q, cards, NULL, NULL, &result, err);
        if (status == FR_OK) v->service[i] = (fr_service_point){factors[i], result.ttft_s, result.tokens_per_s};
    }
    free(cards);
    return status;
}

static fr_status open_twin(fr_validation *v, const fr_validate_options *o, const stored_run *r, bool timed,
                           fr_error *err) {
    fr_experiment e;
    FR_TRY(fr_experiment_from_json(r->config, "stored configuration", &e, err));
    e.ignore_memory = true; /* it ran */
    if (o->costs) FR_TRY(fr_experiment_set(&e, "costs", o->costs, err));
    FR_TRY(fr_setup_open(&e, &v->setup, err));
    v->forward_s = r->forward_s;
    v->elapsed_s = r->elapsed_s;
    v->tokens_per_s = r->tokens_per_s;
    v->mfu = r->mfu;
    v->pause_s = r->pause_s;
    v->warmup_s = r->warmup_s;
    v->live = r->live;
    v->ttft_s = r->ttft_s;
    make_label(v, r->cell);
    snprintf(v->cell, sizeof v->cell, "%.*s", (int)sizeof v->cell - 1, r->cell ? r->cell : "");
    fr_cost_time_ops(v->setup.cost, timed);
    return o->assumed_routing ? FR_OK : use_routing(v, r, err);
}

fr_status fr_validate_run(fr_store *s, const char *path, int64_t run, const fr_validate_options *o, fr_validation *v,
                          fr_error *err) {
    *v = (fr_validation){.run = run};
    stored_run r = {0};
    forward_list f = {0};
    request_list q = {0};
    played p = {0};
    fr_status status = read_run(s, path, run, &r, err);
    if (status == FR_OK) status = read_records(s, run, &f, &q, err);
    v->replay = q.n > 1 && q.v[q.n - 1].arrival > q.v[0].arrival;
    if (status == FR_OK) status = open_twin(v, o, &r, r.live && has_spans(s, run), err);
    if (status == FR_OK) status = play(v, o, &q, NULL, &v->spans[0], &p, &v->predicted, err);
    if (status == FR_OK) status = name_lanes(v, s, err);
    const stored all = {&r, &f, &q};
    if (status == FR_OK) compare(v, &all, &v->spans[0], &p, &v->predicted, &v->compare);
    if (status == FR_OK) status = anchor(v, o, &all, err);
    if (status == FR_OK) status = service(v, o, &q, err);
    free_run(&r);
    free(f.v);
    free(q.v);
    free(p.requests);
    free(p.forwards);
    if (status != FR_OK) fr_validation_free(v);
    return status;
}

void fr_validation_free(fr_validation *v) {
    fr_compare_free(&v->compare);
    fr_compare_free(&v->anchored_compare);
    free(v->cards);
    fr_timeline_free(&v->spans[0]);
    fr_timeline_free(&v->spans[1]);
    if (v->plan) fr_plan_free(v->plan);
    if (v->setup.cost || v->setup.routing) fr_setup_close(&v->setup);
    *v = (fr_validation){0};
}

void fr_validation_twins(const fr_validation *v, fr_plan **plan, fr_timeline *out) {
    static const char *const side[2] = {"sim", "live"};
    *plan = fr_plan_new(v->plan->ranks, v->plan->ranks);
    *out = (fr_timeline){0};
    for (uint32_t l = 0; l < v->plan->lanes_count; l++)
        for (int k = 1; k >= 0; k--) {
            char name[20];
            snprintf(name, sizeof name, "%.13s %s", v->plan->lanes[l].name, side[k]);
            fr_plan_lane(*plan, v->plan->lanes[l].rank, (fr_lane_kind)v->plan->lanes[l].kind, name, false);
        }
    for (int k = 0; k < 2; k++) {
        int64_t from = INT64_MAX;
        for (uint32_t i = 0; i < v->spans[k].count; i++) from = fr_min_i64(from, v->spans[k].spans[i].start);
        for (uint32_t i = 0; i < v->spans[k].count; i++) {
            fr_span s = v->spans[k].spans[i];
            s.lane = (uint16_t)(2 * s.lane + (k == 0));
            s.start -= from;
            s.end -= from;
            s.ready -= from;
            s.cause = 0; /* both sides have the same ids: an arrow could lead to either */
            fr_timeline_add(out, &s);
        }
    }
    fr_timeline_sort(out);
}

/* planner: the static part of a plan, units, folding. forward.c walks the stages and layers of one forward. */
#include "engine/strategy/planner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_LIMIT 2048 /* ranks that meet; keeps hosts within a byte down to eight GPUs a host */

int64_t fr_share(int64_t total, int parts, int index) {
    return total / parts + (index < total % parts ? 1 : 0);
}

int64_t fr_layer_expert_bytes(const fr_planner *p) {
    return p->model.experts * fr_model_expert_bytes(&p->model, p->layout.precision);
}

static void count_to(fr_counters *c, uint32_t n) {
    uint32_t had = c->cap;
    FR_GROW(c->value, c->cap, n);
    if (c->cap > had) memset(c->value + had, 0, (c->cap - had) * sizeof *c->value);
    if (n > c->count) c->count = n;
}

uint32_t fr_add_event(fr_planner *p, fr_rank *r, const char *name) {
    uint32_t e = fr_plan_event(p->plan, r->rank, name);
    count_to(&p->raised, e + 1);
    return e;
}

uint32_t fr_add_buffer(fr_planner *p, fr_rank *r, fr_buffer_kind kind, const char *name, int64_t bytes, int slots) {
    uint32_t b = fr_plan_buffer(p->plan, r->rank, kind, name, bytes, slots, kind == FR_BUF_KV);
    count_to(&p->holds, b + 1);
    return b;
}

uint32_t fr_add_lane(fr_planner *p, fr_rank *r, fr_lane_kind kind) {
    static const char *const names[FR_LANE_KINDS] = {"host", "compute", "comm", "copy", "h2d", "send", "recv"};
    if (r->lane[kind] == FR_NONE) r->lane[kind] = fr_plan_lane(p->plan, r->rank, kind, names[kind], false);
    return r->lane[kind];
}

/* The first member makes the group, the others (opened later) find it; each counts its own meetings. */
fr_circle fr_add_circle(fr_planner *p, uint32_t known, const int16_t *ranks, int count, int size, int hosts) {
    fr_circle c = {.group = known, .size = (int16_t)size, .hosts = (uint8_t)hosts};
    if (size < 2) return (fr_circle){.group = FR_NONE, .size = 1, .hosts = 1};
    if (known == FR_NONE) c.group = fr_plan_group(p->plan, ranks, count, size);
    c.seq = p->seqs.count;
    count_to(&p->seqs, p->seqs.count + 1);
    return c;
}

static int hosts_of(const fr_planner *p, int first, int last) {
    int per = p->machine.gpus_per_host > 0 ? p->machine.gpus_per_host : 1;
    return last / per - first / per + 1;
}

fr_rank *fr_stage_rank(fr_planner *p, int unit, int stage, int local) {
    if (p->folded) return &p->ranks[0];
    if (p->asap) /* units are the attention groups; expert ranks come behind them */
        return &p->ranks[unit / p->layout.dp * fr_layout_stage_ranks(&p->layout) + unit % p->layout.dp * p->layout.tp +
                         local];
    int stage_ranks = fr_layout_stage_ranks(&p->layout), per_stage = stage_ranks / p->unit_ranks;
    int replica = unit / per_stage, within = unit % per_stage;
    return &p->ranks[(replica * p->stages + stage) * stage_ranks + within * p->unit_ranks + local];
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

/* Ranks of one stage that take forwards together: those whose ops meet. */
static int unit_ranks(const fr_layout *l) {
    switch (l->experts) {
    case FR_EXP_TP:
        return l->tp * l->dp;
    case FR_EXP_EP:
        return l->ep > l->tp ? l->ep : l->tp;
    case FR_EXP_ASYNCEP:
        return l->gather == FR_GATHER_CE ? 1 : l->ep;
    case FR_EXP_OFFLOAD:
        return l->ep;
    default:
        return l->tp;
    }
}

/* A unit is an attention group with all expert ranks of its replica, which come behind its attention ranks. */
static void place_asap(const fr_layout *l, int rank, fr_place *out) {
    int index = rank % fr_layout_stage_ranks(l), replica = rank / fr_layout_stage_ranks(l), attention = l->tp * l->dp;
    bool experts = index >= attention;
    *out = (fr_place){.unit = replica * l->dp + (experts ? 0 : index / l->tp),
                      .served = experts ? l->dp : 1,
                      .local = experts ? l->tp + index - attention : index % l->tp,
                      .batches = fr_layout_batches(l),
                      .t = experts ? 0 : index % l->tp,
                      .ep_index = experts ? index - attention : 0,
                      .experts_only = experts};
}

void fr_layout_place(const fr_layout *l, int rank, fr_place *out) {
    if (l->experts == FR_EXP_ASAP) {
        place_asap(l, rank, out);
        return;
    }
    int stage_ranks = l->tp * l->dp, index = rank % stage_ranks, row = rank / stage_ranks, unit = unit_ranks(l);
    *out = (fr_place){.unit = row / l->pp * (stage_ranks / unit) + index / unit,
                      .stage = row % l->pp,
                      .served = 1,
                      .local = index % unit,
                      .slot = index % unit / l->tp,
                      .batches = 1,
                      .t = index % l->tp,
                      .ep_index = index % l->ep};
}

bool fr_layout_sliced(const fr_layout *l) {
    const bool by_width = l->experts == FR_EXP_TP && l->dp > 1;
    return l->tp > 1 && (l->experts == FR_EXP_EP || l->experts == FR_EXP_ASAP || by_width);
}

static const fr_experts_part *part_of(fr_expert_split e) {
    switch (e) {
    case FR_EXP_TP:
        return &fr_experts_tp;
    case FR_EXP_EP:
        return &fr_experts_ep;
    case FR_EXP_ASYNCEP:
    case FR_EXP_DWDP:
        return &fr_experts_gather;
    case FR_EXP_OFFLOAD:
        return &fr_experts_offload;
    default:
        return &fr_experts_local;
    }
}

/* A circle of `size` consecutive ranks of a stage, from a multiple of `size`. */
static fr_circle stage_circle(fr_planner *p, fr_rank *r, int index, int size, uint32_t known) {
    int16_t members[GROUP_LIMIT];
    int first = r->rank - index % size, count = p->folded ? 1 : size;
    for (int i = 0; i < count; i++) members[i] = (int16_t)(first + i);
    if (p->folded) first = 0;
    return fr_add_circle(p, known, members, count, size, hosts_of(p, first, first + size - 1));
}

static void open_circles(fr_planner *p, fr_rank *r, int index) {
    const fr_layout *l = &p->layout;
    const fr_rank *back = r - index % l->tp;
    r->tp = stage_circle(p, r, index, l->tp, r == back ? FR_NONE : back->tp.group);
    back = r - index % l->ep;
    r->ep = stage_circle(p, r, index, l->ep, r == back ? FR_NONE : back->ep.group);
    int all = l->experts == FR_EXP_TP ? l->tp * l->dp : 1;
    back = r - index % all;
    if (all == l->tp) /* attention's group: one communicator (engine/cuda/transport) */
        r->stage_group = r->tp;
    else
        r->stage_group = stage_circle(p, r, index, all, r == back ? FR_NONE : back->stage_group.group);
    r->ep_index = (int16_t)(p->folded ? 0 : index % l->ep);
}

/* Of the placement's list those that this layout has. */
static uint32_t open_placed(fr_planner *p, fr_rank *r, const char *name, int half) {
    char full[24];
    snprintf(full, sizeof full, "%s%s", name, half ? "'" : "");
    const fr_placed *b = fr_placement_find(&p->placement, full);
    return b ? fr_add_buffer(p, r, FR_BUF_ACTIVATION, full, b->bytes, b->slots) : FR_NONE;
}

static void open_scratch(fr_planner *p, fr_rank *r, int half) {
    fr_scratch *b = &r->half[half];
    *b = (fr_scratch){.held = FR_NONE, .counts = FR_NONE, .active = FR_NONE};
#define OPEN(field) b->field = open_placed(p, r, #field, half)
    OPEN(hidden);
    OPEN(normed);
    OPEN(qkv);
    OPEN(heads);
    OPEN(delta);
    OPEN(logits);
    OPEN(route);
    OPEN(order);
    OPEN(rows);
    OPEN(mid);
    OPEN(out);
    OPEN(shared);
    OPEN(send);
    OPEN(recv);
#undef OPEN
}

static void open_weights(fr_planner *p, fr_rank *r) {
    const fr_layout *l = &p->layout;
    fr_memory memory;
    if (p->asap)
        fr_layout_stage_memory(l, &p->model, &p->machine, &p->load, 0, false, &memory);
    else
        fr_layout_memory(l, &p->model, &p->machine, &p->load, &memory);
    fr_add_buffer(p, r, FR_BUF_WEIGHTS, "attention", memory.attention, 0);
    fr_add_buffer(p, r, FR_BUF_WEIGHTS, "embedding, head", memory.embedding_head, 0);
    r->experts = r->first = FR_NONE;
    if (memory.experts) r->experts = fr_add_buffer(p, r, FR_BUF_WEIGHTS, "experts", memory.experts, 0);
    if (memory.first_layer) r->first = fr_add_buffer(p, r, FR_BUF_WEIGHTS, "first layer", memory.first_layer, 0);
    if (memory.kv) fr_add_buffer(p, r, FR_BUF_KV, "kv", memory.kv, 0);
}

static void open_rank(fr_planner *p, int rank) {
    const fr_layout *l = &p->layout;
    fr_rank *r = &p->ranks[rank];
    int index = rank % (l->tp * l->dp);
    fr_place place = {0};
    r->rank = (int16_t)rank;
    if (!p->folded) fr_layout_place(l, rank, &place);
    r->stage = (int16_t)place.stage;
    r->unit = (int16_t)place.unit;
    r->local = (int16_t)place.local;
    r->slot = (int16_t)place.slot;
    r->t = (int16_t)place.t;
    for (int k = 0; k < FR_LANE_KINDS; k++) r->lane[k] = FR_NONE;
    fr_add_lane(p, r, FR_LANE_HOST);
    fr_add_lane(p, r, FR_LANE_COMPUTE);
    r->launched = fr_add_event(p, r, "launched");
    r->hold = -1;
    open_weights(p, r);
    for (int h = 0; h < (l->overlap == FR_OVERLAP_TBO ? 2 : 1); h++) open_scratch(p, r, h);
    open_circles(p, r, p->folded ? 0 : index);
    p->part->open(p, r);
}

/* asap: rank `index` of a replica, in attention group index / tp; batches A and B have scratch of their own. */
void fr_open_attention_rank(fr_planner *p, fr_rank *r, int replica, int index) {
    const fr_layout *l = &p->layout;
    r->unit = (int16_t)(replica * l->dp + index / l->tp);
    r->local = r->t = (int16_t)(index % l->tp);
    fr_add_lane(p, r, FR_LANE_HOST);
    fr_add_lane(p, r, FR_LANE_COMPUTE);
    fr_add_lane(p, r, FR_LANE_SEND);
    r->launched = fr_add_event(p, r, "launched");
    open_weights(p, r);
    for (int h = 0; h < 2; h++) {
        open_scratch(p, r, h);
        r->half[h].held = fr_plan_table(p->plan, r->rank, h ? "copies that leave'" : "copies that leave",
                                        p->load.tokens * p->model.top_k, FR_KNOWN_DEVICE);
        r->ready[h] = fr_add_event(p, r, h ? "ready'" : "ready");
        r->moved[h] = fr_add_event(p, r, h ? "moved'" : "moved");
    }
    const fr_rank *back = r - index % l->tp;
    r->tp = stage_circle(p, r, index, l->tp, r == back ? FR_NONE : back->tp.group);
}

static fr_status open_routing(fr_planner *p, const fr_planner_options *o, fr_error *err) {
    p->routing = o->routing;
    if (!p->routing) {
        FR_TRY(fr_routing_open("even", &p->model, 0, &p->own_routing, err));
        p->routing = p->own_routing;
    }
    p->even = fr_routing_kind(p->routing) == FR_SKEW_EVEN;
    return FR_OK;
}

static void open_static(fr_planner *p) {
    const fr_layout *l = &p->layout;
    int gpus = fr_layout_gpus(l), real_unit = unit_ranks(l);
    p->stages = l->pp;
    p->real_unit_ranks = real_unit;
    p->unit_ranks = p->folded ? 1 : real_unit;
    p->units = p->folded ? 1 : l->replicas * l->tp * l->dp / real_unit;
    p->slots = real_unit / l->tp;
    p->sliced = fr_layout_sliced(l);
    p->part = part_of(l->experts);
    p->moe_groups = fr_layout_expert_parts(l);
    p->ranks_count = p->folded ? 1 : gpus;
    p->plan = fr_plan_new(p->ranks_count, gpus);
    p->plan->yields_within = fr_layout_yields(&p->layout);
    p->ranks = fr_alloc((size_t)p->ranks_count * sizeof *p->ranks);
    for (int h = 0; h < 2; h++) p->moe[h] = fr_alloc((size_t)(p->unit_ranks * p->moe_groups) * sizeof **p->moe);
    p->counts = fr_alloc(2 * (size_t)p->unit_ranks * (size_t)p->model.experts * sizeof *p->counts);
    p->landing = fr_alloc((size_t)p->model.experts * sizeof *p->landing);
    const int layers = fr_layout_layers(l, &p->model);
    p->copies = fr_alloc((size_t)layers * (size_t)(l->ep * p->moe_groups) * sizeof *p->copies);
    p->has_copies = fr_alloc((size_t)layers * sizeof *p->has_copies);
    for (int rank = 0; rank < p->ranks_count; rank++) open_rank(p, rank);
    if (p->stages > 1) fr_open_pipeline(p);
}

fr_status fr_planner_open(const fr_planner_options *o, fr_planner **out, fr_error *err) {
    const fr_layout *l = o->layout;
    *out = NULL;
    if (l->chunking == FR_CHUNK_BALANCED && !o->cost)
        return fr_fail(err, FR_BAD_INPUT, "--chunking balanced: needs a cost model, none was given");
    if (fr_layout_gpus(l) > INT16_MAX)
        return fr_fail(err, FR_BAD_INPUT, "the layout has %d GPUs, a plan holds at most %d", fr_layout_gpus(l),
                       INT16_MAX);
    if (unit_ranks(l) > GROUP_LIMIT || l->ep > GROUP_LIMIT)
        return fr_fail(err, FR_BAD_INPUT, "groups of %d ranks: a plan holds groups of at most %d",
                       unit_ranks(l) > l->ep ? unit_ranks(l) : l->ep, GROUP_LIMIT);
    fr_planner *p = fr_alloc(sizeof *p);
    p->model = *o->model;
    p->layout = *l;
    p->machine = *o->machine;
    p->load = o->load;
    p->cost = o->cost;
    fr_placement_of(l, &p->model, &p->load, false, &p->placement);
    fr_status status = open_routing(p, o, err);
    /* Ranks that do the same at the same time may be one; pipelines and asap have unlike ranks. */
    const bool turns = l->gather_streams > 1 && l->ep > 2; /* at a source: not all readers are served at once */
    const bool alike = l->experts != FR_EXP_ASAP && !turns && (!l->gather_keep || l->ep == 2); /* some are read more */
    p->folded = o->allow_fold && p->even && l->pp == 1 && alike && fr_layout_gpus(l) > 1;
    if (status == FR_OK && l->experts == FR_EXP_ASAP)
        status = fr_asap_open(p, err);
    else if (status == FR_OK)
        open_static(p);
    if (status == FR_OK && p->plan->crowded)
        status = fr_fail(err, FR_BAD_INPUT, "the layout has %d GPUs: their plan would have more than %d lanes",
                         fr_layout_gpus(l), FR_MOST_LANES);
    if (status != FR_OK) {
        fr_planner_close(p);
        return status;
    }
    *out = p;
    return FR_OK;
}

void fr_planner_close(fr_planner *p) {
    if (!p) return;
    fr_asap_close(p);
    for (int i = 0; i < p->ranks_count; i++) {
        free(p->ranks[i].shard_ready);
        free(p->ranks[i].shard_taken);
        free(p->ranks[i].recv);
    }
    if (p->plan) fr_plan_free(p->plan);
    fr_routing_close(p->own_routing);
    fr_placement_free(&p->placement);
    free(p->ranks);
    free(p->raised.value);
    free(p->holds.value);
    free(p->seqs.value);
    free(p->moe[0]);
    free(p->moe[1]);
    free(p->counts);
    free(p->landing);
    free(p->copies);
    free(p->has_copies);
    free(p->kv);
    free(p->each);
    free(p->works);
    free(p->cut);
    free(p->cut_origin);
    free(p->pairs);
    free(p);
}

fr_plan *fr_planner_plan(fr_planner *p) {
    return p->plan;
}
int fr_planner_units(const fr_planner *p) {
    return p->units;
}
int fr_planner_real_units(const fr_planner *p) {
    return p->units * p->plan->fold / (p->folded ? p->real_unit_ranks : 1);
}
int fr_planner_slots(const fr_planner *p) {
    return p->slots;
}
int fr_planner_unit_first_rank(const fr_planner *p, int unit) {
    return fr_stage_rank((fr_planner *)p, unit, 0, 0)->rank;
}

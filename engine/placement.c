#include "engine/placement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define P(phase) (1u << FR_PHASE_##phase)
#define ALWAYS   (~0u)

/* From one phase to another, both included. */
static uint32_t span(fr_phase first, fr_phase last) {
    return ((2u << last) - 1) & ~((1u << first) - 1);
}

/* ---- the list -----------------------------------------------------------------------------------------------------*/

static fr_placed *add(fr_placement *p, const char *name, int half, int64_t bytes, int slots, uint32_t lives) {
    FR_GROW(p->buffer, p->cap, p->count + 1);
    fr_placed *b = &p->buffer[p->count++];
    *b = (fr_placed){.bytes = bytes, .slots = slots, .lives = lives, .over = -1};
    snprintf(b->name, sizeof b->name, "%s%s", name, half ? "'" : "");
    return b;
}

/* What decides how long buffers live. */
typedef struct {
    bool asap, by_width, spread, travels, gathered, apart, by_expert;
    bool fp8, shared;
    bool partial, late, quantised; /* delta: takes attention's results; experts' too; rows that a tp group gathered */
} traits;

static traits traits_of(const fr_layout *l, const fr_model *m) {
    traits t = {.asap = l->experts == FR_EXP_ASAP,
                .by_width = l->experts == FR_EXP_TP,
                .travels = l->experts == FR_EXP_EP && l->ep > 1,
                .apart = l->overlap == FR_OVERLAP_TBO, /* two batches, one of whose exchanges is under way */
                .by_expert = l->experts == FR_EXP_OFFLOAD && l->slots > 0,
                .fp8 = l->precision == FR_FP8,
                .shared = m->shared_width > 0};
    t.spread = t.by_width && l->dp > 1;
    t.gathered = t.travels && l->exchange == FR_EXCHANGE_AGRS;
    t.late = t.by_width || t.gathered || m->dense_layers > 0;
    t.partial = l->tp > 1 || t.fp8 || t.late;
    t.quantised = t.fp8 && l->tp > 1;
    return t;
}

/* Whether the second of two batches has this buffer to itself: what is in use beside the other batch's ops. */
static bool own_of_each(const traits *t, const char *name) {
    static const char *const both[] = {"hidden", "route", "send", "recv", "shared"};
    for (size_t i = 0; i < sizeof both / sizeof *both; i++)
        if (strcmp(name, both[i]) == 0) return true;
    return t->gathered && (strcmp(name, "normed") == 0 || strcmp(name, "delta") == 0); /* the comm lane's */
}

/* When buffers of the compute lane live (engine/strategy/layer.c and experts_*.c say what reads and writes them). */
static uint32_t lives(const traits *t, const char *name) {
    static const struct {
        const char *name;
        uint32_t phases;
    } list[] = {{"hidden", ALWAYS},
                {"normed", P(NORM) | P(QKV) | P(SUM) | P(DENSE) | P(ROUTE) | P(SEND) | P(COMBINE) | P(HEAD)},
                {"qkv", P(QKV) | P(ATTENTION)},
                {"heads", P(ATTENTION) | P(O)},
                {"logits", P(ROUTE) | P(HEAD)},
                {"order", P(SORT) | P(UP) | P(DOWN) | P(REDUCE) | P(COMBINE)},
                {"rows", P(SORT) | P(UP)},
                {"mid", P(UP) | P(DOWN)},
                {"out", P(DOWN) | P(REDUCE) | P(COMBINE)}};
    if (strcmp(name, "route") == 0) return span(FR_PHASE_ROUTE, FR_PHASE_COMBINE);
    if (strcmp(name, "send") == 0 || strcmp(name, "shared") == 0)
        return span(FR_PHASE_SEND, FR_PHASE_COMBINE) | P(DENSE);
    if (strcmp(name, "recv") == 0) return span(FR_PHASE_SEND, FR_PHASE_RETURN);
    if (strcmp(name, "delta") == 0) {
        if (!t->partial) return 0;
        const uint32_t late = P(REDUCE) | P(RETURN) | P(COMBINE) | P(NORM) | P(HEAD) | P(DENSE);
        return P(O) | P(SUM) | (t->late ? late : 0) | (t->quantised ? P(QKV) | P(DENSE) : 0);
    }
    uint32_t phases = 0;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (strcmp(name, list[i].name) == 0) phases = list[i].phases;
    if (strcmp(name, "normed") == 0 && !t->travels && !t->spread) phases |= P(SORT); /* permuted from there */
    if (strcmp(name, "qkv") == 0 && t->fp8) phases |= P(O);                          /* attention's output quantised */
    return phases;
}

/* `over` what the first batch's ops on the compute lane use, of which the second's come before or after. */
static void add_half(fr_placement *p, const traits *t, int half, const char *name, int64_t bytes, int slots) {
    const bool own = own_of_each(t, name), two = t->apart || t->asap;
    fr_placed *b = add(p, name, half, bytes, slots, two && own ? ALWAYS : lives(t, name));
    for (uint32_t i = 0; i < p->count && half && !own; i++)
        if (strcmp(p->buffer[i].name, name) == 0) b->over = (int)i;
}

static void list_half(fr_placement *p, const fr_layout *l, const fr_model *m, const fr_load *load,
                      const fr_activations *a, int half) {
    const traits t = traits_of(l, m);
    add_half(p, &t, half, "hidden", a->residual, l->pp > 1 ? 3 : 0); /* one computed, one arriving, one leaving */
    add_half(p, &t, half, "normed", a->normed, 0);
    add_half(p, &t, half, "qkv", a->qkv, 0);
    add_half(p, &t, half, "heads", a->attention_out, 0);
    add_half(p, &t, half, "delta", a->residual, 0);
    add_half(p, &t, half, "logits", fr_max_i64(a->router, 4 * load->logits), 0);
    add_half(p, &t, half, "route", a->router, 0);
    if (!t.asap) { /* else experts are elsewhere */
        /* Where each chosen expert's row lies, and the token of each row; ids come with what arrives. */
        add_half(p, &t, half, "order", 4 * (a->rows + (t.travels ? a->arriving * a->slots : a->rows)), 0);
        add_half(p, &t, half, "rows", a->permuted, 0);
        add_half(p, &t, half, "mid", a->up, 0);
        add_half(p, &t, half, "out", a->down, 0);
        /* One expert after the other: a result lies over the rows that it was made of, no other expert's. */
        fr_placed *out = &p->buffer[p->count - 1];
        if (t.by_expert && out->bytes == out[-2].bytes) out->over = (int)(p->count - 3);
        if (t.by_expert) out->lives |= P(UP), out[-2].lives |= P(DOWN);
    }
    if (t.shared || m->dense_layers) add_half(p, &t, half, "shared", 3 * a->dense, 0);
    if (a->send) add_half(p, &t, half, "send", a->send, 0);
    if (a->receive && fr_layout_expert_parts(l) == 1 && !t.asap) add_half(p, &t, half, "recv", a->receive, 0);
}

/* What has arrived waits for its turn, of both batches of every group. */
static void list_experts(fr_placement *p, const fr_layout *l, const fr_model *m, const fr_activations *a) {
    const traits t = traits_of(l, m);
    char name[24];
    add(p, "order", 0, 4 * (a->rows + a->arriving * a->slots), 0, lives(&t, "order"));
    add(p, "rows", 0, a->permuted, 0, lives(&t, "rows"));
    add(p, "mid", 0, a->up, 0, lives(&t, "mid"));
    add(p, "out", 0, a->down, 0, lives(&t, "out"));
    for (int g = 0; g < l->dp; g++)
        for (int h = 0; h < 2; h++) {
            snprintf(name, sizeof name, "drained%s %d", h ? "'" : "", g);
            add(p, name, 0, a->receive, 0, ALWAYS);
        }
}

/* ---- places -------------------------------------------------------------------------------------------------------*/

static int64_t room(const fr_placed *b) {
    return b->pitch * (b->slots > 1 ? b->slots : 1) + FR_PLACE_ALIGN;
}

static int phases_of(const fr_placed *b) {
    int n = 0;
    for (int k = 0; k < FR_PHASES; k++) n += (b->lives >> k & 1) != 0;
    return n;
}

/* Orders in which buffers are given places: larger ones first, or those that live longest, or both. None is best for
 * all layouts. */
enum { ORDERS = 3 };

static int compare(const void *a, const void *b, void *order) {
    const fr_placed *x = *(const fr_placed *const *)a, *y = *(const fr_placed *const *)b;
    const int which = *(const int *)order;
    const int64_t p = which == 0 ? 1 : phases_of(x), q = which == 0 ? 1 : phases_of(y);
    const int64_t one = which == 1 ? p : p * room(x), other = which == 1 ? q : q * room(y);
    if (one != other) return one > other ? -1 : 1;
    if (room(x) != room(y)) return room(x) > room(y) ? -1 : 1;
    return (x > y) - (x < y); /* of the list */
}

/* The lowest place at which no buffer lies that lives in one of the same phases. */
static int64_t lowest(fr_placed *const *placed, uint32_t count, const fr_placed *b) {
    int64_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t i = 0; i < count; i++) {
            const fr_placed *o = placed[i];
            if (!(o->lives & b->lives) || at + room(b) <= o->at || o->at + room(o) <= at) continue;
            at = o->at + room(o);
            moved = true;
        }
    }
    return at;
}

/* Gives all their places in this order; returns the bytes of all together. */
static int64_t try_order(fr_placed **list, uint32_t count, int which) {
    int64_t bytes = 0;
    qsort_r(list, count, sizeof(*list), compare, &which);
    for (uint32_t i = 0; i < count; i++) {
        list[i]->at = lowest(list, i, list[i]);
        bytes = fr_max_i64(bytes, list[i]->at + room(list[i]));
    }
    return bytes;
}

static void place(fr_placement *p) {
    fr_placed **list = fr_alloc(p->count * sizeof(*list));
    uint32_t count = 0;
    int64_t live[FR_PHASES] = {0}, bytes[ORDERS];
    int best = 0;
    for (uint32_t i = 0; i < p->count; i++) {
        fr_placed *b = &p->buffer[i];
        b->pitch = fr_ceil_div(b->bytes, FR_PLACE_ALIGN) * FR_PLACE_ALIGN;
        if (b->over >= 0) p->buffer[b->over].lives |= b->lives;
        if (b->over < 0 && b->lives) list[count++] = b;
    }
    for (uint32_t i = 0; i < count; i++)
        for (int k = 0; k < FR_PHASES; k++)
            if (list[i]->lives >> k & 1) live[k] += room(list[i]);
    for (int k = 0; k < FR_PHASES; k++) p->least = fr_max_i64(p->least, live[k]);
    for (int o = 0; o < ORDERS; o++) {
        bytes[o] = try_order(list, count, o);
        if (bytes[o] < bytes[best]) best = o;
    }
    p->bytes = try_order(list, count, best);
    for (uint32_t i = 0; i < p->count; i++)
        if (p->buffer[i].over >= 0) p->buffer[i].at = p->buffer[p->buffer[i].over].at;
    free(list);
}

void fr_placement_of(const fr_layout *l, const fr_model *m, const fr_load *load, bool experts_only, fr_placement *out) {
    const int parts = fr_layout_expert_parts(l);
    const bool two = l->overlap == FR_OVERLAP_TBO || l->experts == FR_EXP_ASAP;
    fr_activations a;
    *out = (fr_placement){0};
    fr_layout_room(l, m, load, &a);
    if (experts_only) {
        list_experts(out, l, m, &a);
        place(out);
        return;
    }
    for (int half = 0; half <= two; half++) list_half(out, l, m, load, &a, half);
    for (int g = 0; g < parts && parts > 1 && a.receive; g++) {
        char name[24];
        snprintf(name, sizeof name, "recv %d", g);
        add(out, name, 0, a.receive / parts, 0, span(FR_PHASE_SEND, FR_PHASE_RETURN));
    }
    place(out);
}

void fr_placement_free(fr_placement *p) {
    free(p->buffer);
    *p = (fr_placement){0};
}

const fr_placed *fr_placement_find(const fr_placement *p, const char *name) {
    for (uint32_t i = 0; i < p->count; i++)
        if (strcmp(p->buffer[i].name, name) == 0) return &p->buffer[i];
    return NULL;
}

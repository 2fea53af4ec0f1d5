#include "sim/fluid.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A flow in a resource's list, and a resource in a flow's: each knows where the other keeps it, so that leaving is
 * O(1). */
typedef struct {
    uint32_t flow, use;
    int64_t amount;
} member;
typedef struct {
    uint32_t resource, at;
    int64_t amount;
} use;

typedef struct {
    int64_t capacity;
    int64_t demand[FR_FLUID_LEVELS]; /* sum of amounts at full rate */
    struct {
        member *m; /* in no order: sums over it must not depend on one */
        uint32_t n, cap;
    } list[FR_FLUID_LEVELS];
} resource;

/* Cold part of a resource: used only while something is re-solved. */
typedef struct {
    uint64_t stamp;
    int64_t weights; /* sum of amount * weight over flows that still rise */
    double left;     /* capacity not given out yet */
    bool marked[FR_FLUID_LEVELS];
} work_area;

typedef struct {
    double rate, cap, limit, remaining; /* remaining: at `last` */
    int64_t last, finish;
    use *uses; /* = few, or many */
    uint32_t count, many_cap;
    uint32_t weight, group, victim;
    uint32_t next, previous; /* other victims of the group, id + 1 */
    uint64_t stamp;
    uint8_t level;
    bool active, rising;
    use few[4];
    use *many;
} flow;

typedef struct {
    uint32_t pressing[FR_FLUID_AGGRESSORS];
    uint32_t first; /* victims, id + 1 */
    uint32_t mask, settled;
    bool listed;
} group;

typedef struct {
    uint32_t mask;     /* of aggressors; 0 = not asked for yet */
    double soft, hard; /* shares of the speed that they leave */
} pressed;

typedef struct {
    uint32_t *v, n, cap;
} list;

struct fr_fluid {
    flow *flows;
    resource *resources;
    work_area *areas;
    group *groups;
    double *slowdown; /* [victims][aggressors] */
    pressed *pressed; /* [victims] */
    uint32_t flows_count, resources_count, groups_count, aggressors, softly;
    bool everything;
    uint64_t epoch;
    int64_t solves;
    list seeds, marked[FR_FLUID_LEVELS], dirty_groups, changed, part, part_resources;
};

static inline void add(list *l, uint32_t v) {
    if (l->n == l->cap) FR_GROW(l->v, l->cap, l->n + 1);
    l->v[l->n++] = v;
}

/* Integer test, exact: can the resource bind flows of this level? */
static inline bool over(const resource *r, unsigned level) {
    return r->demand[0] + (level ? r->demand[1] : 0) > r->capacity;
}

/* None of the slow-downs is below 0. */
static void copy_slowdowns(fr_fluid *f, const fr_fluid_options *o) {
    const size_t n = o->slowdown ? (size_t)o->victims * o->aggressors : 0;
    f->slowdown = fr_alloc((n + 1) * sizeof *f->slowdown);
    f->pressed = fr_alloc((o->victims + 1) * sizeof *f->pressed);
    for (size_t i = 0; i < n; i++) f->slowdown[i] = o->slowdown[i] > 0 ? o->slowdown[i] : 0;
    f->aggressors = n ? o->aggressors : 0;
    f->softly = o->softly;
}

fr_fluid *fr_fluid_new(const fr_fluid_options *o) {
    fr_fluid *f = fr_alloc(sizeof *f);
    f->flows_count = o->flows;
    f->resources_count = o->resources;
    f->groups_count = o->groups;
    f->everything = o->everything;
    f->flows = fr_alloc((o->flows + 1) * sizeof *f->flows);
    f->resources = fr_alloc((o->resources + 1) * sizeof *f->resources);
    f->areas = fr_alloc((o->resources + 1) * sizeof *f->areas);
    f->groups = fr_alloc((o->groups + 1) * sizeof *f->groups);
    for (uint32_t r = 0; r < o->resources; r++) f->resources[r].capacity = fr_max_i64(o->capacity[r], 0);
    copy_slowdowns(f, o);
    return f;
}

void fr_fluid_free(fr_fluid *f) {
    if (!f) return;
    for (uint32_t i = 0; i < f->flows_count; i++) free(f->flows[i].many);
    for (uint32_t r = 0; r < f->resources_count; r++)
        for (int l = 0; l < FR_FLUID_LEVELS; l++) free(f->resources[r].list[l].m);
    list *all[] = {&f->seeds,   &f->marked[0], &f->marked[1],     &f->dirty_groups,
                   &f->changed, &f->part,      &f->part_resources};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->v);
    free(f->flows);
    free(f->resources);
    free(f->areas);
    free(f->groups);
    free(f->slowdown);
    free(f->pressed);
    free(f);
}

static inline void mark(fr_fluid *f, uint32_t r, unsigned level) {
    work_area *a = &f->areas[r];
    if (a->marked[level]) return;
    a->marked[level] = true;
    add(&f->marked[level], r);
}

static inline void enter(fr_fluid *f, uint32_t id, uint32_t number) {
    flow *w = &f->flows[id];
    use *u = &w->uses[number];
    resource *r = &f->resources[u->resource];
    if (r->list[w->level].n == r->list[w->level].cap)
        FR_GROW(r->list[w->level].m, r->list[w->level].cap, r->list[w->level].n + 1);
    u->at = r->list[w->level].n++;
    r->list[w->level].m[u->at] = (member){id, number, u->amount};
    r->demand[w->level] += u->amount;
}

static inline void leave(fr_fluid *f, const flow *w, const use *u) {
    resource *r = &f->resources[u->resource];
    r->demand[w->level] -= u->amount;
    const uint32_t last = --r->list[w->level].n;
    if (u->at == last) return;
    const member moved = r->list[w->level].m[last];
    r->list[w->level].m[u->at] = moved;
    f->flows[moved.flow].uses[moved.use].at = u->at;
}

static inline int64_t finish_at(int64_t now, double remaining, double rate) {
    if (remaining <= 0) return now;
    if (rate <= 0) return INT64_MAX;
    /* Whole ns, rounded up; a millionth of a ns is rounding noise. Exact where rate is 1 and remaining whole. */
    double ns = remaining / rate - 1e-6;
    if (!(ns < 9e18 - (double)now)) return INT64_MAX;
    int64_t down = (int64_t)ns;
    return now + down + ((double)down < ns);
}

/* What presses on a victim leaves it of its speed; the same few are pressed on by the same all the time. */
static const pressed *pressed_by(fr_fluid *f, uint32_t victim, uint32_t mask) {
    pressed *p = &f->pressed[victim];
    if (p->mask == mask) return p;
    const double *slow = &f->slowdown[(size_t)victim * f->aggressors];
    double sum[2] = {0, 0};
    for (uint32_t m = mask; m; m &= m - 1) {
        const int a = __builtin_ctz(m);
        sum[!(f->softly >> a & 1)] += slow[a];
    }
    *p = (pressed){mask, 1 / (1 + sum[0]), 1 / (1 + sum[1])};
    return p;
}

static inline double cap_of(fr_fluid *f, const flow *w) {
    if (w->group == FR_FLUID_NO_GROUP) return w->limit;
    const uint32_t pressing = f->groups[w->group].mask;
    if (!pressing || !f->aggressors) return w->limit;
    const pressed *p = pressed_by(f, w->victim, pressing);
    return fr_least(p->soft, w->limit) * p->hard;
}

static void join_group(fr_fluid *f, uint32_t id) {
    flow *w = &f->flows[id];
    group *g = &f->groups[w->group];
    w->previous = 0;
    w->next = g->first;
    if (g->first) f->flows[g->first - 1].previous = id + 1;
    g->first = id + 1;
}

static void leave_group(fr_fluid *f, uint32_t id) {
    flow *w = &f->flows[id];
    if (w->previous)
        f->flows[w->previous - 1].next = w->next;
    else
        f->groups[w->group].first = w->next;
    if (w->next) f->flows[w->next - 1].previous = w->previous;
}

int64_t fr_fluid_start(fr_fluid *f, uint32_t id, int64_t now, const fr_fluid_flow *o) {
    flow *w = &f->flows[id];
    w->active = true;
    w->level = o->level != 0;
    w->weight = o->weight ? o->weight : 1;
    w->group = o->group;
    w->victim = o->victim;
    w->limit = o->limit > 0 && o->limit < 1 ? o->limit : 1;
    w->count = 0;
    w->stamp = 0;
    if (o->count > 4) FR_GROW(w->many, w->many_cap, o->count);
    w->uses = o->count > 4 ? w->many : w->few;
    bool contended = false;
    for (uint32_t i = 0; i < o->count; i++) {
        if (o->usages[i].amount <= 0) continue;
        w->uses[w->count] = (use){o->usages[i].resource, 0, o->usages[i].amount};
        enter(f, id, w->count++);
        const resource *r = &f->resources[o->usages[i].resource];
        contended |= over(r, w->level);
        if (w->level == 0 && r->list[1].n && over(r, 1)) mark(f, o->usages[i].resource, 1);
    }
    if (w->group != FR_FLUID_NO_GROUP) join_group(f, id);
    w->rate = w->cap = cap_of(f, w);
    w->remaining = (double)fr_max_i64(o->work, 0);
    w->last = now;
    w->finish = finish_at(now, w->remaining, w->rate);
    if (contended) add(&f->seeds, id);
    return w->finish;
}

void fr_fluid_end(fr_fluid *f, uint32_t id) {
    flow *w = &f->flows[id];
    if (!w->active) return;
    w->active = false;
    for (uint32_t i = 0; i < w->count; i++) {
        uint32_t at = w->uses[i].resource;
        const resource *r = &f->resources[at];
        if (over(r, w->level)) mark(f, at, w->level);
        if (w->level == 0 && r->list[1].n && over(r, 1)) mark(f, at, 1);
        leave(f, w, &w->uses[i]);
    }
    if (w->group != FR_FLUID_NO_GROUP) leave_group(f, id);
}

void fr_fluid_press(fr_fluid *f, uint32_t at, uint32_t aggressor, int delta) {
    group *g = &f->groups[at];
    assert(aggressor < FR_FLUID_AGGRESSORS);
    g->pressing[aggressor] += (uint32_t)delta;
    const uint32_t bit = 1u << aggressor;
    g->mask = g->pressing[aggressor] ? g->mask | bit : g->mask & ~bit;
    if (g->mask == g->settled || g->listed) return;
    g->listed = true;
    add(&f->dirty_groups, at);
}

bool fr_fluid_touched(const fr_fluid *f) {
    return f->seeds.n | f->marked[0].n | f->marked[1].n | f->dirty_groups.n;
}

static void set_rate(fr_fluid *f, uint32_t id, int64_t now, double rate) {
    flow *w = &f->flows[id];
    if (rate == w->rate) return;
    w->remaining -= w->rate * (double)(now - w->last);
    if (w->remaining < 0) w->remaining = 0;
    w->last = now;
    w->rate = rate;
    w->finish = finish_at(now, w->remaining, rate);
    add(&f->changed, id);
    if (w->level == 0)
        for (uint32_t i = 0; i < w->count; i++) {
            resource *r = &f->resources[w->uses[i].resource];
            if (r->list[1].n && over(r, 1)) mark(f, w->uses[i].resource, 1);
        }
}

static int by_number(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void sort(list *l) {
    if (l->n > 32) {
        qsort(l->v, l->n, sizeof *l->v, by_number);
        return;
    }
    for (uint32_t i = 1; i < l->n; i++) {
        uint32_t v = l->v[i], at = i;
        for (; at > 0 && l->v[at - 1] > v; at--) l->v[at] = l->v[at - 1];
        l->v[at] = v;
    }
}

/* Collects the flows and over-subscribed resources connected to flow id on its level. */
static void collect(fr_fluid *f, uint32_t id) {
    unsigned level = f->flows[id].level;
    f->part.n = f->part_resources.n = 0;
    f->flows[id].stamp = f->epoch;
    add(&f->part, id);
    for (uint32_t done = 0; done < f->part.n; done++) {
        flow *w = &f->flows[f->part.v[done]];
        for (uint32_t i = 0; i < w->count; i++) {
            uint32_t at = w->uses[i].resource;
            resource *r = &f->resources[at];
            if (f->areas[at].stamp == f->epoch || !over(r, level)) continue;
            f->areas[at].stamp = f->epoch;
            add(&f->part_resources, at);
            for (uint32_t k = 0; k < r->list[level].n; k++) {
                flow *other = &f->flows[r->list[level].m[k].flow];
                if (other->stamp == f->epoch) continue;
                other->stamp = f->epoch;
                add(&f->part, r->list[level].m[k].flow);
            }
        }
    }
}

/* What a resource has for flows of this level; usage in whole units, so that the sum does not depend on the order. */
static double left_for(const fr_fluid *f, const resource *r, unsigned level) {
    int64_t left = r->capacity;
    for (uint32_t k = 0; level && k < r->list[0].n; k++)
        left -= (int64_t)((double)r->list[0].m[k].amount * f->flows[r->list[0].m[k].flow].rate + 0.5);
    return left > 0 ? (double)left : 0;
}

static void freeze(fr_fluid *f, flow *w, double rate, double *out, unsigned level) {
    w->rising = false;
    *out = rate;
    for (uint32_t i = 0; i < w->count; i++) {
        work_area *a = &f->areas[w->uses[i].resource];
        if (a->stamp != f->epoch || !over(&f->resources[w->uses[i].resource], level)) continue;
        a->left -= (double)w->uses[i].amount * rate;
        if (a->left < 0) a->left = 0;
        a->weights -= w->uses[i].amount * (int64_t)w->weight;
    }
}

/* Progressive filling of one component. O(rounds * (flows + resources)); a round freezes at least one flow. */
static void fill(fr_fluid *f, int64_t now, unsigned level) {
    double small[64], *rates = f->part.n <= 64 ? small : fr_alloc(f->part.n * sizeof *rates);
    for (uint32_t k = 0; k < f->part_resources.n; k++) {
        const resource *r = &f->resources[f->part_resources.v[k]];
        work_area *a = &f->areas[f->part_resources.v[k]];
        a->left = left_for(f, r, level);
        a->weights = 0;
        for (uint32_t i = 0; i < r->list[level].n; i++)
            a->weights += r->list[level].m[i].amount * (int64_t)f->flows[r->list[level].m[i].flow].weight;
    }
    for (uint32_t i = 0; i < f->part.n; i++) f->flows[f->part.v[i]].rising = true;
    for (uint32_t rising = f->part.n; rising > 0;) {
        double t = INFINITY;
        for (uint32_t k = 0; k < f->part_resources.n; k++) {
            const work_area *a = &f->areas[f->part_resources.v[k]];
            if (a->weights > 0) t = fr_least(t, a->left / (double)a->weights);
        }
        bool capped = false;
        for (uint32_t i = 0; i < f->part.n; i++) {
            flow *w = &f->flows[f->part.v[i]];
            if (!w->rising || w->cap > t * w->weight) continue;
            freeze(f, w, w->cap, &rates[i], level);
            capped = true;
            rising--;
        }
        if (capped) continue; /* levels of resources have moved */
        for (uint32_t i = 0; i < f->part.n; i++) {
            flow *w = &f->flows[f->part.v[i]];
            bool stop = false;
            for (uint32_t k = 0; w->rising && !stop && k < w->count; k++) {
                const work_area *a = &f->areas[w->uses[k].resource];
                stop = a->stamp == f->epoch && a->weights > 0 && a->left / (double)a->weights <= t &&
                       over(&f->resources[w->uses[k].resource], level);
            }
            if (stop)
                rates[i] = -1; /* frozen below, once all have been judged by the same state */
            else if (w->rising)
                rates[i] = 0;
        }
        for (uint32_t i = 0; i < f->part.n; i++)
            if (f->flows[f->part.v[i]].rising && rates[i] < 0) {
                freeze(f, &f->flows[f->part.v[i]], t * f->flows[f->part.v[i]].weight, &rates[i], level);
                rising--;
            }
    }
    for (uint32_t i = 0; i < f->part.n; i++) set_rate(f, f->part.v[i], now, rates[i]);
    if (rates != small) free(rates);
}

/* The common case: one full resource, and no cap below the share that it gives. Same arithmetic as fill; false (and
 * nothing done) when a cap binds. */
static bool fill_simple(fr_fluid *f, int64_t now, unsigned level) {
    const resource *r = &f->resources[f->part_resources.v[0]];
    int64_t weights = 0;
    for (uint32_t i = 0; i < r->list[level].n; i++)
        weights += r->list[level].m[i].amount * (int64_t)f->flows[r->list[level].m[i].flow].weight;
    double t = left_for(f, r, level) / (double)weights;
    for (uint32_t i = 0; i < f->part.n; i++)
        if (f->flows[f->part.v[i]].cap <= t * f->flows[f->part.v[i]].weight) return false;
    for (uint32_t i = 0; i < f->part.n; i++) set_rate(f, f->part.v[i], now, t * f->flows[f->part.v[i]].weight);
    return true;
}

static void visit(fr_fluid *f, uint32_t id, int64_t now) {
    flow *w = &f->flows[id];
    if (!w->active || w->stamp == f->epoch) return;
    unsigned level = w->level;
    if (w->count == 1 && !over(&f->resources[w->uses[0].resource], level)) { /* no component at all */
        w->stamp = f->epoch;
        set_rate(f, id, now, w->cap);
        return;
    }
    collect(f, id);
    if (f->part_resources.n == 0) {
        set_rate(f, id, now, w->cap);
        return;
    }
    f->solves++;
    if (f->part_resources.n == 1 && fill_simple(f, now, level)) return;
    sort(&f->part);
    fill(f, now, level);
}

static void settle_groups(fr_fluid *f) {
    for (uint32_t i = 0; i < f->dirty_groups.n; i++) {
        group *g = &f->groups[f->dirty_groups.v[i]];
        g->listed = false;
        g->settled = g->mask;
        for (uint32_t id = g->first; id; id = f->flows[id - 1].next) {
            flow *w = &f->flows[id - 1];
            double cap = cap_of(f, w);
            if (cap == w->cap) continue;
            w->cap = cap;
            add(&f->seeds, id - 1);
        }
    }
    f->dirty_groups.n = 0;
}

uint32_t fr_fluid_settle(fr_fluid *f, int64_t now, const uint32_t **changed) {
    f->changed.n = 0;
    settle_groups(f);
    if (f->everything) {
        for (uint32_t r = 0; r < f->resources_count; r++)
            for (unsigned l = 0; l < FR_FLUID_LEVELS; l++) mark(f, r, l);
        for (uint32_t id = 0; id < f->flows_count; id++) add(&f->seeds, id);
    }
    for (unsigned level = 0; level < FR_FLUID_LEVELS; level++) {
        f->epoch++; /* a resource may bind on both levels */
        for (uint32_t i = 0; i < f->marked[level].n; i++) {
            uint32_t at = f->marked[level].v[i];
            f->areas[at].marked[level] = false;
            resource *r = &f->resources[at];
            for (uint32_t k = 0; k < r->list[level].n; k++) visit(f, r->list[level].m[k].flow, now);
        }
        f->marked[level].n = 0;
        for (uint32_t i = 0; i < f->seeds.n; i++)
            if (f->flows[f->seeds.v[i]].level == level) visit(f, f->seeds.v[i], now);
    }
    f->seeds.n = 0;
    if (changed) *changed = f->changed.v;
    return f->changed.n;
}

int64_t fr_fluid_finish(const fr_fluid *f, uint32_t id) {
    return f->flows[id].finish;
}
double fr_fluid_rate(const fr_fluid *f, uint32_t id) {
    return f->flows[id].active ? f->flows[id].rate : 0;
}
int64_t fr_fluid_solves(const fr_fluid *f) {
    return f->solves;
}

#include "engine/cost/cost_family.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static fr_op_class class_of(const fr_shape *s) {
    return fr_op_class_of((fr_op_kind)s->kind);
}

_Static_assert(sizeof(fr_family_key) == 8 * sizeof(uint8_t) + 2 * sizeof(int16_t) + 2 * sizeof(int32_t), "no padding");

static fr_family_key key_of(const fr_shape *s, uint8_t ways, bool generic) {
    fr_family_key k = {.class = (uint8_t)class_of(s)};
    switch (class_of(s)) {
    case FR_CLASS_GEMM:
    case FR_CLASS_GROUPED:
        k.precision = s->precision;
        k.n = s->n;
        k.k = s->k;
        break;
    case FR_CLASS_ATTENTION:
        k.precision = s->precision;
        k.n = s->head_dim;
        k.k = s->v_head_dim ? s->v_head_dim : s->head_dim;
        k.windowed = s->window > 0;
        break;
    case FR_CLASS_COLLECTIVE:
        k.kind = s->kind;
        k.transport = s->transport;
        k.hosts = s->hosts ? s->hosts : 1;
        k.ranks = s->ranks > 1 ? s->ranks : 2;
        if (s->kind == FR_OP_SEND || s->kind == FR_OP_RECV) k.ranks = 2; /* a pair, whatever group it belongs to */
        break;
    case FR_CLASS_COPY:
        k.kind = s->kind;
        k.ways = ways;
        if (s->kind == FR_OP_PULL || s->kind == FR_OP_PUSH) k.ranks = s->ranks > 1 ? s->ranks : 2;
        break;
    default:
        k.kind = generic ? FR_OP_NONE : s->kind;
        if (class_of(s) == FR_CLASS_MEMORY && !generic && s->m > 0 && s->n > 0) {
            /* rows of one width that move as many times: norms with and without a residual, top-8 and top-2, ... */
            k.n = s->n;
            k.k = s->kind == FR_OP_SORT ? 0 : (int32_t)fr_round((double)s->bytes / ((double)s->m * s->n));
        }
        break;
    }
    return k;
}

/*
 * The families of a key, how far they are and what they weigh. A key says nothing of size, so the same few are asked
 * for all the time: what was found is kept in a list for every hash, to which any thread may add.
 */
typedef struct pick {
    struct pick *next;
    fr_family_key want;
    bool other_precision;
    int count; /* 0: none can speak for it */
    struct {
        const fr_family *family;
        double distance, weight;
    } of[];
} pick;

#define PICK_LISTS 256
#define PICKS_MOST 4096 /* a trace may ask for a head of every number of candidates: what is beyond is not kept */
struct fr_picks {
    _Atomic(pick *) list[PICK_LISTS];
    atomic_int kept;
};

static void free_picks(struct fr_picks *picks) {
    for (int i = 0; picks && i < PICK_LISTS; i++)
        for (pick *p = atomic_load(&picks->list[i]), *next; p; p = next) {
            next = p->next;
            free(p);
        }
    free(picks);
}

/* ---- building --------------------------------------------------------------------------------------------------- */

typedef struct {
    fr_family_key key;
    fr_sample sample;
} item;

typedef struct {
    item *items;
    uint32_t count, cap;
} item_list;

static bool replaced(const fr_source *sources, int before, const fr_table *t, const fr_row *r) {
    for (int s = 0; s < before; s++)
        for (uint32_t i = 0; i < sources[s].table->count; i++)
            if (fr_row_same(sources[s].table, &sources[s].table->rows[i], t, r, true)) return true;
    return false;
}

/* Mean of T(regime) / T(other) over shapes that were measured in both; compute never runs faster when sustained. */
static double regime_ratio(const fr_source *sources, int count, fr_op_class class, fr_regime regime) {
    double sum = 0;
    int pairs = 0;
    for (int s = 0; s < count; s++) {
        const fr_table *t = sources[s].table;
        for (uint32_t i = 0; i < t->count; i++) { /* sustained rows are few */
            const fr_row *b = &t->rows[i];
            if (b->regime != FR_SUSTAINED || class_of(&b->shape) != class || !fr_row_plain(b)) continue;
            for (uint32_t j = 0; j < t->count; j++) {
                const fr_row *a = &t->rows[j];
                if (a->regime != FR_BURST || !fr_row_same(t, a, t, b, false)) continue;
                sum += log(b->ns / a->ns);
                pairs++;
            }
        }
    }
    double sustained = pairs ? exp(fr_most(0, sum / pairs)) : 1;
    return regime == FR_SUSTAINED ? sustained : 1 / sustained;
}

double fr_family_ratio(const fr_source *sources, int count, fr_op_class class) {
    return regime_ratio(sources, count, class, FR_SUSTAINED);
}

static int rows_of(const fr_table *t, fr_op_class class, int regime) {
    int n = 0;
    for (uint32_t i = 0; i < t->count; i++)
        n += class_of(&t->rows[i].shape) == class && (regime < 0 || t->rows[i].regime == regime) &&
             fr_row_plain(&t->rows[i]);
    return n;
}

int fr_family_rows(const fr_table *t, fr_op_class class) {
    return rows_of(t, class, -1);
}

/* Rows of a class come from the regime that the grid was measured in: the wanted one if it has at least half as many
 * rows as the other, else the other, scaled by the anchors. */
static fr_regime grid_regime(const fr_source *sources, int count, fr_op_class class, fr_regime wanted) {
    int have[2] = {0, 0};
    for (int s = 0; s < count; s++)
        for (int r = 0; r < 2; r++) have[r] += rows_of(sources[s].table, class, r);
    return 2 * have[wanted] >= have[1 - wanted] ? wanted : (fr_regime)(1 - wanted);
}

/* Share of its time that a kernel needs HBM for at the datasheet rate. Streaming kernels reach 0.85-0.9 of that rate;
 * grouped products of 256 rows an expert, which do run into the power limit, need 0.57. */
#define HBM_BOUND 0.67

/* Equal lengths that were sent through the graph of varied ones count there. */
static bool makes_curve(const fr_row *r) {
    fr_row own = *r;
    own.packed = false;
    return fr_row_plain(&own);
}

#define HOT_SPREAD 0.03 /* what first deciles of cool turns repeat within, three times over */

/* A row that lies by more than this below what monotony lets it cost says nothing of others of that structural time,
 * and would pull them down: 193 to 256 rows for each of Mixtral's experts, a quarter quicker than 129 to 192. */
#define LIFTED 0.2

static void add_sample(item_list *list, const fr_source *src, const fr_row *r, double scale, bool same_regime) {
    fr_base base;
    fr_cost_base(&src->table->ceilings, &r->shape, src->table->pairs, &base);
    if (base.ns <= 0 || base.lifted > LIFTED) return;
    FR_GROW(list->items, list->cap, list->count + 1);
    item *it = &list->items[list->count++];
    memset(it, 0, sizeof *it);
    it->key = key_of(&r->shape, r->ways, r->type == FR_ROW_GENERIC);
    it->key.cached = base.cached;
    it->key.equal = base.equal && !r->packed;
    /* The other regime differs by the clock, which HBM does not follow (facts: 1 GiB streamed at 1,980 MHz and 550 W,
     * not throttled): what spends most of its time there keeps it. */
    if (base.hbm_bytes / src->table->ceilings.hbm * 1e9 > HBM_BOUND * r->ns) scale = 1;
    fr_provenance p = (fr_provenance)r->provenance;
    if (!same_regime && p < FR_FROM_INTERPOLATED) p = FR_FROM_INTERPOLATED;
    if (src->cap == FR_FROM_TRANSFERRED) p = FR_FROM_TRANSFERRED; /* said of another GPU, whatever it was there */
    double t = r->ns * scale, high = r->p90 > 0 ? r->p90 : r->ns;
    /* Bursts of the older benches reached into the power limit, and p90 shows it; the clock model knows of that. */
    if (r->regime == FR_BURST && r->clock_mhz <= 0 && src->table->clock_max_mhz > 0 && base.flops > 0)
        high = fr_least(high, (1 + HOT_SPREAD) * r->ns);
    it->sample =
        (fr_sample){.row = r,
                    .b = base.ns,
                    .feature = base.feature,
                    .clock = src->table->clock_max_mhz > 0 ? fr_least(1, r->clock_mhz / src->table->clock_max_mhz) : 0,
                    .t = t,
                    .low = (r->p10 > 0 ? r->p10 : r->ns) * scale,
                    .high = high * scale,
                    .provenance = (uint8_t)p};
}

static int by_key(const void *a, const void *b) {
    const item *x = a, *y = b;
    return memcmp(&x->key, &y->key, sizeof x->key);
}

static fr_fit_kind fit_kind(fr_op_class class) {
    switch (class) {
    case FR_CLASS_GEMM:
        return FR_FIT_STRAIGHT;
    case FR_CLASS_GROUPED:
        return FR_FIT_CLOCKED;
    case FR_CLASS_ATTENTION:
        return FR_FIT_FEATURED;
    default:
        return FR_FIT_SMOOTH;
    }
}

/* One family from items[0..count), all of one key: measured rows outrank seeded ones. */
static void add_family(fr_family_set *set, const item *items, uint32_t count) {
    bool measured = false;
    for (uint32_t i = 0; i < count; i++) measured |= items[i].sample.row->provenance < FR_FROM_SEEDED;
    fr_sample *samples = fr_alloc(count * sizeof *samples);
    int n = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!measured || items[i].sample.row->provenance < FR_FROM_SEEDED) samples[n++] = items[i].sample;
    fr_family *f = &set->families[set->count++];
    f->key = items[0].key;
    f->rows = n;
    fr_curve_fit(&f->curve, samples, n, fit_kind((fr_op_class)f->key.class));
    set->rows += n;
    free(samples);
}

void fr_family_build(fr_family_set *set, const fr_source *sources, int count, fr_regime regime, const fr_row *skip) {
    *set = (fr_family_set){0};
    item_list list = {0};
    for (int c = 0; c < FR_CLASS_COUNT; c++) {
        /* the leading sources that are this GPU's own; only if they are silent, another GPU's */
        int first = 0, end = 0, own = 0;
        while (end < count && sources[end].cap < FR_FROM_TRANSFERRED)
            own += rows_of(sources[end++].table, (fr_op_class)c, -1);
        if (!own) {
            first = end;
            end = count;
        }
        const fr_source *use = sources + first;
        fr_regime grid = grid_regime(use, end - first, (fr_op_class)c, regime);
        double ratio = regime_ratio(use, end - first, (fr_op_class)c, regime);
        set->regime_ratio[c] = grid == regime ? 1 : ratio;
        for (int s = 0; s < end - first; s++)
            for (uint32_t i = 0; i < use[s].table->count; i++) {
                const fr_row *r = &use[s].table->rows[i];
                if (class_of(&r->shape) != (fr_op_class)c || r->regime != grid || r == skip || !makes_curve(r) ||
                    replaced(use, s, use[s].table, r))
                    continue;
                add_sample(&list, &use[s], r, set->regime_ratio[c], grid == regime);
            }
    }
    if (list.count) qsort(list.items, list.count, sizeof *list.items, by_key);
    set->families = fr_alloc((list.count + 1) * sizeof *set->families);
    set->picks = fr_alloc(sizeof *set->picks);
    for (uint32_t i = 0; i < list.count;) {
        uint32_t j = i + 1;
        while (j < list.count && by_key(&list.items[i], &list.items[j]) == 0) j++;
        int class = list.items[i].key.class;
        if (set->end[class] == 0) set->first[class] = set->count;
        add_family(set, &list.items[i], j - i);
        set->end[class] = set->count;
        i = j;
    }
    free(list.items);
}

void fr_family_free(fr_family_set *set) {
    for (int i = 0; i < set->count; i++) fr_curve_free(&set->families[i].curve);
    free(set->families);
    free_picks(set->picks);
    *set = (fr_family_set){0};
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static double log_distance(int32_t a, int32_t b) {
    return a == b ? 0 : fabs(log((double)(a > 0 ? a : 1) / (double)(b > 0 ? b : 1)));
}

/* Distance of a family from a key; negative = cannot speak for it. */
static double distance(const fr_family_key *f, const fr_family_key *want) {
    switch ((fr_op_class)want->class) {
    case FR_CLASS_GEMM:
    case FR_CLASS_GROUPED:
        return log_distance(f->n, want->n) + log_distance(f->k, want->k);
    case FR_CLASS_ATTENTION:
        return log_distance(f->n, want->n) + log_distance(f->k, want->k) + (f->windowed != want->windowed ? 1 : 0) +
               (f->cached != want->cached ? 1 : 0) + (f->equal != want->equal ? 1 : 0);
    case FR_CLASS_MEMORY:
        if (f->kind != want->kind) return f->kind == FR_OP_NONE ? 50 : 100;
        return log_distance(f->n, want->n) + log_distance(f->k, want->k);
    case FR_CLASS_HOST:
        return f->kind == want->kind ? 0 : -1;
    case FR_CLASS_COLLECTIVE:
        if (f->kind != want->kind) return -1;
        /* copy engines of more ranks than these: a pair's pulls say more of them */
        if (want->kind == FR_OP_GATHER_WEIGHTS && (f->transport != want->transport || f->ranks > want->ranks))
            return -1;
        return log_distance(f->ranks, want->ranks) + 3 * fabs((double)f->hosts - want->hosts);
    case FR_CLASS_COPY:
        if (f->kind != want->kind) return -1;
        /* pulls of more than two GPUs at once always go both ways */
        return (f->ranks <= 2 && f->ways != want->ways) + (want->ranks ? log_distance(f->ranks, want->ranks) : 0);
    default:
        return -1;
    }
}

/* One family stands for another where it is the same wire pattern. */
static bool stand_in(const fr_family_key *want, fr_family_key *other) {
    *other = *want;
    switch (want->kind) {
    case FR_OP_REDUCESCATTER:
        other->kind = FR_OP_ALLGATHER;
        return true;
    case FR_OP_ALLTOALL_BACK:
    case FR_OP_SEND:
    case FR_OP_RECV:
    case FR_OP_COUNTS:
        other->kind = FR_OP_ALLTOALL;
        return true;
    case FR_OP_GATHER_WEIGHTS:
        if (want->transport == 1) {
            other->kind = FR_OP_ALLGATHER;
            return true;
        }
        *other = (fr_family_key){.class = FR_CLASS_COPY, .kind = FR_OP_PULL, .ways = 2, .ranks = want->ranks};
        return true;
    case FR_OP_PUSH:
        other->kind = FR_OP_PULL;
        return true;
    case FR_OP_D2H:
        other->kind = FR_OP_H2D;
        return true;
    default:
        return false;
    }
}

/* The family of this very key, where a key says all that `distance` asks; families lie sorted. Most questions end here.
 */
static const fr_family *own_family(const fr_family_set *set, const fr_family_key *want) {
    int low = set->first[want->class], high = set->end[want->class];
    if (want->class < FR_CLASS_MEMORY || want->class > FR_CLASS_GROUPED) return NULL;
    while (low < high) {
        const int middle = (low + high) / 2, order = memcmp(&set->families[middle].key, want, sizeof *want);
        if (order == 0) return &set->families[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static double ratio(int32_t a, int32_t b) {
    const double x = (double)(a > 0 ? a : 1) / (double)(b > 0 ? b : 1);
    return x < 1 ? 1 / x : x;
}

/* Memory-bound ops have one answer, the nearest of their kind, and are asked for often: `distance` without its
 * logarithms. NULL where no family is of the kind. */
static const fr_family *nearest_of_kind(const fr_family_set *set, const fr_family_key *want, double *d) {
    const fr_family *nearest = NULL;
    double least = INFINITY;
    for (int i = set->first[want->class]; i < set->end[want->class]; i++) {
        const fr_family *f = &set->families[i];
        if (f->key.kind != want->kind) continue;
        const double r = ratio(f->key.n, want->n) * ratio(f->key.k, want->k);
        if (r >= least) continue;
        least = r;
        nearest = f;
    }
    *d = log(least);
    return nearest;
}

static void add_pick(pick *p, const fr_family *f, double distance, double weight) {
    p->of[p->count].family = f;
    p->of[p->count].distance = distance;
    p->of[p->count++].weight = weight;
}

static pick *make_pick(const fr_family_set *set, const fr_family_key *want) {
    int first = set->first[want->class], end = set->end[want->class];
    bool single = want->class != FR_CLASS_GEMM && want->class != FR_CLASS_GROUPED && want->class != FR_CLASS_ATTENTION;
    bool same_precision = single && end > first; /* their keys have none */
    pick *p = fr_alloc(sizeof *p + (size_t)(end - first + 1) * sizeof *p->of);
    const fr_family *nearest = own_family(set, want);
    double least = nearest ? 0 : INFINITY;
    p->want = *want;
    if (!nearest && want->class == FR_CLASS_MEMORY) nearest = nearest_of_kind(set, want, &least);
    if (nearest) {
        add_pick(p, nearest, least, 1);
        return p;
    }
    for (int i = first; i < end && !single; i++) same_precision |= set->families[i].key.precision == want->precision;
    for (int i = first; i < end && least > 0; i++) {
        const fr_family *f = &set->families[i];
        if (!single && same_precision && f->key.precision != want->precision) continue;
        double d = distance(&f->key, want);
        if (d >= 0 && d < least) {
            least = d;
            nearest = f;
        }
    }
    p->other_precision = nearest && !same_precision;
    if (nearest && (single || least <= 0)) {
        add_pick(p, nearest, least, 1);
        return p;
    }
    for (int i = first; i < end && nearest; i++) {
        const fr_family *f = &set->families[i];
        if (same_precision && f->key.precision != want->precision) continue;
        double d = distance(&f->key, want);
        if (d >= 0) add_pick(p, f, d, (f->rows < 4 ? f->rows : 4) / (d * d));
    }
    return p;
}

/* *kept: the set keeps it, else the caller frees it. */
static const pick *find_pick(const fr_family_set *set, const fr_family_key *want, bool *kept) {
    uint64_t words[3] = {0};
    memcpy(words, want, sizeof *want);
    const uint64_t h =
        (words[0] * 0x9e3779b97f4a7c15u ^ words[1] * 0xc2b2ae3d27d4eb4fu ^ words[2]) * 0x165667b19e3779f9u;
    _Atomic(pick *) *list = &set->picks->list[h >> 32 & (PICK_LISTS - 1)];
    *kept = true;
    for (const pick *p = atomic_load_explicit(list, memory_order_acquire); p; p = p->next)
        if (memcmp(&p->want, want, sizeof *want) == 0) return p;
    pick *made = make_pick(set, want);
    if (atomic_fetch_add(&set->picks->kept, 1) < PICKS_MOST) {
        made->next = atomic_load(list);
        while (!atomic_compare_exchange_weak(list, &made->next, made)) continue;
    } else {
        atomic_fetch_sub(&set->picks->kept, 1);
        *kept = false;
    }
    return made;
}

/* What the families of a key say: means by weight, and by how much they differ. */
typedef struct {
    double y, variance, low, high, error, beyond, nearest, clock;
    double below, above; /* of one family between two points: factors on T; 0 = not so */
    uint8_t provenance;
    bool inside, at_row, other_precision;
    const fr_family *best;
} answer;

/* Most keys have one family. */
static void ask_one(const fr_family *f, double log_b, double feature, double d, answer *out) {
    fr_curve_value v;
    fr_curve_eval(&f->curve, log_b, feature, &v);
    const bool between = v.segment >= 0;
    *out = (answer){.y = v.y,
                    .low = v.low,
                    .high = v.high,
                    .error = f->curve.error,
                    .beyond = v.beyond,
                    .nearest = d,
                    .clock = v.clock,
                    .below = between ? f->curve.below[v.segment] : 0,
                    .above = between ? f->curve.above[v.segment] : 0,
                    .provenance = v.provenance,
                    .inside = v.inside,
                    .at_row = v.at_row,
                    .best = f};
}

static void ask_all(const pick *p, double log_b, double feature, answer *out) {
    double weight = 0, yy = 0, clocked = 0;
    *out = (answer){0};
    for (int i = 0; i < p->count; i++) {
        const double w = p->of[i].weight;
        answer v;
        ask_one(p->of[i].family, log_b, feature, p->of[i].distance, &v);
        weight += w;
        out->y += w * v.y;
        yy += w * v.y * v.y;
        out->low += w * v.low;
        out->high += w * v.high;
        out->error += w * v.error;
        out->beyond += w * v.beyond;
        if (v.clock > 0) {
            out->clock += w * v.clock;
            clocked += w;
        }
        if (v.provenance > out->provenance) out->provenance = v.provenance;
        if (out->best && v.nearest >= out->nearest) continue;
        out->best = v.best;
        out->nearest = v.nearest;
        out->inside = v.inside;
        out->at_row = v.at_row;
    }
    out->y /= weight;
    out->variance = fr_most(0, yy / weight - out->y * out->y);
    out->low /= weight;
    out->high /= weight;
    out->error /= weight;
    out->beyond /= weight;
    if (clocked > 0) out->clock /= clocked;
}

static bool ask_families(const fr_family_set *set, const fr_family_key *want, const fr_base *base, answer *out) {
    const double log_b = log(base->ns);
    bool kept;
    const pick *p = find_pick(set, want, &kept);
    const bool any = p->count > 0;
    if (p->count == 1)
        ask_one(p->of[0].family, log_b, base->feature, p->of[0].distance, out);
    else if (any)
        ask_all(p, log_b, base->feature, out);
    out->other_precision = p->other_precision;
    if (!kept) free((void *)p);
    return any;
}

/* The hops and network time that the nearest family's own rank count already holds. */
static double family_extra(const fr_ceilings *c, const fr_shape *s, const fr_family *f) {
    fr_shape own = *s;
    fr_base base;
    own.ranks = f->key.ranks;
    own.hosts = f->key.hosts;
    if (own.ranks == s->ranks && own.hosts == (s->hosts ? s->hosts : 1)) own.hosts = s->hosts;
    fr_cost_base(c, &own, NULL, &base);
    return base.extra;
}

void fr_family_list(const fr_family_set *set, fr_text *out) {
    static const char *const transports[] = {"ours", "nccl", "nccl-ce"};
    for (int i = 0; i < set->count; i++) {
        const fr_family *f = &set->families[i];
        const fr_family_key *k = &f->key;
        char name[96];
        switch ((fr_op_class)k->class) {
        case FR_CLASS_GEMM:
        case FR_CLASS_GROUPED:
            snprintf(name, sizeof name, "%s %s n=%d k=%d", k->class == FR_CLASS_GEMM ? "gemm" : "grouped",
                     fr_precision_name((fr_precision)k->precision), (int)k->n, (int)k->k);
            break;
        case FR_CLASS_ATTENTION:
            snprintf(name, sizeof name, "attention %s head_dim=%d/%d%s", fr_precision_name((fr_precision)k->precision),
                     (int)k->n, (int)k->k,
                     k->windowed ? " windowed"
                     : k->cached ? " over a cache"
                     : k->equal  ? " equal lengths"
                                 : "");
            break;
        case FR_CLASS_COLLECTIVE:
            snprintf(name, sizeof name, "%s %s ranks=%d%s", fr_op_name((fr_op_kind)k->kind),
                     transports[k->transport < 3 ? k->transport : 0], k->ranks, k->hosts > 1 ? " over hosts" : "");
            break;
        default:
            snprintf(name, sizeof name, "%s%s", k->kind == FR_OP_NONE ? "memory" : fr_op_name((fr_op_kind)k->kind),
                     k->ways == 2 ? " both ways" : "");
            if (k->n) snprintf(name + strlen(name), sizeof name - strlen(name), " n=%d", (int)k->n);
            if (k->n && k->k) snprintf(name + strlen(name), sizeof name - strlen(name), ", %d bytes each", (int)k->k);
        }
        const fr_curve *c = &f->curve;
        int last = c->points - 1;
        if (f->rows == 1) { /* nothing to leave out: the error is assumed */
            fr_text_add(out, "  %-34s   1 row,  %.3g us, error taken as %.0f %%\n", name, exp(c->y[0]) / 1e3,
                        100 * c->error);
            continue;
        }
        fr_text_add(out, "  %-34s %3d rows, ideal %.3g..%.3g us, reached %.3f..%.3f, error %.1f %%\n", name, f->rows,
                    exp(c->x[0]) / 1e3, exp(c->x[last]) / 1e3, exp(c->x[0] - c->y[0]), exp(c->x[last] - c->y[last]),
                    100 * c->error);
    }
}

bool fr_family_estimate(const fr_family_set *set, const fr_ceilings *ceilings, const fr_shape *s, const fr_base *base,
                        uint8_t ways, fr_estimate *out) {
    fr_family_key want = key_of(s, ways, false), other;
    want.cached = base->cached;
    want.equal = base->equal;
    answer b;
    bool alias = false;
    if (!ask_families(set, &want, base, &b)) {
        if (!stand_in(&want, &other) || !ask_families(set, &other, base, &b)) return false;
        alias = true;
    }
    bool law = false;
    double extra = base->extra;
    if (want.class == FR_CLASS_COLLECTIVE && b.best->key.class == FR_CLASS_COLLECTIVE) {
        law = b.best->key.ranks != want.ranks || b.best->key.hosts != want.hosts;
        extra -= family_extra(ceilings, s, b.best);
    } else if (want.class == FR_CLASS_COLLECTIVE) {
        law = want.ranks > b.best->key.ranks || want.hosts > 1;
    } else if (want.class == FR_CLASS_COPY) {
        law = want.ranks > b.best->key.ranks; /* more ranks that pull from each other at once than were measured */
    }
    bool exact = b.nearest <= 0 && !alias && !b.other_precision && !law;
    fr_provenance p = exact && b.at_row ? FR_FROM_MEASURED : b.inside ? FR_FROM_INTERPOLATED : FR_FROM_EXTRAPOLATED;
    if ((alias || b.other_precision || law) && p < FR_FROM_EXTRAPOLATED) p = FR_FROM_EXTRAPOLATED;
    if (p < b.provenance) p = b.provenance;
    /* Between rows: the fit's leave-one-out error; past the end 5 % more for every factor of two; blends: how far the
     * families are apart. At a row: the row's own spread. */
    out->ns = fr_most(1, exp(b.y) + extra);
    out->clock = b.clock;
    if (exact && b.at_row) {
        out->low = out->ns * exp(b.low);
        out->high = out->ns * exp(b.high);
    } else if (b.below > 0 && !b.other_precision) {
        out->low = out->ns * b.below;
        out->high = out->ns * b.above;
    } else {
        const double spread = b.error + 0.05 * b.beyond / log(2) + sqrt(b.variance) + (b.other_precision ? 0.10 : 0);
        out->low = out->ns * exp(b.low - spread);
        out->high = out->ns * exp(b.high + spread);
    }
    if (law) {
        double least = want.hosts > 1 ? 0.40 : 0.25;
        out->low = fr_least(out->low, out->ns * (1 - least));
        out->high = fr_most(out->high, out->ns * (1 + least));
        if (p == FR_FROM_SEEDED) p = FR_FROM_EXTRAPOLATED; /* the law is what it rests on, not the row's origin */
    }
    out->provenance = p;
    out->at_row = exact && b.at_row;
    return true;
}

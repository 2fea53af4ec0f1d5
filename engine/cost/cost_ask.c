#include "engine/cost/cost_ask.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

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

struct fr_picks *fr_picks_new(void) {
    return fr_alloc(sizeof(struct fr_picks));
}

void fr_picks_free(struct fr_picks *picks) {
    for (int i = 0; picks && i < PICK_LISTS; i++)
        for (pick *p = atomic_load(&picks->list[i]), *next; p; p = next) {
            next = p->next;
            free(p);
        }
    free(picks);
}

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

bool fr_family_estimate(const fr_family_set *set, const fr_ceilings *ceilings, const fr_shape *s, const fr_base *base,
                        uint8_t ways, fr_estimate *out) {
    fr_family_key want = fr_family_key_of(s, ways, false), other;
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

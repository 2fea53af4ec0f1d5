/* routing_random: the generator that counts are drawn from, and normals. */
#include "engine/routing_internal.h"

#include <string.h>

#include <gsl/gsl_randist.h>

/* SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): every input bit changes half of the output's. */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static unsigned long generator_get(void *word) {
    return fr_routing_next(word);
}

static double generator_get_double(void *word) {
    return fr_routing_next(word) / 4294967296.0;
}

static void generator_set(void *state, unsigned long seed) {
    uint32_t *word = state, s = (uint32_t)(seed ? seed : 1);
    for (uint32_t i = 0; i < 3; i++) { /* words below 2, 8, 16 are the ones that the recurrences lose */
        static const uint32_t least[3] = {2, 8, 16};
        s *= 69069;
        if (s < least[i]) s += least[i];
        word[i] = s;
    }
    for (int i = 0; i < 6; i++) fr_routing_next(word);
}

static const gsl_rng_type generator = {"taus2",       0xffffffff,          0, 3 * sizeof(uint32_t), generator_set,
                                       generator_get, generator_get_double};

void fr_routing_seed(fr_routing_rng *g, uint64_t seed, int64_t forward, int rank, int layer) {
    uint64_t h = mix(mix(mix(mix(seed) ^ (uint64_t)forward) ^ (uint64_t)rank) ^ (uint64_t)layer);
    /* 3 words of state: cheap to seed for every call, and good enough for counts. */
    g->rng.type = &generator;
    g->rng.state = g->word;
    generator_set(g->word, (unsigned long)(h >> 32 ^ (h & 0xffffffffu)));
}

/* ---- normals ---- */

/* A generator that says `word` once, and then what every layer takes at once (its middle). */
typedef struct {
    uint32_t word;
    int asked;
} one_word;

static unsigned long one_get(void *state) {
    one_word *o = state;
    return o->asked++ == 0 ? o->word : 0x1;
}
static double one_get_double(void *state) {
    return (double)one_get(state) / 4294967296.0;
}
static void one_set(void *state, unsigned long seed) {
    *(one_word *)state = (one_word){.word = (uint32_t)seed};
}

static double ziggurat_of(uint32_t word, bool *at_once) {
    static const gsl_rng_type type = {"one", 0xffffffff, 0, sizeof(one_word), one_set, one_get, one_get_double};
    one_word state = {.word = word};
    const gsl_rng rng = {.type = &type, .state = &state};
    const double x = gsl_ran_gaussian_ziggurat(&rng, 1);
    *at_once = state.asked == 1;
    return x;
}

/* Asked of GSL, whose tables are its own: the least j of each layer that is not taken at once, by bisection. */
void fr_ziggurat_open(fr_ziggurat *z) {
    for (uint32_t layer = 0; layer < 128; layer++) {
        bool at_once;
        uint32_t low = 0, high = 1u << 24;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            ziggurat_of(middle << 8 | layer, &at_once);
            if (at_once)
                low = middle + 1;
            else
                high = middle;
        }
        z->inside[layer] = low;
        for (uint32_t sign = 0; sign <= 128; sign += 128)
            z->width[layer | sign] = low > 1 ? ziggurat_of(1u << 8 | layer | sign, &at_once) : 0;
    }
}

double fr_routing_normals(const fr_ziggurat *z, fr_routing_rng *g, const double *scale, int count, double *out) {
    uint32_t a = g->word[0], b = g->word[1], c = g->word[2]; /* in registers */
    double sum = 0;
    for (int i = 0; i < count; i++) {
        const uint32_t x = fr_routing_first(a), y = fr_routing_second(b), w = fr_routing_third(c);
        const uint32_t word = x ^ y ^ w, j = word >> 8;
        double normal = j * z->width[word & 255];
        if (j < z->inside[word & 127]) {
            a = x, b = y, c = w;
        } else {
            g->word[0] = a, g->word[1] = b, g->word[2] = c;
            normal = gsl_ran_gaussian_ziggurat(&g->rng, 1);
            a = g->word[0], b = g->word[1], c = g->word[2];
        }
        out[i] = scale[i] * normal;
        sum += out[i];
    }
    g->word[0] = a, g->word[1] = b, g->word[2] = c;
    return sum;
}

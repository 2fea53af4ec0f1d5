#include "engine/deal.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LENGTH (1 << 24) /* as --seq */
#define MOST_TIMES  (1 << 20)

/* ---- lists of lengths ---------------------------------------------------------------------------------------------*/

/* Called for every length in order: its variant and group (-1: dealt), how often. */
typedef void (*each_length)(void *context, int variant, int64_t group, int64_t length, int64_t times);

static fr_status read_item(char *text, int64_t *length, int64_t *times, fr_error *err) {
    char *x = strchr(text, 'x');
    *times = 1;
    if (x == text || (x && !x[1]))
        return fr_fail(err, FR_BAD_INPUT, "--seqs: expected a length or LENGTHxTIMES, got '%s'", text);
    if (x) {
        *x++ = 0;
        FR_TRY(fr_parse_int(x, 1, MOST_TIMES, true, "--seqs: how often", times, err));
    }
    return fr_parse_int(text, 1, MOST_LENGTH, true, "--seqs: a length", length, err);
}

/* Texts between separators, the empty ones too; NULL when none is left. */
static char *next_part(char **rest, char separator) {
    char *part = *rest, *end = part ? strchr(part, separator) : NULL;
    if (end) *end++ = 0;
    *rest = end;
    return part;
}

static fr_status read_seqs(char *text, int64_t groups, each_length each, void *context, fr_seqs *out, fr_error *err) {
    int variant = 0;
    for (char *forward; (forward = next_part(&text, ';')); variant++) {
        const bool apart = strchr(forward, '/') != NULL;
        int64_t group = 0;
        for (char *list; (list = next_part(&forward, '/')); group++) {
            if (apart && group >= groups)
                return fr_fail(err, FR_BAD_INPUT, "--seqs: more lists than the layout's %lld batches of a forward",
                               (long long)groups);
            for (char *item; list && list[0] && (item = next_part(&list, ','));) {
                int64_t length, times;
                FR_TRY(read_item(item, &length, &times, err));
                each(context, variant, apart ? group : -1, length, times);
            }
        }
        if (apart) out->given = fr_max_i64(out->given, group);
    }
    out->variants = variant;
    return FR_OK;
}

typedef struct {
    int64_t groups, *tokens, *sequences; /* [groups] of the variant at hand */
    int64_t all, next;
    int variant;
    fr_seqs *out;
} sums;

static void sum_length(void *context, int variant, int64_t group, int64_t length, int64_t times) {
    sums *s = context;
    if (variant != s->variant) {
        memset(s->tokens, 0, (size_t)s->groups * sizeof *s->tokens);
        memset(s->sequences, 0, (size_t)s->groups * sizeof *s->sequences);
        s->variant = variant;
        s->all = s->next = 0;
    }
    for (int64_t g = 0; g < s->groups; g++) { /* dealt: whole rounds, and one more for those next in turn */
        const int64_t turn = (g - s->next % s->groups + s->groups) % s->groups;
        const int64_t n = group < 0 ? times / s->groups + (turn < times % s->groups) : g == group ? times : 0;
        s->tokens[g] += n * length;
        s->sequences[g] += n;
        s->out->most_tokens = fr_max_i64(s->out->most_tokens, s->tokens[g]);
        s->out->most_sequences = fr_max_i64(s->out->most_sequences, s->sequences[g]);
    }
    if (group < 0) s->next += times;
    s->all += times * length;
    s->out->longest = fr_max_i64(s->out->longest, length);
    s->out->tokens = fr_max_i64(s->out->tokens, s->all);
}

fr_status fr_seqs_check(const char *text, int64_t groups, fr_seqs *out, fr_error *err) {
    char *copy = fr_strdup(text);
    sums s = {.groups = groups, .out = out};
    *out = (fr_seqs){0};
    s.tokens = fr_alloc((size_t)groups * sizeof *s.tokens);
    s.sequences = fr_alloc((size_t)groups * sizeof *s.sequences);
    fr_status status = read_seqs(copy, groups, sum_length, &s, out, err);
    free(s.tokens);
    free(s.sequences);
    free(copy);
    if (status == FR_OK && out->tokens == 0) status = fr_fail(err, FR_BAD_INPUT, "--seqs: no forward has any sequence");
    return status;
}

typedef struct {
    fr_deal *d;
    const fr_experiment *e;
    int64_t most, next;
    int variant;
} dealer;

static void add(dealer *to, int variant, int64_t group, int64_t length) {
    fr_deal *d = to->d;
    const int64_t at = variant * d->groups + group;
    fr_batch *b = &d->batches[at];
    d->sequences[at * to->most + b->count] = (fr_sequence){.queries = (int32_t)length,
                                                           .prefix = (int32_t)to->e->prefix,
                                                           .candidates = to->e->candidates,
                                                           .kv = (int32_t)(group * to->most + b->count),
                                                           .kv_prefix = -1};
    b->count++;
}

static void deal_length(void *context, int variant, int64_t group, int64_t length, int64_t times) {
    dealer *to = context;
    if (variant != to->variant) to->next = 0;
    to->variant = variant;
    for (int64_t i = 0; i < times; i++) add(to, variant, group < 0 ? to->next++ % to->d->groups : group, length);
}

/* ---- batches ------------------------------------------------------------------------------------------------------*/

static void make_room(fr_deal *d, int64_t variants, int64_t most) {
    const size_t batches = (size_t)(variants * d->groups);
    d->variants = (int)variants;
    d->batches = fr_alloc(batches * sizeof *d->batches);
    d->sequences = fr_alloc((batches * (size_t)most + 1) * sizeof *d->sequences);
    for (size_t i = 0; i < batches; i++) d->batches[i].sequences = d->sequences + i * (size_t)most;
}

/* tokens per GPU * GPUs in sequences of `seq`, round robin: the first groups take what does not divide. */
static void deal_equal(const fr_experiment *e, int64_t real_groups, fr_deal *d) {
    const int64_t total = fr_max_i64(e->tokens * fr_layout_gpus(&e->layout) / e->seq, 1);
    dealer to = {.d = d, .e = e, .most = fr_ceil_div(total, real_groups)};
    make_room(d, 1, to.most);
    for (int64_t g = 0; g < d->groups; g++)
        for (int64_t i = 0; i < total / real_groups + (g < total % real_groups); i++) add(&to, 0, g, e->seq);
}

static void deal_listed(const fr_experiment *e, fr_deal *d) {
    fr_seqs s;
    if (fr_seqs_check(e->seqs, d->groups, &s, NULL) != FR_OK) return; /* the setup has refused it */
    char *copy = fr_strdup(e->seqs);
    dealer to = {.d = d, .e = e, .most = s.most_sequences};
    make_room(d, s.variants, to.most);
    (void)read_seqs(copy, d->groups, deal_length, &to, &s, NULL);
    free(copy);
}

void fr_deal_open(const fr_experiment *e, int64_t groups, int fold, fr_deal *out) {
    const int64_t real_groups = fold > 1 ? fr_layout_gpus(&e->layout) / e->layout.tp / e->layout.pp : groups;
    *out = (fr_deal){.groups = groups, .stands_for = (int)(real_groups / groups)};
    if (e->seqs[0])
        deal_listed(e, out);
    else
        deal_equal(e, real_groups, out);
    const int batches = fr_layout_batches(&e->layout); /* of one attention group, behind one another */
    for (int64_t g = 0; g < groups; g += batches) {
        bool work = false;
        for (int i = 0; i < out->variants * batches; i++)
            work = work || out->batches[i / batches * groups + g + i % batches].count > 0;
        if (!work) out->idle += e->layout.tp;
    }
}

void fr_deal_close(fr_deal *d) {
    free(d->sequences);
    free(d->batches);
    *d = (fr_deal){0};
}

const fr_batch *fr_deal_batches(const fr_deal *d, int unit, int slots, int64_t forward) {
    return d->batches + forward % d->variants * d->groups + (int64_t)unit * slots;
}

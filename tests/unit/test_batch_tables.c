/* What micro-batches are to a rank: against the batch itself, and against the plan whose ops use them. */
#include "engine/batch_tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct {
    const char *name, *strategy;
    int gpus;
    fr_layout options;
} cells[] = {
    {"dp", "dp", 2, {.kv_cache = true}},
    {"tp2", "tp", 2, {.kv_cache = true}},
    {"tp8", "tp", 8, {.tp = 0}},
    {"tp2 dp2 by width", "tp", 4, {.tp = 2, .dp = 2}},
    {"ep4", "ep", 4, {.tp = 0}},
    {"ep4 tp2", "ep", 4, {.tp = 2, .kv_cache = true}},
    {"ep4 tbo", "ep", 4, {.overlap = FR_OVERLAP_TBO}},
    {"ep4 tp2 tbo", "ep", 4, {.overlap = FR_OVERLAP_TBO, .tp = 2}},
    {"pp4 m3", "pp", 4, {.micro_batches = 3, .kv_cache = true}},
    {"pp2 chunks", "pp", 2, {.micro_batches = 1, .chunk_tokens = 64, .kv_cache = true}},
    {"pp2 tp2", "tp", 4, {.pp = 2, .tp = 2, .micro_batches = 2}},
};

/* Of 37 + 100 + 1 + 250 + 5 + 64 tokens; the second group has one sequence, the third none. */
static const fr_sequence mixed[] = {{37, 0, 2, 0, -1},  {100, 0, -1, 1, -1}, {1, 0, -1, 2, -1},
                                    {250, 0, 3, 3, -1}, {5, 0, 0, 4, -1},    {64, 0, -1, 5, -1}};
static const fr_batch given[3] = {{mixed, 6}, {mixed + 3, 1}, {NULL, 0}};

typedef struct {
    fr_model model;
    fr_layout layout;
    fr_planner *planner;
    fr_fragment *fragment;
    fr_cuts *cuts;
    fr_batch batches[8];
} forward;

static void open_forward(size_t cell, forward *f) {
    fr_error err = {0};
    fr_machine machine;
    fr_memory memory;
    bool fits;
    char reason[256];
    const fr_load load = {.tokens = 1024, .sequences = 8, .kv_tokens = 1024, .imbalance = 1};
    assert_int_equal(fr_model_load("mixtral-8x7b", &f->model, &err), FR_OK);
    assert_int_equal(fr_machine_load("h200x8", &machine, &err), FR_OK);
    f->layout = cells[cell].options;
    f->layout.run_layers = 4;
    assert_int_equal(fr_layout_from_strategy(cells[cell].strategy, cells[cell].gpus, &f->layout, &err), FR_OK);
    if (fr_layout_check(&f->layout, &f->model, &machine, &load, &memory, &fits, reason, &err) != FR_OK)
        fail_msg("%s: %s", cells[cell].name, err.text);
    const fr_planner_options o = {.model = &f->model, .layout = &f->layout, .machine = &machine, .load = load};
    assert_int_equal(fr_planner_open(&o, &f->planner, &err), FR_OK);
    for (int s = 0; s < fr_planner_slots(f->planner); s++) f->batches[s] = given[s % 3];
    assert_int_equal(fr_planner_forward(f->planner, 0, f->batches, &f->fragment, &err), FR_OK);
    f->cuts = fr_planner_cuts(f->planner);
}

static void close_forward(forward *f) {
    fr_cuts_free(f->cuts);
    fr_fragment_free(f->fragment);
    fr_planner_close(f->planner);
}

/* Every row of the rank's is the last token of a sequence that wants logits, and goes where the batch's order says.
 * Counts how often each float of the batch's logits is computed. */
static void check_rows(const forward *f, const fr_batch_rank *who, const fr_batch_tables *t, int *computed,
                       int64_t floats) {
    const fr_batch *b = &f->batches[who->place.slot];
    const int64_t vocab = f->model.vocab;
    int64_t all = 0, all_floats = 0, pick = 0, token = -1;
    int32_t row = 0, some = t->rows_all, picked = 0;
    for (int32_t i = 0; i < b->count; i++) all_floats += b->sequences[i].candidates < 0 ? vocab : 0;
    for (int32_t i = 0; i < b->count; i++) {
        const fr_sequence *s = &b->sequences[i];
        token += s->queries;
        if (s->candidates < 0) {
            if (row < t->rows_all && t->ids[t->first + t->rows[row]] == token) {
                assert_int_equal(t->all_at + row * vocab, all * vocab);
                for (int64_t k = 0; k < vocab; k++) computed[all * vocab + k]++;
                row++;
            }
            all++;
        }
        if (s->candidates > 0) {
            if (some < t->rows_all + t->rows_some && t->ids[t->first + t->rows[some]] == token) {
                for (int c = 0; c < s->candidates; c++, picked++) {
                    assert_int_equal(t->pick_row[picked], some);
                    assert_int_equal(t->pick_token[picked], pick + c);
                    assert_int_equal(t->picks_at + picked, all_floats + pick + c);
                    computed[all_floats + pick + c]++;
                }
                some++;
            }
            pick += s->candidates;
        }
    }
    assert_int_equal(row, t->rows_all);
    assert_int_equal(some, t->rows_all + t->rows_some);
    assert_int_equal(picked, t->picks);
    assert_int_equal(all_floats + pick, floats);
}

/* Words of the tables of all micro-batches, without what only fills them up: runs begin at multiples of four words and
 * sequences are a power of two. Candidates as the plan counts them: as many for each row as one wants at most. */
static int64_t plain_words(const forward *f, int rank, const fr_batch_tables *tables) {
    fr_place place;
    int64_t words = 0;
    fr_layout_place(&f->layout, rank, &place);
    for (int m = 0; m < f->cuts->micros; m++) {
        const fr_cut *cut = &f->cuts->cut[m * f->cuts->slots + place.slot];
        int64_t some = 0, most = 0;
        for (int32_t i = 0; i < cut->count; i++) {
            some += cut->sequences[i].candidates > 0;
            most = fr_max_i64(most, cut->sequences[i].candidates);
        }
        words += 2 * (cut->tokens + cut->count + some * most);
        assert_true(fr_batch_ints(&tables[m], false) >= 2 * cut->tokens + 2 * cut->count + 2 * tables[m].picks);
        assert_true(fr_batch_ints(&tables[m], false) <= 2 * cut->tokens + 3 * cut->count + 2 * tables[m].picks + 20);
    }
    return words;
}

/* The ops of a rank ask for what its tables hold: the launchers insist on it. */
static void check_plan(const forward *f, int rank, const fr_batch_tables *tables) {
    const fr_plan *p = fr_planner_plan(f->planner);
    int uploads = 0, counts = 0, logits = 0;
    for (uint32_t i = 0; i < f->fragment->ops_count; i++) {
        const fr_op *op = &f->fragment->ops[i];
        const fr_batch_tables *t = &tables[op->micro];
        const int64_t m = fr_op_shape(f->fragment, op)->m;
        if (p->lanes[op->lane].rank != rank) continue;
        switch (op->kind) {
        case FR_OP_EMBED:
        case FR_OP_TOPK:
        case FR_OP_GEMM_ROUTER:
        case FR_OP_SEND:
        case FR_OP_RECV:
            assert_int_equal(m, t->held);
            break;
        case FR_OP_ROPE:
        case FR_OP_ATTENTION:
        case FR_OP_GEMM_O:
            assert_int_equal(m, t->tokens);
            break;
        case FR_OP_NORM:
            assert_int_equal(m, op->sub == 2 ? t->rows_all + t->rows_some : t->held);
            break;
        case FR_OP_GEMM_HEAD:
            assert_int_equal(m, op->sub == 0 ? t->rows_all : t->rows_some);
            assert_true(op->sub == 0 || t->wanted_some);
            break;
        case FR_OP_UPLOAD: /* of all micro-batches, before all else */
            assert_int_equal(op->micro, 0);
            assert_int_equal(m, plain_words(f, rank, tables));
            uploads++;
            break;
        case FR_OP_DOWNLOAD:
            logits += op->sub == 0;
            counts += op->sub == 1;
            if (op->sub == 0) assert_true(m >= (int64_t)t->rows_all * f->model.vocab + t->picks);
            if (op->sub == 0) assert_true((m > 0) == (t->rows_all + t->rows_some > 0));
            break;
        default:
            break;
        }
    }
    fr_place place;
    fr_layout_place(&f->layout, rank, &place);
    assert_int_equal(uploads, 1);
    assert_int_equal(counts, 1);
    if (place.stage < f->layout.pp - 1) assert_int_equal(logits, 0);
}

/* A rank's tables, filled with token ids that are numbers of tokens and candidates that are numbers of candidates. */
static void check_rank(const forward *f, int rank, int *computed, int64_t *floats) {
    fr_batch_rank who = {.model = &f->model, .layout = &f->layout};
    fr_layout_place(&f->layout, rank, &who.place);
    who.head = who.place.stage == f->layout.pp - 1;
    const fr_batch *b = &f->batches[who.place.slot];
    int32_t ids[1024], candidates[16];
    for (int i = 0; i < 1024; i++) ids[i] = i;
    for (int i = 0; i < 16; i++) candidates[i] = i;
    const int micros = f->cuts->micros;
    fr_batch_tables *t = fr_alloc((size_t)micros * sizeof *t);
    for (int m = 0; m < micros; m++) fr_batch_count(&who, &f->cuts->cut[m * f->cuts->slots + who.place.slot], &t[m]);
    *floats = fr_batch_place_logits(&who, f->cuts, t);
    int64_t token = 0, pick = 0;
    int32_t sequence = 0, done = 0;
    for (int m = 0; m < micros; m++) {
        const int64_t ints = fr_batch_ints(&t[m], false);
        int32_t *run = malloc((size_t)(ints + 1) * sizeof *run); /* exact: a sanitizer sees what goes beyond */
        fr_batch_point(&t[m], run, false);
        fr_batch_fill(&who, &t[m], &f->cuts->cut[m * f->cuts->slots + who.place.slot], ids, candidates, &pick);
        for (int32_t i = 0; i < t[m].tokens; i++) {
            assert_int_equal(t[m].ids[i], token++);
            assert_int_equal(t[m].position[i], b->sequences[sequence].prefix + done);
            if (++done < b->sequences[sequence].queries) continue;
            sequence++;
            done = 0;
        }
        assert_int_equal(t[m].q_start[0], 0);
        assert_int_equal(t[m].q_start[t[m].padded], t[m].tokens);
        check_rows(f, &who, &t[m], computed, *floats);
        free(run);
    }
    assert_int_equal(sequence, b->count);
    check_plan(f, rank, t);
    free(t);
}

static void ranks_share_out_the_batch(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
        forward f;
        open_forward(i, &f);
        const int ranks = fr_layout_gpus(&f.layout), slots = fr_planner_slots(f.planner);
        const size_t most = 6 * (size_t)f.model.vocab;
        int *computed = fr_alloc((size_t)slots * most * sizeof *computed);
        int64_t floats[8] = {0};
        for (int r = 0; r < ranks; r++) {
            fr_place place;
            fr_layout_place(&f.layout, r, &place);
            if (place.unit == 0) check_rank(&f, r, computed + (size_t)place.slot * most, &floats[place.slot]);
        }
        for (int s = 0; s < slots; s++)
            for (int64_t k = 0; k < (int64_t)most; k++)
                if (computed[(size_t)s * most + (size_t)k] != (k < floats[s]))
                    fail_msg("%s: float %lld of slot %d is computed %d times", cells[i].name, (long long)k, s,
                             computed[(size_t)s * most + (size_t)k]);
        free(computed);
        close_forward(&f);
    }
}

/* Chunks of a sequence read all of it that came before, and nothing of later ones, from the rows that they wrote. */
static void chunks_read_what_came_before(void **state) {
    (void)state;
    fr_error err = {0};
    const fr_sequence parts[3] = {{7, 0, 0, 0, -1}, {7, 7, 0, 0, -1}, {3, 14, 1, 0, -1}};
    const fr_layout layout = {.tp = 1, .pp = 2, .ep = 1, .dp = 1, .replicas = 1};
    fr_model model;
    assert_int_equal(fr_model_load("mixtral-8x7b", &model, &err), FR_OK);
    const fr_batch_rank who = {.model = &model, .layout = &layout, .head = true, .kv = true};
    fr_kv_rows *rows = fr_kv_rows_new(64);
    int32_t ids[17], candidate = 9, before[17];
    int64_t pick = 0, seen = 0;
    for (int i = 0; i < 17; i++) ids[i] = i;
    assert_int_equal(fr_kv_rows_begin(rows, 0, -1, 0, &err), FR_OK);
    for (int m = 0; m < 3; m++) {
        const fr_cut cut = {.sequences = &parts[m], .count = 1, .first = seen, .tokens = parts[m].queries};
        fr_batch_tables t;
        fr_batch_count(&who, &cut, &t);
        int32_t *run = malloc((size_t)fr_batch_ints(&t, true) * sizeof *run);
        fr_batch_point(&t, run, true);
        assert_int_equal(fr_kv_rows_append(rows, 0, parts[m].queries, &err), FR_OK);
        fr_batch_fill(&who, &t, &cut, ids, &candidate, &pick);
        fr_batch_fill_kv(rows, &t, &cut);
        assert_int_equal(t.kv_len[0], seen + parts[m].queries);
        assert_int_equal(t.context, t.kv_len[0]);
        for (int i = 0; i < seen; i++) assert_int_equal(t.context_rows[i], before[i]);
        for (int i = 0; i < parts[m].queries; i++) {
            assert_int_equal(t.context_rows[seen + i], t.kv_row[i]);
            assert_int_equal(t.position[i], seen + i);
            before[seen + i] = t.kv_row[i];
        }
        assert_false(t.equal);
        assert_int_equal(t.picks, m == 2);
        seen += parts[m].queries;
        free(run);
    }
    fr_kv_rows_free(rows);
}

/* Short sequences of one length go without masks, unless there is a cache or the rank wants them packed. */
static void one_length_is_noticed(void **state) {
    (void)state;
    fr_error err;
    fr_layout layout = {.tp = 1, .pp = 1, .ep = 1, .dp = 1};
    fr_model model;
    assert_int_equal(fr_model_load("mixtral-8x7b", &model, &err), FR_OK);
    fr_sequence s[3] = {{.queries = 64}, {.queries = 64}, {.queries = 64}};
    const fr_cut cut = {.sequences = s, .count = 3, .tokens = 192};
    fr_batch_rank who = {.model = &model, .layout = &layout, .head = true};
    fr_batch_tables t;
    fr_batch_count(&who, &cut, &t);
    assert_true(t.equal);
    who.packed = true;
    fr_batch_count(&who, &cut, &t);
    assert_false(t.equal);
    who.packed = false, who.kv = true;
    fr_batch_count(&who, &cut, &t);
    assert_false(t.equal);
    who.kv = false, s[1].queries = 63;
    fr_batch_count(&who, &cut, &t);
    assert_false(t.equal);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_share_out_the_batch),
        cmocka_unit_test(chunks_read_what_came_before),
        cmocka_unit_test(one_length_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * batch_tables: what the micro-batches (chunks, halves) of a batch are to one rank: tokens, positions, sequences, which
 * logits it computes and where they go, rows of the KV cache. One run of ints for each, filled on the host and copied
 * to the device as it is.
 */
#ifndef FR_BATCH_TABLES_H
#define FR_BATCH_TABLES_H

#include "engine/kv_rows.h"
#include "engine/strategy/strategy.h"

/*
 * T tokens, S sequences; T = S = 0 where the rank has no work in the micro-batch.
 */
typedef struct {
    int32_t tokens, sequences, max_q, max_kv;
    int32_t padded; /* sequences with empty ones behind them, as attention sees them */
    bool equal;     /* all sequences have one length and nothing before them */
    /* The residual stream that this rank holds: tokens [first, first + held) of T; all of them unless sliced. */
    int32_t first, held;
    /* Logits that this rank computes: of rows that want the whole vocabulary and of candidates (pairs (row, token));
     * and where they go in the forward's. Stages before the last have none. */
    int32_t rows_all, rows_some, picks;
    int64_t all_at, picks_at; /* floats; valid where rows_all or picks > 0 */
    bool wanted_some;         /* some rank computes candidates: the head's second op is the last one */
    /* the run; on the host while it is filled, then on the device */
    int32_t *ids, *position;        /* [T] */
    int32_t *q_start;               /* [padded + 1] */
    int32_t *rows;                  /* rows, in what this rank holds, that it computes logits of: rows_all first */
    int32_t *pick_row, *pick_token; /* [picks]: index into `rows`, token */
    int32_t *meta;                  /* attention.h */
    /* with a KV cache: row of each new token [T], first and number of each sequence's keys in the gathered context
     * [padded], rows of that context [context] */
    int32_t *kv_row, *kv_start, *kv_len, *context_rows;
    int64_t context;
} fr_batch_tables;

/* The rank that asks. */
typedef struct {
    const fr_model *model;
    const fr_layout *layout;
    fr_place place;
    bool head;   /* its stage computes logits */
    bool kv;     /* there is a KV cache */
    bool packed; /* sequences of one length go as varied ones do */
} fr_batch_rank;

/* Everything about a micro-batch but its pointers and the places of its logits. */
void fr_batch_count(const fr_batch_rank *r, const fr_cut *cut, fr_batch_tables *t);
/*
 * Where the logits of each micro-batch go in the forward's: whole vocabularies of all sequences of the rank's batch
 * first, in its order, then candidates. Of either kind a rank computes consecutive ones: those whose token it holds
 * where each rank of a tp group holds a part of the tokens, else its share of their number. Returns the floats of all
 * ranks together.
 */
int64_t fr_batch_place_logits(const fr_batch_rank *r, const fr_cuts *cuts, fr_batch_tables *tables);
/* Ints of the run. */
int64_t fr_batch_ints(const fr_batch_tables *t, bool kv);
/* Points the tables into a run at `base`: the same places on the host and on the device. */
void fr_batch_point(fr_batch_tables *t, int32_t *base, bool kv);
/* `ids`, `candidates`: of the whole batch; *pick: how many of the candidates belong to sequences before this
 * micro-batch, moved on. */
void fr_batch_fill(const fr_batch_rank *r, fr_batch_tables *h, const fr_cut *cut, const int32_t *ids,
                   const int32_t *candidates, int64_t *pick);
/* After all rows of the micro-batch are planned: a later sequence may share rows that an earlier one computes. */
void fr_batch_fill_kv(const fr_kv_rows *rows_of, fr_batch_tables *h, const fr_cut *cut);

/* How attention takes a batch: the number of sequences that a kernel is compiled for, empty ones included; and whether
 * sequences of one length, with no cache, go without tables and masks. */
int32_t fr_padded_sequences(int64_t n);
bool fr_unmasked(int64_t sequences, int64_t length);

#endif

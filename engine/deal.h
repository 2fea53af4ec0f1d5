/*
 * deal: the batches of batch mode, the same for the simulator and the engine: equal sequences dealt whole over the
 * attention groups (--tokens, --seq), or a list of lengths (--seqs).
 *
 *     1,37,4Kx3          five sequences, dealt round robin over the attention groups
 *     1,37/512//64x8     of groups 0, 1, 2 (nothing) and 3
 *     512/1;1/512        forwards take turns: 0, 2, 4, ... the first, 1, 3, 5, ... the second
 */
#ifndef FR_DEAL_H
#define FR_DEAL_H

#include "engine/experiment.h"
#include "engine/strategy/strategy.h"

typedef struct {
    fr_sequence *sequences;
    fr_batch *batches; /* [variants][groups] */
    int variants;      /* forwards take turns */
    int64_t groups;
    int idle;       /* ranks without work in any forward */
    int stands_for; /* real attention groups behind one group of the plan (folding) */
} fr_deal;

/* `groups`: attention groups of the plan, `fold`: real ranks that one plan rank stands for. The setup that the
 * experiment belongs to is open: its list of lengths is known to be right. */
void fr_deal_open(const fr_experiment *e, int64_t groups, int fold, fr_deal *out);
void fr_deal_close(fr_deal *d);
/* The batches of a unit with `slots` attention groups for its forward number `forward`. */
const fr_batch *fr_deal_batches(const fr_deal *d, int unit, int slots, int64_t forward);

/* What a list of lengths asks for. */
typedef struct {
    int64_t most_tokens, most_sequences; /* of one group and forward */
    int64_t longest, tokens;             /* longest sequence; of all groups in a forward, the most */
    int64_t variants, given;             /* given: most groups named apart, 0 = dealt round robin */
} fr_seqs;
/* FR_BAD_INPUT names the part that is wrong; `groups`: attention groups. */
fr_status fr_seqs_check(const char *text, int64_t groups, fr_seqs *out, fr_error *err);

#endif

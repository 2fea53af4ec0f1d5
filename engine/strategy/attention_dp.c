/* Attention replicated: every rank runs its own batch whole. Dense layers of such a rank are whole too. */
#include "engine/strategy/planner.h"

void fr_attention_dp(fr_walk *w, fr_rank *r) {
    fr_emit_norm(w, r, 0);
    fr_emit_heads(w, r, 1, fr_scratch_of(w, r)->normed);
}

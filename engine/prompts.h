/*
 * prompts: requests as token ids, and their answers, one JSON object a line. In: {"id": text or number, "ids": [token,
 * ...], "candidates": [token, ...]}; without candidates the answer is over the whole vocabulary. Out: {"id", "logits":
 * [one per candidate], "argmax": token}; over the whole vocabulary the logits hold the arg-max's alone. Ties go to the
 * candidate named first.
 *
 * Blocks of FR_PROMPT_BLOCK tokens are named by a hash of all tokens up to their end, so that prompts which begin alike
 * share their KV where a prefix cache is kept (as vLLM's automatic prefix caching names its blocks).
 */
#ifndef FR_PROMPTS_H
#define FR_PROMPTS_H

#include "engine/base.h"

#define FR_PROMPT_BLOCK 64 /* tokens: between vLLM's default of 16 and the 512 of the Mooncake traces */

typedef struct {
    char *id; /* as JSON text */
    int32_t *ids, *candidates;
    int32_t tokens, candidates_count; /* -1 = the whole vocabulary */
    uint64_t *blocks;                 /* [tokens / FR_PROMPT_BLOCK] */
    float *logits;                    /* [candidates_count], or [1] */
    int32_t argmax;                   /* -1 = not answered */
} fr_prompt;

typedef struct {
    fr_prompt *prompts;
    uint32_t count, capacity;
    int64_t longest, tokens;
    int32_t most_candidates;
    bool vocabulary; /* some want all of it */
} fr_prompts;

/* FR_BAD_INPUT with file and line for anything that is not such a line, and for ids outside [0, vocab). */
fr_status fr_prompts_parse(const char *text, size_t length, const char *where, int32_t vocab, fr_prompts *out,
                           fr_error *err);
fr_status fr_prompts_open(const char *path, int32_t vocab, fr_prompts *out, fr_error *err);
void fr_prompts_free(fr_prompts *p);

/* Takes in a prompt's logits: [candidates_count], or the whole vocabulary. */
void fr_prompt_answer(fr_prompt *p, const float *logits, int32_t vocab);
void fr_prompts_write(const fr_prompts *p, fr_text *out);

#endif

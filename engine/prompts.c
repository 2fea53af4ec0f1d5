#include "engine/prompts.h"

#include "engine/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BYTES  ((size_t)4 << 30) /* of a file: some 600 M tokens */
#define MAX_TOKENS ((size_t)1 << 24) /* of a prompt, as --seq */

static fr_status read_tokens(const fr_json *line, const char *key, int32_t vocab, int32_t **out, int32_t *count,
                             fr_error *err) {
    fr_json array, item;
    FR_TRY(fr_json_array(line, key, FR_REQUIRED, &array, err));
    const size_t n = fr_json_count(&array);
    if (n == 0 || n > MAX_TOKENS)
        return fr_json_fail(line, key, err, "expected at least one token and at most %zu, got %zu", MAX_TOKENS, n);
    *out = fr_alloc(n * sizeof **out);
    *count = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        int64_t token = 0;
        fr_json_item(&array, i, &item);
        FR_TRY(fr_json_as_int(&item, 0, vocab - 1, &token, err));
        (*out)[i] = (int32_t)token;
    }
    return FR_OK;
}

static void name_blocks(fr_prompt *p) {
    const int32_t n = p->tokens / FR_PROMPT_BLOCK;
    uint64_t hash = FR_HASH_SEED;
    p->blocks = fr_alloc((size_t)(n + 1) * sizeof *p->blocks);
    for (int32_t i = 0; i < n; i++)
        p->blocks[i] = hash = fr_hash(p->ids + (size_t)i * FR_PROMPT_BLOCK, FR_PROMPT_BLOCK * sizeof *p->ids, hash);
}

static fr_status read_prompt(const fr_json *line, int32_t vocab, fr_prompt *p, fr_error *err) {
    static const char *const known[] = {"id", "ids", "candidates", NULL};
    FR_TRY(fr_json_only(line, known, err));
    json_t *id = json_object_get(line->value, "id");
    if (!json_is_string(id) && !json_is_integer(id))
        return fr_json_fail(line, "id", err, "expected a text or a whole number");
    p->id = json_dumps(id, JSON_ENCODE_ANY | JSON_COMPACT);
    FR_TRY(read_tokens(line, "ids", vocab, &p->ids, &p->tokens, err));
    name_blocks(p);
    p->candidates_count = -1;
    if (fr_json_has(line, "candidates"))
        FR_TRY(read_tokens(line, "candidates", vocab, &p->candidates, &p->candidates_count, err));
    p->logits = fr_alloc((size_t)(p->candidates_count < 0 ? 1 : p->candidates_count) * sizeof *p->logits);
    return FR_OK;
}

static fr_status add_line(const char *text, size_t length, const char *where, int32_t vocab, fr_prompts *out,
                          fr_error *err) {
    fr_json line;
    FR_TRY(fr_json_open(text, length, where, &line, err));
    FR_GROW(out->prompts, out->capacity, out->count + 1);
    fr_prompt *p = &out->prompts[out->count++];
    *p = (fr_prompt){.argmax = -1};
    fr_status s = read_prompt(&line, vocab, p, err);
    fr_json_close(&line);
    FR_TRY(s);
    out->tokens += p->tokens;
    out->longest = fr_max_i64(out->longest, p->tokens);
    if (p->candidates_count > out->most_candidates) out->most_candidates = p->candidates_count;
    out->vocabulary = out->vocabulary || p->candidates_count < 0;
    return FR_OK;
}

fr_status fr_prompts_parse(const char *text, size_t length, const char *where, int32_t vocab, fr_prompts *out,
                           fr_error *err) {
    *out = (fr_prompts){0};
    fr_status s = FR_OK;
    int64_t number = 1;
    for (const char *at = text, *end = text + length; at < end && s == FR_OK; number++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((stop ? stop : end) - at);
        char name[600];
        snprintf(name, sizeof name, "%.512s line %lld", where, (long long)number);
        if (n > 0 && at[n - 1] == '\r') n--;
        if (n > 0) s = add_line(at, n, name, vocab, out, err);
        at = stop ? stop + 1 : end;
    }
    if (s == FR_OK && out->count == 0) s = fr_fail(err, FR_BAD_INPUT, "%s: holds no request", where);
    if (s != FR_OK) fr_prompts_free(out);
    return s;
}

fr_status fr_prompts_open(const char *path, int32_t vocab, fr_prompts *out, fr_error *err) {
    char *text;
    size_t length;
    *out = (fr_prompts){0};
    FR_TRY(fr_read_file(path, MAX_BYTES, &text, &length, err));
    fr_status s = fr_prompts_parse(text, length, path, vocab, out, err);
    free(text);
    return s;
}

void fr_prompts_free(fr_prompts *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        free(p->prompts[i].id);
        free(p->prompts[i].ids);
        free(p->prompts[i].candidates);
        free(p->prompts[i].logits);
        free(p->prompts[i].blocks);
    }
    free(p->prompts);
    *p = (fr_prompts){0};
}

void fr_prompt_answer(fr_prompt *p, const float *logits, int32_t vocab) {
    const bool all = p->candidates_count < 0;
    const int32_t n = all ? vocab : p->candidates_count;
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    if (all)
        p->logits[0] = logits[best];
    else
        memcpy(p->logits, logits, (size_t)n * sizeof *logits);
    p->argmax = all ? best : p->candidates[best];
}

void fr_prompts_write(const fr_prompts *p, fr_text *out) {
    for (uint32_t i = 0; i < p->count; i++) {
        const fr_prompt *q = &p->prompts[i];
        if (q->argmax < 0) continue;
        fr_text_add(out, "{\"id\":%s,\"logits\":[", q->id);
        for (int32_t k = 0; k < (q->candidates_count < 0 ? 1 : q->candidates_count); k++) {
            const double logit = (double)q->logits[k];
            if (isfinite(logit))
                fr_text_add(out, "%s%.9g", k ? "," : "", logit); /* 9 digits give every float back */
            else
                fr_text_add(out, "%snull", k ? "," : "");
        }
        fr_text_add(out, "],\"argmax\":%d}\n", q->argmax);
    }
}

/* Fuzz target: small texts of the command line: lists of lengths, injected faults, op ids. */
#include "engine/conduct/inject.h"
#include "engine/deal.h"
#include "engine/plan/plan.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a list says of itself is what is dealt. */
static void seqs(const char *text) {
    fr_experiment e;
    fr_seqs s;
    fr_deal d;
    fr_error err;
    const int64_t groups = 3;
    if (strlen(text) >= sizeof e.seqs || fr_seqs_check(text, groups, &s, &err) != FR_OK) return;
    if (s.most_sequences < 1 || s.longest < 1 || s.tokens < s.longest) __builtin_trap();
    if (s.most_sequences > 1 << 12) return; /* a setup refuses the largest */
    fr_experiment_defaults(&e);
    memcpy(e.seqs, text, strlen(text) + 1);
    fr_deal_open(&e, groups, 1, &d);
    int64_t most = 0;
    for (int i = 0; i < d.variants * groups; i++) {
        int64_t tokens = 0;
        for (int32_t k = 0; k < d.batches[i].count; k++) tokens += d.batches[i].sequences[k].queries;
        if (tokens > most) most = tokens;
    }
    if (most != s.most_tokens) __builtin_trap();
    fr_deal_close(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = fr_alloc(size + 1), again[48];
    memcpy(text, data, size);
    fr_inject f;
    fr_error err;
    uint64_t id;
    seqs(text);
    if (fr_inject_parse(text, 4, &f, &err) == FR_OK && (f.rank < 0 || f.rank > 3)) __builtin_trap();
    if (fr_op_id_parse(text, &id)) {
        fr_op_id_text(id, again);
        if (strcmp(text, again) != 0) __builtin_trap();
    }
    free(text);
    return 0;
}

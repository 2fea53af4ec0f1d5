#include "engine/conduct/codec.h"

#include <stdlib.h>

static void batch_sizes(const fr_job_batch *b, size_t *tokens, size_t *picks) {
    *tokens = *picks = 0;
    for (int32_t i = 0; i < b->count; i++) {
        *tokens += (size_t)b->sequences[i].queries;
        *picks += b->sequences[i].candidates > 0 ? (size_t)b->sequences[i].candidates : 0;
    }
}

void fr_job_encode(const fr_job *job, fr_bytes *out) {
    fr_bytes_put(out, &job->number, sizeof job->number);
    fr_bytes_put(out, &job->fragment->forward, sizeof job->fragment->forward);
    fr_bytes_put(out, &job->unit, sizeof job->unit);
    fr_bytes_put(out, &job->slots, sizeof job->slots);
    for (int s = 0; s < job->slots; s++) {
        const fr_job_batch *b = &job->batches[s];
        size_t tokens, picks;
        batch_sizes(b, &tokens, &picks);
        fr_bytes_put_array(out, b->sequences, (size_t)b->count, sizeof *b->sequences);
        fr_bytes_put_array(out, b->ids, tokens, sizeof *b->ids);
        fr_bytes_put_array(out, b->candidates, picks, sizeof *b->candidates);
        fr_bytes_put_array(out, b->owners, (size_t)b->count, sizeof *b->owners);
        fr_bytes_put_array(out, b->trims, b->trims_count, sizeof *b->trims);
    }
}

/* Arrays are never NULL on the other side: an empty batch has them too. */
static void *array(fr_bytes *from, size_t size, size_t *count) {
    void *a = fr_bytes_take_array(from, size, count);
    return a ? a : fr_alloc(size);
}

static bool decode_batch(fr_bytes *from, fr_job_batch *b) {
    size_t sequences, ids, picks, owners, trims, tokens, wanted;
    b->sequences = array(from, sizeof *b->sequences, &sequences);
    b->ids = array(from, sizeof *b->ids, &ids);
    b->candidates = array(from, sizeof *b->candidates, &picks);
    b->owners = array(from, sizeof *b->owners, &owners);
    b->trims = array(from, sizeof *b->trims, &trims);
    b->count = (int32_t)sequences;
    b->trims_count = b->trims_cap = (uint32_t)trims;
    batch_sizes(b, &tokens, &wanted);
    return ids == tokens && picks == wanted && owners == sequences;
}

fr_job *fr_job_decode(fr_bytes *from, int64_t *forward) {
    fr_job *job = fr_alloc(sizeof *job);
    bool ok = fr_bytes_take(from, &job->number, sizeof job->number) && fr_bytes_take(from, forward, sizeof *forward) &&
              fr_bytes_take(from, &job->unit, sizeof job->unit) &&
              fr_bytes_take(from, &job->slots, sizeof job->slots) && job->slots > 0 && job->slots < 1 << 16;
    if (!ok) job->slots = 0;
    job->batches = fr_alloc(((size_t)job->slots + 1) * sizeof *job->batches);
    for (int s = 0; s < job->slots && ok; s++) ok = decode_batch(from, &job->batches[s]);
    if (ok) return job;
    fr_job_free(job);
    return NULL;
}

void fr_job_free(fr_job *job) {
    if (!job) return;
    for (int s = 0; s < job->slots; s++) {
        free(job->batches[s].sequences);
        free(job->batches[s].ids);
        free(job->batches[s].candidates);
        free(job->batches[s].owners);
        free(job->batches[s].trims);
    }
    free(job->batches);
    fr_cuts_free(job->cuts);
    if (job->fragment) fr_fragment_free(job->fragment);
    free(job);
}

void fr_note_encode(const fr_note *n, const fr_rank_facts *facts, int experts, fr_bytes *out) {
    const int64_t key = n->job ? fr_job_key(n->job) : -1;
    const fr_rank_done *d = &n->done;
    fr_bytes_put(out, n, sizeof *n);
    fr_bytes_put(out, facts, sizeof *facts);
    fr_bytes_put(out, &key, sizeof key);
    fr_bytes_put_array(out, d->logits, (size_t)d->logits_count, sizeof *d->logits);
    fr_bytes_put_array(out, d->runs, d->runs_count, sizeof *d->runs);
    fr_bytes_put_array(out, d->counts, (size_t)d->layers * (size_t)experts, sizeof *d->counts);
    fr_bytes_put_array(out, n->spans.spans, n->spans.count, sizeof *n->spans.spans);
}

bool fr_note_decode(fr_bytes *from, fr_note *n, fr_rank_facts *facts, int64_t *key) {
    size_t logits, runs, counts, spans;
    if (!fr_bytes_take(from, n, sizeof *n) || !fr_bytes_take(from, facts, sizeof *facts) ||
        !fr_bytes_take(from, key, sizeof *key))
        return false;
    fr_rank_done *d = &n->done;
    n->job = NULL;
    d->logits = fr_bytes_take_array(from, sizeof *d->logits, &logits);
    d->runs = fr_bytes_take_array(from, sizeof *d->runs, &runs);
    d->counts = fr_bytes_take_array(from, sizeof *d->counts, &counts);
    n->spans = (fr_timeline){0};
    n->spans.spans = fr_bytes_take_array(from, sizeof *n->spans.spans, &spans);
    n->spans.count = n->spans.capacity = (uint32_t)spans;
    d->logits_count = (int64_t)logits;
    d->runs_count = (uint32_t)runs;
    return true;
}

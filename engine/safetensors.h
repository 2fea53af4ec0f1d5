/*
 * safetensors: the headers of a checkpoint in Hugging Face's safetensors format, one file or sharded with an index.
 * Only names, types, shapes and places are read here; the bytes are the caller's to fetch.
 *
 * A file is a little-endian u64 header length, that many bytes of JSON (name -> {dtype, shape, data_offsets}, and an
 * optional __metadata__ of texts), then the data, packed (format: github.com/huggingface/safetensors). Strict: offsets
 * must cover the data exactly, without overlap or hole, each tensor's bytes must be its shape times its type, names are
 * unique over all shards, and an index must name exactly what the shards hold.
 */
#ifndef FR_SAFETENSORS_H
#define FR_SAFETENSORS_H

#include "engine/base.h"

#define FR_TENSOR_MAX_RANK 8
/* The reference reader allows 100 MB; this is what the JSON reader of forerun takes, 4 times the largest header seen
 * (DeepSeek-V3's, in all shards together). */
#define FR_SAFETENSORS_MAX_HEADER (64u << 20)

typedef struct {
    char *name;
    char dtype[8]; /* "BF16" */
    int rank;
    int64_t shape[FR_TENSOR_MAX_RANK];
    int64_t begin, bytes; /* in its file */
    int32_t file;         /* into fr_checkpoint.files */
} fr_tensor;

typedef struct {
    fr_tensor *tensors; /* by name, in byte order */
    uint32_t count, capacity;
    char **files; /* paths */
    uint32_t files_count, files_cap;
} fr_checkpoint;

/*
 * Adds one file's tensors. `bytes` holds at least the length and the header, `file_size` is the whole file's; `path`
 * names it in messages. Call fr_checkpoint_close also after a failure.
 */
fr_status fr_checkpoint_parse(fr_checkpoint *c, const char *bytes, size_t count, int64_t file_size, const char *path,
                              fr_error *err);
/* Opens DIR/model.safetensors, or the shards that DIR/model.safetensors.index.json names. */
fr_status fr_checkpoint_open(const char *dir, fr_checkpoint *out, fr_error *err);
void fr_checkpoint_close(fr_checkpoint *c);

/* NULL when there is none. */
const fr_tensor *fr_checkpoint_find(const fr_checkpoint *c, const char *name);

#endif

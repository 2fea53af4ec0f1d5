#include "engine/safetensors.h"

#include "engine/json.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int dtype_bytes(const char *dtype) {
    static const struct {
        const char *name;
        int bytes;
    } types[] = {{"BF16", 2}, {"F16", 2}, {"F32", 4}, {"F64", 8}, {"I8", 1},  {"U8", 1},      {"BOOL", 1},   {"I16", 2},
                 {"U16", 2},  {"I32", 4}, {"U32", 4}, {"I64", 8}, {"U64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, dtype) == 0) return types[i].bytes;
    return 0;
}

/* ---- one entry ----------------------------------------------------------------------------------------------------*/

static fr_status read_shape(const fr_json *at, fr_tensor *t, int64_t *elements, fr_error *err) {
    fr_json shape, item;
    FR_TRY(fr_json_array(at, "shape", FR_REQUIRED, &shape, err));
    size_t rank = fr_json_count(&shape);
    if (rank > FR_TENSOR_MAX_RANK)
        return fr_json_fail(at, "shape", err, "%zu dimensions, at most %d are read", rank, FR_TENSOR_MAX_RANK);
    t->rank = (int)rank;
    *elements = 1;
    for (size_t i = 0; i < rank; i++) {
        fr_json_item(&shape, i, &item);
        FR_TRY(fr_json_as_int(&item, 0, INT64_MAX, &t->shape[i], err));
        if (__builtin_mul_overflow(*elements, t->shape[i], elements))
            return fr_json_fail(at, "shape", err, "more elements than 2^63");
    }
    return FR_OK;
}

static fr_status read_entry(const fr_json *at, int64_t data, int64_t data_bytes, fr_tensor *t, fr_error *err) {
    static const char *const known[] = {"dtype", "shape", "data_offsets", NULL};
    fr_json offsets, item;
    int64_t elements = 0, ends[2] = {0, 0}, bytes;
    FR_TRY(fr_json_as_object(at, err));
    FR_TRY(fr_json_only(at, known, err));
    FR_TRY(fr_json_text(at, "dtype", FR_REQUIRED, t->dtype, sizeof t->dtype, err));
    int size = dtype_bytes(t->dtype);
    if (!size) return fr_json_fail(at, "dtype", err, "unknown type '%s'", t->dtype);
    FR_TRY(read_shape(at, t, &elements, err));
    if (__builtin_mul_overflow(elements, size, &bytes)) return fr_json_fail(at, "shape", err, "more bytes than 2^63");
    FR_TRY(fr_json_array(at, "data_offsets", FR_REQUIRED, &offsets, err));
    if (fr_json_count(&offsets) != 2) return fr_json_fail(at, "data_offsets", err, "expected [begin, end]");
    for (size_t i = 0; i < 2; i++) {
        fr_json_item(&offsets, i, &item);
        FR_TRY(fr_json_as_int(&item, 0, data_bytes, &ends[i], err));
    }
    if (ends[1] < ends[0] || ends[1] - ends[0] != bytes)
        return fr_json_fail(at, "data_offsets", err, "%lld bytes, but the shape and type need %lld",
                            (long long)(ends[1] - ends[0]), (long long)bytes);
    t->begin = data + ends[0];
    t->bytes = bytes;
    return FR_OK;
}

/* ---- one file -----------------------------------------------------------------------------------------------------*/

static int by_place(const void *a, const void *b) {
    const fr_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const fr_tensor *)a)->name, ((const fr_tensor *)b)->name);
}

static fr_status check_packed(fr_tensor *t, uint32_t count, int64_t data, int64_t end, const char *path,
                              fr_error *err) {
    if (count > 0) qsort(t, count, sizeof *t, by_place);
    int64_t at = data;
    for (uint32_t i = 0; i < count; i++) {
        if (t[i].begin != at)
            return fr_fail(err, FR_BAD_INPUT, "%s: %.128s: %s in the data before it (%lld bytes)", path, t[i].name,
                           t[i].begin > at ? "a hole" : "an overlap", (long long)llabs(t[i].begin - at));
        at += t[i].bytes;
    }
    if (at != end)
        return fr_fail(err, FR_BAD_INPUT, "%s: the tensors end %lld bytes before the file does: it is cut or padded",
                       path, (long long)(end - at));
    return FR_OK;
}

static fr_status add_entries(fr_checkpoint *c, const fr_json *root, int64_t data, int64_t data_bytes, fr_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(root->value, key, value) {
        if (strcmp(key, "__metadata__") == 0) continue;
        fr_json at = {.value = value, .file = root->file};
        snprintf(at.path, sizeof at.path, "%.150s", key);
        FR_GROW(c->tensors, c->capacity, c->count + 1);
        fr_tensor *t = &c->tensors[c->count++];
        *t = (fr_tensor){.name = fr_strdup(key), .file = (int32_t)c->files_count - 1};
        FR_TRY(read_entry(&at, data, data_bytes, t, err));
    }
    return FR_OK;
}

/* Sorts by name, and no name twice. */
static fr_status by_names(fr_checkpoint *c, fr_error *err) {
    if (c->count > 0) qsort(c->tensors, c->count, sizeof *c->tensors, by_name);
    for (uint32_t i = 1; i < c->count; i++)
        if (strcmp(c->tensors[i - 1].name, c->tensors[i].name) == 0)
            return fr_fail(err, FR_BAD_INPUT, "%s and %s both hold %.128s", c->files[c->tensors[i - 1].file],
                           c->files[c->tensors[i].file], c->tensors[i].name);
    return FR_OK;
}

/* fr_checkpoint_parse but for the order of the names. */
static fr_status parse(fr_checkpoint *c, const char *bytes, size_t count, int64_t file_size, const char *path,
                       fr_error *err) {
    if (count < 8 || file_size < 8) return fr_fail(err, FR_BAD_INPUT, "%s: shorter than a safetensors header", path);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)bytes[i];
    if (length > FR_SAFETENSORS_MAX_HEADER)
        return fr_fail(err, FR_BAD_INPUT, "%s: a header of %llu bytes, at most %u are read", path,
                       (unsigned long long)length, FR_SAFETENSORS_MAX_HEADER);
    if (length > count - 8 || (int64_t)length > file_size - 8)
        return fr_fail(err, FR_BAD_INPUT, "%s: the header of %llu bytes goes beyond the end of the file", path,
                       (unsigned long long)length);
    FR_GROW(c->files, c->files_cap, c->files_count + 1);
    c->files[c->files_count++] = fr_strdup(path);
    const uint32_t before = c->count;
    const int64_t data = 8 + (int64_t)length;
    fr_json root;
    FR_TRY(fr_json_open(bytes + 8, (size_t)length, path, &root, err));
    fr_status s = add_entries(c, &root, data, file_size - data, err);
    fr_json_close(&root);
    FR_TRY(s);
    return check_packed(c->count ? c->tensors + before : NULL, c->count - before, data, file_size, path, err);
}

fr_status fr_checkpoint_parse(fr_checkpoint *c, const char *bytes, size_t count, int64_t file_size, const char *path,
                              fr_error *err) {
    FR_TRY(parse(c, bytes, count, file_size, path, err));
    return by_names(c, err);
}

static fr_status open_file(fr_checkpoint *c, const char *path, fr_error *err) {
    FILE *f = fopen(path, "rb");
    if (!f) return fr_fail(err, FR_BAD_INPUT, "%s: %s", path, strerror(errno));
    struct stat st;
    unsigned char head[8] = {0};
    fr_status s = FR_OK;
    char *bytes = NULL;
    size_t have = fread(head, 1, sizeof head, f);
    if (fstat(fileno(f), &st) != 0 || !S_ISREG(st.st_mode) || have != sizeof head)
        s = fr_fail(err, FR_BAD_INPUT, "%s: not a safetensors file: too short or no plain file", path);
    if (s == FR_OK) {
        uint64_t length = 0;
        for (int i = 7; i >= 0; i--) length = length << 8 | head[i];
        /* One too long is refused by the parser with its reason; nothing that large is read here. */
        size_t take = length > FR_SAFETENSORS_MAX_HEADER ? 0 : (size_t)length;
        if ((int64_t)take > st.st_size) take = (size_t)st.st_size;
        bytes = fr_alloc(take + 9);
        memcpy(bytes, head, 8);
        have = 8 + fread(bytes + 8, 1, take, f);
        s = parse(c, bytes, have, (int64_t)st.st_size, path, err);
    }
    free(bytes);
    fclose(f);
    return s;
}

/* ---- a folder -----------------------------------------------------------------------------------------------------*/

static bool plain_name(const char *name) {
    return name[0] && name[0] != '.' && !strchr(name, '/');
}

/* Headers are read side by side: a large model's are 5 MB of JSON, some 10 us a tensor. */
typedef struct {
    char **paths;
    fr_checkpoint *parts; /* [count], a file each */
    fr_status *status;
    fr_error *errors;
    uint32_t count, capacity;
    _Atomic uint32_t next;
} shards;

enum { SHARD_READERS = 16 };

static void *read_shards(void *context) {
    shards *s = context;
    for (uint32_t i; (i = atomic_fetch_add(&s->next, 1)) < s->count;)
        s->status[i] = open_file(&s->parts[i], s->paths[i], &s->errors[i]);
    return NULL;
}

static void add_shard(shards *s, const char *dir, const char *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    for (uint32_t i = s->count; i-- > 0;)
        if (strcmp(s->paths[i], path) == 0) return;
    FR_GROW(s->paths, s->capacity, s->count + 1);
    s->paths[s->count++] = fr_strdup(path);
}

/* A shard's tensors and its path become c's. */
static void take_shard(fr_checkpoint *c, fr_checkpoint *part) {
    FR_GROW(c->files, c->files_cap, c->files_count + part->files_count);
    FR_GROW(c->tensors, c->capacity, c->count + part->count);
    for (uint32_t i = 0; i < part->count; i++) {
        part->tensors[i].file += (int32_t)c->files_count;
        c->tensors[c->count++] = part->tensors[i];
    }
    for (uint32_t i = 0; i < part->files_count; i++) c->files[c->files_count++] = part->files[i];
    part->count = part->files_count = 0;
}

static fr_status open_all(fr_checkpoint *c, shards *s, fr_error *err) {
    pthread_t threads[SHARD_READERS];
    uint32_t started = 0;
    fr_status status = FR_OK;
    s->parts = fr_alloc((size_t)s->count * sizeof *s->parts);
    s->status = fr_alloc((size_t)s->count * sizeof *s->status);
    s->errors = fr_alloc((size_t)s->count * sizeof *s->errors);
    while (started < SHARD_READERS && started + 1 < s->count &&
           pthread_create(&threads[started], NULL, read_shards, s) == 0)
        started++;
    read_shards(s);
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < s->count; i++) {
        if (status == FR_OK && s->status[i] != FR_OK) {
            status = s->status[i];
            if (err) *err = s->errors[i];
        }
        take_shard(c, &s->parts[i]);
        fr_checkpoint_close(&s->parts[i]);
        free(s->paths[i]);
    }
    free(s->paths);
    free(s->parts);
    free(s->status);
    free(s->errors);
    return status == FR_OK ? by_names(c, err) : status;
}

static fr_status open_shards(fr_checkpoint *c, const char *dir, const fr_json *map, fr_error *err) {
    const char *key;
    json_t *value;
    shards s = {0};
    json_object_foreach(map->value, key, value) {
        const char *file = json_string_value(value);
        if (!file || !plain_name(file)) {
            for (uint32_t i = 0; i < s.count; i++) free(s.paths[i]);
            free(s.paths);
            return fr_json_fail(map, key, err, "expected a file name in the same folder");
        }
        add_shard(&s, dir, file);
    }
    FR_TRY(open_all(c, &s, err));
    json_object_foreach(map->value, key, value) {
        const fr_tensor *t = fr_checkpoint_find(c, key);
        const char *file = json_string_value(value);
        if (!t || strcmp(c->files[t->file] + strlen(dir) + 1, file) != 0)
            return fr_json_fail(map, key, err, "%s/%s does not hold this tensor", dir, file);
    }
    if (c->count != json_object_size(map->value))
        return fr_json_fail(map, NULL, err, "the index names %zu tensors, the shards hold %u",
                            json_object_size(map->value), c->count);
    return FR_OK;
}

fr_status fr_checkpoint_open(const char *dir, fr_checkpoint *out, fr_error *err) {
    *out = (fr_checkpoint){0};
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    fr_status s;
    if (stat(path, &st) == 0) {
        fr_json root, map;
        s = fr_json_open_file(path, &root, err);
        if (s != FR_OK) return s;
        s = fr_json_object(&root, "weight_map", FR_REQUIRED, &map, err);
        if (s == FR_OK) s = open_shards(out, dir, &map, err);
        fr_json_close(&root);
    } else {
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
        s = open_file(out, path, err);
        if (s == FR_OK) s = by_names(out, err);
    }
    if (s != FR_OK) fr_checkpoint_close(out);
    return s;
}

void fr_checkpoint_close(fr_checkpoint *c) {
    for (uint32_t i = 0; i < c->count; i++) free(c->tensors[i].name);
    for (uint32_t i = 0; i < c->files_count; i++) free(c->files[i]);
    free(c->tensors);
    free(c->files);
    *c = (fr_checkpoint){0};
}

const fr_tensor *fr_checkpoint_find(const fr_checkpoint *c, const char *name) {
    const fr_tensor key = {.name = (char *)(uintptr_t)name};
    return c->count ? bsearch(&key, c->tensors, c->count, sizeof *c->tensors, by_name) : NULL;
}

#include "engine/kv_rows.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t *rows;
    uint32_t count, capacity;
} context;

struct fr_kv_rows {
    int32_t capacity, free_count;
    int32_t *free_rows; /* a stack */
    int32_t *uses;      /* per row */
    context *handles;
    uint32_t handles_count, handles_cap;
};

fr_kv_rows *fr_kv_rows_new(int32_t capacity) {
    fr_kv_rows *k = fr_alloc(sizeof *k);
    const size_t n = capacity > 0 ? (size_t)capacity : 1;
    k->capacity = k->free_count = capacity > 0 ? capacity : 0;
    k->free_rows = fr_alloc(n * sizeof *k->free_rows);
    k->uses = fr_alloc(n * sizeof *k->uses);
    for (int32_t i = 0; i < k->capacity; i++) k->free_rows[i] = k->capacity - 1 - i; /* row 0 is taken first */
    return k;
}

void fr_kv_rows_free(fr_kv_rows *k) {
    if (!k) return;
    for (uint32_t i = 0; i < k->handles_count; i++) free(k->handles[i].rows);
    free(k->handles);
    free(k->free_rows);
    free(k->uses);
    free(k);
}

static context *context_of(fr_kv_rows *k, int32_t handle) {
    const uint32_t had = k->handles_cap;
    FR_GROW(k->handles, k->handles_cap, (uint32_t)handle + 1);
    if (k->handles_cap > had) memset(k->handles + had, 0, (k->handles_cap - had) * sizeof *k->handles);
    if ((uint32_t)handle >= k->handles_count) k->handles_count = (uint32_t)handle + 1;
    return &k->handles[handle];
}

void fr_kv_rows_trim(fr_kv_rows *k, int32_t handle, int32_t tokens) {
    if (handle < 0 || (uint32_t)handle >= k->handles_count) return;
    context *c = &k->handles[handle];
    while (c->count > (uint32_t)tokens) {
        const int32_t row = c->rows[--c->count];
        if (--k->uses[row] == 0) k->free_rows[k->free_count++] = row;
    }
}

fr_status fr_kv_rows_begin(fr_kv_rows *k, int32_t handle, int32_t parent, int32_t prefix, fr_error *err) {
    const uint32_t held = parent >= 0 && (uint32_t)parent < k->handles_count ? k->handles[parent].count : 0;
    if (handle < 0 || prefix < 0 || (prefix > 0 && (uint32_t)prefix > held))
        return fr_fail(err, FR_FAILED, "KV handle %d continues %d tokens of handle %d, which holds %u", handle, prefix,
                       parent, held);
    if (handle == parent) { /* its own beginning */
        fr_kv_rows_trim(k, handle, prefix);
        return FR_OK;
    }
    context *c = context_of(k, handle);
    fr_kv_rows_trim(k, handle, 0);
    FR_GROW(c->rows, c->capacity, (uint32_t)prefix);
    for (int32_t i = 0; i < prefix; i++) {
        c->rows[i] = k->handles[parent].rows[i];
        k->uses[c->rows[i]]++;
    }
    c->count = (uint32_t)prefix;
    return FR_OK;
}

fr_status fr_kv_rows_append(fr_kv_rows *k, int32_t handle, int32_t tokens, fr_error *err) {
    if (tokens > k->free_count)
        return fr_fail(err, FR_FAILED, "the KV cache of %d tokens is full: %d are free, %d are needed", k->capacity,
                       k->free_count, tokens);
    context *c = context_of(k, handle);
    FR_GROW(c->rows, c->capacity, c->count + (uint32_t)tokens);
    for (int32_t i = 0; i < tokens; i++) {
        const int32_t row = k->free_rows[--k->free_count];
        k->uses[row] = 1;
        c->rows[c->count++] = row;
    }
    return FR_OK;
}

const int32_t *fr_kv_rows_context(const fr_kv_rows *k, int32_t handle, int32_t *tokens) {
    const bool known = handle >= 0 && (uint32_t)handle < k->handles_count;
    *tokens = known ? (int32_t)k->handles[handle].count : 0;
    return known ? k->handles[handle].rows : NULL;
}

int32_t fr_kv_rows_available(const fr_kv_rows *k) {
    return k->free_count;
}

/*
 * kv_rows: which rows of a KV cache hold the tokens of which handle. A row is one token's K and V in every layer. A
 * handle's context is a list of rows in token order: those that it shares with the handle before it, then its own. Rows
 * are counted and go back when no context names them. Host bookkeeping only: no device, no clock.
 */
#ifndef FR_KV_ROWS_H
#define FR_KV_ROWS_H

#include "engine/base.h"

typedef struct fr_kv_rows fr_kv_rows;

fr_kv_rows *fr_kv_rows_new(int32_t capacity);
void fr_kv_rows_free(fr_kv_rows *k);

/* The context of `handle` becomes the first `prefix` tokens of `parent`'s (prefix 0: empty); what it held goes back.
 * FR_FAILED when the parent holds fewer. */
fr_status fr_kv_rows_begin(fr_kv_rows *k, int32_t handle, int32_t parent, int32_t prefix, fr_error *err);
/* Adds `tokens` new rows at the end; FR_FAILED when fewer are free: then nothing has changed. */
fr_status fr_kv_rows_append(fr_kv_rows *k, int32_t handle, int32_t tokens, fr_error *err);
/* Keeps the first `tokens` of the context; 0 = lets go of all. */
void fr_kv_rows_trim(fr_kv_rows *k, int32_t handle, int32_t tokens);

/* The context: *tokens rows in token order; valid until the next change. */
const int32_t *fr_kv_rows_context(const fr_kv_rows *k, int32_t handle, int32_t *tokens);
int32_t fr_kv_rows_available(const fr_kv_rows *k);

#endif

/*
 * json: the one strict JSON reader of forerun, on jansson: duplicate keys, deep nesting, trailing text and oversized
 * files are errors, and every fetch checks type and range. A cursor carries the file's name and the path from the root,
 * so that messages read "FILE: hosts[1].gpus: expected a whole number from 1 to 16, got ...".
 *
 *     fr_json root;
 *     FR_TRY(fr_json_open(text, length, "my.json", &root, err));
 *     status = fr_json_int(&root, "gpus", FR_REQUIRED, 1, 4096, &gpus, err);   ... optional ones leave *out as it was
 *     fr_json_close(&root);
 */
#ifndef FR_JSON_H
#define FR_JSON_H

#include "engine/base.h"

#include <jansson.h>

#define FR_JSON_MAX_DEPTH 64 /* deeper than any format of ours or any config.json */
#define FR_JSON_MAX_BYTES                                                                                              \
    (64u << 20) /* larger than any experiment or config; traces have line readers of their own                         \
                 */

enum { FR_OPTIONAL = 0, FR_REQUIRED = 1 }; /* optional: absent or null leaves *out unchanged */

typedef struct fr_json {
    json_t *value;    /* borrowed, but owned by the cursor of fr_json_open */
    const char *file; /* names the source in messages; must outlive the cursor */
    char path[160];   /* "" at the root */
} fr_json;

/* Parses a whole text whose root must be an object. Close the root cursor with fr_json_close, also after other
 * failures. */
fr_status fr_json_open(const char *text, size_t length, const char *file, fr_json *root, fr_error *err);
/* The same from a file of at most FR_JSON_MAX_BYTES. `path` must outlive the cursor. */
fr_status fr_json_open_file(const char *path, fr_json *root, fr_error *err);
void fr_json_close(fr_json *root);

bool fr_json_has(const fr_json *object, const char *key); /* present and not null */

fr_status fr_json_int(const fr_json *object, const char *key, int required, int64_t low, int64_t high, int64_t *out,
                      fr_error *err);
/* As fr_json_int for an int field. */
fr_status fr_json_int32(const fr_json *object, const char *key, int required, int low, int high, int *out,
                        fr_error *err);
/* Whole numbers are numbers too: 3 and 3.0 both pass fr_json_double. */
fr_status fr_json_double(const fr_json *object, const char *key, int required, double low, double high, double *out,
                         fr_error *err);
fr_status fr_json_bool(const fr_json *object, const char *key, int required, bool *out, fr_error *err);
/* Copies a string of less than `size` bytes. */
fr_status fr_json_text(const fr_json *object, const char *key, int required, char *out, size_t size, fr_error *err);
/* out->value is NULL when an optional one is absent. */
fr_status fr_json_object(const fr_json *object, const char *key, int required, fr_json *out, fr_error *err);
fr_status fr_json_array(const fr_json *object, const char *key, int required, fr_json *out, fr_error *err);
size_t fr_json_count(const fr_json *array);
/* Cursor on array[index]; fr_json_as_* below and, for objects, the fetches above read it. */
void fr_json_item(const fr_json *array, size_t index, fr_json *out);
fr_status fr_json_as_object(const fr_json *at, fr_error *err);
fr_status fr_json_as_int(const fr_json *at, int64_t low, int64_t high, int64_t *out, fr_error *err);
fr_status fr_json_as_double(const fr_json *at, double low, double high, double *out, fr_error *err);
fr_status fr_json_as_text(const fr_json *at, char *out, size_t size, fr_error *err);

/* Refuses any key of the object that is not in the NULL-terminated list: a misspelt key must not be ignored. */
fr_status fr_json_only(const fr_json *object, const char *const *known, fr_error *err);

/* Fails with "FILE: path.key: MESSAGE" (key may be NULL: the cursor's own path). */
fr_status fr_json_fail(const fr_json *at, const char *key, fr_error *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The text that the command line would carry for a JSON value, the value's own or in `buffer`; NULL when it is no text,
 * number or boolean. */
const char *fr_json_text_of(const json_t *value, char *buffer, size_t size);

#endif

#include "engine/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* jansson recurses once per level and stops at its compiled-in 2,048; this bound is ours and checked before parsing. */
static bool too_deep(const char *text, size_t length) {
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            if (++depth > FR_JSON_MAX_DEPTH) return true;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return false;
}

fr_status fr_json_open(const char *text, size_t length, const char *file, fr_json *root, fr_error *err) {
    *root = (fr_json){.file = file};
    if (length == 0) return fr_fail(err, FR_BAD_INPUT, "%s: expected a JSON object, got an empty file", file);
    if (length > FR_JSON_MAX_BYTES)
        return fr_fail(err, FR_BAD_INPUT, "%s: larger than the limit of %u bytes", file, FR_JSON_MAX_BYTES);
    if (too_deep(text, length))
        return fr_fail(err, FR_BAD_INPUT, "%s: nested deeper than %d levels", file, FR_JSON_MAX_DEPTH);
    json_error_t why;
    root->value = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
    if (!root->value)
        return fr_fail(err, FR_BAD_INPUT, "%s: line %d, column %d: not valid JSON: %.150s", file, why.line, why.column,
                       why.text);
    if (!json_is_object(root->value)) {
        fr_status status = fr_json_fail(root, NULL, err, "expected a JSON object at the top");
        fr_json_close(root);
        return status;
    }
    return FR_OK;
}

fr_status fr_json_open_file(const char *path, fr_json *root, fr_error *err) {
    char *text;
    size_t length;
    *root = (fr_json){.file = path};
    FR_TRY(fr_read_file(path, FR_JSON_MAX_BYTES, &text, &length, err));
    fr_status status = fr_json_open(text, length, path, root, err);
    free(text);
    return status;
}

void fr_json_close(fr_json *root) {
    json_decref(root->value);
    root->value = NULL;
}

static void join(const fr_json *at, const char *key, char *out, size_t size) {
    int n = snprintf(out, size, "%s%s%s", at->path, at->path[0] && key ? "." : "", key ? key : "");
    if (n < 0 || (size_t)n >= size) memcpy(out + size - 4, "...", 4); /* a hostile key: the path only names it */
}

fr_status fr_json_fail(const fr_json *at, const char *key, fr_error *err, const char *format, ...) {
    char path[320], message[512];
    join(at, key, path, sizeof path);
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return fr_fail(err, FR_BAD_INPUT, "%.300s: %s%s%s", at->file, path, path[0] ? ": " : "", message);
}

static const char *describe(const json_t *v, char *out, size_t size) {
    if (!v) return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        snprintf(out, size, "\"%.60s\"", json_string_value(v));
        return out;
    case JSON_INTEGER:
        snprintf(out, size, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return out;
    case JSON_REAL:
        snprintf(out, size, "%g", json_real_value(v));
        return out;
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    default:
        return "null";
    }
}

static fr_status mismatch(const fr_json *at, fr_error *err, const char *expected) {
    char got[80];
    return fr_json_fail(at, NULL, err, "expected %s, got %s", expected, describe(at->value, got, sizeof got));
}

/* Cursor on object[key]; *absent says that there is none (or null) and that this is allowed. */
static fr_status find(const fr_json *object, const char *key, int required, const char *expected, fr_json *out,
                      bool *absent, fr_error *err) {
    *out = (fr_json){.value = json_object_get(object->value, key), .file = object->file};
    join(object, key, out->path, sizeof out->path);
    *absent = !out->value || json_is_null(out->value);
    if (*absent && required == FR_REQUIRED) return mismatch(out, err, expected);
    if (*absent) out->value = NULL;
    return FR_OK;
}

bool fr_json_has(const fr_json *object, const char *key) {
    const json_t *v = json_object_get(object->value, key);
    return v && !json_is_null(v);
}

fr_status fr_json_as_int(const fr_json *at, int64_t low, int64_t high, int64_t *out, fr_error *err) {
    char expected[96];
    snprintf(expected, sizeof expected, "a whole number from %" PRId64 " to %" PRId64, low, high);
    int64_t value;
    if (json_is_integer(at->value)) {
        value = json_integer_value(at->value);
    } else if (json_is_real(at->value)) { /* 141e9: whole, and exact below 2^53 */
        double d = json_real_value(at->value);
        if (!(fabs(d) <= 9007199254740992.0) || d != floor(d)) return mismatch(at, err, expected);
        value = (int64_t)d;
    } else {
        return mismatch(at, err, expected);
    }
    if (value < low || value > high) return mismatch(at, err, expected);
    *out = value;
    return FR_OK;
}

fr_status fr_json_as_double(const fr_json *at, double low, double high, double *out, fr_error *err) {
    char expected[96];
    snprintf(expected, sizeof expected, "a number from %g to %g", low, high);
    if (!json_is_number(at->value)) return mismatch(at, err, expected);
    double value = json_number_value(at->value);
    if (!isfinite(value) || value < low || value > high) return mismatch(at, err, expected);
    *out = value;
    return FR_OK;
}

fr_status fr_json_as_text(const fr_json *at, char *out, size_t size, fr_error *err) {
    char expected[64];
    snprintf(expected, sizeof expected, "a string of at most %zu bytes", size - 1);
    if (!json_is_string(at->value) || json_string_length(at->value) >= size) return mismatch(at, err, expected);
    memcpy(out, json_string_value(at->value), json_string_length(at->value) + 1);
    return FR_OK;
}

fr_status fr_json_as_object(const fr_json *at, fr_error *err) {
    return json_is_object(at->value) ? FR_OK : mismatch(at, err, "an object");
}

fr_status fr_json_int(const fr_json *object, const char *key, int required, int64_t low, int64_t high, int64_t *out,
                      fr_error *err) {
    fr_json at;
    bool absent;
    FR_TRY(find(object, key, required, "a whole number", &at, &absent, err));
    return absent ? FR_OK : fr_json_as_int(&at, low, high, out, err);
}

fr_status fr_json_int32(const fr_json *object, const char *key, int required, int low, int high, int *out,
                        fr_error *err) {
    int64_t value = *out;
    FR_TRY(fr_json_int(object, key, required, low, high, &value, err));
    *out = (int)value;
    return FR_OK;
}

fr_status fr_json_double(const fr_json *object, const char *key, int required, double low, double high, double *out,
                         fr_error *err) {
    fr_json at;
    bool absent;
    FR_TRY(find(object, key, required, "a number", &at, &absent, err));
    return absent ? FR_OK : fr_json_as_double(&at, low, high, out, err);
}

fr_status fr_json_bool(const fr_json *object, const char *key, int required, bool *out, fr_error *err) {
    fr_json at;
    bool absent;
    FR_TRY(find(object, key, required, "true or false", &at, &absent, err));
    if (absent) return FR_OK;
    if (!json_is_boolean(at.value)) return mismatch(&at, err, "true or false");
    *out = json_is_true(at.value);
    return FR_OK;
}

fr_status fr_json_text(const fr_json *object, const char *key, int required, char *out, size_t size, fr_error *err) {
    fr_json at;
    bool absent;
    FR_TRY(find(object, key, required, "a string", &at, &absent, err));
    return absent ? FR_OK : fr_json_as_text(&at, out, size, err);
}

fr_status fr_json_object(const fr_json *object, const char *key, int required, fr_json *out, fr_error *err) {
    bool absent;
    FR_TRY(find(object, key, required, "an object", out, &absent, err));
    return absent ? FR_OK : fr_json_as_object(out, err);
}

fr_status fr_json_array(const fr_json *object, const char *key, int required, fr_json *out, fr_error *err) {
    bool absent;
    FR_TRY(find(object, key, required, "an array", out, &absent, err));
    return absent || json_is_array(out->value) ? FR_OK : mismatch(out, err, "an array");
}

size_t fr_json_count(const fr_json *array) {
    return json_array_size(array->value);
}

void fr_json_item(const fr_json *array, size_t index, fr_json *out) {
    *out = (fr_json){.value = json_array_get(array->value, index), .file = array->file};
    snprintf(out->path, sizeof out->path, "%.130s[%zu]", array->path, index);
}

fr_status fr_json_only(const fr_json *object, const char *const *known, fr_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(object->value, key, value) {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0) k++;
        if (*k) continue;
        char list[400] = "";
        size_t used = 0;
        for (k = known; *k && used < sizeof list; k++)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", k == known ? "" : ", ", *k);
        return fr_json_fail(object, key, err, "unknown key; expected %s", list);
    }
    return FR_OK;
}

const char *fr_json_text_of(const json_t *value, char *buffer, size_t size) {
    if (json_is_string(value)) return json_string_value(value);
    if (json_is_boolean(value)) return json_is_true(value) ? "true" : "false";
    if (json_is_integer(value)) {
        snprintf(buffer, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return buffer;
    }
    if (json_is_real(value)) {
        double real = json_real_value(value);
        snprintf(buffer, size, "%.17g", real);
        if (real == floor(real) && fabs(real) < 1e15) snprintf(buffer, size, "%.0f", real);
        return buffer;
    }
    return NULL;
}

#include "engine/base.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

fr_status fr_fail(fr_error *err, fr_status status, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        err->status = status;
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        /* One clear line, whatever a hostile file put into a name. */
        for (char *c = err->text; *c; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    }
    return status;
}

static void out_of_memory(size_t bytes) {
    fprintf(stderr, "forerun: out of host memory (asked for %zu bytes)\n", bytes);
    abort();
}

int64_t fr_monotonic(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

double fr_monotonic_s(void) {
    return 1e-9 * (double)fr_monotonic();
}

void *fr_alloc(size_t bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) out_of_memory(bytes);
    return p;
}

void *fr_realloc(void *old, size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) out_of_memory(SIZE_MAX);
    size_t bytes = count * size;
    void *p = realloc(old, bytes > 0 ? bytes : 1);
    if (!p) out_of_memory(bytes);
    return p;
}

char *fr_strdup(const char *text) {
    size_t n = strlen(text) + 1;
    return memcpy(fr_alloc(n), text, n);
}

uint64_t fr_hash(const void *bytes, size_t count, uint64_t seed) {
    const unsigned char *p = bytes;
    for (size_t i = 0; i < count; i++) seed = (seed ^ p[i]) * 1099511628211ull;
    return seed;
}

fr_status fr_parse_int(const char *text, int64_t low, int64_t high, bool allow_suffix, const char *what, int64_t *out,
                       fr_error *err) {
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    bool bad = end == text || errno == ERANGE || text[0] == ' ' || text[0] == '\t' || text[0] == '+';
    int64_t scale = 1;
    if (!bad && allow_suffix && *end) {
        if (*end == 'K' || *end == 'k')
            scale = 1 << 10;
        else if (*end == 'M')
            scale = 1 << 20;
        else if (*end == 'G')
            scale = 1 << 30;
        if (scale > 1) end++;
    }
    if (bad || *end || value > INT64_MAX / scale || value < INT64_MIN / scale)
        return fr_fail(err, FR_BAD_INPUT, "%s: expected a whole number from %" PRId64 " to %" PRId64 "%s, got '%s'",
                       what, low, high, allow_suffix ? " (K, M and G are powers of 1024)" : "", text);
    value *= scale;
    if (value < low || value > high)
        return fr_fail(err, FR_BAD_INPUT, "%s: %lld is outside %" PRId64 " to %" PRId64, what, value, low, high);
    *out = value;
    return FR_OK;
}

fr_status fr_parse_double(const char *text, double low, double high, const char *what, double *out, fr_error *err) {
    char *end = NULL;
    double value = strtod(text, &end);
    bool bad = end == text || *end || !isfinite(value) || strpbrk(text, "xXpP") || text[0] == ' ' || text[0] == '\t' ||
               text[0] == '+';
    if (bad) return fr_fail(err, FR_BAD_INPUT, "%s: expected a number from %g to %g, got '%s'", what, low, high, text);
    if (value < low || value > high)
        return fr_fail(err, FR_BAD_INPUT, "%s: %g is outside %g to %g", what, value, low, high);
    *out = value;
    return FR_OK;
}

fr_status fr_read_file(const char *path, size_t limit, char **text, size_t *length, fr_error *err) {
    FILE *f = fopen(path, "rb");
    if (!f) return fr_fail(err, FR_BAD_INPUT, "%s: cannot open: %s", path, strerror(errno));
    char *buffer = NULL;
    size_t used = 0, capacity = 0;
    for (;;) {
        if (used == capacity) {
            capacity = capacity ? capacity * 2 : 1 << 16;
            buffer = fr_realloc(buffer, capacity + 1, 1);
        }
        size_t got = fread(buffer + used, 1, capacity - used, f);
        used += got;
        if (got == 0 || used > limit) break;
    }
    bool failed = ferror(f) != 0;
    fclose(f);
    if (failed || used > limit) {
        free(buffer);
        if (failed) return fr_fail(err, FR_BAD_INPUT, "%s: cannot read (is it a folder?)", path);
        return fr_fail(err, FR_BAD_INPUT, "%s: larger than the limit of %zu bytes for this kind of file", path, limit);
    }
    buffer[used] = 0;
    *text = buffer;
    *length = used;
    return FR_OK;
}

void fr_text_add(fr_text *t, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n > 0) {
        size_t need = t->length + (size_t)n + 1;
        if (need > t->capacity) {
            t->capacity = need * 2;
            t->text = fr_realloc(t->text, t->capacity, 1);
        }
        vsnprintf(t->text + t->length, (size_t)n + 1, format, again);
        t->length += (size_t)n;
    }
    va_end(again);
}

void fr_text_free(fr_text *t) {
    free(t->text);
    *t = (fr_text){0};
}

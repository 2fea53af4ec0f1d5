/*
 * base: what every module of forerun stands on: typed status with a message, checked memory, a byte hash.
 *
 * Library code never prints and never exits. A function that can fail returns fr_status and, through fr_fail, leaves
 * one line in fr_error that names the file (or flag), the field, what was expected and the remedy. Only main() turns a
 * status into an exit code: 0 done, 1 the job failed, 2 bad usage or bad input.
 */
#ifndef FR_BASE_H
#define FR_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    FR_OK = 0,
    FR_FAILED = 1,    /* the job failed: no memory, I/O, a layout that does not fit where it must; exit code 1 */
    FR_BAD_INPUT = 2, /* wrong usage or wrong input; exit code 2 */
} fr_status;

typedef struct {
    fr_status status;
    char text[1024]; /* one line, no newline at the end */
} fr_error;

/* Sets *err (which may be NULL) and returns status, so that callers write: return fr_fail(err, FR_BAD_INPUT, "...",
 * ...); */
fr_status fr_fail(fr_error *err, fr_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Relays a failure to the caller unchanged. */
#define FR_TRY(call)                                                                                                   \
    do {                                                                                                               \
        fr_status fr_try_ = (call);                                                                                    \
        if (fr_try_ != FR_OK) return fr_try_;                                                                          \
    } while (0)

int64_t fr_monotonic(void);  /* ns of CLOCK_MONOTONIC, which nobody sets */
double fr_monotonic_s(void); /* the same in seconds */

/*
 * Memory. These abort with a message when the host is out of memory: forerun's own tables are small against a host's
 * memory, and a half-built plan has no use. Input-sized requests must be bounded by the reader before they get here.
 */
void *fr_alloc(size_t bytes);                           /* zeroed */
void *fr_realloc(void *old, size_t count, size_t size); /* not zeroed; overflow-checked count * size */
char *fr_strdup(const char *text);

/* Grows a dynamic array so that index `need - 1` is valid: FR_GROW(a, cap, need). */
#define FR_GROW(array, capacity, need)                                                                                 \
    do {                                                                                                               \
        if ((size_t)(need) > (size_t)(capacity)) {                                                                     \
            size_t fr_cap_ = (size_t)(capacity) ? (size_t)(capacity) : 16;                                             \
            while (fr_cap_ < (size_t)(need)) fr_cap_ *= 2;                                                             \
            (array) = fr_realloc((array), fr_cap_, sizeof *(array));                                                   \
            (capacity) = (uint32_t)fr_cap_;                                                                            \
        }                                                                                                              \
    } while (0)

/* 64-bit FNV-1a over bytes, continuing from `seed` (start with FR_HASH_SEED). Used for table and configuration hashes.
 */
#define FR_HASH_SEED 14695981039346656037ull
uint64_t fr_hash(const void *bytes, size_t count, uint64_t seed);

/*
 * Strict number parsing of a whole text: no leading or trailing characters, no NaN, no infinity, no overflow.
 * `what` names the flag or field for the message ("--tokens"). A trailing K, M or G on integers multiplies by 1024,
 * 1024^2, 1024^3 where allow_suffix is true ("16K").
 */
fr_status fr_parse_int(const char *text, int64_t low, int64_t high, bool allow_suffix, const char *what, int64_t *out,
                       fr_error *err);
fr_status fr_parse_double(const char *text, double low, double high, const char *what, double *out, fr_error *err);

/* Reads a whole file of at most `limit` bytes; *text is NUL-terminated and owned by the caller. */
fr_status fr_read_file(const char *path, size_t limit, char **text, size_t *length, fr_error *err);

/*
 * Writes a file so that a reader never sees half of it: a temporary file in the same folder, fsync, rename.
 */
fr_status fr_write_file(const char *path, const char *text, size_t length, fr_error *err);

/* A growing text buffer, for reports and files. */
typedef struct {
    char *text; /* NUL-terminated once anything was appended; may be NULL before */
    size_t length;
    size_t capacity;
} fr_text;
void fr_text_add(fr_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fr_text_free(fr_text *t);

#define FR_VERSION "0.1.0"
/* A hash of what results are made of: sources of the model and the simulator, cost tables, models and machines
 * (Makefile).
 */
const char *fr_source_hash(void);

static inline int64_t fr_min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
/* fmin and fmax of numbers (not NaN) where the compiler sees them. */
static inline double fr_least(double a, double b) {
    return a < b ? a : b;
}
static inline double fr_most(double a, double b) {
    return a > b ? a : b;
}
static inline int64_t fr_max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
/* llround where the compiler sees it: nearest, halves away from zero; |x| < 2^63. The difference is exact. */
static inline int64_t fr_round(double x) {
    const int64_t whole = (int64_t)x;
    const double rest = x - (double)whole;
    return whole + (rest >= 0.5) - (rest <= -0.5);
}
static inline int64_t fr_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

#endif

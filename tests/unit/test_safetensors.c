/* The checkpoint reader: files made here byte by byte, what they must give, and what must be refused with its reason.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"

/* A file's bytes: length, header, `data` bytes; returns its size. */
static size_t make(char *out, const char *header, size_t data) {
    size_t n = strlen(header);
    for (int i = 0; i < 8; i++) out[i] = (char)((uint64_t)n >> (8 * i));
    memcpy(out + 8, header, n);
    memset(out + 8 + n, 7, data);
    return 8 + n + data;
}

static void test_reads(void **state) {
    (void)state;
    char file[512];
    fr_checkpoint c = {0};
    fr_error err = {0};
    const char *header = "{\"__metadata__\":{\"format\":\"pt\"},"
                         "\"w\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                         "\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}   ";
    size_t n = make(file, header, 16);
    assert_int_equal(fr_checkpoint_parse(&c, file, n, (int64_t)n, "x", &err), FR_OK);
    assert_int_equal(c.count, 2);
    const fr_tensor *w = fr_checkpoint_find(&c, "w"), *b = fr_checkpoint_find(&c, "b");
    assert_non_null(w);
    assert_non_null(b);
    assert_null(fr_checkpoint_find(&c, "v"));
    assert_string_equal(w->dtype, "BF16");
    assert_int_equal(w->rank, 2);
    assert_int_equal(w->shape[0] * 10 + w->shape[1], 23);
    assert_int_equal(w->begin, 8 + (int64_t)strlen(header) + 4);
    assert_int_equal(w->bytes, 12);
    assert_int_equal(b->rank, 0);
    assert_int_equal(b->bytes, 4);
    fr_checkpoint_close(&c);
}

static void refused(const char *header, size_t data, const char *part) {
    char file[1024];
    fr_checkpoint c = {0};
    fr_error err = {0};
    size_t n = make(file, header, data);
    assert_int_equal(fr_checkpoint_parse(&c, file, n, (int64_t)n, "f.safetensors", &err), FR_BAD_INPUT);
    if (!strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
    assert_non_null(strstr(err.text, "f.safetensors"));
    fr_checkpoint_close(&c);
}

static void test_refuses(void **state) {
    (void)state;
    refused("{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "need 4");
    refused("{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 5, "cut or padded");
    refused("{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 3, "data_offsets");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3, "hole");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
            "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
            3, "overlap");
    refused("{\"a\":{\"dtype\":\"BF17\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "unknown type");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}", 4, "2^63");
    refused("{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,4]}}", 4, "2^63");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, "dimensions");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "x");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{}}", 1, "duplicate");
    refused("[]", 0, "object");
    char file[64] = {0};
    fr_checkpoint c = {0};
    fr_error err = {0};
    assert_int_equal(fr_checkpoint_parse(&c, file, 7, 7, "f", &err), FR_BAD_INPUT);
    file[6] = 1; /* a header of 2^48 bytes */
    assert_int_equal(fr_checkpoint_parse(&c, file, 64, 64, "f", &err), FR_BAD_INPUT);
    memset(file, 0, sizeof file);
    file[0] = 57; /* one byte beyond the end */
    assert_int_equal(fr_checkpoint_parse(&c, file, 64, 64, "f", &err), FR_BAD_INPUT);
    assert_non_null(strstr(err.text, "beyond the end"));
    fr_checkpoint_close(&c);
}

static void put(const char *dir, const char *name, const char *bytes, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    fr_error err = {0};
    assert_int_equal(fr_write_file(path, bytes, n, &err), FR_OK);
}

static void shards(const char *dir, const char *index, fr_status want, const char *part) {
    fr_checkpoint c;
    fr_error err = {0};
    put(dir, "model.safetensors.index.json", index, strlen(index));
    assert_int_equal(fr_checkpoint_open(dir, &c, &err), want);
    if (part && !strstr(err.text, part)) fail_msg("'%s' lacks '%s'", err.text, part);
    if (want != FR_OK) return;
    assert_int_equal(c.files_count, 2);
    assert_int_equal(c.count, 2);
    assert_non_null(strstr(c.files[fr_checkpoint_find(&c, "b")->file], "2.safetensors"));
    fr_checkpoint_close(&c);
}

static void test_shards(void **state) {
    (void)state;
    char dir[] = "/tmp/fr-safetensors-XXXXXX", file[256];
    assert_non_null(mkdtemp(dir));
    fr_checkpoint c;
    fr_error err = {0};
    assert_int_equal(fr_checkpoint_open(dir, &c, &err), FR_BAD_INPUT);
    put(dir, "1.safetensors", file, make(file, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1));
    put(dir, "2.safetensors", file, make(file, "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1));
    shards(dir, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}", FR_OK, NULL);
    shards(dir, "{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", FR_BAD_INPUT, "does not hold");
    shards(dir, "{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"2.safetensors\"}}", FR_BAD_INPUT, "does not hold");
    shards(dir, "{\"weight_map\":{\"a\":\"../1.safetensors\"}}", FR_BAD_INPUT, "same folder");
    shards(dir, "{\"weight_map\":{\"a\":\"3.safetensors\"}}", FR_BAD_INPUT, "3.safetensors");
    put(dir, "2.safetensors", file, make(file, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1));
    shards(dir, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}", FR_BAD_INPUT, "both hold");
    const char *names[] = {"model.safetensors.index.json", "1.safetensors", "2.safetensors"};
    for (int i = 0; i < 3; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads), cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_shards)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * A small fuzzing main for machines without libFuzzer: runs every file of a corpus folder, then mutated copies of them
 * (seeded, so that a failure repeats) for a bounded number of seconds. The sanitizers are the judges.
 *
 *     fuzz_config CORPUS_DIR [SECONDS [SEED]]
 *
 * On a crash the input is left in fuzz-crash.bin in the working folder.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_INPUTS 256
#define MAX_SIZE   (1 << 16)

typedef struct {
    uint8_t *bytes;
    size_t size;
} input;

static uint64_t state;
static uint64_t next_random(void) { /* xorshift64*: quality is of no matter here, repeatability is */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ull;
}

static int load(const char *folder, input *inputs) {
    DIR *d = opendir(folder);
    int n = 0;
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d)) && n < MAX_INPUTS;) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!f) continue;
        inputs[n].bytes = malloc(MAX_SIZE);
        if (inputs[n].bytes) inputs[n].size = fread(inputs[n].bytes, 1, MAX_SIZE, f);
        n += inputs[n].bytes != NULL;
        fclose(f);
    }
    closedir(d);
    return n;
}

static size_t mutate(const input *from, const input *other, uint8_t *out) {
    static const char *const words[] = {"NaN", "-1", "1e999", "99999999999999999999",
                                        "\"",  "{",  "[",     "]",
                                        "}",   ",",  "null",  "0",
                                        "\n",  "\0", "=",     "#",
                                        "-",   ".",  "e",     "true"};
    size_t size = from->size;
    memcpy(out, from->bytes, size);
    for (uint64_t steps = 1 + next_random() % 6; steps > 0; steps--) {
        size_t at = size ? next_random() % size : 0;
        switch (next_random() % 6) {
        case 0:
            if (size) out[at] = (uint8_t)next_random();
            break;
        case 1:
            if (size) out[at] ^= (uint8_t)(1u << (next_random() % 8));
            break;
        case 2:
            size = at;
            break;
        case 3: { /* a word over what is there */
            const char *w = words[next_random() % (sizeof words / sizeof *words)];
            size_t n = strlen(w) ? strlen(w) : 1;
            if (at + n <= size) memcpy(out + at, w, n);
            break;
        }
        case 4: { /* a piece of another input inserted */
            size_t n = other->size ? next_random() % other->size % 512 : 0;
            if (size + n <= MAX_SIZE) {
                memmove(out + at + n, out + at, size - at);
                memcpy(out + at, other->bytes, n);
                size += n;
            }
            break;
        }
        default: { /* a piece cut out */
            size_t n = size ? next_random() % (size - at + 1) : 0;
            memmove(out + at, out + at + n, size - at - n);
            size -= n;
        }
        }
    }
    return size;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s CORPUS_DIR [SECONDS [SEED]]\n", argv[0]);
        return 2;
    }
    double seconds = argc > 2 ? atof(argv[2]) : 3;
    state = argc > 3 ? strtoull(argv[3], NULL, 10) | 1 : 88172645463325252ull;
    static input inputs[MAX_INPUTS];
    int n = load(argv[1], inputs);
    if (n == 0) { /* mutants of nothing find nothing */
        fprintf(stderr, "%s: no seeds\n", argv[1]);
        return 2;
    }
    static uint8_t scratch[MAX_SIZE];
    static const input none = {(uint8_t *)"", 0};
    for (int i = 0; i < n; i++) LLVMFuzzerTestOneInput(inputs[i].bytes, inputs[i].size);
    LLVMFuzzerTestOneInput(none.bytes, 0);
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    int fd = open("fuzz-crash.bin", O_CREAT | O_RDWR | O_TRUNC, 0644);
    long runs = 0;
    do {
        for (int i = 0; i < 64; i++, runs++) {
            const input *from = &inputs[next_random() % (uint64_t)n];
            const input *other = &inputs[next_random() % (uint64_t)n];
            size_t size = mutate(from, other, scratch);
            if (fd >= 0 && (ftruncate(fd, 0) != 0 || pwrite(fd, scratch, size, 0) < 0)) fd = -1;
            LLVMFuzzerTestOneInput(scratch, size);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - begin.tv_sec) + (double)(now.tv_nsec - begin.tv_nsec) * 1e-9 < seconds);
    if (fd >= 0) close(fd);
    remove("fuzz-crash.bin");
    for (int i = 0; i < n; i++) free(inputs[i].bytes);
    printf("%ld inputs from %d seeds: no finding\n", runs, n);
    return 0;
}

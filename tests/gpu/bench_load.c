/*
 * bench_load: what bounds the loading of a checkpoint, on this machine's first GPU.
 *
 *     bench_load FILE...
 *
 * Reads the files (in memory: page cache or /dev/shm) with 1 to 64 threads into private buffers that no GPU knows of,
 * copies from pinned memory without reading anything, and does both as the loader does (engine/cuda/weights_load.c), by
 * number of threads and size of their buffers. What the loader can reach is the least of the first two.
 */
#include "engine/base.h"

#include <cuda_runtime_api.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILES = 64, MOST_THREADS = 64, STREAMS = 2 };

typedef enum { READ = 1, COPY = 2, BLOCKS = 4, MAPPED = 8 } what;

typedef struct {
    int files, fds[MOST_FILES];
    int64_t bytes[MOST_FILES], all;
    char *mapped[MOST_FILES];
    char *device; /* room for a file */
    char *host;   /* [MOST_THREADS][2] buffers, pinned */
    cudaStream_t stream[STREAMS];
    /* of a turn */
    what kind;
    int64_t chunk;
    bool pinned;
    _Atomic int64_t next;
} bench;

typedef struct {
    bench *b;
    int index;
} reader;

static void check(cudaError_t e, const char *call) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(e));
    exit(1);
}

/* The i-th chunk of all files: false behind the last. */
static bool place(const bench *b, int64_t i, int *file, int64_t *at, int64_t *bytes) {
    for (int f = 0; f < b->files; f++) {
        const int64_t chunks = fr_ceil_div(b->bytes[f], b->chunk);
        if (i < chunks) {
            *file = f;
            *at = i * b->chunk;
            *bytes = fr_min_i64(b->chunk, b->bytes[f] - *at);
            return true;
        }
        i -= chunks;
    }
    return false;
}

static void copy(const bench *b, const char *from, int64_t at, int64_t bytes, cudaStream_t stream) {
    const size_t block = 32 << 10; /* eight rows of 2,048 bf16: gate and up interleaved */
    char *to = b->device + at;
    if (b->kind & BLOCKS)
        check(cudaMemcpy2DAsync(b->device + at / 2, 2 * block, from, block, block, (size_t)bytes / block,
                                cudaMemcpyHostToDevice, stream),
              "cudaMemcpy2DAsync");
    else
        check(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
}

static void *work(void *context) {
    const reader *r = context;
    bench *b = r->b;
    const cudaStream_t stream = b->stream[r->index % STREAMS];
    cudaEvent_t free_[2];
    char *own = b->pinned ? b->host + 2 * b->chunk * r->index : malloc((size_t)(2 * b->chunk));
    if (!own) return NULL;
    check(cudaSetDevice(0), "cudaSetDevice");
    for (int i = 0; i < 2; i++) check(cudaEventCreateWithFlags(&free_[i], cudaEventDisableTiming), "cudaEventCreate");
    if (!b->pinned) memset(own, 1, (size_t)(2 * b->chunk));
    for (int turn = 0;; turn ^= 1) {
        int file;
        int64_t at, bytes;
        if (!place(b, atomic_fetch_add(&b->next, 1), &file, &at, &bytes)) break;
        const char *from = own + turn * b->chunk;
        check(cudaEventSynchronize(free_[turn]), "cudaEventSynchronize");
        if (b->kind & READ)
            for (int64_t done = 0; done < bytes;) {
                const ssize_t n = pread(b->fds[file], own + turn * b->chunk + done, (size_t)(bytes - done), at + done);
                if (n <= 0) exit(1);
                done += n;
            }
        if (b->kind & MAPPED) from = b->mapped[file] + at;
        if (b->kind & (COPY | BLOCKS)) copy(b, from, at, bytes, stream);
        check(cudaEventRecord(free_[turn], stream), "cudaEventRecord");
    }
    for (int i = 0; i < 2; i++) check(cudaEventSynchronize(free_[i]), "cudaEventSynchronize");
    for (int i = 0; i < 2; i++) cudaEventDestroy(free_[i]);
    if (!b->pinned) free(own);
    return NULL;
}

static void turn(bench *b, const char *name, what kind, int threads, int64_t chunk, bool pinned) {
    pthread_t thread[MOST_THREADS];
    reader readers[MOST_THREADS];
    b->kind = kind;
    b->chunk = chunk;
    b->pinned = pinned;
    atomic_store(&b->next, 0);
    const double t0 = fr_monotonic_s();
    for (int i = 0; i < threads; i++) {
        readers[i] = (reader){b, i};
        if (pthread_create(&thread[i], NULL, work, &readers[i]) != 0) exit(1);
    }
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    const double s = fr_monotonic_s() - t0;
    printf("%-34s %2d threads, buffers of %5.2f MiB: %6.1f GB/s (%.2f s)\n", name, threads, (double)chunk / (1 << 20),
           (double)b->all * 1e-9 / s, s);
    fflush(stdout);
}

static void where(void) {
    char bus[32], path[96], text[32] = "?";
    check(cudaDeviceGetPCIBusId(bus, sizeof bus, 0), "cudaDeviceGetPCIBusId");
    for (char *c = bus; *c; c++) *c = (char)(*c >= 'A' && *c <= 'F' ? *c + 32 : *c);
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/numa_node", bus);
    FILE *f = fopen(path, "r");
    if (f) {
        if (!fgets(text, sizeof text, f)) text[0] = 0;
        text[strcspn(text, "\n")] = 0;
        fclose(f);
    }
    int nodes = 0;
    DIR *d = opendir("/sys/devices/system/node");
    for (struct dirent *e; d && (e = readdir(d)) != NULL;)
        nodes += strncmp(e->d_name, "node", 4) == 0 && e->d_name[4] >= '0' && e->d_name[4] <= '9';
    if (d) closedir(d);
    printf("GPU %s on node %.4s of %d, %ld CPUs\n", bus, text, nodes, sysconf(_SC_NPROCESSORS_ONLN));
}

/* The files' own pages, pinned where they lie: no copy on the host, but every page is pinned on its own. */
static void mapped(bench *b) {
    double t0 = fr_monotonic_s();
    for (int f = 0; f < b->files; f++) {
        b->mapped[f] = mmap(NULL, (size_t)b->bytes[f], PROT_READ, MAP_SHARED | MAP_POPULATE, b->fds[f], 0);
        if (b->mapped[f] == MAP_FAILED) {
            perror("mmap");
            return;
        }
    }
    const double t1 = fr_monotonic_s();
    for (int f = 0; f < b->files; f++) {
        const cudaError_t e = cudaHostRegister(b->mapped[f], (size_t)b->bytes[f], cudaHostRegisterReadOnly);
        if (e != cudaSuccess) {
            printf("cudaHostRegister of a mapped file: %s\n", cudaGetErrorString(e));
            return;
        }
    }
    printf("mapping all %.2f s, pinning it %.2f s (one thread)\n", t1 - t0, fr_monotonic_s() - t1);
    turn(b, "mapped and pinned files, copies", MAPPED | COPY, 4, 16 << 20, true);
    t0 = fr_monotonic_s();
    for (int f = 0; f < b->files; f++) cudaHostUnregister(b->mapped[f]);
    printf("unpinning %.2f s\n", fr_monotonic_s() - t0);
}

int main(int argc, char **argv) {
    static const int threads[] = {1, 4, 8, 12, 16, 20, 24, 32};
    static const int64_t chunks[] = {(int64_t)1 << 18, (int64_t)1 << 20, (int64_t)4 << 20, (int64_t)8 << 20};
    static bench b;
    int64_t largest = 0;
    for (int i = 1; i < argc && i <= MOST_FILES; i++) {
        struct stat s;
        b.fds[b.files] = open(argv[i], O_RDONLY | O_CLOEXEC);
        if (b.fds[b.files] < 0 || fstat(b.fds[b.files], &s) != 0) return perror(argv[i]), 1;
        b.bytes[b.files++] = s.st_size;
        b.all += s.st_size;
        largest = fr_max_i64(largest, s.st_size);
    }
    if (!b.files) return fprintf(stderr, "usage: bench_load FILE...\n"), 2;
    check(cudaSetDevice(0), "cudaSetDevice");
    where();
    for (int i = 0; i < STREAMS; i++) {
        const double t0 = fr_monotonic_s();
        check(cudaStreamCreateWithFlags(&b.stream[i], cudaStreamNonBlocking), "cudaStreamCreate");
        printf("making a stream took %.1f ms\n", (fr_monotonic_s() - t0) * 1e3);
    }
    check(cudaMalloc((void **)&b.device, (size_t)largest + (64 << 20)), "cudaMalloc");
    check(cudaHostAlloc((void **)&b.host, (size_t)(2 * MOST_THREADS * chunks[3]), cudaHostAllocDefault),
          "cudaHostAlloc");
    turn(&b, "copies from pinned memory", COPY, 1, chunks[2], true);
    turn(&b, "copies from pinned memory", COPY, 16, chunks[2], true);
    turn(&b, "the same in blocks of 32 KiB", BLOCKS, 16, chunks[2], true);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++)
        turn(&b, "reads, no GPU", READ, threads[i], chunks[2], false);
    for (size_t i = 3; i < sizeof threads / sizeof *threads; i++)
        turn(&b, "reads and copies", READ | COPY, threads[i], chunks[2], true);
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++)
        for (int n = 16; n <= 32; n *= 2) turn(&b, "reads and copies", READ | COPY, n, chunks[i], true);
    turn(&b, "reads and copies in blocks", READ | BLOCKS, 24, chunks[1], true);
    mapped(&b);
    return 0;
}

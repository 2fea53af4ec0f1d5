/*
 * test_transport: the NCCL half of engine/cuda/transport on as many GPUs as there are (at most 8), one thread each:
 * every collective against what it must give, even and uneven rows, in place, ranks without rows, several arrays at
 * once; then a peer that does not come; then latency and bandwidth.
 *
 * usage: test_transport [check] [bench] [ce] [fault | storm]      (default: all but storm)
 * ce: gathers weights by kernels and by copy engines, and shows which needs SMs: beside a kernel that has them all.
 * LD_PRELOAD=.../no_multicast.so makes it fail where anything creates a multicast object.
 */
#include "engine/cuda/device.h"
#include "engine/cuda/transport/transport.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8, WIDTH = 64 };

static int ranks, failures;
static fr_world *world;
static fr_plan *plan;
static bool faulty;
static const char *which;

#define DIE(...)                                                                                                       \
    do {                                                                                                               \
        printf(__VA_ARGS__);                                                                                           \
        printf("\n");                                                                                                  \
        fflush(stdout);                                                                                                \
        _exit(2);                                                                                                      \
    } while (0)
#define CUDA(call)                                                                                                     \
    do {                                                                                                               \
        cudaError_t e_ = (call);                                                                                       \
        if (e_ != cudaSuccess) DIE("%d: %s: %s", __LINE__, #call, cudaGetErrorString(e_));                             \
    } while (0)
#define FR(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != FR_OK) DIE("%d: %s: %s", __LINE__, #call, err.text);                                             \
    } while (0)

typedef struct {
    int rank;
    fr_transport *t;
    cudaStream_t stream;
    uint16_t *in, *out; /* device */
    size_t bytes;
} one;

static uint16_t bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (uint16_t)(u >> 16);
}

/* Small whole numbers: their sums are exact in bf16. */
static float value(int rank, int64_t i) {
    return (float)((rank * 3 + i % 7 + i / 64 % 5) % 11);
}

static void fill(one *o, int64_t elements) {
    uint16_t *h = malloc((size_t)elements * 2);
    for (int64_t i = 0; i < elements; i++) h[i] = bf16(value(o->rank, i));
    CUDA(cudaMemcpy(o->in, h, (size_t)elements * 2, cudaMemcpyHostToDevice));
    CUDA(cudaMemset(o->out, 0xff, o->bytes));
    CUDA(cudaDeviceSynchronize());
    free(h);
}

static void await(one *o, double limit) {
    const double end = fr_monotonic_s() + limit;
    cudaError_t e;
    while ((e = cudaStreamQuery(o->stream)) == cudaErrorNotReady)
        if (fr_monotonic_s() > end) DIE("rank %d: a collective did not end in %.0f s", o->rank, limit);
    CUDA(e);
}

static void expect(one *o, const char *what, const uint16_t *device, int64_t at, int64_t i, float wanted) {
    uint16_t got;
    CUDA(cudaMemcpy(&got, device + at, 2, cudaMemcpyDeviceToHost));
    if (got == bf16(wanted)) return;
    printf("FAILED %s rank %d: element %lld is %04x, expected %04x (%g)\n", what, o->rank, (long long)i, got,
           bf16(wanted), (double)wanted);
    __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
}

static void barrier(one *o) {
    fr_error err;
    FR(fr_world_exchange(world, o->rank, NULL, 0, NULL, &err));
}

static fr_collective op(fr_op_kind kind, const int64_t *rows) {
    return (fr_collective){.kind = kind, .group = 0, .peer = -1, .arrays = 1, .row_bytes = {2 * WIDTH}, .rows = rows};
}

static void launch(one *o, const fr_collective *c) {
    fr_error err;
    FR(fr_transport_launch(o->t, c, o->stream, &err));
    await(o, 20);
    FR(fr_transport_check(o->t, &err));
}

/* ---- checks -------------------------------------------------------------------------------------------------------*/

static void check_reduce(one *o, const int64_t *rows) {
    const int64_t n = rows[0] * WIDTH;
    fill(o, n + 1);
    fr_collective c = op(FR_OP_ALLREDUCE, rows);
    c.in[0] = o->in;
    c.out[0] = o->in;
    launch(o, &c);
    for (int64_t i = 0; i < n; i += 37) {
        float sum = 0;
        for (int q = 0; q < ranks; q++) sum += value(q, i);
        expect(o, "allreduce", o->in, i, i, sum);
    }
}

/* Two arrays at once, the second as narrow as an id. */
static void check_gather(one *o, const int64_t *rows, bool in_place) {
    int64_t before = 0, total = 0;
    for (int q = 0; q < ranks; q++) {
        if (q < o->rank) before += rows[q];
        total += rows[q];
    }
    fill(o, rows[o->rank] * WIDTH + 1);
    uint16_t *second = o->out + total * WIDTH + 64;
    fr_collective c = op(FR_OP_ALLGATHER, rows);
    c.arrays = 2;
    c.row_bytes[1] = 4;
    c.in[0] = o->in;
    c.in[1] = o->in;
    c.out[0] = o->out;
    c.out[1] = second;
    if (in_place) {
        CUDA(cudaMemcpy(o->out + before * WIDTH, o->in, (size_t)(rows[o->rank] * WIDTH * 2), cudaMemcpyDeviceToDevice));
        CUDA(cudaDeviceSynchronize());
        c.in[0] = o->out + before * WIDTH;
    }
    launch(o, &c);
    int64_t at = 0;
    for (int q = 0; q < ranks; q++) {
        for (int64_t i = 0; i < rows[q] * WIDTH; i += 29)
            expect(o, "allgather", o->out, at * WIDTH + i, i, value(q, i));
        for (int64_t i = 0; i < rows[q] * 2; i += 3) expect(o, "allgather ids", second, at * 2 + i, i, value(q, i));
        at += rows[q];
    }
}

static void check_scatter(one *o, const int64_t *rows, bool in_place) {
    int64_t before = 0, total = 0;
    for (int q = 0; q < ranks; q++) {
        if (q < o->rank) before += rows[q];
        total += rows[q];
    }
    fill(o, total * WIDTH + 1);
    fr_collective c = op(FR_OP_REDUCESCATTER, rows);
    uint16_t *out = in_place ? o->in + before * WIDTH : o->out;
    c.in[0] = o->in;
    c.out[0] = out;
    launch(o, &c);
    for (int64_t i = 0; i < rows[o->rank] * WIDTH; i += 31) {
        float sum = 0;
        for (int q = 0; q < ranks; q++) sum += value(q, before * WIDTH + i);
        expect(o, "reducescatter", out, i, i, sum);
    }
}

static void check_pair(one *o, int64_t n) {
    if (o->rank > 1) return;
    fill(o, n * WIDTH + 1);
    fr_collective c = op(o->rank == 0 ? FR_OP_SEND : FR_OP_RECV, &n);
    c.peer = 1 - o->rank;
    c.in[0] = o->in;
    c.out[0] = o->out;
    launch(o, &c);
    for (int64_t i = 0; i < n * WIDTH && o->rank == 1; i += 41) expect(o, "send, recv", o->out, i, i, value(0, i));
}

static void check_all(one *o) {
    const int64_t even[MOST] = {40, 40, 40, 40, 40, 40, 40, 40}, uneven[MOST] = {33, 70, 1, 12, 100, 3, 9, 64},
                  empty[MOST] = {0, 25, 0, 7, 0, 0, 1, 0}, none[MOST] = {0};
    const int64_t *all[4] = {even, uneven, empty, none};
    for (int i = 0; i < 4; i++)
        for (int in_place = 0; in_place < 2; in_place++) {
            check_gather(o, all[i], in_place);
            check_scatter(o, all[i], in_place);
            barrier(o);
        }
    check_reduce(o, even);
    check_reduce(o, none);
    check_pair(o, 77);
    check_pair(o, 0);
    barrier(o);
    if (o->rank == 0) printf("check: %s\n", failures ? "FAILED" : "ok"), fflush(stdout);
}

static one all[MOST];
static pthread_t breaker;
static void *give_up(void *context) {
    usleep(200000);
    for (int q = 0; q < ranks; q++) fr_transport_abort(all[q].t);
    return context;
}

/* ---- a peer that does not come ------------------------------------------------------------------------------------*/

static void fault(one *o) {
    const int64_t rows[MOST] = {40, 40, 40, 40, 40, 40, 40, 40};
    fr_error err;
    fr_collective c = op(FR_OP_ALLREDUCE, rows);
    c.in[0] = c.out[0] = o->in;
    if (o->rank == 0) {
        const double start = fr_monotonic_s();
        FR(fr_transport_launch(o->t, &c, o->stream, &err));
        usleep(300000);
        if (cudaStreamQuery(o->stream) != cudaErrorNotReady) printf("FAILED: it did not wait\n"), failures++;
        fr_transport_abort(o->t);
        await(o, 10);
        printf("fault: a collective whose peer never came was ended after %.2f s\n", fr_monotonic_s() - start);
        if (fr_transport_launch(o->t, &c, o->stream, &err) == FR_OK)
            printf("FAILED: launched after abort\n"), failures++;
    } else {
        fr_transport_abort(o->t);
    }
    fflush(stdout);
    barrier(o);
}

/* Another thread gives both transports up while their own threads launch without pause. */
static void storm(one *o) {
    const int64_t rows[MOST] = {40, 40, 40, 40, 40, 40, 40, 40};
    fr_error err;
    fr_collective c = op(FR_OP_ALLREDUCE, rows);
    c.in[0] = c.out[0] = o->in;
    barrier(o);
    if (o->rank == 0) pthread_create(&breaker, NULL, give_up, NULL);
    const double start = fr_monotonic_s();
    long launched = 0;
    while (fr_transport_launch(o->t, &c, o->stream, &err) == FR_OK) {
        launched++;
        if (fr_monotonic_s() - start > 15)
            DIE("rank %d: launches go on 15 s after the transport was given up", o->rank);
        /* Few are queued: each sees by itself, after some ms, that it was given up. */
        while (launched % 32 == 0 && cudaStreamQuery(o->stream) == cudaErrorNotReady && fr_monotonic_s() - start < 15)
            usleep(20);
    }
    const double end = fr_monotonic_s() + 10;
    cudaError_t e;
    while ((e = cudaStreamQuery(o->stream)) == cudaErrorNotReady && fr_monotonic_s() < end) usleep(1000);
    if (e == cudaErrorNotReady) DIE("rank %d: the device still waits after its transport was given up", o->rank);
    barrier(o);
    if (o->rank == 0) {
        pthread_join(breaker, NULL);
        printf("storm: given up by another thread after %ld launches, all ended after %.2f s\n", launched,
               fr_monotonic_s() - start);
        fflush(stdout);
    }
    barrier(o);
}

/* ---- speed --------------------------------------------------------------------------------------------------------*/

static double timed(one *o, const fr_collective *c, int n) {
    cudaEvent_t e[2];
    fr_error err;
    float ms;
    CUDA(cudaEventCreate(&e[0]));
    CUDA(cudaEventCreate(&e[1]));
    for (int i = 0; i < 3; i++) FR(fr_transport_launch(o->t, c, o->stream, &err));
    await(o, 20);
    barrier(o);
    CUDA(cudaEventRecord(e[0], o->stream));
    for (int i = 0; i < n; i++) FR(fr_transport_launch(o->t, c, o->stream, &err));
    CUDA(cudaEventRecord(e[1], o->stream));
    await(o, 20);
    CUDA(cudaEventElapsedTime(&ms, e[0], e[1]));
    CUDA(cudaEventDestroy(e[0]));
    CUDA(cudaEventDestroy(e[1]));
    barrier(o);
    return 1e3 * (double)ms / n;
}

static void bench(one *o) {
    static const fr_op_kind kinds[4] = {FR_OP_ALLREDUCE, FR_OP_ALLGATHER, FR_OP_REDUCESCATTER, FR_OP_SEND};
    for (int64_t mib = 0; mib <= 128; mib = mib ? mib * 8 : 2)
        for (int k = 0; k < 4; k++)
            for (int odd = 0; odd < (k == 1 || k == 2 ? 2 : 1); odd++) {
                const int64_t row = 8192, total = mib ? (mib << 20) / row : 8;
                int64_t rows[MOST];
                fr_collective c = op(kinds[k], rows);
                for (int q = 0; q < ranks; q++) rows[q] = k == 1 || k == 2 ? total / ranks : total;
                if (odd) rows[0]++, rows[1]--;
                c.row_bytes[0] = row;
                c.in[0] = o->in;
                c.out[0] = k == 0 ? o->in : o->out;
                if (kinds[k] == FR_OP_SEND) {
                    if (o->rank == 1) c.kind = FR_OP_RECV;
                    c.peer = 1 - o->rank;
                }
                if (kinds[k] == FR_OP_SEND && o->rank > 1) {
                    barrier(o);
                    barrier(o);
                    continue;
                }
                const double us = timed(o, &c, mib >= 16 ? 10 : 50), bytes = (double)(total * row), P = ranks;
                const double factor = k == 0 ? 2 * (P - 1) / P : k == 3 ? 1 : (P - 1) / P;
                if (o->rank == 0)
                    printf("bench %-13s%s %8.3f MB whole: %8.1f us, bus %6.1f GB/s\n", fr_op_name(kinds[k]),
                           odd ? " uneven" : "       ", bytes / 1e6, us, factor * bytes / us / 1e3);
                fflush(stdout);
            }
}

/* ---- weights by copy engines --------------------------------------------------------------------------------------*/

cudaError_t hold_all_sms(uint64_t ns, cudaStream_t stream); /* hold.cu */

/* Whether a gather ends while a kernel of `hold_ms` has all SMs of both devices. */
static bool ends_beside(one *o, fr_transport *t, const fr_collective *c, double hold_ms) {
    fr_error err;
    cudaStream_t other;
    CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    barrier(o);
    CUDA(hold_all_sms((uint64_t)(hold_ms * 1e6), other));
    usleep(20000); /* the kernel has begun */
    FR(fr_transport_launch(t, c, o->stream, &err));
    const double end = fr_monotonic_s() + hold_ms * 1e-3 / 2;
    cudaError_t e;
    while ((e = cudaStreamQuery(o->stream)) == cudaErrorNotReady && fr_monotonic_s() < end) usleep(100);
    const bool held = cudaStreamQuery(other) == cudaErrorNotReady;
    if (!held) printf("FAILED rank %d: the kernel on all SMs was over too early\n", o->rank), failures++;
    await(o, 20);
    CUDA(cudaStreamSynchronize(other));
    CUDA(cudaStreamDestroy(other));
    barrier(o);
    return e == cudaSuccess;
}

static void copy_engines(one *o, fr_gather gather) {
    fr_error err;
    fr_layout layout = {
        .experts = FR_EXP_ASYNCEP, .gather = gather, .tp = 1, .pp = 1, .ep = ranks, .dp = ranks, .replicas = 1};
    fr_model model = {.hidden = WIDTH};
    const fr_transport_options options = {.world = world,
                                          .rank = o->rank,
                                          .device = o->rank,
                                          .plan = plan,
                                          .layout = &layout,
                                          .model = &model,
                                          .tokens = 1,
                                          .timeout_s = 30,
                                          .everything = true};
    const int64_t elements = 32 << 20, rows[MOST] = {1, 1, 1, 1, 1, 1, 1, 1};
    fr_transport *t;
    uint16_t *shard, *slot;
    FR(fr_transport_open(&options, &t, &err));
    CUDA(fr_transport_alloc(t, (size_t)elements * 2, (void **)&shard));
    CUDA(fr_transport_alloc(t, (size_t)(elements * 2 * ranks), (void **)&slot));
    uint16_t *h = malloc((size_t)elements * 2);
    for (int64_t i = 0; i < elements; i++) h[i] = bf16(value(o->rank, i));
    CUDA(cudaMemcpy(shard, h, (size_t)elements * 2, cudaMemcpyHostToDevice));
    CUDA(cudaMemset(slot, 0xff, (size_t)(elements * 2 * ranks)));
    CUDA(cudaDeviceSynchronize());
    free(h);
    /* Two arrays, as the two parts of a layer's experts. */
    fr_collective c = {.kind = FR_OP_GATHER_WEIGHTS, .peer = -1, .gather = (uint8_t)gather, .arrays = 2, .rows = rows};
    for (int a = 0; a < 2; a++) {
        c.row_bytes[a] = elements;
        c.in[a] = shard + a * elements / 2;
        c.out[a] = slot + a * ranks * elements / 2;
    }
    barrier(o);
    FR(fr_transport_launch(t, &c, o->stream, &err));
    await(o, 20);
    for (int q = 0; q < ranks; q++)
        for (int64_t i = 0; i < elements; i += 999983) {
            const int64_t a = i / (elements / 2), at = a * ranks * elements / 2 + q * elements / 2 + i % (elements / 2);
            expect(o, "gather of weights", slot, at, i, value(q, i));
        }
    cudaEvent_t e[2];
    float ms;
    CUDA(cudaEventCreate(&e[0]));
    CUDA(cudaEventCreate(&e[1]));
    barrier(o);
    CUDA(cudaEventRecord(e[0], o->stream));
    for (int i = 0; i < 10; i++) FR(fr_transport_launch(t, &c, o->stream, &err));
    CUDA(cudaEventRecord(e[1], o->stream));
    await(o, 20);
    CUDA(cudaEventElapsedTime(&ms, e[0], e[1]));
    const bool beside = ends_beside(o, t, &c, 400);
    if (o->rank == 0)
        printf("weights by %s: %.1f GB/s in, %s beside a kernel on all SMs\n", fr_gather_name(gather),
               (double)(elements * 2 * (ranks - 1)) * 10 / (double)ms * 1e-6, beside ? "ends" : "does not end");
    if (beside != (gather == FR_GATHER_NCCL_CE))
        printf("FAILED rank %d: %s\n", o->rank, beside ? "no kernel?" : "a kernel was used"), failures++;
    fflush(stdout);
    barrier(o);
    fr_transport_free(t, shard);
    fr_transport_free(t, slot);
    fr_transport_close(t, false);
}

/* ---- threads ------------------------------------------------------------------------------------------------------*/

static void *run(void *context) {
    one *o = context;
    fr_error err;
    fr_layout layout = {.experts = FR_EXP_TP, .tp = ranks, .pp = 1, .ep = 1, .dp = 1, .replicas = 1};
    fr_model model = {.hidden = WIDTH};
    CUDA(cudaSetDevice(o->rank));
    CUDA(cudaStreamCreateWithFlags(&o->stream, cudaStreamNonBlocking));
    o->bytes = (size_t)160 << 20;
    CUDA(cudaMalloc((void **)&o->in, o->bytes));
    CUDA(cudaMalloc((void **)&o->out, o->bytes));
    const fr_transport_options t = {.world = world,
                                    .rank = o->rank,
                                    .device = o->rank,
                                    .plan = plan,
                                    .layout = &layout,
                                    .model = &model,
                                    .tokens = 1,
                                    .timeout_s = 30,
                                    .everything = true};
    const double start = fr_monotonic_s();
    FR(fr_transport_open(&t, &o->t, &err));
    if (o->rank == 0) printf("%d ranks connected in %.2f s\n", ranks, fr_monotonic_s() - start), fflush(stdout);
    void *peers[MOST];
    FR(fr_transport_share(o->t, o->in, o->bytes, peers, &err));
    if (strstr(which, "check")) check_all(o);
    if (strstr(which, "bench")) bench(o);
    if (strstr(which, "ce ")) {
        copy_engines(o, FR_GATHER_NCCL);
        copy_engines(o, FR_GATHER_NCCL_CE);
    }
    if (strstr(which, "fault")) fault(o);
    if (strstr(which, "storm")) storm(o);
    fr_transport_close(o->t, faulty);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[MOST];
    int16_t members[MOST];
    char text[128] = "";
    fr_error err;
    for (int i = 1; i < argc; i++) snprintf(text + strlen(text), sizeof text - strlen(text), "%.20s ", argv[i]);
    which = argc > 1 ? text : "check bench ce fault";
    faulty = strstr(which, "fault") || strstr(which, "storm");
    FR(fr_device_environment(&err));
    FR(fr_device_count(&ranks, &err));
    if (ranks > MOST) ranks = MOST;
    if (ranks < 2) DIE("needs two GPUs");
    plan = fr_plan_new(ranks, ranks);
    for (int q = 0; q < ranks; q++) members[q] = (int16_t)q;
    fr_plan_group(plan, members, ranks, ranks);
    FR(fr_world_open_threads(ranks, 30, &world, &err));
    alarm(90);
    for (int q = 0; q < ranks; q++) {
        all[q].rank = q;
        if (pthread_create(&threads[q], NULL, run, &all[q]) != 0) DIE("no thread");
    }
    for (int q = 0; q < ranks; q++) pthread_join(threads[q], NULL);
    printf("%s\n", failures ? "FAILED" : "all passed");
    return failures != 0;
}

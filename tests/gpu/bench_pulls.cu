/*
 * What moving weights costs in energy: two GPUs pull from each other on copy engines and do nothing else, at several
 * duty cycles, slice sizes and contents; NVML's energy counter says how many joules that took.
 *   bench_pulls [SECONDS]     seconds of each row, default 2
 * Prints watts of both GPUs, GB/s in of each, and joules per GB moved above what the GPUs draw with a context and
 * nothing to do, or with one spinning thread (`floor`): pulls beside compute add the latter.
 */
#include "tests/gpu/gpu.h"

#include <dlfcn.h>
#include <unistd.h>

static constexpr size_t SHARE = size_t{2304}
                                << 20; /* the remote half of a Qwen3-235B layer: 64 x 3 x 4096 x 1536 x 2 */
static constexpr unsigned long long BOUND_NS = 1900000000; /* of the spinning thread */

/* The energy counter of each GPU, by bus id: NVML's numbers are not CUDA's where GPUs are hidden. */
struct Energy {
    typedef struct nvml_device *handle;
    handle device[2];
    int (*joules)(handle, unsigned long long *) = nullptr;
    Energy() {
        void *l = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        auto init = reinterpret_cast<int (*)()>(l ? dlsym(l, "nvmlInit_v2") : nullptr);
        auto find = reinterpret_cast<int (*)(const char *, handle *)>(l ? dlsym(l, "nvmlDeviceGetHandleByPciBusId_v2")
                                                                        : nullptr);
        joules = reinterpret_cast<int (*)(handle, unsigned long long *)>(
            l ? dlsym(l, "nvmlDeviceGetTotalEnergyConsumption") : nullptr);
        bool ok = init && find && joules && init() == 0;
        for (int i = 0; i < 2 && ok; i++) {
            char bus[32];
            CUDA(cudaDeviceGetPCIBusId(bus, sizeof bus, i));
            ok = find(bus, &device[i]) == 0;
        }
        if (!ok) {
            printf("no NVML energy counter\n");
            exit(77);
        }
    }
    double read(int i) const {
        unsigned long long mj = 0;
        joules(device[i], &mj);
        return static_cast<double>(mj) * 1e-3;
    }
};

__global__ void spin(unsigned long long ns, const volatile int *stop) {
    unsigned long long begin, t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    } while (t - begin < ns && !*stop);
}

/* Bits as a trained weight has them: normal, bf16. */
__global__ void fill(unsigned short *p, size_t n, int kind) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += size_t{gridDim.x} * blockDim.x) {
        uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        z ^= z >> 31;
        const float sum = static_cast<float>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
        const float normal = (sum * 0x1p-16f - 2) * 1.7320508f * 0.02f;
        p[i] = static_cast<unsigned short>(kind == 0 ? 0 : kind == 1 ? __float_as_uint(normal) >> 16 : z & 0xffff);
    }
}

struct Bench {
    char *from[2], *to[2];
    cudaStream_t stream[2], side[2];
    int *stop;
    Energy energy;
    double seconds, floor_idle[2] = {0, 0}, floor_spin[2] = {0, 0};
};

enum Way { NONE, PULL, PUSH, ONE_WAY, LOCAL };

static void issue(const Bench &b, Way way, size_t slice) {
    for (size_t at = 0; at < SHARE; at += slice)
        for (int i = 0; i < 2; i++) {
            const size_t n = std::min(slice, SHARE - at);
            if (way == ONE_WAY && i == 1) continue;
            const char *source = way == LOCAL ? b.from[i] : b.from[1 - i];
            if (way == PUSH) { /* this GPU's stream writes into the other's memory */
                CUDA(cudaMemcpyAsync(b.to[1 - i] + at, b.from[i] + at, n, cudaMemcpyDefault, b.stream[i]));
                continue;
            }
            CUDA(cudaMemcpyAsync(b.to[i] + at, source + at, n, cudaMemcpyDefault, b.stream[i]));
        }
}

static void wait(const Bench &b) {
    const double limit = fr_monotonic_s() + 5;
    for (int i = 0; i < 2; i++)
        while (cudaStreamQuery(b.stream[i]) == cudaErrorNotReady)
            if (fr_monotonic_s() > limit) {
                printf("a copy takes more than 5 s\n");
                exit(1);
            }
}

/* `pause`: seconds of rest after every share; spinning: one thread of each GPU never rests. */
static void row(Bench &b, const char *name, Way way, size_t slice, double pause, bool spinning) {
    double joules[2], bytes = 0;
    *b.stop = 0;
    for (int i = 0; i < 2 && spinning; i++) {
        CUDA(cudaSetDevice(i));
        spin<<<1, 1, 0, b.side[i]>>>(BOUND_NS, b.stop);
    }
    const double settle = fr_monotonic_s() + 0.2;
    double start = 0, end = 0;
    const double length = spinning ? std::min(b.seconds, 1.5) : b.seconds;
    for (bool timed = false;;) {
        if (!timed && fr_monotonic_s() >= settle) {
            timed = true;
            start = fr_monotonic_s();
            for (int i = 0; i < 2; i++) joules[i] = b.energy.read(i);
            bytes = 0;
        }
        if (timed && fr_monotonic_s() - start >= length) break;
        if (way == NONE) {
            usleep(2000);
            continue;
        }
        const double began = fr_monotonic_s();
        issue(b, way, slice);
        wait(b);
        bytes += SHARE;
        const double rest = pause < 0 ? -pause * (fr_monotonic_s() - began) : pause;
        if (rest > 0) usleep(static_cast<useconds_t>(rest * 1e6));
    }
    end = fr_monotonic_s();
    for (int i = 0; i < 2; i++) joules[i] = b.energy.read(i) - joules[i];
    *b.stop = 1;
    CUDA(cudaSetDevice(0));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaSetDevice(1));
    CUDA(cudaDeviceSynchronize());
    const double s = end - start, rate = bytes / s * 1e-9;
    double watts[2] = {joules[0] / s, joules[1] / s};
    if (way == NONE)
        for (int i = 0; i < 2; i++) (spinning ? b.floor_spin : b.floor_idle)[i] = watts[i];
    printf("%-34s %6.1f %6.1f W, %6.1f GB/s in", name, watts[0], watts[1], rate);
    const double *floor = spinning ? b.floor_spin : b.floor_idle;
    if (rate > 0)
        printf(", above the floor %5.1f %5.1f W = %.4f %.4f J/GB", watts[0] - floor[0], watts[1] - floor[1],
               (watts[0] - floor[0]) / rate, (watts[1] - floor[1]) / rate);
    printf("\n");
    fflush(stdout);
}

static void contents(const Bench &b, int kind) {
    for (int i = 0; i < 2; i++) {
        CUDA(cudaSetDevice(i));
        fill<<<1024, 256>>>(reinterpret_cast<unsigned short *>(b.from[i]), SHARE / 2, kind);
        CUDA(cudaGetLastError());
        CUDA(cudaDeviceSynchronize());
    }
}

static void open(Bench &b) {
    for (int i = 0; i < 2; i++) {
        CUDA(cudaSetDevice(i));
        CUDA(cudaDeviceEnablePeerAccess(1 - i, 0));
        CUDA(cudaMalloc(&b.from[i], SHARE));
        CUDA(cudaMalloc(&b.to[i], SHARE));
        CUDA(cudaStreamCreateWithFlags(&b.stream[i], cudaStreamNonBlocking));
        CUDA(cudaStreamCreateWithFlags(&b.side[i], cudaStreamNonBlocking));
    }
    CUDA(cudaHostAlloc(&b.stop, sizeof *b.stop, cudaHostAllocPortable));
    contents(b, 1);
}

int main(int count, char **args) {
    int devices = 0;
    CUDA(cudaGetDeviceCount(&devices));
    if (devices < 2) {
        printf("needs two GPUs\n");
        return 77;
    }
    Bench b;
    b.seconds = count > 1 ? atof(args[1]) : 2;
    open(b);
    row(b, "nothing", NONE, SHARE, 0, false);
    row(b, "pulls both ways, all the time", PULL, SHARE, 0, false);
    row(b, "a spinning thread", NONE, SHARE, 0, true);
    row(b, "  pulls both ways beside it", PULL, SHARE, 0, true);
    row(b, "  half of the time", PULL, SHARE, -1, true);
    row(b, "  a quarter", PULL, SHARE, -3, true);
    row(b, "  slices of 8 MiB", PULL, size_t{8} << 20, 0, true);
    row(b, "  pushes both ways", PUSH, SHARE, 0, true);
    row(b, "  GPU 0 pulls, GPU 1 is read", ONE_WAY, SHARE, 0, true);
    row(b, "  copies within each GPU", LOCAL, SHARE, 0, true);
    contents(b, 0);
    row(b, "  pulls of zeros", PULL, SHARE, 0, true);
    contents(b, 2);
    row(b, "  pulls of random bits", PULL, SHARE, 0, true);
    return 0;
}

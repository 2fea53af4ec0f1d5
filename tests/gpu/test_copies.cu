/*
 * The copies of experts' weights need no SM: beside a kernel that fills every SM (one block each, with all of its
 * shared memory and half of its threads, so that nothing else fits) a peer pull, a copy from pinned memory and one
 * within the GPU end while that kernel still runs. A kernel as small as can be, launched at the same time, does not:
 * that shows that no SM was free. Bounded by the global timer.
 */
#include "tests/gpu/gpu.h"

#include <unistd.h>

static constexpr size_t BYTES = size_t{256} << 20;
static constexpr long long SPIN_NS = 400000000; /* a pull takes 0.7 ms, a copy from the host 5 */

__global__ void __launch_bounds__(1024) fill_all_sms(long long ns, int *started) {
    extern __shared__ char memory[];
    unsigned long long begin, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    memory[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
        *(volatile int *)(started + blockIdx.x) = 1;
        __threadfence_system();
    }
    do {
        __nanosleep(1000);
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - begin < static_cast<unsigned long long>(ns));
}

__global__ void small(int *p) {
    *p = 1;
}

static int passed, failed;

static void expect(bool ok, const char *what) {
    printf("%s  %s\n", ok ? "ok    " : "FAILED", what);
    (ok ? passed : failed)++;
}

/* Runs `copy` on a stream of its own beside the kernel; says whether it ended first. */
static void beside(const char *what, bool should_end, const std::function<void(cudaStream_t)> &copy) {
    cudaStream_t work, side;
    cudaEvent_t done, kernel, from;
    int *started, sms = 0, seen = 0;
    float ms = -1;
    CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA(cudaStreamCreateWithFlags(&work, cudaStreamNonBlocking));
    CUDA(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
    CUDA(cudaEventCreate(&done));
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&kernel));
    CUDA(cudaHostAlloc(&started, static_cast<size_t>(sms) * sizeof *started, cudaHostAllocMapped));
    memset(started, 0, static_cast<size_t>(sms) * sizeof *started);
    const int shared = 227 * 1024;
    CUDA(cudaFuncSetAttribute(fill_all_sms, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    copy(side); /* once alone: mappings are made */
    CUDA(cudaStreamSynchronize(side));
    fill_all_sms<<<sms, 1024, shared, work>>>(SPIN_NS, started);
    CUDA(cudaGetLastError());
    CUDA(cudaEventRecord(kernel, work));
    for (int i = 0; i < 20000 && seen < sms; i++) {
        seen = 0;
        for (int k = 0; k < sms; k++) seen += const_cast<volatile int *>(started)[k];
        usleep(10);
    }
    CUDA(cudaEventRecord(from, side));
    copy(side);
    CUDA(cudaEventRecord(done, side));
    bool first = false;
    while (cudaEventQuery(kernel) == cudaErrorNotReady)
        if (cudaEventQuery(done) == cudaSuccess) {
            first = cudaEventQuery(kernel) == cudaErrorNotReady;
            break;
        }
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaEventElapsedTime(&ms, from, done));
    char text[160];
    snprintf(text, sizeof text, "%s %s beside a kernel on all %d of %d SMs (%.2f ms, %.0f GB/s)", what,
             should_end ? "ends" : "does not end", seen, sms, ms, BYTES / (ms * 1e6));
    expect(seen == sms && first == should_end, text);
    CUDA(cudaEventDestroy(done));
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(kernel));
    CUDA(cudaStreamDestroy(work));
    CUDA(cudaStreamDestroy(side));
    CUDA(cudaFreeHost(started));
}

int main() {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    int devices = 0, peer = 0;
    char *a, *b, *host, *far = nullptr;
    CUDA(cudaGetDeviceCount(&devices));
    CUDA(cudaMalloc(&a, BYTES));
    CUDA(cudaMalloc(&b, BYTES));
    CUDA(cudaHostAlloc(&host, BYTES, cudaHostAllocPortable));
    if (devices > 1) CUDA(cudaDeviceCanAccessPeer(&peer, 0, 1));
    if (peer) {
        CUDA(cudaSetDevice(1));
        CUDA(cudaMalloc(&far, BYTES));
        CUDA(cudaSetDevice(0));
        CUDA(cudaDeviceEnablePeerAccess(1, 0));
    }
    /* the calls of engine/cuda/pools.c */
    auto copy = [](void *to, const void *from) {
        return [=](cudaStream_t s) { CUDA(cudaMemcpyAsync(to, from, BYTES, cudaMemcpyDefault, s)); };
    };
    beside("a small kernel", false, [&](cudaStream_t s) { small<<<1, 1, 0, s>>>(reinterpret_cast<int *>(a)); });
    beside("a copy from pinned memory", true, copy(a, host));
    beside("a copy within the GPU", true, copy(a, b));
    if (peer)
        beside("a peer pull", true, copy(a, far));
    else
        printf("one GPU: peer pulls were not tested\n");
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

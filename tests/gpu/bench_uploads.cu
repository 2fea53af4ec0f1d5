/*
 * Copies from pinned host memory as offload makes them: how much of the link's rate is left by copies of one expert,
 * with what the engine puts between them (a wait for the slot, marks, timing events), on one stream or in turn on two;
 * and how long a forward's tables take while the weights of layers are on their way, by copy engine and by SMs.
 *   bench_uploads [EXPERT_BYTES]      default: an expert of Qwen3-30B-A3B, 9.4 MB
 */
#include "kernels/words.h"
#include "tests/gpu/gpu.h"

static constexpr size_t POOL = size_t{1} << 30;

struct Stream {
    cudaStream_t s;
    Stream() { CUDA(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking)); }
};

struct Event {
    cudaEvent_t e;
    explicit Event(unsigned flags = cudaEventDefault) { CUDA(cudaEventCreateWithFlags(&e, flags)); }
};

static char *host, *device;

/* GB/s of `count` copies of `bytes` between two slots' worth of targets; marks: a wait for an event that has come and
 * a record; timed: two more, with times. */
static void stream_of_copies(const char *what, size_t bytes, int streams, bool marks, bool timed) {
    static Stream stream[2];
    const int count = static_cast<int>(POOL / bytes);
    std::vector<Event> mark, time;
    for (int i = 0; i < count; i++) mark.emplace_back(cudaEventDisableTiming);
    for (int i = 0; i < 2 * count; i++) time.emplace_back();
    Event freed(cudaEventDisableTiming), begin, end, joined(cudaEventDisableTiming);
    double best = 0, sum = 0;
    const int tries = 5;
    for (int t = 0; t < tries; t++) {
        CUDA(cudaEventRecord(freed.e, stream[0].s));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaEventRecord(begin.e, stream[0].s));
        CUDA(cudaStreamWaitEvent(stream[1].s, begin.e, 0));
        for (int i = 0; i < count; i++) {
            cudaStream_t s = stream[i % streams].s;
            if (marks) CUDA(cudaStreamWaitEvent(s, freed.e, 0));
            if (timed) CUDA(cudaEventRecord(time[2 * i].e, s));
            CUDA(cudaMemcpyAsync(device + i % 2 * bytes, host + i * bytes, bytes, cudaMemcpyHostToDevice, s));
            if (timed) CUDA(cudaEventRecord(time[2 * i + 1].e, s));
            if (marks) CUDA(cudaEventRecord(mark[i].e, s));
        }
        CUDA(cudaEventRecord(joined.e, stream[1].s));
        CUDA(cudaStreamWaitEvent(stream[0].s, joined.e, 0));
        CUDA(cudaEventRecord(end.e, stream[0].s));
        CUDA(cudaDeviceSynchronize());
        float ms = 0;
        CUDA(cudaEventElapsedTime(&ms, begin.e, end.e));
        const double rate = static_cast<double>(bytes) * count / (ms * 1e6);
        best = std::max(best, rate);
        sum += rate;
    }
    printf("%-58s %8.1f us each, %6.2f GB/s (best %.2f)\n", what, static_cast<double>(bytes) / (sum / tries) * 1e-3,
           sum / tries, best);
}

/*
 * Tables of `bytes` on a stream of their own behind a small kernel (the forward before), asked for while copies of 256
 * MiB are queued on another: a copy engine stays with that stream as long as it has copies that may run.
 */
static void tables(size_t bytes, bool by_sms, bool busy) {
    static Stream weights, compute;
    Event begin, end;
    const size_t one = size_t{256} << 20;
    char *to = device + one;
    float ms = 0, sum = 0;
    for (int t = 0; t < 4; t++) { /* the first one warms up */
        CUDA(cudaDeviceSynchronize());
        for (int i = 0; i < 4 && busy; i++)
            CUDA(cudaMemcpyAsync(device, host + i * one, one, cudaMemcpyHostToDevice, weights.s));
        std::this_thread::sleep_for(std::chrono::milliseconds(1)); /* the first copy runs */
        CUDA(fr_k_words(device + 2 * one, to, 1024, compute.s));
        CUDA(cudaEventRecord(begin.e, compute.s)); /* the kernel's time, not the copy engine's */
        if (by_sms)
            CUDA(fr_k_words(to, host, static_cast<int64_t>(bytes / 4), compute.s));
        else
            CUDA(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, compute.s));
        CUDA(cudaEventRecord(end.e, compute.s));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaEventElapsedTime(&ms, begin.e, end.e));
        sum += t > 0 ? ms : 0;
    }
    printf("tables of %8zu bytes by %s, %s %9.1f us\n", bytes, by_sms ? "SMs        " : "copy engine",
           busy ? "beside 4 x 256 MiB" : "link free         ", static_cast<double>(sum) / 3 * 1e3);
}

int main(int argc, char **argv) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const size_t expert = argc > 1 ? strtoull(argv[1], nullptr, 10) : size_t{3} * 2048 * 768 * 2;
    CUDA(cudaHostAlloc(&host, POOL, cudaHostAllocDefault));
    CUDA(cudaMalloc(&device, POOL));
    stream_of_copies("warming up", expert, 1, false, false);
    stream_of_copies("a layer at once (1 GiB)", POOL / 2, 1, false, false);
    stream_of_copies("experts, nothing between", expert, 1, false, false);
    stream_of_copies("experts, wait and mark", expert, 1, true, false);
    stream_of_copies("experts, wait, mark and times", expert, 1, true, true);
    stream_of_copies("experts in turn on two streams, nothing between", expert, 2, false, false);
    stream_of_copies("experts in turn on two streams, wait and mark", expert, 2, true, false);
    stream_of_copies("experts in turn on two streams, wait, mark and times", expert, 2, true, true);
    stream_of_copies("two experts a copy, wait and mark", 2 * expert, 1, true, false);
    for (bool busy : {false, true})
        for (size_t bytes : {size_t{4096}, size_t{196608}, size_t{1179648}})
            for (bool sms : {false, true}) tables(bytes, sms, busy);
    return 0;
}

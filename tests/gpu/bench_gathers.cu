/*
 * How fast GPUs gather a layer's experts from one another by copy engines when all do so at once: each pulls a shard
 * from every other one, layer after layer, and does nothing else. bench_gathers [SHARD_MIB [LAYERS]]     default 1152
 * MiB (a Qwen3-235B layer's quarter), 8 layers A row: GB/s into each GPU over all layers (slowest, mean of all), and
 * how long single pulls took (least, median, most). streams   pulls in flight; peers are dealt to them in turn chunk
 * pulls in slices, peers taking turns; 0 = a shard at once start     lockstep: a layer begins on all GPUs when it has
 * ended on all; free: each for itself; apart: as free, each GPU begins a third of a pull after the one before order
 * from: the peers after the own rank in turn; same: all begin at GPU 0 (what drifting ranks come to at worst)
 */
#include "tests/gpu/gpu.h"

#include <unistd.h>

static constexpr int MOST = 8;
static constexpr double LIMIT_S = 5;
static constexpr double EXPECTED = 390e9; /* bytes/s of one pull alone: only to place starts apart */

__global__ void rest(unsigned long long ns) {
    unsigned long long begin, t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    } while (t - begin < ns && t - begin < 1000000000ull);
}

enum Start { LOCKSTEP, FREE, APART };

struct Row {
    const char *name;
    int streams;
    size_t chunk;
    Start start;
    bool same, push;
    int pullers; /* that many GPUs pull, 0 = all */
    int sources; /* ... from so many others, 0 = all */
};

struct Gpu {
    char *from = nullptr, *to = nullptr;
    cudaStream_t stream[4];
    cudaEvent_t begin, end, joined[4], taken;
    std::vector<cudaEvent_t> marks; /* around single pulls */
    size_t used = 0;
};

static int gpus, layers = 8;
static size_t shard = size_t{1152} << 20;
static Gpu gpu[MOST];

static cudaEvent_t mark(Gpu &g) {
    if (g.used == g.marks.size()) {
        cudaEvent_t e;
        CUDA(cudaEventCreate(&e));
        g.marks.push_back(e);
    }
    return g.marks[g.used++];
}

static void await(cudaStream_t s) {
    const double until = fr_monotonic_s() + LIMIT_S;
    while (cudaStreamQuery(s) == cudaErrorNotReady)
        if (fr_monotonic_s() > until) {
            printf("a gather takes more than %g s\n", LIMIT_S);
            exit(1);
        }
}

static void one_layer(const Row &row, int r) {
    Gpu &g = gpu[r];
    const int sources = row.sources ? row.sources : gpus - 1;
    const size_t chunk = row.chunk ? row.chunk : shard;
    CUDA(cudaSetDevice(r));
    CUDA(cudaEventRecord(g.taken, g.stream[0]));
    for (int s = 0; s < row.streams; s++) {
        if (s > 0) CUDA(cudaStreamWaitEvent(g.stream[s], g.taken, 0));
        for (size_t at = 0; at < shard; at += chunk)
            for (int j = 1 + s; j <= sources; j += row.streams) {
                int peer = (r + j) % gpus;
                if (row.same) peer = j - 1 < r ? j - 1 : j;
                const size_t n = std::min(chunk, shard - at);
                const bool timed = !row.chunk;
                char *to = g.to + static_cast<size_t>(peer) * shard + at;
                const char *from = gpu[peer].from + at;
                if (row.push) {
                    to = gpu[peer].to + static_cast<size_t>(r) * shard + at;
                    from = g.from + at;
                }
                if (timed) CUDA(cudaEventRecord(mark(g), g.stream[s]));
                CUDA(cudaMemcpyAsync(to, from, n, cudaMemcpyDefault, g.stream[s]));
                if (timed) CUDA(cudaEventRecord(mark(g), g.stream[s]));
            }
        if (s > 0) {
            CUDA(cudaEventRecord(g.joined[s], g.stream[s]));
            CUDA(cudaStreamWaitEvent(g.stream[0], g.joined[s], 0));
        }
    }
}

static void measure(const Row &row) {
    const int pullers = row.pullers ? row.pullers : gpus, sources = row.sources ? row.sources : gpus - 1;
    double rate[MOST], least = 1e30, sum = 0;
    for (int r = 0; r < pullers; r++) {
        Gpu &g = gpu[r];
        g.used = 0;
        CUDA(cudaSetDevice(r));
        rest<<<1, 1, 0, g.stream[0]>>>(3000000); /* until all is issued */
        if (row.start == APART)
            rest<<<1, 1, 0, g.stream[0]>>>(
                static_cast<unsigned long long>(r * static_cast<double>(shard) / EXPECTED / 3 * 1e9));
        CUDA(cudaEventRecord(g.begin, g.stream[0]));
    }
    for (int l = 0; l < layers; l++) {
        for (int r = 0; r < pullers; r++) one_layer(row, r);
        for (int r = 0; r < pullers && row.start == LOCKSTEP; r++) await(gpu[r].stream[0]);
    }
    for (int r = 0; r < pullers; r++) {
        CUDA(cudaSetDevice(r));
        CUDA(cudaEventRecord(gpu[r].end, gpu[r].stream[0]));
    }
    for (int r = 0; r < pullers; r++) await(gpu[r].stream[0]);
    std::vector<float> pulls;
    for (int r = 0; r < pullers; r++) {
        float ms = 0;
        CUDA(cudaSetDevice(r));
        CUDA(cudaEventElapsedTime(&ms, gpu[r].begin, gpu[r].end));
        rate[r] = static_cast<double>(shard) * sources * layers / (ms * 1e6);
        least = std::min(least, rate[r]);
        sum += rate[r];
        for (size_t i = 0; i + 1 < gpu[r].used; i += 2) {
            CUDA(cudaEventElapsedTime(&ms, gpu[r].marks[i], gpu[r].marks[i + 1]));
            pulls.push_back(ms);
        }
    }
    std::sort(pulls.begin(), pulls.end());
    printf("%-30s streams %d chunk %4zu MiB: %6.1f GB/s slowest, %6.1f mean (", row.name, row.streams, row.chunk >> 20,
           least, sum / pullers);
    for (int r = 0; r < pullers; r++) printf("%s%.0f", r ? " " : "", rate[r]);
    printf(")");
    if (!pulls.empty()) printf(", a pull %.3f %.3f %.3f ms", pulls.front(), pulls[pulls.size() / 2], pulls.back());
    printf("\n");
    fflush(stdout);
}

static void open() {
    for (int r = 0; r < gpus; r++) {
        Gpu &g = gpu[r];
        CUDA(cudaSetDevice(r));
        for (int q = 0; q < gpus; q++)
            if (q != r) CUDA(cudaDeviceEnablePeerAccess(q, 0));
        CUDA(cudaMalloc(&g.from, shard));
        CUDA(cudaMalloc(&g.to, shard * static_cast<size_t>(gpus)));
        CUDA(cudaMemset(g.from, 0x3c, shard));
        CUDA(cudaEventCreate(&g.begin));
        CUDA(cudaEventCreate(&g.end));
        CUDA(cudaEventCreateWithFlags(&g.taken, cudaEventDisableTiming));
        for (int s = 0; s < 4; s++) {
            CUDA(cudaStreamCreateWithFlags(&g.stream[s], cudaStreamNonBlocking));
            CUDA(cudaEventCreateWithFlags(&g.joined[s], cudaEventDisableTiming));
        }
        CUDA(cudaDeviceSynchronize());
    }
}

/* ---- which pairs at once
 * ---------------------------------------------------------------------------------------------*/

enum How { READ, WRITE, READ_PEER, READ_NEW_STREAM, READ_SPLIT, READ_SMS };
static const char *const how_name[] = {"read",
                                       "write",
                                       "read, cudaMemcpyPeerAsync",
                                       "read, a stream per peer",
                                       "read, 4 slices on 4 streams",
                                       "read by 16 blocks"};

__global__ void __launch_bounds__(512) copy_by_sms(uint4 *to, const uint4 *from, size_t n) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n; i += 4 * size_t{gridDim.x} * blockDim.x) {
        uint4 v[4];
        const size_t step = size_t{gridDim.x} * blockDim.x;
        for (size_t k = 0; k < 4; k++)
            if (i + k * step < n) v[k] = from[i + k * step];
        for (size_t k = 0; k < 4; k++)
            if (i + k * step < n) to[i + k * step] = v[k];
    }
}

struct Flow {
    int reader, owner;
};

/* All flows at once, each twice `bytes`, from a common start: GB/s of each. */
static void flows(const char *name, How how, const std::vector<Flow> &all, size_t bytes) {
    static cudaStream_t own[MOST][MOST];
    static cudaEvent_t begin[MOST][MOST], end[MOST][MOST], part[MOST][MOST][4];
    std::vector<int> met(MOST);
    for (const Flow &f : all) met[static_cast<size_t>(how == WRITE ? f.owner : f.reader)]++;
    const bool own_streams = *std::max_element(met.begin(), met.end()) > 1;
    for (const Flow &f : all) {
        const int at = how == WRITE ? f.owner : f.reader, other = f.reader + f.owner - at;
        CUDA(cudaSetDevice(at));
        if (!own[at][other]) {
            CUDA(cudaStreamCreateWithFlags(&own[at][other], cudaStreamNonBlocking));
            CUDA(cudaEventCreate(&begin[at][other]));
            CUDA(cudaEventCreate(&end[at][other]));
            for (cudaEvent_t &e : part[at][other]) CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
        }
        /* `read` and `write`: one stream a device, as bench_gathers' first one; else one a pair */
        cudaStream_t s = how == READ_NEW_STREAM || own_streams ? own[at][other] : gpu[at].stream[0];
        rest<<<1, 1, 0, s>>>(1000000);
        CUDA(cudaEventRecord(begin[at][other], s));
        char *to = gpu[f.reader].to + static_cast<size_t>(f.owner) * bytes;
        const char *from = gpu[f.owner].from;
        for (int twice = 0; twice < 2; twice++) {
            if (how == READ_PEER) {
                CUDA(cudaMemcpyPeerAsync(to, f.reader, from, f.owner, bytes, s));
            } else if (how == READ_SMS) {
                copy_by_sms<<<16, 512, 0, s>>>(reinterpret_cast<uint4 *>(to), reinterpret_cast<const uint4 *>(from),
                                               bytes / 16);
                CUDA(cudaGetLastError());
            } else if (how == READ_SPLIT) {
                CUDA(cudaEventRecord(gpu[at].taken, s));
                for (int k = 0; k < 4; k++) {
                    cudaStream_t q = gpu[at].stream[k];
                    const size_t piece = bytes / 4;
                    if (q != s) CUDA(cudaStreamWaitEvent(q, gpu[at].taken, 0));
                    CUDA(cudaMemcpyAsync(to + static_cast<size_t>(k) * piece, from + static_cast<size_t>(k) * piece,
                                         piece, cudaMemcpyDefault, q));
                    CUDA(cudaEventRecord(part[at][other][k], q));
                    if (q != s) CUDA(cudaStreamWaitEvent(s, part[at][other][k], 0));
                }
            } else {
                CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s));
            }
        }
        CUDA(cudaEventRecord(end[at][other], s));
    }
    printf("%-24s %-28s", name, how_name[how]);
    for (const Flow &f : all) {
        const int at = how == WRITE ? f.owner : f.reader, other = f.reader + f.owner - at;
        float ms = 0;
        const double until = fr_monotonic_s() + LIMIT_S;
        CUDA(cudaSetDevice(at));
        while (cudaEventQuery(end[at][other]) == cudaErrorNotReady)
            if (fr_monotonic_s() > until) {
                printf("a flow takes more than %g s\n", LIMIT_S);
                exit(1);
            }
        CUDA(cudaEventElapsedTime(&ms, begin[at][other], end[at][other]));
        printf(" %d<-%d %3.0f", f.reader, f.owner, 2 * static_cast<double>(bytes) / (ms * 1e6));
    }
    printf("\n");
    fflush(stdout);
}

static void pairs(size_t bytes) {
    const int n = gpus;
    printf("%d GPUs, %zu MiB twice a flow, GB/s of each flow\n", n, bytes >> 20);
    for (int d = 1; d < n; d++)
        for (int r = 0; r < n; r++) flows("alone", READ, {{r, (r + d) % n}}, bytes);
    std::vector<std::vector<Flow>> at(static_cast<size_t>(n));
    for (int d = 1; d < n; d++)
        for (int r = 0; r < n; r++) at[static_cast<size_t>(d)].push_back({r, (r + d) % n});
    for (How how : {READ, WRITE, READ_PEER, READ_NEW_STREAM, READ_SPLIT, READ_SMS, READ})
        for (int d = 1; d < n; d++) {
            char name[32];
            snprintf(name, sizeof name, "all, distance %d", d);
            flows(name, how, at[static_cast<size_t>(d)], bytes);
        }
    for (int a = 0; a < n; a++)
        for (int b = a + 1; b < n; b++) flows("both ways", READ, {{a, b}, {b, a}}, bytes);
    for (How how : {READ, WRITE}) {
        flows("disjoint pairs", how, {{0, 1}, {2, 3}}, bytes);
        flows("disjoint pairs", how, {{0, 2}, {1, 3}}, bytes);
        flows("disjoint pairs", how, {{0, 3}, {2, 1}}, bytes);
        flows("crossed", how, {{0, 2}, {1, 3}, {2, 0}, {3, 1}}, bytes);
        flows("backwards, three", how, {{0, 3}, {1, 0}, {2, 1}}, bytes);
        flows("one from three", how, {{0, 1}, {0, 2}, {0, 3}}, bytes / 4);
        flows("three from one", how, {{1, 0}, {2, 0}, {3, 0}}, bytes / 4);
    }
    std::vector<Flow> every;
    for (int r = 0; r < n; r++)
        for (int d = 1; d < n; d++) every.push_back({r, (r + d) % n});
    for (How how : {READ, WRITE, READ_SMS}) flows("every pair", how, every, bytes / 4);
}

int main(int count, char **args) {
    CUDA(cudaGetDeviceCount(&gpus));
    gpus = std::min(gpus, MOST);
    if (gpus < 2) {
        printf("needs two GPUs\n");
        return 77;
    }
    if (count > 1) layers = atoi(args[1]);
    std::vector<size_t> shards;
    for (int i = 2; i < count; i++) shards.push_back(static_cast<size_t>(atoll(args[i])) << 20);
    if (shards.empty()) shards.push_back(shard);
    shard = *std::max_element(shards.begin(), shards.end());
    open();
    const size_t M = size_t{1} << 20;
    if (layers == 0) {
        if (gpus >= 4) pairs(shard);
        return 0;
    }
    const Row rows[] = {
        {"warm-up", 1, 0, LOCKSTEP, false, false, 0, 0},
        {"one GPU alone", 1, 0, FREE, false, false, 1, 0},
        {"one GPU alone", 2, 0, FREE, false, false, 1, 0},
        {"one GPU alone", 3, 0, FREE, false, false, 1, 0},
        {"one GPU from one", 1, 0, FREE, false, false, 1, 1},
        {"all from the next one", 1, 0, FREE, false, false, 0, 1},
        {"lockstep", 1, 0, LOCKSTEP, false, false, 0, 0},
        {"lockstep", 2, 0, LOCKSTEP, false, false, 0, 0},
        {"lockstep", 3, 0, LOCKSTEP, false, false, 0, 0},
        {"free", 1, 0, FREE, false, false, 0, 0},
        {"free", 2, 0, FREE, false, false, 0, 0},
        {"free", 3, 0, FREE, false, false, 0, 0},
        {"apart", 1, 0, APART, false, false, 0, 0},
        {"apart", 2, 0, APART, false, false, 0, 0},
        {"apart", 3, 0, APART, false, false, 0, 0},
        {"apart", 1, 256 * M, APART, false, false, 0, 0},
        {"apart", 1, 64 * M, APART, false, false, 0, 0},
        {"apart", 1, 16 * M, APART, false, false, 0, 0},
        {"apart", 2, 64 * M, APART, false, false, 0, 0},
        {"apart", 3, 64 * M, APART, false, false, 0, 0},
        {"apart", 3, 16 * M, APART, false, false, 0, 0},
        {"free, same order", 1, 0, FREE, true, false, 0, 0},
        {"free, same order", 3, 0, FREE, true, false, 0, 0},
        {"free, same order", 1, 16 * M, FREE, true, false, 0, 0},
        {"push, lockstep", 1, 0, LOCKSTEP, false, true, 0, 0},
        {"push, apart", 1, 0, APART, false, true, 0, 0},
        {"push, apart", 2, 0, APART, false, true, 0, 0},
        {"push, apart", 3, 0, APART, false, true, 0, 0},
        {"push, apart", 1, 16 * M, APART, false, true, 0, 0},
        {"push, same order", 3, 0, FREE, true, true, 0, 0},
        {"lockstep again", 3, 0, LOCKSTEP, false, false, 0, 0},
    };
    for (size_t each : shards) {
        shard = each;
        printf("%d GPUs, shards of %zu MiB, %d layers\n", gpus, shard / M, layers);
        for (const Row &row : rows)
            if (row.pullers <= gpus && row.sources < gpus) measure(row);
    }
    return 0;
}

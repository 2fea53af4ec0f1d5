/*
 * bulk: runs of bytes moved with the bulk copy engine of the SMs, to this GPU's memory or a peer's. One thread a block
 * keeps a ring of chunks in flight, from memory into shared memory and from there to the target, so that a few SMs fill
 * a link. Chunks are taken in an order that spreads every target's over the whole run (stride G, coprime to their
 * number N): no link waits while another is served. Runs begin at, and have, multiples of 16 bytes.
 */
#ifndef FR_BULK_CUH
#define FR_BULK_CUH

#include "kernels/ptx.cuh"

namespace fr {

constexpr int BULK_THREADS = 128, STAGES = 12, AHEAD = 6; /* of the ring: chunks, and those on their way into it */
constexpr int64_t BULK = 16384;

/* About the golden section of n: consecutive multiples are far apart. */
__device__ inline int64_t coprime(int64_t n) {
    int64_t g = n * 618 / 1000 + 1;
    for (;; g++) {
        int64_t u = n, v = g;
        while (v) {
            const int64_t w = u % v;
            u = v;
            v = w;
        }
        if (u == 1) return g;
    }
}

/* A member's run, and where its chunks begin in the numbering of all. */
struct Run {
    const char *from;
    char *to;
    int64_t bytes, start;
};

/* A chunk on its way: what its store needs. */
struct Chunk {
    char *to;
    uint32_t bytes;
};

/* One thread: chunk `at` of the runs begins its way into stage `load` of the ring. */
__device__ __forceinline__ void load_chunk(const Run *run, int64_t at, uint32_t load, uint32_t ring, uint32_t full,
                                           Chunk *flying) {
    while (at >= run[1].start) run++;
    const int64_t offset = (at - run->start) * BULK;
    const uint32_t bytes = static_cast<uint32_t>(min(BULK, run->bytes - offset));
    flying[load] = Chunk{run->to + offset, bytes};
    mbar_expect(full + 8 * load, bytes);
    bulk_load(ring + load * static_cast<uint32_t>(BULK), run->from + offset, bytes, full + 8 * load);
}

/* One thread: moves this block's chunks of the runs, behind which one more says where chunks end. `n`: chunks in all;
 * `full`: STAGES barriers of one arrival. */
__device__ inline void move_chunks(const Run *run, int64_t n, uint32_t ring, uint32_t full, Chunk *flying) {
    if (blockIdx.x >= n) return;
    const int64_t g = n > 1 ? coprime(n) : 1, step = static_cast<int64_t>(gridDim.x) * g % n;
    const int64_t mine = (n - blockIdx.x + gridDim.x - 1) / gridDim.x;
    int64_t at = blockIdx.x * g % n;
    uint32_t load = 0, store = 0, parity = 0; /* stages */
    for (int64_t i = 0; i < mine + AHEAD; i++) {
        if (i < mine) {
            /* The store that used this stage has read it: of those issued since, STAGES - AHEAD - 1 may be out. */
            if (i >= STAGES) bulk_wait_read<STAGES - AHEAD - 1>();
            load_chunk(run, at, load, ring, full, flying);
            load = load + 1 == STAGES ? 0 : load + 1;
            at += step;
            if (at >= n) at -= n;
        }
        if (i >= AHEAD) {
            mbar_wait(full + 8 * store, parity);
            bulk_store(flying[store].to, ring + store * static_cast<uint32_t>(BULK), flying[store].bytes);
            if (++store == STAGES) store = 0, parity ^= 1;
        }
    }
    bulk_wait_all();
}

constexpr int TAKE = 4; /* chunks at a time: some 1.6 us of a block, more than an atomic takes */

/*
 * The same, chunks being taken some at a time as blocks get on, from a counter that is zero at first. Where a link
 * bounds them blocks don't get on alike: the GPU's clusters of SMs share it evenly, so that a block amid many of its
 * cluster has a smaller part, and with as many chunks for each the last ones are late (kernels/measured/README.md: 24
 * blocks were slower than 16). What is wanted next is asked for before it is needed. A block by itself is slower, 34
 * GB/s in place of 41.
 */
__device__ inline void take_chunks(const Run *run, int64_t n, uint32_t *taken, uint32_t ring, uint32_t full,
                                   Chunk *flying) {
    if (n == 0) return;
    const int64_t g = n > 1 ? coprime(n) : 1;
    const uint32_t take = static_cast<uint32_t>(min(int64_t{TAKE}, n / (4 * gridDim.x) + 1));
    int64_t next = atomicAdd(taken, take), after = atomicAdd(taken, take), at = next * g % n;
    int64_t loaded = 0, stored = 0;
    uint32_t load = 0, store = 0, parity = 0, left = take; /* load, store: stages */
    while (next < n || stored < loaded) {
        if (next < n) {
            /* The store that used this stage has read it: of those issued since, STAGES - AHEAD - 1 may be out. */
            if (loaded >= STAGES) bulk_wait_read<STAGES - AHEAD - 1>();
            load_chunk(run, at, load, ring, full, flying);
            load = load + 1 == STAGES ? 0 : load + 1;
            loaded++;
            next++;
            at += g;
            if (at >= n) at -= n;
            if (--left == 0) {
                next = after;
                at = next * g % n;
                left = take;
                after = atomicAdd(taken, take);
            }
        }
        if (loaded - stored > AHEAD || (next >= n && stored < loaded)) {
            mbar_wait(full + 8 * store, parity);
            bulk_store(flying[store].to, ring + store * static_cast<uint32_t>(BULK), flying[store].bytes);
            stored++;
            if (++store == STAGES) store = 0, parity ^= 1;
        }
    }
    bulk_wait_all();
}

} // namespace fr
#endif

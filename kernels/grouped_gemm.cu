/*
 * Grouped GEMM for Hopper: TMA -> shared memory ring -> wgmma, persistent blocks, raw PTX (kernels.h says what it
 * does).
 *
 * A block is three warpgroups: one producer and two consumers that share a tile of 128 rows x 256 columns, 64 x 256
 * each, K in steps of 64, four stages. The rows of an expert are cut into blocks of 64: pairs of them are full tiles,
 * an odd one left over is a half tile (64 rows; the consumers split its columns), so an expert wastes 32 rows on
 * average rather than 64. Rows past an expert's end are computed and not stored: A needs no padding.
 *
 * Tiles are taken from one counter as blocks get free, in an order that keeps what is in flight in L2: expert by
 * expert, groups of 16 column tiles, all row tiles of a group before the next group. (A fixed deal was tried first:
 * blocks that share weights drift apart at every half tile until each reads them from memory again, 466 against 641
 * TFLOP/s for uneven against equal groups.) Who computes a tile does not change its bits: every tile sums over K in
 * one fixed order. The counter ends at zero again, whatever the launch.
 *
 * With CLUSTER = 2 two blocks take 256 rows of the same columns: each loads half of the weight tile and multicasts it
 * to both, a third less traffic from L2. 128 rows left over are a half tile each; 64 rows left over go to both blocks
 * with a column tile each. GATHER reads A through token_of_row with cp.async instead of TMA.
 *
 * Weights may lie in two places: a run of experts is read through a second tensor map. The producer picks the map once
 * a tile; nothing else knows.
 */
#include "kernels/device.cuh"
#include "kernels/ptx.cuh"

namespace {
using namespace fr;

constexpr int TILE_M = 128, TILE_N = 256, TILE_K = 64, HALF_M = 64;
constexpr int STAGES = 4, THREADS = 384, N_GROUP = 16;
constexpr int A_BYTES = TILE_M * TILE_K * 2, A_HALF_BYTES = A_BYTES / 2, B_BYTES = TILE_N * TILE_K * 2;
constexpr int WARP_STAGING = 16 * 64 * 2, CONSUMER_WARPS = 8;
constexpr int MAX_E = FR_K_MAX_EXPERTS;

struct Shared {
    uint8_t a[STAGES][A_BYTES]; /* 1024-byte aligned, 128-byte swizzle */
    uint8_t b[STAGES][B_BYTES];
    uint8_t staging[CONSUMER_WARPS][WARP_STAGING];
    uint64_t full[STAGES], empty[STAGES];
    uint64_t unit_full[2], unit_empty[2];
    int32_t unit[2];               /* the next unit, published while this one is in work */
    int32_t first_unit[MAX_E + 1]; /* units before expert e; [E]: all */
};
static_assert(sizeof(Shared) <= 232448, "shared memory of a Hopper block");

struct Params {
    const fr_bf16 *a;
    fr_bf16 *c;
    const int32_t *offsets, *token_of_row;
    uint32_t *counter;
    int E, N, K, tiles;     /* tiles: along N */
    int skew;               /* steps that the second consumer starts after the first */
    int own_first, own_end; /* experts whose weights are read through the second map; equal = none */
    int gap;                /* experts that the first map leaves out there */
};

/* Where the weights of a tile are: the map to read them through and their first row in it. */
struct Weights {
    const CUtensorMap *map;
    int row;
};

__device__ __forceinline__ Weights weights_of(const Params &p, const CUtensorMap *map_b, const CUtensorMap *map_own,
                                              int expert) {
    const bool own = expert >= p.own_first && expert < p.own_end;
    const int place = expert - (own ? p.own_first : expert >= p.own_end ? p.gap : 0);
    return {own ? map_own : map_b, place * p.N};
}

/* Blocks of 64 rows that expert e has. */
__device__ __forceinline__ int row_blocks(const Params &p, int e) {
    const int rows = p.offsets[e + 1] - p.offsets[e];
    return rows > 0 ? (rows + HALF_M - 1) / HALF_M : 0;
}

/* Units of an expert with this many row blocks: whole ones, then a pair of blocks (clusters only), then a single. */
template <int CLUSTER> __device__ __forceinline__ int units_of(int blocks, int tiles) {
    if constexpr (CLUSTER == 1)
        return (blocks / 2 + blocks % 2) * tiles;
    else
        return (blocks / 4 + blocks % 4 / 2) * tiles + blocks % 2 * ((tiles + 1) / 2);
}

/* One warp fills first_unit: each lane sums a run of experts, scans over lanes, and writes. */
template <int CLUSTER> __device__ void plan_units(Shared &s, const Params &p, int lane) {
    const int per = (p.E + 31) / 32, begin = min(lane * per, p.E), end = min(begin + per, p.E);
    int sum = 0;
    for (int e = begin; e < end; e++) sum += units_of<CLUSTER>(row_blocks(p, e), p.tiles);
    int scan = sum;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const int o = __shfl_up_sync(~0u, scan, d);
        if (lane >= d) scan += o;
    }
    int run = scan - sum;
    for (int e = begin; e < end; e++) {
        s.first_unit[e] = run;
        run += units_of<CLUSTER>(row_blocks(p, e), p.tiles);
    }
    if (lane == 31) s.first_unit[p.E] = scan;
}

/* What this block computes of a unit: 128 rows, or 64 if half, from `row`, in column tile `column`. */
struct Tile {
    int expert, row, row_end, column;
    bool half, shared_b; /* shared_b: the cluster's blocks work on the same column tile */
};

/* Which tile a unit is for the block of this rank; `expert` only moves forward, as units do. */
template <int CLUSTER>
__device__ __forceinline__ Tile decode(const Shared &s, const Params &p, int unit, int &expert, int rank) {
    while (unit >= s.first_unit[expert + 1]) expert++;
    int local = unit - s.first_unit[expert];
    const int blocks = row_blocks(p, expert), whole = blocks / (2 * CLUSTER);
    Tile t;
    t.expert = expert, t.row = p.offsets[expert], t.row_end = p.offsets[expert + 1];
    t.half = false, t.shared_b = true;
    if (local < whole * p.tiles) {
        const int group = local / (whole * N_GROUP);
        local -= group * whole * N_GROUP;
        const int width = min(N_GROUP, p.tiles - group * N_GROUP);
        t.column = group * N_GROUP + local % width;
        t.row += (local / width * CLUSTER + rank) * TILE_M;
        return t;
    }
    local -= whole * p.tiles;
    t.half = true;
    t.row += whole * CLUSTER * TILE_M;
    if (CLUSTER == 1) {
        t.column = local;
        return t;
    }
    const bool pair = blocks % 4 >= 2;
    if (pair && local < p.tiles) {
        t.column = local, t.row += rank * HALF_M;
        return t;
    }
    if (pair) local -= p.tiles, t.row += 2 * HALF_M;
    t.column = 2 * local + rank, t.shared_b = false; /* may be one past the last column: computed, not stored */
    return t;
}

struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

/* The turns through the published units: slot and phase of turn i. */
struct Turn {
    int slot = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        slot ^= 1;
        if (!slot) phase ^= 1;
    }
};

/*
 * Takes a unit from the counter and publishes it to every role of every block of the cluster. Each cluster's first unit
 * is its own number; a launch takes max(units - clusters, 0) + clusters more, so atomicInc with that limit leaves the
 * counter at zero.
 */
template <int CLUSTER>
__device__ __forceinline__ int publish(Shared &s, const Params &p, const Turn &turn, int clusters, int units) {
    const unsigned limit = static_cast<unsigned>(max(units - clusters, 0) + clusters) - 1;
    const int next = static_cast<int>(atomicInc(p.counter, limit)) + clusters;
    if constexpr (CLUSTER == 1) {
        *const_cast<volatile int32_t *>(&s.unit[turn.slot]) = next;
        mbar_arrive(smem_addr(&s.unit_full[turn.slot]));
    } else {
        for (uint32_t r = 0; r < CLUSTER; r++) {
            store_at(smem_addr(&s.unit[turn.slot]), r, next);
            mbar_arrive_release_at(smem_addr(&s.unit_full[turn.slot]), r);
        }
    }
    return next;
}

/* One thread of the first block hands out units, one ahead of the slowest reader: further would unbalance the end. */
template <int CLUSTER> __device__ void schedule(Shared &s, const Params &p, int clusters) {
    const int units = s.first_unit[p.E];
    Turn turn;
    while (publish<CLUSTER>(s, p, turn, clusters, units) < units) {
        mbar_wait<CLUSTER != 1>(smem_addr(&s.unit_empty[turn.slot]), turn.phase);
        turn.advance();
    }
}

/* Waits for the next unit. Whoever speaks for a warp then frees the slot: nothing was written, so nothing is released
 * (a release at cluster scope after the stores of a tile waits for all of them, thousands of cycles). */
template <int CLUSTER> __device__ __forceinline__ int read_next(Shared &s, Turn &turn, bool whole_warp, bool speaks) {
    mbar_wait<CLUSTER != 1>(smem_addr(&s.unit_full[turn.slot]), turn.phase);
    const int next = *const_cast<volatile int32_t *>(&s.unit[turn.slot]);
    if (whole_warp) __syncwarp();
    if (speaks) {
        if constexpr (CLUSTER == 1)
            mbar_arrive(smem_addr(&s.unit_empty[turn.slot]));
        else
            mbar_arrive_at(smem_addr(&s.unit_empty[turn.slot]), 0);
    }
    turn.advance();
    return next;
}

/* One thread feeds the ring by TMA. */
template <int CLUSTER>
__device__ void produce_tma(Shared &s, const Params &p, const CUtensorMap *map_a, const CUtensorMap *map_b,
                            const CUtensorMap *map_own, int cluster, int rank) {
    Ring ring;
    Turn turn;
    const int steps = (p.K + TILE_K - 1) / TILE_K, units = s.first_unit[p.E];
    int expert = 0;
    for (int unit = cluster; unit < units; unit = read_next<CLUSTER>(s, turn, false, true)) {
        const Tile t = decode<CLUSTER>(s, p, unit, expert, rank);
        const Weights from = weights_of(p, map_b, map_own, t.expert);
        const int b_row = from.row + t.column * TILE_N;
        for (int k = 0; k < steps; k++) {
            mbar_wait(smem_addr(&s.empty[ring.stage]), ring.phase ^ 1);
            const uint32_t full = smem_addr(&s.full[ring.stage]), a = smem_addr(s.a[ring.stage]);
            const uint32_t b = smem_addr(s.b[ring.stage]);
            mbar_expect(full, B_BYTES + (t.half ? A_HALF_BYTES : A_BYTES));
            tma_load(a, map_a, k * TILE_K, t.row, full);
            if (!t.half) tma_load(a + A_HALF_BYTES, map_a, k * TILE_K, t.row + HALF_M, full);
            if (CLUSTER == 1) {
                tma_load(b, from.map, k * TILE_K, b_row, full);
            } else if (t.shared_b) {
                tma_load_multicast(b + static_cast<uint32_t>(rank) * (B_BYTES / 2), from.map, k * TILE_K,
                                   b_row + rank * (TILE_N / 2), full, (1 << CLUSTER) - 1);
            } else {
                tma_load(b, from.map, k * TILE_K, b_row, full);
                tma_load(b + B_BYTES / 2, from.map, k * TILE_K, b_row + TILE_N / 2, full);
            }
            ring.advance();
        }
    }
}

/*
 * 128 threads gather the rows of A with cp.async (8 lanes a row, 16 rows a step), thread 0 also loads B by TMA. The
 * arrival for a stage comes LAG stages later, once its copies are complete and fenced for the async proxy (wgmma).
 */
__device__ void produce_gather(Shared &s, const Params &p, const CUtensorMap *map_b, const CUtensorMap *map_own,
                               int cluster, int clusters) {
    constexpr int LAG = 2, ROWS = TILE_M / 16;
    const int thread = static_cast<int>(threadIdx.x), chunk = thread % 8, first = thread / 8;
    /* row & 7 is the same for the rows first + 16 i, so one swizzled place serves all */
    const uint32_t place = static_cast<uint32_t>(first * 128 + ((chunk ^ (first & 7)) * 16));
    const int steps = (p.K + TILE_K - 1) / TILE_K, units = s.first_unit[p.E];
    Ring ring;
    Turn turn;
    int done = 0; /* the stage whose arrival is next */
    int issued = 0, unit = cluster, expert = 0;
    for (;;) {
        if (thread == 0) {
            mbar_wait(smem_addr(&s.unit_empty[turn.slot]), turn.phase ^ 1);
            publish<1>(s, p, turn, clusters, units);
        }
        if (unit < units) {
            const Tile t = decode<1>(s, p, unit, expert, 0);
            const Weights weights = weights_of(p, map_b, map_own, t.expert);
            const int b_row = weights.row + t.column * TILE_N;
            int token[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int row = t.row + first + 16 * i;
                token[i] = row < t.row_end ? p.token_of_row[row] : -1;
            }
            for (int k = 0; k < steps; k++) {
                mbar_wait(smem_addr(&s.empty[ring.stage]), ring.phase ^ 1);
                const uint32_t full = smem_addr(&s.full[ring.stage]), a = smem_addr(s.a[ring.stage]) + place;
                if (thread == 0) {
                    mbar_expect(full, B_BYTES);
                    tma_load(smem_addr(s.b[ring.stage]), weights.map, k * TILE_K, b_row, full);
                }
                const int x = k * TILE_K + chunk * 8;
#pragma unroll
                for (int i = 0; i < ROWS; i++) {
                    if (i >= ROWS / 2 && t.half) break;
                    const bool take = x < p.K && token[i] >= 0;
                    const fr_bf16 *from = p.a + (take ? static_cast<int64_t>(token[i]) * p.K + x : 0);
                    cp_async16(a + static_cast<uint32_t>(i) * 16 * 128, from, take ? 16 : 0);
                }
                cp_async_commit();
                if (++issued > LAG) {
                    cp_async_wait<LAG>();
                    fence_proxy_async();
                    mbar_arrive(smem_addr(&s.full[done]));
                    done = done + 1 == STAGES ? 0 : done + 1;
                }
                ring.advance();
            }
        }
        __syncwarp();
        const int next = read_next<1>(s, turn, true, thread % 32 == 0);
        if (next >= units) break;
        unit = next;
    }
    cp_async_wait<0>();
    fence_proxy_async();
    for (int left = min(issued, LAG); left > 0; left--) {
        mbar_arrive(smem_addr(&s.full[done]));
        done = done + 1 == STAGES ? 0 : done + 1;
    }
}

/* A consumer warp is done with a stage: tell every producer that writes into it. */
template <int CLUSTER> __device__ __forceinline__ void release(Shared &s, int stage, int lane) {
    const uint32_t bar = smem_addr(&s.empty[stage]);
    if constexpr (CLUSTER == 1) {
        if (lane == 0) mbar_arrive(bar);
    } else {
        if (lane < CLUSTER) mbar_arrive_at(bar, static_cast<uint32_t>(lane));
    }
}

/* d = A tile * B tile^T over all of K. HALF: this warpgroup takes all 64 rows and half of the columns. */
template <bool HALF, int CLUSTER>
__device__ __forceinline__ void multiply(Shared &s, Ring &ring, float (&d)[128], int steps, int group, int lane,
                                         int signal_at) {
    const uint32_t a_at = HALF ? 0 : static_cast<uint32_t>(group) * A_HALF_BYTES;
    const uint32_t b_at = HALF ? static_cast<uint32_t>(group) * (B_BYTES / 2) : 0;
    int previous = 0;
    for (int k = 0; k < steps; k++) {
        mbar_wait(smem_addr(&s.full[ring.stage]), ring.phase);
        const uint64_t a = wgmma_desc(smem_addr(s.a[ring.stage]) + a_at);
        const uint64_t b = wgmma_desc(smem_addr(s.b[ring.stage]) + b_at);
        wgmma_arrive();
#pragma unroll
        for (int j = 0; j < TILE_K / 16; j++) {
            if constexpr (HALF)
                wgmma_n128(d, a + 2 * j, b + 2 * j, k | j);
            else
                wgmma_n256(d, a + 2 * j, b + 2 * j, k | j);
        }
        wgmma_commit();
        if (k) {
            wgmma_wait<1>(); /* the products of the step before are done with their stage */
            release<CLUSTER>(s, previous, lane);
        }
        previous = ring.stage;
        ring.advance();
        if (k == signal_at) named_arrive(1, 256);
    }
    wgmma_wait<0>();
    release<CLUSTER>(s, previous, lane);
}

__device__ __forceinline__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<const uint32_t *>(&v);
}

/* The lane, read anew: what is derived from it then needs no register during the products. */
__device__ __forceinline__ int lane_again() {
    int lane;
    asm volatile("mov.u32 %0, %laneid;" : "=r"(lane));
    return lane;
}

/* One warp's 16 rows, 64 output columns at a time: registers -> own staging -> rows of 128 bytes. */
template <bool SWIGLU>
__device__ __forceinline__ void store(uint32_t staging, const Params &p, float (&d)[128], const Tile &t, int row,
                                      int column) {
    const int width = SWIGLU ? p.N / 2 : p.N;
    constexpr int PASSES = SWIGLU ? 2 : 4;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass >= PASSES / 2 && t.half) break;
        const int lane = lane_again();
        const int write_row = lane % 16, write_chunk = lane / 16; /* stmatrix: lanes 0-7 rows 0-7, 8-15 rows 8-15 */
        __syncwarp();
#pragma unroll
        for (int c = 0; c < 4; c++) { /* 16 columns */
            uint32_t v[4];
            if constexpr (SWIGLU) {
                const int i = pass * 64 + c * 16; /* gate 8, up 8, gate 8, up 8 columns */
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int g = i + 8 * h, u = g + 4;
                    v[2 * h] = pack(silu_mul(d[g], d[u]), silu_mul(d[g + 1], d[u + 1]));
                    v[2 * h + 1] = pack(silu_mul(d[g + 2], d[u + 2]), silu_mul(d[g + 3], d[u + 3]));
                }
            } else {
                const int i = pass * 32 + c * 8;
#pragma unroll
                for (int h = 0; h < 4; h++) v[h] = pack(d[i + 2 * h], d[i + 2 * h + 1]);
            }
            const int chunk = 2 * c + write_chunk;
            stmatrix4(staging + static_cast<uint32_t>(write_row * 128 + ((chunk ^ (write_row & 7)) * 16)), v[0], v[1],
                      v[2], v[3]);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = lane / 8 + 4 * i, chunk = lane % 8, x = column + pass * 64 + chunk * 8;
            uint4 v;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                         : "r"(staging + static_cast<uint32_t>(r * 128 + ((chunk ^ (r & 7)) * 16)))
                         : "memory");
            if (row + r < t.row_end && x < width)
                *reinterpret_cast<uint4 *>(p.c + static_cast<int64_t>(row + r) * width + x) = v;
        }
    }
}

template <bool SWIGLU, int CLUSTER> __device__ void consume(Shared &s, const Params &p, int cluster, int rank) {
    const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128, warp = thread / 32,
              lane = thread % 32;
    const uint32_t staging = smem_addr(s.staging[warp]);
    const int steps = (p.K + TILE_K - 1) / TILE_K, units = s.first_unit[p.E];
    Ring ring;
    Turn turn;
    int expert = 0;
    float d[128];
    /* The consumers run a few steps apart: while one stores, the other has the tensor cores to itself. */
    int signal_at = -1;
    if (p.skew && cluster < units) {
        if (group == 0)
            signal_at = min(p.skew, steps) - 1;
        else
            named_sync(1, 256);
    }
    for (int unit = cluster; unit < units;) {
        const Tile t = decode<CLUSTER>(s, p, unit, expert, rank);
        if (t.half)
            multiply<true, CLUSTER>(s, ring, d, steps, group, lane, signal_at);
        else
            multiply<false, CLUSTER>(s, ring, d, steps, group, lane, signal_at);
        signal_at = -1;
        unit = read_next<CLUSTER>(s, turn, true, lane == 0); /* before the stores: see read_next */
        const int row = t.row + (t.half ? warp % 4 : warp) * 16;
        const int column = t.column * TILE_N + (t.half ? group * (TILE_N / 2) : 0);
        store<SWIGLU>(staging, p, d, t, row, SWIGLU ? column / 2 : column);
    }
}

template <bool SWIGLU, int CLUSTER, bool GATHER>
__global__ void __launch_bounds__(THREADS, 1)
    grouped_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                   const __grid_constant__ CUtensorMap map_own, const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) uint8_t raw[];
    Shared &s = *reinterpret_cast<Shared *>(raw);
    const int rank = CLUSTER == 1 ? 0 : static_cast<int>(cluster_rank());
    if (threadIdx.x == 0) {
        if (smem_addr(raw) & 1023) __trap();
        for (int i = 0; i < STAGES; i++) {
            mbar_init(smem_addr(&s.full[i]), GATHER ? 1 + 128 : 1);
            mbar_init(smem_addr(&s.empty[i]), CONSUMER_WARPS * CLUSTER);
        }
        for (int i = 0; i < 2; i++) { /* readers: the consumer warps and the producers */
            mbar_init(smem_addr(&s.unit_full[i]), 1);
            mbar_init(smem_addr(&s.unit_empty[i]), CONSUMER_WARPS * CLUSTER + (GATHER ? 4 : CLUSTER));
        }
        fence_barrier_init();
        if (!GATHER) tma_prefetch(&map_a);
        tma_prefetch(&map_b);
        if (p.own_end > p.own_first) tma_prefetch(&map_own);
    } else if (threadIdx.x / 32 == 1) {
        plan_units<CLUSTER>(s, p, static_cast<int>(threadIdx.x % 32));
    }
    if constexpr (CLUSTER == 1)
        __syncthreads();
    else
        cluster_sync();

    const int cluster = static_cast<int>(blockIdx.x) / CLUSTER, clusters = static_cast<int>(gridDim.x) / CLUSTER;
    if (threadIdx.x < 128) { /* what the producers give up is what the consumers take: 128 * 128 or 112 * 128 */
        regs_fewer<GATHER ? 56 : 40>();
        if constexpr (GATHER)
            produce_gather(s, p, &map_b, &map_own, cluster, clusters);
        else if (threadIdx.x == 0)
            produce_tma<CLUSTER>(s, p, &map_a, &map_b, &map_own, cluster, rank);
        else if (threadIdx.x == 32 && rank == 0)
            schedule<CLUSTER>(s, p, clusters);
    } else {
        regs_more<GATHER ? 224 : 232>();
        consume<SWIGLU, CLUSTER>(s, p, cluster, rank);
    }
    if constexpr (CLUSTER != 1) { /* a block's memory must outlive the other's multicasts and arrivals */
        __syncwarp();
        cluster_sync();
    }
}

using encode_fn = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                               const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                               CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

encode_fn find_encode() {
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        return nullptr;
    return reinterpret_cast<encode_fn>(f);
}

/* A map over bf16 [rows, columns], boxes of box_rows x 64 columns, 128-byte swizzle, zeros outside. */
bool make_map(CUtensorMap *map, const fr_bf16 *base, int64_t rows, int64_t columns, int box_rows) {
    static const encode_fn encode = find_encode(); /* the driver's entry point; the same for the whole process */
    if (!encode) return false;
    const cuuint64_t dims[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(columns) * 2};
    const cuuint32_t box[2] = {TILE_K, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<fr_bf16 *>(base), dims, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <bool SWIGLU, int CLUSTER, bool GATHER>
cudaError_t launch(const fr_k_grouped_args &g, int skew, cudaStream_t stream) {
    auto kernel = grouped_kernel<SWIGLU, CLUSTER, GATHER>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    int device = 0, sms = 0;
    if (!e) e = cudaGetDevice(&device);
    if (!e) e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (e) return e;
    if (g.sm_limit > 0 && g.sm_limit < sms) sms = g.sm_limit;
    sms = sms / CLUSTER * CLUSTER;
    if (!sms) return cudaErrorInvalidValue;

    CUtensorMap map_a, map_b, map_own;
    const int own = g.own ? g.own_end - g.own_first : 0, gap = g.packed ? own : 0;
    const int64_t others = static_cast<int64_t>(g.E - gap) * g.N;
    if (own && !make_map(&map_own, g.own, static_cast<int64_t>(own) * g.N, g.K, TILE_N / CLUSTER))
        return cudaErrorInvalidValue;
    if (g.E == gap)
        map_b = map_own; /* nothing lies there */
    else if (!make_map(&map_b, g.b, others, g.K, TILE_N / CLUSTER))
        return cudaErrorInvalidValue;
    if (!own) map_own = map_b;
    if (GATHER)
        map_a = map_b; /* unused */
    else if (!make_map(&map_a, g.a, g.rows, g.K, HALF_M))
        return cudaErrorInvalidValue;
    const Params p = {g.a,
                      g.c,
                      g.offsets,
                      g.token_of_row,
                      g.counter,
                      g.E,
                      g.N,
                      g.K,
                      (g.N + TILE_N - 1) / TILE_N,
                      skew,
                      own ? g.own_first : 0,
                      own ? g.own_end : 0,
                      gap};

    cudaLaunchAttribute attribute[1];
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = CLUSTER;
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(sms));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = sizeof(Shared);
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = CLUSTER == 1 ? 0 : 1;
    return cudaLaunchKernelEx(&config, kernel, map_a, map_b, map_own, p);
}

template <int CLUSTER, bool GATHER> cudaError_t launch_act(const fr_k_grouped_args &g, int skew, cudaStream_t stream) {
    return g.swiglu ? launch<true, CLUSTER, GATHER>(g, skew, stream) : launch<false, CLUSTER, GATHER>(g, skew, stream);
}

bool aligned(const void *p) {
    return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}
} // namespace

cudaError_t fr_k_grouped_gemm_variant(const fr_k_grouped_args *g, int variant, cudaStream_t stream) {
    if (g->rows < 0 || g->rows > INT32_MAX || g->E < 1 || g->E > MAX_E || g->N < 8 || g->K < 8 || g->K % 8 ||
        g->N % (g->swiglu ? 16 : 8) || static_cast<int64_t>(g->E) * g->N > INT32_MAX || !g->offsets || !g->counter ||
        !aligned(g->a) || !aligned(g->b) || !aligned(g->c) || !aligned(g->own) ||
        (g->own && (g->own_first < 0 || g->own_end < g->own_first || g->own_end > g->E)))
        return cudaErrorInvalidValue;
    if (g->rows == 0) return cudaSuccess;
    const int skew = variant == FR_K_GROUPED_SINGLE_SKEW || variant == FR_K_GROUPED_CLUSTER_SKEW ? 2 : 0;
    if (g->token_of_row) return launch_act<1, true>(*g, skew, stream);
    switch (variant) {
    case FR_K_GROUPED_SINGLE:
    case FR_K_GROUPED_SINGLE_SKEW:
        return launch_act<1, false>(*g, skew, stream);
    case FR_K_GROUPED_CLUSTER:
    case FR_K_GROUPED_CLUSTER_SKEW:
        return launch_act<2, false>(*g, skew, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

int fr_k_grouped_default(int64_t rows, int32_t E) {
    return E > 0 && rows / E >= 512 ? FR_K_GROUPED_CLUSTER_SKEW : FR_K_GROUPED_SINGLE;
}

cudaError_t fr_k_grouped_gemm(const fr_k_grouped_args *g, cudaStream_t stream) {
    return fr_k_grouped_gemm_variant(g, fr_k_grouped_default(g->rows, g->E), stream);
}

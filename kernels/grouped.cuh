/*
 * grouped: what the grouped GEMMs share, whatever their operands: the ring that one thread feeds by TMA, the units of
 * work and who takes which, the bf16 epilogue, the launch. grouped_gemm.cu (bf16) describes the scheme; grouped_fp8.cu
 * is the other user. A step along K is 128 bytes of a row of either operand.
 */
#ifndef FR_GROUPED_CUH
#define FR_GROUPED_CUH

#include "kernels/device.cuh"
#include "kernels/ptx.cuh"
#include <type_traits>

namespace fr {
namespace grouped {

constexpr int TILE_M = 128, TILE_N = 256, STEP_BYTES = 128, HALF_M = 64; /* STEP_BYTES: of a row, a step along K */
constexpr int STAGES = 4, THREADS = 384, N_GROUP = 16;
constexpr int A_BYTES = TILE_M * STEP_BYTES, A_HALF_BYTES = A_BYTES / 2, B_BYTES = TILE_N * STEP_BYTES;
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
    fr_bf16 *c;
    const int32_t *offsets; /* NULL: one expert has all rows */
    uint32_t *counter;
    int E, N, K, tiles; /* tiles: along N */
    int rows;
    int skew;               /* steps that the second consumer starts after the first */
    int own_first, own_end; /* experts whose weights are read through the second map; equal = none */
    int gap;                /* experts that the first map leaves out there */
};

__device__ __forceinline__ int first_row(const Params &p, int e) {
    return p.offsets ? p.offsets[e] : e ? p.rows : 0;
}

/* Where the weights of an expert are: in the own shard or not, and which place there. */
struct Place {
    bool own;
    int index;
};

__device__ __forceinline__ Place place_of(const Params &p, int expert) {
    const bool own = expert >= p.own_first && expert < p.own_end;
    return {own, expert - (own ? p.own_first : expert >= p.own_end ? p.gap : 0)};
}

/* Blocks of 64 rows that expert e has. */
__device__ __forceinline__ int row_blocks(const Params &p, int e) {
    const int rows = first_row(p, e + 1) - first_row(p, e);
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
    t.expert = expert, t.row = first_row(p, expert), t.row_end = first_row(p, expert + 1);
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

/* One thread feeds the ring by TMA; TILE_K elements are a step. */
template <int CLUSTER, int TILE_K>
__device__ void produce_tma(Shared &s, const Params &p, const CUtensorMap *map_a, const CUtensorMap *map_b,
                            const CUtensorMap *map_own, int cluster, int rank) {
    Ring ring;
    Turn turn;
    const int steps = (p.K + TILE_K - 1) / TILE_K, units = s.first_unit[p.E];
    int expert = 0;
    for (int unit = cluster; unit < units; unit = read_next<CLUSTER>(s, turn, false, true)) {
        const Tile t = decode<CLUSTER>(s, p, unit, expert, rank);
        const Place place = place_of(p, t.expert);
        const CUtensorMap *weights = place.own ? map_own : map_b;
        const int b_row = place.index * p.N + t.column * TILE_N;
        for (int k = 0; k < steps; k++) {
            mbar_wait(smem_addr(&s.empty[ring.stage]), ring.phase ^ 1);
            const uint32_t full = smem_addr(&s.full[ring.stage]), a = smem_addr(s.a[ring.stage]);
            const uint32_t b = smem_addr(s.b[ring.stage]);
            mbar_expect(full, B_BYTES + (t.half ? A_HALF_BYTES : A_BYTES));
            tma_load(a, map_a, k * TILE_K, t.row, full);
            if (!t.half) tma_load(a + A_HALF_BYTES, map_a, k * TILE_K, t.row + HALF_M, full);
            if (CLUSTER == 1) {
                tma_load(b, weights, k * TILE_K, b_row, full);
            } else if (t.shared_b) {
                tma_load_multicast(b + static_cast<uint32_t>(rank) * (B_BYTES / 2), weights, k * TILE_K,
                                   b_row + rank * (TILE_N / 2), full, (1 << CLUSTER) - 1);
            } else {
                tma_load(b, weights, k * TILE_K, b_row, full);
                tma_load(b + B_BYTES / 2, weights, k * TILE_K, b_row + TILE_N / 2, full);
            }
            ring.advance();
        }
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

/* Barriers and the units of each expert; every thread of the block. PRODUCERS arrive on `full`, READERS of them take
 * units (so do the consumers). */
template <int CLUSTER, int PRODUCERS, int READERS>
__device__ __forceinline__ void set_up(Shared &s, const Params &p, const CUtensorMap *map_a, const CUtensorMap *map_b,
                                       const CUtensorMap *map_own) {
    if (threadIdx.x == 0) {
        if (smem_addr(&s) & 1023) __trap();
        for (int i = 0; i < STAGES; i++) {
            mbar_init(smem_addr(&s.full[i]), PRODUCERS);
            mbar_init(smem_addr(&s.empty[i]), CONSUMER_WARPS * CLUSTER);
        }
        for (int i = 0; i < 2; i++) { /* readers: the consumer warps and the producers */
            mbar_init(smem_addr(&s.unit_full[i]), 1);
            mbar_init(smem_addr(&s.unit_empty[i]), CONSUMER_WARPS * CLUSTER + READERS);
        }
        fence_barrier_init();
        if (map_a) tma_prefetch(map_a);
        tma_prefetch(map_b);
        if (p.own_end > p.own_first) tma_prefetch(map_own);
    } else if (threadIdx.x / 32 == 1) {
        plan_units<CLUSTER>(s, p, static_cast<int>(threadIdx.x % 32));
    }
    if constexpr (CLUSTER == 1)
        __syncthreads();
    else
        cluster_sync();
}

/* A block's memory must outlive the other's multicasts and arrivals. */
template <int CLUSTER> __device__ __forceinline__ void finish() {
    if constexpr (CLUSTER != 1) {
        __syncwarp();
        cluster_sync();
    }
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

/* One warp's 16 rows, 64 output columns at a time: registers -> own staging -> rows of 128 bytes, by TMA (map_c, if
 * given) where all 16 belong to the expert. */
template <bool SWIGLU>
__device__ __forceinline__ void store(uint32_t staging_0, uint32_t staging_1, const Params &p, const CUtensorMap *map_c,
                                      float (&d)[128], const Tile &t, int row, int column) {
    const int width = SWIGLU ? p.N / 2 : p.N;
    const bool whole = map_c && row + 16 <= t.row_end;
    constexpr int PASSES = SWIGLU ? 2 : 4;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        if (pass >= PASSES / 2 && t.half) break;
        const int lane = lane_again();
        const int write_row = lane % 16, write_chunk = lane / 16; /* stmatrix: lanes 0-7 rows 0-7, 8-15 rows 8-15 */
        const uint32_t staging = pass & 1 ? staging_1 : staging_0;
        if (map_c && lane == 0) { /* the last tile's stores; two passes ago */
            if (pass == 0)
                bulk_wait_read<0>();
            else
                bulk_wait_read<1>();
        }
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
        if (whole) {
            fence_proxy_async();
            __syncwarp();
            if (lane == 0) tma_store(map_c, column + pass * 64, row, staging);
            continue;
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

/* f(blocks of a cluster, whether its consumers are kept apart) of a variant, as types. */
template <typename F> cudaError_t with_variant(int variant, F f) {
    constexpr std::integral_constant<int, 1> single{};
    constexpr std::integral_constant<int, 2> pair{};
    switch (variant) {
    case FR_K_GROUPED_SINGLE:
        return f(single, std::false_type());
    case FR_K_GROUPED_SINGLE_SKEW:
        return f(single, std::true_type());
    case FR_K_GROUPED_CLUSTER:
        return f(pair, std::false_type());
    case FR_K_GROUPED_CLUSTER_SKEW:
        return f(pair, std::true_type());
    default:
        return cudaErrorInvalidValue;
    }
}

using encode_fn = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                               const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                               CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline encode_fn find_encode() {
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
        return nullptr;
    return reinterpret_cast<encode_fn>(f);
}

/* A map over [rows, columns], boxes of box_rows x box_columns, zeros outside. */
inline bool make_map(CUtensorMap *map, const void *base, CUtensorMapDataType type, int element, int64_t rows,
                     int64_t columns, int64_t row_bytes, int box_rows, int box_columns) {
    static const encode_fn encode = find_encode(); /* the driver's entry point; the same for the whole process */
    if (!encode) return false;
    const cuuint64_t dims[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
    const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
    const cuuint32_t steps[2] = {1, 1};
    const bool rows_of_128 = box_columns * element == STEP_BYTES;
    return encode(map, type, 2, const_cast<void *>(base), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  rows_of_128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* How many blocks to start: one on every SM, in whole clusters; 0 with an error. */
template <typename K> cudaError_t grid_of(K kernel, size_t shared, int cluster, int *blocks) {
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    int device = 0, sms = 0;
    if (!e) e = cudaGetDevice(&device);
    if (!e) e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (e) return e;
    *blocks = sms / cluster * cluster;
    return *blocks ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename K, typename... Args>
cudaError_t launch_clusters(K kernel, size_t shared, int blocks, int cluster, cudaStream_t stream, Args... args) {
    cudaLaunchAttribute attribute[1];
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = cluster == 1 ? 0 : 1;
    return cudaLaunchKernelEx(&config, kernel, args...);
}

inline bool aligned(const void *p) {
    return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

} // namespace grouped
} // namespace fr
#endif

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
#include "kernels/grouped.cuh"

namespace {
using namespace fr;
using namespace fr::grouped;

constexpr int TILE_K = STEP_BYTES / 2;

struct GatherParams : Params {
    const fr_bf16 *a;
    const int32_t *token_of_row;
};

/* One staging is stored by TMA while the other fills; TMA's swizzle wants it aligned. */
struct TiledShared : Shared {
    alignas(1024) uint8_t more[CONSUMER_WARPS][WARP_STAGING];
};
static_assert(sizeof(TiledShared) <= 232448, "shared memory of a Hopper block");

/*
 * 128 threads gather the rows of A with cp.async (8 lanes a row, 16 rows a step), thread 0 also loads B by TMA. The
 * arrival for a stage comes LAG stages later, once its copies are complete and fenced for the async proxy (wgmma).
 */
__device__ void produce_gather(Shared &s, const GatherParams &p, const CUtensorMap *map_b, const CUtensorMap *map_own,
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
            const Place home = place_of(p, t.expert);
            const CUtensorMap *weights = home.own ? map_own : map_b;
            const int b_row = home.index * p.N + t.column * TILE_N;
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
                    tma_load(smem_addr(s.b[ring.stage]), weights, k * TILE_K, b_row, full);
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

template <bool SWIGLU, int CLUSTER>
__device__ void consume(TiledShared &s, const Params &p, const CUtensorMap *map_c, int cluster, int rank) {
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
        store<SWIGLU>(staging, smem_addr(s.more[warp]), p, map_c, d, t, row, SWIGLU ? column / 2 : column);
    }
    if (map_c && lane == 0) bulk_wait_read<0>(); /* the block's memory goes with it */
}

template <bool SWIGLU, int CLUSTER, bool GATHER>
__global__ void __launch_bounds__(THREADS, 1)
    grouped_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                   const __grid_constant__ CUtensorMap map_own, const __grid_constant__ CUtensorMap map_c,
                   const __grid_constant__ GatherParams p) {
    extern __shared__ __align__(1024) uint8_t raw[];
    TiledShared &s = *reinterpret_cast<TiledShared *>(raw);
    const int rank = CLUSTER == 1 ? 0 : static_cast<int>(cluster_rank());
    set_up<CLUSTER, GATHER ? 1 + 128 : 1, GATHER ? 4 : CLUSTER>(s, p, GATHER ? nullptr : &map_a, &map_b, &map_own);

    const int cluster = static_cast<int>(blockIdx.x) / CLUSTER, clusters = static_cast<int>(gridDim.x) / CLUSTER;
    if (threadIdx.x < 128) { /* what the producers give up is what the consumers take: 128 * 128 or 112 * 128 */
        regs_fewer<GATHER ? 56 : 40>();
        if constexpr (GATHER)
            produce_gather(s, p, &map_b, &map_own, cluster, clusters);
        else if (threadIdx.x == 0)
            produce_tma<CLUSTER, TILE_K>(s, p, &map_a, &map_b, &map_own, cluster, rank);
        else if (threadIdx.x == 32 && rank == 0)
            schedule<CLUSTER>(s, p, clusters);
    } else {
        regs_more<GATHER ? 224 : 232>();
        consume<SWIGLU, CLUSTER>(s, p, &map_c, cluster, rank);
    }
    finish<CLUSTER>();
}

bool map_bf16(CUtensorMap *map, const fr_bf16 *base, int64_t rows, int64_t columns, int box_rows) {
    return make_map(map, base, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, rows, columns, columns * 2, box_rows, TILE_K);
}

template <bool SWIGLU, int CLUSTER, bool GATHER>
cudaError_t launch(const fr_k_grouped_args &g, int skew, cudaStream_t stream) {
    auto kernel = grouped_kernel<SWIGLU, CLUSTER, GATHER>;
    int blocks = 0;
    const cudaError_t e = grid_of(kernel, sizeof(TiledShared), CLUSTER, &blocks);
    if (e) return e;

    CUtensorMap map_a, map_b, map_own, map_c;
    const int own = g.own ? g.own_end - g.own_first : 0, gap = g.packed ? own : 0;
    const int64_t others = static_cast<int64_t>(g.E - gap) * g.N;
    if (own && !map_bf16(&map_own, g.own, static_cast<int64_t>(own) * g.N, g.K, TILE_N / CLUSTER))
        return cudaErrorInvalidValue;
    if (g.E == gap)
        map_b = map_own; /* nothing lies there */
    else if (!map_bf16(&map_b, g.b, others, g.K, TILE_N / CLUSTER))
        return cudaErrorInvalidValue;
    if (!own) map_own = map_b;
    if (GATHER)
        map_a = map_b; /* unused */
    else if (!map_bf16(&map_a, g.a, g.rows, g.K, HALF_M))
        return cudaErrorInvalidValue;
    const int width = SWIGLU ? g.N / 2 : g.N;
    if (!make_map(&map_c, g.c, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, g.rows, width, 2 * static_cast<int64_t>(width), 16,
                  TILE_K))
        return cudaErrorInvalidValue;
    GatherParams p = {};
    p.a = g.a, p.c = g.c, p.offsets = g.offsets, p.token_of_row = g.token_of_row, p.counter = g.counter;
    p.E = g.E, p.N = g.N, p.K = g.K, p.tiles = (g.N + TILE_N - 1) / TILE_N, p.skew = skew;
    p.rows = static_cast<int>(g.rows);
    p.own_first = own ? g.own_first : 0, p.own_end = own ? g.own_end : 0, p.gap = gap;
    return launch_clusters(kernel, sizeof(TiledShared), blocks, CLUSTER, stream, map_a, map_b, map_own, map_c, p);
}

template <int CLUSTER, bool GATHER> cudaError_t launch_act(const fr_k_grouped_args &g, int skew, cudaStream_t stream) {
    return g.swiglu ? launch<true, CLUSTER, GATHER>(g, skew, stream) : launch<false, CLUSTER, GATHER>(g, skew, stream);
}
} // namespace

cudaError_t fr_k_grouped_gemm_variant(const fr_k_grouped_args *g, int variant, cudaStream_t stream) {
    if (g->rows < 0 || g->rows > INT32_MAX || g->E < 1 || g->E > MAX_E || g->N < 8 || g->K < 8 || g->K % 8 ||
        g->N % (g->swiglu ? 16 : 8) || static_cast<int64_t>(g->E) * g->N > INT32_MAX || !g->offsets || !g->counter ||
        !aligned(g->a) || !aligned(g->b) || !aligned(g->c) || !aligned(g->own) ||
        (g->own && (g->own_first < 0 || g->own_end < g->own_first || g->own_end > g->E)))
        return cudaErrorInvalidValue;
    if (g->rows == 0) return cudaSuccess;
    return with_variant(variant, [&](auto cluster, auto apart) {
        const int skew = decltype(apart)::value ? 2 : 0;
        if (g->token_of_row) return launch_act<1, true>(*g, skew, stream);
        return launch_act<decltype(cluster)::value, false>(*g, skew, stream);
    });
}

int fr_k_grouped_default(int64_t rows, int32_t E) {
    return E > 0 && rows / E >= 512 ? FR_K_GROUPED_CLUSTER_SKEW : FR_K_GROUPED_SINGLE;
}

cudaError_t fr_k_grouped_gemm(const fr_k_grouped_args *g, cudaStream_t stream) {
    return fr_k_grouped_gemm_variant(g, fr_k_grouped_default(g->rows, g->E), stream);
}

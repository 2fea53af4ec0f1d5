/*
 * Grouped GEMM of block-scaled e4m3 for Hopper: the ring, units and clusters of grouped_gemm.cu (kernels/grouped.cuh),
 * and consumers that add up in fp32.
 *
 * The tensor cores keep some 14 bits of an fp8 sum (arXiv 2412.19437, 3.3.2), so a product runs over 128 elements of K,
 * one step of the ring, and is then multiplied by the scales of its row and of its weights' block and added to an fp32
 * sum in registers: 64 registers of products, 128 of sums. A consumer takes 64 rows x 256 columns as two products of
 * 128 columns, one after the other; while one consumer adds up, the other has the tensor cores. Of a half tile (64
 * rows) each consumer takes 128 columns.
 *
 * Consumers read the scales themselves, a step ahead: those of their two rows each step, those of the weights 32 steps
 * at a time, a step a lane. (TMA cannot bring the rows': a box of floats must begin at a multiple of 16 bytes, an
 * expert's rows begin anywhere.) With SwiGLU a tile's 256 columns are 128 of gate and of up, one scale block of either,
 * and 128 outputs, one group of the quantised result: a row's largest magnitude is in four lanes; in half tiles in both
 * consumers, which tell each other through shared memory.
 */
#include "kernels/fp8.h"
#include "kernels/grouped.cuh"

namespace {
using namespace fr;
using namespace fr::grouped;

constexpr int TILE_K = STEP_BYTES, BLOCK = 128;
enum Output { PLAIN, SWIGLU, QUANTISED }; /* bf16; bf16 after SwiGLU; e4m3 after SwiGLU */

struct ScaledShared : Shared {
    float most[2][2][HALF_M]; /* a half tile's largest magnitudes, by turn, consumer, row */
};
static_assert(sizeof(ScaledShared) <= 232448, "shared memory of a Hopper block");

struct ScaledParams : Params {
    const float *a_scale, *b_scale, *own_scale;
    int64_t a_pitch;
    fr_e4m3 *q;
    float *q_scale;
    int64_t q_pitch;
};

/* The scales of the two runs of 128 columns that a consumer multiplies, one a step: with SwiGLU gate's and up's. */
template <Output OUT>
__device__ __forceinline__ void weight_scales(const ScaledParams &p, const Tile &t, int group, int steps,
                                              const float *&first, const float *&second) {
    const Place place = place_of(p, t.expert);
    const float *base = place.own ? p.own_scale : p.b_scale;
    if constexpr (OUT == PLAIN) {
        const int blocks = (p.N + BLOCK - 1) / BLOCK, at = 2 * t.column + (t.half ? group : 0);
        first = base + (static_cast<int64_t>(place.index) * blocks + min(at, blocks - 1)) * steps;
        second = base + (static_cast<int64_t>(place.index) * blocks + min(at + 1, blocks - 1)) * steps;
    } else {
        const int blocks = (p.N / 2 + BLOCK - 1) / BLOCK;
        first = base + (static_cast<int64_t>(place.index) * 2 * blocks + min(t.column, blocks - 1)) * steps;
        second = first + blocks * steps;
    }
}

/* sum = A tile * B tile^T with scales, over all of K. HALF: this warpgroup takes all 64 rows and half of the columns.
 */
template <bool HALF, Output OUT, int CLUSTER>
__device__ __forceinline__ void multiply(ScaledShared &s, const ScaledParams &p, const Tile &t, Ring &ring,
                                         float (&sum)[128], int steps, int group, int warp, int lane, int signal_at) {
    const uint32_t a_at = HALF ? 0 : static_cast<uint32_t>(group) * A_HALF_BYTES;
    const uint32_t b_at = HALF ? static_cast<uint32_t>(group) * (B_BYTES / 2) : 0;
    const int row = t.row + (HALF ? 0 : group * HALF_M) + warp % 4 * 16 + lane / 4;
    const float *scale0 = p.a_scale + min(row, p.rows - 1), *scale1 = p.a_scale + min(row + 8, p.rows - 1);
    const float *first, *second;
    weight_scales<OUT>(p, t, group, steps, first, second);
    float held0 = 0, held1 = 0, next0 = *scale0, next1 = *scale1, part[64];
#pragma unroll
    for (int i = 0; i < (HALF ? 64 : 128); i++) sum[i] = 0;
    for (int k = 0; k < steps; k++) {
        if (k % 32 == 0) {
            held0 = k + lane < steps ? first[k + lane] : 0;
            held1 = k + lane < steps ? second[k + lane] : 0;
        }
        mbar_wait(smem_addr(&s.full[ring.stage]), ring.phase);
        const uint64_t a = wgmma_desc(smem_addr(s.a[ring.stage]) + a_at);
        const uint64_t b = wgmma_desc(smem_addr(s.b[ring.stage]) + b_at);
        const float row0 = next0, row1 = next1;
        if (k + 1 < steps) {
            scale0 += p.a_pitch, scale1 += p.a_pitch;
            next0 = __ldg(scale0), next1 = __ldg(scale1);
        }
        const float b0 = __shfl_sync(~0u, held0, k % 32), b1 = __shfl_sync(~0u, held1, k % 32);
#pragma unroll
        for (int h = 0; h < (HALF ? 1 : 2); h++) {
            pin(part);
            wgmma_arrive();
#pragma unroll
            for (int j = 0; j < TILE_K / 32; j++)
                wgmma_e4m3_n128(part, a + 2 * j, b + static_cast<uint64_t>(h) * (B_BYTES / 2 / 16) + 2 * j, j);
            wgmma_commit();
            wgmma_wait<0>();
            pin(part);
            if (HALF || h == 1) release<CLUSTER>(s, ring.stage, lane);
#pragma unroll
            for (int i = 0; i < 64; i++) { /* i % 4: two columns of row0, two of row1; gate and up by fours */
                const float w = OUT == PLAIN ? (h ? b1 : b0) : (i / 4 % 2 ? b1 : b0);
                sum[h * 64 + i] = fmaf(part[i], (i % 4 < 2 ? row0 : row1) * w, sum[h * 64 + i]);
            }
        }
        ring.advance();
        if (k == signal_at) named_arrive(1, 256);
    }
}

/* A float's magnitude, the largest of the four lanes that hold a row. */
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
    return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

/* SwiGLU of one warp's 16 rows, quantised: 128 outputs of a full tile, 64 of a half tile. */
__device__ __forceinline__ void store_quantised(ScaledShared &s, uint32_t staging, const ScaledParams &p,
                                                float (&d)[128], const Tile &t, int row, int group, int warp,
                                                int &turn) {
    const int lane = lane_again(), width = p.N / 2, groups = t.half ? 8 : 16; /* of 8 outputs */
    float most[2] = {0, 0};
#pragma unroll
    for (int o = 0; o < 16; o++) {
        if (o >= 8 && t.half) break;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            d[4 * o + i] = silu_mul(d[8 * o + i], d[8 * o + 4 + i]);
            most[i / 2] = fmaxf(most[i / 2], fabsf(d[4 * o + i]));
        }
    }
    most[0] = quad_max(most[0]), most[1] = quad_max(most[1]);
    if (t.half) { /* the other consumer has the row's other 64 outputs */
        const int at = warp % 4 * 16 + lane / 4;
        if (lane % 4 == 0) s.most[turn][group][at] = most[0], s.most[turn][group][at + 8] = most[1];
        named_sync(2, 256);
        most[0] = fmaxf(most[0], s.most[turn][group ^ 1][at]);
        most[1] = fmaxf(most[1], s.most[turn][group ^ 1][at + 8]);
        turn ^= 1; /* who writes this half again has passed the next meeting, so all have read it */
    }
    const float up0 = most[0] > 0 ? 448.0f / most[0] : 0, up1 = most[1] > 0 ? 448.0f / most[1] : 0;
    if (lane % 4 == 0 && !(t.half && group) && t.column < p.tiles) {
        float *to = p.q_scale + t.column * p.q_pitch + row + lane / 4;
        if (row + lane / 4 < t.row_end) to[0] = most[0] * (1.0f / 448.0f);
        if (row + lane / 4 + 8 < t.row_end) to[8] = most[1] * (1.0f / 448.0f);
    }
    __syncwarp();
#pragma unroll
    for (int o = 0; o < 16; o++) {
        if (o >= 8 && t.half) break;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = lane / 4 + 8 * h;
            const float up = h ? up1 : up0;
            const uint16_t v = pack_e4m3(d[4 * o + 2 * h] * up, d[4 * o + 2 * h + 1] * up);
            const uint32_t to =
                staging + static_cast<uint32_t>(r * 128 + ((o / 2 ^ (r & 7)) * 16) + o % 2 * 8 + lane % 4 * 2);
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(v) : "memory");
        }
    }
    __syncwarp();
    const int chunks = groups / 2, column = t.column * BLOCK + (t.half ? group * 64 : 0); /* of 16 outputs */
    for (int i = lane; i < 16 * chunks; i += 32) {
        const int r = i / chunks, chunk = i % chunks;
        uint4 v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(staging + static_cast<uint32_t>(r * 128 + ((chunk ^ (r & 7)) * 16)))
                     : "memory");
        if (row + r < t.row_end && column + chunk * 16 < width)
            *reinterpret_cast<uint4 *>(p.q + static_cast<int64_t>(row + r) * width + column + chunk * 16) = v;
    }
}

template <Output OUT, int CLUSTER>
__device__ void consume(ScaledShared &s, const ScaledParams &p, int cluster, int rank) {
    const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128, warp = thread / 32,
              lane = thread % 32;
    const uint32_t staging = smem_addr(s.staging[warp]);
    const int steps = (p.K + TILE_K - 1) / TILE_K, units = s.first_unit[p.E];
    Ring ring;
    Turn turn;
    int expert = 0, meeting = 0;
    float d[128];
    int signal_at = -1; /* as in bf16: the consumers run a step apart */
    if (p.skew && cluster < units) {
        if (group == 0)
            signal_at = min(p.skew, steps) - 1;
        else
            named_sync(1, 256);
    }
    for (int unit = cluster; unit < units;) {
        const Tile t = decode<CLUSTER>(s, p, unit, expert, rank);
        if (t.half)
            multiply<true, OUT, CLUSTER>(s, p, t, ring, d, steps, group, warp, lane, signal_at);
        else
            multiply<false, OUT, CLUSTER>(s, p, t, ring, d, steps, group, warp, lane, signal_at);
        signal_at = -1;
        unit = read_next<CLUSTER>(s, turn, true, lane == 0); /* before the stores: see read_next */
        const int row = t.row + (t.half ? warp % 4 : warp) * 16;
        const int column = t.column * TILE_N + (t.half ? group * (TILE_N / 2) : 0);
        if constexpr (OUT == QUANTISED)
            store_quantised(s, staging, p, d, t, row, group, warp, meeting);
        else
            store<OUT == SWIGLU>(staging, staging, p, nullptr, d, t, row, OUT == SWIGLU ? column / 2 : column);
    }
}

template <Output OUT, int CLUSTER>
__global__ void __launch_bounds__(THREADS, 1)
    fp8_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
               const __grid_constant__ CUtensorMap map_own, const __grid_constant__ ScaledParams p) {
    extern __shared__ __align__(1024) uint8_t raw[];
    ScaledShared &s = *reinterpret_cast<ScaledShared *>(raw);
    const int rank = CLUSTER == 1 ? 0 : static_cast<int>(cluster_rank());
    set_up<CLUSTER, 1, CLUSTER>(s, p, &map_a, &map_b, &map_own);
    const int cluster = static_cast<int>(blockIdx.x) / CLUSTER, clusters = static_cast<int>(gridDim.x) / CLUSTER;
    if (threadIdx.x < 128) {
        regs_fewer<40>();
        if (threadIdx.x == 0)
            produce_tma<CLUSTER, TILE_K>(s, p, &map_a, &map_b, &map_own, cluster, rank);
        else if (threadIdx.x == 32 && rank == 0)
            schedule<CLUSTER>(s, p, clusters);
    } else {
        regs_more<232>();
        consume<OUT, CLUSTER>(s, p, cluster, rank);
    }
    finish<CLUSTER>();
}

bool map_e4m3(CUtensorMap *map, const fr_e4m3 *base, int64_t rows, int64_t columns, int box_rows) {
    return make_map(map, base, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, rows, columns, columns, box_rows, TILE_K);
}

template <Output OUT, int CLUSTER> cudaError_t launch(const fr_k_fp8_args &g, int skew, cudaStream_t stream) {
    auto kernel = fp8_kernel<OUT, CLUSTER>;
    int blocks = 0;
    const cudaError_t e = grid_of(kernel, sizeof(ScaledShared), CLUSTER, &blocks);
    if (e) return e;
    CUtensorMap map_a, map_b, map_own;
    const int own = g.own ? g.own_end - g.own_first : 0, gap = g.packed ? own : 0;
    if (own && !map_e4m3(&map_own, g.own, static_cast<int64_t>(own) * g.N, g.K, TILE_N / CLUSTER))
        return cudaErrorInvalidValue;
    if (g.E == gap)
        map_b = map_own; /* nothing lies there */
    else if (!map_e4m3(&map_b, g.b, static_cast<int64_t>(g.E - gap) * g.N, g.K, TILE_N / CLUSTER))
        return cudaErrorInvalidValue;
    if (!own) map_own = map_b;
    if (!map_e4m3(&map_a, g.a, g.rows, g.K, HALF_M)) return cudaErrorInvalidValue;
    ScaledParams p = {};
    p.c = g.c, p.offsets = g.offsets, p.counter = g.counter, p.E = g.E, p.N = g.N, p.K = g.K;
    p.tiles = (g.N + TILE_N - 1) / TILE_N, p.skew = skew, p.rows = static_cast<int>(g.rows);
    p.own_first = own ? g.own_first : 0, p.own_end = own ? g.own_end : 0, p.gap = gap;
    p.a_scale = g.a_scale, p.a_pitch = g.a_pitch, p.b_scale = g.b_scale, p.own_scale = g.own_scale, p.q = g.q,
    p.q_scale = g.q_scale, p.q_pitch = g.q_pitch;
    return launch_clusters(kernel, sizeof(ScaledShared), blocks, CLUSTER, stream, map_a, map_b, map_own, p);
}

template <int CLUSTER> cudaError_t launch_out(const fr_k_fp8_args &g, int skew, cudaStream_t stream) {
    if (!g.swiglu) return launch<PLAIN, CLUSTER>(g, skew, stream);
    return g.c ? launch<SWIGLU, CLUSTER>(g, skew, stream) : launch<QUANTISED, CLUSTER>(g, skew, stream);
}

bool good_output(const fr_k_fp8_args &g) {
    if (g.c) return !g.q && aligned(g.c) && g.N % (g.swiglu ? 16 : 8) == 0;
    return g.q && g.q_scale && g.swiglu && aligned(g.q) && g.N % (2 * BLOCK) == 0 && g.q_pitch >= g.rows;
}
} // namespace

cudaError_t fr_k_grouped_fp8_variant(const fr_k_fp8_args *g, int variant, cudaStream_t stream) {
    if (g->rows < 0 || g->rows > INT32_MAX || g->E < 1 || g->E > MAX_E || g->N < 8 || g->K < 16 || g->K % 16 ||
        static_cast<int64_t>(g->E) * g->N > INT32_MAX || (!g->offsets && g->E != 1) || !g->counter || !g->a_scale ||
        !aligned(g->a) || !aligned(g->b) || !aligned(g->a_scale) || !aligned(g->own) || g->a_pitch < g->rows ||
        g->a_pitch % 4 || !good_output(*g) ||
        (g->own && (g->own_first < 0 || g->own_end < g->own_first || g->own_end > g->E)))
        return cudaErrorInvalidValue;
    if (g->rows == 0) return cudaSuccess;
    return with_variant(variant, [&](auto cluster, auto apart) {
        return launch_out<decltype(cluster)::value>(*g, decltype(apart)::value ? 1 : 0, stream);
    });
}

int fr_k_grouped_fp8_default(int64_t rows, int32_t E) {
    return E > 0 && rows / E >= 512 ? FR_K_GROUPED_CLUSTER : FR_K_GROUPED_SINGLE;
}

cudaError_t fr_k_grouped_fp8(const fr_k_fp8_args *g, cudaStream_t stream) {
    return fr_k_grouped_fp8_variant(g, fr_k_grouped_fp8_default(g->rows, g->E), stream);
}

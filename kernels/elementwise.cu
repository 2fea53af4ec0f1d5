/*
 * elementwise: the memory-bound kernels: embedding, norms, RoPE, permutation, SwiGLU, combine, logits, weight layout.
 * All move 16 bytes a thread and access; a row's statistics stay in registers between its one read and one write.
 */
#include "kernels/rows.cuh"

namespace {
using namespace fr;

/* ---- embedding ---- */
__global__ void __launch_bounds__(THREADS)
    embedding_kernel(const fr_bf16 *table, const int32_t *ids, fr_bf16 *out, int H, int64_t vocab) {
    const int64_t t = blockIdx.x;
    const int64_t id = ids[t];
    const bool known = id >= 0 && id < vocab;
    for (int i = static_cast<int>(threadIdx.x) * 8; i < H; i += THREADS * 8) {
        vec8 v = {};
        if (known) v = load8(table + id * H + i);
        store8(out + t * H + i, v);
    }
}

/* ---- norms ---- */

/* Writes x * scale * weight, rounded once, for the row that the block holds in x. */
template <int NV>
__device__ __forceinline__ void norm_row(const float (&x)[NV][8], const fr_bf16 *weight, fr_bf16 *out, int H, float eps,
                                         float *scratch) {
    const float factor = norm_factor<NV>(x, H, eps, scratch);
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        if (at >= H) break;
        store8(out + at, norm_vector(x[n], weight + at, factor));
    }
}

enum { NORM_ONLY, NORM_ADD, NORM_ADD_KEEP }; /* KEEP: the sum goes into the residual stream */

template <int NV, int MODE>
__global__ void __launch_bounds__(THREADS) rmsnorm_kernel(const fr_bf16 *x, fr_bf16 *residual, const fr_bf16 *weight,
                                                          const int32_t *rows, fr_bf16 *out, int H, float eps) {
    __shared__ float scratch[THREADS / 32];
    const int64_t i = blockIdx.x, row = rows ? rows[i] : i;
    float v[NV][8];
    load_row<NV, MODE == NORM_ADD_KEEP>(x + row * H, MODE == NORM_ONLY ? nullptr : residual + row * H, v, H);
    norm_row<NV>(v, weight, out + i * H, H, eps, scratch);
}

/* ---- RoPE ---- */
__global__ void __launch_bounds__(THREADS) rope_table_kernel(float2 *table, int64_t positions, int half, float theta) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= positions * half) return;
    const int64_t position = i / half;
    /* fp32 as in the reference: the inverse frequency is rounded to fp32, then the product */
    const float exponent = static_cast<float>(2 * (i % half)) / static_cast<float>(2 * half);
    const float inverse = 1.0f / static_cast<float>(pow(static_cast<double>(theta), static_cast<double>(exponent)));
    const float angle = static_cast<float>(position) * inverse;
    table[i] = make_float2(cosf(angle), sinf(angle));
}

/* N consecutive bf16 as fp32, N = 2, 4 or 8. */
template <int N> __device__ __forceinline__ void load_run(const fr_bf16 *p, float (&f)[N]) {
    uint32_t raw[N / 2];
    if constexpr (N == 2) raw[0] = *reinterpret_cast<const uint32_t *>(p);
    if constexpr (N == 4) {
        const uint2 v = *reinterpret_cast<const uint2 *>(p);
        raw[0] = v.x, raw[1] = v.y;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const float2 v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(&raw[i]));
        f[2 * i] = v.x, f[2 * i + 1] = v.y;
    }
}

template <int N> __device__ __forceinline__ void store_run(fr_bf16 *p, const float (&f)[N]) {
    uint32_t raw[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const __nv_bfloat162 v = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
        raw[i] = *reinterpret_cast<const uint32_t *>(&v);
    }
    if constexpr (N == 2) *reinterpret_cast<uint32_t *>(p) = raw[0];
    if constexpr (N == 4) *reinterpret_cast<uint2 *>(p) = make_uint2(raw[0], raw[1]);
}

/*
 * Sixteen lanes hold a head: lane l the N elements from l*N of either half, N = D/32, so a rotation's two partners are
 * in one lane. A block takes one token at a time; its half-warps take that token's heads in turn.
 */
template <int N> __global__ void __launch_bounds__(THREADS) qk_kernel(const fr_k_qk_args g) {
    constexpr int D = 32 * N, GROUPS = THREADS / 16;
    const int lane = static_cast<int>(threadIdx.x) % 16, group = static_cast<int>(threadIdx.x) / 16;
    const int64_t t = blockIdx.x, packed = static_cast<int64_t>(g.heads_q + 2 * g.heads_kv) * D;
    const int64_t kv_row = g.kv_row ? g.kv_row[t] : t;
    const int heads = g.heads_q + (g.v_out ? 2 : 1) * g.heads_kv;
    float cosine[N], sine[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float2 v =
            reinterpret_cast<const float2 *>(g.rope)[static_cast<int64_t>(g.position[t]) * (D / 2) + lane * N + i];
        cosine[i] = v.x, sine[i] = v.y;
    }
    /* every lane of a warp makes the same number of turns: the shuffles below need all of them */
    for (int base = 0; base < heads; base += GROUPS) {
        const int head = base + group;
        const bool live = head < heads, is_q = head < g.heads_q, is_v = head >= g.heads_q + g.heads_kv;
        const fr_bf16 *src = g.qkv + t * packed + static_cast<int64_t>(live ? head : 0) * D + lane * N;
        float low[N], high[N];
        load_run<N>(src, low);
        load_run<N>(src + D / 2, high);
        const fr_bf16 *weight = is_q ? g.q_weight : g.k_weight;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < N; i++) sum += low[i] * low[i] + high[i] * high[i];
#pragma unroll
        for (int d = 8; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
        if (!live) continue;
        if (!is_v) {
            if (weight) {
                const float scale = rsqrtf(sum / static_cast<float>(D) + g.eps);
                float wl[N], wh[N];
                load_run<N>(weight + lane * N, wl);
                load_run<N>(weight + D / 2 + lane * N, wh);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    low[i] *= scale * wl[i];
                    high[i] *= scale * wh[i];
                }
            }
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float l = low[i], h = high[i];
                low[i] = l * cosine[i] - h * sine[i];
                high[i] = h * cosine[i] + l * sine[i];
            }
        }
        fr_bf16 *dst;
        if (is_q)
            dst = g.q_out + t * g.q_stride + static_cast<int64_t>(head) * D;
        else if (!is_v)
            dst = g.k_out + kv_row * g.kv_stride + static_cast<int64_t>(head - g.heads_q) * D;
        else
            dst = g.v_out + kv_row * g.kv_stride + static_cast<int64_t>(head - g.heads_q - g.heads_kv) * D;
        store_run<N>(dst + lane * N, low);
        store_run<N>(dst + D / 2 + lane * N, high);
    }
}

/* ---- tables of packed attention ---- */
__global__ void __launch_bounds__(THREADS)
    meta_kernel(const int32_t *q_start, const int32_t *kv_start, const int32_t *kv_len, int b, int q_stride,
                int kv_stride, int o_stride, int32_t *meta, int stride) {
    const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i > b) return;
    const int q = q_start[i], length = i < b ? q_start[i + 1] - q : 0;
    const int keys = i < b ? (kv_len ? kv_len[i] : length) : 0;
    /* the last offset of the keys is where the last sequence ends */
    const int kv = !kv_start ? q : i < b ? kv_start[i] : b ? kv_start[b - 1] + kv_len[b - 1] : 0;
    if (i < b) meta[i] = length, meta[stride + i] = keys;
    meta[2 * stride + i] = q * q_stride;
    meta[3 * stride + i] = kv * kv_stride;
    meta[4 * stride + i] = q * o_stride;
}

/* ---- permutation and combine ---- */
template <int NV>
__global__ void __launch_bounds__(THREADS)
    permute_kernel(const fr_bf16 *x, const int32_t *row_of_slot, const int32_t *arrived, fr_bf16 *out, int k, int H) {
    const int64_t t = blockIdx.x;
    if (arrived && t >= *arrived) return;
    vec8 v[NV];
#pragma unroll
    for (int n = 0; n < NV; n++) {
        const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
        if (at < H) v[n] = load8(x + t * H + at);
    }
    for (int j = 0; j < k; j++) {
        const int64_t row = row_of_slot[t * k + j];
        if (row < 0) continue;
#pragma unroll
        for (int n = 0; n < NV; n++) {
            const int at = (n * THREADS + static_cast<int>(threadIdx.x)) * 8;
            if (at < H) store8(out + row * H + at, v[n]);
        }
    }
}

template <int NV, bool NORM>
__global__ void __launch_bounds__(THREADS)
    combine_kernel(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights, const int32_t *arrived,
                   const fr_bf16 *residual, fr_bf16 *out, const fr_bf16 *norm_weight, fr_bf16 *norm_out, float eps,
                   int k, int H) {
    __shared__ float scratch[THREADS / 32];
    const int64_t t = blockIdx.x;
    if (arrived && t >= *arrived) return;
    float sum[NV][8];
    combine_row<NV>(y, row_of_slot, weights, residual, out, t, k, H, sum);
    if constexpr (NORM) norm_row<NV>(sum, norm_weight, norm_out + t * H, H, eps, scratch);
}

/* ---- SwiGLU and its weight layout ---- */
__global__ void __launch_bounds__(THREADS)
    swiglu_kernel(const fr_bf16 *gate_up, fr_bf16 *out, int64_t vectors, int per_row, int gate_step, int up_at) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= vectors) return;
    const int64_t row = i / per_row, c = i % per_row;
    const fr_bf16 *gate = gate_up + row * per_row * 16 + c * gate_step;
    float g[8], u[8];
    to_float(load8(gate), g);
    to_float(load8(gate + up_at), u);
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = silu_mul(g[j], u[j]);
    store8(out + i * 8, to_bf16(g));
}

__global__ void __launch_bounds__(THREADS) pack_kernel(const fr_bf16 *gate, int64_t gate_stride, const fr_bf16 *up,
                                                       int64_t up_stride, fr_bf16 *dst, int64_t I, int K) {
    const int64_t expert = blockIdx.y, row = blockIdx.x; /* a row of dst */
    const int64_t from = row / 16 * 8 + row % 8;
    const fr_bf16 *src = (row & 8) ? up + expert * up_stride + from * K : gate + expert * gate_stride + from * K;
    for (int i = static_cast<int>(threadIdx.x) * 8; i < K; i += THREADS * 8)
        store8(dst + (expert * 2 * I + row) * K + i, load8(src + i));
}

/* ---- logits of candidate tokens: a block each ---- */
__global__ void __launch_bounds__(THREADS)
    logits_kernel(const fr_bf16 *hidden, const fr_bf16 *lm_head, const int32_t *rows, const int32_t *tokens,
                  float *logits, int H, int64_t vocab) {
    __shared__ float scratch[THREADS / 32];
    const int64_t i = blockIdx.x, row = rows[i], token = tokens[i];
    const bool known = token >= 0 && token < vocab;
    float sum = 0;
    for (int at = static_cast<int>(threadIdx.x) * 8; known && at < H; at += THREADS * 8) {
        float x[8], w[8];
        to_float(load8(hidden + row * H + at), x);
        to_float(load8(lm_head + token * H + at), w);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(x[j], w[j], sum);
    }
    sum = block_sum<THREADS>(sum, scratch);
    if (threadIdx.x == 0) logits[i] = known ? sum : nanf("");
}

/* ---- seeded normal numbers: a 64-bit mix of (seed, index) (splitmix64's finaliser), then Box-Muller ---- */
__device__ __forceinline__ uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Element i of x is number first + i of the tensor, or, of a region, the one in its row and column. */
template <bool REGION>
__global__ void __launch_bounds__(THREADS)
    fill_kernel(fr_bf16 *x, int64_t n, uint64_t seed, int64_t first, int64_t columns, int64_t stride, float scale) {
    const uint64_t key = mix(seed + 0x9e3779b97f4a7c15ull);
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += step) {
        const int64_t at = first + (REGION ? i / columns * stride + i % columns : i);
        const uint64_t r = mix(key + static_cast<uint64_t>(at) * 0x9e3779b97f4a7c15ull);
        const float u = (static_cast<float>(r >> 40) + 0.5f) * 0x1p-24f; /* (0, 1) */
        const float v = static_cast<float>((r >> 8) & 0xffffff) * 0x1p-24f;
        const __nv_bfloat16 b = __float2bfloat16_rn(scale * sqrtf(-2.0f * __logf(u)) * cospif(2.0f * v));
        x[i] = *reinterpret_cast<const fr_bf16 *>(&b);
    }
}
} // namespace

cudaError_t fr_k_embedding(const fr_bf16 *table, const int32_t *ids, fr_bf16 *out, int64_t T, int64_t H, int64_t vocab,
                           cudaStream_t stream) {
    if (T < 0 || H < 8 || H % 8 || H > INT32_MAX) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    embedding_kernel<<<blocks_for(T, 1), THREADS, 0, stream>>>(table, ids, out, static_cast<int>(H), vocab);
    return cudaGetLastError();
}

cudaError_t fr_k_rmsnorm(const fr_bf16 *x, const fr_bf16 *weight, const int32_t *rows, fr_bf16 *out, int64_t n,
                         int64_t H, float eps, cudaStream_t stream) {
    if (n < 0 || bad_width(H)) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        rmsnorm_kernel<decltype(nv)::value, NORM_ONLY>
            <<<blocks_for(n, 1), THREADS, 0, stream>>>(x, nullptr, weight, rows, out, static_cast<int>(H), eps);
        return cudaGetLastError();
    });
}

cudaError_t fr_k_add_rmsnorm(fr_bf16 *residual, const fr_bf16 *delta, const fr_bf16 *weight, fr_bf16 *out, int64_t n,
                             int64_t H, float eps, cudaStream_t stream) {
    if (n < 0 || bad_width(H)) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        rmsnorm_kernel<decltype(nv)::value, NORM_ADD_KEEP>
            <<<blocks_for(n, 1), THREADS, 0, stream>>>(delta, residual, weight, nullptr, out, static_cast<int>(H), eps);
        return cudaGetLastError();
    });
}

cudaError_t fr_k_add_rmsnorm_rows(const fr_bf16 *residual, const fr_bf16 *delta, const fr_bf16 *weight,
                                  const int32_t *rows, fr_bf16 *out, int64_t n, int64_t H, float eps,
                                  cudaStream_t stream) {
    if (n < 0 || bad_width(H)) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        rmsnorm_kernel<decltype(nv)::value, NORM_ADD><<<blocks_for(n, 1), THREADS, 0, stream>>>(
            delta, const_cast<fr_bf16 *>(residual), weight, rows, out, static_cast<int>(H), eps);
        return cudaGetLastError();
    });
}

cudaError_t fr_k_rope_table(float *table, int64_t positions, int32_t D, float theta, cudaStream_t stream) {
    if (positions < 0 || D < 2 || D % 2 || !(theta > 0)) return cudaErrorInvalidValue;
    if (!positions) return cudaSuccess;
    rope_table_kernel<<<blocks_for(positions * (D / 2), THREADS), THREADS, 0, stream>>>(
        reinterpret_cast<float2 *>(table), positions, D / 2, theta);
    return cudaGetLastError();
}

cudaError_t fr_k_qk_norm_rope(const fr_k_qk_args *g, cudaStream_t stream) {
    if (g->T < 0 || g->heads_q < 1 || g->heads_kv < 1 || (g->D != 64 && g->D != 128) || g->q_stride % 8 ||
        g->kv_stride % 8)
        return cudaErrorInvalidValue;
    if (!g->T) return cudaSuccess;
    if (g->D == 128)
        qk_kernel<4><<<blocks_for(g->T, 1), THREADS, 0, stream>>>(*g);
    else
        qk_kernel<2><<<blocks_for(g->T, 1), THREADS, 0, stream>>>(*g);
    return cudaGetLastError();
}

size_t fr_k_attention_meta_bytes(int32_t b) {
    return 5 * ((static_cast<size_t>(b) + 4) / 4 * 4) * sizeof(int32_t);
}

cudaError_t fr_k_attention_meta(const int32_t *q_start, const int32_t *kv_start, const int32_t *kv_len, int32_t b,
                                int64_t q_stride, int64_t kv_stride, int64_t o_stride, int32_t *meta,
                                cudaStream_t stream) {
    if (b < 1 || (!kv_start != !kv_len) || q_stride < 1 || kv_stride < 1 || o_stride < 1 || q_stride > INT32_MAX ||
        kv_stride > INT32_MAX || o_stride > INT32_MAX)
        return cudaErrorInvalidValue;
    meta_kernel<<<blocks_for(b + 1, THREADS), THREADS, 0, stream>>>(
        q_start, kv_start, kv_len, b, static_cast<int>(q_stride), static_cast<int>(kv_stride),
        static_cast<int>(o_stride), meta, (b + 4) / 4 * 4);
    return cudaGetLastError();
}

cudaError_t fr_k_permute_arrived(const fr_bf16 *x, const int32_t *row_of_slot, const int32_t *arrived, fr_bf16 *out,
                                 int64_t T, int32_t k, int64_t H, cudaStream_t stream) {
    if (T < 0 || k < 1 || bad_width(H)) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        permute_kernel<decltype(nv)::value>
            <<<blocks_for(T, 1), THREADS, 0, stream>>>(x, row_of_slot, arrived, out, k, static_cast<int>(H));
        return cudaGetLastError();
    });
}

cudaError_t fr_k_permute(const fr_bf16 *x, const int32_t *row_of_slot, fr_bf16 *out, int64_t T, int32_t k, int64_t H,
                         cudaStream_t stream) {
    return fr_k_permute_arrived(x, row_of_slot, nullptr, out, T, k, H, stream);
}

cudaError_t fr_k_reduce(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights, const int32_t *arrived,
                        const fr_bf16 *residual, fr_bf16 *out, int64_t T, int32_t k, int64_t H, cudaStream_t stream) {
    if (T < 0 || k < 1 || (!row_of_slot && k != 1) || bad_width(H)) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    return with_vectors(H, [&](auto nv) {
        combine_kernel<decltype(nv)::value, false><<<blocks_for(T, 1), THREADS, 0, stream>>>(
            y, row_of_slot, weights, arrived, residual, out, nullptr, nullptr, 0, k, static_cast<int>(H));
        return cudaGetLastError();
    });
}

cudaError_t fr_k_combine(const fr_bf16 *y, const int32_t *row_of_slot, const float *weights, const fr_bf16 *residual,
                         fr_bf16 *out, const fr_bf16 *norm_weight, fr_bf16 *norm_out, float eps, int64_t T, int32_t k,
                         int64_t H, cudaStream_t stream) {
    if (T < 0 || k < 1 || bad_width(H) || (norm_weight && !norm_out)) return cudaErrorInvalidValue;
    if (!T) return cudaSuccess;
    if (!norm_weight) return fr_k_reduce(y, row_of_slot, weights, nullptr, residual, out, T, k, H, stream);
    return with_vectors(H, [&](auto nv) {
        constexpr int NV = decltype(nv)::value;
        combine_kernel<NV, true><<<blocks_for(T, 1), THREADS, 0, stream>>>(
            y, row_of_slot, weights, nullptr, residual, out, norm_weight, norm_out, eps, k, static_cast<int>(H));
        return cudaGetLastError();
    });
}

cudaError_t fr_k_swiglu(const fr_bf16 *gate_up, fr_bf16 *out, int64_t n, int64_t I, bool interleaved,
                        cudaStream_t stream) {
    if (n < 0 || I < 8 || I % 8 || I > INT32_MAX / 16) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    swiglu_kernel<<<blocks_for(n * (I / 8), THREADS), THREADS, 0, stream>>>(
        gate_up, out, n * (I / 8), static_cast<int>(I / 8), interleaved ? 16 : 8,
        interleaved ? 8 : static_cast<int>(I));
    return cudaGetLastError();
}

cudaError_t fr_k_pack_gate_up(const fr_bf16 *gate, int64_t gate_stride, const fr_bf16 *up, int64_t up_stride,
                              fr_bf16 *dst, int32_t E, int64_t I, int64_t K, cudaStream_t stream) {
    if (E < 0 || E > 65535 || I < 8 || I % 8 || K < 8 || K % 8 || K > INT32_MAX) return cudaErrorInvalidValue;
    if (!E) return cudaSuccess;
    pack_kernel<<<dim3(blocks_for(2 * I, 1), static_cast<unsigned>(E)), THREADS, 0, stream>>>(
        gate, gate_stride, up, up_stride, dst, I, static_cast<int>(K));
    return cudaGetLastError();
}

cudaError_t fr_k_candidate_logits(const fr_bf16 *hidden, const fr_bf16 *lm_head, const int32_t *rows,
                                  const int32_t *tokens, float *logits, int64_t n, int64_t H, int64_t vocab,
                                  cudaStream_t stream) {
    if (n < 0 || H < 8 || H % 8 || H > INT32_MAX) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    logits_kernel<<<blocks_for(n, 1), THREADS, 0, stream>>>(hidden, lm_head, rows, tokens, logits, static_cast<int>(H),
                                                            vocab);
    return cudaGetLastError();
}

cudaError_t fr_k_fill_normal(fr_bf16 *x, int64_t n, uint64_t seed, int64_t first, float scale, cudaStream_t stream) {
    return fr_k_fill_region(x, 1, n, n, seed, first, scale, stream);
}

cudaError_t fr_k_fill_region(fr_bf16 *x, int64_t rows, int64_t columns, int64_t stride, uint64_t seed, int64_t first,
                             float scale, cudaStream_t stream) {
    const int64_t n = rows * columns;
    if (rows < 0 || columns < 0 || stride < columns) return cudaErrorInvalidValue;
    if (!n) return cudaSuccess;
    const unsigned wanted = blocks_for(n, THREADS), most = 132 * 32; /* enough to fill any Hopper GPU */
    const unsigned grid = wanted < most ? wanted : most;
    if (rows == 1 || columns == stride)
        fill_kernel<false><<<grid, THREADS, 0, stream>>>(x, n, seed, first, columns, stride, scale);
    else
        fill_kernel<true><<<grid, THREADS, 0, stream>>>(x, n, seed, first, columns, stride, scale);
    return cudaGetLastError();
}

#include "kernels/gemm.h"
#include <cublasLt.h>
#include <stdlib.h>

/* What was chosen for a shape; the layouts of x and out take the rows of the call that runs. */
typedef struct {
    int64_t M, N, K;
    size_t workspace_bytes;
    bool out_f32, add, fp8;
    cublasLtMatrixLayout_t w, x, out;
    int64_t rows; /* that the layouts of x and out stand at */
    cublasLtMatmulAlgo_t algo;
} plan;

struct fr_gemm {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t op, op_fp8;
    plan *plans;
    uint32_t count, capacity;
    uint32_t *slots; /* open addressing: index + 1 into plans, 0 free */
    uint32_t slot_count;
};

static fr_status check(cublasStatus_t s, const char *call, fr_error *err) {
    if (s == CUBLAS_STATUS_SUCCESS) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cublasLtGetStatusString(s));
}

int64_t fr_gemm_version(void) {
    return (int64_t)cublasLtGetVersion();
}

/* Row-major out = x w^T is column-major out' [N, M] = w'^T [N, K] x' [K, M], where ' is the same memory: cublasLt's A
 * is w, its B is x. */
static fr_status describe(cublasLtMatmulDesc_t *op, bool fp8, fr_error *err) {
    const cublasOperation_t t = CUBLAS_OP_T, n = CUBLAS_OP_N;
    const int32_t w = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F, x = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    FR_TRY(check(cublasLtMatmulDescCreate(op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate", err));
    FR_TRY(check(cublasLtMatmulDescSetAttribute(*op, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t), "transpose", err));
    FR_TRY(check(cublasLtMatmulDescSetAttribute(*op, CUBLASLT_MATMUL_DESC_TRANSB, &n, sizeof n), "transpose", err));
    if (!fp8) return FR_OK;
    FR_TRY(check(cublasLtMatmulDescSetAttribute(*op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &w, sizeof w), "scales", err));
    return check(cublasLtMatmulDescSetAttribute(*op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &x, sizeof x), "scales", err);
}

fr_status fr_gemm_open(fr_gemm **out, fr_error *err) {
    *out = NULL;
    const int64_t found = fr_gemm_version();
    const int64_t major = found / 10000, minor = found / 100 % 100;
    if (major != CUBLAS_VER_MAJOR || minor != CUBLAS_VER_MINOR)
        return fr_fail(err, FR_FAILED,
                       "cublasLt library is %lld.%lld but the headers are %d.%d: put the matching library first in "
                       "LD_LIBRARY_PATH",
                       (long long)major, (long long)minor, CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR);
    fr_gemm *g = fr_alloc(sizeof *g);
    fr_status s = check(cublasLtCreate(&g->lt), "cublasLtCreate", err);
    if (s == FR_OK) s = describe(&g->op, false, err);
    if (s == FR_OK) s = describe(&g->op_fp8, true, err);
    if (s != FR_OK) {
        fr_gemm_close(g);
        return s;
    }
    *out = g;
    return FR_OK;
}

static void drop_layouts(plan *p) {
    if (p->w) cublasLtMatrixLayoutDestroy(p->w);
    if (p->x) cublasLtMatrixLayoutDestroy(p->x);
    if (p->out) cublasLtMatrixLayoutDestroy(p->out);
}

void fr_gemm_close(fr_gemm *g) {
    if (!g) return;
    for (uint32_t i = 0; i < g->count; i++) drop_layouts(&g->plans[i]);
    if (g->op) cublasLtMatmulDescDestroy(g->op);
    if (g->op_fp8) cublasLtMatmulDescDestroy(g->op_fp8);
    if (g->lt) cublasLtDestroy(g->lt);
    free(g->plans);
    free(g->slots);
    free(g);
}

static bool same(const plan *a, const plan *b) {
    return a->M == b->M && a->N == b->N && a->K == b->K && a->workspace_bytes == b->workspace_bytes &&
           a->out_f32 == b->out_f32 && a->add == b->add && a->fp8 == b->fp8;
}

static uint32_t *find_slot(fr_gemm *g, const plan *key) {
    const int64_t words[5] = {key->M, key->N, key->K, (int64_t)key->workspace_bytes,
                              key->out_f32 + 2 * key->add + 4 * key->fp8};
    uint32_t i = (uint32_t)(fr_hash(words, sizeof words, FR_HASH_SEED) & (g->slot_count - 1));
    while (g->slots[i] && !same(&g->plans[g->slots[i] - 1], key)) i = (i + 1) & (g->slot_count - 1);
    return &g->slots[i];
}

static void grow_slots(fr_gemm *g) {
    free(g->slots);
    g->slot_count = g->slot_count ? 2 * g->slot_count : 256;
    g->slots = fr_alloc(g->slot_count * sizeof *g->slots);
    for (uint32_t i = 0; i < g->count; i++) *find_slot(g, &g->plans[i]) = i + 1;
}

/* Asks the heuristics for the shape in p. */
static fr_status choose(fr_gemm *g, plan *p, fr_error *err) {
    const cudaDataType_t type = p->out_f32 ? CUDA_R_32F : CUDA_R_16BF, in = p->fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    FR_TRY(check(cublasLtMatrixLayoutCreate(&p->w, in, (uint64_t)p->K, (uint64_t)p->N, p->K), "layout", err));
    FR_TRY(check(cublasLtMatrixLayoutCreate(&p->x, in, (uint64_t)p->K, (uint64_t)p->M, p->K), "layout", err));
    FR_TRY(check(cublasLtMatrixLayoutCreate(&p->out, type, (uint64_t)p->N, (uint64_t)p->M, p->N), "layout", err));
    p->rows = p->M;
    cublasLtMatmulPreference_t pref;
    FR_TRY(check(cublasLtMatmulPreferenceCreate(&pref), "cublasLtMatmulPreferenceCreate", err));
    const uint64_t bytes = p->workspace_bytes;
    /* Split-K only through the workspace: sums in a fixed order and in fp32. */
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    cublasStatus_t s =
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                                 sizeof reduction);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulAlgoGetHeuristic(g->lt, p->fp8 ? g->op_fp8 : g->op, p->w, p->x, p->out, p->out, pref, 1,
                                           &best, &found);
    cublasLtMatmulPreferenceDestroy(pref);
    if (s == CUBLAS_STATUS_SUCCESS && !found) s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (s != CUBLAS_STATUS_SUCCESS)
        return fr_fail(err, FR_FAILED, "cublasLt has no algorithm for M=%lld N=%lld K=%lld: %s", (long long)p->M,
                       (long long)p->N, (long long)p->K, cublasLtGetStatusString(s));
    p->algo = best.algo;
    return FR_OK;
}

static fr_status set_scales(fr_gemm *g, const fr_gemm_args *a, fr_error *err) {
    const void *w = a->w_scale, *x = a->x_scale;
    FR_TRY(check(cublasLtMatmulDescSetAttribute(g->op_fp8, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w, sizeof w),
                 "scales", err));
    return check(cublasLtMatmulDescSetAttribute(g->op_fp8, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x, sizeof x),
                 "scales", err);
}

static fr_status set_rows(plan *p, int64_t M, fr_error *err) {
    const uint64_t rows = (uint64_t)M;
    if (p->rows == M) return FR_OK;
    p->rows = M;
    FR_TRY(check(cublasLtMatrixLayoutSetAttribute(p->x, CUBLASLT_MATRIX_LAYOUT_COLS, &rows, sizeof rows), "rows", err));
    return check(cublasLtMatrixLayoutSetAttribute(p->out, CUBLASLT_MATRIX_LAYOUT_COLS, &rows, sizeof rows), "rows",
                 err);
}

fr_status fr_gemm_run(fr_gemm *g, const fr_gemm_args *a, cudaStream_t stream, fr_error *err) {
    if (a->M == 0) return FR_OK;
    const bool fp8 = a->x_scale != NULL, odd = fp8 && (a->M % 4 || a->N % 128 || a->K % 128 || a->out_f32 || a->add);
    if (a->M < 0 || a->N < 1 || a->K < 1 || (a->add && a->out_f32) || odd)
        return fr_fail(err, FR_BAD_INPUT, "gemm: M=%lld N=%lld K=%lld add=%d out_f32=%d fp8=%d is not supported",
                       (long long)a->M, (long long)a->N, (long long)a->K, a->add != NULL, a->out_f32, fp8);
    if (2 * (g->count + 1) > g->slot_count) grow_slots(g);
    plan key = {.M = a->like_M > 0 ? a->like_M : a->M,
                .N = a->N,
                .K = a->K,
                .workspace_bytes = a->workspace_bytes,
                .out_f32 = a->out_f32,
                .add = a->add != NULL,
                .fp8 = fp8};
    if (fp8) FR_TRY(set_scales(g, a, err));
    uint32_t *slot = find_slot(g, &key);
    if (!*slot) {
        const fr_status s = choose(g, &key, err);
        if (s != FR_OK) {
            drop_layouts(&key);
            return s;
        }
        FR_GROW(g->plans, g->capacity, g->count + 1);
        g->plans[g->count++] = key;
        *slot = g->count;
    }
    plan *p = &g->plans[*slot - 1];
    FR_TRY(set_rows(p, a->M, err));
    const float alpha = 1, beta = a->add ? 1 : 0;
    const void *c = a->add ? (const void *)a->add : a->out;
    const cublasStatus_t s = cublasLtMatmul(g->lt, fp8 ? g->op_fp8 : g->op, &alpha, a->w, p->w, a->x, p->x, &beta, c,
                                            p->out, a->out, p->out, &p->algo, a->workspace, a->workspace_bytes, stream);
    if (s != CUBLAS_STATUS_SUCCESS)
        return fr_fail(err, FR_FAILED, "cublasLtMatmul M=%lld N=%lld K=%lld failed: %s", (long long)a->M,
                       (long long)a->N, (long long)a->K, cublasLtGetStatusString(s));
    return FR_OK;
}

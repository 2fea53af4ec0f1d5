#include "kernels/attention.h"
#include <cudnn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef cudnnBackendDescriptor_t desc;

/* What a variant pack binds, as tensor ids of the graph. */
enum {
    ID_Q = 1,
    ID_K,
    ID_V,
    ID_O,
    ID_SCALE,
    ID_NINF2,
    ID_COUNT_UNIFORM = ID_NINF2,
    ID_NINF,
    ID_Q_LEN,
    ID_KV_LEN,
    ID_Q_OFF,
    ID_K_OFF,
    ID_V_OFF,
    ID_O_OFF,
    ID_COUNT = ID_O_OFF,
    ID_SHIFT = 50,
    ID_VIRTUAL = 100
};
enum { MAX_DESCS = 160, MAX_OPS = 40 };

typedef struct {
    int32_t b, max_q, max_kv, heads_q, heads_kv, D, uniform;
    int64_t q_stride, kv_stride, o_stride;
} shape;

typedef struct {
    shape key;
    desc all[MAX_DESCS]; /* everything made for the plan, in order */
    int count, ops_count;
    desc ops[MAX_OPS], graph, plan;
    int64_t next_id, workspace;
} sdpa;

typedef struct {
    shape key; /* max_q and max_kv are 0: the topology, the strides, and b, which cuDNN 9.19 compiles in (measured) */
    desc cache;
} kernel_cache;

struct fr_attention {
    cudnnHandle_t handle;
    bool share_kernels;
    sdpa **plans;
    kernel_cache *caches;
    uint32_t plan_count, plan_capacity, cache_count, cache_capacity;
};

/* A graph under construction: the first failure stays, later steps do nothing. */
typedef struct {
    sdpa *s;
    fr_error *err;
    fr_status status;
} builder;

static void note(builder *g, cudnnStatus_t s, const char *what) {
    if (s == CUDNN_STATUS_SUCCESS || g->status != FR_OK) return;
    char detail[512] = "";
    cudnnGetLastErrorString(detail, sizeof detail);
    g->status = fr_fail(g->err, FR_FAILED, "cuDNN attention: %s failed: %s: %s", what, cudnnGetErrorString(s), detail);
}

static desc make(builder *g, cudnnBackendDescriptorType_t type) {
    if (g->status != FR_OK) return NULL;
    if (g->s->count == MAX_DESCS) {
        g->status = fr_fail(g->err, FR_FAILED, "cuDNN attention: more than %d descriptors", MAX_DESCS);
        return NULL;
    }
    desc d = NULL;
    note(g, cudnnBackendCreateDescriptor(type, &d), "create descriptor");
    if (d) g->s->all[g->s->count++] = d;
    return d;
}

static void set(builder *g, desc d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
                const void *value) {
    if (g->status == FR_OK) note(g, cudnnBackendSetAttribute(d, name, type, n, value), "set attribute");
}

static void set_desc(builder *g, desc d, cudnnBackendAttributeName_t name, desc value) {
    if (value) set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static desc done(builder *g, desc d, const char *what) {
    if (g->status == FR_OK) note(g, cudnnBackendFinalize(d), what);
    return d;
}

/* A tensor of four dimensions; id 0: virtual. */
static desc tensor(builder *g, cudnnDataType_t type, const int64_t dims[4], const int64_t strides[4], int64_t id,
                   bool by_value, desc ragged) {
    desc t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const int64_t unique = id ? id : g->s->next_id++, align = 16;
    const bool is_virtual = id == 0;
    set(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &unique);
    set(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    set_desc(g, t, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, ragged);
    return done(g, t, "tensor");
}

static void add_op(builder *g, desc op, const char *what) {
    done(g, op, what);
    if (g->status == FR_OK) g->s->ops[g->s->ops_count++] = op;
}

/* c = a b; m, n, k: the true lengths, where a sequence is shorter than the longest. */
static void matmul(builder *g, desc a, desc b, desc c, desc m, desc n, desc k, bool pad) {
    desc d = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    const cudnnDataType_t f = CUDNN_DATA_FLOAT;
    const double zero = 0;
    set(g, d, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f);
    if (pad) set(g, d, CUDNN_ATTR_MATMUL_PADDING_VALUE, CUDNN_TYPE_DOUBLE, 1, &zero);
    done(g, d, "matmul");
    desc op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, d);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, m);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, n);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, k);
    add_op(g, op, "matmul operation");
}

/* y = mode(x, b) or, with t, the selection of x or b by t; axis: of an index operation, else -1. */
static void pointwise(builder *g, cudnnPointwiseMode_t mode, cudnnDataType_t precision, int64_t axis, desc x, desc b,
                      desc t, desc y) {
    desc d = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, d, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(g, d, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    if (axis >= 0) set(g, d, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    done(g, d, "pointwise");
    desc op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, d);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_op(g, op, "pointwise operation");
}

static void reduce(builder *g, cudnnReduceTensorOp_t how, desc x, desc y) {
    desc d = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    const cudnnDataType_t f = CUDNN_DATA_FLOAT;
    set(g, d, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
    set(g, d, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f);
    done(g, d, "reduction");
    desc op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, d);
    add_op(g, op, "reduction operation");
}

static const int64_t ones[4] = {1, 1, 1, 1};

/* The scores' dimensions and strides, shared by every virtual tensor of the softmax. */
typedef struct {
    int64_t dims[4], strides[4];
} view;

static desc virtual_of(builder *g, cudnnDataType_t type, const view *v) {
    return tensor(g, type, v->dims, v->strides, 0, false, NULL);
}

/* Minus infinity where the row or the column is past the end of its sequence. */
static desc mask_padding(builder *g, const view *v, desc scores, desc q_len, desc kv_len) {
    const cudnnDataType_t F = CUDNN_DATA_FLOAT, I = CUDNN_DATA_INT32, B = CUDNN_DATA_BOOLEAN;
    desc row = virtual_of(g, I, v), column = virtual_of(g, I, v), row_in = virtual_of(g, B, v);
    desc column_in = virtual_of(g, B, v), in = virtual_of(g, B, v), padded = virtual_of(g, F, v);
    desc ninf = tensor(g, F, ones, ones, ID_NINF, true, NULL);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, F, 2, scores, NULL, NULL, row);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, F, 3, scores, NULL, NULL, column);
    pointwise(g, CUDNN_POINTWISE_CMP_LT, B, -1, row, q_len, NULL, row_in);
    pointwise(g, CUDNN_POINTWISE_CMP_LT, B, -1, column, kv_len, NULL, column_in);
    pointwise(g, CUDNN_POINTWISE_LOGICAL_AND, B, -1, row_in, column_in, NULL, in);
    pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, F, -1, scores, ninf, in, padded);
    return padded;
}

/* Minus infinity where the column is after the row's own position, row + keys - queries: by sequence, or one shift. */
static desc mask_later(builder *g, const view *v, desc scores, desc q_len, desc kv_len, bool shifted) {
    const cudnnDataType_t F = CUDNN_DATA_FLOAT, I = CUDNN_DATA_INT32, B = CUDNN_DATA_BOOLEAN;
    desc row = virtual_of(g, I, v), column = virtual_of(g, I, v), seen = virtual_of(g, B, v);
    desc out = virtual_of(g, F, v), ninf = tensor(g, F, ones, ones, ID_NINF2, true, NULL);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, F, 2, scores, NULL, NULL, row);
    pointwise(g, CUDNN_POINTWISE_GEN_INDEX, F, 3, scores, NULL, NULL, column);
    if (q_len || shifted) {
        desc plus = virtual_of(g, I, v);
        pointwise(g, CUDNN_POINTWISE_ADD, I, -1, row, q_len ? kv_len : tensor(g, I, ones, ones, ID_SHIFT, true, NULL),
                  NULL, plus);
        row = plus;
    }
    if (q_len) {
        desc position = virtual_of(g, I, v);
        pointwise(g, CUDNN_POINTWISE_SUB, I, -1, row, q_len, NULL, position);
        row = position;
    }
    pointwise(g, CUDNN_POINTWISE_CMP_GE, B, -1, row, column, NULL, seen);
    pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, F, -1, scores, ninf, seen, out);
    return out;
}

/* exp(x - max) / sum, in bf16. The log-sum is computed though nobody reads it: cuDNN offers no engine without it. */
static desc softmax(builder *g, const view *v, const view *stats, desc scores) {
    const cudnnDataType_t F = CUDNN_DATA_FLOAT;
    desc top = virtual_of(g, F, stats), sum = virtual_of(g, F, stats), log = virtual_of(g, F, stats);
    desc log_sum = virtual_of(g, F, stats), less = virtual_of(g, F, v), power = virtual_of(g, F, v);
    desc p = virtual_of(g, CUDNN_DATA_BFLOAT16, v);
    reduce(g, CUDNN_REDUCE_TENSOR_MAX, scores, top);
    pointwise(g, CUDNN_POINTWISE_SUB, F, -1, scores, top, NULL, less);
    pointwise(g, CUDNN_POINTWISE_EXP, F, -1, less, NULL, NULL, power);
    reduce(g, CUDNN_REDUCE_TENSOR_ADD, power, sum);
    pointwise(g, CUDNN_POINTWISE_LOG, F, -1, sum, NULL, NULL, log);
    pointwise(g, CUDNN_POINTWISE_ADD, F, -1, top, log, NULL, log_sum);
    pointwise(g, CUDNN_POINTWISE_DIV, F, -1, power, sum, NULL, p);
    return p;
}

static void build_operations(builder *g, const shape *c) {
    const cudnnDataType_t F = CUDNN_DATA_FLOAT, I = CUDNN_DATA_INT32, H = CUDNN_DATA_BFLOAT16;
    const int64_t b = c->b, hq = c->heads_q, hk = c->heads_kv, sq = c->max_q, sk = c->max_kv, d = c->D;
    const int64_t lengths[4] = {b, 1, 1, 1}, offsets[4] = {b + 1, 1, 1, 1};
    const bool packed = !c->uniform;
    desc q_len = packed ? tensor(g, I, lengths, ones, ID_Q_LEN, false, NULL) : NULL;
    desc kv_len = packed ? tensor(g, I, lengths, ones, ID_KV_LEN, false, NULL) : NULL;
    desc q_off = packed ? tensor(g, I, offsets, ones, ID_Q_OFF, false, NULL) : NULL;
    desc k_off = packed ? tensor(g, I, offsets, ones, ID_K_OFF, false, NULL) : NULL;
    desc v_off = packed ? tensor(g, I, offsets, ones, ID_V_OFF, false, NULL) : NULL;
    desc o_off = packed ? tensor(g, I, offsets, ones, ID_O_OFF, false, NULL) : NULL;
    const int64_t qd[4] = {b, hq, sq, d}, qs[4] = {sq * c->q_stride, d, c->q_stride, 1};
    const int64_t kd[4] = {b, hk, d, sk}, ks[4] = {sk * c->kv_stride, d, 1, c->kv_stride};
    const int64_t vd[4] = {b, hk, sk, d}, vs[4] = {sk * c->kv_stride, d, c->kv_stride, 1};
    const int64_t os[4] = {sq * c->o_stride, d, c->o_stride, 1};
    desc q = tensor(g, H, qd, qs, ID_Q, false, q_off), k = tensor(g, H, kd, ks, ID_K, false, k_off);
    desc v = tensor(g, H, vd, vs, ID_V, false, v_off), o = tensor(g, H, qd, os, ID_O, false, o_off);
    desc scale = tensor(g, F, ones, ones, ID_SCALE, true, NULL);
    const view scores = {{b, hq, sq, sk}, {hq * sq * sk, sq * sk, sk, 1}},
               stats = {{b, hq, sq, 1}, {hq * sq, sq, 1, 1}};
    desc raw = virtual_of(g, F, &scores), scaled = virtual_of(g, F, &scores);
    matmul(g, q, k, raw, q_len, kv_len, NULL, packed);
    pointwise(g, CUDNN_POINTWISE_MUL, F, -1, raw, scale, NULL, scaled);
    desc masked = packed ? mask_padding(g, &scores, scaled, q_len, kv_len) : scaled;
    masked = mask_later(g, &scores, masked, q_len, kv_len, sk > sq);
    desc p = softmax(g, &scores, &stats, masked);
    matmul(g, p, v, o, q_len, NULL, kv_len, false);
}

static kernel_cache *cache_of(fr_attention *a, builder *g, const shape *c) {
    shape key = *c;
    key.max_q = key.max_kv = 0;
    for (uint32_t i = 0; i < a->cache_count; i++)
        if (!memcmp(&a->caches[i].key, &key, sizeof key)) return &a->caches[i];
    desc d = NULL;
    note(g, cudnnBackendCreateDescriptor(CUDNN_BACKEND_KERNEL_CACHE_DESCRIPTOR, &d), "create kernel cache");
    set_desc(g, d, CUDNN_ATTR_KERNEL_CACHE_OPERATION_GRAPH, g->s->graph);
    done(g, d, "kernel cache");
    if (g->status != FR_OK) {
        if (d) cudnnBackendDestroyDescriptor(d);
        return NULL;
    }
    FR_GROW(a->caches, a->cache_capacity, a->cache_count + 1);
    a->caches[a->cache_count] = (kernel_cache){key, d};
    return &a->caches[a->cache_count++];
}

/* The first configuration that the heuristics offer and that finalises. */
static void choose_plan(fr_attention *a, builder *g, const kernel_cache *cache) {
    desc heuristics = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    set_desc(g, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g->s->graph);
    set(g, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    done(g, heuristics, "heuristics");
    enum { MOST = 4 };
    desc configs[MOST] = {NULL};
    for (int i = 0; i < MOST; i++) configs[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    int64_t got = 0;
    if (g->status == FR_OK)
        note(g,
             cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MOST,
                                      &got, configs),
             "heuristics results");
    cudnnStatus_t last = CUDNN_STATUS_NOT_SUPPORTED;
    for (int64_t i = 0; g->status == FR_OK && i < got && i < MOST && !g->s->plan; i++) {
        desc p = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set(g, p, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &a->handle);
        set_desc(g, p, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
        if (cache) set_desc(g, p, CUDNN_ATTR_EXECUTION_PLAN_KERNEL_CACHE, cache->cache);
        if (g->status != FR_OK) break;
        last = cudnnBackendFinalize(p);
        if (last == CUDNN_STATUS_SUCCESS) g->s->plan = p;
    }
    if (g->status == FR_OK && !g->s->plan) note(g, last, "every offered plan");
    int64_t count = 0;
    if (g->status == FR_OK)
        note(g,
             cudnnBackendGetAttribute(g->s->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count,
                                      &g->s->workspace),
             "workspace size");
}

static void drop_plan(sdpa *s) {
    for (int i = s->count - 1; i >= 0; i--) cudnnBackendDestroyDescriptor(s->all[i]);
    free(s);
}

static fr_status build(fr_attention *a, const shape *c, sdpa **out, fr_error *err) {
    sdpa *s = fr_alloc(sizeof *s);
    s->key = *c, s->next_id = ID_VIRTUAL;
    builder g = {s, err, FR_OK};
    build_operations(&g, c);
    s->graph = make(&g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    const bool dynamic = true;
    set(&g, s->graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &a->handle);
    set(&g, s->graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, s->ops_count, s->ops);
    const bool share = a->share_kernels && !c->uniform; /* cuDNN 9.19 compiles equal lengths in (measured) */
    if (share) set(&g, s->graph, CUDNN_ATTR_OPERATIONGRAPH_IS_DYNAMIC_SHAPE_ENABLED, CUDNN_TYPE_BOOLEAN, 1, &dynamic);
    done(&g, s->graph, "operation graph");
    const kernel_cache *cache = share && g.status == FR_OK ? cache_of(a, &g, c) : NULL;
    if (g.status == FR_OK) choose_plan(a, &g, cache);
    if (g.status != FR_OK)
        drop_plan(s);
    else
        *out = s;
    return g.status;
}

static fr_status find(fr_attention *a, const fr_attention_args *x, sdpa **out, fr_error *err) {
    if (x->b < 1 || x->max_q < 1 || x->max_kv < 1 || x->heads_kv < 1 || x->heads_q % x->heads_kv || x->D % 8 ||
        x->D < 8)
        return fr_fail(err, FR_BAD_INPUT, "attention: b=%d max_q=%d max_kv=%d heads %d/%d of %d is not supported", x->b,
                       x->max_q, x->max_kv, x->heads_q, x->heads_kv, x->D);
    shape c;
    memset(&c, 0, sizeof c); /* padding too: keys are compared as bytes */
    c.b = x->b, c.heads_q = x->heads_q, c.heads_kv = x->heads_kv, c.D = x->D;
    c.uniform = x->meta == NULL;
    c.max_q = x->max_q, c.max_kv = x->max_kv;
    if (!c.uniform) c.max_q = (c.max_q + 127) / 128 * 128, c.max_kv = (c.max_kv + 127) / 128 * 128;
    c.q_stride = x->q_stride, c.kv_stride = x->kv_stride, c.o_stride = x->o_stride;
    for (uint32_t i = 0; i < a->plan_count; i++)
        if (!memcmp(&a->plans[i]->key, &c, sizeof c)) {
            *out = a->plans[i];
            return FR_OK;
        }
    FR_TRY(build(a, &c, out, err));
    FR_GROW(a->plans, a->plan_capacity, a->plan_count + 1);
    a->plans[a->plan_count++] = *out;
    return FR_OK;
}

int64_t fr_attention_version(void) {
    return (int64_t)cudnnGetVersion();
}

fr_status fr_attention_open(fr_attention **out, bool share_kernels, fr_error *err) {
    *out = NULL;
    const int64_t v = fr_attention_version(), major = v / 10000, minor = v / 100 % 100;
    if (major != CUDNN_MAJOR || minor != CUDNN_MINOR)
        return fr_fail(err, FR_FAILED,
                       "cuDNN library is %lld.%lld but the headers are %d.%d: put the matching library first in "
                       "LD_LIBRARY_PATH",
                       (long long)major, (long long)minor, CUDNN_MAJOR, CUDNN_MINOR);
    fr_attention *a = fr_alloc(sizeof *a);
    a->share_kernels = share_kernels;
    const cudnnStatus_t s = cudnnCreate(&a->handle);
    if (s != CUDNN_STATUS_SUCCESS) {
        free(a);
        return fr_fail(err, FR_FAILED, "cudnnCreate failed: %s", cudnnGetErrorString(s));
    }
    *out = a;
    return FR_OK;
}

void fr_attention_close(fr_attention *a) {
    if (!a) return;
    for (uint32_t i = 0; i < a->plan_count; i++) drop_plan(a->plans[i]);
    for (uint32_t i = 0; i < a->cache_count; i++) cudnnBackendDestroyDescriptor(a->caches[i].cache);
    cudnnDestroy(a->handle);
    free(a->plans);
    free(a->caches);
    free(a);
}

fr_status fr_attention_workspace(fr_attention *a, const fr_attention_args *args, size_t *bytes, fr_error *err) {
    sdpa *s = NULL;
    FR_TRY(find(a, args, &s, err));
    *bytes = (size_t)s->workspace;
    return FR_OK;
}

fr_status fr_attention_run(fr_attention *a, const fr_attention_args *x, cudaStream_t stream, fr_error *err) {
    sdpa *s = NULL;
    FR_TRY(find(a, x, &s, err));
    if ((int64_t)x->workspace_bytes < s->workspace)
        return fr_fail(err, FR_FAILED, "attention: workspace of %zu bytes, the plan needs %lld", x->workspace_bytes,
                       (long long)s->workspace);
    const int32_t stride = (x->b + 4) / 4 * 4;
    const bool uniform = !x->meta, shifted = uniform && x->max_kv > x->max_q;
    float scale = x->scale, ninf = -INFINITY;
    int32_t shift = x->max_kv - x->max_q;
    int64_t ids[ID_COUNT] = {ID_Q,     ID_K,      ID_V,     ID_O,     ID_SCALE, ID_NINF2, ID_NINF,
                             ID_Q_LEN, ID_KV_LEN, ID_Q_OFF, ID_K_OFF, ID_V_OFF, ID_O_OFF};
    const void *pointers[ID_COUNT] = {x->q, x->k, x->v, x->out, &scale, &ninf, &ninf};
    for (int i = 0; i < 6 && !uniform; i++) /* the keys' offsets serve k and v */
        pointers[7 + i] = x->meta + (i < 4 ? i : i - 1) * stride;
    int64_t bound = uniform ? ID_COUNT_UNIFORM : ID_COUNT;
    if (shifted) ids[bound] = ID_SHIFT, pointers[bound++] = &shift;
    desc pack = NULL;
    cudnnStatus_t c = cudnnSetStream(a->handle, stream);
    if (!c) c = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (!c) c = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, bound, ids);
    if (!c)
        c = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, bound, pointers);
    if (!c)
        c = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &x->workspace);
    if (!c) c = cudnnBackendFinalize(pack);
    if (!c) c = cudnnBackendExecute(a->handle, s->plan, pack);
    if (pack) cudnnBackendDestroyDescriptor(pack);
    if (c) {
        char detail[512] = "";
        cudnnGetLastErrorString(detail, sizeof detail);
        return fr_fail(err, FR_FAILED, "cuDNN attention of %d sequences, %d queries, %d keys failed: %s: %s", x->b,
                       x->max_q, x->max_kv, cudnnGetErrorString(c), detail);
    }
    return FR_OK;
}

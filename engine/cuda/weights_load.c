/*
 * Checkpoints into memory: a list of jobs (a run of rows of a tensor, which of their columns are wanted, and where they
 * go), taken by threads that read into pinned buffers of their own and copy from there, so that disk or page cache,
 * memory and link work at once; buffers are pinned while headers are read. Gate and up are interleaved on the way by
 * strided copies. Only what this rank holds becomes a job; every tensor of its layers is checked.
 *
 * What bounds it, measured with tests/gpu/bench_load.c (kernels/measured/README.md): copies alone 53 to 55 GB/s;
 * threads that read out of memory 4.5 to 5 GB/s each, 68 with 16 of them; both at once 52 with 16 threads of 4 MiB,
 * less with more threads, with 1 MiB (a copy's start) and with 8 (buffers beyond the last cache). A stream costs some 8
 * ms to make.
 */
#include "engine/cuda/weights.h"
#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STAGING ((int64_t)4 << 20) /* bytes a buffer, two for each thread */
#define READERS 16                 /* threads at most */
enum { STREAMS = 2 };
_Static_assert(8 * 2 * FR_K_MAX_HIDDEN <= STAGING, "a block of eight rows fits a buffer");

/*
 * `bytes` from `from` in a file, rows of `row` bytes, of each of which `wanted` from `column` on go to `to`, packed.
 * interleave: whole rows, blocks of 8 of which go to every second such block. widen: bf16 that becomes fp32.
 */
typedef struct {
    int32_t file;
    bool interleave, to_host, widen;
    int64_t from, bytes, row, column, wanted;
    char *to;
} job;

typedef struct {
    const fr_checkpoint *c;
    const fr_model *m;
    const fr_weights *w;
    bool *used; /* per tensor of the checkpoint */
    job *jobs;
    uint32_t count, capacity;
    int *fds;
    int device;
    /* shared by the readers */
    pthread_mutex_t lock;
    int64_t pinned_bytes;
    char *pinned; /* two buffers a reader */
    cudaStream_t stream[STREAMS];
    fr_status pinning;
    fr_error pinning_err;
    int64_t readers;
    uint32_t next;
    fr_status status;
    fr_error *err;
} load;

/* ---- the list -----------------------------------------------------------------------------------------------------*/

typedef struct {
    int64_t row, column, wanted; /* bytes in the file; see job */
    bool interleave, to_host, widen;
} way;

static way rows_of(int64_t row) {
    return (way){.row = row, .wanted = row};
}

/* `bytes` of a tensor from its byte `skip` on, whole rows. */
static void add_job(load *l, const fr_tensor *t, int64_t skip, int64_t bytes, way w, void *to) {
    const int64_t block = w.interleave ? 8 * w.row : w.row;
    const int64_t step = fr_max_i64((w.widen ? STAGING / 2 : STAGING) / block, 1) * block;
    const int64_t wanted = w.wanted * (w.interleave ? 2 : 1) * (w.widen ? 2 : 1); /* from one row's place to the next */
    for (int64_t at = 0; at < bytes; at += step) {
        FR_GROW(l->jobs, l->capacity, l->count + 1);
        l->jobs[l->count++] = (job){.file = t->file,
                                    .interleave = w.interleave,
                                    .to_host = w.to_host,
                                    .widen = w.widen,
                                    .from = t->begin + skip + at,
                                    .bytes = fr_min_i64(step, bytes - at),
                                    .row = w.row,
                                    .column = w.column,
                                    .wanted = w.wanted,
                                    .to = (char *)to + at / w.row * wanted};
    }
}

/* The tensor of that name, of exactly that shape (up to three dimensions, 0 = none) and one of two types; NULL with a
 * reason otherwise. */
static const fr_tensor *want_typed(load *l, const char *name, int64_t a, int64_t b, int64_t c, const char *type,
                                   const char *other) {
    const fr_tensor *t = fr_checkpoint_find(l->c, name);
    const int64_t shape[3] = {a, b, c};
    const int rank = c ? 3 : b ? 2 : 1;
    if (l->status != FR_OK) return NULL;
    if (!t) {
        l->status = fr_fail(l->err, FR_BAD_INPUT, "checkpoint %s: no tensor %s", l->c->files[0], name);
        return NULL;
    }
    bool same = t->rank == rank && (strcmp(t->dtype, type) == 0 || strcmp(t->dtype, other) == 0);
    for (int i = 0; i < rank && same; i++) same = t->shape[i] == shape[i];
    if (!same) {
        l->status = fr_fail(l->err, FR_BAD_INPUT, "%s: %s: expected %s [%lld, %lld, %lld], got %s of rank %d%s",
                            l->c->files[t->file], name, type, (long long)a, (long long)b, (long long)c, t->dtype,
                            t->rank, strcmp(t->dtype, "F8_E4M3") == 0 ? " (an FP8 checkpoint: --precision fp8)" : "");
        return NULL;
    }
    l->used[t - l->c->tensors] = true;
    return t;
}

static const fr_tensor *want(load *l, const char *name, int64_t a, int64_t b, int64_t c) {
    return want_typed(l, name, a, b, c, "BF16", "BF16");
}

/* ---- linear weights: bf16, or e4m3 with a scale for each block of 128 x 128
 * ----------------------------------------*/

static bool fp8(const load *l) {
    return l->w->shard.precision == FR_FP8;
}

static const fr_tensor *want_linear(load *l, const char *name, int64_t a, int64_t b, int64_t c) {
    return fp8(l) ? want_typed(l, name, a, b, c, "F8_E4M3", "F8_E4M3") : want(l, name, a, b, c);
}

/* A part of a matrix [rows, columns]: rows [row, row_end), columns [column, column_end). */
typedef struct {
    int64_t rows, columns, row, row_end, column, column_end;
} part;

static part all_of(int64_t rows, int64_t columns) {
    return (part){rows, columns, 0, rows, 0, columns};
}

/* The scales of the part's blocks, from NAME_scale_inv, fp32 or bf16 (both are published), packed to `to`. */
static void add_scales(load *l, const char *name, part p, bool to_host, float *to) {
    char scale[288];
    const int64_t rows = fr_ceil_div(p.rows, 128), columns = fr_ceil_div(p.columns, 128);
    if (!fp8(l)) return;
    snprintf(scale, sizeof scale, "%s_scale_inv", name);
    const fr_tensor *t = want_typed(l, scale, rows, columns, 0, "F32", "BF16");
    if (!t || !to) return;
    const bool widen = t->dtype[0] == 'B';
    const int64_t size = widen ? 2 : 4, row = columns * size;
    const int64_t first = p.row / 128, count = fr_ceil_div(p.row_end, 128) - first;
    const way w = {.row = row,
                   .column = p.column / 128 * size,
                   .wanted = (fr_ceil_div(p.column_end, 128) - p.column / 128) * size,
                   .to_host = to_host,
                   .widen = widen};
    add_job(l, t, first * row, count * row, w, to);
}

/* A part of the linear weight NAME and its scales; NULL `to`: checked, not read. */
static void linear(load *l, const char *name, part p, bool interleave, bool to_host, void *to, float *scale) {
    const int64_t size = fp8(l) ? 1 : 2, row = size * p.columns;
    const fr_tensor *t = want_linear(l, name, p.rows, p.columns, 0);
    const way w = {.row = row,
                   .column = size * p.column,
                   .wanted = size * (p.column_end - p.column),
                   .interleave = interleave,
                   .to_host = to_host};
    if (t && to) add_job(l, t, p.row * row, (p.row_end - p.row) * row, w, to);
    add_scales(l, name, p, to_host, to ? scale : NULL);
}

/* A whole bf16 matrix, or vector (columns 0). NULL `to`: checked, not read. */
static void whole(load *l, const char *name, int64_t rows, int64_t columns, void *to) {
    const fr_tensor *t = want(l, name, rows, columns, 0);
    if (t && to) add_job(l, t, 0, t->bytes, rows_of(columns ? 2 * columns : t->bytes), to);
}

static bool has(const load *l, const char *name) {
    return fr_checkpoint_find(l->c, name) != NULL;
}

/* ---- experts ------------------------------------------------------------------------------------------------------*/

/* Where an expert of a layer goes: among the own ones, into the first layer's gathered set, or nowhere (NULL). */
typedef struct {
    char *gate_up, *down;
    float *gate_up_scale, *down_scale;
} expert_place;

static expert_place place_of(const fr_weights *w, const fr_model *m, int held, int e) {
    const fr_shard *s = &w->shard;
    const bool own = e >= s->expert_first && e < s->expert_end;
    const bool first = s->gathers && held == fr_shard_layer(s, s->first_layer);
    if (own && s->on_host && !w->owns_host) return (expert_place){0};
    if (!own && !first) return (expert_place){0};
    char *at[FR_RUN_PARTS] = {0};
    for (int i = 0; i < w->run.parts; i++)
        at[i] = own ? fr_weights_expert(w, held, i, e - s->expert_first)
                    : w->first + fr_run_offset(&w->run, fr_shard_slot_experts(s, m), i, fr_shard_slot_place(s, e));
    return (expert_place){at[0], at[1], (float *)(void *)at[2], (float *)(void *)at[3]};
}

/* Gate or up of an expert: this rank's rows of it. Their scales lie behind one another, gate's first. */
static void add_half(load *l, const char *name, int half, expert_place p) {
    const fr_shard *s = &l->w->shard;
    const int64_t h = l->m->hidden, row = (fp8(l) ? 1 : 2) * h;
    const int64_t scales = fr_ceil_div(s->width_end - s->width_first, 128) * fr_ceil_div(h, 128);
    part rows = all_of(l->m->expert_width, h);
    rows.row = s->width_first;
    rows.row_end = s->width_end;
    linear(l, name, rows, true, s->on_host, p.gate_up ? p.gate_up + 8 * half * row : NULL,
           p.gate_up_scale ? p.gate_up_scale + half * scales : NULL);
}

/* Down of an expert: this rank's columns of it. */
static part down_part(const load *l) {
    part p = all_of(l->m->hidden, l->m->expert_width);
    p.column = l->w->shard.width_first;
    p.column_end = l->w->shard.width_end;
    return p;
}

/* Experts one by one (gate, up, down of each), as both families are published. */
static void separate_experts(load *l, const char *block, const char *const names[3], int held) {
    char name[256];
    for (int e = 0; e < l->m->experts; e++) {
        const expert_place p = place_of(l->w, l->m, held, e);
        for (int half = 0; half < 2; half++) {
            snprintf(name, sizeof name, "%s.experts.%d.%s.weight", block, e, names[half]);
            add_half(l, name, half, p);
        }
        snprintf(name, sizeof name, "%s.experts.%d.%s.weight", block, e, names[2]);
        linear(l, name, down_part(l), false, l->w->shard.on_host, p.down, p.down_scale);
    }
}

/* Experts stacked, gate above up, as transformers 5 holds them; bf16 only. */
static void stacked_experts(load *l, const char *block, int held) {
    const fr_shard *s = &l->w->shard;
    const int64_t h = l->m->hidden, i = l->m->expert_width, n = l->m->experts, row = 2 * h;
    const part d = down_part(l);
    const way up_way = {.row = row, .wanted = row, .interleave = true, .to_host = s->on_host};
    const way down_way = {
        .row = 2 * i, .column = 2 * d.column, .wanted = 2 * (d.column_end - d.column), .to_host = s->on_host};
    char name[256];
    snprintf(name, sizeof name, "%s.experts.gate_up_proj", block);
    const fr_tensor *up = want(l, name, n, 2 * i, h);
    snprintf(name, sizeof name, "%s.experts.down_proj", block);
    const fr_tensor *down = want(l, name, n, h, i);
    for (int e = 0; e < l->m->experts; e++) {
        const expert_place p = place_of(l->w, l->m, held, e);
        for (int half = 0; half < 2 && up && p.gate_up; half++)
            add_job(l, up, ((2 * e + half) * i + s->width_first) * row, (s->width_end - s->width_first) * row, up_way,
                    p.gate_up + 8 * half * row);
        if (down && p.down) add_job(l, down, e * i * h * 2, h * down_way.row, down_way, p.down);
    }
}

static void list_experts(load *l, int layer, int held) {
    static const char *const qwen[3] = {"gate_proj", "up_proj", "down_proj"}, *const mixtral[3] = {"w1", "w3", "w2"};
    char block[128], name[256];
    snprintf(block, sizeof block, "model.layers.%d.block_sparse_moe", layer);
    snprintf(name, sizeof name, "%s.gate.weight", block);
    const bool old = has(l, name);
    if (!old) snprintf(block, sizeof block, "model.layers.%d.mlp", layer);
    snprintf(name, sizeof name, "%s.gate.weight", block);
    whole(l, name, l->m->experts, l->m->hidden, l->w->layer[held].router);
    snprintf(name, sizeof name, "%s.experts.gate_up_proj", block);
    if (has(l, name) && !fp8(l))
        stacked_experts(l, block, held);
    else
        separate_experts(l, block, old ? mixtral : qwen, held);
}

/* ---- the rest of a layer ------------------------------------------------------------------------------------------*/

static void list_attention(load *l, int layer, const fr_layer_weights *w) {
    const fr_model *m = l->m;
    const fr_shard *s = &l->w->shard;
    const int64_t h = m->hidden, d = m->head_dim, q = m->heads * d, kv = m->kv_heads * d;
    const int64_t mine = s->heads * d, kv_mine = s->kv_heads * d, size = fp8(l) ? 1 : 2, blocks = fr_ceil_div(h, 128);
    const struct {
        const char *name;
        int64_t rows, first, count, place; /* of the model's tensor, of the rank's part, of the rows of qkv */
    } in[3] = {{"q_proj", q, s->head_first * d, mine, 0},
               {"k_proj", kv, s->kv_first * d, kv_mine, mine},
               {"v_proj", kv, s->kv_first * d, kv_mine, mine + kv_mine}};
    char name[256];
    for (int i = 0; i < 3; i++) {
        part p = all_of(in[i].rows, h);
        p.row = in[i].first;
        p.row_end = p.row + in[i].count;
        snprintf(name, sizeof name, "model.layers.%d.self_attn.%s.weight", layer, in[i].name);
        linear(l, name, p, false, false, w->qkv ? (char *)w->qkv + in[i].place * h * size : NULL,
               w->qkv_scale ? w->qkv_scale + in[i].place / 128 * blocks : NULL);
    }
    part o = all_of(h, q); /* the rank's heads of the output projection are columns of it */
    o.column = s->head_first * d;
    o.column_end = o.column + mine;
    snprintf(name, sizeof name, "model.layers.%d.self_attn.o_proj.weight", layer);
    linear(l, name, o, false, false, w->o, w->o_scale);
}

static void list_layer(load *l, int held) {
    const fr_layer_weights *w = &l->w->layer[held];
    const int layer = fr_shard_layer_id(&l->w->shard, held);
    const int64_t h = l->m->hidden, d = l->m->head_dim;
    const struct {
        const char *name;
        int64_t n;
        fr_bf16 *to;
        bool there;
    } norms[] = {{"input_layernorm", h, w->input_norm, true},
                 {"post_attention_layernorm", h, w->post_norm, true},
                 {"self_attn.q_norm", d, w->q_norm, l->m->qk_norm},
                 {"self_attn.k_norm", d, w->k_norm, l->m->qk_norm}};
    char name[256];
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, norms[i].name);
        if (norms[i].there) whole(l, name, norms[i].n, 0, norms[i].to);
    }
    list_attention(l, layer, w);
    list_experts(l, layer, held);
}

/* A tensor that nobody asked for means another architecture; layers that this rank does not hold are left out. */
static void refuse_unknown(load *l) {
    const fr_shard *s = &l->w->shard;
    for (uint32_t i = 0; i < l->c->count && l->status == FR_OK; i++) {
        const char *name = l->c->tensors[i].name;
        int layer = -1;
        if (l->used[i] || strstr(name, "rotary_emb.inv_freq")) continue;
        bool held = false;
        if (sscanf(name, "model.layers.%d.", &layer) == 1)
            for (int k = 0; k < s->layers; k++) held = held || fr_shard_layer_id(s, k) == layer;
        if (layer >= 0 && !held && layer < l->m->layers) continue;
        if (l->m->tied_embeddings && strcmp(name, "lm_head.weight") == 0) continue;
        l->status = fr_fail(l->err, FR_BAD_INPUT, "%s: unexpected tensor %.160s for a model of family %s",
                            l->c->files[l->c->tensors[i].file], name, l->m->family);
    }
}

static void list_all(load *l) {
    const fr_model *m = l->m;
    const fr_weights *w = l->w;
    whole(l, "model.embed_tokens.weight", m->vocab, m->hidden, w->embedding);
    whole(l, "model.norm.weight", m->hidden, 0, w->final_norm);
    if (!m->tied_embeddings) whole(l, "lm_head.weight", m->vocab, m->hidden, w->head);
    for (int i = 0; i < w->shard.layers && l->status == FR_OK; i++) list_layer(l, i);
    refuse_unknown(l);
}

/* ---- the readers --------------------------------------------------------------------------------------------------*/

typedef struct {
    char *staging[2]; /* of load.pinned */
    cudaStream_t stream;
    cudaEvent_t free[2];
} reader;

static void note(load *l, fr_status s) {
    pthread_mutex_lock(&l->lock);
    if (l->status == FR_OK) l->status = s;
    pthread_mutex_unlock(&l->lock);
}

/* The message is written under the lock: the first failure keeps it. */
static void fail_cuda(load *l, cudaError_t e, const char *call) {
    pthread_mutex_lock(&l->lock);
    if (l->status == FR_OK) l->status = fr_fail(l->err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
    pthread_mutex_unlock(&l->lock);
}

static bool take(load *l, job *out) {
    pthread_mutex_lock(&l->lock);
    const bool more = l->status == FR_OK && l->next < l->count;
    if (more) *out = l->jobs[l->next++];
    pthread_mutex_unlock(&l->lock);
    return more;
}

static fr_status read_all(load *l, const job *j, char *to) {
    for (int64_t at = 0; at < j->bytes;) {
        const ssize_t n = pread(l->fds[j->file], to + at, (size_t)(j->bytes - at), j->from + at);
        if (n > 0) {
            at += n;
        } else if (n == 0 || errno != EINTR) {
            pthread_mutex_lock(&l->lock);
            fr_status s = l->status != FR_OK ? l->status
                                             : fr_fail(l->err, FR_FAILED, "%s: %s", l->c->files[j->file],
                                                       n == 0 ? "ends before its tensors do" : strerror(errno));
            l->status = s;
            pthread_mutex_unlock(&l->lock);
            return s;
        }
    }
    return FR_OK;
}

/* bf16 to fp32 in place, from the end on; the job then is one of fp32. */
static void widen(job *j, char *buffer) {
    for (int64_t i = j->bytes / 2; i-- > 0;) {
        uint16_t half;
        memcpy(&half, buffer + 2 * i, sizeof half);
        const uint32_t whole_bits = (uint32_t)half << 16;
        memcpy(buffer + 4 * i, &whole_bits, sizeof whole_bits);
    }
    j->bytes *= 2;
    j->row *= 2;
    j->column *= 2;
    j->wanted *= 2;
}

/* Into pinned host memory: by this thread. */
static void copy_out(const job *j, const char *from) {
    const int64_t rows = j->bytes / j->row, step = j->interleave ? 8 : 1;
    const int64_t size = step * j->wanted, place = j->interleave ? 2 * size : size;
    for (int64_t r = 0; r < rows; r += step)
        memcpy(j->to + r / step * place, from + r * j->row + j->column, (size_t)size);
}

static cudaError_t send(const job *j, const char *from, cudaStream_t stream) {
    const size_t row = (size_t)j->row, wanted = (size_t)j->wanted, bytes = (size_t)j->bytes, block = 8 * row;
    if (j->to_host) return copy_out(j, from), cudaSuccess;
    if (j->interleave)
        return cudaMemcpy2DAsync(j->to, 2 * block, from, block, block, bytes / block, cudaMemcpyHostToDevice, stream);
    if (wanted == row) return cudaMemcpyAsync(j->to, from, bytes, cudaMemcpyHostToDevice, stream);
    return cudaMemcpy2DAsync(j->to, wanted, from + j->column, row, wanted, bytes / row, cudaMemcpyHostToDevice, stream);
}

static cudaError_t open_reader(const load *l, int64_t index, reader *r) {
    cudaError_t e = cudaSetDevice(l->device);
    r->stream = l->stream[index % STREAMS];
    for (int i = 0; i < 2 && !e; i++) {
        r->staging[i] = l->pinned + (2 * index + i) * STAGING;
        e = cudaEventCreateWithFlags(&r->free[i], cudaEventDisableTiming);
    }
    return e;
}

static void *read_jobs(void *context) {
    load *l = context;
    reader r = {0};
    pthread_mutex_lock(&l->lock);
    const int64_t index = l->readers++;
    pthread_mutex_unlock(&l->lock);
    cudaError_t e = open_reader(l, index, &r);
    job j;
    for (int turn = 0; !e && take(l, &j); turn ^= 1) {
        e = cudaEventSynchronize(r.free[turn]); /* an event never recorded is complete */
        if (!e && read_all(l, &j, r.staging[turn]) != FR_OK) break;
        if (!e && j.widen) widen(&j, r.staging[turn]);
        if (!e) e = send(&j, r.staging[turn], r.stream);
        if (!e) e = cudaEventRecord(r.free[turn], r.stream);
    }
    for (int i = 0; i < 2 && !e; i++) e = cudaEventSynchronize(r.free[i]);
    if (e) fail_cuda(l, e, "copying weights");
    for (int i = 0; i < 2; i++)
        if (r.free[i]) cudaEventDestroy(r.free[i]);
    return NULL;
}

/* One for each CPU that this process may use. */
static int most_readers(void) {
    cpu_set_t set;
    const int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : READERS;
    return cpus < READERS ? cpus : READERS;
}

/* What the readers need of the device: a thread of its own, beside the reading of headers. */
static void *prepare_staging(void *context) {
    load *l = context;
    cudaError_t e = cudaSetDevice(l->device);
    for (int i = 0; i < STREAMS && !e; i++) e = cudaStreamCreateWithFlags(&l->stream[i], cudaStreamNonBlocking);
    l->pinning = e ? fr_fail(&l->pinning_err, FR_FAILED, "a stream for weights: %s", cudaGetErrorString(e))
                   : fr_pinned_open(l->pinned_bytes, &l->pinned, &l->pinning_err);
    return NULL;
}

static void close_staging(load *l) {
    for (int i = 0; i < STREAMS; i++)
        if (l->stream[i]) cudaStreamDestroy(l->stream[i]);
    fr_pinned_close(l->pinned, l->pinned_bytes);
}

static void run_readers(load *l) {
    pthread_t threads[READERS];
    int started = 0;
    const int most = most_readers();
    pthread_mutex_init(&l->lock, NULL);
    while (started < most && pthread_create(&threads[started], NULL, read_jobs, l) == 0) started++;
    if (!started) note(l, fr_fail(l->err, FR_FAILED, "cannot start a thread that reads weights"));
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&l->lock);
}

static void open_files(load *l) {
    l->fds = fr_alloc(l->c->files_count * sizeof *l->fds);
    for (uint32_t i = 0; i < l->c->files_count; i++) {
        l->fds[i] = open(l->c->files[i], O_RDONLY | O_CLOEXEC);
        if (l->fds[i] < 0 && l->status == FR_OK)
            l->status = fr_fail(l->err, FR_FAILED, "%s: %s", l->c->files[i], strerror(errno));
    }
}

/* Headers, the list of jobs, files. */
static void open_checkpoint(load *l, fr_checkpoint *c, const char *dir) {
    l->status = fr_checkpoint_open(dir, c, l->err);
    if (l->status != FR_OK) return;
    l->used = fr_alloc(c->count + 1);
    list_all(l);
    if (l->status == FR_OK) open_files(l);
}

fr_status fr_weights_load(fr_weights *w, const fr_model *m, const char *dir, fr_error *err) {
    struct timespec a, b;
    fr_checkpoint c = {0};
    pthread_t thread;
    if (w->shard.modulo > m->layers)
        return fr_fail(err, FR_BAD_INPUT, "--layers %d: the checkpoint has %d; say --resident-layers %d",
                       w->shard.modulo, m->layers, m->layers);
    clock_gettime(CLOCK_MONOTONIC, &a);
    load l = {.c = &c, .m = m, .w = w, .err = err, .pinned_bytes = 2 * STAGING * most_readers()};
    cudaGetDevice(&l.device);
    const bool beside = pthread_create(&thread, NULL, prepare_staging, &l) == 0;
    open_checkpoint(&l, &c, dir);
    if (beside)
        pthread_join(thread, NULL);
    else
        prepare_staging(&l);
    if (l.status == FR_OK && l.pinning != FR_OK) l.status = fr_fail(err, l.pinning, "%.900s", l.pinning_err.text);
    if (l.status == FR_OK) run_readers(&l);
    close_staging(&l);
    for (uint32_t i = 0; l.fds && i < c.files_count; i++)
        if (l.fds[i] >= 0) close(l.fds[i]);
    free(l.fds);
    free(l.jobs);
    free(l.used);
    fr_checkpoint_close(&c);
    if (l.status != FR_OK) return l.status;
    FR_TRY(fr_weights_filled(w, err));
    clock_gettime(CLOCK_MONOTONIC, &b);
    w->seconds = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
    return FR_OK;
}

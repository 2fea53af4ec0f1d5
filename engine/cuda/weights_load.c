/*
 * Checkpoints into memory: a list of jobs (a run of rows of a tensor, which of their columns are wanted, and where they
 * go), taken by threads that read into pinned buffers of their own and copy from there, so that disk or page cache,
 * memory and link work at once. Gate and up are interleaved on the way by strided copies. Only what this rank holds
 * becomes a job; every tensor of its layers is checked.
 */
#include "engine/cuda/weights.h"
#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STAGING ((int64_t)8 << 20) /* bytes a buffer: a copy of 8 MiB runs at the link's rate */
#define READERS 8 /* threads: a core copies some 8 to 10 GB/s out of the page cache, the link takes 55 */

/*
 * `bytes` from `from` in a file, rows of `row` bytes, of each of which `wanted` from `column` on go to `to`, packed.
 * interleave: whole rows, blocks of 8 of which go to every second such block.
 */
typedef struct {
    int32_t file;
    bool interleave, to_host;
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
    uint32_t next;
    fr_status status;
    fr_error *err;
} load;

/* ---- the list -----------------------------------------------------------------------------------------------------*/

typedef struct {
    int64_t row, column, wanted; /* bytes; see job */
    bool interleave, to_host;
} way;

static way rows_of(int64_t row) {
    return (way){.row = row, .wanted = row};
}

/* `bytes` of a tensor from its byte `skip` on, whole rows. */
static void add_job(load *l, const fr_tensor *t, int64_t skip, int64_t bytes, way w, void *to) {
    const int64_t block = w.interleave ? 8 * w.row : w.row;
    const int64_t step = fr_max_i64(STAGING / block, 1) * block;
    for (int64_t at = 0; at < bytes; at += step) {
        FR_GROW(l->jobs, l->capacity, l->count + 1);
        l->jobs[l->count++] = (job){.file = t->file,
                                    .interleave = w.interleave,
                                    .to_host = w.to_host,
                                    .from = t->begin + skip + at,
                                    .bytes = fr_min_i64(step, bytes - at),
                                    .row = w.row,
                                    .column = w.column,
                                    .wanted = w.wanted,
                                    .to = (char *)to + at / w.row * w.wanted * (w.interleave ? 2 : 1)};
    }
}

/* The tensor of that name, of exactly that shape (up to three dimensions, 0 = none); NULL with a reason otherwise. */
static const fr_tensor *want(load *l, const char *name, int64_t a, int64_t b, int64_t c) {
    const fr_tensor *t = fr_checkpoint_find(l->c, name);
    const int64_t shape[3] = {a, b, c};
    const int rank = c ? 3 : b ? 2 : 1;
    if (l->status != FR_OK) return NULL;
    if (!t) {
        l->status = fr_fail(l->err, FR_BAD_INPUT, "checkpoint %s: no tensor %s", l->c->files[0], name);
        return NULL;
    }
    bool same = t->rank == rank && strcmp(t->dtype, "BF16") == 0;
    for (int i = 0; i < rank && same; i++) same = t->shape[i] == shape[i];
    if (!same) {
        l->status = fr_fail(l->err, FR_BAD_INPUT, "%s: %s: expected BF16 [%lld, %lld, %lld], got %s of rank %d",
                            l->c->files[t->file], name, (long long)a, (long long)b, (long long)c, t->dtype, t->rank);
        return NULL;
    }
    l->used[t - l->c->tensors] = true;
    return t;
}

/* Rows [first, end) of a matrix, or of a vector (columns 0: all of it). NULL `to`: checked, not read. */
static void some_rows(load *l, const char *name, int64_t rows, int64_t columns, int64_t first, int64_t end, void *to) {
    const fr_tensor *t = want(l, name, rows, columns, 0);
    const int64_t row = 2 * (columns ? columns : 1);
    if (!t || !to) return;
    if (columns)
        add_job(l, t, first * row, (end - first) * row, rows_of(row), to);
    else
        add_job(l, t, 0, t->bytes, rows_of(t->bytes), to);
}

static void whole(load *l, const char *name, int64_t rows, int64_t columns, void *to) {
    some_rows(l, name, rows, columns, 0, rows, to);
}

static bool has(const load *l, const char *name) {
    return fr_checkpoint_find(l->c, name) != NULL;
}

/* ---- experts ------------------------------------------------------------------------------------------------------*/

/* Where an expert of a layer goes: among the own ones, into the first layer's gathered set, or nowhere (NULL). */
typedef struct {
    char *gate_up, *down;
} expert_place;

static expert_place place_of(const fr_weights *w, const fr_model *m, int held, int e) {
    const fr_shard *s = &w->shard;
    const bool own = e >= s->expert_first && e < s->expert_end;
    const bool first = s->gathers && held == fr_shard_layer(s, s->first_layer);
    if (own && s->on_host && !w->owns_host) return (expert_place){0};
    if (!own && !first) return (expert_place){0};
    if (own)
        return (expert_place){fr_weights_expert(w, held, 0, e - s->expert_first),
                              fr_weights_expert(w, held, 1, e - s->expert_first)};
    const int places = fr_shard_slot_experts(s, m), at = fr_shard_slot_place(s, e);
    return (expert_place){w->first + fr_run_offset(&w->run, places, 0, at),
                          w->first + fr_run_offset(&w->run, places, 1, at)};
}

/* Gate or up of an expert, at byte `skip` of its tensor: this rank's rows of it. */
static void add_half(load *l, const fr_tensor *t, int64_t skip, int half, expert_place p) {
    const fr_shard *s = &l->w->shard;
    const int64_t row = 2 * (int64_t)l->m->hidden;
    way w = rows_of(row);
    w.interleave = true;
    w.to_host = s->on_host;
    if (t && p.gate_up)
        add_job(l, t, skip + s->width_first * row, (s->width_end - s->width_first) * row, w,
                p.gate_up + 8 * half * row);
}

/* Down of an expert: this rank's columns of it. */
static void add_down(load *l, const fr_tensor *t, int64_t skip, expert_place p) {
    const fr_shard *s = &l->w->shard;
    const way w = {.row = 2 * (int64_t)l->m->expert_width,
                   .column = 2 * (int64_t)s->width_first,
                   .wanted = 2 * (int64_t)(s->width_end - s->width_first),
                   .to_host = s->on_host};
    if (t && p.down) add_job(l, t, skip, l->m->hidden * w.row, w, p.down);
}

/* Experts one by one (gate, up, down of each), as both families are published. */
static void separate_experts(load *l, const char *block, const char *const names[3], int held) {
    const int64_t h = l->m->hidden, i = l->m->expert_width;
    char name[256];
    for (int e = 0; e < l->m->experts; e++) {
        const expert_place p = place_of(l->w, l->m, held, e);
        for (int half = 0; half < 2; half++) {
            snprintf(name, sizeof name, "%s.experts.%d.%s.weight", block, e, names[half]);
            add_half(l, want(l, name, i, h, 0), 0, half, p);
        }
        snprintf(name, sizeof name, "%s.experts.%d.%s.weight", block, e, names[2]);
        add_down(l, want(l, name, h, i, 0), 0, p);
    }
}

/* Experts stacked, gate above up, as transformers 5 holds them. */
static void stacked_experts(load *l, const char *block, int held) {
    const int64_t h = l->m->hidden, i = l->m->expert_width, n = l->m->experts;
    char name[256];
    snprintf(name, sizeof name, "%s.experts.gate_up_proj", block);
    const fr_tensor *up = want(l, name, n, 2 * i, h);
    snprintf(name, sizeof name, "%s.experts.down_proj", block);
    const fr_tensor *down = want(l, name, n, h, i);
    for (int e = 0; e < l->m->experts; e++) {
        const expert_place p = place_of(l->w, l->m, held, e);
        for (int half = 0; half < 2; half++) add_half(l, up, (2 * e + half) * i * h * 2, half, p);
        add_down(l, down, e * i * h * 2, p);
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
    if (has(l, name))
        stacked_experts(l, block, held);
    else
        separate_experts(l, block, old ? mixtral : qwen, held);
}

/* ---- the rest of a layer ------------------------------------------------------------------------------------------*/

/* The rank's heads of the output projection are columns of it. */
static void list_o(load *l, const char *name, void *to) {
    const fr_model *m = l->m;
    const fr_region r = fr_shard_o(&l->w->shard, m);
    const fr_tensor *t = want(l, name, r.rows, r.stride, 0);
    if (t) add_job(l, t, 0, t->bytes, (way){.row = 2 * r.stride, .column = 2 * r.first, .wanted = 2 * r.columns}, to);
}

static void list_layer(load *l, int held) {
    const fr_model *m = l->m;
    const fr_shard *s = &l->w->shard;
    const fr_layer_weights *w = &l->w->layer[held];
    const int layer = fr_shard_layer_id(s, held);
    const int64_t h = m->hidden, d = m->head_dim, q = m->heads * d, kv = m->kv_heads * d;
    const int64_t q0 = s->head_first * d, q1 = q0 + s->heads * d, k0 = s->kv_first * d, k1 = k0 + s->kv_heads * d;
    const struct {
        const char *name;
        int64_t rows, columns, first, end;
        fr_bf16 *to;
    } plain[] = {{"input_layernorm", h, 0, 0, h, w->input_norm},
                 {"post_attention_layernorm", h, 0, 0, h, w->post_norm},
                 {"self_attn.q_proj", q, h, q0, q1, w->qkv},
                 {"self_attn.k_proj", kv, h, k0, k1, w->qkv + (q1 - q0) * h},
                 {"self_attn.v_proj", kv, h, k0, k1, w->qkv + (q1 - q0 + k1 - k0) * h},
                 {"self_attn.q_norm", d, 0, 0, d, w->q_norm},
                 {"self_attn.k_norm", d, 0, 0, d, w->k_norm}};
    char name[256];
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, plain[i].name);
        if (plain[i].to) some_rows(l, name, plain[i].rows, plain[i].columns, plain[i].first, plain[i].end, plain[i].to);
    }
    snprintf(name, sizeof name, "model.layers.%d.self_attn.o_proj.weight", layer);
    list_o(l, name, w->o);
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
    char *staging[2];
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

static cudaError_t open_reader(const load *l, reader *r) {
    cudaError_t e = cudaSetDevice(l->device);
    if (!e) e = cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && !e; i++) {
        e = cudaHostAlloc((void **)&r->staging[i], (size_t)fr_max_i64(STAGING, 8 * 2 * (int64_t)FR_K_MAX_HIDDEN),
                          cudaHostAllocDefault);
        if (!e) e = cudaEventCreateWithFlags(&r->free[i], cudaEventDisableTiming);
    }
    return e;
}

static void *read_jobs(void *context) {
    load *l = context;
    reader r = {0};
    cudaError_t e = open_reader(l, &r);
    job j;
    for (int turn = 0; !e && take(l, &j); turn ^= 1) {
        e = cudaEventSynchronize(r.free[turn]); /* an event never recorded is complete */
        if (!e && read_all(l, &j, r.staging[turn]) != FR_OK) break;
        if (!e) e = send(&j, r.staging[turn], r.stream);
        if (!e) e = cudaEventRecord(r.free[turn], r.stream);
    }
    if (!e) e = cudaStreamSynchronize(r.stream);
    if (e) fail_cuda(l, e, "copying weights");
    for (int i = 0; i < 2; i++) {
        if (r.free[i]) cudaEventDestroy(r.free[i]);
        if (r.staging[i]) cudaFreeHost(r.staging[i]);
    }
    if (r.stream) cudaStreamDestroy(r.stream);
    return NULL;
}

static void run_readers(load *l) {
    pthread_t threads[READERS];
    int started = 0;
    cudaGetDevice(&l->device);
    pthread_mutex_init(&l->lock, NULL);
    while (started < READERS && pthread_create(&threads[started], NULL, read_jobs, l) == 0) started++;
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

fr_status fr_weights_load(fr_weights *w, const fr_model *m, const char *dir, fr_error *err) {
    struct timespec a, b;
    fr_checkpoint c;
    if (w->shard.modulo > m->layers)
        return fr_fail(err, FR_BAD_INPUT, "--layers %d: the checkpoint has %d; say --resident-layers %d",
                       w->shard.modulo, m->layers, m->layers);
    clock_gettime(CLOCK_MONOTONIC, &a);
    FR_TRY(fr_checkpoint_open(dir, &c, err));
    load l = {.c = &c, .m = m, .w = w, .err = err, .used = fr_alloc(c.count + 1)};
    list_all(&l);
    if (l.status == FR_OK) open_files(&l);
    if (l.status == FR_OK) run_readers(&l);
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

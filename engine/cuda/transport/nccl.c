#include "engine/cuda/transport/nccl.h"

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ABORT_S 3.0 /* that a caller waits for the library to give a communicator up */

/* X(field, symbol, parameters): what is used of the library; all return ncclResult_t. */
#define FUNCTIONS(X)                                                                                                   \
    X(version, ncclGetVersion, (int *))                                                                                \
    X(unique, ncclGetUniqueId, (ncclUniqueId *))                                                                       \
    X(init, ncclCommInitRankConfig, (ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *))                            \
    X(destroy, ncclCommDestroy, (ncclComm_t))                                                                          \
    X(abort, ncclCommAbort, (ncclComm_t))                                                                              \
    X(async, ncclCommGetAsyncError, (ncclComm_t, ncclResult_t *))                                                      \
    X(start, ncclGroupStart, (void))                                                                                   \
    X(end, ncclGroupEnd, (void))                                                                                       \
    X(allreduce, ncclAllReduce, (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t)) \
    X(allgather, ncclAllGather, (const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t))              \
    X(scatter, ncclReduceScatter,                                                                                      \
      (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t))                           \
    X(broadcast, ncclBroadcast, (const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t))         \
    X(reduce, ncclReduce, (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t, cudaStream_t))  \
    X(send, ncclSend, (const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t))                           \
    X(recv, ncclRecv, (void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t))                                 \
    X(memory, ncclMemAlloc, (void **, size_t))                                                                         \
    X(release, ncclMemFree, (void *))                                                                                  \
    X(window, ncclCommWindowRegister, (ncclComm_t, void *, size_t, ncclWindow_t *, int))                               \
    X(unwindow, ncclCommWindowDeregister, (ncclComm_t, ncclWindow_t))

struct fr_nccl {
    void *library;
    const char *(*text)(ncclResult_t);
#define FIELD(field, symbol, parameters) ncclResult_t(*field) parameters;
    FUNCTIONS(FIELD)
#undef FIELD
};

struct fr_nccl_comm {
    fr_nccl *lib;
    ncclComm_t comm;
    int ranks, me;
    bool copy_engines;
    pthread_mutex_t lock; /* of the library's communicator */
    atomic_bool aborted, gone;
};

static fr_status check(const fr_nccl *n, ncclResult_t r, const char *call, fr_error *err) {
    if (r == ncclSuccess || r == ncclInProgress) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, n->text(r));
}

static bool load(void *library, const char *name, void *slot) {
    void *symbol = dlsym(library, name);
    memcpy(slot, &symbol, sizeof symbol); /* ISO C has no conversion of an object pointer to a function pointer */
    return symbol != NULL;
}

fr_status fr_nccl_load(fr_nccl **out, fr_error *err) {
    const char *nvls = getenv("NCCL_NVLS_ENABLE");
    *out = NULL;
    if (!nvls || strcmp(nvls, "0") != 0)
        return fr_fail(err, FR_FAILED,
                       "NCCL_NVLS_ENABLE is not 0: NVLink multicast can put a host's GPUs out of service");
    fr_nccl *n = fr_alloc(sizeof *n);
    n->library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    fr_status s = FR_OK;
    if (!n->library) s = fr_fail(err, FR_FAILED, "several GPUs need NCCL: %s", dlerror());
    if (s == FR_OK && !load(n->library, "ncclGetErrorString", &n->text))
        s = fr_fail(err, FR_FAILED, "libnccl.so.2 has no ncclGetErrorString");
#define FIND(field, symbol, parameters)                                                                                \
    if (s == FR_OK && !load(n->library, #symbol, &n->field))                                                           \
        s = fr_fail(err, FR_FAILED, "libnccl.so.2 has no " #symbol);
    FUNCTIONS(FIND)
#undef FIND
    int v = 0;
    if (s == FR_OK) s = check(n, n->version(&v), "ncclGetVersion", err);
    if (s == FR_OK && (v / 100 != NCCL_VERSION_CODE / 100 || v < NCCL_VERSION_CODE))
        s = fr_fail(
            err, FR_FAILED,
            "NCCL: the library is version %d, this program was built against %d: put the matching library first "
            "in LD_LIBRARY_PATH",
            v, NCCL_VERSION_CODE);
    if (s != FR_OK) {
        fr_nccl_unload(n);
        return s;
    }
    *out = n;
    return FR_OK;
}

void fr_nccl_unload(fr_nccl *n) {
    /* The library stays loaded: it has threads of its own. */
    free(n);
}

fr_status fr_nccl_unique(fr_nccl *n, char id[FR_NCCL_ID_BYTES], fr_error *err) {
    ncclUniqueId unique;
    _Static_assert(sizeof unique == FR_NCCL_ID_BYTES, "the size of NCCL's unique id");
    FR_TRY(check(n, n->unique(&unique), "ncclGetUniqueId", err));
    memcpy(id, &unique, sizeof unique);
    return FR_OK;
}

/* ---- connecting ---------------------------------------------------------------------------------------------------*/

/* Shared by the caller and the thread that connects; whoever leaves last frees it. */
typedef struct {
    fr_nccl_request request;
    fr_nccl_comm comm;
    fr_status status;
    fr_error err;
    bool done, left;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} attempt;

static fr_status cuda(cudaError_t e, const char *call, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

static fr_status first_messages(fr_nccl_comm *c, const char *in, char *out, cudaStream_t stream, fr_error *err) {
    const fr_nccl *n = c->lib;
    FR_TRY(check(n, n->start(), "ncclGroupStart", err));
    for (int i = 0; i < c->ranks; i++) {
        if (i == c->me) continue;
        FR_TRY(check(n, n->send(in, 16, ncclInt8, i, c->comm, stream), "ncclSend", err));
        FR_TRY(check(n, n->recv(out + 16 * i, 16, ncclInt8, i, c->comm, stream), "ncclRecv", err));
    }
    return check(n, n->end(), "ncclGroupEnd", err);
}

/* One element of everything that the communicator is for: what else could be called takes memory too. */
static fr_status first_use(fr_nccl_comm *c, fr_nccl_uses uses, char *memory, cudaStream_t stream, fr_error *err) {
    const fr_nccl *n = c->lib;
    char *in = memory, *out = memory + 4096;
    if (uses != FR_NCCL_COLLECTIVES) FR_TRY(first_messages(c, in, out, stream, err));
    if (uses == FR_NCCL_MESSAGES) return FR_OK;
    FR_TRY(check(n, n->allreduce(in, out, 8, ncclBfloat16, ncclSum, c->comm, stream), "ncclAllReduce", err));
    FR_TRY(check(n, n->allgather(in, out, 16, ncclInt8, c->comm, stream), "ncclAllGather", err));
    FR_TRY(check(n, n->scatter(in, out, 8, ncclBfloat16, ncclSum, c->comm, stream), "ncclReduceScatter", err));
    for (int i = 0; i < c->ranks; i++) {
        FR_TRY(check(n, n->broadcast(in, out, 16, ncclInt8, i, c->comm, stream), "ncclBroadcast", err));
        FR_TRY(check(n, n->reduce(in, out, 8, ncclBfloat16, ncclSum, i, c->comm, stream), "ncclReduce", err));
    }
    return FR_OK;
}

static fr_status connect_now(attempt *a, fr_error *err) {
    const fr_nccl_request *r = &a->request;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    memcpy(&id, r->id, sizeof id);
    if (r->copy_engines) config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
    a->comm = (fr_nccl_comm){.lib = r->lib, .ranks = r->ranks, .me = r->me, .copy_engines = r->copy_engines};
    FR_TRY(cuda(cudaSetDevice(r->device), "cudaSetDevice", err));
    FR_TRY(check(r->lib, r->lib->init(&a->comm.comm, r->ranks, id, r->me, &config), "ncclCommInitRankConfig", err));
    char *memory = NULL;
    cudaStream_t stream = NULL;
    FR_TRY(cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate", err));
    FR_TRY(cuda(cudaMalloc((void **)&memory, 8192 + 16 * (size_t)r->ranks), "cudaMalloc", err));
    FR_TRY(cuda(cudaMemset(memory, 0, 8192), "cudaMemset", err));
    FR_TRY(first_use(&a->comm, r->uses, memory, stream, err));
    FR_TRY(cuda(cudaStreamSynchronize(stream), "the first collectives", err));
    cudaFree(memory);
    return cuda(cudaStreamDestroy(stream), "cudaStreamDestroy", err);
}

static void release(attempt *a) {
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->changed);
    free(a);
}

static void *connect_thread(void *context) {
    attempt *a = context;
    fr_error err = {0};
    const fr_status s = connect_now(a, &err);
    pthread_mutex_lock(&a->lock);
    a->status = s;
    a->err = err;
    a->done = true;
    const bool left = a->left;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
    if (left) release(a);
    return NULL;
}

/* Waits for the thread; true when it has ended. */
static bool await(attempt *a, fr_error *err) {
    const double end = fr_monotonic_s() + a->request.timeout_s;
    fr_error why = {0};
    int rank = 0;
    while (!a->done) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 100 * 1000 * 1000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&a->changed, &a->lock, &until);
        if (a->done) break;
        if (a->request.world && fr_world_failed(a->request.world, &rank, &why)) {
            fr_fail(err, FR_FAILED, "%.900s", why.text);
            return false;
        }
        if (fr_monotonic_s() > end) {
            fr_fail(err, FR_FAILED, "NCCL: %d ranks did not connect within %.3g s (--timeout sets the limit)",
                    a->request.ranks, a->request.timeout_s);
            return false;
        }
    }
    return true;
}

fr_status fr_nccl_connect(const fr_nccl_request *r, fr_nccl_comm **out, fr_error *err) {
    attempt *a = fr_alloc(sizeof *a);
    pthread_t thread;
    *out = NULL;
    a->request = *r;
    pthread_mutex_init(&a->lock, NULL);
    fr_cond_open(&a->changed);
    if (pthread_create(&thread, NULL, connect_thread, a) != 0) {
        release(a);
        return fr_fail(err, FR_FAILED, "cannot start a thread");
    }
    pthread_detach(thread);
    pthread_mutex_lock(&a->lock);
    const bool ended = await(a, err);
    a->left = !ended;
    pthread_mutex_unlock(&a->lock);
    if (!ended) return FR_FAILED;
    fr_status s = a->status;
    if (s == FR_OK) {
        fr_nccl_comm *c = fr_alloc(sizeof *c);
        c->lib = a->comm.lib;
        c->comm = a->comm.comm;
        c->ranks = a->comm.ranks;
        c->me = a->comm.me;
        c->copy_engines = a->comm.copy_engines;
        pthread_mutex_init(&c->lock, NULL);
        *out = c;
    } else if (err) {
        *err = a->err;
    }
    release(a);
    return s;
}

/* ---- giving up ----------------------------------------------------------------------------------------------------*/

static bool lock_within(pthread_mutex_t *lock, double s) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)s;
    return pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &until) == 0;
}

/* The library frees the communicator, so the rank's thread must be out of it; one that stands still in it for long will
 * not come back unless this is done. */
static void *abort_thread(void *context) {
    fr_nccl_comm *c = context;
    const bool alone = lock_within(&c->lock, 1);
    c->lib->abort(c->comm);
    if (alone) pthread_mutex_unlock(&c->lock);
    atomic_store(&c->gone, true);
    return NULL;
}

void fr_nccl_abort(fr_nccl_comm *const *comms, uint32_t count) {
    bool asked = false;
    for (uint32_t i = 0; i < count; i++) { /* all at once: what runs on one may wait for what runs on another */
        pthread_t thread;
        if (!comms[i] || atomic_exchange(&comms[i]->aborted, true)) continue;
        asked = true;
        if (pthread_create(&thread, NULL, abort_thread, comms[i]) == 0) pthread_detach(thread);
    }
    const double end = fr_monotonic_s() + ABORT_S;
    for (uint32_t i = 0; asked && i < count; i++) /* who was asked before was waited for then */
        while (comms[i] && !atomic_load(&comms[i]->gone) && fr_monotonic_s() < end)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

void fr_nccl_close(fr_nccl_comm *c, bool abort) {
    if (!c) return;
    if (abort) fr_nccl_abort(&c, 1);
    if (!atomic_load(&c->aborted))
        c->lib->destroy(c->comm);
    else if (!atomic_load(&c->gone))
        return; /* a thread is still at it */
    pthread_mutex_destroy(&c->lock);
    free(c);
}

fr_status fr_nccl_check(fr_nccl_comm *c, fr_error *err) {
    ncclResult_t now = ncclSuccess, asked = ncclSuccess;
    if (pthread_mutex_trylock(&c->lock) != 0) return FR_OK; /* in use: another time */
    if (!atomic_load(&c->aborted)) asked = c->lib->async(c->comm, &now);
    pthread_mutex_unlock(&c->lock);
    FR_TRY(check(c->lib, asked, "ncclCommGetAsyncError", err));
    return check(c->lib, now, "an NCCL collective", err);
}

/* ---- memory -------------------------------------------------------------------------------------------------------*/

fr_status fr_nccl_window_open(fr_nccl_comm *c, size_t bytes, void **base, void **handle, fr_error *err) {
    const fr_nccl *n = c->lib;
    ncclWindow_t window = NULL;
    *base = NULL;
    FR_TRY(check(n, n->memory(base, bytes), "ncclMemAlloc", err));
    fr_status s =
        check(n, n->window(c->comm, *base, bytes, &window, NCCL_WIN_COLL_SYMMETRIC), "ncclCommWindowRegister", err);
    if (s == FR_OK && !window)
        s = fr_fail(err, FR_FAILED, "NCCL registers no symmetric window here (peer access between all ranks?)");
    if (s != FR_OK) n->release(*base);
    *handle = window;
    return s;
}

void fr_nccl_window_close(fr_nccl_comm *c, void *base, void *handle) {
    c->lib->unwindow(c->comm, handle);
    c->lib->release(base);
}

/* ---- collectives --------------------------------------------------------------------------------------------------*/

static bool even(const fr_nccl_comm *c, const fr_collective *op) {
    for (int i = 1; i < c->ranks; i++)
        if (op->rows[i] != op->rows[0]) return false;
    return true;
}

static ncclResult_t gather_array(const fr_nccl_comm *c, const fr_collective *op, int a, cudaStream_t stream) {
    const fr_nccl *n = c->lib;
    const int64_t row = op->row_bytes[a];
    if (even(c, op)) return n->allgather(op->in[a], op->out[a], (size_t)(op->rows[0] * row), ncclInt8, c->comm, stream);
    char *to = op->out[a];
    for (int i = 0; i < c->ranks; i++) {
        const size_t bytes = (size_t)(op->rows[i] * row);
        ncclResult_t r = ncclSuccess;
        if (bytes) r = n->broadcast(i == c->me ? op->in[a] : to, to, bytes, ncclInt8, i, c->comm, stream);
        if (r != ncclSuccess) return r;
        to += bytes;
    }
    return ncclSuccess;
}

static ncclResult_t scatter_array(const fr_nccl_comm *c, const fr_collective *op, int a, cudaStream_t stream) {
    const fr_nccl *n = c->lib;
    const int64_t row = op->row_bytes[a];
    if (even(c, op))
        return n->scatter(op->in[a], op->out[a], (size_t)(op->rows[0] * row / 2), ncclBfloat16, ncclSum, c->comm,
                          stream);
    const char *from = op->in[a];
    for (int i = 0; i < c->ranks; i++) {
        const size_t bytes = (size_t)(op->rows[i] * row);
        ncclResult_t r = ncclSuccess;
        if (bytes) r = n->reduce(from, op->out[a], bytes / 2, ncclBfloat16, ncclSum, i, c->comm, stream);
        if (r != ncclSuccess) return r;
        from += bytes;
    }
    return ncclSuccess;
}

static ncclResult_t run_array(const fr_nccl_comm *c, const fr_collective *op, int a, int peer, cudaStream_t stream) {
    const fr_nccl *n = c->lib;
    const size_t bytes = (size_t)(op->rows[0] * op->row_bytes[a]);
    switch (op->kind) {
    case FR_OP_ALLREDUCE:
        return n->allreduce(op->in[a], op->out[a], bytes / 2, ncclBfloat16, ncclSum, c->comm, stream);
    case FR_OP_ALLGATHER:
    case FR_OP_GATHER_WEIGHTS:
        return gather_array(c, op, a, stream);
    case FR_OP_REDUCESCATTER:
        return scatter_array(c, op, a, stream);
    case FR_OP_SEND:
        return n->send(op->in[a], bytes, ncclInt8, peer, c->comm, stream);
    case FR_OP_RECV:
        return n->recv(op->out[a], bytes, ncclInt8, peer, c->comm, stream);
    default:
        return ncclInvalidArgument;
    }
}

fr_status fr_nccl_run(fr_nccl_comm *c, const fr_collective *op, int peer, cudaStream_t stream, fr_error *err) {
    const fr_nccl *n = c->lib;
    const bool grouped = !c->copy_engines; /* they carry one collective at a time */
    pthread_mutex_lock(&c->lock);
    if (atomic_load(&c->aborted)) {
        pthread_mutex_unlock(&c->lock);
        return fr_fail(err, FR_FAILED, "the communicator was given up");
    }
    ncclResult_t r = grouped ? n->start() : ncclSuccess, end = ncclSuccess;
    for (int a = 0; a < op->arrays && r == ncclSuccess; a++) r = run_array(c, op, a, peer, stream);
    if (grouped) end = n->end();
    pthread_mutex_unlock(&c->lock);
    return check(n, r == ncclSuccess ? end : r, fr_op_name(op->kind), err);
}

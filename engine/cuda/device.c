#include "engine/cuda/device.h"

#include "kernels/attention.h"
#include "kernels/gemm.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static fr_status check(cudaError_t e, const char *call, fr_error *err) {
    if (e == cudaSuccess) return FR_OK;
    return fr_fail(err, FR_FAILED, "%s failed: %s", call, cudaGetErrorString(e));
}

fr_status fr_device_environment(fr_error *err) {
    const char *nvls = getenv("NCCL_NVLS_ENABLE");
    if (nvls && strcmp(nvls, "0") != 0)
        return fr_fail(err, FR_BAD_INPUT,
                       "NCCL_NVLS_ENABLE=%s: NVLink multicast can put a host's GPUs out of service; unset it or set 0",
                       nvls);
    if (setenv("NCCL_NVLS_ENABLE", "0", 1) != 0) return fr_fail(err, FR_FAILED, "cannot set NCCL_NVLS_ENABLE=0");
    /* A stream that waits for another rank holds up the others of its hardware queue: there must be a queue for each
     * (CUDA C++ Programming Guide, environment variables; the default is 8). */
    if (setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0) != 0)
        return fr_fail(err, FR_FAILED, "cannot set CUDA_DEVICE_MAX_CONNECTIONS");
    /* All of NCCL's connections are made at the start: one made in a run would wait on the host, unbounded. */
    if (setenv("NCCL_RUNTIME_CONNECT", "0", 0) != 0) return fr_fail(err, FR_FAILED, "cannot set NCCL_RUNTIME_CONNECT");
    return FR_OK;
}

/* ---- NVML, which comes with the driver: by name at run time, so that builds need no NVML header -----------------*/

typedef struct nvml_device *nvml_handle;
enum { NVML_CLOCK_SM = 1, NVML_LINKS = 18 /* NVML_NVLINK_MAX_LINKS */ };
#define NVML_REASON_POWER_CAP 0x4ull /* nvmlClocksEventReasonSwPowerCap (NVML API reference) */

typedef struct {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*driver)(char *, unsigned);
    int (*by_bus)(const char *, nvml_handle *);
    int (*clock)(nvml_handle, int, unsigned *);
    int (*max_clock)(nvml_handle, int, unsigned *);
    int (*power)(nvml_handle, unsigned *);
    int (*limit)(nvml_handle, unsigned *);
    int (*reasons)(nvml_handle, unsigned long long *);
    int (*energy)(nvml_handle, unsigned long long *); /* mJ since the driver was loaded; NULL = unknown */
    int (*link)(nvml_handle, unsigned, unsigned *);   /* whether a link is up; NULL = unknown */
} nvml;

static bool load(void *library, const char *name, void *slot) {
    void *symbol = dlsym(library, name);
    memcpy(slot, &symbol, sizeof symbol); /* ISO C has no conversion of an object pointer to a function pointer */
    return symbol != NULL;
}

static bool nvml_open(nvml *n) {
    *n = (nvml){.library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!n->library) return false;
    bool ok = load(n->library, "nvmlInit_v2", &n->init) && load(n->library, "nvmlShutdown", &n->shutdown) &&
              load(n->library, "nvmlSystemGetDriverVersion", &n->driver) &&
              load(n->library, "nvmlDeviceGetHandleByPciBusId_v2", &n->by_bus) &&
              load(n->library, "nvmlDeviceGetClockInfo", &n->clock) &&
              load(n->library, "nvmlDeviceGetMaxClockInfo", &n->max_clock) &&
              load(n->library, "nvmlDeviceGetPowerUsage", &n->power) &&
              load(n->library, "nvmlDeviceGetEnforcedPowerLimit", &n->limit) &&
              load(n->library, "nvmlDeviceGetCurrentClocksThrottleReasons", &n->reasons) && n->init() == 0;
    if (ok) load(n->library, "nvmlDeviceGetTotalEnergyConsumption", &n->energy);
    if (ok) load(n->library, "nvmlDeviceGetNvLinkState", &n->link);
    if (!ok) {
        dlclose(n->library);
        n->library = NULL;
    }
    return ok;
}

static void nvml_close(nvml *n) {
    if (!n->library) return;
    n->shutdown();
    dlclose(n->library);
    n->library = NULL;
}

/* ---- versions -----------------------------------------------------------------------------------------------------*/

/* NCCL is loaded where a layout needs it; here only its version is wanted. */
static int64_t nccl_version(void) {
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    int (*version)(int *) = NULL;
    int v = 0;
    if (!library) return 0;
    if (load(library, "ncclGetVersion", &version)) version(&v);
    dlclose(library);
    return v;
}

static fr_status same_minor(const char *what, int64_t found, int64_t built, int64_t minor, fr_error *err) {
    if (found / minor == built / minor) return FR_OK;
    return fr_fail(err, FR_FAILED,
                   "%s: the library is version %lld, this program was built against %lld: put the matching library "
                   "first in LD_LIBRARY_PATH",
                   what, (long long)found, (long long)built);
}

fr_status fr_device_versions(fr_versions *found, fr_versions *built, fr_error *err) {
    *found = (fr_versions){0};
    *built = (fr_versions){.driver = CUDART_VERSION,
                           .runtime = CUDART_VERSION,
                           .cublaslt = CUBLAS_VER_MAJOR * 10000 + CUBLAS_VER_MINOR * 100 + CUBLAS_VER_PATCH,
                           .cudnn = CUDNN_MAJOR * 10000 + CUDNN_MINOR * 100 + CUDNN_PATCHLEVEL,
                           .nccl = NCCL_VERSION_CODE};
    int v = 0;
    FR_TRY(check(cudaDriverGetVersion(&v), "cudaDriverGetVersion", err));
    found->driver = v;
    FR_TRY(check(cudaRuntimeGetVersion(&v), "cudaRuntimeGetVersion", err));
    found->runtime = v;
    found->cublaslt = fr_gemm_version();
    found->cudnn = fr_attention_version();
    found->nccl = nccl_version();
    nvml n;
    if (nvml_open(&n)) {
        n.driver(found->driver_text, sizeof found->driver_text);
        nvml_close(&n);
    }
    if (found->driver == 0) return fr_fail(err, FR_FAILED, "no NVIDIA driver is loaded");
    if (found->driver / 1000 < CUDART_VERSION / 1000)
        return fr_fail(err, FR_FAILED,
                       "the driver supports CUDA %lld.%lld, this program needs %d.%d: update the driver",
                       (long long)found->driver / 1000, (long long)found->driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    FR_TRY(same_minor("CUDA runtime", found->runtime, built->runtime, 10, err));
    FR_TRY(same_minor("cuBLASLt", found->cublaslt, built->cublaslt, 100, err));
    FR_TRY(same_minor("cuDNN", found->cudnn, built->cudnn, 100, err));
    return found->nccl ? same_minor("NCCL", found->nccl, built->nccl, 100, err) : FR_OK;
}

/* ---- the GPU ------------------------------------------------------------------------------------------------------*/

fr_status fr_device_count(int *count, fr_error *err) {
    return check(cudaGetDeviceCount(count), "cudaGetDeviceCount", err);
}

static void read_nvml(fr_device_facts *d) {
    nvml n;
    nvml_handle h;
    unsigned v;
    if (!nvml_open(&n)) return;
    if (n.by_bus(d->bus, &h) == 0) {
        if (n.clock(h, NVML_CLOCK_SM, &v) == 0) d->sm_mhz = (int)v;
        if (n.max_clock(h, NVML_CLOCK_SM, &v) == 0) d->max_sm_mhz = (int)v;
        if (n.power(h, &v) == 0) d->watts = v / 1000.0;
        if (n.limit(h, &v) == 0) d->limit_watts = v / 1000.0;
        for (unsigned i = 0; i < NVML_LINKS && n.link; i++) d->nvlinks += n.link(h, i, &v) == 0 && v == 1;
    }
    nvml_close(&n);
}

fr_status fr_device_read(int index, fr_device_facts *out, fr_error *err) {
    size_t available = 0, total = 0;
    FR_TRY(fr_device_describe(index, out, err));
    FR_TRY(check(cudaSetDevice(index), "cudaSetDevice", err));
    FR_TRY(check(cudaMemGetInfo(&available, &total), "cudaMemGetInfo", err));
    out->memory_bytes = (int64_t)total;
    out->free_bytes = (int64_t)available;
    return FR_OK;
}

void fr_device_left(int64_t *available, int64_t *total) {
    size_t left = 0, all = 0;
    cudaGetLastError();
    cudaMemGetInfo(&left, &all);
    *available = (int64_t)left;
    *total = (int64_t)all;
}

fr_status fr_device_describe(int index, fr_device_facts *out, fr_error *err) {
    struct cudaDeviceProp p;
    int count = 0;
    *out = (fr_device_facts){.index = index};
    FR_TRY(check(cudaGetDeviceProperties(&p, index), "cudaGetDeviceProperties", err));
    FR_TRY(check(cudaDeviceGetPCIBusId(out->bus, sizeof out->bus, index), "cudaDeviceGetPCIBusId", err));
    snprintf(out->name, sizeof out->name, "%.127s", p.name);
    const unsigned char *u = (const unsigned char *)p.uuid.bytes;
    snprintf(out->uuid, sizeof out->uuid, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    out->sms = p.multiProcessorCount;
    out->major = p.major;
    out->minor = p.minor;
    out->copy_engines = p.asyncEngineCount;
    out->memory_bytes = (int64_t)p.totalGlobalMem;
    FR_TRY(fr_device_count(&count, err));
    for (int i = 0; i < count && i < FR_MAX_DEVICES; i++) {
        int can = 0;
        if (i != index) FR_TRY(check(cudaDeviceCanAccessPeer(&can, index, i), "cudaDeviceCanAccessPeer", err));
        out->peer[i] = can != 0;
        if (!can) continue;
        FR_TRY(check(cudaDeviceGetP2PAttribute(&can, cudaDevP2PAttrNativeAtomicSupported, index, i),
                     "cudaDeviceGetP2PAttribute", err));
        out->atomic[i] = can != 0;
    }
    read_nvml(out);
    return FR_OK;
}

/* ---- the meter ----------------------------------------------------------------------------------------------------*/

struct fr_meter {
    nvml n;
    nvml_handle handle;
    pthread_t thread;
    pthread_mutex_t lock;
    bool stop, running;
    int samples, capped;
    unsigned least;
    double clock, milliwatts;
    double began;                   /* s */
    unsigned long long millijoules; /* mJ, when it began, 0 = unknown */
};

/* mJ, 0 = unknown */
static unsigned long long energy(const struct fr_meter *m) {
    unsigned long long v = 0;
    return m->n.energy && m->n.energy(m->handle, &v) == 0 ? v : 0;
}

static void *sample(void *context) {
    fr_meter *m = context;
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    for (;;) {
        pthread_mutex_lock(&m->lock);
        bool stop = m->stop;
        pthread_mutex_unlock(&m->lock);
        if (stop) return NULL;
        unsigned clock, power;
        unsigned long long reasons = 0;
        if (m->n.clock(m->handle, NVML_CLOCK_SM, &clock) == 0 && m->n.power(m->handle, &power) == 0) {
            m->n.reasons(m->handle, &reasons);
            m->samples++;
            m->capped += (reasons & NVML_REASON_POWER_CAP) != 0;
            m->clock += clock;
            m->milliwatts += power;
            if (m->samples == 1 || clock < m->least) m->least = clock;
        }
        nanosleep(&pause, NULL);
    }
}

fr_meter *fr_meter_open(int device) {
    fr_meter *m = fr_alloc(sizeof *m);
    char bus[32];
    pthread_mutex_init(&m->lock, NULL);
    bool ok = cudaDeviceGetPCIBusId(bus, sizeof bus, device) == cudaSuccess && nvml_open(&m->n) &&
              m->n.by_bus(bus, &m->handle) == 0;
    if (ok) return m;
    nvml_close(&m->n);
    pthread_mutex_destroy(&m->lock);
    free(m);
    return NULL;
}

void fr_meter_begin(fr_meter *m) {
    if (!m) return;
    m->began = fr_monotonic_s();
    m->millijoules = energy(m);
    m->running = pthread_create(&m->thread, NULL, sample, m) == 0;
}

fr_meter *fr_meter_start(int device) {
    fr_meter *m = fr_meter_open(device);
    fr_meter_begin(m);
    return m;
}

void fr_meter_stop(fr_meter *m, fr_meter_reading *out) {
    *out = (fr_meter_reading){0};
    if (!m) return;
    pthread_mutex_lock(&m->lock);
    m->stop = true;
    pthread_mutex_unlock(&m->lock);
    if (m->running) pthread_join(m->thread, NULL);
    if (m->samples)
        *out = (fr_meter_reading){.samples = m->samples,
                                  .sm_mhz_min = (int)m->least,
                                  .sm_mhz = m->clock / m->samples,
                                  .watts = m->milliwatts / 1000 / m->samples,
                                  .capped = (double)m->capped / m->samples,
                                  .power_capped = 2 * m->capped > m->samples};
    const double seconds = fr_monotonic_s() - m->began;
    const unsigned long long spent = m->millijoules ? energy(m) - m->millijoules : 0;
    if (spent && seconds > 0.5) out->watts = 1e-3 * (double)spent / seconds; /* the counter moves every 0.1 s or so */
    nvml_close(&m->n);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

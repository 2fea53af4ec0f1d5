/*
 * device: what the engine stands on: the GPU, the driver and the libraries, and whether they match what this program
 * was built against; clocks and power while it runs. No CUDA header is needed to include this one.
 */
#ifndef FR_CUDA_DEVICE_H
#define FR_CUDA_DEVICE_H

#include "engine/base.h"

#define FR_MAX_DEVICES 16

/* Versions as each library counts them: driver and runtime major * 1000 + minor * 10; cuBLAS, cuDNN and NCCL major *
 * 10000 + minor * 100 + patch. 0 = absent. */
typedef struct {
    int64_t driver, runtime, cublaslt, cudnn, nccl;
    char driver_text[32]; /* "580.159.04" */
} fr_versions;

typedef struct {
    char name[128], bus[32], uuid[48];
    int index, sms, major, minor, copy_engines;
    int64_t memory_bytes, free_bytes;
    bool peer[FR_MAX_DEVICES];   /* peer access to device i */
    bool atomic[FR_MAX_DEVICES]; /* with native atomics over the link: NVLink has them, PCIe has not */
    int nvlinks;                 /* that are up; 0 = none, or NVML does not say */
    int sm_mhz, max_sm_mhz;      /* now, and the most it runs at; 0 = NVML does not say */
    double watts, limit_watts;
} fr_device_facts;

/*
 * To call before anything else of CUDA: NVLink multicast in NCCL (NVLS) can put a host's GPUs out of service, so
 * NCCL_NVLS_ENABLE=0 is set here and another value is refused. NCCL_RUNTIME_CONNECT=0 is set unless it has a value.
 */
fr_status fr_device_environment(fr_error *err);

/* Reads all versions; FR_FAILED where a library's major.minor is not the headers' (built: the headers' versions). */
fr_status fr_device_versions(fr_versions *found, fr_versions *built, fr_error *err);
fr_status fr_device_count(int *count, fr_error *err);
/* All but free_bytes, without a context on the device. */
fr_status fr_device_describe(int index, fr_device_facts *out, fr_error *err);
fr_status fr_device_read(int index, fr_device_facts *out, fr_error *err);
/* Bytes of the current device, for the message of an allocation that has just failed, whose error is cleared; zeros
 * where the device does not say. */
void fr_device_left(int64_t *available, int64_t *total);

/* SM clock and power, sampled by a thread every 20 ms through NVML between begin and stop; zeros where NVML is absent.
 * Opening takes a tenth of a second and more: time in which a GPU that waits for it cools and gets its clock back. */
typedef struct fr_meter fr_meter;
typedef struct {
    int samples, sm_mhz_min;
    double sm_mhz, watts; /* means; watts from the energy counter where there is one */
    double capped;        /* share of the samples in which the driver named the power limit as a reason */
    bool power_capped;    /* more than half */
} fr_meter_reading;
fr_meter *fr_meter_open(int device);                    /* NULL where there is no NVML */
void fr_meter_begin(fr_meter *m);                       /* NULL is allowed */
fr_meter *fr_meter_start(int device);                   /* both */
void fr_meter_stop(fr_meter *m, fr_meter_reading *out); /* NULL m is allowed */

#endif

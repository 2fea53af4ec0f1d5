/* forerun doctor, the part that needs a GPU. */
#include "engine/conduct/procs.h"
#include "engine/cuda/commands.h"
#include "engine/cuda/device.h"
#include "engine/cuda/transport/ipc.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { TAKE = 1 }; /* the messages of the two processes: a handle, and what was read there */
#define READ_S 20.0
#define MARK   0x5a

/* `major` and `minor`: what one of each counts in the library's own number. */
static void show(const char *name, int64_t found, int64_t built, int64_t major, int64_t minor) {
    if (found == 0)
        printf("%-10s not found", name);
    else
        printf("%-10s %lld.%lld.%lld", name, (long long)(found / major), (long long)(found % major / minor),
               (long long)(found % minor));
    printf(" (built against %lld.%lld.%lld)\n", (long long)(built / major), (long long)(built % major / minor),
           (long long)(built % minor));
}

static fr_status show_device(int index, fr_device_facts *out, fr_error *err) {
    FR_TRY(fr_device_read(index, out, err));
    const fr_device_facts d = *out;
    printf("GPU %d      %s, %s, compute %d.%d, %d SMs, %d copy engines, %.1f of %.1f GB free\n", index, d.name, d.bus,
           d.major, d.minor, d.sms, d.copy_engines, (double)d.free_bytes * 1e-9, (double)d.memory_bytes * 1e-9);
    if (d.max_sm_mhz)
        printf("           SM clock %d MHz now, %d at most; %.0f W of %.0f W\n", d.sm_mhz, d.max_sm_mhz, d.watts,
               d.limit_watts);
    else
        printf("           clocks and power unknown: libnvidia-ml.so.1 does not answer\n");
    if (d.nvlinks) printf("           %d NVLinks up\n", d.nvlinks);
    return FR_OK;
}

/* How each GPU reaches each other one's memory. */
static void show_peers(const fr_device_facts *d, int count) {
    printf("peers     ");
    for (int i = 0; i < count; i++) printf(" %7s%d", "GPU ", i);
    printf("\n");
    for (int i = 0; i < count; i++) {
        printf("  GPU %-3d ", i);
        for (int k = 0; k < count; k++)
            printf(" %8s", i == k ? "-" : !d[i].peer[k] ? "no" : d[i].atomic[k] ? "NVLink" : "PCIe");
        printf("\n");
    }
}

/* ---- can a process read what another one allocated ----------------------------------------------------------------*/

/* In the other process: reads a byte of the first one's GPU from the last GPU, and keeps it mapped no longer. */
static void read_there(void *context, int rank, fr_wire *wire) {
    uint32_t kind = 0;
    fr_bytes in = {0}, out = {0};
    fr_ipc_handle h;
    fr_ipc *list = NULL;
    fr_error err = {0};
    int count = 0, value = -1;
    void *there;
    (void)context;
    (void)rank;
    fr_status s = fr_wire_receive(wire, (int64_t)(READ_S * 1e9), &kind, &in, &err);
    if (s != FR_OK || kind != TAKE || !fr_bytes_take(&in, &h, sizeof h)) _exit(1);
    s = fr_device_count(&count, &err);
    if (s == FR_OK && cudaSetDevice(count - 1) != cudaSuccess) s = fr_fail(&err, FR_FAILED, "cudaSetDevice failed");
    if (s == FR_OK) s = fr_ipc_map(&list, &h, &there, &err);
    if (s == FR_OK) {
        unsigned char byte = 0;
        const cudaError_t e = cudaMemcpy(&byte, there, 1, cudaMemcpyDeviceToHost);
        value = byte;
        if (e != cudaSuccess) s = fr_fail(&err, FR_FAILED, "cudaMemcpy failed: %s", cudaGetErrorString(e));
    }
    fr_ipc_close(list, false);
    if (s == FR_OK && value != MARK) s = fr_fail(&err, FR_FAILED, "it read %d where %d was written", value, MARK);
    err.status = s;
    fr_bytes_put(&out, &err, sizeof err);
    (void)fr_wire_send(wire, TAKE, &out, NULL);
    _exit(0);
}

static fr_status hand_out(fr_procs *p, void *memory, fr_error *err) {
    fr_ipc_handle h;
    fr_bytes out = {0}, in = {0};
    fr_error found = {0};
    uint32_t kind = 0;
    FR_TRY(fr_ipc_hand_over(memory, &h, err));
    fr_bytes_put(&out, &h, sizeof h);
    fr_status s = fr_wire_send(fr_procs_wires(p)[1], TAKE, &out, err);
    if (s == FR_OK) s = fr_wire_receive(fr_procs_wires(p)[1], (int64_t)(READ_S * 1e9), &kind, &in, err);
    if (s == FR_OK && (kind != TAKE || !fr_bytes_take(&in, &found, sizeof found)))
        s = fr_fail(err, FR_FAILED, "no answer within %.0f s", READ_S);
    if (s == FR_OK && found.status != FR_OK) s = fr_fail(err, FR_FAILED, "%.300s", found.text);
    fr_bytes_free(&in);
    fr_bytes_free(&out);
    return s;
}

static void show_ipc(fr_procs *p, int count) {
    void *memory = NULL;
    fr_error err = {0};
    fr_status s = FR_OK;
    if (cudaSetDevice(0) != cudaSuccess || fr_ipc_malloc(1, &memory) != cudaSuccess ||
        cudaMemset(memory, MARK, 1) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess)
        s = fr_fail(&err, FR_FAILED, "no memory on GPU 0");
    if (s == FR_OK) s = hand_out(p, memory, &err);
    if (s == FR_OK)
        printf("CUDA IPC   a second process reads memory of GPU 0 from GPU %d: --procs and MPI run every layout\n",
               count - 1);
    else
        printf(
            "CUDA IPC   does not work here (%s): with --procs and MPI only what needs no peer memory runs: dp, tp, pp, "
            "--ep-exchange agrs, --gather nccl\n",
            err.text);
    cudaFree(memory);
}

/* The second process is there before CUDA, which does not survive a fork. */
static fr_status show_all(fr_procs *p, fr_error *err) {
    fr_device_facts d[FR_MAX_DEVICES];
    int count = 0;
    FR_TRY(fr_device_count(&count, err));
    if (count > FR_MAX_DEVICES) count = FR_MAX_DEVICES;
    for (int i = 0; i < count; i++) FR_TRY(show_device(i, &d[i], err));
    if (count > 1) show_peers(d, count);
    if (count > 0 && p) show_ipc(p, count);
    return FR_OK;
}

fr_status cuda_doctor(fr_error *err) {
    fr_versions found, built;
    fr_procs *second = NULL;
    fr_error ignored;
    FR_TRY(fr_device_environment(err));
    if (fr_procs_open(2, read_there, NULL, &second, &ignored) != FR_OK) second = NULL;
    fr_status versions = fr_device_versions(&found, &built, err);
    printf("driver     %s\n", found.driver_text[0] ? found.driver_text : "version unknown (no NVML)");
    show("CUDA", found.driver, built.driver, 1000, 10);
    show("runtime", found.runtime, built.runtime, 1000, 10);
    show("cuBLASLt", found.cublaslt, built.cublaslt, 10000, 100);
    show("cuDNN", found.cudnn, built.cudnn, 10000, 100);
    show("NCCL", found.nccl, built.nccl, 10000, 100);
    const char *nvls = getenv("NCCL_NVLS_ENABLE");
    printf("NVLS       NCCL_NVLS_ENABLE=%s\n", nvls ? nvls : "");
    const fr_status s = versions == FR_OK ? show_all(second, err) : versions;
    fr_procs_close(second, 1);
    return s;
}

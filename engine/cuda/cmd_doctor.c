/* forerun doctor, the part that needs a GPU. */
#include "engine/cuda/commands.h"
#include "engine/cuda/device.h"

#include <stdio.h>
#include <stdlib.h>

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

static fr_status show_device(int index, int count, fr_error *err) {
    fr_device_facts d;
    FR_TRY(fr_device_read(index, &d, err));
    printf("GPU %d      %s, %s, compute %d.%d, %d SMs, %d copy engines, %.1f of %.1f GB free\n", index, d.name, d.bus,
           d.major, d.minor, d.sms, d.copy_engines, (double)d.free_bytes * 1e-9, (double)d.memory_bytes * 1e-9);
    if (d.max_sm_mhz)
        printf("           SM clock %d MHz now, %d at most; %.0f W of %.0f W\n", d.sm_mhz, d.max_sm_mhz, d.watts,
               d.limit_watts);
    else
        printf("           clocks and power unknown: libnvidia-ml.so.1 does not answer\n");
    for (int i = 0; i < count && i < FR_MAX_DEVICES; i++)
        if (i != index) printf("           peer access to GPU %d: %s\n", i, d.peer[i] ? "yes" : "no");
    return FR_OK;
}

fr_status cuda_doctor(fr_error *err) {
    fr_versions found, built;
    int count = 0;
    FR_TRY(fr_device_environment(err));
    fr_status versions = fr_device_versions(&found, &built, err);
    printf("driver     %s\n", found.driver_text[0] ? found.driver_text : "version unknown (no NVML)");
    show("CUDA", found.driver, built.driver, 1000, 10);
    show("runtime", found.runtime, built.runtime, 1000, 10);
    show("cuBLASLt", found.cublaslt, built.cublaslt, 10000, 100);
    show("cuDNN", found.cudnn, built.cudnn, 10000, 100);
    show("NCCL", found.nccl, built.nccl, 10000, 100);
    const char *nvls = getenv("NCCL_NVLS_ENABLE");
    printf("NVLS       NCCL_NVLS_ENABLE=%s\n", nvls ? nvls : "");
    FR_TRY(versions);
    FR_TRY(fr_device_count(&count, err));
    for (int i = 0; i < count; i++) FR_TRY(show_device(i, count, err));
    return FR_OK;
}

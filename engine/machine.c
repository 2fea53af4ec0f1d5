#include "engine/machine.h"

#include "engine/builtin/builtin.h"
#include "engine/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#define MAX_GPUS  65536
#define MAX_RATE  1e18 /* far above any link or memory; keeps products finite */
#define MAX_BYTES ((int64_t)1 << 50)

static fr_status read_peaks(const fr_json *c, fr_machine *m, fr_error *err) {
    fr_json peaks;
    static const char *const known[] = {"bf16", "fp8", NULL};
    FR_TRY(fr_json_object(c, "peak_flops", FR_REQUIRED, &peaks, err));
    FR_TRY(fr_json_only(&peaks, known, err));
    FR_TRY(fr_json_double(&peaks, "bf16", FR_REQUIRED, 1e6, 1e21, &m->peak_flops[FR_BF16], err));
    FR_TRY(fr_json_double(&peaks, "fp8", FR_OPTIONAL, 0, 1e21, &m->peak_flops[FR_FP8], err));
    return FR_OK;
}

static fr_status read_counts(const fr_json *c, fr_machine *m, fr_error *err) {
    FR_TRY(fr_json_int32(c, "gpus", FR_REQUIRED, 1, MAX_GPUS, &m->gpus, err));
    m->gpus_per_host = m->gpus;
    FR_TRY(fr_json_int32(c, "gpus_per_host", FR_OPTIONAL, 1, m->gpus, &m->gpus_per_host, err));
    m->gpus_per_domain = m->gpus_per_host;
    FR_TRY(fr_json_int32(c, "gpus_per_domain", FR_OPTIONAL, 1, m->gpus, &m->gpus_per_domain, err));
    if (m->gpus % m->gpus_per_host)
        return fr_json_fail(c, "gpus_per_host", err, "expected a divisor of gpus (%d), got %d", m->gpus,
                            m->gpus_per_host);
    if (m->gpus % m->gpus_per_domain)
        return fr_json_fail(c, "gpus_per_domain", err, "expected a divisor of gpus (%d), got %d", m->gpus,
                            m->gpus_per_domain);
    return FR_OK;
}

/* Where a machine does not say: as on H200s (builtin/machines/README.md). */
static fr_status read_nccl(const fr_json *c, fr_machine *m, fr_error *err) {
    static const char *const known[] = {"library", "pair", "group", "peer", NULL};
    fr_json o;
    m->nccl_library = 461 * 1000 * 1000;
    m->nccl_pair = 1209 * 1000 * 1000;
    m->nccl_group = 625 * 1000 * 1000;
    m->nccl_peer = 151 * 1000 * 1000;
    if (!fr_json_has(c, "nccl_bytes")) return FR_OK;
    FR_TRY(fr_json_object(c, "nccl_bytes", FR_REQUIRED, &o, err));
    FR_TRY(fr_json_only(&o, known, err));
    FR_TRY(fr_json_int(&o, "library", FR_REQUIRED, 0, MAX_BYTES, &m->nccl_library, err));
    FR_TRY(fr_json_int(&o, "pair", FR_REQUIRED, 0, MAX_BYTES, &m->nccl_pair, err));
    FR_TRY(fr_json_int(&o, "group", FR_REQUIRED, 0, MAX_BYTES, &m->nccl_group, err));
    return fr_json_int(&o, "peer", FR_REQUIRED, 0, MAX_BYTES, &m->nccl_peer, err);
}

static fr_status read_machine(const fr_json *c, fr_machine *m, fr_error *err) {
    static const char *const known[] = {
        "name",      "gpu",        "gpus",     "gpus_per_host", "gpus_per_domain",    "peak_flops",
        "sms",       "hbm_bytes",  "hbm_rate", "link_rate",     "pcie_rate",          "copy_engines",
        "host_rate", "host_bytes", "watts",    "network_rate",  "network_latency_ns", "price_per_gpu_hour",
        "currency",  "nccl_bytes", NULL};
    FR_TRY(fr_json_only(c, known, err));
    FR_TRY(fr_json_text(c, "name", FR_REQUIRED, m->name, sizeof m->name, err));
    FR_TRY(fr_json_text(c, "gpu", FR_REQUIRED, m->gpu, sizeof m->gpu, err));
    /* The GPU's name picks a file under kernels/measured/: a plain word, so that it cannot lead elsewhere. */
    size_t plain = strspn(m->gpu, "abcdefghijklmnopqrstuvwxyz0123456789-_");
    if (plain == 0 || m->gpu[plain])
        return fr_json_fail(c, "gpu", err, "expected lower-case letters, digits, - and _, got \"%s\"", m->gpu);
    if (m->name[0] == 0) return fr_json_fail(c, "name", err, "expected a name, got an empty string");
    FR_TRY(read_counts(c, m, err));
    FR_TRY(read_peaks(c, m, err));
    FR_TRY(fr_json_int32(c, "sms", FR_REQUIRED, 1, 65536, &m->sms, err));
    FR_TRY(fr_json_int(c, "hbm_bytes", FR_REQUIRED, 1, MAX_BYTES, &m->hbm_bytes, err));
    FR_TRY(fr_json_double(c, "hbm_rate", FR_REQUIRED, 1, MAX_RATE, &m->hbm_rate, err));
    FR_TRY(fr_json_double(c, "link_rate", FR_OPTIONAL, 0, MAX_RATE, &m->link_rate, err));
    FR_TRY(fr_json_double(c, "pcie_rate", FR_REQUIRED, 1, MAX_RATE, &m->pcie_rate, err));
    m->copy_engines = 1; /* what every CUDA device has at least (cudaDeviceProp.asyncEngineCount) */
    FR_TRY(fr_json_int32(c, "copy_engines", FR_OPTIONAL, 1, 64, &m->copy_engines, err));
    FR_TRY(fr_json_double(c, "host_rate", FR_REQUIRED, 1, MAX_RATE, &m->host_rate, err));
    FR_TRY(fr_json_int(c, "host_bytes", FR_REQUIRED, 0, MAX_BYTES, &m->host_bytes, err));
    FR_TRY(fr_json_double(c, "network_rate", FR_OPTIONAL, 0, MAX_RATE, &m->network_rate, err));
    FR_TRY(fr_json_double(c, "network_latency_ns", FR_OPTIONAL, 0, 1e12, &m->network_latency_ns, err));
    if (m->gpus_per_host < m->gpus && m->gpus_per_domain < m->gpus && m->network_rate <= 0)
        return fr_json_fail(c, "network_rate", err, "expected more than 0, as %d GPUs are on %d hosts", m->gpus,
                            m->gpus / m->gpus_per_host);
    FR_TRY(read_nccl(c, m, err));
    FR_TRY(fr_json_double(c, "price_per_gpu_hour", FR_OPTIONAL, 0, 1e9, &m->price_per_gpu_hour, err));
    FR_TRY(fr_json_double(c, "watts", FR_OPTIONAL, 0, 1e6, &m->watts, err));
    FR_TRY(fr_json_text(c, "currency", FR_OPTIONAL, m->currency, sizeof m->currency, err));
    if (m->price_per_gpu_hour > 0 && !m->currency[0])
        return fr_json_fail(c, "currency", err, "expected a code such as \"USD\" beside price_per_gpu_hour");
    return FR_OK;
}

fr_status fr_machine_parse(const char *text, size_t length, const char *where, fr_machine *out, fr_error *err) {
    fr_json root;
    *out = (fr_machine){0};
    FR_TRY(fr_json_open(text, length, where, &root, err));
    fr_status status = read_machine(&root, out, err);
    fr_json_close(&root);
    return status;
}

const char *fr_machine_builtin(int index) {
    for (int i = 0; i <= index; i++)
        if (!fr_builtin_machines[i].name) return NULL;
    return index < 0 ? NULL : fr_builtin_machines[index].name;
}

fr_status fr_machine_load(const char *name_or_path, fr_machine *out, fr_error *err) {
    for (const fr_builtin *b = fr_builtin_machines; b->name; b++)
        if (strcasecmp(b->name, name_or_path) == 0) return fr_machine_parse(b->text, b->length, b->name, out, err);
    struct stat info;
    size_t n = strlen(name_or_path);
    bool looks_like_file = n > 5 && strcmp(name_or_path + n - 5, ".json") == 0;
    if (stat(name_or_path, &info) != 0 && !looks_like_file) {
        fr_text names = {0};
        for (const fr_builtin *b = fr_builtin_machines; b->name; b++)
            fr_text_add(&names, "%s%s", b == fr_builtin_machines ? "" : ", ", b->name);
        fr_status status =
            fr_fail(err, FR_BAD_INPUT, "machine '%.100s': expected a path to a machine JSON file or one of %s",
                    name_or_path, names.text ? names.text : "");
        fr_text_free(&names);
        return status;
    }
    char *text;
    size_t length;
    FR_TRY(fr_read_file(name_or_path, 1 << 20, &text, &length, err));
    fr_status status = fr_machine_parse(text, length, name_or_path, out, err);
    free(text);
    return status;
}

static double *what_if_field(fr_what_if *w, const char *name, size_t n) {
    struct {
        const char *name;
        double *field;
    } fields[] = {{"nvlink", &w->link}, {"hbm", &w->hbm},         {"pcie", &w->pcie},
                  {"flops", &w->flops}, {"network", &w->network}, {"launch", &w->launch}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strlen(fields[i].name) == n && strncmp(fields[i].name, name, n) == 0) return fields[i].field;
    return NULL;
}

fr_status fr_what_if_parse(const char *text, fr_what_if *out, fr_error *err) {
    fr_what_if w = FR_WHAT_IF_NONE, seen = {0};
    const char *at = text;
    for (;;) {
        size_t n = strcspn(at, ",");
        const char *equals = memchr(at, '=', n);
        double *field = equals ? what_if_field(&w, at, (size_t)(equals - at)) : NULL;
        if (!field)
            return fr_fail(err, FR_BAD_INPUT,
                           "--what-if: expected nvlink|hbm|pcie|flops|network|launch=FACTORx, got '%.*s'",
                           (int)(n < 80 ? n : 80), at);
        double *once = what_if_field(&seen, at, (size_t)(equals - at));
        if (*once > 0) return fr_fail(err, FR_BAD_INPUT, "--what-if: %.*s is given twice", (int)(equals - at), at);
        *once = 1;
        char number[40];
        size_t digits = n - (size_t)(equals + 1 - at);
        if (digits > 0 && at[n - 1] == 'x') digits--;
        if (digits >= sizeof number) digits = sizeof number - 1;
        memcpy(number, equals + 1, digits);
        number[digits] = 0;
        /* A thousandfold either way: what-ifs ask about hardware, and products must stay far from overflow. */
        FR_TRY(fr_parse_double(number, 1e-3, 1e3, "--what-if", field, err));
        if (!at[n]) break;
        at += n + 1;
    }
    *out = w;
    return FR_OK;
}

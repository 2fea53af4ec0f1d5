/* forerun doctor: what this build stands on. */
#include "sim/cli/cli.h"

#ifdef FR_CUDA
#include "engine/cuda/commands.h"
#endif

#include <gsl/gsl_version.h>
#include <inttypes.h>
#include <jansson.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool on_path(const char *program) {
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t n = strcspn(path, ":");
        char try[4096];
        snprintf(try, sizeof try, "%.*s/%s", (int)n, path, program);
        if (access(try, X_OK) == 0) return true;
        path += n + (path[n] == ':');
    }
    return false;
}

static fr_status show_tables(fr_error *err) {
    const char *last = "";
    char seen[32] = "";
    for (int i = 0; fr_machine_builtin(i); i++) {
        fr_machine m;
        fr_cost_model *c;
        FR_TRY(fr_machine_load(fr_machine_builtin(i), &m, err));
        if (strcmp(last, m.gpu) == 0) continue;
        snprintf(seen, sizeof seen, "%s", m.gpu);
        last = seen;
        fr_cost_options o = {.regime = FR_SUSTAINED, .what_if = FR_WHAT_IF_NONE};
        FR_TRY(fr_cost_open(&m, &o, &c, err));
        printf("costs      %-6s %s (%016" PRIx64 ")\n", m.gpu, fr_cost_source(c), fr_cost_hash(c));
        fr_cost_close(c);
    }
    return FR_OK;
}

fr_status cmd_doctor(const cli_args *args, fr_error *err) {
    (void)args;
    printf("forerun    %s\ncompiler   %s\nSQLite     %s\njansson    %s\nGSL        %s\n", FR_VERSION, __VERSION__,
           sqlite3_libversion(), JANSSON_VERSION, GSL_VERSION);
    printf("gnuplot    %s\n", on_path("gnuplot") ? "found" : "not on the PATH: forerun plot needs it");
#ifdef FR_MPI
    printf("MPI        linked\n");
#else
    printf("MPI        not in this build\n");
#endif
#ifdef FR_CUDA
    const fr_status cuda = cuda_doctor(err); /* a machine without a GPU still gets the rest */
#else
    const fr_status cuda = FR_OK;
    printf("CUDA       not in this build: run and calibrate need `make engine`\n");
#endif
    FR_TRY(show_tables(cuda == FR_OK ? err : NULL));
    return cuda;
}

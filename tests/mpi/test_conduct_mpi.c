/* A run whose ranks are MPI processes gives what threads give, and a rank that fails ends it: mpirun -n 3. */
#include "tests/unit/pretended.h"

#include "engine/conduct/follow.h"
#include "sim/mpi/mpi_wire.h"

#include <mpi.h>

static fr_status play(const fr_setup *s, bool processes, const char *inject, int ranks, fr_conducted *out,
                      fr_error *err) {
    fr_wire *wires[16] = {NULL};
    fr_conduct_options o = {.kind = &kind, .logits = true, .timeout_s = 10};
    if (inject) FR_TRY(fr_inject_parse(inject, ranks, &o.inject, err));
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (processes && rank > 0) {
        bool lost;
        FR_TRY(fr_mpi_wire(0, &wires[0], err));
        return fr_follow(s, &o, rank, wires[0], &lost, err);
    }
    FR_TRY(fr_world_open_threads(ranks, o.timeout_s, &o.world, err));
    for (int r = 1; processes && r < ranks; r++) FR_TRY(fr_mpi_wire(r, &wires[r], err));
    if (processes) o.wires = wires;
    const fr_status status = fr_conduct(s, &o, out, err);
    fr_world_close(o.world);
    return status;
}

int main(int argc, char **argv) {
    int level, rank, ranks;
    fr_error err = {0};
    fr_experiment e;
    fr_setup s;
    stage st = {.ms = 1, .hang_rank = -1};
    the = &st;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    char gpus[16];
    snprintf(gpus, sizeof gpus, "%d", ranks);
    const char *flags[] = {
        "model", "qwen3-30b-a3b", "layers", "2",    "machine", "h200x8",   "skew", "even", "strategy", "dp", "tokens",
        "1K",    "seq",           "100",    "gpus", gpus,      "forwards", "6",    NULL};
    fr_experiment_defaults(&e);
    for (int i = 0; flags[i]; i += 2)
        if (fr_experiment_set(&e, flags[i], flags[i + 1], &err) != FR_OK) puts(err.text);
    if (fr_setup_open(&e, &s, &err) != FR_OK) puts(err.text);
    fr_conducted a = {0}, b = {0}, c = {0};
    const fr_status over = play(&s, true, NULL, ranks, &a, &err);
    fr_error broken = {0};
    const fr_status failed = play(&s, true, "fail:1:3", ranks, &c, &broken);
    bool good = over == FR_OK;
    if (rank == 0) {
        const fr_status here = play(&s, false, NULL, ranks, &b, &err);
        good = good && here == FR_OK && a.forwards_count == 6u * (uint32_t)ranks && a.logit_rows_count > 0 &&
               fr_conducted_hash(&a) == fr_conducted_hash(&b) && failed == FR_FAILED &&
               strstr(broken.text, "rank 1: forward 3 fails") != NULL;
        printf("%s: %u forwards over %d processes; %s\n", good ? "good" : "BAD", a.forwards_count, ranks, broken.text);
        if (over != FR_OK) puts(err.text);
    }
    MPI_Finalize();
    return good ? 0 : 1;
}

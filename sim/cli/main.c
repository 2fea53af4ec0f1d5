/*
 * forerun: the command line. The table of commands, and the only place where a status becomes an exit code.
 */
#include "sim/cli/cli.h"

#ifdef FR_MPI
#include "sim/mpi/mpi_sweep.h"
#endif

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef FR_CUDA
#define NO_CUDA NULL
#else
#define NO_CUDA "This build has no CUDA: make engine builds build/forerun-cuda, which has it."
#endif

static const cli_command commands[] = {
    {.name = "list",
     .arguments = "models|machines|strategies|traces|figures|costs",
     .summary = "what is built in: models, machines, ways to spread a model, traces, figures, measured costs",
     .example = "forerun list models\n"
                "forerun list costs --check --machine h100x1",
     .options = cmd_list_options,
     .least = 1,
     .most = 1,
     .run = cmd_list},
    {.name = "plan",
     .arguments = "[EXPERIMENT.json] [OPTIONS]",
     .summary = "memory per GPU, bytes, FLOPs and the ops of one forward",
     .example = "forerun plan --model qwen3-30b-a3b --machine h200x8 --strategy ep --tokens 16K",
     .options = cmd_plan_options,
     .experiment = true,
     .most = 1,
     .run = cmd_plan},
    {.name = "simulate",
     .arguments = "[EXPERIMENT.json] [OPTIONS]",
     .summary = "play one layout under one workload on a virtual clock",
     .details =
         "MFU is model FLOPs (attention included, causal counted once; of the logits only those that are computed; "
         "cached tokens not at all) over elapsed time, GPUs and the datasheet dense peak of the precision.",
     .example = "forerun simulate --model qwen3-235b-a22b --machine h200x8 --strategy asyncep --tokens 32K\n"
                "forerun simulate --model mixtral-8x7b --strategy ep --trace azure-code --rate 20 --json\n"
                "forerun simulate --strategy asyncep --tokens 4K --what-if nvlink=2x",
     .options = cmd_simulate_options,
     .experiment = true,
     .most = 1,
     .run = cmd_simulate},
    {.name = "sweep",
     .arguments = "EXPERIMENT.json [OPTIONS]",
     .summary = "a grid of layouts and workloads into a SQLite file, ranked",
     .details = "EXPERIMENT.json: {\"title\": TEXT, \"base\": {OPTION: VALUE, ...}, \"cells\": [{OPTION: VALUE or "
                "[VALUE, ...], ...}, ...]}. Options are those of forerun simulate without the dashes; every object of "
                "cells is played for all combinations of its lists. A layout that does not fit is stored with the "
                "reason.",
     .example = "forerun sweep experiments/demo/demo.json --jobs 4 --db build/demo.db",
     .options = cmd_sweep_options,
     .least = 1,
     .most = 1,
     .run = cmd_sweep},
    {.name = "run",
     .arguments = "[EXPERIMENT.json] [OPTIONS]",
     .summary = "the same as simulate, on real GPUs (CUDA build)",
     .details = NO_CUDA,
     .example =
         "forerun run --model qwen3-30b-a3b --machine h200x2 --strategy asyncep --db run.db\n"
         "forerun run --weights CHECKPOINT --machine h200x1 --strategy dp --prompts in.jsonl --answers out.jsonl",
     .options = cmd_run_options,
     .experiment = true,
     .most = 1,
     .run = cmd_run},
    {.name = "calibrate",
     .arguments = "[OPTIONS] [JOURNAL...]",
     .summary = "measure this GPU into a cost table (CUDA build)",
     .details = NO_CUDA,
     .example = "forerun calibrate --quick --out my-h200.txt\n"
                "forerun calibrate --device 0,1 --out my-pair.txt\n"
                "forerun calibrate --merge my-h200.txt.raw my-pair.txt.raw --out h200.txt",
     .options = cmd_calibrate_options,
     .most = CLI_MAX_POSITIONAL,
     .run = cmd_calibrate},
    {.name = "validate",
     .arguments = "DB",
     .summary = "predicted against measured: per op kind and per forward",
     .example = "forerun validate runs.db\n"
                "forerun validate runs.db --run 3 --perfetto both.json",
     .options = cmd_validate_options,
     .least = 1,
     .most = 1,
     .run = cmd_validate},
    {.name = "plot",
     .arguments = "FIGURE DB -o FILE.png|.pdf|.svg",
     .summary = "draw a figure from stored results with gnuplot",
     .example = "forerun plot breakdown build/demo.db -o breakdown.png",
     .options = cmd_plot_options,
     .least = 2,
     .most = 2,
     .run = cmd_plot},
    {.name = "trace",
     .arguments = "DB -o FILE.json",
     .summary = "a stored run's timeline for Perfetto or chrome://tracing",
     .example = "forerun trace run.db -o run.json",
     .options = cmd_trace_options,
     .least = 1,
     .most = 1,
     .run = cmd_trace},
    {.name = "doctor",
     .arguments = "",
     .summary = "versions of what this build stands on; in a CUDA build the GPUs and which reaches which",
     .example = "forerun doctor",
     .most = 0,
     .run = cmd_doctor},
    {.name = NULL},
};

const cli_command *cli_commands(void) {
    return commands;
}

const cli_command *cli_find(const char *name) {
    for (const cli_command *c = commands; c->name; c++)
        if (strcmp(c->name, name) == 0) return c;
    return NULL;
}

char *cli_exe_dir(void) {
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) return NULL;
    path[n] = 0;
    char *slash = strrchr(path, '/');
    if (!slash) return NULL;
    *slash = 0;
    return fr_strdup(path);
}

#ifndef FR_CUDA
static fr_status needs_cuda(const char *name, fr_error *err) {
    return fr_fail(err, FR_BAD_INPUT,
                   "%s needs GPUs: this build has no CUDA; build it with `make engine` and use "
                   "build/forerun-cuda",
                   name);
}
fr_status cmd_run(const cli_args *args, fr_error *err) {
    return needs_cuda(args->command->name, err);
}
#endif

static int run_command(const cli_command *command, int argc, char **argv) {
    fr_error err = {0};
    cli_args args;
    fr_status status = cli_parse(command, argc, argv, &args, &err);
    if (status == FR_OK && args.help)
        cli_help(command, stdout);
    else if (status == FR_OK)
        status = command->run(&args, &err);
    cli_args_free(&args);
    /* A full disk or a closed pipe must not look like success. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == FR_OK)
        status = fr_fail(&err, FR_FAILED, "cannot write to standard output");
    if (status != FR_OK && err.text[0]) fprintf(stderr, "forerun %s: %s\n", command->name, err.text);
    return (int)status;
}

static int run_program(int argc, char **argv) {
    if (argc < 2) {
        cli_usage(stderr);
        return FR_BAD_INPUT;
    }
    const char *first = argv[1];
    const cli_command *command = cli_find(first);
    if (command) return run_command(command, argc - 1, argv + 1);
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || strcmp(first, "help") == 0) {
        const cli_command *about = argc > 2 ? cli_find(argv[2]) : NULL;
        if (about)
            cli_help(about, stdout);
        else
            cli_usage(stdout);
        return fflush(stdout) == 0 ? FR_OK : FR_FAILED;
    }
    if (strcmp(first, "--version") == 0) {
        printf("forerun %s\n", FR_VERSION);
        return FR_OK;
    }
    if (strcmp(first, "--man") == 0) {
        cli_man(stdout);
        return FR_OK;
    }
    if (strcmp(first, "--reference") == 0) {
        cli_reference(stdout);
        return FR_OK;
    }
    fprintf(stderr, "forerun: unknown command '%.64s' (see forerun --help)\n", first);
    return FR_BAD_INPUT;
}

int main(int argc, char **argv) {
#ifdef FR_MPI
    fr_mpi_begin(&argc, &argv);
    int code = run_program(argc, argv);
    fr_mpi_end((fr_status)code);
    return code;
#else
    return run_program(argc, argv);
#endif
}

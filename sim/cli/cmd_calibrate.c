/*
 * forerun calibrate: measures this machine's GPUs into a cost table. The dry run and the merging of journals need no
 * GPU and are in every build.
 */
#include "sim/cli/cli.h"

#include "engine/calibrate/calibrate.h"

#ifdef FR_CUDA
#include "engine/cuda/calibrate.h"
#endif

#include <stdlib.h>
#include <string.h>

const fr_option cmd_calibrate_options[] = {
    {"quick", NULL, NULL, "a coarse grid in two minutes at most"},
    {"anchors", NULL, NULL, "a dozen ops and two layers in half a minute, to compare cards and days by"},
    {"out", "FILE", NULL, "the table; FILE.raw is the journal, with every reading (default: GPU.txt)"},
    {"resume", NULL, NULL, "go on: what FILE.raw holds isn't measured again"},
    {"device", "N|N,M,..", NULL, "measure this GPU, or what two or more do with each other (default 0)"},
    {"spread", NULL, NULL, "deal the grid of one GPU out to all of --device (anchors: all of them on each)"},
    {"only", "LIST", NULL,
     "parts of the grid: burst, hold (sustained), turn (on and off), ramp (from rest), release (after a pause), chain "
     "(a layer), host, "
     "copy, pull, collective, exchange, beside (what slows what), or ops and classes of ops by name (default: all)"},
    {"shard", "K/N", NULL,
     "part K (0 <= K < N) of N of about the same time each, for several processes; --merge joins them"},
    {"hold", "SECONDS", NULL,
     "length of a sustained measurement of an anchor (default: a 40th of --limit, 10 at most)"},
    {"limit", "SECONDS", NULL, "stop after so many seconds (default 480; quick 115, anchors 58)"},
    {"machine", "NAME|FILE", NULL, "datasheet figures (default: of the GPU found; dry run: h200x2)"},
    {"dry-run", NULL, NULL, "no GPU: what would be measured, and how long it would take"},
    {"rows", NULL, NULL, "dry run: every row"},
    {"merge", NULL, NULL,
     "no GPU: make the table --out from the journals named (with --anchors each card's rows stay its own)"},
    {NULL, NULL, NULL, NULL},
};

enum { FILE_LIMIT = 64 << 20, MOST_FILES = CLI_MAX_POSITIONAL };

static fr_status read_mode(const cli_args *a, fr_cal_mode *mode, fr_error *err) {
    const bool quick = cli_value(a, "quick"), anchors = cli_value(a, "anchors");
    if (quick && anchors) return fr_fail(err, FR_BAD_INPUT, "--quick contradicts --anchors: give one of them");
    *mode = quick ? FR_CAL_QUICK : anchors ? FR_CAL_ANCHORS : FR_CAL_FULL;
    return FR_OK;
}

/* "1", "0,1" or "0,1,2,3" */
static fr_status read_devices(const char *text, int device[FR_CAL_DEVICES], int *count, fr_error *err) {
    char copy[64], *at = copy;
    if (strlen(text) >= sizeof copy) return fr_fail(err, FR_BAD_INPUT, "--device: expected N or N,M,...");
    snprintf(copy, sizeof copy, "%s", text);
    for (*count = 0; at;) {
        char *comma = strchr(at, ',');
        int64_t v;
        if (comma) *comma = 0;
        if (*count == FR_CAL_DEVICES)
            return fr_fail(err, FR_BAD_INPUT, "--device: expected at most %d GPUs", FR_CAL_DEVICES);
        FR_TRY(fr_parse_int(at, 0, FR_CAL_DEVICES - 1, false, "--device", &v, err));
        for (int i = 0; i < *count; i++)
            if (device[i] == v) return fr_fail(err, FR_BAD_INPUT, "--device: GPU %d is named twice", device[i]);
        device[(*count)++] = (int)v;
        at = comma ? comma + 1 : NULL;
    }
    return FR_OK;
}

/* What acts on nothing is refused by name. */
static fr_status refuse(const cli_args *a, const char *with, const char *const *flags, fr_error *err) {
    for (; *flags; flags++)
        if (cli_value(a, *flags)) return fr_fail(err, FR_BAD_INPUT, "--%s acts on nothing %s", *flags, with);
    return FR_OK;
}

static fr_status merge(const cli_args *a, fr_error *err) {
    static const char *const idle[] = {"quick", "resume", "device", "limit",   "machine", "only",
                                       "shard", "hold",   "spread", "dry-run", "rows",    NULL};
    char *texts[MOST_FILES] = {0};
    const char *names[MOST_FILES], *const_texts[MOST_FILES];
    size_t lengths[MOST_FILES] = {0};
    fr_text out = {0};
    FR_TRY(refuse(a, "beside --merge", idle, err));
    if (!a->count || !cli_value(a, "out"))
        return fr_fail(err, FR_BAD_INPUT, "--merge: expected journals and --out FILE");
    fr_status status = FR_OK;
    for (int i = 0; i < a->count && status == FR_OK; i++) {
        const char *slash = strrchr(a->positional[i], '/');
        names[i] = slash ? slash + 1 : a->positional[i];
        status = fr_read_file(a->positional[i], FILE_LIMIT, &texts[i], &lengths[i], err);
        const_texts[i] = texts[i];
    }
    if (status == FR_OK)
        status = fr_cal_merge(const_texts, lengths, names, a->count, cli_value(a, "anchors"), &out, err);
    if (status == FR_OK) status = fr_write_file(cli_value(a, "out"), out.text, out.length, err);
    for (int i = 0; i < a->count; i++) free(texts[i]);
    fr_text_free(&out);
    return status;
}

/* "1/4" */
static fr_status read_shard(const char *text, fr_cal_request *q, fr_error *err) {
    char copy[32];
    int64_t k, n;
    snprintf(copy, sizeof copy, "%s", text);
    char *slash = strchr(copy, '/');
    if (!slash) return fr_fail(err, FR_BAD_INPUT, "--shard: expected K/N");
    *slash = 0;
    FR_TRY(fr_parse_int(slash + 1, 1, 1024, false, "--shard", &n, err));
    FR_TRY(fr_parse_int(copy, 0, n - 1, false, "--shard", &k, err));
    q->shard = (int)k;
    q->shards = (int)n;
    return FR_OK;
}

static fr_status read_request(const cli_args *a, fr_cal_request *q, int devices, fr_error *err) {
    const char *limit = cli_value(a, "limit"), *hold = cli_value(a, "hold"), *shard = cli_value(a, "shard");
    FR_TRY(read_mode(a, &q->mode, err));
    q->devices = cli_value(a, "spread") || q->mode == FR_CAL_ANCHORS ? 1 : devices;
    q->limit_s = fr_cal_mode_seconds(q->mode);
    q->only = cli_value(a, "only");
    if (limit) FR_TRY(fr_parse_double(limit, 1, 86400, "--limit", &q->limit_s, err));
    if (hold) FR_TRY(fr_parse_double(hold, 0.5, 600, "--hold", &q->hold_s, err));
    return shard ? read_shard(shard, q, err) : FR_OK;
}

static fr_status dry_run(const cli_args *a, const fr_cal_request *q, fr_error *err) {
    const char *machine = cli_value(a, "machine"), *file = cli_value(a, "out");
    fr_machine m;
    fr_cal_grid *g = NULL;
    fr_text out = {0};
    uint32_t found = 0;
    FR_TRY(fr_machine_load(machine ? machine : "h200x2", &m, err));
    FR_TRY(fr_cal_grid_open(q, &m, &g, err));
    fr_status status = FR_OK;
    if (cli_value(a, "resume")) {
        char path[4096], *text = NULL;
        size_t length = 0;
        snprintf(path, sizeof path, "%s.raw", file ? file : m.gpu);
        status = fr_read_file(path, FILE_LIMIT, &text, &length, err);
        if (status == FR_OK) status = fr_cal_grid_resume(g, text, length, path, 0, &found, err);
        free(text);
    }
    if (status == FR_OK) {
        fr_cal_grid_list(g, q->limit_s, cli_value(a, "rows") != NULL, &out);
        fputs(out.text, stdout);
    }
    fr_text_free(&out);
    fr_cal_grid_close(g);
    return status;
}

#ifdef FR_CUDA
static fr_status measure(const cli_args *a, const fr_cal_request *q, const int *device, int devices, fr_error *err) {
    fr_cal_options o = {.request = *q,
                        .devices = devices,
                        .machine = cli_value(a, "machine"),
                        .out = cli_value(a, "out"),
                        .resume = cli_value(a, "resume") != NULL};
    cli_progress bar;
    fr_cal_result result;
    for (int i = 0; i < devices; i++) o.device[i] = device[i];
    cli_progress_start(&bar, "calibrating", true);
    o.progress = cli_progress_update;
    o.context = &bar;
    const fr_status status = fr_calibrate(&o, &result, err);
    cli_progress_end(&bar);
    FR_TRY(status);
    printf("%u measured, %u failed, %u left for want of time (--resume goes on), %.1f s\n%s\n%s\n", result.measured,
           result.failed, result.left, result.seconds, result.table, result.journal);
    return FR_OK;
}
#else
static fr_status measure(const cli_args *a, const fr_cal_request *q, const int *device, int devices, fr_error *err) {
    (void)q, (void)device, (void)devices;
    return fr_fail(err, FR_BAD_INPUT,
                   "%s needs GPUs: this build has no CUDA; build it with `make engine` and use build/forerun-cuda "
                   "(--dry-run and --merge need none)",
                   a->command->name);
}
#endif

fr_status cmd_calibrate(const cli_args *a, fr_error *err) {
    fr_cal_request q = {0};
    int device[FR_CAL_DEVICES] = {0}, devices = 1;
    if (cli_value(a, "merge")) return merge(a, err);
    if (a->count) return fr_fail(err, FR_BAD_INPUT, "%s: files are named for --merge only", a->positional[0]);
    if (cli_value(a, "device")) FR_TRY(read_devices(cli_value(a, "device"), device, &devices, err));
    FR_TRY(read_request(a, &q, devices, err));
    if (cli_value(a, "dry-run")) return dry_run(a, &q, err);
    static const char *const idle[] = {"rows", NULL};
    FR_TRY(refuse(a, "without --dry-run", idle, err));
    return measure(a, &q, device, devices, err);
}

#include "engine/cuda/calibrate_run.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { JOURNAL_LIMIT = 64 << 20 };
#define TIMEOUT_S 20.0 /* nothing that is measured takes a launch of a second */

/* ---- the journal --------------------------------------------------------------------------------------------------*/

static fr_status append(fr_cal_run *r, const fr_text *text, fr_error *err) {
    fr_status status = FR_OK;
    pthread_mutex_lock(&r->lock);
    for (size_t at = 0; at < text->length && status == FR_OK;) {
        const ssize_t n = write(r->journal, text->text + at, text->length - at);
        if (n <= 0) status = fr_fail(err, FR_FAILED, "%s: cannot write", r->result->journal);
        at += n > 0 ? (size_t)n : 0;
    }
    pthread_mutex_unlock(&r->lock);
    return status;
}

fr_status fr_cal_write(fr_cal_run *r, const fr_table *t, const fr_row *row, const double *readings, int count,
                       fr_error *err) {
    fr_text line = {0};
    fr_cal_line(t, row, readings, count, &line);
    const fr_status status = append(r, &line, err);
    fr_text_free(&line);
    return status;
}

fr_status fr_cal_note(fr_cal_run *r, fr_error *err, const char *format, ...) {
    char text[512];
    fr_text line = {0};
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fr_text_add(&line, "## %s\n", text);
    const fr_status status = append(r, &line, err);
    fr_text_free(&line);
    return status;
}

static fr_status write_failure(fr_cal_run *r, uint32_t i, const char *why, fr_error *err) {
    fr_text line = {0};
    fr_text_add(&line, "## failed: ");
    fr_row_print(&r->grid->table, &r->grid->table.rows[i], &line);
    fr_text_add(&line, ": %s\n", why);
    const fr_status status = append(r, &line, err);
    fr_text_free(&line);
    return status;
}

fr_row fr_cal_filled(const fr_cal_run *r, int d, uint32_t i, const fr_reading *reading) {
    fr_row row = r->grid->table.rows[i];
    row.ns = reading->median;
    row.p10 = reading->p10;
    row.p90 = reading->p90;
    row.samples = reading->count;
    row.clock_mhz = reading->clock_mhz;
    row.watts = reading->watts;
    row.capped = reading->capped;
    row.card = d >= 0 ? fr_cal_card(r->facts[d].uuid) : 0;
    return row;
}

bool fr_cal_room(const fr_cal_run *r, uint32_t i) {
    return fr_monotonic_s() - r->began + r->grid->items[i].seconds <= r->options->request.limit_s;
}

/* ---- opening ------------------------------------------------------------------------------------------------------*/

/* "NVIDIA H200" -> the built-in machine whose GPU's name is in it. */
static fr_status find_machine(fr_cal_run *r, fr_error *err) {
    if (r->options->machine) return fr_machine_load(r->options->machine, &r->machine, err);
    for (int i = 0; fr_machine_builtin(i); i++) {
        FR_TRY(fr_machine_load(fr_machine_builtin(i), &r->machine, err));
        const char *at = strcasestr(r->facts[0].name, r->machine.gpu);
        if (at && (at == r->facts[0].name || at[-1] == ' ')) return FR_OK;
    }
    return fr_fail(err, FR_BAD_INPUT, "no built-in machine has a '%s': name its datasheet figures with --machine FILE",
                   r->facts[0].name);
}

static fr_status open_devices(fr_cal_run *r, fr_error *err) {
    const fr_cal_options *o = r->options;
    int count = 0;
    FR_TRY(fr_device_environment(err));
    FR_TRY(fr_device_count(&count, err));
    for (int d = 0; d < o->devices; d++) {
        if (o->device[d] >= count)
            return fr_fail(err, FR_BAD_INPUT, "--device: GPU %d of %d (they count from 0)", o->device[d], count);
        FR_TRY(fr_device_read(o->device[d], &r->facts[d], err));
        if (r->facts[d].major != 9)
            return fr_fail(err, FR_BAD_INPUT,
                           "GPU %d is a %s: the kernels are made for Hopper (compute capability 9.0)", o->device[d],
                           r->facts[d].name);
    }
    for (int d = 0; d < o->devices; d++)
        for (int e = 0; e < o->devices; e++)
            if (d != e && !r->facts[d].peer[o->device[e]])
                return fr_fail(err, FR_BAD_INPUT, "GPU %d cannot reach GPU %d's memory", o->device[d], o->device[e]);
    return find_machine(r, err);
}

static fr_status version_text(int64_t v, char out[32]) {
    snprintf(out, 32, "%d.%d.%d", (int)(v / 10000), (int)(v / 100 % 100), (int)(v % 100));
    return FR_OK;
}

static fr_status header(fr_cal_run *r, fr_text *out, fr_error *err) {
    fr_versions v, built;
    char cuda[32], lt[32], dnn[32], nccl[32], date[32], clocks[96], uuid[FR_CAL_DEVICES * 50] = "";
    FR_TRY(fr_device_versions(&v, &built, err));
    snprintf(cuda, sizeof cuda, "%d.%d", (int)(v.runtime / 1000), (int)(v.runtime % 1000 / 10));
    version_text(v.cublaslt, lt);
    version_text(v.cudnn, dnn);
    version_text(v.nccl, nccl);
    const time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", &utc);
    snprintf(clocks, sizeof clocks, "as found: up to %d MHz, %.0f W", r->facts[0].max_sm_mhz, r->facts[0].limit_watts);
    for (int d = 0; d < r->options->devices; d++) {
        const size_t at = strlen(uuid);
        snprintf(uuid + at, sizeof uuid - at, "%s%s", d ? ", " : "", r->facts[d].uuid);
    }
    const fr_cal_head head = {.name = r->facts[0].name,
                              .uuid = uuid,
                              .driver = v.driver_text,
                              .cuda = cuda,
                              .cublas = lt,
                              .cudnn = dnn,
                              .nccl = v.nccl ? nccl : NULL,
                              .clocks = clocks,
                              .date = date,
                              .mode = fr_cal_mode_name(r->options->request.mode),
                              .power_limit_w = r->facts[0].limit_watts,
                              .idle_w = r->idle_w,
                              .clock_max_mhz = r->facts[0].max_sm_mhz};
    fr_cal_header(&r->machine, &head, out);
    return FR_OK;
}

static bool each_does_all(const fr_cal_run *r) {
    return r->options->request.mode == FR_CAL_ANCHORS;
}

/* What the journal holds is taken. */
static fr_status resume(fr_cal_run *r, const char *text, size_t length, uint32_t *found, fr_error *err) {
    const char *path = r->result->journal;
    if (!each_does_all(r)) return fr_cal_grid_resume(r->grid, text, length, path, 0, found, err);
    for (int d = 0; d < r->options->devices; d++) {
        FR_TRY(fr_cal_grid_resume(r->grid, text, length, path, fr_cal_card(r->facts[d].uuid), found, err));
        for (uint32_t i = 0; i < r->grid->count; i++) {
            r->taken[d][i] = r->grid->items[i].done;
            r->grid->items[i].done = false;
        }
    }
    return FR_OK;
}

static fr_status note_cards(fr_cal_run *r, fr_error *err) {
    for (int d = 0; d < r->options->devices; d++) FR_TRY(fr_cal_note(r, err, "resumed on %s", r->facts[d].uuid));
    return FR_OK;
}

/* Goes on with the journal that is there, or begins one. */
static fr_status open_journal(fr_cal_run *r, fr_error *err) {
    const char *path = r->result->journal;
    size_t whole = 0;
    if (r->options->resume && access(path, F_OK) == 0) {
        char *text;
        size_t length;
        uint32_t found;
        FR_TRY(fr_read_file(path, JOURNAL_LIMIT, &text, &length, err));
        const fr_status status = resume(r, text, length, &found, err);
        for (whole = length; whole && text[whole - 1] != '\n';) whole--; /* half a line goes */
        free(text);
        FR_TRY(status);
    }
    r->journal = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (whole ? 0 : O_TRUNC), 0644);
    if (r->journal < 0 || ftruncate(r->journal, (off_t)whole) != 0 || lseek(r->journal, 0, SEEK_END) < 0)
        return fr_fail(err, FR_FAILED, "%s: cannot write", path);
    if (whole) return note_cards(r, err); /* the header names those of the beginning */
    fr_text text = {0};
    fr_status status = header(r, &text, err);
    if (status == FR_OK) status = append(r, &text, err);
    fr_text_free(&text);
    return status;
}

/* Watts at rest, with the memory made. */
static void measure_idle(fr_cal_run *r) {
    const struct timespec second = {.tv_sec = 1};
    fr_meter_reading m;
    if (r->options->request.mode == FR_CAL_ANCHORS) return;
    nanosleep(&second, NULL);
    fr_meter *meter = fr_meter_start(r->options->device[0]);
    nanosleep(&second, NULL);
    fr_meter_stop(meter, &m);
    r->idle_w = m.watts;
}

typedef struct {
    fr_cal_run *r;
    int d;
    bool alone; /* items that the host has a part in, and no others; else the others */
    pthread_t thread;
    bool started;
    fr_status status;
    fr_error err;
} worker;

static bool lost_one(const fr_cal_run *r, int d) {
    return r->measure[d] && fr_measure_lost(r->measure[d]);
}

static void *open_bench(void *context) {
    worker *w = context;
    fr_cal_run *r = w->r;
    const int device = r->options->device[w->d];
    w->status = fr_measure_open(device, TIMEOUT_S, &r->measure[w->d], &w->err);
    if (w->status == FR_OK) w->status = fr_bench_open(device, r->measure[w->d], r->cost, &r->bench[w->d], &w->err);
    return NULL;
}

/* One thread a device; the first failure is everybody's. */
static fr_status side_by_side(fr_cal_run *r, void *(*run)(void *), bool alone, int devices, fr_error *err) {
    worker w[FR_CAL_DEVICES] = {0};
    fr_status status = FR_OK;
    for (int d = 0; d < devices; d++) {
        w[d] = (worker){.r = r, .d = d, .alone = alone};
        w[d].started = pthread_create(&w[d].thread, NULL, run, &w[d]) == 0;
        if (!w[d].started) w[d].status = fr_fail(&w[d].err, FR_FAILED, "no thread for GPU %d", d);
    }
    for (int d = 0; d < devices; d++) {
        if (w[d].started) pthread_join(w[d].thread, NULL);
        if (w[d].status != FR_OK && status == FR_OK) {
            status = w[d].status;
            if (err) *err = w[d].err;
        }
    }
    return status;
}

static fr_status open_run(fr_cal_run *r, fr_error *err) {
    FR_TRY(open_devices(r, err));
    snprintf(r->result->table, sizeof r->result->table - 8, "%s%s", r->options->out ? r->options->out : r->machine.gpu,
             r->options->out ? "" : ".txt");
    snprintf(r->result->journal, sizeof r->result->journal, "%.1000s.raw", r->result->table);
    FR_TRY(fr_cal_grid_open(&r->options->request, &r->machine, &r->grid, err));
    for (int d = 0; d < r->options->devices; d++) r->taken[d] = fr_alloc(r->grid->count + 1);
    FR_TRY(fr_cost_open(&r->machine, NULL, &r->cost, err));
    FR_TRY(side_by_side(r, open_bench, false, r->options->devices, err));
    measure_idle(r);
    return open_journal(r, err);
}

static bool lost(const fr_cal_run *r) {
    for (int d = 0; d < FR_CAL_DEVICES; d++)
        if (lost_one(r, d)) return true;
    return false;
}

static void close_run(fr_cal_run *r) {
    const bool gone = lost(r);
    for (int d = 0; d < FR_CAL_DEVICES; d++) {
        fr_bench_close(r->bench[d], gone);
        fr_measure_close(r->measure[d]);
        free(r->taken[d]);
    }
    if (r->journal >= 0) close(r->journal);
    fr_cal_grid_close(r->grid);
    fr_cost_close(r->cost);
}

/* ---- running ------------------------------------------------------------------------------------------------------*/

/* Launch costs and copies are those of a host that does nothing else. */
static bool host_takes_part(const fr_cal_run *r, uint32_t i) {
    const uint8_t what = r->grid->items[i].what;
    return what == FR_CAL_HOST || what == FR_CAL_COPY;
}

/* The next item for device d that fits into the time; false: none is left. */
static bool take(fr_cal_run *r, int d, bool alone, uint32_t *item) {
    const fr_cal_grid *g = r->grid;
    uint8_t *taken = r->taken[each_does_all(r) ? d : 0];
    bool found = false;
    pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < g->count && !found; i++) {
        if (g->items[i].done || taken[i] || host_takes_part(r, i) != alone || !fr_cal_room(r, i)) continue;
        taken[i] = 1;
        *item = i;
        found = true;
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

static void count(fr_cal_run *r, uint32_t i, fr_status status) {
    pthread_mutex_lock(&r->lock);
    r->result->failed += status != FR_OK;
    r->result->measured += status == FR_OK;
    r->done += r->grid->items[i].seconds;
    if (r->options->progress) r->options->progress(r->options->context, r->done / r->all);
    pthread_mutex_unlock(&r->lock);
}

static void *work(void *context) {
    worker *w = context;
    fr_cal_run *r = w->r;
    uint32_t i;
    if (cudaSetDevice(r->options->device[w->d]) != cudaSuccess)
        w->status = fr_fail(&w->err, FR_FAILED, "cudaSetDevice(%d)", r->options->device[w->d]);
    while (w->status == FR_OK && take(r, w->d, w->alone, &i)) {
        fr_error why = {0};
        const fr_status status = fr_cal_item_run(r, w->d, i, &why);
        if (status != FR_OK) w->status = write_failure(r, i, why.text, &w->err);
        if (status != FR_OK && lost_one(r, w->d)) w->status = fr_fail(&w->err, FR_FAILED, "%s", why.text);
        count(r, i, status);
    }
    return NULL;
}

static fr_status run_items(fr_cal_run *r, fr_error *err) {
    const fr_cal_grid *g = r->grid;
    const int devices = r->options->devices, lists = each_does_all(r) ? devices : 1;
    uint32_t fit;
    r->all = fr_cal_grid_seconds(g, 1e9, &fit) * lists;
    FR_TRY(side_by_side(r, work, true, 1, err));
    FR_TRY(side_by_side(r, work, false, devices, err));
    for (int d = 0; d < lists; d++)
        for (uint32_t i = 0; i < g->count; i++) r->result->left += !g->items[i].done && !r->taken[d][i];
    return FR_OK;
}

static fr_status write_table(fr_cal_run *r, fr_error *err) {
    char *text;
    size_t length;
    fr_text out = {0};
    const char *slash = strrchr(r->result->journal, '/'), *name = slash ? slash + 1 : r->result->journal;
    fsync(r->journal);
    FR_TRY(fr_read_file(r->result->journal, JOURNAL_LIMIT, &text, &length, err));
    const char *texts[] = {text}, *names[] = {name};
    fr_status status = fr_cal_merge(texts, &length, names, 1, each_does_all(r), &out, err);
    if (status == FR_OK) status = fr_write_file(r->result->table, out.text, out.length, err);
    fr_text_free(&out);
    free(text);
    return status;
}

fr_status fr_calibrate(const fr_cal_options *o, fr_cal_result *out, fr_error *err) {
    *out = (fr_cal_result){0};
    fr_cal_run r = {
        .options = o, .journal = -1, .began = fr_monotonic_s(), .result = out, .lock = PTHREAD_MUTEX_INITIALIZER};
    fr_status status = open_run(&r, err);
    if (status == FR_OK) status = o->request.devices > 1 ? fr_cal_pair_run(&r, err) : run_items(&r, err);
    if (status == FR_OK) status = write_table(&r, err);
    close_run(&r);
    out->seconds = fr_monotonic_s() - r.began;
    return status;
}

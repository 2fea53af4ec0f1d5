/* Kernels in a layer's order: what each takes beyond its own back to back, and a whole layer under the power limit. */
#include "engine/cuda/calibrate_run.h"
#include "kernels/probe.h"

#include <math.h>

#define ALONE_NS 3e6 /* of launches that count, of each kernel by itself */

static fr_status check(cudaError_t e, const char *what, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}
#define CU(call) FR_TRY(check(call, #call, err))

/* Kernels of some microseconds; sorting is three of them. */
#define CHAIN_MODEL "qwen3-30b-a3b"
enum { CHAIN = FR_CAL_LIGHT, CHAIN_KERNELS = CHAIN + 2, CHAIN_TOKENS = 512 };

/* ns of the kernels of a chain, one after the other, behind a kernel that holds the stream. */
static fr_status run_chain(fr_cal_run *r, int d, const fr_row rows[CHAIN], bool timed, cudaEvent_t *e, double *ns,
                           fr_error *err) {
    enum { TURNS = 12 };
    cudaStream_t s = fr_measure_stream(r->measure[d]);
    float ms = 0;
    CU(fr_k_hold(3000000, s));
    CU(cudaEventRecord(e[0], s));
    for (int t = 0; t < TURNS * CHAIN; t++) {
        fr_bench_switch(r->bench[d], &rows[t % CHAIN], 8, 128);
        FR_TRY(fr_bench_run(r->bench[d], s, err));
        if (timed) CU(cudaEventRecord(e[2 + t % CHAIN], s));
    }
    CU(cudaEventRecord(e[1], s));
    FR_TRY(fr_measure_wait(r->measure[d], err));
    CU(cudaEventElapsedTime(&ms, e[0], e[1]));
    *ns = 1e6 * (double)ms / TURNS;
    return FR_OK;
}

static fr_status gaps_with(fr_cal_run *r, int d, uint32_t i, cudaEvent_t *e, fr_error *err) {
    enum { TURNS = 21 };
    const bool timed = r->grid->table.rows[i].type == FR_ROW_GAP_TIMED;
    const fr_cal_item item = {.top_k = 8, .head_dim = 128};
    fr_model model;
    fr_row rows[CHAIN];
    fr_reading one;
    double alone = 0, ns[TURNS];
    FR_TRY(fr_model_load(CHAIN_MODEL, &model, err));
    FR_TRY(fr_cal_light_layer(&model, &r->machine, CHAIN_TOKENS, rows, err));
    FR_TRY(fr_bench_prepare(r->bench[d], &r->grid->table, &rows[CHAIN - 1], &item, err));
    for (int k = 0; k < CHAIN; k++) {
        fr_bench_switch(r->bench[d], &rows[k], 8, 128);
        FR_TRY(fr_measure_burst(r->measure[d], fr_bench_run, r->bench[d], false, ALONE_NS, &one, err));
        alone += one.median;
    }
    for (int t = -1; t < TURNS; t++) {
        double chain;
        FR_TRY(run_chain(r, d, rows, timed, e, &chain, err));
        if (t >= 0) ns[t] = fmax(1, (chain - alone) / CHAIN_KERNELS);
    }
    return fr_cal_write_list(r, d, i, ns, TURNS, err);
}

/* What a kernel takes in a chain of others beyond its own back to back. */
fr_status fr_cal_gaps_run(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    cudaEvent_t e[2 + CHAIN] = {NULL};
    fr_status status = FR_OK;
    for (int k = 0; k < 2 + CHAIN && status == FR_OK; k++)
        status = check(cudaEventCreate(&e[k]), "cudaEventCreate", err);
    if (status == FR_OK) status = gaps_with(r, d, i, e, err);
    for (int k = 0; k < 2 + CHAIN; k++)
        if (e[k]) cudaEventDestroy(e[k]);
    return status;
}

/* ---- a layer ------------------------------------------------------------------------------------------------------*/

typedef struct {
    fr_bench *bench;
    const fr_row *rows;
    int at, top_k, head_dim;
} layer;

static fr_status next_kernel(void *context, cudaStream_t stream, fr_error *err) {
    layer *l = context;
    fr_bench_switch(l->bench, &l->rows[l->at], l->top_k, l->head_dim);
    l->at = (l->at + 1) % FR_CAL_LAYER;
    return fr_bench_run(l->bench, stream, err);
}

/* Attention, both products and the tables of ids, in this order: the last ones say which rows are whose. */
static fr_status prepare_layer(fr_bench *b, const fr_table *t, const fr_row rows[FR_CAL_LAYER], const fr_cal_item *item,
                               fr_error *err) {
    static const fr_op_kind kinds[] = {FR_OP_ATTENTION, FR_OP_EXPERT_UP, FR_OP_EXPERT_DOWN, FR_OP_PERMUTE};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int i = 0; i < FR_CAL_LAYER; i++)
            if (rows[i].shape.kind == kinds[k]) FR_TRY(fr_bench_prepare(b, t, &rows[i], item, err));
    return FR_OK;
}

static fr_status write_layer(fr_cal_run *r, int d, uint32_t i, const fr_table *t, const fr_row rows[FR_CAL_LAYER],
                             const fr_reading *readings, fr_error *err) {
    int own = 0;
    while (!fr_row_same(t, &rows[own], &r->grid->table, &r->grid->table.rows[i], true)) own++;
    for (int k = 1; k <= FR_CAL_LAYER; k++) { /* the item's own row last: it tells a resumed run that all are there */
        const int at = (own + k) % FR_CAL_LAYER;
        fr_row row = fr_cal_filled(r, d, i, &readings[at]);
        row.shape = rows[at].shape;
        FR_TRY(fr_cal_write(r, t, &row, readings[at].ns, readings[at].count, err));
    }
    return FR_OK;
}

fr_status fr_cal_chain_run(fr_cal_run *r, int d, uint32_t i, fr_error *err) {
    const fr_cal_item *grid = &r->grid->items[i];
    fr_model model;
    fr_table t = {0};
    fr_row rows[FR_CAL_LAYER];
    fr_reading readings[FR_CAL_LAYER];
    FR_TRY(fr_model_load(FR_CAL_CHAIN_MODEL, &model, err));
    fr_cal_item item = *grid;
    item.top_k = (int16_t)model.top_k;
    item.head_dim = (int16_t)model.head_dim;
    layer l = {.bench = r->bench[d], .rows = rows, .top_k = model.top_k, .head_dim = model.head_dim};
    fr_status status =
        fr_cal_layer(&model, &r->machine, grid->tokens, fr_cal_chain_length(grid->tokens), &t, rows, err);
    if (status == FR_OK) status = prepare_layer(l.bench, &t, rows, &item, err);
    fr_bench_chain(l.bench, true);
    if (status == FR_OK)
        status = fr_measure_cycle(r->measure[d], next_kernel, &l, FR_CAL_LAYER, (double)grid->hold_s, readings, err);
    fr_bench_chain(l.bench, false);
    if (status == FR_OK && readings[0].clock_mhz <= 0)
        status = fr_fail(err, FR_FAILED, "the SM clock of the layer is not known");
    if (status == FR_OK) status = write_layer(r, d, i, &t, rows, readings, err);
    fr_table_free(&t);
    return status;
}

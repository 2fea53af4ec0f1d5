#include "engine/cuda/calibrate_exchange.h"

#include "engine/calibrate/calibrate.h"

#include <stdlib.h>
#include <string.h>

/* One rank's buffers in its arena, one behind the other: what arrives is rows, then ids, then weights
 * (kernels/exchange.h). */
struct fr_cal_exchange {
    fr_transport *transport;
    fr_plan *plan;
    fr_model model;
    fr_layout layout;
    int rank, ranks;
    int64_t most; /* tokens */
    char *normed, *send, *recv;
    uint32_t send_buffer, recv_buffer;
    int32_t *ids, *row_of_copy, *landed;
    float *weights;
    int32_t *staging; /* host */
    int64_t tokens;
};

static fr_status check(cudaError_t e, const char *what, fr_error *err) {
    return e == cudaSuccess ? FR_OK : fr_fail(err, FR_FAILED, "%s: %s", what, cudaGetErrorString(e));
}
#define CU(call) FR_TRY(check(call, #call, err))

static int64_t take(int64_t *at, int64_t bytes) {
    const int64_t here = *at;
    *at += fr_ceil_div(bytes, 512) * 512;
    return here;
}

/* Buffers of both ranks: a peer's is found by its name. */
static void make_plan(fr_cal_exchange *x, int64_t send, int64_t recv) {
    x->plan = fr_plan_new(x->ranks, x->ranks);
    for (int q = 0; q < x->ranks; q++) {
        const uint32_t s = fr_plan_buffer(x->plan, q, FR_BUF_ACTIVATION, "send", send, 0, false);
        const uint32_t r = fr_plan_buffer(x->plan, q, FR_BUF_ACTIVATION, "recv", recv, 0, false);
        if (q != x->rank) continue;
        x->send_buffer = s;
        x->recv_buffer = r;
    }
}

static fr_status cut(fr_cal_exchange *x, char *arena, size_t bytes, fr_error *err) {
    const int64_t row = 2 * (int64_t)x->model.hidden, k = x->model.top_k;
    const int64_t send = x->ranks * x->most * row, recv = x->ranks * x->most * (row + 8 * k);
    int64_t at = 0;
    x->normed = arena + take(&at, x->most * row);
    x->send = arena + take(&at, send);
    x->recv = arena + take(&at, recv);
    x->ids = (void *)(arena + take(&at, 4 * x->most * k));
    x->weights = (void *)(arena + take(&at, 4 * x->most * k));
    x->row_of_copy = (void *)(arena + take(&at, 4 * x->most * x->ranks));
    x->landed = (void *)(arena + take(&at, 512));
    if (at > (int64_t)bytes) return fr_fail(err, FR_FAILED, "the exchange wants %lld bytes", (long long)at);
    make_plan(x, send, recv);
    x->staging = fr_alloc((size_t)(x->most * k) * sizeof *x->staging);
    return FR_OK;
}

fr_status fr_cal_exchange_open(fr_world *world, int rank, int device, void *arena, size_t bytes, bool spared,
                               fr_cal_exchange **out, fr_error *err) {
    fr_cal_exchange *x = fr_alloc(sizeof *x);
    *out = x; /* the caller closes it */
    x->rank = rank;
    x->ranks = fr_world_ranks(world);
    x->most = fr_cal_exchange_tokens(x->ranks);
    x->layout = (fr_layout){.experts = FR_EXP_EP, .tp = 1, .pp = 1, .ep = x->ranks, .dp = x->ranks, .replicas = 1};
    if (spared) x->layout.overlap = FR_OVERLAP_TBO;
    FR_TRY(fr_model_load(FR_CAL_EXCHANGE_MODEL, &x->model, err));
    FR_TRY(cut(x, arena, bytes, err));
    const fr_transport_options o = {.world = world,
                                    .rank = rank,
                                    .device = device,
                                    .plan = x->plan,
                                    .layout = &x->layout,
                                    .model = &x->model,
                                    .tokens = x->most,
                                    .timeout_s = 30,
                                    .everything = true};
    FR_TRY(fr_transport_open(&o, &x->transport, err));
    void *buffers[2 * FR_CAL_DEVICES] = {NULL};
    buffers[x->send_buffer] = x->send;
    buffers[x->recv_buffer] = x->recv;
    return fr_transport_bind(x->transport, arena, bytes, buffers, err);
}

void fr_cal_exchange_close(fr_cal_exchange *x, bool lost) {
    if (!x) return;
    fr_transport_close(x->transport, lost);
    if (x->plan) fr_plan_free(x->plan);
    free(x->staging);
    free(x);
}

/* Token t's k experts are dealt in turn to the ranks that it goes to: this one and, of the others, those for which it
 * is one of the first leaving / (ranks - 1) tokens, counted from another token for each rank. */
static fr_status route(fr_cal_exchange *x, int64_t leaving, fr_error *err) {
    const int32_t k = x->model.top_k, each = x->model.experts / x->ranks;
    const int64_t share = leaving / (x->ranks - 1), step = x->tokens / x->ranks;
    for (int64_t t = 0; t < x->tokens; t++) {
        int target[FR_CAL_DEVICES] = {x->rank}, targets = 1;
        for (int q = 1; q < x->ranks; q++)
            if ((t + q * step) % x->tokens < share) target[targets++] = (x->rank + q) % x->ranks;
        for (int32_t j = 0; j < k; j++)
            x->staging[t * k + j] = target[j % targets] * each + (int32_t)((t * 37 + j * 7) % each);
    }
    CU(cudaMemcpy(x->ids, x->staging, (size_t)(x->tokens * k) * 4, cudaMemcpyHostToDevice));
    CU(cudaMemset(x->weights, 0, (size_t)(x->tokens * k) * 4));
    return FR_OK;
}

static fr_collective op(const fr_cal_exchange *x, fr_op_kind kind) {
    return (fr_collective){.kind = kind,
                           .group = FR_NONE,
                           .peer = -1,
                           .dispatch = {.tokens = x->tokens,
                                        .capacity = x->ranks * x->most,
                                        .send = x->send_buffer,
                                        .recv = x->recv_buffer,
                                        .landed = x->landed,
                                        .normed = x->normed,
                                        .ids = x->ids,
                                        .weights = x->weights,
                                        .row_of_copy = x->row_of_copy}};
}

fr_status fr_cal_exchange_pack(fr_cal_exchange *x, int64_t tokens, int64_t leaving, cudaStream_t stream,
                               fr_error *err) {
    x->tokens = tokens;
    FR_TRY(route(x, leaving, err));
    CU(cudaDeviceSynchronize());
    const fr_collective c = op(x, FR_OP_PERMUTE);
    return fr_transport_pack(x->transport, &c, stream, err);
}

fr_status fr_cal_exchange_launch(fr_cal_exchange *x, fr_op_kind kind, cudaStream_t stream, fr_error *err) {
    const fr_collective c = op(x, kind);
    return fr_transport_launch(x->transport, &c, stream, err);
}

fr_status fr_cal_exchange_check(fr_cal_exchange *x, fr_error *err) {
    return fr_transport_check(x->transport, err);
}

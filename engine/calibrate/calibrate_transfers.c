/* Launches and copies, and what GPUs do with each other: pulls, collectives, exchanges, compute beside them. */
#include "engine/calibrate/calibrate_grid.h"
#include "engine/layout.h"

#include <math.h>

void fr_cal_add_host(fr_cal_maker *m) {
    fr_row row = fr_cal_blank(FR_OP_LAUNCH);
    row.shape.m = 1;
    fr_cal_add(m, FR_CAL_HOST, 0, row);
    fr_cal_add(m, FR_CAL_HOST, 0, fr_cal_blank(FR_OP_READBACK));
    row = fr_cal_blank(FR_OP_NONE);
    row.type = FR_ROW_FLOOR;
    fr_cal_add(m, FR_CAL_HOST, 0, row);
    static const fr_row_type types[] = {FR_ROW_EVENT, FR_ROW_GAP, FR_ROW_GAP_TIMED};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        row.type = (uint8_t)types[i];
        fr_cal_add(m, FR_CAL_HOST, 0, row);
    }
}

static fr_row pull_row(int devices, int64_t bytes, int ways) {
    fr_row row = fr_cal_blank(FR_OP_PULL);
    row.shape.bytes = bytes;
    row.shape.ranks = (int16_t)(devices > 2 ? devices : 0); /* 0 = a pair */
    row.ways = (uint8_t)ways;
    row.by_owner = devices > 2; /* as the engine makes them */
    return row;
}

/* How many pulls in flight, in which order of sources, and by whom, reach the links' rate. */
static void add_pull_variants(fr_cal_maker *m, int devices) {
    static const uint8_t streams[] = {1, 2, 3, 4, 6};
    static const int64_t sizes[] = {INT64_C(1) << 23, INT64_C(1) << 26, INT64_C(1) << 28};
    for (size_t b = 0; b < sizeof sizes / sizeof *sizes; b++)
        for (size_t s = 0; s < sizeof streams / sizeof *streams; s++)
            for (int o = 0; o < (devices > 2 ? FR_PULL_ORDERS : 1); o++)
                for (int by = 0; by < (devices > 2 ? 2 : 1); by++) {
                    fr_row row = pull_row(devices, sizes[b], 2);
                    row.streams = streams[s];
                    row.order = (uint8_t)o;
                    row.by_owner = by == 0 && devices > 2;
                    if (row.by_owner && o == FR_PULL_SAME) continue; /* readers' doing */
                    if (devices > 2 || (m->mode == FR_CAL_FULL && streams[s] != 2))
                        fr_cal_add(m, FR_CAL_PULL, row.by_owner || devices == 2 ? 1 : 4, row);
                }
}

/* What pulls draw, by the share of the time that they run. */
static void add_pull_watts(fr_cal_maker *m, int devices) {
    static const double duties[] = {1, 0.5, 0.25};
    for (int ways = devices > 2 ? 2 : 1; ways <= 2; ways++)
        for (int d = 0; d < (ways == 2 ? 3 : 1) && m->mode == FR_CAL_FULL; d++) {
            fr_row row = pull_row(devices, INT64_C(1) << 30, ways);
            row.regime = FR_SUSTAINED;
            row.duty = duties[d];
            fr_cal_add(m, FR_CAL_PULL, 1, row)->hold_s = 1.5F;
        }
}

/* Tables of a forward and its results: some words, to the ids of 0.5M tokens and the logits of a few whole
 * vocabularies. */
static void add_words(fr_cal_maker *m) {
    static const fr_op_kind kinds[] = {FR_OP_UPLOAD, FR_OP_DOWNLOAD};
    for (int32_t words = 64; words <= 1 << 20; words *= 4)
        for (int k = 0; k < 2; k++) {
            fr_row row = fr_cal_blank(kinds[k]);
            row.shape.m = words;
            row.shape.n = 1;
            row.shape.bytes = 4 * (int64_t)words;
            fr_cal_add(m, FR_CAL_BURST, 1, row);
        }
}

/* A pair pulls one way and both; more GPUs all at once, which loads every link both ways. */
void fr_cal_add_copies(fr_cal_maker *m, int devices) {
    const bool pair = devices > 1;
    static const fr_op_kind kinds[] = {FR_OP_H2D, FR_OP_D2H, FR_OP_DRAIN};
    if (!pair) add_words(m);
    for (int64_t bytes = 4096; bytes <= INT64_C(1) << 30; bytes *= 4)
        for (int k = 0; k < 3 && !pair; k++)
            for (int ways = 1; ways <= (k < 2 ? 2 : 1); ways++) {
                fr_row row = fr_cal_blank(kinds[k]);
                row.shape.bytes = bytes;
                row.ways = (uint8_t)ways;
                if (m->mode == FR_CAL_FULL || bytes == INT64_C(1) << 28 || ways == 1)
                    fr_cal_add(m, FR_CAL_COPY, ways == 1 ? 1 : 3, row);
            }
    for (int64_t bytes = 4096; bytes <= INT64_C(1) << 32 && pair; bytes *= 4)
        for (int ways = devices > 2 ? 2 : 1; ways <= 2; ways++)
            fr_cal_add(m, FR_CAL_PULL, 0, pull_row(devices, bytes, ways));
    for (int k = 0; k < 2 && devices > 2; k++) { /* from and to the host, all GPUs at once */
        fr_row row = fr_cal_blank(kinds[k]);
        row.shape.bytes = INT64_C(1) << 28;
        row.shape.ranks = (int16_t)devices;
        fr_cal_add(m, FR_CAL_PULL, 1, row);
    }
    if (!pair) return;
    add_pull_variants(m, devices);
    add_pull_watts(m, devices);
}

/* Every rank's part of what is gathered is whole rows of 512 bytes (engine/cuda/calibrate_pair.c). */
static void add_collectives(fr_cal_maker *m, int devices) {
    static const struct {
        fr_op_kind kind;
        fr_gather transport;
        int tier;
    } kinds[] = {{FR_OP_ALLREDUCE, FR_GATHER_NCCL, 0},
                 {FR_OP_ALLGATHER, FR_GATHER_NCCL, 0},
                 {FR_OP_REDUCESCATTER, FR_GATHER_NCCL, 0},
                 {FR_OP_SEND, FR_GATHER_NCCL, 0}, /* more than two: each to the next, all at once */
                 {FR_OP_GATHER_WEIGHTS, FR_GATHER_NCCL_CE, 1}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        bool coarse = false; /* every other size */
        const bool weights = kinds[i].kind == FR_OP_GATHER_WEIGHTS;
        for (int64_t bytes = INT64_C(512) * devices << (weights ? 11 : 0); bytes <= INT64_C(1) << 30; bytes *= 2) {
            fr_row row = fr_cal_blank(kinds[i].kind);
            row.shape.bytes = bytes;
            row.shape.ranks = (int16_t)devices;
            row.shape.transport = (uint8_t)kinds[i].transport;
            coarse = !coarse;
            /* what needs communicators of its own comes last: should these not open, the rest is there */
            const int later = devices > 2 && (weights || kinds[i].kind == FR_OP_SEND) ? FR_CAL_TIERS : 0;
            if (coarse || m->mode == FR_CAL_FULL)
                fr_cal_add(m, FR_CAL_COLLECTIVE, kinds[i].tier + !coarse + later, row);
        }
    }
}

/* Between products that the power limit holds: NCCL's kernels follow the SM clock. */
static void add_loaded_collectives(fr_cal_maker *m, int devices) {
    static const fr_op_kind kinds[] = {FR_OP_ALLGATHER, FR_OP_REDUCESCATTER, FR_OP_ALLREDUCE};
    for (int64_t most = INT64_C(1) << 30; most >= INT64_C(1) << 22; most /= 16)
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            fr_row row = fr_cal_blank(kinds[i]);
            row.shape.bytes = most / (INT64_C(512) * devices) * 512 * devices;
            row.shape.ranks = (int16_t)devices;
            row.shape.transport = FR_GATHER_NCCL;
            row.regime = FR_SUSTAINED;
            if (m->mode == FR_CAL_FULL) fr_cal_add(m, FR_CAL_COLLECTIVE, 1, row)->hold_s = 0.7F;
        }
}

/* Tokens to the ranks of their experts and back, under even routing: bytes as engine/strategy/experts_ep.c counts them,
 * one row of bf16 for each token and other rank that has one of its experts. */
static fr_status add_exchanges(fr_cal_maker *m, int devices, fr_error *err) {
    static const fr_op_kind kinds[] = {FR_OP_COUNTS, FR_OP_ALLTOALL, FR_OP_ALLTOALL_BACK};
    fr_model model;
    FR_TRY(fr_model_load(FR_CAL_EXCHANGE_MODEL, &model, err));
    double missed = 1; /* none of a token's k experts is on a rank */
    if (model.experts % devices || model.experts / devices < model.top_k || devices > model.top_k) return FR_OK;
    for (int j = 0; j < model.top_k; j++)
        missed *= (model.experts - (double)model.experts / devices - j) / (model.experts - j);
    for (int32_t tokens = 1; tokens <= fr_cal_exchange_tokens(devices); tokens *= 2)
        for (int k = 0; k < 3; k++) {
            const int32_t others = devices - 1;
            const int32_t leaving = others * (int32_t)lround(fmax(1, tokens * (1 - missed)));
            fr_row row = fr_cal_blank(kinds[k]);
            row.shape.ranks = (int16_t)devices;
            row.shape.bytes = k ? 2 * (int64_t)model.hidden * leaving : 0;
            const bool coarse = tokens == 1 || tokens == 64 || tokens == 512 || tokens == 4096 || tokens == 16384;
            if (m->mode != FR_CAL_FULL && !coarse) continue;
            fr_cal_item *it = fr_cal_add(m, FR_CAL_EXCHANGE, 0, row);
            it->tokens = tokens;
            it->leaving = leaving;
        }
    return FR_OK;
}

/* Of a pair both ways, pulls one way too, and parts of the time; of more GPUs what all do to each other. */
static void add_beside(fr_cal_maker *m, int devices) {
    static const fr_op_class victims[] = {FR_CLASS_GEMM, FR_CLASS_GROUPED, FR_CLASS_ATTENTION, FR_CLASS_MEMORY};
    static const double duties[] = {1, 0.5, 0.25, 0.75};
    for (int regime = 0; regime < 2; regime++)
        for (int a = 0; a <= FR_AGGRESSOR_H2D; a++)
            for (int v = 0; v < 4; v++)
                for (int ways = 2; ways >= 1; ways--)
                    for (int d = 0; d < 4; d++) {
                        fr_row row = {.type = FR_ROW_SLOWDOWN,
                                      .regime = (uint8_t)regime,
                                      .victim = (uint8_t)victims[v],
                                      .aggressor = (uint8_t)a,
                                      .ways = (uint8_t)ways,
                                      .duty = duties[d],
                                      .at_ms = -1,
                                      .gap_ms = -1,
                                      .shape.ranks = (int16_t)(devices > 2 ? devices : 0)};
                        if (ways == 1 && (a != FR_AGGRESSOR_PULL || d || devices > 2)) continue;
                        if (d && (regime == FR_BURST || devices > 2)) continue;
                        const bool first = ways == 2 && d == 0;
                        const int tier = (first ? 1 : 3) + (a == FR_AGGRESSOR_H2D) + (d > 1) + (devices > 2);
                        if (fr_cal_wanted(m, tier))
                            fr_cal_add(m, FR_CAL_BESIDE, tier, row)->hold_s = fr_cal_hold_seconds(m, 0.4);
                    }
}

/* Kernels that begin while a transfer is under way already and end before it does: what it costs them, and they it. */
static void add_resident(fr_cal_maker *m, int devices) {
    static const fr_op_kind kinds[] = {FR_OP_GEMM_O,      FR_OP_ATTENTION,   FR_OP_EXPERT_UP, FR_OP_PERMUTE,
                                       FR_OP_ROPE,        FR_OP_EXPERT_DOWN, FR_OP_GEMM_QKV,  FR_OP_NORM,
                                       FR_OP_GEMM_ROUTER, FR_OP_TOPK,        FR_OP_SORT,      FR_OP_COMBINE};
    static const struct {
        fr_aggressor by;
        fr_regime regime;
        int tier;
    } beside[] = {{FR_AGGRESSOR_NCCL, FR_SUSTAINED, 1},
                  {FR_AGGRESSOR_NCCL, FR_BURST, 1},
                  {FR_AGGRESSOR_EXCHANGE, FR_BURST, 2},
                  {FR_AGGRESSOR_PULL, FR_BURST, 2}};
    for (size_t a = 0; a < sizeof beside / sizeof *beside; a++)
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            fr_row row = {.type = FR_ROW_SLOWDOWN,
                          .regime = (uint8_t)beside[a].regime,
                          .victim = (uint8_t)fr_op_class_of(kinds[i]),
                          .aggressor = (uint8_t)beside[a].by,
                          .resident = true,
                          .ways = 2,
                          .duty = 1,
                          .at_ms = -1,
                          .gap_ms = -1,
                          .shape.ranks = (int16_t)(devices > 2 ? devices : 0)};
            /* the limit holds what computes for milliseconds */
            const bool light = row.victim == FR_CLASS_MEMORY || kinds[i] == FR_OP_GEMM_ROUTER;
            if (light && row.regime == FR_SUSTAINED) continue;
            /* attention is a class of its own */
            if (kinds[i] != FR_OP_ATTENTION) row.shape.kind = (uint8_t)kinds[i];
            if (fr_cal_wanted(m, beside[a].tier)) fr_cal_add(m, FR_CAL_RESIDENT, beside[a].tier, row);
        }
}

fr_status fr_cal_add_together(fr_cal_maker *m, int devices, fr_error *err) {
    add_collectives(m, devices);
    add_loaded_collectives(m, devices);
    FR_TRY(add_exchanges(m, devices, err));
    add_beside(m, devices);
    add_resident(m, devices);
    return FR_OK;
}

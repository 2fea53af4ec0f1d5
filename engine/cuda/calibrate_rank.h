/* A GPU among those that a calibration measures together (internal to engine/cuda/calibrate_*.c): one host thread each;
 * all walk through the grid together and agree before each item. Transfers by themselves stand behind a kernel that
 * holds the stream, so that no host time is in them. */
#ifndef FR_CUDA_CALIBRATE_RANK_H
#define FR_CUDA_CALIBRATE_RANK_H

#include "engine/cuda/calibrate_exchange.h"
#include "engine/cuda/calibrate_run.h"

enum { FR_CAL_EVENTS = 8192, FR_CAL_ROW_BYTES = 512, FR_CAL_STREAMS = 8 };
#define FR_CAL_SIDE   (INT64_C(4) << 30) /* the largest pull */
#define FR_CAL_BIG    (INT64_C(1) << 30) /* of a pull or an all-gather beside compute */
#define FR_CAL_WAIT_S 30.0               /* for the others */

/* What a rank tells the others after an item: ns, MHz, W, share of the time under the limit, bytes/s. */
typedef struct {
    double median, p10, p90, clock, watts, capped, rate;
    int count;
} fr_cal_said;

typedef struct fr_cal_ranks fr_cal_ranks;

typedef struct {
    fr_cal_ranks *p;
    int id;
    fr_measure *measure;
    fr_bench *bench;
    fr_transport *transport;
    fr_cal_exchange *exchange, *spared; /* opened when first wanted; spared: with the blocks that overlap can spare */
    char *src, *dst;                    /* FR_CAL_SIDE bytes each, for transfers only */
    void *peer_src[FR_CAL_DEVICES], *peer_dst[FR_CAL_DEVICES]; /* the others', as seen from here */
    cudaStream_t copy[FR_CAL_STREAMS], comm;
    fr_transport *windows; /* gathers weights by copy engines; opened when first wanted */
    void *shard, *slot;    /* in its windows */
    cudaEvent_t *event;    /* [FR_CAL_EVENTS] of transfers: before and after each */
    /* transfers beside compute */
    const fr_row *row; /* of the item */
    double each_ns;    /* one transfer, alone */
    int issued;
    int first; /* counted from this one on; -1 = not yet */
    int group; /* of a duty cycle */
    double pause_ns, hold_s;
    fr_cal_said alone[2][FR_CLASS_COUNT]
                     [FR_CAL_DEVICES]; /* victims of both regimes, measured once; count 0 = not yet */
    fr_status status;
    fr_error err;
} fr_cal_rank;

struct fr_cal_ranks {
    fr_cal_run *run;
    int ranks;
    fr_world *world;
    fr_plan *plan;             /* group 0: all; of more than two also 1 + i: rank i and the next */
    fr_plan *gathering;        /* all */
    fr_layout layout, gathers; /* of both: transports keep to them */
    fr_cal_rank rank[FR_CAL_DEVICES];
};

fr_status fr_cal_check(cudaError_t e, const char *what, fr_error *err);
#define CU(call) FR_TRY(fr_cal_check(call, #call, err))

fr_status fr_cal_meet(fr_cal_rank *r, fr_error *err);
/* Waits for all that stands on the stream. */
fr_status fr_cal_drain(fr_cal_rank *r, cudaStream_t s, fr_error *err);
fr_status fr_cal_between(fr_cal_rank *r, int a, int b, double *ns, fr_error *err); /* events a and b */
fr_cal_said fr_cal_said_of(const fr_reading *x, double rate);
fr_cal_said fr_cal_mean(const fr_cal_said *s, int count);

/* From the rank `away` behind this one (of a pair, the other); push: what the rank `away` ahead pulls from this one,
 * carried out by this one's copy engines. */
fr_status fr_cal_pull(fr_cal_rank *r, int away, int64_t bytes, cudaStream_t s, fr_error *err);
fr_status fr_cal_push_to(fr_cal_rank *r, int away, int64_t bytes, cudaStream_t s, fr_error *err);
/* This rank's part; bytes as engine/cost/cost_base.c has them. */
fr_status fr_cal_collective(fr_cal_rank *r, fr_op_kind kind, int64_t bytes, cudaStream_t s, fr_error *err);

/* Weights as NCCL's kernels gather them: two arrays, each rank's shard into a slot for all. */
fr_status fr_cal_gather(fr_cal_rank *r, int64_t bytes, cudaStream_t s, fr_error *err);

/* The op that stands for a class, ready to be launched: fr_bench_run (calibrate_beside.c). */
fr_status fr_cal_victim(fr_cal_rank *r, fr_op_class class, fr_error *err);

/* Item i, on all ranks; rank 0 writes the row. */
fr_status fr_cal_measure_pull(fr_cal_rank *r, uint32_t i, fr_error *err);
fr_status fr_cal_measure_collective(fr_cal_rank *r, uint32_t i, fr_error *err);
fr_status fr_cal_measure_beside(fr_cal_rank *r, uint32_t i, fr_error *err);   /* compute beside transfers */
fr_status fr_cal_measure_resident(fr_cal_rank *r, uint32_t i, fr_error *err); /* kernels behind a transfer's start */
fr_status fr_cal_hold_pulls(fr_cal_rank *r, uint32_t i, fr_error *err);       /* transfers alone for some seconds */

#endif

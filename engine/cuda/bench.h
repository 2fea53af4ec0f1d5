/*
 * bench: a GPU with data for any op of the cost tables, launched as the engine launches it (ops.c): the same kernels,
 * the same choice of attention graphs. Weights of dense products rotate over copies that L2 cannot hold, as a layer's
 * do; activations stay where they are. Rows of experts, and so hot ones, stand in a fixed random order.
 */
#ifndef FR_CUDA_BENCH_H
#define FR_CUDA_BENCH_H

#include "engine/calibrate/calibrate.h"
#include "engine/cuda/measure.h"

typedef struct fr_bench fr_bench;
/* `cost`: what the engine asks which variant of the grouped product to take; must outlive the bench. */
fr_status fr_bench_open(int device, fr_measure *m, const fr_cost_model *cost, fr_bench **out, fr_error *err);
void fr_bench_close(fr_bench *b, bool lost);

/* Makes ready what fr_bench_run then launches: choices, compiled kernels, tables on the device. */
fr_status fr_bench_prepare(fr_bench *b, const fr_table *t, const fr_row *row, const fr_cal_item *item, fr_error *err);
/* Goes over to another product or memory-bound op whose tokens and experts are those of the row prepared last, or to
 * the grouped product or attention that was prepared last: nothing is made, so launches can follow one another. */
void fr_bench_switch(fr_bench *b, const fr_row *row, int top_k, int head_dim);
/* From now on (of bf16) qkv, rope, o, norm, router, top-k, sort, permute, up, down and combine, in this order, each
 * read what the one before has just written, as in a layer (experts may be left out); attention reads what it reads by
 * itself. */
void fr_bench_chain(fr_bench *b, bool on);
fr_status fr_bench_run(void *bench, cudaStream_t stream, fr_error *err); /* an fr_work */
bool fr_bench_hot(const fr_row *row);                                    /* draws power: products and attention */

/* Device memory and pinned host memory for copies. */
void *fr_bench_memory(fr_bench *b, int64_t bytes);       /* NULL = too much; random data that others may overwrite */
void *fr_bench_host(fr_bench *b, int64_t bytes);         /* likewise */
const void *fr_bench_source(fr_bench *b, int64_t bytes); /* what peers read */

#endif

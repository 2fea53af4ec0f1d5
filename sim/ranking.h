/*
 * ranking: what a sweep found: for each workload the layouts ranked by throughput per GPU, the Pareto front of
 * throughput against TTFT, whether the winner is ahead by more than the error of the two predictions, and the ready
 * commands to try it.
 */
#ifndef FR_RANKING_H
#define FR_RANKING_H

#include "engine/store.h"

typedef struct {
    int most_rows;   /* layouts shown per workload; 0 = all */
    int most_groups; /* workloads shown in full; further ones as one line each (the winner) */
} fr_ranking_options;

/* Text tables of all finished cells in the store. */
fr_status fr_ranking_print(fr_store *store, const fr_ranking_options *options, fr_text *out, fr_error *err);

/*
 * The command that starts the layout in a production system, or the reason why there is none (false). `program` is
 * "vllm" or "sglang". Sources: vLLM docs "parallelism and scaling" and "expert parallel deployment"; SGLang docs
 * "server arguments".
 */
bool fr_ranking_command(const char *program, const fr_experiment *e, fr_text *out);

#endif

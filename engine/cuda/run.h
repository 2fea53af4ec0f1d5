/*
 * run: executes one experiment on this machine's GPUs in real time: the conductor (engine/conduct/conduct.h) over ranks
 * on devices (device_rank.h).
 */
#ifndef FR_CUDA_RUN_H
#define FR_CUDA_RUN_H

#include "engine/conduct/conduct.h"
#include "engine/cuda/device.h"
#include "engine/cuda/pools.h"
#include "engine/world/wire.h"

typedef struct {
    const char *weights; /* folder of a checkpoint; NULL = seeded random weights, with the experiment's routing injected
                            as a router bias */
    const fr_request *requests; /* trace mode: in order of arrival; NULL = batch mode */
    int64_t requests_count;
    fr_prompts *prompts; /* the token ids of those requests (id = index), answered here; NULL = ids are synthesised */
    bool spans, check_ops, logits;
    fr_pulls_by pulls;
    int64_t sequence_base;
    int fit_rounds;             /* corrections of the injected routing */
    double warmup_s, timeout_s; /* back to back before the clock starts; 0 = one forward, then a second of rest */
    int device;                 /* of rank 0; the others are on the next ones */
    bool procs;                 /* a process per rank */
    fr_wire **wires;            /* [ranks] to processes that run the other ranks already (MPI); NULL = none */
    fr_wire *conductor;         /* this process runs rank `rank` for the one behind the wire; NULL = it conducts */
    int rank, local;            /* of that rank: local is its place on this host */
    fr_world_ear ear;           /* of the stages of start and end (world.h) */
    const char *inject;         /* conduct/inject.h; NULL = nothing */
} fr_run_options;

typedef struct {
    fr_conducted c;
    bool device_lost;        /* also after a failure: the process should end without waiting for the device */
    fr_meter_reading *meter; /* [ranks] */
    fr_device_facts *device; /* [ranks] */
    fr_versions versions;
    int ranks;
} fr_run_output;

/* In a process that conducts, all of the result; in another one (options->conductor) nothing comes out. The setup must
 * fit (trace mode: already sized for its longest request). After a failure *out holds what was taken in
 * until then; free it either way. */
fr_status fr_run(const fr_setup *setup, const fr_run_options *options, fr_run_output *out, fr_error *err);
void fr_run_output_free(fr_run_output *o);

#endif

/*
 * run: executes one experiment on this machine's GPU in real time: the counterpart of sim/driver.h, with the same
 * scheduler, planner, records and result. Batch mode keeps two forwards out, as an engine whose host runs ahead does;
 * trace mode takes requests as their arrival times come, and forms a batch when the last one has entered the device.
 */
#ifndef FR_CUDA_RUN_H
#define FR_CUDA_RUN_H

#include "engine/cuda/device.h"
#include "engine/experiment.h"
#include "engine/prompts.h"
#include "engine/timeline.h"

typedef struct {
    const char *weights; /* folder of a checkpoint; NULL = seeded random weights, with the experiment's routing injected
                            as a router bias */
    const fr_request *requests; /* trace mode: in order of arrival; NULL = batch mode */
    int64_t requests_count;
    fr_prompts *prompts; /* the token ids of those requests (id = index), answered here; NULL = ids are synthesised */
    bool spans, check_ops;
    double warmup_s, timeout_s; /* back to back before the clock starts; 0 = one forward, then a second of rest */
    int device;
} fr_run_options;

typedef struct {
    fr_result result;
    fr_timeline spans;
    fr_request_record *requests;
    fr_forward_record *forwards;
    uint32_t requests_count, requests_cap, forwards_count, forwards_cap;
    int64_t *counts; /* [layers executed][experts] tokens per expert, over all forwards */
    int layers;
    bool device_lost; /* also after a failure: the process should end without waiting for the device */
    fr_meter_reading meter;
    fr_device_facts device;
    fr_versions versions;
    int64_t late_ns; /* that the device stood still for the host, spans only */
    int64_t weights_bytes, activation_bytes;
    double weights_s;     /* to load or make the weights */
    double routing_error; /* random weights: largest |measured - asked| share of tokens of an expert, of all layers */
} fr_run_output;

/* The setup must fit one GPU (trace mode: already sized for its longest request). */
fr_status fr_run(const fr_setup *setup, const fr_run_options *options, fr_run_output *out, fr_error *err);
void fr_run_output_free(fr_run_output *o);

#endif

/*
 * machine: what a layout runs on: GPUs, their memories and links, hosts and the network between them. Built-in ones by
 * name, a user's own from JSON. Datasheet figures only; what kernels reach of them is the cost model's business.
 *
 * Units: bytes, bytes/s, FLOP/s, ns, watts, currency per hour.
 */
#ifndef FR_MACHINE_H
#define FR_MACHINE_H

#include "engine/model.h"

typedef struct fr_machine {
    char name[64]; /* "h200x8" */
    char gpu[32];  /* "h200": names the cost table under kernels/measured/ */
    int gpus;      /* in all */
    int gpus_per_host;
    int gpus_per_domain; /* GPUs that reach each other over NVLink (8 in a DGX, 4 in a gb200 group) */

    double peak_flops[FR_PRECISIONS]; /* datasheet dense tensor peak; 0 = the GPU has no such format */
    int sms;
    int64_t hbm_bytes;   /* usable by a process */
    double hbm_rate;     /* datasheet, bytes/s */
    double link_rate;    /* NVLink, one direction, one GPU, nominal; 0 = no NVLink: peers are reached over PCIe */
    double pcie_rate;    /* per GPU and direction, effective for pinned memory */
    int copy_engines;    /* that can run at once per GPU */
    double host_rate;    /* host DRAM read limit of one host, shared by its GPUs' PCIe */
    int64_t host_bytes;  /* pinnable host memory of one host */
    double network_rate; /* per GPU and direction between hosts; 0 = one host */
    double network_latency_ns;

    /* GPU memory of NCCL: its kernels, once where a rank uses it; a communicator of two that send and receive; one of
     * P ranks for collectives: nccl_group + (P - 1) nccl_peer. Measured (builtin/machines/README.md). */
    int64_t nccl_library, nccl_pair, nccl_group, nccl_peer;

    double price_per_gpu_hour; /* 0 = unknown: results per currency are left out */
    double watts;              /* per GPU at its limit */
    char currency[8];
} fr_machine;

fr_status fr_machine_load(const char *name_or_path, fr_machine *out, fr_error *err);
fr_status fr_machine_parse(const char *text, size_t length, const char *where, fr_machine *out, fr_error *err);
const char *fr_machine_builtin(int index); /* NULL at the end */

/* What-ifs: "nvlink=2x,hbm=1.5x,pcie=2x,flops=1.2x,network=2x,launch=2x", 1 where not named. The cost model scales the
 * machine's figures and what was measured under them. Refuses unknown names. */
typedef struct {
    double link, hbm, pcie, flops, network, launch;
} fr_what_if;
#define FR_WHAT_IF_NONE ((fr_what_if){1, 1, 1, 1, 1, 1})
fr_status fr_what_if_parse(const char *text, fr_what_if *out, fr_error *err);

#endif

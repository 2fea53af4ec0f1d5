/*
 * peers: which ranks reach into the GPU memory of which, and whether they can: one sees another's memory through its
 * own process, through CUDA IPC in another process of the same host, and not at all across hosts. What travels through
 * NCCL needs none of it.
 */
#ifndef FR_PEERS_H
#define FR_PEERS_H

#include "engine/layout.h"

/* Where a rank lives, as ranks tell one another. */
typedef struct {
    uint64_t boot;          /* fr_boot_id of its host, 0 = unknown */
    int32_t device, pid;    /* CUDA device as its process counts them */
    char host[64], bus[32]; /* names: of the host, of the GPU's PCI slot */
} fr_address;

/* Of this process; the device's bus is left empty. */
void fr_address_here(int device, fr_address *out);
/* CLOCK_MONOTONIC and memory are one per boot of a host; 0 where the kernel does not say. */
uint64_t fr_boot_id(void);
/* By boot, where both know it, else by name. */
bool fr_address_same_host(const fr_address *a, const fr_address *b);
bool fr_address_same_process(const fr_address *a, const fr_address *b);

/*
 * What a rank needs of its peers' memory, as a word for messages: "weights" (pulls of asyncep, dwdp and of offload's
 * shards, with --gather ce), "tokens" (ep's own exchange, asap), NULL: nothing.
 */
const char *fr_layout_reaches(const fr_layout *l);
/* Whether `rank` reads or writes the memory of `other`: members of one ep
 * group do (asap: of one replica), where anybody does. */
bool fr_layout_reaches_rank(const fr_layout *l, int rank, int other);

/*
 * Whether all ranks can reach those that they need. FR_BAD_INPUT, the same on all ranks: the first two that live on
 * different hosts, and what to take in place; two ranks of one host on one GPU are refused too, by name.
 */
fr_status fr_peers_check(const fr_layout *l, const fr_address *at, int ranks, fr_error *err);

#endif

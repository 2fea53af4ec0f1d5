#include "engine/world/peers.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t fr_boot_id(void) {
    char *text = NULL;
    size_t length = 0;
    if (fr_read_file("/proc/sys/kernel/random/boot_id", 4096, &text, &length, NULL) != FR_OK) return 0;
    const uint64_t id = fr_hash(text, length, FR_HASH_SEED);
    free(text);
    return id;
}

void fr_address_here(int device, fr_address *out) {
    *out = (fr_address){.boot = fr_boot_id(), .device = device, .pid = (int32_t)getpid()};
    gethostname(out->host, sizeof out->host - 1);
}

bool fr_address_same_host(const fr_address *a, const fr_address *b) {
    if (a->boot != 0 && b->boot != 0) return a->boot == b->boot;
    return strcmp(a->host, b->host) == 0;
}

bool fr_address_same_process(const fr_address *a, const fr_address *b) {
    return a->pid == b->pid && fr_address_same_host(a, b);
}

const char *fr_layout_reaches(const fr_layout *l) {
    const bool pulls = l->experts == FR_EXP_ASYNCEP || l->experts == FR_EXP_DWDP || l->experts == FR_EXP_OFFLOAD;
    if (l->experts == FR_EXP_ASAP) return "tokens";
    if (l->ep < 2) return NULL;
    if (pulls && (l->gather == FR_GATHER_CE || l->experts == FR_EXP_DWDP)) return "weights";
    return l->experts == FR_EXP_EP && l->exchange != FR_EXCHANGE_AGRS ? "tokens" : NULL;
}

/* Groups are runs of ep ranks inside a stage; asap's attention and expert ranks are one. */
static int group_of(const fr_layout *l, int rank) {
    const int stage = fr_layout_stage_ranks(l);
    return rank - rank % stage % (l->experts == FR_EXP_ASAP ? stage : l->ep);
}

bool fr_layout_reaches_rank(const fr_layout *l, int rank, int other) {
    return fr_layout_reaches(l) && rank != other && group_of(l, rank) == group_of(l, other);
}

static fr_status refuse(const fr_layout *l, const fr_address *at, int a, int b, fr_error *err) {
    const char *instead = l->experts == FR_EXP_EP     ? "--ep-exchange agrs"
                          : l->experts == FR_EXP_ASAP ? "--strategy ep --ep-exchange agrs"
                          : l->experts == FR_EXP_DWDP ? "--strategy asyncep --gather nccl"
                                                      : "--gather nccl";
    return fr_fail(err, FR_BAD_INPUT,
                   "rank %d (host %s) reads or writes %s in the memory of rank %d (host %s), which is possible inside "
                   "one host only: take %s, which goes through NCCL, or groups inside each host",
                   a, at[a].host, fr_layout_reaches(l), b, at[b].host, instead);
}

fr_status fr_peers_check(const fr_layout *l, const fr_address *at, int ranks, fr_error *err) {
    for (int a = 0; a < ranks; a++)
        for (int b = a + 1; b < ranks; b++) {
            const bool same = fr_address_same_host(&at[a], &at[b]);
            if (!same && fr_layout_reaches_rank(l, a, b)) return refuse(l, at, a, b, err);
            if (same && at[a].pid != at[b].pid && at[a].bus[0] && strcmp(at[a].bus, at[b].bus) == 0)
                return fr_fail(err, FR_BAD_INPUT,
                               "ranks %d and %d are both on GPU %s of host %s: a rank takes a GPU of its own", a, b,
                               at[a].bus, at[a].host);
        }
    return FR_OK;
}

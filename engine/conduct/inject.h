/*
 * inject: faults on purpose, on the host's side only, to test what a run does when a rank goes wrong.
 *
 *     stall:RANK:FORWARD   the rank's thread stops before it issues that forward (0 = its first timed one)
 *     fail:RANK:FORWARD    issuing that forward fails
 *     oom:RANK             opening the rank fails for want of memory
 *     slow:RANK:MS         the rank's thread sleeps that long before it issues a forward
 */
#ifndef FR_CONDUCT_INJECT_H
#define FR_CONDUCT_INJECT_H

#include "engine/base.h"

typedef enum { FR_INJECT_NONE = 0, FR_INJECT_STALL, FR_INJECT_FAIL, FR_INJECT_OOM, FR_INJECT_SLOW } fr_inject_kind;

typedef struct {
    fr_inject_kind kind;
    int rank;
    int64_t forward; /* slow: ms */
} fr_inject;

/* FR_BAD_INPUT names what is wrong; `ranks`: that there are. */
fr_status fr_inject_parse(const char *text, int ranks, fr_inject *out, fr_error *err);

#endif

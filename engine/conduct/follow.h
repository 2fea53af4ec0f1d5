/*
 * follow: a rank in a process of its own. It opens the rank's worker (worker.h), plans the forwards that the conductor
 * sends as batches, and sends the worker's notes back. The conductor's side is remote.h.
 */
#ifndef FR_CONDUCT_FOLLOW_H
#define FR_CONDUCT_FOLLOW_H

#include "engine/conduct/conduct.h"
#include "engine/world/wire.h"

/* The same setup and options as the conductor's process has (of these: kind, context, requests, prompts, timeout_s,
 * inject). Returns when the conductor has stopped the rank or is gone. *lost: the device does not answer: the process
 * should end without it. */
fr_status fr_follow(const fr_setup *setup, const fr_conduct_options *options, int rank, fr_wire *wire, bool *lost,
                    fr_error *err);

#endif

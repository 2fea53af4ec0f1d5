/*
 * remote: a rank in another process, as the conductor's process sees it. A thread stands in for it: it takes the rank's
 * part in the world's meetings, hands its notes in, and tells it when the world has failed.
 */
#ifndef FR_CONDUCT_REMOTE_H
#define FR_CONDUCT_REMOTE_H

#include "engine/conduct/worker.h"
#include "engine/world/wire.h"

typedef struct fr_remote fr_remote;

fr_status fr_remote_open(const fr_worker_options *o, fr_remote **out, fr_error *err);
void fr_remote_close(fr_remote *r);   /* after FR_NOTE_CLOSED */
void fr_remote_abandon(fr_remote *r); /* without */

void fr_remote_forward(fr_remote *r, fr_job *job);
/* Any other command (codec.h). */
void fr_remote_command(fr_remote *r, uint32_t kind, const fr_bytes *payload);
/*
 * Compares the two processes' clocks: 32 pings, of which the narrowest counts; on one host they are the same. Before
 * fr_remote_start, whose `epoch` is of this process's clock, and before FR_WIRE_FINISH, to see how far they drifted.
 */
fr_status fr_remote_compare(fr_remote *r, fr_error *err);
void fr_remote_start(fr_remote *r, int64_t epoch);
void fr_remote_facts(fr_remote *r, fr_rank_facts *out);

#endif

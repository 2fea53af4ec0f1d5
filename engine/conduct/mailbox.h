/*
 * mailbox: a queue of messages of one size between threads: any thread puts, one takes. It grows as it must; a taker
 * waits no longer than it says.
 */
#ifndef FR_CONDUCT_MAILBOX_H
#define FR_CONDUCT_MAILBOX_H

#include "engine/base.h"

typedef struct fr_mailbox fr_mailbox;

fr_mailbox *fr_mailbox_new(size_t message_bytes);
void fr_mailbox_free(fr_mailbox *m); /* NULL is allowed; messages left in it are dropped */
void fr_mailbox_put(fr_mailbox *m, const void *message);
/* Takes the oldest message; false when none came within `timeout_ns` (0: does not wait). */
bool fr_mailbox_take(fr_mailbox *m, void *message, int64_t timeout_ns);

#endif

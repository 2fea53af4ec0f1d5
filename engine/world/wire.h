/*
 * wire: messages between two processes of a run, in order and whole. Any thread may send; one thread receives. Both
 * sides are the same program, so payloads are its structures as they lie in memory.
 */
#ifndef FR_WIRE_H
#define FR_WIRE_H

#include "engine/base.h"

/* A payload being written, or being read from `at` on. */
typedef struct {
    char *data;
    size_t count, capacity, at;
} fr_bytes;
void fr_bytes_put(fr_bytes *b, const void *from, size_t bytes);
/* Bytes as such with their number before them; takes them back into new memory (NULL where there are none). */
void fr_bytes_put_array(fr_bytes *b, const void *from, size_t count, size_t size);
bool fr_bytes_take(fr_bytes *b, void *to, size_t bytes); /* false: the payload is too short */
void *fr_bytes_take_array(fr_bytes *b, size_t size, size_t *count);
void fr_bytes_free(fr_bytes *b);

typedef struct fr_wire fr_wire;
struct fr_wire { /* a kind of wire begins with these */
    fr_status (*send)(fr_wire *w, uint32_t kind, const fr_bytes *payload, fr_error *err);
    fr_status (*receive)(fr_wire *w, int64_t timeout_ns, uint32_t *kind, fr_bytes *payload, fr_error *err);
    void (*close)(fr_wire *w);
};

/* Over a connected stream socket, which is closed with it. */
fr_wire *fr_wire_socket(int fd);
void fr_wire_close(fr_wire *w); /* NULL is allowed */

/* `kind` > 0; payload NULL: none. FR_FAILED when the other side is gone. */
fr_status fr_wire_send(fr_wire *w, uint32_t kind, const fr_bytes *payload, fr_error *err);
/* Waits up to timeout_ns for a message: *kind is 0 when none came. The payload is the caller's. FR_FAILED when the
 * other side is gone. */
fr_status fr_wire_receive(fr_wire *w, int64_t timeout_ns, uint32_t *kind, fr_bytes *payload, fr_error *err);

#endif

#include "engine/world/wire.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define MOST_BYTES ((uint64_t)1 << 34) /* beyond any message: the other side talks nonsense */
enum { MOST_WAIT_S = 60 };             /* for the next bytes of a message under way: as --timeout's default */

/* ---- payloads -----------------------------------------------------------------------------------------------------*/

void fr_bytes_put(fr_bytes *b, const void *from, size_t bytes) {
    if (b->count + bytes > b->capacity) {
        b->capacity = 2 * (b->count + bytes) + 64;
        b->data = fr_realloc(b->data, b->capacity, 1);
    }
    if (bytes) memcpy(b->data + b->count, from, bytes);
    b->count += bytes;
}

void fr_bytes_put_array(fr_bytes *b, const void *from, size_t count, size_t size) {
    const uint64_t n = from ? count : 0;
    fr_bytes_put(b, &n, sizeof n);
    fr_bytes_put(b, from, (size_t)n * size);
}

bool fr_bytes_take(fr_bytes *b, void *to, size_t bytes) {
    if (bytes > b->count - b->at) return false;
    memcpy(to, b->data + b->at, bytes);
    b->at += bytes;
    return true;
}

void *fr_bytes_take_array(fr_bytes *b, size_t size, size_t *count) {
    uint64_t n = 0;
    *count = 0;
    if (!fr_bytes_take(b, &n, sizeof n) || n == 0 || n > (b->count - b->at) / size) return NULL;
    void *to = fr_alloc((size_t)n * size);
    (void)fr_bytes_take(b, to, (size_t)n * size);
    *count = (size_t)n;
    return to;
}

void fr_bytes_free(fr_bytes *b) {
    free(b->data);
    *b = (fr_bytes){0};
}

/* ---- sockets ------------------------------------------------------------------------------------------------------*/

typedef struct {
    fr_wire head;
    int fd;
    pthread_mutex_t lock; /* one message at a time */
} socket_wire;

typedef struct {
    uint32_t kind, magic;
    uint64_t bytes;
} message_head;
#define MAGIC 0x66725731u

/* Of a read or a write that came to nothing. */
static fr_status gone(ssize_t n, fr_error *err) {
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return fr_fail(err, FR_FAILED, "the other process neither takes nor sends anything: has it been stopped?");
    return fr_fail(err, FR_FAILED, "the other process has ended");
}

/* A process that stands still in the middle of a message, or reads no more, must not hold this one for ever. A limit
 * that the socket has already is kept. */
static void limit_waits(int fd) {
    static const int ways[] = {SO_SNDTIMEO, SO_RCVTIMEO};
    for (int i = 0; i < 2; i++) {
        struct timeval t = {0};
        socklen_t size = sizeof t;
        if (getsockopt(fd, SOL_SOCKET, ways[i], &t, &size) == 0 && t.tv_sec == 0 && t.tv_usec == 0)
            setsockopt(fd, SOL_SOCKET, ways[i], &(struct timeval){.tv_sec = MOST_WAIT_S}, sizeof t);
    }
}

static fr_status write_all(int fd, const char *from, size_t bytes, fr_error *err) {
    while (bytes > 0) {
        const ssize_t n = send(fd, from, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return gone(n, err);
        from += n;
        bytes -= (size_t)n;
    }
    return FR_OK;
}

static fr_status read_all(int fd, char *to, size_t bytes, fr_error *err) {
    while (bytes > 0) {
        const ssize_t n = recv(fd, to, bytes, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return gone(n, err);
        to += n;
        bytes -= (size_t)n;
    }
    return FR_OK;
}

static fr_status socket_send(fr_wire *w, uint32_t kind, const fr_bytes *payload, fr_error *err) {
    socket_wire *s = (socket_wire *)w;
    const message_head head = {kind, MAGIC, payload ? payload->count : 0};
    pthread_mutex_lock(&s->lock);
    fr_status status = write_all(s->fd, (const char *)&head, sizeof head, err);
    if (status == FR_OK && head.bytes) status = write_all(s->fd, payload->data, payload->count, err);
    pthread_mutex_unlock(&s->lock);
    return status;
}

static fr_status socket_receive(fr_wire *w, int64_t timeout_ns, uint32_t *kind, fr_bytes *payload, fr_error *err) {
    socket_wire *s = (socket_wire *)w;
    struct pollfd p = {.fd = s->fd, .events = POLLIN};
    message_head head;
    *kind = 0;
    *payload = (fr_bytes){0};
    const struct timespec limit = {.tv_sec = (time_t)(timeout_ns / 1000000000),
                                   .tv_nsec = (long)(timeout_ns % 1000000000)};
    const int n = ppoll(&p, 1, &limit, NULL);
    if (n == 0 || (n < 0 && errno == EINTR)) return FR_OK;
    FR_TRY(read_all(s->fd, (char *)&head, sizeof head, err));
    if (head.magic != MAGIC || head.kind == 0 || head.bytes > MOST_BYTES)
        return fr_fail(err, FR_FAILED, "the other process sent something that is no message");
    payload->data = fr_alloc((size_t)head.bytes + 1);
    payload->count = payload->capacity = (size_t)head.bytes;
    const fr_status status = read_all(s->fd, payload->data, payload->count, err);
    if (status != FR_OK)
        fr_bytes_free(payload);
    else
        *kind = head.kind;
    return status;
}

static void socket_close(fr_wire *w) {
    socket_wire *s = (socket_wire *)w;
    close(s->fd);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

fr_wire *fr_wire_socket(int fd) {
    socket_wire *s = fr_alloc(sizeof *s);
    s->head = (fr_wire){socket_send, socket_receive, socket_close};
    s->fd = fd;
    limit_waits(fd);
    pthread_mutex_init(&s->lock, NULL);
    return &s->head;
}

fr_status fr_wire_send(fr_wire *w, uint32_t kind, const fr_bytes *payload, fr_error *err) {
    return w->send(w, kind, payload, err);
}

fr_status fr_wire_receive(fr_wire *w, int64_t timeout_ns, uint32_t *kind, fr_bytes *payload, fr_error *err) {
    return w->receive(w, timeout_ns, kind, payload, err);
}

void fr_wire_close(fr_wire *w) {
    if (w) w->close(w);
}

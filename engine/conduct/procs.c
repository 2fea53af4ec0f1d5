#include "engine/conduct/procs.h"

#include "engine/conduct/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct fr_procs {
    int ranks;
    pid_t *pids; /* [ranks], 0 = none */
    fr_wire **wires;
};

static fr_status spawn(fr_procs *p, int rank, void (*child)(void *, int, fr_wire *), void *context, fr_error *err) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return fr_fail(err, FR_FAILED, "--procs: no socket for rank %d: %s", rank, strerror(errno));
    fflush(NULL); /* what is buffered must not be written twice */
    const pid_t pid = fork();
    if (pid < 0) {
        close(pair[0]);
        close(pair[1]);
        return fr_fail(err, FR_FAILED, "--procs: no process for rank %d: %s", rank, strerror(errno));
    }
    if (pid == 0) {
        close(pair[0]);
        for (int r = 0; r < rank; r++) fr_wire_close(p->wires[r]); /* its siblings' are the caller's */
        child(context, rank, fr_wire_socket(pair[1]));
        _exit(FR_FAILED);
    }
    close(pair[1]);
    p->pids[rank] = pid;
    p->wires[rank] = fr_wire_socket(pair[0]);
    return FR_OK;
}

fr_status fr_procs_open(int ranks, void (*child)(void *, int, fr_wire *), void *context, fr_procs **out,
                        fr_error *err) {
    fr_procs *p = fr_alloc(sizeof *p);
    fr_status s = FR_OK;
    p->ranks = ranks;
    p->pids = fr_alloc((size_t)ranks * sizeof *p->pids);
    p->wires = fr_alloc((size_t)ranks * sizeof(*p->wires));
    for (int r = 1; r < ranks && s == FR_OK; r++) s = spawn(p, r, child, context, err);
    *out = p;
    if (s == FR_OK) return FR_OK;
    fr_procs_close(p, 1);
    *out = NULL;
    return s;
}

fr_wire **fr_procs_wires(fr_procs *p) {
    return p->wires;
}

void fr_procs_await(fr_procs *p, double seconds) {
    const int64_t deadline = fr_monotonic() + (int64_t)(seconds * 1e9);
    for (int r = 0; p && r < p->ranks; r++)
        while (p->pids[r]) {
            const pid_t ended = waitpid(p->pids[r], NULL, WNOHANG);
            if (ended != 0) p->pids[r] = 0; /* or there is no such child any more */
            if (ended != 0 || fr_monotonic() >= deadline) break;
            nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        }
}

void fr_procs_close(fr_procs *p, double seconds) {
    if (!p) return;
    for (int r = 0; r < p->ranks; r++) fr_wire_close(p->wires[r]);
    fr_procs_await(p, seconds);
    free(p->pids);
    free(p->wires);
    free(p);
}

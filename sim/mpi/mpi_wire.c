#include "sim/mpi/mpi_wire.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <time.h>

enum { TAG_WIRE = 1000 }; /* + kind: beyond those of a sweep */
#define NAP_NS 20000      /* between two looks for a message */

typedef struct {
    fr_wire head;
    int peer;
} mpi_wire;

static fr_status check(int code, const char *call, fr_error *err) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    if (code == MPI_SUCCESS) return FR_OK;
    MPI_Error_string(code, text, &length);
    return fr_fail(err, FR_FAILED, "%s failed: %.500s", call, text);
}

static fr_status wire_send(fr_wire *w, uint32_t kind, const fr_bytes *payload, fr_error *err) {
    const size_t bytes = payload ? payload->count : 0;
    if (bytes > INT_MAX) return fr_fail(err, FR_FAILED, "a message of %zu bytes: MPI takes 2^31", bytes);
    return check(MPI_Send(payload ? payload->data : NULL, (int)bytes, MPI_BYTE, ((mpi_wire *)w)->peer,
                          TAG_WIRE + (int)kind, MPI_COMM_WORLD),
                 "MPI_Send", err);
}

static fr_status wire_receive(fr_wire *w, int64_t timeout_ns, uint32_t *kind, fr_bytes *payload, fr_error *err) {
    const int peer = ((mpi_wire *)w)->peer;
    const int64_t until = fr_monotonic() + timeout_ns;
    int there = 0, bytes = 0;
    MPI_Status status;
    *kind = 0;
    *payload = (fr_bytes){0};
    for (;;) {
        FR_TRY(check(MPI_Iprobe(peer, MPI_ANY_TAG, MPI_COMM_WORLD, &there, &status), "MPI_Iprobe", err));
        if (there || fr_monotonic() >= until) break;
        nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
    }
    if (!there) return FR_OK;
    FR_TRY(check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count", err));
    payload->count = payload->capacity = (size_t)bytes;
    payload->data = fr_alloc(payload->count + 1);
    const fr_status s =
        check(MPI_Recv(payload->data, bytes, MPI_BYTE, peer, status.MPI_TAG, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
              "MPI_Recv", err);
    if (s != FR_OK) {
        fr_bytes_free(payload);
        return s;
    }
    *kind = (uint32_t)(status.MPI_TAG - TAG_WIRE);
    return FR_OK;
}

static void wire_close(fr_wire *w) {
    free(w);
}

fr_status fr_mpi_wire(int peer, fr_wire **out, fr_error *err) {
    int level = 0;
    *out = NULL;
    FR_TRY(check(MPI_Query_thread(&level), "MPI_Query_thread", err));
    if (level < MPI_THREAD_MULTIPLE)
        return fr_fail(err, FR_FAILED, "this MPI library lacks MPI_THREAD_MULTIPLE, which ranks as processes need");
    mpi_wire *w = fr_alloc(sizeof *w);
    w->head = (fr_wire){wire_send, wire_receive, wire_close};
    w->peer = peer;
    *out = &w->head;
    return FR_OK;
}

int fr_mpi_local_rank(void) {
    MPI_Comm host;
    int rank = 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &rank);
    MPI_Comm_free(&host);
    return rank;
}

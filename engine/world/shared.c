#include "engine/world/shared.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { TRIES = 16 };

static fr_status fails(const fr_shared_name *name, const char *what, fr_error *err) {
    return fr_fail(err, FR_FAILED, "shared memory %s: %s: %s (/dev/shm must be writable and have room)", name->text,
                   what, strerror(errno));
}

/* The clock makes names of threads and of earlier processes with this number differ; O_EXCL settles the rest. */
static void new_name(fr_shared_name *name, int attempt) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    snprintf(name->text, sizeof name->text, "/forerun-%ld-%lx-%d", (long)getpid(),
             (unsigned long)t.tv_nsec ^ (unsigned long)t.tv_sec << 30, attempt);
}

static fr_status map(const fr_shared_name *name, int fd, size_t bytes, void **out, fr_error *err) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return fails(name, "mmap", err);
    *out = p;
    return FR_OK;
}

fr_status fr_shared_make(size_t bytes, fr_shared_name *name, void **out, fr_error *err) {
    int fd = -1;
    *out = NULL;
    for (int i = 0; i < TRIES && fd < 0; i++) {
        new_name(name, i);
        fd = shm_open(name->text, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR);
        if (fd < 0 && errno != EEXIST) break;
    }
    fr_status s = fd < 0 ? fails(name, "shm_open", err) : FR_OK;
    /* Takes the room now: a page that is missing later would be a signal, not an error. */
    const int full = s == FR_OK ? posix_fallocate(fd, 0, (off_t)bytes) : 0;
    if (full) {
        errno = full;
        s = fails(name, "no room", err);
    }
    if (s == FR_OK) s = map(name, fd, bytes, out, err);
    if (fd >= 0) close(fd);
    if (fd >= 0 && s != FR_OK) fr_shared_forget(name);
    if (s != FR_OK) name->text[0] = 0;
    return s;
}

fr_status fr_shared_open(const fr_shared_name *name, size_t bytes, void **out, fr_error *err) {
    struct stat there;
    *out = NULL;
    const int fd = shm_open(name->text, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return fails(name, "shm_open", err);
    fr_status s = FR_OK;
    if (fstat(fd, &there) != 0 || there.st_size < (off_t)bytes)
        s = fr_fail(err, FR_FAILED, "shared memory %s is shorter than %zu bytes", name->text, bytes);
    if (s == FR_OK) s = map(name, fd, bytes, out, err);
    close(fd);
    return s;
}

void fr_shared_forget(const fr_shared_name *name) {
    if (name->text[0]) shm_unlink(name->text);
}

void fr_shared_close(void *p, size_t bytes) {
    if (p) munmap(p, bytes);
}

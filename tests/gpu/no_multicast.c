/*
 * no_multicast: a library to preload (LD_PRELOAD) into whatever must never make an NVLink multicast object: a call of
 * cuMulticastCreate ends the program. NCCL asks the driver for its functions through cuGetProcAddress, which the CUDA
 * runtime inside it finds with dlsym: dlsym is replaced, and with it what it finds. At exit it says how often
 * cuMulticastCreate was looked up (NCCL does, always: 0 would mean that this library was passed by) and called (never).
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void *(*dlsym_fn)(void *, const char *);
typedef int (*proc_fn)(const char *, void **, int, uint64_t, void *);

typedef int (*old_proc_fn)(const char *, void **, int, uint64_t); /* of CUDA 11 */

static proc_fn real_proc;
static old_proc_fn real_old_proc;
static volatile int looked_up;

static int multicast(void) {
    static const char text[] = "no_multicast: cuMulticastCreate was called\n";
    if (write(2, text, sizeof text - 1) < 0) abort();
    abort();
}

static void *convert(const void *function) { /* ISO C has no conversion of a function pointer to an object pointer */
    void *p;
    memcpy(&p, function, sizeof p);
    return p;
}

static int proc(const char *symbol, void **out, int version, uint64_t flags, void *status);
static int old_proc(const char *symbol, void **out, int version, uint64_t flags);

/* The runtime asks for cuGetProcAddress itself, too, in the version that it speaks. */
static void replace(const char *symbol, void **out, int version) {
    if (!out || !*out) return;
    if (strcmp(symbol, "cuMulticastCreate") == 0) {
        int (*mine)(void) = multicast;
        __atomic_fetch_add(&looked_up, 1, __ATOMIC_RELAXED);
        *out = convert(&mine);
    } else if (strcmp(symbol, "cuGetProcAddress_v2") == 0 ||
               (strcmp(symbol, "cuGetProcAddress") == 0 && version >= 12000)) {
        proc_fn mine = proc;
        if (*out == convert(&mine)) return;
        memcpy(&real_proc, out, sizeof real_proc);
        *out = convert(&mine);
    } else if (strcmp(symbol, "cuGetProcAddress") == 0) {
        old_proc_fn mine = old_proc;
        if (*out == convert(&mine)) return;
        memcpy(&real_old_proc, out, sizeof real_old_proc);
        *out = convert(&mine);
    }
}

static int proc(const char *symbol, void **out, int version, uint64_t flags, void *status) {
    const int r = real_proc(symbol, out, version, flags, status);
    if (r == 0) replace(symbol, out, version);
    return r;
}

static int old_proc(const char *symbol, void **out, int version, uint64_t flags) {
    const int r = real_old_proc(symbol, out, version, flags);
    if (r == 0) replace(symbol, out, version);
    return r;
}

void *dlsym(void *handle, const char *name) {
    static dlsym_fn real;
    if (!real) {
        void *p = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
        if (!p) p = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
        memcpy(&real, &p, sizeof real);
    }
    void *found = real(handle, name);
    replace(name, &found, 0); /* exported as cuGetProcAddress: the old one */
    return found;
}

__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "no_multicast: cuMulticastCreate looked up %d times, never called\n", looked_up);
}

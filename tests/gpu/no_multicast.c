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

static proc_fn real_proc;
static volatile int looked_up;

static int multicast(void) {
    static const char text[] = "no_multicast: cuMulticastCreate was called\n";
    if (write(2, text, sizeof text - 1) < 0) abort();
    abort();
}

static void *convert(int (*f)(void)) { /* ISO C has no conversion of a function pointer to an object pointer */
    void *p;
    memcpy(&p, &f, sizeof p);
    return p;
}

static int proc(const char *symbol, void **out, int version, uint64_t flags, void *status) {
    const int r = real_proc(symbol, out, version, flags, status);
    if (strcmp(symbol, "cuMulticastCreate") == 0 && out && *out) {
        __atomic_fetch_add(&looked_up, 1, __ATOMIC_RELAXED);
        *out = convert(multicast);
    }
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
    if (found && strcmp(name, "cuMulticastCreate") == 0) {
        __atomic_fetch_add(&looked_up, 1, __ATOMIC_RELAXED);
        return convert(multicast);
    }
    if (found && (strcmp(name, "cuGetProcAddress_v2") == 0 || strcmp(name, "cuGetProcAddress") == 0)) {
        memcpy(&real_proc, &found, sizeof real_proc);
        proc_fn mine = proc;
        memcpy(&found, &mine, sizeof found);
    }
    return found;
}

__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "no_multicast: cuMulticastCreate looked up %d times, never called\n", looked_up);
}

/*
 * shared: host memory that several processes of one host see (POSIX shared memory). One makes it, the others open it by
 * its name, and when all have, the name goes: memory that lost its name ends with the last process that has it.
 */
#ifndef FR_SHARED_H
#define FR_SHARED_H

#include "engine/base.h"

typedef struct {
    char text[48]; /* "" = none was made */
} fr_shared_name;

/* Zeroed memory of `bytes` > 0 and a name that nobody else has. FR_FAILED says what the system said. */
fr_status fr_shared_make(size_t bytes, fr_shared_name *name, void **out, fr_error *err);
fr_status fr_shared_open(const fr_shared_name *name, size_t bytes, void **out, fr_error *err);
void fr_shared_forget(const fr_shared_name *name); /* the maker's, when all have opened it */
void fr_shared_close(void *p, size_t bytes);       /* NULL is allowed */

#endif

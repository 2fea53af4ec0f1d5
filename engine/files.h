/*
 * files: what is written to disk. A file appears when it is whole, so that a reader never sees half of it: it is
 * written beside its place, synced, renamed. (fr_write_file of engine/base.h does so for a text in memory.)
 */
#ifndef FR_FILES_H
#define FR_FILES_H

#include "engine/base.h"

#include <stdio.h>

typedef struct {
    FILE *file; /* to write to, between begin and finish; write errors are seen by finish */
    const char *path;
    char temporary[4096];
    bool device; /* /dev/stdout and its like take the bytes as they come */
} fr_out_file;

/* `path` must outlive the fr_out_file. FR_FAILED: cannot be written. */
fr_status fr_out_begin(fr_out_file *o, const char *path, fr_error *err);
/* Closes it; on failure nothing is left behind. */
fr_status fr_out_finish(fr_out_file *o, fr_error *err);

/*
 * Whether a file can be made at `path`, asked before the work whose result it takes. FR_BAD_INPUT for an existing
 * folder and for a parent folder that is not there or not writable; `what` names the flag.
 */
fr_status fr_can_write(const char *path, const char *what, fr_error *err);

#endif

#include "engine/files.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

fr_status fr_can_write(const char *path, const char *what, fr_error *err) {
    char folder[4096];
    struct stat s;
    const char *slash = strrchr(path, '/');
    if (strlen(path) >= sizeof folder) return fr_fail(err, FR_BAD_INPUT, "%s: path is too long", what);
    if (!path[0]) return fr_fail(err, FR_BAD_INPUT, "%s: expected the name of a file, got an empty one", what);
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (stat(path, &s) == 0 && S_ISDIR(s.st_mode))
        return fr_fail(err, FR_BAD_INPUT, "%s %s: is a folder; expected the name of a file", what, path);
    if (access(folder, F_OK) != 0)
        return fr_fail(err, FR_BAD_INPUT, "%s %s: there is no folder %s", what, path, folder);
    if (access(folder, W_OK | X_OK) != 0)
        return fr_fail(err, FR_BAD_INPUT, "%s %s: the folder %s is not writable", what, path, folder);
    return FR_OK;
}

fr_status fr_out_begin(fr_out_file *o, const char *path, fr_error *err) {
    const bool device = strncmp(path, "/dev/", 5) == 0;
    int n = device ? snprintf(o->temporary, sizeof o->temporary, "%s", path)
                   : snprintf(o->temporary, sizeof o->temporary, "%s.part-%ld", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof o->temporary) return fr_fail(err, FR_BAD_INPUT, "%s: path is too long", path);
    o->path = path;
    o->device = device;
    o->file = fopen(o->temporary, "wb");
    return o->file ? FR_OK : fr_fail(err, FR_FAILED, "%s: cannot write: %s", path, strerror(errno));
}

fr_status fr_out_finish(fr_out_file *o, fr_error *err) {
    bool ok = !ferror(o->file);
    ok = fflush(o->file) == 0 && ok;
    if (!o->device) ok = fsync(fileno(o->file)) == 0 && ok;
    int why = errno;
    ok = fclose(o->file) == 0 && ok;
    if (ok && o->device) return FR_OK;
    if (ok && rename(o->temporary, o->path) == 0) return FR_OK;
    if (ok) why = errno;
    if (!o->device) remove(o->temporary);
    return fr_fail(err, FR_FAILED, "%s: cannot write: %s", o->path, strerror(why));
}

fr_status fr_write_file(const char *path, const char *text, size_t length, fr_error *err) {
    fr_out_file o;
    FR_TRY(fr_out_begin(&o, path, err));
    fwrite(text, 1, length, o.file); /* what fails here is still seen by fr_out_finish */
    return fr_out_finish(&o, err);
}

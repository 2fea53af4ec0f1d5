#include "engine/conduct/inject.h"

#include <stdlib.h>
#include <string.h>

static fr_status parse(char *text, int ranks, fr_inject *out, fr_error *err) {
    static const struct {
        const char *name;
        fr_inject_kind kind;
        bool number;
    } kinds[] = {{"stall", FR_INJECT_STALL, true},
                 {"fail", FR_INJECT_FAIL, true},
                 {"oom", FR_INJECT_OOM, false},
                 {"slow", FR_INJECT_SLOW, true}};
    char *rank = strchr(text, ':'), *number = rank ? strchr(rank + 1, ':') : NULL;
    if (rank) *rank++ = 0;
    if (number) *number++ = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(text, kinds[i].name) != 0) continue;
        int64_t who = 0;
        if (!rank || (number != NULL) != kinds[i].number) break;
        FR_TRY(fr_parse_int(rank, 0, ranks - 1, false, "--inject: the rank", &who, err));
        if (number) FR_TRY(fr_parse_int(number, 0, 1000000, false, "--inject: the number", &out->forward, err));
        out->kind = kinds[i].kind;
        out->rank = (int)who;
        return FR_OK;
    }
    return fr_fail(err, FR_BAD_INPUT,
                   "--inject: expected stall:RANK:FORWARD, fail:RANK:FORWARD, oom:RANK or slow:RANK:MS");
}

fr_status fr_inject_parse(const char *text, int ranks, fr_inject *out, fr_error *err) {
    char *copy = fr_strdup(text);
    *out = (fr_inject){0};
    const fr_status s = parse(copy, ranks, out, err);
    free(copy);
    return s;
}

#include "engine/plan/op.h"

#include <string.h>

static const char *const names[FR_OP_KIND_COUNT] = {
#define FR_OP_NAME(id, name, class) name,
    FR_OP_KINDS(FR_OP_NAME)
#undef FR_OP_NAME
};

const char *fr_op_name(fr_op_kind kind) {
    return (unsigned)kind < FR_OP_KIND_COUNT ? names[kind] : "unknown";
}

fr_op_kind fr_op_by_name(const char *name) {
    for (int k = 0; k < FR_OP_KIND_COUNT; k++)
        if (strcmp(names[k], name) == 0) return (fr_op_kind)k;
    return FR_OP_KIND_COUNT;
}

const char *fr_op_class_name(fr_op_class c) {
    static const char *const classes[FR_CLASS_COUNT] = {"other",     "host",    "memory",     "gemm",
                                                        "attention", "grouped", "collective", "copy"};
    return (unsigned)c < FR_CLASS_COUNT ? classes[c] : "unknown";
}

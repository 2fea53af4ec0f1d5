#include "engine/plan/op.h"

#include <string.h>

static const struct {
    const char *name;
    fr_op_class class;
} kinds[FR_OP_KIND_COUNT] = {
#define FR_OP_ROW(id, name, class) {name, FR_CLASS_##class},
    FR_OP_KINDS(FR_OP_ROW)
#undef FR_OP_ROW
};

const char *fr_op_name(fr_op_kind kind) {
    return (unsigned)kind < FR_OP_KIND_COUNT ? kinds[kind].name : "unknown";
}

fr_op_class fr_op_class_of(fr_op_kind kind) {
    return (unsigned)kind < FR_OP_KIND_COUNT ? kinds[kind].class : FR_CLASS_OTHER;
}

fr_op_kind fr_op_by_name(const char *name) {
    for (int k = 0; k < FR_OP_KIND_COUNT; k++)
        if (strcmp(kinds[k].name, name) == 0) return (fr_op_kind)k;
    return FR_OP_KIND_COUNT;
}

const char *fr_op_class_name(fr_op_class c) {
    static const char *const names[FR_CLASS_COUNT] = {"other",     "host",    "memory",     "gemm",
                                                      "attention", "grouped", "collective", "copy"};
    return (unsigned)c < FR_CLASS_COUNT ? names[c] : "unknown";
}

#include "sim/cli/figures.h"

#include "traces/generate.h"

#include <stdio.h>

void cli_list_traces(void) {
    printf("shipped traces (--trace NAME):\n");
    for (int i = 0; fr_trace_builtin_at(i); i++) {
        const fr_trace_builtin *t = fr_trace_builtin_at(i);
        printf("  %-28s %s (%s)\n", t->name, t->summary, t->licence);
    }
    printf("generators (--trace SPEC):\n");
    for (int i = 0; fr_generator_at(i); i++) {
        const fr_generator *g = fr_generator_at(i);
        printf("  %-10s %s\n  %-10s e.g. %s\n", g->name, g->summary, "", g->example);
    }
}

/*
 * The shipped tables, inside the binary: byte copies of kernels/measured/<gpu>.txt, taken by the assembler, so that no
 * file is needed at run time. A new table is one line here.
 */
#include "engine/cost/cost_table.h"

#include <string.h>

#define FR_TABLE(gpu)                                                                                                  \
    __asm__(".section .rodata\n"                                                                                       \
            ".global fr_table_" #gpu "\n"                                                                              \
            ".global fr_table_" #gpu "_end\n"                                                                          \
            "fr_table_" #gpu ":\n"                                                                                     \
            ".incbin \"kernels/measured/" #gpu ".txt\"\n"                                                              \
            "fr_table_" #gpu "_end:\n"                                                                                 \
            ".byte 0\n"                                                                                                \
            ".previous\n");                                                                                            \
    extern const char fr_table_##gpu[], fr_table_##gpu##_end[];

FR_TABLE(gb200)
FR_TABLE(h100)
FR_TABLE(h100_cards)
FR_TABLE(h200)
FR_TABLE(h200_cards)

const char *fr_table_builtin(const char *gpu, size_t *length) {
    const struct {
        const char *gpu, *start, *end;
    } tables[] = {{"gb200", fr_table_gb200, fr_table_gb200_end},
                  {"h100", fr_table_h100, fr_table_h100_end},
                  {"h100_cards", fr_table_h100_cards, fr_table_h100_cards_end},
                  {"h200", fr_table_h200, fr_table_h200_end},
                  {"h200_cards", fr_table_h200_cards, fr_table_h200_cards_end}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (strcmp(tables[i].gpu, gpu) == 0) {
            *length = (size_t)(tables[i].end - tables[i].start);
            return tables[i].start;
        }
    *length = 0;
    return NULL;
}

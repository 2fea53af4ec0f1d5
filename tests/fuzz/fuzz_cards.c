/* Fuzz target: anchors of single cards, read against the H200's cost model, and their mean. */
#include "engine/cost/cost_card.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const fr_cost_model *model(void) {
    static fr_cost_model *c;
    fr_machine m;
    fr_error err;
    if (!c && (fr_machine_load("h200x1", &m, &err) != FR_OK || fr_cost_open(&m, NULL, &c, &err) != FR_OK))
        __builtin_trap();
    return c;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = fr_alloc(size + 1);
    fr_card *cards, mean;
    double spread[FR_CLASS_COUNT];
    int count;
    fr_error err;
    memcpy(text, data, size);
    if (fr_cards_read(model(), text, "fuzz.txt", NULL, &cards, &count, &err) == FR_OK) {
        fr_cards_mean(cards, count, &mean, spread);
        for (int i = 0; i <= count; i++) {
            const fr_card *card = i < count ? &cards[i] : &mean;
            if (!(card->draw > 0 && isfinite(card->draw))) __builtin_trap();
            for (int k = 0; k < FR_CLASS_COUNT; k++)
                if (!(card->time[k] > 0 && isfinite(card->time[k]))) __builtin_trap();
        }
        free(cards);
    }
    free(text);
    return 0;
}

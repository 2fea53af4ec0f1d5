#include "engine/slots.h"

#include <stdlib.h>
#include <string.h>

enum { RING = 4096, VOID = -1 }; /* more holds than lie between the use of one and the acquiring of the next few */

struct fr_slots {
    int slots;
    uint32_t next, real; /* holds acquired or void; of these, real ones */
    bool *busy;
    int16_t at[RING];
};

fr_slots *fr_slots_new(int slots) {
    fr_slots *s = fr_alloc(sizeof *s);
    s->slots = slots;
    s->busy = fr_alloc((size_t)slots * sizeof *s->busy);
    return s;
}

void fr_slots_free(fr_slots *s) {
    if (!s) return;
    free(s->busy);
    free(s);
}

void fr_slots_reset(fr_slots *s) {
    s->next = s->real = 0;
    memset(s->busy, 0, (size_t)s->slots * sizeof *s->busy);
}

int fr_slots_count(const fr_slots *s) {
    return s->slots;
}

static uint32_t next_slot(const fr_slots *s) {
    return s->real % (uint32_t)s->slots;
}

bool fr_slots_is_next(const fr_slots *s, uint32_t hold) {
    return hold == s->next;
}

bool fr_slots_can_take(const fr_slots *s, uint32_t hold) {
    return hold == s->next && !s->busy[next_slot(s)];
}

int fr_slots_take(fr_slots *s, uint32_t hold) {
    const uint32_t slot = next_slot(s);
    s->busy[slot] = true;
    s->at[hold % RING] = (int16_t)slot;
    s->next++;
    s->real++;
    return (int)slot;
}

void fr_slots_skip(fr_slots *s, uint32_t hold) {
    s->at[hold % RING] = VOID;
    s->next++;
}

int fr_slots_of(const fr_slots *s, uint32_t hold) {
    return s->at[hold % RING];
}

int fr_slots_give(fr_slots *s, uint32_t hold) {
    const int slot = s->at[hold % RING];
    if (slot != VOID) s->busy[slot] = false;
    return slot;
}

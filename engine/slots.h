/*
 * slots: which slot of a pool each hold has, for an executor that issues ops ahead of the device. Holds are numbered in
 * the order in which the plan acquires them (plan.h, S4); a hold that a skipped op would have acquired is void (S6), so
 * slots go round in the order of the holds that are real.
 */
#ifndef FR_SLOTS_H
#define FR_SLOTS_H

#include "engine/base.h"

typedef struct fr_slots fr_slots;

fr_slots *fr_slots_new(int slots);
void fr_slots_free(fr_slots *s);
void fr_slots_reset(fr_slots *s); /* all free; the next hold is 0 */
int fr_slots_count(const fr_slots *s);

/* Whether `hold` is the next to be acquired, and its slot was given back. */
bool fr_slots_can_take(const fr_slots *s, uint32_t hold);
int fr_slots_take(fr_slots *s, uint32_t hold); /* after fr_slots_can_take; its slot */
bool fr_slots_is_next(const fr_slots *s, uint32_t hold);
void fr_slots_skip(fr_slots *s, uint32_t hold); /* the next hold is void */
/* Slot of a hold that was acquired (of the latest 4,096), -1 = void. */
int fr_slots_of(const fr_slots *s, uint32_t hold);
/* Gives a hold's slot back; returns it, -1 = void. */
int fr_slots_give(fr_slots *s, uint32_t hold);

#endif

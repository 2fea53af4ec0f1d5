/*
 * power_fit: the power model's coefficients from a table's rows: sustained ones with clock and watts, the same shapes
 * in a burst, bursts by time (at_ms), slow-downs.
 */
#ifndef FR_POWER_FIT_H
#define FR_POWER_FIT_H

#include "engine/cost/cost_base.h"
#include "engine/cost/power.h"

/* out->known is false where the rows don't say enough: none of them capped, or fewer than three with clock and watts.
 */
void fr_power_fit(const fr_table *t, fr_power *out);

#endif

#include "engine/strategy/planner.h"
fr_status fr_asap_open(fr_planner *p, fr_error *err) {
    (void)p;
    return fr_fail(err, FR_FAILED, "asap: plans are not built yet");
}
void fr_asap_close(fr_planner *p) {
    (void)p;
}
void fr_asap_forward(fr_walk *w) {
    (void)w;
}

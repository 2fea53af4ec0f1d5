#include "engine/strategy/planner.h"
const fr_experts_part fr_experts_offload = {.open = fr_experts_nothing,
                                            .enter = fr_layer_nothing,
                                            .prepare = fr_prepare_own,
                                            .experts = fr_experts_resident,
                                            .leave = fr_layer_nothing};

/* commands: what the command line of the CUDA build adds (sim/cli/main.c has the table). */
#ifndef FR_CUDA_COMMANDS_H
#define FR_CUDA_COMMANDS_H

#include "engine/experiment.h"

/* The GPUs, libraries and peers of this machine, for `forerun doctor`. */
fr_status cuda_doctor(fr_error *err);

#endif

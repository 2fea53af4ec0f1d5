/* supports: whether the engine executes a layout, asked before any device is opened. */
#ifndef FR_CUDA_SUPPORTS_H
#define FR_CUDA_SUPPORTS_H

#include "engine/experiment.h"

/*
 * FR_BAD_INPUT with one line that names what the engine does not execute (a model's field, a precision, a kind of op in
 * the layout's plan).
 */
fr_status fr_supports(const fr_setup *s, fr_error *err);

#endif

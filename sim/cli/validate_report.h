/* validate_report: a comparison as text for people and as JSON for scripts. */
#ifndef FR_CLI_VALIDATE_REPORT_H
#define FR_CLI_VALIDATE_REPORT_H

#include "sim/validate.h"

struct json_t;

void cli_validate_details(const fr_validation *v, fr_text *out);            /* one run, everything */
void cli_validate_list(const fr_validation *v, int count, fr_text *out);    /* a line each */
void cli_validate_summary(const fr_validation *v, int count, fr_text *out); /* all runs */
struct json_t *cli_validate_json(const fr_validation *v, int count);

#endif

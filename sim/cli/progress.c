#include "sim/cli/cli.h"

#include <unistd.h>

void cli_progress_start(cli_progress *p, const char *what, bool forced) {
    *p = (cli_progress){.on = forced || isatty(STDERR_FILENO) == 1, .began = fr_monotonic_s(), .what = what};
    p->last = p->began;
}

void cli_progress_update(void *progress, double share) {
    cli_progress *p = progress;
    double now = p->on ? fr_monotonic_s() : 0;
    if (!p->on || share <= 0 || now - p->began < 1 || now - p->last < 0.2) return;
    if (share > 1) share = 1;
    p->last = now;
    p->shown = true;
    enum { WIDTH = 30 };
    int full = (int)(share * WIDTH);
    double left = (now - p->began) * (1 - share) / share;
    fprintf(stderr, "\r%s [%.*s%*s] %3.0f %%, %.0f s left ", p->what, full, "##############################",
            WIDTH - full, "", share * 100, left);
    fflush(stderr);
}

void cli_progress_end(cli_progress *p) {
    if (p->shown) fprintf(stderr, "\r%79s\r", "");
    p->shown = false;
}

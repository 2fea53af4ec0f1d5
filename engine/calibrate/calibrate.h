/*
 * calibrate: what a calibration measures, in which order, and what it leaves in files. No GPU is needed here: the CUDA
 * build (engine/cuda/calibrate.h) does the measuring.
 *
 * A grid is a list of items; an item is a row of the cost table (kernels/measured/FORMAT.md) without its result, so
 * that a row that a file holds already is an item that is done. Items stand in the order of their value: a run that is
 * cut off leaves the best table that its time allowed.
 */
#ifndef FR_CALIBRATE_H
#define FR_CALIBRATE_H

#include "engine/cost/cost.h"
#include "engine/cost/cost_table.h"

/* anchors: a dozen ops, short and sustained, by which tables and runs of different cards are compared. */
typedef enum { FR_CAL_FULL = 0, FR_CAL_QUICK, FR_CAL_ANCHORS } fr_cal_mode;
const char *fr_cal_mode_name(fr_cal_mode m);
double fr_cal_mode_seconds(fr_cal_mode m); /* that it may take unless told otherwise */

/* What is done for an item. */
typedef enum {
    FR_CAL_BURST = 0, /* one row: median of a few launches at full clock */
    FR_CAL_HOLD,      /* sustained, at the row's duty: one row */
    FR_CAL_RAMP,      /* back to back from rest: a row for each time of fr_cal_ramp */
    FR_CAL_RELEASE,   /* back to back until the limit holds it, a pause, back to back again: rows before and after */
    FR_CAL_CHAIN,     /* a layer's kernels in their order under the limit: a row for each, this one last */
    FR_CAL_HOST,      /* host and event overheads, the shortest kernel, read-back */
    FR_CAL_COPY,      /* copies of one GPU, both ways too */
    FR_CAL_PULL,      /* two GPUs or more from here on */
    FR_CAL_COLLECTIVE,
    FR_CAL_EXCHANGE, /* of routed tokens */
    FR_CAL_BESIDE,   /* a victim beside an aggressor */
    FR_CAL_RESIDENT, /* kernels that begin while a transfer is under way already */
    FR_CAL_WHATS
} fr_cal_what;
const char *fr_cal_what_name(fr_cal_what w); /* as --only has it */

typedef struct {
    uint8_t what;  /* fr_cal_what */
    uint8_t tier;  /* 0 = most wanted */
    int16_t top_k; /* experts a token: permute, combine, sort, top-k */
    int16_t head_dim;
    int32_t tokens; /* EXCHANGE: of each rank, and how many of them leave it; CHAIN: in the batch */
    int32_t leaving;
    float hold_s;   /* HOLD, CHAIN: seconds */
    double seconds; /* estimate of what it takes */
    bool fp8;       /* NORM, PERMUTE: rows come out quantised; with `quantise` they only are */
    bool quantise;
    bool residual; /* GEMM_O: of a whole rank, which adds the residual stream */
    bool done;     /* a file holds it already */
} fr_cal_item;

typedef struct {
    fr_table table; /* rows[i] belongs to items[i]; ns, alone and beside are 0 */
    fr_cal_item *items;
    uint32_t count, cap;
    int devices;
    char gpu[32];
} fr_cal_grid;

/* GPUs that one calibration takes, at most. */
enum { FR_CAL_DEVICES = 16 };

/* The model whose tokens are exchanged, and the most of them. */
#define FR_CAL_EXCHANGE_MODEL "qwen3-235b-a22b"
enum { FR_CAL_EXCHANGE_TOKENS = 32768 };
/* The same among `ranks` GPUs: what arrives must fit into their memory. */
int64_t fr_cal_exchange_tokens(int ranks);

/* Milliseconds after the first launch from which the rows of a RAMP count, the last one an end without a row. */
enum { FR_CAL_RAMP_STEPS = 11 };
extern const int32_t fr_cal_ramp[FR_CAL_RAMP_STEPS + 1];

/* The same after the pause of a RELEASE. */
enum { FR_CAL_PAUSE_STEPS = 6 };
extern const int32_t fr_cal_pause[FR_CAL_PAUSE_STEPS + 1];

typedef struct {
    fr_cal_mode mode;
    int devices;       /* one: its ops; two: what they do with each other; more: what all do at once, ranks = devices */
    double limit_s;    /* that there is: sustained measurements take a share of it, 10 s each where it is 8 minutes */
    double hold_s;     /* of a sustained anchor; 0 = that share */
    const char *only;  /* "release,hold,gemm": whats, ops and classes of ops, in any order; NULL = all */
    int shard, shards; /* this part of so many, of about the same time each; 0 shards = all */
} fr_cal_request;

/* The grid for `machine`'s GPU with 1 .. FR_CAL_DEVICES devices, ordered and with estimates. FR_BAD_INPUT for another
 * number and for a name that `only` doesn't know. */
fr_status fr_cal_grid_open(const fr_cal_request *request, const fr_machine *machine, fr_cal_grid **out, fr_error *err);
void fr_cal_grid_close(fr_cal_grid *g);

/* Marks as done what `text` (a journal, or a table) holds, by whatever card (0) or by this one; a last line without an
 * end, which a killed run leaves, is passed over. Returns how many in *found. */
fr_status fr_cal_grid_resume(fr_cal_grid *g, const char *text, size_t length, const char *where, uint32_t card,
                             uint32_t *found, fr_error *err);

/* Seconds of all items that are not done and that fit, in their order, into `limit` seconds; *count of them. */
double fr_cal_grid_seconds(const fr_cal_grid *g, double limit, uint32_t *count);
/* One line a row, with its tier and estimate, and sums by kind, for people. */
void fr_cal_grid_list(const fr_cal_grid *g, double limit, bool rows, fr_text *out);

/* The shapes of products and memory-bound ops that a plan of `tokens` tokens asks for on a rank of a tp group (1: the
 * whole model), one layer with its residual, embedding and head; twice where they come twice (calibrate_shapes.c). */
fr_status fr_cal_plan_shapes(const fr_model *model, const fr_machine *machine, int tp, fr_precision precision,
                             int64_t tokens, void (*each)(void *context, const fr_shape *shape), void *context,
                             fr_error *err);

/* The kernels of one layer of a model in their order, of `tokens` tokens in sequences of `seq` under even routing, as
 * sustained rows with behind=1; their vectors are pushed to t->pairs. */
enum { FR_CAL_LAYER = 12 };
fr_status fr_cal_layer(const fr_model *model, const fr_machine *machine, int64_t tokens, int32_t seq, fr_table *t,
                       fr_row rows[FR_CAL_LAYER], fr_error *err);
/* The same without attention and experts: dense products and memory-bound ops. */
enum { FR_CAL_LIGHT = 9 };
fr_status fr_cal_light_layer(const fr_model *model, const fr_machine *machine, int64_t tokens,
                             fr_row rows[FR_CAL_LIGHT], fr_error *err);
/* The layer of a CHAIN item. */
#define FR_CAL_CHAIN_MODEL "qwen3-235b-a22b"
int32_t fr_cal_chain_length(int64_t tokens); /* of its sequences */

/* ---- files (calibrate_file.c) ------------------------------------------------------------------------------------ */

/* Who measured: the provenance that a header states. NULL or empty = left out. */
typedef struct {
    const char *name, *uuid, *driver, *cuda, *cublas, *cudnn, *nccl, *clocks, *date, *mode;
    double power_limit_w, idle_w, clock_max_mhz;
} fr_cal_head;
void fr_cal_header(const fr_machine *machine, const fr_cal_head *head, fr_text *out);

/* A journal's line for a row: the row, then all readings as a comment (## ns: ...), outliers too; at most 200. */
void fr_cal_line(const fr_table *t, const fr_row *r, const double *readings, int count, fr_text *out);

/* The first part of "GPU-85e3539b-1869-...", as rows have it; 0 = none. */
uint32_t fr_cal_card(const char *uuid);

/*
 * A table from journals: the first one's header (uuids of all), their rows in the order of classes, kinds and shapes;
 * of two rows of one measurement the later file's counts, unless `cards` are to be told apart. `names` are for messages
 * and the header's source line.
 */
fr_status fr_cal_merge(const char *const *texts, const size_t *lengths, const char *const *names, int count, bool cards,
                       fr_text *out, fr_error *err);

#endif

/*
 * cost_table: measured-cost tables as text, one row a measurement (format: kernels/measured/FORMAT.md). Strict: what is
 * not understood is an error that names file, line and field. Knows nothing of fits.
 */
#ifndef FR_COST_TABLE_H
#define FR_COST_TABLE_H

#include "engine/cost/cost.h"

typedef enum {
    FR_ROW_OP = 0,    /* shape.kind was measured */
    FR_ROW_GENERIC,   /* "gemm", "grouped", "memory": any kind of the class; shape.kind stands for it */
    FR_ROW_FLOOR,     /* "kernel_floor": the shortest kernel, start to end on the device */
    FR_ROW_SLOWDOWN,  /* "slowdown": a victim alone and beside an aggressor */
    FR_ROW_GAP,       /* "gap": what a kernel takes beyond its own back to back, in a chain of different ones */
    FR_ROW_GAP_TIMED, /* "gap_timed": the same with an event behind each that takes its time */
    FR_ROW_EVENT,     /* "event": from a kernel's end to the start of one on another stream that waits for it */
    FR_ROW_DRAW,      /* "draw": watts of a GPU on which nothing but one kind of transfer goes on */
} fr_row_type;

/* What a draw row is of: links that are awake (a small pull now and then), collectives by NCCL's kernels and by our own
 * (kernels/exchange.h) with nothing beside them. */
typedef enum { FR_DRAW_LINK = 0, FR_DRAW_NCCL, FR_DRAW_EXCHANGE, FR_DRAWS } fr_draw_of;

/* Of several pulls in flight on one of P GPUs: each stream keeps to a source of its own, or goes on to the next source
 * with every pull (all GPUs begin at the one behind them), or all GPUs read the same source at a time. */
typedef enum { FR_PULL_FIXED = 0, FR_PULL_ROUND, FR_PULL_SAME, FR_PULL_ORDERS } fr_pull_order;

typedef struct {
    uint8_t type;       /* fr_row_type */
    uint8_t regime;     /* fr_regime */
    uint8_t provenance; /* FR_FROM_MEASURED, or FR_FROM_SEEDED where the table or the row says so */
    uint8_t ways;       /* copies: 1 = one direction busy, 2 = both at once */
    uint8_t victim;     /* slowdown: fr_op_class; resident: of one kind, shape.kind */
    uint8_t aggressor;  /* slowdown: fr_aggressor; draw: fr_draw_of */
    bool packed;        /* attention: equal short lengths through the graph of varied ones */
    bool behind;        /* between products, behind the kernel whose result it reads (cost_chain.h) */
    bool resident;      /* slowdown: the transfer was under way before the victim began and until after its end */
    uint8_t tile;       /* grouped: 1 + the fr_tile that was forced; 0 = the one that the engine takes */
    uint8_t file;       /* which of the tables that were read */
    uint8_t streams;    /* pulls, pushes: how many were in flight on a GPU; 0 = two, what curves are made of */
    uint8_t order;      /* fr_pull_order, with streams */
    bool by_owner;      /* pulls: the copy engines of the GPU that is read write them; else the reader's read */
    uint32_t card;      /* first part of the uuid of the GPU that measured it; 0 = not said */
    int line;
    uint64_t key;   /* hash of what makes two rows the same */
    fr_shape shape; /* vector points into the table's pairs */
    double ns, p10, p90;
    double samples, clock_mhz, watts, capped; /* 0 = not recorded; capped: share of samples under the power limit */
    double duty;     /* share of the time that the op ran (slowdown: the aggressor); 1 = back to back */
    int32_t at_ms;   /* burst: of launches that began this long after an idle second (up to the next row's); -1 = any */
    int32_t gap_ms;  /* burst: ran back to back under the limit, then a pause of this long; -1 = none. With at_ms: of
                        launches that began so long after the pause; without: just before it */
    int32_t turn_ms; /* duty: launches and pause together; 0 = some 10 ms */
    bool fill;       /* gap_ms: streaming kernels ran in the pause */
    double alone, beside, overlap, hbm_traffic; /* slowdown: ns, ns, ns (0 = all the time), bytes/s of the aggressor */
    double rate, rate_alone;                    /* slowdown: bytes/s that the aggressor moved, beside and alone */
    double clock_alone, watts_alone;            /* slowdown: of the victim alone; draw: watts before it */
} fr_row;

/* Datasheet figures of the GPU that was measured: the ceilings under which its rows are efficiencies. */
typedef struct {
    double peak[FR_PRECISIONS]; /* FLOP/s */
    double hbm, link, pcie;     /* bytes/s, link and pcie one direction */
    double network;             /* bytes/s per GPU and direction, 0 = none */
    double network_latency_ns;
    double floor_ns; /* shortest kernel; from the rows, not from a header */
    int sms;
    int grouped_tile; /* rows that the measured grouped GEMM rounds an expert up to */
} fr_ceilings;

typedef struct {
    fr_row *rows;
    fr_pair *pairs;
    uint32_t count, cap, pairs_count, pairs_cap;
    uint32_t seeds; /* rows among them that are seeded */
    fr_ceilings ceilings;
    char gpu[32];
    char uuid[48]; /* the first of those in the header */
    bool seeded;
    double limit_watts, idle_watts, clock_max_mhz; /* 0 = the header doesn't say */
} fr_table;

/* Appends to *t (zeroed by the caller) what `text` holds; `where` names it in messages. Every table states its gpu and
 * its ceilings. FR_BAD_INPUT with "file:line: field: ..." otherwise. */
fr_status fr_table_parse(const char *text, size_t length, const char *where, fr_table *t, fr_error *err);
void fr_table_free(fr_table *t);

/* Same op, shape and regime: two measurements of one thing, by whatever card. A table holds two only of two cards. */
bool fr_row_same(const fr_table *ta, const fr_row *a, const fr_table *tb, const fr_row *b, bool with_regime);
uint64_t fr_row_key(const fr_table *t, const fr_row *r); /* hash of the same, regime left out */
bool fr_row_kind(const char *name, fr_row *row);         /* sets type and kind; false when unknown */
const char *fr_row_name(const fr_row *r);
/* The burst of what a row measured in whatever regime; NULL = none. */
const fr_row *fr_table_burst(const fr_table *t, const fr_row *r);
/* ns that the model's own tables have of what row `r` of `t` measured, in its regime; 0 = nothing. */
double fr_cost_measured(const fr_cost_model *c, const fr_table *t, const fr_row *r);
/* A duration of an op by itself and back to back: what curves are made of. The others feed the clock and power model.
 */
bool fr_row_plain(const fr_row *r);

/* The row as its table's text has it, without a line end; numbers to six digits. */
void fr_row_print(const fr_table *t, const fr_row *r, fr_text *out);

/* What even routing of `sum` rows to `experts` experts looks like (rows=random:SUM/EXPERTS), rows [experts], ascending:
 * counts are binomial (sum, 1 / experts), each given its quantile of the normal approximation. */
void fr_even_rows(int64_t sum, int32_t experts, int32_t *rows);

/* Tables that are compiled in, by GPU; NULL when there is none. */
const char *fr_table_builtin(const char *gpu, size_t *length);

#endif

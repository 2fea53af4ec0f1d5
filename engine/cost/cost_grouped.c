/* Structural times of grouped products. */
#include "engine/cost/cost_grouped.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Tile of a Hopper wgmma kernel: 128 x 256 with two consumer warpgroups (as in fast.cu and DeepGEMM); 64 rows are one
 * warpgroup, the least that wgmma takes. */
#define TILE_M       128
#define TILE_M_SMALL 64

/*
 * Grouped: one expert after the other, as the kernel takes them (kernels/grouped.cuh, decode): what is in flight at
 * once are some experts, so bytes that one expert waits for do not hide behind another one's products. Of an expert
 * that has rows, all column tiles of its full tiles (128 rows) read its weights once; rows left over make a half tile
 * (64), whose column tiles come after all of these. By then a share of the weights has left L2 and is read again: all
 * of them where they are larger than L2, in proportion where they are smaller. Each of the two passes takes as long as
 * its bytes or its tiles, whichever takes longer, and a part of the other; rows are read and written beside the
 * weights. Tiles of the measured kernel are rounded up to grouped_tile of the table's header (ours 64, CUTLASS 128).
 *
 * The shares below are the least sum of absolute deviations over the plain bursts of 16 rows an expert and more of
 * h200.txt and h100.txt (1,200 rows; experts, n and k of three models, bf16 and fp8), the same for all: they meet the
 * H200's bf16 rows within 3.8 % on average before any curve. Left to itself the fit of the L2's size gives 49.4 MB.
 */
#define L2_BYTES      50e6 /* H100 and H200 (NVIDIA's Hopper white paper) */
#define GROUPED_HBM   0.95 /* of the datasheet's rate */
#define GROUPED_BF16  0.84 /* of the peak, at the clock that such a product runs at in a burst */
#define GROUPED_FP8   0.66
#define GROUPED_BOTH  0.12 /* of the shorter one of bytes and tiles: both share L2 and the clock */
#define GROUPED_ROWS  1.3  /* rows move at this fraction of the rate of weights, whose tiles are whole pages */
#define GROUPED_START 1560 /* ns a tile: filling the ring, the epilogue */
#define GROUPED_TAIL  0.12 /* of what a tile's weights for every SM take: the last tiles leave SMs without work */

typedef struct {
    double weights, row, tile, half, rest; /* ns: of one expert's weights, of a row's bytes, of 128 and of 64 rows */
    double rest_follows;                   /* of `rest` */
    double tile_m;
} expert_law;

static inline double beside(double bytes, double tiles) {
    return fr_most(bytes, tiles) + GROUPED_BOTH * fr_least(bytes, tiles);
}

/* The share of such a pass that goes with the SM clock: all where tiles take longer, none where bytes do. Between them
 * a power of 4 meets 18 shapes that were held under the limit within 2.5 % of their time (what the clock does to bytes:
 * power.h), 2 and 99 within 3.5 and 2.6. */
static inline double follows(double bytes, double tiles) {
    const double ratio = bytes / tiles, square = ratio * ratio;
    return 1 / (1 + square * square);
}

/* Of one expert with so many rows. */
typedef struct {
    double ns, follows, lifted; /* ns that go with the clock; that are there only because more work may not cost less */
} expert_time;

/* 193 rows would take less than 192, which leave half a tile over: more rows never cost less, so rows without a rest
 * take at least what one block of them less does. */
static expert_time one_expert(const expert_law *w, int32_t rows) {
    if (rows <= 0) return (expert_time){0};
    const int32_t tile_m = (int32_t)w->tile_m, up = (rows + tile_m - 1) / tile_m * tile_m;
    const int32_t block = rows > TILE_M_SMALL ? up : TILE_M_SMALL, full = block / TILE_M;
    const bool odd = block % TILE_M != 0;
    const double bytes = w->weights + w->row * rows, tiles = full ? w->tile * full : w->half;
    const double whole = beside(bytes, tiles), clocked = follows(bytes, tiles);
    if (full && odd) return (expert_time){whole + w->rest, whole * clocked + w->rest_follows, 0};
    if (full < 2) return (expert_time){whole, whole * clocked, 0};
    const double less = beside(w->weights + w->row * (block - TILE_M_SMALL), w->tile * (full - 1)) + w->rest;
    return (expert_time){fr_most(whole, less), fr_most(whole, less) * clocked, fr_most(0, less - whole)};
}

/*
 * Experts of one law by their rows: asked for every expert of every layer. A model has few laws (up and down, in each
 * precision); threads share them, and whoever needs one first writes it.
 */
enum { LAWS = 16, ROWS = 2048 };
typedef struct {
    expert_law law;
    expert_time of[ROWS];
} expert_table;
struct fr_expert_memo {
    _Atomic(expert_table *) table[LAWS];
};

fr_expert_memo *fr_expert_memo_new(void) {
    return fr_alloc(sizeof(fr_expert_memo));
}

void fr_expert_memo_free(fr_expert_memo *memo) {
    for (int i = 0; memo && i < LAWS; i++) free(atomic_load(&memo->table[i]));
    free(memo);
}

/* NULL: there are more laws than are kept. */
static const expert_time *table_of(fr_expert_memo *memo, const expert_law *law) {
    expert_table *made = NULL;
    for (int i = 0; i < LAWS; i++) {
        expert_table *t = atomic_load_explicit(&memo->table[i], memory_order_acquire);
        if (!t) {
            if (!made) {
                made = fr_alloc(sizeof *made);
                made->law = *law;
                for (int32_t rows = 0; rows < ROWS; rows++) made->of[rows] = one_expert(law, rows);
            }
            if (atomic_compare_exchange_strong(&memo->table[i], &t, made)) return made->of;
        }
        if (memcmp(&t->law, law, sizeof *law) != 0) continue;
        free(made);
        return t->of;
    }
    free(made);
    return NULL;
}

typedef struct {
    int64_t rows, padded, active;
    double ns, follows, lifted;
} expert_sum;

static expert_sum add_experts(const expert_law *w, const expert_time *table, const fr_pair *v, uint32_t count) {
    expert_sum sum = {0};
    for (uint32_t i = 0; i < count; i++) {
        const int32_t rows = v[i].queries > 0 ? v[i].queries : 0;
        const expert_time t = table && rows < ROWS ? table[rows] : one_expert(w, rows);
        sum.rows += rows;
        sum.padded += (rows + TILE_M_SMALL - 1) & ~(TILE_M_SMALL - 1);
        sum.active += rows > 0;
        sum.ns += t.ns;
        sum.follows += t.follows;
        sum.lifted += t.lifted;
    }
    return sum;
}

void fr_grouped_base(fr_expert_memo *memo, const fr_ceilings *c, const fr_shape *s, const fr_pair *pairs,
                     fr_base *out) {
    *out = (fr_base){.follows = -1};
    const double peak = fr_peak_of(c, s->precision), e = fr_elem_bytes(s->precision), n = s->n, k = s->k;
    const double written = s->kind == FR_OP_EXPERT_UP ? n / 2 : n, width = s->n >= 256 ? 256 : 128;
    const double byte = 1e9 / (GROUPED_HBM * c->hbm), columns = ceil(n / width) / c->sms;
    const double reached = s->precision == FR_FP8 ? GROUPED_FP8 : GROUPED_BF16;
    const double block = 1e9 * 2 * TILE_M_SMALL * width * k * c->sms / (reached * peak);
    expert_law w = {.weights = n * k * e * byte,
                    .row = GROUPED_ROWS * (k * e + written * 2) * byte,
                    .tile = columns * (2 * block + GROUPED_START),
                    .half = columns * (block + GROUPED_START),
                    .tile_m = c->grouped_tile > 0 ? c->grouped_tile : TILE_M};
    const double again = fr_least(1, n * k * e / L2_BYTES) * w.weights;
    w.rest = beside(again, w.half);
    w.rest_follows = w.rest * follows(again, w.half);
    const expert_sum sum = add_experts(&w, memo ? table_of(memo, &w) : NULL, pairs + s->vector, s->vector_count);
    const double rows = (double)sum.rows, padded = (double)sum.padded, active = (double)sum.active;
    if (rows <= 0) return;
    const double bytes = active * n * k * e + rows * k * e + rows * written * 2;
    out->ns = c->floor_ns + sum.ns + GROUPED_TAIL * c->sms * width * k * e * byte;
    out->follows = sum.follows / sum.ns;
    out->lifted = sum.lifted / sum.ns;
    out->feature = log(2 * padded * n * k / peak / (bytes / c->hbm));
    out->flops = 2 * rows * n * k;
    out->bound = 1e9 * fr_most(2 * rows * n * k / peak, bytes / c->hbm);
    out->hbm_bytes = bytes;
}

/*
 * planner: what the strategy files share (internal to engine/strategy). A planner holds, for every rank of the plan,
 * its lanes, counters, buffers and groups; a walk emits one forward of one unit, layer by layer, rank by rank.
 *
 *     planner.c    static part, units, folding, cutting a batch into micro-batches and chunks
 *     layer.c      the ops that every layout has; shapes with their FLOPs and HBM bytes
 *     repeat.c     equal layers are emitted twice and then copied
 *     attention_*  experts_*  pp.c  asap.c: one file per way of splitting
 */
#ifndef FR_STRATEGY_PLANNER_H
#define FR_STRATEGY_PLANNER_H

#include "engine/placement.h"
#include "engine/strategy/strategy.h"

/* A group as one of its members sees it. Every member counts its own meetings; they agree because all join each. */
typedef struct {
    uint32_t group; /* FR_NONE = alone: no collective is needed */
    uint32_t seq;   /* index into fr_planner.seqs */
    int16_t size;   /* real ranks */
    uint8_t hosts;
} fr_circle;

/* Activations of one batch in flight on a rank; two sets where two batches overlap. */
typedef struct {
    uint32_t hidden; /* residual stream; a pool in pipelines */
    uint32_t normed, qkv, heads, delta, logits, route, order, rows, mid, out, shared;
    uint32_t send, recv;   /* of exchanges; a combine reads and writes them the other way round */
    uint32_t held, counts; /* late tables: copies that leave; rows that arrive; FR_NONE = sizes are known */
    uint32_t active;       /* late table of the host: experts that have tokens (offload) */
} fr_scratch;

typedef struct {
    uint32_t event, value;
} fr_pending;

typedef struct {
    int16_t rank; /* in the plan */
    int16_t unit, stage, local, slot,
        t;                        /* place: unit, stage in it, rank in the unit's stage, attention group, tp index */
    int16_t ep_index;             /* in its expert group */
    uint32_t lane[FR_LANE_KINDS]; /* FR_NONE = none */
    uint32_t stream[FR_MAX_GATHER_STREAMS];  /* lanes of pulls in flight; the first is lane[FR_LANE_COPY] */
    uint32_t arrived[FR_MAX_GATHER_STREAMS]; /* events: a stream's part of a layer is here; the first is `gathered` */
    uint32_t slot_taken;                     /* event: the gather has its slot, where several streams fill it */
    int streams;
    fr_circle tp, ep, stage_group; /* stage_group: the ranks that split experts by width */
    fr_circle next, previous;      /* pairs with the neighbouring pipeline stages */
    fr_scratch half[2];
    uint32_t launched, begun;                 /* events: launches issued; layers ended (a gather may begin) */
    uint32_t host, routed, shard_hold;        /* offload: host memory; event: sort has ended; shard being gathered */
    uint32_t gathered, fetched, known;        /* events: weights are here; expert is here; counts read back */
    uint32_t received, computed;              /* events of pipelines */
    uint32_t moved[2], ready[2];              /* events of the comm lane and for it, per half */
    bool due[2];                              /* the half's last combine is still to come ... */
    int64_t due_held[2], due_tokens[2];       /* ... with these sizes */
    uint32_t experts, first, attention, head; /* weights */
    uint32_t pool, shards;                    /* gathered layers or expert slots; streamed shards */
    uint32_t *shard_ready, *shard_taken;      /* hybrid: per peer, events on this rank */
    uint32_t *recv;                           /* per expert group */
    int64_t hold;                             /* pool hold in use by the layer at hand, -1 = resident */
    uint32_t arrival;                         /* value of `gathered` that says it is here */
    uint32_t hidden_hold[2];                  /* where hidden is a pool */
    /* while a layer is emitted */
    fr_pending pending[8];
    int pendings;
    int launches;
    bool residual; /* the last block's result is not yet added to the residual stream: the next norm does */
    bool normed;   /* the last combine has written what the next layer's norm would */
} fr_rank;

/* What one batch, micro-batch or chunk asks of an attention group. */
typedef struct {
    fr_sequence *sequences; /* cut ones */
    int32_t count;
    uint32_t first; /* of the cut sequences */
    int64_t tokens;
    int64_t kv_rows;    /* tokens whose K and V are needed: new ones and, once each, cached prefixes */
    int64_t rows_all;   /* positions that want the whole vocabulary */
    int64_t rows_some;  /* positions that want candidates ... */
    int32_t candidates; /* ... at most so many */
    double flops_all, flops_some;
    uint32_t attention[2]; /* shapes: full, windowed; 0 = not made yet */
} fr_work;

/* Tokens of the MoE block at hand on one rank. */
typedef struct {
    int64_t tokens;        /* routed by this rank */
    int64_t rows;          /* computed by its experts */
    int64_t sent, arrived; /* copies over links, to and from others */
    int64_t held, landed;  /* with its own: copies that leave and arrive */
    int64_t group_tokens;  /* tokens of all sources */
    int64_t bound;         /* most rows that can land */
    int32_t active;        /* experts that have rows */
    uint32_t up, down, up_bound, down_bound;
    const int32_t *counts; /* tokens per expert, where the strategy looks at single experts */
} fr_moe;

typedef struct {
    uint32_t *value;
    uint32_t count, cap;
} fr_counters;

typedef struct fr_walk {
    fr_planner *p;
    fr_fragment *f;
    int unit, stage, layer, micro, half;
    int first, end;   /* layers of the stage */
    bool first_layer; /* of the stage */
    int micros;
    fr_work *works; /* [micro][slot] */
} fr_walk;

typedef struct {
    void (*open)(fr_planner *p, fr_rank *r); /* lanes, buffers, events of a rank */
    void (*enter)(fr_walk *w, fr_rank *r);   /* at the entry of every layer */
    void (*prepare)(fr_walk *w, int half);   /* once a MoE layer and half, for all ranks of the unit's stage */
    void (*experts)(fr_walk *w, fr_rank *r); /* the MoE block after the second norm, router and top-k included */
    void (*leave)(fr_walk *w, fr_rank *r);   /* at the end of every layer */
    void (*after)(fr_walk *w, fr_rank *r);   /* behind the layer's launches on the host lane; may be NULL */
} fr_experts_part;
void fr_experts_nothing(fr_planner *p, fr_rank *r);
void fr_layer_nothing(fr_walk *w, fr_rank *r);
void fr_experts_resident(fr_walk *w, fr_rank *r); /* the MoE block where all weights are at hand */
extern const fr_experts_part fr_experts_local, fr_experts_tp, fr_experts_ep, fr_experts_gather, fr_experts_offload;

#define FR_INTERN 8192
struct fr_planner {
    fr_model model;
    fr_layout layout;
    fr_machine machine;
    fr_load load;
    fr_placement placement; /* of a rank that computes attention */
    const fr_cost_model *cost;
    const fr_routing *routing;
    fr_routing *own_routing;
    fr_plan *plan;
    bool even, folded,
        sliced; /* sliced: between attention blocks each rank of a tp group holds its part of the tokens */
    int units, slots, unit_ranks; /* unit_ranks: plan ranks of a unit in one stage */
    int stages, real_unit_ranks;  /* real_unit_ranks: before folding */
    fr_rank *ranks;
    int ranks_count;
    fr_counters raised, holds, seqs; /* per event, per buffer, per circle */
    const fr_experts_part *part;
    fr_moe *moe[2];   /* [half][rank in stage * groups] */
    int moe_groups;   /* expert groups (EPS-MoE), else 1 */
    int moe_for[2];   /* micro that moe[half] was prepared for (even routing: kept over layers), -1 = none */
    int32_t *counts;  /* [half][rank in stage][experts] */
    int32_t *landing; /* [experts], of the rank at hand */
    int64_t *copies;  /* [layers][targets], of FINE tokens: the routing's, the same in every forward ... */
    bool *has_copies; /* [layers] ... once it was asked */
    uint32_t *each;   /* offload: up and down shapes of single experts */
    uint32_t *kv;     /* buffers of KV handles: [rank][handle] */
    uint32_t kv_cap;
    fr_work *works;
    uint32_t works_cap;
    fr_sequence *cut;
    int32_t *cut_origin; /* index in its batch of each cut sequence */
    uint32_t cut_cap, cut_origin_cap;
    int micros; /* of the forward made last */
    fr_pair *pairs;
    uint32_t pairs_cap;
    struct {
        uint16_t shape, tag; /* 0 = empty; further bits of the hash: routed shapes are many, and mostly unlike */
    } intern[FR_INTERN];     /* by hash */
    struct fr_asap *asap;
};

/* ---- planner.c ---- */
uint32_t fr_add_event(fr_planner *p, fr_rank *r, const char *name);
uint32_t fr_add_buffer(fr_planner *p, fr_rank *r, fr_buffer_kind kind, const char *name, int64_t bytes, int slots);
uint32_t fr_add_lane(fr_planner *p, fr_rank *r, fr_lane_kind kind);
fr_circle fr_add_circle(fr_planner *p, uint32_t known, const int16_t *ranks, int count, int size, int hosts);
fr_rank *fr_stage_rank(fr_planner *p, int unit, int stage, int local);
int64_t fr_layer_expert_bytes(const fr_planner *p); /* all routed experts of a layer */
fr_status fr_forward_works(fr_planner *p, const fr_batch *batches, int *micros, fr_error *err);
void fr_walk_stage(fr_walk *w);

/* ---- layer.c: emission ---- */
fr_op *fr_put(fr_walk *w, fr_rank *r, fr_lane_kind lane, fr_op_kind kind, uint32_t shape, int sub);
void fr_read(fr_walk *w, uint32_t buffer);
void fr_write(fr_walk *w, uint32_t buffer);
uint32_t fr_raise(fr_walk *w, uint32_t event);                  /* signals; returns the value that the event then has */
void fr_next_waits(fr_rank *r, uint32_t event, uint32_t value); /* the next op on the compute lane waits for it */
void fr_join(fr_walk *w, fr_circle *c);
void fr_host_begin(fr_walk *w, fr_rank *r);
void fr_host_end(fr_walk *w, fr_rank *r);
fr_work *fr_work_of(const fr_walk *w, const fr_rank *r);
int64_t fr_tokens_here(const fr_walk *w, const fr_rank *r); /* of the residual stream that this rank holds */
fr_scratch *fr_scratch_of(const fr_walk *w, fr_rank *r);

/* ---- layer.c: shapes (interned) ---- */
uint32_t fr_intern_shape(fr_walk *w, const fr_shape *s);
uint32_t fr_memory_shape(fr_walk *w, fr_op_kind kind, int64_t m, int64_t n, int64_t bytes);
/* A permute that writes m rows and reads each of `sources` rows once; bytes: each of the m in and out. */
uint32_t fr_permute_shape(fr_walk *w, int64_t m, int64_t sources, int64_t n, int64_t bytes);
/* The same for the copies of `sources` tokens that go to `targets` other ranks: sorted by target first (fr_k_pack). */
uint32_t fr_pack_shape(fr_walk *w, int64_t m, int64_t sources, int64_t n, int targets);
uint32_t fr_gemm_shape(fr_walk *w, fr_op_kind kind, fr_precision precision, int64_t m, int64_t n, int64_t k,
                       double flops);
uint32_t fr_collective_shape(fr_walk *w, fr_op_kind kind, const fr_circle *c, int64_t m, int64_t n, int64_t bytes);
uint32_t fr_copy_shape(fr_walk *w, fr_op_kind kind, int64_t bytes, int ranks);
void fr_expert_shapes(fr_walk *w, const int32_t *counts, int experts, int split, uint32_t *up, uint32_t *down);
int64_t fr_fp8_row(const fr_walk *w, int64_t width); /* bytes of a quantised row with its scales, 0 in bf16 */

/* ---- layer.c: parts of a layer ---- */
void fr_emit_upload(fr_walk *w, fr_rank *r);              /* first of a forward */
void fr_emit_counts(fr_walk *w, fr_rank *r, int batches); /* last of a forward of so many micro-batches */
void fr_emit_embed(fr_walk *w, fr_rank *r);
void fr_emit_norm(fr_walk *w, fr_rank *r, int sub);
void fr_emit_quantise(fr_walk *w, fr_rank *r, int sub, int64_t width, uint32_t from, uint32_t to);
/* Projections of the normed rows in `from`, rotary, attention, output projection. */
void fr_emit_heads(fr_walk *w, fr_rank *r, int split, uint32_t from);
void fr_emit_router(fr_walk *w, fr_rank *r, int64_t tokens, double share);
void fr_emit_ffn(fr_walk *w, fr_rank *r, int64_t tokens, int64_t width, int split, int sub, uint32_t in, uint32_t out);
void fr_emit_shared(fr_walk *w, fr_rank *r, int64_t tokens, int split);
void fr_emit_grouped(fr_walk *w, fr_rank *r, const fr_moe *m, int sub);
void fr_emit_sort(fr_walk *w, fr_rank *r, const fr_moe *m, uint32_t source, int sub);
void fr_emit_combine(fr_walk *w, fr_rank *r, uint32_t source, int64_t rows, int64_t tokens, uint32_t into);
void fr_emit_head(fr_walk *w, fr_rank *r);
void fr_add_residual(fr_walk *w, fr_rank *r);
void fr_hidden_use(fr_walk *w, fr_rank *r, fr_use use);
void fr_prepare_own(fr_walk *w, int half); /* every rank computes the tokens that it routes */
const int32_t *fr_route(fr_walk *w, fr_rank *r, int64_t tokens, int half);

/* ---- attention ---- */
void fr_attention_dp(fr_walk *w, fr_rank *r);
void fr_attention_tp(fr_walk *w, fr_rank *r);
void fr_dense_layer(fr_walk *w, fr_rank *r);
void fr_layer_tbo(fr_walk *w); /* ep with two batches in flight */
void fr_tbo_flush(fr_walk *w, fr_rank *r);

void fr_emit_pulls(fr_walk *w, fr_rank *r, int layer, uint32_t pool, uint32_t hold,
                   void (*before)(fr_walk *, fr_rank *),
                   void (*each)(fr_walk *, fr_rank *, fr_rank *peer, int j, bool first, bool last));

/* ---- pipelines ---- */
void fr_open_pipeline(fr_planner *p);
void fr_stage_receive(fr_walk *w, fr_rank *r);
void fr_stage_send(fr_walk *w, fr_rank *r);

/* ---- asap ---- */
void fr_open_attention_rank(fr_planner *p, fr_rank *r, int replica, int index);
double fr_hit_even(const fr_model *m, int mine);
void fr_bound_shapes(fr_walk *w, fr_moe *m, int mine);
fr_status fr_asap_open(fr_planner *p, fr_error *err);
void fr_asap_close(fr_planner *p);
void fr_asap_forward(fr_walk *w);

/* ---- repeat.c ---- */
typedef struct {
    uint32_t ops, refs;
    uint32_t *counters; /* raised, holds, seqs, one after the other */
} fr_mark;
void fr_mark_take(fr_planner *p, const fr_fragment *f, fr_mark *m);
void fr_mark_free(fr_mark *m);
/*
 * Appends `times` copies of the ops since `b`, given that those between `a` and `b` are their equals one block of
 * `layers` layers earlier. Returns false, and does nothing, when they are not.
 */
bool fr_repeat(fr_planner *p, fr_fragment *f, const fr_mark *a, const fr_mark *b, int layers, int times);

#endif

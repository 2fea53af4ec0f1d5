/*
 * plan: what both executors run. For every rank a few lanes (a device lane is a CUDA stream), each an ordered list of
 * ops; counters that only grow (events); buffers and pools; groups of ranks that meet. An op says what (kind + shape),
 * never how long.
 *
 *     plan ── static part: lanes, events, buffers, groups, tables        (made once by a strategy)
 *          └─ fragments: ops of one forward, appended while earlier ones run; counters, pools and prefetch carry over
 *
 * Semantics, the same for the simulator, the CUDA executor and plan_check:
 *
 *  S1 In-order lane: an op may start when the op before it on the lane has ended, every wait (event >= value) holds,
 * every slot that it acquires is free, and, for a group op, every member's op with the same (group, seq) may start.
 * Group ops start and end together. S2 First-ready lane: ops form items (a chain from one FR_OP_ITEM flag to the next).
 * When the lane is free it takes, of the items whose first op may start, the one that became ready first; ties go to
 * the item appended first. A taken item runs to its end before the next. S3 An op raises its signals (event += 1 each)
 * when it ends; then frees the slots that it frees. S4 Acquire takes a slot of a pool when the op starts. `value` of
 * the use is the hold: the n-th acquisition of that pool (0, 1, ...), by which later ops name the slot. Waiting
 * acquirers of a pool are served in the order in which they became otherwise ready. S5 Late size: an op bound to a
 * table has its real size only once the op that fills the table has ended. `shape` is what the routing model predicts
 * (the simulator plays it, the engine reads the true one on the device), `bound` the most that it can be. Size 0 (shape
 * kind NONE) skips the op: it takes no time, acquires nothing (its frees of a hold that was skipped likewise), still
 * waits, signals and meets its group. S6 A hold that a skipped op would have acquired is void: reads, writes and frees
 * of it are void too.
 *
 * Structural ids: (forward, rank, layer, kind, micro, sub) names an op for people, timelines and joins; see fr_op_id.
 */
#ifndef FR_PLAN_H
#define FR_PLAN_H

#include "engine/plan/op.h"

#define FR_NONE     UINT32_MAX
#define FR_NO_LAYER 0x3ff

enum { FR_MOST_LANES = UINT16_MAX - 1 }; /* of a plan: an op names its lane in 16 bits */

typedef enum {
    FR_LANE_HOST = 0, /* launches, read-backs */
    FR_LANE_COMPUTE,
    FR_LANE_COMM, /* collectives on their own stream */
    FR_LANE_COPY, /* copy-engine pulls from peers */
    FR_LANE_H2D,
    FR_LANE_SEND,
    FR_LANE_RECV,
    FR_LANE_KINDS
} fr_lane_kind;

typedef struct {
    int16_t rank;
    uint8_t kind;     /* fr_lane_kind */
    bool first_ready; /* discipline S2 */
    char name[20];    /* "compute" */
} fr_lane;

typedef struct {
    int16_t rank; /* whose memory holds the counter (who polls it) */
    char name[22];
} fr_event;

typedef enum {
    FR_BUF_WEIGHTS = 0,
    FR_BUF_GATHER,
    FR_BUF_KV,
    FR_BUF_ACTIVATION,
    FR_BUF_SLOT,
    FR_BUF_HOST,
    FR_BUF_KINDS
} fr_buffer_kind;

typedef struct {
    int16_t rank;
    uint8_t kind;  /* fr_buffer_kind */
    bool outlives; /* KV handles: written by one fragment, read by later ones */
    int32_t slots; /* 0 = a plain buffer; S >= 1 = a pool of S slots of `bytes` each */
    int64_t bytes;
    char name[24];
} fr_buffer;

typedef struct {
    uint32_t first; /* into fr_plan.members */
    int32_t count;  /* ranks in the plan that must meet */
    int32_t size;   /* real ranks, > count when the plan is folded */
} fr_group;

typedef enum { FR_KNOWN_DEVICE = 0, FR_KNOWN_HOST } fr_known_to;
typedef struct {
    int16_t rank;
    uint8_t known_to; /* who must know the size before the op can be launched: host = a READBACK op stands between */
    int64_t bound;    /* upper bound, elements */
    char name[24];
} fr_late_table;

typedef enum {
    FR_USE_READ = 0,
    FR_USE_WRITE,
    FR_USE_ACQUIRE,
    FR_USE_FREE,
    FR_USE_FILL /* of a late table */,
    FR_USE_READ_TABLE /* a READBACK op brings a late table to the host */
} fr_use;

/* A reference from an op: a wait {event, at least}, a signal {event, 1}, or a use {buffer or table, hold}. */
typedef struct {
    uint32_t target : 28;
    uint32_t use : 4; /* fr_use, for uses */
    uint32_t value;   /* waits: at least; uses of a pool: the hold; plain buffers: 0 */
} fr_ref;

enum {
    FR_OP_ITEM = 1,   /* first op of an item (S2) */
    FR_OP_POOL = 2,   /* has ACQUIRE or FREE uses: executors that ignore buffers look only at these */
    FR_OP_ENTRY = 4,  /* when it ends its unit can take the next forward (a layer before the first stage ends) */
    FR_OP_ANSWER = 8, /* when this op ends the logits of the rank's batch are known */
    /*
     * A pull that yields: a rank's n-th pull of a gather begins when the rank that its first one reads has done n - 1
     * of its own, is not in a gather, or is more than yields_within pulls behind. Pulls in the order of peers after the
     * own rank then do not meet at a source for long; without, readers out of step may stay so, each waiting at a
     * source once a gather (experiments/large/README.md). Nobody waits for ever: who is waited for has done less than
     * who waits, so that no circle closes.
     */
    FR_OP_YIELDS = 16,
    FR_OP_GATHERED = 32 /* the last pull of a gather that yields */
};

typedef struct {
    uint32_t next;  /* next op of the same lane in this fragment, FR_NONE at the end */
    uint32_t shape; /* into fr_fragment.shapes */
    uint32_t bound; /* ditto; = shape unless late */
    uint32_t refs;  /* into fr_fragment.refs: waits, then signals, then uses */
    uint32_t group; /* FR_NONE = none */
    uint32_t seq;   /* of the group: 0, 1, ... over the plan's life */
    uint32_t late;  /* table, FR_NONE = none */
    uint16_t lane;
    uint16_t layer; /* FR_NO_LAYER outside layers */
    uint16_t sub;   /* expert, peer or chunk */
    int16_t peer;   /* the other rank of copies and pairs, -1 = none */
    uint8_t kind;   /* fr_op_kind */
    uint8_t flags;
    uint8_t micro; /* micro-batch, chunk or half of a two-batch overlap */
    uint8_t waits, signals, uses;
} fr_op;

/* One append: one forward of one unit (all ranks that move in lock-step with it). Freed when its last op has ended. */
typedef struct fr_fragment {
    int64_t forward; /* number of the forward, plan-wide, from 0 */
    int32_t unit;
    uint32_t ops_count, shapes_count, refs_count, pairs_count, heads_count;
    fr_op *ops;       /* in emission order */
    fr_shape *shapes; /* shapes[0] is the empty shape, kind NONE */
    fr_ref *refs;
    fr_pair *pairs;       /* vectors of the shapes */
    struct fr_lane_head { /* per lane that the fragment touches */
        uint32_t lane, first, last, ops;
    } * heads;
    uint32_t ops_cap, shapes_cap, refs_cap, pairs_cap, heads_cap;
    void *executor;            /* the executor's own (the simulator keeps the costs of `shapes` here) */
    struct fr_plan *plan;      /* the builder's: whose free list the arrays return to, */
    struct fr_fragment *spare; /* the link in that list, */
    uint32_t *head_of;         /* and lane -> index into heads + 1, 0 = the lane is not touched yet */
    uint32_t head_of_cap;
} fr_fragment;

typedef struct fr_plan {
    int32_t ranks; /* ranks in the plan (fewer than real ones when folded) */
    int32_t real_ranks;
    int32_t fold; /* real ranks that one plan rank stands for; 1 = unfolded */
    fr_lane *lanes;
    uint32_t lanes_count, lanes_cap;
    bool crowded; /* more than FR_MOST_LANES lanes were asked for: it cannot be used */
    /* Fragments are for an executor that looks at pools alone (the simulator): what else is read, written, filled, and
     * how large a late op can be, is left out of them. Set before the first; not for fr_plan_check. */
    bool bare;
    fr_event *events;
    uint32_t events_count, events_cap;
    fr_buffer *buffers;
    uint32_t buffers_count, buffers_cap;
    fr_group *groups;
    uint32_t groups_count, groups_cap;
    int16_t *members;
    uint32_t members_count, members_cap;
    fr_late_table *tables;
    uint32_t tables_count, tables_cap;
    int32_t yields_within; /* FR_OP_YIELDS: pulls, 1 to 31 */
    int64_t forwards;      /* appended so far */
    fr_fragment *spare;    /* freed fragments whose arrays are used again; a plan is built by one thread */
} fr_plan;

fr_plan *fr_plan_new(int ranks, int real_ranks);
void fr_plan_free(fr_plan *p); /* after its fragments */
/* A copy of the static part as it is now, for threads that execute fragments while the planner goes on: appending may
 * add KV buffers and move the arrays. Freed by fr_plan_free. */
fr_plan *fr_plan_static(const fr_plan *p);

uint32_t fr_plan_lane(fr_plan *p, int rank, fr_lane_kind kind, const char *name, bool first_ready);
uint32_t fr_plan_event(fr_plan *p, int rank, const char *name);
uint32_t fr_plan_buffer(fr_plan *p, int rank, fr_buffer_kind kind, const char *name, int64_t bytes, int slots,
                        bool outlives);
uint32_t fr_plan_group(fr_plan *p, const int16_t *ranks, int count, int size);
uint32_t fr_plan_table(fr_plan *p, int rank, const char *name, int64_t bound, fr_known_to known_to);

/*
 * Building a fragment. fr_emit starts an op at the end of a lane; fr_wait, fr_signal and the uses then belong to it
 * until the next fr_emit:
 *
 *     fr_emit(f, lane, FR_OP_GEMM_QKV, shape, layer);  fr_wait(f, gathered, n);  fr_use_buffer(f, FR_USE_READ, weights,
 * 0);
 *
 * Waits, signals and uses may come in any order within an op.
 */
fr_fragment *fr_fragment_new(fr_plan *p, int unit);
void fr_fragment_free(fr_fragment *f); /* its arrays go back to the plan and serve the next fragment */
uint32_t fr_shape_add(fr_fragment *f, const fr_shape *s, const fr_pair *vector,
                      uint32_t count);                                     /* copies both; returns its index */
uint32_t fr_shape_like(fr_fragment *f, const fr_shape *s, uint32_t other); /* with the vector of another shape */
fr_op *fr_emit(fr_fragment *f, uint32_t lane, fr_op_kind kind, uint32_t shape,
               int layer); /* valid until the next fr_emit */
void fr_wait(fr_fragment *f, uint32_t event, uint32_t at_least);
void fr_signal(fr_fragment *f, uint32_t event);
void fr_use_buffer(fr_fragment *f, fr_use use, uint32_t buffer, uint32_t hold);
void fr_fill_table(fr_fragment *f, uint32_t table);
void fr_read_table(fr_fragment *f, uint32_t table); /* on a READBACK op of the host lane: now the host knows it */
void fr_meet(fr_fragment *f, uint32_t group, uint32_t seq);
void fr_late(fr_fragment *f, uint32_t table, uint32_t bound_shape);

static inline const fr_shape *fr_op_shape(const fr_fragment *f, const fr_op *op) {
    return &f->shapes[op->shape];
}
/* The most that an op can be: what it may be launched as before the size of a late op is known. */
static inline const fr_shape *fr_op_most(const fr_fragment *f, const fr_op *op) {
    return &f->shapes[op->bound];
}
static inline const fr_ref *fr_op_waits(const fr_fragment *f, const fr_op *op) {
    return &f->refs[op->refs];
}
static inline const fr_ref *fr_op_signals(const fr_fragment *f, const fr_op *op) {
    return &f->refs[op->refs + op->waits];
}
static inline const fr_ref *fr_op_uses(const fr_fragment *f, const fr_op *op) {
    return &f->refs[op->refs + op->waits + op->signals];
}

/* 64-bit structural id: forward 20 bits, rank 10, layer 10, kind 6, micro 8, sub 10; unique within a plan of < 2^20
 * forwards (plan_check proves it for what it is given), never 0. Text form "f12.r3.l17.pull.m0.s5"; "l-" outside
 * layers. */
uint64_t fr_op_id(const fr_plan *p, const fr_fragment *f, const fr_op *op);
void fr_op_id_text(uint64_t id, char out[48]);
/* The inverse, strict: false when the text is no id. */
bool fr_op_id_parse(const char *text, uint64_t *id);

/* The golden text form of a plan: static part, then fragments lane by lane, one op a line. */
void fr_plan_print(const fr_plan *p, fr_fragment *const *fragments, int count, fr_text *out);

/*
 * plan_check: proves, for any durations, over the appended fragments taken together:
 *   no read before its write; no slot overwritten or freed while it may still be read, none read after its free; equal
 * order of collectives on all members of a group; no deadlock; late tables filled (and read back, where the host must
 * know) before use; waits reachable. Returns FR_OK or FR_FAILED with the first violation: rule, op ids and what is
 * missing.
 */
fr_status fr_plan_check(const fr_plan *p, fr_fragment *const *fragments, int count, fr_error *err);

#endif

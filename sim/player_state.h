/*
 * player_state: what the player's files share. Inside, lanes are numbered by (rank, kind, discipline, name), so that
 * nothing depends on the order in which a plan registered them.
 */
#ifndef FR_PLAYER_STATE_H
#define FR_PLAYER_STATE_H

#include "engine/account.h"
#include "sim/fluid.h"
#include "sim/heap.h"
#include "sim/player.h"

/* Cost of one shape of a fragment, ready to play. */
typedef struct {
    int64_t ns, low, high;
    int64_t work;      /* what is played: at the clock of a burst where the clock is followed, else ns */
    int64_t hbm, link; /* bytes/s at full rate */
    float base, slope, full, flex, knee; /* fr_draw; slope 0 = keeps its time under any clock */
    uint8_t provenance;
    bool none; /* size 0: the op is skipped */
} fr_price;

struct fr_share;
struct fr_run;
typedef struct fr_clock fr_clock; /* of a rank: player_clock.c */

/* A fragment's ops on one lane, queued there. */
typedef struct fr_link {
    struct fr_link *next;
    struct fr_run *run;
    struct fr_share *share;
    uint32_t first;
} fr_link;

/* A fragment's part on one rank. */
typedef struct fr_share {
    int16_t rank;
    uint32_t left, answers; /* ops, FR_OP_ANSWER ops to end yet */
    int64_t end;
    fr_parts parts;
    fr_exposure x; /* interval of the record */
} fr_share;

/* A fragment in play. */
typedef struct fr_run {
    struct fr_run *next, *previous; /* all in play */
    fr_fragment *f;
    int64_t release, start;
    uint32_t left, entries, shares_count;
    double flops;
    fr_share *shares;
    fr_link *links;
    fr_price *prices;
    uint32_t shares_cap, links_cap, prices_cap; /* kept for the next fragment */
} fr_run;

typedef enum {
    FR_STATE_IDLE = 0, /* nothing to do */
    FR_STATE_READY,    /* in the ready queue */
    FR_STATE_EVENT,    /* waits for an event */
    FR_STATE_POOL,     /* for slots */
    FR_STATE_MEET,     /* for its group */
    FR_STATE_RUN,
    FR_STATE_RUN_GROUP /* runs with its group; the leader's lane holds the heap entry */
} fr_lane_state;

typedef struct {
    /* hot */
    const fr_op *op; /* current, NULL = none taken */
    fr_run *run;
    fr_share *share;
    fr_link *queue, *queue_last;
    int64_t ready, start;
    uint32_t index, mate; /* own number; next member of its meeting */
    uint32_t wait_at;     /* waits before this one hold */
    uint32_t chain;       /* ops that the running stretch stands for */
    int16_t rank;
    uint8_t state, kind;
    bool first_ready, compute, transfer, can_chain;
    bool woken;                            /* the current op was released by `cause` */
    bool flows;                            /* the running op is a flow */
    bool fresh;                            /* an item was just taken: ready since the item was */
    uint8_t press;                         /* aggressor + 1 of the running op, 0 = none */
    bool outside, granted;                 /* a collective's kernel that has no SMs yet; has them now (player_sms.c) */
    uint32_t behind;                       /* the next one that waits for the same kernel's end */
    uint32_t waiting;                      /* compute lanes: the first that waits for the running kernel's */
    uint32_t leader, without;              /* of its meeting; at the leader: members that have no SMs yet, */
    int16_t last;                          /* the rank that came last, whose kernels it meets first, */
    int64_t last_at;                       /* and when */
    uint8_t draws;                         /* what draws power here, 0 = nothing (player_clock.c) */
    int64_t base_mw, slope_mw, draw_mw;    /* a kernel's draw */
    int64_t run_start, run_ready, run_end; /* stretch of back-to-back transfers */
    uint64_t last_id;
    fr_ended done, done_cause;   /* last op that ended here, and what released it */
    fr_ended cause, cause_cause; /* what released the current op */
    fr_ended run_cause;          /* what released the first of a stretch */
    /* first-ready */
    uint32_t *items, items_count, items_cap; /* ready ones, by (ready, order) */
    uint32_t pending;                        /* items not taken */
    bool listed;                             /* among the choosers */
    bool starved;                            /* free, but every ready item lacks slots */
    uint32_t plan_lane;
} fr_play_lane;

/* An item of a first-ready lane that is not taken yet. */
typedef struct {
    fr_link *link;
    uint32_t lane, op, wait_at;
    int64_t ready;
    uint64_t order;
    bool woken, used;
    fr_ended cause, cause_cause;
} fr_item;

typedef struct {
    uint32_t count, first; /* first waiter */
} fr_counter;

typedef struct {
    uint32_t seq, arrived, first; /* first: lane, chained by mate */
} fr_meeting;

typedef struct {
    fr_meeting *open;
    uint32_t n, cap;
} fr_meetings;

/* Lanes in order, chained by mate. */
typedef struct {
    uint32_t first, last;
} fr_lane_queue;

/* A rank as one that weights are pulled from: one pull at a time, the others wait. And as one that gathers. */
typedef struct {
    bool busy;
    fr_lane_queue readers;
    uint32_t done;          /* pulls of its gather that yield, done; FR_NONE = it is in none */
    uint32_t after;         /* the rank that it lets keep ahead */
    fr_lane_queue yielding; /* whose next pulls wait for this rank's */
} fr_pulled;

enum { FR_HOLD_UNUSED = 0, FR_HOLD_HELD, FR_HOLD_VOID, FR_HOLD_FREED };
typedef struct {
    int32_t free;
    uint32_t base, cap; /* holds before base are done with; ring of states, cap a power of two */
    uint8_t *holds;
    uint32_t *queue, queue_n, queue_cap; /* lanes that wait, in order */
} fr_pool;

typedef struct {
    fr_run *run;
    int rank, kind; /* 0 entered, 1 answered, 2 finished */
} fr_call;

typedef struct {
    int64_t time;
    fr_run *run;
} fr_later;

/* As whose watts a transfer counts: an fr_aggressor's beside kernels, or a collective's of its own. */
typedef enum { FR_MOVES_NCCL = FR_AGGRESSORS, FR_MOVES_EXCHANGE, FR_MOVERS } fr_mover;

struct fr_player {
    const fr_plan *plan;
    fr_player_options o;
    int64_t now;
    fr_heap heap;
    fr_fluid *fluid;
    const fr_power *power;       /* NULL = clocks are not followed */
    fr_clock *clocks;            /* by rank */
    int64_t link_mw;             /* what links that are awake draw; */
    int64_t mover_mw[FR_MOVERS]; /* what one end of a transfer does */
    fr_play_lane *lanes;
    uint32_t lanes_count, events_count;
    fr_counter *events;
    uint32_t *waiter_next, *waiter_need; /* by lane, then by item */
    uint32_t waiters_cap;
    uint32_t *ready, ready_head, ready_n; /* ring of lanes_count */
    uint32_t popped;                      /* lane whose heap entry is used up, FR_NONE = none */
    fr_meetings *groups;
    fr_pool *pools; /* by buffer */
    fr_item *items;
    uint32_t items_count, items_cap, items_free;
    uint64_t items_order;
    uint32_t *choosers, choosers_n;
    uint32_t *kernels_of;       /* by rank: its compute lane, FR_NONE = none or several */
    uint32_t *asking, asking_n; /* lanes whose collectives have asked for SMs at this instant */
    fr_pulled *pulled;          /* by rank; NULL = pulls of one source share it */
    fr_lane_queue may_pull;     /* whose pulls may begin now */
    fr_account *ranks;
    fr_call *calls;
    uint32_t calls_n, calls_cap;
    fr_later *later;
    uint32_t later_n, later_cap;
    uint32_t *of_plan_lane;
    fr_run *runs, *spare; /* in play; done with */
    int64_t open_runs;
    uint32_t plan_groups, plan_buffers; /* as they were when the player was made */
    fr_capacity capacity;
    int64_t *capacities; /* of the fluid's resources; 0 = no such thing */
    bool holds;          /* collectives may run beside kernels, and be held back by them */
    bool *engines_bind;  /* by rank: more copy lanes than engines */
    fr_fluid_usage *usages;
    uint32_t usages_n, usages_cap;
    uint8_t class_of[FR_OP_KIND_COUNT];
    fr_player_stats stats;
    fr_error broken; /* a plan that cannot be played was found */
};

/* player_flow.c: prices, resources, flows */
void fr_play_flows_open(fr_player *p);
void fr_play_flows_close(fr_player *p);
void fr_play_prices(fr_player *p, fr_run *run);
/* Starts the flow of the op on lane l (with its mates when it is a group op) for `work` ns; returns its end. */
int64_t fr_play_flow_start(fr_player *p, fr_play_lane *l, int64_t work, bool group);
/* A pull from another rank begins where nobody pulls there, else waits its turn: false. Its beginning and its end may
 * let others begin: fr_play_pull_next says which, until NULL. */
bool fr_play_pull_begin(fr_player *p, fr_play_lane *l);
void fr_play_pull_end(fr_player *p, const fr_play_lane *l);
fr_play_lane *fr_play_pull_next(fr_player *p);
void fr_play_press(fr_player *p, const fr_play_lane *l, int delta);
void fr_play_press_waiting(fr_player *p, fr_play_lane *l);
bool fr_play_holds_sms(const fr_player *p, const fr_play_lane *l); /* the op on l is a kernel beside others */

/* player_sms.c: when a collective's kernel gets its SMs */
void fr_play_sms_open(fr_player *p);
void fr_play_sms_close(fr_player *p);
/* The op on l is carried out by a kernel beside others; `met`: those whose ends meet before they launch it. */
bool fr_play_sms_wanted(const fr_player *p, const fr_play_lane *l, bool met);
void fr_play_sms_ask(fr_player *p, fr_play_lane *l);
void fr_play_sms_last(fr_player *p, fr_play_lane *leader, const fr_play_lane *l); /* l has come */
void fr_play_sms_alone(fr_player *p, fr_play_lane *l);
void fr_play_move(fr_player *p, fr_play_lane *l); /* a collective's kernels are all there, l their leader */
bool fr_play_sms_give(fr_player *p); /* at the end of an instant, to those that asked in it; false: nobody did */
void fr_play_sms_free(fr_player *p, fr_play_lane *l); /* the kernel on l has ended */

/* player_clock.c: power and clock; all but _open and _mhz only where p->clocks is set */
fr_mover fr_play_mover(uint8_t op_kind); /* of a collective with nothing beside it */
void fr_play_clock_open(fr_player *p);
void fr_play_clock_begin(fr_player *p, const fr_run *run);
double fr_play_clock_start(fr_player *p, fr_play_lane *l); /* a kernel begins: its speed relative to a burst */
void fr_play_clock_transfer(fr_player *p, fr_play_lane *l, fr_mover kind);
double fr_play_clock_collective(fr_player *p, fr_play_lane *l); /* one by SMs begins: speed as above */
void fr_play_clock_end(fr_player *p, fr_play_lane *l);
double fr_play_clock_mhz(const fr_player *p); /* mean over kernels; NaN = not followed */

/* player_account.c: records, spans */
void fr_play_share_begin(fr_player *p, fr_share *s);
void fr_play_share_end(fr_player *p, fr_share *s, const fr_play_lane *l);
void fr_play_record(const fr_player *p, const fr_run *run, fr_forward_record *out);
void fr_play_span(fr_player *p, fr_play_lane *l, const fr_op *op, const fr_price *price, int64_t ready, int64_t start,
                  int64_t end, uint64_t cause);

/* player_play.c: lanes, events, groups, pools */
/* The op on l ends then. */
static inline void fr_play_due(fr_player *p, fr_play_lane *l, int64_t end) {
    fr_heap_set(&p->heap, l->index, end);
    if (p->popped == l->index) p->popped = FR_NONE;
}
void fr_play_activate(fr_player *p, fr_run *run);
void fr_play_ended(fr_player *p, uint32_t lane); /* the heap entry of `lane` is due */
void fr_play_drain(fr_player *p);                /* starts all that may start now */
bool fr_play_choose(fr_player *p);               /* first-ready lanes take items; false when none could */
/* player_pool.c */
bool fr_play_acquire(fr_player *p, fr_play_lane *l, bool skipped);
bool fr_play_slots_free(const fr_player *p, const fr_fragment *f, const fr_op *op);
void fr_play_free_slots(fr_player *p, fr_play_lane *l, const fr_op *op);
void fr_play_wake(fr_player *p, fr_play_lane *l, const fr_play_lane *by);

#endif

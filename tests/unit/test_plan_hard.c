/*
 * The seven hard cases that the plan language must hold (design, section 1), small and by hand: each passes plan_check
 * and is kept as a golden text. FORERUN_WRITE_GOLDEN=1 writes the texts again, to be reviewed as a diff.
 */
#include "engine/plan/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 8 };

typedef struct {
    fr_plan *p;
    fr_fragment *f[MOST];
    int fragments;
} hard;

static fr_fragment *start(hard *h, int unit) {
    return h->f[h->fragments++] = fr_fragment_new(h->p, unit);
}

static uint32_t rows(fr_fragment *f, fr_op_kind kind, int64_t m, int64_t bytes) {
    return fr_shape_add(f, &(fr_shape){.kind = (uint8_t)kind, .m = m, .bytes = bytes}, NULL, 0);
}

/* An op with a shape of m rows and so many bytes. */
static fr_op *emit(fr_fragment *f, uint32_t lane, fr_op_kind kind, int layer, int64_t m, int64_t bytes) {
    return fr_emit(f, lane, kind, rows(f, kind, m, bytes), layer);
}

/* ---- 1. asyncep, one-sided pulls: every rank is a unit of its own and may run forwards ahead of the other ----------
 */
static void drifting_pulls(hard *h) {
    h->p = fr_plan_new(2, 2);
    uint32_t compute[2], copy[2], got[2], sets[2], shard[2], hidden[2], done[2] = {0, 0};
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(h->p, r, FR_LANE_COMPUTE, "compute", false);
        copy[r] = fr_plan_lane(h->p, r, FR_LANE_COPY, "copy", false);
        got[r] = fr_plan_event(h->p, r, "gathered");
        shard[r] = fr_plan_buffer(h->p, r, FR_BUF_WEIGHTS, "shard", 1000, 0, false);
        sets[r] = fr_plan_buffer(h->p, r, FR_BUF_GATHER, "expert sets", 2000, 2, false);
        hidden[r] = fr_plan_buffer(h->p, r, FR_BUF_ACTIVATION, "hidden", 64, 0, false);
    }
    const int units[4] = {0, 0, 1, 0}; /* rank 0 has taken three batches where rank 1 has taken one */
    for (int i = 0; i < 4; i++) {
        int r = units[i];
        fr_fragment *f = start(h, r);
        for (int l = 0; l < 2; l++, done[r]++) {
            for (int peer = 0; peer < 2; peer++) {
                fr_op *op = emit(f, copy[r], FR_OP_PULL, l, 0, 1000);
                op->peer = (int16_t)peer;
                op->sub = (uint16_t)peer;
                if (peer == 0) fr_use_buffer(f, FR_USE_ACQUIRE, sets[r], done[r]);
                fr_use_buffer(f, FR_USE_READ, shard[peer], 0);
                fr_use_buffer(f, FR_USE_WRITE, sets[r], done[r]);
                fr_signal(f, got[r]);
            }
            emit(f, compute[r], FR_OP_ATTENTION, l, 16, 0);
            fr_use_buffer(f, FR_USE_WRITE, hidden[r], 0);
            emit(f, compute[r], FR_OP_EXPERT_UP, l, 32, 0);
            fr_wait(f, got[r], 2 * done[r] + 2);
            fr_use_buffer(f, FR_USE_READ, hidden[r], 0);
            fr_use_buffer(f, FR_USE_READ, sets[r], done[r]);
            fr_use_buffer(f, FR_USE_FREE, sets[r], done[r]);
        }
    }
}

/* ---- 2. asyncep, collective gathers: rank 1 has no second batch and joins with an empty forward --------------------
 */
static void unequal_batches(hard *h) {
    h->p = fr_plan_new(2, 2);
    uint32_t compute[2], comm[2], got[2], sets[2], hidden[2], done = 0;
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(h->p, r, FR_LANE_COMPUTE, "compute", false);
        comm[r] = fr_plan_lane(h->p, r, FR_LANE_COMM, "comm", false);
        got[r] = fr_plan_event(h->p, r, "gathered");
        sets[r] = fr_plan_buffer(h->p, r, FR_BUF_GATHER, "expert sets", 2000, 2, false);
        hidden[r] = fr_plan_buffer(h->p, r, FR_BUF_ACTIVATION, "hidden", 64, 0, false);
    }
    uint32_t all = fr_plan_group(h->p, (int16_t[]){0, 1}, 2, 2);
    for (int i = 0; i < 2; i++) {
        fr_fragment *f = start(h, 0);
        for (int l = 0; l < 2; l++, done++)
            for (int r = 0; r < 2; r++) {
                bool empty = i == 1 && r == 1;
                emit(f, comm[r], FR_OP_GATHER_WEIGHTS, l, 0, 1000);
                fr_meet(f, all, done);
                fr_use_buffer(f, FR_USE_ACQUIRE, sets[r], done);
                fr_use_buffer(f, FR_USE_WRITE, sets[r], done);
                fr_signal(f, got[r]);
                emit(f, compute[r], FR_OP_ATTENTION, l, 16, 0);
                if (empty) f->ops[f->ops_count - 1].shape = f->ops[f->ops_count - 1].bound = 0;
                fr_use_buffer(f, FR_USE_WRITE, hidden[r], 0);
                emit(f, compute[r], FR_OP_EXPERT_UP, l, 32, 0);
                if (empty) f->ops[f->ops_count - 1].shape = f->ops[f->ops_count - 1].bound = 0;
                fr_wait(f, got[r], done + 1);
                fr_use_buffer(f, FR_USE_READ, hidden[r], 0);
                fr_use_buffer(f, FR_USE_READ, sets[r], done);
                fr_use_buffer(f, FR_USE_FREE, sets[r], done);
            }
    }
}

/* ---- 3. pp: three chunks of one prompt as micro-batches; each chunk's attention reads the KV of those before --------
 */
static void pipeline_of_chunks(hard *h) {
    h->p = fr_plan_new(2, 2);
    uint32_t compute[2], send, recv, out_ready, out_free, in_ready, in_free, kv[2], out, in;
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(h->p, r, FR_LANE_COMPUTE, "compute", false);
        kv[r] = fr_plan_buffer(h->p, r, FR_BUF_KV, "kv", 4096, 0, true);
    }
    send = fr_plan_lane(h->p, 0, FR_LANE_SEND, "send", false);
    recv = fr_plan_lane(h->p, 1, FR_LANE_RECV, "recv", false);
    out_ready = fr_plan_event(h->p, 0, "out ready");
    out_free = fr_plan_event(h->p, 0, "out free");
    in_ready = fr_plan_event(h->p, 1, "in ready");
    in_free = fr_plan_event(h->p, 1, "in free");
    out = fr_plan_buffer(h->p, 0, FR_BUF_ACTIVATION, "out", 64, 0, false);
    in = fr_plan_buffer(h->p, 1, FR_BUF_ACTIVATION, "in", 64, 0, false);
    uint32_t pair = fr_plan_group(h->p, (int16_t[]){0, 1}, 2, 2);
    fr_fragment *f = start(h, 0);
    for (uint32_t c = 0; c < 3; c++) {
        for (int r = 0; r < 2; r++) {
            fr_pair part = {16, (int32_t)c * 16};
            if (r == 1) { /* the transfer stands between the stages */
                emit(f, send, FR_OP_SEND, 0, 16, 64)->micro = (uint8_t)c;
                fr_meet(f, pair, c);
                fr_wait(f, out_ready, c + 1);
                fr_use_buffer(f, FR_USE_READ, out, 0);
                fr_signal(f, out_free);
                emit(f, recv, FR_OP_RECV, 0, 16, 64)->micro = (uint8_t)c;
                fr_meet(f, pair, c);
                fr_wait(f, in_free, c);
                fr_use_buffer(f, FR_USE_WRITE, in, 0);
                fr_signal(f, in_ready);
            }
            uint32_t shape = fr_shape_add(f, &(fr_shape){.kind = FR_OP_ATTENTION, .m = 16}, &part, 1);
            fr_op *op = fr_emit(f, compute[r], FR_OP_ATTENTION, shape, r);
            op->micro = (uint8_t)c;
            if (r == 0 && c == 2) op->flags |= FR_OP_ENTRY;
            if (r == 1 && c == 2) op->flags |= FR_OP_ANSWER;
            fr_use_buffer(f, FR_USE_READ, kv[r], 0);
            fr_use_buffer(f, FR_USE_WRITE, kv[r], 0);
            if (r == 0) fr_wait(f, out_free, c);
            if (r == 0) fr_use_buffer(f, FR_USE_WRITE, out, 0);
            if (r == 0) fr_signal(f, out_ready);
            if (r == 1) fr_wait(f, in_ready, c + 1);
            if (r == 1) fr_use_buffer(f, FR_USE_READ, in, 0);
            if (r == 1) fr_signal(f, in_free);
        }
    }
}

/* ---- 4. ep with two halves of a batch: one half's exchange beside the other's compute; counts known at run time -----
 */
static void two_batch_overlap(hard *h) {
    h->p = fr_plan_new(2, 2);
    uint32_t all = fr_plan_group(h->p, (int16_t[]){0, 1}, 2, 2);
    fr_fragment *f = start(h, 0);
    for (int r = 0; r < 2; r++) {
        uint32_t host = fr_plan_lane(h->p, r, FR_LANE_HOST, "host", false);
        uint32_t compute = fr_plan_lane(h->p, r, FR_LANE_COMPUTE, "compute", false);
        uint32_t comm = fr_plan_lane(h->p, r, FR_LANE_COMM, "comm", false);
        uint32_t routed[2], counted[2], known[2], arrived[2], out[2], in[2], table[2];
        for (int m = 0; m < 2; m++) {
            routed[m] = fr_plan_event(h->p, r, m ? "routed b" : "routed a");
            counted[m] = fr_plan_event(h->p, r, m ? "counted b" : "counted a");
            known[m] = fr_plan_event(h->p, r, m ? "known b" : "known a");
            arrived[m] = fr_plan_event(h->p, r, m ? "arrived b" : "arrived a");
            out[m] = fr_plan_buffer(h->p, r, FR_BUF_ACTIVATION, m ? "rows out b" : "rows out a", 64, 0, false);
            in[m] = fr_plan_buffer(h->p, r, FR_BUF_ACTIVATION, m ? "rows in b" : "rows in a", 64, 0, false);
            table[m] = fr_plan_table(h->p, r, m ? "counts b" : "counts a", 128, FR_KNOWN_HOST);
        }
        for (uint32_t m = 0; m < 2; m++) {
            emit(f, compute, FR_OP_SORT, 0, 16, 0)->micro = (uint8_t)m;
            fr_use_buffer(f, FR_USE_WRITE, out[m], 0);
            fr_signal(f, routed[m]);
        }
        for (uint32_t m = 0; m < 2; m++) {
            emit(f, comm, FR_OP_COUNTS, 0, 0, 64)->micro = (uint8_t)m;
            fr_meet(f, all, 2 * m);
            fr_wait(f, routed[m], 1);
            fr_fill_table(f, table[m]);
            fr_signal(f, counted[m]);
            emit(f, host, FR_OP_READBACK, 0, 0, 64)->micro = (uint8_t)m;
            fr_wait(f, counted[m], 1);
            fr_read_table(f, table[m]);
            fr_signal(f, known[m]);
            emit(f, comm, FR_OP_ALLTOALL, 0, 24, 480)->micro = (uint8_t)m;
            fr_meet(f, all, 2 * m + 1);
            fr_wait(f, known[m], 1);
            fr_late(f, table[m], rows(f, FR_OP_ALLTOALL, 128, 2560));
            fr_use_buffer(f, FR_USE_READ, out[m], 0);
            fr_use_buffer(f, FR_USE_WRITE, in[m], 0);
            fr_signal(f, arrived[m]);
            emit(f, compute, FR_OP_EXPERT_UP, 0, 24, 0)->micro = (uint8_t)m;
            fr_wait(f, arrived[m], 1);
            fr_late(f, table[m], rows(f, FR_OP_EXPERT_UP, 128, 0));
            fr_use_buffer(f, FR_USE_READ, in[m], 0);
        }
    }
}

/* ---- 5. asap: two attention ranks push to an expert rank's slots, which takes what is ready and pushes back ---------
 */
static void take_what_is_ready(hard *h) {
    h->p = fr_plan_new(3, 3);
    uint32_t expert = fr_plan_lane(h->p, 2, FR_LANE_COMPUTE, "experts", true);
    uint32_t slots = fr_plan_buffer(h->p, 2, FR_BUF_SLOT, "slots", 64, 2, false), hold = 0;
    uint32_t scratch = fr_plan_buffer(h->p, 2, FR_BUF_ACTIVATION, "scratch", 64, 0, false);
    uint32_t compute[2], send[2], ready[2], filled[2], back[2], result[2], hidden[2];
    for (int r = 0; r < 2; r++) {
        compute[r] = fr_plan_lane(h->p, r, FR_LANE_COMPUTE, "compute", false);
        send[r] = fr_plan_lane(h->p, r, FR_LANE_SEND, "send", false);
        ready[r] = fr_plan_event(h->p, r, "ready");
        filled[r] = fr_plan_event(h->p, 2, "filled");
        back[r] = fr_plan_event(h->p, r, "back");
        hidden[r] = fr_plan_buffer(h->p, r, FR_BUF_ACTIVATION, "hidden", 64, 0, false);
        result[r] = fr_plan_buffer(h->p, r, FR_BUF_ACTIVATION, "result", 64, 0, false);
    }
    for (int r = 0; r < 2; r++) {
        fr_fragment *f = start(h, r);
        for (uint32_t l = 0; l < 3; l++, hold++) {
            emit(f, compute[r], FR_OP_ATTENTION, (int)l, 16, 0);
            fr_wait(f, back[r], l);
            if (l) fr_use_buffer(f, FR_USE_READ, result[r], 0);
            fr_use_buffer(f, FR_USE_WRITE, hidden[r], 0);
            fr_signal(f, ready[r]);
            emit(f, send[r], FR_OP_PUSH, (int)l, 16, 64)->peer = 2;
            fr_wait(f, ready[r], l + 1);
            fr_use_buffer(f, FR_USE_READ, hidden[r], 0);
            fr_use_buffer(f, FR_USE_ACQUIRE, slots, hold); /* back-pressure: no slot, no push */
            fr_use_buffer(f, FR_USE_WRITE, slots, hold);
            fr_signal(f, filled[r]);
            fr_op *op = emit(f, expert, FR_OP_DRAIN, (int)l, 16, 64);
            op->flags |= FR_OP_ITEM;
            op->sub = (uint16_t)r;
            fr_wait(f, filled[r], l + 1);
            fr_use_buffer(f, FR_USE_READ, slots, hold);
            fr_use_buffer(f, FR_USE_WRITE, scratch, 0);
            fr_use_buffer(f, FR_USE_FREE, slots, hold);
            emit(f, expert, FR_OP_EXPERT_UP, (int)l, 32, 0)->sub = (uint16_t)r;
            fr_use_buffer(f, FR_USE_READ, scratch, 0);
            fr_use_buffer(f, FR_USE_WRITE, scratch, 0);
            op = emit(f, expert, FR_OP_PUSH, (int)l, 16, 64);
            op->sub = (uint16_t)r;
            op->peer = (int16_t)r;
            fr_use_buffer(f, FR_USE_READ, scratch, 0);
            fr_use_buffer(f, FR_USE_WRITE, result[r], 0);
            fr_signal(f, back[r]);
        }
    }
}

/* ---- 6. DuoServe: experts stream through two slots; which of them any token chose is known at run time --------------
 */
static void two_expert_slots(hard *h) {
    enum { EXPERTS = 4 };
    h->p = fr_plan_new(1, 1);
    uint32_t host = fr_plan_lane(h->p, 0, FR_LANE_HOST, "host", false);
    uint32_t compute = fr_plan_lane(h->p, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t h2d = fr_plan_lane(h->p, 0, FR_LANE_H2D, "h2d", false);
    uint32_t routed = fr_plan_event(h->p, 0, "routed"), known = fr_plan_event(h->p, 0, "known");
    uint32_t loaded = fr_plan_event(h->p, 0, "loaded");
    uint32_t weights = fr_plan_buffer(h->p, 0, FR_BUF_HOST, "experts", 4000, 0, false);
    uint32_t slots = fr_plan_buffer(h->p, 0, FR_BUF_SLOT, "expert slots", 1000, 2, false);
    uint32_t hidden = fr_plan_buffer(h->p, 0, FR_BUF_ACTIVATION, "hidden", 64, 0, false);
    uint32_t table[EXPERTS], done = 0;
    for (int e = 0; e < EXPERTS; e++) table[e] = fr_plan_table(h->p, 0, "tokens of expert", 64, FR_KNOWN_HOST);
    fr_fragment *f = start(h, 0);
    for (uint32_t l = 0; l < 2; l++) {
        emit(f, compute, FR_OP_SORT, (int)l, 16, 0);
        fr_use_buffer(f, FR_USE_WRITE, hidden, 0);
        for (int e = 0; e < EXPERTS; e++) fr_fill_table(f, table[e]);
        fr_signal(f, routed);
        emit(f, host, FR_OP_READBACK, (int)l, 0, 64);
        fr_wait(f, routed, l + 1);
        for (int e = 0; e < EXPERTS; e++) fr_read_table(f, table[e]);
        fr_signal(f, known);
        for (int e = 0; e < EXPERTS; e++, done++) {
            emit(f, h2d, FR_OP_H2D, (int)l, e == 2 ? 0 : 1, 1000)->sub = (uint16_t)e;
            if (e == 2) f->ops[f->ops_count - 1].shape = 0; /* predicted to have no token: skipped */
            fr_late(f, table[e], rows(f, FR_OP_H2D, 1, 1000));
            if (e == 0) fr_wait(f, known, l + 1);
            fr_use_buffer(f, FR_USE_READ, weights, 0);
            fr_use_buffer(f, FR_USE_ACQUIRE, slots, done);
            fr_use_buffer(f, FR_USE_WRITE, slots, done);
            fr_signal(f, loaded);
            emit(f, compute, FR_OP_EXPERT_UP, (int)l, 8, 0)->sub = (uint16_t)e;
            if (e == 2) f->ops[f->ops_count - 1].shape = 0;
            fr_late(f, table[e], rows(f, FR_OP_EXPERT_UP, 64, 0));
            fr_wait(f, loaded, done + 1);
            fr_use_buffer(f, FR_USE_READ, hidden, 0);
            fr_use_buffer(f, FR_USE_READ, slots, done);
            fr_use_buffer(f, FR_USE_FREE, slots, done);
        }
    }
}

/* ---- 7. a prefix computed by one forward, read by two siblings in later ones, freed after the last ------------------
 */
static void shared_prefix(hard *h) {
    h->p = fr_plan_new(1, 1);
    uint32_t compute = fr_plan_lane(h->p, 0, FR_LANE_COMPUTE, "compute", false);
    uint32_t kv = fr_plan_buffer(h->p, 0, FR_BUF_KV, "kv handles", 4096, 3, true);
    for (uint32_t i = 0; i < 3; i++) { /* hold 0 is the prefix, 1 and 2 the siblings' own parts */
        fr_fragment *f = start(h, 0);
        fr_pair part = {i ? 16 : 512, i ? 512 : 0};
        uint32_t shape = fr_shape_add(f, &(fr_shape){.kind = FR_OP_ATTENTION, .m = part.queries}, &part, 1);
        fr_emit(f, compute, FR_OP_ATTENTION, shape, 0);
        fr_use_buffer(f, FR_USE_ACQUIRE, kv, i);
        fr_use_buffer(f, FR_USE_WRITE, kv, i);
        if (i) fr_use_buffer(f, FR_USE_READ, kv, 0);
        emit(f, compute, FR_OP_GEMM_HEAD, FR_NO_LAYER, 1, 0)->flags |= FR_OP_ANSWER;
        if (i) fr_use_buffer(f, FR_USE_FREE, kv, i);
        if (i == 2) fr_use_buffer(f, FR_USE_FREE, kv, 0);
    }
}

static const struct {
    const char *name;
    void (*build)(hard *h);
} cases[] = {
    {"drifting-pulls", drifting_pulls},         {"unequal-batches", unequal_batches},
    {"pipeline-of-chunks", pipeline_of_chunks}, {"two-batch-overlap", two_batch_overlap},
    {"take-what-is-ready", take_what_is_ready}, {"two-expert-slots", two_expert_slots},
    {"shared-prefix", shared_prefix},
};

static void hard_cases_pass_and_are_golden(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hard h = {0};
        fr_error err = {FR_OK, ""};
        fr_text text = {0};
        char path[128], *golden = NULL;
        size_t length = 0;
        cases[i].build(&h);
        if (fr_plan_check(h.p, h.f, h.fragments, &err) != FR_OK) fail_msg("%s: %s", cases[i].name, err.text);
        fr_plan_print(h.p, h.f, h.fragments, &text);
        snprintf(path, sizeof path, "tests/golden/plan/%s.txt", cases[i].name);
        if (getenv("FORERUN_WRITE_GOLDEN")) assert_int_equal(fr_write_file(path, text.text, text.length, &err), FR_OK);
        if (fr_read_file(path, 1 << 20, &golden, &length, &err) != FR_OK) fail_msg("%s", err.text);
        assert_string_equal(text.text, golden);
        free(golden);
        fr_text_free(&text);
        for (int k = 0; k < h.fragments; k++) fr_fragment_free(h.f[k]);
        fr_plan_free(h.p);
    }
}

/* Each wait, left out, breaks the case: none is there for show. */
static void every_wait_is_needed(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (uint32_t n = 0, dropped = 1; dropped; n++) {
            hard h = {0};
            uint32_t seen = 0;
            char name[48] = "";
            cases[i].build(&h);
            dropped = 0;
            for (int k = 0; k < h.fragments; k++)
                for (uint32_t o = 0; o < h.f[k]->ops_count; o++) {
                    const fr_op *op = &h.f[k]->ops[o];
                    for (unsigned w = 0; w < op->waits; w++) {
                        if (h.f[k]->refs[op->refs + w].value == 0 || seen++ != n) continue;
                        h.f[k]->refs[op->refs + w].value = 0;
                        fr_op_id_text(fr_op_id(h.p, h.f[k], op), name);
                        dropped = 1;
                    }
                }
            if (dropped && fr_plan_check(h.p, h.f, h.fragments, NULL) == FR_OK)
                fail_msg("%s: not missed: wait %u, of %s", cases[i].name, n, name);
            for (int k = 0; k < h.fragments; k++) fr_fragment_free(h.f[k]);
            fr_plan_free(h.p);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hard_cases_pass_and_are_golden),
        cmocka_unit_test(every_wait_is_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

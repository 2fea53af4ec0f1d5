/*
 * plan_groups: the nodes of a plan's order: an op, or the members of a collective, which start and end together. Every
 * member joins each (group, seq) once, and all join in one order.
 */
#include "engine/plan/plan_order.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint32_t *offset;      /* per group, into node_at */
    uint32_t *total;       /* ops per group */
    uint32_t *next, *lane; /* per member */
    uint32_t *node_at;     /* per (group, seq): node + 1 */
} group_state;

static fr_status join_group(fr_order *o, group_state *g, uint32_t op, fr_error *err) {
    const fr_plan *p = o->plan;
    const fr_op *x = fr_order_op(o, op);
    const fr_group *group = &p->groups[x->group];
    int rank = p->lanes[x->lane].rank;
    uint32_t m = 0, members = (uint32_t)group->count;
    char name[48];
    while (m < members && p->members[group->first + m] != rank) m++;
    if (m == members)
        return fr_fail(err, FR_FAILED, "group order: %s meets group %u, of which rank %d is no member",
                       fr_order_name(o, op, name), x->group, rank);
    m += group->first;
    if (x->seq != g->next[m])
        return fr_fail(err, FR_FAILED, "group order: %s joins group %u #%u where rank %d has #%u next",
                       fr_order_name(o, op, name), x->group, x->seq, rank, g->next[m]);
    if (g->lane[m] != FR_NONE && g->lane[m] != x->lane)
        return fr_fail(err, FR_FAILED,
                       "group order: %s joins group %u on lane %u, but rank %d joined it on lane %u "
                       "before: no fixed order",
                       fr_order_name(o, op, name), x->group, x->lane, rank, g->lane[m]);
    g->lane[m] = x->lane;
    g->next[m]++;
    uint32_t *at = &g->node_at[g->offset[x->group] + x->seq];
    if (!*at) {
        o->first_member[o->nodes] = FR_NONE;
        *at = ++o->nodes;
    }
    o->node_of[op] = *at - 1;
    o->next_member[op] = o->first_member[*at - 1];
    o->first_member[*at - 1] = op;
    return FR_OK;
}

static fr_status groups_complete(const fr_order *o, const group_state *g, fr_error *err) {
    const fr_plan *p = o->plan;
    for (uint32_t i = 0; i < p->groups_count; i++) {
        uint32_t first = p->groups[i].first, most = 0, least = UINT32_MAX, who = 0;
        for (uint32_t m = first; m < first + (uint32_t)p->groups[i].count; m++) {
            if (g->next[m] > most) most = g->next[m];
            if (g->next[m] < least) {
                least = g->next[m];
                who = m;
            }
        }
        if (least == most) continue;
        char name[48];
        return fr_fail(err, FR_FAILED, "group order: rank %d does not join group %u #%u, which %s joins",
                       p->members[who], i, least,
                       fr_order_name(o, o->first_member[g->node_at[g->offset[i] + least] - 1], name));
    }
    return FR_OK;
}

/* Two lanes that share collectives must reach them in the same order. */
static fr_status check_crossing(const fr_order *o, fr_error *err) {
    uint32_t *last = fr_order_array(o->chains), *whom = fr_order_array(o->chains);
    fr_status status = FR_OK;
    for (uint32_t c = 0; c < o->plan->lanes_count && status == FR_OK; c++) {
        memset(last, 0, o->chains * sizeof *last);
        for (uint32_t op = o->item_first[c]; op != FR_NONE && status == FR_OK; op = o->successor[op]) {
            if (fr_order_op(o, op)->group == FR_NONE) continue;
            for (uint32_t m = o->first_member[o->node_of[op]]; m != FR_NONE; m = o->next_member[m]) {
                uint32_t other = o->chain_of[m];
                if (other <= c) continue;
                if (o->index_in[m] + 1 < last[other]) {
                    char a[48], b[48];
                    status = fr_fail(err, FR_FAILED,
                                     "group order: lane %u runs %s before %s, lane %u the other way round: a deadlock",
                                     c, fr_order_name(o, whom[other], a), fr_order_name(o, op, b), other);
                    break;
                }
                last[other] = o->index_in[m] + 1;
                whom[other] = op;
            }
        }
    }
    free(last);
    free(whom);
    return status;
}

fr_status fr_order_build_nodes(fr_order *o, fr_error *err) {
    const fr_plan *p = o->plan;
    group_state g = {fr_order_array(p->groups_count), fr_order_array(p->groups_count), fr_order_array(p->members_count),
                     fr_order_array(p->members_count), fr_order_array(o->ops)};
    fr_status status = FR_OK;
    memset(g.lane, 0xff, p->members_count * sizeof *g.lane);
    for (uint32_t op = 0; op < o->ops; op++)
        if (fr_order_op(o, op)->group != FR_NONE) g.total[fr_order_op(o, op)->group]++;
    for (uint32_t i = 1; i < p->groups_count; i++) g.offset[i] = g.offset[i - 1] + g.total[i - 1];
    for (uint32_t c = 0; c < o->chains && status == FR_OK; c++) /* in lane order: emission order is no order */
        for (uint32_t op = o->item_first[c]; op != FR_NONE && status == FR_OK; op = o->successor[op]) {
            if (fr_order_op(o, op)->group != FR_NONE) {
                status = join_group(o, &g, op, err);
                continue;
            }
            o->node_of[op] = o->nodes;
            o->first_member[o->nodes++] = op;
        }
    if (status == FR_OK) status = groups_complete(o, &g, err);
    if (status == FR_OK) status = check_crossing(o, err);
    free(g.offset);
    free(g.total);
    free(g.next);
    free(g.lane);
    free(g.node_at);
    return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* stage.h: the clusters that a round of a recall takes and that are not in memory: read, checked, put into their gaps.
 *
 *   RECALL done ─► pieces ─► plan: spans ─► reads of about 1 MiB ─► FILL ─► cache ─► all filled ─► round done
 *                                             ▲       as buffers allow │ lost: extent LOST, quarantine;
 *                                             └────────────────────────┘ then RECALL again, without it
 *
 * A stage is a work's companion: it has room for what the work's items list as chosen, and for what is made of that. It grows
 * to what was needed once, and stays so.
 *
 * Invariants:
 *   G1  A round ends when every gap is filled; a cluster that cannot be read is LOST before the round runs again,
 *       so that every run has fewer of them, and the last one has none.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_STAGE_H
#define KVR_DAEMON_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/waiter.h"
#include "kernels/device.h"
#include "tiers/plan.h"

struct kvr_call;
struct kvr_daemon;
struct kvr_segment;
struct kvr_work;

/* Stages that keep their room: the others, of a crowd, give it back with their work. Works are used again last in, first
 * out, so the same few serve as a rule. */
#define KVR_STAGES_KEPT 8u

/* Room for the chosen clusters of one round, as a rule: small rounds, so that reads start while others are scored. */
#define KVR_STAGE_CHOSEN_MAX 16384u

struct kvr_stage {
	struct kvr_work *work;
	struct kvr_call *call;
	struct kvr_chosen *chosen; /* [chosen_max], shared out to the items */
	struct kvr_plan_piece *pieces;
	struct kvr_plan_span *spans;
	uint32_t chosen_max, piece_count, span_count, span_next;
	uint32_t reads_running, lost_count;
	struct kvr_waiter waiter; /* for a read */
};

struct kvr_stages {
	struct kvr_stage *entries; /* one per work of requests; NULL: there is no store */
	uint32_t with_room;
};

/* Errors: -ENOMEM. */
int kvr_stages_open(struct kvr_stages *stages);
void kvr_stages_close(struct kvr_stages *stages);

/* The stage of a work of daemon->works, with room for `chosen` entries; NULL: no memory. */
struct kvr_stage *kvr_stage_of(struct kvr_daemon *daemon, struct kvr_work *work, uint32_t chosen);

/* recall.c: the rows of the work's items are all there. */
void kvr_recall_filled(struct kvr_work *work);

/* Something of a segment could not be read, or was not what was written: it is quarantined, and that is logged. */
void kvr_stage_damaged(struct kvr_daemon *daemon, const struct kvr_segment *segment, uint32_t lane);

/* The work is given back: room beyond KVR_STAGES_KEPT goes. For any work of daemon->works; without a store nothing. */
void kvr_stage_give(struct kvr_daemon *daemon, const struct kvr_work *work);

/* The work's RECALL items are done: reads what they lack. When all is filled, calls the work's `done` again if something was
 * lost and the items have been run again, or kvr_recall_filled(work). False: nothing was lacking. */
bool kvr_stage_start(struct kvr_stage *stage, struct kvr_call *call);

#endif

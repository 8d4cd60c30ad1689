/* SPDX-License-Identifier: Apache-2.0 */
/* seal.h: makes a segment of the first tokens of a tail, in the background.
 *
 *                    exists already
 *          ┌──────────────────────────────────────────────┐
 *          │ another sequence builds it                   │
 *   start ─┼──────────────► WAITING ──► start again       │
 *          │                                              ▼
 *          └──► CLUSTERING ──► PLACING ──► PACKING ──► MERGING ──► publish ──► JOINABLE ──► IDLE
 *                   │             │           └─ no sets ─────────►│    (sequence.c joins it when no reader runs)
 *                   └─────────────┴── no room ──► IDLE             └──► kvr_keep_put
 *                                        `error` set, tail as it was
 *
 * A seal is a part of its sequence. CLUSTERING runs k-means over all lanes; then the payload's places
 * are reserved; PACKING permutes the rows into them; MERGING makes the merged sets, where the model keeps
 * any. All go through the device in rounds of KVR_WORK_ITEMS_MAX lanes, behind whatever is urgent.
 *
 * Invariants:
 *   L1  The segment is BUILDING from CLUSTERING to the end of PACKING or MERGING, READY and leased from then on.
 *   L2  Of several sequences that seal the same tokens one builds; the others wait for it.
 *   L3  The parent is the sequence's last segment, which it leases. */
#ifndef KVR_DAEMON_SEAL_H
#define KVR_DAEMON_SEAL_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/waiter.h"

struct kvr_sequence;

enum kvr_seal_state {
	KVR_SEAL_IDLE,
	KVR_SEAL_WAITING, /* for another sequence's build, or for memory */
	KVR_SEAL_CLUSTERING,
	KVR_SEAL_PLACING, /* may wait for memory */
	KVR_SEAL_PACKING,
	KVR_SEAL_MERGING,
	KVR_SEAL_JOINABLE,
};

struct kvr_seal {
	enum kvr_seal_state state;
	uint32_t count;    /* tokens */
	uint32_t segment;  /* KVR_SEGMENT_NONE before one is found or begun */
	uint32_t lane;     /* next one to submit */
	int error;         /* of the last seal that failed: -ENOSPC, -EDQUOT; 0 after a good one */
	uint64_t retry_ns; /* before then appends do not try again: clustering is not for nothing */
	struct kvr_waiter waiter;
};

void kvr_seal_init(struct kvr_seal *seal);

/* Starts to seal the tail's first `count` tokens, which are whole. The seal is IDLE. Touches the
 * sequence when it is JOINABLE or has failed, which may be at once. */
void kvr_seal_start(struct kvr_sequence *sequence, uint32_t count);

/* JOINABLE -> IDLE. The lease on the segment passes to the caller. Returns the segment. */
uint32_t kvr_seal_take(struct kvr_sequence *sequence);

/* A WAITING seal becomes IDLE; one that builds goes on, for its segment is of use to others. */
void kvr_seal_abandon(struct kvr_sequence *sequence);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_queue.h: which transfer goes to the disk next. Internal to tiers/nvme*.c.
 *
 * It orders and bounds; it moves nothing and wakes nobody.
 *
 *   push ─► class URGENT ─┬─ lane ─ io io io     a lane holds one flow, or a few that share a turn;
 *           class NORMAL  ├─ lane ─ io           lanes with something in them take turns of
 *           class LATER   └─ ...                 `batch` transfers
 *           syncs ─ io
 *   pop  ◄─ the highest class that may go, or a lower one that was passed over long enough
 *
 * What may go:
 *   * of all transfers, `depth`; of NORMAL and LATER together 7/8 of that, of LATER half, so that an urgent one finds
 *     room at once;
 *   * of NORMAL and LATER together, KVR_NVME_LOWER_BYTES: the disk works off what it was given before in
 *     whatever order it likes, so this is what an urgent read waits for;
 *   * of syncs one at a time, beside the transfers.
 *
 * Invariants:
 *   U1  running <= depth (N1), lower_running <= lower_max, later_running <= later_max.
 *   U2  A lower class that has something pending gets 1 of KVR_NVME_SHARE bytes at least, as soon as its limits
 *       let it go: nothing waits for ever.
 *
 * Threads: none of its own; the caller's lock (struct kvr_nvme_work) guards it. */
#ifndef KVR_TIERS_NVME_QUEUE_H
#define KVR_TIERS_NVME_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "tiers/tier.h"

#define KVR_NVME_LANES       64u /* per class: flows that have a turn of their own */
#define KVR_NVME_SHARE       8u  /* bytes that may pass a waiting class per byte of its own */
#define KVR_NVME_LOWER_BYTES (4u << 20)

struct kvr_nvme_lane {
	struct kvr_list ios;
	struct kvr_list link; /* in its class's turn list while it has ios */
};

struct kvr_nvme_class {
	struct kvr_nvme_lane lanes[KVR_NVME_LANES];
	struct kvr_list turn;  /* lanes with something pending; the first one's turn it is */
	uint32_t turn_left;    /* transfers until the next lane's turn */
	uint64_t passed_bytes; /* of higher classes, while this one waited */
};

struct kvr_nvme_queue {
	uint32_t depth, batch;
	/* Popped and not done: of all classes; of NORMAL and LATER; of LATER. */
	uint32_t running;
	uint32_t lower_running, lower_max;
	uint32_t later_running, later_max;
	uint64_t lower_bytes;
	struct kvr_nvme_class classes[KVR_TIER_PRIORITIES];
	struct kvr_list syncs;
	bool sync_running;
};

void kvr_nvme_queue_init(struct kvr_nvme_queue *queue, uint32_t depth, uint32_t batch);

/* Adds an io: op, priority, flow, channel and place are set. */
void kvr_nvme_queue_push(struct kvr_nvme_queue *queue, struct kvr_tier_io *io);

/* Takes the next io that may go; NULL where none may. */
struct kvr_tier_io *kvr_nvme_queue_pop(struct kvr_nvme_queue *queue);

/* Whether pop would return one. */
bool kvr_nvme_queue_ready(const struct kvr_nvme_queue *queue);

/* An io that was popped has ended. */
void kvr_nvme_queue_done(struct kvr_nvme_queue *queue, const struct kvr_tier_io *io);

#endif

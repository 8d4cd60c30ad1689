/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_mover.h: what a mover works on, and what it offers. Internal to tiers/nvme*.c.
 *
 *            push, wake                 pop                 the kernel
 *   channel ────────────► work.queue ────────► running ◄─────────────────► file
 *      ▲                                          │ settle: continue, try again, or
 *      └────────── kvr_nvme_finish ◄──────────────┘ finished
 *
 * Invariants:
 *   M1  Whoever pushes while `idle` is set clears it and wakes the mover, and the mover sets it before it
 *       looks at its wake-up for the last time: no push is slept through.
 *   M2  An io that the kernel has is touched by nobody until its completion was seen.
 *
 * Threads: the mover's own; start, wake and stop say theirs. */
#ifndef KVR_TIERS_NVME_MOVER_H
#define KVR_TIERS_NVME_MOVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/span.h"
#include "tiers/nvme_queue.h"

struct kvr_nvme_work {
	/* Fixed while a mover runs. */
	int fd;
	uint64_t bytes;     /* of the file */
	uint32_t alignment; /* of offsets, lengths and addresses */
	uint32_t depth;
	const struct kvr_span *buffers;
	uint32_t buffer_count;
	pthread_mutex_t lock; /* guards what follows */
	struct kvr_nvme_queue queue;
	bool idle;     /* M1 */
	bool stopping; /* nothing is pending or running, and nothing will be */
};

struct kvr_nvme_mover;

struct kvr_nvme_mover_ops {
	/* Any thread, without the lock: up to `count` ios were pushed and `idle` was set. */
	void (*wake)(struct kvr_nvme_mover *mover, uint32_t count);
	/* Ends the threads, frees the mover; work->stopping is set. */
	void (*stop)(struct kvr_nvme_mover *mover);
};

/* A mover is a struct that begins with this one. */
struct kvr_nvme_mover {
	const struct kvr_nvme_mover_ops *ops;
	bool registered; /* buffers are fixed as they prove to be in use; atomic */
};

/* Starts a mover on `work`, which it borrows. Errors: -ENOMEM, -EAGAIN (threads); those of io_uring_setup(2), -ENOSYS
 * also where the build has no liburing. */
int kvr_nvme_ring_start(struct kvr_nvme_work *work, struct kvr_nvme_mover **ret_mover);
int kvr_nvme_threads_start(struct kvr_nvme_work *work, struct kvr_nvme_mover **ret_mover);

/* pthread_create with all signals blocked: they belong to the daemon's loop. */
int kvr_nvme_thread_create(pthread_t *ret_thread, void *(*main)(void *), void *argument);

/* N3 asserted: the kernel may have this span of the file and this memory. Returns the index of the buffer. */
uint32_t kvr_nvme_check(const struct kvr_nvme_work *work, const struct kvr_tier_io *io);

/* Takes a result of the kernel (bytes, or -errno). True when the io is finished, with its status set; false when the
 * rest, from done_bytes on, is to be sent again. `retries` starts at 0 with the io. */
bool kvr_nvme_settle(struct kvr_tier_io *io, int64_t result, uint32_t alignment, uint32_t *retries);

/* Hands finished ios, of any channels, to their channels, and empties the list. In nvme_channel.c. */
void kvr_nvme_finish(struct kvr_nvme_work *work, struct kvr_list *finished);

#endif

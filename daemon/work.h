/* SPDX-License-Identifier: Apache-2.0 */
/* work.h: jobs on their way through the device.
 *
 * A work is a job with room for its items. There is a fixed number; who finds none waits. A request
 * or a seal with more lanes than one work holds goes through in several rounds.
 *
 * Threads: the core thread's; between submit and reap the items are the device's (D1). */
#ifndef KVR_DAEMON_WORK_H
#define KVR_DAEMON_WORK_H

#include "base/list.h"
#include "daemon/waiter.h"
#include "kernels/device.h"

#define KVR_WORK_ITEMS_MAX 512u
#define KVR_WORKS_MAX      64u /* of requests: 64 x 512 lanes */
#define KVR_SEAL_WORKS_MAX 8u  /* of seals */
#define KVR_FILL_WORKS_MAX \
	32u /* of clusters that were read: apart, for requests keep theirs meanwhile */

struct kvr_works;

struct kvr_work {
	struct kvr_job job;
	struct kvr_list link; /* free */
	struct kvr_works *pool;
	void (*done)(struct kvr_work *work); /* on the core thread, after the job was reaped */
	void *owner;
	struct kvr_waiter waiter;        /* the owner's, for when it waits with a work in hand */
	uint32_t first_item, first_head; /* where the round that it carries begins in its request */
	uint64_t stamp;                  /* of the pool at its last submit, while it runs; else 0 */
	union {
		struct kvr_append_item append[KVR_WORK_ITEMS_MAX];
		struct kvr_cluster_item cluster[KVR_WORK_ITEMS_MAX];
		struct kvr_recall_item recall[KVR_WORK_ITEMS_MAX];
		struct kvr_fetch_item fetch[KVR_WORK_ITEMS_MAX];
		struct kvr_copy_item copy[KVR_WORK_ITEMS_MAX];
		struct kvr_fill_item fill[KVR_WORK_ITEMS_MAX];
		struct kvr_attend_item attend[KVR_WORK_ITEMS_MAX];
	} items;
};

struct kvr_works {
	struct kvr_device *device; /* borrowed */
	struct kvr_work *entries;
	struct kvr_list free;
	struct kvr_list waiters;
	uint32_t count, running;
	uint64_t stamp; /* works ever submitted */
};

/* Errors: -ENOMEM. */
int kvr_works_open(struct kvr_works *works, struct kvr_device *device, uint32_t count);
void kvr_works_close(struct kvr_works *works);

/* A free work, or NULL: wait on works->waiters. */
struct kvr_work *kvr_work_take(struct kvr_works *works);

/* Gives it back. Who waits for one is served by kvr_works_serve: handlers do not run inside others. */
void kvr_work_give(struct kvr_work *work);

/* Wakes waiters in order while a work is free: one at a time, so that a work given back costs one
 * attempt and not as many as there are waiters. */
void kvr_works_serve(struct kvr_works *works);

/* Starts the job over the first item_count items. `done` is called later, never from inside. */
void kvr_work_submit(struct kvr_work *work, enum kvr_job_kind kind, uint32_t item_count,
	bool urgent, void (*done)(struct kvr_work *), void *owner);

/* The stamp of the oldest work that runs; UINT64_MAX: none does. */
uint64_t kvr_works_oldest(const struct kvr_works *works);

/* Calls `done` of every job that is finished. */
void kvr_works_reap(struct kvr_device *device);

#endif

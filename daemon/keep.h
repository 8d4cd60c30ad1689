/* SPDX-License-Identifier: Apache-2.0 */
/* keep.h: sealed segments on their way into the store, and what the store is told about those that are there.
 *
 *             kvr_keep_put          a job is free          done
 *   READY ─────────────────► queued ─────────────► PUTTING ─────► YES, or TWIN
 *                               ▲                      │ failed: no slabs, quota, budget, disk
 *                               └─── later ◄───────────┘ NONE: tried again every KVR_KEEP_RETRY_MS
 *
 * Parents go before their children; a child whose parent is not in the store waits with it. Last uses and pins are
 * told in batches; they may lag by KVR_KEEP_TICK_MS, and last uses may be lost.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_KEEP_H
#define KVR_DAEMON_KEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "tiers/store.h"

struct kvr_daemon;
struct kvr_directory;
struct kvr_segment;

#define KVR_KEEP_JOBS_MAX 16u /* puts in the store's hands at once */
#define KVR_KEEP_RETRY_MS 1000u
#define KVR_KEEP_TICK_MS  500u

struct kvr_keep_put {
	struct kvr_store_job job;
	struct kvr_slab_model model;
	struct kvr_list link; /* free */
	uint32_t segment;
};

struct kvr_keep {
	struct kvr_keep_put *puts; /* KVR_KEEP_JOBS_MAX */
	struct kvr_list free;
	struct kvr_list queue, later; /* of segments, by keep_link */
	struct kvr_list changed; /* of segments that are YES, likewise: the store shall be told */
	bool settled;            /* puts have ended: waiters are to be woken */
	struct kvr_list waiters; /* calls that wait until what they name is durable */
	uint32_t running, marks_running;
	uint64_t retry_ns, tick_ns;
	uint64_t failed_count;
	int last_error; /* of a put; 0 after a good one */
	int said_error; /* of a put, in the log, and when */
	uint64_t said_ns;
	struct kvr_store_mark *bad; /* segments that could not be loaded: to be quarantined */
};

/* Errors: -ENOMEM. */
int kvr_keep_open(struct kvr_keep *keep);
void kvr_keep_close(struct kvr_keep *keep);

/* A READY segment shall be stored. */
void kvr_keep_put(struct kvr_daemon *daemon, uint32_t segment);

/* Whether a segment and all before it are durable: 0, -EINPROGRESS (wait on keep->waiters), or why not. */
int kvr_keep_status(const struct kvr_directory *directory, uint32_t segment);

/* What helps against the status of a put, for people. */
const char *kvr_keep_remedy(int error);

/* Something about a stored segment changed that the store should know: its last use, or its flags. */
void kvr_keep_mark(struct kvr_keep *keep, struct kvr_segment *segment);

/* Tells the store now: a drop that is submitted behind it finds pins as they are. */
void kvr_keep_flush(struct kvr_daemon *daemon);

/* A segment of the store that could not be loaded: no match goes into it from now on. */
void kvr_keep_quarantine(struct kvr_keep *keep, uint64_t id);

/* Whether a job is of a put: also the DROP of a damaged segment that was in its way. */
bool kvr_keep_owns(const struct kvr_keep *keep, const struct kvr_store_job *job);

/* Takes a finished PUT or MARK, or a DROP of ours. */
void kvr_keep_done(struct kvr_daemon *daemon, struct kvr_store_job *job);

/* Starts what may start: at the end of every round. */
void kvr_keep_settle(struct kvr_daemon *daemon);

/* Whether segments are on their way into the store: memory may be free when they are there; wait on the cache's waiters. */
bool kvr_keep_putting(const struct kvr_keep *keep);

/* Whether something is under way or about to be: the daemon ends when nothing is. */
bool kvr_keep_busy(const struct kvr_keep *keep);

/* How long the loop may sleep; -1: for ever. */
int kvr_keep_wait_ms(const struct kvr_keep *keep);

#endif

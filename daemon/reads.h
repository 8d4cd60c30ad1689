/* SPDX-License-Identifier: Apache-2.0 */
/* reads.h: spans of stored segments on their way from NVMe into the daemon's read memory.
 *
 * A read is a batch of spans with one buffer and one end. What the bytes are, and whether they are what was
 * written, is its owner's affair (daemon/stage.h, daemon/fetch.c): here a span is a part of a segment's stream (tiers/slab.h).
 *
 *            take, add ...        submit            reap
 *   FREE ─────────────────► open ───────► reading ───────► done ──► give ──► FREE
 *
 * Invariants:
 *   E1  Spans of one read lie one behind the other in its buffer, each at an address that the disk can write to.
 *   E2  A read is given back once; its buffer belongs to the tier while it is reading.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_READS_H
#define KVR_DAEMON_READS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "daemon/waiter.h"
#include "tiers/arena.h"
#include "tiers/tier.h"

#define KVR_READS_MAX      256u
#define KVR_READ_SPANS_MAX 160u
#define KVR_READ_IOS_MAX   256u       /* a span that crosses slabs needs one more for each */
#define KVR_READ_BYTES     (1u << 20) /* what a batch should come to; a longer span comes alone */

struct kvr_segment;
struct kvr_reads;

struct kvr_read_span {
	const struct kvr_segment *segment;
	uint64_t at; /* in the stream */
	uint32_t bytes;
	uint8_t *memory;
	int status; /* of its worst transfer */
};

struct kvr_read {
	struct kvr_list link; /* free */
	struct kvr_reads *reads;
	uint8_t *buffer;
	size_t buffer_bytes, used_bytes;
	struct kvr_read_span spans[KVR_READ_SPANS_MAX];
	struct kvr_tier_io ios[KVR_READ_IOS_MAX];
	uint8_t span_of_io[KVR_READ_IOS_MAX];
	struct kvr_tier_io *order[KVR_READ_IOS_MAX]; /* as the tier wants them */
	uint32_t span_count, io_count, io_sent, io_done;
	void (*done)(struct kvr_read *read);
	/* The owner's. */
	void *owner;
	uint32_t first, count, cluster;
	uint8_t *scratch;
	struct kvr_waiter waiter;
};

struct kvr_reads {
	struct kvr_tier *tier; /* borrowed: the store's, for this thread; NULL: there is no store */
	struct kvr_arena *arena; /* borrowed: memory that the disk writes to */
	struct kvr_read *entries;
	struct kvr_list free, unsent, waiters;
	uint32_t running; /* taken and not given back */
	uint32_t alignment;
	uint64_t read_count, read_bytes;
};

/* Errors: -ENOMEM. */
int kvr_reads_open(struct kvr_reads *reads, struct kvr_tier *tier, struct kvr_arena *arena);
void kvr_reads_close(struct kvr_reads *reads);

/* A read with room for spans of `bytes` in all, or NULL: wait on reads->waiters. */
struct kvr_read *kvr_read_take(struct kvr_reads *reads, size_t bytes);

/* What one more span of so many bytes needs of a buffer, whatever its alignment. */
size_t kvr_read_room(const struct kvr_reads *reads, uint32_t bytes);

/* Whether it fits, by count. */
bool kvr_read_fits(const struct kvr_read *read, uint64_t at, uint32_t bytes);

/* Adds a span: `at` and `bytes` are multiples of the alignment. Returns where it will lie. */
uint8_t *kvr_read_add(
	struct kvr_read *read, const struct kvr_segment *segment, uint64_t at, uint32_t bytes);

/* The rest of the buffer, 64-byte aligned, for the owner's own use; NULL: too little is left. */
void *kvr_read_scratch(struct kvr_read *read, size_t bytes);

/* Starts it; `done` is called from reap. */
void kvr_read_submit(struct kvr_read *read, enum kvr_tier_priority priority, uint32_t flow,
	void (*done)(struct kvr_read *));

void kvr_read_give(struct kvr_read *read);

/* Takes what the tier has finished and calls `done` of every read that is complete. */
void kvr_reads_reap(struct kvr_reads *reads);

#endif

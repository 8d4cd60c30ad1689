/* SPDX-License-Identifier: Apache-2.0 */
/* tier.h: where clusters live. One interface for GPU memory, host RAM and NVMe.
 *
 * A tier is a bounded space with places in it. A place holds the payload of one cluster (K rows, then
 * V rows); the places of a segment form a group, are taken at once and mostly dropped at once. A tier does not know
 * what is worth keeping (tiers/policy.h), which cluster lies where (the segment's owner keeps the
 * places), or what the bytes mean.
 *
 *              reserve                write (in place, or KVR_TIER_WRITE)
 *   free ─────────────────► reserved ───────────────────────────────────► filled ──┐
 *     ▲                        │                                            │ read │
 *     └────────────────────────┴───────────── release, drop ◄───────────────┘◄─────┘
 *
 * Host and GPU memory are addressable: kvr_tier_address gives a pointer that the device's kernels
 * use directly. NVMe is not: its bytes move with READ and WRITE. Both kinds serve READ and WRITE, so
 * that one suite of tests holds for all (tests/tiers/conformance.c).
 *
 * Invariants:
 *   T1  Places never overlap; the sum of their bytes never exceeds the capacity.
 *   T2  reserve gives all places asked for or none.
 *   T3  What was written to a place is read from it, bit for bit, or the read fails; it never
 *       returns other bytes with status 0.
 *   T4  Between submit and reap an io and its buffer belong to the tier; each io is reaped once.
 *   T5  release of a place with an io in flight is an error of the caller (asserted).
 *
 * Threads: all functions are called by one thread, the tier's owner. None blocks. */
#ifndef KVR_TIERS_TIER_H
#define KVR_TIERS_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"
#include "base/span.h"

struct kvr_tier;

/* Where a cluster lies in a tier. What `offset` means is the tier's own business. */
struct kvr_place {
	uint64_t offset;
	uint32_t bytes;
	uint32_t reserved; /* 0 */
};

enum kvr_tier_op {
	KVR_TIER_READ,  /* place -> buffer */
	KVR_TIER_WRITE, /* buffer -> place */
	KVR_TIER_SYNC,  /* everything written and reaped before is durable; no place, no buffer */
};

/* Whose transfers go first, where there is a queue. */
enum kvr_tier_priority {
	KVR_TIER_NORMAL, /* loads, read back, writes */
	KVR_TIER_URGENT, /* a recall waits for it */
	KVR_TIER_LATER,  /* nobody waits yet: prefetch, verification */
	KVR_TIER_PRIORITIES,
};

struct kvr_tier_io {
	/* Set by the submitter. */
	enum kvr_tier_op op;
	enum kvr_tier_priority priority;
	uint32_t flow; /* transfers of one request; requests share a tier evenly */
	struct kvr_place place;
	struct kvr_span buffer; /* of place.bytes; aligned as kvr_tier_stat.alignment says */
	void *owner;            /* the submitter's */
	/* Out: 0, -EIO, -ENOSPC. */
	int status;
	/* The tier's own between submit and reap. */
	struct kvr_list link;
	uint32_t channel;
	uint32_t done_bytes;
};

struct kvr_tier_stat {
	uint64_t capacity_bytes;
	uint64_t reserved_bytes; /* sum of the places' bytes as asked for */
	uint64_t used_bytes;     /* what they really take; waste = 1 - reserved / used */
	uint64_t place_count;
	uint64_t read_count, read_bytes;
	uint64_t write_count, write_bytes;
	uint64_t error_count;
	uint32_t alignment; /* of offsets inside buffers, 1 where there is no constraint */
	bool addressable;
	bool durable; /* what was synced is there after a restart */
};

/* Finds room for `count` places of `bytes[i]` each (1 or more), all of group `group`. Returns 0, or
 * -ENOSPC (nothing changed: evict and try again). */
int kvr_tier_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes, uint32_t count,
	struct kvr_place *ret_places);

/* Gives places of one group back. */
void kvr_tier_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count);

/* The memory of a place, 64-byte aligned, or NULL where the tier is not addressable. Valid until the place is
 * released. */
uint8_t *kvr_tier_address(struct kvr_tier *tier, struct kvr_place place);

/* Starts `count` transfers. Returns how many were taken, in order; fewer means full: reap first. */
uint32_t kvr_tier_submit(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count);

/* Takes up to `max` finished transfers. Returns how many. */
uint32_t kvr_tier_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max);

/* Readable while reap has something to return; -1 for a tier whose submit finishes at once. */
int kvr_tier_fd(const struct kvr_tier *tier);

void kvr_tier_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat);

/* Ends the tier; nothing may be in flight. Takes NULL; returns NULL. */
struct kvr_tier *kvr_tier_close(struct kvr_tier *tier);

/* For implementers: a tier is a struct that begins with this one. */
struct kvr_tier_ops {
	const char *name;
	int (*reserve)(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes, uint32_t count,
		struct kvr_place *ret_places);
	void (*release)(struct kvr_tier *tier, uint32_t group, const struct kvr_place *places,
		uint32_t count);
	uint8_t *(*address)(struct kvr_tier *tier, struct kvr_place place);
	uint32_t (*submit)(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count);
	uint32_t (*reap)(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max);
	int (*fd)(const struct kvr_tier *tier);
	void (*stat)(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat);
	void (*close)(struct kvr_tier *tier);
};

struct kvr_tier {
	const struct kvr_tier_ops *ops;
};

#endif

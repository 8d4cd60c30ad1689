/* SPDX-License-Identifier: Apache-2.0 */
/* cache.h: which units of stored segments, clusters and merged sets, are in host memory, and which of them go first.
 *
 * A unit of a segment that is in the store is a copy here: it comes when it was sealed or read, is touched by the
 * recalls that take it, and goes by policy (tiers/policy.h). It also places the payload of segments that are only
 * here: those are no entries and stay. It knows neither requests nor the store.
 *
 *              place (sealed), insert (read)         demote: extent NULL
 *   not here ─────────────────────────────► here ─────────────────────────► limbo ──► free
 *                                             ▲ touch                         when every job that may have seen
 *                                             └─┘                             the extent has been reaped (S6)
 *
 * Invariants:
 *   K1  An extent that is set and neither LOST nor of a segment that is only here has an entry, and an entry has one.
 *   K2  Memory in limbo is read by nobody who looks at the extent from now on.
 *   K3  kept_bytes is the sum of what entries weigh; limbo_bytes of what waits.
 *
 * Threads: the core thread's; what extents point at is read by device workers. */
#ifndef KVR_DAEMON_CACHE_H
#define KVR_DAEMON_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "kernels/segment.h"
#include "tiers/arena.h"
#include "tiers/policy.h"
#include "tiers/tier.h"

struct kvr_segment;
struct kvr_works;

#define KVR_CACHE_NONE UINT32_MAX

struct kvr_cache_owner {
	uint32_t segment; /* links free entries */
	uint16_t lane, unit;
};

struct kvr_cache_limbo {
	struct kvr_place place;
	uint64_t stamp; /* the last work that may read it */
};

struct kvr_cache {
	struct kvr_arena *arena;       /* borrowed */
	struct kvr_tier *host;         /* borrowed */
	struct kvr_segment *segments;  /* borrowed: the directory's */
	const struct kvr_works *works; /* borrowed: those that read extents */
	struct kvr_policy policy;
	struct kvr_policy_entry *entries;
	struct kvr_policy_ghost *ghosts;
	struct kvr_cache_owner *owners;
	uint32_t entry_max, entry_free,
		entry_fresh; /* fresh ones have never been used: their pages are not touched */
	struct kvr_cache_limbo *limbo; /* ring of limbo_max */
	uint32_t limbo_max, limbo_first, limbo_count;
	struct kvr_place *places; /* one lane's, scratch */
	uint32_t *place_bytes;
	struct kvr_list waiters; /* for limbo to become free */
	/* Counters. */
	uint64_t kept_bytes, kept_count, limbo_bytes;
	uint64_t hit_count, hit_bytes, miss_count, miss_bytes; /* units that recalls took */
	uint64_t admitted_bytes, demoted_bytes, declined_bytes;
};

/* `cached`: there is a store below, so that units come and go. Errors: -ENOMEM. */
int kvr_cache_open(struct kvr_cache *cache, enum kvr_policy_kind policy, bool cached,
	struct kvr_arena *arena, struct kvr_tier *host, const struct kvr_works *works);
void kvr_cache_close(struct kvr_cache *cache);

/* Reserves places for the units of a segment's lanes from *lane on, and sets the extents. Errors: -ENOSPC for
 * lane *lane: make room and call again, or release the segment. */
int kvr_cache_place(struct kvr_cache *cache, uint32_t segment, uint32_t *lane);

/* Frees whatever units of a segment are here. Nobody reads them. */
void kvr_cache_release(struct kvr_cache *cache, uint32_t segment);

/* A placed segment is in the store now: its units become entries. */
void kvr_cache_adopt(struct kvr_cache *cache, uint32_t segment);

/* Memory for a unit that is being read, or NULL: there is no room that may be made, or the policy does not want it. */
uint8_t *kvr_cache_reserve(struct kvr_cache *cache, uint32_t segment, uint32_t lane, uint32_t unit);

/* The reserved memory is filled: from now on the unit is here, unless it is already. */
void kvr_cache_insert(
	struct kvr_cache *cache, uint32_t segment, uint32_t lane, uint32_t unit, uint8_t *memory);

/* Gives reserved memory back. */
void kvr_cache_cancel(
	struct kvr_cache *cache, uint32_t segment, uint32_t lane, uint32_t unit, uint8_t *memory);

/* A round of a recall takes so many bytes of units; told before it touches them. */
void kvr_cache_advance(struct kvr_cache *cache, uint64_t bytes);

/* A recall took it; whether it was here. */
void kvr_cache_touch(struct kvr_cache *cache, uint32_t segment, uint32_t lane, uint32_t unit,
	float share, bool hit);

/* What is kept to know which units are here. */
uint64_t kvr_cache_metadata_bytes(const struct kvr_cache *cache);

/* Lets one unit go by policy. False: none may. */
bool kvr_cache_demote(struct kvr_cache *cache);

/* Frees what limbo holds that nobody can read any more, wakes waiters, and demotes a few units if little is free. */
void kvr_cache_settle(struct kvr_cache *cache);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* directory.h: which segments there are, what they hang on, and which may go.
 *
 * Segments of a (tenant, model) form a forest: a segment's parent holds the tokens before it. The
 * directory finds them by chain hash, matches prompts against the forest, owns their memory (summary
 * and token ids from the arena, payloads from the host tier) and evicts whole segments when the arena
 * is full. It does not cluster (daemon/seal.h) and knows no sequences.
 *
 *            begin              place              publish
 *   FREE ───────────► BUILDING ───────► BUILDING ───────────► READY
 *     ▲                  │   summary       extents              │ no lease, pin or child:
 *     └──── remove ◄─────┴───────────────────────────────◄──────┘ evict, drop
 *
 * Invariants:
 *   G1  A chain hash names at most one segment. Equal hashes with other token ids never match: ids
 *       are compared.
 *   G2  A segment with a lease, a pin, a child or a build under way is not removed.
 *   G3  A parent is READY; it holds a count of its children.
 *   G4  A tenant's held_bytes is the sum of what alloc and place have given on its account.
 *   G5  What a READY segment's view points at neither moves nor changes until it is removed.
 *   G6  removable_count counts what G2 lets go, of all and of each tenant: where it is 0, nobody searches
 *       the policy's queues in vain, at every append while memory is full.
 *
 * Threads: the core thread's. Views of leased segments are read by device workers. */
#ifndef KVR_DAEMON_DIRECTORY_H
#define KVR_DAEMON_DIRECTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "daemon/model.h"
#include "kernels/segment.h"
#include "tiers/arena.h"
#include "tiers/policy.h"
#include "tiers/tier.h"

#define KVR_SEGMENT_NONE UINT32_MAX

enum kvr_segment_state {
	KVR_SEGMENT_FREE,
	KVR_SEGMENT_BUILDING,
	KVR_SEGMENT_READY,
};

struct kvr_segment {
	enum kvr_segment_state state;
	uint8_t hash[KVR_HASH_BYTES];
	struct kvr_segment_view view;
	struct kvr_model *model;
	uint32_t parent; /* KVR_SEGMENT_NONE: first of its sequence */
	uint32_t child_first;
	uint32_t sibling_next, sibling_prev;
	uint32_t hash_next; /* also links free slots */
	uint32_t leases;    /* by open sequences */
	bool pinned;
	uint32_t *tokens;    /* [view.token_count] ids, behind the summary */
	uint8_t *memory;     /* summary and ids */
	size_t memory_bytes; /* of both */
	uint64_t payload_bytes;
	struct kvr_list waiters; /* seals of other sequences that wait for this build */
};

struct kvr_directory {
	struct kvr_segment *segments; /* KVR_SEGMENTS_MAX */
	uint32_t *buckets;            /* by chain hash */
	uint32_t *stack;              /* KVR_SEGMENTS_MAX, for walks through the forest */
	struct kvr_place *places;     /* one lane's, scratch */
	uint32_t *place_bytes;
	uint32_t free_first;
	struct kvr_arena *arena; /* borrowed */
	struct kvr_tier *host;   /* borrowed */
	struct kvr_policy policy;
	struct kvr_policy_entry *policy_entries;
	struct kvr_policy_ghost *policy_ghosts;
	/* Counters. */
	uint32_t ready_count, removable_count;
	uint64_t payload_bytes, memory_bytes; /* of READY segments */
	uint64_t evicted_count, evicted_bytes;
	uint64_t matched_tokens, asked_tokens;
};

/* Errors: -ENOMEM. */
int kvr_directory_open(struct kvr_directory *directory, enum kvr_policy_kind policy,
	struct kvr_arena *arena, struct kvr_tier *host);
void kvr_directory_close(struct kvr_directory *directory);

/* ---- memory, with eviction ------------------------------------------------------------------- */

/* Arena memory on a tenant's account; evicts what may go if it must. NULL, with *ret_error set to
 * -EDQUOT (the tenant's quota) or -ENOSPC (nothing may go). */
void *kvr_directory_alloc(
	struct kvr_directory *directory, struct kvr_tenant *tenant, size_t bytes, int *ret_error);
void kvr_directory_free(
	struct kvr_directory *directory, struct kvr_tenant *tenant, void *memory, size_t bytes);

/* ---- finding --------------------------------------------------------------------------------- */

/* The name of the segment that follows `parent` (or starts a sequence) with these token ids:
 * BLAKE2b-256 keyed by the tenant's salt over model identity, parent's hash (zeros for none), ids. */
void kvr_directory_hash(const struct kvr_directory *directory, const struct kvr_model *model,
	uint32_t parent, const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES]);

/* The segment of this name whose ids are these, READY or BUILDING, or KVR_SEGMENT_NONE (G1). */
uint32_t kvr_directory_find(const struct kvr_directory *directory, const struct kvr_model *model,
	uint32_t parent, const uint8_t hash[KVR_HASH_BYTES], const uint32_t *tokens,
	uint32_t count);

/* The tenant's READY segment of this name, or KVR_SEGMENT_NONE. */
uint32_t kvr_directory_find_hash(const struct kvr_directory *directory,
	const struct kvr_tenant *tenant, const uint8_t hash[KVR_HASH_BYTES]);

/* The last segment of the longest chain of READY segments that the ids start with, or
 * KVR_SEGMENT_NONE. Ids are compared; children of every length are tried. Reads each id of the
 * prompt from `tokens` once per segment compared, so it may lie in a client's region. */
uint32_t kvr_directory_match(struct kvr_directory *directory, const struct kvr_model *model,
	const uint32_t *tokens, uint32_t count);

/* ---- building -------------------------------------------------------------------------------- */

/* Adds a BUILDING segment with memory for summary and ids (copied). Its parent stays until it goes.
 * Errors: -ENOSPC, -EDQUOT. */
int kvr_directory_begin(struct kvr_directory *directory, struct kvr_model *model, uint32_t parent,
	const uint8_t hash[KVR_HASH_BYTES], const uint32_t *tokens, uint32_t count,
	uint32_t *ret_segment);

/* Reserves places for all clusters, whose sizes the view now has, and sets the extents.
 * Errors: -ENOSPC, -EDQUOT; nothing is then held. */
int kvr_directory_place(struct kvr_directory *directory, uint32_t segment);

/* BUILDING -> READY: others match it from now on. */
void kvr_directory_publish(struct kvr_directory *directory, uint32_t segment);

/* Frees a segment that G2 lets go, or a BUILDING one whose build has failed. */
void kvr_directory_remove(struct kvr_directory *directory, uint32_t segment);

/* ---- keeping --------------------------------------------------------------------------------- */

void kvr_directory_lease(struct kvr_directory *directory, uint32_t segment);
void kvr_directory_unlease(struct kvr_directory *directory, uint32_t segment);

/* Pins or unpins a segment and all before it. Returns how many changed. */
uint32_t kvr_directory_pin(struct kvr_directory *directory, uint32_t segment, bool pin);

struct kvr_dropped_count {
	uint32_t segment_count;
	uint64_t freed_bytes;
	uint32_t kept_count;
};

/* Removes a segment and all that follow it, but for those that G2 keeps. */
void kvr_directory_drop(
	struct kvr_directory *directory, uint32_t segment, struct kvr_dropped_count *ret_dropped);

/* The same for every segment of a model. */
void kvr_directory_drop_model(struct kvr_directory *directory, struct kvr_model *model,
	struct kvr_dropped_count *ret_dropped);

#endif

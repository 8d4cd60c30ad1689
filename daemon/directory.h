/* SPDX-License-Identifier: Apache-2.0 */
/* directory.h: which segments are in memory, what they hang on, and which may go.
 *
 * Segments of a (tenant, model) form a forest: a segment's parent holds the tokens before it. The
 * directory finds them by chain hash, matches prompts against the forest and owns their summaries and token
 * ids; which of their clusters are in host memory is the cache's affair (daemon/cache.h). It does not
 * cluster (daemon/seal.h), load or store (daemon/find.h, daemon/keep.h), and knows no sequences.
 *
 *            begin              place              publish
 *   FREE ───────────► BUILDING ───────► BUILDING ───────────► READY
 *     ▲                  │   summary:      extents              │ no lease, pin or child:
 *     │                  │   clustered or loaded                │ evict, drop
 *     └──── remove ◄─────┴───────────────────────────────◄──────┘
 *
 * With a store below (tiers/store.h) a READY segment is durable or on its way:
 *
 *             put                  done
 *   NONE ───────────► PUTTING ───────────► YES     its clusters in memory are copies now, and are
 *     ▲                  │  │                      demoted one by one; evicting it forgets it
 *     └── failed ◄───────┘  └──────────► TWIN      durable already, as the store has it: in memory
 *                                                  until nobody uses it
 *
 * Invariants:
 *   G1  A chain hash names at most one segment. Equal hashes with other token ids never match: ids
 *       are compared.
 *   G2  A segment with a lease, a pin, a child, a build or a put under way is not removed.
 *   G3  A parent is READY; it holds a count of its children.
 *   G4  A tenant's held_bytes is the sum of what alloc and place have given on its account. Payload that is
 *       durable is not on it: it can go at any time.
 *   G5  What a READY segment's view points at neither moves nor changes until it is removed, but for its
 *       extents.
 *   G6  removable_count counts what G2 lets go, of all and of each tenant: where it is 0, nobody searches
 *       the policy's queues in vain, at every append while memory is full.
 *   G7  A segment that is YES or TWIN has a hold in the store while it has a lease or a pin.
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

struct kvr_cache;
struct kvr_keep;
struct kvr_store;

enum kvr_segment_state {
	KVR_SEGMENT_FREE,
	KVR_SEGMENT_BUILDING,
	KVR_SEGMENT_READY,
};

enum kvr_segment_stored {
	KVR_STORED_NONE,
	KVR_STORED_PUTTING,
	KVR_STORED_YES,
	KVR_STORED_TWIN,
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
	bool pin_changed; /* since the store was told */
	bool quarantined; /* some of it could not be read: no match goes into or past it */
	bool placed; /* its payload was placed by kvr_directory_place, on the tenant's account */
	uint32_t *tokens;        /* [view.token_count] ids, behind the summary */
	uint8_t *memory;         /* summary, extents, ids and what follows */
	size_t memory_bytes;     /* of all that */
	uint64_t payload_bytes;  /* of all units: keys and values, and merged sets */
	struct kvr_list waiters; /* seals and opens of other sequences that wait for this build */
	/* With a store. */
	enum kvr_segment_stored stored;
	int store_error;    /* why it is NONE: the status of its last put; 0 before one */
	bool parent_leased; /* by its put */
	bool gone; /* the store has let go of it, and something in memory hangs on it: no lease any more */
	uint64_t id;         /* in the store; 0 unless YES or TWIN */
	uint64_t kept_bytes; /* of a YES one's keys and values, in memory */
	uint32_t id_next;    /* in the directory's table of ids */
	uint32_t *parts;     /* its slabs, in stream order */
	uint32_t *crcs;      /* [lane][unit_count] */
	uint32_t
		*entries; /* [lane][unit_count]: the cache's number for a unit, or KVR_CACHE_NONE */
	struct kvr_list keep_link; /* daemon/keep.h: waits for its put */
};

struct kvr_directory {
	struct kvr_segment *segments; /* KVR_SEGMENTS_MAX */
	uint32_t *buckets;            /* by chain hash */
	uint32_t *id_buckets;         /* by id in the store */
	uint32_t *stack;              /* KVR_SEGMENTS_MAX, for walks through the forest */
	uint32_t free_first;
	struct kvr_arena *arena; /* borrowed */
	struct kvr_cache *cache; /* borrowed */
	struct kvr_store *store; /* borrowed; NULL: none */
	struct kvr_keep *keep;   /* borrowed: told of last uses and pins */
	struct kvr_policy policy;
	struct kvr_policy_entry *policy_entries;
	struct kvr_policy_ghost *policy_ghosts;
	/* Counters. */
	uint32_t ready_count, removable_count;
	uint64_t payload_bytes, memory_bytes; /* of READY segments */
	uint64_t idle_bytes; /* memory_bytes of those that may go and are in the store */
	uint64_t evicted_count, evicted_bytes;
	uint64_t matched_tokens, asked_tokens;
};

/* Errors: -ENOMEM. */
int kvr_directory_open(struct kvr_directory *directory, enum kvr_policy_kind policy,
	struct kvr_arena *arena, struct kvr_cache *cache, struct kvr_store *store,
	struct kvr_keep *keep);
void kvr_directory_close(struct kvr_directory *directory);

/* ---- memory, with eviction ------------------------------------------------------------------- */

/* Arena memory on a tenant's account; evicts what may go if it must. NULL, with *ret_error set to
 * -EDQUOT (the tenant's quota), -ENOSPC (nothing may go) or -EAGAIN (clusters are on their way out: wait on the
 * cache's waiters). */
void *kvr_directory_alloc(
	struct kvr_directory *directory, struct kvr_tenant *tenant, size_t bytes, int *ret_error);
void kvr_directory_free(
	struct kvr_directory *directory, struct kvr_tenant *tenant, void *memory, size_t bytes);

/* ---- finding --------------------------------------------------------------------------------- */

/* The name of the segment that follows `parent` (or starts a sequence) with these token ids
 * (kvr_model_name). */
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

/* Tokens up to the end of a segment; 0 for KVR_SEGMENT_NONE. */
static inline uint32_t kvr_directory_end(const struct kvr_directory *directory, uint32_t segment)
{
	const struct kvr_segment_view *view = &directory->segments[segment].view;

	return segment == KVR_SEGMENT_NONE ? 0 : view->token_first + view->token_count;
}

/* Keys and values of a segment's tokens; what is told as stored. Merged sets are made of them, and not counted. */
static inline uint64_t kvr_directory_token_bytes(const struct kvr_segment *segment)
{
	return segment->view.token_count *
	       (uint64_t)kvr_geometry_token_bytes(segment->view.geometry);
}

/* ---- building -------------------------------------------------------------------------------- */

/* Makes room for whoever needs some: demotes a cluster or removes a segment. Returns whether there was one; what it
 * held may be free only when running jobs have ended. */
bool kvr_directory_make_room(struct kvr_directory *directory);

/* Adds a BUILDING segment with memory for summary and ids (copied; NULL: to be loaded). Its parent stays
 * until it goes. Errors: -ENOSPC, -EDQUOT, -EAGAIN. */
int kvr_directory_begin(struct kvr_directory *directory, struct kvr_model *model, uint32_t parent,
	const uint8_t hash[KVR_HASH_BYTES], const uint32_t *tokens, uint32_t count,
	uint32_t *ret_segment);

/* Reserves places for all units, whose sizes the view now has, and sets the extents.
 * Errors: -ENOSPC, -EDQUOT, -EAGAIN; nothing is then held. */
int kvr_directory_place(struct kvr_directory *directory, uint32_t segment);

/* BUILDING -> READY: others match it from now on. */
void kvr_directory_publish(struct kvr_directory *directory, uint32_t segment);

/* The segment, BUILDING or READY, is in the store under `id`, with a hold that is the directory's now. Its clusters in
 * memory become the cache's. */
void kvr_directory_stored(struct kvr_directory *directory, uint32_t segment, uint64_t id);

/* The store has a segment of this name already, `id`, with a hold that is the directory's now: durable, in an order of rows
 * that need not be ours. */
void kvr_directory_twin(struct kvr_directory *directory, uint32_t segment, uint64_t id);

/* Puts begin and end for G2's sake. */
void kvr_directory_putting(struct kvr_directory *directory, uint32_t segment, bool putting);

/* The segment of this id, or KVR_SEGMENT_NONE. */
uint32_t kvr_directory_find_id(const struct kvr_directory *directory, uint64_t id);

/* Frees a segment that G2 lets go, or a BUILDING one whose build has failed. */
void kvr_directory_remove(struct kvr_directory *directory, uint32_t segment);

/* Whether G2 lets a segment go. */
static inline bool kvr_directory_idle(const struct kvr_directory *directory, uint32_t index)
{
	const struct kvr_segment *segment = &directory->segments[index];

	return segment->state == KVR_SEGMENT_READY && segment->leases == 0 && !segment->pinned &&
	       segment->child_first == KVR_SEGMENT_NONE && segment->stored != KVR_STORED_PUTTING;
}

/* Removes a READY segment if G2 lets it go. */
bool kvr_directory_forget(struct kvr_directory *directory, uint32_t segment);

/* Takes note of what the store has evicted or dropped: it goes from memory too. */
void kvr_directory_gone(struct kvr_directory *directory);

/* ---- keeping --------------------------------------------------------------------------------- */

/* False: the store has let go of it meanwhile; it is removed, or will be when its children are. */
bool kvr_directory_lease(struct kvr_directory *directory, uint32_t segment);
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

/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h: what to evict, as pure functions over arrays: no memory, no clock, no I/O.
 *
 * Entries are numbered 0 .. entry_max - 1; the caller knows what they stand for (segments now,
 * clusters once there is a lower tier) and how many units (bytes, tokens) each weighs.
 *
 *   S3-FIFO: a small FIFO (a quarter of the weight) for newcomers, a main FIFO for what was used there,
 *   and a ghost of the names that the small one evicted; a counter of 0 to 3 uses per entry.
 *
 *                    known to the ghost
 *          admit ──────────────────────────────────────►┌──────────────┐
 *            │            ┌───────┐    used: to main    │     main     │──► evicted
 *            └───────────►│ small │────────────────────►│              │
 *                         └───┬───┘                     └──▲────────┬──┘
 *                             ▼ evicted, name to the ghost └────────┘ used: another round, counter - 1
 *
 *   LRU: one list, in `main`.
 *
 * An entry that may not go when its turn comes (it is in use) goes another round.
 *
 * Invariants:
 *   P1  An entry is in at most one of small, main; `count` and `weight` of a queue are those of the
 *       entries in it.
 *   P2  Every loop ends: evict looks at each resident entry at most 8 times; admit, touch and remove
 *       look at no other entry than their own and its neighbours.
 *
 * Threads: the caller's. Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP
 * 2023, algorithm 1. Deviations: queues are measured by weight. The small one has a quarter, not a
 * tenth, and one use there is enough for main: the turns of a chat come back later than the paper's
 * objects (docs/DECISIONS.md). The ghost is a set-associative table with the age of each name. */
#ifndef KVR_TIERS_POLICY_H
#define KVR_TIERS_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kvr_policy_kind {
	KVR_POLICY_S3FIFO = 1,
	KVR_POLICY_LRU = 2,
};

#define KVR_POLICY_NONE      UINT32_MAX
#define KVR_POLICY_GHOST_MIN 4u

struct kvr_policy_entry {
	uint64_t name; /* identity that outlives the number: the ghost remembers it */
	uint64_t weight;
	uint32_t next, prev;
	uint8_t queue;   /* 0 out, 1 small, 2 main */
	uint8_t counter; /* 0 to 3 */
};

struct kvr_policy_ghost {
	uint64_t name;
	uint64_t time; /* of ghost_time when it came; 0: empty */
};

struct kvr_policy_queue {
	uint32_t head, tail; /* head: the oldest */
	uint32_t count;
	uint64_t weight;
};

struct kvr_policy {
	enum kvr_policy_kind kind;
	struct kvr_policy_entry *entries; /* the caller's array, entry_max long */
	uint32_t entry_max;
	struct kvr_policy_ghost *ghosts; /* the caller's array, ghost_max long */
	uint32_t ghost_max;
	uint64_t ghost_time; /* names that ever came to the ghost */
	struct kvr_policy_queue small;
	struct kvr_policy_queue main;
};

/* Whether an entry may go now. A pure function of the caller's state. */
typedef bool (*kvr_policy_may_evict)(void *context, uint32_t entry);

/* Sets everything to empty. The arrays are borrowed for the policy's life. ghost_max is a power of two,
 * KVR_POLICY_GHOST_MIN or more, best about as many as entries fit; LRU takes 0 and NULL. */
void kvr_policy_init(struct kvr_policy *policy, enum kvr_policy_kind kind,
	struct kvr_policy_entry *entries, uint32_t entry_max, struct kvr_policy_ghost *ghosts,
	uint32_t ghost_max);

/* An entry came in; it must be out. */
void kvr_policy_admit(struct kvr_policy *policy, uint32_t entry, uint64_t name, uint64_t weight);

/* An entry, which is in, was used. */
void kvr_policy_touch(struct kvr_policy *policy, uint32_t entry);

/* An entry, which is in, left for another reason than eviction (dropped). */
void kvr_policy_remove(struct kvr_policy *policy, uint32_t entry);

/* Chooses an entry that may go, takes it out and returns it, or KVR_POLICY_NONE. */
uint32_t kvr_policy_evict(struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h: what to evict, as pure functions over arrays: no memory, no clock, no I/O.
 *
 * Entries are numbered 0 .. entry_max - 1; the caller knows what they stand for (segments now,
 * clusters once there is a lower tier) and how many units (bytes, tokens) each weighs.
 *
 *   S3-FIFO (Yang et al., SOSP 2023): a small FIFO (10 % of the weight) for newcomers, a main FIFO,
 *   and a ghost FIFO of names that were evicted from the small one; a counter of 0 to 3 per entry.
 *   LRU: one list.
 *
 * Invariants:
 *   P1  An entry is in at most one of small, main; `weight` is the sum over both.
 *   P2  Every loop ends: victim looks at each resident entry a bounded number of times. */
#ifndef KVR_TIERS_POLICY_H
#define KVR_TIERS_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kvr_policy_kind {
	KVR_POLICY_S3FIFO = 1,
	KVR_POLICY_LRU = 2,
};

#define KVR_POLICY_NONE UINT32_MAX

struct kvr_policy_entry; /* 32 bytes or fewer; defined in policy.c's own terms below */

struct kvr_policy_entry {
	uint64_t name; /* identity that outlives the number: the ghost remembers it */
	uint32_t next, prev;
	uint32_t weight;
	uint8_t queue;   /* 0 out, 1 small, 2 main */
	uint8_t counter; /* 0 to 3 */
	uint16_t reserved;
};

struct kvr_policy_queue {
	uint32_t head, tail; /* head: the oldest */
	uint64_t weight;
};

struct kvr_policy {
	enum kvr_policy_kind kind;
	struct kvr_policy_entry *entries; /* the caller's array, entry_max long */
	uint32_t entry_max;
	uint64_t *ghosts; /* the caller's array of ghost_max names, a power of two */
	uint32_t ghost_max;
	uint32_t ghost_next;
	struct kvr_policy_queue small;
	struct kvr_policy_queue main;
};

/* Whether an entry may go now. A pure function of the caller's state. */
typedef bool (*kvr_policy_may_evict)(void *context, uint32_t entry);

/* Sets everything to empty. The arrays are borrowed for the policy's life. */
void kvr_policy_init(struct kvr_policy *policy, enum kvr_policy_kind kind,
	struct kvr_policy_entry *entries, uint32_t entry_max, uint64_t *ghosts, uint32_t ghost_max);

/* An entry came in; it must be out. */
void kvr_policy_admit(struct kvr_policy *policy, uint32_t entry, uint64_t name, uint32_t weight);

/* An entry was used. */
void kvr_policy_touch(struct kvr_policy *policy, uint32_t entry);

/* An entry left for another reason than eviction (dropped). */
void kvr_policy_remove(struct kvr_policy *policy, uint32_t entry);

/* Chooses an entry that may go, takes it out and returns it, or KVR_POLICY_NONE. */
uint32_t kvr_policy_evict(struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context);

#endif

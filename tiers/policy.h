/* SPDX-License-Identifier: Apache-2.0 */
/* policy.h: what to evict, as pure functions over arrays: no memory, no clock, no I/O.
 *
 * Entries are numbered 0 .. entry_max - 1; the caller knows what they stand for (clusters, segments) and
 * how many bytes each weighs. Names outlive the numbers.
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
 *   DECAY: how often an entry was used, where a use counts half as much after every half-life. The sum
 *   over an entry's uses, at times t, is kept as the one time at which a single use would count as
 *   much now: no entry changes while time goes by, and a larger `score` is a hotter entry for ever.
 *
 *          score = half-life * log2(sum of 2^(t / half-life))       one use: score = t
 *
 *   Time is bytes used, told by advance; the half-life is KVR_POLICY_TURNOVERS times the bytes that are
 *   in. The one to go is the coldest of 16 drawn at random. The ghost keeps the scores of what went, or
 *   was used and not let in, so that a cluster which is needed every third step does not start anew
 *   each time. An entry of which that is worth less than the coldest of 16 is not wanted.
 *
 * A recall is one request, whatever its layers. The caller says in this order:
 *
 *   advance(bytes used)    touch(what is in)    note(what is not)    for these: wants? evict, admit
 *
 * An entry that may not go when its turn comes (it is in use) goes another round.
 *
 * Invariants:
 *   P1  An entry is in at most one of small, main; `count` and `weight` of a queue are those of the
 *       entries in it.
 *   P2  Every loop ends: evict looks at each resident entry at most 8 times; admit, touch, note and
 *       remove look at no other entry than their own and its neighbours, wants at 16.
 *   P3  DECAY: the places 0 .. main.count - 1 hold each resident entry once: entries[place].next is the
 *       entry, entries[entry].prev its place.
 *   P4  The same calls give the same victims: the draw is seeded with a constant.
 *
 * Threads: the caller's. Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP
 * 2023, algorithm 1; Lee et al., "LRFU", IEEE Transactions on Computers 50(12), 2001, section 3, for
 * DECAY. Deviations: S3-FIFO's queues are measured by weight. The small one has a quarter, not a tenth,
 * and one use there is enough for main: the turns of a chat come back later than the paper's objects.
 * The ghost is a set-associative table with the age of each name. LRFU's heap is a draw of 16, and
 * its memory outlives eviction. Figures for all of it: docs/DECISIONS.md. */
#ifndef KVR_TIERS_POLICY_H
#define KVR_TIERS_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kvr_policy_kind {
	KVR_POLICY_S3FIFO = 1,
	KVR_POLICY_LRU = 2,
	KVR_POLICY_DECAY = 3,
};

#define KVR_POLICY_NONE      UINT32_MAX
#define KVR_POLICY_GHOST_MIN 4u
#define KVR_POLICY_TURNOVERS 3u

struct kvr_policy_entry {
	uint64_t name;   /* identity that outlives the number: the ghost remembers it */
	uint64_t score;  /* DECAY */
	uint32_t weight; /* bytes; more than fit count as UINT32_MAX */
	uint32_t next, prev;
	uint8_t queue;   /* 0 out, 1 small, 2 main */
	uint8_t counter; /* S3-FIFO: 0 to 3 */
};

struct kvr_policy_ghost {
	uint64_t name;
	uint64_t time; /* S3-FIFO: ghost_time when it came. DECAY: score. 0: empty */
};

struct kvr_policy_queue {
	uint32_t head, tail; /* head: the oldest; not in DECAY */
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
	/* DECAY. */
	uint64_t now;     /* bytes used so far; starts at 1, so that no score is 0 */
	uint64_t random;  /* state of the draw */
	uint32_t coldest; /* drawn by the last wants, evicted next; or NONE */
};

/* Whether an entry may go now. A pure function of the caller's state. */
typedef bool (*kvr_policy_may_evict)(void *context, uint32_t entry);

/* Sets everything to empty. The arrays are all zeros (pages that nobody has touched cost nothing) and borrowed for
 * the policy's life. ghost_max is a power of two,
 * KVR_POLICY_GHOST_MIN or more, best about as many as entries fit; LRU takes 0 and NULL. */
void kvr_policy_init(struct kvr_policy *policy, enum kvr_policy_kind kind,
	struct kvr_policy_entry *entries, uint32_t entry_max, struct kvr_policy_ghost *ghosts,
	uint32_t ghost_max);

/* A request uses `bytes`, of entries that are in and of others. Only DECAY's time passes by this. */
void kvr_policy_advance(struct kvr_policy *policy, uint64_t bytes);

/* An entry came in; it must be out. In DECAY it has what the ghost knows of it, or else one use. */
void kvr_policy_admit(struct kvr_policy *policy, uint32_t entry, uint64_t name, uint64_t weight);

/* An entry, which is in, was used. `share` is the part of attention that it is estimated to have had, 0
 * or more. None of these kinds goes by it: beside the use itself it adds little (docs/DECISIONS.md). */
void kvr_policy_touch(struct kvr_policy *policy, uint32_t entry, float share);

/* What has this name, and is not in, was used. Before admit, or in place of it. */
void kvr_policy_note(struct kvr_policy *policy, uint64_t name);

/* Whether what has this name, is not in, and has been noted should come in although something else
 * has to go for it. Always, except in DECAY; evict then takes what this has compared it with. */
bool kvr_policy_wants(struct kvr_policy *policy, uint64_t name);

/* An entry, which is in, left for another reason than eviction (dropped). */
void kvr_policy_remove(struct kvr_policy *policy, uint32_t entry);

/* Chooses an entry that may go, takes it out and returns it, or KVR_POLICY_NONE. */
uint32_t kvr_policy_evict(struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context);

#endif

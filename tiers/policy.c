/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c: S3-FIFO and LRU over arrays. */
#include "base/assert.h"
#include "tiers/policy.h"

#define COUNTER_MAX 3u
#define USED_ENOUGH 1u /* uses in the small queue that lead to main */
#define SMALL_SHARE 4u /* the small queue's part of the weight: one of so many */
#define GHOST_WAYS  4u
#define MAIN_ROUNDS (COUNTER_MAX + 1)

enum queue_name {
	QUEUE_OUT = 0,
	QUEUE_SMALL = 1,
	QUEUE_MAIN = 2,
};

KVR_STATIC_ASSERT(sizeof(struct kvr_policy_entry) <= 32);
KVR_STATIC_ASSERT(KVR_POLICY_GHOST_MIN % GHOST_WAYS == 0);
KVR_STATIC_ASSERT(2 * MAIN_ROUNDS <= 8); /* P2 */

static struct kvr_policy_queue *queue_of(struct kvr_policy *policy, enum queue_name name)
{
	return name == QUEUE_SMALL ? &policy->small : &policy->main;
}

static void queue_push(struct kvr_policy *policy, enum queue_name name, uint32_t entry)
{
	struct kvr_policy_queue *queue = queue_of(policy, name);
	struct kvr_policy_entry *e = &policy->entries[entry];

	KVR_ASSERT(e->queue == QUEUE_OUT); /* P1 */
	KVR_ASSERT(queue->count < policy->entry_max);
	e->queue = (uint8_t)name;
	e->next = KVR_POLICY_NONE;
	e->prev = queue->tail;
	if (queue->tail == KVR_POLICY_NONE)
		queue->head = entry;
	else
		policy->entries[queue->tail].next = entry;
	queue->tail = entry;
	queue->count++;
	queue->weight += e->weight;
}

static void queue_remove(struct kvr_policy *policy, uint32_t entry)
{
	struct kvr_policy_entry *e = &policy->entries[entry];
	struct kvr_policy_queue *queue = queue_of(policy, (enum queue_name)e->queue);

	KVR_ASSERT(e->queue != QUEUE_OUT); /* P1 */
	KVR_ASSERT(queue->count >= 1);
	KVR_ASSERT(queue->weight >= e->weight);
	if (e->prev == KVR_POLICY_NONE)
		queue->head = e->next;
	else
		policy->entries[e->prev].next = e->next;
	if (e->next == KVR_POLICY_NONE)
		queue->tail = e->prev;
	else
		policy->entries[e->next].prev = e->prev;
	e->queue = QUEUE_OUT;
	queue->count--;
	queue->weight -= e->weight;
}

/* The set of GHOST_WAYS places where a name can be. The product spreads names that are no hashes. */
static struct kvr_policy_ghost *ghost_set(struct kvr_policy *policy, uint64_t name)
{
	uint64_t hash = name * 0x9e3779b97f4a7c15ull;
	size_t set = (hash >> 32) % (policy->ghost_max / GHOST_WAYS);

	return &policy->ghosts[set * GHOST_WAYS];
}

/* Remembers a name, in place of the oldest of its set. */
static void ghost_push(struct kvr_policy *policy, uint64_t name)
{
	struct kvr_policy_ghost *set = ghost_set(policy, name);
	struct kvr_policy_ghost *oldest = set;

	for (uint32_t way = 1; way < GHOST_WAYS; way++)
		if (set[way].time < oldest->time)
			oldest = &set[way];
	policy->ghost_time++;
	*oldest = (struct kvr_policy_ghost){name, policy->ghost_time};
}

/* Whether a name is remembered and not too old; forgets it. */
static bool ghost_take(struct kvr_policy *policy, uint64_t name)
{
	struct kvr_policy_ghost *set = ghost_set(policy, name);

	for (uint32_t way = 0; way < GHOST_WAYS; way++) {
		uint64_t time = set[way].time;

		if (time == 0 || set[way].name != name)
			continue;
		set[way].time = 0;
		return policy->ghost_time - time < policy->ghost_max;
	}
	return false;
}

void kvr_policy_init(struct kvr_policy *policy, enum kvr_policy_kind kind,
	struct kvr_policy_entry *entries, uint32_t entry_max, struct kvr_policy_ghost *ghosts,
	uint32_t ghost_max)
{
	const struct kvr_policy_queue empty = {KVR_POLICY_NONE, KVR_POLICY_NONE, 0, 0};

	KVR_ASSERT(entry_max >= 1);
	KVR_ASSERT(entry_max < KVR_POLICY_NONE);
	if (kind == KVR_POLICY_S3FIFO) {
		KVR_ASSERT(ghost_max >= KVR_POLICY_GHOST_MIN);
		KVR_ASSERT((ghost_max & (ghost_max - 1)) == 0);
	} else {
		KVR_ASSERT(kind == KVR_POLICY_LRU);
	}
	*policy = (struct kvr_policy){
		.kind = kind,
		.entries = entries,
		.entry_max = entry_max,
		.ghosts = ghosts,
		.ghost_max = ghost_max,
		.small = empty,
		.main = empty,
	};
	for (uint32_t i = 0; i < entry_max; i++)
		entries[i] = (struct kvr_policy_entry){0};
	for (uint32_t i = 0; i < ghost_max; i++)
		ghosts[i] = (struct kvr_policy_ghost){0};
}

void kvr_policy_admit(struct kvr_policy *policy, uint32_t entry, uint64_t name, uint64_t weight)
{
	enum queue_name queue = QUEUE_MAIN;

	KVR_ASSERT(entry < policy->entry_max);
	KVR_ASSERT(policy->entries[entry].queue == QUEUE_OUT);
	if (policy->kind == KVR_POLICY_S3FIFO && !ghost_take(policy, name))
		queue = QUEUE_SMALL;
	policy->entries[entry] = (struct kvr_policy_entry){.name = name, .weight = weight};
	queue_push(policy, queue, entry);
}

void kvr_policy_touch(struct kvr_policy *policy, uint32_t entry)
{
	struct kvr_policy_entry *e = &policy->entries[entry];

	KVR_ASSERT(entry < policy->entry_max);
	KVR_ASSERT(e->queue != QUEUE_OUT);
	if (policy->kind == KVR_POLICY_LRU) {
		queue_remove(policy, entry);
		queue_push(policy, QUEUE_MAIN, entry);
	} else if (e->counter < COUNTER_MAX) {
		e->counter++;
	}
}

void kvr_policy_remove(struct kvr_policy *policy, uint32_t entry)
{
	KVR_ASSERT(entry < policy->entry_max);
	queue_remove(policy, entry);
}

/* Looks at each entry of the small queue once, oldest first: it stays, it goes to main, or it is the
 * one that goes. */
static uint32_t evict_small(
	struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context)
{
	for (uint32_t left = policy->small.count; left > 0; left--) {
		uint32_t entry = policy->small.head;
		struct kvr_policy_entry *e = &policy->entries[entry];

		queue_remove(policy, entry);
		if (e->counter >= USED_ENOUGH) {
			e->counter = 0;
			queue_push(policy, QUEUE_MAIN, entry);
		} else if (!may_evict(context, entry)) {
			queue_push(policy, QUEUE_SMALL, entry);
		} else {
			ghost_push(policy, e->name);
			return entry;
		}
	}
	return KVR_POLICY_NONE;
}

/* Looks at each entry of the main queue up to MAIN_ROUNDS times, oldest first: a round costs it one
 * use; one without uses goes. In LRU there are no uses to count, and one round is enough. */
static uint32_t evict_main(struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context)
{
	const uint64_t rounds = policy->kind == KVR_POLICY_LRU ? 1 : MAIN_ROUNDS;

	for (uint64_t left = policy->main.count * rounds; left > 0; left--) {
		uint32_t entry = policy->main.head;
		struct kvr_policy_entry *e = &policy->entries[entry];

		queue_remove(policy, entry);
		if (e->counter == 0 && may_evict(context, entry))
			return entry;
		if (e->counter > 0)
			e->counter--;
		queue_push(policy, QUEUE_MAIN, entry);
	}
	return KVR_POLICY_NONE;
}

uint32_t kvr_policy_evict(struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context)
{
	const uint64_t weight = policy->small.weight + policy->main.weight;
	const bool small_first = policy->small.weight > weight / SMALL_SHARE;
	uint32_t entry = KVR_POLICY_NONE;

	KVR_ASSERT(policy->small.count + policy->main.count <= policy->entry_max); /* P1 */
	if (small_first)
		entry = evict_small(policy, may_evict, context);
	if (entry == KVR_POLICY_NONE)
		entry = evict_main(policy, may_evict, context);
	if (entry == KVR_POLICY_NONE && !small_first)
		entry = evict_small(policy, may_evict, context);
	if (entry == KVR_POLICY_NONE && !small_first)
		entry = evict_main(policy, may_evict, context); /* what the small queue gave it */
	return entry;
}

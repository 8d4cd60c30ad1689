/* SPDX-License-Identifier: Apache-2.0 */
/* policy.c: S3-FIFO, LRU and DECAY over arrays. */
#include <math.h>

#include "base/assert.h"
#include "tiers/policy.h"

#define COUNTER_MAX 3u
#define USED_ENOUGH 1u /* uses in the small queue that lead to main */
#define SMALL_SHARE 4u /* the small queue's part of the weight: one of so many */
#define GHOST_WAYS  4u
#define MAIN_ROUNDS (COUNTER_MAX + 1)
#define DRAWN       16u  /* entries of which the coldest goes */
#define FORGOTTEN   32.0 /* half-lives after which a use counts nothing */
#define HOT         50.0 /* half-lives ahead: 2^50 uses */

enum queue_name {
	QUEUE_OUT = 0,
	QUEUE_SMALL = 1,
	QUEUE_MAIN = 2,
};

KVR_STATIC_ASSERT(sizeof(struct kvr_policy_entry) <= 32);
KVR_STATIC_ASSERT(KVR_POLICY_GHOST_MIN % GHOST_WAYS == 0);
KVR_STATIC_ASSERT(2 * MAIN_ROUNDS <= 8); /* P2 */

/* ---- queues ---------------------------------------------------------------------------------- */

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

/* ---- the ghost ------------------------------------------------------------------------------- */

/* The set of GHOST_WAYS places where a name can be. The product spreads names that are no hashes. */
static struct kvr_policy_ghost *ghost_set(struct kvr_policy *policy, uint64_t name)
{
	uint64_t hash = name * 0x9e3779b97f4a7c15ull;
	size_t set = (hash >> 32) % (policy->ghost_max / GHOST_WAYS);

	return &policy->ghosts[set * GHOST_WAYS];
}

/* Remembers a name, in place of the one with the least time of its set. */
static void ghost_put(struct kvr_policy *policy, uint64_t name, uint64_t time)
{
	struct kvr_policy_ghost *set = ghost_set(policy, name);
	struct kvr_policy_ghost *least = set;

	KVR_ASSERT(time > 0);
	for (uint32_t way = 1; way < GHOST_WAYS; way++)
		if (set[way].time < least->time)
			least = &set[way];
	*least = (struct kvr_policy_ghost){name, time};
}

/* Where a name is remembered, or NULL. */
static struct kvr_policy_ghost *ghost_find(struct kvr_policy *policy, uint64_t name)
{
	struct kvr_policy_ghost *set = ghost_set(policy, name);

	for (uint32_t way = 0; way < GHOST_WAYS; way++)
		if (set[way].time != 0 && set[way].name == name)
			return &set[way];
	return NULL;
}

/* Forgets a name and returns its time; 0 if there is none. */
static uint64_t ghost_take(struct kvr_policy *policy, uint64_t name)
{
	struct kvr_policy_ghost *ghost = ghost_find(policy, name);
	uint64_t time;

	if (!ghost)
		return 0;
	time = ghost->time;
	ghost->time = 0;
	return time;
}

/* S3-FIFO: whether a name went to the ghost not too long ago; forgets it. */
static bool ghost_knows(struct kvr_policy *policy, uint64_t name)
{
	const uint64_t time = ghost_take(policy, name);

	return time != 0 && policy->ghost_time - time < policy->ghost_max;
}

/* ---- DECAY ----------------------------------------------------------------------------------- */

/* The score behind one more use, now. Also of what has none yet (score 0). */
static uint64_t score_used(const struct kvr_policy *policy, uint64_t score)
{
	const double life = (double)policy->main.weight * KVR_POLICY_TURNOVERS + 1;
	const double past = ((double)score - (double)policy->now) / life;
	const double heat = score > 0 && past > -FORGOTTEN && past < HOT ? exp2(past) : 0;

	/* Hot from a time when more was in, and a half-life longer: one use more is lost in it, and exp2 too large. */
	if (score > 0 && past >= HOT)
		return score;
	return policy->now + (uint64_t)(life * log2(heat + 1));
}

static void place_push(struct kvr_policy *policy, uint32_t entry)
{
	struct kvr_policy_entry *e = &policy->entries[entry];
	const uint32_t place = policy->main.count;

	KVR_ASSERT(e->queue == QUEUE_OUT); /* P1 */
	KVR_ASSERT(place < policy->entry_max);
	policy->entries[place].next = entry; /* P3 */
	e->prev = place;
	e->queue = QUEUE_MAIN;
	policy->main.count++;
	policy->main.weight += e->weight;
}

/* The entry at the last place takes the place that becomes free. */
static void place_remove(struct kvr_policy *policy, uint32_t entry)
{
	struct kvr_policy_entry *e = &policy->entries[entry];
	uint32_t last;

	KVR_ASSERT(e->queue == QUEUE_MAIN); /* P1 */
	KVR_ASSERT(policy->main.count >= 1);
	KVR_ASSERT(policy->main.weight >= e->weight);
	KVR_ASSERT(policy->entries[e->prev].next == entry); /* P3 */
	policy->main.count--;
	policy->main.weight -= e->weight;
	last = policy->entries[policy->main.count].next;
	policy->entries[e->prev].next = last;
	policy->entries[last].prev = e->prev;
	e->queue = QUEUE_OUT;
	if (policy->coldest == entry)
		policy->coldest = KVR_POLICY_NONE;
}

/* A place below `count`, 1 or more; multiplier and increment are Knuth's, for MMIX. */
static uint32_t place_draw(struct kvr_policy *policy, uint32_t count)
{
	policy->random = policy->random * 6364136223846793005u + 1442695040888963407u; /* P4 */
	return (uint32_t)((policy->random >> 32) * count >> 32);
}

/* The coldest of DRAWN entries that may go (may_evict NULL: any), of all if there are no more. */
static uint32_t draw_coldest(
	struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context)
{
	const uint32_t count = policy->main.count;
	const uint32_t looks = count < DRAWN ? count : DRAWN;
	const struct kvr_policy_entry *entries = policy->entries;
	uint32_t drawn[DRAWN];
	uint32_t coldest = KVR_POLICY_NONE;

	for (uint32_t i = 0; i < looks; i++) {
		drawn[i] = entries[count <= DRAWN ? i : place_draw(policy, count)].next;
		__builtin_prefetch(&entries[drawn[i]]);
	}
	for (uint32_t i = 0; i < looks; i++) {
		KVR_ASSERT(entries[drawn[i]].queue == QUEUE_MAIN); /* P3 */
		if (coldest != KVR_POLICY_NONE && entries[drawn[i]].score >= entries[coldest].score)
			continue;
		if (!may_evict || may_evict(context, drawn[i]))
			coldest = drawn[i];
	}
	return coldest;
}

/* Where none of those drawn may go, the first from a random place on that may. */
static uint32_t evict_coldest(
	struct kvr_policy *policy, kvr_policy_may_evict may_evict, void *context)
{
	const uint32_t count = policy->main.count;
	uint32_t entry = policy->coldest;

	if (count == 0)
		return KVR_POLICY_NONE;
	if (entry == KVR_POLICY_NONE || !may_evict(context, entry))
		entry = draw_coldest(policy, may_evict, context);
	if (entry == KVR_POLICY_NONE) {
		const uint32_t first = place_draw(policy, count);

		for (uint32_t i = 0; i < count && entry == KVR_POLICY_NONE; i++) {
			const uint32_t place = i < count - first ? first + i : i - (count - first);

			if (may_evict(context, policy->entries[place].next))
				entry = policy->entries[place].next;
		}
	}
	if (entry == KVR_POLICY_NONE)
		return KVR_POLICY_NONE;
	place_remove(policy, entry);
	ghost_put(policy, policy->entries[entry].name, policy->entries[entry].score);
	return entry;
}

/* ---- all kinds ------------------------------------------------------------------------------- */

void kvr_policy_init(struct kvr_policy *policy, enum kvr_policy_kind kind,
	struct kvr_policy_entry *entries, uint32_t entry_max, struct kvr_policy_ghost *ghosts,
	uint32_t ghost_max)
{
	const struct kvr_policy_queue empty = {KVR_POLICY_NONE, KVR_POLICY_NONE, 0, 0};

	KVR_ASSERT(entry_max >= 1);
	KVR_ASSERT(entry_max < KVR_POLICY_NONE);
	KVR_ASSERT(kind >= KVR_POLICY_S3FIFO);
	KVR_ASSERT(kind <= KVR_POLICY_DECAY);
	if (kind != KVR_POLICY_LRU) {
		KVR_ASSERT(ghost_max >= KVR_POLICY_GHOST_MIN);
		KVR_ASSERT((ghost_max & (ghost_max - 1)) == 0);
	}
	*policy = (struct kvr_policy){
		.kind = kind,
		.entries = entries,
		.entry_max = entry_max,
		.ghosts = ghosts,
		.ghost_max = ghost_max,
		.small = empty,
		.main = empty,
		.now = 1,
		.coldest = KVR_POLICY_NONE,
	};
}

void kvr_policy_advance(struct kvr_policy *policy, uint64_t bytes)
{
	KVR_ASSERT(bytes <= UINT64_MAX / 2 - policy->now);
	policy->now += bytes;
}

void kvr_policy_admit(struct kvr_policy *policy, uint32_t entry, uint64_t name, uint64_t weight)
{
	struct kvr_policy_entry *e = &policy->entries[entry];
	uint32_t next;

	KVR_ASSERT(entry < policy->entry_max);
	KVR_ASSERT(e->queue == QUEUE_OUT);
	next = e->next; /* a place's, which is not this entry's to change (P3) */
	*e = (struct kvr_policy_entry){
		.name = name,
		.weight = weight < UINT32_MAX ? (uint32_t)weight : UINT32_MAX,
		.next = next,
	};
	if (policy->kind == KVR_POLICY_DECAY) {
		e->score = ghost_take(policy, name);
		if (e->score == 0)
			e->score = policy->now;
		place_push(policy, entry);
	} else if (policy->kind == KVR_POLICY_S3FIFO && !ghost_knows(policy, name)) {
		queue_push(policy, QUEUE_SMALL, entry);
	} else {
		queue_push(policy, QUEUE_MAIN, entry);
	}
}

void kvr_policy_touch(struct kvr_policy *policy, uint32_t entry, float share)
{
	struct kvr_policy_entry *e = &policy->entries[entry];

	KVR_ASSERT(entry < policy->entry_max);
	KVR_ASSERT(e->queue != QUEUE_OUT);
	KVR_ASSERT(share >= 0);
	if (policy->kind == KVR_POLICY_DECAY) {
		e->score = score_used(policy, e->score);
		if (policy->coldest == entry)
			policy->coldest = KVR_POLICY_NONE;
	} else if (policy->kind == KVR_POLICY_LRU) {
		queue_remove(policy, entry);
		queue_push(policy, QUEUE_MAIN, entry);
	} else if (e->counter < COUNTER_MAX) {
		e->counter++;
	}
}

void kvr_policy_note(struct kvr_policy *policy, uint64_t name)
{
	if (policy->kind == KVR_POLICY_DECAY)
		ghost_put(policy, name, score_used(policy, ghost_take(policy, name)));
}

bool kvr_policy_wants(struct kvr_policy *policy, uint64_t name)
{
	const struct kvr_policy_ghost *ghost;

	if (policy->kind != KVR_POLICY_DECAY || policy->main.count == 0)
		return true;
	ghost = ghost_find(policy, name);
	policy->coldest = draw_coldest(policy, NULL, NULL);
	KVR_ASSERT(policy->coldest != KVR_POLICY_NONE);
	/* Driven out of the ghost since it was noted, it has that one use. */
	return (ghost ? ghost->time : policy->now) > policy->entries[policy->coldest].score;
}

void kvr_policy_remove(struct kvr_policy *policy, uint32_t entry)
{
	KVR_ASSERT(entry < policy->entry_max);
	if (policy->kind == KVR_POLICY_DECAY)
		place_remove(policy, entry);
	else
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
			policy->ghost_time++;
			ghost_put(policy, e->name, policy->ghost_time);
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
	if (policy->kind == KVR_POLICY_DECAY)
		return evict_coldest(policy, may_evict, context);
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

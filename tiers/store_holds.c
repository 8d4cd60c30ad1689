/* SPDX-License-Identifier: Apache-2.0 */
/* store_holds.c: which segments are in use, and which are leaving.
 *
 * A hold on an id without an entry succeeds. That is right, although the table does not know what
 * is in the catalog, because of when entries of leaving segments go:
 *
 *   core thread    It learns of a segment with a hold on it (MATCH, PUT), and forgets it when it
 *                  takes its id from kvr_store_gone. An entry stays `leaving` until just then, so
 *                  that a hold by the core thread either came before the removal, which then does
 *                  not take place, or fails.
 *   reader thread  It may find a segment in an old view of the catalog, whose entry is gone
 *                  already. So it holds first, and then looks with a new view whether the segment
 *                  is still there: from the hold on no removal can begin, and one that was over
 *                  before is seen.
 *
 * Invariants:
 *   L1  An entry has a hold or is leaving, never both, never neither.
 *   L2  What is told once was leaving until then; it is told once.
 *
 * Threads: any; the caller has the store's mutex. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

#define SLOT_COUNT ((uint32_t)1 << 18) /* a power of two */
#define SLOT_MASK  (SLOT_COUNT - 1)

_Static_assert(KVR_STORE_HELD_MAX <= SLOT_COUNT / 4 * 3, "probes stay short");

/* Ids ascend: the multiplication spreads them (Fibonacci hashing). */
static uint32_t slot_of(uint64_t id)
{
	return (uint32_t)((id * 0x9e3779b97f4a7c15ull) >> 46) & SLOT_MASK;
}

/* The entry of an id, or the empty slot where it would be. */
static struct kvr_store_hold *find(const struct kvr_store_holds *holds, uint64_t id)
{
	uint32_t slot = slot_of(id);

	KVR_ASSERT(id >= 1);
	while (holds->slots[slot].id != 0 && holds->slots[slot].id != id)
		slot = (slot + 1) & SLOT_MASK;
	return &holds->slots[slot];
}

/* The entry of an id, made if there is none and room. */
static struct kvr_store_hold *find_or_make(struct kvr_store_holds *holds, uint64_t id)
{
	struct kvr_store_hold *hold = find(holds, id);

	if (hold->id == id)
		return hold;
	if (holds->used == KVR_STORE_HELD_MAX)
		return NULL;
	*hold = (struct kvr_store_hold){.id = id};
	holds->used++;
	return hold;
}

/* Empties a slot, and moves those behind it up that would not be found any more. */
static void erase(struct kvr_store_holds *holds, struct kvr_store_hold *hold)
{
	uint32_t hole = (uint32_t)(hold - holds->slots);
	uint32_t slot = hole;

	KVR_ASSERT(holds->used >= 1);
	for (;;) {
		slot = (slot + 1) & SLOT_MASK;
		if (holds->slots[slot].id == 0)
			break;
		/* It may move into the hole unless its own slot lies behind the hole. */
		if (((slot - slot_of(holds->slots[slot].id)) & SLOT_MASK) >=
			((slot - hole) & SLOT_MASK)) {
			holds->slots[hole] = holds->slots[slot];
			hole = slot;
		}
	}
	holds->slots[hole] = (struct kvr_store_hold){0};
	holds->used--;
}

int kvr_store_holds_open(struct kvr_store_holds *holds)
{
	holds->slots = calloc(SLOT_COUNT, sizeof(*holds->slots));
	holds->gone = calloc(KVR_STORE_HELD_MAX, sizeof(*holds->gone));
	return holds->slots && holds->gone ? 0 : -ENOMEM;
}

void kvr_store_holds_close(struct kvr_store_holds *holds)
{
	free(holds->slots);
	free(holds->gone);
	*holds = (struct kvr_store_holds){0};
}

bool kvr_store_holds_add(struct kvr_store_holds *holds, uint64_t id)
{
	struct kvr_store_hold *hold = find_or_make(holds, id);

	if (!hold || hold->leaving)
		return false;
	KVR_ASSERT(hold->count < UINT32_MAX);
	if (hold->count == 0)
		holds->held_count++;
	hold->count++; /* L1 */
	return true;
}

void kvr_store_holds_sub(struct kvr_store_holds *holds, uint64_t id)
{
	struct kvr_store_hold *hold = find(holds, id);

	KVR_ASSERT(hold->id == id);
	KVR_ASSERT(hold->count >= 1);
	KVR_ASSERT(!hold->leaving); /* L1 */
	hold->count--;
	if (hold->count > 0)
		return;
	holds->held_count--;
	erase(holds, hold);
}

bool kvr_store_holds_leave(struct kvr_store_holds *holds, uint64_t id)
{
	struct kvr_store_hold *hold = find_or_make(holds, id);

	if (!hold || hold->leaving || hold->count > 0)
		return false;
	hold->leaving = true; /* L1 */
	return true;
}

bool kvr_store_holds_leaving(const struct kvr_store_holds *holds, uint64_t id)
{
	const struct kvr_store_hold *hold = find(holds, id);

	return hold->id == id && hold->leaving;
}

void kvr_store_holds_stay(struct kvr_store_holds *holds, uint64_t id)
{
	struct kvr_store_hold *hold = find(holds, id);

	KVR_ASSERT(hold->id == id);
	KVR_ASSERT(hold->leaving);
	erase(holds, hold);
}

void kvr_store_holds_left(struct kvr_store_holds *holds, uint64_t id)
{
	const struct kvr_store_hold *hold = find(holds, id);

	KVR_ASSERT(hold->id == id);
	KVR_ASSERT(hold->leaving); /* L2 */
	KVR_ASSERT(holds->gone_count <
		   KVR_STORE_HELD_MAX); /* each has an entry, and they are no more */
	holds->gone[(holds->gone_first + holds->gone_count) % KVR_STORE_HELD_MAX] = id;
	holds->gone_count++;
}

uint32_t kvr_store_holds_take(struct kvr_store_holds *holds, uint64_t *ret_ids, uint32_t max)
{
	uint32_t count;

	for (count = 0; count < max && holds->gone_count > 0; count++) {
		ret_ids[count] = holds->gone[holds->gone_first];
		holds->gone_first = (holds->gone_first + 1) % KVR_STORE_HELD_MAX;
		holds->gone_count--;
		kvr_store_holds_stay(holds, ret_ids[count]); /* L2 */
	}
	return count;
}

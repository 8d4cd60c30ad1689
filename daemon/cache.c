/* SPDX-License-Identifier: Apache-2.0 */
/* cache.c: clusters and merged sets in host memory. Who asks for room, and what else may go, is the directory's affair. */
#include "daemon/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/directory.h"
#include "daemon/waiter.h"
#include "daemon/work.h"

#define PLACES_MAX         (KVR_CLUSTERS_MAX + 1 + KVR_MERGED_SETS) /* one lane's units */
#define LIMBO_MAX          65536u                                   /* a power of two */
#define ENTRY_BYTES        2048u /* an entry for so much of the arena: clusters are larger as a rule */
#define LOW_PART           32u /* of the arena kept free, so that nobody waits for limbo */
#define DEMOTES_PER_SETTLE 64u /* as few as what a round brings in, or more */

/* ---- life ------------------------------------------------------------------------------------ */

static uint32_t power_of_two_below(uint64_t value)
{
	uint32_t power = 1;

	while ((uint64_t)power * 2 <= value && power < 1u << 30)
		power *= 2;
	return power;
}

int kvr_cache_open(struct kvr_cache *cache, enum kvr_policy_kind policy, bool cached,
	struct kvr_arena *arena, struct kvr_tier *host, const struct kvr_works *works)
{
	struct kvr_arena_stat stat;
	uint32_t ghosts;

	*cache = (struct kvr_cache){.arena = arena, .host = host, .works = works};
	kvr_list_init(&cache->waiters);
	kvr_arena_stat(arena, &stat);
	cache->entry_free = KVR_CACHE_NONE;
	cache->places = calloc(PLACES_MAX, sizeof(*cache->places));
	cache->place_bytes = calloc(PLACES_MAX, sizeof(*cache->place_bytes));
	if (!cache->places || !cache->place_bytes)
		goto fail;
	if (!cached)
		return 0;
	cache->entry_max = stat.capacity_bytes / ENTRY_BYTES < UINT32_MAX / 2
				   ? (uint32_t)(stat.capacity_bytes / ENTRY_BYTES)
				   : UINT32_MAX / 2;
	ghosts = power_of_two_below(cache->entry_max);
	cache->limbo_max = LIMBO_MAX;
	/* Zeroed pages that are not touched before they are needed. */
	cache->entries = calloc(cache->entry_max, sizeof(*cache->entries));
	cache->owners = calloc(cache->entry_max, sizeof(*cache->owners));
	cache->limbo = calloc(cache->limbo_max, sizeof(*cache->limbo));
	if (policy != KVR_POLICY_LRU)
		cache->ghosts = calloc(ghosts, sizeof(*cache->ghosts));
	if (!cache->entries || !cache->owners || !cache->limbo ||
		(policy != KVR_POLICY_LRU && !cache->ghosts))
		goto fail;
	kvr_policy_init(&cache->policy, policy, cache->entries, cache->entry_max, cache->ghosts,
		cache->ghosts ? ghosts : 0);
	return 0;
fail:
	kvr_cache_close(cache);
	return -ENOMEM;
}

/* Arena and tier end with all that is in them. */
void kvr_cache_close(struct kvr_cache *cache)
{
	free(cache->entries);
	free(cache->owners);
	free(cache->limbo);
	free(cache->ghosts);
	free(cache->places);
	free(cache->place_bytes);
	*cache = (struct kvr_cache){0};
}

/* ---- one unit -------------------------------------------------------------------------------- */

static size_t at_of(const struct kvr_segment_view *view, uint32_t lane, uint32_t unit)
{
	return (size_t)lane * view->unit_count + unit;
}

static uint32_t bytes_of(const struct kvr_segment_view *view, uint32_t lane, uint32_t unit)
{
	return kvr_segment_unit_rows(view, lane, unit) *
	       (uint32_t)(kvr_geometry_key_bytes(view->geometry) +
			  kvr_geometry_value_bytes(view->geometry));
}

static struct kvr_place place_of(
	const struct kvr_cache *cache, const uint8_t *memory, uint32_t bytes)
{
	size_t all;
	const uint8_t *base = kvr_arena_base(cache->arena, &all);

	KVR_ASSERT(memory >= base);
	KVR_ASSERT((size_t)(memory - base) + bytes <= all);
	return (struct kvr_place){.offset = (uint64_t)(memory - base), .bytes = bytes};
}

/* What the ghost remembers a unit by. Any four numbers spread evenly (splitmix64's finish). */
static uint64_t name_of(const struct kvr_segment *segment, uint32_t lane, uint32_t unit)
{
	uint64_t name = segment->id * 0x9e3779b97f4a7c15u + ((uint64_t)lane << 16 | unit);

	name = (name ^ name >> 30) * 0xbf58476d1ce4e5b9u;
	name = (name ^ name >> 27) * 0x94d049bb133111ebu;
	return name ^ name >> 31;
}

static uint32_t take_entry(struct kvr_cache *cache)
{
	uint32_t entry = cache->entry_free;

	KVR_ASSERT(cache->entry_fresh <= cache->entry_max);
	if (entry != KVR_CACHE_NONE)
		cache->entry_free = cache->owners[entry].segment;
	else if (cache->entry_fresh < cache->entry_max)
		entry = cache->entry_fresh++;
	return entry;
}

static void give_entry(struct kvr_cache *cache, uint32_t entry)
{
	KVR_ASSERT(entry < cache->entry_fresh);
	cache->owners[entry].segment = cache->entry_free;
	cache->entry_free = entry;
}

/* Makes an entry of a unit whose extent is set. False: there is none left. (K1) */
static bool admit(struct kvr_cache *cache, uint32_t index, uint32_t lane, uint32_t unit)
{
	struct kvr_segment *segment = &cache->segments[index];
	const uint32_t bytes = bytes_of(&segment->view, lane, unit);
	uint32_t *entry = &segment->entries[at_of(&segment->view, lane, unit)];

	KVR_ASSERT(*entry == KVR_CACHE_NONE);
	*entry = take_entry(cache);
	if (*entry == KVR_CACHE_NONE)
		return false;
	cache->owners[*entry] = (struct kvr_cache_owner){index, (uint16_t)lane, (uint16_t)unit};
	kvr_policy_admit(&cache->policy, *entry, name_of(segment, lane, unit), bytes);
	cache->kept_bytes += bytes; /* K3 */
	if (unit <= segment->view.cluster_max)
		segment->kept_bytes += bytes;
	cache->kept_count++;
	return true;
}

/* The other way round; the policy has let go of it. The memory is the caller's now. */
static uint8_t *retire(struct kvr_cache *cache, uint32_t entry, uint32_t *ret_bytes)
{
	const struct kvr_cache_owner owner = cache->owners[entry];
	struct kvr_segment *segment = &cache->segments[owner.segment];
	uint8_t *memory = kvr_segment_extent(&segment->view, owner.lane)[owner.unit];

	*ret_bytes = bytes_of(&segment->view, owner.lane, owner.unit);
	KVR_ASSERT(memory); /* K1 */
	KVR_ASSERT(memory != KVR_EXTENT_LOST);
	KVR_ASSERT(cache->kept_bytes >= *ret_bytes);
	cache->kept_bytes -= *ret_bytes;
	if (owner.unit <= segment->view.cluster_max) {
		KVR_ASSERT(segment->kept_bytes >= *ret_bytes);
		segment->kept_bytes -= *ret_bytes;
	}
	KVR_ASSERT(cache->kept_count > 0);
	cache->kept_count--;
	segment->entries[at_of(&segment->view, owner.lane, owner.unit)] = KVR_CACHE_NONE;
	kvr_segment_set_extent(&segment->view, owner.lane, owner.unit, NULL);
	give_entry(cache, entry);
	return memory;
}

static void release_memory(struct kvr_cache *cache, struct kvr_place place)
{
	kvr_tier_release(cache->host, KVR_SEGMENT_NONE, &place, 1);
}

/* Frees memory that jobs may still read as soon as they have ended (S6). There is room in limbo. */
static void to_limbo(struct kvr_cache *cache, const uint8_t *memory, uint32_t bytes)
{
	const struct kvr_place place = place_of(cache, memory, bytes);

	if (cache->works->running == 0) {
		release_memory(cache, place);
		return;
	}
	KVR_ASSERT(cache->limbo_count < cache->limbo_max);
	cache->limbo[(cache->limbo_first + cache->limbo_count++) & (cache->limbo_max - 1)] =
		(struct kvr_cache_limbo){place, cache->works->stamp};
	cache->limbo_bytes += bytes; /* K3 */
}

/* ---- whole segments -------------------------------------------------------------------------- */

static int place_lane(struct kvr_cache *cache, uint32_t index, uint32_t lane)
{
	const struct kvr_segment_view *view = &cache->segments[index].view;
	uint32_t count = 0, at = 0;
	int rc;

	for (uint32_t unit = 0; unit < view->unit_count; unit++) {
		const uint32_t bytes = bytes_of(view, lane, unit);

		if (bytes > 0)
			cache->place_bytes[count++] = bytes;
	}
	rc = kvr_tier_reserve(cache->host, index, cache->place_bytes, count, cache->places);
	if (rc < 0)
		return rc;
	for (uint32_t unit = 0; unit < view->unit_count; unit++) {
		if (bytes_of(view, lane, unit) > 0)
			kvr_segment_set_extent(view, lane, unit,
				kvr_tier_address(cache->host, cache->places[at++]));
	}
	KVR_ASSERT(at == count);
	return 0;
}

int kvr_cache_place(struct kvr_cache *cache, uint32_t index, uint32_t *lane)
{
	const uint32_t lanes = kvr_geometry_lanes(cache->segments[index].view.geometry);

	KVR_ASSERT(cache->segments[index].stored == KVR_STORED_NONE);
	for (; *lane < lanes; ++*lane) {
		int rc = place_lane(cache, index, *lane);

		if (rc < 0)
			return rc;
	}
	return 0;
}

void kvr_cache_release(struct kvr_cache *cache, uint32_t index)
{
	struct kvr_segment *segment = &cache->segments[index];
	const struct kvr_segment_view *view = &segment->view;

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
		for (uint32_t unit = 0; unit < view->unit_count; unit++) {
			uint8_t *memory = kvr_segment_extent(view, lane)[unit];
			const uint32_t entry = segment->entries
						       ? segment->entries[at_of(view, lane, unit)]
						       : KVR_CACHE_NONE;
			uint32_t bytes;

			if (!memory || memory == KVR_EXTENT_LOST)
				continue;
			if (entry != KVR_CACHE_NONE) {
				kvr_policy_remove(&cache->policy, entry);
				retire(cache, entry, &bytes);
			} else {
				bytes = bytes_of(view, lane, unit);
				kvr_segment_set_extent(view, lane, unit, NULL);
			}
			release_memory(cache, place_of(cache, memory, bytes));
		}
	}
}

void kvr_cache_adopt(struct kvr_cache *cache, uint32_t index)
{
	struct kvr_segment *segment = &cache->segments[index];
	const struct kvr_segment_view *view = &segment->view;

	KVR_ASSERT(segment->stored == KVR_STORED_YES);
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
		for (uint32_t unit = 0; unit < view->unit_count; unit++) {
			uint8_t *memory = kvr_segment_extent(view, lane)[unit];

			if (!memory || memory == KVR_EXTENT_LOST || admit(cache, index, lane, unit))
				continue;
			if (cache->limbo_count == cache->limbo_max)
				return; /* stays as it is until the segment goes: a copy too many */
			kvr_segment_set_extent(
				view, lane, unit, NULL); /* more units than entries */
			to_limbo(cache, memory, bytes_of(view, lane, unit));
		}
	}
}

/* ---- reading and using ----------------------------------------------------------------------- */

/* Whether so little is free that something has to go for whatever comes: memory, or entries where clusters are small. */
static bool scarce(const struct kvr_cache *cache)
{
	struct kvr_arena_stat stat;

	if (cache->entry_max - cache->kept_count < cache->entry_max / LOW_PART)
		return true;
	kvr_arena_stat(cache->arena, &stat);
	return stat.capacity_bytes - stat.used_bytes + cache->limbo_bytes <
	       stat.capacity_bytes / LOW_PART;
}

uint8_t *kvr_cache_reserve(struct kvr_cache *cache, uint32_t index, uint32_t lane, uint32_t unit)
{
	const struct kvr_segment *segment = &cache->segments[index];
	const uint32_t bytes = bytes_of(&segment->view, lane, unit);
	struct kvr_place place;

	/* What is demoted for it is free later: kvr_cache_settle keeps some in hand. */
	if ((scarce(cache) && !kvr_policy_wants(&cache->policy, name_of(segment, lane, unit))) ||
		kvr_tier_reserve(cache->host, index, &bytes, 1, &place) < 0) {
		cache->declined_bytes += bytes;
		return NULL;
	}
	return kvr_tier_address(cache->host, place);
}

void kvr_cache_insert(
	struct kvr_cache *cache, uint32_t index, uint32_t lane, uint32_t unit, uint8_t *memory)
{
	struct kvr_segment *segment = &cache->segments[index];
	const uint32_t bytes = bytes_of(&segment->view, lane, unit);

	if (kvr_segment_extent(&segment->view, lane)[unit]) { /* another request was first */
		release_memory(cache, place_of(cache, memory, bytes));
		return;
	}
	if (!admit(cache, index, lane, unit)) {
		release_memory(cache, place_of(cache, memory, bytes));
		return;
	}
	kvr_segment_set_extent(&segment->view, lane, unit, memory); /* K1 */
	cache->admitted_bytes += bytes;
}

void kvr_cache_cancel(
	struct kvr_cache *cache, uint32_t index, uint32_t lane, uint32_t unit, uint8_t *memory)
{
	release_memory(
		cache, place_of(cache, memory, bytes_of(&cache->segments[index].view, lane, unit)));
}

void kvr_cache_touch(struct kvr_cache *cache, uint32_t index, uint32_t lane, uint32_t unit,
	float share, bool hit)
{
	const struct kvr_segment *segment = &cache->segments[index];
	const uint32_t bytes = bytes_of(&segment->view, lane, unit);
	const uint32_t entry = segment->entries[at_of(&segment->view, lane, unit)];

	*(hit ? &cache->hit_count : &cache->miss_count) += 1;
	*(hit ? &cache->hit_bytes : &cache->miss_bytes) += bytes;
	if (entry != KVR_CACHE_NONE)
		kvr_policy_touch(&cache->policy, entry, share);
	else if (!hit)
		kvr_policy_note(&cache->policy, name_of(segment, lane, unit));
}

void kvr_cache_advance(struct kvr_cache *cache, uint64_t bytes)
{
	kvr_policy_advance(&cache->policy, bytes);
}

uint64_t kvr_cache_metadata_bytes(const struct kvr_cache *cache)
{
	/* The ghost's names fill up over time: as many as there are clusters. */
	return cache->kept_count * (sizeof(*cache->entries) + sizeof(*cache->owners) +
					   (cache->ghosts ? sizeof(*cache->ghosts) : 0));
}

/* ---- making room ----------------------------------------------------------------------------- */

static bool may_demote(void *context, uint32_t entry)
{
	(void)context;
	(void)entry;
	return true;
}

bool kvr_cache_demote(struct kvr_cache *cache)
{
	uint32_t victim, bytes;
	uint8_t *memory;

	if (cache->kept_count == 0 || cache->limbo_count == cache->limbo_max)
		return false;
	victim = kvr_policy_evict(&cache->policy, may_demote, NULL);
	KVR_ASSERT(victim != KVR_POLICY_NONE);
	memory = retire(cache, victim, &bytes);
	cache->demoted_bytes += bytes;
	to_limbo(cache, memory, bytes);
	return true;
}

static void drain_limbo(struct kvr_cache *cache)
{
	const uint64_t oldest = kvr_works_oldest(cache->works);
	const uint32_t before = cache->limbo_count;

	while (cache->limbo_count > 0) {
		const struct kvr_cache_limbo *limbo = &cache->limbo[cache->limbo_first];

		if (limbo->stamp >= oldest) /* a work of then still runs (K2) */
			break;
		KVR_ASSERT(cache->limbo_bytes >= limbo->place.bytes);
		cache->limbo_bytes -= limbo->place.bytes;
		release_memory(cache, limbo->place);
		cache->limbo_first = (cache->limbo_first + 1) & (cache->limbo_max - 1);
		cache->limbo_count--;
	}
	if (before > 0 && cache->limbo_count < before)
		kvr_waiters_wake(&cache->waiters);
}

void kvr_cache_settle(struct kvr_cache *cache)
{
	if (cache->entry_max == 0)
		return;
	drain_limbo(cache);
	for (uint32_t i = 0; i < DEMOTES_PER_SETTLE && scarce(cache); i++) {
		if (!kvr_cache_demote(cache))
			return;
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/* directory.c: the table of segments, its memory and its eviction. Finding one is in family.c; matching and
 * dropping, which walk down the forest, are in forest.c. */
#include "daemon/directory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/cache.h"
#include "daemon/family.h"
#include "daemon/keep.h"
#include "tiers/store.h"

int kvr_directory_open(struct kvr_directory *directory, enum kvr_policy_kind policy,
	struct kvr_arena *arena, struct kvr_cache *cache, struct kvr_store *store,
	struct kvr_keep *keep)
{
	*directory = (struct kvr_directory){
		.arena = arena, .cache = cache, .store = store, .keep = keep};
	directory->segments = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->segments));
	directory->buckets = malloc(KVR_FAMILY_BUCKETS * sizeof(*directory->buckets));
	directory->stack = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->stack));
	directory->id_buckets = malloc(KVR_FAMILY_BUCKETS * sizeof(*directory->id_buckets));
	directory->policy_entries = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->policy_entries));
	directory->policy_ghosts = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->policy_ghosts));
	if (!directory->segments || !directory->buckets || !directory->stack ||
		!directory->id_buckets || !directory->policy_entries || !directory->policy_ghosts)
		goto fail;
	cache->segments = directory->segments;
	memset(directory->id_buckets, 0xff, KVR_FAMILY_BUCKETS * sizeof(*directory->id_buckets));
	memset(directory->buckets, 0xff, KVR_FAMILY_BUCKETS * sizeof(*directory->buckets));
	for (uint32_t i = 0; i < KVR_SEGMENTS_MAX; i++)
		directory->segments[i].hash_next =
			i + 1 < KVR_SEGMENTS_MAX ? i + 1 : KVR_SEGMENT_NONE;
	if (policy == KVR_POLICY_LRU) /* has no ghosts */
		kvr_policy_init(&directory->policy, policy, directory->policy_entries,
			KVR_SEGMENTS_MAX, NULL, 0);
	else
		kvr_policy_init(&directory->policy, policy, directory->policy_entries,
			KVR_SEGMENTS_MAX, directory->policy_ghosts, KVR_SEGMENTS_MAX);
	return 0;
fail:
	kvr_directory_close(directory);
	return -ENOMEM;
}

/* Arena and tier end with all that is in them: segments are not freed one by one. */
void kvr_directory_close(struct kvr_directory *directory)
{
	free(directory->segments);
	free(directory->buckets);
	free(directory->stack);
	free(directory->id_buckets);
	free(directory->policy_entries);
	free(directory->policy_ghosts);
	*directory = (struct kvr_directory){0};
}

/* ---- memory ---------------------------------------------------------------------------------- */

struct eviction {
	const struct kvr_directory *directory;
	const struct kvr_tenant *tenant; /* NULL: anyone's */
};

/* A segment whose state, leases, pin or children are about to change is counted out, and in again
 * behind the change (G6). */
static void count_removable(struct kvr_directory *directory, uint32_t index, bool in)
{
	struct kvr_segment *segment = &directory->segments[index];
	struct kvr_tenant *tenant;

	if (index == KVR_SEGMENT_NONE || !kvr_directory_idle(directory, index))
		return;
	tenant = segment->model->tenant;
	KVR_ASSERT(in || directory->removable_count > 0);
	KVR_ASSERT(in || tenant->removable_count > 0);
	directory->removable_count =
		in ? directory->removable_count + 1 : directory->removable_count - 1;
	tenant->removable_count = in ? tenant->removable_count + 1 : tenant->removable_count - 1;
	if (segment->stored == KVR_STORED_YES)
		directory->idle_bytes = in ? directory->idle_bytes + segment->memory_bytes
					   : directory->idle_bytes - segment->memory_bytes;
}

/* What is in memory alone is counted here, the rest by the store. */
static void count_unstored(const struct kvr_segment *segment, bool in)
{
	const uint64_t bytes = kvr_directory_token_bytes(segment);
	struct kvr_model *model = segment->model;

	if (segment->state != KVR_SEGMENT_READY || segment->id != 0) /* YES or TWIN */
		return;
	KVR_ASSERT(in || model->segment_count > 0);
	KVR_ASSERT(in || model->stored_bytes >= bytes);
	model->segment_count = in ? model->segment_count + 1 : model->segment_count - 1;
	model->stored_bytes += in ? bytes : 0 - bytes;
}

static bool may_evict(void *context, uint32_t entry)
{
	const struct eviction *eviction = context;
	const struct kvr_segment *segment = &eviction->directory->segments[entry];

	return kvr_directory_idle(eviction->directory, entry) &&
	       (!eviction->tenant || segment->model->tenant == eviction->tenant);
}

static void release(struct kvr_directory *directory, uint32_t segment);

/* Evicts one segment (of `tenant`, if given). Returns whether there was one. */
static bool evict(struct kvr_directory *directory, const struct kvr_tenant *tenant)
{
	struct eviction eviction = {directory, tenant};
	uint32_t victim;

	if ((tenant ? tenant->removable_count : directory->removable_count) == 0)
		return false;
	victim = kvr_policy_evict(&directory->policy, may_evict, &eviction);
	if (victim == KVR_POLICY_NONE)
		return false;
	if (directory->segments[victim].stored != KVR_STORED_YES) { /* else it is only forgotten */
		directory->evicted_count++;
		directory->evicted_bytes += directory->segments[victim].payload_bytes;
	}
	release(directory, victim);
	return true;
}

/* Clusters go before segments, unless what is kept to find idle segments quickly weighs too much beside the
 * clusters that are kept for those in use. */
bool kvr_directory_make_room(struct kvr_directory *directory)
{
	const bool top_heavy = directory->idle_bytes > directory->cache->kept_bytes / 2;

	return (top_heavy && evict(directory, NULL)) || kvr_cache_demote(directory->cache) ||
	       evict(directory, NULL);
}

/* Makes room until `bytes` more may be free. 0: try again now; -EAGAIN: when limbo is free; -ENOSPC: never. */
static int make_room_for(struct kvr_directory *directory, uint64_t bytes)
{
	const struct kvr_cache *cache = directory->cache;

	if (cache->limbo_bytes < bytes && kvr_directory_make_room(directory))
		return 0;
	/* What is on its way to the store can be demoted as soon as it is there. */
	return cache->limbo_count > 0 || (directory->store && kvr_keep_putting(directory->keep))
		       ? -EAGAIN
		       : -ENOSPC;
}

/* Makes the tenant's account bear `bytes` more. */
static int charge(struct kvr_directory *directory, struct kvr_tenant *tenant, size_t bytes)
{
	while (bytes > tenant->quota_bytes || tenant->held_bytes > tenant->quota_bytes - bytes) {
		if (bytes > tenant->quota_bytes || !evict(directory, tenant)) {
			tenant->refused_count++;
			return -EDQUOT;
		}
	}
	tenant->held_bytes += bytes; /* G4 */
	return 0;
}

static void discharge(struct kvr_tenant *tenant, size_t bytes)
{
	KVR_ASSERT(tenant->held_bytes >= bytes); /* G4 */
	tenant->held_bytes -= bytes;
}

/* What the arena cannot hold empty either drives nobody out. */
static bool fits(const struct kvr_directory *directory, uint64_t bytes)
{
	size_t capacity;

	kvr_arena_base(directory->arena, &capacity);
	return bytes <= capacity;
}

void *kvr_directory_alloc(
	struct kvr_directory *directory, struct kvr_tenant *tenant, size_t bytes, int *ret_error)
{
	int rc = fits(directory, bytes) ? charge(directory, tenant, bytes) : -ENOSPC;
	void *memory = NULL;

	if (rc == 0) {
		do {
			memory = kvr_arena_alloc(directory->arena, bytes);
		} while (!memory && (rc = make_room_for(directory, bytes)) == 0);
		if (!memory)
			discharge(tenant, bytes);
	}
	if (!memory)
		*ret_error = rc;
	return memory;
}

void kvr_directory_free(
	struct kvr_directory *directory, struct kvr_tenant *tenant, void *memory, size_t bytes)
{
	if (!memory)
		return;
	kvr_arena_free(directory->arena, memory, bytes);
	discharge(tenant, bytes);
}

/* ---- life ------------------------------------------------------------------------------------ */

/* Points a segment into `memory` (NULL: only adds up): summary and extents, ids, and, where there is a store, what says
 * where its units lie and whether they are here. Returns the bytes. */
static size_t bind(
	const struct kvr_directory *directory, struct kvr_segment *segment, uint8_t *memory)
{
	struct kvr_segment_view *view = &segment->view;
	const size_t ids = kvr_segment_bind_all(view, memory);
	const size_t units = kvr_segment_extent_count(view);
	const size_t crcs = ids + view->token_count * sizeof(*segment->tokens);
	struct kvr_slab_layout layout;

	kvr_slab_layout(view->geometry, view->token_first, view->token_count, &layout);
	segment->payload_bytes = layout.payload_bytes + layout.merged_bytes;
	if (memory) {
		memset(view->extent, 0, units * sizeof(*view->extent));
		/* Dense lanes have none: what is stored of them is not what lay there before. */
		memset(view->merged_tokens, 0,
			(size_t)kvr_geometry_lanes(view->geometry) * view->merged_max *
				sizeof(*view->merged_tokens));
		segment->memory = memory;
		segment->tokens = (uint32_t *)(void *)(memory + ids);
	}
	if (!directory->store)
		return crcs;
	if (memory) {
		segment->crcs = (uint32_t *)(void *)(memory + crcs);
		segment->entries = segment->crcs + units;
		segment->parts = segment->entries + units;
		memset(segment->entries, 0xff, units * sizeof(*segment->entries));
	}
	return crcs + (2 * units + layout.part_count) * sizeof(uint32_t);
}

int kvr_directory_begin(struct kvr_directory *directory, struct kvr_model *model, uint32_t parent,
	const uint8_t hash[KVR_HASH_BYTES], const uint32_t *tokens, uint32_t count,
	uint32_t *ret_segment)
{
	struct kvr_segment shape = {.model = model, .parent = parent};
	uint32_t token_first = 0, index;
	struct kvr_segment *segment;
	uint8_t *memory;
	int rc = 0;

	if (parent != KVR_SEGMENT_NONE) {
		segment = &directory->segments[parent];
		KVR_ASSERT(segment->leases > 0); /* so that making room does not remove it */
		token_first = segment->view.token_first + segment->view.token_count;
	}
	kvr_segment_shape(&shape.view, &model->geometry, token_first, count);
	shape.memory_bytes = bind(directory, &shape, NULL);
	if (directory->free_first == KVR_SEGMENT_NONE && !evict(directory, NULL))
		return -ENOSPC;
	memory = kvr_directory_alloc(directory, model->tenant, shape.memory_bytes, &rc);
	if (!memory)
		return rc;
	(void)bind(directory, &shape, memory);
	index = directory->free_first;
	segment = &directory->segments[index];
	KVR_ASSERT(segment->state == KVR_SEGMENT_FREE);
	directory->free_first = segment->hash_next;
	*segment = shape;
	segment->state = KVR_SEGMENT_BUILDING;
	segment->child_first = KVR_SEGMENT_NONE;
	memcpy(segment->hash, hash, KVR_HASH_BYTES);
	if (tokens)
		memcpy(segment->tokens, tokens, count * sizeof(*tokens));
	kvr_list_init(&segment->waiters);
	kvr_list_init(&segment->keep_link);
	count_removable(directory, parent, false);
	kvr_family_link(directory, index);
	count_removable(directory, parent, true);
	model->users++;
	*ret_segment = index;
	return 0;
}

int kvr_directory_place(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	const struct kvr_segment_view *view = &segment->view;
	const uint64_t bytes = segment->payload_bytes;
	uint32_t lane = 0;
	int rc =
		fits(directory, bytes) ? charge(directory, segment->model->tenant, bytes) : -ENOSPC;

	KVR_ASSERT(segment->state == KVR_SEGMENT_BUILDING);
	KVR_ASSERT(!segment->placed);
	if (rc < 0)
		return rc;
	while ((rc = kvr_cache_place(directory->cache, index, &lane)) == -ENOSPC) {
		const uint32_t left = kvr_geometry_lanes(view->geometry) - lane;

		rc = make_room_for(directory, bytes / kvr_geometry_lanes(view->geometry) * left);
		if (rc < 0)
			break;
	}
	segment->placed = rc == 0;
	if (rc < 0) {
		kvr_cache_release(directory->cache, index);
		discharge(segment->model->tenant, bytes);
	}
	return rc;
}

void kvr_directory_publish(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	uint64_t name;

	KVR_ASSERT(segment->state == KVR_SEGMENT_BUILDING);
	KVR_ASSERT(segment->placed || segment->stored == KVR_STORED_YES);
	segment->state = KVR_SEGMENT_READY;
	count_removable(directory, index, true);
	memcpy(&name, segment->hash, sizeof(name));
	kvr_policy_admit(&directory->policy, index, name,
		segment->payload_bytes < UINT32_MAX ? (uint32_t)segment->payload_bytes
						    : UINT32_MAX);
	directory->ready_count++;
	directory->payload_bytes += segment->payload_bytes;
	directory->memory_bytes += segment->memory_bytes;
	count_unstored(segment, true);
}

/* Frees memory and slot. A READY segment has left the policy already. */
static void release(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	struct kvr_tenant *tenant = segment->model->tenant;

	KVR_ASSERT(segment->leases == 0); /* G2 */
	KVR_ASSERT(segment->child_first == KVR_SEGMENT_NONE);
	KVR_ASSERT(kvr_list_empty(&segment->waiters));
	KVR_ASSERT(segment->stored != KVR_STORED_PUTTING);
	count_removable(directory, index, false);
	if (segment->state == KVR_SEGMENT_READY) {
		KVR_ASSERT(!segment->pinned);
		directory->ready_count--;
		directory->payload_bytes -= segment->payload_bytes;
		directory->memory_bytes -= segment->memory_bytes;
		count_unstored(segment, false);
	}
	count_removable(directory, segment->parent, false);
	kvr_family_unlink(directory, index);
	count_removable(directory, segment->parent, true);
	if (segment->id)
		kvr_family_unlink_id(directory, index);
	kvr_cache_release(directory->cache, index);
	if (segment->placed)
		discharge(tenant, segment->payload_bytes);
	kvr_directory_free(directory, tenant, segment->memory, segment->memory_bytes);
	KVR_ASSERT(segment->model->users > 0);
	segment->model->users--;
	kvr_list_remove(&segment->keep_link);
	*segment = (struct kvr_segment){.hash_next = directory->free_first};
	directory->free_first = index;
}

void kvr_directory_remove(struct kvr_directory *directory, uint32_t index)
{
	if (directory->segments[index].state == KVR_SEGMENT_READY) {
		KVR_ASSERT(kvr_directory_idle(directory, index)); /* G2 */
		kvr_policy_remove(&directory->policy, index);
	}
	release(directory, index);
}

bool kvr_directory_forget(struct kvr_directory *directory, uint32_t index)
{
	if (!kvr_directory_idle(directory, index))
		return false;
	kvr_directory_remove(directory, index);
	return true;
}

/* ---- stored ---------------------------------------------------------------------------------- */

void kvr_directory_putting(struct kvr_directory *directory, uint32_t index, bool putting)
{
	struct kvr_segment *segment = &directory->segments[index];

	KVR_ASSERT(segment->stored == (putting ? KVR_STORED_NONE : KVR_STORED_PUTTING));
	count_removable(directory, index, false);
	segment->stored = putting ? KVR_STORED_PUTTING : KVR_STORED_NONE;
	count_removable(directory, index, true);
}

/* G7 */
static void set_stored(struct kvr_directory *directory, uint32_t index,
	enum kvr_segment_stored stored, uint64_t id)
{
	struct kvr_segment *segment = &directory->segments[index];

	KVR_ASSERT(segment->stored == KVR_STORED_NONE);
	KVR_ASSERT(segment->id == 0);
	KVR_ASSERT(id > 0);
	count_removable(directory, index, false);
	count_unstored(segment, false);
	segment->stored = stored;
	segment->id = id;
	count_removable(directory, index, true);
	kvr_family_link_id(directory, index);
	if (segment->leases == 0 && !segment->pinned)
		kvr_store_unhold(directory->store, id);
	if (segment->pinned)
		kvr_keep_mark(directory->keep, segment);
}

void kvr_directory_stored(struct kvr_directory *directory, uint32_t index, uint64_t id)
{
	struct kvr_segment *segment = &directory->segments[index];

	set_stored(directory, index, KVR_STORED_YES, id);
	if (!segment->placed)
		return;
	discharge(segment->model->tenant, segment->payload_bytes);
	segment->placed = false;
	kvr_cache_adopt(directory->cache, index);
}

void kvr_directory_twin(struct kvr_directory *directory, uint32_t index, uint64_t id)
{
	KVR_ASSERT(directory->segments[index].placed);
	set_stored(directory, index, KVR_STORED_TWIN, id);
}

/* ---- keeping --------------------------------------------------------------------------------- */

/* G7: the first of leases and pin takes the hold, the last gives it back. */
static bool hold(struct kvr_directory *directory, const struct kvr_segment *segment)
{
	if (segment->gone)
		return false;
	return segment->id == 0 || segment->leases > 0 || segment->pinned ||
	       kvr_store_hold(directory->store, segment->id);
}

static void unhold(struct kvr_directory *directory, struct kvr_segment *segment)
{
	if (segment->id && segment->leases == 0 && !segment->pinned) {
		kvr_keep_mark(directory->keep, segment);
		kvr_store_unhold(directory->store, segment->id);
	}
}

bool kvr_directory_lease(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];

	KVR_ASSERT(segment->state == KVR_SEGMENT_READY);
	if (!hold(directory, segment))
		return false;
	count_removable(directory, index, false);
	segment->leases++;
	kvr_policy_touch(&directory->policy, index, 0);
	return true;
}

void kvr_directory_unlease(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];

	KVR_ASSERT(segment->leases > 0);
	segment->leases--;
	unhold(directory, segment);
	count_removable(directory, index, true);
}

uint32_t kvr_directory_pin(struct kvr_directory *directory, uint32_t index, bool pin)
{
	uint32_t changed = 0;

	for (; index != KVR_SEGMENT_NONE; index = directory->segments[index].parent) {
		struct kvr_segment *segment = &directory->segments[index];

		if (segment->pinned == pin)
			continue;
		if (pin && !hold(directory, segment))
			break; /* the store lets go of it: what follows cannot be kept for long */
		count_removable(directory, index, false);
		segment->pinned = pin;
		segment->pin_changed = true;
		if (!pin)
			unhold(directory, segment);
		kvr_keep_mark(directory->keep, segment);
		count_removable(directory, index, true);
		changed++;
	}
	return changed;
}

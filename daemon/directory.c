/* SPDX-License-Identifier: Apache-2.0 */
/* directory.c: the table of segments, its memory and its eviction. Matching and dropping, which walk
 * down the forest, are in forest.c. */
#include "daemon/directory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/crypt.h"

#define BUCKET_COUNT ((size_t)2 * KVR_SEGMENTS_MAX)
KVR_STATIC_ASSERT((BUCKET_COUNT & (BUCKET_COUNT - 1)) == 0);

#define PLACES_MAX (KVR_CLUSTERS_MAX + 1) /* one lane's clusters and its sinks */

int kvr_directory_open(struct kvr_directory *directory, enum kvr_policy_kind policy,
	struct kvr_arena *arena, struct kvr_tier *host)
{
	*directory = (struct kvr_directory){.arena = arena, .host = host};
	directory->segments = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->segments));
	directory->buckets = malloc(BUCKET_COUNT * sizeof(*directory->buckets));
	directory->stack = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->stack));
	directory->places = calloc(PLACES_MAX, sizeof(*directory->places));
	directory->place_bytes = calloc(PLACES_MAX, sizeof(*directory->place_bytes));
	directory->policy_entries = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->policy_entries));
	directory->policy_ghosts = calloc(KVR_SEGMENTS_MAX, sizeof(*directory->policy_ghosts));
	if (!directory->segments || !directory->buckets || !directory->stack ||
		!directory->places || !directory->place_bytes || !directory->policy_entries ||
		!directory->policy_ghosts)
		goto fail;
	memset(directory->buckets, 0xff, BUCKET_COUNT * sizeof(*directory->buckets));
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
	free(directory->places);
	free(directory->place_bytes);
	free(directory->policy_entries);
	free(directory->policy_ghosts);
	*directory = (struct kvr_directory){0};
}

/* ---- memory ---------------------------------------------------------------------------------- */

struct eviction {
	const struct kvr_directory *directory;
	const struct kvr_tenant *tenant; /* NULL: anyone's */
};

static bool removable(const struct kvr_segment *segment) /* G2 */
{
	return segment->state == KVR_SEGMENT_READY && segment->leases == 0 && !segment->pinned &&
	       segment->child_first == KVR_SEGMENT_NONE;
}

/* A segment whose state, leases, pin or children are about to change is counted out, and in again
 * behind the change (G6). */
static void count_removable(struct kvr_directory *directory, uint32_t index, bool in)
{
	struct kvr_segment *segment = &directory->segments[index];
	struct kvr_tenant *tenant;

	if (index == KVR_SEGMENT_NONE || !removable(segment))
		return;
	tenant = segment->model->tenant;
	KVR_ASSERT(in || directory->removable_count > 0);
	KVR_ASSERT(in || tenant->removable_count > 0);
	directory->removable_count =
		in ? directory->removable_count + 1 : directory->removable_count - 1;
	tenant->removable_count = in ? tenant->removable_count + 1 : tenant->removable_count - 1;
}

static bool may_evict(void *context, uint32_t entry)
{
	const struct eviction *eviction = context;
	const struct kvr_segment *segment = &eviction->directory->segments[entry];

	return removable(segment) &&
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
	directory->evicted_count++;
	directory->evicted_bytes += directory->segments[victim].payload_bytes;
	release(directory, victim);
	return true;
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

void *kvr_directory_alloc(
	struct kvr_directory *directory, struct kvr_tenant *tenant, size_t bytes, int *ret_error)
{
	int rc = charge(directory, tenant, bytes);
	void *memory = NULL;

	if (rc == 0) {
		rc = -ENOSPC;
		do {
			memory = kvr_arena_alloc(directory->arena, bytes);
		} while (!memory && evict(directory, NULL));
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

/* ---- hash table and family ------------------------------------------------------------------- */

static uint32_t *bucket_of(const struct kvr_directory *directory, const uint8_t *hash)
{
	uint32_t index;

	memcpy(&index, hash, sizeof(index)); /* keyed BLAKE2b: any four bytes spread evenly */
	return &directory->buckets[index & (BUCKET_COUNT - 1)];
}

void kvr_directory_hash(const struct kvr_directory *directory, const struct kvr_model *model,
	uint32_t parent, const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES])
{
	static const uint8_t none[KVR_HASH_BYTES];
	const struct kvr_crypt_part parts[] = {
		{model->identity, KVR_HASH_BYTES},
		{parent == KVR_SEGMENT_NONE ? none : directory->segments[parent].hash,
			KVR_HASH_BYTES},
		{tokens, count * sizeof(*tokens)},
	};

	kvr_crypt_hash(model->tenant->salt, parts, 3, ret_hash);
}

uint32_t kvr_directory_find(const struct kvr_directory *directory, const struct kvr_model *model,
	uint32_t parent, const uint8_t hash[KVR_HASH_BYTES], const uint32_t *tokens, uint32_t count)
{
	uint32_t at = *bucket_of(directory, hash);

	for (; at != KVR_SEGMENT_NONE; at = directory->segments[at].hash_next) {
		const struct kvr_segment *segment = &directory->segments[at];

		if (memcmp(segment->hash, hash, KVR_HASH_BYTES) == 0 && segment->model == model &&
			segment->parent == parent && segment->view.token_count == count &&
			memcmp(segment->tokens, tokens, count * sizeof(*tokens)) == 0) /* G1 */
			return at;
	}
	return KVR_SEGMENT_NONE;
}

uint32_t kvr_directory_find_hash(const struct kvr_directory *directory,
	const struct kvr_tenant *tenant, const uint8_t hash[KVR_HASH_BYTES])
{
	uint32_t at = *bucket_of(directory, hash);

	for (; at != KVR_SEGMENT_NONE; at = directory->segments[at].hash_next) {
		const struct kvr_segment *segment = &directory->segments[at];

		if (memcmp(segment->hash, hash, KVR_HASH_BYTES) == 0 &&
			segment->model->tenant == tenant && segment->state == KVR_SEGMENT_READY)
			return at;
	}
	return KVR_SEGMENT_NONE;
}

static uint32_t *first_child_of(
	struct kvr_directory *directory, struct kvr_model *model, uint32_t parent)
{
	return parent == KVR_SEGMENT_NONE ? &model->child_first
					  : &directory->segments[parent].child_first;
}

static void link_segment(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	uint32_t *bucket = bucket_of(directory, segment->hash);
	uint32_t *child = first_child_of(directory, segment->model, segment->parent);

	segment->hash_next = *bucket;
	*bucket = index;
	segment->sibling_prev = KVR_SEGMENT_NONE;
	segment->sibling_next = *child;
	if (*child != KVR_SEGMENT_NONE)
		directory->segments[*child].sibling_prev = index;
	count_removable(directory, segment->parent, false);
	*child = index;
	count_removable(directory, segment->parent, true);
}

static void unlink_segment(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	uint32_t *at = bucket_of(directory, segment->hash);

	while (*at != index) {
		KVR_ASSERT(*at != KVR_SEGMENT_NONE);
		at = &directory->segments[*at].hash_next;
	}
	*at = segment->hash_next;
	if (segment->sibling_next != KVR_SEGMENT_NONE)
		directory->segments[segment->sibling_next].sibling_prev = segment->sibling_prev;
	count_removable(directory, segment->parent, false);
	if (segment->sibling_prev != KVR_SEGMENT_NONE)
		directory->segments[segment->sibling_prev].sibling_next = segment->sibling_next;
	else
		*first_child_of(directory, segment->model, segment->parent) = segment->sibling_next;
	count_removable(directory, segment->parent, true);
}

/* ---- life ------------------------------------------------------------------------------------ */

int kvr_directory_begin(struct kvr_directory *directory, struct kvr_model *model, uint32_t parent,
	const uint8_t hash[KVR_HASH_BYTES], const uint32_t *tokens, uint32_t count,
	uint32_t *ret_segment)
{
	struct kvr_segment_view view;
	uint32_t token_first = 0, index;
	struct kvr_segment *segment;
	size_t summary, bytes;
	uint8_t *memory;
	int rc = 0;

	if (parent != KVR_SEGMENT_NONE) {
		segment = &directory->segments[parent];
		KVR_ASSERT(segment->state == KVR_SEGMENT_READY); /* G3 */
		KVR_ASSERT(segment->leases > 0); /* so that making room does not remove it */
		token_first = segment->view.token_first + segment->view.token_count;
	}
	kvr_segment_shape(&view, &model->geometry, token_first, count);
	summary = kvr_segment_bind(&view, NULL);
	bytes = summary + count * sizeof(*tokens);
	if (directory->free_first == KVR_SEGMENT_NONE && !evict(directory, NULL))
		return -ENOSPC;
	memory = kvr_directory_alloc(directory, model->tenant, bytes, &rc);
	if (!memory)
		return rc;
	kvr_segment_bind(&view, memory);
	memset(view.extent, 0,
		(size_t)kvr_geometry_lanes(view.geometry) * (view.cluster_max + 1) *
			sizeof(*view.extent));
	index = directory->free_first;
	segment = &directory->segments[index];
	KVR_ASSERT(segment->state == KVR_SEGMENT_FREE);
	directory->free_first = segment->hash_next;
	*segment = (struct kvr_segment){
		.state = KVR_SEGMENT_BUILDING,
		.view = view,
		.model = model,
		.parent = parent,
		.child_first = KVR_SEGMENT_NONE,
		.tokens = (uint32_t *)(void *)(memory + summary),
		.memory = memory,
		.memory_bytes = bytes,
	};
	memcpy(segment->hash, hash, KVR_HASH_BYTES);
	memcpy(segment->tokens, tokens, count * sizeof(*tokens));
	kvr_list_init(&segment->waiters);
	link_segment(directory, index);
	model->users++;
	*ret_segment = index;
	return 0;
}

/* The clusters of a lane that have rows; those get places, in order. Returns how many. */
static uint32_t lane_places(
	struct kvr_directory *directory, const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *row_first = kvr_segment_row_first(view, lane);
	const uint32_t row_bytes = (uint32_t)(kvr_geometry_key_bytes(view->geometry) +
					      kvr_geometry_value_bytes(view->geometry));
	uint32_t count = 0;

	for (uint32_t c = 0; c <= view->cluster_count[lane]; c++) {
		if (row_first[c + 1] > row_first[c])
			directory->place_bytes[count++] =
				(uint32_t)(row_first[c + 1] - row_first[c]) * row_bytes;
	}
	return count;
}

static int place_lane(struct kvr_directory *directory, uint32_t group,
	const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *row_first = kvr_segment_row_first(view, lane);
	uint8_t **extent = kvr_segment_extent(view, lane);
	uint32_t count, at = 0;
	int rc;

	do { /* evicting uses the same scratch */
		count = lane_places(directory, view, lane);
		rc = kvr_tier_reserve(
			directory->host, group, directory->place_bytes, count, directory->places);
	} while (rc == -ENOSPC && evict(directory, NULL));
	if (rc < 0)
		return rc;
	for (uint32_t c = 0; c <= view->cluster_count[lane]; c++) {
		if (row_first[c + 1] > row_first[c])
			extent[c] = kvr_tier_address(directory->host, directory->places[at++]);
	}
	KVR_ASSERT(at == count);
	return 0;
}

static void unplace(
	struct kvr_directory *directory, uint32_t group, const struct kvr_segment_view *view)
{
	size_t bytes;
	const uint8_t *base = kvr_arena_base(directory->arena, &bytes);

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
		uint8_t **extent = kvr_segment_extent(view, lane);
		uint32_t count, at = 0;

		if (!extent[0]) /* never placed: the first cluster has rows, if they are sinks */
			continue;
		count = lane_places(directory, view, lane);
		for (uint32_t c = 0; c <= view->cluster_max; c++) {
			if (!extent[c])
				continue;
			directory->places[at] = (struct kvr_place){
				.offset = (uint64_t)(extent[c] - base),
				.bytes = directory->place_bytes[at],
			};
			extent[c] = NULL;
			at++;
		}
		KVR_ASSERT(at == count);
		kvr_tier_release(directory->host, group, directory->places, count);
	}
}

int kvr_directory_place(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	const struct kvr_segment_view *view = &segment->view;
	const uint64_t bytes =
		(uint64_t)view->token_count * kvr_geometry_token_bytes(view->geometry);
	int rc = charge(directory, segment->model->tenant, bytes);

	KVR_ASSERT(segment->state == KVR_SEGMENT_BUILDING);
	KVR_ASSERT(segment->payload_bytes == 0);
	if (rc < 0)
		return rc;
	segment->payload_bytes = bytes;
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry) && rc == 0; lane++)
		rc = place_lane(directory, index, view, lane);
	if (rc < 0) {
		unplace(directory, index, view);
		discharge(segment->model->tenant, bytes);
		segment->payload_bytes = 0;
	}
	return rc;
}

void kvr_directory_publish(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	uint64_t name;

	KVR_ASSERT(segment->state == KVR_SEGMENT_BUILDING);
	KVR_ASSERT(segment->payload_bytes > 0);
	segment->state = KVR_SEGMENT_READY;
	count_removable(directory, index, true);
	memcpy(&name, segment->hash, sizeof(name));
	kvr_policy_admit(&directory->policy, index, name, segment->payload_bytes);
	directory->ready_count++;
	directory->payload_bytes += segment->payload_bytes;
	directory->memory_bytes += segment->memory_bytes;
	segment->model->segment_count++;
	segment->model->stored_bytes += segment->payload_bytes;
}

/* Frees memory and slot. A READY segment has left the policy already. */
static void release(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	struct kvr_tenant *tenant = segment->model->tenant;

	KVR_ASSERT(segment->leases == 0); /* G2 */
	KVR_ASSERT(segment->child_first == KVR_SEGMENT_NONE);
	KVR_ASSERT(kvr_list_empty(&segment->waiters));
	count_removable(directory, index, false);
	if (segment->state == KVR_SEGMENT_READY) {
		KVR_ASSERT(!segment->pinned);
		directory->ready_count--;
		directory->payload_bytes -= segment->payload_bytes;
		directory->memory_bytes -= segment->memory_bytes;
		segment->model->segment_count--;
		segment->model->stored_bytes -= segment->payload_bytes;
	}
	unlink_segment(directory, index);
	if (segment->payload_bytes) {
		unplace(directory, index, &segment->view);
		discharge(tenant, segment->payload_bytes);
	}
	kvr_directory_free(directory, tenant, segment->memory, segment->memory_bytes);
	KVR_ASSERT(segment->model->users > 0);
	segment->model->users--;
	*segment = (struct kvr_segment){.hash_next = directory->free_first};
	directory->free_first = index;
}

void kvr_directory_remove(struct kvr_directory *directory, uint32_t index)
{
	if (directory->segments[index].state == KVR_SEGMENT_READY) {
		KVR_ASSERT(removable(&directory->segments[index])); /* G2 */
		kvr_policy_remove(&directory->policy, index);
	}
	release(directory, index);
}

void kvr_directory_lease(struct kvr_directory *directory, uint32_t index)
{
	KVR_ASSERT(directory->segments[index].state == KVR_SEGMENT_READY);
	count_removable(directory, index, false);
	directory->segments[index].leases++;
	kvr_policy_touch(&directory->policy, index);
}

void kvr_directory_unlease(struct kvr_directory *directory, uint32_t index)
{
	KVR_ASSERT(directory->segments[index].leases > 0);
	directory->segments[index].leases--;
	count_removable(directory, index, true);
}

uint32_t kvr_directory_pin(struct kvr_directory *directory, uint32_t index, bool pin)
{
	uint32_t changed = 0;

	for (; index != KVR_SEGMENT_NONE; index = directory->segments[index].parent) {
		count_removable(directory, index, false);
		changed += directory->segments[index].pinned != pin;
		directory->segments[index].pinned = pin;
		count_removable(directory, index, true);
	}
	return changed;
}

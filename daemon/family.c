/* SPDX-License-Identifier: Apache-2.0 */
/* family.c: see family.h. */
#include "daemon/family.h"

#include <string.h>

#include "base/assert.h"

static uint32_t *bucket_of(const struct kvr_directory *directory, const uint8_t *hash)
{
	uint32_t index;

	memcpy(&index, hash, sizeof(index)); /* keyed BLAKE2b: any four bytes spread evenly */
	return &directory->buckets[index & (KVR_FAMILY_BUCKETS - 1)];
}

void kvr_directory_hash(const struct kvr_directory *directory, const struct kvr_model *model,
	uint32_t parent, const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES])
{
	kvr_model_name(model,
		parent == KVR_SEGMENT_NONE ? model->root : directory->segments[parent].hash, tokens,
		count, ret_hash);
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

/* Ids of one boot are consecutive: their low bits spread evenly. */
static uint32_t *id_bucket_of(const struct kvr_directory *directory, uint64_t id)
{
	return &directory->id_buckets[id & (KVR_FAMILY_BUCKETS - 1)];
}

void kvr_family_link_id(struct kvr_directory *directory, uint32_t index)
{
	struct kvr_segment *segment = &directory->segments[index];
	uint32_t *bucket = id_bucket_of(directory, segment->id);

	KVR_ASSERT(segment->id > 0);
	segment->id_next = *bucket;
	*bucket = index;
}

void kvr_family_unlink_id(struct kvr_directory *directory, uint32_t index)
{
	uint32_t *at = id_bucket_of(directory, directory->segments[index].id);

	while (*at != index) {
		KVR_ASSERT(*at != KVR_SEGMENT_NONE);
		at = &directory->segments[*at].id_next;
	}
	*at = directory->segments[index].id_next;
}

uint32_t kvr_directory_find_id(const struct kvr_directory *directory, uint64_t id)
{
	uint32_t at = *id_bucket_of(directory, id);

	while (at != KVR_SEGMENT_NONE && directory->segments[at].id != id)
		at = directory->segments[at].id_next;
	return at;
}

void kvr_family_link(struct kvr_directory *directory, uint32_t index)
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
	*child = index;
}

void kvr_family_unlink(struct kvr_directory *directory, uint32_t index)
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
	if (segment->sibling_prev != KVR_SEGMENT_NONE)
		directory->segments[segment->sibling_prev].sibling_next = segment->sibling_next;
	else
		*first_child_of(directory, segment->model, segment->parent) = segment->sibling_next;
}

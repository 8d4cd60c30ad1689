/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_record_large.c: the rows of models and segments, which are too long for struct
 * kvr_catalog_value.
 *
 * Their byte tables stand with the others, in catalog_record.c. */
#include <errno.h>

#include "tiers/catalog_bytes.h"

#define SEGMENT_FIXED  92u
#define GEOMETRY_WORDS 10u
#define DENSE_WORDS    (KVR_LANES_MAX / 64)
#define MODEL_GEOMETRY 164u
#define MODEL_DENSE    (MODEL_GEOMETRY + 4u * GEOMETRY_WORDS)
#define MODEL_BYTES    (MODEL_DENSE + 8u * DENSE_WORDS)

KVR_STATIC_ASSERT(MODEL_BYTES + KVR_CATALOG_CRC_BYTES == KVR_CATALOG_MODEL_BYTES);
KVR_STATIC_ASSERT(SEGMENT_FIXED + 4u * KVR_SLAB_PARTS_MAX + KVR_CATALOG_CRC_BYTES ==
		  KVR_CATALOG_SEGMENT_BYTES);

/* ---- model
 * --------------------------------------------------------------------------------------- */

/* A name of 1 to 63 bytes in 64, zeros behind it (R1). */
static void put_name(uint8_t *to, const char *name)
{
	const size_t bytes = strnlen(name, KVR_NAME_MAX);

	KVR_ASSERT(bytes < KVR_NAME_MAX);
	memset(to, 0, KVR_NAME_MAX);
	memcpy(to, name, bytes);
}

static bool get_name(const uint8_t *from, char *ret_name)
{
	const size_t bytes = strnlen((const char *)from, KVR_NAME_MAX);

	for (size_t i = bytes; i < KVR_NAME_MAX; i++)
		if (from[i] != 0)
			return false;
	memcpy(ret_name, from, KVR_NAME_MAX);
	return bytes < KVR_NAME_MAX;
}

void kvr_catalog_pack_model(const struct kvr_slab_model *model, uint8_t *ret_value)
{
	const struct kvr_geometry *g = &model->geometry;
	const uint32_t words[GEOMETRY_WORDS] = {g->layer_count, g->query_heads, g->kv_heads,
		g->key_dim, g->value_dim, (uint32_t)g->dtype, g->segment_tokens, g->cluster_tokens,
		g->sink_tokens, g->merged};

	KVR_ASSERT(kvr_geometry_valid(g));
	put_name(ret_value, model->tenant);
	put_name(ret_value + 64, model->name);
	memcpy(ret_value + 128, model->digest, KVR_HASH_BYTES);
	kvr_put_little(ret_value + 160, model->rank, 4);
	for (uint32_t i = 0; i < GEOMETRY_WORDS; i++)
		kvr_put_little(ret_value + MODEL_GEOMETRY + 4 * (size_t)i, words[i], 4);
	for (uint32_t i = 0; i < DENSE_WORDS; i++)
		kvr_put_little(ret_value + MODEL_DENSE + 8 * (size_t)i, g->dense[i], 8);
	kvr_row_seal(KVR_CATALOG_MODEL, model->root, KVR_HASH_BYTES, ret_value, MODEL_BYTES);
}

static void get_geometry(const uint8_t *from, struct kvr_geometry *ret_geometry)
{
	*ret_geometry = (struct kvr_geometry){
		.layer_count = kvr_get32(from),
		.query_heads = kvr_get32(from + 4),
		.kv_heads = kvr_get32(from + 8),
		.key_dim = kvr_get32(from + 12),
		.value_dim = kvr_get32(from + 16),
		.dtype = (enum kvr_dtype)kvr_get32(from + 20),
		.segment_tokens = kvr_get32(from + 24),
		.cluster_tokens = kvr_get32(from + 28),
		.sink_tokens = kvr_get32(from + 32),
		.merged = kvr_get32(from + 36),
	};
	for (uint32_t i = 0; i < DENSE_WORDS; i++)
		ret_geometry->dense[i] =
			kvr_get64(from + (size_t)4 * GEOMETRY_WORDS + (size_t)8 * i);
}

int kvr_catalog_unpack_model(
	struct kvr_span key, struct kvr_span value, struct kvr_slab_model *ret_model)
{
	struct kvr_slab_model model = {0};

	if (!kvr_row_sealed(KVR_CATALOG_MODEL, key, KVR_HASH_BYTES, value, MODEL_BYTES))
		return -EBADMSG;
	/* What is no kvr_dtype must not become one by conversion. */
	if (kvr_get32(value.data + MODEL_GEOMETRY + 20) > KVR_DTYPE_BF16)
		return -EBADMSG;
	get_geometry(value.data + MODEL_GEOMETRY, &model.geometry);
	if (!kvr_geometry_valid(&model.geometry) || !get_name(value.data, model.tenant) ||
		!get_name(value.data + 64, model.name))
		return -EBADMSG;
	memcpy(model.root, key.data, KVR_HASH_BYTES);
	memcpy(model.digest, value.data + 128, KVR_HASH_BYTES);
	model.rank = kvr_get32(value.data + 160);
	*ret_model = model;
	return 0;
}

/* ---- segment --------------------------------------------------------------------------- */

uint32_t kvr_catalog_pack_segment(const struct kvr_catalog_segment *segment,
	struct kvr_catalog_counts counts, uint8_t *ret_value)
{
	const uint32_t bytes = SEGMENT_FIXED + 4 * segment->part_count;

	KVR_ASSERT(segment->id >= 1);
	KVR_ASSERT(segment->part_count >= 1);
	KVR_ASSERT(segment->part_count <= KVR_SLAB_PARTS_MAX);
	kvr_put_little(ret_value, segment->id, 8);
	memcpy(ret_value + 8, segment->parent, KVR_HASH_BYTES);
	memcpy(ret_value + 40, segment->root, KVR_HASH_BYTES);
	kvr_put_little(ret_value + 72, segment->token_first, 4);
	kvr_put_little(ret_value + 76, segment->token_count, 4);
	kvr_put_little(ret_value + 80, segment->part_count, 4);
	kvr_put_little(ret_value + 84, counts.cluster, 4);
	kvr_put_little(ret_value + 88, counts.merged, 4);
	for (uint32_t i = 0; i < segment->part_count; i++)
		kvr_put_little(ret_value + SEGMENT_FIXED + 4 * (size_t)i, segment->parts[i], 4);
	kvr_row_seal(KVR_CATALOG_SEGMENT, segment->hash, KVR_HASH_BYTES, ret_value, bytes);
	return bytes + KVR_CATALOG_CRC_BYTES;
}

int kvr_catalog_unpack_segment(struct kvr_span key, struct kvr_span value, uint32_t *parts,
	uint32_t part_max, struct kvr_catalog_segment *ret_segment,
	struct kvr_catalog_counts *ret_counts)
{
	struct kvr_catalog_segment segment = {.parts = parts};

	if (value.bytes < SEGMENT_FIXED + KVR_CATALOG_CRC_BYTES)
		return -EBADMSG;
	segment.part_count = kvr_get32(value.data + 80);
	if (segment.part_count < 1 || segment.part_count > KVR_SLAB_PARTS_MAX)
		return -EBADMSG;
	if (!kvr_row_sealed(KVR_CATALOG_SEGMENT, key, KVR_HASH_BYTES, value,
		    SEGMENT_FIXED + 4 * (size_t)segment.part_count))
		return -EBADMSG;
	segment.id = kvr_get64(value.data);
	memcpy(segment.hash, key.data, KVR_HASH_BYTES);
	memcpy(segment.parent, value.data + 8, KVR_HASH_BYTES);
	memcpy(segment.root, value.data + 40, KVR_HASH_BYTES);
	segment.token_first = kvr_get32(value.data + 72);
	segment.token_count = kvr_get32(value.data + 76);
	if (segment.id < 1 || segment.token_first >= KVR_SEQUENCE_TOKENS_MAX ||
		segment.token_count < 1 || segment.token_count > KVR_SEGMENT_TOKENS_MAX)
		return -EBADMSG;
	if (parts && segment.part_count > part_max)
		return -E2BIG;
	for (uint32_t i = 0; parts && i < segment.part_count; i++)
		parts[i] = kvr_get32(value.data + SEGMENT_FIXED + 4 * (size_t)i);
	*ret_segment = segment;
	ret_counts->cluster = kvr_get32(value.data + 84);
	ret_counts->merged = kvr_get32(value.data + 88);
	return 0;
}

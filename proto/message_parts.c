/* SPDX-License-Identifier: Apache-2.0 */
/* message_parts.c: what several messages share: text, hashes, geometries, token ids.
 *
 * `take` reads from protobuf-c's structs, which message_check.c has passed, `give` writes them. What
 * is given is borrowed from the plain struct until the message is packed. */
#include "proto/message_arena.h"

#include <errno.h>
#include <string.h>

/* A lane bitmap travels as it lies in memory. */
KVR_STATIC_ASSERT(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

#define DENSE_BYTES_MAX (KVR_LANES_MAX / 8)
KVR_STATIC_ASSERT(sizeof(((struct kvr_geometry *)0)->dense) == DENSE_BYTES_MAX);

int kvr_message_take_text(struct kvr_message_arena *arena, const char *field, const char *from,
	char *into, size_t max)
{
	size_t bytes = strlen(from);

	if (bytes >= max)
		return kvr_message_refuse(
			arena, -E2BIG, "%s has %zu bytes, at most %zu", field, bytes, max - 1);
	memcpy(into, from, bytes + 1);
	return 0;
}

int kvr_message_take_bytes(struct kvr_message_arena *arena, const char *field,
	ProtobufCBinaryData from, uint8_t *into, size_t bytes)
{
	KVR_ASSERT(bytes > 0);
	if (from.len != bytes)
		return kvr_message_refuse(
			arena, -EBADMSG, "%s has %zu bytes, not %zu", field, from.len, bytes);
	memcpy(into, from.data, bytes);
	return 0;
}

/* No lane may be dense that the geometry does not have. */
static bool dense_fits(const struct kvr_geometry *geometry, ProtobufCBinaryData dense)
{
	uint32_t lanes;

	if (geometry->layer_count > KVR_LAYERS_MAX || geometry->kv_heads > KVR_KV_HEADS_MAX)
		return true; /* kvr_geometry_valid refuses the geometry itself */
	lanes = kvr_geometry_lanes(geometry);
	for (size_t i = lanes / 8; i < dense.len; i++) {
		uint32_t beyond = i == lanes / 8 ? 0xffu << lanes % 8 : 0xffu;

		if (dense.data[i] & beyond)
			return false;
	}
	return true;
}

int kvr_message_take_geometry(
	struct kvr_message_arena *arena, const Kvrecall__Geometry *from, struct kvr_geometry *into)
{
	if (from == NULL)
		return kvr_message_refuse(arena, -EBADMSG, "geometry is missing");
	if (from->dense.len > DENSE_BYTES_MAX)
		return kvr_message_refuse(arena, -E2BIG, "Geometry.dense has %zu bytes, at most %u",
			from->dense.len, DENSE_BYTES_MAX);
	if (from->dtype < KVR_DTYPE_F32 || from->dtype > KVR_DTYPE_BF16)
		return kvr_message_refuse(
			arena, -EBADMSG, "Geometry.dtype is %u, must be 1 to 3", from->dtype);
	if (from->sink_tokens > KVR_BLOCK_TOKENS)
		return kvr_message_refuse(arena, -E2BIG, "Geometry.sink_tokens is %u, at most %u",
			from->sink_tokens, KVR_BLOCK_TOKENS);
	if (from->merged >= 1u << KVR_MERGED_SETS)
		return kvr_message_refuse(arena, -EBADMSG,
			"Geometry.merged is %u: there are %u merged sets", from->merged,
			KVR_MERGED_SETS);
	*into = (struct kvr_geometry){
		.layer_count = from->layer_count,
		.query_heads = from->query_heads,
		.kv_heads = from->kv_heads,
		.key_dim = from->key_dim,
		.value_dim = from->value_dim,
		.dtype = (enum kvr_dtype)from->dtype,
		.segment_tokens = from->segment_tokens,
		.cluster_tokens = from->cluster_tokens,
		.sink_tokens = from->default_sinks ? UINT32_MAX : from->sink_tokens,
		.merged = from->merged,
	};
	if (!dense_fits(into, from->dense))
		return kvr_message_refuse(
			arena, -EBADMSG, "Geometry.dense names a lane past the last one");
	if (from->dense.len > 0)
		memcpy(into->dense, from->dense.data, from->dense.len);
	return 0;
}

int kvr_message_take_tokens(
	struct kvr_message_arena *arena, const Kvrecall__Tokens *from, struct kvr_tokens *into)
{
	const Kvrecall__Span *region = from != NULL ? from->region : NULL;

	*into = (struct kvr_tokens){0};
	if (from == NULL)
		return 0;
	KVR_ASSERT(from->n_ids <= KVR_TOKENS_INLINE_MAX); /* M1 */
	if (from->n_ids > 0 && region != NULL)
		return kvr_message_refuse(
			arena, -EBADMSG, "Tokens.ids and Tokens.region exclude each other");
	if (from->n_ids > 0) {
		into->ids = from->ids;
		into->count = (uint32_t)from->n_ids;
		return 0;
	}
	if (region == NULL)
		return 0;
	if (region->bytes % sizeof(uint32_t) != 0)
		return kvr_message_refuse(
			arena, -EBADMSG, "Tokens.region.bytes is no multiple of 4");
	if (region->bytes / sizeof(uint32_t) > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_message_refuse(arena, -E2BIG, "Tokens.region has more than %u tokens",
			KVR_SEQUENCE_TOKENS_MAX);
	into->count = (uint32_t)(region->bytes / sizeof(uint32_t));
	into->offset = region->offset;
	return 0;
}

char *kvr_message_give_text(const char *from, char *spare, size_t max)
{
	size_t bytes = strnlen(from, max);
	size_t text;

	KVR_ASSERT(bytes < max); /* terminated */
	text = kvr_wire_text((struct kvr_span){(uint8_t *)from, bytes});
	if (text == bytes)
		return (char *)from;
	memcpy(spare, from, text);
	spare[text] = '\0';
	return spare;
}

ProtobufCBinaryData kvr_message_give_bytes(const uint8_t *from, size_t bytes)
{
	KVR_ASSERT(bytes == 0 || from != NULL);
	return (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)from};
}

void kvr_message_give_geometry(
	const struct kvr_geometry *from, bool dense, Kvrecall__Geometry *into)
{
	const uint8_t *lanes = (const uint8_t *)from->dense;
	size_t bytes = dense ? DENSE_BYTES_MAX : 0;

	while (bytes > 0 && lanes[bytes - 1] == 0)
		bytes--;
	kvrecall__geometry__init(into);
	into->layer_count = from->layer_count;
	into->query_heads = from->query_heads;
	into->kv_heads = from->kv_heads;
	into->key_dim = from->key_dim;
	into->value_dim = from->value_dim;
	into->dtype = from->dtype;
	into->segment_tokens = from->segment_tokens;
	into->cluster_tokens = from->cluster_tokens;
	into->default_sinks = from->sink_tokens == UINT32_MAX;
	into->sink_tokens = into->default_sinks ? 0 : from->sink_tokens;
	into->merged = from->merged;
	into->dense = kvr_message_give_bytes(lanes, bytes);
}

bool kvr_message_give_tokens(
	const struct kvr_tokens *from, Kvrecall__Tokens *into, Kvrecall__Span *region)
{
	kvrecall__tokens__init(into);
	kvrecall__span__init(region);
	if (from->count == 0)
		return false;
	if (from->ids != NULL) {
		KVR_ASSERT(from->count <= KVR_TOKENS_INLINE_MAX);
		into->n_ids = from->count;
		into->ids = (uint32_t *)from->ids;
		return true;
	}
	KVR_ASSERT(from->count <= KVR_SEQUENCE_TOKENS_MAX);
	region->offset = from->offset;
	region->bytes = (uint64_t)from->count * sizeof(uint32_t);
	into->region = region;
	return true;
}

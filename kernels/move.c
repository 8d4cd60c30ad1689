/* SPDX-License-Identifier: Apache-2.0 */
/* move.c: the CPU device's operations that only move rows: append, pack, fetch, copy.
 *
 *   client region ─append─► tail ─pack─► extents of a segment ─fetch─► token order
 *
 * Recall's own moving is in recall.c. Loops run in the order of what is written, row by row: a row
 * is 128 bytes to 2 KiB, and scattered reads overlap better than scattered writes. */

#include "kernels/move.h"

#include <errno.h>

/* ---- append ---------------------------------------------------------------------------------- */

/* One lane's rows of `count` tokens that lie in one block of the tail. */
static bool append_rows(const struct kvr_move_ops *ops, const struct kvr_append_item *item,
	uint32_t head, uint32_t from, uint32_t count)
{
	const struct kvr_geometry *geometry = item->tail->geometry;
	const uint32_t lane = item->layer * geometry->kv_heads + head;
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);
	uint8_t *key = kvr_tail_key(item->tail, lane, item->first + from);
	uint8_t *value = kvr_tail_value(item->tail, lane, item->first + from);
	bool finite = true;

	for (uint32_t i = 0; i < count; i++) {
		const size_t row = (size_t)(from + i) * geometry->kv_heads + head;

		finite &= ops->move_finite(key + i * key_bytes, item->keys + row * key_bytes,
			key_bytes, geometry->dtype);
		finite &= ops->move_finite(value + i * value_bytes,
			item->values + row * value_bytes, value_bytes, geometry->dtype);
	}
	return finite;
}

int kvr_cpu_append(struct kvr_append_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_move_ops *ops = kvr_move_ops_of(isa);
	bool finite = true;
	uint32_t count;

	(void)scratch;
	KVR_ASSERT(item->layer < item->tail->geometry->layer_count);
	/* Block by block: the rows of a block's lanes stay in the cache while all heads are read. */
	for (uint32_t from = 0; from < item->count; from += count) {
		count = KVR_BLOCK_TOKENS - (item->first + from) % KVR_BLOCK_TOKENS;
		if (count > item->count - from)
			count = item->count - from;
		for (uint32_t head = 0; head < item->tail->geometry->kv_heads; head++)
			finite &= append_rows(ops, item, head, from, count);
	}
	item->status = finite ? 0 : -EDOM;
	return item->status;
}

/* ---- pack ------------------------------------------------------------------------------------ */

int kvr_cpu_pack(struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_move_ops *ops = kvr_move_ops_of(isa);
	const struct kvr_segment_view *segment = item->segment;
	const size_t key_bytes = kvr_geometry_key_bytes(segment->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(segment->geometry);
	const uint16_t *first = kvr_segment_row_first(segment, item->lane);
	const uint16_t *token = kvr_segment_row_token(segment, item->lane);
	const uint32_t clusters = segment->cluster_count[item->lane];

	(void)scratch;
	KVR_ASSERT(clusters <= segment->cluster_max);
	KVR_ASSERT(first[clusters + 1] == segment->token_count); /* S1 */
	for (uint32_t c = 0; c <= clusters; c++) {
		const uint32_t rows = (uint32_t)first[c + 1] - first[c];
		uint8_t *key = kvr_segment_get_extent(segment, item->lane, c);
		uint8_t *value;

		if (rows == 0) /* no sinks */
			continue;
		KVR_ASSERT(key);
		KVR_ASSERT(key != KVR_EXTENT_LOST);
		value = key + rows * key_bytes;
		for (uint32_t i = 0; i < rows; i++, key += key_bytes)
			ops->move(key, kvr_tail_key(item->tail, item->lane, token[first[c] + i]),
				key_bytes);
		for (uint32_t i = 0; i < rows; i++, value += value_bytes)
			ops->move(value,
				kvr_tail_value(item->tail, item->lane, token[first[c] + i]),
				value_bytes);
	}
	return 0;
}

/* ---- fetch ----------------------------------------------------------------------------------- */

/* The rows of one segment whose tokens are in the range. */
static int fetch_segment(const struct kvr_move_ops *ops, const struct kvr_fetch_item *item,
	const struct kvr_segment_view *segment)
{
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	const uint16_t *first = kvr_segment_row_first(segment, item->lane);
	const uint16_t *token = kvr_segment_row_token(segment, item->lane);
	const uint32_t clusters = segment->cluster_count[item->lane];

	KVR_ASSERT(clusters <= segment->cluster_max);
	for (uint32_t c = 0; c <= clusters; c++) {
		const uint8_t *extent = kvr_segment_get_extent(segment, item->lane, c);
		const uint32_t rows = (uint32_t)first[c + 1] - first[c];

		for (uint32_t i = 0; i < rows; i++) {
			const uint32_t position = segment->token_first + token[first[c] + i];
			const size_t to = (size_t)position - item->first;

			if (position < item->first || to >= item->count)
				continue;
			if (!extent || extent == KVR_EXTENT_LOST)
				return -EIO;
			ops->move(item->keys + to * item->key_stride, extent + i * key_bytes,
				key_bytes);
			ops->move(item->values + to * item->value_stride,
				extent + rows * key_bytes + i * value_bytes, value_bytes);
		}
	}
	return 0;
}

static void fetch_tail(const struct kvr_move_ops *ops, const struct kvr_fetch_item *item)
{
	const uint32_t end = item->first + item->count;
	uint32_t position = item->first > item->tail_first ? item->first : item->tail_first;

	for (; position < end; position++) {
		const size_t to = (size_t)position - item->first;
		const uint32_t token = position - item->tail_first;

		ops->move(item->keys + to * item->key_stride,
			kvr_tail_key(item->tail, item->lane, token),
			kvr_geometry_key_bytes(item->geometry));
		ops->move(item->values + to * item->value_stride,
			kvr_tail_value(item->tail, item->lane, token),
			kvr_geometry_value_bytes(item->geometry));
	}
}

int kvr_cpu_fetch(struct kvr_fetch_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_move_ops *ops = kvr_move_ops_of(isa);

	(void)scratch;
	KVR_ASSERT(item->count <= KVR_SEQUENCE_TOKENS_MAX);
	KVR_ASSERT(item->first <= KVR_SEQUENCE_TOKENS_MAX - item->count);
	item->status = 0;
	for (uint32_t s = 0; s < item->segment_count && item->status == 0; s++) {
		const struct kvr_segment_view *segment = item->segments[s];

		if (segment->token_first + segment->token_count <= item->first)
			continue;
		if (segment->token_first >= item->first + item->count)
			break;
		item->status = fetch_segment(ops, item, segment);
	}
	if (item->status == 0 && item->tail)
		fetch_tail(ops, item);
	return item->status;
}

/* ---- copy ------------------------------------------------------------------------------------ */

int kvr_cpu_copy(struct kvr_copy_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	(void)scratch;
	kvr_move_ops_of(isa)->move(item->to, item->from, item->bytes);
	return 0;
}

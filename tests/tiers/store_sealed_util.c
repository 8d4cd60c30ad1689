/* SPDX-License-Identifier: Apache-2.0 */
/* store_sealed_util.c: segments as a daemon would have sealed them: summaries that hold, and random bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/store_util.h"

void kvr_store_test_name(const void *context, const uint8_t parent[KVR_HASH_BYTES],
	const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES])
{
	struct kvr_random random = {count};

	(void)context;
	for (uint32_t i = 0; i < KVR_HASH_BYTES; i++)
		random.state = kvr_random_next(&random) ^ parent[i];
	for (uint32_t i = 0; i < count; i++)
		random.state = kvr_random_next(&random) ^ tokens[i];
	for (uint32_t i = 0; i < KVR_HASH_BYTES; i++)
		ret_hash[i] = (uint8_t)kvr_random_next(&random);
}

/* Clusters of one lane: random sizes, and in one that is not dense random tokens. */
static void make_lane(struct kvr_segment_view *view, uint32_t lane, struct kvr_random *random)
{
	const uint32_t rows = view->token_count - view->sink_count;
	uint16_t *row_first = kvr_segment_row_first(view, lane);
	uint16_t *row_token = kvr_segment_row_token(view, lane);
	uint32_t *cluster_of = calloc(view->token_count, sizeof(*cluster_of));
	uint32_t count = rows > 0 ? kvr_random_range(random, 1, view->cluster_max) : 0;
	uint32_t row = 0;

	if (count > rows)
		count = rows;
	for (uint32_t i = 0; i < rows; i++) {
		const uint32_t even = (uint32_t)((uint64_t)i * count / rows);

		cluster_of[i] = even;
		if (i > 0 && !kvr_geometry_is_dense(view->geometry, lane)) {
			const uint32_t other = kvr_random_range(random, 0, i);

			cluster_of[i] = cluster_of[other];
			cluster_of[other] = even;
		}
	}
	for (uint32_t cluster = 0; cluster < count; cluster++) {
		row_first[cluster] = (uint16_t)row;
		for (uint32_t i = 0; i < rows; i++) {
			if (cluster_of[i] == cluster)
				row_token[row++] = (uint16_t)(view->sink_count + i);
		}
	}
	assert_int_equal(row, rows);
	row_first[count] = (uint16_t)rows;
	for (uint32_t i = count + 1; i <= view->cluster_max + 1; i++)
		row_first[i] = (uint16_t)view->token_count;
	for (uint32_t i = 0; i < view->sink_count; i++)
		row_token[rows + i] = (uint16_t)i;
	view->cluster_count[lane] = (uint16_t)count;
	free(cluster_of);
}

/* Random numbers of tokens for the rows of a lane's merged sets (S9). */
static void make_merged(struct kvr_segment_view *view, uint32_t lane, struct kvr_random *random)
{
	uint16_t *tokens = view->merged_tokens + (size_t)lane * view->merged_max;

	memset(tokens, 0, view->merged_max * sizeof(*tokens));
	for (uint32_t unit = view->cluster_max + 1; unit < view->unit_count; unit++) {
		const uint32_t rows = kvr_segment_unit_rows(view, lane, unit);
		const uint32_t all = view->token_count - view->sink_count;

		for (uint32_t row = 0; row < rows; row++)
			tokens[row] = 1;
		for (uint32_t left = rows; rows > 0 && left < all; left++)
			tokens[kvr_random_range(random, 0, rows - 1)]++;
		tokens += rows;
	}
}

struct kvr_store_sealed *kvr_store_sealed_shape(
	const struct kvr_store_bed *bed, uint32_t token_first, uint32_t count)
{
	struct kvr_store_sealed *segment = calloc(1, sizeof(*segment));
	size_t extents;

	kvr_segment_shape(&segment->view, &bed->model.geometry, token_first, count);
	segment->memory = aligned_alloc(64, kvr_segment_bind_all(&segment->view, NULL));
	memset(segment->memory, 0xee, kvr_segment_bind_all(&segment->view, NULL));
	kvr_segment_bind_all(&segment->view, segment->memory);
	kvr_slab_layout(&bed->model.geometry, token_first, count, &segment->layout);
	extents = kvr_segment_extent_count(&segment->view);
	memset(segment->view.extent, 0, extents * sizeof(*segment->view.extent));
	segment->tokens = calloc(count, sizeof(*segment->tokens));
	segment->parts = calloc(segment->layout.part_count, sizeof(*segment->parts));
	segment->crcs = calloc(extents, sizeof(*segment->crcs));
	return segment;
}

struct kvr_store_sealed *kvr_store_sealed_make(const struct kvr_store_bed *bed,
	const struct kvr_store_sealed *parent, const uint32_t *tokens, uint32_t count)
{
	const uint32_t first = parent ? parent->view.token_first + parent->view.token_count : 0;
	struct kvr_store_sealed *segment = kvr_store_sealed_shape(bed, first, count);
	struct kvr_segment_view *view = &segment->view;
	const size_t means = (size_t)((uint8_t *)view->row_first - segment->memory);
	const uint64_t payload_bytes = segment->layout.payload_bytes + segment->layout.merged_bytes;
	struct kvr_random random;

	memcpy(segment->parent, parent ? parent->hash : bed->model.root, KVR_HASH_BYTES);
	memcpy(segment->tokens, tokens, count * sizeof(*tokens));
	kvr_store_test_name(NULL, segment->parent, tokens, count, segment->hash);
	memcpy(&random.state, segment->hash, sizeof(random.state));
	for (size_t i = 0; i < means; i++)
		segment->memory[i] = (uint8_t)kvr_random_next(&random);
	segment->payload = malloc(payload_bytes);
	for (size_t i = 0; i + 8 <= payload_bytes; i += 8) {
		const uint64_t value = kvr_random_next(&random);

		memcpy(segment->payload + i, &value, 8);
	}
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
		make_lane(view, lane, &random);
		make_merged(view, lane, &random);
		for (uint32_t unit = 0; unit < view->unit_count; unit++) {
			uint32_t bytes;
			uint64_t at = kvr_slab_unit_at(&segment->layout, view, lane, unit, &bytes);

			if (bytes > 0)
				kvr_segment_set_extent(view, lane, unit,
					segment->payload + (at - segment->layout.payload_at));
		}
	}
	return segment;
}

struct kvr_store_sealed *kvr_store_sealed_any(
	const struct kvr_store_bed *bed, const struct kvr_store_sealed *parent, uint64_t seed)
{
	const uint32_t count = bed->model.geometry.segment_tokens;
	uint32_t *tokens = calloc(count, sizeof(*tokens));
	struct kvr_random random = {seed};
	struct kvr_store_sealed *segment;

	for (uint32_t i = 0; i < count; i++)
		tokens[i] = (uint32_t)kvr_random_next(&random);
	segment = kvr_store_sealed_make(bed, parent, tokens, count);
	free(tokens);
	return segment;
}

void kvr_store_sealed_free(struct kvr_store_sealed *segment)
{
	if (!segment)
		return;
	free(segment->memory);
	free(segment->payload);
	free(segment->tokens);
	free(segment->parts);
	free(segment->crcs);
	free(segment);
}

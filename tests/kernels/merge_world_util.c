/* SPDX-License-Identifier: Apache-2.0 */
/* merge_world_util.c: lanes whose every row is known, for the tests of MERGE; what they are held against
 * stands in check_merge_util.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/check_merge_util.h"

#define DIRECTIONS 12u

static void *need(size_t count, size_t bytes)
{
	void *memory = calloc(count + 1, bytes);

	assert_non_null(memory);
	return memory;
}

static uint32_t token_count(const struct check_merge *merge)
{
	return merge->view.token_count - merge->view.sink_count;
}

uint8_t *check_merge_key(const struct check_merge *merge, uint32_t lane, uint32_t token)
{
	return kvr_tail_key(&merge->tail, lane, merge->view.sink_count + token);
}

uint8_t *check_merge_value(const struct check_merge *merge, uint32_t lane, uint32_t token)
{
	return kvr_tail_value(&merge->tail, lane, merge->view.sink_count + token);
}

/* Places of all merged sets, one behind the other, unaligned. */
static void place_sets(struct check_merge *merge)
{
	const struct kvr_geometry *g = &merge->geometry;
	const size_t row_bytes = kvr_geometry_key_bytes(g) + kvr_geometry_value_bytes(g);
	const size_t lanes = kvr_geometry_lanes(g);
	const uint32_t first = merge->view.cluster_max + 1;
	uint8_t *place;

	oracle_guard_open(&merge->rows, lanes * merge->view.merged_max * row_bytes, 2);
	place = merge->rows.data;
	for (uint32_t lane = 0; lane < lanes; lane++) {
		uint8_t **extent = kvr_segment_extent(&merge->view, lane);

		for (uint32_t unit = 0; unit < merge->view.unit_count; unit++)
			extent[unit] = NULL;
		for (uint32_t unit = first; unit < merge->view.unit_count; unit++) {
			const uint32_t rows = kvr_segment_unit_rows(&merge->view, lane, unit);

			extent[unit] = rows > 0 ? place : NULL;
			place += rows * row_bytes;
		}
	}
}

void check_merge_open_as(struct check_merge *merge, uint64_t seed,
	const struct kvr_geometry *geometry, uint32_t tokens)
{
	const uint32_t all = geometry->sink_tokens + tokens;
	const uint32_t blocks = (all + KVR_BLOCK_TOKENS - 1) / KVR_BLOCK_TOKENS;
	const uint32_t lanes = kvr_geometry_lanes(geometry);

	*merge = (struct check_merge){.random = oracle_random(seed), .geometry = *geometry};
	assert_true(lanes <= CHECK_MERGE_LANES);
	merge->block = need(blocks, sizeof(*merge->block));
	merge->block_data = need(blocks, sizeof(*merge->block_data));
	for (uint32_t i = 0; i < blocks; i++) {
		oracle_guard_open(&merge->block[i], kvr_tail_block_bytes(&merge->geometry), 0);
		memset(merge->block[i].data, 0, merge->block[i].bytes);
		merge->block_data[i] = merge->block[i].data;
	}
	merge->tail = (struct kvr_tail_view){&merge->geometry, merge->block_data, blocks};
	kvr_segment_shape(&merge->view, &merge->geometry, 0, all);
	assert_int_equal(token_count(merge), tokens);
	oracle_guard_open(&merge->summary, kvr_segment_bind_all(&merge->view, NULL), 0);
	kvr_segment_bind_all(&merge->view, merge->summary.data);
	place_sets(merge);
	for (uint32_t i = 0; i < lanes * KVR_MERGED_SETS; i++)
		merge->map[i / KVR_MERGED_SETS][i % KVR_MERGED_SETS] =
			need(tokens, sizeof(**merge->map[0]));
}

void check_merge_open(struct check_merge *merge, uint64_t seed, uint32_t tokens)
{
	static const uint32_t dims[] = {8, 13, 32, 64, 65, 96, 128, 130, 576};
	struct oracle_random random = oracle_random(seed);
	struct kvr_geometry g = {.layer_count = 1, .segment_tokens = KVR_SEGMENT_TOKENS_MAX};

	g.kv_heads = oracle_pick(&random, 1, CHECK_MERGE_LANES);
	g.query_heads = g.kv_heads;
	g.key_dim = dims[oracle_pick(&random, 0, tokens > 400 ? 6 : 8)];
	g.value_dim = dims[oracle_pick(&random, tokens > 100 ? 2 : 0, tokens > 400 ? 6 : 8)];
	g.dtype = (enum kvr_dtype)(KVR_DTYPE_F32 + seed % 3);
	g.cluster_tokens = 16;
	g.sink_tokens = oracle_pick(&random, 0, 1) ? oracle_pick(&random, 0, 16) : 16;
	if (tokens == 0)
		g.sink_tokens = 5;
	g.merged = oracle_pick(&random, 0, 1) ? oracle_pick(&random, 1, 15) : 15;
	g.dense[0] = oracle_pick(&random, 0, 3) == 0 && g.kv_heads > 1 ? 2 : 0;
	assert_true(kvr_geometry_valid(&g));
	check_merge_open_as(merge, seed, &g, tokens);
}

void check_merge_close(struct check_merge *merge)
{
	for (uint32_t i = 0; i < merge->tail.block_count; i++)
		oracle_guard_close(&merge->block[i]);
	free(merge->block);
	free(merge->block_data);
	oracle_guard_close(&merge->summary);
	oracle_guard_close(&merge->rows);
	for (uint32_t i = 0; i < CHECK_MERGE_LANES * KVR_MERGED_SETS; i++)
		free(merge->map[i / KVR_MERGED_SETS][i % KVR_MERGED_SETS]);
}

void check_merge_fill(struct check_merge *merge)
{
	struct oracle_random *random = &merge->random;
	const struct kvr_geometry *g = &merge->geometry;
	static double direction[DIRECTIONS][KVR_DIM_MAX];

	for (uint32_t i = 0; i < DIRECTIONS * KVR_DIM_MAX; i++)
		direction[i / KVR_DIM_MAX][i % KVR_DIM_MAX] =
			oracle_gauss(random) + (i % KVR_DIM_MAX == 3 ? 8.0 : 0.0);
	for (uint32_t i = 0; i < g->kv_heads * token_count(merge); i++) {
		const uint32_t lane = i % g->kv_heads, t = i / g->kv_heads;
		const double *from = direction[oracle_pick(random, 0, DIRECTIONS - 1)];
		const double drift = 2.0 * sin(0.02 * t);
		const uint32_t kind = oracle_pick(random, 0, 29);
		uint8_t *key = check_merge_key(merge, lane, t);
		uint8_t *value = check_merge_value(merge, lane, t);

		for (uint32_t k = 0; k < g->key_dim; k++)
			oracle_put(key, g->dtype, k,
				kind == 0 ? 0.0
					  : from[k] + drift * direction[0][k] +
						    0.4 * oracle_gauss(random));
		for (uint32_t k = 0; k < g->value_dim; k++)
			oracle_put(value, g->dtype, k, oracle_gauss(random));
		if (kind == 1 && t > 0) /* the same key again */
			memcpy(key, check_merge_key(merge, lane, oracle_pick(random, 0, t - 1)),
				kvr_geometry_key_bytes(g));
	}
}

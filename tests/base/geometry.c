/* SPDX-License-Identifier: Apache-2.0 */
/* geometry.c: goal: a geometry is accepted if and only if every number of it is inside its limit,
 * and its sizes are the products that the axes say.
 * Method: a valid geometry, of which one number at a time is put on, below and above its limit. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/geometry.h"

static struct kvr_geometry usual(void)
{
	return (struct kvr_geometry){
		.layer_count = 32,
		.query_heads = 32,
		.kv_heads = 8,
		.key_dim = 128,
		.value_dim = 96,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = 1024,
		.cluster_tokens = 16,
		.sink_tokens = 16,
	};
}

static void sizes(void **state)
{
	struct kvr_geometry g = usual();

	(void)state;
	assert_int_equal(kvr_geometry_lanes(&g), 256);
	assert_int_equal(kvr_geometry_group(&g), 4);
	assert_int_equal(kvr_geometry_key_bytes(&g), 256);
	assert_int_equal(kvr_geometry_value_bytes(&g), 192);
	assert_int_equal(kvr_geometry_token_bytes(&g), 256 * (256 + 192));
	g.dtype = KVR_DTYPE_F32;
	assert_int_equal(kvr_geometry_key_bytes(&g), 512);
}

static void dense_lanes(void **state)
{
	struct kvr_geometry g = usual();

	(void)state;
	g.dense[1] = 1ull << 3;
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(&g); lane++)
		assert_int_equal(kvr_geometry_is_dense(&g, lane), lane == 67);
}

struct limit {
	size_t offset; /* of the number in the geometry */
	uint32_t value;
	bool valid;
};

#define AT(member) offsetof(struct kvr_geometry, member)

static const struct limit limits[] = {
	{AT(layer_count), 0, false},
	{AT(layer_count), 1, true},
	{AT(layer_count), KVR_LAYERS_MAX, true},
	{AT(layer_count), KVR_LAYERS_MAX + 1, false},
	{AT(layer_count), UINT32_MAX, false},
	{AT(kv_heads), 0, false},
	{AT(kv_heads), 32, true},
	{AT(kv_heads), 64, false}, /* more than there are query heads */
	{AT(query_heads), 0, false},
	{AT(query_heads), 12, false}, /* no multiple of 8 */
	{AT(query_heads), KVR_QUERY_HEADS_MAX, true},
	{AT(query_heads), KVR_QUERY_HEADS_MAX + 8, false},
	{AT(key_dim), KVR_DIM_MIN - 1, false},
	{AT(key_dim), KVR_DIM_MIN, true},
	{AT(key_dim), KVR_DIM_MAX, true},
	{AT(key_dim), KVR_DIM_MAX + 1, false},
	{AT(value_dim), KVR_DIM_MIN - 1, false},
	{AT(value_dim), KVR_DIM_MAX, true},
	{AT(value_dim), KVR_DIM_MAX + 1, false},
	{AT(dtype), 0, false},
	{AT(dtype), 4, false},
	{AT(segment_tokens), 0, false},
	{AT(segment_tokens), KVR_SEGMENT_TOKENS_MIN, true},
	{AT(segment_tokens), KVR_SEGMENT_TOKENS_MIN + 1, false},
	{AT(segment_tokens), KVR_SEGMENT_TOKENS_MAX, true},
	{AT(segment_tokens), KVR_SEGMENT_TOKENS_MAX + KVR_BLOCK_TOKENS, false},
	{AT(cluster_tokens), KVR_CLUSTER_TOKENS_MIN - 1, false},
	{AT(cluster_tokens), KVR_CLUSTER_TOKENS_MIN, true},
	{AT(cluster_tokens), KVR_CLUSTER_TOKENS_MAX, true},
	{AT(cluster_tokens), KVR_CLUSTER_TOKENS_MAX + 1, false},
	{AT(sink_tokens), 0, true},
	{AT(sink_tokens), KVR_BLOCK_TOKENS, true},
	{AT(sink_tokens), KVR_BLOCK_TOKENS + 1, false},
};

static void one_number_at_a_time(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		struct kvr_geometry g = usual();

		*(uint32_t *)(void *)((char *)&g + limits[i].offset) = limits[i].value;
		if (kvr_geometry_valid(&g) != limits[i].valid)
			fail_msg("limit %zu: value %u", i, limits[i].value);
	}
}

/* Numbers that are fine alone, and not together. */
static void together(void **state)
{
	struct kvr_geometry g = usual();

	(void)state;
	g.layer_count = KVR_LAYERS_MAX;
	g.query_heads = KVR_QUERY_HEADS_MAX;
	g.kv_heads = KVR_LANES_MAX / KVR_LAYERS_MAX;
	assert_true(kvr_geometry_valid(&g));
	g.kv_heads *= 2; /* too many lanes */
	assert_false(kvr_geometry_valid(&g));
	g = usual();
	g.query_heads = KVR_GROUP_MAX;
	g.kv_heads = 1;
	assert_true(kvr_geometry_valid(&g));
	g.query_heads *= 2; /* too many heads share a lane */
	assert_false(kvr_geometry_valid(&g));
	g = usual();
	g.segment_tokens = 64;
	g.cluster_tokens = 65; /* a cluster larger than its segment */
	assert_false(kvr_geometry_valid(&g));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),
		cmocka_unit_test(dense_lanes),
		cmocka_unit_test(one_number_at_a_time),
		cmocka_unit_test(together),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

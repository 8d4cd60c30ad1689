/* SPDX-License-Identifier: Apache-2.0 */
/* check_flip_util.c: RECALL and FETCH while extents change (segment.h, S5, S6).
 *
 * A thread stands for the core thread: round after round it takes some extents away and puts others
 * back. What each operation reports must be true of its own output, whatever it met: a row that counts as
 * staged is the token's, to the bit; a gap is untouched; rows and missing rows add up. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/check_recall_util.h"

struct flipper {
	const struct oracle_world *world;
	uint8_t **was[ORACLE_SEGMENTS_MAX]; /* as kvr_segment_view.extent */
	pthread_t thread;
	_Atomic bool end;
};

static uint32_t extents_of(const struct kvr_segment_view *view)
{
	return kvr_geometry_lanes(view->geometry) * (view->cluster_max + 1);
}

static void *flip(void *argument)
{
	struct flipper *flipper = argument;
	const struct oracle_world *world = flipper->world;

	for (uint32_t round = 0; !atomic_load(&flipper->end); round++) {
		for (uint32_t s = 0; s < world->segment_count; s++) {
			const uint32_t width = world->chain[s]->cluster_max + 1;

			for (uint32_t i = 0; i < extents_of(world->chain[s]); i++)
				kvr_segment_set_extent(world->chain[s], i / width, i % width,
					(i + round) % 3 ? flipper->was[s][i] : NULL);
		}
	}
	return NULL;
}

static void start(struct flipper *flipper, const struct oracle_world *world)
{
	*flipper = (struct flipper){.world = world};
	for (uint32_t s = 0; s < world->segment_count; s++) {
		const size_t bytes = extents_of(world->chain[s]) * sizeof(uint8_t *);

		flipper->was[s] = malloc(bytes);
		assert_non_null(flipper->was[s]);
		memcpy(flipper->was[s], world->chain[s]->extent, bytes);
	}
	assert_int_equal(pthread_create(&flipper->thread, NULL, flip, flipper), 0);
}

static void stop(struct flipper *flipper)
{
	atomic_store(&flipper->end, true);
	pthread_join(flipper->thread, NULL);
	for (uint32_t s = 0; s < flipper->world->segment_count; s++) {
		const struct kvr_segment_view *view = flipper->world->chain[s];

		memcpy(view->extent, flipper->was[s], extents_of(view) * sizeof(uint8_t *));
		free(flipper->was[s]);
	}
}

/* Every row staged is that of the token whose position it bears; in a gap there is nothing. */
static void check_rows(const struct oracle_world *world, const struct kvr_recall_item *item,
	const struct check_outputs *outputs)
{
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	bool *gap = calloc(item->row_count + 1, sizeof(*gap));
	int32_t position;

	assert_non_null(gap);
	for (uint32_t i = 0; i < item->chosen_count; i++)
		for (uint32_t r = 0; r < item->chosen[i].rows; r++)
			gap[item->chosen[i].row + r] = item->chosen[i].absent;
	for (uint32_t row = 0; row < item->row_count; row++) {
		const uint8_t *key = item->keys + row * key_bytes;
		const uint8_t *value = item->values + row * value_bytes;

		memcpy(&position, &item->positions[row], sizeof(position));
		if (!gap[row]) {
			assert_memory_equal(
				key, oracle_key(world, item->lane, (uint32_t)position), key_bytes);
			assert_memory_equal(value,
				oracle_value(world, item->lane, (uint32_t)position), value_bytes);
			continue;
		}
		for (size_t i = 0; i < key_bytes; i++)
			assert_int_equal(key[i], outputs->keys.memory[0]);
		for (size_t i = 0; i < value_bytes; i++)
			assert_int_equal(value[i], outputs->keys.memory[0]);
	}
	free(gap);
}

/* One recall of all lanes, a lane an item: what a request does. `listed`: with gaps. */
static void recall(struct oracle_world *world, struct kvr_device *device, bool listed)
{
	const struct kvr_geometry *g = &world->geometry;
	const uint32_t lanes = kvr_geometry_lanes(g), entries = CHECK_CLUSTERS_MAX + 4;
	struct kvr_recall_item item[6];
	struct check_outputs outputs[6];
	float *query = calloc(kvr_geometry_group(g) * g->key_dim, sizeof(*query));
	struct kvr_chosen *chosen = calloc(lanes * entries, sizeof(*chosen));

	assert_non_null(query);
	assert_non_null(chosen);
	for (uint32_t i = 0; i < g->key_dim; i++)
		query[i] = (float)oracle_gauss(&world->random);
	for (uint32_t lane = 0; lane < lanes; lane++) {
		item[lane] = (struct kvr_recall_item){.segments = world->chain,
			.segment_count = world->segment_count,
			.tail = &world->tail,
			.tail_first = world->tail_first,
			.tail_count = world->tail_count,
			.geometry = g,
			.lane = lane,
			.sinks = true,
			.rank = KVR_RANK_SHARE,
			.query_count = kvr_geometry_group(g),
			.query = (const uint8_t *)query,
			.query_dtype = KVR_DTYPE_F32,
			.scale = 1,
			.budget_tokens = oracle_pick(&world->random, 0, 1) ? 100 : 2000,
			.row_capacity = world->tail_first + world->tail_count + g->sink_tokens,
			.chosen = listed ? chosen + (size_t)lane * entries : NULL,
			.chosen_max = entries};
		check_outputs_open(world, &item[lane], &outputs[lane]);
	}
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, item, lanes), 0);
	for (uint32_t lane = 0; lane < lanes; lane++) {
		if (listed)
			assert_int_equal(item[lane].token_missing, 0);
		else
			assert_int_equal(item[lane].absent_count, 0);
		check_rows(world, &item[lane], &outputs[lane]);
		check_outputs_close(&outputs[lane]);
	}
	free(query);
	free(chosen);
}

static void fetch(struct oracle_world *world, struct kvr_device *device)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(g);
	const size_t value_bytes = kvr_geometry_value_bytes(g);
	const uint32_t first = oracle_pick(&world->random, 0, world->token_count - 1);
	const uint32_t left = world->token_count - first;
	const uint32_t count = left < 12 ? left : oracle_pick(&world->random, 1, 12);
	uint8_t *keys = calloc(count, key_bytes), *values = calloc(count, value_bytes);
	struct kvr_fetch_item item = {.segments = world->chain,
		.segment_count = world->segment_count,
		.tail = world->tail_count > 0 ? &world->tail : NULL,
		.tail_first = world->tail_first,
		.geometry = g,
		.first = first,
		.count = count,
		.keys = keys,
		.values = values,
		.key_stride = key_bytes,
		.value_stride = value_bytes,
		.status = 1};
	int status;

	assert_non_null(keys);
	assert_non_null(values);
	status = oracle_run(device, KVR_JOB_FETCH, &item, 1);
	assert_int_equal(item.status, status);
	assert_true(status == 0 || status == -EIO);
	for (uint32_t i = 0; status == 0 && i < count; i++) {
		assert_memory_equal(
			keys + i * key_bytes, oracle_key(world, 0, first + i), key_bytes);
		assert_memory_equal(
			values + i * value_bytes, oracle_value(world, 0, first + i), value_bytes);
	}
	free(keys);
	free(values);
}

void check_flip(struct oracle_world *world, struct kvr_device *device, uint32_t trials)
{
	struct flipper flipper;

	start(&flipper, world);
	for (uint32_t trial = 0; trial < trials; trial++) {
		recall(world, device, trial % 2);
		fetch(world, device);
	}
	stop(&flipper);
}

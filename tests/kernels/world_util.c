/* SPDX-License-Identifier: Apache-2.0 */
/* world_util.c: a small sequence whose every row is known, for the tests of kernels/. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/oracle_util.h"

#define DIRECTIONS 12u

static const uint32_t dims[] = {8, 13, 32, 64, 65, 96, 128, 130, 576};

static void make_geometry(struct oracle_world *world)
{
	struct oracle_random *random = &world->random;
	struct kvr_geometry *g = &world->geometry;
	const uint32_t last = sizeof(dims) / sizeof(dims[0]) - 1;
	const uint32_t group = oracle_pick(random, 0, 9) ? oracle_pick(random, 1, 9) : 128;

	g->layer_count = oracle_pick(random, 1, 2);
	g->kv_heads = group == 128 ? 1 : oracle_pick(random, 1, 3);
	g->query_heads = g->kv_heads * group;
	g->key_dim = dims[oracle_pick(random, 0, last)];
	g->value_dim = dims[oracle_pick(random, 0, last)];
	g->dtype = (enum kvr_dtype)oracle_pick(random, KVR_DTYPE_F32, KVR_DTYPE_BF16);
	g->segment_tokens = 64 * oracle_pick(random, 1, 4);
	g->cluster_tokens = oracle_pick(random, 0, 4) ? oracle_pick(random, 4, 24) : 64;
	g->sink_tokens = oracle_pick(random, 0, 1) ? oracle_pick(random, 0, 16) : 16;
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(g); lane++) {
		if (oracle_pick(random, 0, 3) == 0)
			g->dense[lane / 64] |= 1ull << (lane % 64);
	}
	assert_true(kvr_geometry_valid(g));
}

/* Rows around some directions, and now and then the same row again or zeros; in some worlds with a channel
 * so large that 8 bits leave nothing for the others (S7). */
static void make_rows(struct oracle_world *world)
{
	struct oracle_random *random = &world->random;
	const struct kvr_geometry *g = &world->geometry;
	const uint32_t lanes = kvr_geometry_lanes(g);
	const size_t key_bytes = kvr_geometry_key_bytes(g);
	const uint32_t channel = oracle_pick(random, 0, g->key_dim - 1);
	const double large = oracle_pick(random, 0, 4) ? 0.0 : 50.0;
	double direction[DIRECTIONS][KVR_DIM_MAX];

	for (uint32_t i = 0; i < DIRECTIONS * KVR_DIM_MAX; i++)
		direction[i / KVR_DIM_MAX][i % KVR_DIM_MAX] =
			oracle_gauss(random) + (i % KVR_DIM_MAX == channel ? large : 0.0);
	for (uint32_t row = 0; row < world->token_count * lanes; row++) {
		const double *from = direction[oracle_pick(random, 0, DIRECTIONS - 1)];
		const uint32_t kind = oracle_pick(random, 0, 19);
		uint8_t *key = world->keys + row * key_bytes;
		uint8_t *value = world->values + row * kvr_geometry_value_bytes(g);

		for (uint32_t k = 0; k < g->value_dim; k++)
			oracle_put(value, g->dtype, k, oracle_gauss(random));
		for (uint32_t k = 0; kind != 1 && k < g->key_dim; k++)
			oracle_put(key, g->dtype, k, from[k] + 0.5 * oracle_gauss(random));
		if (kind == 0 && row >= lanes)
			memcpy(key, key - lanes * key_bytes, key_bytes);
	}
}

void oracle_world_open(struct oracle_world *world, uint64_t seed)
{
	const struct kvr_geometry *g = &world->geometry;
	uint32_t blocks;

	*world = (struct oracle_world){.seed = seed, .random = oracle_random(seed)};
	make_geometry(world);
	world->token_count =
		oracle_pick(&world->random, 1, ORACLE_SEGMENTS_MAX * g->segment_tokens);
	world->keys = calloc(world->token_count * kvr_geometry_lanes(g), kvr_geometry_key_bytes(g));
	world->values =
		calloc(world->token_count * kvr_geometry_lanes(g), kvr_geometry_value_bytes(g));
	assert_non_null(world->keys);
	assert_non_null(world->values);
	make_rows(world);
	blocks = g->segment_tokens / KVR_BLOCK_TOKENS;
	world->block = calloc(blocks, sizeof(*world->block));
	world->block_data = calloc(blocks, sizeof(*world->block_data));
	assert_non_null(world->block);
	assert_non_null(world->block_data);
	for (uint32_t i = 0; i < blocks; i++) {
		oracle_guard_open(&world->block[i], kvr_tail_block_bytes(g), 0);
		world->block_data[i] = world->block[i].data;
	}
	world->tail = (struct kvr_tail_view){g, world->block_data, blocks};
}

void oracle_world_close(struct oracle_world *world)
{
	for (uint32_t i = 0; i < world->segment_count; i++) {
		oracle_guard_close(&world->summary[i]);
		oracle_guard_close(&world->rows[i]);
	}
	for (uint32_t i = 0; i < world->tail.block_count; i++)
		oracle_guard_close(&world->block[i]);
	free(world->block);
	free(world->block_data);
	free(world->keys);
	free(world->values);
}

const uint8_t *oracle_key(const struct oracle_world *world, uint32_t lane, uint32_t token)
{
	const size_t row = (size_t)token * kvr_geometry_lanes(&world->geometry) + lane;

	return world->keys + row * kvr_geometry_key_bytes(&world->geometry);
}

const uint8_t *oracle_value(const struct oracle_world *world, uint32_t lane, uint32_t token)
{
	const size_t row = (size_t)token * kvr_geometry_lanes(&world->geometry) + lane;

	return world->values + row * kvr_geometry_value_bytes(&world->geometry);
}

double oracle_mean(const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster, uint32_t i,
	uint32_t planes)
{
	const size_t at = (size_t)cluster * view->geometry->key_dim + i;
	const double steps = 256.0 * kvr_segment_key_high(view, lane)[at];

	return (double)kvr_segment_key_step(view, lane)[cluster] *
	       (steps + (planes > 1 ? kvr_segment_key_low(view, lane)[at] : 0));
}

double oracle_scored_mean(const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster,
	uint32_t i, enum kvr_rank rank)
{
	return oracle_mean(view, lane, cluster, i,
		rank == KVR_RANK_INNER_PRODUCT ? 2 : view->key_planes[lane]);
}

void oracle_put_mean(
	const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster, const double *mean)
{
	const uint32_t dim = view->geometry->key_dim;
	float *step = kvr_segment_key_step(view, lane) + cluster;
	double largest = 0.0;

	for (uint32_t i = 0; i < dim; i++)
		largest = fmax(largest, fabs(mean[i]));
	*step = (float)(largest / 32639);
	for (uint32_t i = 0; i < dim; i++) {
		const double steps = largest > 0.0 ? rint(mean[i] / (double)*step) : 0.0;
		const double upper = floor((steps + 128) / 256);

		kvr_segment_key_high(view, lane)[cluster * dim + i] = (int8_t)upper;
		kvr_segment_key_low(view, lane)[cluster * dim + i] = (int8_t)(steps - upper * 256);
	}
}

void oracle_world_append(
	struct oracle_world *world, struct kvr_device *device, uint32_t first, uint32_t count)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(g);
	const size_t value_bytes = kvr_geometry_value_bytes(g);
	struct kvr_append_item item[2] = {0};
	struct oracle_guard keys[2] = {{0}}, values[2] = {{0}};

	for (uint32_t layer = 0; layer < g->layer_count; layer++) {
		/* The client's layout: [count][K] rows, of any alignment. */
		oracle_guard_open(&keys[layer], count * g->kv_heads * key_bytes, layer + 1);
		oracle_guard_open(&values[layer], count * g->kv_heads * value_bytes, layer + 3);
		for (uint32_t t = 0; t < count; t++) {
			const uint32_t lane = layer * g->kv_heads;

			memcpy(keys[layer].data + t * g->kv_heads * key_bytes,
				oracle_key(world, lane, first + t), g->kv_heads * key_bytes);
			memcpy(values[layer].data + t * g->kv_heads * value_bytes,
				oracle_value(world, lane, first + t), g->kv_heads * value_bytes);
		}
		item[layer] = (struct kvr_append_item){.keys = keys[layer].data,
			.values = values[layer].data,
			.tail = &world->tail,
			.layer = layer,
			.first = 0,
			.count = count,
			.status = -1};
	}
	assert_int_equal(oracle_run(device, KVR_JOB_APPEND, item, g->layer_count), 0);
	for (uint32_t layer = 0; layer < g->layer_count; layer++) {
		assert_int_equal(item[layer].status, 0);
		oracle_guard_close(&keys[layer]);
		oracle_guard_close(&values[layer]);
	}
	world->tail_count = count;
}

/* Points the extents of all lanes into one guarded buffer, the sinks' cluster included. */
static void place_rows(struct oracle_world *world, struct kvr_segment_view *view, uint32_t index)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t row_bytes = kvr_geometry_key_bytes(g) + kvr_geometry_value_bytes(g);
	uint8_t *place;

	oracle_guard_open(&world->rows[index],
		kvr_geometry_lanes(g) * view->token_count * row_bytes,
		2 * oracle_pick(&world->random, 0, 8));
	place = world->rows[index].data;
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(g); lane++) {
		const uint16_t *first = kvr_segment_row_first(view, lane);

		for (uint32_t c = 0; c <= view->cluster_count[lane]; c++) {
			kvr_segment_extent(view, lane)[c] = place;
			place += (size_t)(first[c + 1] - first[c]) * row_bytes;
		}
	}
}

void oracle_world_seal(struct oracle_world *world, struct kvr_device *device, uint32_t tokens)
{
	struct kvr_segment_view *view = &world->view[world->segment_count];
	const uint32_t lanes = kvr_geometry_lanes(&world->geometry);
	struct oracle_guard *summary = &world->summary[world->segment_count];
	struct kvr_cluster_item item[6];
	size_t bytes;

	oracle_world_append(world, device, world->tail_first, tokens);
	kvr_segment_shape(view, &world->geometry, world->tail_first, tokens);
	bytes = kvr_segment_bind_all(view, NULL);
	oracle_guard_open(summary, bytes, 0);
	kvr_segment_bind_all(view, summary->data);
	for (uint32_t lane = 0; lane < lanes; lane++)
		item[lane] = (struct kvr_cluster_item){&world->tail, view, lane};
	assert_int_equal(oracle_run(device, KVR_JOB_CLUSTER, item, lanes), 0);
	for (uint32_t lane = 0; lane < lanes; lane++)
		oracle_check_lane(world, view, lane, world->tail_first);
	place_rows(world, view, world->segment_count);
	assert_int_equal(oracle_run(device, KVR_JOB_PACK, item, lanes), 0);
	world->chain[world->segment_count++] = view;
	world->tail_first += tokens;
	world->tail_count = 0;
}

void oracle_world_build(struct oracle_world *world, struct kvr_device *device)
{
	const uint32_t most = world->geometry.segment_tokens;

	while (world->segment_count < ORACLE_SEGMENTS_MAX) {
		const uint32_t left = world->token_count - world->tail_first;
		uint32_t tokens = oracle_pick(&world->random, 0, 1) /* now and then a short one */
					  ? most
					  : oracle_pick(&world->random, 1, most);

		if (left < most && oracle_pick(&world->random, 0, 1))
			break;
		if (tokens > left)
			tokens = left;
		if (tokens == 0)
			break;
		oracle_world_seal(world, device, tokens);
	}
	if (world->token_count - world->tail_first > most)
		world->token_count = world->tail_first + most;
	if (world->token_count > world->tail_first)
		oracle_world_append(
			world, device, world->tail_first, world->token_count - world->tail_first);
}

/* Means of the rows of one cluster, and what sums of floats may be off by. */
static void compute_mean(const struct oracle_world *world, const uint16_t *token, uint32_t count,
	uint32_t lane, uint32_t first, bool keys, double *ret_mean, double *ret_slack)
{
	const struct kvr_geometry *g = &world->geometry;
	const uint32_t dim = keys ? g->key_dim : g->value_dim;

	for (uint32_t i = 0; i < dim; i++) {
		double sum = 0.0, size = 0.0;

		for (uint32_t r = 0; r < count; r++) {
			const uint8_t *row = keys ? oracle_key(world, lane, first + token[r])
						  : oracle_value(world, lane, first + token[r]);
			const double x = oracle_get(row, g->dtype, i);

			sum += x / count;
			size += fabs(x) / count;
		}
		ret_mean[i] = sum;
		ret_slack[i] = size * 1e-5;
	}
}

/* The means of one cluster against what the summary says; leaves that of the keys in `mean`. */
static void check_means(const struct oracle_world *world, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t cluster, uint32_t first, double *mean)
{
	const struct kvr_geometry *g = &world->geometry;
	const uint16_t *row_first = kvr_segment_row_first(view, lane) + cluster;
	const uint16_t *rows = kvr_segment_row_token(view, lane) + row_first[0];
	const uint32_t size = (uint32_t)row_first[1] - row_first[0];
	const uint16_t *value = kvr_segment_value_mean(view, lane) + cluster * g->value_dim;
	const double step = (double)kvr_segment_key_step(view, lane)[cluster];
	double slack[KVR_DIM_MAX], largest = 0.0;

	compute_mean(world, rows, size, lane, first, false, mean, slack);
	for (uint32_t i = 0; i < g->value_dim; i++) /* half a unit of bf16's last place */
		assert_true(fabs(oracle_bf16(value[i]) - mean[i]) <=
			    fabs(mean[i]) * 0x1p-8 + slack[i] + 0x1p-133);
	compute_mean(world, rows, size, lane, first, true, mean, slack);
	for (uint32_t i = 0; i < g->key_dim; i++)
		largest = fmax(largest, fabs(mean[i]));
	assert_true(step <= largest * (1 + 1e-5) / 32639);
	if (step == 0.0) { /* then the mean counts as zero */
		assert_true(largest < 32700 * 0x1p-126);
		return;
	}
	for (uint32_t i = 0; i < g->key_dim; i++)
		assert_true(fabs(oracle_mean(view, lane, cluster, i, 2) - mean[i]) <=
			    0.51 * step + slack[i]);
}

/* S7, in double; where it is a close thing, either number of planes is right. */
static void check_planes(const struct kvr_segment_view *view, uint32_t lane)
{
	const uint32_t clusters = view->cluster_count[lane];
	double left_out = 0.0, spread = 0.0;

	for (uint32_t i = 0; i < view->geometry->key_dim; i++) {
		double sum = 0.0;

		for (uint32_t c = 0; c < clusters; c++)
			sum += oracle_mean(view, lane, c, i, 2) / clusters;
		for (uint32_t c = 0; c < clusters; c++) {
			const double mean = oracle_mean(view, lane, c, i, 2);

			left_out += pow(mean - oracle_mean(view, lane, c, i, 1), 2.0);
			spread += pow(mean - sum, 2.0);
		}
	}
	assert_in_range(view->key_planes[lane], 1, 2);
	if (left_out > spread / 250)
		assert_int_equal(view->key_planes[lane], 2);
	if (left_out < spread / 260)
		assert_int_equal(view->key_planes[lane], 1);
}

/* The variances of one cluster's keys, given their mean: off by half a step, and by what sums of floats are. */
static void check_spread(const struct oracle_world *world, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t cluster, uint32_t first, const double *mean)
{
	const struct kvr_geometry *g = &world->geometry;
	const uint16_t *row_first = kvr_segment_row_first(view, lane) + cluster;
	const uint16_t *rows = kvr_segment_row_token(view, lane) + row_first[0];
	const uint32_t size = (uint32_t)row_first[1] - row_first[0];
	const uint8_t *spread = kvr_segment_key_spread(view, lane) + cluster * g->key_dim;
	const double step = (double)kvr_segment_spread_step(view, lane)[cluster];
	double variance[KVR_DIM_MAX] = {0}, slack[KVR_DIM_MAX] = {0}, largest = 0.0;

	for (uint32_t i = 0; i < g->key_dim; i++) {
		for (uint32_t r = 0; r < size; r++) {
			const uint8_t *key = oracle_key(world, lane, first + rows[r]);
			const double x = oracle_get(key, g->dtype, i), apart = x - mean[i];
			const double off = fabs(x) * 1e-5 + 0x1p-140;

			variance[i] += apart * apart / size;
			slack[i] += (2 * fabs(apart) + off) * off / size;
		}
		variance[i] = fmin(variance[i], 255 * (double)FLT_MAX);
		largest = fmax(largest, variance[i] + slack[i]);
	}
	assert_true(step <= largest * (1 + 1e-5) / 255);
	for (uint32_t i = 0; i < g->key_dim; i++)
		assert_true(fabs(step * spread[i] - variance[i]) <=
			    (step > 0 ? 0.5 * step * (1 + 1e-4) : 255 * (double)FLT_MIN) +
				    slack[i] + variance[i] * 1e-5);
}

double oracle_check_lane(const struct oracle_world *world, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t first)
{
	const struct kvr_geometry *g = &world->geometry;
	const uint16_t *row_first = kvr_segment_row_first(view, lane);
	const uint16_t *token = kvr_segment_row_token(view, lane);
	const uint32_t clusters = view->cluster_count[lane];
	const uint32_t clustered = view->token_count - view->sink_count;
	uint8_t seen[KVR_SEGMENT_TOKENS_MAX] = {0};
	double mean[KVR_DIM_MAX], cosines = 0.0;

	assert_true(clusters <= view->cluster_max);
	assert_int_equal(clusters == 0, clustered == 0);
	assert_int_equal(row_first[0], 0);                            /* S1 */
	assert_int_equal(row_first[clusters], clustered);             /* S3 */
	assert_int_equal(row_first[clusters + 1], view->token_count); /* S1 */
	for (uint32_t c = 0; c <= clusters; c++) {
		const uint32_t size = (uint32_t)row_first[c + 1] - row_first[c];
		const uint16_t *rows = token + row_first[c];

		assert_true(row_first[c] <= row_first[c + 1]); /* S1 */
		for (uint32_t r = 0; r < size; r++) {
			assert_true(rows[r] < view->token_count); /* S2 */
			assert_int_equal(seen[rows[r]]++, 0);
			assert_true(r == 0 || rows[r] > rows[r - 1]);
			assert_int_equal(rows[r] < view->sink_count, c == clusters); /* S3 */
		}
		if (c == clusters)
			break;
		assert_true(size >= 1); /* S3 */
		check_means(world, view, lane, c, first, mean);
		check_spread(world, view, lane, c, first, mean);
		for (uint32_t r = 0; r < size; r++) {
			const uint8_t *key = oracle_key(world, lane, first + rows[r]);
			double product = 0.0, left = 0.0, right = 0.0;

			for (uint32_t i = 0; i < g->key_dim; i++) {
				const double x = oracle_get(key, g->dtype, i);

				product += x * mean[i];
				left += x * x;
				right += mean[i] * mean[i];
			}
			cosines += left * right > 0.0 ? product / sqrt(left * right) : 0.0;
		}
	}
	for (uint32_t r = 0; kvr_geometry_is_dense(g, lane) && r < clustered; r++)
		assert_int_equal(token[r], view->sink_count + r); /* S4 */
	check_planes(view, lane);
	for (uint32_t i = clusters * g->key_dim; i < view->cluster_max * g->key_dim; i++) {
		assert_int_equal(kvr_segment_key_high(view, lane)[i], 0);
		assert_int_equal(kvr_segment_key_low(view, lane)[i], 0);
		assert_int_equal(kvr_segment_key_spread(view, lane)[i], 0);
	}
	return clustered ? cosines / clustered : 0.0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* check_util.c: APPEND, PACK, FETCH and ATTEND against their oracles; RECALL stands in
 * check_recall_util.c. */
#include "tests/kernels/check_util.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

uint32_t check_reap(struct kvr_device *device, struct kvr_job **ret_jobs, uint32_t max)
{
	struct pollfd wait = {kvr_device_fd(device), POLLIN, 0};

	assert_true(poll(&wait, 1, 60000) > 0);
	return kvr_device_reap(device, ret_jobs, max);
}

void check_append_refuses(struct oracle_world *world, struct kvr_device *device, uint32_t trial)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t key_bytes = g->kv_heads * kvr_geometry_key_bytes(g);
	const size_t value_bytes = g->kv_heads * kvr_geometry_value_bytes(g);
	const uint32_t count = oracle_pick(&world->random, 1, KVR_BLOCK_TOKENS);
	uint8_t *keys = calloc(count, key_bytes);
	uint8_t *values = calloc(count, value_bytes);
	struct kvr_append_item item = {
		.keys = keys, .values = values, .tail = &world->tail, .count = count};
	uint8_t *rows = trial % 2 ? keys : values;
	const size_t elements = count * (trial % 2 ? g->key_dim : g->value_dim) * g->kv_heads;
	const uint32_t at = oracle_pick(&world->random, 0, (uint32_t)elements - 1);
	const uint32_t bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u};
	const uint16_t bad16[] = {0x7c00, 0xfc00, 0x7e00, 0x7c01};
	const uint32_t kind = trial / 2 % 4;
	const uint16_t half =
		g->dtype == KVR_DTYPE_F16 ? bad16[kind] : (uint16_t)(bad[kind] >> 16 | (kind == 3));

	assert_non_null(keys);
	assert_non_null(values);
	assert_int_equal(oracle_run(device, KVR_JOB_APPEND, &item, 1), 0);
	assert_int_equal(item.status, 0);
	if (g->dtype == KVR_DTYPE_F32)
		memcpy(rows + (size_t)at * 4, &bad[kind], 4);
	else
		memcpy(rows + (size_t)at * 2, &half, 2);
	assert_int_equal(oracle_run(device, KVR_JOB_APPEND, &item, 1), -EDOM);
	assert_int_equal(item.status, -EDOM);
	free(keys);
	free(values);
}

void check_pack(const struct oracle_world *world)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(g);
	const size_t value_bytes = kvr_geometry_value_bytes(g);

	for (uint32_t s = 0; s < world->segment_count; s++) {
		const struct kvr_segment_view *view = world->chain[s];

		oracle_guard_check(&world->rows[s]);
		for (uint32_t i = 0; i < kvr_geometry_lanes(g) * (view->cluster_max + 1); i++) {
			const uint32_t lane = i / (view->cluster_max + 1);
			const uint32_t c = i % (view->cluster_max + 1);
			const uint16_t *first = kvr_segment_row_first(view, lane);
			const uint16_t *token = kvr_segment_row_token(view, lane);
			const uint8_t *rows = kvr_segment_extent(view, lane)[c];
			const uint32_t n = c <= view->cluster_count[lane]
						   ? (uint32_t)first[c + 1] - first[c]
						   : 0;

			for (uint32_t r = 0; r < n; r++) {
				const uint32_t t = view->token_first + token[first[c] + r];

				assert_memory_equal(rows + r * key_bytes,
					oracle_key(world, lane, t), key_bytes);
				assert_memory_equal(rows + n * key_bytes + r * value_bytes,
					oracle_value(world, lane, t), value_bytes);
			}
		}
	}
}

/* Every row of the answer, and that what lies between them was left alone. */
static void check_fetched(const struct oracle_world *world, const struct kvr_fetch_item *item,
	const struct oracle_guard *keys, const struct oracle_guard *values)
{
	const size_t key_bytes = kvr_geometry_key_bytes(&world->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(&world->geometry);
	const uint8_t canary = keys->memory[0];

	for (uint32_t i = 0; i < item->count; i++) {
		const uint8_t *key = item->keys + i * item->key_stride;
		const uint8_t *value = item->values + i * item->value_stride;

		assert_memory_equal(key, oracle_key(world, item->lane, item->first + i), key_bytes);
		assert_memory_equal(
			value, oracle_value(world, item->lane, item->first + i), value_bytes);
		for (size_t k = key_bytes; i + 1 < item->count && k < item->key_stride; k++)
			assert_int_equal(key[k], canary);
		for (size_t k = value_bytes; i + 1 < item->count && k < item->value_stride; k++)
			assert_int_equal(value[k], canary);
	}
	oracle_guard_check(keys);
	oracle_guard_check(values);
}

/* Takes the extent of one cluster that holds a fetched token away, and puts it back. */
static void check_fetch_missing(
	struct oracle_world *world, struct kvr_device *device, struct kvr_fetch_item *item)
{
	for (uint32_t s = 0; s < world->segment_count; s++) {
		const struct kvr_segment_view *view = world->chain[s];
		const uint16_t *first = kvr_segment_row_first(view, item->lane);
		const uint16_t *token = kvr_segment_row_token(view, item->lane);
		uint32_t row = 0, c = 0;
		uint8_t **extent, *was;

		if (item->first < view->token_first ||
			item->first >= view->token_first + view->token_count)
			continue;
		while (token[row] != item->first - view->token_first)
			row++;
		while (first[c + 1] <= row)
			c++;
		extent = kvr_segment_extent(view, item->lane) + c;
		was = *extent;
		for (uint32_t i = 0; i < 2; i++) {
			*extent = i ? KVR_EXTENT_LOST : NULL;
			assert_int_equal(oracle_run(device, KVR_JOB_FETCH, item, 1), -EIO);
			assert_int_equal(item->status, -EIO);
		}
		*extent = was;
	}
}

void check_fetch(struct oracle_world *world, struct kvr_device *device)
{
	struct oracle_random *random = &world->random;
	const struct kvr_geometry *g = &world->geometry;
	const uint32_t first = oracle_pick(random, 0, world->token_count - 1);
	const uint32_t count = oracle_pick(random, 1, world->token_count - first);
	const size_t key_stride = kvr_geometry_key_bytes(g) + oracle_pick(random, 0, 9);
	const size_t value_stride = kvr_geometry_value_bytes(g) + oracle_pick(random, 0, 9);
	struct oracle_guard keys, values;
	struct kvr_fetch_item item = {
		.segments = world->chain,
		.segment_count = world->segment_count,
		.tail = world->tail_count ? &world->tail : NULL,
		.tail_first = world->tail_first,
		.geometry = g,
		.lane = oracle_pick(random, 0, kvr_geometry_lanes(g) - 1),
		.first = first,
		.count = count,
		.key_stride = key_stride,
		.value_stride = value_stride,
		.status = -1,
	};

	oracle_guard_open(&keys, count * key_stride, oracle_pick(random, 0, 63));
	oracle_guard_open(&values, count * value_stride, oracle_pick(random, 0, 63));
	item.keys = keys.data;
	item.values = values.data;
	assert_int_equal(oracle_run(device, KVR_JOB_FETCH, &item, 1), 0);
	assert_int_equal(item.status, 0);
	check_fetched(world, &item, &keys, &values);
	check_fetch_missing(world, device, &item);
	oracle_guard_close(&keys);
	oracle_guard_close(&values);
}

/* One query of an attention, in double, two passes. */
static void check_attended(const struct kvr_attend_item *item, uint32_t query, double tolerance)
{
	const struct kvr_geometry *g = item->geometry;
	const size_t query_bytes = g->key_dim * kvr_dtype_bytes(item->query_dtype);
	double *logit = calloc(item->row_count + 1, sizeof(*logit));
	double max = -(double)INFINITY, sum = 0.0;
	float lse, out;

	assert_non_null(logit);
	for (uint32_t r = 0; r < item->row_count; r++) {
		double product = 0.0;

		for (uint32_t i = 0; i < g->key_dim; i++)
			product +=
				oracle_get(
					item->query + query * query_bytes, item->query_dtype, i) *
				oracle_get(item->keys + r * kvr_geometry_key_bytes(g), g->dtype, i);
		logit[r] = (double)item->scale * product;
		logit[r] += item->weights ? (double)item->weights[r] : 0.0;
		max = fmax(max, logit[r]);
	}
	for (uint32_t r = 0; r < item->row_count; r++) {
		logit[r] = isinf(max) ? 0.0 : exp(logit[r] - max);
		sum += logit[r];
	}
	memcpy(&lse, &item->lse[query], sizeof(lse));
	if (sum > 0.0)
		assert_true(fabs((double)lse - max - log(sum)) <=
			    tolerance * (1.0 + fabs(max + log(sum))));
	else
		assert_true(isinf(lse) && lse < 0);
	for (uint32_t i = 0; i < g->value_dim; i++) {
		double mean = 0.0, largest = 0.0;

		for (uint32_t r = 0; sum > 0.0 && r < item->row_count; r++) {
			const double value = oracle_get(
				item->values + r * kvr_geometry_value_bytes(g), g->dtype, i);

			mean += logit[r] / sum * value;
			largest = fmax(largest, fabs(value));
		}
		memcpy(&out, &item->out[query * g->value_dim + i], sizeof(out));
		assert_true(fabs((double)out - mean) <= tolerance * largest);
	}
	free(logit);
}

void check_attend(struct oracle_world *world, struct kvr_device *device,
	const struct check_tolerance *tolerance)
{
	struct oracle_random *random = &world->random;
	const struct kvr_geometry *g = &world->geometry;
	const uint32_t queries = oracle_pick(random, 1, kvr_geometry_group(g));
	const uint32_t rows = oracle_pick(random, 0, 4) ? oracle_pick(random, 1, 150) : 0;
	const enum kvr_dtype dtype = (enum kvr_dtype)oracle_pick(random, 1, 3);
	const uint32_t weighing =
		oracle_pick(random, 0, 3); /* no, some, -INFINITY too, only that */
	struct oracle_guard query, keys, values, weights, out, lse;
	struct kvr_attend_item item;

	oracle_guard_open(&query, queries * g->key_dim * kvr_dtype_bytes(dtype), 1);
	oracle_guard_open(&keys, rows * kvr_geometry_key_bytes(g), 2);
	oracle_guard_open(&values, rows * kvr_geometry_value_bytes(g), 6);
	oracle_guard_open(&weights, rows * sizeof(float), 4);
	oracle_guard_open(&out, queries * g->value_dim * sizeof(float), 4);
	oracle_guard_open(&lse, queries * sizeof(float), 12);
	for (uint32_t i = 0; i < queries * g->key_dim; i++)
		oracle_put(query.data, dtype, i, oracle_gauss(random));
	for (uint32_t r = 0; r < rows; r++) {
		const uint32_t token = oracle_pick(random, 0, world->token_count - 1);
		float weight = (float)oracle_gauss(random);

		if (weighing == 3 || (weighing == 2 && oracle_pick(random, 0, 2) == 0))
			weight = -INFINITY;
		memcpy(keys.data + r * kvr_geometry_key_bytes(g), oracle_key(world, 0, token),
			kvr_geometry_key_bytes(g));
		memcpy(values.data + r * kvr_geometry_value_bytes(g), oracle_value(world, 0, token),
			kvr_geometry_value_bytes(g));
		memcpy(weights.data + r * sizeof(float), &weight, sizeof(weight));
	}
	item = (struct kvr_attend_item){.geometry = g,
		.query_count = queries,
		.query = query.data,
		.query_dtype = dtype,
		.scale = 1.0f / sqrtf((float)g->key_dim),
		.row_count = rows,
		.keys = keys.data,
		.values = values.data,
		.weights = weighing ? (const float *)(const void *)weights.data : NULL,
		.out = (float *)(void *)out.data,
		.lse = (float *)(void *)lse.data};
	assert_int_equal(oracle_run(device, KVR_JOB_ATTEND, &item, 1), 0);
	for (uint32_t q = 0; q < queries; q++)
		check_attended(&item, q, tolerance->attend);
	oracle_guard_close(&query);
	oracle_guard_close(&keys);
	oracle_guard_close(&values);
	oracle_guard_close(&weights);
	oracle_guard_close(&out);
	oracle_guard_close(&lse);
}

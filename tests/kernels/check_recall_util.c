/* SPDX-License-Identifier: Apache-2.0 */
/* check_recall_util.c: RECALL against its oracle.
 *
 * The rows that came back are read as a list of positions. From it follows which clusters were taken;
 * scores in double, computed from the summaries, say whether they were the right ones. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/check_recall_util.h"

static void compute_scores(const struct oracle_world *world, const struct kvr_recall_item *item,
	struct check_scores *scores)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t query_bytes = g->key_dim * kvr_dtype_bytes(item->query_dtype);
	static double logit[CHECK_CLUSTERS_MAX];

	*scores = (struct check_scores){0};
	for (uint32_t q = 0; q < item->query_count; q++) {
		double max = -(double)INFINITY, sum = 0.0;
		uint32_t at = 0;

		for (uint32_t s = 0; s < item->segment_count; s++) {
			const struct kvr_segment_view *view = item->segments[s];
			const uint16_t *first = kvr_segment_row_first(view, item->lane);

			for (uint32_t c = 0; c < view->cluster_count[item->lane]; c++, at++) {
				double product = 0.0;

				for (uint32_t i = 0; i < g->key_dim; i++)
					product += oracle_get(item->query + q * query_bytes,
							   item->query_dtype, i) *
						   oracle_scored_mean(
							   view, item->lane, c, i, item->rank);
				scores->size[at] = (uint32_t)first[c + 1] - first[c];
				if (item->rank == KVR_RANK_INNER_PRODUCT)
					scores->score[at] = product;
				product *= (double)item->scale;
				logit[at] = product + log(scores->size[at]);
				max = fmax(max, logit[at]);
				scores->magnitude = fmax(scores->magnitude, fabs(product));
			}
		}
		scores->count = at;
		for (uint32_t c = 0; c < at; c++)
			sum += exp(logit[c] - max);
		for (uint32_t c = 0; c < at; c++)
			scores->density[c] +=
				exp(logit[c] - max) / sum / scores->size[c] / item->query_count;
	}
	for (uint32_t c = 0; c < scores->count; c++) {
		scores->rows += scores->size[c];
		if (item->rank == KVR_RANK_SHARE)
			scores->score[c] = log(scores->density[c]);
		else
			scores->magnitude = fmax(scores->magnitude, fabs(scores->score[c]));
	}
}

/* The row at `*at` must be `token`'s, to the bit. */
static void take_row(const struct oracle_world *world, const struct kvr_recall_item *item,
	uint32_t *at, uint32_t token)
{
	const size_t key_bytes = kvr_geometry_key_bytes(&world->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(&world->geometry);
	int32_t position;
	float weight;

	assert_true(*at < item->row_count);
	memcpy(&position, &item->positions[*at], sizeof(position));
	memcpy(&weight, &item->weights[*at], sizeof(weight));
	assert_int_equal(position, token);
	assert_true(weight == 0.0f);
	assert_memory_equal(
		item->keys + *at * key_bytes, oracle_key(world, item->lane, token), key_bytes);
	assert_memory_equal(item->values + *at * value_bytes,
		oracle_value(world, item->lane, token), value_bytes);
	++*at;
}

/* Reads the rows: sinks, clusters in memory order, each from its first row on, and the tail. */
static void read_rows(const struct oracle_world *world, const struct kvr_recall_item *item,
	struct check_scores *scores)
{
	uint32_t at = 0, cluster = 0;

	for (uint32_t s = 0; item->sinks && s < item->segment_count; s++) {
		for (uint32_t t = 0; t < item->segments[s]->sink_count; t++)
			take_row(world, item, &at, item->segments[s]->token_first + t);
	}
	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *view = item->segments[s];
		const uint16_t *first = kvr_segment_row_first(view, item->lane);
		const uint16_t *token = kvr_segment_row_token(view, item->lane);

		for (uint32_t c = 0; c < view->cluster_count[item->lane]; c++, cluster++) {
			for (uint32_t r = first[c]; r < first[c + 1]; r++) {
				const uint32_t next = view->token_first + token[r];
				int32_t position;

				if (at == item->row_count)
					break;
				memcpy(&position, &item->positions[at], sizeof(position));
				if ((uint32_t)position != next)
					break;
				take_row(world, item, &at, next);
				scores->taken[cluster]++;
			}
		}
	}
	for (uint32_t t = 0; t < item->tail_count; t++)
		take_row(world, item, &at, item->tail_first + t);
	assert_int_equal(at, item->row_count);
}

/* Whether the clusters taken are those that rank and budget ask for. */
static void check_choice(const struct oracle_world *world, const struct kvr_recall_item *item,
	const struct check_scores *scores, const struct check_tolerance *tolerance)
{
	const double slack = tolerance->score * (1.0 + scores->magnitude);
	double worst_taken = (double)INFINITY, best_left = -(double)INFINITY;
	double mass = 0.0, worst_share = 0.0;
	uint32_t rows = 0, clusters = 0, trimmed = UINT32_MAX;

	for (uint32_t c = 0; c < scores->count; c++) {
		const double share = scores->density[c] * scores->taken[c];

		rows += scores->taken[c];
		clusters += scores->taken[c] > 0;
		mass += share;
		if (scores->taken[c] == 0)
			best_left = fmax(best_left, scores->score[c]);
		else if (scores->score[c] < worst_taken) {
			worst_taken = scores->score[c];
			worst_share = share;
		}
		if (scores->taken[c] > 0 && scores->taken[c] < scores->size[c]) {
			assert_true(trimmed == UINT32_MAX);
			trimmed = c;
		}
	}
	assert_int_equal(item->cluster_count, clusters);
	assert_int_equal(item->token_missing, 0);
	if (kvr_geometry_is_dense(&world->geometry, item->lane)) {
		assert_int_equal(rows, scores->rows);
		return;
	}
	if (item->budget_tokens < scores->rows || item->budget_mass > 0.0f)
		assert_true(scores->rows == 0 || item->budget_tokens == 0 ||
			    fabs(mass - (double)item->mass) <= tolerance->mass);
	assert_true(worst_taken >= best_left - slack);
	if (trimmed != UINT32_MAX) {
		assert_int_equal(rows, item->budget_tokens);
		assert_true(scores->score[trimmed] <= worst_taken + slack);
	}
	if (item->budget_mass > 0.0f && rows < item->budget_tokens && rows < scores->rows)
		assert_true(mass >= (double)item->budget_mass - tolerance->mass);
	if (item->budget_mass > 0.0f && clusters > 0)
		assert_true(mass - worst_share <= (double)item->budget_mass + tolerance->mass);
	if (!(item->budget_mass > 0.0f))
		assert_int_equal(rows,
			item->budget_tokens < scores->rows ? item->budget_tokens : scores->rows);
	assert_true(rows <= item->budget_tokens);
}

/* The same recall with some extents gone: the other rows are the same, the missing are counted. */
static void check_missing(struct oracle_world *world, struct kvr_device *device,
	const struct kvr_recall_item *whole, const struct check_scores *scores)
{
	struct kvr_recall_item item = *whole;
	uint8_t *was[CHECK_CLUSTERS_MAX] = {NULL};
	int32_t *expected = calloc(whole->row_count + 1, sizeof(*expected));
	uint32_t count = 0, missing = 0, cluster = 0, row = 0;

	assert_non_null(expected);
	for (uint32_t s = 0; whole->sinks && s < whole->segment_count; s++)
		row += whole->segments[s]->sink_count;
	memcpy(expected, whole->positions, row * sizeof(*expected));
	count = row;
	for (uint32_t s = 0; s < whole->segment_count; s++) {
		uint8_t **extent = kvr_segment_extent(whole->segments[s], whole->lane);

		for (uint32_t c = 0; c < whole->segments[s]->cluster_count[whole->lane];
			c++, cluster++) {
			const uint32_t taken = scores->taken[cluster];

			was[cluster] = extent[c];
			if (oracle_pick(&world->random, 0, 2) == 0) {
				extent[c] = missing % 2 ? KVR_EXTENT_LOST : NULL;
				missing += taken;
			} else {
				memcpy(expected + count, whole->positions + row,
					taken * sizeof(*expected));
				count += taken;
			}
			row += taken;
		}
	}
	memcpy(expected + count, whole->positions + row,
		(whole->row_count - row) * sizeof(*expected));
	count += whole->row_count - row;
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, &item, 1), 0);
	assert_int_equal(item.row_count, count);
	assert_int_equal(item.token_missing, missing);
	assert_int_equal(item.chosen_count, 0);
	assert_int_equal(item.absent_count, 0);
	assert_memory_equal(item.positions, expected, count * sizeof(*expected));
	cluster = 0;
	for (uint32_t s = 0; s < whole->segment_count; s++) {
		for (uint32_t c = 0; c < whole->segments[s]->cluster_count[whole->lane]; c++)
			kvr_segment_extent(whole->segments[s], whole->lane)[c] = was[cluster++];
	}
	free(expected);
}

void check_outputs_open(
	struct oracle_world *world, struct kvr_recall_item *item, struct check_outputs *ret_outputs)
{
	const struct kvr_geometry *g = &world->geometry;
	const size_t rows = item->row_capacity;
	const size_t heads = item->centroid_max > 0 ? item->query_count : 1;
	const uint32_t shift = oracle_pick(&world->random, 0, 15);

	oracle_guard_open(&ret_outputs->keys, rows * kvr_geometry_key_bytes(g), shift);
	oracle_guard_open(&ret_outputs->values, rows * kvr_geometry_value_bytes(g), shift + 1);
	oracle_guard_open(&ret_outputs->weights, heads * rows * sizeof(float), 4);
	oracle_guard_open(&ret_outputs->positions, rows * sizeof(int32_t), 8);
	item->keys = ret_outputs->keys.data;
	item->values = ret_outputs->values.data;
	item->weights = (float *)(void *)ret_outputs->weights.data;
	item->positions = (int32_t *)(void *)ret_outputs->positions.data;
}

void check_outputs_close(struct check_outputs *outputs)
{
	oracle_guard_close(&outputs->keys);
	oracle_guard_close(&outputs->values);
	oracle_guard_close(&outputs->weights);
	oracle_guard_close(&outputs->positions);
}

static void open_query(
	struct oracle_world *world, struct kvr_recall_item *item, struct oracle_guard *ret_query)
{
	const uint32_t elements = item->query_count * world->geometry.key_dim;

	oracle_guard_open(ret_query, elements * kvr_dtype_bytes(item->query_dtype),
		oracle_pick(&world->random, 0, 15));
	for (uint32_t i = 0; i < elements; i++)
		oracle_put(ret_query->data, item->query_dtype, i, oracle_gauss(&world->random));
	item->query = ret_query->data;
}

void check_recall(struct oracle_world *world, struct kvr_device *device,
	const struct check_tolerance *tolerance)
{
	struct oracle_random *random = &world->random;
	const struct kvr_geometry *g = &world->geometry;
	const enum kvr_rank rank =
		oracle_pick(random, 0, 2) ? KVR_RANK_SHARE : KVR_RANK_INNER_PRODUCT;
	struct kvr_recall_item item = {
		.segments = world->chain,
		.segment_count = world->segment_count,
		.tail = world->tail_count ? &world->tail : NULL,
		.tail_first = world->tail_first,
		.tail_count = world->tail_count,
		.geometry = g,
		.lane = oracle_pick(random, 0, kvr_geometry_lanes(g) - 1),
		.sinks = oracle_pick(random, 0, 1),
		.rank = rank,
		.query_count = rank == KVR_RANK_SHARE ? kvr_geometry_group(g) : 1,
		.query_dtype = (enum kvr_dtype)oracle_pick(random, 1, 3),
		.scale = 1.0f / sqrtf((float)g->key_dim),
		.budget_tokens =
			oracle_pick(random, 0, 1) ? oracle_pick(random, 0, 400) : world->tail_first,
		.budget_mass =
			oracle_pick(random, 0, 1) ? (float)oracle_pick(random, 1, 100) / 100 : 0.0f,
	};
	static struct check_scores scores;
	struct check_outputs outputs;
	struct oracle_guard query;

	item.row_capacity =
		item.tail_count + g->sink_tokens +
		(kvr_geometry_is_dense(g, item.lane) ? world->tail_first : item.budget_tokens);
	open_query(world, &item, &query);
	check_outputs_open(world, &item, &outputs);
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, &item, 1), 0);
	assert_true(item.row_count <= item.row_capacity);
	compute_scores(world, &item, &scores);
	read_rows(world, &item, &scores);
	check_choice(world, &item, &scores, tolerance);
	check_chosen(world, device, &item, &scores, tolerance);
	check_mixed(world, device, &item, &scores, tolerance);
	check_missing(world, device, &item, &scores);
	check_outputs_close(&outputs);
	oracle_guard_close(&query);
}

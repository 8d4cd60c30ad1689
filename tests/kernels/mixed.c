/* SPDX-License-Identifier: Apache-2.0 */
/* mixed.c: MIXED and MERGED recalls on chains built by hand.
 *
 * Goal: what conformance.c cannot reach with segments that k-means made: every width of keys, values and
 * group, thousands of clusters, queries, scales, spreads and values at the ends of their ranges, and merged
 * sets of any shape; and nothing written outside the outputs, ever.
 *
 * Method: what CLUSTERS takes is read back row by row; what is left of each cluster, estimated in
 * double, must be what the fold and the rows of centroids say (mixed_util.h). Merged sets are filled with
 * random rows and read back. All on each instruction set. */
#include <errno.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/chain_util.h"
#include "tests/kernels/mixed_util.h"

#define ORDER 2e-3  /* tolerance of a density, relative */
#define DEEP  1e-20 /* densities below this may come in any order */

/* A trial in the form MIXED. */
struct mixed {
	struct trial trial;
	struct oracle_guard out, lse;
};

/* Room for `more` rows behind those that trial_open has counted, and weights per head. */
static void grow(struct trial *trial, uint32_t more, uint32_t heads)
{
	struct kvr_recall_item *item = &trial->item;
	const uint32_t rows = item->row_capacity + more;

	oracle_guard_close(&trial->keys);
	oracle_guard_close(&trial->values);
	oracle_guard_close(&trial->weights);
	oracle_guard_close(&trial->positions);
	oracle_guard_open(&trial->keys, rows * kvr_geometry_key_bytes(item->geometry), 5);
	oracle_guard_open(&trial->values, rows * kvr_geometry_value_bytes(item->geometry), 1);
	oracle_guard_open(&trial->weights, (size_t)heads * rows * sizeof(float), 4);
	oracle_guard_open(&trial->positions, rows * sizeof(int32_t), 4);
	item->row_capacity = rows;
	item->keys = trial->keys.data;
	item->values = trial->values.data;
	item->weights = (float *)(void *)trial->weights.data;
	item->positions = (int32_t *)(void *)trial->positions.data;
}

static void mixed_open(struct mixed *mixed, struct chain *chain, uint32_t heads, uint32_t budget,
	uint32_t tail_count, uint32_t centroids)
{
	struct kvr_recall_item *item = &mixed->trial.item;

	trial_open(&mixed->trial, chain, heads, budget, tail_count, true);
	grow(&mixed->trial, centroids, centroids > 0 ? heads : 1);
	oracle_guard_open(
		&mixed->out, (size_t)heads * chain->geometry.value_dim * sizeof(float), 4);
	oracle_guard_open(&mixed->lse, heads * sizeof(float), 4);
	item->form = KVR_FORM_MIXED;
	item->centroid_max = centroids;
	item->fold_out = (float *)(void *)mixed->out.data;
	item->fold_lse = (float *)(void *)mixed->lse.data;
}

static void mixed_close(struct mixed *mixed)
{
	oracle_guard_close(&mixed->out);
	oracle_guard_close(&mixed->lse);
	trial_close(&mixed->trial);
}

static void set_queries(struct mixed *mixed, struct oracle_random *random, double size)
{
	const struct kvr_recall_item *item = &mixed->trial.item;

	for (uint32_t k = 0; k < item->query_count * item->geometry->key_dim; k++)
		trial_set_query(&mixed->trial, k, size * oracle_gauss(random));
}

/* Runs it and checks rows, centroids and fold. */
static void mixed_run(struct mixed *mixed, const struct chain *chain)
{
	static uint32_t taken[CHAIN_CLUSTERS_MAX], left[CHAIN_CLUSTERS_MAX];
	static double density[CHAIN_CLUSTERS_MAX];
	struct trial rows;

	trial_run(&mixed->trial, chain_device);
	rows = mixed->trial;
	rows.item.row_count -= rows.item.centroid_count;
	trial_check_rows(&rows, taken);
	trial_densities(&rows, density, left);
	for (uint32_t c = 0; c < chain->clusters; c++) {
		left[c] -= taken[c];
		density[c] = log(fmax(density[c], DEEP));
	}
	if (mixed->trial.item.centroid_max > 0)
		mixed_check_centroids(&mixed->trial.item, left, density, ORDER);
	mixed_check_fold(&mixed->trial.item, left);
}

/* ---- mixed ----------------------------------------------------------------------------------- */

static void test_shapes(void **state)
{
	static const uint32_t dims[] = {8, 9, 15, 24, 31, 32, 64, 80, 96, 128, 130, 192, 576};
	static const uint32_t values[] = {8, 31, 32, 33, 63, 64, 65, 97, 128, 160, 576};
	static const uint32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 128};

	(void)state;
	for (uint32_t i = 0; i < 39; i++) {
		struct oracle_random random = oracle_random(chain_seed = 300 + i);
		const uint32_t segments = oracle_pick(&random, 1, 5);
		struct chain chain;
		struct mixed mixed;

		chain_open(&chain, &random, dims[i % 13], oracle_pick(&random, 4, 9),
			oracle_pick(&random, 0, 16));
		chain.geometry.value_dim = values[i % 11];
		for (uint32_t s = 0; s < segments; s++)
			chain_add(&chain, &random, oracle_pick(&random, 17, 700));
		mixed_open(&mixed, &chain, groups[i * 5 % 13],
			oracle_pick(&random, 0, chain.rows + 20), 0,
			i % 2 * oracle_pick(&random, 1, 50));
		mixed.trial.item.query_dtype = (enum kvr_dtype)oracle_pick(&random, 1, 3);
		mixed.trial.item.first_order = oracle_pick(&random, 0, 3) == 0;
		if (oracle_pick(&random, 0, 2) == 0)
			mixed.trial.item.budget_mass = (float)oracle_pick(&random, 1, 100) / 100;
		set_queries(&mixed, &random, 2);
		mixed_run(&mixed, &chain);
		mixed_close(&mixed);
		chain_close(&chain);
	}
	chain_seed = 0;
}

/* Thousands of clusters, one pass and several. */
static void test_long(void **state)
{
	static const uint32_t groups[] = {4, 16, 20};
	struct oracle_random random = oracle_random(17);
	struct chain chain;

	(void)state;
	chain_open(&chain, &random, 64, 4, 16);
	for (uint32_t s = 0; s < 12; s++)
		chain_add(&chain, &random, oracle_pick(&random, 1800, 2048));
	for (uint32_t i = 0; i < 3; i++) {
		struct mixed mixed;

		mixed_open(&mixed, &chain, groups[i], oracle_pick(&random, 1, 2000), 10, 300 * i);
		set_queries(&mixed, &random, 3);
		mixed_run(&mixed, &chain);
		mixed_close(&mixed);
	}
	chain_close(&chain);
}

/* Numbers at the ends of their ranges: what comes back is finite, and right where logits still tell. */
static void test_extremes(void **state)
{
	static const double sizes[] = {1e-38, 1e-31, 1e-20, 1, 40, 1e4, 1e18, 1e37};
	static const float scales[] = {0, 1e-30f, 0.1f, -0.1f, 1, 1e4f, 1e30f};
	static const float steps[] = {0, FLT_MIN, 1e-20f, 1e-3f, 1, 1e20f, FLT_MAX};

	(void)state;
	for (uint32_t i = 0; i < 120; i++) {
		struct oracle_random random = oracle_random(chain_seed = 500 + i);
		const uint32_t heads = oracle_pick(&random, 1, 20);
		struct chain chain;
		struct mixed mixed;

		chain_open(&chain, &random, oracle_pick(&random, 8, 40), 8, 3);
		for (uint32_t s = 0; s < 3; s++) {
			chain_add(&chain, &random, oracle_pick(&random, 60, 500));
			for (uint32_t c = 0; c < chain.view[s].cluster_count[CHAIN_LANE]; c++)
				kvr_segment_spread_step(&chain.view[s], CHAIN_LANE)[c] =
					steps[oracle_pick(&random, 0, 6)];
			for (uint32_t k = 0; k < 40; k++) /* the largest of bf16, here and there */
				kvr_segment_value_mean(&chain.view[s], CHAIN_LANE)[oracle_pick(
					&random, 0, chain.geometry.value_dim * 7)] =
					k % 2 ? 0x7f7f : 0xff7f;
		}
		mixed_open(&mixed, &chain, heads, 0, 2, i % 3 * 4);
		mixed.trial.item.scale = scales[oracle_pick(&random, 0, 6)];
		set_queries(&mixed, &random, sizes[oracle_pick(&random, 0, 7)]);
		if (i % 4 == 0)
			trial_set_query(&mixed.trial,
				oracle_pick(&random, 0, heads * chain.geometry.key_dim - 1),
				i % 8 ? (double)NAN : (double)INFINITY);
		trial_run(&mixed.trial, chain_device);
		for (uint32_t k = 0; k < heads * chain.geometry.value_dim; k++)
			assert_true(isfinite(mixed.trial.item.fold_out[k]));
		if (mixed.trial.item.centroid_max == 0) {
			uint32_t *left = calloc(chain.clusters, sizeof(*left)), at = 0;

			for (uint32_t s = 0; s < chain.count; s++)
				for (uint32_t c = 0; c < chain.view[s].cluster_count[CHAIN_LANE];
					c++)
					left[at++] = kvr_segment_unit_rows(
						&chain.view[s], CHAIN_LANE, c);
			mixed_check_fold(&mixed.trial.item, left);
			free(left);
		} else {
			for (uint32_t h = 0; h < heads; h++)
				for (uint32_t k = 0; k < mixed.trial.item.row_count; k++)
					assert_true(isfinite(
						mixed.trial.item
							.weights[h * mixed.trial.item.row_capacity +
								 k]));
		}
		mixed_close(&mixed);
		chain_close(&chain);
	}
	chain_seed = 0;
}

/* Nothing is left: a budget for all, a dense lane, no clusters. */
static void test_nothing_left(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		struct oracle_random random = oracle_random(chain_seed = 600 + i);
		struct chain chain;
		struct mixed mixed;

		chain_open(&chain, &random, 32, 4, 16);
		if (i == 1)
			chain.geometry.dense[0] = 1u << CHAIN_LANE;
		for (uint32_t s = 0; i < 2 && s < 2; s++)
			chain_add(&chain, &random, 100);
		mixed_open(&mixed, &chain, 18, i == 1 ? 0 : chain.rows, 3, 7);
		set_queries(&mixed, &random, 1);
		mixed_run(&mixed, &chain);
		assert_int_equal(mixed.trial.item.centroid_count, 0);
		for (uint32_t h = 0; h < 18; h++) {
			assert_true(mixed.trial.item.fold_lse[h] == -INFINITY);
			for (uint32_t r = 0; r < mixed.trial.item.row_count; r++)
				assert_true(
					mixed.trial.item.weights[h * mixed.trial.item.row_capacity +
								 r] == 0);
		}
		mixed_close(&mixed);
		chain_close(&chain);
	}
	chain_seed = 0;
}

/* ---- merged ---------------------------------------------------------------------------------- */

/* How far a merged reply has been read. */
struct reading {
	const struct kvr_recall_item *item;
	uint32_t row, entry, units, absent, missing;
};

/* The next rows are those of a unit, unless it is missing. `merged`: tokens of its rows; NULL: tokens are
 * `token`. */
static void read_unit(struct reading *reading, uint32_t segment, uint32_t unit,
	uint32_t lost_tokens, const uint16_t *merged, const uint16_t *token)
{
	const struct kvr_recall_item *item = reading->item;
	const struct kvr_segment_view *view = item->segments[segment];
	const uint32_t rows = kvr_segment_unit_rows(view, item->lane, unit);
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	const uint8_t *extent = kvr_segment_get_extent(view, item->lane, unit);

	if (rows == 0)
		return;
	if (extent == KVR_EXTENT_LOST || (!extent && !item->chosen)) {
		reading->missing += lost_tokens;
		return;
	}
	if (item->chosen) {
		const struct kvr_chosen *chosen = &item->chosen[reading->entry++];

		assert_int_equal(chosen->segment, segment);
		assert_int_equal(chosen->cluster, unit);
		assert_int_equal(chosen->rows, rows);
		assert_int_equal(chosen->row, reading->row);
		assert_int_equal(chosen->absent, !extent);
		assert_true(chosen->share == 0);
	}
	assert_true(reading->row + rows <= item->row_count);
	for (uint32_t i = 0; i < rows; i++, reading->row++) {
		const uint32_t row = reading->row;

		assert_int_equal(item->positions[row],
			merged ? -1 : (int32_t)(view->token_first + token[i]));
		assert_true(fabs((double)item->weights[row] - log(merged ? merged[i] : 1)) < 1e-6);
		if (!extent)
			continue;
		assert_memory_equal(
			item->keys + row * key_bytes, extent + i * key_bytes, key_bytes);
		assert_memory_equal(item->values + row * value_bytes,
			extent + rows * key_bytes + i * value_bytes, value_bytes);
	}
	reading->absent += !extent;
	reading->units++;
}

/* Reads a merged reply from its first row to its last. */
static void check_merged(const struct kvr_recall_item *item)
{
	const bool dense = kvr_geometry_is_dense(item->geometry, item->lane);
	struct reading reading = {.item = item};
	uint32_t sinks;

	for (uint32_t s = 0; item->sinks && s < item->segment_count; s++) {
		const struct kvr_segment_view *view = item->segments[s];
		const uint32_t unit = view->cluster_count[item->lane];

		read_unit(&reading, s, unit, view->sink_count, NULL,
			kvr_segment_row_token(view, item->lane) +
				kvr_segment_row_first(view, item->lane)[unit]);
	}
	sinks = reading.units;
	for (uint32_t s = 0; s < item->segment_count; s++) {
		const struct kvr_segment_view *view = item->segments[s];
		const uint16_t *first = kvr_segment_row_first(view, item->lane);
		const uint16_t *token = kvr_segment_row_token(view, item->lane);
		uint16_t *merged;

		if (!dense && s < item->merged_segments) {
			const uint32_t unit = kvr_segment_merged_unit(
				view, item->lane, item->merged_set, &merged);

			read_unit(&reading, s, unit, view->token_count - view->sink_count, merged,
				NULL);
			continue;
		}
		for (uint32_t c = 0; c < view->cluster_count[item->lane]; c++)
			read_unit(&reading, s, c, (uint32_t)first[c + 1] - first[c], NULL,
				token + first[c]);
	}
	for (uint32_t t = 0; t < item->tail_count; t++, reading.row++) {
		assert_true(reading.row < item->row_count);
		assert_int_equal(item->positions[reading.row], item->tail_first + t);
		assert_true(item->weights[reading.row] == 0);
		assert_memory_equal(
			item->keys + reading.row * kvr_geometry_key_bytes(item->geometry),
			kvr_tail_key(item->tail, item->lane, t),
			kvr_geometry_key_bytes(item->geometry));
	}
	assert_int_equal(item->row_count, reading.row);
	assert_int_equal(item->cluster_count, reading.units - sinks);
	assert_int_equal(item->chosen_count, item->chosen ? reading.units : 0);
	assert_int_equal(item->absent_count, reading.absent);
	assert_int_equal(item->token_missing, reading.missing);
	assert_int_equal(item->centroid_count, 0);
	assert_true(item->mass == 1.0f);
}

/* One item with everything here, then with extents gone, without and with a list. */
static void check_merged_item(struct chain *chain, struct oracle_random *random, uint32_t set)
{
	static uint8_t *was[CHAIN_SEGMENTS_MAX * 512];
	struct oracle_guard chosen;
	struct trial trial;
	uint32_t extents = 0;

	trial_open(&trial, chain, 1, chain->rows, oracle_pick(random, 0, 64),
		oracle_pick(random, 0, 1));
	trial.item.form = KVR_FORM_MERGED;
	trial.item.merged_set = set;
	trial.item.merged_segments = oracle_pick(random, 0, chain->count);
	trial.item.query = NULL;
	trial.item.query_count = 0;
	trial.item.budget_tokens = 0;
	trial_run(&trial, chain_device);
	check_merged(&trial.item);
	for (uint32_t s = 0; s < chain->count; s++)
		for (uint32_t unit = 0; unit < chain->view[s].unit_count; unit++) {
			const uint32_t kind = oracle_pick(random, 0, 5);

			was[extents++] = kvr_segment_get_extent(&chain->view[s], CHAIN_LANE, unit);
			if (kind < 3)
				kvr_segment_set_extent(&chain->view[s], CHAIN_LANE, unit,
					kind ? NULL : KVR_EXTENT_LOST);
		}
	trial_run(&trial, chain_device);
	check_merged(&trial.item);
	trial.item.chosen_max = chain->clusters + chain->count;
	oracle_guard_open(&chosen, trial.item.chosen_max * sizeof(*trial.item.chosen), 4);
	trial.item.chosen = (struct kvr_chosen *)(void *)chosen.data;
	trial_run(&trial, chain_device);
	check_merged(&trial.item);
	extents = 0;
	for (uint32_t s = 0; s < chain->count; s++)
		for (uint32_t unit = 0; unit < chain->view[s].unit_count; unit++)
			kvr_segment_set_extent(&chain->view[s], CHAIN_LANE, unit, was[extents++]);
	oracle_guard_close(&chosen);
	trial_close(&trial);
}

static void test_merged(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 30; i++) {
		struct oracle_random random = oracle_random(chain_seed = 700 + i);
		const uint32_t segments = oracle_pick(&random, 1, 6);
		struct chain chain;

		chain_open(&chain, &random, oracle_pick(&random, 8, 130),
			oracle_pick(&random, 4, 30), oracle_pick(&random, 0, 16));
		chain.geometry.merged = oracle_pick(&random, 1, 15);
		if (i % 5 == 0)
			chain.geometry.dense[0] = 1u << CHAIN_LANE;
		/* The first may be sinks alone. */
		for (uint32_t s = 0; s < segments; s++)
			chain_add(&chain, &random, oracle_pick(&random, s ? 17 : 1, 600));
		for (uint32_t set = 0; set < KVR_MERGED_SETS; set++)
			if (chain.geometry.merged >> set & 1)
				check_merged_item(&chain, &random, set);
		chain_close(&chain);
	}
	chain_seed = 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {CHAIN_ON_ALL(test_shapes), CHAIN_ON_ALL(test_long),
		CHAIN_ON_ALL(test_extremes), CHAIN_ON_ALL(test_nothing_left),
		CHAIN_ON_ALL(test_merged)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

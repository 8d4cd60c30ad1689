/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c: recall on chains built by hand.
 *
 * Goal: what conformance.c cannot reach with segments that k-means made: every width of key and group,
 * thousands of clusters, equal and extreme shares, limits by mass to the exact cluster, queries that
 * are not finite, rows that are not here; and nothing written outside the outputs, ever.
 *
 * Method: a chain of segments with random permutations (S1 to S4), every extent an allocation of its
 * own. Random items are held against scores in double, with a tolerance in the order; items whose
 * numbers are powers of two have exactly one right answer. All on each instruction set. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/chain_util.h"

#define ORDER 2e-3  /* tolerance of a density, relative */
#define DEEP  1e-20 /* densities below this may come in any order */

/* ThreadSanitizer looks at who touches what, not at results. */
#if defined(__SANITIZE_THREAD__)
#define SHAPES 13u
#else
#define SHAPES 39u
#endif

/* A reply against the oracle. */
static void check_choice(const struct trial *trial, uint32_t clusters)
{
	static double density[CHAIN_CLUSTERS_MAX];
	static uint32_t size[CHAIN_CLUSTERS_MAX], taken[CHAIN_CLUSTERS_MAX];
	const struct kvr_recall_item *item = &trial->item;
	uint32_t rows = 0, total = 0, trimmed = 0;
	double mass = 0, least = INFINITY;

	trial_check_rows(trial, taken);
	trial_densities(trial, density, size);
	for (uint32_t c = 0; c < clusters; c++) {
		rows += taken[c];
		total += size[c];
		trimmed += taken[c] > 0 && taken[c] < size[c];
		mass += taken[c] * density[c];
		least = taken[c] > 0 ? fmin(least, density[c]) : least;
	}
	assert_true(trimmed <= 1);
	assert_true(fabs(mass - (double)item->mass) < 1e-3);
	for (uint32_t c = 0; c < clusters; c++)
		if (taken[c] < size[c])
			assert_true(density[c] <= least * (1 + ORDER) + DEEP);
	if (!(item->budget_mass > 0)) {
		assert_int_equal(rows, total < item->budget_tokens ? total : item->budget_tokens);
		return;
	}
	assert_true(rows <= item->budget_tokens);
	assert_true(mass > (double)item->budget_mass - 1e-3 || rows == item->budget_tokens ||
		    rows == total);
	/* Without the last cluster it was not enough yet. */
	for (uint32_t c = 0; c < clusters; c++)
		if (taken[c] > 0 && density[c] <= least)
			assert_true(
				mass - taken[c] * density[c] < (double)item->budget_mass + 1e-3);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_shapes(void **state)
{
	static const uint32_t dims[] = {8, 9, 15, 24, 31, 32, 64, 80, 96, 128, 130, 192, 576};
	static const uint32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 128};

	(void)state;
	for (uint32_t i = 0; i < SHAPES; i++) {
		struct oracle_random random = oracle_random(chain_seed = 100 + i);
		struct chain chain;
		struct trial trial;
		uint32_t heads = groups[i * 5 % 13], segments = oracle_pick(&random, 1, 5);

		chain_open(&chain, &random, dims[i % 13], oracle_pick(&random, 4, 9),
			oracle_pick(&random, 0, 16));
		for (uint32_t s = 0; s < segments; s++)
			chain_add(&chain, &random, oracle_pick(&random, 17, 700));
		trial_open(&trial, &chain, heads, oracle_pick(&random, 1, chain.rows + 20),
			oracle_pick(&random, 0, 64), oracle_pick(&random, 0, 1));
		trial.item.query_dtype = (enum kvr_dtype)oracle_pick(&random, 1, 3);
		if (oracle_pick(&random, 0, 2) == 0)
			trial.item.budget_mass = (float)oracle_pick(&random, 1, 99) / 100;
		for (uint32_t k = 0; k < heads * chain.geometry.key_dim; k++)
			trial_set_query(&trial, k, 2 * oracle_gauss(&random));
		trial_run(&trial, chain_device);
		check_choice(&trial, chain.clusters);
		trial_close(&trial);
		chain_close(&chain);
	}
	chain_seed = 0;
}

/* Thousands of clusters: every stage of the choice, strips and segments. */
static void test_long(void **state)
{
	struct oracle_random random = oracle_random(7);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 64, 4, 16);
	for (uint32_t s = 0; s < 12; s++)
		chain_add(&chain, &random, oracle_pick(&random, 1800, 2048));
	for (uint32_t i = 0; i < 8; i++) {
		trial_open(&trial, &chain, 4, oracle_pick(&random, 1, 2000) << (i % 3), 10, true);
		for (uint32_t k = 0; k < 4 * 64; k++)
			trial_set_query(&trial, k, (double)(i + 1) * oracle_gauss(&random));
		trial.item.budget_mass = i % 2 ? 0.6f : 0;
		trial_run(&trial, chain_device);
		check_choice(&trial, chain.clusters);
		trial_close(&trial);
	}
	chain_close(&chain);
}

/* A chain of `segments` with the same mean everywhere: all densities are equal to the bit. */
static void open_equal(struct chain *chain, struct oracle_random *random, uint32_t segments)
{
	double ones[32];

	for (uint32_t i = 0; i < 32; i++)
		ones[i] = 1.0;
	chain_open(chain, random, 32, 8, 0);
	for (uint32_t s = 0; s < segments; s++) {
		chain_add(chain, random, 640);
		for (uint32_t i = 0; i < 2 * 80; i++)
			oracle_put_mean(&chain->view[s], i % 2, i / 2, ones);
		for (uint32_t lane = 0; lane < 2; lane++)
			chain->view[s].key_planes[lane] = 1;
	}
}

/* Ties go to the earlier cluster, and the one that crosses the budget is trimmed to its first rows. */
static void test_ties(void **state)
{
	static uint32_t taken[CHAIN_CLUSTERS_MAX];
	struct oracle_random random = oracle_random(3);
	struct chain chain;
	struct trial trial;

	(void)state;
	open_equal(&chain, &random, 6);
	for (uint32_t budget = 1; budget < chain.rows; budget += 97) {
		for (uint32_t rank = KVR_RANK_SHARE; rank <= KVR_RANK_INNER_PRODUCT; rank++) {
			uint32_t left = budget, at = 0;

			trial_open(&trial, &chain, 1, budget, 0, false);
			trial.item.rank = (enum kvr_rank)rank;
			for (uint32_t k = 0; k < 32; k++)
				trial_set_query(&trial, k, k % 2 ? 0.5 : -0.25);
			trial_run(&trial, chain_device);
			trial_check_rows(&trial, taken);
			for (uint32_t s = 0; s < chain.count; s++) {
				const uint16_t *first =
					kvr_segment_row_first(&chain.view[s], CHAIN_LANE);

				for (uint32_t c = 0; c < 80; c++, at++) {
					const uint32_t size = (uint32_t)(first[c + 1] - first[c]);

					assert_int_equal(taken[at], left < size ? left : size);
					left -= taken[at];
				}
			}
			assert_true(
				fabs((double)trial.item.mass - budget / (double)chain.rows) < 1e-4);
			trial_close(&trial);
		}
	}
	chain_close(&chain);
}

/* The inner product, signs and zeros included, orders whole clusters, whatever the scale. */
static void test_inner_product(void **state)
{
	double mean[40] = {0};
	static uint32_t taken[CHAIN_CLUSTERS_MAX];
	static const double dots[8] = {-4, 0, 2, -0.0, -0.5, 8, 2, -16};
	static const uint32_t order[8] = {5, 2, 6, 1, 3, 4, 0, 7};
	struct oracle_random random = oracle_random(4);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 40, 4, 0);
	chain_add(&chain, &random, 32);
	for (uint32_t c = 0; c < 8; c++) {
		mean[39] = dots[c];
		oracle_put_mean(&chain.view[0], CHAIN_LANE, c, mean);
	}
	for (uint32_t count = 1; count <= 8; count++) {
		const uint16_t *first = kvr_segment_row_first(&chain.view[0], CHAIN_LANE);
		uint32_t budget = 0;

		for (uint32_t i = 0; i < count; i++)
			budget += (uint32_t)(first[order[i] + 1] - first[order[i]]);
		trial_open(&trial, &chain, 1, budget, 0, false);
		trial.item.rank = KVR_RANK_INNER_PRODUCT;
		trial.item.scale = 0;
		for (uint32_t k = 0; k < 40; k++)
			trial_set_query(&trial, k, k == 39 ? 1 : 3);
		trial_run(&trial, chain_device);
		trial_check_rows(&trial, taken);
		for (uint32_t i = 0; i < 8; i++)
			assert_int_equal(taken[order[i]] > 0, i < count);
		trial_close(&trial);
	}
	chain_close(&chain);
}

/* Equal densities: the mass of k rows is k of all, to the bit, so the limit by mass has one answer. */
static void test_mass(void **state)
{
	static const double zeros[16] = {0};
	static uint32_t taken[CHAIN_CLUSTERS_MAX];
	struct oracle_random random = oracle_random(5);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 16, 64, 0);
	chain_add(&chain, &random, 512);
	for (uint32_t i = 0; i < 2 * 8; i++)
		oracle_put_mean(&chain.view[0], i % 2, i / 2, zeros);
	for (uint32_t p = 1; p <= 512; p += 7) {
		const uint16_t *first = kvr_segment_row_first(&chain.view[0], CHAIN_LANE);
		uint32_t rows = 0;

		trial_open(&trial, &chain, 2, 300, 0, false);
		memset(trial.query.data, 0, trial.query.bytes);
		trial.item.budget_mass = (float)p / 512;
		trial_run(&trial, chain_device);
		trial_check_rows(&trial, taken);
		for (uint32_t c = 0; c < 8 && rows < p && rows < 300; c++)
			rows = first[c + 1] < 300 ? first[c + 1] : 300;
		assert_int_equal(trial.item.row_count, rows);
		assert_true(trial.item.mass == (float)rows / 512);
		trial_close(&trial);
	}
	chain_close(&chain);
}

/* Queries that are not finite count as if all their shares were 0; huge ones are like any other. */
static void test_extremes(void **state)
{
	static const double bad[] = {NAN, INFINITY, -INFINITY};
	static uint32_t first[CHAIN_CLUSTERS_MAX], second[CHAIN_CLUSTERS_MAX];
	struct oracle_random random = oracle_random(6);
	struct chain chain;
	struct trial one, two;

	(void)state;
	chain_open(&chain, &random, 32, 8, 16);
	for (uint32_t s = 0; s < 3; s++)
		chain_add(&chain, &random, 500);
	for (uint32_t i = 0; i < 3; i++) {
		/* One of two heads is bad: the order is the other's, the mass half of it. */
		trial_open(&one, &chain, 1, 200, 3, true);
		trial_open(&two, &chain, 2, 200, 3, true);
		for (uint32_t k = 0; k < 32; k++) {
			const double value = oracle_gauss(&random);

			trial_set_query(&one, k, value);
			trial_set_query(&two, 32 + k, value);
			trial_set_query(&two, k, value);
		}
		memcpy(two.query.data + 7 * 4, &(float){(float)bad[i]}, 4);
		trial_run(&one, chain_device);
		trial_run(&two, chain_device);
		trial_check_rows(&one, first);
		trial_check_rows(&two, second);
		assert_memory_equal(first, second, chain.clusters * sizeof(*first));
		assert_true(fabs((double)(one.item.mass / 2 - two.item.mass)) < 1e-5);
		trial_close(&two);
		/* All are bad: the first clusters. Then the largest floats there are. */
		memcpy(one.query.data + 31 * 4, &(float){(float)bad[i]}, 4);
		trial_run(&one, chain_device);
		trial_check_rows(&one, first);
		assert_true(one.item.mass == 0);
		assert_true(first[0] > 0);
		for (uint32_t k = 0; k < 32; k++)
			memcpy(one.query.data + k * 4, &(float){k % 2 ? -3.4e38f : 3.4e38f}, 4);
		one.item.scale = i == 0 ? 1 : (float)bad[i];
		trial_run(&one, chain_device);
		trial_check_rows(&one, first);
		assert_true(one.item.mass >= 0 && one.item.mass <= 1);
		trial_close(&one);
	}
	chain_close(&chain);
}

/* Rows that are not here are counted, and nothing else changes. */
static void test_missing(void **state)
{
	static uint32_t whole[CHAIN_CLUSTERS_MAX], taken[CHAIN_CLUSTERS_MAX];
	struct oracle_random random = oracle_random(8);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 48, 5, 16);
	for (uint32_t s = 0; s < 4; s++)
		chain_add(&chain, &random, 333);
	for (uint32_t lanes = 0; lanes < 2; lanes++) {
		uint32_t missing = 0, at = 0;

		chain.geometry.dense[0] = lanes << CHAIN_LANE;
		trial_open(&trial, &chain, 3, 400, 20, true);
		for (uint32_t k = 0; k < 3 * 48; k++)
			trial_set_query(&trial, k, oracle_gauss(&random));
		trial_run(&trial, chain_device);
		trial_check_rows(&trial, whole);
		assert_int_equal(trial.item.token_missing, 0);
		if (lanes > 0) {
			assert_int_equal(trial.item.row_count, chain.rows + 16 + 20);
			assert_true(trial.item.mass == 1.0f);
		}
		for (uint32_t s = 0; s < 4; s++) {
			for (uint32_t c = 0; c < chain.view[s].cluster_count[CHAIN_LANE];
				c++, at++) {
				uint8_t **extent =
					kvr_segment_extent(&chain.view[s], CHAIN_LANE) + c;

				if (oracle_pick(&random, 0, 2) > 0)
					continue;
				free(*extent);
				*extent = NULL;
				missing += whole[at];
				whole[at] = 0;
			}
		}
		trial_run(&trial, chain_device);
		trial_check_rows(&trial, taken);
		assert_true(missing > 0);
		assert_int_equal(trial.item.token_missing, missing);
		assert_memory_equal(taken, whole, chain.clusters * sizeof(*taken));
		trial_close(&trial);
		if (lanes == 0) { /* the dense round starts whole again */
			chain_close(&chain);
			chain_open(&chain, &random, 48, 5, 16);
			for (uint32_t s = 0; s < 4; s++)
				chain_add(&chain, &random, 333);
		}
	}
	chain_close(&chain);
}

/* No segments, no budget, no optional outputs. */
static void test_nothing(void **state)
{
	struct oracle_random random = oracle_random(9);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 8, 4, 0);
	trial_open(&trial, &chain, 1, 10, 0, true);
	trial_run(&trial, chain_device);
	assert_int_equal(trial.item.row_count, 0);
	assert_true(trial.item.mass == 1.0f);
	trial_close(&trial);
	chain_add(&chain, &random, 64);
	trial_open(&trial, &chain, 1, 0, 5, false);
	memset(trial.query.data, 0, trial.query.bytes);
	trial.item.weights = NULL;
	trial.item.positions = NULL;
	trial_run(&trial, chain_device);
	assert_int_equal(trial.item.row_count, 5);
	assert_int_equal(trial.item.cluster_count, 0);
	assert_true(trial.item.mass == 0);
	trial_close(&trial);
	chain_close(&chain);
}

int main(void)
{
	const struct CMUnitTest tests[] = {CHAIN_ON_ALL(test_shapes), CHAIN_ON_ALL(test_long),
		CHAIN_ON_ALL(test_ties), CHAIN_ON_ALL(test_inner_product), CHAIN_ON_ALL(test_mass),
		CHAIN_ON_ALL(test_extremes), CHAIN_ON_ALL(test_missing),
		CHAIN_ON_ALL(test_nothing)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

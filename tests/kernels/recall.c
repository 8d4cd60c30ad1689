/* SPDX-License-Identifier: Apache-2.0 */
/* Recall on chains built by hand.
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

#include "tests/kernels/oracle_util.h"

#define SEGMENTS_MAX 24u
#define CLUSTERS_MAX 8192u
#define LANE         1u    /* of two: offsets of lanes matter */
#define ORDER        2e-3  /* tolerance of a density, relative */
#define DEEP         1e-20 /* densities below this may come in any order */

static struct kvr_device *device;
static uint64_t seed; /* of the trial in hand; 0 after the last: printed where a test failed */

struct chain {
	struct kvr_geometry geometry;
	uint32_t count;
	uint32_t clusters; /* of LANE, without the sinks' */
	uint32_t rows;     /* of these */
	struct kvr_segment_view view[SEGMENTS_MAX];
	const struct kvr_segment_view *segments[SEGMENTS_MAX];
	uint8_t *memory[SEGMENTS_MAX];
	uint8_t *tail_block[1];
	struct kvr_tail_view tail;
};

/* One item, its guarded outputs and queries. */
struct trial {
	struct kvr_recall_item item;
	struct oracle_guard query, keys, values, weights, positions;
};

/* ---- chains ---------------------------------------------------------------------------------- */

static void fill_bytes(struct oracle_random *random, uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		bytes[i] = (uint8_t)oracle_pick(random, 0, 255);
}

/* Deals the tokens of a lane out to `clusters` clusters of one token or more each. */
static void deal(struct oracle_random *random, struct kvr_segment_view *view, uint32_t lane,
	uint32_t clusters)
{
	const uint32_t sinks = view->sink_count, tokens = view->token_count - sinks;
	const bool dense = kvr_geometry_is_dense(view->geometry, lane);
	uint16_t *first = kvr_segment_row_first(view, lane);
	uint16_t *token = kvr_segment_row_token(view, lane);
	uint32_t *owner = malloc(tokens * sizeof(*owner) + 4);
	uint32_t row = 0;

	for (uint32_t i = 0; i < tokens; i++)
		owner[i] = i < clusters ? i : oracle_pick(random, 0, clusters - 1);
	for (uint32_t i = tokens; i > 1 && !dense; i--) {
		const uint32_t j = oracle_pick(random, 0, i - 1), swap = owner[i - 1];

		owner[i - 1] = owner[j];
		owner[j] = swap;
	}
	for (uint32_t c = 0; c < clusters; c++) {
		first[c] = (uint16_t)row;
		for (uint32_t i = 0; i < tokens; i++)
			if (dense ? i * clusters / tokens == c : owner[i] == c)
				token[row++] = (uint16_t)(sinks + i);
	}
	first[clusters] = (uint16_t)row;
	for (uint32_t i = 0; i < sinks; i++)
		token[row++] = (uint16_t)i;
	first[clusters + 1] = (uint16_t)row;
	view->cluster_count[lane] = (uint16_t)clusters;
	free(owner);
}

static void add_segment(struct chain *chain, struct oracle_random *random, uint32_t tokens)
{
	struct kvr_segment_view *view = &chain->view[chain->count];
	const struct kvr_segment_view *before = view - (chain->count > 0);
	const uint32_t first = chain->count > 0 ? before->token_first + before->token_count : 0;
	const size_t row = kvr_geometry_key_bytes(&chain->geometry) +
			   kvr_geometry_value_bytes(&chain->geometry);

	kvr_segment_shape(view, &chain->geometry, first, tokens);
	chain->memory[chain->count] = aligned_alloc(64, kvr_segment_bind(view, NULL));
	kvr_segment_bind(view, chain->memory[chain->count]);
	for (uint32_t lane = 0; lane < 2; lane++) {
		const uint32_t clusters = view->cluster_max;
		uint16_t *mean = kvr_segment_key_mean(view, lane);

		deal(random, view, lane, clusters);
		for (uint32_t i = 0; i < clusters * chain->geometry.key_dim; i++)
			oracle_put((uint8_t *)mean, KVR_DTYPE_BF16, i, oracle_gauss(random));
		for (uint32_t c = 0; c <= clusters; c++) {
			const uint16_t *rows = kvr_segment_row_first(view, lane) + c;
			const size_t bytes = (size_t)(rows[1] - rows[0]) * row;
			uint8_t *extent = bytes > 0 ? malloc(bytes) : NULL;

			fill_bytes(random, extent, bytes);
			kvr_segment_extent(view, lane)[c] = extent;
		}
	}
	chain->segments[chain->count++] = view;
	chain->clusters += view->cluster_count[LANE];
	chain->rows += tokens - view->sink_count;
}

static void chain_open(struct chain *chain, struct oracle_random *random, uint32_t dim,
	uint32_t cluster_tokens, uint32_t sinks)
{
	if (!device)
		skip(); /* this processor lacks the instruction set */
	*chain = (struct chain){0};
	chain->geometry = (struct kvr_geometry){.layer_count = 1,
		.query_heads = 2,
		.kv_heads = 2,
		.key_dim = dim,
		.value_dim = oracle_pick(random, 8, 40),
		.dtype = (enum kvr_dtype)oracle_pick(random, 1, 3),
		.segment_tokens = 2048,
		.cluster_tokens = cluster_tokens,
		.sink_tokens = sinks};
	chain->tail_block[0] = aligned_alloc(64, kvr_tail_block_bytes(&chain->geometry));
	fill_bytes(random, chain->tail_block[0], kvr_tail_block_bytes(&chain->geometry));
	chain->tail = (struct kvr_tail_view){&chain->geometry, chain->tail_block, 1};
}

static void chain_close(struct chain *chain)
{
	for (uint32_t s = 0; s < chain->count; s++) {
		for (uint32_t i = 0; i < 2 * (chain->view[s].cluster_max + 1); i++)
			free(chain->view[s].extent[i]);
		free(chain->memory[s]);
	}
	free(chain->tail_block[0]);
}

/* ---- items ----------------------------------------------------------------------------------- */

static void trial_open(struct trial *trial, struct chain *chain, uint32_t heads, uint32_t budget,
	uint32_t tail_count, bool sinks)
{
	const struct kvr_geometry *g = &chain->geometry;
	const uint32_t clustered =
		kvr_geometry_is_dense(g, LANE) || budget > chain->rows ? chain->rows : budget;
	const uint32_t end = chain->count > 0 ? chain->view[chain->count - 1].token_first +
							chain->view[chain->count - 1].token_count
					      : 0;
	const uint32_t rows = clustered + (sinks ? g->sink_tokens : 0) + tail_count;

	oracle_guard_open(&trial->query, (size_t)heads * g->key_dim * 4, 3);
	oracle_guard_open(&trial->keys, rows * kvr_geometry_key_bytes(g), 5);
	oracle_guard_open(&trial->values, rows * kvr_geometry_value_bytes(g), 1);
	oracle_guard_open(&trial->weights, rows * sizeof(float), 4);
	oracle_guard_open(&trial->positions, rows * sizeof(int32_t), 4);
	trial->item = (struct kvr_recall_item){.segments = chain->segments,
		.segment_count = chain->count,
		.tail = tail_count > 0 ? &chain->tail : NULL,
		.tail_first = end,
		.tail_count = tail_count,
		.geometry = g,
		.lane = LANE,
		.sinks = sinks,
		.rank = KVR_RANK_SHARE,
		.query_count = heads,
		.query = trial->query.data,
		.query_dtype = KVR_DTYPE_F32,
		.scale = 1 / sqrtf((float)g->key_dim),
		.budget_tokens = budget,
		.row_capacity = rows,
		.keys = trial->keys.data,
		.values = trial->values.data,
		.weights = (float *)(void *)trial->weights.data,
		.positions = (int32_t *)(void *)trial->positions.data};
}

static void trial_close(struct trial *trial)
{
	oracle_guard_close(&trial->query);
	oracle_guard_close(&trial->keys);
	oracle_guard_close(&trial->values);
	oracle_guard_close(&trial->weights);
	oracle_guard_close(&trial->positions);
}

static void run(struct trial *trial)
{
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, &trial->item, 1), 0);
	oracle_guard_check(&trial->keys);
	oracle_guard_check(&trial->values);
	oracle_guard_check(&trial->weights);
	oracle_guard_check(&trial->positions);
}

static void set_query(struct trial *trial, uint32_t i, double value)
{
	oracle_put(trial->query.data, trial->item.query_dtype, i, value);
}

/* ---- what came back -------------------------------------------------------------------------- */

/* Compares one staged row with its source. */
static void check_row(const struct trial *trial, uint32_t row, const uint8_t *key,
	const uint8_t *value, uint32_t position)
{
	const size_t key_bytes = kvr_geometry_key_bytes(trial->item.geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(trial->item.geometry);

	assert_true(row < trial->item.row_count);
	assert_int_equal(trial->item.positions[row], position);
	assert_memory_equal(trial->item.keys + row * key_bytes, key, key_bytes);
	assert_memory_equal(trial->item.values + row * value_bytes, value, value_bytes);
	assert_true(trial->item.weights[row] == 0.0f);
}

/* Rows of a cluster that begin at `row`; at most those of the cluster. Returns how many. */
static uint32_t check_cluster(
	const struct trial *trial, uint32_t row, uint32_t segment, uint32_t cluster)
{
	const struct kvr_segment_view *view = trial->item.segments[segment];
	const uint16_t *first = kvr_segment_row_first(view, LANE) + cluster;
	const uint16_t *token = kvr_segment_row_token(view, LANE) + first[0];
	const size_t key_bytes = kvr_geometry_key_bytes(view->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(view->geometry);
	const uint8_t *key = kvr_segment_extent(view, LANE)[cluster];
	const size_t size = (size_t)(first[1] - first[0]);
	uint32_t i;

	for (i = 0; key && i < size; i++) {
		const uint32_t position = view->token_first + token[i];

		if (row + i >= trial->item.row_count ||
			trial->item.positions[row + i] != (int32_t)position)
			break;
		check_row(trial, row + i, key + i * key_bytes,
			key + size * key_bytes + i * value_bytes, position);
	}
	return i;
}

/* Reads the reply in its order: sinks, clusters in memory order, tail. taken[c] is set to the rows of
 * each cluster. */
static void check_rows(const struct trial *trial, uint32_t *taken)
{
	const struct kvr_recall_item *item = &trial->item;
	uint32_t row = 0, at = 0, clusters = 0;

	for (uint32_t s = 0; s < item->segment_count && item->sinks; s++) {
		const uint32_t sinks = item->segments[s]->sink_count;

		assert_int_equal(
			check_cluster(trial, row, s, item->segments[s]->cluster_count[LANE]),
			sinks);
		row += sinks;
	}
	for (uint32_t s = 0; s < item->segment_count; s++) {
		for (uint32_t c = 0; c < item->segments[s]->cluster_count[LANE]; c++, at++) {
			taken[at] = check_cluster(trial, row, s, c);
			row += taken[at];
			clusters += taken[at] > 0;
		}
	}
	assert_int_equal(item->cluster_count, clusters);
	for (uint32_t i = 0; i < item->tail_count; i++)
		check_row(trial, row++, kvr_tail_key(item->tail, LANE, i),
			kvr_tail_value(item->tail, LANE, i), item->tail_first + i);
	assert_int_equal(item->row_count, row);
}

/* density[c] in double, as device.h defines it; size[c]. */
static void densities(const struct trial *trial, double *density, uint32_t *size)
{
	const struct kvr_recall_item *item = &trial->item;
	const uint32_t dim = item->geometry->key_dim;
	static double logit[CLUSTERS_MAX];
	uint32_t count = 0;

	for (uint32_t h = 0; h < item->query_count; h++) {
		double most = -INFINITY, sum = 0;

		count = 0;
		for (uint32_t s = 0; s < item->segment_count; s++) {
			const struct kvr_segment_view *view = item->segments[s];
			const uint16_t *mean = kvr_segment_key_mean(view, LANE);

			for (uint32_t c = 0; c < view->cluster_count[LANE]; c++, count++) {
				const uint16_t *first = kvr_segment_row_first(view, LANE) + c;
				double dot = 0;

				for (uint32_t i = 0; i < dim; i++)
					dot += oracle_get(item->query, item->query_dtype,
						       h * dim + i) *
					       oracle_bf16(mean[c * dim + i]);
				logit[count] = dot * (double)item->scale;
				most = logit[count] > most ? logit[count] : most;
				size[count] = (uint32_t)(first[1] - first[0]);
				if (h == 0)
					density[count] = 0;
			}
		}
		for (uint32_t c = 0; c < count; c++)
			sum += size[c] * exp(logit[c] - most);
		for (uint32_t c = 0; c < count; c++)
			density[c] += exp(logit[c] - most) / sum / item->query_count;
	}
}

/* A reply against the oracle. */
static void check_choice(const struct trial *trial, uint32_t clusters)
{
	static double density[CLUSTERS_MAX];
	static uint32_t size[CLUSTERS_MAX], taken[CLUSTERS_MAX];
	const struct kvr_recall_item *item = &trial->item;
	uint32_t rows = 0, total = 0, trimmed = 0;
	double mass = 0, least = INFINITY;

	check_rows(trial, taken);
	densities(trial, density, size);
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
	for (uint32_t i = 0; i < 39; i++) {
		struct oracle_random random = oracle_random(seed = 100 + i);
		struct chain chain;
		struct trial trial;
		uint32_t heads = groups[i * 5 % 13], segments = oracle_pick(&random, 1, 5);

		chain_open(&chain, &random, dims[i % 13], oracle_pick(&random, 4, 9),
			oracle_pick(&random, 0, 16));
		for (uint32_t s = 0; s < segments; s++)
			add_segment(&chain, &random, oracle_pick(&random, 17, 700));
		trial_open(&trial, &chain, heads, oracle_pick(&random, 1, chain.rows + 20),
			oracle_pick(&random, 0, 64), oracle_pick(&random, 0, 1));
		trial.item.query_dtype = (enum kvr_dtype)oracle_pick(&random, 1, 3);
		if (oracle_pick(&random, 0, 2) == 0)
			trial.item.budget_mass = (float)oracle_pick(&random, 1, 99) / 100;
		for (uint32_t k = 0; k < heads * chain.geometry.key_dim; k++)
			set_query(&trial, k, 2 * oracle_gauss(&random));
		run(&trial);
		check_choice(&trial, chain.clusters);
		trial_close(&trial);
		chain_close(&chain);
	}
	seed = 0;
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
		add_segment(&chain, &random, oracle_pick(&random, 1800, 2048));
	for (uint32_t i = 0; i < 8; i++) {
		trial_open(&trial, &chain, 4, oracle_pick(&random, 1, 2000) << (i % 3), 10, true);
		for (uint32_t k = 0; k < 4 * 64; k++)
			set_query(&trial, k, (double)(i + 1) * oracle_gauss(&random));
		trial.item.budget_mass = i % 2 ? 0.6f : 0;
		run(&trial);
		check_choice(&trial, chain.clusters);
		trial_close(&trial);
	}
	chain_close(&chain);
}

/* A chain of `segments` with the same mean everywhere: all densities are equal to the bit. */
static void open_equal(struct chain *chain, struct oracle_random *random, uint32_t segments)
{
	chain_open(chain, random, 32, 8, 0);
	for (uint32_t s = 0; s < segments; s++) {
		add_segment(chain, random, 640);
		for (uint32_t i = 0; i < 2 * 80 * 32; i++)
			chain->view[s].key_mean[i] = 0x3f80;
	}
}

/* Ties go to the earlier cluster, and the one that crosses the budget is trimmed to its first rows. */
static void test_ties(void **state)
{
	static uint32_t taken[CLUSTERS_MAX];
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
				set_query(&trial, k, k % 2 ? 0.5 : -0.25);
			run(&trial);
			check_rows(&trial, taken);
			for (uint32_t s = 0; s < chain.count; s++) {
				const uint16_t *first = kvr_segment_row_first(&chain.view[s], LANE);

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
	static uint32_t taken[CLUSTERS_MAX];
	static const double dots[8] = {-4, 0, 2, -0.0, -0.5, 8, 2, -16};
	static const uint32_t order[8] = {5, 2, 6, 1, 3, 4, 0, 7};
	struct oracle_random random = oracle_random(4);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 40, 4, 0);
	add_segment(&chain, &random, 32);
	for (uint32_t c = 0; c < 8; c++)
		for (uint32_t i = 0; i < 40; i++)
			oracle_put((uint8_t *)kvr_segment_key_mean(&chain.view[0], LANE),
				KVR_DTYPE_BF16, c * 40 + i, i == 39 ? dots[c] : 0);
	for (uint32_t count = 1; count <= 8; count++) {
		const uint16_t *first = kvr_segment_row_first(&chain.view[0], LANE);
		uint32_t budget = 0;

		for (uint32_t i = 0; i < count; i++)
			budget += (uint32_t)(first[order[i] + 1] - first[order[i]]);
		trial_open(&trial, &chain, 1, budget, 0, false);
		trial.item.rank = KVR_RANK_INNER_PRODUCT;
		trial.item.scale = 0;
		for (uint32_t k = 0; k < 40; k++)
			set_query(&trial, k, k == 39 ? 1 : 3);
		run(&trial);
		check_rows(&trial, taken);
		for (uint32_t i = 0; i < 8; i++)
			assert_int_equal(taken[order[i]] > 0, i < count);
		trial_close(&trial);
	}
	chain_close(&chain);
}

/* Equal densities: the mass of k rows is k of all, to the bit, so the limit by mass has one answer. */
static void test_mass(void **state)
{
	static uint32_t taken[CLUSTERS_MAX];
	struct oracle_random random = oracle_random(5);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 16, 64, 0);
	add_segment(&chain, &random, 512);
	for (uint32_t i = 0; i < 2 * 8 * 16; i++)
		chain.view[0].key_mean[i] = 0;
	for (uint32_t p = 1; p <= 512; p += 7) {
		const uint16_t *first = kvr_segment_row_first(&chain.view[0], LANE);
		uint32_t rows = 0;

		trial_open(&trial, &chain, 2, 300, 0, false);
		memset(trial.query.data, 0, trial.query.bytes);
		trial.item.budget_mass = (float)p / 512;
		run(&trial);
		check_rows(&trial, taken);
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
	static uint32_t first[CLUSTERS_MAX], second[CLUSTERS_MAX];
	struct oracle_random random = oracle_random(6);
	struct chain chain;
	struct trial one, two;

	(void)state;
	chain_open(&chain, &random, 32, 8, 16);
	for (uint32_t s = 0; s < 3; s++)
		add_segment(&chain, &random, 500);
	for (uint32_t i = 0; i < 3; i++) {
		/* One of two heads is bad: the order is the other's, the mass half of it. */
		trial_open(&one, &chain, 1, 200, 3, true);
		trial_open(&two, &chain, 2, 200, 3, true);
		for (uint32_t k = 0; k < 32; k++) {
			const double value = oracle_gauss(&random);

			set_query(&one, k, value);
			set_query(&two, 32 + k, value);
			set_query(&two, k, value);
		}
		memcpy(two.query.data + 7 * 4, &(float){(float)bad[i]}, 4);
		run(&one);
		run(&two);
		check_rows(&one, first);
		check_rows(&two, second);
		assert_memory_equal(first, second, chain.clusters * sizeof(*first));
		assert_true(fabs((double)(one.item.mass / 2 - two.item.mass)) < 1e-5);
		trial_close(&two);
		/* All are bad: the first clusters. Then the largest floats there are. */
		memcpy(one.query.data + 31 * 4, &(float){(float)bad[i]}, 4);
		run(&one);
		check_rows(&one, first);
		assert_true(one.item.mass == 0);
		assert_true(first[0] > 0);
		for (uint32_t k = 0; k < 32; k++)
			memcpy(one.query.data + k * 4, &(float){k % 2 ? -3.4e38f : 3.4e38f}, 4);
		one.item.scale = i == 0 ? 1 : (float)bad[i];
		run(&one);
		check_rows(&one, first);
		assert_true(one.item.mass >= 0 && one.item.mass <= 1);
		trial_close(&one);
	}
	chain_close(&chain);
}

/* Rows that are not here are counted, and nothing else changes. */
static void test_missing(void **state)
{
	static uint32_t whole[CLUSTERS_MAX], taken[CLUSTERS_MAX];
	struct oracle_random random = oracle_random(8);
	struct chain chain;
	struct trial trial;

	(void)state;
	chain_open(&chain, &random, 48, 5, 16);
	for (uint32_t s = 0; s < 4; s++)
		add_segment(&chain, &random, 333);
	for (uint32_t lanes = 0; lanes < 2; lanes++) {
		uint32_t missing = 0, at = 0;

		chain.geometry.dense[0] = lanes << LANE;
		trial_open(&trial, &chain, 3, 400, 20, true);
		for (uint32_t k = 0; k < 3 * 48; k++)
			set_query(&trial, k, oracle_gauss(&random));
		run(&trial);
		check_rows(&trial, whole);
		assert_int_equal(trial.item.token_missing, 0);
		if (lanes > 0) {
			assert_int_equal(trial.item.row_count, chain.rows + 16 + 20);
			assert_true(trial.item.mass == 1.0f);
		}
		for (uint32_t s = 0; s < 4; s++) {
			for (uint32_t c = 0; c < chain.view[s].cluster_count[LANE]; c++, at++) {
				uint8_t **extent = kvr_segment_extent(&chain.view[s], LANE) + c;

				if (oracle_pick(&random, 0, 2) > 0)
					continue;
				free(*extent);
				*extent = NULL;
				missing += whole[at];
				whole[at] = 0;
			}
		}
		run(&trial);
		check_rows(&trial, taken);
		assert_true(missing > 0);
		assert_int_equal(trial.item.token_missing, missing);
		assert_memory_equal(taken, whole, chain.clusters * sizeof(*taken));
		trial_close(&trial);
		if (lanes == 0) { /* the dense round starts whole again */
			chain_close(&chain);
			chain_open(&chain, &random, 48, 5, 16);
			for (uint32_t s = 0; s < 4; s++)
				add_segment(&chain, &random, 333);
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
	run(&trial);
	assert_int_equal(trial.item.row_count, 0);
	assert_true(trial.item.mass == 1.0f);
	trial_close(&trial);
	add_segment(&chain, &random, 64);
	trial_open(&trial, &chain, 1, 0, 5, false);
	memset(trial.query.data, 0, trial.query.bytes);
	trial.item.weights = NULL;
	trial.item.positions = NULL;
	run(&trial);
	assert_int_equal(trial.item.row_count, 5);
	assert_int_equal(trial.item.cluster_count, 0);
	assert_true(trial.item.mass == 0);
	trial_close(&trial);
	chain_close(&chain);
}

static const enum kvr_isa isas[] = {KVR_ISA_PLAIN, KVR_ISA_AVX2, KVR_ISA_AVX512};

static int open_device(void **state)
{
	const struct kvr_device_cpu_config config = {
		.threads = 1, .isa = *(const enum kvr_isa *)*state};

	const int error = kvr_device_open_cpu(&config, &device);

	return error == 0 || error == -ENOTSUP ? 0 : -1;
}

static int close_device(void **state)
{
	(void)state;
	if (seed != 0)
		print_message("seed %llu\n", (unsigned long long)seed);
	seed = 0;
	device = kvr_device_close(device);
	return 0;
}

#define ON(name, i)                                                                        \
	{                                                                                  \
#name "/" #i, name, open_device, close_device, (void *)(uintptr_t)&isas[i] \
	}
#define ON_ALL(name) ON(name, 0), ON(name, 1), ON(name, 2)

int main(void)
{
	const struct CMUnitTest tests[] = {ON_ALL(test_shapes), ON_ALL(test_long),
		ON_ALL(test_ties), ON_ALL(test_inner_product), ON_ALL(test_mass),
		ON_ALL(test_extremes), ON_ALL(test_missing), ON_ALL(test_nothing)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

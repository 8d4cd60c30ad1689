/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans.c: k-means of one lane, and its inner loops one by one.
 *
 * Goal: every instruction set, the tiles included, assigns each key to a centroid that is the best up
 * to rounding; the whole run ends with valid clusters for every input that can occur, with an
 * objective like that of a naive k-means in double, and numbered in STORE ORDER. Method: seeded lanes
 * with planted directions and large channels; and lanes built to be hard: zeros, equal keys, fewer
 * different keys than clusters, one token, only sinks, magnitudes at both ends of each dtype. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu.h"
#include "kernels/kmeans.h"
#include "tests/kernels/oracle_util.h"

#define TOKENS_MAX 512u

enum { plain, avx2, avx512, tiles };

static const struct loops {
	enum kvr_isa isa;
	bool tiles;
	const struct kvr_kmeans_ops *ops;
} loops[] = {
	[plain] = {KVR_ISA_PLAIN, false, &kvr_kmeans_plain},
	[avx2] = {KVR_ISA_AVX2, false, &kvr_kmeans_avx2},
	[avx512] = {KVR_ISA_AVX512, false, &kvr_kmeans_avx512},
	[tiles] = {KVR_ISA_AVX512, true, &kvr_kmeans_tiles},
};

/* One lane with a tail of its own. */
struct lane {
	struct kvr_geometry geometry;
	struct kvr_tail_view tail;
	struct kvr_segment_view view;
	struct oracle_world truth; /* only what oracle_check_lane reads */
	uint8_t *blocks[TOKENS_MAX / KVR_BLOCK_TOKENS];
	struct oracle_guard summary;
	uint32_t made;
};

static struct oracle_guard scratch; /* of all lanes, one after the other */

static int group_setup(void **state)
{
	(void)state;
	oracle_guard_open(&scratch, kvr_cpu_cluster_scratch(), 0);
	return 0;
}

static int group_teardown(void **state)
{
	(void)state;
	oracle_guard_close(&scratch);
	return 0;
}

static void lane_open(struct lane *lane, uint32_t tokens, uint32_t dim, enum kvr_dtype dtype,
	uint32_t cluster_tokens, uint32_t sinks)
{
	*lane = (struct lane){.geometry = {.layer_count = 1,
				      .query_heads = 1,
				      .kv_heads = 1,
				      .key_dim = dim,
				      .value_dim = 8 + dim % 24,
				      .dtype = dtype,
				      .segment_tokens = TOKENS_MAX,
				      .cluster_tokens = cluster_tokens,
				      .sink_tokens = sinks}};
	lane->truth.geometry = lane->geometry;
	lane->truth.token_count = tokens;
	lane->truth.keys = calloc(tokens, kvr_geometry_key_bytes(&lane->geometry));
	lane->truth.values = calloc(tokens, kvr_geometry_value_bytes(&lane->geometry));
	for (uint32_t i = 0; i < TOKENS_MAX / KVR_BLOCK_TOKENS; i++) {
		lane->blocks[i] = calloc(1, kvr_tail_block_bytes(&lane->geometry));
		assert_non_null(lane->blocks[i]);
	}
	lane->tail = (struct kvr_tail_view){
		&lane->geometry, lane->blocks, TOKENS_MAX / KVR_BLOCK_TOKENS};
	kvr_segment_shape(&lane->view, &lane->geometry, 0, tokens);
	oracle_guard_open(&lane->summary, kvr_segment_bind_all(&lane->view, NULL), 0);
	kvr_segment_bind_all(&lane->view, lane->summary.data);
}

static void lane_close(struct lane *lane)
{
	for (uint32_t i = 0; i < TOKENS_MAX / KVR_BLOCK_TOKENS; i++)
		free(lane->blocks[i]);
	free(lane->truth.keys);
	free(lane->truth.values);
	oracle_guard_close(&lane->summary);
}

static uint8_t *key_of(const struct lane *lane, uint32_t token)
{
	return lane->truth.keys + token * kvr_geometry_key_bytes(&lane->geometry);
}

/* Keys around `directions` directions, with two channels far larger than the rest. */
static void fill(struct lane *lane, uint64_t seed, uint32_t directions, double noise)
{
	struct oracle_random random = oracle_random(seed);
	const uint32_t dim = lane->geometry.key_dim;
	double *direction = calloc((size_t)directions * dim, sizeof(*direction));

	assert_non_null(direction);
	for (uint32_t i = 0; i < directions * dim; i++)
		direction[i] = oracle_gauss(&random) + (i % dim == 3 || i % dim == 6 ? 10.0 : 0.0);
	for (uint32_t t = 0; t < lane->truth.token_count; t++) {
		const double *from = direction + oracle_pick(&random, 0, directions - 1) * dim;

		for (uint32_t k = 0; k < dim; k++)
			oracle_put(key_of(lane, t), lane->geometry.dtype, k,
				from[k] + noise * oracle_gauss(&random));
		for (uint32_t k = 0; k < lane->geometry.value_dim; k++)
			oracle_put(
				lane->truth.values + t * kvr_geometry_value_bytes(&lane->geometry),
				lane->geometry.dtype, k, oracle_gauss(&random));
	}
	free(direction);
}

/* Moves the truth into the tail, clusters with one instruction set and checks S1 to S4. */
static double cluster(struct lane *lane, enum kvr_isa isa)
{
	struct kvr_cluster_item item = {&lane->tail, &lane->view, 0};
	const struct kvr_span all = {scratch.data, scratch.bytes};

	for (uint32_t t = 0; t < lane->truth.token_count; t++) {
		memcpy(kvr_tail_key(&lane->tail, 0, t), key_of(lane, t),
			kvr_geometry_key_bytes(&lane->geometry));
		memcpy(kvr_tail_value(&lane->tail, 0, t), oracle_value(&lane->truth, 0, t),
			kvr_geometry_value_bytes(&lane->geometry));
	}
	lane->made = kvr_kmeans_cluster(&item, isa, all);
	assert_true(lane->made <= KVR_KMEANS_ITERATIONS + 1);
	oracle_guard_check(&scratch);
	return oracle_check_lane(&lane->truth, &lane->view, 0, 0);
}

/* Labels of one set of loops against products in double. */
static void check_assign(const struct kvr_kmeans_ops *ops, uint32_t tokens, uint32_t clusters,
	uint32_t dim, enum kvr_dtype dtype)
{
	static const uint8_t *rows[TOKENS_MAX];
	struct kvr_kmeans_rows keys = {rows, tokens, dim, KVR_KMEANS_ROUND(dim), dtype};
	const size_t padded = tokens + KVR_KMEANS_PANEL_MAX;
	struct oracle_guard panels, units, work, labels;
	struct lane lane;

	lane_open(&lane, tokens, dim, dtype, 16, 0);
	fill(&lane, dim + clusters, 9, 0.3);
	oracle_guard_open(&panels, padded * keys.stride * sizeof(float), 0);
	oracle_guard_open(&units, clusters * keys.stride * sizeof(float), 0);
	oracle_guard_open(&work, KVR_KMEANS_WORK(clusters) * keys.stride * sizeof(float), 0);
	oracle_guard_open(&labels, padded * sizeof(uint16_t), 0);
	for (uint32_t t = 0; t < tokens; t++)
		rows[t] = key_of(&lane, t);
	memset(units.data, 0, units.bytes);
	for (uint32_t c = 0; c < clusters; c++) {
		float *unit = (float *)(void *)units.data + c * keys.stride;

		for (uint32_t k = 0; k < dim; k++)
			unit[k] = (float)oracle_get(rows[c * tokens / clusters], dtype, k);
		assert_true(ops->unit(unit, keys.stride));
		assert_true(fabsf(ops->dot(unit, unit, keys.stride) - 1.0f) < 1e-5f);
	}
	ops->pack((float *)(void *)panels.data, &keys);
	ops->assign((uint16_t *)(void *)labels.data, (const float *)(void *)panels.data, &keys,
		(const float *)(void *)units.data, clusters, (float *)(void *)work.data);
	for (uint32_t t = 0; t < tokens; t++) {
		const uint32_t label = ((const uint16_t *)(void *)labels.data)[t];
		double best = -2.0, own = -2.0, square = 0.0;

		for (uint32_t k = 0; k < dim; k++)
			square += pow(oracle_get(rows[t], dtype, k), 2.0);
		assert_true(label < clusters);
		for (uint32_t c = 0; c < clusters; c++) {
			const float *unit = (float *)(void *)units.data + c * keys.stride;
			double product = 0.0;

			for (uint32_t k = 0; k < dim; k++)
				product += oracle_get(rows[t], dtype, k) * (double)unit[k];
			product /= sqrt(square);
			best = fmax(best, product);
			own = c == label ? product : own;
		}
		assert_true(own >= best - 3e-5); /* 2^-15, and sums of floats */
	}
	oracle_guard_close(&panels);
	oracle_guard_close(&units);
	oracle_guard_close(&work);
	oracle_guard_close(&labels);
	lane_close(&lane);
}

static void test_assign(void **state)
{
	static const uint32_t dims[] = {8, 13, 31, 32, 33, 64, 96, 128, 576};
	static const uint32_t clusters[] = {1, 2, 5, 6, 7, 16, 17, 33, 64};
	static const uint32_t tokens[] = {64, 65, 79, 128, 130, 200, 255, 256, 70};
	const struct loops *set = *state;

	oracle_need_loops(set->isa, set->tiles);
	for (uint32_t i = 0; i < 9; i++) {
		for (int dtype = KVR_DTYPE_F32; dtype <= KVR_DTYPE_BF16; dtype++)
			check_assign(set->ops, tokens[i], clusters[8 - i], dims[i],
				(enum kvr_dtype)dtype);
	}
}

/* The definition of device.h in double, from the same start. Returns the mean cosine. */
static double naive(const struct lane *lane)
{
	enum { DIM = 64, CLUSTERS = 64 };
	static double mean[CLUSTERS][DIM], key[TOKENS_MAX][DIM];
	const uint32_t dim = lane->geometry.key_dim;
	const uint32_t tokens = lane->truth.token_count;
	const uint32_t clusters = lane->view.cluster_max;
	uint32_t label[TOKENS_MAX] = {0};
	double cosines = 0.0;

	assert_true(dim <= DIM);
	assert_true(clusters <= CLUSTERS);
	for (uint32_t t = 0; t < tokens; t++) {
		for (uint32_t k = 0; k < dim; k++)
			key[t][k] = oracle_get(key_of(lane, t), lane->geometry.dtype, k);
	}
	for (uint32_t c = 0; c < clusters; c++)
		memcpy(mean[c], key[(2 * c + 1) * tokens / (2 * clusters)], sizeof(mean[c]));
	for (uint32_t round = 0; round <= KVR_KMEANS_ITERATIONS; round++) {
		cosines = 0.0;
		for (uint32_t t = 0; t < tokens; t++) {
			double best = -2.0;

			for (uint32_t c = 0; c < clusters; c++) {
				double product = 0.0, left = 0.0, right = 0.0;

				for (uint32_t k = 0; k < dim; k++) {
					product += key[t][k] * mean[c][k];
					left += key[t][k] * key[t][k];
					right += mean[c][k] * mean[c][k];
				}
				product /= sqrt(left * right);
				if (product > best) {
					best = product;
					label[t] = c;
				}
			}
			cosines += best / tokens;
		}
		for (uint32_t c = 0; c < clusters; c++) {
			double sum[DIM] = {0};
			uint32_t size = 0;

			for (uint32_t t = 0; t < tokens; t++) {
				for (uint32_t k = 0; label[t] == c && k < dim; k++)
					sum[k] += key[t][k];
				size += label[t] == c;
			}
			for (uint32_t k = 0; size && k < dim; k++)
				mean[c][k] = sum[k] / size;
		}
	}
	return cosines;
}

static void test_objective(void **state)
{
	const struct loops *set = *state;
	double expected = 0.0, found = 0.0;

	oracle_need_loops(set->isa, set->tiles);
	for (uint64_t seed = 1; seed <= 4; seed++) {
		struct lane lane;

		lane_open(&lane, TOKENS_MAX, 64, KVR_DTYPE_BF16, 16, 0);
		fill(&lane, seed, 40, 0.6);
		expected += naive(&lane) / 4;
		found += cluster(&lane, set->isa) / 4;
		lane_close(&lane);
	}
	assert_true(fabs(found - expected) <= 1e-3);
}

/* Cosine of two rows of floats in double. */
static double cosine(const double *a, const double *b, uint32_t dim)
{
	double product = 0.0, left = 0.0, right = 0.0;

	for (uint32_t k = 0; k < dim; k++) {
		product += a[k] * b[k];
		left += a[k] * a[k];
		right += b[k] * b[k];
	}
	return product / sqrt(left * right);
}

/* Clusters of equal keys: the chain goes from each to the nearest that is left. */
static void test_store_order(void **state)
{
	enum { DIM = 32, CLUSTERS = 32 };
	static double mean[CLUSTERS][DIM];
	const struct loops *set = *state;
	const uint16_t *first, *token;
	struct lane lane;
	uint32_t count;

	oracle_need_loops(set->isa, set->tiles);
	lane_open(&lane, TOKENS_MAX, DIM, KVR_DTYPE_F32, 16, 0);
	fill(&lane, 7, 28, 0.0);
	cluster(&lane, set->isa);
	assert_true(lane.made <= KVR_KMEANS_ITERATIONS); /* it came to rest: units are means */
	count = lane.view.cluster_count[0];
	assert_true(count > 4);
	first = kvr_segment_row_first(&lane.view, 0);
	token = kvr_segment_row_token(&lane.view, 0);
	memset(mean, 0, sizeof(mean));
	for (uint32_t c = 0; c < count; c++) {
		for (uint32_t r = first[c]; r < first[c + 1]; r++) {
			for (uint32_t k = 0; k < DIM; k++)
				mean[c][k] += oracle_get(key_of(&lane, token[r]), KVR_DTYPE_F32, k);
		}
	}
	for (uint32_t c = 0; c + 1 < count; c++) {
		const double near = cosine(mean[c], mean[c + 1], DIM);

		for (uint32_t other = c + 2; other < count; other++)
			assert_true(near >= cosine(mean[c], mean[other], DIM) - 1e-4);
	}
	lane_close(&lane);
}

/* Inputs at the edge; cluster() checks S1 to S4 and every mean each time. */
static void test_edges(void **state)
{
	static const uint32_t counts[] = {1, 2, 15, 16, 17, 63, 64, 65, 300};
	const struct loops *set = *state;
	struct lane lane;

	oracle_need_loops(set->isa, set->tiles);
	for (int dtype = KVR_DTYPE_F32; dtype <= KVR_DTYPE_BF16; dtype++) {
		for (uint32_t i = 0; i < 9; i++) { /* few tokens; only sinks; dims */
			lane_open(&lane, counts[i], i % 2 ? 8 : 576, (enum kvr_dtype)dtype, 4,
				i % 3 ? 16 : 0);
			fill(&lane, i + 1, 3, 0.5);
			cluster(&lane, set->isa);
			lane.geometry.dense[0] = lane.truth.geometry.dense[0] = 1;
			cluster(&lane, set->isa);
			assert_int_equal(lane.made, 0);
			lane_close(&lane);
		}
		lane_open(&lane, 200, 24, (enum kvr_dtype)dtype, 8, 0);
		cluster(&lane, set->isa); /* all zero: one cluster */
		assert_int_equal(lane.view.cluster_count[0], 1);
		fill(&lane, 5, 1, 0.0);
		cluster(&lane, set->isa); /* all the same */
		assert_int_equal(lane.view.cluster_count[0], 1);
		fill(&lane, 5, 6, 0.0);
		cluster(&lane, set->isa); /* fewer different keys than clusters */
		assert_int_equal(lane.view.cluster_count[0], 6);
		fill(&lane, 5, 6, 0.2);
		for (uint32_t t = 0; t < 200; t += 3)
			memset(key_of(&lane, t), 0, kvr_geometry_key_bytes(&lane.geometry));
		cluster(&lane, set->isa); /* zeros among others */
		lane_close(&lane);
	}
}

/* Keys so large or small that a float's square is lost. */
static void test_magnitudes(void **state)
{
	static const double scales[] = {3e38, 1e30, 1e19, 1e-19, 1e-30, 1e-37};
	const struct loops *set = *state;

	oracle_need_loops(set->isa, set->tiles);
	for (uint32_t i = 0; i < 2 * 6; i++) {
		const enum kvr_dtype dtype = i % 2 ? KVR_DTYPE_BF16 : KVR_DTYPE_F32;
		struct lane lane;
		double found, expected;

		lane_open(&lane, 256, 32, dtype, 16, 0);
		fill(&lane, 3, 12, 0.1);
		expected = cluster(&lane, KVR_ISA_PLAIN);
		for (uint32_t t = 0; t < 256; t++) {
			for (uint32_t k = 0; k < 32; k++)
				oracle_put(key_of(&lane, t), dtype, k,
					oracle_get(key_of(&lane, t), dtype, k) / 16.0 *
						scales[i / 2]);
		}
		found = cluster(&lane, set->isa);
		assert_true(found >= expected - 0.02); /* other roundings, other optimum */
		lane_close(&lane);
	}
}

#define TESTS(set)                                                                         \
	{"assign, " #set, test_assign, NULL, NULL, (void *)&loops[set]},                   \
		{"objective, " #set, test_objective, NULL, NULL, (void *)&loops[set]},     \
		{"store order, " #set, test_store_order, NULL, NULL, (void *)&loops[set]}, \
		{"edges, " #set, test_edges, NULL, NULL, (void *)&loops[set]},             \
	{                                                                                  \
		"magnitudes, " #set, test_magnitudes, NULL, NULL, (void *)&loops[set]      \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {TESTS(plain), TESTS(avx2), TESTS(avx512), TESTS(tiles)};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}

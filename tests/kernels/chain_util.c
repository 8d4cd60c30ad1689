/* SPDX-License-Identifier: Apache-2.0 */
/* chain_util.c: see chain_util.h. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/kernels/chain_util.h"

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

static uint8_t *make_extent(struct oracle_random *random, size_t bytes)
{
	uint8_t *extent = bytes > 0 ? malloc(bytes) : NULL;

	fill_bytes(random, extent, bytes);
	return extent;
}

/* Means and spreads of a lane's clusters: no rows have them. */
static void make_means(struct oracle_random *random, struct kvr_segment_view *view, uint32_t lane)
{
	const struct kvr_geometry *g = view->geometry;
	const uint32_t clusters = view->cluster_count[lane];
	uint16_t *value = kvr_segment_value_mean(view, lane);
	double mean[KVR_DIM_MAX];

	view->key_planes[lane] = (uint16_t)oracle_pick(random, 1, 2);
	for (uint32_t c = 0; c < clusters; c++) {
		for (uint32_t i = 0; i < g->key_dim; i++)
			mean[i] = oracle_gauss(random);
		oracle_put_mean(view, lane, c, mean);
		kvr_segment_spread_step(view, lane)[c] = (float)oracle_pick(random, 0, 99) / 9999;
		for (uint32_t i = 0; i < g->value_dim; i++)
			oracle_put((uint8_t *)(value + (size_t)c * g->value_dim), KVR_DTYPE_BF16, i,
				oracle_gauss(random));
	}
	fill_bytes(random, kvr_segment_key_spread(view, lane), (size_t)clusters * g->key_dim);
}

/* Merged sets, where the geometry has any: rows for one token or more each (S9). */
static void make_merged(struct oracle_random *random, struct kvr_segment_view *view, uint32_t lane,
	size_t row_bytes)
{
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		uint32_t unit, rows, left = view->token_count - view->sink_count;
		uint16_t *tokens;

		if (!(view->geometry->merged >> set & 1))
			continue;
		unit = kvr_segment_merged_unit(view, lane, set, &tokens);
		rows = kvr_segment_unit_rows(view, lane, unit);
		kvr_segment_extent(view, lane)[unit] = make_extent(random, rows * row_bytes);
		for (uint32_t i = 0; i < rows; i++)
			tokens[i] = 1;
		for (left -= rows; rows > 0 && left > 0; left--)
			tokens[oracle_pick(random, 0, rows - 1)]++;
	}
}

void chain_add(struct chain *chain, struct oracle_random *random, uint32_t tokens)
{
	struct kvr_segment_view *view = &chain->view[chain->count];
	const struct kvr_segment_view *before = view - (chain->count > 0);
	const uint32_t first = chain->count > 0 ? before->token_first + before->token_count : 0;
	const size_t row = kvr_geometry_key_bytes(&chain->geometry) +
			   kvr_geometry_value_bytes(&chain->geometry);

	kvr_segment_shape(view, &chain->geometry, first, tokens);
	chain->memory[chain->count] = aligned_alloc(64, kvr_segment_bind_all(view, NULL));
	kvr_segment_bind_all(view, chain->memory[chain->count]);
	for (uint32_t lane = 0; lane < 2; lane++) {
		deal(random, view, lane, view->cluster_max);
		make_means(random, view, lane);
		for (uint32_t c = 0; c <= view->cluster_max; c++) {
			const uint16_t *rows = kvr_segment_row_first(view, lane) + c;

			kvr_segment_extent(view, lane)[c] =
				make_extent(random, (size_t)(rows[1] - rows[0]) * row);
		}
		make_merged(random, view, lane, row);
	}
	chain->segments[chain->count++] = view;
	chain->clusters += view->cluster_count[CHAIN_LANE];
	chain->rows += tokens - view->sink_count;
}

struct kvr_device *chain_device;
uint64_t chain_seed;
const enum kvr_isa chain_isas[3] = {KVR_ISA_PLAIN, KVR_ISA_AVX2, KVR_ISA_AVX512};

int chain_device_open(void **state)
{
	const struct kvr_device_cpu_config config = {
		.threads = 1, .isa = *(const enum kvr_isa *)*state};
	const int error = kvr_device_open_cpu(&config, &chain_device);

	return error == 0 || error == -ENOTSUP ? 0 : -1;
}

int chain_device_close(void **state)
{
	(void)state;
	if (chain_seed != 0)
		print_message("seed %llu\n", (unsigned long long)chain_seed);
	chain_seed = 0;
	chain_device = kvr_device_close(chain_device);
	return 0;
}

void chain_open(struct chain *chain, struct oracle_random *random, uint32_t dim,
	uint32_t cluster_tokens, uint32_t sinks)
{
	if (!chain_device) {
		print_message("skipped: this processor lacks the instruction set\n");
		skip();
	}
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

void chain_close(struct chain *chain)
{
	for (uint32_t s = 0; s < chain->count; s++) {
		for (uint32_t i = 0; i < 2 * chain->view[s].unit_count; i++)
			free(chain->view[s].extent[i]);
		free(chain->memory[s]);
	}
	free(chain->tail_block[0]);
}

/* ---- items ----------------------------------------------------------------------------------- */

void trial_open(struct trial *trial, struct chain *chain, uint32_t heads, uint32_t budget,
	uint32_t tail_count, bool sinks)
{
	const struct kvr_geometry *g = &chain->geometry;
	const uint32_t clustered =
		kvr_geometry_is_dense(g, CHAIN_LANE) || budget > chain->rows ? chain->rows : budget;
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
		.lane = CHAIN_LANE,
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

void trial_close(struct trial *trial)
{
	oracle_guard_close(&trial->query);
	oracle_guard_close(&trial->keys);
	oracle_guard_close(&trial->values);
	oracle_guard_close(&trial->weights);
	oracle_guard_close(&trial->positions);
}

void trial_run(struct trial *trial, struct kvr_device *device)
{
	assert_int_equal(oracle_run(device, KVR_JOB_RECALL, &trial->item, 1), 0);
	oracle_guard_check(&trial->keys);
	oracle_guard_check(&trial->values);
	oracle_guard_check(&trial->weights);
	oracle_guard_check(&trial->positions);
}

void trial_set_query(struct trial *trial, uint32_t i, double value)
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
	const uint16_t *first = kvr_segment_row_first(view, CHAIN_LANE) + cluster;
	const uint16_t *token = kvr_segment_row_token(view, CHAIN_LANE) + first[0];
	const size_t key_bytes = kvr_geometry_key_bytes(view->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(view->geometry);
	const uint8_t *key = kvr_segment_extent(view, CHAIN_LANE)[cluster];
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

void trial_check_rows(const struct trial *trial, uint32_t *taken)
{
	const struct kvr_recall_item *item = &trial->item;
	uint32_t row = 0, at = 0, clusters = 0;

	for (uint32_t s = 0; s < item->segment_count && item->sinks; s++) {
		const uint32_t sinks = item->segments[s]->sink_count;

		assert_int_equal(
			check_cluster(trial, row, s, item->segments[s]->cluster_count[CHAIN_LANE]),
			sinks);
		row += sinks;
	}
	for (uint32_t s = 0; s < item->segment_count; s++) {
		for (uint32_t c = 0; c < item->segments[s]->cluster_count[CHAIN_LANE]; c++, at++) {
			taken[at] = check_cluster(trial, row, s, c);
			row += taken[at];
			clusters += taken[at] > 0;
		}
	}
	assert_int_equal(item->cluster_count, clusters);
	for (uint32_t i = 0; i < item->tail_count; i++)
		check_row(trial, row++, kvr_tail_key(item->tail, CHAIN_LANE, i),
			kvr_tail_value(item->tail, CHAIN_LANE, i), item->tail_first + i);
	assert_int_equal(item->row_count, row);
}

void trial_densities(const struct trial *trial, double *density, uint32_t *size)
{
	const struct kvr_recall_item *item = &trial->item;
	const uint32_t dim = item->geometry->key_dim;
	static double logit[CHAIN_CLUSTERS_MAX];
	uint32_t count = 0;

	for (uint32_t h = 0; h < item->query_count; h++) {
		double most = -INFINITY, sum = 0;

		count = 0;
		for (uint32_t s = 0; s < item->segment_count; s++) {
			const struct kvr_segment_view *view = item->segments[s];

			for (uint32_t c = 0; c < view->cluster_count[CHAIN_LANE]; c++, count++) {
				const uint16_t *first = kvr_segment_row_first(view, CHAIN_LANE) + c;
				double dot = 0;

				for (uint32_t i = 0; i < dim; i++)
					dot += oracle_get(item->query, item->query_dtype,
						       h * dim + i) *
					       oracle_scored_mean(
						       view, CHAIN_LANE, c, i, item->rank);
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

/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: MIXED and MERGED replies mean what the header says, for every head of every layer, from memory and from disk;
 * and what cannot be given is refused.
 * Method: the real kvrecalld, and content of which the answer is known: where tokens of equal keys and values repeat, a
 * centroid stands for its tokens exactly, and so does a merged row for a pair. Then rows and estimate together are exact
 * attention, which the test computes in double; off by no more than bf16 and the fixed point of means. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <string.h>

#include "tests/daemon/attention_util.h"

#define REGION   (16u << 20)
#define TOKENS   700u /* five segments of 128 and one of 60 */
#define CAPACITY 1024u
#define AT_OUT   (6u << 20)
/* What values, about sqrt(Dv / 3) long, may be off by: means are scored with 8 bits. */
#define CLOSE 0.002

static struct harness_daemon daemon_process;

static int start(void **state)
{
	(void)state;
	harness_start_stored(&daemon_process, NULL);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	harness_stop(&daemon_process);
	return 0;
}

/* ---- content: a row depends on its token's id alone ------------------------------------------ */

static void row_of(const struct kvr_model_config *config, uint32_t id, uint32_t layer,
	uint32_t head, bool value, uint16_t *ret_row)
{
	uint32_t state = (id * 64 + layer * 8 + head * 2 + value) * 2654435761u + 99;
	const uint32_t dim = value ? config->value_dim : config->key_dim;

	for (uint32_t i = 0; i < dim; i++) {
		float element;

		state = state * 1664525u + 1013904223u;
		element = (float)(state >> 8) / (1u << 23) - 1.0f;
		memcpy(&ret_row[i], (const uint8_t *)&element + 2, 2); /* bf16, cut */
	}
}

static void append_all(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t count)
{
	uint16_t *at = kvr_region(client, NULL);
	struct kvr_append_layer layers[2];
	const struct kvr_append append = {sequence, 0, count, ids, layers, config->layers};

	for (uint32_t layer = 0; layer < config->layers; layer++) {
		for (uint32_t value = 0; value < 2; value++) {
			const uint32_t dim = value ? config->value_dim : config->key_dim;

			layers[layer].layer = layer;
			if (value)
				layers[layer].values = at;
			else
				layers[layer].keys = at;
			for (uint32_t i = 0; i < count * config->kv_heads; i++, at += dim)
				row_of(config, ids[i / config->kv_heads], layer,
					i % config->kv_heads, value, at);
		}
	}
	assert_int_equal(kvr_append(client, &append, NULL), 0);
}

static void add_exact(struct attention *attention, const struct kvr_model_config *config,
	const uint32_t *ids, uint32_t first, uint32_t end, uint32_t layer, uint32_t head,
	const float *query)
{
	uint16_t key[ATTENTION_DIM_MAX], value[ATTENTION_DIM_MAX];

	for (uint32_t i = first; i < end; i++) {
		row_of(config, ids[i], layer, head, false, key);
		row_of(config, ids[i], layer, head, true, value);
		attention_add(attention, config, query, key, value, 0);
	}
}

/* ---- a recall of all layers at once ---------------------------------------------------------- */

struct world {
	struct kvr_client *client;
	struct kvr_model_config config;
	struct kvr_sequence *sequence;
	uint32_t ids[TOKENS];
	float query[256];
	struct kvr_recall_item items[2];
	struct kvr_recall recall;
};

/* Opens a client with a sealed sequence of TOKENS tokens, of which `repeat` in a row are alike, of `kinds` in all. With 4
 * kinds, 8 in a row, k-means begins with keys of all kinds, and no cluster has two. */
static void world_open(struct world *world, uint8_t digest, uint32_t merged, uint32_t repeat,
	uint32_t kinds, uint32_t type_rank)
{
	struct kvr_model *model;
	uint32_t matched, sealed;

	*world = (struct world){.config = harness_model()};
	world->config.digest[0] = digest;
	world->config.merged = merged;
	for (uint32_t i = 0; i < TOKENS; i++)
		world->ids[i] = i / repeat % kinds;
	world->client = harness_connect(&daemon_process, REGION);
	assert_int_equal(kvr_model_register(world->client, &world->config, &model), 0);
	assert_int_equal(kvr_open(model, world->ids, TOKENS, &world->sequence, &matched), 0);
	if (matched == 0)
		append_all(world->client, world->sequence, &world->config, world->ids, TOKENS);
	assert_int_equal(kvr_sync(world->sequence, true, &sealed), 0);
	assert_int_equal(sealed, TOKENS);
	attention_query(&world->config, digest, world->query);
	world->recall = (struct kvr_recall){.items = world->items,
		.item_count = 2,
		.rank = type_rank,
		.query_type = KVR_F32,
		.budget_tokens = 40,
		.row_capacity = CAPACITY,
		.sinks = true};
}

/* Places the outputs of both items, and spoils what is there. */
static void world_place(struct world *world, bool weights)
{
	const struct kvr_model_config *config = &world->config;
	const size_t rows = (size_t)config->query_heads * CAPACITY;
	uint8_t *at = (uint8_t *)kvr_region(world->client, NULL) + AT_OUT;

	memset(at, 0x7f, REGION - AT_OUT);
	for (uint32_t l = 0; l < 2; l++) {
		struct kvr_recall_item *item = &world->items[l];

		*item = (struct kvr_recall_item){.sequence = world->sequence,
			.layer = l,
			.query = world->query,
			.first = item->first};
		item->rows = (struct kvr_rows *)(void *)at;
		item->outputs = (float *)(void *)(at + 4096);
		item->lse = (float *)(void *)(at + 8192);
		item->weights = weights ? (float *)(void *)(at + 12288) : NULL;
		at += 12288 + rows * sizeof(float);
		item->positions = (int32_t *)(void *)at;
		at += rows * sizeof(int32_t);
		item->keys = at;
		at += rows * harness_row_bytes(config, false);
		item->values = at;
		at += rows * harness_row_bytes(config, true);
	}
	assert_true(at <= (uint8_t *)kvr_region(world->client, NULL) + REGION);
}

/* Asserts that rows and estimate of query head `h` together are attention over the tokens first .. end - 1, and the sinks
 * if first is 0. */
static void check_head(
	const struct world *world, uint32_t layer, uint32_t h, uint32_t first, uint32_t end)
{
	const struct kvr_model_config *config = &world->config;
	const struct kvr_recall *recall = &world->recall;
	const struct kvr_recall_item *item = &world->items[layer];
	const uint32_t group = config->query_heads / config->kv_heads;
	const bool own = recall->rank == KVR_BY_INNER_PRODUCT && recall->form != KVR_RECALL_MERGED;
	const uint32_t head = own ? h : h / group;
	const float *q = world->query + h * config->key_dim;
	struct attention all, given;

	attention_start(&all);
	attention_start(&given);
	add_exact(&all, config, world->ids, first, end, layer, h / group, q);
	attention_add_rows(&given, config, item, CAPACITY, head, 0, item->rows[head].row_count,
		recall->centroid_rows ? h : head, q);
	if (recall->form == KVR_RECALL_MIXED && !recall->centroid_rows)
		attention_merge(&given, config->value_dim, item->outputs + h * config->value_dim,
			(double)item->lse[h]);
	assert_true(attention_apart(&given, &all, config->value_dim) <
		    CLOSE * sqrt(config->value_dim / 3.0));
	assert_true(fabs(attention_lse(&given) - attention_lse(&all)) < CLOSE);
}

static void check_all(const struct world *world, uint32_t first, uint32_t end)
{
	for (uint32_t layer = 0; layer < 2; layer++)
		for (uint32_t h = 0; h < world->config.query_heads; h++)
			check_head(world, layer, h, first, end);
}

/* ---- MIXED ----------------------------------------------------------------------------------- */

static void check_mixed(uint8_t digest, enum kvr_rank_by rank, uint32_t centroid_rows)
{
	struct world world;

	world_open(&world, digest, 0, 8, 4, rank);
	world.recall.form = KVR_RECALL_MIXED;
	world.recall.centroid_rows = centroid_rows;
	world_place(&world, centroid_rows > 0);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	check_all(&world, 0, TOKENS);
	for (uint32_t head = 0; head < 2; head++) {
		const struct kvr_rows *rows = &world.items[1].rows[head];
		const int32_t *positions = world.items[1].positions + head * CAPACITY;

		assert_int_equal(rows->row_count - rows->centroid_count, 16 + 40);
		assert_int_equal(rows->missing_tokens, 0);
		assert_true(rows->mass > 0 && rows->mass < 1);
		assert_int_equal(rows->centroid_count > 0, centroid_rows > 0);
		for (uint32_t r = 0; r < rows->row_count; r++)
			assert_int_equal(
				positions[r] < 0, r >= rows->row_count - rows->centroid_count);
	}
	kvr_disconnect(world.client);
}

static void test_mixed_folded(void **state)
{
	(void)state;
	check_mixed(21, KVR_BY_SHARE, 0);
	check_mixed(21, KVR_BY_INNER_PRODUCT, 0);
}

static void test_mixed_rows(void **state)
{
	(void)state;
	check_mixed(22, KVR_BY_SHARE, 200); /* all that is left: one row for each cluster */
	check_mixed(22, KVR_BY_INNER_PRODUCT, 200);
}

/* Fewer centroids than clusters: so many rows, no more. */
static void test_mixed_rows_at_most(void **state)
{
	struct world world;

	(void)state;
	world_open(&world, 22, 0, 8, 4, KVR_BY_SHARE);
	world.recall.form = KVR_RECALL_MIXED;
	world.recall.centroid_rows = 5;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(world.items[0].rows[0].centroid_count, 5);
	assert_int_equal(world.items[0].rows[0].row_count, 16 + 40 + 5);
	world.recall.row_capacity = 16 + 40 + 4;
	assert_int_equal(kvr_recall(world.client, &world.recall), -ENOBUFS);
	kvr_disconnect(world.client);
}

/* ---- budgets of single heads ----------------------------------------------------------------- */

static void test_budgets(void **state)
{
	static const struct kvr_budget budgets[4] = {{10, 0}, {70, 0}, {5, 0}, {200, 0.3f}};
	struct world world;

	(void)state;
	world_open(&world, 23, 0, 1, 500, KVR_BY_SHARE);
	world_place(&world, true);
	world.items[1].budgets = budgets;
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(world.items[0].rows[0].row_count, 16 + 40);
	assert_int_equal(world.items[1].rows[0].row_count, 16 + 10);
	assert_int_equal(world.items[1].rows[1].row_count, 16 + 70);
	world.recall.rank = KVR_BY_INNER_PRODUCT;
	world_place(&world, true);
	world.items[1].budgets = budgets;
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(world.items[1].rows[2].row_count, 16 + 5);
	assert_true(world.items[1].rows[3].row_count < 16 + 200);
	assert_true(world.items[1].rows[3].mass >= 0.3f);
	world.recall.row_capacity = 16 + 199;
	assert_int_equal(kvr_recall(world.client, &world.recall), -ENOBUFS);
	kvr_disconnect(world.client);
}

/* ---- MERGED ---------------------------------------------------------------------------------- */

static uint32_t tokens_of(const struct world *world, uint32_t layer, uint32_t head)
{
	const struct kvr_recall_item *item = &world->items[layer];
	double tokens = 0;

	for (uint32_t r = 0; r < item->rows[head].row_count; r++)
		tokens += exp((double)item->weights[head * CAPACITY + r]);
	return (uint32_t)lrint(tokens);
}

/* Pairs of equal tokens become one row each; the rest of the sequence comes exactly. */
static void test_merged_pairs(void **state)
{
	const uint32_t covered =
		4 * 128; /* the segment that ends at 640 has some of the newest 64 */
	struct world world;

	(void)state;
	world_open(&world, 24, KVR_MERGED_2, 2, 1000, KVR_BY_SHARE);
	world.recall.form = KVR_RECALL_MERGED;
	world.recall.merged_divisor = 2;
	world.recall.query_type = 0;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	for (uint32_t layer = 0; layer < 2; layer++) {
		assert_int_equal(world.items[layer].token_count, TOKENS);
		assert_int_equal(world.items[layer].covered_tokens, covered);
		for (uint32_t head = 0; head < 2; head++) {
			assert_int_equal(
				world.items[layer].rows[head].row_count, 16 + (covered - 16) / 2);
			assert_int_equal(tokens_of(&world, layer, head), covered);
		}
	}
	check_all(&world, 0, covered);
	/* With the rest: one exact row for each token that is not merged yet. */
	world.recall.tail = true;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(world.items[0].covered_tokens, covered);
	assert_int_equal(
		world.items[0].rows[0].row_count, 16 + (covered - 16) / 2 + TOKENS - covered);
	check_all(&world, 0, TOKENS);
	/* From where a segment begins, alone. */
	world.recall.tail = false;
	world.items[0].first = world.items[1].first = 256;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(tokens_of(&world, 0, 1), covered - 256);
	check_all(&world, 256, covered);
	/* Nothing new yet. */
	world.items[0].first = world.items[1].first = covered;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(world.items[0].rows[0].row_count, 0);
	kvr_disconnect(world.client);
}

static void test_all_merged_sets(void **state)
{
	static const uint32_t divisors[4] = {2, 4, 5, 8};
	const uint32_t covered = 4 * 128;
	struct world world;

	(void)state;
	world_open(&world, 25, KVR_MERGED_2 | KVR_MERGED_4 | KVR_MERGED_5 | KVR_MERGED_8, 1, 1000,
		KVR_BY_SHARE);
	world.recall.form = KVR_RECALL_MERGED;
	for (uint32_t i = 0; i < 4; i++) {
		const uint32_t d = divisors[i];

		world.recall.merged_divisor = d;
		world_place(&world, true);
		assert_int_equal(kvr_recall(world.client, &world.recall), 0);
		assert_int_equal(world.items[1].rows[1].row_count,
			16 + (112 + d - 1) / d + 3 * ((128 + d - 1) / d));
		assert_int_equal(tokens_of(&world, 1, 1), covered);
		for (uint32_t r = 0; r < world.items[1].rows[1].row_count; r++)
			assert_int_equal(
				world.items[1].positions[CAPACITY + r], r < 16 ? (int32_t)r : -1);
	}
	kvr_disconnect(world.client);
}

/* A dense lane beside one that is not: exact, whatever is asked. */
static void test_dense_lane_is_not_merged(void **state)
{
	static const uint32_t dense[1] = {2}; /* layer 1, kv head 0 */
	const uint32_t covered = 4 * 128;
	struct world world;
	struct kvr_model *model;
	uint32_t matched;

	(void)state;
	world_open(&world, 26, KVR_MERGED_2, 2, 1000, KVR_BY_SHARE);
	world.config.dense_lanes = dense;
	world.config.dense_count = 1;
	assert_int_equal(kvr_model_register(world.client, &world.config, &model), 0);
	assert_int_equal(kvr_open(model, world.ids, TOKENS, &world.sequence, &matched), 0);
	assert_int_equal(matched, 0);
	append_all(world.client, world.sequence, &world.config, world.ids, TOKENS);
	assert_int_equal(kvr_sync(world.sequence, true, &matched), 0);
	world.recall.form = KVR_RECALL_MERGED;
	world.recall.merged_divisor = 2;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_int_equal(world.items[1].rows[0].row_count, covered);
	assert_int_equal(world.items[1].rows[1].row_count, 16 + (covered - 16) / 2);
	check_all(&world, 0, covered);
	kvr_disconnect(world.client);
}

static void test_merged_refused(void **state)
{
	struct world world;

	(void)state;
	world_open(&world, 24, KVR_MERGED_2, 2, 1000, KVR_BY_SHARE);
	world.recall.form = KVR_RECALL_MERGED;
	world.recall.merged_divisor = 8;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), -EINVAL);
	assert_non_null(strstr(kvr_error(world.client)->subject, "not registered"));
	world.recall.merged_divisor = 2;
	world.items[1].first = 100; /* no segment begins there */
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), -EINVAL);
	assert_non_null(strstr(kvr_error(world.client)->subject, "first 100"));
	world.items[1].first = 640; /* one does, but it is not merged yet */
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), -EINVAL);
	world.items[1].first = 0;
	world.recall.row_capacity = 100;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), -ENOBUFS);
	kvr_disconnect(world.client);
}

/* After a crash merged sets are read from disk: the same rows, bit for bit. */
static void test_merged_from_disk(void **state)
{
	static uint8_t before[REGION - AT_OUT];
	struct world world;

	(void)state;
	world_open(&world, 27, KVR_MERGED_4 | KVR_MERGED_8, 1, 1000, KVR_BY_SHARE);
	world.recall.form = KVR_RECALL_MERGED;
	world.recall.merged_divisor = 8;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	memcpy(before, (uint8_t *)kvr_region(world.client, NULL) + AT_OUT, sizeof(before));
	kvr_disconnect(world.client);
	harness_kill(&daemon_process);
	harness_restart(&daemon_process, NULL);
	world_open(&world, 27, KVR_MERGED_4 | KVR_MERGED_8, 1, 1000, KVR_BY_SHARE);
	world.recall.form = KVR_RECALL_MERGED;
	world.recall.merged_divisor = 8;
	world_place(&world, true);
	assert_int_equal(kvr_recall(world.client, &world.recall), 0);
	assert_memory_equal(
		before, (uint8_t *)kvr_region(world.client, NULL) + AT_OUT, sizeof(before));
	assert_true(harness_metric(world.client, "nvme.read_bytes") > 0);
	kvr_disconnect(world.client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mixed_folded),
		cmocka_unit_test(test_mixed_rows),
		cmocka_unit_test(test_mixed_rows_at_most),
		cmocka_unit_test(test_budgets),
		cmocka_unit_test(test_merged_pairs),
		cmocka_unit_test(test_all_merged_sets),
		cmocka_unit_test(test_dense_lane_is_not_merged),
		cmocka_unit_test(test_merged_refused),
		cmocka_unit_test(test_merged_from_disk),
	};

	return cmocka_run_group_tests_name("daemon forms", tests, start, stop);
}

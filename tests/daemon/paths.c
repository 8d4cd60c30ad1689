/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what a client appends comes back, by fetch bit-identical and by recall row for row; prefixes
 * are matched, shared, forked, pinned and dropped as the protocol says.
 * Method: one real daemon per test, one or more real clients in this process, content that tells each
 * element apart (harness_util.h). */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"

#define REGION (32u << 20)
#define TOKENS 2000u

static struct harness_daemon daemon_process;
static uint32_t ids[TOKENS];

static int start(void **state)
{
	static const char *const arguments[] = {"-m", "256MiB", NULL};

	(void)state;
	harness_tokens(7, ids, TOKENS);
	harness_start(&daemon_process, arguments);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	harness_stop(&daemon_process);
	return 0;
}

static struct kvr_model *register_model(
	struct kvr_client *client, const struct kvr_model_config *config)
{
	struct kvr_model *model = NULL;

	assert_int_equal(kvr_model_register(client, config, &model), 0);
	return model;
}

/* Opens and appends tokens from the matched ones to `count`. Returns how many matched. */
static uint32_t put(struct kvr_client *client, struct kvr_model *model,
	const struct kvr_model_config *config, uint32_t count, struct kvr_sequence **ret_sequence)
{
	uint32_t matched = 0;

	assert_int_equal(kvr_open(model, ids, count, ret_sequence, &matched), 0);
	for (uint32_t at = matched; at < count;) {
		uint32_t part = count - at < 300 ? count - at : 300;

		assert_int_equal(
			harness_append(client, *ret_sequence, config, ids, at, part, 0), 0);
		at += part;
	}
	return matched;
}

static void test_round_trip(void **state)
{
	static const enum kvr_type types[] = {KVR_F32, KVR_F16, KVR_BF16};
	struct kvr_client *client = harness_connect(&daemon_process, REGION);

	(void)state;
	for (uint32_t t = 0; t < 3; t++) {
		struct kvr_model_config config = harness_model();
		struct kvr_sequence *sequence;
		struct kvr_model *model;
		uint32_t sealed, covered = 0;
		int rows;

		config.type = types[t];
		model = register_model(client, &config);
		assert_int_equal(put(client, model, &config, 1000, &sequence), 0);
		harness_check_fetch(client, sequence, &config, ids, 0, 1000, 0);
		assert_int_equal(kvr_sync(sequence, false, &sealed), 0);
		assert_int_equal(sealed, 1000 / 128 * 128);
		harness_check_fetch(client, sequence, &config, ids, 0, 1000, 0);
		harness_check_fetch(client, sequence, &config, ids, 100, 237, 0);
		harness_check_fetch(client, sequence, &config, ids, 895, 2, 0);
		rows = harness_check_recall(client, sequence, &config, ids, 1,
			(struct kvr_recall){.budget_tokens = 100, .row_capacity = 100}, 0,
			&covered);
		assert_int_equal(rows, 100 * 2);
		assert_int_equal(covered, 896);
		rows = harness_check_recall(client, sequence, &config, ids, 0,
			(struct kvr_recall){.budget_tokens = 2000,
				.row_capacity = 1000,
				.sinks = true,
				.tail = true},
			0, NULL);
		assert_int_equal(rows, 1000 * 2);
		rows = harness_check_recall(client, sequence, &config, ids, 0,
			(struct kvr_recall){.budget_tokens = 50,
				.row_capacity = 50,
				.rank = KVR_BY_INNER_PRODUCT},
			0, NULL);
		assert_int_equal(rows, 50 * 4);
		rows = harness_check_recall(client, sequence, &config, ids, 0,
			(struct kvr_recall){
				.budget_tokens = 500, .budget_mass = 0.2f, .row_capacity = 500},
			0, NULL);
		assert_true(rows > 0 && rows < 500 * 2);
		assert_int_equal(kvr_close(sequence, true), 0);
	}
	kvr_disconnect(client);
}

static void test_prefix_is_shared(void **state)
{
	struct kvr_model_config config = harness_model();
	struct kvr_client *one = harness_connect(&daemon_process, REGION);
	struct kvr_client *other = harness_connect(&daemon_process, REGION);
	struct kvr_model *model_one = register_model(one, &config);
	struct kvr_model *model_other = register_model(other, &config);
	struct kvr_sequence *first, *second, *third;
	uint32_t matched, changed[TOKENS];

	(void)state;
	config.digest[0] = 9;
	model_one = register_model(one, &config);
	model_other = register_model(other, &config);
	assert_int_equal(put(one, model_one, &config, 700, &first), 0);
	assert_int_equal(kvr_sync(first, true, NULL), 0);
	assert_int_equal(put(other, model_other, &config, 700, &second), 700);
	harness_check_fetch(other, second, &config, ids, 0, 700, 0);
	/* The first sequence goes on, is closed, and all of its turn matches. */
	assert_int_equal(harness_append(one, first, &config, ids, 700, 77, 0), 0);
	assert_int_equal(kvr_close(first, false), 0);
	assert_int_equal(kvr_close(second, true), 0);
	for (int i = 0; i < 30000; i++) { /* sealed in the background */
		assert_int_equal(kvr_open(model_other, ids, 1500, &third, &matched), 0);
		if (matched == 777)
			break;
		assert_int_equal(kvr_close(third, true), 0);
		usleep(1000);
	}
	assert_int_equal(matched, 777);
	harness_check_fetch(other, third, &config, ids, 0, 777, 0);
	assert_int_equal(kvr_close(third, true), 0);
	/* Another id in the middle of a segment: only what is before that segment matches. */
	memcpy(changed, ids, sizeof(ids));
	changed[300]++;
	assert_int_equal(kvr_open(model_one, changed, 700, &third, &matched), 0);
	assert_int_equal(matched, 256);
	assert_int_equal(kvr_close(third, true), 0);
	kvr_disconnect(one);
	kvr_disconnect(other);
}

static void test_fork(void **state)
{
	struct kvr_model_config config = harness_model();
	struct kvr_client *client = harness_connect(&daemon_process, REGION);
	struct kvr_sequence *trunk, *branch;
	struct kvr_model *model;
	uint32_t tokens, other[TOKENS];

	(void)state;
	config.digest[0] = 10;
	model = register_model(client, &config);
	put(client, model, &config, 333, &trunk);
	assert_int_equal(kvr_fork(trunk, &branch, &tokens), 0);
	assert_int_equal(tokens, 333);
	memcpy(other, ids, sizeof(ids));
	for (uint32_t i = 333; i < 600; i++)
		other[i] += 100000;
	assert_int_equal(harness_append(client, trunk, &config, ids, 333, 200, 0), 0);
	assert_int_equal(harness_append(client, branch, &config, other, 333, 200, 0), 0);
	harness_check_fetch(client, trunk, &config, ids, 0, 533, 0);
	harness_check_fetch(client, branch, &config, other, 0, 533, 0);
	assert_int_equal(kvr_close(trunk, true), 0);
	assert_int_equal(kvr_sync(branch, true, NULL), 0);
	harness_check_fetch(client, branch, &config, other, 0, 533, 0);
	assert_int_equal(kvr_close(branch, true), 0);
	kvr_disconnect(client);
}

static void test_layers_apart(void **state)
{
	struct kvr_model_config config = harness_model();
	struct kvr_client *client = harness_connect(&daemon_process, REGION);
	uint8_t *region = kvr_region(client, NULL);
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	struct kvr_appended appended;
	uint32_t sealed, matched;

	(void)state;
	config.digest[0] = 11;
	model = register_model(client, &config);
	assert_int_equal(kvr_open(model, ids, 0, &sequence, &matched), 0);
	for (uint32_t layer = 0; layer < 2; layer++) {
		const struct kvr_append_layer part = {layer, region, region + 500 * 2 * 64};
		const struct kvr_append append = {
			sequence, 0, layer ? 450u : 500u, layer ? NULL : ids, &part, 1};

		for (uint32_t i = 0; i < 500 * 2; i++) {
			harness_row(
				&config, ids[i / 2], i / 2, layer, i % 2, false, region + i * 64);
			harness_row(&config, ids[i / 2], i / 2, layer, i % 2, true,
				region + 500 * 2 * 64 + i * 48);
		}
		assert_int_equal(kvr_append(client, &append, &appended), 0);
		assert_int_equal(appended.token_count, layer ? 450 : 0);
	}
	/* The rows that layer 0 has beyond layer 1 survive a short segment. */
	assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
	assert_int_equal(sealed, 450);
	{
		const struct kvr_append_layer part = {1, region, region + 500 * 2 * 64};
		const struct kvr_append append = {sequence, 450, 50, NULL, &part, 1};

		for (uint32_t i = 0; i < 50 * 2; i++) {
			harness_row(&config, ids[450 + i / 2], 450 + i / 2, 1, i % 2, false,
				region + i * 64);
			harness_row(&config, ids[450 + i / 2], 450 + i / 2, 1, i % 2, true,
				region + 500 * 2 * 64 + i * 48);
		}
		assert_int_equal(kvr_append(client, &append, &appended), 0);
		assert_int_equal(appended.token_count, 500);
	}
	harness_check_fetch(client, sequence, &config, ids, 0, 500, 0);
	assert_int_equal(kvr_close(sequence, true), 0);
	kvr_disconnect(client);
}

static void test_dense_lanes(void **state)
{
	static const uint32_t dense[] = {0, 1};
	struct kvr_model_config config = harness_model();
	struct kvr_client *client = harness_connect(&daemon_process, REGION);
	struct kvr_recall recall = {.budget_tokens = 10, .row_capacity = 10};
	struct kvr_sequence *sequence;
	struct kvr_model *model;

	(void)state;
	config.dense_lanes = dense;
	config.dense_count = 2;
	model = register_model(client, &config);
	put(client, model, &config, 600, &sequence);
	assert_int_equal(kvr_sync(sequence, false, NULL), 0);
	assert_int_equal(
		harness_check_recall(client, sequence, &config, ids, 0, recall, 0, NULL), -ENOBUFS);
	assert_int_equal(
		harness_check_recall(client, sequence, &config, ids, 1, recall, 0, NULL), 20);
	recall.row_capacity = 512;
	assert_int_equal(harness_check_recall(client, sequence, &config, ids, 0, recall, 0, NULL),
		2 * (512 - 16));
	assert_int_equal(kvr_close(sequence, true), 0);
	kvr_disconnect(client);
}

static void test_pin_and_drop(void **state)
{
	struct kvr_model_config config = harness_model();
	struct kvr_client *client = harness_connect(&daemon_process, REGION);
	struct kvr_segment_info segments[64];
	struct kvr_model_info models[64];
	struct kvr_dropped dropped;
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	uint32_t number = 0, pinned;
	int count;

	(void)state;
	config.name = "pins";
	config.digest[0] = 12;
	model = register_model(client, &config);
	put(client, model, &config, 512, &sequence);
	assert_int_equal(kvr_sync(sequence, false, NULL), 0);
	count = kvr_model_list(client, 0, models, 64);
	for (int i = 0; i < count; i++) {
		if (strcmp(models[i].name, "pins") == 0)
			number = models[i].model;
	}
	assert_int_not_equal(number, 0);
	count = kvr_segment_list(client, number, 0, segments, 64);
	assert_int_equal(count, 4);
	for (int i = 0; i < count; i++)
		assert_int_equal(segments[i].leases, 1);
	{ /* from the n-th on, wherever others lie in between */
		struct kvr_segment_info rest[64];

		for (int first = 0; first <= 5; first++) {
			int left = kvr_segment_list(client, number, (uint32_t)first, rest, 64);

			assert_int_equal(left, first < 4 ? 4 - first : 0);
			if (left > 0)
				assert_memory_equal(rest[0].hash, segments[first].hash, 32);
		}
	}
	assert_int_equal(kvr_drop_model(client, number, &dropped), 0);
	assert_int_equal(dropped.segment_count, 0);
	assert_int_equal(dropped.kept_count, 4);
	assert_int_equal(kvr_pin(sequence, false, &pinned), 0);
	assert_int_equal(pinned, 4);
	assert_int_equal(kvr_close(sequence, true), 0);
	assert_int_equal(kvr_drop_model(client, number, &dropped), 0);
	assert_int_equal(dropped.kept_count, 4);
	for (int i = 0; i < count; i++) {
		if (segments[i].token_first == 384)
			assert_int_equal(
				kvr_pin_segment(client, segments[i].hash, true, &pinned), 0);
	}
	assert_int_equal(pinned, 4);
	assert_int_equal(kvr_drop_model(client, number, &dropped), 0);
	assert_int_equal(dropped.segment_count, 4);
	assert_int_equal(kvr_drop_segment(client, segments[0].hash, &dropped), -ENOENT);
	assert_int_equal(kvr_segment_list(client, number, 0, segments, 64), 0);
	kvr_disconnect(client);
}

static void test_batch(void **state)
{
	struct kvr_model_config config = harness_model();
	struct kvr_client *client = harness_connect(&daemon_process, REGION);
	uint8_t *region = kvr_region(client, NULL);
	struct kvr_sequence *sequences[2];
	struct kvr_recall_item items[4];
	struct kvr_recall recall = {.items = items,
		.item_count = 4,
		.query_type = KVR_BF16,
		.budget_tokens = 64,
		.row_capacity = 64};
	struct kvr_model *model;

	(void)state;
	config.digest[0] = 13;
	model = register_model(client, &config);
	put(client, model, &config, 400, &sequences[0]);
	put(client, model, &config, 900, &sequences[1]);
	assert_int_equal(kvr_sync(sequences[0], false, NULL), 0);
	assert_int_equal(kvr_sync(sequences[1], false, NULL), 0);
	memset(region, 0x3f, 4 * 32 * 2);
	for (uint32_t i = 0; i < 4; i++) {
		uint8_t *at = region + 4096 + i * 65536;

		items[i] = (struct kvr_recall_item){.sequence = sequences[i / 2],
			.layer = i % 2,
			.query = region,
			.keys = at,
			.values = at + 2 * 64 * 64,
			.rows = (struct kvr_rows *)(void *)(at + 2 * 64 * 112)};
	}
	assert_int_equal(kvr_recall(client, &recall), 0);
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(items[i].rows[0].row_count, 64);
		assert_int_equal(items[i].rows[1].row_count, 64);
		assert_int_equal(items[i].token_count, i < 2 ? 400 : 900);
		assert_int_equal(items[i].covered_tokens, i < 2 ? 384 : 896);
		assert_true(items[i].rows[0].mass > 0 && items[i].rows[0].mass <= 1.0f);
	}
	kvr_disconnect(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_prefix_is_shared),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_layers_apart),
		cmocka_unit_test(test_dense_lanes),
		cmocka_unit_test(test_pin_and_drop),
		cmocka_unit_test(test_batch),
	};

	return cmocka_run_group_tests_name("daemon paths", tests, start, stop);
}

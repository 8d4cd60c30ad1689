/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what the daemon says of the quality of its recalls is so: captured mass and output error against exact
 * attention over all sealed tokens; and nobody pays for it but the background.
 * Method: the real kvrecalld, told to audit every recall of one sequence, whose exact attention the test computes in
 * double from the same rows; the histograms and means are then known. With a store, after a restart, the same from
 * disk. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/daemon/attention_util.h"

#define REGION     (8u << 20)
#define TOKENS     700u
#define FEW_TOKENS 24u
#define BUDGET     96u
#define CAPACITY   512u
#define AT_ROWS    (4u << 20)

static char path[] = "/tmp/kvrecall-test-conf-XXXXXX";
static uint32_t ids[TOKENS];

static int write_settings(void **state)
{
	int fd = mkstemp(path);
	static const char text[] = "telemetry: { audit_every = 1; };\n";

	(void)state;
	harness_tokens(77, ids, TOKENS);
	return fd < 0 || write(fd, text, sizeof(text) - 1) != sizeof(text) - 1 || close(fd) < 0 ? -1
												: 0;
}

static int remove_settings(void **state)
{
	(void)state;
	return unlink(path);
}

/* What a recall of one layer gave, by the test's own count: sums over query heads. */
struct expected {
	double mass, error;
};

static struct kvr_recall_item item_of(struct kvr_client *client,
	const struct kvr_model_config *config, struct kvr_sequence *sequence, const float *query)
{
	uint8_t *at = (uint8_t *)kvr_region(client, NULL) + AT_ROWS;
	struct kvr_recall_item item = {.sequence = sequence, .layer = 1, .query = query};

	item.outputs = (float *)(void *)at;
	item.lse = item.outputs + config->query_heads * config->value_dim;
	item.rows = (struct kvr_rows *)(void *)(item.lse + config->query_heads);
	item.weights = (float *)(void *)(item.rows + config->query_heads);
	item.keys = item.weights + (size_t)config->query_heads * CAPACITY;
	item.values = (uint8_t *)item.keys +
		      (size_t)config->query_heads * CAPACITY * harness_row_bytes(config, false);
	return item;
}

/* Recalls, with the sinks, and compares what was staged with exact attention over the sealed tokens. */
static struct expected recall_once(struct kvr_client *client, const struct kvr_model_config *config,
	struct kvr_sequence *sequence, struct kvr_recall recall, uint32_t seed)
{
	float query[256];
	struct expected expected = {0, 0};
	struct kvr_recall_item item;

	attention_query(config, seed, query);
	for (uint32_t i = 0; i < config->query_heads * config->key_dim; i++)
		query[i] *= 6; /* so that some tokens count more than others */
	item = item_of(client, config, sequence, query);
	recall.items = &item;
	recall.item_count = 1;
	recall.query_type = KVR_F32;
	recall.budget_tokens = BUDGET;
	recall.row_capacity = CAPACITY;
	recall.sinks = true;
	assert_int_equal(kvr_recall(client, &recall), 0);
	for (uint32_t h = 0; h < config->query_heads; h++) {
		const uint32_t group = config->query_heads / config->kv_heads;
		const uint32_t head = recall.rank == KVR_BY_INNER_PRODUCT ? h : h / group;
		const uint32_t count = item.rows[head].row_count;
		const uint32_t exact = count - item.rows[head].centroid_count;
		const float *q = query + h * config->key_dim;
		struct attention all, rows;

		attention_start(&all);
		attention_start(&rows);
		attention_add_tokens(
			&all, config, ids, item.covered_tokens, item.layer, h / group, q);
		attention_add_rows(&rows, config, &item, CAPACITY, head, 0, exact,
			recall.centroid_rows ? h : head, q);
		expected.mass += exp(attention_lse(&rows) - attention_lse(&all));
		attention_add_rows(&rows, config, &item, CAPACITY, head, exact, count - exact,
			recall.centroid_rows ? h : head, q);
		if (recall.form == KVR_RECALL_MIXED && !recall.centroid_rows)
			attention_merge(&rows, config->value_dim,
				item.outputs + h * config->value_dim, (double)item.lse[h]);
		expected.error += attention_distance(&rows, &all, config->value_dim);
	}
	return expected;
}

static void wait_audits(struct kvr_client *client, double count)
{
	for (uint32_t i = 0; i < 2000; i++) {
		if (harness_metric(client, "audit.done_count") >= count)
			return;
		nanosleep(&(struct timespec){0, 5000000}, NULL);
	}
	fail_msg("no audit within 10 s");
}

/* The sum of a histogram's counts. */
static uint32_t histogram_sum(struct kvr_client *client, const char *name)
{
	struct kvr_metric metrics[64];
	uint32_t sum = 0;
	int count;

	for (uint32_t first = 0; (count = kvr_stats(client, first, metrics, 64)) > 0;
		first += (uint32_t)count) {
		for (int i = 0; i < count; i++) {
			if (strcmp(metrics[i].name, name) != 0)
				continue;
			for (const char *at = metrics[i].text; (at = strchr(at, ':')); at++)
				sum += (uint32_t)strtoul(at + 1, NULL, 10);
		}
	}
	return sum;
}

/* All kinds of recalls, one after the other; what the daemon has found is what the test has. */
static void check_audits(struct kvr_client *client, const struct kvr_model_config *config,
	struct kvr_sequence *sequence)
{
	static const struct kvr_recall kinds[] = {
		{.form = KVR_RECALL_CLUSTERS},
		{.form = KVR_RECALL_CLUSTERS, .rank = KVR_BY_INNER_PRODUCT},
		{.form = KVR_RECALL_MIXED},
		{.form = KVR_RECALL_MIXED, .centroid_rows = 12},
		{.form = KVR_RECALL_MIXED, .rank = KVR_BY_INNER_PRODUCT},
		{.form = KVR_RECALL_CLUSTERS, .budget_mass = 0.5f},
	};
	const uint32_t count = sizeof(kinds) / sizeof(kinds[0]);
	const double before = harness_metric(client, "audit.done_count");
	const double heads = count * config->query_heads;
	struct expected sum = {0, 0};

	for (uint32_t i = 0; i < count; i++) {
		const struct expected one =
			recall_once(client, config, sequence, kinds[i], 100 + i);

		sum.mass += one.mass;
		sum.error += one.error;
		wait_audits(client, before + i + 1);
	}
	assert_true(sum.mass > 0.1 && sum.mass < 0.95 * count * config->query_heads);
	assert_true(harness_metric(client, "quality.1.1.heads_count") == heads);
	assert_true(
		fabs(harness_metric(client, "quality.1.1.mass_mean") - sum.mass / heads) < 1e-4);
	assert_true(
		fabs(harness_metric(client, "quality.1.1.error_mean") - sum.error / heads) < 1e-3);
	assert_int_equal(
		histogram_sum(client, "quality.1.1.mass_histogram"), count * config->query_heads);
	assert_int_equal(
		histogram_sum(client, "quality.1.1.error_histogram"), count * config->query_heads);
	assert_true(harness_metric(client, "audit.abandoned_count") == 0);
}

static struct kvr_sequence *open_all(
	struct kvr_client *client, const struct kvr_model_config *config, bool put)
{
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	uint32_t matched, sealed;

	assert_int_equal(kvr_model_register(client, config, &model), 0);
	assert_int_equal(kvr_open(model, ids, TOKENS, &sequence, &matched), 0);
	assert_int_equal(matched, put ? 0 : TOKENS);
	if (!put)
		return sequence;
	assert_int_equal(harness_append(client, sequence, config, ids, 0, TOKENS, 0), 0);
	assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
	assert_int_equal(sealed, TOKENS);
	return sequence;
}

static struct kvr_sequence *open_empty(
	struct kvr_client *client, const struct kvr_model_config *config)
{
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	uint32_t matched;

	assert_int_equal(kvr_model_register(client, config, &model), 0);
	assert_int_equal(kvr_open(model, ids, 0, &sequence, &matched), 0);
	return sequence;
}

static void test_audits_are_right(void **state)
{
	const char *arguments[] = {"-c", path, NULL};
	const struct kvr_model_config config = harness_model();
	struct harness_daemon daemon;
	struct kvr_client *client;

	(void)state;
	harness_start(&daemon, arguments);
	client = harness_connect(&daemon, REGION);
	check_audits(client, &config, open_all(client, &config, true));
	kvr_disconnect(client);
	harness_stop(&daemon);
}

static void test_audits_read_from_disk(void **state)
{
	const char *arguments[] = {"-c", path, NULL};
	const struct kvr_model_config config = harness_model();
	struct harness_daemon daemon;
	struct kvr_client *client;

	(void)state;
	harness_start_stored(&daemon, arguments);
	client = harness_connect(&daemon, REGION);
	open_all(client, &config, true);
	kvr_disconnect(client);
	harness_kill(&daemon);
	harness_restart(&daemon, arguments);
	client = harness_connect(&daemon, REGION);
	check_audits(client, &config, open_all(client, &config, false));
	kvr_disconnect(client);
	harness_stop(&daemon);
}

/* Where every token is staged, nothing is estimated, and nothing is wrong. Few tokens and flat attention, so that an
 * estimate out of nowhere would weigh. */
static void test_nothing_to_estimate(void **state)
{
	const char *arguments[] = {"-c", path, NULL};
	const struct kvr_model_config config = harness_model();
	const struct kvr_recall recall = {
		.form = KVR_RECALL_MIXED, .centroid_rows = 12, .scale = 1e-3f};
	struct harness_daemon daemon;
	struct kvr_client *client;
	struct kvr_sequence *sequence;
	uint32_t sealed;

	(void)state;
	harness_start(&daemon, arguments);
	client = harness_connect(&daemon, REGION);
	sequence = open_empty(client, &config);
	assert_int_equal(harness_append(client, sequence, &config, ids, 0, FEW_TOKENS, 0), 0);
	assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
	recall_once(client, &config, sequence, recall, 1);
	wait_audits(client, 1);
	assert_true(harness_metric(client, "quality.1.1.mass_mean") > 0.9999);
	assert_true(harness_metric(client, "quality.1.1.error_mean") < 1e-4);
	kvr_disconnect(client);
	harness_stop(&daemon);
}

/* What a client drops as soon as it has let go of it is dropped, whoever else looks at it. */
static void check_drops(bool stored)
{
	const char *arguments[] = {"-c", path, NULL};
	const struct kvr_model_config config = harness_model();
	const struct kvr_recall recall = {.form = KVR_RECALL_CLUSTERS};
	struct harness_daemon daemon;
	struct kvr_client *client;

	if (stored)
		harness_start_stored(&daemon, arguments);
	else
		harness_start(&daemon, arguments);
	client = harness_connect(&daemon, REGION);
	for (uint32_t round = 0; round < 20; round++) {
		struct kvr_sequence *sequence = open_all(client, &config, true);
		struct kvr_dropped dropped;

		recall_once(client, &config, sequence, recall, round);
		assert_int_equal(kvr_close(sequence, true), 0);
		assert_int_equal(kvr_drop_model(client, 1, &dropped), 0);
		assert_int_equal(dropped.kept_count, 0);
		assert_true(dropped.segment_count >= TOKENS / config.segment_tokens);
	}
	kvr_disconnect(client);
	harness_stop(&daemon);
}

static void test_dropped_meanwhile(void **state)
{
	(void)state;
	check_drops(false);
	check_drops(true);
}

/* Other tenants' are nobody's business; here: a model that nobody recalled from has no records. */
static void test_nothing_without_recalls(void **state)
{
	const char *arguments[] = {"-c", path, NULL};
	const struct kvr_model_config config = harness_model();
	struct harness_daemon daemon;
	struct kvr_client *client;
	struct kvr_metric metrics[64];
	int count;

	(void)state;
	harness_start(&daemon, arguments);
	client = harness_connect(&daemon, REGION);
	open_all(client, &config, true);
	for (uint32_t first = 0; (count = kvr_stats(client, first, metrics, 64)) > 0;
		first += (uint32_t)count)
		for (int i = 0; i < count; i++)
			assert_null(strstr(metrics[i].name, "quality."));
	kvr_disconnect(client);
	harness_stop(&daemon);
}

/* A daemon that ends, and a client that goes away, in the middle of audits. */
static void test_ends_in_the_middle(void **state)
{
	const char *arguments[] = {"-c", path, NULL};
	const struct kvr_model_config config = harness_model();
	const struct kvr_recall recall = {.form = KVR_RECALL_CLUSTERS};
	struct harness_daemon daemon;
	struct kvr_client *client;

	(void)state;
	harness_start_stored(&daemon, arguments);
	for (uint32_t round = 0; round < 4; round++) {
		struct kvr_sequence *sequence;

		client = harness_connect(&daemon, REGION);
		sequence = open_all(client, &config, round == 0);
		for (uint32_t i = 0; i < 5; i++)
			recall_once(client, &config, sequence, recall, i);
		kvr_disconnect(client);
		if (round % 2 == 0)
			continue;
		harness_end(&daemon); /* asserts that it ends well */
		harness_restart(&daemon, arguments);
	}
	harness_assert_alive(&daemon);
	harness_stop(&daemon);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_audits_are_right),
		cmocka_unit_test(test_audits_read_from_disk),
		cmocka_unit_test(test_nothing_to_estimate),
		cmocka_unit_test(test_dropped_meanwhile),
		cmocka_unit_test(test_nothing_without_recalls),
		cmocka_unit_test(test_ends_in_the_middle),
	};

	return cmocka_run_group_tests_name("daemon audit", tests, write_settings, remove_settings);
}

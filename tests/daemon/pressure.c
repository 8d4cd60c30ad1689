/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a daemon that is full says so and stays right: what may not go stays and is served, what may go
 * goes in a sensible order, children before parents, and never a byte is wrong.
 * Method: real daemons with a few MiB, filled by real clients with leases, pins, and closed sequences;
 * content that tells each element apart. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"

#define REGION       (24u << 20)
#define TOKENS       2048u
#define CHUNK        64u
#define SEQUENCES    64u
#define SEGMENTS_MAX 4096u

struct tested {
	struct harness_daemon daemon;
	struct kvr_client *client;
	struct kvr_model_config config;
	struct kvr_model *model;
};

/* A model whose sequences fill a small arena quickly: 64 lanes. */
static struct kvr_model_config wide_model(void)
{
	struct kvr_model_config config = harness_model();

	config.layers = 8;
	config.query_heads = 8;
	config.kv_heads = 8;
	return config;
}

static void tested_start(
	struct tested *tested, const char *const *arguments, struct kvr_model_config config)
{
	harness_start(&tested->daemon, arguments);
	tested->client = harness_connect(&tested->daemon, REGION);
	tested->config = config;
	assert_int_equal(kvr_model_register(tested->client, &config, &tested->model), 0);
}

static void tested_stop(struct tested *tested)
{
	assert_true(harness_metric(tested->client, "host.used_bytes") <=
		    harness_metric(tested->client, "host.capacity_bytes"));
	kvr_disconnect(tested->client);
	harness_assert_alive(&tested->daemon);
	harness_stop(&tested->daemon);
}

/* A configuration file beside no daemon yet: in the test's temporary directory. */
static void write_config(char *ret_path, size_t bytes, const char *text)
{
	FILE *file;
	int fd;

	snprintf(ret_path, bytes, "/tmp/kvrecall-test-conf-XXXXXX");
	fd = mkstemp(ret_path);
	assert_true(fd >= 0);
	file = fdopen(fd, "w");
	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

/* Appends in chunks from position `at`; returns the first position that was refused, or `count`, and
 * the error. */
static uint32_t append_until(struct tested *tested, struct kvr_sequence *sequence,
	const uint32_t *ids, uint32_t at, uint32_t count, int *ret_error)
{
	*ret_error = 0;
	while (at < count && *ret_error == 0) {
		const uint32_t part = count - at < CHUNK ? count - at : CHUNK;

		*ret_error =
			harness_append(tested->client, sequence, &tested->config, ids, at, part, 0);
		if (*ret_error == 0)
			at += part;
	}
	return at;
}

/* What went for room: segments, or with a store, where they stay, bytes of them in memory. */
static double gone(const struct tested *tested)
{
	return harness_metric(
		tested->client, harness_stores() ? "cache.demoted_bytes" : "segment.evicted_count");
}

/* ---- nothing may go -------------------------------------------------------------------------- */

static struct kvr_sequence *sequences[SEQUENCES];
static uint32_t ids[SEQUENCES][TOKENS], lengths[SEQUENCES];

/* Opens and fills sequences until an append or a seal is refused with `error`. Returns how many are open. */
static uint32_t fill_with_leases(struct tested *tested, int error)
{
	int rc = 0;

	for (uint32_t i = 0; i < SEQUENCES; i++) {
		harness_tokens(1000 + i, ids[i], TOKENS);
		assert_int_equal(
			kvr_open(tested->model, ids[i], 0, &sequences[i], &(uint32_t){0}), 0);
		lengths[i] = append_until(tested, sequences[i], ids[i], 0, 300, &rc);
		if (rc == 0)
			rc = kvr_sync(sequences[i], false, NULL);
		if (rc == 0)
			continue;
		assert_int_equal(rc, error);
		return i + 1;
	}
	fail_msg("the arena never filled up");
	return 0;
}

/* Appends to the last sequence until that is refused with no seal under way: a seal that ends may free
 * memory of tails. */
static void fill_up(struct tested *tested, uint32_t open, int error)
{
	int rc = 0;

	for (uint32_t round = 0; round < 16 && rc == 0; round++) {
		for (uint32_t i = 0; i < open; i++) {
			rc = kvr_sync(sequences[i], false, NULL);
			assert_true(rc == 0 || rc == error);
		}
		lengths[open - 1] = append_until(tested, sequences[open - 1], ids[open - 1],
			lengths[open - 1], lengths[open - 1] + CHUNK, &rc);
	}
	assert_int_equal(rc, error);
}

static void check_sequences(struct tested *tested, uint32_t first, uint32_t end)
{
	const struct kvr_recall recall = {
		.budget_tokens = 32, .row_capacity = 32 + TOKENS, .tail = true};

	for (uint32_t i = first; i < end; i++) {
		if (lengths[i] == 0)
			continue;
		harness_check_fetch(
			tested->client, sequences[i], &tested->config, ids[i], 0, lengths[i], 0);
		assert_true(harness_check_recall(tested->client, sequences[i], &tested->config,
				    ids[i], i % tested->config.layers, recall, 0, NULL) > 0);
	}
}

static void assert_says(struct kvr_client *client, const char *name, const char *remedy)
{
	const struct kvr_error *error = kvr_error(client);

	assert_string_equal(error->name, name);
	assert_non_null(strstr(error->subject, "sequence"));
	assert_non_null(strstr(error->remedy, remedy));
}

static void test_full_of_leases(void **state)
{
	static const char *const arguments[] = {"-m", "8MiB", NULL};
	struct tested tested;
	uint32_t open, last, more;
	double held;
	int rc;

	(void)state;
	if (harness_stores()) {
		print_message("skipped: with a store memory is not full of what is leased\n");
		skip();
	}
	tested_start(&tested, arguments, wide_model());
	open = fill_with_leases(&tested, -ENOSPC);
	last = open - 1;
	assert_true(open > 2);
	fill_up(&tested, open, -ENOSPC);
	assert_says(tested.client, "FULL", "close sequences");
	/* Refused again, and again nothing is kept. */
	held = harness_metric(tested.client, "tenant.held_bytes");
	for (int i = 0; i < 3; i++)
		assert_int_equal(harness_append(tested.client, sequences[last], &tested.config,
					 ids[last], lengths[last], 4 * CHUNK, 0),
			-ENOSPC);
	assert_true(harness_metric(tested.client, "tenant.held_bytes") == held);
	check_sequences(&tested, 0, open);
	/* Closed but pinned: still nothing may go. */
	assert_int_equal(kvr_sync(sequences[0], false, NULL), 0);
	assert_int_equal(kvr_pin(sequences[0], false, &more), 0);
	assert_true(more >= 1);
	held = more;
	assert_int_equal(kvr_close(sequences[0], true), 0);
	check_sequences(&tested, 1, open);
	assert_int_equal(kvr_open(tested.model, ids[0], TOKENS, &sequences[0], &(uint32_t){0}), 0);
	assert_int_equal(kvr_pin(sequences[0], true, &more), 0);
	assert_true(more == held);
	assert_int_equal(kvr_close(sequences[0], true), 0);
	assert_int_equal(kvr_close(sequences[1], true), 0);
	/* Now there is room for what was refused. */
	more = append_until(
		&tested, sequences[last], ids[last], lengths[last], lengths[last] + CHUNK, &rc);
	assert_int_equal(rc, 0);
	lengths[last] = more;
	check_sequences(&tested, 2, open);
	tested_stop(&tested);
}

/* ---- something may go ------------------------------------------------------------------------ */

static struct kvr_segment_info segments[SEGMENTS_MAX];

/* Every segment's parent is there. Returns the number of segments. */
static uint32_t check_family(struct kvr_client *client)
{
	int count = kvr_segment_list(client, 0, 0, segments, SEGMENTS_MAX);
	static const uint8_t none[32];

	assert_true(count >= 0 && count < (int)SEGMENTS_MAX);
	for (int i = 0; i < count; i++) {
		bool found = memcmp(segments[i].parent, none, sizeof(none)) == 0;

		assert_int_equal(found, segments[i].token_first == 0);
		for (int k = 0; k < count && !found; k++)
			found = memcmp(segments[k].hash, segments[i].parent, 32) == 0;
		assert_true(found);
	}
	return (uint32_t)count;
}

/* Opens what may match, checks every byte of what does, puts the rest, seals, closes. Returns how many
 * tokens matched. */
static uint32_t visit(struct tested *tested, const uint32_t *tokens, uint32_t count)
{
	struct kvr_sequence *sequence;
	uint32_t matched, at;
	int rc;

	assert_int_equal(kvr_open(tested->model, tokens, count, &sequence, &matched), 0);
	assert_true(matched <= count);
	if (matched)
		harness_check_fetch(
			tested->client, sequence, &tested->config, tokens, 0, matched, 0);
	at = append_until(tested, sequence, tokens, matched, count, &rc);
	assert_int_equal(rc, 0);
	assert_int_equal(at, count);
	assert_int_equal(kvr_sync(sequence, true, &at), 0);
	assert_int_equal(at, count);
	harness_check_fetch(tested->client, sequence, &tested->config, tokens, 0, count, 0);
	assert_int_equal(kvr_close(sequence, false), 0);
	return matched;
}

static void evict_with(const char *policy)
{
	const uint32_t rounds = PROCESS_SLOW == 1 ? 150 : 80;
	char path[64], text[64];
	const char *arguments[] = {"-m", "8MiB", "-c", path, NULL};
	uint32_t tokens[500], hot[500], back = 0;
	struct tested tested;

	snprintf(text, sizeof(text), "memory: { policy = \"%s\"; };\n", policy);
	write_config(path, sizeof(path), text);
	tested_start(&tested, arguments, harness_model());
	harness_tokens(7, hot, 500);
	for (uint32_t round = 0; round < rounds; round++) {
		const uint32_t old = process_random(0, round);

		/* A quarter have their first 200 tokens in common. */
		harness_tokens(2000 + round, tokens, 500);
		if (round % 4 == 0)
			harness_tokens(2000, tokens, 200);
		visit(&tested, tokens, 400 + round % 100);
		assert_int_equal(visit(&tested, tokens, 400 + round % 100), 400 + round % 100);
		if (visit(&tested, hot, 300) == 300)
			back++;
		harness_tokens(2000 + old, tokens, 500);
		if (old % 4 == 0)
			harness_tokens(2000, tokens, 200);
		if (round % 8 == 0)
			visit(&tested, tokens, 400 + old % 100);
		if (round % 16 == 0)
			check_family(tested.client);
	}
	assert_true(check_family(tested.client) > 0);
	assert_true(gone(&tested) > rounds);
	assert_true(back >= rounds * 9 / 10); /* what is used stays */
	if (harness_stores())
		assert_int_equal(
			back, rounds - 1); /* all stays, but the first visit found nothing */
	unlink(path);
	tested_stop(&tested);
}

static void test_eviction_s3fifo(void **state)
{
	(void)state;
	evict_with("s3fifo");
}

static void test_eviction_lru(void **state)
{
	(void)state;
	evict_with("lru");
}

/* Full of leases while others are closed and sealed in the background: what cannot be sealed is given
 * up, and the daemon goes on. */
static void test_closing_when_full(void **state)
{
	static const char *const arguments[] = {"-m", "8MiB", NULL};
	struct tested tested;
	uint32_t open;

	(void)state;
	tested_start(&tested, arguments, wide_model());
	for (uint32_t round = 0; round < 5; round++) {
		open = fill_with_leases(&tested, -ENOSPC);
		for (uint32_t i = 0; i < open; i += 2)
			assert_int_equal(kvr_close(sequences[i], false), 0);
		for (uint32_t i = 1; i < open; i += 2)
			check_sequences(&tested, i, i + 1);
		for (uint32_t i = 1; i < open; i += 2)
			assert_int_equal(kvr_close(sequences[i], i % 4 == 1), 0);
		check_family(tested.client);
	}
	tested_stop(&tested);
}

/* ---- quota ----------------------------------------------------------------------------------- */

static void test_quota(void **state)
{
	char path[64], text[128];
	const char *arguments[] = {"-m", "32MiB", "-c", path, NULL};
	uint32_t open, tokens[500];
	struct tested tested;

	(void)state;
	snprintf(text, sizeof(text),
		"tenants = ( { name = \"small\"; uids = [ %u ]; quota_bytes = \"6 MiB\"; } );\n",
		(unsigned)getuid());
	write_config(path, sizeof(path), text);
	tested_start(&tested, arguments, wide_model());
	/* Its own segments go first, without a word. */
	for (uint32_t round = 0; round < 12; round++) {
		harness_tokens(3000 + round, tokens, 300);
		visit(&tested, tokens, 300);
		assert_true(harness_metric(tested.client, "tenant.held_bytes") <= 6 << 20);
	}
	assert_true(gone(&tested) > 0);
	open = fill_with_leases(&tested, -EDQUOT);
	assert_says(tested.client, "QUOTA", "quota");
	assert_true(harness_metric(tested.client, "tenant.quota_refused_count") >= 1);
	assert_true(harness_metric(tested.client, "tenant.held_bytes") <= 6 << 20);
	assert_true(harness_metric(tested.client, "host.used_bytes") < 16 << 20);
	check_sequences(&tested, 0, open);
	for (uint32_t i = 0; i < open; i++)
		assert_int_equal(kvr_close(sequences[i], true), 0);
	harness_tokens(3000, tokens, 300);
	visit(&tested, tokens, 300);
	unlink(path);
	tested_stop(&tested);
}

/* ---- larger than the region ------------------------------------------------------------------ */

static void test_larger_than_region(void **state)
{
	static const char *const arguments[] = {"-m", "64MiB", NULL};
	struct kvr_fetch_layer to = {0, NULL, NULL};
	struct kvr_append_layer from = {0, NULL, NULL};
	struct tested tested;
	struct kvr_sequence *sequence;
	struct kvr_append append;
	struct kvr_fetch fetch;
	uint8_t *region;
	size_t bytes;

	(void)state;
	tested_start(&tested, arguments, wide_model());
	region = kvr_region(tested.client, &bytes);
	harness_tokens(1, ids[0], TOKENS);
	assert_int_equal(kvr_open(tested.model, ids[0], 0, &sequence, &(uint32_t){0}), 0);
	assert_int_equal(
		harness_append(tested.client, sequence, &tested.config, ids[0], 0, 64, 0), 0);
	from.keys = region;
	from.values = region + bytes - 1024; /* begins inside, ends outside */
	append = (struct kvr_append){sequence, 64, 64, ids[0] + 64, &from, 1};
	assert_int_equal(kvr_append(tested.client, &append, NULL), -EFAULT);
	from.values = region;
	from.keys = ids; /* elsewhere */
	assert_int_equal(kvr_append(tested.client, &append, NULL), -EFAULT);
	to.keys = region;
	to.values = region + bytes - 64 * 8 * 24 * 2 + 1;
	fetch = (struct kvr_fetch){sequence, 0, 64, &to, 1};
	assert_int_equal(kvr_fetch(tested.client, &fetch), -EFAULT);
	to.values = region + bytes;
	assert_int_equal(kvr_fetch(tested.client, &fetch), -EFAULT);
	to.values = region + bytes - 64 * 8 * 24 * 2;
	assert_int_equal(kvr_fetch(tested.client, &fetch), 0);
	harness_check_fetch(tested.client, sequence, &tested.config, ids[0], 0, 64, 0);
	tested_stop(&tested);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full_of_leases),
		cmocka_unit_test(test_eviction_s3fifo),
		cmocka_unit_test(test_eviction_lru),
		cmocka_unit_test(test_closing_when_full),
		cmocka_unit_test(test_quota),
		cmocka_unit_test(test_larger_than_region),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon pressure", tests, NULL, NULL);
}

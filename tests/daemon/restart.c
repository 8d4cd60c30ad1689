/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what sync has acknowledged is there after kill -9 and a new start, found by its tokens, bit for bit; recalled
 * and fetched from the disk, with less memory than content; pins outlive restarts, and so does their end.
 * Method: a real daemon with a store, killed and started again on it, content that tells each element apart
 * (harness_util.h). (At random moments: soak_crash.c. Damaged: damage.c.) */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"

#define REGION    (32u << 20)
#define TOKENS    2000u
#define SEQUENCES 6u
#define SEGMENTS  16u /* of 128 tokens, a slab each */

static uint32_t ids[SEQUENCES][TOKENS];

struct world {
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_client *client;
	struct kvr_model *model;
};

static void attach(struct world *world)
{
	world->config = harness_model();
	world->client = harness_connect(&world->daemon, REGION);
	assert_int_equal(kvr_model_register(world->client, &world->config, &world->model), 0);
}

static void start_on(struct world *world, const char *store_bytes, const char *memory)
{
	const char *const arguments[] = {"-m", memory, NULL};

	for (uint32_t i = 0; i < SEQUENCES; i++)
		harness_tokens(7 + i, ids[i], TOKENS);
	harness_start_sized(&world->daemon, store_bytes, arguments);
	attach(world);
}

static void start(struct world *world, const char *memory)
{
	start_on(world, "2 GiB", memory);
}

static void kill_and_restart(struct world *world, const char *memory)
{
	const char *const arguments[] = {"-m", memory, NULL};

	harness_kill(&world->daemon);
	kvr_disconnect(world->client);
	harness_restart(&world->daemon, arguments);
	attach(world);
}

static void stop(struct world *world)
{
	kvr_disconnect(world->client);
	harness_stop(&world->daemon);
}

/* Opens on what is there, appends the rest, seals all and waits until it is durable. */
static void put(struct world *world, const uint32_t *tokens, uint32_t count)
{
	struct kvr_sequence *sequence;
	uint32_t matched = 0, sealed = 0;

	assert_int_equal(kvr_open(world->model, tokens, count, &sequence, &matched), 0);
	for (uint32_t at = matched; at < count;) {
		const uint32_t part = count - at < 300 ? count - at : 300;

		assert_int_equal(harness_append(world->client, sequence, &world->config, tokens, at,
					 part, 0),
			0);
		at += part;
	}
	assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
	assert_int_equal(sealed, count);
	assert_int_equal(kvr_close(sequence, true), 0);
}

static const struct kvr_recall recalled = {
	.budget_tokens = 200, .row_capacity = 216, .sinks = true};

static struct kvr_sequence *open_all(struct world *world, const uint32_t *tokens, uint32_t count)
{
	struct kvr_sequence *sequence;
	uint32_t matched = 0;

	assert_int_equal(kvr_open(world->model, tokens, count, &sequence, &matched), 0);
	assert_int_equal(matched, count);
	return sequence;
}

static void check_recalls(
	struct world *world, struct kvr_sequence *sequence, const uint32_t *tokens, uint32_t count)
{
	uint32_t covered;

	for (uint32_t layer = 0; layer < world->config.layers; layer++) {
		assert_int_equal(harness_check_recall(world->client, sequence, &world->config,
					 tokens, layer, recalled, 0, &covered),
			(200 + 16) * (int)world->config.kv_heads);
		assert_int_equal(covered, count);
	}
}

/* Opens and asserts that all of it matches and comes back. */
static void check(struct world *world, const uint32_t *tokens, uint32_t count)
{
	struct kvr_sequence *sequence = open_all(world, tokens, count);

	check_recalls(world, sequence, tokens, count);
	harness_check_fetch(world->client, sequence, &world->config, tokens, 0, count, 0);
	harness_check_fetch(world->client, sequence, &world->config, tokens, 100, 37, 0);
	assert_int_equal(kvr_close(sequence, true), 0);
}

static void test_kill_and_restart(void **state)
{
	struct world world;

	(void)state;
	start(&world, "64 MiB");
	for (uint32_t i = 0; i < SEQUENCES; i++)
		put(&world, ids[i], TOKENS - 100 * i);
	for (uint32_t round = 0; round < 3; round++) {
		kill_and_restart(&world, "64 MiB");
		for (uint32_t i = 0; i < SEQUENCES; i++)
			check(&world, ids[i], TOKENS - 100 * i);
		assert_true(harness_metric(world.client, "nvme.read_bytes") > 0);
		assert_true(harness_metric(world.client, "cache.miss_bytes") > 0);
		for (uint32_t i = 0; i < SEQUENCES; i++) /* in memory, by now */
			check(&world, ids[i], TOKENS - 100 * i);
		assert_true(harness_metric(world.client, "cache.hit_bytes") > 0);
		assert_int_equal(
			(int)harness_metric(world.client, "recall.missing_tokens_count"), 0);
	}
	stop(&world);
}

/* Less memory than there is content in use: clusters come and go, and what is recalled stays right. */
static void test_little_memory(void **state)
{
	struct kvr_sequence *sequences[SEQUENCES];
	struct world world;

	(void)state;
	start(&world, "4 MiB");
	for (uint32_t i = 0; i < SEQUENCES; i++)
		put(&world, ids[i], TOKENS);
	for (uint32_t i = 0; i < SEQUENCES; i++)
		sequences[i] = open_all(&world, ids[i], TOKENS);
	for (uint32_t round = 0; round < 150; round++) {
		const uint32_t at = process_random(0, SEQUENCES - 1);

		check_recalls(&world, sequences[at], ids[at], TOKENS);
		if (process_random(0, 3) == 0)
			harness_check_fetch(world.client, sequences[at], &world.config, ids[at],
				process_random(0, 999), 1000, 0);
	}
	assert_true(harness_metric(world.client, "cache.demoted_bytes") > 0);
	assert_true(harness_metric(world.client, "cache.hit_bytes") > 0);
	assert_true(harness_metric(world.client, "store.put_failures_count") == 0);
	for (uint32_t i = 0; i < SEQUENCES; i++)
		assert_int_equal(kvr_close(sequences[i], true), 0);
	stop(&world);
}

#define TELL_US 1500000u /* the store is told of pins and last uses a little later */

static void pin(struct world *world, const uint32_t *tokens, bool unpin)
{
	struct kvr_sequence *sequence = open_all(world, tokens, TOKENS);
	uint32_t count;

	assert_int_equal(kvr_pin(sequence, unpin, &count), 0);
	assert_int_equal(count, SEGMENTS);
	assert_int_equal(kvr_close(sequence, true), 0);
	process_sleep_us(TELL_US);
}

/* A store of 64 slabs holds four of these sequences. */
static void put_all_but_first(struct world *world)
{
	for (uint32_t i = 1; i < SEQUENCES; i++)
		put(world, ids[i], TOKENS);
	assert_true(harness_metric(world->client, "store.evicted_count") > 0);
}

static void test_pins_outlive_restarts(void **state)
{
	struct kvr_sequence *sequence;
	struct world world;
	uint32_t matched;

	(void)state;
	start_on(&world, "64 MiB", "8 MiB");
	put(&world, ids[0], TOKENS);
	pin(&world, ids[0], false);
	for (uint32_t round = 0; round < 2; round++) {
		kill_and_restart(&world, "8 MiB");
		check(&world, ids[0], TOKENS); /* its last use is told, and nothing else changes */
		process_sleep_us(TELL_US);
	}
	kill_and_restart(&world, "8 MiB");
	put_all_but_first(&world);
	check(&world, ids[0], TOKENS);
	pin(&world, ids[0], true);
	kill_and_restart(&world, "8 MiB");
	put_all_but_first(&world);
	assert_int_equal(kvr_open(world.model, ids[0], TOKENS, &sequence, &matched), 0);
	assert_true(matched < TOKENS);
	stop(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kill_and_restart),
		cmocka_unit_test(test_little_memory),
		cmocka_unit_test(test_pins_outlive_restarts),
	};

	process_seed_print();
	return cmocka_run_group_tests(tests, NULL, NULL);
}

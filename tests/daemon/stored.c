/* SPDX-License-Identifier: Apache-2.0 */
/* stored.c: what is listed, dropped and pinned of a store, over restarts.
 *
 * Goal: models and segments are listed before anybody registers again, parents first, each once, with where they are; they
 * can be dropped by name; a pin is kept over kill -9, set on what is in memory, on disk alone, or half and half.
 * Method: a real daemon with a store, killed and started again, asked through the library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/stored_util.h"

/* ---- lists ------------------------------------------------------------------------------------ */

/* Each behind its parent, and where its parent ends. */
static void check_order(const struct kvr_segment_info segments[STORED_ALL])
{
	static const uint8_t none[32];

	for (uint32_t i = 0; i < STORED_ALL; i++) {
		uint32_t parent = 0;

		while (parent < i && memcmp(segments[parent].hash, segments[i].parent, 32) != 0)
			parent++;
		if (segments[i].token_first == 0) {
			assert_memory_equal(segments[i].parent, none, 32);
			continue;
		}
		assert_true(parent < i);
		assert_int_equal(segments[i].token_first,
			segments[parent].token_first + segments[parent].token_count);
	}
}

static void check_model(struct stored *world, const struct kvr_segment_info segments[STORED_ALL])
{
	struct kvr_model_info models[2];
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < STORED_ALL; i++)
		bytes += segments[i].stored_bytes;
	assert_int_equal(kvr_model_list(world->client, 0, models, 2), 1);
	assert_string_equal(models[0].name, world->config.name);
	assert_memory_equal(models[0].digest, world->config.digest, 32);
	assert_int_equal(models[0].segment_tokens, world->config.segment_tokens);
	assert_int_equal(models[0].segment_count, STORED_ALL);
	assert_int_equal(models[0].stored_bytes, bytes);
	assert_int_equal(models[0].model, segments[0].model);
}

static void test_lists(void **state)
{
	struct kvr_segment_info before[STORED_ALL], after[STORED_ALL];
	struct kvr_dropped dropped;
	struct stored world;

	(void)state;
	stored_start(&world);
	stored_list(&world, before);
	check_order(before);
	check_model(&world, before);
	for (uint32_t i = 0; i < STORED_ALL; i++) {
		assert_true(before[i].durable);
		assert_false(before[i].quarantined);
		assert_int_equal(before[i].resident_bytes, before[i].stored_bytes);
	}
	stored_restart(&world);
	stored_list(&world, after);
	check_order(after);
	check_model(&world, after);
	for (uint32_t i = 0; i < STORED_ALL; i++) {
		assert_memory_equal(after[i].hash, before[i].hash, 32);
		assert_true(after[i].durable);
		assert_int_equal(after[i].resident_bytes, 0);
	}
	stored_run(&world, "$K --socket attach.sock segments", 0, "disk ");
	stored_run(&world, "$K --socket attach.sock models --json", 0, "\"segments\":11,");
	stored_check(&world); /* a fetch reads past the cache, or fills it */
	/* Dropped by name, with nothing registered or in memory. */
	stored_restart(&world);
	assert_int_equal(kvr_drop_segment(world.client, after[STORED_BRANCH].hash, &dropped), 0);
	assert_int_equal(dropped.segment_count, STORED_SEGMENTS - STORED_BRANCH);
	stored_restart(&world);
	assert_int_equal(kvr_drop_model(world.client, 1, &dropped), -ENODEV);
	assert_int_equal(kvr_segment_list(world.client, 0, 0, after, STORED_ALL), STORED_SEGMENTS);
	assert_int_equal(kvr_drop_model(world.client, after[0].model, &dropped), 0);
	assert_int_equal(dropped.segment_count, STORED_SEGMENTS);
	stored_restart(&world);
	assert_int_equal(kvr_segment_list(world.client, 0, 0, after, STORED_ALL), 0);
	stored_stop(&world);
}

#define MANY 200u

/* Lists of several pages, between which more comes: what an earlier list has left behind does no harm. */
static void test_list_of_many(void **state)
{
	static struct kvr_segment_info segments[MANY + 1];
	struct stored world;
	uint32_t ids[128], count = STORED_ALL;

	(void)state;
	stored_start(&world);
	while (count < MANY) {
		for (uint32_t more = 0; more < 30 && count < MANY; more++, count++) {
			struct kvr_sequence *sequence;
			uint32_t matched;

			harness_tokens(100 + count, ids, 128);
			assert_int_equal(
				kvr_open(stored_model(&world), ids, 128, &sequence, &matched), 0);
			assert_int_equal(harness_append(world.client, sequence, &world.config, ids,
						 0, 128, 0),
				0);
			assert_int_equal(kvr_sync(sequence, false, &matched), 0);
			assert_int_equal(kvr_close(sequence, true), 0);
		}
		assert_int_equal(kvr_segment_list(world.client, 0, 0, segments, MANY + 1), count);
		for (uint32_t i = 0; i < count; i++)
			for (uint32_t k = 0; k < i; k++)
				assert_memory_not_equal(segments[i].hash, segments[k].hash, 32);
		assert_int_equal(
			kvr_segment_list(world.client, 0, 40, segments, MANY + 1), count - 40);
	}
	stored_stop(&world);
}

static void test_quarantine(void **state)
{
	struct kvr_segment_info segments[STORED_ALL];
	struct kvr_sequence *sequence;
	struct stored world;
	uint32_t matched, bad = 0;

	(void)state;
	stored_start(&world);
	stored_end(&world);
	stored_flip(&world);
	stored_start_again(&world);
	sequence = stored_open(&world, 0, &matched);
	if (matched == STORED_TOKENS) /* the summary was whole */
		assert_int_equal(harness_try_fetch(world.client, sequence, &world.config,
					 world.ids[0], 0, STORED_TOKENS, 0),
			-EIO);
	assert_int_equal(kvr_close(sequence, true), 0);
	sequence = stored_open(&world, 0, &matched);
	assert_int_equal(matched, 0);
	assert_int_equal(kvr_close(sequence, true), 0);
	for (uint32_t try = 0; try < 100 && bad == 0; try++) { /* the store is told in batches */
		stored_list(&world, segments);
		for (uint32_t i = 0; i < STORED_ALL; i++)
			bad += segments[i].quarantined;
		usleep(100000);
	}
	assert_int_equal(bad, 1);
	assert_true(segments[0].quarantined);
	stored_run(&world, "$K --socket attach.sock segments", 0, "quarantined");
	stored_stop(&world);
}

/* ---- pins ------------------------------------------------------------------------------------- */

static void check_pins(struct stored *world, uint32_t count)
{
	struct kvr_segment_info segments[STORED_ALL];
	uint32_t pins = 0;

	stored_list(world, segments);
	for (uint32_t i = 0; i < STORED_ALL; i++)
		pins += segments[i].pins;
	assert_int_equal(pins, count);
}

/* Pins or unpins the i-th of the list and all before it. */
static uint32_t pin(struct stored *world, uint32_t i, bool unpin)
{
	struct kvr_segment_info segments[STORED_ALL];
	uint32_t changed;

	stored_list(world, segments);
	assert_int_equal(kvr_pin_segment(world->client, segments[i].hash, unpin, &changed), 0);
	return changed;
}

static void test_pin_on_disk(void **state)
{
	struct kvr_dropped dropped;
	struct kvr_segment_info segments[STORED_ALL];
	struct kvr_sequence *sequence;
	struct stored world;
	uint32_t matched;

	(void)state;
	stored_start(&world);
	stored_restart(&world);
	assert_int_equal(pin(&world, 2, false), 3); /* on the disk alone */
	assert_int_equal(pin(&world, 2, false), 0);
	check_pins(&world, 3);
	stored_restart(&world);
	check_pins(&world, 3);
	sequence = stored_open(&world, 0, &matched); /* loads them */
	assert_int_equal(matched, STORED_TOKENS);
	assert_int_equal(kvr_close(sequence, true), 0);
	check_pins(&world, 3);
	stored_list(&world, segments);
	assert_int_equal(kvr_drop_model(world.client, segments[0].model, &dropped), 0);
	assert_int_equal(dropped.segment_count, STORED_ALL - 3);
	assert_int_equal(dropped.kept_count, 3);
	assert_int_equal(kvr_pin_segment(world.client, segments[2].hash, true, &matched), 0);
	assert_int_equal(matched, 3);
	assert_int_equal(kvr_pin_segment(world.client, segments[3].hash, true, &matched), -ENOENT);
	stored_restart(&world);
	assert_int_equal(kvr_segment_list(world.client, 0, 0, segments, STORED_ALL), 3);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(segments[i].pins, 0);
	assert_int_equal(kvr_drop_segment(world.client, segments[0].hash, &dropped), 0);
	assert_int_equal(dropped.segment_count, 3);
	stored_stop(&world);
}

static void test_pin_in_memory(void **state)
{
	struct kvr_sequence *sequence;
	struct stored world;
	uint32_t matched, changed;

	(void)state;
	stored_start(&world);
	sequence = stored_open(&world, 1, &matched);
	assert_int_equal(kvr_pin(sequence, false, &changed), 0);
	assert_int_equal(changed, STORED_SEGMENTS);
	stored_restart(&world);
	check_pins(&world, STORED_SEGMENTS);
	sequence = stored_open(&world, 1, &matched);
	assert_int_equal(matched, STORED_TOKENS);
	assert_int_equal(kvr_pin(sequence, true, &changed), 0);
	assert_int_equal(changed, STORED_SEGMENTS);
	check_pins(&world, 0);
	stored_restart(&world);
	check_pins(&world, 0);
	/* Half of it in memory: the shared part; a pin through the other one's end. */
	sequence = stored_open(&world, 0, &matched);
	assert_int_equal(kvr_close(sequence, true), 0);
	assert_int_equal(pin(&world, STORED_ALL - 1, false), STORED_SEGMENTS);
	check_pins(&world, STORED_SEGMENTS);
	stored_restart(&world);
	check_pins(&world, STORED_SEGMENTS);
	stored_stop(&world);
}

/* Pinned before it is durable: the store is told when it is. */
static void test_pin_before_durable(void **state)
{
	static const uint32_t count = 512;
	struct kvr_segment_info segments[STORED_ALL + 4];
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	struct stored world;
	uint32_t ids[512], matched, changed, sealed, pins = 0;
	int listed;

	(void)state;
	stored_start(&world);
	harness_tokens(9, ids, count);
	model = stored_model(&world);
	assert_int_equal(kvr_open(model, ids, count, &sequence, &matched), 0);
	assert_int_equal(
		harness_append(world.client, sequence, &world.config, ids, 0, count, 0), 0);
	do /* as soon as some of it is sealed, durable or not */
		assert_int_equal(kvr_pin(sequence, false, &changed), 0);
	while (changed == 0);
	assert_int_equal(kvr_sync(sequence, false, &sealed), 0);
	assert_int_equal(sealed, count);
	assert_int_equal(kvr_close(sequence, true), 0);
	usleep(1500000); /* told with the next batch */
	stored_restart(&world);
	listed = kvr_segment_list(world.client, 0, 0, segments, STORED_ALL + 4);
	assert_int_equal(listed, STORED_ALL + 4);
	for (int i = 0; i < listed; i++)
		pins += segments[i].pins;
	assert_true(pins >= 1);
	stored_stop(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lists),
		cmocka_unit_test(test_list_of_many),
		cmocka_unit_test(test_quarantine),
		cmocka_unit_test(test_pin_on_disk),
		cmocka_unit_test(test_pin_in_memory),
		cmocka_unit_test(test_pin_before_durable),
	};

	return cmocka_run_group_tests_name("stored", tests, NULL, NULL);
}

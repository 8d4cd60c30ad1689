/* SPDX-License-Identifier: Apache-2.0 */
/* tool_store.c: what a user sees of the store: `kvrecall verify` and `rebuild`, lists and pins over restarts.
 *
 * Goal: verify tells a sound store from a damaged one and from one in use, rebuild makes the catalog that was there, and
 * a daemon serves it; models and segments are listed before anybody registers again, parents first; a pin is
 * kept over kill -9, set on what is in memory or on disk alone.
 * Method: a real daemon with a store, killed and started again; the real tool as a child; catalogs compared row for row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tiers/catalog.h"

#define REGION     (32u << 20)
#define TOKENS     1000u /* in segments of 128, the last one shorter */
#define SEGMENTS   8u
#define BRANCH     5u /* segments that the second sequence shares */
#define ALL        (SEGMENTS + SEGMENTS - BRANCH)
#define OUTPUT_MAX 65536u

static const char *const arguments[] = {"-m", "64 MiB", NULL};
static char out[OUTPUT_MAX], err[OUTPUT_MAX]; /* of the last run */

struct world {
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_client *client;
	uint32_t ids[2][TOKENS];
};

/* ---- a daemon with two sequences that share a prefix ------------------------------------------ */

static struct kvr_model *add_model(struct world *world)
{
	struct kvr_model *model;

	assert_int_equal(kvr_model_register(world->client, &world->config, &model), 0);
	return model;
}

static struct kvr_sequence *open_sequence(
	struct world *world, uint32_t which, uint32_t *ret_matched)
{
	struct kvr_sequence *sequence;

	assert_int_equal(
		kvr_open(add_model(world), world->ids[which], TOKENS, &sequence, ret_matched), 0);
	return sequence;
}

static void start(struct world *world)
{
	uint32_t matched, sealed;

	world->config = harness_model();
	harness_tokens(1, world->ids[0], TOKENS);
	harness_tokens(2, world->ids[1], TOKENS);
	memcpy(world->ids[1], world->ids[0], BRANCH * 128 * sizeof(uint32_t));
	harness_start_stored(&world->daemon, arguments);
	world->client = harness_connect(&world->daemon, REGION);
	for (uint32_t i = 0; i < 2; i++) {
		struct kvr_sequence *sequence = open_sequence(world, i, &matched);

		assert_int_equal(matched, i * BRANCH * 128);
		assert_int_equal(harness_append(world->client, sequence, &world->config,
					 world->ids[i], matched, TOKENS - matched, 0),
			0);
		assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
		assert_int_equal(sealed, TOKENS);
		assert_int_equal(kvr_close(sequence, true), 0);
	}
}

static void end_daemon(struct world *world)
{
	harness_kill(&world->daemon);
	kvr_disconnect(world->client);
}

static void start_again(struct world *world)
{
	harness_restart(&world->daemon, arguments);
	world->client = harness_connect(&world->daemon, REGION);
}

static void restart(struct world *world)
{
	end_daemon(world);
	start_again(world);
}

static void stop(struct world *world)
{
	kvr_disconnect(world->client);
	harness_stop(&world->daemon);
}

static void check_content(struct world *world)
{
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t matched;
		struct kvr_sequence *sequence = open_sequence(world, i, &matched);

		assert_int_equal(matched, TOKENS);
		harness_check_fetch(
			world->client, sequence, &world->config, world->ids[i], 0, TOKENS, 0);
		assert_int_equal(kvr_close(sequence, true), 0);
	}
}

/* ---- the tool --------------------------------------------------------------------------------- */

static void read_back(const struct world *world, const char *name, char *into)
{
	char path[128];
	FILE *file;
	size_t length;

	snprintf(path, sizeof(path), "%s/%s", world->daemon.dir, name);
	file = fopen(path, "r");
	assert_non_null(file);
	length = fread(into, 1, OUTPUT_MAX - 1, file);
	into[length] = 0;
	assert_int_equal(fclose(file), 0);
}

/* Runs a line of the shell where $K is the tool and $S the store. Returns the exit code. */
static int run(const struct world *world, const char *command)
{
	char line[2048], tool[600];
	int status;

	harness_program("kvrecall", tool, sizeof(tool));
	snprintf(line, sizeof(line), "cd %s; K='%s'; S=%s; { %s; } >out 2>err", world->daemon.dir,
		tool, world->daemon.store, command);
	status = system(line); /* NOLINT(cert-env33-c) */
	assert_true(WIFEXITED(status));
	read_back(world, "out", out);
	read_back(world, "err", err);
	return WEXITSTATUS(status);
}

static void assert_run(const struct world *world, const char *command, int code, const char *says)
{
	int got = run(world, command);

	if (got != code)
		fail_msg("%s: %d, not %d: %s%s", command, got, code, out, err);
	if (!strstr(out, says) && !strstr(err, says))
		fail_msg("%s: '%s%s' lacks '%s'", command, out, err, says);
}

/* ---- verify and rebuild ----------------------------------------------------------------------- */

/* Flips a bit in each of 8 pages of the first slab, behind header and head. */
static void flip(const struct world *world)
{
	char path[128];
	uint8_t byte;
	int fd;

	snprintf(path, sizeof(path), "%s/slabs.kvr", world->daemon.store);
	fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	for (off_t at = 9000; at < 9000 + 8 * 4096; at += 4096) {
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= 4;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	close(fd);
}

static void test_verify(void **state)
{
	struct world world;

	(void)state;
	start(&world);
	assert_run(&world, "$K verify --store $S", 4, "in use by process");
	assert_string_equal(out, "");
	assert_run(&world, "$K verify --store $S --json", 4,
		"{\"error\":{\"code\":0,\"name\":\"EBUSY\"");
	end_daemon(&world);
	assert_run(&world, "$K verify --store $S", 0, "sound");
	assert_string_equal(err, "");
	assert_run(
		&world, "$K --json verify --store $S", 0, "\"sound\":true,\"segments_count\":11,");
	assert_run(&world, "cd $S && $K verify --store .", 0, "sound");
	flip(&world);
	assert_run(&world, "$K verify --store $S", 1, "damaged segments  1\n");
	assert_true(strstr(err, "kvrecalld: segment ") != NULL);
	assert_run(&world, "$K verify --store $S --json", 1, "\"sound\":false");
	assert_true(strstr(out, "\"damage\":[\"segment ") != NULL);
	assert_string_equal(err, "");
	flip(&world);
	assert_run(&world, "$K verify --store $S", 0, "sound");
	start_again(&world);
	check_content(&world);
	stop(&world);
}

static void test_refusals(void **state)
{
	struct world world;

	(void)state;
	start(&world);
	assert_run(&world, "$K verify --store /nowhere", 4, "/nowhere/slabs.kvr: No such file");
	assert_run(&world, "$K rebuild --store $S/catalog", 4, "name the directory of a store");
	assert_run(&world, "$K verify --config /nowhere.conf", 2, "/nowhere.conf");
	assert_run(&world, "$K verify now", 2, "unexpected argument");
	assert_run(&world, "$K rebuild --help", 0, "4 cannot be done");
	assert_run(&world, "cp $K tool; PATH=/nowhere ./tool verify --store $S", 4,
		"cannot run kvrecalld");
	stop(&world);
}

static struct kvr_catalog *open_catalog(const struct world *world, const char *name)
{
	char path[128];
	const struct kvr_catalog_config config = {.dir = path, .bytes = 256u << 20};
	struct kvr_catalog_meta meta = {0};
	struct kvr_catalog *catalog;

	snprintf(path, sizeof(path), "%s/%s", world->daemon.store, name);
	assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), 0);
	return catalog;
}

static void test_rebuild(void **state)
{
	struct kvr_catalog *before, *after;
	struct world world;
	uint64_t differing = 0;
	char first[160] = "";

	(void)state;
	start(&world);
	end_daemon(&world);
	assert_run(&world, "cp -r $S/catalog $S/before && rm -r $S/catalog", 0, "");
	assert_run(&world, "$K verify --store $S", 1, "kvrecall rebuild");
	assert_run(&world, "$K rebuild --store $S --json", 0,
		"\"complete\":true,\"segments_count\":11,");
	assert_run(&world, "$K verify --store $S", 0, "sound");
	before = open_catalog(&world, "before");
	after = open_catalog(&world, "catalog");
	assert_int_equal(kvr_catalog_compare(before, after, &differing, first, sizeof(first)), 0);
	if (differing > 0)
		fail_msg("%llu rows differ; the first: %s", (unsigned long long)differing, first);
	kvr_catalog_close(before);
	kvr_catalog_close(after);
	assert_run(&world, "rm -r $S/before", 0, "");
	start_again(&world);
	check_content(&world);
	end_daemon(&world);
	/* What is damaged is left out, with what follows it: here, everything. */
	flip(&world);
	assert_run(&world, "$K rebuild --store $S", 1, "segments          0\n");
	assert_run(&world, "$K verify --store $S", 0, "sound");
	start_again(&world);
	assert_int_equal((int)harness_metric(world.client, "store.segments_count"), 0);
	stop(&world);
}

/* ---- lists ------------------------------------------------------------------------------------ */

static void list(struct world *world, struct kvr_segment_info segments[ALL])
{
	assert_int_equal(kvr_segment_list(world->client, 0, 0, segments, ALL), ALL);
	assert_int_equal(kvr_segment_list(world->client, 0, ALL, segments, 1), 0);
}

/* Each behind its parent, and where its parent ends. */
static void check_order(const struct kvr_segment_info segments[ALL])
{
	static const uint8_t none[32];

	for (uint32_t i = 0; i < ALL; i++) {
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

static void check_model(struct world *world, const struct kvr_segment_info segments[ALL])
{
	struct kvr_model_info models[2];
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < ALL; i++)
		bytes += segments[i].stored_bytes;
	assert_int_equal(kvr_model_list(world->client, 0, models, 2), 1);
	assert_string_equal(models[0].name, world->config.name);
	assert_memory_equal(models[0].digest, world->config.digest, 32);
	assert_int_equal(models[0].segment_tokens, world->config.segment_tokens);
	assert_int_equal(models[0].segment_count, ALL);
	assert_int_equal(models[0].stored_bytes, bytes);
	assert_int_equal(models[0].model, segments[0].model);
}

static void test_lists(void **state)
{
	struct kvr_segment_info before[ALL], after[ALL];
	struct kvr_dropped dropped;
	struct world world;

	(void)state;
	start(&world);
	list(&world, before);
	check_order(before);
	check_model(&world, before);
	for (uint32_t i = 0; i < ALL; i++) {
		assert_true(before[i].durable);
		assert_false(before[i].quarantined);
		assert_int_equal(before[i].resident_bytes, before[i].stored_bytes);
	}
	restart(&world);
	list(&world, after);
	check_order(after);
	check_model(&world, after);
	for (uint32_t i = 0; i < ALL; i++) {
		assert_memory_equal(after[i].hash, before[i].hash, 32);
		assert_true(after[i].durable);
		assert_int_equal(after[i].resident_bytes, 0);
	}
	assert_run(&world, "$K --socket attach.sock segments", 0, "disk ");
	assert_run(&world, "$K --socket attach.sock models --json", 0, "\"segments\":11,");
	check_content(&world); /* a fetch reads past the cache, or fills it */
	/* Dropped by name, with nothing registered or in memory. */
	restart(&world);
	assert_int_equal(kvr_drop_segment(world.client, after[BRANCH].hash, &dropped), 0);
	assert_int_equal(dropped.segment_count, SEGMENTS - BRANCH);
	restart(&world);
	assert_int_equal(kvr_drop_model(world.client, 1, &dropped), -ENODEV);
	assert_int_equal(kvr_segment_list(world.client, 0, 0, after, ALL), SEGMENTS);
	assert_int_equal(kvr_drop_model(world.client, after[0].model, &dropped), 0);
	assert_int_equal(dropped.segment_count, SEGMENTS);
	restart(&world);
	assert_int_equal(kvr_segment_list(world.client, 0, 0, after, ALL), 0);
	stop(&world);
}

static void test_quarantine(void **state)
{
	struct kvr_segment_info segments[ALL];
	struct kvr_sequence *sequence;
	struct world world;
	uint32_t matched, bad = 0;

	(void)state;
	start(&world);
	end_daemon(&world);
	flip(&world);
	start_again(&world);
	sequence = open_sequence(&world, 0, &matched);
	if (matched == TOKENS) /* the summary was whole */
		assert_int_equal(harness_try_fetch(world.client, sequence, &world.config,
					 world.ids[0], 0, TOKENS, 0),
			-EIO);
	assert_int_equal(kvr_close(sequence, true), 0);
	sequence = open_sequence(&world, 0, &matched);
	assert_int_equal(matched, 0);
	assert_int_equal(kvr_close(sequence, true), 0);
	list(&world, segments);
	for (uint32_t i = 0; i < ALL; i++)
		bad += segments[i].quarantined;
	assert_int_equal(bad, 1);
	assert_true(segments[0].quarantined);
	assert_run(&world, "$K --socket attach.sock segments", 0, "quarantined");
	stop(&world);
}

/* ---- pins ------------------------------------------------------------------------------------- */

static void check_pins(struct world *world, uint32_t count)
{
	struct kvr_segment_info segments[ALL];
	uint32_t pins = 0;

	list(world, segments);
	for (uint32_t i = 0; i < ALL; i++)
		pins += segments[i].pins;
	assert_int_equal(pins, count);
}

/* Pins or unpins the i-th of the list and all before it. */
static uint32_t pin(struct world *world, uint32_t i, bool unpin)
{
	struct kvr_segment_info segments[ALL];
	uint32_t changed;

	list(world, segments);
	assert_int_equal(kvr_pin_segment(world->client, segments[i].hash, unpin, &changed), 0);
	return changed;
}

static void test_pin_on_disk(void **state)
{
	struct kvr_dropped dropped;
	struct kvr_segment_info segments[ALL];
	struct kvr_sequence *sequence;
	struct world world;
	uint32_t matched;

	(void)state;
	start(&world);
	restart(&world);
	assert_int_equal(pin(&world, 2, false), 3); /* on the disk alone */
	assert_int_equal(pin(&world, 2, false), 0);
	check_pins(&world, 3);
	restart(&world);
	check_pins(&world, 3);
	sequence = open_sequence(&world, 0, &matched); /* loads them */
	assert_int_equal(matched, TOKENS);
	assert_int_equal(kvr_close(sequence, true), 0);
	check_pins(&world, 3);
	list(&world, segments);
	assert_int_equal(kvr_drop_model(world.client, segments[0].model, &dropped), 0);
	assert_int_equal(dropped.segment_count, ALL - 3);
	assert_int_equal(dropped.kept_count, 3);
	assert_int_equal(kvr_pin_segment(world.client, segments[2].hash, true, &matched), 0);
	assert_int_equal(matched, 3);
	assert_int_equal(kvr_pin_segment(world.client, segments[3].hash, true, &matched), -ENOENT);
	restart(&world);
	assert_int_equal(kvr_segment_list(world.client, 0, 0, segments, ALL), 3);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(segments[i].pins, 0);
	assert_int_equal(kvr_drop_segment(world.client, segments[0].hash, &dropped), 0);
	assert_int_equal(dropped.segment_count, 3);
	stop(&world);
}

static void test_pin_in_memory(void **state)
{
	struct kvr_sequence *sequence;
	struct world world;
	uint32_t matched, changed;

	(void)state;
	start(&world);
	sequence = open_sequence(&world, 1, &matched);
	assert_int_equal(kvr_pin(sequence, false, &changed), 0);
	assert_int_equal(changed, SEGMENTS);
	restart(&world);
	check_pins(&world, SEGMENTS);
	sequence = open_sequence(&world, 1, &matched);
	assert_int_equal(matched, TOKENS);
	assert_int_equal(kvr_pin(sequence, true, &changed), 0);
	assert_int_equal(changed, SEGMENTS);
	check_pins(&world, 0);
	restart(&world);
	check_pins(&world, 0);
	/* Half of it in memory: the shared part; a pin through the other one's end. */
	sequence = open_sequence(&world, 0, &matched);
	assert_int_equal(kvr_close(sequence, true), 0);
	assert_int_equal(pin(&world, ALL - 1, false), SEGMENTS);
	check_pins(&world, SEGMENTS);
	restart(&world);
	check_pins(&world, SEGMENTS);
	stop(&world);
}

/* Pinned before it is durable: the store is told when it is. */
static void test_pin_before_durable(void **state)
{
	static const uint32_t count = 512;
	struct kvr_segment_info segments[ALL + 4];
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	struct world world;
	uint32_t ids[512], matched, changed, sealed, pins = 0;
	int listed;

	(void)state;
	start(&world);
	harness_tokens(9, ids, count);
	model = add_model(&world);
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
	restart(&world);
	listed = kvr_segment_list(world.client, 0, 0, segments, ALL + 4);
	assert_int_equal(listed, ALL + 4);
	for (int i = 0; i < listed; i++)
		pins += segments[i].pins;
	assert_true(pins >= 1);
	stop(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_verify),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_rebuild),
		cmocka_unit_test(test_lists),
		cmocka_unit_test(test_quarantine),
		cmocka_unit_test(test_pin_on_disk),
		cmocka_unit_test(test_pin_in_memory),
		cmocka_unit_test(test_pin_before_durable),
	};

	return cmocka_run_group_tests_name("tool and store", tests, NULL, NULL);
}

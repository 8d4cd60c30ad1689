/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: engines in trouble while the daemon reads from disk for them leave nothing behind and hold nobody up: killed in the middle of
 * a cold recall or fetch, many sessions with all their credits in flight, requests larger than all read memory.
 * Method: a daemon with little host memory and as little read memory as may be, so that nearly every cluster is read and a
 * buffer that were lost would soon be missed; client processes, killed or waited for; a good client that checks every byte. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"

#define TOKENS    2048u
#define LAYERS    18u
#define REGION    (80u << 20)
#define SEQUENCES 2u
#define CROWD     (PROCESS_SLOW == 1 ? 4u : 2u) /* processes */
#define TOGETHER  (PROCESS_SLOW == 1 ? 8u : 3u) /* clients of each */
#define SETTLE_MS 20000u
#define RUN_MS    60000u

/* 4 MiB of keys and values per layer, 72 MiB per sequence: more than there is read memory. */
static struct kvr_model_config large_model(void)
{
	struct kvr_model_config config = harness_model();

	config.layers = LAYERS;
	config.query_heads = config.kv_heads = 4;
	config.key_dim = config.value_dim = 64;
	config.type = KVR_F32;
	config.segment_tokens = 512;
	config.cluster_tokens = 16;
	return config;
}

struct engine {
	struct kvr_client *client;
	struct kvr_model_config config;
	struct kvr_model *model;
	struct kvr_sequence *sequences[SEQUENCES];
	uint32_t ids[SEQUENCES][TOKENS];
};

static void attach(struct engine *engine, const char *socket)
{
	const struct kvr_client_config config = {
		.attach_path = socket, .region_bytes = REGION, .timeout_ms = RUN_MS};

	assert_int_equal(kvr_connect(&config, &engine->client), 0);
	engine->config = large_model();
	assert_int_equal(kvr_model_register(engine->client, &engine->config, &engine->model), 0);
	for (uint32_t s = 0; s < SEQUENCES; s++)
		harness_tokens(900 + s, engine->ids[s], TOKENS);
}

static void open_all(struct engine *engine)
{
	uint32_t matched = 0;

	for (uint32_t s = 0; s < SEQUENCES; s++) {
		assert_int_equal(kvr_open(engine->model, engine->ids[s], TOKENS,
					 &engine->sequences[s], &matched),
			0);
		assert_int_equal(matched, TOKENS);
	}
}

/* With a budget of all tokens a recall stages a whole layer. */
static void check_recall(struct engine *engine, uint32_t s, uint32_t layer, uint32_t budget)
{
	const struct kvr_recall recall = {
		.budget_tokens = budget, .row_capacity = budget + 16, .sinks = true};
	const int rows = harness_check_recall(engine->client, engine->sequences[s], &engine->config,
		engine->ids[s], layer, recall, 0, NULL);

	assert_true(rows >= (int)(budget * engine->config.kv_heads));
}

static void check_fetch(struct engine *engine, uint32_t s)
{
	harness_check_fetch(engine->client, engine->sequences[s], &engine->config, engine->ids[s],
		0, TOKENS, 0);
}

/* ---- parts ----------------------------------------------------------------------------------- */

static int play_recall(const char *socket, uint32_t number)
{
	static struct engine engine;

	attach(&engine, socket);
	open_all(&engine);
	for (uint32_t round = number;; round++)
		check_recall(&engine, round % SEQUENCES, round % LAYERS, TOKENS - 16);
	return 0;
}

static int play_fetch(const char *socket, uint32_t number)
{
	static struct engine engine;

	attach(&engine, socket);
	open_all(&engine);
	for (uint32_t round = number;; round++)
		check_fetch(&engine, round % SEQUENCES);
	return 0;
}

/* Several clients, each with all its credits in recalls. */
static int play_crowd(const char *socket, uint32_t number)
{
	static struct engine engines[TOGETHER];
	static struct kvr_recall_item items[TOGETHER][64];
	static struct kvr_recall recalls[TOGETHER][64];
	const uint32_t budget = 256, capacity = budget + 16;
	uint64_t tickets[TOGETHER][64];

	for (uint32_t i = 0; i < TOGETHER; i++) {
		attach(&engines[i], socket);
		open_all(&engines[i]);
	}
	for (uint32_t i = 0; i < TOGETHER * 64; i++) {
		struct engine *engine = &engines[i / 64];
		struct kvr_recall_item *item = &items[i / 64][i % 64];
		struct kvr_recall *recall = &recalls[i / 64][i % 64];
		static const float query[4 * 64] = {1.0f};
		const size_t rows = (size_t)4 * capacity, bytes = rows * 512 + 4096;
		uint8_t *out = (uint8_t *)kvr_region(engine->client, NULL) + i % 64 * bytes;

		*item = (struct kvr_recall_item){.sequence = engine->sequences[i % SEQUENCES],
			.layer = i % LAYERS,
			.query = query,
			.keys = out,
			.values = out + rows * 256,
			.rows = (struct kvr_rows *)(void *)(out + rows * 512)};
		*recall = (struct kvr_recall){.items = item,
			.item_count = 1,
			.query_type = KVR_F32,
			.budget_tokens = budget,
			.row_capacity = capacity,
			.sinks = true,
			.background = i % 3 == 0};
		assert_int_equal(
			kvr_recall_submit(engine->client, recall, &tickets[i / 64][i % 64]), 0);
	}
	for (uint32_t i = 0; i < TOGETHER * 64; i++) {
		struct kvr_completion completion;

		assert_int_equal(
			kvr_wait(engines[i / 64].client, tickets[i / 64][i % 64], &completion), 0);
		assert_int_equal(completion.status, 0);
	}
	for (uint32_t i = 0; i < TOGETHER; i++) {
		check_recall(&engines[i], (number + i) % SEQUENCES, i % LAYERS, 100);
		kvr_disconnect(engines[i].client);
	}
	return 0;
}

/* Whole layers and whole sequences, several times. */
static int play_large(const char *socket, uint32_t number)
{
	static struct engine engine;

	attach(&engine, socket);
	open_all(&engine);
	for (uint32_t i = number; i < number + (PROCESS_SLOW == 1 ? SEQUENCES : 1); i++) {
		check_recall(&engine, i % SEQUENCES, i % LAYERS, TOKENS - 16);
		check_fetch(&engine, i % SEQUENCES);
	}
	kvr_disconnect(engine.client);
	return 0;
}

static const struct process_part parts[] = {{"recall", play_recall}, {"fetch", play_fetch},
	{"crowd", play_crowd}, {"large", play_large}, {NULL, NULL}};

/* ---- the daemon ------------------------------------------------------------------------------ */

static struct harness_daemon harness;
static struct engine good;
static char path[] = "/tmp/kvrecall-test-conf-XXXXXX";

static int start(void **state)
{
	const char *const arguments[] = {"-m", "24 MiB", "-c", path, NULL};
	const char *const filling[] = {"-m", "256 MiB", NULL};
	const int fd = mkstemp(path);
	uint32_t sealed;

	(void)state;
	assert_true(fd >= 0);
	assert_true(dprintf(fd, "store: { read_buffer_bytes = \"64 MiB\"; };\n") > 0);
	close(fd);
	harness_start_sized(&harness, "512 MiB", filling);
	attach(&good, harness.socket);
	for (uint32_t s = 0; s < SEQUENCES; s++) {
		assert_int_equal(
			kvr_open(good.model, NULL, 0, &good.sequences[s], &(uint32_t){0}), 0);
		for (uint32_t at = 0; at < TOKENS; at += 512)
			assert_int_equal(harness_append(good.client, good.sequences[s],
						 &good.config, good.ids[s], at, 512, 0),
				0);
		assert_int_equal(kvr_sync(good.sequences[s], true, &sealed), 0);
		assert_int_equal(sealed, TOKENS);
	}
	kvr_disconnect(good.client);
	harness_kill(&harness);
	harness_restart(&harness, arguments);
	attach(&good, harness.socket);
	open_all(&good);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	kvr_disconnect(good.client);
	harness_stop(&harness);
	unlink(path);
	return 0;
}

/* Only the good client and its sequences are there, and it is served. */
static int settle(void **state)
{
	double sessions = 0, sequences = 0;

	(void)state;
	for (uint32_t ms = 0; ms < SETTLE_MS; ms += 5) {
		sessions = harness_metric(good.client, "session.attached_count");
		sequences = harness_metric(good.client, "sequence.open_count");
		if (sessions == 1 && sequences == SEQUENCES)
			break;
		process_sleep_us(5000);
	}
	assert_int_equal((int)sessions, 1);
	assert_int_equal((int)sequences, (int)SEQUENCES);
	assert_int_equal((int)harness_metric(good.client, "session.region_bytes"), (int)REGION);
	for (uint32_t s = 0; s < SEQUENCES; s++) {
		check_recall(&good, s, s % 2, TOKENS - 16);
		check_fetch(&good, s);
	}
	assert_true(harness_metric(good.client, "store.errors_count") == 0);
	assert_true(harness_metric(good.client, "recall.missing_tokens_count") == 0);
	return 0;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_killed(void **state)
{
	static const char *const names[] = {"recall", "fetch"};
	const uint32_t rounds = PROCESS_SLOW == 1 ? 16 : 3;
	const double before = harness_metric(good.client, "nvme.read_bytes");

	(void)state;
	for (uint32_t round = 0; round < rounds; round++) {
		pid_t pids[2];

		for (uint32_t i = 0; i < 2; i++)
			pids[i] = process_start(names[(round >> i) % 2], harness.socket, i);
		process_sleep_us(process_random(5000, 150000) * (PROCESS_SLOW == 1 ? 1 : 4));
		process_kill(pids[0]);
		process_kill(pids[1]);
		check_recall(&good, round % SEQUENCES, round % LAYERS, 300);
	}
	assert_true(harness_metric(good.client, "nvme.read_bytes") >
		    before + (PROCESS_SLOW == 1 ? 64 << 20 : 0));
}

static void test_crowd(void **state)
{
	pid_t pids[CROWD];

	(void)state;
	for (uint32_t i = 0; i < CROWD; i++)
		pids[i] = process_start("crowd", harness.socket, i);
	for (uint32_t i = 0; i < CROWD; i++)
		assert_int_equal(process_wait(pids[i], RUN_MS), 0);
}

static void test_larger_than_read_memory(void **state)
{
	pid_t pids[2];

	(void)state;
	for (uint32_t i = 0; i < 2; i++)
		pids[i] = process_start("large", harness.socket, i);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(process_wait(pids[i], RUN_MS), 0);
}

/* It ends well with reads of all kinds under way. */
static void test_ended_meanwhile(void **state)
{
	const char *const arguments[] = {"-m", "24 MiB", "-c", path, NULL};

	(void)state;
	for (uint32_t round = 0; round < (PROCESS_SLOW == 1 ? 3 : 1); round++) {
		pid_t pids[3];

		pids[0] = process_start("recall", harness.socket, 0);
		pids[1] = process_start("fetch", harness.socket, 1);
		pids[2] = process_start("crowd", harness.socket, 2);
		process_sleep_us(process_random(50000, 300000) * (PROCESS_SLOW == 1 ? 1 : 3));
		harness_end(&harness);
		for (uint32_t i = 0; i < 3; i++)
			process_kill(pids[i]);
		kvr_disconnect(good.client);
		harness_restart(&harness, arguments);
		attach(&good, harness.socket);
		open_all(&good);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_killed, settle),
		cmocka_unit_test_teardown(test_crowd, settle),
		cmocka_unit_test_teardown(test_larger_than_read_memory, settle),
		cmocka_unit_test_teardown(test_ended_meanwhile, settle),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	return cmocka_run_group_tests_name("daemon cold", tests, start, stop);
}

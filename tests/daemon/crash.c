/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: kill -9 on either side, at any moment. Of a client: nobody else notices, and nothing of it
 * stays. Of the daemon: clients get their error within the deadline, attach again by themselves, and go
 * on with right bytes.
 * Method: client processes that append, recall and fetch without end, killed at random moments; a
 * daemon that is killed and started again under the load of several of them; beside them a good client
 * that checks its bytes and the daemon's counts. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "tests/daemon/process_util.h"
#include "tests/daemon/witness_util.h"

#define REGION          (4u << 20)
#define TOKENS          400u
#define PART_TIMEOUT_MS 20000u
#define CONNECT_TRIES   1000u
#define SETTLE_MS       20000u

/* ---- the parts of clients -------------------------------------------------------------------- */

struct player {
	struct kvr_client *client;
	struct kvr_model_config config;
	struct kvr_model *model;
	uint32_t ids[TOKENS];
};

static void player_attach(struct player *player, const char *socket, uint32_t timeout_ms)
{
	const struct kvr_client_config config = {.attach_path = socket,
		.region_bytes = REGION,
		.timeout_ms = timeout_ms,
		.name = "player"};
	uint32_t tries = 0;
	int rc;

	/* The daemon may be killed at this moment, too: kvr_connect does not wait for the next. */
	while ((rc = kvr_connect(&config, &player->client)) != 0 && tries++ < CONNECT_TRIES)
		process_sleep_us(10000);
	if (rc != 0)
		fail_msg("kvr_connect: %s", strerror(-rc));
	player->config = harness_model();
	player->config.digest[0] = 50;
	do {
		rc = kvr_model_register(player->client, &player->config, &player->model);
	} while (rc == -ECONNRESET);
	assert_int_equal(rc, 0);
}

static atomic_bool finish;

static void on_term(int number)
{
	(void)number;
	finish = true;
}

/* Opens, appends in parts, seals now and then, closes; for ever. Half of it is the same in all. */
static int play_append(const char *socket, uint32_t number)
{
	static struct player player;
	struct kvr_sequence *sequence;

	player_attach(&player, socket, 60000);
	for (uint32_t round = 0; !finish; round++) {
		uint32_t at = 0;

		harness_tokens(round % 2 ? round : number * 1000 + round, player.ids, TOKENS);
		assert_int_equal(kvr_open(player.model, player.ids, TOKENS, &sequence, &at), 0);
		while (at < TOKENS) {
			uint32_t part = process_random(1, 90);

			part = part < TOKENS - at ? part : TOKENS - at;
			assert_int_equal(harness_append(player.client, sequence, &player.config,
						 player.ids, at, part, 0),
				0);
			at += part;
		}
		if (round % 3 == 0)
			assert_int_equal(kvr_sync(sequence, round % 2, NULL), 0);
		assert_int_equal(kvr_close(sequence, round % 5 == 0), 0);
	}
	return 0;
}

/* Recalls and fetches from a sequence that it shares with all others of this kind; for ever. */
static int play_recall(const char *socket, uint32_t number)
{
	static struct player player;
	struct kvr_sequence *sequence;
	uint32_t at = 0;

	(void)number;
	player_attach(&player, socket, 60000);
	harness_tokens(11, player.ids, TOKENS);
	assert_int_equal(kvr_open(player.model, player.ids, TOKENS, &sequence, &at), 0);
	if (at < TOKENS)
		assert_int_equal(harness_append(player.client, sequence, &player.config, player.ids,
					 at, TOKENS - at, 0),
			0);
	while (!finish) {
		const struct kvr_recall recall = {
			.budget_tokens = 64, .row_capacity = 64 + TOKENS, .tail = true};

		assert_true(harness_check_recall(player.client, sequence, &player.config,
				    player.ids, process_random(0, 1), recall, 0, NULL) > 0);
		harness_check_fetch(
			player.client, sequence, &player.config, player.ids, 0, TOKENS, 0);
	}
	return 0;
}

/* One turn of work: 0, or the error of the call that failed. */
static int work_once(struct player *player, uint32_t seed, struct kvr_sequence **ret_sequence)
{
	uint32_t at = 0;
	int rc;

	*ret_sequence = NULL;
	harness_tokens(seed, player->ids, TOKENS);
	rc = kvr_open(player->model, player->ids, TOKENS, ret_sequence, &at);
	if (rc == 0 && at < TOKENS)
		rc = harness_append(player->client, *ret_sequence, &player->config, player->ids, at,
			TOKENS - at, 0);
	if (rc == 0)
		rc = kvr_sync(*ret_sequence, true, NULL);
	if (rc == 0) {
		const struct kvr_recall recall = {
			.budget_tokens = 64, .row_capacity = 64 + TOKENS, .tail = true};

		rc = harness_check_recall(player->client, *ret_sequence, &player->config,
			player->ids, 0, recall, 0, NULL);
	}
	return rc < 0 ? rc : 0;
}

/* What is promised after the daemon died under a call: errors at once, old sequences stale, the next
 * call attaches again, the region where it was. */
static void survive(struct player *player, struct kvr_sequence *old)
{
	const void *region = kvr_region(player->client, NULL);
	const uint32_t generation = kvr_generation(player->client);
	int rc;

	if (old) {
		assert_int_equal(kvr_sync(old, false, NULL), -ESTALE);
		assert_true(kvr_error(player->client)->remedy[0] != 0);
	}
	do {
		rc = kvr_ping(player->client);
		assert_true(rc == 0 || rc == -ECONNRESET);
	} while (rc != 0);
	assert_true(kvr_generation(player->client) > generation);
	assert_ptr_equal(kvr_region(player->client, NULL), region);
	if (old) {
		assert_int_equal(kvr_sync(old, false, NULL), -ESTALE);
		kvr_close(old, true);
	}
}

/* Works until SIGTERM, through every death of the daemon. */
static int play_survivor(const char *socket, uint32_t number)
{
	static struct player player;
	struct kvr_sequence *sequence;
	uint32_t seed = number * 100000;

	signal(SIGTERM, on_term);
	player_attach(&player, socket, PART_TIMEOUT_MS);
	while (!finish || seed % 100000 == 0) {
		const uint64_t before = kvr_clock_ns();
		int rc = work_once(&player, seed++, &sequence);

		assert_true(kvr_clock_ns() - before < 4ull * PART_TIMEOUT_MS * 1000000);
		if (rc == 0)
			rc = harness_try_fetch(
				player.client, sequence, &player.config, player.ids, 0, TOKENS, 0);
		if (rc == 0) {
			rc = kvr_close(sequence, seed % 2);
			sequence = NULL;
		}
		if (rc == 0)
			continue;
		if (rc != -ECONNRESET && rc != -ESTALE)
			fail_msg("%s: %s", strerror(-rc), kvr_error(player.client)->subject);
		survive(&player, sequence);
	}
	/* Once more, undisturbed. */
	assert_int_equal(work_once(&player, ++seed, &sequence), 0);
	harness_check_fetch(player.client, sequence, &player.config, player.ids, 0, TOKENS, 0);
	kvr_disconnect(player.client);
	return 0;
}

static const struct process_part parts[] = {{"append", play_append}, {"recall", play_recall},
	{"survivor", play_survivor}, {NULL, NULL}};

/* ---- counts ---------------------------------------------------------------------------------- */

struct counts {
	double sessions, sequences, region_bytes, held_bytes;
};

static struct counts take_counts(void)
{
	return (struct counts){
		.sessions = harness_metric(witness.client, "session.attached_count"),
		.sequences = harness_metric(witness.client, "sequence.open_count"),
		.region_bytes = harness_metric(witness.client, "session.region_bytes"),
		.held_bytes = harness_metric(witness.client, "tenant.held_bytes"),
	};
}

/* Drops every segment that is not the witness's. */
static void drop_others(void)
{
	struct kvr_model_info models[64];
	struct kvr_dropped dropped;
	int count = kvr_model_list(witness.client, 0, models, 64);

	assert_true(count >= 1);
	for (int i = 0; i < count; i++) {
		if (models[i].digest[0] == 50)
			assert_int_equal(
				kvr_drop_model(witness.client, models[i].model, &dropped), 0);
	}
}

/* Waits until everything of others is gone. */
static void assert_counts(struct counts before)
{
	struct counts now = {0};

	for (uint32_t ms = 0; ms < SETTLE_MS; ms += 20) {
		drop_others();
		now = take_counts();
		if (now.sessions == before.sessions && now.sequences == before.sequences &&
			now.region_bytes == before.region_bytes &&
			now.held_bytes == before.held_bytes)
			return;
		process_sleep_us(20000);
	}
	fail_msg("left behind: sessions %.0f, sequences %.0f, region bytes %.0f, held bytes %.0f",
		now.sessions - before.sessions, now.sequences - before.sequences,
		now.region_bytes - before.region_bytes, now.held_bytes - before.held_bytes);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Pairs of clients of one kind or both, killed between attaching and deep in their work. */
static void test_client_killed(void **state)
{
	static const char *const names[] = {"append", "recall"};
	const uint32_t rounds = PROCESS_SLOW == 1 ? 60 : 12;
	const struct counts before = take_counts();

	(void)state;
	for (uint32_t round = 0; round < rounds; round++) {
		const uint32_t us = process_random(1000, 60000) * (round % 4 == 0 ? 5 : 1);
		pid_t pids[2];

		for (uint32_t i = 0; i < 2; i++)
			pids[i] = process_start(
				names[(round >> i) % 2], witness.daemon.socket, round);
		process_sleep_us(us * (PROCESS_SLOW == 1 ? 1 : 4));
		process_kill(pids[1]);
		process_kill(pids[0]);
		if (round % 4 == 0)
			harness_check_fetch(witness.client, witness.sequence, &witness.config,
				witness.ids, 0, WITNESS_TOKENS, 0);
	}
	assert_counts(before);
}

static void await_attached(const struct harness_daemon *daemon, uint32_t count)
{
	struct kvr_client *client = harness_connect(daemon, 0);
	uint32_t ms = 0;

	while (harness_metric(client, "session.attached_count") < count + 1) {
		assert_true(ms++ < SETTLE_MS);
		process_sleep_us(1000);
	}
	kvr_disconnect(client);
}

static void test_daemon_killed(void **state)
{
	static const char *const arguments[] = {"-m", "64MiB", NULL};
	struct harness_daemon daemon;
	pid_t pids[3];

	(void)state;
	harness_start(&daemon, arguments);
	for (uint32_t i = 0; i < 3; i++)
		pids[i] = process_start("survivor", daemon.socket, i + 1);
	for (uint32_t round = 0; round < (PROCESS_SLOW == 1 ? 8 : 3); round++) {
		await_attached(&daemon, 3);
		process_sleep_us(process_random(0, 60000) * (PROCESS_SLOW == 1 ? 1 : 5));
		harness_kill(&daemon);
		process_sleep_us(process_random(0, 50000));
		harness_restart(&daemon, arguments); /* over the sockets that it left */
	}
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(kill(pids[i], SIGTERM), 0);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(process_wait(pids[i], 60000), 0);
	harness_stop(&daemon);
}

/* A call in flight fails as soon as the daemon is dead, not at its deadline; with no daemon there,
 * the next one fails at its deadline and not later. */
static void test_no_daemon(void **state)
{
	const struct kvr_client_config config = {.region_bytes = 1 << 20, .timeout_ms = 300};
	struct kvr_client_config here = config;
	struct harness_daemon daemon;
	struct kvr_client *client;
	uint64_t start;
	int rc;

	(void)state;
	harness_start(&daemon, NULL);
	here.attach_path = daemon.socket;
	assert_int_equal(kvr_connect(&here, &client), 0);
	harness_kill(&daemon);
	start = kvr_clock_ns();
	rc = kvr_ping(client);
	assert_true(rc == -ENOTCONN || rc == -ETIMEDOUT || rc == -ECONNRESET);
	assert_true(kvr_clock_ns() - start < 5000000000u);
	assert_true(kvr_error(client)->subject[0] != 0);
	harness_restart(&daemon, NULL);
	here.timeout_ms = 0;
	for (int i = 0; i < 20 && (rc = kvr_ping(client)) != 0; i++)
		process_sleep_us(50000);
	assert_int_equal(rc, 0);
	assert_int_equal(kvr_generation(client), 2);
	kvr_disconnect(client);
	harness_stop(&daemon);
}

/* SIGTERM with requests of many clients in flight: exit 0 (harness_stop), and they hear of it. */
static void test_term_under_load(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < (PROCESS_SLOW == 1 ? 6 : 2); round++) {
		struct harness_daemon daemon;
		pid_t pids[4];

		harness_start(&daemon, NULL);
		for (uint32_t i = 0; i < 4; i++)
			pids[i] = process_start("survivor", daemon.socket, i + 1);
		await_attached(&daemon, 4);
		process_sleep_us(process_random(0, 100000));
		harness_stop(&daemon);
		for (uint32_t i = 0; i < 4; i++)
			process_kill(pids[i]);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_client_killed, witness_check),
		cmocka_unit_test_teardown(test_daemon_killed, witness_check),
		cmocka_unit_test_teardown(test_no_daemon, witness_check),
		cmocka_unit_test_teardown(test_term_under_load, witness_check),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	return cmocka_run_group_tests_name("daemon crash", tests, witness_start, witness_stop);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: clients of one tenant that put the same prefix at the same time share one copy of it, built
 * once; two tenants share nothing, and neither can see, drop or pin what is the other's.
 * Method: two threads, each a client, race through the same sequences with random pauses, and the
 * daemon's counts tell who built; a child process under another uid is the other tenant. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"

#define REGION    (4u << 20)
#define TOKENS    400u /* three full segments and a short one */
#define SEGMENTS  4u
#define OTHER_UID 65534u

/* ---- one tenant ------------------------------------------------------------------------------ */

struct racer {
	const struct harness_daemon *daemon;
	pthread_barrier_t *barrier;
	uint64_t seed;
	uint32_t rounds;
	uint32_t failed; /* calls: cmocka's assertions belong to the main thread */
	char why[200];
};

static uint32_t racer_random(struct racer *racer, uint32_t last)
{
	racer->seed = racer->seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(racer->seed >> 33) % (last + 1);
}

static void check(struct racer *racer, struct kvr_client *client, const char *what, int rc)
{
	if (rc == 0)
		return;
	racer->failed++;
	snprintf(racer->why, sizeof(racer->why), "%s: %s: %s", what, strerror(-rc),
		client ? kvr_error(client)->subject : "");
}

/* Puts the same sequence as the other racer, in chunks of its own. */
static void race_once(struct racer *racer, struct kvr_client *client, struct kvr_model *model,
	const struct kvr_model_config *config, uint32_t round)
{
	struct kvr_sequence *sequence = NULL;
	uint32_t ids[TOKENS], at = 0, sealed = 0;

	harness_tokens(round, ids, TOKENS);
	check(racer, client, "open", kvr_open(model, ids, TOKENS, &sequence, &at));
	pthread_barrier_wait(racer->barrier);
	while (at < TOKENS && !racer->failed) {
		uint32_t part = 1 + racer_random(racer, 199);

		part = part < TOKENS - at ? part : TOKENS - at;
		check(racer, client, "append",
			harness_append(client, sequence, config, ids, at, part, 0));
		at += part;
		if (racer_random(racer, 3) == 0)
			process_sleep_us(racer_random(racer, 300));
	}
	check(racer, client, "sync", kvr_sync(sequence, true, &sealed));
	check(racer, client, "sealed", sealed == TOKENS ? 0 : -EPROTO);
	check(racer, client, "fetch",
		harness_try_fetch(client, sequence, config, ids, 0, TOKENS, 0));
	check(racer, client, "close", kvr_close(sequence, false));
	pthread_barrier_wait(racer->barrier);
}

static void *race(void *argument)
{
	struct racer *racer = argument;
	const struct kvr_client_config where = {
		.attach_path = racer->daemon->socket, .region_bytes = REGION, .timeout_ms = 60000};
	struct kvr_model_config config = harness_model();
	struct kvr_client *client = NULL;
	struct kvr_model *model = NULL;

	check(racer, NULL, "connect", kvr_connect(&where, &client));
	check(racer, client, "model", kvr_model_register(client, &config, &model));
	for (uint32_t round = 0; round < racer->rounds; round++)
		race_once(racer, client, model, &config, round);
	kvr_disconnect(client);
	return NULL;
}

static void test_two_seal_one_prefix(void **state)
{
	static const char *const arguments[] = {"-m", "256MiB", NULL};
	const uint32_t rounds = PROCESS_SLOW == 1 ? 300 : 40;
	struct racer racers[2];
	struct harness_daemon daemon;
	pthread_barrier_t barrier;
	pthread_t threads[2];
	struct kvr_client *client;

	(void)state;
	harness_start(&daemon, arguments);
	pthread_barrier_init(&barrier, NULL, 2);
	for (uint32_t i = 0; i < 2; i++) {
		racers[i] = (struct racer){&daemon, &barrier, process_seed + i, rounds, 0, ""};
		assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
	}
	for (uint32_t i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&barrier);
	for (uint32_t i = 0; i < 2; i++) {
		if (racers[i].failed)
			fail_msg("client %u: %s", i, racers[i].why);
	}
	client = harness_connect(&daemon, REGION);
	assert_int_equal(
		(int)harness_metric(client, "seal.segments_count"), (int)(rounds * SEGMENTS));
	assert_int_equal(
		(int)harness_metric(client, "segment.stored_count"), (int)(rounds * SEGMENTS));
	assert_int_equal(
		(int)harness_metric(client, "seal.deduplicated_count"), (int)(rounds * SEGMENTS));
	kvr_disconnect(client);
	harness_stop(&daemon);
}

/* ---- two tenants ----------------------------------------------------------------------------- */

#define SHARED_IDS_SEED 42u

/* What the parent tells the other tenant: its segments and its model's number. */
struct shared {
	uint8_t hashes[SEGMENTS][32];
	uint32_t model, count;
};

static void shared_path(const char *socket, char *ret_path, size_t bytes)
{
	snprintf(ret_path, bytes, "%s", socket);
	snprintf(strrchr(ret_path, '/'), 16, "/shared");
}

static struct kvr_sequence *put_shared(struct kvr_client *client, struct kvr_model_config *config,
	uint32_t *ids, uint32_t *ret_matched)
{
	struct kvr_sequence *sequence;
	struct kvr_model *model;
	uint32_t at;

	*config = harness_model();
	harness_tokens(SHARED_IDS_SEED, ids, TOKENS);
	assert_int_equal(kvr_model_register(client, config, &model), 0);
	assert_int_equal(kvr_open(model, ids, TOKENS, &sequence, ret_matched), 0);
	at = *ret_matched;
	if (at < TOKENS)
		assert_int_equal(
			harness_append(client, sequence, config, ids, at, TOKENS - at, 0), 0);
	assert_int_equal(kvr_sync(sequence, true, NULL), 0);
	harness_check_fetch(client, sequence, config, ids, 0, TOKENS, 0);
	return sequence;
}

/* The names of all segments that a client sees, and its one model's number. */
static void look(struct kvr_client *client, struct shared *ret_shared)
{
	struct kvr_segment_info segments[SEGMENTS + 1];
	struct kvr_model_info models[4];
	int count = kvr_segment_list(client, 0, 0, segments, SEGMENTS + 1);

	assert_int_equal(count, SEGMENTS);
	ret_shared->count = SEGMENTS;
	for (uint32_t i = 0; i < SEGMENTS; i++)
		memcpy(ret_shared->hashes[i], segments[i].hash, 32);
	assert_int_equal(kvr_model_list(client, 0, models, 4), 1);
	ret_shared->model = models[0].model;
}

/* The other tenant: the same model and content, nothing of it there; and what it was told of the
 * first tenant's does not help it. */
static int play_other(const char *socket, uint32_t number)
{
	struct harness_daemon daemon = {0};
	struct kvr_segment_info segments[8];
	struct kvr_model_info models[4];
	struct kvr_dropped dropped;
	struct shared theirs, mine = {0};
	struct kvr_model_config config;
	struct kvr_client *client;
	uint32_t ids[TOKENS], matched, pinned;
	char path[100];
	FILE *file;

	(void)number;
	assert_int_equal(setgid(OTHER_UID), 0);
	assert_int_equal(setuid(OTHER_UID), 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* setuid has cleared it */
	shared_path(socket, path, sizeof(path));
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fread(&theirs, sizeof(theirs), 1, file), 1);
	fclose(file);
	snprintf(daemon.socket, sizeof(daemon.socket), "%s", socket);
	client = harness_connect(&daemon, REGION);
	assert_int_equal(kvr_model_list(client, 0, models, 4), 0);
	assert_int_equal(kvr_segment_list(client, 0, 0, segments, 8), 0);
	assert_int_equal(kvr_segment_list(client, theirs.model, 0, segments, 8), 0);
	assert_int_equal(kvr_drop_model(client, theirs.model, &dropped), -ENODEV);
	put_shared(client, &config, ids, &matched);
	assert_int_equal(matched, 0);
	look(client, &mine);
	assert_int_not_equal(mine.model, theirs.model);
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		for (uint32_t k = 0; k < SEGMENTS; k++)
			assert_memory_not_equal(mine.hashes[i], theirs.hashes[k], 32);
		assert_int_equal(kvr_drop_segment(client, theirs.hashes[i], &dropped), -ENOENT);
		assert_int_equal(
			kvr_pin_segment(client, theirs.hashes[i], false, &pinned), -ENOENT);
		assert_int_equal(kvr_pin_segment(client, theirs.hashes[i], true, &pinned), -ENOENT);
	}
	kvr_disconnect(client);
	return 0;
}

/* One that no tenant lists, where only listed ones may attach. */
static int play_stranger(const char *socket, uint32_t number)
{
	const struct kvr_client_config config = {.attach_path = socket, .region_bytes = REGION};
	struct kvr_client *client = NULL;

	(void)number;
	assert_int_equal(setgid(OTHER_UID), 0);
	assert_int_equal(setuid(OTHER_UID), 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	assert_int_equal(kvr_connect(&config, &client), -EACCES);
	return 0;
}

static const struct process_part parts[] = {
	{"other", play_other}, {"stranger", play_stranger}, {NULL, NULL}};

static void start_with(struct harness_daemon *daemon, const char *text)
{
	char path[64] = "/tmp/kvrecall-test-conf-XXXXXX";
	const char *arguments[] = {"-m", "64MiB", "-c", path, NULL};
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	harness_start(daemon, arguments);
	unlink(path);
	assert_int_equal(chmod(daemon->dir, 0755), 0);
}

static void test_two_tenants(void **state)
{
	struct kvr_dropped dropped;
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_sequence *sequence;
	struct kvr_client *client;
	struct shared shared = {0}, after = {0};
	uint32_t ids[TOKENS], matched, pinned;
	char path[100];
	double held;
	FILE *file;

	(void)state;
	if (getuid() != 0) {
		print_message("skipped: only root can play two users\n");
		skip();
	}
	start_with(&daemon, "socket_mode = \"0777\";\n"
			    "tenants = ( { name = \"one\"; uids = [ 0 ]; },\n"
			    "            { name = \"other\"; uids = [ 65534 ]; } );\n");
	client = harness_connect(&daemon, REGION);
	sequence = put_shared(client, &config, ids, &matched);
	assert_int_equal(matched, 0);
	look(client, &shared);
	held = harness_metric(client, "tenant.held_bytes");
	shared_path(daemon.socket, path, sizeof(path));
	file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(&shared, sizeof(shared), 1, file), 1);
	fclose(file);
	assert_int_equal(chmod(path, 0644), 0);
	assert_int_equal(process_wait(process_start("other", daemon.socket, 0), 60000), 0);
	assert_int_equal((int)harness_metric(client, "seal.deduplicated_count"), 0);
	assert_int_equal((int)harness_metric(client, "segment.stored_count"), 2 * SEGMENTS);
	assert_true(harness_metric(client, "tenant.held_bytes") == held);
	look(client, &after);
	assert_memory_equal(&after, &shared, sizeof(shared));
	harness_check_fetch(client, sequence, &config, ids, 0, TOKENS, 0);
	/* What the other one could not do, the owner can. */
	assert_int_equal(kvr_pin_segment(client, shared.hashes[0], false, &pinned), 0);
	assert_int_equal(kvr_pin_segment(client, shared.hashes[0], true, &pinned), 0);
	assert_int_equal(kvr_close(sequence, true), 0);
	assert_int_equal(kvr_drop_model(client, shared.model, &dropped), 0);
	assert_int_equal(dropped.segment_count, SEGMENTS);
	assert_int_equal((int)harness_metric(client, "segment.stored_count"), SEGMENTS);
	assert_true(harness_metric(client, "tenant.held_bytes") == 0);
	kvr_disconnect(client);
	harness_stop(&daemon);
}

static void test_stranger(void **state)
{
	struct harness_daemon daemon;

	(void)state;
	if (getuid() != 0) {
		print_message("skipped: only root can play two users\n");
		skip();
	}
	start_with(&daemon, "socket_mode = \"0777\";\n"
			    "sessions: { tenant_per_uid = false; };\n"
			    "tenants = ( { name = \"one\"; uids = [ 0 ]; } );\n");
	assert_int_equal(process_wait(process_start("stranger", daemon.socket, 0), 60000), 0);
	harness_assert_alive(&daemon);
	harness_stop(&daemon);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_two_seal_one_prefix),
		cmocka_unit_test(test_two_tenants),
		cmocka_unit_test(test_stranger),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	return cmocka_run_group_tests_name("daemon sharing", tests, NULL, NULL);
}

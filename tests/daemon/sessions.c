/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: sessions come and go, however they go, and nothing of them stays; a silent or greedy peer keeps
 * nobody out; one runtime_dir has one daemon.
 * Method: a real daemon's descriptors and mappings are counted before and after; connections to the
 * attach socket by hand; a second daemon as a child process with captured output. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/daemon/process_util.h"
#include "tests/daemon/witness_util.h"

#define SILENT    65u /* one more than the daemon lets greet at a time */
#define TOGETHER  50u /* sessions of one process */
#define SETTLE_MS 20000u
#define REGION    (2u << 20)

static int silent_connect(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", witness.daemon.socket);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

/* Waits up to timeout_ms for the other end to close, reading what it says before. */
static bool closed_within(int fd, int timeout_ms)
{
	const uint64_t until = kvr_clock_ns() + (uint64_t)timeout_ms * 1000000u;
	struct pollfd poller = {fd, POLLIN, 0};
	uint8_t bytes[1024];

	while (kvr_clock_ns() < until) {
		if (poll(&poller, 1, 100) > 0 && recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) <= 0)
			return true;
	}
	return false;
}

/* ---- many sessions --------------------------------------------------------------------------- */

static void hello_bytes(uint8_t *ret_bytes, size_t *ret_count)
{
	const struct kvr_hello hello = {
		KVR_PROTOCOL_VERSION_MIN, KVR_PROTOCOL_VERSION_MAX, REGION, "many"};
	int64_t packed = kvr_hello_pack(&hello, (struct kvr_span){ret_bytes, 512});

	assert_true(packed > 0);
	*ret_count = (size_t)packed;
}

/* Attaches by hand and closes the socket, and nothing else. */
static void socket_only(void)
{
	uint8_t bytes[512];
	size_t count;
	static struct raw raw;

	hello_bytes(bytes, &count);
	assert_int_equal(
		raw_hello(&raw, &witness.daemon, (struct kvr_span){bytes, count}), KVR_CODE_OK);
	close(raw.region_fd);
	close(raw.attach);
	kvr_message_arena_close(raw.arena);
}

static void orderly(void)
{
	struct kvr_client *client = harness_connect(&witness.daemon, REGION);
	struct kvr_sequence *sequence;
	struct kvr_model *model;

	assert_int_equal(kvr_model_register(client, &witness.config, &model), 0);
	assert_int_equal(
		kvr_open(model, witness.ids, WITNESS_TOKENS, &sequence, &(uint32_t){0}), 0);
	kvr_disconnect(client);
}

/* Holds sessions with sequences until it is killed. */
static int play_hold(const char *socket, uint32_t number)
{
	const struct kvr_client_config config = {.attach_path = socket, .region_bytes = REGION};
	struct kvr_model_config geometry = harness_model();
	struct kvr_client *clients[TOGETHER];
	uint32_t ids[64];

	harness_tokens(number + 500, ids, 64);
	for (uint32_t i = 0; i < TOGETHER; i++) {
		struct kvr_sequence *sequence;
		struct kvr_model *model;

		assert_int_equal(kvr_connect(&config, &clients[i]), 0);
		assert_int_equal(kvr_model_register(clients[i], &geometry, &model), 0);
		assert_int_equal(kvr_open(model, ids, 64, &sequence, &(uint32_t){0}), 0);
		assert_int_equal(harness_append(clients[i], sequence, &geometry, ids, 0, 64, 0), 0);
	}
	pause();
	return 0;
}

static const struct process_part parts[] = {{"hold", play_hold}, {NULL, NULL}};

/* Waits until `count` sessions are attached, the witness's among them. */
static void await_sessions(double count)
{
	double now = 0;

	for (uint32_t ms = 0; ms < SETTLE_MS; ms += 5) {
		now = harness_metric(witness.client, "session.attached_count");
		if (now == count)
			return;
		process_sleep_us(5000);
	}
	fail_msg("%.0f sessions are attached, not %.0f", now, count);
}

static void many(uint32_t orderly_count, uint32_t socket_count, uint32_t process_count)
{
	for (uint32_t i = 0; i < orderly_count; i++)
		orderly();
	for (uint32_t i = 0; i < socket_count; i++)
		socket_only();
	for (uint32_t i = 0; i < process_count; i++) {
		pid_t pid = process_start("hold", witness.daemon.socket, i);

		await_sessions(1 + TOGETHER);
		process_sleep_us(process_random(0, 3000));
		process_kill(pid);
		await_sessions(1);
	}
}

static void test_thousand_sessions(void **state)
{
	const uint32_t part = PROCESS_SLOW == 1 ? 250 : 50;
	uint32_t fds, maps, fds_now = 0, maps_now = 0;
	double held, total;

	(void)state;
	many(TOGETHER, TOGETHER, 2); /* what is allocated once is */
	harness_resources(witness.daemon.pid, &fds, &maps);
	held = harness_metric(witness.client, "tenant.held_bytes");
	total = harness_metric(witness.client, "session.attached_total_count");
	many(2 * part, part, part / TOGETHER);
	total = harness_metric(witness.client, "session.attached_total_count") - total;
	assert_int_equal((int)total, 4 * part);
	for (uint32_t ms = 0; ms < SETTLE_MS; ms += 10) {
		harness_resources(witness.daemon.pid, &fds_now, &maps_now);
		if (fds_now == fds && (maps_now <= maps || PROCESS_SLOW > 1))
			break;
		process_sleep_us(10000);
	}
	assert_int_equal(fds_now, fds);
	if (PROCESS_SLOW == 1) /* a sanitizer's allocator keeps mappings */
		assert_true(maps_now <= maps);
	assert_true(harness_metric(witness.client, "tenant.held_bytes") == held);
	assert_true(harness_metric(witness.client, "session.region_bytes") == WITNESS_REGION);
	assert_true(harness_metric(witness.client, "sequence.open_count") == 1);
}

/* ---- the attach socket ----------------------------------------------------------------------- */

static void test_silent_connections(void **state)
{
	const uint64_t start = kvr_clock_ns();
	int fds[SILENT];

	(void)state;
	for (uint32_t i = 0; i < SILENT; i++)
		fds[i] = silent_connect();
	/* Others attach meanwhile, at once. */
	for (uint32_t i = 0; i < 5; i++)
		harness_assert_alive(&witness.daemon);
	assert_true(kvr_clock_ns() - start < 4000000000u * PROCESS_SLOW);
	for (uint32_t i = 0; i < SILENT; i++) {
		if (!closed_within(fds[i], 8000))
			fail_msg("connection %u is still there", i);
		close(fds[i]);
	}
	assert_true(kvr_clock_ns() - start < 8000000000u * PROCESS_SLOW);
}

/* Not only numbers: each still lasts for about its five seconds if there is no crowd. */
static void test_greeting_lasts(void **state)
{
	const uint64_t start = kvr_clock_ns();
	int fd = silent_connect();

	(void)state;
	assert_true(closed_within(fd, 20000));
	assert_true(kvr_clock_ns() - start > 4500000000u);
	close(fd);
}

/* An attached client that goes on talking there is not one of ours. */
static void test_talk_after_hello(void **state)
{
	static struct raw raw;
	uint8_t bytes[512];
	size_t count;

	(void)state;
	hello_bytes(bytes, &count);
	assert_int_equal(
		raw_hello(&raw, &witness.daemon, (struct kvr_span){bytes, count}), KVR_CODE_OK);
	assert_true(send(raw.attach, bytes, count, MSG_NOSIGNAL) > 0);
	assert_true(closed_within(raw.attach, 10000));
	close(raw.region_fd);
	close(raw.attach);
	kvr_message_arena_close(raw.arena);
}

/* The region can be neither resized nor sealed further: the daemon touches it without fear. */
static void test_region_is_sealed(void **state)
{
	static struct raw raw;

	(void)state;
	raw_attach(&raw, &witness.daemon, REGION);
	assert_int_equal(ftruncate(raw.region_fd, 4096), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(raw.region_fd, 64u << 20), -1);
	assert_int_equal(errno, EPERM);
	raw_detach(&raw);
}

/* All regions together have a bound, too; who comes too late is told so, and what is freed counts. */
static void test_regions_are_bounded(void **state)
{
	char path[100], config[] = "memory: { region_bytes_max = \"4 MiB\"; "
				   "regions_bytes_max = \"8 MiB\"; };\n";
	struct harness_daemon daemon;
	const char *arguments[] = {"-c", path, NULL};
	struct kvr_client *clients[2], *none = NULL;
	struct kvr_client_config wish = {.region_bytes = 4 << 20};
	FILE *file;

	(void)state;
	snprintf(path, sizeof(path), "%s/regions.conf", witness.daemon.dir);
	file = fopen(path, "w");
	assert_non_null(file);
	fputs(config, file);
	fclose(file);
	harness_start(&daemon, arguments);
	clients[0] = harness_connect(&daemon, 4 << 20);
	clients[1] = harness_connect(&daemon, 3 << 20);
	wish.attach_path = daemon.socket;
	assert_int_equal(kvr_connect(&wish, &none), -ENOSPC);
	wish.region_bytes = 5 << 20;
	assert_int_equal(kvr_connect(&wish, &none), -E2BIG);
	kvr_disconnect(clients[0]);
	harness_assert_alive(&daemon);
	kvr_disconnect(clients[1]);
	harness_stop(&daemon);
}

/* ---- one directory, one daemon --------------------------------------------------------------- */

static void assert_refused(const char *why)
{
	const char *const arguments[] = {"-r", witness.daemon.dir, "-m", "8MiB", NULL};
	char output[4096], path[100];
	struct stat status;

	assert_int_equal(process_run("kvrecalld", arguments, output, sizeof(output)), 1);
	if (!strstr(output, why))
		fail_msg("it says: %s", output);
	assert_int_equal(stat(witness.daemon.socket, &status), 0);
	snprintf(path, sizeof(path), "%s/request.sock", witness.daemon.dir);
	assert_int_equal(stat(path, &status), 0);
}

static void test_second_daemon(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++)
		assert_refused("another daemon serves it");
	harness_assert_alive(&witness.daemon);
	/* Also while the first one is too busy to accept. */
	assert_int_equal(kill(witness.daemon.pid, SIGSTOP), 0);
	assert_refused("another daemon serves it");
	assert_int_equal(kill(witness.daemon.pid, SIGCONT), 0);
}

static void test_stale_sockets(void **state)
{
	struct harness_daemon daemon;

	(void)state;
	harness_start(&daemon, NULL);
	for (int i = 0; i < 5; i++) {
		harness_kill(&daemon);
		assert_int_equal(access(daemon.socket, F_OK), 0);
		harness_restart(&daemon, NULL);
		harness_assert_alive(&daemon);
	}
	harness_stop(&daemon);
	assert_int_equal(access(daemon.socket, F_OK), -1);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_thousand_sessions, witness_check),
		cmocka_unit_test_teardown(test_silent_connections, witness_check),
		cmocka_unit_test_teardown(test_greeting_lasts, witness_check),
		cmocka_unit_test_teardown(test_talk_after_hello, witness_check),
		cmocka_unit_test_teardown(test_region_is_sealed, witness_check),
		cmocka_unit_test_teardown(test_regions_are_bounded, witness_check),
		cmocka_unit_test_teardown(test_second_daemon, witness_check),
		cmocka_unit_test_teardown(test_stale_sockets, witness_check),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	return cmocka_run_group_tests_name("daemon sessions", tests, witness_start, witness_stop);
}

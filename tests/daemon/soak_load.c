/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a daemon whose slabs and memory are at their caps for long neither grows nor tires: resident memory, descriptors and
 * mappings stay level once it is warm, the store's directory never takes more blocks than its caps, and every byte
 * that is recalled or fetched is right.
 * Method: four client processes (soak_util.h) that put, recall, fork and drop; a parent that looks at /proc and at
 * st_blocks several times a second. One minute; 30 with KVR_SOAK, less under sanitizers. The first third, but at most three
 * minutes, is warming up. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/daemon/scratch_util.h"
#include "tests/daemon/soak_util.h"
#include "tiers/store.h"

#define CLIENTS       4u
#define STORE_TEXT    "96 MiB"
#define STORE_BYTES   ((uint64_t)96 << 20)
#define CATALOG_TEXT  "24 MiB"
#define CATALOG_BYTES ((uint64_t)24 << 20)
#define PINNED        4u
#define SAMPLE_US     200000u
#define STALL_MS      30000u /* sanitizers on a loaded machine are slow */

/* What may grow once it is warm: LMDB's map is looked at page by page, and malloc's arenas have an edge. */
#define RSS_SLACK_KIB (4u << 10)
#define FDS_SLACK     2u
#define MAPS_SLACK    8u

static const struct process_part parts[] = {{"engine", soak_play}, {NULL, NULL}};

struct sample {
	uint64_t anonymous_kib, rss_kib, blocks;
	uint32_t fds, maps;
};

static uint64_t status_kib(pid_t pid, const char *name)
{
	uint64_t kib = 0;
	char path[64], line[256];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, name, strlen(name)) == 0)
			kib = strtoul(line + strlen(name), NULL, 10);
	}
	fclose(file);
	return kib;
}

static struct sample look(const struct harness_daemon *daemon)
{
	struct sample sample;

	sample.anonymous_kib = status_kib(daemon->pid, "RssAnon:");
	sample.rss_kib = status_kib(daemon->pid, "VmRSS:");
	sample.blocks = scratch_blocks(daemon->store);
	harness_resources(daemon->pid, &sample.fds, &sample.maps);
	return sample;
}

static void raise_to(struct sample *most, struct sample now)
{
	most->anonymous_kib =
		now.anonymous_kib > most->anonymous_kib ? now.anonymous_kib : most->anonymous_kib;
	most->rss_kib = now.rss_kib > most->rss_kib ? now.rss_kib : most->rss_kib;
	most->blocks = now.blocks > most->blocks ? now.blocks : most->blocks;
	most->fds = now.fds > most->fds ? now.fds : most->fds;
	most->maps = now.maps > most->maps ? now.maps : most->maps;
}

static void assert_level(const char *what, uint64_t warm, uint64_t late, uint64_t slack)
{
	if (late > warm + slack)
		fail_msg("%s: %llu when warm, %llu later", what, (unsigned long long)warm,
			(unsigned long long)late);
}

/* Fails if a client has ended, or none gets on. */
static void assert_working(const pid_t *pids, uint64_t *checked, uint64_t *since_ns)
{
	for (uint32_t i = 0; i < CLIENTS; i++) {
		if (kill(pids[i], 0) != 0 || status_kib(pids[i], "VmRSS:") == 0)
			fail_msg("client %u has ended; see above", i);
	}
	if (*checked != soak_get(&soak_notes->checked_tokens)) {
		*checked = soak_get(&soak_notes->checked_tokens);
		*since_ns = kvr_clock_ns();
	}
	assert_true(kvr_clock_ns() - *since_ns < STALL_MS * 1000000ull);
}

static void watch(const struct harness_daemon *daemon, const pid_t *pids, uint32_t seconds)
{
	const uint64_t start_ns = kvr_clock_ns(), second = 1000000000;
	const uint64_t warm_ns = (seconds / 3 < 180 ? seconds / 3 : 180) * second;
	const uint64_t half_ns = warm_ns + (seconds * second - warm_ns) / 2;
	struct sample warm = {0}, late = {0}, now = {0};
	uint64_t checked = 0, since_ns = start_ns, at_ns = 0;

	while ((at_ns = kvr_clock_ns() - start_ns) < seconds * second) {
		now = look(daemon);
		if (now.blocks > STORE_BYTES + CATALOG_BYTES + KVR_STORE_EXTRA_BYTES)
			fail_msg("the store takes %llu bytes", (unsigned long long)now.blocks);
		if (at_ns >= warm_ns)
			raise_to(at_ns < half_ns ? &warm : &late, now);
		assert_working(pids, &checked, &since_ns);
		process_sleep_us(SAMPLE_US);
	}
	print_message(
		"%u s, warm after %llu: most in the first and the second half of the rest:\n"
		"  resident %llu, %llu MiB (of it anonymous %llu, %llu KiB); descriptors %u, %u; "
		"mappings %u, %u; store %.1f, %.1f of %.1f MiB\n",
		seconds, (unsigned long long)(warm_ns / second),
		(unsigned long long)warm.rss_kib >> 10, (unsigned long long)late.rss_kib >> 10,
		(unsigned long long)warm.anonymous_kib, (unsigned long long)late.anonymous_kib,
		warm.fds, late.fds, warm.maps, late.maps, (double)warm.blocks / 1048576,
		(double)late.blocks / 1048576,
		(double)(STORE_BYTES + CATALOG_BYTES + KVR_STORE_EXTRA_BYTES) / 1048576);
	assert_level("descriptors", warm.fds, late.fds, FDS_SLACK);
	if (PROCESS_SLOW != 1) /* sanitizers keep memory of their own */
		return;
	assert_level("anonymous KiB", warm.anonymous_kib, late.anonymous_kib, RSS_SLACK_KIB);
	assert_level("resident KiB", warm.rss_kib, late.rss_kib, RSS_SLACK_KIB);
	assert_level("mappings", warm.maps, late.maps, MAPS_SLACK);
}

static void say_metrics(struct kvr_client *client)
{
	print_message("  %llu sequences acknowledged, %llu forks, %llu drops, %llu tokens' bytes "
		      "checked;",
		(unsigned long long)soak_get(&soak_notes->acked),
		(unsigned long long)soak_get(&soak_notes->forks),
		(unsigned long long)soak_get(&soak_notes->drops),
		(unsigned long long)soak_get(&soak_notes->checked_tokens));
	print_message(
		" segments put %.0f, evicted %.0f; GiB written %.2f, read %.2f; host hits %.2f, "
		"full %.2f; missing tokens %.0f, errors %.0f\n",
		harness_metric(client, "store.put_count"),
		harness_metric(client, "store.evicted_count"),
		harness_metric(client, "store.put_bytes") / 0x1p30,
		harness_metric(client, "nvme.read_bytes") / 0x1p30,
		harness_metric(client, "cache.hit_ratio"),
		harness_metric(client, "host.used_bytes") /
			harness_metric(client, "host.capacity_bytes"),
		harness_metric(client, "recall.missing_tokens_count"),
		harness_metric(client, "store.errors_count"));
}

/* What is pinned is there through all of it. */
static void pin_some(struct soak_engine *engine)
{
	uint32_t count;

	for (uint32_t n = 0; n < PINNED; n++) {
		assert_int_equal(soak_put(engine, SOAK_PARENT, n), 0);
		assert_int_equal(soak_open(engine, SOAK_PARENT, n, &count), 0);
		assert_int_equal(kvr_pin(engine->sequence, false, &count), 0);
		assert_int_equal(soak_end(engine), 0);
	}
}

static void check_pinned(struct soak_engine *engine)
{
	uint32_t count;

	for (uint32_t n = 0; n < PINNED; n++) {
		assert_int_equal(soak_open(engine, SOAK_PARENT, n, &count), 0);
		assert_int_equal(count, soak_count(SOAK_PARENT, n));
		assert_int_equal(soak_check(engine, count), 0);
		assert_int_equal(soak_end(engine), 0);
	}
}

static void test_load(void **state)
{
	char path[] = "/tmp/kvrecall-test-conf-XXXXXX";
	const char *const arguments[] = {"-m", "16 MiB", "-c", path, NULL};
	const int fd = mkstemp(path);
	static struct soak_engine engine = {.number = SOAK_PARENT, .unfinished = SOAK_ITEMS};
	struct harness_daemon daemon;
	pid_t pids[CLIENTS];

	(void)state;
	assert_true(fd >= 0);
	assert_true(dprintf(fd, "store: { catalog_bytes = \"" CATALOG_TEXT "\"; };\n") > 0);
	close(fd);
	soak_notes->clients = CLIENTS;
	soak_notes->evicts = soak_notes->wide = true;
	harness_start_sized(&daemon, STORE_TEXT, arguments);
	unlink(path);
	soak_attach(&engine, daemon.socket);
	pin_some(&engine);
	for (uint32_t i = 0; i < CLIENTS; i++)
		pids[i] = process_start("engine", daemon.socket, i);
	watch(&daemon, pids, soak_long() ? 1800 : PROCESS_SLOW == 1 ? 60 : 15);
	for (uint32_t i = 0; i < CLIENTS; i++)
		assert_int_equal(kill(pids[i], SIGTERM), 0);
	for (uint32_t i = 0; i < CLIENTS; i++)
		assert_int_equal(process_wait(pids[i], SOAK_WAIT_MS), 0);
	check_pinned(&engine);
	say_metrics(engine.client);
	assert_true(harness_metric(engine.client, "store.evicted_count") > 0);
	assert_true(harness_metric(engine.client, "cache.demoted_bytes") > 0);
	assert_true(harness_metric(engine.client, "store.errors_count") == 0);
	assert_true(harness_metric(engine.client, "recall.missing_tokens_count") == 0);
	assert_true(harness_metric(engine.client, "store.put_failures_count") == 0);
	assert_int_equal((int)soak_get(&soak_notes->attached), 0);
	kvr_disconnect(engine.client);
	harness_stop(&daemon);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_load),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	soak_notes_make();
	return cmocka_run_group_tests_name("daemon soak load", tests, NULL, NULL);
}

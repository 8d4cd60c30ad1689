/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever happens to the files of a store while no daemon runs, the next one serves right bytes, or says what it
 * cannot serve, or refuses the store with a sentence that says what helps. Never wrong bytes, never a daemon that aborts.
 * Method: a store is filled once; its files are damaged (bits flipped at random places of slabs.kvr and of the catalog, files cut
 * short, taken away, of another version) and put back afterwards. In between a real daemon starts, and everything is opened, recalled and
 * fetched. What lies in slabs that were left alone must all be there. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/crc.h"
#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"
#include "tests/daemon/scratch_util.h"
#include "tiers/slab.h"

#define SEQUENCES     10u
#define TOKENS        500u
#define SEGMENT       128u
#define REGION        (4u << 20)
#define SLABS         64u
#define FLIPS         (PROCESS_SLOW == 1 ? 1000u : 200u) /* in slabs.kvr */
#define FLIPS_BATCH   20u
#define FLIPS_PAGES   (getenv("KVR_SOAK") ? 1000u : PROCESS_SLOW == 1 ? 150u : 20u)
#define TEXT_BYTES    4096u
#define START_WAIT_MS 60000u

static const char *const arguments[] = {"-m", "8 MiB", NULL};

static struct world {
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_client *client;
	struct kvr_model *model;
	char whole[128]; /* a copy of the store as it was filled */
	uint32_t ids[SEQUENCES][TOKENS];
	bool damaged[SEQUENCES]; /* may be */
	char text[TEXT_BYTES];   /* what the last daemon wrote */
	uint32_t said;           /* refusals to serve, and rows left out */
} world;

static struct used_slab {
	uint64_t offset;
	uint32_t bytes; /* in use */
	uint32_t sequence;
} slabs[SLABS];
static uint32_t slab_count;

/* ---- daemons --------------------------------------------------------------------------------- */

static void attach(void)
{
	world.client = harness_connect(&world.daemon, REGION);
	assert_int_equal(kvr_model_register(world.client, &world.config, &world.model), 0);
}

static int try_connect(void)
{
	const struct kvr_client_config config = {
		.attach_path = world.daemon.socket, .region_bytes = 1 << 20};
	struct kvr_client *client;
	const int rc = kvr_connect(&config, &client);

	if (rc == 0)
		kvr_disconnect(client);
	return rc;
}

/* Starts a daemon on the store. Returns 0 when it serves, or its exit status; its output is in world.text. */
static int start(void)
{
	const int out = memfd_create("output", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
	int status = 0;
	ssize_t bytes;

	assert_true(out >= 0);
	dup2(out, STDERR_FILENO);
	harness_launch(&world.daemon, arguments);
	dup2(saved, STDERR_FILENO);
	close(saved);
	for (uint32_t ms = 0; try_connect() != 0; ms++) {
		if (waitpid(world.daemon.pid, &status, WNOHANG) == world.daemon.pid)
			break;
		assert_true(ms < START_WAIT_MS);
		process_sleep_us(1000);
	}
	bytes = pread(out, world.text, sizeof(world.text) - 1, 0);
	world.text[bytes > 0 ? bytes : 0] = '\0';
	close(out);
	if (status == 0)
		return 0;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 1)
		fail_msg("the daemon ended with status %#x: %s", status, world.text);
	return WEXITSTATUS(status);
}

static void end(void)
{
	kvr_disconnect(world.client);
	harness_end(&world.daemon);
}

static void path_of(const char *name, char *ret_path, size_t bytes)
{
	snprintf(ret_path, bytes, "%s/%s", world.daemon.store, name);
}

/* Everything is as it was. */
static void put_back(void)
{
	scratch_copy(world.whole, world.daemon.store);
	memset(world.damaged, 0, sizeof(world.damaged));
}

/* A start must be refused with all of these words. */
static void assert_refused(const char *one, const char *other)
{
	assert_int_equal(start(), 1);
	if (!strstr(world.text, one) || !strstr(world.text, other))
		fail_msg("not \"%s\" and \"%s\" but: %s", one, other, world.text);
}

/* ---- the store ------------------------------------------------------------------------------- */

static void put(uint32_t s)
{
	struct kvr_sequence *sequence;
	uint32_t sealed = 0;

	harness_tokens(100 + s, world.ids[s], TOKENS);
	assert_int_equal(kvr_open(world.model, NULL, 0, &sequence, &sealed), 0);
	for (uint32_t at = 0; at < TOKENS; at += 250)
		assert_int_equal(harness_append(world.client, sequence, &world.config, world.ids[s],
					 at, 250, 0),
			0);
	assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
	assert_int_equal(sealed, TOKENS);
	assert_int_equal(kvr_close(sequence, true), 0);
}

/* Whose slab this is, by the ids that stand in it: each segment of this model is one slab. */
static uint32_t sequence_of(const uint8_t *slab)
{
	const struct kvr_geometry *geometry;
	struct kvr_slab_layout layout;
	struct kvr_slab_head head;
	uint32_t first_id;

	assert_int_equal(kvr_slab_unpack_head(slab + KVR_SLAB_HEADER_BYTES, &head), 0);
	geometry = &head.model.geometry;
	kvr_slab_layout(geometry, head.token_first, head.token_count, &layout);
	assert_int_equal(layout.part_count, 1);
	memcpy(&first_id, slab + KVR_SLAB_HEADER_BYTES + layout.summary_at, sizeof(first_id));
	for (uint32_t s = 0; s < SEQUENCES; s++) {
		if (world.ids[s][head.token_first] == first_id)
			return s;
	}
	fail_msg("a slab of nobody");
	return 0;
}

static void find_slabs(void)
{
	static uint8_t bytes[KVR_SLAB_HEADER_BYTES + (256 << 10)];
	char path[200];
	int fd;

	path_of("slabs.kvr", path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	for (uint32_t i = 0; i < SLABS; i++) {
		struct used_slab *slab = &slabs[slab_count];
		struct kvr_slab_header header;

		slab->offset = (uint64_t)i * KVR_SLAB_BYTES;
		assert_true(pread(fd, bytes, sizeof(bytes), (off_t)slab->offset) ==
			    (ssize_t)sizeof(bytes));
		if (kvr_slab_unpack_header(bytes, &header) < 0)
			continue;
		slab->bytes = KVR_SLAB_HEADER_BYTES + header.body_bytes;
		slab->sequence = sequence_of(bytes);
		slab_count++;
	}
	close(fd);
	assert_int_equal(slab_count, SEQUENCES * ((TOKENS + SEGMENT - 1) / SEGMENT));
}

static int fill(void **state)
{
	(void)state;
	world.config = harness_model();
	harness_start_sized(&world.daemon, "64 MiB", arguments);
	attach();
	for (uint32_t s = 0; s < SEQUENCES; s++)
		put(s);
	end();
	scratch_make(world.whole, sizeof(world.whole));
	scratch_copy(world.daemon.store, world.whole);
	find_slabs();
	return 0;
}

/* A test before may have failed anywhere. */
static int prepare(void **state)
{
	(void)state;
	if (waitpid(world.daemon.pid, NULL, WNOHANG) == 0)
		harness_kill(&world.daemon);
	put_back();
	return 0;
}

static int empty(void **state)
{
	(void)state;
	put_back();
	assert_int_equal(start(), 0);
	harness_stop(&world.daemon);
	scratch_remove(world.whole);
	return 0;
}

/* ---- looking at everything ------------------------------------------------------------------- */

/* Recalls and fetches what was matched. Returns whether something was said to be unreadable. */
static bool look_once(uint32_t s, struct kvr_sequence *sequence, uint32_t matched)
{
	const struct kvr_recall recall = {
		.budget_tokens = TOKENS, .row_capacity = TOKENS + 16, .sinks = true};
	const bool recall_first = process_random(0, 1);
	bool said = false;

	for (int turn = 0; turn < 2; turn++) {
		uint32_t missing = 0;
		int rc = 0;

		if ((turn == 0) != recall_first) {
			rc = harness_try_fetch(
				world.client, sequence, &world.config, world.ids[s], 0, matched, 0);
			assert_true(rc == 0 || rc == -EIO);
			if (rc < 0)
				assert_string_equal(kvr_error(world.client)->name, "UNREADABLE");
		}
		for (uint32_t layer = 0; (turn == 0) == recall_first && layer < 2; layer++) {
			uint32_t lost;
			const int rows = harness_recall(world.client, sequence, &world.config,
				world.ids[s], layer, recall, 0, NULL, &lost);

			assert_true(rows >= 0);
			/* The budget takes all there is: each token is a row, or said to be missing. */
			assert_int_equal((uint32_t)rows + lost, matched * world.config.kv_heads);
			missing += lost;
		}
		said |= rc < 0 || missing > 0;
	}
	return said;
}

/* Looks until nothing is said to be unreadable any more: each time the match must be shorter. */
static void look_at(uint32_t s)
{
	uint32_t before = TOKENS + 1;
	bool said = true;

	while (said) {
		struct kvr_sequence *sequence;
		uint32_t matched = 0;

		assert_int_equal(
			kvr_open(world.model, world.ids[s], TOKENS, &sequence, &matched), 0);
		if (!world.damaged[s])
			assert_int_equal(matched, TOKENS);
		assert_true(matched < before);
		said = matched > 0 && look_once(s, sequence, matched);
		if (said && !world.damaged[s])
			fail_msg("sequence %u was left alone and is said to be unreadable", s);
		world.said += said || matched < TOKENS;
		before = matched;
		assert_int_equal(kvr_close(sequence, true), 0);
	}
}

static void look_at_all(void)
{
	attach();
	for (uint32_t s = 0; s < SEQUENCES; s++)
		look_at(s);
	end();
}

/* ---- bits ------------------------------------------------------------------------------------ */

static void flip(const char *name, uint64_t offset)
{
	char path[200];
	uint8_t byte;
	int fd;

	path_of(name, path, sizeof(path));
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	byte ^= (uint8_t)(1u << process_random(0, 7));
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
}

static void test_bits_of_slabs(void **state)
{
	(void)state;
	world.said = 0;
	for (uint32_t flips = 0; flips < FLIPS; flips += FLIPS_BATCH) {
		for (uint32_t i = 0; i < FLIPS_BATCH; i++) {
			/* Half of the sequences stay as they are. */
			const struct used_slab *slab =
				&slabs[process_random(0, slab_count / 2 - 1)];

			world.damaged[slab->sequence] = true;
			flip("slabs.kvr", slab->offset + process_random(0, slab->bytes - 1));
		}
		assert_int_equal(start(), 0);
		look_at_all();
		put_back();
	}
	print_message(
		"%u bits flipped in slabs.kvr: %u times something was said to be unreadable\n",
		FLIPS, world.said);
	assert_true(world.said > FLIPS / FLIPS_BATCH);
}

static uint64_t file_bytes(const char *name)
{
	struct stat stat;
	char path[200];

	path_of(name, path, sizeof(path));
	assert_int_equal(lstat(path, &stat), 0);
	return (uint64_t)stat.st_size;
}

/* Refused with the remedy, or served as far as it is right. */
static bool start_or_refuse(void)
{
	if (start() == 0) {
		look_at_all();
		return true;
	}
	if (!strstr(world.text, "rebuild") && !strstr(world.text, "newer version"))
		fail_msg("no remedy in: %s", world.text);
	return false;
}

static void test_bits_of_catalog(void **state)
{
	const uint32_t bytes = (uint32_t)file_bytes("catalog/data.mdb");
	uint32_t refused = 0;

	(void)state;
	world.said = 0;
	for (uint32_t flips = 0; flips < FLIPS_PAGES; flips++) {
		memset(world.damaged, true, sizeof(world.damaged));
		flip("catalog/data.mdb", process_random(0, bytes - 1));
		refused += !start_or_refuse();
		put_back();
	}
	print_message("%u bits flipped in the catalog's %u KiB: %u starts refused, %u times "
		      "something was said to be unreadable\n",
		FLIPS_PAGES, bytes >> 10, refused, world.said);
	assert_true(refused > 0);
}

/* ---- files cut short, or gone ---------------------------------------------------------------- */

static void cut(const char *name, uint64_t bytes)
{
	char path[200];

	path_of(name, path, sizeof(path));
	assert_int_equal(truncate(path, (off_t)bytes), 0);
}

static void test_cut_files(void **state)
{
	const uint64_t slab_bytes = file_bytes("slabs.kvr"),
		       page_bytes = file_bytes("catalog/data.mdb");

	(void)state;
	for (uint32_t round = 0; round < (PROCESS_SLOW == 1 ? 12 : 4); round++) {
		memset(world.damaged, true, sizeof(world.damaged));
		cut("slabs.kvr", round == 0 ? 0 : process_random(1, (uint32_t)slab_bytes - 1));
		start_or_refuse();
		put_back();
		memset(world.damaged, true, sizeof(world.damaged));
		cut("catalog/data.mdb", round == 0   ? 0
					: round == 1 ? 4096
						     : process_random(1, (uint32_t)page_bytes - 1));
		if (start_or_refuse())
			fail_msg("served with data.mdb of %llu of %llu bytes",
				(unsigned long long)file_bytes("catalog/data.mdb"),
				(unsigned long long)page_bytes);
		put_back();
	}
}

static void take_away(const char *name)
{
	char path[200];

	path_of(name, path, sizeof(path));
	scratch_remove_tree(path);
}

static void test_lost_files(void **state)
{
	(void)state;
	take_away("secret");
	assert_refused("`secret` is missing", "put it back");
	put_back();
	cut("secret", 7);
	assert_refused("secret", "put back");
	put_back();
	take_away("slabs.kvr");
	assert_refused("slabs.kvr is missing", "put it back");
	put_back();
	take_away("catalog/data.mdb");
	assert_refused("catalog", "rebuild");
	put_back();
	take_away("catalog");
	assert_refused("without its catalog", "rebuild");
	put_back();
	take_away("catalog/lock.mdb"); /* only for those that run at the same time */
	take_away("lock");
	assert_int_equal(start(), 0);
	look_at_all();
	put_back();
}

static void run_well(const char *const *command)
{
	const int status = process_run("kvrecall", command, world.text, TEXT_BYTES);

	if (status != 0)
		fail_msg("kvrecall %s: exit status %d: %s", command[0], status, world.text);
}

/* The remedy that the messages name helps. */
static void test_rebuild(void **state)
{
	const char *const rebuild[] = {"rebuild", "--store", world.daemon.store, NULL};
	const char *const verify[] = {"verify", "--store", world.daemon.store, NULL};

	(void)state;
	take_away("catalog");
	run_well(rebuild);
	run_well(verify);
	assert_int_equal(start(), 0);
	look_at_all();
	put_back();
	cut("catalog/data.mdb", 4096 * 3 + 1);
	run_well(rebuild);
	assert_int_equal(start(), 0);
	look_at_all();
	take_away("catalog.old");
	put_back();
}

/* ---- other places, other versions ------------------------------------------------------------ */

static void test_moved(void **state)
{
	char home[sizeof(world.daemon.store)];

	(void)state;
	memcpy(home, world.daemon.store, sizeof(home));
	scratch_move(home, world.daemon.store, sizeof(world.daemon.store));
	assert_int_equal(start(), 0);
	look_at_all();
}

/* The copy is served, also beside the original. */
static void test_copied(void **state)
{
	struct harness_daemon original = world.daemon;
	struct kvr_client *client;
	char output[1024];

	(void)state;
	original.store_bytes = "64 MiB";
	assert_int_equal(start(), 0);
	original = world.daemon;
	client = harness_connect(&original, REGION);
	harness_start_sized(&world.daemon, "64 MiB", arguments); /* a store of its own first */
	harness_end(&world.daemon);
	scratch_copy(world.whole, world.daemon.store);
	assert_int_equal(start(), 0);
	look_at_all();
	/* The original is in use. */
	assert_int_equal(harness_run(&world.daemon, original.store, output, sizeof(output)), 1);
	if (!strstr(output, "in use by process") || !strstr(output, "stop that one"))
		fail_msg("in use: %s", output);
	assert_int_equal(kvr_ping(client), 0);
	kvr_disconnect(client);
	assert_int_equal(start(), 0);
	harness_stop(&world.daemon);
	world.daemon = original;
	attach();
	end();
}

/* Slabs of one store, catalog and all else of another. */
static void test_mixed(void **state)
{
	struct harness_daemon other;
	char from[200], to[200];

	(void)state;
	harness_start_sized(&other, "64 MiB", arguments);
	world.client = harness_connect(&other, REGION);
	assert_int_equal(kvr_model_register(world.client, &world.config, &world.model), 0);
	put(0);
	kvr_disconnect(world.client);
	harness_end(&other);
	snprintf(from, sizeof(from), "%s/catalog", other.store);
	snprintf(to, sizeof(to), "%s/catalog", world.daemon.store);
	scratch_copy(from, to);
	assert_refused("of another", "rebuild");
	harness_restart(&other, arguments);
	harness_stop(&other);
	put_back();
}

static void bump(uint8_t *page)
{
	uint32_t version = KVR_SLAB_VERSION + 1, crc = 0;

	memcpy(page + 8, &version, sizeof(version)); /* the table in tiers/slab.c */
	memcpy(page + 12, &crc, sizeof(crc));
	crc = kvr_crc32c(0, page, KVR_SLAB_HEADER_BYTES);
	memcpy(page + 12, &crc, sizeof(crc));
}

/* Headers of a version that is not known yet: refused, and left as they are. */
static void test_newer_slabs(void **state)
{
	static uint8_t page[KVR_SLAB_HEADER_BYTES], after[KVR_SLAB_HEADER_BYTES];
	char path[200];
	int fd;

	(void)state;
	path_of("slabs.kvr", path, sizeof(path));
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	for (uint32_t i = 0; i < slab_count; i++) {
		const off_t at = (off_t)slabs[i].offset;

		assert_true(pread(fd, page, sizeof(page), at) == (ssize_t)sizeof(page));
		bump(page);
		assert_true(pwrite(fd, page, sizeof(page), at) == (ssize_t)sizeof(page));
	}
	assert_refused("newer version", "use that one");
	assert_true(pread(fd, after, sizeof(after), (off_t)slabs[slab_count - 1].offset) ==
		    (ssize_t)sizeof(after));
	assert_memory_equal(page, after, sizeof(page));
	close(fd);
	put_back();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_bits_of_slabs, prepare),
		cmocka_unit_test_setup(test_bits_of_catalog, prepare),
		cmocka_unit_test_setup(test_cut_files, prepare),
		cmocka_unit_test_setup(test_lost_files, prepare),
		cmocka_unit_test_setup(test_rebuild, prepare),
		cmocka_unit_test_setup(test_moved, prepare),
		cmocka_unit_test_setup(test_copied, prepare),
		cmocka_unit_test_setup(test_mixed, prepare),
		cmocka_unit_test_setup(test_newer_slabs, prepare),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon damage", tests, fill, empty);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a store that lacks a file, was moved, copied or mixed with another one, is of a later version or in use, is served
 * right or refused with a sentence that says what helps; and that helps.
 * Method: a store that was filled once (damage_util.h), its files moved about, and real daemons started on it. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/crc.h"
#include "tests/daemon/damage_util.h"
#include "tests/daemon/process_util.h"
#include "tests/daemon/scratch_util.h"
#include "tiers/slab.h"

/* ---- files that are gone --------------------------------------------------------------------- */

static void take_away(const char *name)
{
	char path[200];

	damage_path_of(name, path, sizeof(path));
	scratch_remove_tree(path);
}

static void test_lost_files(void **state)
{
	(void)state;
	take_away("secret");
	damage_assert_refused("`secret` is missing", "put it back");
	damage_put_back();
	damage_cut("secret", 7);
	damage_assert_refused("secret", "put back");
	damage_put_back();
	take_away("slabs.kvr");
	damage_assert_refused("slabs.kvr is missing", "put it back");
	damage_put_back();
	take_away("catalog/data.mdb");
	damage_assert_refused("catalog", "rebuild");
	damage_put_back();
	take_away("catalog");
	damage_assert_refused("without its catalog", "rebuild");
	damage_put_back();
	take_away("catalog/lock.mdb"); /* only for those that run at the same time */
	take_away("lock");
	assert_int_equal(damage_start(), 0);
	damage_look_at_all();
	damage_put_back();
}

static void run_well(const char *const *command)
{
	const int status = process_run("kvrecall", command, damage_world.text, DAMAGE_TEXT_BYTES);

	if (status != 0)
		fail_msg("kvrecall %s: exit status %d: %s", command[0], status, damage_world.text);
}

/* The remedy that the messages name helps. */
static void test_rebuild(void **state)
{
	const char *const rebuild[] = {"rebuild", "--store", damage_world.daemon.store, NULL};
	const char *const verify[] = {"verify", "--store", damage_world.daemon.store, NULL};

	(void)state;
	take_away("catalog");
	run_well(rebuild);
	run_well(verify);
	assert_int_equal(damage_start(), 0);
	damage_look_at_all();
	damage_put_back();
	damage_cut("catalog/data.mdb", 4096 * 3 + 1);
	run_well(rebuild);
	assert_int_equal(damage_start(), 0);
	damage_look_at_all();
	take_away("catalog.old");
	damage_put_back();
}

/* ---- other places, other versions ------------------------------------------------------------ */

static void test_moved(void **state)
{
	char home[sizeof(damage_world.daemon.store)];

	(void)state;
	memcpy(home, damage_world.daemon.store, sizeof(home));
	scratch_move(home, damage_world.daemon.store, sizeof(damage_world.daemon.store));
	assert_int_equal(damage_start(), 0);
	damage_look_at_all();
}

/* The copy is served, also beside the original. */
static void test_copied(void **state)
{
	struct harness_daemon original = damage_world.daemon;
	struct kvr_client *client;
	char output[1024];

	(void)state;
	original.store_bytes = "64 MiB";
	assert_int_equal(damage_start(), 0);
	original = damage_world.daemon;
	client = harness_connect(&original, DAMAGE_REGION);
	harness_start_sized(
		&damage_world.daemon, "64 MiB", damage_arguments); /* a store of its own first */
	harness_end(&damage_world.daemon);
	scratch_copy(damage_world.whole, damage_world.daemon.store);
	assert_int_equal(damage_start(), 0);
	damage_look_at_all();
	/* The original is in use. */
	assert_int_equal(
		harness_run(&damage_world.daemon, original.store, output, sizeof(output)), 1);
	if (!strstr(output, "in use by process") || !strstr(output, "stop that one"))
		fail_msg("in use: %s", output);
	assert_int_equal(kvr_ping(client), 0);
	kvr_disconnect(client);
	assert_int_equal(damage_start(), 0);
	harness_stop(&damage_world.daemon);
	damage_world.daemon = original;
	damage_attach();
	damage_end();
}

/* Slabs of one store, catalog and all else of another. */
static void test_mixed(void **state)
{
	struct harness_daemon other;
	char from[200], to[200];

	(void)state;
	harness_start_sized(&other, "64 MiB", damage_arguments);
	damage_world.client = harness_connect(&other, DAMAGE_REGION);
	assert_int_equal(
		kvr_model_register(damage_world.client, &damage_world.config, &damage_world.model),
		0);
	damage_put(0);
	kvr_disconnect(damage_world.client);
	harness_end(&other);
	snprintf(from, sizeof(from), "%s/catalog", other.store);
	snprintf(to, sizeof(to), "%s/catalog", damage_world.daemon.store);
	scratch_copy(from, to);
	damage_assert_refused("of another", "rebuild");
	harness_restart(&other, damage_arguments);
	harness_stop(&other);
	damage_put_back();
}

static void set_version(uint8_t *page, uint32_t version)
{
	uint32_t crc = 0;

	memcpy(page + 8, &version, sizeof(version)); /* the table in tiers/slab.c */
	memcpy(page + 12, &crc, sizeof(crc));
	crc = kvr_crc32c(0, page, KVR_SLAB_HEADER_BYTES);
	memcpy(page + 12, &crc, sizeof(crc));
}

/* Headers of another version: refused, and left as they are. */
static void other_slabs(uint32_t version, const char *what, const char *remedy)
{
	static uint8_t page[KVR_SLAB_HEADER_BYTES], after[KVR_SLAB_HEADER_BYTES];
	char path[200];
	int fd;

	damage_path_of("slabs.kvr", path, sizeof(path));
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	for (uint32_t i = 0; i < damage_slab_count; i++) {
		const off_t at = (off_t)damage_slabs[i].offset;

		assert_true(pread(fd, page, sizeof(page), at) == (ssize_t)sizeof(page));
		set_version(page, version);
		assert_true(pwrite(fd, page, sizeof(page), at) == (ssize_t)sizeof(page));
	}
	damage_assert_refused(what, remedy);
	assert_true(pread(fd, after, sizeof(after),
			    (off_t)damage_slabs[damage_slab_count - 1].offset) ==
		    (ssize_t)sizeof(after));
	assert_memory_equal(page, after, sizeof(page));
	close(fd);
	damage_put_back();
}

static void test_other_slabs(void **state)
{
	(void)state;
	other_slabs(KVR_SLAB_VERSION + 1, "newer version", "use that one");
	other_slabs(KVR_SLAB_VERSION - 1, "older version", "remove the store");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_lost_files, damage_prepare),
		cmocka_unit_test_setup(test_rebuild, damage_prepare),
		cmocka_unit_test_setup(test_moved, damage_prepare),
		cmocka_unit_test_setup(test_copied, damage_prepare),
		cmocka_unit_test_setup(test_mixed, damage_prepare),
		cmocka_unit_test_setup(test_other_slabs, damage_prepare),
	};

	process_seed_print();
	return cmocka_run_group_tests_name(
		"daemon damage, places", tests, damage_fill, damage_empty);
}

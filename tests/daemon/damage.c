/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever happens to the bytes of a store while no daemon runs, the next one serves right bytes, or says what it
 * cannot serve, or refuses the store with a sentence that says what helps. Never wrong bytes, never a daemon that aborts.
 * Method: bits are flipped at random places of slabs.kvr and of the catalog, and files are cut short; then a real daemon
 * starts, and everything is opened, recalled and fetched (damage_util.h). What lies in slabs that were left alone must all be there. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/daemon/damage_util.h"
#include "tests/daemon/process_util.h"

#define FLIPS       (PROCESS_SLOW == 1 ? 1000u : 80u) /* in slabs.kvr */
#define FLIPS_BATCH 40u
#define FLIPS_PAGES (getenv("KVR_SOAK") ? 1000u : PROCESS_SLOW == 1 ? 60u : 8u)

/* ---- bits ------------------------------------------------------------------------------------ */

static struct flipped {
	uint64_t offset;
	uint8_t bit;
} flipped[FLIPS_BATCH];

/* Doing it again undoes it. */
static void flip(const char *name, struct flipped where)
{
	char path[200];
	uint8_t byte;
	int fd;

	damage_path_of(name, path, sizeof(path));
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)where.offset), 1);
	byte ^= where.bit;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)where.offset), 1);
	close(fd);
}

static uint8_t any_bit(void)
{
	return (uint8_t)(1u << process_random(0, 7));
}

static void test_bits_of_slabs(void **state)
{
	(void)state;
	damage_world.said = 0;
	for (uint32_t flips = 0; flips < FLIPS; flips += FLIPS_BATCH) {
		for (uint32_t i = 0; i < FLIPS_BATCH; i++) {
			/* Half of the sequences stay as they are. */
			const struct damage_slab *slab =
				&damage_slabs[process_random(0, damage_slab_count / 2 - 1)];

			damage_world.damaged[slab->sequence] = true;
			flipped[i].offset = slab->offset + process_random(0, slab->bytes - 1);
			flipped[i].bit = any_bit();
			flip("slabs.kvr", flipped[i]);
		}
		assert_int_equal(damage_start(), 0);
		damage_look_at_all();
		damage_put_back();
	}
	print_message(
		"%u bits flipped in slabs.kvr: %u times something was said to be unreadable\n",
		FLIPS, damage_world.said);
	assert_true(damage_world.said >= FLIPS / FLIPS_BATCH);
}

static void test_bits_of_catalog(void **state)
{
	const uint32_t bytes = (uint32_t)damage_file_bytes("catalog/data.mdb");
	uint32_t refused = 0;

	(void)state;
	damage_world.said = 0;
	for (uint32_t flips = 0; flips < FLIPS_PAGES; flips++) {
		memset(damage_world.damaged, true, sizeof(damage_world.damaged));
		flipped[0] = (struct flipped){process_random(0, bytes - 1), any_bit()};
		flip("catalog/data.mdb", flipped[0]);
		refused += !damage_start_or_refuse();
		damage_put_back_catalog();
	}
	print_message("%u bits flipped in the catalog's %u KiB: %u starts refused, %u times "
		      "something was said to be unreadable\n",
		FLIPS_PAGES, bytes >> 10, refused, damage_world.said);
	assert_true(refused + damage_world.said > 0);
}

/* ---- files cut short ------------------------------------------------------------------------- */

static void test_cut_files(void **state)
{
	const uint64_t slab_bytes = damage_file_bytes("slabs.kvr"),
		       page_bytes = damage_file_bytes("catalog/data.mdb");

	(void)state;
	for (uint32_t round = 0; round < (PROCESS_SLOW == 1 ? 10 : 2); round++) {
		memset(damage_world.damaged, true, sizeof(damage_world.damaged));
		damage_cut(
			"slabs.kvr", round == 0 ? 0 : process_random(1, (uint32_t)slab_bytes - 1));
		damage_start_or_refuse();
		damage_put_back();
		/* Pages that are free may end a file: without them nothing may be missing. */
		memset(damage_world.damaged, false, sizeof(damage_world.damaged));
		damage_cut("catalog/data.mdb",
			round == 0   ? 0
			: round == 1 ? 4096
				     : process_random(1, (uint32_t)page_bytes - 1));
		if (damage_start_or_refuse() && round < 2)
			fail_msg("served with data.mdb of %llu of %llu bytes",
				(unsigned long long)damage_file_bytes("catalog/data.mdb"),
				(unsigned long long)page_bytes);
		damage_put_back_catalog();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_bits_of_slabs, damage_prepare),
		cmocka_unit_test_setup(test_bits_of_catalog, damage_prepare),
		cmocka_unit_test_setup(test_cut_files, damage_prepare),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon damage", tests, damage_fill, damage_empty);
}

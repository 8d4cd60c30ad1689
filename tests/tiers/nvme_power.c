/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_power.c: an NVMe tier whose disk loses its power.
 *
 * Goal: what a SYNC covered is there after a cut at any later SYNC; and the simulated disk (power_util.h) does lose and
 * tear what no SYNC covered, so that tests which stand on it test something.
 *
 * Method: rounds of writes of numbered sectors at random places, a SYNC after each, for 200 seeds; a cut at a random
 * SYNC; after opening again every sector holds what the last covered write put there, or what a later one did. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/nvme_util.h"
#include "tests/tiers/power_util.h"

#define SEEDS        200u
#define SLABS        2u
#define BYTES        ((uint64_t)SLABS * KVR_SLAB_BYTES)
#define SECTOR       512u
#define SECTORS      64u /* that the rounds write to, from the start of the file */
#define ROUNDS       6u
#define WRITES       5u
#define MEMORY_BYTES ((size_t)2 << 20)

static struct kvr_random shared_random;
static struct kvr_test_nvme test;
static uint32_t covered[SECTORS]; /* the number that is durable */
static uint32_t latest[SECTORS];

static int transfer(enum kvr_tier_op op, uint32_t sector, uint32_t sectors)
{
	struct kvr_tier_io io = {
		.op = op,
		.place = {.offset = (uint64_t)sector * SECTOR, .bytes = sectors * SECTOR},
		.buffer = {test.memory.data, (size_t)sectors * SECTOR},
	};

	return kvr_test_run(test.tier, &io);
}

static void write_some(uint32_t number)
{
	const uint32_t count = kvr_random_range(&shared_random, 1, 16);
	const uint32_t first = kvr_random_range(&shared_random, 0, SECTORS - count);

	for (uint32_t i = 0; i < count; i++) {
		uint8_t *data = test.memory.data + (size_t)i * SECTOR;

		memset(data, 0, SECTOR);
		memcpy(data, &number, sizeof(number));
		latest[first + i] = number;
	}
	assert_int_equal(transfer(KVR_TIER_WRITE, first, count), 0);
}

/* Writes and syncs until the power goes. */
static void run_until_cut(struct kvr_power *power)
{
	struct kvr_tier_io sync = {.op = KVR_TIER_SYNC};
	uint32_t number = 0;

	memset(covered, 0, sizeof(covered));
	memset(latest, 0, sizeof(latest));
	for (uint32_t round = 0; round < ROUNDS; round++) {
		int rc;

		for (uint32_t i = 0; i < WRITES; i++)
			write_some(++number);
		rc = kvr_test_run(test.tier, &sync);
		assert_int_equal(rc, power->dead ? -EIO : 0);
		if (power->dead)
			break;
		memcpy(covered, latest, sizeof(covered));
	}
	assert_true(power->dead);
	assert_int_equal(transfer(KVR_TIER_WRITE, 0, 1), -EIO);
	assert_int_equal(kvr_test_run(test.tier, &sync), -EIO);
}

/* Clears the file's part that the rounds use. */
static void wipe(void)
{
	struct kvr_tier_io sync = {.op = KVR_TIER_SYNC};

	memset(test.memory.data, 0, (size_t)SECTORS * SECTOR);
	assert_int_equal(transfer(KVR_TIER_WRITE, 0, SECTORS), 0);
	assert_int_equal(kvr_test_run(test.tier, &sync), 0);
}

static void open_test(void)
{
	assert_int_equal(kvr_test_nvme_open(&test, KVR_NVME_IO_THREADS, BYTES, 4), 0);
	assert_int_equal(kvr_nvme_claim(test.nvme, 0), 0);
}

static void test_cut(void **state)
{
	uint32_t kept = 0;
	uint32_t lost = 0;
	uint32_t torn = 0;
	uint32_t changed = 0;

	(void)state;
	kvr_test_nvme_start(&test, MEMORY_BYTES);
	for (uint32_t seed = 0; seed < SEEDS; seed++) {
		struct kvr_power power;

		open_test();
		wipe();
		test.tier = kvr_power_wrap(&power, test.path, seed, test.tier);
		power.cut_at = kvr_random_range(&shared_random, 1, ROUNDS);
		run_until_cut(&power);
		kept += power.kept_count;
		lost += power.lost_count;
		torn += power.torn_count;
		kvr_test_nvme_close(&test);
		open_test();
		assert_int_equal(transfer(KVR_TIER_READ, 0, SECTORS), 0);
		for (uint32_t i = 0; i < SECTORS; i++) {
			uint32_t number;

			memcpy(&number, test.memory.data + (size_t)i * SECTOR, sizeof(number));
			assert_in_range(number, covered[i], latest[i]);
			changed += number != latest[i];
		}
		kvr_test_nvme_close(&test);
	}
	kvr_test_nvme_end(&test);
	assert_true(kept > SEEDS);
	assert_true(lost > SEEDS);
	assert_true(torn > SEEDS);
	assert_true(changed > SEEDS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_cut)};

	shared_random = kvr_random_start();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
